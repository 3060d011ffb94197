//! Faults and bad input (RELIABILITY S and A) that the larger stories do not single out. `tests/README.md`
//! tells where each of them is tested.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::channel;
use std::time::Duration;

use oncelog::simulation::{Clock, Fault, SimDisk};
use oncelog::{
    Acks, Error, ErrorClass, EventKind, Flush, Offset, Partition, ProducerEpoch, ProducerId,
    ProducerSequence, ReadOptions, Record, Retention, Store, Timestamp, TopicConfig, Written,
};

const NOW: Timestamp = Timestamp(1_000_000);

fn open(disk: &SimDisk) -> Result<Store, Error> {
    Store::builder().simulated_disk(disk.clone()).clock(Clock::manual(NOW)).open()
}

fn value(at: u64) -> Vec<u8> {
    format!("{at} {}", "x".repeat(40)).into_bytes()
}

fn append(partition: &Partition, values: std::ops::Range<u64>) {
    for at in values {
        partition.append(&[Record::new(&value(at))], Acks::All).unwrap();
    }
}

fn small_segments() -> TopicConfig {
    TopicConfig::new().segment_bytes(4096).index_interval_bytes(256)
}

/// A store of a hundred records in several segments, closed.
fn closed_store(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    let store = open(&disk).unwrap();
    store.create_topic("t", small_segments()).unwrap();
    append(&store.partition("t", 0).unwrap(), 0..100);
    store.run_background();
    store.close(Duration::from_secs(1)).unwrap();
    disk
}

type Contents = BTreeMap<u64, Vec<u8>>;

/// Everything that can be read, and the damaged ranges.
fn contents(partition: &Partition) -> (Contents, Vec<(u64, u64)>) {
    let (mut records, mut damages) = (BTreeMap::new(), Vec::new());
    let mut offset = partition.log_start_offset();
    while offset < partition.high_watermark() {
        offset = match partition.read(offset, ReadOptions::new()) {
            Ok(batch) => {
                for record in &batch {
                    records.insert(record.offset().0, record.value().unwrap().to_vec());
                }
                batch.next_offset()
            }
            Err(Error::Corrupt { offsets, .. }) => {
                damages.push((offsets.start.0, offsets.end.0));
                offsets.end
            }
            Err(error) => panic!("{error}"),
        };
    }
    (records, damages)
}

/// CRC-32, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    })
}

fn files(disk: &SimDisk) -> BTreeMap<String, Vec<u8>> {
    disk.files().into_iter().map(|name| (name.clone(), disk.read_file(&name))).collect()
}

fn logs(disk: &SimDisk) -> Vec<String> {
    let mut names = disk.files();
    names.retain(|name| name.ends_with(".log"));
    names.sort();
    names
}

