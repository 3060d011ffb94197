//! Where calls to a disk that hangs wait.

use parking_lot::{Condvar, Mutex};

use super::Call;

/// Calls that do not return until the disk is healed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hang {
    /// Flushes of files and directories.
    Syncs,
    /// All calls. Stores through a mapping reach the cache, and return; but see [`SimDisk::watch_pages`](super::SimDisk::watch_pages).
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
    /// How many more calls pass before one is held.
    hold_in: Option<u64>,
    /// Whether one is held for that.
    holds: bool,
    held: usize,
}

impl Gate {
    pub(super) fn close(&self, hang: Hang) {
        self.state.lock().hang = Some(hang);
    }

    /// The `n`-th call from now is held, and no other.
    pub(super) fn hold(&self, n: u64) {
        self.state.lock().hold_in = n.checked_sub(1);
    }

    /// Whether the call is held that was to be.
    pub(super) fn holds(&self) -> bool {
        self.state.lock().holds
    }

    /// Whether all calls are held.
    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().hang == Some(Hang::Everything)
    }

    pub(super) fn open(&self) {
        let mut state = self.state.lock();
        (state.hang, state.hold_in, state.holds) = (None, None, false);
        drop(state);
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
        if state.hold_in == Some(0) {
            (state.hold_in, state.holds) = (None, true);
            self.opened.wait_while(&mut state, |state| state.holds);
        }
        state.hold_in = state.hold_in.map(|left| left - 1);
        self.opened.wait_while(&mut state, |state| {
            state.hang == Some(Hang::Everything)
                || (state.hang == Some(Hang::Syncs) && call.is_sync())
        });
        state.held -= 1;
    }
}
