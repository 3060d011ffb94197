//! Consumers on stores in memory and on real directories, by id: positions, polling, waiting, commits, groups (CONS-*,
//! GRP-*, INV-11, INV-12).

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use oncelog::{
    Acks, CommittedOffset, Consumer, Error, Flush, Isolation, Offset, Record, Records, StartAt,
    Store, Timestamp, TopicConfig, TopicPartition,
};

const SECONDS: Duration = Duration::from_secs(30);
/// For polls that are to find nothing.
const SHORT: Duration = Duration::from_millis(20);

fn store(partitions: u32) -> Store {
    let store = Store::in_memory(1).unwrap();
    store.create_topic("t", TopicConfig::new().partitions(partitions)).unwrap();
    store
}

fn append(store: &Store, partition: u32, values: std::ops::Range<u64>) {
    let partition = store.partition("t", partition).unwrap();
    for value in values {
        partition.append(&[Record::new(&value.to_string())], Acks::All).unwrap();
    }
}

fn at(partition: u32) -> TopicPartition {
    TopicPartition::new("t", partition)
}

fn reader(store: &Store) -> Consumer {
    store.consumer().start(StartAt::Earliest).build().unwrap()
}

fn member(store: &Store, group: &str) -> Consumer {
    let mut consumer = store.consumer().group(group).start(StartAt::Earliest).build().unwrap();
    consumer.subscribe(&["t"]).unwrap();
    consumer
}

/// Partition and value of each record.
fn values(records: &Records) -> Vec<(u32, u64)> {
    records.iter().map(|record| (record.partition(), number(record.value()))).collect()
}

fn number(value: Option<&[u8]>) -> u64 {
    std::str::from_utf8(value.unwrap()).unwrap().parse().unwrap()
}

/// Polls until so many records have come.
fn take(consumer: &mut Consumer, count: usize) -> Vec<(u32, u64)> {
    let (mut all, started) = (Vec::new(), Instant::now());
    while all.len() < count {
        assert!(started.elapsed() < SECONDS, "{} of {count} records came", all.len());
        all.extend(values(&consumer.poll(SECONDS).unwrap()));
    }
    all
}

fn row(partition: u32, range: std::ops::Range<u64>) -> Vec<(u32, u64)> {
    range.map(|value| (partition, value)).collect()
}

/// Lets all of them poll until `done`, which sees what each holds.
fn settle(consumers: &mut [Consumer], mut done: impl FnMut(&[Vec<TopicPartition>]) -> bool) {
    let started = Instant::now();
    loop {
        let held: Vec<_> = consumers.iter().map(Consumer::assignment).collect();
        let all: Vec<_> = held.iter().flatten().collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "INV-12");
        if done(&held) {
            return;
        }
        assert!(started.elapsed() < SECONDS, "{held:?}");
        for consumer in consumers.iter_mut() {
            consumer.poll(Duration::ZERO).unwrap();
        }
    }
}

#[test]
fn cons_01_a_seek_goes_before_what_was_committed_and_that_before_the_start() {
    let store = store(1);
    append(&store, 0, 0..10);
    let mut first = member(&store, "g");
    assert_eq!(take(&mut first, 10), row(0, 0..10), "the start: the earliest");
    first.commit_offsets(&BTreeMap::from([(at(0), Offset(4).into())])).unwrap();
    first.close(SECONDS).unwrap();

    let mut second = member(&store, "g");
    assert_eq!(take(&mut second, 6), row(0, 4..10), "what was committed");
    second.seek("t", 0, Offset(8)).unwrap();
    assert_eq!(second.position("t", 0).unwrap(), Offset(8));
    assert_eq!(take(&mut second, 2), row(0, 8..10), "where it was sent to");
}

#[test]
fn cons_01_without_a_start_nothing_is_skipped_or_repeated_unasked() {
    let store = store(1);
    append(&store, 0, 0..3);
    let mut consumer = store.consumer().group("g").build().unwrap();
    consumer.assign(&[("t", 0)]).unwrap();
    for _ in 0..2 {
        let error = consumer.poll(Duration::ZERO).unwrap_err();
        assert!(matches!(error, Error::NoOffset { .. }), "{error}");
        assert_eq!(error.kafka_name(), "NO_OFFSET_FOR_PARTITION");
    }
    consumer.seek_to_begin("t", 0).unwrap();
    assert_eq!(take(&mut consumer, 3), row(0, 0..3));
}

