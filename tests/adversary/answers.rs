//! What callers are told holds: whether a record is in the log, whether a transaction was committed, who has a name.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use oncelog::simulation::{Clock, Fault, Hang, SimDisk};
use oncelog::{
    Acks, CommittedOffset, Consumer, DiskId, Error, ErrorClass, Flush, Isolation, Offset, Producer,
    ProducerEpoch, ProducerId, ProducerSequence, Record, StartAt, StorageMode, Store, Timestamp,
    TopicConfig, TopicPartition, TransactionOutcome, Written,
};

use crate::hanging_disk::{Hanging, LONG};

const SHORT: Duration = Duration::from_millis(5);

fn open(disks: &[SimDisk]) -> Store {
    let builder = Store::builder().append_timeout(LONG).replica_lag_max(LONG);
    disks.iter().cloned().fold(builder, |all, disk| all.simulated_disk(disk)).open().unwrap()
}

/// It said that nothing was written, of a record that was on its way: whoever sent it again had it twice.
#[test]
fn a_wait_that_is_given_up_does_not_say_that_nothing_was_written() {
    let store = Store::in_memory(1).unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    let producer = store.producer().linger(LONG).build().unwrap();
    let sent = producer.send(Record::to("t").value("x")).unwrap();
    let early = sent.wait(Duration::ZERO).unwrap_err();
    assert_eq!(early.class(), ErrorClass::Retriable);
    assert_eq!(early.written(), Written::Unknown, "{early:?}");
    producer.flush(LONG).unwrap();
    assert_eq!(sent.wait(LONG).unwrap().offset, Offset(0));
}

/// It was told `Closed`, which says that nothing was written; the next opening had it.
#[test]
fn a_ticket_that_a_close_ends_says_that_its_record_is_in_the_log() {
    let disks = [SimDisk::new(1), SimDisk::new(2)];
    disks[1].share_process(&disks[0]);
    let store = open(&disks);
    let config = TopicConfig::new().replication_factor(2).min_insync_replicas(2);
    store.create_topic("t", config).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let follower = usize::from(partition.leader().unwrap().0 == 0);
    let ticket = partition.append_nowait(&[Record::new("x")], Acks::All).unwrap();
    disks[follower].fail_from(1, Fault::Eio);
    let _ = store.close(LONG);
    let told = ticket.wait(LONG).unwrap_err();
    assert!(matches!(partition.append(&[Record::new("y")], Acks::All), Err(Error::Closed)));
    disks[follower].heal();
    drop((ticket, partition, store));
    let store = open(&disks);
    assert_eq!(store.partition("t", 0).unwrap().log_end_offset(), Offset(1));
    assert_eq!(told.written(), Written::Yes, "{told:?}");
}

/// A batch that was offered again while too few replicas were in sync was told that nothing was written: it was there.
#[test]
fn a_duplicate_without_enough_replicas_says_that_its_records_are_in_the_log() {
    let disks: Vec<_> = (0..3).map(SimDisk::new).collect();
    let store = open(&disks);
    let config = TopicConfig::new().replication_factor(3).min_insync_replicas(3);
    store.create_topic("t", config).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let offer = |sequence, acks| {
        let at = ProducerSequence { id: ProducerId(7), epoch: ProducerEpoch(0), sequence };
        partition.append_idempotent(at, &[Record::new("x")], acks)
    };
    let leader = partition.leader();
    let follower = partition.replicas().into_iter().find(|disk| Some(*disk) != leader).unwrap();
    store.stop_disk(follower).unwrap();
    let first = offer(0, Acks::Leader).unwrap();
    match offer(0, Acks::All) {
        Err(Error::NotEnoughReplicasAfterAppend { offsets, .. }) => {
            assert_eq!(offsets, first.offsets);
        }
        told => panic!("{told:?}"),
    }
    assert!(matches!(offer(1, Acks::All), Err(Error::NotEnoughReplicas { .. })));
    assert_eq!(partition.log_end_offset(), first.offsets.end);
}

