//! From one thread to another: how long after it was given something the other has it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Outcome;
use super::histogram::Histogram;

/// Time for the taker to fall asleep again before the next hand-over.
const PAUSE: Duration = Duration::from_micros(150);

/// A value handed from thread to thread with a lock and a condition variable.
pub(crate) fn bare(count: u64) -> Outcome<Histogram> {
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

/// The times from the begin of `give` to the end of `take`, which waits on another thread.
pub(crate) fn handed_over(
    count: u64,
    mut give: impl FnMut(u64) -> Outcome<()>,
    mut take: impl FnMut(u64) -> Outcome<()> + Send,
) -> Outcome<Histogram> {
    let epoch = Instant::now();
    let given_at = AtomicU64::new(0);
    let taken = AtomicU64::new(0);
    let (given, done) = (&given_at, &taken);
    let taker = move || -> Outcome<Histogram> {
        let mut seen = Histogram::new();
        for number in 0..count {
            take(number)?;
            let given = Duration::from_nanos(given.load(Ordering::Acquire));
            seen.record(epoch.elapsed().saturating_sub(given));
            done.store(number + 1, Ordering::Release);
        }
        Ok(seen)
    };
    thread::scope(|scope| {
        let taker = scope.spawn(taker);
        for number in 0..count {
            while taken.load(Ordering::Acquire) < number && !taker.is_finished() {
                thread::yield_now();
            }
            thread::sleep(PAUSE);
            given_at.store(u64::try_from(epoch.elapsed().as_nanos())?, Ordering::Release);
            give(number)?;
        }
        taker.join().map_err(|_| "the taker died")?
    })
}
