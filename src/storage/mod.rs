//! The seam to the disk: what the layers above may ask of a file system, and who answers.
//!
//! [`Disk`] is one directory, [`File`] one file in it, [`Mapping`] a file's bytes in memory. Three
//! implementations: [`real`] (the operating system), [`memory`] (nothing survives the process) and
//! `simulated` (a file system that crashes, tears, fills up and fails on demand).
//!
//! Paths are relative to the disk's root, with `/` between names and no leading one.
//!
//! Threads: everything here may be called from any thread. Writers of one byte range of one file
//! are kept apart by the caller.
//!
//! The only home of `unsafe`, of `std::fs`, of clocks and of threads' identities.

#![allow(unsafe_code, reason = "mappings and system calls live here and nowhere else")]

mod buffers;
mod clock;
#[cfg(test)]
mod conformance;
mod fork;
mod mapping;
mod memory;
mod names;
mod pulse;
mod real;
#[cfg(any(test, feature = "simulation"))]
pub(crate) mod simulated;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

pub(crate) use buffers::{BufferPool, PooledBuffer};
pub use clock::Clock;
pub(crate) use clock::Steady;
pub(crate) use fork::ForkGuard;
pub(crate) use mapping::Mapping;
pub(crate) use memory::MemoryDisk;
pub(crate) use pulse::Pulse;
pub(crate) use real::{RealDisk, TemporaryDirectory, process_id, temporary_directory};

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpenMode {
    /// To read. The file must exist.
    Read,
    /// To read and write. The file must exist.
    Write,
    /// To read and write a file that must not exist yet.
    Create,
}

/// What a name in a directory stands for. Links are not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// Anything else: a link, a device, a pipe.
    Other,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The last part of its path; names that are no UTF-8 are left out by [`Disk::list`].
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
    /// Its length in bytes, for a file.
    pub len: u64,
}

/// One directory tree that keeps files.
///
/// A crash may undo any change to a directory (create, rename, remove) made since
/// [`Disk::sync_dir`] last returned for it.
pub(crate) trait Disk: Send + Sync + fmt::Debug {
    /// Where the tree is, for messages.
    fn root(&self) -> &Path;
    /// Opens a regular file. Never follows a link, never blocks on a pipe: those are `InvalidInput`.
    ///
    /// # Errors
    /// `NotFound`, `AlreadyExists` with [`OpenMode::Create`], `InvalidInput`, and what the system says.
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn File>>;
    /// Makes a directory; `AlreadyExists` if there is one.
    fn create_dir(&self, path: &str) -> io::Result<()>;
    /// Renames a file or directory over whatever file is there.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file; what is open or mapped stays readable.
    fn remove(&self, path: &str) -> io::Result<()>;
    /// Removes an empty directory.
    fn remove_dir(&self, path: &str) -> io::Result<()>;
    /// The names in a directory, sorted; `""` is the root.
    fn list(&self, path: &str) -> io::Result<Vec<Entry>>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &str) -> io::Result<()>;
    /// Takes the disk for this opener alone, whatever becomes of the file at `path` (made if needed), which bears the `note`;
    /// freed when the guard drops or the process dies. `WouldBlock` if another opener holds it.
    fn lock(&self, path: &str, note: &str) -> io::Result<Box<dyn DiskLock>>;
    /// The disk as it is there now, where its directory is another one than was known, or is mounted anew: what was learnt of
    /// that holds no more. `None`: it is the same.
    ///
    /// # Errors
    /// What the system says.
    fn exchanged(&self) -> io::Result<Option<Arc<dyn Disk>>> {
        Ok(None)
    }
    /// Bytes that files can still take.
    fn free_bytes(&self) -> io::Result<u64>;
    /// Whether bytes that were written take no more room when they are stored to through a mapping. Where each write goes to a
    /// new place (btrfs, ZFS), a store finds none on a full disk, which is a signal.
    fn stores_in_place(&self) -> bool;
    /// Which run of the machine this is: the page cache of one run is gone in the next.
    fn boot_id(&self) -> u128;
    /// Which life of the page cache this is, as a process sees it that may write: a run of the machine, and a mounting of the
    /// file system, for a disk that failed and is mounted anew has lost what was not flushed. 0: not known.
    fn cache_id(&self) -> u128 {
        self.boot_id()
    }
    /// Whether it answers, where that can be watched.
    fn pulse(&self) -> Option<&Arc<Pulse>> {
        None
    }
    /// 128 random bits.
    fn entropy(&self) -> u128;
}

/// What [`Disk::lock`] gives; the lock goes when it is dropped.
pub(crate) trait DiskLock: Send + Sync + fmt::Debug {}

