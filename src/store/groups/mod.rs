//! Consumer groups of a store: the shell around [`Group`], one for each, and their committed offsets.
//!
//! - `membership`: a member, as a consumer holds it. `offsets`: what is committed, and its internal topic.
//! - `admin`: what applications see of groups from outside. `forget`: what goes with topics and with time.
//!
//! Members are handles in this process. What the pure group decides is put into each member's mailbox, in order, under
//! the group's lock, and taken out by its next poll; whoever blocks in one is woken. A poll of a member for which there
//! is nothing new takes no lock: it leaves the time, which the watchdog reads before it fences anybody. The watchdog is a
//! chore, asked for when somebody could be due; a member that polls then does the same, for chores may be held up.
//!
//! A commit is checked and appended under the group's lock, so that none slips in behind a revocation (GRP-02 to GRP-04).
//!
//! Lock order: a group, the table of offsets, its partition. Neither is held while a mailbox's owner is woken, or while
//! anything is waited for but the table itself being read.

mod admin;
mod forget;
mod membership;
mod offsets;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::error::{Error, Result};
use crate::partition::{Author, EventKind, Placed, Ticket, postpone};
use crate::protocol::group::assignment::{Assignor, MemberId, PartitionId, Situation, TopicView};
use crate::protocol::group::membership::{
    CommitRefusal, Effect, Event, Group, Join, JoinRefusal, Subscription,
};
use crate::protocol::group::records::{
    self, GROUP_BYTES_MAX, GroupRecord, GroupState, METADATA_CHARS_MAX, group_name_fits,
    metadata_fits,
};
use crate::protocol::producer_state::batch::Numbering;
use crate::record::Marker;
use crate::types::{
    LeaderEpoch, Offset, ProducerEpoch, ProducerSequence, Timestamp, TopicId, TopicPartition, guard,
};

use super::chores::Chore;
use super::{Shared, Store, Topic};

pub use admin::{GroupDescription, GroupMember, GroupOffset, GroupPhase, ResetTo};
pub(crate) use membership::{Change, Membership};

use membership::{Mailbox, News};
use offsets::{Offsets, report};

/// Nobody can be due.
const NEVER: i64 = i64::MAX;

/// No member has this id.
const NOBODY: MemberId = MemberId(0);

/// Members of all stores: who was one before its store was opened again is none of those that are there now, whatever
/// generation it knows.
static MEMBERS: AtomicU64 = AtomicU64::new(0);

/// The internal topic (Kafka's name for its own).
pub(super) const GROUP_TOPIC: &str = "__consumer_offsets";

/// The next offset that a group will read of a partition, as it is committed.
///
/// # Examples
/// ```
/// use oncelog::{CommittedOffset, Offset};
/// let committed = CommittedOffset::from(Offset(7));
/// assert_eq!((committed.offset, committed.leader_epoch), (Offset(7), None));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommittedOffset {
    /// The next offset to read (GRP-29).
    pub offset: Offset,
    /// The leader epoch of the last record that was read: with it, a truncation is noticed (KIP-320).
    pub leader_epoch: Option<LeaderEpoch>,
    /// Whatever the application wants to find again beside it; 4,096 characters at most.
    pub metadata: String,
}

/// What a group has committed for a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) committed: CommittedOffset,
    /// No other leader lacks it.
    pub(crate) acknowledged: bool,
}

impl From<Offset> for CommittedOffset {
    fn from(offset: Offset) -> Self {
        Self { offset, leader_epoch: None, metadata: String::new() }
    }
}

/// Who commits: a consumer's group and its place in it, for offsets in a producer's transaction (KIP-447).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerGroupMetadata {
    group: Arc<str>,
    /// And the generation that it knows. `None`: it is no member.
    member: Option<(MemberId, u64)>,
    /// The topics that it reads, by name: another that has come under the name since is none of them.
    topics: Arc<BTreeMap<Arc<str>, TopicId>>,
}

