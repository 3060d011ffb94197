//! What becomes of a store whose files were damaged, removed, forged or are not its own (S1 to S21), as
//! `behaviour_faults.rs`, for the cases that differ by where the damage is and how the store stopped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::{Duration, SystemTime};

use oncelog::simulation::{Clock, Fault, SimDisk, SyncFault};
use oncelog::{
    Acks, Error, ErrorClass, EventKind, Flush, Offset, Partition, ReadOptions, Record, Store,
    Timestamp, TopicConfig, VerifyOptions, Written,
};

const NOW: Timestamp = Timestamp(1_000_000);
const SECOND: Duration = Duration::from_secs(1);
/// Bytes in front of a file's first batch, and where a batch keeps its length.
const DATA_START: usize = 64;
const LENGTH_AT: usize = 4;

fn open(disk: &SimDisk) -> Result<Store, Error> {
    Store::builder().simulated_disk(disk.clone()).clock(Clock::manual(NOW)).open()
}

fn value(at: u64) -> Vec<u8> {
    format!("{at} {}", "x".repeat(40)).into_bytes()
}

fn append(partition: &Partition, values: std::ops::Range<u64>) {
    for at in values {
        let record = value(at);
        let record = Record::new(&record).timestamp(Timestamp(time(at)));
        partition.append(&[record], Acks::All).unwrap();
    }
}

/// Up and down, so that the first that reaches a time is not the last.
fn time(at: u64) -> i64 {
    i64::try_from(1000 + at * 10 - (at % 4) * 25).unwrap()
}

fn config(flush: Flush) -> TopicConfig {
    TopicConfig::new().flush(flush).segment_bytes(4096).index_interval_bytes(256)
}

fn closed_store(records: u64) -> SimDisk {
    let disk = SimDisk::new(records);
    let store = open(&disk).unwrap();
    store.create_topic("t", config(Flush::OnAck)).unwrap();
    append(&store.partition("t", 0).unwrap(), 0..records);
    store.run_background();
    store.close(SECOND).unwrap();
    disk
}

/// The offsets that can be read, each with its own value, and the damaged ranges.
fn contents(partition: &Partition) -> (Vec<u64>, Vec<(u64, u64)>) {
    let (mut found, mut damages) = (Vec::new(), Vec::new());
    let mut offset = partition.log_start_offset();
    while offset < partition.high_watermark() {
        offset = match partition.read(offset, ReadOptions::new()) {
            Ok(batch) => {
                for record in &batch {
                    assert_eq!(record.value().unwrap(), value(record.offset().0));
                    found.push(record.offset().0);
                }
                batch.next_offset()
            }
            Err(Error::Corrupt { offsets, .. }) => {
                assert!(offsets.contains(&offset));
                damages.push((offsets.start.0, offsets.end.0));
                offsets.end
            }
            Err(error) => panic!("{error}"),
        };
    }
    (found, damages)
}

fn offsets(ranges: &[(u64, u64)]) -> Vec<u64> {
    ranges.iter().flat_map(|(from, to)| *from..*to).collect()
}

fn logs(disk: &SimDisk) -> Vec<String> {
    let mut names = disk.files();
    names.retain(|name| name.ends_with(".log"));
    names.sort();
    names
}

fn base(name: &str) -> u64 {
    name.rsplit_once('/').unwrap().1.trim_end_matches(".log").parse().unwrap()
}

/// Where the batches of a data file begin, and where the last one ends.
fn batches(bytes: &[u8]) -> Vec<usize> {
    let mut at = DATA_START;
    let mut found = vec![at];
    while let Some(length) = bytes.get(at + LENGTH_AT..at + LENGTH_AT + 4) {
        let length = u32::from_le_bytes(*length.first_chunk().unwrap());
        if length == 0 {
            break;
        }
        at += usize::try_from(length).unwrap();
        found.push(at);
    }
    found
}

