//! Kill -9 of a named producer, again and again: at the end its source is in the log, each record once, in order.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use oncelog::{Flush, Offset, ReadOptions, Record, Store, TopicConfig};

use crate::killed;
use crate::random::{Random, setting};

const TEST: &str = "kills_neither_double_nor_lose_what_a_named_producer_sends";
const PARTITIONS: u32 = 3;
const SECONDS: Duration = Duration::from_secs(30);

/// Replays its source from where the log is, until it is killed.
fn child() {
    let (directory, _) = killed::task();
    let store = Store::open(&directory).unwrap();
    let producer = store.producer().name("meter-17").build().unwrap();
    println!("ready");
    std::thread::scope(|scope| {
        for partition in 0..PARTITIONS {
            let producer = producer.clone();
            let journal = directory.with_extension(format!("journal-{partition}"));
            scope.spawn(move || {
                let mut journal =
                    std::fs::OpenOptions::new().append(true).create(true).open(journal).unwrap();
                let mut next = producer.next_sequence("t", partition).unwrap();
                loop {
                    let deliveries: Vec<_> = (0..1 + next % 7)
                        .map(|at| {
                            let value = (next + at).to_string();
                            let record = Record::to("t").partition(partition).value(&value);
                            producer.send(record).unwrap()
                        })
                        .collect();
                    next += deliveries.len() as u64;
                    for delivery in deliveries {
                        delivery.wait(SECONDS).unwrap();
                    }
                    journal.write_all(format!("\n{next} .").as_bytes()).unwrap();
                }
            });
        }
    });
}

/// How many records of the partition were delivered, by what the children wrote down.
fn delivered(directory: &Path, partition: u32) -> u64 {
    let journal = directory.with_extension(format!("journal-{partition}"));
    let text = std::fs::read_to_string(journal).unwrap_or_default();
    let whole = text.lines().filter_map(|line| line.strip_suffix(" .")?.parse().ok());
    whole.max().unwrap_or(0)
}

fn check(directory: &Path) -> u64 {
    let store = Store::open(directory).unwrap();
    let mut total = 0;
    for number in 0..PARTITIONS {
        let partition = store.partition("t", number).unwrap();
        let (mut next, mut expected) = (Offset(0), 0_u64);
        while next < partition.high_watermark() {
            let records = partition.read(next, ReadOptions::new()).unwrap();
            for record in &records {
                assert_eq!(record.value().unwrap(), expected.to_string().as_bytes());
                expected += 1;
            }
            next = records.next_offset();
        }
        let delivered = delivered(directory, number);
        assert!(expected >= delivered, "partition {number}: {expected} of {delivered}");
        total += expected;
    }
    store.close(SECONDS).unwrap();
    total
}

#[test]
fn kills_neither_double_nor_lose_what_a_named_producer_sends() {
    if killed::is_child() {
        return child();
    }
    let seed = setting("ONCELOG_SEED", 7);
    eprintln!("replay with: ONCELOG_SEED={seed} cargo test --test kill producer");
    killed::at_both_levels(seed, kill_loop);
}

fn kill_loop(flush: Flush, seed: u64) {
    let mut random = Random(seed);
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path().join("data");
    let store = Store::open(&directory).unwrap();
    let config = TopicConfig::new().partitions(PARTITIONS).flush(flush).segment_bytes(64 << 10);
    store.create_topic("t", config).unwrap();
    drop(store);
    for round in 1..=60 {
        let child = killed::start(&mut killed::command(module_path!(), TEST, &directory, round));
        killed::kill_after(child, Duration::from_micros(random.below(1 << 14)));
        if round % 10 == 0 {
            check(&directory);
        }
    }
    let total = check(&directory);
    assert!(total > 0, "the test is about something");
}
