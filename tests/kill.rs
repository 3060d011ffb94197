//! Kill -9, again and again, beside a journal that the store knows nothing of.
//!
//! The test starts itself as a child that appends from several threads and writes down, outside, what was
//! acknowledged. The parent kills it at a random moment, opens the store and compares.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test may fail loudly, and a child speaks to its parent"
)]

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use oncelog::{Acks, EventKind, Flush, Offset, ReadOptions, Record, Store, TopicConfig};

const PARTITIONS: u32 = 3;
const CHILD: &str = "ONCELOG_KILL_CHILD";

fn value(partition: u32, round: u64, number: u64) -> Vec<u8> {
    let mut value = format!("{partition} {round} {number} ").into_bytes();
    let len = usize::try_from((number * 37 + round) % 900).unwrap();
    value.extend((0..len).map(|at| u8::try_from((at as u64 * 31 + number) % 251).unwrap()));
    value
}

/// Appends until it is killed. `directory` and `journal` come in the environment.
fn child() {
    let directory = std::env::var("ONCELOG_KILL_DIR").unwrap();
    let round: u64 = std::env::var("ONCELOG_KILL_ROUND").unwrap().parse().unwrap();
    let store = Store::open(&directory).unwrap();
    println!("ready");
    std::thread::scope(|scope| {
        for number in 0..PARTITIONS {
            let partition = store.partition("t", number).unwrap();
            let journal = Path::new(&directory).with_extension(format!("journal-{number}"));
            let mut journal = OpenOptions::new().append(true).create(true).open(journal).unwrap();
            scope.spawn(move || {
                for at in 0.. {
                    let value = value(number, round, at);
                    let appended = partition.append(&[Record::new(&value)], Acks::All).unwrap();
                    // A kill may cut a line where a page ends: what lacks its full stop does not count,
                    // and the next line begins afresh.
                    let line = format!("\n{} {round} {at} .", appended.offsets.start);
                    journal.write_all(line.as_bytes()).unwrap();
                }
            });
        }
    });
}

/// What the journal of a partition acknowledges: offset to (round, number).
fn journal(directory: &Path, number: u32) -> BTreeMap<u64, (u64, u64)> {
    let path = directory.with_extension(format!("journal-{number}"));
    let Ok(file) = File::open(path) else { return BTreeMap::new() };
    let mut known = BTreeMap::new();
    for line in BufReader::new(file).lines() {
        let line = line.unwrap();
        let Some(line) = line.strip_suffix(" .") else { continue };
        let fields: Vec<u64> = line.split(' ').filter_map(|field| field.parse().ok()).collect();
        if let [offset, round, at] = fields[..] {
            known.insert(offset, (round, at));
        }
    }
    known
}

fn check(directory: &Path, store: &Store) {
    for event in store.events() {
        assert!(!matches!(event.kind, EventKind::Damaged { .. }), "{event}");
    }
    for number in 0..PARTITIONS {
        let partition = store.partition("t", number).unwrap();
        let mut known = journal(directory, number);
        let mut offset = Offset(0);
        let mut last = (0, None);
        while offset < partition.high_watermark() {
            let records = partition.read(offset, ReadOptions::new()).unwrap();
            for record in &records {
                let text = String::from_utf8_lossy(record.value().unwrap());
                let fields: Vec<u64> =
                    text.split(' ').take(3).filter_map(|field| field.parse().ok()).collect();
                let (round, at) = (fields[1], fields[2]);
                assert_eq!(
                    record.value().unwrap(),
                    value(number, round, at),
                    "bytes at {}",
                    record.offset()
                );
                let next = if last.0 == round { last.1.map_or(0, |at: u64| at + 1) } else { 0 };
                assert_eq!(at, next, "order at {}", record.offset());
                last = (round, Some(at));
                if let Some(acknowledged) = known.remove(&record.offset().0) {
                    assert_eq!(acknowledged, (round, at), "offset {}", record.offset());
                }
            }
            offset = records.next_offset();
        }
        assert!(
            known.is_empty(),
            "partition {number}: lost {:?} of {}..{offset}",
            known.first_key_value(),
            0
        );
    }
}

fn kill_loop(flush: Flush, kills: u64, seed: u64) {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path().join("data");
    let store = Store::open(&directory).unwrap();
    store
        .create_topic(
            "t",
            TopicConfig::new().partitions(PARTITIONS).flush(flush).segment_bytes(64 << 10),
        )
        .unwrap();
    drop(store);
    let mut random = seed;
    for round in 1..=kills {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kills_lose_nothing", "--nocapture"])
            .env(CHILD, "1")
            .env("ONCELOG_KILL_DIR", &directory)
            .env("ONCELOG_KILL_ROUND", round.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(
            lines.any(|line| line.unwrap().contains("ready")),
            "round {round}: the child did not open"
        );
        let lifetime = Duration::from_micros(random >> 40 & 0x3fff);
        let started = Instant::now();
        while started.elapsed() < lifetime {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        if round % 4 == 0 || round == kills {
            let store = Store::open(&directory).unwrap();
            check(&directory, &store);
            store.close(Duration::from_secs(10)).unwrap();
        }
    }
}

#[test]
fn kills_lose_nothing() {
    if std::env::var_os(CHILD).is_some() {
        return child();
    }
    let seed = std::env::var("ONCELOG_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    eprintln!("replay with: ONCELOG_SEED={seed} cargo test --all-features --test kill");
    kill_loop(Flush::OnAck, 100, seed);
    kill_loop(Flush::Os, 100, seed + 1);
}
