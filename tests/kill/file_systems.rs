//! Real file systems that fail or fill up under a store, and such as lose power.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::iter;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use oncelog::simulation::Clock;
use oncelog::{
    Acks, DiskId, Error, Flush, Offset, Partition, ReadOptions, Record, StorageMode, Store,
    StoreBuilder, Timestamp, TopicConfig, VerifyOptions, Written,
};

use crate::killed;
use crate::mounts::{Kind, Mounted};
use crate::random::{Random, setting};
use crate::ticking::Ticking;

const PARTITIONS: u32 = 6;
const LONG: Duration = Duration::from_secs(20);
const FLUSHES: [Flush; 3] = [Flush::OnAck, Flush::Os, Flush::Interval(Duration::from_millis(50))];
/// Where the disks of a child are, and how much is flushed.
const DISKS: &str = "ONCELOG_KILL_DISKS";
const FLUSH: &str = "ONCELOG_KILL_FLUSH";

fn mounted(kind: Kind, count: usize) -> Option<Vec<Mounted>> {
    (0..count).map(|_| Mounted::new(kind)).collect()
}

fn paths(disks: &[Mounted]) -> Vec<PathBuf> {
    disks.iter().map(|disk| disk.path().join("store")).collect()
}

fn builder(paths: &[PathBuf]) -> StoreBuilder {
    paths.iter().fold(Store::builder(), |builder, path| builder.disk(path))
}

fn topic(flush: Flush, disks: usize) -> TopicConfig {
    let replicas = u16::try_from(disks).unwrap();
    TopicConfig::new().partitions(PARTITIONS).replication_factor(replicas).flush(flush)
}

fn partitions(store: &Store) -> Vec<Partition> {
    (0..PARTITIONS).map(|number| store.partition("t", number).unwrap()).collect()
}

fn value(number: u64) -> Vec<u8> {
    format!("{number:06} {}", "x".repeat(usize::try_from(number * 37 % 3000).unwrap())).into_bytes()
}

fn number_of(value: &[u8]) -> u64 {
    let number = std::str::from_utf8(&value[..6]).unwrap().parse().unwrap();
    assert_eq!(value, self::value(number));
    number
}

/// Appends `number`, at the next leader if this one fails.
fn append(partition: &Partition, number: u64) -> Offset {
    let begun = Instant::now();
    loop {
        match partition.append(&[Record::new(&value(number))], Acks::All) {
            Ok(appended) => return appended.offsets.start,
            Err(error) => assert!(begun.elapsed() < LONG, "{error:?}"),
        }
        thread::yield_now();
    }
}

/// All that can be read, by offset.
fn read_all(partition: &Partition) -> BTreeMap<u64, u64> {
    let (mut found, mut offset) = (BTreeMap::new(), partition.log_start_offset());
    while offset < partition.high_watermark() {
        let records = partition.read(offset, ReadOptions::new()).unwrap();
        found.extend(records.iter().map(|r| (r.offset().0, number_of(r.value().unwrap()))));
        offset = records.next_offset();
    }
    found
}

fn assert_kept(store: &Store, known: &[BTreeMap<u64, u64>], note: &str) {
    for (partition, known) in partitions(store).iter().zip(known) {
        let found = read_all(partition);
        for (offset, number) in known {
            assert_eq!(found.get(offset), Some(number), "{note}: offset {offset} of {partition:?}");
        }
    }
}

/// Three file systems of which one fails, after all pages were written back and partitions were idle: the next store to each
/// asks a file system that is no more.
fn one_of_three_fails(kind: Kind, flush: Flush, mode: StorageMode) {
    let Some(disks) = mounted(kind, 3) else { return };
    let paths = paths(&disks);
    let note = format!("{kind:?}, {flush:?}, {mode:?}");
    let clock = Clock::manual(Timestamp(1_000_000));
    let store = builder(&paths).storage_mode(mode).clock(clock.clone()).open().unwrap();
    store.create_topic("t", topic(flush, 3)).unwrap();
    let all = partitions(&store);
    let mut known = vec![BTreeMap::new(); all.len()];
    let mut next = 0;
    let mut append_to_all = |count| {
        for _ in 0..count {
            for (partition, known) in all.iter().zip(&mut known) {
                known.insert(append(partition, next).0, next);
                next += 1;
            }
        }
    };
    append_to_all(10);
    disks.iter().for_each(Mounted::write_back);
    // What the file systems agreed to is to be long ago.
    clock.advance(Duration::from_secs(1));
    disks[0].fail();
    append_to_all(40);
    for partition in &all {
        assert_ne!(partition.leader(), Some(DiskId(0)), "{note}: a disk that fails leads");
    }
    assert_kept(&store, &known, &note);
    drop((all, store));

    disks[0].mount_anew();
    let store = builder(&paths).storage_mode(mode).open().unwrap();
    assert_kept(&store, &known, &note);
    let deadline = Instant::now() + LONG;
    let is_whole = |partition: &Partition| partition.in_sync_replicas().len() == 3;
    while !partitions(&store).iter().all(is_whole) {
        assert!(Instant::now() < deadline, "{note}: it does not catch up");
        thread::yield_now();
    }
    store.close(LONG).unwrap();
    let store = builder(&paths).open().unwrap();
    let verified = store.verify(VerifyOptions::new()).unwrap();
    assert!(verified.damages.is_empty(), "{note}: {verified:?}");
    assert_kept(&store, &known, &note);
}

