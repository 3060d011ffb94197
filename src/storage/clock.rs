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
    System { started: Instant },
    Manual { millis: Arc<AtomicI64> },
}

impl Clock {
    /// The operating system's clocks.
    #[must_use]
    pub fn system() -> Self {
        Self(Source::System { started: Instant::now() })
    }

    /// A clock that stands at `now` until [`Clock::advance`] moves it.
    #[must_use]
    pub fn manual(now: Timestamp) -> Self {
        Self(Source::Manual { millis: Arc::new(AtomicI64::new(now.0)) })
    }

    /// Wall-clock time, which may jump.
    #[inline]
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System { .. } => Timestamp::from(SystemTime::now()),
            Source::Manual { millis } => Timestamp(millis.load(Ordering::Relaxed)),
        }
    }

    /// Time since some fixed moment, which never goes back.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        match &self.0 {
            Source::System { started } => started.elapsed(),
            Source::Manual { millis } => {
                Duration::from_millis(u64::try_from(millis.load(Ordering::Relaxed)).unwrap_or(0))
            }
        }
    }

    /// Moves a manual clock on; does nothing to the system's.
    pub fn advance(&self, span: Duration) {
        if let Source::Manual { millis } = &self.0 {
            let span = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
            millis.fetch_add(span, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Clock").field(&self.now()).finish()
    }
}
