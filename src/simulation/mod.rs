//! For tests: a disk that fails on demand, a clock that stands still, and doors for fuzzers.

pub mod fuzz;

pub use crate::storage::Clock;
pub use crate::storage::simulated::*;
