//! How a consumer commits, and who is told of commits that nobody waits for.
//!
//! How a commit has ended may be learnt under any lock of the store. So the ticket only leaves word with the store's
//! thread for chores, which tells; or the consumer does, where it finds out by itself. Outcomes are told one by one, in
//! the order of the commits, under no lock but the one that keeps this order.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, ReentrantMutex};

use crate::error::{Error, Result};
use crate::partition::Ticket;
use crate::store::{Chore, Chores, CommittedOffset};
use crate::types::{Offset, TopicPartition, guard};

use super::slot::Slot;
use super::{Consumer, Mode, OffsetMap};

/// Who is told of a commit.
pub(super) type Committed = Box<dyn FnOnce(Result<()>) + Send>;

pub(super) struct Commits {
    chores: Arc<Chores>,
    pending: Mutex<Pending>,
    /// Held by whoever tells; he may be told to let go of the consumer meanwhile. Nobody but who lets go of it waits for it,
    /// and he not for ever: who tells may wait for the store.
    telling: ReentrantMutex<()>,
    /// How the last one failed that did, since this was asked last.
    failed: Mutex<Option<Error>>,
}

#[derive(Default)]
struct Pending {
    /// Oldest first; one without a ticket had nothing to commit.
    queue: VecDeque<(Option<Ticket>, Committed)>,
    /// There may be something to tell since whoever tells has looked.
    is_due: bool,
    /// The consumer is gone: what has not ended has timed out.
    is_late: bool,
}

impl std::fmt::Debug for Commits {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Commits").finish_non_exhaustive()
    }
}

impl Commits {
    pub(super) fn new(chores: Arc<Chores>) -> Arc<Self> {
        let (pending, telling) = (Mutex::default(), ReentrantMutex::default());
        Arc::new(Self { chores, pending, telling, failed: Mutex::default() })
    }

    /// Whether one has failed since the last call of [`Commits::take_failed`].
    pub(super) fn has_failed(&self) -> bool {
        self.failed.lock().is_some()
    }

    /// Whether one has failed since the last call.
    pub(super) fn take_failed(&self) -> bool {
        self.failed.lock().take().is_some()
    }

    /// Has `done` told how the commit of `ticket` ends; now, if that is known and it is its turn.
    pub(super) fn push(self: &Arc<Self>, ticket: Option<Ticket>, done: Committed) {
        self.pending.lock().queue.push_back((ticket, done));
        self.tell_due();
    }

    /// Tells what may be told now; or whoever tells does, before he goes.
    fn tell_due(self: &Arc<Self>) {
        self.pending.lock().is_due = true;
        if !self.telling.is_owned_by_current_thread() {
            self.tell_left();
        }
    }

    /// He who lets go of it has to look again: others have left it to him.
    fn tell_left(self: &Arc<Self>) {
        while self.pending.lock().is_due {
            let Some(telling) = self.telling.try_lock() else { return };
            self.pending.lock().is_due = false;
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
        } else {
            self.pending.lock().is_late = true;
            self.tell_due();
        }
    }

    /// Tells of those that have ended, from the oldest on; of the others too, after waiting for as long as is `left`.
    fn tell(self: &Arc<Self>, left: Option<&dyn Fn() -> Duration>) {
        let waker = Waker::from(Arc::clone(self));
        loop {
            let mut pending = self.pending.lock();
            let Some((ticket, done)) = pending.queue.pop_front() else { return };
            let is_late = pending.is_late;
            drop(pending);
            let outcome = match (ticket, left) {
                // There was nothing to add to those before it.
                (None, _) => self.failed.lock().clone().map_or(Ok(()), Err),
                (Some(ticket), Some(left)) => ticket.wait(left()).map(drop),
                (Some(ticket), None) if is_late => ticket.wait(Duration::ZERO).map(drop),
                (Some(mut ticket), None) => {
                    match Pin::new(&mut ticket).poll(&mut Context::from_waker(&waker)) {
                        Poll::Ready(outcome) => outcome.map(drop),
                        Poll::Pending => {
                            self.pending.lock().queue.push_front((Some(ticket), done));
                            return;
                        }
                    }
                }
            };
            if let Err(error) = &outcome {
                *self.failed.lock() = Some(error.clone());
            }
            let _ = guard(|| done(outcome));
        }
    }
}

