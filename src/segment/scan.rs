//! Walking a data file from front to back: recovery, verification, rebuilding an index.
//!
//! Reads in large windows into a buffer of its own, never through a mapping: a bad sector is an
//! error here and not a signal. What the walk finds are facts; what they mean is decided by
//! `protocol::recovery`.

use crate::error::{DecodeError, Error};
use crate::protocol::producer_state::batch::{BatchFacts, Content};
use crate::protocol::producer_state::transactions::AbortedRange;
use crate::record::{Batch, BatchHeader, HEADER_BYTES, find_header, first_offset};
use crate::storage::{File, read_full_at, read_on_at};
use crate::types::{LeaderEpoch, Offset, Outcome, ProducerId, Timestamp};

use super::reader::is_unreadable;
use super::{DATA_START, IndexEntry, Place, SparseIndex, log_name};

const WINDOW_BYTES: usize = 1 << 20;

/// How a walk ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ScanEnd {
    /// At the limit, or at zeroes that reach to the end of the file.
    Clean,
    /// At bytes that are no batch of this log at this offset.
    Bad(DecodeError),
}

/// What a walk found.
#[derive(Clone, Debug)]
pub(crate) struct Scan {
    /// One past the last good batch's last offset.
    pub(crate) end: Offset,
    /// Where the walk began.
    pub(crate) started_at: u64,
    /// One past its last byte.
    pub(crate) position: u64,
    pub(crate) stop: ScanEnd,
    pub(crate) max_timestamp: Timestamp,
    pub(crate) index: SparseIndex,
    /// The largest end that a batch proves to have been on this disk's stable storage.
    pub(crate) durable_end: Offset,
    /// A byte at or before the first batch that is not proven so.
    pub(crate) unproven_position: u64,
    pub(crate) batches: u64,
    pub(crate) records: u64,
    /// Whether any of the batches that were walked has a producer.
    pub(crate) producers: bool,
    /// Under which leader the last batch was appended, if there is one.
    pub(crate) epoch: Option<LeaderEpoch>,
}

/// What lies behind a place where a walk ended badly.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Beyond {
    /// The first intact header that continues the log, and where it is.
    pub(crate) first: Option<(u64, Offset)>,
    /// The largest end offset of any of them.
    pub(crate) end: Offset,
    /// The largest end that any of them proves durable.
    pub(crate) durable_end: Offset,
    /// One past the last byte that is not zero.
    pub(crate) bytes_end: u64,
}

/// Walks one data file.
#[derive(Debug)]
pub(crate) struct Scanner<'a> {
    place: &'a Place,
    base: Offset,
    position: u64,
    offset: Offset,
    index: SparseIndex,
    max_timestamp: Timestamp,
    index_interval: u64,
    sealed_since: Option<LeaderEpoch>,
    up_to_unreadable: bool,
    follows: bool,
    window: Vec<u8>,
}

impl<'a> Scanner<'a> {
    /// Walks the segment from its first batch on.
    pub(crate) fn new(place: &'a Place, base: Offset) -> Self {
        Self {
            place,
            base,
            position: DATA_START,
            offset: base,
            index: SparseIndex::default(),
            max_timestamp: Timestamp::MIN,
            index_interval: 4096,
            sealed_since: None,
            up_to_unreadable: false,
            follows: false,
            window: Vec::new(),
        }
    }

    /// What cannot be read ends the walk, as damage does. Not for who decides what is cut.
    pub(crate) fn up_to_unreadable(mut self) -> Self {
        self.up_to_unreadable = true;
        self
    }

    /// For who comes back: what stands behind the end, as far as space was allocated ahead, is not asked for.
    pub(crate) fn follows(mut self) -> Self {
        self.follows = true;
        self
    }

    /// Batches of that reign or a later one were sealed on this disk, so that the durable end they carry is
    /// this disk's. `None`, as before the call: none were, and what their leader's disk held proves nothing.
    pub(crate) fn sealed_since(mut self, epoch: Option<LeaderEpoch>) -> Self {
        self.sealed_since = epoch;
        self
    }

    /// Takes over at a batch boundary that is known to be good, with what is known up to there.
    pub(crate) fn resume(
        mut self,
        position: u64,
        offset: Offset,
        max_timestamp: Timestamp,
        index: SparseIndex,
    ) -> Self {
        self.position = position;
        self.offset = offset;
        self.max_timestamp = max_timestamp;
        self.index = index;
        self
    }

