//! From records to the bytes of a batch.
//!
//! A [`Draft`] is a batch that has no offset yet: its payload is laid out and checksummed without
//! any lock. [`Draft::seal`] puts the header in front once the log knows the place.

use crate::error::Error;
use crate::types::{
    Compression, LeaderEpoch, Offset, ProducerEpoch, ProducerId, ProducerSequence, Timestamp,
    TimestampType, TopicPartition,
};

use super::buffer::Buffer;
use super::compression;
use super::header::{ALIGNMENT, BatchHeader, HEADER_BYTES, crc};
use super::record::Record;
use super::varint::{self, Shorts};

/// What the topic says about its batches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DraftSettings {
    pub(crate) compression: Compression,
    pub(crate) timestamp_type: TimestampType,
    pub(crate) bytes_max: u32,
    pub(crate) timestamp_min: Timestamp,
    pub(crate) timestamp_max: Timestamp,
    pub(crate) now: Timestamp,
}

impl DraftSettings {
    /// No compression, any timestamp, no limit.
    pub(crate) fn plain(now: Timestamp) -> Self {
        Self {
            compression: Compression::None,
            timestamp_type: TimestampType::CreateTime,
            bytes_max: u32::MAX,
            timestamp_min: Timestamp::MIN,
            timestamp_max: Timestamp::MAX,
            now,
        }
    }
}

/// Where the log puts a batch, and what it knows at that moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) seed: u32,
    pub(crate) base_offset: Offset,
    pub(crate) leader_epoch: LeaderEpoch,
    pub(crate) durable_end: Offset,
}

/// A batch without a place: its header and its bytes, in memory that is used again for the next one.
///
/// Changed where it is, and never moved: a header on its way through results and tuples is stored in words and loaded
/// in vectors, which the processor makes wait for each other, 4 ns a time.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    header: BatchHeader,
    bytes: Buffer,
    /// The records before compression.
    plain: Buffer,
}

impl Draft {
    /// Encodes `records`, leaving room for the header. Nothing larger than the limit is ever copied.
    ///
    /// # Errors
    /// [`Error::InvalidRecord`] for no records or a timestamp out of range (LOG-13), and
    /// [`Error::RecordTooLarge`] (LOG-01). What the draft holds is then of no meaning.
    #[inline(always)]
    pub(crate) fn encode(
        &mut self,
        records: &[Record<'_>],
        settings: &DraftSettings,
        partition: &TopicPartition,
    ) -> Result<(), Error> {
        let Self { header, bytes, plain } = self;
        let Some(first) = records.first() else {
            return Err(invalid(partition, 0, "an append needs at least one record"));
        };
        let append_time = settings.timestamp_type == TimestampType::AppendTime;
        let stamp = |record: &Record<'_>| match record.timestamp {
            Some(timestamp) if !append_time => timestamp,
            _ => settings.now,
        };
        let base_timestamp = stamp(first);
        let mut max_timestamp = base_timestamp;
        let packs = settings.compression != Compression::None;
        bytes.clear();
        leave_room_for_header(bytes);
        plain.clear();
        let target = if packs { &mut *plain } else { &mut *bytes };
        for (index, record) in records.iter().enumerate() {
            let timestamp = stamp(record);
            if timestamp != settings.now
                && (timestamp < settings.timestamp_min || timestamp > settings.timestamp_max)
            {
                return Err(invalid(
                    partition,
                    index,
                    "its timestamp is outside the topic's range",
                ));
            }
            max_timestamp = max_timestamp.max(timestamp);
            let delta = timestamp.0.wrapping_sub(base_timestamp.0);
            put_record(target, record, index, delta, settings.bytes_max)
                .map_err(|bytes| too_large(partition, bytes, settings))?;
        }
        let mut compression = settings.compression;
        if packs {
            compression = pack(plain, settings, partition, bytes)?;
        }
        let padding = bytes.len().wrapping_neg() % ALIGNMENT;
        bytes.put(&[0; ALIGNMENT][..padding]);
        let count = u32::try_from(records.len())
            .map_err(|_| too_large(partition, bytes.len() as u64, settings))?;
        let length = u32::try_from(bytes.len()).ok().filter(|len| *len <= settings.bytes_max);
        let Some(length) = length else {
            return Err(too_large(partition, bytes.len() as u64, settings));
        };
        *header = BatchHeader {
            length,
            padding: u8::try_from(padding).expect("less than four"),
            compression,
            append_time,
            last_offset_delta: count - 1,
            record_count: count,
            records_crc: crc(0, &bytes[HEADER_BYTES..]),
            base_timestamp,
            max_timestamp,
            ..BatchHeader::default()
        };
        Ok(())
    }

