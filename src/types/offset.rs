//! Where a record stands in its partition.

use std::fmt;

/// Position of a record in its partition, counted from zero and never reused within a leader epoch.
///
/// # Examples
/// ```
/// use oncelog::Offset;
/// assert_eq!(Offset(41).next(), Offset(42));
/// assert!(Offset::ZERO < Offset::MAX);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(pub u64);

impl Offset {
    /// The first offset of every partition.
    pub const ZERO: Self = Self(0);
    /// The largest end offset a partition can have: Kafka's `i64::MAX`.
    pub const MAX: Self = Self(i64::MAX as u64);

    /// The offset just after this one; [`Offset::MAX`] is its own successor.
    #[must_use]
    pub const fn next(self) -> Self {
        self.plus(1)
    }

    /// The offset `records` further on, held at [`Offset::MAX`].
    #[must_use]
    pub const fn plus(self, records: u64) -> Self {
        let sum = self.0.saturating_add(records);
        if sum > Self::MAX.0 { Self::MAX } else { Self(sum) }
    }

    /// How many offsets lie between `earlier` and this one; zero when `earlier` is not earlier.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl From<u64> for Offset {
    fn from(value: u64) -> Self {
        Self(value)
    }
}
