//! What a random test draws from: the same numbers again for the same seed.
#![allow(dead_code, reason = "each group draws in some of these ways")]

use std::panic::{AssertUnwindSafe, catch_unwind};

/// A number that whoever runs the test may choose.
pub(crate) fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Tells the story of a seed. After a panic it says what story that was, and how it is told again.
pub(crate) fn tell(seed: u64, what: &str, story: impl FnOnce()) {
    let told = catch_unwind(AssertUnwindSafe(story));
    let group = env!("CARGO_CRATE_NAME");
    let thread = std::thread::current();
    let test = thread.name().unwrap_or_default();
    assert!(
        told.is_ok(),
        "{what}; replay with: ONCELOG_SEED={seed} ONCELOG_STORIES=1 cargo test --all-features --test {group} {test}"
    );
}

/// A linear congruential generator (Knuth's MMIX), of which the upper half is used.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// Below `bound`; 0 where that is 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound.max(1)
    }

    /// As [`Random::below`], of a list.
    pub(crate) fn index(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).expect("it is below a usize")
    }

    pub(crate) fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}
