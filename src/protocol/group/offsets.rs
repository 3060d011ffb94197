//! What the records of the internal topic add up to: the committed offsets of every group.
//!
//! Takes the topic's records in order, and the outcomes of transactions as their markers are met; yields
//! committed offsets. The same records give the same table, before a crash and after it, compacted or not
//! (INV-11, GRP-28): of a partition's records that count, the one with the largest *record offset* holds.
//!
//! An offset that was sent in a transaction is *pending* until the marker: kept apart by producer, and not
//! visible (GRP-20). Nothing expires unless [`OffsetTable::expired`] is asked.
//!
//! Leaves to others: writing records and tombstones, and waiting until they are durable.
//!
//! Invariant: a group is in the table only while it has a state, a committed offset or an open transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::types::{Offset, ProducerId, Timestamp, TopicId};

use super::assignment::PartitionId;
use super::records::{CommittedOffset, GroupRecord, GroupState};
use crate::types::Outcome;

/// Whose record it is, and where it stands in the internal topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordPlace {
    pub(crate) offset: Offset,
    /// The producer, if the record belongs to a transaction.
    pub(crate) transaction: Option<ProducerId>,
}

/// A transaction that has sent an offset for the partition is open; ask again (GRP-21).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a transaction has an offset pending")]
pub(crate) struct Unstable;

/// Who needs a group's offsets (GRP-09).
pub(crate) enum Usage<'a> {
    /// There were members, and the last left then.
    Empty {
        since: Timestamp,
    },
    /// There never were members: partitions are assigned by hand.
    Simple,
    /// There are members; which topics one of them is subscribed to.
    Stable {
        is_subscribed: &'a dyn Fn(TopicId) -> bool,
    },
    Rebalancing,
}

/// A value and where its record stands.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Placed<T> {
    at: Offset,
    value: T,
}

/// `None`: the transaction takes the offset back.
type Pending = BTreeMap<PartitionId, Placed<Option<CommittedOffset>>>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct GroupOffsets {
    state: Option<GroupState>,
    committed: BTreeMap<PartitionId, Placed<CommittedOffset>>,
    /// By producer. One stays here until its marker, even if a tombstone has taken all it had (GRP-25).
    open: BTreeMap<ProducerId, Pending>,
}

impl GroupOffsets {
    fn is_vacant(&self) -> bool {
        self.state.is_none() && self.committed.is_empty() && self.open.is_empty()
    }

    /// A record that counts: it holds unless a later one does already (GRP-22).
    fn settle(&mut self, partition: PartitionId, placed: Placed<Option<CommittedOffset>>) {
        let Placed { at, value } = placed;
        if self.committed.get(&partition).is_some_and(|held| held.at > at) {
            return;
        }
        if let Some(value) = value {
            self.committed.insert(partition, Placed { at, value });
            return;
        }
        self.committed.remove(&partition);
        // The table forgets where the tombstone stood, so what it outranks goes now.
        for pending in self.open.values_mut() {
            if pending.get(&partition).is_some_and(|held| held.at < at) {
                pending.remove(&partition);
            }
        }
    }

    fn is_pending(&self, partition: PartitionId) -> bool {
        self.open.values().any(|pending| pending.contains_key(&partition))
    }
}

/// The committed offsets of every group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OffsetTable {
    groups: BTreeMap<String, GroupOffsets>,
    /// In which groups each open transaction has pending offsets.
    open: BTreeMap<ProducerId, BTreeSet<String>>,
}

impl OffsetTable {
    /// Takes the next record of the topic.
    pub(crate) fn apply(&mut self, place: RecordPlace, record: GroupRecord) {
        let name = match &record {
            GroupRecord::Offset { group, .. } | GroupRecord::Group { group, .. } => group.clone(),
        };
        let group = self.groups.entry(name.clone()).or_default();
        match record {
            GroupRecord::Offset { partition, committed, .. } => {
                let placed = Placed { at: place.offset, value: committed };
                if let Some(producer) = place.transaction {
                    group.open.entry(producer).or_default().insert(partition, placed);
                    self.open.entry(producer).or_default().insert(name.clone());
                } else {
                    group.settle(partition, placed);
                }
            }
            GroupRecord::Group { state, .. } => group.state = state,
        }
        self.forget_vacant(&name);
    }