/// Whoever lost his id while his commit was decided was told `ProducerFenced`, and that nothing of it would be seen: all of it
/// was, and his successor did it again.
#[test]
fn a_commit_that_was_made_is_not_called_fenced() {
    let store = Store::in_memory(1).unwrap();
    store.create_topic("t", TopicConfig::new().partitions(2)).unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let takes_over = {
        let (store, over) = (store.clone(), Arc::clone(&over));
        thread::spawn(move || {
            while !over.load(Ordering::Acquire) {
                let _ = store.producer().transactional_id("id").build();
            }
        })
    };
    let (mut committed, mut fenced, mut round) = (0, 0, 0);
    while round < 3000 || committed == 0 || fenced == 0 {
        assert!(round < 1_000_000, "{committed} committed, {fenced} fenced");
        round += 1;
        let Ok(mut producer) = store.producer().transactional_id("id").build() else { continue };
        let Ok(mut transaction) = producer.begin() else { continue };
        let id = transaction.id();
        let sent = transaction.append("t", 0, &[Record::new("x")]);
        if sent.and_then(|_| transaction.append("t", 1, &[Record::new("x")])).is_err() {
            continue;
        }
        if round % 2 == 0 {
            // Where both share a processor, the other comes amid a transaction only so.
            thread::yield_now();
        }
        let outcome = transaction.commit(LONG);
        while store.transaction_outcome(id).is_ok_and(|known| known == TransactionOutcome::Open) {
            // The other aborts it.
            thread::yield_now();
        }
        match store.transaction_outcome(id) {
            Ok(TransactionOutcome::Committed) => {
                assert!(outcome.is_ok(), "it is committed: {outcome:?}");
                committed += 1;
            }
            Ok(TransactionOutcome::Aborted) => {
                assert!(outcome.is_err(), "it is aborted");
                fenced += 1;
            }
            // The other has begun 64 epochs since.
            Ok(TransactionOutcome::Forgotten) => {}
            other => panic!("{other:?}, told {outcome:?}"),
        }
    }
    over.store(true, Ordering::Release);
    takes_over.join().unwrap();
}

/// It went on waiting until its own time was over; and said that nothing was written of what was committed.
#[test]
fn a_close_ends_a_commit_that_waits_for_its_readers() {
    let disks = [SimDisk::new(1), SimDisk::new(2)];
    disks[1].share_process(&disks[0]);
    let builder = Store::builder().append_timeout(LONG).replica_lag_max(LONG);
    let builder = disks.iter().cloned().fold(builder, |all, disk| all.simulated_disk(disk));
    let store = builder.threads().open().unwrap();
    let config = TopicConfig::new().replication_factor(2).min_insync_replicas(2);
    store.create_topic("t", config).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let (known, learn) = channel();
    let (told, heard) = channel();
    let (copy, log) = (store.clone(), partition.clone());
    let commits = thread::spawn(move || {
        let mut producer = copy.producer().transactional_id("id").build().unwrap();
        let mut transaction = producer.begin().unwrap();
        transaction.append("t", 0, &[Record::new("x")]).unwrap();
        log.wait_for(Offset(0), LONG).unwrap();
        // The decision is written, and the marker refused.
        let follower = u16::from(log.leader().unwrap().0 == 0);
        copy.stop_disk(DiskId(follower)).unwrap();
        known.send(transaction.id()).unwrap();
        let _ = told.send(transaction.commit(LONG * 20));
    });
    let id = learn.recv_timeout(LONG).unwrap();
    while store.transaction_outcome(id).unwrap() != TransactionOutcome::Committed {
        thread::yield_now();
    }
    let _ = store.close(LONG);
    let outcome = heard.recv_timeout(LONG).expect("the commit waits for a store that is closed");
    assert_eq!(outcome.unwrap_err().written(), Written::Yes);
    commits.join().unwrap();
}

/// It waited for the disk, for as long as an append may take.
#[test]
fn s22_a_commit_ends_in_its_time_and_is_made_all_the_same() {
    let disks = [SimDisk::new(1), SimDisk::new(2), SimDisk::new(3)];
    let builder = Store::builder().append_timeout(LONG * 2).replica_lag_max(LONG * 2);
    let builder = disks.iter().cloned().fold(builder, |all, disk| all.simulated_disk(disk));
    let store = builder.threads().open().unwrap();
    store.create_topic("t", TopicConfig::new().replication_factor(3)).unwrap();
    let mut producer = store.producer().transactional_id("id").build().unwrap();
    let mut transaction = producer.begin().unwrap();
    let id = transaction.id();
    transaction.append("t", 0, &[Record::new("x")]).unwrap();
    store.partition("t", 0).unwrap().wait_for(Offset(0), LONG).unwrap();
    let hanging = Hanging::new(&disks[2], Hang::Syncs);
    let told = transaction.commit(Duration::from_millis(50)).unwrap_err();
    assert_eq!(told.written(), Written::Unknown, "{told:?}");
    hanging.heal();
    while store.transaction_outcome(id).unwrap() == TransactionOutcome::Open {
        thread::yield_now();
    }
    assert_eq!(store.transaction_outcome(id).unwrap(), TransactionOutcome::Committed);
}

