//! Directories and files that may not be used any more, as somebody who is not root: what was acknowledged is there when
//! they may be used again, the other disks go on, and errors name what is in the way.
#![cfg(all(target_os = "linux", not(miri)))]
#![allow(unsafe_code, reason = "std cannot limit a process")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may fail loudly, and a child speaks to its parent"
)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use oncelog::{
    Acks, Error, ErrorClass, Flush, ReadOptions, Record, Store, StoreBuilder, TopicConfig,
    VerifyOptions,
};

const NOBODY: u32 = 65534;
const LONG: Duration = Duration::from_secs(30);

/// Held while a child is made.
static COPYING: Mutex<()> = Mutex::new(());

/// Runs the test as nobody if it is root's, to whom nothing is forbidden. False: it was run.
fn is_root(test: &str) -> bool {
    if fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) != 0) {
        return false;
    }
    // Nobody may not go where the test was built.
    let scratch = tempfile::tempdir().unwrap();
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let own = scratch.path().join("test");
    let home = scratch.path().join("home");
    fs::create_dir(&home).unwrap();
    chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
    let mut child = Command::new(&own);
    child.args(["--exact", test, "--nocapture"]).env("TMPDIR", &home).current_dir(&home);
    child.uid(NOBODY).gid(NOBODY).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Another test's child, made meanwhile, would hold the file open for writing: ETXTBSY.
    let alone = COPYING.lock().unwrap();
    fs::copy(std::env::current_exe().unwrap(), own).unwrap();
    let child = child.spawn().unwrap();
    drop(alone);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    print!("{said}");
    true
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn builder(disks: &[PathBuf]) -> StoreBuilder {
    let builder = Store::builder().append_timeout(Duration::from_secs(5));
    disks.iter().fold(builder, |builder, disk| builder.disk(disk))
}

fn value(number: u64) -> String {
    format!("{number:05}{}", "x".repeat(2000))
}

fn read_all(store: &Store) -> Result<Vec<u64>, Error> {
    let partition = store.partition("t", 0)?;
    let (mut next, mut found) = (partition.log_start_offset(), Vec::new());
    while next < partition.high_watermark() {
        let records = partition.read(next, ReadOptions::new())?;
        found.extend(records.iter().map(|one| {
            std::str::from_utf8(&one.value().unwrap()[..5]).unwrap().parse::<u64>().unwrap()
        }));
        next = records.next_offset();
    }
    Ok(found)
}

/// What is forbidden, below a disk's directory, and how.
fn spoiled(disk: &Path) -> Vec<PathBuf> {
    let mut found = vec![disk.to_owned()];
    let mut at = 0;
    while at < found.len() {
        if found[at].is_dir() {
            let mut entries: Vec<_> =
                fs::read_dir(&found[at]).unwrap().map(|entry| entry.unwrap().path()).collect();
            entries.sort();
            found.extend(entries);
        }
        at += 1;
    }
    found
}

/// Whether it says what is in the way.
fn names(error: &Error, path: &Path) -> bool {
    let mut said = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        said = format!("{said}: {inner}");
        source = inner.source();
    }
    said.contains(&*path.to_string_lossy())
        || path.ancestors().any(|one| said.contains(&format!("{}:", one.display())))
        || said.contains("is missing")
        || said.contains("ermission denied")
}

struct Story {
    disks: Vec<PathBuf>,
    acknowledged: BTreeSet<u64>,
    sent: u64,
}

impl Story {
    fn append(&mut self, store: &Store, count: u64) -> Result<(), Error> {
        let partition = store.partition("t", 0)?;
        for _ in 0..count {
            let number = self.sent;
            self.sent += 1;
            partition.append(&[Record::new(&value(number))], Acks::All)?;
            self.acknowledged.insert(number);
        }
        Ok(())
    }

    fn judge(&self, found: &[u64], what: &str) {
        let set: BTreeSet<_> = found.iter().copied().collect();
        assert_eq!(set.len(), found.len(), "{what}: twice: {found:?}");
        let lost: Vec<_> = self.acknowledged.difference(&set).collect();
        assert!(lost.is_empty(), "{what}: lost {lost:?} of {}", self.sent);
    }
}

fn stories(disks: usize, amid: bool) {
    let seen = |scratch: &Path| {
        let mut story = make(scratch, disks);
        let store = builder(&story.disks).open().unwrap();
        story.append(&store, 1).unwrap();
        if !amid {
            store.close(LONG).unwrap();
        }
        spoiled(&story.disks[0]).len()
    };
    let count = seen(tempfile::tempdir().unwrap().path());
    let mut failed = 0;
    for at in 0..count {
        for mode in [0, 0o444, 0o555] {
            failed += u32::from(std::panic::catch_unwind(|| one(disks, amid, at, mode)).is_err());
        }
    }
    assert_eq!(failed, 0);
}

