use std::ops::Range;

use super::*;
use crate::protocol::replication::{EpochHistory, Progress};
use crate::record::{DraftSettings, Marker, Record};
use crate::segment::{DATA_START, Identity};
use crate::storage::simulated::SimDisk;
use crate::storage::{BufferPool, Disk, MemoryDisk, OpenMode};
use crate::types::{Outcome, ProducerEpoch, ProducerSequence, StoreId, TopicId, TopicPartition};

const NOW: Timestamp = Timestamp(1000);
const NOBODY: ProducerSequence = numbered(0);

const fn numbered(id: u64) -> ProducerSequence {
    ProducerSequence { id: ProducerId(id), epoch: ProducerEpoch(0), sequence: 0 }
}

fn place(disk: Arc<dyn Disk>) -> Place {
    let identity = Identity::new(StoreId(1), TopicId(1), TopicPartition::new("t", 0));
    Place {
        identity: Arc::new(identity),
        disk,
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
    let recovered = recover(Arc::new(disk.clone()), log_start, true);
    assert_eq!(recovered.losses, []);
    recovered.log
}

fn recover(disk: Arc<dyn Disk>, log_start: Offset, same_boot: bool) -> Recovered {
    recover_proven(disk, log_start, same_boot, Offset::ZERO)
}

fn recover_proven(
    disk: Arc<dyn Disk>,
    log_start: Offset,
    same_boot: bool,
    proven_end: Offset,
) -> Recovered {
    recover_with(disk, |evidence| {
        *evidence = Evidence { proven_end, same_boot, log_start, ..*evidence };
    })
}

fn recover_with(disk: Arc<dyn Disk>, change: impl FnOnce(&mut Evidence)) -> Recovered {
    let settings = settings(WriteHow::Map { chunk_bytes: 4096 });
    let mut evidence = Evidence {
        proven_end: Offset::ZERO,
        clean: false,
        same_boot: true,
        log_start: Offset::ZERO,
        rewrite: true,
        epoch: LeaderEpoch(0),
        sealed_since: Some(LeaderEpoch(0)),
        now: NOW,
        repair: true,
        producers: true,
        mapped: false,
    };
    change(&mut evidence);
    Log::open(place(disk), settings, evidence).unwrap()
}

fn snapshots(disk: &dyn Disk) -> Vec<String> {
    let names = disk.list("t/0").unwrap().into_iter().map(|entry| entry.name);
    names.filter(|name| name.ends_with(".producers")).collect()
}

fn write_down(log: &mut Log) {
    let snapshot = log.producer_snapshot(true).expect("somebody wrote");
    snapshot.write().unwrap();
    log.on_producer_snapshot(&snapshot, true).unwrap();
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
/// A replica with damage before the place could not be cut, and so was never in sync again.
#[test]
fn epoch_14_a_log_is_cut_before_in_and_behind_damage() {
    for (in_header, to) in
        [true, false].into_iter().flat_map(|way| (0..=10).map(move |to| (way, to)))
    {
        let way = format!("in the header: {in_header}, cut at {to}");
        let disk = MemoryDisk::new();
        let mut log = open(&disk);
        let mut damaged = DATA_START + if in_header { 30 } else { 90 };
        for value in [0, 2, 4, 6, 8] {
            append(&mut log, &[value, value + 1]);
            let position = log.reader().segments()[0].position();
            damaged += if value == 0 { position - DATA_START } else { 0 };
        }
        let name = format!("t/0/{}", log_name(Offset(0)));
        let file = Disk::open(&disk, &name, OpenMode::Write).unwrap();
        let mut byte = [0];
        file.read_at(damaged, &mut byte).unwrap();
        file.write_at(damaged, &[byte[0] ^ 1]).unwrap();
        let cut = log.truncate(Offset(to), NOW);
        if in_header && to == 3 {
            assert!(matches!(cut, Err(Error::Corrupt { .. })), "{way}: {cut:?}");
            // A copy is made anew from there.
            let mut history = EpochHistory::default();
            history.begin(LeaderEpoch(0), Offset(0));
            assert_eq!(log.agree(&history, Offset(to), NOW).unwrap(), Offset(2), "{way}");
        } else {
            assert_eq!(cut.unwrap(), Offset(to / 2 * 2), "{way}");
        }
        let kept = log.end();
        append(&mut log, &[77]);
        for offset in (0..log.end().0).map(Offset) {
            let read = log.reader().read(offset, log.end(), 1);
            let is_damaged = (Offset(2)..Offset(4).min(kept)).contains(&offset);
            assert_eq!(read.is_err(), is_damaged, "{way}: {offset} {read:?}");
        }
    }
}

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

/// A batch of a leader that is gone ended where records were deleted since, amid a batch of the next leader's: that was no place
/// to go on, and a panic.
#[test]
fn log_19_a_log_that_lies_before_its_start_goes_on_with_a_batch_that_begins_before_it() {
    let (leader_disk, disk) = (MemoryDisk::new(), MemoryDisk::new());
    let (mut leader, mut log) = (open(&leader_disk), open(&disk));
    append(&mut leader, &[0, 1, 2]);
    append(&mut leader, &[3, 4, 5, 6]);
    append(&mut log, &[0, 1, 2]);
    append(&mut log, &[7]);
    log.raise_log_start(Offset(4));
    let batches = leader.reader().read(Offset(4), leader.end(), 1 << 20).unwrap().unwrap();
    assert!(log.append_batches(&batches.bytes, NOW).unwrap());
    assert_eq!((log.end(), values(&log)), (Offset(7), vec![4, 5, 6]));
}

/// A segment that was made for nothing stayed, and its name cut the one that came in its place short.
#[test]
fn log_19_a_log_that_begins_anew_leaves_no_file_of_what_it_was() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk);
    append(&mut log, &[0]);
    log.restart(Offset(5)).unwrap();
    log.make_directory().unwrap();
    let next = log.begin_roll(1, 100).unwrap();
    drop(next.make(NOW).unwrap());
    log.end_roll(None, NOW);
    log.restart(Offset(0)).unwrap();
    append(&mut log, &(0..7).collect::<Vec<_>>());
    log.finish(NOW);
    drop(log);
    assert_eq!(values(&open(&disk)), (0..7).collect::<Vec<_>>());
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
    let file = Disk::open(&*place.disk, &name, OpenMode::Read).unwrap();
    let mut bytes = vec![0; 4096];
    let count = crate::storage::read_full_at(&*file, 0, &mut bytes).unwrap();
    plan.run().unwrap();
    log.on_flushed(plan);
    assert_eq!((log.flushed_end(), log.unwritten()[0].len()), (Offset(1), 0));
    drop((log, file));
    // As a process leaves it that dies before the flush: the file has the bytes by then.
    let left = MemoryDisk::new();
    Disk::create_dir(&left, "t").unwrap();
    Disk::create_dir(&left, "t/0").unwrap();
    let file = Disk::open(&left, &name, OpenMode::Create).unwrap();
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
    write_down(&mut log);
    assert_eq!(snapshots(&disk).len(), 1);
    assert!(log.producer_snapshot(true).is_none(), "it is written down");
    log.truncate(Offset(10), NOW).unwrap();
    assert_eq!(snapshots(&disk).len(), 0, "it tells of what is gone");
    assert!(log.producer_snapshot(true).is_some(), "it is not any more");
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
fn the_worker_makes_chunks_ready_and_ends() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk);
    let how = WriteHow::Map { chunk_bytes: 4096 };
    log.set_settings(LogSettings { segment_bytes: 64 << 10, ..settings(how) }).unwrap();
    append(&mut log, &[0]);
    let (room, position) = log.room().expect("a segment grows");
    let ahead = 3 * 4096;
    let mut turns = 0;
    while room.wants_work(position, ahead, NOW) {
        assert!(room.work_ahead(position, ahead, NOW).unwrap());
        turns += 1;
        assert!(turns <= 8, "it goes on and on");
    }
    assert!(!room.work_ahead(position, ahead, NOW).unwrap());
    // In whole chunks; the first of them was made ready with the file.
    assert!(room.is_ready(position + ahead, NOW));
    assert!((2..=3).contains(&turns), "{turns}");
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
    let names = Disk::list(&disk, "t/0").unwrap();
    let sides: Vec<_> = names.iter().filter(|entry| entry.name.ends_with(".side")).collect();
    assert!(sides.len() > 5);
    for side in sides {
        Disk::remove(&disk, &format!("t/0/{}", side.name)).unwrap();
    }
    assert_eq!(values(&open(&disk)), expected);
}

