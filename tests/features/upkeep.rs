//! What a store does for its disks by itself: it reads them through, and shares the work among them again.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use oncelog::simulation::{Clock, SimDisk};
use oncelog::{
    Acks, DiskId, Error, Event, EventKind, Flush, Offset, Partition, ReadOptions, Record, Store,
    Timestamp, TopicConfig, TopicUpdate, VerifyOptions,
};

const NOW: Timestamp = Timestamp(1_000_000);
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn value(at: u64) -> Vec<u8> {
    format!("{at} {}", "x".repeat(usize::try_from(at % 40).unwrap())).into_bytes()
}

fn append(partition: &Partition, values: Range<u64>) {
    for at in values {
        let acks = if at % 7 == 0 { Acks::Leader } else { Acks::All };
        let appended = partition.append(&[Record::new(&value(at))], acks).unwrap();
        assert_eq!(appended.offsets, Offset(at)..Offset(at + 1), "none is lost, none comes twice");
    }
}

fn check(partition: &Partition, end: u64) {
    let mut next = Offset(0);
    while next.0 < end {
        let records = partition.read(next, ReadOptions::new()).unwrap();
        for record in &records {
            assert_eq!(record.value().unwrap(), value(record.offset().0));
        }
        assert!(records.next_offset() > next);
        next = records.next_offset();
    }
}

struct World {
    disks: Vec<SimDisk>,
    clock: Clock,
}

impl World {
    fn new(disks: u64) -> Self {
        let disks = (0..disks).map(|at| SimDisk::new(at + 1)).collect();
        Self { disks, clock: Clock::manual(NOW) }
    }

    fn open(&self, scrub_rate: u64) -> Store {
        let builder = Store::builder().clock(self.clock.clone()).scrub_bytes_per_second(scrub_rate);
        self.disks
            .iter()
            .fold(builder, |builder, disk| builder.simulated_disk(disk.clone()))
            .open()
            .unwrap()
    }

    /// A store with 600 records in segments of 4 KiB on every disk, closed.
    fn filled(disks: u64) -> Self {
        let world = Self::new(disks);
        let store = world.open(0);
        let config = TopicConfig::new()
            .replication_factor(u16::try_from(disks).unwrap())
            .segment_bytes(4096)
            .index_interval_bytes(256);
        store.create_topic("t", config).unwrap();
        append(&store.partition("t", 0).unwrap(), 0..600);
        store.close(SECOND).unwrap();
        world
    }

    /// The data file of a disk at that place, and its bytes.
    fn data_file(&self, disk: usize, place: usize) -> (String, Vec<u8>) {
        let mut names = self.disks[disk].files();
        names.retain(|name| name.ends_with(".log"));
        let name = names.swap_remove(place);
        let bytes = self.disks[disk].read_file(&name);
        (name, bytes)
    }

    fn flip(&self, disk: usize, place: usize, at: usize) {
        let (name, mut bytes) = self.data_file(disk, place);
        bytes[at] ^= 0x40;
        self.disks[disk].write_file(&name, &bytes);
    }

    /// Lets time pass in steps, with the background at work.
    fn pass(&self, store: &Store, span: Duration, step: Duration) {
        let steps = span.as_nanos() / step.as_nanos();
        for _ in 0..steps {
            self.clock.advance(step);
            store.run_background();
        }
    }
}

fn passes(events: &[Event]) -> Vec<(DiskId, u64, u64, Timestamp)> {
    events
        .iter()
        .filter_map(|event| match event.kind {
            EventKind::Scrubbed { disk, bytes, damages } => {
                Some((disk, bytes, damages, event.timestamp))
            }
            _ => None,
        })
        .collect()
}

fn damages(events: &[Event]) -> usize {
    events.iter().filter(|event| matches!(event.kind, EventKind::Damaged { .. })).count()
}

