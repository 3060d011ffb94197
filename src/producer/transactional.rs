//! Who holds a transactional id, and how that begins.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::config::{ProducerProperties, ProducerSettings, TransactionSettings};
use crate::error::{Error, Result};
use crate::protocol::group::assignment::PartitionId;
use crate::protocol::partitioner::{Sticky, partition_of_key};
use crate::protocol::transaction::lineage::{TransactionTag, Verdict};
use crate::record::{ProducerRecord, RecordSize};
use crate::store::{Partition, PartitionCounter, Store, Transactions};
use crate::types::{Acks, Compression, Outcome, ProducerEpoch, ProducerId, TopicPartition};

use super::Partitioner;
use super::transaction::{Sequences, Transaction};

/// Ids that begin so are the store's own.
pub(super) const INTERNAL_PREFIX: &str = "__";

/// Makes a [`TransactionalProducer`]. Made by
/// [`ProducerBuilder::transactional_id`](crate::ProducerBuilder::transactional_id).
#[must_use = "a builder does nothing until it builds"]
pub struct TransactionalBuilder {
    store: Store,
    id: Arc<str>,
    settings: ProducerSettings,
    transaction: TransactionSettings,
    properties: ProducerProperties,
    partitioner: Option<Partitioner>,
    fault: Option<Error>,
}

impl std::fmt::Debug for TransactionalBuilder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = formatter.debug_struct("TransactionalBuilder");
        shown.field("id", &self.id).field("settings", &self.settings).finish_non_exhaustive()
    }
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
/// let mut producer = store.producer().transactional_id("billing-1").build()?;
///
/// let mut transaction = producer.begin()?;
/// transaction.send(Record::to("bills").partition(0).value("3 pears"))?;
/// transaction.send(Record::to("bills").partition(1).value("1 plum"))?;
/// transaction.commit(Duration::from_secs(10))?; // both are seen from here on, or neither ever is
///
/// let committed = ReadOptions::new().isolation(Isolation::ReadCommitted);
/// assert_eq!(store.partition("bills", 1)?.read(Offset(0), committed)?.count(), 1);
/// # Ok::<(), oncelog::Error>(())
/// ```
pub struct TransactionalProducer {
    pub(super) store: Store,
    pub(super) transactions: Arc<Transactions>,
    pub(super) id: Arc<str>,
    pub(super) settings: ProducerSettings,
    pub(super) transaction: TransactionSettings,
    pub(super) tag: TransactionTag,
    /// The transaction of `tag` has begun, and how it ended is not known: it is ended before the next begins.
    pub(super) in_doubt: bool,
    /// The id is another's concern by now.
    is_given_up: bool,
    partitioner: Option<Partitioner>,
    /// By topic and number.
    partitions: BTreeMap<Arc<str>, Vec<Option<Arc<Used>>>>,
    /// Memory of the last transaction, for the next.
    pub(super) sequences: Sequences,
    topics: HashMap<Arc<str>, UsedTopic>,
}

impl std::fmt::Debug for TransactionalProducer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = formatter.debug_struct("TransactionalProducer");
        shown.field("id", &self.id).field("tag", &self.tag).finish_non_exhaustive()
    }
}

/// A partition that the producer has used.
#[derive(Debug)]
pub(super) struct Used {
    pub(super) partition: Partition,
    pub(super) id: PartitionId,
}

/// A topic whose partitions it chooses from.
#[derive(Debug)]
struct UsedTopic {
    counter: PartitionCounter,
    sticky: Sticky,
}

impl TransactionalBuilder {
    pub(super) fn new(
        store: Store,
        id: &str,
        settings: ProducerSettings,
        transaction: TransactionSettings,
        properties: ProducerProperties,
        partitioner: Option<Partitioner>,
        fault: Option<Error>,
    ) -> Self {
        Self { store, id: id.into(), settings, transaction, properties, partitioner, fault }
    }

    /// As [`ProducerBuilder::acks`](crate::ProducerBuilder::acks): a transaction needs all, which is the default.
    pub fn acks(mut self, acks: Acks) -> Self {
        self.settings.acks = acks;
        self
    }

    /// A transaction that is open for longer is aborted (`transaction.timeout.ms`); 60 s unless set, 15 min at most
    /// (COORD-60).
    pub fn transaction_timeout(mut self, timeout: Duration) -> Self {
        self.transaction.timeout = timeout;
        self
    }

