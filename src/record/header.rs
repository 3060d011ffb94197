//! The 80 bytes in front of every batch.
//!
//! | byte | size | field               | meaning                                                   |
//! |-----:|-----:|---------------------|-----------------------------------------------------------|
//! |    0 |    4 | `header_crc`        | CRC-32 of bytes 4..80, seeded with the partition's identity |
//! |    4 |    4 | `length`            | bytes of the whole batch, a multiple of 4; 0 = end of log |
//! |    8 |    1 | `magic`             | 0xB1                                                      |
//! |    9 |    1 | `padding`           | zero bytes at the end of the payload, 0 to 3              |
//! |   10 |    2 | `attributes`        | bits 0-2 codec, 3 append time, 4 transactional, 5 control |
//! |   12 |    4 | `leader_epoch`      |                                                           |
//! |   16 |    8 | `base_offset`       | offset of the first record                                |
//! |   24 |    4 | `last_offset_delta` | offset of the last record minus `base_offset`             |
//! |   28 |    4 | `record_count`      |                                                           |
//! |   32 |    8 | `producer_id`       | 0 = none                                                  |
//! |   40 |    4 | `producer_epoch`    |                                                           |
//! |   44 |    4 | `records_crc`       | CRC-32 of the payload with its padding                    |
//! |   48 |    8 | `base_sequence`     | producer's number of the first record                     |
//! |   56 |    8 | `base_timestamp`    | i64 ms; what record timestamps are relative to            |
//! |   64 |    8 | `max_timestamp`     | i64 ms                                                    |
//! |   72 |    8 | `durable_end`       | end offset that was on stable storage when this was written |

use crate::error::DecodeError;
use crate::types::{Compression, LeaderEpoch, Offset, ProducerEpoch, ProducerId, Timestamp};

use super::compression;

/// Size of an encoded header.
pub(crate) const HEADER_BYTES: usize = 80;
/// Where the length is within the header; it is stored last.
pub(crate) const LENGTH_AT: usize = 4;
/// Batches begin and end at multiples of this.
pub(crate) const ALIGNMENT: usize = 4;

const MAGIC: u8 = 0xB1;
const CODEC_MASK: u16 = 0b111;
const APPEND_TIME: u16 = 1 << 3;
const TRANSACTIONAL: u16 = 1 << 4;
const CONTROL: u16 = 1 << 5;
const KNOWN_ATTRIBUTES: u16 = CODEC_MASK | APPEND_TIME | TRANSACTIONAL | CONTROL;

/// What a batch says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    pub(crate) length: u32,
    pub(crate) padding: u8,
    pub(crate) compression: Compression,
    pub(crate) append_time: bool,
    pub(crate) transactional: bool,
    pub(crate) control: bool,
    pub(crate) leader_epoch: LeaderEpoch,
    pub(crate) base_offset: Offset,
    pub(crate) last_offset_delta: u32,
    pub(crate) record_count: u32,
    pub(crate) producer_id: ProducerId,
    pub(crate) producer_epoch: ProducerEpoch,
    pub(crate) records_crc: u32,
    pub(crate) base_sequence: u64,
    pub(crate) base_timestamp: Timestamp,
    pub(crate) max_timestamp: Timestamp,
    pub(crate) durable_end: Offset,
}

impl BatchHeader {
    /// The offset just after the batch.
    #[inline]
    pub(crate) fn end_offset(&self) -> Offset {
        self.base_offset.plus(u64::from(self.last_offset_delta) + 1)
    }

    /// Bytes of the whole batch.
    pub(crate) fn len(&self) -> usize {
        self.length as usize
    }

