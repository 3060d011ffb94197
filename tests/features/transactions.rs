//! Transactions through the public API: atomic, isolated, durable, fenced, and never hanging (TXLOG-*, COORD-*).

use std::time::Duration;

use oncelog::simulation::{Clock, SimDisk};
use oncelog::{
    Acks, Error, Flush, Isolation, Offset, Partition, ReadOptions, Record, Store, Timestamp,
    TopicConfig, TransactionOutcome, TransactionalProducer,
};

const LONG: Duration = Duration::from_secs(10);

fn open(disks: &[SimDisk], clock: &Clock) -> Store {
    let mut builder = Store::builder().clock(clock.clone());
    for disk in disks {
        builder = builder.simulated_disk(disk.clone());
    }
    builder.open().unwrap()
}

fn with_topic(config: TopicConfig) -> (SimDisk, Clock, Store) {
    let (disk, clock) = (SimDisk::new(1), Clock::manual(Timestamp(1_000_000)));
    let store = open(std::slice::from_ref(&disk), &clock);
    store.create_topic("t", config).unwrap();
    (disk, clock, store)
}

fn producer(store: &Store, id: &str) -> TransactionalProducer {
    store.producer().transactional_id(id).build().unwrap()
}

fn read(partition: &Partition, isolation: Isolation, max_bytes: usize) -> Vec<String> {
    let options = ReadOptions::new().isolation(isolation).max_bytes(max_bytes);
    let mut offset = partition.log_start_offset();
    let mut values = Vec::new();
    loop {
        let records = partition.read(offset, options).unwrap();
        let texts = records.iter().map(|r| String::from_utf8(r.value().unwrap().to_vec()).unwrap());
        values.extend(texts);
        if records.next_offset() == offset {
            return values;
        }
        offset = records.next_offset();
    }
}

fn committed(store: &Store, partition: u32) -> Vec<String> {
    let partition = store.partition("t", partition).unwrap();
    let whole = read(&partition, Isolation::ReadCommitted, 1 << 20);
    assert_eq!(read(&partition, Isolation::ReadCommitted, 1), whole, "batch by batch");
    whole
}

fn put(producer: &mut TransactionalProducer, partitions: &[u32], value: &str, commit: bool) {
    let mut transaction = producer.begin().unwrap();
    for partition in partitions {
        transaction.append("t", *partition, &[Record::new(value)]).unwrap();
    }
    if commit {
        transaction.commit(LONG).unwrap();
    } else {
        transaction.abort(LONG).unwrap();
    }
}

#[test]
fn txlog_01_what_is_committed_is_seen_and_what_is_aborted_or_open_is_not() {
    for flush in [Flush::OnAck, Flush::Os] {
        let (_disk, _clock, store) = with_topic(TopicConfig::new().partitions(2).flush(flush));
        let partition = store.partition("t", 0).unwrap();
        let mut first = producer(&store, "first");
        let mut second = producer(&store, "second");
        partition.append(&[Record::new("plain")], Acks::All).unwrap();
        put(&mut first, &[0, 1], "aborted", false);
        let mut open = first.begin().unwrap();
        open.append("t", 0, &[Record::new("open")]).unwrap();
        put(&mut second, &[0], "committed behind", true);
        partition.append(&[Record::new("plain behind")], Acks::All).unwrap();
        assert_eq!(committed(&store, 0), ["plain"]);
        assert!(partition.last_stable_offset() < partition.high_watermark());
        let everything = read(&partition, Isolation::ReadUncommitted, 1 << 20);
        let all = ["plain", "aborted", "open", "committed behind", "plain behind"];
        assert_eq!(everything, all);
        drop(open);
        assert_eq!(partition.last_stable_offset(), partition.high_watermark());
        assert_eq!(committed(&store, 0), ["plain", "committed behind", "plain behind"]);
        assert_eq!(committed(&store, 1), [] as [&str; 0]);
    }
}

