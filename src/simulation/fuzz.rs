//! What a fuzzer feeds its bytes to. Each door decodes anything at all and panics only if a promise is
//! broken: no length is believed before it is checked, what decodes encodes to the same again, and a
//! store over damaged files gives what was written or an error.
//!
//! No fuzzer guesses a checksum. So the first byte of an input chooses whether the checksums are put
//! right before the bytes are decoded: only then what lies behind them is reached.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::OnceLock;
use std::time::Duration;

use crate::config::TopicConfig;
use crate::error::Error;
use crate::partition::{EventKind, ReadOptions};
use crate::protocol::group::assignment::PartitionId;
use crate::protocol::group::records::{CommittedOffset, GroupRecord, GroupState};
use crate::protocol::metadata::{
    FrameReader, MetadataState, encode_frame, find_valid_frame_after, peek_store,
};
use crate::protocol::producer_state::batch::{BatchFacts, Content};
use crate::protocol::producer_state::states::ProducerStates;
use crate::protocol::producer_state::transactions::AbortedRange;
use crate::protocol::transaction::lineage::Lineage;
use crate::protocol::transaction::records::{IdState, TransactionRecord};
use crate::record::{
    Batch, BatchHeader, BatchRecords, Draft, DraftSettings, HEADER_BYTES, LENGTH_AT, Place, Record,
    codec_is_available, find_header,
};
use crate::segment::{DATA_START, Identity, SideFile, SideHead, put_side_checksums};
use crate::storage::Clock;
use crate::store::{Partition, Store, VerifyOptions};
use crate::types::{
    Acks, Compression, Flush, LeaderEpoch, Offset, Outcome, ProducerEpoch, ProducerId,
    ProducerSequence, StoreId, Timestamp, TopicId, TopicPartition,
};

use super::SimDisk;

/// What the checksums of these doors start from.
pub const SEED: u32 = 0x5eed;

/// Records of a batch that are encoded again, at most: a packed batch may hold millions.
const AGAIN_MAX: usize = 4096;

/// Decodes `bytes` as a row of batches, and looks for headers in them. The first byte: 1, all of it
/// is one batch whose checksums are put right; 2, those of every batch in the row are.
pub fn batch(bytes: &[u8]) {
    let Some((&mode, bytes)) = bytes.split_first() else { return };
    let mut bytes = bytes.to_vec();
    match mode {
        1 if bytes.len() >= HEADER_BYTES => {
            let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
            bytes[LENGTH_AT..LENGTH_AT + 4].copy_from_slice(&length);
            crate::record::put_checksums(&mut bytes, SEED);
        }
        2 => put_batch_checksums(&mut bytes, SEED),
        _ => {}
    }
    let mut rest = bytes.as_slice();
    while let Ok(batch) = Batch::decode(rest, SEED) {
        let len = batch.header.len();
        assert!((HEADER_BYTES..=rest.len()).contains(&len), "a batch lies within its bytes");
        let mut again = [0; HEADER_BYTES];
        batch.header.encode(SEED, &mut again);
        assert_eq!(again, rest[..HEADER_BYTES], "a header that decodes encodes");
        if let Ok(payload) = batch.check().and_then(|()| batch.records()) {
            check_records(&batch.header, &payload);
        }
        rest = &rest[len..];
    }
    let mut at = 0;
    while let Some((found, header)) = find_header(&bytes, at, SEED) {
        assert!(found >= at && found + HEADER_BYTES <= bytes.len());
        assert!(header.end_offset() > header.base_offset);
        at = found + 1;
    }
}

/// A payload that was found sound holds what its header says, and its records can be written again.
fn check_records(header: &BatchHeader, payload: &[u8]) {
    let (mut count, mut expected) = (0, header.base_offset);
    for record in BatchRecords::new(header, payload) {
        let at = record.offset();
        assert!(at >= expected && at < header.end_offset(), "offsets rise within the batch");
        expected = at.next();
        let fields = record.key().map_or(0, <[u8]>::len)
            + record.value().map_or(0, <[u8]>::len)
            + record.headers().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        assert!(fields <= payload.len(), "fields lie within the payload");
        count += 1;
    }
    assert_eq!(count, header.record_count, "as many records as the header says");
    let views: Vec<_> = BatchRecords::new(header, payload).take(AGAIN_MAX).collect();
    let records: Vec<_> = views
        .iter()
        .map(|view| Record {
            key: view.key(),
            value: view.value(),
            headers: view.headers().collect(),
            timestamp: Some(view.timestamp()),
        })
        .collect();
    let mut draft = Draft::default();
    let (settings, partition) = (DraftSettings::plain(Timestamp(0)), TopicPartition::new("t", 0));
    draft.encode(&records, &settings, &partition).expect("what was read can be written");
    draft.seal(&place());
    let batch = Batch::decode(draft.bytes(), SEED).expect("it was encoded just now");
    let payload = batch.records().expect("it was encoded just now");
    for (view, again) in views.iter().zip(BatchRecords::new(&batch.header, &payload)) {
        assert_eq!((view.key(), view.value()), (again.key(), again.value()));
        assert_eq!(view.timestamp(), again.timestamp());
        assert!(view.headers().eq(again.headers()), "headers come back");
    }
    assert_eq!(batch.header.record_count as usize, views.len());
}

