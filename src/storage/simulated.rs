//! A disk that lies, tears, fills up and dies on demand, the same way for the same seed.
//!
//! Two images of every file: *live*, what a running system sees (the page cache), and *durable*, what
//! the last sync left. A process that is killed leaves the live image; a power loss draws a crash image
//! from the two: of each file some of the unsynced sectors, in any order, some length between the old
//! and the new; of the names that were not synced with their directory, some.
//!
//! Every call, and every store through a mapping, is one *event*. A test counts them, and then runs
//! the same story again with an error or a crash at the n-th. A crash may come in the middle of an
//! event: a write lands in part.
//!
//! Threads: any, but a story is only repeatable when one thread tells it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::mapping::{HeapBlock, StoreWatch};
use super::{Disk, DiskLock, Entry, EntryKind, File, Mapping, OpenMode, parent};

const SECTOR: usize = 512;
type Sector = [u8; SECTOR];

/// An error that a call returns without doing what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The device failed.
    Eio,
    /// There is no room.
    Enospc,
    /// Reads and writes do less than they were asked for, and succeed.
    ShortIo,
    /// A signal came.
    Interrupted,
}

/// What a failed sync leaves behind (RELIABILITY fact 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncFault {
    /// The cache keeps the new bytes and calls them clean; the disk has some of them.
    CleanedPages,
    /// The cache goes back to what the disk has.
    Reverted,
}

/// A simulated disk. A clone is the same disk.
#[derive(Clone)]
pub struct SimDisk {
    world: Arc<Mutex<World>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Directory,
    File(u64),
}

/// A change of names that its directory was not synced after. All of it happens or nothing.
#[derive(Clone, Debug)]
struct NameChange {
    parent: String,
    names: Vec<(String, Option<Node>)>,
}

#[derive(Clone)]
struct World {
    random: Random,
    live: BTreeMap<String, Node>,
    durable: BTreeMap<String, Node>,
    unsynced: Vec<NameChange>,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    incarnation: u64,
    boot: u128,
    locks: BTreeSet<String>,
    free: Option<u64>,
    calls: u64,
    dead: bool,
    crash_at: Option<u64>,
    fault_at: Option<(u64, Fault)>,
    fault_from: Option<(u64, Fault)>,
    sync_fault: Option<(u64, SyncFault)>,
    syncs: u64,
    bad_sectors: BTreeSet<(u64, u64)>,
}

struct Inode {
    block: Arc<HeapBlock>,
    mapped: bool,
    len: u64,
    durable: BTreeMap<u64, Box<Sector>>,
    durable_len: u64,
    /// Sectors that differ from the durable image, with one of the versions in between, if any.
    dirty: BTreeMap<u64, Option<Box<Sector>>>,
}

impl Clone for Inode {
    /// A copy with memory of its own.
    fn clone(&self) -> Self {
        let block = HeapBlock::zeroed(self.block.len()).expect("room for a small test disk");
        let mut bytes = vec![0; size(self.len)];
        self.block.copy_out(0, &mut bytes);
        block.copy_in(0, &bytes);
        Self {
            block,
            mapped: false,
            len: self.len,
            durable: self.durable.clone(),
            durable_len: self.durable_len,
            dirty: self.dirty.clone(),
        }
    }
}

/// Split-mix: small, and good enough to draw faults.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }
}

fn size(len: u64) -> usize {
    usize::try_from(len).expect("a simulated file fits the memory")
}

fn crashed() -> io::Error {
    io::Error::other("the process has crashed (simulated)")
}

