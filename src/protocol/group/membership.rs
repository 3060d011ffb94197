//! A consumer group: who its members are, and which partition each of them reads.
//!
//! Events go in, effects come out; the time is an argument, from a clock that does not jump. The group
//! knows two maps: the *target*, which the assignor answered last, and the *holds*, what members really
//! have. A change of members, subscriptions or topics makes a new target, and the holds follow it: what
//! has to leave is revoked, and given to its next owner once the member has confirmed that it has stopped
//! (KIP-848's reconciliation, GRP-50). With an assignor that is not cooperative, everybody puts down
//! everything first, and the target is made when all have (GRP-46).
//!
//! ```text
//!            given to a member              has to leave
//!   free ----------------------> held ----------------------> revoking
//!    ^                            |                               |
//!    +----------------------------+-------------------------------+
//!      its member leaves, is fenced, or confirms that it has stopped
//! ```
//!
//! A member that does not poll, or does not confirm, for as long as its `poll_interval_max` allows is
//! *fenced*: its partitions are free at once, and its later commits are refused (GRP-44). A member with an
//! instance id that drops its handle keeps its place that long; a new handle with the same id takes the
//! place over, and fences the old handle if there still is one (GRP-45).
//!
//! A commit counts the generation from which on the member has held the partition without a break. So a
//! rebalance that does not touch a partition does not fence its commits either (KIP-1251's idea).
//!
//! Leaves to others: carrying effects to each member in order, matching of names by patterns, calling back
//! the application, and its panics.
//!
//! Invariants:
//! 1. A partition has at most one owner (INV-12): `holds` is a map.
//! 2. Who holds is a member; what is held and not being revoked is held as the target says.
//! 3. When nothing is being revoked or gathered, the holds are the target.
//! 4. Generations only rise; a member's is at most the group's, a hold's at most its member's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::types::{Timestamp, TopicId};

use super::assignment::{
    Assignment, AssignmentFault, Assignor, MemberId, MemberView, PartitionId, Situation, TopicView,
    checked,
};
use super::assignors::Sticky;
use super::records::ASSIGNOR_BYTES_MAX;

/// Members are handles in one process; more than this is a leak.
pub(crate) const MEMBERS_MAX: usize = 10_000;
const INSTANCE_BYTES_MAX: usize = 249;

/// What a member wants to read.
#[derive(Clone)]
pub(crate) enum Subscription {
    Names(BTreeSet<Arc<str>>),
    /// Every topic whose name passes; asked again whenever topics change.
    Matching(Arc<dyn Fn(&str) -> bool + Send + Sync>),
}

impl Subscription {
    fn wants(&self, topic: &str) -> bool {
        match self {
            Self::Names(names) => names.contains(topic),
            Self::Matching(passes) => passes(topic),
        }
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Names(names) => formatter.debug_set().entries(names).finish(),
            Self::Matching(_) => formatter.write_str("Matching"),
        }
    }
}

/// A handle that wants to be a member, or a member that wants to read other topics.
#[derive(Clone, Debug)]
pub(crate) struct Join {
    pub(crate) member: MemberId,
    /// Kafka's `group.instance.id`: the place is this one's, whichever handle fills it.
    pub(crate) instance: Option<Arc<str>>,
    pub(crate) subscription: Subscription,
    pub(crate) assignor: Arc<dyn Assignor>,
    /// Kafka's `max.poll.interval.ms`.
    pub(crate) poll_interval_max: Duration,
}

/// What happens to a group. An event of a member that is not in the group (any more) changes nothing.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Join(Join),
    /// The handle was dropped. A member with an instance id keeps its place for a while.
    Leave {
        member: MemberId,
    },
    /// It is to be a member no longer, whether it has an instance id or not.
    Remove {
        member: MemberId,
    },
    /// It polled at that time, which may be a while ago.
    Polled {
        member: MemberId,
        at: Timestamp,
    },
    /// The member has stopped with these, which it was asked for by [`Effect::Revoke`].
    Revoked {
        member: MemberId,
        partitions: Vec<PartitionId>,
    },
    /// All topics of the store, as they are now.
    TopicsChanged {
        topics: Vec<TopicView>,
    },
    /// Nothing but time has passed; due at [`Group::next_deadline`].
    Tick,
}

