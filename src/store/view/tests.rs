//! Views beside an owner that appends, is cut short, hands over, or dies.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::config::{StartAt, TopicConfig};
use crate::record::Record;
use crate::segment::{DATA_START, FILE_HEADER_BYTES, Scanner, log_name};
use crate::storage::simulated::{Hang, SimDisk};
use crate::storage::{Clock, Disk, File, Mapping, OpenMode};
use crate::store::{Partition, Store, StoreBuilder};
use crate::types::{Acks, Flush, StorageMode};

mod hostile;

fn all(disks: &[SimDisk]) -> StoreBuilder {
    disks.iter().fold(Store::builder(), |all, disk| all.simulated_disk(disk.clone()))
}

fn shows_page(disk: &SimDisk) -> bool {
    let view = Store::builder().simulated_disk(disk.clone()).read_only().open().unwrap();
    let (topic, name) = (view.shared().topic("t").unwrap(), TopicPartition::new("t", 0));
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    Marks::peek(&view.shared().place(&topic, &name, &disk)).is_some()
}

/// A view that came before the first page was made took what was not acknowledged for readable, and the next one saw less.
#[test]
fn a_partition_has_its_page_before_its_first_record() {
    for cut in 1.. {
        let disk = SimDisk::new(1);
        let builder = || Store::builder().simulated_disk(disk.clone());
        let store = builder().open().unwrap();
        store.create_topic("t", TopicConfig::new().flush(Flush::Os)).unwrap();
        disk.crash_at(cut);
        let partition = store.partition("t", 0);
        let appended = partition.and_then(|it| it.append(&[Record::new("x")], Acks::All));
        let is_reached = disk.is_dead();
        disk.kill();
        drop(store);
        disk.heal();
        disk.process_restart();
        let segment = disk.files().into_iter().find(|name| name.ends_with(".log"));
        let has_record = segment.is_some_and(|name| {
            disk.read_file(&name)[FILE_HEADER_BYTES..].iter().any(|byte| *byte != 0)
        });
        assert!(!has_record || shows_page(&disk), "cut at {cut}: {appended:?}");
        if !is_reached {
            assert!(has_record && appended.is_ok());
            builder().open().unwrap().close(Duration::ZERO).unwrap();
            // Another run of the machine does not believe the page of the last one.
            disk.power_loss();
            let store = builder().open().unwrap();
            let _partition = store.partition("t", 0).unwrap();
            assert!(shows_page(&disk));
            return;
        }
    }
}

/// What was not acknowledged was taken for readable, if the first page came between the look at it and the one at the log.
#[test]
fn a_page_that_is_made_while_a_view_looks_is_believed() {
    let disks = [SimDisk::new(1), SimDisk::new(2)];
    let builder = || all(&disks);
    let store = builder().open().unwrap();
    let config = TopicConfig::new().replication_factor(2).flush(Flush::Os);
    store.create_topic("t", config).unwrap();
    let reader = builder().read_only().open().unwrap();
    let topic = reader.shared().topic("t").unwrap();
    let partition = store.partition("t", 0).unwrap();
    let leader = usize::from(partition.core().unwrap().leader().unwrap().0);
    disks[1 - leader].hang(Hang::Everything);
    partition.append(&[Record::new("x")], Acks::Leader).unwrap();
    let view = reader.shared().open_view(&topic, &topic.slots.read()[0]).unwrap();
    let seen = {
        let mut state = view.state.lock();
        view.look_behind(&mut state, None).map(|()| state.high_watermark)
    };
    disks[1 - leader].answer();
    assert_eq!(seen.unwrap(), Offset(0));
}

