//! Replicas whose flush failed: what is written down of them, and who leads without what they lost.

use crate::storage::Clock;
use crate::types::Timestamp;

use super::*;

fn suspects(shared: &Shared, topic: &Topic) -> Vec<(DiskId, Offset)> {
    let metadata = shared.metadata.lock();
    let partition = metadata.state().partition(topic.id, 0).unwrap();
    partition.suspects.iter().map(|(disk, durable)| (*disk, *durable)).collect()
}

/// It was noted nowhere: at the next opening its tail was believed, of which the cache may hold pages that no flush
/// will write any more.
#[test]
fn s8_a_flush_that_fails_on_the_disk_of_an_earlier_leader_makes_its_tail_suspect() {
    for was_away in [false, true] {
        let disks = [0, 1].map(SimDisk::new);
        let store = open(&disks);
        let config = TopicConfig::new().replication_factor(2).flush(Flush::Os);
        store.create_topic("t", config).unwrap();
        append(&store).unwrap();
        let shared = &store.handle.shared;
        let (topic, core) = shared.cores().pop().expect("one partition");
        let proposal = elect(shared, &topic, &core, DiskId(1), &[DiskId(0), DiskId(1)]);
        disks[0].fail_sync(1, SyncFault::CleanedPages);
        disks[0].hang(Hang::Syncs);
        thread::scope(|scope| {
            let flush = scope.spawn(|| core.make_durable());
            while disks[0].held_calls() == 0 {
                thread::yield_now();
            }
            let mut is_free = core.is_free(DiskId(0));
            core.install(proposal, shared.clock.now());
            assert_eq!(core.leader(), Some(DiskId(1)));
            if was_away {
                assert!(core.stop_replica(DiskId(0), "away"));
            }
            is_free |= core.is_free(DiskId(0));
            disks[0].answer();
            let _ = flush.join();
            assert!(!is_free, "two would write to one file");
            assert!(core.is_free(DiskId(0)));
        });
        shared.settle_one(&core);
        assert_eq!(suspects(shared, &topic), [(DiskId(0), Offset(0))], "{was_away}");
        assert_eq!(core.in_sync(), [DiskId(1)]);
        assert_eq!(append(&store).unwrap(), Offset(1));
        until(&store, "it was copied anew", || core.in_sync().len() == 2);
        assert_eq!(suspects(shared, &topic), []);
    }
}

/// Only partitions with several replicas noted it.
#[test]
fn s8_a_failed_flush_of_the_only_replica_is_known_to_the_next_opening_at_every_level() {
    for fault in [SyncFault::CleanedPages, SyncFault::Reverted] {
        for seed in 0..10 {
            let disk = SimDisk::new(seed);
            let store = open(std::slice::from_ref(&disk));
            store.create_topic("t", TopicConfig::new().flush(Flush::Os)).unwrap();
            append(&store).unwrap();
            let (topic, core) = store.handle.shared.cores().pop().expect("one partition");
            disk.fail_sync(1, fault);
            assert!(core.make_durable().is_err());
            store.run_background();
            assert_eq!(suspects(&store.handle.shared, &topic), [(DiskId(0), Offset(0))]);
            disk.kill();
            drop((core, topic, store));
            disk.process_restart();
            let store = open(std::slice::from_ref(&disk));
            let partition = store.partition("t", 0).unwrap();
            let (end, core) = (partition.log_end_offset(), store.handle.shared.cores());
            core[0].1.make_durable().unwrap();
            disk.kill();
            drop((core, partition, store));
            disk.power_loss();
            let store = open(std::slice::from_ref(&disk));
            let found = store.partition("t", 0).unwrap().log_end_offset();
            assert_eq!(found, end, "{fault:?}, seed {seed}: it was flushed");
        }
    }
}

