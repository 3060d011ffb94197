//! Names, numbers and sizes at their limits and beyond, in stores on one disk and in memory: each is taken and comes back, or is
//! refused by an error that names it, and nothing is half done.

use std::time::Duration;

use oncelog::simulation::{Clock, SimDisk};
use oncelog::{
    Acks, CommittedOffset, Compression, ConsumerGroupMetadata, DiskId, DiskState, Error,
    ErrorClass, Flush, Isolation, Offset, Partition, ProducerEpoch, ProducerId, ProducerSequence,
    ReadOptions, Record, ResetTo, Retention, StartAt, Store, Timestamp, TopicConfig,
    TopicPartition, TopicUpdate, TransactionOutcome, VerifyOptions, Written,
};

const SECOND: Duration = Duration::from_secs(1);

fn open(disk: &SimDisk) -> Store {
    // As little as topics may take by default: the store's own have their own.
    Store::builder()
        .simulated_disk(disk.clone())
        .clock(Clock::manual(Timestamp(1_000_000)))
        .property("max.message.bytes", "1024")
        .property("segment.bytes", "4096")
        .open()
        .unwrap()
}

fn killed(disk: &SimDisk, store: Store) -> Store {
    disk.kill();
    drop(store);
    disk.heal();
    disk.process_restart();
    open(disk)
}

fn append(partition: &Partition, value: &str) -> Offset {
    partition.append(&[Record::new(value)], Acks::All).unwrap().offsets.start
}

fn values(partition: &Partition) -> Vec<Vec<u8>> {
    let (mut next, mut found) = (partition.log_start_offset(), Vec::new());
    while next < partition.high_watermark() {
        let options = ReadOptions::new().isolation(Isolation::ReadCommitted);
        let records = partition.read(next, options).unwrap();
        found.extend(records.iter().map(|record| record.value().unwrap().to_vec()));
        assert!(records.next_offset() > next);
        next = records.next_offset();
    }
    found
}

/// Names of exactly so many bytes, all of them odd.
fn names(bytes: usize) -> Vec<String> {
    let whole = |unit: &str| {
        let mut name = unit.repeat(bytes / unit.len());
        name.push_str(&"x".repeat(bytes - name.len()));
        name
    };
    ["../", "\0", "\u{10ffff}", "\u{202e}a", " ", "\r\n", "%s{}"].map(whole).to_vec()
}

#[track_caller]
fn is_invalid<T>(told: Result<T, Error>, what: &str) {
    let error = told.err().unwrap_or_else(|| panic!("{what} was taken"));
    assert_eq!((error.class(), error.written()), (ErrorClass::Invalid, Written::No), "{error}");
}