/// What follows. Effects for one member are to reach it in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Stop with these, then confirm by [`Event::Revoked`].
    Revoke { member: MemberId, partitions: Vec<PartitionId> },
    /// These in addition to what it holds; the generation is the member's from now on.
    Assign { member: MemberId, generation: u64, added: Vec<PartitionId> },
    /// It has lost all that it held, without having been asked (GRP-48).
    Fenced { member: MemberId, reason: FenceReason },
    /// It is no member, or keeps the subscription that it had.
    Refused { member: MemberId, reason: JoinRefusal },
    /// The application's assignor gave an answer that cannot be used; sticky stood in for it.
    AssignorFailed { fault: AssignmentFault },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FenceReason {
    /// It has not polled for longer than its `max.poll.interval.ms`.
    StoppedPolling,
    /// It polls, and has not confirmed a revocation for as long.
    KeptRevoked,
    /// Another handle with the same instance id has taken over.
    Replaced,
    /// It was removed on request.
    Removed,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JoinRefusal {
    #[error("the group uses the assignor {current}, the member {given}")]
    OtherAssignor { given: String, current: String },
    #[error("the group has {MEMBERS_MAX} members")]
    Full,
    #[error("the instance id is empty or too long")]
    BadInstance,
    #[error("the assignor's name is empty or too long")]
    BadAssignor,
}

/// Why a commit does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CommitRefusal {
    /// It left, was fenced, or never was a member (GRP-02, GRP-03).
    #[error("not a member of the group")]
    UnknownMember,
    /// Another handle with its instance id has taken over (GRP-02).
    #[error("another handle has taken over the instance id")]
    FencedInstance,
    #[error("generation {given}, now at {current}")]
    IllegalGeneration { given: u64, current: u64 },
    /// The partition is on its way; poll, then retry (GRP-04).
    #[error("the group is being rebalanced")]
    RebalanceInProgress,
    #[error("the partition is not the member's")]
    NotOwner,
}

/// A member, for those who look from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemberReport {
    pub(crate) member: MemberId,
    pub(crate) instance: Option<Arc<str>>,
    pub(crate) generation: u64,
    /// False: its place is kept for a handle that has not come yet.
    pub(crate) present: bool,
    pub(crate) topics: Vec<TopicId>,
    pub(crate) holds: Vec<PartitionId>,
}

#[derive(Clone, Debug)]
struct Member {
    instance: Option<Arc<str>>,
    subscription: Subscription,
    /// What the subscription comes to among the topics that there are.
    topics: BTreeSet<TopicId>,
    poll_interval_max: Duration,
    /// When it last polled; without a handle, when that was dropped.
    polled_at: Timestamp,
    /// How many of its partitions are being revoked.
    revoking: usize,
    /// When it was last asked to stop with something or did so, while anything is being revoked.
    revoking_since: Timestamp,
    generation: u64,
    present: bool,
    /// The handle whose place it took over.
    replaced: Option<MemberId>,
}

impl Member {
    /// When it is to be fenced, unless it is heard from, and why.
    fn deadline(&self) -> (Timestamp, FenceReason) {
        let poll = (self.polled_at.plus(self.poll_interval_max), FenceReason::StoppedPolling);
        let stop = (self.revoking_since.plus(self.poll_interval_max), FenceReason::KeptRevoked);
        if self.revoking > 0 && stop.0 < poll.0 { stop } else { poll }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hold {
    member: MemberId,
    /// The generation in which the member was given it.
    since: u64,
    revoking: bool,
}

/// The first members of an empty group are waited for, for a while (GRP-41).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gathering {
    until: Timestamp,
    at_most_until: Timestamp,
}

/// One consumer group.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// How long an empty group waits for company (Kafka's `group.initial.rebalance.delay.ms`).
    initial_delay: Duration,
    now: Timestamp,
    generation: u64,
    topics: BTreeMap<TopicId, TopicView>,
    members: BTreeMap<MemberId, Member>,
    /// The members' common one; `None` while there are none.
    assignor: Option<Arc<dyn Assignor>>,
    target: Assignment,
    holds: BTreeMap<PartitionId, Hold>,
    gathering: Option<Gathering>,
    /// Everybody puts down everything; nobody takes up anything yet.
    clearing: bool,
}

