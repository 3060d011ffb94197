//! Replicas on several disks, through the public face: acknowledgements, elections, disks that fail, go
//! and come back.

use std::time::Duration;

use oncelog::simulation::{Clock, Fault, SimDisk};
use oncelog::{
    Acks, DiskId, DiskState, Error, EventKind, Flush, Offset, Partition, ReadOptions, Record,
    Store, StoreBuilder, Timestamp, TopicConfig, TopicUpdate, VerifyOptions, Written,
};

const NOW: Timestamp = Timestamp(1_000_000);
const SECOND: Duration = Duration::from_secs(1);
/// Where batches begin in a data file.
const DATA_START: usize = 64;
const DISKS: [DiskId; 3] = [DiskId(0), DiskId(1), DiskId(2)];

fn value(at: u64) -> Vec<u8> {
    format!("{at} {}", "x".repeat(usize::try_from(at % 40).unwrap())).into_bytes()
}

fn append(partition: &Partition, values: std::ops::Range<u64>) {
    for at in values {
        let appended = partition.append(&[Record::new(&value(at))], Acks::All).unwrap();
        assert_eq!(appended.offsets, Offset(at)..Offset(at + 1));
    }
}

/// Every record up to the watermark, which must be `end`.
fn check(partition: &Partition, end: u64) {
    assert_eq!(partition.high_watermark(), Offset(end));
    let mut next = partition.log_start_offset();
    while next.0 < end {
        let records = partition.read(next, ReadOptions::new()).unwrap();
        for record in &records {
            assert_eq!(record.offset(), next);
            assert_eq!(record.value().unwrap(), value(next.0));
            next = next.next();
        }
    }
}

/// Disks that a test drives by itself.
struct World {
    disks: Vec<SimDisk>,
    clock: Clock,
}

impl World {
    fn new(disks: u64) -> Self {
        Self {
            disks: (0..disks).map(|at| SimDisk::new(at + 1)).collect(),
            clock: Clock::manual(NOW),
        }
    }

    fn builder(&self) -> StoreBuilder {
        let builder = Store::builder().clock(self.clock.clone());
        self.disks.iter().fold(builder, |builder, disk| builder.simulated_disk(disk.clone()))
    }

    fn open(&self) -> Store {
        self.builder().open().unwrap()
    }

    /// Lets background work run until all replicas of the partition are in sync.
    fn heal(&self, store: &Store, partition: &Partition, replicas: usize) {
        for _ in 0..20 {
            store.run_background();
            self.clock.advance(Duration::from_millis(10));
            if partition.in_sync_replicas().len() == replicas {
                return;
            }
        }
        panic!("in sync: {:?}", partition.in_sync_replicas());
    }
}

fn topic(flush: Flush) -> TopicConfig {
    TopicConfig::new()
        .replication_factor(3)
        .min_insync_replicas(2)
        .flush(flush)
        .segment_bytes(4096)
        .index_interval_bytes(256)
}

/// The logs of a partition are equal batch by batch.
fn assert_equal_logs(world: &World, store: &Store) {
    store.run_background();
    let batches = |disk: &SimDisk| {
        let is_log = |name: &String| name.ends_with(".log") && !name.starts_with("quarantine/");
        let mut names: Vec<_> = disk.files().into_iter().filter(is_log).collect();
        names.sort();
        let base = |name: &String| name[name.len() - 24..name.len() - 4].parse::<u64>().unwrap();
        let mut bytes = Vec::new();
        for (at, name) in names.iter().enumerate() {
            let file = disk.read_file(name);
            // What a cut left behind the next segment's first offset does not count.
            let end = names.get(at + 1).map_or(u64::MAX, base);
            let mut rest = &file[DATA_START.min(file.len())..];
            while let (Some(length), Some(offset)) = (rest.get(4..8), rest.get(16..24)) {
                let length = u32::from_le_bytes(length.try_into().unwrap()) as usize;
                let offset = u64::from_le_bytes(offset.try_into().unwrap());
                if length == 0 || offset >= end {
                    break;
                }
                bytes.extend_from_slice(&rest[..length]);
                rest = &rest[length..];
            }
        }
        bytes
    };
    let first = batches(&world.disks[0]);
    for disk in &world.disks[1..] {
        assert!(batches(disk) == first, "INV-03: replicas are byte-identical");
    }
}

