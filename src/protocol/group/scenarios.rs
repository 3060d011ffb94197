//! Groups by script: one behaviour a test, with times, instance ids, patterns and assignors of all kinds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::types::{Timestamp, TopicId};

use super::assignment::{AssignmentFault, Assignor, MemberId, PartitionId, Situation, TopicView};
use super::assignors::{Range, Sticky};
use super::membership::{
    CommitRefusal, Effect, Event, FenceReason, Group, Join, JoinRefusal, MEMBERS_MAX, Subscription,
};

const MINUTE: Duration = Duration::from_secs(60);

fn topic(id: u64, name: &str, partitions: u32) -> TopicView {
    TopicView { id: TopicId(id), name: name.into(), partitions }
}

fn at(topic: u64, partition: u32) -> PartitionId {
    PartitionId { topic: TopicId(topic), partition }
}

fn cooperative() -> Arc<dyn Assignor> {
    Arc::new(Sticky { cooperative: true })
}

/// A group and the time.
struct World {
    group: Group,
    now: Timestamp,
    assignor: Arc<dyn Assignor>,
}

impl World {
    fn new(assignor: Arc<dyn Assignor>, topics: Vec<TopicView>) -> Self {
        let group = Group::new(0, Duration::ZERO, topics);
        Self { group, now: Timestamp(0), assignor }
    }

    fn step(&mut self, event: Event) -> Vec<Effect> {
        self.group.step(self.now, event)
    }

    fn join_as(&self, member: u64, instance: Option<&str>, topics: &[&str]) -> Join {
        Join {
            member: MemberId(member),
            instance: instance.map(Into::into),
            subscription: Subscription::Names(topics.iter().map(|name| (*name).into()).collect()),
            assignor: self.assignor.clone(),
            poll_interval_max: 5 * MINUTE,
        }
    }

    fn join(&mut self, member: u64) -> Vec<Effect> {
        let join = self.join_as(member, None, &["t"]);
        self.step(Event::Join(join))
    }

    fn join_static(&mut self, member: u64, instance: &str) -> Vec<Effect> {
        let join = self.join_as(member, Some(instance), &["t"]);
        self.step(Event::Join(join))
    }

    fn leave(&mut self, member: u64) -> Vec<Effect> {
        self.step(Event::Leave { member: MemberId(member) })
    }

    fn poll(&mut self, member: u64) {
        assert_eq!(self.step(Event::Polled { member: MemberId(member), at: self.now }), []);
    }

    fn confirm(&mut self, member: u64, partitions: &[PartitionId]) -> Vec<Effect> {
        let partitions = partitions.to_vec();
        self.step(Event::Revoked { member: MemberId(member), partitions })
    }

    /// Confirms every revocation, until there are none.
    fn settle(&mut self, mut effects: Vec<Effect>) {
        while !effects.is_empty() {
            let asked = effects.into_iter().filter_map(|effect| match effect {
                Effect::Revoke { member, partitions } => Some((member, partitions)),
                _ => None,
            });
            let confirmed = asked.collect::<Vec<_>>().into_iter();
            effects = confirmed.flat_map(|(member, own)| self.confirm(member.0, &own)).collect();
        }
    }

    fn holds(&self) -> BTreeMap<u64, Vec<u32>> {
        let partitions = |holds: &[PartitionId]| holds.iter().map(|at| at.partition).collect();
        let reports = self.group.members();
        reports.iter().map(|report| (report.member.0, partitions(&report.holds))).collect()
    }

    fn commit(&self, member: u64, generation: u64, partition: u32) -> Result<(), CommitRefusal> {
        self.group.check_commit(MemberId(member), generation, at(1, partition))
    }
}

fn assign(member: u64, generation: u64, partitions: &[u32]) -> Effect {
    let added = partitions.iter().map(|partition| at(1, *partition)).collect();
    Effect::Assign { member: MemberId(member), generation, added }
}

fn revoke(member: u64, partitions: &[u32]) -> Effect {
    let partitions = partitions.iter().map(|partition| at(1, *partition)).collect();
    Effect::Revoke { member: MemberId(member), partitions }
}

