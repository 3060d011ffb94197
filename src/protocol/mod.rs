//! The rules, without threads, clocks or files: facts in, decisions out.
//!
//! - `metadata`: what the store as a whole has decided, as a state machine over a log.
//! - `recovery`: whether bytes that do not fit are a torn tail or damage.
//! - `retention`: which segments a policy lets go.
//! - `watermarks`: how far a partition may be read.

pub(crate) mod metadata;
pub(crate) mod recovery;
pub(crate) mod retention;
pub(crate) mod watermarks;
