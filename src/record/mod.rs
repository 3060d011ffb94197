//! The bytes of records and batches. Pure: slices in, values or slices out.
//!
//! A batch is the unit of append, checksum and replication: an 80-byte [`BatchHeader`] and a
//! payload of records. Two checksums: the records' is computed before the log's lock is taken, the
//! header's, which covers offset and epoch and is seeded with the partition's identity, under it.
//! The table of every field is in `src/manual/format.md`.

mod addressed;
mod batch;
mod buffer;
mod compression;
mod control;
mod encode;
mod header;
#[expect(clippy::module_inception, reason = "the record is what the module is about")]
mod record;
mod varint;
mod view;

pub use addressed::ProducerRecord;
pub(crate) use batch::{Batch, find_header};
pub(crate) use compression::{codec_code, codec_is_available, codec_of};
pub(crate) use control::{MARKER_ABORT, MARKER_COMMIT, Marker, encode_marker, first_offset};
pub(crate) use encode::{Draft, DraftSettings, Place, RecordSize};
#[cfg(any(test, feature = "simulation"))]
pub(crate) use header::put_checksums;
pub(crate) use header::{ALIGNMENT, BatchHeader, HEADER_BYTES, LENGTH_AT};
pub use record::Record;
pub(crate) use view::BatchRecords;
pub use view::{Headers, RecordView};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::{DecodeError, Error};
    use crate::types::{Compression, LeaderEpoch, Offset, Timestamp, TopicPartition};

    const SEED: u32 = 0x0102_0304;

    fn encode(records: &[Record<'_>], settings: &DraftSettings) -> Result<Vec<u8>, Error> {
        let mut draft = Draft::default();
        draft.encode(records, settings, &TopicPartition::new("t", 0))?;
        let place = Place {
            seed: SEED,
            base_offset: Offset(0),
            leader_epoch: LeaderEpoch(0),
            durable_end: Offset(0),
        };
        draft.seal(&place);
        Ok(draft.bytes().to_vec())
    }

    #[test]
    fn the_worked_example_of_the_manual_is_what_is_written() {
        let pear = Record::new("pear").timestamp(Timestamp(5));
        let batch = encode(&[pear], &DraftSettings::plain(Timestamp(0))).unwrap();
        let mut expected = vec![0; 92];
        expected[4] = 92;
        expected[8..10].copy_from_slice(&[0xb1, 2]);
        expected[28] = 1;
        expected[56] = 5;
        expected[64] = 5;
        expected[80..90].copy_from_slice(b"\x09\0\0\0\x05pear\0");
        let records_crc = crc32fast::hash(&expected[80..]).to_le_bytes();
        expected[44..48].copy_from_slice(&records_crc);
        let mut hasher = crc32fast::Hasher::new_with_initial(SEED);
        hasher.update(&expected[4..80]);
        expected[..4].copy_from_slice(&hasher.finalize().to_le_bytes());
        assert_eq!(batch, expected);
        assert_eq!(
            batch,
            include_bytes!("../../tests/fixtures/batch-v1.bin"),
            "the fixture of version 1"
        );
    }

    #[test]
    fn a_single_record_of_100_bytes_takes_188() {
        let batch = encode(&[Record::new(&[7; 100])], &DraftSettings::plain(Timestamp(0))).unwrap();
        assert_eq!(batch.len(), 188);
    }

    #[test]
    fn log_01_a_batch_over_the_limit_is_refused_and_one_at_the_limit_is_not() {
        let fits = DraftSettings { bytes_max: 188, ..DraftSettings::plain(Timestamp(0)) };
        assert!(encode(&[Record::new(&[7; 100])], &fits).is_ok());
        let tight = DraftSettings { bytes_max: 187, ..fits };
        assert!(matches!(
            encode(&[Record::new(&[7; 100])], &tight),
            Err(Error::RecordTooLarge { .. })
        ));
    }

    #[test]
    fn log_08_an_empty_batch_is_refused() {
        let refused = encode(&[], &DraftSettings::plain(Timestamp(0)));
        assert!(matches!(refused, Err(Error::InvalidRecord { .. })));
    }

    #[test]
    fn log_13_a_timestamp_outside_the_range_refuses_the_whole_batch_and_names_the_record() {
        let settings = DraftSettings {
            timestamp_min: Timestamp(10),
            timestamp_max: Timestamp(20),
            ..DraftSettings::plain(Timestamp(15))
        };
        let stamped = |at| Record::new("x").timestamp(Timestamp(at));
        assert!(encode(&[stamped(10), stamped(20)], &settings).is_ok());
        for wrong in [9, 21, i64::MIN, i64::MAX] {
            let refused = encode(&[stamped(15), stamped(wrong)], &settings);
            assert!(matches!(refused, Err(Error::InvalidRecord { index: 1, .. })), "{wrong}");
        }
    }

    #[test]
    fn log_05_every_flipped_byte_of_a_batch_is_noticed() {
        let batch = encode(
            &[Record::new("pear").key("k").header("h", "v")],
            &DraftSettings::plain(Timestamp(3)),
        )
        .unwrap();
        for at in 0..batch.len() {
            for flip in [1, 0x80, 0xff] {
                let mut flipped = batch.clone();
                flipped[at] ^= flip;
                let read = Batch::decode(&flipped, SEED).and_then(|batch| batch.check());
                assert!(read.is_err(), "byte {at} ^ {flip}");
            }
            assert!(Batch::decode(&batch[..at], SEED).is_err(), "cut at {at}");
        }
        assert_eq!(
            Batch::decode(&batch, SEED + 1).unwrap_err(),
            DecodeError::Checksum("batch header"),
            "S5"
        );
    }

    type Drawn = (Option<Vec<u8>>, Option<Vec<u8>>, Option<i64>, Vec<(String, Vec<u8>)>);

    fn drawn() -> impl Strategy<Value = Vec<Drawn>> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..200);
        let headers = proptest::collection::vec((".{0,5}", bytes()), 0..3);
        let optional = || proptest::option::of(bytes());
        let record = (optional(), optional(), proptest::option::of(any::<i64>()), headers);
        proptest::collection::vec(record, 1..20)
    }

    proptest! {
        #[test]
        fn records_come_back_as_they_were_given(drawn in drawn(), codec in 0usize..4) {
            let all = [Compression::None, Compression::Lz4, Compression::Zstd, Compression::Snappy];
            let compression = all[codec];
            if !codec_is_available(compression) {
                return Ok(());
            }
            let now = Timestamp(77);
            let records: Vec<_> = drawn
                .iter()
                .map(|(key, value, timestamp, headers)| Record {
                    key: key.as_deref(),
                    value: value.as_deref(),
                    headers: headers.iter().map(|(name, value)| (name.as_str(), &value[..])).collect(),
                    timestamp: timestamp.map(Timestamp),
                })
                .collect();
            let bytes = encode(&records, &DraftSettings { compression, ..DraftSettings::plain(now) }).unwrap();
            let batch = Batch::decode(&bytes, SEED).unwrap();
            batch.check().unwrap();
            let payload = batch.records().unwrap();
            let views: Vec<_> = BatchRecords::new(&batch.header, &payload).collect();
            prop_assert_eq!(views.len(), records.len());
            for (at, (view, record)) in (0..).zip(views.iter().zip(&records)) {
                prop_assert_eq!(view.offset(), Offset(at));
                prop_assert_eq!(view.timestamp(), record.timestamp.unwrap_or(now));
                prop_assert_eq!((view.key(), view.value()), (record.key, record.value));
                prop_assert_eq!(view.headers().collect::<Vec<_>>(), record.headers.clone());
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(batch) = Batch::decode(&bytes, SEED) {
                let _ = batch.records();
            }
            let _ = find_header(&bytes, 0, SEED);
            // A payload that passes its checksum and was never written by us.
            let mut forged = encode(&[Record::new("x")], &DraftSettings::plain(Timestamp(0))).unwrap();
            forged.truncate(HEADER_BYTES);
            forged.extend_from_slice(&bytes);
            let header = BatchHeader::decode(&forged, SEED).unwrap();
            let mut records = BatchRecords::new(&header, &bytes);
            prop_assert!(records.by_ref().count() <= 1);
        }
    }
}
