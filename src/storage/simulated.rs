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
//! An access through a mapping that would end a real process with a signal panics here: behind the
//! end of the file, to a sector that cannot be read, or a store to what was mapped to read.
//!
//! Threads: any, but a story is only repeatable when one thread tells it.

mod gate;
mod image;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::mapping::{HeapBlock, StoreWatch};
use super::memory::bad_descriptor;
use super::names::{NameChange, Names, Node};
use super::{Disk, DiskLock, Entry, EntryKind, File, Mapping, OpenMode, write_all_at};
use gate::Gate;
pub use gate::Hang;
use image::{Image, Random, Sector, size};

/// Sectors of files that are gone, remembered at most.
const FREED_MAX: usize = 16;

/// An error that a call returns without doing what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The device failed. Any call can meet it.
    Eio,
    /// There is no room. Calls that write, sync or make names can meet it.
    Enospc,
    /// Reads and writes do less than they were asked for, and succeed.
    ShortIo,
    /// A signal comes during a read or a write, and not during the next attempt.
    Interrupted,
    /// The process may open no further file (`EMFILE`).
    TooManyFiles,
}

/// What a failed sync leaves behind.
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

#[derive(Clone)]
struct World {
    /// What becomes of writes, and what a crash leaves.
    random: Random,
    /// What the store draws: apart, so that one draw more there changes no fault.
    identities: Random,
    live: Names,
    durable: Names,
    /// Changes of names since the directory was synced, one group an operation: all of a group
    /// happens or nothing. The directory of its last change is the one to sync.
    unsynced: Vec<Vec<NameChange>>,
    images: BTreeMap<u64, Image>,
    /// Some of what was in files that are gone: blocks that others are given now.
    freed: Vec<Arc<Sector>>,
    /// The largest number given to a file or directory.
    last: u64,
    incarnation: u64,
    boot: u128,
    locks: BTreeSet<u64>,
    /// Bytes that files may still grow by.
    free: Option<u64>,
    calls: u64,
    /// Shared by the disks of one process.
    dead: Arc<AtomicBool>,
    crash_at: Option<u64>,
    fault_at: Option<(u64, Fault)>,
    fault_from: Option<(u64, Fault)>,
    sync_fault: Option<(u64, SyncFault)>,
    syncs: u64,
    gate: Arc<Gate>,
}

