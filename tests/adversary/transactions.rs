//! Transactions, offsets and their tables, where a crash, a deletion or another leader comes in between.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::Duration;

use oncelog::simulation::{Clock, Fault, SimDisk};
use oncelog::{
    Acks, CommittedOffset, Consumer, ConsumerGroupMetadata, DiskId, Error, Flush, Isolation,
    LeaderEpoch, Offset, ReadOptions, Record, ResetTo, StartAt, Store, Timestamp, TopicConfig,
    TopicPartition, TopicUpdate, Transaction, TransactionId, TransactionOutcome,
    TransactionalProducer, Written,
};

use crate::random::setting;

const LONG: Duration = Duration::from_secs(10);

fn open(disks: &[SimDisk], clock: &Clock, flush: Flush) -> Store {
    let mut builder = Store::builder().clock(clock.clone()).flush(flush);
    for disk in disks {
        builder = builder.simulated_disk(disk.clone());
    }
    builder.open().unwrap()
}

/// Opens the store of a process that died, with its machine or alone.
fn opened_after(power_loss: bool, disks: &[SimDisk], clock: &Clock) -> Store {
    for disk in disks {
        disk.heal();
        if power_loss {
            disk.power_loss();
        } else {
            disk.process_restart();
        }
    }
    open(disks, clock, Flush::OnAck)
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
    try_commit(store, group, offset, metadata).unwrap();
}

fn try_commit(store: &Store, group: &str, offset: u64, metadata: &str) -> Result<(), Error> {
    let committed = CommittedOffset {
        offset: Offset(offset),
        metadata: metadata.to_owned(),
        ..CommittedOffset::default()
    };
    grouped(store, group).commit_offsets(&BTreeMap::from([(at(0), committed)]))
}

fn committed(store: &Store, group: &str) -> Option<Offset> {
    grouped(store, group).committed(&[("t", 0)]).unwrap().get(&at(0)).map(|held| held.offset)
}

fn producer(store: &Store, id: &str) -> TransactionalProducer {
    store.producer().transactional_id(id).build().unwrap()
}

/// Commits a record in each of the topics.
fn put(held: &mut TransactionalProducer, topics: &[&str], value: &str) -> TransactionId {
    let mut transaction = held.begin().unwrap();
    for topic in topics {
        transaction.append(topic, 0, &[Record::new(value)]).unwrap();
    }
    let id = transaction.id();
    transaction.commit(LONG).unwrap();
    id
}

fn committed_values(store: &Store, topic: &str) -> Vec<String> {
    let partition = store.partition(topic, 0).unwrap();
    let options = ReadOptions::new().isolation(Isolation::ReadCommitted);
    let (mut offset, mut values) = (partition.log_start_offset(), Vec::new());
    while offset < partition.last_stable_offset() {
        let read = partition.read(offset, options).unwrap();
        let texts = read.iter().map(|one| String::from_utf8(one.value().unwrap().to_vec()));
        values.extend(texts.map(Result::unwrap));
        offset = read.next_offset();
    }
    values
}

fn disk_of(store: &Store, topic: &str) -> DiskId {
    store.partition(topic, 0).unwrap().replicas()[0]
}

/// Nothing is there where those disks were.
fn open_without(away: &[DiskId], disks: &[SimDisk], clock: &Clock) -> Store {
    let mut builder = Store::builder().clock(clock.clone());
    for disk in away {
        builder = builder.allow_missing(*disk);
    }
    for (at, disk) in disks.iter().enumerate() {
        let is_away = away.iter().any(|away| at == usize::from(away.0));
        let disk = if is_away { SimDisk::new(9) } else { disk.clone() };
        builder = builder.simulated_disk(disk);
    }
    builder.open().unwrap()
}

/// They were given again, and who asked how the first one of an id had ended was told of the last.
#[test]
fn no_transaction_has_the_id_of_another_that_a_power_loss_took() {
    for (flush, seed) in [Flush::Os, Flush::Interval(LONG)].into_iter().zip([0, 100]) {
        for seed in seed..seed + 20 {
            let disks = [SimDisk::new(seed)];
            let clock = Clock::manual(Timestamp(1_000_000));
            let (store, aborted) = with_aborted(&disks, &clock, flush);
            disks[0].power_loss();
            drop(store);
            // The first opening need not be the one that uses it again.
            open(&disks, &clock, flush).close(LONG).unwrap();
            let store = open(&disks, &clock, flush);
            let next = (0..16).filter_map(|_| {
                let mut held = producer(&store, "id");
                let mut transaction = held.begin().ok()?;
                transaction.append("t", 0, &[Record::new("next")]).ok()?;
                let id = transaction.id();
                transaction.commit(LONG).ok().map(|()| id)
            });
            let next: Vec<_> = next.collect();
            assert!(!next.is_empty(), "seed {seed}");
            assert!(!next.iter().any(|id| aborted.contains(id)), "seed {seed}: {next:?}");
            for id in aborted {
                let told = store.transaction_outcome(id);
                let is_committed = matches!(told, Ok(TransactionOutcome::Committed));
                assert!(!is_committed, "seed {seed}: {id:?}");
            }
            assert!(!committed_values(&store, "t").contains(&"aborted".to_owned()), "seed {seed}");
        }
    }
}

/// A store on which transactions were aborted that a power loss may take.
fn with_aborted(disks: &[SimDisk], clock: &Clock, flush: Flush) -> (Store, Vec<TransactionId>) {
    let store = open(disks, clock, flush);
    store.create_topic("t", TopicConfig::new()).unwrap();
    put(&mut producer(&store, "id"), &["t"], "durable");
    store.close(LONG).unwrap();
    let store = open(disks, clock, flush);
    let aborted = aborted_ones(&store);
    (store, aborted)
}

fn aborted_ones(store: &Store) -> Vec<TransactionId> {
    let aborted = (0..8).map(|_| {
        let mut held = producer(store, "id");
        let mut transaction = held.begin().unwrap();
        transaction.append("t", 0, &[Record::new("aborted")]).unwrap();
        let id = transaction.id();
        transaction.abort(LONG).unwrap();
        id
    });
    aborted.collect()
}

/// Runs more transactions than were aborted, none of which may be taken for one of those.
fn assert_not_given_again(store: &Store, aborted: &[TransactionId], note: &str) {
    for _ in 0..16 {
        let next = put(&mut producer(store, "id"), &["t"], "next");
        assert!(!aborted.contains(&next), "{note}: {next:?}");
    }
}