fn cut(store: &Store) -> Option<u64> {
    store.events().find_map(|event| match event.kind {
        EventKind::TailCut { from, kept, .. } => {
            assert!(kept.is_some(), "the bytes are kept");
            Some(from.0)
        }
        _ => None,
    })
}

fn damaged(store: &Store) -> Vec<(u64, u64)> {
    let events = store.events().filter_map(|event| match event.kind {
        EventKind::Damaged { offsets, .. } => Some((offsets.start.0, offsets.end.0)),
        _ => None,
    });
    events.collect()
}

/// Ten records in one file; then the machine stops, or only the process, and the sixth is gone.
fn with_a_hole(flush: Flush, power: bool) -> (SimDisk, String, Vec<u8>) {
    let disk = SimDisk::new(7);
    let store = open(&disk).unwrap();
    store.create_topic("t", TopicConfig::new().flush(flush)).unwrap();
    append(&store.partition("t", 0).unwrap(), 0..10);
    let name = logs(&disk).remove(0);
    let mut bytes = disk.read_file(&name);
    if power {
        disk.power_loss();
    } else {
        disk.process_restart();
    }
    let starts = batches(&bytes);
    bytes[starts[5]..starts[6]].fill(0);
    disk.write_file(&name, &bytes);
    (disk, name, bytes)
}

#[test]
fn s1_a_hole_that_no_flush_covered_is_where_a_power_loss_cuts_the_tail() {
    let (disk, _, _) = with_a_hole(Flush::Os, true);
    let store = open(&disk).unwrap();
    let partition = store.partition("t", 0).unwrap();
    assert_eq!(cut(&store), Some(5));
    assert_eq!(damaged(&store), []);
    assert_eq!(partition.log_end_offset(), Offset(5));
    assert_eq!(contents(&partition), (offsets(&[(0, 5)]), vec![]));
    // What lay behind the hole must not come back behind what is appended now.
    append(&partition, 5..6);
    disk.power_loss();
    drop((partition, store));
    let store = open(&disk).unwrap();
    let (found, damages) = contents(&store.partition("t", 0).unwrap());
    assert!(found == offsets(&[(0, 6)]) || found == offsets(&[(0, 5)]), "{found:?}");
    assert_eq!(damages, []);
}

#[test]
fn s2_the_same_hole_is_damage_when_it_was_flushed_or_only_the_process_died() {
    for (flush, power) in [(Flush::OnAck, true), (Flush::OnAck, false), (Flush::Os, false)] {
        let (disk, name, bytes) = with_a_hole(flush, power);
        for again in 0..3 {
            let store = open(&disk).unwrap();
            let partition = store.partition("t", 0).unwrap();
            let context = format!("{flush:?}, power {power}, opening {again}");
            assert_eq!(cut(&store), None, "{context}");
            if again == 0 {
                assert_eq!(damaged(&store), [(5, 6)], "{context}: told at once, and exactly");
            }
            let expected = (offsets(&[(0, 5), (6, 10)]), vec![(5, 6)]);
            assert_eq!(contents(&partition), expected, "{context}");
            let report = store.verify(VerifyOptions::new().repair(true)).unwrap();
            assert_eq!(report.damages.len(), 1, "{context}: there is nothing to repair from");
            let now = disk.read_file(&name);
            assert_eq!(now[..batches(&now)[5]], bytes[..batches(&now)[5]]);
            store.close(SECOND).unwrap();
        }
        let store = open(&disk).unwrap();
        let partition = store.partition("t", 0).unwrap();
        append(&partition, 10..12);
        assert_eq!(contents(&partition), (offsets(&[(0, 5), (6, 12)]), vec![(5, 6)]));
        // The damaged record can be let go of, and then there is no damage any more.
        partition.delete_records(Offset(6)).unwrap();
        assert_eq!(contents(&partition), (offsets(&[(6, 12)]), vec![]));
    }
}

