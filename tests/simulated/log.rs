//! One partition on a simulated disk: errors and crashes at every call, flipped and cut files, random
//! stories. The judge knows only what the store acknowledged.

use std::collections::BTreeMap;
use std::time::Duration;

use oncelog::simulation::{Clock, Fault, SimDisk, SyncFault};
use oncelog::{
    Acks, Error, EventKind, Flush, Offset, ReadOptions, Record, Retention, StorageMode, Store,
    Timestamp, TopicConfig, Written,
};

use crate::random::Random;

const SECOND: Duration = Duration::from_secs(1);

/// The bytes of the record at `offset`, if it was the `attempt`-th try to put one there.
fn value(attempt: u64) -> Vec<u8> {
    let len = 1 + attempt % 61;
    let mut bytes = attempt.to_le_bytes().to_vec();
    bytes.extend((0..len).map(|at| u8::try_from((attempt * 31 + at * 7) % 251).unwrap()));
    bytes
}

fn attempt_of(bytes: &[u8]) -> u64 {
    let attempt = u64::from_le_bytes(*bytes.first_chunk().expect("a value of ours"));
    assert_eq!(bytes, value(attempt), "bad bytes");
    attempt
}

/// What an observer outside knows of one partition.
#[derive(Clone, Debug, Default)]
struct Judge {
    attempts: u64,
    /// Acknowledged and not deleted: offset to attempt.
    kept: BTreeMap<u64, u64>,
    /// Acknowledged or not: what may be found at an offset.
    possible: BTreeMap<u64, Vec<u64>>,
    start: u64,
    /// The largest offset for which deletion was asked.
    deleted: u64,
    topic: bool,
}

fn config(flush: Flush) -> TopicConfig {
    TopicConfig::new().flush(flush).segment_bytes(4096).index_interval_bytes(256)
}

fn open(disk: &SimDisk, mode: StorageMode) -> Result<Store, Error> {
    Store::builder()
        .simulated_disk(disk.clone())
        .storage_mode(mode)
        .clock(Clock::manual(Timestamp(1_000_000)))
        .open()
}

impl Judge {
    /// Does something to the store; notes what it promised.
    fn act(&mut self, disk: &SimDisk, store: &Store, flush: Flush, random: &mut Random) {
        if !self.topic {
            match store.create_topic("t", config(flush)) {
                Ok(()) | Err(Error::TopicExists { .. }) if !disk.is_dead() => self.topic = true,
                _ => return,
            }
        }
        let Ok(partition) = store.partition("t", 0) else { return };
        match random.below(20) {
            0 => store.run_background(),
            1 => {
                let before = partition.high_watermark().0;
                let before = random.below(before + 1);
                self.deleted = self.deleted.max(before);
                let deleted = partition.delete_records(Offset(before));
                if let (Ok(start), false) = (deleted, disk.is_dead()) {
                    self.start = self.start.max(start.0);
                    self.kept = self.kept.split_off(&self.start);
                }
            }
            2 => {
                let at = partition.log_start_offset();
                let _ = partition.read(at, ReadOptions::new());
            }
            _ => {
                let count = 1 + random.below(4);
                let values: Vec<_> = (0..count).map(|at| value(self.attempts + at)).collect();
                let records: Vec<_> = values.iter().map(Record::new).collect();
                let end = partition.log_end_offset().0;
                let outcome = partition.append(&records, Acks::All);
                // A store through a mapping cannot fail: a dead process may believe that it appended.
                let acknowledged = outcome.is_ok() && !disk.is_dead();
                let placed = match &outcome {
                    Ok(appended) => Some(appended.offsets.start.0),
                    Err(error) => (error.written() != Written::No).then_some(end),
                };
                for at in 0..count {
                    let attempt = self.attempts + at;
                    if let Some(first) = placed {
                        self.possible.entry(first + at).or_default().push(attempt);
                        if acknowledged {
                            self.kept.insert(first + at, attempt);
                        }
                    } else {
                        // A process that died in the call may have left it.
                        self.possible.entry(end + at).or_default().push(attempt);
                    }
                }
                self.attempts += count;
            }
        }
    }

    /// After a power loss, what was not flushed may be gone: whole suffixes only.
    fn forgive_suffix(&mut self, end: u64) {
        self.kept.split_off(&end);
    }

