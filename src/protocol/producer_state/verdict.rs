//! What a leader answers to a batch that is offered to it.

use std::ops::Range;

use crate::error::Error;
use crate::types::{Offset, ProducerEpoch, Timestamp, TopicPartition};

use crate::types::ProducerSequence;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is the next one.
    Append,
    /// It is here already. The answer waits for the same acknowledgements as the first one did (PROD-07).
    Duplicate {
        offsets: Range<Offset>,
        /// The time of the first append.
        timestamp: Timestamp,
    },
    /// It must not be written.
    Refused(Refusal),
}

/// Why a batch must not be written. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Records in between are missing, or the batch overlaps with others without being one of them.
    OutOfOrderSequence {
        expected: u64,
        given: u64,
    },
    /// All of it is here, and its offsets are forgotten.
    DuplicateSequence {
        given: u64,
    },
    ProducerFenced {
        current: ProducerEpoch,
    },
    UnknownProducer,
    InvalidTransactionState(TransactionFault),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TransactionFault {
    /// The producer has a transaction open here, and the batch is not part of one (TXLOG-05).
    OutsideTransaction,
    /// The producer's earlier transaction has no marker here yet.
    EarlierStillOpen,
    /// The transaction of this epoch has its marker here: the batch is late.
    Ended,
    /// The partition has as many open transactions as it may.
    TooManyOpen,
}

impl TransactionFault {
    fn reason(self) -> &'static str {
        match self {
            Self::OutsideTransaction => "a record outside of the transaction that is open",
            Self::EarlierStillOpen => "the transaction before it is still open",
            Self::Ended => "it has ended",
            Self::TooManyOpen => "too many transactions are open in the partition",
        }
    }
}

impl Refusal {
    /// As the application gets to see it. `transaction` is the transactional id, if there is one.
    pub(crate) fn into_error(
        self,
        partition: TopicPartition,
        producer: ProducerSequence,
        transaction: Option<&str>,
    ) -> Error {
        let ProducerSequence { id, epoch, .. } = producer;
        match self {
            Self::OutOfOrderSequence { expected, given } => {
                Error::OutOfOrderSequence { partition, id, expected, given }
            }
            Self::DuplicateSequence { given } => Error::DuplicateSequence { partition, id, given },
            Self::ProducerFenced { current } => Error::ProducerFenced { id, epoch, current },
            Self::UnknownProducer => Error::UnknownProducer { partition, id },
            Self::InvalidTransactionState(fault) => Error::InvalidTransactionState {
                id: transaction.map_or_else(|| format!("of producer {id}"), str::to_owned),
                reason: format!("{partition}: {}", fault.reason()),
            },
        }
    }
}