/// The second time, when the log had been busy to note the first, the index was taken as empty, and written down so: what was
/// aborted below was shown.
#[test]
fn txlog_25_a_segment_that_is_settled_twice_keeps_what_it_knows() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk);
    let author = numbered(7);
    let transactional = |log: &mut Log| {
        let (mut draft, partition) = (Draft::default(), TopicPartition::new("t", 0));
        draft.encode(&[Record::new("x")], &DraftSettings::plain(NOW), &partition).unwrap();
        draft.written_by(author, true);
        log.append(&mut draft, NOW).unwrap();
        let marker = Marker { producer: author.id, epoch: author.epoch, outcome: Outcome::Aborted };
        log.encode_marker(&marker, NOW, &mut draft).unwrap();
        log.append(&mut draft, NOW).unwrap();
    };
    transactional(&mut log);
    log.roll_now(NOW).unwrap();
    let sealed = log.sealed()[0].clone();
    let aborted = |log: &Log| {
        let segments = log.reader().segments();
        segments[0].aborted_in(&(Offset(0)..Offset(2))).unwrap()
    };
    let expected = aborted(&log);
    assert_eq!((expected.0.len(), expected.1), (1, Offset(2)));
    for durable in [false, false, true] {
        settle(&sealed, durable).unwrap();
        assert_eq!(aborted(&log), expected);
    }
    drop(log);
    assert_eq!(aborted(&open(&disk)).0, expected.0);
}

