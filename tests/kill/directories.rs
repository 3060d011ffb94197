//! Three real directories, one of which is removed, moved, replaced or taken its files from while everybody goes on, then
//! kill -9: what was acknowledged is there. And directories that stand where files should be.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use oncelog::{
    Acks, Error, Flush, Offset, Partition, ProducerEpoch, ProducerId, ProducerSequence,
    ReadOptions, Record, Store, StoreBuilder, TopicConfig, VerifyOptions,
};

use crate::killed;

const SECOND: Duration = Duration::from_secs(1);
const TOPICS: [(&str, Flush); 2] = [("acked", Flush::OnAck), ("cached", Flush::Os)];
/// More than any wait may take.
const LONG: Duration = Duration::from_secs(60);

fn value(at: u64) -> Vec<u8> {
    let mut bytes = at.to_le_bytes().to_vec();
    bytes.extend((0..at * 37 % 900).map(|n| u8::try_from((n * 31 + at) % 251).unwrap()));
    bytes
}

fn directories(scratch: &Path) -> Vec<PathBuf> {
    (0..3).map(|at| scratch.join(format!("disk-{at}"))).collect()
}

fn builder(scratch: &Path) -> StoreBuilder {
    let builder = Store::builder();
    directories(scratch).iter().fold(builder, |builder, path| builder.disk(path))
}

fn create(store: &Store, segment_bytes: u64) {
    for (name, flush) in TOPICS {
        let config = TopicConfig::new()
            .replication_factor(3)
            .min_insync_replicas(2)
            .flush(flush)
            .segment_bytes(segment_bytes);
        store.create_topic(name, config).unwrap();
    }
}

fn numbered(sequence: u64) -> ProducerSequence {
    ProducerSequence { id: ProducerId(7), epoch: ProducerEpoch(0), sequence }
}

/// Appends from one thread a topic until it is killed; offers again what failed, and writes down what was acknowledged.
fn child() {
    let (scratch, segment_bytes) = killed::task();
    let store = builder(&scratch).open().unwrap();
    create(&store, segment_bytes);
    println!("ready");
    std::thread::scope(|scope| {
        for (name, flush) in TOPICS {
            let partition = store.partition(name, 0).unwrap();
            let open = |kind: &str| {
                let path = scratch.join(format!("{name}.{kind}"));
                fs::OpenOptions::new().append(true).create(true).open(path).unwrap()
            };
            let (mut journal, mut errors) = (open("journal"), open("errors"));
            scope.spawn(move || {
                let mut at = 0;
                loop {
                    match partition.append_idempotent(
                        numbered(at),
                        &[Record::new(&value(at))],
                        Acks::All,
                    ) {
                        Ok(appended) => {
                            let line = format!("\n{} {at} .", appended.offsets.start);
                            // It may have grown as large as a file may be.
                            if journal.write_all(line.as_bytes()).is_err() {
                                return;
                            }
                            at += 1;
                            if flush == Flush::Os {
                                std::thread::sleep(Duration::from_millis(1));
                            }
                        }
                        Err(error) => {
                            let _ = writeln!(errors, "{at}: {error} {:?}", error.written());
                            std::thread::sleep(Duration::from_millis(20));
                        }
                    }
                }
            });
        }
    });
}

fn journal(scratch: &Path, name: &str) -> BTreeMap<u64, u64> {
    let text = fs::read_to_string(scratch.join(format!("{name}.journal"))).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.strip_suffix(" ."));
    lines
        .map(|line| {
            let (offset, at) = line.split_once(' ').unwrap();
            (offset.parse().unwrap(), at.parse().unwrap())
        })
        .collect()
}