#[test]
fn a_holder_that_lost_its_name_is_told_so_by_next_sequence() {
    let store = Store::in_memory(1).unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    let first = store.producer().name("n").build().unwrap();
    assert_eq!(first.next_sequence("t", 0).unwrap(), 0);
    let second = store.producer().name("n").build().unwrap();
    second.send(Record::to("t").value("x")).unwrap().wait(LONG).unwrap();
    let told = first.next_sequence("t", 0);
    assert!(matches!(told, Err(Error::ProducerFenced { .. })), "{told:?}");
    assert_eq!(second.next_sequence("t", 0).unwrap(), 1);
}

/// A store without threads, so that nothing is flushed which nobody waits for.
fn open_still(disk: &SimDisk) -> Store {
    let builder = Store::builder().clock(Clock::manual(Timestamp(1_000_000)));
    builder.simulated_disk(disk.clone()).open().unwrap()
}

/// With all handles still there.
fn lose_power<T>(disk: &SimDisk, handles: T) {
    disk.kill();
    drop(handles);
    disk.power_loss();
}

/// It counted records that no disk had yet: a source that let go of what lies before had lost them.
#[test]
fn where_a_source_is_to_go_on_no_power_loss_takes_back() {
    let disk = SimDisk::new(1);
    let store = open_still(&disk);
    store.create_topic("t", TopicConfig::new()).unwrap();
    let first = store.producer().name("meter").build().unwrap();
    let sent = first.send(Record::to("t").value("21.5")).unwrap();
    let second = store.producer().name("meter").build().unwrap();
    assert_eq!(second.next_sequence("t", 0).unwrap(), 1);
    lose_power(&disk, (sent, first, second, store));
    let store = open_still(&disk);
    let third = store.producer().name("meter").build().unwrap();
    assert_eq!(third.next_sequence("t", 0).unwrap(), 1);
}

fn reader(store: &Store) -> Consumer {
    let mut reader = store.consumer().group("g").start(StartAt::Earliest).build().unwrap();
    reader.assign(&[("t", 0)]).unwrap();
    reader
}

fn committed(reader: &Consumer) -> Option<Offset> {
    reader.committed(&[("t", 0)]).unwrap().into_values().next().map(|held| held.offset)
}

/// Of a commit that nobody had waited for, the next consumer was told, and its own, which had nothing to add, was `Ok`: the
/// records came again after a power loss, or from another leader.
#[test]
fn what_is_told_of_commits_no_power_loss_takes_back() {
    for commits in [true, false] {
        let disk = SimDisk::new(1);
        let store = open_still(&disk);
        store.create_topic("t", TopicConfig::new()).unwrap();
        store.partition("t", 0).unwrap().append(&[Record::new("x")], Acks::All).unwrap();
        let mut first = reader(&store);
        assert_eq!(first.poll(Duration::ZERO).unwrap().count(), 1);
        first.commit_async(|_| ()).unwrap();
        let mut second = reader(&store);
        assert_eq!(second.poll(Duration::ZERO).unwrap().count(), 0, "it goes on behind that");
        if commits {
            second.commit().unwrap();
        } else {
            assert_eq!(committed(&second), Some(Offset(1)));
        }
        lose_power(&disk, (first, second, store));
        let store = open_still(&disk);
        assert_eq!(committed(&reader(&store)), Some(Offset(1)), "commits: {commits}");
    }
}

/// The second, which had nothing to add to the first, was told `Ok`, though the first had failed.
#[test]
fn a_commit_that_adds_nothing_to_one_that_failed_has_failed_as_well() {
    let disk = SimDisk::new(1);
    let store = open_still(&disk);
    store.create_topic("t", TopicConfig::new()).unwrap();
    store.partition("t", 0).unwrap().append(&[Record::new("x")], Acks::All).unwrap();
    let mut reader = reader(&store);
    assert_eq!(reader.poll(Duration::ZERO).unwrap().count(), 1);
    let (tell, told) = channel();
    for _ in 0..2 {
        let tell = tell.clone();
        reader.commit_async(move |outcome| tell.send(outcome.is_ok()).unwrap()).unwrap();
    }
    disk.fail_from(1, Fault::Eio);
    drop(reader);
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [false, false]);
}

/// The second was `Ok`, and the records were gone.
#[test]
fn whoever_closes_a_store_that_could_not_be_flushed_is_told_so() {
    let disk = SimDisk::new(1);
    let store = open_still(&disk);
    store.create_topic("t", TopicConfig::new().flush(Flush::Os)).unwrap();
    store.partition("t", 0).unwrap().append(&[Record::new("x")], Acks::All).unwrap();
    disk.fail_from(1, Fault::Eio);
    for _ in 0..2 {
        let told = store.close(LONG).unwrap_err();
        assert!(matches!(told, Error::DiskOffline { .. }), "{told:?}");
    }
}

