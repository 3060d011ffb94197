//! Damage: reported once, and repaired from another replica.
//!
//! Whoever meets it (a reader, a follower, the scrub) says so with [`Core::report_damage`], which asks for the repair;
//! that is done by the worker of the damaged disk, which holds up nobody else if the disk is slow or hangs.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Error, ErrorClass};
use crate::log::{LogReader, Repair};
use crate::types::{DiskId, Offset, Timestamp};

use super::core::{Core, State, words_of};
use super::events::EventKind;

/// Damages that are remembered, to be reported once.
const REPORTED_MAX: usize = 256;

/// Bytes that are looked at together.
const CHECKED_BYTES: usize = 1 << 20;

/// What an error says of the log that was read at `from`: where it is damaged, in which file, and how. Sectors that
/// cannot be read are damage as well: of their segment, which a repair writes anew elsewhere on the disk.
fn damage_of(
    reader: &LogReader,
    from: Offset,
    error: &Error,
) -> Option<(Range<Offset>, PathBuf, String)> {
    match error {
        Error::Corrupt { offsets, path, source, .. } => {
            Some((offsets.clone(), path.clone(), source.to_string()))
        }
        Error::Io { .. } if error.class() == ErrorClass::Fatal => {
            let segments = reader.segments();
            let held = segments.iter().rev().find(|segment| segment.base <= from)?;
            Some((held.base..held.end(), reader.path_of(from), words_of(error)))
        }
        _ => None,
    }
}

/// What a step of the scrub did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scrubbed {
    /// Where to go on.
    pub(crate) next: Offset,
    /// Bytes that were read and are sound.
    pub(crate) bytes: u64,
    /// Damage was found that was not known.
    pub(crate) damaged: bool,
}

impl Core {
    /// Tells of damage that was met in the leader's log when it was read at `from`, and asks for its repair.
    pub(super) fn report_damage(&self, from: Offset, error: &Error) {
        let Some((offsets, path, reason)) = damage_of(&self.reader(), from, error) else { return };
        let mut state = self.state.lock();
        let disk = state.leading.disk;
        if !self.note_damage(&mut state, disk, &offsets) {
            return;
        }
        if state.replicas > 1 {
            state.damaged.push((disk, offsets.start));
            state.leading.ask_for_attention(self);
        }
        drop(state);
        self.report_damaged(offsets, path, reason);
    }

    /// Whether it is news.
    fn note_damage(&self, state: &mut State, disk: DiskId, offsets: &Range<Offset>) -> bool {
        let known = (disk, offsets.clone());
        if state.reported.contains(&known) {
            return false;
        }
        if state.reported.len() == REPORTED_MAX {
            state.reported.remove(0);
        }
        state.reported.push(known);
        true
    }

    fn report_damaged(&self, offsets: Range<Offset>, path: PathBuf, reason: String) {
        let partition = self.partition.clone();
        self.report(EventKind::Damaged { partition, offsets, path, reason });
    }

    /// Reads about `bytes_max` bytes of sealed segments of the replica on `disk`, from `from` on, checks every
    /// checksum, and repairs what is damaged. `None`: there is nothing more to look at.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`] of a repair.
    pub(crate) fn scrub(
        &self,
        disk: DiskId,
        from: Offset,
        bytes_max: usize,
        now: Timestamp,
    ) -> Result<Option<Scrubbed>, Error> {
        let readers = self.readers().into_iter();
        let Some((_, reader)) = readers.into_iter().find(|(other, _)| *other == disk) else {
            return Ok(None);
        };
        let segments = reader.segments();
        let sealed = segments.iter().rev().find(|segment| segment.is_sealed());
        let upper = sealed.map_or(Offset::ZERO, |segment| segment.end());
        let from = from.max(reader.log_start());
        let error = match reader.read(from, upper, bytes_max) {
            Ok(None) => return Ok(None),
            Ok(Some(fetched)) => {
                let bytes = fetched.bytes.len() as u64;
                return Ok(Some(Scrubbed { next: fetched.next, bytes, damaged: false }));
            }
            Err(error) => error,
        };
        if from < reader.log_start() {
            // Retention passed by.
            return Ok(Some(Scrubbed { next: reader.log_start(), bytes: 0, damaged: false }));
        }
        let Some((offsets, path, reason)) = damage_of(&reader, from, &error) else {
            return Err(error);
        };
        let next = offsets.end.max(from.next());
        let news = self.note_damage(&mut self.state.lock(), disk, &offsets);
        if news {
            self.report_damaged(offsets, path, reason);
        }
        self.repair(disk, from, now)?;
        Ok(Some(Scrubbed { next, bytes: 0, damaged: news }))
    }

