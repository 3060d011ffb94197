//! What applications see of groups from outside, and do with them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::protocol::group::assignment::{MemberId, PartitionId};
use crate::protocol::group::records::GroupRecord;
use crate::store::{Shared, Store};
use crate::types::{Offset, Timestamp, TopicId, TopicPartition};

use super::{CommittedOffset, Groups, records, shown, taken_back};

/// What a group is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GroupPhase {
    /// It has no members.
    Empty,
    /// Every partition is with the member that it is meant for.
    Stable,
    /// Partitions are on their way from one member to another.
    Rebalancing,
}

/// A group, as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupDescription {
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub phase: GroupPhase,
    /// How often it was rebalanced.
    pub generation: u64,
    /// The members' assignor.
    pub assignor: Option<String>,
    /// Those that there are, from the oldest on.
    pub members: Vec<GroupMember>,
    /// What it has committed, by partition.
    pub offsets: Vec<GroupOffset>,
}

/// A member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMember {
    /// Tells it from every other member that the group has had.
    pub id: MemberId,
    /// Its instance id (`group.instance.id`), if it has one.
    pub instance: Option<String>,
    /// False: its place is kept, and no consumer fills it now.
    pub present: bool,
    /// The last generation that it was told of.
    pub generation: u64,
    /// The topics that it is subscribed to.
    pub topics: Vec<String>,
    /// The partitions that it has.
    pub partitions: Vec<TopicPartition>,
}

/// How far a group has come in a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupOffset {
    /// The partition.
    pub partition: TopicPartition,
    /// What was committed for it.
    pub committed: CommittedOffset,
    /// When.
    pub committed_at: Timestamp,
    /// How many offsets behind the high watermark that is. `None`: the partition cannot be asked now, or its watermark is not
    /// known, since the store was opened with too few of its replicas.
    pub lag: Option<u64>,
}

/// Where a group is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetTo {
    /// At the log start.
    Earliest,
    /// At the high watermark.
    Latest,
    /// At the first record that is not older; behind the last if there is none.
    Time(Timestamp),
    /// There, or at the nearest offset that the log has.
    To(Offset),
    /// That many offsets from what is committed, or at the nearest offset that the log has.
    Shift(i64),
}