impl SimDisk {
    /// An empty disk. All that it draws comes from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            world: Arc::new(Mutex::new(World {
                random: Random(seed),
                live: BTreeMap::new(),
                durable: BTreeMap::new(),
                unsynced: Vec::new(),
                inodes: BTreeMap::new(),
                next_inode: 1,
                incarnation: 0,
                boot: 1,
                locks: BTreeSet::new(),
                free: None,
                calls: 0,
                dead: false,
                crash_at: None,
                fault_at: None,
                fault_from: None,
                sync_fault: None,
                syncs: 0,
                bad_sectors: BTreeSet::new(),
            })),
        }
    }

    /// Events so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.world.lock().calls
    }

    /// The `n`-th event from now (1 is the next) that can fail does, once.
    pub fn fail_call(&self, n: u64, fault: Fault) {
        let mut world = self.world.lock();
        world.fault_at = Some((world.calls + n, fault));
    }

    /// From the `n`-th event from now on, everything that can fail does, until [`SimDisk::heal`].
    pub fn fail_from(&self, n: u64, fault: Fault) {
        let mut world = self.world.lock();
        world.fault_from = Some((world.calls + n, fault));
    }

    /// The `n`-th sync of a file from now fails.
    pub fn fail_sync(&self, n: u64, fault: SyncFault) {
        let mut world = self.world.lock();
        world.sync_fault = Some((world.syncs + n, fault));
    }

    /// The process dies in the `n`-th event from now.
    pub fn crash_at(&self, n: u64) {
        let mut world = self.world.lock();
        world.crash_at = Some(world.calls + n);
    }

    /// Whether the process has died.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.world.lock().dead
    }

    /// No more faults.
    pub fn heal(&self) {
        let mut world = self.world.lock();
        world.crash_at = None;
        world.fault_at = None;
        world.fault_from = None;
        world.sync_fault = None;
        world.bad_sectors.clear();
    }

    /// Bytes that files may still grow by; `None` for no limit.
    pub fn set_free_bytes(&self, free: Option<u64>) {
        self.world.lock().free = free;
    }

    /// Reading that sector of that file fails until it is written.
    pub fn break_sector(&self, path: &str, sector: u64) {
        let mut world = self.world.lock();
        if let Some(Node::File(inode)) = world.live.get(path).copied() {
            world.bad_sectors.insert((inode, sector));
        }
    }

    /// The process is gone, the machine runs on: the live image stays, old handles are dead.
    pub fn process_restart(&self) {
        let mut world = self.world.lock();
        world.incarnation += 1;
        world.dead = false;
        world.crash_at = None;
        world.locks.clear();
    }

    /// The machine is gone: what was not synced survives in part, as the seed has it.
    pub fn power_loss(&self) {
        self.process_restart();
        let mut world = self.world.lock();
        world.boot += 1;
        world.lose_names();
        let used: BTreeSet<u64> = world
            .live
            .values()
            .filter_map(|node| if let Node::File(inode) = node { Some(*inode) } else { None })
            .collect();
        world.inodes.retain(|inode, _| used.contains(inode));
        let World { inodes, random, .. } = &mut *world;
        for inode in inodes.values_mut() {
            inode.lose(random);
        }
    }

    /// The paths of all files.
    #[must_use]
    pub fn files(&self) -> Vec<String> {
        let world = self.world.lock();
        let is_file = |node: &Node| matches!(node, Node::File(_));
        world.live.iter().filter(|(_, node)| is_file(node)).map(|(path, _)| path.clone()).collect()
    }

    /// The bytes of a file; empty if there is none.
    #[must_use]
    pub fn read_file(&self, path: &str) -> Vec<u8> {
        let world = self.world.lock();
        let Some(Node::File(inode)) = world.live.get(path) else { return Vec::new() };
        let inode = &world.inodes[inode];
        let mut bytes = vec![0; size(inode.len)];
        inode.block.copy_out(0, &mut bytes);
        bytes
    }

    /// Puts a file there, durably, with its directories; for damage done by a test.
    pub fn write_file(&self, path: &str, bytes: &[u8]) {
        let mut world = self.world.lock();
        for (at, _) in path.match_indices('/') {
            world.live.entry(path[..at].to_owned()).or_insert(Node::Directory);
            world.durable.entry(path[..at].to_owned()).or_insert(Node::Directory);
        }
        let id = world.next_inode;
        world.next_inode += 1;
        let block = HeapBlock::zeroed(bytes.len().max(SECTOR)).expect("room for a small test file");
        block.copy_in(0, bytes);
        let sectors = bytes.chunks(SECTOR).map(|chunk| {
            let mut sector = [0; SECTOR];
            sector[..chunk.len()].copy_from_slice(chunk);
            Box::new(sector)
        });
        let inode = Inode {
            block,
            mapped: false,
            len: bytes.len() as u64,
            durable: (0..).zip(sectors).collect(),
            durable_len: bytes.len() as u64,
            dirty: BTreeMap::new(),
        };
        world.inodes.insert(id, inode);
        world.live.insert(path.to_owned(), Node::File(id));
        world.durable.insert(path.to_owned(), Node::File(id));
    }

    /// Removes a file, durably.
    pub fn remove_file(&self, path: &str) {
        let mut world = self.world.lock();
        world.live.remove(path);
        world.durable.remove(path);
    }

    /// Another disk with the same contents, to tell the story on differently.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self { world: Arc::new(Mutex::new(self.world.lock().clone())) }
    }

    fn handle(&self, world: &World) -> Handle {
        Handle { world: Arc::clone(&self.world), incarnation: world.incarnation }
    }

    fn enter(&self) -> io::Result<MutexGuard<'_, World>> {
        let mut world = self.world.lock();
        world.event()?;
        Ok(world)
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SimDisk").field("calls", &self.calls()).finish_non_exhaustive()
    }
}