impl SimDisk {
    /// An empty disk. All that it draws comes from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        Self {
            world: Arc::new(Mutex::new(World {
                identities: Random(random.next()),
                random,
                live: Names::default(),
                durable: Names::default(),
                unsynced: Vec::new(),
                images: BTreeMap::new(),
                freed: Vec::new(),
                last: 0,
                incarnation: 0,
                boot: 1,
                locks: BTreeSet::new(),
                free: None,
                calls: 0,
                dead: Arc::default(),
                crash_at: None,
                fault_at: None,
                fault_from: None,
                sync_fault: None,
                syncs: 0,
                gate: Arc::default(),
            })),
        }
    }

    /// Events so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.world.lock().calls
    }

    /// The first event that can meet `fault`, from the `n`-th from now on (1 is the next), does.
    pub fn fail_call(&self, n: u64, fault: Fault) {
        let mut world = self.world.lock();
        world.fault_at = Some((world.calls + n, fault));
    }

    /// From the `n`-th event from now on, everything that can meet `fault` does, until
    /// [`SimDisk::heal`].
    pub fn fail_from(&self, n: u64, fault: Fault) {
        let mut world = self.world.lock();
        world.fault_from = Some((world.calls + n, fault));
    }

    /// The `n`-th sync of a file from now fails.
    pub fn fail_sync(&self, n: u64, fault: SyncFault) {
        let mut world = self.world.lock();
        world.sync_fault = Some((world.syncs + n, fault));
    }

    /// From now on such calls do not return, until [`SimDisk::heal`]: then they do what they were asked for.
    pub fn hang(&self, hang: Hang) {
        let gate = Arc::clone(&self.world.lock().gate);
        gate.close(hang);
    }

    /// It hangs no more. Other faults stay, and may meet the calls that hung.
    pub fn answer(&self) {
        let gate = Arc::clone(&self.world.lock().gate);
        gate.open();
    }

    /// Calls that hang now.
    #[must_use]
    pub fn held_calls(&self) -> usize {
        let gate = Arc::clone(&self.world.lock().gate);
        gate.held()
    }

    /// The process dies in the `n`-th event from now: from then on calls fail and do nothing.
    pub fn crash_at(&self, n: u64) {
        let mut world = self.world.lock();
        world.crash_at = Some(world.calls + n);
    }

    /// The process dies now, also where it hangs: from here on calls fail and do nothing.
    pub fn kill(&self) {
        self.world.lock().dead.store(true, Ordering::Release);
    }

    /// The same process uses this disk and `other`: it dies on both at once.
    pub fn share_process(&self, other: &Self) {
        let process = Arc::clone(&other.world.lock().dead);
        self.world.lock().dead = process;
    }

    /// Whether the process has died.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.world.lock().is_dead()
    }

    /// No more faults.
    pub fn heal(&self) {
        let mut world = self.world.lock();
        world.crash_at = None;
        world.fault_at = None;
        world.fault_from = None;
        world.sync_fault = None;
        world.images.values_mut().for_each(Image::heal);
        let gate = Arc::clone(&world.gate);
        drop(world);
        gate.open();
    }

    /// Bytes that files may still grow by; `None` for no limit. What files give back is added.
    pub fn set_free_bytes(&self, free: Option<u64>) {
        self.world.lock().free = free;
    }

    /// What is left of [`SimDisk::set_free_bytes`].
    #[must_use]
    pub fn free_bytes(&self) -> Option<u64> {
        self.world.lock().free
    }

    /// Reading that sector (of 512 bytes) of that file fails until all of it is written.
    pub fn break_sector(&self, path: &str, sector: u64) {
        let mut world = self.world.lock();
        if let Ok(Node::File(number)) = world.live.resolve(path) {
            world.image(number).break_sector(sector);
        }
    }

    /// The process is gone, the machine runs on: the live image stays, old handles are dead.
    pub fn process_restart(&self) {
        self.world.lock().end_process();
    }

    /// The machine is gone: what was not synced survives in part, as the seed has it.
    pub fn power_loss(&self) {
        let mut world = self.world.lock();
        world.end_process();
        world.lose_power();
    }

    /// The paths of all files, sorted.
    #[must_use]
    pub fn files(&self) -> Vec<String> {
        self.world.lock().live.files().into_iter().map(|(path, _)| path).collect()
    }

    /// The bytes of a file; empty if there is none.
    #[must_use]
    pub fn read_file(&self, path: &str) -> Vec<u8> {
        let mut world = self.world.lock();
        match world.live.resolve(path) {
            Ok(Node::File(number)) => world.image(number).contents(),
            _ => Vec::new(),
        }
    }

    /// Puts a file there, durably, with its directories; for damage done while no store is open.
    ///
    /// # Panics
    /// If a directory has that name, or a file that of one of its directories.
    pub fn write_file(&self, path: &str, bytes: &[u8]) {
        let mut world = self.world.lock();
        for (at, _) in path.match_indices('/') {
            if world.live.resolve(&path[..at]).is_err() {
                let number = world.next_number();
                world.create_durably(&path[..at], Node::Directory(number));
            }
        }
        let number = match world.live.resolve(path) {
            Ok(Node::File(number)) => number,
            _ => {
                let number = world.next_number();
                let image = Image::new().expect("room for a simulated file");
                world.images.insert(number, image);
                world.create_durably(path, Node::File(number));
                number
            }
        };
        world.image(number).replace(bytes);
        let (directory, name) = world.live.locate(path).expect("created above");
        let name = name.to_owned();
        world.settle_name(&NameChange { directory, name, node: Some(Node::File(number)) });
    }

    /// Removes a file, durably, if it is there.
    pub fn remove_file(&self, path: &str) {
        let mut world = self.world.lock();
        if let Ok(change) = world.live.remove(path) {
            world.change(vec![change.clone()]);
            world.settle_name(&change);
        }
    }

    /// Another disk with the same contents, to tell the story on differently: as a new process of the
    /// same run of the machine finds it. It costs what the files hold, not what was allocated.
    #[must_use]
    pub fn fork(&self) -> Self {
        let mut world = self.world.lock().clone();
        world.dead = Arc::default();
        world.gate = Arc::default();
        world.end_process();
        Self { world: Arc::new(Mutex::new(world)) }
    }

    fn enter(&self, call: Call) -> io::Result<MutexGuard<'_, World>> {
        let incarnation = self.world.lock().incarnation;
        let mut world = wait_at_gate(&self.world, call);
        if world.incarnation != incarnation {
            // It hung until its process had died.
            return Err(crashed());
        }
        world.begin_whole(call)?;
        Ok(world)
    }

    fn handle(&self, world: &mut World, number: u64, writable: bool) -> Arc<Handle> {
        world.image(number).open += 1;
        let (incarnation, world) = (world.incarnation, Arc::clone(&self.world));
        Arc::new(Handle { world, incarnation, number, writable })
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SimDisk").field("calls", &self.calls()).finish_non_exhaustive()
    }
}

/// Kinds of events, by the faults that they can meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    /// Asks for names or lengths, or takes some away.
    Look,
    /// Opens a file that is there, or makes one.
    Open,
    Make,
    Read,
    Write,
    /// Makes names or room.
    Grow,
    Sync,
}

impl Call {
    fn can_meet(self, fault: Fault) -> bool {
        match fault {
            Fault::Eio => true,
            Fault::Enospc => matches!(self, Self::Write | Self::Grow | Self::Make | Self::Sync),
            Fault::TooManyFiles => matches!(self, Self::Open | Self::Make),
            Fault::ShortIo | Fault::Interrupted => matches!(self, Self::Read | Self::Write),
        }
    }
}

/// What becomes of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Whole,
    /// It does about half of what it was asked for.
    Short,
    /// It may do some of it, and then the process is dead.
    Dies,
}

fn crashed() -> io::Error {
    io::Error::other("the process has crashed (simulated)")
}

fn device_error() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

impl World {
    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// Counts an event that cannot fail. True: the process dies in it.
    fn tick(&mut self) -> bool {
        self.calls += 1;
        if self.crash_at == Some(self.calls) {
            self.dead.store(true, Ordering::Release);
        }
        self.is_dead()
    }

    fn begin(&mut self, call: Call) -> io::Result<Way> {
        if self.is_dead() {
            return Err(crashed());
        }
        if self.tick() {
            return Ok(Way::Dies);
        }
        match self.due_fault(call) {
            None => Ok(Way::Whole),
            Some(Fault::Eio) => Err(device_error()),
            Some(Fault::Enospc) => Err(io::ErrorKind::StorageFull.into()),
            Some(Fault::Interrupted) => Err(io::ErrorKind::Interrupted.into()),
            Some(Fault::TooManyFiles) => Err(io::Error::from_raw_os_error(24)), // EMFILE
            Some(Fault::ShortIo) => Ok(Way::Short),
        }
    }

