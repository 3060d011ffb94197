//! What the store as a whole has decided: a state machine. `frames`: its records as bytes of a log.
//!
//! Every change is a [`MetadataRecord`]; the state is what applying them in order gives. A record that
//! does not fit the state is refused and changes nothing, whether a caller or a damaged disk made it.
//! Leaves to others: files, copies, elections, and names that are too much alike.
//!
//! Invariants:
//! 1. A log begins with the store's creation; disks come before the replicas on them.
//! 2. A topic has as many partitions as its settings say, each with replicas on different disks.
//! 3. The leader is in sync; who is in sync, eligible or suspect is a replica.
//! 4. Topic ids, leader epochs and producer ids only rise; a new leader begins a new epoch.

mod fields;
mod frames;
mod one_disk;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{TopicConfig, validate_topic_name};
use crate::types::{DiskId, LeaderEpoch, Offset, ProducerEpoch, ProducerId, StoreId, TopicId};

use super::replication::{EpochHistory, goes_on_without_eligible};
#[cfg(any(test, feature = "simulation"))]
pub(crate) use frames::put_checksums;
pub(crate) use frames::{FrameEnd, FrameReader, encode_frame, find_valid_frame_after, peek_store};
pub(crate) use one_disk::Copied;

/// A million partitions with thirty replicas each; nothing larger is written.
const FRAME_BYTES_MAX: usize = 64 << 20;
/// What a topic's lists of replicas may take of a frame; the rest is ample for its name and settings.
const REPLICAS_BYTES_MAX: usize = FRAME_BYTES_MAX - (64 << 10);
const PARTITIONS_MAX: usize = 1_000_000;
/// Terms, indexes, incarnations and producer ids: nothing counts so far, and what is reckoned from them does not overflow.
const COUNT_MAX: u64 = 1 << 62;
/// A name's length in bytes.
pub(crate) const PRODUCER_NAME_BYTES_MAX: usize = 255;
const PRODUCER_NAMES_MAX: usize = 1 << 20;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MetadataRecord {
    /// The first record of every log.
    StoreCreated {
        store: StoreId,
        format: u32,
    },
    /// A directory became a disk of the store, or was replaced.
    DiskAdded {
        disk: DiskId,
        uuid: u128,
        incarnation: u64,
    },
    /// The store was opened. After an unclean stop a new reign begins in every partition.
    Opened {
        clean: bool,
    },
    TopicCreated {
        id: TopicId,
        name: String,
        config: TopicConfig,
        replicas: Vec<Vec<DiskId>>,
    },
    TopicAltered {
        id: TopicId,
        config: TopicConfig,
    },
    PartitionsAdded {
        id: TopicId,
        replicas: Vec<Vec<DiskId>>,
    },
    /// The topic is gone; its files may still be there.
    TopicDeleted {
        id: TopicId,
    },
    /// Its files are gone.
    TopicRemoved {
        id: TopicId,
    },
    LogStartRaised {
        id: TopicId,
        partition: u32,
        offset: Offset,
    },
    /// A flush failed: what lies behind `durable` must be written again before it is trusted.
    ReplicaSuspect {
        id: TopicId,
        partition: u32,
        disk: DiskId,
        durable: Offset,
    },
    ReplicaCleared {
        id: TopicId,
        partition: u32,
        disk: DiskId,
    },
    /// The replica lacks what it once held: an older copy of its disk was put in its place. It neither leads nor
    /// counts until it was copied to.
    ReplicaStale {
        id: TopicId,
        partition: u32,
        disk: DiskId,
    },
    /// Who leads, who is in sync, and who else may lead. A new epoch begins at `start`, if that is known
    /// to matter; up to `high_watermark` everything was readable then.
    LeaderChanged {
        id: TopicId,
        partition: u32,
        leader: Option<DiskId>,
        epoch: LeaderEpoch,
        isr: Vec<DiskId>,
        eligible: Vec<DiskId>,
        start: Option<Offset>,
        high_watermark: Offset,
    },
    /// A partition's replicas moved.
    ReplicasChanged {
        id: TopicId,
        partition: u32,
        replicas: Vec<DiskId>,
    },
    /// Producer ids below `next` may have been given out.
    ProducerIdBlock {
        next: u64,
    },
    /// In a compacted log: numbers that are never given out again.
    Counters {
        next_topic: u64,
    },
    /// In a compacted log: a deleted topic whose files may still be there.
    TopicGone {
        id: TopicId,
        name: String,
    },
    /// Somebody holds the producer of this name from now on; who held it before is fenced.
    ProducerNamed {
        name: String,
        id: ProducerId,
        epoch: ProducerEpoch,
    },
}