    /// Takes the marker that ends the open transaction of `producer`. One that has sent no offsets changes
    /// nothing (GRP-24).
    pub(crate) fn end_transaction(&mut self, producer: ProducerId, outcome: Outcome) {
        for name in self.open.remove(&producer).unwrap_or_default() {
            let group = self.groups.get_mut(&name).expect("a group with open transactions stays");
            let pending = group.open.remove(&producer).expect("both sides know the transaction");
            if outcome == Outcome::Committed {
                for (partition, placed) in pending {
                    group.settle(partition, placed);
                }
            }
            self.forget_vacant(&name);
        }
    }

    /// What the group has committed for the partition, and where its record stands; an unknown group has committed nothing
    /// (GRP-07).
    pub(crate) fn committed(
        &self,
        group: &str,
        partition: PartitionId,
    ) -> Option<(Offset, &CommittedOffset)> {
        self.groups.get(group)?.committed.get(&partition).map(|held| (held.at, &held.value))
    }

    /// As [`OffsetTable::committed`], for one who must not read what a transaction is about to move past.
    ///
    /// # Errors
    /// [`Unstable`] while a transaction has an offset pending for the partition.
    pub(crate) fn committed_stable(
        &self,
        group: &str,
        partition: PartitionId,
    ) -> Result<Option<(Offset, &CommittedOffset)>, Unstable> {
        let pending = self.groups.get(group).is_some_and(|group| group.is_pending(partition));
        if pending { Err(Unstable) } else { Ok(self.committed(group, partition)) }
    }

    /// The groups that anything is known of.
    pub(crate) fn groups(&self) -> impl Iterator<Item = &str> {
        self.groups.keys().map(String::as_str)
    }

    pub(crate) fn state(&self, group: &str) -> Option<&GroupState> {
        self.groups.get(group)?.state.as_ref()
    }

    /// All that the group has committed.
    pub(crate) fn offsets(
        &self,
        group: &str,
    ) -> impl Iterator<Item = (PartitionId, &CommittedOffset)> {
        let committed = self.groups.get(group).map(|group| &group.committed);
        committed.into_iter().flatten().map(|(partition, held)| (*partition, &held.value))
    }

    /// Everything that counts, with where its record stands; in no log order. What is pending is not among it.
    pub(crate) fn live(&self) -> impl Iterator<Item = (Offset, GroupRecord)> {
        self.groups.iter().flat_map(|(name, group)| {
            let state = group.state.iter().map(|state| {
                let record = GroupRecord::Group { group: name.clone(), state: Some(state.clone()) };
                (Offset::ZERO, record)
            });
            let committed = group.committed.iter().map(|(partition, held)| {
                let committed = Some(held.value.clone());
                let record =
                    GroupRecord::Offset { group: name.clone(), partition: *partition, committed };
                (held.at, record)
            });
            state.chain(committed)
        })
    }

    /// Whether the group has to stay though it is empty: a marker will come (GRP-09).
    pub(crate) fn has_open_transactions(&self, group: &str) -> bool {
        self.groups.get(group).is_some_and(|group| !group.open.is_empty())
    }

    /// What has to be taken back by tombstones when the group goes: committed and pending (GRP-08).
    pub(crate) fn partitions_of(&self, group: &str) -> BTreeSet<PartitionId> {
        let Some(group) = self.groups.get(group) else {
            return BTreeSet::new();
        };
        let pending = group.open.values().flat_map(BTreeMap::keys);
        group.committed.keys().chain(pending).copied().collect()
    }

    /// What has to be taken back by tombstones when a topic goes: committed and pending (GRP-10).
    pub(crate) fn partitions_of_topic(&self, topic: TopicId) -> Vec<(&str, PartitionId)> {
        let mut found = Vec::new();
        for group in self.groups() {
            let partitions = self.partitions_of(group).into_iter();
            found.extend(partitions.filter(|at| at.topic == topic).map(|at| (group, at)));
        }
        found
    }

    /// The topics for which anything is committed or pending.
    pub(crate) fn topics(&self) -> BTreeSet<TopicId> {
        let partitions = self.groups().flat_map(|group| self.partitions_of(group));
        partitions.map(|partition| partition.topic).collect()
    }