#[test]
fn names_of_every_kind_come_back_at_their_limits_and_one_byte_more_is_refused() {
    let disk = SimDisk::new(1);
    let mut store = open(&disk);
    store.create_topic(&"t".repeat(249), TopicConfig::new()).unwrap();
    let topic = "t".repeat(249);
    let place = TopicPartition::new(topic.as_str(), 0);
    let (groups, ids, producers) = (names(32_767), names(32_767), names(255));
    let metadata = "\u{10ffff}".repeat(4096);
    let committed =
        CommittedOffset { offset: Offset(1), leader_epoch: None, metadata: metadata.clone() };
    let mut sent = 0;
    let mut outcomes = Vec::new();
    for ((group, id), name) in groups.iter().zip(&ids).zip(&producers) {
        let producer = store.producer().name(name.clone()).build().unwrap();
        producer.send(Record::to(&topic).value("n")).unwrap().wait(SECOND).unwrap();
        producer.close(SECOND).unwrap();
        let mut held = store.producer().transactional_id(id).build().unwrap();
        let mut transaction = held.begin().unwrap();
        outcomes.push(transaction.id());
        transaction.append(&topic, 0, &[Record::new("x")]).unwrap();
        let of_group = ConsumerGroupMetadata::of_group(group);
        transaction.send_offsets([(&place, &committed)], &of_group).unwrap();
        transaction.commit(SECOND).unwrap();
        sent += 2;
        // One byte more, and none.
        is_invalid(store.producer().name(format!("{name}y")).build(), "a producer's name");
        let id = format!("{id}y");
        is_invalid(store.producer().transactional_id(&id).build(), "a transactional id");
        let member = store.consumer().group(&format!("{group}y")).build();
        is_invalid(member.and_then(|mut all| all.subscribe(&[&topic])), "a group");
        let mut transaction = held.begin().unwrap();
        let long = ConsumerGroupMetadata::of_group(&format!("{group}y"));
        is_invalid(transaction.send_offsets([(&place, &committed)], &long), "a group");
        let more = CommittedOffset { metadata: format!("{metadata}y"), ..committed.clone() };
        is_invalid(transaction.send_offsets([(&place, &more)], &of_group), "metadata");
        drop(transaction);
    }
    is_invalid(store.producer().name("").build(), "no name");
    is_invalid(store.producer().transactional_id("").build(), "no id");
    let member = |group: &str, instance: &str| {
        let member = store.consumer().group(group).instance_id(instance).build();
        member.and_then(|mut all| all.subscribe(&[&topic]))
    };
    is_invalid(member("", "i"), "no group");
    is_invalid(member("g", &"i".repeat(250)), "an instance");
    is_invalid(member("g", ""), "no instance");
    store = killed(&disk, store);
    store.run_background();
    assert_eq!(values(&store.partition(&topic, 0).unwrap()).len(), sent);
    for ((group, name), outcome) in groups.iter().zip(&producers).zip(outcomes) {
        let consumer = store.consumer().group(group).build().unwrap();
        let found = consumer.committed(&[(&topic, 0)]).unwrap();
        assert_eq!(found.get(&place), Some(&committed));
        drop(consumer);
        let producer = store.producer().name(name.clone()).build().unwrap();
        assert_eq!(producer.next_sequence(&topic, 0).unwrap(), 1);
        assert_eq!(store.transaction_outcome(outcome).unwrap(), TransactionOutcome::Committed);
    }
    assert_eq!(store.groups().unwrap().len(), groups.len());
    groups.iter().for_each(|group| store.delete_group(group).unwrap());
    assert!(killed(&disk, store).groups().unwrap().is_empty());
}

#[test]
fn a3_headers_keys_and_values_come_back_as_they_were_however_many_or_none() {
    let disk = SimDisk::new(2);
    let mut store = open(&disk);
    let codecs = [Compression::None, Compression::Lz4, Compression::Zstd, Compression::Snappy];
    let long = "h".repeat(1 << 20);
    let many: Vec<String> = (0..50_000).map(|at| (at % 7).to_string()).collect();
    for (number, codec) in codecs.iter().enumerate() {
        let config = TopicConfig::new().max_batch_bytes(4 << 20).segment_bytes(8 << 20);
        store.create_topic(&format!("t{number}"), config.compression(*codec)).unwrap();
        let partition = store.partition(&format!("t{number}"), 0).unwrap();
        let crowded = many.iter().fold(Record::new("v"), |all, name| all.header(name, name));
        let records = [
            crowded,
            Record::new("").key("").header("", "").header("", ""),
            Record::tombstone("k").header(&long, ""),
            Record::tombstone("").header("\0../\u{10ffff}", &long),
            Record::new("").timestamp(Timestamp(i64::MAX)),
        ];
        for record in &records {
            let _ = partition.append(std::slice::from_ref(record), Acks::All).unwrap();
        }
        // All at once as well.
        let _ = partition.append(&records, Acks::All).unwrap();
    }
    store = killed(&disk, store);
    for number in 0..codecs.len() {
        let partition = store.partition(&format!("t{number}"), 0).unwrap();
        let (mut next, mut seen) = (Offset(0), 0);
        while next < partition.high_watermark() {
            let records = partition.read(next, ReadOptions::new()).unwrap();
            for record in &records {
                let headers: Vec<_> = record.headers().collect();
                let of = (record.key(), record.value(), headers.len());
                match seen % 5 {
                    0 => {
                        assert_eq!(of, (None, Some(&b"v"[..]), many.len()));
                        let same = |((name, value), sent): (&(&str, &[u8]), &String)| {
                            name == sent && *value == sent.as_bytes()
                        };
                        assert!(headers.iter().zip(&many).all(same));
                    }
                    1 => assert_eq!(of, (Some(&b""[..]), Some(&b""[..]), 2)),
                    2 => assert_eq!((of, headers[0].0), ((Some(&b"k"[..]), None, 1), &*long)),
                    3 => assert_eq!(
                        (of, headers[0]),
                        ((Some(&b""[..]), None, 1), ("\0../\u{10ffff}", long.as_bytes()))
                    ),
                    _ => {
                        assert_eq!(of, (None, Some(&b""[..]), 0));
                        assert_eq!(record.timestamp(), Timestamp(i64::MAX));
                    }
                }
                seen += 1;
            }
            next = records.next_offset();
        }
        assert_eq!(seen, 10);
    }
}