impl ConsumerGroupMetadata {
    /// For one who is no member, and may commit while the group has none.
    #[must_use]
    pub fn of_group(group: &str) -> Self {
        Self { group: group.into(), member: None, topics: Arc::default() }
    }

    /// As [`ConsumerGroupMetadata::of_group`], for one who reads these topics.
    pub(crate) fn of_reader(group: &str, topics: BTreeMap<Arc<str>, TopicId>) -> Self {
        Self { topics: Arc::new(topics), ..Self::of_group(group) }
    }

    /// For one who has lost its place: whatever it does for the group is refused.
    pub(crate) fn of_nobody(group: &str) -> Self {
        Self { member: Some((NOBODY, 0)), ..Self::of_group(group) }
    }

    /// The group's name.
    #[must_use]
    pub fn group(&self) -> &str {
        &self.group
    }

    /// The generation in which the member knows itself; `None` for one who is no member.
    #[must_use]
    pub fn generation(&self) -> Option<u64> {
        self.member.map(|(_, generation)| generation)
    }
}

/// An offset and the partition that it is of.
pub(crate) type PlacedOffset = (PartitionId, TopicPartition, CommittedOffset);

/// A handle that wants to be a member.
pub(crate) struct JoinGroup {
    pub(crate) group: Arc<str>,
    /// Kafka's `group.instance.id`.
    pub(crate) instance: Option<Arc<str>>,
    pub(crate) subscription: Subscription,
    pub(crate) assignor: Arc<dyn Assignor>,
    /// Kafka's `max.poll.interval.ms`.
    pub(crate) poll_interval_max: Duration,
    /// Called, under no lock, when there is something to poll for.
    pub(crate) wake: Arc<dyn Fn() + Send + Sync>,
    /// Whether there is something to poll for. Called under the group's lock.
    pub(crate) is_told: Arc<dyn Fn() -> bool + Send + Sync>,
}

/// All groups of a store.
#[derive(Debug)]
pub(crate) struct Groups {
    shared: Weak<Shared>,
    offsets: Offsets,
    cells: Mutex<HashMap<Arc<str>, Arc<GroupCell>>>,
}

/// One group.
#[derive(Debug)]
struct GroupCell {
    name: Arc<str>,
    groups: Weak<Groups>,
    /// When the watchdog comes, or [`NEVER`]; written under the lock.
    due: AtomicI64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    group: Group,
    mailboxes: HashMap<MemberId, Arc<Mailbox>>,
    /// Those that have got news under the lock as it is held now.
    posted: Vec<Arc<Mailbox>>,
    /// It was deleted: whoever still has the cell takes a new one.
    is_gone: bool,
}

impl Shared {
    /// The store's groups; reads what they have committed at the first use.
    ///
    /// # Errors
    /// What making or reading the internal topic runs into.
    pub(crate) fn groups(self: &Arc<Self>) -> Result<Arc<Groups>> {
        self.check_writable()?;
        if let Some(groups) = self.groups.get() {
            return Ok(Arc::clone(groups));
        }
        // Whom it wakes may come here as well.
        let _postponed = postpone();
        let _beginning = self.beginning_groups.lock();
        if let Some(groups) = self.groups.get() {
            return Ok(Arc::clone(groups));
        }
        if let Some(workers) = &mut *self.workers.lock() {
            workers.start_chores(&self.chores)?;
        }
        let groups = Groups {
            shared: Arc::downgrade(self),
            offsets: Offsets::load(self)?,
            cells: Mutex::default(),
        };
        let groups = Arc::clone(self.groups.get_or_init(|| Arc::new(groups)));
        groups.forget_gone_topics(self);
        Ok(groups)
    }

    /// The groups, if their offsets are in `partition`: they are told of the markers there.
    ///
    /// # Errors
    /// As for [`Shared::groups`].
    pub(super) fn groups_in(
        self: &Arc<Self>,
        partition: &TopicPartition,
    ) -> Result<Option<Arc<Groups>>> {
        if partition.topic() == GROUP_TOPIC { self.groups().map(Some) } else { Ok(None) }
    }

