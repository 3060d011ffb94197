//! Repairs that fail, die, find no room or are late at any of their calls, and logs whose offsets come to their end.
//!
//! `ONCELOG_ONE_IN=1` for every call.

use std::time::Duration;

use oncelog::simulation::{Clock, Fault, SimDisk};
use oncelog::{
    Acks, CommittedOffset, DiskId, Error, Flush, Isolation, Offset, Partition, ReadOptions, Record,
    StartAt, Store, Timestamp, TopicConfig, TopicPartition, VerifyOptions, Written,
};

use crate::random::setting;

const NOW: Timestamp = Timestamp(1_000_000);
const SECOND: Duration = Duration::from_secs(1);
const RECORDS: u64 = 100;
/// Each is intact on one disk: on that of its number in this list, by threes.
const ROTTEN: [u64; 7] = [3, 10, 11, 12, 40, 70, 98];
const DATA_START: usize = 64;

/// Opens with those of the three disks that `there` has a bit for; the others are lost.
fn open(disks: &[SimDisk], there: u8, clock: &Clock) -> Store {
    let mut builder = Store::builder().clock(clock.clone());
    for (at, disk) in disks.iter().enumerate() {
        if there & 1 << at == 0 {
            builder = builder.allow_missing(DiskId(u16::try_from(at).unwrap()));
            builder = builder.simulated_disk(SimDisk::new(9));
        } else {
            builder = builder.simulated_disk(disk.clone());
        }
    }
    builder.open().unwrap()
}

fn quiet(store: &Store, clock: &Clock) {
    for _ in 0..10 {
        clock.advance(Duration::from_millis(100));
        store.run_background();
    }
}

fn value(at: u64) -> Vec<u8> {
    format!("{at} {}", "x".repeat(40)).into_bytes()
}

fn config() -> TopicConfig {
    TopicConfig::new().segment_bytes(4096).index_interval_bytes(256).flush(Flush::OnAck)
}

fn logs(disk: &SimDisk) -> Vec<String> {
    let mut names = disk.files();
    names.retain(|name| name.ends_with(".log") && !name.contains("__"));
    names.sort();
    names
}

/// Where the batches of a data file begin.
fn batches(bytes: &[u8]) -> Vec<usize> {
    let (mut at, mut found) = (DATA_START, Vec::new());
    while let Some(length) = bytes.get(at + 4..at + 8) {
        match u32::from_le_bytes(*length.first_chunk().unwrap()) {
            0 => break,
            length => {
                found.push(at);
                at += usize::try_from(length).unwrap();
            }
        }
    }
    found
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().unwrap())
}