    /// Reads everything and compares. `lossy`: the flush level does not cover a power loss that came.
    fn judge(&mut self, store: &Store, lossy: bool) {
        if !self.topic {
            return;
        }
        let partition = match store.partition("t", 0) {
            Ok(partition) => partition,
            Err(error) => panic!("the partition is lost: {error:?}"),
        };
        let start = partition.log_start_offset().0;
        assert!(start >= self.start, "records came back from the dead: {start} < {}", self.start);
        assert!(start <= self.deleted, "more was deleted than was asked for");
        let mut found = BTreeMap::new();
        let mut offset = Offset(start);
        loop {
            let records =
                partition.read(offset, ReadOptions::new().max_bytes(3000)).expect("a sound log");
            for record in &records {
                found.insert(record.offset().0, attempt_of(record.value().expect("values only")));
            }
            if records.next_offset() == offset {
                break;
            }
            offset = records.next_offset();
        }
        assert_eq!(found.len() as u64, offset.0 - start, "a gap without an error");
        assert_eq!(offset, partition.high_watermark());
        for (at, attempt) in &found {
            let possible = self.possible.get(at);
            assert!(
                possible.is_some_and(|tries| tries.contains(attempt)),
                "invented: {attempt} at {at}"
            );
        }
        if lossy {
            self.forgive_suffix(offset.0);
        }
        for (at, attempt) in self.kept.range(start..) {
            assert_eq!(
                found.get(at),
                Some(attempt),
                "acknowledged at {at}, log is {start}..{offset}"
            );
        }
        // What was read may be relied upon from now on: it is in the log at that offset.
        for (at, attempt) in found {
            self.possible.insert(at, vec![attempt]);
            if !lossy {
                self.kept.insert(at, attempt);
            }
        }
        self.possible.retain(|at, _| *at < offset.0);
        self.start = start;
    }
}

const STORY: u64 = 30;

/// Tells the story of `seed` on `disk`, up to its end or the death of the process.
fn tell(disk: &SimDisk, judge: &mut Judge, flush: Flush, mode: StorageMode, seed: u64) {
    let mut random = Random(seed);
    for _ in 0..2 {
        let Ok(store) = open(disk, mode) else { return };
        for _ in 0..STORY / 2 {
            judge.act(disk, &store, flush, &mut random);
            if disk.is_dead() {
                return;
            }
        }
        let _ = store.close(SECOND);
    }
}

fn levels() -> [(Flush, StorageMode); 4] {
    [
        (Flush::OnAck, StorageMode::Auto),
        (Flush::OnAck, StorageMode::Write),
        (Flush::Os, StorageMode::Auto),
        (Flush::Interval(SECOND), StorageMode::Auto),
    ]
}

#[test]
fn a_crash_at_every_call_loses_nothing_that_was_acknowledged() {
    for (flush, mode) in levels() {
        for power in [false, true] {
            for n in 1.. {
                let disk = SimDisk::new(n);
                let mut judge = Judge::default();
                disk.crash_at(n);
                tell(&disk, &mut judge, flush, mode, 7);
                let survived = !disk.is_dead();
                if power {
                    disk.power_loss();
                } else {
                    disk.process_restart();
                }
                disk.heal();
                let store = open(&disk, mode).unwrap_or_else(|error| {
                    panic!("{flush:?} {mode:?} power {power} crash {n}: {error:?}")
                });
                judge.judge(&store, power && flush != Flush::OnAck);
                if survived {
                    break;
                }
            }
        }
    }
}

#[test]
fn s19_a_crash_at_every_call_of_every_recovery_loses_nothing_either() {
    for (flush, mode) in levels() {
        for power in [false, true] {
            for n in (5..).step_by(37) {
                let disk = SimDisk::new(n);
                let mut judge = Judge::default();
                disk.crash_at(n);
                tell(&disk, &mut judge, flush, mode, 11);
                let survived = !disk.is_dead();
                if power {
                    disk.power_loss();
                } else {
                    disk.process_restart();
                }
                disk.heal();
                for m in 1.. {
                    let again = disk.fork();
                    let mut judge = judge.clone();
                    again.crash_at(m);
                    let opened = open(&again, mode);
                    let done = !again.is_dead();
                    drop(opened);
                    let crashed_again = again.is_dead() && power && m % 2 == 0;
                    if crashed_again {
                        again.power_loss();
                    } else {
                        again.process_restart();
                    }
                    again.heal();
                    let store = open(&again, mode).unwrap_or_else(|error| {
                        panic!("{flush:?} {mode:?} power {power} crash {n}, again {m}: {error:?}")
                    });
                    judge.judge(&store, power && flush != Flush::OnAck);
                    if done {
                        break;
                    }
                }
                if survived {
                    break;
                }
            }
        }
    }
}

