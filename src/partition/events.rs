//! What happened to a store that its owner should know: a bounded history and its readers.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::types::{DiskId, LeaderEpoch, Offset, Timestamp, TopicPartition};

/// Events kept for readers that come later or are slow.
const EVENTS_MAX: usize = 4096;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When, by the store's clock.
    pub timestamp: Timestamp,
    /// What.
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// The store was opened.
    Opened {
        /// Whether the last stop flushed and recorded everything.
        clean: bool,
        /// Bytes that had to be scanned.
        scanned_bytes: u64,
    },
    /// Who wrote records below an offset, which were deleted, is not known any more, because the files that told of it
    /// are damaged: a duplicate of such a record would not be recognised.
    ProducersForgotten {
        /// The partition.
        partition: TopicPartition,
        /// The log start offset.
        below: Offset,
    },
    /// After a crash, the bytes behind `from` were no whole batches, and were cut.
    TailCut {
        /// The partition.
        partition: TopicPartition,
        /// The first offset that will be given again, under a new leader epoch.
        from: Offset,
        /// How many bytes of the file were cut.
        bytes: u64,
        /// Where they are kept, if there was anything to keep and room for it.
        kept: Option<PathBuf>,
        /// What was wrong with the first of them.
        reason: String,
    },
    /// Records that were durable cannot be read; the bytes are kept.
    Damaged {
        /// The partition.
        partition: TopicPartition,
        /// What cannot be read. Empty: only the file's own header is damaged.
        offsets: Range<Offset>,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file that does not belong to the store was found. It is left alone, but for one with a segment's name: that is moved
    /// to `quarantine/`.
    ForeignFile {
        /// The file, where it is now.
        path: PathBuf,
    },
    /// A replica was taken out of service, because its disk failed.
    ReplicaFenced {
        /// The partition.
        partition: TopicPartition,
        /// The disk.
        disk: DiskId,
        /// Offsets that are not known to be on stable storage.
        at_risk: Range<Offset>,
        /// What failed.
        cause: String,
    },
    /// Another replica leads a partition, or none can.
    LeaderChanged {
        /// The partition.
        partition: TopicPartition,
        /// The disk whose replica leads.
        leader: Option<DiskId>,
        /// Its reign.
        epoch: LeaderEpoch,
        /// Acknowledged records that nobody has any more: the topic allowed an unclean election. Empty where those who had
        /// them are away, and it is not known how far they went.
        lost: Option<Range<Offset>>,
    },
    /// Of two disks that went on without each other, this one gave way.
    GaveWay {
        /// The partition.
        partition: TopicPartition,
        /// The disk.
        disk: DiskId,
        /// What its replica had alone.
        offsets: Range<Offset>,
    },
    /// Other replicas of a partition are in sync than before.
    InSyncChanged {
        /// The partition.
        partition: TopicPartition,
        /// The disks whose replicas are in sync, the leader's first.
        in_sync: Vec<DiskId>,
    },
    /// A directory that was given is no disk of the store, and was left alone.
    DirectoryLeftOut {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A disk was taken out of service, or could not be brought in.
    DiskOffline {
        /// The disk.
        disk: DiskId,
        /// Why.
        cause: String,
    },
    /// A disk is in service again, or for the first time.
    DiskOnline {
        /// The disk.
        disk: DiskId,
        /// Its directory.
        path: PathBuf,
    },
    /// Old segments were removed, as the topic's retention says.
    RetentionApplied {
        /// The partition.
        partition: TopicPartition,
        /// The new log start offset.
        log_start: Offset,
    },
    /// Every sealed byte of a disk was read and checked.
    Scrubbed {
        /// The disk.
        disk: DiskId,
        /// Sound bytes that were read.
        bytes: u64,
        /// Damages that were found; each had an event of its own, and one for its repair.
        damages: u64,
    },
    /// Background work failed and will be tried again.
    BackgroundFailed {
        /// The partition, if it concerns one.
        partition: Option<TopicPartition>,
        /// What was tried and what went wrong.
        reason: String,
    },
    /// A file that has a second copy was damaged and was written anew from it.
    Repaired {
        /// The file.
        path: PathBuf,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            EventKind::Opened { clean: true, .. } => write!(out, "opened after a clean stop"),
            EventKind::Opened { clean: false, scanned_bytes } => {
                write!(out, "opened after an unclean stop, {scanned_bytes} bytes scanned")
            }
            EventKind::ProducersForgotten { partition, below } => {
                write!(
                    out,
                    "{partition}: the producers of the deleted records below {below} are forgotten"
                )
            }
            EventKind::TailCut { partition, from, bytes, kept, reason } => {
                write!(out, "{partition}: {bytes} bytes cut at offset {from}: {reason}")?;
                kept.as_ref().map_or(Ok(()), |path| write!(out, "; kept in {}", path.display()))
            }
            EventKind::Damaged { partition, offsets, path, reason } => write!(
                out,
                "{partition}: offsets {}..{} are damaged in {}: {reason}",
                offsets.start,
                offsets.end,
                path.display()
            ),
            EventKind::ForeignFile { path } => {
                write!(out, "{}: not ours", path.display())
            }
            EventKind::ReplicaFenced { partition, disk, at_risk, cause } => write!(
                out,
                "{partition}: replica on {disk} taken out of service, offsets {}..{} at risk: {cause}",
                at_risk.start, at_risk.end
            ),
            EventKind::LeaderChanged { partition, leader, epoch, lost } => {
                match leader {
                    Some(leader) => write!(out, "{partition}: {leader} leads in epoch {epoch}")?,
                    None => write!(out, "{partition}: no replica can lead")?,
                }
                lost.as_ref().map_or(Ok(()), |lost| {
                    if lost.is_empty() {
                        return write!(
                            out,
                            "; what there was from offset {} on is lost",
                            lost.start
                        );
                    }
                    write!(out, "; offsets {}..{} are lost", lost.start, lost.end)
                })
            }
            EventKind::GaveWay { partition, disk, offsets } => {
                let (from, to) = (offsets.start, offsets.end);
                write!(
                    out,
                    "{partition}: {disk} gives up offsets {from} to {to}, which it had alone"
                )
            }
            EventKind::InSyncChanged { partition, in_sync } => {
                let disks: Vec<_> = in_sync.iter().map(|disk| disk.0.to_string()).collect();
                write!(out, "{partition}: in sync on disks {}", disks.join(", "))
            }
            EventKind::DirectoryLeftOut { path, reason } => {
                write!(out, "{}: left out: {reason}", path.display())
            }
            EventKind::DiskOffline { disk, cause } => write!(out, "{disk} is offline: {cause}"),
            EventKind::DiskOnline { disk, path } => {
                write!(out, "{disk} is online: {}", path.display())
            }
            EventKind::RetentionApplied { partition, log_start } => {
                write!(out, "{partition}: retention moved the start to offset {log_start}")
            }
            EventKind::Scrubbed { disk, bytes, damages } => {
                write!(out, "{disk} was read through: {bytes} bytes, {damages} damages")
            }
            EventKind::BackgroundFailed { partition: Some(partition), reason } => {
                write!(out, "{partition}: {reason}")
            }
            EventKind::BackgroundFailed { partition: None, reason } => write!(out, "{reason}"),
            EventKind::Repaired { path } => {
                write!(out, "{}: repaired from its copy", path.display())
            }
        }
    }
}

