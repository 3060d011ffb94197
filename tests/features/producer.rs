//! Producers on a store in memory and on a real directory, by id.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use oncelog::{
    Acks, Error, Flush, Offset, Partition, Producer, ReadOptions, Record, Store, Timestamp,
    TimestampType, TopicConfig, Written,
};

const SECONDS: Duration = Duration::from_secs(30);
const FLUSHES: [Flush; 3] = [Flush::OnAck, Flush::Interval(Duration::from_millis(5)), Flush::Os];

fn store(config: TopicConfig) -> Store {
    let store = Store::temporary().unwrap();
    store.create_topic("t", config).unwrap();
    store
}

/// Everything in a partition, as text.
fn contents(partition: &Partition) -> Vec<String> {
    let mut next = partition.log_start_offset();
    let mut values = Vec::new();
    while next < partition.high_watermark() {
        let records = partition.read(next, ReadOptions::new()).unwrap();
        values.extend(
            records.iter().map(|record| String::from_utf8_lossy(record.value().unwrap()).into()),
        );
        next = records.next_offset();
    }
    values
}

fn numbers(range: std::ops::Range<u64>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

#[test]
fn records_of_a_burst_that_nobody_asks_for_arrive_all_the_same() {
    let store = store(TopicConfig::new().flush(Flush::Os));
    let producer = store.producer().build().unwrap();
    let partition = store.partition("t", 0).unwrap();
    for round in 1..=50_u64 {
        for value in numbers(0..100) {
            drop(producer.send(Record::to("t").value(&value)).unwrap());
        }
        let last = Offset(round * 100 - 1);
        partition.wait_for(last, SECONDS).unwrap();
    }
    // Whoever appended the last of them may still be about to take note of it.
    producer.flush(SECONDS).unwrap();
    assert_eq!(producer.counters().buffered_bytes, 0);
    assert_eq!(contents(&partition), vec![numbers(0..100); 50].concat());
}

#[test]
fn what_gathered_of_a_burst_is_appended_when_the_store_closes() {
    for count in 15..60 {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.create_topic("t", TopicConfig::new().flush(Flush::Os)).unwrap();
        let producer = store.producer().build().unwrap();
        for value in numbers(0..count) {
            drop(producer.send(Record::to("t").value(&value)).unwrap());
        }
        store.close(SECONDS).unwrap();
        drop((producer, store));
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(contents(&store.partition("t", 0).unwrap()), numbers(0..count));
    }
}

#[test]
fn without_acknowledgements_every_record_is_appended_by_its_sender() {
    let store = store(TopicConfig::new().flush(Flush::Os));
    let producer = store.producer().acks(Acks::None).build().unwrap();
    let partition = store.partition("t", 0).unwrap();
    for sent in 1..=1000 {
        drop(producer.send(Record::to("t").value("v")).unwrap());
        assert_eq!(partition.log_end_offset(), Offset(sent));
    }
}

#[test]
fn what_one_thread_sends_comes_in_order_at_every_level() {
    for flush in FLUSHES {
        for acks in [Acks::None, Acks::Leader, Acks::All] {
            let store = store(TopicConfig::new().flush(flush));
            let producer = store.producer().acks(acks).build().unwrap();
            let values = numbers(0..3000);
            let send = |value| producer.send(Record::to("t").value(value)).unwrap();
            let deliveries: Vec<_> = values.iter().map(send).collect();
            for (offset, delivery) in (0..).zip(&deliveries) {
                let placed = delivery.wait(SECONDS).unwrap();
                assert_eq!((&*placed.topic, placed.partition), ("t", 0));
                assert_eq!(placed.offset, Offset(offset), "{flush:?}, {acks:?}");
            }
            producer.flush(SECONDS).unwrap();
            let partition = store.partition("t", 0).unwrap();
            partition.wait_for(Offset(2999), SECONDS).unwrap();
            assert_eq!(contents(&partition), values);
            assert_eq!(producer.counters().records, 3000);
            assert_eq!(producer.counters().buffered_bytes, 0);
        }
    }
}

#[test]
fn while_a_flush_is_under_way_records_gather() {
    let store = store(TopicConfig::new());
    let producer = store.producer().build().unwrap();
    let values = numbers(0..20_000);
    let deliveries: Vec<_> =
        values.iter().map(|value| producer.send(Record::to("t").value(value)).unwrap()).collect();
    deliveries.iter().for_each(|delivery| drop(delivery.wait(SECONDS).unwrap()));
    let counters = producer.counters();
    assert!(counters.batches * 4 < counters.records, "{counters:?}");
    assert_eq!(contents(&store.partition("t", 0).unwrap()), values);
}

#[test]
fn threads_that_send_and_wait_keep_their_own_order() {
    for flush in FLUSHES {
        let store = store(TopicConfig::new().flush(flush));
        let producer = store.producer().build().unwrap();
        let (threads, each) = (8, 200);
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let producer = producer.clone();
                scope.spawn(move || {
                    for number in 0..each {
                        let value = format!("{thread} {number}");
                        let delivery = producer.send(Record::to("t").value(&value)).unwrap();
                        if number % 3 != 0 {
                            delivery.wait(SECONDS).unwrap();
                        }
                    }
                });
            }
        });
        producer.flush(SECONDS).unwrap();
        let mut next = BTreeMap::<String, u64>::new();
        for value in contents(&store.partition("t", 0).unwrap()) {
            let (thread, number) = value.split_once(' ').unwrap();
            let expected = next.entry(thread.to_owned()).or_default();
            assert_eq!(number.parse::<u64>().unwrap(), *expected);
            *expected += 1;
        }
        assert_eq!(next.len(), threads);
        assert!(next.values().all(|count| *count == each));
    }
}