    /// Puts the header for `place` in front.
    #[inline(always)]
    pub(crate) fn seal(&mut self, place: &Place) {
        self.header.leader_epoch = place.leader_epoch;
        self.header.base_offset = place.base_offset;
        self.header.durable_end = place.durable_end;
        let target = self.bytes.first_chunk_mut().expect("encode left room for the header");
        self.header.encode(place.seed, target);
    }

    /// Says whose batch it is.
    #[inline]
    pub(crate) fn written_by(&mut self, producer: ProducerSequence, transactional: bool) {
        self.header.producer_id = producer.id;
        self.header.producer_epoch = producer.epoch;
        self.header.base_sequence = producer.sequence;
        self.header.transactional = transactional;
    }

    /// Makes it the end of a producer's transaction; `code` says which end.
    pub(super) fn control(&mut self, id: ProducerId, epoch: ProducerEpoch, code: u64) {
        self.written_by(ProducerSequence { id, epoch, sequence: code }, true);
        self.header.control = true;
    }

    /// What the batch says of itself; of its place, once it is sealed.
    #[inline]
    pub(crate) fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The whole batch; its header, once it is sealed.
    #[inline(always)]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many bytes the whole batch takes.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Memory that it keeps.
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity() + self.plain.capacity()
    }
}

/// Packs the records of `plain` behind the header's room in `target`. What a codec would make larger than the limit
/// stays as it is; returns which codec it was.
fn pack(
    plain: &Buffer,
    settings: &DraftSettings,
    partition: &TopicPartition,
    target: &mut Buffer,
) -> Result<Compression, Error> {
    let len = u32::try_from(plain.len())
        .map_err(|_| too_large(partition, plain.len() as u64, settings))?;
    target.put(&len.to_le_bytes());
    compression::compress(settings.compression, plain, target)
        .map_err(|error| invalid(partition, 0, &format!("the batch does not compress: {error}")))?;
    if target.len().next_multiple_of(ALIGNMENT) as u64 <= u64::from(settings.bytes_max) {
        return Ok(settings.compression);
    }
    target.clear();
    leave_room_for_header(target);
    target.put(plain);
    Ok(Compression::None)
}

/// The header is written last, over whatever is there.
#[inline]
fn leave_room_for_header(target: &mut Buffer) {
    target.room(HEADER_BYTES);
    target.advance(HEADER_BYTES);
}

/// What a record takes in the log, before compression.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordSize {
    body: u64,
}

impl RecordSize {
    #[inline]
    pub(crate) fn of(record: &Record<'_>) -> Self {
        Self { body: body_len(record) }
    }

    /// How many bytes a batch of this record alone takes, at most.
    #[inline]
    pub(crate) fn batch_bytes(self) -> u64 {
        let bytes = HEADER_BYTES as u64 + self.bytes_with(2);
        bytes.next_multiple_of(ALIGNMENT as u64)
    }

    /// How many bytes the record takes in any batch, at most.
    #[inline]
    pub(crate) fn bytes_max(self) -> u64 {
        self.bytes_with(10 + 5)
    }

    /// `numbers`: what its timestamp and its place in the batch take.
    #[inline]
    fn bytes_with(self, numbers: u64) -> u64 {
        let body = numbers + self.body;
        varint::len_u64(body) as u64 + body
    }
}

/// Encoded length of an optional field, plus one; 0 if it is absent.
fn mark(field: Option<&[u8]>) -> u64 {
    field.map_or(0, |bytes| bytes.len() as u64 + 1)
}

/// The bytes of a record behind its length, but for its timestamp and its place in the batch.
#[inline]
fn body_len(record: &Record<'_>) -> u64 {
    let headers_len: u64 = record
        .headers
        .iter()
        .map(|(name, value)| {
            let (name, value) = (name.len() as u64, value.len() as u64);
            (varint::len_u64(name) + varint::len_u64(value + 1)) as u64 + name + value
        })
        .sum();
    let marks = varint::len_u64(mark(record.key))
        + varint::len_u64(mark(record.value))
        + varint::len_u64(record.headers.len() as u64);
    let (key_len, value_len) =
        (record.key.map_or(0, <[u8]>::len), record.value.map_or(0, <[u8]>::len));
    (marks + key_len + value_len) as u64 + headers_len
}

