//! S10, RELIABILITY section 2a: a file system that is really full.
//!
//! As root, each test mounts a small file system of its own and fills it up. Without root it cannot, and
//! says so; the file size limit below needs no privilege and refuses growth with `EFBIG`, which counts
//! as the same. Both run the same checks of what was acknowledged.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test may fail loudly, and says what it could not do"
)]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use oncelog::{
    Acks, Error, Flush, Offset, Partition, ReadOptions, Record, Retention, StorageMode, Store,
    TopicConfig, Written,
};

const LIMITED: &str = "ONCELOG_LIMITED_DIR";
const SECOND: Duration = Duration::from_secs(1);

/// A file system of its own, unmounted when this goes.
struct Small {
    directory: tempfile::TempDir,
}

impl Small {
    fn mount(bytes: u64) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "oncelog-full"])
            .arg(directory.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self { directory }),
            Ok(output) => {
                let words = String::from_utf8_lossy(&output.stderr).into_owned();
                eprintln!("no small file system: {words}");
                None
            }
            Err(error) => {
                eprintln!("no small file system: {error}");
                None
            }
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.directory.path()).status();
    }
}

fn value(number: u64) -> Vec<u8> {
    let mut value = number.to_string().into_bytes();
    value.extend((0..1000).map(|at| u8::try_from((at * 7 + number) % 251).unwrap()));
    value
}

/// Appends until the disk is full; returns the end of what was acknowledged.
fn fill(partition: &Partition, path: &Path) -> u64 {
    for _ in 0..100_000 {
        let next = partition.log_end_offset().0;
        match partition.append(&[Record::new(&value(next))], Acks::All) {
            Ok(appended) => assert_eq!(appended.offsets, Offset(next)..Offset(next + 1)),
            Err(error) => {
                let Error::NoSpace { path: named, .. } = &error else { panic!("{error:?}") };
                assert!(named.starts_with(path), "{}", named.display());
                assert_eq!(error.written(), Written::No);
                // Nothing of it is visible, and its offset is free.
                assert_eq!(partition.log_end_offset(), Offset(next));
                assert_eq!(partition.high_watermark(), Offset(next));
                return next;
            }
        }
    }
    panic!("the disk does not fill up");
}

fn check(partition: &Partition, end: u64) {
    let mut next = partition.log_start_offset();
    assert!(next.0 < end, "something is left");
    while next < partition.high_watermark() {
        let records = partition.read(next, ReadOptions::new()).unwrap();
        for record in &records {
            assert_eq!(record.offset(), next);
            assert_eq!(record.value().unwrap(), value(next.0));
            next = Offset(next.0 + 1);
        }
    }
    assert_eq!(next.0, end);
}