#[test]
fn txlog_25_aborted_data_stays_hidden_over_segments_restarts_deletion_and_lost_side_files() {
    for how in ["nothing", "closed", "killed", "sides lost", "deleted"] {
        let config = TopicConfig::new().segment_bytes(4096).index_interval_bytes(256);
        let (disk, clock, store) = with_topic(config);
        let mut producers: Vec<_> =
            (0..3).map(|number| producer(&store, &format!("id-{number}"))).collect();
        let mut expected = Vec::new();
        for round in 0..60 {
            // Three at a time, so that they lie across one another, and some over several segments.
            let mut open: Vec<_> =
                producers.iter_mut().map(|producer| producer.begin().unwrap()).collect();
            for part in 0..=round % 4 {
                for (number, transaction) in open.iter_mut().enumerate() {
                    let value = format!("{round}/{number}/{part}{}", ".".repeat(100));
                    let at = transaction.append("t", 0, &[Record::new(&value)]).unwrap();
                    expected.push((at.start, value, (round + number) % 3 != 0));
                }
            }
            for (number, transaction) in open.into_iter().enumerate() {
                if (round + number) % 3 == 0 {
                    transaction.abort(LONG).unwrap();
                } else {
                    transaction.commit(LONG).unwrap();
                }
            }
        }
        let partition = store.partition("t", 0).unwrap();
        let mut start = Offset::ZERO;
        if how == "deleted" {
            // Into the midst of transactions.
            for to in [37, 101, 216] {
                start = partition.delete_records(Offset(to)).unwrap();
            }
        }
        let check = |store: &Store| {
            let of = |keep: &dyn Fn(bool) -> bool| -> Vec<String> {
                let kept = expected.iter().filter(|(at, _, good)| *at >= start && keep(*good));
                kept.map(|(_, value, _)| value.clone()).collect()
            };
            assert_eq!(committed(store, 0), of(&|good| good), "{how}");
            let partition = store.partition("t", 0).unwrap();
            let all = read(&partition, Isolation::ReadUncommitted, 4096);
            assert_eq!(all, of(&|_| true), "{how}");
        };
        check(&store);
        if how == "killed" {
            disk.process_restart();
        }
        drop((producers, partition, store));
        if how == "sides lost" {
            let sides = disk.files().into_iter().filter(|name| name.ends_with(".side"));
            sides.for_each(|name| disk.write_file(&name, b""));
        }
        check(&open(std::slice::from_ref(&disk), &clock));
    }
}

#[test]
fn coord_31_a_crash_at_any_call_leaves_whole_transactions_and_nothing_hanging() {
    // How many calls of the disk there are between the first `begin` and the last `commit`.
    let config = || TopicConfig::new().partitions(3).segment_bytes(4096);
    let calls = {
        let (disk, _clock, store) = with_topic(config());
        let mut producer = producer(&store, "id");
        let before = disk.calls();
        (0..4).for_each(|n| put(&mut producer, &[0, 1, 2], &format!("v{n}"), n != 2));
        disk.calls() - before
    };
    assert!(calls > 10, "{calls}");
    for at in 1..=calls {
        for power in [false, true] {
            let (disk, clock, store) = with_topic(config());
            let mut producer = producer(&store, "id");
            disk.crash_at(at);
            let mut acknowledged = Vec::new();
            let mut ids = Vec::new();
            for n in 0..4 {
                let Ok(mut transaction) = producer.begin() else { break };
                ids.push((n, transaction.id()));
                let value = format!("v{n}");
                let sent = (0..3).all(|partition| {
                    transaction.append("t", partition, &[Record::new(&value)]).is_ok()
                });
                let ended = match (sent, n != 2) {
                    (true, true) => transaction.commit(LONG),
                    _ => transaction.abort(LONG),
                };
                if sent && ended.is_ok() && n != 2 {
                    acknowledged.push(value);
                }
            }
            if power {
                disk.power_loss();
            } else {
                disk.process_restart();
            }
            drop((producer, store));
            let store = open(std::slice::from_ref(&disk), &clock);
            let seen = committed(&store, 0);
            let note = format!("call {at}, power loss {power}");
            assert_eq!(committed(&store, 1), seen, "{note}: torn");
            assert_eq!(committed(&store, 2), seen, "{note}: torn");
            for value in &acknowledged {
                assert!(seen.contains(value), "{note}: {value} was acknowledged");
            }
            assert!(!seen.contains(&"v2".to_owned()), "{note}: aborted");
            for (n, id) in ids {
                let outcome = store.transaction_outcome(id);
                let was_seen = seen.contains(&format!("v{n}"));
                match outcome {
                    Ok(TransactionOutcome::Committed) => assert!(was_seen, "{note}: {n}"),
                    Ok(TransactionOutcome::Aborted) => assert!(!was_seen, "{note}: {n}"),
                    other => panic!("{note}: {n}: {other:?}"),
                }
            }
            for number in 0..3 {
                let partition = store.partition("t", number).unwrap();
                assert_eq!(partition.last_stable_offset(), partition.high_watermark(), "{note}");
            }
            let mut again = self::producer(&store, "id");
            put(&mut again, &[0, 1, 2], "after", true);
            assert_eq!(committed(&store, 0).last().unwrap(), "after", "{note}");
        }
    }
}