    /// The group's offsets that nobody has needed for `retention` (GRP-09). Neither those of a topic that
    /// is subscribed to nor those with a pending one, and none at all during a rebalance.
    pub(crate) fn expired(
        &self,
        group: &str,
        usage: &Usage<'_>,
        retention: Duration,
        now: Timestamp,
    ) -> Vec<PartitionId> {
        let Some(offsets) = self.groups.get(group) else {
            return Vec::new();
        };
        let needed_until = |partition: &PartitionId, committed: &CommittedOffset| match usage {
            // A commit into an empty group is newer than its emptiness.
            Usage::Empty { since } => Some(committed.committed_at.max(*since)),
            Usage::Simple => Some(committed.committed_at),
            Usage::Stable { is_subscribed } => {
                (!is_subscribed(partition.topic)).then_some(committed.committed_at)
            }
            Usage::Rebalancing => None,
        };
        let is_expired = |partition: &PartitionId, held: &Placed<CommittedOffset>| {
            let since = needed_until(partition, &held.value);
            // A commit from the future is not old, even if nothing is to be kept.
            let old = since.is_some_and(|since| since <= now && now.since(since) >= retention);
            old && !offsets.is_pending(*partition)
        };
        let expired = offsets.committed.iter().filter(|(at, held)| is_expired(at, held));
        expired.map(|(partition, _)| *partition).collect()
    }

