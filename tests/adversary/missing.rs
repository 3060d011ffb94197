//! Stores that are opened again and again with other disks missing each time. The judge knows only what the store
//! acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use oncelog::simulation::{Clock, Fault, SimDisk};
use oncelog::{
    Acks, DiskId, Error, EventKind, Flush, Offset, Partition, ProducerEpoch, ProducerId,
    ProducerSequence, ReadOptions, Record, ResetTo, StartAt, Store, Timestamp, TopicConfig,
    VerifyOptions,
};

use crate::random::{Random, setting, tell};

const SECOND: Duration = Duration::from_secs(1);

fn id_of(at: usize) -> DiskId {
    DiskId(u16::try_from(at).unwrap())
}

fn disks_from(seed: u64, count: u64) -> Vec<SimDisk> {
    let disks: Vec<_> = (0..count).map(|at| SimDisk::new(seed + at)).collect();
    disks[1..].iter().for_each(|disk| disk.share_process(&disks[0]));
    disks
}

/// Opens the store without the disks that are `away`.
fn open(disks: &[SimDisk], clock: &Clock, away: &[usize]) -> Result<Store, Error> {
    let mut builder =
        Store::builder().clock(clock.clone()).append_timeout(Duration::from_millis(20));
    for (at, disk) in disks.iter().enumerate() {
        builder = if away.contains(&at) {
            builder.allow_missing(id_of(at))
        } else {
            builder.simulated_disk(disk.clone())
        };
    }
    builder.open()
}

fn read_all(partition: &Partition) -> Result<BTreeMap<u64, Vec<u8>>, Error> {
    let (mut found, mut offset) = (BTreeMap::new(), partition.log_start_offset());
    loop {
        let records = partition.read(offset, ReadOptions::new().max_bytes(3000))?;
        for record in &records {
            found.insert(record.offset().0, record.value().unwrap().to_vec());
        }
        if records.next_offset() == offset {
            return Ok(found);
        }
        offset = records.next_offset();
    }
}

fn settle(store: &Store, clock: &Clock) {
    for _ in 0..60 {
        clock.advance(Duration::from_millis(20));
        store.run_background();
    }
}

