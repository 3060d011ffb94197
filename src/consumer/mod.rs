//! Consumers: records come out, partition by partition or as a member of a group, and what was done is committed.
//!
//! - `builder`: how one is made. `slot`: one partition, as it is read.
//! - `ready`: which partitions have something, and what ends a wait.
//! - `recv`: polls as a future. `rebalance`: what an application is told of its group.
//! - `commits`: what is put down of it, waited for or not. `positions`: where it stands, and goes.
//!
//! A poll reads from the log itself: nothing is fetched ahead, so that a position is what polls have returned, and what
//! was returned lies in memory that the [`Records`] hold. Threads: none of its own; callbacks run in `poll`, under no lock.
//!
//! Leaves to others: who reads what (`protocol::group`), carrying that out (`store::groups`), what may be read
//! (`partition`).

mod builder;
mod commits;
mod positions;
mod ready;
mod rebalance;
mod recv;
mod slot;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::config::ConsumerSettings;
use crate::error::{Error, Result};
use crate::log::{Part, Records};
use crate::protocol::group::assignment::Assignor;
use crate::protocol::group::membership::Subscription;
use crate::store::{
    Change, Chore, CommittedOffset, ConsumerGroupMetadata, Held, JoinGroup, Membership, Store,
};
use crate::types::{Offset, TopicPartition, guard};

pub use builder::ConsumerBuilder;
pub use rebalance::{Rebalance, RebalanceKind};
pub use recv::Recv;

use commits::Commits;
use ready::{Ready, SlotKey};
use slot::{Budget, Slot, Taken};

/// How often a log is looked at whose owner is another process, and what fails is tried again.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Offsets by partition, as they are committed.
type OffsetMap = BTreeMap<TopicPartition, CommittedOffset>;

/// An application's function that is told of changes.
type OnRebalance = Box<dyn FnMut(&Rebalance<'_>) + Send>;

/// Reads partitions, alone or with the other members of its group.
///
/// [`Consumer::poll`] returns what has come; [`Consumer::commit`] puts down how far the application is. Who commits after
/// the work is done, and repeats what was not committed, does everything at least once; with
/// [`Transaction::send_offsets`](crate::Transaction::send_offsets), exactly once.
///
/// Dropping a consumer leaves its group. It is used by one thread at a time; its records go anywhere.
///
/// # Examples
/// ```
/// use oncelog::{Acks, Record, StartAt, Store, TopicConfig};
/// use std::time::Duration;
/// let store = Store::in_memory(1)?;
/// store.create_topic("orders", TopicConfig::new().partitions(6))?;
/// store.partition("orders", 2)?.append(&[Record::new("pear"), Record::new("plum")], Acks::All)?;
///
/// let mut consumer = store.consumer().group("billing").start(StartAt::Earliest).build()?;
/// consumer.subscribe(&["orders"])?;
/// let batch = consumer.poll(Duration::from_secs(1))?;
/// for record in &batch {
///     assert_eq!((record.topic(), record.partition()), ("orders", 2));
/// }
/// consumer.commit()?;
/// assert_eq!(store.group("billing")?.offsets.iter().map(|at| at.lag).max(), Some(Some(0)));
/// # Ok::<(), oncelog::Error>(())
/// ```
pub struct Consumer {
    store: Store,
    settings: ConsumerSettings,
    assignor: Arc<dyn Assignor>,
    mode: Mode,
    slots: HashMap<SlotKey, Slot>,
    by_name: HashMap<TopicPartition, SlotKey>,
    next_key: SlotKey,
    /// Those that have no position yet.
    starting: BTreeSet<SlotKey>,
    /// Given by the group; their logs could not be opened so far.
    unopened: Vec<TopicPartition>,
    unopened_because: Option<Error>,
    /// The last poll told why: this one goes on with the others first.
    told_unopened: bool,
    ready: Arc<Ready>,
    /// Those whose logs cannot ring, because another process appends to them.
    unwatched: Vec<SlotKey>,
    /// Wakes whatever waits in this consumer.
    ring: Waker,
    on_rebalance: Option<OnRebalance>,
    /// Where the last poll began, for the partitions of which it returned something.
    last_poll: Vec<(SlotKey, Option<CommittedOffset>)>,
    /// When what was handed out is committed next, by the store's clock.
    next_commit: Duration,
    /// A wait ends then.
    ends_wait_at: Option<Duration>,
    /// `None`: every commit was waited for so far.
    commits: Option<Arc<Commits>>,
    /// Somebody else knows who it is, and may commit for it.
    lent: AtomicBool,
}

/// How it comes by its partitions.
#[derive(Debug)]
enum Mode {
    Assigned,
    Subscribed {
        subscription: Subscription,
        /// `None`: it has lost its place, and takes another with the next poll.
        membership: Option<Box<Membership>>,
    },
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = formatter.debug_struct("Consumer");
        shown.field("settings", &self.settings).field("mode", &self.mode);
        shown.field("partitions", &self.by_name.keys()).finish_non_exhaustive()
    }
}