/// A batch whose checksums fit; empty if the codec is not compiled in.
#[must_use]
pub fn sample_batch(compression: Compression) -> Vec<u8> {
    if !codec_is_available(compression) {
        return Vec::new();
    }
    let mut draft = Draft::default();
    let records = [
        Record::new("pear").key("k").timestamp(Timestamp(7)),
        Record::new(&[b'x'; 300]).header("h", "v").header("i", ""),
        Record::tombstone("gone"),
    ];
    let settings = DraftSettings { compression, ..DraftSettings::plain(Timestamp(9)) };
    let partition = TopicPartition::new("t", 0);
    draft.encode(&records, &settings, &partition).expect("three small records");
    draft.seal(&place());
    draft.bytes().to_vec()
}

fn place() -> Place {
    Place {
        seed: SEED,
        base_offset: Offset(3),
        leader_epoch: LeaderEpoch(1),
        durable_end: Offset(2),
    }
}

/// Puts the checksums of a row of batches right, as far as their lengths lead.
fn put_batch_checksums(bytes: &mut [u8], seed: u32) {
    let mut rest = bytes;
    while let Some(length) = rest.get(LENGTH_AT..).and_then(|rest| rest.first_chunk()) {
        let len = u32::from_le_bytes(*length) as usize;
        if len < HEADER_BYTES || len > rest.len() {
            return;
        }
        let (batch, behind) = rest.split_at_mut(len);
        crate::record::put_checksums(batch, seed);
        rest = behind;
    }
}

/// Decodes `bytes` as a side file, and looks things up in it. With a first byte of 1 its checksums are
/// put right first.
pub fn side_file(bytes: &[u8]) {
    let Some((&mode, bytes)) = bytes.split_first() else { return };
    let mut bytes = bytes.to_vec();
    if mode == 1 {
        put_side_checksums(&mut bytes);
    }
    let head = SideHead::decode(&bytes);
    let Ok(side) = SideFile::decode(&bytes) else { return };
    assert_eq!(head.as_ref(), Ok(&side.head), "the head alone says the same");
    assert!(side.index.entries.len() <= bytes.len() / 16, "no more entries than fit");
    let encoded = side.encode();
    assert_eq!(SideFile::decode(&encoded).as_ref(), Ok(&side), "what decodes encodes");
    let within = |position: u32| (DATA_START..side.head.position).contains(&position.into());
    assert!(
        side.index.entries.iter().all(|entry| within(entry.position)),
        "no further than vouched for"
    );
    assert!(side.index.entries.is_sorted_by(|a, b| a.position < b.position), "in order");
    let base = side.head.base;
    for entry in side.index.entries.iter().take(64) {
        let at = base.0.saturating_add(entry.relative_offset.into());
        let found = side.index.before_offset(base, Offset(at.min(Offset::MAX.0)));
        assert!(found.is_none_or(|found| side.index.entries.contains(&found)));
        let found = side.index.before_time(entry.time_before);
        assert!(found.is_none_or(|found| side.index.entries.contains(&found)));
    }
}

/// A side file that decodes.
#[must_use]
pub fn sample_side_file() -> Vec<u8> {
    let mut index = crate::segment::SparseIndex::default();
    for at in 0..5 {
        index.push(crate::segment::IndexEntry {
            relative_offset: at * 10,
            position: 4096 + at * 100,
            time_before: Timestamp(at.into()),
        });
    }
    let head = SideHead {
        seed: SEED,
        base: Offset(100),
        end: Offset(160),
        position: 5000,
        max_timestamp: Timestamp(9),
        last_append: Timestamp(9),
        boot: 7,
        durable: true,
        producers: true,
    };
    index.decided = Offset(140);
    index.aborted =
        vec![AbortedRange { producer: ProducerId(5), first: Offset(90), last: Offset(140) }];
    SideFile { head, index: std::sync::Arc::new(index) }.encode()
}

