//! A hostile user whose calls meet: topics that go and come again between two steps of a call, closes that meet closes,
//! deliveries that are awaited, kept and abandoned.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use oncelog::simulation::{Clock, Hang, SimDisk};
use oncelog::{
    Acks, Compression, Consumer, Error, Flush, Isolation, Offset, Producer, ProducerEpoch,
    ProducerId, ProducerSequence, ReadOptions, Record, Records, StartAt, Store, Timestamp,
    TopicConfig, Written,
};

use crate::hanging_disk::{Hanging, LONG};

fn store() -> Store {
    let store = Store::in_memory(1).unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    store
}

fn threaded(disks: &[SimDisk], lag_max: Duration) -> Store {
    let builder = Store::builder().replica_lag_max(lag_max).append_timeout(LONG);
    let disks = disks.iter().cloned();
    disks.fold(builder, |builder, disk| builder.simulated_disk(disk)).threads().open().unwrap()
}

fn make_again(store: &Store) {
    store.delete_topic("t").unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
}

fn append(store: &Store, values: &[&str]) {
    let partition = store.partition("t", 0).unwrap();
    for value in values {
        partition.append(&[Record::new(value)], Acks::All).unwrap();
    }
}

fn texts(records: &Records) -> Vec<String> {
    let texts = records.iter().map(|one| String::from_utf8(one.value().unwrap().to_vec()).unwrap());
    texts.collect()
}

fn all(store: &Store) -> Vec<String> {
    let partition = store.partition("t", 0).unwrap();
    let (mut next, mut found) = (partition.log_start_offset(), Vec::new());
    while next < partition.high_watermark() {
        let records = partition.read(next, ReadOptions::new()).unwrap();
        found.extend(texts(&records));
        next = records.next_offset();
    }
    found
}

fn assigned(store: &Store) -> Consumer {
    let mut consumer = store.consumer().group("g").start(StartAt::Earliest).build().unwrap();
    consumer.assign(&[("t", 0)]).unwrap();
    consumer
}

struct Unpark(thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let (mut future, started) = (pin!(future), Instant::now());
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(outcome) => return outcome,
            Poll::Pending => thread::park_timeout(LONG),
        }
        assert!(started.elapsed() < LONG, "it was not woken");
    }
}

/// Runs them at once, and fails if one of them does not end.
fn together(calls: Vec<Box<dyn FnOnce() + Send>>) {
    let (told, ended) = channel();
    let count = calls.len();
    for call in calls {
        let told = told.clone();
        thread::spawn(move || {
            call();
            told.send(()).unwrap();
        });
    }
    drop(told);
    for _ in 0..count {
        ended.recv_timeout(LONG).expect("a call that does not end, or panicked");
    }
}

// Topics that go and come again in the middle of a call.

/// The lane that was being made for the old topic led into the new one and counted from 0, as did the next one: the log
/// took the second record for the first, and it was acknowledged and lost.
#[test]
fn a_topic_that_is_made_again_while_a_partition_is_chosen_loses_no_record() {
    let store = store();
    let (asked, copy) = (AtomicU64::new(0), Mutex::new(Some(store.clone())));
    let producer = store
        .producer()
        .partitioner(move |_, _| {
            if asked.fetch_add(1, Ordering::Relaxed) == 0 {
                make_again(&copy.lock().unwrap().take().unwrap());
            }
            0
        })
        .build()
        .unwrap();
    for value in ["a", "b", "c"] {
        producer.send(Record::to("t").value(value)).unwrap().wait(LONG).unwrap();
    }
    assert_eq!(all(&store), ["a", "b", "c"]);
}