#[test]
fn coord_05_a_newer_holder_fences_the_older_and_aborts_what_it_left_open() {
    let (_disk, _clock, store) = with_topic(TopicConfig::new());
    let mut old = producer(&store, "id");
    put(&mut old, &[0], "before", true);
    let mut left = old.begin().unwrap();
    left.append("t", 0, &[Record::new("left open")]).unwrap();
    let mut new = producer(&store, "id");
    let late = left.append("t", 0, &[Record::new("late")]);
    assert!(matches!(late, Err(Error::ProducerFenced { .. })), "{late:?}");
    assert!(matches!(
        left.commit(LONG),
        Err(Error::ProducerFenced { .. } | Error::TransactionAborted { .. })
    ));
    put(&mut new, &[0], "after", true);
    assert!(matches!(
        old.begin().and_then(|mut late| late.append("t", 0, &[Record::new("later")])),
        Err(Error::ProducerFenced { .. })
    ));
    assert_eq!(committed(&store, 0), ["before", "after"]);
}

#[test]
fn coord_60_a_transaction_that_is_open_too_long_is_aborted_and_its_holder_goes_on() {
    let (_disk, clock, store) = with_topic(TopicConfig::new());
    let timeout = Duration::from_secs(5);
    let mut producer =
        store.producer().transactional_id("id").transaction_timeout(timeout).build().unwrap();
    let mut slow = producer.begin().unwrap();
    slow.append("t", 0, &[Record::new("slow")]).unwrap();
    let id = slow.id();
    clock.advance(Duration::from_secs(6));
    store.run_background();
    let partition = store.partition("t", 0).unwrap();
    assert_eq!(partition.last_stable_offset(), partition.high_watermark(), "nothing hangs");
    assert!(slow.append("t", 0, &[Record::new("late")]).is_err());
    assert!(matches!(slow.commit(LONG), Err(Error::TransactionAborted { .. })));
    assert_eq!(store.transaction_outcome(id).unwrap(), TransactionOutcome::Aborted);
    put(&mut producer, &[0], "next", true);
    assert_eq!(committed(&store, 0), ["next"]);
}

#[test]
fn coord_04_an_open_transaction_is_aborted_when_the_store_is_opened_again() {
    for clean in [true, false] {
        let (disk, clock, store) = with_topic(TopicConfig::new());
        let mut held = producer(&store, "id");
        put(&mut held, &[0], "committed", true);
        let mut left = held.begin().unwrap();
        left.append("t", 0, &[Record::new("left open")]).unwrap();
        if !clean {
            disk.process_restart();
        }
        store.close(LONG).ok();
        drop(left);
        drop((held, store));
        let store = open(std::slice::from_ref(&disk), &clock);
        let partition = store.partition("t", 0).unwrap();
        assert_eq!(partition.last_stable_offset(), partition.high_watermark(), "clean: {clean}");
        assert_eq!(committed(&store, 0), ["committed"]);
    }
}