#[test]
fn s24_one_of_three_file_systems_fails_and_everybody_goes_on() {
    thread::scope(|scope| {
        for flush in FLUSHES {
            scope.spawn(move || one_of_three_fails(Kind::Xfs, flush, StorageMode::Auto));
        }
        scope.spawn(|| one_of_three_fails(Kind::Ext4, Flush::Os, StorageMode::Auto));
        scope.spawn(|| one_of_three_fails(Kind::Xfs, Flush::Os, StorageMode::Write));
    });
}

/// A file system that is frozen answers no write before it is thawed, and has written back all pages: the next store to each
/// waits as well. Meanwhile `clock` goes on, fast.
fn one_of_three_hangs(kind: Kind, flush: Flush) {
    let Some(disks) = mounted(kind, 3) else { return };
    let paths = paths(&disks);
    let note = format!("{kind:?}, {flush:?}");
    let clock = Clock::manual(Timestamp(1_000_000));
    let builder = builder(&paths).append_timeout(Duration::from_secs(1));
    let store = builder.clock(clock.clone()).open().unwrap();
    store.create_topic("t", topic(flush, 3)).unwrap();
    let all = partitions(&store);
    let mut known = vec![BTreeMap::new(); all.len()];
    let mut numbers = 0..;
    let mut append_to_all = |known: &mut Vec<BTreeMap<u64, u64>>, count| {
        for number in numbers.by_ref().take(count) {
            for (partition, known) in all.iter().zip(&mut *known) {
                known.insert(append(partition, number).0, number);
            }
        }
    };
    append_to_all(&mut known, 10);
    disks[0].freeze();
    clock.advance(Duration::from_secs(1));
    let _ticking = Ticking::new(&clock);
    append_to_all(&mut known, 40);
    for partition in &all {
        assert_ne!(partition.leader(), Some(DiskId(0)), "{note}: a disk that hangs leads");
    }
    assert_kept(&store, &known, &note);
    disks[0].thaw();
    let deadline = Instant::now() + LONG;
    while !all.iter().all(|partition| partition.in_sync_replicas().len() == 3) {
        assert!(Instant::now() < deadline, "{note}: it does not catch up: {:?}", store.disks());
        let _ = store.start_disk(DiskId(0));
        thread::yield_now();
    }
    append_to_all(&mut known, 10);
    assert_kept(&store, &known, &note);
    store.close(LONG).unwrap();
}

