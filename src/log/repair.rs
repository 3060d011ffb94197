//! Putting a damaged segment right, with batches that other replicas still hold.
//!
//! The segment is written anew beside the damaged one: its own batches where they are sound, another replica's where they
//! are not, and last those of a file that is still open and has lost its name. What nobody has is left out: readers find
//! a gap there, as they found damage before, and a replica that comes back may still close it. The damaged bytes are kept
//! aside, then the new file takes the old one's name. A crash before that leaves the damage, to be found and repaired
//! again; after it, the repaired segment.
//!
//! A sealed segment does not change, so all of it is read and written under no lock; the log is asked before, and again for
//! the new segment to take the old one's place.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::error::Error;
use crate::record::BatchHeader;
use crate::segment::{DATA_START, Fetched, FileHeader, Place, Segment, log_name, side_name};
use crate::storage::{File, OpenMode, write_all_at};
use crate::types::{Offset, Timestamp};

use super::{Log, LogReader, Sealed, quarantine, remove_segment_files};

const COPY_BYTES: usize = 1 << 20;

/// What came of a repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repair {
    /// What could be had is in its place again; something may be lost for good.
    Done,
    /// Nothing is damaged there.
    Sound,
    /// No other replica has any of what is damaged, or there is no such segment.
    Nowhere,
    /// A flush of the segment is on its way, or the log is at something else; later.
    NotNow,
}

/// A damaged segment, to be written anew.
pub(crate) struct Rewrite {
    place: Place,
    damaged: Arc<Segment>,
    /// The damaged segment by its name, as the next opening would find it.
    named: Segment,
    /// There is no file of it, and it is not among the log's segments.
    was_lost: bool,
    /// Where the damaged segment ended when it was looked up.
    damaged_end: Offset,
    offsets: Range<Offset>,
    /// It is not the last one: offsets up to its end are proven to have been there.
    followed: bool,
    sources: Vec<Arc<LogReader>>,
}

/// The new file, whole and synced.
pub(crate) struct Rewritten {
    file: Arc<dyn File>,
    position: u64,
}

fn begins_at(fetched: &Fetched, offset: Offset) -> bool {
    BatchHeader::trusted(&fetched.bytes).is_some_and(|header| header.base_offset == offset)
}

/// What a walk over a segment found.
#[derive(Clone, Copy, Default)]
struct Walked {
    /// Others have what is damaged, or some of it.
    healed: bool,
    /// Some of it nobody has.
    lost: bool,
    /// Nothing may be concluded, or written.
    stuck: bool,
}

impl Log {
    /// Writes the segment that holds `offset` anew, with what `sources` have, where nobody else uses the log.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`]; the segment is then as it was.
    pub(crate) fn repair(
        &mut self,
        offset: Offset,
        sources: &[Arc<LogReader>],
        now: Timestamp,
    ) -> Result<Repair, Error> {
        let rewrite = match self.begin_repair(offset, sources, now)? {
            Ok(rewrite) => rewrite,
            Err(outcome) => return Ok(outcome),
        };
        match rewrite.run(now)? {
            Ok(rewritten) => self.finish_repair(&rewrite, rewritten, now),
            Err(outcome) => Ok(outcome),
        }
    }

    /// Looks up the segment that holds `offset`, for [`Rewrite::run`] to write it anew with what `sources` have.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`].
    pub(crate) fn begin_repair(
        &mut self,
        offset: Offset,
        sources: &[Arc<LogReader>],
        now: Timestamp,
    ) -> Result<Result<Rewrite, Repair>, Error> {
        // Below the log start nothing is asked for, and nobody may have it.
        let offset = offset.max(self.reader.log_start());
        if let Some(active) = self.active.as_ref().filter(|active| active.segment().base <= offset)
        {
            if self.rolls || active.is_in_flight() {
                return Ok(Err(Repair::NotNow));
            }
            if active.segment().is_empty() {
                // The next append makes it anew, under the same name.
                self.active = None;
                self.reader.pop();
                return Ok(Err(Repair::Sound));
            }
            self.seal(now)?;
        }
        let segments = self.reader.segments();
        let held = segments.iter().rev().find(|segment| segment.base <= offset).cloned();
        let was_lost = held.is_none();
        let Some(damaged) = held.or_else(|| self.lost_first(&segments, sources)) else {
            return Ok(Err(Repair::Nowhere));
        };
        let Some(base) = self.base_of(&damaged, sources) else {
            return Ok(Err(Repair::Nowhere));
        };
        Ok(Ok(Rewrite {
            place: self.place.clone(),
            was_lost,
            damaged_end: damaged.end(),
            offsets: base..self.end_of(&damaged, &segments),
            followed: segments.iter().any(|segment| segment.base > damaged.base),
            sources: sources.to_vec(),
            named: damaged.by_name(),
            damaged,
        }))
    }