/// Waits until that much more was acknowledged in each topic.
fn wait_for_more(scratch: &Path, more: usize, what: &str) {
    let before = TOPICS.map(|(name, _)| journal(scratch, name).len());
    let deadline = Instant::now() + LONG;
    for ((name, _), before) in TOPICS.into_iter().zip(before) {
        while journal(scratch, name).len() < before + more {
            if Instant::now() > deadline {
                let errors = fs::read_to_string(scratch.join(format!("{name}.errors"))).unwrap();
                let last: Vec<_> = errors.lines().rev().take(3).collect();
                panic!("{what}: {name} does not go on: {last:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn contents(partition: &Partition, what: &str) -> BTreeMap<u64, u64> {
    let (begun, mut found, mut offset) = (Instant::now(), BTreeMap::new(), Offset(0));
    while offset < partition.high_watermark() {
        let records = match partition.read(offset, ReadOptions::new()) {
            Ok(records) => records,
            // A leader's damage is repaired in the background.
            Err(Error::Corrupt { .. }) if begun.elapsed() < LONG => {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            }
            Err(error) => panic!("{what}: {error:?}"),
        };
        for record in &records {
            let bytes = record.value().unwrap();
            let at = u64::from_le_bytes(*bytes.first_chunk().unwrap());
            assert_eq!(bytes, value(at));
            found.insert(record.offset().0, at);
        }
        offset = records.next_offset();
    }
    found
}

fn check(scratch: &Path, store: &Store, what: &str) {
    for (name, _) in TOPICS {
        let partition = store.partition(name, 0).unwrap();
        // A replica that cannot follow has to leave the in-sync set first.
        let deadline = Instant::now() + LONG;
        while partition.high_watermark() < partition.log_end_offset() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let (found, known) = (contents(&partition, what), journal(scratch, name));
        for (offset, at) in &known {
            assert_eq!(found.get(offset), Some(at), "{what}: {name} at {offset}");
        }
        let values: Vec<_> = found.values().copied().collect();
        assert_eq!(
            values,
            (0..values.len() as u64).collect::<Vec<_>>(),
            "{what}: {name}: once each"
        );
    }
}

fn start(test: &str, scratch: &Path, segment_bytes: u64, limits: Option<&str>) -> Child {
    let mut command = killed::command(module_path!(), test, scratch, segment_bytes);
    if let Some(limits) = limits {
        let mut limited = Command::new("sh");
        limited.args(["-c", &format!("trap '' XFSZ; {limits}; exec \"$0\" \"$@\"")]);
        limited.arg(command.get_program()).args(command.get_args()).stdout(Stdio::piped());
        for (key, value) in command.get_envs() {
            limited.env(key, value.unwrap());
        }
        command = limited;
    }
    killed::start(&mut command)
}

fn wait_for_all(store: &Store, what: &str) {
    let deadline = Instant::now() + LONG;
    for (name, _) in TOPICS {
        let partition = store.partition(name, 0).unwrap();
        while partition.in_sync_replicas().len() < 3 {
            if Instant::now() > deadline {
                store.events().for_each(|event| eprintln!("event: {event}"));
                panic!("{what}: {name}: in sync are {:?}", partition.in_sync_replicas());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

type Act = fn(&Path, &Path);

/// What is done to a directory while it is in use, and before the next opening.
const MISDEEDS: [(&str, Act, Act); 8] = [
    ("removed", |disk, _| fs::remove_dir_all(disk).unwrap(), |_, _| ()),
    (
        "away until the next opening",
        |disk, aside| fs::rename(disk, aside).unwrap(),
        |disk, aside| fs::rename(aside, disk).unwrap(),
    ),
    (
        "away for a moment",
        |disk, aside| {
            fs::rename(disk, aside).unwrap();
            std::thread::sleep(SECOND / 2);
            fs::rename(aside, disk).unwrap();
        },
        |_, _| (),
    ),
    (
        "a file",
        |disk, aside| {
            fs::rename(disk, aside).unwrap();
            fs::write(disk, "no directory").unwrap();
        },
        |_, _| (),
    ),
    (
        "an empty directory",
        |disk, aside| {
            fs::rename(disk, aside).unwrap();
            fs::create_dir(disk).unwrap();
        },
        |_, _| (),
    ),
    (
        "an empty directory for a while",
        |disk, aside| {
            fs::rename(disk, aside).unwrap();
            fs::create_dir(disk).unwrap();
        },
        |disk, aside| {
            fs::remove_dir_all(disk).unwrap();
            fs::rename(aside, disk).unwrap();
        },
    ),
    ("without topics", |disk, _| fs::remove_dir_all(disk.join("topics")).unwrap(), |_, _| ()),
    (
        "without its own files",
        |disk, _| {
            for entry in fs::read_dir(disk).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_file() {
                    fs::remove_file(entry.path()).unwrap();
                }
            }
        },
        // Nothing says any more that it was a disk: that is refused, and an operator takes it away.
        |disk, aside| fs::rename(disk, aside).unwrap(),
    ),
];

#[test]
fn s13_a_directory_that_goes_while_it_is_in_use_takes_nothing_along() {
    if killed::is_child() {
        return child();
    }
    for (nth, (what, act, undo)) in MISDEEDS.into_iter().enumerate() {
        let at = nth % 2;
        let what = format!("disk {at}: {what}");
        let temporary = tempfile::tempdir().unwrap();
        let scratch = temporary.path();
        let test = "s13_a_directory_that_goes_while_it_is_in_use_takes_nothing_along";
        let child = start(test, scratch, 64 << 10, None);
        wait_for_more(scratch, 50, &what);
        let (disk, aside) = (scratch.join(format!("disk-{at}")), scratch.join("aside"));
        act(&disk, &aside);
        // Several segments.
        wait_for_more(scratch, 500, &what);
        killed::kill_after(child, Duration::ZERO);
        undo(&disk, &aside);
        let store = builder(scratch).open().unwrap_or_else(|error| panic!("{what}: {error}"));
        check(scratch, &store, &what);
        let whole = store.disks().iter().all(|disk| disk.state == oncelog::DiskState::Online);
        if whole {
            wait_for_all(&store, &what);
            let report = store.verify(VerifyOptions::new().repair(true)).unwrap();
            assert!(report.damages.iter().all(|damage| damage.repaired), "{what}");
            check(scratch, &store, &what);
        }
        store.close(LONG).unwrap();
        let store = builder(scratch).open().unwrap_or_else(|error| panic!("{what}: {error}"));
        check(scratch, &store, &what);
    }
}

#[test]
fn s10_s11_limits_of_the_process_take_nothing_of_three_replicas() {
    if killed::is_child() {
        return child();
    }
    let test = "s10_s11_limits_of_the_process_take_nothing_of_three_replicas";
    for (limits, segment_bytes) in [
        ("ulimit -f 512", 1 << 20),
        ("ulimit -f 512", 64 << 10),
        ("ulimit -n 100", 64 << 10),
        ("ulimit -n 80", 64 << 10),
    ] {
        let temporary = tempfile::tempdir().unwrap();
        let scratch = temporary.path();
        let child = start(test, scratch, segment_bytes, Some(limits));
        wait_for_more(scratch, 50, limits);
        killed::kill_after(child, SECOND * 2);
        let store = builder(scratch).open().unwrap();
        check(scratch, &store, limits);
        wait_for_all(&store, limits);
        assert_eq!(store.verify(VerifyOptions::new()).unwrap().damages, []);
        for (name, _) in TOPICS {
            let partition = store.partition(name, 0).unwrap();
            let next = partition.high_watermark().0;
            let placed = partition.append_idempotent(
                numbered(next),
                &[Record::new(&value(next))],
                Acks::All,
            );
            assert_eq!(placed.unwrap().offsets.start.0, next);
        }
        store.close(LONG).unwrap();
    }
}

/// One of three was refused as a whole, as if the others could not go on.
#[test]
fn s12_a_file_where_one_directory_should_be_is_a_missing_disk() {
    let temporary = tempfile::tempdir().unwrap();
    let scratch = temporary.path();
    let file = scratch.join("disk-1");
    fs::write(&file, "no directory").unwrap();
    let refused = builder(scratch).open().unwrap_err();
    assert!(refused.to_string().contains("disk-1"), "no new store: {refused}");
    assert!(!scratch.join("disk-0").join("store.id").exists());
    fs::remove_file(&file).unwrap();
    let store = builder(scratch).open().unwrap();
    create(&store, 64 << 10);
    let append = |store: &Store, range: std::ops::Range<u64>| {
        for (name, _) in TOPICS {
            let partition = store.partition(name, 0).unwrap();
            for at in range.clone() {
                let appended = partition.append_idempotent(
                    numbered(at),
                    &[Record::new(&value(at))],
                    Acks::All,
                );
                assert_eq!(appended.unwrap().offsets.start.0, at);
            }
        }
    };
    append(&store, 0..20);
    store.close(LONG).unwrap();
    fs::rename(&file, scratch.join("aside")).unwrap();
    fs::write(&file, "no directory").unwrap();
    let store = builder(scratch).open().unwrap();
    append(&store, 20..40);
    assert!(store.events().any(|event| event.to_string().contains("disk-1")), "it is told");
    store.close(LONG).unwrap();
    fs::remove_file(&file).unwrap();
    fs::rename(scratch.join("aside"), &file).unwrap();
    let store = builder(scratch).open().unwrap();
    wait_for_all(&store, "back");
    append(&store, 40..60);
    store.close(LONG).unwrap();
    for path in directories(scratch) {
        fs::remove_dir_all(&path).unwrap();
        fs::write(&path, "no directory").unwrap();
    }
    assert!(matches!(builder(scratch).open(), Err(Error::Io { .. })));
}

/// What was copied anew to the mount point of a disk that was unmounted counted as on that disk, and was not there when it
/// was mounted again.
#[test]
fn s12_an_empty_directory_in_the_place_of_a_disk_gets_nothing_of_its_replicas() {
    let temporary = tempfile::tempdir().unwrap();
    let scratch = temporary.path();
    let store = builder(scratch).open().unwrap();
    create(&store, 16 << 10);
    let (disk, aside) = (scratch.join("disk-1"), scratch.join("aside"));
    let append = |store: &Store, range: std::ops::Range<u64>| {
        for (name, _) in TOPICS {
            let partition = store.partition(name, 0).unwrap();
            for at in range.clone() {
                let record = value(at);
                partition
                    .append_idempotent(numbered(at), &[Record::new(&record)], Acks::All)
                    .unwrap();
            }
        }
    };
    append(&store, 0..50);
    fs::rename(&disk, &aside).unwrap();
    fs::create_dir(&disk).unwrap();
    append(&store, 50..150);
    // Replicas that failed are tried again each second.
    std::thread::sleep(SECOND * 3);
    append(&store, 150..200);
    assert!(!disk.join("topics").exists());
    for (name, _) in TOPICS {
        let in_sync = store.partition(name, 0).unwrap().in_sync_replicas();
        assert!(!in_sync.contains(&oncelog::DiskId(1)), "{name}: {in_sync:?}");
    }
    let _ = store.close(LONG);
    drop(store);
    let store = builder(scratch).open().unwrap();
    append(&store, 200..210);
    store.close(LONG).unwrap();
    fs::remove_dir_all(&disk).unwrap();
    fs::rename(&aside, &disk).unwrap();
    let store = builder(scratch).open().unwrap();
    wait_for_all(&store, "mounted again");
    for (name, _) in TOPICS {
        let found = contents(&store.partition(name, 0).unwrap(), "mounted again");
        assert_eq!(found.len(), 210);
    }
    store.stop_disk(oncelog::DiskId(1)).unwrap();
    store.start_disk(oncelog::DiskId(1)).unwrap();
    wait_for_all(&store, "started again");
}

/// Files of a disk, below its directory.
fn files(disk: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut left = vec![disk.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else {
                files.push(path.strip_prefix(disk).unwrap().to_owned());
            }
        }
    }
    files.sort();
    files
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

/// A directory in the place of any one file, with something in it or not, after a clean stop or a kill.
#[test]
fn s15_a_directory_where_a_file_should_be_takes_nothing_along() {
    if killed::is_child() {
        return child();
    }
    let test = "s15_a_directory_where_a_file_should_be_takes_nothing_along";
    for clean in [true, false] {
        let temporary = tempfile::tempdir().unwrap();
        let pristine = temporary.path().join("pristine");
        fs::create_dir(&pristine).unwrap();
        let child = start(test, &pristine, 64 << 10, None);
        wait_for_more(&pristine, 300, "first");
        killed::kill_after(child, Duration::ZERO);
        if clean {
            let store = builder(&pristine).open().unwrap();
            wait_for_all(&store, "first");
            store.close(LONG).unwrap();
        }
        for (nth, name) in files(&pristine.join("disk-0")).into_iter().enumerate() {
            // Some of the many.
            if name.starts_with("topics") && nth % 5 > 0 {
                continue;
            }
            let scratch = temporary.path().join("scratch");
            copy(&pristine, &scratch);
            let victim = scratch.join("disk-0").join(&name);
            fs::remove_file(&victim).unwrap();
            fs::create_dir(&victim).unwrap();
            fs::write(victim.join("something"), "of somebody else").unwrap();
            let what = format!("{}, clean {clean}", name.display());
            for _ in 0..2 {
                let opened = builder(&scratch).open();
                let store = opened.unwrap_or_else(|error| panic!("{what}: {error}"));
                check(&scratch, &store, &what);
                for (topic, _) in TOPICS {
                    let partition = store.partition(topic, 0).unwrap();
                    let next = partition.high_watermark().0;
                    let record = value(next);
                    let placed = partition.append_idempotent(
                        numbered(next),
                        &[Record::new(&record)],
                        Acks::All,
                    );
                    let placed = placed.unwrap_or_else(|error| panic!("{what}: {error}"));
                    assert_eq!(placed.offsets.start.0, next, "{what}");
                }
                // What cannot be written there is told.
                let _ = store.close(LONG);
            }
            if victim.is_dir() {
                assert!(victim.join("something").exists(), "{what}: not ours to remove");
            }
            fs::remove_dir_all(&scratch).unwrap();
        }
    }
}

/// The same with one disk: a typed error, or all that is not in that file.
#[test]
fn s15_a_directory_where_a_file_of_the_only_disk_should_be_is_told() {
    let temporary = tempfile::tempdir().unwrap();
    let pristine = temporary.path().join("pristine");
    let open = |path: &Path| Store::builder().disk(path.join("disk-0")).open();
    {
        fs::create_dir(&pristine).unwrap();
        let store = open(&pristine).unwrap();
        store.create_topic("t", TopicConfig::new().segment_bytes(16 << 10)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        for at in 0..100 {
            partition
                .append_idempotent(numbered(at), &[Record::new(&value(at))], Acks::All)
                .unwrap();
        }
        store.close(LONG).unwrap();
    }
    for name in files(&pristine.join("disk-0")) {
        for unclean in [false, true] {
            let scratch = temporary.path().join("scratch");
            copy(&pristine, &scratch);
            if unclean {
                let _ = fs::remove_file(scratch.join("disk-0/session"));
            }
            let victim = scratch.join("disk-0").join(&name);
            let _ = fs::remove_file(&victim);
            fs::create_dir(&victim).unwrap();
            fs::write(victim.join("something"), "of somebody else").unwrap();
            let what = format!("{}, unclean {unclean}", name.display());
            match open(&scratch) {
                Ok(store) => {
                    let partition = store.partition("t", 0).unwrap();
                    let mut offset = Offset(0);
                    while offset < partition.high_watermark() {
                        match partition.read(offset, ReadOptions::new()) {
                            Ok(records) => {
                                for record in &records {
                                    let at = record.offset().0;
                                    assert_eq!(record.value().unwrap(), value(at), "{what}");
                                    offset = Offset(at + 1);
                                }
                            }
                            Err(Error::Corrupt { .. } | Error::Io { .. }) => {
                                offset = Offset(offset.0 + 1);
                            }
                            Err(error) => panic!("{what}: at {offset}: {error}"),
                        }
                    }
                    // Nobody else knows of the last segment.
                    let last = name.ends_with("00000000000000000093.log");
                    assert!(offset.0 >= 100 || unclean && last, "{what}: ends at {offset}");
                    // Or refused, where its file should go.
                    let _ = partition.append(&[Record::new("more")], Acks::All);
                    // What cannot be written there is told.
                    let _ = store.close(LONG);
                }
                Err(error) => assert!(matches!(error, Error::Io { .. }), "{what}: {error}"),
            }
            fs::remove_dir_all(&scratch).unwrap();
        }
    }
}
