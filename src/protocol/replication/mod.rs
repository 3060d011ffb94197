//! Replication, decided: whose log is whose, how far it is acknowledged, who leads.
//!
//! One partition has replicas on several disks; one of them leads and gives the offsets, the others
//! follow and hold the same batches. Small machines decide everything:
//!
//! - [`EpochHistory`]: which reign wrote which offsets. What a returning replica must cut is found in
//!   it, never in a watermark (KIP-101, KIP-279).
//! - [`Progress`]: how far each replica is, who is in sync, and the high watermark that follows.
//! - [`elect`]: who leads when the leader is gone (KIP-966).
//! - [`Load`]: which disks a new partition goes to.
//!
//! They are told facts and say what follows; writing it into the metadata before it counts, copying
//! batches and waking waiters is the shell's. The history and who is in sync are part of the
//! metadata, which all disks of the store share: there is one history of a partition and not one a
//! replica, and "who knows the newer epoch?" is never a question.

mod election;
mod epochs;
mod placement;
mod progress;
#[cfg(test)]
mod scenarios;

pub(crate) use election::{Candidate, elect, eligible_after, goes_on_without_eligible};
pub(crate) use epochs::EpochHistory;
pub(crate) use placement::Load;
pub(crate) use progress::{FollowerStart, Progress};
