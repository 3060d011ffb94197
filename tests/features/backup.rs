//! Backups: consistent while appends go on, whole or none, and stores of their own.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use oncelog::simulation::{Clock, Fault, Hang, SimDisk};
use oncelog::{
    Acks, BackupReport, DiskId, Error, Flush, Isolation, Offset, Partition, ProducerEpoch,
    ProducerId, ProducerSequence, ReadOptions, Record, StartAt, Store, Timestamp, TopicConfig,
    VerifyOptions,
};

const NOW: Timestamp = Timestamp(1_000_000);
const SECOND: Duration = Duration::from_secs(1);

fn value(at: u64) -> Vec<u8> {
    format!("{at} {}", "x".repeat(usize::try_from(at % 40).unwrap())).into_bytes()
}

fn append(partition: &Partition, values: std::ops::Range<u64>) {
    for at in values {
        let appended = partition.append(&[Record::new(&value(at))], Acks::All).unwrap();
        assert_eq!(appended.offsets.start, Offset(at));
    }
}

/// All records up to the watermark, each at its place. Returns the end.
fn check(partition: &Partition) -> u64 {
    let mut next = partition.log_start_offset();
    let end = partition.high_watermark();
    while next < end {
        let records = partition.read(next, ReadOptions::new()).unwrap();
        for record in &records {
            assert_eq!(record.offset(), next);
            assert_eq!(record.value().unwrap(), value(next.0));
            next = next.next();
        }
    }
    end.0
}

fn open(disks: &[SimDisk], clock: &Clock) -> Result<Store, Error> {
    let builder = Store::builder().clock(clock.clone()).scrub_bytes_per_second(0);
    disks.iter().fold(builder, |builder, disk| builder.simulated_disk(disk.clone())).open()
}

fn config(disks: &[SimDisk]) -> TopicConfig {
    TopicConfig::new()
        .partitions(2)
        .replication_factor(u16::try_from(disks.len()).unwrap())
        .segment_bytes(4096)
        .index_interval_bytes(256)
}

/// As [`filled`], closed and opened again: what is read comes from files.
fn settled(count: u64) -> (Vec<SimDisk>, Clock, Store) {
    let (disks, clock, store) = filled(count);
    store.close(SECOND).unwrap();
    drop(store);
    let store = open(&disks, &clock).unwrap();
    (disks, clock, store)
}

/// A store with 400 records in each of two partitions.
fn filled(count: u64) -> (Vec<SimDisk>, Clock, Store) {
    let disks: Vec<_> = (0..count).map(|at| SimDisk::new(at + 1)).collect();
    let clock = Clock::manual(NOW);
    let store = open(&disks, &clock).unwrap();
    store.create_topic("t", config(&disks)).unwrap();
    for number in 0..2 {
        append(&store.partition("t", number).unwrap(), 0..400);
    }
    (disks, clock, store)
}

#[test]
fn a_backup_holds_what_was_acknowledged_before_it_while_appends_go_on() {
    let directories: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let target = tempfile::tempdir().unwrap();
    let store = directories
        .iter()
        .fold(Store::builder(), |builder, directory| builder.disk(directory.path()))
        .open()
        .unwrap();
    let config = TopicConfig::new()
        .partitions(3)
        .replication_factor(3)
        .min_insync_replicas(2)
        .flush(Flush::Os)
        .segment_bytes(256 << 10);
    store.create_topic("t", config).unwrap();
    let ends: Vec<_> = (0..3).map(|_| AtomicU64::new(0)).collect();
    let (done, limit) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for (number, end) in (0..).zip(&ends) {
            let partition = store.partition("t", number).unwrap();
            let (done, limit) = (&done, &limit);
            scope.spawn(move || {
                let mut at = 0;
                while !done.load(Ordering::Acquire) {
                    if at == limit.load(Ordering::Acquire) {
                        std::thread::yield_now();
                        continue;
                    }
                    append(&partition, at..at + 1);
                    at += 1;
                    end.store(at, Ordering::Release);
                }
            });
        }
        for round in 0..3 {
            // Enough for the appenders to be at it until the copy is made.
            limit.store(3000 * (round + 1) + 20_000, Ordering::Release);
            while ends.iter().any(|end| end.load(Ordering::Acquire) < 3000 * (round + 1)) {
                std::thread::yield_now();
            }
            let acknowledged: Vec<_> = ends.iter().map(|end| end.load(Ordering::Acquire)).collect();
            let path = target.path().join(round.to_string());
            let report = store.backup(&path).unwrap();
            assert_eq!((report.partitions, report.damages.len()), (3, 0));
            let copy = Store::open(&path).unwrap();
            for (number, acknowledged) in (0..).zip(acknowledged) {
                let partition = copy.partition("t", number).unwrap();
                let end = check(&partition);
                assert!(end >= acknowledged, "{end} of {acknowledged}");
                append(&partition, end..end + 10);
            }
            assert_eq!(copy.verify(VerifyOptions::new()).unwrap().damages, []);
            copy.close(SECOND * 10).unwrap();
        }
        done.store(true, Ordering::Release);
    });
    assert_eq!(store.verify(VerifyOptions::new()).unwrap().damages, [], "the store is as it was");
}

