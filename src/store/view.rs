//! A partition as a second process sees it: read only, while its owner appends.
//!
//! The owner's page of offsets tells how far the log may be read; without one, everything that is intact is read, as long as
//! the metadata say that its disk leads. A page that goes tells that another disk may lead: then the metadata say who does.
//! Where batches are is found by walking on from where the last look ended, no further than they are acknowledged: what is
//! behind that may be cut, and others come in its place. Files that retention removes under us end in
//! [`Error::OffsetOutOfRange`] once the page says so.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::log::{LogReader, Marks, MarksView, Part, decided_end};
use crate::partition::ReadOptions;
use crate::protocol::metadata::PartitionState;
use crate::segment::{Place, Segment, parse_log_name};
use crate::storage::EntryKind;
use crate::types::{DiskId, Isolation, LeaderEpoch, Offset, Timestamp, TopicId, TopicPartition};

use super::background::apart;
use super::metadata_log::Found;
use super::{Shared, Slot, Topic};

/// How often a waiting reader looks: another process cannot wake us.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// How old what is known of the metadata may be where nothing comes: another disk may lead.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// The read-only side of one partition.
#[derive(Debug)]
pub(super) struct View {
    shared: Arc<Shared>,
    topic: TopicId,
    place: Place,
    partition: TopicPartition,
    /// Whose log it is: the leader's when it was opened.
    disk: DiskId,
    replicas: Vec<DiskId>,
    state: Mutex<State>,
}

#[derive(Clone, Debug)]
struct State {
    reader: Arc<LogReader>,
    epoch: LeaderEpoch,
    /// Whether the owner has shown a page: one that goes was taken back.
    has_page: bool,
    /// By the metadata when they were last looked at, and by the page.
    log_start: Offset,
    high_watermark: Offset,
    last_stable: Offset,
    end: Offset,
    /// Where the log ended when it was last asked what of it is decided.
    decided_at: Option<Offset>,
    /// The last segment, as far as it was walked over.
    tail: Option<Arc<Segment>>,
    /// Under which leader the last of what was walked over was appended.
    last_epoch: LeaderEpoch,
}

impl View {
    pub(super) fn partition(&self) -> &TopicPartition {
        &self.partition
    }

    /// Whose log it is.
    pub(super) fn disk(&self) -> DiskId {
        self.disk
    }

    pub(super) fn leader_epoch(&self) -> LeaderEpoch {
        self.state.lock().epoch
    }

    pub(super) fn replicas(&self) -> Vec<DiskId> {
        self.replicas.clone()
    }

    /// Looks how far the owner has come.
    ///
    /// # Errors
    /// [`Error::NoLeader`]: another may lead. What looking at the disk runs into.
    pub(super) fn look(&self) -> Result<()> {
        self.refresh(&mut self.state.lock())
    }

    /// Start, high watermark and end as of the last look.
    pub(super) fn offsets(&self) -> (Offset, Offset, Offset) {
        let state = self.state.lock();
        (state.log_start, state.high_watermark, state.end.max(state.high_watermark))
    }

    /// Where a read-committed read ended at the last look.
    pub(super) fn last_stable(&self) -> Offset {
        self.state.lock().last_stable
    }

    pub(super) fn read(&self, offset: Offset, options: &ReadOptions) -> Result<Part> {
        let committed = options.isolation == Isolation::ReadCommitted;
        let (reader, start, upper, last_stable) = {
            let mut state = self.state.lock();
            if offset >= state.high_watermark || (committed && offset >= state.last_stable) {
                self.refresh(&mut state)?;
            }
            let reader = Arc::clone(&state.reader);
            (reader, state.log_start, state.high_watermark, state.last_stable)
        };
        self.check_range(offset, start, upper)?;
        let upper = match options.isolation {
            Isolation::ReadUncommitted => upper,
            Isolation::ReadCommitted => upper.min(last_stable),
        };
        let read = |reader: &LogReader| {
            reader.read_records(offset, upper, options.max_bytes, options.isolation)
        };
        let (fetched, next) = match read(&reader) {
            Ok(read) => read,
            Err(error) => {
                // The owner's retention may have removed the file since the last look.
                let mut state = self.state.lock();
                self.refresh(&mut state)?;
                self.check_range(offset, state.log_start, state.high_watermark)?;
                self.open_anew(&mut state)?;
                let reader = Arc::clone(&state.reader);
                drop(state);
                read(&reader).map_err(|_| error)?
            }
        };
        Ok(Part::new(self.partition.clone(), offset, next, fetched))
    }