/// After a clean stop nobody walks it, and the file is not shortened: what was cut counted, and as much that was to be kept
/// was deleted by size.
#[test]
fn ret_04_a_segment_that_was_cut_counts_for_what_it_holds() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk);
    let first = append(&mut log, &[0, 1]);
    append(&mut log, &[2, 3]);
    log.truncate(first.end, NOW).unwrap();
    append(&mut log, &[4, 5]);
    log.finish(NOW);
    let held = log.reader().segments()[0].position();
    log.sealed().iter().for_each(|sealed| settle(sealed, true).unwrap());
    drop(log);
    let name = format!("t/0/{}", log_name(Offset(0)));
    assert!(Disk::open(&disk, &name, OpenMode::Read).unwrap().len().unwrap() > held);
    let recovered = recover_with(Arc::new(disk.clone()), |evidence| evidence.clean = true);
    let cut = Arc::clone(&recovered.log.reader().segments()[0]);
    assert_eq!(cut.last_append_or_load(), Some(NOW));
    assert_eq!((cut.end(), cut.position()), (first.end, held));
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

/// Or no later one is, until much more was appended.
#[test]
fn a_snapshot_that_could_not_be_written_is_due_again() {
    let mut log = open(&MemoryDisk::new());
    append_by(&mut log, numbered(7), &[1]);
    let snapshot = log.producer_snapshot(true).expect("somebody wrote");
    assert!(log.producer_snapshot(true).is_none(), "it is on its way");
    log.on_producer_snapshot(&snapshot, false).unwrap();
    assert!(log.producer_snapshot(true).is_some());
}

