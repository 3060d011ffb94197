//! How the store was last left: cleanly or not, in which run of the machine, and how far each log
//! reached at its last clean stop.
//!
//! One small file, replaced as a whole: once when the store is opened, before anything is appended
//! (now the stop counts as unclean), and once when it was closed and everything flushed. The ends in it
//! stay true for logs that are not touched in between, so they are carried along. A damaged file
//! counts as an unclean stop of which nothing is known.
//!
//! Bytes: magic (8), version u32, flags u32 (bit 0: clean, bit 1: stale, bit 2: strayed, bit 3: lacks), cache u128, seed u32,
//! count u32, metadata term u64 and index u64, disks u64 (bit n: disk n was in service), then `count` entries (topic u64, partition
//! u32, flags u32 (bit 0: there are producers), end u64, start u64), CRC-32 of it all.

use std::collections::BTreeMap;

use crate::error::{Error, ErrorClass};
use crate::storage::{Disk, read_small, replace_file};
use crate::types::{DiskId, Offset, StoreId, TopicId};

use super::layout::SESSION;

const MAGIC: &[u8; 8] = b"oncesess";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 64;
const ENTRY_BYTES: usize = 32;
const CLEAN: u32 = 1;
const STALE: u32 = 2;
const STRAYED: u32 = 4;
const LACKS: u32 = 8;
const PRODUCERS: u32 = 1;
/// A million partitions; a longer file is not one of ours.
const BYTES_MAX: usize = HEAD_BYTES + ENTRY_BYTES * (1 << 20) + 4;

/// How a log was left at its last clean stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LogEnd {
    pub(super) end: Offset,
    /// Whether there were producers to remember.
    pub(super) producers: bool,
    /// Of a disk that strayed: what lies before was deleted there, of which the metadata that hold do not know.
    pub(super) start: Offset,
}

/// What is known of the last stop.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Session {
    pub(super) clean: bool,
    /// The disk lacks what it once held, and the metadata do not say so yet.
    pub(super) stale: bool,
    /// It went on without the other disk, as that one did without it, and their logs are still to be compared.
    pub(super) strayed: bool,
    /// Power was lost, and ids of transactions that went with it may still be given again.
    pub(super) lacks: bool,
    /// Of which life of the page cache it tells; 0: not known.
    pub(super) cache: u128,
    /// The last metadata record that was durable, as (term, index).
    pub(super) metadata: (u64, u64),
    /// The disks that have it, a bit for each.
    pub(super) disks: u64,
    /// Ends of logs that were flushed and had their side files written.
    pub(super) ends: BTreeMap<(TopicId, u32), LogEnd>,
}