#[test]
fn starts_are_the_first_record_behind_the_last_or_by_time() {
    let store = store(1);
    let partition = store.partition("t", 0).unwrap();
    for value in 0..10 {
        let time = Timestamp(1000 + value);
        let text = value.to_string();
        partition.append(&[Record::new(&text).timestamp(time)], Acks::All).unwrap();
    }
    let from = |start| {
        let mut consumer = store.consumer().start(start).build().unwrap();
        consumer.assign(&[("t", 0)]).unwrap();
        consumer.position("t", 0).unwrap()
    };
    assert_eq!(from(StartAt::Earliest), Offset(0));
    assert_eq!(from(StartAt::Latest), Offset(10));
    assert_eq!(from(StartAt::Time(Timestamp(1004))), Offset(4));
    assert_eq!(from(StartAt::Time(Timestamp(5000))), Offset(10), "behind the last");

    let mut consumer = reader(&store);
    consumer.assign(&[("t", 0)]).unwrap();
    consumer.seek_to_end("t", 0).unwrap();
    assert_eq!(consumer.position("t", 0).unwrap(), Offset(10));
    consumer.seek_to_time("t", 0, Timestamp(1007)).unwrap();
    assert_eq!(take(&mut consumer, 3), row(0, 7..10));
    let times = [("t", 0, Timestamp(1002)), ("t", 0, Timestamp(9999))];
    assert_eq!(consumer.offsets_for_times(&times[..1]).unwrap()[&at(0)], Offset(2));
    assert!(consumer.offsets_for_times(&times[1..]).unwrap().is_empty());
}

#[test]
fn cons_02_a_position_that_the_log_has_not_is_told_or_follows_the_start() {
    let store = store(1);
    append(&store, 0, 0..10);
    store.partition("t", 0).unwrap().delete_records(Offset(5)).unwrap();
    let mut strict = store.consumer().build().unwrap();
    strict.assign(&[("t", 0)]).unwrap();
    for lost in [Offset(2), Offset(11)] {
        strict.seek("t", 0, lost).unwrap();
        match strict.poll(Duration::ZERO).unwrap_err() {
            Error::OffsetOutOfRange { partition, offset, start, end } => {
                assert_eq!((partition, offset, start, end), (at(0), lost, Offset(5), Offset(10)));
            }
            error => panic!("{error}"),
        }
        assert_eq!(strict.position("t", 0).unwrap(), lost, "it stays where it was");
    }
    for (start, expected) in [(StartAt::Earliest, row(0, 5..10)), (StartAt::Latest, row(0, 0..0))] {
        let mut consumer = store.consumer().start(start).build().unwrap();
        consumer.assign(&[("t", 0)]).unwrap();
        consumer.seek("t", 0, Offset(2)).unwrap();
        assert_eq!(values(&consumer.poll(Duration::ZERO).unwrap()), expected, "{start:?}");
        assert_eq!(consumer.position("t", 0).unwrap(), Offset(10));
    }
}

#[test]
fn cons_05_a_poll_returns_no_more_than_asked_for_and_the_position_is_what_it_returned() {
    let store = store(2);
    let partition = store.partition("t", 0).unwrap();
    let texts: Vec<_> = (0..10).map(|value: u64| value.to_string()).collect();
    let records: Vec<_> = texts.iter().map(Record::new).collect();
    partition.append(&records, Acks::All).unwrap(); // one batch
    append(&store, 0, 10..20);
    append(&store, 1, 0..5);
    let mut consumer =
        store.consumer().start(StartAt::Earliest).max_poll_records(3).build().unwrap();
    consumer.assign(&[("t", 0), ("t", 1)]).unwrap();
    let mut next = [0, 0];
    while next != [20, 5] {
        let records = consumer.poll(Duration::ZERO).unwrap();
        assert!((1..=3).contains(&records.count()), "{}", records.count());
        for (partition, value) in values(&records) {
            assert_eq!(value, next[partition as usize]);
            next[partition as usize] += 1;
        }
        for number in [0, 1] {
            let position = consumer.position("t", number).unwrap();
            assert_eq!(position, Offset(next[number as usize]));
        }
    }
    assert!(consumer.poll(Duration::ZERO).unwrap().is_empty());
}

#[test]
fn cons_06_only_what_an_earlier_poll_handed_out_is_committed_by_itself() {
    let store = store(1);
    append(&store, 0, 0..6);
    let committed = || {
        let described = store.group("g").ok()?;
        described.offsets.first().map(|offset| offset.committed.offset.0)
    };
    let mut consumer = store
        .consumer()
        .group("g")
        .start(StartAt::Earliest)
        .max_poll_records(2)
        .auto_commit(Duration::ZERO)
        .build()
        .unwrap();
    consumer.assign(&[("t", 0)]).unwrap();
    assert_eq!(take(&mut consumer, 2), row(0, 0..2));
    assert!(committed().is_none_or(|offset| offset == 0), "they may not be done with yet");
    assert_eq!(take(&mut consumer, 2), row(0, 2..4));
    assert_eq!(committed(), Some(2), "whoever polls again is done with what was");
    consumer.close(SECONDS).unwrap();
    assert_eq!(committed(), Some(4), "and so is who closes");
}

#[test]
fn nothing_is_committed_that_the_application_has_not_asked_for() {
    let store = store(1);
    append(&store, 0, 0..4);
    let mut consumer = member(&store, "g");
    take(&mut consumer, 4);
    consumer.poll(Duration::ZERO).unwrap();
    consumer.close(SECONDS).unwrap();
    assert_eq!(take(&mut member(&store, "g"), 4), row(0, 0..4));
}

