//! Sizes, offsets, times, settings and names at their limits and beyond (LOG, READ, A, S23).
//! `tests/README.md` tells what is tested where.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use oncelog::simulation::{Clock, SimDisk};
use oncelog::{
    Acks, Error, ErrorClass, Flush, Offset, Partition, ReadOptions, Record, Retention, Store,
    Timestamp, TimestampType, TopicConfig, TopicUpdate, VerifyOptions, Written,
};

const NOW: Timestamp = Timestamp(10_000_000_000);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
/// Every length of time that has ever been too long or too short for somebody.
const SPANS: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_nanos(1),
    Duration::from_millis(1),
    Duration::from_millis(i64::MAX as u64),
    Duration::from_secs(u64::MAX),
    Duration::MAX,
];
/// So short that a thread of the store may hold a lock for longer.
const SHORT: Duration = Duration::from_millis(2);

fn simulated(disk: &SimDisk, now: Timestamp) -> Store {
    Store::builder().simulated_disk(disk.clone()).clock(Clock::manual(now)).open().unwrap()
}

fn with(config: TopicConfig) -> (SimDisk, Store, Partition) {
    let disk = SimDisk::new(1);
    let store = simulated(&disk, NOW);
    store.create_topic("t", config).unwrap();
    let partition = store.partition("t", 0).unwrap();
    (disk, store, partition)
}

fn timestamps(partition: &Partition) -> Vec<i64> {
    let mut times = Vec::new();
    let mut offset = partition.log_start_offset();
    while offset < partition.high_watermark() {
        let records = partition.read(offset, ReadOptions::new()).unwrap();
        times.extend(records.iter().map(|record| record.timestamp().0));
        offset = records.next_offset();
    }
    times
}

#[test]
fn log_01_a3_the_limit_is_exact_and_a_refusal_does_no_io() {
    let (disk, _store, partition) = with(TopicConfig::new().max_batch_bytes(2048));
    partition.append(&[Record::new("first")], Acks::All).unwrap();
    let mut taken = Vec::new();
    let mut least = u64::MAX;
    for len in 1900..2100 {
        let (calls, end) = (disk.calls(), partition.log_end_offset());
        let value = vec![7; len];
        match partition.append(&[Record::new(&value)], Acks::All) {
            Ok(_) => taken.push(len),
            Err(Error::RecordTooLarge { bytes, bytes_max: 2048, .. }) => {
                least = least.min(bytes);
                assert!(bytes > 2048, "{bytes} bytes are allowed");
                assert_eq!((disk.calls(), partition.log_end_offset()), (calls, end));
            }
            Err(error) => panic!("{error}"),
        }
    }
    let largest = *taken.last().unwrap();
    assert_eq!(taken.len(), largest - 1899, "one length is the limit");
    assert!((2049..=2052).contains(&least), "the first refusal was of {least} bytes");
    // Two GiB are refused without being looked at.
    let (calls, huge) = (disk.calls(), vec![0_u8; (2 << 30) + 1]);
    let error = partition.append(&[Record::new(&huge)], Acks::All).unwrap_err();
    assert!(matches!(error, Error::RecordTooLarge { .. }), "{error}");
    let error = partition.append(&[Record::new("v").key(&huge)], Acks::All).unwrap_err();
    assert!(matches!(error, Error::RecordTooLarge { .. }), "{error}");
    let error = partition.append(&[Record::new("v").header("h", &huge)], Acks::All).unwrap_err();
    assert!(matches!(error, Error::RecordTooLarge { .. }), "{error}");
    assert_eq!(disk.calls(), calls);
}