#[test]
fn s3_s4_the_scrub_finds_rot_and_bad_sectors_and_repairs_them_from_other_replicas() {
    let world = World::filled(3);
    // Rot on one disk, a sector that cannot be read on another, a file that is gone from the third.
    world.flip(1, 2, 1000);
    let (name, _) = world.data_file(2, 4);
    world.disks[2].break_sector(&name, 3);
    let (name, _) = world.data_file(0, 6);
    world.disks[0].remove_file(&name);
    let rate = 8192;
    let store = world.open(rate);
    let partition = store.partition("t", 0).unwrap();
    let mut events = store.events();
    world.pass(&store, SECOND * 59, SECOND);
    assert_eq!(damages(&events.by_ref().collect::<Vec<_>>()), 0, "it does not begin at once");
    world.pass(&store, SECOND * 30, SECOND / 10);
    let told: Vec<_> = events.by_ref().collect();
    assert_eq!(damages(&told), 3, "{told:?}");
    let repaired = |event: &&Event| matches!(event.kind, EventKind::Repaired { .. });
    assert_eq!(told.iter().filter(repaired).count(), 3);
    let passes = passes(&told);
    assert_eq!(passes.len(), 3, "one pass a disk");
    for (disk, bytes, damages, ended) in passes {
        assert_eq!(damages, 1, "{disk}");
        // All that is sealed, and no byte of it twice.
        let names = world.disks[usize::from(disk.0)].files();
        let files: Vec<_> = names
            .iter()
            .filter(|name| name.starts_with("topics") && name.ends_with(".log"))
            .map(|name| world.disks[usize::from(disk.0)].read_file(name).len() as u64)
            .collect();
        let whole: u64 = files.iter().sum();
        assert!(
            bytes <= whole && bytes + 4096 * 2 + 64 * files.len() as u64 > whole,
            "{bytes} {whole}"
        );
        let took = ended.since(NOW).saturating_sub(SECOND * 60);
        let fastest = Duration::from_millis((bytes - rate / 4) * 1000 / rate);
        assert!(took >= fastest, "{bytes} bytes in {took:?}: faster than {rate} a second");
        assert!(took <= fastest * 2 + SECOND * 3, "{bytes} bytes in {took:?}");
    }
    assert_eq!(store.verify(VerifyOptions::new()).unwrap().damages, []);
    check(&partition, 600);
    // The next pass is a day later, and has nothing to tell.
    world.pass(&store, DAY - SECOND * 120, SECOND * 60);
    assert_eq!(events.by_ref().count(), 0);
    world.pass(&store, SECOND * 120, SECOND / 4);
    let told: Vec<_> = events.collect();
    assert_eq!((self::passes(&told).len(), damages(&told)), (3, 0));
}

#[test]
fn s3_without_another_replica_damage_is_told_once_and_what_is_around_it_stays() {
    let world = World::filled(1);
    world.flip(0, 2, 1000);
    let store = world.open(1 << 20);
    let partition = store.partition("t", 0).unwrap();
    let mut events = store.events();
    world.pass(&store, SECOND * 90, SECOND);
    let told: Vec<_> = events.by_ref().collect();
    let damaged = told.iter().find_map(|event| match &event.kind {
        EventKind::Damaged { offsets, .. } => Some(offsets.clone()),
        _ => None,
    });
    let damaged = damaged.expect("it was found");
    assert_eq!(damages(&told), 1);
    let error = partition.read(damaged.start, ReadOptions::new()).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    assert!(partition.read(damaged.end, ReadOptions::new()).is_ok());
    world.pass(&store, DAY * 3, SECOND * 30);
    let told: Vec<_> = events.collect();
    assert!(passes(&told).len() >= 2);
    assert_eq!(damages(&told), 0, "what is known is not told again");
}

#[test]
fn a_scrub_of_no_bytes_a_second_reads_nothing() {
    let world = World::filled(2);
    world.flip(1, 2, 1000);
    let store = world.open(0);
    drop(store.partition("t", 0).unwrap());
    world.pass(&store, DAY * 2, SECOND * 600);
    let told: Vec<_> = store.events().collect();
    assert_eq!((passes(&told).len(), damages(&told)), (0, 0));
}