/// A partitioner that has the topic made anew each time is answered, if only with an error.
#[test]
fn a_topic_that_is_made_again_each_time_is_not_looked_up_for_ever() {
    let store = store();
    let (copy, topics) = (Mutex::new(Some(store.clone())), AtomicU64::new(0));
    let producer = store
        .producer()
        .partitioner(move |_, _| {
            let store = copy.lock().unwrap();
            make_again(store.as_ref().unwrap());
            topics.fetch_add(1, Ordering::Relaxed);
            0
        })
        .build()
        .unwrap();
    let sent = producer.send(Record::to("t").value("a"));
    assert!(matches!(sent, Err(Error::UnknownTopicOrPartition { .. })), "{sent:?}");
    assert!(all(&store).is_empty());
    store.close(LONG).unwrap();
}

#[test]
fn what_is_acknowledged_by_a_topic_that_comes_again_and_again_is_there() {
    let store = store();
    let (made, ends) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let producer = store.producer().build().unwrap();
    let kept: Arc<Mutex<Vec<(u64, Offset, String)>>> = Arc::default();
    let mut calls: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
    for sender in 0..2 {
        let (producer, made, ends) = (producer.clone(), Arc::clone(&made), Arc::clone(&ends));
        let kept = Arc::clone(&kept);
        calls.push(Box::new(move || {
            for number in 0.. {
                if ends.load(Ordering::Acquire) && number > 100 {
                    break;
                }
                let before = made.load(Ordering::Acquire);
                let value = format!("{sender}-{number}");
                let sent = producer.send(Record::to("t").value(&value));
                if let Ok(placed) = sent.and_then(|sent| sent.wait(LONG))
                    && before == made.load(Ordering::Acquire)
                {
                    kept.lock().unwrap().push((before, placed.offset, value));
                }
            }
        }));
    }
    let (remaker, made_again, ended) = (store.clone(), Arc::clone(&made), Arc::clone(&ends));
    calls.push(Box::new(move || {
        for _ in 0..100 {
            made_again.fetch_add(1, Ordering::AcqRel);
            make_again(&remaker);
            made_again.fetch_add(1, Ordering::AcqRel);
            thread::yield_now();
        }
        ended.store(true, Ordering::Release);
    }));
    together(calls);
    let (found, last) = (all(&store), made.load(Ordering::Acquire));
    for (_, offset, value) in kept.lock().unwrap().iter().filter(|(when, ..)| *when == last) {
        assert_eq!(found[usize::try_from(offset.0).unwrap()], *value);
    }
    assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), found.len(), "once each");
}

/// The one held the metadata and waited for the partition, the other the partition and waited for the metadata.
#[test]
fn partitions_are_opened_while_their_topic_is_deleted() {
    let store = Store::in_memory(1).unwrap();
    let mut calls: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
    let ends = Arc::new(AtomicBool::new(false));
    let (maker, ended) = (store.clone(), Arc::clone(&ends));
    calls.push(Box::new(move || {
        for _ in 0..300 {
            maker.create_topic("t", TopicConfig::new().partitions(4)).unwrap();
            thread::yield_now();
            maker.delete_topic("t").unwrap();
        }
        ended.store(true, Ordering::Release);
    }));
    let (opener, ended) = (store.clone(), Arc::clone(&ends));
    calls.push(Box::new(move || {
        while !ended.load(Ordering::Acquire) {
            for number in 0..4 {
                let opened = opener.partition("t", number);
                let appended =
                    opened.and_then(|opened| opened.append(&[Record::new("x")], Acks::All));
                if let Err(error) = appended {
                    assert!(matches!(error, Error::UnknownTopicOrPartition { .. }), "{error:?}");
                }
            }
        }
    }));
    together(calls);
}

