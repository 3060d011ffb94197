//! One replica of a partition, as the partition holds it: the leader's, or a follower's with its log.
//!
//! The leader's log is in `Core::state`; here its place is empty. A follower's log has its own lock, taken
//! behind the partition's, so that a disk that is slow holds up nobody but its own worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::log::Log;
use crate::types::{DiskId, LeaderEpoch, Timestamp};

use super::attention::Queued;
use super::core::Fenced;
use super::{Attention, Core};

/// What the partition knows of one disk's replica.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) disk: DiskId,
    /// The queue of the disk's worker, and of the thread that flushes its replicas.
    attention: Arc<Attention>,
    flushes: Arc<Attention>,
    queued: Queued,
    flush_queued: Queued,
    /// Somebody is bringing it up to the leader.
    pub(super) is_followed: AtomicBool,
    /// The last who wanted the lock waited in vain.
    pub(super) hangs: AtomicBool,
    /// It is to lead from its end on, which is being written down: nothing is put behind that meanwhile. Said with its
    /// state locked.
    pub(super) is_elected: AtomicBool,
    pub(super) state: Mutex<ReplicaState>,
}

#[derive(Debug, Default)]
pub(super) struct ReplicaState {
    /// `None`: it leads, or is out of service.
    pub(super) log: Option<Log>,
    /// Why it is out of service.
    pub(super) fenced: Option<Fenced>,
    /// When it is to be tried again, if its disk is in service.
    pub(super) retry_at: Timestamp,
    /// A flush of it is on its way.
    pub(super) flushing: bool,
    /// Another was asked for meanwhile.
    pub(super) flush_again: bool,
    /// The reign that it follows: what was read of an earlier leader's log is not for it.
    pub(super) epoch: LeaderEpoch,
}

impl Replica {
    pub(crate) fn new(
        disk: DiskId,
        attention: Arc<Attention>,
        flushes: Arc<Attention>,
        log: Option<Log>,
    ) -> Arc<Self> {
        Arc::new(Self {
            disk,
            attention,
            flushes,
            queued: Queued::default(),
            flush_queued: Queued::default(),
            is_followed: AtomicBool::new(false),
            hangs: AtomicBool::new(false),
            is_elected: AtomicBool::new(false),
            state: Mutex::new(ReplicaState { log, ..ReplicaState::default() }),
        })
    }

    /// What takes its place, without a log.
    pub(super) fn heir(&self) -> Arc<Self> {
        Self::new(self.disk, Arc::clone(&self.attention), Arc::clone(&self.flushes), None)
    }

    /// Whether what was read of the leader of `epoch` may be put behind its last batch; `held` is its state.
    pub(super) fn takes_from(&self, epoch: LeaderEpoch, held: &ReplicaState) -> bool {
        held.epoch == epoch && !self.is_elected.load(Ordering::Acquire)
    }

    /// Whether its disk was taken out of service without it. It is fenced soon, at the control thread's next look.
    pub(super) fn is_left_behind(&self) -> bool {
        self.attention.is_abandoned()
    }

    /// Queues the partition for the disk's worker, once. False: it has ended.
    pub(super) fn ask_for_attention(&self, core: &Core) -> bool {
        self.attention.push_once(&self.queued, || core.weak()) || self.is_left_behind()
    }

    /// Queues the partition for the thread that flushes this disk's replicas, once. False: it has ended.
    pub(super) fn ask_for_flush(&self, core: &Core) -> bool {
        self.flushes.push_once(&self.flush_queued, || core.weak()) || self.is_left_behind()
    }

    /// The disk's worker looks from now on.
    pub(super) fn attention_taken(&self) {
        self.queued.taken();
    }

    pub(super) fn flush_taken(&self) {
        self.flush_queued.taken();
    }
}