#[test]
fn s1_a_torn_tail_is_cut_kept_aside_and_reported_and_the_log_goes_on_in_a_new_epoch() {
    let disk = SimDisk::new(1);
    let store = open(&disk).unwrap();
    store.create_topic("t", TopicConfig::new().flush(Flush::Os)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    append(&partition, 0..10);
    let epoch = partition.leader_epoch();
    let name = logs(&disk).remove(0);
    let bytes = disk.read_file(&name);
    disk.power_loss();
    // Half of the last batch reached the disk.
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    disk.write_file(&name, &bytes[..used - 20]);
    drop((partition, store));
    let store = open(&disk).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let (records, damages) = contents(&partition);
    assert_eq!((records.len(), damages.len()), (9, 0));
    let cut = store.events().find_map(|event| match event.kind {
        EventKind::TailCut { from, kept, .. } => Some((from, kept)),
        _ => None,
    });
    let (from, kept) = cut.expect("the cut is reported");
    assert_eq!(from, Offset(9));
    assert!(kept.is_some(), "the bytes are kept");
    assert!(disk.files().iter().any(|file| file.starts_with("quarantine/")));
    assert!(partition.leader_epoch() > epoch, "offset 9 is given again, in a new epoch");
    append(&partition, 9..10);
}

#[test]
fn s2_damage_below_the_durable_end_names_its_offsets_and_all_else_stays_readable() {
    let disk = closed_store(2);
    let name = logs(&disk).remove(1);
    let mut bytes = disk.read_file(&name);
    let at = 4096.min(bytes.len()) / 2 + 300;
    bytes[at] ^= 0x40;
    disk.write_file(&name, &bytes);
    let store = open(&disk).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let (records, damages) = contents(&partition);
    assert_eq!(damages.len(), 1, "{damages:?}");
    let (start, end) = damages[0];
    assert!(end - start <= 1, "a batch at most");
    assert_eq!(records.len() as u64 + (end - start), 100);
    assert!(records.iter().all(|(at, bytes)| *bytes == value(*at)));
    assert_eq!(disk.read_file(&name), bytes, "S2: nothing is cut");
    let report = store.verify(oncelog::VerifyOptions::new()).unwrap();
    assert_eq!(report.damages.len(), 1);
    assert_eq!(report.damages[0].offsets, Offset(start)..Offset(end));
}

#[test]
fn s3_a_sector_that_cannot_be_read_is_an_error_and_the_rest_is_not() {
    let disk = closed_store(3);
    let name = logs(&disk).remove(0);
    disk.break_sector(&name, 3);
    let store = open(&disk).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let (mut good, mut bad, mut at) = (0, 0, Offset(0));
    while at < partition.high_watermark() {
        at = match partition.read(at, ReadOptions::new().max_bytes(1)) {
            Ok(records) => {
                for record in &records {
                    assert_eq!(record.value().unwrap(), value(record.offset().0));
                    good += 1;
                }
                records.next_offset()
            }
            Err(error) => {
                assert!(matches!(error, Error::Io { .. } | Error::Corrupt { .. }), "{error}");
                bad += 1;
                at.next()
            }
        };
    }
    assert!(good >= 50 && bad > 0, "{good} good, {bad} bad");
}

#[test]
fn s5_a_batch_of_another_partition_in_our_file_is_damage() {
    let disk = SimDisk::new(5);
    let store = open(&disk).unwrap();
    store.create_topic("t", small_segments().partitions(2)).unwrap();
    for number in 0..2 {
        append(&store.partition("t", number).unwrap(), 0..20);
    }
    store.close(Duration::from_secs(1)).unwrap();
    let names = logs(&disk);
    let [one, other] = [0, 1].map(|number| {
        names.iter().find(|name| name.contains(&format!("-t/{number}/"))).unwrap().clone()
    });
    // The same bytes at the same place, of the other partition: every checksum in them is right.
    let bytes = disk.read_file(&other);
    disk.write_file(&one, &bytes);
    let store = open(&disk).unwrap();
    let (records, damages) = contents(&store.partition("t", 0).unwrap());
    let lost: u64 = damages.iter().map(|(start, end)| end - start).sum();
    assert_eq!((records.len(), lost), (0, 20), "S5: {damages:?}");
    let (records, damages) = contents(&store.partition("t", 1).unwrap());
    assert_eq!((records.len(), damages.len()), (20, 0));
}

#[test]
fn s6_side_files_are_rebuilt_whatever_became_of_them() {
    for change in 0..4 {
        let disk = closed_store(6);
        for name in disk.files().iter().filter(|name| name.ends_with(".side")) {
            let bytes = disk.read_file(name);
            match change {
                0 => disk.remove_file(name),
                1 => disk.write_file(name, &bytes[..bytes.len() / 2]),
                2 => disk.write_file(name, &[0xff; 200]),
                _ => {
                    // One that is intact and belongs to another segment.
                    let foreign = disk.files().into_iter().find(|f| f.ends_with(".side")).unwrap();
                    let bytes = disk.read_file(&foreign);
                    disk.write_file(name, &bytes);
                }
            }
        }
        let store = open(&disk).unwrap();
        let partition = store.partition("t", 0).unwrap();
        let (records, damages) = contents(&partition);
        assert_eq!((records.len(), damages.len()), (100, 0), "change {change}");
        assert_eq!(partition.offset_for_time(NOW).unwrap(), Some(Offset(0)));
    }
}

#[test]
fn s9_short_writes_and_signals_are_ridden_over() {
    for fault in [Fault::ShortIo, Fault::Interrupted] {
        let disk = SimDisk::new(9);
        let store = open(&disk).unwrap();
        store.create_topic("t", small_segments()).unwrap();
        let partition = store.partition("t", 0).unwrap();
        for at in 0..60 {
            disk.fail_call(1 + at % 5, fault);
            append(&partition, at..at + 1);
        }
        assert_eq!(contents(&partition).0.len(), 60);
    }
}

#[test]
fn s11_no_handles_or_memory_left_is_passing() {
    let mut refused = 0;
    for n in 1..6 {
        let disk = closed_store(11);
        let store = open(&disk).unwrap();
        let partition = store.partition("t", 0).unwrap();
        disk.fail_from(n, Fault::TooManyFiles);
        for offset in [0, 50] {
            match partition.read(Offset(offset), ReadOptions::new().max_bytes(1)) {
                Ok(records) => assert!(records.next_offset() > Offset(offset)),
                Err(error) => {
                    assert_eq!(error.class(), ErrorClass::Retriable, "{error}");
                    refused += 1;
                }
            }
        }
        disk.heal();
        assert_eq!(contents(&partition).0.len(), 100);
        append(&partition, 100..101);
    }
    assert!(refused > 0, "a file had to be opened");
}

/// From any call on, and whatever is asked meanwhile: nothing stays out of service, nothing acknowledged is lost.
#[test]
fn s11_a_shortage_of_handles_that_begins_at_any_call_passes() {
    for (replicas, flush) in [(1, Flush::OnAck), (1, Flush::Os), (3, Flush::OnAck), (3, Flush::Os)]
    {
        for n in (1..).step_by(if replicas == 1 { 1 } else { 3 }) {
            let case = format!("{replicas} replicas, {flush:?}, from call {n}");
            let disks: Vec<_> = (0..replicas).map(|at| SimDisk::new(11 + at)).collect();
            let clock = Clock::manual(NOW);
            let builder = Store::builder().clock(clock.clone()).append_timeout(Duration::ZERO);
            let store = disks.iter().fold(builder, |all, disk| all.simulated_disk(disk.clone()));
            let store = store.open().unwrap();
            let config = || small_segments().replication_factor(u16::try_from(replicas).unwrap());
            store.create_topic("t", config().flush(flush)).unwrap();
            let partition = store.partition("t", 0).unwrap();
            append(&partition, 0..20);
            let before = disks[0].calls();
            disks.iter().for_each(|disk| disk.fail_from(n, Fault::TooManyFiles));
            let mut acknowledged = Vec::new();
            let passing = |what: &str, outcome: Result<(), Error>| {
                if let Err(error) = &outcome {
                    assert_ne!(error.class(), ErrorClass::Fatal, "{case}: {what}: {error:?}");
                }
                outcome.is_ok()
            };
            let author =
                |at| ProducerSequence { id: ProducerId(7), epoch: ProducerEpoch(0), sequence: at };
            let mut next = 0;
            for round in 0..4 {
                for at in 0..12 {
                    let value = value(1000 * round + at);
                    let record = [Record::new(&value)];
                    let appended = partition.append_idempotent(author(next), &record, Acks::All);
                    if let Ok(appended) = &appended {
                        next += 1;
                        acknowledged.push((appended.offsets.start.0, value.clone()));
                    }
                    passing("append", appended.map(drop));
                }
                let start = Offset(round * 10);
                passing("delete", partition.delete_records(start).map(drop));
                passing("create", store.create_topic(&format!("u{round}"), config()));
                clock.advance(Duration::from_millis(200));
                store.run_background();
            }
            let over = disks[0].calls() - before < n;
            disks.iter().for_each(SimDisk::heal);
            for _ in 0..20 {
                clock.advance(Duration::from_secs(2));
                store.run_background();
            }
            assert_eq!(partition.in_sync_replicas().len(), disks.len(), "{case}");
            append(&partition, 0..40);
            for reopened in [false, true] {
                let store = if reopened {
                    disks.iter().for_each(SimDisk::kill);
                    disks.iter().for_each(SimDisk::process_restart);
                    let builder = Store::builder().clock(clock.clone());
                    let all = disks.iter();
                    all.fold(builder, |all, disk| all.simulated_disk(disk.clone())).open().unwrap()
                } else {
                    store.clone()
                };
                let partition = store.partition("t", 0).unwrap();
                let (found, damages) = contents(&partition);
                assert_eq!(damages, [], "{case}");
                let start = partition.log_start_offset().0;
                for (offset, value) in acknowledged.iter().filter(|(at, _)| *at >= start) {
                    assert_eq!(found.get(offset), Some(value), "{case}: {reopened}");
                }
            }
            if over {
                break;
            }
        }
    }
}

#[test]
fn s12_an_empty_or_foreign_directory_is_not_taken_for_the_store() {
    // The identity is gone and the data are not: it is known from the metadata, and said so.
    let disk = closed_store(12);
    disk.remove_file("store.id");
    let store = open(&disk).unwrap();
    assert_eq!(contents(&store.partition("t", 0).unwrap()).0.len(), 100);
    store.close(Duration::from_secs(1)).unwrap();
    // The metadata are gone and the identity is not: nothing is made anew over it.
    for name in ["metadata.0", "metadata.1"] {
        disk.remove_file(name);
    }
    let before = files(&disk);
    assert!(matches!(open(&disk), Err(Error::CorruptMetadata { .. })));
    let after = files(&disk);
    assert!(before.iter().all(|(name, bytes)| name == "lock" || after.get(name) == Some(bytes)));
    // Somebody else's directory.
    let disk = SimDisk::new(1);
    disk.write_file("thesis.tex", b"chapter one");
    assert!(matches!(open(&disk), Err(Error::UnsupportedFormat { .. })));
    assert_eq!(disk.files(), ["thesis.tex"]);
}

#[test]
fn s15_what_is_not_ours_is_left_alone_and_named() {
    let disk = closed_store(15);
    let directory = logs(&disk)[0].rsplit_once('/').unwrap().0.to_owned();
    let strangers = ["notes.txt", "00000000000000000000.log~", ".nfs0001", "123.log"];
    for name in strangers {
        disk.write_file(&format!("{directory}/{name}"), b"not ours");
    }
    disk.write_file("lost+found", b"");
    let store = open(&disk).unwrap();
    let partition = store.partition("t", 0).unwrap();
    assert_eq!(contents(&partition).0.len(), 100);
    for name in strangers {
        assert_eq!(disk.read_file(&format!("{directory}/{name}")), b"not ours");
        let named = store.events().any(|event| event.to_string().contains(name));
        assert!(named, "{name} is named");
    }
}

#[test]
fn s16_a_segment_that_is_missing_is_a_hole_with_its_offsets() {
    let disk = closed_store(16);
    let names = logs(&disk);
    assert!(names.len() >= 3);
    let base = |name: &str| {
        name.rsplit_once('/').unwrap().1.trim_end_matches(".log").parse::<u64>().unwrap()
    };
    let (start, end) = (base(&names[1]), base(&names[2]));
    disk.remove_file(&names[1]);
    let store = open(&disk).unwrap();
    let (records, damages) = contents(&store.partition("t", 0).unwrap());
    assert_eq!(damages, [(start, end)]);
    assert_eq!(records.len() as u64, 100 - (end - start));
}

#[test]
fn s17_a_newer_version_is_refused_and_not_a_byte_is_changed() {
    let disk = closed_store(17);
    let mut identity = disk.read_file("store.id");
    identity[8] = 9;
    let crc = crc32(&identity[..60]).to_le_bytes();
    identity[60..64].copy_from_slice(&crc);
    disk.write_file("store.id", &identity);
    let before = files(&disk);
    let error = open(&disk).unwrap_err();
    assert!(matches!(error, Error::UnsupportedFormat { .. }), "{error}");
    assert_eq!(files(&disk), before);
}

#[test]
fn s18_a_second_opener_is_told_who_has_it_and_a_dead_one_holds_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let alias = directory.path().join(".");
    for path in [directory.path(), alias.as_path()] {
        let Err(Error::Locked { pid, .. }) = Store::open(path) else {
            panic!("the store is open already");
        };
        assert_eq!(pid, Some(std::process::id()));
    }
    drop(store);
    // What a dead process left in the file is not believed.
    std::fs::write(directory.path().join("lock"), "1").unwrap();
    Store::open(directory.path()).unwrap();
}