#[test]
fn s8_s9_s10_an_error_at_every_call_loses_nothing_and_the_store_can_be_opened_again() {
    for (flush, mode) in levels() {
        for fault in [Fault::Eio, Fault::Enospc, Fault::ShortIo, Fault::Interrupted] {
            for sticky in [false, true] {
                if sticky && fault == Fault::Interrupted {
                    continue; // a signal that never ends is no fault of a disk
                }
                for n in 1.. {
                    let disk = SimDisk::new(n);
                    let mut judge = Judge::default();
                    if sticky {
                        disk.fail_from(n, fault);
                    } else {
                        disk.fail_call(n, fault);
                    }
                    tell(&disk, &mut judge, flush, mode, 13);
                    let over = disk.calls() < n;
                    disk.heal();
                    disk.process_restart();
                    let store = open(&disk, mode).unwrap_or_else(|error| {
                        panic!("{flush:?} {mode:?} {fault:?} sticky {sticky} at {n}: {error:?}")
                    });
                    judge.judge(&store, false);
                    if over {
                        break;
                    }
                }
            }
        }
    }
}

#[test]
fn s8_a_failed_flush_fences_at_once_and_nothing_that_was_acknowledged_goes_also_after_a_power_loss()
{
    for fault in [SyncFault::CleanedPages, SyncFault::Reverted] {
        for n in 1..60 {
            let disk = SimDisk::new(n);
            let mut judge = Judge::default();
            disk.fail_sync(n, fault);
            tell(&disk, &mut judge, Flush::OnAck, StorageMode::Auto, 17);
            disk.heal();
            disk.process_restart();
            let store = open(&disk, StorageMode::Auto).unwrap();
            judge.judge(&store, false);
            drop(store);
            disk.power_loss();
            let store = open(&disk, StorageMode::Auto).unwrap();
            judge.judge(&store, false);
        }
    }
}

/// Opens a damaged store: no panic, nothing wrong read, everything that is not damaged readable.
fn read_around_damage(disk: &SimDisk, judge: &Judge, context: &str) {
    let store = match open(disk, StorageMode::Auto) {
        Ok(store) => store,
        Err(Error::CorruptMetadata { .. } | Error::UnsupportedFormat { .. }) => {
            panic!("{context}: one damaged file closed the store")
        }
        Err(error) => panic!("{context}: {error:?}"),
    };
    let partition = store.partition("t", 0).unwrap_or_else(|error| panic!("{context}: {error:?}"));
    let mut offset = partition.log_start_offset();
    assert!(offset.0 <= judge.deleted, "{context}: the start moved to {offset}");
    let mut found = BTreeMap::new();
    let mut damaged = Vec::new();
    while offset < partition.high_watermark() {
        match partition.read(offset, ReadOptions::new().max_bytes(1)) {
            Ok(records) => {
                assert!(records.next_offset() > offset, "{context}: stuck at {offset}");
                for record in &records {
                    let attempt = attempt_of(record.value().expect("values only"));
                    found.insert(record.offset().0, attempt);
                }
                offset = records.next_offset();
            }
            Err(Error::Corrupt { offsets, .. }) => {
                assert!(offsets.contains(&offset), "{context}: {offset} is not in {offsets:?}");
                damaged.push(offsets.clone());
                offset = offsets.end;
            }
            Err(error) => panic!("{context}: {error:?}"),
        }
    }
    let reported: Vec<_> = store.events().collect();
    for (at, attempt) in &judge.kept {
        match found.get(at) {
            Some(read) => assert_eq!(read, attempt, "{context}: wrong record at {at}"),
            None => {
                let known = damaged.iter().any(|offsets| offsets.contains(&Offset(*at)))
                    || reported.iter().any(|event| match &event.kind {
                        EventKind::TailCut { from, .. } => from.0 <= *at,
                        _ => false,
                    });
                assert!(known, "{context}: record {at} vanished without a word");
            }
        }
    }
    let lost = judge.kept.keys().filter(|at| !found.contains_key(at)).count();
    assert!(lost <= 8, "{context}: {lost} records lost to one damaged byte: {damaged:?}");
}

