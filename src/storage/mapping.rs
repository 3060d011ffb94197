//! A file's bytes in memory: stored to by one writer, read by any number of readers.
//!
//! The bytes below what a writer has *published* never change again, so a reader may hold them as
//! a plain slice. Publishing is a release store of a word (the length of a batch) that readers load
//! with acquire, or any other synchronisation between writer and reader, such as a lock.
//!
//! Invariants, kept by the callers in this crate:
//! 1. One thread at a time stores, and only to bytes that were never published.
//! 2. `bytes` is asked only for published ranges, within the length of the file.
//! 3. Stores go only to ranges that were allocated and written before, and that the file system has just agreed to
//!    ([`Mapping::populate`]), so no store meets a page that is missing or refused (`SIGBUS`).

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::Pulse;

/// What is fetched ahead of the next store: the lines of one short batch.
const PREFETCHED_LINES: usize = 4;
const LINE_BYTES: usize = 64;

/// Who keeps the memory behind a [`Mapping`] alive.
pub(super) enum Owner {
    /// The operating system, until this is dropped.
    System(
        #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "held for its drop"))]
        memmap2::MmapRaw,
    ),
    /// A block of the heap, shared with the file it belongs to.
    Heap(#[expect(dead_code, reason = "held for its drop")] Arc<HeapBlock>),
}

/// Told of every access before it happens; the simulation's.
pub(super) trait StoreWatch: Send + Sync {
    /// Bytes `position..position + source.len()` are about to become `source`. False keeps it from
    /// happening: the process that stores is dead.
    fn before_store(&self, position: usize, source: &[u8]) -> bool;
    /// Bytes of `range` are about to be read.
    fn before_load(&self, range: Range<usize>);
    /// Whether stores may meet a file system that has failed.
    fn can_fail(&self) -> bool;
    /// Bytes of `range` are asked for, to be stored to.
    fn before_stores(&self, range: Range<usize>) -> io::Result<()>;
}

/// The first bytes of a file, in memory.
pub(crate) struct Mapping {
    base: *mut u8,
    len: usize,
    watch: Option<Arc<dyn StoreWatch>>,
    /// Of the disk that holds the file.
    pulse: Option<Arc<Pulse>>,
    owner: Owner,
}

// SAFETY: the pointer is to memory that `owner` keeps alive and that no thread owns; stores are
// kept apart by invariant 1, and reads see only bytes that no store touches any more.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// A mapping of the operating system.
    pub(super) fn system(map: memmap2::MmapRaw, pulse: Arc<Pulse>) -> Self {
        let (base, len) = (map.as_mut_ptr(), map.len());
        Self { base, len, watch: None, pulse: Some(pulse), owner: Owner::System(map) }
    }

    /// The first `len` bytes of a block of the heap; `len` is cut to the block's size.
    pub(super) fn heap(
        block: Arc<HeapBlock>,
        len: usize,
        watch: Option<Arc<dyn StoreWatch>>,
    ) -> Self {
        let (base, len) = (block.base, len.min(block.len));
        Self { base, len, watch, pulse: None, owner: Owner::Heap(block) }
    }

    /// Bytes that are mapped; the file may be shorter.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Stores `source` at `position`.
    #[inline(always)]
    pub(crate) fn put(&self, position: usize, source: &[u8]) {
        assert!(holds(self.len, position, source.len()), "a store outside the mapping");
        if !self.may_store(position, source) {
            return;
        }
        // SAFETY: the range lies within the mapping (asserted); nobody else stores (invariant 1)
        // and no reader has been given these bytes (invariant 2).
        unsafe {
            std::ptr::copy_nonoverlapping(source.as_ptr(), self.base.add(position), source.len());
        };
    }

    /// Soon something will be stored behind `position`: has its lines fetched. They were written by the core that made
    /// them ready, and an append waits for each of them otherwise: three replicas take 1.4 times as many with it.
    #[inline(always)]
    pub(crate) fn prefetch(&self, position: usize) {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        for line in 0..PREFETCHED_LINES {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let at = self.base.wrapping_add(position + line * LINE_BYTES);
            // SAFETY: a prefetch is a hint and accesses nothing, whatever the address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast_const().cast()) };
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        let _ = position;
    }

    /// Whether a store may meet a file system that has failed, as a signal.
    pub(crate) fn can_fail(&self) -> bool {
        match (&self.owner, &self.watch) {
            (Owner::System(_), _) => true,
            (Owner::Heap(_), watch) => watch.as_ref().is_some_and(|watch| watch.can_fail()),
        }
    }

    /// Whether its disk answers, where that is watched.
    pub(crate) fn pulse(&self) -> Option<&Arc<Pulse>> {
        self.pulse.as_ref()
    }

    /// Has the file system agree to stores to bytes that are written already: they meet no fault until it writes the pages
    /// back. A system that does not know how (Linux before 5.14, others) says nothing, and the first store to each page asks.
    ///
    /// # Errors
    /// The file system takes no stores: a store would be a signal.
    pub(crate) fn populate(&self, range: Range<u64>) -> io::Result<()> {
        let address = |at: u64| usize::try_from(at).map_err(|_| io::ErrorKind::OutOfMemory);
        let range = address(range.start)?..address(range.end)?;
        if range.is_empty() {
            return Ok(());
        }
        assert!(range.end <= self.len, "a range outside the mapping");
        if let Some(watch) = &self.watch {
            return watch.before_stores(range);
        }
        #[cfg(target_os = "linux")]
        if let Owner::System(map) = &self.owner {
            let asked = map.advise_range(memmap2::Advice::PopulateWrite, range.start, range.len());
            return asked.or_else(|error| match error.raw_os_error() {
                Some(libc::EINVAL) => Ok(()),
                Some(libc::EFAULT) => {
                    Err(io::Error::other("the file system takes no stores to the mapped file"))
                }
                _ => Err(error),
            });
        }
        Ok(())
    }

    /// Stores a little-endian word at `position`, a multiple of 4, after everything stored before it.
    #[inline(always)]
    pub(crate) fn publish_u32(&self, position: usize, value: u32) {
        if !self.may_store(position, &value.to_le_bytes()) {
            return;
        }
        self.word(position).store(value.to_le(), Ordering::Release);
    }

    /// Stores a little-endian word at `position`, a multiple of 8, after everything stored before it.
    #[inline(always)]
    pub(crate) fn publish_u64(&self, position: usize, value: u64) {
        if !self.may_store(position, &value.to_le_bytes()) {
            return;
        }
        self.long(position).store(value.to_le(), Ordering::Release);
    }

    /// Published bytes.
    #[inline]
    pub(crate) fn bytes(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.len, "bytes outside the mapping");
        self.will_load(range.start, range.end - range.start);
        // SAFETY: the range lies within the mapping (asserted); published bytes do not change
        // (invariants 1 and 2) and live as long as `owner`, which `self` holds.
        unsafe { std::slice::from_raw_parts(self.base.add(range.start), range.end - range.start) }
    }