    /// For an event that happens or does not.
    fn begin_whole(&mut self, call: Call) -> io::Result<()> {
        match self.begin(call)? {
            Way::Dies => Err(crashed()),
            Way::Whole | Way::Short => Ok(()),
        }
    }

    fn due_fault(&mut self, call: Call) -> Option<Fault> {
        if let Some((from, fault)) = self.fault_from {
            let again = fault == Fault::Interrupted && self.calls.wrapping_sub(from) % 2 == 1;
            if self.calls >= from && call.can_meet(fault) && !again {
                return Some(fault);
            }
        }
        let (at, fault) = self.fault_at?;
        if self.calls < at || !call.can_meet(fault) {
            return None;
        }
        self.fault_at = None;
        Some(fault)
    }

    fn next_number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn image(&mut self, number: u64) -> &mut Image {
        self.images.get_mut(&number).expect("a file with a name or a handle has an image")
    }

    /// Makes the changes of one operation, which a power loss may take back.
    fn change(&mut self, group: Vec<NameChange>) {
        let mut left = BTreeSet::new();
        for change in &group {
            if let Some(Node::File(number)) = self.live.apply(change) {
                self.image(number).links -= 1;
                left.insert(number);
            }
            if let Some(Node::File(number)) = change.node {
                self.image(number).links += 1;
            }
        }
        if !group.is_empty() {
            self.unsynced.push(group);
        }
        for number in left {
            self.release(number);
        }
    }

    /// Gives back the room of a file that has neither name nor handle, and forgets it if no power
    /// loss can bring its name back.
    fn release(&mut self, number: u64) {
        let image = self.image(number);
        if image.links > 0 || image.open > 0 {
            return;
        }
        let given_back = std::mem::take(&mut image.charged);
        if let Some(free) = &mut self.free {
            *free = free.saturating_add(given_back);
        }
        let node = Some(Node::File(number));
        let may_return = self.unsynced.iter().flatten().any(|change| change.node == node)
            || self.durable.files().iter().any(|(_, durable)| *durable == number);
        if !may_return {
            self.forget(number);
        }
    }

    fn forget(&mut self, number: u64) {
        let Some(image) = self.images.remove(&number) else { return };
        let Some(sector) = image.sample(&mut self.random) else { return };
        if self.freed.len() < FREED_MAX {
            self.freed.push(sector);
        } else {
            self.freed[size(self.random.below(FREED_MAX as u64))] = sector;
        }
    }

    /// Forgets the files that were kept for a power loss that can no longer bring them back.
    fn release_all(&mut self) {
        let is_left = |image: &Image| image.links == 0 && image.open == 0;
        let left: Vec<u64> = self
            .images
            .iter()
            .filter(|(_, image)| is_left(image))
            .map(|(number, _)| *number)
            .collect();
        for number in left {
            self.release(number);
        }
    }

    /// Makes the names in a directory durable, and with them every earlier change of the same names.
    fn sync_names(&mut self, directory: u64) {
        let mut needed = BTreeSet::new();
        let mut synced = Vec::new();
        let mut kept = Vec::new();
        for group in std::mem::take(&mut self.unsynced).into_iter().rev() {
            let here = group.last().is_some_and(|change| change.directory == directory);
            let name = |change: &NameChange| (change.directory, change.name.clone());
            if here || group.iter().any(|change| needed.contains(&name(change))) {
                needed.extend(group.iter().map(name));
                synced.push(group);
            } else {
                kept.push(group);
            }
        }
        for change in synced.iter().rev().flatten() {
            self.durable.apply(change);
        }
        kept.reverse();
        self.unsynced = kept;
        self.release_all();
    }

    /// Some of the changes of names are on the disk: a beginning of them, as a journal keeps it, or
    /// any that do not overtake an earlier change of the same name.
    fn lose_names(&mut self) {
        let groups = std::mem::take(&mut self.unsynced);
        let ordered = self.random.coin();
        let kept = self.random.below(groups.len() as u64 + 1);
        let mut lost = BTreeSet::new();
        for (at, group) in (0..).zip(groups) {
            let name = |change: &NameChange| (change.directory, change.name.clone());
            let overtakes = group.iter().any(|change| lost.contains(&name(change)));
            let survives = if ordered { at < kept } else { self.random.coin() && !overtakes };
            if survives {
                for change in &group {
                    self.durable.apply(change);
                }
            } else {
                lost.extend(group.iter().map(name));
            }
        }
        self.durable.forget_unreachable();
        self.live = self.durable.clone();
    }

    fn end_process(&mut self) {
        self.incarnation += 1;
        self.dead.store(false, Ordering::Release);
        self.crash_at = None;
        self.locks.clear();
        for image in self.images.values_mut() {
            image.open = 0;
            image.part_from_mappings();
        }
        self.release_all();
    }

    fn lose_power(&mut self) {
        self.boot += 1;
        self.lose_names();
        let names: BTreeSet<u64> =
            self.live.files().into_iter().map(|(_, number)| number).collect();
        let before: u64 = self.images.values().map(|image| image.charged).sum();
        let gone: Vec<u64> =
            self.images.keys().copied().filter(|number| !names.contains(number)).collect();
        for number in gone {
            self.forget(number);
        }
        for image in self.images.values_mut() {
            image.links = 1;
            image.lose(&self.freed, &mut self.random);
            image.charged = image.len();
        }
        let after: u64 = self.images.values().map(|image| image.charged).sum();
        if let Some(free) = &mut self.free {
            *free = free.saturating_add(before).saturating_sub(after);
        }
    }