/// A store of a few segments, closed cleanly or killed.
fn small_store(flush: Flush, clean: bool) -> (SimDisk, Judge) {
    let disk = SimDisk::new(3);
    let mut judge = Judge::default();
    let store = open(&disk, StorageMode::Auto).unwrap();
    let mut random = Random(5);
    while judge.attempts < 110 {
        judge.act(&disk, &store, flush, &mut random);
    }
    store.run_background();
    if clean {
        store.close(SECOND).unwrap();
    } else {
        disk.process_restart();
    }
    (disk, judge)
}

#[test]
fn s2_s6_s7_every_byte_of_every_file_flipped_is_noticed_and_costs_no_more_than_its_batch() {
    for (flush, clean) in [(Flush::OnAck, true), (Flush::Os, true), (Flush::OnAck, false)] {
        let (disk, judge) = small_store(flush, clean);
        // The reserve holds nothing but room.
        for path in disk.files().into_iter().filter(|path| path != "reserve") {
            let bytes = disk.read_file(&path);
            let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            // Room that was allocated ahead is the same zero byte over and over.
            let interesting = (0..bytes.len()).filter(|at| *at < written + 100 || at % 4096 == 0);
            for at in interesting {
                for flip in [0xff, 0x01] {
                    let damaged = disk.fork();
                    let mut bytes = bytes.clone();
                    bytes[at] ^= flip;
                    damaged.write_file(&path, &bytes);
                    let context = format!("{flush:?} clean {clean}: {path} byte {at} ^ {flip:#x}");
                    read_around_damage(&damaged, &judge, &context);
                }
            }
        }
    }
}

#[test]
fn every_file_cut_at_every_length_or_gone_is_noticed() {
    for clean in [true, false] {
        let (disk, judge) = small_store(Flush::OnAck, clean);
        // The reserve holds nothing but room.
        for path in disk.files().into_iter().filter(|path| path != "reserve") {
            let bytes = disk.read_file(&path);
            let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            for len in (0..=written).step_by(if path.ends_with(".log") { 4 } else { 1 }) {
                let damaged = disk.fork();
                damaged.write_file(&path, &bytes[..len]);
                open_any(&damaged, &judge, &format!("clean {clean}: {path} cut to {len}"));
            }
            let damaged = disk.fork();
            damaged.remove_file(&path);
            open_any(&damaged, &judge, &format!("clean {clean}: {path} removed"));
        }
    }
}

/// As [`read_around_damage`] without a limit to the loss: a cut may take many records with it, but
/// none of them silently, and none comes back changed.
fn open_any(disk: &SimDisk, judge: &Judge, context: &str) {
    let store =
        open(disk, StorageMode::Auto).unwrap_or_else(|error| panic!("{context}: {error:?}"));
    let partition = store.partition("t", 0).unwrap_or_else(|error| panic!("{context}: {error:?}"));
    let mut offset = partition.log_start_offset();
    let mut missing: Vec<_> =
        judge.kept.range(offset.0..).map(|(at, attempt)| (*at, *attempt)).collect();
    let cut = store.events().find_map(|event| match event.kind {
        EventKind::TailCut { from, .. } => Some(from),
        _ => None,
    });
    while offset < partition.high_watermark() {
        match partition.read(offset, ReadOptions::new()) {
            Ok(records) => {
                for record in &records {
                    let attempt = attempt_of(record.value().unwrap());
                    missing.retain(|known| *known != (record.offset().0, attempt));
                }
                assert!(records.next_offset() > offset, "{context}: stuck at {offset}");
                offset = records.next_offset();
            }
            Err(Error::Corrupt { offsets, .. }) => {
                missing.retain(|(at, _)| !offsets.contains(&Offset(*at)));
                offset = offsets.end;
            }
            Err(error) => panic!("{context}: {error:?}"),
        }
    }
    if let Some(cut) = cut {
        missing.retain(|(at, _)| *at < cut.0);
    }
    assert!(
        missing.is_empty(),
        "{context}: {} records vanished: {:?}",
        missing.len(),
        missing.first()
    );
}

