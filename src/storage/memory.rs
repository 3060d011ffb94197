//! Files in memory, for tests of applications: everything but the disk.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::mapping::HeapBlock;
use super::{Disk, DiskLock, Entry, EntryKind, File, Mapping, OpenMode, parent};

/// Room for the first bytes of a file that is not mapped.
const BLOCK_BYTES_MIN: usize = 4096;

/// A tree of files in memory. A clone is the same tree.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryDisk {
    tree: Arc<Mutex<Tree>>,
}

#[derive(Debug, Default)]
struct Tree {
    files: BTreeMap<String, Arc<MemoryFile>>,
    directories: std::collections::BTreeSet<String>,
    locked: std::collections::BTreeSet<String>,
}

impl MemoryDisk {
    pub(crate) fn new() -> Self {
        Self::default()
    }
}

impl Tree {
    fn check_parent(&self, path: &str) -> io::Result<()> {
        let directory = parent(path);
        if directory.is_empty() || self.directories.contains(directory) {
            return Ok(());
        }
        Err(io::ErrorKind::NotFound.into())
    }
}

impl Disk for MemoryDisk {
    fn root(&self) -> &Path {
        Path::new("memory")
    }

    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let mut tree = self.tree.lock();
        if tree.directories.contains(path) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let known = tree.files.get(path).map(Arc::clone);
        match (known, mode) {
            (Some(_), OpenMode::Create) => Err(io::ErrorKind::AlreadyExists.into()),
            (Some(file), _) => Ok(file),
            (None, OpenMode::Create) => {
                tree.check_parent(path)?;
                let file = Arc::new(MemoryFile::default());
                tree.files.insert(path.to_owned(), Arc::clone(&file));
                Ok(file)
            }
            (None, _) => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        let mut tree = self.tree.lock();
        if tree.directories.contains(path) || tree.files.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        tree.check_parent(path)?;
        tree.directories.insert(path.to_owned());
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut tree = self.tree.lock();
        tree.check_parent(to)?;
        let file = tree.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        tree.files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let removed = self.tree.lock().files.remove(path);
        removed.map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        let mut tree = self.tree.lock();
        let inside = format!("{path}/");
        let used = tree.files.keys().chain(&tree.directories).any(|name| name.starts_with(&inside));
        if used {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        if tree.directories.remove(path) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn list(&self, path: &str) -> io::Result<Vec<Entry>> {
        let tree = self.tree.lock();
        if !path.is_empty() && !tree.directories.contains(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let name = |full: &str| full.rsplit('/').next().unwrap_or(full).to_owned();
        let directories = tree
            .directories
            .iter()
            .filter(|full| parent(full) == path)
            .map(|full| Entry { name: name(full), kind: EntryKind::Directory, len: 0 });
        let files =
            tree.files.iter().filter(|(full, _)| parent(full) == path).map(|(full, file)| Entry {
                name: name(full),
                kind: EntryKind::File,
                len: file.bytes.read().len,
            });
        let mut entries: Vec<_> = directories.chain(files).collect();
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(entries)
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.list(path).map(drop)
    }

    fn lock(&self, path: &str, _note: &str) -> io::Result<Box<dyn DiskLock>> {
        if !self.tree.lock().locked.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(MemoryLock { tree: Arc::clone(&self.tree), path: path.to_owned() }))
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
    path: String,
}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        self.tree.lock().locked.remove(&self.path);
    }
}

#[derive(Debug, Default)]
struct MemoryFile {
    bytes: RwLock<Bytes>,
}

#[derive(Default)]
struct Bytes {
    block: Option<Arc<HeapBlock>>,
    /// The block has been handed out and cannot be exchanged for a bigger one.
    mapped: bool,
    len: u64,
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Bytes").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Bytes {
    fn capacity(&self) -> usize {
        self.block.as_ref().map_or(0, |block| block.len())
    }

    fn reserve(&mut self, capacity: usize) -> io::Result<Arc<HeapBlock>> {
        if let Some(block) = self.block.as_ref().filter(|block| block.len() >= capacity) {
            return Ok(Arc::clone(block));
        }
        if self.mapped {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let bigger = HeapBlock::zeroed(capacity.max(self.capacity() * 2).max(BLOCK_BYTES_MIN))?;
        if let Some(block) = &self.block {
            let mut bytes =
                vec![0; usize::try_from(self.len).map_err(|_| io::ErrorKind::OutOfMemory)?];
            block.copy_out(0, &mut bytes);
            bigger.copy_in(0, &bytes);
        }
        self.block = Some(Arc::clone(&bigger));
        Ok(bigger)
    }
}

impl File for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.read().len)
    }

    fn read_at(&self, position: u64, target: &mut [u8]) -> io::Result<usize> {
        let bytes = self.bytes.read();
        let left = usize::try_from(bytes.len.saturating_sub(position)).unwrap_or(usize::MAX);
        let count = left.min(target.len());
        if let (Some(block), Ok(at)) = (&bytes.block, usize::try_from(position))
            && count > 0
        {
            block.copy_out(at, &mut target[..count]);
        }
        Ok(count)
    }

    fn write_at(&self, position: u64, source: &[u8]) -> io::Result<usize> {
        let mut bytes = self.bytes.write();
        let at = usize::try_from(position).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let end = at.checked_add(source.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        bytes.reserve(end)?.copy_in(at, source);
        bytes.len = bytes.len.max(end as u64);
        Ok(source.len())
    }

    fn allocate(&self, position: u64, len: u64) -> io::Result<()> {
        let end = position.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
        let mut bytes = self.bytes.write();
        bytes.reserve(usize::try_from(end).map_err(|_| io::ErrorKind::FileTooLarge)?)?;
        bytes.len = bytes.len.max(end);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut bytes = self.bytes.write();
        let new = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let old = usize::try_from(bytes.len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        if new < old {
            if let Some(block) = &bytes.block {
                block.copy_in(new, &vec![0; old - new]);
            }
        } else {
            bytes.reserve(new)?;
        }
        bytes.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn map(&self, len: usize, _writable: bool) -> io::Result<Mapping> {
        let mut bytes = self.bytes.write();
        let block = bytes.reserve(len)?;
        bytes.mapped = true;
        Ok(Mapping::heap(block, len, None))
    }
}
