//! From an append to the reader that waits for it, and what an append pays when nobody waits.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::histogram::Histogram;
use common::ours::{self, Shape};
use common::{Bench, Goal, Line, Outcome, Unit, noise, timed};
use oncelog::{Acks, Error, Offset, Partition, Record, Store};
use parking_lot::{Condvar, Mutex};

/// Time for the reader to fall asleep again before the next hand-over.
const PAUSE: Duration = Duration::from_micros(150);
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> Outcome<()> {
    let mut bench = Bench::new("wakeup")?;
    let count = bench.amount(5_000, 50);
    let segment_bytes = bench.amount(256 << 20, 4 << 20);
    let line = Line {
        name: "append to wake-up of a blocked reader, p50",
        durability: "process death",
        unit: Unit::Time,
        goal: Goal::RatioMax(1.5),
        limit: "condvar hand-over",
    };
    bench.compare(
        &line,
        |_| bare(count),
        |bench| {
            let store = ours::create(&bench.fresh("ours")?, &Shape::plain(segment_bytes))?;
            let partition = store.partition(ours::TOPIC, 0)?;
            let value = noise(100);
            handed_over(
                count,
                |number| {
                    partition.append(&[Record::new(&value)], Acks::Leader)?;
                    debug_assert_eq!(partition.log_end_offset(), Offset(number + 1));
                    Ok(())
                },
                |number| Ok(partition.wait_for(Offset(number), PATIENCE)?),
            )
        },
    )?;

    let appends = bench.amount(5_000_000, 10_000);
    let line = Line {
        name: "append 100 B after a reader has waited and gone",
        durability: "process death",
        unit: Unit::Records,
        goal: Goal::RatioMin(0.95),
        limit: "where none ever waited",
    };
    let segment_bytes = bench.amount(1 << 30, 4 << 20);
    let plain = |bench: &Bench, waited: bool| {
        let store = ours::create(&bench.fresh("ours")?, &Shape::plain(segment_bytes))?;
        let partition = store.partition(ours::TOPIC, 0)?;
        if waited {
            wait_in_vain(&store, &partition)?;
        }
        timed(appends, || ours::fill(&partition, &noise(100), 1, appends))
    };
    bench.compare(&line, |bench| plain(bench, false), |bench| plain(bench, true))?;
    bench.finish();
    Ok(())
}

/// A value handed from thread to thread with a lock and a condition variable.
fn bare(count: u64) -> Outcome<f64> {
    let handed = Mutex::new(0);
    let changed = Condvar::new();
    handed_over(
        count,
        |number| {
            *handed.lock() = number + 1;
            changed.notify_all();
            Ok(())
        },
        |number| {
            let mut seen = handed.lock();
            while *seen <= number {
                changed.wait(&mut seen);
            }
            Ok(())
        },
    )
}

/// The middle time from the begin of `give` to the end of `take`, which waits on another thread.
fn handed_over(
    count: u64,
    mut give: impl FnMut(u64) -> Outcome<()>,
    take: impl Fn(u64) -> Outcome<()> + Sync,
) -> Outcome<f64> {
    let epoch = Instant::now();
    let given_at = AtomicU64::new(0);
    let taken = AtomicU64::new(0);
    let reader = || -> Outcome<Histogram> {
        let mut seen = Histogram::new();
        for number in 0..count {
            take(number)?;
            let given = Duration::from_nanos(given_at.load(Ordering::Acquire));
            seen.record(epoch.elapsed().saturating_sub(given));
            taken.store(number + 1, Ordering::Release);
        }
        Ok(seen)
    };
    thread::scope(|scope| {
        let reader = scope.spawn(reader);
        for number in 0..count {
            while taken.load(Ordering::Acquire) < number && !reader.is_finished() {
                thread::yield_now();
            }
            thread::sleep(PAUSE);
            given_at.store(u64::try_from(epoch.elapsed().as_nanos())?, Ordering::Release);
            give(number)?;
        }
        let seen = reader.join().map_err(|_| "the reader died")??;
        Ok(seen.quantile(0.5))
    })
}

/// Waits for a record that does not come.
fn wait_in_vain(store: &Store, partition: &Partition) -> Outcome<()> {
    let end = partition.log_end_offset();
    match partition.wait_for(end, Duration::from_millis(5)) {
        Err(Error::TimedOut { .. }) => Ok(()),
        other => {
            Err(format!("{}: waited in vain, and got {other:?}", store.path().display()).into())
        }
    }
}
