//! Files in memory, for tests of applications: everything but the disk.
//!
//! A file is one block of the heap that mappings share with it. The block is exchanged for a bigger
//! one while nobody else holds it; while it is mapped it keeps its place, so a file that is mapped
//! cannot grow past the length it was mapped with: whoever grows a file maps it in full first.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::mapping::HeapBlock;
use super::names::{NameChange, Names, Node};
use super::{Disk, DiskLock, Entry, EntryKind, File, Mapping, OpenMode, write_all_at};

/// Room for the first bytes of a file that is not mapped.
const BLOCK_BYTES_MIN: usize = 4096;

/// A tree of files in memory. A clone is the same tree.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryDisk {
    tree: Arc<Mutex<Tree>>,
}

#[derive(Debug, Default)]
struct Tree {
    names: Names,
    files: BTreeMap<u64, Arc<MemoryFile>>,
    /// The largest number given to a file or directory.
    last: u64,
    locked: bool,
}

impl MemoryDisk {
    pub(crate) fn new() -> Self {
        Self::default()
    }
}

impl Tree {
    fn next_number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Makes the changes of one operation, and forgets the file whose name went: who holds it keeps it.
    fn apply(&mut self, changes: &[NameChange]) {
        let mut replaced = None;
        for change in changes {
            replaced = self.names.apply(change);
        }
        if let Some(Node::File(number)) = replaced {
            self.files.remove(&number);
        }
    }

    fn create_file(&mut self, path: &str) -> io::Result<Arc<MemoryFile>> {
        let number = self.next_number();
        let change = self.names.create(path, Node::File(number))?;
        let file = Arc::new(MemoryFile::default());
        self.files.insert(number, Arc::clone(&file));
        self.apply(&[change]);
        Ok(file)
    }

    /// The file at `path`, made if there is none.
    fn file_for_lock(&mut self, path: &str) -> io::Result<Arc<MemoryFile>> {
        match self.names.resolve(path) {
            Ok(Node::File(number)) => Ok(Arc::clone(&self.files[&number])),
            Ok(Node::Directory(_)) => Err(io::ErrorKind::InvalidInput.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.create_file(path),
            Err(error) => Err(error),
        }
    }
}

impl Disk for MemoryDisk {
    fn root(&self) -> &Path {
        Path::new("memory")
    }

    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let mut tree = self.tree.lock();
        let file = if mode == OpenMode::Create {
            tree.create_file(path)?
        } else {
            match tree.names.resolve(path)? {
                Node::File(number) => Arc::clone(&tree.files[&number]),
                Node::Directory(_) => return Err(io::ErrorKind::InvalidInput.into()),
            }
        };
        Ok(Arc::new(MemoryHandle { file, writable: mode != OpenMode::Read }))
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        let mut tree = self.tree.lock();
        let number = tree.next_number();
        let change = tree.names.create(path, Node::Directory(number))?;
        tree.apply(&[change]);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut tree = self.tree.lock();
        let changes = tree.names.rename(from, to)?;
        tree.apply(&changes);
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut tree = self.tree.lock();
        let change = tree.names.remove(path)?;
        tree.apply(&[change]);
        Ok(())
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        let mut tree = self.tree.lock();
        let change = tree.names.remove_dir(path)?;
        tree.apply(&[change]);
        Ok(())
    }

    fn list(&self, path: &str) -> io::Result<Vec<Entry>> {
        let tree = self.tree.lock();
        let directory = tree.names.resolve_directory(path)?;
        let entry = |(name, node): (&str, Node)| {
            let (kind, len) = match node {
                Node::Directory(_) => (EntryKind::Directory, 0),
                Node::File(number) => (EntryKind::File, tree.files[&number].bytes.read().len),
            };
            Entry { name: name.to_owned(), kind, len }
        };
        Ok(tree.names.list(directory).map(entry).collect())
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.tree.lock().names.resolve_directory(path).map(drop)
    }

