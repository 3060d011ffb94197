//! What the store as a whole has decided: a state machine, and the frames of its log.
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
//!
//! A frame carries the *term* (which opening of the store wrote it) and the *index* (how many records came
//! before), so that of several disks' logs the newest is known by (term, index).
//!
//! | byte | size | field    | meaning                                              |
//! |-----:|-----:|----------|------------------------------------------------------|
//! |    0 |    4 | `length` | bytes of the whole frame; 0 = end of log             |
//! |    4 |    4 | `crc`    | CRC-32 of bytes 8.. and of the length, seeded with the store's id |
//! |    8 |    8 | `term`   |                                                      |
//! |   16 |    8 | `index`  | counted from 1                                       |
//! |   24 |    1 | `kind`   | which record                                         |
//! |   25 |      | fields   | fixed numbers little-endian; lists and texts behind a u32 count |

mod fields;
mod one_disk;

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{TopicConfig, validate_topic_name};
use crate::error::DecodeError;
use crate::types::{DiskId, LeaderEpoch, Offset, ProducerEpoch, ProducerId, StoreId, TopicId};

use super::replication::EpochHistory;
use fields::{Fields, Target};
pub(crate) use one_disk::Copied;

const HEAD_BYTES: usize = 25;
/// A million partitions with thirty replicas each; nothing larger is written.
const FRAME_BYTES_MAX: usize = 64 << 20;
/// What a topic's lists of replicas may take of a frame; the rest is ample for its name and settings.
const REPLICAS_BYTES_MAX: usize = FRAME_BYTES_MAX - (64 << 10);
const PARTITIONS_MAX: usize = 1_000_000;
const KIND_MAX: u8 = 18;
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
                let partition = self.partition_mut(*id, *partition)?;
                let known = eligible.iter().all(|disk| partition.replicas.contains(disk));
                ensure(known, "no replica is on a disk that is to be eligible")?;
                let renewed = *epoch > partition.leader_epoch;
                partition.lead(*leader, *epoch, isr)?;
                partition.stale.retain(|disk| !isr.contains(disk));
                let stale = &partition.stale;
                partition.eligible =
                    eligible.iter().copied().filter(|disk| !stale.contains(disk)).collect();
                partition.high_watermark = *high_watermark;
                if let (true, Some(start)) = (renewed, start) {
                    partition.history.begin(*epoch, *start);
                }
            }
            MetadataRecord::ReplicasChanged { id, partition, replicas } => {
                self.check_replicas(std::slice::from_ref(replicas))?;
                let partition = self.partition_mut(*id, *partition)?;
                let stay = |disk: &DiskId| replicas.contains(disk);
                // Also one that only led last: what it has may be nowhere else.
                let leader_stays = partition.led_by.is_none_or(|leader| stay(&leader));
                ensure(leader_stays, "the leader is to lose its replica")?;
                partition.replicas.clone_from(replicas);
                partition.isr.retain(stay);
                partition.eligible.retain(stay);
                partition.suspects.retain(|disk, _| replicas.contains(disk));
                partition.stale.retain(stay);
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
        let partitions = &mut self.topic_mut(id)?.partitions;
        partitions
            .get_mut(partition as usize)
            .ok_or_else(|| "there is no such partition".to_owned())
    }
}

impl PartitionState {
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

/// A frame that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) term: u64,
    pub(crate) index: u64,
    pub(crate) record: MetadataRecord,
    /// The byte behind it.
    pub(crate) end: usize,
}

/// Why there is no further frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FrameEnd {
    /// The bytes end here, or only zeroes follow.
    Clean,
    /// What stands here is no frame of this store.
    Invalid { position: usize, source: DecodeError },
}

/// Reads frames one after the other.
#[derive(Debug)]
pub(crate) struct FrameReader<'a> {
    bytes: &'a [u8],
    seed: u32,
    position: usize,
}

impl<'a> FrameReader<'a> {
    pub(crate) fn new(bytes: &'a [u8], seed: u32) -> Self {
        Self { bytes, seed, position: 0 }
    }

    /// The next frame.
    ///
    /// # Errors
    /// [`FrameEnd`] when there is none.
    pub(crate) fn next_frame(&mut self) -> Result<Frame, FrameEnd> {
        let rest = &self.bytes[self.position..];
        let begun = rest.iter().take(HEAD_BYTES).any(|byte| *byte != 0);
        if !begun && rest.iter().all(|byte| *byte == 0) {
            return Err(FrameEnd::Clean);
        }
        match decode_frame(rest, self.seed) {
            Ok((term, index, record, len)) => {
                self.position += len;
                Ok(Frame { term, index, record, end: self.position })
            }
            Err(source) => Err(FrameEnd::Invalid { position: self.position, source }),
        }
    }
}

