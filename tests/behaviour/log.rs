//! Kafka's behaviours of appends and reads (LOG-*, READ-*) through the public face. `tests/README.md`
//! tells where each of them is tested, and which do not apply.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use oncelog::{
    Acks, Error, ErrorClass, Flush, Offset, Partition, ReadOptions, Record, Store, Timestamp,
    TimestampType, TopicConfig, Written,
};

fn with(config: TopicConfig) -> (Store, Partition) {
    let store = Store::in_memory(1).unwrap();
    store.create_topic("t", config).unwrap();
    let partition = store.partition("t", 0).unwrap();
    (store, partition)
}

fn append(partition: &Partition, values: &[&str]) -> Offset {
    let records: Vec<_> = values.iter().map(|value| Record::new(*value)).collect();
    partition.append(&records, Acks::All).unwrap().offsets.start
}

fn read(partition: &Partition, from: u64, bytes_max: usize) -> Vec<(u64, String)> {
    let records = partition.read(Offset(from), ReadOptions::new().max_bytes(bytes_max)).unwrap();
    records
        .into_iter()
        .map(|record| {
            let value = String::from_utf8(record.value().unwrap().to_vec()).unwrap();
            (record.offset().0, value)
        })
        .collect()
}

#[test]
fn log_01_a_batch_over_the_limit_is_refused_before_anything_is_written() {
    let (_store, partition) = with(TopicConfig::new().max_batch_bytes(2048));
    append(&partition, &["first"]);
    let value = "x".repeat(3000);
    let error = partition.append(&[Record::new(&value)], Acks::All).unwrap_err();
    assert!(matches!(error, Error::RecordTooLarge { bytes_max: 2048, .. }), "{error}");
    assert_eq!((error.written(), error.class()), (Written::No, ErrorClass::Invalid));
    // The limit is on the batch, not on a record.
    let part = "x".repeat(800);
    let three = [Record::new(&part), Record::new(&part), Record::new(&part)];
    assert!(matches!(partition.append(&three, Acks::All), Err(Error::RecordTooLarge { .. })));
    assert_eq!(partition.log_end_offset(), Offset(1));
    assert_eq!(append(&partition, &["second"]), Offset(1), "no offset was burnt");
}

#[cfg(feature = "lz4")]
#[test]
fn log_03_the_limit_holds_before_and_after_compression() {
    // Kafka looks at the compressed size only. Here a reader, too, never unpacks more than the limit.
    let config = TopicConfig::new().max_batch_bytes(2048).compression(oncelog::Compression::Lz4);
    let (_store, partition) = with(config);
    append(&partition, &["x".repeat(1900).as_str()]);
    let mut random = 1_u32;
    let noise: String = std::iter::repeat_with(|| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        char::from(b'!' + u8::try_from(random >> 26).unwrap())
    })
    .take(2030)
    .collect();
    for value in ["x".repeat(100_000), noise] {
        let error = partition.append(&[Record::new(&value)], Acks::All).unwrap_err();
        assert!(matches!(error, Error::RecordTooLarge { .. }), "{error}");
    }
    assert_eq!(partition.log_end_offset(), Offset(1));
}

#[test]
fn log_04_a_batch_larger_than_a_segment_gets_one_of_its_own() {
    // Kafka refuses it. Here a value of 1 MiB always fits: the segment is made as large as the batch.
    let (_store, partition) = with(TopicConfig::new().segment_bytes(4096));
    append(&partition, &["small"]);
    let large = "y".repeat(1 << 20);
    append(&partition, &[large.as_str()]);
    append(&partition, &["small again"]);
    assert_eq!(read(&partition, 1, 1)[0].1.len(), 1 << 20);
    assert_eq!(read(&partition, 2, 1)[0].1, "small again");
}

#[test]
fn log_08_a_batch_without_records_is_refused() {
    let (_store, partition) = with(TopicConfig::new());
    let error = partition.append(&[], Acks::All).unwrap_err();
    assert_eq!((error.written(), error.class()), (Written::No, ErrorClass::Invalid), "A3");
    assert_eq!(partition.log_end_offset(), Offset(0));
}

#[test]
fn log_09_16_one_append_is_one_batch_with_contiguous_offsets() {
    let (_store, partition) = with(TopicConfig::new());
    assert_eq!(append(&partition, &["a", "b", "c"]), Offset(0));
    assert_eq!(append(&partition, &["d"]), Offset(3));
    let records = partition.read(Offset(0), ReadOptions::new().max_bytes(1)).unwrap();
    assert_eq!(records.into_iter().count(), 3, "the first batch, whole");
    let all = read(&partition, 0, 1 << 20);
    assert_eq!(all.iter().map(|(offset, _)| *offset).collect::<Vec<_>>(), [0, 1, 2, 3]);
}

