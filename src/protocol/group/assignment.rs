//! What an assignor is shown, and the check that its answer has to pass.
//!
//! A [`Situation`] is all that an assignor may look at, in an order that does not depend on chance; an
//! answer names a member for every partition. Answers of the application's own assignors are input from
//! outside: [`checked`] accepts one only if each partition of each subscribed topic goes to exactly one
//! member, which is subscribed to that topic.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::types::TopicId;

/// One handle of one member. Never used twice in a group, so a late call is known for what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u64);

impl fmt::Display for MemberId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "member {}", self.0)
    }
}

/// A partition by its topic's id: a topic that was deleted and made again is another one (CONS-13).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionId {
    /// The topic's id.
    pub topic: TopicId,
    /// Its number, from 0.
    pub partition: u32,
}

impl fmt::Display for PartitionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.topic, self.partition)
    }
}

/// A topic as groups see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicView {
    /// Its id.
    pub id: TopicId,
    /// Its name.
    pub name: Arc<str>,
    /// How many partitions it has.
    pub partitions: u32,
}

/// A member as assignors see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberView {
    /// Its id.
    pub id: MemberId,
    /// Its instance id, if it has one.
    pub instance: Option<Arc<str>>,
    /// What it is subscribed to, in ascending order.
    pub topics: Vec<TopicId>,
    /// What the last assignment gave it, in ascending order.
    pub owned: Vec<PartitionId>,
}

/// What an assignment starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Situation {
    topics: Vec<TopicView>,
    members: Vec<MemberView>,
}

impl Situation {
    /// Brings both lists into Kafka's order: topics by name; members with an instance id by that id, then
    /// the others from the oldest on.
    pub fn new(mut topics: Vec<TopicView>, mut members: Vec<MemberView>) -> Self {
        topics.sort_by(|one, other| (&one.name, one.id).cmp(&(&other.name, other.id)));
        let rank = |member: &MemberView| (member.instance.is_none(), member.instance.clone());
        members.sort_by_cached_key(|member| (rank(member), member.id));
        for member in &mut members {
            member.topics.sort_unstable();
            member.owned.sort_unstable();
        }
        Self { topics, members }
    }

    /// The topics that somebody is subscribed to, by name.
    pub fn topics(&self) -> &[TopicView] {
        &self.topics
    }

    pub fn members(&self) -> &[MemberView] {
        &self.members
    }

    /// For each topic, the places of its subscribers among the members.
    pub fn subscribers(&self) -> Vec<Vec<usize>> {
        let mut subscribers = vec![Vec::new(); self.topics.len()];
        let places = self.topic_places();
        for (at, member) in self.members.iter().enumerate() {
            for place in member.topics.iter().filter_map(|topic| places.get(topic)) {
                subscribers[*place].push(at);
            }
        }
        subscribers
    }

    pub fn topic_places(&self) -> BTreeMap<TopicId, usize> {
        self.topics.iter().enumerate().map(|(place, topic)| (topic.id, place)).collect()
    }
}

/// Decides who gets what. Called with the group's lock held: no waiting, no calls into the store.
pub trait Assignor: Send + Sync {
    /// By this name members agree that they use the same one.
    fn name(&self) -> &str;

    /// Whether members keep working on what they keep (KIP-429). If not, all of them put everything down
    /// before anybody takes anything up.
    fn is_cooperative(&self) -> bool {
        true
    }

    /// A member for each partition of each topic of `situation`. The same situation has to give the same
    /// answer.
    fn assign(&self, situation: &Situation) -> Vec<(PartitionId, MemberId)>;
}

impl fmt::Debug for dyn Assignor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// An answer that passed the check.
pub(crate) type Assignment = BTreeMap<PartitionId, MemberId>;

/// Why an assignor's answer cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AssignmentFault {
    #[error("{0} is not in the group")]
    UnknownMember(MemberId),
    #[error("{0} is not to be assigned")]
    UnknownPartition(PartitionId),
    #[error("{member} is not subscribed to the topic of {partition}")]
    NotSubscribed { partition: PartitionId, member: MemberId },
    #[error("{0} is assigned twice")]
    Twice(PartitionId),
    #[error("{0} is assigned to nobody")]
    Nobody(PartitionId),
}

