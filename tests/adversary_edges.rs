//! Producers at the edges: sizes and times at their limits, settings that change beneath them, callbacks that wait,
//! clocks that jump.
#![cfg(feature = "simulation")]
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use oncelog::simulation::{Clock, SimDisk};
use oncelog::{
    Acks, Compression, Error, Flush, Isolation, Offset, Partition, Producer, ReadOptions, Record,
    Store, Timestamp, TimestampType, TopicConfig, TopicUpdate, Written,
};

use random::Random;

#[path = "common/random.rs"]
mod random;

const LONG: Duration = Duration::from_secs(30);

const CODECS: [Compression; 4] =
    [Compression::None, Compression::Lz4, Compression::Zstd, Compression::Snappy];

/// What does not pack.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed);
    (0..len).map(|_| u8::try_from(random.below(256)).unwrap()).collect()
}

fn committed(partition: &Partition) -> Vec<Vec<u8>> {
    let options = || ReadOptions::new().isolation(Isolation::ReadCommitted);
    let (mut next, mut values) = (partition.log_start_offset(), Vec::new());
    while next < partition.last_stable_offset() {
        let records = partition.read(next, options()).unwrap();
        values.extend(records.iter().map(|record| record.value().unwrap_or_default().to_vec()));
        next = records.next_offset();
    }
    values
}

/// The thread that drove a lane ran a callback meanwhile, and nobody could drive for it.
#[test]
fn a_callback_may_wait_for_its_own_lane_while_its_thread_drives_it() {
    for round in 0..300_u64 {
        let store = Store::in_memory(1).unwrap();
        let flush = if round % 2 == 0 { Flush::OnAck } else { Flush::Os };
        store.create_topic("t", TopicConfig::new().flush(flush)).unwrap();
        let producer = store.producer().build().unwrap();
        let (told, heard) = channel();
        let mut last = None;
        for nth in 0..3 {
            let (again, told) = (producer.clone(), told.clone());
            producer
                .send_with(Record::to("t").value("a"), move |_| {
                    let sent = again.send(Record::to("t").value("c")).unwrap();
                    told.send((nth, sent.wait(Duration::from_secs(3)).map(drop))).unwrap();
                })
                .unwrap();
            last = Some(producer.send(Record::to("t").value("b")).unwrap());
        }
        if round % 3 == 0 {
            producer.flush(LONG).unwrap();
        } else {
            last.unwrap().wait(LONG).unwrap();
        }
        for _ in 0..3 {
            let (nth, outcome) = heard.recv_timeout(LONG).unwrap();
            assert!(outcome.is_ok(), "round {round}, callback {nth}: {outcome:?}");
        }
    }
}

/// As above, of a callback of another append, which the flush acknowledges that the thread leads for the lane.
#[test]
fn a_tickets_callback_may_wait_for_a_lane_that_its_thread_drives() {
    let store = Store::in_memory(1).unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let producer = store.producer().build().unwrap();
    for round in 0..100 {
        let (told, heard) = channel();
        let again = producer.clone();
        let ticket = partition.append_nowait(&[Record::new("a")], Acks::All).unwrap();
        let sent = producer.send(Record::to("t").value("b")).unwrap();
        ticket.on_complete(move |_| {
            let sent = again.send(Record::to("t").value("c")).unwrap();
            told.send(sent.wait(Duration::from_secs(3)).map(drop)).unwrap();
        });
        sent.wait(LONG).unwrap();
        let outcome = heard.recv_timeout(LONG).unwrap();
        assert!(outcome.is_ok(), "round {round}: {outcome:?}");
    }
}