/// Of two logs that went different ways and end alike, what was written down beside the one tells nothing of the other.
#[test]
fn what_is_told_of_producers_under_another_leader_is_not_believed() {
    for (epoch, believed) in [(LeaderEpoch(0), true), (LeaderEpoch(1), false)] {
        let (told, disk) = (MemoryDisk::new(), MemoryDisk::new());
        let mut other = open(&told);
        other.set_epoch(epoch);
        append_by(&mut other, numbered(7), &[1]);
        write_down(&mut other);
        let mut log = open(&disk);
        append_by(&mut log, numbered(8), &[1]);
        drop((other, log));
        let name = format!("t/0/{}", snapshots(&told)[0]);
        let bytes = crate::storage::read_small(&told, &name, 4096).unwrap();
        crate::storage::replace_file(&disk, &name, &bytes).unwrap();
        let log = open(&disk);
        assert_eq!(log.producer(ProducerId(7)).is_some(), believed, "{epoch:?}");
        assert_eq!(log.producer(ProducerId(8)).is_some(), !believed, "{epoch:?}");
    }
}

/// It could come back once others' records were in the place of those that it tells of.
#[test]
fn no_power_loss_brings_back_what_was_written_down_of_producers_whose_records_were_cut() {
    for seed in 0..30 {
        let disk = SimDisk::new(seed);
        let mut log = recover(Arc::new(disk.clone()), Offset::ZERO, true).log;
        (0..10).for_each(|at| _ = append(&mut log, &[at]));
        append_by(&mut log, numbered(7), &[1]);
        write_down(&mut log);
        log.truncate(Offset(10), NOW).unwrap();
        drop(log);
        disk.power_loss();
        assert_eq!(snapshots(&disk), [""; 0], "seed {seed}");
    }
}

/// A log that begins at 5, and was told who wrote what by `leader`, as a follower is.
fn told_by(leader: &Log, disk: &MemoryDisk) -> Log {
    let mut log = open(disk);
    log.make_directory().unwrap();
    log.restart(Offset(5)).unwrap();
    assert!(log.lacks_past());
    log.adopt_producers(leader);
    write_down(&mut log);
    log
}

fn leader_of(values: u64, author: u64) -> Log {
    let mut leader = open(&MemoryDisk::new());
    append_by(&mut leader, numbered(author), &[0]);
    (1..values).for_each(|at| _ = append(&mut leader, &[at]));
    leader
}

/// What it was told stayed the newest on its disk: nothing newer was written down before records went.
#[test]
fn what_an_earlier_leader_told_goes_when_the_next_one_tells() {
    let disk = MemoryDisk::new();
    let mut log = told_by(&leader_of(40, 7), &disk);
    assert_eq!(snapshots(&disk), ["00000000000000000040.producers"]);
    let next = leader_of(20, 8);
    log.follow_another();
    assert!(log.lacks_past(), "the next leader knows better");
    log.adopt_producers(&next);
    log.remove_foreign_snapshots().unwrap();
    assert_eq!(snapshots(&disk), [""; 0]);
    assert!(log.producer_snapshot_before(Offset(30)).is_some());
    assert!(log.producer(ProducerId(7)).is_none() && log.producer(ProducerId(8)).is_some());
}

/// It would be taken at the next opening for all that there is to know.
#[test]
fn a_log_that_was_not_told_who_wrote_before_it_writes_nothing_down_and_takes_nothing_for_decided() {
    let mut log = open(&MemoryDisk::new());
    log.restart(Offset(5)).unwrap();
    append_by(&mut log, numbered(7), &[1]);
    assert!(log.producer_snapshot(true).is_none());
    assert!(log.producer_snapshot_before(Offset(6)).is_none());
    log.roll_now(NOW).unwrap();
    let decided = |log: &Log| {
        let segments = log.reader().segments();
        segments[0].aborted_in(&(Offset(0)..Offset(10))).unwrap().1
    };
    assert_eq!(decided(&log), Offset::ZERO);

    // What it was told is of the leader's end: what was open at its own may have ended since.
    let mut log = told_by(&leader_of(20, 7), &MemoryDisk::new());
    append(&mut log, &[1]);
    log.roll_now(NOW).unwrap();
    assert_eq!(decided(&log), Offset::ZERO);

    let mut log = open(&MemoryDisk::new());
    append_by(&mut log, numbered(7), &[1]);
    log.roll_now(NOW).unwrap();
    assert_eq!(decided(&log), Offset(1));
}