#[test]
fn an_unacknowledged_record_and_bad_input_abort_or_leave_the_transaction_as_it_was() {
    let config = TopicConfig::new().max_batch_bytes(1_024);
    let (_disk, _clock, store) = with_topic(config);
    let mut held = producer(&store, "id");
    let mut transaction = held.begin().unwrap();
    let large = vec![b'x'; 2000];
    let refused = transaction.append("t", 0, &[Record::new(&large)]);
    assert!(matches!(refused, Err(Error::RecordTooLarge { .. })));
    assert!(matches!(
        transaction.append("absent", 0, &[Record::new("x")]),
        Err(Error::UnknownTopicOrPartition { .. })
    ));
    transaction.append("t", 0, &[Record::new("kept")]).unwrap();
    transaction.commit(LONG).unwrap();
    assert_eq!(committed(&store, 0), ["kept"]);
    assert!(matches!(
        store.producer().transactional_id("").build(),
        Err(Error::InvalidConfig { .. })
    ));
    let long = store
        .producer()
        .transactional_id("x")
        .transaction_timeout(Duration::from_secs(3600))
        .build();
    assert!(matches!(long, Err(Error::InvalidConfig { .. })));
}

#[test]
fn the_topics_of_the_store_can_be_read_and_not_be_changed() {
    let (_disk, _clock, store) = with_topic(TopicConfig::new());
    let mut held = producer(&store, "id");
    put(&mut held, &[0], "x", true);
    let internal = store.partition("__transaction_state", 0).unwrap();
    assert!(internal.high_watermark() > Offset::ZERO);
    assert!(internal.read(Offset::ZERO, ReadOptions::new()).unwrap().count() > 0);
    assert!(internal.append(&[Record::new("x")], Acks::All).is_err());
    assert!(internal.delete_records(Offset(1)).is_err());
    assert!(matches!(store.delete_topic("__transaction_state"), Err(Error::InvalidTopic { .. })));
    let made = store.create_topic("__mine", TopicConfig::new());
    assert!(matches!(made, Err(Error::InvalidTopic { .. })));
    assert_eq!(store.topics().len(), 1);
}

#[test]
fn the_table_of_transactions_is_rewritten_and_reads_the_same_afterwards() {
    let (disk, clock, store) = with_topic(TopicConfig::new().flush(Flush::Os));
    let names: Vec<_> = (0..40).map(|n| format!("{n}-{}", "x".repeat(20_000))).collect();
    let mut ids = Vec::new();
    for (round, name) in names.iter().enumerate().cycle().take(400) {
        let mut held = producer(&store, name);
        let transaction = held.begin().unwrap();
        let id = transaction.id();
        drop(transaction);
        put(&mut held, &[0], &format!("{round}"), true);
        ids.push(id);
    }
    let internal = store.partition("__transaction_state", 0).unwrap();
    assert!(internal.log_start_offset() > Offset::ZERO, "what lay before the table is gone");
    disk.process_restart();
    drop((internal, store));
    let store = open(std::slice::from_ref(&disk), &clock);
    for id in ids.iter().rev().take(40) {
        assert_eq!(store.transaction_outcome(*id).unwrap(), TransactionOutcome::Committed);
    }
    assert_eq!(committed(&store, 0).len(), 400);
}

