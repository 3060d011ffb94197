//! A member of a group, as a consumer holds it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::partition::Ticket;
use crate::protocol::group::assignment::{MemberId, PartitionId};
use crate::protocol::group::membership::{Event, FenceReason, Join, Subscription};
use crate::store::Shared;
use crate::types::{Timestamp, TopicId, TopicPartition};

use super::{CommittedOffset, ConsumerGroupMetadata, GroupCell, Groups, caught};

/// No poll since the watchdog looked.
const NOT_POLLED: i64 = i64::MIN;
/// It waits in a poll now.
const WAITING: i64 = i64::MAX;

/// What a member has to be told, in order.
#[derive(Debug)]
pub(super) enum News {
    Assign { generation: u64, added: Vec<PartitionId> },
    Revoke(Vec<PartitionId>),
    Fenced(FenceReason),
}

/// Where the group leaves its news for a member, and the member the time of its last poll.
pub(super) struct Mailbox {
    polled_at: AtomicI64,
    has_news: AtomicBool,
    news: Mutex<VecDeque<News>>,
    wake: Arc<dyn Fn() + Send + Sync>,
    /// Whether the member has been told of something that it has not looked at.
    is_told: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl std::fmt::Debug for Mailbox {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Mailbox").field("news", &self.news).finish_non_exhaustive()
    }
}

impl Mailbox {
    pub(super) fn new(
        now: Timestamp,
        wake: Arc<dyn Fn() + Send + Sync>,
        is_told: Arc<dyn Fn() -> bool + Send + Sync>,
    ) -> Self {
        Self {
            polled_at: AtomicI64::new(now.0),
            has_news: AtomicBool::new(false),
            news: Mutex::default(),
            wake,
            is_told,
        }
    }

    pub(super) fn post(&self, news: News) {
        let mut queue = self.news.lock();
        if matches!(news, News::Fenced(_)) {
            // What it was to be given or to let go of, it has lost (GRP-48).
            queue.clear();
        }
        queue.push_back(news);
        drop(queue);
        self.has_news.store(true, Ordering::Release);
    }

    pub(super) fn has_news(&self) -> bool {
        self.has_news.load(Ordering::Acquire)
    }

    pub(super) fn wake(&self) {
        (self.wake)();
    }

    /// When it polled, if it did since the last call; `now` while it waits in a poll. A task that was woken and does not go
    /// on waits no longer: its time runs from the first call that finds it so.
    pub(super) fn take_polled(&self, now: Timestamp) -> Option<Timestamp> {
        match self.polled_at.swap(NOT_POLLED, Ordering::AcqRel) {
            NOT_POLLED => None,
            WAITING => {
                // Asked afterwards: one that goes on from here on shows that itself. One that waits without having been told
                // may have begun just now.
                if !(self.is_told)() {
                    let order = Ordering::Relaxed;
                    let _ = self.polled_at.compare_exchange(NOT_POLLED, WAITING, order, order);
                }
                Some(now)
            }
            at => Some(Timestamp(at)),
        }
    }

    fn take(&self) -> Option<News> {
        let mut news = self.news.lock();
        let next = news.pop_front();
        self.has_news.store(!news.is_empty(), Ordering::Release);
        next
    }
}

/// What has changed for a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// These in addition to what it has; it may be none, when only the generation is another.
    Assigned(Vec<TopicPartition>),
    /// To be let go of, and then confirmed with [`Membership::confirm_revoked`].
    Revoke(Vec<TopicPartition>),
    /// All that it had is gone; it is no member any more, and may join again.
    Lost(Vec<TopicPartition>),
}

/// A place in a group. Dropping it leaves.
#[derive(Debug)]
pub(crate) struct Membership {
    shared: Arc<Shared>,
    groups: Arc<Groups>,
    cell: Arc<GroupCell>,
    member: MemberId,
    mailbox: Arc<Mailbox>,
    join: Mutex<Join>,
    known: Mutex<Known>,
}