/// A partition, as it was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PartitionState {
    pub(crate) replicas: Vec<DiskId>,
    pub(crate) leader: Option<DiskId>,
    pub(crate) leader_epoch: LeaderEpoch,
    /// Who led, or leads, in that epoch. `None`: nobody.
    pub(crate) led_by: Option<DiskId>,
    pub(crate) isr: Vec<DiskId>,
    /// Replicas that may lead although they are not in sync (KIP-966).
    pub(crate) eligible: Vec<DiskId>,
    /// Which reign wrote which offsets. Empty as long as there was only one replica.
    pub(crate) history: EpochHistory,
    /// Everything below could be read when that was last written down.
    pub(crate) high_watermark: Offset,
    pub(crate) log_start: Offset,
    /// Replicas whose flush failed, and the offset up to which each is trusted.
    pub(crate) suspects: BTreeMap<DiskId, Offset>,
    /// Replicas that lack what they once held, and were not copied to since.
    pub(crate) stale: BTreeSet<DiskId>,
}

/// A topic, as it was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TopicState {
    pub(crate) id: TopicId,
    pub(crate) name: String,
    pub(crate) config: TopicConfig,
    pub(crate) partitions: Vec<PartitionState>,
}

/// A disk of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DiskState {
    pub(crate) uuid: u128,
    pub(crate) incarnation: u64,
}

/// Everything that was decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MetadataState {
    store: Option<StoreId>,
    format: u32,
    disks: BTreeMap<DiskId, DiskState>,
    topics: BTreeMap<TopicId, TopicState>,
    names: BTreeMap<String, TopicId>,
    deleted: BTreeMap<TopicId, String>,
    next_topic: u64,
    next_producer: u64,
    producers: BTreeMap<String, (ProducerId, ProducerEpoch)>,
}

impl MetadataState {
    pub(crate) fn store(&self) -> Option<StoreId> {
        self.store
    }

    pub(crate) fn disk(&self, disk: DiskId) -> Option<&DiskState> {
        self.disks.get(&disk)
    }

    /// The disks of the store, whether they are there or not.
    pub(crate) fn disks(&self) -> impl Iterator<Item = DiskId> {
        self.disks.keys().copied()
    }

    pub(crate) fn topics(&self) -> impl Iterator<Item = &TopicState> {
        self.topics.values()
    }

    pub(crate) fn topic_by_name(&self, name: &str) -> Option<&TopicState> {
        self.topics.get(self.names.get(name)?)
    }

    pub(crate) fn partition(&self, id: TopicId, partition: u32) -> Option<&PartitionState> {
        self.topics.get(&id)?.partitions.get(partition as usize)
    }

    /// Topics that are deleted and whose files may still be there.
    pub(crate) fn deleted_topics(&self) -> impl Iterator<Item = (TopicId, &str)> {
        self.deleted.iter().map(|(id, name)| (*id, name.as_str()))
    }

    /// The id of the next topic. Ids are not used twice.
    pub(crate) fn next_topic_id(&self) -> TopicId {
        TopicId(self.next_topic + 1)
    }

    /// The first producer id that no block holds.
    pub(crate) fn next_producer_id(&self) -> u64 {
        self.next_producer
    }

    /// Id and epoch of the producer of that name.
    pub(crate) fn named_producer(&self, name: &str) -> Option<(ProducerId, ProducerEpoch)> {
        self.producers.get(name).copied()
    }

