//! How a producer is made.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use crate::config::{ProducerProperties, ProducerSettings, TransactionSettings};
use crate::error::{Error, Result};
use crate::record::ProducerRecord;
use crate::store::Store;
use crate::types::{Acks, Compression};

use super::lane::Common;
use super::memory::Memory;
use super::numbers::Identity;
use super::{Handle, Partitioner, Producer, Shared, TransactionalBuilder};

/// Who has less time to deliver lets no records gather unasked: it would be over before anybody comes to append them.
const BURSTS_WITHIN_MIN: Duration = Duration::from_millis(100);

/// Describes a producer before it is made. Made by [`Store::producer`].
///
/// # Examples
/// ```
/// use oncelog::{Acks, Store};
/// use std::time::Duration;
/// let store = Store::in_memory(1)?;
/// let producer = store
///     .producer()
///     .acks(Acks::All)
///     .delivery_timeout(Duration::from_secs(30))
///     .property("batch.size", "16384")
///     .build()?;
/// # let _ = producer;
/// # Ok::<(), oncelog::Error>(())
/// ```
#[must_use = "a builder does nothing until it builds"]
pub struct ProducerBuilder {
    store: Store,
    settings: ProducerSettings,
    properties: ProducerProperties,
    name: Option<String>,
    partitioner: Option<Partitioner>,
    transaction: TransactionSettings,
    fault: Option<Error>,
}

impl std::fmt::Debug for ProducerBuilder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = formatter.debug_struct("ProducerBuilder");
        shown.field("settings", &self.settings).field("name", &self.name).finish_non_exhaustive()
    }
}

impl Store {
    /// Describes a producer, which gathers records into batches and appends each once.
    pub fn producer(&self) -> ProducerBuilder {
        ProducerBuilder {
            store: self.clone(),
            settings: ProducerSettings::default(),
            properties: ProducerProperties::default(),
            name: None,
            partitioner: None,
            transaction: TransactionSettings::default(),
            fault: None,
        }
    }
}

impl ProducerBuilder {
    /// Whom a delivery waits for (`acks`). Default: [`Acks::All`]. With [`Acks::None`] nothing is retried, and
    /// failures are counted.
    pub fn acks(mut self, acks: Acks) -> Self {
        self.settings.acks = acks;
        self
    }

    /// Whether batches are numbered, so that a retry never appends twice (`enable.idempotence`). Default: yes, at
    /// any `acks` and any number of retries.
    pub fn idempotent(mut self, on: bool) -> Self {
        self.settings.idempotent = on;
        self
    }

    /// Gives the producer a name, under which it keeps its numbers from one start to the next. Whoever held the name
    /// until now is fenced when [`ProducerBuilder::build`] returns.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// A producer of transactions under this id, with the settings so far. One that was held under it before, here or
    /// in an earlier run, is fenced by [`TransactionalBuilder::build`].
    pub fn transactional_id(self, id: &str) -> TransactionalBuilder {
        let Self { store, settings, properties, name, partitioner, transaction, fault } = self;
        let named = name.map(|name| Error::InvalidConfig {
            key: "transactional.id".into(),
            value: id.to_owned(),
            reason: format!("the producer has the name {name}"),
        });
        let fault = fault.or(named);
        TransactionalBuilder::new(store, id, settings, transaction, properties, partitioner, fault)
    }

    /// For [`ProducerBuilder::transactional_id`]: how long a transaction may be open (`transaction.timeout.ms`).
    pub fn transaction_timeout(mut self, timeout: Duration) -> Self {
        self.transaction.timeout = timeout;
        self
    }

    /// How long a batch waits for company although its partition is idle (`linger.ms`). Default: not at all; records
    /// gather while an append or a flush is under way.
    pub fn linger(mut self, span: Duration) -> Self {
        self.settings.linger = span;
        self
    }

    /// Encoded bytes, before compression, at which a batch waits for nothing (`batch.size`). Default: 64 KiB.
    pub fn batch_bytes(mut self, bytes: u64) -> Self {
        self.settings.batch_bytes = bytes;
        self
    }

    /// How much may be gathered and under way in all partitions together (`buffer.memory`). Default: 32 MiB. A
    /// record that is in the log and waits for its acknowledgement may go beyond it, one for each partition.
    pub fn buffer_bytes(mut self, bytes: u64) -> Self {
        self.settings.buffer_bytes = bytes;
        self
    }

    /// How long `send` waits for room in the buffer (`max.block.ms`). Default: 60 seconds.
    pub fn max_block(mut self, span: Duration) -> Self {
        self.settings.max_block = span;
        self
    }

    /// How long after `send` a delivery ends at the latest, retries included (`delivery.timeout.ms`). Default: 120
    /// seconds.
    pub fn delivery_timeout(mut self, span: Duration) -> Self {
        self.settings.delivery_timeout = span;
        self
    }

    /// How often a batch is offered again (`retries`). Default: as often as `delivery_timeout` allows.
    pub fn retries(mut self, count: u32) -> Self {
        self.settings.retries = count;
        self
    }

    /// How batches are packed, instead of as the topic says (`compression.type`).
    pub fn compression(mut self, codec: Compression) -> Self {
        self.settings.compression = Some(codec);
        self
    }

    /// Chooses the partition of every record that names none; it is given how many there are, and runs on the
    /// sender's thread. Default: Kafka's murmur2 for records with a key; the others stay with a partition for about
    /// a batch.
    pub fn partitioner(
        mut self,
        choose: impl Fn(&ProducerRecord<'_>, u32) -> u32 + Send + Sync + 'static,
    ) -> Self {
        self.partitioner = Some(Arc::new(choose));
        self
    }

    /// Sets one of Kafka's configuration keys, such as `linger.ms`. A key that does not exist is reported by
    /// [`ProducerBuilder::build`], with the nearest one that does.
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

    /// Keys given to [`ProducerBuilder::property`] that only mean something on a network.
    #[must_use]
    pub fn ignored_properties(&self) -> Vec<String> {
        self.properties.ignored().to_vec()
    }

    /// Makes the producer.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for settings that do not fit, a name that cannot be one, or a name together with
    /// `idempotent(false)`; what giving it an id runs into.
    pub fn build(self) -> Result<Producer> {
        let Self { store, settings, name, partitioner, fault, .. } = self;
        if let Some(fault) = fault {
            return Err(fault);
        }
        settings.validate()?;
        let mut holder = None;
        let identity = match name {
            Some(name) if !settings.idempotent => {
                return Err(Error::InvalidConfig {
                    key: "enable.idempotence".into(),
                    value: "false".into(),
                    reason: format!("the producer {name} is known by its numbers"),
                });
            }
            Some(name) => {
                let held = store.hold_name(&name)?;
                let identity = Identity::Named(held.id, held.epoch);
                holder = Some(held);
                identity
            }
            None if settings.idempotent => Identity::Plain(store.new_producer_id()?),
            None => Identity::Nobody,
        };
        let common = Arc::new(Common {
            memory: Memory::new(settings.buffer_bytes),
            clock: store.clock().clone(),
            chores: store.chores()?,
            // Without acknowledgements, a record is appended in the caller.
            bursts: store.has_background()
                && settings.acks != Acks::None
                && settings.delivery_timeout >= BURSTS_WITHIN_MIN,
            panics: AtomicU64::new(0),
            settings,
        });
        let shared = Shared {
            store,
            common,
            identity,
            holder,
            partitioner,
            first: Default::default(),
            topics: RwLock::default(),
            past: Mutex::default(),
            closed: AtomicBool::new(false),
        };
        Ok(Producer { handle: Arc::new(Handle { shared }) })
    }
}
