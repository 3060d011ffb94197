//! Changes of topics, records and replicas that fail in the middle, on some of the disks or on all: what the operator is told
//! is what the next opening has, whichever disks it has, and nothing that was acknowledged meanwhile is gone with them.
//!
//! `ONCELOG_ONE_IN=1` for every call at which a disk can fail.

use std::collections::BTreeSet;
use std::time::Duration;

use oncelog::simulation::{Fault, SimDisk};
use oncelog::{
    Acks, DiskId, Error, ErrorClass, Offset, Partition, ReadOptions, Record, Store, TopicConfig,
    TopicUpdate, Written,
};

use crate::random::setting;

const RECORDS: u64 = 10;
const DELETED: Offset = Offset(4);
const ALTERED: u32 = 7777;
/// Where the moved partition is to be.
const TARGET: [DiskId; 2] = [DiskId(2), DiskId(1)];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Create,
    Delete,
    Alter,
    Add,
    DeleteRecords,
    Reassign,
}

const CHANGES: [Change; 6] = [
    Change::Create,
    Change::Delete,
    Change::Alter,
    Change::Add,
    Change::DeleteRecords,
    Change::Reassign,
];

impl Change {
    fn make(self, store: &Store) -> Result<(), Error> {
        match self {
            Self::Create => store.create_topic("new", TopicConfig::new().replication_factor(3)),
            Self::Delete => store.delete_topic("t"),
            Self::Alter => store.alter_topic("t", TopicUpdate::new().max_batch_bytes(ALTERED)),
            Self::Add => store.add_partitions("t", 3),
            Self::DeleteRecords => store.partition("t", 0)?.delete_records(DELETED).map(drop),
            Self::Reassign => store.reassign("t", 0, &TARGET),
        }
    }

    fn is_made(self, store: &Store) -> bool {
        let known = store.topic("t");
        let partition = || store.partition("t", 0).unwrap();
        match self {
            Self::Create => store.topic("new").is_ok(),
            Self::Delete => known.is_err(),
            Self::Alter => {
                let config = known.unwrap().config;
                config.clone().max_batch_bytes(ALTERED) == config
            }
            Self::Add => known.unwrap().partitions == 3,
            Self::DeleteRecords => partition().log_start_offset() >= DELETED,
            Self::Reassign => partition().replicas() == TARGET,
        }
    }
}

fn open(disks: &[SimDisk], which: &[usize]) -> Result<Store, Error> {
    // Its clock goes on, so that a move that cannot be made ends.
    let builder = Store::builder().append_timeout(Duration::from_millis(20));
    which.iter().fold(builder, |all, at| all.simulated_disk(disks[*at].clone())).open()
}

fn fork(disks: &[SimDisk]) -> Vec<SimDisk> {
    let forked: Vec<_> = disks.iter().map(SimDisk::fork).collect();
    forked[1..].iter().for_each(|disk| disk.share_process(&forked[0]));
    forked
}

fn append(partition: &Partition, value: u64) -> Result<Offset, Error> {
    let appended = partition.append(&[Record::new(&value.to_le_bytes())], Acks::All)?;
    Ok(appended.offsets.start)
}

/// The values that can be read.
fn read(partition: &Partition) -> BTreeSet<u64> {
    let (mut next, end) = (partition.log_start_offset(), partition.high_watermark());
    let mut found = BTreeSet::new();
    while next < end {
        let records = partition.read(next, ReadOptions::new()).unwrap();
        for record in &records {
            let value = record.value().and_then(<[u8]>::first_chunk).unwrap();
            assert!(found.insert(u64::from_le_bytes(*value)), "twice");
        }
        next = records.next_offset();
    }
    found
}

/// What was acknowledged, was not deleted, and cannot be read, by partition.
fn missing(store: &Store, kept: &[BTreeSet<u64>; 2]) -> [Vec<u64>; 2] {
    store.run_background();
    [0, 1].map(|number: u32| {
        let partition = store.partition("t", number).unwrap();
        let kept = &kept[number as usize];
        let start = partition.log_start_offset().0;
        kept.difference(&read(&partition)).copied().filter(|value| *value >= start).collect()
    })
}

/// Whether a partition has no leader, or too few replicas in sync to show what they have.
fn is_hidden(store: &Store, kept: &[BTreeSet<u64>; 2]) -> bool {
    let led = |number| store.partition("t", number).is_ok_and(|all| all.leader().is_some());
    !(0..2).all(led) || missing(store, kept).iter().any(|missing| !missing.is_empty())
}