/// The first place behind `position` where a sound frame stands.
pub(crate) fn find_valid_frame_after(bytes: &[u8], position: usize, seed: u32) -> Option<usize> {
    // Its structure is looked at first: a checksum over as many bytes as a chance length names, at
    // every position, would take forever.
    let is_frame = |bytes: &[u8]| {
        bytes.get(HEAD_BYTES - 1).is_some_and(|kind| (1..=KIND_MAX).contains(kind))
            && split_frame(bytes).is_ok_and(|(_, _, body)| decode_body(body).is_ok())
            && decode_frame(bytes, seed).is_ok()
    };
    (position + 1..bytes.len().saturating_sub(HEAD_BYTES - 1)).find(|at| is_frame(&bytes[*at..]))
}

/// The store that the first frame names, whatever its seed.
pub(crate) fn peek_store(bytes: &[u8]) -> Option<StoreId> {
    let id = bytes.get(HEAD_BYTES..)?.first_chunk::<16>()?;
    let store = StoreId(u128::from_le_bytes(*id));
    let seed = crc32fast::hash(&store.0.to_le_bytes());
    match decode_frame(bytes, seed) {
        Ok((_, _, MetadataRecord::StoreCreated { store: named, .. }, _)) if named == store => {
            Some(store)
        }
        _ => None,
    }
}