    /// Puts the new segment in the old one's place.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`]; the segment is then as it was.
    pub(crate) fn finish_repair(
        &mut self,
        rewrite: &Rewrite,
        rewritten: Rewritten,
        now: Timestamp,
    ) -> Result<Repair, Error> {
        let Rewrite { damaged, offsets, .. } = rewrite;
        let (base, end) = (offsets.start, offsets.end);
        if !self.is_as_it_was(rewrite) {
            rewrite.discard();
            return Ok(Repair::NotNow);
        }
        let name = log_name(base);
        let place = &self.place;
        let fault = |error| place.io_error(&name, "repair", error);
        place.disk.rename(&rewrite.temporary(), &place.path(&name)).map_err(fault)?;
        match place.disk.remove(&place.path(&side_name(base))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fault(error)),
            _ => {}
        }
        place.disk.sync_dir(&place.directory).map_err(fault)?;
        let Rewritten { file, position } = rewritten;
        let repaired = Arc::new(Segment::sealed(place.clone(), base, end, position));
        repaired.assume_last_append(damaged.last_append_or_load().unwrap_or(now));
        self.sealed.retain(|sealed| !Arc::ptr_eq(&sealed.segment, damaged));
        self.sealed.push(Sealed { segment: Arc::clone(&repaired), file, at: now, settled: true });
        self.reader.put(repaired);
        if base > damaged.base {
            // A crash before this leaves a segment below the log start, which the next open removes.
            self.reader.raise_log_start(self.reader.log_start());
            remove_segment_files(&self.place, damaged.base)?;
        }
        Ok(Repair::Done)
    }

    /// Whether the segment was neither removed nor cut since it was looked up.
    fn is_as_it_was(&self, rewrite: &Rewrite) -> bool {
        let Rewrite { damaged, offsets, .. } = rewrite;
        let segments = self.reader.segments();
        let same = if rewrite.was_lost {
            segments.first().is_none_or(|first| first.base >= offsets.end)
                && self.reader.log_start() < offsets.end
        } else {
            segments.iter().any(|segment| Arc::ptr_eq(segment, damaged))
        };
        same && damaged.end() == rewrite.damaged_end
            && self.end_of(damaged, &segments) == offsets.end
    }

    /// Where the segment ends: one whose last batches are gone, where the next one begins.
    fn end_of(&self, damaged: &Segment, segments: &[Arc<Segment>]) -> Offset {
        let next = segments.iter().find(|segment| segment.base > damaged.base);
        next.map_or(self.end, |next| next.base).max(damaged.end())
    }

    /// The segment that was in front of all others, or the only one, as another replica's batches tell where it began.
    fn lost_first(
        &self,
        segments: &[Arc<Segment>],
        sources: &[Arc<LogReader>],
    ) -> Option<Arc<Segment>> {
        let start = self.reader.log_start();
        let end = segments.first().map_or(self.end, |first| first.base);
        let first = sources.iter().find_map(|source| source.read(start, end, 1).ok().flatten())?;
        let base = BatchHeader::trusted(&first.bytes)?.base_offset;
        Some(Arc::new(Segment::sealed(self.place.clone(), base, end, DATA_START)))
    }

    /// Where the segment begins anew: where it began, or with the batch that holds the log start.
    fn base_of(&self, damaged: &Segment, sources: &[Arc<LogReader>]) -> Option<Offset> {
        let start = self.reader.log_start();
        if damaged.base >= start {
            return Some(damaged.base);
        }
        let own = damaged.read(start, self.end, 1).ok().flatten();
        let elsewhere =
            || sources.iter().find_map(|source| source.read(start, self.end, 1).ok().flatten());
        let first = own.or_else(elsewhere)?;
        BatchHeader::trusted(&first.bytes).map(|header| header.base_offset)
    }
}