fn fenced(member: u64, reason: FenceReason) -> Effect {
    Effect::Fenced { member: MemberId(member), reason }
}

#[test]
fn a_partition_moves_only_after_its_owner_has_stopped_with_it() {
    let mut world = World::new(cooperative(), vec![topic(1, "t", 4)]);
    assert_eq!(world.join(1), [assign(1, 1, &[0, 1, 2, 3])]);
    let effects = world.join(2);
    assert_eq!(
        effects,
        [revoke(1, &[2, 3]), assign(1, 2, &[]), assign(2, 2, &[])],
        "GRP-46, GRP-47"
    );
    assert!(world.group.is_rebalancing());
    assert_eq!(
        world.confirm(1, &[at(1, 3), at(1, 0)]),
        [assign(2, 2, &[3])],
        "GRP-50: 0 was not asked for"
    );
    assert_eq!(world.confirm(1, &[at(1, 3)]), [], "once");
    assert_eq!(world.confirm(2, &[at(1, 2)]), [], "not its own");
    assert_eq!(world.confirm(1, &[at(1, 2)]), [assign(2, 2, &[2])], "GRP-50");
    assert_eq!(world.holds(), BTreeMap::from([(1, vec![0, 1]), (2, vec![2, 3])]), "INV-12");
    assert!(!world.group.is_rebalancing());
}

#[test]
fn without_cooperation_all_put_down_everything_before_anybody_takes_anything_up() {
    let mut world = World::new(Arc::new(Range), vec![topic(1, "t", 4)]);
    world.join(1);
    world.join(2);
    world.confirm(1, &[0, 1, 2, 3].map(|partition| at(1, partition)));
    assert_eq!(world.holds(), BTreeMap::from([(1, vec![0, 1]), (2, vec![2, 3])]));
    assert_eq!(world.join(3), [revoke(1, &[0, 1]), revoke(2, &[2, 3])], "GRP-46");
    assert_eq!(world.join(4), [], "GRP-46: it waits with the others");
    assert_eq!(world.confirm(1, &[at(1, 0), at(1, 1)]), [], "GRP-46");
    assert_eq!(world.commit(1, 2, 0), Err(CommitRefusal::RebalanceInProgress), "GRP-04");
    assert_eq!(world.commit(2, 2, 2), Ok(()), "GRP-04");
    let effects = world.confirm(2, &[at(1, 2), at(1, 3)]);
    let each = (1..5).zip(0..).map(|(member, partition)| assign(member, 3, &[partition]));
    assert_eq!(effects, each.collect::<Vec<_>>(), "GRP-40: one generation for both newcomers");
}

#[test]
fn a_member_that_stops_polling_is_fenced_and_its_late_commits_are_refused() {
    let mut world = World::new(cooperative(), vec![topic(1, "t", 2)]);
    world.join(1);
    let effects = world.join(2);
    world.settle(effects);
    world.now = Timestamp(0).plus(4 * MINUTE);
    world.poll(1);
    assert_eq!(world.group.next_deadline(), Some(Timestamp(0).plus(5 * MINUTE)), "GRP-44");
    assert_eq!(world.step(Event::Tick), [], "GRP-44");
    world.now = Timestamp(0).plus(5 * MINUTE);
    let effects = world.step(Event::Tick);
    let expected = [fenced(2, FenceReason::StoppedPolling), assign(1, 3, &[1])];
    assert_eq!(effects, expected, "GRP-44, GRP-48");
    assert_eq!(world.commit(2, 2, 1), Err(CommitRefusal::UnknownMember), "GRP-44, GRP-02");
    assert_eq!(world.commit(1, 3, 1), Ok(()));
    assert_eq!(world.confirm(2, &[at(1, 1)]), [], "too late to matter");
    world.poll(2);
    assert_eq!(world.group.members().len(), 1);
    // A clock that steps back does not give anybody more time.
    world.now = Timestamp(0);
    world.poll(1);
    assert_eq!(world.group.next_deadline(), Some(Timestamp(0).plus(9 * MINUTE)));
}

