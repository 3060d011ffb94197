//! The space of the active segment.
//!
//! It is made in four stages, each ahead of the next: *allocated* (`fallocate`, in steps that
//! double), *ready* (zeroes written, so that the pages are in the cache), *granted* (the file system has agreed to stores
//! through the mapping), *written* (batches). Only what is granted is stored to: a full or failing disk therefore
//! shows as an error of one of the first three stages, before a record is taken, and not as a signal.
//!
//! A grant does not last ([`Grant`]). It is asked for anew by the worker, of a log that is appended to, and by the
//! appender, of one that was idle. That costs an append a comparison.
//!
//! The zeroes are written by the disk's worker when it is early enough, else by the appender; the
//! lock in [`Room`] keeps the two apart. Zeroes go only behind `ready`, batches only before it or, in a run, across it.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::storage::{File, Mapping, write_all_at};
use crate::types::Timestamp;

use super::Grant;

/// Of the system's memory.
pub(super) const PAGE_BYTES: u64 = 4096;
/// The first allocation of a segment: ten thousand idle partitions must cost little.
const ALLOCATE_BYTES_MIN: u64 = 32 << 10;
/// Allocation doubles up to this step.
const ALLOCATE_BYTES_MAX: u64 = 64 << 20;
/// What is granted of a log that grows slowly: each grant makes its pages dirty.
const GRANT_BYTES_MIN: u64 = 16 << 10;

/// The stages of one file's space; shared with the worker that works ahead.
#[derive(Debug)]
pub(crate) struct Room {
    file: Arc<dyn File>,
    map: Option<Arc<Mapping>>,
    capacity: u64,
    chunk: u64,
    ready: AtomicU64,
    /// So far it may be stored to, or written: at most `ready`.
    granted: AtomicU64,
    /// When that was last asked for from the log's end on.
    grant: Grant,
    stages: Mutex<Stages>,
}

#[derive(Debug)]
struct Stages {
    allocated: u64,
    step: u64,
    /// Where the log ended at the last grant.
    granted_from: u64,
}

impl Room {
    /// Of a file that is written up to a position, grows up to a capacity, and gets its zeroes in such chunks.
    pub(super) fn new(
        file: Arc<dyn File>,
        map: Option<Arc<Mapping>>,
        (position, capacity, chunk): (u64, u64, u64),
        created: Timestamp,
    ) -> Self {
        let grant = Grant::new(map.as_deref(), created);
        Self {
            file,
            map,
            capacity,
            chunk,
            ready: AtomicU64::new(position),
            granted: AtomicU64::new(position),
            grant,
            stages: Mutex::new(Stages {
                allocated: position,
                step: ALLOCATE_BYTES_MIN,
                granted_from: position,
            }),
        }
    }

    /// Of a file that takes nothing.
    pub(super) fn none(file: Arc<dyn File>) -> Self {
        Self::new(file, None, (0, 0, ALLOCATE_BYTES_MIN), Timestamp(0))
    }

    /// Whether so much can be written without a call to the disk.
    #[inline]
    pub(crate) fn is_ready(&self, until: u64, now: Timestamp) -> bool {
        // In this order: who sees when a grant was given sees how far it goes.
        self.grant.is_fresh(now) && until <= self.granted.load(Ordering::Acquire)
    }

    /// Whether a grant is soon to be renewed.
    #[inline]
    pub(crate) fn is_aging(&self, now: Timestamp) -> bool {
        self.grant.is_aging(now)
    }

    /// Has what lies between the log's end and `range.end` ready and granted, and more beyond it.
    ///
    /// # Errors
    /// What the system says; nothing that was ready is lost.
    pub(crate) fn make_ready(&self, range: Range<u64>, now: Timestamp) -> io::Result<()> {
        let mut stages = self.stages.lock();
        self.add_zeroes(&mut stages, range.end)?;
        if !self.is_ready(range.end, now) {
            self.grant(&mut stages, range, now)?;
        }
        Ok(())
    }

    /// Has at least `until` bytes ready, of a file that nobody may append to for long.
    pub(super) fn write_zeroes(&self, until: u64) -> io::Result<()> {
        self.make_zeroes(&mut self.stages.lock(), until)
    }

    /// Makes at least `until` bytes ready, and grants them if all before them are granted.
    fn add_zeroes(&self, stages: &mut Stages, until: u64) -> io::Result<()> {
        let before = self.ready.load(Ordering::Acquire);
        self.make_zeroes(stages, until)?;
        let ready = self.ready.load(Ordering::Acquire);
        if self.granted.load(Ordering::Acquire) == before {
            self.ask(before..ready)?;
            self.granted.store(ready, Ordering::Release);
        }
        Ok(())
    }