/// It led, and the segment that it asked for is still on its way: what is appended now has no place.
#[test]
fn a_log_that_begins_a_segment_takes_what_is_copied_once_that_is_there() {
    let (mut leader, mut log) = (open(&MemoryDisk::new()), open(&MemoryDisk::new()));
    append(&mut leader, &[0]);
    append(&mut log, &[0]);
    append(&mut leader, &[1]);
    let next = log.begin_roll(0, 0).unwrap();
    let batches = leader.reader().read(Offset(1), Offset(2), 1000).unwrap().unwrap();
    assert!(!log.append_batches(&batches.bytes, NOW).unwrap());
    log.end_roll(Some(next.make(NOW).unwrap()), NOW);
    assert!(log.append_batches(&batches.bytes, NOW).unwrap());
    assert_eq!(values(&log), [0, 1]);
}

#[derive(Debug, Default)]
struct Refuses(std::sync::atomic::AtomicU64);

impl Witness for Refuses {
    fn lower(&self, end: Offset) -> Result<(), Error> {
        self.0.store(end.0, std::sync::atomic::Ordering::Relaxed);
        Err(Error::Closed)
    }
}

/// What is gone and vouched for is damage at the next opening.
#[test]
fn nothing_is_given_up_before_whoever_vouches_for_it_knows() {
    let mut log = open(&MemoryDisk::new());
    append(&mut log, &(0..10).collect::<Vec<_>>());
    let witness = Arc::new(Refuses::default());
    log.set_witness(Arc::clone(&witness) as Arc<dyn Witness>);
    assert!(log.restart(Offset(5)).is_err());
    assert_eq!(witness.0.load(std::sync::atomic::Ordering::Relaxed), 5);
    assert_eq!((values(&log).len(), log.end()), (10, Offset(10)));
}

fn flush(log: &mut Log) {
    if let Some(plan) = log.flush_plan() {
        plan.run().unwrap();
        log.on_flushed(plan);
    }
}

/// The log that `change` leaves behind where it crashes at each call in turn, read from `log_start` on.
fn after_a_crash(
    make: fn(&mut Log),
    change: fn(&mut Log) -> Result<(), Error>,
    log_start: Offset,
    judge: fn(&Log, &str),
) {
    for power in [false, true] {
        for call in 1.. {
            let disk = SimDisk::new(call);
            let mut log = recover(Arc::new(disk.clone()), Offset::ZERO, true).log;
            make(&mut log);
            flush(&mut log);
            disk.crash_at(call);
            let _ = change(&mut log);
            let died = disk.is_dead();
            drop(log);
            disk.heal();
            if power {
                disk.power_loss();
            } else {
                disk.process_restart();
            }
            let Recovered { log, losses, .. } = recover(Arc::new(disk), log_start, !power);
            let damaged = losses.iter().any(|loss| matches!(loss, Loss::Damaged { .. }));
            assert!(!damaged, "{losses:?} at call {call}, power {power}");
            judge(&log, &format!("at call {call}, power {power}"));
            if !died {
                assert!(call > 3, "calls are made");
                break;
            }
        }
    }
}