    /// Topics have come, grown or gone: groups are assigned anew.
    pub(super) fn topics_changed(self: &Arc<Self>) {
        if let Some(groups) = self.groups.get() {
            groups.on_topics_changed(self);
        }
    }

    /// A topic is gone, and with it what groups have committed for it.
    pub(super) fn forget_offsets_of(self: &Arc<Self>, topic: TopicId) {
        // Those of a store that has not used its groups yet do no harm, and go when it does: an id is never given again.
        if let Some(groups) = self.groups.get() {
            groups.forget_topic(self, topic);
        }
    }

    /// Forgets offsets that have not been needed for as long as the store keeps them.
    pub(super) fn expire_offsets(&self) {
        let (Some(retention), Some(groups)) = (self.options.offsets_retention, self.groups.get())
        else {
            return;
        };
        if let Some(shared) = groups.shared.upgrade() {
            groups.expire(&shared, retention);
        }
    }

    fn topic_views(&self) -> Vec<TopicView> {
        let topics = self.topics.read();
        let own = topics.values().filter(|topic| !crate::config::is_internal(&topic.name));
        own.map(|topic| TopicView {
            id: topic.id,
            name: Arc::clone(&topic.name),
            partitions: u32::try_from(topic.slots.read().len()).unwrap_or(u32::MAX),
        })
        .collect()
    }

    fn partition_id(&self, partition: &TopicPartition) -> Result<PartitionId> {
        let topic = self.topic(partition.topic())?;
        partition_of(&topic, partition)
    }

    /// Offsets with the partitions that they are of. Those of a topic that the committer reads and that is gone are left
    /// out, as they would be gone had they been committed before it; whatever has its name now.
    ///
    /// # Errors
    /// [`Error::UnknownTopicOrPartition`].
    pub(crate) fn placed_offsets(
        &self,
        metadata: &ConsumerGroupMetadata,
        offsets: &[(TopicPartition, CommittedOffset)],
    ) -> Result<Vec<PlacedOffset>> {
        let mut placed = Vec::with_capacity(offsets.len());
        for (name, committed) in offsets {
            let read = metadata.topics.get(name.topic());
            match (self.topic(name.topic()), read) {
                (Ok(topic), Some(read)) if topic.id != *read => {}
                (Err(Error::UnknownTopicOrPartition { .. }), Some(_)) => {}
                (topic, _) => {
                    let topic = topic?;
                    placed.push((partition_of(&topic, name)?, name.clone(), committed.clone()));
                }
            }
        }
        Ok(placed)
    }

    /// Who has a transaction that ends in the table of offsets itself. What a crash leaves of it is aborted, for no id knows it.
    fn own_author(self: &Arc<Self>) -> Result<Author> {
        // They look after what is left open.
        self.transactions()?;
        let (id, epoch) = (self.new_producer_id(false)?, ProducerEpoch(0));
        Ok(Author {
            producer: ProducerSequence { id, epoch, sequence: 0 },
            transactional: true,
            strict: true,
            numbering: Numbering::Restarts,
            compression: None,
        })
    }

    /// Groups count time from the store's opening: it never jumps.
    fn group_time(&self) -> Timestamp {
        Timestamp(i64::try_from(self.clock.elapsed().as_millis()).unwrap_or(i64::MAX))
    }
}

impl Store {
    /// Makes a handle a member of a group.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for a name, an instance id or an assignor that does not fit.
    pub(crate) fn join_group(&self, join: JoinGroup) -> Result<Membership> {
        let shared = self.shared();
        let groups = shared.groups()?;
        groups.join(shared, join)
    }

