//! The rules, without threads, clocks or files: facts in, decisions out.
//!
//! - `metadata`: what the store as a whole has decided, as a state machine over a log.
//! - `recovery`: whether bytes that do not fit are a torn tail or damage.
//! - `replication`: whose log is whose, how far it may be read, who leads.
//! - `retention`: which segments a policy lets go.

pub(crate) mod metadata;
pub(crate) mod recovery;
pub(crate) mod replication;
pub(crate) mod retention;
