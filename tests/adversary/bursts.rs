//! Records that gather in bursts, where nobody looks at them, the store closes, time is short, or the partition is taken away.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use oncelog::{
    Acks, DiskId, Error, Flush, Offset, Partition, Producer, ReadOptions, Record, Store,
    TopicConfig,
};

/// No test waits that long; one that does has found a hang.
const LONG: Duration = Duration::from_secs(20);

fn store(disks: u16) -> Store {
    let store = Store::in_memory(disks.into()).unwrap();
    let config = TopicConfig::new().flush(Flush::Os).replication_factor(disks);
    store.create_topic("t", config).unwrap();
    store
}

fn log(store: &Store) -> Partition {
    store.partition("t", 0).unwrap()
}

/// Everything, in the order of the log.
fn values(partition: &Partition) -> Vec<u64> {
    let (mut offset, mut values) = (Offset(0), Vec::new());
    while offset < partition.high_watermark() {
        let records = partition.read(offset, ReadOptions::new()).unwrap();
        values.extend(records.iter().map(|one| number(one.value().unwrap())));
        offset = records.next_offset();
    }
    values
}

fn number(value: &[u8]) -> u64 {
    u64::from_le_bytes(value.try_into().unwrap())
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < LONG, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Sends numbers as fast as it can, without looking, and lets go of the deliveries.
fn burst(producer: &Producer, numbers: std::ops::Range<u64>) -> Result<(), Error> {
    for at in numbers {
        drop(producer.send(Record::to("t").value(&at.to_le_bytes()))?);
    }
    Ok(())
}

/// What gathers in a store that is closed already would be left to nobody.
#[test]
fn whoever_sends_amid_a_burst_when_the_store_is_closed_is_told_so() {
    for _ in 0..50 {
        let store = store(1);
        let producer = store.producer().batch_bytes(100).build().unwrap();
        // Each is a batch of its own, so that nothing is left to gather.
        let large = vec![7; 40];
        for _ in 0..200 {
            drop(producer.send(Record::to("t").value(&large)).unwrap());
        }
        store.close(LONG).unwrap();
        let called = |_| panic!("what was refused is told by the refusal alone");
        let sent = producer.send_with(Record::to("t").value("v"), called);
        assert!(matches!(sent, Err(Error::Closed)), "{sent:?}");
        assert_eq!(producer.counters().callback_panics, 0);
    }
}

#[test]
fn whoever_was_taken_while_the_store_closes_is_told_of_it() {
    let mut all = 0;
    for round in 0..300 {
        let store = store(1);
        let producer = store.producer().build().unwrap();
        let (taken, told) = (AtomicU64::new(0), Arc::new(AtomicU64::new(0)));
        let goes_on = AtomicBool::new(true);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while goes_on.load(Ordering::Relaxed) {
                        let told = Arc::clone(&told);
                        let sent = producer.send_with(Record::to("t").value("v"), move |_| {
                            told.fetch_add(1, Ordering::Relaxed);
                        });
                        if sent.is_err() {
                            break;
                        }
                        // Some stop amid a burst.
                        let sent = taken.fetch_add(1, Ordering::Relaxed);
                        if sent > 500 && sent % 97 == round % 97 {
                            thread::sleep(Duration::from_micros(400));
                        }
                    }
                });
            }
            // The close meets them at another point each time.
            thread::sleep(Duration::from_micros(300 + round * 7 % 900));
            store.close(LONG).unwrap();
            goes_on.store(false, Ordering::Relaxed);
        });
        wait_until("a callback is never called", || {
            told.load(Ordering::Relaxed) == taken.load(Ordering::Relaxed)
        });
        all += taken.load(Ordering::Relaxed);
    }
    assert!(all > 0, "the test is about something");
}

/// They were left to gather for longer than they had.
#[test]
fn records_that_have_little_time_are_delivered_by_a_store_that_works() {
    let store = store(1);
    let producer = store.producer().delivery_timeout(Duration::from_micros(200)).build().unwrap();
    for _ in 0..300 {
        let sent: Vec<_> = (0..200_u64)
            .map(|at| producer.send(Record::to("t").value(&at.to_le_bytes())).unwrap())
            .collect();
        // Far longer than the records have: whatever was left to gather is over by now.
        thread::sleep(Duration::from_millis(1));
        for delivery in sent {
            delivery.wait(LONG).unwrap();
        }
    }
}

#[test]
fn a_buffer_that_is_full_of_records_that_nobody_looks_at_comes_free_by_itself() {
    for buffer_bytes in [600, 3000, 5000] {
        let store = store(1);
        let builder = store.producer().buffer_bytes(buffer_bytes).max_block(LONG);
        let producer = builder.build().unwrap();
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| burst(&producer, 0..20_000).unwrap());
            }
        });
        wait_until("records are left", || log(&store).high_watermark() == Offset(60_000));
        // By whoever appended the last ones, who may not be back yet.
        wait_until("room is kept", || producer.counters().buffered_bytes == 0);
    }
}

