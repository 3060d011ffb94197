//! A copy of the store in another directory, while appends go on.
//!
//! First the *cut*: of each partition, what could be read at one moment, between transactions. The tables of the store
//! itself are cut first, decisions before offsets, so that they never speak of records which the copy lacks. What is known of
//! each partition's producers is taken then as well: by the time it is copied, who wrote what was deleted may be told by
//! nothing that ends before the cut. Then the batches are copied as they are, every checksum looked at, from whichever
//! replica has them sound. The copy is on one disk: its metadata are the store's with one replica a partition.
//!
//! Until it is copied, a partition keeps the files of what is deleted meanwhile: how far a group was at the cut counts on
//! the records from there on. A topic that is deleted meanwhile is left out.
//!
//! The directory becomes a store with its identity, which is written last: a backup that was cut short is none, and is
//! refused. What it leaves is removed where that is possible.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::config::is_internal;
use crate::error::{Error, ErrorClass, Result};
use crate::log::{Evidence, Log, LogReader, LogSettings, SettleError, settle};
use crate::partition::{Core, CoreCut};
use crate::protocol::metadata::{Copied, DiskState, MetadataRecord, MetadataState};
use crate::segment::{Place, WriteHow};
use crate::storage::Disk;
use crate::types::{DiskId, LeaderEpoch, Offset, TopicPartition};

use super::layout::{self, DirectoryIdentity};
use super::metadata_log::MetadataLog;
use super::operations::{open_directory, vacant};
use super::session::{self, LogEnd, Session};
use super::topics::remove_tree;
use super::transactions::TRANSACTION_TOPIC;
use super::{Shared, Store, Topic};

const COPY_BYTES: usize = 1 << 20;
/// Attempts at a cut while topics come and go.
const CUTS_MAX: u32 = 16;
/// The disk of the copy.
const DISK: DiskId = DiskId(0);

/// What a backup holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackupReport {
    /// Partitions.
    pub partitions: u64,
    /// Bytes of batches.
    pub bytes: u64,
    /// Offsets that no replica could give: they are damaged, or sectors cannot be read. In the copy they answer
    /// [`Error::Corrupt`]; a copy that lacks any is not whole, and no reason to let go of an earlier one.
    pub damages: Vec<(TopicPartition, Range<Offset>)>,
}

/// What is to be copied of a partition.
struct Cut {
    topic: Arc<Topic>,
    at: CoreCut,
}

type InUse = Vec<(Arc<Topic>, Arc<Core>)>;

/// Why a partition is not copied as it was cut.
enum Lost {
    /// Its topic was deleted.
    Gone,
    Failed(Error),
}

impl From<Error> for Lost {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Store {
    /// Copies the store into a directory, which is made if need be and must be empty. Appends go on meanwhile. The copy
    /// holds, of every partition, all that could be read at one moment after the call, and of a transaction everything or
    /// nothing; a topic that is deleted meanwhile may be left out. What no replica can give, for damage or for sectors that
    /// cannot be read, is left out and told in [`BackupReport::damages`]: look at it, such a copy is not whole. Files of
    /// records that retention or [`Partition::delete_records`](crate::Partition::delete_records) takes stay until their
    /// partition is copied. It opens as a store on one disk, to which others can be added. It has the store's id: do not give
    /// its directory to the store as one of its disks.
    ///
    /// # Errors
    /// [`Error::UnsupportedFormat`] if the directory is not empty; [`Error::InvalidConfig`] if it lies in that of a disk of the
    /// store, with which it would go; [`Error::NoSpace`] if it has too little room;
    /// [`Error::NoLeader`], [`Error::MissingDisk`] if a partition cannot be read now; [`Error::TimedOut`] while a
    /// transaction cannot be settled, or while it is not known how far a partition was acknowledged, since the store was opened
    /// with too few of its replicas; [`Error::Io`], also of a disk of the store that failed meanwhile. The directory is
    /// then no store.
    ///
    /// # Examples
    /// ```
    /// use oncelog::{Acks, Record, Store, TopicConfig};
    /// # let directory = tempfile::tempdir()?;
    /// # let target = directory.path().join("backup");
    /// let store = Store::in_memory(1)?;
    /// store.create_topic("orders", TopicConfig::new())?;
    /// store.partition("orders", 0)?.append(&[Record::new("pear")], Acks::All)?;
    /// let report = store.backup(&target)?;
    /// assert_eq!((report.partitions, report.damages.len()), (1, 0));
    /// let copy = Store::open(&target)?;
    /// assert_eq!(copy.partition("orders", 0)?.high_watermark().0, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn backup(&self, path: impl AsRef<Path>) -> Result<BackupReport> {
        // Before a directory is made.
        self.shared().check_writable()?;
        self.back_up(open_directory(path.as_ref())?)
    }

