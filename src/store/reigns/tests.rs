//! Elections, settling and disks that fail or hang in between, on simulated disks.

mod damage;
mod flushes;
mod meanwhile;
mod suspects;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::config::TopicUpdate;
use crate::error::Result;
use crate::partition::ReadOptions;
use crate::partition::{Replica, Ticket};
use crate::record::Record;
use crate::storage::simulated::{Fault, Hang, SimDisk, SyncFault};
use crate::store::recover::replica;
use crate::store::{Partition, Store, Topic, TopicConfig, VerifyOptions};
use crate::types::{
    Acks, DiskId, Flush, LeaderEpoch, Offset, ProducerEpoch, ProducerId, ProducerSequence,
    StorageMode,
};

fn open(disks: &[SimDisk]) -> Store {
    let builder = Store::builder();
    let store = disks.iter().fold(builder, |all, disk| all.simulated_disk(disk.clone()));
    store.open().expect("the disks are sound")
}

fn append(store: &Store) -> Result<Offset> {
    let partition = store.partition("t", 0)?;
    Ok(partition.append(&[Record::new("v")], Acks::All)?.offsets.start)
}

/// A leader is elected, and fails before it begins; `fails` makes the election, on disks 0 to 2.
fn elected_and_gone(gone: &[DiskId], fails: fn(&Core)) {
    let disks = [0, 1, 2].map(SimDisk::new);
    for disk in &disks[1..] {
        disk.share_process(&disks[0]);
    }
    let store = open(&disks);
    store.create_topic("t", TopicConfig::new().replication_factor(3)).unwrap();
    (0..3).for_each(|at| assert_eq!(append(&store).unwrap(), Offset(at)));
    let shared = &store.handle.shared;
    let (topic, core) = shared.cores().pop().expect("one partition");
    let elected = {
        let _postponed = postpone();
        let mut metadata = shared.metadata.lock();
        fails(&core);
        let now = shared.clock.now();
        let proposal = core.proposal(0).expect("another can lead");
        let elected = proposal.leader.expect("another can lead");
        assert_eq!((elected, proposal.epoch), (DiskId(1), LeaderEpoch(1)));
        metadata.commit_all(&records_of(topic.id, core.partition(), &proposal)).unwrap();
        gone.iter().for_each(|disk| assert!(core.stop_replica(*disk, "gone")));
        core.install(proposal, now);
        elected
    };
    shared.settle_one(&core);
    let known = shared.metadata.lock().state().partition(topic.id, 0).cloned().unwrap();
    assert!(known.leader.is_some_and(|leader| leader != elected), "{:?}", known.leader);
    assert_eq!(known.leader, core.leader(), "metadata and partition agree");
    assert_eq!((known.leader_epoch, core.leader_epoch()), (LeaderEpoch(2), LeaderEpoch(2)));
    assert!(!known.isr.contains(&elected));
    assert_eq!(append(&store).unwrap(), Offset(3));
    drop((core, store));
    let store = open(&disks);
    let partition = store.partition("t", 0).unwrap();
    assert_eq!(partition.high_watermark(), Offset(4));
    drop(partition);
    store.close(Duration::from_secs(1)).unwrap();
}

#[test]
fn epoch_02_a_leader_that_fails_before_it_begins_uses_up_its_epoch() {
    let failed = |core: &Core| {
        core.fence_replica(DiskId(0), &Error::Closed);
    };
    elected_and_gone(&[DiskId(1)], failed);
}

#[test]
fn epoch_02_a_leader_whose_successor_fails_before_it_begins_leads_again_or_another_does() {
    elected_and_gone(&[DiskId(1)], |core| core.step_down(DiskId(0)));
    elected_and_gone(&[DiskId(1), DiskId(2)], |core| core.step_down(DiskId(0)));
}

/// What was to be written down of a replica that is gone was refused each time, with all that came with it.
#[test]
fn a_replica_that_failed_just_before_it_was_moved_away_holds_up_no_later_election() {
    let disks = [0, 1, 2].map(SimDisk::new);
    let store = open(&disks);
    store.create_topic("t", TopicConfig::new().replication_factor(3)).unwrap();
    append(&store).unwrap();
    let shared = &store.handle.shared;
    let (topic, core) = shared.cores().pop().expect("one partition");
    let (id, replicas) = (topic.id, vec![DiskId(0), DiskId(1)]);
    core.fence_replica(DiskId(2), &Error::Closed);
    let moved = MetadataRecord::ReplicasChanged { id, partition: 0, replicas };
    shared.metadata.lock().commit(&moved).unwrap();
    core.set_replicas(&[DiskId(0), DiskId(1)], Vec::new(), shared.clock.now());
    assert_eq!(core.in_sync(), [DiskId(0), DiskId(1)]);
    shared.settle_one(&core);
    store.stop_disk(DiskId(0)).unwrap();
    assert_eq!(core.leader(), Some(DiskId(1)));
    assert_eq!(append(&store).unwrap(), Offset(1));
}

