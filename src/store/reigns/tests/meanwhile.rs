//! What happens while an election is written down, which may take as long as a disk does.

use crate::storage::simulated::{Fault, Hang, SimDisk};
use crate::store::{StoreBuilder, TopicConfig};

use super::*;

/// One partition, with one record.
struct Begun {
    store: Store,
    topic: Arc<Topic>,
    core: Arc<Core>,
    partition: Partition,
}

impl Begun {
    fn on(disks: &[SimDisk], config: TopicConfig) -> Self {
        let store = open(disks);
        store.create_topic("t", config).unwrap();
        append(&store).unwrap();
        let (topic, core) = store.shared().cores().pop().expect("one partition");
        let partition = store.partition("t", 0).unwrap();
        Self { store, topic, core, partition }
    }

    fn goes_away(&self, disk: DiskId) {
        assert!(self.core.stop_replica(disk, "away"));
        self.store.shared().settle_one(&self.core);
    }

    fn is_back(&self, disk: DiskId) {
        let shared = self.store.shared();
        let returned = opened_anew(shared, &self.topic, &self.core, disk);
        self.core.return_replica(&returned, false, shared.clock.now()).unwrap();
    }

    /// Writes the proposal down.
    fn commit(&self, proposal: &Proposal) -> Result<()> {
        let records = records_of(self.topic.id, self.core.partition(), proposal);
        self.store.shared().metadata.lock().commit_all(&records)
    }

    /// The partition is told of a topic that asks for one replica.
    fn asks_for_less(&self) {
        let mut altered = TopicConfig::clone(&self.topic.config.read());
        altered.min_insync_replicas = 1;
        self.core.set_settings(self.store.shared().core_settings(&Arc::new(altered)));
    }

    /// The leader has a record alone, of two that are required, and hands over to one who has it in memory.
    fn handing_over(disks: &[SimDisk]) -> (Self, Proposal) {
        let config = TopicConfig::new().replication_factor(2).min_insync_replicas(2);
        let begun = Self::on(disks, config.flush(Flush::OnAck));
        begun.goes_away(DiskId(1));
        begun.partition.append(&[Record::new("alone")], Acks::Leader).unwrap();
        begun.is_back(DiskId(1));
        begun.core.step_down(DiskId(0));
        begun.core.drain(DiskId(1), begun.store.shared().clock.now());
        let proposal = begun.core.proposal(0).expect("the other has all");
        assert_eq!((proposal.leader, begun.core.high_watermark()), (Some(DiskId(1)), Offset(1)));
        (begun, proposal)
    }
}

/// A leader with a record of its own has failed, and another is elected; `between` comes before that leads.
fn elected_without_a_tail(between: impl FnOnce(&Begun)) {
    let disks = [0, 1, 2].map(SimDisk::new);
    let config = TopicConfig::new().replication_factor(3).segment_bytes(4096);
    let begun = Begun::on(&disks, config.flush(Flush::Os));
    begun.goes_away(DiskId(2));
    // It begins a segment, which the follower does when it is looked after.
    let tail = begun.partition.append_nowait(&[Record::new(&[7; 8000])], Acks::All).unwrap();
    begun.core.fence_replica(DiskId(0), &Error::Closed);
    let proposal = begun.core.proposal(0).expect("another can lead");
    assert_eq!(proposal.leader, Some(DiskId(1)));
    begun.commit(&proposal).unwrap();
    between(&begun);
    let now = begun.store.shared().clock.now();
    // It was begun when it was still to be seen who leads, and took its time.
    begun.core.drain(DiskId(1), now);
    begun.core.install(proposal, now);
    let told = tail.wait(Duration::from_secs(1));
    assert!(matches!(told, Err(Error::NoLeader { .. })), "{told:?}");
    let offset = append(&begun.store).unwrap();
    begun.store.close(Duration::from_secs(1)).unwrap();
    drop((begun, tail));
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
    elected_without_a_tail(|_| ());
}

