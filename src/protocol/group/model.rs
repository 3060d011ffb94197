//! Every interleaving of a small group: three handles, four partitions, and all that can happen to them.
//!
//! The world keeps its own books of what each handle was told, from the effects alone: what is still in
//! its mailbox, what it works on, what it is asked to stop with. After each step they are compared with what
//! the group says, and from each state the world is let come to rest. The search visits every reachable
//! state once, so it ends; states that differ only in times, ids or the size of generations are one.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::types::{Timestamp, TopicId};

use super::assignment::{Assignor, MemberId, PartitionId, TopicView};
use super::assignors::{Range, RoundRobin, Sticky};
use super::membership::{CommitRefusal, Effect, Event, FenceReason, Group, Join, Subscription};

const SLOTS: usize = 3;
const NOW: Timestamp = Timestamp(0);
/// More states than any of the worlds has: the search is over before.
const STATES_MAX: usize = 400_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// A new handle; if the slot has an instance id, it takes over the place of the one before.
    Join(usize),
    /// The handle is dropped, whatever is in its mailbox and whatever it was asked to stop with.
    Drop(usize),
    /// The watchdog's verdict, or an administrator's; the handle does not know it yet.
    Fence(usize),
    /// The handle reads its mailbox.
    Poll(usize),
    /// It confirms that it has stopped with all, or with the first, of what it was asked for.
    Confirm(usize),
    ConfirmFirst(usize),
    /// The kept place of a dropped handle runs out.
    Expire(usize),
    AddPartition,
}

/// What one handle was told.
#[derive(Clone, Debug)]
struct Handle {
    id: MemberId,
    generation: u64,
    works_on: BTreeSet<PartitionId>,
    stops_with: BTreeSet<PartitionId>,
    // The mailbox.
    next_generation: u64,
    added: BTreeSet<PartitionId>,
    revoked: BTreeSet<PartitionId>,
}

impl Handle {
    /// From the moment it was given until the moment it is confirmed.
    fn holds(&self) -> BTreeSet<PartitionId> {
        let parts = [&self.works_on, &self.stops_with, &self.added];
        parts.into_iter().flatten().copied().collect()
    }
}

#[derive(Clone)]
struct World {
    rules: &'static Rules,
    group: Group,
    handles: [Option<Handle>; SLOTS],
    /// Places that are kept without a handle.
    kept: [Option<MemberId>; SLOTS],
    /// The last handle of each slot that was fenced, and goes on as if nothing had happened.
    zombies: [Option<MemberId>; SLOTS],
    next_id: u64,
    grown: bool,
}

struct Rules {
    assignor: fn() -> Arc<dyn Assignor>,
    /// Slot 0 has an instance id.
    with_instance: bool,
    /// Slot 2 reads only the second topic.
    mixed: bool,
}

fn topics(grown: bool) -> Vec<TopicView> {
    let topic =
        |id, name: &str, partitions| TopicView { id: TopicId(id), name: name.into(), partitions };
    vec![topic(1, "a", 2), topic(2, "b", if grown { 2 } else { 1 })]
}

impl World {
    fn new(rules: &'static Rules) -> Self {
        Self {
            rules,
            group: Group::new(0, Duration::ZERO, topics(false)),
            handles: [const { None }; SLOTS],
            kept: [None; SLOTS],
            zombies: [None; SLOTS],
            next_id: 0,
            grown: false,
        }
    }

    fn actions(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        for slot in 0..SLOTS {
            let Some(handle) = &self.handles[slot] else {
                actions.push(Action::Join(slot));
                if self.kept[slot].is_some() {
                    actions.push(Action::Expire(slot));
                }
                continue;
            };
            actions.extend([Action::Drop(slot), Action::Fence(slot)]);
            if self.has_instance(slot) {
                actions.push(Action::Join(slot));
            }
            let generation_is_old = handle.generation != handle.next_generation;
            if generation_is_old || !handle.added.is_empty() || !handle.revoked.is_empty() {
                actions.push(Action::Poll(slot));
            }
            if !handle.stops_with.is_empty() {
                actions.push(Action::Confirm(slot));
            }
            if handle.stops_with.len() > 1 {
                actions.push(Action::ConfirmFirst(slot));
            }
        }
        if !self.grown {
            actions.push(Action::AddPartition);
        }
        actions
    }

    fn has_instance(&self, slot: usize) -> bool {
        self.rules.with_instance && slot == 0
    }

