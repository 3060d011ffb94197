//! A store on a real directory, through its public face.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use oncelog::{
    Acks, Error, Flush, Offset, ReadOptions, Record, Retention, StorageMode, Store, Timestamp,
    TopicConfig, TopicUpdate,
};

const SECOND: Duration = Duration::from_secs(1);

fn levels() -> [Flush; 3] {
    [Flush::OnAck, Flush::Os, Flush::Interval(Duration::from_millis(5))]
}

fn values(store: &Store, topic: &str, number: u32) -> Vec<Vec<u8>> {
    let partition = store.partition(topic, number).unwrap();
    let mut offset = partition.log_start_offset();
    let mut values = Vec::new();
    loop {
        let records = partition.read(offset, ReadOptions::new().max_bytes(1 << 16)).unwrap();
        if records.next_offset() == offset {
            return values;
        }
        for record in &records {
            assert_eq!(record.offset().0, partition.log_start_offset().0 + values.len() as u64);
            values.push(record.value().unwrap().to_vec());
        }
        offset = records.next_offset();
    }
}

#[test]
fn what_is_appended_is_read_back_at_every_flush_level_also_after_reopening() {
    for flush in levels() {
        let directory = tempfile::tempdir().unwrap();
        let mut expected = Vec::new();
        for round in 0..3 {
            let store = Store::open(directory.path()).unwrap();
            if round == 0 {
                let config = TopicConfig::new().flush(flush).segment_bytes(16 << 10);
                store.create_topic("t", config).unwrap();
            }
            assert_eq!(values(&store, "t", 0), expected);
            let partition = store.partition("t", 0).unwrap();
            for at in 0..300 {
                let value = format!("{round}-{at}-{}", "x".repeat(at)).into_bytes();
                let appended = partition.append(&[Record::new(&value)], Acks::All).unwrap();
                assert_eq!(appended.offsets.start, Offset(expected.len() as u64));
                expected.push(value);
            }
            partition.wait_for(Offset(expected.len() as u64 - 1), SECOND * 5).unwrap();
            assert_eq!(values(&store, "t", 0), expected);
            store.close(SECOND * 10).unwrap();
            let clean = store.events().any(|event| event.to_string().contains("clean stop"));
            assert!(clean);
        }
    }
}

#[test]
fn a_store_that_is_dropped_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    store.partition("t", 0).unwrap().append(&[Record::new("pear")], Acks::All).unwrap();
    assert!(matches!(Store::open(directory.path()), Err(Error::Locked { .. })));
    drop(store);
    let store = Store::open(directory.path()).unwrap();
    assert!(store.events().all(|event| !event.to_string().contains("unclean")));
    assert_eq!(values(&store, "t", 0), [b"pear"]);
}

