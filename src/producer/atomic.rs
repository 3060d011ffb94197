//! Batches for several partitions in one call: seen together, or never.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{ProducerSettings, TransactionSettings};
use crate::error::{Error, Result};
use crate::partition::Appended;
use crate::record::Record;
use crate::store::Store;

use super::transactional::{TransactionalProducer, Used};

impl Store {
    /// Appends one batch to each of several partitions, all of them or none: read-committed readers see either all or
    /// nothing. A transaction without an id of its own; it costs one flush more than the batches.
    ///
    /// Returns where the batches are, in their order. A partition may be there more than once.
    ///
    /// # Errors
    /// Those of [`Partition::append`](crate::Partition::append) and of
    /// [`Transaction::commit`](crate::Transaction::commit): nothing was written that anybody will see, unless
    /// [`Error::written`] says otherwise, of the decision.
    ///
    /// # Examples
    /// ```
    /// use oncelog::{Record, Store, TopicConfig};
    /// use std::time::Duration;
    /// let store = Store::in_memory(1)?;
    /// store.create_topic("accounts", TopicConfig::new().partitions(2))?;
    /// store.append_atomic(
    ///     &[("accounts", 0, &[Record::new("-5")]), ("accounts", 1, &[Record::new("+5")])],
    ///     Duration::from_secs(10),
    /// )?;
    /// # Ok::<(), oncelog::Error>(())
    /// ```
    pub fn append_atomic(
        &self,
        batches: &[(&str, u32, &[Record<'_>])],
        timeout: Duration,
    ) -> Result<Vec<Appended>> {
        match batches {
            [] => return Ok(Vec::new()),
            [(topic, number, records)] => {
                let partition = self.partition(topic, *number)?;
                return Ok(vec![partition.append_within(records, timeout)?]);
            }
            _ => {}
        }
        let mut producer = self.take_spare_producer(timeout).map_err(Error::of_others)?;
        let outcome = append_all(&mut producer, batches, timeout);
        let transactions = Arc::clone(&producer.transactions);
        if let Some(spare) = producer.give_up() {
            transactions.keep_spare(spare);
        }
        outcome
    }

    fn take_spare_producer(&self, timeout: Duration) -> Result<TransactionalProducer> {
        let transactions = self.shared().transactions()?;
        let settings = ProducerSettings {
            delivery_timeout: timeout,
            max_block: timeout,
            ..ProducerSettings::default()
        };
        let transaction = TransactionSettings::default();
        let store = self.clone();
        match transactions.take_spare() {
            Ok((id, tag)) => Ok(TransactionalProducer::held(
                store,
                transactions,
                id,
                tag,
                settings,
                transaction,
                None,
            )),
            Err(fresh) => TransactionalProducer::open(store, fresh, settings, transaction, None),
        }
    }
}

fn append_all(
    producer: &mut TransactionalProducer,
    batches: &[(&str, u32, &[Record<'_>])],
    timeout: Duration,
) -> Result<Vec<Appended>> {
    let places = places_of(producer, batches)?;
    let mut transaction = producer.begin()?;
    let batches = places.iter().zip(batches);
    let appended: Result<Vec<_>> =
        batches.map(|(to, (_, _, records))| transaction.append_to(to, records)).collect();
    // What is not committed is not there.
    let appended = appended.map_err(Error::of_others)?;
    transaction.commit(timeout)?;
    Ok(appended)
}

/// The partitions, all of one topic where the name is one: not some of a topic that goes meanwhile, and some of the next.
fn places_of(
    producer: &mut TransactionalProducer,
    batches: &[(&str, u32, &[Record<'_>])],
) -> Result<Vec<Arc<Used>>> {
    let (mut places, mut topics) = (Vec::with_capacity(batches.len()), HashMap::new());
    for (topic, number, _) in batches {
        let used = producer.used(topic, *number)?;
        if *topics.entry(*topic).or_insert(used.id.topic) != used.id.topic {
            return Err(Error::UnknownTopicOrPartition {
                partition: used.partition.name().clone(),
            });
        }
        places.push(used);
    }
    Ok(places)
}
