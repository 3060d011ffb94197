//! What is known of a segment's first batches, in a file beside it: `<base>.side`.
//!
//! Vouches for a prefix of the data file: for all of a sealed segment, for the part up to the last
//! checkpoint of the active one. Written after that part is on stable storage (`durable`), or for
//! this run of the machine only. Lost or damaged, it is rebuilt by a walk over the data.
//!
//! | byte | size | field            | meaning                                            |
//! |-----:|-----:|------------------|----------------------------------------------------|
//! |    0 |    8 | `magic`          | `oncside` and a zero                               |
//! |    8 |    4 | `version`        | 1                                                  |
//! |   12 |    4 | `seed`           | the partition's identity                           |
//! |   16 |    8 | `base`           | first offset of the segment                        |
//! |   24 |    8 | `end`            | one past the last offset vouched for               |
//! |   32 |    8 | `position`       | one past the last byte vouched for                 |
//! |   40 |    8 | `max_timestamp`  | i64 ms; `i64::MIN` = no records                    |
//! |   48 |    8 | `last_append`    | i64 ms, by the clock of the machine                |
//! |   56 |   16 | `boot`           | the run of the machine that wrote it               |
//! |   72 |    4 | `flags`          | bit 0: `durable`, bit 1: `producers`               |
//! |   76 |    4 | `sections_len`   | bytes of the sections                              |
//! |   80 |    4 | `sections_crc`   | CRC-32 of the sections                             |
//! |   84 |    4 | `head_crc`       | CRC-32 of bytes 0..84                              |
//! |   88 |      | sections         | each: kind u32, length u32, that many bytes        |
//!
//! Section 1 is the sparse index: 16 bytes an entry (relative offset u32, position u32, time before
//! i64). Section 2 is about transactions: `decided` u64 (below it, no later segment's marker changes anything; 0 = not
//! known), then 24 bytes for each abort marker (producer u64, first offset u64, offset of the marker u64). A
//! reader skips sections of a kind that it does not know.

use std::sync::Arc;

use crate::error::DecodeError;
use crate::protocol::producer_state::transactions::AbortedRange;
use crate::record::ALIGNMENT;
use crate::types::{Offset, ProducerId, Timestamp};

use super::file_header::DATA_START;
use super::index::{IndexEntry, SparseIndex};

const MAGIC: &[u8; 8] = b"oncside\0";
const VERSION: u32 = 1;
const SECTION_INDEX: u32 = 1;
const SECTION_TRANSACTIONS: u32 = 2;
const ENTRY_BYTES: usize = 16;
const ABORTED_BYTES: usize = 24;
const DURABLE: u32 = 1;
const PRODUCERS: u32 = 2;

/// The part of a side file that says what it vouches for.
pub(crate) const HEAD_BYTES: usize = 88;
/// A side file is never larger than this; a longer one is not read.
pub(crate) const SIDE_BYTES_MAX: usize = 64 << 20;

/// What a side file vouches for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SideHead {
    pub(crate) seed: u32,
    pub(crate) base: Offset,
    pub(crate) end: Offset,
    pub(crate) position: u64,
    pub(crate) max_timestamp: Timestamp,
    pub(crate) last_append: Timestamp,
    /// The run of the machine in which it was written.
    pub(crate) boot: u128,
    /// Whether the data was on stable storage before this was written.
    pub(crate) durable: bool,
    /// Whether any of the batches has a producer.
    pub(crate) producers: bool,
}

/// The contents of a side file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SideFile {
    pub(crate) head: SideHead,
    pub(crate) index: Arc<SparseIndex>,
}

