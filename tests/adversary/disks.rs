//! Disks that come, go, fill up and lose power while partitions move, shrink and change their settings: the steps of an
//! operator, a crash between any two of them, and whatever meets them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use oncelog::simulation::{Clock, Fault, SimDisk, SyncFault};
use oncelog::{
    Acks, DiskId, DiskState, Error, Flush, Isolation, Offset, Partition, ProducerEpoch, ProducerId,
    ProducerSequence, Record, Store, Timestamp, TopicConfig, TopicUpdate, VerifyOptions, Written,
};

use crate::random::{Random, setting, tell};
use crate::small_store::{disks, open, pass, read_all, together};

const SECOND: Duration = Duration::from_secs(1);
/// Within which followers are back.
const QUIET: Duration = Duration::from_millis(1500);

fn clock() -> Clock {
    Clock::manual(Timestamp(1_000_000))
}

fn small(replicas: u16) -> TopicConfig {
    TopicConfig::new().replication_factor(replicas).segment_bytes(4096).index_interval_bytes(256)
}

fn numbered(sequence: u64) -> ProducerSequence {
    ProducerSequence { id: ProducerId(7), epoch: ProducerEpoch(0), sequence }
}

fn append(partition: &Partition, count: u64) {
    for at in 0..count {
        partition.append(&[Record::new([at.to_le_bytes(); 25].as_flattened())], Acks::All).unwrap();
    }
}

/// The log's start was durable before what told of the producers was, so that a crash between the two took the files
/// and with them the memory of who wrote them.
#[test]
fn a_crash_within_the_deletion_of_records_forgets_no_producer() {
    for replicas in 1..=2 {
        for call in 1..1000 {
            let (disks, clock) = (disks(replicas), clock());
            let store = open(&disks, &clock).unwrap();
            store.create_topic("t", small(u16::try_from(replicas).unwrap())).unwrap();
            let partition = store.partition("t", 0).unwrap();
            let first = [Record::new("once")];
            let placed = partition.append_idempotent(numbered(0), &first, Acks::All).unwrap();
            append(&partition, 60);
            disks[0].crash_at(call);
            let deleted = partition.delete_records(Offset(50));
            let died = disks[0].is_dead();
            drop((partition, store));
            disks.iter().for_each(|disk| disk.heal());
            disks.iter().for_each(SimDisk::process_restart);
            let store = open(&disks, &clock).unwrap();
            let partition = store.partition("t", 0).unwrap();
            let again = partition.append_idempotent(numbered(0), &first, Acks::All).unwrap();
            assert!(again.duplicate, "appended twice; {replicas} replicas, crash at call {call}");
            assert_eq!(again.offsets, placed.offsets);
            assert_eq!(partition.log_end_offset(), Offset(61));
            if !died {
                assert_eq!(deleted.unwrap(), Offset(50));
                break;
            }
        }
    }
}

#[test]
fn records_are_deleted_on_a_full_disk_although_producers_are_to_be_remembered() {
    for replicas in 1..=2 {
        for full in 0..replicas {
            let (disks, clock) = (disks(replicas), clock());
            let store = open(&disks, &clock).unwrap();
            store.create_topic("t", small(u16::try_from(replicas).unwrap())).unwrap();
            let partition = store.partition("t", 0).unwrap();
            let first = [Record::new("once")];
            partition.append_idempotent(numbered(0), &first, Acks::All).unwrap();
            append(&partition, 60);
            disks[usize::try_from(full).unwrap()].set_free_bytes(Some(0));
            let deleted = partition.delete_records(Offset(50));
            assert_eq!(deleted.unwrap(), Offset(50), "{replicas} replicas, disk {full} is full");
            drop((partition, store));
            disks.iter().for_each(SimDisk::process_restart);
            let store = open(&disks, &clock).unwrap();
            let partition = store.partition("t", 0).unwrap();
            let again = partition.append_idempotent(numbered(0), &first, Acks::All).unwrap();
            assert!(again.duplicate);
        }
    }
}

/// What was written down of the producers told of records that were not flushed: a power loss took those, and what told
/// of more than the log then held was not believed.
#[test]
fn a_power_loss_behind_the_deletion_of_records_forgets_no_producer() {
    for flush in [Flush::OnAck, Flush::Interval(SECOND), Flush::Os] {
        for replicas in 1..=2 {
            let (disks, clock) = (disks(replicas), clock());
            let store = open(&disks, &clock).unwrap();
            let config = small(u16::try_from(replicas).unwrap()).flush(flush);
            store.create_topic("t", config).unwrap();
            let partition = store.partition("t", 0).unwrap();
            let first = [Record::new("once")];
            partition.append_idempotent(numbered(0), &first, Acks::All).unwrap();
            append(&partition, 60);
            for _ in 0..5 {
                partition.append(&[Record::new("not waited for")], Acks::None).unwrap();
            }
            partition.delete_records(Offset(50)).unwrap();
            disks[0].kill();
            drop((partition, store));
            disks.iter().for_each(SimDisk::power_loss);
            let store = open(&disks, &clock).unwrap();
            let partition = store.partition("t", 0).unwrap();
            let again = partition.append_idempotent(numbered(0), &first, Acks::All).unwrap();
            assert!(again.duplicate, "appended twice: {flush:?}, {replicas} replicas");
        }
    }
}

