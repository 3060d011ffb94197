//! The partition itself: append, read, look up, wait.

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

use crate::config::TopicConfig;
use crate::error::{Error, ErrorClass, Written};
use crate::log::{Log, LogReader, LogSettings, Marks, Part, Records};
use crate::protocol::replication::Progress;
use crate::record::{Draft, DraftSettings, Record};
use crate::storage::{Clock, ForkGuard};
use crate::types::{
    Acks, DiskId, Flush, Isolation, LeaderEpoch, Offset, Timestamp, TopicPartition,
};

use super::events::EventKind;
use super::flush::{Durable, Group};
use super::ticket::{Waiter, complete};
use super::{Appended, Attention, EventLog, ReadOptions};

/// Encoding buffers up to this size are kept for the thread's next append.
const SCRATCH_BYTES_MAX: usize = 1 << 20;

thread_local! {
    static SCRATCH: Cell<Scratch> = const { Cell::new(Scratch { batch: Vec::new(), plain: Vec::new() }) };
}

#[derive(Default)]
struct Scratch {
    batch: Vec<u8>,
    plain: Vec<u8>,
}

/// What the topic says about a partition, as an append needs it.
#[derive(Clone, Debug)]
pub(crate) struct CoreSettings {
    pub(crate) topic: Arc<TopicConfig>,
    pub(crate) log: LogSettings,
}

/// What a partition is made of.
#[derive(Debug)]
pub(crate) struct CoreParts {
    pub(crate) partition: TopicPartition,
    pub(crate) disk: DiskId,
    pub(crate) epoch: LeaderEpoch,
    pub(crate) log: Log,
    pub(crate) settings: CoreSettings,
    pub(crate) clock: Clock,
    pub(crate) fork: Arc<ForkGuard>,
    pub(crate) events: Arc<EventLog>,
    pub(crate) attention: Arc<Attention>,
    /// Whether a page is kept for readers in other processes.
    pub(crate) show_marks: bool,
    /// How long an append waits for its acknowledgement.
    pub(crate) append_timeout: Duration,
}

/// One partition, shared by everyone who uses it.
#[derive(Debug)]
pub(crate) struct Core {
    pub(super) partition: TopicPartition,
    pub(super) disk: DiskId,
    epoch: LeaderEpoch,
    pub(super) reader: Arc<LogReader>,
    settings: RwLock<CoreSettings>,
    /// `max_batch_bytes` of a topic whose batches need nothing else from the settings; else 0. Saves
    /// the append a lock.
    plain_bytes_max: AtomicU32,
    pub(super) clock: Clock,
    fork: Arc<ForkGuard>,
    pub(super) events: Arc<EventLog>,
    attention: Arc<Attention>,
    show_marks: bool,
    append_timeout: Duration,
    this: Weak<Core>,

    pub(super) state: Mutex<State>,
    readable: Condvar,
    pub(super) group: Group,
    /// Copies of the watermarks, for whoever only wants to look.
    high_watermark: AtomicU64,
    log_end: AtomicU64,
    attention_queued: AtomicBool,
}

/// What the lock guards.
#[derive(Debug)]
pub(super) struct State {
    pub(super) log: Log,
    pub(super) marks: Progress,
    page: Option<Marks>,
    pub(super) flush: Flush,
    /// Why nothing can be appended any more.
    pub(super) fenced: Option<Fenced>,
    pub(super) ended: Option<Ended>,
    /// The store is about to close.
    stopped: bool,
    readers: u32,
    pub(super) durable: Durable,
    pub(super) tickets: Vec<Waiter>,
    pub(super) next_ticket: u64,
    /// Since when something waits for the flush of an `Interval` topic.
    pub(super) unflushed_since: Option<Timestamp>,
}

/// The replica's disk failed.
#[derive(Clone, Debug)]
pub(super) struct Fenced {
    pub(super) cause: Arc<str>,
    pub(super) at_risk: Range<Offset>,
}

/// The partition is no longer there to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    StoreClosed,
    TopicDeleted,
}