#[test]
fn what_is_sent_is_partitioned_gathered_and_in_order_with_what_is_appended() {
    let config = TopicConfig::new().partitions(3).max_batch_bytes(2048);
    let (_disk, _clock, store) = with_topic(config);
    let build = || store.producer().transactional_id("id").batch_bytes(400);
    let mut held = build().partitioner(|record, _| record_number(record)).build().unwrap();
    let mut transaction = held.begin().unwrap();
    let values: Vec<_> = (0..60).map(|number| format!("{number}")).collect();
    for value in &values {
        transaction.send(Record::to("t").value(value)).unwrap();
    }
    transaction.append("t", 0, &[Record::new("behind")]).unwrap();
    let large = vec![b'x'; 4000];
    let refused = transaction.send(Record::to("t").value(&large));
    assert!(matches!(refused, Err(Error::RecordTooLarge { .. })), "{refused:?}");
    let alone = "y".repeat(600);
    transaction.send(Record::to("t").partition(2).value(&alone)).unwrap();
    let absent = transaction.send(Record::to("absent").value("x"));
    assert!(matches!(absent, Err(Error::UnknownTopicOrPartition { .. })));
    let beyond = transaction.send(Record::to("t").partition(3).value("x"));
    assert!(matches!(beyond, Err(Error::UnknownTopicOrPartition { .. })));
    assert_eq!(committed(&store, 1), [] as [&str; 0]);
    transaction.commit(LONG).unwrap();
    for partition in 0..3_usize {
        let mut expected: Vec<_> =
            values.iter().skip(partition).step_by(3).map(String::as_str).collect();
        match partition {
            0 => expected.push("behind"),
            2 => expected.push(&alone),
            _ => {}
        }
        assert_eq!(committed(&store, u32::try_from(partition).unwrap()), expected);
    }
    let batches = store.partition("t", 1).unwrap().log_end_offset();
    assert_eq!(batches, Offset(21), "20 records and a marker");
    // Keys go where the other producers send them.
    drop(held);
    let mut held = build().build().unwrap();
    let plain = store.producer().build().unwrap();
    for key in ["ada", "ben", "cleo"] {
        let mut transaction = held.begin().unwrap();
        transaction.send(Record::to("t").key(key).value(key)).unwrap();
        transaction.commit(LONG).unwrap();
        let placed = plain.send(Record::to("t").key(key).value(key)).unwrap().wait(LONG).unwrap();
        let there = committed(&store, placed.partition);
        assert_eq!(there[there.len() - 2..], [key, key]);
    }
    let mut transaction = held.begin().unwrap();
    transaction.send(Record::to("t").value("taken back")).unwrap();
    drop(transaction);
    assert!((0..3).all(|number| !committed(&store, number).contains(&"taken back".into())));
}

fn record_number(record: &oncelog::ProducerRecord<'_>) -> u32 {
    let value = std::str::from_utf8(record.value_bytes().unwrap()).unwrap();
    value.parse::<u32>().map_or(0, |number| number % 3)
}

#[test]
fn settings_that_a_transaction_cannot_have_are_refused() {
    let (_disk, _clock, store) = with_topic(TopicConfig::new());
    let refused = |builder: oncelog::TransactionalBuilder| match builder.build() {
        Err(Error::InvalidConfig { key, .. }) => key,
        other => panic!("{other:?}"),
    };
    let begin = || store.producer();
    assert_eq!(refused(begin().acks(Acks::Leader).transactional_id("x")), "acks");
    assert_eq!(refused(begin().idempotent(false).transactional_id("x")), "enable.idempotence");
    assert_eq!(refused(begin().name("n").transactional_id("x")), "transactional.id");
    assert_eq!(refused(begin().transactional_id("__mine")), "transactional.id");
    let late = begin().transactional_id("x").property("transaction.timeout.ms", "-1");
    assert_eq!(refused(late), "transaction.timeout.ms");
    let odd = begin().transactional_id("x").property("batch.sise", "1");
    assert_eq!(refused(odd), "batch.sise");
    let fits = begin().property("linger.ms", "5").transactional_id("x");
    fits.property("transaction.timeout.ms", "1000").property("batch.size", "100").build().unwrap();
}

