//! Transactions, offsets and their tables, where a crash, a deletion or another leader comes in between.
#![cfg(feature = "simulation")]
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use std::collections::BTreeMap;
use std::time::Duration;

use oncelog::simulation::{Clock, SimDisk};
use oncelog::{
    Acks, CommittedOffset, Consumer, Flush, Offset, Record, Store, Timestamp, TopicConfig,
    TopicPartition, TransactionOutcome, TransactionalProducer,
};

const LONG: Duration = Duration::from_secs(10);

fn open(disks: &[SimDisk], clock: &Clock, flush: Flush) -> Store {
    let mut builder = Store::builder().clock(clock.clone()).flush(flush);
    for disk in disks {
        builder = builder.simulated_disk(disk.clone());
    }
    builder.open().unwrap()
}

fn one_disk() -> (Vec<SimDisk>, Clock) {
    (vec![SimDisk::new(1)], Clock::manual(Timestamp(1_000_000)))
}

fn at(partition: u32) -> TopicPartition {
    TopicPartition::new("t", partition)
}

fn grouped(store: &Store, group: &str) -> Consumer {
    store.consumer().group(group).build().unwrap()
}

fn commit(store: &Store, group: &str, offset: u64, metadata: &str) {
    let committed = CommittedOffset {
        offset: Offset(offset),
        metadata: metadata.to_owned(),
        ..CommittedOffset::default()
    };
    grouped(store, group).commit_offsets(&BTreeMap::from([(at(0), committed)])).unwrap();
}

fn committed(store: &Store, group: &str) -> Option<Offset> {
    grouped(store, group).committed(&[("t", 0)]).unwrap().get(&at(0)).map(|held| held.offset)
}

fn producer(store: &Store, id: &str) -> TransactionalProducer {
    store.producer().transactional_id(id).build().unwrap()
}

/// What an internal topic held was written again behind it, and then let go of: a power loss took what was written last, and
/// with it all that had been durable for long.
#[test]
fn a_power_loss_behind_the_rewriting_of_offsets_takes_back_none_that_were_durable() {
    for flush in [Flush::OnAck, Flush::Interval(LONG), Flush::Os] {
        let (disks, clock) = one_disk();
        let store = open(&disks, &clock, flush);
        store.create_topic("t", TopicConfig::new()).unwrap();
        store.partition("t", 0).unwrap().append(&[Record::new("x")], Acks::All).unwrap();
        commit(&store, "durable", 1, "");
        store.close(LONG).unwrap();
        let store = open(&disks, &clock, flush);
        let internal = store.partition("__consumer_offsets", 0).unwrap();
        let metadata = "\u{10ffff}".repeat(4096);
        for _ in 0..1000 {
            commit(&store, "busy", 1, &metadata);
            store.run_background();
            if internal.log_start_offset() > Offset::ZERO {
                break;
            }
        }
        assert!(internal.log_start_offset() > Offset::ZERO, "it was written again");
        disks[0].kill();
        drop((internal, store));
        disks[0].power_loss();
        let store = open(&disks, &clock, flush);
        assert_eq!(committed(&store, "durable"), Some(Offset(1)), "{flush:?}");
    }
}

/// The same of the decisions about transactions.
#[test]
fn a_power_loss_behind_the_rewriting_of_decisions_takes_back_none_that_were_durable() {
    for flush in [Flush::OnAck, Flush::Interval(LONG), Flush::Os] {
        let (disks, clock) = one_disk();
        let store = open(&disks, &clock, flush);
        store.create_topic("t", TopicConfig::new()).unwrap();
        let mut held = producer(&store, "durable");
        let mut transaction = held.begin().unwrap();
        transaction.append("t", 0, &[Record::new("x")]).unwrap();
        let id = transaction.id();
        transaction.commit(LONG).unwrap();
        drop(held);
        store.close(LONG).unwrap();
        let store = open(&disks, &clock, flush);
        let internal = store.partition("__transaction_state", 0).unwrap();
        let name = "x".repeat(30_000);
        for _ in 0..1000 {
            drop(producer(&store, &name));
            store.run_background();
            if internal.log_start_offset() > Offset::ZERO {
                break;
            }
        }
        assert!(internal.log_start_offset() > Offset::ZERO, "it was written again");
        disks[0].kill();
        drop((internal, store));
        disks[0].power_loss();
        let store = open(&disks, &clock, flush);
        let outcome = store.transaction_outcome(id).unwrap();
        assert_eq!(outcome, TransactionOutcome::Committed, "{flush:?}");
    }
}

/// A marker of a commit is safe later than its decision. Where it was lost, and its partition came back only after the id had
/// gone on for long, nobody knew any more that the transaction was committed.
#[test]
fn a_commit_whose_marker_was_lost_holds_in_a_partition_that_comes_back_much_later() {
    let disks: Vec<_> = (1..=3).map(SimDisk::new).collect();
    let clock = Clock::manual(Timestamp(1_000_000));
    let store = open(&disks, &clock, Flush::OnAck);
    for topic in ["a", "b"] {
        store.create_topic(topic, TopicConfig::new().replication_factor(1)).unwrap();
    }
    let disk_of = |store: &Store, topic: &str| store.partition(topic, 0).unwrap().replicas()[0];
    let away = disk_of(&store, "a");
    assert_ne!(away, disk_of(&store, "b"));
    let mut held = producer(&store, "id");
    let mut transaction = held.begin().unwrap();
    for topic in ["a", "b"] {
        transaction.append(topic, 0, &[Record::new("kept")]).unwrap();
    }
    let id = transaction.id();
    transaction.commit(LONG).unwrap();
    let put = |held: &mut TransactionalProducer| {
        let mut transaction = held.begin().unwrap();
        transaction.append("b", 0, &[Record::new("later")]).unwrap();
        transaction.commit(LONG).unwrap();
    };
    put(&mut held);
    disks.iter().for_each(SimDisk::kill);
    drop((held, store));
    disks.iter().for_each(SimDisk::power_loss);

    let mut builder = Store::builder().clock(clock.clone()).allow_missing(away);
    for (at, disk) in disks.iter().enumerate() {
        let is_away = at == usize::from(away.0);
        // Nothing is there.
        let disk = if is_away { SimDisk::new(9) } else { disk.clone() };
        builder = builder.simulated_disk(disk);
    }
    let store = builder.open().unwrap();
    let mut held = producer(&store, "id");
    (0..100).for_each(|_| put(&mut held));
    drop(held);
    store.close(LONG).unwrap();

    let store = open(&disks, &clock, Flush::OnAck);
    store.run_background();
    let options = oncelog::ReadOptions::new().isolation(oncelog::Isolation::ReadCommitted);
    let read = store.partition("a", 0).unwrap().read(Offset(0), options).unwrap();
    assert_eq!(read.count(), 1, "{id:?}: {:?}", store.transaction_outcome(id));
}
