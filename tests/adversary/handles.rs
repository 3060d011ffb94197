//! A hostile user of the public API: handles forgotten, dropped and used from the wrong place, closing stores, topics that
//! go and come again under whoever uses them.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use oncelog::simulation::{Clock, SimDisk};
use oncelog::{
    Acks, Consumer, DiskId, Error, Isolation, Offset, Producer, ProducerEpoch, ProducerId,
    ProducerSequence, ReadOptions, Record, Records, StartAt, Store, Timestamp, TopicConfig,
    TopicPartition, TransactionOutcome, TransactionalProducer,
};

/// No test waits that long; one that does has found a hang.
const LONG: Duration = Duration::from_secs(20);

fn store(partitions: u32) -> Store {
    let store = Store::in_memory(1).unwrap();
    store.create_topic("t", TopicConfig::new().partitions(partitions)).unwrap();
    store
}

fn simulated(disk: &SimDisk, clock: &Clock) -> Store {
    Store::builder().clock(clock.clone()).simulated_disk(disk.clone()).open().unwrap()
}

fn at(partition: u32) -> TopicPartition {
    TopicPartition::new("t", partition)
}

fn append(store: &Store, partition: u32, values: &[&str]) {
    let partition = store.partition("t", partition).unwrap();
    for value in values {
        partition.append(&[Record::new(value)], Acks::All).unwrap();
    }
}

fn texts(records: &Records) -> Vec<String> {
    let texts = records.iter().map(|one| String::from_utf8(one.value().unwrap().to_vec()).unwrap());
    texts.collect()
}

fn committed(store: &Store, partition: u32) -> Vec<String> {
    let partition = store.partition("t", partition).unwrap();
    let options = ReadOptions::new().isolation(Isolation::ReadCommitted);
    texts(&partition.read(partition.log_start_offset(), options).unwrap())
}

fn transactional(store: &Store, id: &str) -> TransactionalProducer {
    store.producer().transactional_id(id).build().unwrap()
}

fn grouped(store: &Store, group: &str) -> Consumer {
    store.consumer().group(group).start(StartAt::Earliest).build().unwrap()
}

fn member(store: &Store, group: &str) -> Consumer {
    let mut consumer = grouped(store, group);
    consumer.subscribe(&["t"]).unwrap();
    consumer
}

/// Runs `call` on a thread, and `then` once that has had time to block. Says how long the call went on.
fn blocked<T: Send>(call: impl FnOnce() -> T + Send, then: impl FnOnce()) -> (T, Duration) {
    thread::scope(|scope| {
        let call = scope.spawn(call);
        thread::sleep(Duration::from_millis(50));
        let started = Instant::now();
        then();
        let result = call.join().unwrap();
        (result, started.elapsed())
    })
}

// Handles that are forgotten or dropped at odd moments.

#[test]
fn a_forgotten_transaction_is_aborted_by_the_next_begin() {
    let store = store(1);
    let mut held = transactional(&store, "id");
    let mut forgotten = held.begin().unwrap();
    forgotten.append("t", 0, &[Record::new("forgotten")]).unwrap();
    std::mem::forget(forgotten);
    let mut next = held.begin().unwrap();
    next.append("t", 0, &[Record::new("next")]).unwrap();
    next.commit(LONG).unwrap();
    assert_eq!(committed(&store, 0), ["next"]);
}

#[test]
fn a_zombie_that_is_dropped_late_does_not_end_its_successors_transaction() {
    let store = store(1);
    let mut old = transactional(&store, "id");
    let mut left = old.begin().unwrap();
    left.append("t", 0, &[Record::new("left")]).unwrap();
    let mut new = transactional(&store, "id");
    let mut open = new.begin().unwrap();
    open.append("t", 0, &[Record::new("first half")]).unwrap();
    drop(left);
    drop(old);
    open.append("t", 0, &[Record::new("second half")]).unwrap();
    open.commit(LONG).unwrap();
    assert_eq!(committed(&store, 0), ["first half", "second half"]);
}