/// Before its first record a replica has no directory, and needs no page for readers in other processes.
#[test]
fn a_leader_that_has_no_record_yet_reports_no_failure() {
    let world = World::new(3);
    let store = world.open();
    store.create_topic("t", topic(Flush::OnAck)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let events = store.events();
    let first = partition.leader().unwrap();
    store.stop_disk(first).unwrap();
    store.run_background();
    assert_ne!(partition.leader(), Some(first));
    let failed = |kind: &EventKind| matches!(kind, EventKind::BackgroundFailed { .. });
    let failures: Vec<_> = events.map(|event| event.kind).filter(failed).collect();
    assert_eq!(failures, []);
    append(&partition, 0..3);
    check(&partition, 3);
}

#[test]
fn repl_03_all_is_acknowledged_by_every_replica_at_every_flush_level() {
    for flush in [Flush::OnAck, Flush::Os, Flush::Interval(SECOND)] {
        let world = World::new(3);
        let store = world.open();
        store.create_topic("t", topic(flush)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        append(&partition, 0..200);
        check(&partition, 200);
        assert_eq!(partition.in_sync_replicas(), DISKS);
        assert_eq!(partition.replicas().len(), 3);
        assert_equal_logs(&world, &store);
        let report = store.verify(VerifyOptions::new()).unwrap();
        assert_eq!(report.damages, []);
        assert_eq!(report.records, 600, "every replica is looked at");
        store.close(SECOND).unwrap();
        drop((store, partition));
        let store = world.open();
        let partition = store.partition("t", 0).unwrap();
        check(&partition, 200);
        assert_eq!(partition.in_sync_replicas(), DISKS);
        append(&partition, 200..250);
    }
}

#[test]
fn s13_a_disk_that_dies_costs_nothing_that_was_acknowledged() {
    for flush in [Flush::OnAck, Flush::Os] {
        for victim in 0..3 {
            let world = World::new(3);
            let store = world.open();
            store.create_topic("t", topic(flush)).unwrap();
            let partition = store.partition("t", 0).unwrap();
            append(&partition, 0..50);
            let epoch = partition.leader_epoch();
            let led = partition.leader() == Some(DiskId(victim));
            world.disks[usize::from(victim)].fail_from(1, Fault::Eio);
            // Appends go on, whoever led.
            append(&partition, 50..300);
            check(&partition, 300);
            assert!(!partition.in_sync_replicas().contains(&DiskId(victim)), "{flush:?} {victim}");
            assert_ne!(partition.leader(), Some(DiskId(victim)));
            if led {
                assert!(partition.leader_epoch() > epoch, "a new leader, a new epoch");
            }
            // One more, and too few are left.
            let second = partition.in_sync_replicas().into_iter().max().unwrap();
            world.disks[usize::from(second.0)].fail_from(1, Fault::Eio);
            let mut refused = None;
            for at in 300..700 {
                match partition.append(&[Record::new(&value(at))], Acks::All) {
                    Ok(_) => {}
                    Err(error) => {
                        refused = Some(error);
                        break;
                    }
                }
            }
            let refused = refused.expect("REPL-02: two are required");
            assert!(
                matches!(
                    refused,
                    Error::NotEnoughReplicas { .. }
                        | Error::NotEnoughReplicasAfterAppend { .. }
                        | Error::MissingDisk { .. }
                        | Error::NoLeader { .. }
                ),
                "{refused}"
            );
        }
    }
}

/// Nobody is trusted to have what the others may lack: what they have is all there is, and nothing of it is thrown away.
#[test]
fn s9_after_every_replica_has_failed_the_best_of_them_leads_once_all_are_there() {
    let world = World::new(3);
    let store = world.open();
    store.create_topic("t", topic(Flush::Os)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    append(&partition, 0..20);
    for (disk, left) in world.disks.iter().zip([2, 1, 0]) {
        // Sooner or later it has to make a file; nobody is at work in the background to rebuild it.
        for _ in 0..100 {
            disk.fail_call(1, Fault::Eio);
            // One alone takes nothing that all are to have.
            let acks = if left > 0 { Acks::All } else { Acks::Leader };
            let _ = partition.append(&[Record::new(&[7; 200])], acks);
            disk.heal();
            if partition.in_sync_replicas().len() == left {
                break;
            }
        }
        assert_eq!(partition.in_sync_replicas().len(), left);
    }
    let known = partition.high_watermark();
    drop((partition, store));
    for disk in &world.disks {
        disk.heal();
        disk.process_restart();
    }
    let store = world.open();
    let partition = store.partition("t", 0).unwrap();
    assert!(partition.high_watermark() >= known, "what was acknowledged is there");
    let records = partition.read(Offset(0), ReadOptions::new()).unwrap();
    for (at, record) in (0..20).zip(&records) {
        assert_eq!(record.value().unwrap(), value(at));
    }
    world.heal(&store, &partition, 3);
    partition.append(&[Record::new("it goes on")], Acks::All).unwrap();
    assert_equal_logs(&world, &store);
}

#[test]
fn s8_a_failed_flush_of_a_follower_takes_it_out_and_it_comes_back_rebuilt() {
    let world = World::new(3);
    let store = world.open();
    store.create_topic("t", topic(Flush::OnAck)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    append(&partition, 0..20);
    let follower = DISKS.into_iter().find(|disk| Some(*disk) != partition.leader()).unwrap();
    world.disks[usize::from(follower.0)].fail_sync(1, oncelog::simulation::SyncFault::CleanedPages);
    append(&partition, 20..60);
    assert!(!partition.in_sync_replicas().contains(&follower));
    let fenced = store.events().any(
        |event| matches!(&event.kind, EventKind::ReplicaFenced { disk, .. } if *disk == follower),
    );
    assert!(fenced);
    store.stop_disk(follower).unwrap();
    store.start_disk(follower).unwrap();
    world.heal(&store, &partition, 3);
    append(&partition, 60..100);
    assert_equal_logs(&world, &store);
    // A power loss now takes nothing.
    for disk in &world.disks {
        disk.power_loss();
    }
    drop((store, partition));
    let store = world.open();
    check(&store.partition("t", 0).unwrap(), 100);
}

#[test]
fn repl_02_under_min_insync_nothing_is_written_and_leader_appends_stay_unread() {
    let world = World::new(3);
    let store = world.open();
    store.create_topic("t", topic(Flush::Os)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    append(&partition, 0..10);
    let leader = partition.leader().unwrap();
    let others: Vec<_> = DISKS.into_iter().filter(|disk| *disk != leader).collect();
    store.stop_disk(others[0]).unwrap();
    append(&partition, 10..20);
    // Two disks of three are a majority; with one, the metadata take no change.
    store.alter_topic("t", TopicUpdate::new().min_insync_replicas(3)).unwrap();
    let error = partition.append(&[Record::new("x")], Acks::All).unwrap_err();
    let Error::NotEnoughReplicas { in_sync: 2, required: 3, .. } = error else {
        panic!("{error}");
    };
    assert_eq!((error.written(), partition.log_end_offset()), (Written::No, Offset(20)));
    let appended = partition.append(&[Record::new(&value(20))], Acks::Leader).unwrap();
    assert_eq!(appended.offsets.start, Offset(20), "REPL-02: acks 1 skips the check");
    assert_eq!(partition.high_watermark(), Offset(20), "REPL-08");
    store.start_disk(others[0]).unwrap();
    world.heal(&store, &partition, 3);
    assert_eq!(partition.high_watermark(), Offset(21), "REPL-33");
    append(&partition, 21..30);
    check(&partition, 30);
}

#[test]
fn a_stopped_leader_hands_over_and_follows_when_it_is_back() {
    for flush in [Flush::OnAck, Flush::Os] {
        let world = World::new(3);
        let store = world.open();
        store.create_topic("t", topic(flush).partitions(3)).unwrap();
        let partitions: Vec<_> = (0..3).map(|at| store.partition("t", at).unwrap()).collect();
        let mut leaders: Vec<_> = partitions.iter().map(|p| p.leader().unwrap()).collect();
        leaders.sort_unstable();
        assert_eq!(leaders, DISKS, "leaders are spread over the disks");
        for round in 0..3_u64 {
            let disk = DiskId(u16::try_from(round).unwrap());
            for partition in &partitions {
                append(partition, round * 60..round * 60 + 20);
            }
            store.stop_disk(disk).unwrap();
            assert!(matches!(store.disks()[usize::from(disk.0)].state, DiskState::Offline { .. }));
            for partition in &partitions {
                assert_ne!(partition.leader(), Some(disk));
                append(partition, round * 60 + 20..round * 60 + 40);
            }
            store.start_disk(disk).unwrap();
            for partition in &partitions {
                world.heal(&store, partition, 3);
                append(partition, round * 60 + 40..round * 60 + 60);
                check(partition, round * 60 + 60);
            }
        }
        assert_equal_logs(&world, &store);
    }
}

/// It was eligible while the watermark stood still without it, stayed so when that went on, and led without what was
/// acknowledged since.
#[test]
fn repl_24_a_lower_minimum_ends_what_was_eligible_by_the_higher_one() {
    for reopened in [false, true] {
        let world = World::new(7);
        let store = world.open();
        store.create_topic("t", topic(Flush::OnAck)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        let replicas = partition.replicas();
        append(&partition, 0..1);
        store.stop_disk(replicas[2]).unwrap();
        store.stop_disk(replicas[1]).unwrap();
        store.alter_topic("t", TopicUpdate::new().min_insync_replicas(1)).unwrap();
        append(&partition, 1..2);
        store.stop_disk(replicas[0]).unwrap();
        if reopened {
            // Nobody can flush what is there.
            assert!(store.close(SECOND).is_err());
            let others = world.disks.iter().enumerate();
            let others = others.filter(|(at, _)| *at != usize::from(replicas[0].0));
            let builder = Store::builder().clock(world.clock.clone());
            let builder = others.fold(builder, |all, (_, disk)| all.simulated_disk(disk.clone()));
            let without = builder.open().unwrap();
            let none = without.partition("t", 0).map(drop);
            assert!(matches!(none, Err(Error::NoLeader { .. })), "{none:?}");
            without.close(SECOND).unwrap();
            let store = world.open();
            check(&store.partition("t", 0).unwrap(), 2);
        } else {
            store.start_disk(replicas[1]).unwrap();
            store.start_disk(replicas[2]).unwrap();
            store.run_background();
            assert_eq!(partition.leader(), None);
            store.start_disk(replicas[0]).unwrap();
            world.heal(&store, &partition, 3);
            check(&partition, 2);
        }
    }
}

/// What happens to the disk of a partition's only replica while the store runs.
#[derive(Clone, Copy, Debug)]
enum Meanwhile {
    Nothing,
    OlderCopy,
    Replaced,
}

#[test]
fn an_only_replica_leads_again_when_its_disk_is_back_unless_it_lacks_what_it_held() {
    let single = topic(Flush::OnAck).replication_factor(1).min_insync_replicas(1).partitions(3);
    for meanwhile in [Meanwhile::Nothing, Meanwhile::OlderCopy, Meanwhile::Replaced] {
        let mut world = World::new(3);
        let store = world.open();
        store.create_topic("t", single.clone()).unwrap();
        append(&store.partition("t", 1).unwrap(), 0..20);
        store.close(SECOND).unwrap();
        drop(store);
        let copy = world.disks[1].fork();
        let store = world.open();
        let partition = store.partition("t", 1).unwrap();
        assert_eq!(partition.leader(), Some(DiskId(1)));
        append(&partition, 20..50);
        store.stop_disk(DiskId(1)).unwrap();
        let error = partition.append(&[Record::new("x")], Acks::All).unwrap_err();
        assert_eq!(error.written(), Written::No, "{error}");
        match meanwhile {
            Meanwhile::Nothing => store.start_disk(DiskId(1)).unwrap(),
            Meanwhile::OlderCopy => {
                let disk = &world.disks[1];
                disk.files().iter().for_each(|name| disk.remove_file(name));
                copy.files().iter().for_each(|name| disk.write_file(name, &copy.read_file(name)));
                store.start_disk(DiskId(1)).unwrap();
            }
            Meanwhile::Replaced => {
                world.disks[1] = SimDisk::new(77);
                store.replace_simulated_disk(DiskId(1), world.disks[1].clone()).unwrap();
            }
        }
        let held = match meanwhile {
            Meanwhile::Nothing => 50,
            Meanwhile::OlderCopy => 20,
            Meanwhile::Replaced => 0,
        };
        if held < 50 {
            for _ in 0..20 {
                world.clock.advance(SECOND);
                store.run_background();
            }
            let error = partition.append(&[Record::new("x")], Acks::All).unwrap_err();
            assert!(matches!(error, Error::NoLeader { .. }), "{meanwhile:?}: {error}");
            let unclean = TopicUpdate::new().unclean_leader_election(true);
            store.alter_topic("t", unclean).unwrap();
            world.heal(&store, &partition, 1);
            let told = store.events().any(|event| {
                matches!(event.kind, EventKind::LeaderChanged { lost: Some(lost), .. }
                    if lost == (Offset(held)..Offset(50)))
            });
            assert!(told, "{meanwhile:?}");
        }
        append(&partition, held..60);
        check(&partition, 60);
        store.close(SECOND).unwrap();
        drop((store, partition));
        let store = world.open();
        check(&store.partition("t", 1).unwrap(), 60);
    }
}

#[test]
fn a_replaced_disk_is_filled_and_the_old_directory_never_counts_again() {
    let mut world = World::new(3);
    let store = world.open();
    store.create_topic("t", topic(Flush::OnAck)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    append(&partition, 0..100);
    world.disks[1].fail_from(1, Fault::Eio);
    append(&partition, 100..200);
    let old = std::mem::replace(&mut world.disks[1], SimDisk::new(77));
    store.replace_simulated_disk(DiskId(1), world.disks[1].clone()).unwrap();
    world.heal(&store, &partition, 3);
    append(&partition, 200..250);
    assert_equal_logs(&world, &store);
    store.close(SECOND).unwrap();
    drop((store, partition));
    // The old directory in its place: recognised, left out, and the store opens with the other two.
    old.heal();
    old.process_restart();
    let with_old = World {
        disks: vec![world.disks[0].clone(), old, world.disks[2].clone()],
        clock: world.clock.clone(),
    };
    let store = with_old.open();
    let left_out =
        store.events().any(|event| matches!(event.kind, EventKind::DirectoryLeftOut { .. }));
    assert!(left_out, "S14");
    let partition = store.partition("t", 0).unwrap();
    check(&partition, 250);
    append(&partition, 250..260);
}

#[test]
fn s12_s14_directories_that_are_empty_swapped_copied_or_old() {
    let world = World::new(3);
    let store = world.open();
    store.create_topic("t", topic(Flush::OnAck)).unwrap();
    append(&store.partition("t", 0).unwrap(), 0..50);
    store.close(SECOND).unwrap();
    drop(store);
    let backup = world.disks[1].fork();
    let store = world.open();
    append(&store.partition("t", 0).unwrap(), 50..100);
    store.close(SECOND).unwrap();
    drop(store);
    let with = |disks: &[&SimDisk]| World {
        disks: disks.iter().map(|disk| (*disk).clone()).collect(),
        clock: world.clock.clone(),
    };
    let [a, b, c] = [&world.disks[0], &world.disks[1], &world.disks[2]];
    // In another order: each is known by what it says.
    let swapped = with(&[c, a, b]);
    let store = swapped.open();
    check(&store.partition("t", 0).unwrap(), 100);
    store.close(SECOND).unwrap();
    drop(store);
    // The same disk twice.
    let copy = a.fork();
    let error = with(&[a, b, &copy]).builder().open().unwrap_err();
    assert!(matches!(error, Error::UnsupportedFormat { .. }), "{error}");
    // An empty directory is a missing disk, and stays empty.
    let empty = SimDisk::new(9);
    let store = with(&[a, b, &empty]).open();
    check(&store.partition("t", 0).unwrap(), 100);
    assert_eq!(store.disks()[2].state, DiskState::Missing);
    assert!(!empty.files().iter().any(|name| name == "store.id"), "S12");
    store.close(SECOND).unwrap();
    drop(store);
    // One of three is not enough, unless that is said.
    let alone = with(&[a]);
    assert!(matches!(alone.builder().open(), Err(Error::MissingDisk { .. })));
    let one_missing = with(&[a, &empty]).builder().allow_missing(DiskId(2)).open();
    assert!(matches!(one_missing, Err(Error::MissingDisk { disk: DiskId(1), .. })));
    // An old copy of a disk follows, and does not lead.
    backup.process_restart();
    let old = with(&[a, &backup, c]);
    let store = old.open();
    let partition = store.partition("t", 0).unwrap();
    check(&partition, 100);
    assert_ne!(partition.leader(), Some(DiskId(1)));
    old.heal(&store, &partition, 3);
    append(&partition, 100..120);
    assert_equal_logs(&old, &store);
}

/// Batches are copied by the mebibyte, and written where nothing was made ready.
#[test]
fn s1_a_replica_that_catches_up_may_die_at_any_call() {
    const BATCH: u64 = 16;
    let long = |at: u64| format!("{at} {}", "x".repeat(300)).into_bytes();
    for flush in [Flush::Os, Flush::OnAck] {
        let mut finished = false;
        for n in 1.. {
            let world = World::new(3);
            world.disks[1..].iter().for_each(|disk| disk.share_process(&world.disks[0]));
            let store = world.open();
            store.create_topic("t", topic(flush).segment_bytes(100 << 10)).unwrap();
            let partition = store.partition("t", 0).unwrap();
            store.stop_disk(DISKS[2]).unwrap();
            for first in (0..960).step_by(16) {
                let values: Vec<_> = (first..first + BATCH).map(long).collect();
                let records: Vec<_> = values.iter().map(Record::new).collect();
                partition.append(&records, Acks::All).unwrap();
            }
            world.disks[2].crash_at(n);
            let _ = store.start_disk(DISKS[2]);
            for _ in 0..4 {
                store.run_background();
                world.clock.advance(Duration::from_millis(10));
            }
            finished = !world.disks[2].is_dead();
            world.disks.iter().for_each(SimDisk::kill);
            drop((partition, store));
            for (at, disk) in world.disks.iter().enumerate() {
                if at == 2 && n % 2 == 0 {
                    disk.power_loss();
                } else {
                    disk.process_restart();
                }
                disk.heal();
            }
            let store = world.open();
            let partition = store.partition("t", 0).unwrap();
            world.heal(&store, &partition, 3);
            assert_equal_logs(&world, &store);
            let report = store.verify(VerifyOptions::new()).unwrap();
            assert_eq!((report.damages.len(), report.records), (0, 3 * 960), "{flush:?} {n}");
            for disk in DISKS {
                let _ = store.stop_disk(disk);
                let records = partition.read(Offset(700), ReadOptions::new()).unwrap();
                assert_eq!(records.iter().next().unwrap().value().unwrap(), long(700));
                let _ = store.start_disk(disk);
                world.heal(&store, &partition, 3);
            }
            if finished {
                break;
            }
        }
        assert!(finished);
    }
}

/// A run that was written in part, for want of room too, is nothing to append over.
#[test]
fn s9_s10_a_replica_that_catches_up_may_meet_a_failure_at_any_call() {
    for fault in [Fault::Enospc, Fault::Eio, Fault::ShortIo] {
        for n in 1.. {
            let world = World::new(3);
            let store = world.open();
            store.create_topic("t", topic(Flush::Os).segment_bytes(100 << 10)).unwrap();
            let partition = store.partition("t", 0).unwrap();
            store.stop_disk(DISKS[2]).unwrap();
            let values: Vec<_> = (0..2000).map(value).collect();
            for batch in values.chunks(16) {
                let records: Vec<_> = batch.iter().map(Record::new).collect();
                partition.append(&records, Acks::All).unwrap();
            }
            let before = world.disks[2].calls();
            world.disks[2].fail_call(n, fault);
            let _ = store.start_disk(DISKS[2]);
            for _ in 0..4 {
                store.run_background();
                world.clock.advance(Duration::from_millis(10));
            }
            let finished = world.disks[2].calls() - before < n;
            world.disks[2].heal();
            if store.disks()[2].state != DiskState::Online {
                store.start_disk(DISKS[2]).unwrap();
            }
            // Another one leads, and writes something else there.
            store.stop_disk(partition.leader().unwrap()).unwrap();
            partition.append(&[Record::new(&value(2000))], Acks::Leader).unwrap();
            for disk in DISKS {
                let _ = store.start_disk(disk);
            }
            for _ in 0..8 {
                world.clock.advance(10 * SECOND);
                store.run_background();
            }
            world.heal(&store, &partition, 3);
            check(&partition, 2001);
            assert_equal_logs(&world, &store);
            let report = store.verify(VerifyOptions::new()).unwrap();
            assert_eq!((report.damages.len(), report.records), (0, 3 * 2001), "{fault:?} {n}");
            if finished {
                break;
            }
        }
    }
}

#[test]
fn two_disks_need_each_other_at_open_and_not_while_running() {
    let world = World::new(2);
    let store = world.open();
    let config = topic(Flush::OnAck).replication_factor(2).min_insync_replicas(1);
    store.create_topic("t", config).unwrap();
    let partition = store.partition("t", 0).unwrap();
    append(&partition, 0..20);
    world.disks[0].fail_from(1, Fault::Eio);
    append(&partition, 20..60);
    check(&partition, 60);
    drop((store, partition));
    world.disks[0].heal();
    for disk in &world.disks {
        disk.power_loss();
    }
    let alone = World { disks: vec![world.disks[1].clone()], clock: world.clock.clone() };
    assert!(matches!(alone.builder().open(), Err(Error::MissingDisk { .. })));
    let store = alone.builder().allow_missing(DiskId(0)).open().unwrap();
    check(&store.partition("t", 0).unwrap(), 60);
    drop(store);
    for disk in &world.disks {
        disk.process_restart();
    }
    let store = world.open();
    let partition = store.partition("t", 0).unwrap();
    check(&partition, 60);
    world.heal(&store, &partition, 2);
    append(&partition, 60..70);
    assert_equal_logs(&world, &store);
}

#[test]
fn s10_a_full_disk_of_three_is_left_behind_and_catches_up_when_there_is_room() {
    for flush in [Flush::OnAck, Flush::Os] {
        for victim in 0..3 {
            let world = World::new(3);
            let store = world.open();
            store.create_topic("t", topic(flush)).unwrap();
            let partition = store.partition("t", 0).unwrap();
            append(&partition, 0..50);
            world.disks[victim].set_free_bytes(Some(0));
            append(&partition, 50..400);
            check(&partition, 400);
            assert_eq!(partition.in_sync_replicas().len(), 2, "{flush:?} {victim}");
            world.disks[victim].set_free_bytes(None);
            for _ in 0..200 {
                world.clock.advance(Duration::from_millis(50));
                store.run_background();
            }
            world.heal(&store, &partition, 3);
            append(&partition, 400..420);
            assert_equal_logs(&world, &store);
        }
    }
}

#[test]
fn s10_with_two_full_disks_of_three_appends_are_refused_until_there_is_room() {
    for flush in [Flush::OnAck, Flush::Os] {
        let world = World::new(3);
        let store = world.open();
        store.create_topic("t", topic(flush)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        append(&partition, 0..50);
        world.disks[2].set_free_bytes(Some(0));
        append(&partition, 50..300);
        world.disks[1].set_free_bytes(Some(0));
        let refused =
            (300..900).find_map(|at| partition.append(&[Record::new(&value(at))], Acks::All).err());
        let refused = refused.expect("REPL-02: two are required");
        let fits = matches!(
            refused,
            Error::NotEnoughReplicas { .. }
                | Error::NotEnoughReplicasAfterAppend { .. }
                | Error::NoSpace { .. }
                | Error::NoLeader { .. }
        );
        assert!(fits, "{refused}");
        check(&partition, partition.high_watermark().0);
        assert!(partition.high_watermark() >= Offset(300));
        for disk in &world.disks {
            disk.set_free_bytes(None);
        }
        for _ in 0..200 {
            world.clock.advance(Duration::from_millis(50));
            store.run_background();
        }
        world.heal(&store, &partition, 3);
        let end = partition.log_end_offset().0;
        append(&partition, end..end + 20);
        check(&partition, end + 20);
        assert_equal_logs(&world, &store);
    }
}

#[test]
fn replicas_move_to_other_disks_while_appends_go_on() {
    let mut world = World::new(3);
    let store = world.open();
    let config = topic(Flush::OnAck).replication_factor(2).min_insync_replicas(1);
    store.create_topic("t", config).unwrap();
    let partition = store.partition("t", 0).unwrap();
    append(&partition, 0..100);
    let fourth = SimDisk::new(40);
    world.disks.push(fourth.clone());
    assert_eq!(store.add_simulated_disk(fourth).unwrap(), DiskId(3));
    store.reassign("t", 0, &[DiskId(3), DiskId(2)]).unwrap();
    assert_eq!(partition.replicas(), [DiskId(3), DiskId(2)]);
    append(&partition, 100..150);
    check(&partition, 150);
    world.heal(&store, &partition, 2);
    for disk in [0, 1] {
        let left = world.disks[disk].files().into_iter().any(|name| name.ends_with(".log"));
        assert!(!left, "the old replicas are gone");
    }
    for refused in [&[][..], &[DiskId(1), DiskId(1)], &[DiskId(9)]] {
        assert!(store.reassign("t", 0, refused).is_err());
    }
    store.close(SECOND).unwrap();
    drop((store, partition));
    let store = world.open();
    let partition = store.partition("t", 0).unwrap();
    check(&partition, 150);
    assert_eq!(partition.replicas(), [DiskId(3), DiskId(2)]);
}

#[test]
fn repl_23_an_unclean_election_says_what_it_lost_and_happens_only_where_it_is_allowed() {
    for unclean in [false, true] {
        let world = World::new(3);
        let store = world.open();
        let config = topic(Flush::Os)
            .replication_factor(2)
            .min_insync_replicas(1)
            .unclean_leader_election(unclean);
        store.create_topic("t", config).unwrap();
        let partition = store.partition("t", 0).unwrap();
        append(&partition, 0..10);
        let leader = partition.leader().unwrap();
        let follower = *partition.replicas().iter().find(|disk| **disk != leader).unwrap();
        store.stop_disk(follower).unwrap();
        append(&partition, 10..30);
        drop((store, partition));
        for disk in &world.disks {
            disk.process_restart();
        }
        // Now without the disk that has it all.
        let empty = SimDisk::new(5);
        let mut disks = world.disks.clone();
        disks[usize::from(leader.0)] = empty;
        let without = World { disks, clock: world.clock.clone() };
        let store = without.open();
        match store.partition("t", 0) {
            Err(error) => {
                assert!(!unclean, "{error}");
                assert!(matches!(error, Error::NoLeader { .. }), "{error}");
            }
            Ok(partition) => {
                assert!(unclean);
                check(&partition, 10);
                let told = store.events().any(|event| match event.kind {
                    EventKind::LeaderChanged { lost: Some(lost), .. } => lost.start == Offset(10),
                    _ => false,
                });
                assert!(told, "that something was lost");
            }
        }
    }
}

/// What the last clean stop proved was once missed in a log that had been cut since, as if it had been lost.
#[test]
fn epoch_14_a_log_that_was_cut_below_its_last_clean_end_is_not_taken_for_damaged() {
    for flush in [Flush::Os, Flush::OnAck] {
        for power in [false, true] {
            let world = World::new(2);
            let store = world.open();
            let config = topic(flush)
                .replication_factor(2)
                .min_insync_replicas(1)
                .unclean_leader_election(true);
            store.create_topic("t", config).unwrap();
            let partition = store.partition("t", 0).unwrap();
            append(&partition, 0..10);
            world.heal(&store, &partition, 2);
            let leader = usize::from(partition.leader().unwrap().0);
            let other = 1 - leader;
            store.stop_disk(DiskId(u16::try_from(other).unwrap())).unwrap();
            append(&partition, 10..40);
            store.close(SECOND).unwrap();
            drop((partition, store));
            // Without the disk that has it all the other one leads, and has less.
            let second = Store::builder()
                .clock(world.clock.clone())
                .simulated_disk(world.disks[other].clone())
                .allow_missing(DiskId(u16::try_from(leader).unwrap()))
                .open()
                .unwrap();
            let partition = second.partition("t", 0).unwrap();
            append(&partition, 10..15);
            second.close(SECOND).unwrap();
            drop((partition, second));
            let store = world.open();
            let partition = store.partition("t", 0).unwrap();
            world.heal(&store, &partition, 2);
            check(&partition, 15);
            // A process that dies leaves in the session file what the last clean stop wrote.
            world.disks.iter().for_each(SimDisk::kill);
            drop((partition, store));
            for disk in &world.disks {
                if power {
                    disk.power_loss();
                } else {
                    disk.process_restart();
                }
            }
            let store = world.open();
            let partition = store.partition("t", 0).unwrap();
            world.heal(&store, &partition, 2);
            let damaged = store.events().find(|event| {
                matches!(event.kind, EventKind::Damaged { .. } | EventKind::Repaired { .. })
            });
            assert!(damaged.is_none(), "{flush:?} {power}: {}", damaged.unwrap());
            store.close(SECOND).unwrap();
        }
    }
}

fn wait_for_all(store: &Store, partitions: &[Partition]) {
    for partition in partitions {
        let mut events = store.events();
        while partition.in_sync_replicas().len() < 3 {
            assert!(events.wait(SECOND * 20).is_some(), "{:?}", partition.in_sync_replicas());
        }
    }
}

#[test]
fn three_real_directories_lose_one_and_get_it_back() {
    for flush in [Flush::OnAck, Flush::Os] {
        let scratch = tempfile::tempdir().unwrap();
        let paths: Vec<_> = (0..4).map(|at| scratch.path().join(format!("disk-{at}"))).collect();
        let open = || {
            let builder = Store::builder();
            paths[..3].iter().fold(builder, |builder, path| builder.disk(path)).open().unwrap()
        };
        let store = open();
        store.create_topic("t", topic(flush).partitions(2).segment_bytes(64 << 10)).unwrap();
        let partitions: Vec<_> = (0..2).map(|at| store.partition("t", at).unwrap()).collect();
        std::thread::scope(|scope| {
            for partition in &partitions {
                scope.spawn(move || append(partition, 0..3000));
            }
            scope.spawn(|| {
                store.stop_disk(DiskId(1)).unwrap();
                store.start_disk(DiskId(1)).unwrap();
                wait_for_all(&store, &partitions);
                store.stop_disk(DiskId(0)).unwrap();
                store.start_disk(DiskId(0)).unwrap();
                wait_for_all(&store, &partitions);
                store.replace_disk(DiskId(2), &paths[3]).unwrap();
            });
        });
        wait_for_all(&store, &partitions);
        for partition in &partitions {
            check(partition, 3000);
        }
        store.close(SECOND * 20).unwrap();
        drop((partitions, store));
        let builder = Store::builder().disk(&paths[0]).disk(&paths[1]).disk(&paths[3]);
        let store = builder.open().unwrap();
        for at in 0..2 {
            check(&store.partition("t", at).unwrap(), 3000);
        }
        assert_eq!(store.verify(VerifyOptions::new()).unwrap().damages, []);
    }
}
