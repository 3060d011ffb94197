//! What the store as a whole has decided: a state machine, and the frames of its log.
//!
//! Every change is a [`MetadataRecord`]; the state is what applying them in order gives. A frame
//! carries the *term* (which opening of the store wrote it) and the *index* (how many records came
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

use std::collections::BTreeMap;

use crate::config::TopicConfig;
use crate::error::DecodeError;
use crate::types::{DiskId, LeaderEpoch, Offset, StoreId, TopicId};

const HEAD_BYTES: usize = 25;
/// A million partitions with three replicas each; nothing larger is written.
const FRAME_BYTES_MAX: usize = 64 << 20;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MetadataRecord {
    /// The first record of every log.
    StoreCreated { store: StoreId, format: u32 },
    /// A directory became a disk of the store, or was replaced.
    DiskAdded { disk: DiskId, uuid: u128, incarnation: u64 },
    /// The store was opened. After an unclean stop a new reign begins in every partition.
    Opened { clean: bool },
    TopicCreated { id: TopicId, name: String, config: TopicConfig, replicas: Vec<Vec<DiskId>> },
    TopicAltered { id: TopicId, config: TopicConfig },
    PartitionsAdded { id: TopicId, replicas: Vec<Vec<DiskId>> },
    /// The topic is gone; its files may still be there.
    TopicDeleted { id: TopicId },
    /// Its files are gone.
    TopicRemoved { id: TopicId },
    LogStartRaised { id: TopicId, partition: u32, offset: Offset },
    /// A flush failed: what lies behind `durable` must be written again before it is trusted.
    ReplicaSuspect { id: TopicId, partition: u32, disk: DiskId, durable: Offset },
    ReplicaCleared { id: TopicId, partition: u32, disk: DiskId },
    LeaderChanged {
        id: TopicId,
        partition: u32,
        leader: Option<DiskId>,
        epoch: LeaderEpoch,
        isr: Vec<DiskId>,
    },
    /// Producer ids below `next` may have been given out.
    ProducerIdBlock { next: u64 },
    /// In a compacted log: numbers that are never given out again.
    Counters { next_topic: u64 },
    /// In a compacted log: a deleted topic whose files may still be there.
    TopicGone { id: TopicId, name: String },
}

/// A partition, as it was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PartitionState {
    pub(crate) replicas: Vec<DiskId>,
    pub(crate) leader: Option<DiskId>,
    pub(crate) leader_epoch: LeaderEpoch,
    pub(crate) isr: Vec<DiskId>,
    pub(crate) log_start: Offset,
    /// A replica whose flush failed, and the offset up to which it is trusted.
    pub(crate) suspect: Option<(DiskId, Offset)>,
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
}

impl MetadataState {
    pub(crate) fn store(&self) -> Option<StoreId> {
        self.store
    }