/// They said that something was written, as it was of what they waited for: of a commit, that it was made, and it was not.
#[test]
fn who_waits_for_what_others_wrote_is_not_told_that_it_was_written() {
    let disks: Vec<_> = (1..=3).map(SimDisk::new).collect();
    let clock = Clock::manual(Timestamp(1_000_000));
    let open = || {
        let builder = Store::builder().clock(clock.clone()).append_timeout(SHORT);
        disks.iter().cloned().fold(builder, |all, disk| all.simulated_disk(disk)).open().unwrap()
    };
    let store = open();
    let config = TopicConfig::new().replication_factor(3).min_insync_replicas(2);
    // The internal topic is to be led by the disk that leads the first.
    for topic in ["t", "u", "v"] {
        store.create_topic(topic, config.clone()).unwrap();
    }
    let consumer = |store: &Store| store.consumer().group("g").build().unwrap();
    let at = |offset| {
        BTreeMap::from([(TopicPartition::new("t", 0), CommittedOffset::from(Offset(offset)))])
    };
    let producer = store.producer().name("source").delivery_timeout(SHORT).build().unwrap();
    producer.send(Record::to("t").value("x")).unwrap().wait(LONG).unwrap();
    consumer(&store).commit_offsets(&at(0)).unwrap();
    let leads = |topic| usize::from(store.partition(topic, 0).unwrap().leader().unwrap().0);
    assert_eq!((leads("t"), leads("__consumer_offsets")), (0, 0));
    disks[1..].iter().for_each(|disk| disk.fail_from(1, Fault::Eio));
    let sent = producer.send(Record::to("t").value("y")).unwrap();
    clock.advance(LONG);
    assert_eq!(sent.wait(SHORT).unwrap_err().written(), Written::Yes);
    assert_eq!(consumer(&store).commit_offsets(&at(1)).unwrap_err().written(), Written::Yes);
    let told = consumer(&store).committed(&[("t", 0)]).unwrap_err();
    assert_eq!((told.class(), told.written()), (ErrorClass::Retriable, Written::No), "{told:?}");
    let told = producer.next_sequence("t", 0).unwrap_err();
    assert_eq!((told.class(), told.written()), (ErrorClass::Retriable, Written::No), "{told:?}");
    // The table of offsets is to be read first.
    disks.iter().for_each(SimDisk::kill);
    drop((producer, store));
    disks.iter().for_each(SimDisk::heal);
    disks.iter().for_each(SimDisk::process_restart);
    let store = open();
    disks[1..].iter().for_each(|disk| disk.fail_from(1, Fault::Eio));
    let told = consumer(&store).commit_offsets(&at(2)).unwrap_err();
    assert_eq!((told.class(), told.written()), (ErrorClass::Retriable, Written::No), "{told:?}");
}

/// As above, where the flush fails for which they wait.
#[test]
fn s8_who_waits_for_a_flush_that_fails_is_not_told_that_it_may_have_written() {
    let outcome = |waits: fn(&Store, &Producer) -> Result<(), Error>| {
        let disk = SimDisk::new(1);
        let store = open_still(&disk);
        store.create_topic("t", TopicConfig::new()).unwrap();
        store.partition("t", 0).unwrap().append(&[Record::new("x")], Acks::All).unwrap();
        let mut reader = reader(&store);
        assert_eq!(reader.poll(Duration::ZERO).unwrap().count(), 1);
        let named = store.producer().name("source").build().unwrap();
        let sent = named.send(Record::to("t").value("y")).unwrap();
        reader.commit_async(|_| ()).unwrap();
        disk.fail_from(1, Fault::Eio);
        let told = waits(&store, &named).unwrap_err();
        assert!(matches!(told, Error::DiskOffline { .. }), "{told:?}");
        assert_eq!(told.written(), Written::No, "{told:?}");
        assert_eq!(sent.wait(LONG).unwrap_err().written(), Written::Unknown);
    };
    outcome(|store, _| {
        let consumer = store.consumer().group("g").build()?;
        consumer.committed(&[("t", 0)]).map(drop)
    });
    outcome(|_, named| named.next_sequence("t", 0).map(drop));
}