#[test]
fn a6_epochs_and_sequences_at_their_ends_are_counted_or_refused_and_known_after_a_crash() {
    let disk = SimDisk::new(3);
    let mut store = open(&disk);
    store.create_topic("t", TopicConfig::new()).unwrap();
    let numbered = |id: u64, epoch: u32, sequence: u64| ProducerSequence {
        id: ProducerId(id),
        epoch: ProducerEpoch(epoch),
        sequence,
    };
    let two = [Record::new("a"), Record::new("b")];
    let last_id = (1 << 62) - 1;
    let mut partition = store.partition("t", 0).unwrap();
    for id in [0, 1 << 62, 1 << 63, u64::MAX] {
        is_invalid(partition.append_idempotent(numbered(id, 0, 0), &two, Acks::All), "an id");
    }
    // The largest numbers that two records have.
    let last = u64::MAX - 2;
    let first = partition.append_idempotent(numbered(last_id, u32::MAX, last), &two, Acks::All);
    let first = first.unwrap();
    for round in 0..2 {
        let again = partition.append_idempotent(numbered(last_id, u32::MAX, last), &two, Acks::All);
        let again = again.unwrap();
        assert!(again.duplicate && again.offsets == first.offsets);
        for sequence in [u64::MAX - 1, u64::MAX] {
            let over = numbered(last_id, u32::MAX, sequence);
            let told = partition.append_idempotent(over, &two, Acks::All).unwrap_err();
            assert_eq!(told.written(), Written::No, "{told}");
        }
        let told = partition.append_idempotent(numbered(last_id, u32::MAX, 0), &two, Acks::All);
        assert_eq!(told.unwrap_err().written(), Written::No);
        let stale = numbered(last_id, u32::MAX - 1, 0);
        let told = partition.append_idempotent(stale, &two, Acks::All).unwrap_err();
        assert!(matches!(told, Error::ProducerFenced { .. }), "{told}");
        assert_eq!(partition.high_watermark(), Offset(2));
        if round == 0 {
            drop(partition);
            store = killed(&disk, store);
            partition = store.partition("t", 0).unwrap();
        }
    }
}

