//! Who gets which partition: range, round robin, sticky and cooperative.
//!
//! Pure functions of a [`Situation`]; equal situations give equal answers (GRP-49).
//!
//! - *range*: topic by topic, each member a stretch; the first ones get one more. Topics with equally many
//!   partitions and the same subscribers are cut at the same places, so they can be joined.
//! - *round robin*: all partitions in a circle over the members.
//! - *sticky*: as even as the subscriptions allow, and then as little moved as that allows.
//! - *cooperative*: the sticky answer, and members keep working on what they keep.
//!
//! Sticky in three steps: members keep what they had; what nobody has goes to the least loaded; then
//! loads are evened out. For the last step, think of an edge from one member to another when the first holds
//! a partition of a topic that the second is subscribed to. While a path leads from a member to one that
//! holds at least two fewer, a partition moves along each edge of the shortest. Each time the sum of the
//! squares of the loads falls, so it ends, and where no such path is left the loads are as even as they can
//! be (Harvey et al., "Semi-matchings for bipartite graphs and load balancing"). When all subscribe alike,
//! nothing moves that need not; when they do not, a chain may move a partition more than the fewest.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::iter;

use super::assignment::{Assignor, MemberId, PartitionId, Situation};

/// Kafka's `range`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Range;

impl Assignor for Range {
    fn name(&self) -> &'static str {
        "range"
    }

    fn is_cooperative(&self) -> bool {
        false
    }

    fn assign(&self, situation: &Situation) -> Vec<(PartitionId, MemberId)> {
        let mut answer = Vec::new();
        for (topic, members) in situation.topics().iter().zip(situation.subscribers()) {
            let count = members.len();
            let partitions = topic.partitions as usize;
            // Member 0 takes the first stretch; a stretch is one longer for the first `partitions % count`.
            let lengths =
                (0..count).map(|at| partitions / count + usize::from(at < partitions % count));
            let owners =
                members.iter().zip(lengths).flat_map(|(at, length)| iter::repeat_n(*at, length));
            answer.extend((0..topic.partitions).zip(owners).map(|(partition, at)| {
                (PartitionId { topic: topic.id, partition }, situation.members()[at].id)
            }));
        }
        answer
    }
}

/// Kafka's `roundrobin`.
#[derive(Clone, Copy, Debug, Default)]
pub struct RoundRobin;

impl Assignor for RoundRobin {
    fn name(&self) -> &'static str {
        "roundrobin"
    }

    fn is_cooperative(&self) -> bool {
        false
    }

    fn assign(&self, situation: &Situation) -> Vec<(PartitionId, MemberId)> {
        let mut answer = Vec::new();
        let mut turn = 0;
        for (topic, members) in situation.topics().iter().zip(situation.subscribers()) {
            for partition in 0..topic.partitions {
                // The next subscriber from `turn` on, around the circle.
                let next = members.partition_point(|at| *at < turn);
                let Some(at) = members.get(next).or(members.first()) else {
                    break;
                };
                turn = at + 1;
                let owner = situation.members()[*at].id;
                answer.push((PartitionId { topic: topic.id, partition }, owner));
            }
        }
        answer
    }
}

/// Kafka's `sticky`, and with `cooperative` its `cooperative-sticky`.
#[derive(Clone, Copy, Debug)]
pub struct Sticky {
    /// Whether members keep working on what they keep (KIP-429).
    pub cooperative: bool,
}

impl Assignor for Sticky {
    fn name(&self) -> &'static str {
        if self.cooperative { "cooperative-sticky" } else { "sticky" }
    }

    fn is_cooperative(&self) -> bool {
        self.cooperative
    }

    fn assign(&self, situation: &Situation) -> Vec<(PartitionId, MemberId)> {
        let mut board = Board::new(situation);
        let free = board.keep();
        board.hand_out(&free);
        board.even_out();
        board.answer()
    }
}

/// The assignment in the making; topics and members by their places in the situation.
struct Board<'a> {
    situation: &'a Situation,
    subscribers: Vec<Vec<usize>>,
    /// For each member and topic, the partitions; those it had before come first. No list is empty.
    held: Vec<BTreeMap<usize, Vec<u32>>>,
    loads: Vec<usize>,
}

impl<'a> Board<'a> {
    fn new(situation: &'a Situation) -> Self {
        let members = situation.members().len();
        Self {
            situation,
            subscribers: situation.subscribers(),
            held: vec![BTreeMap::new(); members],
            loads: vec![0; members],
        }
    }