#[test]
fn grp_09_the_last_handle_of_a_store_may_be_a_consumer_and_its_group_is_empty_from_then_on() {
    let (disk, clock) = (SimDisk::new(1), Clock::manual(Timestamp(1_000_000)));
    let day = Duration::from_secs(86_400);
    let open = || {
        let builder = Store::builder().clock(clock.clone()).simulated_disk(disk.clone());
        builder.offsets_retention(day).open().unwrap()
    };
    let store = open();
    store.create_topic("t", TopicConfig::new()).unwrap();
    append(&store, 0, &["a"]);
    let builder = store.consumer().group("g").start(StartAt::Earliest);
    let mut consumer = builder.max_poll_interval(day * 9).build().unwrap();
    consumer.subscribe(&["t"]).unwrap();
    assert_eq!(consumer.poll(Duration::ZERO).unwrap().count(), 1);
    consumer.commit().unwrap();
    clock.advance(day * 2);
    drop(store);
    drop(consumer);
    let kept = || {
        let store = open();
        store.groups().unwrap();
        store.run_background();
        store.group("g").is_ok_and(|group| group.offsets.len() == 1)
    };
    clock.advance(day / 2);
    assert!(kept(), "a group is idle from when its last member left, not from its last commit");
    clock.advance(day);
    assert!(!kept());
}

// Stores that are closed under a call that waits.

#[test]
fn closing_the_store_ends_every_poll_that_waits() {
    type Prepare = fn(&Store) -> Consumer;
    let cases: [(&str, Prepare); 5] = [
        ("of a partition", |store| {
            let mut consumer = grouped(store, "g");
            consumer.assign(&[("t", 0)]).unwrap();
            consumer
        }),
        ("of nothing", |store| grouped(store, "g")),
        ("of a paused partition", |store| {
            let mut consumer = grouped(store, "g");
            consumer.assign(&[("t", 0)]).unwrap();
            consumer.pause(&[("t", 0)]).unwrap();
            consumer
        }),
        ("of a member", |store| member(store, "g")),
        ("of a member that has got nothing", |store| {
            let mut consumer = grouped(store, "g");
            consumer.subscribe(&["absent"]).unwrap();
            consumer
        }),
    ];
    for (name, prepare) in cases {
        let store = store(1);
        let mut consumer = prepare(&store);
        let (polled, took) = blocked(|| consumer.poll(LONG), || store.close(LONG).unwrap());
        assert!(matches!(polled, Err(Error::Closed)), "{name}: {polled:?}");
        assert!(took < LONG / 2, "{name}: woken after {took:?}");
    }
}

#[test]
fn closing_the_store_ends_a_wait_for_offsets_that_a_transaction_holds() {
    let store = store(1);
    append(&store, 0, &["a"]);
    let mut consumer = grouped(&store, "g");
    consumer.assign(&[("t", 0)]).unwrap();
    assert_eq!(consumer.poll(LONG).unwrap().count(), 1);
    let mut held = transactional(&store, "id");
    let mut open = held.begin().unwrap();
    open.send_offsets(&consumer.position_map(), &consumer.group_metadata()).unwrap();
    let asking = move || consumer.committed(&[("t", 0)]);
    let (found, took) = blocked(asking, || store.close(LONG).unwrap());
    assert!(found.is_err());
    assert!(took < LONG / 2, "woken after {took:?}");
    drop(open);
}

#[test]
fn closing_the_store_ends_a_poll_that_waits_for_a_transaction_with_its_offsets() {
    let store = store(1);
    append(&store, 0, &["a"]);
    let mut consumer = grouped(&store, "g");
    consumer.assign(&[("t", 0)]).unwrap();
    assert_eq!(consumer.poll(LONG).unwrap().count(), 1);
    let mut held = transactional(&store, "id");
    let mut open = held.begin().unwrap();
    open.send_offsets(&consumer.position_map(), &consumer.group_metadata()).unwrap();
    let mut next = grouped(&store, "g");
    next.assign(&[("t", 0)]).unwrap();
    let (polled, took) = blocked(|| next.poll(LONG), || store.close(LONG).unwrap());
    assert!(matches!(polled, Err(Error::Closed)), "{polled:?}");
    assert!(took < LONG / 2, "woken after {took:?}");
    drop(open);
}