#[test]
fn cons_10_a_paused_partition_keeps_its_place_and_others_go_on() {
    let store = store(2);
    append(&store, 0, 0..4);
    append(&store, 1, 0..4);
    let mut consumer =
        store.consumer().start(StartAt::Earliest).max_poll_records(3).build().unwrap();
    consumer.assign(&[("t", 0), ("t", 1)]).unwrap();
    consumer.pause(&[("t", 0)]).unwrap();
    assert_eq!(take(&mut consumer, 4), row(1, 0..4));
    append(&store, 0, 4..6);
    assert!(consumer.poll(SHORT).unwrap().is_empty());
    consumer.resume(&[("t", 0)]).unwrap();
    assert_eq!(take(&mut consumer, 3), row(0, 0..3), "three of a poll");
    consumer.seek("t", 0, Offset(1)).unwrap();
    assert_eq!(take(&mut consumer, 5), row(0, 1..6), "what was fetched is not what is handed out");
    assert!(matches!(consumer.pause(&[("t", 9)]), Err(Error::NotAssigned { .. })));
}

#[test]
fn cons_11_ends_and_lags_are_those_that_the_reader_may_see() {
    let store = store(1);
    append(&store, 0, 0..2);
    let mut producer = store.producer().transactional_id("p").build().unwrap();
    let mut transaction = producer.begin().unwrap();
    transaction.append("t", 0, &[Record::new("2"), Record::new("3")]).unwrap();
    store.partition("t", 0).unwrap().wait_for(Offset(3), SECONDS).unwrap();
    for (isolation, end) in [(Isolation::ReadCommitted, 2), (Isolation::ReadUncommitted, 4)] {
        let mut consumer =
            store.consumer().start(StartAt::Latest).isolation(isolation).build().unwrap();
        consumer.assign(&[("t", 0)]).unwrap();
        assert_eq!(consumer.position("t", 0).unwrap(), Offset(end), "{isolation:?}");
        consumer.seek_to_begin("t", 0).unwrap();
        assert_eq!(consumer.lag().unwrap(), BTreeMap::from([(at(0), end)]), "{isolation:?}");
        assert_eq!(take(&mut consumer, usize::try_from(end).unwrap()), row(0, 0..end));
        assert_eq!(consumer.lag().unwrap()[&at(0)], 0);
        consumer.seek_to_end("t", 0).unwrap();
        assert_eq!(consumer.position("t", 0).unwrap(), Offset(end));
    }
    drop(transaction);
}

#[test]
fn cons_13_a_topic_made_again_under_its_name_begins_anew() {
    let store = store(1);
    append(&store, 0, 0..5);
    let mut consumer = member(&store, "g");
    take(&mut consumer, 5);
    consumer.commit().unwrap();
    store.delete_topic("t").unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    append(&store, 0, 100..103);
    assert_eq!(take(&mut consumer, 3), row(0, 100..103));
    let mut by_hand = reader(&store);
    by_hand.assign(&[("t", 0)]).unwrap();
    take(&mut by_hand, 3);
    store.delete_topic("t").unwrap();
    let gone = by_hand.poll(Duration::ZERO).unwrap_err();
    assert!(matches!(gone, Error::UnknownTopicOrPartition { .. }), "{gone}");
}

#[test]
fn cons_14_partitions_are_assigned_by_hand_or_by_the_group() {
    let store = store(1);
    let mut consumer = member(&store, "g");
    assert!(matches!(consumer.assign(&[("t", 0)]), Err(Error::InvalidConfig { .. })));
    consumer.unsubscribe();
    consumer.assign(&[("t", 0)]).unwrap();
    assert!(matches!(consumer.subscribe(&["t"]), Err(Error::InvalidConfig { .. })));
    assert!(matches!(consumer.subscribe_matching(|_| true), Err(Error::InvalidConfig { .. })));
    let mut alone = store.consumer().build().unwrap();
    assert!(matches!(alone.subscribe(&["t"]), Err(Error::InvalidConfig { .. })), "no group");
    assert!(matches!(alone.commit(), Err(Error::InvalidConfig { .. })), "no group");
    for unknown in [("u", 0), ("t", 7)] {
        let refused = alone.assign(&[unknown]).unwrap_err();
        assert!(matches!(refused, Error::UnknownTopicOrPartition { .. }), "{refused}");
    }
    assert!(matches!(alone.seek("t", 0, Offset(0)), Err(Error::NotAssigned { .. })));
    assert!(matches!(alone.position("t", 0), Err(Error::NotAssigned { .. })));
}

