//! Producers: records go in one by one, batches come out, each appended once.
//!
//! - `builder`: how one is made.
//! - `delivery`: what a sender gets back.
//! - `lane`: one partition as a producer writes to it: which thread does what.
//! - `window`: what is on its way there, and what is to be done next. Pure decisions; time is an argument.
//! - `batch`: records that go together. `numbers`: their sequences. `memory`: how much may be under way.
//! - `target`: the partition, or what stands for it in tests.
//! - `transactional`, `transaction`: batches that are seen together or never. `atomic`: the same in one call.
//!
//! Threads: none of its own. Senders and waiters do the work; where there are none, the store's thread for chores.
//! Leaves to others: what a sequence means (`protocol::producer_state`), flushing (`partition`), who holds a name
//! (`store::producer_ids`).

mod atomic;
mod batch;
mod builder;
mod delivery;
mod lane;
mod memory;
#[cfg(test)]
mod model;
mod numbers;
mod target;
mod transaction;
mod transactional;
mod window;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use crate::error::{Error, Result};
use crate::protocol::partitioner::{Sticky, partition_of_key};
use crate::record::{ProducerRecord, RecordSize};
use crate::store::{Holder, PartitionCounter, Store, does_chores};
use crate::types::{Mix, TopicPartition};

pub use builder::ProducerBuilder;
pub use delivery::{Delivery, RecordMetadata};
pub use transaction::Transaction;
pub use transactional::{
    TransactionId, TransactionOutcome, TransactionalBuilder, TransactionalProducer,
};

use batch::{Counts, memory_of};
use delivery::{Callback, Receipt};
use lane::{Common, Lane, Taken, Until};
use numbers::{Identity, Numbers};
use target::{LogTarget, Target};

/// How often a topic is looked up for a record that finds it deleted each time.
const TOPICS_TRIED_MAX: u32 = 3;

/// Topics that a producer finds without a lock and without counting references, which takes 100 ns off a send.
const FIRST_TOPICS: usize = 8;
/// How often a callback that waits for room on the thread for chores sees to those.
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

type Partitioner = Arc<dyn Fn(&ProducerRecord<'_>, u32) -> u32 + Send + Sync>;

/// Sends records to topics: gathers them into batches, retries what can be retried, and appends each once.
///
/// A record that finds its partition idle is appended at once, by the caller. While an append or a flush is under way
/// there, records gather and go together when it is done. So batches grow with the load, and nothing waits for them
/// to. One thing is held back: a sender that is ahead of its deliveries by 16 records, sent within 16 us, has the
/// next ones gathered by 4 KiB; the last of them are appended when one of their deliveries is looked at or 250 us have
/// passed. Records of one partition are appended, and their deliveries end, in the order in which they were sent.
///
/// Cheap to clone, usable from any number of threads; keeps its store open. The last clone to go delivers what was
/// sent, for up to the delivery timeout.
///
/// # Examples
/// ```
/// use oncelog::{Record, Store, TopicConfig};
/// use std::time::Duration;
/// let store = Store::in_memory(1)?;
/// store.create_topic("orders", TopicConfig::new().partitions(6))?;
/// let producer = store.producer().build()?;
/// for customer in ["ada", "ben", "ada"] {
///     let order = Record::to("orders").key(customer).value("pear");
///     producer.send_with(order, |outcome| assert!(outcome.is_ok()))?;
/// }
/// producer.flush(Duration::from_secs(5))?;
/// assert_eq!(producer.counters().records, 3);
/// # Ok::<(), oncelog::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Producer {
    handle: Arc<Handle>,
}

/// What a producer has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProducerCounters {
    /// Records that were delivered.
    pub records: u64,
    /// Batches that they went in.
    pub batches: u64,
    /// Batches that were offered again.
    pub retries: u64,
    /// Records that failed with [`Acks::None`](crate::Acks), for which nobody waits.
    pub dropped: u64,
    /// Callbacks that panicked.
    pub callback_panics: u64,
    /// How much of the buffer is taken now, in bytes.
    pub buffered_bytes: u64,
}