impl Session {
    fn encode(&self, store: StoreId) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + self.ends.len() * ENTRY_BYTES + 4);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        let clean = if self.clean { CLEAN } else { 0 };
        let stale = if self.stale { STALE } else { 0 };
        let strayed = if self.strayed { STRAYED } else { 0 };
        let lacks = if self.lacks { LACKS } else { 0 };
        bytes.extend_from_slice(&(clean | stale | strayed | lacks).to_le_bytes());
        bytes.extend_from_slice(&self.cache.to_le_bytes());
        bytes.extend_from_slice(&seed(store).to_le_bytes());
        let count = u32::try_from(self.ends.len()).expect("fewer partitions than 2^32");
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&self.metadata.0.to_le_bytes());
        bytes.extend_from_slice(&self.metadata.1.to_le_bytes());
        bytes.extend_from_slice(&self.disks.to_le_bytes());
        for ((topic, partition), end) in &self.ends {
            bytes.extend_from_slice(&topic.0.to_le_bytes());
            bytes.extend_from_slice(&partition.to_le_bytes());
            let flags = if end.producers { PRODUCERS } else { 0 };
            bytes.extend_from_slice(&flags.to_le_bytes());
            bytes.extend_from_slice(&end.end.0.to_le_bytes());
            bytes.extend_from_slice(&end.start.0.to_le_bytes());
        }
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8], store: StoreId) -> Option<Self> {
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
            return None;
        }
        let (head, entries) = body.split_at_checked(HEAD_BYTES)?;
        let u32_at = |at: usize| Some(u32::from_le_bytes(*head.get(at..)?.first_chunk()?));
        let u64_at = |at: usize| Some(u64::from_le_bytes(*head.get(at..)?.first_chunk()?));
        let ours = &head[..8] == MAGIC && u32_at(8)? == VERSION && u32_at(32)? == seed(store);
        if !ours || entries.len() != (u32_at(36)? as usize).checked_mul(ENTRY_BYTES)? {
            return None;
        }
        let mut ends = BTreeMap::new();
        for entry in entries.chunks_exact(ENTRY_BYTES) {
            let topic = TopicId(u64::from_le_bytes(*entry.first_chunk()?));
            let partition = u32::from_le_bytes(*entry[8..].first_chunk()?);
            let flags = u32::from_le_bytes(*entry[12..].first_chunk()?);
            let end = Offset(u64::from_le_bytes(*entry[16..].first_chunk()?));
            let start = Offset(u64::from_le_bytes(*entry[24..].first_chunk()?));
            if end.max(start) > Offset::MAX {
                return None;
            }
            let producers = flags & PRODUCERS != 0;
            ends.insert((topic, partition), LogEnd { end, producers, start });
        }
        Some(Self {
            clean: u32_at(12)? & CLEAN != 0,
            stale: u32_at(12)? & STALE != 0,
            strayed: u32_at(12)? & STRAYED != 0,
            lacks: u32_at(12)? & LACKS != 0,
            cache: u128::from(u64_at(16)?) | u128::from(u64_at(24)?) << 64,
            metadata: (u64_at(40)?, u64_at(48)?),
            disks: u64_at(56)?,
            ends,
        })
    }

    /// What the directory says; nothing known if it says nothing intact.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn read(disk: &dyn Disk, store: StoreId) -> Result<Self, Error> {
        match read_small(disk, SESSION, BYTES_MAX) {
            Ok(bytes) => Ok(Self::decode(&bytes, store).unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => match Error::io(disk.root().join(SESSION), "read", error) {
                error if error.class() == ErrorClass::Retriable => Err(error),
                _ => Ok(Self::default()),
            },
        }
    }

    /// Replaces what the directory says.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`]; the old file is whole then.
    pub(super) fn write(&self, disk: &dyn Disk, store: StoreId) -> Result<(), Error> {
        replace_file(disk, SESSION, &self.encode(store))
            .map_err(|error| Error::io(disk.root().join(SESSION), "write", error))
    }
}

/// The bit of a disk among [`Session::disks`]; none beyond the first 64.
pub(super) fn bit_of(disk: DiskId) -> u64 {
    1_u64.checked_shl(disk.0.into()).unwrap_or(0)
}

fn seed(store: StoreId) -> u32 {
    crc32fast::hash(&store.0.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_comes_back_as_it_was_written_and_no_flipped_byte_is_believed() {
        let store = StoreId(7);
        let end = |end, producers| LogEnd { end: Offset(end), producers, start: Offset(2) };
        let ends =
            BTreeMap::from([((TopicId(1), 0), end(5, false)), ((TopicId(2), 3), end(9, true))]);
        let (clean, stale, strayed, lacks) = (true, true, true, true);
        let (cache, metadata, disks) = (3 << 70, (2, 17), 5);
        let session = Session { clean, stale, strayed, lacks, cache, metadata, disks, ends };
        let bytes = session.encode(store);
        assert_eq!(Session::decode(&bytes, store), Some(session));
        assert_eq!(Session::decode(&bytes, StoreId(8)), None);
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            assert_eq!(Session::decode(&flipped, store), None, "byte {at}");
            assert_eq!(Session::decode(&bytes[..at], store), None, "cut at {at}");
        }
    }

    #[test]
    fn an_end_behind_all_offsets_is_not_believed() {
        let (last, behind) = (Offset::MAX, Offset(Offset::MAX.0 + 1));
        let entry = |end, start| ((TopicId(1), 0), LogEnd { end, producers: false, start });
        for (end, start, sound) in
            [(last, last, true), (behind, last, false), (last, behind, false)]
        {
            let ends = BTreeMap::from([entry(end, start)]);
            let session = Session { ends, ..Session::default() };
            let decoded = Session::decode(&session.encode(StoreId(7)), StoreId(7));
            assert_eq!(decoded, sound.then_some(session));
        }
    }
}
