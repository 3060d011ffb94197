//! Kill -9 of a named producer, again and again: at the end its source is in the log, each record once, in order.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test may fail loudly, and a child speaks to its parent"
)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use oncelog::{Flush, Offset, ReadOptions, Record, Store, TopicConfig};

const PARTITIONS: u32 = 3;
const CHILD: &str = "ONCELOG_KILL_PRODUCER";
const SECONDS: Duration = Duration::from_secs(30);

/// Replays its source from where the log is, until it is killed.
fn child() {
    let directory = std::env::var("ONCELOG_KILL_DIR").unwrap();
    let directory = Path::new(&directory);
    let store = Store::open(directory).unwrap();
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
    if std::env::var_os(CHILD).is_some() {
        return child();
    }
    let mut random: u64 =
        std::env::var("ONCELOG_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    eprintln!("replay with: ONCELOG_SEED={random} cargo test --test kill_producer");
    for flush in [Flush::OnAck, Flush::Os] {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("data");
        let store = Store::open(&directory).unwrap();
        let config = TopicConfig::new().partitions(PARTITIONS).flush(flush).segment_bytes(64 << 10);
        store.create_topic("t", config).unwrap();
        drop(store);
        for round in 1..=60 {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "kills_neither_double_nor_lose_what_a_named_producer_sends",
                    "--nocapture",
                ])
                .env(CHILD, "1")
                .env("ONCELOG_KILL_DIR", &directory)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            assert!(lines.any(|line| line.unwrap().contains("ready")), "round {round}");
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let (lifetime, started) =
                (Duration::from_micros(random >> 20 & 0x3fff), Instant::now());
            while started.elapsed() < lifetime {
                std::thread::yield_now();
            }
            child.kill().unwrap();
            child.wait().unwrap();
            if round % 10 == 0 {
                check(&directory);
            }
        }
        let total = check(&directory);
        assert!(total > 0, "the test is about something");
    }
}
