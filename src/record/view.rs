//! From the bytes of a batch back to records, borrowed.
//!
//! [`validate`] walks a payload once and proves that every length fits; [`BatchRecords`] then
//! walks it again and again without a way to fail. Bytes that were not validated end the walk early;
//! they never panic and never reach outside the payload.

use crate::error::DecodeError;
use crate::types::{Offset, Timestamp, TopicPartition};

use super::header::BatchHeader;
use super::varint;

/// One record as it was read; borrows from the [`Records`](crate::Records) it came with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordView<'a> {
    offset: Offset,
    timestamp: Timestamp,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    headers: Headers<'a>,
    partition: Option<&'a TopicPartition>,
}

impl<'a> RecordView<'a> {
    /// The topic that it was read from.
    #[must_use]
    pub fn topic(&self) -> &'a str {
        self.partition.map_or("", |partition| partition.topic())
    }

    /// The partition's number in its topic.
    #[must_use]
    pub fn partition(&self) -> u32 {
        self.partition.map_or(0, |partition| partition.partition())
    }

    /// Both.
    #[must_use]
    pub fn topic_partition(&self) -> TopicPartition {
        self.partition.cloned().unwrap_or_else(|| TopicPartition::new("", 0))
    }

    /// Its position in the partition.
    #[must_use]
    pub fn offset(&self) -> Offset {
        self.offset
    }

    /// When the event happened, or when it was appended, as the topic says.
    #[must_use]
    pub fn timestamp(&self) -> Timestamp {
        self.timestamp
    }

    /// The key; absent and empty differ.
    #[must_use]
    pub fn key(&self) -> Option<&'a [u8]> {
        self.key
    }

    /// The value; absent and empty differ.
    #[must_use]
    pub fn value(&self) -> Option<&'a [u8]> {
        self.value
    }

    /// The headers, in the order in which they were given.
    #[must_use]
    pub fn headers(&self) -> Headers<'a> {
        self.headers
    }

    /// The value of the last header of that name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers.filter(|(given, _)| *given == name).last().map(|(_, value)| value)
    }
}

/// The headers of a record: name and value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers<'a> {
    bytes: &'a [u8],
    remaining: u64,
}

impl Headers<'_> {
    /// Whether there are exactly as many as were promised.
    #[inline]
    fn are_whole(mut self) -> bool {
        let promised = self.remaining;
        let count = if promised == 0 { 0 } else { self.by_ref().count() as u64 };
        count == promised && self.bytes.is_empty()
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a str, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.remaining = self.remaining.checked_sub(1)?;
        let (name, rest) = take(self.bytes)?;
        let (value, rest) = take_optional(rest)?;
        let value = value.unwrap_or_default();
        self.bytes = rest;
        Some((std::str::from_utf8(name).ok()?, value))
    }
}

/// The records of one batch, in offset order.
#[derive(Clone, Debug)]
pub(crate) struct BatchRecords<'a> {
    rest: &'a [u8],
    remaining: u32,
    base_offset: Offset,
    base_timestamp: Timestamp,
    /// Set when the log stamped the batch: every record then bears this time.
    append_timestamp: Option<Timestamp>,
    /// For readers; whoever looks into a batch by itself needs none.
    partition: Option<&'a TopicPartition>,
}

impl<'a> BatchRecords<'a> {
    /// The partition that the batch is of.
    #[inline]
    pub(crate) fn in_partition(mut self, partition: &'a TopicPartition) -> Self {
        self.partition = Some(partition);
        self
    }

    /// Leaves out the records from `until` on.
    #[cold]
    pub(crate) fn stop_at(&mut self, until: Offset) {
        let before = self.clone().take_while(|record| record.offset() < until).count();
        self.remaining = u32::try_from(before).unwrap_or(u32::MAX).min(self.remaining);
    }

    /// The records in `payload`, which is decompressed and has no padding.
    #[inline]
    pub(crate) fn new(header: &BatchHeader, payload: &'a [u8]) -> Self {
        Self {
            rest: payload,
            remaining: header.record_count,
            base_offset: header.base_offset,
            base_timestamp: header.base_timestamp,
            append_timestamp: header.append_time.then_some(header.max_timestamp),
            partition: None,
        }
    }

    /// Passes over the records before `from`.
    #[cold]
    pub(crate) fn skip_to(&mut self, from: Offset) {
        loop {
            let here = self.clone();
            match self.next() {
                Some(record) if record.offset() < from => {}
                Some(_) => {
                    *self = here;
                    return;
                }
                None => return,
            }
        }
    }