/// What becomes of an event.
enum Event {
    Happens,
    /// It happens in part, and then the process is dead.
    Dies,
}

impl World {
    fn tick(&mut self) -> Event {
        self.calls += 1;
        if self.crash_at == Some(self.calls) {
            self.dead = true;
            return Event::Dies;
        }
        Event::Happens
    }

    /// An event that does nothing in part.
    fn event(&mut self) -> io::Result<()> {
        if self.dead {
            return Err(crashed());
        }
        match self.tick() {
            Event::Dies => return Err(crashed()),
            Event::Happens => {}
        }
        match self.due_fault() {
            Some(Fault::Eio) => Err(io::Error::from_raw_os_error(libc::EIO)),
            Some(Fault::Enospc) => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    fn due_fault(&mut self) -> Option<Fault> {
        if let Some((from, fault)) = self.fault_from
            && self.calls >= from
        {
            return Some(fault);
        }
        let (at, fault) = self.fault_at?;
        if self.calls < at {
            return None;
        }
        self.fault_at = None;
        Some(fault)
    }

    fn change(&mut self, parent: &str, names: Vec<(String, Option<Node>)>) {
        for (name, node) in &names {
            match node {
                Some(node) => self.live.insert(name.clone(), *node),
                None => self.live.remove(name),
            };
        }
        self.unsynced.push(NameChange { parent: parent.to_owned(), names });
    }

    fn make_durable(&mut self, change: &NameChange) {
        for (name, node) in &change.names {
            match node {
                Some(node) => self.durable.insert(name.clone(), *node),
                None => self.durable.remove(name),
            };
        }
    }

    fn lose_names(&mut self) {
        let changes = std::mem::take(&mut self.unsynced);
        // A journal keeps the order: a beginning of the changes survives. Others keep any of them.
        let ordered = self.random.coin();
        let kept = self.random.below(changes.len() as u64 + 1);
        for (at, change) in (0..).zip(&changes) {
            let survives = if ordered { at < kept } else { self.random.coin() };
            if survives {
                self.make_durable(change);
            }
        }
        let names: Vec<String> = self.durable.keys().cloned().collect();
        for name in names {
            let directory = parent(&name);
            if !directory.is_empty() && !self.durable.contains_key(directory) {
                self.durable.remove(&name);
            }
        }
        self.live = self.durable.clone();
    }

    fn take_room(&mut self, grown: u64) -> io::Result<()> {
        if let Some(free) = &mut self.free {
            *free = free.checked_sub(grown).ok_or(io::ErrorKind::StorageFull)?;
        }
        Ok(())
    }

    fn check_parent(&self, path: &str) -> io::Result<()> {
        let directory = parent(path);
        let there = directory.is_empty() || self.live.get(directory) == Some(&Node::Directory);
        if there { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }
}

impl Inode {
    fn sectors(range: std::ops::Range<u64>) -> std::ops::Range<u64> {
        if range.is_empty() {
            return 0..0;
        }
        range.start / SECTOR as u64..range.end.div_ceil(SECTOR as u64)
    }

    fn read_sector(&self, sector: u64) -> Box<Sector> {
        let mut bytes = Box::new([0; SECTOR]);
        let start = size(sector) * SECTOR;
        let end = (start + SECTOR).min(self.block.len());
        if start < end {
            self.block.copy_out(start, &mut bytes[..end - start]);
        }
        bytes
    }

    /// Before `range` changes: notes its sectors as unsynced, now and then with what they hold.
    fn touch(&mut self, range: std::ops::Range<u64>, random: &mut Random) {
        for sector in Self::sectors(range) {
            if !self.dirty.contains_key(&sector) {
                self.dirty.insert(sector, None);
            } else if random.below(8) == 0 {
                let version = self.read_sector(sector);
                self.dirty.insert(sector, Some(version));
            }
        }
    }

    fn reserve(&mut self, capacity: usize) -> io::Result<()> {
        if self.block.len() >= capacity {
            return Ok(());
        }
        if self.mapped {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let block = HeapBlock::zeroed(capacity.max(self.block.len() * 2))?;
        let mut bytes = vec![0; size(self.len)];
        self.block.copy_out(0, &mut bytes);
        block.copy_in(0, &bytes);
        self.block = block;
        Ok(())
    }

    fn write(&mut self, position: u64, bytes: &[u8], random: &mut Random) -> io::Result<()> {
        let end = position + bytes.len() as u64;
        self.reserve(size(end))?;
        self.touch(position..end, random);
        self.block.copy_in(size(position), bytes);
        self.len = self.len.max(end);
        Ok(())
    }

    fn cut(&mut self, len: u64, random: &mut Random) -> io::Result<()> {
        if len < self.len {
            self.touch(len..self.len, random);
            self.block.copy_in(size(len), &vec![0; size(self.len - len)]);
        } else {
            self.reserve(size(len))?;
        }
        self.len = len;
        Ok(())
    }

    /// Makes some or all of the unsynced sectors durable.
    fn sync(&mut self, mut chosen: impl FnMut() -> bool) {
        let dirty = std::mem::take(&mut self.dirty);
        for (sector, _) in dirty {
            if chosen() {
                let bytes = self.read_sector(sector);
                self.durable.insert(sector, bytes);
            }
        }
        self.durable_len = self.len;
    }

    /// What the durable image holds, in a block of its own.
    fn restore(&mut self) {
        let block =
            HeapBlock::zeroed(size(self.durable_len).max(SECTOR)).expect("room for a test file");
        for (sector, bytes) in &self.durable {
            let start = size(*sector) * SECTOR;
            let end = (start + SECTOR).min(size(self.durable_len));
            if start < end {
                block.copy_in(start, &bytes[..end - start]);
            }
        }
        self.block = block;
        self.mapped = false;
        self.len = self.durable_len;
        self.dirty.clear();
    }

    /// A power loss: some of the unsynced sectors are on the disk, in some version.
    fn lose(&mut self, random: &mut Random) {
        let dirty = std::mem::take(&mut self.dirty);
        let count = dirty.len() as u64;
        let (mode, pivot) = (random.below(7), random.below(count));
        // Room that was taken and never written holds zeroes, or what was there before.
        let garbage = random.below(8) == 0;
        let len = match random.below(3) {
            0 => self.durable_len,
            1 => self.len,
            _ => {
                let (low, high) = (self.durable_len.min(self.len), self.durable_len.max(self.len));
                low + random.below(high - low + 1)
            }
        };
        for (at, (sector, between)) in (0..).zip(dirty) {
            let survives = match mode {
                0 => false,
                1 => true,
                2 => random.coin(),
                3 => at < pivot,
                4 => at >= pivot,
                5 => at != pivot,
                _ => at == pivot,
            };
            if survives {
                let newest = self.read_sector(sector);
                let version = between.filter(|_| random.coin()).unwrap_or(newest);
                self.durable.insert(sector, version);
            } else if garbage && !self.durable.contains_key(&sector) {
                let mut bytes = Box::new([0; SECTOR]);
                bytes.fill_with(|| u8::try_from(random.below(256)).expect("below 256"));
                self.durable.insert(sector, bytes);
            }
        }
        self.durable_len = len;
        // A file system never shows what lay behind the end of a file when the file grows again.
        let end = size(len);
        self.durable.retain(|sector, _| size(*sector) * SECTOR < end);
        if let Some(mut last) = self.durable.last_entry() {
            let kept = end - size(*last.key()) * SECTOR;
            if kept < SECTOR {
                last.get_mut()[kept..].fill(0);
            }
        }
        self.restore();
    }
}

impl Disk for SimDisk {
    fn root(&self) -> &Path {
        Path::new("simulated")
    }

    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let mut world = self.enter()?;
        let inode = match (world.live.get(path).copied(), mode) {
            (Some(Node::Directory), _) => return Err(io::ErrorKind::InvalidInput.into()),
            (Some(_), OpenMode::Create) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(Node::File(inode)), _) => inode,
            (None, OpenMode::Create) => {
                world.check_parent(path)?;
                let id = world.next_inode;
                world.next_inode += 1;
                let inode = Inode {
                    block: HeapBlock::zeroed(4096)?,
                    mapped: false,
                    len: 0,
                    durable: BTreeMap::new(),
                    durable_len: 0,
                    dirty: BTreeMap::new(),
                };
                world.inodes.insert(id, inode);
                world.change(parent(path), vec![(path.to_owned(), Some(Node::File(id)))]);
                id
            }
            (None, _) => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Arc::new(SimFile { handle: self.handle(&world), inode }))
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        let mut world = self.enter()?;
        if world.live.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        world.check_parent(path)?;
        world.change(parent(path), vec![(path.to_owned(), Some(Node::Directory))]);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut world = self.enter()?;
        world.check_parent(to)?;
        let Some(Node::File(inode)) = world.live.get(from).copied() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let names = vec![(from.to_owned(), None), (to.to_owned(), Some(Node::File(inode)))];
        world.change(parent(to), names);
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut world = self.enter()?;
        let Some(Node::File(inode)) = world.live.get(path).copied() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let len = world.inodes[&inode].len;
        if let Some(free) = &mut world.free {
            *free += len;
        }
        world.change(parent(path), vec![(path.to_owned(), None)]);
        Ok(())
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        let mut world = self.enter()?;
        if world.live.get(path) != Some(&Node::Directory) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inside = format!("{path}/");
        if world.live.keys().any(|name| name.starts_with(&inside)) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        world.change(parent(path), vec![(path.to_owned(), None)]);
        Ok(())
    }

    fn list(&self, path: &str) -> io::Result<Vec<Entry>> {
        let world = self.enter()?;
        if !path.is_empty() && world.live.get(path) != Some(&Node::Directory) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let entry = |(name, node): (&String, &Node)| {
            let (kind, len) = match node {
                Node::Directory => (EntryKind::Directory, 0),
                Node::File(inode) => (EntryKind::File, world.inodes[inode].len),
            };
            Entry { name: name.rsplit('/').next().unwrap_or(name).to_owned(), kind, len }
        };
        Ok(world.live.iter().filter(|(name, _)| parent(name) == path).map(entry).collect())
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        let mut world = self.enter()?;
        let changes = std::mem::take(&mut world.unsynced);
        let (synced, kept): (Vec<_>, Vec<_>) =
            changes.into_iter().partition(|change| change.parent == path);
        for change in synced {
            world.make_durable(&change);
        }
        world.unsynced = kept;
        Ok(())
    }

    fn lock(&self, path: &str, _note: &str) -> io::Result<Box<dyn DiskLock>> {
        let mut world = self.enter()?;
        if !world.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(SimLock { handle: self.handle(&world), path: path.to_owned() }))
    }

    fn boot_id(&self) -> u128 {
        self.world.lock().boot
    }

    fn entropy(&self) -> u128 {
        let mut world = self.world.lock();
        u128::from(world.random.next()) << 64 | u128::from(world.random.next())
    }
}

/// What a handle knows of the process that opened it.
#[derive(Clone)]
struct Handle {
    world: Arc<Mutex<World>>,
    incarnation: u64,
}

impl fmt::Debug for Handle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Handle")
            .field("incarnation", &self.incarnation)
            .finish_non_exhaustive()
    }
}