#[test]
fn a_copy_is_a_store_of_its_own_that_grows_onto_other_disks_and_survives_a_power_loss() {
    let (_disks, clock, store) = filled(3);
    let target = SimDisk::new(9);
    let report = store.backup_to_simulated_disk(target.clone()).unwrap();
    assert_eq!(report.partitions, 2);
    append(&store.partition("t", 0).unwrap(), 400..450);
    // Nothing of it is left to chance.
    target.power_loss();
    let copy = open(std::slice::from_ref(&target), &clock).unwrap();
    for number in 0..2 {
        let partition = copy.partition("t", number).unwrap();
        assert_eq!(check(&partition), 400, "what came later is not in it");
        assert_eq!(partition.replicas(), [DiskId(0)]);
        append(&partition, 400..410);
    }
    let second = copy.add_simulated_disk(SimDisk::new(10)).unwrap();
    copy.reassign("t", 0, &[second, DiskId(0)]).unwrap();
    let partition = copy.partition("t", 0).unwrap();
    append(&partition, 410..420);
    assert_eq!(check(&partition), 420);
    assert_eq!(copy.verify(VerifyOptions::new()).unwrap().damages, []);
    // And again from the copy.
    let third = SimDisk::new(11);
    copy.backup_to_simulated_disk(third.clone()).unwrap();
    let copy = open(&[third], &clock).unwrap();
    assert_eq!(check(&copy.partition("t", 0).unwrap()), 420);
    append(&store.partition("t", 0).unwrap(), 450..460);
}

#[test]
fn a_directory_that_is_not_empty_is_refused_and_left_alone() {
    let (disks, clock, store) = filled(1);
    let foreign = SimDisk::new(9);
    foreign.write_file("letters/one", b"mine");
    let other = SimDisk::new(10);
    drop(open(std::slice::from_ref(&other), &clock).unwrap());
    for target in [&foreign, &other] {
        let before: Vec<_> =
            target.files().into_iter().map(|name| (target.read_file(&name), name)).collect();
        let error = store.backup_to_simulated_disk(target.clone()).unwrap_err();
        assert!(matches!(error, Error::UnsupportedFormat { .. }), "{error}");
        for (bytes, name) in before {
            assert_eq!(target.read_file(&name), bytes, "{name}");
        }
    }
    // The store's own directory is in use.
    let error = store.backup_to_simulated_disk(disks[0].clone()).unwrap_err();
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    assert_eq!(check(&store.partition("t", 0).unwrap()), 400);
}

#[test]
fn s10_a_target_with_too_little_room_gets_nothing_and_can_be_tried_again() {
    let (_disks, clock, store) = filled(1);
    let target = SimDisk::new(9);
    for free in [0, 5_000, 20_000, 40_000] {
        target.set_free_bytes(Some(free));
        let error = store.backup_to_simulated_disk(target.clone()).unwrap_err();
        assert!(matches!(error, Error::NoSpace { .. }), "{free}: {error}");
        assert!(!target.files().iter().any(|name| name.starts_with("topics")), "{free}");
    }
    target.set_free_bytes(None);
    store.backup_to_simulated_disk(target.clone()).unwrap();
    let copy = open(&[target], &clock).unwrap();
    assert_eq!(check(&copy.partition("t", 1).unwrap()), 400);
}