#[test]
fn a_store_may_be_closed_or_let_go_of_in_a_callback() {
    for how in ["closed", "dropped", "flushed", "producer closed"] {
        let store = store(1);
        let producer = store.producer().linger(Duration::from_millis(5)).build().unwrap();
        let (told, heard) = channel();
        let (store, copy) = (Mutex::new(Some(store)), producer.clone());
        producer
            .send_with(Record::to("t").value("x"), move |outcome| {
                let store = store.lock().unwrap().take().unwrap();
                match how {
                    "closed" => drop(store.close(LONG)),
                    "dropped" => drop(store),
                    "flushed" => copy.flush(LONG).unwrap(),
                    _ => copy.close(LONG).unwrap(),
                }
                told.send(outcome.is_ok()).unwrap();
            })
            .unwrap();
        drop(producer);
        assert!(heard.recv_timeout(LONG).unwrap(), "{how}");
    }
}

// Topics that go and come again.

#[test]
fn cons_13_what_was_read_of_a_deleted_topic_is_not_committed_for_its_successor() {
    let store = store(1);
    append(&store, 0, &["old", "old", "old"]);
    let mut consumer = grouped(&store, "g");
    consumer.assign(&[("t", 0)]).unwrap();
    assert_eq!(consumer.poll(LONG).unwrap().count(), 3);
    store.delete_topic("t").unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    append(&store, 0, &["new", "new", "new"]);
    consumer.commit().unwrap();
    let chosen = consumer.commit_offsets(&BTreeMap::from([(at(0), Offset(9).into())]));
    assert!(matches!(chosen, Err(Error::UnknownTopicOrPartition { .. })), "{chosen:?}");
    drop(consumer);
    let mut next = grouped(&store, "g");
    next.assign(&[("t", 0)]).unwrap();
    assert_eq!(texts(&next.poll(LONG).unwrap()), ["new", "new", "new"]);
}

#[test]
fn cons_13_positions_in_a_deleted_topic_are_not_sent_for_its_successor() {
    let store = store(1);
    append(&store, 0, &["old", "old", "old"]);
    let mut consumer = grouped(&store, "g");
    consumer.assign(&[("t", 0)]).unwrap();
    assert_eq!(consumer.poll(LONG).unwrap().count(), 3);
    store.delete_topic("t").unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    append(&store, 0, &["new", "new", "new"]);
    let mut held = transactional(&store, "id");
    let mut open = held.begin().unwrap();
    open.send_offsets(&consumer.position_map(), &consumer.group_metadata()).unwrap();
    open.commit(LONG).unwrap();
    let mut next = grouped(&store, "g");
    next.assign(&[("t", 0)]).unwrap();
    assert_eq!(texts(&next.poll(LONG).unwrap()), ["new", "new", "new"]);
}

#[test]
fn a_topic_that_is_gone_does_not_keep_a_consumer_from_the_others() {
    let store = store(1);
    store.create_topic("u", TopicConfig::new()).unwrap();
    append(&store, 0, &["a"]);
    let mut consumer = grouped(&store, "g");
    consumer.assign(&[("t", 0), ("u", 0)]).unwrap();
    store.delete_topic("u").unwrap();
    let mut got = Vec::new();
    for _ in 0..4 {
        match consumer.poll(Duration::ZERO) {
            Ok(records) => got.extend(texts(&records)),
            Err(error) => assert!(matches!(error, Error::UnknownTopicOrPartition { .. })),
        }
    }
    assert_eq!(got, ["a"]);
}

#[test]
fn a_consumer_reads_a_topic_that_came_again_once_it_is_assigned_again() {
    let store = store(1);
    append(&store, 0, &["old"]);
    let mut consumer = grouped(&store, "g");
    consumer.assign(&[("t", 0)]).unwrap();
    assert_eq!(consumer.poll(LONG).unwrap().count(), 1);
    store.delete_topic("t").unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    append(&store, 0, &["new"]);
    assert!(consumer.poll(Duration::ZERO).is_err());
    consumer.assign(&[("t", 0)]).unwrap();
    assert_eq!(texts(&consumer.poll(Duration::ZERO).unwrap()), ["new"]);
}

#[test]
fn a_producer_goes_on_with_a_topic_that_was_deleted_and_made_again() {
    let store = store(1);
    for name in [None, Some("named")] {
        let producer = match name {
            None => store.producer().build().unwrap(),
            Some(name) => store.producer().name(name).build().unwrap(),
        };
        let send = || producer.send(Record::to("t").value("x")).and_then(|sent| sent.wait(LONG));
        send().unwrap();
        store.delete_topic("t").unwrap();
        store.create_topic("t", TopicConfig::new()).unwrap();
        let first = send();
        assert!(first.is_ok(), "{name:?}: {first:?}");
        assert_eq!(send().unwrap().offset, Offset(1));
    }
}

