//! What a user should know beyond single methods.

/// Every byte on the disk.
#[doc = include_str!("format.md")]
pub mod format {}
