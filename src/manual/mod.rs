//! What a user should know beyond single methods.

/// Every byte on the disk.
#[doc = include_str!("format.md")]
pub mod format {}

/// Producers: plain, idempotent, named; the loops of each, and what to set.
#[doc = include_str!("producers.md")]
pub mod producers {}
