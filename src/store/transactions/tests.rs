//! The table of transactions, where a leader goes with what it alone had.

use super::*;
use crate::TransactionalProducer;
use crate::config::{TopicConfig, TopicUpdate};
use crate::error::Written;
use crate::partition::{Author, ReadOptions};
use crate::protocol::producer_state::batch::Numbering;
use crate::record::{Marker, Record};
use crate::storage::Clock;
use crate::storage::simulated::{Fault, SimDisk};
use crate::store::{Store, StoreBuilder};
use crate::types::{Acks, DiskId, Isolation, ProducerEpoch, ProducerId, ProducerSequence};

const LONG: Duration = Duration::from_secs(10);
const DAY: Duration = Duration::from_secs(86_400);

fn on(disks: &[SimDisk]) -> StoreBuilder {
    let all = |builder: StoreBuilder, disk: &SimDisk| builder.simulated_disk(disk.clone());
    disks.iter().fold(Store::builder().flush(Flush::OnAck), all)
}

/// It was written again with the rest before its abort was, and a process that died just then had committed what
/// [`Error::written`] had said was not.
#[test]
fn a_decision_that_another_leader_lacks_is_not_written_again() {
    let disks: Vec<_> = (1..=3).map(SimDisk::new).collect();
    let store = on(&disks).open().unwrap();
    store.create_topic("t", TopicConfig::new().replication_factor(3)).unwrap();
    let mut held = store.producer().transactional_id("id").build().unwrap();
    let mut transaction = held.begin().unwrap();
    transaction.append("t", 0, &[Record::new("x")]).unwrap();
    let id = transaction.id();
    let tag = TransactionTag { producer: id.producer, epoch: id.epoch };
    let shared = store.shared();
    let transactions = shared.transactions().unwrap();
    let internal = {
        let mut state = transactions.state.lock();
        // Its leader fails before it is anywhere else.
        let (request, outcome) = (RequestId(u64::MAX), Outcome::Committed);
        let now = transactions.clock.now();
        let effects = state.coordinator.step(now, Event::End { request, tag, outcome });
        let [Effect::Persist { record }] = &effects[..] else { panic!("{effects:?}") };
        put(&mut state.table, record.key(), record.value());
        Arc::clone(state.topic.core())
    };
    store.stop_disk(internal.leader().unwrap()).unwrap();
    let name = "x".repeat(30_000);
    for _ in 0..1000 {
        drop(store.producer().transactional_id(name.as_str()).build().unwrap());
        store.run_background();
        if internal.log_start() > Offset::ZERO {
            break;
        }
    }
    assert!(internal.log_start() > Offset::ZERO, "it was written again");
    disks.iter().for_each(SimDisk::kill);
    drop(transaction);
    drop((held, transactions, internal, store));
    disks.iter().for_each(SimDisk::heal);
    disks.iter().for_each(SimDisk::process_restart);
    let store = on(&disks).open().unwrap();
    drop(store.producer().transactional_id("id").build().unwrap());
    assert_eq!(store.shared().transactions().unwrap().verdict(tag), Verdict::Aborted);
}

/// The word of the one that failed last was everybody's: first of all, then of all holders of an id. Who had left a decision
/// that is in the log was told that nothing was written, for the next holder's record had been refused.
#[test]
fn of_records_that_fail_at_once_each_tells_its_own_reason() {
    let store = on(&[SimDisk::new(1)]).open().unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    let mut held = store.producer().transactional_id("id").build().unwrap();
    let mut transaction = held.begin().unwrap();
    transaction.append("t", 0, &[Record::new("x")]).unwrap();
    let id = transaction.id();
    let tag = TransactionTag { producer: id.producer, epoch: id.epoch };
    let (shared, id) = (store.shared(), Arc::<str>::from("id"));
    let transactions = shared.transactions().unwrap();
    let fails = |event, error| {
        transactions.step(shared, event);
        transactions.finish(shared, vec![Job::Persist { id: Arc::clone(&id), begun: Err(error) }]);
    };
    let [first, second] = [u64::MAX - 1, u64::MAX].map(RequestId);
    let outcome = Outcome::Committed;
    fails(Event::End { request: first, tag, outcome }, Error::in_doubt("it", Duration::ZERO));
    let (timeout, fresh) = (Duration::from_secs(1), ProducerId(1));
    let open = Open { request: second, id: Arc::clone(&id), timeout, fresh, renews: None };
    let partition = transactions.state.lock().topic.core().partition().clone();
    fails(Event::Open(open), Error::NotEnoughReplicas { partition, in_sync: 1, required: 2 });
    let mut state = transactions.state.lock();
    let told = [first, second].map(|request| {
        let (answer, why) = state.take_answer(request).expect("it has failed");
        assert_eq!(answer, Answer::Failed);
        in_doubt(&id, Duration::ZERO, why).written()
    });
    assert_eq!(told, [Written::Unknown, Written::No]);
}