#[test]
fn a_transaction_over_a_topic_that_is_deleted_ends_whole_and_the_next_one_goes_on() {
    let store = store(1);
    let mut held = transactional(&store, "id");
    let mut seen = Vec::new();
    for (round, made_again) in [(0, false), (1, true)] {
        let value = round.to_string();
        store.create_topic("u", TopicConfig::new()).unwrap();
        let mut open = held.begin().unwrap();
        open.send(Record::to("u").value(&value)).unwrap();
        open.append("t", 0, &[Record::new(&value)]).unwrap();
        open.append("u", 0, &[Record::new(&value)]).unwrap();
        store.delete_topic("u").unwrap();
        if made_again {
            store.create_topic("u", TopicConfig::new()).unwrap();
        }
        match open.commit(LONG) {
            Ok(()) => seen.push(value),
            Err(error) => assert!(matches!(error, Error::TransactionAborted { .. }), "{error}"),
        }
        assert_eq!(committed(&store, 0), seen);
    }
    let mut open = held.begin().unwrap();
    open.send(Record::to("u").value("last")).unwrap();
    open.send(Record::to("t").value("last")).unwrap();
    open.commit(LONG).unwrap();
    assert_eq!(store.partition("u", 0).unwrap().log_end_offset(), Offset(2), "and its marker");
    assert_eq!(committed(&store, 0).last().unwrap(), "last");
}

#[test]
fn a_record_for_a_partition_that_is_not_there_takes_no_other_record_with_it() {
    let store = store(2);
    let producer = store.producer().linger(LONG).build().unwrap();
    let told = Arc::new(AtomicU64::new(0));
    for partition in [0, 1] {
        let told = Arc::clone(&told);
        let record = Record::to("t").partition(partition).value("x");
        let count = move |outcome: oncelog::Result<_>| {
            outcome.unwrap();
            told.fetch_add(1, Ordering::Relaxed);
        };
        producer.send_with(record, count).unwrap();
    }
    let refused = producer.send(Record::to("t").partition(2).value("x"));
    assert!(matches!(refused, Err(Error::UnknownTopicOrPartition { .. })));
    producer.flush(LONG).unwrap();
    assert_eq!(told.load(Ordering::Relaxed), 2);
    assert_eq!((committed(&store, 0).len(), committed(&store, 1).len()), (1, 1));
}

#[test]
fn what_gathers_for_a_topic_that_is_deleted_is_told_so_once() {
    let store = store(1);
    let producer = store.producer().linger(LONG).build().unwrap();
    let (told, heard) = channel();
    producer
        .send_with(Record::to("t").value("old"), move |outcome| told.send(outcome).unwrap())
        .unwrap();
    store.delete_topic("t").unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    let new = producer.send(Record::to("t").value("new")).unwrap();
    producer.flush(LONG).unwrap();
    new.wait(LONG).unwrap();
    let old = heard.recv_timeout(LONG).unwrap();
    assert!(matches!(old, Err(Error::UnknownTopicOrPartition { .. })), "{old:?}");
    assert!(heard.recv().is_err(), "once");
    assert_eq!(committed(&store, 0), ["new"]);
}

#[test]
fn topics_that_come_from_many_threads_at_once_are_all_read() {
    for _ in 0..20 {
        let store = Store::in_memory(1).unwrap();
        let mut consumer = grouped(&store, "g");
        consumer.subscribe_matching(|_| true).unwrap();
        thread::scope(|scope| {
            for name in ["a", "b", "c", "d"] {
                let store = &store;
                scope.spawn(move || {
                    for _ in 0..5 {
                        store.create_topic(name, TopicConfig::new()).unwrap();
                        store.delete_topic(name).unwrap();
                    }
                    store.create_topic(name, TopicConfig::new()).unwrap();
                });
            }
        });
        consumer.poll(Duration::ZERO).unwrap();
        assert_eq!(consumer.assignment().len(), 4);
    }
}