#[test]
fn cli_21_callbacks_come_in_order_of_sending_and_once() {
    for flush in FLUSHES {
        let store = store(TopicConfig::new().flush(flush));
        let producer = store.producer().build().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        for number in 0..2000_u64 {
            let seen = Arc::clone(&seen);
            let value = number.to_string();
            let record = Record::to("t").value(&value);
            producer
                .send_with(record, move |outcome| {
                    seen.lock().unwrap().push((number, outcome.unwrap().offset.0));
                })
                .unwrap();
        }
        producer.flush(SECONDS).unwrap();
        let expected: Vec<_> = (0..2000).map(|number| (number, number)).collect();
        assert_eq!(*seen.lock().unwrap(), expected, "{flush:?}");
    }
}

#[test]
fn cli_22_a_callback_may_send_wait_and_flush() {
    for flush in FLUSHES {
        let store = store(TopicConfig::new().flush(flush).partitions(2));
        let producer = store.producer().build().unwrap();
        let (sender, receiver) = mpsc::channel();
        let again = producer.clone();
        let record = Record::to("t").partition(0).value("first");
        producer
            .send_with(record, move |_| {
                let delivery = again.send(Record::to("t").partition(0).value("second")).unwrap();
                delivery.wait(SECONDS).unwrap();
                let (sender, other) = (sender.clone(), again.clone());
                let third = Record::to("t").partition(1).value("third");
                again
                    .send_with(third, move |_| {
                        other.flush(SECONDS).unwrap();
                        sender.send(()).unwrap();
                    })
                    .unwrap();
                again.flush(SECONDS).unwrap();
            })
            .unwrap();
        receiver.recv_timeout(SECONDS).unwrap();
        producer.flush(SECONDS).unwrap();
        assert_eq!(contents(&store.partition("t", 0).unwrap()), ["first", "second"]);
    }
}

/// Nobody brought about what was only asked for; nor did the close.
#[test]
fn an_outcome_that_is_only_asked_for_comes() {
    for flush in FLUSHES {
        for closes in [false, true] {
            let store = Store::in_memory(3).unwrap();
            let config = TopicConfig::new().replication_factor(3).flush(flush);
            store.create_topic("t", config).unwrap();
            let producer = store.producer().build().unwrap();
            let send = || producer.send(Record::to("t").value("v")).unwrap();
            let deliveries: Vec<_> = (0..3).map(|_| send()).collect();
            if closes {
                store.close(SECONDS).unwrap();
                assert!(deliveries.iter().all(|one| one.outcome().is_some()));
            }
            let begun = Instant::now();
            while deliveries.iter().any(|one| one.outcome().is_none()) {
                assert!(begun.elapsed() < SECONDS);
                std::thread::yield_now();
            }
        }
    }
}

/// What a panic carries may panic itself, when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        std::panic::panic_any(Bomb);
    }
}

