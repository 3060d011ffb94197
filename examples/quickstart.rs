//! Stores a file of events, durably, and reads it back by offset and by time.
//!
//! ```text
//! cargo run --release --example quickstart [-- --input FILE] [--dir DIR]
//! ```
//!
//! Without arguments: 12,000 flights out of New York, keyed by carrier, into `oncelog-data` below the
//! current directory. Any line-based file will do. Run it again, and it goes on from where the store
//! stands: each record carries the number of its line, so the store itself knows how far it got.

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::collections::HashMap;
use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use oncelog::{Acks, Offset, Partition, ReadOptions, Record, Store, Timestamp, TopicConfig};

const TOPIC: &str = "events";
const PARTITIONS: u32 = 4;
const BATCH_LINES: usize = 500;
const LINE: &str = "line";

struct Arguments {
    input: PathBuf,
    directory: PathBuf,
}

fn arguments() -> Result<Arguments, String> {
    let mut parsed = Arguments {
        input: [env!("CARGO_MANIFEST_DIR"), "examples", "data", "flights-2013-01.csv"]
            .iter()
            .collect(),
        directory: "oncelog-data".into(),
    };
    let mut arguments = std::env::args_os().skip(1);
    while let Some(name) = arguments.next() {
        let mut value =
            || arguments.next().map(PathBuf::from).ok_or(format!("{name:?} needs a value"));
        match name.to_str() {
            Some("--input") => parsed.input = value()?,
            Some("--dir") => parsed.directory = value()?,
            _ => return Err(format!("{name:?}: only --input FILE and --dir DIR are known")),
        }
    }
    Ok(parsed)
}

fn main() {
    let done = arguments().map_err(Into::into).and_then(|arguments| run(&arguments));
    if let Err(error) = done {
        let mut words = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            words = format!("{words}: {cause}");
            source = cause.source();
        }
        println!("quickstart: {words}");
        std::process::exit(1);
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let input = File::open(&arguments.input)
        .map_err(|error| format!("{}: {error}", arguments.input.display()))?;
    let opened = Instant::now();
    let store = Store::open(&arguments.directory)?;
    println!("store     {} (opened in {:.1?})", store.path().display(), opened.elapsed());
    for event in store.events() {
        println!("          {event}");
    }
    if store.topics().iter().all(|topic| topic.name != TOPIC) {
        store.create_topic(TOPIC, TopicConfig::new().partitions(PARTITIONS))?;
    }
    let partitions = (0..store.topic(TOPIC)?.partitions)
        .map(|number| store.partition(TOPIC, number))
        .collect::<Result<Vec<_>, _>>()?;
    ingest(&arguments.input, BufReader::new(input), &partitions)?;
    show(&partitions)?;
    store.close(Duration::from_secs(30))?;
    Ok(())
}

/// Appends the lines that the store does not hold yet.
fn ingest(
    path: &std::path::Path,
    input: impl BufRead,
    partitions: &[Partition],
) -> Result<(), Box<dyn Error>> {
    let known = partitions.iter().map(last_line).collect::<Result<Vec<_>, _>>()?;
    let held: u64 = partitions.iter().map(|partition| partition.log_end_offset().0).sum();
    if held > 0 {
        println!("resume    {held} records are there already");
    }
    let started = Instant::now();
    let mut waiting: Vec<Vec<(u64, String)>> = vec![Vec::new(); partitions.len()];
    let (mut appended, mut bytes, mut shown) = (0u64, 0usize, Instant::now());
    for (number, line) in (1..).zip(input.lines()) {
        let line = line?;
        let home = home_of(key_of(&line), partitions.len());
        // Lines of one partition were appended in order, so one number tells all that it has.
        if number <= known[home] {
            continue;
        }
        bytes += line.len();
        appended += 1;
        waiting[home].push((number, line));
        if waiting[home].len() == BATCH_LINES {
            append(&partitions[home], &mut waiting[home])?;
        }
        if shown.elapsed() > Duration::from_secs(1) {
            println!("...       {appended} lines");
            shown = Instant::now();
        }
    }
    for (partition, lines) in partitions.iter().zip(&mut waiting) {
        append(partition, lines)?;
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "ingest    {appended} new lines of {}, {} bytes in {:.0} ms: {:.0} records/s, each on stable storage",
        path.file_name().unwrap_or_default().display(),
        bytes,
        seconds * 1e3,
        if appended == 0 { 0.0 } else { appended as f64 / seconds },
    );
    Ok(())
}