/// Delivers what was sent when it goes.
#[derive(Debug)]
struct Handle {
    shared: Shared,
}

struct Shared {
    store: Store,
    common: Arc<Common>,
    identity: Identity,
    holder: Option<Holder>,
    partitioner: Option<Partitioner>,
    /// The topics that were sent to first, for most all of them: found without a lock.
    first: [OnceLock<Arc<TopicLanes>>; FIRST_TOPICS],
    topics: RwLock<HashMap<Arc<str>, Arc<TopicLanes>, Mix>>,
    /// What was counted of topics that are gone.
    past: Mutex<Counts>,
    closed: AtomicBool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = formatter.debug_struct("Shared");
        shown
            .field("identity", &self.identity)
            .field("common", &self.common)
            .finish_non_exhaustive()
    }
}

/// A topic that was sent to.
struct TopicLanes {
    counter: PartitionCounter,
    /// Of the partitions that there were at first, found without a lock.
    lanes: Box<[OnceLock<Arc<Lane<LogTarget>>>]>,
    /// Of those that were added since; held while a lane is made.
    more: RwLock<BTreeMap<u32, Arc<Lane<LogTarget>>>>,
    sticky: Mutex<Sticky>,
}

impl TopicLanes {
    #[inline]
    fn lane(&self, number: u32) -> Option<Arc<Lane<LogTarget>>> {
        match self.lanes.get(number as usize) {
            Some(lane) => lane.get().cloned(),
            None => self.more.read().get(&number).cloned(),
        }
    }

    fn all(&self) -> Vec<Arc<Lane<LogTarget>>> {
        let more = self.more.read();
        self.lanes.iter().filter_map(OnceLock::get).chain(more.values()).cloned().collect()
    }
}

#[expect(clippy::needless_pass_by_value, reason = "a record is made where it is sent")]
impl Producer {
    /// Sends a record. Returns when it is appended or has its place in the next batch; waits for up to `max_block`
    /// if the buffer is full.
    ///
    /// # Errors
    /// What is wrong with the record or the call, known at once: [`Error::UnknownTopicOrPartition`],
    /// [`Error::RecordTooLarge`] (before any I/O), [`Error::InvalidRecord`], [`Error::BufferFull`],
    /// [`Error::ProducerFenced`], [`Error::Closed`], and [`Error::OutOfOrderSequence`] behind a named producer's
    /// record that failed. The record is then in no log. All else is the delivery's to tell.
    #[inline]
    pub fn send(&self, record: ProducerRecord<'_>) -> Result<Delivery> {
        self.handle.shared.send(&record, None, true)
    }

    /// Sends a record and has `callback` called with its outcome, once, in the order of sending within a partition.
    /// It runs under no lock, on a thread that sends or waits here or on one of the store's; a panic in it is counted.
    ///
    /// # Errors
    /// As for [`Producer::send`]; `callback` is then not called.
    pub fn send_with(
        &self,
        record: ProducerRecord<'_>,
        callback: impl FnOnce(Result<RecordMetadata>) + Send + 'static,
    ) -> Result<()> {
        self.handle.shared.send(&record, Some(Box::new(callback)), true).map(drop)
    }

    /// As [`Producer::send`], without waiting for room in the buffer.
    ///
    /// # Errors
    /// As for [`Producer::send`]; [`Error::BufferFull`] at once. Nothing waits for `linger` any more then, to make room.
    pub fn try_send(&self, record: ProducerRecord<'_>) -> Result<Delivery> {
        self.handle.shared.send(&record, None, false)
    }

    /// Waits until all that was sent before has ended, and its callbacks have returned. Nothing waits for `linger`
    /// any more. How each record ended, its delivery tells. In a callback, callbacks are not waited for.
    ///
    /// # Errors
    /// [`Error::TimedOut`]; what is under way goes on.
    pub fn flush(&self, timeout: Duration) -> Result<()> {
        self.handle.shared.flush(timeout)
    }

