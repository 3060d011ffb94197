//! A copy of the store in another directory, while appends go on.
//!
//! First the *cut*: of each partition, what could be read at one moment, between transactions. The tables of the store
//! itself (offsets, transactions) are cut first, so that they never speak of records which the copy lacks. Then the
//! batches are copied as they are, every checksum looked at, from whichever replica has them sound. The copy is on one
//! disk: its metadata are the store's with one replica a partition.
//!
//! The directory becomes a store with its identity, which is written last: a backup that was cut short is none, and is
//! refused. What it leaves is removed where that is possible.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::config::INTERNAL_PREFIX;
use crate::error::{Error, Result};
use crate::log::{Evidence, Log, LogSettings, SettleError, copy_snapshots, settle};
use crate::partition::Core;
use crate::protocol::metadata::{Copied, DiskState, MetadataState};
use crate::segment::{Place, WriteHow};
use crate::storage::Disk;
use crate::types::{DiskId, LeaderEpoch, Offset, TopicPartition};

use super::layout::{self, DirectoryIdentity};
use super::metadata_log::MetadataLog;
use super::operations::{open_directory, vacant};
use super::session::{self, LogEnd, Session};
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
    /// Offsets that no replica could give any more; in the copy they cannot be read either.
    pub damages: Vec<(TopicPartition, Range<Offset>)>,
}

/// What is to be copied of a partition.
struct Cut {
    topic: Arc<Topic>,
    core: Arc<Core>,
    start: Offset,
    end: Offset,
}

impl Store {
    /// Copies the store into a directory, which is made if need be and must be empty. Appends go on meanwhile. The copy
    /// holds, of every partition, all that could be read at one moment after the call, and of a transaction everything
    /// or nothing; it opens as a store on one disk, to which others can be added. It has the store's id: do not give
    /// its directory to the store as one of its disks.
    ///
    /// # Errors
    /// [`Error::UnsupportedFormat`] if the directory is not empty; [`Error::NoSpace`] if it has too little room;
    /// [`Error::NoLeader`], [`Error::MissingDisk`] if a partition cannot be read now; [`Error::TimedOut`] while a
    /// transaction cannot be settled; [`Error::Io`]. The directory is then no store.
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
        let given = vacant(directory)?;
        let target = Arc::clone(&given.disk);
        let report = shared.copy_to(&target);
        if report.is_err() {
            // An empty directory can be tried again; a disk that is full or failed may refuse even that.
            for name in layout::METADATA.iter().chain([&layout::SESSION]) {
                let _ = target.remove(name);
            }
            let _ = super::topics::remove_tree(&*target, layout::TOPICS);
        }
        report
    }
}

impl Shared {
    fn copy_to(self: &Arc<Self>, target: &Arc<dyn Disk>) -> Result<BackupReport> {
        let (state, cuts) = self.cut()?;
        let mut report = BackupReport::default();
        let mut logs = BTreeMap::new();
        let mut ends = BTreeMap::new();
        for cut in &cuts {
            self.check_open()?;
            let key = (cut.topic.id, cut.core.partition().partition());
            let (copied, producers) = self.copy_partition(cut, target, &mut report)?;
            logs.insert(key, copied);
            ends.insert(key, LogEnd { end: copied.end, producers });
            report.partitions += 1;
        }
        let uuid = target.entropy();
        let identity = DiskState { uuid, incarnation: 1 };
        let records = state.on_one_disk(DISK, identity, &logs).snapshot();
        let metadata = MetadataLog::create(&[(DISK, Arc::clone(target))], self.id, &records)?;
        let session = Session {
            clean: true,
            stale: false,
            boot: target.boot_id(),
            metadata: metadata.witnessed().0,
            disks: session::bit_of(DISK),
            ends,
        };
        session.write(&**target, self.id)?;
        DirectoryIdentity { store: self.id, disk: DISK, uuid, incarnation: 1 }.write(&**target)?;
        Ok(report)
    }

