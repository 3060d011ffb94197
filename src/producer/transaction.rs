//! Transactions, as an application runs them.
//!
//! A [`Transaction`] borrows its producer, so a second one cannot be begun beside it; dropping it aborts. Batches go to
//! their partitions at once, each under the transaction's own producer epoch and numbered from 0; the commit waits
//! until all of them are acknowledged before it asks for the decision.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorClass, Result};
use crate::partition::{Author, Ticket};
use crate::protocol::group::assignment::PartitionId;
use crate::protocol::producer_state::batch::Numbering;
use crate::protocol::transaction::lineage::{TransactionTag, Verdict};
use crate::record::Record;
use crate::store::{CommittedOffset, ConsumerGroupMetadata, Partition, Store, Transactions};
use crate::types::{
    Acks, Compression, Offset, Outcome, ProducerEpoch, ProducerId, ProducerSequence, TopicPartition,
};

/// Kafka's default of `transaction.timeout.ms`.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How long opening an id, and settling what an earlier transaction left, may take (Kafka's `max.block.ms`).
const MAX_BLOCK: Duration = Duration::from_secs(60);

/// Makes a [`TransactionalProducer`].
#[derive(Clone, Debug)]
#[must_use]
pub struct TransactionalBuilder {
    store: Store,
    id: Arc<str>,
    timeout: Duration,
    max_block: Duration,
    compression: Option<Compression>,
}

/// One transaction, told apart from every other for ever: to ask later how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TransactionId {
    /// The producer that ran it.
    pub producer: ProducerId,
    /// Its epoch, which no other transaction of the producer has.
    pub epoch: ProducerEpoch,
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionOutcome {
    /// It is not decided yet.
    Open,
    /// Its records are, or will be, seen by everyone.
    Committed,
    /// Its records are, and will be, seen by no read-committed reader.
    Aborted,
    /// It is over for so long that nobody knows: an id remembers its last 64.
    Forgotten,
}

/// Holds a transactional id, and runs its transactions one after the other.
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use oncelog::{Isolation, Offset, ReadOptions, Record, Store, TopicConfig};
/// let store = Store::in_memory(1)?;
/// store.create_topic("bills", TopicConfig::new().partitions(2))?;
/// let mut producer = store.transactional("billing-1").build()?;
///
/// let mut transaction = producer.begin()?;
/// transaction.append("bills", 0, &[Record::new("3 pears")])?;
/// transaction.append("bills", 1, &[Record::new("1 plum")])?;
/// transaction.commit(Duration::from_secs(10))?; // both are seen from here on, or neither ever is
///
/// let committed = ReadOptions::new().isolation(Isolation::ReadCommitted);
/// assert_eq!(store.partition("bills", 1)?.read(Offset(0), committed)?.count(), 1);
/// # Ok::<(), oncelog::Error>(())
/// ```
#[derive(Debug)]
pub struct TransactionalProducer {
    store: Store,
    transactions: Arc<Transactions>,
    id: Arc<str>,
    timeout: Duration,
    max_block: Duration,
    compression: Option<Compression>,
    tag: TransactionTag,
    /// How the transaction of `tag` ended is not known: it is asked for before the next begins.
    in_doubt: bool,
    /// Partitions that it has used.
    partitions: HashMap<TopicPartition, Used>,
}

#[derive(Clone, Debug)]
struct Used {
    partition: Partition,
    id: PartitionId,
}

/// A transaction that is open. Dropping it aborts it.
#[derive(Debug)]
#[must_use = "a transaction that is dropped is aborted"]
pub struct Transaction<'a> {
    producer: &'a mut TransactionalProducer,
    /// How many records it has in each partition.
    sequences: HashMap<PartitionId, u64>,
    tickets: Vec<Ticket>,
    /// Why it cannot be committed.
    failed: Option<String>,
    ended: bool,
}

impl TransactionalBuilder {
    pub(crate) fn new(store: Store, id: &str) -> Self {
        Self { store, id: id.into(), timeout: TIMEOUT, max_block: MAX_BLOCK, compression: None }
    }

    /// A transaction that is open for longer is aborted; 60 s unless set, 15 min at most (COORD-60).
    pub fn transaction_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long [`TransactionalBuilder::build`] and [`TransactionalProducer::begin`] may wait for what earlier
    /// transactions of the id left; 60 s unless set.
    pub fn max_block(mut self, timeout: Duration) -> Self {
        self.max_block = timeout;
        self
    }

    /// How batches are packed, instead of as their topic says.
    pub fn compression(mut self, codec: Compression) -> Self {
        self.compression = Some(codec);
        self
    }

    /// Takes the id: whoever held it is fenced at once, and a transaction that was open under it is aborted.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for an id of no or more than 32,767 bytes, or a time-out that cannot be;
    /// [`Error::TimedOut`] when what was left cannot be settled in time; what writing the record runs into.
    pub fn build(self) -> Result<TransactionalProducer> {
        let Self { store, id, timeout, max_block, compression } = self;
        let transactions = store.shared().transactions()?;
        let tag = transactions.open(store.shared(), &id, timeout, None, max_block)?;
        let partitions = HashMap::new();
        Ok(TransactionalProducer {
            store,
            transactions,
            id,
            timeout,
            max_block,
            compression,
            tag,
            in_doubt: false,
            partitions,
        })
    }
}

