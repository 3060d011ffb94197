//! Words that producers, logs and transactions share.

use super::{ProducerEpoch, ProducerId};

/// Whose batch it is, and where it stands among that producer's records in the partition.
///
/// # Examples
/// ```
/// use oncelog::{Acks, ProducerEpoch, ProducerId, ProducerSequence, Record, Store, TopicConfig};
/// let store = Store::in_memory(1)?;
/// store.create_topic("readings", TopicConfig::new())?;
/// let partition = store.partition("readings", 0)?;
/// let of_device =
///     |sequence| ProducerSequence { id: ProducerId(17), epoch: ProducerEpoch(0), sequence };
/// let first = partition.append_idempotent(of_device(0), &[Record::new("21.5")], Acks::All)?;
/// let again = partition.append_idempotent(of_device(0), &[Record::new("21.5")], Acks::All)?;
/// assert!(!first.duplicate && again.duplicate);
/// assert_eq!(first.offsets, again.offsets);
/// # Ok::<(), oncelog::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerSequence {
    /// The producer. An application's own ids are from 1 to 2^62 - 1.
    pub id: ProducerId,
    /// Its reign: a larger one fences the smaller ones and counts from 0 again.
    pub epoch: ProducerEpoch,
    /// How many records the producer numbered before this batch, counted from 0.
    pub sequence: u64,
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Committed,
    Aborted,
}