    fn lock(&self, path: &str, note: &str) -> io::Result<Box<dyn DiskLock>> {
        let mut tree = self.tree.lock();
        if tree.locked {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let file = tree.file_for_lock(path)?;
        tree.locked = true;
        drop(tree);
        let lock = MemoryLock { tree: Arc::clone(&self.tree) };
        file.set_len(0)?;
        file.write_at(0, note.as_bytes())?;
        Ok(Box::new(lock))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    fn stores_in_place(&self) -> bool {
        true
    }

    fn boot_id(&self) -> u128 {
        1
    }

    fn entropy(&self) -> u128 {
        super::real::entropy()
    }
}

#[derive(Debug)]
struct MemoryLock {
    tree: Arc<Mutex<Tree>>,
}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        self.tree.lock().locked = false;
    }
}

/// A file as it was opened.
#[derive(Debug)]
struct MemoryHandle {
    file: Arc<MemoryFile>,
    writable: bool,
}

impl MemoryHandle {
    /// The file, if it was opened to be written; `refusal` is what a system says otherwise.
    fn writable(&self, refusal: impl FnOnce() -> io::Error) -> io::Result<&MemoryFile> {
        if self.writable { Ok(&self.file) } else { Err(refusal()) }
    }
}

/// The descriptor was not opened to be written.
pub(super) fn bad_descriptor() -> io::Error {
    io::Error::from_raw_os_error(libc::EBADF)
}

impl File for MemoryHandle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.bytes.read().len)
    }

    fn read_at(&self, position: u64, target: &mut [u8]) -> io::Result<usize> {
        Ok(self.file.read_at(position, target))
    }

    fn write_at(&self, position: u64, source: &[u8]) -> io::Result<usize> {
        self.writable(bad_descriptor)?.write_at(position, source)
    }

    fn allocate(&self, position: u64, len: u64) -> io::Result<()> {
        let end = position.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
        if len == 0 {
            return Ok(());
        }
        let mut bytes = self.writable(bad_descriptor)?.bytes.write();
        bytes.reserve(usize::try_from(end).map_err(|_| io::ErrorKind::FileTooLarge)?)?;
        bytes.len = bytes.len.max(end);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.writable(|| io::ErrorKind::InvalidInput.into())?.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write_durably_at(&self, position: u64, source: &[u8]) -> io::Result<()> {
        write_all_at(self, position, source)?;
        self.sync_data()
    }

    fn map(&self, len: usize, writable: bool) -> io::Result<Mapping> {
        if writable && !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let block = self.file.bytes.write().reserve(len)?;
        Ok(Mapping::heap(block, len, None))
    }
}

#[derive(Debug, Default)]
struct MemoryFile {
    bytes: RwLock<Bytes>,
}

#[derive(Default)]
struct Bytes {
    block: Option<Arc<HeapBlock>>,
    len: u64,
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Bytes").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Bytes {
    /// The block, with at least that much room: the one there is, or a bigger one.
    fn reserve(&mut self, capacity: usize) -> io::Result<Arc<HeapBlock>> {
        let Some(block) = &mut self.block else {
            let block = HeapBlock::zeroed(capacity.max(BLOCK_BYTES_MIN))?;
            self.block = Some(Arc::clone(&block));
            return Ok(block);
        };
        if block.len() >= capacity {
            return Ok(Arc::clone(block));
        }
        if Arc::get_mut(block).is_none() {
            // A mapping looks at it.
            return Err(io::ErrorKind::StorageFull.into());
        }
        let bigger = HeapBlock::zeroed(capacity.max(block.len().saturating_mul(2)))?;
        let used = usize::try_from(self.len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        bigger.copy_from(block, 0, used);
        self.block = Some(Arc::clone(&bigger));
        Ok(bigger)
    }
}

impl MemoryFile {
    fn read_at(&self, position: u64, target: &mut [u8]) -> usize {
        let bytes = self.bytes.read();
        let left = usize::try_from(bytes.len.saturating_sub(position)).unwrap_or(usize::MAX);
        let count = left.min(target.len());
        if let (Some(block), Ok(at), 1..) = (&bytes.block, usize::try_from(position), count) {
            block.copy_out(at, &mut target[..count]);
        }
        count
    }

