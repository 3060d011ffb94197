//! Files of one of three disks, or the logs of two, are damaged, cut, emptied, removed, mixed up with another or an older one, after a
//! close, a kill or a power loss: the store opens, and records, transactions, offsets and producers are what they were.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use oncelog::simulation::{Clock, SimDisk};
use oncelog::{
    Acks, DiskId, Flush, Isolation, Offset, ProducerEpoch, ProducerId, ProducerSequence, Record,
    Store, Timestamp, TopicConfig, TopicPartition, VerifyOptions,
};

use crate::random::{Random, setting};
use crate::small_store::{open, pass, read_all, together};

const SECOND: Duration = Duration::from_secs(1);
const WAYS: u64 = 10;
/// How a store stops, and under which flush level.
const STORIES: [(u64, Flush); 4] =
    [(0, Flush::OnAck), (1, Flush::OnAck), (2, Flush::OnAck), (0, Flush::Os)];

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

/// Appends the one batch of a producer, or hears that it is there.
fn author(store: &Store, at: u64) -> (bool, Range<Offset>) {
    let by = ProducerSequence { id: ProducerId(500 + at), epoch: ProducerEpoch(0), sequence: 0 };
    let value = [at.to_le_bytes(); 40];
    let partition = store.partition("t", u32::from(at % 2 == 1)).unwrap();
    let record = [Record::new(value.as_flattened())];
    let placed = partition.append_idempotent(by, &record, Acks::All).unwrap();
    (placed.duplicate, placed.offsets)
}

fn work(store: &Store, from: u64) {
    let named = store.producer().name("meter").build().unwrap();
    for at in from..from + 12 {
        let value = [at.to_le_bytes(); 40];
        let record = Record::to("t").partition(u32::from(at % 2 == 1)).value(value.as_flattened());
        named.send(record).unwrap().wait(SECOND).unwrap();
        author(store, at);
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
    authored: Vec<(bool, Range<Offset>)>,
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
        authored: (0..24).map(|at| author(store, at)).collect(),
        all: read(Isolation::ReadUncommitted),
        committed: read(Isolation::ReadCommitted),
        sequences: (0..2).map(|at| named.next_sequence("t", at).unwrap()).collect(),
        offset: format!("{:?}", consumer.committed(&[("t", 0)]).unwrap()),
    }
}

/// Three disks as a close, a kill or a power loss leaves them, what was seen before, and what they were earlier.
fn stopped(how: u64, flush: Flush) -> (Vec<SimDisk>, Seen, Vec<SimDisk>) {
    let disks = together((0..3).map(SimDisk::new).collect());
    let clock = Clock::manual(Timestamp(1_000_000));
    let store = open(&disks, &clock).unwrap();
    let topic = TopicConfig::new().partitions(2).replication_factor(3).min_insync_replicas(2);
    let topic = topic.segment_bytes(4096).index_interval_bytes(256).flush(flush);
    store.create_topic("t", topic).unwrap();
    work(&store, 0);
    store.close(SECOND).unwrap();
    let earlier = disks.iter().map(SimDisk::fork).collect();
    let store = open(&disks, &clock).unwrap();
    work(&store, 12);
    let seen = see(&store);
    match how {
        0 => store.close(SECOND).unwrap(),
        1 => disks[0].kill(),
        _ => disks.iter().for_each(SimDisk::power_loss),
    }
    drop(store);
    disks.iter().for_each(SimDisk::process_restart);
    (disks, seen, earlier)
}

fn spoil(
    disk: &SimDisk,
    old: &SimDisk,
    other: &SimDisk,
    path: &str,
    way: u64,
    random: &mut Random,
) {
    let mut bytes = disk.read_file(path);
    let length = bytes.len();
    let files = disk.files();
    let neighbour = files[random.index(files.len())].clone();
    match way {
        0 | 1 if length > 0 => {
            // Most of a data file is space that was made ready.
            let used = bytes.iter().rposition(|byte| *byte != 0).map_or(1, |at| at + 1);
            let at = random.index(used);
            bytes[at] ^= 1 << random.below(8);
        }
        2 => bytes.truncate(random.index(length)),
        3 => bytes.clear(),
        4 => return disk.remove_file(path),
        5 => bytes = disk.read_file(&neighbour),
        6 => bytes = old.read_file(path),
        7 => bytes = other.read_file(path),
        8 => {
            let from = random.index(length);
            bytes[from..].fill(0);
        }
        _ => bytes.iter_mut().for_each(|byte| *byte ^= 0x5a),
    }
    disk.write_file(path, &bytes);
}