#[test]
fn s1_whatever_lies_behind_the_last_whole_batch_is_no_record() {
    let noise: Vec<u8> =
        (0..4000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for kind in 0..5 {
        let disk = SimDisk::new(3);
        let store = open(&disk).unwrap();
        store.create_topic("t", TopicConfig::new().flush(Flush::Os)).unwrap();
        append(&store.partition("t", 0).unwrap(), 0..10);
        let name = logs(&disk).remove(0);
        let mut bytes = disk.read_file(&name);
        disk.power_loss();
        drop(store);
        let starts = batches(&bytes);
        let (last, end) = (starts[9], starts[10]);
        let old = bytes[starts[3]..starts[6]].to_vec();
        let expected = match kind {
            // The last batch: nothing of it, its length alone, all but its middle.
            0 => {
                bytes[last..end].fill(0);
                9
            }
            1 => {
                bytes[last + 8..end].fill(0);
                9
            }
            2 => {
                bytes[last + 100..end - 4].fill(0);
                9
            }
            // Behind it: noise, and whole batches of the same log from elsewhere in it.
            3 => {
                bytes[end..end + noise.len()].copy_from_slice(&noise);
                10
            }
            _ => {
                bytes[end..end + old.len()].copy_from_slice(&old);
                10
            }
        };
        disk.write_file(&name, &bytes);
        for again in 0..2 {
            let store = open(&disk).unwrap();
            let partition = store.partition("t", 0).unwrap();
            let wanted = (offsets(&[(0, expected)]), vec![]);
            assert_eq!(contents(&partition), wanted, "kind {kind}, opening {again}");
            assert_eq!(damaged(&store), [], "kind {kind}, opening {again}");
            assert!(again == 0 || cut(&store).is_none(), "kind {kind}: cut once, and for good");
            disk.power_loss();
        }
        let store = open(&disk).unwrap();
        let partition = store.partition("t", 0).unwrap();
        append(&partition, expected..30);
        assert_eq!(contents(&partition), (offsets(&[(0, 30)]), vec![]));
    }
}

#[test]
fn s6_without_its_side_files_a_log_gives_the_same_answers() {
    let disk = closed_store(100);
    let sides: Vec<_> = disk.files().into_iter().filter(|name| name.ends_with(".side")).collect();
    assert!(sides.len() >= 3, "{sides:?}");
    let answers = |disk: &SimDisk| {
        let store = open(disk).unwrap();
        let partition = store.partition("t", 0).unwrap();
        let times: Vec<_> =
            (900..2100).map(|asked| partition.offset_for_time(Timestamp(asked)).unwrap()).collect();
        let reads: Vec<_> = (0..100)
            .map(|at| {
                let records = partition.read(Offset(at), ReadOptions::new().max_bytes(1)).unwrap();
                records.iter().map(|record| record.offset().0).collect::<Vec<_>>()
            })
            .collect();
        assert_eq!(contents(&partition), (offsets(&[(0, 100)]), vec![]));
        (times, reads)
    };
    let expected = answers(&disk.fork());
    for (at, asked) in (900..2100).enumerate() {
        let first = (0..100).find(|offset| time(*offset) >= asked).map(Offset);
        assert_eq!(expected.0[at], first, "at {asked}");
    }
    for clean in [true, false] {
        for change in 0..4 {
            let disk = disk.fork();
            if !clean {
                disk.remove_file("session");
            }
            for (at, name) in sides.iter().enumerate() {
                let mut bytes = disk.read_file(name);
                match change {
                    0 => disk.remove_file(name),
                    1 => {
                        // In the index, behind the head.
                        let middle = 88 + (bytes.len() - 88) / 2;
                        bytes[middle] ^= 0x10;
                        disk.write_file(name, &bytes);
                    }
                    2 => disk.write_file(name, &[bytes.clone(), bytes].concat()),
                    _ => disk.write_file(name, &disk.read_file(&sides[(at + 1) % sides.len()])),
                }
            }
            assert_eq!(answers(&disk), expected, "clean {clean}, change {change}");
        }
    }
}

#[test]
fn s8_a_failed_flush_is_told_to_everyone_and_never_tried_again() {
    for fault in [SyncFault::CleanedPages, SyncFault::Reverted] {
        let disk = SimDisk::new(8);
        let store = open(&disk).unwrap();
        store.create_topic("t", config(Flush::OnAck)).unwrap();
        store.create_topic("other", config(Flush::OnAck)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        append(&partition, 0..5);
        let waiting = partition.append_nowait(&[Record::new(&value(5))], Acks::All).unwrap();
        disk.fail_sync(1, fault);
        let error = partition.append(&[Record::new(&value(6))], Acks::All).unwrap_err();
        assert_eq!((error.written(), error.class()), (Written::Unknown, ErrorClass::Fatal));
        let Error::DiskOffline { at_risk, .. } = &error else { panic!("{error:?}") };
        assert_eq!(*at_risk, Offset(5)..Offset(7));
        assert_eq!(waiting.wait(SECOND).unwrap_err().written(), Written::Unknown);
        let fenced = store.events().find_map(|event| match event.kind {
            EventKind::ReplicaFenced { at_risk, .. } => Some(at_risk),
            _ => None,
        });
        assert_eq!(fenced, Some(Offset(5)..Offset(7)));
        // The disk works again; that is no reason to believe it.
        disk.heal();
        store.run_background();
        for acks in [Acks::All, Acks::Leader, Acks::None] {
            let error = partition.append(&[Record::new("late")], acks).unwrap_err();
            assert!(matches!(error, Error::DiskOffline { .. }), "{error:?}");
            assert_eq!(error.written(), Written::No);
            assert!(partition.append_nowait(&[Record::new("late")], acks).is_err());
        }
        assert!(partition.wait_for(Offset(5), Duration::from_millis(1)).is_err());
        assert!(partition.delete_records(Offset(6)).is_err());
        assert_eq!(partition.high_watermark(), Offset(5));
        assert_eq!(contents(&partition), (offsets(&[(0, 5)]), vec![]));
        let _ = store.close(SECOND);
        drop((partition, store));
        let store = open(&disk).unwrap();
        let partition = store.partition("t", 0).unwrap();
        let (found, damages) = contents(&partition);
        assert!(found.starts_with(&offsets(&[(0, 5)])) && damages.is_empty(), "{found:?}");
        let end = partition.log_end_offset().0;
        append(&partition, end..end + 3);
    }
}

#[test]
fn s11_an_open_without_handles_fails_for_now_and_a_roll_does_so_too() {
    let full = closed_store(100);
    let mut refused = 0;
    for n in 1.. {
        let disk = full.fork();
        disk.fail_from(n, Fault::TooManyFiles);
        let calls = disk.calls();
        match open(&disk) {
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.class(), ErrorClass::Retriable, "call {n}: {error:?}");
                refused += 1;
            }
        }
        let over = disk.calls() - calls < n;
        disk.heal();
        let store = open(&disk).unwrap();
        let partition = store.partition("t", 0).unwrap();
        assert_eq!(contents(&partition), (offsets(&[(0, 100)]), vec![]), "call {n}");
        if over {
            break;
        }
    }
    assert!(refused > 0);
    let store = open(&full).unwrap();
    let partition = store.partition("t", 0).unwrap();
    full.fail_from(1, Fault::TooManyFiles);
    let mut next = 100;
    let error = loop {
        match partition.append(&[Record::new(&value(next))], Acks::All) {
            Ok(_) => next += 1,
            Err(error) => break error,
        }
        assert!(next < 300, "a roll needs a handle");
    };
    assert_eq!((error.written(), error.class()), (Written::No, ErrorClass::Retriable), "{error:?}");
    match store.create_topic("u", TopicConfig::new()) {
        Ok(()) => assert!(store.topic("u").is_ok()),
        Err(error) => assert_eq!(error.class(), ErrorClass::Retriable, "{error:?}"),
    }
    full.heal();
    append(&partition, next..next + 100);
    assert_eq!(contents(&partition), (offsets(&[(0, next + 100)]), vec![]));
}