    /// Makes a change.
    ///
    /// # Errors
    /// What does not fit; the state is then as it was.
    pub(crate) fn apply(&mut self, record: &MetadataRecord) -> Result<(), String> {
        let creates = matches!(record, MetadataRecord::StoreCreated { .. });
        ensure(
            creates == self.store.is_none(),
            "a log begins with the store's creation, and once",
        )?;
        match record {
            MetadataRecord::StoreCreated { store, format } => {
                (self.store, self.format) = (Some(*store), *format);
            }
            MetadataRecord::DiskAdded { disk, uuid, incarnation } => {
                let newer =
                    self.disks.get(disk).is_none_or(|known| known.incarnation < *incarnation);
                ensure(newer, "the disk is known in that incarnation or a later one")?;
                ensure(*incarnation < COUNT_MAX, "the incarnations are used up")?;
                self.disks.insert(*disk, DiskState { uuid: *uuid, incarnation: *incarnation });
                // An empty directory took its place.
                for partition in self.topics.values_mut().flat_map(|topic| &mut topic.partitions) {
                    if partition.replicas.contains(disk) {
                        partition.grow_stale(*disk);
                    }
                }
            }
            MetadataRecord::Opened { clean } => self.apply_opened(*clean)?,
            MetadataRecord::TopicCreated { id, name, config, replicas } => {
                self.apply_topic_created(*id, name, config, replicas)?;
            }
            MetadataRecord::TopicAltered { id, config } => {
                let topic = self.topic_mut(*id)?;
                let same = config.partitions == topic.config.partitions;
                ensure(same, "partitions are added by another record")?;
                topic.config = config.clone();
                let min_insync = config.min_insync_replicas;
                topic.partitions.iter_mut().for_each(|all| all.forget_eligible(min_insync));
            }
            MetadataRecord::PartitionsAdded { id, replicas } => {
                self.check_replicas(replicas)?;
                let topic = self.topic_mut(*id)?;
                let present =
                    topic.partitions.iter().map(|partition| partition.replicas.as_slice());
                let all = present.chain(replicas.iter().map(Vec::as_slice));
                topic.config.partitions = fitting_count(all)?;
                topic.partitions.extend(replicas.iter().map(|disks| new_partition(disks)));
            }
            MetadataRecord::TopicDeleted { id } => {
                let topic = self.topics.remove(id).ok_or("there is no such topic")?;
                self.names.remove(&topic.name);
                self.deleted.insert(*id, topic.name);
            }
            MetadataRecord::TopicRemoved { id } => {
                self.deleted.remove(id).ok_or("the topic was not deleted")?;
            }
            MetadataRecord::LogStartRaised { id, partition, offset } => {
                let partition = self.partition_mut(*id, *partition)?;
                partition.log_start = partition.log_start.max(*offset);
                partition.history.drop_below(partition.log_start);
            }
            MetadataRecord::ReplicaSuspect { id, partition, disk, durable } => {
                let partition = self.partition_mut(*id, *partition)?;
                ensure(partition.replicas.contains(disk), "the disk has no replica")?;
                // What one failed flush left open, a later one does not close.
                let trusted = partition.suspects.entry(*disk).or_insert(*durable);
                *trusted = (*trusted).min(*durable);
            }
            MetadataRecord::ReplicaCleared { id, partition, disk } => {
                let partition = self.partition_mut(*id, *partition)?;
                partition.suspects.remove(disk).ok_or("the replica is not suspect")?;
                // It was cut, and is in sync no more, unless nobody else is: a crash may have torn off the record that said so.
                if partition.isr.len() > 1 {
                    partition.isr.retain(|known| known != disk);
                    partition.leader = partition.leader.filter(|leader| leader != disk);
                }
            }
            MetadataRecord::ReplicaStale { id, partition, disk } => {
                let partition = self.partition_mut(*id, *partition)?;
                ensure(partition.replicas.contains(disk), "the disk has no replica")?;
                partition.grow_stale(*disk);
            }
            MetadataRecord::LeaderChanged {
                id,
                partition,
                leader,
                epoch,
                isr,
                eligible,
                start,
                high_watermark,
            } => {
                let (partition, min_insync) = self.partition_and_min_insync(*id, *partition)?;
                let known = eligible.iter().all(|disk| partition.replicas.contains(disk));
                ensure(known, "no replica is on a disk that is to be eligible")?;
                let renewed = *epoch > partition.leader_epoch;
                partition.lead(*leader, *epoch, isr)?;
                partition.stale.retain(|disk| !isr.contains(disk));
                let stale = &partition.stale;
                partition.eligible =
                    eligible.iter().copied().filter(|disk| !stale.contains(disk)).collect();
                partition.forget_eligible(min_insync);
                partition.high_watermark = *high_watermark;
                if let (true, Some(start)) = (renewed, start) {
                    partition.history.begin(*epoch, *start);
                    // Whatever order the records came in: a compacted log gives the start last.
                    partition.history.drop_below(partition.log_start);
                }
            }
            MetadataRecord::ReplicasChanged { id, partition, replicas } => {
                self.check_replicas(std::slice::from_ref(replicas))?;
                let (partition, min_insync) = self.partition_and_min_insync(*id, *partition)?;
                let stay = |disk: &DiskId| replicas.contains(disk);
                // Also one that only led last: what it has may be nowhere else.
                let leader_stays = partition.led_by.is_none_or(|leader| stay(&leader));
                ensure(leader_stays, "the leader is to lose its replica")?;
                partition.replicas.clone_from(replicas);
                partition.isr.retain(stay);
                partition.eligible.retain(stay);
                partition.suspects.retain(|disk, _| replicas.contains(disk));
                partition.stale.retain(stay);
                partition.forget_eligible(min_insync);
            }
            MetadataRecord::ProducerIdBlock { next } => {
                ensure(*next >= self.next_producer, "those producer ids were given out before")?;
                ensure(*next < COUNT_MAX, "the producer ids are used up")?;
                self.next_producer = *next;
            }
            MetadataRecord::ProducerNamed { name, id, epoch } => {
                self.apply_producer_named(name, *id, *epoch)?;
            }
            MetadataRecord::Counters { next_topic } => {
                ensure(*next_topic < u64::MAX, "the topic ids are used up")?;
                self.next_topic = self.next_topic.max(*next_topic);
            }
            MetadataRecord::TopicGone { id, name } => {
                check_name(name)?;
                ensure(!self.topics.contains_key(id), "the topic is there")?;
                ensure(id.0 < u64::MAX, "the topic ids are used up")?;
                self.deleted.insert(*id, name.clone());
                self.next_topic = self.next_topic.max(id.0);
            }
        }
        Ok(())
    }