impl Store {
    /// The groups that have members or have committed something, by name.
    ///
    /// # Errors
    /// What reading the internal topic runs into.
    ///
    /// # Examples
    /// ```
    /// use oncelog::Store;
    /// let store = Store::in_memory(1)?;
    /// assert_eq!(store.groups()?, [] as [String; 0]);
    /// # Ok::<(), oncelog::Error>(())
    /// ```
    pub fn groups(&self) -> Result<Vec<String>> {
        let shared = self.shared();
        let groups = shared.groups()?;
        let mut names: Vec<String> = groups
            .offsets
            .look(shared, |table| table.groups().map(str::to_owned).collect::<Vec<_>>())?;
        let cells: Vec<_> = groups.cells.lock().values().cloned().collect();
        let live = cells.iter().filter(|cell| !cell.state.lock().group.is_empty());
        names.extend(live.map(|cell| cell.name.to_string()));
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// A group, with its members, what it has committed, and how far behind it is.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`]; what reading the internal topic runs into.
    pub fn group(&self, name: &str) -> Result<GroupDescription> {
        let shared = self.shared();
        shared.groups()?.describe(shared, name)
    }

    /// Has a group without members go on elsewhere in every partition of `topic`. Returns where.
    ///
    /// # Errors
    /// [`Error::GroupNotEmpty`]; [`Error::NoOffset`] for a shift from where nothing is committed;
    /// [`Error::UnknownTopicOrPartition`]; [`Error::TimedOut`] while it is not known how far a partition was acknowledged, since
    /// the store was opened with too few of its replicas; those of an append.
    pub fn reset_offsets(
        &self,
        group: &str,
        topic: &str,
        to: ResetTo,
    ) -> Result<Vec<(TopicPartition, Offset)>> {
        let shared = self.shared();
        let groups = shared.groups()?;
        let found = self.topic(topic)?;
        let partitions: Vec<_> =
            (0..found.partitions).map(|at| TopicPartition::new(topic, at)).collect();
        let committed =
            self.committed_offsets(group, &partitions, shared.options.append_timeout)?;
        let mut offsets = Vec::with_capacity(partitions.len());
        for (partition, committed) in partitions.into_iter().zip(committed) {
            let offset = self.offset_to(&partition, to, committed.as_ref(), group)?;
            offsets.push((partition, CommittedOffset::from(offset)));
        }
        let read = BTreeMap::from([(Arc::from(topic), found.id)]);
        let metadata = super::ConsumerGroupMetadata::of_reader(group, read);
        let placed = shared.placed_offsets(&metadata, &offsets)?;
        if placed.is_empty() {
            // Another topic may have its name by now.
            return Err(Error::UnknownTopicOrPartition {
                partition: TopicPartition::new(topic, 0),
            });
        }
        let ticket =
            groups.commit(shared, None, &metadata, &placed).map_err(|error| match error {
                Error::UnknownMember { group, .. } => Error::GroupNotEmpty { group },
                error => error,
            })?;
        ticket.wait(shared.options.append_timeout)?;
        Ok(offsets
            .into_iter()
            .map(|(partition, committed)| (partition, committed.offset))
            .collect())
    }

    fn offset_to(
        &self,
        partition: &TopicPartition,
        to: ResetTo,
        committed: Option<&CommittedOffset>,
        group: &str,
    ) -> Result<Offset> {
        let log = self.partition(partition.topic(), partition.partition())?;
        if to != ResetTo::Earliest {
            log.wait_for_acknowledged(self.shared().options.append_timeout)?;
        }
        let (start, end) = (log.log_start_offset(), log.high_watermark());
        let offset = match to {
            ResetTo::Earliest => start,
            ResetTo::Latest => end,
            ResetTo::Time(time) => log.offset_for_time(time)?.unwrap_or(end),
            ResetTo::To(offset) => offset,
            ResetTo::Shift(by) => {
                let Some(committed) = committed else {
                    let (partition, group) = (partition.clone(), group.to_owned());
                    return Err(Error::NoOffset { partition, group });
                };
                Offset(committed.offset.0.saturating_add_signed(by))
            }
        };
        Ok(offset.clamp(start, end))
    }

    /// Forgets a group without members, and all that it has committed.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`], [`Error::GroupNotEmpty`]; those of an append.
    pub fn delete_group(&self, name: &str) -> Result<()> {
        let shared = self.shared();
        shared.groups()?.delete(shared, name)
    }
}

impl Groups {
    fn describe(&self, shared: &Arc<Shared>, name: &str) -> Result<GroupDescription> {
        let cell = self.cells.lock().get(name).cloned();
        let topics: HashMap<TopicId, Arc<str>> = {
            let topics = shared.topics.read();
            topics.values().map(|topic| (topic.id, Arc::clone(&topic.name))).collect()
        };
        let named = |at: &PartitionId| {
            let topic = topics.get(&at.topic)?;
            Some(TopicPartition::new(Arc::clone(topic), at.partition))
        };
        let mut description = GroupDescription {
            name: name.to_owned(),
            phase: GroupPhase::Empty,
            generation: 0,
            assignor: None,
            members: Vec::new(),
            offsets: Vec::new(),
        };
        if let Some(cell) = cell {
            let state = cell.state.lock();
            let group = &state.group;
            description.generation = group.generation();
            description.assignor = group.assignor().map(str::to_owned);
            description.phase = match (group.is_empty(), group.is_rebalancing()) {
                (true, _) => GroupPhase::Empty,
                (false, true) => GroupPhase::Rebalancing,
                (false, false) => GroupPhase::Stable,
            };
            let members = group.members().into_iter().map(|member| GroupMember {
                id: member.member,
                instance: member.instance.map(|instance| instance.to_string()),
                present: member.present,
                generation: member.generation,
                topics: member
                    .topics
                    .iter()
                    .filter_map(|topic| topics.get(topic).map(ToString::to_string))
                    .collect(),
                partitions: member.holds.iter().filter_map(named).collect(),
            });
            description.members = members.collect();
        }
        let (state, offsets) = self.offsets.look(shared, |table| {
            let offsets: Vec<(PartitionId, records::CommittedOffset)> =
                table.offsets(name).map(|(at, held)| (at, held.clone())).collect();
            (table.state(name).cloned(), offsets)
        })?;
        if description.members.is_empty() && state.is_none() && offsets.is_empty() {
            return Err(Error::UnknownGroup { group: name.to_owned() });
        }
        if let Some(state) = state {
            description.generation = description.generation.max(state.generation);
        }
        for (at, held) in offsets {
            let Some(partition) = named(&at) else { continue };
            let core = shared.core_of(at).ok().flatten();
            let core = core.filter(|core| core.wait_for_acknowledged(Duration::ZERO).is_ok());
            let end = core.map(|core| core.high_watermark());
            description.offsets.push(GroupOffset {
                partition,
                lag: end.map(|end| end.0.saturating_sub(held.offset.0)),
                committed_at: held.committed_at,
                committed: shown(held),
            });
        }
        description.offsets.sort_by(|one, other| one.partition.cmp(&other.partition));
        Ok(description)
    }

    fn delete(&self, shared: &Arc<Shared>, name: &str) -> Result<()> {
        let known = self.offsets.look(shared, |table| table.groups().any(|group| group == name))?;
        if !known && !self.cells.lock().contains_key(name) {
            return Err(Error::UnknownGroup { group: name.to_owned() });
        }
        let tickets = self.in_group(shared, &name.into(), |_, state| {
            if !state.group.is_empty() {
                return Err(Error::GroupNotEmpty { group: name.to_owned() });
            }
            let mut gone: Vec<_> = self.offsets.look(shared, |table| {
                table.partitions_of(name).into_iter().map(|at| taken_back(name, at)).collect()
            })?;
            gone.push(GroupRecord::Group { group: name.to_owned(), state: None });
            let tickets = self.offsets.take_back(shared, &gone)?;
            state.is_gone = true;
            Ok(tickets)
        })?;
        self.forget_if_gone(name);
        let timeout = shared.options.append_timeout;
        tickets.into_iter().try_for_each(|ticket| ticket.wait(timeout).map(drop))
    }
}