impl Handle {
    /// The world, if the process that opened the handle lives.
    fn world(&self) -> io::Result<MutexGuard<'_, World>> {
        let world = self.world.lock();
        if world.dead || world.incarnation != self.incarnation {
            return Err(crashed());
        }
        Ok(world)
    }

    fn enter(&self) -> io::Result<MutexGuard<'_, World>> {
        let mut world = self.world()?;
        world.event()?;
        Ok(world)
    }
}

#[derive(Debug)]
struct SimLock {
    handle: Handle,
    path: String,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        if let Ok(mut world) = self.handle.world() {
            world.locks.remove(&self.path);
        }
    }
}

#[derive(Debug)]
struct SimFile {
    handle: Handle,
    inode: u64,
}

impl SimFile {
    fn with<T>(&self, act: impl FnOnce(&mut Inode, &mut Random) -> io::Result<T>) -> io::Result<T> {
        let mut world = self.handle.enter()?;
        let World { inodes, random, .. } = &mut *world;
        let inode = inodes.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?;
        act(inode, random)
    }

    /// How much of an I/O of `len` bytes is done: all, or with a fault, less.
    fn portion(world: &mut World, len: usize) -> io::Result<usize> {
        match world.due_fault() {
            None => Ok(len),
            Some(Fault::Eio) => Err(io::Error::from_raw_os_error(libc::EIO)),
            Some(Fault::Enospc) => Err(io::ErrorKind::StorageFull.into()),
            Some(Fault::Interrupted) => Err(io::ErrorKind::Interrupted.into()),
            Some(Fault::ShortIo) => Ok(len.div_ceil(2)),
        }
    }
}