/// As above: the replicas were counted anew, and the one that was elected was free to take more.
#[test]
fn inv_03_a_replica_that_comes_back_while_an_election_is_written_down_does_not_let_go_of_the_elected()
 {
    elected_without_a_tail(|begun| begun.is_back(DiskId(2)));
}

/// What the leader that had failed had alone could be read, and was acknowledged, though the next one lacked it.
#[test]
fn inv_02_a_lower_minimum_acknowledges_nothing_of_a_leader_that_has_failed() {
    let disks = [0, 1].map(SimDisk::new);
    let config = TopicConfig::new().replication_factor(2).min_insync_replicas(2);
    let begun = Begun::on(&disks, config);
    let Begun { store, core, .. } = &begun;
    begun.goes_away(DiskId(1));
    begun.partition.append(&[Record::new("alone")], Acks::Leader).unwrap();
    begun.is_back(DiskId(1));
    assert_eq!((core.high_watermark(), core.log_end()), (Offset(1), Offset(2)));
    core.fence_replica(DiskId(0), &Error::Closed);
    let proposal = core.proposal(0).expect("it fails");
    begun.commit(&proposal).unwrap();
    begun.asks_for_less();
    let readable = core.high_watermark();
    core.install(proposal, store.shared().clock.now());
    store.shared().settle_one(core);
    assert_eq!(core.leader(), Some(DiskId(1)));
    assert_eq!((readable, append(store).unwrap()), (Offset(1), Offset(1)));
}

/// The next opening may find it in sync: what was acknowledged without it was lost where it led then.
#[test]
fn inv_02_a_replica_that_joins_holds_the_watermark_as_long_as_that_is_in_doubt() {
    let disks = [0, 1, 2].map(SimDisk::new);
    let config = TopicConfig::new().replication_factor(2).min_insync_replicas(1);
    let begun = Begun::on(&disks, config.flush(Flush::Os));
    let Begun { store, core, .. } = &begun;
    let joins = DiskId(1 - core.leader().unwrap().0);
    store.stop_disk(DiskId(2)).unwrap();
    begun.goes_away(joins);
    begun.is_back(joins);
    core.tick(Duration::from_secs(1), Duration::from_secs(30));
    let proposal = core.proposal(0).expect("it has caught up");
    assert_eq!(proposal.isr.len(), 2);
    disks[usize::from(joins.0)].fail_from(1, Fault::Eio);
    let error = begun.commit(&proposal).unwrap_err();
    core.refuse(&proposal, &error, 0);
    core.stop_replica(joins, "it fails");
    store.shared().settle_one(core);
    begun.partition.append(&[Record::new("alone")], Acks::Leader).unwrap();
    assert_eq!((core.log_end(), core.high_watermark()), (Offset(2), Offset(1)));
    // The metadata had taken a move before that, and its new replica is open by now.
    core.set_replicas(&core.replicas(), Vec::new(), store.shared().clock.now());
    assert_eq!(core.high_watermark(), Offset(1));
}

/// What the leader that handed over had alone on its stable storage could be read, and a power loss took it from the next one.
#[test]
fn inv_02_a_lower_minimum_acknowledges_nothing_of_a_leader_that_is_handing_over() {
    let disks = [0, 1].map(SimDisk::new);
    let (begun, proposal) = Begun::handing_over(&disks);
    begun.commit(&proposal).unwrap();
    begun.asks_for_less();
    let readable = begun.core.high_watermark();
    begun.core.install(proposal, begun.store.shared().clock.now());
    assert!(begun.core.stop_replica(DiskId(0), "it stops"));
    begun.store.shared().settle_one(&begun.core);
    disks.iter().for_each(SimDisk::kill);
    drop(begun);
    disks.iter().for_each(SimDisk::heal);
    disks.iter().for_each(SimDisk::power_loss);
    let kept = open(&disks).partition("t", 0).unwrap().log_end_offset();
    assert!(kept >= readable, "read up to {readable}, kept up to {kept}");
}