#[test]
fn a_member_that_polls_and_never_confirms_is_fenced_too() {
    let mut world = World::new(cooperative(), vec![topic(1, "t", 3)]);
    world.join(1);
    world.join(2);
    world.join(3);
    world.now = Timestamp(0).plus(3 * MINUTE);
    for member in 1..4 {
        world.poll(member);
    }
    // Part of it is confirmed, which gives time for the rest.
    assert_eq!(world.confirm(1, &[at(1, 2)]).len(), 1);
    world.now = Timestamp(0).plus(6 * MINUTE);
    assert_eq!(world.step(Event::Tick), []);
    for member in 1..4 {
        world.poll(member);
    }
    world.now = Timestamp(0).plus(8 * MINUTE);
    let effects = world.step(Event::Tick);
    assert_eq!(effects[0], fenced(1, FenceReason::KeptRevoked), "{effects:?}");
    assert_eq!(
        world.holds().values().map(Vec::len).sum::<usize>(),
        3,
        "all partitions are read again"
    );
}

#[test]
fn a_new_handle_with_the_same_instance_id_takes_the_place_and_fences_the_old_one() {
    let mut world = World::new(cooperative(), vec![topic(1, "t", 4)]);
    world.join_static(1, "a");
    let effects = world.join(2);
    world.settle(effects);
    let before = world.holds();
    let effects = world.join_static(3, "a");
    assert_eq!(effects, [fenced(1, FenceReason::Replaced), assign(3, 2, &[0, 1])], "GRP-45");
    assert_eq!(world.group.generation(), 2, "GRP-45: no rebalance");
    assert_eq!(world.holds()[&3], before[&1], "GRP-45");
    assert_eq!(world.commit(1, 2, 0), Err(CommitRefusal::FencedInstance), "GRP-02, GRP-45");
    assert_eq!(world.commit(3, 2, 0), Ok(()), "GRP-45");
}

#[test]
fn a_dropped_handle_with_an_instance_id_keeps_its_place_for_a_poll_interval() {
    let mut world = World::new(cooperative(), vec![topic(1, "t", 4)]);
    world.join_static(1, "a");
    let effects = world.join(2);
    world.settle(effects);
    world.now = Timestamp(0).plus(MINUTE);
    assert_eq!(world.leave(1), [], "GRP-45: no rebalance");
    assert_eq!(world.commit(1, 2, 0), Err(CommitRefusal::UnknownMember));
    world.now = Timestamp(0).plus(4 * MINUTE);
    world.poll(2);
    assert_eq!(world.join_static(3, "a"), [assign(3, 2, &[0, 1])], "GRP-45");
    world.leave(3);
    world.now = Timestamp(0).plus(8 * MINUTE);
    world.poll(2);
    world.now = Timestamp(0).plus(9 * MINUTE);
    assert_eq!(world.step(Event::Tick), [assign(2, 3, &[0, 1])], "GRP-45: nobody came");
}

#[test]
fn a_kept_place_gives_up_at_once_what_it_is_to_give_up() {
    let mut world = World::new(cooperative(), vec![topic(1, "t", 4)]);
    world.join_static(1, "a");
    world.leave(1);
    assert_eq!(world.join(2), [assign(2, 2, &[2, 3])]);
    assert!(!world.group.is_rebalancing());
    let other = world.join_as(3, Some("a"), &["t", "u"]);
    let topics = vec![topic(1, "t", 4), topic(2, "u", 1)];
    assert_eq!(world.step(Event::TopicsChanged { topics }), [], "nobody wants u yet");
    let effects = world.step(Event::Join(other));
    assert_eq!(world.group.generation(), 3, "GRP-51: other topics, so a rebalance");
    world.settle(effects);
    assert_eq!(world.group.members().iter().map(|one| one.holds.len()).sum::<usize>(), 5);
}

#[test]
fn a_dynamic_member_that_is_dropped_leaves_at_once() {
    let mut world = World::new(cooperative(), vec![topic(1, "t", 2)]);
    world.join(1);
    world.join(2);
    // In the middle of a revocation that now nobody will confirm.
    assert_eq!(world.leave(1), [assign(2, 3, &[0, 1])]);
    assert_eq!(world.leave(2), []);
    assert!(world.group.is_empty() && world.group.next_deadline().is_none());
    assert_eq!(world.group.generation(), 4, "GRP-40: late commits of an emptied group do not fit");
    assert_eq!(world.group.assignor(), None);
}

