//! From the bytes of a batch back to records, borrowed.
//!
//! [`validate`] walks a payload once and proves that every length fits; [`BatchRecords`] then
//! walks it again and again without a way to fail. Bytes that were not validated end the walk early;
//! they never panic and never reach outside the payload.

use crate::error::DecodeError;
use crate::types::{Offset, Timestamp};

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
}

impl<'a> RecordView<'a> {
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

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a str, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.remaining = self.remaining.checked_sub(1)?;
        let mut at = 0;
        let name = take(self.bytes, &mut at)?;
        let value = take_optional(self.bytes, &mut at)?.unwrap_or_default();
        self.bytes = &self.bytes[at..];
        Some((std::str::from_utf8(name).ok()?, value))
    }
}

/// The records of one batch, in offset order.
#[derive(Clone, Debug)]
pub(crate) struct BatchRecords<'a> {
    payload: &'a [u8],
    at: usize,
    remaining: u32,
    base_offset: Offset,
    base_timestamp: Timestamp,
    /// Set when the log stamped the batch: every record then bears this time.
    append_timestamp: Option<Timestamp>,
}

impl<'a> BatchRecords<'a> {
    /// The records in `payload`, which is decompressed and has no padding.
    #[inline]
    pub(crate) fn new(header: &BatchHeader, payload: &'a [u8]) -> Self {
        Self {
            payload,
            at: 0,
            remaining: header.record_count,
            base_offset: header.base_offset,
            base_timestamp: header.base_timestamp,
            append_timestamp: header.append_time.then_some(header.max_timestamp),
        }
    }

    /// No records.
    pub(crate) fn empty() -> Self {
        Self {
            payload: &[],
            at: 0,
            remaining: 0,
            base_offset: Offset::ZERO,
            base_timestamp: Timestamp(0),
            append_timestamp: None,
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
        let raw = RawRecord::decode(self.payload, &mut self.at)?;
        let timestamp = self
            .append_timestamp
            .unwrap_or_else(|| Timestamp(self.base_timestamp.0.wrapping_add(raw.timestamp_delta)));
        Some(RecordView {
            offset: self.base_offset.plus(raw.offset_delta),
            timestamp,
            key: raw.key,
            value: raw.value,
            headers: raw.headers,
        })
    }
}

/// Proves that `payload` holds exactly the records that the header promises.
///
/// # Errors
/// [`DecodeError::Field`] when a length or an offset does not fit.
#[inline]
pub(crate) fn validate(header: &BatchHeader, payload: &[u8]) -> Result<(), DecodeError> {
    let mut at = 0;
    let mut next_delta = 0;
    for _ in 0..header.record_count {
        let raw = RawRecord::decode(payload, &mut at).ok_or(DecodeError::Field("record"))?;
        if raw.offset_delta < next_delta || raw.offset_delta > header.last_offset_delta.into() {
            return Err(DecodeError::Field("offset_delta"));
        }
        next_delta = raw.offset_delta + 1;
        let mut headers = raw.headers;
        if raw.headers.remaining > 0 && headers.by_ref().count() as u64 != raw.headers.remaining {
            return Err(DecodeError::Field("record headers"));
        }
        if !headers.bytes.is_empty() {
            return Err(DecodeError::Field("record headers"));
        }
    }
    if at == payload.len() { Ok(()) } else { Err(DecodeError::Field("record_count")) }
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
    fn decode(payload: &'a [u8], at: &mut usize) -> Option<Self> {
        let body = take(payload, at)?;
        let mut at = 0;
        let timestamp_delta = varint::get_i64(body, &mut at)?;
        let offset_delta = varint::get_u64(body, &mut at)?;
        let key = take_optional(body, &mut at)?;
        let value = take_optional(body, &mut at)?;
        let remaining = varint::get_u64(body, &mut at)?;
        let headers = Headers { bytes: &body[at..], remaining };
        Some(Self { timestamp_delta, offset_delta, key, value, headers })
    }
}

/// Length and that many bytes.
#[inline]
fn take<'a>(bytes: &'a [u8], at: &mut usize) -> Option<&'a [u8]> {
    let len = usize::try_from(varint::get_u64(bytes, at)?).ok()?;
    let end = at.checked_add(len)?;
    let taken = bytes.get(*at..end)?;
    *at = end;
    Some(taken)
}

/// Length plus one and that many bytes; 0 stands for absent.
#[inline]
fn take_optional<'a>(bytes: &'a [u8], at: &mut usize) -> Option<Option<&'a [u8]>> {
    let mark = varint::get_u64(bytes, at)?;
    let Some(len) = mark.checked_sub(1) else {
        return Some(None);
    };
    let end = at.checked_add(usize::try_from(len).ok()?)?;
    let taken = bytes.get(*at..end)?;
    *at = end;
    Some(Some(taken))
}
