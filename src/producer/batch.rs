//! Records that wait to be appended together, and where their senders look for the outcome.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::record::{HEADER_BYTES, Record, RecordSize};
use crate::types::{Offset, Timestamp};

use super::delivery::Callback;

/// Beside its bytes, what a record takes in memory, about.
const RECORD_OVERHEAD: u64 = 64;

/// How much of the buffer a record takes.
#[inline]
pub(super) fn memory_of(size: RecordSize) -> u64 {
    size.bytes_max() + RECORD_OVERHEAD
}

/// What became of a batch; set once.
#[derive(Debug, Default)]
pub(super) struct Cell(OnceLock<Outcome>);

#[derive(Debug)]
pub(super) enum Outcome {
    /// Where its first record is.
    Placed(Placed),
    Failed(Error),
    /// It went on as two.
    Split {
        at: u32,
        halves: [Arc<Cell>; 2],
    },
}

/// Where the log has a record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub(super) offset: Offset,
    pub(super) appended_at: Timestamp,
    /// The log has that for its time, whatever time it brought.
    pub(super) stamped: bool,
}

/// Counts of what became of records.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) records: u64,
    pub(super) batches: u64,
    pub(super) retries: u64,
    /// Failed although nobody is told (`Acks::None`).
    pub(super) dropped: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: Self) {
        self.records += other.records;
        self.batches += other.batches;
        self.retries += other.retries;
        self.dropped += other.dropped;
    }
}

impl Cell {
    /// Where the record at `index` is; `None` as long as that is not known.
    pub(super) fn result(&self, index: u32) -> Option<Result<Placed>> {
        match self.0.get()? {
            Outcome::Placed(first) => {
                let offset = first.offset.plus(u64::from(index));
                Some(Ok(Placed { offset, ..*first }))
            }
            Outcome::Failed(error) => Some(Err(error.clone())),
            Outcome::Split { at, halves: [first, second] } => {
                if index < *at {
                    first.result(index)
                } else {
                    second.result(index - at)
                }
            }
        }
    }

    /// Whether that is known.
    pub(super) fn has_result(&self, index: u32) -> bool {
        match self.0.get() {
            None => false,
            Some(Outcome::Placed(_) | Outcome::Failed(_)) => true,
            Some(Outcome::Split { .. }) => self.result(index).is_some(),
        }
    }

    fn set(&self, outcome: Outcome) {
        assert!(self.0.set(outcome).is_ok(), "a batch ends once");
    }
}

/// A record's parts, one behind the other in the bytes of the batch.
#[derive(Clone, Debug)]
struct Kept {
    start: usize,
    key_len: Option<usize>,
    value_len: Option<usize>,
    headers: Vec<(usize, usize)>,
    timestamp: Option<Timestamp>,
}

/// Owned copies of records.
#[derive(Debug, Default)]
pub(super) struct Content {
    bytes: Vec<u8>,
    kept: Vec<Kept>,
}

/// Memory for so many records, in so many bytes, is kept for the next batch.
const KEPT_MAX: usize = 256;
const KEPT_BYTES_MAX: usize = 16 << 10;

impl Content {
    /// Forgets the records, and keeps their memory for others unless it is much.
    pub(super) fn clear(&mut self) {
        if self.bytes.capacity() > KEPT_BYTES_MAX || self.kept.capacity() > KEPT_MAX {
            *self = Self::default();
        }
        self.bytes.clear();
        self.kept.clear();
    }

    pub(super) fn push(&mut self, record: &Record<'_>) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(record.key.unwrap_or_default());
        self.bytes.extend_from_slice(record.value.unwrap_or_default());
        for (name, value) in &record.headers {
            self.bytes.extend_from_slice(name.as_bytes());
            self.bytes.extend_from_slice(value);
        }
        self.kept.push(Kept {
            start,
            key_len: record.key.map(<[u8]>::len),
            value_len: record.value.map(<[u8]>::len),
            headers: record.headers.iter().map(|(name, value)| (name.len(), value.len())).collect(),
            timestamp: record.timestamp,
        });
    }

    pub(super) fn records(&self) -> Vec<Record<'_>> {
        self.kept.iter().map(|kept| self.record(kept)).collect()
    }

    fn record(&self, kept: &Kept) -> Record<'_> {
        let mut at = kept.start;
        let mut next = |len: usize| {
            at += len;
            &self.bytes[at - len..at]
        };
        let key = kept.key_len.map(&mut next);
        let value = kept.value_len.map(&mut next);
        let headers = kept
            .headers
            .iter()
            .map(|(name, value)| {
                let name = std::str::from_utf8(next(*name)).expect("it was a str when it was kept");
                (name, next(*value))
            })
            .collect();
        Record { key, value, headers, timestamp: kept.timestamp }
    }
}

/// Who is called when a record has ended.
pub(super) struct Call {
    pub(super) index: u32,
    pub(super) timestamp: Option<Timestamp>,
    pub(super) callback: Callback,
}

impl std::fmt::Debug for Call {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Call").field("index", &self.index).finish_non_exhaustive()
    }
}

/// Records that are appended together.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) cell: Arc<Cell>,
    pub(super) content: Content,
    /// Number of its first record among all that were sent here.
    pub(super) first: u64,
    pub(super) count: u32,
    /// When its first record was sent.
    pub(super) born: Duration,
    /// Encoded, before compression, at most.
    pub(super) bytes: u64,
    /// How large it may become.
    bytes_max: u64,
    /// What it takes of the buffer.
    pub(super) memory: u64,
    /// What of it is kept for records to come.
    pub(super) room: u64,
    pub(super) calls: Vec<Call>,
}

