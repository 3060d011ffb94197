//! The bytes of the internal topic: what is known of each transactional id.
//!
//! A record's key is the id, its value what holds now; no value is a tombstone. The topic is compacted by
//! key, so the last record of an id is all that counts. Each side begins with its version; an unknown one is
//! refused, never guessed at. The same record always gives the same bytes, and nothing may follow the last
//! field.
//!
//! | side  | fields                                                                                  |
//! |-------|-----------------------------------------------------------------------------------------|
//! | key   | version u8 = 1, kind u8 = 1, transactional id (u16 count of bytes, UTF-8)               |
//! | value | version u8 = 1, lineage, time-out u64 ms, updated i64 ms, lineages before it (u8 count), partitions to be settled (optional: u32 count, each topic id u64 and partition u32, ascending) |
//!
//! A lineage is: producer id u64, first epoch that is not over u32, committed bits u64 (bit n: epoch
//! `end - 1 - n`). Numbers are little-endian; an optional field is a u8, 0 or 1, and with 1 the field.
//!
//! A record with partitions to be settled is the *decision* on the epoch before `end`: bit 0 says which.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::error::DecodeError;
use crate::protocol::group::assignment::PartitionId;
use crate::types::{ProducerEpoch, ProducerId, Timestamp, TopicId};

use super::lineage::Lineage;

const VERSION: u8 = 1;
const KIND_ID: u8 = 1;

/// Kafka's protocol has no room for longer ones either.
pub(crate) const ID_BYTES_MAX: usize = 32_767;
/// Partitions of one transaction: its decision has to fit into a batch.
pub(crate) const PARTITIONS_MAX: usize = 100_000;
const PARTITION_BYTES: usize = 12;
/// What a value takes besides its partitions, at most.
const VALUE_BYTES: usize = 64;
/// Lineages before the one that goes on: a byte counts them.
pub(crate) const PREVIOUS_MAX: usize = u8::MAX as usize;

const _: () = assert!(ID_BYTES_MAX <= u16::MAX as usize);
const _: () = assert!(PARTITIONS_MAX * PARTITION_BYTES < 2 << 20);

/// Whether a transactional id may be this.
pub(crate) fn transactional_id_fits(id: &str) -> bool {
    (1..=ID_BYTES_MAX).contains(&id.len())
}

/// What has to be known of an id after a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdState {
    pub(crate) lineage: Lineage,
    /// Of the producer ids before, from the oldest on: of the last one, of those that had any of the id's last 64 epochs, and
    /// of all whose commits may lack a marker in a partition that is away.
    pub(crate) previous: Vec<Lineage>,
    pub(crate) timeout: Duration,
    pub(crate) updated_at: Timestamp,
    /// The partitions of the last transaction of the lineage, if they may still lack its marker.
    pub(crate) unsettled: Option<Vec<PartitionId>>,
}

/// A record of the internal topic. Without a state the id is forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TransactionRecord {
    pub(crate) id: Arc<str>,
    pub(crate) state: Option<IdState>,
}

impl TransactionRecord {
    pub(crate) fn key(&self) -> Vec<u8> {
        assert!(transactional_id_fits(&self.id), "an open checks the id");
        let count = u16::try_from(self.id.len()).expect("the bound lies below 64 KiB");
        let mut key = Vec::with_capacity(4 + self.id.len());
        key.extend_from_slice(&[VERSION, KIND_ID]);
        key.extend_from_slice(&count.to_le_bytes());
        key.extend_from_slice(self.id.as_bytes());
        key
    }

    /// `None` is a tombstone.
    pub(crate) fn value(&self) -> Option<Vec<u8>> {
        let state = self.state.as_ref()?;
        let timeout = u64::try_from(state.timeout.as_millis()).expect("an open checks the timeout");
        let partitions = state.unsettled.as_ref().map_or(0, Vec::len);
        let mut value = Vec::with_capacity(VALUE_BYTES + partitions * PARTITION_BYTES);
        value.push(VERSION);
        put_lineage(&mut value, &state.lineage);
        value.extend_from_slice(&timeout.to_le_bytes());
        value.extend_from_slice(&state.updated_at.0.to_le_bytes());
        value.push(u8::try_from(state.previous.len()).expect("an open checks their number"));
        for previous in &state.previous {
            put_lineage(&mut value, previous);
        }
        value.push(u8::from(state.unsettled.is_some()));
        if let Some(partitions) = &state.unsettled {
            assert!(partitions.len() <= PARTITIONS_MAX, "a join checks their number");
            let count = u32::try_from(partitions.len()).expect("the bound fits");
            value.extend_from_slice(&count.to_le_bytes());
            for partition in partitions {
                value.extend_from_slice(&partition.topic.0.to_le_bytes());
                value.extend_from_slice(&partition.partition.to_le_bytes());
            }
        }
        Some(value)
    }