    /// Does it, and says what is wrong then.
    fn act(&mut self, action: Action) -> Result<(), String> {
        let before = self.group.clone();
        let effects = match action {
            Action::Join(slot) => self.join(slot),
            Action::Drop(slot) => {
                let id = self.handles[slot].take().unwrap().id;
                self.zombies[slot] = Some(id);
                self.kept[slot] = self.has_instance(slot).then_some(id);
                self.group.step(NOW, Event::Leave { member: id })
            }
            Action::Fence(slot) => {
                let member = self.handles[slot].as_ref().unwrap().id;
                let effects = self.group.step(NOW, Event::Remove { member });
                let fenced = Effect::Fenced { member, reason: FenceReason::Removed };
                ensure(effects.contains(&fenced), || "it was not told".to_owned())?;
                effects
            }
            Action::Expire(slot) => {
                let member = self.kept[slot].take().unwrap();
                self.group.step(NOW, Event::Remove { member })
            }
            Action::Poll(slot) => {
                let handle = self.handles[slot].as_mut().unwrap();
                handle.works_on.append(&mut handle.added);
                for partition in std::mem::take(&mut handle.revoked) {
                    handle.works_on.remove(&partition);
                    handle.stops_with.insert(partition);
                }
                handle.generation = handle.next_generation;
                let member = handle.id;
                self.group.step(NOW, Event::Polled { member, at: NOW })
            }
            Action::Confirm(slot) => {
                let handle = self.handles[slot].as_mut().unwrap();
                let partitions = std::mem::take(&mut handle.stops_with).into_iter().collect();
                let member = handle.id;
                self.group.step(NOW, Event::Revoked { member, partitions })
            }
            Action::ConfirmFirst(slot) => {
                let handle = self.handles[slot].as_mut().unwrap();
                let partitions = handle.stops_with.pop_first().into_iter().collect();
                let member = handle.id;
                self.group.step(NOW, Event::Revoked { member, partitions })
            }
            Action::AddPartition => {
                self.grown = true;
                self.group.step(NOW, Event::TopicsChanged { topics: topics(true) })
            }
        };
        let revoked = self.deliver(effects)?;
        self.check()?;
        self.check_moves(action, &before, &revoked)
    }

    fn join(&mut self, slot: usize) -> Vec<Effect> {
        self.next_id += 1;
        let id = MemberId(self.next_id);
        let names: &[&str] = if self.rules.mixed && slot == 2 { &["b"] } else { &["a", "b"] };
        let join = Join {
            member: id,
            instance: self.has_instance(slot).then(|| "i".into()),
            subscription: Subscription::Names(names.iter().map(|name| (*name).into()).collect()),
            assignor: (self.rules.assignor)(),
            poll_interval_max: Duration::from_secs(300),
        };
        let effects = self.group.step(NOW, Event::Join(join));
        if let Some(old) = self.handles[slot].take() {
            self.zombies[slot] = Some(old.id);
        }
        self.kept[slot] = None;
        self.handles[slot] = Some(Handle {
            id,
            generation: 0,
            works_on: BTreeSet::new(),
            stops_with: BTreeSet::new(),
            next_generation: 0,
            added: BTreeSet::new(),
            revoked: BTreeSet::new(),
        });
        effects
    }

    /// Puts effects into mailboxes. Returns what was revoked, by member.
    fn deliver(
        &mut self,
        effects: Vec<Effect>,
    ) -> Result<BTreeMap<MemberId, Vec<PartitionId>>, String> {
        let mut all_revoked = BTreeMap::new();
        for effect in effects {
            let (Effect::Revoke { member, .. }
            | Effect::Assign { member, .. }
            | Effect::Fenced { member, .. }) = effect
            else {
                return Err(format!("{effect:?}"));
            };
            let slot = self
                .handles
                .iter()
                .position(|one| one.as_ref().is_some_and(|one| one.id == member));
            let Some(slot) = slot else {
                let fenced = matches!(effect, Effect::Fenced { .. });
                ensure(fenced && self.zombies.contains(&Some(member)), || format!("{effect:?}"))?;
                continue;
            };
            let handle = self.handles[slot].as_mut().unwrap();
            match effect {
                Effect::Revoke { partitions, .. } => {
                    let held = handle.holds();
                    for partition in &partitions {
                        let asked = handle.stops_with.contains(partition)
                            || !handle.revoked.insert(*partition);
                        ensure(held.contains(partition) && !asked, || {
                            format!("{partition}: revoked")
                        })?;
                    }
                    all_revoked.insert(member, partitions);
                }
                Effect::Assign { generation, added, .. } => {
                    ensure(handle.next_generation <= generation, || "back in time".to_owned())?;
                    handle.next_generation = generation;
                    for partition in added {
                        let held = handle.holds().contains(&partition);
                        handle.added.insert(partition);
                        ensure(!held, || format!("{partition} is given twice"))?;
                    }
                }
                _ => {
                    self.zombies[slot] = Some(member);
                    self.handles[slot] = None;
                }
            }
        }
        Ok(all_revoked)
    }