    fn write_at(&self, position: u64, source: &[u8]) -> io::Result<usize> {
        if source.is_empty() {
            return Ok(0);
        }
        let mut bytes = self.bytes.write();
        let at = usize::try_from(position).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let end = at.checked_add(source.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        bytes.reserve(end)?.copy_in(at, source);
        bytes.len = bytes.len.max(end as u64);
        Ok(source.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut bytes = self.bytes.write();
        let new = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let old = usize::try_from(bytes.len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        if new > old {
            bytes.reserve(new)?;
        } else if let Some(block) = &bytes.block {
            block.clear(new, old - new);
        }
        bytes.len = len;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{read_small, write_all_at};

    #[test]
    fn a_mapping_and_its_file_are_the_same_bytes() {
        let disk = MemoryDisk::new();
        let file = disk.open("a", OpenMode::Create).unwrap();
        let map = file.map(8192, true).unwrap();
        file.allocate(0, 8192).unwrap();
        map.put(5000, b"pear");
        map.publish_u32(4996, 4);
        assert_eq!(read_small(&disk, "a", 10_000).unwrap()[5000..5004], *b"pear");
        write_all_at(&*file, 6000, b"plum").unwrap();
        assert_eq!(map.bytes(6000..6004), b"plum");
        assert_eq!(map.bytes(4996..5000), [4, 0, 0, 0]);
    }

    #[test]
    fn a_file_that_is_mapped_keeps_its_place_and_moves_once_it_is_not() {
        let disk = MemoryDisk::new();
        let file = disk.open("a", OpenMode::Create).unwrap();
        let map = file.map(4096, true).unwrap();
        file.allocate(0, 4096).unwrap();
        assert_eq!(file.allocate(4096, 1).unwrap_err().kind(), io::ErrorKind::StorageFull);
        map.put(0, b"pear");
        drop(map);
        file.allocate(4096, 4096).unwrap();
        assert_eq!(file.map(8192, false).unwrap().bytes(0..5), b"pear\0");
    }

    #[test]
    fn a_removed_or_replaced_file_stays_readable_to_its_holders() {
        let disk = MemoryDisk::new();
        let old = disk.open("a", OpenMode::Create).unwrap();
        write_all_at(&*old, 0, b"old").unwrap();
        let new = disk.open("b", OpenMode::Create).unwrap();
        write_all_at(&*new, 0, b"new").unwrap();
        disk.rename("b", "a").unwrap();
        disk.remove("a").unwrap();
        let mut bytes = [0; 3];
        assert_eq!((old.read_at(0, &mut bytes).unwrap(), &bytes), (3, b"old"));
        assert_eq!((new.read_at(0, &mut bytes).unwrap(), &bytes), (3, b"new"));
        assert!(disk.tree.lock().files.is_empty(), "the tree keeps no file without a name");
    }

    #[test]
    fn a_clone_is_the_same_disk_and_a_lock_is_for_one() {
        let disk = MemoryDisk::new();
        let again = disk.clone();
        let lock = disk.lock("lock", "me").unwrap();
        assert_eq!(again.lock("lock", "you").unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(read_small(&again, "lock", 10).unwrap(), b"me");
        drop(lock);
        drop(again.lock("lock", "you").unwrap());
    }

    #[cfg(all(target_os = "linux", not(miri)))]
    #[test]
    fn mapping_a_whole_segment_costs_memory_only_where_it_is_used() {
        let resident = || {
            let text = std::fs::read_to_string("/proc/self/statm").unwrap();
            text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
        };
        let before = resident();
        let file = MemoryDisk::new().open("a", OpenMode::Create).unwrap();
        let map = file.map(256 << 20, true).unwrap();
        file.allocate(0, 64 << 10).unwrap();
        map.put(60_000, b"pear");
        assert!(
            resident() < before + (64 << 20),
            "other tests run beside this one, but not as big"
        );
    }
}
