//! One simulated file: what a running system sees of it, and what is on the disk.
//!
//! The *live* bytes are one block of the heap, which mappings share. The *durable* ones are kept by
//! sector, and only where they are not zero. A sector that was changed since the last sync is
//! *unsynced*: a power loss leaves it as it was, as it is, or as it was for a while in between.
//!
//! Invariants:
//! 1. Live bytes behind `len`, and durable bytes behind `durable_len`, are zero.
//! 2. A live sector that is not zero is in `durable`, in `unsynced` or in `lying`: copying an image
//!    costs what it holds and not what was allocated.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::storage::mapping::HeapBlock;

/// What a device writes whole or not at all.
pub(super) const SECTOR: usize = 512;
pub(super) type Sector = [u8; SECTOR];

/// What some devices and file systems write whole or not at all instead.
const PAGE_SECTORS: u64 = 8;
/// Versions of an unsynced sector that are remembered beside the first and the last.
const VERSIONS_MAX: usize = 3;
const BLOCK_BYTES_MIN: usize = 4096;

/// The least room of a file that is mapped, for it cannot be given more then. As much comes from the system, not from what
/// the allocator keeps, and takes memory only where it is touched; under miri all of it does.
const MAPPED_BYTES_MIN: usize = if cfg!(miri) { BLOCK_BYTES_MIN } else { 33 << 20 };

/// Split-mix: small, and good enough to draw faults.
#[derive(Clone, Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub(super) fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }
}

/// A length or position of a simulated file, all of which is in memory.
pub(super) fn size(len: u64) -> usize {
    usize::try_from(len).expect("a simulated file fits the memory")
}

pub(super) struct Image {
    block: Arc<HeapBlock>,
    len: u64,
    durable: BTreeMap<u64, Arc<Sector>>,
    durable_len: u64,
    unsynced: Unsynced,
    /// The cache calls them clean, and the disk may not have what the cache has.
    lying: BTreeSet<u64>,
    /// Reading them fails until they are written whole.
    bad: BTreeSet<u64>,
    /// Names that lead here now.
    pub(super) links: u32,
    /// Handles of living processes.
    pub(super) open: u32,
    /// Bytes that this file was given of the disk's room.
    pub(super) charged: u64,
}

/// Sectors that were changed since the last sync.
#[derive(Clone, Default)]
struct Unsynced {
    /// By sector: whether it is in `order`.
    marked: Vec<bool>,
    /// In the order of their first change.
    order: Vec<u64>,
    /// What some of them held in between.
    between: BTreeMap<u64, Vec<Arc<Sector>>>,
}

impl Unsynced {
    /// True: it was not marked before.
    fn mark(&mut self, sector: u64) -> bool {
        let at = size(sector);
        if at >= self.marked.len() {
            self.marked.resize(at + 1, false);
        }
        let first = !std::mem::replace(&mut self.marked[at], true);
        if first {
            self.order.push(sector);
        }
        first
    }

    fn take(&mut self) -> (Vec<u64>, BTreeMap<u64, Vec<Arc<Sector>>>) {
        for sector in &self.order {
            self.marked[size(*sector)] = false;
        }
        (std::mem::take(&mut self.order), std::mem::take(&mut self.between))
    }
}

/// The sectors that hold some of the bytes of `range`.
fn sectors(range: Range<u64>) -> Range<u64> {
    if range.is_empty() {
        return 0..0;
    }
    range.start / SECTOR as u64..range.end.div_ceil(SECTOR as u64)
}

/// The bytes of a sector that lie before `end`.
fn sector_bytes(sector: u64, end: usize) -> Range<usize> {
    let start = size(sector) * SECTOR;
    start.min(end)..(start + SECTOR).min(end)
}