/// Decodes `bytes` as what a log remembers of its producers. With a first byte of 1 the checksum is put right first.
pub fn producers(bytes: &[u8]) {
    let Some((&mode, bytes)) = bytes.split_first() else { return };
    let mut bytes = bytes.to_vec();
    if mode == 1
        && let Some((content, crc)) = bytes.split_last_chunk_mut::<4>()
    {
        *crc = crc32fast::hash(content).to_le_bytes();
    }
    let Ok(states) = ProducerStates::restore(&bytes, SEED, 1000) else { return };
    let again = states.snapshot(SEED);
    assert_eq!(again.len(), bytes.len(), "nothing was added or left out");
    let states = ProducerStates::restore(&again, SEED, 1000).expect("what decodes encodes");
    assert_eq!(states.snapshot(SEED), again, "the same state gives the same bytes");
}

/// A memory of producers that decodes.
#[must_use]
pub fn sample_producers() -> Vec<u8> {
    let mut states = ProducerStates::new(Offset(10), 1000);
    let mut next = Offset(10);
    for (id, sequence, content) in [
        (1, 0, Content::Plain),
        (1, 3, Content::Plain),
        (2, 0, Content::Transactional),
        (3, 0, Content::Transactional),
        (2, 0, Content::Marker(Outcome::Aborted)),
    ] {
        let producer = ProducerSequence { id: ProducerId(id), epoch: ProducerEpoch(4), sequence };
        let facts = BatchFacts {
            producer,
            content,
            base_offset: next,
            last_offset_delta: 2,
            leader_epoch: LeaderEpoch(1),
        };
        next = facts.end_offset();
        let _ = states.on_appended(&facts, Timestamp(5));
    }
    states.snapshot(SEED)
}

/// Decodes `bytes` as a record of one of the store's own topics: the first byte says which (1: groups) and whether it has
/// a value (2), two bytes how long the key is.
pub fn table(bytes: &[u8]) {
    let Some((&[mode, low, high], rest)) = bytes.split_first_chunk() else { return };
    let length = usize::from(u16::from_le_bytes([low, high]));
    let Some((key, value)) = rest.split_at_checked(length) else { return };
    let value = (mode & 2 != 0).then_some(value);
    let again = if mode & 1 == 0 {
        TransactionRecord::decode(key, value).map(|record| (record.key(), record.value()))
    } else {
        GroupRecord::decode(key, value).map(|record| (record.key(), record.value()))
    };
    if let Ok((key_again, value_again)) = again {
        assert_eq!(key_again, key, "a key that decodes encodes");
        assert_eq!(value_again.as_deref(), value, "a value that decodes encodes");
    }
}

/// Records of the store's own topics that decode, as [`table`] takes them.
#[must_use]
pub fn sample_tables() -> Vec<Vec<u8>> {
    let partition = PartitionId { topic: TopicId(3), partition: 1 };
    let committed = CommittedOffset {
        offset: Offset(7),
        leader_epoch: Some(LeaderEpoch(2)),
        committed_at: Timestamp(9),
        metadata: "note".into(),
    };
    let state =
        GroupState { generation: 4, empty_since: Some(Timestamp(8)), assignor: "range".into() };
    let groups = [
        GroupRecord::Offset { group: "g".into(), partition, committed: Some(committed) },
        GroupRecord::Offset { group: "g".into(), partition, committed: None },
        GroupRecord::Group { group: "g".into(), state: Some(state) },
    ];
    let lineage = Lineage::new(ProducerId(5)).after(Outcome::Committed);
    let state = IdState {
        lineage,
        previous: vec![Lineage::new(ProducerId(4))],
        timeout: Duration::from_secs(60),
        updated_at: Timestamp(9),
        unsettled: Some(vec![partition]),
    };
    let transactions = [
        TransactionRecord { id: "id".into(), state: Some(state) },
        TransactionRecord { id: "id".into(), state: None },
    ];
    let sample = |mode: u8, key: Vec<u8>, value: Option<Vec<u8>>| {
        let mode = mode | if value.is_some() { 2 } else { 0 };
        let length = u16::try_from(key.len()).expect("a short key").to_le_bytes();
        [&[mode][..], &length, &key, &value.unwrap_or_default()].concat()
    };
    let groups = groups.iter().map(|record| sample(1, record.key(), record.value()));
    let transactions = transactions.iter().map(|record| sample(0, record.key(), record.value()));
    groups.chain(transactions).collect()
}

