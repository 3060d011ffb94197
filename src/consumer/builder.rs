//! How a consumer is made.

use std::sync::Arc;
use std::time::Duration;

use crate::config::{AssignorName, ConsumerProperties, ConsumerSettings, StartAt};
use crate::error::{Error, Result};
use crate::protocol::group::assignment::Assignor;
use crate::protocol::group::assignors::{Range, RoundRobin, Sticky};
use crate::store::Store;
use crate::types::Isolation;

use super::Consumer;

/// Describes a consumer before it is made. Made by [`Store::consumer`].
///
/// # Examples
/// ```
/// use oncelog::{Isolation, StartAt, Store};
/// use std::time::Duration;
/// let store = Store::in_memory(1)?;
/// let consumer = store
///     .consumer()
///     .group("billing")
///     .isolation(Isolation::ReadCommitted)
///     .start(StartAt::Earliest)
///     .auto_commit(Duration::from_secs(5))
///     .property("max.poll.records", "500")
///     .build()?;
/// # let _ = consumer;
/// # Ok::<(), oncelog::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "a builder does nothing until it builds"]
pub struct ConsumerBuilder {
    store: Store,
    settings: ConsumerSettings,
    properties: ConsumerProperties,
    /// The application's own.
    assignor: Option<Arc<dyn Assignor>>,
    fault: Option<Error>,
}

impl Store {
    /// Describes a consumer, which reads partitions one by one or as a member of a group.
    pub fn consumer(&self) -> ConsumerBuilder {
        ConsumerBuilder {
            store: self.clone(),
            settings: ConsumerSettings::default(),
            properties: ConsumerProperties::default(),
            assignor: None,
            fault: None,
        }
    }
}

impl ConsumerBuilder {
    /// The group for which it commits, and of which it is a member once it subscribes (`group.id`).
    pub fn group(mut self, name: &str) -> Self {
        self.settings.group = Some(name.into());
        self
    }

    /// Its place in the group, which a later consumer with the same id takes over without a rebalance
    /// (`group.instance.id`).
    pub fn instance_id(mut self, id: &str) -> Self {
        self.settings.instance = Some(id.into());
        self
    }

    /// Which records it sees (`isolation.level`). Default: all that are acknowledged.
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.settings.isolation = isolation;
        self
    }

    /// Where it begins when nothing is committed (`auto.offset.reset`). Default: it does not.
    pub fn start(mut self, at: StartAt) -> Self {
        self.settings.start = at;
        self
    }

    /// The largest number of records that a poll returns (`max.poll.records`). Default: as `max_bytes` allows.
    pub fn max_poll_records(mut self, count: u64) -> Self {
        self.settings.max_poll_records = count;
        self
    }

    /// About how many encoded bytes a poll returns (`fetch.max.bytes`); at least one batch, whatever its size.
    /// Default: 1 MiB.
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.settings.max_bytes = bytes;
        self
    }

    /// How long a member of a group may take from one poll to the next before its partitions are given to others
    /// (`max.poll.interval.ms`). Default: 5 minutes. Waiting in a poll counts as polling.
    pub fn max_poll_interval(mut self, span: Duration) -> Self {
        self.settings.max_poll_interval = span;
        self
    }

    /// Commits, at most that often and from within `poll`, also while that waits, what *earlier* polls have returned
    /// (`enable.auto.commit`, `auto.commit.interval.ms`). Default: it does not; the application commits.
    pub fn auto_commit(mut self, interval: Duration) -> Self {
        self.settings.auto_commit = Some(interval);
        self
    }

    /// How long a commit may take (`default.api.timeout.ms`). Default: 60 seconds.
    pub fn api_timeout(mut self, timeout: Duration) -> Self {
        self.settings.api_timeout = timeout;
        self
    }

    /// Who of the group reads which partition (`partition.assignment.strategy`); the same for all members. Default:
    /// cooperative sticky, with which only what moves is interrupted.
    pub fn assignor(mut self, assignor: impl Assignor + 'static) -> Self {
        self.assignor = Some(Arc::new(assignor));
        self
    }

    /// Sets one of Kafka's configuration keys, such as `auto.offset.reset`. A key that does not exist is reported by
    /// [`ConsumerBuilder::build`], with the nearest one that does.
    pub fn property(mut self, key: &str, value: &str) -> Self {
        if let Err(error) = self.properties.set(&mut self.settings, key, value) {
            self.fault = self.fault.or(Some(error));
        }
        self
    }

    /// Keys given to [`ConsumerBuilder::property`] that only mean something on a network.
    #[must_use]
    pub fn ignored_properties(&self) -> Vec<String> {
        self.properties.ignored().to_vec()
    }

    /// Makes the consumer, which reads nothing until it is assigned partitions or subscribes.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for settings that do not fit.
    pub fn build(self) -> Result<Consumer> {
        let Self { store, settings, assignor, fault, .. } = self;
        if let Some(fault) = fault {
            return Err(fault);
        }
        settings.validate()?;
        let assignor: Arc<dyn Assignor> = match (assignor, settings.assignor) {
            (Some(own), _) => own,
            (None, AssignorName::Range) => Arc::new(Range),
            (None, AssignorName::RoundRobin) => Arc::new(RoundRobin),
            (None, AssignorName::Sticky) => Arc::new(Sticky { cooperative: false }),
            (None, AssignorName::CooperativeSticky) => Arc::new(Sticky { cooperative: true }),
        };
        Ok(Consumer::new(store, settings, assignor))
    }
}