impl Core {
    pub(crate) fn new(parts: CoreParts) -> Arc<Self> {
        let CoreParts { log, settings, .. } = parts;
        let reader = Arc::clone(log.reader());
        let marks = Progress::recovered(reader.log_start(), log.end(), log.flushed_end());
        let flush = settings.topic.flush;
        Arc::new_cyclic(|this| Self {
            partition: parts.partition,
            disk: parts.disk,
            epoch: parts.epoch,
            reader,
            plain_bytes_max: AtomicU32::new(plain_bytes_max(&settings.topic)),
            settings: RwLock::new(settings),
            clock: parts.clock,
            fork: parts.fork,
            events: parts.events,
            attention: parts.attention,
            show_marks: parts.show_marks,
            append_timeout: parts.append_timeout,
            this: this.clone(),
            high_watermark: AtomicU64::new(marks.high_watermark().0),
            log_end: AtomicU64::new(marks.log_end().0),
            state: Mutex::new(State {
                log,
                marks,
                page: None,
                flush,
                fenced: None,
                ended: None,
                stopped: false,
                readers: 0,
                durable: Durable::default(),
                tickets: Vec::new(),
                next_ticket: 0,
                unflushed_since: None,
            }),
            readable: Condvar::new(),
            group: Group::default(),
            attention_queued: AtomicBool::new(false),
        })
    }