#[test]
fn commits_count_from_owners_and_in_a_generation_in_which_they_have_owned_the_partition() {
    let mut world = World::new(cooperative(), vec![topic(1, "t", 4)]);
    assert_eq!(world.group.check_simple_commit(), Ok(()), "GRP-01");
    world.join(1);
    let unknown = Err(CommitRefusal::UnknownMember);
    assert_eq!(world.group.check_simple_commit(), unknown, "GRP-03");
    assert_eq!(world.commit(7, 1, 0), unknown, "GRP-02");
    let illegal = |given, current| Err(CommitRefusal::IllegalGeneration { given, current });
    assert_eq!(
        [0, 2].map(|given| world.commit(1, given, 0)),
        [illegal(0, 1), illegal(2, 1)],
        "GRP-02"
    );
    world.join(2);
    assert_eq!(world.commit(1, 1, 0), Ok(()), "KIP-1251: it has been its own all along");
    assert_eq!(world.commit(1, 2, 3), Ok(()), "GRP-04: not yet given up");
    assert_eq!(world.commit(2, 2, 3), Err(CommitRefusal::RebalanceInProgress), "GRP-04");
    assert_eq!(world.commit(2, 2, 0), Err(CommitRefusal::NotOwner));
    world.confirm(1, &[at(1, 2), at(1, 3)]);
    assert_eq!(world.commit(1, 2, 3), Err(CommitRefusal::NotOwner));
    assert_eq!(world.commit(1, 1, 3), illegal(1, 2), "GRP-26");
    world.leave(2);
    assert_eq!(world.commit(1, 3, 3), Ok(()));
    assert_eq!(world.commit(1, 2, 3), illegal(2, 3), "GRP-26: another owner was in between");
    assert_eq!(world.commit(1, 1, 0), Ok(()), "KIP-1251");
}

#[test]
fn more_partitions_and_other_topics_begin_a_rebalance_and_unrelated_ones_do_not() {
    let mut world = World::new(cooperative(), vec![topic(1, "t", 1)]);
    world.join(1);
    let topics = vec![topic(1, "t", 1), topic(2, "other", 9)];
    assert_eq!(world.step(Event::TopicsChanged { topics }), []);
    let topics = vec![topic(1, "t", 3)];
    assert_eq!(world.step(Event::TopicsChanged { topics }), [assign(1, 2, &[1, 2])], "GRP-51");
    assert!(
        world.group.is_subscribed(TopicId(1)) && !world.group.is_subscribed(TopicId(2)),
        "GRP-08"
    );
    // Deleted and made again under the same name: what was read of the old one has to stop.
    let topics = vec![topic(3, "t", 1)];
    let effects = world.step(Event::TopicsChanged { topics });
    let anew = Effect::Assign { member: MemberId(1), generation: 3, added: vec![at(3, 0)] };
    assert_eq!(effects, [revoke(1, &[0, 1, 2]), anew], "CONS-13");
}

#[test]
fn a_pattern_takes_up_topics_as_they_come() {
    let mut world = World::new(cooperative(), vec![topic(1, "log.a", 1)]);
    let mut join = world.join_as(1, None, &[]);
    join.subscription = Subscription::Matching(Arc::new(|name| name.starts_with("log.")));
    assert_eq!(world.step(Event::Join(join)), [assign(1, 1, &[0])]);
    let topics = vec![topic(1, "log.a", 1), topic(2, "metric", 1), topic(3, "log.b", 1)];
    let effects = world.step(Event::TopicsChanged { topics });
    let added = vec![at(3, 0)];
    assert_eq!(effects, [Effect::Assign { member: MemberId(1), generation: 2, added }], "GRP-51");
}