/// The answer as a map, if each partition has exactly one owner and each owner is subscribed.
pub(crate) fn checked(
    situation: &Situation,
    mut answer: Vec<(PartitionId, MemberId)>,
) -> Result<Assignment, AssignmentFault> {
    let members: BTreeMap<MemberId, &MemberView> =
        situation.members.iter().map(|member| (member.id, member)).collect();
    let places = situation.topic_places();
    answer.sort_unstable();
    for (at, (partition, member)) in answer.iter().enumerate() {
        let place = places.get(&partition.topic);
        let exists = place.is_some_and(|at| partition.partition < situation.topics[*at].partitions);
        if !exists {
            return Err(AssignmentFault::UnknownPartition(*partition));
        }
        let view = members.get(member).ok_or(AssignmentFault::UnknownMember(*member))?;
        if view.topics.binary_search(&partition.topic).is_err() {
            let (partition, member) = (*partition, *member);
            return Err(AssignmentFault::NotSubscribed { partition, member });
        }
        if at > 0 && answer[at - 1].0 == *partition {
            return Err(AssignmentFault::Twice(*partition));
        }
    }
    // Each entry is a partition that is to be assigned, and none is there twice: counting shows a gap.
    let wanted: u64 = situation.topics.iter().map(|topic| u64::from(topic.partitions)).sum();
    let assignment: Assignment = answer.into_iter().collect();
    if assignment.len() as u64 != wanted {
        let missing = situation.topics.iter().flat_map(partitions_of);
        let first = missing.into_iter().find(|partition| !assignment.contains_key(partition));
        return Err(AssignmentFault::Nobody(first.expect("fewer are assigned than there are")));
    }
    Ok(assignment)
}

pub(crate) fn partitions_of(topic: &TopicView) -> impl Iterator<Item = PartitionId> + use<> {
    let id = topic.id;
    (0..topic.partitions).map(move |partition| PartitionId { topic: id, partition })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(topic: u64, partition: u32) -> PartitionId {
        PartitionId { topic: TopicId(topic), partition }
    }

    fn situation() -> Situation {
        let topic = |id, name: &str, partitions| TopicView {
            id: TopicId(id),
            name: name.into(),
            partitions,
        };
        let member = |id, instance: Option<&str>, topics: &[u64]| MemberView {
            id: MemberId(id),
            instance: instance.map(Into::into),
            topics: topics.iter().copied().map(TopicId).collect(),
            owned: Vec::new(),
        };
        Situation::new(
            vec![topic(1, "b", 2), topic(2, "a", 1)],
            vec![member(1, None, &[2, 1]), member(2, Some("y"), &[1]), member(3, Some("x"), &[1])],
        )
    }

    #[test]
    fn static_members_come_first_by_instance_and_topics_by_name() {
        let situation = situation();
        let order: Vec<u64> = situation.members().iter().map(|member| member.id.0).collect();
        assert_eq!(order, [3, 2, 1], "GRP-49");
        assert_eq!(situation.topics()[0].name.as_ref(), "a", "GRP-49");
        assert_eq!(situation.subscribers(), [vec![2], vec![0, 1, 2]]);
    }

    #[test]
    fn an_answer_is_taken_only_if_each_partition_has_one_subscribed_owner() {
        let situation = situation();
        let sound = vec![(at(1, 1), MemberId(3)), (at(1, 0), MemberId(2)), (at(2, 0), MemberId(1))];
        let assignment = checked(&situation, sound.clone()).unwrap();
        assert_eq!(assignment.len(), 3);
        assert_eq!(assignment[&at(1, 1)], MemberId(3));

        let with = |entry| sound.iter().copied().chain([entry]).collect::<Vec<_>>();
        let faults = [
            (with((at(1, 0), MemberId(3))), AssignmentFault::Twice(at(1, 0))),
            (with((at(1, 0), MemberId(2))), AssignmentFault::Twice(at(1, 0))),
            (with((at(1, 2), MemberId(3))), AssignmentFault::UnknownPartition(at(1, 2))),
            (with((at(9, 0), MemberId(3))), AssignmentFault::UnknownPartition(at(9, 0))),
            (with((at(1, 0), MemberId(7))), AssignmentFault::UnknownMember(MemberId(7))),
            (sound[..2].to_vec(), AssignmentFault::Nobody(at(2, 0))),
            (Vec::new(), AssignmentFault::Nobody(at(2, 0))),
            (
                vec![(at(2, 0), MemberId(2))],
                AssignmentFault::NotSubscribed { partition: at(2, 0), member: MemberId(2) },
            ),
        ];
        for (answer, fault) in faults {
            assert_eq!(checked(&situation, answer.clone()), Err(fault), "{answer:?}");
        }
    }
}
