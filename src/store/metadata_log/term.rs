//! Which term a disk knows that an opening may have begun.
//!
//! Two places in one file. The one that does not hold the last term is written, so that a crash tears nothing that counts.
//! Nothing needs room but the file itself, once: the reserve of a full disk is given up for it. Each: magic (8 bytes), term
//! u64, CRC-32 of both, seeded with the store's id.

use std::io;

use crate::error::{Error, ErrorClass, is_out_of_space};
use crate::storage::{Disk, OpenMode, parent, read_small, replace_file, write_all_at};
use crate::store::layout::{TERM, give_up_reserve};
use crate::types::StoreId;

use super::seed;

const MAGIC: &[u8; 8] = b"onceterm";
const PLACE_BYTES: usize = 4096;
/// What is reckoned from a term does not overflow.
const TERM_MAX: u64 = 1 << 61;

/// What a disk knows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known {
    /// The last term; 0 if it knows of none.
    pub(super) term: u64,
    /// Where that is.
    at: usize,
    /// It may have known of a later one.
    pub(super) is_damaged: bool,
}

/// What the disk knows. Bad sectors are damage, and so is a file that is not there: each disk of a store has one.
///
/// # Errors
/// Those that pass.
pub(super) fn read(disk: &dyn Disk, store: StoreId) -> io::Result<Known> {
    let nothing = Known { is_damaged: true, ..Known::default() };
    let bytes = match read_small(disk, TERM, 2 * PLACE_BYTES) {
        Ok(bytes) if bytes.len() < 2 * PLACE_BYTES => return Ok(nothing),
        Ok(bytes) => bytes,
        Err(error) => {
            return match Error::io(TERM, "read", error.kind().into()).class() {
                ErrorClass::Retriable => Err(error),
                _ => Ok(nothing),
            };
        }
    };
    let mut known = Known::default();
    for (at, place) in (0..).step_by(PLACE_BYTES).zip(bytes.chunks(PLACE_BYTES)) {
        match decode(place, store) {
            Some(term) if term > known.term => (known.term, known.at) = (term, at),
            Some(_) => {}
            None => known.is_damaged |= place.iter().any(|byte| *byte != 0),
        }
    }
    Ok(known)
}

/// Has the disk know that `term` may have begun: durable when this returns.
///
/// # Errors
/// Those of the file. What was known before still is.
pub(super) fn write(disk: &dyn Disk, store: StoreId, term: u64) -> io::Result<()> {
    let known = read(disk, store)?;
    let bytes = encode(store, term.max(known.term));
    if known.term == 0 {
        let mut both = vec![0; 2 * PLACE_BYTES];
        both[..bytes.len()].copy_from_slice(&bytes);
        let replace = || replace_file(disk, TERM, &both);
        return match replace() {
            Err(full) if is_out_of_space(&full) && give_up_reserve(disk) => replace(),
            replaced => replaced,
        };
    }
    // What is read may have been written by an attempt that failed, and be lost yet: it is written once more.
    let at = if known.term >= term { known.at } else { PLACE_BYTES - known.at };
    let file = disk.open(TERM, OpenMode::Write)?;
    write_all_at(&*file, at as u64, &bytes)?;
    file.sync_data()?;
    disk.sync_dir(parent(TERM))
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
    use crate::storage::simulated::{Fault, SimDisk, SyncFault};
    use crate::store::layout::set_reserve_aside;

    #[test]
    fn a_term_that_is_known_stays_so_where_a_later_one_is_torn_or_another_stores() {
        let (disk, store) = (MemoryDisk::new(), StoreId(7));
        let known = |store| read(&disk, store).unwrap().term;
        assert_eq!(known(store), 0);
        assert!(read(&disk, store).unwrap().is_damaged, "one that is removed may have known any");
        for (written, last) in [(3, 3), (4, 4), (2, 4), (5, 5), (9, 9), (8, 9)] {
            write(&disk, store, written).unwrap();
            assert_eq!(known(store), last);
        }
        assert_eq!(known(StoreId(8)), 0);
        // However many of them it has missed.
        for next in [10, 12, 15, 17] {
            let before = known(store);
            write(&disk, store, next).unwrap();
            let place = read(&disk, store).unwrap().at;
            let file = disk.open(TERM, OpenMode::Write).unwrap();
            write_all_at(&*file, place as u64 + 9, &[0xff]).unwrap();
            assert_eq!(known(store), before);
            assert!(read(&disk, store).unwrap().is_damaged);
            write(&disk, store, next).unwrap();
            assert_eq!(known(store), next);
            assert!(!read(&disk, store).unwrap().is_damaged);
        }
    }

    /// Where the file was lost, nothing could be changed until somebody else made room: no topic could be deleted.
    #[test]
    fn a_full_disk_takes_a_term_that_it_has_no_file_for() {
        let (disk, store) = (SimDisk::new(1), StoreId(7));
        set_reserve_aside(&disk);
        disk.set_free_bytes(Some(0));
        write(&disk, store, 5).unwrap();
        assert_eq!(read(&disk, store).unwrap().term, 5);
        // In its place, however full the disk is.
        write(&disk, store, 6).unwrap();
        assert_eq!(read(&disk, store).unwrap().term, 6);
    }

    /// It was found to be there, and not written again.
    #[test]
    fn a_term_that_a_disk_failed_to_take_is_durable_once_it_takes_it() {
        let store = StoreId(7);
        for seed in 0..8 {
            for (before, call) in (0..3).flat_map(|before| (1..20).map(move |call| (before, call)))
            {
                let disk = SimDisk::new(seed);
                (1..=before).for_each(|term| write(&disk, store, term).unwrap());
                match call % 2 {
                    0 => disk.fail_from(call / 2, Fault::Eio),
                    _ => disk.fail_sync(call / 2 + 1, SyncFault::CleanedPages),
                }
                let _ = write(&disk, store, 5);
                disk.heal();
                write(&disk, store, 5).unwrap();
                disk.power_loss();
                let known = read(&disk, store).unwrap().term;
                assert_eq!(known, 5, "seed {seed}, after {before}, call {call}");
            }
        }
    }
}
