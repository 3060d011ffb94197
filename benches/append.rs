//! Appends with `Flush::Os`: how near they come to a bare loop that copies the same bytes.

mod common;

use std::hint::black_box;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use common::bare::BareLog;
use common::histogram::{Histogram, clock_cost};
use common::ours::{self, Shape};
use common::work::Work;
use common::{Bench, Goal, Line, Outcome, Unit, noise, timed};
use oncelog::{Acks, Flush, Partition, Record, Store};

impl Work {
    fn new(bench: &Bench, value_bytes: usize, batch: usize) -> Self {
        Self {
            value_bytes,
            batch,
            segment_bytes: bench.amount(256 << 20, 1 << 20),
            segments_kept: 4,
            bytes_total: bench.amount(4 << 30, 6 << 20),
        }
    }

    fn store(&self, directory: &Path, partitions: u32) -> Outcome<Store> {
        let shape = Shape {
            partitions,
            flush: Flush::Os,
            segment_bytes: self.segment_bytes,
            retention: self.retention(),
            replicas: 1,
        };
        ours::create(directory, &shape)
    }

    fn run_bare(&self, log: &mut BareLog) -> Outcome<()> {
        let mut frame = self.frame();
        for _ in 0..self.appends() {
            log.append(&mut frame)?;
        }
        Ok(())
    }

    fn run_ours(&self, partition: &Partition) -> Outcome<()> {
        let value = noise(self.value_bytes);
        if self.batch > 1 {
            return ours::fill(partition, &value, self.batch, self.appends());
        }
        for _ in 0..self.appends() {
            black_box(partition.append(&[Record::new(black_box(&value))], Acks::Leader)?);
        }
        Ok(())
    }

    fn limit(&self, bench: &Bench) -> Outcome<f64> {
        let mut log = self.bare_log(&bench.fresh("bare")?)?;
        let figure = timed(self.records(), || self.run_bare(&mut log))?;
        drop(log);
        bench.fresh("bare")?;
        Ok(figure)
    }

    fn ours(&self, bench: &Bench) -> Outcome<f64> {
        let store = self.store(&bench.fresh("ours")?, 1)?;
        let partition = store.partition(ours::TOPIC, 0)?;
        let figure = timed(self.records(), || self.run_ours(&partition))?;
        check(&partition, self)?;
        drop((partition, store));
        bench.fresh("ours")?;
        Ok(figure)
    }

    fn bare_threads(&self, bench: &Bench, threads: usize) -> Outcome<f64> {
        let mut logs = Vec::new();
        for number in 0..threads {
            logs.push(self.bare_log(&bench.fresh(&format!("bare-{number}"))?)?);
        }
        timed(self.records() * threads as u64, || {
            thread::scope(|scope| {
                let threads: Vec<_> =
                    logs.iter_mut().map(|log| scope.spawn(|| self.run_bare(log))).collect();
                threads
                    .into_iter()
                    .try_for_each(|thread| thread.join().map_err(|_| "a thread died")?)
            })
        })
    }

    fn ours_threads(&self, bench: &Bench, threads: u32) -> Outcome<f64> {
        let store = self.store(&bench.fresh("ours")?, threads)?;
        let mut partitions = Vec::new();
        for number in 0..threads {
            partitions.push(store.partition(ours::TOPIC, number)?);
        }
        let figure = timed(self.records() * u64::from(threads), || {
            thread::scope(|scope| {
                let threads: Vec<_> = partitions
                    .iter()
                    .map(|partition| scope.spawn(|| self.run_ours(partition)))
                    .collect();
                threads
                    .into_iter()
                    .try_for_each(|thread| thread.join().map_err(|_| "a thread died")?)
            })
        })?;
        drop((partitions, store));
        bench.fresh("ours")?;
        Ok(figure)
    }
}

/// Nothing was lost, and the oldest segments are gone or about to go.
fn check(partition: &Partition, work: &Work) -> Outcome<()> {
    let end = partition.log_end_offset().0;
    if end != work.records() {
        return Err(
            format!("{} records were appended and the log ends at {end}", work.records()).into()
        );
    }
    ours::read_last(partition)
}