#[test]
fn a_panic_in_a_callback_is_counted_and_stops_nothing() {
    for flush in FLUSHES {
        let store = store(TopicConfig::new().flush(flush));
        let producer = store.producer().build().unwrap();
        let called = Arc::new(AtomicUsize::new(0));
        for at in 0..3 {
            let called = Arc::clone(&called);
            producer
                .send_with(Record::to("t").value("v"), move |_| {
                    called.fetch_add(1, Ordering::SeqCst);
                    if at == 1 {
                        std::panic::panic_any(Bomb);
                    }
                    panic!("a callback of the application");
                })
                .unwrap();
        }
        producer.flush(SECONDS).unwrap();
        assert_eq!(called.load(Ordering::SeqCst), 3);
        assert_eq!(producer.counters().callback_panics, 3);
        producer.send(Record::to("t").value("v")).unwrap().wait(SECONDS).unwrap();
    }
}

#[test]
fn prod_03_a_producer_goes_on_under_every_leader_and_appends_each_record_once() {
    let store = Store::in_memory(3).unwrap();
    let config = TopicConfig::new().replication_factor(3).min_insync_replicas(2);
    store.create_topic("t", config).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let producer = store.producer().batch_bytes(2000).build().unwrap();
    let values = numbers(0..4000);
    let mut deliveries = Vec::new();
    for (at, value) in values.iter().enumerate() {
        deliveries.push(producer.send(Record::to("t").value(value)).unwrap());
        if at % 500 == 250 {
            let disk = partition.leader().unwrap();
            store.stop_disk(disk).unwrap();
            deliveries.push(producer.send(Record::to("t").value("mark")).unwrap());
            deliveries.last().unwrap().wait(SECONDS).unwrap();
            store.start_disk(disk).unwrap();
        }
    }
    for delivery in &deliveries {
        delivery.wait(SECONDS).unwrap();
    }
    let mut found = contents(&partition);
    found.retain(|value| value != "mark");
    assert_eq!(found, values);
}

/// Who leads may be told so in the moment in which its time is over.
#[test]
fn waits_that_give_up_leave_nobody_in_charge_who_is_gone() {
    let store = store(TopicConfig::new());
    let producer = store.producer().build().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let producer = producer.clone();
            scope.spawn(move || {
                for round in 0..400 {
                    let delivery = producer.send(Record::to("t").value("v")).unwrap();
                    // The outcome may come too late, which is what this is about.
                    drop(delivery.wait(Duration::from_micros((round * 7 + thread * 31) % 250)));
                }
            });
        }
    });
    producer.flush(SECONDS).unwrap();
    assert_eq!(store.partition("t", 0).unwrap().log_end_offset(), Offset(2400));
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park_timeout(SECONDS),
        }
    }
}

#[test]
fn a_delivery_is_a_future() {
    for flush in FLUSHES {
        let store = store(TopicConfig::new().flush(flush));
        let producer = store.producer().build().unwrap();
        for number in 0..50 {
            let delivery = producer.send(Record::to("t").value("v")).unwrap();
            assert_eq!(block_on(delivery).unwrap().offset, Offset(number));
        }
        let many: Vec<_> =
            (0..50).map(|_| producer.send(Record::to("t").value("v")).unwrap()).collect();
        for (number, delivery) in (50..).zip(many) {
            assert_eq!(block_on(delivery).unwrap().offset, Offset(number));
        }
    }
}

#[test]
fn a_dropped_delivery_takes_nothing_back_and_one_kept_unasked_is_flushed() {
    for keep in [false, true] {
        let store = store(TopicConfig::new());
        let producer = store.producer().build().unwrap();
        let delivery = producer.send(Record::to("t").value("v")).unwrap();
        let kept = keep.then_some(delivery);
        // A reader sees it: nobody has waited for the delivery.
        store.partition("t", 0).unwrap().wait_for(Offset(0), SECONDS).unwrap();
        drop(kept);
    }
}

#[test]
fn the_last_clone_to_go_delivers_what_was_sent() {
    let store = store(TopicConfig::new());
    let producer = store.producer().linger(SECONDS * 2).build().unwrap();
    let delivery = producer.send(Record::to("t").value("0")).unwrap();
    drop(producer.send(Record::to("t").value("1")).unwrap());
    drop(producer.clone());
    assert!(delivery.outcome().is_none(), "it lingers");
    drop(producer);
    assert_eq!(delivery.outcome().unwrap().unwrap().offset, Offset(0));
    assert_eq!(contents(&store.partition("t", 0).unwrap()), ["0", "1"]);
}

