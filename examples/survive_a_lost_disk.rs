//! A store on three disks loses one while appends go on, gets an empty one in its place, and ends with three
//! equal copies of every record that was acknowledged.
//!
//! ```text
//! cargo run --release --example survive_a_lost_disk [-- --dir DIR]
//! ```
//!
//! The records are the flights that `quickstart` stores. The disks are three directories below `DIR`, by default
//! a temporary one; "lost" means that the directory is moved away under the running store.

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use oncelog::{
    Acks, DiskId, ErrorClass, Events, Offset, Partition, ReadOptions, Record, Store, TopicConfig,
    VerifyOptions,
};

const TOPIC: &str = "flights";
const BATCH_LINES: usize = 20;
/// What must have been appended before the next thing happens.
const LINES_A_STAGE: u64 = 3000;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args_os().skip(1);
    let scratch = tempfile::tempdir()?;
    let directory = match (arguments.next(), arguments.next()) {
        (None, _) => scratch.path().to_owned(),
        (Some(name), Some(value)) if name == "--dir" => PathBuf::from(value),
        (Some(name), _) => {
            return Err(format!("{}: only --dir DIR is known", name.display()).into());
        }
    };
    let disks: Vec<_> = ["disk-a", "disk-b", "disk-c"].map(|name| directory.join(name)).into();
    let store = disks.iter().fold(Store::builder(), |builder, disk| builder.disk(disk)).open()?;
    if store.topics().iter().any(|topic| topic.name == TOPIC) {
        return Err(format!("{} holds the store of an earlier run", directory.display()).into());
    }
    let config = TopicConfig::new().partitions(1).replication_factor(3).min_insync_replicas(2);
    store.create_topic(TOPIC, config)?;
    let partition = store.partition(TOPIC, 0)?;
    let mut events = store.events();

    let lines = lines()?;
    let (acknowledged, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let appended = std::thread::scope(|scope| -> Outcome<Vec<usize>> {
        let appender = scope.spawn(|| append(&partition, &lines, &acknowledged, &stop));
        let story = live_through(&store, &partition, &disks, &acknowledged, &mut events);
        stop.store(true, Ordering::Release);
        let appended = appender.join().map_err(|_| "the appender panicked")?;
        story.and(appended)
    })?;

    // Every acknowledged line, once, in order.
    let mut offset = Offset(0);
    let mut read = appended.iter();
    while offset < partition.high_watermark() {
        let records = partition.read(offset, ReadOptions::new())?;
        for record in &records {
            let at = read.next().ok_or("more records than were acknowledged")?;
            if record.value() != Some(lines[*at].as_bytes()) {
                return Err(format!("the record at {} is another", record.offset()).into());
            }
        }
        offset = records.next_offset();
    }
    if read.next().is_some() {
        return Err("an acknowledged record is missing".into());
    }
    println!("read      {} records, all that was acknowledged, once and in order", appended.len());
    let report = store.verify(VerifyOptions::new())?;
    if !report.damages.is_empty() {
        return Err(format!("damaged: {:?}", report.damages).into());
    }
    println!("verified  {} records on three disks, no damage", report.records);
    store.close(Duration::from_secs(10))?;
    Ok(())
}

fn lines() -> Outcome<Vec<String>> {
    let path: PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "examples", "data", "flights-2013-01.csv"].iter().collect();
    Ok(BufReader::new(File::open(path)?).lines().collect::<Result<_, _>>()?)
}

/// Appends line after line, from the first again after the last. Returns which were acknowledged.
fn append(
    partition: &Partition,
    lines: &[String],
    acknowledged: &AtomicU64,
    stop: &AtomicBool,
) -> Outcome<Vec<usize>> {
    let mut done = Vec::new();
    let mut slowest = Duration::ZERO;
    for batch in (0..).step_by(BATCH_LINES) {
        if stop.load(Ordering::Acquire) {
            break;
        }
        let numbers: Vec<_> = (batch..batch + BATCH_LINES).map(|at| at % lines.len()).collect();
        let records: Vec<_> = numbers.iter().map(|at| Record::new(&lines[*at])).collect();
        let started = Instant::now();
        loop {
            match partition.append(&records, Acks::All) {
                Ok(_) => break,
                // Nothing was written: it can be tried again without doubling anything.
                Err(error)
                    if error.class() == ErrorClass::Retriable
                        && error.written() == oncelog::Written::No => {}
                Err(error) => return Err(error.into()),
            }
        }
        slowest = slowest.max(started.elapsed());
        done.extend(numbers);
        acknowledged.fetch_add(BATCH_LINES as u64, Ordering::AcqRel);
    }
    println!("appended  {} records, the slowest batch took {slowest:.1?}", done.len());
    Ok(done)
}

fn live_through(
    store: &Store,
    partition: &Partition,
    disks: &[PathBuf],
    acknowledged: &AtomicU64,
    events: &mut Events,
) -> Outcome<()> {
    let lost = partition.leader().ok_or("no leader")?;
    let place = &disks[usize::from(lost.0)];
    await_lines(acknowledged, events);
    println!("\nthe leader's disk, {lost}, is taken away: {}", place.display());
    std::fs::rename(place, away(place))?;
    store.stop_disk(lost)?;
    await_lines(acknowledged, events);
    println!("\nan empty directory takes its place, and is filled while appends go on");
    let started = Instant::now();
    store.replace_disk(lost, place)?;
    await_in_sync(partition, lost, events)?;
    println!("{lost} is in sync again after {:.1?}", started.elapsed());
    await_lines(acknowledged, events);
    println!();
    Ok(())
}

fn away(place: &Path) -> PathBuf {
    place.with_extension("lost")
}

fn await_lines(acknowledged: &AtomicU64, events: &mut Events) {
    let goal = acknowledged.load(Ordering::Acquire) + LINES_A_STAGE;
    while acknowledged.load(Ordering::Acquire) < goal {
        tell(events);
    }
}

fn await_in_sync(partition: &Partition, disk: DiskId, events: &mut Events) -> Outcome<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !partition.in_sync_replicas().contains(&disk) {
        if Instant::now() > deadline {
            return Err(format!("{disk} did not catch up within a minute").into());
        }
        tell(events);
    }
    tell(events);
    Ok(())
}

/// A line for each event, and for those that come within a moment.
fn tell(events: &mut Events) {
    while let Some(event) = events.wait(Duration::from_millis(1)) {
        println!("  event   {event}");
    }
}
