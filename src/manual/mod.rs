//! What a user should know beyond single methods.

/// Every byte on the disk.
#[doc = include_str!("format.md")]
pub mod format {}

/// Producers: plain, idempotent, named; the loops of each, and what to set.
#[doc = include_str!("producers.md")]
pub mod producers {}

/// Coming from Kafka: names, keys, what differs, what may be left out.
#[doc = include_str!("from_kafka.md")]
pub mod from_kafka {}

/// What can be lost when, and the setting that prevents it.
#[doc = include_str!("losses.md")]
pub mod losses {}