/// As above, of a reader's waker, which the append itself wakes.
#[test]
fn a_waker_may_wait_for_a_lane_to_which_its_thread_appends() {
    struct Sends(Producer, Mutex<Sender<Result<(), Error>>>);
    impl Wake for Sends {
        fn wake(self: Arc<Self>) {
            let sent = self.0.send(Record::to("t").value("c")).unwrap();
            self.1.lock().unwrap().send(sent.wait(Duration::from_secs(3)).map(drop)).unwrap();
        }
    }
    for name in [None, Some("n")] {
        let store = Store::in_memory(1).unwrap();
        store.create_topic("t", TopicConfig::new().flush(Flush::Os)).unwrap();
        let builder = store.producer();
        let builder = name.map_or_else(|| store.producer(), |name| builder.name(name));
        let producer = builder.build().unwrap();
        let mut consumer = store.consumer().start(oncelog::StartAt::Latest).build().unwrap();
        consumer.assign(&[("t", 0)]).unwrap();
        let (told, heard) = channel();
        let waker = Waker::from(Arc::new(Sends(producer.clone(), Mutex::new(told))));
        let mut recv = consumer.recv();
        assert!(Pin::new(&mut recv).poll(&mut Context::from_waker(&waker)).is_pending());
        producer.send(Record::to("t").value("b")).unwrap().wait(LONG).unwrap();
        let outcome = heard.recv_timeout(LONG).unwrap();
        assert!(outcome.is_ok(), "{name:?}: {outcome:?}");
    }
}

/// The answer went by what the topic was when it was asked for, and not when the record was appended.
#[test]
fn log_15_a_delivery_tells_the_time_that_is_in_the_log_though_the_topic_changes_who_stamps() {
    for first in [TimestampType::CreateTime, TimestampType::AppendTime] {
        let store = Store::in_memory(1).unwrap();
        store.create_topic("t", TopicConfig::new().timestamp_type(first)).unwrap();
        let producer = store.producer().linger(LONG).build().unwrap();
        let record = Record::to("t").value("v").timestamp(Timestamp(5));
        let sent = producer.send(record).unwrap();
        producer.flush(LONG).unwrap();
        let other = match first {
            TimestampType::CreateTime => TimestampType::AppendTime,
            TimestampType::AppendTime => TimestampType::CreateTime,
        };
        store.alter_topic("t", TopicUpdate::new().timestamp_type(other)).unwrap();
        let told = sent.wait(LONG).unwrap().timestamp;
        let read = store.partition("t", 0).unwrap().read(Offset(0), ReadOptions::new()).unwrap();
        assert_eq!(told, read.iter().next().unwrap().timestamp(), "{first:?}");
    }
}

/// Its transactions were aborted for ever: what it gathered went by the limit that it had seen first.
#[test]
fn cli_11_a_transaction_gathers_no_more_than_a_limit_that_was_lowered() {
    let store = Store::in_memory(1).unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    let mut producer = store.producer().transactional_id("id").build().unwrap();
    let mut sent = 0;
    for limit in [1 << 20, 4096, 1 << 20] {
        store.alter_topic("t", TopicUpdate::new().max_batch_bytes(limit)).unwrap();
        let mut transaction = producer.begin().unwrap();
        for _ in 0..100 {
            transaction.send(Record::to("t").value(&[b'x'; 1000])).unwrap();
        }
        transaction.commit(LONG).unwrap();
        sent += 100;
        assert_eq!(committed(&store.partition("t", 0).unwrap()).len(), sent, "{limit}");
    }
    // Amid one.
    let mut transaction = producer.begin().unwrap();
    for nth in 0..100 {
        if nth == 30 {
            store.alter_topic("t", TopicUpdate::new().max_batch_bytes(4096)).unwrap();
        }
        transaction.send(Record::to("t").value(&[b'x'; 1000])).unwrap();
    }
    transaction.commit(LONG).unwrap();
    assert_eq!(committed(&store.partition("t", 0).unwrap()).len(), sent + 100);
}