impl SideFile {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let index_bytes = self.index.entries.len() * ENTRY_BYTES;
        let transaction_bytes = 8 + self.index.aborted.len() * ABORTED_BYTES;
        let mut sections = Vec::with_capacity(16 + index_bytes + transaction_bytes);
        sections.extend_from_slice(&SECTION_INDEX.to_le_bytes());
        sections.extend_from_slice(&length(index_bytes).to_le_bytes());
        for entry in &self.index.entries {
            sections.extend_from_slice(&entry.relative_offset.to_le_bytes());
            sections.extend_from_slice(&entry.position.to_le_bytes());
            sections.extend_from_slice(&entry.time_before.0.to_le_bytes());
        }
        sections.extend_from_slice(&SECTION_TRANSACTIONS.to_le_bytes());
        sections.extend_from_slice(&length(transaction_bytes).to_le_bytes());
        sections.extend_from_slice(&self.index.decided.0.to_le_bytes());
        for range in &self.index.aborted {
            sections.extend_from_slice(&range.producer.0.to_le_bytes());
            sections.extend_from_slice(&range.first.0.to_le_bytes());
            sections.extend_from_slice(&range.last.0.to_le_bytes());
        }
        let head = &self.head;
        let mut bytes = Vec::with_capacity(HEAD_BYTES + sections.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&head.seed.to_le_bytes());
        bytes.extend_from_slice(&head.base.0.to_le_bytes());
        bytes.extend_from_slice(&head.end.0.to_le_bytes());
        bytes.extend_from_slice(&head.position.to_le_bytes());
        bytes.extend_from_slice(&head.max_timestamp.0.to_le_bytes());
        bytes.extend_from_slice(&head.last_append.0.to_le_bytes());
        bytes.extend_from_slice(&head.boot.to_le_bytes());
        let durable = if head.durable { DURABLE } else { 0 };
        let producers = if head.producers { PRODUCERS } else { 0 };
        bytes.extend_from_slice(&(durable | producers).to_le_bytes());
        bytes.extend_from_slice(&length(sections.len()).to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&sections).to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        bytes.extend_from_slice(&sections);
        bytes
    }

    /// Reads a whole side file.
    ///
    /// # Errors
    /// [`DecodeError`] names what does not fit; the side file is then rebuilt.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (head, sections_len, sections_crc) = decode_head(bytes)?;
        let sections = &bytes[HEAD_BYTES..];
        if sections.len() != sections_len as usize {
            let need = HEAD_BYTES as u64 + u64::from(sections_len);
            return Err(DecodeError::Short { have: bytes.len() as u64, need });
        }
        if crc32fast::hash(sections) != sections_crc {
            return Err(DecodeError::Checksum("side file"));
        }
        let mut reader = Reader { bytes: sections };
        let mut index = SparseIndex::default();
        while !reader.bytes.is_empty() {
            let kind = reader.u32()?;
            let len = reader.u32()? as usize;
            let section = reader.take(len)?;
            match kind {
                SECTION_INDEX => index.entries = decode_index(section, &head)?,
                SECTION_TRANSACTIONS => {
                    (index.decided, index.aborted) = decode_transactions(section, &head)?;
                }
                _ => {}
            }
        }
        Ok(Self { head, index: Arc::new(index) })
    }
}

impl SideHead {
    /// Reads only the first [`HEAD_BYTES`].
    ///
    /// # Errors
    /// As for [`SideFile::decode`].
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode_head(bytes).map(|(head, _, _)| head)
    }
}

/// Puts the length of the sections and both checksums right, where there is a head to put them.
#[cfg(any(test, feature = "simulation"))]
pub(crate) fn put_checksums(bytes: &mut [u8]) {
    let Some((head, sections)) = bytes.split_at_mut_checked(HEAD_BYTES) else { return };
    head[76..80].copy_from_slice(&length(sections.len()).to_le_bytes());
    head[80..84].copy_from_slice(&crc32fast::hash(sections).to_le_bytes());
    let crc = crc32fast::hash(&head[..84]);
    head[84..].copy_from_slice(&crc.to_le_bytes());
}

