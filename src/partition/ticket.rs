//! The result of an append that is waited for later: by a thread, a future, or a callback.

use std::future::Future;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::error::{Error, Result, Written};
use crate::types::{Acks, Flush, Offset};

use super::core::State;
use super::{Appended, Core};

type Callback = Box<dyn FnOnce(Result<Appended>) + Send>;

/// Somebody who is told when the records below `end` are acknowledged.
pub(super) struct Waiter {
    id: u64,
    end: Offset,
    how: How,
}

enum How {
    Wake(Waker),
    Call(Callback, Appended),
}

/// A waiter and what it is to be told.
pub(super) enum Done {
    Wake(Waker),
    Call(Callback, Result<Appended>),
}

impl std::fmt::Debug for Waiter {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Waiter").field("end", &self.end).finish_non_exhaustive()
    }
}

/// Tells them. Runs under no lock; a panic of a callback ends here (RELIABILITY A9).
pub(super) fn complete(done: Vec<Done>) {
    for done in done {
        let told = catch_unwind(AssertUnwindSafe(|| match done {
            Done::Wake(waker) => waker.wake(),
            Done::Call(callback, result) => callback(result),
        }));
        // The hook has reported it; there is nobody here to hand it to.
        drop(told);
    }
}

/// An append that is in the log and may not be acknowledged yet. Dropping it takes nothing back.
///
/// # Examples
/// ```
/// use oncelog::{Acks, Record, Store, TopicConfig};
/// use std::time::Duration;
/// let store = Store::in_memory(1)?;
/// store.create_topic("fruit", TopicConfig::new())?;
/// let partition = store.partition("fruit", 0)?;
/// let tickets = ["pear", "plum"]
///     .map(|fruit| partition.append_nowait(&[Record::new(fruit)], Acks::All));
/// for ticket in tickets {
///     ticket?.wait(Duration::from_secs(5))?;
/// }
/// # Ok::<(), oncelog::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "a ticket tells whether the append was acknowledged"]
pub struct Ticket {
    core: Arc<Core>,
    appended: Appended,
    acks: Acks,
    id: Option<u64>,
}

impl Ticket {
    pub(crate) fn new(core: Arc<Core>, appended: Appended, acks: Acks) -> Self {
        Self { core, appended, acks, id: None }
    }

    /// Where the records are.
    #[must_use]
    pub fn offsets(&self) -> Range<Offset> {
        self.appended.offsets.clone()
    }

    /// Waits for the acknowledgement.
    ///
    /// # Errors
    /// [`Error::TimedOut`] with the offsets, which may still be acknowledged later;
    /// [`Error::DiskOffline`] when the flush failed; [`Error::Closed`].
    pub fn wait(&self, timeout: Duration) -> Result<Appended> {
        if !self.is_settled() {
            self.core.wait_durable(&self.appended.offsets, timeout)?;
        }
        Ok(self.appended.clone())
    }

    /// Calls `callback` with the outcome: now if it is known, else from the thread that learns it.
    /// No lock of the store is held, and a panic in it is caught.
    pub fn on_complete(self, callback: impl FnOnce(Result<Appended>) + Send + 'static) {
        let mut state = self.core.state.lock();
        let done = match self.outcome(&state) {
            Some(result) => vec![Done::Call(Box::new(callback), result)],
            None => {
                let id = state.next_ticket;
                state.next_ticket += 1;
                let how = How::Call(Box::new(callback), self.appended.clone());
                state.tickets.push(Waiter { id, end: self.appended.offsets.end, how });
                Vec::new()
            }
        };
        drop(state);
        complete(done);
    }

    /// Whether nothing has to be waited for.
    fn is_settled(&self) -> bool {
        self.acks == Acks::None || self.core.high_watermark() >= self.appended.offsets.end
    }

    fn outcome(&self, state: &State) -> Option<Result<Appended>> {
        let acknowledged = self.acks == Acks::None
            || state.flush != Flush::OnAck
            || state.marks.flushed() >= self.appended.offsets.end;
        if acknowledged {
            return Some(Ok(self.appended.clone()));
        }
        (state.fenced.is_some() || state.ended.is_some())
            .then(|| Err(self.core.closed_error(state, Written::Unknown)))
    }
}

impl Future for Ticket {
    type Output = Result<Appended>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let core = Arc::clone(&self.core);
        let mut state = core.state.lock();
        if let Some(result) = self.outcome(&state) {
            return Poll::Ready(result);
        }
        let waker = context.waker().clone();
        let known = self.id;
        match state.tickets.iter_mut().find(|waiter| Some(waiter.id) == known) {
            Some(waiter) => waiter.how = How::Wake(waker),
            None => {
                let id = state.next_ticket;
                state.next_ticket += 1;
                self.id = Some(id);
                let end = self.appended.offsets.end;
                state.tickets.push(Waiter { id, end, how: How::Wake(waker) });
            }
        }
        Poll::Pending
    }
}

impl Core {
    /// Takes out the waiters whose outcome is known.
    pub(super) fn finished_tickets(&self, state: &mut State) -> Vec<Done> {
        if state.tickets.is_empty() {
            return Vec::new();
        }
        let over = state.fenced.is_some() || state.ended.is_some();
        let settled =
            if state.flush == Flush::OnAck { state.marks.flushed() } else { state.marks.log_end() };
        let waiters = std::mem::take(&mut state.tickets);
        let mut done = Vec::new();
        for waiter in waiters {
            let acknowledged = waiter.end <= settled;
            if !acknowledged && !over {
                state.tickets.push(waiter);
                continue;
            }
            done.push(match waiter.how {
                How::Wake(waker) => Done::Wake(waker),
                How::Call(callback, appended) => {
                    let result = if acknowledged {
                        Ok(appended)
                    } else {
                        Err::<_, Error>(self.closed_error(state, Written::Unknown))
                    };
                    Done::Call(callback, result)
                }
            });
        }
        done
    }
}
