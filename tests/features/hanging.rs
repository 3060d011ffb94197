//! Disks that hang (S22): nothing acknowledged is lost, other disks go on, and every wait ends.

use std::time::{Duration, Instant};

use oncelog::simulation::{Clock, Hang, SimDisk};
use oncelog::{
    Acks, DiskId, DiskState, Error, EventKind, Flush, Offset, Partition, ProducerEpoch, ProducerId,
    ProducerSequence, ReadOptions, Record, Store, StoreBuilder, Timestamp, TopicConfig,
    VerifyOptions,
};

use crate::hanging_disk::{Hanging, LONG};
use crate::ticking::Ticking;

const LAG: Duration = Duration::from_millis(900);
const TIMEOUT: Duration = Duration::from_secs(6);

fn open(disks: &[SimDisk]) -> Store {
    let builder = Store::builder().replica_lag_max(LAG).append_timeout(TIMEOUT);
    disks
        .iter()
        .fold(builder, |builder, disk| builder.simulated_disk(disk.clone()))
        .threads()
        .open()
        .unwrap()
}

fn topic(flush: Flush, segment_bytes: u64) -> TopicConfig {
    TopicConfig::new()
        .partitions(3)
        .replication_factor(3)
        .min_insync_replicas(2)
        .flush(flush)
        .segment_bytes(segment_bytes)
}

fn value(at: u64) -> Vec<u8> {
    format!("{at} {}", "x".repeat(100)).into_bytes()
}

/// Appends until `values` are acknowledged; what is not known to have gone in comes again.
fn append(partition: &Partition, values: std::ops::Range<u64>) {
    for at in values {
        let appended = partition.append(&[Record::new(&value(at))], Acks::All).unwrap();
        assert_eq!(appended.offsets.start, Offset(at));
    }
}

fn check(partition: &Partition, end: u64) {
    assert!(partition.high_watermark().0 >= end);
    let mut next = Offset(0);
    while next.0 < end {
        let records = partition.read(next, ReadOptions::new()).unwrap();
        for record in &records {
            assert_eq!(record.offset(), next);
            assert_eq!(record.value().unwrap(), value(next.0));
            next = next.next();
        }
    }
}

fn led_by(store: &Store, disk: DiskId) -> Partition {
    let all = (0..3).map(|number| store.partition("t", number).unwrap());
    all.into_iter().find(|partition| partition.leader() == Some(disk)).unwrap()
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < LONG, "{what}");
        std::thread::yield_now();
    }
}

/// What takes a call to the follower's disk is not done while the leader waits for it.
#[test]
fn s22_a_follower_that_hangs_never_holds_the_leader() {
    for flush in [Flush::OnAck, Flush::Os] {
        let disks: Vec<_> = (0..3).map(|at| SimDisk::new(at + 1)).collect();
        let store = open(&disks);
        store.create_topic("t", topic(flush, 64 << 20)).unwrap();
        let partition = led_by(&store, DiskId(0));
        append(&partition, 0..1);
        let hanging = Hanging::new(&disks[1], Hang::Everything);
        // More than was made ready ahead.
        for _ in 0..20_000 {
            partition.append(&[Record::new(&[7; 100])], Acks::Leader).unwrap();
        }
        hanging.heal();
        store.close(LONG).unwrap();
    }
}