#[test]
fn s16_a_missing_beginning_or_end_is_a_hole_and_what_is_there_twice_is_read_once() {
    let full = closed_store(100);
    let names = logs(&full);
    let bases: Vec<_> = names.iter().map(|name| base(name)).collect();
    for clean in [true, false] {
        // The first file is gone.
        let disk = full.fork();
        let session = |disk: &SimDisk| {
            if !clean {
                disk.remove_file("session");
            }
        };
        session(&disk);
        disk.remove_file(&names[0]);
        let store = open(&disk).unwrap();
        let partition = store.partition("t", 0).unwrap();
        assert_eq!(partition.log_start_offset(), Offset(0), "clean {clean}");
        let expected = (offsets(&[(bases[1], 100)]), vec![(0, bases[1])]);
        assert_eq!(contents(&partition), expected, "clean {clean}");
        drop((partition, store));
        // A copy of a file under the name of another place in the same log.
        let disk = full.fork();
        session(&disk);
        let directory = names[0].rsplit_once('/').unwrap().0;
        let copy = disk.read_file(&names[0]);
        for stray in [bases[1] - 3, bases[1] + 3, 5000] {
            disk.write_file(&format!("{directory}/{stray:020}.log"), &copy);
        }
        let before = disk.files().len();
        let store = open(&disk).unwrap();
        let partition = store.partition("t", 0).unwrap();
        assert_eq!(partition.log_end_offset(), Offset(100), "clean {clean}");
        let (found, damages) = contents(&partition);
        if clean {
            // A clean stop is believed as to what lies before its end: the strangers in the midst of the
            // log hide what they cover, and say so.
            let hidden = |at: &u64| damages.iter().any(|(from, to)| (*from..*to).contains(at));
            assert!((0..100).all(|at| found.contains(&at) != hidden(&at)), "{damages:?}");
            assert!(damages.iter().all(|(from, to)| to - from <= bases[2]), "{damages:?}");
        } else {
            assert_eq!((found, damages), (offsets(&[(0, 100)]), vec![]));
        }
        assert!(disk.files().len() >= before, "nothing that may hold data is removed");
        drop((partition, store));
        for stray in [bases[1] - 3, bases[1] + 3] {
            disk.remove_file(&format!("{directory}/{stray:020}.log"));
        }
        let store = open(&disk).unwrap();
        let partition = store.partition("t", 0).unwrap();
        assert_eq!(
            contents(&partition),
            (offsets(&[(0, 100)]), vec![]),
            "clean {clean}: all is there"
        );
    }
    // The last file is gone. A clean stop wrote down how far the log went.
    let disk = full.fork();
    disk.remove_file(names.last().unwrap());
    let store = open(&disk).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let last = *bases.last().unwrap();
    assert_eq!(damaged(&store), [(last, 100)]);
    assert_eq!(contents(&partition), (offsets(&[(0, last)]), vec![(last, 100)]));
    append(&partition, 100..110);
    assert_eq!(contents(&partition), (offsets(&[(0, last), (100, 110)]), vec![(last, 100)]));
}