fn judge(disks: &[SimDisk], seen: &Seen, context: &str) {
    let clock = Clock::manual(Timestamp(2_000_000));
    let store = open(disks, &clock).unwrap_or_else(|error| panic!("{context}: {error:?}"));
    assert!(see(&store) == *seen, "{context}: at once");
    pass(&store, &clock, 3 * SECOND);
    assert!(see(&store) == *seen, "{context}: later");
    transact(&store, 99, true);
    let value = [7; 30];
    store.partition("t", 0).unwrap().append(&[Record::new(&value)], Acks::All).unwrap();
    pass(&store, &clock, 3 * SECOND);
    for at in 0..2 {
        let partition = store.partition("t", at).unwrap();
        assert_eq!(partition.in_sync_replicas().len(), 3, "{context}: {at}");
    }
    // Nobody reads what a follower holds, but for a verification.
    store.verify(VerifyOptions::new().repair(true)).unwrap();
    pass(&store, &clock, 3 * SECOND);
    let report = store.verify(VerifyOptions::new()).unwrap();
    assert!(report.damages.is_empty(), "{context}: {:?}", report.damages);
    let after = see(&store);
    store.close(SECOND).unwrap_or_else(|error| panic!("{context}: {error:?}"));
    // Each other disk may go now: what was damaged was healed everywhere.
    let store = open(disks, &clock).unwrap_or_else(|error| panic!("{context}: again: {error:?}"));
    assert!(see(&store) == after, "{context}: opened again");
}

#[test]
fn s2_s6_s7_s14_s16_one_spoilt_file_of_one_of_three_disks_changes_nothing() {
    let seed = setting("ONCELOG_SEED", 1);
    let rounds = setting("ONCELOG_ROUNDS", 1);
    eprintln!("ONCELOG_SEED={seed}");
    let mut failures = Vec::new();
    for (how, flush) in STORIES {
        let (disks, seen, earlier) = stopped(how, flush);
        let mut random = Random(seed);
        for round in 0..rounds * 3 * WAYS {
            let (victim, way) = ((round % 3) as usize, round / 3 % WAYS);
            for path in disks[victim].files() {
                if path == "store.id" && way == 7 {
                    // A copy of another disk that was given as well: refused.
                    continue;
                }
                if way != 4 && disks[victim].read_file(&path).is_empty() {
                    continue;
                }
                if !random.one_in(setting("ONCELOG_ONE_IN", 6)) {
                    continue;
                }
                let copies = together(disks.iter().map(SimDisk::fork).collect());
                let other = &disks[(victim + 1) % 3];
                spoil(&copies[victim], &earlier[victim], other, &path, way, &mut random);
                let context =
                    format!("seed {seed}, stop {how}, {flush:?}, {victim}: {path}, {way}");
                let judged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    judge(&copies, &seen, &context);
                }));
                if judged.is_err() {
                    failures.push(context);
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} failed: {failures:#?}", failures.len());
}

/// Many files at once: of one disk, or the logs of two. Nothing is without a whole copy.
#[test]
fn s2_s6_s7_s14_s16_many_spoilt_files_of_one_disk_or_of_two_disks_logs_change_nothing() {
    let seed = setting("ONCELOG_SEED", 1);
    let rounds = setting("ONCELOG_ROUNDS", 1) * 40;
    eprintln!("ONCELOG_SEED={seed}");
    let mut failures = Vec::new();
    for (how, flush) in STORIES {
        let (disks, seen, earlier) = stopped(how, flush);
        for round in 0..rounds {
            let mut random = Random(seed << 32 | round);
            let (whole, one_in) = (random.index(3), 1 + random.below(4));
            let only_logs = random.one_in(2);
            let victims = [(whole + 1) % 3, (whole + 2) % 3];
            let copies = together(disks.iter().map(SimDisk::fork).collect());
            let mut spoilt = Vec::new();
            for victim in &victims[usize::from(!only_logs)..] {
                for path in disks[*victim].files() {
                    // Without a name and without its metadata it would be nobody's: not taken into service.
                    let is_left = path == "store.id" || only_logs && !path.starts_with("topics/");
                    let is_empty = disks[*victim].read_file(&path).is_empty();
                    if is_left || is_empty || !random.one_in(one_in) {
                        continue;
                    }
                    let way = random.below(WAYS);
                    let (disk, old) = (&copies[*victim], &earlier[*victim]);
                    spoil(disk, old, &disks[whole], &path, way, &mut random);
                    spoilt.push((victim, path, way));
                }
            }
            let context = format!("seed {seed}, stop {how}, {flush:?}, round {round}: {spoilt:?}");
            let judged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                judge(&copies, &seen, &context);
            }));
            if judged.is_err() {
                failures.push(context);
            }
        }
    }
    assert!(failures.is_empty(), "{} failed: {failures:#?}", failures.len());
}