#[test]
fn cli_05_linger_holds_a_batch_until_it_is_full_or_hastened() {
    let store = store(TopicConfig::new().flush(Flush::Os));
    let producer = store.producer().linger(SECONDS).batch_bytes(1000).build().unwrap();
    let partition = store.partition("t", 0).unwrap();
    let value = "v".repeat(100);
    let first = producer.send(Record::to("t").value(&value)).unwrap();
    assert_eq!(partition.log_end_offset(), Offset(0));
    for _ in 0..10 {
        drop(producer.send(Record::to("t").value(&value)).unwrap());
    }
    first.wait(SECONDS / 2).unwrap();
    assert!(partition.log_end_offset() > Offset(5), "a full batch waits for nothing");
    producer.flush(SECONDS / 2).unwrap();
    assert_eq!(partition.log_end_offset(), Offset(11));
    let short = store.producer().linger(Duration::from_millis(20)).build().unwrap();
    let lone = short.send(Record::to("t").value("lone")).unwrap();
    assert!(lone.outcome().is_none());
    // Nobody waits for it: it goes when its time has come.
    partition.wait_for(Offset(11), SECONDS).unwrap();
    drop(lone);
}

#[test]
fn cli_03_what_is_too_large_is_refused_before_any_io() {
    for flush in FLUSHES {
        let store = store(TopicConfig::new().flush(flush).max_batch_bytes(1024));
        let producer = store.producer().buffer_bytes(4000).build().unwrap();
        let value = "v".repeat(2000);
        let refused = producer.send(Record::to("t").value(&value));
        assert!(
            matches!(refused, Err(Error::RecordTooLarge { bytes_max: 1024, .. })),
            "{refused:?}"
        );
        let lingering = store.producer().linger(SECONDS).buffer_bytes(4000).build().unwrap();
        let refused = lingering.send(Record::to("t").value(&value));
        assert!(
            matches!(refused, Err(Error::RecordTooLarge { bytes_max: 1024, .. })),
            "{refused:?}"
        );
        store.create_topic("wide", TopicConfig::new().flush(flush)).unwrap();
        let value = "v".repeat(5000);
        let refused = lingering.send(Record::to("wide").value(&value));
        assert!(
            matches!(refused, Err(Error::RecordTooLarge { bytes_max: 4000, .. })),
            "{refused:?}"
        );
        assert_eq!(store.partition("t", 0).unwrap().log_end_offset(), Offset(0));
        assert_eq!(lingering.counters().buffered_bytes, 0);
    }
}

#[test]
fn cli_04_a_full_buffer_blocks_or_refuses_and_comes_free_again() {
    let store = store(TopicConfig::new().flush(Flush::Os));
    let builder = || store.producer().linger(SECONDS).buffer_bytes(1000);
    let producer = builder().build().unwrap();
    let value = "v".repeat(300);
    let mut taken = 0;
    let refused = loop {
        match producer.try_send(Record::to("t").value(&value)) {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::BufferFull { bytes_max: 1000 }), "{refused:?}");
    assert_eq!(refused.written(), Written::No);
    assert_eq!(taken, 2);
    // Who waits for room has what is gathered sent.
    drop(producer.send(Record::to("t").value(&value)).unwrap());
    producer.flush(SECONDS).unwrap();
    assert_eq!(store.partition("t", 0).unwrap().log_end_offset(), Offset(3));
    assert_eq!(producer.counters().buffered_bytes, 0);
}

#[test]
fn many_senders_share_a_small_buffer() {
    let store = store(TopicConfig::new().partitions(3));
    let producer = store.producer().buffer_bytes(2000).build().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let value = "v".repeat(500);
                for _ in 0..100 {
                    drop(producer.send(Record::to("t").value(&value)).unwrap());
                }
            });
        }
    });
    producer.flush(SECONDS).unwrap();
    let ends = (0..3).map(|at| store.partition("t", at).unwrap().log_end_offset().0);
    assert_eq!(ends.sum::<u64>(), 600);
}

#[test]
fn one_bad_record_of_a_batch_fails_alone() {
    let config = TopicConfig::new()
        .timestamp_type(TimestampType::CreateTime)
        .timestamp_after_max(Duration::from_secs(60));
    for flush in FLUSHES {
        let store = store(config.clone().flush(flush));
        let producer = store.producer().linger(SECONDS).build().unwrap();
        let far = Timestamp(i64::MAX / 2);
        let deliveries: Vec<_> = (0..20)
            .map(|number| {
                let value = number.to_string();
                let record = Record::to("t").value(&value);
                let record = if number % 7 == 3 { record.timestamp(far) } else { record };
                producer.send(record).unwrap()
            })
            .collect();
        producer.flush(SECONDS).unwrap();
        let mut offset = 0;
        for (number, delivery) in (0..).zip(deliveries) {
            match delivery.outcome().unwrap() {
                Ok(placed) => {
                    assert_eq!(placed.offset.0, offset);
                    offset += 1;
                    assert_ne!(number % 7, 3);
                }
                Err(error) => {
                    assert!(matches!(error, Error::InvalidRecord { .. }), "{error:?}");
                    assert_eq!(number % 7, 3);
                }
            }
        }
        let good: Vec<_> =
            (0..20).filter(|number| number % 7 != 3).map(|number| number.to_string()).collect();
        assert_eq!(contents(&store.partition("t", 0).unwrap()), good);
    }
}