impl Image {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            block: HeapBlock::zeroed(BLOCK_BYTES_MIN)?,
            len: 0,
            durable: BTreeMap::new(),
            durable_len: 0,
            unsynced: Unsynced::default(),
            lying: BTreeSet::new(),
            bad: BTreeSet::new(),
            links: 0,
            open: 0,
            charged: 0,
        })
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Copies bytes out, as many as there are and are asked for.
    pub(super) fn read(&self, position: u64, target: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.len.saturating_sub(position)).unwrap_or(usize::MAX);
        let count = target.len().min(left);
        if count == 0 {
            return Ok(0);
        }
        // What lies before a bad sector is read, as by a kernel.
        let bad = self.bad.range(sectors(position..position + count as u64)).next();
        let count = match bad.map(|sector| sector * SECTOR as u64) {
            Some(bad) if bad <= position => return Err(io::Error::from_raw_os_error(libc::EIO)),
            Some(bad) => size(bad - position),
            None => count,
        };
        self.block.copy_out(size(position), &mut target[..count]);
        Ok(count)
    }

    /// All the bytes, whatever is bad about them.
    pub(super) fn contents(&self) -> Vec<u8> {
        let mut bytes = vec![0; size(self.len)];
        self.block.copy_out(0, &mut bytes);
        bytes
    }

    pub(super) fn write(
        &mut self,
        position: u64,
        bytes: &[u8],
        random: &mut Random,
    ) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let end = position.checked_add(bytes.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        self.mend(position..end)?;
        self.reserve(usize::try_from(end).map_err(|_| io::ErrorKind::FileTooLarge)?)?;
        self.touch(position..end, random);
        self.block.copy_in(size(position), bytes);
        self.len = self.len.max(end);
        Ok(())
    }

    /// Makes the file at least `end` bytes long.
    pub(super) fn extend(&mut self, end: u64) -> io::Result<()> {
        self.reserve(usize::try_from(end).map_err(|_| io::ErrorKind::FileTooLarge)?)?;
        self.len = self.len.max(end);
        Ok(())
    }

    pub(super) fn set_len(&mut self, len: u64, random: &mut Random) -> io::Result<()> {
        if len >= self.len {
            return self.extend(len);
        }
        let cut = sectors(len..self.len);
        let used: BTreeSet<u64> = self.used().filter(|sector| cut.contains(sector)).collect();
        for sector in used {
            self.touch_sector(sector, random);
            let bytes = sector_bytes(sector, size(self.len));
            let start = bytes.start.max(size(len));
            self.block.clear(start, bytes.end - start);
        }
        self.len = len;
        Ok(())
    }

    /// The block to map, with room for `len` bytes.
    pub(super) fn block_of(&mut self, len: usize) -> io::Result<Arc<HeapBlock>> {
        if Arc::get_mut(&mut self.block).is_some() {
            self.reserve(len.max(MAPPED_BYTES_MIN))?;
        }
        self.reserve(len)?;
        Ok(Arc::clone(&self.block))
    }

    pub(super) fn has_bad_sector(&self, range: Range<u64>) -> bool {
        !self.bad.is_empty() && self.bad.range(sectors(range)).next().is_some()
    }

    pub(super) fn break_sector(&mut self, sector: u64) {
        self.bad.insert(sector);
    }

    pub(super) fn heal(&mut self) {
        self.bad.clear();
    }

    /// Before `range` changes: notes its sectors as unsynced, now and then with what they hold.
    pub(super) fn touch(&mut self, range: Range<u64>, random: &mut Random) {
        for sector in sectors(range) {
            self.touch_sector(sector, random);
        }
    }

    /// Everything becomes durable.
    pub(super) fn sync(&mut self) {
        let (order, _) = self.unsynced.take();
        for sector in order {
            self.make_durable(sector);
        }
        self.durable_len = self.len;
        self.forget_durable_behind_end();
    }

    /// A crash in the middle of a sync: some of it is done, and none of it is promised.
    pub(super) fn sync_in_part(&mut self, random: &mut Random) {
        for at in 0..self.unsynced.order.len() {
            if random.coin() {
                self.make_durable(self.unsynced.order[at]);
            }
        }
        self.durable_len = if random.coin() { self.len } else { self.durable_len };
        self.forget_durable_behind_end();
    }

    /// A sync that failed and left the cache as it is, called clean: some of it is on the disk, and no
    /// later sync will look at the rest.
    pub(super) fn fail_sync_clean(&mut self, random: &mut Random) {
        let (order, _) = self.unsynced.take();
        for sector in order {
            if random.coin() {
                self.make_durable(sector);
            }
            self.lying.insert(sector);
        }
        self.durable_len = if random.coin() { self.len } else { self.durable_len };
        self.forget_durable_behind_end();
    }

    /// A sync that failed and took the cache back to what the disk has. The length stays.
    pub(super) fn fail_sync_reverted(&mut self) {
        let (order, _) = self.unsynced.take();
        for sector in order {
            let bytes = sector_bytes(sector, size(self.len));
            match self.durable.get(&sector) {
                Some(old) => self.block.copy_in(bytes.start, &old[..bytes.len()]),
                None => self.block.clear(bytes.start, bytes.len()),
            }
        }
    }

    /// A power loss: some of what was not synced is on the disk, in some version. `stale` is what
    /// files held that are gone.
    pub(super) fn lose(&mut self, stale: &[Arc<Sector>], random: &mut Random) {
        let old_len = self.durable_len;
        self.durable_len = match random.below(3) {
            0 => old_len,
            1 => self.len,
            _ => {
                let (low, high) = (old_len.min(self.len), old_len.max(self.len));
                low + random.below(high - low + 1)
            }
        };
        let (mut order, mut between) = self.unsynced.take();
        if random.coin() {
            order.sort_unstable();
        }
        let unit = if random.below(4) == 0 { PAGE_SECTORS } else { 1 };
        let survivors = survivors(&order, unit, random);
        for sector in &order {
            if !survivors.contains(&(sector / unit)) {
                continue;
            }
            match between.remove(sector).filter(|_| random.coin()) {
                Some(mut versions) => {
                    let chosen = size(random.below(versions.len() as u64));
                    self.durable.insert(*sector, versions.swap_remove(chosen));
                }
                None => self.make_durable(*sector),
            }
        }
        if random.below(8) == 0 {
            let lost = order.iter().copied().filter(|sector| !survivors.contains(&(sector / unit)));
            self.leave_garbage(lost, old_len, stale, random);
        }
        self.forget_durable_behind_end();
        self.restore();
    }

    /// Both images become `bytes`.
    pub(super) fn replace(&mut self, bytes: &[u8]) {
        self.durable = (0..)
            .zip(bytes.chunks(SECTOR))
            .map(|(sector, chunk)| {
                let mut whole = [0; SECTOR];
                whole[..chunk.len()].copy_from_slice(chunk);
                (sector, Arc::new(whole))
            })
            .collect();
        self.durable_len = bytes.len() as u64;
        self.unsynced.take();
        self.restore();
    }

    /// One of the sectors that the disk holds of this file.
    pub(super) fn sample(&self, random: &mut Random) -> Option<Arc<Sector>> {
        let count = self.durable.len() as u64;
        self.durable.values().nth(size(random.below(count))).map(Arc::clone)
    }

    /// Leaves the block to whoever maps it, and goes on with a copy.
    pub(super) fn part_from_mappings(&mut self) {
        if Arc::get_mut(&mut self.block).is_none() {
            self.block = self.copied_block();
        }
    }

    /// Room for `capacity` bytes. While the block is mapped it cannot be exchanged.
    fn reserve(&mut self, capacity: usize) -> io::Result<()> {
        if self.block.len() >= capacity {
            return Ok(());
        }
        if Arc::get_mut(&mut self.block).is_none() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let block = HeapBlock::zeroed(capacity.max(self.block.len().saturating_mul(2)))?;
        block.copy_from(&self.block, 0, size(self.len));
        self.block = block;
        Ok(())
    }

    fn touch_sector(&mut self, sector: u64, random: &mut Random) {
        if self.unsynced.mark(sector) || random.below(8) != 0 {
            return;
        }
        let version = Arc::new(self.live_sector(sector));
        let versions = self.unsynced.between.entry(sector).or_default();
        if versions.len() < VERSIONS_MAX {
            versions.push(version);
        } else {
            versions[size(random.below(VERSIONS_MAX as u64))] = version;
        }
    }

    /// A write makes a bad sector good again if it covers it; in part, it would have to read it.
    fn mend(&mut self, range: Range<u64>) -> io::Result<()> {
        if !self.has_bad_sector(range.clone()) {
            return Ok(());
        }
        let whole = range.start.div_ceil(SECTOR as u64)..range.end / SECTOR as u64;
        if sectors(range).any(|sector| !whole.contains(&sector) && self.bad.contains(&sector)) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.bad.retain(|sector| !whole.contains(sector));
        Ok(())
    }

    fn live_sector(&self, sector: u64) -> Sector {
        let mut whole = [0; SECTOR];
        let bytes = sector_bytes(sector, self.block.len());
        self.block.copy_out(bytes.start, &mut whole[..bytes.len()]);
        whole
    }

    fn make_durable(&mut self, sector: u64) {
        let bytes = self.live_sector(sector);
        if bytes == [0; SECTOR] {
            self.durable.remove(&sector);
        } else {
            self.durable.insert(sector, Arc::new(bytes));
        }
    }

    /// Blocks that were taken for writes since the last sync, and not written before the power went,
    /// hold what was there before. (Blocks that were allocated and never written to read as zero.)
    fn leave_garbage(
        &mut self,
        lost: impl Iterator<Item = u64>,
        old_len: u64,
        stale: &[Arc<Sector>],
        random: &mut Random,
    ) {
        let grown = old_len.div_ceil(SECTOR as u64)..self.durable_len.div_ceil(SECTOR as u64);
        for sector in lost.filter(|sector| grown.contains(sector)) {
            let known = stale.get(size(random.below(stale.len() as u64))).map(Arc::clone);
            let garbage = known.filter(|_| random.coin()).unwrap_or_else(|| {
                Arc::new(std::array::from_fn(|_| random.next().to_le_bytes()[0]))
            });
            self.durable.insert(sector, garbage);
        }
    }

    /// Invariant 1.
    fn forget_durable_behind_end(&mut self) {
        let end = size(self.durable_len);
        drop(self.durable.split_off(&self.durable_len.div_ceil(SECTOR as u64)));
        let last = self.durable_len / SECTOR as u64;
        if let Some(sector) = self.durable.get_mut(&last) {
            Arc::make_mut(sector)[end % SECTOR..].fill(0);
        }
    }

    /// The live image becomes the durable one, in a block of its own.
    fn restore(&mut self) {
        let capacity = size(self.durable_len).max(BLOCK_BYTES_MIN);
        self.block = HeapBlock::zeroed(capacity).expect("room for a simulated file");
        self.len = self.durable_len;
        self.lying.clear();
        for (sector, whole) in &self.durable {
            let bytes = sector_bytes(*sector, size(self.len));
            self.block.copy_in(bytes.start, &whole[..bytes.len()]);
        }
    }

    /// The sectors that may not be zero (invariant 2), some of them twice.
    fn used(&self) -> impl Iterator<Item = u64> {
        let marked = self.durable.keys().chain(&self.unsynced.order).chain(&self.lying);
        marked.copied()
    }

    fn copied_block(&self) -> Arc<HeapBlock> {
        let capacity = size(self.len).max(BLOCK_BYTES_MIN);
        let block = HeapBlock::zeroed(capacity).expect("room for a simulated file");
        for sector in self.used() {
            let bytes = sector_bytes(sector, capacity);
            block.copy_from(&self.block, bytes.start, bytes.len());
        }
        block
    }
}

