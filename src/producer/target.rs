//! Where a lane's batches go: a partition, or in tests something that fails on demand.

use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::partition::{Appended, Author, Ticket, postpone};
use crate::record::Record;
use crate::store::{self, Appender, Holder};
use crate::types::{Acks, Offset};

/// What became of a batch that was offered.
#[derive(Debug)]
pub(super) enum Offered<P> {
    /// It is acknowledged.
    Done(Appended),
    /// It is in the leader's log.
    Waits(P),
}

/// Takes batches, one after the other.
pub(super) trait Target: Send + Sync + 'static {
    type Pending: Pending;

    /// Appends a batch. Waits for nothing but for what the append itself needs.
    fn offer(
        &self,
        author: &Author,
        records: &[Record<'_>],
        acks: Acks,
    ) -> Result<Offered<Self::Pending>>;

    /// The largest batch that is taken, in encoded bytes.
    fn max_batch_bytes(&self) -> Result<u64>;

    /// Whether the log stamps the records, whatever time they bring.
    fn stamps_records(&self) -> bool;

    /// Where the producer goes on, by what the log remembers.
    fn next_sequence(&self) -> Result<u64>;

    /// As [`Target::next_sequence`], once what that counts is acknowledged. Waits.
    fn settled_sequence(&self, acks: Acks) -> Result<u64>;
}

/// An acknowledgement that is still to come.
pub(super) trait Pending: Send + 'static {
    /// Waits for it, and helps it come. `None` when the time is over.
    fn wait(&self, timeout: Duration) -> Option<Result<Appended>>;

    /// The outcome, if it is known.
    fn outcome_now(&self) -> Option<Result<Appended>>;

    /// Has `waker` called when it comes; whether it is here already.
    fn watch(&mut self, waker: &Waker) -> bool;

    /// Nobody waits: it is to come all the same, and soon.
    fn hurry(&self);

    /// Where the records are.
    fn offsets(&self) -> Range<Offset>;
}

/// A partition of the store.
#[derive(Debug)]
pub(super) struct LogTarget {
    pub(super) partition: Appender,
    /// For a named producer.
    pub(super) holder: Option<Holder>,
}

impl Target for LogTarget {
    type Pending = Ticket;

    #[inline(always)]
    fn offer(
        &self,
        author: &Author,
        records: &[Record<'_>],
        acks: Acks,
    ) -> Result<Offered<Ticket>> {
        // Whom the append wakes may want the name for itself.
        let _held = match &self.holder {
            Some(holder) => {
                let postponed = postpone();
                Some((holder.reigns()?, postponed))
            }
            None => None,
        };
        Ok(match self.partition.offer(author, records, acks)? {
            store::Offered::Done(appended) => Offered::Done(appended),
            store::Offered::Waits(ticket) => Offered::Waits(ticket),
        })
    }

    fn max_batch_bytes(&self) -> Result<u64> {
        self.partition.max_batch_bytes()
    }

    fn stamps_records(&self) -> bool {
        self.partition.stamps_records()
    }

    fn next_sequence(&self) -> Result<u64> {
        let Some(holder) = &self.holder else { return Ok(0) };
        let _reigns = holder.reigns()?;
        let known = self.partition.producer(holder.id);
        Ok(known.map_or(0, |producer| producer.next_sequence))
    }

    fn settled_sequence(&self, acks: Acks) -> Result<u64> {
        let Some(holder) = &self.holder else { return Ok(0) };
        // Whoever is to acknowledge may want the name.
        drop(holder.reigns()?);
        let known = self.partition.settled_producer(holder.id, acks)?;
        drop(holder.reigns()?);
        Ok(known.map_or(0, |producer| producer.next_sequence))
    }
}

impl Pending for Ticket {
    fn wait(&self, timeout: Duration) -> Option<Result<Appended>> {
        match Ticket::wait(self, timeout) {
            Err(Error::TimedOut { .. }) => Ticket::outcome_now(self),
            outcome => Some(outcome),
        }
    }

    fn outcome_now(&self) -> Option<Result<Appended>> {
        Ticket::outcome_now(self)
    }

    fn watch(&mut self, waker: &Waker) -> bool {
        let polled = Pin::new(self).poll(&mut Context::from_waker(waker));
        matches!(polled, Poll::Ready(_))
    }

    fn hurry(&self) {
        Ticket::hurry(self);
    }

    fn offsets(&self) -> Range<Offset> {
        Ticket::offsets(self)
    }
}