/// Three replicas of which each rotten batch is intact on one.
fn rotten(clean: bool) -> Vec<SimDisk> {
    let disks: Vec<_> = (1..=3).map(SimDisk::new).collect();
    let clock = Clock::manual(NOW);
    let store = open(&disks, 7, &clock);
    store.create_topic("t", config().replication_factor(3)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    for at in 0..RECORDS {
        partition.append(&[Record::new(&value(at))], Acks::All).unwrap();
    }
    quiet(&store, &clock);
    drop(partition);
    if clean {
        store.close(SECOND).unwrap();
    } else {
        disks.iter().for_each(SimDisk::kill);
        drop(store);
    }
    for (at, disk) in disks.iter().enumerate() {
        disk.process_restart();
        for name in logs(disk) {
            let mut bytes = disk.read_file(&name);
            for batch in batches(&bytes) {
                let base = word(&bytes, batch + 16);
                if ROTTEN.iter().position(|one| *one == base).is_some_and(|one| one % 3 != at) {
                    bytes[batch + 90] ^= 0x10;
                }
            }
            disk.write_file(&name, &bytes);
        }
    }
    disks
}

/// The offsets that cannot be read.
fn lacking(store: &Store) -> Vec<u64> {
    let partition = store.partition("t", 0).unwrap();
    assert_eq!(partition.log_end_offset(), Offset(RECORDS));
    let is_lacking = |at: &u64| match partition.read(Offset(*at), ReadOptions::new()) {
        Ok(read) => {
            let record = read.iter().next().unwrap();
            assert_eq!((record.offset(), record.value()), (Offset(*at), Some(&*value(*at))));
            false
        }
        Err(Error::Corrupt { .. }) => true,
        Err(error) => panic!("{at}: {error}"),
    };
    (0..RECORDS).filter(is_lacking).collect()
}

#[derive(Clone, Copy, Debug)]
enum End {
    Killed,
    LosesPower,
    Fails,
    IsFull,
}

/// Repairs, with `end` at the call of the disk, and tells whether there was such a call.
fn repair_until(disks: &[SimDisk], at: usize, call: u64, end: End, clock: &Clock) -> bool {
    let store = open(disks, 7, clock);
    let before = disks[at].calls();
    match end {
        End::Killed | End::LosesPower => disks[at].crash_at(call),
        End::Fails => disks[at].fail_from(call, Fault::Eio),
        End::IsFull => disks[at].fail_from(call, Fault::Enospc),
    }
    // Of a fault that is met it may tell, and end.
    let _ = store.verify(VerifyOptions::new().repair(true));
    quiet(&store, clock);
    let met = disks[at].calls() - before >= call;
    disks.iter().for_each(SimDisk::kill);
    drop(store);
    for disk in disks {
        disk.heal();
        match end {
            End::LosesPower => disk.power_loss(),
            _ => disk.process_restart(),
        }
    }
    met
}

/// What one of the disks has intact is there after any of it, whichever of them are there next; with all of them, all is.
#[test]
fn s3_s19_a_repair_that_ends_at_any_call_costs_no_intact_copy() {
    let one_in = setting("ONCELOG_ONE_IN", 29);
    let mut story = setting("ONCELOG_SEED", 0);
    let mut told = 0;
    for clean in [true, false] {
        let template = rotten(clean);
        for at in 0..3 {
            for end in [End::Killed, End::LosesPower, End::Fails, End::IsFull] {
                let mut call = 1 + story % one_in;
                loop {
                    story += 1;
                    let disks: Vec<_> = template.iter().map(SimDisk::fork).collect();
                    let clock = Clock::manual(NOW);
                    if !repair_until(&disks, at, call, end, &clock) {
                        break;
                    }
                    told += 1;
                    // Of the metadata there has to be a majority.
                    let there = [0b111, 0b110, 0b101, 0b011][usize::try_from(story % 4).unwrap()];
                    let note =
                        format!("clean {clean}, disk {at}, {end:?} at {call}, then {there:03b}");
                    let store = open(&disks, there, &clock);
                    quiet(&store, &clock);
                    let _ = store.verify(VerifyOptions::new().repair(true));
                    quiet(&store, &clock);
                    let lost = lacking(&store);
                    let held = |offset: &&u64| {
                        let one = ROTTEN.iter().position(|one| one == *offset);
                        one.is_none_or(|one| there & 1 << (one % 3) != 0)
                    };
                    assert_eq!(lost.iter().find(held), None, "{note}: {lost:?}");
                    store.close(SECOND).unwrap();
                    drop(store);

                    let store = open(&disks, 7, &clock);
                    quiet(&store, &clock);
                    let report = store.verify(VerifyOptions::new().repair(true)).unwrap();
                    quiet(&store, &clock);
                    assert_eq!(lacking(&store), [0; 0], "{note}, then all: {report:?}");
                    call += one_in;
                }
            }
        }
    }
    assert!(told > 50, "{told}");
}

/// What the owner does while one call of a repair does not return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Amid {
    StartsAnew(usize),
    Deletes,
    Grows,
    Verifies,
    Closes,
}

const DELETED: u64 = 45;