impl Group {
    /// A group without members. `generation` is the last one that was recorded of it, 0 for a new group.
    pub(crate) fn new(generation: u64, initial_delay: Duration, topics: Vec<TopicView>) -> Self {
        Self {
            initial_delay,
            now: Timestamp::MIN,
            generation,
            topics: by_id(topics),
            members: BTreeMap::new(),
            assignor: None,
            target: Assignment::new(),
            holds: BTreeMap::new(),
            gathering: None,
            clearing: false,
        }
    }

    /// The same group and the same event always give the same effects. A time before an earlier one counts
    /// as that one.
    pub(crate) fn step(&mut self, now: Timestamp, event: Event) -> Vec<Effect> {
        self.now = self.now.max(now);
        let generation = self.generation;
        let mut effects = Vec::new();
        match event {
            Event::Join(join) => self.on_join(join, &mut effects),
            Event::Leave { member } => self.on_leave(member, &mut effects),
            Event::Remove { member } => {
                self.fence(&[(member, FenceReason::Removed)], &mut effects);
            }
            Event::Polled { member, at } => {
                if let Some(member) = self.members.get_mut(&member).filter(|one| one.present) {
                    member.polled_at = member.polled_at.max(at.min(self.now));
                }
            }
            Event::Revoked { member, partitions } => {
                self.on_revoked(member, &partitions, &mut effects);
            }
            Event::TopicsChanged { topics } => self.on_topics_changed(topics, &mut effects),
            Event::Tick => self.on_tick(&mut effects),
        }
        assert!(generation <= self.generation, "a generation is never given twice");
        debug_assert!(self.is_sound(), "{self:?}");
        effects
    }

    /// Whether `member`, in the generation that it was told last, may commit for `partition`.
    ///
    /// # Errors
    /// Why not; nothing may be committed then.
    pub(crate) fn check_commit(
        &self,
        member: MemberId,
        generation: u64,
        partition: PartitionId,
    ) -> Result<(), CommitRefusal> {
        let Some(view) = self.members.get(&member).filter(|view| view.present) else {
            let replaced = self.members.values().any(|other| other.replaced == Some(member));
            let refusal =
                if replaced { CommitRefusal::FencedInstance } else { CommitRefusal::UnknownMember };
            return Err(refusal);
        };
        let illegal =
            CommitRefusal::IllegalGeneration { given: generation, current: view.generation };
        match self.holds.get(&partition).filter(|hold| hold.member == member) {
            Some(hold) if (hold.since..=view.generation).contains(&generation) => Ok(()),
            Some(_) => Err(illegal),
            None if generation != view.generation => Err(illegal),
            None if self.is_coming(member, partition) => Err(CommitRefusal::RebalanceInProgress),
            None => Err(CommitRefusal::NotOwner),
        }
    }

    /// Whether one who is no member may commit: only while nobody is (GRP-01, GRP-03).
    ///
    /// # Errors
    /// [`CommitRefusal::UnknownMember`].
    pub(crate) fn check_simple_commit(&self) -> Result<(), CommitRefusal> {
        if self.members.is_empty() { Ok(()) } else { Err(CommitRefusal::UnknownMember) }
    }

    /// When [`Event::Tick`] is due next, if nothing else happens.
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        let members = self.members.values().map(|member| member.deadline().0);
        members.chain(self.gathering.map(|gathering| gathering.until)).min()
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The members' assignor, by name.
    pub(crate) fn assignor(&self) -> Option<&str> {
        self.assignor.as_deref().map(Assignor::name)
    }

    pub(crate) fn is_rebalancing(&self) -> bool {
        let revoking = || self.members.values().any(|member| member.revoking > 0);
        self.clearing || self.gathering.is_some() || revoking()
    }

    /// Whether a member is subscribed: then its offsets are neither deleted nor do they expire (GRP-08).
    pub(crate) fn is_subscribed(&self, topic: TopicId) -> bool {
        self.members.values().any(|member| member.topics.contains(&topic))
    }