#[test]
fn records_are_found_by_time() {
    let store = Store::in_memory(1).unwrap();
    store.create_topic("t", TopicConfig::new().segment_bytes(4096)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    for at in 0..500 {
        partition.append(&[Record::new("x").timestamp(Timestamp(at * 10))], Acks::All).unwrap();
    }
    assert_eq!(partition.offset_for_time(Timestamp(-5)).unwrap(), Some(Offset(0)));
    assert_eq!(partition.offset_for_time(Timestamp(1001)).unwrap(), Some(Offset(101)));
    assert_eq!(partition.offset_for_time(Timestamp(4990)).unwrap(), Some(Offset(499)));
    assert_eq!(partition.offset_for_time(Timestamp(4991)).unwrap(), None);
}

#[test]
fn deleted_records_stay_deleted() {
    let directory = tempfile::tempdir().unwrap();
    {
        let store = Store::open(directory.path()).unwrap();
        store.create_topic("t", TopicConfig::new().segment_bytes(4096)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        for _ in 0..200 {
            partition.append(&[Record::new(&[7; 100])], Acks::All).unwrap();
        }
        assert_eq!(partition.delete_records(Offset(150)).unwrap(), Offset(150));
        assert!(matches!(
            partition.read(Offset(149), ReadOptions::new()),
            Err(Error::OffsetOutOfRange { .. })
        ));
        assert!(matches!(
            partition.delete_records(Offset(201)),
            Err(Error::OffsetOutOfRange { .. })
        ));
    }
    let store = Store::open(directory.path()).unwrap();
    let partition = store.partition("t", 0).unwrap();
    assert_eq!(partition.log_start_offset(), Offset(150));
    assert_eq!(values(&store, "t", 0).len(), 50);
}

/// The segment goes on as what it was begun as: with each flush writing whole folios, or each append being a call.
#[test]
fn a_topic_under_another_flush_level_goes_on_in_a_segment_that_fits() {
    for (from, to) in levels().into_iter().flat_map(|from| levels().map(|to| (from, to))) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.create_topic("t", TopicConfig::new().flush(from)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        partition.append(&[Record::new("before")], Acks::All).unwrap();
        store.alter_topic("t", TopicUpdate::new().flush(to)).unwrap();
        partition.append(&[Record::new("after")], Acks::All).unwrap();
        let fits =
            (from == Flush::OnAck) == (to == Flush::OnAck) || !takes_stores(directory.path());
        assert_eq!(logs_in(directory.path()), if fits { 1 } else { 2 }, "{from:?} to {to:?}");
        drop((partition, store));
        let store = Store::open(directory.path()).unwrap();
        assert_eq!(values(&store, "t", 0), [b"before".to_vec(), b"after".to_vec()]);
    }
}

/// Whether segments are stored to through a mapping there, and not all written.
fn takes_stores(directory: &Path) -> bool {
    let asked = Command::new("stat").args(["-f", "-c", "%T"]).arg(directory).output();
    let kind = asked.map(|told| String::from_utf8_lossy(&told.stdout).trim().to_owned());
    let kinds = ["ext2/ext3", "xfs", "tmpfs", "ramfs", "overlayfs"];
    kind.is_ok_and(|kind| kinds.contains(&kind.as_str()))
}

/// How many segments are in a directory, or below it.
fn logs_in(directory: &Path) -> usize {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let count = |path: std::path::PathBuf| match path.is_dir() {
        true => logs_in(&path),
        false => usize::from(path.extension().is_some_and(|extension| extension == "log")),
    };
    entries.map(count).sum()
}

#[test]
fn retention_removes_the_oldest_segments() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::builder()
        .disk(directory.path())
        .retention_check_interval(SECOND / 50)
        .open()
        .unwrap();
    let config =
        TopicConfig::new().flush(Flush::Os).segment_bytes(4096).retention(Retention::bytes(8192));
    store.create_topic("t", config).unwrap();
    let partition = store.partition("t", 0).unwrap();
    for _ in 0..500 {
        partition.append(&[Record::new(&[7; 100])], Acks::All).unwrap();
    }
    let mut events = store.events();
    while partition.log_start_offset() < Offset(400) {
        assert!(events.wait(SECOND * 10).is_some(), "start at {}", partition.log_start_offset());
    }
    store.alter_topic("t", TopicUpdate::new().retention(Retention::forever())).unwrap();
    assert_eq!(values(&store, "t", 0).len() as u64, 500 - partition.log_start_offset().0);
}

#[test]
fn a_deleted_topic_is_gone_and_its_name_is_free() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    let partition = store.partition("t", 0).unwrap();
    partition.append(&[Record::new("old")], Acks::All).unwrap();
    store.delete_topic("t").unwrap();
    assert!(matches!(
        partition.append(&[Record::new("late")], Acks::All),
        Err(Error::UnknownTopicOrPartition { .. })
    ));
    store.create_topic("t", TopicConfig::new()).unwrap();
    store.partition("t", 0).unwrap().append(&[Record::new("new")], Acks::All).unwrap();
    assert_eq!(values(&store, "t", 0), [b"new"]);
}

#[test]
fn a_second_opener_tails_a_live_store_without_a_lock() {
    for flush in levels() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.create_topic("t", TopicConfig::new().flush(flush).segment_bytes(4096)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        partition.append(&[Record::new("0")], Acks::All).unwrap();
        let view = Store::open_read_only(directory.path()).unwrap();
        let seen = view.partition("t", 0).unwrap();
        for at in 1..300 {
            let value = at.to_string();
            partition.append(&[Record::new(&value)], Acks::All).unwrap();
            partition.wait_for(Offset(at), SECOND * 5).unwrap();
            seen.wait_for(Offset(at), SECOND * 5).unwrap();
            let records = seen.read(Offset(at), ReadOptions::new()).unwrap();
            assert_eq!(records.iter().next().unwrap().value(), Some(value.as_bytes()));
        }
        assert!(matches!(seen.append(&[Record::new("x")], Acks::All), Err(Error::ReadOnly)));
        assert!(matches!(view.delete_topic("t"), Err(Error::ReadOnly)));
    }
}