#[test]
fn s20_leftovers_of_a_crash_are_cleaned_away() {
    let disk = closed_store(20);
    let directory = logs(&disk)[0].rsplit_once('/').unwrap().0.to_owned();
    disk.write_file("store.id.tmp", b"half");
    disk.write_file(&format!("{directory}/00000000000000000200.log.tmp"), b"half");
    disk.power_loss();
    let store = open(&disk).unwrap();
    let partition = store.partition("t", 0).unwrap();
    append(&partition, 100..300);
    assert_eq!(contents(&partition).0.len(), 300);
    assert!(!disk.files().iter().any(|name| name.ends_with(".log.tmp")));
}

#[test]
fn s21_zeroes_behind_the_tail_are_no_records_and_no_damage() {
    let disk = closed_store(21);
    let name = logs(&disk).pop().unwrap();
    let mut bytes = disk.read_file(&name);
    bytes.resize(bytes.len() + 100_000, 0);
    disk.write_file(&name, &bytes);
    disk.remove_file("session");
    let store = open(&disk).unwrap();
    let partition = store.partition("t", 0).unwrap();
    assert_eq!(partition.log_end_offset(), Offset(100));
    append(&partition, 100..101);
    assert_eq!(contents(&partition).0.len(), 101);
}

#[test]
fn s23_one_wrong_clock_neither_keeps_nor_deletes_what_it_should_not() {
    let clock = Clock::manual(NOW);
    let disk = SimDisk::new(23);
    let store = Store::builder().simulated_disk(disk).clock(clock.clone()).open().unwrap();
    let day = Duration::from_secs(86_400);
    let config = small_segments().retention(Retention::age(day));
    store.create_topic("t", config).unwrap();
    let partition = store.partition("t", 0).unwrap();
    for at in 0..100 {
        let far = Record::new("x").timestamp(Timestamp(i64::MAX - at));
        partition.append(&[far, Record::new(&value(0))], Acks::All).unwrap();
    }
    // Back by a day: offsets go on, nothing goes.
    clock.set_wall(Timestamp(NOW.0 - 86_400_000));
    store.run_background();
    assert_eq!(partition.log_start_offset(), Offset(0));
    partition.append(&[Record::new("y")], Acks::All).unwrap();
    // Two days on: all but what came last is old by the time of its append, whatever it says itself.
    clock.advance(day * 4);
    store.run_background();
    assert!(partition.log_start_offset() >= Offset(190), "{}", partition.log_start_offset());
}