    fn check_range(&self, offset: Offset, start: Offset, end: Offset) -> Result<()> {
        if offset < start || offset > end {
            let partition = self.partition.clone();
            return Err(Error::OffsetOutOfRange { partition, offset, start, end });
        }
        Ok(())
    }

    pub(super) fn offset_for_time(&self, timestamp: Timestamp) -> Result<Option<Offset>> {
        let find = |state: &State| {
            let (reader, start, upper) =
                (Arc::clone(&state.reader), state.log_start, state.high_watermark);
            move || reader.find_time(timestamp, start, upper)
        };
        let first = {
            let mut state = self.state.lock();
            self.refresh(&mut state)?;
            find(&state)
        };
        let found = first().or_else(|_| {
            let mut state = self.state.lock();
            self.refresh(&mut state)?;
            self.open_anew(&mut state)?;
            let again = find(&state);
            drop(state);
            again()
        })?;
        Ok(found.map(|(offset, _)| offset))
    }

    /// The owner may have repaired what is damaged in a file that is open here: another has its name by now.
    fn open_anew(&self, state: &mut State) -> Result<()> {
        let before = std::mem::replace(&mut state.reader, self.unread(state.log_start));
        let until = state.has_page.then_some(state.high_watermark);
        self.walk(state, until).inspect_err(|_| state.reader = before)
    }

    /// Waits from `started` on.
    ///
    /// # Errors
    /// [`Error::TimedOut`]; [`Error::NoLeader`]: another may lead; [`Error::UnknownTopicOrPartition`]; [`Error::Closed`].
    pub(super) fn wait_for(
        &self,
        offset: Offset,
        isolation: Isolation,
        started: Instant,
        timeout: Duration,
    ) -> Result<()> {
        loop {
            self.shared.check_open()?;
            let told = self.look();
            // A disk that does not answer now may do so in time.
            if let Err(Error::NoLeader { .. } | Error::UnknownTopicOrPartition { .. }) = told {
                return told;
            }
            let end = match isolation {
                Isolation::ReadUncommitted => self.offsets().1,
                Isolation::ReadCommitted => self.last_stable(),
            };
            if end > offset {
                return Ok(());
            }
            if started.elapsed() >= timeout {
                let what = format!("{}: waiting for offset {offset}", self.partition);
                return Err(Error::late(what, timeout));
            }
            std::thread::sleep(LOOK_EVERY.min(timeout));
        }
    }

    /// Looks again, with what the metadata say by now.
    ///
    /// # Errors
    /// [`Error::NoLeader`] if this is not the leader's log any more; what looking at it runs into.
    pub(super) fn learn(&self) -> Result<()> {
        self.shared.refresh()?;
        let described = self.shared.described(self.topic, &self.partition)?;
        if described.leader != Some(self.disk) || self.shared.disk(self.disk).is_none() {
            return Err(self.no_leader());
        }
        let mut known = self.state.lock();
        let mut state = known.clone();
        let start = described.log_start;
        state.log_start = state.log_start.max(start);
        // What was walked over before may lie below it.
        state.high_watermark = state.high_watermark.max(start);
        state.last_stable = state.last_stable.max(start);
        // It leads without one.
        state.has_page = false;
        state.decided_at = None;
        if state.epoch != described.leader_epoch {
            // It may have followed meanwhile, and been cut: by an unclean election even of what was acknowledged.
            if let Some(end) = described.history.end_of(state.epoch) {
                state.high_watermark = state.high_watermark.min(end.max(start));
                state.last_stable = state.last_stable.min(state.high_watermark);
            }
            state.last_epoch = LeaderEpoch::default();
            state.epoch = described.leader_epoch;
            state.tail = None;
            state.reader = self.unread(start);
        }
        self.refresh(&mut state)?;
        *known = state;
        Ok(())
    }

    /// Where the log departs from what was read of it up to `position` under a leader of `epoch`, if it does.
    pub(super) fn divergence(&self, position: Offset, epoch: LeaderEpoch) -> Option<Offset> {
        let described = self.shared.described(self.topic, &self.partition).ok()?;
        described.history.end_of(epoch).filter(|end| *end < position)
    }

    /// As one that has not looked at it yet.
    fn unread(&self, start: Offset) -> Arc<LogReader> {
        Arc::new(LogReader::new(self.place.clone(), Vec::new(), start))
    }

    fn no_leader(&self) -> Error {
        Error::NoLeader { partition: self.partition.clone() }
    }

    pub(super) fn reader(&self) -> Arc<LogReader> {
        Arc::clone(&self.state.lock().reader)
    }