impl TransactionalProducer {
    /// Begins a transaction. Nothing is written before its first record.
    ///
    /// # Errors
    /// [`Error::ProducerFenced`] once another holder took the id. After a commit whose outcome was not learnt, that is
    /// settled first, which may run into [`Error::TimedOut`] and what writing runs into.
    pub fn begin(&mut self) -> Result<Transaction<'_>> {
        if self.in_doubt {
            self.settle()?;
        }
        Ok(Transaction {
            producer: self,
            sequences: HashMap::new(),
            tickets: Vec::new(),
            failed: None,
            ended: false,
        })
    }

    /// The transactional id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Learns how the last transaction ended, ending it if need be, and takes the tag of the next.
    fn settle(&mut self) -> Result<()> {
        let (tag, wait) = (self.tag, self.max_block);
        let ended =
            self.transactions.end(self.store.shared(), &self.id, tag, Outcome::Aborted, wait);
        let (_, next) = match ended {
            // A transaction that has timed out is over as well.
            Err(Error::TransactionAborted { .. }) => (Outcome::Aborted, None),
            ended => ended?,
        };
        self.take_next(next)
    }

    fn take_next(&mut self, next: Option<TransactionTag>) -> Result<()> {
        self.in_doubt = true;
        self.tag = match next {
            Some(next) => next,
            // Its epochs are used up.
            None => {
                let (store, renews) = (self.store.shared(), Some(self.tag));
                self.transactions.open(store, &self.id, self.timeout, renews, self.max_block)?
            }
        };
        self.in_doubt = false;
        Ok(())
    }

    fn used(&mut self, topic: &str, number: u32) -> Result<Used> {
        let name = TopicPartition::new(topic, number);
        if let Some(used) = self.partitions.get(&name) {
            return Ok(used.clone());
        }
        let partition = self.store.partition(topic, number)?;
        let id = PartitionId { topic: partition.topic_id(), partition: number };
        let used = Used { partition, id };
        self.partitions.insert(name, used.clone());
        Ok(used)
    }
}

impl Drop for TransactionalProducer {
    fn drop(&mut self) {
        self.transactions.close(self.store.shared(), self.tag);
    }
}