/// A codec makes it a little larger, which was over the limit: every such transaction was aborted.
#[test]
fn log_01_what_does_not_pack_is_taken_up_to_the_limit_all_the_same() {
    let mut limits = Vec::new();
    for codec in CODECS {
        let store = Store::in_memory(1).unwrap();
        store.create_topic("t", TopicConfig::new().max_batch_bytes(65_536)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        let builder = || store.producer().compression(codec);
        let mut producer = builder().transactional_id("id").build().unwrap();
        let mut sent = 0;
        for len in (32_600..32_800).step_by(8) {
            let values = [noise(1, len), noise(2, len)];
            let mut transaction = producer.begin().unwrap();
            for value in &values {
                transaction.send(Record::to("t").value(value)).unwrap();
            }
            transaction.commit(LONG).unwrap_or_else(|error| panic!("{codec:?} {len}: {error}"));
            sent += 2;
        }
        let producer = builder().build().unwrap();
        let mut largest = 0;
        for len in 65_300..65_536 {
            let value = noise(3, len);
            match producer.send(Record::to("t").value(&value)).map(|sent| sent.wait(LONG)) {
                Ok(outcome) => {
                    outcome.unwrap_or_else(|error| panic!("{codec:?} {len}: {error}"));
                    largest = len;
                    sent += 1;
                }
                Err(error) => assert!(matches!(error, Error::RecordTooLarge { .. })),
            }
        }
        limits.push(largest);
        assert_eq!(committed(&partition).len(), sent);
    }
    assert!(limits[0] > 65_400 && limits.iter().all(|limit| *limit == limits[0]), "{limits:?}");
}

#[test]
fn producers_of_what_does_not_pack_deliver_each_once_at_the_limit() {
    for codec in CODECS {
        for kind in ["plain", "named"] {
            let store = Store::in_memory(1).unwrap();
            store.create_topic("t", TopicConfig::new().max_batch_bytes(4096)).unwrap();
            let builder = store.producer().compression(codec).batch_bytes(1 << 20).linger(LONG);
            let builder = if kind == "named" { builder.name("n") } else { builder };
            let producer = builder.build().unwrap();
            let mut deliveries = Vec::new();
            let called = Arc::new(AtomicU64::new(0));
            for nth in 0..2000 {
                let value = noise(nth, 100 + usize::try_from(nth % 300).unwrap());
                let record = Record::to("t").value(&value);
                if nth % 5 == 0 {
                    let called = Arc::clone(&called);
                    let call = move |placed: Result<oncelog::RecordMetadata, Error>| {
                        assert_eq!(placed.unwrap().offset, Offset(nth));
                        called.fetch_add(1, Ordering::Relaxed);
                    };
                    producer.send_with(record, call).unwrap();
                } else {
                    deliveries.push((nth, producer.send(record).unwrap()));
                }
            }
            producer.flush(LONG).unwrap();
            for (nth, delivery) in &deliveries {
                assert_eq!(delivery.wait(LONG).unwrap().offset, Offset(*nth), "{codec:?} {kind}");
            }
            let counters = producer.counters();
            assert_eq!(called.load(Ordering::Relaxed), 400, "{counters:?}");
            assert_eq!((counters.buffered_bytes, counters.callback_panics), (0, 0));
        }
    }
}

/// A batch that waited was forgotten when the wall clock was put right, and appended twice.
#[test]
fn s23_prod_20_a_step_of_the_clock_does_not_make_a_retry_a_second_record() {
    let disks = [SimDisk::new(1), SimDisk::new(2)];
    disks[1].share_process(&disks[0]);
    let clock = Clock::manual(Timestamp(0));
    let builder = Store::builder().clock(clock.clone());
    let store =
        disks.iter().cloned().fold(builder, |all, disk| all.simulated_disk(disk)).open().unwrap();
    let config = TopicConfig::new().replication_factor(2).min_insync_replicas(2);
    store.create_topic("t", config).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let producer = store.producer().build().unwrap();
    producer.send(Record::to("t").value("0")).unwrap().wait(LONG).unwrap();
    let follower = oncelog::DiskId(1 - partition.leader().unwrap().0);
    let sent = producer.send(Record::to("t").value("1")).unwrap();
    disks[usize::from(follower.0)].fail_from(1, oncelog::simulation::Fault::Eio);
    assert!(sent.wait(Duration::ZERO).is_err());
    store.run_background();
    assert!(sent.wait(Duration::ZERO).is_err());
    assert_eq!((partition.log_end_offset(), producer.counters().retries), (Offset(2), 1));
    clock.set_wall(Timestamp(1_800_000_000_000));
    store.run_background();
    disks[usize::from(follower.0)].heal();
    let _ = store.start_disk(follower);
    for _ in 0..20 {
        clock.advance(Duration::from_millis(500));
        store.run_background();
        let _ = sent.wait(Duration::ZERO);
    }
    let told = sent.wait(Duration::ZERO);
    assert_eq!(committed(&partition), [b"0".to_vec(), b"1".to_vec()], "{told:?}");
    assert_eq!(told.unwrap().offset, Offset(1));
}

/// A transaction that its producer never ended held up committed readers until the wall clock was where it had been.
#[test]
fn s23_coord_60_a_transaction_times_out_though_the_clock_was_set_back() {
    for step in [-315_000_000_000_i64, 315_000_000_000] {
        let disk = SimDisk::new(1);
        let clock = Clock::manual(Timestamp(1_800_000_000_000));
        let builder = Store::builder().clock(clock.clone()).simulated_disk(disk.clone());
        let store = builder.open().unwrap();
        store.create_topic("t", TopicConfig::new()).unwrap();
        let partition = store.partition("t", 0).unwrap();
        let mut idle = store.producer().transactional_id("idle").build().unwrap();
        let mut producer = store.producer().transactional_id("id").build().unwrap();
        let mut transaction = producer.begin().unwrap();
        transaction.append("t", 0, &[Record::new("lost")]).unwrap();
        std::mem::forget(transaction);
        let plain = store.producer().build().unwrap();
        plain.send(Record::to("t").value("x")).unwrap().wait(LONG).unwrap();
        clock.set_wall(Timestamp(clock.now().0 + step));
        for _ in 0..10 {
            clock.advance(Duration::from_secs(30));
            store.run_background();
        }
        assert_eq!(committed(&partition), [b"x".to_vec()], "step of {step}");
        // Who is alive goes on.
        for held in [&mut idle, &mut producer] {
            let mut transaction = held.begin().unwrap();
            transaction.append("t", 0, &[Record::new("y")]).unwrap();
            transaction.commit(LONG).unwrap();
        }
        assert_eq!(committed(&partition).len(), 3);
    }
}

/// Names keep their numbers wherever the clock goes, and so do producers that are alive.
#[test]
fn s23_producers_of_every_kind_go_on_while_the_clock_jumps() {
    let disk = SimDisk::new(1);
    let clock = Clock::manual(Timestamp(1_800_000_000_000));
    let open =
        || Store::builder().clock(clock.clone()).simulated_disk(disk.clone()).open().unwrap();
    let mut random = Random(7);
    let (mut named, mut all) = (0, Vec::new());
    for _ in 0..6 {
        let store = open();
        let _ = store.create_topic("t", TopicConfig::new());
        let partition = store.partition("t", 0).unwrap();
        let name = store.producer().name("n").build().unwrap();
        let plain = store.producer().linger(Duration::from_secs(1)).build().unwrap();
        let mut transactional = store.producer().transactional_id("id").build().unwrap();
        for _ in 0..30 {
            let years = i64::try_from(random.below(160)).unwrap() - 80;
            clock.set_wall(Timestamp(1_800_000_000_000 + years * 31_536_000_000));
            clock.advance(Duration::from_secs(random.below(100) * 3600));
            assert_eq!(name.next_sequence("t", 0).unwrap(), named);
            let later = plain.send(Record::to("t").value("plain")).unwrap();
            name.send(Record::to("t").value("name")).unwrap().wait(LONG).unwrap();
            named += 1;
            store.run_background();
            let mut transaction = transactional.begin().unwrap();
            transaction.send(Record::to("t").value("whole")).unwrap();
            transaction.commit(LONG).unwrap();
            let one = [Record::new("atomic")];
            store.append_atomic(&[("t", 0, &one), ("t", 0, &one)], LONG).unwrap();
            plain.flush(LONG).unwrap();
            later.wait(LONG).unwrap();
            all.push(());
        }
        assert_eq!(committed(&partition).len(), all.len() * 5);
    }
}