#[test]
fn of_many_who_change_or_delete_a_topic_each_is_told_what_became_of_it() {
    let store = Store::in_memory(1).unwrap();
    for _ in 0..100 {
        store.create_topic("t", TopicConfig::new()).unwrap();
        append(&store, &["a"]);
        let deleted = Arc::new(AtomicU64::new(0));
        let mut calls: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
        for which in 0..4 {
            let (store, deleted) = (store.clone(), Arc::clone(&deleted));
            calls.push(Box::new(move || {
                let outcome = match which {
                    0 | 1 => store.delete_topic("t").inspect(|()| {
                        deleted.fetch_add(1, Ordering::Relaxed);
                    }),
                    2 => store.add_partitions("t", 2),
                    _ => store
                        .partition("t", 0)
                        .and_then(|partition| partition.delete_records(Offset(1)))
                        .map(drop),
                };
                if let Err(error) = outcome {
                    assert!(matches!(error, Error::UnknownTopicOrPartition { .. }), "{error:?}");
                }
            }));
        }
        together(calls);
        assert_eq!(deleted.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn cons_13_positions_that_were_taken_before_a_topic_was_made_again_are_not_sent_for_it() {
    let store = store();
    append(&store, &["old", "old", "old"]);
    let mut consumer = assigned(&store);
    assert_eq!(consumer.poll(LONG).unwrap().count(), 3);
    let (positions, group) = (consumer.position_map(), consumer.group_metadata());
    make_again(&store);
    append(&store, &["new", "new", "new"]);
    let mut held = store.producer().transactional_id("id").build().unwrap();
    let mut open = held.begin().unwrap();
    open.send_offsets(&positions, &group).unwrap();
    open.send_offsets(&positions, &consumer.group_metadata()).unwrap();
    open.commit(LONG).unwrap();
    let chosen = consumer.commit_offsets(&positions);
    assert!(matches!(chosen, Err(Error::UnknownTopicOrPartition { .. })), "{chosen:?}");
    assert_eq!(texts(&assigned(&store).poll(LONG).unwrap()), ["new", "new", "new"]);
}

// Deliveries.

#[test]
fn a_delivery_that_is_kept_keeps_nobody_from_the_directory() {
    let (disk, clock) = (SimDisk::new(1), Clock::manual(Timestamp(1_000_000)));
    let open =
        || Store::builder().clock(clock.clone()).simulated_disk(disk.clone()).open().unwrap();
    let mut kept = Vec::new();
    for round in 0..3 {
        let store = open();
        if round == 0 {
            store.create_topic("t", TopicConfig::new()).unwrap();
        }
        for producer in [store.producer(), store.producer().name("named")] {
            let producer = producer.build().unwrap();
            kept.push(producer.send(Record::to("t").value("x")).unwrap());
            kept.push(producer.send(Record::to("t").value("y")).unwrap());
        }
    }
    for (number, delivery) in kept.iter().enumerate() {
        let placed = delivery.outcome().unwrap().unwrap();
        assert_eq!(placed.offset.0, number as u64);
    }
}

/// A batch that was in the log, was refused when it came again, and was then said not to be written.
#[test]
fn whoever_is_told_of_a_failure_is_told_that_the_record_is_in_the_log() {
    let disks = [SimDisk::new(1), SimDisk::new(2)];
    let store = threaded(&disks, Duration::from_millis(300));
    let config = TopicConfig::new().replication_factor(2).min_insync_replicas(2);
    store.create_topic("t", config).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let producer = store.producer().retries(2).build().unwrap();
    let failed = loop {
        if partition.append(&[Record::new("first")], Acks::All).is_err() {
            continue; // on a machine so busy that a follower is late
        }
        let end = partition.log_end_offset();
        let follower = usize::from(partition.leader().unwrap().0 == 0);
        let hanging = Hanging::new(&disks[follower], Hang::Syncs);
        let failed =
            producer.send(Record::to("t").value("second")).unwrap().wait(LONG).unwrap_err();
        hanging.heal();
        if partition.log_end_offset() > end {
            break failed;
        }
    };
    assert_eq!(failed.written(), Written::Yes, "{failed:?}");
    let _ = store.close(LONG);
}

// Closes that meet.

#[test]
fn a_close_that_meets_another_waits_for_it_within_its_time() {
    let disk = SimDisk::new(1);
    let store = threaded(std::slice::from_ref(&disk), LONG);
    store.create_topic("t", TopicConfig::new()).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let _sent = partition.append_nowait(&[Record::new("x")], Acks::All).unwrap();
    let hanging = Hanging::new(&disk, Hang::Everything);
    let short = Duration::from_millis(50);
    let first = store.close(short);
    assert!(matches!(first, Err(Error::TimedOut { .. })), "{first:?}");
    let second = store.close(short);
    assert!(matches!(second, Err(Error::TimedOut { .. })), "{second:?}");
    hanging.heal();
    store.close(LONG).unwrap();
    drop(partition);
    drop(store);
    let store = threaded(&[disk], LONG);
    assert_eq!(all(&store), ["x"]);
}

#[test]
fn a_close_in_a_callback_or_a_waker_waits_for_no_close() {
    let store = store();
    let producer = store.producer().linger(Duration::from_millis(5)).build().unwrap();
    let (told, heard) = channel();
    let copy = Mutex::new(store.clone());
    let close = move |_| {
        let closing = copy.lock().unwrap();
        // The other close waits for the thread that runs this.
        thread::sleep(Duration::from_millis(50));
        told.send(closing.close(LONG).is_ok()).unwrap();
    };
    producer.send_with(Record::to("t").value("x"), close).unwrap();
    thread::sleep(Duration::from_millis(20));
    store.close(LONG).unwrap();
    assert!(heard.recv_timeout(LONG).unwrap());
}

#[test]
fn an_atomic_append_of_one_batch_ends_in_its_time() {
    let disk = SimDisk::new(1);
    let store = threaded(std::slice::from_ref(&disk), LONG);
    store.create_topic("t", TopicConfig::new()).unwrap();
    append(&store, &["first"]);
    let partition = store.partition("t", 0).unwrap();
    let hanging = Hanging::new(&disk, Hang::Syncs);
    // Whoever leads the flush is held by the disk.
    let copy = partition.clone();
    let leader = thread::spawn(move || copy.append(&[Record::new("second")], Acks::All));
    while disk.held_calls() == 0 {
        thread::yield_now();
    }
    let span = Duration::from_millis(50);
    let late = store.append_atomic(&[("t", 0, &[Record::new("third")])], span);
    assert!(matches!(late, Err(Error::TimedOut { .. })), "{late:?}");
    hanging.heal();
    leader.join().unwrap().unwrap();
}

/// It was refused at once, for a marker that the next leader was about to take.
#[test]
fn a_snapshot_waits_for_a_commit_whose_partitions_are_back_in_its_time() {
    let disks = [SimDisk::new(1), SimDisk::new(2), SimDisk::new(3)];
    let store = threaded(&disks, LONG);
    let config = TopicConfig::new().replication_factor(2).min_insync_replicas(2);
    store.create_topic("t", config).unwrap();
    let away = store.partition("t", 0).unwrap().replicas()[1];
    let mut held = store.producer().transactional_id("id").build().unwrap();
    let mut transaction = held.begin().unwrap();
    transaction.append("t", 0, &[Record::new("x")]).unwrap();
    let partition = store.partition("t", 0).unwrap();
    partition.append(&[Record::new("plain")], Acks::All).unwrap();
    store.stop_disk(away).unwrap();
    transaction.commit(Duration::from_millis(50)).unwrap_err();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(300));
            store.start_disk(away).unwrap();
        });
        let snapshot = store.snapshot(&[("t", 0)]).unwrap();
        let read = snapshot.read("t", 0, Offset(0), ReadOptions::new()).unwrap();
        assert_eq!(texts(&read), ["x", "plain"]);
    });
}