/// Decodes `bytes` as a metadata log and applies what it says. With a first byte of 1 every frame's
/// checksum is put right first.
pub fn metadata(bytes: &[u8]) {
    let Some((&mode, bytes)) = bytes.split_first() else { return };
    let mut bytes = bytes.to_vec();
    if mode == 1 {
        crate::protocol::metadata::put_checksums(&mut bytes, SEED);
    }
    let mut reader = FrameReader::new(&bytes, SEED);
    let mut state = MetadataState::default();
    while let Ok(frame) = reader.next_frame() {
        let before = state.clone();
        let mut again = Vec::new();
        encode_frame(frame.term, frame.index, &frame.record, SEED, &mut again);
        let back = FrameReader::new(&again, SEED).next_frame();
        let back = back.map(|back| (back.term, back.index, back.record));
        let given = (frame.term, frame.index, frame.record.clone());
        assert_eq!(back, Ok(given), "what decodes encodes");
        if state.apply(&frame.record).is_err() {
            assert_eq!(state, before, "a refused record changes nothing");
        }
    }
    let mut rebuilt = MetadataState::default();
    for record in state.snapshot() {
        assert_eq!(rebuilt.apply(&record), Ok(()), "a state can be built from its snapshot");
    }
    assert_eq!(rebuilt, state, "a snapshot is the state");
    if let Some(at) = find_valid_frame_after(&bytes, 0, SEED) {
        let found = FrameReader::new(&bytes[at..], SEED).next_frame();
        assert!(at > 0 && found.is_ok(), "a frame is where one was found: {found:?}");
    }
    let _ = peek_store(&bytes);
}

/// A metadata log that decodes, with every kind of record.
#[must_use]
pub fn sample_metadata() -> Vec<u8> {
    use crate::protocol::metadata::MetadataRecord;
    use crate::types::DiskId;
    let (disk, other, id) = (DiskId(0), DiskId(1), TopicId(1));
    let both = vec![disk, other];
    let config = || {
        TopicConfig::new()
            .partitions(2)
            .flush(Flush::Interval(Duration::from_millis(1500)))
            .segment_bytes(1 << 20)
            .compression(Compression::None)
            .index_interval_bytes(512)
    };
    let records = [
        MetadataRecord::StoreCreated { store: StoreId(1), format: 1 },
        MetadataRecord::DiskAdded { disk, uuid: 2, incarnation: 1 },
        MetadataRecord::DiskAdded { disk: other, uuid: 3 << 90, incarnation: 4 },
        MetadataRecord::TopicCreated {
            id,
            name: "fruit".into(),
            config: config(),
            replicas: vec![both.clone(); 2],
        },
        MetadataRecord::Opened { clean: false },
        MetadataRecord::TopicAltered { id, config: config().flush(Flush::Os) },
        MetadataRecord::PartitionsAdded { id, replicas: vec![vec![other]] },
        MetadataRecord::LogStartRaised { id, partition: 1, offset: Offset(5) },
        MetadataRecord::ReplicaSuspect { id, partition: 0, disk, durable: Offset(2) },
        MetadataRecord::ReplicaSuspect { id, partition: 0, disk: other, durable: Offset(3) },
        MetadataRecord::ReplicaCleared { id, partition: 0, disk },
        MetadataRecord::LeaderChanged {
            id,
            partition: 1,
            leader: Some(other),
            epoch: LeaderEpoch(7),
            isr: vec![other],
            eligible: vec![disk],
            start: Some(Offset(4)),
            high_watermark: Offset(3),
        },
        MetadataRecord::ReplicasChanged { id, partition: 1, replicas: vec![other] },
        MetadataRecord::LeaderChanged {
            id,
            partition: 0,
            leader: None,
            epoch: LeaderEpoch(2),
            isr: both,
            eligible: Vec::new(),
            start: None,
            high_watermark: Offset(0),
        },
        MetadataRecord::ProducerIdBlock { next: 1000 },
        MetadataRecord::TopicCreated {
            id: TopicId(2),
            name: "gone".into(),
            config: TopicConfig::new(),
            replicas: vec![vec![disk]],
        },
        MetadataRecord::TopicDeleted { id: TopicId(2) },
        MetadataRecord::TopicRemoved { id: TopicId(2) },
        MetadataRecord::TopicGone { id: TopicId(5), name: "files.left".into() },
        MetadataRecord::Counters { next_topic: 9 },
        MetadataRecord::ProducerNamed {
            name: "meter-17".into(),
            id: ProducerId(ProducerId::NAMED | 999),
            epoch: ProducerEpoch(3),
        },
    ];
    let mut bytes = Vec::new();
    for (index, record) in (1..).zip(&records) {
        encode_frame(1, index, record, SEED, &mut bytes);
    }
    bytes
}