    /// How long [`TransactionalBuilder::build`] and [`TransactionalProducer::begin`] may wait for what earlier
    /// transactions of the id left (`max.block.ms`); 60 s unless set.
    pub fn max_block(mut self, timeout: Duration) -> Self {
        self.settings.max_block = timeout;
        self
    }

    /// How long a batch that is refused for want of replicas is offered again before the transaction fails
    /// (`delivery.timeout.ms`); 120 s unless set.
    pub fn delivery_timeout(mut self, timeout: Duration) -> Self {
        self.settings.delivery_timeout = timeout;
        self
    }

    /// Encoded bytes at which what was sent to a partition is appended (`batch.size`); 64 KiB unless set.
    pub fn batch_bytes(mut self, bytes: u64) -> Self {
        self.settings.batch_bytes = bytes;
        self
    }

    /// How batches are packed, instead of as their topic says (`compression.type`).
    pub fn compression(mut self, codec: Compression) -> Self {
        self.settings.compression = Some(codec);
        self
    }

    /// As [`ProducerBuilder::partitioner`](crate::ProducerBuilder::partitioner).
    pub fn partitioner(
        mut self,
        choose: impl Fn(&ProducerRecord<'_>, u32) -> u32 + Send + Sync + 'static,
    ) -> Self {
        self.partitioner = Some(Arc::new(choose));
        self
    }

    /// Sets one of Kafka's configuration keys, such as `transaction.timeout.ms`. A key that does not exist is reported
    /// by [`TransactionalBuilder::build`], with the nearest one that does.
    pub fn property(mut self, key: &str, value: &str) -> Self {
        let set = match self.transaction.set(key, value) {
            Some(set) => set,
            None => self.properties.set(&mut self.settings, key, value),
        };
        if let Err(error) = set {
            self.fault = self.fault.or(Some(error));
        }
        self
    }

    /// Takes the id: whoever held it is fenced at once, and a transaction that was open under it is aborted.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for an id of no or more than 32,767 bytes or one that begins with `__`, and for settings
    /// that do not fit; [`Error::TimedOut`] when what was left cannot be settled in time; what writing the record
    /// runs into.
    pub fn build(self) -> Result<TransactionalProducer> {
        let Self { store, id, settings, transaction, partitioner, fault, .. } = self;
        if let Some(fault) = fault {
            return Err(fault);
        }
        settings.validate()?;
        let unfit = |key: &str, value: String, reason: &str| Error::InvalidConfig {
            key: key.into(),
            value,
            reason: reason.into(),
        };
        if settings.acks != Acks::All {
            let given = format!("{:?}", settings.acks);
            return Err(unfit("acks", given, "a transaction needs all"));
        }
        if !settings.idempotent {
            return Err(unfit("enable.idempotence", "false".into(), "a transaction needs it"));
        }
        if id.starts_with(INTERNAL_PREFIX) {
            let reason = "ids that begin with __ are the store's own";
            return Err(unfit("transactional.id", id.to_string(), reason));
        }
        TransactionalProducer::open(store, id, settings, transaction, partitioner)
    }
}

impl TransactionalProducer {
    pub(super) fn open(
        store: Store,
        id: Arc<str>,
        settings: ProducerSettings,
        transaction: TransactionSettings,
        partitioner: Option<Partitioner>,
    ) -> Result<Self> {
        let transactions = store.shared().transactions()?;
        let (timeout, wait) = (transaction.timeout, settings.max_block);
        let opened = transactions.open(store.shared(), &id, timeout, None, wait);
        let tag = opened.or_else(|error| store.check_open().and(Err(error)))?;
        Ok(Self::held(store, transactions, id, tag, settings, transaction, partitioner))
    }

    /// Of an id that is held already.
    pub(super) fn held(
        store: Store,
        transactions: Arc<Transactions>,
        id: Arc<str>,
        tag: TransactionTag,
        settings: ProducerSettings,
        transaction: TransactionSettings,
        partitioner: Option<Partitioner>,
    ) -> Self {
        Self {
            store,
            transactions,
            id,
            settings,
            transaction,
            tag,
            in_doubt: false,
            is_given_up: false,
            partitioner,
            partitions: BTreeMap::new(),
            sequences: Sequences::default(),
            topics: HashMap::new(),
        }
    }