/// It was offered again for two minutes, whatever the caller had said.
#[test]
fn an_atomic_append_of_several_batches_ends_in_its_time() {
    let disks = [SimDisk::new(1), SimDisk::new(2)];
    let store = threaded(&disks, LONG);
    let config = TopicConfig::new().partitions(2).replication_factor(2).min_insync_replicas(2);
    store.create_topic("t", config).unwrap();
    append(&store, &["first"]);
    let away = store.partition("t", 0).unwrap().replicas()[1];
    store.stop_disk(away).unwrap();
    let records = [Record::new("x")];
    let begun = Instant::now();
    let span = Duration::from_millis(50);
    let refused = store.append_atomic(&[("t", 0, &records), ("t", 1, &records)], span);
    assert!(matches!(refused, Err(Error::NotEnoughReplicas { .. })), "{refused:?}");
    assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());
}

/// The worker that was to come back after such a span was no more.
#[test]
fn spans_without_an_end_stop_no_worker() {
    const EVER: Duration = Duration::MAX;
    let builder = Store::builder().retention_check_interval(EVER).replica_lag_max(EVER);
    let builder = builder.offsets_retention(EVER).simulated_disk(SimDisk::new(1));
    let store = builder.simulated_disk(SimDisk::new(2)).threads().open().unwrap();
    let config = TopicConfig::new().replication_factor(2).segment_age(EVER);
    store.create_topic("slow", config.clone().flush(Flush::Interval(EVER))).unwrap();
    store.create_topic("t", config).unwrap();
    let (slow, t) = (store.partition("slow", 0).unwrap(), store.partition("t", 0).unwrap());
    for _ in 0..20 {
        slow.append(&[Record::new("x")], Acks::All).unwrap();
        block_on(t.append_nowait(&[Record::new("x")], Acks::All).unwrap()).unwrap();
        thread::sleep(Duration::from_millis(5));
    }
    store.close(LONG).unwrap();
}