/// A copy that begins inside a batch forgot what its leader had told it of the producers before.
#[test]
fn a_producer_is_known_where_its_partition_was_moved_after_its_records_were_deleted() {
    for away in [false, true] {
        for background in [false, true] {
            let (disks, clock) = (disks(3), clock());
            let store = open(&disks, &clock).unwrap();
            store.create_topic("t", small(2)).unwrap();
            let partition = store.partition("t", 0).unwrap();
            let first = [Record::new("once")];
            partition.append_idempotent(numbered(0), &first, Acks::All).unwrap();
            append(&partition, 45);
            let batch: Vec<_> = (0..20).map(|_| Record::new("one of many")).collect();
            partition.append(&batch, Acks::All).unwrap();
            partition.delete_records(Offset(50)).unwrap();
            if away {
                store.reassign("t", 0, &[DiskId(0)]).unwrap();
                store.reassign("t", 0, &[DiskId(0), DiskId(1)]).unwrap();
            } else {
                store.reassign("t", 0, &[DiskId(2)]).unwrap();
            }
            if background {
                pass(&store, &clock, QUIET);
            }
            append(&partition, 1);
            partition.delete_records(Offset(55)).unwrap();
            let again = partition.append_idempotent(numbered(0), &first, Acks::All).unwrap();
            assert!(again.duplicate, "away {away} background {background}");
        }
    }
}