/// As above: it was still named as one that might lead.
#[test]
fn a_replica_that_might_have_led_and_was_moved_away_holds_up_no_later_election() {
    let disks = [0, 1, 2].map(SimDisk::new);
    let store = open(&disks);
    let config = TopicConfig::new().replication_factor(3).min_insync_replicas(2);
    store.create_topic("t", config).unwrap();
    append(&store).unwrap();
    let shared = &store.handle.shared;
    let (topic, core) = shared.cores().pop().expect("one partition");
    for disk in [DiskId(1), DiskId(2)] {
        assert!(core.stop_replica(disk, "away"));
    }
    shared.settle_one(&core);
    let known = || shared.metadata.lock().state().partition(topic.id, 0).cloned().unwrap();
    assert_eq!(known().eligible, [DiskId(1), DiskId(2)]);
    let (id, replicas) = (topic.id, vec![DiskId(0), DiskId(1)]);
    let moved = MetadataRecord::ReplicasChanged { id, partition: 0, replicas };
    shared.metadata.lock().commit(&moved).unwrap();
    core.set_replicas(&[DiskId(0), DiskId(1)], Vec::new(), shared.clock.now());
    core.stop_leader(DiskId(0), &Error::Closed);
    shared.settle_one(&core);
    assert_eq!((known().leader, known().eligible), (None, vec![DiskId(0), DiskId(1)]));
}

/// It would count among those that follow, in a place where nobody looks for it any more.
#[test]
fn a_replica_that_is_opened_while_it_is_moved_away_is_let_go_of() {
    let disks = [0, 1, 2].map(SimDisk::new);
    let store = open(&disks);
    store.create_topic("t", TopicConfig::new().replication_factor(3)).unwrap();
    append(&store).unwrap();
    let shared = &store.handle.shared;
    let (topic, core) = shared.cores().pop().expect("one partition");
    assert!(core.stop_replica(DiskId(2), "away"));
    shared.settle_one(&core);
    let returned = opened_anew(shared, &topic, &core, DiskId(2));
    let (id, replicas) = (topic.id, vec![DiskId(0), DiskId(1)]);
    let moved = MetadataRecord::ReplicasChanged { id, partition: 0, replicas };
    shared.metadata.lock().commit(&moved).unwrap();
    core.set_replicas(&[DiskId(0), DiskId(1)], Vec::new(), shared.clock.now());
    core.return_replica(&returned, false, shared.clock.now()).unwrap();
    assert!(core.readers().iter().all(|(disk, _)| *disk != DiskId(2)));
}

/// What it had been told of the metadata since it came into service counted for nothing: it led without what was acknowledged.
#[test]
fn s14_a_disk_that_is_started_as_it_was_before_does_not_lead() {
    let disks = [0, 1].map(SimDisk::new);
    let store = open(&disks);
    let topics = ["t", "u"].map(|name| {
        store.create_topic(name, TopicConfig::new()).unwrap();
        store.partition(name, 0).unwrap()
    });
    let send = |partition: &Partition| partition.append(&[Record::new("v")], Acks::All);
    topics.iter().for_each(|partition| _ = send(partition).unwrap());
    let cores = store.shared().cores();
    let on_it = cores.iter().find(|(_, core)| core.leader() == Some(DiskId(1)));
    let name = Arc::clone(&on_it.expect("each has one").0.name);
    let partition = store.partition(&name, 0).unwrap();
    let paths = disks[1].files();
    let before: Vec<_> = paths.iter().map(|path| (path, disks[1].read_file(path))).collect();
    store.create_topic("later", TopicConfig::new()).unwrap();
    assert_eq!(send(&partition).unwrap().offsets.start, Offset(1));
    store.stop_disk(DiskId(1)).unwrap();
    disks[1].files().iter().for_each(|path| disks[1].remove_file(path));
    before.iter().for_each(|(path, bytes)| disks[1].write_file(path, bytes));
    store.start_disk(DiskId(1)).unwrap();
    let refused = send(&partition);
    assert!(matches!(refused, Err(Error::NoLeader { .. })), "{refused:?}");
}

/// Each saw the other in service, and none was left, nor could any be started again.
#[test]
fn of_two_disks_that_are_stopped_at_once_one_stays() {
    let disks = [0, 1].map(SimDisk::new);
    let store = open(&disks);
    store.create_topic("t", TopicConfig::new().replication_factor(2)).unwrap();
    append(&store).unwrap();
    disks[0].hang(Hang::Everything);
    let stopped = thread::scope(|scope| {
        let first = scope.spawn(|| store.stop_disk(DiskId(0)));
        while disks[0].held_calls() == 0 {
            thread::yield_now();
        }
        let second = scope.spawn(|| store.stop_disk(DiskId(1)));
        let begun = Instant::now();
        while !second.is_finished() && begun.elapsed() < Duration::from_secs(10) {
            thread::yield_now();
        }
        disks[0].answer();
        [first.join().unwrap().is_ok(), second.join().unwrap().is_ok()]
    });
    assert_eq!(stopped, [true, false]);
    assert_eq!(append(&store).unwrap(), Offset(1));
}

/// Bounded, lest a test that fails does not end.
fn until(store: &Store, what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(30), "{what}");
        store.run_background();
    }
}

/// The election cut its log under the flush, which an assertion forbids: that ended the thread which held elections.
#[test]
fn a_follower_that_is_to_be_cut_while_its_flush_is_on_its_way_is_opened_anew() {
    let disks = [0, 1, 2].map(SimDisk::new);
    let (store, tail) = with_a_tail(&disks);
    let shared = &store.handle.shared;
    let (topic, core) = shared.cores().pop().expect("one partition");
    let proposal = elect(shared, &topic, &core, DiskId(1), &[DiskId(1)]);
    disks[2].hang(Hang::Syncs);
    let installed = thread::scope(|scope| {
        scope.spawn(|| core.flush_follower(DiskId(2)));
        while disks[2].held_calls() == 0 {
            thread::yield_now();
        }
        core.fence_replica(DiskId(0), &Error::Closed);
        let install = AssertUnwindSafe(|| core.install(proposal, shared.clock.now()));
        let installed = catch_unwind(install);
        let is_free = core.is_free(DiskId(2));
        disks[2].heal();
        assert!(!is_free, "two would write to one file");
        installed
    });
    installed.expect("no election ends in a panic");
    assert_eq!(append(&store).unwrap(), Offset(1));
    // What another has in its place does not acknowledge it.
    let told = tail.wait(Duration::from_secs(1));
    assert!(matches!(told, Err(Error::NoLeader { .. })), "{told:?}");
    until(&store, "it is in sync again", || core.in_sync().contains(&DiskId(2)));
    let ends = core.readers().into_iter().map(|(_, log)| log.segments().last().unwrap().end());
    assert!(ends.into_iter().all(|end| end == Offset(2)));
}

