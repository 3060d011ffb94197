//! The result of an append that is waited for later: by a thread, a future, or a callback.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::types::{Acks, Offset, guard};

use super::append::{Placed, Waiting};
use super::core::State;
use super::flush::{Wait, Waited};
use super::{Appended, Core};

type Callback = Box<dyn FnOnce(Result<Appended>) + Send>;

/// Somebody who is told when the records below `end` are acknowledged.
pub(super) struct Waiter {
    id: u64,
    wait: Wait,
    how: How,
}

enum How {
    Wake(Waker),
    Call(Callback, Appended),
    /// The store's own: it waits for nothing.
    Note(Callback, Appended),
}

/// A waiter and what it is to be told.
pub(super) enum Done {
    Wake(Waker),
    Call(Callback, Result<Appended>),
    Note(Callback, Result<Appended>),
}

/// A callback that is to be made.
pub(crate) type Call = Box<dyn FnOnce() + Send>;

/// Makes the callbacks of threads that others wait for.
pub(crate) trait Caller: Send + Sync {
    fn leave(self: Arc<Self>, call: Call);
}

impl std::fmt::Debug for Waiter {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Waiter").field("wait", &self.wait).finish_non_exhaustive()
    }
}

thread_local! {
    /// Somebody on this thread holds a lock or a part of the store's under which nobody is told anything. By itself,
    /// for an append of a producer looks at nothing else.
    static POSTPONES: Cell<bool> = const { Cell::new(false) };
    /// Those who are told later.
    static POSTPONED: RefCell<Vec<Done>> = const { RefCell::new(Vec::new()) };
    /// Whether there are any.
    static ANY: Cell<bool> = const { Cell::new(false) };
    /// Who makes this thread's callbacks in its place.
    static CALLER: RefCell<Option<Arc<dyn Caller>>> = const { RefCell::new(None) };
}

/// From now on this thread makes no callback of the application's by itself.
pub(crate) fn leave_calls_to(caller: Arc<dyn Caller>) {
    CALLER.set(Some(caller));
}

/// As long as it lives, whoever would be told something by this thread is told when it goes. Made before a lock of the
/// store's is taken under which partitions are spoken to, so that it goes after that: callbacks and wakers are the
/// application's, and may call the store.
#[derive(Debug)]
#[must_use = "it does something while it lives"]
pub(crate) struct Postponed {
    is_outermost: bool,
}

/// Begins to postpone.
#[inline]
pub(crate) fn postpone() -> Postponed {
    Postponed { is_outermost: !POSTPONES.replace(true) }
}

impl Postponed {
    /// Whether somebody is told when it goes.
    #[inline]
    pub(crate) fn has_any(&self) -> bool {
        self.is_outermost && ANY.get()
    }
}

impl Drop for Postponed {
    #[inline]
    fn drop(&mut self) {
        if self.is_outermost {
            POSTPONES.set(false);
            if ANY.replace(false) {
                let done = POSTPONED.try_with(RefCell::take);
                complete(done.unwrap_or_default());
            }
        }
    }
}

/// Wakes them, or has them woken when what is postponed goes.
pub(crate) fn wake_all(wakers: Vec<Waker>) {
    complete(wakers.into_iter().map(Done::Wake).collect());
}

/// Tells them. Runs under no lock; a panic of a callback ends here (RELIABILITY A9).
pub(super) fn complete(done: Vec<Done>) {
    if done.is_empty() {
        return;
    }
    let mut done = Some(done);
    if POSTPONES.get() {
        // A thread that ends tells at once.
        let _ = POSTPONED.try_with(|postponed| {
            postponed.borrow_mut().extend(done.take().into_iter().flatten());
            ANY.set(true);
        });
    }
    for done in done.into_iter().flatten() {
        let _ = guard(|| match done {
            Done::Wake(waker) => waker.wake(),
            Done::Call(callback, result) => call(callback, result),
            Done::Note(callback, result) => callback(result),
        });
    }
}