/// Appends the frame of a record.
pub(crate) fn encode_frame(
    term: u64,
    index: u64,
    record: &MetadataRecord,
    seed: u32,
    target: &mut Vec<u8>,
) {
    let start = target.len();
    target.extend_from_slice(&[0; 8]);
    target.extend_from_slice(&term.to_le_bytes());
    target.extend_from_slice(&index.to_le_bytes());
    encode_record(record, target);
    let length = target.len() - start;
    assert!(length <= FRAME_BYTES_MAX, "a record that the state takes fits a frame");
    let length = u32::try_from(length).expect("far smaller than 4 GiB");
    let crc = frame_crc(seed, length, &target[start + 8..]);
    target[start..start + 4].copy_from_slice(&length.to_le_bytes());
    target[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
}

fn frame_crc(seed: u32, length: u32, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(&length.to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}

/// Length, checksum, and what the checksum is over.
fn split_frame(bytes: &[u8]) -> Result<(u32, u32, &[u8]), DecodeError> {
    let mut head = Fields { bytes };
    let (length, crc) = (head.u32()?, head.u32()?);
    let len = length as usize;
    if !(HEAD_BYTES..=FRAME_BYTES_MAX).contains(&len) {
        return Err(DecodeError::Field("frame length"));
    }
    match bytes.get(8..len) {
        Some(body) => Ok((length, crc, body)),
        None => Err(DecodeError::Short { have: bytes.len() as u64, need: len as u64 }),
    }
}

/// Term, index and record, which fill the body.
fn decode_body(body: &[u8]) -> Result<(u64, u64, MetadataRecord), DecodeError> {
    let mut fields = Fields { bytes: body };
    let (term, index) = (fields.u64()?, fields.u64()?);
    if term >= COUNT_MAX || index >= COUNT_MAX {
        return Err(DecodeError::Field("term or index"));
    }
    let record = decode_record(&mut fields)?;
    if !fields.bytes.is_empty() {
        return Err(DecodeError::Field("frame length"));
    }
    Ok((term, index, record))
}

fn decode_frame(bytes: &[u8], seed: u32) -> Result<(u64, u64, MetadataRecord, usize), DecodeError> {
    let (length, crc, body) = split_frame(bytes)?;
    if frame_crc(seed, length, body) != crc {
        return Err(DecodeError::Checksum("metadata record"));
    }
    let (term, index, record) = decode_body(body)?;
    Ok((term, index, record, length as usize))
}

/// Puts the checksum of every frame right, as far as their lengths go.
#[cfg(any(test, feature = "simulation"))]
pub(crate) fn put_checksums(bytes: &mut [u8], seed: u32) {
    let mut at = 0;
    while let Ok((length, _, body)) = split_frame(&bytes[at..]) {
        let crc = frame_crc(seed, length, body);
        bytes[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
        at += length as usize;
    }
}

fn encode_record(record: &MetadataRecord, target: &mut Vec<u8>) {
    let mut out = Target { bytes: target };
    match record {
        MetadataRecord::StoreCreated { store, format } => {
            out.u8(1).u128(store.0).u32(*format);
        }
        MetadataRecord::DiskAdded { disk, uuid, incarnation } => {
            out.u8(2).u16(disk.0).u128(*uuid).u64(*incarnation);
        }
        MetadataRecord::Opened { clean } => {
            out.u8(3).u8(u8::from(*clean));
        }
        MetadataRecord::TopicCreated { id, name, config, replicas } => {
            out.u8(4).u64(id.0).text(name).config(config).replicas(replicas);
        }
        MetadataRecord::TopicAltered { id, config } => {
            out.u8(5).u64(id.0).config(config);
        }
        MetadataRecord::PartitionsAdded { id, replicas } => {
            out.u8(6).u64(id.0).replicas(replicas);
        }
        MetadataRecord::TopicDeleted { id } => {
            out.u8(7).u64(id.0);
        }
        MetadataRecord::TopicRemoved { id } => {
            out.u8(8).u64(id.0);
        }
        MetadataRecord::LogStartRaised { id, partition, offset } => {
            out.u8(9).u64(id.0).u32(*partition).u64(offset.0);
        }
        MetadataRecord::ReplicaSuspect { id, partition, disk, durable } => {
            out.u8(10).u64(id.0).u32(*partition).u16(disk.0).u64(durable.0);
        }
        MetadataRecord::ReplicaCleared { id, partition, disk } => {
            out.u8(11).u64(id.0).u32(*partition).u16(disk.0);
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
            out.u8(12).u64(id.0).u32(*partition).u8(u8::from(leader.is_some()));
            out.u16(leader.map_or(0, |leader| leader.0)).u32(epoch.0).disks(isr).disks(eligible);
            out.u8(u8::from(start.is_some())).u64(start.map_or(0, |start| start.0));
            out.u64(high_watermark.0);
        }
        MetadataRecord::ProducerIdBlock { next } => {
            out.u8(13).u64(*next);
        }
        MetadataRecord::Counters { next_topic } => {
            out.u8(14).u64(*next_topic);
        }
        MetadataRecord::TopicGone { id, name } => {
            out.u8(15).u64(id.0).text(name);
        }
        MetadataRecord::ProducerNamed { name, id, epoch } => {
            out.u8(17).text(name).u64(id.0).u32(epoch.0);
        }
        MetadataRecord::ReplicaStale { id, partition, disk } => {
            out.u8(18).u64(id.0).u32(*partition).u16(disk.0);
        }
        MetadataRecord::ReplicasChanged { id, partition, replicas } => {
            out.u8(16).u64(id.0).u32(*partition).disks(replicas);
        }
    }
}

fn decode_record(fields: &mut Fields<'_>) -> Result<MetadataRecord, DecodeError> {
    let kind = fields.u8()?;
    Ok(match kind {
        1 => MetadataRecord::StoreCreated { store: StoreId(fields.u128()?), format: fields.u32()? },
        2 => MetadataRecord::DiskAdded {
            disk: DiskId(fields.u16()?),
            uuid: fields.u128()?,
            incarnation: fields.u64()?,
        },
        3 => MetadataRecord::Opened { clean: fields.flag()? },
        4 => MetadataRecord::TopicCreated {
            id: TopicId(fields.u64()?),
            name: fields.text()?,
            config: fields.config()?,
            replicas: fields.replicas()?,
        },
        5 => MetadataRecord::TopicAltered { id: TopicId(fields.u64()?), config: fields.config()? },
        6 => MetadataRecord::PartitionsAdded {
            id: TopicId(fields.u64()?),
            replicas: fields.replicas()?,
        },
        7 => MetadataRecord::TopicDeleted { id: TopicId(fields.u64()?) },
        8 => MetadataRecord::TopicRemoved { id: TopicId(fields.u64()?) },
        9 => MetadataRecord::LogStartRaised {
            id: TopicId(fields.u64()?),
            partition: fields.u32()?,
            offset: fields.offset()?,
        },
        10 => MetadataRecord::ReplicaSuspect {
            id: TopicId(fields.u64()?),
            partition: fields.u32()?,
            disk: DiskId(fields.u16()?),
            durable: fields.offset()?,
        },
        11 => MetadataRecord::ReplicaCleared {
            id: TopicId(fields.u64()?),
            partition: fields.u32()?,
            disk: DiskId(fields.u16()?),
        },
        12 => {
            let (id, partition) = (TopicId(fields.u64()?), fields.u32()?);
            let has_leader = fields.flag()?;
            let leader = DiskId(fields.u16()?);
            let epoch = LeaderEpoch(fields.u32()?);
            let (isr, eligible) = (fields.disks()?, fields.disks()?);
            let (has_start, start) = (fields.flag()?, fields.offset()?);
            MetadataRecord::LeaderChanged {
                id,
                partition,
                leader: has_leader.then_some(leader),
                epoch,
                isr,
                eligible,
                start: has_start.then_some(start),
                high_watermark: fields.offset()?,
            }
        }
        13 => MetadataRecord::ProducerIdBlock { next: fields.u64()? },
        14 => MetadataRecord::Counters { next_topic: fields.u64()? },
        15 => MetadataRecord::TopicGone { id: TopicId(fields.u64()?), name: fields.text()? },
        16 => MetadataRecord::ReplicasChanged {
            id: TopicId(fields.u64()?),
            partition: fields.u32()?,
            replicas: fields.disks()?,
        },
        17 => MetadataRecord::ProducerNamed {
            name: fields.text()?,
            id: ProducerId(fields.u64()?),
            epoch: ProducerEpoch(fields.u32()?),
        },
        18 => MetadataRecord::ReplicaStale {
            id: TopicId(fields.u64()?),
            partition: fields.u32()?,
            disk: DiskId(fields.u16()?),
        },
        _ => return Err(DecodeError::Field("kind of metadata record")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::subsequence;

    const SEED: u32 = 77;
    const DISKS: u16 = 3;

    /// Draws changes; many do not fit, as in life.
    fn any_record() -> impl Strategy<Value = MetadataRecord> {
        let id = || (1u64..5).prop_map(TopicId);
        let disk = || (0..DISKS).prop_map(DiskId);
        let disks =
            || subsequence((0..DISKS).map(DiskId).collect::<Vec<_>>(), 1..=3).prop_shuffle();
        let replicas = || proptest::collection::vec(disks(), 1..4);
        let config = |count: usize| TopicConfig::new().partitions(u32::try_from(count).unwrap());
        let offset = || (0u64..99).prop_map(Offset);
        prop_oneof![
            1 => (any::<u128>(), 1u32..3)
                .prop_map(|(store, format)| MetadataRecord::StoreCreated { store: StoreId(store), format }),
            1 => (disk(), any::<u128>(), 1u64..4).prop_map(|(disk, uuid, incarnation)| {
                MetadataRecord::DiskAdded { disk, uuid, incarnation }
            }),
            2 => any::<bool>().prop_map(|clean| MetadataRecord::Opened { clean }),
            5 => (id(), "[a-c]", replicas()).prop_map(move |(id, name, replicas)| {
                let config = config(replicas.len());
                MetadataRecord::TopicCreated { id, name, config, replicas }
            }),
            3 => (id(), 1usize..5, 0u64..4).prop_map(move |(id, count, kib)| {
                let config = config(count).segment_bytes(4096 + (kib << 10));
                MetadataRecord::TopicAltered { id, config }
            }),
            2 => (id(), replicas()).prop_map(|(id, replicas)| MetadataRecord::PartitionsAdded { id, replicas }),
            1 => id().prop_map(|id| MetadataRecord::TopicDeleted { id }),
            1 => id().prop_map(|id| MetadataRecord::TopicRemoved { id }),
            3 => (id(), 0u32..4, offset()).prop_map(|(id, partition, offset)| {
                MetadataRecord::LogStartRaised { id, partition, offset }
            }),
            4 => (id(), 0u32..4, disk(), offset()).prop_map(|(id, partition, disk, durable)| {
                MetadataRecord::ReplicaSuspect { id, partition, disk, durable }
            }),
            2 => (id(), 0u32..4, disk())
                .prop_map(|(id, partition, disk)| MetadataRecord::ReplicaCleared { id, partition, disk }),
            2 => (id(), 0u32..4, disk())
                .prop_map(|(id, partition, disk)| MetadataRecord::ReplicaStale { id, partition, disk }),
            6 => (
                (id(), 0u32..4, proptest::option::of(disk()), 0u32..6, disks()),
                (disks(), proptest::option::of(offset()), offset()),
            )
                .prop_map(|((id, partition, leader, epoch, isr), (eligible, start, high_watermark))| {
                    let epoch = LeaderEpoch(epoch);
                    MetadataRecord::LeaderChanged {
                        id, partition, leader, epoch, isr, eligible, start, high_watermark,
                    }
                }),
            2 => (id(), 0u32..4, disks()).prop_map(|(id, partition, replicas)| {
                MetadataRecord::ReplicasChanged { id, partition, replicas }
            }),
            2 => (0u64..9).prop_map(|next| MetadataRecord::ProducerIdBlock { next }),
            1 => (0u64..4).prop_map(|next_topic| MetadataRecord::Counters { next_topic }),
            1 => (id(), "[a-c]").prop_map(|(id, name)| MetadataRecord::TopicGone { id, name }),
            3 => ("[a-c]{0,2}", 0u64..9, 0u32..4).prop_map(|(name, number, epoch)| {
                let (id, epoch) = (ProducerId(ProducerId::NAMED | number), ProducerEpoch(epoch));
                MetadataRecord::ProducerNamed { name, id, epoch }
            }),
        ]
    }

    fn any_history() -> impl Strategy<Value = Vec<MetadataRecord>> {
        proptest::collection::vec(any_record(), 0..60).prop_map(|records| {
            let mut history = new_store();
            history.extend(records);
            history
        })
    }

    fn new_store() -> Vec<MetadataRecord> {
        let mut records = vec![MetadataRecord::StoreCreated { store: StoreId(9), format: 1 }];
        records.extend((0..DISKS).map(|disk| MetadataRecord::DiskAdded {
            disk: DiskId(disk),
            uuid: disk.into(),
            incarnation: 1,
        }));
        records
    }

    fn topic(id: u64, name: &str, replicas: &[&[u16]]) -> MetadataRecord {
        let disks = |numbers: &&[u16]| numbers.iter().copied().map(DiskId).collect();
        MetadataRecord::TopicCreated {
            id: TopicId(id),
            name: name.to_owned(),
            config: TopicConfig::new().partitions(u32::try_from(replicas.len()).unwrap()),
            replicas: replicas.iter().map(disks).collect(),
        }
    }

    fn leader(disk: Option<u16>, epoch: u32, isr: &[u16]) -> MetadataRecord {
        MetadataRecord::LeaderChanged {
            id: TopicId(1),
            partition: 0,
            leader: disk.map(DiskId),
            epoch: LeaderEpoch(epoch),
            isr: isr.iter().copied().map(DiskId).collect(),
            eligible: Vec::new(),
            start: Some(Offset(u64::from(epoch) * 10)),
            high_watermark: Offset(u64::from(epoch)),
        }
    }

    fn suspect(disk: u16, durable: u64) -> MetadataRecord {
        let (id, disk, durable) = (TopicId(1), DiskId(disk), Offset(durable));
        MetadataRecord::ReplicaSuspect { id, partition: 0, disk, durable }
    }

    fn cleared(disk: u16) -> MetadataRecord {
        MetadataRecord::ReplicaCleared { id: TopicId(1), partition: 0, disk: DiskId(disk) }
    }

    fn applied(records: &[MetadataRecord]) -> MetadataState {
        let mut state = MetadataState::default();
        for record in records {
            let before = state.clone();
            match state.apply(record) {
                Ok(()) => check(&state),
                Err(_) => assert_eq!(state, before, "a refused change changes nothing: {record:?}"),
            }
        }
        state
    }

    /// A new store with one topic on all of its disks, and the changes, which all fit.
    fn with_topic(changes: &[MetadataRecord]) -> MetadataState {
        let mut state = applied(&new_store());
        state.apply(&topic(1, "a", &[&[0, 1, 2]])).unwrap();
        for change in changes {
            state.apply(change).unwrap();
        }
        state
    }

    /// The invariants on top of the file.
    fn check(state: &MetadataState) {
        for topic in state.topics() {
            assert_eq!(topic.config.partitions as usize, topic.partitions.len());
            assert!(topic.id < state.next_topic_id());
            assert_eq!(state.topic_by_name(&topic.name), Some(topic));
            for partition in &topic.partitions {
                assert!(partition.replicas.iter().all(|disk| state.disk(*disk).is_some()));
                assert!(partition.isr.iter().all(|disk| partition.replicas.contains(disk)));
                assert!(partition.leader.is_none_or(|disk| partition.isr.contains(&disk)));
                assert!(partition.suspects.keys().all(|disk| partition.replicas.contains(disk)));
                assert!(partition.stale.iter().all(|disk| {
                    partition.replicas.contains(disk)
                        && !partition.isr.contains(disk)
                        && !partition.eligible.contains(disk)
                        && partition.leader != Some(*disk)
                }));
            }
        }
        assert_eq!(state.names.len(), state.topics.len());
        assert!(state.deleted.keys().all(|id| !state.topics.contains_key(id)));
    }

    proptest! {
        #[test]
        fn frames_come_back_as_they_were_written(
            records in proptest::collection::vec(any_record(), 1..8), zeroes in 0usize..40
        ) {
            let mut bytes = Vec::new();
            for (index, record) in (1..).zip(&records) {
                encode_frame(3, index, record, SEED, &mut bytes);
            }
            let sound = bytes.len();
            bytes.resize(sound + zeroes, 0);
            let mut reader = FrameReader::new(&bytes, SEED);
            let mut end = 0;
            for (index, record) in (1..).zip(&records) {
                let frame = reader.next_frame().unwrap();
                prop_assert_eq!((frame.term, frame.index, &frame.record), (3, index, record));
                prop_assert!(frame.end > end);
                end = frame.end;
            }
            prop_assert_eq!(end, sound);
            prop_assert_eq!(reader.next_frame(), Err(FrameEnd::Clean));
        }

        #[test]
        fn every_flipped_byte_is_noticed(record in any_record(), flip in 1u8..=255) {
            let mut bytes = Vec::new();
            encode_frame(1, 1, &record, SEED, &mut bytes);
            for at in 0..bytes.len() {
                let mut flipped = bytes.clone();
                flipped[at] ^= flip;
                let read = FrameReader::new(&flipped, SEED).next_frame();
                prop_assert!(matches!(read, Err(FrameEnd::Invalid { position: 0, .. })), "byte {}", at);
            }
            let elsewhere = FrameReader::new(&bytes, SEED + 1).next_frame();
            prop_assert!(matches!(elsewhere, Err(FrameEnd::Invalid { .. })), "another store's");
        }

        #[test]
        fn a_cut_is_clean_only_between_frames(
            records in proptest::collection::vec(any_record(), 1..4)
        ) {
            let mut bytes = Vec::new();
            let mut ends = vec![0];
            for (index, record) in (1..).zip(&records) {
                encode_frame(1, index, record, SEED, &mut bytes);
                ends.push(bytes.len());
            }
            for len in 0..bytes.len() {
                let mut reader = FrameReader::new(&bytes[..len], SEED);
                let mut last = 0;
                let stopped = loop {
                    match reader.next_frame() {
                        Ok(frame) => last = frame.end,
                        Err(stopped) => break stopped,
                    }
                };
                let sound = *ends.iter().filter(|end| **end <= len).max().unwrap();
                prop_assert_eq!(last, sound);
                let zeroes = bytes[sound..len].iter().all(|byte| *byte == 0);
                prop_assert_eq!(stopped == FrameEnd::Clean, zeroes, "cut at {}", len);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = FrameReader::new(&bytes, SEED);
            while reader.next_frame().is_ok() {}
            find_valid_frame_after(&bytes, 0, SEED);
            peek_store(&bytes);
        }

        #[test]
        fn any_body_under_a_good_checksum_is_read_or_refused(
            kind in 0u8..20, fields in proptest::collection::vec(prop_oneof![0u8..3, any::<u8>()], 0..90)
        ) {
            let mut bytes = vec![0; 8];
            bytes.extend_from_slice(&[1; 16]);
            bytes.push(kind);
            bytes.extend_from_slice(&fields);
            let length = u32::try_from(bytes.len()).unwrap();
            let crc = frame_crc(SEED, length, &bytes[8..]);
            bytes[..4].copy_from_slice(&length.to_le_bytes());
            bytes[4..8].copy_from_slice(&crc.to_le_bytes());
            if let Ok(frame) = FrameReader::new(&bytes, SEED).next_frame() {
                let mut state = with_topic(&[]);
                let before = state.clone();
                match state.apply(&frame.record) {
                    Ok(()) => check(&state),
                    Err(_) => prop_assert_eq!(&state, &before),
                }
                state.next_topic_id();
                prop_assert_eq!(applied(&state.snapshot()), state);
            }
        }

        #[test]
        fn a_sound_frame_behind_a_break_is_found(
            junk in proptest::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 1..120),
            record in any_record(), after in 0usize..40
        ) {
            let mut bytes = junk.clone();
            encode_frame(5, 6, &record, SEED, &mut bytes);
            bytes.resize(bytes.len() + after, 0);
            prop_assert_eq!(find_valid_frame_after(&bytes, 0, SEED), Some(junk.len()));
            prop_assert_eq!(find_valid_frame_after(&bytes, junk.len(), SEED), None);
        }

        #[test]
        fn a_snapshot_gives_the_state_it_was_taken_of(history in any_history()) {
            let state = applied(&history);
            let mut again = MetadataState::default();
            for record in state.snapshot() {
                prop_assert_eq!(again.apply(&record), Ok(()), "{:?}", record);
            }
            prop_assert_eq!(again, state);
        }
    }

    #[test]
    fn an_unclean_opening_begins_a_new_reign_in_every_partition() {
        let mut state = applied(&new_store());
        for record in [
            topic(1, "a", &[&[0], &[1]]),
            topic(2, "b", &[&[2]]),
            MetadataRecord::Opened { clean: true },
            MetadataRecord::Opened { clean: false },
        ] {
            state.apply(&record).unwrap();
        }
        for (id, partition) in [(1, 0), (1, 1), (2, 0)] {
            let partition = state.partition(TopicId(id), partition).unwrap();
            assert_eq!(partition.leader_epoch, LeaderEpoch(1));
        }
    }

    #[test]
    fn an_opening_is_refused_rather_than_an_epoch_used_twice() {
        let mut state = with_topic(&[leader(Some(0), u32::MAX, &[0])]);
        assert!(state.apply(&MetadataRecord::Opened { clean: false }).is_err());
        assert!(state.apply(&MetadataRecord::Opened { clean: true }).is_ok());
    }

    #[test]
    fn a_name_keeps_its_id_and_its_epoch_only_rises() {
        let named = |number, epoch| MetadataRecord::ProducerNamed {
            name: "meter".to_owned(),
            id: ProducerId(ProducerId::NAMED | number),
            epoch: ProducerEpoch(epoch),
        };
        let mut state = with_topic(&[MetadataRecord::ProducerIdBlock { next: 9 }, named(3, 0)]);
        for (record, fits) in
            [(named(3, 0), false), (named(4, 1), false), (named(3, 2), true), (named(3, 1), false)]
        {
            assert_eq!(state.apply(&record).is_ok(), fits, "{record:?}");
        }
        let held = state.named_producer("meter");
        assert_eq!(held, Some((ProducerId(ProducerId::NAMED | 3), ProducerEpoch(2))));
        assert_eq!(state.named_producer("other"), None);
        let plain = MetadataRecord::ProducerNamed {
            name: "plain".to_owned(),
            id: ProducerId(ProducerId::GIVEN | 5),
            epoch: ProducerEpoch(0),
        };
        assert!(state.apply(&plain).is_err(), "an id that can be forgotten is no name's");
    }

    #[test]
    fn each_disk_that_failed_a_flush_is_remembered_until_it_is_cleared_and_at_its_lowest_offset() {
        let suspects = |changes: &[MetadataRecord]| {
            let state = with_topic(changes);
            let partition = state.partition(TopicId(1), 0).unwrap();
            partition.suspects.iter().map(|(disk, durable)| (disk.0, durable.0)).collect::<Vec<_>>()
        };
        assert_eq!(suspects(&[suspect(0, 5), suspect(2, 3)]), [(0, 5), (2, 3)]);
        assert_eq!(suspects(&[suspect(0, 5), suspect(0, 9), suspect(0, 4)]), [(0, 4)]);
        assert_eq!(suspects(&[suspect(0, 5), suspect(2, 3), cleared(0)]), [(2, 3)]);
        assert_eq!(suspects(&[suspect(0, 5), cleared(0), suspect(0, 9)]), [(0, 9)]);
    }

    #[test]
    fn a_new_leader_needs_a_new_epoch_and_to_be_in_sync() {
        for (changes, next, fits) in [
            (vec![], leader(Some(0), 0, &[0, 1]), true),
            (vec![], leader(Some(1), 0, &[0, 1]), false),
            (vec![], leader(Some(1), 1, &[1]), true),
            (vec![], leader(Some(1), 1, &[0, 2]), false),
            (vec![], leader(Some(0), 0, &[0, 0]), false),
            (vec![], leader(Some(0), 0, &[0, 7]), false),
            (vec![], leader(None, 0, &[0]), true),
            (vec![leader(Some(1), 4, &[1])], leader(Some(1), 3, &[1]), false),
            (vec![leader(None, 4, &[1])], leader(Some(1), 4, &[1]), false),
            (vec![leader(None, 4, &[1])], leader(Some(1), 5, &[1]), true),
        ] {
            assert_eq!(
                with_topic(&changes).apply(&next).is_ok(),
                fits,
                "{changes:?}, then {next:?}"
            );
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let id = TopicId(1);
        let config = |count| TopicConfig::new().partitions(count);
        let twice = MetadataRecord::TopicCreated {
            id: TopicId(2),
            name: "b".into(),
            config: config(2),
            replicas: vec![vec![DiskId(0)]],
        };
        let added = |disks: &[u16]| MetadataRecord::PartitionsAdded {
            id,
            replicas: vec![disks.iter().copied().map(DiskId).collect()],
        };
        let gone =
            |id, name: &str| MetadataRecord::TopicGone { id: TopicId(id), name: name.into() };
        for refused in [
            MetadataRecord::StoreCreated { store: StoreId(9), format: 1 },
            MetadataRecord::DiskAdded { disk: DiskId(0), uuid: 1, incarnation: 1 },
            topic(2, "a", &[&[0]]),
            topic(1, "b", &[&[0]]),
            topic(u64::MAX, "b", &[&[0]]),
            topic(2, "../b", &[&[0]]),
            topic(2, "b", &[]),
            topic(2, "b", &[&[]]),
            topic(2, "b", &[&[3]]),
            topic(2, "b", &[&[0, 0]]),
            twice,
            added(&[]),
            added(&[3]),
            MetadataRecord::PartitionsAdded { id, replicas: vec![] },
            MetadataRecord::TopicAltered { id, config: config(2) },
            MetadataRecord::TopicDeleted { id: TopicId(2) },
            MetadataRecord::TopicRemoved { id },
            MetadataRecord::LogStartRaised { id, partition: 1, offset: Offset(1) },
            suspect(3, 0),
            cleared(0),
            MetadataRecord::Counters { next_topic: u64::MAX },
            gone(1, "a"),
            gone(u64::MAX, "b"),
            gone(2, "b/../../c"),
        ] {
            let mut state = with_topic(&[]);
            assert!(state.apply(&refused).is_err(), "{refused:?}");
            assert_eq!(state, with_topic(&[]));
        }
        let first = MetadataState::default().apply(&MetadataRecord::Opened { clean: true });
        assert!(first.is_err(), "before the store's creation");
    }

    #[test]
    fn a_topic_that_the_state_takes_fits_a_frame_and_a_larger_one_is_refused() {
        let mut state = applied(&new_store());
        let mut add = |count: usize| {
            let replicas = vec![vec![DiskId(0), DiskId(1), DiskId(2)]; count];
            state.apply(&MetadataRecord::PartitionsAdded { id: TopicId(1), replicas })
        };
        assert!(add(1).is_err(), "there is no topic");
        state.apply(&topic(1, "a", &[&[0]])).unwrap();
        let mut add = |count: usize| {
            let replicas = vec![vec![DiskId(0), DiskId(1), DiskId(2)]; count];
            state.apply(&MetadataRecord::PartitionsAdded { id: TopicId(1), replicas })
        };
        assert!(add(PARTITIONS_MAX).is_err());
        assert!(add(PARTITIONS_MAX - 1).is_ok());
        let mut bytes = Vec::new();
        for record in state.snapshot() {
            encode_frame(1, 1, &record, SEED, &mut bytes);
        }
        let disks = (0..100).map(DiskId).collect::<Vec<_>>();
        let many = std::iter::repeat_n(disks.as_slice(), PARTITIONS_MAX);
        assert!(fitting_count(many).is_err(), "200 MB of replicas");
    }

    #[test]
    fn ids_are_not_used_twice_even_when_a_topic_and_its_files_are_gone() {
        let deleted = MetadataRecord::TopicDeleted { id: TopicId(1) };
        let state = with_topic(std::slice::from_ref(&deleted));
        assert_eq!(state.deleted_topics().collect::<Vec<_>>(), [(TopicId(1), "a")]);
        assert_eq!(applied(&state.snapshot()).next_topic_id(), TopicId(2));
        let state = with_topic(&[deleted, MetadataRecord::TopicRemoved { id: TopicId(1) }]);
        assert_eq!(state.deleted_topics().count(), 0);
        assert_eq!(applied(&state.snapshot()).next_topic_id(), TopicId(2));
    }

    #[test]
    fn numbers_that_nothing_counts_so_far_are_refused() {
        let (id, partition, disk) = (TopicId(1), 0, DiskId(0));
        let led = |start, high_watermark| MetadataRecord::LeaderChanged {
            id,
            partition,
            leader: Some(disk),
            epoch: LeaderEpoch(1),
            isr: vec![disk],
            eligible: Vec::new(),
            start,
            high_watermark,
        };
        let is_read = |term, index, record: &MetadataRecord| {
            let mut bytes = Vec::new();
            encode_frame(term, index, record, SEED, &mut bytes);
            FrameReader::new(&bytes, SEED).next_frame().is_ok()
        };
        for (offset, sound) in [(Offset::MAX, true), (Offset(Offset::MAX.0 + 1), false)] {
            for record in [
                MetadataRecord::LogStartRaised { id, partition, offset },
                MetadataRecord::ReplicaSuspect { id, partition, disk, durable: offset },
                led(Some(offset), Offset(0)),
                led(None, offset),
            ] {
                assert_eq!(is_read(1, 1, &record), sound, "{record:?}");
            }
        }
        let opened = MetadataRecord::Opened { clean: true };
        let last = COUNT_MAX - 1;
        assert!(is_read(last, last, &opened));
        assert!(!is_read(COUNT_MAX, 1, &opened) && !is_read(1, COUNT_MAX, &opened));
        let mut state = with_topic(&[]);
        for incarnation in [COUNT_MAX, u64::MAX] {
            let record = MetadataRecord::DiskAdded { disk, uuid: 1, incarnation };
            assert!(state.apply(&record).is_err());
            assert!(state.apply(&MetadataRecord::ProducerIdBlock { next: incarnation }).is_err());
        }
    }

    #[test]
    fn the_store_is_known_from_its_first_frame_alone() {
        let store = StoreId(0x1234_5678_9abc_def0);
        let seed = crc32fast::hash(&store.0.to_le_bytes());
        let mut bytes = Vec::new();
        encode_frame(1, 1, &MetadataRecord::StoreCreated { store, format: 1 }, seed, &mut bytes);
        assert_eq!(peek_store(&bytes), Some(store));
        bytes[30] ^= 1;
        assert_eq!(peek_store(&bytes), None);
    }
}