impl Batch {
    /// `content`: empty, for the memory that it brings.
    pub(super) fn new(first: u64, born: Duration, bytes_max: u64, content: Content) -> Self {
        Self {
            cell: Arc::default(),
            content,
            first,
            count: 0,
            born,
            bytes: HEADER_BYTES as u64,
            bytes_max,
            memory: 0,
            room: 0,
            calls: Vec::new(),
        }
    }

    /// One past the number of its last record.
    pub(super) fn end(&self) -> u64 {
        self.first + u64::from(self.count)
    }

    #[inline]
    pub(super) fn fits(&self, size: RecordSize) -> bool {
        self.bytes + size.bytes_max() + 3 <= self.bytes_max
    }

    /// Adds a record; gives its place. `has_room`: the batch has brought it.
    #[inline]
    pub(super) fn push(
        &mut self,
        record: &Record<'_>,
        size: RecordSize,
        callback: Option<Callback>,
        has_room: bool,
    ) -> u32 {
        let index = self.count;
        self.content.push(record);
        self.count += 1;
        self.bytes += size.bytes_max();
        if has_room {
            self.room -= memory_of(size);
        } else {
            self.memory += memory_of(size);
        }
        if let Some(callback) = callback {
            self.calls.push(Call { index, timestamp: record.timestamp, callback });
        }
        index
    }

    /// Tells the senders, but for the calls, which are the caller's.
    pub(super) fn end_with(&mut self, outcome: Outcome) -> Vec<Call> {
        self.cell.set(outcome);
        std::mem::take(&mut self.calls)
    }

    /// Makes two of one of several records.
    pub(super) fn split(mut self) -> [Self; 2] {
        assert!(self.count > 1, "one record has no halves");
        let at = self.count / 2;
        let mut halves = [self.first, self.first + u64::from(at)]
            .map(|first| Self::new(first, self.born, self.bytes_max, Content::default()));
        let records = self.content.records();
        let (lower, upper) = records.split_at(at as usize);
        for (half, records) in halves.iter_mut().zip([lower, upper]) {
            records.iter().for_each(|record| {
                half.push(record, RecordSize::of(record), None, false);
            });
        }
        halves[1].memory = self.memory - halves[0].memory;
        drop(records);
        for mut call in std::mem::take(&mut self.calls) {
            let upper = call.index >= at;
            call.index -= if upper { at } else { 0 };
            halves[usize::from(upper)].calls.push(call);
        }
        let cells = [Arc::clone(&halves[0].cell), Arc::clone(&halves[1].cell)];
        self.cell.set(Outcome::Split { at, halves: cells });
        halves
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: u8) -> Vec<u8> {
        vec![number; usize::from(number)]
    }

    #[test]
    fn records_come_back_as_they_were_given() {
        let mut content = Content::default();
        let given = [
            Record::new("pear").key("k").header("a", b"1").header("", b"").timestamp(Timestamp(-4)),
            Record::tombstone("gone"),
            Record::new(""),
            Record::default(),
        ];
        given.iter().for_each(|record| content.push(record));
        assert_eq!(content.records(), given);
    }

    #[test]
    fn room_that_a_batch_brought_goes_with_its_halves() {
        let mut batch = Batch::new(0, Duration::ZERO, u64::MAX, Content::default());
        (batch.memory, batch.room) = (1000, 1000);
        let values: Vec<_> = (1..4).map(record).collect();
        let mut used = 0;
        for value in &values {
            let record = Record::new(value);
            let size = RecordSize::of(&record);
            batch.push(&record, size, None, true);
            used += memory_of(size);
        }
        assert_eq!((batch.memory, batch.room), (1000, 1000 - used));
        let [lower, upper] = batch.split();
        assert_eq!(lower.memory + upper.memory, 1000);
        assert_eq!((lower.room, upper.room), (0, 0));
    }

    #[test]
    fn halves_of_halves_answer_for_every_record() {
        let mut batch = Batch::new(100, Duration::ZERO, u64::MAX, Content::default());
        let values: Vec<_> = (0..5).map(record).collect();
        for value in &values {
            let record = Record::new(value);
            batch.push(&record, RecordSize::of(&record), Some(Box::new(|_| {})), false);
        }
        let (cell, memory) = (Arc::clone(&batch.cell), batch.memory);
        let [mut lower, upper] = batch.split();
        assert_eq!((lower.first, lower.count, upper.first, upper.count), (100, 2, 102, 3));
        assert_eq!(lower.memory + upper.memory, memory);
        let [mut middle, mut last] = upper.split();
        assert_eq!(middle.content.records(), [Record::new(&values[2])]);
        assert!(cell.result(0).is_none());
        let placed = |base| {
            let (offset, appended_at) = (Offset(base), Timestamp(7));
            Outcome::Placed(Placed { offset, appended_at, stamped: false })
        };
        assert_eq!(lower.end_with(placed(40)).len(), 2);
        assert_eq!(middle.end_with(Outcome::Failed(Error::Closed)).len(), 1);
        let calls = last.end_with(placed(50));
        assert_eq!(calls.iter().map(|call| call.index).collect::<Vec<_>>(), [0, 1]);
        let offset = |index| cell.result(index).unwrap().map(|placed| placed.offset.0).ok();
        assert_eq!([0, 1, 2, 3, 4].map(offset), [Some(40), Some(41), None, Some(50), Some(51)]);
    }
}
