//! One process owns a store (RELIABILITY S18): another one is told who, a forked child may not use what
//! it inherited, and neither does any harm by trying or by leaving.
#![cfg(all(target_os = "linux", not(miri)))]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may fail loudly, and a child speaks to its parent"
)]
#![allow(unsafe_code, reason = "std cannot fork, and forking is what is tested")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use oncelog::{
    Acks, DiskId, Error, EventKind, Offset, ReadOptions, Record, Store, TopicConfig, VerifyOptions,
};

const DIRECTORY: &str = "ONCELOG_OWNER_DIR";

fn count(store: &Store) -> usize {
    let partition = store.partition("t", 0).unwrap();
    partition.read(partition.log_start_offset(), ReadOptions::new()).unwrap().count()
}

/// What another process is told on opening `path`.
fn other_opener(path: &Path) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "s18_another_process_is_told_who_has_the_store", "--nocapture"])
        .env(DIRECTORY, path)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    said.lines().find_map(|line| line.split_once("opener: ")).unwrap().1.to_owned()
}

#[test]
fn s18_another_process_is_told_who_has_the_store() {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        match Store::open(directory) {
            Ok(store) => println!("opener: opened {}", count(&store)),
            Err(Error::Locked { pid, .. }) => println!("opener: locked by {pid:?}"),
            Err(error) => println!("opener: {error:?}"),
        }
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("data");
    let alias = scratch.path().join("alias");
    std::os::unix::fs::symlink(&path, &alias).unwrap();
    let store = Store::open(&path).unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    let partition = store.partition("t", 0).unwrap();
    partition.append(&[Record::new("a")], Acks::All).unwrap();
    let locked = format!("locked by {:?}", Some(std::process::id()));
    for name in [&path, &alias] {
        assert_eq!(other_opener(name), locked);
        let Err(Error::Locked { pid, .. }) = Store::open(name) else { panic!("two openers") };
        assert_eq!(pid, Some(std::process::id()));
        partition.append(&[Record::new("b")], Acks::All).unwrap();
    }
    store.close(Duration::from_secs(10)).unwrap();
    assert_eq!(other_opener(&alias), "opened 3");
}

/// Runs `child` in a forked process and returns its answer; 100 if it panicked, 200 if it hung.
fn forked(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child runs `child` on the only thread it has, with an alarm set, and leaves through
    // `_exit`, so nothing of its parent's is torn down.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "no fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        // SAFETY: ends a child that hangs, by a signal.
        unsafe { libc::alarm(20) };
        let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(100);
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(answer) };
    }
    let mut status = -1;
    // SAFETY: waits for the child made above and fills in its status.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 200 }
}

#[test]
fn s18_a_forked_child_is_refused_and_takes_nothing_with_it() {
    let scratch = tempfile::tempdir().unwrap();
    let open = [Store::open(scratch.path()).unwrap(), Store::temporary().unwrap()];
    for store in open {
        store.create_topic("t", TopicConfig::new()).unwrap();
        let partition = store.partition("t", 0).unwrap();
        partition.append(&[Record::new("a")], Acks::All).unwrap();
        let (inherited, path) = ((store.clone(), partition.clone()), store.path().to_owned());
        let answer = forked(move || {
            let (store, partition) = inherited;
            let record = [Record::new("child")];
            let outcomes = [
                partition.append(&record, Acks::All).map(drop),
                partition.append(&record, Acks::None).map(drop),
                partition.append_nowait(&record, Acks::All).map(drop),
                partition.delete_records(Offset(1)).map(drop),
                store.create_topic("u", TopicConfig::new()),
                store.delete_topic("t"),
                store.add_partitions("t", 2),
                store.partition("t", 0).map(drop),
                store.verify(VerifyOptions::new()).map(drop),
            ];
            for (at, outcome) in (1..).zip(outcomes) {
                if !matches!(outcome, Err(Error::Closed)) {
                    return at;
                }
            }
            // It may wait for nobody: there is no thread to wake it.
            if partition.wait_for(Offset(5), Duration::from_millis(10)).is_ok() {
                return 50;
            }
            if store.close(Duration::from_secs(5)).is_err() {
                return 51;
            }
            drop((store, partition));
            0
        });
        assert_eq!(
            answer, 0,
            "100: it panicked; 200: it hung; else the first call that was let in"
        );
        // A child that lets go of its last handle.
        let mut last = Some((store, partition));
        let answer = forked(|| {
            last.take();
            0
        });
        assert_eq!(answer, 0);
        let (store, partition) = last.unwrap();
        assert!(path.join("store.id").exists(), "the child removed its parent's files");
        assert_eq!(other_opener(&path), format!("locked by {:?}", Some(std::process::id())));
        partition.append(&[Record::new("b")], Acks::All).unwrap();
        assert_eq!((count(&store), store.topics().len()), (2, 1));
        store.close(Duration::from_secs(10)).unwrap();
    }
    let store = Store::open(scratch.path()).unwrap();
    assert_eq!(count(&store), 2);
    assert!(store.events().all(|event| !event.to_string().contains("unclean")));
}

