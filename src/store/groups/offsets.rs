//! The committed offsets of every group: the table, and the internal topic that it is read from.
//!
//! A commit is applied to the table in the order of the log, under the table's lock, and acknowledged once it is as
//! safe as the topic's flush level gives. The table never knows what the log has lost: under another leader, and after
//! an append of which it is not known whether it was written, it is read anew.

use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::error::{Error, Result, Written};
use crate::partition::{Author, Core, EventKind, Placed, Ticket, postpone, wake_all};
use crate::protocol::group::assignment::PartitionId;
use crate::protocol::group::offsets::{OffsetTable, RecordPlace};
use crate::protocol::group::records::{CommittedOffset, GroupRecord};
use crate::record::{Marker, Record};
use crate::store::Shared;
use crate::store::internal_topic::{Entry, InternalTopic, Live, Rewritten};
use crate::types::{Acks, LeaderEpoch, Offset, TopicPartition};

use super::GROUP_TOPIC;

/// Keys of tombstones in one batch, about: far below what a batch may have.
const TAKE_BACK_BYTES: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Offsets {
    core: Arc<Core>,
    partition: PartitionId,
    table: Mutex<Table>,
    /// A transaction that had offsets pending has ended.
    decided: Condvar,
}

#[derive(Debug)]
struct Table {
    log: InternalTopic,
    offsets: OffsetTable,
    /// Under which leader the table was read; `None`: it is not what the log says.
    epoch: Option<LeaderEpoch>,
    /// To be finished, without the lock.
    rewritten: Option<Rewritten>,
    /// Of those who wait for a decision.
    wakers: Vec<Waker>,
}

impl Offsets {
    pub(super) fn load(shared: &Shared) -> Result<Self> {
        let log = shared.make_internal_topic(GROUP_TOPIC)?;
        let core = Arc::clone(log.core());
        let partition = PartitionId { topic: log.topic().id, partition: 0 };
        let mut table = Table {
            log,
            offsets: OffsetTable::default(),
            epoch: None,
            rewritten: None,
            wakers: Vec::new(),
        };
        table.read(shared)?;
        Ok(Self { core, partition, table: Mutex::new(table), decided: Condvar::new() })
    }

    /// Where the log is, for transactions that write to it.
    pub(super) fn partition(&self) -> PartitionId {
        self.partition
    }

    fn lock(&self, shared: &Shared) -> Result<MutexGuard<'_, Table>> {
        let mut table = self.table.lock();
        if table.epoch != Some(self.core.leader_epoch()) {
            table.read(shared)?;
            self.decided.notify_all();
        }
        Ok(table)
    }

    /// Looks something up.
    ///
    /// # Errors
    /// What reading the table anew runs into.
    pub(super) fn look<T>(
        &self,
        shared: &Shared,
        look: impl FnOnce(&OffsetTable) -> T,
    ) -> Result<T> {
        self.lock(shared).map(|table| look(&table.offsets))
    }

    /// Appends records, as one batch. The caller waits.
    ///
    /// # Errors
    /// As for an append.
    pub(super) fn append(
        &self,
        shared: &Arc<Shared>,
        author: Option<&Author>,
        records: Vec<GroupRecord>,
    ) -> Result<Ticket> {
        let encoded: Vec<_> = records.iter().map(|record| (record.key(), record.value())).collect();
        let encoded: Vec<_> = encoded
            .iter()
            .map(|(key, value)| match value {
                Some(value) => Record::new(value).key(key),
                None => Record::tombstone(key),
            })
            .collect();
        let _postponed = postpone();
        let mut table = self.lock(shared)?;
        let placed = table.log.append(shared, author, &encoded);
        let placed = placed.inspect_err(|error| table.on_failure(error))?;
        let (Placed::Done(appended) | Placed::Waits(crate::partition::Waiting { appended, .. })) =
            &placed;
        let transaction =
            author.filter(|author| author.transactional).map(|author| author.producer.id);
        for (at, record) in (appended.offsets.start.0..).map(Offset).zip(records) {
            table.offsets.apply(RecordPlace { offset: at, transaction }, record);
        }
        table.check_leader(&self.core);
        table.rewrite_if_due(shared);
        Ok(shared.ticket_of(&self.core, placed, Acks::All))
    }

    /// Appends tombstones, in as many batches as they take. Returns the last, behind which all are. After a failure some
    /// may be there, and may be appended again.
    ///
    /// # Errors
    /// As for an append.
    pub(super) fn take_back(
        &self,
        shared: &Arc<Shared>,
        tombstones: Vec<GroupRecord>,
    ) -> Result<Option<Ticket>> {
        let (mut last, mut batch, mut bytes) = (None, Vec::new(), 0);
        for record in tombstones {
            bytes += record.key().len();
            batch.push(record);
            if bytes >= TAKE_BACK_BYTES {
                last = Some(self.append(shared, None, std::mem::take(&mut batch))?);
                bytes = 0;
            }
        }
        if !batch.is_empty() {
            last = Some(self.append(shared, None, batch)?);
        }
        Ok(last)
    }

    /// Appends the end of a transaction, which decides about the offsets that it has sent.
    ///
    /// # Errors
    /// As for an append.
    pub(super) fn append_marker(&self, shared: &Shared, marker: &Marker) -> Result<Placed> {
        let _postponed = postpone();
        let mut table = self.lock(shared)?;
        let placed = shared.placed_by_any(&self.core, |core| core.append_marker(marker, Acks::All));
        let placed = placed.inspect_err(|error| table.on_failure(error))?;
        table.offsets.end_transaction(marker.producer, marker.outcome);
        table.check_leader(&self.core);
        let wakers = std::mem::take(&mut table.wakers);
        drop(table);
        self.decided.notify_all();
        wake_all(wakers);
        Ok(placed)
    }

    /// What the group has committed. Waits while a transaction is about to change it (GRP-21).
    ///
    /// # Errors
    /// [`Error::TimedOut`] when it is open for longer than `wait`.
    pub(super) fn committed(
        &self,
        shared: &Shared,
        group: &str,
        partitions: &[PartitionId],
        wait: Duration,
    ) -> Result<Vec<Option<CommittedOffset>>> {
        let deadline = Instant::now().checked_add(wait);
        let mut table = self.lock(shared)?;
        loop {
            if let Some(found) = table.stable(group, partitions) {
                return Ok(found);
            }
            shared.check_open()?;
            let late = !shared.options.background
                || match deadline {
                    Some(at) => self.decided.wait_until(&mut table, at).timed_out(),
                    None => {
                        self.decided.wait(&mut table);
                        false
                    }
                };
            if late {
                let what = format!("group {group}: a transaction with its offsets");
                return Err(Error::TimedOut { what, timeout: wait, appended: None });
            }
        }
    }

    /// As [`Offsets::committed`]; instead of waiting, has `waker` woken when something was decided.
    pub(super) fn committed_now(
        &self,
        shared: &Shared,
        group: &str,
        partitions: &[PartitionId],
        waker: &Waker,
    ) -> Result<Option<Vec<Option<CommittedOffset>>>> {
        let mut table = self.lock(shared)?;
        let found = table.stable(group, partitions);
        if found.is_none() && !table.wakers.iter().any(|known| known.will_wake(waker)) {
            table.wakers.push(waker.clone());
        }
        Ok(found)
    }

    /// The store is closed: what is not decided will not be.
    pub(super) fn wake_waiting(&self) {
        // Under the lock, so that nobody is between looking and waiting.
        let _table = self.table.lock();
        self.decided.notify_all();
    }

    /// Finishes what was written again, if anything was.
    pub(super) fn finish_rewrite(&self, shared: &Shared) {
        let rewritten = self.table.lock().rewritten.take();
        if let Some(rewritten) = rewritten
            && let Err(error) = rewritten.finish(shared, shared.options.append_timeout)
        {
            report(shared, "rewriting the offsets of groups", &error);
        }
    }

    pub(super) fn has_rewritten(&self) -> bool {
        self.table.lock().rewritten.is_some()
    }
}