    /// Writes zeroes to at least `until`, and in whole chunks beyond it.
    fn make_zeroes(&self, stages: &mut Stages, until: u64) -> io::Result<()> {
        let mut ready = self.ready.load(Ordering::Acquire);
        while ready < until {
            // Small chunks first: most partitions are idle, and ten thousand of them must cost little.
            let chunk =
                ready.next_power_of_two().clamp(ALLOCATE_BYTES_MIN.min(self.chunk), self.chunk);
            let chunk_end = (ready / chunk + 1) * chunk;
            let target = chunk_end.min(self.capacity.max(until));
            let least = until.next_multiple_of(PAGE_BYTES).min(target);
            let target = self.allocate_ahead(stages, target, least)?;
            let zeroes = zeroes();
            while ready < target {
                let len = usize::try_from(target - ready).unwrap_or(usize::MAX).min(zeroes.len());
                write_all_at(&*self.file, ready, &zeroes[..len])?;
                ready += len as u64;
            }
            self.raise_ready(ready);
        }
        Ok(())
    }

    fn raise_ready(&self, ready: u64) {
        self.ready.store(ready, Ordering::Release);
        if self.grant.is_for_ever() {
            self.granted.store(ready, Ordering::Release);
        }
    }

    /// Has the file system agree to stores behind the log's end: to as many as may come until the next grant.
    fn grant(&self, stages: &mut Stages, range: Range<u64>, now: Timestamp) -> io::Result<()> {
        let grown = range.start.saturating_sub(stages.granted_from);
        let span = (2 * grown).max(GRANT_BYTES_MIN);
        let end = (range.start + span).next_multiple_of(PAGE_BYTES).max(range.end);
        let end = end.min(self.ready.load(Ordering::Acquire));
        self.ask(range.start..end)?;
        stages.granted_from = range.start;
        self.granted.store(end, Ordering::Release);
        self.grant.given(now);
        Ok(())
    }

    fn ask(&self, range: Range<u64>) -> io::Result<()> {
        self.map.as_ref().map_or(Ok(()), |map| Grant::ask(&*self.file, map, range))
    }

    /// Writes batches over what is zero and over what is not ready yet: that part needs no zeroes.
    pub(super) fn write(&self, position: u64, bytes: &[u8]) -> io::Result<()> {
        let mut stages = self.stages.lock();
        let end = position + bytes.len() as u64;
        self.allocate_ahead(&mut stages, end, end)?;
        // Some of it may be there now: not even for want of room may appends go on over that.
        write_all_at(&*self.file, position, bytes).map_err(io::Error::other)?;
        self.raise_ready(end.max(self.ready.load(Ordering::Acquire)));
        Ok(())
    }

    /// Allocates as far as `target` and a step beyond it; on a disk that is nearly full, as far as `least`. Returns which.
    fn allocate_ahead(&self, stages: &mut Stages, target: u64, least: u64) -> io::Result<u64> {
        if target <= stages.allocated {
            return Ok(target);
        }
        let end = (stages.allocated + stages.step).max(target).min(self.capacity.max(target));
        match self.allocate(stages, end) {
            Err(error) if is_full(&error) => {
                self.allocate(stages, least)?;
                Ok(least)
            }
            allocated => {
                allocated?;
                stages.step = (stages.step * 2).min(ALLOCATE_BYTES_MAX);
                Ok(target)
            }
        }
    }

    fn allocate(&self, stages: &mut Stages, end: u64) -> io::Result<()> {
        if end > stages.allocated {
            self.file.allocate(stages.allocated, end - stages.allocated)?;
            stages.allocated = end;
        }
        Ok(())
    }

    /// So far from `position`, but within the segment.
    pub(crate) fn ahead_of(&self, position: u64, ahead: u64) -> u64 {
        (position + ahead).min(self.capacity)
    }

    /// Whether [`Room::work_ahead`] has anything to do for a log that ends at `position`.
    pub(crate) fn wants_work(&self, position: u64, ahead: u64, now: Timestamp) -> bool {
        let ready = self.ready.load(Ordering::Acquire);
        ready < self.ahead_of(position, ahead) || self.wants_grant(position, ready, now)
    }

    /// Works ahead of a log that ends at `position`: makes a chunk ready, or renews the grant if enough are. False: nothing
    /// to do.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn work_ahead(&self, position: u64, ahead: u64, now: Timestamp) -> io::Result<bool> {
        let ready = self.ready.load(Ordering::Acquire);
        let until = self.ahead_of(position, ahead);
        if ready < until {
            self.add_zeroes(&mut self.stages.lock(), (ready + self.chunk).min(until))?;
            return Ok(true);
        }
        let wants = self.wants_grant(position, ready, now);
        if wants {
            self.grant(&mut self.stages.lock(), position..position, now)?;
        }
        Ok(wants)
    }

    /// Whether the grant is old, or does not reach as far as the log will.
    fn wants_grant(&self, position: u64, ready: u64, now: Timestamp) -> bool {
        let granted = self.granted.load(Ordering::Acquire);
        let is_short = granted < ready && granted < position + GRANT_BYTES_MIN / 2;
        self.is_aging(now) || is_short
    }
}

pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

fn zeroes() -> &'static [u8] {
    static ZEROES: [u8; 1 << 20] = [0; 1 << 20];
    &ZEROES
}
