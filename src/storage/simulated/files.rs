//! Files that a process has open on a simulated disk, and what it maps of them.
//!
//! Handles of a process that has ended do nothing any more.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::super::mapping::{HeapBlock, StoreWatch};
use super::super::memory::bad_descriptor;
use super::super::{File, Mapping, write_all_at};
use super::image::{Image, Random, size};
use super::{Call, SyncFault, Way, World, crashed, device_error};

/// Waits until the disk does not hang in such a call.
pub(super) fn wait_at_gate(world: &Mutex<World>, call: Call) -> MutexGuard<'_, World> {
    let locked = world.lock();
    let gate = Arc::clone(&locked.gate);
    drop(locked);
    gate.pass(call);
    world.lock()
}

/// A file that a process has open.
pub(super) struct Handle {
    pub(super) world: Arc<Mutex<World>>,
    pub(super) incarnation: u64,
    pub(super) number: u64,
    pub(super) writable: bool,
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
pub(super) struct SimLock {
    pub(super) handle: Arc<Handle>,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        if let Some(mut world) = self.handle.world() {
            world.locked = false;
        }
    }
}

#[derive(Debug)]
pub(super) struct SimFile {
    pub(super) handle: Arc<Handle>,
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

    fn sync_file_system(&self) -> io::Result<()> {
        self.handle.enter(Call::Sync)?.sync_everything();
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

    fn touch(&self) {
        drop(wait_at_gate(&self.handle.world, Call::Write));
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
        let pages = position..position + source.len();
        assert!(!world.holds_store(self.handle.number, &pages), "a store that the disk holds");
        let asked = world.ask_for_pages(self.handle.number, pages);
        assert!(asked.is_ok(), "SIGBUS: a store that the file system refuses");
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

    fn can_fail(&self) -> bool {
        self.handle.world().is_some_and(|world| world.pages.is_some())
    }

    fn before_stores(&self, range: Range<usize>) -> io::Result<()> {
        let Some(mut world) = self.handle.world() else {
            return Ok(());
        };
        world.ask_for_pages(self.handle.number, range)
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