/// A side file that vouches for what the cache holds says nothing of what a failed flush has left of it.
#[test]
fn s8_a_failed_flush_of_a_sealed_segment_is_known_to_the_next_opening() {
    for seed in 0..10 {
        let disk = SimDisk::new(seed);
        let store = open(std::slice::from_ref(&disk));
        let config = TopicConfig::new().flush(Flush::Os).segment_bytes(4096);
        store.create_topic("t", config).unwrap();
        let partition = store.partition("t", 0).unwrap();
        for _ in 0..4 {
            partition.append(&[Record::new(&[7; 3000])], Acks::All).unwrap();
            store.run_background();
        }
        disk.fail_sync(1, SyncFault::CleanedPages);
        assert!(store.handle.shared.cores()[0].1.make_durable().is_err());
        store.run_background();
        disk.kill();
        drop((partition, store));
        disk.process_restart();
        let store = open(std::slice::from_ref(&disk));
        store.handle.shared.cores()[0].1.make_durable().unwrap();
        disk.kill();
        drop(store);
        disk.power_loss();
        let store = open(std::slice::from_ref(&disk));
        let report = store.verify(VerifyOptions::new()).unwrap();
        assert_eq!((report.records, report.damages.len()), (4, 0), "seed {seed}: {report:?}");
    }
}

/// It was noted by nobody: there are no others to be looked after, and so the partition was passed over.
#[test]
fn s8_a_failed_flush_of_the_only_replica_that_could_not_be_noted_is_noted_later() {
    let disk = SimDisk::new(0);
    let store = open(std::slice::from_ref(&disk));
    store.create_topic("t", TopicConfig::new().flush(Flush::Os)).unwrap();
    append(&store).unwrap();
    let shared = &store.handle.shared;
    let (topic, core) = shared.cores().pop().expect("one partition");
    disk.fail_sync(1, SyncFault::CleanedPages);
    assert!(core.make_durable().is_err());
    shared.control.take().iter().for_each(|core| core.control_taken());
    let proposal = core.proposal(0).expect("its tail is suspect");
    core.refuse(&proposal, &Error::Closed, 0);
    until(&store, "it was noted", || suspects(shared, &topic) == [(DiskId(0), Offset(0))]);
}