    /// Members keep what they had and may still have. Returns what is left, by topic.
    fn keep(&mut self) -> Vec<Vec<u32>> {
        let topics = self.situation.topics();
        let places = self.situation.topic_places();
        let mut taken: Vec<Vec<bool>> =
            topics.iter().map(|topic| vec![false; topic.partitions as usize]).collect();
        for (at, member) in self.situation.members().iter().enumerate() {
            for owned in &member.owned {
                let Some(topic) = places.get(&owned.topic).copied() else { continue };
                let subscribed = member.topics.binary_search(&owned.topic).is_ok();
                let Some(taken) = taken[topic].get_mut(owned.partition as usize) else { continue };
                if subscribed && !*taken {
                    *taken = true;
                    self.give(at, topic, owned.partition);
                }
            }
        }
        let free = |taken: Vec<bool>| {
            (0..).zip(taken).filter(|(_, taken)| !taken).map(|(partition, _)| partition).collect()
        };
        taken.into_iter().map(free).collect()
    }

    /// What nobody has goes to the least loaded; topics that few may read come first.
    fn hand_out(&mut self, free: &[Vec<u32>]) {
        let mut order: Vec<usize> = (0..free.len()).collect();
        order.sort_by_key(|topic| self.subscribers[*topic].len());
        for topic in order {
            for partition in &free[topic] {
                let members = self.subscribers[topic].iter().copied();
                if let Some(least) = members.min_by_key(|at| self.loads[*at]) {
                    self.give(least, topic, *partition);
                }
            }
        }
    }

    /// The most loaded gives first, one at a time: what it could give beyond its share, others would have to.
    fn even_out(&mut self) {
        let mut moved = true;
        while std::mem::take(&mut moved) {
            let mut donors: BTreeSet<(Reverse<usize>, usize)> =
                self.loads.iter().enumerate().map(|(at, load)| (Reverse(*load), at)).collect();
            while let Some((Reverse(load), donor)) = donors.pop_first() {
                if let Some(receiver) = self.relieve(donor) {
                    moved = true;
                    donors.insert((Reverse(load - 1), donor));
                    let more = self.loads[receiver];
                    // One that could not give when it had its turn has another in the next round.
                    if donors.remove(&(Reverse(more - 1), receiver)) {
                        donors.insert((Reverse(more), receiver));
                    }
                }
            }
        }
    }

    /// Takes one partition off `donor`, along the shortest path to a member that holds at least two fewer,
    /// and returns that one.
    fn relieve(&mut self, donor: usize) -> Option<usize> {
        let load = self.loads[donor];
        if self.loads.iter().all(|other| other + 2 > load) {
            return None;
        }
        // Who hands a partition of which topic to the member at each place.
        let mut giver: Vec<Option<(usize, usize)>> = vec![None; self.loads.len()];
        let mut seen = vec![false; self.subscribers.len()];
        let mut queue = VecDeque::from([donor]);
        while let Some(member) = queue.pop_front() {
            for topic in self.held[member].keys().copied() {
                if std::mem::replace(&mut seen[topic], true) {
                    continue;
                }
                let mut receiver: Option<usize> = None;
                for next in self.subscribers[topic].iter().copied() {
                    if next == donor || giver[next].is_some() {
                        continue;
                    }
                    giver[next] = Some((member, topic));
                    queue.push_back(next);
                    let lighter = receiver.is_none_or(|best| self.loads[next] < self.loads[best]);
                    if self.loads[next] + 2 <= load && lighter {
                        receiver = Some(next);
                    }
                }
                if let Some(receiver) = receiver {
                    self.shift(&giver, receiver);
                    return Some(receiver);
                }
            }
        }
        None
    }

    /// Moves one partition along each edge of the path that ends at `receiver`.
    fn shift(&mut self, giver: &[Option<(usize, usize)>], mut receiver: usize) {
        while let Some((member, topic)) = giver[receiver] {
            let partition = self.take(member, topic);
            self.give(receiver, topic, partition);
            receiver = member;
        }
    }

    fn give(&mut self, member: usize, topic: usize, partition: u32) {
        self.held[member].entry(topic).or_default().push(partition);
        self.loads[member] += 1;
    }

