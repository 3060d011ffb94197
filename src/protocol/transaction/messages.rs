//! What the coordinator is told, what follows, and why it refuses.

use std::sync::Arc;
use std::time::Duration;

use crate::protocol::group::assignment::PartitionId;
use crate::types::{Outcome, ProducerEpoch, ProducerId, Timestamp};

use super::lineage::{TransactionTag, Verdict};
use super::records::{ID_BYTES_MAX, PARTITIONS_MAX, TransactionRecord};

/// Calls that may wait for the end of one transaction.
pub(crate) const WAITERS_MAX: usize = 64;

/// Names a call, so that its answer finds it. Each call gets exactly one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RequestId(pub(crate) u64);

/// What holds for all ids.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// Kafka's `transaction.max.timeout.ms`.
    pub(crate) timeout_max: Duration,
    /// Kafka's `transactional.id.expiration.ms`; `None` keeps ids for ever.
    pub(crate) expiration: Option<Duration>,
    /// After a start no id expires for that long, nor its outcomes: the clock may have been set before (S23).
    pub(crate) grace: Duration,
    /// Epochs below this are handed out; then the id gets a new producer id.
    pub(crate) epoch_end: ProducerEpoch,
    /// Transactional ids that are known at one time; a bound on memory (KIP-936).
    pub(crate) ids_max: usize,
    /// A partition has not told yet what it had open when the store was opened: it may lack the marker of a commit.
    pub(crate) some_unseen: bool,
}

impl Settings {
    /// When an id counts as used last, at a start. A clock that stood in the future must not keep it for as long
    /// (COORD-46), and one that was put right not end it at once.
    pub(super) fn as_of_start(&self, updated_at: Timestamp, now: Timestamp) -> Timestamp {
        let used_up = self.expiration.unwrap_or_default().saturating_sub(self.grace);
        let unused = now.since(updated_at).min(used_up);
        Timestamp(
            now.0.saturating_sub_unsigned(u64::try_from(unused.as_millis()).unwrap_or(u64::MAX)),
        )
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            timeout_max: Duration::from_secs(15 * 60),
            expiration: Some(Duration::from_secs(7 * 24 * 3600)),
            grace: Duration::from_secs(24 * 3600),
            epoch_end: ProducerEpoch(u32::MAX),
            ids_max: 1_000_000,
            some_unseen: false,
        }
    }
}

/// A handle wants to hold a transactional id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Open {
    pub(crate) request: RequestId,
    pub(crate) id: Arc<str>,
    pub(crate) timeout: Duration,
    /// A producer id that nobody has had. It counts as used, unless the open is refused or answered with
    /// another one.
    pub(crate) fresh: ProducerId,
    /// The holder itself, whose epochs are used up: refused if somebody newer has come in between.
    pub(crate) renews: Option<TransactionTag>,
}

/// What happens to the coordinator. Joining a partition is a call and not an event: nothing follows from it.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Open(Open),
    /// The holder wants its transaction to end. Answered by [`Answer::Ended`] when all markers are appended.
    End {
        request: RequestId,
        tag: TransactionTag,
        outcome: Outcome,
    },
    /// The handle is dropped; what it left open is aborted. One that was fenced changes nothing.
    Close {
        tag: TransactionTag,
    },
    /// The record of [`Effect::Persist`] is as durable as the topic's flush level gives.
    Persisted {
        id: Arc<str>,
    },
    /// It is not known to be. It may be in the log, then before all later records, or it never will be.
    PersistFailed {
        id: Arc<str>,
    },
    /// The partition has the marker of a commit: readers see the transaction. The marker is not as safe as its flush level
    /// gives; [`Event::MarkerWritten`] or [`Event::MarkerFailed`] follows.
    MarkerAppended {
        tag: TransactionTag,
        partition: PartitionId,
    },
    /// The partition has the marker, as safe as its flush level gives; or it has a later epoch of the
    /// producer, hence had the marker; or the partition is gone (COORD-44).
    MarkerWritten {
        tag: TransactionTag,
        partition: PartitionId,
    },
    /// It has not, or not any more; it will be asked for again (COORD-40).
    MarkerFailed {
        tag: TransactionTag,
        partition: PartitionId,
    },
    /// The partition's log has this transaction open. Told of every partition before the first
    /// [`Event::Open`], and when a leader takes over or a partition comes back, before it takes batches.
    Found {
        tag: TransactionTag,
        partition: PartitionId,
    },
    /// Nothing but time has passed; due when [`next_deadline`](super::coordinator::Coordinator::next_deadline)
    /// says.
    Tick,
}

/// What follows, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Write the record and report. There is at most one such record of an id on its way.
    Persist {
        record: TransactionRecord,
    },
    /// Write the record, in order with the others; nothing depends on it, and no report is due.
    Note {
        record: TransactionRecord,
    },
    /// Write the marker to each partition and report each.
    WriteMarkers {
        tag: TransactionTag,
        outcome: Outcome,
        partitions: Vec<PartitionId>,
    },
    Reply {
        request: RequestId,
        answer: Answer,
    },
    /// A partition had a transaction open that is over for so long that nobody knows how it ended; it is
    /// aborted there. It happens only if a partition loses a marker that it reported; to be shown as damage.
    Unexplained {
        tag: TransactionTag,
        partition: PartitionId,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The id is held; the first transaction has this tag.
    Opened {
        tag: TransactionTag,
    },
    /// How the transaction ended, whatever was asked. `next` is the tag of the holder's next transaction; none
    /// if it was fenced or if its epochs are used up, which [`Open::renews`] is for.
    Ended {
        outcome: Outcome,
        next: Option<TransactionTag>,
    },
    Refused(Refusal),
    /// The record could not be written for certain. After an open: open again. After an end: end again or
    /// close; until then the transaction is open, and after a crash it may turn out as it was asked for.
    Failed,
}

/// Why a call has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("a transactional id has 1 to {ID_BYTES_MAX} bytes")]
    BadId,
    #[error("a transaction timeout lies above 0 and is at most {max:?}")]
    BadTimeout { max: Duration },
    #[error("{ids_max} transactional ids are in use")]
    Full { ids_max: usize },
    #[error("the producer id is in use")]
    ProducerIdInUse,
    /// A newer holder took over, or the handle was closed.
    #[error("a newer holder took over; the id is at epoch {} of producer {}", current.epoch, current.producer)]
    Fenced { current: TransactionTag },
    /// The id has expired, or never was.
    #[error("the producer is not known")]
    UnknownProducer,
    /// The transaction has ended; a time-out aborts it (COORD-60).
    #[error("the transaction is over: {0:?}")]
    Over(Verdict),
    /// It is about to end, and takes in nothing more.
    #[error("the transaction is being ended")]
    Ending,
    #[error("a transaction has at most {PARTITIONS_MAX} partitions")]
    TooManyPartitions,
    /// Something else is under way; the same call may succeed soon.
    #[error("the transactional id is busy")]
    Busy,
}

/// What an id's own rules need from around it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'a> {
    pub(super) id: &'a Arc<str>,
    pub(super) now: Timestamp,
    pub(super) settings: &'a Settings,
}