/// One random story: crashes of both kinds, errors, full disks, and a judgement after each.
fn random_story(seed: u64) {
    let mut random = Random(seed);
    let (flush, mode) = levels()[usize::try_from(random.below(4)).unwrap()];
    let disk = SimDisk::new(seed);
    let mut judge = Judge::default();
    for _ in 0..4 {
        match random.below(8) {
            0 => disk.fail_call(1 + random.below(300), Fault::Eio),
            1 => disk.fail_call(1 + random.below(300), Fault::Enospc),
            2 => disk.fail_from(1 + random.below(300), Fault::ShortIo),
            3 => disk.fail_call(1 + random.below(300), Fault::Interrupted),
            4 => disk.set_free_bytes(Some(random.below(1 << 18))),
            _ => {}
        }
        disk.crash_at(1 + random.below(600));
        if let Ok(store) = open(&disk, mode) {
            for _ in 0..100 {
                judge.act(&disk, &store, flush, &mut random);
                if disk.is_dead() {
                    break;
                }
            }
            if random.below(2) == 0 {
                let _ = store.close(SECOND);
            }
        }
        let power = random.below(2) == 0;
        if power {
            disk.power_loss();
        } else {
            disk.process_restart();
        }
        disk.heal();
        disk.set_free_bytes(None);
        let store = open(&disk, mode).expect("a healed disk opens");
        judge.judge(&store, power && flush != Flush::OnAck);
        let _ = store.close(SECOND);
    }
}

#[test]
fn random_stories_lose_nothing_beyond_the_table() {
    let count =
        std::env::var("ONCELOG_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(1500);
    let first = std::env::var("ONCELOG_SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in first.map_or(0..count, |seed: u64| seed..seed + 1) {
        let told = std::panic::catch_unwind(|| random_story(seed));
        if let Err(fault) = told {
            eprintln!(
                "replay with: ONCELOG_SEED={seed} cargo test --all-features --test simulated log::random"
            );
            std::panic::resume_unwind(fault);
        }
    }
}

#[test]
fn the_same_seed_tells_the_same_story() {
    let trace = |seed| {
        let disk = SimDisk::new(seed);
        let mut judge = Judge::default();
        disk.crash_at(150 + seed);
        tell(&disk, &mut judge, Flush::OnAck, StorageMode::Auto, seed);
        disk.power_loss();
        let files: Vec<_> = disk.files().iter().map(|path| disk.read_file(path)).collect();
        (disk.calls(), judge.attempts, files)
    };
    for seed in 0..10 {
        assert!(trace(seed) == trace(seed), "seed {seed}");
    }
}

#[test]
fn retention_by_age_goes_by_the_append_and_not_by_the_records_own_time() {
    let disk = SimDisk::new(1);
    let clock = Clock::manual(Timestamp(1_000_000));
    let store = Store::builder().simulated_disk(disk).clock(clock.clone()).open().unwrap();
    store.create_topic("t", config(Flush::Os).retention(Retention::age(SECOND * 60))).unwrap();
    let partition = store.partition("t", 0).unwrap();
    for _ in 0..100 {
        let future = Record::new(&[7; 100]).timestamp(Timestamp(i64::MAX));
        partition.append(&[future], Acks::All).unwrap();
    }
    store.run_background();
    assert_eq!(partition.log_start_offset(), Offset(0));
    clock.advance(SECOND * 61);
    store.run_background();
    assert_eq!(partition.log_start_offset(), Offset(100), "RET-02, RET-09");
    assert_eq!(
        partition.append(&[Record::new("x")], Acks::All).unwrap().offsets.start,
        Offset(100)
    );
}

#[test]
fn s10_on_a_full_disk_nothing_is_lost_records_can_be_deleted_and_appends_go_on_once_there_is_room()
{
    for (flush, mode) in levels() {
        let disk = SimDisk::new(1);
        let store = open(&disk, mode).unwrap();
        store.create_topic("t", config(flush)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        disk.set_free_bytes(Some(200_000));
        let mut count = 0;
        let full = loop {
            match partition.append(&[Record::new(&value(count))], Acks::All) {
                Ok(appended) => assert_eq!(appended.offsets.start, Offset(count)),
                Err(error) => break error,
            }
            count += 1;
        };
        assert!(matches!(full, Error::NoSpace { .. }) && full.written() == Written::No, "{full:?}");
        assert_eq!(partition.log_end_offset(), Offset(count));
        for at in 0..count {
            let records = partition.read(Offset(at), ReadOptions::new().max_bytes(1)).unwrap();
            assert_eq!(attempt_of(records.iter().next().unwrap().value().unwrap()), at);
        }
        partition.delete_records(Offset(count / 2)).unwrap();
        store.run_background();
        let appended = partition.append(&[Record::new(&value(count))], Acks::All).unwrap();
        assert_eq!(appended.offsets.start, Offset(count), "no offset is burnt");
        store.close(SECOND).unwrap();
    }
}
