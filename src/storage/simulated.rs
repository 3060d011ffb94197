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

mod files;
mod gate;
mod image;
mod pages;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::names::{NameChange, Names, Node};
use super::{Disk, DiskLock, Entry, EntryKind, File, OpenMode};
use files::{Handle, SimFile, SimLock, wait_at_gate};
use gate::Gate;
pub use gate::Hang;
use image::{Image, Random, Sector, size};
use pages::Pages;

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
    locked: bool,
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
    hang_after: Option<(u64, Hang)>,
    gate: Arc<Gate>,
    /// Only where [`SimDisk::watch_pages`] was asked for.
    pages: Option<Pages>,
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
                locked: false,
                free: None,
                calls: 0,
                dead: Arc::default(),
                crash_at: None,
                fault_at: None,
                fault_from: None,
                sync_fault: None,
                syncs: 0,
                hang_after: None,
                gate: Arc::default(),
                pages: None,
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

    /// The `n`-th call from now on (1 is the next) does not return until [`SimDisk::answer`], while others do: to do something
    /// in that moment. Stores through a mapping do not count.
    pub fn hold_call(&self, n: u64) {
        let gate = Arc::clone(&self.world.lock().gate);
        gate.hold(n);
    }

    /// Whether the call waits that [`SimDisk::hold_call`] named.
    #[must_use]
    pub fn holds_call(&self) -> bool {
        let gate = Arc::clone(&self.world.lock().gate);
        gate.holds()
    }

    /// As [`SimDisk::hang`], once `n` more events were begun.
    pub fn hang_after(&self, n: u64, hang: Hang) {
        let mut world = self.world.lock();
        world.hang_after = Some((world.calls + n, hang));
        world.begin_to_hang();
    }

    /// It hangs no more. Other faults stay, and may meet the calls that hung.
    pub fn answer(&self) {
        let mut world = self.world.lock();
        world.hang_after = None;
        let gate = Arc::clone(&world.gate);
        drop(world);
        gate.open();
    }

    /// Calls that hang now.
    #[must_use]
    pub fn held_calls(&self) -> usize {
        let gate = Arc::clone(&self.world.lock().gate);
        gate.held()
    }

    /// From now on it minds which pages of mapped files may be stored to, of files that are opened from now on: a store to
    /// one that was written back panics while the disk fails ([`SimDisk::fail_from`]), as it may end a real process, and while it
    /// hangs ([`Hang::Everything`]), as it would hold whoever stores.
    pub fn watch_pages(&self) {
        self.world.lock().pages.get_or_insert_default();
    }

    /// Writes back all pages, as a kernel does at times. That makes nothing durable here.
    pub fn write_back(&self) {
        self.world.lock().pages.iter_mut().for_each(Pages::close);
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
        world.hang_after = None;
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
    /// Opens a directory, and makes its names durable.
    SyncNames,
}

impl Call {
    fn is_sync(self) -> bool {
        matches!(self, Self::Sync | Self::SyncNames)
    }

    fn can_meet(self, fault: Fault) -> bool {
        match fault {
            Fault::Eio => true,
            Fault::Enospc => !matches!(self, Self::Look | Self::Open | Self::Read),
            Fault::TooManyFiles => matches!(self, Self::Open | Self::Make | Self::SyncNames),
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
        self.begin_to_hang();
        self.is_dead()
    }

    fn begin_to_hang(&mut self) {
        if let Some((_, hang)) = self.hang_after.take_if(|(after, _)| self.calls >= *after) {
            self.gate.close(hang);
        }
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

    /// As the first store to each of the pages of these bytes does.
    fn ask_for_pages(&mut self, file: u64, bytes: Range<usize>) -> io::Result<()> {
        let has_failed = matches!(self.fault_from, Some((n, Fault::Eio)) if self.calls + 1 >= n);
        let asked = self.pages.as_mut().map(|pages| pages.ask(file, bytes, has_failed));
        asked.unwrap_or(Ok(()))
    }

    /// Whether a store to these bytes would not return before the disk answers: it asks for a page.
    fn holds_store(&self, file: u64, bytes: &Range<usize>) -> bool {
        let are_open = self.pages.as_ref().is_none_or(|pages| pages.are_open(file, bytes));
        !are_open && self.gate.is_closed()
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

    /// Makes everything durable: bytes and names.
    fn sync_everything(&mut self) {
        self.images.values_mut().for_each(Image::sync);
        for change in std::mem::take(&mut self.unsynced).iter().flatten() {
            self.durable.apply(change);
        }
        self.release_all();
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
        self.locked = false;
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
        let mut world = self.enter(Call::SyncNames)?;
        let directory = world.live.resolve_directory(path)?;
        world.sync_names(directory);
        Ok(())
    }

    fn lock(&self, path: &str, note: &str) -> io::Result<Box<dyn DiskLock>> {
        let mut world = self.enter(Call::Grow)?;
        if world.locked {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let number = match world.live.resolve(path) {
            Ok(Node::File(number)) => number,
            Ok(Node::Directory(_)) => return Err(io::ErrorKind::InvalidInput.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => world.create_file(path)?,
            Err(error) => return Err(error),
        };
        world.locked = true;
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

    fn stores_in_place(&self) -> bool {
        true
    }

    fn boot_id(&self) -> u128 {
        self.world.lock().boot
    }

    fn entropy(&self) -> u128 {
        let mut world = self.world.lock();
        u128::from(world.identities.next()) << 64 | u128::from(world.identities.next())
    }
}