#[test]
fn s9_s19_a_backup_that_is_cut_short_is_no_store() {
    let (_disks, clock, store) = filled(1);
    let whole = SimDisk::new(9);
    let before = whole.calls();
    store.backup_to_simulated_disk(whole.clone()).unwrap();
    let calls = whole.calls() - before;
    assert!(calls > 100, "{calls}");
    let mut refused = 0;
    for at in (1..=calls).step_by(7) {
        for how in ["killed", "power", "failed"] {
            let target = SimDisk::new(at);
            if how == "failed" {
                target.fail_from(at, Fault::Eio);
            } else {
                target.crash_at(at);
            }
            let outcome = store.backup_to_simulated_disk(target.clone());
            match how {
                "killed" => target.process_restart(),
                "power" => target.power_loss(),
                _ => target.heal(),
            }
            let copy = match open(std::slice::from_ref(&target), &clock) {
                Ok(copy) => copy,
                Err(error) => {
                    assert!(outcome.is_err(), "{how} at {at}: {error}");
                    assert!(
                        matches!(error, Error::UnsupportedFormat { .. }),
                        "{how} {at}: {error}"
                    );
                    refused += 1;
                    continue;
                }
            };
            if copy.topics().is_empty() {
                assert!(outcome.is_err(), "{how} at {at}: a fresh store where nothing was kept");
                continue;
            }
            for number in 0..2 {
                assert_eq!(check(&copy.partition("t", number).unwrap()), 400, "{how} at {at}");
            }
        }
    }
    assert!(refused > 20, "{refused}");
    append(&store.partition("t", 0).unwrap(), 400..410);
}

#[test]
fn s3_damage_is_passed_by_where_another_replica_is_sound_and_told_where_none_is() {
    for replicas in [1, 3] {
        let (disks, clock, store) = filled(replicas);
        let leader = usize::from(store.partition("t", 0).unwrap().leader().unwrap().0);
        store.close(SECOND).unwrap();
        drop(store);
        let mut names = disks[leader].files();
        names.retain(|name| name.contains("-t/0/") && name.ends_with(".log"));
        let mut bytes = disks[leader].read_file(&names[1]);
        bytes[1000] ^= 4;
        disks[leader].write_file(&names[1], &bytes);
        let store = open(&disks, &clock).unwrap();
        let target = SimDisk::new(9);
        let report = store.backup_to_simulated_disk(target.clone()).unwrap();
        let copy = open(&[target], &clock).unwrap();
        let partition = copy.partition("t", 0).unwrap();
        if replicas == 3 {
            assert_eq!(report.damages, []);
            assert_eq!(check(&partition), 400);
            continue;
        }
        let [(_, lost)] = report.damages.as_slice() else { panic!("{report:?}") };
        let mut next = Offset(0);
        while next.0 < 400 {
            match partition.read(next, ReadOptions::new()) {
                Ok(records) => {
                    for record in &records {
                        assert_eq!(record.value().unwrap(), value(record.offset().0));
                        assert!(!lost.contains(&record.offset()));
                    }
                    next = records.next_offset();
                }
                Err(Error::Corrupt { offsets, .. }) => {
                    assert_eq!(&offsets, lost);
                    next = offsets.end;
                }
                Err(error) => panic!("{error}"),
            }
        }
        append(&partition, 400..410);
        // The gap is no torn tail for any later opening.
        drop((partition, copy));
    }
}

#[test]
fn a_copy_begins_where_the_log_does_and_keeps_the_numbers_of_its_producers() {
    let (_disks, clock, store) = filled(1);
    let partition = store.partition("t", 0).unwrap();
    let mut producer = store.producer().transactional_id("id").build().unwrap();
    for at in 400..420 {
        let mut transaction = producer.begin().unwrap();
        transaction.append("t", 0, &[Record::new(&value(at))]).unwrap();
        transaction.commit(SECOND).unwrap();
    }
    partition.delete_records(Offset(250)).unwrap();
    let target = SimDisk::new(9);
    store.backup_to_simulated_disk(target.clone()).unwrap();
    let copy = open(&[target], &clock).unwrap();
    let copied = copy.partition("t", 0).unwrap();
    assert_eq!(copied.log_start_offset(), Offset(250));
    let records = |partition: &Partition| {
        let (mut next, mut values) = (Offset(250), Vec::new());
        loop {
            let options = ReadOptions::new().isolation(Isolation::ReadCommitted);
            let records = partition.read(next, options).unwrap();
            values.extend(records.iter().map(|r| (r.offset(), r.value().map(<[u8]>::to_vec))));
            if records.next_offset() == next {
                return values;
            }
            next = records.next_offset();
        }
    };
    let kept = records(&partition);
    assert_eq!(kept.len(), 150 + 20);
    assert_eq!(records(&copied), kept);
    // The name goes on with a later epoch.
    let mut producer = copy.producer().transactional_id("id").build().unwrap();
    let mut transaction = producer.begin().unwrap();
    transaction.append("t", 0, &[Record::new("more")]).unwrap();
    transaction.commit(SECOND).unwrap();
    assert_eq!(copied.last_stable_offset(), copied.high_watermark());
}