    pub(crate) fn disk(&self, disk: DiskId) -> Option<&DiskState> {
        self.disks.get(&disk)
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

    /// Makes a change.
    ///
    /// # Errors
    /// What does not fit; the state is then as it was.
    pub(crate) fn apply(&mut self, record: &MetadataRecord) -> Result<(), String> {
        match record {
            MetadataRecord::StoreCreated { store, format } => {
                ensure(self.store.is_none(), "the store was created before")?;
                (self.store, self.format) = (Some(*store), *format);
            }
            MetadataRecord::DiskAdded { disk, uuid, incarnation } => {
                let newer = self.disks.get(disk).is_none_or(|known| known.incarnation < *incarnation);
                ensure(newer, "the disk is known in that incarnation or a later one")?;
                self.disks.insert(*disk, DiskState { uuid: *uuid, incarnation: *incarnation });
            }
            MetadataRecord::Opened { clean } => {
                if !clean {
                    for partition in self.topics.values_mut().flat_map(|topic| &mut topic.partitions) {
                        partition.leader_epoch.0 = partition.leader_epoch.0.saturating_add(1);
                    }
                }
            }
            MetadataRecord::TopicCreated { id, name, config, replicas } => {
                ensure(!self.names.contains_key(name), "a topic of that name exists")?;
                ensure(id.0 > self.next_topic, "the topic's id was given out before")?;
                ensure(!replicas.is_empty(), "the topic has no partitions")?;
                let partitions = replicas.iter().map(|disks| new_partition(disks)).collect();
                let topic = TopicState { id: *id, name: name.clone(), config: config.clone(), partitions };
                self.next_topic = id.0;
                self.names.insert(name.clone(), *id);
                self.topics.insert(*id, topic);
            }
            MetadataRecord::TopicAltered { id, config } => {
                let topic = self.topic_mut(*id)?;
                let partitions = topic.config.partitions;
                topic.config = config.clone().partitions(partitions);
            }
            MetadataRecord::PartitionsAdded { id, replicas } => {
                let topic = self.topic_mut(*id)?;
                topic.partitions.extend(replicas.iter().map(|disks| new_partition(disks)));
                topic.config.partitions = u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX);
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
            }
            MetadataRecord::ReplicaSuspect { id, partition, disk, durable } => {
                self.partition_mut(*id, *partition)?.suspect = Some((*disk, *durable));
            }
            MetadataRecord::ReplicaCleared { id, partition, disk } => {
                let partition = self.partition_mut(*id, *partition)?;
                partition.suspect = partition.suspect.filter(|(suspect, _)| suspect != disk);
            }
            MetadataRecord::LeaderChanged { id, partition, leader, epoch, isr } => {
                let partition = self.partition_mut(*id, *partition)?;
                ensure(*epoch >= partition.leader_epoch, "the leader's epoch is an old one")?;
                partition.leader = *leader;
                partition.leader_epoch = *epoch;
                partition.isr.clone_from(isr);
            }
            MetadataRecord::ProducerIdBlock { next } => {
                ensure(*next >= self.next_producer, "those producer ids were given out before")?;
                self.next_producer = *next;
            }
            MetadataRecord::Counters { next_topic } => {
                self.next_topic = self.next_topic.max(*next_topic);
            }
            MetadataRecord::TopicGone { id, name } => {
                ensure(!self.topics.contains_key(id), "the topic is there")?;
                self.deleted.insert(*id, name.clone());
            }
        }
        Ok(())
    }

    /// Records whose application to an empty state gives this one.
    pub(crate) fn snapshot(&self) -> Vec<MetadataRecord> {
        let mut records = Vec::new();
        if let Some(store) = self.store {
            records.push(MetadataRecord::StoreCreated { store, format: self.format });
        }
        for (disk, state) in &self.disks {
            let DiskState { uuid, incarnation } = *state;
            records.push(MetadataRecord::DiskAdded { disk: *disk, uuid, incarnation });
        }
        for topic in self.topics.values() {
            records.push(MetadataRecord::TopicCreated {
                id: topic.id,
                name: topic.name.clone(),
                config: topic.config.clone(),
                replicas: topic.partitions.iter().map(|partition| partition.replicas.clone()).collect(),
            });
            for (number, partition) in (0..).zip(&topic.partitions) {
                let fresh = new_partition(&partition.replicas);
                let id = topic.id;
                if (partition.leader, partition.leader_epoch, &partition.isr)
                    != (fresh.leader, fresh.leader_epoch, &fresh.isr)
                {
                    records.push(MetadataRecord::LeaderChanged {
                        id,
                        partition: number,
                        leader: partition.leader,
                        epoch: partition.leader_epoch,
                        isr: partition.isr.clone(),
                    });
                }
                if partition.log_start > Offset::ZERO {
                    let offset = partition.log_start;
                    records.push(MetadataRecord::LogStartRaised { id, partition: number, offset });
                }
                if let Some((disk, durable)) = partition.suspect {
                    records.push(MetadataRecord::ReplicaSuspect { id, partition: number, disk, durable });
                }
            }
        }
        for (id, name) in &self.deleted {
            records.push(MetadataRecord::TopicGone { id: *id, name: name.clone() });
        }
        records.push(MetadataRecord::Counters { next_topic: self.next_topic });
        records.push(MetadataRecord::ProducerIdBlock { next: self.next_producer });
        records
    }