    /// Commits for a group that has no members.
    ///
    /// # Errors
    /// [`Error::UnknownMember`] while it has.
    pub(crate) fn commit_without_members(
        &self,
        metadata: &ConsumerGroupMetadata,
        offsets: &[(TopicPartition, CommittedOffset)],
        timeout: Duration,
    ) -> Result<()> {
        match self.begin_commit_without_members(metadata, offsets)? {
            Some(ticket) => ticket.wait(timeout).map(drop),
            None => Ok(()),
        }
    }

    /// As [`Store::commit_without_members`], to be waited for later. `None`: there was nothing left to commit.
    ///
    /// # Errors
    /// As for [`Store::commit_without_members`].
    pub(crate) fn begin_commit_without_members(
        &self,
        metadata: &ConsumerGroupMetadata,
        offsets: &[(TopicPartition, CommittedOffset)],
    ) -> Result<Option<Ticket>> {
        let shared = self.shared();
        let offsets = shared.placed_offsets(metadata, offsets)?;
        if offsets.is_empty() {
            return Ok(None);
        }
        shared.groups()?.commit(shared, None, metadata, &offsets).map(Some)
    }

    /// As [`Store::committed_offsets`], without waiting; with whether each is acknowledged. `None`: a transaction is about to
    /// change it, and has `waker` woken when it has. Nothing is committed for what was deleted.
    ///
    /// # Errors
    /// What reading the table runs into.
    pub(crate) fn committed_offsets_now(
        &self,
        group: &str,
        partitions: &[PartitionId],
        waker: &Waker,
    ) -> Result<Option<Vec<Option<Held>>>> {
        let shared = self.shared();
        shared.groups()?.offsets.committed_now(shared, group, partitions, waker)
    }

    /// What the group has committed, in the order of `partitions`. Waits while a transaction is about to change it, and
    /// for what is not acknowledged.
    ///
    /// # Errors
    /// [`Error::TimedOut`], [`Error::UnknownTopicOrPartition`].
    pub(crate) fn committed_offsets(
        &self,
        group: &str,
        partitions: &[TopicPartition],
        timeout: Duration,
    ) -> Result<Vec<Option<CommittedOffset>>> {
        let shared = self.shared();
        let ids: Result<Vec<_>> =
            partitions.iter().map(|partition| shared.partition_id(partition)).collect();
        let found = shared.groups()?.offsets.committed(shared, group, &ids?, timeout)?;
        Ok(found.into_iter().map(|held| held.map(shown)).collect())
    }
}

impl Groups {
    /// The partition of their offsets.
    pub(crate) fn partition(&self) -> PartitionId {
        self.offsets.partition()
    }