    fn live(&self) -> impl Iterator<Item = &Handle> {
        self.handles.iter().flatten()
    }

    fn check(&self) -> Result<(), String> {
        let all: Vec<PartitionId> = (1..3)
            .flat_map(|topic| {
                (0..2).map(move |partition| PartitionId { topic: TopicId(topic), partition })
            })
            .collect();
        let mut owners: BTreeMap<PartitionId, MemberId> = BTreeMap::new();
        for handle in self.live() {
            let holds = handle.holds();
            for partition in &holds {
                let other = owners.insert(*partition, handle.id);
                ensure(other.is_none(), || format!("INV-12: {partition} has two owners"))?;
            }
            let reports = self.group.members();
            let report = reports.iter().find(|report| report.member == handle.id);
            let said = report.map(|report| report.holds.iter().copied().collect());
            ensure(said == Some(holds), || format!("{}: the group says {said:?}", handle.id))?;
            for partition in handle.works_on.iter().chain(&handle.stops_with) {
                let commit = self.group.check_commit(handle.id, handle.generation, *partition);
                ensure(commit == Ok(()), || format!("an owner may commit: {commit:?}"))?;
            }
        }
        for partition in all.iter().copied() {
            for generation in 0..=self.group.generation() + 1 {
                for handle in self.live() {
                    let commit = self.group.check_commit(handle.id, generation, partition);
                    let owner = owners.get(&partition) == Some(&handle.id);
                    let sound = commit.is_err() || (owner && generation <= handle.next_generation);
                    ensure(sound, || format!("{} commits for {partition}", handle.id))?;
                }
                for zombie in self.zombies.iter().flatten() {
                    let commit = self.group.check_commit(*zombie, generation, partition);
                    let fenced = matches!(
                        commit,
                        Err(CommitRefusal::UnknownMember | CommitRefusal::FencedInstance)
                    );
                    ensure(fenced, || format!("{zombie} commits after its end"))?;
                }
            }
        }
        let simple = self.group.check_simple_commit().is_ok();
        let empty = self.live().next().is_none() && self.kept.iter().flatten().next().is_none();
        ensure(simple == empty, || "GRP-03".to_owned())
    }

    /// What the assignors promise of a single step.
    fn check_moves(
        &self,
        action: Action,
        before: &Group,
        revoked: &BTreeMap<MemberId, Vec<PartitionId>>,
    ) -> Result<(), String> {
        let assignor = (self.rules.assignor)();
        let (old, new) = (before.target(), self.group.target());
        if assignor.is_cooperative() {
            for (member, partitions) in revoked {
                let leaves =
                    |at: &PartitionId| old.get(at) == Some(member) && new.get(at) != Some(member);
                ensure(partitions.iter().all(leaves), || {
                    "GRP-46: more than moves is revoked".to_owned()
                })?;
            }
        }
        if assignor.name() != "cooperative-sticky" || self.rules.mixed {
            return Ok(());
        }
        let stays =
            |member: &MemberId| self.group.members().iter().any(|report| report.member == *member);
        let moved = || old.iter().filter(|(at, owner)| stays(owner) && new.get(at) != Some(owner));
        let members = self.group.members().len();
        let allowed = match action {
            // What the newcomer gets, and nothing else.
            Action::Join(_) if !old.is_empty() => new.len() / members,
            _ => 0,
        };
        ensure(moved().count() <= allowed, || format!("{} moves", moved().count()))
    }

