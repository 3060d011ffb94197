//! Work that the layers above ask to have done: at once, or at a time.
//!
//! One thread a store does it, and only in stores that have threads; it is started when somebody first needs
//! it. It is not a disk's worker, because an application's callbacks may run here, and those may block.
//! Chores that are gone by then are passed over. Without threads, `Store::run_background` does what is due. When the
//! store is closed, all that is left is done at once, and from then on whoever has a chore does it.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::storage::Clock;

/// How often what comes up at the end is looked for.
const ROUNDS_MAX: u32 = 16;

thread_local! {
    static DOES_CHORES: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread does a store's chores. What is left to it comes after what it does now, which may be an application's
/// callback that waits.
pub(crate) fn does_chores() -> bool {
    DOES_CHORES.get()
}

/// Something that is to be looked after.
pub(crate) trait Chore: Send + Sync {
    /// Does what is due. Runs under no lock.
    fn run(self: Arc<Self>);

    /// The store is about to close: what was put off for company's sake is done now.
    fn close(self: Arc<Self>) {}
}

/// What is to be done, and when.
pub(crate) struct Chores {
    clock: Clock,
    state: Mutex<State>,
    bell: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Weak<dyn Chore>>,
    /// By the store's clock, and in the order in which they were asked for.
    timed: BTreeMap<(Duration, u64), Weak<dyn Chore>>,
    asked: u64,
    sleeping: bool,
    stopped: bool,
    /// The store is closed: what comes now is done by whoever brings it.
    ended: bool,
}

impl std::fmt::Debug for Chores {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Chores").finish_non_exhaustive()
    }
}

impl Chores {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, state: Mutex::default(), bell: Condvar::new() }
    }

    /// Has it done soon.
    pub(crate) fn push(&self, chore: Weak<dyn Chore>) {
        let mut state = self.state.lock();
        state.queue.push_back(chore);
        self.ring(&state);
    }

    /// Has it done when the store's clock shows that `at` has elapsed.
    pub(crate) fn push_at(&self, at: Duration, chore: Weak<dyn Chore>) {
        let mut state = self.state.lock();
        state.asked += 1;
        let key = (at, state.asked);
        state.timed.insert(key, chore);
        if state.timed.first_key_value().is_some_and(|(first, _)| *first == key) {
            self.ring(&state);
        }
    }

    fn ring(&self, state: &State) {
        if state.sleeping {
            self.bell.notify_one();
        }
    }

    /// Does chores on this thread, until the store has ended.
    pub(super) fn work(&self) {
        DOES_CHORES.set(true);
        while let Some(chore) = self.next() {
            if let Some(chore) = chore.upgrade() {
                chore.run();
            }
        }
    }

    /// Waits for the next chore. `None` once the thread should end.
    fn next(&self) -> Option<Weak<dyn Chore>> {
        let mut state = self.state.lock();
        loop {
            if state.stopped {
                return None;
            }
            let now = self.clock.elapsed();
            if let Some(due) = state.take_due(now) {
                return Some(due);
            }
            let until = state.timed.first_key_value().map(|((at, _), _)| at.saturating_sub(now));
            state.sleeping = true;
            match until {
                Some(span) => {
                    self.bell.wait_for(&mut state, span);
                }
                None => self.bell.wait(&mut state),
            }
            state.sleeping = false;
        }
    }

    /// Does what is due now, on this thread; what comes up meanwhile waits for the next time.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn run_due(&self) {
        let now = self.clock.elapsed();
        let mut due = Vec::new();
        let mut state = self.state.lock();
        while let Some(chore) = state.take_due(now) {
            due.push(chore);
        }
        drop(state);
        due.iter().filter_map(Weak::upgrade).for_each(Chore::run);
    }

    /// Tells everything that is left that the store is about to close.
    pub(super) fn close(&self) {
        let state = self.state.lock();
        let left: Vec<_> = state.queue.iter().chain(state.timed.values()).cloned().collect();
        drop(state);
        left.iter().filter_map(Weak::upgrade).for_each(Chore::close);
    }

    /// Does everything that is left, whenever it was due, on this thread: the store is closed, and those who wait for what
    /// will not come are told so.
    pub(crate) fn end(&self) {
        for _ in 0..ROUNDS_MAX {
            let mut state = self.state.lock();
            state.ended = true;
            let timed = std::mem::take(&mut state.timed).into_values();
            let left: Vec<_> = std::mem::take(&mut state.queue).into_iter().chain(timed).collect();
            drop(state);
            if left.is_empty() {
                break;
            }
            left.iter().filter_map(Weak::upgrade).for_each(Chore::run);
        }
    }

    /// Whether the store is closed, and nobody does chores any more.
    pub(crate) fn have_ended(&self) -> bool {
        self.state.lock().ended
    }

    pub(super) fn stop(&self) {
        self.state.lock().stopped = true;
        self.bell.notify_all();
    }
}

impl State {
    fn take_due(&mut self, now: Duration) -> Option<Weak<dyn Chore>> {
        if let Some(first) = self.timed.first_entry()
            && first.key().0 <= now
        {
            return Some(first.remove());
        }
        self.queue.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Timestamp;

    struct Note(Arc<Mutex<Vec<u32>>>, u32);

    impl Chore for Note {
        fn run(self: Arc<Self>) {
            self.0.lock().push(self.1);
        }
    }

    #[test]
    fn chores_are_done_when_they_are_due_and_not_when_they_are_gone() {
        let clock = Clock::manual(Timestamp(0));
        let chores = Chores::new(clock.clone());
        let done = Arc::default();
        let notes: Vec<Arc<dyn Chore>> =
            (0..4).map(|at| Arc::new(Note(Arc::clone(&done), at)) as Arc<dyn Chore>).collect();
        let second = Duration::from_secs(1);
        chores.push_at(second * 2, Arc::downgrade(&notes[2]));
        chores.push_at(second, Arc::downgrade(&notes[1]));
        chores.push(Arc::downgrade(&notes[0]));
        chores.push({
            let gone: Arc<dyn Chore> = Arc::new(Note(Arc::clone(&done), 9));
            Arc::downgrade(&gone)
        });
        chores.run_due();
        assert_eq!(*done.lock(), [0]);
        clock.advance(second);
        chores.run_due();
        assert_eq!(*done.lock(), [0, 1]);
        clock.advance(second * 2);
        chores.run_due();
        assert_eq!(*done.lock(), [0, 1, 2]);
    }
}