impl Clone for Image {
    /// A copy with memory of its own, and with no handles.
    fn clone(&self) -> Self {
        Self {
            block: self.copied_block(),
            len: self.len,
            durable: self.durable.clone(),
            durable_len: self.durable_len,
            unsynced: self.unsynced.clone(),
            lying: self.lying.clone(),
            bad: self.bad.clone(),
            links: self.links,
            open: 0,
            charged: self.charged,
        }
    }
}

/// Which units of the unsynced sectors reach the disk: none, all, any, a beginning or an end of them,
/// all but one, or one alone.
fn survivors(order: &[u64], unit: u64, random: &mut Random) -> BTreeSet<u64> {
    let mut seen = BTreeSet::new();
    let units: Vec<u64> =
        order.iter().map(|sector| sector / unit).filter(|unit| seen.insert(*unit)).collect();
    let (mode, pivot) = (random.below(7), random.below(units.len() as u64));
    let survives = |at: u64, random: &mut Random| match mode {
        0 => false,
        1 => true,
        2 => random.coin(),
        3 => at < pivot,
        4 => at >= pivot,
        5 => at != pivot,
        _ => at == pivot,
    };
    (0..).zip(units).filter(|(at, _)| survives(*at, random)).map(|(_, unit)| unit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_cut_by_a_loss_does_not_come_back_when_the_file_grows_again() {
        for seed in 0..300 {
            let mut random = Random(seed);
            let mut image = Image::new().unwrap();
            image.write(0, &[7; 1500], &mut random).unwrap();
            image.lose(&[], &mut random);
            let left = image.contents();
            image.extend(2000).unwrap();
            image.sync();
            image.lose(&[], &mut random);
            let mut expected = left.clone();
            expected.resize(2000, 0);
            assert!(image.contents() == expected, "seed {seed}: {} bytes left", left.len());
        }
    }

    #[test]
    fn a_copy_holds_the_same_bytes_and_fares_the_same() {
        for seed in 0..200 {
            let mut random = Random(seed);
            let mut image = Image::new().unwrap();
            for _ in 0..20 {
                let bytes = vec![random.next().to_le_bytes()[0]; size(1 + random.below(1500))];
                match random.below(8) {
                    0 => image.sync(),
                    1 => image.fail_sync_clean(&mut random),
                    2 => image.fail_sync_reverted(),
                    3 => image.set_len(random.below(5000), &mut random).unwrap(),
                    4 => image.sync_in_part(&mut random),
                    _ => image.write(random.below(5000), &bytes, &mut random).unwrap(),
                }
            }
            let mut copy = image.clone();
            assert!(copy.contents() == image.contents(), "seed {seed}");
            let mut same = random.clone();
            copy.lose(&[], &mut same);
            image.lose(&[], &mut random);
            assert!(copy.contents() == image.contents(), "seed {seed} after the loss");
        }
    }

    #[test]
    fn a_bad_sector_is_mended_by_a_write_of_all_of_it_only() {
        let mut random = Random(1);
        let mut image = Image::new().unwrap();
        image.write(0, &[7; 2048], &mut random).unwrap();
        image.break_sector(1);
        let mut bytes = [0; 2048];
        assert_eq!(image.read(0, &mut bytes[..512]).unwrap(), 512);
        assert_eq!(image.read(0, &mut bytes[..513]).unwrap(), 512, "as far as it goes");
        assert!(image.read(512, &mut bytes[..1]).is_err());
        assert!(image.write(600, &[8; 10], &mut random).is_err());
        image.write(500, &[8; 600], &mut random).unwrap();
        assert_eq!(image.read(0, &mut bytes).unwrap(), 2048);
    }
}