/// Three disks with a topic of two partitions that have records, after a kill.
fn begun() -> Vec<SimDisk> {
    let disks: Vec<_> = (1..=3).map(SimDisk::new).collect();
    disks[1..].iter().for_each(|disk| disk.share_process(&disks[0]));
    let store = open(&disks, &[0, 1, 2]).unwrap();
    let config = TopicConfig::new().partitions(2).replication_factor(3).min_insync_replicas(2);
    store.create_topic("t", config).unwrap();
    for number in 0..2 {
        let partition = store.partition("t", number).unwrap();
        (0..RECORDS).for_each(|value| _ = append(&partition, value).unwrap());
    }
    disks[0].kill();
    drop(store);
    disks.iter().for_each(SimDisk::heal);
    disks.iter().for_each(SimDisk::process_restart);
    disks
}

/// Which disks fail: in one of their next calls, or from that on.
struct Failing<'a> {
    disks: &'a [usize],
    call: u64,
    once: bool,
}

/// Which disks the next opening has, and whether the power was lost before it.
const NEXT: [(&[usize], bool); 8] = [
    (&[0, 1], false),
    (&[1, 2], false),
    (&[0, 2], false),
    (&[0, 1, 2], false),
    (&[1, 2], true),
    (&[0, 1, 2], true),
    (&[0, 2], true),
    (&[0, 1], true),
];

/// False: the change was made before any of the disks failed.
fn try_change(begun: &[SimDisk], change: Change, failing: &Failing<'_>, next: usize) -> bool {
    let disks = fork(begun);
    let store = open(&disks, &[0, 1, 2]).unwrap();
    let partitions = [0, 1].map(|number| store.partition("t", number).unwrap());
    let mut kept = [0, 1].map(|_| (0..RECORDS).collect::<BTreeSet<_>>());
    let reached: Vec<_> =
        failing.disks.iter().map(|at| disks[*at].calls() + failing.call).collect();
    for at in failing.disks {
        if failing.once {
            disks[*at].fail_call(failing.call, Fault::Eio);
        } else {
            disks[*at].fail_from(failing.call, Fault::Eio);
        }
    }
    let told = change.make(&store);
    let met = failing.disks.iter().zip(&reached).any(|(at, call)| disks[*at].calls() >= *call);
    disks.iter().for_each(SimDisk::heal);
    let what =
        format!("{change:?}, disks {:?} from call {}, {told:?}", failing.disks, failing.call);
    match &told {
        Ok(()) => assert!(change.is_made(&store), "{what}"),
        Err(_) => assert!(!change.is_made(&store), "{what}"),
    }
    let deleted = change == Change::Delete && told.is_ok();
    for round in 0..3 {
        for (partition, kept) in partitions.iter().zip(&mut kept) {
            let value = RECORDS + round;
            if append(partition, value).is_ok() {
                assert!(!deleted, "{what}");
                kept.insert(value);
            }
        }
        store.run_background();
    }
    if !deleted {
        assert!(missing(&store, &kept).iter().all(Vec::is_empty), "{what}");
    }
    disks[0].kill();
    drop((partitions, store));
    let (which, power) = NEXT[next % NEXT.len()];
    disks.iter().for_each(SimDisk::heal);
    disks.iter().for_each(if power { SimDisk::power_loss } else { SimDisk::process_restart });
    let what = format!("{what}; opened with {which:?}, power lost: {power}");
    let mut store = open(&disks, which).expect(&what);
    let gone = change == Change::Delete && store.topic("t").is_err();
    if !gone && is_hidden(&store, &kept) {
        // Those that are in sync and there may be too few for it to be led, or shown.
        disks[0].kill();
        drop(store);
        disks.iter().for_each(SimDisk::heal);
        disks.iter().for_each(SimDisk::process_restart);
        store = open(&disks, &[0, 1, 2]).expect(&what);
    }
    let made = change.is_made(&store);
    match &told {
        Ok(()) => assert!(made, "{what}: it is not made"),
        Err(error) if error.written() == Written::No => assert!(!made, "{what}: it is made"),
        Err(_) => {}
    }
    if gone {
        let before = |kept: &BTreeSet<u64>| kept.len() as u64 == RECORDS;
        assert!(kept.iter().all(before), "{what}: {kept:?} were acknowledged");
        return met;
    }
    let lost = missing(&store, &kept);
    assert!(lost.iter().all(Vec::is_empty), "{what}: lost {lost:?}");
    met
}