    /// Offsets in pieces that are a batch each.
    pub(crate) fn pieces<'a>(
        &self,
        group: &'a ConsumerGroupMetadata,
        offsets: &'a [PlacedOffset],
    ) -> impl Iterator<Item = &'a [PlacedOffset]> {
        let name = group.group().len();
        offsets::in_pieces(offsets, move |(_, _, committed)| name + committed.metadata.len())
    }

    /// Sends offsets, a piece at a time, in the author's transaction: they count once its marker is here.
    ///
    /// # Errors
    /// As for a commit.
    pub(crate) fn send_offsets(
        &self,
        shared: &Arc<Shared>,
        author: &Author,
        metadata: &ConsumerGroupMetadata,
        offsets: &[PlacedOffset],
    ) -> Result<Ticket> {
        self.commit(shared, Some(author), metadata, offsets)
    }

    /// Appends a transaction's marker where offsets are.
    ///
    /// # Errors
    /// As for an append.
    pub(super) fn append_marker(&self, shared: &Shared, marker: &Marker) -> Result<Placed> {
        self.offsets.append_marker(shared, marker)
    }

    /// Their log has another leader.
    pub(super) fn on_other_leader(&self) {
        self.offsets.look_again();
    }

    /// Ends the waits for committed offsets, which find the store closed.
    pub(super) fn wake_waiting(&self) {
        self.offsets.wake_waiting();
    }

    fn join(self: &Arc<Self>, shared: &Arc<Shared>, join: JoinGroup) -> Result<Membership> {
        let JoinGroup { group, instance, subscription, assignor, poll_interval_max, wake, is_told } =
            join;
        let member = MemberId(MEMBERS.fetch_add(1, Ordering::Relaxed) + 1);
        let now = shared.group_time();
        let mailbox = Arc::new(Mailbox::new(now, wake, is_told));
        let assignor: Arc<dyn Assignor> = Arc::new(Caught::new(assignor)?);
        let subscription = caught(subscription);
        let join = Join { member, instance, subscription, assignor, poll_interval_max };
        self.in_group(shared, &group, |cell, state| {
            state.mailboxes.insert(member, Arc::clone(&mailbox));
            let joined = cell.tell(shared, state, Event::Join(join.clone()));
            if joined.is_err() {
                state.mailboxes.remove(&member);
            }
            let (mailbox, join) = (Arc::clone(&mailbox), join.clone());
            joined.map(|()| Membership::new(shared, self, cell, member, mailbox, join))
        })
    }

    fn commit(
        &self,
        shared: &Arc<Shared>,
        author: Option<&Author>,
        metadata: &ConsumerGroupMetadata,
        offsets: &[PlacedOffset],
    ) -> Result<Ticket> {
        let ConsumerGroupMetadata { group, member, .. } = metadata;
        let now = shared.clock.now();
        let mut records = Vec::with_capacity(offsets.len());
        let mut ids = Vec::with_capacity(offsets.len());
        for (id, partition, committed) in offsets {
            let id = *id;
            check_offset(shared, id, partition, committed)?;
            ids.push((id, partition));
            records.push(GroupRecord::Offset {
                group: group.to_string(),
                partition: id,
                committed: Some(records::CommittedOffset {
                    offset: committed.offset,
                    leader_epoch: committed.leader_epoch,
                    committed_at: now,
                    metadata: committed.metadata.clone(),
                }),
            });
        }
        // More than a batch takes goes into a transaction of its own, whoever made it: all of it is committed, or nothing.
        let own = match author {
            None if offsets::batches(&records).nth(1).is_some() => Some(shared.own_author()?),
            _ => None,
        };
        self.in_group(shared, group, |_, state| {
            match *member {
                None => {
                    state.group.check_simple_commit().map_err(|why| refused(group, why, None))?;
                }
                Some((member, generation)) => {
                    for (id, partition) in &ids {
                        let checked = state.group.check_commit(member, generation, *id);
                        checked.map_err(|why| refused(group, why, Some(partition)))?;
                    }
                }
            }
            let records = std::mem::take(&mut records);
            match &own {
                Some(own) => self.offsets.append_together(shared, own, &records),
                None => self.offsets.append(shared, author, records),
            }
        })
        .inspect(|_| {
            self.finish_rewrite_soon(shared);
            self.forget_gone(shared, offsets);
        })
    }

    /// Does something with a group, which is there from then on.
    fn in_group<T>(
        &self,
        shared: &Arc<Shared>,
        group: &Arc<str>,
        mut act: impl FnMut(&Arc<GroupCell>, &mut State) -> Result<T>,
    ) -> Result<T> {
        if !group_name_fits(group) {
            return Err(Error::InvalidConfig {
                key: "group.id".into(),
                value: group.to_string(),
                reason: format!("a group's name has 1 to {GROUP_BYTES_MAX} bytes"),
            });
        }
        loop {
            let cell = self.cell(shared, group)?;
            let _postponed = postpone();
            let mut state = cell.state.lock();
            if state.is_gone {
                continue;
            }
            let outcome = act(&cell, &mut state);
            let woken = state.woken();
            drop(state);
            woken.iter().for_each(|mailbox| mailbox.wake());
            return outcome;
        }
    }

    fn cell(&self, shared: &Arc<Shared>, group: &Arc<str>) -> Result<Arc<GroupCell>> {
        if let Some(cell) = self.cells.lock().get(group) {
            return Ok(Arc::clone(cell));
        }
        let generation = self
            .offsets
            .look(shared, |table| table.state(group).map_or(0, |state| state.generation))?;
        let mut cells = self.cells.lock();
        let cell = cells.entry(Arc::clone(group)).or_insert_with(|| {
            let groups = shared.groups.get().map(Arc::downgrade).unwrap_or_default();
            let group_state = Group::new(generation, Duration::ZERO, shared.topic_views());
            Arc::new(GroupCell {
                name: Arc::clone(group),
                groups,
                due: AtomicI64::new(NEVER),
                state: Mutex::new(State {
                    group: group_state,
                    mailboxes: HashMap::new(),
                    posted: Vec::new(),
                    is_gone: false,
                }),
            })
        });
        Ok(Arc::clone(cell))
    }

    fn on_topics_changed(&self, shared: &Arc<Shared>) {
        let cells: Vec<_> = self.cells.lock().values().cloned().collect();
        for cell in cells {
            // Under the group's lock: of two changes at a time, the one that is told last has seen both.
            let change = |_: &State| Some(Event::TopicsChanged { topics: shared.topic_views() });
            // What nobody is told of is an assignor's failure, which is an event.
            let _ = cell.act_on(shared, change);
        }
    }

    fn finish_rewrite_soon(&self, shared: &Arc<Shared>) {
        if self.offsets.has_rewritten()
            && let Some(groups) = shared.groups.get()
        {
            let chore: Weak<dyn Chore> = Arc::downgrade(groups) as Weak<dyn Chore>;
            shared.chores.push(chore);
        }
    }
}