/// The opening behind the loss had said that the files are of this run of the machine, so that the next one took nothing for lost.
#[test]
fn no_transaction_has_the_id_of_a_lost_one_where_the_opening_behind_the_loss_dies_as_well() {
    for seed in 0..3 {
        for call in 1.. {
            let (disks, clock) = ([SimDisk::new(seed)], Clock::manual(Timestamp(1_000_000)));
            let (store, aborted) = with_aborted(&disks, &clock, Flush::Os);
            disks[0].power_loss();
            drop(store);
            disks[0].crash_at(call);
            let builder = Store::builder().clock(clock.clone()).flush(Flush::Os);
            let opened = builder.simulated_disk(disks[0].clone()).open();
            let is_over = !disks[0].is_dead();
            disks[0].kill();
            drop(opened);
            disks[0].heal();
            disks[0].process_restart();
            let store = open(&disks, &clock, Flush::Os);
            assert_not_given_again(&store, &aborted, &format!("seed {seed}, call {call}"));
            if is_over {
                break;
            }
        }
    }
}

/// Its topic was to be flushed at once from then on; the next opening believed that of what was there before, too.
#[test]
fn no_transaction_has_the_id_of_one_that_was_lost_as_its_topic_became_stricter() {
    for seed in 0..3 {
        for call in 1.. {
            let (disks, clock) = ([SimDisk::new(seed)], Clock::manual(Timestamp(1_000_000)));
            let (store, aborted) = with_aborted(&disks, &clock, Flush::Os);
            store.create_topic("strict", TopicConfig::new().flush(Flush::OnAck)).unwrap();
            let mut held = producer(&store, "other");
            disks[0].crash_at(call);
            if let Ok(mut transaction) = held.begin() {
                let _ = transaction.append("strict", 0, &[Record::new("x")]);
            }
            let is_over = !disks[0].is_dead();
            disks[0].kill();
            drop((held, store));
            disks[0].heal();
            disks[0].power_loss();
            let store = open(&disks, &clock, Flush::Os);
            assert_not_given_again(&store, &aborted, &format!("seed {seed}, call {call}"));
            if is_over {
                break;
            }
        }
    }
}

/// The table could not be read yet when that of groups made it stricter, so that it was taken for whole later.
#[test]
fn no_transaction_has_the_id_of_a_lost_one_whose_topic_became_stricter_before_it_was_read() {
    for seed in 0..10 {
        let disks: Vec<_> = (0..6).map(|disk| SimDisk::new(100 * seed + disk)).collect();
        let clock = Clock::manual(Timestamp(1_000_000));
        let (store, _) = with_aborted(&disks, &clock, Flush::Os);
        let away = store.partition("__transaction_state", 0).unwrap().replicas();
        store.stop_disk(away[2]).unwrap();
        let aborted = aborted_ones(&store);
        disks.iter().for_each(SimDisk::power_loss);
        drop(store);

        let store = open_without(&away[..2], &disks, &clock);
        commit(&store, "g", 0, "");
        store.close(LONG).unwrap();
        let store = open(&disks, &clock, Flush::Os);
        quiet(&store, &clock);
        assert_not_given_again(&store, &aborted, &format!("seed {seed}"));
    }
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
    // The second one is out of sync, and is there later while nobody leads.
    for replicas in [1, 2] {
        let disks: Vec<_> = (1..=3).map(SimDisk::new).collect();
        let clock = Clock::manual(Timestamp(1_000_000));
        let store = open(&disks, &clock, Flush::OnAck);
        for topic in ["a", "b"] {
            let replicas = if topic == "a" { replicas } else { 1 };
            store.create_topic(topic, TopicConfig::new().replication_factor(replicas)).unwrap();
        }
        quiet(&store, &clock);
        let places = store.partition("a", 0).unwrap().replicas();
        let away = places[0];
        assert!(!places.contains(&disk_of(&store, "b")));
        for behind in &places[1..] {
            store.stop_disk(*behind).unwrap();
        }
        let mut held = producer(&store, "id");
        let id = put(&mut held, &["a", "b"], "kept");
        put(&mut held, &["b"], "later");
        disks.iter().for_each(SimDisk::kill);
        drop((held, store));
        disks.iter().for_each(SimDisk::power_loss);

        let store = open_without(&[away], &disks, &clock);
        assert!(store.partition("a", 0).is_err());
        let mut held = producer(&store, "id");
        for _ in 0..100 {
            put(&mut held, &["b"], "later");
        }
        drop(held);
        store.close(LONG).unwrap();

        let store = open(&disks, &clock, Flush::OnAck);
        store.run_background();
        let outcome = store.transaction_outcome(id);
        assert_eq!(committed_values(&store, "a"), ["kept"], "{id:?}: {outcome:?}");
    }
}

/// The same, where one disk was away after the first crash and another after the second: only what was committed before the
/// first was kept apart.
#[test]
fn commits_whose_markers_were_lost_hold_where_other_disks_are_away_each_time() {
    let disks: Vec<_> = (1..=3).map(SimDisk::new).collect();
    let clock = Clock::manual(Timestamp(1_000_000));
    let store = open(&disks, &clock, Flush::OnAck);
    let topics = ["a", "b", "c"];
    for topic in topics {
        store.create_topic(topic, TopicConfig::new().replication_factor(1)).unwrap();
    }
    let places = topics.map(|topic| disk_of(&store, topic));
    assert_eq!(BTreeSet::from(places).len(), 3);
    let power_loss = |held: TransactionalProducer, store: Store| {
        disks.iter().for_each(SimDisk::kill);
        drop((held, store));
        disks.iter().for_each(SimDisk::power_loss);
    };
    let mut held = producer(&store, "id");
    put(&mut held, &["a", "c"], "first");
    put(&mut held, &["c"], "later");
    power_loss(held, store);

    let store = open_without(&places[0..=0], &disks, &clock);
    quiet(&store, &clock);
    let mut held = producer(&store, "id");
    let id = put(&mut held, &["b", "c"], "second");
    put(&mut held, &["c"], "later");
    power_loss(held, store);

    let store = open_without(&places[1..=1], &disks, &clock);
    quiet(&store, &clock);
    let mut held = producer(&store, "id");
    for _ in 0..100 {
        put(&mut held, &["c"], "later");
    }
    assert_eq!(committed_values(&store, "a"), ["first"]);
    drop(held);
    store.close(LONG).unwrap();

    let store = open(&disks, &clock, Flush::OnAck);
    store.run_background();
    let outcome = store.transaction_outcome(id);
    assert_eq!(committed_values(&store, "a"), ["first"]);
    assert_eq!(committed_values(&store, "b"), ["second"], "{id:?}: {outcome:?}");
    assert_eq!(committed_values(&store, "c").len(), 104);
}