/// The slowest call in a thousand, the clock's own cost taken off.
fn slowest(
    calls: u64,
    pace: Option<Duration>,
    mut call: impl FnMut() -> Outcome<()>,
) -> Outcome<f64> {
    let clock = clock_cost();
    let mut seen = Histogram::new();
    let started = Instant::now();
    for number in 0..calls {
        if let Some(pace) = pace {
            let due = pace * u32::try_from(number)?;
            while started.elapsed() < due {
                std::hint::spin_loop();
            }
        }
        let before = Instant::now();
        call()?;
        seen.record(before.elapsed());
    }
    Ok((seen.quantile(0.999) - clock).max(0.0))
}

fn main() -> Outcome<()> {
    let mut bench = Bench::new("append")?;
    let line = Line {
        name: "append one 100 B record a call, Os",
        durability: "process death",
        unit: Unit::Records,
        goal: Goal::RatioMin(0.5),
        limit: "copy and CRCs",
    };
    let single = Work::new(&bench, 100, 1);
    bench.compare(&line, |bench| single.limit(bench), |bench| single.ours(bench))?;

    let kib = Work::new(&bench, 1024, 1);
    let line =
        Line { name: "append one 1 KiB record a call, Os", goal: Goal::RatioMin(0.6), ..line };
    bench.compare(&line, |bench| kib.limit(bench), |bench| kib.ours(bench))?;

    let batches = Work::new(&bench, 100, 100);
    let line = Line {
        name: "append batches of 100 x 100 B, Os",
        goal: Goal::RatioAndMin(0.6, 25e6),
        ..line
    };
    bench.compare(&line, |bench| batches.limit(bench), |bench| batches.ours(bench))?;

    let line = Line {
        name: "append 100 B, two threads on two partitions",
        goal: Goal::RatioMin(1.7),
        limit: "one thread on one",
        ..line
    };
    bench.compare(&line, |bench| single.ours(bench), |bench| single.ours_threads(bench, 2))?;
    let line = Line {
        name: "(bare copy and CRCs, two threads on two files)",
        goal: Goal::None,
        limit: "one thread on one",
        ..line
    };
    bench.compare(&line, |bench| single.limit(bench), |bench| single.bare_threads(bench, 2))?;

    latencies(&mut bench, &single, &line)?;
    bench.finish();
    Ok(())
}

/// Each call timed, as fast as it goes and at a steady 500,000 calls a second.
fn latencies(bench: &mut Bench, work: &Work, line: &Line<'_>) -> Outcome<()> {
    let paces = [
        ("append 100 B, p99.9 of a call, flat out", None, 10_000_000),
        ("append 100 B, p99.9 of a call, 500 k/s", Some(Duration::from_micros(2)), 2_000_000),
    ];
    for (name, pace, calls) in paces {
        let calls = bench.amount(calls, 20_000);
        let line =
            Line { name, unit: Unit::Time, goal: Goal::Max(5e-6), limit: "copy and CRCs", ..*line };
        let limit = |bench: &Bench| {
            let mut log = work.bare_log(&bench.fresh("bare")?)?;
            let mut frame = work.frame();
            slowest(calls, pace, || Ok(log.append(&mut frame)?))
        };
        let ours = |bench: &Bench| {
            let store = work.store(&bench.fresh("ours")?, 1)?;
            let partition = store.partition(ours::TOPIC, 0)?;
            let value = noise(work.value_bytes);
            slowest(calls, pace, || {
                black_box(partition.append(&[Record::new(black_box(&value))], Acks::Leader)?);
                Ok(())
            })
        };
        bench.compare(&line, limit, ours)?;
    }
    let line = Line {
        name: "(the clock's cost, taken off above)",
        unit: Unit::Time,
        goal: Goal::None,
        limit: "-",
        durability: "-",
    };
    bench.measure(&line, |_| Ok(clock_cost()))?;
    Ok(())
}
