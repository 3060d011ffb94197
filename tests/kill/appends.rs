//! Kill -9, again and again, beside a journal that the store knows nothing of.
//!
//! The test starts itself as a child that appends from several threads and writes down, outside, what was
//! acknowledged. The parent kills it at a random moment, opens the store and compares. With three disks, one
//! of them is removed, emptied, damaged or put back to an earlier state between the runs.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use oncelog::{
    Acks, DiskState, Error, EventKind, Flush, Offset, ReadOptions, Record, Store, TopicConfig,
    VerifyOptions,
};

use crate::killed;
use crate::random::{Random, setting};

const PARTITIONS: u32 = 3;
/// How many disks a child's store has.
const DISKS: &str = "ONCELOG_KILL_DISKS";

fn value(partition: u32, round: u64, number: u64) -> Vec<u8> {
    let mut value = format!("{partition} {round} {number} ").into_bytes();
    let len = usize::try_from((number * 37 + round) % 900).unwrap();
    value.extend((0..len).map(|at| u8::try_from((at as u64 * 31 + number) % 251).unwrap()));
    value
}

/// The store's directories, one a disk.
fn directories(directory: &Path, disks: usize) -> Vec<PathBuf> {
    (0..disks).map(|at| directory.with_extension(format!("disk-{at}"))).collect()
}

/// Opens the store, as an operator does: a disk that is not there any more is replaced by an empty one.
fn open(directory: &Path, disks: usize) -> Store {
    let directories = directories(directory, disks);
    let builder = || {
        let builder = Store::builder();
        directories.iter().fold(builder, |builder, path| builder.disk(path))
    };
    let store = match builder().open() {
        Err(Error::MissingDisk { disk, .. }) => builder().allow_missing(disk).open(),
        opened => opened,
    };
    let store = store.unwrap();
    for disk in store.disks() {
        if disk.state == DiskState::Missing {
            let path = &directories[usize::from(disk.id.0)];
            // What is there is of a disk that was replaced since: an operator sets it aside.
            let _ = std::fs::remove_dir_all(path);
            store.replace_disk(disk.id, path).unwrap();
        }
    }
    store
}

