//! The bytes of the internal topic: committed offsets, and what a group is.
//!
//! A record's key says whose it is, its value what holds now; no value is a tombstone. The topic is
//! compacted by key, so the last record of a key is all that counts. Each side begins with its version; an
//! unknown one is refused, never guessed at. The same record always gives the same bytes, which compaction
//! relies on, and nothing may follow the last field.
//!
//! | key of     | fields                                                                     |
//! |------------|----------------------------------------------------------------------------|
//! | an offset  | version u8 = 1, kind u8 = 1, group, topic id u64, partition u32            |
//! | a group    | version u8 = 1, kind u8 = 2, group                                         |
//!
//! | value of   | fields                                                                     |
//! |------------|----------------------------------------------------------------------------|
//! | an offset  | version u8 = 1, offset u64, leader epoch (optional u32), commit time i64 ms, metadata |
//! | a group    | version u8 = 1, generation u64, empty since (optional i64 ms), assignor    |
//!
//! Numbers are little-endian; a text is a u16 count of bytes and UTF-8; an optional field is a u8, 0 or 1, and
//! with 1 the field. A topic goes by its id: what was committed for a deleted topic never meets a new one of
//! the same name (CONS-13).

use crate::error::DecodeError;
use crate::types::{LeaderEpoch, Offset, Timestamp, TopicId};

use super::assignment::PartitionId;

/// No group rebalances so often: what is counted on from there does not overflow.
const GENERATION_MAX: u64 = 1 << 62;
const VERSION: u8 = 1;
const KIND_OFFSET: u8 = 1;
const KIND_GROUP: u8 = 2;

/// Kafka's protocol has no room for longer ones either.
pub(crate) const GROUP_BYTES_MAX: usize = 32_767;
/// Kafka's `offset.metadata.max.bytes`, which counts characters (GRP-05).
pub(crate) const METADATA_CHARS_MAX: usize = 4096;
pub(crate) const ASSIGNOR_BYTES_MAX: usize = 249;

const _: () = assert!(GROUP_BYTES_MAX <= u16::MAX as usize);
const _: () = assert!(METADATA_CHARS_MAX * 4 <= u16::MAX as usize);

/// What a group has committed for one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CommittedOffset {
    /// The next offset to read (GRP-29).
    pub(crate) offset: Offset,
    /// That of the last record read, so that a truncation is noticed after a restart too (CONS-04).
    pub(crate) leader_epoch: Option<LeaderEpoch>,
    pub(crate) committed_at: Timestamp,
    pub(crate) metadata: String,
}

/// What is kept of a group when no member is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupState {
    pub(crate) generation: u64,
    /// When the last member left; `None` while there are members.
    pub(crate) empty_since: Option<Timestamp>,
    pub(crate) assignor: String,
}

/// A record of the internal topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum GroupRecord {
    Offset { group: String, partition: PartitionId, committed: Option<CommittedOffset> },
    Group { group: String, state: Option<GroupState> },
}

/// Whether a group may have this name.
pub(crate) fn group_name_fits(group: &str) -> bool {
    (1..=GROUP_BYTES_MAX).contains(&group.len())
}

/// Whether this may be committed beside an offset (GRP-05).
pub(crate) fn metadata_fits(metadata: &str) -> bool {
    metadata.len() <= METADATA_CHARS_MAX || metadata.chars().count() <= METADATA_CHARS_MAX
}

impl GroupRecord {
    pub(crate) fn key(&self) -> Vec<u8> {
        let (Self::Offset { group, .. } | Self::Group { group, .. }) = self;
        assert!(group_name_fits(group), "the shell checks a group's name before it is used");
        let mut key = Vec::with_capacity(16 + group.len());
        key.push(VERSION);
        match self {
            Self::Offset { partition, .. } => {
                key.push(KIND_OFFSET);
                put_text(&mut key, group);
                key.extend_from_slice(&partition.topic.0.to_le_bytes());
                key.extend_from_slice(&partition.partition.to_le_bytes());
            }
            Self::Group { .. } => {
                key.push(KIND_GROUP);
                put_text(&mut key, group);
            }
        }
        key
    }

    /// `None` is a tombstone.
    pub(crate) fn value(&self) -> Option<Vec<u8>> {
        let mut value = vec![VERSION];
        match self {
            Self::Offset { committed, .. } => {
                let committed = committed.as_ref()?;
                assert!(committed.offset <= Offset::MAX, "the shell checks what is committed");
                assert!(metadata_fits(&committed.metadata), "the shell checks metadata");
                value.extend_from_slice(&committed.offset.0.to_le_bytes());
                let epoch = committed.leader_epoch.map(|epoch| epoch.0.to_le_bytes());
                put_optional(&mut value, epoch.as_ref().map(<[u8; 4]>::as_slice));
                value.extend_from_slice(&committed.committed_at.0.to_le_bytes());
                put_text(&mut value, &committed.metadata);
            }
            Self::Group { state, .. } => {
                let state = state.as_ref()?;
                assert!(state.assignor.len() <= ASSIGNOR_BYTES_MAX, "a join checks the assignor");
                value.extend_from_slice(&state.generation.to_le_bytes());
                let since = state.empty_since.map(|since| since.0.to_le_bytes());
                put_optional(&mut value, since.as_ref().map(<[u8; 8]>::as_slice));
                put_text(&mut value, &state.assignor);
            }
        }
        Some(value)
    }