/// The page is never flushed: what the system wrote of it by itself is of some moment before. It was believed, and what
/// had been acknowledged since could not be read, nor waited for.
#[test]
fn s8_after_a_power_loss_a_view_shows_all_that_the_log_has() {
    let disk = SimDisk::new(1);
    let clock = Clock::manual(Timestamp(1_000_000));
    let builder = || Store::builder().clock(clock.clone()).simulated_disk(disk.clone());
    let store = builder().open().unwrap();
    store.create_topic("t", TopicConfig::new().flush(Flush::OnAck)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let append = || partition.append(&[Record::new("x")], Acks::All).unwrap();
    append();
    let files = disk.files();
    let page = files.iter().find(|name| name.ends_with("/marks")).unwrap();
    let before = disk.read_file(page);
    for _ in 0..5 {
        append();
    }
    let close = |store: Store| drop(store);
    close(store);
    drop(partition);
    disk.power_loss();
    disk.write_file(page, &before);
    let view = builder().read_only().open().unwrap();
    assert_eq!(view.partition("t", 0).unwrap().high_watermark(), Offset(6));
}

/// The page of the leader that went was taken back, and the one that came had none yet: a view took all for readable that it
/// found in either's files.
#[test]
fn a_view_at_a_change_of_leader_shows_no_more_than_is_acknowledged() {
    for cut in 1.. {
        let disks = [SimDisk::new(1), SimDisk::new(2), SimDisk::new(3)];
        disks[1..].iter().for_each(|disk| disk.share_process(&disks[0]));
        let builder = || all(&disks);
        let store = builder().open().unwrap();
        let config = TopicConfig::new().replication_factor(3).min_insync_replicas(3);
        store.create_topic("t", config.flush(Flush::Os)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        let replicas = partition.replicas();
        partition.append(&[Record::new("x")], Acks::All).unwrap();
        store.stop_disk(replicas[2]).unwrap();
        // Two have it, and three have to.
        partition.append(&[Record::new("x")], Acks::Leader).unwrap();
        assert_eq!(partition.high_watermark(), Offset(1));
        let reader = builder().read_only().open().unwrap();
        let old = reader.partition("t", 0).unwrap();
        assert_eq!(old.high_watermark(), Offset(1));
        let next = &disks[usize::from(replicas[1].0)];
        next.crash_at(cut);
        let _ = store.stop_disk(replicas[0]);
        let is_reached = next.is_dead();
        next.heal();
        if !is_reached {
            assert_eq!(partition.leader(), Some(replicas[1]));
            assert_eq!((partition.high_watermark(), partition.log_end_offset().0), (Offset(1), 2));
            let told = old.read(Offset(1), ReadOptions::new());
            assert!(matches!(told, Err(Error::NoLeader { .. })), "{told:?}");
            let told = old.wait_for(Offset(1), Duration::from_secs(5));
            assert!(matches!(told, Err(Error::NoLeader { .. })), "{told:?}");
        }
        drop(store);
        if is_reached {
            disks.iter().for_each(SimDisk::process_restart);
        }
        assert_eq!(old.high_watermark(), Offset(1), "cut at {cut}");
        // One that knows of another leader, and one that has yet to hear of him.
        for view in [builder().read_only().open().unwrap(), reader] {
            match view.partition("t", 0) {
                Ok(new) => assert_eq!(new.high_watermark(), Offset(1), "cut at {cut}"),
                Err(error) => assert!(matches!(error, Error::NoLeader { .. }), "{error}"),
            }
        }
        if !is_reached {
            return;
        }
    }
}

/// The opening named a leader that had followed so far, before it made its page: a view took all for readable that it found in
/// the files, and the next one saw less.
#[test]
fn a_view_at_an_opening_that_elects_another_shows_no_more_than_is_acknowledged() {
    for cut in 1.. {
        let disks = [SimDisk::new(1), SimDisk::new(2), SimDisk::new(3)];
        disks[1..].iter().for_each(|disk| disk.share_process(&disks[0]));
        let add = |all: StoreBuilder, disk: &SimDisk| all.simulated_disk(disk.clone());
        let store = all(&disks).open().unwrap();
        let config = TopicConfig::new().replication_factor(3).min_insync_replicas(3);
        store.create_topic("t", config.flush(Flush::Os)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        let replicas = partition.replicas();
        partition.append(&[Record::new("x")], Acks::All).unwrap();
        store.stop_disk(replicas[2]).unwrap();
        // Two have it, and three have to.
        partition.append(&[Record::new("x")], Acks::Leader).unwrap();
        disks[0].kill();
        drop((partition, store));
        disks.iter().for_each(SimDisk::process_restart);
        let others = || {
            let there = replicas[1..].iter().map(|disk| &disks[usize::from(disk.0)]);
            there.fold(Store::builder().allow_missing(replicas[0]), add)
        };
        let next = &disks[usize::from(replicas[1].0)];
        next.crash_at(cut);
        let opened = others().open();
        let is_reached = next.is_dead();
        next.heal();
        drop(opened);
        if is_reached {
            disks.iter().for_each(SimDisk::process_restart);
        }
        let view = others().read_only().open().unwrap();
        let shown = view.partition("t", 0).map(|partition| partition.high_watermark());
        match shown {
            Ok(shown) => assert_eq!(shown, Offset(1), "cut at {cut}"),
            Err(error) => assert!(is_reached, "{error}"),
        }
        if !is_reached {
            return;
        }
    }
}

/// Where too few replicas are there to acknowledge anything, the watermark stays where it was: that was where the reign had begun,
/// and a fresh view saw less.
#[test]
fn what_a_view_has_shown_it_shows_at_every_opening() {
    let (mut which, mut cut) = (0, 1);
    while which < 2 {
        let disks = [SimDisk::new(1), SimDisk::new(2), SimDisk::new(3)];
        disks[1..].iter().for_each(|disk| disk.share_process(&disks[0]));
        let add = |all: StoreBuilder, disk: &SimDisk| all.simulated_disk(disk.clone());
        let store = all(&disks).open().unwrap();
        let config = TopicConfig::new().replication_factor(3).min_insync_replicas(3);
        store.create_topic("t", config.flush(Flush::Os)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        for _ in 0..3 {
            partition.append(&[Record::new("x")], Acks::All).unwrap();
        }
        let replicas = partition.replicas();
        disks[0].kill();
        drop((partition, store));
        disks.iter().for_each(SimDisk::process_restart);
        let there = [0, 1].map(|at| &disks[usize::from(replicas[at].0)]);
        let builder = || there.into_iter().fold(Store::builder().allow_missing(replicas[2]), add);
        let see = || -> Result<[Offset; 2]> {
            let viewed = builder().read_only().open()?.partition("t", 0)?;
            Ok([viewed.high_watermark(), viewed.last_stable_offset()])
        };
        assert_eq!(see().unwrap(), [Offset(3); 2]);
        there[which].crash_at(cut);
        let opened = builder().open().and_then(|store| Ok((store.partition("t", 0)?, store)));
        let is_reached = there[which].is_dead();
        there[which].heal();
        if is_reached {
            drop(opened);
            disks.iter().for_each(SimDisk::process_restart);
        }
        match see() {
            Ok(shown) => assert_eq!(shown, [Offset(3); 2], "{which}, cut at {cut}"),
            Err(error) => assert!(is_reached, "{error}"),
        }
        (which, cut) = if is_reached { (which, cut + 1) } else { (which + 1, 1) };
    }
}

/// It was opened before there was a page, and believed the files of one that followed by then for ever.
#[test]
fn a_view_that_is_kept_believes_no_files_of_one_that_follows() {
    let disks = [SimDisk::new(1), SimDisk::new(2), SimDisk::new(3)];
    let builder = || all(&disks);
    let store = builder().open().unwrap();
    let config = TopicConfig::new().replication_factor(3).min_insync_replicas(3);
    store.create_topic("t", config.flush(Flush::Os)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let replicas = partition.replicas();
    let reader = builder().read_only().open().unwrap();
    let kept = reader.partition("t", 0).unwrap();
    assert_eq!(kept.high_watermark(), Offset(0));
    store.stop_disk(replicas[0]).unwrap();
    store.start_disk(replicas[0]).unwrap();
    store.stop_disk(replicas[2]).unwrap();
    assert_eq!(partition.leader(), Some(replicas[1]));
    partition.append(&[Record::new("x")], Acks::Leader).unwrap();
    store.run_background();
    let first = disks[usize::from(replicas[0].0)].files();
    assert!(first.iter().any(|name| name.ends_with("-t/0/00000000000000000000.log")), "{first:?}");
    assert_eq!((kept.high_watermark(), partition.high_watermark()), (Offset(0), Offset(0)));
    let told = kept.wait_for(Offset(0), Duration::from_secs(60));
    assert!(matches!(told, Err(Error::NoLeader { .. })), "{told:?}");
}

/// The page of a disk that failed stayed as it was: who read on from there found nothing new for ever.
#[test]
fn a_view_of_a_disk_that_failed_learns_that_another_leads() {
    let disks = [SimDisk::new(1), SimDisk::new(2), SimDisk::new(3)];
    let builder = || all(&disks);
    let store = builder().open().unwrap();
    let config = TopicConfig::new().replication_factor(3).min_insync_replicas(2);
    store.create_topic("t", config.flush(Flush::Os)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    partition.append(&[Record::new("x")], Acks::All).unwrap();
    let kept = builder().read_only().open().unwrap().partition("t", 0).unwrap();
    assert_eq!(kept.high_watermark(), Offset(1));
    let core = partition.core().unwrap();
    core.fence_replica(partition.leader().unwrap(), &Error::Closed);
    store.shared().settle_one(core);
    partition.append(&[Record::new("x")], Acks::All).unwrap();
    let started = Instant::now();
    while kept.read(Offset(1), ReadOptions::new()).is_ok() {
        assert!(started.elapsed() < Duration::from_secs(60), "it hears of nothing");
        std::thread::yield_now();
    }
    let told = kept.read(Offset(1), ReadOptions::new());
    assert!(matches!(told, Err(Error::NoLeader { .. })), "{told:?}");
}

/// A file whose owner cuts it when it has been measured.
#[derive(Debug)]
struct Cut {
    file: Arc<dyn File>,
    end: u64,
    reads_left: AtomicU64,
}

impl File for Cut {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, position: u64, target: &mut [u8]) -> io::Result<usize> {
        let left = self.reads_left.fetch_sub(1, Ordering::Relaxed);
        assert!(left > 0, "it is read for ever");
        let there = usize::try_from(self.end.saturating_sub(position)).unwrap_or(usize::MAX);
        let count = there.min(target.len());
        self.file.read_at(position, &mut target[..count])
    }

    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<usize> {
        unreachable!("it is only read")
    }

    fn allocate(&self, _: u64, _: u64) -> io::Result<()> {
        unreachable!("it is only read")
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        unreachable!("it is only read")
    }

    fn sync_data(&self) -> io::Result<()> {
        unreachable!("it is only read")
    }

    fn write_durably_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        unreachable!("it is only read")
    }

    fn map(&self, _: usize, _: bool) -> io::Result<Mapping> {
        unreachable!("it is only read")
    }
}

/// A segment is allocated ahead, and cut when the next one begins: who had measured it before never came back.
#[test]
fn a_walk_ends_in_a_file_that_is_cut_meanwhile() {
    let disk = SimDisk::new(1);
    let store = Store::builder().simulated_disk(disk.clone()).open().unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    let partition = store.partition("t", 0).unwrap();
    for _ in 0..3 {
        partition.append(&[Record::new(&[7; 30])], Acks::All).unwrap();
    }
    let topic = store.shared().topic("t").unwrap();
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let place = store.shared().place(&topic, partition.name(), &disk);
    let open = || place.disk.open(&place.path(&log_name(Offset(0))), OpenMode::Read).unwrap();
    let walk = |file: &dyn File| {
        Scanner::new(&place, Offset(0)).walk(file, u64::MAX, None).map(|scan| scan.position)
    };
    let whole = walk(&*open()).unwrap();
    assert!(whole < open().len().unwrap());
    for end in 0..=whole {
        let cut = Cut { file: open(), end, reads_left: AtomicU64::new(1000) };
        assert!(walk(&cut).unwrap() <= end.max(DATA_START), "cut at {end}");
    }
}

/// The page was of an earlier session: what was acknowledged since could not be read.
#[test]
fn a_page_of_an_earlier_session_goes_where_nobody_writes_to_it() {
    let disk = SimDisk::new(1);
    let builder = || Store::builder().simulated_disk(disk.clone());
    let store = builder().open().unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    let append = |store: &Store| {
        let partition = store.partition("t", 0).unwrap();
        partition.append(&[Record::new("x")], Acks::All).unwrap();
    };
    append(&store);
    let reader = builder().read_only().open().unwrap();
    let view = || reader.partition("t", 0).unwrap();
    let (before, waiting) = (view(), view());
    assert_eq!(before.high_watermark(), Offset(1));
    drop(store);
    let store = builder().storage_mode(StorageMode::Write).open().unwrap();
    append(&store);
    let after = builder().read_only().open().unwrap();
    assert_eq!(after.partition("t", 0).unwrap().high_watermark(), Offset(2));
    assert_eq!(before.high_watermark(), Offset(2));
    assert_eq!(before.read(Offset(1), ReadOptions::new()).unwrap().count(), 1);
    waiting.wait_for_committed(Offset(1), Duration::from_secs(5)).unwrap();
}

/// A power loss left the side file, and not all that it tells of: a view went by it until the next one was written.
#[test]
fn s8_a_side_file_that_counts_no_more_misleads_no_view() {
    let disk = SimDisk::new(1);
    let builder = |disk: &SimDisk| Store::builder().simulated_disk(disk.clone());
    let store = builder(&disk).checkpoint_bytes(1 << 20).open().unwrap();
    store.create_topic("t", TopicConfig::new().flush(Flush::Os)).unwrap();
    let append = |store: &Store, count: usize, len: usize| {
        let partition = store.partition("t", 0).unwrap();
        for _ in 0..count {
            partition.append(&[Record::new(&vec![7; len])], Acks::All).unwrap();
        }
    };
    append(&store, 700, 2000);
    store.run_background();
    let file = |end| disk.files().into_iter().find(|name| name.ends_with(end)).unwrap();
    let (side, log) = (file("00.side"), file("00.log"));
    let (told, mut bytes) = (disk.read_file(&side), disk.read_file(&log));
    bytes[500_000..].fill(0);
    disk.kill();
    drop(store);
    disk.heal();
    disk.power_loss();
    disk.write_file(&side, &told);
    disk.write_file(&log, &bytes);
    let seen = |disk: &SimDisk| {
        let view = builder(disk).read_only().open().unwrap();
        let viewed = view.partition("t", 0).unwrap();
        let (mut next, end) = (Offset(0), viewed.high_watermark());
        while next < end {
            next = viewed.read(next, ReadOptions::new()).unwrap().next_offset();
        }
        end
    };
    let left = seen(&disk);
    assert!(left < Offset(300), "a part is lost");
    for cut in 1.. {
        let disk = disk.fork();
        disk.crash_at(cut);
        drop(builder(&disk).open());
        let is_reached = disk.is_dead();
        disk.kill();
        disk.heal();
        disk.process_restart();
        let store = builder(&disk).open().unwrap();
        assert_eq!(store.partition("t", 0).unwrap().high_watermark(), left, "cut at {cut}");
        append(&store, 400, 3000);
        assert_eq!(seen(&disk), left.plus(400), "cut at {cut}");
        if !is_reached {
            return;
        }
    }
}

/// It kept the damaged file open, which had lost its name, and answered that it is damaged for ever.
#[test]
fn s3_a_view_reads_what_its_owner_has_repaired() {
    let disks = [SimDisk::new(1), SimDisk::new(2)];
    let clock = Clock::manual(Timestamp(1000));
    let builder = || {
        let builder = Store::builder().clock(clock.clone());
        disks.iter().fold(builder, |all, disk| all.simulated_disk(disk.clone()))
    };
    let store = builder().open().unwrap();
    let config = TopicConfig::new().replication_factor(2).segment_bytes(4096);
    store.create_topic("t", config).unwrap();
    let append = |store: &Store, count: u64| {
        let partition = store.partition("t", 0).unwrap();
        for _ in 0..count {
            partition.append(&[Record::new(&[7; 200])], Acks::All).unwrap();
            clock.advance(Duration::from_millis(1));
        }
    };
    append(&store, 60);
    store.close(Duration::from_secs(1)).unwrap();
    drop(store);
    let store = builder().open().unwrap();
    let leader = store.partition("t", 0).unwrap().leader().unwrap();
    let disk = &disks[usize::from(leader.0)];
    let mut logs = disk.files();
    logs.retain(|name| name.contains("-t/0/") && name.ends_with(".log"));
    let mut bytes = disk.read_file(&logs[0]);
    bytes[1000] ^= 1;
    disk.write_file(&logs[0], &bytes);
    let reader = builder().read_only().open().unwrap();
    let [viewed, other] = [0; 2].map(|_| reader.partition("t", 0).unwrap());
    let read = |partition: &Partition| {
        (0..60).map(Offset).all(|at| partition.read(at, ReadOptions::new()).is_ok())
    };
    let find = || other.offset_for_time(Timestamp(1008));
    assert!(!read(&viewed) && find().is_err());
    // Whoever meets it asks for its repair.
    assert!(read(&store.partition("t", 0).unwrap()));
    store.run_background();
    assert_ne!(disk.read_file(&logs[0]), bytes);
    assert!(read(&viewed));
    assert_eq!(find().unwrap(), Some(Offset(8)));
    append(&store, 60);
    assert_eq!(viewed.read(Offset(119), ReadOptions::new()).unwrap().count(), 1);
}

/// Only the metadata say where the log begins if there is no page: what was deleted since was called damaged.
#[test]
fn a_view_that_looks_for_a_time_learns_what_was_deleted() {
    let disk = SimDisk::new(1);
    let clock = Clock::manual(Timestamp(1_000_000));
    let builder = || Store::builder().clock(clock.clone()).simulated_disk(disk.clone());
    let store = builder().storage_mode(StorageMode::Write).open().unwrap();
    store.create_topic("t", TopicConfig::new().segment_bytes(64 << 10)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let view = builder().read_only().open().unwrap();
    let viewed = view.partition("t", 0).unwrap();
    for _ in 0..100 {
        clock.advance(Duration::from_millis(1));
        partition.append(&[Record::new(&[7; 2000])], Acks::All).unwrap();
    }
    assert_eq!(viewed.offset_for_time(Timestamp(0)).unwrap(), Some(Offset(0)));
    partition.delete_records(Offset(90)).unwrap();
    store.run_background();
    for time in [0, 1_000_001, 1_000_091] {
        let found = viewed.offset_for_time(Timestamp(time));
        assert_eq!(found.unwrap(), Some(Offset(90)), "{time}");
    }
}

/// Where nothing came, a view asked the metadata of all disks, and waited for those that hang.
#[test]
fn s22_a_view_waits_for_no_disk_but_that_of_its_leader() {
    let disks = [SimDisk::new(1), SimDisk::new(2)];
    let builder = || all(&disks);
    let store = builder().open().unwrap();
    let config = TopicConfig::new().replication_factor(2).flush(Flush::Os);
    store.create_topic("t", config).unwrap();
    let partition = store.partition("t", 0).unwrap();
    partition.append(&[Record::new("x")], Acks::All).unwrap();
    let kept = builder().read_only().open().unwrap().partition("t", 0).unwrap();
    let other = &disks[1 - usize::from(partition.leader().unwrap().0)];
    other.hang(Hang::Everything);
    while other.held_calls() == 0 {
        assert!(kept.read(Offset(1), ReadOptions::new()).unwrap().is_empty());
        std::thread::yield_now();
    }
    assert!(kept.read(Offset(1), ReadOptions::new()).unwrap().is_empty());
    assert_eq!(kept.high_watermark(), Offset(1));
    other.answer();
}