#[test]
fn a_backup_has_all_of_a_transaction_or_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let target = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    store.create_topic("t", TopicConfig::new().partitions(4).flush(Flush::Os)).unwrap();
    let done = AtomicBool::new(false);
    let count = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut producer = store.producer().transactional_id("id").build().unwrap();
            while !done.load(Ordering::Acquire) {
                let mut transaction = producer.begin().unwrap();
                for partition in 0..4 {
                    transaction.append("t", partition, &[Record::new("one")]).unwrap();
                }
                transaction.commit(SECOND * 10).unwrap();
                count.fetch_add(1, Ordering::AcqRel);
            }
        });
        for round in 0..4 {
            let committed = count.load(Ordering::Acquire) + 20;
            while count.load(Ordering::Acquire) < committed {
                std::thread::yield_now();
            }
            let path = target.path().join(round.to_string());
            store.backup(&path).unwrap();
            let copy = Store::open(&path).unwrap();
            let seen: Vec<_> = (0..4)
                .map(|number| {
                    let partition = copy.partition("t", number).unwrap();
                    let options = ReadOptions::new().isolation(Isolation::ReadCommitted);
                    let (mut next, mut seen) = (Offset(0), 0_u64);
                    loop {
                        let records = partition.read(next, options).unwrap();
                        seen += records.iter().count() as u64;
                        if records.next_offset() == next {
                            break seen;
                        }
                        next = records.next_offset();
                    }
                })
                .collect();
            assert!(seen.iter().all(|count| *count == seen[0]), "{seen:?}");
            assert!(seen[0] >= committed, "{seen:?} of {committed}");
        }
        done.store(true, Ordering::Release);
    });
}

/// Backs the store up to a disk that hangs in the first flush, which comes when the first partition has been read for the
/// most part; `meanwhile` happens then.
fn back_up_while(store: &Store, target: &SimDisk, meanwhile: impl FnOnce()) -> BackupReport {
    target.hang(Hang::Syncs);
    std::thread::scope(|scope| {
        let backup = scope.spawn(|| store.backup_to_simulated_disk(target.clone()));
        while target.held_calls() == 0 {
            std::thread::yield_now();
        }
        meanwhile();
        target.answer();
        backup.join().unwrap().unwrap()
    })
}

/// It was in the copy, with all of it damaged.
#[test]
fn a_topic_that_is_deleted_while_it_is_copied_is_left_out() {
    for again in [false, true] {
        let (_disks, clock, store) = filled(1);
        store.create_topic("u", TopicConfig::new()).unwrap();
        append(&store.partition("u", 0).unwrap(), 0..20);
        let target = SimDisk::new(9);
        let report = back_up_while(&store, &target, || {
            store.delete_topic("t").unwrap();
            if again {
                store.create_topic("t", TopicConfig::new().partitions(3)).unwrap();
                append(&store.partition("t", 0).unwrap(), 0..5);
            }
        });
        assert_eq!((report.partitions, report.damages.as_slice()), (1, &[][..]));
        assert!(!target.files().iter().any(|name| name.contains("-t/")), "{:?}", target.files());
        let copy = open(&[target], &clock).unwrap();
        let names: Vec<_> = copy.topics().into_iter().map(|topic| topic.name).collect();
        assert_eq!(names, ["u"]);
        assert_eq!(check(&copy.partition("u", 0).unwrap()), 20);
        copy.create_topic("t", TopicConfig::new()).unwrap();
        append(&copy.partition("t", 0).unwrap(), 0..5);
        assert_eq!(copy.verify(VerifyOptions::new()).unwrap().damages, []);
    }
}

/// The cut was that of the moment before; what came since is not in the copy.
#[test]
fn topics_and_partitions_that_come_while_others_are_copied_are_not_in_the_copy() {
    let (_disks, clock, store) = filled(1);
    let target = SimDisk::new(9);
    let report = back_up_while(&store, &target, || {
        store.create_topic("u", TopicConfig::new()).unwrap();
        append(&store.partition("u", 0).unwrap(), 0..5);
        store.add_partitions("t", 4).unwrap();
        append(&store.partition("t", 3).unwrap(), 0..5);
    });
    assert_eq!((report.partitions, report.damages.as_slice()), (2, &[][..]));
    let copy = open(&[target], &clock).unwrap();
    let topics: Vec<_> = copy.topics().into_iter().map(|t| (t.name, t.partitions)).collect();
    assert_eq!(topics, [("t".to_owned(), 2)]);
    copy.add_partitions("t", 3).unwrap();
    append(&copy.partition("t", 2).unwrap(), 0..5);
    copy.create_topic("u", TopicConfig::new()).unwrap();
    append(&copy.partition("u", 0).unwrap(), 0..5);
}