/// It is read anew first, and somebody's record is always on its way.
#[test]
fn under_another_leader_decisions_are_written_again_while_others_are_made() {
    let disks: Vec<_> = (1..=3).map(SimDisk::new).collect();
    let store = on(&disks).threads().open().unwrap();
    drop(store.producer().transactional_id("id").build().unwrap());
    let transactions = store.shared().transactions().unwrap();
    let internal = Arc::clone(transactions.state.lock().topic.core());
    store.stop_disk(internal.leader().unwrap()).unwrap();
    std::thread::scope(|scope| {
        for letter in ["a", "b", "c", "d"] {
            let (store, internal, name) = (&store, &internal, letter.repeat(30_000));
            scope.spawn(move || {
                for _ in 0..100 {
                    drop(store.producer().transactional_id(name.as_str()).build().unwrap());
                    if internal.log_start() > Offset::ZERO {
                        return;
                    }
                }
            });
        }
    });
    assert!(internal.log_start() > Offset::ZERO, "it was written again");
}

fn producer(store: &Store) -> TransactionalProducer {
    store.producer().transactional_id("id").build().unwrap()
}

/// Commits a record in each of the topics.
fn commit_in(held: &mut TransactionalProducer, topics: &[&str]) -> TransactionTag {
    let mut transaction = held.begin().unwrap();
    for topic in topics {
        transaction.append(topic, 0, &[Record::new("x")]).unwrap();
    }
    let id = transaction.id();
    transaction.commit(LONG).unwrap();
    TransactionTag { producer: id.producer, epoch: id.epoch }
}

fn committed(store: &Store, topic: &str) -> usize {
    let partition = store.partition(topic, 0).unwrap();
    let options = ReadOptions::new().isolation(Isolation::ReadCommitted);
    let (mut offset, mut count) = (Offset::ZERO, 0);
    while offset < partition.last_stable_offset() {
        let read = partition.read(offset, options).unwrap();
        count += read.iter().count();
        offset = read.next_offset();
    }
    count
}

/// Lets time pass until followers have caught up and what is due is done.
fn quiet(store: &Store, clock: &Clock) {
    for _ in 0..30 {
        clock.advance(Duration::from_millis(100));
        store.run_background();
    }
}

fn three_disks() -> (Vec<SimDisk>, Clock, Store) {
    let disks: Vec<_> = (1..=3).map(SimDisk::new).collect();
    let clock = Clock::manual(Timestamp(1_000_000));
    let store = on(&disks).clock(clock.clone()).open().unwrap();
    (disks, clock, store)
}