/// It flushed what its parent had in memory, and called that acknowledged.
#[cfg(feature = "simulation")]
#[test]
fn s18_a_forked_child_acknowledges_nothing_of_its_parents() {
    let disk = oncelog::simulation::SimDisk::new(1);
    let store = Store::builder().simulated_disk(disk.clone()).open().unwrap();
    store.create_topic("t", TopicConfig::new().flush(oncelog::Flush::OnAck)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let ticket = partition.append_nowait(&[Record::new("a")], Acks::All).unwrap();
    let calls = disk.calls();
    let answer = forked(|| match ticket.wait(Duration::from_secs(10)) {
        Err(Error::TimedOut { appended: Some(_), .. }) if disk.calls() == calls => 0,
        _ => 1,
    });
    assert_eq!(answer, 0);
    ticket.wait(Duration::from_secs(10)).unwrap();
}

/// What a child holds of its parent's producers, transactions and consumers it may use and let go of.
#[test]
fn s18_a_forked_child_lets_go_of_producers_and_consumers_at_once() {
    use oncelog::{ReadOptions, StartAt};
    const SECOND: Duration = Duration::from_secs(1);
    let scratch = tempfile::tempdir().unwrap();
    let store = Store::open(scratch.path()).unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    let partition = store.partition("t", 0).unwrap();
    partition.append(&[Record::new("a")], Acks::All).unwrap();
    let producer = store.producer().linger(SECOND * 5).build().unwrap();
    let mut transactional = store.producer().transactional_id("id").build().unwrap();
    let mut consumer =
        store.consumer().group("g").start(StartAt::Earliest).auto_commit(SECOND).build().unwrap();
    consumer.subscribe(&["t"]).unwrap();
    let mut polled = 0;
    while polled == 0 {
        polled = consumer.poll(SECOND).unwrap().count();
    }
    let delivery = producer.send(Record::to("t").partition(0).value("b")).unwrap();
    let mut transaction = transactional.begin().unwrap();
    transaction.append("t", 0, &[Record::new("c")]).unwrap();
    consumer.commit_async(drop).unwrap();
    let (mut given, mut one) = (Some((producer, consumer)), Some(transaction));
    for what in 0..6 {
        let answer = forked(|| {
            let begun = std::time::Instant::now();
            let (producer, mut consumer) = given.take().unwrap();
            let transaction = one.take().unwrap();
            let is_refused = match what {
                0 => producer
                    .send(Record::to("t").partition(0).value("child"))
                    .and_then(|sent| sent.wait(SECOND).map(drop))
                    .is_err(),
                1 => {
                    let _ = (producer.flush(SECOND), producer.close(SECOND));
                    delivery.wait(Duration::ZERO).is_err()
                }
                2 => transaction.commit(SECOND).is_err(),
                3 => transaction.abort(SECOND).is_err(),
                4 => {
                    let polled = consumer.poll(Duration::ZERO).is_err();
                    let committed = consumer.commit().is_err();
                    polled && committed && consumer.seek_to_begin("t", 0).is_ok()
                }
                _ => {
                    let read = partition.read(Offset(0), ReadOptions::new()).is_ok();
                    read && delivery.wait(Duration::ZERO).is_err()
                        && store.snapshot(&[("t", 0)]).is_err()
                        && store.backup("nowhere").is_err()
                        && store.groups().is_err()
                        && store.stop_disk(DiskId(0)).is_err()
                }
            };
            if what < 4 {
                drop(consumer);
            }
            if what != 1 {
                drop(producer);
            }
            if begun.elapsed() > SECOND * 8 {
                return 2;
            }
            i32::from(!is_refused)
        });
        assert_eq!(answer, 0, "call {what}; 1: it was let in; 2: it took long; 200: it hung");
    }
    one.take().unwrap().commit(SECOND * 10).unwrap();
    let (producer, consumer) = given.take().unwrap();
    delivery.wait(SECOND * 10).unwrap();
    drop(producer);
    consumer.close(SECOND * 10).unwrap();
    assert_eq!(partition.read(Offset(0), ReadOptions::new()).unwrap().count(), 3);
    store.close(SECOND * 10).unwrap();
    let store = Store::open(scratch.path()).unwrap();
    assert_eq!(store.verify(VerifyOptions::new()).unwrap().damages, []);
    assert!(store.events().all(|event| !event.to_string().contains("unclean")));
}

/// Whoever came next made a new one, and both acknowledged records at the same offsets: those of one were gone.
#[test]
fn s18_another_opener_is_refused_though_the_lock_file_was_removed() {
    let scratch = tempfile::tempdir().unwrap();
    let store = Store::open(scratch.path()).unwrap();
    std::fs::remove_file(scratch.path().join("lock")).unwrap();
    assert_eq!(other_opener(scratch.path()), "locked by None");
    assert!(matches!(Store::open(scratch.path()), Err(Error::Locked { .. })));
    store.close(Duration::from_secs(10)).unwrap();
    drop(store);
    Store::open(scratch.path()).unwrap();
}

/// The store in `path` with `count` records, in segments of a few each.
fn small_segments(path: &Path, count: u64) -> Store {
    let store = Store::open(path).unwrap();
    if store.topic("t").is_err() {
        store.create_topic("t", TopicConfig::new().segment_bytes(4096)).unwrap();
    }
    append_each(&store, count).unwrap();
    store
}

fn append_each(store: &Store, count: u64) -> Result<(), Error> {
    let partition = store.partition("t", 0)?;
    (0..count).try_for_each(|_| partition.append(&[Record::new(&[7; 500])], Acks::All).map(drop))
}

/// It removed, and overwrote, what has the same names in the other: segments, the metadata, how it was left.
#[test]
fn s14_s18_a_store_whose_directory_was_moved_away_touches_nothing_of_another_in_its_place() {
    type Act = fn(&Store) -> Result<(), Error>;
    let acts: [(&str, Act); 5] = [
        ("deletes records", |store| store.partition("t", 0)?.delete_records(Offset(80)).map(drop)),
        ("deletes the topic", |store| store.delete_topic("t")),
        ("makes a topic", |store| store.create_topic("u", TopicConfig::new())),
        ("appends", |store| append_each(store, 60)),
        ("repairs", |store| store.verify(VerifyOptions::new().repair(true)).map(drop)),
    ];
    for (what, act) in acts {
        for is_copy in [true, false] {
            let scratch = tempfile::tempdir().unwrap();
            let [data, aside, other] =
                ["data", "aside", "other"].map(|name| scratch.path().join(name));
            drop(small_segments(&data, 100));
            if is_copy {
                let copied = Command::new("cp").arg("-a").args([&data, &other]).status().unwrap();
                assert!(copied.success());
            } else {
                drop(small_segments(&other, 100));
            }
            let moved = small_segments(&data, 5);
            std::fs::rename(&data, &aside).unwrap();
            std::fs::rename(&other, &data).unwrap();
            let owner = small_segments(&data, 30);
            // It may well fail.
            let _ = act(&moved);
            append_each(&owner, 30).unwrap_or_else(|error| panic!("{what}: {error:?}"));
            owner.close(Duration::from_secs(10)).unwrap();
            let _ = moved.close(Duration::from_secs(10));
            drop((owner, moved));
            let owner = Store::open(&data).unwrap_or_else(|error| panic!("{what}: {error:?}"));
            let events: Vec<_> = owner.events().map(|event| event.kind).collect();
            assert!(
                matches!(events[..], [EventKind::Opened { clean: true, .. }]),
                "{what}: {events:?}"
            );
            assert!(owner.topic("u").is_err(), "{what}");
            let partition = owner.partition("t", 0).unwrap();
            let (mut found, mut offset) = (0, Offset::ZERO);
            while offset < partition.log_end_offset() {
                let read = partition.read(offset, ReadOptions::new());
                let read = read.unwrap_or_else(|error| panic!("{what}: {error:?}"));
                found += read.count();
                offset = read.next_offset();
            }
            assert_eq!(found, 160, "{what}");
        }
    }
}

/// It was known by the numbers that the system had given its directory before. A file system that is mounted again may give
/// others (btrfs, NFS, a device that comes back under another name): until the store was opened anew, the disk stayed away.
#[test]
fn s14_a_disk_that_was_stopped_is_started_once_its_directory_is_there_again_under_another_number() {
    let scratch = tempfile::tempdir().unwrap();
    let [first, second, aside] = ["first", "second", "aside"].map(|name| scratch.path().join(name));
    let store = Store::builder().disk(&first).disk(&second).open().unwrap();
    let config = TopicConfig::new().replication_factor(2);
    store.create_topic("t", config).unwrap();
    let partition = store.partition("t", 0).unwrap();
    partition.append(&[Record::new("a")], Acks::All).unwrap();
    store.stop_disk(DiskId(1)).unwrap();
    std::fs::rename(&second, &aside).unwrap();
    std::fs::create_dir(&second).unwrap();
    store.start_disk(DiskId(1)).expect_err("its mount point is empty");
    std::fs::remove_dir_all(&second).unwrap();
    let copied = Command::new("cp").arg("-r").args([&aside, &second]).status().unwrap();
    assert!(copied.success());
    store.start_disk(DiskId(1)).unwrap();
    partition.append(&[Record::new("b")], Acks::All).unwrap();
    store.close(Duration::from_secs(30)).unwrap();
    assert_eq!(count(&Store::builder().disk(&first).disk(&second).open().unwrap()), 2);
}