    fn refresh(&self, state: &mut State) -> Result<()> {
        let (before, shown) = (state.high_watermark, self.page()?);
        if shown.is_none() && state.has_page {
            return Err(self.no_leader());
        }
        let mut seen = state.clone();
        let looked = self.look_behind(&mut seen, shown);
        // The last segment was walked on, whatever comes of it.
        state.last_epoch = seen.last_epoch;
        looked?;
        let end = seen.tail.as_ref().map_or(seen.log_start, |tail| tail.end());
        let is_less = end < seen.high_watermark.max(shown.map_or(before, |it| it.high_watermark));
        // Files without a page are believed as long as their disk leads. Where another does, those of this one may go; a later
        // reign may have begun within what was seen, if it was elected uncleanly.
        let is_new = !seen.has_page && seen.high_watermark > before;
        if is_new || is_less || seen.last_epoch > state.epoch {
            self.shared.refresh()?;
            self.check_leads(state)?;
        }
        *state = seen;
        if state.high_watermark == before {
            // Nothing may come of one that leads no more; the page of a disk that failed stays as it was.
            self.shared.refresh_apart();
            self.check_leads(state)?;
        }
        Ok(())
    }

    fn page(&self) -> Result<Option<MarksView>> {
        Marks::look(&self.place).map_err(|error| self.place.io_error("marks", "read", error))
    }

    /// # Errors
    /// [`Error::NoLeader`] if the metadata, as they were last read, name another, or a later reign.
    fn check_leads(&self, state: &State) -> Result<()> {
        let described = self.shared.described(self.topic, &self.partition)?;
        let leads = (described.leader, described.leader_epoch) == (Some(self.disk), state.epoch);
        if leads && self.shared.disk(self.disk).is_some() {
            return Ok(());
        }
        Err(self.no_leader())
    }

    /// Looks at the log behind a page that showed this.
    fn look_behind(&self, state: &mut State, shown: Option<MarksView>) -> Result<()> {
        if shown.is_some() && !state.has_page {
            // Nobody had said how much of it is acknowledged.
            (state.tail, state.reader) = (None, self.unread(state.log_start));
        }
        let known_end = state.tail.as_ref().map_or(Offset::ZERO, |tail| tail.end());
        let start = shown.map_or(state.log_start, |marks| marks.log_start.max(state.log_start));
        if let Some(marks) = shown
            && marks.high_watermark <= known_end
            && start == state.log_start
        {
            state.has_page = true;
            state.high_watermark = state.high_watermark.max(marks.high_watermark);
            state.last_stable = state.last_stable.max(marks.last_stable);
            state.end = marks.log_end.unwrap_or(state.end);
            return Ok(());
        }
        self.walk(state, shown.map(|marks| marks.high_watermark.max(state.high_watermark)))?;
        let end = state.tail.as_ref().map_or(start, |tail| tail.end());
        let (high, stable) = match shown {
            Some(marks) => (marks.high_watermark.min(end), marks.last_stable),
            None => {
                // The page is made before the first record, which the walk may have seen.
                if let Some(marks) = self.page()? {
                    return self.look_behind(state, Some(marks));
                }
                // Nobody says what is decided: the log itself does.
                if state.decided_at != Some(end) {
                    let decided = decided_end(&self.place, &state.reader, end)?;
                    state.last_stable = state.last_stable.max(decided.min(end));
                    state.decided_at = Some(end);
                }
                (end, state.last_stable)
            }
        };
        state.has_page = shown.is_some();
        state.high_watermark = state.high_watermark.max(high);
        state.last_stable = state.last_stable.max(stable.min(high));
        state.log_start = state.log_start.max(start.min(end));
        state.end = shown.and_then(|marks| marks.log_end).unwrap_or(end);
        Ok(())
    }

    /// Lists the segments that begin below `until`, and walks the last one on from where the last look ended.
    fn walk(&self, state: &mut State, until: Option<Offset>) -> Result<()> {
        let place = &self.place;
        let entries = match place.disk.list(&place.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            listed => listed.map_err(|error| place.io_error("", "list", error))?,
        };
        let mut bases: Vec<_> = entries
            .iter()
            .filter(|entry| entry.kind == EntryKind::File)
            .filter_map(|entry| Some((parse_log_name(&entry.name)?, entry.len)))
            .filter(|(base, _)| until.is_none_or(|until| *base < until))
            .collect();
        bases.sort_by_key(|(base, _)| *base);
        let known = state.reader.segments();
        let mut segments = Vec::with_capacity(bases.len());
        for pair in bases.windows(2) {
            let [(base, len), (next, _)] = *pair else { unreachable!("a window of two") };
            let kept = known.iter().find(|segment| segment.base == base && segment.end() == next);
            segments.push(kept.map_or_else(
                || Arc::new(Segment::sealed(place.clone(), base, next, len)),
                Arc::clone,
            ));
        }
        let mut tail = None;
        if let Some((base, _)) = bases.last() {
            let known = state.tail.as_ref().filter(|tail| tail.base == *base);
            let growing = || Arc::new(Segment::growing(place.clone(), *base));
            let last = known.map_or_else(growing, Arc::clone);
            // A batch that is being written looks torn: the walk ends before it and goes on next time.
            state.last_epoch = state.last_epoch.max(last.walk_on(until)?.unwrap_or_default());
            segments.push(Arc::clone(&last));
            tail = Some(last);
        }
        state.reader = Arc::new(LogReader::new(place.clone(), segments, state.log_start));
        state.tail = tail;
        Ok(())
    }
}

