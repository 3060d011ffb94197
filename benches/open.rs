//! Opening a store: after a clean stop, with many idle partitions, and after a kill.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::bare::{BareScan, Frame};
use common::ours::{self, Shape};
use common::{Bench, Goal, Line, Outcome, Unit, noise};
use oncelog::{Partition, Store};

/// Orders for a run of this program that is to be killed: bytes, checkpoint bytes, directory.
const CHILD: &str = "ONCELOG_BENCH_OPEN";
const VALUE_BYTES: usize = 100;
const BATCH: usize = 100;

fn main() -> Outcome<()> {
    if let Ok(order) = std::env::var(CHILD) {
        return child(&order);
    }
    let mut bench = Bench::new("open")?;
    clean(&mut bench)?;
    idle(&mut bench)?;
    killed(&mut bench)?;
    bench.finish();
    Ok(())
}

/// 1,000 partitions that hold 1 GiB together.
fn clean(bench: &mut Bench) -> Outcome<()> {
    let (opened, used) = (
        "open after a clean stop, 1,000 partitions, 1 GiB",
        "(the same, and every partition's last record)",
    );
    if !bench.wants(opened) && !bench.wants(used) {
        return Ok(());
    }
    let partitions = bench.amount(1000, 20);
    let bytes_total: u64 = bench.amount(1 << 30, 1 << 20);
    let directory = bench.fresh("clean")?;
    let shape = Shape { partitions, ..Shape::plain(64 << 20) };
    let store = ours::create(&directory, &shape)?;
    let appends = bytes_total / u64::from(partitions) / Frame::new(BATCH, VALUE_BYTES).len() as u64;
    for number in 0..partitions {
        let partition = store.partition(ours::TOPIC, number)?;
        ours::fill(&partition, &noise(VALUE_BYTES), BATCH, appends + 1)?;
    }
    ours::close(&store)?;
    drop(store);
    let line = Line {
        name: opened,
        durability: "-",
        unit: Unit::Time,
        goal: Goal::Max(0.1),
        limit: "list and stat the files",
    };
    bench.compare(
        &line,
        |_| elapsed(|| tree(&directory).map(drop)).map(|(time, ())| time),
        |_| {
            let (time, store) = elapsed(|| Ok(Store::open(&directory)?))?;
            ours::close(&store)?;
            Ok(time)
        },
    )?;
    let line = Line { name: used, goal: Goal::None, ..line };
    bench.compare(
        &line,
        |_| elapsed(|| tree(&directory).map(drop)).map(|(time, ())| time),
        |_| {
            let (time, store) = elapsed(|| {
                let store = Store::open(&directory)?;
                for number in 0..partitions {
                    ours::read_last(&store.partition(ours::TOPIC, number)?)?;
                }
                Ok(store)
            })?;
            ours::close(&store)?;
            Ok(time)
        },
    )?;
    bench.fresh("clean")?;
    Ok(())
}

/// 10,000 partitions, each with one record, whose handles are held.
fn idle(bench: &mut Bench) -> Outcome<()> {
    let names = [
        "open after a clean stop, 10,000 idle partitions",
        "memory of an idle partition",
        "(memory of a partition after an append)",
        "disk of an idle partition",
        "(disk of an idle partition after a clean stop)",
    ];
    if !names.iter().any(|name| bench.wants(name)) {
        return Ok(());
    }
    let partitions: u32 = bench.amount(10_000, 50);
    let directory = bench.fresh("idle")?;
    let shape = Shape { partitions, ..Shape::plain(256 << 20) };
    let store = ours::create(&directory, &shape)?;
    for number in 0..partitions {
        ours::fill(&store.partition(ours::TOPIC, number)?, &noise(VALUE_BYTES), 1, 1)?;
    }
    // What the background prepares for them counts as well.
    std::thread::sleep(bench.amount(Duration::from_secs(5), Duration::from_millis(300)));
    let living = tree(&directory)?.bytes as f64 / f64::from(partitions);
    ours::close(&store)?;
    drop(store);
    let stopped = tree(&directory)?.bytes as f64 / f64::from(partitions);

    let line = Line {
        name: names[0],
        durability: "-",
        unit: Unit::Time,
        goal: Goal::Max(1.0),
        limit: "list and stat the files",
    };
    bench.compare(
        &line,
        |_| elapsed(|| tree(&directory).map(drop)).map(|(time, ())| time),
        |_| {
            let (time, store) = elapsed(|| Ok(Store::open(&directory)?))?;
            ours::close(&store)?;
            Ok(time)
        },
    )?;

    let line = Line {
        name: names[1],
        unit: Unit::Size,
        goal: Goal::Max(16.0 * 1024.0),
        limit: "-",
        ..line
    };
    let per_partition = |append: bool| -> Outcome<f64> {
        let before = resident_bytes()?;
        let store = Store::open(&directory)?;
        let mut handles: Vec<Partition> = Vec::with_capacity(partitions as usize);
        for number in 0..partitions {
            let partition = store.partition(ours::TOPIC, number)?;
            if append {
                ours::fill(&partition, &noise(VALUE_BYTES), 1, 1)?;
            }
            handles.push(partition);
        }
        let grown = resident_bytes()?.saturating_sub(before) as f64 / f64::from(partitions);
        drop(handles);
        ours::close(&store)?;
        Ok(grown)
    };
    bench.measure(&line, |_| per_partition(false))?;
    let line = Line { name: names[2], goal: Goal::None, ..line };
    bench.measure(&line, |_| per_partition(true))?;

    let line = Line { name: names[3], goal: Goal::Max(64.0 * 1024.0), ..line };
    bench.measure(&line, |_| Ok(living))?;
    let line = Line { name: names[4], goal: Goal::None, ..line };
    bench.measure(&line, |_| Ok(stopped))?;
    bench.fresh("idle")?;
    Ok(())
}