    /// Reads what [`TransactionRecord::key`] and [`TransactionRecord::value`] wrote.
    ///
    /// # Errors
    /// The field that does not fit; the bytes may come from a damaged disk or a newer version.
    pub(crate) fn decode(key: &[u8], value: Option<&[u8]>) -> Result<Self, DecodeError> {
        let mut key = Fields(key);
        let [version, kind] = key.take()?;
        ensure(version == VERSION, "version")?;
        ensure(kind == KIND_ID, "kind")?;
        let count = usize::from(u16::from_le_bytes(key.take()?));
        let id = std::str::from_utf8(key.bytes(count)?);
        let id = id.ok().filter(|id| transactional_id_fits(id));
        let id = id.ok_or(DecodeError::Field("transactional id"))?;
        key.end()?;
        Ok(Self { id: id.into(), state: value.map(decode_state).transpose()? })
    }
}

fn decode_state(value: &[u8]) -> Result<IdState, DecodeError> {
    let mut value = Fields(value);
    let [version] = value.take()?;
    ensure(version == VERSION, "version")?;
    let lineage = value.lineage()?;
    let timeout = Duration::from_millis(u64::from_le_bytes(value.take()?));
    let updated_at = Timestamp(i64::from_le_bytes(value.take()?));
    let [count] = value.take()?;
    let previous = (0..count).map(|_| value.lineage()).collect::<Result<Vec<_>, _>>()?;
    let all = previous.iter().chain([&lineage]).map(Lineage::producer);
    ensure(all.collect::<BTreeSet<_>>().len() == previous.len() + 1, "previous producer")?;
    let unsettled = if value.flag()? { Some(value.partitions()?) } else { None };
    ensure(unsettled.is_none() || lineage.last().is_some(), "unsettled")?;
    value.end()?;
    Ok(IdState { lineage, previous, timeout, updated_at, unsettled })
}

fn put_lineage(target: &mut Vec<u8>, lineage: &Lineage) {
    target.extend_from_slice(&lineage.producer().0.to_le_bytes());
    target.extend_from_slice(&lineage.end().0.to_le_bytes());
    target.extend_from_slice(&lineage.committed_bits().to_le_bytes());
}

fn ensure(holds: bool, field: &'static str) -> Result<(), DecodeError> {
    if holds { Ok(()) } else { Err(DecodeError::Field(field)) }
}