/// A store of a hundred records with a file of another store at `place` in the same directory.
fn with_a_foreign_segment(place: u64, clean: bool) -> (SimDisk, String, Vec<u8>) {
    let other = closed_store(60);
    let foreign = other.read_file(&logs(&other)[0]);
    let disk = closed_store(100);
    if !clean {
        disk.remove_file("session");
    }
    let directory = logs(&disk)[0].rsplit_once('/').unwrap().0.to_owned();
    let name = format!("{directory}/{place:020}.log");
    assert!(!disk.files().contains(&name));
    disk.write_file(&name, &foreign);
    (disk, name, foreign)
}

#[test]
fn s15_a_segment_of_another_store_is_not_read_and_not_removed() {
    for (place, clean) in [(5000, true), (5000, false), (50, true), (50, false)] {
        let (disk, name, foreign) = with_a_foreign_segment(place, clean);
        let kept = format!("quarantine/{}", name.replace('/', "-"));
        let store = open(&disk).unwrap();
        let partition = store.partition("t", 0).unwrap();
        assert_eq!(contents(&partition), (offsets(&[(0, 100)]), vec![]), "clean {clean}");
        assert!(store.events().any(|event| matches!(
            &event.kind,
            EventKind::ForeignFile { path } if path.ends_with(&kept)
        )));
        append(&partition, 100..200);
        store.close(SECOND).unwrap();
        let store = open(&disk).unwrap();
        let partition = store.partition("t", 0).unwrap();
        assert_eq!(contents(&partition), (offsets(&[(0, 200)]), vec![]), "clean {clean}");
        assert_eq!(disk.read_file(&kept), foreign);
        // Another one, where that was: both are kept.
        store.close(SECOND).unwrap();
        disk.write_file(&name, &foreign[..foreign.len() - 1]);
        let store = open(&disk).unwrap();
        let partition = store.partition("t", 0).unwrap();
        assert_eq!(contents(&partition), (offsets(&[(0, 200)]), vec![]), "clean {clean}");
        assert_eq!(disk.read_file(&kept), foreign);
        assert_eq!(disk.read_file(&format!("{kept}.2")), foreign[..foreign.len() - 1]);
    }
}