fn call(callback: Callback, result: Result<Appended>) {
    match CALLER.try_with(|caller| caller.borrow().clone()) {
        Ok(Some(caller)) => caller.leave(Box::new(move || callback(result))),
        _ => callback(result),
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
#[must_use = "a ticket tells whether the append was acknowledged"]
pub struct Ticket {
    core: Arc<Core>,
    appended: Appended,
    /// `None`: nothing has to be waited for.
    wait: Option<Wait>,
    settle: Option<Settle>,
    id: Option<u64>,
}

/// Makes changes of the partition's reign durable.
type Settle = Box<dyn Fn() + Send + Sync>;

impl Ticket {
    pub(crate) fn new(
        core: Arc<Core>,
        placed: Placed,
        acks: Acks,
        settle: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let (appended, wait) = match placed {
            Placed::Done(appended) => (appended, None),
            Placed::Waits(Waiting { appended, epoch }) => {
                let wait = Wait::new(appended.offsets.clone(), acks, epoch);
                (appended, (acks != Acks::None).then_some(wait))
            }
        };
        let settle = wait.is_some().then(|| Box::new(settle) as Settle);
        Self { core, appended, wait, settle, id: None }
    }

    /// Whether there is anything to wait for.
    pub(crate) fn is_waiting(&self) -> bool {
        self.wait.is_some()
    }

    /// Where the records are, and when they got there.
    pub(crate) fn appended(&self) -> &Appended {
        &self.appended
    }

    /// Where the records are.
    #[must_use]
    pub fn offsets(&self) -> Range<Offset> {
        self.appended.offsets.clone()
    }

    /// Waits for the acknowledgement.
    ///
    /// # Errors
    /// [`Error::TimedOut`] with the offsets, which may still be acknowledged later, and at once when the store is closed;
    /// [`Error::DiskOffline`] when the flush failed.
    pub fn wait(&self, timeout: Duration) -> Result<Appended> {
        if let (Some(wait), Some(settle)) = (&self.wait, &self.settle) {
            self.core.wait_settled(wait, timeout, settle)?;
        }
        Ok(self.appended.clone())
    }

    /// Calls `callback` with the outcome: now if it is known, else from the thread that learns it; if that is one of the
    /// store's own, from one that makes callbacks and does nothing else. So it may wait, but not for another callback.
    /// No lock of the store is held, and a panic in it is caught.
    pub fn on_complete(self, callback: impl FnOnce(Result<Appended>) + Send + 'static) {
        self.tell(Box::new(callback), How::Call, Done::Call);
    }

    /// As [`Ticket::on_complete`], from whatever thread learns it: for what waits for nothing.
    pub(crate) fn on_known(self, note: impl FnOnce(Result<Appended>) + Send + 'static) {
        self.tell(Box::new(note), How::Note, Done::Note);
    }

    fn tell(
        self,
        callback: Callback,
        how: fn(Callback, Appended) -> How,
        done: fn(Callback, Result<Appended>) -> Done,
    ) {
        let mut state = self.core.state.lock();
        let done = match self.outcome(&state) {
            Some(result) => vec![done(callback, result)],
            None => {
                let id = state.next_ticket;
                state.next_ticket += 1;
                let how = how(callback, self.appended.clone());
                let wait = self.wait.clone().expect("an unknown outcome is waited for");
                state.tickets.push(Waiter { id, wait, how });
                Vec::new()
            }
        };
        drop(state);
        complete(done);
    }

    /// How it ended, if it has.
    pub(crate) fn outcome_now(&self) -> Option<Result<Appended>> {
        self.outcome(&self.core.state.lock())
    }

    /// Nobody is about to wait: has the disk's worker flush it.
    pub(crate) fn hurry(&self) {
        if self.wait.is_some() {
            self.core.ask_for_flush();
        }
    }

    fn outcome(&self, state: &State) -> Option<Result<Appended>> {
        let Some(wait) = &self.wait else {
            return Some(Ok(self.appended.clone()));
        };
        let outcome = self.core.outcome_of(state, wait)?;
        Some(outcome.map(|()| self.appended.clone()))
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Ticket").field("appended", &self.appended).finish_non_exhaustive()
    }
}

impl Future for Ticket {
    type Output = Result<Appended>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let core = Arc::clone(&self.core);
        // Made, and the last one dropped, under no lock: both are the application's.
        let waker = context.waker().clone();
        let mut last = None;
        let mut state = core.state.lock();
        if let Some(result) = self.outcome(&state) {
            return Poll::Ready(result);
        }
        let known = self.id;
        match state.tickets.iter_mut().find(|waiter| Some(waiter.id) == known) {
            Some(waiter) => last = Some(std::mem::replace(&mut waiter.how, How::Wake(waker))),
            None => {
                let id = state.next_ticket;
                state.next_ticket += 1;
                self.id = Some(id);
                let wait = self.wait.clone().expect("an unknown outcome is waited for");
                state.tickets.push(Waiter { id, wait, how: How::Wake(waker) });
            }
        }
        drop(state);
        drop(last);
        Poll::Pending
    }
}

impl Core {
    /// Waits for an acknowledgement; what has to be durable before it can come, `settle` makes so.
    ///
    /// # Errors
    /// As for [`Core::wait_acknowledged`].
    pub(crate) fn wait_settled(
        &self,
        wait: &Wait,
        timeout: Duration,
        settle: &dyn Fn(),
    ) -> Result<()> {
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let left = deadline.map_or(timeout, |at| at.saturating_duration_since(Instant::now()));
            match self.wait_acknowledged(wait, left) {
                Ok(Waited::Acknowledged) => return Ok(()),
                Ok(Waited::Unsettled) if left.is_zero() => {
                    return Err(self.unacknowledged(wait, timeout));
                }
                Ok(Waited::Unsettled) => settle(),
                Err(Error::TimedOut { what, appended, written, .. }) => {
                    return Err(Error::TimedOut { what, timeout, appended, written });
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes out the waiters whose outcome is known.
    pub(super) fn finished_tickets(&self, state: &mut State) -> Vec<Done> {
        if state.tickets.is_empty() {
            return Vec::new();
        }
        let waiters = std::mem::take(&mut state.tickets);
        let mut done = Vec::new();
        for waiter in waiters {
            let Some(outcome) = self.outcome_of(state, &waiter.wait) else {
                state.tickets.push(waiter);
                continue;
            };
            done.push(match waiter.how {
                How::Wake(waker) => Done::Wake(waker),
                How::Call(callback, appended) => Done::Call(callback, outcome.map(|()| appended)),
                How::Note(callback, appended) => Done::Note(callback, outcome.map(|()| appended)),
            });
        }
        done
    }
}
