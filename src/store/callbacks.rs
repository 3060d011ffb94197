//! Callbacks of tickets whose outcome a thread of the store's own has learnt.
//!
//! They are the application's and may wait, also for what that thread does next: a flush, an election. So another thread makes
//! them, one after the other, in the order in which the outcomes were learnt. It is started when there is one, and ends when
//! there has been none for a while. What is left at a close, whoever closes makes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::partition::{Call, Caller};
use crate::types::guard;

use super::background::try_apart;
use super::close::IsOwn;

/// How long the thread waits for more.
const LINGERS: Duration = Duration::from_secs(1);

/// Those that are to be made.
#[derive(Default)]
pub(super) struct Callbacks {
    state: Mutex<State>,
    bell: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Call>,
    has_thread: bool,
}

impl std::fmt::Debug for Callbacks {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Callbacks").finish_non_exhaustive()
    }
}

impl Caller for Callbacks {
    fn leave(self: Arc<Self>, call: Call) {
        let mut state = self.state.lock();
        state.queue.push_back(call);
        if std::mem::replace(&mut state.has_thread, true) {
            self.bell.notify_one();
            return;
        }
        drop(state);
        let own = Arc::clone(&self);
        if try_apart(move || own.work()).is_some() {
            // The system has no thread left.
            self.state.lock().has_thread = false;
            self.make_all();
        }
    }
}

impl Callbacks {
    /// Makes them on this thread, until there are none for a while.
    fn work(&self) {
        let _own = IsOwn::mark();
        loop {
            self.make_all();
            let mut state = self.state.lock();
            if state.queue.is_empty() {
                self.bell.wait_for(&mut state, LINGERS);
            }
            if state.queue.is_empty() {
                state.has_thread = false;
                return;
            }
        }
    }

    /// Makes those that are left. A panic of one ends here.
    pub(super) fn make_all(&self) {
        loop {
            let Some(call) = self.state.lock().queue.pop_front() else { return };
            let _ = guard(call);
        }
    }
}