fn append(partition: &Partition, lines: &mut Vec<(u64, String)>) -> Result<(), oncelog::Error> {
    let numbers: Vec<_> = lines.iter().map(|(number, _)| number.to_le_bytes()).collect();
    let records: Vec<_> = lines
        .iter()
        .zip(&numbers)
        .map(|((_, line), number)| {
            let record = Record::new(line).key(key_of(line)).header(LINE, number);
            match time_of(line) {
                Some(time) => record.timestamp(time),
                None => record,
            }
        })
        .collect();
    if !records.is_empty() {
        partition.append(&records, Acks::All)?;
    }
    lines.clear();
    Ok(())
}

/// The number of the last line that the partition holds; 0 if it holds none.
fn last_line(partition: &Partition) -> Result<u64, oncelog::Error> {
    let Some(last) = partition.log_end_offset().0.checked_sub(1) else {
        return Ok(0);
    };
    let records = partition.read(Offset(last), ReadOptions::new())?;
    let number = records.iter().last().and_then(|record| record.header(LINE));
    Ok(number.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes))
}

fn show(partitions: &[Partition]) -> Result<(), oncelog::Error> {
    let started = Instant::now();
    let (mut records, mut bytes) = (0u64, 0usize);
    let mut carriers: HashMap<Vec<u8>, u64> = HashMap::new();
    for partition in partitions {
        let mut offset = partition.log_start_offset();
        let before = records;
        while offset < partition.high_watermark() {
            let batch = partition.read(offset, ReadOptions::new())?;
            for record in &batch {
                records += 1;
                bytes += record.value().map_or(0, <[u8]>::len);
                *carriers.entry(record.key().unwrap_or_default().to_vec()).or_default() += 1;
            }
            offset = batch.next_offset();
        }
        println!(
            "partition {}: {} records, offsets {}..{}",
            partition.name(),
            records - before,
            partition.log_start_offset(),
            partition.log_end_offset()
        );
    }
    println!(
        "read      {records} records, {bytes} bytes, every checksum verified, in {:.1?}",
        started.elapsed()
    );
    let mut carriers: Vec<_> = carriers.into_iter().collect();
    carriers.sort_by(|one, other| other.1.cmp(&one.1).then(one.0.cmp(&other.0)));
    let top: Vec<_> = carriers
        .iter()
        .take(5)
        .map(|(key, count)| format!("{} {count}", String::from_utf8_lossy(key)))
        .collect();
    println!("keys      {} in all; most: {}", carriers.len(), top.join(", "));
    show_time(&partitions[0])
}

/// Looks up the middle of what a partition holds by its time.
fn show_time(partition: &Partition) -> Result<(), oncelog::Error> {
    let middle = Offset((partition.log_start_offset().0 + partition.log_end_offset().0) / 2);
    let records = partition.read(middle, ReadOptions::new().max_bytes(1))?;
    let Some(time) = records.iter().next().map(|record| record.timestamp()) else {
        return Ok(());
    };
    let started = Instant::now();
    let found = partition.offset_for_time(time)?;
    let took = started.elapsed();
    if let Some(offset) = found {
        let records = partition.read(offset, ReadOptions::new().max_bytes(1))?;
        if let Some(record) = records.iter().next() {
            println!(
                "by time   first record of {} at or after {time}: offset {offset}, in {took:.1?}",
                partition.name(),
            );
            println!("          {}", String::from_utf8_lossy(record.value().unwrap_or_default()));
        }
    }
    Ok(())
}

/// The second field of a line of comma-separated values; other lines have none.
fn key_of(line: &str) -> &str {
    line.split(',').nth(1).unwrap_or_default()
}

/// FNV-1a: the same key goes to the same partition, in this run and the next.
fn home_of(key: &str, partitions: usize) -> usize {
    let hash = key.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    usize::try_from(hash % partitions as u64).expect("smaller than a usize")
}

/// `2013-01-01T05:15...` at the start of a line, as if it were UTC.
fn time_of(line: &str) -> Option<Timestamp> {
    let number = |range: std::ops::Range<usize>| line.get(range)?.parse::<i64>().ok();
    let separators = line.get(4..5)? == "-" && line.get(7..8)? == "-" && line.get(10..11)? == "T";
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute) = (number(11..13)?, number(14..16)?);
    if !separators || !(1..=12).contains(&month) {
        return None;
    }
    // Days since the epoch, by the civil calendar with years that begin in March.
    let shifted = year - i64::from(month <= 2);
    let (era, of_era) = (shifted.div_euclid(400), shifted.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some(Timestamp(((days * 24 + hour) * 60 + minute) * 60_000))
}
