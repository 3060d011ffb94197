//! Consumers through the public API: positions, waiting, groups, and exactly once from end to end (CONS-*, GRP-*).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use oncelog::simulation::{Clock, SimDisk};
use oncelog::{
    CommittedOffset, Consumer, Error, ErrorClass, Flush, Isolation, Offset, RebalanceKind, Record,
    Records, StartAt, Store, Timestamp, TopicConfig, TopicPartition, Written, assignor,
};

use crate::consumed::{append, log, simulated};

const NOW: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

fn store(partitions: u32) -> Store {
    let store = Store::in_memory(1).unwrap();
    store.create_topic("t", TopicConfig::new().partitions(partitions)).unwrap();
    store
}

fn alone(store: &Store, partitions: &[u32]) -> Consumer {
    let mut consumer = store.consumer().start(StartAt::Earliest).build().unwrap();
    let partitions: Vec<_> = partitions.iter().map(|number| ("t", *number)).collect();
    consumer.assign(&partitions).unwrap();
    consumer
}

fn member(store: &Store) -> Consumer {
    let mut consumer = store.consumer().group("g").start(StartAt::Earliest).build().unwrap();
    consumer.subscribe(&["t"]).unwrap();
    consumer
}

fn values(records: &Records) -> Vec<String> {
    let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
    records.iter().map(|record| text(record.value())).collect()
}

fn poll(consumer: &mut Consumer) -> Vec<String> {
    values(&consumer.poll(NOW).unwrap())
}

fn at(partition: u32) -> TopicPartition {
    TopicPartition::new("t", partition)
}

#[test]
fn a_poll_returns_what_there_is_of_all_partitions_and_says_of_which() {
    let store = store(3);
    let mut consumer = alone(&store, &[0, 2]);
    assert_eq!(poll(&mut consumer), [] as [&str; 0]);
    append(&store, 0, &["a", "b"]);
    append(&store, 1, &["not assigned"]);
    append(&store, 2, &["c"]);
    let batch = consumer.poll(NOW).unwrap();
    let mut found: Vec<_> = batch
        .iter()
        .map(|record| (record.topic().to_owned(), record.partition(), record.offset().0))
        .collect();
    found.sort_unstable();
    assert_eq!(found, [("t".into(), 0, 0), ("t".into(), 0, 1), ("t".into(), 2, 0)]);
    assert_eq!(batch.partitions().count(), 2);
    assert_eq!(batch.iter().next().unwrap().topic_partition().topic(), "t");
    let kept = batch.clone();
    drop(batch);
    thread::spawn(move || assert_eq!(kept.count(), 3)).join().unwrap();
    assert_eq!(poll(&mut consumer), [] as [&str; 0]);
    assert_eq!(consumer.position("t", 0).unwrap(), Offset(2));
    assert!(matches!(consumer.position("t", 1), Err(Error::NotAssigned { .. })));
    assert_eq!(consumer.lag().unwrap().into_values().collect::<Vec<_>>(), [0, 0]);
    append(&store, 0, &["d"]);
    assert_eq!(consumer.lag().unwrap()[&at(0)], 1);
    // Those that stay keep their positions.
    consumer.assign(&[("t", 0), ("t", 1)]).unwrap();
    assert_eq!(consumer.assignment(), [at(0), at(1)]);
    let mut both = poll(&mut consumer);
    both.sort_unstable();
    assert_eq!(both, ["d", "not assigned"]);
    assert!(matches!(
        consumer.assign(&[("absent", 0)]),
        Err(Error::UnknownTopicOrPartition { .. })
    ));
    assert_eq!(consumer.assignment().len(), 2, "nothing was changed");
}

