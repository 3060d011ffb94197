//! Putting a damaged segment right, with batches that other replicas still hold.
//!
//! The segment is written anew beside the damaged one: its own batches where they are sound, another
//! replica's where they are not. The damaged bytes are kept aside, then the new file takes the old one's
//! name. A crash before that leaves the damage, to be found and repaired again; after it, the repaired
//! segment.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::error::Error;
use crate::record::BatchHeader;
use crate::segment::{DATA_START, FileHeader, Segment, log_name, side_name};
use crate::storage::{File, OpenMode, parent, write_all_at};
use crate::types::{Offset, Timestamp};

use super::recovery::QUARANTINE;
use super::{Log, LogReader, Sealed, remove_segment_files};

const COPY_BYTES: usize = 1 << 20;

/// What came of a repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repair {
    /// The segment is whole again.
    Done,
    /// No other replica has what is damaged, or there is no such segment.
    Nowhere,
    /// A flush of the segment is on its way; later.
    NotNow,
}

/// A file and how many bytes of it are in use.
type Written = (Arc<dyn File>, u64);

impl Log {
    /// Writes the segment that holds `offset` anew, taking what is damaged from `sources`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`]; the segment is then as it was.
    pub(crate) fn repair(
        &mut self,
        offset: Offset,
        sources: &[Arc<LogReader>],
        now: Timestamp,
    ) -> Result<Repair, Error> {
        if self.active.as_ref().is_some_and(|active| active.segment().base <= offset) {
            if self.active.as_ref().is_some_and(|active| active.is_in_flight()) {
                return Ok(Repair::NotNow);
            }
            self.seal(now)?;
        }
        let segments = self.reader.segments();
        // Below the log start nothing is asked for, and nobody may have it.
        let offset = offset.max(self.reader.log_start());
        let held = segments.iter().rev().find(|segment| segment.base <= offset).cloned();
        let Some(damaged) = held.or_else(|| self.lost_first(&segments, sources)) else {
            return Ok(Repair::Nowhere);
        };
        let Some(base) = self.base_of(&damaged, sources) else { return Ok(Repair::Nowhere) };
        let next = segments.iter().find(|segment| segment.base > damaged.base);
        // A segment whose last batches are gone ends where the next one begins.
        let end = next.map_or(self.end, |next| next.base).max(damaged.end());
        let Some((file, position)) = self.write_anew(&damaged, base..end, sources, now)? else {
            return Ok(Repair::Nowhere);
        };
        self.keep_aside(&damaged)?;
        let name = log_name(base);
        let place = &self.place;
        let fault = |error| place.io_error(&name, "repair", error);
        let temporary = place.path(&format!("{name}.tmp"));
        place.disk.rename(&temporary, &place.path(&name)).map_err(fault)?;
        match place.disk.remove(&place.path(&side_name(base))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fault(error)),
            _ => {}
        }
        place.disk.sync_dir(&place.directory).map_err(fault)?;
        let repaired = Arc::new(Segment::sealed(place.clone(), base, end, position));
        repaired.assume_last_append(damaged.last_append_or_load().unwrap_or(now));
        self.sealed.retain(|sealed| !Arc::ptr_eq(&sealed.segment, &damaged));
        self.sealed.push(Sealed { segment: Arc::clone(&repaired), file, at: now, settled: true });
        self.reader.put(repaired);
        if base > damaged.base {
            // A crash before this leaves a segment below the log start, which the next open removes.
            self.reader.raise_log_start(self.reader.log_start());
            remove_segment_files(&self.place, damaged.base)?;
        }
        Ok(Repair::Done)
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

    /// Writes the temporary file. `None`: something is nowhere to be had; no file is left.
    fn write_anew(
        &self,
        damaged: &Segment,
        offsets: Range<Offset>,
        sources: &[Arc<LogReader>],
        now: Timestamp,
    ) -> Result<Option<Written>, Error> {
        let (base, end) = (offsets.start, offsets.end);
        let place = &self.place;
        let name = log_name(base);
        let temporary = place.path(&format!("{name}.tmp"));
        let fault = |error| place.io_error(&name, "repair", error);
        match place.disk.remove(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fault(error)),
            _ => {}
        }
        let file = place.disk.open(&temporary, OpenMode::Create).map_err(fault)?;
        let header = FileHeader::new(&place.identity, base, now).encode();
        let written = (|| {
            write_all_at(&*file, 0, &header).map_err(fault)?;
            let (mut position, mut next) = (DATA_START, base);
            while next < end {
                let own = damaged.read(next, end, COPY_BYTES);
                let fetched = match own {
                    Ok(Some(fetched)) => Some(fetched),
                    _ => sources
                        .iter()
                        .find_map(|source| source.read(next, end, COPY_BYTES).ok().flatten()),
                };
                let Some(fetched) = fetched else { return Ok(None) };
                write_all_at(&*file, position, &fetched.bytes).map_err(fault)?;
                position += fetched.bytes.len() as u64;
                next = fetched.next;
            }
            file.sync_data().map_err(fault)?;
            Ok(Some((Arc::clone(&file), position)))
        })();
        if !matches!(written, Ok(Some(_))) {
            // Half a file under a temporary name is in nobody's way; the next attempt clears it as well.
            let _ = place.disk.remove(&temporary);
        }
        written
    }

    /// Copies the damaged file to the quarantine, as far as it can be read.
    fn keep_aside(&self, damaged: &Segment) -> Result<(), Error> {
        let place = &self.place;
        let name = log_name(damaged.base);
        let fault = |error| place.io_error(&name, "keep aside", error);
        let Ok(from) = place.disk.open(&place.path(&name), OpenMode::Read) else {
            return Ok(()); // there is nothing to keep
        };
        match place.disk.create_dir(QUARANTINE) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(fault(error)),
            _ => {}
        }
        let stem = place.directory.replace('/', "-");
        let mut number = 0;
        let (path, to) = loop {
            let path = format!("{QUARANTINE}/{stem}-{name}.damaged-{number}");
            match place.disk.open(&path, OpenMode::Create) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                opened => break (path, opened.map_err(fault)?),
            }
        };
        let mut buffer = vec![0; COPY_BYTES];
        let mut position = 0;
        // What cannot be read is lost already.
        while let Ok(count @ 1..) = from.read_at(position, &mut buffer) {
            write_all_at(&*to, position, &buffer[..count]).map_err(fault)?;
            position += count as u64;
        }
        to.sync_data().map_err(fault)?;
        place.disk.sync_dir(parent(&path)).map_err(fault)
    }
}