#[test]
fn a_member_that_subscribes_anew_is_rebalanced_and_one_that_says_the_same_is_not() {
    let mut world = World::new(cooperative(), vec![topic(1, "t", 2), topic(2, "u", 1)]);
    world.join(1);
    assert_eq!(world.join(1), [], "the same again");
    let other = world.join_as(1, None, &["u"]);
    let effects = world.step(Event::Join(other));
    let added = vec![at(2, 0)];
    let assigned = Effect::Assign { member: MemberId(1), generation: 2, added };
    assert_eq!(effects, [revoke(1, &[0, 1]), assigned], "GRP-51");
    world.settle(effects);
    assert!(!world.group.is_rebalancing());
}

#[test]
fn an_empty_group_waits_for_company_as_long_as_it_was_told_to() {
    let delay = Duration::from_secs(3);
    let mut world = World::new(cooperative(), Vec::new());
    world.group = Group::new(6, delay, vec![topic(1, "t", 2)]);
    assert_eq!(world.join(1), [], "GRP-41");
    assert_eq!(world.commit(1, 6, 0), Err(CommitRefusal::RebalanceInProgress));
    world.now = Timestamp(2000);
    assert_eq!(world.join(2), [], "GRP-41");
    world.now = Timestamp(4999);
    assert_eq!(world.step(Event::Tick), [], "GRP-41: the second prolonged it");
    assert_eq!(world.group.next_deadline(), Some(Timestamp(5000)));
    world.now = Timestamp(5000);
    assert_eq!(world.step(Event::Tick), [assign(1, 7, &[0]), assign(2, 7, &[1])], "GRP-41");
    world.leave(1);
    assert_eq!(world.holds(), BTreeMap::from([(2, vec![0, 1])]), "afterwards nobody waits");
    world.leave(2);
    assert_eq!(world.join(3), []);
    assert_eq!(world.leave(3), [], "GRP-41: alone in the wait, and gone");
    assert!(world.group.next_deadline().is_none());
}

#[test]
fn newcomers_cannot_prolong_the_wait_for_ever() {
    let mut world = World::new(cooperative(), Vec::new());
    world.group = Group::new(0, MINUTE, vec![topic(1, "t", 2)]);
    for member in 1..20 {
        world.now = Timestamp(0).plus(MINUTE / 2 * (u32::try_from(member).unwrap() - 1));
        world.step(Event::Tick);
        world.join(member);
        for other in 1..member {
            world.poll(other);
        }
    }
    assert!(world.group.generation() > 0, "GRP-41");
}

#[test]
fn members_agree_on_one_assignor() {
    let mut world = World::new(cooperative(), vec![topic(1, "t", 2)]);
    world.join(1);
    world.assignor = Arc::new(Range);
    let reason = JoinRefusal::OtherAssignor {
        given: "range".to_owned(),
        current: "cooperative-sticky".to_owned(),
    };
    assert_eq!(world.join(2), [Effect::Refused { member: MemberId(2), reason }]);
    assert_eq!(world.holds().len(), 1);
    // Alone, a member may change its mind.
    assert_eq!(world.join(1), [revoke(1, &[0, 1])]);
    assert_eq!(world.confirm(1, &[at(1, 0), at(1, 1)]), [assign(1, 2, &[0, 1])]);
    assert_eq!(world.group.assignor(), Some("range"));
}

#[test]
fn what_a_join_may_say_is_bounded() {
    let mut world = World::new(cooperative(), vec![topic(1, "t", 1)]);
    let refused = |effects: &[Effect], wanted: JoinRefusal| {
        assert!(
            matches!(effects, [Effect::Refused { reason, .. }] if *reason == wanted),
            "{effects:?}"
        );
    };
    refused(&world.join_static(1, ""), JoinRefusal::BadInstance);
    refused(&world.join_static(1, &"x".repeat(250)), JoinRefusal::BadInstance);
    // While the group waits for company, a join costs no rebalance.
    world.group = Group::new(0, MINUTE, Vec::new());
    for member in 0..MEMBERS_MAX as u64 {
        let join = world.join_as(member, None, &[]);
        assert_eq!(world.step(Event::Join(join)), []);
    }
    refused(&world.join(u64::MAX), JoinRefusal::Full);
    assert_eq!(world.join(7), [], "a member may still change its subscription");
}

