//! The vocabulary: numbers that look alike and must not be mixed up.
//!
//! Pure. Every other layer stands on it; it stands on nothing.

mod guard;
mod ids;
mod mix;
mod offset;
mod settings;
mod time;
mod transaction;

pub(crate) use guard::guard;
pub use ids::{DiskId, LeaderEpoch, ProducerEpoch, ProducerId, StoreId, TopicId, TopicPartition};
pub(crate) use mix::Mix;
pub use offset::Offset;
pub use settings::{Acks, Compression, Flush, Isolation, StorageMode, TimestampType};
pub use time::Timestamp;
pub(crate) use transaction::Outcome;
pub use transaction::ProducerSequence;