/// Ends the waiting of a consumer from elsewhere. Made by [`Consumer::waker`].
#[derive(Clone, Debug)]
pub struct ConsumerWaker(Arc<Ready>);

impl ConsumerWaker {
    /// Has the poll that waits now, or else the next one that would, return at once.
    pub fn wake(&self) {
        self.0.interrupt();
    }
}

impl Consumer {
    fn new(store: Store, settings: ConsumerSettings, assignor: Arc<dyn Assignor>) -> Self {
        let ready = Arc::new(Ready::default());
        let ring = Waker::from(Arc::clone(&ready));
        store.wake_on_close(&ring);
        let next_commit =
            store.clock().elapsed().saturating_add(settings.auto_commit.unwrap_or_default());
        Self {
            store,
            settings,
            assignor,
            mode: Mode::Assigned,
            slots: HashMap::new(),
            by_name: HashMap::new(),
            next_key: 0,
            starting: BTreeSet::new(),
            unopened: Vec::new(),
            unopened_because: None,
            told_unopened: false,
            ring,
            ready,
            unwatched: Vec::new(),
            on_rebalance: None,
            last_poll: Vec::new(),
            next_commit,
            ends_wait_at: None,
            commits: None,
            lent: AtomicBool::new(false),
        }
    }

    /// Reads exactly these partitions from now on. Those that it read before keep their positions, unless their topic
    /// was deleted since and made again.
    ///
    /// # Errors
    /// [`Error::UnknownTopicOrPartition`]; [`Error::InvalidConfig`] while it is subscribed. Nothing is changed then.
    pub fn assign(&mut self, partitions: &[(&str, u32)]) -> Result<()> {
        if let Mode::Subscribed { .. } = self.mode {
            return Err(misused("it is subscribed, which gives it its partitions"));
        }
        let wanted: BTreeSet<_> =
            partitions.iter().map(|(topic, number)| TopicPartition::new(*topic, *number)).collect();
        let mut opened = Vec::new();
        let stays = |name: &TopicPartition| {
            let slot = self.by_name.get(name).and_then(|key| self.slots.get(key));
            wanted.contains(name) && slot.is_some_and(|slot| !slot.partition.is_gone())
        };
        for name in wanted.iter().filter(|name| !stays(name)) {
            opened.push(self.store.partition(name.topic(), name.partition())?);
        }
        let gone: Vec<_> = self.by_name.keys().filter(|name| !stays(name)).cloned().collect();
        self.let_go(&gone);
        for partition in opened {
            self.take_up(partition);
        }
        Ok(())
    }

    /// Reads what its group gives it of these topics, beginning with the next poll. Topics that do not exist yet are
    /// read when they do.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] without a group, while partitions are assigned by hand, or for settings that do not
    /// fit the group's other members.
    pub fn subscribe(&mut self, topics: &[&str]) -> Result<()> {
        let names = topics.iter().map(|topic| Arc::from(*topic)).collect();
        self.subscribe_to(Subscription::Names(names))
    }

