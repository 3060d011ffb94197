//! What a topic keeps.

use std::time::Duration;

/// When old records may go: by size, by age, by both (whichever comes first), or never, which is the
/// default. Whole segments go, the oldest first.
///
/// Age counts from the append by the machine's clock, not from the records' own timestamps, so a wrong
/// timestamp neither keeps data for ever nor loses it early (RET-02).
///
/// # Examples
/// ```
/// use oncelog::Retention;
/// use std::time::Duration;
/// let week_or_gib = Retention::age(Duration::from_secs(7 * 86_400)).and_bytes(1 << 30);
/// assert!(!week_or_gib.is_forever());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    pub(crate) bytes: Option<u64>,
    pub(crate) age: Option<Duration>,
}

impl Retention {
    /// Nothing goes unless it is deleted.
    #[must_use]
    pub const fn forever() -> Self {
        Self { bytes: None, age: None }
    }

    /// The newest `bytes` of each partition stay, and up to a segment more.
    #[must_use]
    pub const fn bytes(bytes: u64) -> Self {
        Self { bytes: Some(bytes), age: None }
    }

    /// Segments whose last append is longer ago than `age` go.
    #[must_use]
    pub const fn age(age: Duration) -> Self {
        Self { bytes: None, age: Some(age) }
    }

    /// Limits the size as well.
    #[must_use]
    pub const fn and_bytes(self, bytes: u64) -> Self {
        Self { bytes: Some(bytes), ..self }
    }

    /// Limits the age as well.
    #[must_use]
    pub const fn and_age(self, age: Duration) -> Self {
        Self { age: Some(age), ..self }
    }

    /// Whether nothing goes by itself.
    #[must_use]
    pub const fn is_forever(&self) -> bool {
        self.bytes.is_none() && self.age.is_none()
    }

    /// The limit in bytes for each partition.
    #[must_use]
    pub const fn max_bytes(&self) -> Option<u64> {
        self.bytes
    }

    /// The limit in time since the append.
    #[must_use]
    pub const fn max_age(&self) -> Option<Duration> {
        self.age
    }
}