fn decode_head(bytes: &[u8]) -> Result<(SideHead, u32, u32), DecodeError> {
    let Some(head) = bytes.first_chunk::<HEAD_BYTES>() else {
        return Err(DecodeError::Short { have: bytes.len() as u64, need: HEAD_BYTES as u64 });
    };
    let mut reader = Reader { bytes: head };
    if reader.take(8)? != MAGIC {
        return Err(DecodeError::Field("magic"));
    }
    let version = reader.u32()?;
    let seed = reader.u32()?;
    let base = Offset(reader.u64()?);
    let end = Offset(reader.u64()?);
    let position = reader.u64()?;
    let max_timestamp = Timestamp(reader.u64()?.cast_signed());
    let last_append = Timestamp(reader.u64()?.cast_signed());
    let boot = u128::from(reader.u64()?) | u128::from(reader.u64()?) << 64;
    let flags = reader.u32()?;
    let sections_len = reader.u32()?;
    let sections_crc = reader.u32()?;
    if crc32fast::hash(&head[..HEAD_BYTES - 4]) != reader.u32()? {
        return Err(DecodeError::Checksum("side file head"));
    }
    if version != VERSION {
        return Err(DecodeError::Field("version"));
    }
    if base > end || end > Offset::MAX {
        return Err(DecodeError::Field("end"));
    }
    if position < DATA_START || !is_aligned(position) {
        return Err(DecodeError::Field("position"));
    }
    let durable = flags & DURABLE != 0;
    let producers = flags & PRODUCERS != 0;
    let head = SideHead {
        seed,
        base,
        end,
        position,
        max_timestamp,
        last_append,
        boot,
        durable,
        producers,
    };
    Ok((head, sections_len, sections_crc))
}

/// Whether a batch can begin there: a search for batches looks nowhere else.
fn is_aligned(position: u64) -> bool {
    position.is_multiple_of(ALIGNMENT as u64)
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("an index is far smaller than its segment")
}

