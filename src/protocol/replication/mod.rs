//! Replication, decided: whose log is whose, how far it is acknowledged, who leads.
//!
//! One partition has replicas on several disks; one of them leads and gives the offsets, the others
//! follow and hold the same batches. Three small machines decide everything:
//!
//! - [`EpochHistory`]: which reign wrote which offsets. What a returning replica must cut is found in
//!   it, never in a watermark (KIP-101, KIP-279).
//! - [`Progress`]: how far each replica is, who is in sync, and the high watermark that follows.
//! - [`elect`]: who leads when the leader is gone (KIP-966).
//!
//! They are told facts and say what follows; writing it into the metadata before it counts, copying
//! batches and waking waiters is the shell's. The history and who is in sync are part of the
//! metadata, which all disks of the store share: there is one history of a partition and not one a
//! replica, and "who knows the newer epoch?" is never a question.

mod election;
mod epochs;
mod progress;
#[cfg(test)]
mod scenarios;

#[cfg_attr(not(test), expect(unused_imports, reason = "the store takes it up next"))]
pub(crate) use election::{Candidate, elect, eligible_after};
#[cfg_attr(not(test), expect(unused_imports, reason = "the store takes it up next"))]
pub(crate) use epochs::EpochHistory;
#[cfg(test)]
use progress::FollowerStart;
pub(crate) use progress::Progress;