    /// As [`Store::backup`], to a simulated disk.
    ///
    /// # Errors
    /// As there.
    #[cfg(any(test, feature = "simulation"))]
    pub fn backup_to_simulated_disk(
        &self,
        target: crate::storage::simulated::SimDisk,
    ) -> Result<BackupReport> {
        self.back_up(Arc::new(target))
    }

    fn back_up(&self, directory: Arc<dyn Disk>) -> Result<BackupReport> {
        let shared = self.shared();
        shared.check_writable()?;
        shared.check_apart("backup", &*directory)?;
        let given = vacant(directory)?;
        let target = Arc::clone(&given.disk);
        let report = shared.copy_to(&target);
        if report.is_err() {
            // An empty directory can be tried again; a disk that is full or failed may refuse even that.
            let files = [layout::IDENTITY, layout::SESSION];
            for name in files.iter().chain(&layout::METADATA) {
                let _ = target.remove(name);
            }
            let _ = remove_tree(&*target, layout::TOPICS);
        }
        report
    }
}

impl Shared {
    fn copy_to(self: &Arc<Self>, target: &Arc<dyn Disk>) -> Result<BackupReport> {
        let (mut state, cuts) = self.cut()?;
        let mut reports: BTreeMap<_, BackupReport> = BTreeMap::new();
        let mut logs = BTreeMap::new();
        let mut ends = BTreeMap::new();
        for cut in cuts {
            let (topic, number) = (Arc::clone(&cut.topic), cut.at.core().partition().partition());
            if state.partition(topic.id, number).is_none() {
                continue; // another of its partitions has shown that it is gone
            }
            let report = reports.entry(topic.id).or_default();
            match self.copy_partition(&cut, target, report) {
                Ok((copied, producers)) => {
                    logs.insert((topic.id, number), copied);
                    ends.insert(
                        (topic.id, number),
                        LogEnd { end: copied.end, producers, ..LogEnd::default() },
                    );
                    report.partitions += 1;
                }
                Err(Lost::Failed(error)) => return Err(error),
                Err(Lost::Gone) => {
                    reports.remove(&topic.id);
                    ends.retain(|(id, _), _| *id != topic.id);
                    let directory = layout::topic_directory(topic.id, &topic.name);
                    remove_tree(&**target, &directory).map_err(|error| {
                        Error::io(target.root().join(&directory), "remove", error)
                    })?;
                    let deleted = MetadataRecord::TopicDeleted { id: topic.id };
                    state.apply(&deleted).expect("it is in the metadata");
                }
            }
        }
        let uuid = target.entropy();
        let identity = DiskState { uuid, incarnation: 1 };
        let records = state.on_one_disk(DISK, identity, &logs).snapshot();
        let metadata = MetadataLog::create(&[(DISK, Arc::clone(target))], self.id, &records)?;
        let session = Session {
            clean: true,
            stale: false,
            strayed: false,
            lacks: false,
            cache: target.cache_id(),
            metadata: metadata.witnessed().0,
            disks: session::bit_of(DISK),
            ends,
        };
        session.write(&**target, self.id)?;
        DirectoryIdentity { store: self.id, disk: DISK, uuid, incarnation: 1 }.write(&**target)?;
        Ok(reports.into_values().fold(BackupReport::default(), |mut all, mut one| {
            all.partitions += one.partitions;
            all.bytes += one.bytes;
            all.damages.append(&mut one.damages);
            all
        }))
    }