/// Changes of one input, at most.
const CHANGES_MAX: usize = 8;
/// Records in every log of the small store.
const RECORDS: u64 = 60;
/// Reads until the end of a log, at most: each ends at a record, or behind damage.
const READS_MAX: usize = 10_000;
/// The logs of the small store, and where each begins: the second has lost its first records.
const LOGS: [(&str, u32, u64); 4] = [("t", 0, 0), ("t", 1, 30), ("z", 0, 0), ("z", 1, 0)];

/// Changes files of a small store, opens it, reads and verifies everything, appends, and opens it again.
///
/// The bits of the first byte: 1, the process died instead of closing the store; 2, the machine lost
/// power after the change; 4, the checksums of the changed files are put right, which makes it an attack;
/// 8, the process dies again before the second opening. Then the changes: file (u8), place (u16), how
/// (u8: overwrite, cut, insert, replace all), length (u8, 255 = the rest), that many bytes.
///
/// Without an attack, whatever is read is what was appended there, and stays so; and one change, without
/// a power loss, closes nothing and takes no record without a word. With one, everything ends.
pub fn open_any_bytes(bytes: &[u8]) {
    let Some((&flags, mut rest)) = bytes.split_first() else { return };
    let [unclean, power, attack, again] = [1, 2, 4, 8].map(|bit| flags & bit != 0);
    let disk = small_store(unclean).fork();
    let store = DirectoryIds::of(&disk);
    // The reserve is only there to be given up.
    let names: Vec<_> = disk.files().into_iter().filter(|name| name != "reserve").collect();
    let mut changes = 0;
    while let Some((change, behind)) = Change::split(rest).filter(|_| changes < CHANGES_MAX) {
        let name = &names[change.file % names.len()];
        let mut contents = disk.read_file(name);
        change.make(&mut contents);
        if attack {
            store.put_checksums(name, &mut contents);
        }
        disk.write_file(name, &contents);
        changes += 1;
        rest = behind;
    }
    if power {
        disk.power_loss();
    }
    let strict = changes <= 1 && !power && !attack;
    let found = match open(&disk) {
        Ok(store) => {
            let found = look_at_everything(&store, attack, strict);
            if again {
                disk.process_restart();
            }
            found
        }
        Err(error) => {
            assert!(!strict, "one damaged file closed the store: {error:?}");
            return;
        }
    };
    match open(&disk) {
        Ok(store) => {
            let later = look_at_everything(&store, attack, false);
            let lost = found.records.iter().find(|(log, at)| !later.accounts_for(*log, *at));
            assert!(attack || lost.is_none(), "read before, and gone without a word: {lost:?}");
        }
        Err(error) => assert!(attack, "opened once, and not again: {error:?}"),
    }
}

/// One change of a file.
struct Change<'a> {
    file: usize,
    at: usize,
    how: u8,
    bytes: &'a [u8],
}

impl<'a> Change<'a> {
    fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (&[file, low, high, how, len], rest) = bytes.split_first_chunk()?;
        let len = if len == u8::MAX { rest.len() } else { rest.len().min(len.into()) };
        let (bytes, rest) = rest.split_at(len);
        let at = u16::from_le_bytes([low, high]).into();
        Some((Self { file: file.into(), at, how, bytes }, rest))
    }

    fn make(&self, contents: &mut Vec<u8>) {
        // Behind what was written lies room that was allocated ahead, the same zero over and over.
        let written = contents.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let at = self.at % (contents.len().min(written + 100) + 1);
        match self.how % 4 {
            0 => {
                let end = (at + self.bytes.len()).min(contents.len());
                contents[at..end].copy_from_slice(&self.bytes[..end - at]);
            }
            1 => contents.truncate(at),
            2 => contents.splice(at..at, self.bytes.iter().copied()).for_each(drop),
            _ => *contents = self.bytes.to_vec(),
        }
    }
}

/// What the checksums in a store's directory start from.
struct DirectoryIds {
    store: StoreId,
}

impl DirectoryIds {
    fn of(disk: &SimDisk) -> Self {
        let identity = disk.read_file("store.id");
        let id = identity.get(16..).and_then(|id| id.first_chunk());
        Self { store: StoreId(u128::from_le_bytes(*id.expect("the store was just made"))) }
    }