    /// Walks until `limit` bytes, until offset `until`, or until what follows is no batch.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read.
    pub(crate) fn walk(
        &mut self,
        file: &dyn File,
        limit: u64,
        until: Option<Offset>,
    ) -> Result<Scan, Error> {
        let mut scan = Scan {
            end: self.offset,
            started_at: self.position,
            position: self.position,
            stop: ScanEnd::Clean,
            max_timestamp: self.max_timestamp,
            index: std::mem::take(&mut self.index),
            durable_end: Offset::ZERO,
            unproven_position: self.position,
            batches: 0,
            records: 0,
            producers: false,
            epoch: None,
        };
        let mut indexed =
            scan.index.entries.last().map_or(DATA_START, |entry| entry.position.into());
        // Where batches begin that nothing has proven durable yet, to find where a rewrite begins.
        let mut unproven = std::collections::VecDeque::new();
        let mut want = WINDOW_BYTES;
        let len = file.len().map_err(|error| self.io("measure", error))?;
        let limit = limit.min(len);
        'windows: while scan.position < limit && until.is_none_or(|until| scan.end < until) {
            let window_start = scan.position;
            let is_unreadable = self.fill(file, window_start, want, limit)?;
            // Its owner may have cut off what it had allocated since it was measured.
            let is_cut = self.window.len() as u64 != (limit - window_start).min(want as u64);
            if is_unreadable && self.window.is_empty() {
                scan.stop = ScanEnd::Bad(DecodeError::Missing);
            }
            if self.window.is_empty() {
                break;
            }
            let at_limit = is_cut || window_start + self.window.len() as u64 >= limit;
            want = WINDOW_BYTES;
            let mut at = 0;
            while at < self.window.len() {
                if until.is_some_and(|until| scan.end >= until) {
                    break 'windows;
                }
                let rest = &self.window[at..];
                if is_end_mark(rest) {
                    if !self.follows && !self.zero_until(file, scan.position, limit)? {
                        scan.stop = ScanEnd::Bad(DecodeError::Field("length"));
                    }
                    break 'windows;
                }
                let checked = Batch::decode(rest, self.place.identity.seed)
                    .and_then(|batch| batch.check().map(|()| batch));
                let batch = match checked {
                    Ok(batch) => batch,
                    Err(DecodeError::Short { need, .. }) if !at_limit => {
                        want = usize::try_from(need).unwrap_or(usize::MAX).max(WINDOW_BYTES);
                        continue 'windows;
                    }
                    Err(source) => {
                        scan.stop = ScanEnd::Bad(source);
                        break 'windows;
                    }
                };
                let header = batch.header;
                if header.base_offset != scan.end {
                    scan.stop = ScanEnd::Bad(if header.base_offset > scan.end {
                        DecodeError::Missing
                    } else {
                        DecodeError::Misplaced("batch")
                    });
                    break 'windows;
                }
                if scan.position - indexed >= self.index_interval {
                    indexed = scan.position;
                    if let Some(entry) = index_entry(self.base, &scan) {
                        scan.index.push(entry);
                    }
                }
                if header.producer_id != ProducerId(0) {
                    scan.producers = true;
                    scan.index.aborted.extend(aborted_by(&batch));
                }
                unproven.push_back((header.end_offset(), scan.position));
                let durable_end = self.proven_by(&header);
                if durable_end > scan.durable_end {
                    scan.durable_end = durable_end;
                    while unproven.front().is_some_and(|(end, _)| *end <= scan.durable_end) {
                        unproven.pop_front();
                    }
                }
                scan.epoch = Some(header.leader_epoch);
                scan.end = header.end_offset();
                scan.position += u64::from(header.length);
                scan.max_timestamp = scan.max_timestamp.max(header.max_timestamp);
                scan.batches += 1;
                scan.records += u64::from(header.record_count);
                at += header.len();
            }
        }
        scan.unproven_position = unproven.front().map_or(scan.position, |(_, position)| *position);
        Ok(scan)
    }

    /// Looks at everything behind `position`, where a walk that reached `expected` ended badly.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read.
    pub(crate) fn look_beyond(
        &mut self,
        file: &dyn File,
        position: u64,
        expected: Offset,
    ) -> Result<Beyond, Error> {
        let len = file.len().map_err(|error| self.io("measure", error))?;
        let mut beyond = Beyond { bytes_end: position, ..Beyond::default() };
        let mut start = position;
        while start < len {
            self.fill(file, start, WINDOW_BYTES, len)?;
            if let Some(last) = self.window.iter().rposition(|byte| *byte != 0) {
                beyond.bytes_end = start + last as u64 + 1;
            }
            let mut at = 0;
            while let Some((found, header)) =
                find_header(&self.window, at, self.place.identity.seed)
            {
                // The broken batch's own header may be whole: it says nothing of what follows.
                if header.base_offset > expected {
                    let durable_end = self.proven_by(&header);
                    note(&mut beyond, start + found as u64, &header, durable_end);
                }
                at = found + 4;
            }
            if self.window.len() < WINDOW_BYTES {
                break;
            }
            start += (WINDOW_BYTES - HEADER_BYTES) as u64;
        }
        Ok(beyond)
    }

    /// What a batch proves to have been on this disk's stable storage.
    fn proven_by(&self, header: &BatchHeader) -> Offset {
        let own = self.sealed_since.is_some_and(|since| header.leader_epoch >= since);
        if own { header.durable_end } else { Offset::ZERO }
    }

    /// Returns whether what cannot be read has cut it short.
    fn fill(
        &mut self,
        file: &dyn File,
        position: u64,
        want: usize,
        limit: u64,
    ) -> Result<bool, Error> {
        let left = usize::try_from(limit - position).unwrap_or(usize::MAX);
        let want = want.min(left);
        if self.window.len() < want {
            self.window.resize(want, 0);
        }
        self.window.truncate(want);
        let (count, read) = read_on_at(file, position, &mut self.window);
        self.window.truncate(count);
        match read.map_err(|error| self.io("read", error)) {
            Err(error) if self.up_to_unreadable && is_unreadable(&error) => Ok(true),
            read => read.map(|()| false),
        }
    }

    fn zero_until(&self, file: &dyn File, position: u64, limit: u64) -> Result<bool, Error> {
        let mut at = position;
        let mut bytes = vec![0; 64 << 10];
        while at < limit {
            let want = usize::try_from(limit - at).unwrap_or(usize::MAX).min(bytes.len());
            let count = read_full_at(file, at, &mut bytes[..want])
                .map_err(|error| self.io("read", error))?;
            if count == 0 {
                break;
            }
            if bytes[..count].iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            at += count as u64;
        }
        Ok(true)
    }

    fn io(&self, action: &'static str, error: std::io::Error) -> Error {
        self.place.io_error(&log_name(self.base), action, error)
    }
}