    /// As [`Consumer::subscribe`], for every topic at which `matches` says yes. It is asked again when topics come, by
    /// whatever thread makes them, and must not call the store.
    ///
    /// # Errors
    /// As for [`Consumer::subscribe`].
    pub fn subscribe_matching(
        &mut self,
        matches: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> Result<()> {
        self.subscribe_to(Subscription::Matching(Arc::new(matches)))
    }

    fn subscribe_to(&mut self, subscription: Subscription) -> Result<()> {
        if let Mode::Subscribed { subscription: current, membership } = &mut self.mode {
            if let Some(membership) = membership {
                membership.resubscribe(subscription.clone())?;
            }
            *current = subscription;
            return Ok(());
        }
        if !self.slots.is_empty() {
            return Err(misused("partitions are assigned by hand"));
        }
        let membership = Some(Box::new(self.join(&subscription)?));
        self.mode = Mode::Subscribed { subscription, membership };
        Ok(())
    }

    fn join(&self, subscription: &Subscription) -> Result<Membership> {
        let settings = &self.settings;
        let (ready, told) = (Arc::clone(&self.ready), Arc::clone(&self.ready));
        self.store.join_group(JoinGroup {
            group: Arc::clone(self.group()?),
            instance: settings.instance.clone(),
            subscription: subscription.clone(),
            assignor: Arc::clone(&self.assignor),
            poll_interval_max: settings.max_poll_interval,
            wake: Arc::new(move || ready.ring()),
            is_told: Arc::new(move || told.has_work()),
        })
    }

    fn group(&self) -> Result<&Arc<str>> {
        self.settings.group.as_ref().ok_or_else(|| misused("it has no group"))
    }

    /// Reads nothing any more, and leaves its group. The function of [`Consumer::on_rebalance`] is told first, and may
    /// commit; nothing is committed automatically.
    pub fn unsubscribe(&mut self) {
        let all = self.assignment();
        if let Mode::Subscribed { membership: Some(member), .. } = &self.mode
            && !all.is_empty()
        {
            let kind = match member.poll() {
                Err(_) | Ok(Some(Change::Lost(_))) => RebalanceKind::Lost,
                Ok(_) => RebalanceKind::Revoked,
            };
            self.tell(kind, &all);
        }
        self.mode = Mode::Assigned;
        self.let_go(&all);
        self.unopened.clear();
    }

    /// The partitions that it reads.
    #[must_use]
    pub fn assignment(&self) -> Vec<TopicPartition> {
        let mut partitions: Vec<_> = self.by_name.keys().cloned().collect();
        partitions.sort_unstable();
        partitions
    }

    /// Has `told` called, under no lock, whenever the group gives or takes partitions: from within `poll`, and from
    /// within `unsubscribe` and `close` of what is let go of then. One that is dropped tells nobody. A panic in it is
    /// caught.
    pub fn on_rebalance(&mut self, told: impl FnMut(&Rebalance<'_>) + Send + 'static) {
        self.on_rebalance = Some(Box::new(told));
    }

    fn take_up(&mut self, partition: crate::store::Partition) {
        let key = self.next_key;
        self.next_key += 1;
        self.by_name.insert(partition.name().clone(), key);
        self.slots.insert(key, Slot::new(partition, &self.ready, key));
        self.starting.insert(key);
    }

    fn let_go(&mut self, partitions: &[TopicPartition]) {
        for name in partitions {
            if let Some(key) = self.by_name.remove(name) {
                self.slots.remove(&key);
                self.starting.remove(&key);
            }
        }
        self.unopened.retain(|name| !partitions.contains(name));
    }

    /// Waits until there are records, and returns them: of one partition or of several, each in its order. Empty when
    /// `timeout` is over, or when [`Consumer::waker`] was used.
    ///
    /// As a member of a group it also takes part in what the group does: without polls for `max_poll_interval` it loses
    /// its place.
    ///
    /// # Errors
    /// [`Error::NoOffset`]; [`Error::OffsetOutOfRange`] where [`StartAt::Error`](crate::StartAt) is chosen;
    /// [`Error::Diverged`] after an unclean election, with where to go on; [`Error::Corrupt`], with where to go on;
    /// [`Error::UnknownMember`] when another consumer has taken over its instance id; [`Error::Closed`]. Other
    /// partitions are read on with the next poll.
    pub fn poll(&mut self, timeout: Duration) -> Result<Records> {
        self.begin_poll();
        if let Some(records) = self.poll_once()? {
            return Ok(records);
        }
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let left = deadline.map_or(timeout, |at| at.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Ok(Records::of_parts(Vec::new()));
            }
            self.end_wait_to_commit();
            self.show_waiting(true);
            self.ready.wait(left.min(self.look_again_in()));
            self.show_waiting(false);
            self.commit_if_due();
            if let Some(records) = self.poll_once()? {
                return Ok(records);
            }
        }
    }

    /// As [`Consumer::poll`], as a future of any executor, with no end of its own. Dropping it loses nothing.
    ///
    /// # Errors
    /// As for [`Consumer::poll`]; [`Error::ReadOnly`] in a store that is open to read only, whose owner cannot wake
    /// anybody here.
    pub fn recv(&mut self) -> Recv<'_> {
        Recv { consumer: self, has_begun: false }
    }