/// How it ended was forgotten while its partition lacked the marker, and the next opening aborted what was acknowledged.
#[test]
fn a_commit_whose_marker_too_few_replicas_have_holds_whatever_follows_elsewhere() {
    let (disks, clock, store) = three_disks();
    let config = TopicConfig::new().replication_factor(2).min_insync_replicas(2);
    store.create_topic("t", config).unwrap();
    store.create_topic("u", TopicConfig::new().replication_factor(3)).unwrap();
    let mut held = producer(&store);
    let tag = commit_in(&mut held, &["t", "u"]);
    let away = store.partition("t", 0).unwrap().replicas()[1];
    store.stop_disk(away).unwrap();
    for _ in 0..100 {
        let Ok(mut transaction) = held.begin() else { break };
        transaction.append("u", 0, &[Record::new("x")]).unwrap();
        if let Err(error) = transaction.commit(LONG) {
            assert!(matches!(error, Error::TimedOut { .. }), "{error}");
            break;
        }
    }
    disks.iter().for_each(SimDisk::kill);
    drop((held, store));
    disks.iter().for_each(SimDisk::power_loss);
    let store = on(&disks).clock(clock.clone()).open().unwrap();
    quiet(&store, &clock);
    let verdict = store.shared().transactions().unwrap().verdict(tag);
    assert_eq!((committed(&store, "t"), verdict), (1, Verdict::Committed));
    commit_in(&mut producer(&store), &["t", "u"]);
}

/// Waits until whoever looks after time-outs sleeps, and comes back by itself at such a time.
fn wait_until_due(transactions: &Transactions, is_it: impl Fn(Timestamp) -> bool) {
    while !transactions.queue().sleeps() || !is_it(transactions.state.lock().wakes_at) {
        std::thread::yield_now();
    }
}

/// Nobody was told that there is one: it stayed open, and readers behind it waited, until something else happened.
#[test]
fn a_transaction_times_out_where_nothing_else_happens() {
    let store = on(&[SimDisk::new(1)]).threads().open().unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let builder = store.producer().transactional_id("id");
    let mut held = builder.transaction_timeout(Duration::from_millis(1)).build().unwrap();
    partition.append(&[Record::new("plain")], Acks::All).unwrap();
    let transactions = store.shared().transactions().unwrap();
    wait_until_due(&transactions, |due| due == Timestamp::MAX);
    let mut transaction = held.begin().unwrap();
    transaction.append("t", 0, &[Record::new("x")]).unwrap();
    partition.append(&[Record::new("plain")], Acks::All).unwrap();
    partition.wait_for_committed(Offset(2), LONG).unwrap();
}

/// Whoever looks after that sleeps until the transaction would have timed out.
#[test]
fn a_marker_that_could_not_be_written_is_written_once_it_can_be() {
    let store = on(&[1, 2, 3].map(SimDisk::new)).threads().open().unwrap();
    let config = TopicConfig::new().replication_factor(2).min_insync_replicas(2);
    store.create_topic("t", config).unwrap();
    let mut held = producer(&store);
    let mut transaction = held.begin().unwrap();
    transaction.append("t", 0, &[Record::new("x")]).unwrap();
    let partition = store.partition("t", 0).unwrap();
    partition.append(&[Record::new("plain")], Acks::All).unwrap();
    store.stop_disk(partition.replicas()[1]).unwrap();
    let transactions = store.shared().transactions().unwrap();
    wait_until_due(&transactions, |due| due > Timestamp::MIN && due < Timestamp::MAX);
    transaction.commit(Duration::from_millis(1)).unwrap_err();
    store.alter_topic("t", TopicUpdate::new().min_insync_replicas(1)).unwrap();
    partition.wait_for_committed(Offset(1), LONG).unwrap();
    assert_eq!(committed(&store, "t"), 2);
}

/// Else all that is known of its commits would be kept for ever, under one producer more with each opening.
#[test]
fn ids_expire_once_a_partition_that_was_away_has_a_leader_again_and_not_before() {
    let (_disks, clock, store) = three_disks();
    store.create_topic("t", TopicConfig::new().replication_factor(1)).unwrap();
    let mut held = producer(&store);
    let tag = commit_in(&mut held, &["t"]);
    drop(held);
    quiet(&store, &clock);
    let away = store.partition("t", 0).unwrap().replicas()[0];
    store.stop_disk(away).unwrap();
    let transactions = store.shared().transactions().unwrap();
    // As an opening does.
    transactions.find_open(store.shared());
    let passes = || {
        for _ in 0..2 {
            clock.advance(8 * DAY);
            quiet(&store, &clock);
        }
        transactions.verdict(tag)
    };
    assert_eq!(passes(), Verdict::Committed);
    store.start_disk(away).unwrap();
    assert_eq!(passes(), Verdict::Unknown);
}

