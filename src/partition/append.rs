//! The way of an append: encoded before the lock is taken, judged, put into the leader's log and its followers' under it.

use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;

use crate::config::TopicConfig;
use crate::error::{Error, ErrorClass, Written};
use crate::protocol::producer_state::verdict::Verdict;
use crate::record::{Draft, DraftSettings, Marker, Record};
use crate::types::{Acks, Flush, LeaderEpoch, Offset, ProducerId, Timestamp};

use super::core::{Core, State};
use super::scratch::Scratch;
use super::{Appended, Author};

/// What became of an append.
#[derive(Clone, Debug)]
pub(crate) enum Placed {
    /// It is acknowledged as was asked.
    Done(Appended),
    /// It is in the leader's log.
    Waits(Waiting),
}

/// An append that is not acknowledged yet, and the reign under which it was made.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) appended: Appended,
    pub(crate) epoch: LeaderEpoch,
}

impl Core {
    /// Appends `records` as one batch. With [`Acks::None`] nobody waits, and somebody else flushes.
    ///
    /// # Errors
    /// As for `Partition::append`.
    #[inline(always)]
    pub(crate) fn append(
        &self,
        author: Option<&Author>,
        records: &[Record<'_>],
        acks: Acks,
    ) -> Result<Placed, Error> {
        let placed = self.append_batch(author, records, acks, None)?;
        if let Placed::Waits(appended) = &placed
            && acks == Acks::None
        {
            self.ask_for_flush();
            return Ok(Placed::Done(appended.appended.clone()));
        }
        Ok(placed)
    }

    /// Appends `records` as one batch; the caller waits by itself.
    pub(crate) fn append_only(
        &self,
        author: Option<&Author>,
        records: &[Record<'_>],
        acks: Acks,
    ) -> Result<Placed, Error> {
        let placed = self.append_batch(author, records, acks, None)?;
        if let Placed::Waits(_) = placed {
            self.ask_for_flush();
        }
        Ok(placed)
    }

    /// As [`Core::append_only`], under the reign of `epoch` and no other.
    ///
    /// # Errors
    /// [`Error::NoLeader`]: it is over. As for an append.
    pub(crate) fn append_under(
        &self,
        epoch: LeaderEpoch,
        records: &[Record<'_>],
        acks: Acks,
    ) -> Result<Placed, Error> {
        let placed = self.append_batch(None, records, acks, Some(epoch))?;
        if let Placed::Waits(_) = placed {
            self.ask_for_flush();
        }
        Ok(placed)
    }

    /// As [`Core::append_only`], for a caller that is likely to wait at once and flush by itself: the worker
    /// looks only after [`SOON`](super::flush::SOON).
    #[inline(always)]
    pub(crate) fn append_to_wait(
        &self,
        author: Option<&Author>,
        records: &[Record<'_>],
        acks: Acks,
    ) -> Result<Placed, Error> {
        let placed = self.append_batch(author, records, acks, None)?;
        if let Placed::Waits(appended) = &placed {
            if acks == Acks::None {
                self.ask_for_flush();
                return Ok(Placed::Done(appended.appended.clone()));
            }
            self.ask_for_flush_soon();
        }
        Ok(placed)
    }

    #[inline(always)]
    fn append_batch(
        &self,
        author: Option<&Author>,
        records: &[Record<'_>],
        acks: Acks,
        reign: Option<LeaderEpoch>,
    ) -> Result<Placed, Error> {
        if !self.fork.is_owner() {
            return Err(Error::Closed);
        }
        let now = self.clock.now();
        let mut scratch = Scratch::take();
        let draft = scratch.draft();
        if let Err(error) = self.encode(author, records, now, draft) {
            return self.answer_refused(error, author, records.len(), acks);
        }
        // One without an id only chose the compression.
        let author = author.filter(|author| author.producer.id != ProducerId(0));
        if let Some(author) = author {
            draft.written_by(author.producer, author.transactional);
        }
        let (mut state, mut seen) = self.lock_to_store(now)?;
        self.check_leads(&state)?;
        if acks == Acks::All
            && !state.followers.is_empty()
            && let Err(error) = self.check_in_sync(&state)
        {
            drop(state);
            return self.answer_refused(error, author, records.len(), acks);
        }
        let (count, bytes) = (draft.header().record_count, draft.len());
        if !state.log.has_space_for(bytes, seen) || state.log.waits_for_landing(count, bytes) {
            state = match self.make_ready(state, count, bytes) {
                Ok(state) => state,
                Err(error) => return self.answer_refused(error, author, records.len(), acks),
            };
            seen = self.clock.now();
        }
        if let Some(author) = author
            && (author.transactional || !state.log.goes_on(author.producer, count))
            && let Some(known) = self.judge(&state, author, count, acks)?
        {
            return Ok(known);
        }
        if reign.is_some_and(|epoch| epoch != state.epoch) {
            return Err(self.no_leader());
        }
        self.place(state, draft, acks, now, seen)
    }

    /// The partition's state, and when it was had: whoever waited for it knows nothing of the disks by the time before.
    #[inline(always)]
    fn lock_to_store(&self, now: Timestamp) -> Result<(MutexGuard<'_, State>, Timestamp), Error> {
        if let Some(state) = self.state.try_lock() {
            return Ok((state, now));
        }
        let state = self.lock_to_append()?;
        Ok((state, self.clock.now()))
    }

    /// A batch that the topic takes no longer, or not now, may be one that it has taken: then it is waited for.
    #[cold]
    #[inline(never)]
    fn answer_refused(
        &self,
        error: Error,
        author: Option<&Author>,
        records: usize,
        acks: Acks,
    ) -> Result<Placed, Error> {
        let author = author.filter(|author| author.producer.id != ProducerId(0));
        let (Some(author), Ok(count @ 1..)) = (author, u32::try_from(records)) else {
            return Err(error);
        };
        let state = self.lock_to_append()?;
        self.check_leads(&state)?;
        self.judge(&state, author, count, acks)?.ok_or(error)
    }

    /// What the partition makes of a producer's batch. `None`: it is to be appended.
    #[inline(never)]
    fn judge(
        &self,
        state: &State,
        author: &Author,
        records: u32,
        acks: Acks,
    ) -> Result<Option<Placed>, Error> {
        match state.log.check(&author.proposal(records)) {
            Verdict::Append => Ok(None),
            Verdict::Refused(refusal) => {
                Err(refusal.into_error(self.partition.clone(), author.producer, None))
            }
            Verdict::Duplicate { offsets, timestamp } => {
                let end = offsets.end;
                let appended = Appended { offsets, timestamp, duplicate: true };
                let acknowledged = self.is_acknowledged(state, end, acks);
                Ok(Some(if acknowledged {
                    Placed::Done(appended)
                } else {
                    Placed::Waits(Waiting { appended, epoch: state.epoch })
                }))
            }
        }
    }

    #[inline]
    fn is_acknowledged(&self, state: &State, end: Offset, acks: Acks) -> bool {
        match acks {
            Acks::All => state.progress.high_watermark() >= end,
            Acks::None | Acks::Leader => state.progress.leader_acknowledged(state.flush) >= end,
        }
    }

    /// Appends the end of a producer's transaction. The caller waits by itself.
    ///
    /// # Errors
    /// As for an append; [`Error::ProducerFenced`] if a later transaction of the producer's is here,
    /// [`Error::InvalidTransactionState`] while an earlier one is open.
    pub(crate) fn append_marker(&self, marker: &Marker, acks: Acks) -> Result<Placed, Error> {
        if !self.fork.is_owner() {
            return Err(Error::Closed);
        }
        let now = self.clock.now();
        let mut scratch = Scratch::take();
        let draft = scratch.draft();
        let mut state = self.lock_to_append()?;
        loop {
            self.check_takes_markers(&state)?;
            if acks == Acks::All && !state.followers.is_empty() {
                self.check_in_sync(&state)?;
            }
            state.log.encode_marker(marker, now, draft)?;
            let (records, bytes) = (draft.header().record_count, draft.len());
            if self.is_ready(&state, records, bytes) {
                break;
            }
            state = self.make_ready(state, records, bytes)?;
        }
        let placed = self.place(state, draft, acks, now, self.clock.now())?;
        if let Placed::Waits(_) = placed {
            // An abort is waited for at once; a commit's marker is safe with what is appended next.
            self.ask_for_flush_soon();
        }
        Ok(placed)
    }

    #[inline(always)]
    fn encode(
        &self,
        author: Option<&Author>,
        records: &[Record<'_>],
        now: Timestamp,
        draft: &mut Draft,
    ) -> Result<(), Error> {
        let mut settings = match self.plain_bytes_max.load(Ordering::Relaxed) {
            0 => self.draft_settings(now),
            bytes_max => DraftSettings { bytes_max, ..DraftSettings::plain(now) },
        };
        if let Some(compression) = author.and_then(|author| author.compression) {
            settings.compression = compression;
        }
        draft.encode(records, &settings, &self.partition)
    }

    fn draft_settings(&self, now: Timestamp) -> DraftSettings {
        let settings = self.settings.read();
        let topic = &settings.topic;
        DraftSettings {
            compression: topic.compression,
            timestamp_type: topic.timestamp_type,
            bytes_max: topic.max_batch_bytes,
            timestamp_min: topic.timestamp_min(now),
            timestamp_max: topic.timestamp_max(now),
            now,
        }
    }

    /// Puts a batch that was written at `now` in place. `seen` is the clock's, under the lock.
    #[inline(always)]
    fn place(
        &self,
        mut state: MutexGuard<'_, State>,
        draft: &mut Draft,
        acks: Acks,
        now: Timestamp,
        seen: Timestamp,
    ) -> Result<Placed, Error> {
        let base = state.log.end();
        if let Err(error) = state.log.append(draft, now) {
            return Err(self.append_failed(state, error));
        }
        let (end, flush) = (state.log.end(), state.flush);
        state.progress.on_appended(end);
        if !state.followers.is_empty() {
            self.append_inline(&mut state, draft.bytes(), draft.header(), now, seen);
        }
        state.progress.advance(flush);
        let acknowledged = self.is_acknowledged(&state, end, acks);
        let State { progress, page, log, durable, watches, .. } = &mut *state;
        let high_watermark = progress.high_watermark();
        let last_stable = log.last_stable(high_watermark);
        // With `OnAck`, only the end of a transaction shows readers anything new before a flush.
        let news = flush != Flush::OnAck || last_stable > self.last_stable_offset();
        let mut is_late = false;
        if let Some(page) = page
            && news
        {
            let takes_stores =
                if flush == Flush::OnAck { page.takes_stores(seen) } else { page.is_granted(seen) };
            is_late = !takes_stores;
            if !is_late {
                page.show(progress, last_stable, log.written_end());
            }
        }
        let sleepers = !durable.is_idle() || !watches.is_empty();
        self.log_end.store(end.0, Ordering::Release);
        self.high_watermark.store(high_watermark.0, Ordering::Release);
        self.last_stable.store(last_stable.0, Ordering::Release);
        let mut attention = log.wants_attention(seen);
        if let (Flush::Interval(_), None) = (flush, state.unflushed_since) {
            state.unflushed_since = Some(now);
            attention = true;
        }
        if is_late {
            self.show_page_later(&mut state);
        }
        let readers = state.readers > 0 && news;
        let lacks_page = self.show_marks && state.lacks_page();
        let asked = lacks_page && self.hands_over(&state) && state.leading.ask_for_flush(self);
        let (epoch, disk) = (state.epoch, state.leading.disk);
        if attention {
            state.leading.ask_for_attention(self);
        }
        if sleepers && news {
            self.publish(state);
        } else {
            drop(state);
        }
        if readers {
            self.readable.notify_all();
        }
        if lacks_page && !asked {
            self.make_page(disk);
        }
        let appended = Appended { offsets: base..end, timestamp: now, duplicate: false };
        Ok(if acknowledged {
            Placed::Done(appended)
        } else {
            Placed::Waits(Waiting { appended, epoch })
        })
    }

    /// The leader's log did not take a batch.
    #[cold]
    pub(super) fn append_failed(&self, mut state: MutexGuard<'_, State>, error: Error) -> Error {
        let replicated = !state.followers.is_empty();
        match error.class() {
            // Half a batch may be in the file: nothing may be put behind it (RELIABILITY S9).
            ErrorClass::Fatal => {
                self.fence(&mut state, &error);
                self.wake_all(state);
                // Another replica leads on, and has nothing of it; until one does, it may be in the file.
                let is_gone = replicated && error.written() == Written::No;
                if is_gone { self.no_leader() } else { error }
            }
            _ if replicated && matches!(error, Error::NoSpace { .. }) => {
                // A replica whose disk has room may lead instead.
                if state.progress.in_sync() > 1 {
                    state.stepping_down = true;
                    state.hand_to = None;
                    state.stuck = true;
                    self.ask_for_settling(&mut state);
                    return self.no_leader();
                }
                error
            }
            _ => error,
        }
    }

    fn check_in_sync(&self, state: &State) -> Result<(), Error> {
        let (in_sync, required) = (state.progress.live_in_sync(), state.progress.required());
        if in_sync >= required {
            return Ok(());
        }
        Err(Error::NotEnoughReplicas { partition: self.partition.clone(), in_sync, required })
    }
}

pub(super) fn plain_bytes_max(topic: &TopicConfig) -> u32 {
    let plain = DraftSettings::plain(Timestamp(0));
    let is_plain = topic.compression == plain.compression
        && topic.timestamp_type == plain.timestamp_type
        && topic.timestamp_before_max.is_none()
        && topic.timestamp_after_max.is_none();
    if is_plain { topic.max_batch_bytes } else { 0 }
}
