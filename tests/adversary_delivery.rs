//! What was processed is not delivered again, and what was not is: positions, commits and transactions in odd orders.
#![cfg(feature = "simulation")]
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use std::collections::BTreeMap;
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;

use oncelog::{
    Acks, CommittedOffset, Consumer, ConsumerBuilder, Offset, Record, StartAt, Store, TopicConfig,
    TopicPartition,
};

/// No test waits that long; one that does has found a hang.
const LONG: Duration = Duration::from_secs(20);
const NOW: Duration = Duration::ZERO;

fn store(partitions: u32) -> Store {
    let store = Store::in_memory(1).unwrap();
    store.create_topic("t", TopicConfig::new().partitions(partitions)).unwrap();
    store
}

fn at(partition: u32) -> TopicPartition {
    TopicPartition::new("t", partition)
}

fn append(store: &Store, partition: u32, count: usize) {
    let partition = store.partition("t", partition).unwrap();
    for _ in 0..count {
        partition.append(&[Record::new("record")], Acks::All).unwrap();
    }
}

fn grouped(store: &Store) -> ConsumerBuilder {
    store.consumer().group("g").start(StartAt::Earliest)
}

fn member(store: &Store) -> Consumer {
    let mut consumer = grouped(store).build().unwrap();
    consumer.subscribe(&["t"]).unwrap();
    consumer
}

/// What the group has committed for the first partition, seen from outside.
fn committed(store: &Store) -> Option<Offset> {
    let outside = grouped(store).build().unwrap();
    outside.committed(&[("t", 0)]).unwrap().get(&at(0)).map(|held| held.offset)
}

// What was committed last is what is committed, whichever way it was.

#[test]
fn a_commit_after_a_seek_back_holds_though_an_asynchronous_one_went_further() {
    let store = store(1);
    append(&store, 0, 10);
    let mut consumer = member(&store);
    assert_eq!(consumer.poll(NOW).unwrap().count(), 10);
    consumer.seek("t", 0, Offset(5)).unwrap();
    consumer.commit().unwrap();
    assert_eq!(consumer.poll(NOW).unwrap().count(), 5);
    consumer.commit_async(|_| ()).unwrap();
    consumer.seek("t", 0, Offset(5)).unwrap();
    consumer.commit().unwrap();
    assert_eq!(committed(&store), Some(Offset(5)));
}

#[test]
fn a_commit_of_the_position_holds_though_other_offsets_were_committed_asynchronously() {
    let store = store(1);
    append(&store, 0, 10);
    let mut consumer = member(&store);
    assert_eq!(consumer.poll(NOW).unwrap().count(), 10);
    consumer.commit().unwrap();
    let further = BTreeMap::from([(at(0), CommittedOffset::from(Offset(3)))]);
    consumer.commit_offsets_async(&further, |_| ()).unwrap();
    consumer.commit().unwrap();
    assert_eq!(committed(&store), Some(Offset(10)));
    consumer.commit_offsets_async(&further, |_| ()).unwrap();
    consumer.commit_async(|_| ()).unwrap();
    assert_eq!(committed(&store), Some(Offset(10)));
}

#[test]
fn a_commit_of_the_position_holds_though_a_transaction_has_committed_another() {
    let store = store(1);
    append(&store, 0, 10);
    let mut consumer = member(&store);
    assert_eq!(consumer.poll(NOW).unwrap().count(), 10);
    consumer.seek("t", 0, Offset(5)).unwrap();
    consumer.commit().unwrap();
    let mut producer = store.producer().transactional_id("id").build().unwrap();
    let mut transaction = producer.begin().unwrap();
    let offset = CommittedOffset::from(Offset(10));
    transaction.send_offsets([(&at(0), &offset)], &consumer.group_metadata()).unwrap();
    transaction.commit(LONG).unwrap();
    assert_eq!(committed(&store), Some(Offset(10)));
    consumer.commit().unwrap();
    assert_eq!(committed(&store), Some(Offset(5)));
}

#[test]
fn a_commit_in_a_callback_for_a_partition_that_stays_does_not_hide_the_next_one() {
    let store = store(2);
    append(&store, 0, 10);
    let mut consumer = member(&store);
    consumer.poll(NOW).unwrap();
    consumer.commit().unwrap();
    consumer.on_rebalance(|told| {
        let back = BTreeMap::from([(at(0), CommittedOffset::from(Offset(3)))]);
        told.commit_offsets(&back).unwrap();
    });
    store.add_partitions("t", 3).unwrap();
    consumer.poll(NOW).unwrap();
    assert_eq!(committed(&store), Some(Offset(3)));
    consumer.commit().unwrap();
    assert_eq!(committed(&store), Some(Offset(10)));
}

#[test]
fn a_consumer_that_commits_by_itself_takes_no_explicit_commit_back_when_it_is_dropped() {
    for explicit in 0..4 {
        let store = store(1);
        append(&store, 0, 10);
        let mut consumer = grouped(&store).auto_commit(LONG).build().unwrap();
        consumer.subscribe(&["t"]).unwrap();
        assert_eq!(consumer.poll(NOW).unwrap().count(), 10);
        let part = BTreeMap::from([(at(0), CommittedOffset::from(Offset(7)))]);
        let expected = match explicit {
            0 => consumer.commit().map(|()| 10),
            1 => consumer.commit_async(|_| ()).map(|()| 10),
            2 => consumer.commit_offsets(&part).map(|()| 7),
            _ => consumer.commit_offsets_async(&part, |_| ()).map(|()| 7),
        };
        drop(consumer);
        assert_eq!(committed(&store), Some(Offset(expected.unwrap())), "way {explicit}");
    }
}

// A member that does not poll.

#[test]
fn a_task_that_was_woken_and_does_not_poll_again_loses_its_place_to_others() {
    for news in [false, true] {
        let store = store(2);
        let mut stuck =
            grouped(&store).max_poll_interval(Duration::from_millis(50)).build().unwrap();
        stuck.subscribe(&["t"]).unwrap();
        let mut recv = pin!(stuck.recv());
        assert!(recv.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        if !news {
            append(&store, 0, 1);
            append(&store, 1, 1);
        }
        // Its waker was told; the task has something else to do.
        let mut other = member(&store);
        let started = std::time::Instant::now();
        let mut held = 0;
        while held < 2 && started.elapsed() < LONG {
            other.poll(Duration::from_millis(10)).unwrap();
            held = other.assignment().len();
        }
        assert_eq!(held, 2, "news of the group: {news}");
    }
}