#[test]
fn a_blocked_poll_wakes_when_records_come_at_every_flush_level() {
    for flush in [Flush::OnAck, Flush::Interval(Duration::from_millis(2)), Flush::Os] {
        let store = Store::temporary().unwrap();
        store.create_topic("t", TopicConfig::new().partitions(3).flush(flush)).unwrap();
        let mut consumer = reader(&store);
        consumer.assign(&[("t", 0), ("t", 1), ("t", 2)]).unwrap();
        let taken = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for value in 0..200 {
                    while taken.load(Ordering::Acquire) < value {
                        std::thread::yield_now();
                    }
                    append(&store, u32::try_from(value % 3).unwrap(), value..value + 1);
                }
            });
            for value in 0..200 {
                let records = consumer.poll(SECONDS).unwrap();
                assert_eq!(values(&records), [(u32::try_from(value % 3).unwrap(), value)]);
                taken.store(value + 1, Ordering::Release);
            }
        });
    }
}

#[test]
fn a_blocked_read_committed_poll_wakes_when_a_transaction_is_decided() {
    for flush in [Flush::OnAck, Flush::Os] {
        let store = Store::temporary().unwrap();
        store.create_topic("t", TopicConfig::new().flush(flush)).unwrap();
        let mut consumer = store
            .consumer()
            .start(StartAt::Earliest)
            .isolation(Isolation::ReadCommitted)
            .build()
            .unwrap();
        consumer.assign(&[("t", 0)]).unwrap();
        let mut producer = store.producer().transactional_id("p").build().unwrap();
        let mut transaction = producer.begin().unwrap();
        transaction.append("t", 0, &[Record::new("7")]).unwrap();
        assert!(consumer.poll(SHORT).unwrap().is_empty(), "it is not decided");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| values(&consumer.poll(SECONDS).unwrap()));
            std::thread::sleep(SHORT);
            transaction.commit(SECONDS).unwrap();
            let started = Instant::now();
            assert_eq!(waiting.join().unwrap(), [(0, 7)]);
            assert!(started.elapsed() < SECONDS / 2);
        });
    }
}

#[test]
fn a_waker_ends_one_poll_from_anywhere_and_before_it_begins_too() {
    let store = store(1);
    let mut consumer = reader(&store);
    consumer.assign(&[("t", 0)]).unwrap();
    let waker = consumer.waker();
    waker.wake();
    assert!(consumer.poll(SECONDS).unwrap().is_empty());
    let started = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(SHORT);
            waker.wake();
        });
        assert!(consumer.poll(SECONDS * 10).unwrap().is_empty());
    });
    assert!(started.elapsed() < SECONDS);
    let started = Instant::now();
    assert!(consumer.poll(SHORT).unwrap().is_empty());
    assert!(started.elapsed() >= SHORT, "a wake counts once");
}

#[test]
fn a_poll_ends_when_the_store_is_closed() {
    let store = store(1);
    let mut consumer = reader(&store);
    consumer.assign(&[("t", 0)]).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(SHORT);
            store.close(SECONDS).unwrap();
        });
        let started = Instant::now();
        let ended = consumer.poll(SECONDS * 10);
        assert!(matches!(ended, Err(Error::Closed)), "{ended:?}");
        assert!(started.elapsed() < SECONDS);
    });
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park_timeout(SECONDS),
        }
    }
}

#[test]
fn a_future_of_the_next_records_is_woken_by_them_and_may_be_dropped() {
    let store = store(1);
    let mut consumer = reader(&store);
    consumer.assign(&[("t", 0)]).unwrap();
    {
        let mut dropped = pin!(consumer.recv());
        let polled = dropped.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(polled.is_pending());
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(SHORT);
            append(&store, 0, 0..1);
        });
        assert_eq!(values(&block_on(consumer.recv()).unwrap()), [(0, 0)]);
    });
    append(&store, 0, 1..3);
    let mut all = Vec::new();
    while all.len() < 2 {
        all.extend(values(&block_on(consumer.recv()).unwrap()));
    }
    assert_eq!(all, row(0, 1..3), "nothing was lost with the future that was dropped");
}

#[test]
fn records_are_their_own_and_outlive_consumer_and_topic() {
    fn is_free<T: Clone + Send + Sync + 'static>(_: &T) {}
    let store = Store::temporary().unwrap();
    store.create_topic("t", TopicConfig::new().partitions(2)).unwrap();
    append(&store, 0, 0..50);
    append(&store, 1, 0..50);
    let mut consumer = reader(&store);
    consumer.assign(&[("t", 0), ("t", 1)]).unwrap();
    let records = consumer.poll(SECONDS).unwrap();
    is_free(&records);
    assert_eq!(records.partitions().count(), 2, "one poll, both partitions");
    assert!(records.iter().all(|record| record.topic() == "t"));
    drop(consumer);
    store.delete_topic("t").unwrap();
    let all = std::thread::spawn(move || values(&records)).join().unwrap();
    let expected: BTreeSet<_> = row(0, 0..50).into_iter().chain(row(1, 0..50)).collect();
    assert_eq!(all.into_iter().collect::<BTreeSet<_>>(), expected);
}