/// It was left alone after a crash, and after a clean stop appended to: the next crash took all of that.
#[test]
fn s15_nothing_is_appended_to_a_file_of_another_store_where_the_log_ends() {
    let (disk, name, foreign) = with_a_foreign_segment(100, false);
    open(&disk).unwrap().close(SECOND).unwrap();
    let store = open(&disk).unwrap();
    append(&store.partition("t", 0).unwrap(), 100..110);
    disk.kill();
    drop(store);
    disk.heal();
    disk.process_restart();
    let store = open(&disk).unwrap();
    assert_eq!(contents(&store.partition("t", 0).unwrap()), (offsets(&[(0, 110)]), vec![]));
    assert_eq!(disk.read_file(&format!("quarantine/{}", name.replace('/', "-"))), foreign);
}

#[test]
fn s15_a_crash_amid_the_opening_that_moves_it_away_keeps_all_of_it_and_of_the_log() {
    for (place, clean, power_loss) in [50, 100]
        .into_iter()
        .flat_map(|place| [0, 1, 2, 3].map(|kind| (place, kind % 2 == 0, kind / 2 == 0)))
    {
        let (before, name, foreign) = with_a_foreign_segment(place, clean);
        let side = name.replace(".log", ".side");
        if !clean {
            before.write_file(&side, b"also not ours");
        }
        for cut in 1.. {
            let note = format!("at {place}, clean {clean}, power {power_loss}, cut {cut}");
            let disk = before.fork();
            disk.crash_at(cut);
            drop(open(&disk).and_then(|store| store.partition("t", 0)));
            let is_reached = disk.is_dead();
            disk.kill();
            disk.heal();
            if power_loss {
                disk.power_loss();
            } else {
                disk.process_restart();
            }
            let store = open(&disk).unwrap();
            let partition = store.partition("t", 0).unwrap();
            append(&partition, 100..110);
            assert_eq!(contents(&partition), (offsets(&[(0, 110)]), vec![]), "{note}");
            let has = |bytes: &[u8]| disk.files().iter().any(|file| disk.read_file(file) == bytes);
            assert!(has(&foreign) && (clean || has(b"also not ours")), "{note}");
            if !is_reached {
                break;
            }
        }
    }
}