    pub(crate) fn members(&self) -> Vec<MemberReport> {
        let mut reports: BTreeMap<MemberId, MemberReport> = BTreeMap::new();
        for (id, member) in &self.members {
            let report = MemberReport {
                member: *id,
                instance: member.instance.clone(),
                generation: member.generation,
                present: member.present,
                topics: member.topics.iter().copied().collect(),
                holds: Vec::new(),
            };
            reports.insert(*id, report);
        }
        for (partition, hold) in &self.holds {
            let report = reports.get_mut(&hold.member).expect("who holds is a member");
            report.holds.push(*partition);
        }
        reports.into_values().collect()
    }

    fn on_join(&mut self, join: Join, effects: &mut Vec<Effect>) {
        let place = join.instance.as_ref().and_then(|instance| self.find_instance(instance));
        if let Some(reason) = self.refusal(&join, place) {
            effects.push(Effect::Refused { member: join.member, reason });
            return;
        }
        let first = self.members.is_empty();
        let same_assignor = self.assignor() == Some(join.assignor.name());
        let topics = self.resolve(&join.subscription);
        self.assignor = Some(join.assignor);
        if let Some(member) = self.members.get_mut(&join.member).filter(|one| one.present) {
            member.polled_at = self.now;
            member.poll_interval_max = join.poll_interval_max;
            member.subscription = join.subscription;
            let changed = std::mem::replace(&mut member.topics, topics);
            if changed != self.members[&join.member].topics || !same_assignor {
                self.rebalance(effects);
            }
            return;
        }
        let member = Member {
            instance: join.instance,
            subscription: join.subscription,
            topics,
            poll_interval_max: join.poll_interval_max,
            polled_at: self.now,
            revoking: 0,
            revoking_since: self.now,
            generation: self.generation,
            present: true,
            replaced: place,
        };
        if let Some(place) = place {
            self.take_over(join.member, member, place, same_assignor, effects);
            return;
        }
        self.gather(first, join.poll_interval_max);
        self.members.insert(join.member, member);
        self.rebalance(effects);
    }

    fn refusal(&self, join: &Join, place: Option<MemberId>) -> Option<JoinRefusal> {
        let given = join.assignor.name();
        if given.is_empty() || given.len() > ASSIGNOR_BYTES_MAX {
            return Some(JoinRefusal::BadAssignor);
        }
        let fits = |instance: &Arc<str>| (1..=INSTANCE_BYTES_MAX).contains(&instance.len());
        if !join.instance.as_ref().is_none_or(fits) {
            return Some(JoinRefusal::BadInstance);
        }
        let mut others = self.members.keys();
        let alone = others.all(|other| *other == join.member || Some(*other) == place);
        if let Some(current) = self.assignor().filter(|current| *current != given && !alone) {
            let (given, current) = (given.to_owned(), current.to_owned());
            return Some(JoinRefusal::OtherAssignor { given, current });
        }
        let known = place.is_some() || self.members.contains_key(&join.member);
        (self.members.len() >= MEMBERS_MAX && !known).then_some(JoinRefusal::Full)
    }

    /// The first member of a group is kept waiting for others, and each one that comes prolongs it.
    fn gather(&mut self, first: bool, at_most: Duration) {
        if first && !self.initial_delay.is_zero() {
            let at_most_until = self.now.plus(at_most);
            self.gathering = Some(Gathering { until: self.now, at_most_until });
        }
        if let Some(gathering) = &mut self.gathering {
            gathering.until = self.now.plus(self.initial_delay).min(gathering.at_most_until);
        }
    }

    /// `member` takes the place of `old`, with all that it holds and is promised (GRP-45).
    fn take_over(
        &mut self,
        id: MemberId,
        member: Member,
        old: MemberId,
        same_assignor: bool,
        effects: &mut Vec<Effect>,
    ) {
        let before = self.members.remove(&old).expect("the place was found among the members");
        if before.present {
            effects.push(Effect::Fenced { member: old, reason: FenceReason::Replaced });
        }
        // Nobody works on what the old handle was to stop with.
        self.holds.retain(|_, hold| !(hold.member == old && hold.revoking));
        for hold in self.holds.values_mut().filter(|hold| hold.member == old) {
            hold.member = id;
        }
        for owner in self.target.values_mut().filter(|owner| **owner == old) {
            *owner = id;
        }
        let stays = before.topics == member.topics && same_assignor;
        let (generation, holds) = (member.generation, &self.holds);
        let own = holds.iter().filter(|(_, hold)| hold.member == id);
        let added: Vec<PartitionId> = own.map(|(partition, _)| *partition).collect();
        self.members.insert(id, member);
        // Told even if there is nothing: it is the member's generation.
        effects.push(Effect::Assign { member: id, generation, added });
        if stays {
            self.follow_up(effects);
        } else {
            self.rebalance(effects);
        }
    }