    /// What there is to copy, as of one moment.
    fn cut(self: &Arc<Self>) -> Result<(MetadataState, Vec<Cut>)> {
        for _ in 0..CUTS_MAX {
            let mut topics: Vec<_> = self.topics.read().values().cloned().collect();
            topics.sort_by_key(|topic| (!topic.name.starts_with(INTERNAL_PREFIX), topic.id));
            let mut cuts = Vec::new();
            for topic in &topics {
                let slots = topic.slots.read().clone();
                for slot in slots {
                    let core = self.open_core(topic, &slot)?;
                    let topic = Arc::clone(topic);
                    cuts.push(Cut { topic, core, start: Offset::ZERO, end: Offset::ZERO });
                }
            }
            let transactions = self.known_transactions();
            let held = transactions.as_ref().map(|all| all.hold(self, self.options.append_timeout));
            let held = held.transpose()?;
            for cut in &mut cuts {
                (cut.start, cut.end) = (cut.core.log_start(), cut.core.high_watermark());
            }
            let state = self.metadata.lock().state().clone();
            drop(held);
            let same = state.topics().map(|topic| topic.partitions.len()).sum::<usize>();
            let known = |cut: &Cut| {
                state.partition(cut.topic.id, cut.core.partition().partition()).is_some()
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

    /// Copies a partition. Also returns whether there are producers to remember.
    fn copy_partition(
        &self,
        cut: &Cut,
        target: &Arc<dyn Disk>,
        report: &mut BackupReport,
    ) -> Result<(Copied, bool)> {
        let now = self.clock.now();
        let partition = cut.core.partition();
        let place = self.place(&cut.topic, partition, target);
        let mut log = self.open_target(cut, place.clone())?;
        let mut next = cut.start;
        log.restart(next)?;
        while next < cut.end {
            let (fetched, error) = self.read_somewhere(&cut.core, next, cut.end);
            let start = cut.core.log_start();
            if let Some(bytes) = fetched {
                log.append_batches(&bytes, now)?;
                report.bytes += bytes.len() as u64;
            } else if start > next {
                // Retention passed by: the copy begins where the log does now.
                log.restart(start.min(cut.end))?;
            } else if let Some(Error::Corrupt { offsets, .. }) = error {
                let to = offsets.end.clamp(next.next(), cut.end);
                report.damages.push((partition.clone(), next..to));
                log.pass_over(to, now)?;
            } else {
                return Err(error.unwrap_or(Error::NoLeader { partition: partition.clone() }));
            }
            next = log.end();
            settle_sealed(&mut log)?;
        }
        let start = log.reader().log_start();
        if let Some(plan) = log.flush_plan() {
            plan.run()?;
            log.on_flushed(plan);
        }
        log.finish(now);
        settle_sealed(&mut log)?;
        let producers = log.has_producers() || start > Offset::ZERO;
        if start > Offset::ZERO {
            // Who wrote what was deleted is only known from before.
            if let Some((_, reader)) = cut.core.readers().first() {
                copy_snapshots(reader.place(), &place, cut.end)?;
            }
        } else if let Some(snapshot) = log.producer_snapshot(true) {
            snapshot.write()?;
        }
        Ok((Copied { start, end: log.end() }, producers))
    }

    /// Whole batches from one of the replicas, or why there are none.
    fn read_somewhere(
        &self,
        core: &Core,
        next: Offset,
        end: Offset,
    ) -> (Option<Vec<u8>>, Option<Error>) {
        let mut first = None;
        for (_, reader) in core.readers() {
            match reader.read(next, end, COPY_BYTES) {
                Ok(Some(fetched)) => return (Some(fetched.bytes.to_vec()), None),
                Ok(None) => {}
                Err(error) => {
                    // What is damaged on one disk and unreadable on another is damaged.
                    let corrupt = matches!(error, Error::Corrupt { .. });
                    if corrupt || first.is_none() {
                        first = Some(error);
                    }
                }
            }
        }
        (None, first)
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
        };
        Ok(Log::open(place, settings, evidence)?.log)
    }
}

/// Makes what is sealed durable, with its side file, and closes it.
fn settle_sealed(log: &mut Log) -> Result<()> {
    for sealed in log.sealed().to_vec() {
        settle(&sealed, true).map_err(SettleError::into_error)?;
        log.on_settled(&sealed.segment, true);
    }
    Ok(())
}