/// Bytes that have not been read yet.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const BYTES: usize>(&mut self) -> Result<[u8; BYTES], DecodeError> {
        let (field, rest) = self.0.split_first_chunk().ok_or_else(|| self.short(BYTES))?;
        self.0 = rest;
        Ok(*field)
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (field, rest) = self.0.split_at_checked(count).ok_or_else(|| self.short(count))?;
        self.0 = rest;
        Ok(field)
    }

    fn flag(&mut self) -> Result<bool, DecodeError> {
        match self.take()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [_] => Err(DecodeError::Field("optional")),
        }
    }

    fn lineage(&mut self) -> Result<Lineage, DecodeError> {
        let producer = ProducerId(u64::from_le_bytes(self.take()?));
        let end = ProducerEpoch(u32::from_le_bytes(self.take()?));
        let committed = u64::from_le_bytes(self.take()?);
        Lineage::recorded(producer, end, committed).ok_or(DecodeError::Field("lineage"))
    }

    fn partitions(&mut self) -> Result<Vec<PartitionId>, DecodeError> {
        let count = usize::try_from(u32::from_le_bytes(self.take()?)).unwrap_or(usize::MAX);
        ensure((1..=PARTITIONS_MAX).contains(&count), "unsettled")?;
        let mut bytes = Fields(self.bytes(count * PARTITION_BYTES)?);
        let mut partitions: Vec<PartitionId> = Vec::with_capacity(count);
        for _ in 0..count {
            let topic = TopicId(u64::from_le_bytes(bytes.take()?));
            let partition = u32::from_le_bytes(bytes.take()?);
            let partition = PartitionId { topic, partition };
            ensure(partitions.last().is_none_or(|last| *last < partition), "unsettled")?;
            partitions.push(partition);
        }
        Ok(partitions)
    }

    fn end(&self) -> Result<(), DecodeError> {
        ensure(self.0.is_empty(), "length")
    }

    fn short(&self, need: usize) -> DecodeError {
        DecodeError::Short { have: self.0.len() as u64, need: need as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Outcome;
    use proptest::prelude::*;

    fn lineage(producer: u64, end: u32, committed: u64) -> Lineage {
        Lineage::recorded(ProducerId(producer), ProducerEpoch(end), committed).unwrap()
    }

    fn decision() -> TransactionRecord {
        let partition = |topic, partition| PartitionId { topic: TopicId(topic), partition };
        TransactionRecord {
            id: "bill".into(),
            state: Some(IdState {
                lineage: lineage(258, 3, 0b101),
                previous: vec![lineage(7, 9, 2)],
                timeout: Duration::from_secs(60),
                updated_at: Timestamp(-2),
                unsettled: Some(vec![partition(5, 1), partition(6, 0)]),
            }),
        }
    }

    #[test]
    fn the_bytes_of_version_1_stay_as_they_are() {
        let key = b"\x01\x01\x04\0bill";
        let value = b"\x01\x02\x01\0\0\0\0\0\0\x03\0\0\0\x05\0\0\0\0\0\0\0\
            \x60\xea\0\0\0\0\0\0\xfe\xff\xff\xff\xff\xff\xff\xff\
            \x01\x07\0\0\0\0\0\0\0\x09\0\0\0\x02\0\0\0\0\0\0\0\
            \x01\x02\0\0\0\x05\0\0\0\0\0\0\0\x01\0\0\0\x06\0\0\0\0\0\0\0\0\0\0\0";
        assert_eq!(decision().key(), key);
        assert_eq!(decision().value().unwrap(), value);
        assert_eq!(TransactionRecord::decode(key, Some(value)).unwrap(), decision());
        let (tag, outcome) = decision().state.unwrap().lineage.last().unwrap();
        assert_eq!((tag.epoch, outcome), (ProducerEpoch(2), Outcome::Committed));
    }

    #[test]
    fn every_cut_every_tail_and_every_other_version_is_refused() {
        let (key, value) = (decision().key(), decision().value().unwrap());
        for cut in 0..key.len() {
            assert!(TransactionRecord::decode(&key[..cut], Some(&value)).is_err(), "key {cut}");
        }
        for cut in 0..value.len() {
            assert!(TransactionRecord::decode(&key, Some(&value[..cut])).is_err(), "value {cut}");
        }
        let longer = |bytes: &[u8]| [bytes, b"\0"].concat();
        assert!(TransactionRecord::decode(&longer(&key), Some(&value)).is_err());
        assert!(TransactionRecord::decode(&key, Some(&longer(&value))).is_err());
        for version in [0, 2, 255] {
            let newer = |bytes: &[u8]| [&[version], &bytes[1..]].concat();
            let refusal = Err(DecodeError::Field("version"));
            assert_eq!(TransactionRecord::decode(&newer(&key), Some(&value)), refusal);
            assert_eq!(TransactionRecord::decode(&key, Some(&newer(&value))), refusal);
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let (key, value) = (decision().key(), decision().value().unwrap());
        let refused = |at: usize, with: &[u8], field| {
            let mut bytes = value.clone();
            bytes[at..at + with.len()].copy_from_slice(with);
            let refusal = Err(DecodeError::Field(field));
            assert_eq!(TransactionRecord::decode(&key, Some(&bytes)), refusal, "{at}");
        };
        refused(1, &[0; 8], "lineage"); // no producer
        refused(13, &[0xff], "lineage"); // commits before epoch 0
        refused(38, &value[1..9], "previous producer");
        refused(37, &[2], "lineage"); // there is one
        refused(59, &[0; 4], "unsettled"); // a decision on nothing
        refused(59, &u32::MAX.to_le_bytes(), "unsettled"); // more than there are bytes: nothing is allocated
        refused(63, &value[75..87], "unsettled"); // one partition twice
        assert_eq!(
            TransactionRecord::decode(b"\x01\x01\0\0", None),
            Err(DecodeError::Field("transactional id")),
            "COORD-20"
        );
        assert!(!transactional_id_fits(&"x".repeat(ID_BYTES_MAX + 1)));
    }

    fn records() -> impl Strategy<Value = TransactionRecord> {
        let lineage = |producer: std::ops::Range<u64>| {
            (producer, 1u32.., any::<u64>()).prop_map(|(producer, end, bits)| {
                let bits = if end < 64 { bits & ((1 << end) - 1) } else { bits };
                lineage(producer, end, bits)
            })
        };
        let partitions = prop::collection::btree_set((any::<u64>(), any::<u32>()), 1..5);
        let partitions = partitions.prop_map(|set| {
            let partition = |(topic, partition)| PartitionId { topic: TopicId(topic), partition };
            set.into_iter().map(partition).collect()
        });
        let state = (
            lineage(1..1000),
            prop::collection::vec(lineage(1000..u64::MAX), 0..3),
            any::<u64>(),
            any::<i64>(),
            prop::option::of(partitions),
        )
            .prop_map(|(lineage, previous, timeout, updated, unsettled)| IdState {
                lineage,
                previous,
                timeout: Duration::from_millis(timeout),
                updated_at: Timestamp(updated),
                unsettled,
            });
        (".{1,20}", prop::option::of(state))
            .prop_map(|(id, state)| TransactionRecord { id: id.into(), state })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(record in records()) {
            let (key, value) = (record.key(), record.value());
            prop_assert_eq!(TransactionRecord::decode(&key, value.as_deref()), Ok(record));
        }

        #[test]
        fn a_changed_byte_is_refused_or_gives_a_record_with_just_those_bytes(
            record in records(),
            at in any::<prop::sample::Index>(),
            change in 1u8..,
        ) {
            let (mut key, mut value) = (record.key(), record.value());
            let key_bytes = key.len();
            let place = at.index(key_bytes + value.as_ref().map_or(0, Vec::len));
            match (&mut value, place.checked_sub(key_bytes)) {
                (Some(value), Some(place)) => value[place] ^= change,
                _ => key[place] ^= change,
            }
            if let Ok(other) = TransactionRecord::decode(&key, value.as_deref()) {
                prop_assert_ne!(&other, &record);
                prop_assert_eq!((other.key(), other.value()), (key, value));
            }
        }
    }
}
