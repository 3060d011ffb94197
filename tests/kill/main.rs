//! Kill -9, again and again, of a process that is this test itself.
#![cfg(unix)]
#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test may fail loudly, and a child speaks to its parent"
)]

mod appends;
#[cfg(target_os = "linux")]
mod directories;
#[cfg(all(target_os = "linux", feature = "simulation"))]
mod file_systems;
#[cfg(all(target_os = "linux", feature = "simulation"))]
mod mounts;
mod pipeline;
mod producer;
mod transactions;
mod views;

#[path = "../common/killed.rs"]
mod killed;
#[path = "../common/random.rs"]
mod random;
#[path = "../common/ticking.rs"]
mod ticking;
