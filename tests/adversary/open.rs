//! A file of a store that is open and in use is spoilt: what is read, what is appended then, and what the next opening
//! finds are what they would have been.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use oncelog::simulation::{Clock, SimDisk};
use oncelog::{
    DiskId, Event, Flush, Isolation, Offset, Record, Store, Timestamp, TopicConfig, TopicPartition,
    VerifyOptions,
};

use crate::random::{Random, setting};
use crate::small_store::{open, pass, read_all, together};

const SECOND: Duration = Duration::from_secs(1);

fn transact(store: &Store, from: u64, commit: bool) {
    let mut producer = store.producer().transactional_id("id").build().unwrap();
    let mut transaction = producer.begin().unwrap();
    for partition in 0..2 {
        let value = [from.to_le_bytes(); 40];
        transaction.append("t", partition, &[Record::new(value.as_flattened())]).unwrap();
    }
    if commit {
        transaction.commit(SECOND).unwrap();
    } else {
        transaction.abort(SECOND).unwrap();
    }
}

fn work(store: &Store, from: u64) {
    let named = store.producer().name("meter").build().unwrap();
    for at in from..from + 12 {
        let value = [at.to_le_bytes(); 40];
        let record = Record::to("t").partition(u32::from(at % 2 == 1)).value(value.as_flattened());
        named.send(record).unwrap().wait(SECOND).unwrap();
        if at % 3 == 0 {
            transact(store, at, at % 2 == 0);
        }
    }
    let mut consumer = store.consumer().group("g").build().unwrap();
    consumer.assign(&[("t", 0)]).unwrap();
    let to = BTreeMap::from([(TopicPartition::new("t", 0), Offset(from / 2 + 3).into())]);
    consumer.commit_offsets(&to).unwrap();
}

/// What an application can see of a store.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    all: Vec<Vec<(u64, Vec<u8>)>>,
    committed: Vec<Vec<(u64, Vec<u8>)>>,
    sequences: Vec<u64>,
    offset: String,
}

fn see(store: &Store) -> Seen {
    let partitions: Vec<_> = (0..2).map(|at| store.partition("t", at).unwrap()).collect();
    let read = |isolation| partitions.iter().map(|p| read_all(p, isolation)).collect();
    let named = store.producer().name("meter").build().unwrap();
    let mut consumer = store.consumer().group("g").build().unwrap();
    consumer.assign(&[("t", 0)]).unwrap();
    Seen {
        all: read(Isolation::ReadUncommitted),
        committed: read(Isolation::ReadCommitted),
        sequences: (0..2).map(|at| named.next_sequence("t", at).unwrap()).collect(),
        offset: format!("{:?}", consumer.committed(&[("t", 0)]).unwrap()),
    }
}

fn set_up(seed: u64, flush: Flush) -> (Vec<SimDisk>, Clock, Store) {
    let disks = together((0..3).map(|at| SimDisk::new(seed * 3 + at)).collect());
    let clock = Clock::manual(Timestamp(1_000_000));
    let store = open(&disks, &clock).unwrap();
    let topic = TopicConfig::new().partitions(2).replication_factor(3).min_insync_replicas(2);
    let topic = topic.segment_bytes(4096).index_interval_bytes(256).flush(flush);
    store.create_topic("t", topic).unwrap();
    work(&store, 0);
    if seed.is_multiple_of(2) {
        pass(&store, &clock, 3 * SECOND);
    }
    (disks, clock, store)
}

/// Removes a file that the store may hold open, and mostly puts another of its name there.
fn spoil(disk: &SimDisk, other: &SimDisk, path: &str, way: u64, random: &mut Random) {
    let mut bytes = disk.read_file(path);
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
    let files = disk.files();
    let neighbour = &files[random.index(files.len())];
    disk.remove_file(path);
    match way {
        0 => return,
        1 if used > 0 => bytes[random.index(used)] ^= 1 << random.below(8),
        2 => bytes.truncate(random.index(used)),
        3 => bytes[random.index(used)..].fill(0),
        4 => bytes.clear(),
        5 => bytes = disk.read_file(neighbour),
        _ => bytes = other.read_file(path),
    }
    disk.write_file(path, &bytes);
}

fn id(at: usize) -> DiskId {
    DiskId(u16::try_from(at).unwrap())
}