    /// Everybody polls and confirms until nothing is left to do; then nothing may be left undone.
    fn check_rest(mut self) -> Result<(), String> {
        for _ in 0..12 {
            let mut idle = true;
            for slot in 0..SLOTS {
                for action in [Action::Poll(slot), Action::Confirm(slot)] {
                    if self.actions().contains(&action) {
                        idle = false;
                        self.act(action)?;
                    }
                }
            }
            if idle {
                break;
            }
        }
        ensure(!self.group.is_rebalancing(), || "it does not come to rest".to_owned())?;
        let reports = self.group.members();
        let mut loads: Vec<usize> = Vec::new();
        let mut owned = BTreeSet::new();
        for report in &reports {
            loads.push(report.holds.len());
            owned.extend(report.holds.iter().copied());
            ensure(report.generation == self.group.generation(), || "a member lags".to_owned())?;
        }
        for handle in self.live() {
            let idle = handle.added.is_empty() && handle.stops_with.is_empty();
            ensure(idle && handle.generation == self.group.generation(), || format!("{handle:?}"))?;
        }
        for topic in topics(self.grown) {
            for partition in 0..topic.partitions {
                let partition = PartitionId { topic: topic.id, partition };
                let wanted = self.group.is_subscribed(topic.id);
                ensure(wanted == owned.contains(&partition), || {
                    format!("{partition} has no owner")
                })?;
            }
        }
        let even = loads.iter().max() <= loads.iter().min().map(|least| least + 1).as_ref();
        let promised = (self.rules.assignor)().name().contains("sticky") && !self.rules.mixed;
        ensure(even || !promised, || format!("loads {loads:?}"))
    }

    /// Handles in the order of their ids, with what tells their slots apart, but not which slot it is.
    fn key(&self) -> String {
        use std::fmt::Write;
        let told = self.live().map(|handle| (handle.id, handle.generation)).collect();
        let mut key = self.group.shape(&told);
        let mut slots: Vec<usize> =
            (0..SLOTS).filter(|slot| self.handles[*slot].is_some()).collect();
        slots.sort_by_key(|slot| self.handles[*slot].as_ref().map(|handle| handle.id));
        for slot in slots {
            let handle = self.handles[slot].as_ref().unwrap();
            let reads_less = self.rules.mixed && slot == 2;
            write!(key, "|{}{reads_less}", self.has_instance(slot)).unwrap();
            for set in [&handle.works_on, &handle.stops_with, &handle.added, &handle.revoked] {
                let bits = |at: &PartitionId| 1 << (at.topic.0 * 2 + u64::from(at.partition));
                write!(key, "/{}", set.iter().map(bits).sum::<u32>()).unwrap();
            }
        }
        key
    }
}

fn ensure(holds: bool, fault: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(fault()) }
}

/// Visits every state that can be reached, breadth first: a fault is shown with a shortest way to it.
fn explore(rules: &'static Rules, states_min: usize) {
    let start = World::new(rules);
    let mut seen = HashSet::from([start.key()]);
    let mut steps: Vec<(usize, Option<Action>)> = vec![(0, None)];
    let mut queue = VecDeque::from([(0, start)]);
    while let Some((at, world)) = queue.pop_front() {
        for action in world.actions() {
            let mut next = world.clone();
            let done = next.act(action);
            let key = next.key();
            let fault = if done.is_ok() && !seen.insert(key) { continue } else { done };
            steps.push((at, Some(action)));
            if let Err(fault) = fault.and_then(|()| next.clone().check_rest()) {
                let mut way = Vec::new();
                let mut step = steps.len() - 1;
                while let (before, Some(action)) = steps[step] {
                    way.push(action);
                    step = before;
                }
                way.reverse();
                panic!("{fault}\nafter {way:?}");
            }
            queue.push_back((steps.len() - 1, next));
        }
        assert!(steps.len() < STATES_MAX, "the states have no end");
    }
    assert!(steps.len() > states_min, "only {} states: the world does not move", steps.len());
    println!("{} states", steps.len());
}

#[test]
fn cooperative_sticky_holds_in_every_interleaving() {
    static RULES: Rules = Rules {
        assignor: || Arc::new(Sticky { cooperative: true }),
        with_instance: false,
        mixed: false,
    };
    explore(&RULES, 1000);
}

#[test]
fn cooperative_sticky_with_mixed_subscriptions_holds_in_every_interleaving() {
    static RULES: Rules = Rules {
        assignor: || Arc::new(Sticky { cooperative: true }),
        with_instance: false,
        mixed: true,
    };
    explore(&RULES, 1000);
}

#[test]
fn a_static_member_among_others_holds_in_every_interleaving() {
    static RULES: Rules = Rules {
        assignor: || Arc::new(Sticky { cooperative: true }),
        with_instance: true,
        mixed: false,
    };
    explore(&RULES, 1000);
}

#[test]
fn range_holds_in_every_interleaving() {
    static RULES: Rules = Rules { assignor: || Arc::new(Range), with_instance: true, mixed: true };
    explore(&RULES, 1000);
}

#[test]
fn round_robin_holds_in_every_interleaving() {
    static RULES: Rules =
        Rules { assignor: || Arc::new(RoundRobin), with_instance: false, mixed: true };
    explore(&RULES, 1000);
}
