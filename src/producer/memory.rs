//! How much a producer may hold that is not delivered yet; who comes too late waits in line.
//!
//! Taking and giving back without anybody waiting is one atomic addition. A sender that finds the buffer full
//! stands in line (CLI-04): as long as somebody does, nobody passes by.
//!
//! One who comes into line says so and then looks at what is used; one who gives room back changes that and then looks
//! whether anybody is in line. In one order for all (`SeqCst`), for else neither might see the other.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

#[derive(Debug)]
pub(super) struct Memory {
    used: AtomicU64,
    bytes_max: u64,
    /// The length of the line, for those that do not stand in it.
    waiting: AtomicUsize,
    line: Mutex<Line>,
    bell: Condvar,
}

#[derive(Debug, Default)]
struct Line {
    places: VecDeque<u64>,
    next: u64,
    closed: bool,
}

impl Memory {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self {
            used: AtomicU64::new(0),
            bytes_max,
            waiting: AtomicUsize::new(0),
            line: Mutex::default(),
            bell: Condvar::new(),
        }
    }

    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }

    pub(super) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Whether there is room now and nobody waits for it.
    #[inline]
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        !self.is_awaited() && self.used() + bytes <= self.bytes_max
    }

    /// Takes room if there is some and nobody waits for it.
    pub(super) fn try_take(&self, bytes: u64) -> bool {
        !self.is_awaited() && self.take_now(bytes)
    }

    /// Takes room for records to come, while there is plenty.
    pub(super) fn try_take_ahead(&self, bytes: u64) -> bool {
        self.used() <= self.bytes_max / 2 && bytes <= self.bytes_max / 4 && self.try_take(bytes)
    }

    /// Takes room even if there is none: for a record that is in the log already.
    pub(super) fn take_anyway(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::AcqRel);
    }

    fn take_now(&self, bytes: u64) -> bool {
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.bytes_max);
        self.used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits).is_ok()
    }

    /// Whether somebody waits for room.
    #[inline]
    pub(super) fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// Nobody waits for room any more.
    pub(super) fn close(&self) {
        self.line.lock().closed = true;
        self.bell.notify_all();
    }

    /// Waits in line for room, as long as it is not closed. `help` is called as soon as the caller stands there, under no
    /// lock, and again after what it returns.
    pub(super) fn take(&self, bytes: u64, timeout: Duration, help: impl Fn() -> Duration) -> bool {
        let started = Instant::now();
        let mut rest = Duration::ZERO;
        let mut line = self.line.lock();
        let place = line.next;
        line.next += 1;
        line.places.push_back(place);
        self.waiting.store(line.places.len(), Ordering::SeqCst);
        let taken = loop {
            if line.places.front() == Some(&place) && self.take_now(bytes) {
                break true;
            }
            let left = timeout.saturating_sub(started.elapsed());
            if left.is_zero() || line.closed {
                break false;
            }
            if rest.is_zero() {
                rest = MutexGuard::unlocked(&mut line, &help);
            } else if self.bell.wait_for(&mut line, left.min(rest)).timed_out() {
                rest = Duration::ZERO;
            }
        };
        line.places.retain(|other| *other != place);
        self.waiting.store(line.places.len(), Ordering::Release);
        drop(line);
        self.bell.notify_all();
        taken
    }

    pub(super) fn give_back(&self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        self.used.fetch_sub(bytes, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            // Under the lock, so that nobody is between looking and sleeping.
            let line = self.line.lock();
            drop(line);
            self.bell.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody helps.
    const ALONE: fn() -> Duration = || Duration::MAX;

    #[test]
    fn cli_04_room_is_given_in_the_order_in_which_it_was_asked_for() {
        let memory = Memory::new(100);
        assert!(memory.try_take(100) && !memory.try_take(1) && !memory.has_room(1));
        let order = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for (at, bytes) in [(0, 90), (1, 20), (2, 5)] {
                let (memory, order) = (&memory, &order);
                scope.spawn(move || {
                    assert!(memory.take(bytes, Duration::from_secs(30), ALONE));
                    order.lock().push(at);
                });
                while memory.waiting.load(Ordering::Acquire) <= at {
                    std::thread::yield_now();
                }
            }
            memory.give_back(30);
            assert!(!memory.try_take(1), "it is kept for the first in line");
            memory.give_back(70);
            while order.lock().is_empty() {
                std::thread::yield_now();
            }
            assert_eq!(*order.lock(), [0]);
            memory.give_back(90);
        });
        assert_eq!(order.lock().len(), 3);
        assert_eq!(memory.used(), 25);
    }

    /// Who gave back the last room saw nobody in line, while who came into it did not see the room yet: both slept
    /// until the time was over.
    #[test]
    fn cli_04_who_comes_into_line_as_room_is_given_back_is_woken() {
        let memory = Memory::new(1);
        let rounds = if cfg!(miri) { 100 } else { 20_000 };
        let take_in_turns = || {
            for round in 0..rounds {
                assert!(memory.try_take(1) || memory.take(1, Duration::from_secs(30), ALONE));
                // At another point of the other's way into line each time.
                (0..round % 64).for_each(|_| std::hint::spin_loop());
                memory.give_back(1);
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(take_in_turns);
            take_in_turns();
        });
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn room_is_taken_ahead_only_while_there_is_plenty() {
        let memory = Memory::new(100);
        assert!(!memory.try_take_ahead(26), "a buffer this small is counted record by record");
        assert!(memory.try_take_ahead(25) && memory.try_take(26));
        assert!(!memory.try_take_ahead(1), "more than half of it is in use");
        memory.give_back(1);
        assert!(memory.try_take_ahead(25));
        assert_eq!(memory.used(), 75);
    }

    #[test]
    fn who_waits_too_long_leaves_the_line() {
        let memory = Memory::new(10);
        assert!(memory.try_take(10));
        assert!(!memory.take(1, Duration::from_millis(1), ALONE));
        memory.give_back(10);
        assert!(memory.try_take(10), "nobody is in line any more");
    }
}