/// Appends until it is killed.
fn child() {
    let (directory, round) = killed::task();
    let disks: usize = std::env::var(DISKS).unwrap().parse().unwrap();
    let store = open(&directory, disks);
    println!("ready");
    std::thread::scope(|scope| {
        for number in 0..PARTITIONS {
            let partition = store.partition("t", number).unwrap();
            let journal = directory.with_extension(format!("journal-{number}"));
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

/// What becomes of one disk between two runs.
fn trouble(path: &Path, earlier: &Path, random: u64) -> String {
    match random % 6 {
        0 => {
            std::fs::remove_dir_all(path).unwrap();
            "removed".to_owned()
        }
        1 => {
            std::fs::remove_dir_all(path).unwrap();
            std::fs::create_dir(path).unwrap();
            "emptied".to_owned()
        }
        2 if earlier.exists() => {
            std::fs::remove_dir_all(path).unwrap();
            copy(earlier, path);
            "an earlier copy".to_owned()
        }
        3 => {
            copy(path, earlier);
            "copied for later".to_owned()
        }
        _ => {
            let mut files = files(path);
            files.retain(|file| std::fs::metadata(file).unwrap().len() > 0);
            let file = &files[usize::try_from(random / 8 % files.len() as u64).unwrap()];
            let mut bytes = std::fs::read(file).unwrap();
            let at = usize::try_from(random / 4096 % bytes.len() as u64).unwrap();
            bytes[at] ^= 1 << (random % 8);
            std::fs::write(file, bytes).unwrap();
            format!("byte {at} of {} flipped", file.display())
        }
    }
}

fn files(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    if to.exists() {
        std::fs::remove_dir_all(to).unwrap();
    }
    for file in files(from) {
        let to = to.join(file.strip_prefix(from).unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(file, to).unwrap();
    }
}

/// Waits until every replica is in sync again: the next trouble may then be with another disk.
fn heal(store: &Store, disks: usize) {
    let deadline = Instant::now() + Duration::from_secs(30);
    for number in 0..PARTITIONS {
        let partition = store.partition("t", number).unwrap();
        while partition.in_sync_replicas().len() < disks
            || partition.high_watermark() < partition.log_end_offset()
        {
            if Instant::now() > deadline {
                let events: Vec<_> = store.events().map(|event| event.to_string()).collect();
                let in_sync = partition.in_sync_replicas();
                panic!("partition {number} is in sync on {in_sync:?} only: {events:#?}");
            }
            std::thread::yield_now();
        }
    }
}

fn kill_loop(flush: Flush, disks: usize, kills: u64, seed: u64) {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path().join("data");
    let store = open(&directory, disks);
    let config = TopicConfig::new()
        .partitions(PARTITIONS)
        .replication_factor(u16::try_from(disks).unwrap())
        .min_insync_replicas(if disks > 1 { 2 } else { 1 })
        .flush(flush)
        .segment_bytes(64 << 10);
    store.create_topic("t", config).unwrap();
    drop(store);
    let mut random = Random(seed);
    for round in 1..=kills {
        let mut command = killed::command(module_path!(), "kills_lose_nothing", &directory, round);
        let child = killed::start(command.env(DISKS, disks.to_string()));
        killed::kill_after(child, Duration::from_micros(random.below(1 << 14)));
        if disks > 1 {
            let at = random.index(disks);
            let path = &directories(&directory, disks)[at];
            let done =
                trouble(path, &path.with_extension(format!("earlier-{at}")), random.below(1 << 31));
            eprintln!("round {round}, disk {at}: {done}");
            let store = open(&directory, disks);
            heal(&store, disks);
            check(&directory, &store);
            let report = store.verify(VerifyOptions::new().repair(true)).unwrap();
            assert!(report.damages.iter().all(|damage| damage.repaired), "{:?}", report.damages);
            store.close(Duration::from_secs(10)).unwrap();
        } else if round % 4 == 0 || round == kills {
            let store = open(&directory, disks);
            for event in store.events() {
                assert!(!matches!(event.kind, EventKind::Damaged { .. }), "{event}");
            }
            check(&directory, &store);
            store.close(Duration::from_secs(10)).unwrap();
        }
    }
}

#[test]
fn kills_lose_nothing() {
    if killed::is_child() {
        return child();
    }
    let seed = setting("ONCELOG_SEED", 7);
    eprintln!("replay with: ONCELOG_SEED={seed} cargo test --all-features --test kill appends");
    // Side by side: each of them mostly waits for its disks.
    std::thread::scope(|scope| {
        for (at, flush, disks, kills) in [
            (0, Flush::OnAck, 1, 100),
            (1, Flush::Os, 1, 100),
            (2, Flush::OnAck, 3, 40),
            (3, Flush::Os, 3, 40),
        ] {
            scope.spawn(move || kill_loop(flush, disks, kills, seed + at));
        }
    });
}

/// Reads on from where the last look ended, as somebody who follows.
fn follow(view: &Store, next: &mut [u64]) {
    for (number, next) in (0..).zip(next) {
        let partition = view.partition("t", number).unwrap();
        let end = partition.high_watermark();
        assert!(end.0 >= *next, "partition {number} ended at {next}, and ends at {end}");
        while *next < end.0 {
            let records = partition.read(Offset(*next), ReadOptions::new()).unwrap();
            for record in &records {
                assert_eq!(record.offset().0, *next);
                *next += 1;
            }
        }
    }
}

#[test]
fn a_view_beside_a_writer_that_is_killed_and_comes_back_sees_all_that_it_acknowledged() {
    if killed::is_child() {
        return;
    }
    let seed = setting("ONCELOG_SEED", 7);
    eprintln!("replay with: ONCELOG_SEED={seed} cargo test --all-features --test kill appends");
    killed::at_both_levels(seed, |flush, seed| {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("data");
        let store = open(&directory, 1);
        let config = TopicConfig::new().partitions(PARTITIONS).flush(flush).segment_bytes(64 << 10);
        store.create_topic("t", config).unwrap();
        drop(store);
        let view = Store::open_read_only(&directories(&directory, 1)[0]).unwrap();
        let held: Vec<_> =
            (0..PARTITIONS).map(|number| view.partition("t", number).unwrap()).collect();
        let mut next = [0; PARTITIONS as usize];
        let mut random = Random(seed);
        for round in 1..=9 {
            let mut command =
                killed::command(module_path!(), "kills_lose_nothing", &directory, round);
            let mut child = killed::start(command.env(DISKS, "1"));
            let lifetime = Duration::from_micros(random.below(1 << 13));
            let started = Instant::now();
            while started.elapsed() < lifetime {
                follow(&view, &mut next);
            }
            child.kill().unwrap();
            child.wait().unwrap();
            follow(&view, &mut next);
            if round % 3 == 0 {
                check(&directory, &view);
                let store = open(&directory, 1);
                for (number, held) in (0..).zip(&held) {
                    let partition = store.partition("t", number).unwrap();
                    let fresh = view.partition("t", number).unwrap();
                    let ends = [held, &fresh].map(|seen| seen.high_watermark());
                    assert_eq!(ends, [partition.high_watermark(); 2], "partition {number}");
                }
                if round % 2 == 0 {
                    store.close(Duration::from_secs(10)).unwrap();
                }
            }
        }
    });
}
