//! Transactions, decided: who may write under a transactional id, and how each transaction ends.
//!
//! - `lineage`: [`lineage::TransactionTag`], the name of one transaction for ever, and
//!   [`lineage::Lineage`], how the last of them ended.
//! - `messages`: what the coordinator is told, what follows, and why it refuses.
//! - `records`: the bytes of the internal topic, from which all is known again after a restart.
//! - `entry`: one transactional id: its holder, its transaction, the record that is on its way.
//! - `coordinator`: [`coordinator::Coordinator`], all ids, their timers, and what partitions report.
//!
//! A transaction goes through the coordinator like this; only one record stands between data and commit:
//!
//! ```text
//! open ----> Persist(reign) ----> Opened(tag)          fences the older holder at once
//! join(tag, partition)                                 nothing is written: the batch itself says it
//! append, append, ...
//! end  ----> Persist(decision) = the commit point ----> WriteMarkers ----> Ended(outcome, next tag)
//! crash ---> replay: decided is completed; open() ----> Found(tag, partition): undecided is aborted
//! ```
//!
//! What differs from Kafka, and why:
//! 1. Each transaction has a tag (producer id, epoch) of its own, never reused; markers carry it. A late write,
//!    marker or end names its own transaction and can touch no other (KAFKA-17754, KAFKA-19446). Epochs are u32
//!    and none is kept back; a used-up id gets a new producer id at the next open (COORD-08, COORD-09,
//!    COORD-53, COORD-54), and whoever rotates cannot fence a newer one by it (KAFKA-18660).
//! 2. Joining writes no record (COORD-22): a partition's own log tells at open, and whenever a leader takes
//!    over, which transactions are open in it, and each is settled then. So there is no transaction that the
//!    coordinator does not know (COORD-65), and a commit costs one flush besides its data's.
//! 3. The answer to an end comes when all markers are appended: success means visible (COORD-31). Of a commit, they need
//!    not be safe by then: the decision is.
//! 4. An end is answered with how the transaction *did* end, whatever was asked: a retry, a late abort and an
//!    end after a time-out learn the truth (COORD-32, COORD-33, COORD-51). A time-out ends the
//!    transaction and leaves the holder its id (COORD-60).
//! 5. How the last 64 transactions of an id ended stays known, also after a restart.
//!
//! Cases that cannot apply: COORD-01 and COORD-13 (the shell gives producer ids from durable blocks), COORD-10
//! to COORD-12 (no answer is lost within a process; a holder is known by its tag), COORD-23 and TXLOG-15
//! to TXLOG-18 (each batch joins first), COORD-36 and COORD-45 (one coordinator in one process, the
//! store is locked), COORD-50 and COORD-56 (one version of the rules). The shell's: COORD-47 (a marker in the
//! offsets topic counts as written once the table of offsets has taken it in) and CLI-*.

pub(crate) mod coordinator;
pub(crate) mod entry;
pub(crate) mod lineage;
pub(crate) mod messages;
#[cfg(test)]
mod model;
pub(crate) mod records;
#[cfg(test)]
mod scenarios;