#[test]
fn a1_names_that_are_no_names() {
    let store = Store::in_memory(1).unwrap();
    store.create_topic("a.b", TopicConfig::new()).unwrap();
    let long = "x".repeat(250);
    let names = ["", ".", "..", "a/b", "a\0b", "a\nb", "\u{e9}", " ", "../x", "a_b", long.as_str()];
    for name in names {
        let error = store.create_topic(name, TopicConfig::new()).unwrap_err();
        assert!(matches!(error, Error::InvalidTopic { .. }), "{name:?}: {error}");
    }
    store.create_topic(&"x".repeat(249), TopicConfig::new()).unwrap();
    assert_eq!(store.topics().len(), 2);
}

#[test]
fn a2_settings_that_do_not_fit_leave_nothing_behind() {
    let disk = SimDisk::new(2);
    let store = open(&disk).unwrap();
    let before = disk.files();
    let bad = [
        TopicConfig::new().partitions(0),
        TopicConfig::new().partitions(1_000_000_000),
        TopicConfig::new().replication_factor(0),
        TopicConfig::new().replication_factor(2),
        TopicConfig::new().segment_bytes(0),
        TopicConfig::new().segment_bytes(1),
        TopicConfig::new().segment_bytes(u64::MAX),
        TopicConfig::new().max_batch_bytes(0),
        TopicConfig::new().min_insync_replicas(0),
    ];
    for config in bad {
        let error = store.create_topic("t", config.clone()).unwrap_err();
        assert!(matches!(error, Error::InvalidConfig { .. }), "{config:?}: {error}");
        assert_eq!(error.class(), ErrorClass::Invalid);
    }
    assert_eq!(disk.files(), before);
    assert!(store.topics().is_empty());
    assert!(matches!(Store::in_memory(0), Err(Error::InvalidConfig { .. })));
}