/// A file system that is frozen writes its pages back, and a store to one waits as a call does: the simulated disk panics.
#[test]
fn s22_no_store_to_a_mapped_page_waits_for_a_disk_that_hangs() {
    let flushes = [Flush::OnAck, Flush::Os, Flush::Interval(Duration::from_millis(50))];
    let cases = flushes.map(|flush| (flush, false)).into_iter().chain([(Flush::Os, true)]);
    for ((flush, is_stopped), victim) in cases.flat_map(|case| (0..3).map(move |at| (case, at))) {
        let disks: Vec<_> = (0..3).map(|at| SimDisk::new(at + 1)).collect();
        disks.iter().for_each(SimDisk::watch_pages);
        let clock = Clock::manual(Timestamp(1_000_000));
        let builder = Store::builder().replica_lag_max(LAG).append_timeout(TIMEOUT);
        let all = |builder: StoreBuilder, disk: &SimDisk| builder.simulated_disk(disk.clone());
        let builder = disks.iter().fold(builder.clock(clock.clone()), all);
        let store = builder.threads().open().unwrap();
        store.create_topic("t", topic(flush, 64 << 20)).unwrap();
        let all: Vec<_> = (0..3).map(|number| store.partition("t", number).unwrap()).collect();
        all.iter().for_each(|partition| append(partition, 0..20));
        let hanging = Hanging::new(&disks[victim], Hang::Everything);
        clock.advance(Duration::from_secs(1));
        disks[victim].write_back();
        let ticking = Ticking::new(&clock);
        if is_stopped {
            // What leads there hands over as it would on any other day.
            let _ = store.stop_disk(DiskId(u16::try_from(victim).unwrap()));
        }
        let begun = Instant::now();
        for (partition, at) in
            all.iter().flat_map(|partition| (20..60).map(move |at| (partition, at)))
        {
            while let Err(error) = partition.append(&[Record::new(&value(at))], Acks::All) {
                assert!(begun.elapsed() < LONG, "{flush:?}, {victim} hangs: {error:?}");
            }
        }
        all.iter().for_each(|partition| {
            let victim = DiskId(u16::try_from(victim).unwrap());
            assert_ne!(partition.leader(), Some(victim), "{flush:?}: a disk that hangs leads");
        });
        drop(ticking);
        hanging.heal();
        store.close(LONG).unwrap();
    }
}

#[test]
fn s22_a_follower_that_hangs_is_left_behind_and_comes_back() {
    for flush in [Flush::OnAck, Flush::Os] {
        for hang in [Hang::Syncs, Hang::Everything] {
            let disks: Vec<_> = (0..3).map(|at| SimDisk::new(at + 1)).collect();
            let store = open(&disks);
            store.create_topic("t", topic(flush, 4096)).unwrap();
            let partition = led_by(&store, DiskId(0));
            append(&partition, 0..20);
            let hanging = Hanging::new(&disks[2], hang);
            append(&partition, 20..200);
            check(&partition, 200);
            // At the `Os` level nobody has to wait for a disk whose cache takes everything.
            if hang == Hang::Everything || flush == Flush::OnAck {
                wait_until("it is left behind", || {
                    !partition.in_sync_replicas().contains(&DiskId(2))
                });
                let other = led_by(&store, DiskId(1));
                append(&other, 0..20);
                check(&other, 20);
            }
            hanging.heal();
            if let DiskState::Offline { .. } = store.disks()[2].state {
                wait_until("its calls have returned", || store.start_disk(DiskId(2)).is_ok());
            }
            wait_until("all are in sync again", || partition.in_sync_replicas().len() == 3);
            append(&partition, 200..220);
            check(&partition, 220);
            store.close(LONG).unwrap();
            drop((partition, store));
            let store = open(&disks);
            check(&led_by(&store, DiskId(0)), 220);
        }
    }
}