    /// Writes the header in front of its payload, checksum included.
    #[inline(always)]
    pub(crate) fn encode(&self, seed: u32, target: &mut [u8; HEADER_BYTES]) {
        let mut attributes = compression::codec_code(self.compression);
        if self.append_time {
            attributes |= APPEND_TIME;
        }
        if self.transactional {
            attributes |= TRANSACTIONAL;
        }
        if self.control {
            attributes |= CONTROL;
        }
        target[4..8].copy_from_slice(&self.length.to_le_bytes());
        target[8] = MAGIC;
        target[9] = self.padding;
        target[10..12].copy_from_slice(&attributes.to_le_bytes());
        target[12..16].copy_from_slice(&self.leader_epoch.0.to_le_bytes());
        target[16..24].copy_from_slice(&self.base_offset.0.to_le_bytes());
        target[24..28].copy_from_slice(&self.last_offset_delta.to_le_bytes());
        target[28..32].copy_from_slice(&self.record_count.to_le_bytes());
        target[32..40].copy_from_slice(&self.producer_id.0.to_le_bytes());
        target[40..44].copy_from_slice(&self.producer_epoch.0.to_le_bytes());
        target[44..48].copy_from_slice(&self.records_crc.to_le_bytes());
        target[48..56].copy_from_slice(&self.base_sequence.to_le_bytes());
        target[56..64].copy_from_slice(&self.base_timestamp.0.to_le_bytes());
        target[64..72].copy_from_slice(&self.max_timestamp.0.to_le_bytes());
        target[72..80].copy_from_slice(&self.durable_end.0.to_le_bytes());
        let crc = crc(seed, &target[LENGTH_AT..]);
        target[0..4].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads and checks a header. `bytes` may go on behind it, and need not hold the whole batch.
    ///
    /// # Errors
    /// [`DecodeError`] names the field that does not fit.
    #[inline]
    pub(crate) fn decode(bytes: &[u8], seed: u32) -> Result<Self, DecodeError> {
        let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(DecodeError::Short { have: bytes.len() as u64, need: HEADER_BYTES as u64 });
        };
        if u32_at(bytes, 0) != crc(seed, &bytes[LENGTH_AT..]) {
            return Err(DecodeError::Checksum("batch header"));
        }
        let header = Self::parse(bytes)?;
        header.check()?;
        Ok(header)
    }

    /// Reads a header that was checked before; `None` at the end of the bytes.
    #[inline]
    pub(crate) fn trusted(bytes: &[u8]) -> Option<Self> {
        Self::parse(bytes.first_chunk()?).ok()
    }

    #[inline]
    fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, DecodeError> {
        if bytes[8] != MAGIC {
            return Err(DecodeError::Field("magic"));
        }
        let attributes = u16::from_le_bytes([bytes[10], bytes[11]]);
        let codec = compression::codec_of(attributes & CODEC_MASK);
        let Some(compression) = codec.filter(|_| attributes & !KNOWN_ATTRIBUTES == 0) else {
            return Err(DecodeError::Field("attributes"));
        };
        Ok(Self {
            length: u32_at(bytes, 4),
            padding: bytes[9],
            compression,
            append_time: attributes & APPEND_TIME != 0,
            transactional: attributes & TRANSACTIONAL != 0,
            control: attributes & CONTROL != 0,
            leader_epoch: LeaderEpoch(u32_at(bytes, 12)),
            base_offset: Offset(u64_at(bytes, 16)),
            last_offset_delta: u32_at(bytes, 24),
            record_count: u32_at(bytes, 28),
            producer_id: ProducerId(u64_at(bytes, 32)),
            producer_epoch: ProducerEpoch(u32_at(bytes, 40)),
            records_crc: u32_at(bytes, 44),
            base_sequence: u64_at(bytes, 48),
            base_timestamp: Timestamp(u64_at(bytes, 56).cast_signed()),
            max_timestamp: Timestamp(u64_at(bytes, 64).cast_signed()),
            durable_end: Offset(u64_at(bytes, 72)),
        })
    }

    fn check(&self) -> Result<(), DecodeError> {
        let payload = (self.length as usize).checked_sub(HEADER_BYTES);
        if !self.length.is_multiple_of(4) || payload.is_none_or(|len| len < self.padding.into()) {
            return Err(DecodeError::Field("length"));
        }
        if usize::from(self.padding) >= ALIGNMENT {
            return Err(DecodeError::Field("padding"));
        }
        if self.record_count == 0
            || u64::from(self.record_count) > u64::from(self.last_offset_delta) + 1
        {
            return Err(DecodeError::Field("record_count"));
        }
        let last = self.base_offset.0.checked_add(self.last_offset_delta.into());
        if last.is_none_or(|last| last >= Offset::MAX.0) {
            return Err(DecodeError::Field("base_offset"));
        }
        if self.durable_end > Offset::MAX {
            return Err(DecodeError::Field("durable_end"));
        }
        Ok(())
    }
}

/// CRC-32 (IEEE) of `bytes`, continued from `seed`.
#[inline(always)]
pub(crate) fn crc(seed: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(bytes);
    hasher.finalize()
}

#[inline]
fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("a field within the header"))
}

#[inline]
fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("a field within the header"))
}
/// Puts both checksums of the batch at the start of `bytes` right, as far as it goes.
#[cfg(any(test, feature = "simulation"))]
pub(crate) fn put_checksums(bytes: &mut [u8], seed: u32) {
    let records_crc = crc(0, &bytes[HEADER_BYTES..]);
    bytes[44..48].copy_from_slice(&records_crc.to_le_bytes());
    let header_crc = crc(seed, &bytes[4..HEADER_BYTES]);
    bytes[..4].copy_from_slice(&header_crc.to_le_bytes());
}