    /// No records.
    pub(crate) fn empty() -> Self {
        Self {
            rest: &[],
            remaining: 0,
            base_offset: Offset::ZERO,
            base_timestamp: Timestamp(0),
            append_timestamp: None,
            partition: None,
        }
    }
}

impl<'a> Iterator for BatchRecords<'a> {
    type Item = RecordView<'a>;

    #[inline]
    fn next(&mut self) -> Option<RecordView<'a>> {
        if self.remaining == 0 {
            return None;
        }
        self.remaining -= 1;
        let (raw, rest) = RawRecord::split(self.rest)?;
        self.rest = rest;
        let timestamp = self
            .append_timestamp
            .unwrap_or_else(|| Timestamp(self.base_timestamp.0.wrapping_add(raw.timestamp_delta)));
        Some(RecordView {
            offset: self.base_offset.plus(raw.offset_delta),
            timestamp,
            key: raw.key,
            value: raw.value,
            headers: raw.headers,
            partition: self.partition,
        })
    }
}

/// Proves that `payload` holds exactly the records that the header promises.
///
/// # Errors
/// [`DecodeError::Field`] when a length or an offset does not fit.
#[inline]
pub(crate) fn validate(header: &BatchHeader, payload: &[u8]) -> Result<(), DecodeError> {
    let mut rest = payload;
    let mut next_delta = 0;
    for _ in 0..header.record_count {
        let raw;
        (raw, rest) = RawRecord::split(rest).ok_or(DecodeError::Field("record"))?;
        if raw.offset_delta < next_delta || raw.offset_delta > header.last_offset_delta.into() {
            return Err(DecodeError::Field("offset_delta"));
        }
        next_delta = raw.offset_delta + 1;
        if !raw.headers.are_whole() {
            return Err(DecodeError::Field("record headers"));
        }
    }
    if rest.is_empty() { Ok(()) } else { Err(DecodeError::Field("record_count")) }
}

struct RawRecord<'a> {
    timestamp_delta: i64,
    offset_delta: u64,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    headers: Headers<'a>,
}

impl<'a> RawRecord<'a> {
    #[inline]
    fn split(payload: &'a [u8]) -> Option<(Self, &'a [u8])> {
        match Self::split_short(payload) {
            Some(split) => Some(split),
            None => Self::split_any(payload),
        }
    }

    /// A record all of whose numbers take one byte and that has no headers. Such are most, and this
    /// takes a third of the time of [`RawRecord::split_any`].
    #[inline]
    fn split_short(payload: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let [len, timestamp_delta, offset_delta, key_mark, ..] = *payload.first_chunk::<4>()?;
        if (len | timestamp_delta | offset_delta | key_mark) >= 0x80 {
            return None;
        }
        // What follows is found by the length alone: the next record need not wait for the checks.
        let headers_at = usize::from(len);
        let (record, rest) = payload.split_at_checked(headers_at + 1)?;
        let value_at = 4 + usize::from(key_mark.saturating_sub(1));
        let value_mark = *record.get(value_at)?;
        let value_end = value_at + 1 + usize::from(value_mark.saturating_sub(1));
        if value_mark >= 0x80 || value_end != headers_at || record[headers_at] != 0 {
            return None;
        }
        let raw = Self {
            timestamp_delta: varint::unzigzag(timestamp_delta.into()),
            offset_delta: offset_delta.into(),
            key: (key_mark > 0).then(|| &record[4..value_at]),
            value: (value_mark > 0).then(|| &record[value_at + 1..headers_at]),
            headers: Headers { bytes: &[], remaining: 0 },
        };
        Some((raw, rest))
    }

    fn split_any(payload: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (body, rest) = take(payload)?;
        let (timestamp_delta, body) = varint::split_i64(body)?;
        let (offset_delta, body) = varint::split_u64(body)?;
        let (key, body) = take_optional(body)?;
        let (value, body) = take_optional(body)?;
        let (remaining, bytes) = varint::split_u64(body)?;
        let headers = Headers { bytes, remaining };
        Some((Self { timestamp_delta, offset_delta, key, value, headers }, rest))
    }
}

/// Length and that many bytes; and what follows them.
#[inline]
fn take(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = varint::split_u64(bytes)?;
    rest.split_at_checked(usize::try_from(len).ok()?)
}

/// Length plus one and that many bytes, 0 stands for absent; and what follows them.
#[inline]
fn take_optional(bytes: &[u8]) -> Option<(Option<&[u8]>, &[u8])> {
    let (mark, rest) = varint::split_u64(bytes)?;
    let Some(len) = mark.checked_sub(1) else {
        return Some((None, rest));
    };
    let (taken, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
    Some((Some(taken), rest))
}