/// What told of them was written down behind the cut by the time their partition was copied: the copy knew no producer
/// whose records retention had taken, and a named one began anew.
#[test]
fn a_copy_knows_the_producers_of_records_that_retention_takes_while_it_is_made() {
    let (disks, clock, store) = filled(1);
    store.create_topic("u", config(&disks).partitions(1)).unwrap();
    let partition = store.partition("u", 0).unwrap();
    let large = "x".repeat(1500);
    let id = ProducerId(77);
    let as_device = |partition: &Partition, sequence| {
        let producer = ProducerSequence { id, epoch: ProducerEpoch(0), sequence };
        partition.append_idempotent(producer, &[Record::new(&large)], Acks::All).unwrap()
    };
    let named = store.producer().name("n").build().unwrap();
    for at in 0..10 {
        named.send(Record::to("u").partition(0).value(&large)).unwrap().wait(SECOND).unwrap();
        as_device(&partition, at);
    }
    // Others go on, so that what is written down next tells of more than the cut.
    for round in 0..3 {
        partition.append(&[Record::new(&large)], Acks::All).unwrap();
        partition.delete_records(Offset(15 + round)).unwrap();
    }
    let cut = partition.high_watermark();
    let target = SimDisk::new(9);
    let report = back_up_while(&store, &target, || {
        for round in 1..4 {
            for at in 0..10 {
                partition.append(&[Record::new(&large)], Acks::All).unwrap();
                as_device(&partition, round * 10 + at);
            }
            partition.delete_records(partition.high_watermark()).unwrap();
        }
    });
    assert_eq!(report.damages, []);
    let copy = open(&[target], &clock).unwrap();
    let copied = copy.partition("u", 0).unwrap();
    assert_eq!(copied.high_watermark(), cut);
    let named = copy.producer().name("n").build().unwrap();
    assert_eq!(named.next_sequence("u", 0).unwrap(), 10);
    assert!(as_device(&copied, 9).duplicate, "it is in the copy's past");
    assert_eq!(as_device(&copied, 10).offsets.start, cut);
}

/// All values of a partition from the first that is there on, as committed readers see them.
fn committed(partition: &Partition) -> Vec<u64> {
    let (mut next, mut values) = (partition.log_start_offset(), Vec::new());
    loop {
        let options = ReadOptions::new().isolation(Isolation::ReadCommitted);
        let records = partition.read(next, options).unwrap();
        let number = |value: &[u8]| String::from_utf8_lossy(value).parse::<u64>().unwrap();
        values.extend(records.iter().map(|record| number(record.value().unwrap())));
        if records.next_offset() == next {
            return values;
        }
        next = records.next_offset();
    }
}

/// Whether the values are those from some number on, without a gap; gives the end.
fn end_of_row(values: &[u64]) -> u64 {
    for (before, next) in values.iter().zip(values.iter().skip(1)) {
        assert_eq!(before + 1, *next);
    }
    values.last().map_or(0, |last| last + 1)
}

/// Ends what goes on meanwhile, also when the test fails.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Sends the next numbers, as somebody who looks up where to go on.
fn send_named(store: &Store, done: &AtomicBool, count: u64) {
    let producer = store.producer().name("n").build().unwrap();
    let first = producer.next_sequence("in", 0).unwrap();
    for next in first..first.saturating_add(count) {
        if done.load(Ordering::Acquire) {
            break;
        }
        let value = next.to_string();
        let sent = producer.send(Record::to("in").partition(0).value(&value)).unwrap();
        sent.wait(SECOND * 30).unwrap();
        std::thread::sleep(SECOND / 5000);
    }
}