#[test]
fn keys_go_where_kafka_puts_them_and_others_are_spread() {
    let store = store(TopicConfig::new().flush(Flush::Os).partitions(10));
    let producer = store.producer().batch_bytes(500).build().unwrap();
    let placed = |record| producer.send(record).unwrap().wait(SECONDS).unwrap().partition;
    assert_eq!(placed(Record::to("t").key("21")), 0);
    assert_eq!(placed(Record::to("t").key("foobar")), 1_357_151_166 % 10);
    assert_eq!(placed(Record::to("t").key("foobar").partition(4)), 4);
    let value = "v".repeat(100);
    let used: std::collections::BTreeSet<_> =
        (0..500).map(|_| placed(Record::to("t").value(&value))).collect();
    assert_eq!(used.len(), 10);
    let own = store.producer().partitioner(|record, count| {
        assert_eq!(*record, Record::to("t").key("k"));
        count - 1
    });
    let delivery = own.build().unwrap().send(Record::to("t").key("k")).unwrap();
    assert_eq!(delivery.wait(SECONDS).unwrap().partition, 9);
    let unknown = producer.send(Record::to("t").partition(10).value("v"));
    assert!(matches!(unknown, Err(Error::UnknownTopicOrPartition { .. })));
    store.add_partitions("t", 11).unwrap();
    assert_eq!(placed(Record::to("t").partition(10).value("v")), 10);
}

#[test]
fn a_topic_that_is_made_anew_is_found_anew() {
    let store = store(TopicConfig::new());
    let producer = store.producer().build().unwrap();
    producer.send(Record::to("t").value("v")).unwrap().wait(SECONDS).unwrap();
    store.delete_topic("t").unwrap();
    let gone = producer.send(Record::to("t").value("v"));
    assert!(matches!(gone, Err(Error::UnknownTopicOrPartition { .. })), "{gone:?}");
    store.create_topic("t", TopicConfig::new()).unwrap();
    let delivery = producer.send(Record::to("t").value("v")).unwrap();
    assert_eq!(delivery.wait(SECONDS).unwrap().offset, Offset(0));
}

#[test]
fn topics_beyond_those_at_hand_and_those_that_come_anew_get_their_own_records() {
    let store = Store::temporary().unwrap();
    let names: Vec<_> = (0..12).map(|number| format!("t{number}")).collect();
    let make = |name: &str| store.create_topic(name, TopicConfig::new().flush(Flush::Os)).unwrap();
    names.iter().for_each(|name| make(name));
    let producer = store.producer().build().unwrap();
    let send_to_all = |round: &str| {
        for name in &names {
            let value = format!("{name} {round}");
            let sent = producer.send(Record::to(name).value(&value)).unwrap();
            assert_eq!(*sent.wait(SECONDS).unwrap().topic, **name);
        }
    };
    ["a", "b"].into_iter().for_each(send_to_all);
    for anew in [&names[1], &names[11]] {
        store.delete_topic(anew).unwrap();
        make(anew);
    }
    ["c", "d"].into_iter().for_each(send_to_all);
    for (at, name) in names.iter().enumerate() {
        let rounds: &[_] = if at % 10 == 1 { &["c", "d"] } else { &["a", "b", "c", "d"] };
        let values: Vec<_> = rounds.iter().map(|round| format!("{name} {round}")).collect();
        assert_eq!(contents(&store.partition(name, 0).unwrap()), values);
    }
}

