//! What time it is: the system's, or one that a test moves by hand.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crate::types::Timestamp;

/// A source of wall-clock and monotonic time. Cheap to clone.
#[derive(Clone)]
pub struct Clock(Source);

#[derive(Clone)]
enum Source {
    System {
        started: Instant,
        /// The kernel itself tells time by the processor's counter.
        #[cfg_attr(not(all(target_arch = "x86_64", target_os = "linux")), expect(dead_code))]
        counter: bool,
    },
    Manual {
        millis: Arc<AtomicI64>,
        elapsed: Arc<AtomicI64>,
    },
}

impl Clock {
    /// The operating system's clocks.
    #[must_use]
    pub fn system() -> Self {
        let source = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
        let counter = std::fs::read_to_string(source).is_ok_and(|name| name.trim() == "tsc");
        Self(Source::System { started: Instant::now(), counter })
    }

    /// A clock that stands at `now` until [`Clock::advance`] moves it.
    #[must_use]
    pub fn manual(now: Timestamp) -> Self {
        let elapsed = Arc::default();
        Self(Source::Manual { millis: Arc::new(AtomicI64::new(now.0)), elapsed })
    }

    /// Whether time goes on by itself.
    pub(crate) fn is_system(&self) -> bool {
        matches!(self.0, Source::System { .. })
    }

    /// Wall-clock time, which may jump.
    #[inline]
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            #[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
            Source::System { counter: true, .. } => counter::now(),
            Source::System { .. } => Timestamp::from(SystemTime::now()),
            Source::Manual { millis, .. } => Timestamp(millis.load(Ordering::Relaxed)),
        }
    }

    /// Time since some fixed moment, which never goes back.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        match &self.0 {
            Source::System { started, .. } => started.elapsed(),
            Source::Manual { elapsed, .. } => {
                Duration::from_millis(u64::try_from(elapsed.load(Ordering::Relaxed)).unwrap_or(0))
            }
        }
    }

    /// Moves a manual clock on; does nothing to the system's.
    pub fn advance(&self, span: Duration) {
        if let Source::Manual { millis, elapsed } = &self.0 {
            let span = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
            millis.fetch_add(span, Ordering::Relaxed);
            elapsed.fetch_add(span, Ordering::Relaxed);
        }
    }

    /// Sets the wall time of a manual clock, forwards or back; no time passes by that.
    pub fn set_wall(&self, now: Timestamp) {
        if let Source::Manual { millis, .. } = &self.0 {
            millis.store(now.0, Ordering::Relaxed);
        }
    }
}

/// The time that passes, told as a wall clock tells it that nobody sets: for what is to be due by it.
#[derive(Debug)]
pub(crate) struct Steady {
    clock: Clock,
    /// What the wall clock showed at first, and when that was.
    showed: Timestamp,
    at: Duration,
}

impl Steady {
    pub(crate) fn new(clock: &Clock) -> Self {
        Self { clock: clock.clone(), showed: clock.now(), at: clock.elapsed() }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.showed.plus(self.clock.elapsed().saturating_sub(self.at))
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Clock").field(&self.now()).finish()
    }
}

/// Asking the kernel takes 36 ns, reading the processor's counter 9, and a timestamp holds for a
/// millisecond: each thread asks once a millisecond and counts in between.
#[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
mod counter {
    use std::cell::Cell;
    use std::time::{SystemTime, UNIX_EPOCH};

    use crate::types::Timestamp;

    /// A rate is believed once it was measured over this.
    const MEASURE_NANOS: u64 = 200_000;
    const MILLISECOND: u64 = 1_000_000;

    #[derive(Clone, Copy)]
    struct Known {
        /// The kernel's answer, and the counts between which it is still the answer.
        timestamp: Timestamp,
        from: u64,
        until: u64,
        /// When that was, and when a rate was last measured from.
        nanos: u64,
        measured_from: (u64, u64),
        /// Counts in a millisecond, less a tenth: the answer is given up early, never late.
        counts_per_ms: u64,
    }

    thread_local! {
        static KNOWN: Cell<Known> = const { Cell::new(Known {
            timestamp: Timestamp(0),
            from: 0,
            until: 0,
            nanos: 0,
            measured_from: (0, 0),
            counts_per_ms: 0,
        }) };
    }

    #[inline]
    pub(super) fn now() -> Timestamp {
        KNOWN.with(|cell| {
            let known = cell.get();
            let count = count();
            if count >= known.from && count < known.until {
                return known.timestamp;
            }
            ask(cell, known, count)
        })
    }

    #[cold]
    fn ask(cell: &Cell<Known>, known: Known, count: u64) -> Timestamp {
        let time = SystemTime::now();
        let timestamp = Timestamp::from(time);
        let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let nanos = u64::try_from(since_epoch.as_nanos()).unwrap_or(0);
        let mut next = Known { timestamp, from: count, until: count, nanos, ..known };
        let (counts, span) = (
            count.saturating_sub(known.measured_from.0),
            nanos.saturating_sub(known.measured_from.1),
        );
        if known.measured_from == (0, 0) || span > 1000 * MILLISECOND || nanos < known.nanos {
            // The first time, after a pause, or after the wall clock was set back.
            next.measured_from = (count, nanos);
            next.counts_per_ms = 0;
        } else if span >= MEASURE_NANOS {
            let rate = u128::from(counts) * u128::from(MILLISECOND) * 9 / 10 / u128::from(span);
            next.counts_per_ms = u64::try_from(rate).unwrap_or(0);
        }
        let left = MILLISECOND - nanos % MILLISECOND;
        next.until = count + next.counts_per_ms * left / MILLISECOND;
        cell.set(next);
        timestamp
    }

    #[inline]
    fn count() -> u64 {
        // SAFETY: reads a register; every x86-64 processor has it.
        unsafe { core::arch::x86_64::_rdtsc() }
    }
}