#[test]
fn no_partition_waits_for_others_that_have_more() {
    let store = store(3);
    for partition in 0..3 {
        append(&store, partition, 0..60);
    }
    let mut consumer = store.consumer().start(StartAt::Earliest).max_bytes(200).build().unwrap();
    consumer.assign(&[("t", 0), ("t", 1), ("t", 2)]).unwrap();
    let mut seen = [0_i64; 3];
    while seen != [60; 3] {
        for (partition, _) in values(&consumer.poll(Duration::ZERO).unwrap()) {
            seen[partition as usize] += 1;
        }
        let (least, most) = (seen.iter().min().unwrap(), seen.iter().max().unwrap());
        assert!(most - least <= 6, "{seen:?}");
    }
}

#[test]
fn of_a_thousand_partitions_those_that_have_records_are_found() {
    let store = store(1000);
    let partitions: Vec<_> = (0..1000).map(|number| ("t", number)).collect();
    let mut consumer = reader(&store);
    consumer.assign(&partitions).unwrap();
    assert!(consumer.poll(Duration::ZERO).unwrap().is_empty());
    for round in 0..100_u64 {
        let partition = u32::try_from(round * 37 % 1000).unwrap();
        append(&store, partition, round..round + 1);
        assert_eq!(take(&mut consumer, 1), [(partition, round)]);
    }
}

#[test]
fn a_consumer_reads_what_another_process_appends() {
    let scratch = tempfile::tempdir().unwrap();
    let store = Store::open(scratch.path()).unwrap();
    store.create_topic("t", TopicConfig::new().flush(Flush::Os)).unwrap();
    append(&store, 0, 0..3);
    let view = Store::open_read_only(scratch.path()).unwrap();
    let mut consumer = reader(&view);
    consumer.assign(&[("t", 0)]).unwrap();
    assert_eq!(take(&mut consumer, 3), row(0, 0..3));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(SHORT);
            append(&store, 0, 3..4);
        });
        assert_eq!(values(&consumer.poll(SECONDS).unwrap()), [(0, 3)]);
    });
}

#[test]
fn grp_29_a_commit_is_the_next_offset_of_what_polls_returned_and_is_durable() {
    let scratch = tempfile::tempdir().unwrap();
    let store = Store::open(scratch.path()).unwrap();
    store.create_topic("t", TopicConfig::new().partitions(2)).unwrap();
    append(&store, 0, 0..10);
    append(&store, 1, 0..10);
    let open = |store: &Store| {
        let builder = store.consumer().group("g").start(StartAt::Earliest).max_poll_records(4);
        let mut consumer = builder.build().unwrap();
        consumer.subscribe(&["t"]).unwrap();
        consumer
    };
    let mut consumer = open(&store);
    let mut seen = take(&mut consumer, 8);
    consumer.commit().unwrap();
    let map = consumer.position_map();
    seen.extend(take(&mut consumer, 4));
    assert_ne!(consumer.position_map(), map);
    let committed = consumer.committed(&[("t", 0), ("t", 1)]).unwrap();
    for (partition, offset) in &map {
        assert_eq!(committed[partition], *offset);
    }
    let mark = CommittedOffset { metadata: "half way".into(), ..map[&at(0)].clone() };
    consumer.commit_offsets(&BTreeMap::from([(at(0), mark.clone())])).unwrap();
    drop(consumer);
    store.close(SECONDS).unwrap();
    drop(store);

    let store = Store::open(scratch.path()).unwrap();
    let mut again = open(&store);
    let committed = again.committed(&[("t", 0), ("t", 1)]).unwrap();
    assert_eq!(committed[&at(0)], mark, "INV-11");
    assert_eq!(committed.get(&at(1)), map.get(&at(1)), "INV-11");
    let rest = take(&mut again, 12);
    for partition in 0..2 {
        let from = map.get(&at(partition)).map_or(0, |committed| committed.offset.0);
        let mine = rest.iter().filter(|(number, _)| *number == partition);
        assert!(mine.map(|(_, value)| *value).eq(from..10), "partition {partition}: {rest:?}");
    }
}

#[test]
fn commits_that_are_not_waited_for_are_told_in_order() {
    let store = store(1);
    append(&store, 0, 0..10);
    let mut consumer =
        store.consumer().group("g").start(StartAt::Earliest).max_poll_records(1).build().unwrap();
    consumer.subscribe(&["t"]).unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    for number in 0..10 {
        take(&mut consumer, 1);
        let told = Arc::clone(&told);
        consumer
            .commit_async(move |outcome: oncelog::Result<()>| {
                told.lock().unwrap().push((number, outcome.is_ok()));
                assert_ne!(number, 3, "a panic ends where it is");
            })
            .unwrap();
    }
    consumer.close(SECONDS).unwrap();
    let expected: Vec<_> = (0..10).map(|number| (number, true)).collect();
    assert_eq!(*told.lock().unwrap(), expected);
    let committed = store.group("g").unwrap().offsets[0].committed.offset;
    assert_eq!(committed, Offset(10));
}