impl Transaction<'_> {
    /// Which transaction it is: [`Store::transaction_outcome`] tells how it ended, also after a commit whose answer was
    /// lost.
    #[must_use]
    pub fn id(&self) -> TransactionId {
        let TransactionTag { producer, epoch } = self.producer.tag;
        TransactionId { producer, epoch }
    }

    /// Appends `records` as one batch of the transaction. Returns where they are; only the commit waits for their
    /// acknowledgement.
    ///
    /// # Errors
    /// Those of [`Partition::append`] with nothing written: the transaction goes on. [`Error::TransactionAborted`],
    /// [`Error::ProducerFenced`]: it is over. After any other error it can only be aborted.
    pub fn append(
        &mut self,
        topic: &str,
        partition: u32,
        records: &[Record<'_>],
    ) -> Result<Range<Offset>> {
        let used = self.producer.used(topic, partition)?;
        let producer = &*self.producer;
        let tag = producer.tag;
        producer.transactions.join(producer.store.shared(), &producer.id, tag, used.id)?;
        let sequence = self.sequences.entry(used.id).or_insert(0);
        let TransactionTag { producer: id, epoch } = tag;
        let author = Author {
            producer: ProducerSequence { id, epoch, sequence: *sequence },
            transactional: true,
            strict: true,
            numbering: Numbering::Restarts,
            compression: producer.compression,
        };
        match used.partition.append_as(&author, records, Acks::All) {
            Ok(ticket) => {
                *sequence += records.len() as u64;
                let offsets = ticket.offsets();
                if ticket.is_waiting() {
                    self.tickets.push(ticket);
                }
                Ok(offsets)
            }
            Err(error) => {
                self.note_failure(&error);
                Err(error)
            }
        }
    }

    /// Commits offsets with the transaction: they count when it is committed, and never did when it is aborted. With
    /// them, what was read, and what was made of it, are done once, together (KIP-447).
    ///
    /// `group` says who commits: a consumer that has lost a partition since cannot commit for it any more.
    ///
    /// # Errors
    /// Those of a commit of offsets; [`Error::UnknownMember`] and [`Error::IllegalGeneration`] are the end of the
    /// transaction. Those of [`Transaction::append`].
    pub fn send_offsets<'o>(
        &mut self,
        offsets: impl IntoIterator<Item = (&'o TopicPartition, &'o CommittedOffset)>,
        group: &ConsumerGroupMetadata,
    ) -> Result<()> {
        let offsets: Vec<_> =
            offsets.into_iter().map(|(at, offset)| (at.clone(), offset.clone())).collect();
        if offsets.is_empty() {
            return Ok(());
        }
        let producer = &*self.producer;
        let (shared, tag) = (producer.store.shared(), producer.tag);
        let groups = shared.groups()?;
        let partition = groups.partition();
        producer.transactions.join(shared, &producer.id, tag, partition)?;
        let sequence = self.sequences.entry(partition).or_insert(0);
        let author = Author {
            producer: ProducerSequence { id: tag.producer, epoch: tag.epoch, sequence: *sequence },
            transactional: true,
            strict: true,
            numbering: Numbering::Restarts,
            compression: None,
        };
        match groups.send_offsets(shared, &author, group, &offsets) {
            Ok(ticket) => {
                *sequence += offsets.len() as u64;
                if ticket.is_waiting() {
                    self.tickets.push(ticket);
                }
                Ok(())
            }
            Err(error) => {
                self.note_failure(&error);
                Err(error)
            }
        }
    }

    /// After some errors it can only be aborted.
    fn note_failure(&mut self, error: &Error) {
        let over = matches!(
            error.class(),
            ErrorClass::AbortTransaction | ErrorClass::Fenced | ErrorClass::Fatal
        );
        if over {
            self.failed.get_or_insert_with(|| error.to_string());
        }
    }

    /// Commits: when this returns, every read-committed reader sees all of it.
    ///
    /// The decision is one durable record. Before it, nothing of the transaction will ever be seen; after it, all of it
    /// will, whatever happens to the process.
    ///
    /// # Errors
    /// [`Error::TransactionAborted`]: it was aborted instead, for it had timed out or a record of it is not
    /// acknowledged. [`Error::ProducerFenced`]. [`Error::TimedOut`] and others: how it ends is not known yet;
    /// [`Store::transaction_outcome`] tells, and the next [`TransactionalProducer::begin`] settles it.
    pub fn commit(mut self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now().checked_add(timeout);
        let left = || deadline.map_or(timeout, |at| at.saturating_duration_since(Instant::now()));
        let mut failed = self.failed.take();
        for ticket in std::mem::take(&mut self.tickets) {
            if failed.is_none() {
                failed = ticket.wait(left()).err().map(|error| error.to_string());
            }
        }
        if let Some(reason) = failed {
            let id = self.producer.id.to_string();
            self.end(Outcome::Aborted, self.producer.max_block)?;
            return Err(Error::TransactionAborted { id, reason });
        }
        match self.end(Outcome::Committed, left())? {
            Outcome::Committed => Ok(()),
            Outcome::Aborted => {
                let id = self.producer.id.to_string();
                Err(Error::TransactionAborted { id, reason: "it timed out".into() })
            }
        }
    }

    /// Aborts: no read-committed reader will ever see any of it.
    ///
    /// # Errors
    /// [`Error::ProducerFenced`] if another holder of the id has done so; [`Error::TimedOut`] and others: it is aborted
    /// later, and not committed in any case.
    pub fn abort(mut self, timeout: Duration) -> Result<()> {
        self.end(Outcome::Aborted, timeout).map(|_| ())
    }

    fn end(&mut self, outcome: Outcome, wait: Duration) -> Result<Outcome> {
        self.ended = true;
        let producer = &mut *self.producer;
        if self.sequences.is_empty() {
            return Ok(outcome); // it never began
        }
        producer.in_doubt = true;
        let (store, tag) = (producer.store.shared(), producer.tag);
        let ended = producer.transactions.end(store, &producer.id, tag, outcome, wait)?;
        let (outcome, next) = ended;
        producer.take_next(next)?;
        Ok(outcome)
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if !self.ended {
            // What cannot be aborted now is aborted by the next `begin`, by a time-out, or at the next open.
            let _ = self.end(Outcome::Aborted, self.producer.max_block);
        }
    }
}

impl Store {
    /// A producer of transactions under the transactional id `id`: see [`TransactionalProducer`].
    pub fn transactional(&self, id: &str) -> TransactionalBuilder {
        TransactionalBuilder::new(self.clone(), id)
    }

    /// How a transaction ended, also one of an earlier run of the process.
    ///
    /// # Errors
    /// [`Error::InvalidTransactionState`] for one that never was, or whose id has expired.
    pub fn transaction_outcome(&self, id: TransactionId) -> Result<TransactionOutcome> {
        let transactions = self.shared().transactions()?;
        let tag = TransactionTag { producer: id.producer, epoch: id.epoch };
        match transactions.verdict(tag) {
            Verdict::Open => Ok(TransactionOutcome::Open),
            Verdict::Committed => Ok(TransactionOutcome::Committed),
            Verdict::Aborted => Ok(TransactionOutcome::Aborted),
            Verdict::Forgotten => Ok(TransactionOutcome::Forgotten),
            Verdict::Unknown => Err(Error::InvalidTransactionState {
                id: format!("of producer {} in epoch {}", id.producer, id.epoch),
                reason: "no such transaction is known".into(),
            }),
        }
    }
}
