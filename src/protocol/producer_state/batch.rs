//! What a batch says of its producer, in the log and before it gets there.

use crate::record::{BatchHeader, MARKER_ABORT, MARKER_COMMIT};
use crate::types::{LeaderEpoch, Offset, Outcome, ProducerSequence};

/// How a producer counts when it comes back under a newer epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Numbering {
    /// From 0 again: Kafka's producers, and every transaction.
    Restarts,
    /// On from where the older epoch was: a named producer, whose sequences are positions in its source.
    Continues,
}

/// A batch that a producer wants to have appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Proposal {
    pub(crate) producer: ProducerSequence,
    /// How many records; at least one.
    pub(crate) count: u32,
    pub(crate) transactional: bool,
    /// Whether a producer that the partition does not know has to begin at 0.
    pub(crate) strict: bool,
    pub(crate) numbering: Numbering,
}

/// What a batch is to the state of its producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Plain,
    Transactional,
    Marker(Outcome),
    /// A control batch of another kind: it takes up offsets, and no producer is concerned.
    OtherControl,
}

/// What the log tells about a batch that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchFacts {
    /// Id 0: nobody's.
    pub(crate) producer: ProducerSequence,
    pub(crate) content: Content,
    pub(crate) base_offset: Offset,
    /// Counts the records as they were appended, also when compaction has taken some (PROD-41).
    pub(crate) last_offset_delta: u32,
    pub(crate) leader_epoch: LeaderEpoch,
}

impl BatchFacts {
    #[inline]
    pub(crate) fn end_offset(&self) -> Offset {
        self.base_offset.plus(u64::from(self.last_offset_delta) + 1)
    }
}

impl From<&BatchHeader> for BatchFacts {
    #[inline]
    fn from(header: &BatchHeader) -> Self {
        let content = match (header.control, header.transactional, header.base_sequence) {
            (false, false, _) => Content::Plain,
            (false, true, _) => Content::Transactional,
            (true, true, MARKER_ABORT) => Content::Marker(Outcome::Aborted),
            (true, true, MARKER_COMMIT) => Content::Marker(Outcome::Committed),
            (true, _, _) => Content::OtherControl,
        };
        Self {
            producer: ProducerSequence {
                id: header.producer_id,
                epoch: header.producer_epoch,
                sequence: header.base_sequence,
            },
            content,
            base_offset: header.base_offset,
            last_offset_delta: header.last_offset_delta,
            leader_epoch: header.leader_epoch,
        }
    }
}