#[test]
fn log_13_14_one_bad_record_refuses_the_whole_batch_and_is_named() {
    let config = TopicConfig::new()
        .timestamp_before_max(Duration::from_secs(3600))
        .timestamp_after_max(Duration::from_secs(3600));
    let (_store, partition) = with(config);
    let ancient = Record::new("b").timestamp(Timestamp(1));
    let future = Record::new("b").timestamp(Timestamp(i64::MAX));
    for bad in [ancient, future] {
        let batch = [Record::new("a"), bad, Record::new("c")];
        let error = partition.append(&batch, Acks::All).unwrap_err();
        assert!(matches!(error, Error::InvalidRecord { index: 1, .. }), "{error}");
        assert_eq!(partition.log_end_offset(), Offset(0));
    }
    append(&partition, &["a"]);
}

#[test]
fn log_15_the_log_stamps_what_it_is_told_to_stamp() {
    let (_store, partition) = with(TopicConfig::new().timestamp_type(TimestampType::AppendTime));
    let record = Record::new("a").timestamp(Timestamp(5));
    let appended = partition.append(&[record], Acks::All).unwrap();
    let records = partition.read(Offset(0), ReadOptions::new()).unwrap();
    assert_eq!(records.into_iter().next().unwrap().timestamp(), appended.timestamp);
    let (_store, partition) = with(TopicConfig::new());
    let record = Record::new("a").timestamp(Timestamp(5));
    partition.append(&[record], Acks::All).unwrap();
    let records = partition.read(Offset(0), ReadOptions::new()).unwrap();
    assert_eq!(records.into_iter().next().unwrap().timestamp(), Timestamp(5));
}

#[test]
fn a3_absent_and_empty_differ_also_after_reopening() {
    let directory = tempfile::tempdir().unwrap();
    {
        let store = Store::open(directory.path()).unwrap();
        store.create_topic("t", TopicConfig::new()).unwrap();
        let records = [
            Record::new("").key(""),
            Record::tombstone("k"),
            Record::new("v"),
            Record::new("").header("h", ""),
        ];
        store.partition("t", 0).unwrap().append(&records, Acks::All).unwrap();
        store.close(Duration::from_secs(10)).unwrap();
    }
    let store = Store::open(directory.path()).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let records = partition.read(Offset(0), ReadOptions::new()).unwrap();
    let found: Vec<_> = records
        .into_iter()
        .map(|record| (record.key(), record.value(), record.header("h")))
        .collect();
    assert_eq!(found[0], (Some(&b""[..]), Some(&b""[..]), None));
    assert_eq!(found[1], (Some(&b"k"[..]), None, None));
    assert_eq!(found[2], (None, Some(&b"v"[..]), None));
    assert_eq!(found[3], (None, Some(&b""[..]), Some(&b""[..])));
}

#[test]
fn a3_a_million_headers_and_values_at_the_limit() {
    let (_store, partition) = with(TopicConfig::new().max_batch_bytes(64 << 20));
    let record = (0..1_000_000).fold(Record::new("v"), |record, _| record.header("h", "x"));
    match partition.append(&[record], Acks::All) {
        Ok(_) => {
            let records = partition.read(Offset(0), ReadOptions::new()).unwrap();
            assert_eq!(records.into_iter().next().unwrap().headers().count(), 1_000_000);
        }
        Err(error) => assert_eq!(error.class(), ErrorClass::Invalid, "{error}"),
    }
    let (_store, partition) = with(TopicConfig::new());
    append(&partition, &["z".repeat(1 << 20).as_str()]);
    let huge = vec![0_u8; 16 << 20];
    let error = partition.append(&[Record::new(&huge)], Acks::All).unwrap_err();
    assert!(matches!(error, Error::RecordTooLarge { .. }), "{error}");
}