#[test]
fn s22_a_leader_whose_flush_hangs_is_deposed_and_what_it_does_later_counts_for_nothing() {
    let disks: Vec<_> = (0..3).map(|at| SimDisk::new(at + 1)).collect();
    let store = open(&disks);
    store.create_topic("t", topic(Flush::OnAck, 1 << 20)).unwrap();
    let partition = led_by(&store, DiskId(0));
    let other = led_by(&store, DiskId(1));
    append(&partition, 0..20);
    append(&other, 0..20);
    let hanging = Hanging::new(&disks[0], Hang::Syncs);
    std::thread::scope(|scope| {
        // Whoever leads the flush is held by it; what it appended is in the followers' memory by then.
        let held = scope.spawn(|| partition.append(&[Record::new(&value(20))], Acks::All));
        wait_until("another leads", || {
            partition.leader().is_some_and(|leader| leader != DiskId(0))
        });
        append(&partition, 21..60);
        check(&partition, 60);
        append(&other, 20..40);
        let offline = store
            .events()
            .any(|event| matches!(event.kind, EventKind::DiskOffline { disk: DiskId(0), .. }));
        assert!(offline, "it is told");
        hanging.heal();
        let appended = held.join().unwrap();
        assert_eq!(
            appended.unwrap().offsets.start,
            Offset(20),
            "it was acknowledged by the others"
        );
    });
    wait_until("its calls have returned", || store.start_disk(DiskId(0)).is_ok());
    wait_until("all are in sync again", || partition.in_sync_replicas().len() == 3);
    append(&partition, 60..80);
    check(&partition, 80);
    store.close(LONG).unwrap();
    drop((partition, other, store));
    disks.iter().for_each(SimDisk::power_loss);
    let store = open(&disks);
    let all = (0..3).map(|number| store.partition("t", number).unwrap());
    assert_eq!(all.map(|partition| partition.high_watermark().0).sum::<u64>(), 120);
}

#[test]
fn s22_a_leader_whose_disk_hangs_when_it_needs_room_is_deposed() {
    {
        let disks: Vec<_> = (0..3).map(|at| SimDisk::new(at + 1)).collect();
        let store = open(&disks);
        store.create_topic("t", topic(Flush::Os, 1 << 26)).unwrap();
        let partition = led_by(&store, DiskId(0));
        append(&partition, 0..20);
        let hanging = Hanging::new(&disks[0], Hang::Everything);
        std::thread::scope(|scope| {
            let held = scope.spawn(|| {
                let mut end = 20;
                // The call hangs under no lock, and what it was for is appended to another leader when it returns.
                while partition.leader() == Some(DiskId(0)) {
                    let offsets = partition
                        .append(&[Record::new(&value(end))], Acks::All)
                        .expect("another leader takes it")
                        .offsets;
                    assert!(offsets.start.0 >= end);
                    end = offsets.end.0;
                }
            });
            wait_until("another leads", || {
                partition.leader().is_some_and(|disk| disk != DiskId(0))
            });
            let from = loop {
                match partition.append(&[Record::new("next")], Acks::All) {
                    Ok(appended) => break appended.offsets.start,
                    Err(error) => assert!(matches!(error, Error::NoLeader { .. }), "{error}"),
                }
            };
            assert!(from >= Offset(20));
            hanging.heal();
            held.join().unwrap();
        });
        let before = partition.high_watermark();
        store.start_disk(DiskId(0)).unwrap();
        wait_until("it is back", || partition.in_sync_replicas().len() == 3);
        partition.append(&[Record::new("last")], Acks::All).unwrap();
        assert_eq!(partition.high_watermark(), Offset(before.0 + 1));
        let report = store.verify(VerifyOptions::new()).unwrap();
        assert_eq!((report.damages.len(), report.records), (0, 3 * (before.0 + 1)));
        store.close(LONG).unwrap();
    }
}

/// A new segment was once begun under the partition's lock: a leader that hung there could not be deposed.
#[test]
fn s22_a_leader_whose_disk_hangs_when_it_begins_a_segment_is_deposed() {
    for flush in [Flush::Os, Flush::OnAck] {
        let disks: Vec<_> = (0..3).map(|at| SimDisk::new(at + 1)).collect();
        let store = open(&disks);
        store.create_topic("t", topic(flush, 4096)).unwrap();
        let partition = led_by(&store, DiskId(0));
        let other = led_by(&store, DiskId(1));
        append(&partition, 0..20);
        append(&other, 0..20);
        let hanging = Hanging::new(&disks[0], Hang::Everything);
        // Whoever waits for the segment is not held by it, and goes on with the next leader.
        append(&partition, 20..100);
        assert!(partition.leader().is_some_and(|leader| leader != DiskId(0)));
        append(&other, 20..60);
        check(&partition, 100);
        check(&other, 60);
        hanging.heal();
        wait_until("its calls have returned", || store.start_disk(DiskId(0)).is_ok());
        wait_until("all are in sync again", || partition.in_sync_replicas().len() == 3);
        append(&partition, 100..120);
        let report = store.verify(VerifyOptions::new()).unwrap();
        assert_eq!((report.damages.len(), report.records), (0, 3 * (120 + 60)));
        let number = partition.name().partition();
        store.close(LONG).unwrap();
        drop((partition, other, store));
        disks.iter().for_each(SimDisk::power_loss);
        let store = open(&disks);
        if flush == Flush::OnAck {
            check(&store.partition("t", number).unwrap(), 120);
        }
        let report = store.verify(VerifyOptions::new()).unwrap();
        assert_eq!(report.damages, []);
    }
}