#[test]
fn cons_where_a_consumer_begins_is_its_choice_and_by_default_nowhere() {
    let clock = Clock::manual(Timestamp(1000));
    let store = simulated(&[SimDisk::new(1)], &clock);
    store.create_topic("t", TopicConfig::new()).unwrap();
    for value in ["a", "b", "c"] {
        append(&store, 0, &[value]);
        clock.advance(SECOND);
    }
    let begin = |start: Option<StartAt>| {
        let builder = store.consumer().group("g");
        let builder = start.into_iter().fold(builder, |builder, at| builder.start(at));
        let mut consumer = builder.build().unwrap();
        consumer.assign(&[("t", 0)]).unwrap();
        consumer.poll(NOW).map(|batch| values(&batch))
    };
    assert_eq!(begin(Some(StartAt::Earliest)).unwrap(), ["a", "b", "c"]);
    assert_eq!(begin(Some(StartAt::Latest)).unwrap(), [] as [&str; 0]);
    assert_eq!(begin(Some(StartAt::Time(Timestamp(1500)))).unwrap(), ["b", "c"]);
    assert_eq!(begin(Some(StartAt::Time(Timestamp(9999)))).unwrap(), [] as [&str; 0]);
    let error = begin(None).unwrap_err();
    assert!(matches!(error, Error::NoOffset { .. }), "{error}");
    // What is committed goes before all of them.
    let mut consumer = store.consumer().group("g").build().unwrap();
    consumer.assign(&[("t", 0)]).unwrap();
    consumer.seek("t", 0, Offset(1)).unwrap();
    assert_eq!(poll(&mut consumer), ["b", "c"]);
    consumer.commit_offsets(&BTreeMap::from([(at(0), Offset(2).into())])).unwrap();
    for start in [None, Some(StartAt::Earliest), Some(StartAt::Latest)] {
        assert_eq!(begin(start).unwrap(), ["c"]);
    }
    // A position that is not there any more.
    log(&store, 0).delete_records(Offset(3)).unwrap();
    append(&store, 0, &["d"]);
    assert!(matches!(begin(None), Err(Error::OffsetOutOfRange { .. })));
    assert_eq!(begin(Some(StartAt::Earliest)).unwrap(), ["d"]);
}

#[test]
fn seeking_goes_to_an_offset_the_begin_the_end_and_a_time() {
    let clock = Clock::manual(Timestamp(1000));
    let store = simulated(&[SimDisk::new(1)], &clock);
    store.create_topic("t", TopicConfig::new()).unwrap();
    for value in ["a", "b", "c"] {
        append(&store, 0, &[value]);
        clock.advance(SECOND);
    }
    let mut consumer = alone(&store, &[0]);
    assert_eq!(poll(&mut consumer), ["a", "b", "c"]);
    consumer.seek("t", 0, Offset(2)).unwrap();
    assert_eq!(poll(&mut consumer), ["c"]);
    consumer.seek_to_begin("t", 0).unwrap();
    assert_eq!(poll(&mut consumer), ["a", "b", "c"]);
    consumer.seek_to_time("t", 0, Timestamp(2000)).unwrap();
    assert_eq!(poll(&mut consumer), ["b", "c"]);
    consumer.seek_to_begin("t", 0).unwrap();
    consumer.seek_to_end("t", 0).unwrap();
    assert_eq!(poll(&mut consumer), [] as [&str; 0]);
    assert!(matches!(consumer.seek("t", 1, Offset(0)), Err(Error::NotAssigned { .. })));
    let asked = [("t", 0, Timestamp(2500)), ("t", 0, Timestamp(9999))];
    assert_eq!(consumer.offsets_for_times(&asked[..1]).unwrap(), [(at(0), Offset(2))].into());
    assert!(consumer.offsets_for_times(&asked[1..]).unwrap().is_empty());
    consumer.seek("t", 0, Offset(100)).unwrap();
    assert_eq!(poll(&mut consumer), ["a", "b", "c"], "out of range: where it begins");
}

#[test]
fn paused_partitions_wait_and_lose_nothing() {
    let store = store(2);
    let mut consumer = alone(&store, &[0, 1]);
    consumer.pause(&[("t", 0)]).unwrap();
    append(&store, 0, &["a"]);
    append(&store, 1, &["b"]);
    assert_eq!(poll(&mut consumer), ["b"]);
    assert!(consumer.pause(&[("t", 1), ("t", 9)]).is_err());
    append(&store, 1, &["c"]);
    assert_eq!(poll(&mut consumer), ["c"], "none was paused");
    consumer.resume(&[("t", 0)]).unwrap();
    assert_eq!(poll(&mut consumer), ["a"]);
}

#[test]
fn a_poll_takes_no_more_than_it_may_and_turns_are_taken() {
    let store = store(3);
    for number in 0..3 {
        for batch in 0..10 {
            let all: Vec<_> = (0..10).map(|at| format!("{number}:{}", batch * 10 + at)).collect();
            append(&store, number, &all.iter().map(String::as_str).collect::<Vec<_>>());
        }
    }
    for records in [1, 7, 10, 33, 1000] {
        let builder = store.consumer().start(StartAt::Earliest);
        let mut consumer = builder.max_poll_records(records).build().unwrap();
        consumer.assign(&[("t", 0), ("t", 1), ("t", 2)]).unwrap();
        let mut found: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        loop {
            let batch = consumer.poll(NOW).unwrap();
            assert!(batch.count() as u64 <= records);
            if batch.is_empty() {
                break;
            }
            for record in &batch {
                found.entry(record.partition()).or_default().push(record.offset().0);
            }
            let lengths: Vec<_> = (0..3).map(|at| found.get(&at).map_or(0, Vec::len)).collect();
            let (most, least) = (lengths.iter().max().unwrap(), lengths.iter().min().unwrap());
            assert!((most - least) as u64 <= records.max(100), "{lengths:?}");
            if records == 1 {
                assert!(most - least <= 1, "{lengths:?}");
            }
        }
        for (number, offsets) in found {
            assert_eq!(offsets, (0..100).collect::<Vec<_>>(), "{number}, {records} at a time");
        }
    }
    let mut consumer = store.consumer().start(StartAt::Earliest).max_bytes(1).build().unwrap();
    consumer.assign(&[("t", 0)]).unwrap();
    assert_eq!(poll(&mut consumer).len(), 10, "a batch at least");
    consumer.seek("t", 0, Offset(5)).unwrap();
    assert_eq!(poll(&mut consumer)[0], "0:5", "from within a batch");
}

