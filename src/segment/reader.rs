//! Reading a segment: from an offset, or from a time.
//!
//! A read finds the last indexed place before the offset and walks batch by batch. Everything that
//! is handed out was checked: header, payload, and every length inside. Where a batch is damaged, or cannot be read,
//! the walk looks for the next intact header, so that only the damaged offsets are out of reach.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use crate::error::{DecodeError, Error, ErrorClass};
use crate::protocol::producer_state::transactions::AbortedRange;
use crate::record::{Batch, BatchHeader, HEADER_BYTES, find_header};
use crate::storage::{Mapping, OpenMode, PooledBuffer};
use crate::types::{Compression, Offset, Timestamp};

use super::batches::Batches;
use super::room::PAGE_BYTES;
use super::{DATA_START, Scanner, Segment, Source, SparseIndex, log_name};

/// Bytes read ahead of what was asked for, to find the first batch behind an index entry.
const SLACK_BYTES: usize = 8 << 10;
/// Bytes searched at a time for the next intact header.
const SEARCH_BYTES: usize = 1 << 20;
/// Bytes read at a time when only headers are wanted.
const HEADERS_BYTES: usize = 256 << 10;
/// Bytes read at a time when looking for a timestamp.
const TIME_BYTES: usize = 64 << 10;

/// Bytes of a segment, in memory for as long as this is held.
pub(crate) enum Bytes {
    /// In place: no copy was made.
    Mapped { map: Arc<Mapping>, range: Range<usize> },
    /// In a buffer of their own.
    Owned { buffer: PooledBuffer, range: Range<usize> },
}

impl Bytes {
    fn keep(self, part: Range<usize>) -> Self {
        match self {
            Self::Mapped { map, range } => {
                Self::Mapped { map, range: range.start + part.start..range.start + part.end }
            }
            Self::Owned { buffer, range } => {
                Self::Owned { buffer, range: range.start + part.start..range.start + part.end }
            }
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped { map, range } => map.bytes(range.clone()),
            Self::Owned { buffer, range } => &buffer[range.clone()],
        }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Bytes").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// Whole batches, checked.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) bytes: Bytes,
    /// The records of each compressed batch, in order.
    pub(crate) unpacked: Vec<Vec<u8>>,
    /// One past the last offset in `bytes`.
    pub(crate) next: Offset,
    /// Some of the batches carry decisions, or are subject to one.
    pub(crate) transactional: bool,
    /// Where batches begin that are not for the reader who asked, in order.
    pub(crate) hidden: Vec<Offset>,
}

impl Fetched {
    /// Whether there is a batch with records at or behind `from` for the reader who asked.
    pub(crate) fn has_records(&self, from: Offset) -> bool {
        !self.transactional
            || Batches::new(self).any(|(header, _)| !header.control && header.end_offset() > from)
    }
}

/// Where a walk over a segment stands.
#[derive(Clone, Copy)]
struct Walk {
    position: u64,
    expected: Offset,
}

impl Segment {
    /// Whole batches from the one that holds `from` on, all below `upper`; about `bytes_max` of them,
    /// and always at least one. `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if `from` lies in damaged offsets, [`Error::Io`].
    pub(crate) fn read(
        &self,
        from: Offset,
        upper: Offset,
        bytes_max: usize,
    ) -> Result<Option<Fetched>, Error> {
        let mut unread = None;
        let read = self.read_around(from, upper, bytes_max, &mut unread);
        // It may be had another time.
        read.map_err(|error| unread.unwrap_or(error))
    }

    /// Where the row goes on behind what cannot be read at `from`; `from`, if it can be read after all.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn goes_on_behind(&self, from: Offset) -> Result<Offset, Error> {
        match self.read_around(from, self.end(), 1, &mut None) {
            Ok(_) => Ok(from),
            Err(Error::Corrupt { offsets, .. }) => Ok(offsets.end),
            Err(error) => Err(error),
        }
    }