/// Takes numbers over from `in` to `out`, each once; every few transactions somebody else goes on.
fn pipe(store: &Store, done: &AtomicBool, rounds: u64) {
    let mut consumer = store.consumer().group("pipe").start(StartAt::Earliest).build().unwrap();
    consumer.subscribe(&["in"]).unwrap();
    let mut producer = None;
    for round in 0..rounds {
        if done.load(Ordering::Acquire) {
            break;
        }
        let records = consumer.poll(SECOND / 100).unwrap();
        if records.is_empty() {
            continue;
        }
        if round % 3 == 0 {
            producer = None;
        }
        let open = || store.producer().transactional_id("pipe").build().unwrap();
        let mut transaction = producer.get_or_insert_with(open).begin().unwrap();
        for record in &records {
            let value = record.value().unwrap();
            let half = u32::try_from(record.offset().0 % 2).unwrap();
            transaction.append("out", half, &[Record::new(value)]).unwrap();
        }
        transaction
            .send_offsets(&consumer.position_map(), &consumer.group_metadata())
            .and_then(|()| transaction.commit(SECOND * 30))
            .unwrap();
    }
}

/// What went in, what came out of it, and how far the pipe says that it is: they fit.
fn judge(store: &Store, what: &str) -> u64 {
    let input = store.partition("in", 0).unwrap();
    // A record's number is its offset; retention may have taken all of them.
    let sent = end_of_row(&committed(&input)).max(input.log_start_offset().0);
    let named = store.producer().name("n").build().unwrap();
    assert_eq!(named.next_sequence("in", 0).unwrap(), sent, "{what}");
    let halves = (0..2).map(|number| committed(&store.partition("out", number).unwrap()));
    let mut out: Vec<_> = halves.flatten().collect();
    out.sort_unstable();
    let end = end_of_row(&out);
    assert_eq!(out.len() as u64, end, "{what}: it begins with the first");
    let consumer = store.consumer().group("pipe").build().unwrap();
    let known = consumer.committed(&[("in", 0)]).unwrap();
    let taken = known.values().next().map_or(0, |known| known.offset.0);
    assert_eq!(taken, end, "{what}: what is committed is what came out");
    assert!(taken <= sent, "{what}");
    sent
}

#[test]
fn what_goes_on_against_a_copy_neither_repeats_nor_skips() {
    for flush in [Flush::Os, Flush::OnAck] {
        let scratch = tempfile::tempdir().unwrap();
        let store =
            Store::builder().disk(scratch.path().join("store")).flush(flush).open().unwrap();
        let config = || TopicConfig::new().segment_bytes(64 << 10);
        store.create_topic("in", config()).unwrap();
        store.create_topic("out", config().partitions(2)).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _done = OnDrop(&done);
            scope.spawn(|| send_named(&store, &done, u64::MAX));
            scope.spawn(|| pipe(&store, &done, u64::MAX));
            scope.spawn(|| {
                // Retention, as far as the pipe is.
                while !done.load(Ordering::Acquire) {
                    let consumer = store.consumer().group("pipe").build().unwrap();
                    let known = consumer.committed(&[("in", 0)]).unwrap();
                    if let Some(taken) = known.values().next() {
                        store.partition("in", 0).unwrap().delete_records(taken.offset).unwrap();
                    }
                    store.create_topic("fleeting", TopicConfig::new().partitions(3)).unwrap();
                    append(&store.partition("fleeting", 1).unwrap(), 0..20);
                    store.delete_topic("fleeting").unwrap();
                }
            });
            for round in 0..4 {
                std::thread::sleep(SECOND / 10);
                let path = scratch.path().join(round.to_string());
                let report = store.backup(&path).unwrap();
                assert_eq!(report.damages, [], "{flush:?} {round}");
                for again in 0..2 {
                    let copy = Store::open(&path).unwrap();
                    let before = judge(&copy, &format!("{flush:?} {round} {again}"));
                    let never = AtomicBool::new(false);
                    send_named(&copy, &never, 20);
                    pipe(&copy, &never, 30);
                    let after = judge(&copy, &format!("{flush:?} {round} {again}, on"));
                    assert_eq!(after, before + 20);
                    assert_eq!(copy.verify(VerifyOptions::new()).unwrap().damages, []);
                    copy.close(SECOND * 10).unwrap();
                }
            }
        });
        judge(&store, "the store");
    }
}

/// One that failed as it wrote who it was left that behind, without anything else: it could not be tried again.
#[test]
fn s9_a_target_that_fails_once_can_be_tried_again() {
    let disk = SimDisk::new(1);
    let clock = Clock::manual(NOW);
    let store = open(std::slice::from_ref(&disk), &clock).unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    append(&store.partition("t", 0).unwrap(), 0..20);
    for at in 1.. {
        let target = SimDisk::new(9);
        target.fail_call(at, Fault::Eio);
        let before = target.calls();
        let outcome = store.backup_to_simulated_disk(target.clone());
        let is_reached = target.calls() - before >= at;
        target.heal();
        if let Err(error) = outcome {
            let again = store.backup_to_simulated_disk(target.clone());
            assert!(again.is_ok(), "{at}: {error}, then {again:?}");
        }
        let copy = open(&[target], &clock).unwrap();
        assert_eq!(check(&copy.partition("t", 0).unwrap()), 20, "{at}");
        if !is_reached {
            return;
        }
    }
}