    /// For another thread, to end a wait.
    #[must_use]
    pub fn waker(&self) -> ConsumerWaker {
        ConsumerWaker(Arc::clone(&self.ready))
    }

    fn begin_poll(&mut self) {
        self.last_poll.clear();
        self.commit_if_due();
    }

    fn commit_if_due(&mut self) {
        let Some(interval) = self.settings.auto_commit else { return };
        let now = self.store.clock().elapsed();
        if now >= self.next_commit {
            self.next_commit = now.saturating_add(interval);
            // What cannot be committed now is committed the next time, or read again.
            let _ = self.commit_async_of(Slot::is_in_log, |_| ());
        }
    }

    /// Has the wait that begins ended when what earlier polls have returned is to be committed.
    fn end_wait_to_commit(&mut self) {
        let is_asked = self.ends_wait_at == Some(self.next_commit);
        if self.settings.auto_commit.is_none() || is_asked || !self.has_uncommitted() {
            return;
        }
        // What could not be committed just now is not tried without a pause.
        let at = self.next_commit.max(self.store.clock().elapsed().saturating_add(LOOK_EVERY));
        if self.ends_wait_at != Some(at)
            && let Ok(chores) = self.store.chores()
        {
            self.ends_wait_at = Some(at);
            let ready: Weak<dyn Chore> = Arc::downgrade(&self.ready) as Weak<dyn Chore>;
            chores.push_at(at, ready);
        }
    }

    /// Does what is due, and returns what there is.
    fn poll_once(&mut self) -> Result<Option<Records>> {
        self.store.check_open()?;
        self.take_changes()?;
        let failed = self.unopened_because.take();
        self.told_unopened = failed.is_some() && !self.told_unopened;
        let failed = match failed {
            Some(error) if self.told_unopened => return Err(error),
            failed => failed,
        };
        if !self.starting.is_empty() {
            self.start_slots()?;
        }
        for key in std::mem::take(&mut self.unwatched) {
            if let Some(slot) = self.slots.get(&key) {
                slot.bell.push();
            }
        }
        let parts = self.collect()?;
        if parts.is_empty()
            && let Some(error) = failed
        {
            return Err(error);
        }
        if !parts.is_empty() || self.ready.take_interrupt() {
            return Ok(Some(Records::of_parts(parts)));
        }
        Ok(None)
    }

    fn collect(&mut self) -> Result<Vec<Part>> {
        let mut parts = Vec::new();
        let Self { slots, ready, settings, last_poll, unwatched, mode, .. } = self;
        let mut budget = Budget { bytes: settings.max_bytes, records: settings.max_poll_records };
        for _ in 0..ready.len() {
            if budget.bytes == 0 || budget.records == 0 {
                break;
            }
            let Some(key) = ready.pop() else { break };
            let Some(slot) = slots.get_mut(&key) else { continue };
            slot.bell.taken();
            let before = slot.to_commit();
            match slot.take(settings, budget) {
                Ok(Taken::Nothing) => {}
                Ok(Taken::Unwatched) => unwatched.push(key),
                Ok(Taken::Part(part)) => {
                    budget.bytes = budget.bytes.saturating_sub(part.bytes());
                    if budget.records != u64::MAX {
                        budget.records = budget.records.saturating_sub(part.count());
                    }
                    parts.push(part);
                    last_poll.push((key, before));
                    // There may be more; the others come first.
                    slot.bell.push();
                }
                // The topic is gone: the group will take the partition away.
                Err(_) if matches!(mode, Mode::Subscribed { .. }) && slot.partition.is_gone() => {}
                Err(error) if parts.is_empty() => {
                    slot.bell.push();
                    return Err(error);
                }
                // What was read of others comes first, and then the error before anything else (CONS-07).
                Err(_) => {
                    slot.bell.push_first();
                    break;
                }
            }
        }
        Ok(parts)
    }

