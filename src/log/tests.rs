use std::ops::Range;

use super::*;
use crate::record::{DraftSettings, Record};
use crate::segment::Identity;
use crate::storage::{BufferPool, MemoryDisk};
use crate::types::{ProducerEpoch, StoreId, TopicId, TopicPartition};

const NOW: Timestamp = Timestamp(1000);
const NOBODY: ProducerSequence = numbered(0);

const fn numbered(id: u64) -> ProducerSequence {
    ProducerSequence { id: ProducerId(id), epoch: ProducerEpoch(0), sequence: 0 }
}

fn place(disk: &MemoryDisk) -> Place {
    let identity = Identity::new(StoreId(1), TopicId(1), TopicPartition::new("t", 0));
    Place {
        identity: Arc::new(identity),
        disk: Arc::new(disk.clone()),
        directory: "t/0".into(),
        buffers: BufferPool::default(),
        map_sealed: false,
    }
}

fn settings(how: WriteHow) -> LogSettings {
    LogSettings {
        segment_bytes: 4096,
        segment_age: Duration::from_secs(1),
        index_interval: 256,
        how,
        checkpoint_bytes: 1 << 20,
    }
}

fn open(disk: &MemoryDisk) -> Log {
    open_from(disk, Offset::ZERO)
}

fn open_from(disk: &MemoryDisk, log_start: Offset) -> Log {
    let settings = settings(WriteHow::Map { chunk_bytes: 4096 });
    let evidence = Evidence {
        proven_end: Offset::ZERO,
        clean: false,
        same_boot: true,
        log_start,
        rewrite: true,
        epoch: LeaderEpoch(0),
        sealed_since: Some(LeaderEpoch(0)),
        now: NOW,
        repair: true,
        producers: true,
    };
    let recovered = Log::open(place(disk), settings, evidence).unwrap();
    assert_eq!(recovered.losses, []);
    recovered.log
}

fn append(log: &mut Log, values: &[u64]) -> Range<Offset> {
    append_by(log, NOBODY, values)
}

fn append_by(log: &mut Log, author: ProducerSequence, values: &[u64]) -> Range<Offset> {
    let values: Vec<_> = values.iter().map(|value| value.to_le_bytes()).collect();
    let records: Vec<_> = values.iter().map(Record::new).collect();
    let (mut draft, partition) = (Draft::default(), TopicPartition::new("t", 0));
    draft.encode(&records, &DraftSettings::plain(NOW), &partition).unwrap();
    draft.written_by(author, false);
    let base = log.end();
    log.append(&mut draft, NOW).unwrap();
    base..log.end()
}

fn values(log: &Log) -> Vec<u64> {
    let mut found = Vec::new();
    let mut offset = log.reader().log_start();
    while let Some(fetched) = log.reader().read(offset, log.end(), 1000).unwrap() {
        for (_, records) in crate::segment::batches::Batches::new(&fetched) {
            for record in records.filter(|record| record.offset() >= offset) {
                found.push(u64::from_le_bytes(record.value().unwrap().try_into().unwrap()));
            }
        }
        offset = fetched.next;
    }
    found
}

#[test]
fn epoch_14_a_log_is_cut_at_any_offset_and_goes_on_there_also_after_reopening() {
    for to in 0..=120 {
        let disk = MemoryDisk::new();
        let mut log = open(&disk);
        for at in 0..60 {
            append(&mut log, &[2 * at, 2 * at + 1]);
        }
        let held = log.reader().read(Offset(0), log.end(), 1 << 20).unwrap();
        let end = log.truncate(Offset(to), NOW).unwrap();
        // A batch is cut as a whole.
        assert_eq!(end, Offset(to / 2 * 2), "EPOCH-14: cut at {to}");
        let mut expected: Vec<u64> = (0..end.0).collect();
        assert_eq!(values(&log), expected);
        assert_eq!(append(&mut log, &[7, 8, 9]).start, end);
        expected.extend([7, 8, 9]);
        assert_eq!(values(&log), expected);
        drop(held);
        drop(log);
        assert_eq!(values(&open(&disk)), expected, "cut at {to}");
    }
}

/// What is appended in the place of flushed batches would be acknowledged without a flush.
#[test]
fn epoch_14_what_comes_behind_a_cut_waits_for_a_flush_of_its_own() {
    let disk = MemoryDisk::default();
    let mut log = open(&disk);
    let _ = append(&mut log, &[0, 1, 2]);
    let _ = append(&mut log, &[3, 4]);
    let plan = log.flush_plan().expect("nothing is flushed");
    plan.run().unwrap();
    log.on_flushed(plan);
    assert_eq!(log.flushed_end(), Offset(5));
    log.truncate(Offset(3), NOW).unwrap();
    assert_eq!((log.end(), log.flushed_end()), (Offset(3), Offset(3)));
    let _ = append(&mut log, &[5]);
    assert_eq!(log.flush_plan().map(|plan| plan.end), Some(Offset(4)));
}

