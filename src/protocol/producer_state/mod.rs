//! What one replica's log knows of its idempotent producers and their transactions.
//!
//! Takes the headers of batches in the order of the log, and nothing else: a leader, a follower and a recovery
//! that walk the same batches come to the same state. Yields, for a batch that a producer offers, whether it is
//! the next, one that is here already, or one that must not be written; and how far a read-committed reader may go.
//!
//! - `batch`: what a batch says ([`batch::BatchFacts`]) and what a producer offers ([`batch::Proposal`]).
//! - `verdict`: what the leader answers ([`verdict::Verdict`], [`verdict::Refusal`]).
//! - `entry`: one producer: its epoch, its last batches, its open transaction; the rules live here.
//! - `recency`: all producers, in order of their last append, at constant cost.
//! - `transactions`: which are open or not settled yet, hence the last stable offset.
//! - `states`: [`states::ProducerStates`], which ties them together and bounds them.
//! - `snapshot`: all of it as bytes, so that a start needs the log's last part only.
//!
//! Threads: none; the log calls it under its lock, `check` and `on_appended` around one append.
//! Leaves to others: clocks, files, and writing to the side file what
//! [`transactions::EndedTransaction::aborted`] returns.
//!
//! What differs from Kafka, and why:
//! 1. Sequences are u64 and do not wrap (PROD-08 and PROD-09 cannot happen); epochs are u32.
//! 2. A snapshot holds all that is remembered of a producer, not the last batch only (PROD-31): a duplicate that was
//!    recognised before a restart is recognised after it.
//! 3. A batch that is known to be here and whose offsets are forgotten is `DuplicateSequence`, not a gap (PROD-05).
//! 4. Age is that of the append by the machine's clock, not of the records (PROD-21).
//! 5. A marker names the epoch of the transaction that it ends, and epochs are never reused: late data and late markers
//!    find a newer or an ended epoch, so nothing has to be verified beforehand (TXLOG-15 to TXLOG-18, TXLOG-21).
//!    There is one coordinator, in the same process: TXLOG-09 cannot happen.
//! 6. Whoever writes for a producer numbers what it writes, to the offsets topic too: nothing goes unchecked (PROD-16).

pub(crate) mod batch;
mod entry;
#[cfg(test)]
mod model;
mod recency;
#[cfg(test)]
mod scenarios;
pub(crate) mod snapshot;
pub(crate) mod states;
#[cfg(test)]
mod table;
pub(crate) mod transactions;
pub(crate) mod verdict;

pub(crate) use entry::BATCHES_MAX;