impl Rewrite {
    /// Writes the new file, and keeps the damaged one's bytes aside. `Err`: there is nothing to write.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`]; no file is left then.
    pub(crate) fn run(&self, now: Timestamp) -> Result<Result<Rewritten, Repair>, Error> {
        let found = self.walk(|_| Ok(()))?;
        let shrinks = self.offsets.start > self.damaged.base;
        if found.stuck || found.lost && !found.healed {
            return Ok(Err(Repair::Nowhere));
        }
        if !found.healed && !shrinks {
            return Ok(Err(Repair::Sound));
        }
        let outcome = self.write(now);
        if !matches!(outcome, Ok(Some(_))) {
            self.discard();
        }
        Ok(outcome?.ok_or(Repair::Nowhere))
    }

    fn write(&self, now: Timestamp) -> Result<Option<Rewritten>, Error> {
        let Self { place, offsets, .. } = self;
        let name = log_name(offsets.start);
        let fault = |error| place.io_error(&name, "repair", error);
        self.discard();
        let file = place.disk.open(&self.temporary(), OpenMode::Create).map_err(fault)?;
        let header = FileHeader::new(&place.identity, offsets.start, now).encode();
        write_all_at(&*file, 0, &header).map_err(fault)?;
        let mut position = DATA_START;
        let found = self.walk(|bytes| {
            write_all_at(&*file, position, bytes).map_err(fault)?;
            position += bytes.len() as u64;
            Ok(())
        })?;
        if found.stuck {
            return Ok(None);
        }
        file.sync_data().map_err(fault)?;
        self.keep_aside()?;
        Ok(Some(Rewritten { file, position }))
    }

    /// Takes the batches in order, each from whoever has it.
    fn walk(&self, mut take: impl FnMut(&[u8]) -> Result<(), Error>) -> Result<Walked, Error> {
        let end = self.offsets.end;
        let (mut next, mut walked) = (self.offsets.start, Walked::default());
        while next < end {
            let own = self.named.read(next, end, COPY_BYTES);
            // What cannot be read may yet be, another time.
            let may_be_lost = !matches!(own, Err(Error::Io { .. }));
            let others = self.sources.iter().map(|source| source.read(next, end, COPY_BYTES));
            let held = std::iter::once_with(|| self.damaged.read(next, end, COPY_BYTES));
            let mut later = None;
            let fetched =
                [own].into_iter().chain(others).chain(held).enumerate().find_map(|(at, read)| {
                    match read {
                        Ok(Some(fetched)) if begins_at(&fetched, next) => Some((at, fetched)),
                        Err(Error::Corrupt { offsets, .. }) if offsets.end > next => {
                            later = Some(
                                later.map_or(offsets.end, |later: Offset| later.min(offsets.end)),
                            );
                            None
                        }
                        _ => None,
                    }
                });
            match (fetched, later) {
                (Some((at, fetched)), _) => {
                    walked.healed |= at > 0;
                    take(&fetched.bytes)?;
                    next = fetched.next;
                }
                (None, Some(later)) if may_be_lost && (later < end || self.followed) => {
                    walked.lost = true;
                    next = later;
                }
                _ => {
                    walked.stuck = true;
                    return Ok(walked);
                }
            }
        }
        Ok(walked)
    }

    fn temporary(&self) -> String {
        self.place.path(&format!("{}.tmp", log_name(self.offsets.start)))
    }

    /// Removes the new file under its temporary name; one that stays is removed by the next repair, or at open.
    pub(crate) fn discard(&self) {
        let _ = self.place.disk.remove(&self.temporary());
    }

    /// Copies the damaged file to the quarantine, as far as it can be read.
    fn keep_aside(&self) -> Result<(), Error> {
        let place = &self.place;
        let name = log_name(self.damaged.base);
        let fault = |error| place.io_error(&name, "keep aside", error);
        let Ok(from) = place.disk.open(&place.path(&name), OpenMode::Read) else {
            return Ok(()); // there is nothing to keep
        };
        let len = from.len().map_err(fault)?;
        let kept = quarantine::keep_bytes(place, &*from, 0..len, &format!("{name}.damaged"));
        kept.map(|_| ()).map_err(fault)
    }
}