#[test]
fn a_closed_producer_or_store_takes_nothing_and_says_so() {
    let store = store(TopicConfig::new());
    let producer = store.producer().build().unwrap();
    drop(producer.send(Record::to("t").value("v")).unwrap());
    producer.close(SECONDS).unwrap();
    assert!(matches!(producer.clone().send(Record::to("t").value("v")), Err(Error::Closed)));
    let other = store.producer().linger(SECONDS).build().unwrap();
    let delivery = other.send(Record::to("t").value("w")).unwrap();
    let awaited = other.send(Record::to("t").value("x")).unwrap();
    let waiter = std::thread::spawn(move || block_on(awaited));
    store.close(SECONDS).unwrap();
    assert!(matches!(other.send(Record::to("t").value("v")), Err(Error::Closed)));
    drop(other);
    assert!(matches!(waiter.join().unwrap(), Err(Error::Closed)));
    assert!(matches!(delivery.outcome(), Some(Err(Error::Closed))));
}

#[test]
fn record_metadata_bear_the_time_that_the_topic_keeps() {
    let store = store(TopicConfig::new());
    let stamped = TopicConfig::new().timestamp_type(TimestampType::AppendTime);
    store.create_topic("stamped", stamped).unwrap();
    let producer = store.producer().build().unwrap();
    let at = |topic| {
        let record = Record::to(topic).value("v").timestamp(Timestamp(5));
        producer.send(record).unwrap().wait(SECONDS).unwrap().timestamp
    };
    assert_eq!(at("t"), Timestamp(5));
    assert!(at("stamped") > Timestamp(5));
}

fn named(store: &Store) -> Producer {
    store.producer().name("meter-17").build().unwrap()
}

#[test]
fn a_named_producer_goes_on_where_it_was_also_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let mut sent = 0;
    for round in 0..4 {
        let store = Store::open(directory.path()).unwrap();
        if round == 0 {
            store.create_topic("t", TopicConfig::new()).unwrap();
        }
        let producer = named(&store);
        assert_eq!(producer.next_sequence("t", 0).unwrap(), sent);
        for _ in 0..10 {
            let value = sent.to_string();
            drop(producer.send(Record::to("t").value(&value)).unwrap());
            sent += 1;
        }
        assert_eq!(producer.next_sequence("t", 0).unwrap(), sent);
        drop(producer);
        assert_eq!(contents(&store.partition("t", 0).unwrap()), numbers(0..sent));
    }
}

#[test]
fn a_second_holder_of_a_name_fences_the_first_at_once() {
    let store = store(TopicConfig::new().partitions(2));
    let first = named(&store);
    first.send(Record::to("t").partition(0).value("0")).unwrap().wait(SECONDS).unwrap();
    let second = named(&store);
    // The new holder has written nowhere yet, and the old one never to this partition.
    for partition in 0..2 {
        let refused = first.send(Record::to("t").partition(partition).value("late"));
        assert!(matches!(refused, Err(Error::ProducerFenced { .. })), "{refused:?}");
    }
    assert!(matches!(first.next_sequence("t", 1), Err(Error::ProducerFenced { .. })));
    assert_eq!(second.next_sequence("t", 0).unwrap(), 1);
    second.send(Record::to("t").partition(0).value("1")).unwrap().wait(SECONDS).unwrap();
    assert_eq!(contents(&store.partition("t", 0).unwrap()), ["0", "1"]);
    let other = store.producer().name("meter-18").build().unwrap();
    assert_eq!(other.next_sequence("t", 0).unwrap(), 0);
}

#[test]
fn names_and_settings_that_do_not_fit_are_refused() {
    let store = store(TopicConfig::new());
    for builder in [
        store.producer().name(""),
        store.producer().name("n".repeat(256)),
        store.producer().name("n").idempotent(false),
        store.producer().property("lingr.ms", "1"),
        store.producer().linger(SECONDS).delivery_timeout(SECONDS / 2),
        store.producer().buffer_bytes(0),
    ] {
        assert!(matches!(builder.build(), Err(Error::InvalidConfig { .. })));
    }
    let plain = store.producer().build().unwrap();
    assert!(matches!(plain.next_sequence("t", 0), Err(Error::InvalidConfig { .. })));
    let builder = store.producer().property("bootstrap.servers", "localhost:9092");
    assert_eq!(builder.ignored_properties(), ["bootstrap.servers"]);
    builder.build().unwrap();
}

#[test]
fn without_numbers_records_are_delivered_all_the_same() {
    let store = store(TopicConfig::new());
    let producer = store.producer().idempotent(false).build().unwrap();
    let barrier = Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                barrier.wait();
                for _ in 0..50 {
                    let delivery = producer.send(Record::to("t").value("v")).unwrap();
                    delivery.wait(SECONDS).unwrap();
                }
            });
        }
    });
    assert_eq!(store.partition("t", 0).unwrap().log_end_offset(), Offset(200));
}