    fn apply_opened(&mut self, clean: bool) -> Result<(), String> {
        if clean {
            return Ok(());
        }
        let partitions = || self.topics.values().flat_map(|topic| &topic.partitions);
        let room = partitions().all(|partition| partition.leader_epoch.0 < u32::MAX);
        ensure(room, "the leader epochs are used up")?;
        // Where there are several replicas, an election begins the new reign.
        for partition in self.topics.values_mut().flat_map(|topic| &mut topic.partitions) {
            if partition.replicas.len() == 1 {
                partition.leader_epoch.0 += 1;
            }
        }
        Ok(())
    }

    fn apply_topic_created(
        &mut self,
        id: TopicId,
        name: &str,
        config: &TopicConfig,
        replicas: &[Vec<DiskId>],
    ) -> Result<(), String> {
        check_name(name)?;
        ensure(!self.names.contains_key(name), "a topic of that name exists")?;
        ensure(id.0 > self.next_topic, "the topic's id was given out before")?;
        ensure(id.0 < u64::MAX, "the topic ids are used up")?;
        self.check_replicas(replicas)?;
        let count = fitting_count(replicas.iter().map(Vec::as_slice))?;
        ensure(
            count == config.partitions,
            "the topic's settings name another number of partitions",
        )?;
        let partitions = replicas.iter().map(|disks| new_partition(disks)).collect();
        let topic = TopicState { id, name: name.to_owned(), config: config.clone(), partitions };
        self.next_topic = id.0;
        self.names.insert(name.to_owned(), id);
        self.topics.insert(id, topic);
        Ok(())
    }

    fn apply_producer_named(
        &mut self,
        name: &str,
        id: ProducerId,
        epoch: ProducerEpoch,
    ) -> Result<(), String> {
        let fits = !name.is_empty() && name.len() <= PRODUCER_NAME_BYTES_MAX;
        ensure(fits, "a producer's name has 1 to 255 bytes")?;
        let number = id.0 & !ProducerId::NAMED;
        let given = id.0 & ProducerId::NAMED == ProducerId::NAMED && number < self.next_producer;
        ensure(given, "the producer's id was not given out for a name")?;
        match self.producers.get_mut(name) {
            Some((known, last)) => {
                ensure(*known == id && *last < epoch, "the name has another id or a later epoch")?;
                *last = epoch;
            }
            None => {
                ensure(self.producers.len() < PRODUCER_NAMES_MAX, "there are too many names")?;
                self.producers.insert(name.to_owned(), (id, epoch));
            }
        }
        Ok(())
    }