    /// Room for a file of `len` bytes, counted once.
    fn take_room(&mut self, number: u64, len: u64) -> io::Result<()> {
        let charged = self.image(number).charged;
        if len <= charged {
            return Ok(());
        }
        if let Some(free) = &mut self.free {
            *free = free.checked_sub(len - charged).ok_or(io::ErrorKind::StorageFull)?;
        }
        self.image(number).charged = len;
        Ok(())
    }

    /// The end of a write to `position..end` for which there is room.
    fn end_in_room(&mut self, number: u64, position: u64, end: u64) -> io::Result<u64> {
        let charged = self.image(number).charged;
        let Some(free) = self.free else { return Ok(end) };
        let possible = end.min(charged.saturating_add(free));
        if possible <= position && end > position {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(possible)
    }

    fn create_file(&mut self, path: &str) -> io::Result<u64> {
        let number = self.next_number();
        let change = self.live.create(path, Node::File(number))?;
        self.images.insert(number, Image::new()?);
        self.change(vec![change]);
        Ok(number)
    }

    fn create_durably(&mut self, path: &str, node: Node) {
        let change = self.live.create(path, node).expect("a free name in a directory");
        self.change(vec![change.clone()]);
        self.settle_name(&change);
    }

    /// Makes one name durable as it is, whatever changes of it are under way.
    fn settle_name(&mut self, settled: &NameChange) {
        for group in &mut self.unsynced {
            group.retain(|change| {
                (change.directory, &change.name) != (settled.directory, &settled.name)
            });
        }
        self.unsynced.retain(|group| !group.is_empty());
        self.durable.apply(settled);
        self.release_all();
    }
}

impl Disk for SimDisk {
    fn root(&self) -> &Path {
        Path::new("simulated")
    }

    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let call = if mode == OpenMode::Create { Call::Make } else { Call::Open };
        let mut world = self.enter(call)?;
        let number = if mode == OpenMode::Create {
            world.create_file(path)?
        } else {
            match world.live.resolve(path)? {
                Node::File(number) => number,
                Node::Directory(_) => return Err(io::ErrorKind::InvalidInput.into()),
            }
        };
        let handle = self.handle(&mut world, number, mode != OpenMode::Read);
        Ok(Arc::new(SimFile { handle }))
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        let mut world = self.enter(Call::Grow)?;
        let number = world.next_number();
        let change = world.live.create(path, Node::Directory(number))?;
        world.change(vec![change]);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut world = self.enter(Call::Grow)?;
        let group = world.live.rename(from, to)?;
        world.change(group);
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut world = self.enter(Call::Look)?;
        let change = world.live.remove(path)?;
        world.change(vec![change]);
        Ok(())
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        let mut world = self.enter(Call::Look)?;
        let change = world.live.remove_dir(path)?;
        world.change(vec![change]);
        Ok(())
    }

    fn list(&self, path: &str) -> io::Result<Vec<Entry>> {
        let world = self.enter(Call::Look)?;
        let directory = world.live.resolve_directory(path)?;
        let entry = |(name, node): (&str, Node)| {
            let (kind, len) = match node {
                Node::Directory(_) => (EntryKind::Directory, 0),
                Node::File(number) => (EntryKind::File, world.images[&number].len()),
            };
            Entry { name: name.to_owned(), kind, len }
        };
        Ok(world.live.list(directory).map(entry).collect())
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        let mut world = self.enter(Call::Sync)?;
        let directory = world.live.resolve_directory(path)?;
        world.sync_names(directory);
        Ok(())
    }

    fn lock(&self, path: &str, note: &str) -> io::Result<Box<dyn DiskLock>> {
        let mut world = self.enter(Call::Grow)?;
        let number = match world.live.resolve(path) {
            Ok(Node::File(number)) => number,
            Ok(Node::Directory(_)) => return Err(io::ErrorKind::InvalidInput.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => world.create_file(path)?,
            Err(error) => return Err(error),
        };
        if !world.locks.insert(number) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let World { images, random, .. } = &mut *world;
        let image = images.get_mut(&number).expect("a file with a name has an image");
        // The note is for people, and costs no room: a lock can be had on a full disk.
        image.set_len(0, random)?;
        image.write(0, note.as_bytes(), random)?;
        Ok(Box::new(SimLock { handle: self.handle(&mut world, number, true) }))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(wait_at_gate(&self.world, Call::Read).free.unwrap_or(u64::MAX))
    }

    fn boot_id(&self) -> u128 {
        self.world.lock().boot
    }

    fn entropy(&self) -> u128 {
        let mut world = self.world.lock();
        u128::from(world.identities.next()) << 64 | u128::from(world.identities.next())
    }
}

/// Waits until the disk does not hang in such a call.
fn wait_at_gate(world: &Mutex<World>, call: Call) -> MutexGuard<'_, World> {
    let locked = world.lock();
    let gate = Arc::clone(&locked.gate);
    drop(locked);
    gate.pass(call);
    world.lock()
}

/// A file that a process has open.
struct Handle {
    world: Arc<Mutex<World>>,
    incarnation: u64,
    number: u64,
    writable: bool,
}