#[test]
fn the_scrub_and_the_hand_backs_are_set_by_properties() {
    let refused = Store::builder()
        .property("log.scrub.bytes.per.second", "fast")
        .simulated_disk(SimDisk::new(1))
        .open();
    assert!(matches!(refused, Err(Error::InvalidConfig { .. })));
    let world = World::filled(1);
    world.flip(0, 2, 1000);
    let store = Store::builder()
        .clock(world.clock.clone())
        .property("log.scrub.bytes.per.second", "0")
        .property("auto.leader.rebalance.enable", "false")
        .simulated_disk(world.disks[0].clone())
        .open()
        .unwrap();
    world.pass(&store, SECOND * 200, SECOND);
    assert_eq!(passes(&store.events().collect::<Vec<_>>()).len(), 0);
}

fn led_by_preferred(partitions: &[Partition]) -> bool {
    partitions.iter().all(|partition| partition.leader() == partition.replicas().first().copied())
}

#[test]
fn leaderships_go_back_to_a_disk_that_returned_once_it_is_in_sync() {
    for flush in [Flush::OnAck, Flush::Os] {
        let world = World::new(3);
        let store = world.open(0);
        let config = TopicConfig::new()
            .partitions(6)
            .replication_factor(3)
            .min_insync_replicas(2)
            .flush(flush)
            .segment_bytes(4096);
        store.create_topic("t", config).unwrap();
        let partitions: Vec<_> = (0..6).map(|at| store.partition("t", at).unwrap()).collect();
        let all = |values: Range<u64>| partitions.iter().for_each(|p| append(p, values.clone()));
        assert!(led_by_preferred(&partitions));
        all(0..20);
        store.stop_disk(DiskId(0)).unwrap();
        all(20..40);
        assert!(!led_by_preferred(&partitions));
        store.start_disk(DiskId(0)).unwrap();
        let mut events = store.events();
        let _ = events.by_ref().count();
        world.pass(&store, SECOND * 4, SECOND / 10);
        assert!(!led_by_preferred(&partitions), "a disk that comes and goes moves no leaders");
        all(40..60);
        world.pass(&store, SECOND * 2, SECOND / 10);
        assert!(led_by_preferred(&partitions), "{flush:?}");
        let changed = events.filter(|event| {
            matches!(
                event.kind,
                EventKind::LeaderChanged { leader: Some(DiskId(0)), lost: None, .. }
            )
        });
        assert_eq!(changed.count(), 2, "those that it led before");
        all(60..80);
        for partition in &partitions {
            assert_eq!(partition.in_sync_replicas().len(), 3, "who handed over stays in sync");
            world.pass(&store, SECOND / 10, SECOND / 10);
            assert_eq!(partition.high_watermark(), Offset(80));
            check(partition, 80);
        }
        assert_eq!(store.verify(VerifyOptions::new()).unwrap().damages, []);
    }
}

#[test]
fn a_replaced_disk_leads_again_and_one_that_is_told_not_to_does_not() {
    for rebalance in [true, false] {
        let mut world = World::new(3);
        let builder = Store::builder().clock(world.clock.clone()).auto_leader_rebalance(rebalance);
        let store = world
            .disks
            .iter()
            .fold(builder, |builder, disk| builder.simulated_disk(disk.clone()))
            .open()
            .unwrap();
        store.create_topic("t", TopicConfig::new().partitions(3).replication_factor(3)).unwrap();
        let partitions: Vec<_> = (0..3).map(|at| store.partition("t", at).unwrap()).collect();
        partitions.iter().for_each(|partition| append(partition, 0..20));
        world.disks[1] = SimDisk::new(77);
        store.replace_simulated_disk(DiskId(1), world.disks[1].clone()).unwrap();
        world.pass(&store, SECOND * 8, SECOND / 10);
        assert_eq!(led_by_preferred(&partitions), rebalance);
        partitions.iter().for_each(|partition| append(partition, 20..40));
        partitions.iter().for_each(|partition| check(partition, 40));
    }
}