impl Table {
    /// What is committed; `None` while any of it is about to change.
    fn stable(
        &self,
        group: &str,
        partitions: &[PartitionId],
    ) -> Option<Vec<Option<CommittedOffset>>> {
        let found = partitions.iter().map(|at| {
            let held = self.offsets.committed_stable(group, *at).ok()?;
            Some(held.cloned())
        });
        found.collect()
    }

    fn read(&mut self, shared: &Shared) -> Result<()> {
        self.epoch = None;
        let epoch = self.log.core().leader_epoch();
        let mut offsets = OffsetTable::default();
        self.log.replay(shared, |entry| {
            match entry {
                Entry::Record { at, transaction, key, value } => {
                    let record = GroupRecord::decode(key, value).map_err(corrupt)?;
                    offsets.apply(RecordPlace { offset: at, transaction }, record);
                }
                Entry::Marker { producer, outcome } => offsets.end_transaction(producer, outcome),
            }
            Ok(())
        })?;
        (self.offsets, self.epoch) = (offsets, Some(epoch));
        Ok(())
    }

    /// Whether the records were written is for the log to say.
    fn on_failure(&mut self, error: &Error) {
        if error.written() != Written::No {
            self.epoch = None;
        }
    }

    /// What was appended under another leader may stand elsewhere than the table thinks.
    fn check_leader(&mut self, core: &Core) {
        self.epoch = self.epoch.filter(|epoch| *epoch == core.leader_epoch());
    }

    fn rewrite_if_due(&mut self, shared: &Shared) {
        if !self.log.rewrite_is_due() || self.rewritten.is_some() {
            return;
        }
        let live = self.offsets.live().filter_map(|(at, record)| {
            Some(Live { at, key: record.key(), value: record.value()? })
        });
        match self.log.rewrite(shared, live) {
            Ok(rewritten) => self.rewritten = Some(rewritten),
            Err(error) => {
                self.on_failure(&error);
                report(shared, "rewriting the offsets of groups", &error);
            }
        }
    }
}

fn corrupt(source: crate::error::DecodeError) -> Error {
    let partition = TopicPartition::new(GROUP_TOPIC, 0);
    let offsets = Offset::ZERO..Offset::MAX;
    Error::Corrupt { partition, offsets, path: "".into(), position: 0, source }
}

pub(super) fn report(shared: &Shared, what: &str, error: &Error) {
    let reason = format!("{what}: {error}");
    shared.events.push(shared.clock.now(), EventKind::BackgroundFailed { partition: None, reason });
}
