//! The state of all producers as bytes.
//!
//! Vouches for the part of the log below `end`, if the last batch of that part is of `leader_epoch`: the pair tells
//! two logs apart that went different ways after an election. Lost or damaged, it is made anew from an older one, or
//! from the log's start.
//!
//! | byte | size | field           | meaning                                                    |
//! |-----:|-----:|-----------------|------------------------------------------------------------|
//! |    0 |    8 | `magic`         | `oncprod` and a zero                                       |
//! |    8 |    4 | `version`       | 1                                                          |
//! |   12 |    4 | `seed`          | the partition's identity                                   |
//! |   16 |    8 | `end`           | one past the last offset vouched for                       |
//! |   24 |    8 | `changed_end`   | end of the last batch that had a producer                  |
//! |   32 |    4 | `leader_epoch`  | of the last batch                                          |
//! |   36 |    4 | `producers_len` |                                                            |
//! |   40 |    4 | `unsettled_len` | aborted ones whose marker the high watermark has not passed |
//! |   44 |      | producers       | those without an open transaction by last append, then the others |
//! |      |      | unsettled       | each: first offset u64, offset of the marker u64           |
//! |      |    4 | `crc`           | CRC-32 of all before it                                    |
//!
//! A producer: id u64, epoch u32, flags u8 (bit 0: a transaction is open, bit 1: that of `epoch` has ended), number of
//! batches u8 (0 to 5), known from u64, next sequence u64, last append i64 ms, first offset of the open transaction u64 if
//! there is one, and the batches, oldest first: sequence u64, base offset u64, append i64 ms, last offset delta u32.

use crate::error::DecodeError;
use crate::types::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, Timestamp};

use super::entry::{BATCHES_MAX, Entry, Remembered};
use super::states::ProducerStates;

const MAGIC: &[u8; 8] = b"oncprod\0";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 44;
const CRC_BYTES: usize = 4;
const PRODUCER_BYTES_MIN: usize = 38;
const PRODUCER_BYTES_MAX: usize = PRODUCER_BYTES_MIN + 8 + BATCHES_MAX * 28;
const UNSETTLED_BYTES: usize = 16;
const OPEN: u8 = 1;
const ENDED: u8 = 2;

/// A snapshot of this many producers and unsettled transactions is not longer; a reader refuses a longer file unread.
pub(crate) const fn snapshot_bytes_max(producers: usize, unsettled: usize) -> usize {
    HEAD_BYTES + producers * PRODUCER_BYTES_MAX + unsettled * UNSETTLED_BYTES + CRC_BYTES
}

impl ProducerStates {
    /// All that is known, for the partition whose identity is `seed`.
    pub(crate) fn snapshot(&self, seed: u32) -> Vec<u8> {
        let unsettled = self.transactions.unsettled();
        let mut bytes = Vec::with_capacity(snapshot_bytes_max(self.len(), unsettled.len()));
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&seed.to_le_bytes());
        bytes.extend_from_slice(&self.end.0.to_le_bytes());
        bytes.extend_from_slice(&self.changed_end.0.to_le_bytes());
        bytes.extend_from_slice(&self.leader_epoch.0.to_le_bytes());
        bytes.extend_from_slice(&length(self.len()).to_le_bytes());
        bytes.extend_from_slice(&length(unsettled.len()).to_le_bytes());
        for entry in self.producers.idle() {
            encode_producer(entry, &mut bytes);
        }
        for (_, producer) in self.transactions.open() {
            encode_producer(self.open_entry(producer), &mut bytes);
        }
        for (first, marker) in unsettled {
            bytes.extend_from_slice(&first.0.to_le_bytes());
            bytes.extend_from_slice(&marker.0.to_le_bytes());
        }
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    /// The state that [`ProducerStates::snapshot`] saw. Whether the log has the same past is for the caller to see, from
    /// `end` and `leader_epoch`. If there are more than `producers_max`, the next new one makes the oldest go.
    ///
    /// # Errors
    /// [`DecodeError`] names what does not fit; nothing of it can be used.
    pub(crate) fn restore(
        bytes: &[u8],
        seed: u32,
        producers_max: usize,
    ) -> Result<Self, DecodeError> {
        let Some((content, crc)) = bytes.split_last_chunk::<CRC_BYTES>() else {
            return Err(DecodeError::Short {
                have: bytes.len() as u64,
                need: (HEAD_BYTES + CRC_BYTES) as u64,
            });
        };
        if crc32fast::hash(content) != u32::from_le_bytes(*crc) {
            return Err(DecodeError::Checksum("producer snapshot"));
        }
        let mut fields = Fields(content);
        ensure(fields.take()? == *MAGIC, "magic")?;
        ensure(fields.u32()? == VERSION, "version")?;
        if fields.u32()? != seed {
            return Err(DecodeError::Misplaced("producer snapshot"));
        }
        let mut states = Self::new(Offset(fields.u64()?), producers_max);
        ensure(states.end <= Offset::MAX, "end")?;
        states.changed_end = Offset(fields.u64()?);
        ensure(states.changed_end <= states.end, "changed_end")?;
        states.leader_epoch = LeaderEpoch(fields.u32()?);
        let producers_len = fields.u32()?;
        let unsettled_len = fields.u32()?;
        for _ in 0..producers_len {
            states.add(decode_producer(&mut fields)?)?;
        }
        for _ in 0..unsettled_len {
            let first = Offset(fields.u64()?);
            let marker = Offset(fields.u64()?);
            let fits = first < marker && marker < states.changed_end;
            let is_new = states.transactions.can_add_unsettled(first, marker);
            ensure(fits && is_new, "unsettled")?;
            states.transactions.add_unsettled(first, marker);
        }
        ensure(fields.0.is_empty(), "length")?;
        Ok(states)
    }

