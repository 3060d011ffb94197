//! A partition as the application holds it.

use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::config::check_not_internal;
use crate::error::{Error, Result};
use crate::log::{LogReader, Part, Records};
use crate::partition::{
    Appended, Author, Core, Placed, ReadOptions, Ticket, Wait, Waiting, Watched,
};
use crate::protocol::group::assignment::PartitionId;
use crate::protocol::metadata::MetadataRecord;
use crate::protocol::producer_state::batch::Numbering;
use crate::record::Record;
use crate::types::{
    Acks, DiskId, Flush, Isolation, LeaderEpoch, Offset, ProducerSequence, Timestamp, TopicId,
    TopicPartition,
};

use super::appender::{Appender, Offered};
use super::view::View;
use super::{Handle, PartitionCounter, Store, Topic};

/// One partition of a topic: the lowest level at which an application appends and reads.
///
/// Cheap to clone, usable from any number of threads; keeps its store open.
#[derive(Clone, Debug)]
pub struct Partition {
    inner: Inner,
    topic: TopicId,
    handle: Arc<Handle>,
}

#[derive(Clone, Debug)]
enum Inner {
    Live(Arc<Core>),
    /// Of a topic of the store's own: to be read only.
    Internal(Arc<Core>),
    View(Arc<View>),
}

impl Store {
    /// The partition `number` of `topic`. Opens its log if this is the first use.
    ///
    /// # Errors
    /// [`Error::UnknownTopicOrPartition`]; what opening the log runs into.
    pub fn partition(&self, topic: &str, number: u32) -> Result<Partition> {
        let shared = self.shared();
        shared.check_open()?;
        if shared.options.read_only {
            // Another topic may have its name by now. What cannot be read anew is as it was known before.
            let _ = shared.refresh();
        }
        let found = shared.topic(topic)?;
        self.partition_in(&found, number)
    }

    /// The partition `number` of a topic that was found before; of that topic, whatever has its name now.
    ///
    /// # Errors
    /// As for [`Store::partition`].
    pub(crate) fn partition_counted(
        &self,
        PartitionCounter(topic): &PartitionCounter,
        number: u32,
    ) -> Result<Partition> {
        self.shared().check_open()?;
        let partition = self.partition_in(topic, number)?;
        topic.check_here()?;
        Ok(partition)
    }

    fn partition_in(&self, found: &Topic, number: u32) -> Result<Partition> {
        let shared = self.shared();
        let slot = found.slots.read().get(number as usize).map(Arc::clone);
        let slot = match slot {
            None if shared.options.read_only => {
                shared.refresh()?;
                found.slots.read().get(number as usize).map(Arc::clone)
            }
            known => known,
        };
        let Some(slot) = slot else {
            let partition = TopicPartition::new(Arc::clone(&found.name), number);
            return Err(Error::UnknownTopicOrPartition { partition });
        };
        let inner = if shared.options.read_only {
            Inner::View(shared.open_view(found, &slot)?)
        } else {
            let core = shared.open_core(found, &slot)?;
            match check_not_internal(&found.name) {
                Ok(()) => Inner::Live(core),
                Err(_) => Inner::Internal(core),
            }
        };
        Ok(Partition { inner, topic: found.id, handle: Arc::clone(&self.handle) })
    }
}