    /// Makes a changed file pass its checksums, as far as its structure leads.
    fn put_checksums(&self, path: &str, bytes: &mut [u8]) {
        let name = path.rsplit('/').next().unwrap_or(path);
        if name.ends_with(".side") {
            put_side_checksums(bytes);
        } else if name.ends_with(".log") {
            let Some((head, batches)) = usize::try_from(DATA_START)
                .ok()
                .and_then(|start| bytes.split_at_mut_checked(start))
            else {
                return;
            };
            put_last_word(head);
            put_batch_checksums(batches, self.seed(path));
        } else if name.starts_with("metadata.") {
            let seed = crc32fast::hash(&self.store.0.to_le_bytes());
            crate::protocol::metadata::put_checksums(bytes, seed);
        } else if name == "store.id" || name == "session" {
            put_last_word(bytes);
        } else if name == "marks" && bytes.len() >= 48 {
            let turned: Vec<_> = bytes[32..40].iter().map(|byte| !byte).collect();
            bytes[40..48].copy_from_slice(&turned);
        }
    }

    fn seed(&self, path: &str) -> u32 {
        let at = LOGS
            .iter()
            .position(|(topic, number, _)| path.contains(&format!("-{topic}/{number}/")));
        let (topic, number, _) = LOGS[at.expect("every data file is of one of the logs")];
        let id = TopicId(if topic == "t" { 1 } else { 2 });
        Identity::new(self.store, id, TopicPartition::new(topic, number)).seed
    }
}

/// The last four bytes become the checksum of what is before them.
fn put_last_word(bytes: &mut [u8]) {
    if let Some((body, crc)) = bytes.split_last_chunk_mut::<4>() {
        *crc = crc32fast::hash(body).to_le_bytes();
    }
}

/// What was found in the logs, by their numbers.
#[derive(Default)]
struct Found {
    /// Records that were read or appended.
    records: BTreeSet<(usize, Offset)>,
    /// Offsets that answer with an error, or were cut with an event.
    reported: Vec<(usize, Range<Offset>)>,
}

impl Found {
    fn accounts_for(&self, log: usize, at: Offset) -> bool {
        self.records.contains(&(log, at))
            || self.reported.iter().any(|(of, offsets)| *of == log && offsets.contains(&at))
    }
}

/// Reads and verifies all logs and appends to each.
fn look_at_everything(store: &Store, attack: bool, strict: bool) -> Found {
    let mut found = Found::default();
    for (log, (topic, number, start)) in LOGS.into_iter().enumerate() {
        let partition = match store.partition(topic, number) {
            Ok(partition) => partition,
            Err(error) => {
                assert!(!strict, "{topic}/{number} cannot be opened: {error:?}");
                found.reported.push((log, Offset::ZERO..Offset::MAX));
                continue;
            }
        };
        let (records, damaged) = read_all(&partition, log, attack);
        found.records.extend(records.into_iter().map(|at| (log, at)));
        found.reported.extend(damaged.into_iter().map(|offsets| (log, offsets)));
        for event in store.events() {
            match event.kind {
                EventKind::TailCut { partition: of, from, .. } if of == *partition.name() => {
                    found.reported.push((log, from..Offset::MAX));
                }
                _ => {}
            }
        }
        if strict {
            assert!(partition.log_start_offset().0 <= start, "the start moved");
            let lost = (start..RECORDS).find(|at| !found.accounts_for(log, Offset(*at)));
            assert_eq!(lost, None, "{topic}/{number}: a record vanished without a word");
        }
        found.records.extend(append(&partition, log).map(|at| (log, at)));
    }
    let verified = store.verify(VerifyOptions::new());
    assert!(attack || verified.is_ok(), "damage is in the report: {verified:?}");
    store.run_background();
    found
}

/// The offsets that can be read, and those that answer with an error.
fn read_all(
    partition: &Partition,
    log: usize,
    attack: bool,
) -> (BTreeSet<Offset>, Vec<Range<Offset>>) {
    let (mut found, mut damaged) = (BTreeSet::new(), Vec::new());
    let mut offset = partition.log_start_offset();
    for _ in 0..READS_MAX {
        if offset >= partition.high_watermark() {
            return (found, damaged);
        }
        let next = match partition.read(offset, ReadOptions::new()) {
            Ok(records) => {
                for record in &records {
                    let expected = value(log, record.offset());
                    assert!(
                        attack || record.value() == Some(expected.as_slice()),
                        "wrong bytes at {}: {record:?}",
                        record.offset()
                    );
                    found.insert(record.offset());
                }
                records.next_offset()
            }
            Err(Error::Corrupt { offsets, .. }) => {
                let next = offsets.end;
                damaged.push(offsets);
                next
            }
            Err(_) if attack => return (found, damaged),
            Err(error) => panic!("a read failed on a disk without faults: {error:?}"),
        };
        assert!(next > offset, "a read that does not move on, at {offset}");
        offset = next;
    }
    panic!("reading does not end");
}