// Much at once.

#[test]
fn callbacks_that_send_are_each_called_once_and_may_close_the_producer() {
    for linger in [Duration::ZERO, Duration::from_millis(1)] {
        let store = store();
        let producer = store.producer().linger(linger).build().unwrap();
        let (told, heard) = channel();
        fn chain(producer: &Producer, left: u32, told: std::sync::mpsc::Sender<u64>) {
            let (next, value) = (producer.clone(), left.to_string());
            let then = move |outcome: oncelog::Result<oncelog::RecordMetadata>| {
                told.send(outcome.unwrap().offset.0).unwrap();
                if left > 0 {
                    chain(&next, left - 1, told);
                } else {
                    next.close(LONG).unwrap();
                    assert!(matches!(next.send(Record::to("t").value("x")), Err(Error::Closed)));
                }
            };
            producer.send_with(Record::to("t").value(&value), then).unwrap();
        }
        chain(&producer, 300, told);
        drop(producer);
        let offsets: Vec<_> = (0..=300).map(|_| heard.recv_timeout(LONG).unwrap()).collect();
        assert_eq!(offsets, (0..=300).collect::<Vec<_>>());
        assert!(heard.recv_timeout(LONG).is_err());
    }
}

#[test]
fn holders_of_an_id_that_take_over_from_each_other_commit_whole_transactions() {
    let store = Store::in_memory(1).unwrap();
    store.create_topic("t", TopicConfig::new().partitions(2)).unwrap();
    let told: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let mut calls: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
    for holder in 0..3 {
        let (store, told) = (store.clone(), Arc::clone(&told));
        calls.push(Box::new(move || {
            let mut number = 0;
            for _ in 0..15 {
                let Ok(mut held) = store.producer().transactional_id("id").build() else {
                    continue;
                };
                for round in 0..8 {
                    number += 1;
                    let value = format!("{holder}-{number}");
                    let Ok(mut open) = held.begin() else { break };
                    let sent = (0..2).try_for_each(|partition| {
                        open.append("t", partition, &[Record::new(&value)]).map(drop)
                    });
                    let outcome = match (sent, round % 4) {
                        (Err(_), _) | (_, 2) => continue,
                        (Ok(()), 3) => open.abort(LONG),
                        (Ok(()), _) => open.commit(LONG).map(|()| {
                            told.lock().unwrap().insert(value);
                        }),
                    };
                    if outcome.is_err() {
                        break;
                    }
                }
            }
        }));
    }
    together(calls);
    drop(store.producer().transactional_id("id").build().unwrap());
    let seen = [0, 1].map(|number| {
        let partition = store.partition("t", number).unwrap();
        let options = ReadOptions::new().isolation(Isolation::ReadCommitted);
        assert_eq!(partition.last_stable_offset(), partition.log_end_offset());
        let records = partition.read(Offset(0), options.max_bytes(1 << 24)).unwrap();
        texts(&records).into_iter().collect::<BTreeSet<_>>()
    });
    assert_eq!(seen[0], seen[1], "whole");
    assert!(told.lock().unwrap().is_subset(&seen[0]), "what was told is there");
}

