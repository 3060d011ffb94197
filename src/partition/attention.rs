//! The list of partitions that their disk's worker should look at.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::Core;

/// A queue without duplicates (each partition queues itself once), and the bell beside it.
#[derive(Debug, Default)]
pub(crate) struct Attention {
    state: Mutex<State>,
    bell: Condvar,
    /// Its disk was taken out of service, and every partition was told, or could not be.
    abandoned: AtomicBool,
    /// Nobody takes anything out any more. Set under the lock.
    ended: AtomicBool,
}

/// Whether a partition is in a queue.
#[derive(Debug, Default)]
pub(super) struct Queued(AtomicU8);

/// Somebody is about to put it there, and may find that the worker has ended.
const COMING: u8 = 1;
const THERE: u8 = 2;

impl Queued {
    /// From now on it is queued anew; what was asked for before is seen by whoever looks after this.
    pub(super) fn taken(&self) {
        self.0.swap(0, Ordering::AcqRel);
    }
}

#[derive(Debug, Default)]
struct State {
    queue: Vec<Weak<Core>>,
    /// How many wait for the bell: a worker whose place was taken may be among them once more.
    sleeping: u32,
    rung: bool,
    stopped: bool,
}

impl Attention {
    /// Adds a partition, and wakes the worker if it sleeps. False: the worker has ended.
    pub(crate) fn push(&self, core: Weak<Core>) -> bool {
        self.push_once(&Queued::default(), || core)
    }

    /// As [`Attention::push`], unless `queued` says that it is there: once the worker has ended, that is no comfort.
    pub(super) fn push_once(&self, queued: &Queued, core: impl FnOnce() -> Weak<Core>) -> bool {
        // Without the lock where it is there: appends ask for each of their followers.
        let has_ended = || self.ended.load(Ordering::Acquire);
        if queued.0.fetch_max(COMING, Ordering::AcqRel) == THERE && !has_ended() {
            return true;
        }
        let mut state = self.state.lock();
        if has_ended() {
            return false;
        }
        if queued.0.swap(THERE, Ordering::AcqRel) == THERE {
            return true;
        }
        state.queue.push(core());
        let sleeping = state.sleeping;
        drop(state);
        if sleeping > 0 {
            self.bell.notify_one();
        }
        true
    }

    /// Takes the partitions that are queued, after waiting up to `timeout` for the first. `None` once
    /// the worker should end and nothing is left.
    pub(crate) fn wait(&self, timeout: Duration) -> Option<Vec<Arc<Core>>> {
        let mut state = self.state.lock();
        if state.queue.is_empty() && !state.stopped && !state.rung && !timeout.is_zero() {
            state.sleeping += 1;
            self.bell.wait_for(&mut state, timeout);
            state.sleeping -= 1;
        }
        state.rung = false;
        if state.stopped && state.queue.is_empty() {
            self.ended.store(true, Ordering::Release);
            return None;
        }
        let queue = std::mem::take(&mut state.queue);
        drop(state);
        Some(queue.iter().filter_map(Weak::upgrade).collect())
    }

    /// Wakes the worker: it is to look at the clock again.
    pub(crate) fn ring(&self) {
        self.state.lock().rung = true;
        self.bell.notify_one();
    }

    #[cfg(test)]
    pub(crate) fn sleeps(&self) -> bool {
        self.state.lock().sleeping > 0
    }

    /// Takes the partitions that are queued.
    pub(crate) fn take(&self) -> Vec<Arc<Core>> {
        let queue = std::mem::take(&mut self.state.lock().queue);
        queue.iter().filter_map(Weak::upgrade).collect()
    }

    /// Whoever still counts on it was not told, and is to do without its disk.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    /// Lets the worker end.
    pub(crate) fn stop(&self) {
        self.state.lock().stopped = true;
        self.bell.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;
    use std::time::Instant;

    use super::*;

    /// The one who left said that nobody sleeps, and what came next was looked at when the other's time was over.
    #[test]
    fn of_two_that_wait_the_one_who_stays_is_woken() {
        const LONG: Duration = Duration::from_secs(30);
        let attention = Attention::default();
        thread::scope(|scope| {
            let stays = scope.spawn(|| {
                let begun = Instant::now();
                attention.wait(LONG * 2);
                begun.elapsed()
            });
            while !attention.sleeps() {
                thread::yield_now();
            }
            attention.wait(Duration::from_millis(1));
            assert!(attention.push(Weak::new()));
            assert!(stays.join().unwrap() < LONG);
        });
    }

    /// The second saw that the first asks, and was told that the worker comes, when the first was told that it has ended.
    #[test]
    fn of_two_that_ask_as_the_worker_ends_neither_is_told_that_it_comes_unless_it_does() {
        let rounds = if cfg!(miri) { 20 } else { 20_000 };
        for round in 0..rounds {
            let (attention, queued) = (Attention::default(), Queued::default());
            attention.stop();
            let (begin, pushed) = (Barrier::new(3), AtomicBool::new(false));
            let push = || {
                pushed.store(true, Ordering::Relaxed);
                Weak::new()
            };
            let asks = || {
                begin.wait();
                attention.push_once(&queued, push)
            };
            thread::scope(|scope| {
                let asking = [scope.spawn(asks), scope.spawn(asks)];
                begin.wait();
                while attention.wait(Duration::ZERO).is_some() {}
                let told = asking.map(|asking| asking.join().unwrap());
                let comes = pushed.load(Ordering::Relaxed);
                assert!(comes || told == [false; 2], "round {round}: {told:?}");
            });
        }
    }
}