#[test]
fn inv_12_members_share_the_partitions_and_each_record_goes_to_one_of_them() {
    let store = store(6);
    for partition in 0..6 {
        append(&store, partition, 0..5);
    }
    let mut consumers = vec![member(&store, "g")];
    assert_eq!(take(&mut consumers[0], 30).len(), 30);
    consumers[0].commit().unwrap();
    consumers.push(member(&store, "g"));
    consumers.push(member(&store, "g"));
    settle(&mut consumers, |held| held.iter().all(|one| one.len() == 2));
    for partition in 0..6 {
        append(&store, partition, 5..8);
    }
    let mut seen = Vec::new();
    let started = Instant::now();
    while seen.len() < 18 {
        assert!(started.elapsed() < SECONDS);
        for consumer in &mut consumers {
            let owned = consumer.assignment();
            let records = consumer.poll(Duration::ZERO).unwrap();
            seen.extend(values(&records).into_iter().inspect(|(number, _)| {
                assert!(owned.contains(&at(*number)));
            }));
        }
    }
    let expected: BTreeSet<_> = (0..6).flat_map(|number| row(number, 5..8)).collect();
    assert_eq!(seen.len(), 18, "nothing twice: what was read before was committed");
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), expected);
    drop(consumers.pop());
    settle(&mut consumers, |held| held.iter().all(|one| one.len() == 3));
}

#[test]
fn grp_46_what_leaves_is_told_and_may_be_committed_before_it_goes() {
    let store = store(2);
    append(&store, 0, 0..4);
    append(&store, 1, 0..4);
    let told = Arc::new(Mutex::new(Vec::new()));
    let mut first = member(&store, "g");
    let seen = Arc::clone(&told);
    first.on_rebalance(move |event| {
        let mut partitions: Vec<_> =
            event.partitions().iter().map(TopicPartition::partition).collect();
        partitions.sort_unstable();
        seen.lock().unwrap().push((format!("{:?}", event.kind()), partitions));
        if event.kind() == oncelog::RebalanceKind::Revoked {
            event.commit().unwrap();
        }
        panic!("a panic in it ends where it is");
    });
    take(&mut first, 8);
    let mut consumers = [first, member(&store, "g")];
    settle(&mut consumers, |held| held.iter().all(|one| one.len() == 1));
    let told = told.lock().unwrap();
    assert_eq!(told[0], ("Assigned".to_owned(), vec![0, 1]));
    let (kind, revoked) = &told[1];
    assert_eq!((kind.as_str(), revoked.len()), ("Revoked", 1), "only what leaves");
    let second = consumers[1].assignment();
    assert_eq!(second, [at(revoked[0])]);
    assert!(consumers[1].poll(SHORT).unwrap().is_empty(), "it was committed as it was let go of");
}

#[test]
fn grp_52_what_was_handed_out_is_committed_by_itself_before_a_partition_leaves() {
    let store = store(2);
    append(&store, 0, 0..4);
    append(&store, 1, 0..4);
    let join = || {
        let mut consumer = store
            .consumer()
            .group("g")
            .start(StartAt::Earliest)
            .auto_commit(SECONDS * 100)
            .build()
            .unwrap();
        consumer.subscribe(&["t"]).unwrap();
        consumer
    };
    let mut first = join();
    take(&mut first, 8);
    let mut consumers = [first, join()];
    settle(&mut consumers, |held| held.iter().all(|one| one.len() == 1));
    assert!(consumers[1].poll(SHORT).unwrap().is_empty());
    let [first, second] = consumers;
    first.close(SECONDS).unwrap();
    second.close(SECONDS).unwrap();
    assert!(join().poll(SHORT).unwrap().is_empty());
}

#[test]
fn grp_44_grp_48_one_that_stops_polling_has_lost_its_partitions_and_comes_again() {
    let store = store(1);
    append(&store, 0, 0..4);
    let told = Arc::new(Mutex::new(Vec::new()));
    let mut slow = store
        .consumer()
        .group("g")
        .start(StartAt::Earliest)
        .max_poll_interval(Duration::from_millis(100))
        .build()
        .unwrap();
    slow.subscribe(&["t"]).unwrap();
    let seen = Arc::clone(&told);
    slow.on_rebalance(move |event| {
        if !event.partitions().is_empty() {
            seen.lock().unwrap().push(event.kind());
        }
    });
    take(&mut slow, 4);
    let mut other = member(&store, "g");
    assert_eq!(take(&mut other, 4), row(0, 0..4), "the watchdog has freed it");
    let late = slow.commit().unwrap_err();
    assert_eq!(late.class(), oncelog::ErrorClass::Fenced, "{late}");
    other.commit().unwrap();
    drop(other);
    append(&store, 0, 4..6);
    assert_eq!(take(&mut slow, 2), row(0, 4..6), "from what the other committed");
    use oncelog::RebalanceKind::{Assigned, Lost};
    let told: Vec<_> = told.lock().unwrap().clone();
    assert_eq!(told, [Assigned, Lost, Assigned], "GRP-48");
}