/// Half of a batch is all of it where the rest is zero, as what lies there is: the next opening had what was not written.
#[test]
fn s9_an_append_that_fails_amid_its_write_may_be_in_the_log() {
    for replicas in [1, 3] {
        let disks: Vec<_> = (1..=u64::from(replicas)).map(SimDisk::new).collect();
        disks[1..].iter().for_each(|disk| disk.share_process(&disks[0]));
        let open = || {
            let builder = Store::builder().storage_mode(StorageMode::Write);
            disks.iter().cloned().fold(builder, |all, disk| all.simulated_disk(disk)).open()
        };
        let store = open().unwrap();
        let config = TopicConfig::new().flush(Flush::Os).replication_factor(replicas);
        store.create_topic("t", config).unwrap();
        let partition = store.partition("t", 0).unwrap();
        partition.append(&[Record::new("x")], Acks::All).unwrap();
        let leader = usize::from(partition.leader().unwrap().0);
        disks[leader].fail_call(1, Fault::ShortIo);
        for (at, disk) in disks.iter().enumerate() {
            // Nor can it be written down that another is to lead.
            disk.fail_from(if at == leader { 2 } else { 1 }, Fault::Eio);
        }
        let told = partition.append(&[Record::new(&[0; 500])], Acks::All).unwrap_err();
        disks[0].kill();
        drop((partition, store));
        disks.iter().for_each(SimDisk::heal);
        disks.iter().for_each(SimDisk::process_restart);
        let store = open().unwrap();
        assert_eq!(store.partition("t", 0).unwrap().log_end_offset(), Offset(2));
        assert_eq!(told.written(), Written::Unknown, "{replicas} replicas: {told:?}");
    }
}

/// It was told that they may be there, as was true of a record of the store's own.
#[test]
fn records_of_a_transaction_that_is_not_decided_are_not_there() {
    let told = |fails: fn(&Store, &SimDisk) -> Error| {
        let disk = SimDisk::new(1);
        let builder = Store::builder().flush(Flush::Os).append_timeout(SHORT);
        let store = builder.simulated_disk(disk.clone()).open().unwrap();
        store.create_topic("t", TopicConfig::new().partitions(2)).unwrap();
        store.create_topic("safe", TopicConfig::new().partitions(2).flush(Flush::OnAck)).unwrap();
        for (topic, number) in [("t", 0), ("t", 1), ("safe", 0), ("safe", 1)] {
            let partition = store.partition(topic, number).unwrap();
            partition.append(&[Record::new("x")], Acks::All).unwrap();
        }
        let told = fails(&store, &disk);
        assert_eq!(told.written(), Written::No, "{told:?}");
        disk.kill();
        drop(store);
        disk.heal();
        disk.process_restart();
        let store = Store::builder().simulated_disk(disk).open().unwrap();
        for topic in ["t", "safe"] {
            let reader = store.consumer().isolation(Isolation::ReadCommitted);
            let mut reader = reader.start(StartAt::Earliest).build().unwrap();
            reader.assign(&[(topic, 0), (topic, 1)]).unwrap();
            let found = std::iter::repeat_with(|| reader.poll(Duration::ZERO).unwrap().count());
            assert_eq!(found.take(4).sum::<usize>(), 2, "{topic}");
        }
    };
    // The topic of decisions cannot be made.
    told(|store, disk| {
        disk.fail_from(1, Fault::Eio);
        both(store, "t").unwrap_err()
    });
    // It cannot be made as strict as the topic.
    told(|store, disk| {
        let mut producer = store.producer().transactional_id("id").build().unwrap();
        let transaction = producer.begin().unwrap();
        drop(transaction);
        disk.fail_from(1, Fault::Eio);
        both(store, "safe").unwrap_err()
    });
    // They are not acknowledged, and neither is their abort.
    told(|store, disk| {
        let mut producer = store.producer().transactional_id("id").build().unwrap();
        let mut transaction = producer.begin().unwrap();
        transaction.append("safe", 0, &[Record::new("y")]).unwrap();
        disk.fail_from(1, Fault::Eio);
        transaction.commit(LONG).unwrap_err()
    });
    told(|store, disk| {
        let mut producer = store.producer().transactional_id("id").build().unwrap();
        let mut transaction = producer.begin().unwrap();
        transaction.append("safe", 0, &[Record::new("y")]).unwrap();
        disk.fail_from(1, Fault::Eio);
        transaction.abort(LONG).unwrap_err()
    });
}

/// Appends to both partitions of a topic, or to neither.
fn both(store: &Store, topic: &str) -> Result<(), Error> {
    let records = [Record::new("y")];
    store.append_atomic(&[(topic, 0, &records), (topic, 1, &records)], LONG).map(drop)
}
