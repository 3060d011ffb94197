//! What KAFKA_BEHAVIOUR.md and RELIABILITY.md number, by its number.
#![cfg(feature = "simulation")]
#![allow(clippy::print_stderr, clippy::unwrap_used, reason = "a test may fail loudly")]

mod bounds;
mod consumer;
mod damage;
mod faults;
mod fuzz_corpus;
mod log;
mod matrix;

#[path = "../common/random.rs"]
mod random;
