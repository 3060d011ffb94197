//! One partition: who appends, who waits for which offset, who flushes.
//!
//! [`Core`] holds the log and the watermarks under one lock, the only one on the way of an append.
//! Records are encoded and checksummed before it is taken; flushes run outside it. A wait that does
//! not happen costs nothing: readers, tickets and the disk's worker are notified only when they have
//! registered or something is due.
//!
//! Lock order: `Core::state`, then the log's segment list, then the stages of a file's space. Nothing
//! of the application (callbacks, wakers) runs under any of them.
//!
//! A failed flush fences the partition in the critical section that learns of it: from then on no
//! append is accepted and none is acknowledged, and what was read before can still be read.

mod append;
mod attention;
mod bed;
mod core;
mod cut;
mod damage;
mod events;
mod flush;
mod follow;
mod hang;
mod page;
mod read;
mod reign;
mod replica;
mod room;
mod scratch;
mod tend;
mod ticket;

pub(crate) use append::{Placed, Waiting};
pub(crate) use attention::Attention;
pub(crate) use bed::{Bed, News};
pub(crate) use core::{Core, CoreParts, CoreSettings, Reign, words_of};
pub(crate) use cut::CoreCut;
pub(crate) use events::EventLog;
pub use events::{Event, EventKind, Events};
pub(crate) use flush::Wait;
pub(crate) use hang::hangs;
pub(crate) use read::Watched;
pub(crate) use reign::Proposal;
pub(crate) use replica::Replica;
pub use ticket::Ticket;
pub(crate) use ticket::{Call, Caller, Postponed, leave_calls_to, postpone, wake_all};

use crate::protocol::producer_state::batch::{self, Numbering};
use crate::types::{Compression, Isolation, Offset, ProducerSequence, Timestamp};
use std::ops::Range;

/// Where an append put its records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// From the first record's offset to one past the last's.
    pub offsets: Range<Offset>,
    /// The time of the append, by the store's clock.
    pub timestamp: Timestamp,
    /// Whether an idempotent append was recognised as one that is in the log already.
    pub duplicate: bool,
}

/// Who offers a batch, and how the partition is to judge it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Author {
    pub(crate) producer: ProducerSequence,
    pub(crate) transactional: bool,
    /// Whether a producer that the partition does not know has to begin at 0.
    pub(crate) strict: bool,
    pub(crate) numbering: Numbering,
    /// Instead of the topic's.
    pub(crate) compression: Option<Compression>,
}

impl Author {
    fn proposal(&self, count: u32) -> batch::Proposal {
        let Self { producer, transactional, strict, numbering, .. } = *self;
        batch::Proposal { producer, count, transactional, strict, numbering }
    }
}

/// How a read goes about it.
///
/// # Examples
/// ```
/// use oncelog::{Isolation, ReadOptions};
/// let options = ReadOptions::new().max_bytes(64 << 10).isolation(Isolation::ReadCommitted);
/// # let _ = options;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct ReadOptions {
    pub(crate) max_bytes: usize,
    pub(crate) isolation: Isolation,
}

impl ReadOptions {
    /// Up to 1 MiB of batches, read uncommitted.
    pub fn new() -> Self {
        Self { max_bytes: 1 << 20, isolation: Isolation::ReadUncommitted }
    }

    /// About how many encoded bytes to return. The first batch comes whole even when it is larger, so
    /// that a reader always moves on (READ-06).
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Whether records of undecided or aborted transactions are returned.
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = isolation;
        self
    }
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self::new()
    }
}