#[test]
fn many_threads_append_and_read_one_partition() {
    for flush in levels() {
        let store = Store::temporary().unwrap();
        store.create_topic("t", TopicConfig::new().flush(flush).segment_bytes(64 << 10)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let partition = partition.clone();
                scope.spawn(move || {
                    for at in 0..200 {
                        let value = format!("{thread} {at}");
                        let appended = partition.append(&[Record::new(&value)], Acks::All).unwrap();
                        partition.wait_for(appended.offsets.start, SECOND * 20).unwrap();
                        let records = partition
                            .read(appended.offsets.start, ReadOptions::new().max_bytes(1))
                            .unwrap();
                        assert_eq!(records.iter().next().unwrap().value(), Some(value.as_bytes()));
                    }
                });
            }
        });
        assert_eq!(values(&store, "t", 0).len(), 1600);
    }
}

#[test]
fn a_ticket_is_waited_for_called_back_or_polled() {
    let store = Store::temporary().unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let waited = partition.append_nowait(&[Record::new("a")], Acks::All).unwrap();
    assert_eq!(waited.wait(SECOND * 5).unwrap().offsets, Offset(0)..Offset(1));
    let (sender, receiver) = std::sync::mpsc::channel();
    let called = partition.append_nowait(&[Record::new("b")], Acks::All).unwrap();
    called.on_complete(move |result| sender.send(result.unwrap().offsets.start).unwrap());
    assert_eq!(receiver.recv_timeout(SECOND * 5).unwrap(), Offset(1));
    let panicking = partition.append_nowait(&[Record::new("c")], Acks::All).unwrap();
    panicking.on_complete(|_| panic!("A9: a callback's own fault"));
    partition.append(&[Record::new("d")], Acks::All).unwrap();
    assert_eq!(partition.high_watermark(), Offset(4));
}

#[test]
fn what_a_topic_does_not_choose_the_store_chooses() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::builder()
        .disk(directory.path())
        .flush(Flush::Os)
        .property("retention.bytes", "1000000")
        .property("ssl.protocol", "TLS")
        .open()
        .unwrap();
    store.create_topic("a", TopicConfig::new()).unwrap();
    let own = TopicConfig::new().flush(Flush::OnAck).retention(Retention::forever());
    store.create_topic("b", own.clone()).unwrap();
    let filled = TopicConfig::new().flush(Flush::Os).retention(Retention::bytes(1_000_000));
    assert_eq!(store.topic("a").unwrap().config, filled);
    assert_eq!(store.topic("b").unwrap().config, own);
}

/// A view knew the topics that it had seen, whatever had their names by then, and called what was gone damaged.
#[test]
fn a_view_sees_which_topic_has_a_name_by_now() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    store.create_topic("t", TopicConfig::new().segment_bytes(4096)).unwrap();
    let append = |count: usize| {
        let partition = store.partition("t", 0).unwrap();
        for _ in 0..count {
            partition.append(&[Record::new(&vec![7; 2000])], Acks::All).unwrap();
        }
    };
    append(10);
    let view = Store::open_read_only(directory.path()).unwrap();
    let seen = view.partition("t", 0).unwrap();
    assert_eq!(seen.high_watermark(), Offset(10));
    store.delete_topic("t").unwrap();
    let gone = |error: &Error| matches!(error, Error::UnknownTopicOrPartition { .. });
    let error = seen.read(Offset(0), ReadOptions::new()).map(drop).unwrap_err();
    assert!(gone(&error), "{error}");
    assert!(gone(&view.partition("t", 0).unwrap_err()));
    store.create_topic("t", TopicConfig::new().partitions(2)).unwrap();
    append(3);
    assert_eq!(view.partition("t", 0).unwrap().high_watermark(), Offset(3));
    assert_eq!(view.topic("t").unwrap().partitions, 2);
    assert!(view.partition("t", 1).is_ok());
    let error = seen.read(Offset(0), ReadOptions::new()).map(drop).unwrap_err();
    assert!(gone(&error), "{error}");
}