/// Batches that nobody waits for fill the memory that a flush takes them from; they were once written by their appender,
/// under the partition's lock.
#[test]
fn s22_a_leader_whose_disk_hangs_while_much_waits_for_its_flush_is_deposed() {
    let disks: Vec<_> = (0..3).map(|at| SimDisk::new(at + 1)).collect();
    let store = open(&disks);
    store.create_topic("t", topic(Flush::OnAck, 64 << 20)).unwrap();
    let partition = led_by(&store, DiskId(0));
    append(&partition, 0..1);
    let hanging = Hanging::new(&disks[0], Hang::Everything);
    let large = vec![7; 100 << 10];
    let mut appended = 0;
    while partition.leader() == Some(DiskId(0)) {
        if partition.append_nowait(&[Record::new(&large)], Acks::All).is_ok() {
            appended += 1;
        }
    }
    assert!(appended < 100, "memory is bounded");
    partition.append(&[Record::new("next")], Acks::All).unwrap();
    hanging.heal();
    store.close(LONG).unwrap();
}

/// The one that led the flush was once held until the disk answered.
#[test]
fn s22_every_wait_ends_in_time_while_the_only_other_replica_is_away() {
    let disks: Vec<_> = (0..3).map(|at| SimDisk::new(at + 1)).collect();
    let timeout = Duration::from_millis(300);
    let builder = Store::builder().append_timeout(timeout);
    let store = disks
        .iter()
        .fold(builder, |builder, disk| builder.simulated_disk(disk.clone()))
        .threads()
        .open()
        .unwrap();
    store.create_topic("t", topic(Flush::OnAck, 4096)).unwrap();
    let partition = led_by(&store, DiskId(0));
    append(&partition, 0..3);
    let hanging = Hanging::new(&disks[0], Hang::Everything);
    // Nobody is deposed as early as that; the second one finds a flush under way, and so on until the segment is full.
    for _ in 0..60 {
        let outcome = partition.append(&[Record::new(&[7; 1000])], Acks::All);
        assert!(matches!(outcome, Err(Error::TimedOut { .. })), "{outcome:?}");
        if matches!(outcome, Err(Error::TimedOut { appended: None, .. })) {
            break;
        }
    }
    hanging.heal();
    wait_until("it goes on", || partition.append(&[Record::new("x")], Acks::All).is_ok());
    store.close(LONG).unwrap();
}

