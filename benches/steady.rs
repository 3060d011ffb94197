//! What an append costs besides time, once everything is warm: allocations and system calls.
//!
//! System calls are counted by `strace -c` over two runs of this program that differ only in the
//! number of appends; the difference is what the appends cost. Without `strace` that line says so.

mod common;

use std::hint::black_box;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::counting::{Allocated, Counting};
use common::ours::{self, Shape};
use common::{Bench, Goal, Line, Outcome, Unit, noise};
use oncelog::{Acks, Partition, Record};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Directory and number of appends for the run under `strace`.
const CHILD: &str = "ONCELOG_BENCH_STEADY";
const VALUE_BYTES: usize = 100;
/// The background gets ahead of a writer at this pace, 500,000 appends a second.
const PACE: Duration = Duration::from_micros(2);

fn main() -> Outcome<()> {
    if let Ok(order) = std::env::var(CHILD) {
        let (appends, directory) =
            order.split_once(' ').ok_or("the child's order has two words")?;
        return child(Path::new(directory), appends.parse()?);
    }
    let mut bench = Bench::new("steady")?;
    let appends = bench.amount(1_000_000, 10_000);
    let line = Line {
        name: "allocations per append, Os, the appender",
        durability: "process death",
        unit: Unit::Count,
        goal: Goal::Max(0.0),
        limit: "-",
    };
    bench.measure(&line, |bench| {
        Ok(allocated(bench, appends)?.calls_here as f64 / appends as f64)
    })?;
    let line =
        Line { name: "(allocations per append, Os, the whole process)", goal: Goal::None, ..line };
    bench.measure(&line, |bench| Ok(allocated(bench, appends)?.calls as f64 / appends as f64))?;

    for (name, goal, follow) in [
        // One call in ten thousand appends: a write of zeroes that the background came too late for.
        ("system calls per append, Os, the appender", Goal::Max(0.0001), false),
        ("(system calls per append, Os, the whole process)", Goal::None, true),
    ] {
        if !bench.wants(name) {
            continue;
        }
        if !has_strace() {
            bench.note(&format!("{name}: strace not found"));
            continue;
        }
        bench
            .measure(&Line { name, goal, ..line }, |bench| system_calls(bench, appends, follow))?;
    }
    bench.finish();
    Ok(())
}

/// What `appends` appends allocate after as many that do not count.
fn allocated(bench: &Bench, appends: u64) -> Outcome<Allocated> {
    let store = ours::create(&bench.fresh("ours")?, &Shape::plain(1 << 30))?;
    let partition = store.partition(ours::TOPIC, 0)?;
    let value = noise(VALUE_BYTES);
    paced(&partition, &value, appends / 10)?;
    let before = Allocated::now();
    paced(&partition, &value, appends)?;
    Ok(Allocated::now().since(before))
}

/// System calls of one append.
fn system_calls(bench: &Bench, appends: u64, follow: bool) -> Outcome<f64> {
    let few = traced(bench, appends, follow)?;
    let many = traced(bench, appends * 2, follow)?;
    // The threads that a run of the same length makes and ends differ by a call or two.
    Ok((many - few).max(0.0) / appends as f64)
}

/// System calls of a run with that many appends.
fn traced(bench: &Bench, appends: u64, follow: bool) -> Outcome<f64> {
    let directory = bench.fresh("traced")?;
    let summary = bench.directory().join("strace.txt");
    let mut command = Command::new("strace");
    command.arg("-c").arg("-o").arg(&summary);
    if follow {
        command.arg("-f");
    }
    let status = command
        .arg(std::env::current_exe()?)
        .env(CHILD, format!("{appends} {}", directory.display()))
        .stdout(Stdio::null())
        .status()?;
    if !status.success() {
        return Err(format!("strace ended with {status}").into());
    }
    total_calls(&std::fs::read_to_string(summary)?)
}

/// The sum of the column `calls` of `strace -c`, whose last line is `100.00 0.1 5 123 4 total`.
fn total_calls(summary: &str) -> Outcome<f64> {
    let total = summary.lines().rev().find(|line| line.trim_end().ends_with("total"));
    let calls = total.and_then(|line| line.split_whitespace().nth(3));
    Ok(calls.ok_or("strace printed no total")?.parse()?)
}

fn child(directory: &Path, appends: u64) -> Outcome<()> {
    let store = ours::create(directory, &Shape::plain(1 << 30))?;
    let partition = store.partition(ours::TOPIC, 0)?;
    paced(&partition, &noise(VALUE_BYTES), appends)?;
    ours::read_last(&partition)?;
    ours::close(&store)
}

/// Appends at a steady pace. Waits without a system call: reading the clock is none.
fn paced(partition: &Partition, value: &[u8], appends: u64) -> Outcome<()> {
    let started = Instant::now();
    for number in 0..appends {
        let due = PACE * u32::try_from(number)?;
        while started.elapsed() < due {
            std::hint::spin_loop();
        }
        black_box(partition.append(&[Record::new(black_box(value))], Acks::Leader)?);
    }
    Ok(())
}

fn has_strace() -> bool {
    let version =
        Command::new("strace").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}