    /// Carries out what the group has decided.
    fn take_changes(&mut self) -> Result<()> {
        if !self.unopened.is_empty() {
            let unopened = std::mem::take(&mut self.unopened);
            self.take_up_given(&unopened)?;
        }
        loop {
            let Mode::Subscribed { subscription, membership } = &self.mode else { return Ok(()) };
            let Some(member) = membership else {
                let joined = self.join(subscription)?;
                if let Mode::Subscribed { membership, .. } = &mut self.mode {
                    *membership = Some(Box::new(joined));
                }
                continue;
            };
            let change = match member.poll() {
                Ok(None) => return Ok(()),
                Ok(Some(change)) => change,
                Err(error) => {
                    let all: Vec<_> = self.by_name.keys().cloned().collect();
                    if !all.is_empty() {
                        self.tell(RebalanceKind::Lost, &all);
                    }
                    self.let_go(&all);
                    self.unopened.clear();
                    return Err(error);
                }
            };
            match change {
                Change::Assigned(partitions) => {
                    if partitions.is_empty() {
                        self.tell(RebalanceKind::Assigned, &partitions);
                    }
                    self.take_up_given(&partitions)?;
                }
                Change::Revoke(partitions) => {
                    if self.settings.auto_commit.is_some() {
                        // If it fails, the next owner reads again what this one has done.
                        let leaves = |slot: &Slot| partitions.contains(slot.partition.name());
                        let _ = self.commit_sync_of(|slot| leaves(slot) && slot.is_in_log());
                    }
                    self.tell(RebalanceKind::Revoked, &partitions);
                    self.let_go(&partitions);
                    if let Mode::Subscribed { membership: Some(member), .. } = &self.mode {
                        member.confirm_revoked();
                    }
                }
                Change::Lost(partitions) => {
                    self.tell(RebalanceKind::Lost, &partitions);
                    self.let_go(&partitions);
                    if let Mode::Subscribed { membership, .. } = &mut self.mode {
                        *membership = None;
                    }
                }
            }
        }
    }

    /// Takes up what the group has given. What cannot be opened now is tried again by the next poll.
    fn take_up_given(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        let mut opened = Vec::new();
        for name in partitions {
            match self.store.partition(name.topic(), name.partition()) {
                Ok(partition) if self.is_given(&partition) => {
                    self.take_up(partition);
                    opened.push(name.clone());
                }
                // The topic is gone by now, whatever has its name, and will be revoked.
                Ok(_) | Err(Error::UnknownTopicOrPartition { .. }) => {}
                Err(error) => {
                    self.unopened.push(name.clone());
                    self.unopened_because = Some(error);
                }
            }
        }
        if !opened.is_empty() {
            for (name, offset) in self.tell(RebalanceKind::Assigned, &opened) {
                self.seek(name.topic(), name.partition(), offset)?;
            }
        }
        Ok(())
    }

    fn is_given(&self, partition: &crate::store::Partition) -> bool {
        let Mode::Subscribed { membership: Some(member), .. } = &self.mode else { return false };
        member.holds(partition.id())
    }

    /// Calls the application's function. Returns where it wants to go on.
    fn tell(
        &mut self,
        kind: RebalanceKind,
        partitions: &[TopicPartition],
    ) -> Vec<(TopicPartition, Offset)> {
        let Some(mut told) = self.on_rebalance.take() else { return Vec::new() };
        let positions = self.positions_of(|name| partitions.contains(name)).collect();
        let (mut seeks, mut commits) = (Vec::new(), Vec::new());
        if let Mode::Subscribed { membership: Some(_), .. } = &self.mode {
            let rebalance = Rebalance {
                kind,
                partitions,
                positions,
                consumer: self,
                seeks: RefCell::default(),
                commits: RefCell::default(),
            };
            // After a panic the rebalance goes on.
            let _ = guard(|| told(&rebalance));
            seeks = rebalance.seeks.into_inner();
            commits = rebalance.commits.into_inner();
        }
        for (offsets, holds) in commits {
            if holds { self.note_committed(&offsets) } else { self.note_unknown(&offsets) }
        }
        self.on_rebalance = Some(told);
        seeks
    }