/// Appends to a log that was damaged: it goes on, or says why not.
fn append(partition: &Partition, log: usize) -> Option<Offset> {
    let next = partition.log_end_offset();
    let given = value(log, next);
    let appended = partition.append(&[Record::new(&given)], Acks::All).ok()?;
    assert_eq!(appended.offsets.start, next, "records come one behind the other");
    let records = partition.read(next, ReadOptions::new()).expect("it was acknowledged just now");
    let read = records.iter().next().expect("it was acknowledged just now");
    assert_eq!((read.offset(), read.value()), (next, Some(given.as_slice())));
    Some(next)
}

fn value(log: usize, offset: Offset) -> Vec<u8> {
    let mut value = format!("{log}/{offset} ").into_bytes();
    value.resize(24 + usize::try_from(offset.0 % 50).unwrap_or(0), b'.');
    value
}

fn open(disk: &SimDisk) -> Result<Store, Error> {
    Store::builder().simulated_disk(disk.clone()).clock(Clock::manual(Timestamp(1))).open()
}

/// A store of a few logs of some segments each, closed or as its dead process left it. Made once.
fn small_store(unclean: bool) -> &'static SimDisk {
    static STORES: OnceLock<[SimDisk; 2]> = OnceLock::new();
    let stores = STORES.get_or_init(|| {
        let disk = SimDisk::new(1);
        let store = fill(&disk).expect("a disk without faults");
        let unclean = disk.fork();
        drop(store);
        [disk.fork(), unclean]
    });
    &stores[usize::from(unclean)]
}