#[test]
fn read_01_02_a4_outside_the_log_is_an_error_and_the_end_is_not() {
    let (_store, partition) = with(TopicConfig::new());
    for at in 0..10 {
        append(&partition, &[format!("{at}").as_str()]);
    }
    partition.delete_records(Offset(4)).unwrap();
    for outside in [0, 3, 11, i64::MAX as u64, u64::MAX] {
        let error = partition.read(Offset(outside), ReadOptions::new()).unwrap_err();
        let Error::OffsetOutOfRange { offset, start, end, .. } = error else {
            panic!("{error}");
        };
        assert_eq!((offset, start, end), (Offset(outside), Offset(4), Offset(10)));
    }
    assert!(read(&partition, 10, 1 << 20).is_empty());
    assert_eq!(read(&partition, 4, 1 << 20)[0].1, "4");
    for outside in [11, u64::MAX] {
        let error = partition.delete_records(Offset(outside)).unwrap_err();
        assert!(matches!(error, Error::OffsetOutOfRange { .. }), "{error}");
    }
    assert_eq!(partition.delete_records(Offset(2)).unwrap(), Offset(4), "REPL-29");
}

#[test]
fn read_03_between_the_watermark_and_the_end_a_reader_waits() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    store.create_topic("t", TopicConfig::new().flush(Flush::OnAck)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let ticket = partition.append_nowait(&[Record::new("a")], Acks::All).unwrap();
    // Flushed by now or not: no error, and what is returned is below the watermark.
    let records = partition.read(Offset(0), ReadOptions::new()).unwrap();
    assert!(records.next_offset() <= partition.high_watermark());
    let beyond = partition.read(Offset(1), ReadOptions::new()).unwrap();
    assert_eq!(beyond.into_iter().count(), 0);
    ticket.wait(Duration::from_secs(10)).unwrap();
    assert_eq!(read(&partition, 0, 1).len(), 1);
}

#[test]
fn read_05_06_a_read_inside_a_batch_and_one_that_asks_for_too_little_get_on() {
    let (_store, partition) = with(TopicConfig::new());
    append(&partition, &["a", "b", "c"]);
    append(&partition, &["d", "e"]);
    // Records before the one that was asked for are not shown.
    assert_eq!(read(&partition, 1, 0), [(1, "b".into()), (2, "c".into())]);
    assert_eq!(read(&partition, 4, 1), [(4, "e".into())]);
    let records = partition.read(Offset(1), ReadOptions::new().max_bytes(0)).unwrap();
    assert_eq!(records.next_offset(), Offset(3));
    assert_eq!(read(&partition, 0, usize::MAX).len(), 5);
}

#[test]
fn read_04_a_read_crosses_into_the_next_segment() {
    let (_store, partition) = with(TopicConfig::new().segment_bytes(4096));
    for at in 0..200 {
        append(&partition, &[format!("{at} {}", "x".repeat(100)).as_str()]);
    }
    let mut next = 0;
    while next < 200 {
        let got = read(&partition, next, 1 << 20);
        assert_eq!(got[0].0, next);
        next += got.len() as u64;
    }
}

#[test]
fn read_10_a_reader_never_sees_beyond_the_watermark_it_could_have_known() {
    let (_store, partition) = with(TopicConfig::new().segment_bytes(16 << 10));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for at in 0..5_000_u64 {
                append(&partition, &[at.to_string().as_str()]);
            }
            done.store(true, Ordering::Release);
        });
        while !done.load(Ordering::Acquire) {
            let before = partition.high_watermark();
            let records = partition.read(before, ReadOptions::new()).unwrap();
            let next = records.next_offset();
            assert!(next <= partition.high_watermark());
            assert!(partition.high_watermark() <= partition.log_end_offset());
            for record in &records {
                assert_eq!(record.value().unwrap(), record.offset().to_string().as_bytes());
            }
        }
    });
}

#[test]
fn read_11_12_13_times_are_looked_up_among_what_can_be_read() {
    let (_store, partition) =
        with(TopicConfig::new().segment_bytes(4096).index_interval_bytes(256));
    for at in 0..300_i64 {
        // Times go up and down; the first that reaches is the answer.
        let time = Timestamp(1000 + at * 10 - (at % 3) * 25);
        partition.append(&[Record::new("v").timestamp(time)], Acks::All).unwrap();
    }
    let times: Vec<_> = (0..300_i64).map(|at| 1000 + at * 10 - (at % 3) * 25).collect();
    for asked in (900..4100).step_by(7) {
        let expected = times.iter().position(|time| *time >= asked).map(|at| Offset(at as u64));
        assert_eq!(partition.offset_for_time(Timestamp(asked)).unwrap(), expected, "at {asked}");
    }
    partition.delete_records(Offset(50)).unwrap();
    assert_eq!(partition.offset_for_time(Timestamp(0)).unwrap(), Some(Offset(50)));
    assert_eq!(partition.offset_for_time(Timestamp(i64::MAX)).unwrap(), None, "not the end");
}
