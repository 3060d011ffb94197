//! Durable appends, `Flush::OnAck`: nothing but the disk should be waited for.

mod common;

use std::time::{Duration, Instant};

use common::bare::{BareDurable, Frame};
use common::bare_group::BareGroup;
use common::ours::{self, Shape};
use common::{Bench, Goal, Line, Outcome, Unit, noise, rate, repeated_by};
use oncelog::{Acks, Flush, Record};

const VALUE_BYTES: usize = 100;

fn main() -> Outcome<()> {
    let mut bench = Bench::new("durable")?;
    let line = Line {
        name: "append 100 B, OnAck, 1 thread",
        durability: "power loss",
        unit: Unit::Records,
        goal: Goal::RatioMin(0.95),
        limit: "write + fdatasync, written space",
    };
    bench.compare(
        &line,
        |bench| {
            let frame = Frame::new(1, VALUE_BYTES);
            let mut log = BareDurable::create(&bench.fresh("bare")?, frame)?;
            repeated(span(bench), || Ok(log.append()?))
        },
        |bench| ours(bench, 1),
    )?;
    for (name, threads) in [
        ("append 100 B, OnAck, 2 threads on one partition", 2),
        ("append 100 B, OnAck, 16 threads on one partition", 16),
        ("append 100 B, OnAck, 64 threads on one partition", 64),
    ] {
        let line = Line { name, goal: Goal::RatioMin(0.9), limit: "leader gathers", ..line };
        bench.compare(&line, |bench| bare_group(bench, threads), |bench| ours(bench, threads))?;
    }
    bench.finish();
    Ok(())
}

/// How long a side of a turn runs.
fn span(bench: &Bench) -> Duration {
    bench.amount(Duration::from_millis(1500), Duration::from_millis(30))
}

/// How often a second `work` is done by one thread.
fn repeated(span: Duration, mut work: impl FnMut() -> Outcome<()>) -> Outcome<f64> {
    // The first few find the company, and the pages, that the rest goes on with.
    let warm = span / 10;
    let started = Instant::now();
    while started.elapsed() < warm {
        work()?;
    }
    let started = Instant::now();
    let mut count = 0;
    while started.elapsed() < span {
        work()?;
        count += 1;
    }
    Ok(rate(count, started.elapsed()))
}

fn bare_group(bench: &Bench, threads: usize) -> Outcome<f64> {
    let bytes = Frame::new(1, VALUE_BYTES).len();
    let log = BareGroup::create(&bench.fresh("bare")?, bytes)?;
    repeated_by(threads, span(bench), |called| Ok(log.append(called)?))
}

fn ours(bench: &Bench, threads: usize) -> Outcome<f64> {
    let shape = Shape { flush: Flush::OnAck, ..Shape::plain(256 << 20) };
    let store = ours::create(&bench.fresh("ours")?, &shape)?;
    let partition = store.partition(ours::TOPIC, 0)?;
    let value = noise(VALUE_BYTES);
    let append = || -> Outcome<()> {
        partition.append(&[Record::new(&value)], Acks::Leader)?;
        Ok(())
    };
    let figure = if threads == 1 {
        repeated(span(bench), append)?
    } else {
        repeated_by(threads, span(bench), |_| append())?
    };
    ours::read_last(&partition)?;
    drop((partition, store));
    bench.fresh("ours")?;
    Ok(figure)
}