#[test]
fn a_partition_that_cannot_be_opened_when_it_is_given_is_read_once_it_can_be() {
    let disks = [SimDisk::new(1), SimDisk::new(2)];
    let clock = Clock::manual(Timestamp(1_000_000));
    let open = || {
        let builder = Store::builder().clock(clock.clone());
        disks.iter().fold(builder, |all, disk| all.simulated_disk(disk.clone())).open().unwrap()
    };
    let made = open();
    made.create_topic("t", TopicConfig::new().partitions(2)).unwrap();
    append(&made, 0, &["x"]);
    append(&made, 1, &["x"]);
    made.close(LONG).unwrap();
    let store = open();
    let mut consumer = member(&store, "g");
    store.stop_disk(DiskId(1)).unwrap();
    let mut seen = 0;
    for _ in 0..4 {
        match consumer.poll(Duration::ZERO) {
            Ok(records) => seen += records.count(),
            Err(error) => assert!(matches!(error, Error::MissingDisk { .. }), "{error}"),
        }
    }
    assert_eq!(seen, 1, "that of the other disk");
    store.start_disk(DiskId(1)).unwrap();
    for _ in 0..4 {
        seen += consumer.poll(Duration::ZERO).map_or(0, |records| records.count());
    }
    assert_eq!((seen, consumer.assignment().len()), (2, 2));
}

// Commits.

#[test]
fn a_commit_waits_for_what_was_committed_without_waiting() {
    let (disk, clock) = (SimDisk::new(1), Clock::manual(Timestamp(1_000_000)));
    let store = simulated(&disk, &clock);
    store.create_topic("t", TopicConfig::new()).unwrap();
    append(&store, 0, &["a", "b"]);
    let mut consumer = grouped(&store, "g");
    consumer.assign(&[("t", 0)]).unwrap();
    assert_eq!(consumer.poll(Duration::ZERO).unwrap().count(), 2);
    consumer.commit_async(|_| ()).unwrap();
    consumer.commit().unwrap();
    disk.power_loss();
    drop((consumer, store));
    let store = simulated(&disk, &clock);
    let mut next = grouped(&store, "g");
    next.assign(&[("t", 0)]).unwrap();
    assert_eq!(next.position("t", 0).unwrap(), Offset(2));
}

#[test]
fn a_seek_back_is_what_a_consumer_that_is_dropped_leaves_behind() {
    let store = store(1);
    append(&store, 0, &["a", "b", "c", "d"]);
    let auto = || {
        let builder = store.consumer().group("g").start(StartAt::Earliest);
        let mut consumer = builder.max_poll_records(2).auto_commit(Duration::ZERO).build().unwrap();
        consumer.assign(&[("t", 0)]).unwrap();
        consumer
    };
    let mut first = auto();
    assert_eq!(first.poll(LONG).unwrap().count(), 2);
    assert_eq!(first.poll(LONG).unwrap().count(), 2);
    first.seek("t", 0, Offset(1)).unwrap();
    drop(first);
    assert_eq!(auto().position("t", 0).unwrap(), Offset(1));
}

#[test]
fn grp_45_a_consumer_whose_instance_id_was_taken_over_is_told_so_by_every_poll() {
    let store = store(1);
    let static_member = || {
        let builder = store.consumer().group("g").instance_id("one").start(StartAt::Earliest);
        let mut consumer = builder.build().unwrap();
        consumer.subscribe(&["t"]).unwrap();
        consumer
    };
    let mut old = static_member();
    old.poll(Duration::ZERO).unwrap();
    let mut new = static_member();
    new.poll(Duration::ZERO).unwrap();
    for _ in 0..3 {
        let polled = old.poll(Duration::ZERO);
        assert!(matches!(polled, Err(Error::UnknownMember { .. })), "{polled:?}");
    }
}

/// It took the place back, without being told of it: neither handle read on, until it had not polled for too long.
#[test]
fn grp_45_a_consumer_whose_instance_id_was_taken_over_does_not_take_it_back_by_subscribing_anew() {
    let store = store(2);
    let static_member = || {
        let builder = store.consumer().group("g").instance_id("one").start(StartAt::Earliest);
        let mut consumer = builder.build().unwrap();
        consumer.subscribe(&["t"]).unwrap();
        consumer
    };
    let mut old = static_member();
    old.poll(Duration::ZERO).unwrap();
    let mut new = static_member();
    let _ = old.subscribe(&["t", "u"]);
    append(&store, 1, &["x"]);
    assert_eq!(texts(&new.poll(LONG).unwrap()), ["x"]);
    assert_eq!(new.assignment().len(), 2);
    let polled = old.poll(Duration::ZERO);
    assert!(matches!(polled, Err(Error::UnknownMember { .. })), "{polled:?}");
    new.commit().unwrap();
}