impl Chore for Commits {
    fn run(self: Arc<Self>) {
        self.tell_due();
    }
}

impl Wake for Commits {
    fn wake(self: Arc<Self>) {
        let weak: std::sync::Weak<Self> = Arc::downgrade(&self);
        self.chores.push(weak);
    }
}

impl Consumer {
    /// Commits what polls have returned so far, and waits until that is as safe as the store's flush level gives. What was
    /// read of a topic that is gone is left out.
    ///
    /// # Errors
    /// [`Error::RebalanceInProgress`]: poll, then try again. [`Error::UnknownMember`], [`Error::IllegalGeneration`],
    /// [`Error::NotAssigned`]: others have taken over, and will do again what was not committed.
    /// [`Error::InvalidConfig`] without a group; [`Error::TimedOut`] and others of an append.
    pub fn commit(&mut self) -> Result<()> {
        self.commit_sync_of(|_| true)
    }

    pub(super) fn commit_sync_of(&mut self, concerns: impl Fn(&Slot) -> bool) -> Result<()> {
        self.group()?;
        loop {
            let offsets = self.uncommitted(&concerns, |slot| slot.committed);
            match self.commit_and_note(&offsets) {
                Err(error) if self.is_of_gone(&error, &offsets) => {}
                outcome => return outcome,
            }
        }
    }

    fn commit_and_note(&mut self, offsets: &[(TopicPartition, CommittedOffset)]) -> Result<()> {
        // One that fails may hold all the same.
        self.commit_slice(offsets).inspect_err(|_| self.note_unknown(offsets))?;
        self.note_committed(offsets);
        Ok(())
    }

    fn lost_its_place(&self) -> Error {
        let group = self.settings.group.as_deref().unwrap_or_default().to_owned();
        Error::UnknownMember { group, reason: "the consumer has not polled for too long".into() }
    }

    /// As [`Consumer::commit`], without waiting: `done` is called with the outcome, once, in the order of the commits and
    /// under no lock, by this call, by a thread of the store's that may be blocked, or when the consumer is closed or
    /// dropped, which waits for it. A panic in it is caught.
    ///
    /// # Errors
    /// As for [`Consumer::commit`], known at once; `done` is then not called.
    pub fn commit_async(&mut self, done: impl FnOnce(Result<()>) + Send + 'static) -> Result<()> {
        self.commit_async_of(|_| true, done)
    }

    pub(super) fn commit_async_of(
        &mut self,
        concerns: impl Fn(&Slot) -> bool,
        done: impl FnOnce(Result<()>) + Send + 'static,
    ) -> Result<()> {
        self.group()?;
        if self.commits.as_ref().is_some_and(|commits| commits.take_failed()) {
            self.slots.values_mut().for_each(|slot| slot.asked = slot.committed);
        }
        loop {
            let offsets = self.uncommitted(&concerns, |slot| slot.asked);
            match self.begin_commit(&offsets) {
                Err(error) if self.is_of_gone(&error, &offsets) => {}
                begun => {
                    let ticket = begun?;
                    return self.follow_commit(ticket, &offsets, done);
                }
            }
        }
    }

    /// As [`Consumer::commit_offsets`], as [`Consumer::commit_async`] does it.
    ///
    /// # Errors
    /// As for [`Consumer::commit`], known at once; `done` is then not called.
    pub fn commit_offsets_async(
        &mut self,
        offsets: &OffsetMap,
        done: impl FnOnce(Result<()>) + Send + 'static,
    ) -> Result<()> {
        let offsets = self.chosen(offsets)?;
        let ticket = self.begin_commit(&offsets)?;
        self.follow_commit(ticket, &offsets, done)
    }