    fn topic_mut(&mut self, id: TopicId) -> Result<&mut TopicState, String> {
        self.topics.get_mut(&id).ok_or_else(|| "there is no such topic".to_owned())
    }

    fn partition_mut(&mut self, id: TopicId, partition: u32) -> Result<&mut PartitionState, String> {
        let partitions = &mut self.topic_mut(id)?.partitions;
        partitions.get_mut(partition as usize).ok_or_else(|| "there is no such partition".to_owned())
    }
}

fn new_partition(replicas: &[DiskId]) -> PartitionState {
    PartitionState {
        replicas: replicas.to_vec(),
        leader: replicas.first().copied(),
        leader_epoch: LeaderEpoch(0),
        isr: replicas.to_vec(),
        log_start: Offset::ZERO,
        suspect: None,
    }
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
        if rest.iter().all(|byte| *byte == 0) {
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
    (position + 1..bytes.len().saturating_sub(HEAD_BYTES - 1))
        .find(|at| decode_frame(&bytes[*at..], seed).is_ok())
}

/// The store that the first frame names, whatever its seed.
pub(crate) fn peek_store(bytes: &[u8]) -> Option<StoreId> {
    let id = bytes.get(HEAD_BYTES..)?.first_chunk::<16>()?;
    let store = StoreId(u128::from_le_bytes(*id));
    let seed = crc32fast::hash(&store.0.to_le_bytes());
    match decode_frame(bytes, seed) {
        Ok((_, _, MetadataRecord::StoreCreated { store: named, .. }, _)) if named == store => Some(store),
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
    let length = u32::try_from(target.len() - start).expect("a record is far smaller than 4 GiB");
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

fn decode_frame(bytes: &[u8], seed: u32) -> Result<(u64, u64, MetadataRecord, usize), DecodeError> {
    let mut head = Fields { bytes };
    let length = head.u32()?;
    let crc = head.u32()?;
    let len = length as usize;
    if !(HEAD_BYTES..=FRAME_BYTES_MAX).contains(&len) {
        return Err(DecodeError::Field("frame length"));
    }
    let Some(body) = bytes.get(8..len) else {
        return Err(DecodeError::Short { have: bytes.len() as u64, need: len as u64 });
    };
    if frame_crc(seed, length, body) != crc {
        return Err(DecodeError::Checksum("metadata record"));
    }
    let mut fields = Fields { bytes: body };
    let (term, index) = (fields.u64()?, fields.u64()?);
    let record = decode_record(&mut fields)?;
    if !fields.bytes.is_empty() {
        return Err(DecodeError::Field("frame length"));
    }
    Ok((term, index, record, len))
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
        MetadataRecord::LeaderChanged { id, partition, leader, epoch, isr } => {
            out.u8(12).u64(id.0).u32(*partition).u8(u8::from(leader.is_some()));
            out.u16(leader.map_or(0, |leader| leader.0)).u32(epoch.0).disks(isr);
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
        3 => MetadataRecord::Opened { clean: fields.u8()? != 0 },
        4 => MetadataRecord::TopicCreated {
            id: TopicId(fields.u64()?),
            name: fields.text()?,
            config: fields.config()?,
            replicas: fields.replicas()?,
        },
        5 => MetadataRecord::TopicAltered { id: TopicId(fields.u64()?), config: fields.config()? },
        6 => MetadataRecord::PartitionsAdded { id: TopicId(fields.u64()?), replicas: fields.replicas()? },
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
            let has_leader = fields.u8()? != 0;
            let leader = DiskId(fields.u16()?);
            MetadataRecord::LeaderChanged {
                id,
                partition,
                leader: has_leader.then_some(leader),
                epoch: LeaderEpoch(fields.u32()?),
                isr: fields.disks()?,
            }
        }
        13 => MetadataRecord::ProducerIdBlock { next: fields.u64()? },
        14 => MetadataRecord::Counters { next_topic: fields.u64()? },
        15 => MetadataRecord::TopicGone { id: TopicId(fields.u64()?), name: fields.text()? },
        _ => return Err(DecodeError::Field("kind of metadata record")),
    })
}

struct Target<'a> {
    bytes: &'a mut Vec<u8>,
}