/// Appends to all partitions, one thread for each, while something happens to the disks: `meanwhile` is given what waits until
/// every partition has acknowledged so many more. In the end all is there, on all disks.
fn amid_appends(
    disks: &[Mounted],
    flush: Flush,
    pause: Duration,
    note: &str,
    meanwhile: impl FnOnce(&dyn Fn(u64)),
) {
    let paths = paths(disks);
    let builder = builder(&paths).append_timeout(LONG).replica_lag_max(LONG / 8);
    let store = builder.open().unwrap();
    store.create_topic("t", topic(flush, 3)).unwrap();
    let all = partitions(&store);
    let counts: Vec<_> = all.iter().map(|_| AtomicU64::new(0)).collect();
    let over = AtomicBool::new(false);
    let known: Vec<BTreeMap<u64, u64>> = thread::scope(|scope| {
        let _ends = Ends(&over);
        let append_on = |(partition, count): (&Partition, &AtomicU64)| {
            let mut known = BTreeMap::new();
            for number in 0..900_000 {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                known.insert(append(partition, number).0, number);
                count.fetch_add(1, Ordering::Relaxed);
                thread::sleep(pause);
            }
            known
        };
        let pairs = all.iter().zip(&counts);
        let threads: Vec<_> = pairs.map(|pair| scope.spawn(move || append_on(pair))).collect();
        meanwhile(&|more| {
            let before: Vec<_> = counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
            let begun = Instant::now();
            let is_behind =
                |(count, before): (&AtomicU64, &u64)| count.load(Ordering::Relaxed) < before + more;
            while counts.iter().zip(&before).any(is_behind) {
                assert!(begun.elapsed() < LONG, "{note}: nothing is acknowledged");
                thread::sleep(Duration::from_millis(1));
            }
        });
        over.store(true, Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_kept(&store, &known, note);
    let deadline = Instant::now() + LONG;
    while !all.iter().all(|partition| partition.in_sync_replicas().len() == 3) {
        assert!(Instant::now() < deadline, "{note}: it does not catch up: {:?}", store.disks());
        (0..3).for_each(|disk| _ = store.start_disk(DiskId(disk)));
        thread::yield_now();
    }
    assert_kept(&store, &known, note);
    store.close(LONG).unwrap();
}

/// A file system is frozen at any moment amid appends: they go on as soon as its disk is done without. Not so always on a machine
/// that has more to do than it can: an append that stands still for some ms, between its look at the clock and its
/// store, may be held with its partition.
fn one_of_three_hangs_amid_appends(kind: Kind, flush: Flush, seed: u64) {
    let Some(disks) = mounted(kind, 3) else { return };
    let mut random = Random(seed);
    let note = format!("{kind:?}, {flush:?}, seed {seed}");
    // The machine is to have time left.
    let pause = Duration::from_micros(100);
    amid_appends(&disks, flush, pause, &note, |wait_for| {
        wait_for(10 + random.below(300));
        disks[0].freeze();
        wait_for(20);
        disks[0].thaw();
        wait_for(20);
    });
}

/// A device answers nothing any more, and its file system goes on as long as it can: the journal is stuck after a second, and
/// then even who closes a file may be held.
fn one_of_three_devices_hangs(kind: Kind, flush: Flush) {
    let Some((first, device)) = Mounted::on_device(kind) else { return };
    let Some(others) = mounted(kind, 2) else { return };
    let disks: Vec<_> = iter::once(first).chain(others).collect();
    let note = format!("the device of {kind:?}, {flush:?}");
    amid_appends(&disks, flush, Duration::from_millis(20), &note, |wait_for| {
        wait_for(20);
        device.freeze();
        let begun = Instant::now();
        while begun.elapsed() < LONG / 5 {
            wait_for(5);
        }
        device.thaw();
        wait_for(20);
    });
}

/// Whoever looks at it ends when this goes.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn s22_a_file_system_that_is_frozen_amid_appends_holds_nobody_up_for_long() {
    let seed = setting("ONCELOG_SEED", 7);
    eprintln!(
        "replay with: ONCELOG_SEED={seed} cargo test --all-features --test kill file_systems"
    );
    for round in 0..setting("ONCELOG_FREEZES", 0) {
        for kind in [Kind::Ext4, Kind::Xfs] {
            for flush in FLUSHES {
                one_of_three_hangs_amid_appends(kind, flush, seed + round);
            }
        }
    }
}

/// As where a cloud's volumes stall together: no disk can be done without then.
#[test]
fn s22_where_all_file_systems_hang_everybody_goes_on_once_they_answer() {
    for flush in [Flush::OnAck, Flush::Os] {
        let Some(disks) = mounted(Kind::Ext4, 3) else { return };
        let note = format!("all hang, {flush:?}");
        amid_appends(&disks, flush, Duration::from_millis(20), &note, |wait_for| {
            wait_for(20);
            disks.iter().for_each(Mounted::freeze);
            // Until each is known to lag, and what is to be written down for that is late.
            thread::sleep(LONG / 6);
            disks.iter().for_each(Mounted::thaw);
            wait_for(20);
        });
    }
}

#[test]
fn s22_one_of_three_file_systems_hangs_and_everybody_goes_on() {
    thread::scope(|scope| {
        for kind in [Kind::Ext4, Kind::Xfs] {
            for flush in FLUSHES {
                scope.spawn(move || one_of_three_hangs(kind, flush));
            }
        }
    });
}

#[test]
fn s22_one_of_three_devices_hangs_and_everybody_goes_on() {
    for kind in [Kind::Ext4, Kind::Xfs] {
        for flush in FLUSHES {
            one_of_three_devices_hangs(kind, flush);
        }
    }
}

/// One that writes each page to a new place has no room for a store that is in place elsewhere.
#[test]
fn s10_s24_a_file_system_that_copies_on_write_fills_up_and_refuses_appends() {
    for flush in [Flush::OnAck, Flush::Os] {
        let Some(disk) = Mounted::new(Kind::Btrfs) else { return };
        let path = disk.path().join("store");
        let store = Store::builder().disk(&path).open().unwrap();
        store.create_topic("t", topic(flush, 1)).unwrap();
        let all = partitions(&store);
        let mut known = vec![BTreeMap::new(); all.len()];
        let ballast = disk.path().join("ballast");
        let mut file = std::fs::File::create(&ballast).unwrap();
        let mut random = Random(7);
        let noise: Vec<u8> =
            (0..1 << 20).map(|_| u8::try_from(random.below(256)).unwrap()).collect();
        for number in 0..600 {
            let at = usize::try_from(number).unwrap() % all.len();
            if number == 300 {
                while file.write_all(&noise).is_ok() && file.sync_data().is_ok() {}
                disk.write_back();
            }
            match all[at].append(&[Record::new(&value(number))], Acks::All) {
                Ok(appended) => _ = known[at].insert(appended.offsets.start.0, number),
                Err(Error::NoSpace { .. } | Error::Io { .. } | Error::DiskOffline { .. }) => {
                    assert!(number >= 300, "it is not full");
                }
                Err(error) => panic!("{error:?}"),
            }
        }
        assert_kept(&store, &known, "while it is full");
        drop((all, store, file));
        // To remove something takes room as well there, and what that gives back comes with the next commit.
        let begun = Instant::now();
        let store = loop {
            let _ = std::fs::remove_file(&ballast);
            disk.write_back();
            match Store::open(&path) {
                Ok(store) => break store,
                Err(error) => assert!(begun.elapsed() < LONG, "{error:?}"),
            }
        };
        assert_kept(&store, &known, "when there is room");
        for (partition, number) in partitions(&store).iter().zip(1000..) {
            append(partition, number);
        }
    }
}

/// The machine runs on, and the cache is gone: of what it held, only the page of offsets had been written back.
#[test]
fn s1_s19_a_page_that_outlived_the_cache_of_its_file_system_proves_nothing() {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    if (numbers.next(), numbers.next()) < (Some(6), Some(8)) {
        eprintln!("Linux before 6.8 does not tell one mounting from another: {release}");
        return;
    }
    for kind in [Kind::Ext4, Kind::Xfs] {
        let Some(disk) = Mounted::new(kind) else { continue };
        let paths = paths(std::slice::from_ref(&disk));
        let store = builder(&paths).open().unwrap();
        store.create_topic("t", topic(Flush::Os, 1)).unwrap();
        for (partition, number) in partitions(&store).iter().cycle().zip(0..120) {
            append(partition, number);
        }
        let topics = std::fs::read_dir(paths[0].join("topics")).unwrap();
        for topic in topics.map(|topic| topic.unwrap().path()) {
            for number in 0..PARTITIONS {
                let page = std::fs::File::open(topic.join(format!("{number}/marks")));
                page.unwrap().sync_all().unwrap();
            }
        }
        disk.fail();
        drop(store);
        disk.mount_anew();
        let store = builder(&paths).open().unwrap();
        let verified = store.verify(VerifyOptions::new()).unwrap();
        assert!(verified.damages.is_empty(), "{kind:?}: {verified:?}");
        for (partition, number) in partitions(&store).iter().zip(1000..) {
            let offset = append(partition, number);
            assert_eq!(read_all(partition).get(&offset.0), Some(&number));
        }
    }
}

/// Appends until it is killed or its disks are gone, and writes down what was acknowledged.
fn child() {
    let (directory, round) = killed::task();
    let disks: Vec<_> = std::env::var(DISKS).unwrap().split(':').map(PathBuf::from).collect();
    let flush = FLUSHES[std::env::var(FLUSH).unwrap().parse::<usize>().unwrap()];
    let store = builder(&disks).append_timeout(Duration::from_secs(2)).open().unwrap();
    if round == 0 {
        store.create_topic("t", topic(flush, disks.len()).segment_bytes(256 << 10)).unwrap();
    }
    let all = partitions(&store);
    println!("ready");
    thread::scope(|scope| {
        for (at, partition) in all.into_iter().enumerate() {
            let journal = journal_of(&directory, at);
            let mut journal = OpenOptions::new().append(true).create(true).open(journal).unwrap();
            scope.spawn(move || {
                for number in round * 1000..(round + 1) * 1000 {
                    match partition.append(&[Record::new(&value(number))], Acks::All) {
                        Ok(appended) => {
                            let line = format!("\n{} {number} .", appended.offsets.start);
                            journal.write_all(line.as_bytes()).unwrap();
                        }
                        Err(error) => assert_ne!(error.written(), Written::Yes, "{error:?}"),
                    }
                }
            });
        }
    });
    thread::park();
}

fn journal_of(directory: &Path, partition: usize) -> PathBuf {
    directory.with_extension(format!("journal-{partition}"))
}

/// What is there is what the next child goes on from.
fn write_journal(directory: &Path, partition: usize, known: &BTreeMap<u64, u64>) {
    let lines: String =
        known.iter().map(|(offset, number)| format!("\n{offset} {number} .")).collect();
    std::fs::write(journal_of(directory, partition), lines).unwrap();
}

fn journal(directory: &Path, partition: usize) -> BTreeMap<u64, u64> {
    let text = std::fs::read_to_string(journal_of(directory, partition)).unwrap_or_default();
    let whole = text.lines().filter_map(|line| line.strip_suffix(" ."));
    let pair = |line: &str| {
        let (offset, number) = line.split_once(' ')?;
        Some((offset.parse().ok()?, number.parse().ok()?))
    };
    whole.filter_map(pair).collect()
}

const TEST: &str = "s1_s19_power_that_is_cut_takes_nothing_that_was_flushed";

/// The power is cut for all disks at once, amid appends, and the process dies with it; again and again. The machine runs on,
/// and its caches of these disks are gone all the same. What was not flushed may be gone, and is no damage.
fn power_is_cut(kind: Kind, disks: usize, flush: usize, seed: u64) {
    let mut random = Random(seed);
    let Some(mounts) = mounted(kind, disks) else { return };
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path().join("data");
    let paths = paths(&mounts);
    let named: Vec<_> = paths.iter().map(|path| path.to_str().unwrap()).collect();
    for round in 0..setting("ONCELOG_KILLS", 4) {
        let mut command = killed::command(module_path!(), TEST, &directory, round);
        command.env(DISKS, named.join(":")).env(FLUSH, flush.to_string());
        let mut child = killed::start(&mut command);
        thread::sleep(Duration::from_micros(random.below(1 << 17)));
        // A file system that is told to fail may call one more flush done, which it is not.
        let mut known: Vec<_> =
            (0..PARTITIONS as usize).map(|at| journal(&directory, at)).collect();
        mounts.iter().for_each(Mounted::fail);
        child.kill().unwrap();
        child.wait().unwrap();
        mounts.iter().for_each(Mounted::mount_anew);
        let store = builder(&paths).open().unwrap();
        let flush = FLUSHES[flush];
        let note = format!("{kind:?}, {disks} disks, {flush:?}, round {round} of seed {seed}");
        let all = partitions(&store);
        for (partition, known) in all.iter().zip(&mut known) {
            if flush == Flush::Os {
                known.split_off(&partition.high_watermark().0);
            }
        }
        assert_kept(&store, &known, &note);
        for (at, partition) in all.iter().enumerate() {
            write_journal(&directory, at, &read_all(partition));
        }
        let verified = store.verify(VerifyOptions::new()).unwrap();
        assert!(verified.damages.is_empty(), "{note}: {verified:?}");
        store.close(LONG).unwrap();
    }
}

#[test]
fn s1_s19_power_that_is_cut_takes_nothing_that_was_flushed() {
    if killed::is_child() {
        return child();
    }
    let seed = setting("ONCELOG_SEED", 7);
    eprintln!(
        "replay with: ONCELOG_SEED={seed} cargo test --all-features --test kill file_systems"
    );
    thread::scope(|scope| {
        for (kind, disks, flush) in [
            (Kind::Ext4, 1, 0),
            (Kind::Ext4, 1, 1),
            (Kind::Ext4, 3, 0),
            (Kind::Xfs, 1, 0),
            (Kind::Xfs, 1, 1),
            (Kind::Xfs, 3, 0),
            (Kind::Xfs, 3, 1),
        ] {
            scope.spawn(move || power_is_cut(kind, disks, flush, seed));
        }
    });
}