#[test]
fn a4_offsets_and_times_at_their_ends_are_answered_wherever_one_is_asked_for() {
    let disk = SimDisk::new(4);
    let store = open(&disk);
    store.create_topic("t", TopicConfig::new()).unwrap();
    let partition = store.partition("t", 0).unwrap();
    (0..3).for_each(|_| _ = append(&partition, "v"));
    let place = TopicPartition::new("t", 0);
    let mut consumer = store.consumer().group("g").start(StartAt::Earliest).build().unwrap();
    consumer.assign(&[("t", 0)]).unwrap();
    for offset in [4, i64::MAX as u64, i64::MAX as u64 + 1, u64::MAX - 1, u64::MAX].map(Offset) {
        let refused = |told: Result<(), Error>, what: &str| {
            let error = told.expect_err(what);
            let named = matches!(
                &error,
                Error::OffsetOutOfRange { end: Offset(3), .. } | Error::TimedOut { .. }
            );
            assert!(named, "{what} {offset}: {error:?}");
        };
        refused(partition.read(offset, ReadOptions::new()).map(drop), "read");
        refused(partition.delete_records(offset).map(drop), "delete");
        refused(partition.wait_for(offset, Duration::ZERO), "wait");
        refused(partition.wait_for_committed(offset, Duration::ZERO), "wait");
        let offsets = [(place.clone(), CommittedOffset::from(offset))].into();
        refused(consumer.commit_offsets(&offsets), "commit");
        if consumer.seek("t", 0, offset).is_ok() {
            let polled = consumer.poll(Duration::ZERO);
            assert!(polled.is_ok_and(|records| records.iter().count() <= 3), "{offset}");
        }
        let mut held = store.producer().transactional_id("id").build().unwrap();
        let mut transaction = held.begin().unwrap();
        let of_group = ConsumerGroupMetadata::of_group("other");
        let told = transaction.send_offsets([(&place, &CommittedOffset::from(offset))], &of_group);
        refused(told.and_then(|()| transaction.commit(SECOND)), "a transaction's");
    }
    drop(consumer);
    assert_eq!(partition.log_start_offset(), Offset(0));
    for (to, expected) in [
        (ResetTo::To(Offset(u64::MAX)), 3),
        (ResetTo::Shift(i64::MIN), 0),
        (ResetTo::Shift(i64::MAX), 3),
        (ResetTo::Time(Timestamp(i64::MIN)), 0),
        (ResetTo::Time(Timestamp(i64::MAX)), 3),
    ] {
        let told = store.reset_offsets("g", "t", to).unwrap();
        assert_eq!(told, [(place.clone(), Offset(expected))], "{to:?}");
    }
    assert_eq!(partition.offset_for_time(Timestamp(i64::MIN)).unwrap(), Some(Offset(0)));
    assert_eq!(partition.offset_for_time(Timestamp(i64::MAX)).unwrap(), None);
}

/// The settings at both of their ends, on a topic that takes records, loses its process and is read.
#[test]
fn a2_settings_at_their_ends_lose_nothing() {
    let disk = SimDisk::new(5);
    let mut store = open(&disk);
    let plain = TopicConfig::new;
    let configs = [
        plain().segment_bytes(4096).max_batch_bytes(1024).index_interval_bytes(64),
        plain().segment_bytes(4096).max_batch_bytes(1 << 30).index_interval_bytes(1 << 20),
        plain().segment_bytes(2_147_479_552).index_interval_bytes(64),
        plain().retention(Retention::bytes(0)).segment_bytes(4096).flush(Flush::Os),
        plain().retention(Retention::bytes(u64::MAX)).segment_bytes(4096),
        plain().segment_age(Duration::from_millis(1)),
        plain().segment_age(Duration::MAX).retention(Retention::age(Duration::MAX)),
        plain().timestamp_before_max(Duration::ZERO).timestamp_after_max(Duration::ZERO),
    ];
    for (number, config) in configs.iter().enumerate() {
        store.create_topic(&format!("t{number}"), config.clone()).unwrap();
    }
    for round in 0..3_u64 {
        for number in 0..configs.len() {
            let partition = store.partition(&format!("t{number}"), 0).unwrap();
            for at in 0..20 {
                let value = format!("{number} {} {}", round * 20 + at, "x".repeat(400));
                let at = append(&partition, &value);
                assert_eq!(at.0 % 20, (round * 20 + at.0) % 20);
            }
        }
        store.run_background();
        store = killed(&disk, store);
    }
    for number in 0..configs.len() {
        let partition = store.partition(&format!("t{number}"), 0).unwrap();
        let start = partition.log_start_offset().0;
        assert!(start == 0 || number == 3, "{number}: {start}");
        let found = values(&partition);
        assert_eq!(found.len() as u64, 60 - start, "{number}");
        for (value, at) in found.iter().zip(start..) {
            assert!(value.starts_with(format!("{number} {at} ").as_bytes()), "{number} {at}");
        }
    }
    let report = store.verify(VerifyOptions::new()).unwrap();
    assert!(report.damages.is_empty() && report.unread.is_empty());
}