    /// Takes no more records, and flushes. Every clone is closed with it; whoever waits for room in the buffer is told
    /// [`Error::Closed`] (CLI-04).
    ///
    /// # Errors
    /// As for [`Producer::flush`].
    pub fn close(&self, timeout: Duration) -> Result<()> {
        self.handle.shared.closed.store(true, Ordering::Release);
        self.handle.shared.common.memory.close();
        self.flush(timeout)
    }

    /// The sequence of the next record that this producer sends to the partition: how many it has sent there since
    /// it first had its name. That is where a source that can be replayed goes on, at the start or after a failure.
    ///
    /// After a record failed, all that was sent behind it fails as well, and `send` refuses more with
    /// [`Error::OutOfOrderSequence`] until this was asked.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for a producer without a name; [`Error::UnknownTopicOrPartition`];
    /// [`Error::ProducerFenced`]; [`Error::TimedOut`] while records behind one that failed are under way: flush first; and if what
    /// was sent before is not acknowledged in time.
    ///
    /// # Examples
    /// ```
    /// use oncelog::{Record, Store, TopicConfig};
    /// use std::time::Duration;
    /// let source = ["21.5", "21.7", "21.6"];
    /// let store = Store::in_memory(1)?;
    /// store.create_topic("readings", TopicConfig::new())?;
    /// for _start in 0..3 {
    ///     let producer = store.producer().name("meter-17").build()?;
    ///     let next = producer.next_sequence("readings", 0)?;
    ///     for reading in source.iter().skip(next as usize) {
    ///         producer.send(Record::to("readings").partition(0).value(reading))?;
    ///     }
    ///     producer.flush(Duration::from_secs(5))?;
    /// }
    /// assert_eq!(store.partition("readings", 0)?.log_end_offset().0, 3);
    /// # Ok::<(), oncelog::Error>(())
    /// ```
    pub fn next_sequence(&self, topic: &str, partition: u32) -> Result<u64> {
        let shared = &self.handle.shared;
        let Some(holder) = &shared.holder else {
            return Err(Error::InvalidConfig {
                key: "name".into(),
                value: String::new(),
                reason: "a producer without a name begins anew each time".into(),
            });
        };
        // What it has counted itself is over once somebody else has the name.
        drop(holder.reigns()?);
        shared
            .lane_by_name(&ProducerRecord {
                topic,
                partition: Some(partition),
                record: crate::record::Record::default(),
            })?
            .next_sequence()
    }

    /// What it has done so far.
    #[must_use]
    pub fn counters(&self) -> ProducerCounters {
        let shared = &self.handle.shared;
        let mut sum = ProducerCounters {
            callback_panics: shared.common.panics.load(Ordering::Relaxed),
            buffered_bytes: shared.common.memory.used(),
            ..ProducerCounters::default()
        };
        let past = *shared.past.lock();
        let present = shared.lanes();
        for counts in present.iter().map(|lane| lane.counts()).chain([past]) {
            sum.records += counts.records;
            sum.batches += counts.batches;
            sum.retries += counts.retries;
            sum.dropped += counts.dropped;
        }
        sum
    }
}

impl Shared {
    #[inline]
    fn send(
        &self,
        record: &ProducerRecord<'_>,
        callback: Option<Callback>,
        blocks: bool,
    ) -> Result<Delivery> {
        self.check_open()?;
        let mut first = self.first.iter().map_while(OnceLock::get);
        let is_named = |topic: &&Arc<TopicLanes>| {
            **topic.counter.name() == *record.topic && !topic.counter.is_gone()
        };
        if let Some(topic) = first.find(is_named) {
            let number = self.partition_of(topic, record);
            if let Some(lane) = topic.lanes.get(number as usize).and_then(OnceLock::get) {
                return self.send_to(lane, record, callback, blocks);
            }
            let lane = match topic.lane(number) {
                Some(lane) => lane,
                None => self.make_lane_of_first(topic, number, record)?,
            };
            return self.send_elsewhere(&lane, record, callback, blocks);
        }
        self.send_elsewhere(&self.lane_by_name(record)?, record, callback, blocks)
    }