#[test]
fn what_several_threads_send_every_way_comes_once_in_the_order_of_each_and_is_told_in_order() {
    const THREADS: u64 = 3;
    const EACH: u64 = 20_000;
    let store = store(1);
    let producer = store.producer().build().unwrap();
    let told: Arc<Mutex<Vec<u64>>> = Arc::default();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (producer, told) = (&producer, &told);
            scope.spawn(move || {
                for at in 0..EACH {
                    let value = (thread << 32 | at).to_le_bytes();
                    let record = Record::to("t").value(&value);
                    match at.wrapping_mul(0x9e37_79b9) >> 8 & 63 {
                        0 => drop(producer.send(record).unwrap().wait(LONG).unwrap()),
                        1 => drop(producer.send(record).unwrap().outcome()),
                        2 => producer.flush(LONG).and(producer.send(record).map(drop)).unwrap(),
                        3 => panic_when_told(producer, record),
                        4..8 => {
                            let told = Arc::clone(told);
                            let tell = move |placed: Result<oncelog::RecordMetadata, Error>| {
                                told.lock().unwrap().push(placed.unwrap().offset.0);
                            };
                            producer.send_with(record, tell).unwrap();
                        }
                        _ => drop(producer.send(record).unwrap()),
                    }
                }
            });
        }
    });
    producer.flush(LONG).unwrap();
    let all = values(&log(&store));
    assert_eq!(all.len() as u64, THREADS * EACH);
    for thread in 0..THREADS {
        let own = all.iter().filter(|value| *value >> 32 == thread);
        assert!(own.map(|value| value & 0xffff_ffff).eq(0..EACH), "of thread {thread}");
    }
    assert!(told.lock().unwrap().is_sorted(), "callbacks come in order");
    assert!(producer.counters().callback_panics > 0);
}

fn panic_when_told(producer: &Producer, record: oncelog::ProducerRecord<'_>) {
    producer.send_with(record, |_| std::panic::resume_unwind(Box::new("a callback's"))).unwrap();
}

#[test]
fn bursts_come_once_and_in_order_under_every_leader() {
    let store = store(3);
    let producer = store.producer().build().unwrap();
    let partition = log(&store);
    let done = AtomicBool::new(false);
    let sent = thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut sent = 0;
            while !done.load(Ordering::Relaxed) {
                burst(&producer, sent..sent + 500).unwrap();
                sent += 500;
                thread::sleep(Duration::from_millis(1));
            }
            sent
        });
        for disk in [0, 1, 2, 0, 1, 2].map(DiskId) {
            store.stop_disk(disk).unwrap();
            // The sender goes on under the next leader for a while.
            thread::sleep(Duration::from_millis(50));
            store.start_disk(disk).unwrap();
            wait_until("all replicas are in sync", || partition.in_sync_replicas().len() == 3);
        }
        done.store(true, Ordering::Relaxed);
        sender.join().unwrap()
    });
    wait_until("records are left", || partition.high_watermark() >= Offset(sent));
    assert!(sent > 0, "the test is about something");
    assert!(values(&partition).into_iter().eq(0..sent));
}

#[test]
fn bursts_into_a_topic_that_comes_again_and_again_are_each_told_once() {
    let store = store(1);
    let producer = store.producer().build().unwrap();
    let told = Arc::new(AtomicU64::new(0));
    let (mut taken, done) = (0, AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..100 {
                thread::sleep(Duration::from_millis(2));
                store.delete_topic("t").unwrap();
                store.create_topic("t", TopicConfig::new().flush(Flush::Os)).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        while !done.load(Ordering::Relaxed) {
            let told = Arc::clone(&told);
            let sent = producer.send_with(Record::to("t").value("v"), move |_| {
                told.fetch_add(1, Ordering::Relaxed);
            });
            match sent {
                Ok(()) => taken += 1,
                Err(Error::UnknownTopicOrPartition { .. }) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
    });
    wait_until("a callback is never called", || told.load(Ordering::Relaxed) == taken);
    assert!(taken > 0, "the test is about something");
}

/// Nobody else does it.
#[test]
fn a_producer_that_goes_amid_a_burst_has_sent_all_of_it() {
    for round in 0..200 {
        let store = store(1);
        let producer = store.producer().acks(Acks::Leader).build().unwrap();
        burst(&producer, 0..40 + round).unwrap();
        drop(producer);
        assert!(values(&log(&store)).into_iter().eq(0..40 + round), "{round}");
    }
}

/// The last records of its burst were left to the thread that it held up.
#[test]
fn a_callback_that_sends_a_burst_may_wait_for_what_it_sent() {
    let store = store(1);
    store.create_topic("slow", TopicConfig::new().flush(Flush::OnAck)).unwrap();
    let (told, sends) = (store.producer().build().unwrap(), store.producer().build().unwrap());
    let (tell, heard) = channel();
    let partition = log(&store);
    // Of a record that nobody waits for, so that the store's own thread calls it.
    let callback = move |placed: Result<oncelog::RecordMetadata, Error>| {
        placed.unwrap();
        for round in 1..=50 {
            burst(&sends, (round - 1) * 200..round * 200).unwrap();
            let seen = partition.wait_for(Offset(round * 200 - 1), LONG / 4);
            tell.send(seen.is_ok()).unwrap();
        }
    };
    told.send_with(Record::to("slow").value("v"), callback).unwrap();
    for round in 1..=50 {
        assert!(heard.recv_timeout(LONG).unwrap(), "{round}");
    }
}