/// A duplicate of a record that is in the log, and not acknowledged, is not acknowledged either.
#[test]
fn prod_07_a_duplicate_is_acknowledged_no_earlier_than_its_record() {
    let disks: Vec<_> = (0..2).map(|at| SimDisk::new(at + 1)).collect();
    let timeout = Duration::from_millis(300);
    let builder = Store::builder().append_timeout(timeout).replica_lag_max(20 * LONG);
    let store = disks
        .iter()
        .fold(builder, |builder, disk| builder.simulated_disk(disk.clone()))
        .threads()
        .open()
        .unwrap();
    store.create_topic("t", topic(Flush::OnAck, 64 << 20).replication_factor(2)).unwrap();
    let mut end = 0;
    for hangs in [DiskId(1), DiskId(0)] {
        let partition = led_by(&store, DiskId(0));
        let (id, epoch) = (ProducerId(1 + u64::from(hangs.0)), ProducerEpoch(0));
        let append = |sequence, acks| {
            let producer = ProducerSequence { id, epoch, sequence };
            partition.append_idempotent(producer, &[Record::new("x")], acks)
        };
        append(0, Acks::All).unwrap();
        let hanging = Hanging::new(&disks[usize::from(hangs.0)], Hang::Syncs);
        for attempt in ["first", "again", "and again"] {
            let outcome = append(1, Acks::All);
            assert!(matches!(outcome, Err(Error::TimedOut { .. })), "{attempt}: {outcome:?}");
        }
        let by_leader = append(1, Acks::Leader);
        assert_eq!(by_leader.is_ok(), hangs != DiskId(0), "{by_leader:?}");
        hanging.heal();
        wait_until("it is acknowledged", || append(1, Acks::All).is_ok());
        let known = append(1, Acks::All).unwrap();
        assert_eq!((known.offsets, known.duplicate), (Offset(end + 1)..Offset(end + 2), true));
        end += 2;
        assert_eq!(partition.log_end_offset(), Offset(end));
    }
    store.close(LONG).unwrap();
}