/// A failed flush took all of a leader's log, and it was not known that it had held what is acknowledged: it led without that
/// while the only other was away, which was cut to nothing when it came back.
#[test]
fn inv_02_a_log_that_a_failed_flush_emptied_does_not_lead_while_another_has_the_rest() {
    for call in 1.. {
        let (disks, clock) = (disks_from(7, 3), Clock::manual(Timestamp(1_000_000)));
        let again = || {
            disks[0].kill();
            disks.iter().for_each(SimDisk::heal);
            disks.iter().for_each(SimDisk::process_restart);
        };
        let store = open(&disks, &clock, &[]).unwrap();
        let config = TopicConfig::new().replication_factor(2).min_insync_replicas(2);
        store.create_topic("t", config.flush(Flush::Os)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        assert_eq!(partition.replicas(), [id_of(0), id_of(1)]);
        for attempt in 0..6 {
            partition.append(&[Record::new(&value(attempt))], Acks::All).unwrap();
        }
        again();
        drop((partition, store));
        let store = open(&disks, &clock, &[0]).unwrap();
        assert_eq!(store.partition("t", 0).unwrap().leader(), Some(id_of(1)));
        // What failed is written down by too few, or by nobody.
        disks[1].fail_from(1, Fault::Eio);
        disks[2].crash_at(call);
        store.close(SECOND).unwrap_err();
        let died = disks[2].is_dead();
        again();
        drop(store);
        let store = open(&disks, &clock, &[0]).unwrap();
        if let Ok(partition) = store.partition("t", 0) {
            let _ = partition.append(&[Record::new(&value(9))], Acks::Leader);
        }
        again();
        drop(store);
        let store = open(&disks, &clock, &[]).unwrap();
        settle(&store, &clock);
        let partition = store.partition("t", 0).unwrap();
        let found = read_all(&partition).unwrap();
        let expected: Vec<_> = (0..6).map(value).collect();
        assert_eq!(found.into_values().take(6).collect::<Vec<_>>(), expected, "at call {call}");
        assert_eq!(partition.in_sync_replicas().len(), 2, "at call {call}");
        if !died {
            break;
        }
    }
}

/// All are in sync, and whoever leads has the same (INV-03).
fn all_have_the_same(store: &Store, partition: &Partition, clock: &Clock) {
    settle(store, clock);
    let replicas = partition.replicas();
    let in_sync = partition.in_sync_replicas();
    assert_eq!(in_sync.len(), replicas.len(), "all are in sync: {in_sync:?}");
    let found = read_all(partition).unwrap();
    for replica in replicas {
        let leader = partition.leader().unwrap();
        if replica != leader {
            store.stop_disk(leader).unwrap();
            assert_eq!(
                read_all(partition).unwrap(),
                found,
                "INV-03: {:?} leads",
                partition.leader()
            );
            store.start_disk(leader).unwrap();
            settle(store, clock);
        }
    }
    let report = store.verify(VerifyOptions::new()).unwrap();
    assert_eq!(report.damages, []);
}

/// Each disk of two led on its own, under one epoch: what both had written there was taken for the same, and whoever read
/// it read other records once the other one led.
#[test]
fn inv_03_two_disks_that_went_on_without_each_other_hold_the_same_when_they_are_together() {
    for (first, second) in [(3, 5), (5, 3), (4, 4), (0, 3), (3, 0)] {
        for kills in [false, true] {
            let (disks, clock) = (disks_from(1, 2), Clock::manual(Timestamp(1_000_000)));
            let store = open(&disks, &clock, &[]).unwrap();
            let config = TopicConfig::new().replication_factor(2).min_insync_replicas(1);
            store.create_topic("t", config.flush(Flush::OnAck)).unwrap();
            let partition = store.partition("t", 0).unwrap();
            partition.append(&[Record::new("of both")], Acks::All).unwrap();
            store.close(SECOND).unwrap();
            drop((store, partition));
            for (alone, count) in [(0, first), (1, second)] {
                let store = open(&disks, &clock, &[1 - alone]).unwrap();
                let partition = store.partition("t", 0).unwrap();
                for at in 0..count {
                    let value = format!("{at} of {alone}");
                    partition.append(&[Record::new(value.as_bytes())], Acks::All).unwrap();
                }
                if kills {
                    disks[alone].kill();
                } else {
                    store.close(SECOND).unwrap();
                }
                drop((store, partition));
                disks.iter().for_each(SimDisk::process_restart);
            }
            let store = open(&disks, &clock, &[]).unwrap();
            let partition = store.partition("t", 0).unwrap();
            let found = read_all(&partition).unwrap();
            assert_eq!(found[&0], b"of both");
            let leader = partition.leader().unwrap();
            let kept = if leader == DiskId(0) { first } else { second };
            assert_eq!(found.len() - 1, kept, "one of them is there wholly");
            let given_up: Vec<_> = store
                .events()
                .filter_map(|event| match event.kind {
                    EventKind::GaveWay { disk, offsets, .. } => Some((disk, offsets)),
                    _ => None,
                })
                .collect();
            let lost = u64::try_from(first + second - kept).unwrap();
            let expected = (lost > 0).then(|| (DiskId(1 - leader.0), Offset(1)..Offset(1 + lost)));
            assert_eq!(given_up, Vec::from_iter(expected));
            all_have_the_same(&store, &partition, &clock);
        }
    }
}

/// What one disk deleted was damage to the other's metadata, which were the newer ones: readers met it, and part of it
/// came back.
#[test]
fn inv_03_what_a_disk_deleted_alone_is_deleted_if_it_leads_and_is_copied_to_it_if_not() {
    for (others, appends, replicas) in [(0, 8, 2), (8, 0, 2), (0, 8, 1)] {
        let mut is_reached = true;
        for cut in 0.. {
            if !is_reached {
                assert!(cut > 40, "an opening makes more calls than {cut}");
                break;
            }
            let (disks, clock) = (disks_from(1, 2), Clock::manual(Timestamp(1_000_000)));
            let store = open(&disks, &clock, &[]).unwrap();
            let config = TopicConfig::new().replication_factor(replicas).min_insync_replicas(1);
            store.create_topic("t", config.flush(Flush::OnAck).segment_bytes(4096)).unwrap();
            let partition = store.partition("t", 0).unwrap();
            let keeper = partition.leader().unwrap();
            let other = DiskId(1 - keeper.0);
            let long = |what: &str| format!("{what}{}", "x".repeat(1000));
            for at in 0..40 {
                let value = long(&format!("{at}"));
                partition.append(&[Record::new(value.as_bytes())], Acks::All).unwrap();
            }
            store.close(SECOND).unwrap();
            drop((store, partition));
            let store = open(&disks, &clock, &[usize::from(other.0)]).unwrap();
            let partition = store.partition("t", 0).unwrap();
            partition.delete_records(Offset(30)).unwrap();
            for _ in 0..appends {
                partition.append(&[Record::new("of the one")], Acks::All).unwrap();
            }
            store.close(SECOND).unwrap();
            drop((store, partition));
            // And the other one's metadata are newer.
            for _ in 0..3 {
                let store = open(&disks, &clock, &[usize::from(keeper.0)]).unwrap();
                for _ in 0..others {
                    let partition = store.partition("t", 0).unwrap();
                    partition.append(&[Record::new("of the other")], Acks::All).unwrap();
                }
                store.create_topic(&format!("u{}", clock.now().0), TopicConfig::new()).unwrap();
                clock.advance(SECOND);
                store.close(SECOND).unwrap();
            }
            // A crash at any call of the opening that settles it changes nothing.
            if cut > 0 {
                let dies = &disks[usize::from(if cut % 2 == 0 { keeper.0 } else { other.0 })];
                dies.crash_at(cut / 2 + 1);
                let opened = open(&disks, &clock, &[]).map(|store| store.partition("t", 0));
                is_reached = dies.is_dead();
                dies.kill();
                drop(opened);
                disks.iter().for_each(SimDisk::heal);
                disks.iter().for_each(SimDisk::process_restart);
            }
            let store = open(&disks, &clock, &[]).unwrap();
            let partition = store.partition("t", 0).unwrap();
            settle(&store, &clock);
            let start = partition.log_start_offset();
            let found = read_all(&partition).unwrap();
            let leads = partition.leader() == Some(keeper);
            assert_eq!(leads, others == 0, "who was used leads");
            assert_eq!(start, if leads { Offset(30) } else { Offset(0) });
            let end = partition.high_watermark();
            assert_eq!(found.len() as u64, end.0 - start.0, "cut at {cut}");
            for (at, value) in found.range(..40) {
                assert_eq!(value, long(&at.to_string()).as_bytes());
            }
            let damaged =
                store.events().any(|event| matches!(event.kind, EventKind::Damaged { .. }));
            assert!(!(leads && damaged), "what was deleted is no damage");
            if replicas == 2 {
                all_have_the_same(&store, &partition, &clock);
                assert_eq!(partition.log_start_offset(), start);
            }
            store.close(SECOND).unwrap();
            drop((store, partition));
            let store = open(&disks, &clock, &[]).unwrap();
            let partition = store.partition("t", 0).unwrap();
            let again = read_all(&partition).unwrap();
            let what = format!("{others}, {appends}, {replicas}, cut at {cut}");
            assert!(again == found, "{what}: {:?} of {:?}", again.keys(), found.keys());
        }
    }
}

struct World {
    disks: Vec<SimDisk>,
    clock: Clock,
    flush: Flush,
    min_insync: u16,
    attempts: u64,
    /// Acknowledged by every in-sync replica: offset to attempt.
    kept: BTreeMap<u64, u64>,
    /// What was deleted, and what may have been.
    deleted: u64,
    deleted_max: u64,
    /// The power was lost, and what is left has not been seen yet.
    lossy: bool,
    /// Of two disks, those that have gone on alone since both were together. Where both have, one gives way.
    alone: BTreeSet<usize>,
    /// The last numbered batch, and whether it was acknowledged.
    sequence: u64,
    numbered: Option<(u64, bool)>,
    epoch: u32,
    trace: bool,
}

/// The watermark was lost with the disk that led one of the two partitions, and the other replica alone is too few to tell it anew:
/// a snapshot had the other half of the transactions, and a backup left out all that the partition had acknowledged.
#[test]
fn what_is_cut_while_it_is_not_known_what_was_acknowledged_lacks_nothing_of_it() {
    for power in [false, true] {
        let (disks, clock) = (disks_from(1, 3), Clock::manual(Timestamp(1_000_000)));
        let store = open(&disks, &clock, &[]).unwrap();
        let config = TopicConfig::new().partitions(2).replication_factor(2).min_insync_replicas(2);
        store.create_topic("t", config).unwrap();
        let both: [(&str, u32, &[Record<'_>]); 2] =
            [("t", 0, &[Record::new("left")]), ("t", 1, &[Record::new("right")])];
        store.append_atomic(&both, SECOND).unwrap();
        for at in 0..2 {
            // The markers are safe with it.
            let partition = store.partition("t", at).unwrap();
            partition.append(&[Record::new("plain")], Acks::All).unwrap();
        }
        settle(&store, &clock);
        let first = usize::from(store.partition("t", 0).unwrap().leader().unwrap().0);
        disks[0].kill();
        drop(store);
        let reopen = |away: &[usize]| {
            for disk in &disks {
                if power { disk.power_loss() } else { disk.process_restart() }
            }
            open(&disks, &clock, away).unwrap()
        };
        let store = reopen(&[first]);
        let cut = store.snapshot(&[("t", 0), ("t", 1)]);
        assert!(matches!(cut, Err(Error::TimedOut { .. })), "power {power}");
        let copy = store.backup_to_simulated_disk(SimDisk::new(7));
        assert!(matches!(copy, Err(Error::TimedOut { .. })), "power {power}: {copy:?}");
        drop(store);
        let store = reopen(&[]);
        settle(&store, &clock);
        let cut = store.snapshot(&[("t", 0), ("t", 1)]).unwrap();
        for at in 0..2 {
            let read = cut.read("t", at, Offset(0), ReadOptions::new()).unwrap();
            assert_eq!(read.count(), 2, "power {power}");
        }
        let target = SimDisk::new(8);
        store.backup_to_simulated_disk(target.clone()).unwrap();
        let copy = open(&[target], &clock, &[]).unwrap();
        for at in 0..2 {
            let found = read_all(&copy.partition("t", at).unwrap()).unwrap();
            assert_eq!(found.len(), 2, "power {power}");
        }
    }
}

/// Where the watermark was lost, the end seemed to be at the beginning: `Latest` meant all that there is, and offsets of a group that
/// were set by hand were set back.
#[test]
fn whoever_asks_for_the_end_while_it_is_not_known_is_not_sent_to_the_beginning() {
    let (disks, clock) = (disks_from(1, 3), Clock::manual(Timestamp(1_000_000)));
    let store = open(&disks, &clock, &[]).unwrap();
    let config = TopicConfig::new().replication_factor(2).min_insync_replicas(2);
    store.create_topic("t", config).unwrap();
    let partition = store.partition("t", 0).unwrap();
    for _ in 0..10 {
        partition.append(&[Record::new("old")], Acks::All).unwrap();
    }
    store.reset_offsets("done", "t", ResetTo::Latest).unwrap();
    settle(&store, &clock);
    let first = usize::from(partition.leader().unwrap().0);
    drop(partition);
    let reopen = |store: Store, away: &[usize]| {
        disks[0].kill();
        drop(store);
        disks.iter().for_each(SimDisk::process_restart);
        open(&disks, &clock, away).unwrap()
    };
    let latest = |store: &Store, group: &str| {
        let builder = store.consumer().group(group).start(StartAt::Latest);
        let mut consumer = builder.api_timeout(Duration::from_millis(5)).build().unwrap();
        consumer.assign(&[("t", 0)]).unwrap();
        consumer
    };
    let is_late = |outcome: Result<(), Error>| matches!(outcome, Err(Error::TimedOut { .. }));

    let store = reopen(store, &[first]);
    for to in [ResetTo::Latest, ResetTo::To(Offset(9)), ResetTo::Shift(0)] {
        let told = store.reset_offsets("done", "t", to);
        assert!(matches!(told, Err(Error::TimedOut { .. })), "{to:?}: {told:?}");
    }
    let mut consumer = latest(&store, "done");
    assert!(is_late(consumer.seek_to_end("t", 0)));
    assert!(is_late(consumer.seek_to_time("t", 0, Timestamp(0))));
    assert_eq!(consumer.position("t", 0).unwrap(), Offset(10));
    let mut consumer = latest(&store, "new");
    assert!(consumer.poll(Duration::ZERO).unwrap().is_empty());
    let told = consumer.position("t", 0);
    assert!(matches!(told, Err(Error::TimedOut { .. })), "{told:?}");
    // Nor is anybody told that there is nothing, or nothing left.
    let partition = store.partition("t", 0).unwrap();
    let times = [("t", 0, Timestamp(0))];
    assert!(is_late(partition.offset_for_time(Timestamp(0)).map(drop)));
    assert!(is_late(consumer.offsets_for_times(&times).map(drop)));
    assert!(is_late(partition.delete_records(Offset(3)).map(drop)));
    consumer.seek("t", 0, Offset(2)).unwrap();
    assert_eq!(consumer.lag().unwrap(), BTreeMap::new());
    assert_eq!(store.group("done").unwrap().offsets[0].lag, None);
    drop((consumer, partition));

    let store = reopen(store, &[]);
    let mut consumer = latest(&store, "new");
    assert!(consumer.poll(Duration::ZERO).unwrap().is_empty());
    settle(&store, &clock);
    let partition = store.partition("t", 0).unwrap();
    assert_eq!(partition.offset_for_time(Timestamp(0)).unwrap(), Some(Offset(0)));
    assert_eq!(consumer.offsets_for_times(&times).unwrap().len(), 1);
    assert_eq!(partition.delete_records(Offset(3)).unwrap(), Offset(3));
    assert_eq!(store.group("done").unwrap().offsets[0].lag, Some(0));
    assert!(consumer.poll(Duration::ZERO).unwrap().is_empty());
    store.partition("t", 0).unwrap().append(&[Record::new("young")], Acks::All).unwrap();
    let found: Vec<_> = consumer.poll(Duration::ZERO).unwrap().iter().map(|r| r.offset()).collect();
    assert_eq!(found, [Offset(10)]);
}

fn value(attempt: u64) -> Vec<u8> {
    let mut bytes = attempt.to_le_bytes().to_vec();
    bytes.extend((0..attempt % 61).map(|at| u8::try_from((attempt * 31 + at * 7) % 251).unwrap()));
    bytes
}

impl World {
    fn note(&self, what: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{}", what());
        }
    }

    fn is_dead(&self) -> bool {
        self.disks.iter().any(SimDisk::is_dead)
    }

    fn is_apart(&self) -> bool {
        self.alone.len() > 1
    }

    /// A disk goes on without the other.
    fn part(&mut self, at: usize) {
        if self.disks.len() == 2 {
            self.alone.insert(at);
        }
        if self.is_apart() {
            self.kept.clear();
            self.deleted = 0;
            self.renew();
        }
    }

    /// The producer begins its numbers anew.
    fn renew(&mut self) {
        (self.epoch, self.sequence, self.numbered) = (self.epoch + 1, 0, None);
    }

    fn append(&mut self, partition: &Partition, random: &mut Random) {
        if self.lossy && self.flush != Flush::OnAck {
            return; // what is left is to be seen first
        }
        let acks = if random.one_in(5) { Acks::Leader } else { Acks::All };
        if random.one_in(3) {
            return self.append_numbered(partition);
        }
        let attempt = self.attempts;
        self.attempts += 1;
        let outcome = partition.append(&[Record::new(&value(attempt))], acks);
        self.note(|| format!("append {attempt} {acks:?}: {outcome:?}"));
        if let Ok(appended) = outcome
            && acks == Acks::All
            && !self.is_dead()
            && !self.is_apart()
        {
            self.kept.insert(appended.offsets.start.0, attempt);
        }
    }

    /// The next numbered record; the last one again, as long as it is not known to be there.
    fn append_numbered(&mut self, partition: &Partition) {
        let attempt = match self.numbered {
            Some((attempt, false)) => attempt,
            known => {
                self.sequence += u64::from(known.is_some());
                self.attempts += 1;
                self.attempts - 1
            }
        };
        let (id, epoch) = (ProducerId(7), ProducerEpoch(self.epoch));
        let given = ProducerSequence { id, epoch, sequence: self.sequence };
        let outcome =
            partition.append_idempotent(given, &[Record::new(&value(attempt))], Acks::All);
        self.note(|| format!("numbered {attempt} {given:?}: {outcome:?}"));
        self.numbered = Some((attempt, outcome.is_ok() && !self.is_dead()));
        match outcome {
            Ok(appended) if !self.is_dead() && !self.is_apart() => {
                self.kept.insert(appended.offsets.start.0, attempt);
            }
            Err(_) if self.is_apart() => self.renew(),
            Ok(_) => {}
            Err(error) => assert!(
                self.is_dead()
                    || !matches!(
                        error,
                        Error::OutOfOrderSequence { .. }
                            | Error::DuplicateSequence { .. }
                            | Error::ProducerFenced { .. }
                    ),
                "{given:?} was refused: {error}"
            ),
        }
    }

    fn delete(&mut self, partition: &Partition, random: &mut Random) {
        if self.lossy {
            return;
        }
        let (start, end) = (partition.log_start_offset().0, partition.high_watermark().0);
        let before = start + random.below(end - start + 1);
        let outcome = partition.delete_records(Offset(before));
        self.note(|| format!("delete before {before}: {outcome:?}"));
        self.deleted_max = self.deleted_max.max(before);
        if outcome.is_ok() && !self.is_dead() && !self.is_apart() {
            self.deleted = self.deleted.max(before);
        }
    }

    /// What was acknowledged is there, and nothing is there twice.
    fn judge(&mut self, partition: &Partition) {
        let found = match read_all(partition) {
            Ok(found) => found,
            Err(error) => return assert!(self.is_dead(), "{error}"),
        };
        let (start, end) = (partition.log_start_offset().0, partition.high_watermark().0);
        assert!(start >= self.deleted && start <= self.deleted_max, "starts at {start}");
        self.kept = self.kept.split_off(&start);
        let mut seen = BTreeMap::new();
        for (at, bytes) in &found {
            let attempt = u64::from_le_bytes(*bytes.first_chunk().unwrap());
            assert_eq!(bytes, &value(attempt), "bad bytes at {at}");
            assert!(attempt < self.attempts, "invented: {attempt} at {at}");
            assert_eq!(seen.insert(attempt, *at), None, "{attempt} is there twice, again at {at}");
        }
        let lost = self.lossy && self.flush != Flush::OnAck;
        if lost {
            self.kept.split_off(&end);
            if self.numbered.is_some_and(|(attempt, _)| !seen.contains_key(&attempt)) {
                // It went with the tail: its numbers are begun anew, as a producer would.
                self.renew();
            }
        }
        for (at, attempt) in &self.kept {
            assert_eq!(seen.get(attempt), Some(at), "INV-02: {attempt} at {at} is lost, end {end}");
        }
        self.lossy = false;
    }

    fn tell(&mut self, random: &mut Random) {
        let replicas = 2 + u16::try_from(random.below(2)).unwrap();
        let replicas = replicas.min(u16::try_from(self.disks.len()).unwrap());
        let store = open(&self.disks, &self.clock, &[]).unwrap();
        let config = TopicConfig::new()
            .replication_factor(replicas)
            .min_insync_replicas(self.min_insync)
            .flush(self.flush)
            .segment_bytes(4096)
            .index_interval_bytes(256);
        store.create_topic("t", config).unwrap();
        drop(store);
        for _ in 0..8 {
            // Mostly such as leave a majority, or one of two.
            let most = if random.one_in(4) { self.disks.len() - 1 } else { self.disks.len() / 3 };
            let count = random.index(1 + most.max(usize::from(self.disks.len() == 2)));
            let mut away: Vec<_> = (0..self.disks.len()).collect();
            while away.len() > count {
                away.swap_remove(random.index(away.len()));
            }
            self.live(&away, random);
        }
        self.live(&[], random);
        let store = open(&self.disks, &self.clock, &[]).unwrap();
        let partition = store.partition("t", 0).unwrap();
        settle(&store, &self.clock);
        if self.trace {
            store.events().for_each(|event| eprintln!("event: {event}"));
        }
        self.judge(&partition);
        all_have_the_same(&store, &partition, &self.clock);
        self.judge(&partition);
    }

    /// A session without the disks that are `away`.
    fn live(&mut self, away: &[usize], random: &mut Random) {
        let here: Vec<_> = (0..self.disks.len()).filter(|at| !away.contains(at)).collect();
        if random.one_in(3) {
            self.disks[here[0]].crash_at(random.below(250));
        }
        let opened = open(&self.disks, &self.clock, away);
        self.note(|| format!("without {away:?}: {:?}", opened.as_ref().map(|_| ())));
        if !away.is_empty() {
            // Also an opening that comes to nothing may have decided something.
            self.part(here[0]);
        }
        if let Ok(store) = opened {
            let told = self.trace.then(|| store.events());
            self.live_in(&store, &here, random);
            told.into_iter().flatten().for_each(|event| eprintln!("event: {event}"));
            if random.one_in(2) && !self.is_dead() {
                let closed = store.close(SECOND);
                self.note(|| format!("closed: {closed:?}"));
            } else {
                self.disks[here[0]].kill();
            }
        } else if let Err(error) = &opened {
            let minority = here.len() <= self.disks.len() / 2 && self.disks.len() > 2;
            let few = minority && matches!(error, Error::MissingDisk { .. });
            assert!(few || self.is_dead(), "without {away:?}: {error}");
        }
        let power = random.one_in(3);
        self.lossy |= power;
        self.note(|| format!("power {power}"));
        for disk in &self.disks {
            disk.heal();
            if power { disk.power_loss() } else { disk.process_restart() }
        }
    }

    /// Disks fail, several at once as well, and all come back.
    fn fail_or_heal(
        &mut self,
        store: &Store,
        here: &[usize],
        failed: &mut Vec<usize>,
        random: &mut Random,
    ) {
        if !failed.is_empty() {
            for at in failed.drain(..) {
                self.disks[at].heal();
                let started = store.start_disk(id_of(at));
                self.note(|| format!("disk {at} is well: {started:?}"));
            }
            return;
        }
        let count = if self.disks.len() > 2 && random.one_in(3) { 2 } else { 1 };
        for _ in 0..count.min(here.len() - 1) {
            let at = here[random.index(here.len())];
            self.note(|| format!("disk {at} fails"));
            self.part(usize::from(at == 0));
            failed.push(at);
            if random.one_in(3) {
                let stopped = store.stop_disk(id_of(at));
                self.note(|| format!("it is stopped: {stopped:?}"));
            } else {
                self.disks[at].fail_from(1 + random.below(5), Fault::Eio);
            }
        }
    }

    fn live_in(&mut self, store: &Store, here: &[usize], random: &mut Random) {
        // Nobody may be able to lead.
        let Ok(partition) = store.partition("t", 0) else { return };
        if random.one_in(2) {
            settle(store, &self.clock);
        }
        // The watermark stands still while too few are here, and while nobody leads.
        let enough = partition.in_sync_replicas().len() >= usize::from(self.min_insync);
        if enough && partition.leader().is_some() && !self.is_dead() {
            self.judge(&partition);
            if here.len() == 2 && partition.in_sync_replicas().len() == 2 {
                if self.is_apart() {
                    self.renew();
                }
                self.alone.clear();
            }
        }
        let mut failed = Vec::new();
        for _ in 0..random.below(25) {
            match random.below(12) {
                0 | 1 => {
                    let span = if random.one_in(4) { 6000 } else { random.below(100) };
                    self.clock.advance(Duration::from_millis(span));
                    store.run_background();
                }
                2 if random.one_in(2) => self.fail_or_heal(store, here, &mut failed, random),
                3 if random.one_in(3) => self.delete(&partition, random),
                _ => self.append(&partition, random),
            }
            if self.is_dead() {
                return;
            }
        }
    }
}

fn tell_story(seed: u64, count: u64) {
    let mut random = Random(seed);
    let disks = disks_from(seed * 100, count);
    let levels = [Flush::OnAck, Flush::OnAck, Flush::Os, Flush::Interval(SECOND)];
    let mut world = World {
        disks,
        clock: Clock::manual(Timestamp(1_000_000)),
        flush: levels[random.index(4)],
        min_insync: 1 + u16::try_from(random.below(2)).unwrap(),
        attempts: 0,
        kept: BTreeMap::new(),
        deleted: 0,
        deleted_max: 0,
        lossy: false,
        alone: BTreeSet::new(),
        sequence: 0,
        numbered: None,
        epoch: 0,
        trace: std::env::var_os("ONCELOG_TRACE").is_some(),
    };
    let what = format!("{count} disks, {:?}, min in-sync {}", world.flush, world.min_insync);
    tell(seed, &what, || world.tell(&mut random));
}

/// A majority decides, so that nothing is lost whoever is away.
#[test]
fn random_stories_of_three_and_four_disks_of_which_others_are_missing_each_time_lose_nothing() {
    let (first, count) = (setting("ONCELOG_SEED", 1), setting("ONCELOG_STORIES", 100));
    (first..first + count).for_each(|seed| tell_story(seed, 3 + seed % 2));
}

/// Each may go on without the other, and one gives way when they meet: wholly.
#[test]
fn random_stories_of_two_disks_that_part_and_meet_end_with_the_same_on_both() {
    let (first, count) = (setting("ONCELOG_SEED", 1), setting("ONCELOG_STORIES", 100));
    (first..first + count).for_each(|seed| tell_story(seed, 2));
}

/// After a power loss, records were read that one in sync did not have any more; it led next, without them.
#[test]
fn a_story_that_ended_badly() {
    tell_story(1073, 4);
}