/// More partitions and replicas than the metadata of one topic hold, or than there may be.
#[test]
fn a2_more_replicas_than_a_topic_can_have_are_refused_and_leave_nothing() {
    is_invalid(Store::in_memory(0), "no disk");
    is_invalid(Store::in_memory(65), "65 disks");
    let store = Store::in_memory(64).unwrap();
    let wide = |partitions| TopicConfig::new().partitions(partitions).replication_factor(64);
    for partitions in [0, 600_000, 1_000_000, 1_000_001, u32::MAX] {
        is_invalid(store.create_topic("t", wide(partitions)), "partitions");
    }
    is_invalid(store.create_topic("t", TopicConfig::new().replication_factor(65)), "replicas");
    is_invalid(store.create_topic("t", TopicConfig::new().replication_factor(0)), "replicas");
    assert!(store.topics().is_empty());
    store.create_topic("t", wide(1)).unwrap();
    for total in [0, 1, 600_000, u32::MAX] {
        is_invalid(store.add_partitions("t", total), "partitions");
    }
    assert_eq!(store.topic("t").unwrap().partitions, 1);
    assert_eq!(append(&store.partition("t", 0).unwrap(), "v"), Offset(0));
    let directory = tempfile::tempdir().unwrap();
    is_invalid(store.add_disk(directory.path()), "one disk more");
    store.close(SECOND * 30).unwrap();
}

/// Disks in memory are stopped and started, joined by real ones, moved to, copied from and verified like any others.
#[test]
fn a_store_in_memory_does_all_that_an_operator_asks_for() {
    for count in [1_u16, 3] {
        let store = Store::in_memory(count.into()).unwrap();
        let config = TopicConfig::new().partitions(2).replication_factor(count);
        store.create_topic("t", config).unwrap();
        let all = |store: &Store| [0, 1].map(|number| store.partition("t", number).unwrap());
        let mut sent = 0;
        let mut send = |store: &Store, what: &str| {
            for partition in all(store) {
                assert_eq!(append(&partition, what), Offset(sent), "{what}");
            }
            sent += 1;
        };
        send(&store, "first");
        let (last, spare) = (DiskId(count - 1), tempfile::tempdir().unwrap());
        if count == 1 {
            assert!(store.stop_disk(last).is_err(), "none would be left");
        } else {
            store.stop_disk(last).unwrap();
            send(&store, "without one");
            store.start_disk(last).unwrap();
            send(&store, "with all");
            store.stop_disk(last).unwrap();
            store.replace_disk(last, spare.path()).unwrap();
            send(&store, "replaced by a real one");
            assert!(store.replace_disk(last, spare.path()).is_err(), "it is one already");
        }
        let (real, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let added = store.add_disk(real.path()).unwrap();
        assert_eq!(added, DiskId(count));
        store.reassign("t", 0, &[added, DiskId(0)]).unwrap();
        store.reassign("t", 1, &[added]).unwrap();
        send(&store, "moved");
        store.alter_topic("t", TopicUpdate::new().segment_bytes(4096)).unwrap();
        store.add_partitions("t", 3).unwrap();
        store.create_topic("u", TopicConfig::new()).unwrap();
        store.delete_topic("u").unwrap();
        let expected: Vec<_> = values(&all(&store)[0]);
        let report = store.backup(target.path()).unwrap();
        assert_eq!((report.partitions, report.damages.len()), (3, 0));
        assert_eq!(values(&all(&Store::open(target.path()).unwrap())[1]), expected);
        let verified = store.verify(VerifyOptions::new().repair(true)).unwrap();
        assert!(verified.damages.is_empty() && verified.unread.is_empty());
        // Back to memory: what the real one has is nobody's any more.
        store.reassign("t", 0, &[DiskId(0)]).unwrap();
        store.reassign("t", 1, &[DiskId(0)]).unwrap();
        send(&store, "back");
        assert!(store.disks().iter().all(|disk| disk.state == DiskState::Online));
        assert_eq!(values(&all(&store)[1]).len() as u64, sent);
        store.close(SECOND * 30).unwrap();
    }
}