/// What a clean stop had said of a replica that was moved away since was believed of the new one.
#[test]
fn a_replica_that_comes_back_to_a_disk_begins_empty() {
    for restart in 0..3 {
        let (disks, clock) = (disks(3), clock());
        let store = open(&disks, &clock).unwrap();
        store.create_topic("t", small(2)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        assert_eq!(partition.replicas(), [DiskId(0), DiskId(1)]);
        append(&partition, 60);
        drop(partition);
        store.close(SECOND).unwrap();
        disks.iter().for_each(SimDisk::process_restart);
        let mut store = open(&disks, &clock).unwrap();
        store.reassign("t", 0, &[DiskId(0), DiskId(2)]).unwrap();
        match restart {
            0 => {
                store.stop_disk(DiskId(1)).unwrap();
                store.start_disk(DiskId(1)).unwrap();
            }
            1 => {
                drop(store);
                disks.iter().for_each(SimDisk::process_restart);
                store = open(&disks, &clock).unwrap();
            }
            _ => {
                drop(store);
                disks.iter().for_each(SimDisk::power_loss);
                store = open(&disks, &clock).unwrap();
            }
        }
        store.reassign("t", 0, &[DiskId(1)]).unwrap();
        pass(&store, &clock, QUIET);
        let partition = store.partition("t", 0).unwrap();
        assert_eq!(partition.replicas(), [DiskId(1)]);
        let found = read_all(&partition, Isolation::ReadUncommitted);
        let offsets: Vec<_> = found.iter().map(|(offset, _)| *offset).collect();
        assert_eq!(offsets, (0..60).collect::<Vec<_>>(), "way {restart}");
    }
}

/// The replicas that had them durably were removed as soon as others had them in memory.
#[test]
fn records_that_were_durable_are_so_when_their_partition_has_moved() {
    for flush in [Flush::OnAck, Flush::Interval(SECOND), Flush::Os] {
        let (disks, clock) = (disks(4), clock());
        let store = open(&disks, &clock).unwrap();
        store.create_topic("t", small(2).flush(flush)).unwrap();
        append(&store.partition("t", 0).unwrap(), 60);
        store.close(SECOND).unwrap();
        disks.iter().for_each(SimDisk::process_restart);
        // With threads, which copy while the move waits.
        let builder = disks.iter().fold(Store::builder(), |b, disk| b.simulated_disk(disk.clone()));
        let store = builder.threads().open().unwrap();
        store.reassign("t", 0, &[DiskId(2), DiskId(3)]).unwrap();
        disks[0].kill();
        drop(store);
        disks.iter().for_each(SimDisk::power_loss);
        let store = open(&disks, &clock).unwrap();
        let found = read_all(&store.partition("t", 0).unwrap(), Isolation::ReadUncommitted);
        let offsets: Vec<_> = found.iter().map(|(offset, _)| *offset).collect();
        assert_eq!(offsets, (0..60).collect::<Vec<_>>(), "{flush:?}");
    }
}

/// A copy that was made while the topic asked for less was in sync with nothing on stable storage: alone after a power loss,
/// it led without what had been acknowledged as flushed.
#[test]
fn inv_02_what_was_acknowledged_as_flushed_is_so_on_a_replica_that_joins_later() {
    for (flush, restarts) in [
        (Flush::Interval(SECOND), false),
        (Flush::Os, false),
        (Flush::Interval(SECOND), true),
        (Flush::Os, true),
    ] {
        let (disks, clock) = (disks(3), clock());
        let mut store = open(&disks, &clock).unwrap();
        store.create_topic("t", small(2)).unwrap();
        store.stop_disk(DiskId(1)).unwrap();
        pass(&store, &clock, QUIET);
        append(&store.partition("t", 0).unwrap(), 60);
        store.alter_topic("t", TopicUpdate::new().flush(flush)).unwrap();
        if restarts {
            // What had been flushed, the next process does not know.
            disks[0].kill();
            drop(store);
            disks.iter().for_each(SimDisk::process_restart);
            store = open(&disks, &clock).unwrap();
        } else {
            store.start_disk(DiskId(1)).unwrap();
        }
        pass(&store, &clock, QUIET);
        let in_sync = store.partition("t", 0).unwrap().in_sync_replicas().len();
        assert_eq!(in_sync, 2, "{flush:?}, restarts {restarts}");
        disks[0].kill();
        drop(store);
        disks.iter().for_each(SimDisk::power_loss);
        let store = open(&disks[1..], &clock).unwrap();
        let found = read_all(&store.partition("t", 0).unwrap(), Isolation::ReadUncommitted);
        let offsets: Vec<_> = found.iter().map(|(offset, _)| *offset).collect();
        assert_eq!(offsets, (0..60).collect::<Vec<_>>(), "{flush:?}, restarts {restarts}");
    }
}

#[test]
fn what_is_older_than_the_interval_is_on_stable_storage_of_every_replica() {
    let (disks, clock) = (disks(3), clock());
    let store = open(&disks, &clock).unwrap();
    let topic = small(3).flush(Flush::Interval(SECOND)).segment_bytes(1 << 20);
    store.create_topic("t", topic).unwrap();
    let partition = store.partition("t", 0).unwrap();
    append(&partition, 60);
    pass(&store, &clock, SECOND + QUIET);
    let leader = partition.leader().unwrap();
    disks[0].kill();
    drop((store, partition));
    disks.iter().for_each(SimDisk::power_loss);
    let left: Vec<_> =
        (0..3).filter(|at| id_of(*at) != leader).map(|at| disks[at].clone()).collect();
    let store = open(&left, &clock).unwrap();
    assert_eq!(read_all(&store.partition("t", 0).unwrap(), Isolation::ReadUncommitted).len(), 60);
}

fn value(attempt: u64) -> Vec<u8> {
    let mut bytes = attempt.to_le_bytes().to_vec();
    bytes.extend((0..attempt % 97).map(|at| u8::try_from((attempt * 31 + at * 7) % 251).unwrap()));
    bytes
}

fn id_of(at: usize) -> DiskId {
    DiskId(u16::try_from(at).unwrap())
}

/// A batch of the story's one numbered producer.
#[derive(Clone, Copy, Debug)]
struct Batch {
    epoch: u32,
    sequence: u64,
    attempt: u64,
    /// Where it is, once that was acknowledged.
    placed: Option<u64>,
}

/// A store of four disks with one partition on one to three of them, and what was acknowledged.
struct World {
    disks: Vec<SimDisk>,
    seeds: u64,
    clock: Clock,
    flush: Flush,
    min_insync: u16,
    attempts: u64,
    /// Acknowledged by every in-sync replica: offset to attempt.
    kept: BTreeMap<u64, u64>,
    /// One past what was acknowledged as durable.
    durable: u64,
    /// What may be found at an offset; a numbered batch may be anywhere, once.
    possible: BTreeMap<u64, Vec<u64>>,
    numbered: Vec<u64>,
    producer: Option<Batch>,
    epoch: u32,
    deleted: u64,
    deleted_max: u64,
    troubled: Option<usize>,
    /// The directory that was to take a disk's place when the process died.
    spare: Option<(usize, SimDisk)>,
    sync_failed: bool,
    trace: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let disks = together((0..4).map(|at| SimDisk::new(seed * 100 + at)).collect());
        Self {
            disks,
            seeds: seed * 100 + 4,
            clock: clock(),
            flush: Flush::OnAck,
            min_insync: 1,
            attempts: 0,
            kept: BTreeMap::new(),
            durable: 0,
            possible: BTreeMap::new(),
            numbered: Vec::new(),
            producer: None,
            epoch: 0,
            deleted: 0,
            deleted_max: 0,
            troubled: None,
            spare: None,
            sync_failed: false,
            trace: std::env::var_os("ONCELOG_TRACE").is_some(),
        }
    }

    fn note(&self, what: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{}", what());
        }
    }

    fn is_dead(&self) -> bool {
        self.disks[0].is_dead()
    }

    fn open(&self, without: Option<usize>) -> Result<Store, Error> {
        let present = self.disks.iter().enumerate().filter(|(at, _)| Some(*at) != without);
        let spare = self.spare.iter().map(|(_, disk)| disk.clone());
        let present: Vec<_> = present.map(|(_, disk)| disk.clone()).chain(spare).collect();
        open(&present, &self.clock)
    }

    fn acknowledged(&mut self, at: u64, attempt: u64) {
        self.kept.insert(at, attempt);
        if self.flush == Flush::OnAck {
            self.durable = self.durable.max(at + 1);
        }
    }

    fn append(&mut self, partition: &Partition, random: &mut Random) {
        let count = 1 + random.below(4);
        let values: Vec<_> = (0..count).map(|at| value(self.attempts + at)).collect();
        let records: Vec<_> = values.iter().map(Record::new).collect();
        let acks = if random.below(5) == 0 { Acks::Leader } else { Acks::All };
        let before = partition.log_end_offset().0;
        let outcome = partition.append(&records, acks);
        self.note(|| {
            let isr = partition.in_sync_replicas();
            format!("append {acks:?} {count} at {before}: {outcome:?} isr {isr:?}")
        });
        let placed = match &outcome {
            Ok(appended) => Some(appended.offsets.start.0),
            Err(
                Error::NotEnoughReplicasAfterAppend { offsets, .. }
                | Error::TimedOut { appended: Some(offsets), .. },
            ) => Some(offsets.start.0),
            Err(error) => (error.written() != Written::No || self.is_dead()).then_some(before),
        };
        for at in 0..count {
            let Some(first) = placed else { break };
            self.possible.entry(first + at).or_default().push(self.attempts + at);
            if outcome.is_ok() && acks == Acks::All && !self.is_dead() {
                self.acknowledged(first + at, self.attempts + at);
            }
        }
        self.attempts += count;
    }

    /// The next numbered batch; the last one again, if it is not known to be there, or for the sake of it.
    fn append_numbered(&mut self, partition: &Partition, random: &mut Random) {
        let again = |batch: &Batch| batch.placed.is_none() || random.below(2) == 0;
        let known = self.producer.filter(again);
        let batch = known.unwrap_or_else(|| {
            let sequence = self.producer.map_or(0, |last| last.sequence + 1);
            self.attempts += 1;
            let attempt = self.attempts - 1;
            self.numbered.push(attempt);
            Batch { epoch: self.epoch, sequence, attempt, placed: None }
        });
        let bytes = value(batch.attempt);
        let given = ProducerSequence {
            id: ProducerId(7),
            epoch: ProducerEpoch(batch.epoch),
            sequence: batch.sequence,
        };
        let outcome = partition.append_idempotent(given, &[Record::new(&bytes)], Acks::All);
        self.note(|| format!("numbered {batch:?}: {outcome:?}"));
        self.producer = Some(batch);
        let Ok(appended) = outcome else {
            let error = outcome.unwrap_err();
            let odd = matches!(
                error,
                Error::OutOfOrderSequence { .. }
                    | Error::DuplicateSequence { .. }
                    | Error::ProducerFenced { .. }
            );
            assert!(!odd || self.is_dead(), "{batch:?} was refused: {error}");
            return;
        };
        if self.is_dead() {
            return;
        }
        let at = appended.offsets.start.0;
        if let Some(placed) = batch.placed {
            assert!(appended.duplicate, "{batch:?} was appended again, at {at}");
            assert_eq!(placed, at);
        }
        self.producer = Some(Batch { placed: Some(at), ..batch });
        self.possible.entry(at).or_default().push(batch.attempt);
        self.acknowledged(at, batch.attempt);
    }

    /// Moves the partition. The clock stands still but for a move that does not end.
    fn reassign(&self, store: &Store, random: &mut Random) {
        let mut all: Vec<_> = (0..4).filter(|at| Some(*at) != self.troubled).collect();
        for at in (1..all.len()).rev() {
            all.swap(at, random.index(at + 1));
        }
        all.truncate(1 + random.index(3));
        let target: Vec<_> = all.into_iter().map(id_of).collect();
        let done = AtomicBool::new(false);
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut patience = 200;
                while !done.load(Ordering::Acquire) {
                    std::thread::sleep(Duration::from_millis(1));
                    if patience > 0 {
                        patience -= 1;
                    } else {
                        self.clock.advance(Duration::from_millis(5));
                    }
                }
            });
            let outcome = store.reassign("t", 0, &target);
            done.store(true, Ordering::Release);
            outcome
        });
        self.note(|| format!("reassign to {target:?}: {outcome:?}"));
        if outcome.is_ok() && !self.is_dead() {
            assert_eq!(store.partition("t", 0).unwrap().replicas(), target);
        }
    }

    fn delete(&mut self, partition: &Partition, random: &mut Random) {
        let (start, end) = (partition.log_start_offset().0, partition.high_watermark().0);
        let before = start + random.below(end - start + 1);
        let outcome = partition.delete_records(Offset(before));
        self.note(|| format!("delete before {before}: {outcome:?}"));
        self.deleted_max = self.deleted_max.max(before);
        if outcome.is_ok() && !self.is_dead() {
            self.deleted = self.deleted.max(before);
        }
    }

    fn alter(&mut self, store: &Store, random: &mut Random) {
        let flush = [Flush::OnAck, Flush::Os, Flush::Interval(SECOND)][random.index(3)];
        let update = TopicUpdate::new().flush(flush);
        let outcome = store.alter_topic("t", update);
        self.note(|| format!("alter to {flush:?}: {outcome:?}"));
        // What is not known to hold is not counted on.
        if outcome.is_ok() && !self.is_dead() {
            self.flush = flush;
        } else {
            self.flush = Flush::Os;
        }
    }

    fn trouble(&mut self, store: &Store, partition: &Partition, random: &mut Random) {
        store.run_background();
        let replicas = partition.replicas();
        if let Some(at) = self.troubled {
            self.disks[at].heal();
            self.disks[at].set_free_bytes(None);
            let outcome = store.start_disk(id_of(at));
            self.note(|| format!("disk {at} is well: {outcome:?}"));
            if outcome.is_ok() {
                self.troubled = None;
            }
            return;
        }
        let isr = partition.in_sync_replicas();
        if isr.len() < replicas.len() || isr.len() < 2 {
            return;
        }
        let at = usize::from(replicas[random.index(replicas.len())].0);
        self.troubled = Some(at);
        let disk = &self.disks[at];
        match random.below(5) {
            0 => disk.fail_from(1 + random.below(5), Fault::Eio),
            1 => disk.set_free_bytes(Some(random.below(3) * 4096)),
            2 => {
                disk.fail_sync(1 + random.below(2), SyncFault::CleanedPages);
                self.sync_failed = true;
            }
            3 => {
                let outcome = store.stop_disk(id_of(at));
                self.note(|| format!("disk {at} stops: {outcome:?}"));
            }
            _ => {
                self.seeds += 1;
                let fresh = SimDisk::new(self.seeds);
                fresh.share_process(&self.disks[at]);
                let outcome = store.replace_simulated_disk(id_of(at), fresh.clone());
                self.note(|| format!("disk {at} is replaced: {outcome:?}"));
                if self.flush != Flush::OnAck {
                    // The others need not have flushed what it had.
                    self.durable = 0;
                }
                if outcome.is_ok() {
                    self.disks[at] = fresh;
                    self.troubled = None;
                } else {
                    self.spare = Some((at, fresh));
                }
            }
        }
        self.note(|| format!("disk {at} is in trouble"));
    }

    /// Sees a replacement through that a crash came between.
    fn settle_spare(&mut self, store: &Store) {
        let Some((at, mut directory)) = self.spare.take() else { return };
        if store.disks()[at].state == DiskState::Missing {
            self.seeds += 1;
            directory = SimDisk::new(self.seeds);
            directory.share_process(&self.disks[at]);
            store.replace_simulated_disk(id_of(at), directory.clone()).unwrap();
        } else if !directory.files().iter().any(|file| file == "store.id") {
            return;
        }
        self.note(|| format!("disk {at} is the new directory"));
        self.disks[at] = directory;
    }

    fn judge(&mut self, partition: &Partition, lossy: bool) {
        let start = partition.log_start_offset().0;
        assert!(start >= self.deleted && start <= self.deleted_max, "starts at {start}");
        let found: BTreeMap<_, _> =
            read_all(partition, Isolation::ReadUncommitted).into_iter().collect();
        let end = partition.high_watermark().0;
        let mut seen = BTreeMap::new();
        for (at, bytes) in &found {
            let attempt = u64::from_le_bytes(*bytes.first_chunk().unwrap());
            assert_eq!(bytes, &value(attempt), "bad bytes at {at}");
            let possible = self.possible.get(at).is_some_and(|known| known.contains(&attempt));
            assert!(possible || self.numbered.contains(&attempt), "invented: {attempt} at {at}");
            assert_eq!(seen.insert(attempt, *at), None, "{attempt} is there twice, again at {at}");
        }
        self.kept = self.kept.split_off(&start);
        if lossy && end >= self.durable {
            self.kept.split_off(&end);
            if self.flush != Flush::OnAck
                || self.producer.and_then(|last| last.placed).is_some_and(|placed| placed >= end)
            {
                // It went with the tail: its numbers are begun anew, as a producer would.
                self.epoch += 1;
                self.producer = None;
            }
        }
        let attempts: BTreeMap<_, _> = seen.iter().map(|(attempt, at)| (*at, *attempt)).collect();
        for (at, attempt) in &self.kept {
            assert_eq!(attempts.get(at), Some(attempt), "{at} is lost; {start}..{end}");
        }
        for (at, attempt) in attempts {
            self.possible.insert(at, vec![attempt]);
        }
        self.deleted = start;
    }

    fn heal(&mut self, store: &Store, partition: &Partition) {
        if let Some(at) = self.troubled.take() {
            self.disks[at].heal();
            self.disks[at].set_free_bytes(None);
            store.start_disk(id_of(at)).unwrap();
        }
        let replicas = partition.replicas();
        for id in &replicas {
            if replicas.len() > 1 && !partition.in_sync_replicas().contains(id) {
                let _ = store.stop_disk(*id);
                let _ = store.start_disk(*id);
            }
        }
        for _ in 0..300 {
            self.clock.advance(Duration::from_millis(20));
            store.run_background();
            if partition.in_sync_replicas().len() == replicas.len()
                && partition.high_watermark() == partition.log_end_offset()
            {
                break;
            }
        }
        let in_sync = partition.in_sync_replicas();
        if self.trace || in_sync.len() < replicas.len() {
            store.events().for_each(|event| eprintln!("event: {event}"));
        }
        assert_eq!(in_sync.len(), replicas.len(), "all are in sync again: {in_sync:?}");
        if self.flush != Flush::OnAck && self.sync_failed {
            store.verify(VerifyOptions::new().repair(true)).unwrap();
        }
        let report = store.verify(VerifyOptions::new()).unwrap();
        assert_eq!(report.damages, []);
    }

    fn tell(&mut self, random: &mut Random) {
        let replicas = 1 + u16::try_from(random.below(3)).unwrap();
        self.min_insync = 1 + u16::try_from(random.below(u64::from(replicas.min(2)))).unwrap();
        let store = self.open(None).unwrap();
        let config = small(replicas).min_insync_replicas(1);
        store.create_topic("t", config.flush(self.flush)).unwrap();
        drop(store);
        let mut lossy = false;
        for _ in 0..5 {
            let store = self.open(None).unwrap();
            self.settle_spare(&store);
            let partition = store.partition("t", 0).unwrap();
            self.heal(&store, &partition);
            self.judge(&partition, lossy);
            let end = partition.log_end_offset().0;
            self.possible.retain(|at, _| *at < end);
            if random.below(3) == 0 {
                self.disks[random.index(4)].crash_at(random.below(300));
            }
            for _ in 0..50 {
                match random.below(24) {
                    0..=2 => {
                        self.clock.advance(Duration::from_millis(random.below(100)));
                        store.run_background();
                    }
                    3 | 4 => self.trouble(&store, &partition, random),
                    5 => self.reassign(&store, random),
                    6 => self.delete(&partition, random),
                    7 if random.below(3) == 0 => self.alter(&store, random),
                    8..=11 => self.append_numbered(&partition, random),
                    _ => self.append(&partition, random),
                }
                if self.is_dead() {
                    break;
                }
            }
            if random.below(3) == 0 && !self.is_dead() {
                let closed = store.close(SECOND);
                self.note(|| format!("closed: {closed:?}"));
            } else if random.below(3) > 0 {
                self.disks[0].kill();
            }
            drop((partition, store));
            let power = random.below(2) == 0;
            self.note(|| format!("power {power}, dead {}", self.is_dead()));
            for disk in self.disks.iter().chain(self.spare.iter().map(|(_, disk)| disk)) {
                disk.heal();
                disk.set_free_bytes(None);
                if power { disk.power_loss() } else { disk.process_restart() }
            }
            self.troubled = None;
            lossy = power;
            if random.below(3) == 0 && self.spare.is_none() {
                self.live_without_one(random, lossy);
            }
        }
    }

    /// A session without one of the disks: who leads next knows what was written meanwhile.
    fn live_without_one(&mut self, random: &mut Random, lossy: bool) {
        let away = random.index(4);
        let store = self.open(Some(away)).unwrap();
        self.note(|| format!("opened without disk {away}"));
        if let Ok(partition) = store.partition("t", 0) {
            for _ in 0..20 {
                self.clock.advance(Duration::from_millis(20));
                store.run_background();
            }
            self.judge(&partition, lossy);
            for _ in 0..random.below(12) {
                match random.below(8) {
                    0 => self.delete(&partition, random),
                    1 => self.append_numbered(&partition, random),
                    _ => self.append(&partition, random),
                }
            }
        }
        if random.below(2) == 0 {
            let closed = store.close(SECOND);
            self.note(|| format!("closed: {closed:?}"));
        } else {
            self.disks[usize::from(away == 0)].kill();
        }
        drop(store);
        self.disks.iter().for_each(SimDisk::process_restart);
    }
}