#[test]
fn a8_times_without_end_calls_after_close_and_calls_from_everywhere() {
    let store = Store::in_memory(1).unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let timed_out = partition.wait_for(Offset(0), Duration::ZERO).unwrap_err();
    assert!(matches!(timed_out, Error::TimedOut { .. }));
    std::thread::scope(|scope| {
        let waiting = partition.clone();
        let waiter = scope.spawn(move || waiting.wait_for(Offset(0), Duration::MAX));
        // From a thousand threads at once.
        for _ in 0..10 {
            std::thread::scope(|scope| {
                for at in 0..100 {
                    let partition = &partition;
                    scope.spawn(move || append(partition, at..at + 1));
                }
            });
        }
        waiter.join().unwrap().unwrap();
    });
    assert_eq!(partition.log_end_offset(), Offset(1000));
    let blocked = partition.clone();
    let waiter = std::thread::spawn(move || blocked.wait_for(Offset(5000), Duration::MAX));
    store.close(Duration::MAX).unwrap();
    assert!(matches!(waiter.join().unwrap(), Err(Error::Closed)));
    store.close(Duration::ZERO).unwrap();
    let record = [Record::new("late")];
    let outcomes = [
        partition.append(&record, Acks::All).map(drop),
        partition.append_nowait(&record, Acks::None).map(drop),
        store.create_topic("u", TopicConfig::new()),
        store.delete_topic("t"),
        store.partition("t", 0).map(drop),
        partition.delete_records(Offset(1)).map(drop),
        partition.wait_for(Offset(5000), Duration::MAX),
    ];
    for outcome in outcomes {
        let error = outcome.unwrap_err();
        assert!(matches!(error, Error::Closed), "{error}");
        assert_eq!(error.written(), Written::No);
    }
}