#[test]
fn members_that_come_and_go_under_load_leave_no_record_out() {
    const RECORDS: u32 = 3000;
    let store = Store::in_memory(1).unwrap();
    store.create_topic("t", TopicConfig::new().partitions(3).flush(Flush::Os)).unwrap();
    let seen: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let mut calls: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
    let sender = store.clone();
    calls.push(Box::new(move || {
        let producer = sender.producer().build().unwrap();
        for number in 0..RECORDS {
            let value = number.to_string();
            drop(producer.send(Record::to("t").key(&value).value(&value)).unwrap());
        }
        producer.close(LONG).unwrap();
    }));
    for member in 0..3_u32 {
        let (store, seen) = (store.clone(), Arc::clone(&seen));
        calls.push(Box::new(move || {
            let mut life = 0;
            while seen.lock().unwrap().len() < RECORDS as usize {
                life += 1;
                let builder = store.consumer().group("g").start(StartAt::Earliest);
                let mut consumer = builder.max_poll_records(50).build().unwrap();
                consumer.subscribe(&["t"]).unwrap();
                for round in 0..10 + 7 * member + life % 5 {
                    let Ok(records) = consumer.poll(Duration::from_millis(2)) else { break };
                    // One that goes without a commit leaves them to the next.
                    if round % 9 == 8 {
                        break;
                    }
                    let texts = texts(&records);
                    if let Some(name) = consumer.assignment().first().cloned() {
                        let named = [(name.topic(), name.partition())];
                        consumer.pause(&named).unwrap();
                        consumer.resume(&named).unwrap();
                    }
                    if consumer.commit().is_ok() {
                        seen.lock().unwrap().extend(texts);
                    }
                }
            }
        }));
    }
    together(calls);
    assert_eq!(seen.lock().unwrap().len(), RECORDS as usize);
}