fn fill(disk: &SimDisk) -> Result<Store, Error> {
    let store = open(disk)?;
    let lz4 = codec_is_available(Compression::Lz4);
    let codec = if lz4 { Compression::Lz4 } else { Compression::None };
    let config = TopicConfig::new().partitions(2).segment_bytes(4096).index_interval_bytes(256);
    store.create_topic("t", config.clone())?;
    store.create_topic("z", config.flush(Flush::Os).compression(codec))?;
    for (log, (topic, number, start)) in LOGS.into_iter().enumerate() {
        let partition = store.partition(topic, number)?;
        let in_batch = if topic == "t" { 1 } else { 3 };
        for at in (0..RECORDS).step_by(in_batch) {
            let offsets = (at..).take(in_batch).map(Offset);
            let values: Vec<_> = offsets.map(|at| value(log, at)).collect();
            let records: Vec<_> = values.iter().map(Record::new).collect();
            partition.append(&records, Acks::All)?;
            if at % 10 == 0 {
                store.run_background();
            }
        }
        partition.delete_records(Offset(start))?;
    }
    Ok(store)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BATCHES: [(&[u8], Compression); 3] = [
        (include_bytes!("../../tests/fixtures/batch-v1-lz4.bin"), Compression::Lz4),
        (include_bytes!("../../tests/fixtures/batch-v1-snappy.bin"), Compression::Snappy),
        (include_bytes!("../../tests/fixtures/batch-v1-zstd.bin"), Compression::Zstd),
    ];
    const SIDE: &[u8] = include_bytes!("../../tests/fixtures/side-v1.bin");
    const METADATA: &[u8] = include_bytes!("../../tests/fixtures/metadata-v1.bin");

    #[test]
    #[ignore = "writes the fixtures: ONCELOG_WRITE_FIXTURES names the directory"]
    fn write_fixtures() {
        let directory = std::env::var_os("ONCELOG_WRITE_FIXTURES").expect("a directory");
        let write = |name: &str, bytes: Vec<u8>| {
            std::fs::write(std::path::Path::new(&directory).join(name), bytes).unwrap();
        };
        write("side-v1.bin", sample_side_file());
        write("metadata-v1.bin", sample_metadata());
        write("batch-v1-lz4.bin", sample_batch(Compression::Lz4));
        write("batch-v1-snappy.bin", sample_batch(Compression::Snappy));
        write("batch-v1-zstd.bin", sample_batch(Compression::Zstd));
    }

    #[test]
    fn a_side_file_of_version_1_is_read_for_ever() {
        let side = SideFile::decode(SIDE).unwrap();
        assert_eq!((side.head.base, side.head.end), (Offset(100), Offset(160)));
        assert_eq!((side.head.position, side.head.boot), (5000, 7));
        assert!(side.head.durable && side.head.seed == SEED);
        let places: Vec<_> = side.index.entries.iter().map(|entry| entry.position).collect();
        assert_eq!(places, [4096, 4196, 4296, 4396, 4496]);
        assert_eq!(side.index.entries[4].relative_offset, 40);
        assert_eq!(side.index.entries[4].time_before, Timestamp(4));
        assert_eq!(sample_side_file(), SIDE, "version 1 is what is written");
    }

    #[test]
    fn a_metadata_log_of_version_1_is_read_for_ever_whatever_its_records() {
        let mut reader = FrameReader::new(METADATA, SEED);
        let frames: Vec<_> = std::iter::from_fn(|| reader.next_frame().ok()).collect();
        assert_eq!(frames.last().unwrap().end, METADATA.len(), "to its end");
        let kinds: std::collections::HashSet<_> =
            frames.iter().map(|frame| std::mem::discriminant(&frame.record)).collect();
        assert_eq!(kinds.len(), 17, "every kind of record");
        let mut state = MetadataState::default();
        for frame in &frames {
            state.apply(&frame.record).unwrap();
        }
        let topic = state.topic_by_name("fruit").unwrap();
        assert_eq!((topic.id, topic.partitions.len()), (TopicId(1), 3));
        assert_eq!((topic.config.flush, topic.config.segment_bytes), (Flush::Os, 1 << 20));
        assert_eq!(topic.partitions[1].log_start, Offset(5));
        assert_eq!(topic.partitions[1].leader_epoch, LeaderEpoch(7));
        assert_eq!(topic.partitions[0].leader, None);
        assert_eq!(topic.partitions[0].suspects.len(), 1);
        assert_eq!(state.deleted_topics().collect::<Vec<_>>(), [(TopicId(5), "files.left")]);
        assert_eq!(state.next_topic_id(), TopicId(10));
        let named = (ProducerId(ProducerId::NAMED | 999), ProducerEpoch(3));
        assert_eq!(state.named_producer("meter-17"), Some(named));
        assert_eq!(sample_metadata(), METADATA, "version 1 is what is written");
    }

    #[test]
    fn packed_batches_of_version_1_are_read_for_ever() {
        for (bytes, codec) in BATCHES {
            let batch = Batch::decode(bytes, SEED).unwrap();
            batch.check().unwrap();
            assert_eq!(batch.header.compression, codec);
            assert_eq!((batch.header.base_offset, batch.header.record_count), (Offset(3), 3));
            if !codec_is_available(codec) {
                assert!(batch.records().is_err(), "{codec:?} is not compiled in");
                continue;
            }
            let payload = batch.records().unwrap();
            let views: Vec<_> = BatchRecords::new(&batch.header, &payload).collect();
            assert_eq!(views[0].key(), Some(&b"k"[..]));
            assert_eq!(
                (views[0].value(), views[0].timestamp()),
                (Some(&b"pear"[..]), Timestamp(7))
            );
            assert_eq!(views[1].value(), Some(&[b'x'; 300][..]));
            assert_eq!(views[1].headers().collect::<Vec<_>>(), [("h", &b"v"[..]), ("i", b"")]);
            assert_eq!((views[2].key(), views[2].value()), (Some(&b"gone"[..]), None));
        }
    }

    #[test]
    fn a_changed_file_passes_its_checksums_when_they_are_put_right() {
        let disk = small_store(true).fork();
        let ids = DirectoryIds::of(&disk);
        for name in disk.files() {
            let contents = disk.read_file(&name);
            let mut again = contents.clone();
            ids.put_checksums(&name, &mut again);
            assert!(again == contents, "{name}: sound checksums stay as they are");
            let (at, checked) = match name.rsplit('/').next().unwrap() {
                "metadata.0" | "metadata.1" => (30, 4..8),
                "store.id" => (40, 60..64),
                "session" => (20, contents.len() - 4..contents.len()),
                "marks" => (32, 40..48),
                log if log.ends_with(".log") => (76, 64..68),
                side if side.ends_with(".side") => (20, 84..88),
                _ => continue,
            };
            again[at] ^= 1;
            ids.put_checksums(&name, &mut again);
            assert_ne!(again[checked.clone()], contents[checked], "{name}");
        }
    }
}