#[test]
fn a8_handles_that_go_while_a_panic_unwinds() {
    let outcome = catch_unwind(|| {
        let store = Store::temporary().unwrap();
        store.create_topic("t", TopicConfig::new()).unwrap();
        let partition = store.partition("t", 0).unwrap();
        let _ticket = partition.append_nowait(&[Record::new("a")], Acks::All).unwrap();
        panic!("of the application");
    });
    assert!(outcome.is_err());
}

/// What a panic carries may panic itself, when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        std::panic::panic_any(Bomb);
    }
}

#[test]
fn a9_a_callback_that_panics_or_calls_back_harms_nobody() {
    let store = Store::temporary().unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let (sender, told) = channel();
    for at in 0..20_u64 {
        let (sender, again) = (sender.clone(), partition.clone());
        partition.append_nowait(&[Record::new("a")], Acks::All).unwrap().on_complete(
            move |result| {
                result.unwrap();
                sender.send(at).unwrap();
                match at % 4 {
                    0 => panic!("of the application"),
                    2 => std::panic::panic_any(Bomb),
                    _ => {}
                }
                again.append(&[Record::new("from a callback")], Acks::None).unwrap();
            },
        );
    }
    for _ in 0..20 {
        told.recv_timeout(Duration::from_secs(30)).unwrap();
    }
    append(&partition, 0..1);
    let outcome = catch_unwind(AssertUnwindSafe(|| store.close(Duration::from_secs(10))));
    outcome.unwrap().unwrap();
}