#[test]
fn aborted_records_stay_hidden_across_segments_deletion_and_the_next_opening() {
    let (disk, clock) = (SimDisk::new(3), Clock::manual(Timestamp(1_000_000)));
    let open =
        || Store::builder().clock(clock.clone()).simulated_disk(disk.clone()).open().unwrap();
    let mut expected: Vec<(Offset, String)> = Vec::new();
    let mut number = 0_u32;
    for round in 0..6 {
        let store = open();
        if round == 0 {
            let config = TopicConfig::new().segment_bytes(4096).flush(Flush::Os);
            store.create_topic("t", config).unwrap();
        }
        let partition = store.partition("t", 0).unwrap();
        let mut holders =
            ["a", "b"].map(|id| store.producer().transactional_id(id).build().unwrap());
        let [one, other] = &mut holders;
        for step in 0..40_u32 {
            let (mut first, mut second) = (one.begin().unwrap(), other.begin().unwrap());
            let mut sent = [Vec::new(), Vec::new()];
            for _ in 0..3 {
                for (open, sent) in [&mut first, &mut second].into_iter().zip(&mut sent) {
                    number += 1;
                    let value = format!("{number:040}");
                    let at = open.append("t", 0, &[Record::new(&value)]).unwrap().start;
                    sent.push((at, value));
                }
            }
            let [kept, other_kept] = sent;
            if step % 3 == 0 { first.abort(LONG) } else { first.commit(LONG) }.unwrap();
            if step % 4 == 1 { second.abort(LONG) } else { second.commit(LONG) }.unwrap();
            let kept = (step % 3 != 0).then_some(kept).into_iter().flatten();
            let other_kept = (step % 4 != 1).then_some(other_kept).into_iter().flatten();
            expected.extend(kept.chain(other_kept));
        }
        store.run_background();
        let start = Offset(partition.log_end_offset().0 / 3 + u64::from(round % 2 == 1));
        partition.delete_records(start).unwrap();
        expected.sort();
        expected.retain(|(at, _)| *at >= start);
        for bytes in [64, 5000, 1 << 20] {
            let (mut next, mut found) = (partition.log_start_offset(), Vec::new());
            while next < partition.last_stable_offset() {
                let options = ReadOptions::new().isolation(Isolation::ReadCommitted);
                let records = partition.read(next, options.max_bytes(bytes)).unwrap();
                for record in &records {
                    let value = String::from_utf8(record.value().unwrap().to_vec()).unwrap();
                    found.push((record.offset(), value));
                }
                assert!(records.next_offset() > next);
                next = records.next_offset();
            }
            assert_eq!(found, expected, "round {round}");
        }
        if round % 2 == 1 {
            disk.process_restart();
        }
    }
}

#[test]
fn snapshots_under_load_show_each_transaction_whole() {
    let store = Store::in_memory(1).unwrap();
    store.create_topic("t", TopicConfig::new().partitions(2).flush(Flush::Os)).unwrap();
    let ends = Arc::new(AtomicBool::new(false));
    let mut calls: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
    for writer in 0..2 {
        let (store, ends) = (store.clone(), Arc::clone(&ends));
        calls.push(Box::new(move || {
            let id = format!("id-{writer}");
            let mut held = store.producer().transactional_id(&id).build().unwrap();
            for number in 0..400 {
                let value = format!("{writer}-{number}");
                let mut open = held.begin().unwrap();
                open.append("t", 0, &[Record::new(&value)]).unwrap();
                open.append("t", 1, &[Record::new(&value)]).unwrap();
                if number % 3 == 0 { open.abort(LONG) } else { open.commit(LONG) }.unwrap();
            }
            ends.store(true, Ordering::Release);
        }));
    }
    calls.push(Box::new(move || {
        while !ends.load(Ordering::Acquire) {
            let snapshot = store.snapshot(&[("t", 0), ("t", 1)]).unwrap();
            let seen = [0, 1].map(|number| {
                let options = ReadOptions::new().max_bytes(1 << 24);
                let records = snapshot.read("t", number, Offset(0), options).unwrap();
                texts(&records).into_iter().collect::<BTreeSet<_>>()
            });
            assert_eq!(seen[0], seen[1]);
        }
    }));
    together(calls);
}