/// Its call was given up; else it would never expire, for somebody holds it.
#[test]
fn an_id_that_is_opened_for_nobody_is_let_go_of() {
    let clock = Clock::manual(Timestamp(1_000_000));
    let store = on(&[SimDisk::new(1)]).clock(clock.clone()).open().unwrap();
    let (shared, request) = (store.shared(), RequestId(u64::MAX));
    let transactions = shared.transactions().unwrap();
    transactions.state.lock().abandoned.insert(request);
    let (id, timeout, fresh) = ("id".into(), Duration::from_secs(1), ProducerId(7));
    transactions.run(shared, Event::Open(Open { request, id, timeout, fresh, renews: None }));
    let tag = TransactionTag { producer: fresh, epoch: ProducerEpoch(0) };
    assert_eq!(transactions.verdict(tag), Verdict::Aborted, "nobody holds it");
    clock.advance(8 * DAY);
    store.run_background();
    assert_eq!(transactions.verdict(tag), Verdict::Unknown);
}

/// Writes a record into the partition as the transaction does.
fn write_as(tag: TransactionTag, store: &Store, topic: &str) {
    let TransactionTag { producer: id, epoch } = tag;
    let author = Author {
        producer: ProducerSequence { id, epoch, sequence: 0 },
        transactional: true,
        strict: true,
        numbering: Numbering::Restarts,
        compression: None,
    };
    let partition = store.partition(topic, 0).unwrap();
    partition.append_as(&author, &[Record::new("y")], Acks::All).unwrap();
}

/// The holder would be told of a mistake in its own order.
#[test]
fn who_writes_where_an_earlier_marker_is_lost_has_it_written_first() {
    let (_disks, _, store) = three_disks();
    for topic in ["t", "u"] {
        store.create_topic(topic, TopicConfig::new()).unwrap();
    }
    let mut held = producer(&store);
    let tag = commit_in(&mut held, &["t"]);
    // As in a partition whose leader went with the marker, and of which nobody has been told yet.
    write_as(tag, &store, "u");
    let mut transaction = held.begin().unwrap();
    let busy = transaction.append("u", 0, &[Record::new("x")]);
    assert!(matches!(busy, Err(Error::TimedOut { .. })), "{busy:?}");
    transaction.append("u", 0, &[Record::new("x")]).unwrap();
    transaction.commit(LONG).unwrap();
    assert_eq!(committed(&store, "u"), 2);
}

/// A power loss took what the store knew of its epochs: one after the other would be refused.
#[test]
fn who_is_behind_what_a_partition_knows_is_followed_by_a_holder_that_is_not() {
    let (_disks, _, store) = three_disks();
    store.create_topic("t", TopicConfig::new()).unwrap();
    let mut held = producer(&store);
    let id = held.begin().unwrap().id();
    let (producer_id, epoch) = (id.producer, ProducerEpoch(40));
    write_as(TransactionTag { producer: producer_id, epoch }, &store, "t");
    let marker = Marker { producer: producer_id, epoch, outcome: Outcome::Aborted };
    let partition = store.partition("t", 0).unwrap();
    partition.core().unwrap().append_marker(&marker, Acks::All).unwrap();
    let mut transaction = held.begin().unwrap();
    let refused = transaction.append("t", 0, &[Record::new("x")]);
    assert!(matches!(refused, Err(Error::ProducerFenced { .. })), "{refused:?}");
    drop(transaction);
    commit_in(&mut producer(&store), &["t"]);
    assert_eq!(committed(&store, "t"), 1);
}