    /// Appends `records` as one batch and waits as `acks` says.
    #[inline]
    pub(crate) fn append(&self, records: &[Record<'_>], acks: Acks) -> Result<Appended, Error> {
        let (appended, flush) = self.append_batch(records)?;
        if flush == Flush::OnAck {
            if acks == Acks::None {
                self.ask_for_flush();
            } else {
                self.wait_durable(&appended.offsets, self.append_timeout)?;
            }
        }
        Ok(appended)
    }

    /// Appends `records` as one batch; the caller waits by itself.
    pub(crate) fn append_only(&self, records: &[Record<'_>]) -> Result<Appended, Error> {
        let (appended, flush) = self.append_batch(records)?;
        if flush == Flush::OnAck {
            self.ask_for_flush();
        }
        Ok(appended)
    }

    #[inline]
    fn append_batch(&self, records: &[Record<'_>]) -> Result<(Appended, Flush), Error> {
        if !self.fork.is_owner() {
            return Err(Error::Closed);
        }
        let now = self.clock.now();
        let mut scratch = SCRATCH.try_with(Cell::take).unwrap_or_default();
        let appended = self.append_with(records, now, &mut scratch);
        if scratch.batch.capacity() + scratch.plain.capacity() > SCRATCH_BYTES_MAX {
            scratch = Scratch::default();
        }
        // A thread that ends keeps nothing.
        let _ = SCRATCH.try_with(|kept| kept.set(scratch));
        appended
    }

    #[inline]
    fn append_with(
        &self,
        records: &[Record<'_>],
        now: Timestamp,
        Scratch { batch, plain }: &mut Scratch,
    ) -> Result<(Appended, Flush), Error> {
        let draft = self.draft(records, now, batch, plain)?;
        let (offsets, flush) = self.place(&draft, batch, now)?;
        Ok((Appended { offsets, timestamp: now, duplicate: false }, flush))
    }

    #[inline]
    fn draft(
        &self,
        records: &[Record<'_>],
        now: Timestamp,
        batch: &mut Vec<u8>,
        plain: &mut Vec<u8>,
    ) -> Result<Draft, Error> {
        let settings = match self.plain_bytes_max.load(Ordering::Relaxed) {
            0 => self.draft_settings(now),
            bytes_max => DraftSettings { bytes_max, ..DraftSettings::plain(now) },
        };
        Draft::encode(records, &settings, &self.partition, batch, plain)
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

    #[inline]
    fn place(
        &self,
        draft: &Draft,
        batch: &mut [u8],
        now: Timestamp,
    ) -> Result<(Range<Offset>, Flush), Error> {
        let mut state = self.state.lock();
        self.check_open(&state)?;
        while state.log.waits_for_landing(draft, batch.len()) {
            state = self.land(state)?;
        }
        let offsets = match state.log.append(draft, batch, now) {
            Ok(offsets) => offsets,
            Err(error) => {
                // Half a batch may be in the file: nothing may be put behind it (RELIABILITY S9).
                if error.class() == ErrorClass::Fatal {
                    self.fence(&mut state, &error);
                    self.wake_all(state);
                }
                return Err(error);
            }
        };
        let State { marks, flush, page, log, .. } = &mut *state;
        let flush = *flush;
        marks.on_appended(offsets.end, flush);
        if let Some(page) = page {
            page.show(marks, log.written_end());
        }
        self.log_end.store(offsets.end.0, Ordering::Release);
        self.high_watermark.store(marks.high_watermark().0, Ordering::Release);
        let mut attention = log.wants_attention();
        if let (Flush::Interval(_), None) = (flush, state.unflushed_since) {
            state.unflushed_since = Some(now);
            attention = true;
        }
        let readers = state.readers > 0 && flush != Flush::OnAck;
        let page_missing = state.page.is_none() && self.show_marks;
        if page_missing {
            self.make_page(&mut state);
        }
        drop(state);
        if readers {
            self.readable.notify_all();
        }
        if attention {
            self.ask_for_attention();
        }
        Ok((offsets, flush))
    }

    /// Waits until what a flush has under way is in its file.
    #[cold]
    fn land<'a>(&'a self, state: MutexGuard<'a, State>) -> Result<MutexGuard<'a, State>, Error> {
        let end = state.marks.log_end();
        drop(state);
        self.wait_durable(&(end..end), self.append_timeout).map_err(|error| match error {
            // Nothing of this append was written.
            Error::TimedOut { what, timeout, .. } => {
                Error::TimedOut { what, timeout, appended: None }
            }
            other => other,
        })?;
        let state = self.state.lock();
        self.check_open(&state)?;
        Ok(state)
    }

    /// The page is a service to other processes: an append does not fail for want of it.
    #[cold]
    fn make_page(&self, state: &mut State) {
        match Marks::create(state.log.place(), &state.marks, state.log.written_end()) {
            Ok(page) => state.page = Some(page),
            Err(error) => {
                let reason = format!("the page for readers in other processes: {error}");
                self.report(EventKind::BackgroundFailed {
                    partition: Some(self.partition.clone()),
                    reason,
                });
            }
        }
    }

    /// Reads whole batches from `offset` on. Does not block.
    pub(crate) fn read(&self, offset: Offset, options: &ReadOptions) -> Result<Records, Error> {
        let upper = match options.isolation {
            Isolation::ReadUncommitted => self.high_watermark(),
            Isolation::ReadCommitted => self.last_stable_offset(),
        };
        self.check_range(offset)?;
        let fetched = match self.reader.read(offset, upper, options.max_bytes) {
            Err(error) => {
                // Retention may have passed by between the check and the read.
                self.check_range(offset)?;
                self.check_usable()?;
                self.report_damage(&error);
                return Err(error);
            }
            Ok(fetched) => fetched,
        };
        let next = fetched.as_ref().map_or(offset, |fetched| fetched.next);
        Ok(Records::of(Part { partition: self.partition.clone(), from: offset, next, fetched }))
    }

    fn check_range(&self, offset: Offset) -> Result<(), Error> {
        let (start, end) = (self.log_start(), self.log_end());
        if offset < start || offset > end {
            let partition = self.partition.clone();
            return Err(Error::OffsetOutOfRange { partition, offset, start, end });
        }
        Ok(())
    }

    /// The first record whose timestamp is at least `timestamp`, below the high watermark.
    pub(crate) fn offset_for_time(&self, timestamp: Timestamp) -> Result<Option<Offset>, Error> {
        self.check_usable()?;
        let found = self.reader.find_time(timestamp, self.log_start(), self.high_watermark());
        if let Err(error) = &found {
            self.report_damage(error);
        }
        Ok(found?.map(|(offset, _)| offset))
    }

    /// Waits until a record at `offset` can be read.
    pub(crate) fn wait_for(&self, offset: Offset, timeout: Duration) -> Result<(), Error> {
        if self.high_watermark() > offset {
            return Ok(());
        }
        let deadline = Instant::now().checked_add(timeout);
        let mut state = self.state.lock();
        state.readers += 1;
        let outcome = loop {
            if state.marks.high_watermark() > offset {
                break Ok(());
            }
            if let Some(ended) = state.ended {
                break Err(self.ended_error(ended));
            }
            let timed_out = match deadline {
                Some(deadline) => self.readable.wait_until(&mut state, deadline).timed_out(),
                None => {
                    self.readable.wait(&mut state);
                    false
                }
            };
            if timed_out && state.marks.high_watermark() <= offset {
                let what = format!("{}: waiting for offset {offset}", self.partition);
                break Err(Error::TimedOut { what, timeout, appended: None });
            }
        };
        state.readers -= 1;
        outcome
    }

    pub(crate) fn partition(&self) -> &TopicPartition {
        &self.partition
    }

    pub(crate) fn disk(&self) -> DiskId {
        self.disk
    }

    pub(crate) fn leader_epoch(&self) -> LeaderEpoch {
        self.epoch
    }

    pub(crate) fn reader(&self) -> &Arc<LogReader> {
        &self.reader
    }

    pub(crate) fn log_start(&self) -> Offset {
        self.reader.log_start()
    }

    #[inline]
    pub(crate) fn high_watermark(&self) -> Offset {
        Offset(self.high_watermark.load(Ordering::Acquire))
    }

    pub(crate) fn last_stable_offset(&self) -> Offset {
        self.high_watermark()
    }

    #[inline]
    pub(crate) fn log_end(&self) -> Offset {
        Offset(self.log_end.load(Ordering::Acquire))
    }

    pub(crate) fn is_fenced(&self) -> bool {
        self.state.lock().fenced.is_some()
    }

    /// Everything below is on stable storage.
    pub(crate) fn flushed_end(&self) -> Offset {
        self.state.lock().marks.flushed()
    }

    pub(crate) fn append_timeout(&self) -> Duration {
        self.append_timeout
    }

    pub(crate) fn settings(&self) -> CoreSettings {
        self.settings.read().clone()
    }

    /// Takes over a changed topic.
    pub(crate) fn set_settings(&self, settings: CoreSettings) {
        let mut state = self.state.lock();
        if let Err(error) = state.log.set_settings(settings.log) {
            self.fence(&mut state, &error);
        }
        state.flush = settings.topic.flush;
        self.plain_bytes_max.store(plain_bytes_max(&settings.topic), Ordering::Relaxed);
        *self.settings.write() = settings;
        self.wake_all(state);
    }

    /// Nothing is appended any more, and every wait ends.
    pub(super) fn end(&self, ended: Ended) {
        let mut state = self.state.lock();
        state.ended.get_or_insert(ended);
        if ended == Ended::TopicDeleted {
            // Handles may be kept for long; the room of the files must not be.
            state.page = None;
            state.log.let_go();
        }
        self.wake_all(state);
    }

    /// Nothing is appended any more; waits go on until [`Core::close`].
    pub(crate) fn stop_appends(&self) {
        self.state.lock().stopped = true;
    }

    /// The store closes.
    pub(crate) fn close(&self) {
        self.end(Ended::StoreClosed);
    }

    /// The topic is gone.
    pub(crate) fn delete(&self) {
        self.end(Ended::TopicDeleted);
    }

    #[inline]
    pub(super) fn check_open(&self, state: &State) -> Result<(), Error> {
        if state.ended.is_none() && state.fenced.is_none() && !state.stopped {
            return Ok(());
        }
        Err(self.closed_error(state, Written::No))
    }

    fn check_usable(&self) -> Result<(), Error> {
        match self.state.lock().ended {
            Some(Ended::TopicDeleted) => Err(self.ended_error(Ended::TopicDeleted)),
            _ => Ok(()),
        }
    }

    #[cold]
    pub(super) fn closed_error(&self, state: &State, written: Written) -> Error {
        match (&state.fenced, state.ended) {
            (Some(fenced), _) => Error::DiskOffline {
                partition: self.partition.clone(),
                disk: self.disk,
                at_risk: fenced.at_risk.clone(),
                cause: Arc::clone(&fenced.cause),
                written,
            },
            (None, Some(ended)) => self.ended_error(ended),
            (None, None) => Error::Closed,
        }
    }

    fn ended_error(&self, ended: Ended) -> Error {
        match ended {
            Ended::StoreClosed => Error::Closed,
            Ended::TopicDeleted => {
                Error::UnknownTopicOrPartition { partition: self.partition.clone() }
            }
        }
    }

    /// Takes the replica out of service. The caller holds the lock in which the fault was learnt.
    pub(super) fn fence(&self, state: &mut State, cause: &Error) {
        if state.fenced.is_some() {
            return;
        }
        let mut words = cause.to_string();
        let mut source = std::error::Error::source(cause);
        while let Some(inner) = source {
            words = format!("{words}: {inner}");
            source = inner.source();
        }
        let at_risk = state.marks.flushed()..state.marks.log_end();
        if let Some(page) = state.page.take() {
            page.distrust(at_risk.start);
        }
        state.fenced = Some(Fenced { cause: words.as_str().into(), at_risk: at_risk.clone() });
        self.report(EventKind::ReplicaFenced {
            partition: self.partition.clone(),
            disk: self.disk,
            at_risk,
            cause: words,
        });
        self.ask_for_attention();
    }

    /// Shows new watermarks to everyone who looks or waits, and lets go of the lock.
    pub(super) fn publish(&self, mut state: MutexGuard<'_, State>) {
        let State { marks, page, log, .. } = &mut *state;
        if let Some(page) = page {
            page.show(marks, log.written_end());
        }
        self.log_end.store(marks.log_end().0, Ordering::Release);
        self.high_watermark.store(marks.high_watermark().0, Ordering::Release);
        self.wake_all(state);
    }

    fn wake_all(&self, mut state: MutexGuard<'_, State>) {
        let readers = state.readers > 0;
        let done = self.finished_tickets(&mut state);
        if state.fenced.is_some() || state.ended.is_some() {
            self.wake_sleepers(&mut state);
        }
        drop(state);
        if readers {
            self.readable.notify_all();
        }
        complete(done);
    }

    /// Queues the partition for its disk's worker, once.
    pub(super) fn ask_for_attention(&self) {
        if !self.attention_queued.swap(true, Ordering::AcqRel) {
            self.attention.push(self.this.clone());
        }
    }

    /// The worker has taken the partition from the queue.
    pub(crate) fn attention_taken(&self) {
        self.attention_queued.store(false, Ordering::Release);
    }

    fn ask_for_flush(&self) {
        self.group.wanted.store(true, Ordering::Release);
        self.ask_for_attention();
    }

    fn report_damage(&self, error: &Error) {
        if let Error::Corrupt { offsets, path, source, .. } = error {
            self.report(EventKind::Damaged {
                partition: self.partition.clone(),
                offsets: offsets.clone(),
                path: path.clone(),
                reason: source.to_string(),
            });
        }
    }

    pub(super) fn report(&self, kind: EventKind) {
        self.events.push(self.clock.now(), kind);
    }
}

fn plain_bytes_max(topic: &TopicConfig) -> u32 {
    let plain = DraftSettings::plain(Timestamp(0));
    let is_plain = topic.compression == plain.compression
        && topic.timestamp_type == plain.timestamp_type
        && topic.timestamp_before_max.is_none()
        && topic.timestamp_after_max.is_none();
    if is_plain { topic.max_batch_bytes } else { 0 }
}