#[test]
fn a_member_that_was_put_out_reads_what_it_subscribes_to_before_it_learns_that() {
    let store = store(1);
    store.create_topic("u", TopicConfig::new()).unwrap();
    let span = Duration::from_millis(20);
    let builder = store.consumer().group("g").start(StartAt::Earliest).max_poll_interval(span);
    let mut consumer = builder.build().unwrap();
    consumer.subscribe(&["t"]).unwrap();
    consumer.poll(Duration::ZERO).unwrap();
    let started = Instant::now();
    while !store.group("g").unwrap().members.is_empty() {
        assert!(started.elapsed() < LONG, "it has not polled for long");
        thread::yield_now();
    }
    consumer.subscribe(&["u"]).unwrap();
    assert_eq!(store.group("g").unwrap().members, [], "a place that nobody fills");
    store.partition("u", 0).unwrap().append(&[Record::new("x")], Acks::All).unwrap();
    let mut got = Vec::new();
    while got.is_empty() && started.elapsed() < LONG {
        got = texts(&consumer.poll(LONG).unwrap());
    }
    assert_eq!(got, ["x"]);
}

#[test]
fn a_pattern_that_panics_matches_nothing_also_if_it_takes_the_place_of_another_subscription() {
    let store = store(1);
    let mut consumer = grouped(&store, "g");
    consumer.subscribe(&["t"]).unwrap();
    consumer.poll(Duration::ZERO).unwrap();
    consumer.subscribe_matching(|topic| topic != "bad" || panic!("a pattern's own")).unwrap();
    store.create_topic("bad", TopicConfig::new()).unwrap();
    store.create_topic("good", TopicConfig::new()).unwrap();
    store.partition("good", 0).unwrap().append(&[Record::new("x")], Acks::All).unwrap();
    assert_eq!(texts(&consumer.poll(LONG).unwrap()), ["x"]);
    assert_eq!(consumer.assignment(), [TopicPartition::new("good", 0), at(0)]);
}

// Calls from within calls.

#[test]
fn a_partitioner_may_use_the_producer_that_asks_it() {
    let store = store(2);
    for name in ["log-0", "log-1", "log-2"] {
        store.create_topic(name, TopicConfig::new()).unwrap();
    }
    let own: Arc<OnceLock<Producer>> = Arc::default();
    let (inner, asked) = (Arc::clone(&own), AtomicU64::new(0));
    let producer = store
        .producer()
        .partitioner(move |record, _count| {
            if record.topic_name() == "t" {
                let producer = inner.get().unwrap();
                let log = format!("log-{}", asked.fetch_add(1, Ordering::Relaxed));
                drop(producer.send(Record::to(&log).value("chosen")).unwrap());
                u32::from(producer.counters().records > 0)
            } else {
                0
            }
        })
        .build()
        .unwrap();
    own.set(producer.clone()).unwrap();
    let (told, heard) = channel();
    thread::spawn(move || {
        for _ in 0..3 {
            producer.send(Record::to("t").value("x")).unwrap().wait(LONG).unwrap();
        }
        told.send(()).unwrap();
    });
    heard.recv_timeout(LONG).unwrap();
}

#[test]
fn a_partitioner_that_panics_or_chooses_what_is_not_there_leaves_the_producer_usable() {
    let store = store(1);
    let calls = AtomicU64::new(0);
    let producer = store
        .producer()
        .partitioner(move |_, _| match calls.fetch_add(1, Ordering::Relaxed) {
            0 => panic!("a partitioner's own"),
            1 => u32::MAX,
            _ => 0,
        })
        .build()
        .unwrap();
    let send = || producer.send(Record::to("t").value("x"));
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(send));
    assert!(matches!(send(), Err(Error::UnknownTopicOrPartition { .. })));
    send().unwrap().wait(LONG).unwrap();
}

// Numbers at their ends.