    fn forget_vacant(&mut self, group: &str) {
        if self.groups.get(group).is_some_and(GroupOffsets::is_vacant) {
            self.groups.remove(group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PEAR: PartitionId = PartitionId { topic: TopicId(1), partition: 0 };
    const PLUM: PartitionId = PartitionId { topic: TopicId(2), partition: 5 };
    const DAY: Duration = Duration::from_secs(86_400);

    fn offset(partition: PartitionId, offset: Option<u64>) -> GroupRecord {
        let committed = offset.map(|offset| CommittedOffset {
            offset: Offset(offset),
            leader_epoch: None,
            committed_at: Timestamp(0),
            metadata: String::new(),
        });
        GroupRecord::Offset { group: "g".to_owned(), partition, committed }
    }

    /// A table and the next record's offset.
    #[derive(Default)]
    struct Topic(OffsetTable, u64);

    impl Topic {
        fn plain(&mut self, partition: PartitionId, value: Option<u64>) {
            self.record(None, partition, value);
        }

        fn sent(&mut self, producer: u64, partition: PartitionId, value: Option<u64>) {
            self.record(Some(ProducerId(producer)), partition, value);
        }

        fn record(
            &mut self,
            transaction: Option<ProducerId>,
            partition: PartitionId,
            value: Option<u64>,
        ) {
            let place = RecordPlace { offset: Offset(self.1), transaction };
            self.0.apply(place, offset(partition, value));
            self.1 += 1;
        }

        fn commit(&mut self, producer: u64) {
            self.0.end_transaction(ProducerId(producer), Outcome::Committed);
        }

        fn abort(&mut self, producer: u64) {
            self.0.end_transaction(ProducerId(producer), Outcome::Aborted);
        }

        fn read(&self, partition: PartitionId) -> Option<u64> {
            self.0.committed("g", partition).map(|(_, committed)| committed.offset.0)
        }
    }

    #[test]
    fn a_commit_holds_until_a_later_one_backwards_too() {
        let mut topic = Topic::default();
        assert_eq!(topic.read(PEAR), None, "GRP-07");
        topic.plain(PEAR, Some(9));
        topic.plain(PEAR, Some(4));
        assert_eq!((topic.read(PEAR), topic.read(PLUM)), (Some(4), None), "GRP-06");
        assert_eq!(topic.0.committed("other", PEAR), None, "GRP-07");
    }

    #[test]
    fn offsets_of_a_transaction_are_seen_from_the_commit_marker_on_and_never_after_an_abort() {
        let mut topic = Topic::default();
        topic.plain(PEAR, Some(1));
        topic.sent(7, PEAR, Some(2));
        topic.sent(8, PLUM, Some(3));
        assert_eq!((topic.read(PEAR), topic.read(PLUM)), (Some(1), None), "GRP-20");
        assert_eq!(topic.0.committed_stable("g", PEAR), Err(Unstable), "GRP-21");
        topic.abort(8);
        assert_eq!(topic.0.committed_stable("g", PLUM), Ok(None), "GRP-20");
        topic.commit(7);
        assert_eq!((topic.read(PEAR), topic.read(PLUM)), (Some(2), None), "GRP-20");
        let before = topic.0.clone();
        topic.commit(99);
        assert_eq!(topic.0, before, "GRP-24");
    }

    #[test]
    fn the_later_record_wins_whichever_marker_comes_first() {
        let mut topic = Topic::default();
        topic.sent(7, PEAR, Some(2));
        topic.plain(PEAR, Some(5));
        topic.commit(7);
        assert_eq!(topic.read(PEAR), Some(5), "GRP-22");
        topic.sent(7, PEAR, Some(6));
        topic.sent(8, PEAR, Some(7));
        topic.commit(8);
        topic.commit(7);
        assert_eq!(topic.read(PEAR), Some(7), "GRP-23");
    }

    #[test]
    fn a_tombstone_takes_pending_offsets_along_and_leaves_the_transaction_open() {
        let mut topic = Topic::default();
        topic.sent(7, PEAR, Some(2));
        topic.plain(PEAR, None);
        assert!(topic.0.has_open_transactions("g"), "GRP-25");
        assert_eq!(topic.0.committed_stable("g", PEAR), Ok(None), "GRP-25");
        topic.commit(7);
        assert_eq!(topic.read(PEAR), None, "GRP-25");
        assert_eq!(topic.0, OffsetTable::default(), "nothing is left of the group");
    }

    #[test]
    fn a_deleted_topic_or_group_is_taken_back_with_what_is_pending() {
        let mut topic = Topic::default();
        topic.plain(PEAR, Some(1));
        topic.sent(7, PLUM, Some(2));
        assert_eq!(topic.0.partitions_of_topic(PLUM.topic), [("g", PLUM)], "GRP-10");
        assert_eq!(topic.0.partitions_of("g"), BTreeSet::from([PEAR, PLUM]), "GRP-08");
        assert!(topic.0.partitions_of("other").is_empty());
        let listed: Vec<_> = topic.0.offsets("g").map(|(at, held)| (at, held.offset.0)).collect();
        assert_eq!(listed, [(PEAR, 1)], "GRP-20");
    }

    #[test]
    fn a_group_is_known_as_long_as_its_state_is() {
        let mut topic = Topic::default();
        let state = GroupState { generation: 3, empty_since: None, assignor: "range".to_owned() };
        let place = RecordPlace { offset: Offset(0), transaction: None };
        let record = |state| GroupRecord::Group { group: "g".to_owned(), state };
        topic.0.apply(place, record(Some(state.clone())));
        assert_eq!((topic.0.state("g"), topic.0.groups().count()), (Some(&state), 1));
        topic.0.apply(place, record(None));
        assert_eq!(topic.0, OffsetTable::default());
    }

    #[test]
    fn offsets_expire_by_the_time_since_which_nobody_has_needed_them() {
        let mut topic = Topic::default();
        topic.plain(PEAR, Some(1));
        topic.plain(PLUM, Some(1));
        let at = |days: u32| Timestamp(0).plus(DAY * days);
        let expired =
            |usage: &Usage<'_>, days| topic.0.expired("g", usage, DAY * 7, at(days)).len();
        let empty = Usage::Empty { since: at(10) };
        assert_eq!([16, 17].map(|days| expired(&empty, days)), [0, 2], "GRP-09");
        assert_eq!([6, 7].map(|days| expired(&Usage::Simple, days)), [0, 2], "GRP-09");
        let wants_pear = |topic: TopicId| topic == PEAR.topic;
        let stable = Usage::Stable { is_subscribed: &wants_pear };
        assert_eq!(topic.0.expired("g", &stable, DAY * 7, at(99)), [PLUM], "GRP-09");
        assert_eq!(expired(&Usage::Rebalancing, 99), 0, "GRP-09");
        let early = Usage::Empty { since: Timestamp::MIN };
        assert_eq!([6, 7].map(|days| expired(&early, days)), [0, 2], "a late commit is kept");
        assert!(topic.0.expired("g", &Usage::Simple, Duration::ZERO, Timestamp(-1)).is_empty());
        topic.sent(7, PLUM, Some(2));
        assert_eq!(topic.0.expired("g", &Usage::Simple, DAY, at(99)), [PEAR], "GRP-09");
        topic.abort(7);
        assert_eq!(topic.0.expired("g", &Usage::Simple, DAY, at(99)).len(), 2, "GRP-09");
    }

    /// One entry of the internal topic.
    #[derive(Clone, Debug)]
    enum Entry {
        Record { producer: Option<u64>, partition: PartitionId, value: Option<u64> },
        Marker { producer: u64, commit: bool },
    }

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let record = (0u64..4, any::<bool>(), prop::option::weighted(0.8, 0u64..50)).prop_map(
            |(producer, pear, value)| Entry::Record {
                producer: (producer < 3).then_some(producer),
                partition: if pear { PEAR } else { PLUM },
                value,
            },
        );
        let marker = (0u64..3, any::<bool>())
            .prop_map(|(producer, commit)| Entry::Marker { producer, commit });
        prop::collection::vec(prop_oneof![3 => record, 1 => marker], 0..40)
    }

    fn replay(log: &[(u64, Entry)]) -> OffsetTable {
        let mut table = OffsetTable::default();
        for (at, entry) in log {
            match entry.clone() {
                Entry::Record { producer, partition, value } => {
                    let transaction = producer.map(ProducerId);
                    let place = RecordPlace { offset: Offset(*at), transaction };
                    table.apply(place, offset(partition, value));
                }
                Entry::Marker { producer, commit } => {
                    let outcome = if commit { Outcome::Committed } else { Outcome::Aborted };
                    table.end_transaction(ProducerId(producer), outcome);
                }
            }
        }
        table
    }

    /// By each entry: `Some(true)` if it counts, `Some(false)` if it was aborted, `None` if undecided.
    fn decided(log: &[(u64, Entry)]) -> Vec<Option<bool>> {
        let fate = |at: usize| match &log[at].1 {
            Entry::Record { producer: Some(own), .. } => {
                log[at..].iter().find_map(|(_, entry)| match entry {
                    Entry::Marker { producer, commit } if producer == own => Some(*commit),
                    _ => None,
                })
            }
            _ => Some(true),
        };
        (0..log.len()).map(fate).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn the_last_record_that_counts_holds_and_a_compacted_topic_says_the_same(
            entries in entries(),
        ) {
            let log: Vec<(u64, Entry)> = (0..).zip(entries).collect();
            let table = replay(&log);
            let fates = decided(&log);
            let counting = |wanted: PartitionId| {
                let fates = fates.clone();
                log.iter().zip(fates).filter_map(move |((at, entry), fate)| match entry {
                    Entry::Record { partition, value, .. }
                        if *partition == wanted && fate == Some(true) => Some((*at, *value)),
                    _ => None,
                })
            };
            for partition in [PEAR, PLUM] {
                let last = counting(partition).next_back().and_then(|(_, value)| value);
                let read = table.committed("g", partition).map(|(_, held)| held.offset.0);
                prop_assert_eq!(read, last, "GRP-22, GRP-28");
            }
            // Below the last stable offset, compaction keeps the last record of a key that counts.
            let stable = fates.iter().position(Option::is_none).unwrap_or(log.len());
            let kept = |(at, entry): &&(u64, Entry)| {
                let place = usize::try_from(*at).unwrap();
                let Entry::Record { partition, .. } = entry else { return true };
                let mut later = counting(*partition).skip_while(|(other, _)| other <= at);
                let outdone = later.next().is_some_and(|(other, _)| other < stable as u64);
                place >= stable || (fates[place] == Some(true) && !outdone)
            };
            let compacted: Vec<_> = log.iter().filter(kept).cloned().collect();
            let again = replay(&compacted);
            for partition in [PEAR, PLUM] {
                let read = |table: &OffsetTable| table.committed_stable("g", partition).map(|held| held.map(|(at, held)| (at, held.clone())));
                prop_assert_eq!(read(&again), read(&table), "INV-11, GRP-28");
            }
        }
    }
}