    #[inline(never)]
    fn send_elsewhere(
        &self,
        lane: &Arc<Lane<LogTarget>>,
        record: &ProducerRecord<'_>,
        callback: Option<Callback>,
        blocks: bool,
    ) -> Result<Delivery> {
        self.send_to(lane, record, callback, blocks)
    }

    /// Inlined: a sender whose topic is among the first counts no reference to the lane, and moves nothing twice.
    #[inline(always)]
    fn send_to(
        &self,
        lane: &Arc<Lane<LogTarget>>,
        record: &ProducerRecord<'_>,
        callback: Option<Callback>,
        blocks: bool,
    ) -> Result<Delivery> {
        match lane.send(&record.record, callback, 0)? {
            Taken::NoRoom(callback) => self.send_late(lane, record, callback, blocks),
            taken => Ok(delivery_of(lane, record, taken)),
        }
    }

    #[inline]
    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    /// Sends a record for which there was no room.
    #[cold]
    fn send_late(
        &self,
        lane: &Arc<Lane<LogTarget>>,
        record: &ProducerRecord<'_>,
        callback: Option<Callback>,
        blocks: bool,
    ) -> Result<Delivery> {
        let bytes = memory_of(RecordSize::of(&record.record));
        let Common { memory, settings, .. } = &*self.common;
        let bytes_max = memory.bytes_max();
        if bytes > bytes_max {
            let partition = lane.name().clone();
            return Err(Error::RecordTooLarge { partition, bytes, bytes_max });
        }
        // Also for whoever comes again instead of waiting.
        self.make_room(bytes);
        let background = self.store.has_background();
        let timeout = if background { settings.max_block } else { Duration::ZERO };
        if !blocks || !memory.take(bytes, timeout, || self.press()) {
            self.check_open()?;
            return Err(Error::BufferFull { bytes_max });
        }
        Ok(delivery_of(lane, record, lane.send(&record.record, callback, bytes)?))
    }

    /// Hastens what is under way (CLI-05): without threads, until there is room, or nothing more comes of it.
    fn make_room(&self, bytes: u64) {
        let lanes = self.lanes();
        let sent: Vec<_> = lanes.iter().map(|lane| lane.hasten()).collect();
        if self.store.has_background() {
            return;
        }
        for (lane, sent) in lanes.iter().zip(sent) {
            if !self.common.memory.has_room(bytes) && sent > 0 {
                lane.wait(sent - 1, Duration::ZERO, Until::Ended);
            }
        }
    }

    /// The caller stands in line for room: what has gathered since, or will, waits for no company (CLI-05). Nobody is called
    /// here, who might stand in line behind the caller. Returns when to come again.
    fn press(&self) -> Duration {
        let lanes = self.lanes();
        lanes.iter().for_each(|lane| lane.press());
        if !does_chores() {
            return Duration::MAX;
        }
        // In a callback: nobody else sees to acknowledgements that nobody waits for.
        lanes.iter().for_each(|lane| lane.go_on_amid_a_callback());
        BETWEEN_LOOKS
    }

    /// A topic that is gone may come again under its name: it is looked up anew. What is under way to it fails.
    #[cold]
    fn forget_gone(&self, topic: &Arc<TopicLanes>) {
        let name = topic.counter.name();
        let mut topics = self.topics.write();
        let is_known = topics.get(name).is_some_and(|known| Arc::ptr_eq(known, topic));
        if is_known {
            topics.remove(name);
        }
        drop(topics);
        // Else somebody else does the rest.
        if is_known {
            self.let_go(topic);
        }
    }

    /// A topic that is gone is found under its name no more.
    fn let_go(&self, topic: &TopicLanes) {
        for lane in topic.all() {
            let partition = lane.name().clone();
            lane.abandon(&Error::UnknownTopicOrPartition { partition });
            self.past.lock().add(lane.counts());
        }
    }