#[test]
fn a_waiting_poll_wakes_on_data_on_a_marker_and_when_it_is_told_to() {
    let store = store(2);
    let (told, heard) = mpsc::channel();
    let committed = store
        .consumer()
        .start(StartAt::Earliest)
        .isolation(Isolation::ReadCommitted)
        .build()
        .unwrap();
    let waker = committed.waker();
    let reader = thread::spawn({
        let mut consumer = committed;
        consumer.assign(&[("t", 0), ("t", 1)]).unwrap();
        move || {
            loop {
                let started = Instant::now();
                let batch = consumer.poll(LONG).unwrap();
                assert!(started.elapsed() < LONG / 2, "it was not woken");
                told.send(values(&batch)).unwrap();
                if batch.is_empty() {
                    return;
                }
            }
        }
    });
    append(&store, 1, &["plain"]);
    assert_eq!(heard.recv().unwrap(), ["plain"]);
    let mut producer = store.producer().transactional_id("id").build().unwrap();
    let mut transaction = producer.begin().unwrap();
    transaction.append("t", 0, &[Record::new("decided")]).unwrap();
    assert!(heard.try_recv().is_err());
    transaction.commit(SECOND).unwrap();
    assert_eq!(heard.recv().unwrap(), ["decided"]);
    let mut transaction = producer.begin().unwrap();
    transaction.append("t", 0, &[Record::new("taken back")]).unwrap();
    transaction.abort(SECOND).unwrap();
    append(&store, 0, &["behind it"]);
    assert_eq!(heard.recv().unwrap(), ["behind it"]);
    waker.wake();
    assert_eq!(heard.recv().unwrap(), [] as [&str; 0]);
    reader.join().unwrap();
}

#[test]
fn of_a_thousand_partitions_the_one_with_data_is_looked_at() {
    let store = Store::in_memory(1).unwrap();
    let config = TopicConfig::new().partitions(1000).flush(Flush::Os).segment_bytes(16 << 10);
    store.create_topic("t", config).unwrap();
    let all: Vec<_> = (0..1000).collect();
    let mut consumer = alone(&store, &all);
    assert_eq!(poll(&mut consumer), [] as [&str; 0]);
    for round in [3_u32, 999, 0, 500, 500] {
        append(&store, round, &["x"]);
        let batch = consumer.poll(LONG).unwrap();
        let partitions: Vec<_> = batch.partitions().map(TopicPartition::partition).collect();
        assert_eq!(partitions, [round]);
    }
}

#[test]
fn commits_are_of_what_polls_have_returned() {
    let store = store(2);
    append(&store, 0, &["a", "b", "c"]);
    let mut consumer =
        store.consumer().group("g").start(StartAt::Earliest).max_poll_records(2).build().unwrap();
    consumer.assign(&[("t", 0), ("t", 1)]).unwrap();
    assert_eq!(poll(&mut consumer), ["a", "b"]);
    consumer.commit().unwrap();
    let committed = |consumer: &Consumer| {
        let found = consumer.committed(&[("t", 0), ("t", 1)]).unwrap();
        found.into_iter().map(|(at, held)| (at.partition(), held.offset.0)).collect::<Vec<_>>()
    };
    assert_eq!(committed(&consumer), [(0, 2), (1, 0)], "and not of what was read ahead");
    assert_eq!(consumer.position_map()[&at(0)].offset, Offset(2));
    assert_eq!(poll(&mut consumer), ["c"]);
    let (told, heard) = mpsc::channel();
    consumer.commit_async(move |outcome| told.send(outcome.is_ok()).unwrap()).unwrap();
    assert!(heard.recv().unwrap());
    assert_eq!(committed(&consumer), [(0, 3), (1, 0)]);
    let held = CommittedOffset { metadata: "note".into(), ..Offset(1).into() };
    consumer.commit_offsets(&BTreeMap::from([(at(0), held.clone())])).unwrap();
    assert_eq!(consumer.committed(&[("t", 0)]).unwrap()[&at(0)], held);
    let ahead = BTreeMap::from([(at(0), Offset(4).into())]);
    assert!(matches!(consumer.commit_offsets(&ahead), Err(Error::OffsetOutOfRange { .. })));
    assert_eq!(consumer.group_metadata().group(), "g");
    let mut without = alone(&store, &[0]);
    assert!(matches!(without.commit(), Err(Error::InvalidConfig { .. })));
    assert!(matches!(without.subscribe(&["t"]), Err(Error::InvalidConfig { .. })));
    assert!(matches!(consumer.subscribe(&["t"]), Err(Error::InvalidConfig { .. })));
}

