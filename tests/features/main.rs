//! What the public API does, part by part.
#![cfg(feature = "simulation")]
#![allow(clippy::print_stderr, clippy::unwrap_used, reason = "a test may fail loudly")]

mod backup;
mod consumer;
mod hanging;
mod idempotent;
mod operators;
mod producer;
mod producer_memory;
mod replicas;
mod store;
mod transactions;
mod upkeep;

#[path = "../common/consumed.rs"]
mod consumed;
#[path = "../common/hanging_disk.rs"]
mod hanging_disk;
#[path = "../common/ticking.rs"]
mod ticking;