#[test]
fn a3_a_million_records_are_one_batch_and_nothing_at_all_is_a_record_too() {
    let store = Store::in_memory(1).unwrap();
    store.create_topic("t", TopicConfig::new().max_batch_bytes(64 << 20)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let records = vec![Record::new(""); 1_000_000];
    let appended = partition.append(&records, Acks::All).unwrap();
    assert_eq!(appended.offsets, Offset(0)..Offset(1_000_000));
    let read = partition.read(Offset(999_999), ReadOptions::new().max_bytes(1)).unwrap();
    assert_eq!(read.iter().next().unwrap().offset(), Offset(999_999));
    assert_eq!(read.next_offset(), Offset(1_000_000));
    let read = partition.read(Offset(0), ReadOptions::new().max_bytes(1)).unwrap();
    assert_eq!(read.iter().filter(|record| record.value() == Some(b"")).count(), 1_000_000);
}

#[test]
fn log_13_the_range_of_times_is_inclusive_and_a_record_without_a_time_is_in_it() {
    let ranged =
        |before, after| TopicConfig::new().timestamp_before_max(before).timestamp_after_max(after);
    let (_disk, store, partition) = with(ranged(HOUR, HOUR));
    let at = |time: i64| Record::new("v").timestamp(Timestamp(time));
    for good in [NOW.0 - 3_600_000, NOW.0, NOW.0 + 3_600_000] {
        partition.append(&[at(good)], Acks::All).unwrap();
    }
    for bad in [i64::MIN, -1, 0, NOW.0 - 3_600_001, NOW.0 + 3_600_001, i64::MAX] {
        let error = partition.append(&[Record::new("v"), at(bad)], Acks::All).unwrap_err();
        assert!(matches!(error, Error::InvalidRecord { index: 1, .. }), "{bad}: {error}");
        assert_eq!((error.written(), error.class()), (Written::No, ErrorClass::Invalid));
    }
    partition.append(&[Record::new("v")], Acks::All).unwrap();
    assert_eq!(partition.log_end_offset(), Offset(4));
    assert_eq!(timestamps(&partition)[3], NOW.0);
    // No range at all, and a range without end, take every time there is, in one batch.
    store.create_topic("free", TopicConfig::new()).unwrap();
    store.create_topic("wide", ranged(Duration::MAX, Duration::MAX)).unwrap();
    for topic in ["free", "wide"] {
        let partition = store.partition(topic, 0).unwrap();
        let times = [i64::MAX, i64::MIN, 0, -1, i64::MIN, i64::MAX];
        partition.append(&times.map(at), Acks::All).unwrap();
        assert_eq!(timestamps(&partition), times);
        assert_eq!(partition.offset_for_time(Timestamp::MAX).unwrap(), Some(Offset(0)));
    }
    store.create_topic("narrow", ranged(Duration::ZERO, Duration::ZERO)).unwrap();
    let partition = store.partition("narrow", 0).unwrap();
    partition.append(&[at(NOW.0)], Acks::All).unwrap();
    assert!(partition.append(&[at(NOW.0 - 1)], Acks::All).is_err());
}

#[test]
fn log_15_append_time_is_one_time_for_the_batch_and_no_other_is_looked_at() {
    let config = TopicConfig::new()
        .timestamp_type(TimestampType::AppendTime)
        .timestamp_before_max(Duration::ZERO);
    let (_disk, _store, partition) = with(config);
    let batch = [5, i64::MIN, i64::MAX].map(|at| Record::new("v").timestamp(Timestamp(at)));
    let appended = partition.append(&batch, Acks::All).unwrap();
    assert_eq!(appended.timestamp, NOW);
    assert_eq!(timestamps(&partition), [NOW.0; 3]);
    assert_eq!(partition.offset_for_time(NOW).unwrap(), Some(Offset(0)));
    assert_eq!(partition.offset_for_time(Timestamp(NOW.0 + 1)).unwrap(), None);
}

#[test]
fn read_03_13_what_is_not_flushed_cannot_be_read_found_by_time_or_deleted() {
    let (_disk, _store, partition) = with(TopicConfig::new().flush(Flush::OnAck));
    partition.append(&[Record::new("a").timestamp(Timestamp(1))], Acks::All).unwrap();
    let record = Record::new("b").timestamp(Timestamp(2));
    let ticket = partition.append_nowait(&[record], Acks::All).unwrap();
    assert_eq!((partition.high_watermark(), partition.log_end_offset()), (Offset(1), Offset(2)));
    assert_eq!(partition.read(Offset(0), ReadOptions::new()).unwrap().next_offset(), Offset(1));
    for between in [1, 2] {
        let records = partition.read(Offset(between), ReadOptions::new()).unwrap();
        assert!(records.is_empty() && records.next_offset() == Offset(between));
    }
    let error = partition.read(Offset(3), ReadOptions::new()).unwrap_err();
    assert!(matches!(error, Error::OffsetOutOfRange { .. }), "READ-02: {error}");
    assert_eq!(partition.offset_for_time(Timestamp(2)).unwrap(), None, "READ-13");
    let error = partition.delete_records(Offset(2)).unwrap_err();
    assert!(matches!(error, Error::OffsetOutOfRange { .. }), "{error}");
    let error = partition.wait_for(Offset(1), Duration::ZERO).unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    ticket.wait(SECOND).unwrap();
    assert_eq!(partition.read(Offset(1), ReadOptions::new()).unwrap().count(), 1);
    assert_eq!(partition.offset_for_time(Timestamp(2)).unwrap(), Some(Offset(1)));
}

#[test]
fn a4_an_empty_log_and_places_that_are_none() {
    let (_disk, store, partition) = with(TopicConfig::new());
    assert!(partition.read(Offset(0), ReadOptions::new()).unwrap().is_empty());
    for outside in [1, i64::MAX as u64, u64::MAX] {
        let read = partition.read(Offset(outside), ReadOptions::new()).map(drop);
        let deleted = partition.delete_records(Offset(outside)).map(drop);
        for outcome in [read, deleted] {
            let error = outcome.unwrap_err();
            assert!(matches!(error, Error::OffsetOutOfRange { .. }), "{outside}: {error}");
        }
        assert!(partition.wait_for(Offset(outside), Duration::ZERO).is_err());
    }
    assert_eq!(partition.delete_records(Offset(0)).unwrap(), Offset(0));
    for time in [Timestamp::MIN, Timestamp(0), Timestamp::MAX] {
        assert_eq!(partition.offset_for_time(time).unwrap(), None, "READ-12");
    }
    for (topic, number) in [("t", 1), ("t", u32::MAX), ("u", 0), ("", 0), ("../t", 0)] {
        let error = store.partition(topic, number).unwrap_err();
        assert!(
            matches!(error, Error::UnknownTopicOrPartition { .. }),
            "{topic} {number}: {error}"
        );
    }
    assert!(matches!(store.delete_topic("u"), Err(Error::UnknownTopicOrPartition { .. })));
}

#[test]
fn s23_no_clock_breaks_offsets_or_records() {
    let clocks = [i64::MIN, -1, 0, NOW.0, i64::MAX];
    for first in clocks {
        for second in clocks {
            let disk = SimDisk::new(23);
            let config = || {
                TopicConfig::new()
                    .segment_bytes(4096)
                    .segment_age(SECOND)
                    .timestamp_before_max(SECOND)
                    .timestamp_after_max(SECOND)
                    .retention(Retention::age(HOUR))
            };
            let store = simulated(&disk, Timestamp(first));
            store.create_topic("own", config()).unwrap();
            let stamped = config().timestamp_type(TimestampType::AppendTime);
            store.create_topic("stamped", stamped).unwrap();
            let fill = |store: &Store, from: u64| {
                for topic in ["own", "stamped"] {
                    let partition = store.partition(topic, 0).unwrap();
                    for at in from..from + 60 {
                        let value = at.to_string().repeat(40);
                        let appended = partition.append(&[Record::new(&value)], Acks::All).unwrap();
                        assert_eq!(appended.offsets.start, Offset(at), "{first} then {second}");
                    }
                    store.run_background();
                }
            };
            fill(&store, 0);
            let kept = |store: &Store, topic| timestamps(&store.partition(topic, 0).unwrap()).len();
            for topic in ["own", "stamped"] {
                assert_eq!(kept(&store, topic), 60, "nothing is older than the present");
            }
            store.close(SECOND).unwrap();
            let store = simulated(&disk, Timestamp(second));
            fill(&store, 60);
            store.run_background();
            for topic in ["own", "stamped"] {
                let found = kept(&store, topic);
                let old = i128::from(second) - i128::from(first) > 3_600_000;
                assert!(found >= 60 && (old || found == 120), "{first}, {second}: {found} kept");
            }
        }
    }
}

#[test]
fn a8_every_length_of_time_is_taken_or_refused_wherever_one_is_asked_for() {
    for span in SPANS {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::builder()
            .disk(directory.path())
            .append_timeout(span)
            .retention_check_interval(span)
            .replica_lag_max(span)
            .open()
            .unwrap();
        let plain = || TopicConfig::new().segment_bytes(4096);
        let configs = [
            plain().flush(Flush::Interval(span)),
            plain().flush(Flush::Os).retention(Retention::age(span)),
            plain().segment_age(span),
            plain().timestamp_before_max(span).timestamp_after_max(span),
        ];
        for (number, config) in configs.into_iter().enumerate() {
            let topic = number.to_string();
            match store.create_topic(&topic, config) {
                Ok(()) => {}
                Err(Error::InvalidConfig { .. }) => continue,
                Err(error) => panic!("{span:?}: {error}"),
            }
            let partition = store.partition(&topic, 0).unwrap();
            let mut count = 0;
            for _ in 0..20 {
                // Nothing is in the log where not even its lock was had in the time.
                match partition.append(&[Record::new(&[7; 500])], Acks::All) {
                    Ok(appended) => assert_eq!(appended.offsets.start, Offset(count)),
                    // In the log, and not acknowledged within no time.
                    Err(Error::TimedOut { appended: Some(offsets), .. }) => {
                        assert_eq!(offsets.start, Offset(count));
                    }
                    Err(Error::TimedOut { appended: None, .. }) if span < SHORT => continue,
                    Err(error) => panic!("{span:?} {number}: {error}"),
                }
                count += 1;
            }
            let last = loop {
                match partition.append_nowait(&[Record::new("last")], Acks::All) {
                    Err(Error::TimedOut { appended: None, .. }) if span < SHORT => {}
                    placed => break placed.unwrap(),
                }
            };
            let _ = last.wait(Duration::ZERO);
            last.wait(Duration::MAX).unwrap();
            partition.wait_for(Offset(count), Duration::MAX).unwrap();
            assert_eq!(partition.high_watermark(), Offset(count + 1), "{span:?} {number}");
        }
        let mut events = store.events();
        while events.wait(Duration::ZERO).is_some() {}
        // No time at all may be too little for a disk; the store is closed all the same.
        match store.close(span) {
            Ok(()) | Err(Error::TimedOut { .. }) => {}
            Err(error) => panic!("{span:?}: {error}"),
        }
        assert!(matches!(store.create_topic("late", TopicConfig::new()), Err(Error::Closed)));
    }
}

struct PanickingWaker;

impl Wake for PanickingWaker {
    fn wake(self: Arc<Self>) {
        panic!("of the application's executor");
    }
}

#[test]
fn a9_a_waker_that_panics_harms_nobody() {
    let (_disk, store, partition) = with(TopicConfig::new().flush(Flush::OnAck));
    let ticket = partition.append_nowait(&[Record::new("a")], Acks::All).unwrap();
    let mut ticket = pin!(ticket);
    let waker = Waker::from(Arc::new(PanickingWaker));
    assert!(ticket.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    let appended = partition.append(&[Record::new("b")], Acks::All).unwrap();
    assert_eq!(appended.offsets.start, Offset(1));
    let outcome = ticket.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(outcome, Poll::Ready(Ok(appended)) if appended.offsets.start == Offset(0)));
    store.close(SECOND).unwrap();
}

#[test]
fn a8_a9_a_progress_callback_may_use_the_store_and_may_panic() {
    let (_disk, store, partition) = with(TopicConfig::new().segment_bytes(4096));
    for _ in 0..100 {
        partition.append(&[Record::new(&[7; 100])], Acks::All).unwrap();
    }
    let (again, inner) = (partition.clone(), store.clone());
    let report = store
        .verify(VerifyOptions::new().progress(move |_| {
            again.append(&[Record::new("meanwhile")], Acks::All).unwrap();
            inner.run_background();
        }))
        .unwrap();
    assert!(report.records >= 100 && report.damages.is_empty(), "{report:?}");
    let panicking = || VerifyOptions::new().progress(|_| panic!("of the application"));
    // Whether the panic comes through is the caller's own affair; the store goes on.
    let _ = catch_unwind(AssertUnwindSafe(|| store.verify(panicking())));
    partition.append(&[Record::new("after")], Acks::All).unwrap();
    store.run_background();
    let report = store.verify(VerifyOptions::new()).unwrap();
    assert_eq!(report.records, partition.log_end_offset().0);
    store.close(SECOND).unwrap();
}

#[test]
fn a2_a_store_that_cannot_be_leaves_no_trace() {
    assert!(matches!(Store::builder().open(), Err(Error::InvalidConfig { .. })));
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("data");
    let bad = [
        ("retention.ms", "soon"),
        ("segment.bytes", "-1"),
        ("segment.bytes", "99999999999999999999"),
        ("min.insync.replicas", "0"),
        ("retention.bites", "1"),
    ];
    for (key, given) in bad {
        let error = Store::builder().disk(&path).property(key, given).open().unwrap_err();
        assert!(matches!(error, Error::InvalidConfig { .. }), "{key}: {error}");
        assert_eq!(error.class(), ErrorClass::Invalid);
        assert!(!path.exists(), "{key}");
    }
    let error = Store::builder().disk(&path).disk(&path).open().unwrap_err();
    let refused = matches!(
        error,
        Error::InvalidConfig { .. } | Error::Locked { .. } | Error::UnsupportedFormat { .. }
    );
    assert!(refused, "S14: {error:?}");
    // What was left of the two that were one must not stand in the way of one.
    Store::builder().disk(&path).open().unwrap();
}

#[test]
fn a2_a_change_that_does_not_fit_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let config = TopicConfig::new().partitions(3).segment_bytes(8192);
    let store = Store::open(directory.path()).unwrap();
    store.create_topic("t", config).unwrap();
    let before = store.topic("t").unwrap();
    let bad = [
        TopicUpdate::new().segment_bytes(1),
        TopicUpdate::new().segment_bytes(u64::MAX),
        TopicUpdate::new().max_batch_bytes(0),
        TopicUpdate::new().min_insync_replicas(2),
        TopicUpdate::new().index_interval_bytes(0),
    ];
    for update in bad {
        let error = store.alter_topic("t", update.clone()).unwrap_err();
        assert!(matches!(error, Error::InvalidConfig { .. }), "{update:?}: {error}");
    }
    for total in [0, 2, 1_000_001, u32::MAX] {
        let error = store.add_partitions("t", total).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Invalid, "{total}: {error}");
    }
    for min_insync in [2, u16::MAX] {
        let config = TopicConfig::new().min_insync_replicas(min_insync);
        let error = store.create_topic("u", config).unwrap_err();
        assert!(matches!(error, Error::InvalidConfig { .. }), "{min_insync}: {error}");
    }
    assert_eq!(store.topic("t").unwrap(), before);
    store.close(SECOND * 10).unwrap();
    // The defaults of another opener are for topics that do not exist yet.
    let store = Store::builder()
        .disk(directory.path())
        .flush(Flush::Os)
        .property("segment.bytes", "65536")
        .open()
        .unwrap();
    assert_eq!(store.topics(), [before]);
}