#[test]
fn appends_go_on_while_leaderships_go_back() {
    let directories: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let clock = Clock::manual(NOW);
    let builder = Store::builder().clock(clock.clone()).scrub_bytes_per_second(0);
    let store = directories
        .iter()
        .fold(builder, |builder, directory| builder.disk(directory.path()))
        .open()
        .unwrap();
    let config = TopicConfig::new()
        .partitions(3)
        .replication_factor(3)
        .min_insync_replicas(2)
        .flush(Flush::Os);
    store.create_topic("t", config).unwrap();
    let partitions: Vec<_> = (0..3).map(|at| store.partition("t", at).unwrap()).collect();
    let (returned, limit) = (AtomicBool::new(false), AtomicU64::new(200));
    std::thread::scope(|scope| {
        let appenders: Vec<_> = partitions
            .iter()
            .map(|partition| {
                scope.spawn(|| {
                    let mut at = 0;
                    while !returned.load(Ordering::Acquire) {
                        if at >= limit.load(Ordering::Acquire) {
                            std::thread::yield_now();
                            continue;
                        }
                        append(partition, at..at + 10);
                        at += 10;
                    }
                    at
                })
            })
            .collect();
        let mut events = store.events();
        for disk in [DiskId(0), DiskId(2)] {
            store.stop_disk(disk).unwrap();
            store.start_disk(disk).unwrap();
            // Two partitions are led elsewhere: the disk's own, once it is in sync, goes back.
            let mut waited = 0;
            let whole = |partition: &Partition| partition.in_sync_replicas().len() == 3;
            while !led_by_preferred(&partitions) || !partitions.iter().all(whole) {
                // The store's clock is no faster than the world's by much, or followers would lag by it.
                while events.wait(SECOND / 50).is_some() {}
                clock.advance(SECOND / 20);
                limit.fetch_add(100, Ordering::AcqRel);
                waited += 1;
                assert!(waited < 2000, "leaderships go back");
            }
        }
        returned.store(true, Ordering::Release);
        for (partition, appender) in partitions.iter().zip(appenders) {
            let end = appender.join().unwrap();
            check(partition, end - 1);
        }
    });
    store.close(SECOND * 10).unwrap();
}