#[test]
fn batches_of_a_hundred_thousand_and_records_of_the_largest_size_come_back_as_they_were() {
    for codec in [Compression::None, Compression::Lz4, Compression::Zstd, Compression::Snappy] {
        let store = Store::in_memory(1).unwrap();
        store.create_topic("t", TopicConfig::new().compression(codec)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        let values: Vec<_> = (0..100_000_u32).map(|number| number.to_string()).collect();
        let records: Vec<_> = values.iter().map(Record::new).collect();
        partition.append(&records, Acks::All).unwrap();
        let author =
            |sequence| ProducerSequence { id: ProducerId(7), epoch: ProducerEpoch(0), sequence };
        let again = |sequence| partition.append_idempotent(author(sequence), &records, Acks::All);
        assert!(!again(0).unwrap().duplicate && again(0).unwrap().duplicate);
        assert!(!again(100_000).unwrap().duplicate && again(100_000).unwrap().duplicate);
        assert_eq!(all(&store).len(), 300_000);
        assert_eq!(all(&store)[200_000..], values[..]);
        // The limit counts before compression.
        let mut fits = 0;
        for bytes in ((8 << 20) - 160..(8 << 20) + 8).step_by(7) {
            let value = vec![b'x'; bytes];
            match partition.append(&[Record::new(&value)], Acks::All) {
                Ok(placed) => {
                    let options = ReadOptions::new().max_bytes(1);
                    let back = partition.read(placed.offsets.start, options).unwrap();
                    assert_eq!(back.iter().next().unwrap().value(), Some(&value[..]));
                    fits = bytes;
                }
                Err(error) => {
                    assert!(matches!(error, Error::RecordTooLarge { .. }), "{error:?}");
                    assert!(bytes > fits);
                }
            }
        }
        assert!(fits > 0, "{codec:?}");
    }
}

/// Nobody did the store's chores any more, and such a future was not woken.
#[test]
fn a_delivery_that_is_awaited_after_the_store_was_closed_is_told_how_it_ended() {
    let (disk, clock) = (SimDisk::new(1), Clock::manual(Timestamp(1_000_000)));
    let simulated = Store::builder().clock(clock).simulated_disk(disk).open().unwrap();
    for store in [Store::in_memory(1).unwrap(), simulated] {
        store.create_topic("t", TopicConfig::new()).unwrap();
        let prompt = store.producer().build().unwrap();
        let lingers = store.producer().linger(LONG).build().unwrap();
        let placed = prompt.send(Record::to("t").value("a")).unwrap();
        let gathered = lingers.send(Record::to("t").value("b")).unwrap();
        let polled = lingers.send(Record::to("t").value("c")).unwrap();
        let (told, heard) = channel();
        lingers
            .send_with(Record::to("t").value("d"), move |outcome| told.send(outcome).unwrap())
            .unwrap();
        let mut polled = pin!(polled);
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        assert!(polled.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        store.close(LONG).unwrap();
        assert_eq!(block_on(placed).unwrap().offset, Offset(0));
        for failed in [block_on(gathered), block_on(polled), heard.recv_timeout(LONG).unwrap()] {
            let failed = failed.unwrap_err();
            assert!(matches!(failed, Error::Closed), "{failed:?}");
            assert_eq!(failed.written(), Written::No);
        }
    }
}

/// Whoever opens a partition waits for the metadata; those who hold them must not wait for him, nor for somebody who does.
#[test]
fn partitions_are_opened_while_topics_and_disks_are_added() {
    let store = Store::in_memory(2).unwrap();
    let opened = Arc::new(AtomicU64::new(0));
    let mut calls: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
    let maker = store.clone();
    calls.push(Box::new(move || {
        for number in 0..60 {
            maker.create_topic(&format!("t{number}"), TopicConfig::new().partitions(8)).unwrap();
        }
    }));
    let (opener, counted) = (store.clone(), Arc::clone(&opened));
    calls.push(Box::new(move || {
        for number in 0..60 {
            let name = format!("t{number}");
            for partition in 0..8 {
                while opener.partition(&name, partition).is_err() {
                    thread::yield_now();
                }
                counted.fetch_add(1, Ordering::Release);
            }
        }
    }));
    let (looker, counted) = (store.clone(), Arc::clone(&opened));
    calls.push(Box::new(move || {
        while counted.load(Ordering::Acquire) < 480 {
            // Asks for all partitions that are in use.
            let _ = looker.disks();
            looker.run_background();
        }
    }));
    calls.push(Box::new(move || {
        for seed in 0..20 {
            store.add_simulated_disk(SimDisk::new(seed)).unwrap();
        }
    }));
    together(calls);
}