/// A file of one disk is spoilt. Then another disk is away for a while, or the same, or none.
struct Story {
    seed: u64,
    flush: Flush,
    victim: usize,
    way: u64,
    end: u64,
}

impl Story {
    fn tell(&self, path: &str) {
        let (disks, clock, store) = set_up(self.seed, self.flush);
        let seen = see(&store);
        let mut random = Random(self.seed ^ self.way ^ self.end);
        let other = (self.victim + 1) % 3;
        spoil(&disks[self.victim], &disks[other], path, self.way, &mut random);
        assert!(see(&store) == seen, "at once");
        let away = [other, self.victim].get(usize::try_from(self.end).unwrap() / 2).copied();
        if let Some(away) = away {
            store.stop_disk(id(away)).unwrap();
            assert!(see(&store) == seen, "{away} is away");
        }
        work(&store, 12);
        if let Some(away) = away {
            store.start_disk(id(away)).unwrap();
            pass(&store, &clock, 3 * SECOND);
        }
        let seen = see(&store);
        if self.end.is_multiple_of(2) {
            verify(&store, &clock);
            assert!(see(&store) == seen, "verified");
        }
        self.stop(&disks, &store);
        drop(store);
        disks.iter().for_each(SimDisk::process_restart);
        let store = open(&disks, &clock).unwrap();
        assert!(see(&store) == seen, "opened");
        pass(&store, &clock, 3 * SECOND);
        work(&store, 24);
        pass(&store, &clock, 3 * SECOND);
        for at in 0..2 {
            let partition = store.partition("t", at).unwrap();
            assert_eq!(partition.in_sync_replicas().len(), 3, "{at}");
        }
        verify(&store, &clock);
        let seen = see(&store);
        store.close(SECOND).unwrap();
        // Each disk may go now: what was spoilt was healed everywhere.
        let store = open(&disks, &clock).unwrap();
        for at in 0..3 {
            store.stop_disk(id(at)).unwrap();
            assert!(see(&store) == seen, "without {at}");
            store.start_disk(id(at)).unwrap();
            pass(&store, &clock, 3 * SECOND);
        }
    }

    fn stop(&self, disks: &[SimDisk], store: &Store) {
        match (self.seed + self.way + self.end) % 3 {
            0 => disks[0].kill(),
            1 if self.flush == Flush::OnAck => disks.iter().for_each(SimDisk::power_loss),
            _ => store.close(SECOND).unwrap(),
        }
    }
}

fn verify(store: &Store, clock: &Clock) {
    let first = store.verify(VerifyOptions::new().repair(true)).unwrap();
    assert!(first.damages.iter().all(|damage| damage.repaired), "{:?}", first.damages);
    pass(store, clock, 3 * SECOND);
    let report = store.verify(VerifyOptions::new()).unwrap();
    assert!(report.damages.is_empty(), "{:?}, first {:?}", report.damages, first.damages);
}