/// A snapshot in between would show one half of the transaction.
#[test]
fn nobody_cuts_between_markers_and_the_word_that_one_of_them_is_missing() {
    let (_disks, clock, store) = three_disks();
    store.create_topic("whole", TopicConfig::new().replication_factor(3)).unwrap();
    let config = TopicConfig::new().replication_factor(2).min_insync_replicas(2);
    store.create_topic("half", config).unwrap();
    let mut held = producer(&store);
    let mut transaction = held.begin().unwrap();
    for topic in ["half", "whole"] {
        transaction.append(topic, 0, &[Record::new("x")]).unwrap();
    }
    let id = transaction.id();
    let tag = TransactionTag { producer: id.producer, epoch: id.epoch };
    quiet(&store, &clock);
    store.stop_disk(store.partition("half", 0).unwrap().replicas()[1]).unwrap();
    let shared = store.shared();
    let place = |topic| PartitionId { topic: shared.topic(topic).unwrap().id, partition: 0 };
    let partitions = vec![place("half"), place("whole")];
    let whole = store.partition("whole", 0).unwrap();
    let (transactions, end) = (shared.transactions().unwrap(), whole.log_end_offset());
    let state = transactions.state.lock();
    std::thread::scope(|scope| {
        scope.spawn(|| transactions.write_markers(shared, tag, Outcome::Committed, partitions));
        while whole.log_end_offset() == end {
            std::thread::yield_now();
        }
        let cut = transactions.cut.try_write_for(Duration::from_millis(100)).is_some();
        drop(state);
        assert!(!cut, "one of them has its marker");
    });
}

#[test]
fn what_a_crash_left_open_is_settled_by_the_opening_alone() {
    let (disks, clock, store) = three_disks();
    store.create_topic("t", TopicConfig::new().replication_factor(3)).unwrap();
    let mut held = producer(&store);
    commit_in(&mut held, &["t"]);
    let mut transaction = held.begin().unwrap();
    transaction.append("t", 0, &[Record::new("open")]).unwrap();
    store.partition("t", 0).unwrap().append(&[Record::new("plain")], Acks::All).unwrap();
    disks.iter().for_each(SimDisk::kill);
    drop(transaction);
    drop((held, store));
    disks.iter().for_each(SimDisk::process_restart);
    let store = on(&disks).clock(clock).open().unwrap();
    let partition = store.partition("t", 0).unwrap();
    assert_eq!(partition.last_stable_offset(), partition.log_end_offset());
    assert_eq!(committed(&store, "t"), 2);
}

/// What it kept from being settled is settled later, without anybody's doing.
#[test]
fn an_error_at_any_call_of_an_opening_leaves_nothing_open() {
    for count in [1, 3] {
        let disks: Vec<_> = (1..=count).map(SimDisk::new).collect();
        let clock = Clock::manual(Timestamp(1_000_000));
        let store = on(&disks).clock(clock.clone()).open().unwrap();
        let replicas = u16::try_from(count).unwrap();
        store.create_topic("t", TopicConfig::new().replication_factor(replicas)).unwrap();
        let mut held = producer(&store);
        commit_in(&mut held, &["t"]);
        let mut transaction = held.begin().unwrap();
        transaction.append("t", 0, &[Record::new("open")]).unwrap();
        store.partition("t", 0).unwrap().append(&[Record::new("plain")], Acks::All).unwrap();
        let faults = [Fault::Eio, Fault::Enospc];
        for (call, fault) in (1..).flat_map(|call| faults.map(|fault| (call, fault))) {
            let disks: Vec<_> = disks.iter().map(SimDisk::fork).collect();
            disks[0].fail_call(call, fault);
            let before = disks[0].calls();
            let Ok(store) = on(&disks).clock(clock.clone()).open() else { continue };
            let is_over = disks[0].calls() - before < call;
            disks[0].heal();
            // Where the store was opened without it, it stays away.
            let _ = store.start_disk(DiskId(0));
            quiet(&store, &clock);
            let partition = store.partition("t", 0).unwrap();
            let (stable, end) = (partition.last_stable_offset(), partition.log_end_offset());
            let settled = (stable, committed(&store, "t")) == (end, 2);
            // A single replica takes nothing more after an error, markers neither.
            let works = || partition.append(&[Record::new("later")], Acks::All).is_ok();
            let note = format!("{count} disks, {fault:?} in call {call}: {stable} of {end}");
            assert!(settled || !works(), "{note}");
            if is_over {
                break;
            }
        }
    }
}