#[test]
fn automatic_commits_are_of_what_earlier_polls_have_returned() {
    for (closes, expected) in [(false, 1), (true, 2)] {
        let clock = Clock::manual(Timestamp(0));
        let store = simulated(&[SimDisk::new(1)], &clock);
        store.create_topic("t", TopicConfig::new()).unwrap();
        append(&store, 0, &["a"]);
        let builder = store.consumer().group("g").start(StartAt::Earliest);
        let mut consumer = builder.auto_commit(SECOND * 5).max_poll_records(1).build().unwrap();
        consumer.assign(&[("t", 0)]).unwrap();
        let committed = || {
            let asked = store.consumer().group("g").build().unwrap();
            let found = asked.committed(&[("t", 0)]).unwrap();
            found.values().next().map(|held| held.offset.0)
        };
        assert_eq!(poll(&mut consumer), ["a"]);
        clock.advance(SECOND * 4);
        assert_eq!(poll(&mut consumer), [] as [&str; 0]);
        assert_eq!(committed(), None, "not yet");
        append(&store, 0, &["b"]);
        clock.advance(SECOND);
        assert_eq!(poll(&mut consumer), ["b"]);
        assert_eq!(committed(), Some(1), "what this poll returned may not be done");
        if closes {
            consumer.close(SECOND).unwrap();
        } else {
            drop(consumer);
        }
        assert_eq!(committed(), Some(expected));
    }
}

#[test]
fn members_share_the_partitions_and_are_told_of_every_change() {
    let store = store(4);
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = |consumer: &mut Consumer, name: &'static str| {
        let told = Arc::clone(&told);
        consumer.on_rebalance(move |change| {
            let numbers: Vec<_> =
                change.partitions().iter().map(TopicPartition::partition).collect();
            told.lock().unwrap().push((name, change.kind(), numbers));
            if change.kind() == RebalanceKind::Revoked {
                change.commit().unwrap();
            }
        });
    };
    (0..4).for_each(|number| append(&store, number, &["x"]));
    let mut first = member(&store);
    tell(&mut first, "first");
    assert_eq!(poll(&mut first).len(), 4);
    let mut second = member(&store);
    tell(&mut second, "second");
    assert_eq!(poll(&mut second), [] as [&str; 0]);
    assert_eq!(poll(&mut first), [] as [&str; 0]);
    assert_eq!(poll(&mut second), [] as [&str; 0], "the first has committed when it let go");
    assert_eq!(first.assignment(), [at(0), at(1)]);
    assert_eq!(second.assignment(), [at(2), at(3)]);
    (0..4).for_each(|number| append(&store, number, &["y"]));
    assert_eq!((poll(&mut first).len(), poll(&mut second).len()), (2, 2));
    drop(second);
    assert_eq!(poll(&mut first).len(), 2, "what was not committed comes again");
    let (assigned, revoked) = (RebalanceKind::Assigned, RebalanceKind::Revoked);
    let expected = [
        ("first", assigned, vec![0, 1, 2, 3]),
        ("second", assigned, vec![]),
        ("first", revoked, vec![2, 3]),
        ("first", assigned, vec![]),
        ("second", assigned, vec![2, 3]),
        ("first", assigned, vec![2, 3]),
    ];
    let mut told = std::mem::take(&mut *told.lock().unwrap());
    // A cooperative rebalance tells the generation to all, in no order between members.
    told.sort_by_key(|(name, ..)| *name);
    let mut expected = expected.to_vec();
    expected.sort_by_key(|(name, ..)| *name);
    assert_eq!(told, expected);
}