/// The name of the segment behind a cut went before the file that was cut: after a crash between the two, what had been cut
/// was there again.
#[test]
fn log_19_what_was_cut_does_not_come_back_by_a_crash_while_a_log_begins_anew() {
    let make = |log: &mut Log| {
        (0..8).for_each(|at| _ = append(log, &[at]));
        flush(log);
        log.truncate(Offset(3), NOW).unwrap();
    };
    let judge = |log: &Log, when: &str| {
        assert!(log.end() <= Offset(5), "{:?} {when}", log.end());
        assert_eq!(values(log), [], "{when}");
    };
    after_a_crash(make, |log| log.restart(Offset(5)), Offset(5), judge);
    let judge = |log: &Log, when: &str| assert!(log.end() <= Offset(3), "{:?} {when}", log.end());
    after_a_crash(make, |log| log.restart(Offset(5)), Offset(0), judge);
}

/// What is left of it is no damage.
#[test]
fn log_19_a_log_that_parts_from_the_leaders_before_its_start_has_no_hole_after_a_crash() {
    let make = |log: &mut Log| {
        (0..90).for_each(|at| _ = append(log, &[at]));
        log.raise_log_start(Offset(5));
    };
    let agree = |log: &mut Log| {
        let mut history = EpochHistory::default();
        history.begin(LeaderEpoch(1), Offset(3));
        log.agree(&history, Offset(50), NOW).map(|end| assert_eq!(end, Offset(3)))
    };
    let judge = |log: &Log, when: &str| {
        let expected: Vec<_> = (5..log.end().0.max(5)).collect();
        assert_eq!(values(log), expected, "{when}");
    };
    after_a_crash(make, agree, Offset(5), judge);
}

/// The proof of the gap vouches for what is before it, and for the segment behind it.
#[test]
fn s4_a_power_loss_takes_nothing_of_a_log_that_has_passed_over_what_is_lost() {
    for seed in 0..30 {
        let disk = SimDisk::new(seed);
        let mut log = recover(Arc::new(disk.clone()), Offset::ZERO, true).log;
        append(&mut log, &(0..5).collect::<Vec<_>>());
        assert!(log.pass_over(Offset(8), NOW).unwrap());
        drop(log);
        disk.power_loss();
        let recovered = recover(Arc::new(disk.clone()), Offset::ZERO, false);
        let log = recovered.log;
        assert_eq!(log.end(), Offset(8), "seed {seed}");
        let held = log.reader().read(Offset(0), Offset(5), 1000);
        assert_eq!(held.ok().flatten().map(|held| held.next), Some(Offset(5)), "seed {seed}");
        assert!(recovered.losses.len() <= 1, "seed {seed}: {:?}", recovered.losses);
    }
}

/// Nothing behind them shows that something is missing, but the end that is proven.
#[test]
fn a_log_whose_last_segments_are_gone_lacks_what_they_told_of_producers() {
    for kept in 0..2 {
        let disk = MemoryDisk::new();
        let mut log = open(&disk);
        (0..60).for_each(|at| _ = append(&mut log, &[at]));
        append_by(&mut log, numbered(7), &[60]);
        let (end, segments) = (log.end(), log.reader().segments());
        assert!(segments.len() > kept);
        drop(log);
        for segment in &segments[kept..] {
            disk.remove(&format!("t/0/{}", log_name(segment.base))).unwrap();
        }
        let Recovered { log, losses, .. } =
            recover_proven(Arc::new(disk.clone()), Offset::ZERO, true, end);
        assert_eq!(log.end(), end);
        assert!(log.producer(ProducerId(7)).is_none() && log.lacks_past(), "{kept}");
        let [Loss::Damaged { from, to, .. }] = &losses[..] else { panic!("{kept}: {losses:?}") };
        assert_eq!((*from, *to), (segments[kept].base, end));
    }
}