fn tell_story(seed: u64) {
    let mut random = Random(seed);
    let mut world = World::new(seed);
    tell(seed, &format!("{:?}", world.flush), || world.tell(&mut random));
}

#[test]
fn random_stories_of_moved_partitions_and_replaced_disks_lose_nothing_and_repeat_nothing() {
    let (first, count) = (setting("ONCELOG_SEED", 1), setting("ONCELOG_STORIES", 50));
    (first..first + count).for_each(tell_story);
}

/// A leader that had records of its own failed. When its follower came back, the watermark was counted without either, those
/// records were acknowledged, and the follower, which may lead and lacked them, did.
#[test]
fn what_a_leader_had_alone_is_not_acknowledged_once_it_has_failed() {
    let (disks, clock) = (disks(5), clock());
    let store = open(&disks, &clock).unwrap();
    store.create_topic("t", small(2)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    append(&partition, 1);
    let leader = partition.leader().unwrap();
    let follower = partition.replicas().into_iter().find(|disk| *disk != leader).unwrap();
    let others: Vec<_> = (0..5).map(DiskId).filter(|d| *d != leader && *d != follower).collect();
    // Too few are left to write down that the follower is gone.
    for disk in [others[0], others[1], follower] {
        store.stop_disk(disk).unwrap();
    }
    let (tell, told) = channel();
    let alone = partition.append_nowait(&[Record::new("alone")], Acks::All).unwrap();
    alone.on_complete(move |outcome| tell.send(outcome.is_ok()).unwrap());
    pass(&store, &clock, QUIET);
    store.stop_disk(leader).unwrap();
    for disk in [others[0], others[1]] {
        store.start_disk(disk).unwrap();
        pass(&store, &clock, QUIET);
    }
    store.start_disk(follower).unwrap();
    pass(&store, &clock, QUIET);
    store.start_disk(leader).unwrap();
    pass(&store, &clock, QUIET);
    let found = read_all(&partition, Isolation::ReadUncommitted).len();
    assert!(!told.recv().unwrap() || found == 2, "it was acknowledged");
}

/// Partitions that had been opened already went on with a disk whose threads had never begun: appends waited in vain.
#[test]
fn s12_a_disk_that_dies_at_any_call_of_an_opening_keeps_nobody_waiting() {
    for clean in [false, true] {
        let (first, clock) = (disks(3), clock());
        let store = open(&first, &clock).unwrap();
        for name in ["one", "other"] {
            store.create_topic(name, small(3).min_insync_replicas(2)).unwrap();
            append(&store.partition(name, 0).unwrap(), 30);
        }
        if clean {
            store.close(SECOND).unwrap();
        } else {
            first[0].kill();
        }
        drop(store);
        for call in (1..).step_by(3) {
            let forked = together(first.iter().map(SimDisk::fork).collect());
            forked.iter().for_each(SimDisk::process_restart);
            let before = forked[0].calls();
            forked[0].fail_from(call, Fault::Eio);
            let builder = forked.iter().fold(Store::builder(), |b, d| b.simulated_disk(d.clone()));
            let store = builder.threads().append_timeout(SECOND * 10).open().unwrap();
            let over = forked[0].calls() - before < call;
            for name in ["one", "other"] {
                let partition = store.partition(name, 0).unwrap();
                append(&partition, 1);
                assert_eq!(
                    read_all(&partition, Isolation::ReadUncommitted).len(),
                    31,
                    "{name}, clean {clean}, call {call}"
                );
            }
            if over {
                break;
            }
        }
    }
}

/// It has the name of the disk, in an incarnation that no metadata know, and a copy of the metadata.
#[test]
fn what_a_replacement_without_a_quorum_leaves_is_no_disk_in_any_company() {
    let (first, clock) = (disks(3), clock());
    let store = open(&first, &clock).unwrap();
    store.create_topic("t", small(3)).unwrap();
    store.create_topic("two", small(1)).unwrap();
    store.reassign("two", 0, &[DiskId(2)]).unwrap();
    let [all, two] = ["t", "two"].map(|name| store.partition(name, 0).unwrap());
    append(&all, 20);
    append(&two, 20);
    store.stop_disk(DiskId(2)).unwrap();
    append(&all, 20);
    store.stop_disk(DiskId(1)).unwrap();
    let spare = SimDisk::new(9);
    spare.share_process(&first[0]);
    let replaced = store.replace_simulated_disk(DiskId(2), spare.clone());
    assert!(matches!(replaced, Err(Error::MissingDisk { .. })), "{replaced:?}");
    assert!(spare.files().iter().any(|file| file == "metadata.0"), "it got that far");
    first[0].kill();
    drop((all, two, store));
    for company in [&[0, 1, 2, 3][..], &[3, 2, 1, 0], &[1, 2, 3], &[3, 2, 0], &[0, 1, 3], &[3, 0]] {
        for power in [false, true] {
            let forked = together(first.iter().chain([&spare]).map(SimDisk::fork).collect());
            let restart = || {
                let again = if power { SimDisk::power_loss } else { SimDisk::process_restart };
                forked.iter().for_each(again);
            };
            restart();
            let given: Vec<_> = company.iter().map(|at| forked[*at].clone()).collect();
            let opened = open(&given, &clock);
            if company.len() == 2 {
                assert!(matches!(opened, Err(Error::MissingDisk { .. })), "{opened:?}");
                continue;
            }
            let store = opened.unwrap();
            pass(&store, &clock, QUIET);
            let all = store.partition("t", 0).unwrap();
            assert_eq!(
                read_all(&all, Isolation::ReadUncommitted).len(),
                40,
                "{company:?}, power {power}"
            );
            append(&all, 10);
            if let Ok(two) = store.partition("two", 0) {
                assert_eq!(
                    read_all(&two, Isolation::ReadUncommitted).len(),
                    20,
                    "{company:?}, power {power}"
                );
                append(&two, 10);
            } else {
                assert!(!company.contains(&2), "{company:?}, power {power}");
            }
            forked[0].kill();
            drop((all, store));
            restart();
            let store = open(&forked[..3], &clock).unwrap();
            pass(&store, &clock, QUIET);
            assert_eq!(
                read_all(&store.partition("t", 0).unwrap(), Isolation::ReadUncommitted).len(),
                50,
                "{company:?}"
            );
            let expected = if company.contains(&2) { 30 } else { 20 };
            assert_eq!(
                read_all(&store.partition("two", 0).unwrap(), Isolation::ReadUncommitted).len(),
                expected
            );
            store.reassign("two", 0, &[DiskId(0)]).unwrap();
            store.replace_simulated_disk(DiskId(2), forked[3].clone()).unwrap();
            pass(&store, &clock, QUIET);
            assert_eq!(store.partition("t", 0).unwrap().in_sync_replicas().len(), 3);
        }
    }
}

/// A change of several sectors, such as the new reigns of many partitions, was torn so that its last records were there and one
/// before them not: that was taken for damage to what had been committed, and the store could not be opened any more.
#[test]
fn a_power_loss_amid_a_change_of_many_partitions_leaves_a_store_that_can_be_opened() {
    for call in 1..4 {
        let (disks, clock) = (disks(3), clock());
        let store = open(&disks, &clock).unwrap();
        store.create_topic("t", small(2).partitions(60)).unwrap();
        (0..60).for_each(|number| append(&store.partition("t", number).unwrap(), 1));
        pass(&store, &clock, QUIET);
        disks[0].crash_at(call);
        let _ = store.stop_disk(DiskId(2));
        disks[0].kill();
        drop(store);
        disks.iter().for_each(SimDisk::heal);
        disks.iter().for_each(SimDisk::power_loss);
        let store = open(&disks, &clock).unwrap_or_else(|error| panic!("{call}: {error:?}"));
        pass(&store, &clock, QUIET);
        for number in 0..60 {
            assert_eq!(
                read_all(&store.partition("t", number).unwrap(), Isolation::ReadUncommitted).len(),
                1,
                "{call}"
            );
        }
    }
}

/// The metadata were written anew for the disk that came back, which the one that was there could not take: it was put down all
/// the same that this had them. The next opening took it for an older copy of itself, and nobody led any more.
#[test]
fn a_disk_that_fails_while_another_comes_back_is_not_taken_for_an_older_copy() {
    let (disks, clock) = (disks(3), clock());
    let store = open(&disks, &clock).unwrap();
    store.create_topic("t", small(2)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    assert_eq!(partition.replicas(), [DiskId(0), DiskId(1)]);
    append(&partition, 1);
    store.stop_disk(DiskId(0)).unwrap();
    append(&partition, 1);
    assert_eq!(partition.in_sync_replicas(), [DiskId(1)]);
    store.stop_disk(DiskId(2)).unwrap();
    disks[1].fail_from(1, Fault::Eio);
    let _ = store.start_disk(DiskId(0));
    disks[0].kill();
    drop((partition, store));
    disks.iter().for_each(SimDisk::heal);
    disks.iter().for_each(SimDisk::process_restart);
    let store = open(&disks, &clock).unwrap();
    pass(&store, &clock, QUIET);
    assert_eq!(read_all(&store.partition("t", 0).unwrap(), Isolation::ReadUncommitted).len(), 2);
}
