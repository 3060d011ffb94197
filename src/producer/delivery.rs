//! What becomes of a record that was sent: waited for by a thread, awaited as a future, or told to a callback.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::types::{Offset, Timestamp, TopicPartition};

use super::batch::Cell;
use super::lane::{Lane, Until};
use super::target::{LogTarget, Target};
use super::window::Sent;

/// Who is told about a record.
pub(super) type Callback = Box<dyn FnOnce(Result<RecordMetadata>) + Send>;

/// Where a record was put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordMetadata {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition, counted from zero.
    pub partition: u32,
    /// The record's offset.
    pub offset: Offset,
    /// The record's own time, or that of the append if it has none or the topic stamps its records.
    pub timestamp: Timestamp,
}

impl RecordMetadata {
    pub(super) fn new(name: &TopicPartition, offset: Offset, timestamp: Timestamp) -> Self {
        Self { topic: name.shared_topic(), partition: name.partition(), offset, timestamp }
    }
}

/// A record that was sent, and its outcome, which comes once.
///
/// Waited for with [`Delivery::wait`], or awaited: it is a future, bound to no runtime. Dropping it takes
/// nothing back: the record is delivered all the same.
///
/// # Examples
/// ```
/// use oncelog::{Record, Store, TopicConfig};
/// use std::time::Duration;
/// let store = Store::in_memory(1)?;
/// store.create_topic("orders", TopicConfig::new())?;
/// let producer = store.producer().build()?;
/// let delivery = producer.send(Record::to("orders").value("pear"))?;
/// let placed = delivery.wait(Duration::from_secs(5))?;
/// assert_eq!((&*placed.topic, placed.offset.0), ("orders", 0));
/// # Ok::<(), oncelog::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "a delivery tells whether the record was acknowledged"]
pub struct Delivery(Inner);

#[derive(Debug)]
enum Inner {
    Done { lane: Arc<Lane<LogTarget>>, offset: Offset, timestamp: Timestamp, number: u64 },
    Pending(Receipt<LogTarget>),
}

impl Delivery {
    #[inline]
    pub(super) fn done(
        lane: Arc<Lane<LogTarget>>,
        offset: Offset,
        timestamp: Timestamp,
        number: u64,
    ) -> Self {
        Self(Inner::Done { lane, offset, timestamp, number })
    }

    pub(super) fn pending(receipt: Receipt<LogTarget>) -> Self {
        Self(Inner::Pending(receipt))
    }

    /// Waits for the outcome, for up to `timeout`. May be called again.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when it is not known by then, and may still come ([`Written::Unknown`](crate::Written)); or when
    /// the producer's `delivery_timeout` is over, which ends the delivery: [`Error::written`] tells whether the record may be
    /// in the log. Otherwise what the append
    /// ran into and no retry could mend.
    pub fn wait(&self, timeout: Duration) -> Result<RecordMetadata> {
        match &self.0 {
            Inner::Done { lane, offset, timestamp, number } => {
                lane.look(*number);
                Ok(RecordMetadata::new(lane.name(), *offset, *timestamp))
            }
            Inner::Pending(receipt) => receipt.wait(timeout),
        }
    }

    /// The outcome, if it is known; waits for nothing.
    #[must_use]
    pub fn outcome(&self) -> Option<Result<RecordMetadata>> {
        match &self.0 {
            Inner::Done { .. } => Some(self.wait(Duration::ZERO)),
            Inner::Pending(receipt) => receipt.outcome(),
        }
    }
}

impl Future for Delivery {
    type Output = Result<RecordMetadata>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Inner::Done { .. } => Poll::Ready(self.wait(Duration::ZERO)),
            Inner::Pending(receipt) => receipt.poll(context.waker()),
        }
    }
}

/// What the receipts of a batch share, so that each of them counts one reference and not two.
pub(super) struct Shared<T: Target> {
    lane: Arc<Lane<T>>,
    cell: Arc<Cell>,
}

impl<T: Target> Shared<T> {
    pub(super) fn new(lane: Arc<Lane<T>>, cell: Arc<Cell>) -> Arc<Self> {
        Arc::new(Self { lane, cell })
    }
}

/// A record on its way through a lane.
pub(super) struct Receipt<T: Target> {
    shared: Arc<Shared<T>>,
    sent: Sent,
    /// The record's own.
    timestamp: Option<Timestamp>,
    /// Under which its waker is registered.
    waker: Option<u64>,
}

impl<T: Target> std::fmt::Debug for Receipt<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = formatter.debug_struct("Receipt");
        shown.field("partition", self.lane().name()).field("number", &self.sent.number).finish()
    }
}

impl<T: Target> Receipt<T> {
    #[inline]
    pub(super) fn new(shared: Arc<Shared<T>>, sent: Sent, timestamp: Option<Timestamp>) -> Self {
        Self { shared, sent, timestamp, waker: None }
    }

    fn lane(&self) -> &Lane<T> {
        &self.shared.lane
    }

    pub(super) fn wait(&self, timeout: Duration) -> Result<RecordMetadata> {
        self.lane().look(self.sent.number);
        if let Some(outcome) = self.known() {
            return outcome;
        }
        self.lane().wait(self.sent.number, timeout, Until::Ended);
        self.known().unwrap_or_else(|| {
            let what = format!("{}: delivering a record", self.lane().name());
            Err(Error::in_doubt(what, timeout))
        })
    }

    pub(super) fn outcome(&self) -> Option<Result<RecordMetadata>> {
        self.lane().look(self.sent.number);
        if !self.has_ended() {
            self.lane().ask_for(self.sent.number);
        }
        self.known()
    }

    fn known(&self) -> Option<Result<RecordMetadata>> {
        let result = self.shared.cell.result(self.sent.index)?;
        Some(result.map(|placed| self.lane().metadata(placed, self.timestamp)))
    }

    pub(super) fn has_ended(&self) -> bool {
        self.shared.cell.has_result(self.sent.index)
    }

    pub(super) fn poll(&mut self, waker: &Waker) -> Poll<Result<RecordMetadata>> {
        self.lane().look(self.sent.number);
        if !self.has_ended() {
            self.waker = self.lane().watch(self.sent.number, self.waker, waker);
        }
        match self.known() {
            Some(outcome) => Poll::Ready(outcome),
            None => Poll::Pending,
        }
    }
}

impl<T: Target> Drop for Receipt<T> {
    fn drop(&mut self) {
        let is_left = self.sent.in_burst && self.waker.is_none();
        if !is_left && !self.has_ended() {
            self.lane().unwatched(self.sent.number, self.waker);
        }
    }
}