fn make(scratch: &Path, disks: usize) -> Story {
    let disks: Vec<_> = (0..disks).map(|at| scratch.join(format!("disk-{at}"))).collect();
    let mut story = Story { disks, acknowledged: BTreeSet::new(), sent: 0 };
    let store = builder(&story.disks).open().unwrap();
    let replicas = u16::try_from(story.disks.len()).unwrap();
    let config = TopicConfig::new().replication_factor(replicas).segment_bytes(1 << 14);
    let flush = if replicas == 1 { Flush::Os } else { Flush::OnAck };
    store.create_topic("t", config.flush(flush)).unwrap();
    story.append(&store, 20).unwrap();
    store.close(LONG).unwrap();
    story
}

fn one(disks: usize, amid: bool, at: usize, mode: u32) {
    let scratch = tempfile::tempdir().unwrap();
    let mut story = make(scratch.path(), disks);
    let mut open = None;
    if amid {
        let store = builder(&story.disks).open().unwrap();
        story.append(&store, 1).unwrap();
        open = Some(store);
    }
    let all = spoiled(&story.disks[0]);
    let Some(path) = all.get(at) else { return };
    let before = fs::metadata(path).unwrap().permissions().mode();
    let short = path.strip_prefix(scratch.path()).unwrap().display().to_string();
    let what = format!("{disks} disks, amid {amid}: {short} {mode:o}");
    set_mode(path, mode);
    let store = match open {
        Some(store) => Ok(store),
        None => builder(&story.disks).open(),
    };
    let mut said = String::new();
    match store {
        Err(error) => {
            said = format!("open: {error:?}");
            assert!(names(&error, path), "{what}: {error:?}: {error}");
            assert!(disks == 1, "{what}: {error:?}");
        }
        Ok(store) => {
            match read_all(&store) {
                Ok(found) => story.judge(&found, &format!("{what}, amid")),
                Err(error) => {
                    said += &format!(" read: {error}");
                    assert!(disks == 1, "{what}: {error:?}");
                }
            }
            if let Err(error) = story.append(&store, 20) {
                said += &format!(" append: {error}");
                assert!(disks == 1, "{what}: {error:?}");
            }
            match store.verify(VerifyOptions::new()) {
                Ok(report) => {
                    if !report.damages.is_empty() {
                        said += &format!(" verify: {:?}", report.damages);
                    }
                }
                Err(error) => said += &format!(" verify: {error}"),
            }
            if let Err(error) = store.close(LONG) {
                said += &format!(" close: {error}");
            }
        }
    }
    set_mode(path, before);
    println!("{what}:{said}");
    let store = builder(&story.disks).open().unwrap_or_else(|error| panic!("{what}: {error:?}"));
    let found = read_all(&store).unwrap_or_else(|error| panic!("{what}: {error:?}"));
    story.judge(&found, &what);
    story.append(&store, 3).unwrap_or_else(|error| panic!("{what}: {error:?}"));
    let found = read_all(&store).unwrap();
    story.judge(&found, &what);
    store.close(LONG).unwrap_or_else(|error| panic!("{what}: {error:?}"));
}

#[test]
fn s12_one_disk_of_which_something_is_forbidden_at_the_opening() {
    if !is_root("s12_one_disk_of_which_something_is_forbidden_at_the_opening") {
        stories(1, false);
    }
}

#[test]
fn s12_one_disk_of_which_something_is_forbidden_while_it_is_open() {
    if !is_root("s12_one_disk_of_which_something_is_forbidden_while_it_is_open") {
        stories(1, true);
    }
}

#[test]
fn s12_one_of_three_disks_of_which_something_is_forbidden_at_the_opening() {
    if !is_root("s12_one_of_three_disks_of_which_something_is_forbidden_at_the_opening") {
        stories(3, false);
    }
}

#[test]
fn s12_one_of_three_disks_of_which_something_is_forbidden_while_it_is_open() {
    if !is_root("s12_one_of_three_disks_of_which_something_is_forbidden_while_it_is_open") {
        stories(3, true);
    }
}

/// How many threads nobody may have.
fn limit_threads(count: Option<u64>) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: fills in the limit.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NPROC, &raw mut limit) }, 0);
    limit.rlim_cur = count.unwrap_or(limit.rlim_max);
    // SAFETY: reads the limit.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NPROC, &raw const limit) }, 0);
}

/// Those of its threads that had been started kept the directories; a close that found no thread left everything as it was.
#[test]
fn a_store_that_finds_no_threads_lets_go_of_its_directories() {
    if is_root("a_store_that_finds_no_threads_lets_go_of_its_directories") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let mut story = make(scratch.path(), 2);
    let mut refused = 0;
    for limit in 1..30 {
        limit_threads(Some(limit));
        let opened = builder(&story.disks).open();
        limit_threads(None);
        match opened {
            Err(error) => {
                assert_eq!(error.class(), ErrorClass::Retriable, "{error:?}");
                refused += 1;
            }
            Ok(store) => store.close(LONG).unwrap(),
        }
        let store = builder(&story.disks).open().unwrap();
        story.append(&store, 1).unwrap();
        limit_threads(Some(1));
        let closed = store.close(LONG);
        limit_threads(None);
        closed.unwrap();
        let store = builder(&story.disks).open().unwrap();
        story.judge(&read_all(&store).unwrap(), "threads");
        store.close(LONG).unwrap();
    }
    assert!(refused > 0);
}