#[test]
fn who_leaves_is_told_what_it_lets_go_of_and_may_commit() {
    let store = store(2);
    (0..2).for_each(|number| append(&store, number, &["x"]));
    let told = Arc::new(Mutex::new(Vec::new()));
    let joined = || {
        let mut consumer = member(&store);
        let told = Arc::clone(&told);
        consumer.on_rebalance(move |change| {
            let numbers: Vec<_> =
                change.partitions().iter().map(TopicPartition::partition).collect();
            told.lock().unwrap().push((change.kind(), numbers));
            if change.kind() == RebalanceKind::Revoked {
                change.commit().unwrap();
            }
        });
        consumer
    };
    let (assigned, revoked) = (RebalanceKind::Assigned, RebalanceKind::Revoked);
    let both = |kind| (kind, vec![0, 1]);
    let mut consumer = joined();
    assert_eq!(poll(&mut consumer), ["x", "x"]);
    consumer.unsubscribe();
    assert_eq!(std::mem::take(&mut *told.lock().unwrap()), [both(assigned), both(revoked)]);
    assert_eq!(consumer.assignment(), []);
    consumer.close(SECOND).unwrap();
    assert_eq!(*told.lock().unwrap(), [], "there was nothing left to let go of");

    (0..2).for_each(|number| append(&store, number, &["y"]));
    let mut consumer = joined();
    assert_eq!(poll(&mut consumer), ["y", "y"], "it was committed");
    consumer.close(SECOND).unwrap();
    assert_eq!(std::mem::take(&mut *told.lock().unwrap()), [both(assigned), both(revoked)]);

    (0..2).for_each(|number| append(&store, number, &["z"]));
    let mut consumer = joined();
    assert_eq!(poll(&mut consumer), ["z", "z"]);
    drop(consumer);
    assert_eq!(*told.lock().unwrap(), [both(assigned)], "one that is dropped tells nobody");
}

#[test]
fn a_consumer_may_be_dropped_by_who_is_told_of_its_commit() {
    let clock = Clock::manual(Timestamp(0));
    let store = simulated(&[SimDisk::new(1)], &clock);
    store.create_topic("t", TopicConfig::new()).unwrap();
    append(&store, 0, &["x"]);
    let mut consumer = member(&store);
    assert_eq!(poll(&mut consumer), ["x"]);
    let shared = Arc::new(Mutex::new(None));
    let told = Arc::new(Mutex::new(Vec::new()));
    for which in ["first", "second"] {
        let (shared, told) = (Arc::clone(&shared), Arc::clone(&told));
        let done = move |outcome: oncelog::Result<()>| {
            outcome.unwrap();
            let consumer: Option<Consumer> = shared.lock().unwrap().take();
            let held = consumer.is_some();
            drop(consumer);
            told.lock().unwrap().push((which, held));
        };
        consumer.commit_async(done).unwrap();
    }
    assert_eq!(*told.lock().unwrap(), [], "nothing is flushed yet");
    *shared.lock().unwrap() = Some(consumer);
    while told.lock().unwrap().len() < 2 {
        clock.advance(SECOND / 10);
        store.run_background();
    }
    // The first one's drop waits for the second to be told, but not for itself.
    assert_eq!(*told.lock().unwrap(), [("second", false), ("first", true)]);
}

#[test]
fn offsets_in_a_transaction_do_not_wait_for_a_rebalance_that_waits_for_this_thread() {
    let store = store(4);
    (0..4).for_each(|number| append(&store, number, &["x"]));
    let builder = || store.consumer().group("g").start(StartAt::Earliest).assignor(assignor::Range);
    let joined = || {
        let mut consumer = builder().build().unwrap();
        consumer.subscribe(&["t"]).unwrap();
        consumer
    };
    let (mut first, mut slow) = (joined(), joined());
    let mut read = Vec::new();
    while read.is_empty() || slow.assignment().is_empty() {
        read.extend(poll(&mut first));
        poll(&mut slow);
    }
    let offsets = first.position_map();
    let third = joined();
    // Lets go of what it has; the slow one does not.
    assert_eq!(poll(&mut first), [] as [&str; 0]);
    assert_eq!(first.assignment(), []);
    let mut producer =
        store.producer().transactional_id("p").delivery_timeout(LONG * 60).build().unwrap();
    let mut transaction = producer.begin().unwrap();
    let refused = transaction.send_offsets(&offsets, &first.group_metadata()).unwrap_err();
    assert!(matches!(refused, Error::RebalanceInProgress { .. }), "{refused}");
    assert_eq!((refused.class(), refused.written()), (ErrorClass::Retriable, Written::No));
    transaction.abort(SECOND).unwrap();
    drop((slow, third));
}