impl fmt::Debug for Handle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Handle").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Handle {
    /// The world, if the process that opened the handle lives.
    fn world(&self) -> Option<MutexGuard<'_, World>> {
        let world = self.world.lock();
        let alive = !world.is_dead() && world.incarnation == self.incarnation;
        alive.then_some(world)
    }

    fn begin(&self, call: Call) -> io::Result<(MutexGuard<'_, World>, Way)> {
        drop(wait_at_gate(&self.world, call));
        let mut world = self.world().ok_or_else(crashed)?;
        let way = world.begin(call)?;
        Ok((world, way))
    }

    /// For a call that happens or does not.
    fn enter(&self, call: Call) -> io::Result<MutexGuard<'_, World>> {
        drop(wait_at_gate(&self.world, call));
        let mut world = self.world().ok_or_else(crashed)?;
        world.begin_whole(call)?;
        Ok(world)
    }

    fn check_writable(&self, refusal: impl FnOnce() -> io::Error) -> io::Result<()> {
        if self.writable { Ok(()) } else { Err(refusal()) }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut world = self.world.lock();
        // Handles of an earlier process were closed when it ended.
        if world.incarnation == self.incarnation {
            world.image(self.number).open -= 1;
            world.release(self.number);
        }
    }
}

#[derive(Debug)]
struct SimLock {
    handle: Arc<Handle>,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        if let Some(mut world) = self.handle.world() {
            world.locks.remove(&self.handle.number);
        }
    }
}

#[derive(Debug)]
struct SimFile {
    handle: Arc<Handle>,
}

impl SimFile {
    /// The image, and what it draws from.
    fn image<'a>(&self, world: &'a mut World) -> (&'a mut Image, &'a mut Random) {
        let World { images, random, .. } = world;
        let image = images.get_mut(&self.handle.number).expect("a file with a handle has an image");
        (image, random)
    }
}

impl File for SimFile {
    fn len(&self) -> io::Result<u64> {
        let mut world = self.handle.enter(Call::Look)?;
        Ok(self.image(&mut world).0.len())
    }

    fn read_at(&self, position: u64, target: &mut [u8]) -> io::Result<usize> {
        let (mut world, way) = self.handle.begin(Call::Read)?;
        let asked = match way {
            Way::Dies => return Err(crashed()),
            Way::Short => target.len().div_ceil(2),
            Way::Whole => target.len(),
        };
        self.image(&mut world).0.read(position, &mut target[..asked])
    }