    fn flush(&self, timeout: Duration) -> Result<()> {
        let lanes = self.lanes();
        let sent: Vec<_> = lanes.iter().map(|lane| lane.hasten()).collect();
        let started = self.common.clock.elapsed();
        let mut in_time = true;
        for (lane, sent) in lanes.iter().zip(sent).filter(|(_, sent)| *sent > 0) {
            let passed = self.common.clock.elapsed().saturating_sub(started);
            in_time &= lane.wait(sent - 1, timeout.saturating_sub(passed), Until::Called);
        }
        if in_time {
            return Ok(());
        }
        Err(Error::late("flushing the producer", timeout))
    }

    fn lanes(&self) -> Vec<Arc<Lane<LogTarget>>> {
        let topics: Vec<_> = self.topics.read().values().cloned().collect();
        topics.iter().flat_map(|topic| topic.all()).collect()
    }

    #[cold]
    fn make_lane_of_first(
        &self,
        topic: &TopicLanes,
        number: u32,
        record: &ProducerRecord<'_>,
    ) -> Result<Arc<Lane<LogTarget>>> {
        match self.make_lane(topic, number) {
            // Deleted since it was looked at.
            Err(Error::UnknownTopicOrPartition { .. }) if topic.counter.is_gone() => {
                self.lane_by_name(record)
            }
            made => made,
        }
    }

    #[inline(never)]
    fn lane_by_name(&self, record: &ProducerRecord<'_>) -> Result<Arc<Lane<LogTarget>>> {
        let mut tries = 1;
        loop {
            let topics = self.topics.read();
            let known = topics.get(record.topic).cloned();
            drop(topics);
            let topic = match known {
                Some(topic) if topic.counter.is_gone() => {
                    self.forget_gone(&topic);
                    self.new_topic(record.topic)?
                }
                Some(topic) => topic,
                None => self.new_topic(record.topic)?,
            };
            // A partitioner is the application's, which may send: it is called under no lock.
            match self.lane_of(&topic, record) {
                // Deleted since it was looked up; another may have its name.
                Err(Error::UnknownTopicOrPartition { .. })
                    if topic.counter.is_gone() && tries < TOPICS_TRIED_MAX =>
                {
                    tries += 1;
                }
                found => return found,
            }
        }
    }

    #[inline]
    fn lane_of(
        &self,
        topic: &TopicLanes,
        record: &ProducerRecord<'_>,
    ) -> Result<Arc<Lane<LogTarget>>> {
        let number = self.partition_of(topic, record);
        match topic.lane(number) {
            Some(lane) => Ok(lane),
            None => self.make_lane(topic, number),
        }
    }

    #[cold]
    fn new_topic(&self, name: &str) -> Result<Arc<TopicLanes>> {
        let counter = self.store.partition_counter(name)?;
        let name = Arc::clone(counter.name());
        let seed = match self.identity {
            Identity::Nobody => 0,
            Identity::Plain(id) | Identity::Named(id, _) => id.0,
        };
        let made = || {
            Arc::new(TopicLanes {
                lanes: (0..counter.count()).map(|_| OnceLock::new()).collect(),
                counter,
                more: RwLock::default(),
                sticky: Mutex::new(Sticky::new(self.common.settings.batch_bytes, seed)),
            })
        };
        let mut topics = self.topics.write();
        let topic = Arc::clone(topics.entry(name).or_insert_with(made));
        // Under the lock, so that none of them is there twice.
        let is_there =
            |place: &OnceLock<_>| place.get().is_some_and(|one| Arc::ptr_eq(one, &topic));
        if !self.first.iter().any(is_there)
            && let Some(free) = self.first.iter().find(|place| place.get().is_none())
        {
            let _ = free.set(Arc::clone(&topic));
        }
        // Also those to whose names nobody sends any more; now and then, for that is a walk over all of them.
        let gone: Vec<_> = if topics.len().is_power_of_two() {
            topics.extract_if(|_, one| one.counter.is_gone()).map(|(_, one)| one).collect()
        } else {
            Vec::new()
        };
        drop(topics);
        gone.iter().for_each(|gone| self.let_go(gone));
        Ok(topic)
    }