    /// Whether each partition of the list is on different disks, which are there.
    fn check_replicas(&self, replicas: &[Vec<DiskId>]) -> Result<(), String> {
        ensure(!replicas.is_empty(), "there are no partitions")?;
        for disks in replicas {
            ensure(!disks.is_empty(), "a partition has no replicas")?;
            for (at, disk) in disks.iter().enumerate() {
                ensure(self.disks.contains_key(disk), "a replica is on no disk of the store")?;
                ensure(!disks[..at].contains(disk), "a partition is on one disk twice")?;
            }
        }
        Ok(())
    }

    /// Records whose application to an empty state gives this one.
    pub(crate) fn snapshot(&self) -> Vec<MetadataRecord> {
        let Some(store) = self.store else {
            return Vec::new();
        };
        let mut records = vec![MetadataRecord::StoreCreated { store, format: self.format }];
        for (disk, state) in &self.disks {
            let DiskState { uuid, incarnation } = *state;
            records.push(MetadataRecord::DiskAdded { disk: *disk, uuid, incarnation });
        }
        for topic in self.topics.values() {
            records.push(MetadataRecord::TopicCreated {
                id: topic.id,
                name: topic.name.clone(),
                config: topic.config.clone(),
                replicas: topic.partitions.iter().map(first_replicas).collect(),
            });
            for (number, partition) in (0..).zip(&topic.partitions) {
                let id = topic.id;
                if first_replicas(partition) != partition.replicas {
                    let replicas = partition.replicas.clone();
                    records.push(MetadataRecord::ReplicasChanged {
                        id,
                        partition: number,
                        replicas,
                    });
                }
                push_reigns(&mut records, id, number, partition);
                if partition.log_start > Offset::ZERO {
                    let offset = partition.log_start;
                    records.push(MetadataRecord::LogStartRaised { id, partition: number, offset });
                }
                for (&disk, &durable) in &partition.suspects {
                    records.push(MetadataRecord::ReplicaSuspect {
                        id,
                        partition: number,
                        disk,
                        durable,
                    });
                }
                records.extend(partition.stale.iter().map(|&disk| MetadataRecord::ReplicaStale {
                    id,
                    partition: number,
                    disk,
                }));
            }
        }
        for (id, name) in &self.deleted {
            records.push(MetadataRecord::TopicGone { id: *id, name: name.clone() });
        }
        records.push(MetadataRecord::Counters { next_topic: self.next_topic });
        records.push(MetadataRecord::ProducerIdBlock { next: self.next_producer });
        records.extend(self.producers.iter().map(|(name, (id, epoch))| {
            MetadataRecord::ProducerNamed { name: name.clone(), id: *id, epoch: *epoch }
        }));
        records
    }

    fn topic_mut(&mut self, id: TopicId) -> Result<&mut TopicState, String> {
        self.topics.get_mut(&id).ok_or_else(|| "there is no such topic".to_owned())
    }

    fn partition_mut(
        &mut self,
        id: TopicId,
        partition: u32,
    ) -> Result<&mut PartitionState, String> {
        self.partition_and_min_insync(id, partition).map(|(partition, _)| partition)
    }

    fn partition_and_min_insync(
        &mut self,
        id: TopicId,
        partition: u32,
    ) -> Result<(&mut PartitionState, u16), String> {
        let topic = self.topic_mut(id)?;
        let partition = topic.partitions.get_mut(partition as usize);
        let partition = partition.ok_or_else(|| "there is no such partition".to_owned())?;
        Ok((partition, topic.config.min_insync_replicas))
    }
}

impl PartitionState {
    /// Where the topic's minimum, or the number of replicas, falls, the watermark may go on without them.
    fn forget_eligible(&mut self, min_insync: u16) {
        let required = usize::from(min_insync).clamp(1, self.replicas.len());
        if goes_on_without_eligible(self.leader.is_some(), self.isr.len(), required) {
            self.eligible.clear();
        }
    }

    fn grow_stale(&mut self, disk: DiskId) {
        self.leader = self.leader.filter(|leader| *leader != disk);
        self.isr.retain(|other| *other != disk);
        self.eligible.retain(|other| *other != disk);
        self.stale.insert(disk);
    }

