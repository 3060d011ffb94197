//! Times in buckets one sixteenth wide: small enough to stay in the cache beside what is measured.

use std::time::{Duration, Instant};

const STEPS: usize = 16;
const BUCKETS: usize = 64 * STEPS;

/// How often each time was seen.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Histogram {
    /// Nothing seen yet.
    pub(crate) fn new() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0 }
    }

    /// Counts one time.
    #[inline]
    pub(crate) fn record(&mut self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(nanos)] += 1;
        self.total += 1;
    }

    /// Adds what another one saw.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
    }

    /// The time, in seconds, that the share `quantile` of all stayed below.
    pub(crate) fn quantile(&self, quantile: f64) -> f64 {
        let wanted = self.total as f64 * quantile;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen as f64 >= wanted {
                return upper(bucket) / 1e9;
            }
        }
        f64::NAN
    }
}

/// What two readings of the clock in a row cost, in seconds: the middle of many.
pub(crate) fn clock_cost() -> f64 {
    let mut seen = Histogram::new();
    for _ in 0..100_000 {
        seen.record(Instant::now().elapsed());
    }
    seen.quantile(0.5)
}

fn bucket(nanos: u64) -> usize {
    let top = (nanos | 1).ilog2() as usize;
    let step = if top < 4 { nanos << (4 - top) } else { nanos >> (top - 4) };
    let step = usize::try_from(step).unwrap_or(0) % STEPS;
    top * STEPS + step
}

/// The first time that is beyond the bucket.
fn upper(bucket: usize) -> f64 {
    let base = (1_u64 << (bucket / STEPS)) as f64;
    base * (1.0 + (bucket % STEPS + 1) as f64 / STEPS as f64)
}