    /// Finds out where to begin.
    fn start_slots(&mut self) -> Result<()> {
        // One whose topic is gone says so when it is its turn.
        let (gone, keys): (Vec<_>, Vec<_>) =
            self.starting.iter().partition(|key| self.slots[key].partition.is_gone());
        for key in gone {
            self.slots[&key].bell.push();
            self.starting.remove(&key);
        }
        let committed = match &self.settings.group {
            None => vec![None; keys.len()],
            Some(group) => {
                // Not by names: a topic may be gone by now, or another have its name.
                let ids: Vec<_> = keys.iter().map(|key| self.slots[key].partition.id()).collect();
                match self.store.committed_offsets_now(group, &ids, &self.ring)? {
                    Some(committed) => committed,
                    // A transaction is about to change them: it rings.
                    None => return Ok(()),
                }
            }
        };
        for (key, committed) in keys.into_iter().zip(committed) {
            let slot = self.slots.get_mut(&key).expect("what is starting is assigned");
            match committed {
                Some(Held { committed, acknowledged }) => {
                    // One that may still be lost is committed anew.
                    slot.committed = acknowledged.then_some(committed.offset);
                    slot.asked = slot.committed;
                    slot.seek(committed.offset, committed.leader_epoch);
                }
                // One that cannot begin says so when it is its turn, and the others go on.
                None => {
                    if slot.start(&self.settings).is_err() {
                        slot.bell.push();
                    }
                }
            }
            self.starting.remove(&key);
        }
        Ok(())
    }

    /// For how long nothing is to be looked at that nobody rings for.
    fn look_again_in(&self) -> Duration {
        match &self.mode {
            _ if !self.unwatched.is_empty() => LOOK_EVERY,
            Mode::Subscribed { membership: Some(membership), .. } => {
                membership.due_in().max(LOOK_EVERY)
            }
            _ => Duration::MAX,
        }
    }

    /// Waiting in a poll counts as polling.
    fn show_waiting(&self, waits: bool) {
        if let Mode::Subscribed { membership: Some(membership), .. } = &self.mode {
            membership.show_waiting(waits);
        }
    }

    /// Who it is, for offsets in a producer's transaction. What is sent there under the name of a consumer that has no
    /// group, or has lost its place in it, is refused.
    #[must_use]
    pub fn group_metadata(&self) -> ConsumerGroupMetadata {
        self.lent.store(true, Ordering::Relaxed);
        self.who()
    }

    fn who(&self) -> ConsumerGroupMetadata {
        let group = self.settings.group.as_deref().unwrap_or_default();
        match &self.mode {
            Mode::Assigned => {
                let read = self.slots.values().map(|slot| &slot.partition);
                let topics = read.map(|read| (read.name().shared_topic(), read.topic_id()));
                ConsumerGroupMetadata::of_reader(group, topics.collect())
            }
            Mode::Subscribed { membership: Some(membership), .. } => membership.metadata(),
            Mode::Subscribed { membership: None, .. } => ConsumerGroupMetadata::of_nobody(group),
        }
    }

    /// Leaves the group. With automatic commits, commits first what all polls have returned. Waits for commits that
    /// were not waited for, and tells of them; then tells the function of [`Consumer::on_rebalance`] what is let go of.
    ///
    /// # Errors
    /// As for [`Consumer::commit`]; the group is left all the same.
    pub fn close(mut self, timeout: Duration) -> Result<()> {
        self.settings.api_timeout = timeout;
        let outcome = match self.settings.auto_commit.take() {
            Some(_) => self.commit_sync_of(Slot::is_in_log),
            None => Ok(()),
        };
        if let Some(commits) = self.commits.take() {
            commits.finish(timeout);
        }
        self.unsubscribe();
        outcome
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.store.forget_waker(&self.ring);
        if let Some(commits) = self.commits.take() {
            commits.finish(self.settings.api_timeout);
        }
        if self.settings.auto_commit.is_some() {
            // What the last poll returned may not be done: only a further poll, or `close`, says so.
            for (key, before) in std::mem::take(&mut self.last_poll).into_iter().rev() {
                let Some(before) = before else {
                    self.slots.remove(&key);
                    continue;
                };
                if let Some(slot) = self.slots.get_mut(&key) {
                    slot.seek(before.offset, before.leader_epoch);
                }
            }
            let _ = self.commit_sync_of(Slot::is_in_log);
        }
        // Before the store is let go of: that may close it, and then the group could not be told.
        self.mode = Mode::Assigned;
    }
}

fn misused(reason: &str) -> Error {
    Error::InvalidConfig { key: "consumer".into(), value: String::new(), reason: reason.into() }
}
