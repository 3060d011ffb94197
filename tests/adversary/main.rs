//! Hostile users, hostile disks and random stories: what broke the store once, and what should have.
#![cfg(feature = "simulation")]
#![allow(clippy::print_stderr, clippy::unwrap_used, reason = "a test may fail loudly")]

mod admissions;
mod answers;
mod between;
mod buffer;
mod bursts;
mod callbacks;
mod changes;
mod consumers;
mod delivery;
mod disks;
mod edges;
mod files;
mod handles;
mod histories;
mod lifecycle;
mod limits;
mod missing;
mod open;
mod operators;
mod pipelines;
mod races;
mod repair;
mod retention;
mod transactions;
mod views;

#[path = "../common/attempts.rs"]
mod attempts;
#[path = "../common/consumed.rs"]
mod consumed;
#[path = "../common/hanging_disk.rs"]
mod hanging_disk;
#[path = "../common/random.rs"]
mod random;
#[path = "../common/small_store.rs"]
mod small_store;