    /// Reads what [`GroupRecord::key`] and [`GroupRecord::value`] wrote.
    ///
    /// # Errors
    /// The field that does not fit; the bytes may come from a damaged disk or a newer version.
    pub(crate) fn decode(key: &[u8], value: Option<&[u8]>) -> Result<Self, DecodeError> {
        let mut key = Fields(key);
        key.version()?;
        let [kind] = key.take()?;
        let group = key.text("group", GROUP_BYTES_MAX)?;
        ensure(group_name_fits(&group), "group")?;
        match kind {
            KIND_OFFSET => {
                let topic = TopicId(u64::from_le_bytes(key.take()?));
                let partition = u32::from_le_bytes(key.take()?);
                key.end()?;
                let partition = PartitionId { topic, partition };
                let committed = value.map(decode_committed).transpose()?;
                Ok(Self::Offset { group, partition, committed })
            }
            KIND_GROUP => {
                key.end()?;
                Ok(Self::Group { group, state: value.map(decode_state).transpose()? })
            }
            _ => Err(DecodeError::Field("kind")),
        }
    }
}

fn decode_committed(value: &[u8]) -> Result<CommittedOffset, DecodeError> {
    let mut value = Fields(value);
    value.version()?;
    let offset = Offset(u64::from_le_bytes(value.take()?));
    ensure(offset <= Offset::MAX, "offset")?;
    let leader_epoch = value.optional()?.map(|bytes| LeaderEpoch(u32::from_le_bytes(bytes)));
    let committed_at = Timestamp(i64::from_le_bytes(value.take()?));
    let metadata = value.text("metadata", METADATA_CHARS_MAX * 4)?;
    ensure(metadata_fits(&metadata), "metadata")?;
    value.end()?;
    Ok(CommittedOffset { offset, leader_epoch, committed_at, metadata })
}

fn decode_state(value: &[u8]) -> Result<GroupState, DecodeError> {
    let mut value = Fields(value);
    value.version()?;
    let generation = u64::from_le_bytes(value.take()?);
    ensure(generation < GENERATION_MAX, "generation")?;
    let empty_since = value.optional()?.map(|bytes| Timestamp(i64::from_le_bytes(bytes)));
    let assignor = value.text("assignor", ASSIGNOR_BYTES_MAX)?;
    value.end()?;
    Ok(GroupState { generation, empty_since, assignor })
}

fn put_text(target: &mut Vec<u8>, text: &str) {
    let count = u16::try_from(text.len()).expect("bounds on texts lie below 64 KiB");
    target.extend_from_slice(&count.to_le_bytes());
    target.extend_from_slice(text.as_bytes());
}

fn put_optional(target: &mut Vec<u8>, field: Option<&[u8]>) {
    target.push(u8::from(field.is_some()));
    target.extend_from_slice(field.unwrap_or_default());
}

fn ensure(holds: bool, field: &'static str) -> Result<(), DecodeError> {
    if holds { Ok(()) } else { Err(DecodeError::Field(field)) }
}

