//! What happens while an election is written down, which may take as long as a disk does.

use crate::storage::simulated::{Fault, SimDisk};
use crate::store::TopicConfig;

use super::*;

/// A leader with a record of its own has failed, and another is elected; `between` comes before that leads.
fn elected_without_a_tail(between: impl FnOnce(&Shared, &Topic, &Arc<Core>)) {
    let disks = [0, 1, 2].map(SimDisk::new);
    let store = open(&disks);
    let config = TopicConfig::new().replication_factor(3).segment_bytes(4096);
    store.create_topic("t", config.flush(Flush::Os)).unwrap();
    append(&store).unwrap();
    let shared = &store.handle.shared;
    let (topic, core) = shared.cores().pop().expect("one partition");
    let partition = store.partition("t", 0).unwrap();
    assert!(core.stop_replica(DiskId(2), "away"));
    shared.settle_one(&core);
    // It begins a segment, which the follower does when it is looked after.
    let tail = partition.append_nowait(&[Record::new(&[7; 8000])], Acks::All).unwrap();
    core.fence_replica(DiskId(0), &Error::Closed);
    let proposal = core.proposal().expect("another can lead");
    assert_eq!(proposal.leader, Some(DiskId(1)));
    let records = records_of(topic.id, core.partition(), &proposal);
    shared.metadata.lock().commit_all(&records).unwrap();
    let now = shared.clock.now();
    between(shared, &topic, &core);
    // It was begun when it was still to be seen who leads, and took its time.
    core.drain(DiskId(1), now);
    core.install(proposal, now);
    let told = tail.wait(Duration::from_secs(1));
    assert!(matches!(told, Err(Error::NoLeader { .. })), "{told:?}");
    let offset = append(&store).unwrap();
    drop((partition, topic, core, tail));
    store.close(Duration::from_secs(1)).unwrap();
    let partition = open(&disks).partition("t", 0).unwrap();
    let records = partition.read(Offset(1), ReadOptions::new()).unwrap();
    let found: Vec<_> =
        records.iter().map(|one| (one.offset(), one.value().unwrap().len())).collect();
    assert_eq!(found, [(offset, 1)]);
}

/// What was copied to it after its end had been counted, it led with; each later opening cut that, with all that was
/// acknowledged behind it.
#[test]
fn inv_03_what_is_copied_while_an_election_is_written_down_is_not_led_with() {
    elected_without_a_tail(|_, _, _| ());
}

/// As above: the replicas were counted anew, and the one that was elected was free to take more.
#[test]
fn inv_03_a_replica_that_comes_back_while_an_election_is_written_down_does_not_let_go_of_the_elected()
 {
    elected_without_a_tail(|shared, topic, core| {
        let returned = opened_anew(shared, topic, core, DiskId(2));
        core.return_replica(&returned, false, shared.clock.now()).unwrap();
    });
}

/// What the leader that had failed had alone could be read, and was acknowledged, though the next one lacked it.
#[test]
fn inv_02_a_lower_minimum_acknowledges_nothing_of_a_leader_that_has_failed() {
    let disks = [0, 1].map(SimDisk::new);
    let store = open(&disks);
    let config = TopicConfig::new().replication_factor(2).min_insync_replicas(2);
    store.create_topic("t", config).unwrap();
    append(&store).unwrap();
    let shared = &store.handle.shared;
    let (topic, core) = shared.cores().pop().expect("one partition");
    let partition = store.partition("t", 0).unwrap();
    assert!(core.stop_replica(DiskId(1), "away"));
    shared.settle_one(&core);
    partition.append(&[Record::new("alone")], Acks::Leader).unwrap();
    let returned = opened_anew(shared, &topic, &core, DiskId(1));
    core.return_replica(&returned, false, shared.clock.now()).unwrap();
    assert_eq!((core.high_watermark(), core.log_end()), (Offset(1), Offset(2)));
    // The topic is altered; its partitions are told when the metadata are free.
    let mut altered = TopicConfig::clone(&topic.config.read());
    altered.min_insync_replicas = 1;
    let record = MetadataRecord::TopicAltered { id: topic.id, config: altered.clone() };
    shared.metadata.lock().commit(&record).unwrap();
    core.fence_replica(DiskId(0), &Error::Closed);
    let proposal = core.proposal().expect("it fails");
    let records = records_of(topic.id, core.partition(), &proposal);
    shared.metadata.lock().commit_all(&records).unwrap();
    core.set_settings(shared.core_settings(&Arc::new(altered)));
    let readable = core.high_watermark();
    core.install(proposal, shared.clock.now());
    shared.settle_one(&core);
    assert_eq!(core.leader(), Some(DiskId(1)));
    assert_eq!((readable, append(&store).unwrap()), (Offset(1), Offset(1)));
}