/// A store of these disks whose second has a record less than the leader, and must be followed up.
fn with_a_tail(disks: &[SimDisk]) -> (Store, Ticket) {
    let store = open(disks);
    let replicas = u16::try_from(disks.len()).unwrap();
    let config = TopicConfig::new().replication_factor(replicas).flush(Flush::OnAck);
    store.create_topic("t", config).unwrap();
    append(&store).unwrap();
    // Opened anew, a log has nothing at hand for the next batch.
    store.stop_disk(DiskId(1)).unwrap();
    store.start_disk(DiskId(1)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let tail = partition.append_nowait(&[Record::new("tail")], Acks::All).unwrap();
    (store, tail)
}

/// Elects by hand.
fn elect(shared: &Shared, topic: &Topic, core: &Core, leader: DiskId, isr: &[DiskId]) -> Proposal {
    let proposal = Proposal {
        leader: Some(leader),
        epoch: LeaderEpoch(core.leader_epoch().0 + 1),
        isr: isr.to_vec(),
        eligible: Vec::new(),
        start: Some(Offset(1)),
        high_watermark: Offset(1),
        suspects: Vec::new(),
        lost: None,
    };
    let records = records_of(topic.id, core.partition(), &proposal);
    shared.metadata.lock().commit_all(&records).unwrap();
    proposal
}

/// It asked no second time: until somebody appended, nobody took over.
#[test]
fn a_leader_that_steps_down_and_is_refused_once_hands_over_later() {
    let disks = [0, 1, 2].map(SimDisk::new);
    let store = open(&disks);
    store.create_topic("t", TopicConfig::new().replication_factor(3)).unwrap();
    append(&store).unwrap();
    let shared = &store.handle.shared;
    let core = shared.cores().pop().expect("one partition").1;
    core.step_down(DiskId(0));
    shared.control.take().iter().for_each(|core| core.control_taken());
    let proposal = core.proposal(0).expect("another can lead");
    core.refuse(&proposal, &Error::Closed, 0);
    until(&store, "another leads", || core.leader() == Some(DiskId(1)));
}

/// It kept its files, and their room on the disk, for as long as there was a handle.
#[test]
fn a_replica_that_is_opened_while_its_topic_is_deleted_is_let_go_of() {
    let disks = [0, 1].map(SimDisk::new);
    let store = open(&disks);
    store.create_topic("t", TopicConfig::new().replication_factor(2)).unwrap();
    append(&store).unwrap();
    let shared = &store.handle.shared;
    let (topic, core) = shared.cores().pop().expect("one partition");
    core.fence_replica(DiskId(1), &Error::Closed);
    shared.settle_one(&core);
    let returned = opened_anew(shared, &topic, &core, DiskId(1));
    store.delete_topic("t").unwrap();
    core.return_replica(&returned, false, shared.clock.now()).unwrap();
    let added = vec![Arc::clone(&returned)];
    core.set_replicas(&[DiskId(0), DiskId(1)], added, shared.clock.now());
    drop(returned);
    assert!(core.readers().iter().all(|(disk, _)| *disk == DiskId(0)));
    for disk in &disks {
        assert!(!disk.files().iter().any(|path| path.starts_with("topics/")));
    }
}

/// What it has and nobody else would be lost, and nothing has failed.
#[test]
fn a_leader_that_steps_down_hands_over_to_nobody_who_lacks_a_record() {
    let disks = [0, 1].map(SimDisk::new);
    let store = open(&disks);
    let config = TopicConfig::new().replication_factor(2).flush(Flush::Os);
    store.create_topic("t", config.segment_bytes(4096)).unwrap();
    append(&store).unwrap();
    let core = store.handle.shared.cores().pop().expect("one partition").1;
    let partition = store.partition("t", 0).unwrap();
    // It begins a segment, which the follower does when it is looked after.
    partition.append(&[Record::new(&[7; 8000])], Acks::Leader).unwrap();
    core.step_down(DiskId(0));
    let proposal = core.proposal(0);
    let stays = proposal.as_ref().is_none_or(|other| other.leader == Some(DiskId(0)));
    assert!(stays, "{proposal:?}");
    assert_eq!(core.in_sync(), [DiskId(0), DiskId(1)]);
    assert_eq!(append(&store).unwrap(), Offset(2));
    store.stop_disk(DiskId(0)).unwrap();
    assert_eq!((core.leader(), partition.log_end_offset()), (Some(DiskId(1)), Offset(3)));
}

/// Its log would wait for that segment as a follower's, for good.
#[test]
fn a_leader_that_begins_a_segment_hands_over_when_that_is_done() {
    let disks = [0, 1].map(SimDisk::new);
    let store = open(&disks);
    let config = TopicConfig::new().replication_factor(2).flush(Flush::Os);
    store.create_topic("t", config.segment_bytes(4096)).unwrap();
    append(&store).unwrap();
    let core = store.handle.shared.cores().pop().expect("one partition").1;
    let partition = store.partition("t", 0).unwrap();
    disks[0].hang(Hang::Everything);
    thread::scope(|scope| {
        let large = scope.spawn(|| partition.append(&[Record::new(&[7; 8000])], Acks::All));
        while disks[0].held_calls() == 0 {
            thread::yield_now();
        }
        let is_free = core.is_free(DiskId(0));
        core.step_down(DiskId(0));
        let proposal = core.proposal(0);
        disks[0].heal();
        assert_eq!(large.join().unwrap().unwrap().offsets.start, Offset(1));
        assert!(!is_free, "two would write to one file");
        assert_eq!(proposal, None);
    });
    until(&store, "another leads", || core.leader() == Some(DiskId(1)));
    assert_eq!(append(&store).unwrap(), Offset(2));
    until(&store, "it follows", || core.in_sync().len() == 2);
}

/// It slept on until its time was over, and heard that.
#[test]
fn an_append_that_waits_for_another_replica_hears_that_its_topic_is_gone() {
    let disks = [0, 1].map(SimDisk::new);
    let store = open(&disks);
    store.create_topic("t", TopicConfig::new().replication_factor(2)).unwrap();
    append(&store).unwrap();
    let core = store.handle.shared.cores().pop().expect("one partition").1;
    disks[1].hang(Hang::Syncs);
    thread::scope(|scope| {
        let flushes = scope.spawn(|| append(&store));
        while disks[1].held_calls() == 0 {
            thread::yield_now();
        }
        // The disk is asked already: this one sleeps.
        let sleeps = scope.spawn(|| append(&store));
        while core.log_end() < Offset(3) {
            thread::yield_now();
        }
        (0..100).for_each(|_| thread::yield_now());
        core.delete();
        let told = sleeps.join().unwrap();
        disks[1].heal();
        assert!(matches!(told, Err(Error::UnknownTopicOrPartition { .. })), "{told:?}");
        let _ = flushes.join();
    });
}

/// It would lie where the new leader has something else.
#[test]
fn inv_03_what_was_read_of_a_leader_is_not_copied_under_the_next() {
    let disks = [0, 1, 2].map(SimDisk::new);
    let builder = Store::builder().storage_mode(StorageMode::Write);
    let all = disks.iter().fold(builder, |all, disk| all.simulated_disk(disk.clone()));
    let store = all.open().unwrap();
    let config = TopicConfig::new().replication_factor(3).segment_bytes(4096);
    store.create_topic("t", config.flush(Flush::OnAck)).unwrap();
    append(&store).unwrap();
    let shared = &store.handle.shared;
    let (topic, core) = shared.cores().pop().expect("one partition");
    let partition = store.partition("t", 0).unwrap();
    // It begins a segment, which the followers do when they are looked after.
    partition.append(&[Record::new(&[7; 8000])], Acks::Leader).unwrap();
    let proposal = elect(shared, &topic, &core, DiskId(1), &[DiskId(1), DiskId(2)]);
    disks[0].hang(Hang::Everything);
    thread::scope(|scope| {
        let follows = scope.spawn(|| core.tend(DiskId(2), shared.clock.now(), false));
        while disks[0].held_calls() == 0 {
            assert!(!follows.is_finished(), "it reads the leader's log");
            thread::yield_now();
        }
        core.fence_replica(DiskId(0), &Error::Closed);
        core.install(proposal, shared.clock.now());
        disks[0].heal();
    });
    assert_eq!(append(&store).unwrap(), Offset(1));
    until(&store, "it is in sync", || core.in_sync().contains(&DiskId(2)));
    store.stop_disk(DiskId(1)).unwrap();
    let records = partition.read(Offset(1), ReadOptions::new()).unwrap();
    let values: Vec<_> = records.iter().map(|record| record.value().unwrap()).collect();
    assert_eq!(values, [b"v"]);
}

/// Whoever waits for it asks only once.
#[test]
fn a_flush_of_a_follower_that_is_asked_for_amid_another_is_made_behind_that() {
    let disks = [0, 1].map(SimDisk::new);
    let store = open(&disks);
    let config = TopicConfig::new().replication_factor(2).flush(Flush::OnAck);
    store.create_topic("t", config).unwrap();
    append(&store).unwrap();
    let core = store.handle.shared.cores().pop().expect("one partition").1;
    let partition = store.partition("t", 0).unwrap();
    let send = || partition.append_nowait(&[Record::new("v")], Acks::All).unwrap();
    let _first = send();
    disks[1].hang(Hang::Syncs);
    let _second = thread::scope(|scope| {
        scope.spawn(|| core.flush_follower(DiskId(1)));
        while disks[1].held_calls() == 0 {
            thread::yield_now();
        }
        let second = send();
        core.flush_follower(DiskId(1));
        disks[1].heal();
        second
    });
    assert!(core.has_flushed(DiskId(1), Offset(3)));
}

/// The store after the process has died, without its first disk.
fn on_the_second_alone(disks: &[SimDisk]) -> Store {
    disks.iter().for_each(SimDisk::process_restart);
    let builder = Store::builder().simulated_disk(disks[1].clone());
    builder.allow_missing(DiskId(0)).open().unwrap()
}

/// What is decided while a follower cannot be told holds for it when it is back.
#[test]
fn s22_a_follower_that_is_busy_while_its_topic_changes_is_opened_anew_and_goes_by_the_change() {
    let disks = [0, 1].map(SimDisk::new);
    let (store, tail) = with_a_tail(&disks);
    let shared = &store.handle.shared;
    let (topic, core) = shared.cores().pop().expect("one partition");
    disks[1].hang(Hang::Everything);
    thread::scope(|scope| {
        scope.spawn(|| core.tend(DiskId(1), shared.clock.now(), false));
        while disks[1].held_calls() == 0 {
            thread::yield_now();
        }
        let is_free = core.is_free(DiskId(1));
        let begun = Instant::now();
        let changed = TopicUpdate::new().flush(Flush::Os).apply(&topic.config.read());
        core.set_settings(shared.core_settings(&Arc::new(changed)));
        assert!(begun.elapsed() < Duration::from_secs(10), "it waited for the follower");
        disks[1].heal();
        assert!(!is_free, "two would write to one file");
    });
    store.alter_topic("t", TopicUpdate::new().flush(Flush::Os)).unwrap();
    until(&store, "it is in sync again", || core.in_sync().len() == 2);
    assert_eq!(append(&store).unwrap(), Offset(2));
    disks.iter().for_each(SimDisk::kill);
    drop((tail, topic, core, store));
    let partition = on_the_second_alone(&disks).partition("t", 0).unwrap();
    assert_eq!(partition.log_end_offset(), Offset(3), "it was acknowledged");
}

/// A move, a change of the flush level and the end of a table's rewriting wait so.
#[test]
fn s22_waiting_for_all_disks_to_flush_ends_while_one_hangs_just_there() {
    for hanging in [0, 1] {
        let disks = [0, 1].map(SimDisk::new);
        let builder =
            disks.iter().fold(Store::builder(), |all, disk| all.simulated_disk(disk.clone()));
        let builder = builder.replica_lag_max(Duration::from_secs(600));
        let store = builder.append_timeout(Duration::from_millis(300)).threads().open().unwrap();
        let config = TopicConfig::new().replication_factor(2).flush(Flush::Os);
        store.create_topic("t", config).unwrap();
        append(&store).unwrap();
        let core = store.handle.shared.cores().pop().expect("one partition").1;
        disks[hanging].hang(Hang::Syncs);
        let begun = Instant::now();
        let outcome = core.make_durable();
        let took = begun.elapsed();
        disks[hanging].heal();
        assert!(matches!(outcome, Err(Error::TimedOut { .. })), "{outcome:?}");
        assert!(took < Duration::from_secs(10), "{took:?}");
        core.make_durable().unwrap();
    }
}

/// Opens the replica on `disk` anew; it is not back yet.
fn opened_anew(shared: &Shared, topic: &Topic, core: &Core, disk: DiskId) -> Arc<Replica> {
    let described = shared.metadata.lock().state().partition(topic.id, 0).cloned().unwrap();
    let (disk, config) = (shared.disk(disk).unwrap(), Arc::clone(&*topic.config.read()));
    let opened =
        shared.open_replica(topic, core.partition(), &disk, &described, &config, false).unwrap();
    replica(&disk, Some(opened.0.log))
}

/// Its files had gone under the flush: that was told as a disk that fails.
#[test]
fn an_append_that_meets_the_deletion_of_its_topic_is_told_of_that_and_no_disk_is_blamed() {
    let store = Store::in_memory(1).unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let ticket = partition.append_nowait(&[Record::new("v")], Acks::All).unwrap();
    let core = store.handle.shared.cores().pop().expect("one partition").1;
    core.delete();
    core.fence_replica(DiskId(0), &Error::Closed);
    let told = ticket.wait(Duration::from_secs(60));
    assert!(matches!(told, Err(Error::UnknownTopicOrPartition { .. })), "{told:?}");
    let told = partition.append(&[Record::new("v")], Acks::All);
    assert!(matches!(told, Err(Error::UnknownTopicOrPartition { .. })), "{told:?}");
    assert!(!store.events().any(|event| matches!(event.kind, EventKind::ReplicaFenced { .. })));
}

/// Its last batch was not held against the leader's log, which begins behind it: whoever wrote it was known by it.
#[test]
fn a_replica_that_is_back_and_ends_where_the_log_begins_is_told_anew_who_wrote() {
    let disks = [0, 1].map(SimDisk::new);
    let store = open(&disks);
    store.create_topic("t", TopicConfig::new().replication_factor(2)).unwrap();
    append(&store).unwrap();
    let shared = &store.handle.shared;
    let (topic, core) = shared.cores().pop().expect("one partition");
    core.fence_replica(DiskId(1), &Error::Closed);
    shared.settle_one(&core);
    assert_eq!(core.in_sync(), [DiskId(0)]);
    // The batch of a leader that is gone.
    let other = Store::in_memory(1).unwrap();
    other.create_topic("t", TopicConfig::new()).unwrap();
    append(&other).unwrap();
    let (id, epoch) = (ProducerId(7), ProducerEpoch(0));
    let first = ProducerSequence { id, epoch, sequence: 0 };
    let others = other.partition("t", 0).unwrap();
    others.append_idempotent(first, &[Record::new("lost")], Acks::All).unwrap();
    let others = other.handle.shared.cores().pop().expect("one partition").1.reader();
    let lost = others.read(Offset(1), Offset(2), 1 << 20).unwrap().unwrap().bytes;
    let open_log = || {
        let described = shared.metadata.lock().state().partition(topic.id, 0).cloned().unwrap();
        let (disk, config) = (shared.disk(DiskId(1)).unwrap(), topic.config.read().clone());
        let name = core.partition();
        let opened = shared.open_replica(&topic, name, &disk, &described, &config, false);
        opened.unwrap().0.log
    };
    let mut stale = open_log();
    assert!(stale.append_batches(&lost, shared.clock.now()).unwrap());
    stale.producer_snapshot(true).expect("somebody wrote").write().unwrap();
    stale.finish(shared.clock.now());
    drop(stale);
    append(&store).unwrap();
    store.partition("t", 0).unwrap().delete_records(Offset(2)).unwrap();
    let log = open_log();
    assert!(log.producer(id).is_some());
    let returned = replica(&shared.disk(DiskId(1)).unwrap(), Some(log));
    core.return_replica(&returned, false, shared.clock.now()).unwrap();
    until(&store, "it is in sync", || core.in_sync().len() == 2);
    store.stop_disk(DiskId(0)).unwrap();
    until(&store, "it leads", || core.leader() == Some(DiskId(1)));
    assert!(core.producer(id).is_none());
}

/// It was counted twice: once as it had failed, which never caught up again.
#[test]
fn a_leader_that_fails_and_is_back_before_another_is_elected_follows_that_one() {
    let disks = [0, 1].map(SimDisk::new);
    let store = open(&disks);
    store.create_topic("t", TopicConfig::new().replication_factor(2)).unwrap();
    append(&store).unwrap();
    let shared = &store.handle.shared;
    let (topic, core) = shared.cores().pop().expect("one partition");
    core.fence_replica(DiskId(0), &Error::Closed);
    let returned = opened_anew(shared, &topic, &core, DiskId(0));
    core.return_replica(&returned, false, shared.clock.now()).unwrap();
    let proposal = elect(shared, &topic, &core, DiskId(1), &[DiskId(0), DiskId(1)]);
    core.install(proposal, shared.clock.now());
    let lag_max = Duration::from_secs(1);
    for round in 1..10 {
        assert_eq!(append(&store).unwrap(), Offset(u64::from(round)));
        store.run_background();
        core.tick(lag_max * round, lag_max);
        shared.settle_one(&core);
        assert_eq!((core.leader(), core.in_sync().len()), (Some(DiskId(1)), 2), "round {round}");
    }
}

/// It was taken for being in service when its disk was back, and the threads that flushed it had ended.
#[test]
fn s22_a_replica_that_was_too_busy_to_be_told_of_its_disks_loss_is_opened_anew() {
    let disks = [0, 1].map(SimDisk::new);
    let builder = disks.iter().fold(Store::builder(), |all, disk| all.simulated_disk(disk.clone()));
    let store = builder.replica_lag_max(Duration::from_millis(900)).threads().open().unwrap();
    let config = TopicConfig::new().replication_factor(2).flush(Flush::OnAck);
    store.create_topic("t", config).unwrap();
    append(&store).unwrap();
    let shared = &store.handle.shared;
    let core = shared.cores().pop().expect("one partition").1;
    for gone in [DiskId(1), DiskId(0)] {
        // As `lose_disk` does, but for the partitions.
        let disk = shared.disk(gone).unwrap();
        disk.attention.abandon();
        shared.note_offline(&disk, "a call hangs");
        shared.metadata.lock().remove_disk(gone);
        store.start_disk(gone).unwrap();
        append(&store).unwrap();
        let started = Instant::now();
        while core.in_sync().len() < 2 {
            assert!(started.elapsed() < Duration::from_secs(30), "{gone} is never in sync");
            thread::yield_now();
        }
    }
    assert_eq!(append(&store).unwrap(), Offset(3));
}

/// It went by the old settings, and kept in memory what was acknowledged as being in its file.
#[test]
fn a_replica_that_is_opened_while_its_topic_changes_goes_by_the_change() {
    let disks = [0, 1].map(SimDisk::new);
    disks[1].share_process(&disks[0]);
    let store = open(&disks);
    let config = TopicConfig::new().replication_factor(2).flush(Flush::OnAck);
    store.create_topic("t", config).unwrap();
    append(&store).unwrap();
    let shared = &store.handle.shared;
    let (topic, core) = shared.cores().pop().expect("one partition");
    core.fence_replica(DiskId(1), &Error::Closed);
    shared.settle_one(&core);
    let returned = opened_anew(shared, &topic, &core, DiskId(1));
    store.alter_topic("t", TopicUpdate::new().flush(Flush::Os)).unwrap();
    core.return_replica(&returned, false, shared.clock.now()).unwrap();
    until(&store, "it is in sync again", || core.in_sync().len() == 2);
    assert_eq!(append(&store).unwrap(), Offset(1));
    disks[0].kill();
    drop((core, returned, store));
    let partition = on_the_second_alone(&disks).partition("t", 0).unwrap();
    assert_eq!(partition.log_end_offset(), Offset(2), "it was acknowledged");
}

/// As one that comes back: what it kept in memory was acknowledged as being in its file.
#[test]
fn a_replica_that_is_added_while_its_topic_changes_goes_by_the_change() {
    let disks = [0, 1].map(SimDisk::new);
    disks[1].share_process(&disks[0]);
    let store = open(&disks);
    store.create_topic("t", TopicConfig::new().flush(Flush::OnAck)).unwrap();
    append(&store).unwrap();
    let shared = &store.handle.shared;
    let (topic, core) = shared.cores().pop().expect("one partition");
    let leader = core.leader().expect("it is here");
    let other = DiskId(1 - leader.0);
    let (id, replicas) = (topic.id, vec![leader, other]);
    let moved = MetadataRecord::ReplicasChanged { id, partition: 0, replicas: replicas.clone() };
    shared.metadata.lock().commit(&moved).unwrap();
    let added = opened_anew(shared, &topic, &core, other);
    store.alter_topic("t", TopicUpdate::new().flush(Flush::Os)).unwrap();
    core.set_replicas(&replicas, vec![added], shared.clock.now());
    until(&store, "it is in sync", || core.in_sync().len() == 2);
    assert_eq!(append(&store).unwrap(), Offset(1));
    disks[0].kill();
    drop((core, store));
    disks.iter().for_each(SimDisk::process_restart);
    let builder = Store::builder().simulated_disk(disks[usize::from(other.0)].clone());
    let store = builder.allow_missing(leader).open().unwrap();
    let partition = store.partition("t", 0).unwrap();
    assert_eq!(partition.log_end_offset(), Offset(2), "it was acknowledged");
}

/// It kept what the next leader had not, and never followed that.
#[test]
fn inv_03_a_replica_that_comes_back_while_a_reign_begins_agrees_with_that() {
    let disks = [0, 1, 2].map(SimDisk::new);
    let (store, _tail) = with_a_tail(&disks);
    let shared = &store.handle.shared;
    let (topic, core) = shared.cores().pop().expect("one partition");
    core.flush_follower(DiskId(2));
    assert!(core.stop_replica(DiskId(2), "away"));
    shared.settle_one(&core);
    let returned = opened_anew(shared, &topic, &core, DiskId(2));
    let proposal = elect(shared, &topic, &core, DiskId(1), &[DiskId(1)]);
    disks[2].hang(Hang::Everything);
    thread::scope(|scope| {
        let returns = scope.spawn(|| core.return_replica(&returned, false, shared.clock.now()));
        while disks[2].held_calls() == 0 {
            assert!(!returns.is_finished(), "it asks its disk");
            thread::yield_now();
        }
        core.fence_replica(DiskId(0), &Error::Closed);
        core.install(proposal, shared.clock.now());
        disks[2].heal();
        returns.join().unwrap().unwrap();
    });
    assert_eq!(append(&store).unwrap(), Offset(1));
    until(&store, "it is in sync", || core.in_sync().contains(&DiskId(2)));
    store.stop_disk(DiskId(1)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let records = partition.read(Offset(1), ReadOptions::new()).unwrap();
    let values: Vec<_> = records.iter().map(|record| record.value().unwrap()).collect();
    assert_eq!(values, [b"v"]);
}

/// It was no longer than the one that led next, and kept what that has not.
#[test]
fn inv_03_a_leader_that_comes_back_while_nobody_leads_gives_up_what_a_later_reign_has_not() {
    let disks = [0, 1].map(SimDisk::new);
    let (store, _tail) = with_a_tail(&disks);
    let shared = &store.handle.shared;
    let (topic, core) = shared.cores().pop().expect("one partition");
    core.tend(DiskId(0), shared.clock.now(), false);
    assert!(core.has_flushed(DiskId(0), Offset(2)));
    let proposal = elect(shared, &topic, &core, DiskId(1), &[DiskId(1)]);
    core.fence_replica(DiskId(0), &Error::Closed);
    core.install(proposal, shared.clock.now());
    (1..3).for_each(|at| assert_eq!(append(&store).unwrap(), Offset(at)));
    core.fence_replica(DiskId(1), &Error::Closed);
    shared.settle_one(&core);
    for disk in [DiskId(0), DiskId(1)] {
        let returned = opened_anew(shared, &topic, &core, disk);
        core.return_replica(&returned, false, shared.clock.now()).unwrap();
        shared.settle_one(&core);
    }
    assert_eq!(core.leader(), Some(DiskId(1)));
    until(&store, "it is in sync", || core.in_sync().contains(&DiskId(0)));
    let partition = store.partition("t", 0).unwrap();
    store.stop_disk(DiskId(1)).unwrap();
    let records = partition.read(Offset(1), ReadOptions::new()).unwrap();
    let values: Vec<_> = records.iter().map(|record| record.value().unwrap()).collect();
    assert_eq!(values, [b"v", b"v"]);
}

/// It slept on until its time was over, and heard that.
#[test]
fn an_append_that_waits_for_room_hears_that_its_topic_is_gone() {
    let disk = SimDisk::new(0);
    let builder = Store::builder().simulated_disk(disk.clone());
    let store = builder.append_timeout(Duration::from_secs(600)).open().unwrap();
    store.create_topic("t", TopicConfig::new().flush(Flush::Os).segment_bytes(4096)).unwrap();
    append(&store).unwrap();
    let core = store.handle.shared.cores().pop().expect("one partition").1;
    let partition = store.partition("t", 0).unwrap();
    disk.hang(Hang::Everything);
    thread::scope(|scope| {
        scope.spawn(|| partition.append(&[Record::new(&[7; 8000])], Acks::All));
        while disk.held_calls() == 0 {
            thread::yield_now();
        }
        // The disk is asked already: this one sleeps.
        let sleeps = scope.spawn(|| append(&store));
        (0..10_000).for_each(|_| thread::yield_now());
        core.delete();
        let begun = Instant::now();
        while !sleeps.is_finished() && begun.elapsed() < Duration::from_secs(30) {
            thread::yield_now();
        }
        let has_heard = sleeps.is_finished();
        disk.heal();
        let told = sleeps.join().unwrap();
        assert!(has_heard, "it waited for its disk");
        assert!(matches!(told, Err(Error::UnknownTopicOrPartition { .. })), "{told:?}");
    });
}

/// It let go of their records, and had written down nothing of who wrote them: a batch that was sent again after a
/// crash was appended twice.
#[test]
fn a_follower_that_is_busy_while_records_are_deleted_writes_down_their_producers_first() {
    let disks = [0, 1].map(SimDisk::new);
    disks[1].share_process(&disks[0]);
    let store = open(&disks);
    let config = TopicConfig::new().replication_factor(2).flush(Flush::Os).segment_bytes(4096);
    store.create_topic("t", config.index_interval_bytes(256)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let author = ProducerSequence { id: ProducerId(7), epoch: ProducerEpoch(0), sequence: 0 };
    let once = [Record::new("once")];
    let placed = partition.append_idempotent(author, &once, Acks::All).unwrap();
    for _ in 0..60 {
        partition.append(&[Record::new(&[7; 200])], Acks::Leader).unwrap();
        store.run_background();
    }
    let shared = &store.handle.shared;
    let (topic, core) = shared.cores().pop().expect("one partition");
    // It begins a segment, which the follower does when it is looked after.
    partition.append(&[Record::new(&[7; 8000])], Acks::Leader).unwrap();
    let (id, start) = (topic.id, Offset(50));
    let raised = MetadataRecord::LogStartRaised { id, partition: 0, offset: start };
    shared.metadata.lock().commit(&raised).unwrap();
    disks[1].hang(Hang::Everything);
    thread::scope(|scope| {
        scope.spawn(|| core.tend(DiskId(1), shared.clock.now(), false));
        while disks[1].held_calls() == 0 {
            thread::yield_now();
        }
        core.raise_log_start(start).unwrap();
        disks[1].heal();
    });
    until(&store, "it follows", || {
        let starts = core.readers().into_iter().map(|(_, log)| log.log_start());
        starts.collect::<Vec<_>>() == [start; 2]
    });
    disks[0].kill();
    drop((partition, topic, core, store));
    let partition = on_the_second_alone(&disks).partition("t", 0).unwrap();
    assert_eq!(partition.log_start_offset(), start);
    let again = partition.append_idempotent(author, &once, Acks::All).unwrap();
    assert_eq!((again.duplicate, again.offsets), (true, placed.offsets));
}

/// It went on with what it had been told: batches that were nowhere were answered as duplicates once it led.
#[test]
fn a_replica_that_follows_another_leader_forgets_what_that_one_lacks() {
    told_more_than_it_has(|replicas| replicas[1]);
}

/// As above, and it leads at once.
#[test]
fn a_replica_that_leads_forgets_what_it_lacks() {
    told_more_than_it_has(|replicas| replicas[2]);
}

/// The last of three replicas is told of a producer's batch that it has not got when the leader fails, which another, or that
/// one, follows.
fn told_more_than_it_has(elected: fn(&[DiskId]) -> DiskId) {
    let disks = [0, 1, 2, 3, 4].map(SimDisk::new);
    let store = open(&disks);
    let config = TopicConfig::new().replication_factor(3).min_insync_replicas(1);
    let config = config.flush(Flush::Os).segment_bytes(4096).index_interval_bytes(256);
    store.create_topic("t", config).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let shared = &store.handle.shared;
    let (topic, core) = shared.cores().pop().expect("one partition");
    let [leader, next, told] = core.replicas()[..] else { panic!("three replicas") };
    assert_eq!(core.leader(), Some(leader));
    let send = |sequence, acks| {
        let author = ProducerSequence { id: ProducerId(7), epoch: ProducerEpoch(0), sequence };
        partition.append_idempotent(author, &[Record::new("v")], acks).unwrap()
    };
    let fill = |end, acks| {
        while core.log_end() < Offset(end) {
            partition.append(&[Record::new(&[7; 200])], acks).unwrap();
        }
    };
    store.stop_disk(told).unwrap();
    let deleted = send(0, Acks::All);
    fill(60, Acks::All);
    // Opened anew, a log has nothing at hand for the next batch.
    store.stop_disk(next).unwrap();
    store.start_disk(next).unwrap();
    send(1, Acks::Leader);
    fill(100, Acks::Leader);
    // Sealed segments are read from the disk from now on.
    core.tend(leader, shared.clock.now(), false);
    assert_eq!(partition.delete_records(Offset(50)).unwrap(), Offset(50));
    store.start_disk(told).unwrap();
    let elected = elected(&core.replicas());
    let mut proposal = elect(shared, &topic, &core, elected, &[elected]);
    (proposal.start, proposal.high_watermark) = (Some(Offset(60)), Offset(60));
    // What it is told is in memory; what it copies is not.
    disks[usize::from(leader.0)].fail_from(1, Fault::Eio);
    core.tend(told, shared.clock.now(), false);
    core.fence_replica(leader, &Error::Closed);
    core.install(proposal, shared.clock.now());
    disks[usize::from(leader.0)].heal();
    assert_eq!((core.leader(), core.log_end()), (Some(elected), Offset(60)));

    if elected != told {
        fill(120, Acks::All);
        until(&store, "it is in sync", || core.in_sync().contains(&told));
        let _ = store.stop_disk(leader);
        store.stop_disk(next).unwrap();
        until(&store, "it leads", || core.leader() == Some(told));
    }
    let again = send(0, Acks::All);
    assert_eq!((again.duplicate, again.offsets), (true, deleted.offsets));
    assert!(!send(1, Acks::All).duplicate, "it is nowhere");
}
