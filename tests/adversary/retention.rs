//! Three replicas whose old records go, by age, by size and by request, while disks come and go, the clock jumps and one
//! topic may elect anybody: starts never go back, nothing goes before its time, only that topic loses, and says so.

use std::collections::BTreeMap;
use std::time::Duration;

use oncelog::simulation::{Clock, Fault, SimDisk};
use oncelog::{
    Acks, DiskId, Error, EventKind, Events, Flush, Isolation, Offset, Partition, ProducerEpoch,
    ProducerId, ProducerSequence, ReadOptions, Record, Records, Retention, Store, Timestamp,
    TopicConfig, TopicUpdate, VerifyOptions, Written,
};

use crate::attempts::Attempts;
use crate::random::{Random, setting, tell};
use crate::small_store::{disks, open, read_all, together};

const ATTEMPTS: Attempts = Attempts { spread: 157 };
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const NOW: Timestamp = Timestamp(1_800_000_000_000);

fn small() -> TopicConfig {
    TopicConfig::new().segment_bytes(4096).index_interval_bytes(256)
}

/// What it had lies before the leader's start: a crash between the removals of its files, before and behind the first new one.
#[test]
fn log_19_a_crash_while_a_follower_begins_anew_leaves_a_whole_copy_behind() {
    let value = |at: u64| [at.to_le_bytes(); 25];
    let (origin, clock) = (disks(3), Clock::manual(NOW));
    let store = open(&origin, &clock).unwrap();
    store.create_topic("t", small().replication_factor(2)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let append = |partition: &Partition, offsets: std::ops::Range<u64>| {
        for at in offsets {
            partition.append(&[Record::new(value(at).as_flattened())], Acks::All).unwrap();
        }
    };
    append(&partition, 0..60);
    store.stop_disk(DiskId(1)).unwrap();
    store.run_background();
    append(&partition, 60..130);
    partition.delete_records(Offset(100)).unwrap();
    store.run_background();
    store.close(SECOND).unwrap();
    drop((partition, store));
    for (power, flush) in [(false, Flush::OnAck), (true, Flush::OnAck), (false, Flush::Os)] {
        for call in 1.. {
            let disks = together(origin.iter().map(SimDisk::fork).collect());
            let store = open(&disks, &clock).unwrap();
            store.alter_topic("t", TopicUpdate::new().flush(flush)).unwrap();
            disks[1].crash_at(call);
            let started = store.start_disk(DiskId(1));
            (0..5).for_each(|_| store.run_background());
            let died = disks[1].is_dead();
            drop(store);
            disks.iter().for_each(SimDisk::heal);
            let again = if power { SimDisk::power_loss } else { SimDisk::process_restart };
            disks.iter().for_each(again);
            let store = open(&disks, &clock).unwrap();
            let _ = store.start_disk(DiskId(1));
            let partition = store.partition("t", 0).unwrap();
            for _ in 0..60 {
                clock.advance(SECOND);
                store.run_background();
            }
            assert_eq!(partition.in_sync_replicas().len(), 2, "call {call}, power {power}");
            append(&partition, 130..140);
            let report = store.verify(VerifyOptions::new()).unwrap();
            assert_eq!(report.damages, [], "call {call}, power {power}, {flush:?}");
            store.close(SECOND).unwrap();
            drop((partition, store));
            // Alone, and read from its files.
            disks.iter().for_each(SimDisk::process_restart);
            let store = open(&disks[1..], &clock).unwrap();
            let found = read_all(&store.partition("t", 0).unwrap(), Isolation::ReadUncommitted);
            let expected: Vec<_> =
                (100..140).map(|at| (at, value(at).as_flattened().to_vec())).collect();
            assert_eq!(found, expected, "call {call}, power {power}, {flush:?}");
            if !died {
                started.unwrap();
                break;
            }
        }
    }
}

/// The first batch of a producer of that number.
fn first_of(id: u64) -> ProducerSequence {
    ProducerSequence { id: ProducerId(id), epoch: ProducerEpoch(0), sequence: 0 }
}

fn append_three(partition: &Partition) {
    for _ in 0..3 {
        partition.append(&[Record::new("x")], Acks::All).unwrap();
    }
}

/// As many as fill several files.
fn append_hundred(partition: &Partition) {
    for _ in 0..100 {
        partition.append(&[Record::new(&[b'x'; 300])], Acks::All).unwrap();
    }
}

/// A store whose topic of two replicas lost the record of producer 7: disk 0, which alone had it, was away as disk 1 became
/// the leader and appended three more. Deletes all before it and `deleted` more. Disk 0 is back at the next opening.
fn lose_a_batch(
    disks: &[SimDisk],
    clock: &Clock,
    append_before: impl Fn(&Partition),
    deleted: u64,
) {
    let store = open(disks, clock).unwrap();
    let config = small().replication_factor(2).unclean_leader_election(true);
    store.create_topic("t", config).unwrap();
    let partition = store.partition("t", 0).unwrap();
    append_before(&partition);
    store.stop_disk(DiskId(1)).unwrap();
    let lost = [Record::new("lost")];
    let placed = partition.append_idempotent(first_of(7), &lost, Acks::All).unwrap();
    disks.iter().for_each(SimDisk::kill);
    drop((partition, store));
    disks.iter().for_each(SimDisk::process_restart);
    disks[0].fail_from(1, Fault::Eio);
    let store = open(disks, clock).unwrap();
    let partition = store.partition("t", 0).unwrap();
    assert_eq!(partition.leader(), Some(DiskId(1)));
    append_three(&partition);
    partition.delete_records(Offset(placed.offsets.start.0 + deleted)).unwrap();
    store.close(SECOND).unwrap();
    drop((partition, store));
    disks[0].heal();
    disks.iter().for_each(SimDisk::process_restart);
}

/// That the lost batch is appended when it is sent again.
fn assert_unknown(partition: &Partition) {
    let end = partition.log_end_offset();
    let again =
        partition.append_idempotent(first_of(7), &[Record::new("lost")], Acks::All).unwrap();
    assert_eq!((again.offsets.start, again.duplicate), (end, false));
}

fn heal_for_a_minute(store: &Store, clock: &Clock) {
    for _ in 0..60 {
        clock.advance(SECOND);
        store.run_background();
    }
}

/// A replica that was away had a batch that was lost, and ends where records are deleted up to: it was not held against the
/// leader's log, knew its producer by that batch, and took it for a duplicate when it led and the batch came again.
#[test]
fn prod_43_a_lost_batch_is_no_duplicate_where_its_place_was_deleted() {
    for deleted in [0, 1, 2] {
        let (disks, clock) = (disks(3), Clock::manual(NOW));
        lose_a_batch(&disks, &clock, append_three, deleted);
        let store = open(&disks, &clock).unwrap();
        let partition = store.partition("t", 0).unwrap();
        heal_for_a_minute(&store, &clock);
        assert_eq!(partition.in_sync_replicas().len(), 2, "{deleted}");
        store.stop_disk(DiskId(1)).unwrap();
        assert_eq!(partition.leader(), Some(DiskId(0)));
        assert_unknown(&partition);
    }
}

/// As above, and the replica was opened anew when it was in sync again: what it had forgotten was in its files still.
#[test]
fn prod_43_a_lost_batch_that_was_forgotten_is_not_remembered_by_the_next_opening() {
    for power in [false, true] {
        let (disks, clock) = (disks(3), Clock::manual(NOW));
        lose_a_batch(&disks, &clock, append_three, 1);
        let store = open(&disks, &clock).unwrap();
        let partition = store.partition("t", 0).unwrap();
        heal_for_a_minute(&store, &clock);
        assert_eq!(partition.in_sync_replicas().len(), 2);
        disks.iter().for_each(SimDisk::kill);
        drop((partition, store));
        disks.iter().for_each(if power { SimDisk::power_loss } else { SimDisk::process_restart });
        let store = open(&disks, &clock).unwrap();
        let partition = store.partition("t", 0).unwrap();
        assert_eq!(partition.in_sync_replicas().len(), 2);
        if partition.leader() == Some(DiskId(1)) {
            store.stop_disk(DiskId(1)).unwrap();
        }
        assert_eq!(partition.leader(), Some(DiskId(0)));
        assert_unknown(&partition);
    }
}

/// A leader whose own memory was damaged asked a replica whose last batch, deleted meanwhile, was none of the leader's.
#[test]
fn prod_43_a_leader_whose_memory_is_damaged_learns_of_no_lost_batch() {
    let (disks, clock) = (disks(3), Clock::manual(NOW));
    let append_before = |partition: &Partition| {
        partition.append_idempotent(first_of(6), &[Record::new("x")], Acks::All).unwrap();
        append_hundred(partition);
    };
    lose_a_batch(&disks, &clock, append_before, 1);
    assert!(damage_producers(&disks[1]) > 0);
    let store = open(&disks, &clock).unwrap();
    let partition = store.partition("t", 0).unwrap();
    assert_eq!(partition.leader(), Some(DiskId(1)));
    assert_unknown(&partition);
}

/// Changes a byte of each file that tells who wrote. Returns how many there were.
fn damage_producers(disk: &SimDisk) -> usize {
    let mut names = disk.files();
    names.retain(|name| name.ends_with(".producers"));
    for name in &names {
        let mut bytes = disk.read_file(name);
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        disk.write_file(name, &bytes);
    }
    names.len()
}

/// The replica that knew who wrote forgot it before the leader, whose own memory was damaged, was told.
#[test]
fn prod_43_a_leader_whose_memory_is_damaged_learns_from_a_replica_that_ends_where_the_log_begins() {
    let (disks, clock) = (disks(3), Clock::manual(NOW));
    let store = open(&disks, &clock).unwrap();
    store.create_topic("t", small().replication_factor(2)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let once = [Record::new("once")];
    let placed = partition.append_idempotent(first_of(7), &once, Acks::All).unwrap();
    assert_eq!(placed.offsets, Offset(0)..Offset(1));
    append_hundred(&partition);
    partition.delete_records(Offset(101)).unwrap();
    heal_for_a_minute(&store, &clock);
    assert_eq!(partition.in_sync_replicas().len(), 2);
    assert_eq!(partition.leader(), Some(DiskId(0)));
    store.stop_disk(DiskId(1)).unwrap();
    append_three(&partition);
    store.close(SECOND).unwrap();
    drop((partition, store));
    assert!(damage_producers(&disks[0]) > 0);
    let store = open(&disks, &clock).unwrap();
    let partition = store.partition("t", 0).unwrap();
    assert_eq!(partition.leader(), Some(DiskId(0)));
    let again = partition.append_idempotent(first_of(7), &once, Acks::All).unwrap();
    assert!(again.duplicate, "{again:?}");
}

/// An active segment was taken to be as old as what a side file told of its beginning: after a crash, records went long
/// before their time.
#[test]
fn ret_01_a_crash_makes_no_record_older_than_it_is() {
    for (flush, power) in [(Flush::Os, false), (Flush::OnAck, false), (Flush::OnAck, true)] {
        let (disk, clock) = (SimDisk::new(1), Clock::manual(NOW));
        let open = || Store::builder().simulated_disk(disk.clone()).clock(clock.clone()).open();
        let store = open().unwrap();
        let config = TopicConfig::new().flush(flush).retention(Retention::age(DAY));
        store.create_topic("t", config.segment_age(DAY * 30)).unwrap();
        store.partition("t", 0).unwrap().append(&[Record::new("old")], Acks::All).unwrap();
        store.close(SECOND).unwrap();
        disk.process_restart();
        let store = open().unwrap();
        let partition = store.partition("t", 0).unwrap();
        for _ in 0..4 {
            clock.advance(HOUR * 12);
            partition.append(&[Record::new("new")], Acks::All).unwrap();
            store.run_background();
        }
        disk.kill();
        drop((partition, store));
        if power {
            disk.power_loss();
        } else {
            disk.process_restart();
        }
        let store = open().unwrap();
        let partition = store.partition("t", 0).unwrap();
        store.run_background();
        assert_eq!(partition.log_start_offset(), Offset(0), "{flush:?}, power {power}");
        assert_eq!(partition.log_end_offset(), Offset(5));
    }
}

/// A replica that was shorter when records were deleted led before it had followed: what was deleted was there again; or
/// it gave offsets below the log's start, and the next opening took what was acknowledged there for deleted.
#[test]
fn repl_29_a_leader_begins_where_the_log_has_begun() {
    for (flush, deleted, fails) in [
        (Flush::OnAck, 15, false),
        (Flush::OnAck, 50, false),
        (Flush::Os, 15, true),
        (Flush::Os, 50, true),
        (Flush::OnAck, 50, true),
    ] {
        let (disks, clock) = (disks(3), Clock::manual(NOW));
        let store = open(&disks, &clock).unwrap();
        let config = small().replication_factor(2).flush(flush).unclean_leader_election(true);
        store.create_topic("t", config).unwrap();
        let partition = store.partition("t", 0).unwrap();
        let append = |partition: &Partition, range: std::ops::Range<u64>| {
            for at in range {
                partition
                    .append(&[Record::new(&[u8::try_from(at).unwrap(); 160])], Acks::All)
                    .unwrap();
            }
        };
        assert_eq!(partition.leader(), Some(DiskId(0)));
        append(&partition, 0..6);
        store.stop_disk(DiskId(1)).unwrap();
        append(&partition, 6..60);
        store.start_disk(DiskId(1)).unwrap();
        partition.delete_records(Offset(deleted)).unwrap();
        if fails {
            disks[0].fail_from(1, Fault::Eio);
            let _ = store.alter_topic("t", TopicUpdate::new().min_insync_replicas(1));
            store.run_background();
        }
        let _ = store.stop_disk(DiskId(0));
        for _ in 0..20 {
            clock.advance(Duration::from_millis(50));
            store.run_background();
        }
        assert_eq!(partition.leader(), Some(DiskId(1)), "{flush:?} {deleted} {fails}");
        assert_eq!(partition.log_start_offset(), Offset(deleted), "{flush:?} {fails}");
        let end = partition.log_end_offset().0;
        append(&partition, end..end + 10);
        let mut said = store.events().filter_map(|event| match event.kind {
            EventKind::LeaderChanged { lost, .. } => lost,
            _ => None,
        });
        assert_eq!(said.next(), (end < 60).then_some(Offset(end)..Offset(60)));
        disks[0].heal();
        disks[0].kill();
        drop((partition, store));
        disks.iter().for_each(SimDisk::process_restart);
        let store = open(&disks, &clock).unwrap();
        let partition = store.partition("t", 0).unwrap();
        assert_eq!(partition.log_start_offset(), Offset(deleted));
        let found: Vec<_> = read_all(&partition, Isolation::ReadUncommitted)
            .into_iter()
            .map(|(offset, _)| offset)
            .collect();
        assert_eq!(found, (deleted..end + 10).collect::<Vec<_>>(), "{flush:?} {deleted} {fails}");
    }
}

/// A leader that was stopped where nobody could take over was not believed when it was back, as if a flush had failed; and
/// where all replicas had failed, and were back, nobody led before the next opening.
#[test]
fn a_partition_goes_on_when_its_last_replica_is_back() {
    for flush in [Flush::Os, Flush::Interval(HOUR), Flush::OnAck] {
        for (fails, both) in [(false, false), (false, true), (true, true)] {
            let (disks, clock) = (disks(5), Clock::manual(NOW));
            let store = open(&disks, &clock).unwrap();
            store.create_topic("t", small().replication_factor(2).flush(flush)).unwrap();
            let partition = store.partition("t", 0).unwrap();
            let append = || partition.append(&[Record::new(&[7; 100])], Acks::All);
            append().unwrap();
            store.stop_disk(DiskId(1)).unwrap();
            append().unwrap();
            if fails {
                disks[0].fail_from(1, Fault::Eio);
                let _ = store.alter_topic("t", TopicUpdate::new().min_insync_replicas(1));
                store.run_background();
                disks[0].heal();
            } else {
                store.stop_disk(DiskId(0)).unwrap();
            }
            assert!(append().is_err());
            if both {
                store.start_disk(DiskId(1)).unwrap();
            }
            store.start_disk(DiskId(0)).unwrap();
            for _ in 0..50 {
                clock.advance(Duration::from_millis(100));
                store.run_background();
            }
            let way = format!("{flush:?}, fails {fails}, both {both}");
            assert_eq!(append().expect(&way).offsets.start, Offset(2), "{way}");
            assert_eq!(read_all(&partition, Isolation::ReadUncommitted).len(), 3);
        }
    }
}

/// How a story's clock goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Time {
    /// On, sometimes by days: records go by age.
    Forward,
    /// Both ways, by days: records go by size.
    Jumps,
}

/// A topic, and what is known of it.
#[derive(Debug)]
struct Known {
    name: &'static str,
    unclean: bool,
    /// Acknowledged with `All`: offset to attempt and the time of its append.
    kept: BTreeMap<u64, (u64, Timestamp)>,
    /// What may be found at an offset.
    possible: BTreeMap<u64, Vec<u64>>,
    /// Where somebody has seen it begin.
    start: u64,
    /// Up to where it was asked to be deleted.
    deleted: u64,
    deleted_max: u64,
    numbered: Option<(ProducerSequence, u64, Option<u64>)>,
    lost: u64,
}

struct World {
    disks: Vec<SimDisk>,
    clock: Clock,
    time: Time,
    flush: Flush,
    attempts: u64,
    topics: Vec<Known>,
    /// Bytes of old reads, and what they held.
    held: Vec<(Records, Vec<(u64, u64)>)>,
    trace: bool,
}

/// Three bear replicas; two more have a say about the metadata.
const DISKS: usize = 5;

fn id_of(at: usize) -> DiskId {
    DiskId(u16::try_from(at).unwrap())
}

impl World {
    fn new(seed: u64, random: &mut Random) -> Self {
        let disks = together((0..DISKS).map(|at| SimDisk::new(seed * 10 + at as u64)).collect());
        let known = |name, unclean| Known {
            name,
            unclean,
            kept: BTreeMap::new(),
            possible: BTreeMap::new(),
            start: 0,
            deleted: 0,
            deleted_max: 0,
            numbered: None,
            lost: 0,
        };
        Self {
            disks,
            clock: Clock::manual(NOW),
            time: if random.one_in(2) { Time::Forward } else { Time::Jumps },
            flush: if random.one_in(2) { Flush::OnAck } else { Flush::Os },
            attempts: 0,
            topics: vec![known("safe", false), known("loose", true)],
            held: Vec::new(),
            trace: std::env::var_os("ONCELOG_TRACE").is_some(),
        }
    }

    fn note(&self, what: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{}", what());
        }
    }

    fn open(&self) -> Result<Store, Error> {
        let builder = Store::builder()
            .clock(self.clock.clone())
            .append_timeout(Duration::from_millis(20))
            .checkpoint_bytes(2000)
            .auto_leader_rebalance(true);
        self.disks.iter().fold(builder, |b, disk| b.simulated_disk(disk.clone())).open()
    }

    fn is_dead(&self) -> bool {
        self.disks[0].is_dead()
    }

    /// What an unclean election lost is lost, if it says so.
    fn listen(&mut self, events: &mut Events) {
        for event in events {
            self.note(|| format!("event: {event}"));
            if let EventKind::LeaderChanged { partition, lost: Some(lost), .. } = &event.kind {
                let known = self.topics.iter_mut().find(|t| t.name == partition.topic()).unwrap();
                assert!(known.unclean, "{event}");
                known.kept.split_off(&lost.start.0);
                known.possible.split_off(&lost.start.0);
                known.lost += 1;
                if known
                    .numbered
                    .is_some_and(|(.., placed)| placed.is_none_or(|at| at >= lost.start.0))
                {
                    known.numbered = None;
                }
            }
        }
    }

    fn append(&mut self, at: usize, store: &Store, events: &mut Events, random: &mut Random) {
        let Ok(partition) = store.partition(self.topics[at].name, 0) else { return };
        let count = 1 + random.below(4);
        let values: Vec<_> = (0..count).map(|n| ATTEMPTS.value(self.attempts + n)).collect();
        let records: Vec<_> = values.iter().map(Record::new).collect();
        let before = partition.log_end_offset().0;
        let now = self.clock.now();
        let outcome = partition.append(&records, Acks::All);
        self.note(|| {
            format!(
                "{} append {count} at {before}: {outcome:?} isr {:?} leader {:?}",
                partition.name(),
                partition.in_sync_replicas(),
                partition.leader()
            )
        });
        self.listen(events);
        let placed = match &outcome {
            Ok(appended) => Some(appended.offsets.start.0),
            Err(
                Error::NotEnoughReplicasAfterAppend { offsets, .. }
                | Error::TimedOut { appended: Some(offsets), .. },
            ) => Some(offsets.start.0),
            Err(error) => (error.written() != Written::No || self.is_dead()).then_some(before),
        };
        let dead = self.is_dead();
        let known = &mut self.topics[at];
        for n in 0..count {
            let Some(first) = placed else { break };
            known.possible.entry(first + n).or_default().push(self.attempts + n);
            if outcome.is_ok() && !dead {
                known.kept.insert(first + n, (self.attempts + n, now));
            }
        }
        self.attempts += count;
    }

    /// The next batch of a numbered producer, or its last one again.
    fn append_numbered(
        &mut self,
        at: usize,
        store: &Store,
        events: &mut Events,
        random: &mut Random,
    ) {
        let Ok(partition) = store.partition(self.topics[at].name, 0) else { return };
        let again =
            self.topics[at].numbered.filter(|(.., placed)| placed.is_none() || random.one_in(2));
        let (given, attempt, placed) = again.unwrap_or_else(|| {
            let last = self.topics[at].numbered.map(|(last, ..)| last);
            let sequence = last.map_or(0, |last| last.sequence + 1);
            let id = last.map_or(ProducerId(1_000_000 + self.attempts), |last| last.id);
            self.attempts += 1;
            (ProducerSequence { id, epoch: ProducerEpoch(0), sequence }, self.attempts - 1, None)
        });
        self.topics[at].numbered = Some((given, attempt, placed));
        let bytes = ATTEMPTS.value(attempt);
        let now = self.clock.now();
        let before = partition.log_end_offset().0;
        let outcome = partition.append_idempotent(given, &[Record::new(&bytes)], Acks::All);
        self.note(|| format!("{} numbered {given:?} at {before}: {outcome:?}", partition.name()));
        self.listen(events);
        let dead = self.is_dead();
        let known = &mut self.topics[at];
        if known.numbered.is_none() {
            // Among what was lost, or appended in its place.
            let offset = outcome.map_or(before, |appended| appended.offsets.start.0);
            known.possible.entry(offset).or_default().push(attempt);
            return;
        }
        match outcome {
            Ok(_) if dead => known.possible.entry(before).or_default().push(attempt),
            Ok(appended) => {
                let offset = appended.offsets.start.0;
                if let Some(placed) = placed {
                    assert!(appended.duplicate, "{given:?} was appended again, at {offset}");
                    assert_eq!(placed, offset);
                } else {
                    known.possible.entry(offset).or_default().push(attempt);
                    // It may have been deleted before it was acknowledged.
                    if offset >= known.start {
                        known.kept.entry(offset).or_insert((attempt, now));
                    }
                    known.numbered = Some((given, attempt, Some(offset)));
                }
            }
            Err(error) => {
                let odd = matches!(
                    error,
                    Error::OutOfOrderSequence { .. }
                        | Error::DuplicateSequence { .. }
                        | Error::ProducerFenced { .. }
                );
                assert!(!odd || dead, "{given:?} was refused: {error}");
                if error.written() != Written::No || dead {
                    known.possible.entry(before).or_default().push(attempt);
                }
            }
        }
    }

    fn delete(&mut self, at: usize, store: &Store, random: &mut Random) {
        let Ok(partition) = store.partition(self.topics[at].name, 0) else { return };
        let (start, end) = (partition.log_start_offset().0, partition.high_watermark().0);
        let before = start + random.below(end.saturating_sub(start) + 1);
        let outcome = partition.delete_records(Offset(before));
        self.note(|| format!("{} delete before {before}: {outcome:?}", partition.name()));
        let dead = self.is_dead();
        let known = &mut self.topics[at];
        known.deleted_max = known.deleted_max.max(before);
        if outcome.is_ok() && !dead {
            known.deleted = known.deleted.max(before);
        }
    }

    fn pass_time(&mut self, store: &Store, random: &mut Random) {
        match (self.time, random.below(8)) {
            (Time::Forward, 0) => {
                self.clock.advance(HOUR * u32::try_from(random.below(30)).unwrap());
            }
            (Time::Jumps, 0 | 1) => {
                let days = i64::try_from(random.below(40)).unwrap() - 20;
                self.clock.set_wall(Timestamp(self.clock.now().0 + days * 86_400_000));
                self.note(|| format!("the clock jumps by {days} days"));
            }
            _ => self.clock.advance(Duration::from_millis(random.below(12_000))),
        }
        self.note(|| format!("time is {}", self.clock.now().0));
        for _ in 0..1 + random.below(3) {
            // Any earlier record may go by its age from now on.
            store.run_background();
            self.clock.advance(Duration::from_millis(20));
        }
    }

    fn trouble(&self, troubled: &mut [bool], store: &Store, random: &mut Random) {
        let at = random.index(3);
        let (disk, id) = (&self.disks[at], id_of(at));
        if troubled[at] {
            disk.heal();
            disk.set_free_bytes(None);
            let outcome = store.start_disk(id);
            self.note(|| format!("disk {at} is well: {outcome:?}"));
            troubled[at] = outcome.is_err();
            return;
        }
        if troubled.iter().filter(|t| **t).count() >= 2 {
            return;
        }
        troubled[at] = true;
        match random.below(4) {
            0 => disk.fail_from(1 + random.below(5), Fault::Eio),
            1 => disk.set_free_bytes(Some(random.below(3) * 4096)),
            2 => {
                let outcome = store.stop_disk(id);
                self.note(|| format!("disk {at} stops: {outcome:?}"));
            }
            _ => {
                // It fails at once, and whoever looks notices.
                disk.fail_from(1, Fault::Eio);
                store.run_background();
            }
        }
        self.note(|| format!("disk {at} is in trouble"));
    }

    /// Reads on from somewhere, and keeps what it got.
    fn read(&mut self, at: usize, store: &Store, random: &mut Random) {
        let Ok(partition) = store.partition(self.topics[at].name, 0) else { return };
        let known = &mut self.topics[at];
        let offset = known.start + random.below(60);
        match partition.read(Offset(offset), ReadOptions::new().max_bytes(2000)) {
            Ok(records) => {
                let found: Vec<_> = records
                    .iter()
                    .map(|record| (record.offset().0, ATTEMPTS.of(record.value().unwrap())))
                    .collect();
                for (offset, attempt) in &found {
                    let possible = known.possible.get(offset);
                    assert!(possible.is_some_and(|p| p.contains(attempt)), "{attempt} at {offset}");
                    if let Some((kept, _)) = known.kept.get(offset) {
                        assert_eq!(kept, attempt, "{} at {offset}", known.name);
                    }
                }
                self.held.push((records, found));
            }
            Err(Error::OffsetOutOfRange { .. }) => {
                let (start, end) = (partition.log_start_offset().0, partition.high_watermark().0);
                assert!(offset < start || offset > end, "{offset} of {start}..{end}");
            }
            Err(_) => {}
        }
        self.look_at_start(at, &partition);
    }

    fn look_at_start(&mut self, at: usize, partition: &Partition) {
        let known = &mut self.topics[at];
        let start = partition.log_start_offset().0;
        assert!(
            start >= known.start.max(known.deleted),
            "{}: starts at {start}, {known:?}",
            known.name
        );
        if start > known.start {
            // Nothing that is younger than a day went by its age.
            if self.time == Time::Forward {
                let now = self.clock.now();
                for (offset, (_, appended)) in known.kept.range(known.deleted_max.min(start)..start)
                {
                    let age = now.since(*appended);
                    assert!(age > DAY, "{}: {offset} went at the age of {age:?}", known.name);
                }
            }
            known.start = start;
            known.kept = known.kept.split_off(&start);
        }
        if self.time == Time::Jumps {
            // By size alone, as much as was asked for is left.
            let kept = known.kept.len();
            assert!(
                start <= known.deleted_max || kept * 300 >= 8192 || known.unclean,
                "{}: {kept} are left",
                known.name
            );
        }
    }

    fn judge(&mut self, at: usize, partition: &Partition) {
        self.look_at_start(at, partition);
        let known = &mut self.topics[at];
        let (found, offset) = ATTEMPTS.read(partition);
        assert_eq!(offset, partition.high_watermark(), "INV-01");
        let mut seen = BTreeMap::new();
        for (offset, attempt) in &found {
            let possible = known.possible.get(offset);
            assert!(
                possible.is_some_and(|p| p.contains(attempt)),
                "invented: {attempt} at {offset}"
            );
            assert_eq!(seen.insert(*attempt, *offset), None, "{attempt} is there twice");
        }
        for (offset, (attempt, _)) in &known.kept {
            assert_eq!(found.get(offset), Some(attempt), "{}: {offset} is lost", known.name);
        }
        for (offset, attempt) in found {
            known.possible.insert(offset, vec![attempt]);
        }
        let end = partition.log_end_offset().0;
        known.possible.retain(|offset, _| *offset < end);
    }

    fn heal(&mut self, troubled: &mut [bool], store: &Store, events: &mut Events) {
        for at in (0..DISKS).filter(|at| troubled[*at]) {
            self.disks[at].heal();
            self.disks[at].set_free_bytes(None);
            store.start_disk(id_of(at)).unwrap();
        }
        troubled.fill(false);
        for at in 0..self.topics.len() {
            let partition = store.partition(self.topics[at].name, 0).unwrap();
            for _ in 0..300 {
                self.clock.advance(Duration::from_millis(20));
                store.run_background();
                self.listen(events);
                if partition.in_sync_replicas().len() == 3
                    && partition.high_watermark() == partition.log_end_offset()
                {
                    break;
                }
            }
            self.listen(events);
            assert_eq!(partition.in_sync_replicas().len(), 3, "{}", partition.name());
            self.judge(at, &partition);
        }
        let report = store.verify(VerifyOptions::new()).unwrap();
        assert_eq!(report.damages, []);
    }

    fn tell(&mut self, random: &mut Random) {
        let retention = match self.time {
            Time::Forward => Retention::age(DAY),
            Time::Jumps => Retention::bytes(8192),
        };
        let store = self.open().unwrap();
        for known in &self.topics {
            let config = small()
                .replication_factor(3)
                .retention(retention)
                .segment_age(DAY * 30)
                .flush(self.flush)
                .min_insync_replicas(if known.unclean { 1 } else { 2 })
                .unclean_leader_election(known.unclean);
            store.create_topic(known.name, config).unwrap();
            store.reassign(known.name, 0, &[id_of(0), id_of(1), id_of(2)]).unwrap();
        }
        drop(store);
        for _ in 0..4 {
            let store = self.open().unwrap();
            let mut events = store.events();
            let mut troubled = vec![false; DISKS];
            self.listen(&mut events);
            self.heal(&mut troubled, &store, &mut events);
            let may_die = random.one_in(3);
            if may_die {
                self.disks[random.index(3)].crash_at(random.below(400));
            }
            for _ in 0..70 {
                let at = random.index(2);
                match random.below(24) {
                    0..=3 => self.pass_time(&store, random),
                    4..=6 => self.trouble(&mut troubled, &store, random),
                    7 => self.delete(at, &store, random),
                    8 | 9 => self.read(at, &store, random),
                    10..=13 if self.time == Time::Jumps => {
                        self.append_numbered(at, &store, &mut events, random);
                    }
                    _ => self.append(at, &store, &mut events, random),
                }
                self.listen(&mut events);
                if self.is_dead() {
                    break;
                }
                for at in 0..2 {
                    if let Ok(partition) = store.partition(self.topics[at].name, 0) {
                        self.look_at_start(at, &partition);
                    }
                }
            }
            for (records, found) in self.held.drain(..) {
                let again: Vec<_> = records
                    .iter()
                    .map(|record| (record.offset().0, ATTEMPTS.of(record.value().unwrap())))
                    .collect();
                assert_eq!(again, found, "what a reader holds stays as it is");
            }
            if random.one_in(3) && !may_die {
                self.heal(&mut troubled, &store, &mut events);
            }
            if random.one_in(2) && !self.is_dead() {
                let closed = store.close(SECOND);
                self.note(|| format!("closed: {closed:?}"));
            } else {
                self.disks[0].kill();
            }
            self.listen(&mut events);
            drop(store);
            // Whether the clock was set, or days have passed, the next session cannot know: it may forget producers.
            self.topics.iter_mut().for_each(|known| known.numbered = None);
            let power = self.flush == Flush::OnAck && random.one_in(2);
            self.note(|| format!("power {power}"));
            for disk in &self.disks {
                disk.heal();
                disk.set_free_bytes(None);
                if power { disk.power_loss() } else { disk.process_restart() }
            }
            if self.time == Time::Forward && random.one_in(3) {
                self.clock.advance(HOUR * u32::try_from(random.below(30)).unwrap());
            }
        }
    }
}

fn tell_story(seed: u64) -> u64 {
    let mut random = Random(seed);
    let mut world = World::new(seed, &mut random);
    let what = format!("{:?}, {:?}", world.time, world.flush);
    tell(seed, &what, || world.tell(&mut random));
    world.topics[1].lost
}

/// A disk was started again, and a file shortened, of which a reader held records: who looked at them was ended by a signal.
#[test]
fn records_that_a_reader_holds_outlive_the_log_that_is_opened_anew() {
    tell_story(9073);
}

#[test]
fn random_stories_of_old_records_lose_nothing_that_is_young() {
    let (first, count) = (setting("ONCELOG_SEED", 1), setting("ONCELOG_STORIES", 100));
    let lost: u64 = (first..first + count).map(tell_story).sum();
    eprintln!("{lost} unclean elections lost something");
}