#[test]
fn grp_45_a_member_with_an_instance_id_keeps_its_place_and_replaces_the_one_before() {
    let store = store(2);
    append(&store, 0, 0..2);
    append(&store, 1, 0..2);
    let join = |instance: &str| {
        let mut consumer = store
            .consumer()
            .group("g")
            .instance_id(instance)
            .start(StartAt::Earliest)
            .build()
            .unwrap();
        consumer.subscribe(&["t"]).unwrap();
        consumer
    };
    let mut consumers = [join("a"), join("b")];
    settle(&mut consumers, |held| held.iter().all(|one| one.len() == 1));
    let [first, second] = consumers;
    let (held, others) = (first.assignment(), second.assignment());
    let mut again = join("a");
    again.poll(Duration::ZERO).unwrap();
    assert_eq!(again.assignment(), held);
    let mut replaced = first;
    let error = replaced.poll(Duration::ZERO).unwrap_err();
    assert_eq!(error.class(), oncelog::ErrorClass::Fenced, "{error}");
    drop(again);
    let mut kept = join("a");
    kept.poll(Duration::ZERO).unwrap();
    assert_eq!(kept.assignment(), held, "nobody else took it meanwhile");
    assert_eq!(second.assignment(), others);
}

#[test]
fn grp_51_new_topics_and_partitions_come_by_themselves() {
    let store = store(1);
    let mut consumer = store.consumer().group("g").start(StartAt::Earliest).build().unwrap();
    consumer.subscribe_matching(|topic| topic.starts_with('t') || topic == "late").unwrap();
    assert!(consumer.poll(Duration::ZERO).unwrap().is_empty());
    assert_eq!(consumer.assignment(), [at(0)]);
    store.create_topic("other", TopicConfig::new()).unwrap();
    store.create_topic("late", TopicConfig::new()).unwrap();
    store.add_partitions("t", 2).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(SHORT);
            append(&store, 1, 0..1);
        });
        assert_eq!(values(&consumer.poll(SECONDS).unwrap()), [(1, 0)]);
    });
    let held = consumer.assignment();
    assert_eq!(held, [TopicPartition::new("late", 0), at(0), at(1)]);
    consumer.subscribe(&["late"]).unwrap();
    consumer.poll(Duration::ZERO).unwrap();
    assert_eq!(consumer.assignment(), [TopicPartition::new("late", 0)]);
    consumer.unsubscribe();
    assert_eq!(consumer.assignment(), []);
    assert!(consumer.poll(Duration::ZERO).unwrap().is_empty());
}

#[test]
fn grp_20_what_is_read_and_what_is_made_of_it_are_done_once_together() {
    let store = store(2);
    store.create_topic("sums", TopicConfig::new()).unwrap();
    append(&store, 0, 0..20);
    append(&store, 1, 0..20);
    // Every third attempt is given up after its records were sent.
    for attempt in 0..60 {
        let mut consumer = store
            .consumer()
            .group("g")
            .start(StartAt::Earliest)
            .isolation(Isolation::ReadCommitted)
            .max_poll_records(3)
            .build()
            .unwrap();
        consumer.subscribe(&["t"]).unwrap();
        let mut producer = store.producer().transactional_id("p").build().unwrap();
        let records = consumer.poll(Duration::ZERO).unwrap();
        if records.is_empty() {
            break;
        }
        let mut transaction = producer.begin().unwrap();
        for record in &records {
            let text = format!("{}/{}", record.partition(), number(record.value()));
            transaction.append("sums", 0, &[Record::new(&text)]).unwrap();
        }
        transaction.send_offsets(&consumer.position_map(), &consumer.group_metadata()).unwrap();
        if attempt % 3 == 0 {
            transaction.abort(SECONDS).unwrap();
        } else {
            transaction.commit(SECONDS).unwrap();
        }
    }
    let mut sums = store
        .consumer()
        .start(StartAt::Earliest)
        .isolation(Isolation::ReadCommitted)
        .build()
        .unwrap();
    sums.assign(&[("sums", 0)]).unwrap();
    let mut all = Vec::new();
    loop {
        let records = sums.poll(Duration::ZERO).unwrap();
        if records.is_empty() {
            break;
        }
        all.extend(
            records.iter().map(|record| String::from_utf8(record.value().unwrap().into()).unwrap()),
        );
    }
    let expected: BTreeSet<_> =
        (0..2).flat_map(|one| (0..20).map(move |value| format!("{one}/{value}"))).collect();
    assert_eq!(all.len(), 40, "each once");
    assert_eq!(all.into_iter().collect::<BTreeSet<_>>(), expected);
}