    fn write_at(&self, position: u64, source: &[u8]) -> io::Result<usize> {
        let (mut world, way) = self.handle.begin(Call::Write)?;
        self.handle.check_writable(bad_descriptor)?;
        let number = self.handle.number;
        let asked = match way {
            Way::Dies => size(world.random.below(source.len() as u64 + 1)),
            Way::Short => source.len().div_ceil(2),
            Way::Whole => source.len(),
        };
        let end = position.checked_add(asked as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        let end = match world.end_in_room(number, position, end) {
            Ok(end) => end,
            Err(_) if way == Way::Dies => return Err(crashed()),
            Err(error) => return Err(error),
        };
        let count = size(end.saturating_sub(position));
        let (image, random) = self.image(&mut world);
        image.write(position, &source[..count], random)?;
        if count > 0 {
            world.take_room(number, end)?;
        }
        if way == Way::Dies { Err(crashed()) } else { Ok(count) }
    }

    fn allocate(&self, position: u64, len: u64) -> io::Result<()> {
        let end = position.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
        if len == 0 {
            return Ok(());
        }
        let mut world = self.handle.enter(Call::Grow)?;
        self.handle.check_writable(bad_descriptor)?;
        world.take_room(self.handle.number, end)?;
        self.image(&mut world).0.extend(end)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut world = self.handle.enter(Call::Grow)?;
        self.handle.check_writable(|| io::ErrorKind::InvalidInput.into())?;
        world.take_room(self.handle.number, len)?;
        let (image, random) = self.image(&mut world);
        image.set_len(len, random)?;
        let given_back = std::mem::replace(&mut image.charged, len).saturating_sub(len);
        if let Some(free) = &mut world.free {
            *free = free.saturating_add(given_back);
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        drop(wait_at_gate(&self.handle.world, Call::Sync));
        let mut world = self.handle.world().ok_or_else(crashed)?;
        world.syncs += 1;
        let way = world.begin(Call::Sync)?;
        let fault = world.sync_fault.filter(|(at, _)| world.syncs >= *at).map(|(_, fault)| fault);
        if fault.is_some() {
            world.sync_fault = None;
        }
        let (image, random) = self.image(&mut world);
        match fault {
            _ if way == Way::Dies => {
                image.sync_in_part(random);
                Err(crashed())
            }
            Some(SyncFault::CleanedPages) => {
                image.fail_sync_clean(random);
                Err(device_error())
            }
            Some(SyncFault::Reverted) => {
                image.fail_sync_reverted();
                Err(device_error())
            }
            None => {
                image.sync();
                Ok(())
            }
        }
    }

    fn write_durably_at(&self, position: u64, source: &[u8]) -> io::Result<()> {
        write_all_at(self, position, source)?;
        self.sync_data()
    }

    fn map(&self, len: usize, writable: bool) -> io::Result<Mapping> {
        let mut world = self.handle.enter(Call::Look)?;
        if writable {
            self.handle.check_writable(|| io::ErrorKind::PermissionDenied.into())?;
        }
        let block = self.image(&mut world).0.block_of(len)?;
        let watch = Watch { handle: Arc::clone(&self.handle), block: Arc::clone(&block), writable };
        Ok(Mapping::heap(block, len, Some(Arc::new(watch))))
    }
}

/// Sees what goes through a mapping.
struct Watch {
    handle: Arc<Handle>,
    block: Arc<HeapBlock>,
    writable: bool,
}

impl StoreWatch for Watch {
    fn before_store(&self, position: usize, source: &[u8]) -> bool {
        let Some(mut world) = self.handle.world() else {
            return false;
        };
        let dies = world.tick();
        let World { images, random, .. } = &mut *world;
        let image = images.get_mut(&self.handle.number).expect("a mapped file has an image");
        let end = (position + source.len()) as u64;
        assert!(self.writable, "SIGSEGV: a store to a mapping that is for reading");
        assert!(end <= image.len(), "SIGBUS: a store behind the end of a mapped file");
        image.touch(position as u64..end, random);
        if dies {
            store_in_part(&self.block, position, source, random);
        }
        !dies
    }

    fn before_load(&self, range: Range<usize>) {
        let Some(mut world) = self.handle.world() else {
            return;
        };
        let image = world.image(self.handle.number);
        let range = range.start as u64..range.end as u64;
        if range.is_empty() {
            return;
        }
        assert!(range.end <= image.len(), "SIGBUS: a load behind the end of a mapped file");
        assert!(!image.has_bad_sector(range), "SIGBUS: a load of a sector that cannot be read");
    }
}

/// What a process that dies in the middle of a copy leaves: a beginning of it, or any of its bytes, as
/// the compiler picks their order. An aligned word is whole or not there at all.
fn store_in_part(block: &HeapBlock, position: usize, source: &[u8], random: &mut Random) {
    if matches!(source.len(), 4 | 8) && position.is_multiple_of(source.len()) {
        if random.coin() {
            block.copy_in(position, source);
        }
    } else if random.coin() {
        let count = size(random.below(source.len() as u64 + 1));
        block.copy_in(position, &source[..count]);
    } else {
        for (at, byte) in source.iter().enumerate() {
            if random.coin() {
                block.copy_in(position + at, &[*byte]);
            }
        }
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
    fn a_full_disk_refuses_to_grow_until_a_file_has_neither_name_nor_handle() {
        let disk = SimDisk::new(1);
        let full = file(&disk, "a", &[1; 100]);
        disk.set_free_bytes(Some(50));
        assert_eq!(full.allocate(0, 200).unwrap_err().kind(), io::ErrorKind::StorageFull);
        full.allocate(0, 150).unwrap();
        assert_eq!(disk.free_bytes(), Some(0));
        disk.remove("a").unwrap();
        assert_eq!(disk.free_bytes(), Some(0));
        drop(full);
        drop(file(&disk, "b", &[1; 150]));
        assert_eq!(disk.free_bytes(), Some(0));
    }

    #[test]
    fn a_write_to_a_disk_that_is_nearly_full_is_short_and_the_next_one_fails() {
        let disk = SimDisk::new(1);
        let full = file(&disk, "a", &[1; 100]);
        disk.set_free_bytes(Some(50));
        assert_eq!(full.write_at(90, &[2; 100]).unwrap(), 60);
        assert_eq!(full.write_at(150, &[2; 40]).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(full.write_at(0, &[3; 150]).unwrap(), 150, "what is there can be written over");
        full.set_len(10).unwrap();
        assert_eq!(disk.free_bytes(), Some(140));
    }

    #[test]
    fn a_sync_covers_what_was_issued_before_it_and_only_that_file() {
        let mut lost = [0, 0];
        for seed in 0..100 {
            let disk = SimDisk::new(seed);
            let (synced, other) = (file(&disk, "a", &[0; 2048]), file(&disk, "b", &[7; 512]));
            let map = synced.map(2048, true).unwrap();
            disk.sync_dir("").unwrap();
            map.put(0, &[7; 1024]);
            synced.sync_data().unwrap();
            map.put(1024, &[8; 1024]);
            disk.power_loss();
            let bytes = disk.read_file("a");
            assert_eq!(bytes[..1024], [7; 1024], "seed {seed}");
            lost[0] += usize::from(bytes[1024..] != [8; 1024]);
            lost[1] += usize::from(disk.read_file("b") != [7; 512]);
            drop(other);
        }
        assert!(lost.iter().all(|count| (20..100).contains(count)), "{lost:?}");
    }

    #[test]
    fn unsynced_sectors_reach_the_disk_in_any_order_and_in_any_version() {
        let (mut overtaken, mut between, mut alone) = (false, false, false);
        for seed in 0..2000 {
            let disk = SimDisk::new(seed);
            let written = file(&disk, "a", &[0; 1536]);
            disk.sync_dir("").unwrap();
            written.sync_data().unwrap();
            for version in 1..10 {
                write_all_at(&*written, 0, &[version; 512]).unwrap();
            }
            write_all_at(&*written, 512, &[1; 1024]).unwrap();
            disk.power_loss();
            let bytes = disk.read_file("a");
            let sectors: Vec<u8> = bytes.chunks(512).map(|sector| sector[0]).collect();
            for sector in bytes.chunks(512) {
                assert!(sector.iter().all(|byte| *byte == sector[0]), "a torn sector, seed {seed}");
            }
            overtaken |= sectors == [0, 1, 1];
            between |= (1..9).contains(&sectors[0]);
            alone |= sectors == [0, 1, 0];
        }
        assert!(overtaken && between && alone, "{overtaken} {between} {alone}");
    }

    #[test]
    fn a_write_that_was_not_synced_may_leave_what_a_removed_file_held() {
        let (mut zeroes, mut stale) = (0, 0);
        for seed in 0..2000 {
            let disk = SimDisk::new(seed);
            file(&disk, "b", &[9; 512]).sync_data().unwrap();
            let grown = file(&disk, "a", &[7; 512]);
            grown.sync_data().unwrap();
            disk.remove("b").unwrap();
            disk.sync_dir("").unwrap();
            grown.allocate(512, 4096).unwrap();
            write_all_at(&*grown, 512, &[1; 1024]).unwrap();
            disk.power_loss();
            let bytes = disk.read_file("a");
            assert_eq!(bytes[..512], [7; 512], "seed {seed}");
            let (written, unwritten) = bytes[512..].split_at(1024.min(bytes.len() - 512));
            assert!(unwritten.iter().all(|byte| *byte == 0), "allocated room is zero, seed {seed}");
            zeroes += usize::from(written.contains(&0));
            stale += usize::from(written.contains(&9));
        }
        assert!(zeroes > 500 && stale > 10, "{zeroes} {stale}");
    }

    #[test]
    fn names_are_lost_with_the_directory_that_holds_them_and_never_overtake_each_other() {
        let mut outcomes = BTreeSet::new();
        for seed in 0..500 {
            let disk = SimDisk::new(seed);
            disk.create_dir("d").unwrap();
            file(&disk, "d/a", b"1").sync_data().unwrap();
            disk.sync_dir("d").unwrap();
            disk.rename("d/a", "d/b").unwrap();
            disk.rename("d/b", "d/c").unwrap();
            disk.power_loss();
            let files = disk.files();
            assert!(files.len() <= 1, "one file under two names: {files:?}, seed {seed}");
            outcomes.insert(files);
        }
        let expected = [vec![], vec!["d/a"], vec!["d/b"], vec!["d/c"]];
        let expected = expected.map(|paths| paths.into_iter().map(str::to_owned).collect());
        assert_eq!(outcomes, BTreeSet::from(expected));
    }

    #[test]
    fn a_removed_file_may_be_back_after_a_power_loss_unless_its_directory_was_synced() {
        let mut back = 0;
        for seed in 0..100 {
            let disk = SimDisk::new(seed);
            for path in ["a", "b"] {
                file(&disk, path, path.as_bytes()).sync_data().unwrap();
            }
            disk.sync_dir("").unwrap();
            disk.remove("a").unwrap();
            disk.sync_dir("").unwrap();
            disk.remove("b").unwrap();
            disk.power_loss();
            assert!(disk.read_file("a").is_empty());
            back += usize::from(disk.read_file("b") == b"b");
        }
        assert!((20..80).contains(&back), "{back}");
    }

    #[test]
    fn a_killed_process_leaves_what_it_wrote_and_a_part_of_what_it_was_writing() {
        let mut parts = BTreeSet::new();
        for seed in 0..100 {
            let disk = SimDisk::new(seed);
            let written = file(&disk, "a", &[1; 100]);
            disk.crash_at(1);
            assert!(written.write_at(100, &[2; 100]).is_err());
            assert!(disk.is_dead());
            assert!(written.sync_data().is_err() && disk.list("").is_err());
            disk.process_restart();
            let bytes = disk.read_file("a");
            assert_eq!(bytes[..100], [1; 100]);
            assert!(bytes[100..].iter().all(|byte| *byte == 2));
            parts.insert(bytes.len());
        }
        assert!(parts.len() > 20);
    }

    #[test]
    fn an_aligned_word_is_never_torn_by_a_crash() {
        for seed in 0..100 {
            let disk = SimDisk::new(seed);
            let mapped = file(&disk, "a", &[0; 64]);
            let map = mapped.map(64, true).unwrap();
            disk.crash_at(1);
            map.publish_u32(8, u32::MAX);
            disk.process_restart();
            let bytes = disk.read_file("a");
            assert!(bytes[8..12] == [0; 4] || bytes[8..12] == [255; 4], "seed {seed}");
        }
    }

    #[test]
    fn a_restart_frees_locks_and_keeps_the_boot_and_a_power_loss_changes_it() {
        let disk = SimDisk::new(1);
        let lock = disk.lock("lock", "me").unwrap();
        assert_eq!(disk.lock("lock", "you").unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let boot = disk.boot_id();
        disk.process_restart();
        let second = disk.lock("lock", "you").unwrap();
        drop(lock);
        assert!(disk.lock("lock", "a third").is_err(), "a dead process frees nothing");
        assert_eq!(disk.boot_id(), boot);
        drop(second);
        disk.power_loss();
        assert_ne!(disk.boot_id(), boot);
    }

    #[test]
    fn a_fault_waits_for_a_call_that_can_meet_it_and_comes_once() {
        let disk = SimDisk::new(1);
        let met = file(&disk, "a", &[1; 100]);
        let map = met.map(100, true).unwrap();
        let mut bytes = [0; 100];
        disk.fail_call(1, Fault::Enospc);
        map.put(0, b"x");
        assert_eq!(met.read_at(0, &mut bytes).unwrap(), 100);
        disk.list("").unwrap();
        assert_eq!(met.write_at(0, b"y").unwrap_err().kind(), io::ErrorKind::StorageFull);
        met.write_at(0, b"y").unwrap();
        disk.fail_call(2, Fault::Eio);
        met.len().unwrap();
        assert_eq!(met.len().unwrap_err().raw_os_error(), Some(libc::EIO));
        met.len().unwrap();
        disk.fail_call(1, Fault::ShortIo);
        assert_eq!(met.read_at(0, &mut bytes).unwrap(), 50);
        disk.fail_call(1, Fault::Interrupted);
        assert_eq!(met.write_at(0, b"z").unwrap_err().kind(), io::ErrorKind::Interrupted);
        met.write_at(0, b"z").unwrap();
    }

    #[test]
    fn short_calls_and_signals_without_end_are_ridden_over_and_errors_without_end_are_not() {
        let disk = SimDisk::new(1);
        let met = file(&disk, "a", b"");
        let mut bytes = [0; 1000];
        for fault in [Fault::ShortIo, Fault::Interrupted] {
            disk.fail_from(1, fault);
            write_all_at(&*met, 0, &[5; 1000]).unwrap();
            assert_eq!(crate::storage::read_full_at(&*met, 0, &mut bytes).unwrap(), 1000);
            assert_eq!(bytes, [5; 1000]);
        }
        disk.fail_from(3, Fault::Eio);
        let outcomes: Vec<bool> = (0..5).map(|_| met.len().is_ok()).collect();
        assert_eq!(outcomes, [true, true, false, false, false]);
        disk.heal();
        met.len().unwrap();
    }

    #[test]
    fn a_sync_that_failed_by_reverting_shows_the_old_bytes_at_once() {
        let disk = SimDisk::new(1);
        let reverted = file(&disk, "a", &[1; 1000]);
        reverted.sync_data().unwrap();
        write_all_at(&*reverted, 0, &[2; 1500]).unwrap();
        disk.fail_sync(1, SyncFault::Reverted);
        assert!(reverted.sync_data().is_err());
        let bytes = disk.read_file("a");
        assert!(bytes[..1000] == [1; 1000] && bytes[1000..] == [0; 500]);
    }

    #[test]
    fn a_sector_that_cannot_be_read_fails_reads_of_it_until_it_is_written() {
        let disk = SimDisk::new(1);
        let broken = file(&disk, "a", &[1; 2048]);
        broken.sync_data().unwrap();
        disk.sync_dir("").unwrap();
        disk.break_sector("a", 2);
        let mut bytes = [0; 1024];
        assert_eq!(broken.read_at(0, &mut bytes).unwrap(), 1024);
        assert_eq!(broken.read_at(1024, &mut bytes).unwrap_err().raw_os_error(), Some(libc::EIO));
        disk.power_loss();
        let broken = disk.open("a", OpenMode::Write).unwrap();
        assert!(broken.read_at(1024, &mut bytes).is_err(), "a restart mends nothing");
        broken.write_at(1024, &[2; 512]).unwrap();
        assert_eq!(broken.read_at(1024, &mut bytes).unwrap(), 1024);
    }

    #[test]
    #[should_panic(expected = "SIGBUS")]
    fn a_load_behind_the_end_of_a_mapped_file_is_noticed() {
        let disk = SimDisk::new(1);
        let short = file(&disk, "a", &[1; 100]);
        let _ = short.map(4096, false).unwrap().bytes(90..101);
    }

    #[test]
    #[should_panic(expected = "SIGBUS")]
    fn a_store_to_room_that_was_cut_is_noticed() {
        let disk = SimDisk::new(1);
        let cut = file(&disk, "a", &[1; 100]);
        let map = cut.map(4096, true).unwrap();
        cut.set_len(50).unwrap();
        map.put(49, b"xy");
    }

    #[test]
    #[should_panic(expected = "SIGBUS")]
    fn a_load_of_a_broken_sector_through_a_mapping_is_noticed() {
        let disk = SimDisk::new(1);
        let broken = file(&disk, "a", &[1; 1024]);
        let map = broken.map(1024, false).unwrap();
        disk.break_sector("a", 1);
        let _ = map.bytes(0..513);
    }

    #[test]
    #[should_panic(expected = "SIGSEGV")]
    fn a_store_to_a_mapping_that_is_for_reading_is_noticed() {
        let disk = SimDisk::new(1);
        file(&disk, "a", &[1; 100]).map(100, false).unwrap().put(0, b"x");
    }

    #[test]
    fn a_fork_goes_its_own_way_and_knows_what_was_not_synced() {
        for seed in 0..50 {
            let disk = SimDisk::new(seed);
            let held = file(&disk, "a", &[1; 1000]);
            disk.sync_dir("").unwrap();
            let fork = disk.fork();
            write_all_at(&*held, 0, &[2; 1000]).unwrap();
            assert_eq!(fork.read_file("a"), [1; 1000]);
            let same = fork.fork();
            fork.power_loss();
            same.power_loss();
            assert_eq!(fork.read_file("a"), same.read_file("a"), "seed {seed}");
            assert_eq!(disk.read_file("a"), [2; 1000]);
        }
    }

    #[test]
    fn damage_done_by_a_test_is_durable() {
        for seed in 0..50 {
            let disk = SimDisk::new(seed);
            drop(file(&disk, "a", &[1; 1000]));
            drop(file(&disk, "b", &[1; 1000]));
            disk.process_restart();
            disk.write_file("a", &[2; 700]);
            disk.write_file("of/old/c", &[3; 10]);
            disk.remove_file("b");
            disk.power_loss();
            assert_eq!(disk.files(), ["a", "of/old/c"], "seed {seed}");
            assert_eq!(disk.read_file("a"), [2; 700]);
            assert_eq!(disk.read_file("of/old/c"), [3; 10]);
        }
    }

    #[test]
    fn a_removed_file_stays_readable_to_who_holds_it_and_is_forgotten_then() {
        let disk = SimDisk::new(1);
        let held = file(&disk, "a", &[1; 1000]);
        let map = held.map(1000, false).unwrap();
        disk.remove("a").unwrap();
        disk.sync_dir("").unwrap();
        drop(held);
        assert_eq!(map.bytes(990..1000), [1; 10]);
        assert_eq!(disk.world.lock().images.len(), 1);
        drop(map);
        assert!(disk.world.lock().images.is_empty());
    }
}