impl<T: Send + Sync + fmt::Debug> DiskLock for T {}

/// An open file. A crash may take any write made since the last sync returned; reads see it at once.
pub(crate) trait File: Send + Sync + fmt::Debug {
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Reads at `position`; may be short, and is 0 at the end.
    fn read_at(&self, position: u64, target: &mut [u8]) -> io::Result<usize>;
    /// Writes at `position`, growing the file; may be short.
    fn write_at(&self, position: u64, source: &[u8]) -> io::Result<usize>;
    /// Makes the file at least `position + len` long, with real room behind the range: a full disk
    /// shows here and not later. Bytes that were never written read as zero.
    fn allocate(&self, position: u64, len: u64) -> io::Result<()>;
    /// Cuts or extends (with zeroes) to `len` bytes.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes the contents durable, and the length if it grew (`fdatasync`).
    fn sync_data(&self) -> io::Result<()>;
    /// Writes all of `source` at `position` and makes these bytes durable, as a write and a sync do.
    fn write_durably_at(&self, position: u64, source: &[u8]) -> io::Result<()>;
    /// Makes durable all that its file system holds, names as well: for who has no handle left for [`Disk::sync_dir`].
    fn sync_file_system(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Asks the file system for a change that says nothing: of the time of the last one. Where it hangs, or is frozen, this waits
    /// as a write does. Whether it takes the change is not told.
    fn touch(&self) {}
    /// Maps the first `len` bytes, which may reach past the end of the file. Only bytes within the
    /// file's length may be touched; to store, only bytes that were allocated and written before.
    fn map(&self, len: usize, writable: bool) -> io::Result<Mapping>;
}

/// Writes all of `source`, going on after short writes and interruptions.
pub(crate) fn write_all_at(
    file: &dyn File,
    mut position: u64,
    mut source: &[u8],
) -> io::Result<()> {
    while !source.is_empty() {
        match file.write_at(position, source) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                position += count as u64;
                source = &source[count..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads until `target` is full or the file ends; returns how many bytes there were.
pub(crate) fn read_full_at(file: &dyn File, position: u64, target: &mut [u8]) -> io::Result<usize> {
    let (count, outcome) = read_on_at(file, position, target);
    outcome.map(|()| count)
}

/// As [`read_full_at`]; also how many bytes there were before what cannot be read.
pub(crate) fn read_on_at(
    file: &dyn File,
    position: u64,
    target: &mut [u8],
) -> (usize, io::Result<()>) {
    let mut done = 0;
    while done < target.len() {
        match file.read_at(position + done as u64, &mut target[done..]) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (done, Err(error)),
        }
    }
    (done, Ok(()))
}

/// The whole of a small file, at most `len_max` bytes of it. `NotFound` if there is none.
pub(crate) fn read_small(disk: &dyn Disk, path: &str, len_max: usize) -> io::Result<Vec<u8>> {
    let file = disk.open(path, OpenMode::Read)?;
    let len = usize::try_from(file.len()?).unwrap_or(usize::MAX).min(len_max);
    let mut bytes = vec![0; len];
    let count = read_full_at(&*file, 0, &mut bytes)?;
    bytes.truncate(count);
    Ok(bytes)
}

/// Puts `bytes` at `path` so that a crash leaves the old file or the new one, whole: temporary name,
/// sync, rename, sync the directory.
pub(crate) fn replace_file(disk: &dyn Disk, path: &str, bytes: &[u8]) -> io::Result<()> {
    exchange_file(disk, path, bytes, true)?;
    disk.sync_dir(parent(path))
}

/// As [`replace_file`], without a sync: whole after the death of the process, anything after a power
/// loss. For files that only count while the machine runs on.
pub(crate) fn replace_file_unsynced(disk: &dyn Disk, path: &str, bytes: &[u8]) -> io::Result<()> {
    exchange_file(disk, path, bytes, false)
}

fn exchange_file(disk: &dyn Disk, path: &str, bytes: &[u8], sync: bool) -> io::Result<()> {
    let temporary = format!("{path}.tmp");
    match disk.remove(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = (|| {
        let file = disk.open(&temporary, OpenMode::Create)?;
        write_all_at(&*file, 0, bytes)?;
        if sync {
            file.sync_data()?;
        }
        disk.rename(&temporary, path)
    })();
    if let Err(error) = written {
        // Half a file under a temporary name is in nobody's way; the next attempt clears it as well.
        let _ = disk.remove(&temporary);
        return Err(error);
    }
    Ok(())
}

/// The directory that holds `path`; the root is `""`.
pub(crate) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(directory, _)| directory)
}