    /// What there is to copy, as of one moment.
    fn cut(self: &Arc<Self>) -> Result<(MetadataState, Vec<Cut>)> {
        for _ in 0..CUTS_MAX {
            let Some(in_use) = self.open_all()? else { continue };
            for (_, core) in &in_use {
                self.wait_for_acknowledged(core, self.options.append_timeout)?;
            }
            let transactions = self.known_transactions();
            let held = transactions.as_ref().map(|all| all.hold(self, self.options.append_timeout));
            let held = held.transpose()?;
            let cuts: Vec<_> =
                in_use.into_iter().map(|(topic, core)| Cut { topic, at: core.cut() }).collect();
            let state = self.metadata.lock().state().clone();
            drop(held);
            let same = state.topics().map(|topic| topic.partitions.len()).sum::<usize>();
            let known = |cut: &Cut| {
                let number = cut.at.core().partition().partition();
                state.partition(cut.topic.id, number).is_some()
            };
            if same == cuts.len() && cuts.iter().all(known) {
                return Ok((state, cuts));
            }
        }
        Err(Error::late(
            "waiting for a moment in which no topic comes or goes",
            self.options.append_timeout,
        ))
    }

    /// All partitions, in the order in which they are cut. `None`: a topic was deleted meanwhile.
    fn open_all(&self) -> Result<Option<InUse>> {
        let mut topics: Vec<_> = self.topics.read().values().cloned().collect();
        topics.sort_by_key(|topic| (rank(&topic.name), topic.id));
        let mut in_use = Vec::new();
        for topic in &topics {
            let slots = topic.slots.read().clone();
            for slot in slots {
                match self.open_core(topic, &slot) {
                    Err(Error::UnknownTopicOrPartition { .. }) => return Ok(None),
                    core => in_use.push((Arc::clone(topic), core?)),
                }
            }
        }
        Ok(Some(in_use))
    }

    /// Copies a partition. Also returns whether there are producers to remember.
    fn copy_partition(
        &self,
        cut: &Cut,
        target: &Arc<dyn Disk>,
        report: &mut BackupReport,
    ) -> Result<(Copied, bool), Lost> {
        let now = self.clock.now();
        let partition = cut.at.core().partition();
        let (start, end) = (cut.at.start, cut.at.end);
        let place = self.place(&cut.topic, partition, target);
        let mut log = self.open_target(cut, place)?;
        let mut next = start;
        log.restart(next)?;
        while next < end {
            let found = read_somewhere(&cut.at, next);
            // What is read of a store that is closed may be another's by now.
            self.check_open()?;
            if cut.topic.is_gone.load(Ordering::Acquire) {
                return Err(Lost::Gone);
            }
            match found? {
                Found::Batches(bytes) => {
                    log.append_batches(&bytes, now)?;
                    report.bytes += bytes.len() as u64;
                }
                Found::Nothing { until } => {
                    let to = until.clamp(next.next(), end);
                    report.damages.push((partition.clone(), next..to));
                    log.pass_over(to, now)?;
                }
            }
            next = log.end();
            settle_sealed(&mut log)?;
        }
        if let Some(plan) = log.flush_plan() {
            plan.run()?;
            log.on_flushed(plan);
        }
        log.finish(now);
        settle_sealed(&mut log)?;
        if let Some(producers) = &cut.at.producers {
            log.keep_producers(producers);
        }
        if let Some(snapshot) = log.producer_snapshot(true) {
            // Who wrote what was deleted is known, also where nothing else is left.
            log.make_directory()?;
            snapshot.write()?;
        }
        let copied = Copied { start: log.reader().log_start(), end: log.end() };
        Ok((copied, log.has_producers()))
    }

    fn open_target(&self, cut: &Cut, place: Place) -> Result<Log> {
        let config = Arc::clone(&*cut.topic.config.read());
        // One writer, and one flush at the end.
        let how = WriteHow::Write { map_reads: false, staged: false };
        let settings = LogSettings { how, ..self.core_settings(&config).log };
        let evidence = Evidence {
            proven_end: Offset::ZERO,
            clean: true,
            same_boot: true,
            log_start: Offset::ZERO,
            rewrite: false,
            epoch: LeaderEpoch(0),
            sealed_since: None,
            now: self.clock.now(),
            repair: true,
            producers: false,
            mapped: false,
        };
        Ok(Log::open(place, settings, evidence)?.log)
    }
}

/// In this order topics are cut. A decision is made after all that it decides about was written, offsets of groups as well;
/// and offsets are committed after the records before them.
fn rank(topic: &str) -> u8 {
    match topic {
        TRANSACTION_TOPIC => 0,
        other if is_internal(other) => 1,
        _ => 2,
    }
}