    /// Offsets that the application has chosen.
    fn chosen(&self, offsets: &OffsetMap) -> Result<Vec<(TopicPartition, CommittedOffset)>> {
        self.group()?;
        let chosen = offsets.iter().map(|(name, held)| {
            if self.is_gone(name) {
                return Err(Error::UnknownTopicOrPartition { partition: name.clone() });
            }
            Ok((name.clone(), held.clone()))
        });
        chosen.collect()
    }

    /// Commits these offsets: for each partition the *next* one to read (GRP-29).
    ///
    /// # Errors
    /// As for [`Consumer::commit`]; [`Error::OffsetOutOfRange`] behind the end of a log;
    /// [`Error::UnknownTopicOrPartition`] for what it reads of a topic that was deleted, whatever has its name now.
    pub fn commit_offsets(&mut self, offsets: &OffsetMap) -> Result<()> {
        let offsets = self.chosen(offsets)?;
        self.commit_and_note(&offsets)
    }

    /// What has moved since it was committed last.
    fn uncommitted(
        &self,
        concerns: impl Fn(&Slot) -> bool,
        committed: impl Fn(&Slot) -> Option<Offset>,
    ) -> Vec<(TopicPartition, CommittedOffset)> {
        // Where others commit for it, or may as it is no member, it does not know what is committed.
        let shared = self.lent.load(Ordering::Relaxed) || matches!(self.mode, Mode::Assigned);
        let moved = self.slots.values();
        let moved = moved.filter(move |slot| shared || slot.position() != committed(slot));
        moved
            .filter(|slot| concerns(slot) && !slot.partition.is_gone())
            .filter_map(|slot| Some((slot.partition.name().clone(), slot.to_commit()?)))
            .collect()
    }

    /// Whether polls have moved on since it was committed last, as far as that is known.
    pub(super) fn has_uncommitted(&self) -> bool {
        let has_moved = |slot: &&Slot| slot.position() != slot.asked && slot.is_in_log();
        self.slots.values().filter(has_moved).any(|slot| !slot.partition.is_gone())
            || self.commits.as_ref().is_some_and(|commits| commits.has_failed())
    }

    pub(super) fn note_committed(&mut self, offsets: &[(TopicPartition, CommittedOffset)]) {
        self.note(offsets, |slot, offset| {
            (slot.committed, slot.asked) = (Some(offset), Some(offset));
        });
        self.leave_behind(offsets);
    }

    pub(super) fn note_unknown(&mut self, offsets: &[(TopicPartition, CommittedOffset)]) {
        self.note(offsets, |slot, _| (slot.committed, slot.asked) = (None, None));
    }

    fn note(
        &mut self,
        offsets: &[(TopicPartition, CommittedOffset)],
        note: impl Fn(&mut Slot, Offset),
    ) {
        for (name, held) in offsets {
            if let Some(slot) = self.by_name.get(name).and_then(|key| self.slots.get_mut(key)) {
                note(slot, held.offset);
            }
        }
    }

    /// What the application has committed itself is what it leaves behind, if it is dropped now.
    fn leave_behind(&mut self, offsets: &[(TopicPartition, CommittedOffset)]) {
        for (name, held) in offsets {
            let Some(key) = self.by_name.get(name) else { continue };
            for (_, before) in self.last_poll.iter_mut().filter(|(other, _)| other == key) {
                *before = Some(held.clone());
            }
        }
    }