/// One whose file is gone by its name was called repaired, for it could still be read: the next opening did not find it.
#[test]
fn s2_s6_s7_s16_a_file_of_an_open_store_that_is_removed_or_replaced_changes_nothing() {
    let seed = setting("ONCELOG_SEED", 1);
    eprintln!("ONCELOG_SEED={seed}");
    let mut random = Random(seed);
    let mut failures = Vec::new();
    for flush in [Flush::OnAck, Flush::Os] {
        let (disks, ..) = set_up(seed, flush);
        for at in 0..3 * 7 * 6 {
            let (victim, way, end) = (at % 3, at as u64 / 3 % 7, at as u64 / 21);
            let story = Story { seed, flush, victim, way, end };
            for path in disks[victim].files() {
                // A copy of another disk that was given as well is refused.
                let is_refused = path == "store.id" && way >= 5;
                if is_refused || !random.one_in(setting("ONCELOG_ONE_IN", 24)) {
                    continue;
                }
                let told = catch_unwind(AssertUnwindSafe(|| story.tell(&path)));
                if told.is_err() {
                    failures.push(format!("{flush:?} disk {victim}: {path}, way {way}, end {end}"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "seed {seed}: {} failed: {failures:#?}", failures.len());
}

#[test]
fn s2_the_only_replica_is_written_anew_from_a_file_that_lost_its_name() {
    let disk = SimDisk::new(1);
    let clock = Clock::manual(Timestamp(1_000_000));
    let disks = [disk.clone()];
    let store = open(&disks, &clock).unwrap();
    store.create_topic("t", TopicConfig::new().partitions(2).segment_bytes(4096)).unwrap();
    work(&store, 0);
    work(&store, 12);
    let seen = see(&store);
    for path in disk.files().iter().filter(|path| path.contains("-t/0/") && path.ends_with(".log"))
    {
        disk.remove_file(path);
    }
    verify(&store, &clock);
    store.close(SECOND).unwrap();
    let store = open(&disks, &clock).unwrap();
    assert!(see(&store) == seen);
}

#[test]
fn s14_a_disk_whose_identity_was_damaged_while_it_was_away_starts_again_if_it_can_be_no_other() {
    let (disks, clock, store) = set_up(1, Flush::OnAck);
    let identity = disks[1].read_file("store.id");
    for spoilt in [Vec::new(), vec![7; identity.len()]] {
        store.stop_disk(DiskId(1)).unwrap();
        work(&store, 12);
        disks[1].write_file("store.id", &spoilt);
        // With two away, it could be either.
        store.stop_disk(DiskId(2)).unwrap();
        let refused = store.start_disk(DiskId(1)).unwrap_err();
        assert!(refused.to_string().contains("store.id"), "{refused}");
        store.start_disk(DiskId(2)).unwrap();
        store.start_disk(DiskId(1)).unwrap();
        pass(&store, &clock, 3 * SECOND);
        assert_eq!(disks[1].read_file("store.id"), identity);
        assert_eq!(store.partition("t", 0).unwrap().in_sync_replicas().len(), 3);
    }
    // An empty directory in its place is not it.
    store.stop_disk(DiskId(1)).unwrap();
    disks[1].files().iter().for_each(|path| disks[1].remove_file(path));
    assert!(store.start_disk(DiskId(1)).is_err());
}

#[test]
fn s2_a_segment_that_cannot_be_written_anew_keeps_no_other_from_its_repair() {
    let (disks, clock, store) = set_up(1, Flush::OnAck);
    work(&store, 12);
    let seen = see(&store);
    for number in 0..2 {
        let path = format!("topics/00000001-t/{number}/00000000000000000000.log");
        disks[0].remove_file(&path);
        if number == 0 {
            disks[0].write_file(&format!("{path}/not ours"), &[1]);
        }
    }
    let report = store.verify(VerifyOptions::new().repair(true)).unwrap();
    let told: Vec<_> =
        report.damages.iter().map(|d| (d.partition.partition(), d.repaired)).collect();
    assert_eq!(told, [(0, false), (1, true)]);
    assert!(see(&store) == seen);
    disks[0].remove_file("topics/00000001-t/0/00000000000000000000.log/not ours");
    pass(&store, &clock, 3 * SECOND);
}

/// It was tried once, and then not before somebody read there.
#[test]
fn s2_a_repair_that_fails_when_a_store_is_opened_is_tried_again() {
    let (disks, clock, store) = set_up(1, Flush::OnAck);
    work(&store, 12);
    let seen = see(&store);
    let partition = store.partition("t", 0).unwrap();
    let leader = partition.leader().unwrap();
    let followers: Vec<_> =
        partition.replicas().into_iter().filter(|disk| *disk != leader).collect();
    for disk in &followers {
        let disk = &disks[usize::from(disk.0)];
        let path = "topics/00000001-t/0/00000000000000000000";
        disk.remove_file(&format!("{path}.index"));
        let mut bytes = disk.read_file(&format!("{path}.log"));
        bytes[500] ^= 1;
        disk.write_file(&format!("{path}.log"), &bytes);
    }
    disks[0].kill();
    drop((partition, store));
    disks.iter().for_each(SimDisk::process_restart);
    followers.iter().for_each(|disk| disks[usize::from(disk.0)].set_free_bytes(Some(0)));
    let store = open(&disks, &clock).unwrap();
    let failed = |event: &Event| event.to_string().contains("repairing");
    assert_eq!(store.events().filter(failed).count(), 2, "no repair was tried");
    disks.iter().for_each(|disk| disk.set_free_bytes(None));
    pass(&store, &clock, 3 * SECOND);
    assert_eq!(store.verify(VerifyOptions::new()).unwrap().damages, []);
    assert!(see(&store) == seen);
}