/// A disk is taken out of service, its files are spoilt, and it comes back while the others went on. In the end it leads.
#[test]
fn s2_s6_s7_s14_s16_a_disk_that_comes_back_with_spoilt_files_changes_nothing() {
    let seed = setting("ONCELOG_SEED", 1);
    let rounds = setting("ONCELOG_ROUNDS", 1) * 40;
    eprintln!("ONCELOG_SEED={seed}");
    let mut failures = Vec::new();
    for (how, flush) in STORIES {
        let (disks, _, earlier) = stopped(how, flush);
        for round in 0..rounds {
            let mut random = Random(seed << 32 | round);
            let (victim, one_in) = (random.index(3), 1 + random.below(4));
            let copies = together(disks.iter().map(SimDisk::fork).collect());
            let clock = Clock::manual(Timestamp(2_000_000));
            let store = open(&copies, &clock).unwrap();
            let id = DiskId(u16::try_from(victim).unwrap());
            store.stop_disk(id).unwrap();
            let mut spoilt = Vec::new();
            for path in copies[victim].files() {
                let is_empty = copies[victim].read_file(&path).is_empty();
                if path == "store.id" || is_empty || !random.one_in(one_in) {
                    continue;
                }
                let way = random.below(WAYS);
                let other = &copies[(victim + 1) % 3];
                spoil(&copies[victim], &earlier[victim], other, &path, way, &mut random);
                spoilt.push((path, way));
            }
            let context =
                format!("seed {seed}, stop {how}, {flush:?}, round {round}: {victim}: {spoilt:?}");
            let judged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                if random.one_in(2) {
                    work(&store, 24);
                    pass(&store, &clock, 3 * SECOND);
                }
                let seen = see(&store);
                store.start_disk(id).unwrap();
                pass(&store, &clock, 3 * SECOND);
                assert!(see(&store) == seen, "{context}: it is back");
                store.verify(VerifyOptions::new().repair(true)).unwrap();
                pass(&store, &clock, 3 * SECOND);
                for other in [(victim + 1) % 3, (victim + 2) % 3] {
                    for at in 0..2 {
                        let replicas = store.partition("t", at).unwrap().in_sync_replicas();
                        assert!(replicas.contains(&id), "{context}: {replicas:?}");
                    }
                    store.stop_disk(DiskId(u16::try_from(other).unwrap())).unwrap();
                    pass(&store, &clock, 3 * SECOND);
                    if other == (victim + 1) % 3 {
                        assert!(see(&store) == seen, "{context}: two are left");
                    }
                }
                // Alone it takes nothing, and shows everything.
                for at in 0..2 {
                    let partition = store.partition("t", at).unwrap();
                    assert_eq!(partition.leader(), Some(id), "{context}");
                    let (all, committed) = (&seen.all[at as usize], &seen.committed[at as usize]);
                    assert!(read_all(&partition, Isolation::ReadUncommitted) == *all, "{context}");
                    assert!(
                        read_all(&partition, Isolation::ReadCommitted) == *committed,
                        "{context}"
                    );
                }
            }));
            if judged.is_err() {
                failures.push(context);
            }
        }
    }
    assert!(failures.is_empty(), "{} failed: {failures:#?}", failures.len());
}