/// The history that all readers share.
#[derive(Debug, Default)]
pub(crate) struct EventLog {
    state: Mutex<History>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct History {
    events: VecDeque<Event>,
    /// The number of the first event that is kept.
    first: u64,
}

impl EventLog {
    pub(crate) fn push(&self, timestamp: Timestamp, kind: EventKind) {
        let mut history = self.state.lock();
        if history.events.len() == EVENTS_MAX {
            history.events.pop_front();
            history.first += 1;
        }
        history.events.push_back(Event { timestamp, kind });
        drop(history);
        self.grown.notify_all();
    }

    pub(crate) fn subscribe(self: &Arc<Self>) -> Events {
        Events { log: Arc::clone(self), next: 0, missed: 0 }
    }
}

/// Reads the events of a store, from the oldest that is kept. As an iterator it ends, for now, where
/// nothing newer has happened; it can be asked again.
#[derive(Clone, Debug)]
pub struct Events {
    log: Arc<EventLog>,
    next: u64,
    missed: u64,
}

impl Events {
    /// The next event, after waiting up to `timeout` for it.
    pub fn wait(&mut self, timeout: Duration) -> Option<Event> {
        let log = Arc::clone(&self.log);
        let deadline = Instant::now().checked_add(timeout);
        let mut history = log.state.lock();
        loop {
            if let Some(event) = self.take(&history) {
                return Some(event);
            }
            let Some(deadline) = deadline else {
                log.grown.wait(&mut history);
                continue;
            };
            if log.grown.wait_until(&mut history, deadline).timed_out() {
                return self.take(&history);
            }
        }
    }

    /// How many events were dropped before this reader came to them.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.missed
    }

    fn take(&mut self, history: &History) -> Option<Event> {
        if self.next < history.first {
            self.missed += history.first - self.next;
            self.next = history.first;
        }
        let at = usize::try_from(self.next - history.first).ok()?;
        let event = history.events.get(at)?.clone();
        self.next += 1;
        Some(event)
    }
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let log = Arc::clone(&self.log);
        let history = log.state.lock();
        self.take(&history)
    }
}