fn act(store: &Store, amid: Amid, clock: &Clock) {
    let partition = store.partition("t", 0).unwrap();
    match amid {
        Amid::StartsAnew(disk) => {
            let disk = DiskId(u16::try_from(disk).unwrap());
            let _ = store.stop_disk(disk);
            store.run_background();
            let _ = partition.append(&[Record::new(&value(RECORDS))], Acks::All);
            let _ = store.start_disk(disk);
            quiet(store, clock);
        }
        Amid::Deletes => drop(partition.delete_records(Offset(DELETED))),
        Amid::Grows => {
            for at in RECORDS..RECORDS + 90 {
                let _ = partition.append(&[Record::new(&value(at))], Acks::All);
            }
        }
        Amid::Verifies => drop(store.verify(VerifyOptions::new().repair(true))),
        Amid::Closes => drop(store.close(SECOND / 10)),
    }
}

/// Repairs while that call of the disk is held, and something else happens. Whether the call came.
fn repair_amid(disks: &[SimDisk], at: usize, call: u64, amid: Amid, clock: &Clock) -> bool {
    let store = open(disks, 7, clock);
    disks[at].hold_call(call);
    let came = std::thread::scope(|scope| {
        let repair = scope.spawn(|| {
            let _ = store.verify(VerifyOptions::new().repair(true));
            quiet(&store, clock);
        });
        while !disks[at].holds_call() && !repair.is_finished() {
            std::thread::yield_now();
        }
        let came = disks[at].holds_call();
        if came {
            let acts = scope.spawn(|| act(&store, amid, clock));
            // Who asks for what the repair holds in that moment waits for it.
            let patience = std::time::Instant::now();
            while !acts.is_finished() && patience.elapsed() < SECOND / 20 {
                std::thread::yield_now();
            }
        }
        disks[at].answer();
        came
    });
    let _ = store.start_disk(DiskId(u16::try_from(at).unwrap()));
    drop(store);
    disks.iter().for_each(SimDisk::kill);
    for disk in disks {
        disk.heal();
        disk.process_restart();
    }
    came
}

/// What cannot be read of what was acknowledged and not deleted.
fn lost(store: &Store) -> Vec<u64> {
    let partition = store.partition("t", 0).unwrap();
    let start = partition.log_start_offset().0;
    assert!([0, DELETED].contains(&start) && partition.high_watermark() >= Offset(RECORDS));
    let is_there = |at: u64| {
        let read = partition.read(Offset(at), ReadOptions::new()).ok()?;
        let record = read.iter().next()?;
        (record.offset() == Offset(at) && record.value() == Some(&*value(at))).then_some(())
    };
    (start..RECORDS).filter(|at| is_there(*at).is_none()).collect()
}

/// Late, it puts nothing in the place of what came meanwhile, and costs nobody his only copy.
#[test]
fn s3_s22_a_repair_that_is_late_at_any_call_does_no_harm() {
    let one_in = setting("ONCELOG_ONE_IN", 97);
    let mut story = setting("ONCELOG_SEED", 0);
    let mut told = 0;
    let all = (0..3).map(Amid::StartsAnew);
    let all = all.chain([Amid::Deletes, Amid::Grows, Amid::Verifies, Amid::Closes]);
    let template = rotten(false);
    for (amid, at) in all.flat_map(|amid| (0..3).map(move |at| (amid, at))) {
        let mut call = 1 + story % one_in;
        loop {
            story += 1;
            let disks: Vec<_> = template.iter().map(SimDisk::fork).collect();
            let clock = Clock::manual(NOW);
            if !repair_amid(&disks, at, call, amid, &clock) {
                break;
            }
            told += 1;
            let note = format!("{amid:?}, disk {at} late at {call}");
            let store = open(&disks, 7, &clock);
            quiet(&store, &clock);
            for _ in 0..2 {
                let _ = store.verify(VerifyOptions::new().repair(true));
                quiet(&store, &clock);
            }
            let report = store.verify(VerifyOptions::new()).unwrap();
            assert_eq!((lost(&store), report.damages), (Vec::new(), Vec::new()), "{note}");
            store.close(SECOND).unwrap();
            drop(store);
            for there in [0b110, 0b101, 0b011] {
                let forks: Vec<_> = disks.iter().map(SimDisk::fork).collect();
                let store = open(&forks, there, &clock);
                quiet(&store, &clock);
                assert_eq!(lost(&store), [0; 0], "{note}, then {there:03b}");
            }
            call += one_in;
        }
    }
    assert!(told > 20, "{told}");
}

