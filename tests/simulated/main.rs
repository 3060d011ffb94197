//! Crashes at every call of a simulated disk, and random stories of them.
#![cfg(feature = "simulation")]
#![allow(clippy::print_stderr, clippy::unwrap_used, reason = "a test may fail loudly")]

mod backup;
mod consumers;
mod hanging_transactions;
mod hangs;
mod log;
mod pipelines;
mod producers;
mod replicas;
mod transactions;

#[path = "../common/attempts.rs"]
mod attempts;
#[path = "../common/hanging_disk.rs"]
mod hanging_disk;
#[path = "../common/random.rs"]
mod random;