/// A store with groups: one that has committed, one that was deleted, and one whose offset a transaction is to change.
fn with_groups(disks: &[SimDisk], clock: &Clock, flush: Flush) -> Store {
    let store = open(disks, clock, flush);
    let replicas = u16::try_from(disks.len()).unwrap();
    store.create_topic("t", TopicConfig::new().replication_factor(replicas)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    for _ in 0..10 {
        partition.append(&[Record::new("x")], Acks::All).unwrap();
    }
    commit(&store, "kept", 7, "");
    commit(&store, "deleted", 3, "");
    commit(&store, "pending", 1, "");
    store.delete_group("deleted").unwrap();
    store
}

fn send_offset(transaction: &mut Transaction<'_>) {
    let offset = CommittedOffset::from(Offset(5));
    let group = ConsumerGroupMetadata::of_group("pending");
    transaction.send_offsets([(&at(0), &offset)], &group).unwrap();
}

/// Commits until the table of offsets is written again. Returns how often that was.
fn commit_until_rewritten(store: &Store, metadata: &str) -> u64 {
    let internal = store.partition("__consumer_offsets", 0).unwrap();
    for count in 1.. {
        let before = internal.log_end_offset();
        commit(store, "busy", 1, metadata);
        if internal.log_end_offset().0 > before.0 + 1 {
            return count;
        }
    }
    unreachable!("a log that grows is written again")
}

#[test]
fn a_crash_at_any_call_of_rewriting_offsets_keeps_commits_deletions_and_what_is_pending() {
    let metadata = "\u{10ffff}".repeat(4096);
    // How many commits until it is written again.
    let until = {
        let (disks, clock) = one_disk();
        let store = with_groups(&disks, &clock, Flush::OnAck);
        let mut held = producer(&store, "id");
        let mut transaction = held.begin().unwrap();
        send_offset(&mut transaction);
        commit_until_rewritten(&store, &metadata)
    };
    for (power_loss, commits) in [(true, true), (false, false)] {
        for call in 1.. {
            let (disks, clock) = one_disk();
            let store = with_groups(&disks, &clock, Flush::OnAck);
            let mut held = producer(&store, "id");
            let mut transaction = held.begin().unwrap();
            send_offset(&mut transaction);
            (1..until).for_each(|_| commit(&store, "busy", 1, &metadata));
            disks[0].crash_at(call);
            let _ = try_commit(&store, "busy", 1, &metadata);
            store.run_background();
            let ended = match commits {
                true => transaction.commit(LONG).is_ok().then_some(5),
                false => transaction.abort(LONG).is_ok().then_some(1),
            };
            store.run_background();
            let died = disks[0].is_dead();
            disks[0].kill();
            drop((held, store));
            let store = opened_after(power_loss, &disks, &clock);
            let note = format!("call {call}, power loss {power_loss}");
            assert_eq!(committed(&store, "kept"), Some(Offset(7)), "{note}");
            assert_eq!(committed(&store, "deleted"), None, "{note}");
            assert_eq!(committed(&store, "busy"), Some(Offset(1)), "{note}");
            let pending = committed(&store, "pending").unwrap().0;
            assert!(ended.is_none_or(|ended| ended == pending), "{note}: {pending}");
            assert!(commits || pending == 1, "{note}: {pending}");
            if !died {
                break;
            }
        }
    }
}

/// Lets time pass until followers have caught up and reigns are settled.
fn quiet(store: &Store, clock: &Clock) {
    for _ in 0..30 {
        clock.advance(Duration::from_millis(20));
        store.run_background();
    }
}

#[test]
fn a_replica_that_was_away_while_offsets_were_written_again_leads_with_all_of_them() {
    let metadata = "\u{10ffff}".repeat(4096);
    for (flush, commits) in [(Flush::OnAck, true), (Flush::Os, false), (Flush::Os, true)] {
        let disks: Vec<_> = (1..=3).map(SimDisk::new).collect();
        let clock = Clock::manual(Timestamp(1_000_000));
        let store = with_groups(&disks, &clock, flush);
        let away = DiskId(2);
        quiet(&store, &clock);
        store.stop_disk(away).unwrap();
        quiet(&store, &clock);
        for round in 0..2 {
            let mut held = producer(&store, "id");
            let mut transaction = held.begin().unwrap();
            send_offset(&mut transaction);
            commit_until_rewritten(&store, &metadata);
            commit(&store, "late", round, "");
            store.run_background();
            if round == 1 {
                store.start_disk(away).unwrap();
                quiet(&store, &clock);
                // It alone is left, with the transaction still open.
                store.stop_disk(DiskId(0)).unwrap();
                quiet(&store, &clock);
                let internal = store.partition("__consumer_offsets", 0).unwrap();
                assert!(internal.in_sync_replicas().contains(&away));
            }
            if commits {
                transaction.commit(LONG).unwrap();
            } else {
                transaction.abort(LONG).unwrap();
            }
            drop(held);
            store.run_background();
        }
        store.start_disk(DiskId(0)).unwrap();
        quiet(&store, &clock);
        store.stop_disk(DiskId(1)).unwrap();
        quiet(&store, &clock);
        let check = |store: &Store| {
            assert_eq!(committed(store, "kept"), Some(Offset(7)));
            assert_eq!(committed(store, "deleted"), None);
            assert_eq!(committed(store, "late"), Some(Offset(1)));
            assert_eq!(committed(store, "pending"), Some(Offset(if commits { 5 } else { 1 })));
        };
        check(&store);
        store.start_disk(DiskId(1)).unwrap();
        quiet(&store, &clock);
        disks.iter().for_each(SimDisk::kill);
        drop(store);
        disks.iter().for_each(SimDisk::process_restart);
        check(&open(&disks, &clock, flush));
    }
}

#[test]
fn read_13_a_committed_reader_finds_no_time_in_a_transaction_that_is_open() {
    let (disks, clock) = one_disk();
    let store = open(&disks, &clock, Flush::OnAck);
    store.create_topic("t", TopicConfig::new()).unwrap();
    let mut held = producer(&store, "id");
    let mut transaction = held.begin().unwrap();
    transaction.append("t", 0, &[Record::new("x")]).unwrap();
    let find = |isolation| {
        let consumer = store.consumer().isolation(isolation).build().unwrap();
        consumer.offsets_for_times(&[("t", 0, Timestamp(0))]).unwrap().get(&at(0)).copied()
    };
    store.partition("t", 0).unwrap().append(&[Record::new("y")], Acks::All).unwrap();
    assert_eq!(find(Isolation::ReadUncommitted), Some(Offset(0)));
    assert_eq!(find(Isolation::ReadCommitted), None);
    transaction.commit(LONG).unwrap();
    assert_eq!(find(Isolation::ReadCommitted), Some(Offset(0)));
}

/// What a replica had been told of the producers was of all that its leader had. A segment that it sealed while it copied
/// that said that no later marker concerned it, though one did: once it led, committed readers were shown what was aborted.
#[test]
fn a_replica_that_comes_back_behind_a_deletion_hides_what_was_aborted_meanwhile() {
    let disks: Vec<_> = (1..=2).map(SimDisk::new).collect();
    let clock = Clock::manual(Timestamp(1_000_000));
    let store = open(&disks, &clock, Flush::OnAck);
    let config = TopicConfig::new().replication_factor(2).segment_bytes(4096);
    store.create_topic("t", config).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let away = partition.replicas()[1];
    store.stop_disk(away).unwrap();
    quiet(&store, &clock);
    let mut held = producer(&store, "id");
    partition.append(&vec![Record::new("gone"); 3], Acks::All).unwrap();
    let start = partition.delete_records(partition.high_watermark()).unwrap();
    let (mut transaction, long) = (held.begin().unwrap(), "x".repeat(3000));
    for _ in 0..3 {
        transaction.append("t", 0, &[Record::new(&long)]).unwrap();
    }
    transaction.abort(LONG).unwrap();
    let mut transaction = held.begin().unwrap();
    transaction.append("t", 0, &[Record::new("kept")]).unwrap();
    transaction.commit(LONG).unwrap();
    store.start_disk(away).unwrap();
    quiet(&store, &clock);
    for leader in [partition.replicas()[0], away] {
        quiet(&store, &clock);
        if leader == away {
            store.stop_disk(partition.replicas()[0]).unwrap();
            quiet(&store, &clock);
        }
        assert_eq!(partition.leader(), Some(leader));
        let (mut offset, mut seen) = (start, Vec::new());
        let options = ReadOptions::new().isolation(Isolation::ReadCommitted);
        while offset < partition.last_stable_offset() {
            let read = partition.read(offset, options).unwrap();
            seen.extend(read.iter().map(|record| record.value().unwrap().to_vec()));
            offset = read.next_offset();
        }
        assert_eq!(seen, [b"kept"], "led by {leader}");
    }
}

/// All that a group commits at once, or that is taken back, was one batch: a larger group could not commit, nor be deleted.
#[test]
fn a_group_that_has_committed_more_than_fits_into_a_batch_is_deleted_and_forgotten_with_its_topics()
{
    let (disks, clock) = one_disk();
    let store = open(&disks, &clock, Flush::OnAck);
    let group = "g".repeat(30_000);
    for delete_group in [true, false] {
        for topic in ["t", "u"] {
            store.create_topic(topic, TopicConfig::new().partitions(300)).unwrap();
            store.reset_offsets(&group, topic, ResetTo::Earliest).unwrap();
        }
        assert_eq!(store.group(&group).unwrap().offsets.len(), 600);
        if delete_group {
            store.delete_group(&group).unwrap();
            assert!(matches!(store.group(&group), Err(Error::UnknownGroup { .. })));
        }
        for topic in ["t", "u"] {
            store.delete_topic(topic).unwrap();
        }
        assert_eq!(store.groups().unwrap(), [] as [String; 0]);
    }
}

fn all_committed(store: &Store, group: &str, partitions: u32) -> BTreeSet<Option<Offset>> {
    let names: Vec<_> = (0..partitions).map(|number| ("t", number)).collect();
    let held = grouped(store, group).committed(&names).unwrap();
    (0..partitions).map(|number| held.get(&at(number)).map(|held| held.offset)).collect()
}

/// A commit was one batch: a group with more than fits into one could not commit at all.
#[test]
fn a_commit_of_more_than_fits_into_a_batch_holds_whole_or_not_at_all_wherever_it_crashes() {
    const PARTITIONS: u32 = 70;
    let metadata = "\u{10ffff}".repeat(4096);
    let all = |offset| -> BTreeMap<_, _> {
        let held = CommittedOffset { offset, metadata: metadata.clone(), leader_epoch: None };
        (0..PARTITIONS).map(|number| (at(number), held.clone())).collect()
    };
    for (transactional, power_loss) in [(false, true), (false, false), (true, true)] {
        for call in 1.. {
            let (disks, clock) = one_disk();
            let store = open(&disks, &clock, Flush::OnAck);
            store.create_topic("t", TopicConfig::new().partitions(PARTITIONS)).unwrap();
            for number in 0..PARTITIONS {
                let partition = store.partition("t", number).unwrap();
                partition.append(&[Record::new("x")], Acks::All).unwrap();
            }
            let mut held = producer(&store, "id");
            let commit =
                |store: &Store, offset| grouped(store, "g").commit_offsets(&all(Offset(offset)));
            commit(&store, 0).unwrap();
            disks[0].crash_at(call);
            let done = if transactional {
                let mut transaction = held.begin().unwrap();
                let group = ConsumerGroupMetadata::of_group("g");
                let sent = transaction.send_offsets(&all(Offset(1)), &group);
                sent.and_then(|()| transaction.commit(LONG))
            } else {
                commit(&store, 1)
            };
            let died = disks[0].is_dead();
            disks[0].kill();
            drop((held, store));
            let store = opened_after(power_loss, &disks, &clock);
            store.run_background();
            let found = all_committed(&store, "g", PARTITIONS);
            let note = format!("call {call}, {transactional}, {power_loss}: {done:?}");
            assert_eq!(found.len(), 1, "{note}: torn: {found:?}");
            if !died {
                done.expect(&note);
                assert_eq!(found, BTreeSet::from([Some(Offset(1))]), "{note}");
                break;
            }
            commit(&store, 1).expect(&note);
        }
    }
}

/// What had been written of it stayed pending where its end was refused as well: nobody could read what the group had
/// committed before.
#[test]
fn a_commit_of_more_than_fits_into_a_batch_that_fails_halfway_leaves_what_was_committed() {
    const PARTITIONS: u32 = 150;
    let names: Vec<_> = (0..PARTITIONS).map(|number| ("t", number)).collect();
    let mut failed_halfway = 0;
    for call in 1.. {
        let (disks, clock) = one_disk();
        let store = open(&disks, &clock, Flush::OnAck);
        store.create_topic("t", TopicConfig::new().partitions(PARTITIONS)).unwrap();
        let commit = |metadata: &str| {
            let held = CommittedOffset { metadata: metadata.to_owned(), ..Default::default() };
            let all: BTreeMap<_, _> =
                (0..PARTITIONS).map(|number| (at(number), held.clone())).collect();
            grouped(&store, "g").commit_offsets(&all)
        };
        commit("first").unwrap();
        let _held = producer(&store, "id");
        let end = || store.partition("__consumer_offsets", 0).unwrap().log_end_offset();
        let before = end();
        disks[0].fail_from(call, Fault::Eio);
        let done = commit(&"\u{10ffff}".repeat(4096));
        if done.is_ok() {
            break;
        }
        failed_halfway += u32::from(end() > before);
        let held = match grouped(&store, "g").committed(&names) {
            // All of it is in the log, and will never be acknowledged: nobody is told of it.
            Err(Error::DiskOffline { .. }) => continue,
            held => held.unwrap_or_else(|error| panic!("call {call}: {error}, after {done:?}")),
        };
        let texts: BTreeSet<_> = held.values().map(|held| held.metadata.len()).collect();
        assert_eq!((held.len(), texts.len()), (names.len(), 1), "call {call}: {done:?}");
    }
    assert!(failed_halfway > 0);
}

#[test]
fn a_commit_of_more_than_fits_into_a_batch_holds_whole_or_not_at_all_whoever_leads_next() {
    const PARTITIONS: u32 = 70;
    for (call, transactional) in (1..20).flat_map(|call| [(call, false), (call, true)]) {
        let disks: Vec<_> = (1..=3).map(SimDisk::new).collect();
        let clock = Clock::manual(Timestamp(1_000_000));
        let store = open(&disks, &clock, Flush::OnAck);
        let config = TopicConfig::new().partitions(PARTITIONS).replication_factor(3);
        store.create_topic("t", config).unwrap();
        let all = |metadata: &str| -> BTreeMap<_, _> {
            let held = CommittedOffset { metadata: metadata.to_owned(), ..Default::default() };
            (0..PARTITIONS).map(|number| (at(number), held.clone())).collect()
        };
        let commit = |metadata: &str| grouped(&store, "g").commit_offsets(&all(metadata));
        let names: Vec<_> = (0..PARTITIONS).map(|number| ("t", number)).collect();
        let lengths = |store: &Store| {
            let held = grouped(store, "g").committed(&names).unwrap();
            assert_eq!(held.len(), names.len());
            held.values().map(|held| held.metadata.len()).collect::<BTreeSet<_>>()
        };
        commit("first").unwrap();
        let mut held = producer(&store, "id");
        let internal = store.partition("__consumer_offsets", 0).unwrap();
        let leader = usize::from(internal.leader().unwrap().0);
        disks[leader].fail_call(call, Fault::Eio);
        let metadata = "\u{10ffff}".repeat(4096);
        let done = if transactional {
            let mut transaction = held.begin().unwrap();
            let group = ConsumerGroupMetadata::of_group("g");
            let sent = transaction.send_offsets(&all(&metadata), &group);
            // Whatever became of that.
            let ended = transaction.commit(LONG);
            assert!(sent.is_ok() || ended.is_err(), "call {call}: {sent:?}, {ended:?}");
            ended
        } else {
            commit(&metadata)
        };
        quiet(&store, &clock);
        let found = lengths(&store);
        let note = format!("call {call}, {transactional}: {done:?}, {found:?}");
        assert_eq!(found.len(), 1, "{note}");
        assert!(done.is_err() || found == BTreeSet::from([4 * 4096]), "{note}");
        disks.iter().for_each(SimDisk::kill);
        drop((internal, held, store));
        let store = opened_after(false, &disks, &clock);
        assert_eq!(lengths(&store), found, "{note}");
    }
}

/// It was waited for in vain: no marker can be written while too few replicas are there.
#[test]
fn an_aborted_transaction_that_cannot_be_settled_keeps_nobody_from_a_snapshot() {
    let disks: Vec<_> = (1..=3).map(SimDisk::new).collect();
    let clock = Clock::manual(Timestamp(1_000_000));
    let store = open(&disks, &clock, Flush::OnAck);
    let config = TopicConfig::new().replication_factor(2).min_insync_replicas(2);
    store.create_topic("t", config).unwrap();
    store.partition("t", 0).unwrap().append(&[Record::new("plain")], Acks::All).unwrap();
    let away = store.partition("t", 0).unwrap().replicas()[1];
    let mut held = producer(&store, "id");
    let mut transaction = held.begin().unwrap();
    transaction.append("t", 0, &[Record::new("x")]).unwrap();
    let end = store.partition("t", 0).unwrap().log_end_offset();
    store.stop_disk(away).unwrap();
    transaction.abort(LONG).unwrap_err();
    quiet(&store, &clock);
    let written = store.partition("t", 0).unwrap().log_end_offset();
    assert_eq!(written, end, "REPL-02: no marker is written that too few replicas would have");
    let snapshot = store.snapshot(&[("t", 0)]).unwrap();
    let read = snapshot.read("t", 0, Offset(0), ReadOptions::new()).unwrap();
    assert_eq!(read.iter().count(), 1);
    store.start_disk(away).unwrap();
    quiet(&store, &clock);
    assert_eq!(committed_values(&store, "t"), ["plain"]);
    put(&mut held, &["t"], "later");
    assert_eq!(committed_values(&store, "t"), ["plain", "later"]);
}

/// One of its partitions has its marker, and the other has not yet.
#[test]
fn a_committed_transaction_that_cannot_be_settled_is_in_no_snapshot_by_half() {
    let disks: Vec<_> = (1..=3).map(SimDisk::new).collect();
    let clock = Clock::manual(Timestamp(1_000_000));
    let store = open(&disks, &clock, Flush::OnAck);
    let config = TopicConfig::new().replication_factor(2).min_insync_replicas(2);
    store.create_topic("t", config).unwrap();
    store.create_topic("whole", TopicConfig::new().replication_factor(3)).unwrap();
    let away = store.partition("t", 0).unwrap().replicas()[1];
    let mut held = producer(&store, "id");
    let mut transaction = held.begin().unwrap();
    transaction.append("t", 0, &[Record::new("x")]).unwrap();
    transaction.append("whole", 0, &[Record::new("x")]).unwrap();
    quiet(&store, &clock);
    store.stop_disk(away).unwrap();
    transaction.commit(Duration::from_secs(1)).unwrap_err();
    assert_eq!(committed_values(&store, "whole"), ["x"]);
    assert!(committed_values(&store, "t").is_empty());
    let amid = store.snapshot(&[("t", 0), ("whole", 0)]).map(drop);
    assert!(matches!(amid, Err(Error::TimedOut { .. })), "{amid:?}");
    store.start_disk(away).unwrap();
    quiet(&store, &clock);
    let snapshot = store.snapshot(&[("t", 0), ("whole", 0)]).unwrap();
    for topic in ["t", "whole"] {
        let options = ReadOptions::new().isolation(Isolation::ReadCommitted);
        assert_eq!(snapshot.read(topic, 0, Offset(0), options).unwrap().iter().count(), 1);
    }
}

/// What the store's settings say of topics was taken for its own as well: with small batches, groups could not commit.
#[test]
fn internal_topics_do_not_go_by_the_settings_for_topics() {
    let (disks, clock) = one_disk();
    let mut builder = Store::builder().clock(clock).simulated_disk(disks[0].clone());
    for (key, value) in [("message.max.bytes", "2000"), ("num.partitions", "3")] {
        builder = builder.property(key, value);
    }
    let store = builder.open().unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    assert_eq!(store.topic("t").unwrap().partitions, 3);
    commit(&store, "g", 0, &"x".repeat(4096));
    assert_eq!(committed(&store, "g"), Some(Offset(0)));
    let mut held = producer(&store, &"id".repeat(5000));
    put(&mut held, &["t"], "x");
    assert!(store.partition("__consumer_offsets", 1).is_err());
}

/// Members were numbered anew with each opening, and of a group's generations only the first with a member was written
/// down: who was one before could be taken for one that came since.
#[test]
fn who_was_a_member_before_the_store_was_opened_again_commits_nothing() {
    let (disks, clock) = one_disk();
    let store = open(&disks, &clock, Flush::OnAck);
    store.create_topic("t", TopicConfig::new()).unwrap();
    let member = |store: &Store| {
        let mut consumer = store.consumer().group("g").start(StartAt::Earliest).build().unwrap();
        consumer.subscribe(&["t"]).unwrap();
        consumer.poll(Duration::ZERO).unwrap();
        consumer
    };
    store.partition("t", 0).unwrap().append(&vec![Record::new("x"); 10], Acks::All).unwrap();
    let old = member(&store);
    let who = old.group_metadata();
    disks[0].kill();
    drop((old, store));
    disks[0].process_restart();
    let store = open(&disks, &clock, Flush::OnAck);
    let mut new = member(&store);
    assert_eq!(new.group_metadata().generation(), who.generation());
    new.commit().unwrap();
    let mut held = producer(&store, "id");
    let mut transaction = held.begin().unwrap();
    let sent = transaction.send_offsets([(&at(0), &CommittedOffset::from(Offset(5)))], &who);
    assert!(matches!(sent, Err(Error::UnknownMember { .. })), "{sent:?}");
    drop(transaction);
    assert_eq!(committed(&store, "g"), Some(Offset(10)));
}

/// They were written before the table of offsets was made stricter, and nobody waited for them afterwards.
#[test]
fn offsets_that_were_sent_before_the_first_strict_batch_are_as_safe_as_that() {
    let (disks, clock) = one_disk();
    let store = open(&disks, &clock, Flush::Os);
    for topic in ["t", "strict"] {
        store.create_topic(topic, TopicConfig::new().flush(Flush::OnAck)).unwrap();
    }
    store.partition("t", 0).unwrap().append(&vec![Record::new("x"); 9], Acks::All).unwrap();
    commit(&store, "pending", 1, "");
    drop(producer(&store, "id"));
    store.close(LONG).unwrap();

    let store = open(&disks, &clock, Flush::Os);
    let mut held = producer(&store, "id");
    let mut transaction = held.begin().unwrap();
    send_offset(&mut transaction);
    transaction.append("strict", 0, &[Record::new("x")]).unwrap();
    transaction.commit(LONG).unwrap();
    disks[0].kill();
    drop((held, store));
    disks[0].power_loss();

    let store = open(&disks, &clock, Flush::Os);
    store.run_background();
    assert_eq!(committed_values(&store, "strict"), ["x"]);
    assert_eq!(committed(&store, "pending"), Some(Offset(5)));
}

/// They stayed for ever, and with them the group.
#[test]
fn grp_10_offsets_of_a_topic_that_went_while_nobody_used_groups_go_as_well() {
    let (disks, clock) = one_disk();
    let store = open(&disks, &clock, Flush::OnAck);
    for topic in ["t", "stays"] {
        store.create_topic(topic, TopicConfig::new()).unwrap();
    }
    commit(&store, "gone", 0, "");
    store.reset_offsets("kept", "stays", ResetTo::Earliest).unwrap();
    store.close(LONG).unwrap();
    let store = open(&disks, &clock, Flush::OnAck);
    store.delete_topic("t").unwrap();
    store.close(LONG).unwrap();
    let store = open(&disks, &clock, Flush::OnAck);
    assert_eq!(store.groups().unwrap(), ["kept"]);
}

/// Whatever an application writes down as an epoch.
#[test]
fn a_position_of_an_epoch_that_never_was_is_told_and_read_on_from_wherever_one_seeks() {
    let (disks, clock) = one_disk();
    let store = open(&disks, &clock, Flush::OnAck);
    store.create_topic("t", TopicConfig::new()).unwrap();
    store.partition("t", 0).unwrap().append(&vec![Record::new("x"); 10], Acks::All).unwrap();
    for epoch in [0, 1, 7, u32::MAX] {
        let leader_epoch = Some(LeaderEpoch(epoch));
        let held = CommittedOffset { offset: Offset(5), leader_epoch, metadata: String::new() };
        grouped(&store, "g").commit_offsets(&BTreeMap::from([(at(0), held)])).unwrap();
        let mut consumer = grouped(&store, "g");
        consumer.assign(&[("t", 0)]).unwrap();
        let first = consumer.poll(Duration::ZERO).map(|records| records.count());
        assert!(matches!(first, Ok(5) | Err(Error::Diverged { .. })), "{epoch}: {first:?}");
        consumer.seek("t", 0, Offset(3)).unwrap();
        assert_eq!(consumer.poll(Duration::ZERO).unwrap().count(), 7, "{epoch}");
        consumer.commit().unwrap();
    }
}

/// Does something when it is woken first.
struct Once(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Wake for Once {
    fn wake(self: Arc<Self>) {
        let act = self.0.lock().unwrap().take();
        act.into_iter().for_each(|act| act());
    }
}

/// It was woken while the beginning of transactions was held, which waits for whoever begins them.
#[test]
fn a_waker_that_the_first_settling_wakes_may_begin_a_transaction() {
    let disks: Vec<_> = (1..=3).map(SimDisk::new).collect();
    let clock = Clock::manual(Timestamp(1_000_000));
    let store = open(&disks, &clock, Flush::OnAck);
    let config = TopicConfig::new().replication_factor(3).min_insync_replicas(1);
    store.create_topic("t", config).unwrap();
    let mut held = producer(&store, "id");
    put(&mut held, &["t"], "kept");
    quiet(&store, &clock);
    store.stop_disk(DiskId(2)).unwrap();
    quiet(&store, &clock);
    let mut transaction = held.begin().unwrap();
    transaction.append("t", 0, &[Record::new("open")]).unwrap();
    store.partition("t", 0).unwrap().append(&[Record::new("plain")], Acks::All).unwrap();
    disks.iter().for_each(SimDisk::kill);
    drop(transaction);
    drop((held, store));
    // With it goes what the last leader let be read: else all is settled within the opening.
    disks.iter().for_each(SimDisk::power_loss);

    let store = open_without(&[DiskId(0)], &disks, &clock);
    let builder = store.consumer().isolation(Isolation::ReadCommitted);
    let mut consumer = builder.start(StartAt::Latest).build().unwrap();
    consumer.assign(&[("t", 0)]).unwrap();
    let (told, heard) = channel();
    let other = store.clone();
    let act = Box::new(move || {
        told.send(other.producer().transactional_id("other").build().is_ok()).unwrap();
    });
    let waker = Waker::from(Arc::new(Once(Mutex::new(Some(act)))));
    let mut recv = pin!(consumer.recv());
    assert!(recv.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    thread::spawn(move || {
        for _ in 0..10 {
            clock.advance(Duration::from_secs(1));
            quiet(&store, &clock);
        }
    });
    assert!(heard.recv_timeout(LONG).expect("it is woken, and comes back"));
}

/// It was told again and again that its transaction was aborted, and never that it has no id any more.
#[test]
fn coord_05_a_holder_that_was_taken_over_before_its_first_record_learns_it() {
    let (disks, clock) = one_disk();
    let store = open(&disks, &clock, Flush::OnAck);
    store.create_topic("t", TopicConfig::new()).unwrap();
    let mut old = producer(&store, "id");
    let mut new = producer(&store, "id");
    let mut transaction = old.begin().unwrap();
    transaction.send(Record::to("t").partition(0).value("sent")).unwrap();
    let ended = transaction.commit(LONG);
    assert!(matches!(ended, Err(Error::ProducerFenced { .. })), "{ended:?}");
    let begun = old.begin().map(drop);
    assert!(matches!(begun, Err(Error::ProducerFenced { .. })), "{begun:?}");

    let mut newest = producer(&store, "id");
    let mut transaction = new.begin().unwrap();
    let refused = transaction.append("t", 0, &[Record::new("appended")]);
    assert!(matches!(refused, Err(Error::ProducerFenced { .. })), "{refused:?}");
    let ended = transaction.commit(LONG);
    assert!(matches!(ended, Err(Error::ProducerFenced { .. })), "{ended:?}");
    put(&mut newest, &["t"], "newest");
    assert_eq!(committed_values(&store, "t"), ["newest"]);
}

/// The decision stayed as loose as the topics had been when their first batches came.
#[test]
fn a_commit_over_topics_that_become_stricter_meanwhile_is_as_safe_as_they_are() {
    for call in 0.. {
        let (disks, clock) = one_disk();
        let store = open(&disks, &clock, Flush::Os);
        for topic in ["t", "u"] {
            store.create_topic(topic, TopicConfig::new()).unwrap();
        }
        let mut held = producer(&store, "id");
        let mut transaction = held.begin().unwrap();
        for topic in ["t", "u"] {
            transaction.append(topic, 0, &[Record::new("x")]).unwrap();
        }
        for topic in ["t", "u"] {
            store.alter_topic(topic, TopicUpdate::new().flush(Flush::OnAck)).unwrap();
            // With it, what came before it is on stable storage.
            let partition = store.partition(topic, 0).unwrap();
            partition.append(&[Record::new("plain")], Acks::All).unwrap();
        }
        disks[0].crash_at(call + 1);
        let told = transaction.commit(LONG).is_ok();
        store.run_background();
        let is_over = !disks[0].is_dead();
        disks[0].kill();
        drop((held, store));
        let store = opened_after(true, &disks, &clock);
        store.run_background();
        let (t, u) = (committed_values(&store, "t"), committed_values(&store, "u"));
        assert_eq!(t, u, "call {call}: all or nothing");
        if is_over {
            assert!(told);
            assert_eq!(t, ["x", "plain"], "it was acknowledged");
            break;
        }
    }
}

/// It was told that the transaction's state does not fit, as a mistake of its own would be.
#[test]
fn an_id_that_is_busy_for_too_long_is_late() {
    let (disks, clock) = one_disk();
    let store = open(&disks, &clock, Flush::OnAck);
    for topic in ["t", "u"] {
        store.create_topic(topic, TopicConfig::new()).unwrap();
    }
    let mut held = producer(&store, "id");
    // Nobody flushes its marker.
    put(&mut held, &["t"], "x");
    let busy = loop {
        let mut transaction = held.begin().unwrap();
        transaction.append("u", 0, &[Record::new("x")]).unwrap();
        if let Err(busy) = transaction.commit(LONG) {
            break busy;
        }
    };
    assert!(matches!(busy, Error::TimedOut { .. }), "{busy:?}");
    let settled = held.begin().map(drop);
    assert!(matches!(settled, Err(Error::TimedOut { .. })), "{settled:?}");
    let opened = store.producer().transactional_id("id").build();
    assert!(matches!(opened, Err(Error::TimedOut { .. })), "{opened:?}");
    quiet(&store, &clock);
    put(&mut held, &["t"], "later");
    assert_eq!(committed_values(&store, "t"), ["x", "later"]);
}

#[test]
fn offsets_of_which_a_part_is_refused_are_not_committed_without_it() {
    let (disks, clock) = one_disk();
    let store = open(&disks, &clock, Flush::OnAck);
    store.create_topic("t", TopicConfig::new().partitions(80)).unwrap();
    let metadata = "\u{10ffff}".repeat(4096);
    // More than a batch takes; the last one lies behind its log's end.
    let offset = |number| CommittedOffset {
        offset: Offset(if number == 79 { 1 } else { 0 }),
        metadata: metadata.clone(),
        ..CommittedOffset::default()
    };
    let offsets: BTreeMap<_, _> = (0..80).map(|number| (at(number), offset(number))).collect();
    let mut held = producer(&store, "id");
    let mut transaction = held.begin().unwrap();
    let group = ConsumerGroupMetadata::of_group("g");
    let refused = transaction.send_offsets(&offsets, &group);
    assert!(matches!(refused, Err(Error::OffsetOutOfRange { .. })), "{refused:?}");
    let ended = transaction.commit(LONG);
    assert!(matches!(ended, Err(Error::TransactionAborted { .. })), "{ended:?}");
    assert_eq!(all_committed(&store, "g", 80), BTreeSet::from([None]));
}

/// A store whose next decision comes with all others written again; what was committed and aborted before.
struct Outgrown {
    disks: Vec<SimDisk>,
    clock: Clock,
    store: Store,
    committed: TransactionId,
    aborted: TransactionId,
}

impl Outgrown {
    /// `opens`: how often an id with a long name is held first.
    fn new(count: u64, opens: u32) -> Self {
        let disks: Vec<_> = (1..=count).map(SimDisk::new).collect();
        disks[1..].iter().for_each(|disk| disk.share_process(&disks[0]));
        let clock = Clock::manual(Timestamp(1_000_000));
        let store = Self::open(&disks, &clock);
        let (replicas, required) = if count == 3 { (3, 2) } else { (1, 1) };
        let config = TopicConfig::new().replication_factor(replicas);
        store.create_topic("t", config.min_insync_replicas(required)).unwrap();
        let mut held = producer(&store, "id");
        let committed = put(&mut held, &["t"], "committed");
        let mut transaction = held.begin().unwrap();
        transaction.append("t", 0, &[Record::new("aborted")]).unwrap();
        let aborted = transaction.id();
        transaction.abort(LONG).unwrap();
        drop(held);
        let name = "x".repeat(32_000);
        for _ in 0..opens {
            drop(producer(&store, &name));
        }
        Self { disks, clock, store, committed, aborted }
    }

    /// The same, told on in another process.
    fn fork(&self) -> Self {
        let disks: Vec<_> = self.disks.iter().map(SimDisk::fork).collect();
        disks[1..].iter().for_each(|disk| disk.share_process(&disks[0]));
        let clock = Clock::manual(Timestamp(1_000_000));
        let store = Self::open(&disks, &clock);
        let Self { committed, aborted, .. } = *self;
        Self { disks, clock, store, committed, aborted }
    }

    fn open(disks: &[SimDisk], clock: &Clock) -> Store {
        let builder =
            Store::builder().append_timeout(Duration::from_millis(5)).clock(clock.clone());
        let all = disks.iter().fold(builder, |all, disk| all.simulated_disk(disk.clone()));
        all.flush(Flush::OnAck).open().unwrap()
    }

    fn is_rewritten(&self) -> bool {
        let internal = self.store.partition("__transaction_state", 0).unwrap();
        internal.log_start_offset() > Offset::ZERO
    }

    /// One more transaction; whether it was said to be committed, or not.
    fn decide(&self, note: &str) -> Option<bool> {
        let decide = || {
            let mut held = self.store.producer().transactional_id("last").build().ok()?;
            let mut transaction = held.begin().ok()?;
            transaction.append("t", 0, &[Record::new("last")]).ok()?;
            let told = transaction.commit(LONG);
            // Somebody else goes on meanwhile.
            let _ = self.store.producer().transactional_id("other").build();
            Some(told)
        };
        let told = decide();
        assert!(!matches!(&told, Some(Err(Error::Corrupt { .. }))), "{note}: {told:?}");
        let dead = self.disks.iter().any(SimDisk::is_dead);
        match told.map(|told| told.map_err(|error| error.written())) {
            _ if dead => None,
            Some(Ok(()) | Err(Written::Yes)) => Some(true),
            None | Some(Err(Written::No)) => Some(false),
            Some(Err(Written::Unknown)) => None,
        }
    }

    fn judge(self, told: Option<bool>, power_loss: bool, note: &str) {
        let Self { disks, clock, store, committed, aborted } = self;
        disks[0].kill();
        drop(store);
        for disk in &disks {
            disk.heal();
            if power_loss {
                disk.power_loss();
            } else {
                disk.process_restart();
            }
        }
        let mut first = None;
        for _ in 0..2 {
            let store = Self::open(&disks, &clock);
            for _ in 0..80 {
                clock.advance(Duration::from_secs(1));
                store.run_background();
            }
            let outcome = |id| store.transaction_outcome(id).unwrap();
            assert_eq!(outcome(committed), TransactionOutcome::Committed, "{note}");
            assert_eq!(outcome(aborted), TransactionOutcome::Aborted, "{note}");
            let seen = committed_values(&store, "t");
            let last = seen.len() > 1;
            let expected: &[_] = if last { &["committed", "last"] } else { &["committed"] };
            assert_eq!(seen, expected, "{note}");
            assert_eq!(told.unwrap_or(last), last, "{note}: told {told:?}");
            assert_eq!(*first.get_or_insert(last), last, "{note}: settled two ways");
            let partition = store.partition("t", 0).unwrap();
            let (stable, end) = (partition.last_stable_offset(), partition.log_end_offset());
            assert_eq!(stable, end, "{note}: readers are held up");
            store.close(LONG).unwrap();
        }
    }
}

#[test]
fn a_fault_at_any_call_of_rewriting_decisions_changes_none() {
    faults_of_rewriting_decisions(1);
}

#[test]
fn a_fault_at_any_call_of_rewriting_decisions_on_three_disks_changes_none() {
    faults_of_rewriting_decisions(3);
}

/// What is decided while all decisions are written again, and what was decided before, with a crash at every call of one
/// disk, and other faults at each fourth; all of them with `ONCELOG_ONE_IN=1`.
fn faults_of_rewriting_decisions(count: u64) {
    let mut opens = 100;
    let (before, calls) = loop {
        let before = Outgrown::new(count, opens);
        let world = before.fork();
        assert!(!world.is_rewritten(), "it was to be the last");
        let made: Vec<_> = world.disks.iter().map(SimDisk::calls).collect();
        assert_eq!(world.decide(""), Some(true));
        let calls = world.disks.iter().zip(made).map(|(disk, made)| disk.calls() - made);
        let calls: Vec<_> = calls.collect();
        if world.is_rewritten() {
            break (before, calls);
        }
        opens += 1;
    };
    // With three disks a crash meets them all at once, as it does one; their worlds are dear.
    let (kinds, one_in) = match count {
        1 => (0..5, setting("ONCELOG_ONE_IN", 4)),
        _ => (2..5, setting("ONCELOG_ONE_IN", 8)),
    };
    for (disk, calls) in calls.into_iter().enumerate().take(2) {
        for kind in kinds.clone() {
            let one_in = if kind == 0 { 1 } else { usize::try_from(one_in).unwrap() };
            for at in (1 + kind..=calls).step_by(one_in) {
                let note = format!("{count} disks, fault {kind} in call {at} of disk {disk}");
                let world = before.fork();
                match kind {
                    0 | 1 => world.disks[disk].crash_at(at),
                    2 => world.disks[disk].fail_call(at, Fault::Eio),
                    3 => world.disks[disk].fail_from(at, Fault::Eio),
                    _ => world.disks[disk].fail_from(at, Fault::Enospc),
                }
                let told = world.decide(&note);
                world.judge(told, kind != 0, &note);
            }
        }
    }
}
