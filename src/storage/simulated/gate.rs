//! Where calls to a disk that hangs wait.

use parking_lot::{Condvar, Mutex};

use super::Call;

/// Calls that do not return until the disk is healed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hang {
    /// Flushes of files and directories.
    Syncs,
    /// All calls. Stores through a mapping reach the cache, and return.
    Everything,
}

#[derive(Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    opened: Condvar,
}

#[derive(Default)]
struct State {
    hang: Option<Hang>,
    held: usize,
}

impl Gate {
    pub(super) fn close(&self, hang: Hang) {
        self.state.lock().hang = Some(hang);
    }

    pub(super) fn open(&self) {
        self.state.lock().hang = None;
        self.opened.notify_all();
    }

    /// Calls that wait now.
    pub(super) fn held(&self) -> usize {
        self.state.lock().held
    }

    /// Waits until the disk does not hang in such a call.
    pub(super) fn pass(&self, call: Call) {
        let mut state = self.state.lock();
        state.held += 1;
        self.opened.wait_while(&mut state, |state| {
            state.hang == Some(Hang::Everything)
                || (state.hang == Some(Hang::Syncs) && call.is_sync())
        });
        state.held -= 1;
    }
}