#[test]
fn a1_names_that_files_bear_elsewhere_stay_in_their_place_and_look_alikes_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data");
    let names = ["orders", "-", "a-0", "a", "...", "con", "lock", "x.log", "metadata.0", "reserve"];
    {
        let store = Store::open(&path).unwrap();
        for name in names {
            store.create_topic(name, TopicConfig::new().partitions(2)).unwrap();
            for number in 0..2 {
                let value = format!("{name}/{number}");
                let partition = store.partition(name, number).unwrap();
                partition.append(&[Record::new(&value)], Acks::All).unwrap();
            }
        }
        let error = store.create_topic("Orders", TopicConfig::new()).unwrap_err();
        assert!(matches!(error, Error::InvalidTopic { .. }), "{error}");
        assert!(store.partition("Orders", 0).is_err());
        store.delete_topic("orders").unwrap();
        store.create_topic("Orders", TopicConfig::new()).unwrap();
    }
    let beside = std::fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(beside, 1, "no path leads out of the store");
    let store = Store::open(&path).unwrap();
    for name in names.into_iter().skip(1) {
        for number in 0..2 {
            let partition = store.partition(name, number).unwrap();
            let records = partition.read(Offset(0), ReadOptions::new()).unwrap();
            let values: Vec<_> = records.iter().map(|record| record.value().unwrap()).collect();
            assert_eq!(values, [format!("{name}/{number}").as_bytes()]);
        }
    }
    assert_eq!(store.partition("Orders", 0).unwrap().log_end_offset(), Offset(0));
    assert!(store.topic("orders").is_err());
}