/// And one of the source, in which nothing is to change.
#[test]
fn s9_a_source_that_fails_once_while_it_is_copied_is_as_it_was() {
    for at in 1.. {
        let (disks, clock, store) = settled(1);
        let before = disks[0].calls();
        disks[0].fail_call(at, Fault::Eio);
        let target = SimDisk::new(9);
        let outcome = store.backup_to_simulated_disk(target.clone());
        let is_reached = disks[0].calls() - before >= at;
        disks[0].heal();
        if let Err(error) = outcome {
            let again = store.backup_to_simulated_disk(target.clone());
            assert!(again.is_ok(), "{at}: {error}, then {again:?}");
        }
        let copy = open(&[target], &clock).unwrap();
        for number in 0..2 {
            assert_eq!(check(&copy.partition("t", number).unwrap()), 400, "{at}");
            append(&store.partition("t", number).unwrap(), 400..410);
        }
        if !is_reached {
            return;
        }
    }
}

/// Flips a bit at the place in the record of the offset that begins a batch there, or in the batch's header.
fn rot(disk: &SimDisk, name: &str, offset: u64, in_header: bool) {
    let mut bytes = disk.read_file(name);
    let wanted = value(offset);
    let at = bytes.windows(wanted.len()).position(|window| window == wanted).unwrap();
    bytes[if in_header { at - 40 } else { at }] ^= 4;
    disk.write_file(name, &bytes);
}