/// Answers what it was made with.
struct Scripted(Vec<(PartitionId, MemberId)>);

impl Assignor for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn assign(&self, _: &Situation) -> Vec<(PartitionId, MemberId)> {
        self.0.clone()
    }
}

#[test]
fn an_assignor_of_the_application_decides_if_its_answer_can_be_used() {
    let all_to = |member| (0..2).map(|partition| (at(1, partition), MemberId(member))).collect();
    let mut world = World::new(Arc::new(Scripted(all_to(1))), vec![topic(1, "t", 2)]);
    world.join(1);
    assert_eq!(world.join(2), [assign(1, 2, &[]), assign(2, 2, &[])]);
    assert_eq!(
        world.holds(),
        BTreeMap::from([(1, vec![0, 1]), (2, vec![])]),
        "as unfair as it likes"
    );
    let effects = world.leave(1);
    let fault = AssignmentFault::UnknownMember(MemberId(1));
    let expected = [Effect::AssignorFailed { fault }, assign(2, 3, &[0, 1])];
    assert_eq!(effects, expected, "no partition stays without an owner");
}

/// A group of `members` over one topic, come to rest.
fn crowd(members: u64, partitions: u32) -> World {
    let mut world = World::new(cooperative(), vec![topic(1, "t", partitions)]);
    for member in 1..=members {
        let effects = world.join(member);
        world.settle(effects);
    }
    world
}

#[test]
fn a_newcomer_takes_its_share_from_the_others_and_nothing_else_moves() {
    let mut world = crowd(9, 1000);
    let effects = world.join(10);
    let revoked = effects.iter().map(|effect| match effect {
        Effect::Revoke { partitions, .. } => partitions.len(),
        _ => 0,
    });
    assert_eq!(revoked.sum::<usize>(), 100, "KIP-429: only what moves");
    world.settle(effects);
    assert!(world.holds().values().all(|own| own.len() == 100), "GRP-49");
}

#[cfg(test)]
mod measurement {
    use std::time::Instant;

    use super::*;

    #[test]
    #[ignore = "a measurement: run it alone, in release"]
    fn rebalance_of_100_members_over_10_000_partitions() {
        let time = |what: &str, work: &mut dyn FnMut()| {
            let start = Instant::now();
            work();
            println!("{what}: {:?}", start.elapsed());
        };
        let mut world = crowd(99, 10_000);
        let mut effects = Vec::new();
        time("the 100th joins, cooperative", &mut || effects = world.join(100));
        time("all confirm", &mut || world.settle(std::mem::take(&mut effects)));
        time("one leaves", &mut || effects = world.leave(50));
        world.settle(effects.clone());
        for assignor in
            [Arc::new(Range) as Arc<dyn Assignor>, Arc::new(Sticky { cooperative: false })]
        {
            let mut world = World::new(assignor.clone(), vec![topic(1, "t", 10_000)]);
            for member in 1..100 {
                let effects = world.join(member);
                world.settle(effects);
            }
            let name = assignor.name();
            time(
                &format!("the 100th joins, {name}, until all have stopped and got theirs"),
                &mut || {
                    let effects = world.join(100);
                    world.settle(effects);
                },
            );
        }
        // A thousand topics, each member subscribed to half of them, then half of the members go.
        let topics: Vec<TopicView> =
            (0..1000).map(|id| topic(id, &format!("t{id:03}"), 10)).collect();
        let mut world = World::new(cooperative(), topics.clone());
        let join = |world: &World, member: u64| {
            let wanted = topics.iter().filter(|topic| (topic.id.0 + member).is_multiple_of(2));
            let names: Vec<&str> = wanted.map(|topic| &*topic.name).collect();
            Event::Join(world.join_as(member, None, &names))
        };
        for member in 1..100 {
            let event = join(&world, member);
            let effects = world.step(event);
            world.settle(effects);
        }
        let event = join(&world, 100);
        time("the 100th joins, mixed subscriptions to 1000 topics", &mut || {
            effects = world.step(event.clone());
        });
        world.settle(effects);
    }
}
