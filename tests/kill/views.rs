//! Views beside a writer on three disks that is killed again and again: it appends, runs transactions of which some are
//! aborted, deletes records, and stops and starts disks, so that others lead.
//!
//! Whatever a view has shown, at either isolation, is there at the next opening, at its place; no end goes backwards; and
//! nobody is shown what was aborted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oncelog::{
    Acks, DiskId, Error, Flush, Isolation, Offset, Partition, ReadOptions, Record, StorageMode,
    Store, StoreBuilder, TopicConfig, TransactionalProducer, VerifyOptions,
};

use crate::killed;
use crate::random::{Random, setting};

const DISKS: usize = 3;
/// Set for a child that shows views no page of offsets.
const WRITES: &str = "ONCELOG_KILL_WRITES";
/// Of `t`, which transactions write; `p` has one.
const HALVES: u32 = 2;
const BOTH: [Isolation; 2] = [Isolation::ReadUncommitted, Isolation::ReadCommitted];

fn directories(directory: &Path) -> Vec<PathBuf> {
    (0..DISKS).map(|at| directory.with_extension(format!("disk-{at}"))).collect()
}

fn builder(directory: &Path) -> StoreBuilder {
    directories(directory).iter().fold(Store::builder(), |builder, path| builder.disk(path))
}

fn partitions() -> impl Iterator<Item = (&'static str, u32)> {
    std::iter::once(("p", 0)).chain((0..HALVES).map(|half| ("t", half)))
}

/// Works until it is killed.
fn child() {
    let (directory, round) = killed::task();
    let mode = std::env::var_os(WRITES).map_or(StorageMode::Auto, |_| StorageMode::Write);
    let store = builder(&directory).storage_mode(mode).open().unwrap();
    println!("ready");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let partition = store.partition("p", 0).unwrap();
            for at in 0.. {
                let value = format!("{round} {at} c {}", "x".repeat(at % 700));
                // Too few disks may be there for a moment.
                let _ = partition.append(&[Record::new(&value)], Acks::All);
            }
        });
        scope.spawn(|| {
            for at in 0.. {
                let Ok(mut producer) = store.producer().transactional_id("id").build() else {
                    continue;
                };
                let _ = transact(&mut producer, round, at);
            }
        });
        scope.spawn(|| {
            for at in 0_u16.. {
                let disk = DiskId(at % 3);
                let _ = store.stop_disk(disk);
                std::thread::sleep(Duration::from_millis(u64::from(at % 4)));
                let _ = store.start_disk(disk);
                for (topic, number) in partitions() {
                    let partition = store.partition(topic, number).unwrap();
                    let until = partition.high_watermark().0.saturating_sub(150);
                    let _ = partition.delete_records(Offset(until));
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        });
    });
}

/// A few transactions under one holder, every third of them aborted.
fn transact(producer: &mut TransactionalProducer, round: u64, first: u64) -> Result<(), Error> {
    for at in first * 10..first * 10 + 10 {
        let mut transaction = producer.begin()?;
        let fate = if at % 3 == 0 { "a" } else { "c" };
        for half in 0..HALVES {
            let value = format!("{round} {at} {fate} {}", "y".repeat(300));
            transaction.append("t", half, &[Record::new(&value)])?;
        }
        if fate == "a" {
            transaction.abort(Duration::from_secs(10))?;
        } else {
            transaction.commit(Duration::from_secs(10))?;
        }
    }
    Ok(())
}

/// What was shown of a partition at one isolation.
#[derive(Debug, Default)]
struct Shown {
    records: BTreeMap<u64, Vec<u8>>,
    end: u64,
}