impl Partition {
    /// Appends `records` as one batch: all of them or none. Returns once they are acknowledged.
    ///
    /// What that means is up to `acks` and the topic's flush level: with [`Acks::None`], that they
    /// were handed to the log; with [`Acks::Leader`] and [`Acks::All`], that they are on stable
    /// storage ([`Flush::OnAck`](crate::Flush)), or in the page cache (the other levels).
    ///
    /// # Errors
    /// [`Error::InvalidRecord`], [`Error::RecordTooLarge`], [`Error::NoSpace`]: nothing was written.
    /// [`Error::TimedOut`]: written, with its offsets, and not acknowledged yet.
    /// [`Error::DiskOffline`], [`Error::Io`]: see [`Error::written`].
    ///
    /// # Examples
    /// ```
    /// use oncelog::{Acks, Offset, Record, Store, TopicConfig};
    /// let store = Store::in_memory(1)?;
    /// store.create_topic("orders", TopicConfig::new())?;
    /// let partition = store.partition("orders", 0)?;
    /// let appended = partition.append(&[Record::new("pear").key("k")], Acks::All)?;
    /// assert_eq!(appended.offsets, Offset(0)..Offset(1));
    /// # Ok::<(), oncelog::Error>(())
    /// ```
    pub fn append(&self, records: &[Record<'_>], acks: Acks) -> Result<Appended> {
        self.append_of(None, records, acks)
    }

    /// As [`Partition::append`], once: a batch that this producer has appended already is not appended again, and is
    /// answered with its first offsets and [`Appended::duplicate`] (KIP-98).
    ///
    /// For applications that take numbered records from devices or sockets. The partition remembers each producer's
    /// last five batches, and which sequence is next; it forgets a producer that has not appended for a day
    /// (and for a day after an opening none, as the clock may have been set before), and the
    /// one that has been silent longest when there are more than 131,072. A producer that it does not know may begin
    /// at any sequence.
    ///
    /// # Errors
    /// Besides those of [`Partition::append`], with nothing written: [`Error::OutOfOrderSequence`] if records in between
    /// are missing or others than before are offered; [`Error::DuplicateSequence`] if they are here, and where is
    /// forgotten; [`Error::ProducerFenced`] for an epoch that is over; [`Error::InvalidRecord`] for an id out of range.
    pub fn append_idempotent(
        &self,
        producer: ProducerSequence,
        records: &[Record<'_>],
        acks: Acks,
    ) -> Result<Appended> {
        self.append_numbered(producer, records, acks, false)
    }

    /// As [`Partition::append_idempotent`]; a producer that the partition does not know has to begin at 0 (PROD-11).
    ///
    /// # Errors
    /// Besides those of [`Partition::append_idempotent`], [`Error::UnknownProducer`].
    pub fn append_idempotent_strict(
        &self,
        producer: ProducerSequence,
        records: &[Record<'_>],
        acks: Acks,
    ) -> Result<Appended> {
        self.append_numbered(producer, records, acks, true)
    }

    fn append_numbered(
        &self,
        producer: ProducerSequence,
        records: &[Record<'_>],
        acks: Acks,
        strict: bool,
    ) -> Result<Appended> {
        if producer.id.0 == 0 || producer.id.0 >= 1 << 62 {
            let reason = "a producer's id is from 1 to 2^62 - 1".into();
            return Err(Error::InvalidRecord { partition: self.name().clone(), index: 0, reason });
        }
        let numbering = Numbering::Restarts;
        let author =
            Author { producer, transactional: false, strict, numbering, compression: None };
        self.append_of(Some(&author), records, acks)
    }

    /// Appends, waits, and tries again under the next leader where there was none.
    #[inline(always)]
    fn append_of(
        &self,
        author: Option<&Author>,
        records: &[Record<'_>],
        acks: Acks,
    ) -> Result<Appended> {
        match self.live()?.append(author, records, acks) {
            Ok(Placed::Done(appended)) => Ok(appended),
            Ok(Placed::Waits(waiting)) => self.wait(waiting, acks),
            Err(error) => self.append_again(error, author, records, acks),
        }
    }

    /// As [`Partition::append`] with [`Acks::All`], within `timeout`.
    pub(crate) fn append_within(
        &self,
        records: &[Record<'_>],
        timeout: Duration,
    ) -> Result<Appended> {
        let (core, acks) = (self.live()?, Acks::All);
        match self.handle.shared.placed(core, |core| core.append(None, records, acks))? {
            Placed::Done(appended) => Ok(appended),
            Placed::Waits(waiting) => self.wait_within(waiting, acks, timeout),
        }
    }

    /// Waits for the acknowledgement of an append.
    #[inline(never)]
    fn wait(&self, waiting: Waiting, acks: Acks) -> Result<Appended> {
        if acks == Acks::None {
            return Ok(waiting.appended);
        }
        let timeout = self.live()?.append_timeout();
        self.wait_within(waiting, acks, timeout)
    }

    fn wait_within(&self, waiting: Waiting, acks: Acks, timeout: Duration) -> Result<Appended> {
        let core = self.live()?;
        let Waiting { appended, epoch } = waiting;
        let wait = Wait::new(appended.offsets.clone(), acks, epoch);
        let shared = &self.handle.shared;
        core.wait_settled(&wait, timeout, &|| shared.settle_one(core))?;
        Ok(appended)
    }

    /// After an append for which there was no leader: settles who leads, and tries again.
    #[cold]
    #[inline(never)]
    fn append_again(
        &self,
        mut error: Error,
        author: Option<&Author>,
        records: &[Record<'_>],
        acks: Acks,
    ) -> Result<Appended> {
        if !error.is_of_leader() {
            return Err(error);
        }
        let core = self.live()?;
        for _ in 0..core.replicas().len() {
            if !error.is_of_leader() {
                break;
            }
            self.handle.shared.settle_one(core);
            match core.append(author, records, acks) {
                Ok(Placed::Done(appended)) => return Ok(appended),
                Ok(Placed::Waits(waiting)) => return self.wait(waiting, acks),
                Err(again) => error = error.or_still(again),
            }
        }
        Err(error)
    }

    /// Appends `records` as one batch and returns without waiting for the acknowledgement.
    ///
    /// # Errors
    /// As for [`Partition::append`], without those of the wait.
    pub fn append_nowait(&self, records: &[Record<'_>], acks: Acks) -> Result<Ticket> {
        self.ticket(acks, |core| core.append_only(None, records, acks))
    }

    /// Appends a producer's batch and returns without waiting. Who waits later flushes by itself.
    pub(crate) fn append_as(
        &self,
        author: &Author,
        records: &[Record<'_>],
        acks: Acks,
    ) -> Result<Offered> {
        let (core, shared) = (self.live()?, &self.handle.shared);
        shared.offer(core, author, records, acks)
    }

    /// The partition as a producer uses it.
    ///
    /// # Errors
    /// [`Error::ReadOnly`].
    pub(crate) fn appender(&self) -> Result<Appender> {
        let (core, shared) = (Arc::clone(self.live()?), Arc::clone(&self.handle.shared));
        Ok(Appender { core, shared })
    }

    fn ticket(&self, acks: Acks, append: impl Fn(&Core) -> Result<Placed>) -> Result<Ticket> {
        let (core, shared) = (self.live()?, &self.handle.shared);
        let placed = shared.placed(core, append)?;
        Ok(shared.ticket_of(core, placed, acks))
    }

    /// Returns whole batches from `offset` on, every checksum verified. Does not block: at the end
    /// of what may be read, the result is empty.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`] before the log start offset and behind the log end offset.
    /// [`Error::Corrupt`] if the record at `offset` is damaged; its `offsets` tell where to go on.
    pub fn read(&self, offset: Offset, options: ReadOptions) -> Result<Records> {
        self.fetch(offset, &options).map(Records::of)
    }

    /// As [`Partition::read`], to be put together with what other partitions have.
    #[inline]
    pub(crate) fn fetch(&self, offset: Offset, options: &ReadOptions) -> Result<Part> {
        match &self.inner {
            Inner::Live(core) | Inner::Internal(core) => core.read(offset, options),
            Inner::View(view) => Self::look_twice(view, |view| view.read(offset, options)),
        }
    }

    /// Asks a view, and again where that failed after it has learnt what the metadata say by now.
    fn look_twice<T>(view: &View, ask: impl Fn(&View) -> Result<T>) -> Result<T> {
        ask(view).or_else(|_| {
            view.learn()?;
            ask(view)
        })
    }

    /// A view looks at the disk that leads by now. `false`: it is none, and knows by itself who leads.
    ///
    /// # Errors
    /// [`Error::NoLeader`], [`Error::UnknownTopicOrPartition`]; what looking there runs into.
    pub(crate) fn look_elsewhere(&mut self) -> Result<bool> {
        let Inner::View(view) = &self.inner else { return Ok(false) };
        let name = view.partition().clone();
        let shared = &self.handle.shared;
        shared.refresh()?;
        let topic = shared.topic(name.topic()).ok().filter(|topic| topic.id == self.topic);
        let slot = topic
            .as_ref()
            .and_then(|topic| topic.slots.read().get(name.partition() as usize).map(Arc::clone));
        let (Some(topic), Some(slot)) = (topic, slot) else {
            return Err(Error::UnknownTopicOrPartition { partition: name });
        };
        self.inner = Inner::View(shared.open_view(&topic, &slot)?);
        Ok(true)
    }

    /// A view as it is now, or as it was when its disk last answered.
    fn now<'a>(&self, view: &'a View) -> &'a View {
        let _ = Self::look_twice(view, View::look);
        view
    }

    fn wait_in(
        &self,
        view: &View,
        offset: Offset,
        isolation: Isolation,
        timeout: Duration,
    ) -> Result<()> {
        let started = Instant::now();
        while let Err(error) = view.wait_for(offset, isolation, started, timeout) {
            if matches!(error, Error::Closed) {
                return Err(error);
            }
            // It may lead anew, or be gone without a word.
            view.learn()?;
            if started.elapsed() >= timeout {
                return view.wait_for(offset, isolation, started, timeout);
            }
        }
        Ok(())
    }

    /// Has `waker` woken, once, when the record at `offset` can be read, or never will be.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::UnknownTopicOrPartition`]: nothing will come any more.
    pub(crate) fn watch(
        &self,
        offset: Offset,
        isolation: Isolation,
        waker: &Waker,
    ) -> Result<Watched> {
        match &self.inner {
            Inner::Live(core) | Inner::Internal(core) => core.watch(offset, isolation, waker),
            Inner::View(_) => Ok(Watched::Unwatchable),
        }
    }

    /// Waits until its end is behind all that was acknowledged. A view shows what its owner does.
    ///
    /// # Errors
    /// [`Error::TimedOut`]; what closes the partition.
    pub(crate) fn wait_for_acknowledged(&self, timeout: Duration) -> Result<()> {
        match &self.inner {
            Inner::Live(core) | Inner::Internal(core) => {
                self.handle.shared.wait_for_acknowledged(core, timeout)
            }
            Inner::View(_) => Ok(()),
        }
    }

    /// Whether its end is behind all that was acknowledged.
    pub(crate) fn knows_acknowledged(&self) -> bool {
        self.wait_for_acknowledged(Duration::ZERO).is_ok()
    }

    /// Whether its topic was deleted; another may have its name.
    pub(crate) fn is_gone(&self) -> bool {
        let topics = self.handle.shared.topics.read();
        topics.get(self.name().topic()).is_none_or(|topic| topic.id != self.topic)
    }

    /// Takes back what was asked for with this waker.
    pub(crate) fn unwatch(&self, waker: &Waker) {
        if let Inner::Live(core) | Inner::Internal(core) = &self.inner {
            core.unwatch(waker);
        }
    }

    /// Where the log departs from what was read of it up to `position` under a leader of `epoch`, if it does.
    pub(crate) fn divergence(&self, position: Offset, epoch: LeaderEpoch) -> Option<Offset> {
        match &self.inner {
            Inner::Live(core) | Inner::Internal(core) => core.divergence(position, epoch),
            Inner::View(view) => view.divergence(position, epoch),
        }
    }

    /// Waits until the record at `offset` can be read.
    ///
    /// # Errors
    /// [`Error::TimedOut`]; [`Error::Closed`] when the store is closed meanwhile; of a read-only store, [`Error::NoLeader`]
    /// when another disk leads.
    pub fn wait_for(&self, offset: Offset, timeout: Duration) -> Result<()> {
        match &self.inner {
            Inner::Live(core) | Inner::Internal(core) => {
                core.wait_for(offset, Isolation::ReadUncommitted, timeout)
            }
            Inner::View(view) => self.wait_in(view, offset, Isolation::ReadUncommitted, timeout),
        }
    }

    /// As [`Partition::wait_for`], until a read-committed read gets as far: the transactions that began before have
    /// ended, and the record there, if it is of one that was aborted, is passed over.
    ///
    /// # Errors
    /// As for [`Partition::wait_for`].
    pub fn wait_for_committed(&self, offset: Offset, timeout: Duration) -> Result<()> {
        match &self.inner {
            Inner::Live(core) | Inner::Internal(core) => {
                core.wait_for(offset, Isolation::ReadCommitted, timeout)
            }
            Inner::View(view) => self.wait_in(view, offset, Isolation::ReadCommitted, timeout),
        }
    }

    /// The first offset that has not been deleted.
    #[must_use]
    pub fn log_start_offset(&self) -> Offset {
        match &self.inner {
            Inner::Live(core) | Inner::Internal(core) => core.log_start(),
            Inner::View(view) => self.now(view).offsets().0,
        }
    }

    /// The end of what may be read: everything below is acknowledged by every in-sync replica.
    #[must_use]
    pub fn high_watermark(&self) -> Offset {
        match &self.inner {
            Inner::Live(core) | Inner::Internal(core) => core.high_watermark(),
            Inner::View(view) => self.now(view).offsets().1,
        }
    }

    /// The end of what a read-committed read may return. A commit counts when it is decided: who leads next may have to
    /// write its marker anew, and ends before that for a moment.
    #[must_use]
    pub fn last_stable_offset(&self) -> Offset {
        match &self.inner {
            Inner::Live(core) | Inner::Internal(core) => core.last_stable_offset(),
            Inner::View(view) => self.now(view).last_stable(),
        }
    }

    /// The offset that the next record will get.
    #[must_use]
    pub fn log_end_offset(&self) -> Offset {
        match &self.inner {
            Inner::Live(core) | Inner::Internal(core) => core.log_end(),
            Inner::View(view) => self.now(view).offsets().2,
        }
    }

    /// The disk whose replica leads; `None` after it failed.
    #[must_use]
    pub fn leader(&self) -> Option<DiskId> {
        match &self.inner {
            Inner::Live(core) | Inner::Internal(core) => core.leader(),
            Inner::View(_) => None,
        }
    }

    /// The reign under which records are appended now.
    #[must_use]
    pub fn leader_epoch(&self) -> LeaderEpoch {
        match &self.inner {
            Inner::Live(core) | Inner::Internal(core) => core.leader_epoch(),
            Inner::View(view) => view.leader_epoch(),
        }
    }

    /// The disks that hold a replica.
    #[must_use]
    pub fn replicas(&self) -> Vec<DiskId> {
        match &self.inner {
            Inner::Live(core) | Inner::Internal(core) => core.replicas(),
            Inner::View(view) => view.replicas(),
        }
    }

    /// The disks whose replicas are in sync.
    #[must_use]
    pub fn in_sync_replicas(&self) -> Vec<DiskId> {
        match &self.inner {
            Inner::Live(core) | Inner::Internal(core) => core.in_sync(),
            Inner::View(_) => Vec::new(),
        }
    }

    /// Topic and number.
    #[must_use]
    pub fn name(&self) -> &TopicPartition {
        match &self.inner {
            Inner::Live(core) | Inner::Internal(core) => core.partition(),
            Inner::View(view) => view.partition(),
        }
    }

    /// The offset of the first record whose timestamp is at least `timestamp`; `None` if there is
    /// none that may be read (READ-12, READ-13).
    ///
    /// # Errors
    /// [`Error::Corrupt`] if damage lies before the answer; [`Error::TimedOut`] if there is none as long as it is not known how
    /// far the partition was acknowledged, since the store was opened with too few of its replicas.
    pub fn offset_for_time(&self, timestamp: Timestamp) -> Result<Option<Offset>> {
        match &self.inner {
            Inner::Live(core) | Inner::Internal(core) => {
                let is_known = self.knows_acknowledged();
                let found = core.offset_for_time(timestamp)?;
                if found.is_some() || is_known {
                    return Ok(found);
                }
                self.wait_for_acknowledged(self.handle.shared.options.append_timeout)?;
                core.offset_for_time(timestamp)
            }
            Inner::View(view) => Self::look_twice(view, |view| view.offset_for_time(timestamp)),
        }
    }

    /// Deletes the records below `before`, durably so when this returns. Returns the new log start
    /// offset, which is higher if more had been deleted before. Files that cannot be removed now go at the next opening.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`] above the high watermark, [`Error::TimedOut`] as long as it is not known how high that was;
    /// what writing it down runs into.
    pub fn delete_records(&self, before: Offset) -> Result<Offset> {
        let core = self.live()?;
        let shared = &self.handle.shared;
        if matches!(core.check_delete(before), Err(Error::OffsetOutOfRange { .. })) {
            self.wait_for_acknowledged(shared.options.append_timeout)?;
        }
        core.check_delete(before)?;
        let _operating = shared.operate()?;
        if before > core.log_start() {
            shared.remember_before(core, before)?;
            let mut metadata = shared.metadata.lock();
            // Deleted since it was looked at.
            let number = core.partition().partition();
            if metadata.state().partition(self.topic, number).is_none() {
                let partition = core.partition().clone();
                return Err(Error::UnknownTopicOrPartition { partition });
            }
            metadata.commit(&MetadataRecord::LogStartRaised {
                id: self.topic,
                partition: number,
                offset: before,
            })?;
            drop(metadata);
            if let Err(error) = core.raise_log_start(before) {
                core.background_failed("removing deleted records", &error);
            }
        }
        Ok(core.log_start())
    }

    /// What is behind it, if that is in this process.
    pub(crate) fn core(&self) -> Option<&Arc<Core>> {
        match &self.inner {
            Inner::Live(core) | Inner::Internal(core) => Some(core),
            Inner::View(_) => None,
        }
    }

    /// How it is flushed.
    pub(super) fn flush_level(&self) -> Result<Flush> {
        Ok(self.live()?.settings().topic.flush)
    }

    /// As [`Partition::flush_level`], as nanoseconds of exposure and without a lock.
    #[inline]
    pub(super) fn exposure_nanos(&self) -> Result<u64> {
        Ok(self.live()?.exposure_nanos())
    }

    /// The largest batch that its topic takes, in bytes.
    pub(crate) fn max_batch_bytes(&self) -> Result<u64> {
        Ok(self.live()?.settings().topic.max_batch_bytes.into())
    }

    /// By its topic's id.
    pub(crate) fn id(&self) -> PartitionId {
        PartitionId { topic: self.topic, partition: self.name().partition() }
    }

    /// Its topic, by the id that no other topic has.
    pub(crate) fn topic_id(&self) -> TopicId {
        self.topic
    }

    /// What a verification walks over: every replica's log.
    pub(super) fn log_readers(&self) -> Vec<(DiskId, Arc<LogReader>)> {
        match &self.inner {
            Inner::Live(core) | Inner::Internal(core) => core.readers(),
            Inner::View(view) => {
                vec![(view.disk(), view.reader())]
            }
        }
    }

    #[inline]
    fn live(&self) -> Result<&Arc<Core>> {
        match &self.inner {
            Inner::Live(core) => Ok(core),
            Inner::View(_) | Inner::Internal(_) => Err(Error::ReadOnly),
        }
    }
}