/// It is written as the level changes, and nobody waits for it any more: a flush that took it for flushed would do nothing.
#[test]
fn what_waited_for_a_flush_is_flushed_at_a_looser_level_as_well() {
    for seed in 0..8 {
        let (disk, clock) = (SimDisk::new(seed), Clock::manual(NOW));
        let open = || Store::builder().clock(clock.clone()).simulated_disk(disk.clone()).open();
        let store = open().unwrap();
        store.create_topic("t", TopicConfig::new().flush(Flush::OnAck)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        append(&partition, 0..1);
        let waits = partition.append_nowait(&[Record::new(&value(1))], Acks::All).unwrap();
        let looser = TopicUpdate::new().flush(Flush::Interval(SECOND));
        store.alter_topic("t", looser).unwrap();
        for _ in 0..3 {
            clock.advance(SECOND);
            store.run_background();
        }
        disk.kill();
        drop((waits, partition, store));
        disk.power_loss();
        let store = open().unwrap();
        let partition = store.partition("t", 0).unwrap();
        assert_eq!(partition.log_end_offset(), Offset(2), "seed {seed}");
        check(&partition, 2);
    }
}

#[test]
fn a_verification_goes_on_when_a_topic_is_deleted_under_it() {
    for disks in [1, 2] {
        let world = World::filled(disks);
        let at = world.data_file(0, 0).1.len() / 8;
        world.flip(0, 0, at);
        let store = world.open(0);
        store.create_topic("z", TopicConfig::new()).unwrap();
        let inner = store.clone();
        let options = VerifyOptions::new().repair(true).progress(move |_| {
            let _ = inner.delete_topic("t");
        });
        let report = store.verify(options).unwrap();
        assert_eq!(report.partitions, 2, "{report:?}");
        assert!(report.damages.iter().all(|damage| !damage.repaired), "{report:?}");
    }
}

/// It ended with the first of them, and told nothing of the others.
#[test]
fn s14_a_verification_tells_of_partitions_that_nobody_can_lead_and_goes_on_with_the_rest() {
    let world = World::new(2);
    let store = world.open(0);
    store.create_topic("t", TopicConfig::new().partitions(4).segment_bytes(4096)).unwrap();
    for number in 0..4 {
        append(&store.partition("t", number).unwrap(), 0..100);
    }
    let is_on =
        |number: u32, disk| store.partition("t", number).unwrap().leader() == Some(DiskId(disk));
    let away: Vec<_> = (0..4).filter(|number| is_on(*number, 1)).collect();
    assert_eq!(away.len(), 2);
    store.close(SECOND).unwrap();
    world.flip(0, 0, 1000);
    let store = Store::builder()
        .clock(world.clock.clone())
        .simulated_disk(world.disks[0].clone())
        .allow_missing(DiskId(1))
        .open()
        .unwrap();
    let report = store.verify(VerifyOptions::new()).unwrap();
    let unread: Vec<_> = report.unread.iter().map(|(name, _)| name.partition()).collect();
    assert_eq!((report.partitions, unread), (2, away));
    assert!(report.unread[0].1.contains("disk 1"), "{:?}", report.unread);
    assert_eq!(report.damages.len(), 1, "{report:?}");
}

/// It passed them over.
#[test]
fn s3_a_verification_reads_the_stores_own_topics() {
    let world = World::new(1);
    let store = world.open(0);
    store.create_topic("t", TopicConfig::new()).unwrap();
    append(&store.partition("t", 0).unwrap(), 0..10);
    let consumer = store.consumer().group("g").build().unwrap();
    drop(consumer);
    let to = oncelog::ResetTo::Earliest;
    store.reset_offsets("g", "t", to).unwrap();
    store.close(SECOND).unwrap();
    let names = world.disks[0].files();
    let name =
        names.iter().find(|name| name.contains("__consumer_offsets/0/") && name.ends_with(".log"));
    let (name, mut bytes) = (name.unwrap(), world.disks[0].read_file(name.unwrap()));
    bytes[150] ^= 1;
    world.disks[0].write_file(name, &bytes);
    let store = world.open(0);
    let report = store.verify(VerifyOptions::new()).unwrap();
    assert_eq!(report.damages.len(), 1, "{report:?}");
    assert_eq!(report.damages[0].partition.topic(), "__consumer_offsets");
}

/// Files that retention removed before it came to them, or that went with their topic, were called lost.
#[test]
fn a_verification_does_not_call_lost_what_is_deleted_meanwhile() {
    let world = World::filled(1);
    let store = world.open(0);
    for topic in ["u", "v"] {
        store.create_topic(topic, TopicConfig::new().segment_bytes(4096)).unwrap();
        append(&store.partition(topic, 0).unwrap(), 0..600);
    }
    let (meanwhile, mut is_first) = (store.clone(), true);
    let options = VerifyOptions::new().progress(move |_| {
        if std::mem::take(&mut is_first) {
            let partition = meanwhile.partition("t", 0).unwrap();
            partition.delete_records(Offset(500)).unwrap();
            meanwhile.delete_topic("u").unwrap();
            meanwhile.delete_topic("v").unwrap();
            meanwhile.create_topic("v", TopicConfig::new()).unwrap();
        }
    });
    assert_eq!(store.verify(options).unwrap().damages, []);
}

#[test]
fn a_verification_does_not_call_lost_what_has_moved_meanwhile() {
    let world = World::filled(3);
    let store = world.open(0);
    store.create_topic("z", TopicConfig::new().replication_factor(1)).unwrap();
    let here = store.partition("z", 0).unwrap();
    append(&here, 0..600);
    let there = [(here.leader().unwrap().0 + 1) % 3].map(DiskId);
    let (meanwhile, mut is_first) = (store.clone(), true);
    let options = VerifyOptions::new().progress(move |_| {
        if std::mem::take(&mut is_first) {
            meanwhile.reassign("z", 0, &there).unwrap();
        }
    });
    assert_eq!(store.verify(options).unwrap().damages, []);
}