    #[cold]
    fn make_lane(&self, topic: &TopicLanes, number: u32) -> Result<Arc<Lane<LogTarget>>> {
        // Of this topic, and not of another that has its name by now: there, another lane counts from 0, and the log would
        // take one's records for the other's.
        let partition = self.store.partition_counted(&topic.counter, number)?.appender()?;
        let target = LogTarget { partition, holder: self.holder.clone() };
        let mut more = topic.more.write();
        let known = topic.lanes.get(number as usize);
        if let Some(lane) = known.map_or_else(|| more.get(&number), OnceLock::get) {
            return Ok(Arc::clone(lane));
        }
        let next = target.next_sequence()?;
        let numbers = Numbers::new(self.identity, next, self.common.settings.compression);
        let name = TopicPartition::new(Arc::clone(topic.counter.name()), number);
        let lane = Lane::new(name, target, numbers, Arc::clone(&self.common));
        match known {
            Some(place) => drop(place.set(Arc::clone(&lane))),
            None => drop(more.insert(number, Arc::clone(&lane))),
        }
        Ok(lane)
    }

    #[inline]
    fn partition_of(&self, topic: &TopicLanes, record: &ProducerRecord<'_>) -> u32 {
        if let Some(number) = record.partition {
            return number;
        }
        let count = topic.counter.count();
        if let Some(choose) = &self.partitioner {
            return choose(record, count);
        }
        match record.record.key {
            _ if count <= 1 => 0,
            Some(key) => partition_of_key(key, count),
            None => {
                let is_available =
                    |number: u32| topic.lane(number).is_none_or(|lane| lane.is_available());
                let bytes = RecordSize::of(&record.record).bytes_max();
                topic.sticky.lock().choose(bytes, count, is_available)
            }
        }
    }
}

/// `taken`: with room.
#[inline(always)]
fn delivery_of(
    lane: &Arc<Lane<LogTarget>>,
    record: &ProducerRecord<'_>,
    taken: Taken<LogTarget>,
) -> Delivery {
    match taken {
        Taken::Done { offset, timestamp, number } => {
            Delivery::done(Arc::clone(lane), offset, timestamp, number)
        }
        Taken::Pending(shared, sent) => {
            Delivery::pending(Receipt::new(shared, sent, record.record.timestamp))
        }
        Taken::NoRoom(_) => unreachable!("its room was taken before"),
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let shared = &self.shared;
        shared.closed.store(true, Ordering::Release);
        // What has no thread is driven once: its clock does not move while it is waited for.
        let background = shared.store.has_background();
        let timeout =
            if background { shared.common.settings.delivery_timeout } else { Duration::ZERO };
        // Whoever holds a delivery is told by it.
        let _ = shared.flush(timeout);
        for lane in shared.lanes() {
            lane.abandon(&Error::Closed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TopicConfig;
    use crate::record::Record;

    /// It kept every topic that it had ever sent to, and counted backwards where a name came again.
    #[test]
    fn a_producer_lets_go_of_topics_that_are_deleted_and_still_counts_what_it_sent_there() {
        let store = Store::in_memory(1).unwrap();
        store.create_topic("stays", TopicConfig::new()).unwrap();
        let producer = store.producer().build().unwrap();
        for number in 0..100_u64 {
            // Now and then under the same name.
            let name = format!("comes-{}", number / 2);
            store.create_topic(&name, TopicConfig::new()).unwrap();
            for topic in [name.as_str(), "stays"] {
                producer.send(Record::to(topic).value("v")).unwrap().wait(Duration::MAX).unwrap();
            }
            assert_eq!(producer.counters().records, 2 * (number + 1));
            store.delete_topic(&name).unwrap();
        }
        assert!(producer.handle.shared.topics.read().len() <= 4);
    }
}