    fn on_leave(&mut self, member: MemberId, effects: &mut Vec<Effect>) {
        let Some(view) = self.members.get_mut(&member) else {
            return;
        };
        if view.instance.is_none() {
            self.remove(member);
            self.rebalance(effects);
        } else if view.present {
            view.present = false;
            view.polled_at = self.now;
            view.revoking = 0;
            self.holds.retain(|_, hold| !(hold.member == member && hold.revoking));
            self.follow_up(effects);
        }
    }

    fn on_revoked(
        &mut self,
        member: MemberId,
        partitions: &[PartitionId],
        effects: &mut Vec<Effect>,
    ) {
        let Some(view) = self.members.get_mut(&member) else {
            return;
        };
        let before = view.revoking;
        for partition in partitions {
            let hold = self.holds.get(partition);
            if hold.is_some_and(|hold| hold.member == member && hold.revoking) {
                self.holds.remove(partition);
                view.revoking -= 1;
            }
        }
        if view.revoking < before {
            view.revoking_since = self.now;
            if self.clearing {
                self.follow_up(effects);
            } else {
                self.give(partitions.iter().copied(), effects);
            }
        }
    }

    fn on_topics_changed(&mut self, topics: Vec<TopicView>, effects: &mut Vec<Effect>) {
        let before = std::mem::replace(&mut self.topics, by_id(topics));
        let mut changed = false;
        for id in self.members.keys().copied().collect::<Vec<_>>() {
            let topics = self.resolve(&self.members[&id].subscription);
            let member = self.members.get_mut(&id).expect("it was just listed");
            changed |= topics != member.topics;
            let count = |view: Option<&TopicView>| view.map(|topic| topic.partitions);
            changed |= topics.iter().any(|id| count(before.get(id)) != count(self.topics.get(id)));
            member.topics = topics;
        }
        if changed {
            self.rebalance(effects);
        }
    }

    fn on_tick(&mut self, effects: &mut Vec<Effect>) {
        let now = self.now;
        let gathered = self.gathering.is_some_and(|gathering| gathering.until <= now);
        if gathered {
            self.gathering = None;
        }
        let due = self.members.iter().map(|(id, member)| (*id, member.deadline()));
        let late: Vec<(MemberId, FenceReason)> =
            due.filter(|(_, (at, _))| *at <= now).map(|(id, (_, reason))| (id, reason)).collect();
        if !late.is_empty() {
            self.fence(&late, effects);
        } else if gathered {
            self.rebalance(effects);
        }
    }

    /// Takes members out, tells those that are there, and rebalances once for all of them.
    fn fence(&mut self, members: &[(MemberId, FenceReason)], effects: &mut Vec<Effect>) {
        let mut removed = false;
        for (id, reason) in members.iter().copied() {
            if let Some(member) = self.remove(id) {
                removed = true;
                if member.present {
                    effects.push(Effect::Fenced { member: id, reason });
                }
            }
        }
        if removed {
            self.rebalance(effects);
        }
    }

    fn remove(&mut self, member: MemberId) -> Option<Member> {
        let removed = self.members.remove(&member)?;
        self.holds.retain(|_, hold| hold.member != member);
        Some(removed)
    }

    /// Something has changed that the target depends on.
    fn rebalance(&mut self, effects: &mut Vec<Effect>) {
        let Some(assignor) = self.assignor.clone().filter(|_| !self.members.is_empty()) else {
            self.next_generation();
            (self.assignor, self.gathering, self.clearing) = (None, None, false);
            self.target.clear();
            return;
        };
        if self.gathering.is_some() {
            return;
        }
        if assignor.is_cooperative() {
            self.clearing = false;
            self.next_generation();
            self.retarget(&*assignor, effects);
            let target = std::mem::take(&mut self.target);
            self.revoke(|partition, hold| target.get(partition) != Some(&hold.member), effects);
            self.target = target;
            self.begin_generation(effects);
        } else {
            self.clearing = true;
            self.revoke(|_, _| true, effects);
            self.follow_up(effects);
        }
    }