/// Appends, at the latest when whoever still reads or flushes a removed file has let go of it.
fn append_again(partition: &Partition) {
    let deadline = Instant::now() + SECOND * 20;
    let next = partition.log_end_offset();
    loop {
        match partition.append(&[Record::new(&value(next.0))], Acks::All) {
            Ok(appended) => return assert_eq!(appended.offsets.start, next),
            Err(Error::NoSpace { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
        assert!(Instant::now() < deadline, "the room that was made cannot be used");
        std::thread::yield_now();
    }
}

fn topic(flush: Flush) -> TopicConfig {
    TopicConfig::new().flush(flush).segment_bytes(256 << 10)
}

fn open(path: &Path, mode: StorageMode) -> Store {
    Store::builder()
        .disk(path)
        .storage_mode(mode)
        .retention_check_interval(Duration::from_millis(20))
        .open()
        .unwrap()
}

fn fill_and_free(path: &Path, mode: StorageMode, flush: Flush) {
    let store = open(path, mode);
    store.create_topic("kept", topic(flush)).unwrap();
    store.create_topic("deleted", topic(flush)).unwrap();
    let aged = topic(flush).segment_age(SECOND).retention(Retention::age(SECOND));
    store.create_topic("aged", aged).unwrap();
    let (kept, deleted) =
        (store.partition("kept", 0).unwrap(), store.partition("deleted", 0).unwrap());
    for number in 0..600 {
        deleted.append(&[Record::new(&value(number))], Acks::All).unwrap();
    }

    fill(&kept, path);
    let end = fill(&kept, path);
    check(&kept, end);
    check(&deleted, 600);

    // Deleting a topic works on a full disk, and its room is there at once: without reopening, and although
    // somebody still has a handle.
    store.delete_topic("deleted").unwrap();
    append_again(&kept);
    let end = fill(&kept, path);
    check(&kept, end);

    // So does deleting records.
    let start = kept.delete_records(Offset(end / 2)).unwrap();
    assert_eq!(start, Offset(end / 2));
    append_again(&kept);
    let end = fill(&kept, path);
    check(&kept, end);

    // And so does retention, which lets go of what is older than a second.
    kept.delete_records(Offset(start.0 + (end - start.0) / 2)).unwrap();
    let aged = store.partition("aged", 0).unwrap();
    for number in 0..100 {
        aged.append(&[Record::new(&value(number))], Acks::All).unwrap();
    }
    let end = fill(&kept, path);
    let deadline = Instant::now() + SECOND * 20;
    while aged.log_start_offset() < Offset(100) {
        assert!(
            Instant::now() < deadline,
            "retention does not work when the disk is full: {:?}",
            store.events().map(|event| event.to_string()).collect::<Vec<_>>()
        );
        std::thread::yield_now();
    }
    append_again(&kept);
    let end = end + 1;
    check(&kept, end);

    // A clean stop needs room for its side files; it may fail, and then it is a crash, which loses nothing.
    let closed = store.close(SECOND * 20);
    drop((kept, aged, store));
    let store = open(path, mode);
    let kept = store.partition("kept", 0).unwrap();
    assert_eq!(kept.log_end_offset(), Offset(end), "closed: {closed:?}");
    check(&kept, end);
    for event in store.events() {
        assert!(!event.to_string().contains("damaged"), "{event}");
    }
}

#[test]
fn s10_a_full_disk_refuses_appends_and_nothing_else() {
    for mode in [StorageMode::Auto, StorageMode::Write] {
        for flush in [Flush::OnAck, Flush::Os] {
            let Some(small) = Small::mount(4 << 20) else {
                // The limit below is checked in any case.
                return;
            };
            fill_and_free(&small.directory.path().join("data"), mode, flush);
        }
    }
}

#[test]
fn s10_a_full_disk_is_opened_and_what_it_holds_is_read() {
    let Some(small) = Small::mount(2 << 20) else { return };
    let path = small.directory.path().join("data");
    let store = open(&path, StorageMode::Auto);
    store.create_topic("kept", topic(Flush::OnAck)).unwrap();
    let kept = store.partition("kept", 0).unwrap();
    let end = fill(&kept, &path);
    let _ = store.close(SECOND * 20);
    drop((kept, store));
    // Not a byte is left: whatever opening wants to write must be in files that are there already, or not
    // be needed.
    let ballast = small.directory.path().join("ballast");
    let mut bytes = vec![7; 64 << 10];
    while !bytes.is_empty() {
        use std::io::Write;
        let mut file =
            std::fs::OpenOptions::new().append(true).create(true).open(&ballast).unwrap();
        if file.write_all(&bytes).is_err() {
            bytes.truncate(bytes.len() / 2);
        }
    }
    match Store::open(&path) {
        Ok(store) => check(&store.partition("kept", 0).unwrap(), end),
        Err(error) => {
            assert!(matches!(error, Error::NoSpace { .. }), "{error:?}");
            let view = Store::open_read_only(&path).unwrap();
            check(&view.partition("kept", 0).unwrap(), end);
        }
    }
    std::fs::remove_file(&ballast).unwrap();
    let store = Store::open(&path).unwrap();
    check(&store.partition("kept", 0).unwrap(), end);
}

/// Runs in a process whose files may not grow beyond a limit.
fn limited(path: &Path) {
    for (number, mode) in [StorageMode::Auto, StorageMode::Write].into_iter().enumerate() {
        for (other, flush) in [Flush::OnAck, Flush::Os].into_iter().enumerate() {
            let path = path.join(format!("{number}-{other}"));
            let store = open(&path, mode);
            store.create_topic("large", topic(flush)).unwrap();
            store.create_topic("small", topic(flush).segment_bytes(64 << 10)).unwrap();
            let large = store.partition("large", 0).unwrap();
            let end = fill(&large, &path);
            assert_eq!(fill(&large, &path), end);
            check(&large, end);
            // Nobody else is held up.
            let small = store.partition("small", 0).unwrap();
            for number in 0..200 {
                small.append(&[Record::new(&value(number))], Acks::All).unwrap();
            }
            store.close(SECOND * 20).unwrap();
            drop((large, small, store));
            let store = open(&path, mode);
            check(&store.partition("large", 0).unwrap(), end);
            check(&store.partition("small", 0).unwrap(), 200);
        }
    }
}

#[test]
fn s10_a_file_that_may_not_grow_refuses_appends_and_nothing_else() {
    if let Some(path) = std::env::var_os(LIMITED) {
        return limited(Path::new(&path));
    }
    let directory = tempfile::tempdir().unwrap();
    // In blocks of 512 bytes: 128 KiB. The signal that goes with the refusal is ignored, as hosts do.
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 256; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "s10_a_file_that_may_not_grow_refuses_appends_and_nothing_else"])
        .env(LIMITED, directory.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// Runs in a process that may have few files open. A flush behind a new segment, which could not open the directory,
/// was taken for a failed one: the partition took nothing more until the next opening.
fn without_handles(path: &Path) {
    let store = open(path, StorageMode::Auto);
    let partitions = ["one", "other"].map(|name| {
        store.create_topic(name, topic(Flush::OnAck).segment_bytes(16 << 10)).unwrap();
        store.partition(name, 0).unwrap()
    });
    let mut ends = [0, 0];
    for spare in (0..4).chain(0..4) {
        let mut hoard = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            hoard.push(file);
        }
        hoard.truncate(hoard.len() - spare);
        for at in (0..2).cycle().take(80) {
            match partitions[at].append(&[Record::new(&value(ends[at]))], Acks::All) {
                Ok(_) => ends[at] += 1,
                Err(error) => {
                    assert_eq!(error.class(), oncelog::ErrorClass::Retriable, "{spare}: {error}");
                    assert_eq!(error.written(), Written::No, "{spare}: {error}");
                }
            }
        }
        drop(hoard);
        for at in 0..2 {
            partitions[at].append(&[Record::new(&value(ends[at]))], Acks::All).unwrap();
            ends[at] += 1;
        }
    }
    store.close(SECOND * 20).unwrap();
    let store = open(path, StorageMode::Auto);
    for (name, end) in ["one", "other"].into_iter().zip(ends) {
        check(&store.partition(name, 0).unwrap(), end);
    }
}

#[test]
fn s11_a_shortage_of_handles_refuses_appends_for_as_long_as_it_lasts() {
    if let Some(path) = std::env::var_os(LIMITED) {
        return without_handles(Path::new(&path));
    }
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 120; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "s11_a_shortage_of_handles_refuses_appends_for_as_long_as_it_lasts"])
        .env(LIMITED, directory.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