    /// Repairs the damage on `disk` that was met since the last call.
    pub(super) fn repair_damage(&self, disk: DiskId, now: Timestamp) {
        let damaged: Vec<_> = {
            let mut state = self.state.lock();
            if state.damaged.is_empty() || self.repairs_of(disk).is_locked() {
                return; // it is looked at again
            }
            state.damaged.extract_if(.., |(other, _)| *other == disk).collect()
        };
        for (_, offset) in damaged {
            match self.repair(disk, offset, now) {
                Ok(_) => {}
                Err(error) => {
                    self.forget_damage(disk);
                    self.background_failed("repairing a segment", &error);
                }
            }
        }
    }

    /// Held while a segment on `disk` is written anew, or the replica there is opened; before the state's lock, never waited for behind it.
    pub(crate) fn repairs_of(&self, disk: DiskId) -> Arc<Mutex<()>> {
        Arc::clone(self.repairs.lock().entry(disk).or_default())
    }

    /// Has the workers of damaged disks look again.
    pub(super) fn ask_for_repairs(&self, state: &State) {
        for (disk, _) in &state.damaged {
            let all = std::iter::once(&state.leading).chain(&state.followers);
            if let Some(replica) = all.into_iter().find(|replica| replica.disk == *disk) {
                replica.ask_for_attention(self);
            }
        }
    }

    /// Writes the segment of the replica on `disk` that holds `offset` anew, taking what is damaged from
    /// the other replicas, or from a file that is open and was removed or replaced.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`].
    pub(crate) fn repair(
        &self,
        disk: DiskId,
        offset: Offset,
        now: Timestamp,
    ) -> Result<Repair, Error> {
        let (own, others): (Vec<_>, Vec<_>) =
            self.readers().into_iter().partition(|(other, _)| *other == disk);
        let sources: Vec<_> = others.into_iter().map(|(_, reader)| reader).collect();
        if own.is_empty() {
            return Ok(Repair::Nowhere);
        }
        // One at a time: they would write the same file.
        let alone = self.repairs_of(disk);
        let _alone = alone.lock();
        let begun = self.with_log(disk, |log| {
            let path = log.place().full_path("");
            log.begin_repair(offset, &sources, now).map(|rewrite| (rewrite, path))
        });
        let Some(begun) = begun else {
            self.repair_later(disk, offset);
            return Ok(Repair::NotNow);
        };
        let (rewrite, path) = begun?;
        let repaired = match rewrite {
            Ok(rewrite) => match rewrite.run(now)? {
                Ok(rewritten) => self
                    .with_log(disk, |log| log.finish_repair(&rewrite, rewritten, now))
                    .unwrap_or_else(|| {
                        rewrite.discard();
                        Ok(Repair::NotNow)
                    })?,
                Err(outcome) => outcome,
            },
            Err(outcome) => outcome,
        };
        match repaired {
            Repair::Done => {
                self.forget_damage(disk);
                self.report(EventKind::Repaired { path });
            }
            Repair::NotNow => self.repair_later(disk, offset),
            Repair::Sound | Repair::Nowhere => {}
        }
        Ok(repaired)
    }

    /// The next round of the disk's worker repairs it.
    pub(crate) fn repair_later(&self, disk: DiskId, offset: Offset) {
        let mut state = self.state.lock();
        if !state.damaged.contains(&(disk, offset)) {
            state.damaged.push((disk, offset));
        }
    }

    /// Whether the files of the replica on `disk` have all of these offsets.
    pub(crate) fn is_sound(&self, disk: DiskId, offsets: &Range<Offset>) -> bool {
        let Some((_, reader)) = self.readers().into_iter().find(|(other, _)| *other == disk) else {
            return false;
        };
        let mut next = offsets.start.max(reader.log_start());
        for segment in reader.segments().iter() {
            let upper = segment.end().min(offsets.end);
            let named = segment.by_name();
            while next < upper {
                match named.read(next, upper, CHECKED_BYTES) {
                    Ok(Some(fetched)) if segment.base <= next => next = fetched.next,
                    _ => return false,
                }
            }
        }
        next >= offsets.end
    }

    /// Damage on `disk` that is met from now on is news again.
    fn forget_damage(&self, disk: DiskId) {
        self.state.lock().reported.retain(|(damaged, _)| *damaged != disk);
    }
}
