//! Producers at the edges: sizes and times at their limits, settings that change beneath them, callbacks that wait,
//! clocks that jump.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use oncelog::simulation::{Clock, SimDisk};
use oncelog::{
    Acks, Compression, Error, Flush, Isolation, Offset, Partition, Producer, ProducerEpoch,
    ProducerId, ProducerSequence, ReadOptions, Record, RecordMetadata, Store, Timestamp,
    TimestampType, TopicConfig, TopicUpdate, Written,
};

use crate::random::Random;

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

#[test]
fn times_at_their_ends_come_back_however_they_are_sent_and_packed() {
    let times = [i64::MIN, i64::MAX, -1, 0, i64::MIN + 1, i64::MAX - 1];
    let disk = SimDisk::new(1);
    let clock = Clock::manual(Timestamp(1_000));
    let open =
        || Store::builder().simulated_disk(disk.clone()).clock(clock.clone()).open().unwrap();
    let store = open();
    let mut wanted = Vec::new();
    for (at, topic_codec) in CODECS.into_iter().enumerate() {
        for stamped in [TimestampType::CreateTime, TimestampType::AppendTime] {
            let topic = format!("t{at}-{stamped:?}");
            let config = TopicConfig::new().compression(topic_codec).timestamp_type(stamped);
            store.create_topic(&topic, config.segment_bytes(4096)).unwrap();
            let mut expected = Vec::new();
            let want = |time: i64| if stamped == TimestampType::AppendTime { 1_000 } else { time };
            for (nth, codec) in CODECS.into_iter().enumerate() {
                for kind in 0..3 {
                    let linger = Duration::from_millis(5);
                    let builder = store.producer().compression(codec);
                    let name = format!("{topic}-{nth}-{kind}");
                    if kind == 2 {
                        let mut producer = builder.transactional_id(&name).build().unwrap();
                        let mut transaction = producer.begin().unwrap();
                        for time in times {
                            let record = Record::to(&topic).timestamp(Timestamp(time)).key("");
                            transaction.send(record.header("", "").header("", "x")).unwrap();
                        }
                        transaction.commit(LONG).unwrap();
                        expected.extend(times.map(want));
                        expected.push(i64::MIN + 77); // a marker
                        continue;
                    }
                    let builder = builder.linger(linger);
                    let builder = if kind == 0 { builder } else { builder.name(name) };
                    let producer = builder.build().unwrap();
                    let sent: Vec<_> = times
                        .into_iter()
                        .map(|time| {
                            let record = Record::to(&topic).timestamp(Timestamp(time)).key("");
                            producer.send(record.header("", "").header("", "x")).unwrap()
                        })
                        .collect();
                    producer.flush(LONG).unwrap();
                    for (sent, time) in sent.iter().zip(times) {
                        let told = sent.wait(LONG).unwrap();
                        assert_eq!(told.offset, Offset(expected.len() as u64));
                        assert_eq!(told.timestamp.0, want(time), "{topic} {codec:?} {kind}");
                        expected.push(want(time));
                    }
                }
            }
            wanted.push((topic, expected));
        }
    }
    let check = |store: &Store| {
        for (topic, expected) in &wanted {
            let partition = store.partition(topic, 0).unwrap();
            let mut next = Offset(0);
            let mut seen = 0;
            while next < partition.high_watermark() {
                let records = partition.read(next, ReadOptions::new()).unwrap();
                for record in &records {
                    let at = usize::try_from(record.offset().0).unwrap();
                    assert_eq!(record.timestamp().0, expected[at], "{topic} {at}");
                    assert_eq!((record.key(), record.value()), (Some(&b""[..]), None));
                    let headers: Vec<_> = record.headers().collect();
                    assert_eq!(headers, [("", &b""[..]), ("", &b"x"[..])]);
                    seen += 1;
                }
                next = records.next_offset();
            }
            assert_eq!(seen, expected.iter().filter(|time| **time != i64::MIN + 77).count());
            let first = partition.offset_for_time(Timestamp::MAX).unwrap();
            let max = expected.iter().position(|time| *time == i64::MAX);
            assert_eq!(first, max.map(|at| Offset(at as u64)), "{topic}");
            assert_eq!(partition.offset_for_time(Timestamp::MIN).unwrap(), Some(Offset(0)));
        }
        let report = store.verify(oncelog::VerifyOptions::new()).unwrap();
        assert!(report.damages.is_empty(), "{report:?}");
    };
    check(&store);
    disk.kill();
    drop(store);
    disk.process_restart();
    let store = open();
    check(&store);
    store.close(LONG).unwrap();
    check(&open());
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
                    let call = move |placed: Result<RecordMetadata, Error>| {
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

#[test]
fn what_is_larger_than_a_lowered_limit_is_still_read_recovered_and_copied() {
    let disks = [SimDisk::new(1), SimDisk::new(2)];
    disks[1].share_process(&disks[0]);
    let open = || {
        let builder = Store::builder().clock(Clock::manual(Timestamp(1)));
        disks.iter().cloned().fold(builder, |all, disk| all.simulated_disk(disk)).open().unwrap()
    };
    for codec in CODECS {
        let store = open();
        let topic = format!("t-{codec:?}");
        store.create_topic(&topic, TopicConfig::new().compression(codec)).unwrap();
        let partition = store.partition(&topic, 0).unwrap();
        let value = noise(1, 1 << 20);
        partition.append(&[Record::new(&value)], Acks::All).unwrap();
        store.alter_topic(&topic, TopicUpdate::new().max_batch_bytes(1024)).unwrap();
        let refused = partition.append(&[Record::new(&value)], Acks::All);
        assert!(matches!(refused, Err(Error::RecordTooLarge { .. })), "{refused:?}");
        assert_eq!(committed(&partition), std::slice::from_ref(&value));
        disks[0].kill();
        drop((partition, store));
        disks.iter().for_each(SimDisk::process_restart);
        let store = open();
        let partition = store.partition(&topic, 0).unwrap();
        assert_eq!(committed(&partition), std::slice::from_ref(&value));
        let other = oncelog::DiskId(1 - partition.leader().unwrap().0);
        store.reassign(&topic, 0, &[other]).unwrap();
        store.run_background();
        assert_eq!(committed(&partition), std::slice::from_ref(&value));
        partition.append(&[Record::new("small")], Acks::All).unwrap();
        store.close(LONG).unwrap();
        drop((partition, store));
        let store = open();
        assert_eq!(committed(&store.partition(&topic, 0).unwrap()), [value, b"small".to_vec()]);
        let report = store.verify(oncelog::VerifyOptions::new()).unwrap();
        assert!(report.damages.is_empty(), "{report:?}");
    }
}

#[test]
fn a_batch_of_many_partitions_is_whole_and_refuses_what_does_not_fit_without_a_trace() {
    let store = Store::in_memory(1).unwrap();
    store.create_topic("t", TopicConfig::new().partitions(700).max_batch_bytes(4096)).unwrap();
    let one = [Record::new("x")];
    let all: Vec<_> = (0..700).map(|number| ("t", number, &one[..])).collect();
    for _ in 0..3 {
        let appended = store.append_atomic(&all, LONG).unwrap();
        assert_eq!(appended.len(), 700);
    }
    let large = [0_u8; 5000];
    let large = [Record::new(&large)];
    for bad in [("t", 5, &[][..]), ("t", 700, &one[..]), ("u", 0, &one[..]), ("t", 9, &large[..])] {
        let mut batches = all.clone();
        batches.insert(350, bad);
        let error = store.append_atomic(&batches, LONG).unwrap_err();
        assert_eq!(error.written(), Written::No, "{error:?}");
    }
    // Twice the same.
    let twice: Vec<_> = all.iter().chain(&all).copied().collect();
    store.append_atomic(&twice, LONG).unwrap();
    let snapshot_of: Vec<_> = (0..700).map(|number| ("t", number)).collect();
    let snapshot = store.snapshot(&snapshot_of).unwrap();
    for number in 0..700 {
        assert_eq!(committed(&store.partition("t", number).unwrap()).len(), 5, "{number}");
        let records = snapshot.read("t", number, Offset(0), ReadOptions::new()).unwrap();
        assert_eq!(records.iter().count(), 5);
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

/// A machine whose clock forgets the time when it is off: all that was written before seems older than it is, and a device
/// sends again what it was not told of.
#[test]
fn s23_prod_20_a_clock_that_is_put_right_while_the_store_is_closed_makes_no_producer_forgotten() {
    let disk = SimDisk::new(1);
    let clock = Clock::manual(Timestamp(0));
    let open =
        || Store::builder().clock(clock.clone()).simulated_disk(disk.clone()).open().unwrap();
    let day = Duration::from_secs(24 * 3600);
    let device = ProducerSequence { id: ProducerId(7), epoch: ProducerEpoch(0), sequence: 0 };
    let store = open();
    store.create_topic("t", TopicConfig::new()).unwrap();
    let partition = store.partition("t", 0).unwrap();
    partition.append_idempotent(device, &[Record::new(b"0")], Acks::All).unwrap();
    drop((partition, store));
    clock.set_wall(Timestamp(1_800_000_000_000));
    let store = open();
    let partition = store.partition("t", 0).unwrap();
    for _ in 0..20 {
        clock.advance(day / 21);
        store.run_background();
    }
    let again = partition.append_idempotent(device, &[Record::new(b"0")], Acks::All).unwrap();
    assert!(again.duplicate);
    clock.advance(day / 10);
    store.run_background();
    let late = partition.append_idempotent(device, &[Record::new(b"0")], Acks::All).unwrap();
    assert!(!late.duplicate, "nor is it kept for ever");
}

/// A transaction that its producer never ended held up committed readers until the wall clock was where it had been, if that
/// was set back; set forward, it ended one whose time was not over.
#[test]
fn s23_coord_60_a_transaction_times_out_by_the_time_that_passes() {
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
        store.run_background();
        assert!(committed(&partition).is_empty(), "step of {step}: it is open");
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

/// What was sent goes to the topic that it was sent to, and to none that bears its name later.
#[test]
fn what_a_transaction_gathered_for_a_topic_that_is_gone_is_not_put_into_the_next_one() {
    for again in [false, true] {
        let store = Store::in_memory(1).unwrap();
        store.create_topic("t", TopicConfig::new()).unwrap();
        let mut producer = store.producer().transactional_id("id").build().unwrap();
        let mut transaction = producer.begin().unwrap();
        transaction.send(Record::to("t").value("old")).unwrap();
        store.delete_topic("t").unwrap();
        store.create_topic("t", TopicConfig::new()).unwrap();
        if again {
            let sent = transaction.send(Record::to("t").value("new"));
            assert!(matches!(sent, Err(Error::UnknownTopicOrPartition { .. })), "{sent:?}");
        }
        assert!(transaction.commit(LONG).is_err(), "it lacks what was sent");
        let partition = store.partition("t", 0).unwrap();
        assert!(committed(&partition).is_empty());
        let mut transaction = producer.begin().unwrap();
        transaction.send(Record::to("t").value("next")).unwrap();
        transaction.commit(LONG).unwrap();
        assert_eq!(committed(&partition), [b"next".to_vec()]);
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

/// What is used, and let go of for the last time, within callbacks of its own.
#[test]
fn callbacks_may_use_and_let_go_of_producers_of_every_kind() {
    for round in 0..60_u64 {
        let store = Store::in_memory(1).unwrap();
        let flush = if round % 2 == 0 { Flush::OnAck } else { Flush::Os };
        store.create_topic("t", TopicConfig::new().flush(flush).partitions(2)).unwrap();
        let (told, heard) = channel();
        let producer = store.producer().build().unwrap();
        let named = store.producer().name("n").build().unwrap();
        let (last, copy, own) = (producer.clone(), store.clone(), named.clone());
        producer
            .send_with(Record::to("t").partition(0).value("1"), move |placed| {
                placed.unwrap();
                let mut held = copy.producer().transactional_id("id").build().unwrap();
                let mut transaction = held.begin().unwrap();
                transaction.send(Record::to("t").partition(0).value("2")).unwrap();
                transaction.send(Record::to("t").partition(1).value("2")).unwrap();
                transaction.commit(LONG).unwrap();
                let one = [Record::new("3")];
                copy.append_atomic(&[("t", 0, &one), ("t", 1, &one)], LONG).unwrap();
                own.send(Record::to("t").partition(0).value("4")).unwrap().wait(LONG).unwrap();
                let inner = told.clone();
                own.send_with(Record::to("t").partition(1).value("5"), move |placed| {
                    // The producer that calls, with what it has under way.
                    last.send(Record::to("t").partition(0).value("6")).map(drop).unwrap();
                    drop(last);
                    inner.send(placed.is_ok()).unwrap();
                })
                .unwrap();
                drop(own);
            })
            .unwrap();
        drop((producer, named));
        assert!(heard.recv_timeout(LONG).unwrap(), "round {round}");
        let wait = Duration::from_secs(30);
        store.partition("t", 0).unwrap().wait_for_committed(Offset(5), wait).unwrap();
        let expected: [&[&[u8]]; 2] = [&[b"1", b"2", b"3", b"4", b"6"], &[b"2", b"3", b"5"]];
        for (number, mut expected) in (0..).zip(expected.map(<[&[u8]]>::to_vec)) {
            let mut values = committed(&store.partition("t", number).unwrap());
            values.sort_unstable();
            expected.sort_unstable();
            assert_eq!(values, expected, "round {round}");
        }
        store.close(LONG).unwrap();
    }
}

/// Flushed, closed, let go of and polled from everywhere at once: each record ends once, as it is in the log.
#[test]
fn of_many_who_flush_close_and_drop_at_once_each_is_told_what_is_in_the_log() {
    for round in 0..80_u64 {
        let store = Store::in_memory(1).unwrap();
        let flush = if round % 2 == 0 { Flush::OnAck } else { Flush::Os };
        store.create_topic("t", TopicConfig::new().flush(flush)).unwrap();
        let builder = store.producer().buffer_bytes(if round % 3 == 0 { 2000 } else { 1 << 20 });
        let builder =
            if round % 5 == 0 { builder.linger(Duration::from_millis(1)) } else { builder };
        let producer = builder.build().unwrap();
        let told = Arc::new(Mutex::new(BTreeMap::new()));
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let (producer, told, store) = (producer.clone(), Arc::clone(&told), &store);
                scope.spawn(move || {
                    let mut random = Random(round * 10 + thread);
                    for nth in 0..150_u64 {
                        let value = format!("{thread}.{nth}");
                        let record = Record::to("t").value(&value);
                        match random.below(4) {
                            0 => {
                                let (called, key) = (Arc::clone(&told), value.clone());
                                let sent = producer.send_with(record, move |outcome| {
                                    let before = called.lock().unwrap().insert(key, outcome);
                                    assert!(before.is_none(), "it ends once");
                                });
                                if let Err(error) = sent {
                                    told.lock().unwrap().insert(value, Err(error));
                                }
                            }
                            kind => {
                                let outcome = producer.send(record).and_then(|mut sent| {
                                    if kind == 1 {
                                        let mut context = Context::from_waker(Waker::noop());
                                        let _ = Pin::new(&mut sent).poll(&mut context);
                                        let _ = sent.outcome();
                                    }
                                    if kind == 2 { block_on(sent) } else { sent.wait(LONG) }
                                });
                                told.lock().unwrap().insert(value, outcome);
                            }
                        }
                        let late = nth > 75;
                        match random.below(60) {
                            0 => producer.flush(LONG).unwrap(),
                            1 if late && round % 4 == 1 => producer.close(LONG).unwrap(),
                            2 if late && round % 4 == 2 => store.close(LONG).unwrap(),
                            _ => {}
                        }
                    }
                });
            }
        });
        producer.close(LONG).ok();
        let told = told.lock().unwrap();
        assert_eq!(told.len(), 600, "round {round}: each ends");
        if round % 4 == 2 {
            continue; // The log went with the store.
        }
        let values = committed(&store.partition("t", 0).unwrap());
        for (key, outcome) in told.iter() {
            let count = values.iter().filter(|value| **value == key.as_bytes()).count();
            match outcome {
                Ok(placed) => {
                    assert_eq!(count, 1, "round {round}: {key}");
                    assert_eq!(values[usize::try_from(placed.offset.0).unwrap()], key.as_bytes());
                }
                Err(error) if error.written() == Written::No => assert_eq!(count, 0, "{error:?}"),
                Err(_) => assert!(count <= 1),
            }
        }
        assert_eq!(
            (producer.counters().buffered_bytes, producer.counters().callback_panics),
            (0, 0)
        );
    }
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Polls by hand, with another waker each time, and gives up after a while.
fn block_on(mut sent: oncelog::Delivery) -> Result<RecordMetadata, Error> {
    let started = Instant::now();
    loop {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let polled = Pin::new(&mut sent).poll(&mut Context::from_waker(&waker));
        if let std::task::Poll::Ready(outcome) = polled {
            return outcome;
        }
        assert!(started.elapsed() < LONG, "a delivery is never told");
        std::thread::park_timeout(LONG);
    }
}

/// Topics that go, come again and grow beneath producers of every kind.
#[test]
fn topics_that_come_again_and_grow_hold_what_was_acknowledged_to_each_once() {
    let store = Store::in_memory(1).unwrap();
    let config = || TopicConfig::new().partitions(2).flush(Flush::Os);
    store.create_topic("t", config()).unwrap();
    let over = AtomicBool::new(false);
    let told = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for kind in 0..5_u64 {
            let (store, over, told) = (&store, &over, &told);
            scope.spawn(move || {
                let producer = match kind {
                    0 => Some(store.producer().build().unwrap()),
                    1 => Some(store.producer().name("n").build().unwrap()),
                    2 => Some(store.producer().linger(Duration::from_micros(50)).build().unwrap()),
                    _ => None,
                };
                let mut held =
                    (kind == 3).then(|| store.producer().transactional_id("id").build().unwrap());
                let mut nth = 0_u64;
                while !over.load(Ordering::Acquire) {
                    nth += 1;
                    let value = format!("{kind}.{nth}");
                    let key = format!("{}", nth % 7);
                    if let Some(producer) = &producer {
                        let sent = producer.send(Record::to("t").key(&key).value(&value));
                        let outcome = sent.and_then(|sent| sent.wait(LONG)).map(drop);
                        if outcome.is_err() && kind == 1 {
                            for number in 0..8 {
                                let _ = producer.next_sequence("t", number);
                            }
                        }
                        told.lock().unwrap().push((value, 1, outcome));
                    } else if let Some(held) = &mut held {
                        let Ok(mut transaction) = held.begin() else { continue };
                        let sent = [0, 1].map(|number| {
                            transaction.send(Record::to("t").partition(number).value(&value))
                        });
                        let outcome = sent.into_iter().collect::<Result<(), _>>();
                        let outcome = outcome.and_then(|()| transaction.commit(LONG));
                        told.lock().unwrap().push((value, 2, outcome));
                    } else {
                        let one = [Record::new(&value)];
                        let outcome = store.append_atomic(&[("t", 0, &one), ("t", 1, &one)], LONG);
                        told.lock().unwrap().push((value, 2, outcome.map(drop)));
                    }
                }
            });
        }
        let mut random = Random(3);
        for _ in 0..60 {
            std::thread::yield_now();
            store.add_partitions("t", 3 + u32::try_from(random.below(5)).unwrap()).unwrap();
            let before = told.lock().unwrap().len();
            while told.lock().unwrap().len() < before + 30 {
                std::thread::yield_now();
            }
            store.delete_topic("t").unwrap();
            store.create_topic("t", config()).unwrap();
        }
        // The last one stays, and all of them find it.
        let mark = told.lock().unwrap().len();
        let seen = |kind: &str| {
            told.lock().unwrap()[mark..]
                .iter()
                .filter(|(value, _, outcome)| value.starts_with(kind) && outcome.is_ok())
                .count()
        };
        let started = Instant::now();
        while ["0.", "1.", "2.", "3.", "4."].iter().any(|kind| seen(kind) < 20) {
            assert!(started.elapsed() < LONG, "one does not find the topic again");
            std::thread::yield_now();
        }
        over.store(true, Ordering::Release);
    });
    let mut counts = BTreeMap::new();
    for number in 0..2 {
        for value in committed(&store.partition("t", number).unwrap()) {
            *counts.entry(String::from_utf8(value).unwrap()).or_insert(0) += 1;
        }
    }
    let told = told.into_inner().unwrap();
    for (value, whole, outcome) in &told {
        let count = counts.get(value).copied().unwrap_or(0);
        match outcome {
            // Or it went with an earlier topic of the name.
            Ok(()) => assert!(count == *whole || count == 0, "{value}: {count}"),
            Err(error) if error.written() == Written::No => {
                assert_eq!(count, 0, "{value}: {error:?}");
            }
            Err(_) => assert!(count == 0 || count == *whole, "{value}: {count}"),
        }
    }
    for (value, _, _) in told.iter().rev().take(20).filter(|(_, _, outcome)| outcome.is_ok()) {
        assert!(counts.contains_key(value), "{value} was acknowledged by the topic that stays");
    }
}

/// What was appended while the clock showed a time that was long ago seemed old when it was put right, and was forgotten:
/// a batch that was sent again was appended twice.
#[test]
fn s23_prod_20_a_clock_that_goes_away_and_comes_back_between_two_looks_ages_nobody() {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    for (away, power) in [(-3, false), (3, false), (-3, true)] {
        let disk = SimDisk::new(1);
        let start = Timestamp(1_000_000_000_000);
        let clock = Clock::manual(start);
        let builder = || Store::builder().clock(clock.clone()).simulated_disk(disk.clone());
        let mut store = builder().open().unwrap();
        store.create_topic("t", TopicConfig::new()).unwrap();
        let append = |store: &Store, id, sequence| {
            let (id, epoch) = (ProducerId(id), ProducerEpoch(0));
            let producer = ProducerSequence { id, epoch, sequence };
            let partition = store.partition("t", 0).unwrap();
            partition.append_idempotent(producer, &[Record::new("x")], Acks::All).unwrap()
        };
        append(&store, 1, 0);
        store.run_background();
        if power {
            drop(store);
            disk.process_restart();
            store = builder().open().unwrap();
            drop(store.partition("t", 0).unwrap());
        }
        clock.set_wall(Timestamp(start.0 + away * 24 * 60 * 60 * 1000));
        append(&store, 1, 1);
        append(&store, 2, 0);
        clock.set_wall(start);
        for _ in 0..3 {
            clock.advance(DAY / 40);
            store.run_background();
        }
        assert!(append(&store, 1, 1).duplicate, "{away} {power}");
        assert!(append(&store, 2, 0).duplicate, "{away} {power}");
        // Who is silent for a day is forgotten all the same.
        for _ in 0..if away < 0 { 60 } else { 0 } {
            clock.advance(DAY / 40);
            store.run_background();
        }
        assert_eq!(append(&store, 2, 0).duplicate, away > 0);
    }
}

/// Nobody waited for what filled the buffer, and whoever came again was refused each time, for ever.
#[test]
fn cli_04_whoever_is_refused_for_a_full_buffer_and_comes_again_finds_room() {
    let store = Store::in_memory(1).unwrap();
    store.create_topic("t", TopicConfig::new().partitions(2)).unwrap();
    for (sent, next) in [(0, 0), (0, 1)] {
        let producer = store.producer().buffer_bytes(2000).build().unwrap();
        let record = |partition| Record::to("t").partition(partition).value(&[7_u8; 1500]);
        let first = producer.send(record(sent)).unwrap();
        let begun = Instant::now();
        let second = loop {
            match producer.try_send(record(next)) {
                Ok(second) => break second,
                Err(error) => assert!(matches!(error, Error::BufferFull { .. }), "{error:?}"),
            }
            assert!(begun.elapsed() < LONG / 3, "{sent} {next}");
            std::thread::yield_now();
        };
        first.wait(LONG).unwrap();
        second.wait(LONG).unwrap();
    }
}

/// It was told first, if whoever sent it was also the first to learn of the one before.
#[test]
fn cli_21_a_record_that_is_acknowledged_at_once_is_told_behind_the_one_before_it() {
    let builder = Store::builder().clock(Clock::manual(Timestamp(1_000_000)));
    let store = builder.simulated_disk(SimDisk::new(1)).open().unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    let producer = store.producer().build().unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let send = || {
        let told = Arc::clone(&told);
        let note = move |sent: Result<RecordMetadata, Error>| {
            told.lock().unwrap().push(sent.unwrap().offset);
        };
        producer.send_with(Record::to("t").value("v"), note).unwrap();
    };
    send();
    // Its flush acknowledges both.
    store.partition("t", 0).unwrap().append(&[Record::new("v")], Acks::All).unwrap();
    store.alter_topic("t", TopicUpdate::new().flush(Flush::Os)).unwrap();
    send();
    producer.flush(LONG).unwrap();
    assert_eq!(*told.lock().unwrap(), [Offset(0), Offset(2)]);
}
