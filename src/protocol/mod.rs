//! The rules, without threads, clocks or files: facts in, decisions out.
//!
//! - `group`: who of a group's members reads which partition, and what it has committed.
//! - `metadata`: what the store as a whole has decided, as a state machine over a log.
//! - `partitioner`: which partition a record goes to.
//! - `producer_state`: which batches of a producer a log has, and which transactions are open in it.
//! - `recovery`: whether bytes that do not fit are a torn tail or damage.
//! - `replication`: whose log is whose, how far it may be read, who leads.
//! - `retention`: which segments a policy lets go.
//! - `transaction`: who may write under a transactional id, and how each transaction ends.

#[cfg_attr(not(test), expect(dead_code, reason = "the store's shell takes it up next"))]
pub(crate) mod group;
pub(crate) mod metadata;
pub(crate) mod partitioner;
pub(crate) mod producer_state;
pub(crate) mod recovery;
pub(crate) mod replication;
pub(crate) mod retention;
pub(crate) mod transaction;