    /// Takes a leader, an epoch and who is in sync; the leader may stay while others come and go.
    fn lead(
        &mut self,
        leader: Option<DiskId>,
        epoch: LeaderEpoch,
        isr: &[DiskId],
    ) -> Result<(), String> {
        ensure(epoch >= self.leader_epoch, "the leader's epoch is an old one")?;
        if let Some(leader) = leader {
            ensure(isr.contains(&leader), "the leader is not in sync")?;
            let stays = self.leader == Some(leader);
            ensure(stays || epoch > self.leader_epoch, "a new leader begins a new epoch")?;
        }
        for (at, disk) in isr.iter().enumerate() {
            ensure(self.replicas.contains(disk), "no replica is on a disk that is to be in sync")?;
            ensure(!isr[..at].contains(disk), "a disk is in sync twice")?;
        }
        if leader.is_some() || epoch > self.leader_epoch {
            self.led_by = leader;
        }
        (self.leader, self.leader_epoch) = (leader, epoch);
        self.isr = isr.to_vec();
        Ok(())
    }
}

fn new_partition(replicas: &[DiskId]) -> PartitionState {
    PartitionState {
        replicas: replicas.to_vec(),
        leader: replicas.first().copied(),
        leader_epoch: LeaderEpoch(0),
        led_by: replicas.first().copied(),
        isr: replicas.to_vec(),
        eligible: Vec::new(),
        history: EpochHistory::default(),
        high_watermark: Offset::ZERO,
        log_start: Offset::ZERO,
        suspects: BTreeMap::new(),
        stale: BTreeSet::new(),
    }
}

/// The replicas with which a partition is to be made so that it has its leader: a new one is led by its
/// first.
fn first_replicas(partition: &PartitionState) -> Vec<DiskId> {
    let mut replicas = partition.replicas.clone();
    if let (LeaderEpoch(0), Some(leader)) = (partition.leader_epoch, partition.led_by) {
        replicas.sort_by_key(|disk| *disk != leader);
    }
    replicas
}

/// The records that give a new partition the leader and the history of this one.
fn push_reigns(
    records: &mut Vec<MetadataRecord>,
    id: TopicId,
    number: u32,
    partition: &PartitionState,
) {
    let PartitionState { leader, leader_epoch, led_by, isr, eligible, history, .. } = partition;
    let fresh = new_partition(&partition.replicas);
    let untouched = PartitionState {
        log_start: partition.log_start,
        suspects: partition.suspects.clone(),
        ..fresh
    };
    if *partition == untouched {
        return;
    }
    let last = history.reigns().last().filter(|last| last.epoch == *leader_epoch);
    let reigns = history.reigns().iter().filter(|reign| Some(*reign) != last);
    records.extend(reigns.map(|reign| MetadataRecord::LeaderChanged {
        id,
        partition: number,
        leader: None,
        epoch: reign.epoch,
        isr: Vec::new(),
        eligible: Vec::new(),
        start: Some(reign.start),
        high_watermark: Offset::ZERO,
    }));
    if let (None, Some(led_by)) = (leader, led_by) {
        records.push(MetadataRecord::LeaderChanged {
            id,
            partition: number,
            leader: Some(*led_by),
            epoch: *leader_epoch,
            isr: vec![*led_by],
            eligible: Vec::new(),
            start: last.map(|last| last.start),
            high_watermark: Offset::ZERO,
        });
    }
    records.push(MetadataRecord::LeaderChanged {
        id,
        partition: number,
        leader: *leader,
        epoch: *leader_epoch,
        isr: isr.clone(),
        eligible: eligible.clone(),
        start: last.map(|last| last.start),
        high_watermark: partition.high_watermark,
    });
}

/// Whether so many partitions of so many replicas each can be one topic's.
pub(crate) fn fit_one_topic(partitions: u32, replicas: u16) -> bool {
    u64::from(partitions) * (4 + 2 * u64::from(replicas)) <= REPLICAS_BYTES_MAX as u64
}

/// The number of a topic's partitions, if all of them can be written in one frame.
fn fitting_count<'a>(replicas: impl Iterator<Item = &'a [DiskId]>) -> Result<u32, String> {
    let (mut count, mut bytes) = (0, 0);
    for disks in replicas {
        count += 1;
        bytes += 4 + 2 * disks.len();
    }
    ensure(
        count <= PARTITIONS_MAX && bytes <= REPLICAS_BYTES_MAX,
        "the topic has too many replicas",
    )?;
    Ok(u32::try_from(count).expect("a million at most"))
}

/// A name becomes a directory's: what no topic may be called is not taken from a disk either.
fn check_name(name: &str) -> Result<(), String> {
    validate_topic_name(name).map_err(|error| error.to_string())
}

fn ensure(holds: bool, otherwise: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise.to_owned()) }
}