impl Chore for Groups {
    fn run(self: Arc<Self>) {
        if let Some(shared) = self.shared.upgrade() {
            self.offsets.finish_rewrite(&shared);
        }
    }
}

impl GroupCell {
    /// Tells the group, and wakes whom it concerns.
    fn act(self: &Arc<Self>, shared: &Arc<Shared>, event: Event) -> Result<()> {
        self.act_on(shared, |_| Some(event))
    }

    /// A member wants to read other topics. One that was put out would be a place that nobody fills: it learns from its
    /// mailbox what became of it, and may join again then.
    fn rejoin(self: &Arc<Self>, shared: &Arc<Shared>, join: Join) -> Result<()> {
        self.act_on(shared, |state| {
            state.mailboxes.contains_key(&join.member).then_some(Event::Join(join))
        })
    }

    /// As [`GroupCell::act`], for an event that is made under the group's lock, if there is one.
    fn act_on(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        event: impl FnOnce(&State) -> Option<Event>,
    ) -> Result<()> {
        let _postponed = postpone();
        let mut state = self.state.lock();
        let Some(event) = event(&state) else { return Ok(()) };
        let outcome = self.tell(shared, &mut state, event);
        let woken = state.woken();
        drop(state);
        woken.iter().for_each(|mailbox| mailbox.wake());
        outcome
    }

    /// Tells the group, and puts what follows into the mailboxes.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if it refuses a member.
    fn tell(self: &Arc<Self>, shared: &Arc<Shared>, state: &mut State, event: Event) -> Result<()> {
        let was_empty = state.group.is_empty();
        let effects = state.group.step(shared.group_time(), event);
        let mut outcome = Ok(());
        for effect in effects {
            match effect {
                Effect::Revoke { member, partitions } => {
                    state.post(member, News::Revoke(partitions));
                }
                Effect::Assign { member, generation, added } => {
                    state.post(member, News::Assign { generation, added });
                }
                Effect::Fenced { member, reason } => {
                    state.post(member, News::Fenced(reason));
                    state.mailboxes.remove(&member);
                }
                Effect::Refused { reason, .. } => outcome = Err(unfit(&reason)),
                Effect::AssignorFailed { fault } => {
                    let reason = format!("the assignor of group {}: {fault}", self.name);
                    let kind = EventKind::BackgroundFailed { partition: None, reason };
                    shared.events.push(shared.clock.now(), kind);
                }
            }
        }
        if state.group.is_empty() != was_empty {
            self.note(shared, state);
        }
        self.watch(shared, state);
        outcome
    }