/// A process that is killed in the middle of its work.
fn killed(bench: &mut Bench) -> Outcome<()> {
    let bytes_total: u64 = bench.amount(1 << 30, 1 << 20);
    let line = Line {
        name: "open after kill -9, 1 GiB since the last checkpoint",
        durability: "process death",
        unit: Unit::Bytes,
        goal: Goal::RatioMin(0.5),
        limit: "bare CRC scan",
    };
    if bench.wants(line.name) {
        let frame = Frame::new(BATCH, VALUE_BYTES);
        let total = usize::try_from(bytes_total)?;
        let bare = BareScan::create(&bench.fresh("bare")?, frame, total, total)?;
        bench.compare(
            &line,
            |_| {
                let (time, ()) = elapsed(|| Ok(bare.scan()?))?;
                Ok(bare.bytes() as f64 / time)
            },
            |bench| {
                let (time, bytes) = recover(bench, bytes_total, u64::MAX)?;
                Ok(bytes as f64 / time)
            },
        )?;
        bench.fresh("bare")?;
    }
    let line = Line {
        name: "open after kill -9, 1 GiB, default checkpoints",
        unit: Unit::Time,
        goal: Goal::Max(0.1),
        limit: "-",
        ..line
    };
    bench.measure(&line, |bench| Ok(recover(bench, bytes_total, DEFAULT_CHECKPOINTS)?.0))
}

/// Stands for the store's own choice.
const DEFAULT_CHECKPOINTS: u64 = 0;

/// Lets a child append, kills it, and opens its store: seconds until the last record could be read,
/// and the bytes that were appended.
fn recover(bench: &Bench, bytes_total: u64, checkpoint_bytes: u64) -> Outcome<(f64, u64)> {
    let directory = bench.fresh("killed")?;
    let mut child = Command::new(std::env::current_exe()?)
        .env(CHILD, format!("{bytes_total} {checkpoint_bytes} {}", directory.display()))
        .stdout(Stdio::piped())
        .spawn()?;
    let mut told = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output).read_line(&mut told)?;
    }
    child.kill()?;
    child.wait()?;
    let appends: u64 = told.trim().parse()?;
    let (time, store) = elapsed(|| {
        let store = Store::open(&directory)?;
        ours::read_last(&store.partition(ours::TOPIC, 0)?)?;
        Ok(store)
    })?;
    let end = store.partition(ours::TOPIC, 0)?.log_end_offset().0;
    if end != appends * BATCH as u64 {
        return Err(format!(
            "{} records were acknowledged, {end} are there",
            appends * BATCH as u64
        )
        .into());
    }
    ours::close(&store)?;
    drop(store);
    bench.fresh("killed")?;
    Ok((time, appends * Frame::new(BATCH, VALUE_BYTES).len() as u64))
}

/// Appends, tells how often, and waits to be killed.
fn child(order: &str) -> Outcome<()> {
    let mut words = order.splitn(3, ' ');
    let mut word = || words.next().ok_or("the child's order has three words");
    let (bytes_total, checkpoint_bytes, directory) = (word()?, word()?, word()?);
    let bytes_total: u64 = bytes_total.parse()?;
    let builder = match checkpoint_bytes.parse()? {
        DEFAULT_CHECKPOINTS => Store::builder(),
        bytes => Store::builder().checkpoint_bytes(bytes),
    };
    let store = builder.disk(directory).open()?;
    // One segment: a sealed one would be a checkpoint.
    ours::create_topic(&store, &Shape::plain(bytes_total + (64 << 20)))?;
    let partition = store.partition(ours::TOPIC, 0)?;
    let appends = bytes_total / Frame::new(BATCH, VALUE_BYTES).len() as u64;
    ours::fill(&partition, &noise(VALUE_BYTES), BATCH, appends)?;
    // A moment for the background, so that its checkpoint is not always the one that is missing.
    std::thread::sleep(Duration::from_millis(200));
    let mut output = std::io::stdout().lock();
    writeln!(output, "{appends}")?;
    output.flush()?;
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// What a directory tree takes.
#[derive(Clone, Copy, Debug, Default)]
struct Tree {
    /// Bytes in blocks of the disk, those of directories included.
    bytes: u64,
}

fn tree(directory: &Path) -> Outcome<Tree> {
    let mut sum = Tree { bytes: fs::metadata(directory)?.blocks() * 512 };
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sum.bytes += tree(&entry.path())?.bytes;
        } else {
            sum.bytes += entry.metadata()?.blocks() * 512;
        }
    }
    Ok(sum)
}

/// Memory of this process that is in use, mapped files included.
fn resident_bytes() -> Outcome<u64> {
    let statm = fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split_whitespace().nth(1).ok_or("statm has a second number")?;
    // Pages of 4 KiB: the benches run where the crate's CI runs, on x86-64.
    Ok(pages.parse::<u64>()? * 4096)
}

/// Seconds that `work` took, and what it gave.
fn elapsed<T>(work: impl FnOnce() -> Outcome<T>) -> Outcome<(f64, T)> {
    let started = Instant::now();
    let gave = work()?;
    Ok((started.elapsed().as_secs_f64(), gave))
}