type All = BTreeMap<(&'static str, u32, bool), Shown>;

fn end_of(partition: &Partition, isolation: Isolation) -> Offset {
    match isolation {
        Isolation::ReadUncommitted => partition.high_watermark(),
        Isolation::ReadCommitted => partition.last_stable_offset(),
    }
}

/// Reads on from where the last look ended. Who sees no leader sees nothing.
fn follow(partition: &Partition, isolation: Isolation, shown: &mut Shown) -> Result<(), Error> {
    let (name, end) = (partition.name().clone(), end_of(partition, isolation).0);
    // A commit is read before its marker is acknowledged, as its decision is: who leads next may have to write that anew.
    let may_come_again = isolation == Isolation::ReadCommitted;
    assert!(
        end >= shown.end || may_come_again,
        "{name}, {isolation:?}: ended at {}, and ends at {end} {partition:?}",
        shown.end
    );
    while shown.end < end {
        let options = ReadOptions::new().isolation(isolation);
        match partition.read(Offset(shown.end), options) {
            Ok(records) => {
                for record in &records {
                    let value = record.value().unwrap().to_vec();
                    assert!(record.offset().0 >= shown.end, "{name}: {} comes again", shown.end);
                    shown.records.insert(record.offset().0, value);
                }
                let next = records.next_offset().0;
                assert!(next > shown.end, "{name}, {isolation:?}: nothing at {next}");
                shown.end = next;
            }
            Err(Error::OffsetOutOfRange { start, .. }) if start.0 > shown.end => {
                shown.end = start.0;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Of one that is kept, and of those that are made anew for each look: the next must not see less.
fn look(view: &Store, held: &mut Vec<(Partition, [Shown; 2])>, all: &mut All) {
    let see = |partition: &Partition, isolation, shown: &mut Shown| {
        if let Err(error) = follow(partition, isolation, shown) {
            assert!(matches!(error, Error::NoLeader { .. }), "{}: {error}", partition.name());
        }
    };
    for (partition, shown) in held {
        for (isolation, shown) in BOTH.into_iter().zip(shown) {
            see(partition, isolation, shown);
        }
    }
    for (topic, number) in partitions() {
        match view.partition(topic, number) {
            Ok(partition) => {
                for isolation in BOTH {
                    let committed = isolation == Isolation::ReadCommitted;
                    let shown = all.entry((topic, number, committed)).or_default();
                    see(&partition, isolation, shown);
                }
            }
            Err(error) => {
                assert!(matches!(error, Error::NoLeader { .. }), "{topic}/{number}: {error}");
            }
        }
    }
}

/// What one that was kept has shown is what the others have.
fn agree(held: Vec<(Partition, [Shown; 2])>, all: &mut All) {
    for (partition, shown) in held {
        let place = partitions().find(|(topic, number)| {
            partition.name().topic() == *topic && partition.name().partition() == *number
        });
        let (topic, number) = place.unwrap();
        for (committed, shown) in [false, true].into_iter().zip(shown) {
            let known = all.entry((topic, number, committed)).or_default();
            for (offset, value) in shown.records {
                let before = known.records.insert(offset, value.clone());
                assert!(before.is_none_or(|before| before == value), "{topic}/{number}: {offset}");
            }
            // Whoever looks next must not see less.
            known.end = known.end.max(shown.end);
        }
    }
}

/// What the next opening has, held against what views have shown.
fn judge(store: &Store, all: &All) {
    for ((topic, number, committed), shown) in all {
        let what = format!("{topic}/{number}, committed: {committed}");
        let partition = store.partition(topic, *number).unwrap();
        let isolation = BOTH[usize::from(*committed)];
        if let Some(last) = shown.end.checked_sub(1).map(Offset) {
            // The replicas agree anew on how far they are.
            let patience = Duration::from_secs(20);
            match isolation {
                Isolation::ReadUncommitted => partition.wait_for(last, patience),
                Isolation::ReadCommitted => partition.wait_for_committed(last, patience),
            }
            .expect(&what);
        }
        let start = partition.log_start_offset().0;
        let mut now = Shown { end: start, ..Shown::default() };
        follow(&partition, isolation, &mut now).unwrap();
        assert!(now.end >= shown.end, "{what}: {} of {}", now.end, shown.end);
        for (offset, value) in shown.records.range(start..) {
            let found = now.records.get(offset);
            assert_eq!(found, Some(value), "{what}: {offset} of {start}..{}", now.end);
        }
        // Nor did a view leave anything out.
        for offset in now.records.range(..shown.end).map(|(offset, _)| offset) {
            let first = shown.records.range(start..).next().map(|(first, _)| *first);
            let is_shown = shown.records.contains_key(offset);
            assert!(is_shown || first.is_none_or(|first| *offset < first), "{what}: {offset}");
        }
        let is_aborted = |value: &Vec<u8>| value.split(|byte| *byte == b' ').nth(2) == Some(b"a");
        assert!(!committed || !shown.records.values().any(is_aborted), "{what}: it was aborted");
    }
}

#[test]
fn what_a_view_has_shown_stays_whatever_becomes_of_its_writer() {
    if killed::is_child() {
        return child();
    }
    let seed = setting("ONCELOG_SEED", 7);
    let kills = setting("ONCELOG_KILLS", 6);
    eprintln!("replay with: ONCELOG_SEED={seed} cargo test --all-features --test kill views");
    // Side by side: each of them mostly waits for its disks.
    std::thread::scope(|scope| {
        for (at, flush, mode) in [
            (0, Flush::OnAck, StorageMode::Auto),
            (1, Flush::Os, StorageMode::Auto),
            (2, Flush::Os, StorageMode::Write),
        ] {
            scope.spawn(move || views_of_killed(flush, mode, seed + at, kills));
        }
    });
}

fn views_of_killed(flush: Flush, mode: StorageMode, seed: u64, kills: u64) {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path().join("data");
    let store = builder(&directory).open().unwrap();
    let config = || {
        TopicConfig::new()
            .replication_factor(3)
            .min_insync_replicas(2)
            .flush(flush)
            .segment_bytes(16 << 10)
    };
    store.create_topic("p", config()).unwrap();
    store.create_topic("t", config().partitions(HALVES)).unwrap();
    drop(store);
    assert!(builder(&scratch.path().join("none")).open_read_only().is_err());
    assert!(!directories(&scratch.path().join("none"))[0].exists(), "nothing was made");
    let mut random = Random(seed);
    let mut all = All::new();
    let view = builder(&directory).open_read_only().unwrap();
    // On a machine that is busy, children may be killed before they have written anything: others live longer, then.
    for round in 1..=kills * 50 {
        if round > kills && all.values().all(|shown| !shown.records.is_empty()) {
            break;
        }
        let test = "what_a_view_has_shown_stays_whatever_becomes_of_its_writer";
        let mut command = killed::command(module_path!(), test, &directory, round);
        if mode == StorageMode::Write {
            command.env(WRITES, "1");
        }
        let child = killed::start(&mut command);
        let mut held = Vec::new();
        for (topic, number) in partitions() {
            let partition = view.partition(topic, number).ok();
            held.extend(partition.map(|partition| (partition, Default::default())));
        }
        let lifetime = Duration::from_micros(random.below(1 << 17) * (1 + (round - 1) / kills));
        std::thread::scope(|scope| {
            // A look may take longer than the child needs to write as much again.
            let killer = scope.spawn(|| killed::kill_after(child, lifetime));
            while !killer.is_finished() {
                look(&view, &mut held, &mut all);
            }
        });
        look(&view, &mut held, &mut all);
        look(&builder(&directory).open_read_only().unwrap(), &mut held, &mut all);
        agree(held, &mut all);
        if round % 3 != 0 && round < kills {
            continue; // the next child recovers
        }
        let store = builder(&directory).storage_mode(mode).open().unwrap();
        judge(&store, &all);
        assert_eq!(store.verify(VerifyOptions::new()).unwrap().damages, []);
        look(&view, &mut Vec::new(), &mut all);
        judge(&store, &all);
        if round % 2 == 0 {
            store.close(Duration::from_secs(10)).unwrap();
        }
    }
    let shown: Vec<_> = all.values().map(|shown| shown.records.len()).collect();
    eprintln!("{flush:?}, {mode:?}: {shown:?} were shown");
    assert!(shown.iter().all(|count| *count > 0), "{shown:?}");
}