/// Appends one record to `target`; `Err` gives the size that is over the limit.
#[inline(always)]
fn put_record(
    target: &mut Buffer,
    record: &Record<'_>,
    index: usize,
    timestamp_delta: i64,
    bytes_max: u32,
) -> Result<(), u64> {
    let (key, value) = (record.key.unwrap_or_default(), record.value.unwrap_or_default());
    let (key_mark, value_mark) = (mark(record.key), mark(record.value));
    let (delta, index_number) = (varint::zigzag(timestamp_delta), index as u64);
    let all_short =
        key_mark + value_mark < varint::SHORT - 16 && (delta | index_number) < varint::SHORT;
    if !all_short || !record.headers.is_empty() {
        return put_long_record(target, record, index, timestamp_delta, bytes_max);
    }
    // A short record, as most are; the numbers of a very short one take a byte each.
    let body_min = (key.len() + value.len() + 5) as u64;
    let (head, middle) = if (delta | index_number | key_mark | value_mark | body_min) < 0x80 {
        (Shorts::bytes([body_min, delta, index_number, key_mark]), Shorts::bytes([value_mark]))
    } else {
        let head = Shorts::default().then(delta).then(index_number).then(key_mark);
        let middle = Shorts::default().then(value_mark);
        let body = head.len() + key.len() + middle.len() + value.len() + 1;
        (Shorts::default().then(body as u64).and(head), middle)
    };
    let (key_at, value_at) = (head.len(), head.len() + key.len() + middle.len());
    let len = value_at + value.len() + 1;
    let total = (target.len() + len) as u64;
    if total > u64::from(bytes_max) {
        return Err(total);
    }
    // Numbers are stored eight bytes wide; what is too much lies under what comes behind.
    let room = &mut target.room(len + Shorts::WIDTH)[..len + Shorts::WIDTH];
    head.store(room, 0);
    if !key.is_empty() {
        room[key_at..][..key.len()].copy_from_slice(key);
    }
    middle.store(room, key_at + key.len());
    room[value_at..][..value.len()].copy_from_slice(value);
    room[len - 1] = 0;
    target.advance(len);
    Ok(())
}

/// As [`put_record`], of any size.
#[inline(never)]
fn put_long_record(
    target: &mut Buffer,
    record: &Record<'_>,
    index: usize,
    timestamp_delta: i64,
    bytes_max: u32,
) -> Result<(), u64> {
    let numbers = varint::len_i64(timestamp_delta) + varint::len_u64(index as u64);
    let body = numbers as u64 + body_len(record);
    let key_mark = mark(record.key);
    let value_mark = mark(record.value);
    let total = target.len() as u64 + varint::len_u64(body) as u64 + body;
    if total > u64::from(bytes_max) {
        return Err(total);
    }
    varint::put_u64(target, body);
    varint::put_i64(target, timestamp_delta);
    varint::put_u64(target, index as u64);
    varint::put_u64(target, key_mark);
    target.put(record.key.unwrap_or_default());
    varint::put_u64(target, value_mark);
    target.put(record.value.unwrap_or_default());
    varint::put_u64(target, record.headers.len() as u64);
    for (name, value) in &record.headers {
        varint::put_u64(target, name.len() as u64);
        target.put(name.as_bytes());
        varint::put_u64(target, value.len() as u64 + 1);
        target.put(value);
    }
    Ok(())
}

#[cold]
fn invalid(partition: &TopicPartition, index: usize, reason: &str) -> Error {
    Error::InvalidRecord { partition: partition.clone(), index, reason: reason.to_owned() }
}

#[cold]
fn too_large(partition: &TopicPartition, bytes: u64, settings: &DraftSettings) -> Error {
    let bytes_max = settings.bytes_max.into();
    Error::RecordTooLarge { partition: partition.clone(), bytes, bytes_max }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun() -> Buffer {
        let mut buffer = Buffer::default();
        // What an earlier batch left must not matter.
        buffer.room(1 << 16).fill(0xaa);
        buffer.put(&[1]);
        buffer
    }

    #[test]
    fn a_short_record_is_written_as_any_other() {
        let bytes = vec![7; 17_000];
        let lengths = [
            0, 1, 100, 125, 126, 127, 128, 129, 8000, 16_360, 16_366, 16_367, 16_368, 16_383,
            16_384,
        ];
        let fields: Vec<Option<&[u8]>> =
            [None].into_iter().chain(lengths.map(|len| Some(&bytes[..len]))).collect();
        for (key, value) in
            fields.iter().flat_map(|key| fields.iter().map(move |value| (*key, *value)))
        {
            let record = Record { key, value, ..Record::default() };
            for delta in [0, 1, -1, 63, -64, 64, -65, 8191, -8192, 8192, -8193, i64::MAX, i64::MIN]
            {
                for index in [0, 127, 128, 16_383, 16_384] {
                    let (mut one, mut other) = (begun(), begun());
                    put_record(&mut one, &record, index, delta, u32::MAX).unwrap();
                    put_long_record(&mut other, &record, index, delta, u32::MAX).unwrap();
                    assert_eq!(*one, *other, "{delta} {index}");
                    let limit = u32::try_from(one.len()).unwrap();
                    let mut again = begun();
                    assert!(put_record(&mut again, &record, index, delta, limit).is_ok());
                    let refused = put_record(&mut begun(), &record, index, delta, limit - 1);
                    assert_eq!(refused, Err(limit.into()));
                }
            }
        }
    }
}