/// What the copy has of a partition that had 400 records: all but these.
fn assert_lacks(copy: &Partition, lost: &[std::ops::Range<Offset>]) {
    let (mut next, mut lacking) = (Offset(0), Vec::new());
    while next < Offset(400) {
        match copy.read(next, ReadOptions::new().max_bytes(1)) {
            Ok(records) => {
                for record in &records {
                    assert_eq!(record.value().unwrap(), value(record.offset().0));
                }
                next = records.next_offset();
            }
            Err(Error::Corrupt { offsets, .. }) => {
                next = offsets.end;
                lacking.push(offsets);
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(lacking, lost);
}

/// One sector of the only replica, and there was no backup at all; and readers missed what lies some kilobytes before it.
#[test]
fn s3_sectors_that_cannot_be_read_are_told_and_all_else_is_copied() {
    for sectors in [&[0][..], &[1], &[20], &[20, 21, 22], &[9, 31], &[62, 63, 64]] {
        for has_side in [true, false] {
            let disks = [SimDisk::new(1)];
            let clock = Clock::manual(NOW);
            let store = open(&disks, &clock).unwrap();
            store.create_topic("t", config(&disks).segment_bytes(32 << 10)).unwrap();
            for number in 0..2 {
                append(&store.partition("t", number).unwrap(), 0..400);
            }
            store.close(SECOND).unwrap();
            drop(store);
            let mut names = disks[0].files();
            names.retain(|name| name.contains("-t/0/") && name.ends_with(".log"));
            let broken = &names[0];
            if !has_side {
                disks[0].remove_file(&broken.replace(".log", ".side"));
            }
            sectors.iter().for_each(|sector| disks[0].break_sector(broken, *sector));
            let store = open(&disks, &clock).unwrap();
            let target = SimDisk::new(9);
            let what = format!("{sectors:?}, {has_side}");
            let report = store.backup_to_simulated_disk(target.clone()).expect(&what);
            assert_eq!(report.partitions, 2);
            let lost: Vec<_> = report.damages.iter().map(|(_, offsets)| offsets.clone()).collect();
            assert!(report.damages.iter().all(|(name, _)| name.partition() == 0), "{what}");
            // A page each, of batches that are about 110 bytes long.
            let count: u64 = lost.iter().map(|offsets| offsets.end.0 - offsets.start.0).sum();
            assert!((1..=42 * sectors.len() as u64).contains(&count), "{what}: {lost:?}");
            // Nor is more out of reach of the store's own readers.
            let partition = store.partition("t", 0).unwrap();
            for at in (0..400).map(Offset) {
                let read = partition.read(at, ReadOptions::new());
                match read {
                    Ok(records) => assert_eq!(records.iter().next().unwrap().offset(), at),
                    Err(error) => {
                        assert!(matches!(error, Error::Io { .. }), "{what}: {error}");
                        assert!(lost.iter().any(|lost| lost.contains(&at)), "{what}: {at}");
                    }
                }
            }
            let copy = open(&[target], &clock).unwrap();
            assert_lacks(&copy.partition("t", 0).unwrap(), &lost);
            assert_eq!(check(&copy.partition("t", 1).unwrap()), 400);
            let found: Vec<_> = copy.verify(VerifyOptions::new()).unwrap().damages;
            let found: Vec<_> = found.into_iter().map(|damage| damage.offsets).collect();
            assert_eq!(found, lost, "{what}: it does not pass for whole");
            append(&copy.partition("t", 0).unwrap(), 400..410);
        }
    }
}

/// A disk that has failed is no damage: what is on it may be had another time.
#[test]
fn s13_a_source_that_fails_for_good_is_no_damage() {
    let mut failed = 0;
    for at in (1..).step_by(3) {
        let (disks, clock, store) = settled(1);
        let before = disks[0].calls();
        disks[0].fail_from(at, Fault::Eio);
        let target = SimDisk::new(9);
        let outcome = store.backup_to_simulated_disk(target.clone());
        let is_reached = disks[0].calls() - before >= at;
        disks[0].heal();
        match outcome {
            Ok(report) => {
                assert_eq!(report.damages, [], "{at}");
                let copy = open(&[target], &clock).unwrap();
                assert_eq!(check(&copy.partition("t", 0).unwrap()), 400, "{at}");
            }
            Err(error) => {
                assert!(matches!(error, Error::Io { .. }), "{at}: {error}");
                failed += 1;
            }
        }
        if !is_reached {
            break;
        }
    }
    assert!(failed > 3, "{failed}");
}

/// Where one replica lacks more than another, the copy lacked all that the one lacks which was asked last.
#[test]
fn s3_the_copy_lacks_only_what_all_replicas_lack() {
    for more in 0..2 {
        for unreadable in [false, true] {
            let (disks, clock, store) = filled(2);
            store.close(SECOND).unwrap();
            drop(store);
            let mut names = disks[0].files();
            names.retain(|name| name.contains("-t/0/") && name.ends_with(".log"));
            disks.iter().for_each(|disk| rot(disk, &names[0], 5, false));
            if unreadable {
                disks[more].break_sector(&names[0], 2);
            } else {
                rot(&disks[more], &names[0], 6, true);
            }
            let store = open(&disks, &clock).unwrap();
            let target = SimDisk::new(9);
            let report = store.backup_to_simulated_disk(target.clone()).unwrap();
            let lost: Vec<_> = report.damages.iter().map(|(_, offsets)| offsets.clone()).collect();
            assert_eq!(lost, [Offset(5)..Offset(6)], "{more}, {unreadable}");
            let copy = open(&[target], &clock).unwrap();
            assert_lacks(&copy.partition("t", 0).unwrap(), &lost);
        }
    }
}

/// What lies in a topic's directory goes with the topic.
#[test]
fn a_backup_does_not_lie_in_the_store_that_it_is_of() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("data");
    let store = Store::open(&directory).unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    append(&store.partition("t", 0).unwrap(), 0..10);
    let topics: Vec<_> = std::fs::read_dir(directory.join("topics")).unwrap().collect();
    let topic = topics.into_iter().map(|entry| entry.unwrap().path()).next_back().unwrap();
    let linked = root.path().join("linked");
    std::os::unix::fs::symlink(&topic, &linked).unwrap();
    for inside in [directory.join("today"), topic.join("today"), linked.join("today")] {
        let refused = store.backup(&inside);
        let is_told = matches!(&refused, Err(Error::InvalidConfig { key, .. }) if key == "backup");
        assert!(is_told, "{}: {refused:?}", inside.display());
    }
    let beside = root.path().join("data-today");
    store.backup(&beside).unwrap();
    store.close(SECOND).unwrap();
    let refused = store.backup(root.path().join("later"));
    assert!(matches!(refused, Err(Error::Closed)), "{refused:?}");
    assert!(!root.path().join("later").exists(), "made by a call that was refused");
    let copy = Store::open(&beside).unwrap();
    assert_eq!(check(&copy.partition("t", 0).unwrap()), 10);
}