impl File for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.with(|inode, _| Ok(inode.len))
    }

    fn read_at(&self, position: u64, target: &mut [u8]) -> io::Result<usize> {
        let mut world = self.handle.world()?;
        if let Event::Dies = world.tick() {
            return Err(crashed());
        }
        let asked = Self::portion(&mut world, target.len())?;
        let inode = world.inodes.get(&self.inode).ok_or(io::ErrorKind::NotFound)?;
        let left = usize::try_from(inode.len.saturating_sub(position)).unwrap_or(usize::MAX);
        let count = asked.min(left);
        let sectors = Inode::sectors(position..position + count as u64);
        if sectors.clone().any(|sector| world.bad_sectors.contains(&(self.inode, sector))) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        if count > 0 {
            inode.block.copy_out(size(position), &mut target[..count]);
        }
        Ok(count)
    }

    fn write_at(&self, position: u64, source: &[u8]) -> io::Result<usize> {
        let mut world = self.handle.world()?;
        let dies = matches!(world.tick(), Event::Dies);
        let mut count = if dies { source.len() } else { Self::portion(&mut world, source.len())? };
        if dies {
            count = size(world.random.below(source.len() as u64 + 1));
        }
        let len = world.inodes.get(&self.inode).ok_or(io::ErrorKind::NotFound)?.len;
        let end = position + count as u64;
        world.take_room(end.saturating_sub(len))?;
        let World { inodes, random, bad_sectors, .. } = &mut *world;
        let inode = inodes.get_mut(&self.inode).expect("looked up just now");
        inode.write(position, &source[..count], random)?;
        for sector in Inode::sectors(position..end) {
            bad_sectors.remove(&(self.inode, sector));
        }
        if dies { Err(crashed()) } else { Ok(count) }
    }

    fn allocate(&self, position: u64, len: u64) -> io::Result<()> {
        let mut world = self.handle.enter()?;
        let end = position + len;
        let old = world.inodes.get(&self.inode).ok_or(io::ErrorKind::NotFound)?.len;
        world.take_room(end.saturating_sub(old))?;
        let inode = world.inodes.get_mut(&self.inode).expect("looked up just now");
        inode.reserve(size(end))?;
        inode.len = inode.len.max(end);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut world = self.handle.enter()?;
        let old = world.inodes.get(&self.inode).ok_or(io::ErrorKind::NotFound)?.len;
        world.take_room(len.saturating_sub(old))?;
        if let Some(free) = &mut world.free {
            *free += old.saturating_sub(len);
        }
        let World { inodes, random, .. } = &mut *world;
        inodes.get_mut(&self.inode).expect("looked up just now").cut(len, random)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut world = self.handle.world()?;
        let dies = matches!(world.tick(), Event::Dies);
        world.syncs += 1;
        let fault = world.sync_fault.filter(|(at, _)| world.syncs >= *at).map(|(_, fault)| fault);
        if fault.is_some() {
            world.sync_fault = None;
        }
        if !dies && fault.is_none() {
            Self::portion(&mut world, 1)?;
        }
        let World { inodes, random, .. } = &mut *world;
        let inode = inodes.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?;
        let failed = || Err(io::Error::from_raw_os_error(libc::EIO));
        match fault {
            _ if dies => {
                let kept = inode.dirty.clone();
                let (len, durable_len) = (inode.len, inode.durable_len);
                inode.sync(|| random.coin());
                inode.dirty = kept;
                inode.durable_len = if random.coin() { len } else { durable_len };
                Err(crashed())
            }
            Some(SyncFault::CleanedPages) => {
                inode.sync(|| random.coin());
                failed()
            }
            Some(SyncFault::Reverted) => {
                let dirty = std::mem::take(&mut inode.dirty);
                for sector in dirty.into_keys() {
                    let start = size(sector) * SECTOR;
                    let end = (start + SECTOR).min(inode.block.len());
                    let old = inode.durable.get(&sector).map_or([0; SECTOR], |bytes| **bytes);
                    inode.block.copy_in(start, &old[..end - start]);
                }
                failed()
            }
            None => {
                inode.sync(|| true);
                Ok(())
            }
        }
    }

    fn map(&self, len: usize, _writable: bool) -> io::Result<Mapping> {
        let block = self.with(|inode, _| {
            inode.reserve(len)?;
            inode.mapped = true;
            Ok(Arc::clone(&inode.block))
        })?;
        let watch =
            Watch { handle: self.handle.clone(), inode: self.inode, block: Arc::clone(&block) };
        Ok(Mapping::heap(block, len, Some(Arc::new(watch))))
    }
}

