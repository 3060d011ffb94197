//! Control records: decisions in the log that no reader is shown.
//!
//! A marker ends a transaction in a partition. The header of its batch says whose and how it ended, so that a
//! follower need not look further; the record says where the transaction began, so that the aborted ranges
//! of a segment can be found again from that segment alone.
//!
//! Key: version u16 (0), kind u16 (0: abort, 1: commit), as in Kafka. Value: first offset u64.

use crate::types::{Offset, Outcome, ProducerEpoch, ProducerId, Timestamp, TopicPartition};

use super::{Batch, Draft, DraftSettings, Record};

/// `base_sequence` of a marker, the control batch that ends a transaction in a partition.
pub(crate) const MARKER_ABORT: u64 = 0;
pub(crate) const MARKER_COMMIT: u64 = 1;

/// The end of a transaction in one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Marker {
    pub(crate) producer: ProducerId,
    /// That of the transaction.
    pub(crate) epoch: ProducerEpoch,
    pub(crate) outcome: Outcome,
}

/// Encodes into `draft` the batch that ends a transaction which began at `first`.
pub(crate) fn encode_marker(
    marker: &Marker,
    first: Offset,
    now: Timestamp,
    partition: &TopicPartition,
    draft: &mut Draft,
) {
    let code = match marker.outcome {
        Outcome::Aborted => MARKER_ABORT,
        Outcome::Committed => MARKER_COMMIT,
    };
    let kind = if marker.outcome == Outcome::Committed { 1 } else { 0 };
    let (key, value) = ([0, 0, kind, 0], first.0.to_le_bytes());
    let record = Record::new(&value).key(&key);
    let settings = DraftSettings::plain(now);
    draft.encode(&[record], &settings, partition).expect("a record of twelve bytes fits");
    draft.control(marker.producer, marker.epoch, code);
}

/// Where the transaction began that this marker ends, as its record says.
pub(crate) fn first_offset(marker: &Batch<'_>) -> Option<Offset> {
    let payload = marker.records().ok()?;
    let record = super::BatchRecords::new(&marker.header, &payload).next()?;
    let first = u64::from_le_bytes(*record.value()?.first_chunk()?);
    (first <= marker.header.base_offset.0).then_some(Offset(first))
}
