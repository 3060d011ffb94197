//! Reading everything there is and checking every byte of it.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, ErrorClass, Result};
use crate::log::LogReader;
use crate::partition::words_of;
use crate::segment::{ScanEnd, Scanner, Segment, log_name};
use crate::storage::OpenMode;
use crate::types::{DiskId, Offset, TopicPartition};

use super::{Partition, Store};

/// What to verify, and whom to tell how far it is.
///
/// # Examples
/// ```
/// use oncelog::{Store, VerifyOptions};
/// let store = Store::in_memory(1)?;
/// let report = store.verify(VerifyOptions::new())?;
/// assert!(report.damages.is_empty());
/// # Ok::<(), oncelog::Error>(())
/// ```
#[derive(Default)]
#[must_use]
pub struct VerifyOptions {
    repair: bool,
    progress: Option<Box<dyn FnMut(VerifyProgress) + Send>>,
}

impl VerifyOptions {
    /// Checks and reports.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether damage is repaired from another replica; the damaged bytes are kept in `quarantine/`. With
    /// one replica there is none to repair from: what is damaged is reported either way.
    pub fn repair(mut self, repair: bool) -> Self {
        self.repair = repair;
        self
    }

    /// Calls `progress` after each segment.
    pub fn progress(mut self, progress: impl FnMut(VerifyProgress) + Send + 'static) -> Self {
        self.progress = Some(Box::new(progress));
        self
    }
}

impl fmt::Debug for VerifyOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("VerifyOptions")
            .field("repair", &self.repair)
            .finish_non_exhaustive()
    }
}

/// How far a verification is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Bytes read so far.
    pub bytes: u64,
    /// Bytes that there are to read.
    pub bytes_total: u64,
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Partitions looked at.
    pub partitions: u64,
    /// Intact batches.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes of batches read.
    pub bytes: u64,
    /// What is not as it was written.
    pub damages: Vec<Damage>,
    /// Partitions that cannot be opened or read now, and why. Of these nothing is said otherwise.
    pub unread: Vec<(TopicPartition, String)>,
}

/// Offsets that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The partition.
    pub partition: TopicPartition,
    /// The offsets; those around them can be read.
    pub offsets: Range<Offset>,
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub reason: String,
    /// Whether it was put right from another replica.
    pub repaired: bool,
}

impl Store {
    /// Reads every batch of every partition, those of the store's own topics as well, and checks every checksum. Appends go on
    /// meanwhile; what they add after the start is not looked at.
    ///
    /// # Errors
    /// [`Error::Io`] when the process has too few handles; [`Error::Closed`]. Damage is no error here; it is in the report:
    /// sectors that cannot be read as well, and partitions that nobody can lead now.
    pub fn verify(&self, mut options: VerifyOptions) -> Result<VerifyReport> {
        let mut report = VerifyReport::default();
        let mut logs = Vec::new();
        for topic in self.all_topics() {
            for number in 0..topic.partitions {
                let partition = match self.partition(&topic.name, number) {
                    // Its topic was deleted meanwhile.
                    Err(Error::UnknownTopicOrPartition { .. }) => break,
                    Err(error) if is_its_own(&error) => {
                        let name = TopicPartition::new(topic.name.as_str(), number);
                        report.unread.push((name, words_of(&error)));
                        continue;
                    }
                    found => found?,
                };
                report.partitions += 1;
                let readers = partition.log_readers().into_iter();
                logs.extend(readers.map(|(disk, reader)| (partition.clone(), disk, reader)));
            }
        }
        let bytes_total = logs
            .iter()
            .flat_map(|(_, _, reader)| {
                reader.segments().iter().map(|segment| segment.position()).collect::<Vec<_>>()
            })
            .sum();
        for (partition, disk, reader) in logs {
            let (known, start) = (report.damages.len(), reader.log_start());
            verify_log(partition.name(), &reader, &mut report, &mut |bytes| {
                if let Some(progress) = &mut options.progress {
                    progress(VerifyProgress { bytes, bytes_total });
                }
            })?;
            if report.damages.len() == known {
                continue;
            }
            let mut found = report.damages.split_off(known);
            if self.shared().options.read_only {
                self.keep_viewed(&partition, disk, &mut found, &mut report)?;
            } else {
                self.keep_lost(&partition, disk, &reader, start, &mut found)?;
            }
            if options.repair {
                for damage in &mut found {
                    damage.repaired = self.repair(partition.name(), disk, &damage.offsets)?;
                }
            }
            report.damages.append(&mut found);
        }
        Ok(report)
    }

    /// Leaves out what was not lost, but deleted meanwhile: by retention, with the topic, or with a replica that has moved.
    fn keep_lost(
        &self,
        partition: &Partition,
        disk: DiskId,
        reader: &Arc<LogReader>,
        before: Offset,
        damages: &mut Vec<Damage>,
    ) -> Result<()> {
        // What a closed store's files say may be another's by now.
        self.check_open()?;
        let start = partition.log_start_offset();
        // What a segment holds below the start it had before is rot like any other.
        damages.retain(|Damage { offsets, .. }| {
            offsets.end > start || offsets.start >= start || offsets.start < before
        });
        let is_there =
            |(on, log): (DiskId, Arc<LogReader>)| on == disk && Arc::ptr_eq(&log, reader);
        let has_moved = !partition.log_readers().into_iter().any(is_there);
        if partition.is_gone() || has_moved {
            damages.clear();
        }
        Ok(())
    }