/// As above; the other may lead after the next opening, or not.
#[test]
fn inv_02_a_leader_whose_handing_over_is_in_doubt_acknowledges_nothing_more() {
    let disks = [0, 1].map(SimDisk::new);
    let (begun, proposal) = Begun::handing_over(&disks);
    disks.iter().for_each(|disk| disk.fail_call(1, Fault::Eio));
    let error = begun.commit(&proposal).unwrap_err();
    begun.core.refuse(&proposal, &error, 0);
    begun.asks_for_less();
    assert_eq!(begun.core.high_watermark(), Offset(1));
}

/// As above, and it is known to have come to nothing: it goes on.
#[test]
fn a_leader_whose_handing_over_is_refused_goes_on_to_acknowledge() {
    let disks = [0, 1].map(SimDisk::new);
    let config = TopicConfig::new().replication_factor(2).flush(Flush::Os);
    let Begun { store, core, .. } = &Begun::on(&disks, config);
    core.step_down(DiskId(0));
    let proposal = core.proposal(0).expect("the other has all");
    assert_eq!(proposal.leader, Some(DiskId(1)));
    core.refuse(&proposal, &Error::Closed, 0);
    core.stop_replica(DiskId(1), "away");
    store.shared().settle_one(core);
    assert_eq!(append(store).unwrap(), Offset(1));
}

/// It led with what it had not flushed: what was acknowledged, and durable on the disk that failed, went with power, and nobody
/// said so.
#[test]
fn repl_23_an_unclean_leader_has_flushed_what_it_has_of_what_was_acknowledged() {
    for seed in (0..30).step_by(2) {
        let disks = [seed, seed + 1].map(SimDisk::new);
        let config = TopicConfig::new().replication_factor(2).unclean_leader_election(true);
        let begun = Begun::on(&disks, config.flush(Flush::OnAck));
        begun.goes_away(DiskId(1));
        assert_eq!(append(&begun.store).unwrap(), Offset(1));
        begun.is_back(DiskId(1));
        begun.core.drain(DiskId(1), begun.store.shared().clock.now());
        begun.core.fence_replica(DiskId(0), &Error::Closed);
        // It may have to be looked at twice.
        (0..2).for_each(|_| begun.store.shared().settle_one(&begun.core));
        assert_eq!(begun.core.leader(), Some(DiskId(1)));
        assert_eq!(begun.core.high_watermark(), Offset(2));
        disks.iter().for_each(SimDisk::kill);
        drop(begun);
        disks.iter().for_each(SimDisk::heal);
        disks.iter().for_each(SimDisk::power_loss);
        let partition = open(&disks).partition("t", 0).unwrap();
        assert_eq!(partition.high_watermark(), Offset(2), "seed {seed}");
    }
}

/// A leader that has a record alone, of two that are required, and what views of it show.
struct Viewed {
    begun: Begun,
    disks: [SimDisk; 3],
}

impl Viewed {
    fn new() -> Self {
        let disks = [0, 1, 2].map(SimDisk::new);
        let config = TopicConfig::new().replication_factor(2).min_insync_replicas(2);
        let begun = Begun::on(&disks, config.flush(Flush::Os));
        assert_eq!(begun.core.leader(), Some(DiskId(0)));
        begun.goes_away(DiskId(1));
        begun.partition.append(&[Record::new("alone")], Acks::Leader).unwrap();
        assert_eq!((begun.core.high_watermark(), begun.core.log_end()), (Offset(1), Offset(2)));
        Self { begun, disks }
    }

    fn shows_no_more_than_is_acknowledged(&self) {
        let add = |all: StoreBuilder, disk: &SimDisk| all.simulated_disk(disk.clone());
        let view = self.disks.iter().fold(Store::builder(), add).read_only().open().unwrap();
        match view.partition("t", 0) {
            Ok(viewed) => assert_eq!(viewed.high_watermark(), Offset(1)),
            Err(error) => assert!(matches!(error, Error::NoLeader { .. }), "{error}"),
        }
    }

