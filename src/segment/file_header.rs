//! The first 64 bytes of a data file: what it is and whose.
//!
//! | byte | size | field        | meaning                     |
//! |-----:|-----:|--------------|-----------------------------|
//! |    0 |    8 | `magic`      | `oncelog` and a zero        |
//! |    8 |    4 | `version`    | 1                           |
//! |   12 |    4 | `partition`  | its number                  |
//! |   16 |   16 | `store`      | the store's id              |
//! |   32 |    8 | `topic`      | the topic's id              |
//! |   40 |    8 | `base`       | first offset                |
//! |   48 |    8 | `created`    | i64 ms                      |
//! |   56 |    4 | reserved     | 0                           |
//! |   60 |    4 | `crc`        | CRC-32 of bytes 0..60       |
//!
//! The header is for people and for versions: batches are bound to their place by their own
//! checksums, so a damaged file header costs nothing but a line in the report.

use crate::error::DecodeError;
use crate::types::{Offset, StoreId, Timestamp, TopicId};

use super::Identity;

/// Where the first batch begins.
pub(crate) const DATA_START: u64 = FILE_HEADER_BYTES as u64;
/// Bytes of the header itself.
pub(crate) const FILE_HEADER_BYTES: usize = 64;

const MAGIC: &[u8; 8] = b"oncelog\0";
const VERSION: u32 = 1;

/// What a data file says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileHeader {
    pub(crate) store: StoreId,
    pub(crate) topic: TopicId,
    pub(crate) partition: u32,
    pub(crate) base: Offset,
    pub(crate) created: Timestamp,
}

/// Why a file header is not one of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HeaderFault {
    /// Intact, and written by a newer version.
    Version(u32),
    /// Not what was written.
    Damaged(DecodeError),
}

impl FileHeader {
    pub(crate) fn new(identity: &Identity, base: Offset, created: Timestamp) -> Self {
        Self {
            store: identity.store,
            topic: identity.topic,
            partition: identity.partition.partition(),
            base,
            created,
        }
    }

    pub(crate) fn encode(&self) -> [u8; FILE_HEADER_BYTES] {
        let mut bytes = [0; FILE_HEADER_BYTES];
        bytes[0..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.partition.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.store.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.topic.0.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.base.0.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.created.0.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, HeaderFault> {
        let Some(bytes) = bytes.first_chunk::<FILE_HEADER_BYTES>() else {
            let have = bytes.len() as u64;
            return Err(HeaderFault::Damaged(DecodeError::Short { have, need: DATA_START }));
        };
        let crc = u32::from_le_bytes(part(bytes, 60));
        if crc32fast::hash(&bytes[..60]) != crc || &bytes[..8] != MAGIC {
            return Err(HeaderFault::Damaged(DecodeError::Checksum("file header")));
        }
        let version = u32::from_le_bytes(part(bytes, 8));
        if version != VERSION {
            return Err(HeaderFault::Version(version));
        }
        Ok(Self {
            partition: u32::from_le_bytes(part(bytes, 12)),
            store: StoreId(u128::from_le_bytes(part(bytes, 16))),
            topic: TopicId(u64::from_le_bytes(part(bytes, 32))),
            base: Offset(u64::from_le_bytes(part(bytes, 40))),
            created: Timestamp(i64::from_le_bytes(part(bytes, 48))),
        })
    }

    /// Whether the file belongs to this log.
    pub(crate) fn belongs_to(&self, identity: &Identity, base: Offset) -> bool {
        self.store == identity.store
            && self.topic == identity.topic
            && self.partition == identity.partition.partition()
            && self.base == base
    }
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("a field within the header")
}