/// What read-committed readers must not see, if the batch is the marker of an abort.
pub(crate) fn aborted_by(batch: &Batch<'_>) -> Option<AbortedRange> {
    let facts = BatchFacts::from(&batch.header);
    let Content::Marker(Outcome::Aborted) = facts.content else { return None };
    // A marker whose record says nothing cannot be ours: nothing is hidden on its word.
    let first = first_offset(batch)?;
    Some(AbortedRange { producer: facts.producer.id, first, last: facts.base_offset })
}

fn note(beyond: &mut Beyond, position: u64, header: &BatchHeader, durable_end: Offset) {
    if beyond.first.is_none() {
        beyond.first = Some((position, header.base_offset));
    }
    beyond.end = beyond.end.max(header.end_offset());
    beyond.durable_end = beyond.durable_end.max(durable_end);
}

/// A header that begins with zeroes: no batch was ever begun here.
fn is_end_mark(bytes: &[u8]) -> bool {
    bytes.iter().take(HEADER_BYTES).all(|byte| *byte == 0)
}

/// The entry for the batch that begins where `scan` stands; `None` once offsets outgrow the index.
fn index_entry(base: Offset, scan: &Scan) -> Option<IndexEntry> {
    Some(IndexEntry {
        relative_offset: u32::try_from(scan.end.since(base)).ok()?,
        position: u32::try_from(scan.position).ok()?,
        time_before: scan.max_timestamp,
    })
}