/// The page that tells a view of the owner's offsets was renewed by the next append only.
#[test]
fn a_view_sees_what_its_owner_does_before_the_first_append_of_its_session() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    store.create_topic("t", TopicConfig::new().segment_bytes(4096)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let append = || partition.append(&[Record::new(&vec![7; 2000])], Acks::All).unwrap();
    append();
    let page = directory.path().join("topics/00000001-t/0/marks");
    let before = std::fs::read(&page).unwrap();
    for _ in 0..9 {
        append();
    }
    store.close(SECOND * 5).unwrap();
    drop((partition, store));
    // As a process leaves it that is killed before it could say how far it came.
    std::fs::write(&page, before).unwrap();
    let view = Store::open_read_only(directory.path()).unwrap();
    let seen = view.partition("t", 0).unwrap();
    let store = Store::open(directory.path()).unwrap();
    let partition = store.partition("t", 0).unwrap();
    assert_eq!(seen.high_watermark(), partition.high_watermark());
    seen.wait_for(Offset(9), SECOND).unwrap();
    partition.delete_records(Offset(8)).unwrap();
    assert_eq!(seen.log_start_offset(), Offset(8));
    let error = seen.read(Offset(0), ReadOptions::new()).map(drop).unwrap_err();
    assert!(matches!(error, Error::OffsetOutOfRange { start: Offset(8), .. }), "{error}");
}

/// Without a page, a view knew where the log began when it was opened, and called what was deleted since damaged.
#[test]
fn a_view_without_a_page_learns_what_was_deleted_from_the_metadata() {
    let directory = tempfile::tempdir().unwrap();
    let open =
        || Store::builder().disk(directory.path()).storage_mode(StorageMode::Write).open().unwrap();
    let store = open();
    store.create_topic("t", TopicConfig::new().segment_bytes(4096)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    for _ in 0..10 {
        partition.append(&[Record::new(&vec![7; 2000])], Acks::All).unwrap();
    }
    let view = Store::open_read_only(directory.path()).unwrap();
    let seen = view.partition("t", 0).unwrap();
    assert_eq!(seen.high_watermark(), Offset(10));
    partition.delete_records(Offset(8)).unwrap();
    // It looks at them a few times a second.
    let begun = Instant::now();
    let error = loop {
        match seen.read(Offset(0), ReadOptions::new()) {
            Ok(_) => assert!(begun.elapsed() < SECOND * 20, "what was deleted is shown"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::OffsetOutOfRange { start: Offset(8), .. }), "{error}");
    assert_eq!(seen.log_start_offset(), Offset(8));
    let records = seen.read(Offset(8), ReadOptions::new()).unwrap();
    assert_eq!(records.iter().next().unwrap().offset(), Offset(8));
}

/// Where nothing but the files tells what is decided, and records were deleted that nobody numbered, it told nothing.
#[test]
fn a_view_without_a_page_shows_committed_records_behind_deleted_ones() {
    let directory = tempfile::tempdir().unwrap();
    let store =
        Store::builder().disk(directory.path()).storage_mode(StorageMode::Write).open().unwrap();
    store.create_topic("t", TopicConfig::new().segment_bytes(16 << 10)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    for _ in 0..40 {
        partition.append(&[Record::new(&[7; 2000])], Acks::All).unwrap();
    }
    partition.delete_records(Offset(30)).unwrap();
    let view = Store::open_read_only(directory.path()).unwrap();
    let decided = || view.partition("t", 0).unwrap().last_stable_offset();
    assert_eq!(decided(), Offset(40));
    let mut producer = store.producer().transactional_id("id").build().unwrap();
    let mut transaction = producer.begin().unwrap();
    transaction.append("t", 0, &[Record::new("one")]).unwrap();
    partition.append(&[Record::new("two")], Acks::All).unwrap();
    assert_eq!(decided(), Offset(40), "it is open");
    // Its first record goes, and it is open all the same.
    transaction.append("t", 0, &[Record::new("three")]).unwrap();
    partition.delete_records(Offset(41)).unwrap();
    assert!(decided() <= Offset(42));
    transaction.commit(Duration::from_secs(10)).unwrap();
    partition.append(&[Record::new("four")], Acks::All).unwrap();
    assert_eq!(decided(), partition.log_end_offset());
}