    #[inline(always)]
    fn may_store(&self, position: usize, source: &[u8]) -> bool {
        match &self.watch {
            None => true,
            Some(watch) => watch.before_store(position, source),
        }
    }

    #[inline]
    fn will_load(&self, position: usize, len: usize) {
        if let Some(watch) = &self.watch {
            watch.before_load(position..position + len);
        }
    }

    #[inline(always)]
    fn word(&self, position: usize) -> &AtomicU32 {
        assert!(
            position.is_multiple_of(4) && holds(self.len, position, 4),
            "a word outside the mapping"
        );
        // SAFETY: within the mapping and aligned (asserted; mappings begin at a page, heap blocks at
        // a multiple of 8), and words that are published are only ever accessed atomically
        // while they may change.
        unsafe { AtomicU32::from_ptr(self.base.add(position).cast()) }
    }

    #[inline(always)]
    fn long(&self, position: usize) -> &AtomicU64 {
        assert!(
            position.is_multiple_of(8) && holds(self.len, position, 8),
            "a word outside the mapping"
        );
        // SAFETY: as in `word`.
        unsafe { AtomicU64::from_ptr(self.base.add(position).cast()) }
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Mapping").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Whether `count` bytes from `position` on lie within `len`.
#[inline]
fn holds(len: usize, position: usize, count: usize) -> bool {
    len.checked_sub(position).is_some_and(|left| left >= count)
}

/// Zeroed memory that files in memory are made of. The system gives the pages when they are touched.
pub(super) struct HeapBlock {
    base: *mut u8,
    len: usize,
    layout: std::alloc::Layout,
}

// SAFETY: a block is plain memory; who reads and stores when is the business of its users, which
// go through the methods below or a `Mapping`.
unsafe impl Send for HeapBlock {}
// SAFETY: as above.
unsafe impl Sync for HeapBlock {}

impl HeapBlock {
    /// `len` zero bytes; `OutOfMemory` if there is no room. The system gives the memory page by page
    /// as it is used: it is aligned no further than a plain `calloc` aligns, as the allocator would
    /// fill it with zeroes at once otherwise.
    pub(super) fn zeroed(len: usize) -> io::Result<Arc<Self>> {
        let layout = std::alloc::Layout::from_size_align(len.max(1), 8)
            .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        // SAFETY: the layout's size is not zero.
        let base = unsafe { std::alloc::alloc_zeroed(layout) };
        if base.is_null() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(Arc::new(Self { base, len, layout }))
    }

    /// Bytes in the block.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Copies bytes out. The caller keeps stores to the range away meanwhile.
    pub(super) fn copy_out(&self, position: usize, target: &mut [u8]) {
        assert!(holds(self.len, position, target.len()), "a read outside the block");
        // SAFETY: within the block (asserted); no store to the range meanwhile (the caller).
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.base.add(position),
                target.as_mut_ptr(),
                target.len(),
            );
        };
    }

    /// Copies bytes in. The caller keeps other users of the range away meanwhile.
    pub(super) fn copy_in(&self, position: usize, source: &[u8]) {
        assert!(holds(self.len, position, source.len()), "a store outside the block");
        // SAFETY: within the block (asserted); nobody else uses the range meanwhile (the caller).
        unsafe {
            std::ptr::copy_nonoverlapping(source.as_ptr(), self.base.add(position), source.len());
        };
    }

    /// Makes bytes zero. The caller keeps other users of the range away meanwhile.
    pub(super) fn clear(&self, position: usize, count: usize) {
        assert!(holds(self.len, position, count), "a store outside the block");
        // SAFETY: within the block (asserted); nobody else uses the range meanwhile (the caller).
        unsafe { std::ptr::write_bytes(self.base.add(position), 0, count) };
    }

    /// Copies bytes of another block to the same place. The caller keeps other users of either range
    /// away meanwhile.
    pub(super) fn copy_from(&self, other: &Self, position: usize, count: usize) {
        assert!(
            holds(self.len, position, count) && holds(other.len, position, count),
            "a copy outside the blocks"
        );
        // SAFETY: within both blocks (asserted); nobody else uses the ranges meanwhile (the caller).
        unsafe { std::ptr::copy(other.base.add(position), self.base.add(position), count) };
    }
}

impl Drop for HeapBlock {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout, and freed once.
        unsafe { std::alloc::dealloc(self.base, self.layout) };
    }
}