/// The next opening may find it in sync: what was acknowledged without it was lost where it led then.
#[test]
fn inv_02_a_replica_that_joins_holds_the_watermark_as_long_as_that_is_in_doubt() {
    let disks = [0, 1, 2].map(SimDisk::new);
    let store = open(&disks);
    let config = TopicConfig::new().replication_factor(2).min_insync_replicas(1);
    store.create_topic("t", config.flush(Flush::Os)).unwrap();
    append(&store).unwrap();
    let shared = &store.handle.shared;
    let (topic, core) = shared.cores().pop().expect("one partition");
    let partition = store.partition("t", 0).unwrap();
    let joins = DiskId(1 - core.leader().unwrap().0);
    store.stop_disk(DiskId(2)).unwrap();
    assert!(core.stop_replica(joins, "away"));
    shared.settle_one(&core);
    let returned = opened_anew(shared, &topic, &core, joins);
    core.return_replica(&returned, false, shared.clock.now()).unwrap();
    core.tick(Duration::from_secs(1), Duration::from_secs(30));
    let proposal = core.proposal().expect("it has caught up");
    assert_eq!(proposal.isr.len(), 2);
    let records = records_of(topic.id, core.partition(), &proposal);
    disks[usize::from(joins.0)].fail_from(1, Fault::Eio);
    let error = shared.metadata.lock().commit_all(&records).unwrap_err();
    core.refuse(&proposal, &error);
    core.stop_replica(joins, "it fails");
    shared.settle_one(&core);
    partition.append(&[Record::new("alone")], Acks::Leader).unwrap();
    assert_eq!((core.log_end(), core.high_watermark()), (Offset(2), Offset(1)));
}

/// What the leader that handed over had alone on its stable storage could be read, and a power loss took it from the next one.
#[test]
fn inv_02_a_lower_minimum_acknowledges_nothing_of_a_leader_that_is_handing_over() {
    let disks = [0, 1].map(SimDisk::new);
    let store = open(&disks);
    let config = TopicConfig::new().replication_factor(2).min_insync_replicas(2);
    store.create_topic("t", config.flush(Flush::OnAck)).unwrap();
    append(&store).unwrap();
    let shared = &store.handle.shared;
    let (topic, core) = shared.cores().pop().expect("one partition");
    let partition = store.partition("t", 0).unwrap();
    assert!(core.stop_replica(DiskId(1), "away"));
    shared.settle_one(&core);
    partition.append(&[Record::new("alone")], Acks::Leader).unwrap();
    let returned = opened_anew(shared, &topic, &core, DiskId(1));
    let now = shared.clock.now();
    core.return_replica(&returned, false, now).unwrap();
    // It has all that there is, and not on stable storage.
    core.step_down(DiskId(0));
    core.drain(DiskId(1), now);
    let proposal = core.proposal().expect("the other has all");
    assert_eq!((proposal.leader, core.high_watermark()), (Some(DiskId(1)), Offset(1)));
    let records = records_of(topic.id, core.partition(), &proposal);
    shared.metadata.lock().commit_all(&records).unwrap();
    let mut altered = TopicConfig::clone(&topic.config.read());
    altered.min_insync_replicas = 1;
    core.set_settings(shared.core_settings(&Arc::new(altered)));
    let readable = core.high_watermark();
    core.install(proposal, now);
    assert!(core.stop_replica(DiskId(0), "it stops"));
    shared.settle_one(&core);
    disks.iter().for_each(SimDisk::kill);
    drop((partition, topic, core, store));
    disks.iter().for_each(SimDisk::heal);
    disks.iter().for_each(SimDisk::power_loss);
    let kept = open(&disks).partition("t", 0).unwrap().log_end_offset();
    assert!(kept >= readable, "read up to {readable}, kept up to {kept}");
}

/// As above, and the handing over comes to nothing: it goes on.
#[test]
fn a_leader_whose_handing_over_is_refused_goes_on_to_acknowledge() {
    let disks = [0, 1].map(SimDisk::new);
    let store = open(&disks);
    let config = TopicConfig::new().replication_factor(2).flush(Flush::Os);
    store.create_topic("t", config).unwrap();
    append(&store).unwrap();
    let core = store.handle.shared.cores().pop().expect("one partition").1;
    core.step_down(DiskId(0));
    let proposal = core.proposal().expect("the other has all");
    assert_eq!(proposal.leader, Some(DiskId(1)));
    core.refuse(&proposal, &Error::Closed);
    core.stop_replica(DiskId(1), "away");
    store.handle.shared.settle_one(&core);
    assert_eq!(append(&store).unwrap(), Offset(1));
}