/// The proof of the last stop is younger than a file that a power loss brought back: it lies before the start, and goes.
#[test]
fn log_19_a_file_before_the_start_that_a_power_loss_brought_back_is_in_nobodys_way() {
    let disk = MemoryDisk::new();
    let mut log = open(&disk);
    (0..10).for_each(|at| _ = append(&mut log, &[at]));
    drop(log);
    let start = Offset(15);
    let Recovered { log, losses, .. } = recover_proven(Arc::new(disk), start, true, start);
    assert_eq!((log.end(), log.reader().segments().len()), (start, 0));
    assert!(losses.is_empty(), "{losses:?}");
}

/// An empty segment was sealed, and the one that followed had its name: when the log's start was raised next, the file of
/// that one was removed.
#[test]
fn a_repair_of_an_empty_segment_leaves_the_next_one_its_file() {
    for asked in [0, 5, 7] {
        let disk = MemoryDisk::new();
        let mut log = open(&disk);
        (0..8).for_each(|at| _ = append(&mut log, &[at]));
        log.truncate(Offset(5), NOW).unwrap();
        log.raise_log_start(Offset(5)).iter().for_each(|segment| {
            remove_segment_files(log.place(), segment.base).unwrap();
        });
        assert_eq!(log.repair(Offset(asked), &[], NOW).unwrap(), Repair::Sound);
        append(&mut log, &[5]);
        for segment in log.raise_log_start(Offset(5)) {
            remove_segment_files(log.place(), segment.base).unwrap();
        }
        append(&mut log, &[6]);
        drop(log);
        assert_eq!(values(&open_from(&disk, Offset(5))), [5, 6], "asked for {asked}");
    }
}

/// What was written anew from the log's start on went in front of the segment that it replaced, and was dropped in its place: the
/// file of that was removed, and `verify` called it missing.
#[test]
fn a_repair_of_the_last_segment_puts_what_it_wrote_anew_in_its_place() {
    for more in [0, 2] {
        let disk = MemoryDisk::new();
        let mut log = open(&disk);
        (0..8).for_each(|at| _ = append(&mut log, &[at]));
        if more > 0 {
            log.roll_now(NOW).unwrap();
            append(&mut log, &[8, 9]);
        }
        assert!(log.raise_log_start(Offset(5)).is_empty());
        assert_eq!(log.repair(Offset(5), &[], NOW).unwrap(), Repair::Done);
        let bases: Vec<_> = log.reader().segments().iter().map(|segment| segment.base.0).collect();
        assert_eq!(bases, if more == 0 { vec![5] } else { vec![5, 8] });
        let expected: Vec<_> = (5..8 + more).collect();
        assert_eq!(values(&log), expected);
        append(&mut log, &[8 + more]);
        drop(log);
        assert_eq!(values(&open_from(&disk, Offset(5))), [expected, vec![8 + more]].concat());
    }
}

/// After a crash amid the cut, or before the next page, the page told of what had been cut: it was called damaged.
#[test]
fn a_page_tells_of_nothing_that_is_about_to_be_cut() {
    for cut in 1.. {
        let disk = SimDisk::new(1);
        let on_disk = || Arc::new(disk.clone());
        let mut log = recover(on_disk(), Offset::ZERO, true).log;
        for value in 0..100 {
            append(&mut log, &[value]);
        }
        let place = place(on_disk());
        let progress = Progress::recovered(Offset::ZERO, log.end(), log.end());
        Marks::create(&place, &progress, log.end(), log.end(), Timestamp(0)).unwrap();
        disk.crash_at(cut);
        let outcome = log.truncate(Offset(6), NOW);
        let is_reached = disk.is_dead();
        drop(log);
        disk.heal();
        disk.process_restart();
        let shown = Marks::peek(&place).and_then(|marks| marks.log_end).unwrap_or_default();
        let recovered = recover_proven(on_disk(), Offset::ZERO, true, shown);
        assert_eq!(recovered.losses, [], "cut at {cut}");
        if !is_reached {
            assert_eq!((outcome.unwrap(), recovered.log.end()), (Offset(6), Offset(6)));
            return;
        }
    }
}