    /// As [`Segment::read`]; where `from` cannot be read, `unread` says why, and the error where the row goes on.
    fn read_around(
        &self,
        from: Offset,
        upper: Offset,
        bytes_max: usize,
        unread: &mut Option<Error>,
    ) -> Result<Option<Fetched>, Error> {
        let upper = upper.min(self.end());
        let mut walk = self.start_before(from)?;
        let mut want = bytes_max.saturating_add(SLACK_BYTES);
        let mut behind_damage = false;
        loop {
            let limit = self.position();
            if walk.position >= limit || from >= upper {
                // The file ends before the segment does: what is missing is damage, at `from` too.
                return if from < upper { Err(self.missing(walk.expected)) } else { Ok(None) };
            }
            *unread = None;
            let bytes = self.load_around(walk.position, want, limit, unread)?;
            if bytes.is_empty() && unread.is_none() {
                return Err(self.missing(walk.expected));
            }
            match self.take_batches(&bytes, walk, from, upper, bytes_max, behind_damage) {
                Taken::Batches { range, unpacked, next, transactional } => {
                    return Ok(Some(Fetched {
                        bytes: bytes.keep(range),
                        unpacked,
                        next,
                        transactional,
                        hidden: Vec::new(),
                    }));
                }
                Taken::Nothing => return Ok(None),
                Taken::More { walk: stopped, bytes: need } => {
                    // The file may be shorter than the segment was: then there is no more to load.
                    let asked =
                        usize::try_from(limit - walk.position).unwrap_or(usize::MAX).min(want);
                    let end = walk.position + bytes.len() as u64;
                    let loaded_all = unread.is_some() || end >= limit || bytes.len() < asked;
                    if stopped.position == walk.position && loaded_all {
                        walk = self.step_over(stopped, from, short(&bytes, need))?;
                        behind_damage = true;
                    } else {
                        walk = stopped;
                        want = want.max(need);
                    }
                }
                Taken::Damage { walk: stopped, source } => {
                    *unread = None;
                    walk = self.step_over(stopped, from, source)?;
                    behind_damage = true;
                }
            }
        }
    }

    /// The first record at or behind `from`, below `upper`, whose timestamp is at least `timestamp`.
    ///
    /// # Errors
    /// As for [`Segment::read`]: damage before the record that would be the answer.
    pub(crate) fn find_time(
        &self,
        timestamp: Timestamp,
        from: Offset,
        upper: Offset,
    ) -> Result<Option<(Offset, Timestamp)>, Error> {
        if self.is_sealed() {
            self.load_index()?;
            if self.known_max_timestamp().is_some_and(|max| max < timestamp) {
                return Ok(None);
            }
        }
        let entry = self.with_index(|index| index.before_time(timestamp))?;
        let indexed = entry.map_or(self.base, |entry| self.base.plus(entry.relative_offset.into()));
        let mut next = indexed.max(from);
        while let Some(fetched) = self.read(next, upper, TIME_BYTES)? {
            for (header, records) in Batches::new(&fetched) {
                if header.max_timestamp < timestamp || header.control {
                    continue;
                }
                let hit = records
                    .filter(|record| record.offset() >= from && record.timestamp() >= timestamp)
                    .map(|record| (record.offset(), record.timestamp()))
                    .next();
                if hit.is_some() {
                    return Ok(hit);
                }
            }
            next = fetched.next;
        }
        Ok(None)
    }

    /// The start of the batch that holds `offset`, as offset and byte: where a log can be cut. Damage before it is passed over.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if damage that begins before `offset` holds it; [`Error::Io`].
    pub(crate) fn boundary(&self, offset: Offset) -> Result<(Offset, u64), Error> {
        let limit = self.position();
        let mut walk = self.start_before(offset)?;
        let mut behind_damage = false;
        while walk.position < limit && walk.expected < offset {
            match self.header_at(walk, limit, behind_damage)? {
                Ok(header) if header.end_offset() > offset => break,
                Ok(header) => {
                    walk.position += u64::from(header.length);
                    walk.expected = header.end_offset();
                }
                Err(source) => {
                    walk = self.step_over(walk, offset, source)?;
                    behind_damage = true;
                }
            }
        }
        Ok((walk.expected, walk.position))
    }

    /// The header of the batch that is expected at `walk`, or why it is none; `whole`: only if the rest is sound, too.
    fn header_at(
        &self,
        walk: Walk,
        limit: u64,
        whole: bool,
    ) -> Result<Result<BatchHeader, DecodeError>, Error> {
        let seed = self.place.identity.seed;
        let load = |len| self.load_around(walk.position, len, limit, &mut None);
        let header = match BatchHeader::decode(&load(HEADER_BYTES)?, seed) {
            Ok(header) if header.base_offset == walk.expected => header,
            Ok(header) => return Ok(Err(misplaced(&header, walk.expected))),
            Err(source) => return Ok(Err(source)),
        };
        if !whole {
            return Ok(Ok(header));
        }
        let checked = Batch::decode(&load(header.len())?, seed).and_then(|batch| batch.check());
        Ok(checked.map(|()| header))
    }