    /// It is elected again, by the metadata; the caller lets it lead.
    fn is_elected(&self) -> Proposal {
        let Begun { store, core, .. } = &self.begun;
        let proposal = core.proposal(0).expect("it can lead");
        assert_eq!(proposal.leader, Some(DiskId(0)));
        store.shared().make_pages(&[(Arc::clone(core), proposal.clone())]);
        self.begun.commit(&proposal).unwrap();
        self.shows_no_more_than_is_acknowledged();
        proposal
    }
}

/// Its page was removed when it returned, and whoever looked meanwhile believed its files.
#[test]
fn a_leader_that_fails_and_is_back_before_the_metadata_know_keeps_its_page() {
    let viewed = Viewed::new();
    viewed.begun.core.stop_leader(DiskId(0), &Error::Closed);
    viewed.shows_no_more_than_is_acknowledged();
    viewed.begun.is_back(DiskId(0));
    viewed.shows_no_more_than_is_acknowledged();
    let proposal = viewed.is_elected();
    viewed.begun.core.install(proposal, viewed.begun.store.shared().clock.now());
    viewed.shows_no_more_than_is_acknowledged();
}

/// The page of one that led before was made when it led again, and not before the metadata named it.
#[test]
fn a_leader_that_is_elected_again_has_its_page_before_and_while_it_fails_again() {
    let viewed = Viewed::new();
    let Begun { store, core, .. } = &viewed.begun;
    core.stop_leader(DiskId(0), &Error::Closed);
    store.shared().settle_one(core);
    assert_eq!(core.leader(), None);
    viewed.begun.is_back(DiskId(0));
    let proposal = viewed.is_elected();
    core.install(proposal, store.shared().clock.now());
    // It fails again while its page is made.
    viewed.disks[0].hang(Hang::Everything);
    thread::scope(|scope| {
        let made = scope.spawn(|| core.make_page(DiskId(0)));
        while viewed.disks[0].held_calls() == 0 {
            thread::yield_now();
        }
        core.fence_replica(DiskId(0), &Error::Closed);
        viewed.disks[0].answer();
        made.join().unwrap();
    });
    viewed.shows_no_more_than_is_acknowledged();
}

/// Nothing was put behind its last batch any more: what it still lacked was lost.
#[test]
fn what_a_failed_leader_has_alone_is_taken_over_where_the_first_election_came_to_nothing() {
    let disks = [0, 1].map(SimDisk::new);
    let config = TopicConfig::new().replication_factor(2).flush(Flush::Os).segment_bytes(4096);
    let Begun { store, core, partition, .. } = &Begun::on(&disks, config);
    // It begins a segment, which the follower does when it is looked after.
    let tail = partition.append_nowait(&[Record::new(&[7; 8000])], Acks::All).unwrap();
    core.fence_replica(DiskId(0), &Error::Closed);
    let proposal = core.proposal(0).expect("another can lead");
    assert_eq!((proposal.leader, proposal.start), (Some(DiskId(1)), Some(Offset(1))));
    core.refuse(&proposal, &Error::Closed, 0);
    store.shared().settle_one(core);
    assert_eq!((core.leader(), core.log_end()), (Some(DiskId(1)), Offset(2)));
    assert_eq!(tail.wait(Duration::from_secs(1)).unwrap().offsets.start, Offset(1));
}

