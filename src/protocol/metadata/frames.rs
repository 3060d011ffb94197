//! The frames of the metadata's log: a record each, told apart from whatever else the bytes may be.
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

use crate::error::DecodeError;
use crate::types::{DiskId, LeaderEpoch, ProducerEpoch, ProducerId, StoreId, TopicId};

use super::fields::{Fields, Target};
use super::{COUNT_MAX, FRAME_BYTES_MAX, MetadataRecord};

const HEAD_BYTES: usize = 25;
const KIND_MAX: u8 = 18;

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

pub(super) fn frame_crc(seed: u32, length: u32, body: &[u8]) -> u32 {
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