/// Entries that are out of order, or point behind what the side file vouches for, are no index: where
/// appends go on is reckoned from the last one.
fn decode_index(section: &[u8], head: &SideHead) -> Result<Vec<IndexEntry>, DecodeError> {
    if !section.len().is_multiple_of(ENTRY_BYTES) {
        return Err(DecodeError::Field("index length"));
    }
    let mut reader = Reader { bytes: section };
    let mut entries: Vec<IndexEntry> = Vec::with_capacity(section.len() / ENTRY_BYTES);
    while !reader.bytes.is_empty() {
        let entry = IndexEntry {
            relative_offset: reader.u32()?,
            position: reader.u32()?,
            time_before: Timestamp(reader.u64()?.cast_signed()),
        };
        let rises = entries.last().is_none_or(|last| {
            last.relative_offset < entry.relative_offset
                && last.position < entry.position
                && last.time_before <= entry.time_before
        });
        let position = u64::from(entry.position);
        let within = (DATA_START..head.position).contains(&position)
            && is_aligned(position)
            && u64::from(entry.relative_offset) < head.end.since(head.base);
        if !rises || !within {
            return Err(DecodeError::Field("index entry"));
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// Ranges are in the order of their markers, which lie in what the side file vouches for.
fn decode_transactions(
    section: &[u8],
    head: &SideHead,
) -> Result<(Offset, Vec<AbortedRange>), DecodeError> {
    let mut reader = Reader { bytes: section };
    let decided = Offset(reader.u64()?);
    if decided > head.end || !reader.bytes.len().is_multiple_of(ABORTED_BYTES) {
        return Err(DecodeError::Field("transactions"));
    }
    let mut aborted: Vec<AbortedRange> = Vec::with_capacity(reader.bytes.len() / ABORTED_BYTES);
    while !reader.bytes.is_empty() {
        let producer = ProducerId(reader.u64()?);
        let (first, last) = (Offset(reader.u64()?), Offset(reader.u64()?));
        let rises = aborted.last().is_none_or(|before| before.last < last);
        if !rises || first > last || !(head.base..head.end).contains(&last) {
            return Err(DecodeError::Field("aborted range"));
        }
        aborted.push(AbortedRange { producer, first, last });
    }
    Ok((decided, aborted))
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let Some((taken, rest)) = self.bytes.split_at_checked(len) else {
            return Err(DecodeError::Short { have: self.bytes.len() as u64, need: len as u64 });
        };
        self.bytes = rest;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes were taken")))
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        let bytes = self.take(8)?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("eight bytes were taken")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(places: &[(u32, u32, i64)]) -> SideFile {
        let mut index = SparseIndex::default();
        for &(relative_offset, position, time) in places {
            index.push(IndexEntry { relative_offset, position, time_before: Timestamp(time) });
        }
        let head = SideHead {
            seed: 7,
            base: Offset(100),
            end: Offset(120),
            position: 1000,
            max_timestamp: Timestamp(9),
            last_append: Timestamp(9),
            boot: 3 << 80,
            durable: true,
            producers: true,
        };
        index.decided = Offset(110);
        index.aborted = vec![
            AbortedRange { producer: ProducerId(4), first: Offset(90), last: Offset(101) },
            AbortedRange { producer: ProducerId(5), first: Offset(100), last: Offset(119) },
        ];
        SideFile { head, index: Arc::new(index) }
    }

    #[test]
    fn s6_an_index_that_is_out_of_order_or_points_behind_the_end_is_refused_under_good_checksums() {
        for (places, sound) in [
            (&[(0, 64, 1), (5, 400, 1), (19, 996, 3)][..], true),
            (&[(0, 402, 1)], false),
            (&[], true),
            (&[(0, 63, 1)], false),
            (&[(0, 1000, 1)], false),
            (&[(0, u32::MAX, 1)], false),
            (&[(20, 400, 1)], false),
            (&[(0, 400, 1), (1, 400, 1)], false),
            (&[(3, 400, 1), (3, 500, 1)], false),
            (&[(3, 400, 5), (4, 500, 4)], false),
        ] {
            let side = side(places);
            let read = SideFile::decode(&side.encode());
            let expected = if sound { Ok(side) } else { Err(DecodeError::Field("index entry")) };
            assert_eq!(read, expected, "{places:?}");
        }
    }

    #[test]
    fn s6_aborted_ranges_that_cannot_be_are_refused_under_good_checksums() {
        let range = |first, last| AbortedRange {
            producer: ProducerId(4),
            first: Offset(first),
            last: Offset(last),
        };
        for (ranges, decided, sound) in [
            (vec![range(0, 100), range(100, 101)], 120, true),
            (vec![range(0, 99)], 0, false),
            (vec![range(0, 120)], 0, false),
            (vec![range(103, 102)], 0, false),
            (vec![range(0, 104), range(1, 103)], 0, false),
            (vec![], 121, false),
        ] {
            let mut side = side(&[]);
            let index = Arc::get_mut(&mut side.index).unwrap();
            (index.aborted, index.decided) = (ranges, Offset(decided));
            assert_eq!(SideFile::decode(&side.encode()).is_ok(), sound, "{:?}", side.index);
        }
    }

    #[test]
    fn s6_every_flipped_byte_and_every_cut_is_noticed() {
        let bytes = side(&[(0, 64, 1), (5, 400, 1)]).encode();
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            assert!(SideFile::decode(&flipped).is_err(), "byte {at}");
            assert!(SideFile::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_section_of_a_later_version_is_passed_over() {
        let side = side(&[(0, 64, 1)]);
        let mut bytes = side.encode();
        bytes.splice(HEAD_BYTES..HEAD_BYTES, *b"\x09\0\0\0\x03\0\0\0new");
        put_checksums(&mut bytes);
        assert_eq!(SideFile::decode(&bytes), Ok(side));
    }
}