    /// Puts down that the group has its first member, or has lost its last.
    fn note(&self, shared: &Arc<Shared>, state: &State) {
        let Some(groups) = self.groups.upgrade() else { return };
        let group = &state.group;
        let noted = GroupState {
            generation: group.generation(),
            empty_since: group.is_empty().then(|| shared.clock.now()),
            assignor: group.assignor().unwrap_or_default().to_owned(),
        };
        let record = GroupRecord::Group { group: self.name.to_string(), state: Some(noted) };
        if let Err(error) = groups.offsets.append(shared, None, vec![record]) {
            report(shared, "noting the state of a group", &error);
        }
    }

    /// Has the watchdog come when somebody could be due.
    fn watch(self: &Arc<Self>, shared: &Arc<Shared>, state: &State) {
        let Some(due) = state.group.next_deadline() else { return };
        if due.0 < self.due.load(Ordering::Relaxed) {
            self.due.store(due.0, Ordering::Relaxed);
            let at = Duration::from_millis(u64::try_from(due.0).unwrap_or_default());
            let chore: Weak<dyn Chore> = Arc::downgrade(self) as Weak<dyn Chore>;
            shared.chores.push_at(at, chore);
        }
    }
}

impl GroupCell {
    /// For a member that polls: chores may be held up by an application's callback, and so would be who waits for what
    /// another member has.
    #[cold]
    fn look_after(self: &Arc<Self>, shared: &Arc<Shared>) {
        let _postponed = postpone();
        if let Some(state) = self.state.try_lock() {
            self.fence_late(shared, state);
        }
    }

    /// The watchdog: fences members that have not polled for too long.
    fn fence_late(self: &Arc<Self>, shared: &Arc<Shared>, mut state: MutexGuard<'_, State>) {
        let now = shared.group_time();
        if now.0 < self.due.load(Ordering::Relaxed) {
            return; // somebody else came first
        }
        self.due.store(NEVER, Ordering::Relaxed);
        let polled: Vec<_> = state
            .mailboxes
            .iter()
            .filter_map(|(member, mailbox)| Some((*member, mailbox.take_polled(now)?)))
            .collect();
        for (member, at) in polled {
            // A poll has no effects.
            let _ = state.group.step(now, Event::Polled { member, at });
        }
        let outcome = self.tell(shared, &mut state, Event::Tick);
        debug_assert!(outcome.is_ok(), "time refuses nobody");
        let woken = state.woken();
        drop(state);
        woken.iter().for_each(|mailbox| mailbox.wake());
    }
}

impl Chore for GroupCell {
    fn run(self: Arc<Self>) {
        let shared = self.groups.upgrade().and_then(|groups| groups.shared.upgrade());
        let Some(shared) = shared else { return };
        let _postponed = postpone();
        self.fence_late(&shared, self.state.lock());
    }
}

impl State {
    fn post(&mut self, member: MemberId, news: News) {
        if let Some(mailbox) = self.mailboxes.get(&member) {
            mailbox.post(news);
            self.posted.push(Arc::clone(mailbox));
        }
    }

    /// Those to be woken, once.
    fn woken(&mut self) -> Vec<Arc<Mailbox>> {
        std::mem::take(&mut self.posted)
    }
}

/// An application's assignor: a panic in it is an answer that cannot be used.
struct Caught {
    name: String,
    cooperative: bool,
    inner: Arc<dyn Assignor>,
}