/// What the member has been told.
#[derive(Debug, Default)]
struct Known {
    generation: u64,
    /// Under the names that they had when they came.
    holds: BTreeMap<PartitionId, TopicPartition>,
    /// Of what it holds.
    topics: Arc<BTreeMap<Arc<str>, TopicId>>,
    /// To be confirmed.
    revoked: Vec<PartitionId>,
}

impl Known {
    fn name_topics(&mut self) {
        let named = self.holds.iter().map(|(at, name)| (name.shared_topic(), at.topic));
        self.topics = Arc::new(named.collect());
    }
}

impl Membership {
    pub(super) fn new(
        shared: &Arc<Shared>,
        groups: &Arc<Groups>,
        cell: &Arc<GroupCell>,
        member: MemberId,
        mailbox: Arc<Mailbox>,
        join: Join,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            groups: Arc::clone(groups),
            cell: Arc::clone(cell),
            member,
            mailbox,
            join: Mutex::new(join),
            known: Mutex::default(),
        }
    }

    /// What has changed, one thing a call; tells the watchdog that the member is alive.
    ///
    /// # Errors
    /// [`Error::UnknownMember`] when another handle has taken over its instance id: it must not join again.
    #[inline]
    pub(crate) fn poll(&self) -> Result<Option<Change>> {
        let now = self.shared.group_time().0;
        self.mailbox.polled_at.store(now, Ordering::Relaxed);
        if now >= self.cell.due.load(Ordering::Relaxed) {
            self.cell.look_after(&self.shared);
        }
        if self.mailbox.has_news() { self.take() } else { Ok(None) }
    }

    /// It begins, or ends, to wait in a poll, which is as good as polling all the time.
    pub(crate) fn show_waiting(&self, waits: bool) {
        let shown = if waits { WAITING } else { self.shared.group_time().0 };
        self.mailbox.polled_at.store(shown, Ordering::Release);
    }

    /// In how long a member of its group could be due.
    pub(crate) fn due_in(&self) -> Duration {
        let due = Timestamp(self.cell.due.load(Ordering::Relaxed));
        due.since(self.shared.group_time())
    }

    #[cold]
    fn take(&self) -> Result<Option<Change>> {
        let Some(news) = self.mailbox.take() else { return Ok(None) };
        let mut known = self.known.lock();
        match news {
            News::Assign { generation, added } => {
                known.generation = generation;
                let added = self.named(&added);
                let names = added.iter().map(|(_, name)| name.clone()).collect();
                known.holds.extend(added);
                known.name_topics();
                Ok(Some(Change::Assigned(names)))
            }
            News::Revoke(partitions) => {
                let names = partitions.iter().filter_map(|at| known.holds.remove(at)).collect();
                known.name_topics();
                known.revoked.extend(partitions);
                Ok(Some(Change::Revoke(names)))
            }
            News::Fenced(FenceReason::Replaced) => {
                // It stays so: who polls again is told again.
                self.mailbox.post(news);
                Err(Error::UnknownMember {
                    group: self.cell.name.to_string(),
                    reason: "another handle has taken over the instance id".into(),
                })
            }
            News::Fenced(_) => {
                known.revoked.clear();
                let lost = std::mem::take(&mut known.holds);
                Ok(Some(Change::Lost(lost.into_values().collect())))
            }
        }
    }

    /// What was to be let go of has been.
    pub(crate) fn confirm_revoked(&self) {
        let partitions = std::mem::take(&mut self.known.lock().revoked);
        if !partitions.is_empty() {
            let event = Event::Revoked { member: self.member, partitions };
            let told = self.cell.act(&self.shared, event);
            debug_assert!(told.is_ok(), "only who joins is refused");
        }
    }

    /// It wants to read other topics.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`].
    pub(crate) fn resubscribe(&self, subscription: Subscription) -> Result<()> {
        let mut join = self.join.lock();
        join.subscription = caught(subscription);
        self.cell.rejoin(&self.shared, join.clone())
    }

    /// Commits, and waits until that is as safe as the internal topic's flush level gives.
    ///
    /// # Errors
    /// [`Error::UnknownMember`], [`Error::IllegalGeneration`], [`Error::RebalanceInProgress`],
    /// [`Error::NotAssigned`], [`Error::OffsetOutOfRange`]: nothing was committed. Those of an append.
    pub(crate) fn commit(
        &self,
        offsets: &[(TopicPartition, CommittedOffset)],
        timeout: Duration,
    ) -> Result<()> {
        match self.begin_commit(offsets)? {
            Some(ticket) => ticket.wait(timeout).map(drop),
            None => Ok(()),
        }
    }

    /// As [`Membership::commit`], to be waited for later. `None`: there was nothing left to commit.
    ///
    /// # Errors
    /// As for [`Membership::commit`].
    pub(crate) fn begin_commit(
        &self,
        offsets: &[(TopicPartition, CommittedOffset)],
    ) -> Result<Option<Ticket>> {
        let metadata = self.metadata();
        let offsets = self.shared.placed_offsets(&metadata, offsets)?;
        if offsets.is_empty() {
            return Ok(None);
        }
        self.groups.commit(&self.shared, None, &metadata, &offsets).map(Some)
    }

    /// Who it is.
    pub(crate) fn metadata(&self) -> ConsumerGroupMetadata {
        let known = self.known.lock();
        let member = Some((self.member, known.generation));
        let (group, topics) = (Arc::clone(&self.cell.name), Arc::clone(&known.topics));
        ConsumerGroupMetadata { group, member, topics }
    }

    /// Whether it was given this partition, and not another of its name.
    pub(crate) fn holds(&self, partition: PartitionId) -> bool {
        self.known.lock().holds.contains_key(&partition)
    }

    fn named(&self, partitions: &[PartitionId]) -> Vec<(PartitionId, TopicPartition)> {
        let topics = self.shared.topics.read();
        let topics: HashMap<TopicId, &Arc<str>> =
            topics.values().map(|topic| (topic.id, &topic.name)).collect();
        let named = partitions.iter().filter_map(|at| {
            let name = topics.get(&at.topic)?;
            Some((*at, TopicPartition::new(Arc::clone(name), at.partition)))
        });
        named.collect()
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let told = self.cell.act(&self.shared, Event::Leave { member: self.member });
        debug_assert!(told.is_ok(), "only who joins is refused");
        self.cell.state.lock().mailboxes.remove(&self.member);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The group looked, found it waiting and told of something, and then took back that it waits: what the member had shown in
    /// between, as it went on and waited again.
    #[test]
    fn a_member_that_waits_again_as_it_is_looked_at_is_one_that_polls() {
        let mailbox = Arc::new_cyclic(|mailbox: &std::sync::Weak<Mailbox>| {
            let (mailbox, looks) = (mailbox.clone(), AtomicBool::new(false));
            let is_told = move || {
                let is_first = !looks.swap(true, Ordering::Relaxed);
                if let Some(mailbox) = mailbox.upgrade().filter(|_| is_first) {
                    mailbox.polled_at.store(WAITING, Ordering::Release);
                }
                is_first
            };
            Mailbox::new(Timestamp(0), Arc::new(|| {}), Arc::new(is_told))
        });
        mailbox.polled_at.store(WAITING, Ordering::Release);
        for at in 1..4 {
            assert_eq!(mailbox.take_polled(Timestamp(at)), Some(Timestamp(at)), "it waits");
        }
    }

    #[test]
    fn a_member_that_was_told_and_does_not_go_on_waits_no_longer() {
        let mailbox = Mailbox::new(Timestamp(0), Arc::new(|| {}), Arc::new(|| true));
        assert_eq!(mailbox.take_polled(Timestamp(1)), Some(Timestamp(0)), "it joined");
        mailbox.polled_at.store(WAITING, Ordering::Release);
        assert_eq!(mailbox.take_polled(Timestamp(2)), Some(Timestamp(2)));
        assert_eq!(mailbox.take_polled(Timestamp(3)), None);
    }
}