/// Sees the stores through a mapping.
struct Watch {
    handle: Handle,
    inode: u64,
    block: Arc<HeapBlock>,
}

impl StoreWatch for Watch {
    fn before_store(&self, position: usize, source: &[u8]) -> bool {
        let Ok(mut world) = self.handle.world() else {
            return false;
        };
        let dies = matches!(world.tick(), Event::Dies);
        let World { inodes, random, .. } = &mut *world;
        let Some(inode) = inodes.get_mut(&self.inode) else {
            return false;
        };
        let end = (position + source.len()) as u64;
        assert!(end <= inode.len, "SIGBUS: a store behind the end of a mapped file");
        inode.touch(position as u64..end, random);
        if dies {
            // Any of the bytes land: the processor writes words, and the compiler picks their order.
            for (at, byte) in source.iter().enumerate() {
                if random.coin() {
                    self.block.copy_in(position + at, &[*byte]);
                }
            }
        }
        !dies
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{replace_file, write_all_at};

    fn file(disk: &SimDisk, path: &str, bytes: &[u8]) -> Arc<dyn File> {
        let file = disk.open(path, OpenMode::Create).unwrap();
        write_all_at(&*file, 0, bytes).unwrap();
        file
    }

    #[test]
    fn what_was_synced_survives_every_power_loss() {
        for seed in 0..200 {
            let disk = SimDisk::new(seed);
            let synced = file(&disk, "a", &[7; 3000]);
            synced.sync_data().unwrap();
            disk.sync_dir("").unwrap();
            write_all_at(&*synced, 3000, &[8; 3000]).unwrap();
            disk.power_loss();
            assert_eq!(disk.read_file("a")[..3000], [7; 3000], "seed {seed}");
        }
    }

    #[test]
    fn what_was_not_synced_survives_now_and_then_and_in_part() {
        let outcomes: BTreeSet<Vec<u8>> = (0..200)
            .map(|seed| {
                let disk = SimDisk::new(seed);
                drop(file(&disk, "a", &[7; 1500]));
                disk.sync_dir("").unwrap();
                disk.power_loss();
                disk.read_file("a")
            })
            .collect();
        assert!(
            outcomes.contains(&vec![7; 1500]) && outcomes.contains(&Vec::new()),
            "{}",
            outcomes.len()
        );
        assert!(outcomes.iter().any(|bytes| bytes.contains(&7) && bytes.contains(&0)));
    }

    #[test]
    fn a_name_needs_a_sync_of_its_directory() {
        let survives = |sync: bool| {
            (0..100).filter(move |seed| {
                let disk = SimDisk::new(*seed);
                file(&disk, "a", b"x").sync_data().unwrap();
                if sync {
                    disk.sync_dir("").unwrap();
                }
                disk.power_loss();
                disk.files() == ["a"]
            })
        };
        assert_eq!(survives(true).count(), 100);
        let lucky = survives(false).count();
        assert!(lucky > 0 && lucky < 100);
    }

    #[test]
    fn a_replaced_file_is_the_old_one_or_the_new_one_at_every_crash() {
        for power in [false, true] {
            for n in 1.. {
                let disk = SimDisk::new(n);
                replace_file(&disk, "a", b"old").unwrap();
                disk.crash_at(n);
                let outcome = replace_file(&disk, "a", b"new");
                if power {
                    disk.power_loss();
                } else {
                    disk.process_restart();
                }
                let bytes = disk.read_file("a");
                assert!(bytes == b"old" || bytes == b"new", "S20: crash at {n}: {bytes:?}");
                if outcome.is_ok() {
                    assert_eq!(bytes, b"new");
                    break;
                }
            }
        }
    }

    #[test]
    fn after_a_crash_old_handles_do_nothing() {
        let disk = SimDisk::new(1);
        let old = file(&disk, "a", b"x");
        let map = old.map(4096, true).unwrap();
        old.allocate(0, 4096).unwrap();
        disk.process_restart();
        assert!(old.write_at(0, b"y").is_err());
        map.put(0, b"y");
        assert_eq!(disk.read_file("a")[0], b'x');
    }

    #[test]
    fn a_failed_sync_is_followed_by_one_that_lies() {
        let mut lost = 0;
        for seed in 0..50 {
            let disk = SimDisk::new(seed);
            let doubtful = file(&disk, "a", &[7; 4096]);
            disk.sync_dir("").unwrap();
            disk.fail_sync(1, SyncFault::CleanedPages);
            assert!(doubtful.sync_data().is_err());
            assert!(doubtful.sync_data().is_ok());
            assert_eq!(disk.read_file("a"), [7; 4096]);
            disk.power_loss();
            lost += usize::from(disk.read_file("a") != [7; 4096]);
        }
        assert!(lost > 25);
    }

    #[test]
    fn a_store_through_a_mapping_is_torn_by_a_crash() {
        let mut torn = 0;
        for seed in 0..50 {
            let disk = SimDisk::new(seed);
            let mapped = file(&disk, "a", &[0; 512]);
            let map = mapped.map(512, true).unwrap();
            disk.crash_at(1);
            map.put(0, &[7; 64]);
            disk.process_restart();
            let bytes = disk.read_file("a");
            torn += usize::from(bytes[..64].contains(&0) && bytes[..64].contains(&7));
        }
        assert!(torn > 40);
    }

    #[test]
    fn a_full_disk_refuses_to_grow_until_there_is_room() {
        let disk = SimDisk::new(1);
        let full = file(&disk, "a", &[1; 100]);
        disk.set_free_bytes(Some(50));
        assert_eq!(full.allocate(0, 200).unwrap_err().kind(), io::ErrorKind::StorageFull);
        full.allocate(0, 150).unwrap();
        disk.remove("a").unwrap();
        file(&disk, "b", &[1; 150]);
    }
}