    /// Holds have been set free: those whose turn it is get them.
    fn follow_up(&mut self, effects: &mut Vec<Effect>) {
        if self.clearing {
            if self.holds.is_empty() {
                let assignor = self.assignor.clone().expect("somebody is a member");
                self.clearing = false;
                self.next_generation();
                self.retarget(&*assignor, effects);
                self.begin_generation(effects);
            }
        } else {
            let held = |partition: &PartitionId| self.holds.contains_key(partition);
            let free: Vec<_> = self.target.keys().filter(|at| !held(at)).copied().collect();
            self.give(free.into_iter(), effects);
        }
    }

    fn next_generation(&mut self) {
        let next = self.generation.checked_add(1);
        self.generation = next.expect("2^64 rebalances at 10^6 a second take 584,000 years");
    }

    fn retarget(&mut self, assignor: &dyn Assignor, effects: &mut Vec<Effect>) {
        let situation = self.situation();
        self.target = checked(&situation, assignor.assign(&situation)).unwrap_or_else(|fault| {
            effects.push(Effect::AssignorFailed { fault });
            let stand_in = Sticky { cooperative: assignor.is_cooperative() };
            checked(&situation, stand_in.assign(&situation)).expect("sticky serves every situation")
        });
    }

    fn situation(&self) -> Situation {
        let mut owned: BTreeMap<MemberId, Vec<PartitionId>> = BTreeMap::new();
        for (partition, member) in &self.target {
            owned.entry(*member).or_default().push(*partition);
        }
        let members = self.members.iter().map(|(id, member)| MemberView {
            id: *id,
            instance: member.instance.clone(),
            topics: member.topics.iter().copied().collect(),
            owned: owned.remove(id).unwrap_or_default(),
        });
        let members: Vec<MemberView> = members.collect();
        let wanted: BTreeSet<TopicId> =
            self.members.values().flat_map(|member| &member.topics).copied().collect();
        let topics = wanted.iter().map(|id| self.topics[id].clone()).collect();
        Situation::new(topics, members)
    }

    /// Asks members to stop with those of their holds that `leaves` names. A place without a handle has
    /// stopped already.
    fn revoke(&mut self, leaves: impl Fn(&PartitionId, &Hold) -> bool, effects: &mut Vec<Effect>) {
        let mut asked: BTreeMap<MemberId, Vec<PartitionId>> = BTreeMap::new();
        let members = &self.members;
        self.holds.retain(|partition, hold| {
            if hold.revoking || !leaves(partition, hold) {
                return true;
            }
            hold.revoking = true;
            let present = members[&hold.member].present;
            if present {
                asked.entry(hold.member).or_default().push(*partition);
            }
            present
        });
        for (id, partitions) in asked {
            let member = self.members.get_mut(&id).expect("who holds is a member");
            if member.revoking == 0 {
                member.revoking_since = self.now;
            }
            member.revoking += partitions.len();
            effects.push(Effect::Revoke { member: id, partitions });
        }
    }

    /// Every member enters the group's generation, with what is free of what it is to have.
    fn begin_generation(&mut self, effects: &mut Vec<Effect>) {
        for member in self.members.values_mut() {
            member.generation = self.generation;
        }
        let mut added: BTreeMap<MemberId, Vec<PartitionId>> =
            self.members.keys().map(|member| (*member, Vec::new())).collect();
        let free = self.target.keys().copied().collect::<Vec<_>>();
        self.take_up(free.into_iter(), &mut added);
        self.tell(added, effects);
    }

    /// Those of `partitions` that are free go to whom the target names.
    fn give(&mut self, partitions: impl Iterator<Item = PartitionId>, effects: &mut Vec<Effect>) {
        let mut added = BTreeMap::new();
        self.take_up(partitions, &mut added);
        self.tell(added, effects);
    }