/// Has the only data file begin at `base`, as if all before had been deleted.
fn raise(disk: &SimDisk, base: u64) {
    let name = logs(disk).pop().unwrap();
    let mut bytes = disk.read_file(&name);
    for at in batches(&bytes) {
        let old = crc32fast::hash(&bytes[at + 4..at + 80]);
        for field in [at + 16, at + 72] {
            let raised = word(&bytes, field) + base;
            bytes[field..field + 8].copy_from_slice(&raised.to_le_bytes());
        }
        // The seed is the partition's; what changes does not depend on it.
        let change = old ^ crc32fast::hash(&bytes[at + 4..at + 80]);
        let crc = u32::from_le_bytes(*bytes[at..].first_chunk().unwrap()) ^ change;
        bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    }
    bytes[40..48].copy_from_slice(&base.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    let directory = name.rsplit_once('/').unwrap().0.to_owned();
    disk.files()
        .iter()
        .filter(|file| file.starts_with(&directory))
        .for_each(|file| disk.remove_file(file));
    disk.remove_file("session");
    disk.write_file(&format!("{directory}/{base:020}.log"), &bytes);
}

fn values(partition: &Partition, isolation: Isolation) -> Vec<(u64, String)> {
    let (mut next, mut found) = (partition.log_start_offset(), Vec::new());
    let end = match isolation {
        Isolation::ReadCommitted => partition.last_stable_offset(),
        Isolation::ReadUncommitted => partition.high_watermark(),
    };
    while next < end {
        let read = partition.read(next, ReadOptions::new().isolation(isolation)).unwrap();
        let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
        found.extend(read.iter().map(|one| (one.offset().0, text(one.value().unwrap()))));
        assert!(read.next_offset() > next, "{next}");
        next = read.next_offset();
    }
    found
}

/// Whoever comes to the last offsets is told so and gets all that is there, over restarts; transactions end there as well.
#[test]
fn a4_a_log_whose_offsets_are_used_up_serves_what_it_has() {
    const LEFT: u64 = 60;
    for replicas in [1, 3] {
        let disks: Vec<_> = (1..=replicas).map(SimDisk::new).collect();
        let clock = Clock::manual(NOW);
        let there = (1u8 << replicas) - 1;
        let store = open(&disks, there, &clock);
        let config = config().replication_factor(u16::try_from(replicas).unwrap());
        store.create_topic("t", config).unwrap();
        let partition = store.partition("t", 0).unwrap();
        for at in 0..20 {
            let text = format!("old {at}");
            let record = [Record::new(&text).timestamp(Timestamp(1000 + at))];
            partition.append(&record, Acks::All).unwrap();
        }
        quiet(&store, &clock);
        drop(partition);
        store.close(SECOND).unwrap();
        drop(store);
        let base = Offset::MAX.0 - LEFT;
        disks.iter().for_each(|disk| raise(disk, base));

        let mut store = open(&disks, there, &clock);
        quiet(&store, &clock);
        let mut partition = store.partition("t", 0).unwrap();
        assert_eq!(partition.log_end_offset(), Offset(base + 20));
        partition.delete_records(Offset(base)).unwrap();
        assert_eq!(partition.log_start_offset(), Offset(base));
        let mut expected: Vec<_> = (0..20).map(|at| (base + at, format!("old {at}"))).collect();

        let mut held = store.producer().transactional_id("id").build().unwrap();
        let mut transaction = held.begin().unwrap();
        let at = transaction.append("t", 0, &[Record::new("in one")]).unwrap().start.0;
        expected.push((at, "in one".to_owned()));
        transaction.commit(SECOND).unwrap();
        let place = TopicPartition::new("t", 0);
        let mut consumer = store.consumer().group("g").start(StartAt::Earliest).build().unwrap();
        consumer.assign(&[("t", 0)]).unwrap();
        let found = consumer.poll(Duration::ZERO).unwrap().iter().count();
        assert!(found > 0);
        let offsets = [(place.clone(), CommittedOffset::from(Offset(base + 20)))].into();
        consumer.commit_offsets(&offsets).unwrap();
        drop((consumer, held));

        let mut refused = 0;
        for count in [7u64, 7, 20, 3, 2, 1, 1, 1, 1, 1, 1] {
            let texts: Vec<_> = (0..count).map(|at| format!("new {at} of {count}")).collect();
            let records: Vec<_> = texts.iter().map(Record::new).collect();
            match partition.append(&records, Acks::All) {
                Ok(done) => expected.extend((done.offsets.start.0..).zip(texts)),
                Err(error) => {
                    assert_eq!(error.written(), Written::No, "{error}");
                    refused += 1;
                }
            }
            quiet(&store, &clock);
            assert_eq!(values(&partition, Isolation::ReadUncommitted), expected, "{count}");
        }
        assert!(refused > 0 && partition.log_end_offset() <= Offset::MAX);
        for how in 0..4 {
            // A transaction that finds no place, or none for its marker, ends all the same, or is told not to.
            let held = store.producer().transactional_id("id").build();
            if let Ok(mut held) = held {
                let mut transaction = held.begin().unwrap();
                transaction.append("t", 0, &[Record::new("late")]).unwrap_err();
                let _ = transaction.commit(SECOND);
            }
            quiet(&store, &clock);
            let committed = values(&partition, Isolation::ReadCommitted);
            assert_eq!(committed, expected, "{how}");
            let end = partition.log_end_offset();
            let after_old = partition.offset_for_time(Timestamp(1019)).unwrap();
            assert_eq!(after_old, Some(Offset(base + 19)));
            assert_eq!(partition.offset_for_time(Timestamp(i64::MAX)).unwrap(), None);
            let read = partition.read(end, ReadOptions::new()).unwrap();
            assert_eq!((read.iter().count(), read.next_offset()), (0, end));
            let behind = partition.read(Offset(end.0 + 1), ReadOptions::new());
            assert!(matches!(behind, Err(Error::OffsetOutOfRange { .. })), "{behind:?}");
            partition.wait_for(end, Duration::ZERO).unwrap_err();
            let mut consumer = store.consumer().group("g").build().unwrap();
            consumer.assign(&[("t", 0)]).unwrap();
            let mut seen = 0;
            for _ in 0..30 {
                seen += consumer.poll(Duration::ZERO).unwrap().iter().count();
            }
            assert_eq!(seen, expected.len() - 20);
            drop(consumer);
            let report = store.verify(VerifyOptions::new().repair(true)).unwrap();
            assert_eq!((report.damages, report.unread), (vec![], vec![]));
            drop(partition);
            if how == 3 {
                store.close(SECOND).unwrap();
                break;
            }
            match how {
                0 => _ = store.close(SECOND),
                _ => disks.iter().for_each(SimDisk::kill),
            }
            drop(store);
            for disk in &disks {
                match how {
                    1 => disk.power_loss(),
                    _ => disk.process_restart(),
                }
            }
            store = open(&disks, there, &clock);
            quiet(&store, &clock);
            partition = store.partition("t", 0).unwrap();
            assert_eq!(partition.log_end_offset(), end, "{how}");
        }
    }
}
