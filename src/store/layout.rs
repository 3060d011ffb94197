//! What lies where in a store's directory.
//!
//! ```text
//! data/
//!   lock                    held by the process that has the store open
//!   store.id                whose directory this is, and which of the store's disks
//!   session                 how the store was last left, and how far each log reached then
//!   metadata.0, metadata.1  the metadata log, twice
//!   term                    which opening may have begun to change it
//!   topics/00000001-orders/0/00000000000000000000.log    batches
//!                            00000000000000000000.side   what is known of them
//!                            marks                       offsets, for readers in other processes
//!   quarantine/             what a log gave up: torn tails, damaged bytes, files not its own
//!   reserve                 room that opening the store on a full disk takes
//! ```

use crate::error::{DecodeError, Error};
use crate::storage::{Disk, OpenMode, read_small, replace_file};
use crate::types::{DiskId, StoreId, TopicId};

pub(super) const LOCK: &str = "lock";
pub(super) const IDENTITY: &str = "store.id";
pub(super) const SESSION: &str = "session";
pub(super) const METADATA: [&str; 2] = ["metadata.0", "metadata.1"];
pub(super) const TERM: &str = "term";
pub(super) const TOPICS: &str = "topics";

pub(super) const RESERVE: &str = "reserve";
const RESERVE_BYTES: u64 = 16 << 10;

/// Does something that takes a little room. On a full disk, the reserve is given up for it.
///
/// # Errors
/// Those of `act`.
pub(super) fn with_reserve(
    disk: &dyn Disk,
    act: impl Fn() -> Result<(), Error>,
) -> Result<(), Error> {
    match act() {
        Err(Error::NoSpace { .. }) if give_up_reserve(disk) => act(),
        outcome => outcome,
    }
}

/// Whether there is more room now.
pub(super) fn give_up_reserve(disk: &dyn Disk) -> bool {
    disk.remove(RESERVE).is_ok()
}

/// Sets a reserve aside, if there is none and there is room.
pub(super) fn set_reserve_aside(disk: &dyn Disk) {
    let Ok(file) = disk.open(RESERVE, OpenMode::Create) else { return };
    if file.allocate(0, RESERVE_BYTES).is_err() {
        // The next opening tries again.
        let _ = disk.remove(RESERVE);
    }
}

/// Characters of a topic's name that its directory bears; names may be longer than a file's.
const NAME_CHARS_MAX: usize = 200;

/// The directory of a topic.
pub(super) fn topic_directory(id: TopicId, name: &str) -> String {
    let end = name.len().min(NAME_CHARS_MAX);
    format!("{TOPICS}/{:08}-{}", id.0, &name[..end])
}

/// The directory of a partition.
pub(super) fn partition_directory(id: TopicId, name: &str, partition: u32) -> String {
    format!("{}/{partition}", topic_directory(id, name))
}

const MAGIC: &[u8; 8] = b"onceid\0\0";
/// The version of the directory as a whole. A newer one is refused before anything is written.
pub(super) const VERSION: u32 = 1;
const IDENTITY_BYTES: usize = 64;

/// Whose directory it is: magic (8 bytes), version u32, disk u16, two reserved bytes, store u128, disk
/// uuid u128, incarnation u64, reserved u32, CRC-32 of what is before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DirectoryIdentity {
    pub(super) store: StoreId,
    pub(super) disk: DiskId,
    /// Drawn when the directory became a disk of the store.
    pub(super) uuid: u128,
    /// Rises when the directory is replaced, so that an old copy is recognised.
    pub(super) incarnation: u64,
}

/// What the identity file of a directory says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum IdentityFile {
    Absent,
    Damaged(DecodeError),
    Newer(u32),
    Intact(DirectoryIdentity),
}

impl DirectoryIdentity {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(IDENTITY_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.disk.0.to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&self.store.0.to_le_bytes());
        bytes.extend_from_slice(&self.uuid.to_le_bytes());
        bytes.extend_from_slice(&self.incarnation.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> IdentityFile {
        let Some(bytes) =
            bytes.first_chunk::<IDENTITY_BYTES>().filter(|_| bytes.len() == IDENTITY_BYTES)
        else {
            let have = bytes.len() as u64;
            return IdentityFile::Damaged(DecodeError::Short { have, need: IDENTITY_BYTES as u64 });
        };
        if crc32fast::hash(&bytes[..60]) != u32::from_le_bytes(part(bytes, 60))
            || &bytes[..8] != MAGIC
        {
            return IdentityFile::Damaged(DecodeError::Checksum("identity"));
        }
        let version = u32::from_le_bytes(part(bytes, 8));
        if version != VERSION {
            return IdentityFile::Newer(version);
        }
        IdentityFile::Intact(Self {
            disk: DiskId(u16::from_le_bytes(part(bytes, 12))),
            store: StoreId(u128::from_le_bytes(part(bytes, 16))),
            uuid: u128::from_le_bytes(part(bytes, 32)),
            incarnation: u64::from_le_bytes(part(bytes, 48)),
        })
    }

    /// Puts the identity into the directory.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`].
    pub(super) fn write(&self, disk: &dyn Disk) -> Result<(), Error> {
        replace_file(disk, IDENTITY, &self.encode())
            .map_err(|error| Error::io(disk.root().join(IDENTITY), "write", error))
    }

    /// Reads the identity of a directory.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn read(disk: &dyn Disk) -> Result<IdentityFile, Error> {
        match read_small(disk, IDENTITY, IDENTITY_BYTES + 1) {
            Ok(bytes) => Ok(Self::decode(&bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(IdentityFile::Absent),
            Err(error) => Err(Error::io(disk.root().join(IDENTITY), "read", error)),
        }
    }
}

fn part<const N: usize>(bytes: &[u8; IDENTITY_BYTES], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("a field within the identity")
}