/// What the replicas have, as they are or as they were.
enum Found {
    /// Whole batches.
    Batches(Vec<u8>),
    /// None of them could give anything up to there.
    Nothing { until: Offset },
}

/// Asks all replicas for what comes next.
///
/// # Errors
/// What may be had another time: of a disk that has failed, or from want of handles or memory.
fn read_somewhere(cut: &CoreCut, next: Offset) -> Result<Found> {
    let now = cut.core().readers();
    let (mut ends, mut unread) = (Vec::new(), Vec::new());
    for reader in now.iter().map(|(_, reader)| &**reader).chain(&cut.logs) {
        match reader.read(next, cut.end, COPY_BYTES) {
            Ok(Some(fetched)) => return Ok(Found::Batches(fetched.bytes.to_vec())),
            Ok(None) => {}
            Err(Error::Corrupt { offsets, .. }) => ends.push(offsets.end),
            Err(error) => unread.push((reader, error)),
        }
    }
    let mut failed = None;
    for (reader, error) in unread {
        if error.class() != ErrorClass::Fatal {
            return Err(error);
        }
        match behind_unreadable(reader, next) {
            Some(end) => ends.push(end),
            None => failed = failed.or(Some(error)),
        }
    }
    // What is damaged on one disk and cannot be had from another is damaged.
    let unread = || Error::NoLeader { partition: cut.core().partition().clone() };
    let until = ends.into_iter().min().ok_or_else(|| failed.unwrap_or_else(unread))?;
    Ok(Found::Nothing { until })
}

/// Where a log goes on behind sectors that cannot be read; `None` if its disk gives nothing else either.
fn behind_unreadable(reader: &LogReader, next: Offset) -> Option<Offset> {
    DirectoryIdentity::read(reader.disk()).ok()?;
    reader.goes_on_behind(next).ok().filter(|end| *end > next)
}

/// Makes what is sealed durable, with its side file, and closes it.
fn settle_sealed(log: &mut Log) -> Result<()> {
    for sealed in log.sealed().to_vec() {
        settle(&sealed, true).map_err(SettleError::into_error)?;
        log.on_settled(&sealed.segment, true);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{TopicConfig, TopicUpdate};
    use crate::record::Record;
    use crate::storage::Clock;
    use crate::storage::simulated::SimDisk;
    use crate::store::CommittedOffset;
    use crate::types::{Acks, Timestamp};

    /// Its copy began where the new table does, which is behind the cut: it had none of the offsets.
    #[test]
    fn a_table_that_is_written_again_while_it_is_copied_is_in_the_copy_as_it_was() {
        let clock = Clock::manual(Timestamp(1_000_000));
        let open = |disk: &SimDisk| {
            Store::builder().clock(clock.clone()).simulated_disk(disk.clone()).open().unwrap()
        };
        let store = open(&SimDisk::new(1));
        store.create_topic("t", TopicConfig::new()).unwrap();
        let partition = store.partition("t", 0).unwrap();
        let mut consumer = store.consumer().group("g").build().unwrap();
        let mut commit = |count: usize| {
            for nth in 0..count {
                let at = partition.append(&[Record::new("x")], Acks::All).unwrap().offsets.end;
                let mut committed = CommittedOffset::from(at);
                committed.metadata = "m".repeat(4000);
                let offsets = [(partition.name().clone(), committed)].into();
                consumer.commit_offsets(&offsets).unwrap();
                if nth % 50 == 0 {
                    store.run_background();
                }
            }
        };
        commit(1);
        let shared = store.shared();
        let topic = shared.topic("__consumer_offsets").unwrap();
        let second = Duration::from_secs(1);
        let update = TopicUpdate::new().segment_bytes(64 << 10).segment_age(second);
        shared.alter(&topic, &update).unwrap();
        clock.advance(second * 2);
        commit(100);
        let cut = topic.slots.read()[0].core.lock().as_ref().unwrap().cut();
        commit(1200);
        assert!(cut.core().log_start() > cut.end, "it was not written again");
        let disk = SimDisk::new(2);
        let target = Arc::new(disk.clone()) as Arc<dyn Disk>;
        let (first, end) = (cut.start, cut.end);
        let (copied, _) = shared
            .copy_partition(&Cut { topic, at: cut }, &target, &mut BackupReport::default())
            .unwrap_or_else(|_| panic!("it was not copied"));
        assert_eq!((copied.start, copied.end), (first, end));
    }
}