impl Target<'_> {
    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    fn u8(&mut self, value: u8) -> &mut Self {
        self.put(&[value])
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    fn u128(&mut self, value: u128) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    fn count(&mut self, count: usize) -> &mut Self {
        self.u32(u32::try_from(count).expect("a list of far fewer than 2^32"))
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.count(text.len()).put(text.as_bytes())
    }

    fn config(&mut self, config: &TopicConfig) -> &mut Self {
        let mut bytes = Vec::new();
        config.encode(&mut bytes);
        self.count(bytes.len()).put(&bytes)
    }

    fn disks(&mut self, disks: &[DiskId]) -> &mut Self {
        self.count(disks.len());
        for disk in disks {
            self.u16(disk.0);
        }
        self
    }

    fn replicas(&mut self, replicas: &[Vec<DiskId>]) -> &mut Self {
        self.count(replicas.len());
        for disks in replicas {
            self.disks(disks);
        }
        self
    }
}

struct Fields<'a> {
    bytes: &'a [u8],
}

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let Some((taken, rest)) = self.bytes.split_at_checked(len) else {
            return Err(DecodeError::Short { have: self.bytes.len() as u64, need: len as u64 });
        };
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        Ok(self.take(N)?.try_into().expect("that many bytes were taken"))
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    fn u128(&mut self) -> Result<u128, DecodeError> {
        self.array().map(u128::from_le_bytes)
    }

    fn offset(&mut self) -> Result<Offset, DecodeError> {
        let offset = Offset(self.u64()?);
        if offset <= Offset::MAX { Ok(offset) } else { Err(DecodeError::Field("offset")) }
    }

    fn sized(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.u32()? as usize;
        self.take(len)
    }

    fn text(&mut self) -> Result<String, DecodeError> {
        let bytes = self.sized()?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| DecodeError::Field("text"))
    }

    fn config(&mut self) -> Result<TopicConfig, DecodeError> {
        TopicConfig::decode(self.sized()?)
    }

    fn disks(&mut self) -> Result<Vec<DiskId>, DecodeError> {
        let count = self.u32()? as usize;
        let bytes = self.take(count.checked_mul(2).ok_or(DecodeError::Field("count"))?)?;
        Ok(bytes.chunks_exact(2).map(|pair| DiskId(u16::from_le_bytes([pair[0], pair[1]]))).collect())
    }

    fn replicas(&mut self) -> Result<Vec<Vec<DiskId>>, DecodeError> {
        let count = self.u32()?;
        (0..count).map(|_| self.disks()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SEED: u32 = 77;

    /// Draws changes; many do not fit, as in life.
    fn any_record() -> impl Strategy<Value = MetadataRecord> {
        let id = || (1u64..5).prop_map(TopicId);
        let disk = || (0u16..3).prop_map(DiskId);
        let disks = || proptest::collection::vec(disk(), 1..3);
        let replicas = || proptest::collection::vec(disks(), 1..3);
        let config = || (1u32..9).prop_map(|count| TopicConfig::new().partitions(count));
        let offset = || (0u64..99).prop_map(Offset);
        prop_oneof![
            (any::<u128>(), 1u32..3)
                .prop_map(|(store, format)| MetadataRecord::StoreCreated { store: StoreId(store), format }),
            (disk(), any::<u128>(), 1u64..3).prop_map(|(disk, uuid, incarnation)| {
                MetadataRecord::DiskAdded { disk, uuid, incarnation }
            }),
            any::<bool>().prop_map(|clean| MetadataRecord::Opened { clean }),
            (id(), "[a-c]", config(), replicas()).prop_map(|(id, name, config, replicas)| {
                MetadataRecord::TopicCreated { id, name, config, replicas }
            }),
            (id(), config()).prop_map(|(id, config)| MetadataRecord::TopicAltered { id, config }),
            (id(), replicas()).prop_map(|(id, replicas)| MetadataRecord::PartitionsAdded { id, replicas }),
            id().prop_map(|id| MetadataRecord::TopicDeleted { id }),
            id().prop_map(|id| MetadataRecord::TopicRemoved { id }),
            (id(), 0u32..3, offset()).prop_map(|(id, partition, offset)| {
                MetadataRecord::LogStartRaised { id, partition, offset }
            }),
            (id(), 0u32..3, disk(), offset()).prop_map(|(id, partition, disk, durable)| {
                MetadataRecord::ReplicaSuspect { id, partition, disk, durable }
            }),
            (id(), 0u32..3, disk())
                .prop_map(|(id, partition, disk)| MetadataRecord::ReplicaCleared { id, partition, disk }),
            (id(), 0u32..3, proptest::option::of(disk()), 0u32..4, disks()).prop_map(
                |(id, partition, leader, epoch, isr)| MetadataRecord::LeaderChanged {
                    id,
                    partition,
                    leader,
                    epoch: LeaderEpoch(epoch),
                    isr,
                }
            ),
            (0u64..9).prop_map(|next| MetadataRecord::ProducerIdBlock { next }),
        ]
    }

    fn applied(records: &[MetadataRecord]) -> MetadataState {
        let mut state = MetadataState::default();
        for record in records {
            let before = state.clone();
            if state.apply(record).is_err() {
                assert_eq!(state, before, "a refused change changes nothing");
            }
        }
        state
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
            bytes.resize(bytes.len() + zeroes, 0);
            let mut reader = FrameReader::new(&bytes, SEED);
            for (index, record) in (1..).zip(&records) {
                let frame = reader.next_frame().unwrap();
                prop_assert_eq!((frame.term, frame.index, &frame.record), (3, index, record));
            }
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
                let noticed = matches!(read, Err(FrameEnd::Invalid { .. }));
                prop_assert!(noticed, "byte {}", at);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = FrameReader::new(&bytes, SEED);
            while reader.next_frame().is_ok() {}
            let mut valid = bytes.clone();
            let start = valid.len();
            encode_frame(1, 1, &MetadataRecord::Opened { clean: true }, SEED, &mut valid);
            prop_assert!(find_valid_frame_after(&valid, start.saturating_sub(1), SEED).is_some() || start == 0);
        }

        #[test]
        fn a_snapshot_gives_the_state_it_was_taken_of(
            records in proptest::collection::vec(any_record(), 0..40)
        ) {
            let state = applied(&records);
            prop_assert_eq!(applied(&state.snapshot()), state);
        }
    }

    #[test]
    fn an_unclean_opening_begins_a_new_reign_in_every_partition() {
        let id = TopicId(1);
        let created = MetadataRecord::TopicCreated {
            id,
            name: "a".into(),
            config: TopicConfig::new(),
            replicas: vec![vec![DiskId(0)]; 2],
        };
        let state = applied(&[
            created,
            MetadataRecord::Opened { clean: true },
            MetadataRecord::Opened { clean: false },
        ]);
        for partition in 0..2 {
            assert_eq!(state.partition(id, partition).unwrap().leader_epoch, LeaderEpoch(1));
        }
    }
}