#[test]
fn batches_for_several_partitions_are_appended_in_one_call_or_not_at_all() {
    let config = TopicConfig::new().partitions(3).max_batch_bytes(1024);
    let (disk, clock, store) = with_topic(config);
    let large = vec![b'x'; 2000];
    for round in 0..10 {
        let value = round.to_string();
        let records = [Record::new(&value)];
        let all: [(&str, u32, &[Record<'_>]); 3] =
            [("t", 0, &records), ("t", 1, &records), ("t", 0, &records)];
        let appended = store.append_atomic(&all, LONG).unwrap();
        assert_eq!(appended.len(), 3);
        assert!(appended[0].offsets.end <= appended[2].offsets.start);
        let torn: [(&str, u32, &[Record<'_>]); 2] =
            [("t", 0, &records), ("t", 1, &[Record::new(&large)])];
        assert!(matches!(store.append_atomic(&torn, LONG), Err(Error::RecordTooLarge { .. })));
    }
    let one: [(&str, u32, &[Record<'_>]); 1] = [("t", 2, &[Record::new("alone")])];
    assert_eq!(store.append_atomic(&one, LONG).unwrap()[0].offsets, Offset(0)..Offset(1));
    assert!(store.append_atomic(&[], LONG).unwrap().is_empty());
    let expected: Vec<_> = (0..10).map(|round| round.to_string()).collect();
    let check = |store: &Store| {
        assert_eq!(committed(store, 1), expected);
        assert_eq!(committed(store, 0).len(), 20);
        assert_eq!(committed(store, 2), ["alone"]);
    };
    check(&store);
    disk.power_loss();
    drop(store);
    let store = open(std::slice::from_ref(&disk), &clock);
    check(&store);
    let two: [(&str, u32, &[Record<'_>]); 2] =
        [("t", 2, &[Record::new("a")]), ("t", 1, &[Record::new("b")])];
    store.append_atomic(&two, LONG).unwrap();
    assert_eq!(committed(&store, 2), ["alone", "a"]);
}

#[test]
fn a_snapshot_shows_every_transaction_in_all_partitions_or_in_none() {
    let store = Store::in_memory(1).unwrap();
    store.create_topic("t", TopicConfig::new().partitions(3).flush(Flush::Os)).unwrap();
    // One that stays open, begun before the others in one partition.
    let mut old = store.producer().transactional_id("old").build().unwrap();
    let mut open = old.begin().unwrap();
    open.append("t", 1, &[Record::new("1000")]).unwrap();
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3_u32)
            .map(|writer| {
                let store = &store;
                scope.spawn(move || {
                    for round in 0..300_u32 {
                        let (from, to) = (writer % 3, (writer + 1 + round % 2) % 3);
                        let amount = (round % 7 + 1).to_string();
                        let (minus, plus) = (format!("-{amount}"), amount);
                        let transfer: [(&str, u32, &[Record<'_>]); 2] =
                            [("t", from, &[Record::new(&minus)]), ("t", to, &[Record::new(&plus)])];
                        store.append_atomic(&transfer, LONG).unwrap();
                    }
                })
            })
            .collect();
        let sum = |snapshot: &oncelog::Snapshot| -> i64 {
            let mut sum = 0;
            for partition in 0..3 {
                let mut offset = Offset(0);
                let end = snapshot.end("t", partition).unwrap();
                while offset < end {
                    let options = ReadOptions::new().max_bytes(4096);
                    let records = snapshot.read("t", partition, offset, options).unwrap();
                    for record in &records {
                        let text = std::str::from_utf8(record.value().unwrap()).unwrap();
                        sum += text.parse::<i64>().unwrap();
                    }
                    assert!(records.next_offset() > offset || records.is_empty());
                    if records.next_offset() == offset {
                        break;
                    }
                    offset = records.next_offset();
                }
            }
            sum
        };
        let all = [("t", 0), ("t", 1), ("t", 2)];
        let mut kept = Vec::new();
        while writers.iter().any(|writer| !writer.is_finished()) {
            let snapshot = store.snapshot(&all).unwrap();
            assert_eq!(sum(&snapshot), 0);
            kept.push(snapshot);
        }
        kept.iter().for_each(|snapshot| assert_eq!(sum(snapshot), 0, "and stays so"));
        let before = store.snapshot(&all).unwrap();
        open.commit(LONG).unwrap();
        assert_eq!(sum(&before), 0, "it was open then");
        assert_eq!(sum(&store.snapshot(&all).unwrap()), 1000);
        assert!(before.end("t", 9).is_err());
        assert!(store.snapshot(&[("t", 9)]).is_err());
    });
}

#[test]
fn a_committed_read_is_waited_for_until_the_marker() {
    let store = Store::in_memory(1).unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let mut held = store.producer().transactional_id("id").build().unwrap();
    let mut transaction = held.begin().unwrap();
    transaction.append("t", 0, &[Record::new("a")]).unwrap();
    partition.wait_for(Offset(0), LONG).unwrap();
    let early = partition.wait_for_committed(Offset(0), Duration::from_millis(1));
    assert!(matches!(early, Err(Error::TimedOut { .. })));
    let waits = std::thread::spawn({
        let partition = partition.clone();
        move || partition.wait_for_committed(Offset(0), LONG)
    });
    transaction.commit(LONG).unwrap();
    waits.join().unwrap().unwrap();
}

#[test]
fn a_decision_is_as_safe_as_the_strictest_of_what_it_decides_about() {
    let (disk, clock) = (SimDisk::new(1), Clock::manual(Timestamp(0)));
    let build = || Store::builder().clock(clock.clone()).simulated_disk(disk.clone());
    let store = build().flush(Flush::Os).open().unwrap();
    for (topic, flush) in [("os", Flush::Os), ("on-ack", Flush::OnAck)] {
        store.create_topic(topic, TopicConfig::new().flush(flush)).unwrap();
    }
    let level = |store: &Store| store.topic("__transaction_state").unwrap().config;
    let mut held = producer(&store, "id");
    let mut transaction = held.begin().unwrap();
    transaction.append("os", 0, &[Record::new("x")]).unwrap();
    transaction.commit(LONG).unwrap();
    assert!(format!("{:?}", level(&store)).contains("flush: Os"));
    let mut transaction = held.begin().unwrap();
    transaction.append("on-ack", 0, &[Record::new("kept")]).unwrap();
    transaction.commit(LONG).unwrap();
    let id = transaction_id(&mut held, "on-ack");
    assert!(format!("{:?}", level(&store)).contains("flush: OnAck"));
    disk.power_loss();
    drop((held, store));
    let store = build().open().unwrap();
    assert_eq!(store.transaction_outcome(id).unwrap(), TransactionOutcome::Committed);
    let partition = store.partition("on-ack", 0).unwrap();
    assert_eq!(read(&partition, Isolation::ReadCommitted, 1 << 20), ["kept", "also"]);
}

fn transaction_id(held: &mut TransactionalProducer, topic: &str) -> oncelog::TransactionId {
    let mut transaction = held.begin().unwrap();
    let id = transaction.id();
    transaction.append(topic, 0, &[Record::new("also")]).unwrap();
    transaction.commit(LONG).unwrap();
    id
}

#[test]
fn a_callback_may_call_the_store_whatever_it_is_called_from() {
    let (_disk, _clock, store) = with_topic(TopicConfig::new());
    let told = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    for topic in ["deleted", "settled"] {
        store.create_topic(topic, TopicConfig::new()).unwrap();
        let partition = store.partition(topic, 0).unwrap();
        let ticket = partition.append_nowait(&[Record::new("x")], Acks::All).unwrap();
        let (store, told) = (store.clone(), std::sync::Arc::clone(&told));
        ticket.on_complete(move |outcome| {
            // Each of them takes the lock of the metadata.
            store.create_topic(&format!("of-{topic}"), TopicConfig::new()).unwrap();
            told.lock().unwrap().push((topic, outcome.is_ok()));
        });
    }
    store.delete_topic("deleted").unwrap();
    assert_eq!(*told.lock().unwrap(), [("deleted", false)]);
    store.run_background();
    assert_eq!(told.lock().unwrap().len(), 2);
    assert!(store.topic("of-deleted").is_ok() && store.topic("of-settled").is_ok());
}