/// All of it was suspect then, also what had been flushed: nobody could lead any more.
#[test]
fn s8_a_second_flush_that_fails_after_its_leader_was_fenced_takes_back_no_more() {
    let disks = [0, 1].map(SimDisk::new);
    let store = open(&disks);
    let config = TopicConfig::new().replication_factor(2).segment_bytes(16 << 10);
    store.create_topic("t", config.flush(Flush::OnAck)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    for _ in 0..4 {
        partition.append(&[Record::new(&[7; 10_000])], Acks::All).unwrap();
    }
    let shared = &store.handle.shared;
    let core = shared.cores().pop().expect("one partition").1;
    disks[0].hang(Hang::Syncs);
    thread::scope(|scope| {
        let tended = scope.spawn(|| core.tend(DiskId(0), shared.clock.now(), false));
        while disks[0].held_calls() == 0 {
            assert!(!tended.is_finished(), "it settles a segment");
            thread::yield_now();
        }
        core.fence_replica(DiskId(0), &Error::Closed);
        disks[0].fail_sync(1, SyncFault::CleanedPages);
        disks[0].answer();
    });
    let suspects = core.proposal(0).expect("another can lead").suspects;
    assert!(suspects.iter().all(|suspect| *suspect == (DiskId(0), Offset(4))), "{suspects:?}");
    assert_eq!(suspects.len(), 2);
}

fn eligible(shared: &Shared, topic: &Topic) -> Vec<DiskId> {
    let metadata = shared.metadata.lock();
    metadata.state().partition(topic.id, 0).unwrap().eligible.clone()
}

/// Two replicas, both of which have to acknowledge, at a level that leaves flushing for later. Who stays eligible?
fn two_that_are_required(fails: fn(&Store, &Core, &[SimDisk])) -> Vec<DiskId> {
    let disks = [0, 1].map(SimDisk::new);
    let store = open(&disks);
    let config = TopicConfig::new().replication_factor(2).min_insync_replicas(2);
    store.create_topic("t", config.flush(Flush::Os).segment_bytes(4096)).unwrap();
    // The first one is flushed as it goes to the followers.
    (0..2).for_each(|at| assert_eq!(append(&store).unwrap(), Offset(at)));
    let shared = &store.handle.shared;
    let (topic, core) = shared.cores().pop().expect("one partition");
    fails(&store, &core, &disks);
    shared.settle_one(&core);
    assert!(!suspects(shared, &topic).is_empty());
    eligible(shared, &topic)
}

/// It would lead without what it lost, for want of another, and as one that has all of it.
#[test]
fn s8_repl_24_who_may_lack_what_was_acknowledged_does_not_stay_eligible() {
    let in_sync = |_: &Store, core: &Core, disks: &[SimDisk]| {
        disks[1].fail_sync(1, SyncFault::Reverted);
        core.flush_follower(DiskId(1));
    };
    assert_eq!(two_that_are_required(in_sync), [], "a follower");
    let behind = |store: &Store, core: &Core, disks: &[SimDisk]| {
        let shared = &store.handle.shared;
        let (topic, _) = shared.cores().pop().expect("one partition");
        disks[1].set_free_bytes(Some(0));
        let partition = store.partition("t", 0).unwrap();
        partition.append(&[Record::new(&[7; 8000])], Acks::Leader).unwrap();
        until(store, "its disk is full", || eligible(shared, &topic) == [DiskId(1)]);
        disks[1].fail_sync(1, SyncFault::Reverted);
        core.flush_follower(DiskId(1));
    };
    assert_eq!(two_that_are_required(behind), [], "one that was eligible");
    let leads = |_: &Store, core: &Core, _: &[SimDisk]| {
        core.fence_replica(DiskId(0), &Error::Closed);
    };
    let gone = |_: &Store, core: &Core, _: &[SimDisk]| {
        core.fence_replica(DiskId(1), &Error::Closed);
    };
    assert_eq!(two_that_are_required(gone), [], "one whose disk is lost");
    assert_eq!(two_that_are_required(leads), [], "a leader");
}

/// It would be opened as if its tail could be believed.
#[test]
fn s8_a_replica_that_failed_is_opened_anew_once_that_is_written_down_and_not_before() {
    let disks = [0, 1].map(SimDisk::new);
    let store = open(&disks);
    let config = TopicConfig::new().replication_factor(2).flush(Flush::Os);
    store.create_topic("t", config).unwrap();
    (0..2).for_each(|at| assert_eq!(append(&store).unwrap(), Offset(at)));
    let shared = &store.handle.shared;
    let (topic, core) = shared.cores().pop().expect("one partition");
    core.fence_replica(DiskId(1), &Error::Closed);
    let now = shared.clock.now();
    assert_eq!(core.failed_replicas(now), []);
    shared.settle_one(&core);
    assert_eq!(suspects(shared, &topic), [(DiskId(1), Offset(1))]);
    assert_eq!(core.failed_replicas(now), [DiskId(1)]);
}

/// It was written down by an election in which nobody else could lead, and the replica stayed in sync: once it was opened anew, it
/// led without what it had lost.
#[test]
fn s8_inv_02_who_may_lack_what_was_acknowledged_is_in_sync_no_more_however_that_is_written_down() {
    let disks = [0, 1].map(SimDisk::new);
    let clock = Clock::manual(Timestamp(0));
    let builder = Store::builder().clock(clock.clone()).append_timeout(Duration::ZERO);
    let builder = disks.iter().fold(builder, |all, disk| all.simulated_disk(disk.clone()));
    let store = builder.open().unwrap();
    let config = TopicConfig::new().replication_factor(2).flush(Flush::Os);
    store.create_topic("t", config).unwrap();
    (0..3).for_each(|at| assert_eq!(append(&store).unwrap(), Offset(at)));
    disks[1].fail_sync(1, SyncFault::CleanedPages);
    let (topic, core) = store.handle.shared.cores().pop().expect("one partition");
    core.flush_follower(DiskId(1));
    // Nobody has settled that yet.
    store.stop_disk(DiskId(0)).unwrap();
    assert_eq!(eligible(&store.handle.shared, &topic), [DiskId(0)]);
    for _ in 0..20 {
        clock.advance(Duration::from_secs(1));
        store.run_background();
    }
    assert_eq!(suspects(&store.handle.shared, &topic), [], "it was opened anew");
    let refused = append(&store).unwrap_err();
    assert!(matches!(refused, Error::NoLeader { .. }), "{refused}");
    store.start_disk(DiskId(0)).unwrap();
    assert_eq!(append(&store).unwrap(), Offset(3), "all that was acknowledged is there");
}

/// The record that takes it out of the in-sync set comes behind the one that says so, and a crash may tear that off.
#[test]
fn s8_who_may_lack_what_was_acknowledged_leads_at_no_opening_either() {
    let disks = [0, 1].map(SimDisk::new);
    disks[1].share_process(&disks[0]);
    let store = open(&disks);
    let config = TopicConfig::new().replication_factor(2).flush(Flush::Os);
    store.create_topic("t", config).unwrap();
    (0..3).for_each(|at| assert_eq!(append(&store).unwrap(), Offset(at)));
    let id = store.handle.shared.cores()[0].0.id;
    let (disk, durable) = (DiskId(1), Offset(1));
    let record = MetadataRecord::ReplicaSuspect { id, partition: 0, disk, durable };
    store.handle.shared.metadata.lock().commit(&record).unwrap();
    disks[0].kill();
    drop(store);
    for _ in 0..2 {
        disks.iter().for_each(SimDisk::process_restart);
        let builder = Store::builder().simulated_disk(disks[1].clone()).allow_missing(DiskId(0));
        let store = builder.open().unwrap();
        for _ in 0..2 {
            let refused = append(&store).unwrap_err();
            assert!(matches!(refused, Error::NoLeader { .. }), "{refused}");
        }
        disks[1].kill();
        drop(store);
    }
    disks.iter().for_each(SimDisk::process_restart);
    let store = open(&disks);
    assert_eq!(append(&store).unwrap(), Offset(3), "all that was acknowledged is there");
}

/// Who is back first need not be the one that has most.
#[test]
fn s8_where_every_replica_has_failed_nobody_leads_before_all_are_there() {
    let disks = [0, 1].map(SimDisk::new);
    let store = open(&disks);
    let config = TopicConfig::new().replication_factor(2).flush(Flush::Os);
    store.create_topic("t", config).unwrap();
    // The first one is flushed as it goes to the followers.
    (0..2).for_each(|at| assert_eq!(append(&store).unwrap(), Offset(at)));
    let shared = store.shared();
    let (topic, core) = shared.cores().pop().expect("one partition");
    core.fence_replica(DiskId(1), &Error::Closed);
    core.fence_replica(DiskId(0), &Error::Closed);
    shared.settle_one(&core);
    let known = shared.metadata.lock().state().partition(topic.id, 0).cloned().unwrap();
    assert_eq!((known.leader, &*known.isr, &*known.eligible), (None, &[][..], &[][..]));
    for (disk, leads) in [(DiskId(1), false), (DiskId(0), true)] {
        let returned = opened_anew(shared, &topic, &core, disk);
        core.return_replica(&returned, false, shared.clock.now()).unwrap();
        shared.settle_one(&core);
        assert_eq!(core.leader().is_some(), leads, "{disk} is back");
    }
    assert_eq!(append(&store).unwrap(), Offset(2));
}
