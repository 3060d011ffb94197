//! Producers: what applications send with.
//!
//! - `transaction`: [`TransactionalProducer`], [`Transaction`].
//!
//! Stands on the store and its partitions; leaves to them what is appended and when it is acknowledged.

mod transaction;

pub use transaction::{
    Transaction, TransactionId, TransactionOutcome, TransactionalBuilder, TransactionalProducer,
};
