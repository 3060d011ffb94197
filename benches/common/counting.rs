//! An allocator that counts, for the benches that show that nothing is allocated.
//!
//! Install it with `#[global_allocator] static ALLOCATOR: Counting = Counting;`.

#![allow(unsafe_code, reason = "an allocator cannot be written without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

static CALLS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static CALLS_HERE: Cell<u64> = const { Cell::new(0) };
}

/// Counts every allocation and leaves the work to the system's allocator.
#[derive(Debug)]
pub(crate) struct Counting;

/// What was allocated so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Allocated {
    /// Calls of all threads.
    pub(crate) calls: u64,
    /// Bytes of all threads.
    pub(crate) bytes: u64,
    /// Calls of this thread.
    pub(crate) calls_here: u64,
}

impl Allocated {
    /// Up to now.
    pub(crate) fn now() -> Self {
        Self {
            calls: CALLS.load(Ordering::Relaxed),
            bytes: BYTES.load(Ordering::Relaxed),
            calls_here: CALLS_HERE.get(),
        }
    }

    /// Since `earlier`, on the same thread.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            calls: self.calls - earlier.calls,
            bytes: self.bytes - earlier.bytes,
            calls_here: self.calls_here - earlier.calls_here,
        }
    }
}

fn count(bytes: usize) {
    CALLS.fetch_add(1, Ordering::Relaxed);
    BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
    // A thread that is going away has no counter any more, and is not the one that is watched.
    let _ = CALLS_HERE.try_with(|calls| calls.set(calls.get() + 1));
}

// SAFETY: every call is handed on to `System` as it came, which keeps the contract; counting
// allocates nothing (atomics, and a thread-local that is initialised at compile time).
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are `System`'s conditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; the pointer came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: as above; the pointer came from `System`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