#[test]
fn grp_21_a_start_waits_until_a_transaction_with_its_offset_is_decided() {
    let store = store(1);
    append(&store, 0, 0..10);
    let mut producer = store.producer().transactional_id("p").build().unwrap();
    let mut transaction = producer.begin().unwrap();
    transaction
        .send_offsets(
            &BTreeMap::from([(at(0), CommittedOffset::from(Offset(6)))]),
            &oncelog::ConsumerGroupMetadata::of_group("g"),
        )
        .unwrap();
    let mut consumer = store.consumer().group("g").start(StartAt::Earliest).build().unwrap();
    consumer.assign(&[("t", 0)]).unwrap();
    assert!(consumer.poll(SHORT).unwrap().is_empty(), "neither the start nor 6 would be right");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(SHORT);
            transaction.commit(SECONDS).unwrap();
        });
        assert_eq!(values(&consumer.poll(SECONDS).unwrap()), row(0, 6..10));
    });
}

#[test]
fn positions_may_be_kept_by_the_application_also_in_a_group() {
    let store = store(2);
    append(&store, 0, 0..5);
    append(&store, 1, 0..5);
    let mut consumer = store.consumer().group("g").build().unwrap();
    consumer.on_rebalance(|event| {
        if event.kind() == oncelog::RebalanceKind::Assigned {
            for partition in event.partitions().to_vec() {
                event.seek(partition.topic(), partition.partition(), Offset(3)).unwrap();
            }
        }
    });
    consumer.subscribe(&["t"]).unwrap();
    let seen: BTreeSet<_> = take(&mut consumer, 4).into_iter().collect();
    assert_eq!(seen, row(0, 3..5).into_iter().chain(row(1, 3..5)).collect());
}

#[test]
fn kafkas_keys_configure_a_consumer_and_what_does_not_fit_is_refused() {
    let store = store(1);
    append(&store, 0, 0..3);
    let builder = store
        .consumer()
        .property("group.id", "g")
        .property("auto.offset.reset", "earliest")
        .property("max.poll.records", "2")
        .property("bootstrap.servers", "localhost:9092")
        .property("session.timeout.ms", "45000");
    assert_eq!(builder.ignored_properties(), ["bootstrap.servers", "session.timeout.ms"]);
    let mut consumer = builder.build().unwrap();
    consumer.subscribe(&["t"]).unwrap();
    assert_eq!(consumer.poll(SECONDS).unwrap().count(), 2);
    assert_eq!(consumer.group_metadata().group(), "g");
    for (key, value) in [("max.poll.recrds", "2"), ("isolation.level", "snapshot")] {
        let refused = store.consumer().property(key, value).build().unwrap_err();
        assert!(matches!(refused, Error::InvalidConfig { .. }), "{refused}");
    }
    assert!(store.consumer().max_poll_records(0).build().is_err());
    assert!(store.consumer().max_bytes(0).build().is_err());
    assert!(store.consumer().auto_commit(SECONDS).build().is_err(), "no group");
}

/// Without replicas there is no history of leaders: the batches themselves tell.
#[cfg(feature = "simulation")]
#[test]
fn cons_03_cons_04_a_tail_lost_with_the_power_is_noticed_on_one_disk_too() {
    use oncelog::simulation::{Clock, SimDisk};
    for appended in [0, 2, 20] {
        let (disk, clock) = (SimDisk::new(3), Clock::manual(Timestamp(1_000_000)));
        let open = || {
            let builder = Store::builder().simulated_disk(disk.clone()).clock(clock.clone());
            builder.flush(Flush::OnAck).open().unwrap()
        };
        let store = open();
        store.create_topic("t", TopicConfig::new().flush(Flush::Os)).unwrap();
        append(&store, 0, 0..10);
        let mut consumer = member(&store, "g");
        assert_eq!(take(&mut consumer, 10), row(0, 0..10));
        consumer.commit().unwrap();
        disk.power_loss();
        drop((consumer, store));

        let store = open();
        let kept = store.partition("t", 0).unwrap().log_end_offset();
        assert!(kept < Offset(10), "the test is about a loss: {kept}");
        append(&store, 0, 100..100 + appended);
        let mut consumer = member(&store, "g");
        match consumer.poll(Duration::ZERO).unwrap_err() {
            Error::Diverged { partition, position, diverged_at } => {
                assert_eq!((partition, position, diverged_at), (at(0), Offset(10), kept));
            }
            error => panic!("{appended}: {error}"),
        }
        consumer.seek("t", 0, kept).unwrap();
        let count = usize::try_from(appended).unwrap();
        assert_eq!(take(&mut consumer, count), row(0, 100..100 + appended));
        consumer.commit().unwrap();

        // Another crash that loses nothing is no divergence.
        store.close(SECONDS).unwrap();
        drop((consumer, store));
        let store = open();
        disk.process_restart();
        drop(store);
        let store = open();
        assert!(member(&store, "g").poll(Duration::ZERO).unwrap().is_empty());
    }
}
