#![doc = include_str!("../README.md")]

mod config;
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

pub mod manual;
#[cfg(any(test, feature = "simulation"))]
pub mod simulation;

pub use config::{Retention, TopicConfig, TopicUpdate};
pub use error::{DecodeError, Error, ErrorClass, Result, Written};
pub use log::{Iter, Records};
pub use partition::{Appended, Event, EventKind, Events, ReadOptions, Ticket};
pub use producer::{
    Delivery, Producer, ProducerBuilder, ProducerCounters, RecordMetadata, Transaction,
    TransactionId, TransactionOutcome, TransactionalBuilder, TransactionalProducer,
};
pub use record::{Headers, ProducerRecord, Record, RecordView};
pub use store::{
    BackupReport, Damage, DiskDescription, DiskState, Partition, Store, StoreBuilder,
    TopicDescription, VerifyOptions, VerifyProgress, VerifyReport,
};
pub use types::{
    Acks, Compression, DiskId, Flush, Isolation, LeaderEpoch, Offset, ProducerEpoch, ProducerId,
    ProducerSequence, StorageMode, StoreId, Timestamp, TimestampType, TopicId, TopicPartition,
};