#[test]
fn numbers_at_their_ends_are_answered_and_do_not_panic() {
    let store = store(1);
    let partition = store.partition("t", 0).unwrap();
    let three = [Record::new("a"), Record::new("b"), Record::new("c")];
    for id in [0, 1, 2, u64::MAX >> 2, u64::MAX] {
        for epoch in [0, u32::MAX] {
            for sequence in [0, u64::MAX - 2, u64::MAX - 1, u64::MAX] {
                for count in 1..=3 {
                    let (id, epoch) = (ProducerId(id), ProducerEpoch(epoch));
                    let given = ProducerSequence { id, epoch, sequence };
                    let _ = partition.append_idempotent(given, &three[..count], Acks::All);
                    let _ = partition.append_idempotent_strict(given, &three[..count], Acks::All);
                }
            }
        }
    }
    let mut consumer = grouped(&store, "g");
    consumer.assign(&[("t", 0)]).unwrap();
    for offset in [0, 1, 1 << 32, u64::MAX >> 1, u64::MAX - 1, u64::MAX] {
        consumer.seek("t", 0, Offset(offset)).unwrap();
        let _ = (consumer.lag().unwrap(), consumer.position("t", 0).unwrap());
        let _ = consumer.commit();
        let _ = consumer.poll(Duration::ZERO);
        let _ = consumer.commit_offsets(&BTreeMap::from([(at(0), Offset(offset).into())]));
        let _ = partition.wait_for(Offset(offset), Duration::ZERO);
        let _ = partition.delete_records(Offset(offset));
        let _ = partition.read(Offset(offset), ReadOptions::new().max_bytes(0));
    }
    for time in [i64::MIN, -1, 0, i64::MAX] {
        consumer.seek_to_time("t", 0, Timestamp(time)).unwrap();
        let record = Record::new("x").timestamp(Timestamp(time));
        let _ = partition.append(&[record], Acks::All);
    }
}

#[test]
fn times_without_an_end_are_waited_for_and_do_not_panic() {
    const EVER: Duration = Duration::MAX;
    let store = store(1);
    let producer = store
        .producer()
        .max_block(EVER)
        .delivery_timeout(EVER)
        .linger(Duration::ZERO)
        .build()
        .unwrap();
    let sent = producer.send(Record::to("t").value("a")).unwrap();
    sent.wait(EVER).unwrap();
    producer.flush(EVER).unwrap();
    let builder = store.consumer().group("g").start(StartAt::Earliest);
    let mut consumer = builder.max_poll_interval(EVER).api_timeout(EVER).build().unwrap();
    consumer.subscribe(&["t"]).unwrap();
    let got = consumer.poll(EVER).unwrap();
    assert_eq!(got.count(), 1);
    consumer.commit().unwrap();
    consumer.committed(&[("t", 0)]).unwrap();
    let mut held = transactional(&store, "id");
    let mut open = held.begin().unwrap();
    open.send(Record::to("t").value("b")).unwrap();
    open.commit(EVER).unwrap();
    let mut open = held.begin().unwrap();
    open.send(Record::to("t").value("c")).unwrap();
    open.abort(EVER).unwrap();
    store.partition("t", 0).unwrap().wait_for(Offset(1), EVER).unwrap();
    consumer.close(EVER).unwrap();
    producer.close(EVER).unwrap();
    store.close(EVER).unwrap();
}

#[test]
fn a_commit_without_time_is_answered_and_settled_by_the_next_begin() {
    let store = store(1);
    let mut held = transactional(&store, "id");
    let mut seen = Vec::new();
    for number in 0..20 {
        let value = number.to_string();
        let mut open = held.begin().unwrap();
        let id = open.id();
        open.send(Record::to("t").value(&value)).unwrap();
        let outcome = open.commit(Duration::ZERO);
        drop(held.begin().unwrap());
        match store.transaction_outcome(id).unwrap() {
            TransactionOutcome::Committed => seen.push(value),
            other => assert!(outcome.is_err(), "{other:?}"),
        }
    }
    assert_eq!(committed(&store, 0), seen);
}

struct Flag(AtomicU64);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_receive_that_is_dropped_half_way_loses_no_record_and_no_wake_up() {
    let store = store(1);
    let mut consumer = member(&store, "g");
    let flag = Arc::new(Flag(AtomicU64::new(0)));
    let waker = Waker::from(Arc::clone(&flag));
    for number in 0..20 {
        {
            let mut dropped = pin!(consumer.recv());
            assert!(dropped.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        }
        let value = number.to_string();
        append(&store, 0, &[&value]);
        let mut received = pin!(consumer.recv());
        let started = Instant::now();
        let records = loop {
            match received.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(records) => break records.unwrap(),
                Poll::Pending => assert!(started.elapsed() < LONG),
            }
        };
        assert_eq!(texts(&records), [value]);
    }
}
