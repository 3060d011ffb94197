//! Whether a file system answers: asked so often that nobody who holds a lock is the one to learn that it does not.
//!
//! A store to a mapped page that was written back asks the file system, and waits where that is frozen or hangs, with
//! all that its thread has locked. But one that is being frozen holds whoever changes something at once, and writes its
//! pages back only then: 7 ms later or more, in 16 tries with ext4 and XFS (Linux 6.18, 250 Hz). So a thread
//! touches the disk's directory every [`BEAT`] while somebody stores, and what it has touched is trusted for [`HOLDS`].

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::types::Timestamp;

use super::Clock;
use super::real::touch;

/// From one question to the next.
const BEAT: Duration = Duration::from_millis(2);
/// How long an answer is trusted, in milliseconds.
const HOLDS: i64 = 4;
/// Who stores may have looked at the clock that long before the answer, in milliseconds; or the clock was set back.
const WAITED_MAX: i64 = 60_000;
/// After so many beats in which nobody stored, it rests; all grants are old by then.
const IDLE_BEATS: u32 = 150;

/// What is known of one disk.
pub(crate) struct Pulse {
    root: OnceLock<PathBuf>,
    /// Open while it is asked: a disk that is stopped may be unmounted.
    directory: Mutex<Option<Arc<File>>>,
    /// A thread asks. Else every store is let through.
    is_watched: AtomicBool,
    answered_at: AtomicI64,
    /// Somebody waits for an answer.
    is_asked: AtomicBool,
    /// Since the last beat somebody stored.
    is_used: AtomicBool,
    rests: AtomicBool,
    ended: Mutex<bool>,
    bell: Condvar,
}

impl fmt::Debug for Pulse {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Pulse").field(&self.answered_at).finish()
    }
}

impl Pulse {
    pub(super) fn new() -> Self {
        Self {
            root: OnceLock::new(),
            directory: Mutex::default(),
            is_watched: AtomicBool::new(false),
            answered_at: AtomicI64::new(i64::MIN),
            is_asked: AtomicBool::new(false),
            is_used: AtomicBool::new(false),
            rests: AtomicBool::new(true),
            ended: Mutex::new(false),
            bell: Condvar::new(),
        }
    }

    /// Whether the disk answered just now. Where it may not, the caller goes another way, on which it holds nothing.
    #[inline]
    pub(crate) fn answers(&self, now: Timestamp) -> bool {
        if !self.is_watched.load(Ordering::Relaxed) {
            return true;
        }
        if !self.is_used.load(Ordering::Relaxed) {
            self.is_used.store(true, Ordering::Relaxed);
        }
        let age = now.0.wrapping_sub(self.answered_at.load(Ordering::Acquire));
        (-WAITED_MAX..=HOLDS).contains(&age) || self.asks(now)
    }

    /// The thread is late, as on a busy machine: the caller asks in its place, unless somebody waits for an answer.
    #[cold]
    fn asks(&self, now: Timestamp) -> bool {
        let may_hang = self.rests.load(Ordering::Acquire);
        if may_hang || self.is_asked.swap(true, Ordering::AcqRel) {
            return false;
        }
        self.ask(now);
        true
    }

    fn ask(&self, now: Timestamp) {
        let directory = self.directory.lock().clone();
        directory.iter().for_each(|directory| touch(directory));
        self.answered_at.store(now.0, Ordering::Release);
        self.is_asked.store(false, Ordering::Release);
    }

    /// Something else has been answered.
    pub(crate) fn answered(&self, now: Timestamp) {
        self.answered_at.store(now.0, Ordering::Release);
        if self.rests.load(Ordering::Acquire) {
            // Under the lock, so that one that is about to rest is not missed.
            let _ended = self.ended.lock();
            self.is_used.store(true, Ordering::Relaxed);
            self.bell.notify_one();
        }
    }

    /// Begins to watch the disk in the directory `root`. False: somebody does.
    pub(crate) fn begin(&self, root: &Path) -> bool {
        let begins = !self.is_watched.swap(true, Ordering::AcqRel);
        if begins {
            self.root.get_or_init(|| root.to_owned());
        }
        begins
    }

    /// Asks again and again, as long as somebody stores, until it [ends](Self::end).
    pub(crate) fn watch(&self, clock: &Clock) {
        let mut idle = 0;
        let mut ended = self.ended.lock();
        while !*ended {
            idle = if self.is_used.swap(false, Ordering::Relaxed) { 0 } else { idle + 1 };
            if idle > IDLE_BEATS {
                self.rests.store(true, Ordering::Release);
                *self.directory.lock() = None;
                self.bell.wait(&mut ended);
                continue;
            }
            drop(ended);
            self.open_directory();
            self.rests.store(false, Ordering::Release);
            if !self.is_asked.swap(true, Ordering::AcqRel) {
                self.ask(clock.now());
            }
            ended = self.ended.lock();
            if !*ended {
                self.bell.wait_for(&mut ended, BEAT);
            }
        }
        *self.directory.lock() = None;
        self.give_up();
    }

    /// Where it cannot be opened, as on Windows, nothing is asked, and every store let through.
    fn open_directory(&self) {
        let mut directory = self.directory.lock();
        if directory.is_none() {
            *directory = self.root.get().and_then(|root| File::open(root).ok()).map(Arc::new);
        }
    }

    /// Nobody watches after all.
    pub(crate) fn give_up(&self) {
        self.is_watched.store(false, Ordering::Release);
    }

    /// Lets [`Pulse::watch`] return, once the disk answers.
    pub(crate) fn end(&self) {
        *self.ended.lock() = true;
        self.bell.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn pulse() -> (tempfile::TempDir, Arc<Pulse>) {
        let directory = tempfile::tempdir().unwrap();
        let pulse = Arc::new(Pulse::new());
        assert!(pulse.begin(directory.path()));
        (directory, pulse)
    }

    #[test]
    fn nobody_is_held_back_where_nobody_asks() {
        assert!(Pulse::new().answers(Timestamp(7)));
    }

    #[test]
    fn one_that_rests_says_nothing_until_something_else_was_answered() {
        let (_directory, pulse) = pulse();
        assert!(!pulse.answers(Timestamp(7)));
        pulse.answered(Timestamp(7));
        for (now, answers) in [(7, true), (7 + HOLDS, true), (8 + HOLDS, false), (3, true)] {
            assert_eq!(pulse.answers(Timestamp(now)), answers, "at {now}");
        }
    }

    #[test]
    fn who_stores_asks_in_the_place_of_a_thread_that_is_late_but_of_none_that_waits() {
        let (_directory, pulse) = pulse();
        pulse.rests.store(false, Ordering::Release);
        assert!(pulse.answers(Timestamp(100)));
        pulse.is_asked.store(true, Ordering::Release);
        assert!(pulse.answers(Timestamp(100 + HOLDS)));
        assert!(!pulse.answers(Timestamp(101 + HOLDS)));
    }

    #[test]
    fn it_is_watched_once_and_until_it_ends() {
        let (directory, pulse) = pulse();
        assert!(!pulse.begin(directory.path()), "twice");
        let watched = Arc::clone(&pulse);
        let thread = thread::spawn(move || watched.watch(&Clock::system()));
        while pulse.answered_at.load(Ordering::Acquire) == i64::MIN {
            pulse.answered(Timestamp::from(std::time::SystemTime::now()));
            thread::yield_now();
        }
        pulse.end();
        thread.join().unwrap();
        assert!(pulse.answers(Timestamp(0)), "nobody asks any more");
        assert!(pulse.directory.lock().is_none(), "its file system can be unmounted");
    }
}