    fn take_up(
        &mut self,
        partitions: impl Iterator<Item = PartitionId>,
        added: &mut BTreeMap<MemberId, Vec<PartitionId>>,
    ) {
        for partition in partitions {
            let Some(member) = self.target.get(&partition).copied() else { continue };
            let is_free = !self.holds.contains_key(&partition);
            if is_free && self.members.contains_key(&member) {
                let hold = Hold { member, since: self.generation, revoking: false };
                self.holds.insert(partition, hold);
                added.entry(member).or_default().push(partition);
            }
        }
    }

    /// A place without a handle is told when one comes.
    fn tell(&self, added: BTreeMap<MemberId, Vec<PartitionId>>, effects: &mut Vec<Effect>) {
        for (member, added) in added {
            let view = &self.members[&member];
            if view.present {
                effects.push(Effect::Assign { member, generation: view.generation, added });
            }
        }
    }

    fn resolve(&self, subscription: &Subscription) -> BTreeSet<TopicId> {
        let wanted = self.topics.values().filter(|topic| subscription.wants(&topic.name));
        wanted.map(|topic| topic.id).collect()
    }

    fn find_instance(&self, instance: &str) -> Option<MemberId> {
        let matches = |member: &Member| member.instance.as_deref() == Some(instance);
        self.members.iter().find(|(_, member)| matches(member)).map(|(id, _)| *id)
    }

    /// Whether `partition` may still become the member's in this rebalance.
    fn is_coming(&self, member: MemberId, partition: PartitionId) -> bool {
        self.clearing || self.gathering.is_some() || self.target.get(&partition) == Some(&member)
    }

    fn is_sound(&self) -> bool {
        let mut revoking: BTreeMap<MemberId, usize> = BTreeMap::new();
        let holds = self.holds.iter().all(|(partition, hold)| {
            *revoking.entry(hold.member).or_default() += usize::from(hold.revoking);
            let as_told = hold.revoking || self.target.get(partition) == Some(&hold.member);
            let member = self.members.get(&hold.member);
            as_told && member.is_some_and(|member| hold.since <= member.generation)
        });
        let members = self.members.iter().all(|(id, member)| {
            let counted = revoking.get(id).copied().unwrap_or_default() == member.revoking;
            counted
                && member.generation <= self.generation
                && (member.present || member.revoking == 0)
        });
        let settled = self.is_rebalancing()
            || self.holds.iter().map(|(at, hold)| (at, &hold.member)).eq(&self.target);
        holds && members && settled && self.assignor.is_none() == self.members.is_empty()
    }
}

fn by_id(topics: Vec<TopicView>) -> BTreeMap<TopicId, TopicView> {
    topics.into_iter().map(|topic| (topic.id, topic)).collect()
}

#[cfg(test)]
impl Group {
    pub(super) fn target(&self) -> &Assignment {
        &self.target
    }

    /// All that decides how the group goes on, with times left out, members by rank, and of generations only
    /// how they compare; `told` is the generation that each handle knows. Groups of equal shape behave alike.
    pub(super) fn shape(&self, told: &BTreeMap<MemberId, u64>) -> String {
        use std::fmt::Write;
        let rank = |id: MemberId| self.members.range(..id).count();
        let told = |id: MemberId| told.get(&id).copied().unwrap_or_default();
        let mut shape = String::new();
        for (id, member) in &self.members {
            let Member { topics, revoking, present, .. } = member;
            let (late, behind) =
                (member.generation < self.generation, told(*id) < member.generation);
            let topics: Vec<u64> = topics.iter().map(|topic| topic.0).collect();
            write!(shape, "{topics:?}{revoking}{present}{late}{behind};").unwrap();
        }
        for (partition, hold) in &self.holds {
            let known = hold.since <= told(hold.member);
            write!(shape, "{partition}{}{known}{};", rank(hold.member), hold.revoking).unwrap();
        }
        for (partition, member) in &self.target {
            let gone = !self.members.contains_key(member);
            write!(shape, "{partition}>{}{gone};", rank(*member)).unwrap();
        }
        for topic in self.topics.values() {
            write!(shape, "{}*{};", topic.id, topic.partitions).unwrap();
        }
        write!(shape, "{} {:?}", self.clearing, self.assignor()).unwrap();
        shape
    }
}