#[test]
fn s15_a_foreign_file_where_the_next_segment_goes_is_not_written_over() {
    let disk = closed_store(100);
    let store = open(&disk).unwrap();
    append(&store.partition("t", 0).unwrap(), 100..200);
    let next = logs(&disk).iter().map(|name| base(name)).find(|base| *base > 100).unwrap();
    let (disk, _, foreign) = with_a_foreign_segment(next, true);
    let store = open(&disk).unwrap();
    let partition = store.partition("t", 0).unwrap();
    append(&partition, 100..200);
    assert_eq!(contents(&partition), (offsets(&[(0, 200)]), vec![]));
    assert!(disk.files().iter().any(|name| disk.read_file(name) == foreign), "never deleted");
}

/// After a power loss, a sector of a removed segment stood where the next one's header was. The first opening left the file
/// alone, the one after a clean stop appended to it, and the next left it alone again, with all that was acknowledged.
#[test]
fn s15_what_has_the_next_segments_name_is_not_appended_to_after_a_clean_stop() {
    let disk = closed_store(100);
    let first = logs(&disk).remove(0);
    let next = first.replace(&"0".repeat(20), &format!("{:020}", 100));
    disk.write_file(&next, &disk.read_file(&first));
    for round in 0..2 {
        let store = open(&disk).unwrap();
        let partition = store.partition("t", 0).unwrap();
        append(&partition, 100 + round * 10..110 + round * 10);
        disk.kill();
        drop((store, partition));
        disk.process_restart();
    }
    let store = open(&disk).unwrap();
    assert_eq!(contents(&store.partition("t", 0).unwrap()), (offsets(&[(0, 120)]), vec![]));
}

/// Names, bytes and times of everything below `directory`.
fn tree(directory: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let mut found = BTreeMap::new();
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let (path, kind) =
                entry.map(|entry| (entry.path(), entry.file_type().unwrap())).unwrap();
            let modified = std::fs::symlink_metadata(&path).unwrap().modified().unwrap();
            let bytes = if kind.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
            if kind.is_dir() {
                left.push(path.clone());
            }
            found.insert(path, (bytes, modified));
        }
    }
    found
}

/// A closed store on a real directory, and the directory of its partition.
fn real_store(directory: &Path) -> PathBuf {
    let store = Store::open(directory).unwrap();
    store.create_topic("t", config(Flush::Os)).unwrap();
    append(&store.partition("t", 0).unwrap(), 0..100);
    store.close(SECOND * 10).unwrap();
    let log = tree(directory).into_keys().find(|path| path.extension().is_some_and(|e| e == "log"));
    log.unwrap().parent().unwrap().to_owned()
}

/// Gives a file another version at byte 8 and the checksum at byte 60 that goes with it.
fn make_newer(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[8..12].copy_from_slice(&9_u32.to_le_bytes());
    let crc = !bytes[..60].iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    });
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn s17_a_newer_store_is_refused_by_every_opener_and_not_even_a_time_changes() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("data");
    real_store(&path);
    make_newer(&path.join("store.id"));
    let before = tree(&path);
    for _ in 0..2 {
        for outcome in [Store::open(&path), Store::open_read_only(&path)] {
            let error = outcome.unwrap_err();
            assert!(matches!(error, Error::UnsupportedFormat { .. }), "{error}");
            assert_eq!(error.class(), ErrorClass::Fatal);
        }
    }
    assert!(tree(&path) == before, "something was written");
}