#[test]
fn log_19_a_log_cut_to_nothing_begins_anew_with_a_batch_that_begins_before_it() {
    let (mut leader, disk) = (open(&MemoryDisk::new()), MemoryDisk::new());
    append(&mut leader, &(0..10).collect::<Vec<_>>());
    let batches = leader.reader().read(Offset(0), leader.end(), 1000).unwrap().unwrap();
    let mut log = open(&disk);
    log.restart(Offset(5)).unwrap();
    append(&mut log, &[1, 2, 3]);
    log.truncate(Offset(5), NOW).unwrap();
    assert!(!log.reader().is_empty() && log.reader().holds_nothing());
    assert!(log.append_batches(&batches.bytes, NOW).unwrap());
    assert_eq!((log.reader().log_start(), log.end()), (Offset(5), Offset(10)));
    assert_eq!(values(&log), [5, 6, 7, 8, 9]);
    drop(log);
    assert_eq!(values(&open(&disk)), (0..10).collect::<Vec<_>>());
}

/// They were in memory until the flush wrote them, which a process may not live to see, and were acknowledged as
/// being in the file.
#[test]
fn what_a_flush_has_on_its_way_is_in_the_file_once_nobody_waits_for_flushes() {
    let write = |staged| settings(WriteHow::Write { map_reads: false, staged });
    let disk = MemoryDisk::new();
    let mut log = open(&disk);
    log.set_settings(write(true)).unwrap();
    append(&mut log, &[1]);
    let plan = log.flush_plan().unwrap();
    append(&mut log, &[2]);
    assert_eq!(values(&log), []);
    log.set_settings(write(false)).unwrap();
    append(&mut log, &[3]);
    assert_eq!(values(&log), [1, 2, 3]);
    assert!(log.unwritten().iter().all(|row| row.is_empty()));
    log.set_settings(write(true)).unwrap();
    append(&mut log, &[4]);
    assert_eq!((values(&log), log.written_end()), (vec![1, 2, 3], Offset(3)));
    let Log { place, .. } = &log;
    let name = place.path(&log_name(Offset(0)));
    let file = crate::storage::Disk::open(&*place.disk, &name, OpenMode::Read).unwrap();
    let mut bytes = vec![0; 4096];
    let count = crate::storage::read_full_at(&*file, 0, &mut bytes).unwrap();
    plan.run().unwrap();
    log.on_flushed(plan);
    assert_eq!((log.flushed_end(), log.unwritten()[0].len()), (Offset(1), 0));
    drop((log, file));
    // As a process leaves it that dies before the flush: the file has the bytes by then.
    let left = MemoryDisk::new();
    crate::storage::Disk::create_dir(&left, "t").unwrap();
    crate::storage::Disk::create_dir(&left, "t/0").unwrap();
    let file = crate::storage::Disk::open(&left, &name, OpenMode::Create).unwrap();
    crate::storage::write_all_at(&*file, 0, &bytes[..count]).unwrap();
    drop(file);
    assert_eq!(values(&open(&left)), [1, 2, 3]);
}

/// A snapshot of what was cut stayed the newest: records went without a word on who wrote them.
#[test]
fn a_log_that_was_cut_writes_down_its_producers_anew_before_their_records_go() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk);
    append_by(&mut log, numbered(7), &[1]);
    (0..20).for_each(|at| _ = append(&mut log, &[at]));
    let snapshot = log.producer_snapshot(true).expect("somebody wrote");
    snapshot.write().unwrap();
    log.on_producer_snapshot(&snapshot, true).unwrap();
    let snapshots = |disk: &MemoryDisk| {
        let names = crate::storage::Disk::list(disk, "t/0").unwrap().into_iter();
        names.filter(|entry| entry.name.ends_with(".producers")).count()
    };
    assert_eq!(snapshots(&disk), 1);
    log.truncate(Offset(10), NOW).unwrap();
    assert_eq!(snapshots(&disk), 0, "it tells of what is gone");
    (0..6).for_each(|at| _ = append(&mut log, &[at]));
    assert!(log.producer_snapshot_before(Offset(5)).is_some());
}

