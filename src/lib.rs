#![doc = include_str!("../README.md")]

mod config;
mod consumer;
mod error;
mod log;
mod partition;
mod producer;
mod protocol;
mod record;
mod segment;
#[cfg_attr(
    not(any(test, feature = "simulation")),
    allow(unreachable_pub, dead_code, reason = "tests from outside use more of it")
)]
mod storage;
mod store;
mod types;

/// Who of a group reads which partition: those that come with the crate, and what one's own is made of.
///
/// # Examples
/// An assignor that gives everything to the oldest member:
/// ```
/// use oncelog::assignor::{Assignor, MemberId, PartitionId, Situation};
/// struct First;
/// impl Assignor for First {
///     fn name(&self) -> &str {
///         "first"
///     }
///     fn assign(&self, situation: &Situation) -> Vec<(PartitionId, MemberId)> {
///         let Some(first) = situation.members().first() else { return Vec::new() };
///         let topics = situation.topics().iter();
///         let all = topics.flat_map(|topic| {
///             (0..topic.partitions).map(|partition| PartitionId { topic: topic.id, partition })
///         });
///         all.map(|partition| (partition, first.id)).collect()
///     }
/// }
/// ```
pub mod assignor {
    pub use crate::protocol::group::assignment::{
        Assignor, MemberId, MemberView, PartitionId, Situation, TopicView,
    };
    pub use crate::protocol::group::assignors::{Range, RoundRobin, Sticky};
}
pub mod manual;
#[cfg(any(test, feature = "simulation"))]
pub mod simulation;

pub use config::{Retention, StartAt, TopicConfig, TopicUpdate};
pub use consumer::{Consumer, ConsumerBuilder, ConsumerWaker, Rebalance, RebalanceKind, Recv};
pub use error::{DecodeError, Error, ErrorClass, Result, Written};
pub use log::{Iter, Records};
pub use partition::{Appended, Event, EventKind, Events, ReadOptions, Ticket};
pub use producer::{
    Delivery, Producer, ProducerBuilder, ProducerCounters, RecordMetadata, Transaction,
    TransactionId, TransactionOutcome, TransactionalBuilder, TransactionalProducer,
};
pub use record::{Headers, ProducerRecord, Record, RecordView};
pub use store::{
    BackupReport, CommittedOffset, ConsumerGroupMetadata, Damage, DiskDescription, DiskState,
    GroupDescription, GroupMember, GroupOffset, GroupPhase, Partition, ResetTo, Snapshot, Store,
    StoreBuilder, TopicDescription, VerifyOptions, VerifyProgress, VerifyReport,
};
pub use types::{
    Acks, Compression, DiskId, Flush, Isolation, LeaderEpoch, Offset, ProducerEpoch, ProducerId,
    ProducerSequence, StorageMode, StoreId, Timestamp, TimestampType, TopicId, TopicPartition,
};