#[test]
fn s17_a_newer_data_file_is_refused_where_it_is_used_and_left_as_it_is() {
    for clean in [true, false] {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("data");
        let partition = real_store(&path);
        let files = tree(&partition);
        let mut log = files.keys().filter(|path| path.extension().is_some_and(|e| e == "log"));
        // The one that is appended to; of sealed ones, each batch says how it is to be read.
        make_newer(log.next_back().unwrap());
        if !clean {
            std::fs::remove_file(path.join("session")).unwrap();
        }
        let mut before = tree(&partition);
        before.remove(&partition.join("marks")); // for readers of this run of the machine, made anew
        for _ in 0..2 {
            let store = match Store::open(&path) {
                Ok(store) => store,
                Err(error) => {
                    assert!(matches!(error, Error::UnsupportedFormat { .. }), "{error}");
                    continue;
                }
            };
            let error = store.partition("t", 0).unwrap_err();
            assert!(matches!(error, Error::UnsupportedFormat { .. }), "{error}");
            store.create_topic("u", TopicConfig::new()).ok();
            append(&store.partition("u", 0).unwrap(), 0..3);
            store.close(SECOND * 10).unwrap();
        }
        let after = tree(&partition);
        for (path, (bytes, _)) in before {
            assert!(after.get(&path).is_some_and(|now| now.0 == bytes), "{}", path.display());
        }
    }
}

#[test]
fn s12_a_path_that_is_no_directory_is_an_error_and_stays_what_it_is() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("file");
    std::fs::write(&file, "a thesis").unwrap();
    let nul = PathBuf::from("a\0b");
    for path in [file.as_path(), &file.join("below"), Path::new(""), &nul] {
        for outcome in [Store::open(path), Store::open_read_only(path)] {
            let error = outcome.unwrap_err();
            let told = matches!(error, Error::Io { .. } | Error::UnsupportedFormat { .. });
            assert!(told, "{}: {error:?}", path.display());
        }
    }
    let absent = scratch.path().join("absent");
    assert!(Store::open_read_only(&absent).is_err());
    assert!(!absent.exists(), "a reader makes nothing");
    assert_eq!(std::fs::read(&file).unwrap(), b"a thesis");
}

#[cfg(unix)]
#[test]
fn s15_links_pipes_and_directories_named_like_segments_are_not_waited_for_or_touched() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("data");
    let partition = real_store(&path);
    let precious = scratch.path().join("precious");
    std::fs::write(&precious, "a thesis").unwrap();
    let pipe = partition.join("00000000000000005000.log");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let link = partition.join("00000000000000006000.log");
    std::os::unix::fs::symlink(&precious, &link).unwrap();
    let loose = partition.join("00000000000000007000.side");
    std::os::unix::fs::symlink(scratch.path().join("nowhere"), &loose).unwrap();
    let inner = partition.join("00000000000000008000.log");
    std::fs::create_dir(&inner).unwrap();
    std::fs::create_dir(path.join("lost+found")).unwrap();
    std::fs::write(partition.join(".nfs0001"), "open elsewhere").unwrap();
    for clean in [true, false] {
        if !clean {
            std::fs::remove_file(path.join("session")).unwrap();
        }
        let (sender, opened) = channel();
        let place = path.clone();
        std::thread::spawn(move || sender.send(Store::open(place)).unwrap());
        let store = opened.recv_timeout(SECOND * 30).expect("the open does not wait").unwrap();
        let log = store.partition("t", 0).unwrap();
        let end = log.log_end_offset().0;
        append(&log, end..end + 100);
        assert_eq!(contents(&log), (offsets(&[(0, end + 100)]), vec![]));
        let report = store.verify(VerifyOptions::new()).unwrap();
        assert!(report.damages.is_empty(), "{report:?}");
        let events: Vec<_> = store.events().map(|event| event.to_string()).collect();
        for stranger in [&pipe, &link, &inner] {
            let name = stranger.file_name().unwrap().to_str().unwrap();
            assert!(events.iter().any(|event| event.contains(name)), "{name}: {events:?}");
            assert!(stranger.symlink_metadata().is_ok(), "{name} is gone");
        }
        store.close(SECOND * 10).unwrap();
    }
    // A topic's own directory goes with the topic; what a link in it points to does not.
    let store = Store::open(&path).unwrap();
    store.delete_topic("t").unwrap();
    store.close(SECOND * 10).unwrap();
    assert_eq!(std::fs::read(&precious).unwrap(), b"a thesis");
    assert!(path.join("lost+found").is_dir());
}