/// All that told of them on the disk told of too much, and was removed; a crash then took what was in memory.
#[test]
fn a_log_that_is_cut_has_written_down_who_wrote_what_was_deleted_before() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk);
    append_by(&mut log, numbered(7), &[1]);
    (0..100).for_each(|at| _ = append(&mut log, &[at]));
    let snapshot = log.producer_snapshot_before(Offset(60)).expect("somebody wrote");
    snapshot.write().unwrap();
    log.on_producer_snapshot(&snapshot, true).unwrap();
    let gone = log.raise_log_start(Offset(60));
    assert!(!gone.is_empty());
    for segment in gone {
        remove_segment_files(log.place(), segment.base).unwrap();
    }
    log.truncate(Offset(80), NOW).unwrap();
    assert!(log.producer(ProducerId(7)).is_some());
    drop(log);
    assert!(open_from(&disk, Offset(60)).producer(ProducerId(7)).is_some());
}

#[test]
fn a_segment_that_was_begun_for_another_flush_level_is_ended_once_all_of_it_is_in_its_file() {
    let map = settings(WriteHow::Map { chunk_bytes: 4096 });
    let staged = settings(WriteHow::Write { map_reads: true, staged: true });
    let mut log = open(&MemoryDisk::new());
    append(&mut log, &[0]);
    log.set_settings(staged).unwrap();
    assert!(log.roll_if_due(NOW).unwrap());
    append(&mut log, &[1]);
    assert!(!log.roll_if_due(NOW).unwrap(), "it is of the right kind");
    assert_eq!((log.written_end(), log.end()), (Offset(1), Offset(2)), "it waits for a flush");
    let plan = log.flush_plan().unwrap();
    log.set_settings(map).unwrap();
    assert!(!log.roll_if_due(NOW).unwrap(), "its flush is on its way");
    plan.run().unwrap();
    log.on_flushed(plan);
    assert!(log.roll_if_due(NOW).unwrap());
    append(&mut log, &[2]);
    assert_eq!(values(&log), [0, 1, 2]);
    assert_eq!(log.sealed().len(), 2);
}

#[test]
fn the_worker_makes_chunks_ready_then_maps_them_and_ends() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk);
    let how = WriteHow::Map { chunk_bytes: 4096 };
    log.set_settings(LogSettings { segment_bytes: 64 << 10, ..settings(how) }).unwrap();
    append(&mut log, &[0]);
    let (room, position) = log.room().expect("a segment grows");
    let ahead = 3 * 4096;
    let mut turns = 0;
    while room.wants_work(position, ahead) {
        assert!(room.work_ahead(position, ahead).unwrap());
        turns += 1;
        assert!(turns <= 8, "it goes on and on");
    }
    assert!(!room.work_ahead(position, ahead).unwrap());
    // What is ready behind the end, in whole chunks; the first of them was made ready with the file.
    assert!(room.is_ready(position + ahead));
    assert!((4..=6).contains(&turns), "{turns}");
}

#[test]
fn s6_a_log_without_its_side_files_gives_the_same_answers() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk);
    for at in 0..300 {
        append(&mut log, &[at]);
    }
    for sealed in log.sealed().to_vec() {
        settle(&sealed, true).unwrap();
    }
    let expected = values(&log);
    drop(log);
    assert_eq!(values(&open(&disk)), expected);
    let names = crate::storage::Disk::list(&disk, "t/0").unwrap();
    let sides: Vec<_> = names.iter().filter(|entry| entry.name.ends_with(".side")).collect();
    assert!(sides.len() > 5);
    for side in sides {
        crate::storage::Disk::remove(&disk, &format!("t/0/{}", side.name)).unwrap();
    }
    assert_eq!(values(&open(&disk)), expected);
}

/// They were written out each time: under the partition's lock, for which everybody waited where the disk hung.
#[test]
fn a_change_of_settings_asks_nothing_of_the_disk_unless_records_wait_in_memory_no_more() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk);
    let staged = WriteHow::Write { map_reads: true, staged: true };
    log.set_settings(settings(staged)).unwrap();
    append(&mut log, &[1]);
    log.roll_now(NOW).unwrap();
    append(&mut log, &[2]);
    assert!(log.written_end() < log.end(), "it waits in memory");
    log.set_settings(LogSettings { segment_bytes: 8192, ..settings(staged) }).unwrap();
    assert!(log.written_end() < log.end(), "it still does");
    let written = WriteHow::Write { map_reads: true, staged: false };
    log.set_settings(settings(written)).unwrap();
    assert_eq!(log.written_end(), log.end());
}
