//! Consumer groups, decided: who reads which partition, who may commit, what is committed.
//!
//! - `membership`: [`membership::Group`], the state machine: joins, leaves, polls and confirmations in,
//!   assignments and revocations out.
//! - `assignors`: which member gets which partition: range, round robin, sticky, cooperative, or one
//!   that the application brings.
//! - `assignment`: what an assignor is shown, and the check that its answer has to pass.
//! - `records`: the bytes of committed offsets and of a group's state in the internal topic.
//! - `offsets`: [`offsets::OffsetTable`], what those records add up to.
//!
//! Members are live handles in one process, so there are no heartbeats: a dropped handle leaves, and a
//! watchdog removes one that has stopped polling. Carrying effects to the members, writing records and
//! asking the time are the shell's.

pub(crate) mod assignment;
pub(crate) mod assignors;
pub(crate) mod membership;
#[cfg(test)]
mod model;
pub(crate) mod offsets;
pub(crate) mod records;
#[cfg(test)]
mod scenarios;
