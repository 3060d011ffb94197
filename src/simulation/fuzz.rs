//! What a fuzzer feeds its bytes to. Each door decodes anything at all and panics only if a promise is
//! broken: no length is believed before it is checked, what decodes encodes to the same bytes, and a
//! store over damaged files gives what was written or an error.

use crate::config::TopicConfig;
use crate::error::Error;
use crate::partition::ReadOptions;
use crate::protocol::metadata::{FrameReader, MetadataState, encode_frame, find_valid_frame_after};
use crate::record::{
    Batch, Draft, DraftSettings, HEADER_BYTES, LENGTH_AT, Place, Record, find_header,
};
use crate::segment::{SideFile, SideHead};
use crate::storage::Clock;
use crate::store::{Store, VerifyOptions};
use crate::types::{Acks, Compression, LeaderEpoch, Offset, Timestamp, TopicPartition};

use super::SimDisk;

/// What the checksums of these doors start from.
pub const SEED: u32 = 0x5eed;

/// Decodes `bytes` as a row of batches, and looks for headers in them. With a first byte of 1 the
/// checksums are put right first, so that the structure behind them is reached.
pub fn batch(bytes: &[u8]) {
    let Some((&mode, bytes)) = bytes.split_first() else { return };
    let mut bytes = bytes.to_vec();
    if mode == 1 {
        make_plausible(&mut bytes);
    }
    let mut rest = bytes.as_slice();
    while let Ok(batch) = Batch::decode(rest, SEED) {
        let len = batch.header.len();
        assert!((HEADER_BYTES..=rest.len()).contains(&len), "a batch lies within its bytes");
        if let Ok(payload) = batch.check().and_then(|()| batch.records()) {
            let records = crate::record::BatchRecords::new(&batch.header, &payload);
            let mut count = 0;
            for record in records {
                let at = record.offset();
                assert!(at >= batch.header.base_offset && at < batch.header.end_offset());
                // Every field can be reached.
                let fields = record.key().map_or(0, <[u8]>::len)
                    + record.value().map_or(0, <[u8]>::len)
                    + record.headers().map(|(name, value)| name.len() + value.len()).sum::<usize>();
                assert!(fields <= payload.len(), "fields lie within the payload");
                count += 1;
            }
            assert_eq!(count, batch.header.record_count, "as many records as the header says");
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

/// A batch whose checksums fit, for [`batch`] and for the first bytes of a corpus.
#[must_use]
pub fn sample_batch(compression: Compression) -> Vec<u8> {
    let (mut batch, mut scratch) = (Vec::new(), Vec::new());
    let records = [
        Record::new("pear").key("k").timestamp(Timestamp(7)),
        Record::new(&[b'x'; 300]).header("h", "v").header("i", ""),
        Record::tombstone("gone"),
    ];
    let settings = DraftSettings { compression, ..DraftSettings::plain(Timestamp(9)) };
    let partition = TopicPartition::new("t", 0);
    let Ok(draft) = Draft::encode(&records, &settings, &partition, &mut batch, &mut scratch) else {
        return Vec::new(); // the codec is not compiled in
    };
    draft.seal(&place(), &mut batch);
    batch
}

fn place() -> Place {
    Place {
        seed: SEED,
        base_offset: Offset(3),
        leader_epoch: LeaderEpoch(1),
        durable_end: Offset(2),
    }
}

/// Gives the first batch a length that fits, and checksums that agree.
fn make_plausible(bytes: &mut [u8]) {
    if bytes.len() < HEADER_BYTES {
        return;
    }
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
    bytes[LENGTH_AT..LENGTH_AT + 4].copy_from_slice(&length);
    crate::record::put_checksums(bytes, SEED);
}

/// Decodes `bytes` as a side file.
pub fn side_file(bytes: &[u8]) {
    let head = SideHead::decode(bytes);
    let Ok(side) = SideFile::decode(bytes) else { return };
    assert_eq!(head.as_ref(), Ok(&side.head), "the head alone says the same");
    assert!(side.index.entries.len() <= bytes.len(), "no more entries than bytes");
    let again = SideFile::decode(&side.encode());
    assert_eq!(again.as_ref(), Ok(&side), "what decodes encodes");
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
    };
    SideFile { head, index: std::sync::Arc::new(index) }.encode()
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
        let back = FrameReader::new(&again, SEED).next_frame().map(|frame| frame.record);
        assert_eq!(back.as_ref(), Ok(&frame.record), "what decodes encodes");
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
        assert!(at < bytes.len());
    }
    let _ = crate::protocol::metadata::peek_store(&bytes);
}

/// A metadata log that decodes.
#[must_use]
pub fn sample_metadata() -> Vec<u8> {
    use crate::protocol::metadata::MetadataRecord;
    use crate::types::{DiskId, StoreId, TopicId};
    let disk = DiskId(0);
    let records = [
        MetadataRecord::StoreCreated { store: StoreId(1), format: 1 },
        MetadataRecord::DiskAdded { disk, uuid: 2, incarnation: 1 },
        MetadataRecord::TopicCreated {
            id: TopicId(1),
            name: "fruit".into(),
            config: TopicConfig::new().partitions(2),
            replicas: vec![vec![disk]; 2],
        },
        MetadataRecord::Opened { clean: false },
        MetadataRecord::LogStartRaised { id: TopicId(1), partition: 1, offset: Offset(5) },
        MetadataRecord::ReplicaSuspect { id: TopicId(1), partition: 0, disk, durable: Offset(2) },
        MetadataRecord::TopicDeleted { id: TopicId(1) },
    ];
    let mut bytes = Vec::new();
    for (index, record) in (1..).zip(&records) {
        encode_frame(1, index, record, SEED, &mut bytes);
    }
    bytes
}

/// Overwrites a part of one file of a small store with `bytes` and opens it. The first four bytes say
/// which file and where. Whatever is read is what was appended there, and what cannot be read is an
/// error.
pub fn open_any_bytes(bytes: &[u8]) {
    let Some((head, bytes)) = bytes.split_first_chunk::<4>() else { return };
    let disk = SimDisk::new(1);
    let Some(mut names) = small_store(&disk) else { return };
    names.sort();
    let name = &names[usize::from(head[0]) % names.len()];
    let mut contents = disk.read_file(name);
    let at = usize::from(u16::from_le_bytes([head[1], head[2]]));
    let at = if contents.is_empty() { 0 } else { at % (contents.len() + 1) };
    match head[3] % 3 {
        0 => {
            let end = (at + bytes.len()).min(contents.len());
            contents[at..end].copy_from_slice(&bytes[..end - at]);
        }
        1 => contents.truncate(at),
        _ => contents.splice(at..at, bytes.iter().copied()).for_each(drop),
    }
    disk.write_file(name, &contents);
    if head[0] & 0x80 > 0 {
        disk.power_loss();
    }
    let Ok(store) = open(&disk) else { return };
    for number in 0..2 {
        if let Ok(partition) = store.partition("t", number) {
            let mut offset = partition.log_start_offset();
            while offset < partition.high_watermark() {
                offset = match partition.read(offset, ReadOptions::new()) {
                    Ok(records) => {
                        for record in &records {
                            let expected = value(number, record.offset());
                            assert_eq!(record.value(), Some(expected.as_slice()), "wrong bytes");
                        }
                        records.next_offset()
                    }
                    Err(Error::Corrupt { offsets, .. }) => {
                        assert!(offsets.end > offset, "damage is passed");
                        offsets.end
                    }
                    Err(_) => break,
                };
            }
            // It goes on, or says why not.
            let next = partition.log_end_offset();
            let value = value(number, next);
            let _ = partition.append(&[Record::new(&value)], Acks::All);
        }
    }
    let _ = store.verify(VerifyOptions::new());
}

fn value(partition: u32, offset: Offset) -> Vec<u8> {
    let mut value = format!("{partition}/{offset} ").into_bytes();
    value.resize(20 + usize::try_from(offset.0 % 50).unwrap_or(0), b'.');
    value
}

fn open(disk: &SimDisk) -> Result<Store, Error> {
    Store::builder().simulated_disk(disk.clone()).clock(Clock::manual(Timestamp(1))).open()
}

/// A store with two partitions and some segments; returns the names of its files.
fn small_store(disk: &SimDisk) -> Option<Vec<String>> {
    let store = open(disk).ok()?;
    let config = TopicConfig::new().partitions(2).segment_bytes(4096).index_interval_bytes(256);
    store.create_topic("t", config).ok()?;
    for number in 0..2 {
        let partition = store.partition("t", number).ok()?;
        for at in (0..60).map(Offset) {
            partition.append(&[Record::new(&value(number, at))], Acks::All).ok()?;
        }
        store.run_background();
    }
    drop(store);
    disk.process_restart();
    Some(disk.files().into_iter().filter(|name| name != "reserve").collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_version_1_are_read_for_ever() {
        if let Some(directory) = std::env::var_os("ONCELOG_WRITE_FIXTURES") {
            let directory = std::path::Path::new(&directory);
            std::fs::write(directory.join("side-v1.bin"), sample_side_file()).unwrap();
            std::fs::write(directory.join("metadata-v1.bin"), sample_metadata()).unwrap();
        }
        let side = include_bytes!("../../tests/fixtures/side-v1.bin");
        assert_eq!(SideFile::decode(side), SideFile::decode(&sample_side_file()));
        assert!(SideFile::decode(side).is_ok());
        let frames = |bytes: &[u8]| {
            let mut reader = FrameReader::new(bytes, SEED);
            std::iter::from_fn(|| reader.next_frame().ok()).collect::<Vec<_>>()
        };
        let metadata = include_bytes!("../../tests/fixtures/metadata-v1.bin");
        assert_eq!(frames(metadata), frames(&sample_metadata()));
        assert_eq!(frames(metadata).len(), 7);
    }
}