    /// As [`Store::keep_lost`], of a view. What was deleted is not its own to look after: a power loss may have brought some of
    /// it back.
    fn keep_viewed(
        &self,
        partition: &Partition,
        disk: DiskId,
        damages: &mut Vec<Damage>,
        report: &mut VerifyReport,
    ) -> Result<()> {
        self.check_open()?;
        let epoch = partition.leader_epoch();
        self.shared().refresh()?;
        let Ok(described) = self.shared().described(partition.topic_id(), partition.name()) else {
            damages.clear();
            return Ok(());
        };
        let start = described.log_start.max(partition.log_start_offset());
        damages.retain(|damage| damage.offsets.end > start);
        let leads = (described.leader, described.leader_epoch) == (Some(disk), epoch);
        if !leads && !damages.is_empty() {
            // Another leads, or did meanwhile: this log may have been cut, or moved away.
            damages.clear();
            let error = Error::NoLeader { partition: partition.name().clone() };
            report.unread.push((partition.name().clone(), words_of(&error)));
        }
        Ok(())
    }
}

impl Store {
    fn repair(
        &self,
        partition: &TopicPartition,
        disk: DiskId,
        damaged: &Range<Offset>,
    ) -> Result<bool> {
        let shared = self.shared();
        let _operating = shared.operate()?;
        // Deleted meanwhile, there is nothing to repair.
        let Ok(topic) = shared.topic(partition.topic()) else { return Ok(false) };
        let slot = topic.slots.read().get(partition.partition() as usize).cloned();
        let Some(slot) = slot else { return Ok(false) };
        let core = shared.open_core(&topic, &slot)?;
        match core.repair(disk, damaged.start, shared.clock.now()) {
            // The disk's matter; others are verified and repaired all the same.
            Err(error @ Error::Io { .. }) if error.class() == ErrorClass::Fatal => {
                core.background_failed("repairing a segment", &error);
            }
            repaired => drop(repaired?),
        }
        Ok(core.is_sound(disk, damaged))
    }
}

/// Whether other partitions can be read all the same.
fn is_its_own(error: &Error) -> bool {
    match error {
        Error::NoLeader { .. } => true,
        Error::Closed => false,
        other => other.class() == ErrorClass::Fatal,
    }
}

fn verify_log(
    partition: &TopicPartition,
    reader: &LogReader,
    report: &mut VerifyReport,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let mut expected = reader.log_start();
    for segment in reader.segments().iter() {
        if segment.base > expected {
            report.damages.push(damage(
                partition,
                segment,
                expected..segment.base,
                "missing".into(),
            ));
        }
        expected = segment.end();
        match verify_segment(partition, segment, report) {
            // Sectors that cannot be read are damage like any other.
            Err(error @ Error::Io { .. }) if error.class() == ErrorClass::Fatal => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                let reason = format!("cannot be read: {}", cause.unwrap_or_default());
                report.damages.push(damage(partition, segment, segment.base..expected, reason));
            }
            verified => verified?,
        }
        progress(report.bytes);
    }
    Ok(())
}

/// Walks a segment; behind damage, the walk goes on at the next intact batch.
fn verify_segment(
    partition: &TopicPartition,
    segment: &Arc<Segment>,
    report: &mut VerifyReport,
) -> Result<()> {
    let (end, limit) = (segment.end(), segment.position());
    let name = log_name(segment.base);
    let place = &segment.place;
    let file = match place.disk.open(&place.path(&name), OpenMode::Read) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let missing = damage(partition, segment, segment.base..end, "missing".into());
            report.damages.push(missing);
            return Ok(());
        }
        Err(error) => return Err(place.io_error(&name, "open", error)),
    };
    let mut scanner = Scanner::new(place, segment.base);
    loop {
        let scan = scanner.walk(&*file, limit, Some(end))?;
        report.batches += scan.batches;
        report.records += scan.records;
        report.bytes += scan.position.saturating_sub(scan.started_at);
        if scan.end >= end {
            return Ok(());
        }
        let beyond = scanner.look_beyond(&*file, scan.position, scan.end)?;
        let reason = match &scan.stop {
            ScanEnd::Bad(source) => source.to_string(),
            ScanEnd::Clean => "missing".to_owned(),
        };
        let next = beyond.first.filter(|(_, base)| *base < end);
        let to = next.map_or(end, |(_, base)| base);
        report.damages.push(damage(partition, segment, scan.end..to, reason));
        let Some((position, base)) = next else {
            return Ok(());
        };
        scanner = Scanner::new(place, segment.base).resume(
            position,
            base,
            scan.max_timestamp,
            scan.index,
        );
    }
}

fn damage(
    partition: &TopicPartition,
    segment: &Segment,
    offsets: Range<Offset>,
    reason: String,
) -> Damage {
    let path = segment.place.full_path(&log_name(segment.base));
    Damage { partition: partition.clone(), offsets, path, reason, repaired: false }
}