    /// Walks over the headers from the batch that holds `from` on, without their records; damage is passed over.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn headers(
        &self,
        from: Offset,
        mut take: impl FnMut(&BatchHeader),
    ) -> Result<(), Error> {
        let seed = self.place.identity.seed;
        let limit = self.position();
        let mut walk = self.start_before(from)?;
        while walk.position < limit && walk.expected < self.end() {
            let bytes = self.load(walk.position, HEADERS_BYTES, limit)?;
            let mut at = 0;
            let damage = loop {
                let Some(rest) = bytes.get(at..).filter(|rest| rest.len() >= HEADER_BYTES) else {
                    break (at == 0).then(|| short(&bytes, HEADER_BYTES));
                };
                match BatchHeader::decode(rest, seed) {
                    Ok(header) if header.base_offset == walk.expected => {
                        if header.end_offset() > from {
                            take(&header);
                        }
                        walk.expected = header.end_offset();
                        walk.position += u64::from(header.length);
                        at += header.len();
                    }
                    Ok(header) => break Some(misplaced(&header, walk.expected)),
                    Err(source) => break Some(source),
                }
            };
            drop(bytes);
            if let Some(source) = damage {
                // To the end: whatever the damage holds is not asked for.
                walk = self.step_over(walk, self.end(), source)?;
            }
        }
        Ok(())
    }

    fn take_batches(
        &self,
        bytes: &[u8],
        start: Walk,
        from: Offset,
        upper: Offset,
        bytes_max: usize,
        behind_damage: bool,
    ) -> Taken {
        let seed = self.place.identity.seed;
        let mut at = 0;
        let mut expected = start.expected;
        let mut first = None;
        let mut unpacked = Vec::new();
        let mut transactional = false;
        let stop = loop {
            let walk = Walk { position: start.position + at as u64, expected };
            let rest = &bytes[at..];
            if rest.is_empty() {
                break Taken::More { walk, bytes: HEADER_BYTES };
            }
            let batch = match Batch::decode(rest, seed) {
                Ok(batch) => batch,
                Err(DecodeError::Short { need, .. }) => {
                    let need = usize::try_from(need).unwrap_or(usize::MAX);
                    break Taken::More { walk, bytes: need };
                }
                Err(source) => break Taken::Damage { walk, source },
            };
            let header = &batch.header;
            if header.base_offset != expected {
                break Taken::Damage { walk, source: misplaced(header, expected) };
            }
            if header.end_offset() > self.end() {
                // The log went on elsewhere: what stands here no longer counts.
                break Taken::Damage { walk, source: DecodeError::Misplaced("batch") };
            }
            if header.end_offset() > upper {
                break Taken::Nothing;
            }
            if header.end_offset() <= from {
                // Behind damage, a batch that is passed over has to be whole for its length to count:
                // an append may have gone on within what a batch that was moved seems to span.
                if let Some(source) = behind_damage.then(|| batch.check().err()).flatten() {
                    break Taken::Damage { walk, source };
                }
            } else {
                let begin = *first.get_or_insert(at);
                if at > begin && at + header.len() - begin > bytes_max {
                    break Taken::Nothing;
                }
                let checked = batch.check().and_then(|()| batch.records());
                match checked {
                    Ok(records) if header.compression == Compression::None => drop(records),
                    Ok(records) => unpacked.push(records.into_owned()),
                    Err(source) => break Taken::Damage { walk, source },
                }
                transactional |= header.transactional | header.control;
            }
            expected = header.end_offset();
            at += header.len();
        };
        match first {
            Some(begin) if at > begin => {
                Taken::Batches { range: begin..at, unpacked, next: expected, transactional }
            }
            _ => stop,
        }
    }

    /// Goes on behind damage, or fails if the damage holds `from`.
    fn step_over(&self, stopped: Walk, from: Offset, source: DecodeError) -> Result<Walk, Error> {
        let limit = self.position();
        let seed = self.place.identity.seed;
        let mut position = stopped.position;
        // A batch whose header is intact is damaged in its own offsets only, if the row goes on behind it.
        let head = self.load_around(position, HEADER_BYTES, limit, &mut None)?;
        let own = BatchHeader::decode(&head, seed).ok();
        drop(head);
        if let Some(header) = own.filter(|header| header.base_offset == stopped.expected) {
            let next = Walk {
                position: position + u64::from(header.length),
                expected: header.end_offset().min(self.end()),
            };
            if self.goes_on(next, limit)? {
                return self.reachable(stopped, next, from, source);
            }
        }
        // An intact header of later offsets is where the row goes on.
        let later = own.is_some_and(|header| header.base_offset > stopped.expected);
        position += if later { 0 } else { 4 };
        while position < limit {
            let mut unread = None;
            let bytes = self.load_around(position, SEARCH_BYTES, limit, &mut unread)?;
            let mut at = 0;
            while let Some((found, header)) = find_header(&bytes, at, seed) {
                if header.base_offset >= stopped.expected && header.end_offset() <= self.end() {
                    let next =
                        Walk { position: position + found as u64, expected: header.base_offset };
                    return self.reachable(stopped, next, from, source);
                }
                at = found + 4;
            }
            if unread.is_some() {
                // A page is read at once: where one of its bytes cannot be read, none of them can.
                let end = position + bytes.len() as u64;
                position = (end / PAGE_BYTES + 1) * PAGE_BYTES;
                continue;
            }
            if bytes.len() < SEARCH_BYTES {
                break;
            }
            position += (SEARCH_BYTES - HEADER_BYTES) as u64;
        }
        self.reachable(stopped, Walk { position: limit, expected: self.end() }, from, source)
    }

    /// Whether the batch that is expected begins at `walk`, or everything ends there.
    fn goes_on(&self, walk: Walk, limit: u64) -> Result<bool, Error> {
        if walk.position >= limit {
            return Ok(walk.position == limit);
        }
        let head = self.load_around(walk.position, HEADER_BYTES, limit, &mut None)?;
        let header = BatchHeader::decode(&head, self.place.identity.seed);
        Ok(header.is_ok_and(|header| header.base_offset == walk.expected))
    }

    fn reachable(
        &self,
        stopped: Walk,
        next: Walk,
        from: Offset,
        source: DecodeError,
    ) -> Result<Walk, Error> {
        if from < next.expected {
            return Err(self.corrupt(stopped.expected..next.expected, stopped.position, source));
        }
        Ok(next)
    }

    fn missing(&self, expected: Offset) -> Error {
        self.corrupt(expected..self.end(), self.position(), DecodeError::Missing)
    }

    fn start_before(&self, from: Offset) -> Result<Walk, Error> {
        let entry = self.with_index(|index| index.before_offset(self.base, from))?;
        Ok(entry.map_or(Walk { position: DATA_START, expected: self.base }, |entry| Walk {
            position: entry.position.into(),
            expected: self.base.plus(entry.relative_offset.into()),
        }))
    }

    fn with_index<T>(&self, look_up: impl FnOnce(&SparseIndex) -> T) -> Result<T, Error> {
        if !self.is_sealed() {
            let growing = self.growing.read();
            if !self.is_sealed() {
                return Ok(look_up(&growing));
            }
        }
        Ok(look_up(&*self.load_index()?))
    }

    /// What its markers say was aborted and overlaps `offsets`; and below which offset no marker of a later segment
    /// changes anything.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where that is damaged and may be about `offsets`; [`Error::Io`].
    pub(crate) fn aborted_in(
        &self,
        offsets: &Range<Offset>,
    ) -> Result<(Vec<AbortedRange>, Offset), Error> {
        let (found, decided, unknown_from) = self.with_index(|index| {
            let overlaps =
                |range: &&AbortedRange| range.first < offsets.end && range.last > offsets.start;
            // Markers rise: those before the offsets are passed over at once.
            let begin = index.aborted.partition_point(|range| range.last <= offsets.start);
            let found = index.aborted[begin..].iter().filter(overlaps).copied().collect();
            (found, index.decided, index.unknown_from)
        })?;
        match unknown_from {
            Some(from) if decided < offsets.end => {
                Err(self.corrupt(from..self.end(), self.position(), DecodeError::Missing))
            }
            _ => Ok((found, decided)),
        }
    }

    /// The index of a sealed segment: from memory, from its side file, or from a walk over the data.
    pub(crate) fn load_index(&self) -> Result<Arc<SparseIndex>, Error> {
        if let Some(index) = &*self.index.read() {
            return Ok(Arc::clone(index));
        }
        match Self::read_side_file(&self.place, self.base) {
            Some(side) if side.head.end == self.end() => {
                self.adopt(&side);
                Ok(side.index)
            }
            _ => self.rebuild_index(),
        }
    }

    fn rebuild_index(&self) -> Result<Arc<SparseIndex>, Error> {
        let file = self.open_file(OpenMode::Read)?;
        let mut scanner = Scanner::new(&self.place, self.base).up_to_unreadable();
        let mut scan = scanner.walk(&*file, self.position(), Some(self.end()))?;
        if scan.end < self.end() {
            scan.index.unknown_from = Some(scan.end);
            // One that was written before what comes behind was lost knows what was open there.
            let side = Self::read_side_file(&self.place, self.base);
            let side = side.filter(|side| side.head.end == scan.end);
            scan.index.decided = side.map_or(Offset::ZERO, |side| side.index.decided);
        }
        let index = Arc::new(scan.index);
        *self.index.write() = Some(Arc::clone(&index));
        if scan.end == self.end() {
            self.set_producers(scan.producers);
            self.max_timestamp.store(scan.max_timestamp.0, std::sync::atomic::Ordering::Release);
        }
        Ok(index)
    }

    /// Up to `len` bytes at `position`, none at or behind `limit`.
    fn load(&self, position: u64, len: usize, limit: u64) -> Result<Bytes, Error> {
        let mut unread = None;
        let bytes = self.load_around(position, len, limit, &mut unread)?;
        unread.map_or(Ok(bytes), Err)
    }

    /// As [`Segment::load`], up to what cannot be read; `unread` says then why it cannot.
    fn load_around(
        &self,
        position: u64,
        len: usize,
        limit: u64,
        unread: &mut Option<Error>,
    ) -> Result<Bytes, Error> {
        let len = usize::try_from(limit.saturating_sub(position)).unwrap_or(usize::MAX).min(len);
        let source = self.source.read().clone();
        match source {
            Source::Mapped(map) => {
                let start = usize::try_from(position).expect("a mapped position fits an address");
                let end = start.saturating_add(len).min(map.len());
                Ok(Bytes::Mapped { range: start.min(end)..end, map })
            }
            Source::File(file) => {
                let (buffer, read) = self.place.buffers.read(&*file, position, len);
                let fault = |error| self.place.io_error(&log_name(self.base), "read", error);
                match read.map_err(fault) {
                    Err(error) if is_unreadable(&error) => *unread = Some(error),
                    read => read?,
                }
                Ok(Bytes::Owned { range: 0..buffer.len(), buffer })
            }
            Source::Closed => {
                self.open_source()?;
                self.load_around(position, len, limit, unread)
            }
        }
    }

    fn open_source(&self) -> Result<(), Error> {
        let file = self.open_file(OpenMode::Read)?;
        let opened = if self.place.map_sealed {
            let name = log_name(self.base);
            let fault = |error| self.place.io_error(&name, "map", error);
            let len = file.len().map_err(fault)?.min(self.position());
            let len =
                usize::try_from(len).map_err(|_| fault(std::io::ErrorKind::OutOfMemory.into()))?;
            if len == 0 {
                Source::File(file)
            } else {
                Source::Mapped(Arc::new(file.map(len, false).map_err(fault)?))
            }
        } else {
            Source::File(file)
        };
        let mut source = self.source.write();
        if matches!(*source, Source::Closed) {
            *source = opened;
        }
        Ok(())
    }
}

enum Taken {
    Batches {
        range: Range<usize>,
        unpacked: Vec<Vec<u8>>,
        next: Offset,
        transactional: bool,
    },
    /// There is nothing to take below the bound.
    Nothing,
    /// The batch at `walk` needs that many bytes.
    More {
        walk: Walk,
        bytes: usize,
    },
    Damage {
        walk: Walk,
        source: DecodeError,
    },
}

/// Whether sectors fail, and not the way to them.
pub(super) fn is_unreadable(error: &Error) -> bool {
    matches!(error, Error::Io { action: "read", .. }) && error.class() == ErrorClass::Fatal
}

fn misplaced(header: &BatchHeader, expected: Offset) -> DecodeError {
    if header.base_offset > expected {
        DecodeError::Missing
    } else {
        DecodeError::Misplaced("batch")
    }
}

fn short(bytes: &[u8], need: usize) -> DecodeError {
    DecodeError::Short { have: bytes.len() as u64, need: need as u64 }
}
