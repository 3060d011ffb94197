//! Settings: what may be chosen, within which limits, under which of Kafka's names.
//!
//! Pure values. Nothing is checked while one is put together; [`TopicConfig::validate`] checks it as a
//! whole when it is used.

mod consumer;
mod name;
mod producer;
mod property;
mod retention;
mod topic;

pub use consumer::StartAt;
pub(crate) use consumer::{AssignorName, ConsumerProperties, ConsumerSettings};
pub(crate) use name::{
    INTERNAL_PREFIX, check_not_internal, collides, is_internal, validate_topic_name,
};
pub(crate) use producer::{ProducerProperties, ProducerSettings, TransactionSettings};
pub(crate) use property::Properties;
pub use retention::Retention;
pub use topic::{TopicConfig, TopicUpdate};