#[test]
fn who_has_not_polled_for_too_long_loses_its_partitions_and_comes_back() {
    let clock = Clock::manual(Timestamp(0));
    let store = simulated(&[SimDisk::new(1)], &clock);
    store.create_topic("t", TopicConfig::new().partitions(2)).unwrap();
    (0..2).for_each(|number| append(&store, number, &["x"]));
    let mut first = member(&store);
    assert_eq!(poll(&mut first).len(), 2);
    let lost = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&lost);
    first.on_rebalance(move |change| {
        if change.kind() == RebalanceKind::Lost {
            assert!(change.commit().is_err(), "too late");
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    let metadata = first.group_metadata();
    clock.advance(SECOND * 301);
    store.run_background();
    let mut second = member(&store);
    assert_eq!(poll(&mut second).len(), 2, "all of it, again");
    second.commit().unwrap();
    let late = first.commit();
    assert!(matches!(late, Err(Error::UnknownMember { .. })), "{late:?}");
    let mut producer = store.producer().transactional_id("zombie").build().unwrap();
    let mut transaction = producer.begin().unwrap();
    let refused = transaction.send_offsets(&first.position_map(), &metadata);
    assert!(matches!(refused, Err(Error::UnknownMember { .. })), "{refused:?}");
    drop(transaction);
    assert_eq!(poll(&mut first), [] as [&str; 0]);
    assert_eq!(lost.load(Ordering::Relaxed), 1);
    assert_eq!(poll(&mut second), [] as [&str; 0]);
    assert_eq!(poll(&mut first), [] as [&str; 0], "it has joined again");
    assert_eq!((first.assignment().len(), second.assignment().len()), (1, 1));
}

#[test]
fn waiting_in_a_poll_counts_as_polling() {
    let store = store(1);
    let build = || {
        let builder = store.consumer().group("g").start(StartAt::Earliest);
        let mut consumer = builder.max_poll_interval(Duration::from_millis(50)).build().unwrap();
        consumer.subscribe(&["t"]).unwrap();
        consumer
    };
    let mut consumer = build();
    let lost = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&lost);
    consumer.on_rebalance(move |change| {
        counted.fetch_add(u32::from(change.kind() == RebalanceKind::Lost), Ordering::Relaxed);
    });
    let waker = consumer.waker();
    let waits = thread::spawn(move || {
        consumer.poll(LONG).unwrap();
        consumer
    });
    // Long enough for the watchdog to have come, however slow the machine is: it is what waits here.
    let other = store.consumer().group("watched").build();
    drop(other);
    let mut watched = build_watched(&store);
    let deadline = Instant::now() + LONG;
    watched.poll(NOW).unwrap();
    while !store.group("watched").unwrap().members.is_empty() {
        assert!(Instant::now() < deadline, "the watchdog does not come");
        thread::yield_now();
    }
    waker.wake();
    let mut consumer = waits.join().unwrap();
    consumer.poll(NOW).unwrap();
    assert_eq!(lost.load(Ordering::Relaxed), 0);
}

/// A member of a group that is fenced after 200 ms without a poll.
fn build_watched(store: &Store) -> Consumer {
    let builder = store.consumer().group("watched").start(StartAt::Earliest);
    let mut consumer = builder.max_poll_interval(Duration::from_millis(200)).build().unwrap();
    consumer.subscribe(&["t"]).unwrap();
    consumer
}

#[test]
fn a_pattern_an_instance_id_and_other_assignors() {
    let store = store(2);
    store.create_topic("u", TopicConfig::new()).unwrap();
    let builder = || store.consumer().group("g").start(StartAt::Earliest);
    let mut consumer = builder().instance_id("one").assignor(assignor::Range).build().unwrap();
    consumer.subscribe_matching(|topic| topic != "u").unwrap();
    consumer.poll(NOW).unwrap();
    assert_eq!(consumer.assignment().len(), 2);
    store.create_topic("v", TopicConfig::new()).unwrap();
    consumer.poll(NOW).unwrap();
    assert_eq!(consumer.assignment().len(), 3);
    consumer.subscribe(&["u"]).unwrap();
    consumer.poll(NOW).unwrap();
    assert_eq!(consumer.assignment(), [TopicPartition::new("u", 0)]);
    assert!(matches!(consumer.assign(&[("t", 0)]), Err(Error::InvalidConfig { .. })));
    let mut other = builder().build().unwrap();
    assert!(matches!(other.subscribe(&["t"]), Err(Error::InvalidConfig { .. })));
    let mut again = builder().instance_id("one").assignor(assignor::Range).build().unwrap();
    again.subscribe(&["u"]).unwrap();
    again.poll(NOW).unwrap();
    assert_eq!(again.assignment().len(), 1);
    assert!(matches!(consumer.poll(NOW), Err(Error::UnknownMember { .. })));
    again.unsubscribe();
    assert!(again.assignment().is_empty());
    again.assign(&[("t", 1)]).unwrap();
    assert_eq!(again.assignment(), [at(1)]);
}

#[test]
fn an_application_may_keep_its_positions_elsewhere() {
    let store = store(2);
    (0..2).for_each(|number| append(&store, number, &["a", "b", "c"]));
    let mut consumer = store.consumer().group("g").build().unwrap();
    consumer.on_rebalance(|change| {
        for partition in change.partitions() {
            change.seek(partition.topic(), partition.partition(), Offset(2)).unwrap();
        }
        assert!(change.seek("t", 9, Offset(0)).is_err());
    });
    consumer.subscribe(&["t"]).unwrap();
    assert_eq!(poll(&mut consumer), ["c", "c"]);
    consumer.on_rebalance(|_| panic!("an application's own"));
    consumer.subscribe(&[]).unwrap();
    consumer.poll(NOW).unwrap();
    assert!(consumer.assignment().is_empty(), "the panic is not the store's");
}

#[test]
fn cons_04_a_truncation_under_a_consumer_is_an_error_with_the_point_of_divergence() {
    let clock = Clock::manual(Timestamp(0));
    let disks: Vec<_> = (1..4).map(SimDisk::new).collect();
    let store = simulated(&disks, &clock);
    let config = TopicConfig::new()
        .replication_factor(2)
        .min_insync_replicas(1)
        .flush(Flush::Os)
        .unclean_leader_election(true);
    store.create_topic("t", config).unwrap();
    let partition = log(&store, 0);
    append(&store, 0, &["a", "b"]);
    let leader = partition.leader().unwrap();
    let follower = *partition.replicas().iter().find(|disk| **disk != leader).unwrap();
    store.stop_disk(follower).unwrap();
    append(&store, 0, &["lost", "too"]);
    let mut consumer = store.consumer().group("g").build().unwrap();
    consumer.assign(&[("t", 0)]).unwrap();
    consumer.seek("t", 0, Offset(0)).unwrap();
    assert_eq!(poll(&mut consumer), ["a", "b", "lost", "too"]);
    consumer.commit().unwrap();
    drop((consumer, store, partition));
    disks.iter().for_each(SimDisk::process_restart);
    // Now without the disk that has it all.
    let mut disks = disks;
    disks[usize::from(leader.0)] = SimDisk::new(5);
    let store = simulated(&disks, &clock);
    append(&store, 0, &["others", "are", "here", "now"]);
    let mut consumer = store.consumer().group("g").build().unwrap();
    consumer.assign(&[("t", 0)]).unwrap();
    let error = consumer.poll(NOW).unwrap_err();
    let Error::Diverged { position, diverged_at, .. } = error else { panic!("{error}") };
    assert_eq!((position, diverged_at), (Offset(4), Offset(2)));
    consumer.seek("t", 0, diverged_at).unwrap();
    assert_eq!(poll(&mut consumer), ["others", "are", "here", "now"]);
}

#[test]
fn a_damaged_partition_does_not_keep_the_others_waiting() {
    let store = store(2);
    let mut consumer = alone(&store, &[0, 1]);
    append(&store, 1, &["a"]);
    consumer.seek("t", 0, Offset(0)).unwrap();
    store.delete_topic("t").unwrap();
    let mut failed = 0;
    for _ in 0..4 {
        failed += u32::from(consumer.poll(NOW).is_err());
    }
    assert_eq!(failed, 4, "the topic is gone");
    store.create_topic("t", TopicConfig::new()).unwrap();
    append(&store, 0, &["another topic"]);
    assert!(consumer.poll(NOW).is_err(), "CONS-13: of the same name, and not the same");
    consumer.assign(&[]).unwrap();
    consumer.assign(&[("t", 0)]).unwrap();
    assert_eq!(poll(&mut consumer), ["another topic"]);
}

struct Count(AtomicU32);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn recv_is_a_future_that_is_woken_once_there_is_something() {
    let clock = Clock::manual(Timestamp(0));
    let store = simulated(&[SimDisk::new(1)], &clock);
    store.create_topic("t", TopicConfig::new()).unwrap();
    let mut consumer = member(&store);
    let count = Arc::new(Count(AtomicU32::new(0)));
    let waker = Waker::from(Arc::clone(&count));
    let mut context = Context::from_waker(&waker);
    {
        let mut recv = std::pin::pin!(consumer.recv());
        assert!(recv.as_mut().poll(&mut context).is_pending());
        clock.advance(SECOND * 1000);
        store.run_background();
        append(&store, 0, &["a"]);
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        let Poll::Ready(batch) = recv.as_mut().poll(&mut context) else { panic!("it was woken") };
        assert_eq!(values(&batch.unwrap()), ["a"], "and is a member still");
    }
    {
        let mut dropped = std::pin::pin!(consumer.recv());
        assert!(dropped.as_mut().poll(&mut context).is_pending());
    }
    append(&store, 0, &["b"]);
    assert_eq!(poll(&mut consumer), ["b"]);
    #[cfg(feature = "stream")]
    {
        use futures_core::Stream;
        assert!(std::pin::pin!(&mut consumer).poll_next(&mut context).is_pending());
        append(&store, 0, &["c"]);
        let Poll::Ready(Some(batch)) = std::pin::pin!(&mut consumer).poll_next(&mut context) else {
            panic!("it was woken")
        };
        assert_eq!(values(&batch.unwrap()), ["c"]);
    }
}

#[test]
fn a_second_process_tails_what_the_owner_appends() {
    let directory = tempfile::tempdir().unwrap();
    let owner = Store::builder().disk(directory.path()).flush(Flush::Os).open().unwrap();
    owner.create_topic("t", TopicConfig::new()).unwrap();
    append(&owner, 0, &["a"]);
    let view = Store::open_read_only(directory.path()).unwrap();
    let mut consumer = alone(&view, &[0]);
    assert_eq!(values(&consumer.poll(LONG).unwrap()), ["a"]);
    let appender = thread::spawn(move || {
        append(&owner, 0, &["b"]);
        owner
    });
    assert_eq!(values(&consumer.poll(LONG).unwrap()), ["b"]);
    drop(appender.join().unwrap());
    let mut context = Context::from_waker(Waker::noop());
    let recv = std::pin::pin!(consumer.recv());
    assert!(matches!(recv.poll(&mut context), Poll::Ready(Err(Error::ReadOnly))));
}

/// Reads numbers, sends their squares, and commits both in one transaction: until there is nothing left, or the disk
/// crashes.
fn square_all(store: &Store, worker: u32) -> Result<(), Error> {
    let mut consumer = store
        .consumer()
        .group("squares")
        .start(StartAt::Earliest)
        .isolation(Isolation::ReadCommitted)
        .max_poll_records(7)
        .build()?;
    consumer.subscribe(&["t"])?;
    let mut producer = store.producer().transactional_id(&format!("worker-{worker}")).build()?;
    loop {
        let batch = consumer.poll(NOW)?;
        if batch.is_empty() {
            return Ok(());
        }
        let mut transaction = producer.begin()?;
        for record in &batch {
            let number: u64 =
                std::str::from_utf8(record.value().unwrap()).unwrap().parse().unwrap();
            let square = (number * number).to_string();
            transaction.append("out", record.partition(), &[Record::new(&square)])?;
        }
        transaction.send_offsets(&consumer.position_map(), &consumer.group_metadata())?;
        transaction.commit(LONG)?;
    }
}

#[test]
fn inv_11_what_is_read_transformed_and_written_is_done_once_whenever_it_is_killed() {
    let begin = || {
        let (disk, clock) = (SimDisk::new(1), Clock::manual(Timestamp(0)));
        let store = simulated(std::slice::from_ref(&disk), &clock);
        store.create_topic("t", TopicConfig::new().partitions(2)).unwrap();
        store.create_topic("out", TopicConfig::new().partitions(2)).unwrap();
        let numbers: Vec<_> = (0..20).map(|number| number.to_string()).collect();
        let numbers: Vec<_> = numbers.iter().map(String::as_str).collect();
        append(&store, 0, &numbers[..10]);
        append(&store, 1, &numbers[10..]);
        (disk, clock, store)
    };
    let (disk, _, store) = begin();
    let before = disk.calls();
    square_all(&store, 0).unwrap();
    let calls = disk.calls() - before;
    drop(store);
    assert!(calls > 20);
    for crash in 1..=calls {
        for power_loss in [false, true] {
            let (disk, clock, mut store) = begin();
            disk.crash_at(crash);
            // A second crash, while what the first has left is settled.
            for again in [7, u64::MAX] {
                let _ = square_all(&store, u32::from(again == 7));
                if power_loss {
                    disk.power_loss();
                } else {
                    disk.process_restart();
                }
                drop(store);
                store = simulated(std::slice::from_ref(&disk), &clock);
                if again == 7 {
                    disk.crash_at(again);
                }
            }
            let note = format!("crash at {crash}, power loss: {power_loss}");
            square_all(&store, 2).expect(&note);
            let mut reader = store
                .consumer()
                .start(StartAt::Earliest)
                .isolation(Isolation::ReadCommitted)
                .build()
                .unwrap();
            for partition in 0..2_u64 {
                reader.assign(&[("out", u32::try_from(partition).unwrap())]).unwrap();
                let mut squares = Vec::new();
                loop {
                    let batch = reader.poll(NOW).unwrap();
                    if batch.is_empty() {
                        break;
                    }
                    squares.extend(values(&batch));
                }
                let own = partition * 10..partition * 10 + 10;
                let expected: Vec<_> = own.map(|number| (number * number).to_string()).collect();
                assert_eq!(squares, expected, "{note}");
            }
        }
    }
}