impl Shared {
    /// Reads the metadata anew.
    pub(super) fn refresh(&self) -> Result<()> {
        let (disks, store) = {
            let metadata = self.metadata.lock();
            (metadata.disks(), metadata.state().store())
        };
        let found = Found::read(&disks, store)?;
        let mut metadata = self.metadata.lock();
        let state = metadata.state();
        let known: Vec<_> = state.disks().map(|id| (id, state.disk(id).copied())).collect();
        metadata.adopt(found)?;
        self.load_topics(metadata.state());
        // In its place another came, which is not at hand.
        let is_other = |(id, before): &(_, _)| metadata.state().disk(*id).copied() != *before;
        let others: Vec<_> = known.into_iter().filter(is_other).map(|(id, _)| id).collect();
        drop(metadata);
        if !others.is_empty() {
            self.disks.write().retain(|id, _| !others.contains(id));
        }
        Ok(())
    }

    /// As [`Shared::refresh`], on another thread and only now and then: nobody waits for a disk that hangs.
    fn refresh_apart(self: &Arc<Self>) {
        let is_due = |asked: &Instant| asked.elapsed() >= ASK_EVERY;
        if !self.asked.try_lock().is_some_and(|asked| is_due(&asked)) {
            return;
        }
        let shared = Arc::clone(self);
        apart(move || {
            if let Some(mut asked) = shared.asked.try_lock().filter(|asked| is_due(asked)) {
                let _ = shared.refresh();
                *asked = Instant::now();
            }
        });
    }

    pub(super) fn described(
        &self,
        topic: TopicId,
        partition: &TopicPartition,
    ) -> Result<PartitionState> {
        let described =
            self.metadata.lock().state().partition(topic, partition.partition()).cloned();
        described.ok_or_else(|| Error::UnknownTopicOrPartition { partition: partition.clone() })
    }

    /// A view of a partition. Views are not shared: each keeps its own place.
    pub(super) fn open_view(self: &Arc<Self>, topic: &Topic, slot: &Slot) -> Result<Arc<View>> {
        let mut described = self.described(topic.id, &slot.partition)?;
        loop {
            match self.view_of(topic, slot, &described) {
                // Another may lead by now, or records be deleted, or all of it.
                Err(error) => {
                    self.refresh()?;
                    let now = self.described(topic.id, &slot.partition)?;
                    if now == described {
                        return Err(error);
                    }
                    described = now;
                }
                Ok(view) => return Ok(Arc::new(view)),
            }
        }
    }

    fn view_of(
        self: &Arc<Self>,
        topic: &Topic,
        slot: &Slot,
        described: &PartitionState,
    ) -> Result<View> {
        let partition = slot.partition.clone();
        let (log_start, epoch) = (described.log_start, described.leader_epoch);
        // Only the leader's disk tells how far a log may be read.
        let disk = described.leader.and_then(|leader| self.disk(leader));
        let disk = disk.ok_or_else(|| Error::NoLeader { partition: partition.clone() })?;
        let (disk, place) = (disk.id, self.place(topic, &partition, &disk.disk));
        let reader = Arc::new(LogReader::new(place.clone(), Vec::new(), log_start));
        let state = State {
            reader,
            epoch,
            has_page: false,
            log_start,
            high_watermark: log_start,
            last_stable: log_start,
            end: log_start,
            decided_at: None,
            tail: None,
            last_epoch: LeaderEpoch::default(),
        };
        let replicas = described.replicas.clone();
        let (shared, state) = (Arc::clone(self), Mutex::new(state));
        let view = View { shared, topic: topic.id, place, partition, disk, replicas, state };
        let mut state = view.state.lock();
        view.refresh(&mut state)?;
        if !state.has_page && state.tail.is_none() {
            // It may have moved away.
            view.shared.refresh()?;
            view.check_leads(&state)?;
        }
        drop(state);
        Ok(view)
    }
}

#[cfg(test)]
mod tests;