/// It had not been told, and led with them: they could be read again.
#[test]
fn ret_07_a_leader_that_was_busy_while_records_were_deleted_does_not_bring_them_back() {
    let disks = [0, 1].map(SimDisk::new);
    let config = TopicConfig::new().replication_factor(2).flush(Flush::Os).segment_bytes(4096);
    let begun = Begun::on(&disks, config);
    let Begun { store, topic, core, partition } = &begun;
    let shared = store.shared();
    // It begins a segment, which the follower does when it is looked after.
    partition.append(&[Record::new(&[7; 8000])], Acks::Leader).unwrap();
    let (id, start) = (topic.id, Offset(1));
    let raised = MetadataRecord::LogStartRaised { id, partition: 0, offset: start };
    shared.metadata.lock().commit(&raised).unwrap();
    let proposal = Proposal {
        leader: Some(DiskId(1)),
        epoch: LeaderEpoch(core.leader_epoch().0 + 1),
        isr: vec![DiskId(1)],
        eligible: Vec::new(),
        start: Some(Offset(2)),
        high_watermark: Offset(1),
        suspects: Vec::new(),
        lost: None,
    };
    begun.commit(&proposal).unwrap();
    disks[1].hang(Hang::Everything);
    thread::scope(|scope| {
        scope.spawn(|| core.tend(DiskId(1), shared.clock.now(), false));
        while disks[1].held_calls() == 0 {
            thread::yield_now();
        }
        core.raise_log_start(start).unwrap();
        core.fence_replica(DiskId(0), &Error::Closed);
        disks[1].answer();
    });
    core.install(proposal, shared.clock.now());
    assert_eq!((core.leader(), core.log_end()), (Some(DiskId(1)), Offset(2)));
    assert_eq!(partition.log_start_offset(), start);
    let told = partition.read(Offset(0), ReadOptions::new());
    assert!(matches!(told, Err(Error::OffsetOutOfRange { .. })), "{told:?}");
}

/// They are well again, and all changes of leaders and replicas were refused until the store was opened anew.
#[test]
fn s9_a_store_of_which_most_disks_failed_goes_on_once_they_are_well_again() {
    for failed in [[1, 2], [0, 1], [0, 2]] {
        let disks = [0, 1, 2].map(SimDisk::new);
        disks[1..].iter().for_each(|disk| disk.share_process(&disks[0]));
        let store = open(&disks);
        let config = TopicConfig::new().replication_factor(3).flush(Flush::OnAck);
        store.create_topic("t", config.min_insync_replicas(2)).unwrap();
        (0..3).for_each(|at| assert_eq!(append(&store).unwrap(), Offset(at)));
        let shared = store.shared();
        failed.iter().for_each(|at| disks[*at].fail_from(1, Fault::Eio));
        assert!(append(&store).is_err());
        store.run_background();
        assert!(shared.metadata.lock().is_in_doubt(), "{failed:?}");
        disks.iter().for_each(SimDisk::heal);
        for at in 0..3 {
            store.start_disk(DiskId(at)).unwrap();
        }
        let partition = store.partition("t", 0).unwrap();
        for _ in 0..20 {
            store.run_background();
        }
        assert_eq!(partition.in_sync_replicas().len(), 3, "{failed:?}");
        append(&store).unwrap();
        assert!(!shared.metadata.lock().is_in_doubt());
        store.reassign("t", 0, &[DiskId(1), DiskId(0)]).unwrap();
        append(&store).unwrap();
        assert_eq!(partition.in_sync_replicas().len(), 2, "{failed:?}");
        let core = shared.cores().pop().expect("one partition").1;
        assert_eq!(core.replicas(), [DiskId(1), DiskId(0)]);
        store.close(Duration::from_secs(5)).unwrap();
    }
}

/// An election came between the last step of a move and what is written down of it: it was refused as if a caller had named what
/// cannot be.
#[test]
fn a_move_goes_on_where_a_replica_that_is_to_go_leads_again() {
    let disks = [0, 1].map(SimDisk::new);
    let store = open(&disks);
    store.create_topic("t", TopicConfig::new().replication_factor(2)).unwrap();
    append(&store).unwrap();
    let shared = store.shared();
    let (topic, core) = shared.cores().pop().expect("one partition");
    let slot = topic.slots.read()[0].clone();
    assert_eq!(core.leader(), Some(DiskId(0)));
    assert!(!shared.change_replicas(&topic, &slot, &core, &[DiskId(1)]).unwrap());
    assert_eq!(core.replicas(), [DiskId(0), DiskId(1)]);
    store.reassign("t", 0, &[DiskId(1)]).unwrap();
    assert_eq!((core.leader(), core.replicas()), (Some(DiskId(1)), vec![DiskId(1)]));
}