    fn add(&mut self, entry: Entry) -> Result<(), DecodeError> {
        ensure(self.producers.get(entry.id).is_none(), "producer_id")?;
        let last = entry.batches().last();
        ensure(last.is_none_or(|last| last.end_offset() <= self.changed_end), "base_offset")?;
        if let Some(first) = entry.open {
            let is_new = self.transactions.newest_open().is_none_or(|newest| newest < first);
            ensure(is_new && last.is_some_and(|last| first <= last.base_offset), "open")?;
            self.transactions.begin(first, entry.id);
        }
        self.producers.insert(entry);
        Ok(())
    }
}

fn encode_producer(entry: &Entry, bytes: &mut Vec<u8>) {
    let batches = entry.batches();
    let open = if entry.open.is_some() { OPEN } else { 0 };
    let ended = if entry.ended { ENDED } else { 0 };
    bytes.extend_from_slice(&entry.id.0.to_le_bytes());
    bytes.extend_from_slice(&entry.epoch.0.to_le_bytes());
    bytes.push(open | ended);
    bytes.push(u8::try_from(batches.len()).expect("a handful"));
    bytes.extend_from_slice(&entry.known_from.to_le_bytes());
    bytes.extend_from_slice(&entry.next.to_le_bytes());
    bytes.extend_from_slice(&entry.appended_at.0.to_le_bytes());
    if let Some(first) = entry.open {
        bytes.extend_from_slice(&first.0.to_le_bytes());
    }
    for batch in batches {
        bytes.extend_from_slice(&batch.sequence.to_le_bytes());
        bytes.extend_from_slice(&batch.base_offset.0.to_le_bytes());
        bytes.extend_from_slice(&batch.appended_at.0.to_le_bytes());
        bytes.extend_from_slice(&batch.last_delta.to_le_bytes());
    }
}

fn decode_producer(fields: &mut Fields<'_>) -> Result<Entry, DecodeError> {
    let id = ProducerId(fields.u64()?);
    ensure(id != ProducerId(0), "producer_id")?;
    let mut entry = Entry::new(id, ProducerEpoch(fields.u32()?), 0);
    let [flags, batches_len] = fields.take()?;
    ensure(flags & !(OPEN | ENDED) == 0 && flags != OPEN | ENDED, "flags")?;
    entry.ended = flags & ENDED != 0;
    ensure(usize::from(batches_len) <= BATCHES_MAX, "batches_len")?;
    entry.known_from = fields.u64()?;
    let next = fields.u64()?;
    entry.appended_at = Timestamp(fields.u64()?.cast_signed());
    if flags & OPEN != 0 {
        entry.open = Some(Offset(fields.u64()?));
    }
    let (mut sequence_min, mut offset_min) = (0, Offset::ZERO);
    for _ in 0..batches_len {
        let batch = Remembered {
            sequence: fields.u64()?,
            base_offset: Offset(fields.u64()?),
            appended_at: Timestamp(fields.u64()?.cast_signed()),
            last_delta: fields.u32()?,
        };
        ensure(batch.sequence >= sequence_min, "base_sequence")?;
        ensure(batch.base_offset >= offset_min && batch.base_offset <= Offset::MAX, "base_offset")?;
        (sequence_min, offset_min) = (batch.end_sequence(), batch.end_offset());
        entry.remember(batch);
    }
    ensure(next == entry.next, "next")?;
    ensure(entry.known_from <= next, "known_from")?;
    Ok(entry)
}

fn length(count: usize) -> u32 {
    u32::try_from(count).expect("the limits lie far below")
}

fn ensure(holds: bool, field: &'static str) -> Result<(), DecodeError> {
    if holds { Ok(()) } else { Err(DecodeError::Field(field)) }
}

/// Bytes that have not been read yet.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const BYTES: usize>(&mut self) -> Result<[u8; BYTES], DecodeError> {
        let Some((field, rest)) = self.0.split_first_chunk() else {
            return Err(DecodeError::Short { have: self.0.len() as u64, need: BYTES as u64 });
        };
        self.0 = rest;
        Ok(*field)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.take().map(u64::from_le_bytes)
    }
}