    /// Begins a transaction. Nothing is written before its first record.
    ///
    /// # Errors
    /// [`Error::ProducerFenced`] once another holder took the id. After a commit whose outcome was not learnt, that is
    /// settled first, which may run into [`Error::TimedOut`] and what writing runs into.
    pub fn begin(&mut self) -> Result<Transaction<'_>> {
        if self.in_doubt {
            self.settle()?;
        }
        Ok(Transaction::new(self))
    }

    /// The transactional id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Learns how the last transaction ended, ending it if need be, and takes the tag of the next.
    fn settle(&mut self) -> Result<()> {
        let (tag, wait) = (self.tag, self.settings.max_block);
        let ended =
            self.transactions.end(self.store.shared(), &self.id, tag, Outcome::Aborted, wait);
        let (_, next) = match ended {
            // A transaction that has timed out is over as well.
            Err(Error::TransactionAborted { .. }) => (Outcome::Aborted, None),
            // Of the next one nothing is written.
            ended => ended.map_err(Error::of_others)?,
        };
        self.take_next(next)
    }

    pub(super) fn take_next(&mut self, next: Option<TransactionTag>) -> Result<()> {
        self.in_doubt = true;
        self.tag = match next {
            Some(next) => next,
            // Its epochs are used up.
            None => {
                let (store, renews) = (self.store.shared(), Some(self.tag));
                let (timeout, wait) = (self.transaction.timeout, self.settings.max_block);
                let opened = self.transactions.open(store, &self.id, timeout, renews, wait);
                opened.map_err(Error::of_others)?
            }
        };
        self.in_doubt = false;
        Ok(())
    }

    /// Lets go of the id without closing it. `None`: how its transaction ended is not known.
    pub(super) fn give_up(mut self) -> Option<(Arc<str>, TransactionTag)> {
        if self.in_doubt {
            return None;
        }
        self.is_given_up = true;
        Some((Arc::clone(&self.id), self.tag))
    }

    pub(super) fn used(&mut self, topic: &str, number: u32) -> Result<Arc<Used>> {
        let at = number as usize;
        if let Some(Some(used)) = self.partitions.get(topic).and_then(|topic| topic.get(at)) {
            return Ok(Arc::clone(used));
        }
        let partition = self.store.partition(topic, number)?;
        let id = PartitionId { topic: partition.topic_id(), partition: number };
        let used = Arc::new(Used { partition, id });
        let numbers = self.partitions.entry(topic.into()).or_default();
        if numbers.len() <= at {
            numbers.resize(at + 1, None);
        }
        numbers[at] = Some(Arc::clone(&used));
        Ok(used)
    }

    /// A topic that is gone may come again under its name: it is looked up anew.
    pub(super) fn forget(&mut self, topic: &str) {
        self.partitions.remove(topic);
        self.topics.remove(topic);
    }

    /// Where the record goes.
    pub(super) fn choose(&mut self, record: &ProducerRecord<'_>) -> Result<TopicPartition> {
        if self.topics.get(record.topic).is_some_and(|topic| topic.counter.is_gone()) {
            self.topics.remove(record.topic);
            self.partitions.remove(record.topic);
        }
        let topic = match self.topics.get_mut(record.topic) {
            Some(topic) => topic,
            None => {
                let counter = self.store.partition_counter(record.topic)?;
                let sticky = Sticky::new(self.settings.batch_bytes, self.tag.producer.0);
                let name = Arc::clone(counter.name());
                self.topics.entry(name).or_insert(UsedTopic { counter, sticky })
            }
        };
        let count = topic.counter.count();
        let number = match (record.partition, &self.partitioner, record.record.key) {
            (Some(number), ..) => number,
            (None, Some(choose), _) => choose(record, count),
            (None, None, _) if count <= 1 => 0,
            (None, None, Some(key)) => partition_of_key(key, count),
            (None, None, None) => {
                topic.sticky.choose(RecordSize::of(&record.record).bytes_max(), count, |_| true)
            }
        };
        Ok(TopicPartition::new(Arc::clone(topic.counter.name()), number))
    }
}

impl Drop for TransactionalProducer {
    fn drop(&mut self) {
        if !self.is_given_up {
            self.transactions.close(self.store.shared(), self.tag);
        }
    }
}

impl Store {
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
