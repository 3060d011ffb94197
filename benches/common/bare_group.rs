//! The limit of durable appends by many threads: group commit with nothing around it.
//!
//! Threads put their frames into a buffer under a lock. One of them leads: it waits for company while
//! that pays (until as many are queued as were at work last time, at most 30 us), writes the buffer with
//! one durable write, and wakes the threads that it served by name, without the lock; the first that
//! came too late leads next.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::bare::{DURABLE_SPACE, write_durably, written_space};

const GATHER: Duration = Duration::from_micros(30);

/// A file that many threads append to durably.
#[derive(Debug)]
pub(crate) struct BareGroup {
    file: File,
    state: Mutex<State>,
    /// Frames in the buffer, for the leader that looks for company.
    queued: AtomicUsize,
    durable: AtomicU64,
    frame: Vec<u8>,
}

#[derive(Debug, Default)]
struct State {
    buffer: Vec<u8>,
    spare: Vec<u8>,
    written: u64,
    end: u64,
    leading: bool,
    company: usize,
    sleepers: Vec<Sleeper>,
    failed: Option<io::ErrorKind>,
}

#[derive(Debug)]
struct Sleeper {
    end: u64,
    thread: Thread,
    called: Arc<AtomicBool>,
}

impl Sleeper {
    fn call(self) {
        self.called.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

impl BareGroup {
    /// Makes the space. A frame is `bytes` long.
    pub(crate) fn create(directory: &Path, bytes: usize) -> io::Result<Self> {
        Ok(Self {
            file: written_space(&directory.join("group.bare"))?,
            state: Mutex::default(),
            queued: AtomicUsize::new(0),
            durable: AtomicU64::new(0),
            frame: super::noise(bytes),
        })
    }

    /// Appends a frame; returns once it is on stable storage. `called` is the thread's own.
    pub(crate) fn append(&self, called: &Arc<AtomicBool>) -> io::Result<()> {
        let mut state = self.state.lock();
        state.buffer.extend_from_slice(&self.frame);
        state.end += self.frame.len() as u64;
        let end = state.end;
        self.queued.fetch_add(1, Ordering::AcqRel);
        if state.leading {
            called.store(false, Ordering::Relaxed);
            let sleeper = Sleeper { end, thread: thread::current(), called: Arc::clone(called) };
            state.sleepers.push(sleeper);
            drop(state);
            while !called.load(Ordering::Acquire) {
                thread::park();
            }
            if self.durable.load(Ordering::Acquire) >= end {
                return Ok(());
            }
            state = self.state.lock();
        }
        state.leading = true;
        self.lead(state)
    }

    fn lead<'a>(&'a self, mut state: MutexGuard<'a, State>) -> io::Result<()> {
        let company = state.company;
        if company > self.queued.load(Ordering::Acquire) {
            drop(state);
            let started = Instant::now();
            while self.queued.load(Ordering::Acquire) < company && started.elapsed() < GATHER {
                thread::yield_now();
            }
            state = self.state.lock();
        }
        let served = self.queued.swap(0, Ordering::AcqRel);
        let spare = std::mem::take(&mut state.spare);
        let mut bytes = std::mem::replace(&mut state.buffer, spare);
        if state.written + bytes.len() as u64 > DURABLE_SPACE {
            state.written = 0;
        }
        let (position, end) = (state.written, state.end);
        state.written += bytes.len() as u64;
        let earlier = state.failed;
        drop(state);
        let outcome = match earlier {
            Some(kind) => Err(kind.into()),
            None => write_durably(&self.file, position, &bytes),
        };
        bytes.clear();
        let mut state = self.state.lock();
        state.spare = bytes;
        state.company = served + self.queued.load(Ordering::Acquire);
        let served_sleepers = match &outcome {
            Ok(()) => {
                self.durable.store(end, Ordering::Release);
                state.sleepers.partition_point(|sleeper| sleeper.end <= end)
            }
            Err(error) => {
                // Nobody is served: each finds the failure for itself as the next leader.
                state.failed = Some(error.kind());
                0
            }
        };
        let mut rest = state.sleepers.split_off(served_sleepers);
        let done = std::mem::take(&mut state.sleepers);
        let next = if rest.is_empty() { None } else { Some(rest.remove(0)) };
        state.leading = next.is_some();
        state.sleepers = rest;
        drop(state);
        for sleeper in done.into_iter().chain(next) {
            sleeper.call();
        }
        outcome
    }
}