impl Caught {
    fn new(inner: Arc<dyn Assignor>) -> Result<Self> {
        let asked = guard(|| (inner.name().to_owned(), inner.is_cooperative()));
        let Some((name, cooperative)) = asked else {
            return Err(Error::InvalidConfig {
                key: "partition.assignment.strategy".into(),
                value: String::new(),
                reason: "the assignor panicked when it was asked for its name".into(),
            });
        };
        Ok(Self { name, cooperative, inner })
    }
}

impl Assignor for Caught {
    fn name(&self) -> &str {
        &self.name
    }

    fn is_cooperative(&self) -> bool {
        self.cooperative
    }

    fn assign(&self, situation: &Situation) -> Vec<(PartitionId, MemberId)> {
        guard(|| self.inner.assign(situation)).unwrap_or_default()
    }
}

/// A topic at which an application's pattern panics does not match it.
fn caught(subscription: Subscription) -> Subscription {
    let Subscription::Matching(passes) = subscription else { return subscription };
    Subscription::Matching(Arc::new(move |topic: &str| guard(|| passes(topic)).unwrap_or(false)))
}

fn partition_of(topic: &Topic, partition: &TopicPartition) -> Result<PartitionId> {
    if partition.partition() as usize >= topic.slots.read().len() {
        return Err(Error::UnknownTopicOrPartition { partition: partition.clone() });
    }
    Ok(PartitionId { topic: topic.id, partition: partition.partition() })
}

fn taken_back(group: &str, partition: PartitionId) -> GroupRecord {
    GroupRecord::Offset { group: group.to_owned(), partition, committed: None }
}

fn shown(held: records::CommittedOffset) -> CommittedOffset {
    let records::CommittedOffset { offset, leader_epoch, metadata, .. } = held;
    CommittedOffset { offset, leader_epoch, metadata }
}

/// # Errors
/// [`Error::OffsetOutOfRange`] behind the end of the log: nobody can have read that far (GRP-05).
fn check_offset(
    shared: &Shared,
    id: PartitionId,
    partition: &TopicPartition,
    committed: &CommittedOffset,
) -> Result<()> {
    if !metadata_fits(&committed.metadata) {
        return Err(Error::InvalidConfig {
            key: "offset.metadata.max.bytes".into(),
            value: committed.metadata.chars().count().to_string(),
            reason: format!("{METADATA_CHARS_MAX} characters at most beside an offset"),
        });
    }
    let Some(core) = shared.core_of(id)? else {
        return Err(Error::UnknownTopicOrPartition { partition: partition.clone() });
    };
    let (start, end) = (core.log_start(), core.log_end());
    if committed.offset > end {
        let (partition, offset) = (partition.clone(), committed.offset);
        return Err(Error::OffsetOutOfRange { partition, offset, start, end });
    }
    Ok(())
}

fn refused(group: &str, refusal: CommitRefusal, partition: Option<&TopicPartition>) -> Error {
    let (name, reason) = (group.to_owned(), refusal.to_string());
    match (refusal, partition) {
        (CommitRefusal::IllegalGeneration { given, current }, _) => {
            Error::IllegalGeneration { group: name, given, current }
        }
        (CommitRefusal::RebalanceInProgress, _) => Error::RebalanceInProgress { group: name },
        (CommitRefusal::NotOwner, Some(partition)) => {
            Error::NotAssigned { partition: partition.clone() }
        }
        _ => Error::UnknownMember { group: name, reason },
    }
}

fn unfit(refusal: &JoinRefusal) -> Error {
    let reason = refusal.to_string();
    let (key, value) = match refusal {
        JoinRefusal::OtherAssignor { given, .. } => {
            ("partition.assignment.strategy", given.clone())
        }
        JoinRefusal::BadAssignor => ("partition.assignment.strategy", String::new()),
        JoinRefusal::BadInstance => ("group.instance.id", String::new()),
        JoinRefusal::Full => ("group.max.size", String::new()),
    };
    Error::InvalidConfig { key: key.into(), value, reason }
}