    /// Takes back what came last, so that what a member had before stays longest.
    fn take(&mut self, member: usize, topic: usize) -> u32 {
        let list = self.held[member].get_mut(&topic).expect("an edge stands for a partition");
        let partition = list.pop().expect("no list is empty");
        if list.is_empty() {
            self.held[member].remove(&topic);
        }
        self.loads[member] -= 1;
        partition
    }

    fn answer(self) -> Vec<(PartitionId, MemberId)> {
        let mut answer = Vec::new();
        for (member, held) in self.situation.members().iter().zip(self.held) {
            for (topic, partitions) in held {
                let topic = self.situation.topics()[topic].id;
                let named = |partition| (PartitionId { topic, partition }, member.id);
                answer.extend(partitions.into_iter().map(named));
            }
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::super::assignment::{MemberView, TopicView, checked, partitions_of};
    use super::*;
    use crate::types::TopicId;
    use proptest::prelude::*;

    /// `topics`: partitions of topic 0, 1, ..; `members`: what each is subscribed to.
    fn situation(topics: &[u32], members: &[&[u64]]) -> Situation {
        let topics = topics.iter().zip(0..).map(|(partitions, id)| TopicView {
            id: TopicId(id),
            name: format!("t{id}").into(),
            partitions: *partitions,
        });
        let members = members.iter().zip(0..).map(|(topics, id)| MemberView {
            id: MemberId(id),
            instance: None,
            topics: topics.iter().copied().map(TopicId).collect(),
            owned: Vec::new(),
        });
        Situation::new(
            topics
                .filter(|topic| members.clone().any(|view| view.topics.contains(&topic.id)))
                .collect(),
            members.clone().collect(),
        )
    }

    fn owning(situation: &Situation, answer: &[(PartitionId, MemberId)]) -> Situation {
        let mut members = situation.members().to_vec();
        for member in &mut members {
            let own = answer.iter().filter(|(_, owner)| *owner == member.id);
            member.owned = own.map(|(partition, _)| *partition).collect();
        }
        Situation::new(situation.topics().to_vec(), members)
    }

    /// Partitions by member, as "topic.partition" texts.
    fn shown(answer: &[(PartitionId, MemberId)], members: u64) -> Vec<String> {
        let show = |at: &PartitionId| format!("{}.{}", at.topic.0, at.partition);
        let mut sorted = answer.to_vec();
        sorted.sort_unstable();
        (0..members)
            .map(|id| {
                let own = sorted.iter().filter(|(_, owner)| owner.0 == id);
                own.map(|(at, _)| show(at)).collect::<Vec<_>>().join(" ")
            })
            .collect()
    }

    const STICKY: Sticky = Sticky { cooperative: false };

    #[test]
    fn range_cuts_each_topic_into_stretches_and_the_first_get_one_more() {
        let world = situation(&[3, 3, 5], &[&[0, 1, 2], &[0, 1, 2]]);
        let answer = shown(&Range.assign(&world), 2);
        assert_eq!(answer, ["0.0 0.1 1.0 1.1 2.0 2.1 2.2", "0.2 1.2 2.3 2.4"], "GRP-49");
        let world = situation(&[2, 3], &[&[0], &[0, 1], &[1]]);
        assert_eq!(shown(&Range.assign(&world), 3), ["0.0", "0.1 1.0 1.1", "1.2"], "GRP-49");
        let world = situation(&[1], &[&[0], &[0]]);
        assert_eq!(shown(&Range.assign(&world), 2), ["0.0", ""], "GRP-49");
    }

    #[test]
    fn round_robin_goes_in_a_circle_and_passes_over_who_is_not_subscribed() {
        let world = situation(&[3, 3], &[&[0, 1], &[0, 1]]);
        let answer = shown(&RoundRobin.assign(&world), 2);
        assert_eq!(answer, ["0.0 0.2 1.1", "0.1 1.0 1.2"], "GRP-49");
        // Kafka's own example of subscriptions that differ.
        let world = situation(&[1, 2, 3], &[&[0], &[0, 1], &[0, 1, 2]]);
        let answer = shown(&RoundRobin.assign(&world), 3);
        assert_eq!(answer, ["0.0", "1.0", "1.1 2.0 2.1 2.2"], "GRP-49");
    }

    #[test]
    fn sticky_evens_out_where_round_robin_cannot() {
        let world = situation(&[1, 2, 3], &[&[0], &[0, 1], &[0, 1, 2]]);
        assert_eq!(shown(&STICKY.assign(&world), 3), ["0.0", "1.0 1.1", "2.0 2.1 2.2"], "GRP-49");
    }

    #[test]
    fn sticky_moves_along_a_chain_when_no_direct_move_helps() {
        // The first holds all of topic 0 and can pass on to the second, which can pass on to the third.
        let world = situation(&[4, 2], &[&[0], &[0, 1], &[1]]);
        let before: Vec<_> = world.topics().iter().flat_map(partitions_of).collect();
        let owner = |at: &PartitionId| MemberId(at.topic.0);
        let before: Vec<_> = before.iter().map(|at| (*at, owner(at))).collect();
        let answer = STICKY.assign(&owning(&world, &before));
        let loads = [0, 1, 2].map(|id| answer.iter().filter(|(_, owner)| owner.0 == id).count());
        assert_eq!(loads, [2, 2, 2], "GRP-49");
    }

    /// The squares' sum and the number of moves of the best of all answers: most even first, then fewest moves.
    fn best(world: &Situation) -> (usize, usize) {
        let all: Vec<PartitionId> = world.topics().iter().flat_map(partitions_of).collect();
        let mut choices: Vec<(Vec<usize>, usize)> = vec![(vec![0; world.members().len()], 0)];
        for partition in all {
            let mut next = Vec::new();
            for (loads, moves) in choices {
                for (at, member) in world.members().iter().enumerate() {
                    if member.topics.contains(&partition.topic) {
                        let mut loads = loads.clone();
                        loads[at] += 1;
                        next.push((loads, moves + usize::from(!member.owned.contains(&partition))));
                    }
                }
            }
            next.sort_unstable();
            next.dedup_by(|later, first| later.0 == first.0);
            choices = next;
        }
        let squares = |loads: &[usize]| loads.iter().map(|load| load * load).sum::<usize>();
        choices.iter().map(|(loads, moves)| (squares(loads), *moves)).min().unwrap()
    }

    fn judged(world: &Situation, answer: &[(PartitionId, MemberId)]) -> (usize, usize) {
        let load = |id| answer.iter().filter(|(_, owner)| *owner == id).count();
        let squares = world.members().iter().map(|member| load(member.id).pow(2)).sum();
        let kept = |(partition, owner): &&(PartitionId, MemberId)| {
            let view = world.members().iter().find(|member| member.id == *owner);
            view.is_some_and(|view| view.owned.contains(partition))
        };
        (squares, answer.len() - answer.iter().filter(kept).count())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]

        #[test]
        fn every_answer_passes_the_check_and_sticky_is_as_even_as_can_be(
            topics in prop::collection::vec(1u32..4, 1..4),
            wishes in prop::collection::vec(0u64..8, 1..5),
            owners in prop::collection::vec(0u64..6, 9),
            spread in 1u64..6,
            uniform in any::<bool>(),
        ) {
            let all: Vec<u64> = (0..topics.len() as u64).collect();
            let wished = |bits: &u64| {
                all.iter().copied().filter(|id| uniform || bits >> id & 1 == 1).collect()
            };
            let members: Vec<Vec<u64>> = wishes.iter().map(wished).collect();
            let lists: Vec<&[u64]> = members.iter().map(Vec::as_slice).collect();
            let world = situation(&topics, &lists);
            let partitions: Vec<_> = world.topics().iter().flat_map(partitions_of).collect();
            let before: Vec<_> =
                partitions.into_iter().zip(owners.into_iter().map(|owner| MemberId(owner % spread))).collect();
            let world = owning(&world, &before);
            for assignor in [&Range as &dyn Assignor, &RoundRobin, &STICKY] {
                let answer = assignor.assign(&world);
                prop_assert!(checked(&world, answer.clone()).is_ok(), "{} {answer:?}", assignor.name());
                prop_assert_eq!(&answer, &assignor.assign(&world), "GRP-49: deterministic");
            }
            let answer = STICKY.assign(&world);
            let (squares, moves) = judged(&world, &answer);
            let (least_squares, least_moves) = best(&world);
            prop_assert_eq!(squares, least_squares, "GRP-49: even");
            if uniform {
                prop_assert_eq!(moves, least_moves, "GRP-49: fewest moves");
            } else {
                prop_assert!(moves >= least_moves);
            }
            let again = STICKY.assign(&owning(&world, &answer));
            prop_assert_eq!(judged(&owning(&world, &answer), &again).1, 0, "a settled group moves nothing");
        }
    }
}