/// With one replica the caller flushes by itself, and is held by a call that hangs; those that come later are not.
#[test]
fn s22_with_one_replica_only_the_caller_inside_the_call_is_held() {
    let disk = SimDisk::new(1);
    let timeout = Duration::from_millis(300);
    let store = Store::builder()
        .append_timeout(timeout)
        .simulated_disk(disk.clone())
        .threads()
        .open()
        .unwrap();
    store.create_topic("t", TopicConfig::new().flush(Flush::OnAck)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    partition.append(&[Record::new("v")], Acks::All).unwrap();
    let hanging = Hanging::new(&disk, Hang::Syncs);
    std::thread::scope(|scope| {
        let held = scope.spawn(|| partition.append(&[Record::new("held")], Acks::All));
        wait_until("it hangs", || disk.held_calls() > 0);
        for _ in 0..3 {
            let outcome = partition.append(&[Record::new("late")], Acks::All);
            assert!(matches!(outcome, Err(Error::TimedOut { .. })), "{outcome:?}");
        }
        hanging.heal();
        held.join().unwrap().unwrap();
    });
    partition.append(&[Record::new("v")], Acks::All).unwrap();
    store.close(LONG).unwrap();
}

/// Files were once removed, and the disk asked for its free bytes, under the lock of the metadata.
#[test]
fn s22_a_disk_that_hangs_holds_up_no_topic_that_goes_or_comes_and_no_look_at_the_disks() {
    let disks: Vec<_> = (0..3).map(|at| SimDisk::new(at + 1)).collect();
    let store = open(&disks);
    store.create_topic("t", topic(Flush::OnAck, 4096)).unwrap();
    store.create_topic("gone", topic(Flush::OnAck, 4096)).unwrap();
    let partition = led_by(&store, DiskId(0));
    append(&partition, 0..20);
    let hanging = Hanging::new(&disks[2], Hang::Everything);
    let described = store.disks();
    assert_eq!((described.len(), described[2].free_bytes), (3, None));
    store.delete_topic("gone").unwrap();
    store.create_topic("new", topic(Flush::OnAck, 4096).replication_factor(2)).unwrap();
    append(&partition, 20..40);
    hanging.heal();
    wait_until("its calls have returned", || store.start_disk(DiskId(2)).is_ok());
    wait_until("all are in sync again", || partition.in_sync_replicas().len() == 3);
    let left = || disks.iter().flat_map(SimDisk::files).any(|path| path.contains("gone"));
    assert!(!left(), "a disk that comes back gives up what is deleted");
    store.close(LONG).unwrap();
}

/// A repair was once done by the thread that settles elections.
#[test]
fn s22_a_repair_that_hangs_holds_up_no_election() {
    let disks: Vec<_> = (0..5).map(|at| SimDisk::new(at + 1)).collect();
    let config = topic(Flush::OnAck, 4096).partitions(5);
    let store = open(&disks);
    store.create_topic("t", config).unwrap();
    for number in 0..5 {
        append(&store.partition("t", number).unwrap(), 0..100);
    }
    store.close(LONG).unwrap();
    drop(store);
    let store = open(&disks);
    let all: Vec<_> = (0..5).map(|number| store.partition("t", number).unwrap()).collect();
    let damaged = all.iter().find(|partition| partition.leader() == Some(DiskId(0))).unwrap();
    let name = format!("-t/{}/00000000000000000000.log", damaged.name().partition());
    let path = disks[0].files().into_iter().find(|path| path.ends_with(&name)).unwrap();
    disks[0].break_sector(&path, 2);
    let hanging = Hanging::new(&disks[0], Hang::Syncs);
    // Another replica answers; the one that is damaged is to be repaired.
    for at in (0..100).map(Offset) {
        damaged.read(at, ReadOptions::new()).unwrap();
    }
    let is_damaged = |event: oncelog::Event| matches!(event.kind, EventKind::Damaged { .. });
    assert!(store.events().any(is_damaged));
    store.stop_disk(DiskId(4)).unwrap();
    store.start_disk(DiskId(4)).unwrap();
    let others = || all.iter().filter(|partition| !partition.replicas().contains(&DiskId(0)));
    assert!(others().count() > 0);
    wait_until("who returns joins again", || {
        others().all(|partition| partition.in_sync_replicas().len() == 3)
    });
    hanging.heal();
    wait_until("its calls have returned", || store.start_disk(DiskId(0)).is_ok());
    wait_until("all are in sync again", || {
        all.iter().all(|partition| partition.in_sync_replicas().len() == 3)
    });
    let report = store.verify(VerifyOptions::new().repair(true)).unwrap();
    assert!(report.damages.iter().all(|damage| damage.repaired), "{:?}", report.damages);
    store.close(LONG).unwrap();
}

#[test]
fn s22_close_ends_in_time_while_a_disk_hangs() {
    let disks: Vec<_> = (0..3).map(|at| SimDisk::new(at + 1)).collect();
    let store = open(&disks);
    store.create_topic("t", topic(Flush::OnAck, 1 << 20)).unwrap();
    append(&led_by(&store, DiskId(0)), 0..20);
    let hanging = Hanging::new(&disks[1], Hang::Everything);
    let outcome = store.close(Duration::from_millis(300));
    assert!(matches!(outcome, Err(Error::TimedOut { .. })), "{outcome:?}");
    hanging.heal();
}

/// Whoever asked for the move copied and flushed by itself, and was held by the disk.
#[test]
fn s22_a_move_to_a_disk_that_hangs_ends_in_time() {
    for hang in [Hang::Syncs, Hang::Everything] {
        let disks: Vec<_> = (0..2).map(|at| SimDisk::new(at + 1)).collect();
        let store = open(&disks);
        store.create_topic("t", TopicConfig::new().flush(Flush::OnAck)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        for _ in 0..300 {
            partition.append(&[Record::new(&[7; 100_000])], Acks::Leader).unwrap();
        }
        let leader = partition.leader().unwrap();
        let other = DiskId(1 - leader.0);
        let newcomer = &disks[usize::from(other.0)];
        std::thread::scope(|scope| {
            let moved = scope.spawn(|| store.reassign("t", 0, &[other]));
            let has_begun = || newcomer.files().iter().any(|path| path.starts_with("topics/"));
            wait_until("it copies", || has_begun() || moved.is_finished());
            let hanging = Hanging::new(newcomer, hang);
            let moved = moved.join().unwrap();
            assert!(moved.is_err() || partition.leader() == Some(other), "{moved:?}");
            hanging.heal();
        });
        assert_eq!(partition.high_watermark(), Offset(300));
        store.close(LONG).unwrap();
    }
}
