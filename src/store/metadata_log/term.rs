//! Which term a disk knows that an opening may have begun.
//!
//! Two places in one file, which are written in turn: what a crash tears is not the one that holds. Nothing needs room but the
//! file itself, once. Each: magic (8 bytes), term u64, CRC-32 of both, seeded with the store's id.

use std::io;

use crate::storage::{Disk, OpenMode, read_small, replace_file, write_all_at};
use crate::store::layout::TERM;
use crate::types::StoreId;

use super::seed;

const MAGIC: &[u8; 8] = b"onceterm";
const PLACE_BYTES: usize = 4096;
/// What is reckoned from a term does not overflow.
const TERM_MAX: u64 = 1 << 61;

/// The last term that the disk knows of; 0 if it knows of none.
///
/// # Errors
/// Those of reading the file.
pub(super) fn read(disk: &dyn Disk, store: StoreId) -> io::Result<u64> {
    let bytes = match read_small(disk, TERM, 2 * PLACE_BYTES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        bytes => bytes?,
    };
    let terms = bytes.chunks(PLACE_BYTES).filter_map(|place| decode(place, store));
    Ok(terms.max().unwrap_or_default())
}

/// Has the disk know that `term` may have begun: durable when this returns.
///
/// # Errors
/// Those of the file. What was known before still is.
pub(super) fn write(disk: &dyn Disk, store: StoreId, term: u64) -> io::Result<()> {
    if read(disk, store)? >= term {
        return Ok(());
    }
    let at = if term.is_multiple_of(2) { 0 } else { PLACE_BYTES };
    let bytes = encode(store, term);
    match disk.open(TERM, OpenMode::Write) {
        Ok(file) => {
            write_all_at(&*file, at as u64, &bytes)?;
            file.sync_data()
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut both = vec![0; 2 * PLACE_BYTES];
            both[at..at + bytes.len()].copy_from_slice(&bytes);
            replace_file(disk, TERM, &both)
        }
        Err(error) => Err(error),
    }
}

fn encode(store: StoreId, term: u64) -> Vec<u8> {
    let mut bytes = [&MAGIC[..], &term.to_le_bytes()].concat();
    let crc = checksum(store, &bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

fn decode(place: &[u8], store: StoreId) -> Option<u64> {
    let (body, rest) = place.split_first_chunk::<16>()?;
    let (magic, term) = body.split_first_chunk::<8>()?;
    let term = u64::from_le_bytes(*term.first_chunk()?);
    let sound = magic == MAGIC
        && rest.first_chunk() == Some(&checksum(store, body).to_le_bytes())
        && term <= TERM_MAX;
    sound.then_some(term)
}

fn checksum(store: StoreId, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed(store));
    hasher.update(bytes);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryDisk;

    #[test]
    fn a_term_that_is_known_stays_so_where_a_later_one_is_torn_or_another_stores() {
        let (disk, store) = (MemoryDisk::new(), StoreId(7));
        assert_eq!(read(&disk, store).unwrap(), 0);
        for (written, known) in [(3, 3), (4, 4), (2, 4), (5, 5), (9, 9), (8, 9)] {
            write(&disk, store, written).unwrap();
            assert_eq!(read(&disk, store).unwrap(), known);
        }
        assert_eq!(read(&disk, StoreId(8)).unwrap(), 0);
        write(&disk, store, 10).unwrap();
        let file = disk.open(TERM, OpenMode::Write).unwrap();
        write_all_at(&*file, 9, &[0xff]).unwrap();
        assert_eq!(read(&disk, store).unwrap(), 9);
    }
}