/// Bytes that have not been read yet.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn version(&mut self) -> Result<(), DecodeError> {
        let [version] = self.take()?;
        ensure(version == VERSION, "version")
    }

    fn take<const BYTES: usize>(&mut self) -> Result<[u8; BYTES], DecodeError> {
        let (field, rest) = self.0.split_first_chunk().ok_or_else(|| self.short(BYTES))?;
        self.0 = rest;
        Ok(*field)
    }

    fn optional<const BYTES: usize>(&mut self) -> Result<Option<[u8; BYTES]>, DecodeError> {
        match self.take()? {
            [0] => Ok(None),
            [1] => self.take().map(Some),
            [_] => Err(DecodeError::Field("optional")),
        }
    }

    fn text(&mut self, field: &'static str, bytes_max: usize) -> Result<String, DecodeError> {
        let count = usize::from(u16::from_le_bytes(self.take()?));
        ensure(count <= bytes_max, field)?;
        let (text, rest) = self.0.split_at_checked(count).ok_or_else(|| self.short(count))?;
        let text = std::str::from_utf8(text).map_err(|_| DecodeError::Field(field))?;
        self.0 = rest;
        Ok(text.to_owned())
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
    use proptest::prelude::*;

    fn offset_record() -> GroupRecord {
        GroupRecord::Offset {
            group: "bill".to_owned(),
            partition: PartitionId { topic: TopicId(7), partition: 3 },
            committed: Some(CommittedOffset {
                offset: Offset(258),
                leader_epoch: Some(LeaderEpoch(5)),
                committed_at: Timestamp(-2),
                metadata: "m".to_owned(),
            }),
        }
    }

    fn group_record() -> GroupRecord {
        GroupRecord::Group {
            group: "g".to_owned(),
            state: Some(GroupState {
                generation: 9,
                empty_since: Some(Timestamp(1)),
                assignor: "range".to_owned(),
            }),
        }
    }

    #[test]
    fn the_bytes_of_version_1_stay_as_they_are() {
        let key = b"\x01\x01\x04\0bill\x07\0\0\0\0\0\0\0\x03\0\0\0";
        let value =
            b"\x01\x02\x01\0\0\0\0\0\0\x01\x05\0\0\0\xfe\xff\xff\xff\xff\xff\xff\xff\x01\0m";
        assert_eq!(offset_record().key(), key);
        assert_eq!(offset_record().value().unwrap(), value);
        assert_eq!(GroupRecord::decode(key, Some(value)).unwrap(), offset_record());
        let key = b"\x01\x02\x01\0g";
        let value = b"\x01\x09\0\0\0\0\0\0\0\x01\x01\0\0\0\0\0\0\0\x05\0range";
        assert_eq!(group_record().key(), key);
        assert_eq!(group_record().value().unwrap(), value);
        assert_eq!(GroupRecord::decode(key, Some(value)).unwrap(), group_record());
    }

    #[test]
    fn every_cut_every_tail_and_every_other_version_is_refused() {
        for record in [offset_record(), group_record()] {
            let (key, value) = (record.key(), record.value().unwrap());
            for cut in 0..key.len() {
                assert!(GroupRecord::decode(&key[..cut], Some(&value)).is_err(), "key {cut}");
            }
            for cut in 0..value.len() {
                assert!(GroupRecord::decode(&key, Some(&value[..cut])).is_err(), "value {cut}");
            }
            let longer = |bytes: &[u8]| [bytes, b"\0"].concat();
            assert!(GroupRecord::decode(&longer(&key), Some(&value)).is_err());
            assert!(GroupRecord::decode(&key, Some(&longer(&value))).is_err());
            for version in [0, 2, 255] {
                let newer = |bytes: &[u8]| [&[version], &bytes[1..]].concat();
                let refusal = Err(DecodeError::Field("version"));
                assert_eq!(GroupRecord::decode(&newer(&key), Some(&value)), refusal);
                assert_eq!(GroupRecord::decode(&key, Some(&newer(&value))), refusal);
            }
        }
    }

    #[test]
    fn texts_are_bounded_metadata_by_its_characters() {
        assert!(
            metadata_fits(&"\u{e4}".repeat(4096)) && !metadata_fits(&"x".repeat(4097)),
            "GRP-05"
        );
        assert!(
            group_name_fits("g") && !group_name_fits("") && !group_name_fits(&"g".repeat(32_768))
        );
        let GroupRecord::Offset { group, partition, committed: Some(mut long) } = offset_record()
        else {
            unreachable!()
        };
        long.metadata = "\u{1f980}".repeat(4096);
        let record = GroupRecord::Offset { group, partition, committed: Some(long) };
        let (key, mut value) = (record.key(), record.value().unwrap());
        assert_eq!(GroupRecord::decode(&key, Some(&value)).unwrap(), record, "GRP-05");
        // One character more, which the encoder would not write.
        let at = value.len() - 4 * 4096 - 2;
        let count = u16::from_le_bytes([value[at], value[at + 1]]) + 1;
        value[at..at + 2].copy_from_slice(&count.to_le_bytes());
        value.push(b'x');
        let refusal = Err(DecodeError::Field("metadata"));
        assert_eq!(GroupRecord::decode(&key, Some(&value)), refusal, "GRP-05");
    }

    fn records() -> impl Strategy<Value = GroupRecord> {
        let time = any::<i64>().prop_map(Timestamp);
        let committed =
            (
                0..=Offset::MAX.0,
                prop::option::of(any::<u32>().prop_map(LeaderEpoch)),
                time.clone(),
                ".{0,40}",
            )
                .prop_map(|(offset, leader_epoch, committed_at, metadata)| {
                    CommittedOffset { offset: Offset(offset), leader_epoch, committed_at, metadata }
                });
        let offset = (".{1,20}", any::<u64>(), any::<u32>(), prop::option::of(committed)).prop_map(
            |(group, topic, partition, committed)| GroupRecord::Offset {
                group,
                partition: PartitionId { topic: TopicId(topic), partition },
                committed,
            },
        );
        let state = (0..GENERATION_MAX, prop::option::of(time), "[a-z]{0,20}").prop_map(
            |(generation, empty_since, assignor)| GroupState { generation, empty_since, assignor },
        );
        let group = (".{1,20}", prop::option::of(state))
            .prop_map(|(group, state)| GroupRecord::Group { group, state });
        prop_oneof![offset, group]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(record in records()) {
            let (key, value) = (record.key(), record.value());
            prop_assert_eq!(GroupRecord::decode(&key, value.as_deref()), Ok(record));
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
            if let Ok(other) = GroupRecord::decode(&key, value.as_deref()) {
                prop_assert_ne!(&other, &record);
                prop_assert_eq!((other.key(), other.value()), (key, value));
            }
        }
    }
}
