//! A log that changes hands while a flush of it is on its way.

use crate::storage::simulated::{Hang, SimDisk};

use super::*;

/// Two replicas, with one record in the memory of both that is not acknowledged.
struct Begun {
    store: Store,
    topic: Arc<Topic>,
    core: Arc<Core>,
    tail: Ticket,
}

fn begun(disks: &[SimDisk; 2]) -> Begun {
    let store = open(disks);
    let config = TopicConfig::new().replication_factor(2).flush(Flush::OnAck);
    store.create_topic("t", config).unwrap();
    append(&store).unwrap();
    let (topic, core) = store.shared().cores().pop().expect("one partition");
    let partition = store.partition("t", 0).unwrap();
    let tail = partition.append_nowait(&[Record::new("tail")], Acks::All).unwrap();
    Begun { store, topic, core, tail }
}

impl Begun {
    /// Another leads, as the metadata will say when they are written.
    fn elected(&self) -> Proposal {
        let proposal = self.core.proposal(0).expect("another can lead");
        let records = records_of(self.topic.id, self.core.partition(), &proposal);
        self.store.shared().metadata.lock().commit_all(&records).unwrap();
        proposal
    }

    fn install(&self, proposal: Proposal) {
        self.core.install(proposal, self.store.shared().clock.now());
    }

    /// Does what the workers of both disks would, until the tail is acknowledged.
    fn ends(&self) {
        until(&self.store, "the tail is acknowledged", || self.core.high_watermark() == Offset(2));
        self.tail.wait(Duration::from_secs(1)).unwrap();
        assert_eq!(append(&self.store).unwrap(), Offset(2));
    }
}

fn held(disk: &SimDisk) {
    while disk.held_calls() == 0 {
        thread::yield_now();
    }
}

/// The next flush had nothing to write, and said that all is flushed: a power loss, or the failure of the first, took what had
/// been acknowledged.
#[test]
fn inv_04_a_follower_that_leads_has_flushed_nothing_that_its_flush_of_before_has_not() {
    let disks = [0, 1].map(SimDisk::new);
    let begun = begun(&disks);
    let core = &begun.core;
    core.fence_replica(DiskId(0), &Error::Closed);
    let proposal = begun.elected();
    assert_eq!((proposal.leader, proposal.start), (Some(DiskId(1)), Some(Offset(2))));
    disks[1].hang(Hang::Syncs);
    thread::scope(|scope| {
        scope.spawn(|| core.flush_follower(DiskId(1)));
        held(&disks[1]);
        begun.install(proposal);
        let now = begun.store.shared().clock.now();
        let tending = scope.spawn(move || core.tend(DiskId(1), now, false));
        let begins = Instant::now();
        while !tending.is_finished() && begins.elapsed() < Duration::from_millis(50) {
            thread::yield_now();
        }
        let (acknowledged, leads) = (core.high_watermark(), core.leader());
        disks[1].heal();
        tending.join().unwrap();
        assert_eq!((acknowledged, leads), (Offset(1), Some(DiskId(1))));
    });
    begun.ends();
}

/// As above, of the flush of a leader that hands over. What it is asked to flush meanwhile is flushed behind that.
#[test]
fn inv_04_a_leader_that_follows_has_flushed_nothing_that_its_flush_of_before_has_not() {
    for asked in [false, true] {
        let disks = [0, 1].map(SimDisk::new);
        let begun = begun(&disks);
        let core = &begun.core;
        core.step_down(DiskId(0));
        let proposal = begun.elected();
        assert_eq!((proposal.leader, proposal.isr.len()), (Some(DiskId(1)), 2));
        disks[0].hang(Hang::Syncs);
        thread::scope(|scope| {
            let now = begun.store.shared().clock.now();
            scope.spawn(move || core.tend(DiskId(0), now, false));
            held(&disks[0]);
            begun.install(proposal);
            core.tend(DiskId(1), now, false);
            if asked {
                let partition = begun.store.partition("t", 0).unwrap();
                _ = partition.append_nowait(&[Record::new("more")], Acks::Leader).unwrap();
                core.flush_follower(DiskId(0));
            }
            let (acknowledged, leads) = (core.high_watermark(), core.leader());
            disks[0].heal();
            assert_eq!((acknowledged, leads), (Offset(1), Some(DiskId(1))));
        });
        assert_eq!(core.high_watermark(), Offset(2), "{asked}");
        begun.tail.wait(Duration::from_secs(1)).unwrap();
        assert!(core.has_flushed(DiskId(0), core.log_end()), "{asked}");
        append(&begun.store).unwrap();
    }
}

/// Who led as it began was asked for nothing if another did by the time that it was to flush: what was let go of then, as it was
/// on stable storage elsewhere, was there on one disk less.
#[test]
fn what_is_to_be_durable_is_so_on_the_disk_of_a_leader_that_hands_over_meanwhile() {
    let disks = [0, 1].map(SimDisk::new);
    let store = open(&disks);
    let config = TopicConfig::new().replication_factor(2).flush(Flush::Os);
    store.create_topic("t", config).unwrap();
    (0..2).for_each(|at| assert_eq!(append(&store).unwrap(), Offset(at)));
    let (topic, core) = store.shared().cores().pop().expect("one partition");
    let proposal = elect(store.shared(), &topic, &core, DiskId(1), &[DiskId(0), DiskId(1)]);
    let proposal = Proposal { start: Some(Offset(2)), high_watermark: Offset(2), ..proposal };
    disks[1].hang(Hang::Syncs);
    thread::scope(|scope| {
        let durable = scope.spawn(|| core.make_durable());
        held(&disks[1]);
        core.install(proposal, store.shared().clock.now());
        disks[1].answer();
        durable.join().unwrap().unwrap();
    });
    assert_eq!((core.leader(), core.in_sync().len()), (Some(DiskId(1)), 2));
    for disk in [DiskId(0), DiskId(1)] {
        assert!(core.has_flushed(disk, Offset(2)), "{disk}");
    }
}

/// It was taken for durable everywhere once it was so on the leader's disk, as if the level had always been `OnAck`.
#[test]
fn what_is_to_be_durable_is_so_on_all_disks_where_the_topic_became_stricter_behind_a_flush_of_its_leader()
 {
    let disks = [0, 1].map(SimDisk::new);
    let store = open(&disks);
    store.create_topic("t", TopicConfig::new().replication_factor(2)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    partition.append(&[Record::new("v")], Acks::Leader).unwrap();
    let core = store.shared().cores().pop().expect("one partition").1;
    store.alter_topic("t", TopicUpdate::new().flush(Flush::Os)).unwrap();
    core.tend(DiskId(1), store.shared().clock.now(), false);
    store.alter_topic("t", TopicUpdate::new().flush(Flush::OnAck)).unwrap();
    assert_eq!(core.high_watermark(), Offset(1));
    assert!(core.has_flushed(DiskId(0), Offset(1)) && !core.has_flushed(DiskId(1), Offset(1)));
    core.make_durable().unwrap();
    for disk in [DiskId(0), DiskId(1)] {
        assert!(core.has_flushed(disk, Offset(1)), "{disk}");
    }
}
