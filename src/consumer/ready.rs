//! Which partitions of a consumer have something to look at, and the bell that ends its waiting.
//!
//! A partition is in the queue, or it watches its log, or it is paused. So a poll looks at what is ready only,
//! however many partitions there are.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::store::Chore;
use crate::types::guard;

/// A partition of the consumer, told apart from those that it had before.
pub(super) type SlotKey = u64;

#[derive(Debug, Default)]
pub(super) struct Ready {
    state: Mutex<State>,
    bell: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<SlotKey>,
    /// Something other than records: the group has news, or an offset is decided.
    rung: bool,
    /// The application wants a waiting poll to return.
    interrupted: bool,
    /// Somebody waits.
    waiting: bool,
    /// A task waits.
    task: Option<Waker>,
}

impl Ready {
    /// Takes the next partition.
    pub(super) fn pop(&self) -> Option<SlotKey> {
        self.state.lock().queue.pop_front()
    }

    pub(super) fn len(&self) -> usize {
        self.state.lock().queue.len()
    }

    /// There is something to do besides reading.
    pub(super) fn ring(&self) {
        self.change(|state| state.rung = true);
    }

    pub(super) fn interrupt(&self) {
        self.change(|state| state.interrupted = true);
    }

    /// Whether the application has asked for an end of waiting, once.
    pub(super) fn take_interrupt(&self) -> bool {
        std::mem::take(&mut self.state.lock().interrupted)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        change(&mut state);
        let (waiting, task) = (state.waiting, state.task.take());
        drop(state);
        if waiting {
            self.bell.notify_one();
        }
        if let Some(task) = task {
            // The application's, woken by whoever appends or commits: a panic ends here.
            let _ = guard(|| task.wake());
        }
    }

    pub(super) fn has_work(&self) -> bool {
        self.state.lock().has_work()
    }

    /// Waits until there is something to do, or the time is over.
    pub(super) fn wait(&self, timeout: Duration) {
        let mut state = self.state.lock();
        if !state.has_work() {
            state.waiting = true;
            self.bell.wait_while_for(&mut state, |state| !state.has_work(), timeout);
            state.waiting = false;
        }
        state.rung = false;
    }

    /// Has the task woken when there is something to do. False: there is now.
    pub(super) fn wait_as(&self, task: &Waker) -> bool {
        // Made, and the last one dropped, under no lock: both are the application's.
        let task = task.clone();
        let mut state = self.state.lock();
        if state.has_work() {
            state.rung = false;
            return false;
        }
        let last = state.task.replace(task);
        drop(state);
        drop(last);
        true
    }
}

impl State {
    fn has_work(&self) -> bool {
        self.rung || self.interrupted || !self.queue.is_empty()
    }
}

/// It is time for something that a wait would hold up.
impl Chore for Ready {
    fn run(self: Arc<Self>) {
        self.ring();
    }
}

impl Wake for Ready {
    fn wake(self: Arc<Self>) {
        self.ring();
    }
}

/// Puts its partition into the queue.
#[derive(Debug)]
pub(super) struct SlotBell {
    ready: Arc<Ready>,
    key: SlotKey,
    queued: AtomicBool,
}

impl SlotBell {
    pub(super) fn new(ready: &Arc<Ready>, key: SlotKey) -> Self {
        Self { ready: Arc::clone(ready), key, queued: AtomicBool::new(false) }
    }

    pub(super) fn push(&self) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.ready.change(|state| state.queue.push_back(self.key));
        }
    }

    /// Puts it before all others.
    pub(super) fn push_first(&self) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.ready.change(|state| state.queue.push_front(self.key));
        }
    }

    /// It was taken from the queue, and may be put there again from now on.
    pub(super) fn taken(&self) {
        self.queued.store(false, Ordering::Release);
    }
}

impl Wake for SlotBell {
    fn wake(self: Arc<Self>) {
        self.push();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.push();
    }
}