#[test]
fn what_is_told_of_a_change_is_what_the_next_opening_has_and_takes_nothing_with_it() {
    let begun = begun();
    let mut next = 0;
    for change in CHANGES {
        for disks in [&[1, 2][..], &[0, 1], &[0, 1, 2], &[2]] {
            for once in [true, false] {
                for call in (1..).step_by(usize::try_from(setting("ONCELOG_ONE_IN", 5)).unwrap()) {
                    next += 1;
                    if !try_change(&begun, change, &Failing { disks, call, once }, next) {
                        break;
                    }
                }
            }
        }
    }
}

/// It went on acknowledging what the next opening deleted.
#[test]
fn a_topic_whose_deletion_is_in_doubt_takes_no_more_records() {
    let disks = fork(&begun());
    let store = open(&disks, &[0, 1, 2]).unwrap();
    let used = store.partition("t", 0).unwrap();
    let producer = store.producer().build().unwrap();
    let mut held = store.producer().transactional_id("id").build().unwrap();
    let mut transaction = held.begin().unwrap();
    transaction.append("t", 0, &[Record::new(&77_u64.to_le_bytes())]).unwrap();
    disks[1..].iter().for_each(|disk| disk.fail_from(1, Fault::Eio));
    let told = store.delete_topic("t").unwrap_err();
    assert_eq!(told.written(), Written::Unknown, "{told:?}");
    disks[1..].iter().for_each(SimDisk::heal);
    let refused = |outcome: Result<Offset, Error>| {
        let told = outcome.unwrap_err();
        assert_eq!((told.class(), told.written()), (ErrorClass::Fatal, Written::No), "{told:?}");
    };
    refused(append(&used, 50));
    // One that is used for the first time as well.
    refused(append(&store.partition("t", 1).unwrap(), 51));
    let sent = producer.send(Record::to("t").partition(0).value("52"));
    let told = sent.and_then(|sent| sent.wait(Duration::from_secs(1))).unwrap_err();
    assert_eq!(told.written(), Written::No, "{told:?}");
    assert!(used.delete_records(DELETED).is_err());
    // What is there can be read, and transactions end.
    transaction.commit(Duration::from_secs(1)).unwrap();
    assert_eq!(read(&used), (0..RECORDS).chain([77]).collect());
    assert_eq!(used.last_stable_offset(), used.high_watermark());
    disks[0].kill();
    drop((used, producer, held, store));
    disks.iter().for_each(SimDisk::heal);
    disks.iter().for_each(SimDisk::process_restart);
    let store = open(&disks, &[0, 1, 2]).unwrap();
    assert!(store.topic("t").is_err(), "one of them has taken it");
}

/// Its replica was removed though its metadata did not know of that: alone, it had lost what was acknowledged.
#[test]
fn one_of_two_disks_that_does_not_know_of_a_change_keeps_what_it_has() {
    for change in [Change::Delete, Change::Reassign] {
        let mut kept = 0;
        for call in 1..12 {
            let disks: Vec<_> = (1..=2).map(SimDisk::new).collect();
            disks[1].share_process(&disks[0]);
            let store = open(&disks, &[0, 1]).unwrap();
            store.create_topic("t", TopicConfig::new().replication_factor(2)).unwrap();
            let partition = store.partition("t", 0).unwrap();
            (0..RECORDS).for_each(|value| _ = append(&partition, value).unwrap());
            let (stays, goes) = match partition.leader() {
                Some(DiskId(0)) => (DiskId(0), DiskId(1)),
                _ => (DiskId(1), DiskId(0)),
            };
            drop(partition);
            let gone = &disks[usize::from(goes.0)];
            gone.fail_call(call, Fault::Eio);
            let told = match change {
                Change::Delete => store.delete_topic("t"),
                _ => store.reassign("t", 0, &[stays]),
            };
            let what = format!("{change:?}, call {call}: {told:?}");
            disks[0].kill();
            drop(store);
            disks.iter().for_each(SimDisk::heal);
            disks.iter().for_each(SimDisk::process_restart);
            let builder = Store::builder().simulated_disk(gone.clone());
            let store = builder.allow_missing(stays).open().expect(&what);
            let Ok(partition) = store.partition("t", 0) else { continue };
            if partition.replicas().contains(&goes) {
                store.run_background();
                assert_eq!(read(&partition), (0..RECORDS).collect(), "{what}");
                kept += 1;
            }
        }
        assert!(kept > 0, "{change:?}");
    }
}
