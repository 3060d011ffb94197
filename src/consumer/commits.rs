//! Commits that nobody waits for, and who is told of them.
//!
//! How a commit has ended may be learnt under any lock of the store. So the ticket only leaves word with the store's
//! thread for chores, which tells; or the consumer does, where it finds out by itself. Outcomes are told one by one, in
//! the order of the commits, under no lock but the one that keeps this order.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, ReentrantMutex};

use crate::error::Result;
use crate::partition::Ticket;
use crate::store::{Chore, Chores};

/// Who is told of a commit.
pub(super) type Committed = Box<dyn FnOnce(Result<()>) + Send>;

pub(super) struct Commits {
    chores: Arc<Chores>,
    /// Oldest first; one without a ticket had nothing to commit.
    pending: Mutex<VecDeque<(Option<Ticket>, Committed)>>,
    /// Held by whoever tells; he may be told to let go of the consumer meanwhile.
    telling: ReentrantMutex<()>,
    /// One has failed since this was asked last.
    failed: AtomicBool,
}

impl std::fmt::Debug for Commits {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Commits").finish_non_exhaustive()
    }
}

impl Commits {
    pub(super) fn new(chores: Arc<Chores>) -> Arc<Self> {
        let (pending, telling) = (Mutex::default(), ReentrantMutex::default());
        Arc::new(Self { chores, pending, telling, failed: AtomicBool::new(false) })
    }

    /// Whether one has failed since the last call.
    pub(super) fn take_failed(&self) -> bool {
        self.failed.swap(false, Ordering::AcqRel)
    }

    /// Has `done` told how the commit of `ticket` ends; now, if that is known and it is its turn.
    pub(super) fn push(self: &Arc<Self>, ticket: Option<Ticket>, done: Committed) {
        self.pending.lock().push_back((ticket, done));
        // Whoever tells now comes to this one by itself, also if that is this thread.
        if self.telling.is_owned_by_current_thread() {
            return;
        }
        if let Some(telling) = self.telling.try_lock() {
            self.tell(None);
            drop(telling);
        }
    }

    /// Waits until all have ended and were told of, for up to `timeout`; those that have not ended by then have timed out.
    pub(super) fn finish(self: &Arc<Self>, timeout: Duration) {
        let deadline = Instant::now().checked_add(timeout);
        let left = || deadline.map_or(timeout, |at| at.saturating_duration_since(Instant::now()));
        if let Some(telling) = self.telling.try_lock_for(timeout) {
            self.tell(Some(&left));
            drop(telling);
        }
    }

    /// Tells of those that have ended, from the oldest on; of the others too, after waiting for as long as is `left`.
    fn tell(self: &Arc<Self>, left: Option<&dyn Fn() -> Duration>) {
        let waker = Waker::from(Arc::clone(self));
        loop {
            let Some((ticket, done)) = self.pending.lock().pop_front() else { return };
            let outcome = match (ticket, left) {
                (None, _) => Ok(()),
                (Some(ticket), Some(left)) => ticket.wait(left()).map(drop),
                (Some(mut ticket), None) => {
                    match Pin::new(&mut ticket).poll(&mut Context::from_waker(&waker)) {
                        Poll::Ready(outcome) => outcome.map(drop),
                        Poll::Pending => {
                            self.pending.lock().push_front((Some(ticket), done));
                            return;
                        }
                    }
                }
            };
            if outcome.is_err() {
                self.failed.store(true, Ordering::Release);
            }
            // The hook has reported a panic; there is nobody else to tell.
            let _ = catch_unwind(AssertUnwindSafe(|| done(outcome)));
        }
    }
}

impl Chore for Commits {
    fn run(self: Arc<Self>) {
        let telling = self.telling.lock();
        self.tell(None);
        drop(telling);
    }
}

impl Wake for Commits {
    fn wake(self: Arc<Self>) {
        let weak: std::sync::Weak<Self> = Arc::downgrade(&self);
        self.chores.push(weak);
    }
}