    /// What its group has committed for these partitions; those for which it has not are left out. Waits while a
    /// transaction is about to change it, and until what is in the log is acknowledged.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] without a group; [`Error::UnknownTopicOrPartition`]; [`Error::TimedOut`].
    pub fn committed(&self, partitions: &[(&str, u32)]) -> Result<OffsetMap> {
        let names: Vec<_> =
            partitions.iter().map(|(topic, number)| TopicPartition::new(*topic, *number)).collect();
        let timeout = self.settings.api_timeout;
        let found = self.store.committed_offsets(self.group()?, &names, timeout)?;
        Ok(names.into_iter().zip(found).filter_map(|(name, held)| Some((name, held?))).collect())
    }

    /// Whether it is of a topic that was deleted, whatever has its name now.
    pub(super) fn is_gone(&self, name: &TopicPartition) -> bool {
        let slot = self.by_name.get(name).and_then(|key| self.slots.get(key));
        slot.is_some_and(|slot| slot.partition.is_gone())
    }

    /// Whether a commit was refused because a topic was deleted since its offsets were collected: the next try leaves
    /// them out.
    pub(super) fn is_of_gone(
        &self,
        error: &Error,
        offsets: &[(TopicPartition, CommittedOffset)],
    ) -> bool {
        // It may go between any two of a commit's checks, and the group with it to the next generation.
        let concerns_a_partition = matches!(
            error,
            Error::UnknownTopicOrPartition { .. }
                | Error::NotAssigned { .. }
                | Error::IllegalGeneration { .. }
                | Error::RebalanceInProgress { .. }
        );
        concerns_a_partition && offsets.iter().any(|(name, _)| self.is_gone(name))
    }

    pub(super) fn commit_slice(&self, offsets: &[(TopicPartition, CommittedOffset)]) -> Result<()> {
        if offsets.is_empty() {
            return Ok(());
        }
        let timeout = self.settings.api_timeout;
        match &self.mode {
            Mode::Assigned => self.store.commit_without_members(&self.who(), offsets, timeout),
            Mode::Subscribed { membership: Some(membership), .. } => {
                membership.commit(offsets, timeout)
            }
            Mode::Subscribed { membership: None, .. } => Err(self.lost_its_place()),
        }
    }

    /// `None`: there is nothing to wait for.
    pub(super) fn begin_commit(
        &self,
        offsets: &[(TopicPartition, CommittedOffset)],
    ) -> Result<Option<Ticket>> {
        match &self.mode {
            _ if offsets.is_empty() => Ok(None),
            Mode::Assigned => self.store.begin_commit_without_members(&self.who(), offsets),
            Mode::Subscribed { membership: Some(membership), .. } => {
                membership.begin_commit(offsets)
            }
            Mode::Subscribed { membership: None, .. } => Err(self.lost_its_place()),
        }
    }

    pub(super) fn follow_commit(
        &mut self,
        ticket: Option<Ticket>,
        offsets: &[(TopicPartition, CommittedOffset)],
        done: impl FnOnce(Result<()>) + Send + 'static,
    ) -> Result<()> {
        let commits = match &self.commits {
            Some(commits) => commits,
            None => self.commits.insert(Commits::new(self.store.chores()?)),
        };
        commits.push(ticket, Box::new(done));
        // Whether it holds is not known, nor is what was committed before.
        self.note(offsets, |slot, offset| (slot.committed, slot.asked) = (None, Some(offset)));
        self.leave_behind(offsets);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::storage::Clock;
    use crate::types::Timestamp;

    /// He had found no more, and had not let go yet: nobody came for it.
    #[test]
    fn a_commit_that_comes_as_another_thread_ends_telling_is_told_of() {
        let commits = Commits::new(Arc::new(Chores::new(Clock::manual(Timestamp(0)))));
        let told = Arc::new(AtomicBool::new(false));
        let telling = commits.telling.lock();
        std::thread::scope(|scope| {
            let tells = Arc::clone(&told);
            let done: Committed = Box::new(move |_| tells.store(true, Ordering::Relaxed));
            scope.spawn(|| commits.push(None, done));
        });
        drop(telling);
        commits.tell_left();
        assert!(told.load(Ordering::Relaxed));
    }
}
