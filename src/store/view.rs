//! A partition as a second process sees it: read only, while its owner appends.
//!
//! The owner's page of offsets tells how far the log may be read; without one, everything that is intact is read, as long as
//! the metadata say that its disk leads. A page that goes tells that another disk may lead: then the metadata say who does.
//! Where batches are is found by walking on from where the last look ended. Files that retention removes under us end in
//! [`Error::OffsetOutOfRange`] once the page says so.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::log::{LogReader, Marks, MarksView, Part, decided_end};
use crate::partition::ReadOptions;
use crate::protocol::metadata::PartitionState;
use crate::segment::{Place, Scan, Scanner, Segment, SparseIndex, log_name, parse_log_name};
use crate::storage::{EntryKind, OpenMode};
use crate::types::{DiskId, Isolation, LeaderEpoch, Offset, Timestamp, TopicId, TopicPartition};

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
    tail: Option<Tail>,
}

/// Where the walk over the last segment stands.
#[derive(Clone, Debug)]
struct Tail {
    base: Offset,
    end: Offset,
    position: u64,
    max_timestamp: Timestamp,
    index: SparseIndex,
}

impl View {
    pub(super) fn partition(&self) -> &TopicPartition {
        &self.partition
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
        let end = state.tail.as_ref().map_or(state.high_watermark, |tail| tail.end);
        (state.log_start, state.high_watermark, end.max(state.high_watermark))
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
        let nothing = Arc::new(LogReader::new(self.place.clone(), Vec::new(), state.log_start));
        let before = std::mem::replace(&mut state.reader, nothing);
        match self.walk(state) {
            Ok(tail) => state.tail = tail,
            Err(error) => {
                state.reader = before;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Waits from `started` on.
    ///
    /// # Errors
    /// [`Error::TimedOut`]; [`Error::NoLeader`]: another may lead.
    pub(super) fn wait_for(
        &self,
        offset: Offset,
        isolation: Isolation,
        started: Instant,
        timeout: Duration,
    ) -> Result<()> {
        loop {
            // A disk that does not answer now may do so in time.
            if let Err(error @ Error::NoLeader { .. }) = self.look() {
                return Err(error);
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
        if described.leader != Some(self.disk) {
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
        if state.epoch != described.leader_epoch {
            // It may have followed meanwhile, and been cut.
            state.epoch = described.leader_epoch;
            state.tail = None;
            state.reader = Arc::new(LogReader::new(self.place.clone(), Vec::new(), start));
        }
        self.refresh(&mut state)?;
        *known = state;
        Ok(())
    }

    fn no_leader(&self) -> Error {
        Error::NoLeader { partition: self.partition.clone() }
    }

    pub(super) fn reader(&self) -> Arc<LogReader> {
        Arc::clone(&self.state.lock().reader)
    }

    fn refresh(&self, state: &mut State) -> Result<()> {
        let (before, shown) = (state.high_watermark, Marks::peek(&self.place));
        if shown.is_some() {
            self.look_behind(state, shown)?;
            // That of a disk that failed stays as it was.
            let is_idle = state.high_watermark == before;
            if std::env::var("MB").is_err()
                && is_idle
                && matches!(self.leads(state.epoch, ASK_EVERY), Ok(false))
            {
                return Err(self.no_leader());
            }
            return Ok(());
        }
        if state.has_page {
            return Err(self.no_leader());
        }
        let mut seen = state.clone();
        self.look_behind(&mut seen, None)?;
        // Its files are believed as long as it leads: another may do so by now, who has a page.
        let is_news = seen.high_watermark > before;
        let age_max = if is_news { Duration::ZERO } else { ASK_EVERY };
        if !seen.has_page && !self.leads(state.epoch, age_max)? {
            return Err(self.no_leader());
        }
        *state = seen;
        Ok(())
    }

    /// Whether its disk leads with `epoch`, by metadata that were read no longer ago than that.
    fn leads(&self, epoch: LeaderEpoch, age_max: Duration) -> Result<bool> {
        if self.shared.metadata.lock().age() >= age_max {
            self.shared.refresh()?;
        }
        let described = self.shared.described(self.topic, &self.partition)?;
        Ok((described.leader, described.leader_epoch) == (Some(self.disk), epoch))
    }

    /// Looks at the log behind a page that showed this.
    fn look_behind(&self, state: &mut State, shown: Option<MarksView>) -> Result<()> {
        let known_end = state.tail.as_ref().map_or(Offset::ZERO, |tail| tail.end);
        let start = shown.map_or(state.log_start, |marks| marks.log_start.max(state.log_start));
        if let Some(marks) = shown
            && marks.high_watermark <= known_end
            && start == state.log_start
        {
            state.has_page = true;
            state.high_watermark = state.high_watermark.max(marks.high_watermark);
            state.last_stable = state.last_stable.max(marks.last_stable);
            return Ok(());
        }
        let tail = self.walk(state)?;
        // The page is made before the first record, which the walk may have seen.
        let shown = shown.or_else(|| Marks::peek(&self.place));
        state.has_page = shown.is_some();
        let end = tail.as_ref().map_or(start, |tail| tail.end);
        let high = shown.map_or(end, |marks| marks.high_watermark.min(end));
        state.high_watermark = state.high_watermark.max(high);
        let stable = match shown {
            Some(marks) => marks.last_stable,
            // Nobody says what is decided: the log itself does.
            None => decided_end(&self.place, &state.reader, end)?,
        };
        state.last_stable = state.last_stable.max(stable.min(high));
        state.log_start = state.log_start.max(start.min(end));
        state.tail = tail;
        Ok(())
    }

    /// Lists the segments and walks the last one on from where the last look ended.
    fn walk(&self, state: &mut State) -> Result<Option<Tail>> {
        let place = &self.place;
        let entries = match place.disk.list(&place.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            listed => listed.map_err(|error| place.io_error("", "list", error))?,
        };
        let mut bases: Vec<_> = entries
            .iter()
            .filter(|entry| entry.kind == EntryKind::File)
            .filter_map(|entry| Some((parse_log_name(&entry.name)?, entry.len)))
            .collect();
        bases.sort_by_key(|(base, _)| *base);
        let known = state.reader.segments();
        let mut segments = Vec::with_capacity(bases.len());
        let mut tail = None;
        for (at, (base, len)) in bases.iter().enumerate() {
            if let Some((next, _)) = bases.get(at + 1) {
                let kept =
                    known.iter().find(|segment| segment.base == *base && segment.end() == *next);
                segments.push(kept.map_or_else(
                    || Arc::new(Segment::sealed(place.clone(), *base, *next, *len)),
                    Arc::clone,
                ));
                continue;
            }
            let scan =
                self.walk_tail(*base, state.tail.take().filter(|tail| tail.base == *base))?;
            let segment = Segment::sealed(place.clone(), *base, scan.end, scan.position);
            segment.adopt_index(scan.index.clone(), scan.max_timestamp);
            segments.push(Arc::new(segment));
            tail = Some(Tail {
                base: *base,
                end: scan.end,
                position: scan.position,
                max_timestamp: scan.max_timestamp,
                index: scan.index,
            });
        }
        state.reader = Arc::new(LogReader::new(place.clone(), segments, state.log_start));
        Ok(tail)
    }

    fn walk_tail(&self, base: Offset, tail: Option<Tail>) -> Result<Scan> {
        let name = log_name(base);
        let fault = |error| self.place.io_error(&name, "open", error);
        let file = self.place.disk.open(&self.place.path(&name), OpenMode::Read).map_err(fault)?;
        let mut scanner = Scanner::new(&self.place, base);
        if let Some(tail) = tail {
            scanner = scanner.resume(tail.position, tail.end, tail.max_timestamp, tail.index);
        } else if let Some(side) = Segment::read_side_file(&self.place, base)
            && (side.head.durable || side.head.boot == self.place.disk.boot_id())
        {
            let (head, index) = (side.head, SparseIndex::clone(&side.index));
            if head.position <= file.len().map_err(fault)? {
                scanner = scanner.resume(head.position, head.end, head.max_timestamp, index);
            }
        }
        // A batch that is being written looks torn: the walk ends before it and goes on next time.
        scanner.walk(&*file, u64::MAX, None)
    }
}

impl Shared {
    /// Reads the metadata anew.
    pub(super) fn refresh(&self) -> Result<()> {
        let mut metadata = self.metadata.lock();
        metadata.reload()?;
        self.load_topics(metadata.state());
        Ok(())
    }

    fn described(&self, topic: TopicId, partition: &TopicPartition) -> Result<PartitionState> {
        let described =
            self.metadata.lock().state().partition(topic, partition.partition()).cloned();
        described.ok_or_else(|| Error::UnknownTopicOrPartition { partition: partition.clone() })
    }

    /// A view of a partition. Views are not shared: each keeps its own place.
    pub(super) fn open_view(self: &Arc<Self>, topic: &Topic, slot: &Slot) -> Result<Arc<View>> {
        let mut described = self.described(topic.id, &slot.partition)?;
        loop {
            match self.view_of(topic, slot, &described) {
                // Another may lead by now.
                Err(Error::NoLeader { .. }) => {
                    self.refresh()?;
                    let now = self.described(topic.id, &slot.partition)?;
                    let leads =
                        |described: &PartitionState| (described.leader, described.leader_epoch);
                    if leads(&now) == leads(&described) {
                        return Err(Error::NoLeader { partition: slot.partition.clone() });
                    }
                    described = now;
                }
                opened => return opened.map(Arc::new),
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
            tail: None,
        };
        let replicas = described.replicas.clone();
        let (shared, state) = (Arc::clone(self), Mutex::new(state));
        let view = View { shared, topic: topic.id, place, partition, disk, replicas, state };
        view.refresh(&mut view.state.lock())?;
        Ok(view)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TopicConfig;
    use crate::record::Record;
    use crate::segment::FILE_HEADER_BYTES;
    use crate::storage::simulated::{Hang, SimDisk};
    use crate::storage::{Clock, Disk};
    use crate::store::{Partition, Store, StoreBuilder};
    use crate::types::{Acks, Flush, StorageMode};

    fn shows_page(disk: &SimDisk) -> bool {
        let view = Store::builder().simulated_disk(disk.clone()).read_only().open().unwrap();
        let (topic, name) = (view.shared().topic("t").unwrap(), TopicPartition::new("t", 0));
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        Marks::peek(&view.shared().place(&topic, &name, &disk)).is_some()
    }

    /// A view that came before the first page was made took what was not acknowledged for readable, and the next one saw less.
    #[test]
    fn a_partition_has_its_page_before_its_first_record() {
        for cut in 1.. {
            let disk = SimDisk::new(1);
            let builder = || Store::builder().simulated_disk(disk.clone());
            let store = builder().open().unwrap();
            store.create_topic("t", TopicConfig::new().flush(Flush::Os)).unwrap();
            disk.crash_at(cut);
            let partition = store.partition("t", 0);
            let appended = partition.and_then(|it| it.append(&[Record::new("x")], Acks::All));
            let is_reached = disk.is_dead();
            disk.kill();
            drop(store);
            disk.heal();
            disk.process_restart();
            let segment = disk.files().into_iter().find(|name| name.ends_with(".log"));
            let has_record = segment.is_some_and(|name| {
                disk.read_file(&name)[FILE_HEADER_BYTES..].iter().any(|byte| *byte != 0)
            });
            assert!(!has_record || shows_page(&disk), "cut at {cut}: {appended:?}");
            if !is_reached {
                assert!(has_record && appended.is_ok());
                builder().open().unwrap().close(Duration::ZERO).unwrap();
                // Another run of the machine does not believe the page of the last one.
                disk.power_loss();
                let store = builder().open().unwrap();
                let _partition = store.partition("t", 0).unwrap();
                assert!(shows_page(&disk));
                return;
            }
        }
    }

    /// What was not acknowledged was taken for readable, if the first page came between the look at it and the one at the log.
    #[test]
    fn a_page_that_is_made_while_a_view_looks_is_believed() {
        let disks = [SimDisk::new(1), SimDisk::new(2)];
        let builder =
            || disks.iter().fold(Store::builder(), |all, disk| all.simulated_disk(disk.clone()));
        let store = builder().open().unwrap();
        let config = TopicConfig::new().replication_factor(2).flush(Flush::Os);
        store.create_topic("t", config).unwrap();
        let reader = builder().read_only().open().unwrap();
        let topic = reader.shared().topic("t").unwrap();
        let partition = store.partition("t", 0).unwrap();
        let leader = usize::from(partition.core().unwrap().leader().unwrap().0);
        disks[1 - leader].hang(Hang::Everything);
        partition.append(&[Record::new("x")], Acks::Leader).unwrap();
        let view = reader.shared().open_view(&topic, &topic.slots.read()[0]).unwrap();
        let seen = {
            let mut state = view.state.lock();
            view.look_behind(&mut state, None).map(|()| state.high_watermark)
        };
        disks[1 - leader].answer();
        assert_eq!(seen.unwrap(), Offset(0));
    }

    /// The page is never flushed: what the system wrote of it by itself is of some moment before. It was believed, and what
    /// had been acknowledged since could not be read, nor waited for.
    #[test]
    fn s8_after_a_power_loss_a_view_shows_all_that_the_log_has() {
        let disk = SimDisk::new(1);
        let clock = Clock::manual(Timestamp(1_000_000));
        let builder = || Store::builder().clock(clock.clone()).simulated_disk(disk.clone());
        let store = builder().open().unwrap();
        store.create_topic("t", TopicConfig::new().flush(Flush::OnAck)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        let append = || partition.append(&[Record::new("x")], Acks::All).unwrap();
        append();
        let files = disk.files();
        let page = files.iter().find(|name| name.ends_with("/marks")).unwrap();
        let before = disk.read_file(page);
        for _ in 0..5 {
            append();
        }
        let close = |store: Store| drop(store);
        close(store);
        drop(partition);
        disk.power_loss();
        disk.write_file(page, &before);
        let view = builder().read_only().open().unwrap();
        assert_eq!(view.partition("t", 0).unwrap().high_watermark(), Offset(6));
    }

    /// The page of the leader that went was taken back, and the one that came had none yet: a view took all for readable that it
    /// found in either's files.
    #[test]
    fn a_view_at_a_change_of_leader_shows_no_more_than_is_acknowledged() {
        for cut in 1.. {
            let disks = [SimDisk::new(1), SimDisk::new(2), SimDisk::new(3)];
            disks[1..].iter().for_each(|disk| disk.share_process(&disks[0]));
            let builder = || {
                disks.iter().fold(Store::builder(), |all, disk| all.simulated_disk(disk.clone()))
            };
            let store = builder().open().unwrap();
            let config = TopicConfig::new().replication_factor(3).min_insync_replicas(3);
            store.create_topic("t", config.flush(Flush::Os)).unwrap();
            let partition = store.partition("t", 0).unwrap();
            let replicas = partition.replicas();
            partition.append(&[Record::new("x")], Acks::All).unwrap();
            store.stop_disk(replicas[2]).unwrap();
            // Two have it, and three have to.
            partition.append(&[Record::new("x")], Acks::Leader).unwrap();
            assert_eq!(partition.high_watermark(), Offset(1));
            let reader = builder().read_only().open().unwrap();
            let old = reader.partition("t", 0).unwrap();
            assert_eq!(old.high_watermark(), Offset(1));
            let next = &disks[usize::from(replicas[1].0)];
            next.crash_at(cut);
            let _ = store.stop_disk(replicas[0]);
            let is_reached = next.is_dead();
            next.heal();
            if !is_reached {
                assert_eq!(partition.leader(), Some(replicas[1]));
                assert_eq!(
                    (partition.high_watermark(), partition.log_end_offset().0),
                    (Offset(1), 2)
                );
                let told = old.read(Offset(1), ReadOptions::new());
                assert!(matches!(told, Err(Error::NoLeader { .. })), "{told:?}");
                let told = old.wait_for(Offset(1), Duration::from_secs(5));
                assert!(matches!(told, Err(Error::NoLeader { .. })), "{told:?}");
            }
            drop(store);
            if is_reached {
                disks.iter().for_each(SimDisk::process_restart);
            }
            assert_eq!(old.high_watermark(), Offset(1), "cut at {cut}");
            // One that knows of another leader, and one that has yet to hear of him.
            for view in [builder().read_only().open().unwrap(), reader] {
                match view.partition("t", 0) {
                    Ok(new) => assert_eq!(new.high_watermark(), Offset(1), "cut at {cut}"),
                    Err(error) => assert!(matches!(error, Error::NoLeader { .. }), "{error}"),
                }
            }
            if !is_reached {
                return;
            }
        }
    }

    /// The opening named a leader that had followed so far, before it made its page: a view took all for readable that it found in
    /// the files, and the next one saw less.
    #[test]
    fn a_view_at_an_opening_that_elects_another_shows_no_more_than_is_acknowledged() {
        for cut in 1.. {
            let disks = [SimDisk::new(1), SimDisk::new(2), SimDisk::new(3)];
            disks[1..].iter().for_each(|disk| disk.share_process(&disks[0]));
            let add = |all: StoreBuilder, disk: &SimDisk| all.simulated_disk(disk.clone());
            let store = disks.iter().fold(Store::builder(), add).open().unwrap();
            let config = TopicConfig::new().replication_factor(3).min_insync_replicas(3);
            store.create_topic("t", config.flush(Flush::Os)).unwrap();
            let partition = store.partition("t", 0).unwrap();
            let replicas = partition.replicas();
            partition.append(&[Record::new("x")], Acks::All).unwrap();
            store.stop_disk(replicas[2]).unwrap();
            // Two have it, and three have to.
            partition.append(&[Record::new("x")], Acks::Leader).unwrap();
            disks[0].kill();
            drop((partition, store));
            disks.iter().for_each(SimDisk::process_restart);
            let others = || {
                let there = replicas[1..].iter().map(|disk| &disks[usize::from(disk.0)]);
                there.fold(Store::builder().allow_missing(replicas[0]), add)
            };
            let next = &disks[usize::from(replicas[1].0)];
            next.crash_at(cut);
            let opened = others().open();
            let is_reached = next.is_dead();
            next.heal();
            drop(opened);
            if is_reached {
                disks.iter().for_each(SimDisk::process_restart);
            }
            let view = others().read_only().open().unwrap();
            let shown = view.partition("t", 0).map(|partition| partition.high_watermark());
            match shown {
                Ok(shown) => assert_eq!(shown, Offset(1), "cut at {cut}"),
                Err(error) => assert!(is_reached, "{error}"),
            }
            if !is_reached {
                return;
            }
        }
    }

    /// Where too few replicas are there to acknowledge anything, the watermark stays where it was: that was where the reign had begun,
    /// and a fresh view saw less.
    #[test]
    fn what_a_view_has_shown_it_shows_at_every_opening() {
        let (mut which, mut cut) = (0, 1);
        while which < 2 {
            let disks = [SimDisk::new(1), SimDisk::new(2), SimDisk::new(3)];
            disks[1..].iter().for_each(|disk| disk.share_process(&disks[0]));
            let add = |all: StoreBuilder, disk: &SimDisk| all.simulated_disk(disk.clone());
            let store = disks.iter().fold(Store::builder(), add).open().unwrap();
            let config = TopicConfig::new().replication_factor(3).min_insync_replicas(3);
            store.create_topic("t", config.flush(Flush::Os)).unwrap();
            let partition = store.partition("t", 0).unwrap();
            for _ in 0..3 {
                partition.append(&[Record::new("x")], Acks::All).unwrap();
            }
            let replicas = partition.replicas();
            disks[0].kill();
            drop((partition, store));
            disks.iter().for_each(SimDisk::process_restart);
            let there = [0, 1].map(|at| &disks[usize::from(replicas[at].0)]);
            let builder =
                || there.into_iter().fold(Store::builder().allow_missing(replicas[2]), add);
            let see = || -> Result<[Offset; 2]> {
                let viewed = builder().read_only().open()?.partition("t", 0)?;
                Ok([viewed.high_watermark(), viewed.last_stable_offset()])
            };
            assert_eq!(see().unwrap(), [Offset(3); 2]);
            there[which].crash_at(cut);
            let opened = builder().open().and_then(|store| Ok((store.partition("t", 0)?, store)));
            let is_reached = there[which].is_dead();
            there[which].heal();
            if is_reached {
                drop(opened);
                disks.iter().for_each(SimDisk::process_restart);
            }
            match see() {
                Ok(shown) => assert_eq!(shown, [Offset(3); 2], "{which}, cut at {cut}"),
                Err(error) => assert!(is_reached, "{error}"),
            }
            (which, cut) = if is_reached { (which, cut + 1) } else { (which + 1, 1) };
        }
    }

    /// It was opened before there was a page, and believed the files of one that followed by then for ever.
    #[test]
    fn a_view_that_is_kept_believes_no_files_of_one_that_follows() {
        let disks = [SimDisk::new(1), SimDisk::new(2), SimDisk::new(3)];
        let builder =
            || disks.iter().fold(Store::builder(), |all, disk| all.simulated_disk(disk.clone()));
        let store = builder().open().unwrap();
        let config = TopicConfig::new().replication_factor(3).min_insync_replicas(3);
        store.create_topic("t", config.flush(Flush::Os)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        let replicas = partition.replicas();
        let reader = builder().read_only().open().unwrap();
        let kept = reader.partition("t", 0).unwrap();
        assert_eq!(kept.high_watermark(), Offset(0));
        store.stop_disk(replicas[0]).unwrap();
        store.start_disk(replicas[0]).unwrap();
        store.stop_disk(replicas[2]).unwrap();
        assert_eq!(partition.leader(), Some(replicas[1]));
        partition.append(&[Record::new("x")], Acks::Leader).unwrap();
        store.run_background();
        let first = disks[usize::from(replicas[0].0)].files();
        assert!(
            first.iter().any(|name| name.ends_with("-t/0/00000000000000000000.log")),
            "{first:?}"
        );
        assert_eq!((kept.high_watermark(), partition.high_watermark()), (Offset(0), Offset(0)));
        let told = kept.wait_for(Offset(0), Duration::from_secs(60));
        assert!(matches!(told, Err(Error::NoLeader { .. })), "{told:?}");
    }

    /// The page of a disk that failed stayed as it was: who read on from there found nothing new for ever.
    #[test]
    fn a_view_of_a_disk_that_failed_learns_that_another_leads() {
        let disks = [SimDisk::new(1), SimDisk::new(2), SimDisk::new(3)];
        let builder =
            || disks.iter().fold(Store::builder(), |all, disk| all.simulated_disk(disk.clone()));
        let store = builder().open().unwrap();
        let config = TopicConfig::new().replication_factor(3).min_insync_replicas(2);
        store.create_topic("t", config.flush(Flush::Os)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        partition.append(&[Record::new("x")], Acks::All).unwrap();
        let kept = builder().read_only().open().unwrap().partition("t", 0).unwrap();
        assert_eq!(kept.high_watermark(), Offset(1));
        let core = partition.core().unwrap();
        core.fence_replica(partition.leader().unwrap(), &Error::Closed);
        store.shared().settle_one(&core);
        partition.append(&[Record::new("x")], Acks::All).unwrap();
        let started = Instant::now();
        while kept.read(Offset(1), ReadOptions::new()).is_ok() {
            assert!(started.elapsed() < Duration::from_secs(60), "it hears of nothing");
            std::thread::sleep(LOOK_EVERY);
        }
        let told = kept.read(Offset(1), ReadOptions::new());
        assert!(matches!(told, Err(Error::NoLeader { .. })), "{told:?}");
    }

    /// The page was of an earlier session: what was acknowledged since could not be read.
    #[test]
    fn a_page_of_an_earlier_session_goes_where_nobody_writes_to_it() {
        let disk = SimDisk::new(1);
        let builder = || Store::builder().simulated_disk(disk.clone());
        let store = builder().open().unwrap();
        store.create_topic("t", TopicConfig::new()).unwrap();
        let append = |store: &Store| {
            let partition = store.partition("t", 0).unwrap();
            partition.append(&[Record::new("x")], Acks::All).unwrap();
        };
        append(&store);
        let reader = builder().read_only().open().unwrap();
        let view = || reader.partition("t", 0).unwrap();
        let (before, waiting) = (view(), view());
        assert_eq!(before.high_watermark(), Offset(1));
        drop(store);
        let store = builder().storage_mode(StorageMode::Write).open().unwrap();
        append(&store);
        let after = builder().read_only().open().unwrap();
        assert_eq!(after.partition("t", 0).unwrap().high_watermark(), Offset(2));
        assert_eq!(before.high_watermark(), Offset(2));
        assert_eq!(before.read(Offset(1), ReadOptions::new()).unwrap().count(), 1);
        waiting.wait_for_committed(Offset(1), Duration::from_secs(5)).unwrap();
    }

    /// A power loss left the side file, and not all that it tells of: a view went by it until the next one was written.
    #[test]
    fn s8_a_side_file_that_counts_no_more_misleads_no_view() {
        let disk = SimDisk::new(1);
        let builder = |disk: &SimDisk| Store::builder().simulated_disk(disk.clone());
        let store = builder(&disk).checkpoint_bytes(1 << 20).open().unwrap();
        store.create_topic("t", TopicConfig::new().flush(Flush::Os)).unwrap();
        let append = |store: &Store, count: usize, len: usize| {
            let partition = store.partition("t", 0).unwrap();
            for _ in 0..count {
                partition.append(&[Record::new(&vec![7; len])], Acks::All).unwrap();
            }
        };
        append(&store, 700, 2000);
        store.run_background();
        let file = |end| disk.files().into_iter().find(|name| name.ends_with(end)).unwrap();
        let (side, log) = (file("00.side"), file("00.log"));
        let (told, mut bytes) = (disk.read_file(&side), disk.read_file(&log));
        bytes[500_000..].fill(0);
        disk.kill();
        drop(store);
        disk.heal();
        disk.power_loss();
        disk.write_file(&side, &told);
        disk.write_file(&log, &bytes);
        let seen = |disk: &SimDisk| {
            let view = builder(disk).read_only().open().unwrap();
            let viewed = view.partition("t", 0).unwrap();
            let (mut next, end) = (Offset(0), viewed.high_watermark());
            while next < end {
                next = viewed.read(next, ReadOptions::new()).unwrap().next_offset();
            }
            end
        };
        let left = seen(&disk);
        assert!(left < Offset(300), "a part is lost");
        for cut in 1.. {
            let disk = disk.fork();
            disk.crash_at(cut);
            drop(builder(&disk).open());
            let is_reached = disk.is_dead();
            disk.kill();
            disk.heal();
            disk.process_restart();
            let store = builder(&disk).open().unwrap();
            assert_eq!(store.partition("t", 0).unwrap().high_watermark(), left, "cut at {cut}");
            append(&store, 400, 3000);
            assert_eq!(seen(&disk), left.plus(400), "cut at {cut}");
            if !is_reached {
                return;
            }
        }
    }

    /// It kept the damaged file open, which had lost its name, and answered that it is damaged for ever.
    #[test]
    fn s3_a_view_reads_what_its_owner_has_repaired() {
        let disks = [SimDisk::new(1), SimDisk::new(2)];
        let clock = Clock::manual(Timestamp(1000));
        let builder = || {
            let builder = Store::builder().clock(clock.clone());
            disks.iter().fold(builder, |all, disk| all.simulated_disk(disk.clone()))
        };
        let store = builder().open().unwrap();
        let config = TopicConfig::new().replication_factor(2).segment_bytes(4096);
        store.create_topic("t", config).unwrap();
        let append = |store: &Store, count: u64| {
            let partition = store.partition("t", 0).unwrap();
            for _ in 0..count {
                partition.append(&[Record::new(&[7; 200])], Acks::All).unwrap();
                clock.advance(Duration::from_millis(1));
            }
        };
        append(&store, 60);
        store.close(Duration::from_secs(1)).unwrap();
        drop(store);
        let store = builder().open().unwrap();
        let leader = store.partition("t", 0).unwrap().leader().unwrap();
        let disk = &disks[usize::from(leader.0)];
        let mut logs = disk.files();
        logs.retain(|name| name.contains("-t/0/") && name.ends_with(".log"));
        let mut bytes = disk.read_file(&logs[0]);
        bytes[1000] ^= 1;
        disk.write_file(&logs[0], &bytes);
        let reader = builder().read_only().open().unwrap();
        let [viewed, other] = [0; 2].map(|_| reader.partition("t", 0).unwrap());
        let read = |partition: &Partition| {
            (0..60).map(Offset).all(|at| partition.read(at, ReadOptions::new()).is_ok())
        };
        let find = || other.offset_for_time(Timestamp(1008));
        assert!(!read(&viewed) && find().is_err());
        // Whoever meets it asks for its repair.
        assert!(read(&store.partition("t", 0).unwrap()));
        store.run_background();
        assert_ne!(disk.read_file(&logs[0]), bytes);
        assert!(read(&viewed));
        assert_eq!(find().unwrap(), Some(Offset(8)));
        append(&store, 60);
        assert_eq!(viewed.read(Offset(119), ReadOptions::new()).unwrap().count(), 1);
    }

    /// Only the metadata say where the log begins if there is no page: what was deleted since was called damaged.
    #[test]
    fn a_view_that_looks_for_a_time_learns_what_was_deleted() {
        let disk = SimDisk::new(1);
        let clock = Clock::manual(Timestamp(1_000_000));
        let builder = || Store::builder().clock(clock.clone()).simulated_disk(disk.clone());
        let store = builder().storage_mode(StorageMode::Write).open().unwrap();
        store.create_topic("t", TopicConfig::new().segment_bytes(64 << 10)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        let view = builder().read_only().open().unwrap();
        let viewed = view.partition("t", 0).unwrap();
        for _ in 0..100 {
            clock.advance(Duration::from_millis(1));
            partition.append(&[Record::new(&[7; 2000])], Acks::All).unwrap();
        }
        assert_eq!(viewed.offset_for_time(Timestamp(0)).unwrap(), Some(Offset(0)));
        partition.delete_records(Offset(90)).unwrap();
        store.run_background();
        for time in [0, 1_000_001, 1_000_091] {
            let found = viewed.offset_for_time(Timestamp(time));
            assert_eq!(found.unwrap(), Some(Offset(90)), "{time}");
        }
    }
}
