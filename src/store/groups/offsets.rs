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
use crate::partition::{
    Author, Core, EventKind, Placed, Ticket, Wait, Waiting, postpone, wake_all,
};
use crate::protocol::group::assignment::PartitionId;
use crate::protocol::group::offsets::{OffsetTable, RecordPlace};
use crate::protocol::group::records::{CommittedOffset, GroupRecord};
use crate::record::{Marker, Record};
use crate::store::Shared;
use crate::store::internal_topic::{Entry, InternalTopic, Live, Rewritten, safe_end};
use crate::types::{Acks, LeaderEpoch, Offset, Outcome, ProducerSequence, TopicPartition};

use super::{GROUP_TOPIC, Held, shown};

/// Records in one batch, about: far below what a batch may have.
const BATCH_BYTES: usize = 1 << 20;
/// What a record has besides texts, about.
const RECORD_BYTES: usize = 64;

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
    /// Where the last transaction ended that nothing but its marker here decides: what it sent is no safer than that.
    own_end: Offset,
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
            own_end: Offset::ZERO,
            rewritten: None,
            wakers: Vec::new(),
        };
        let patience = shared.patience(shared.options.append_timeout);
        let epoch = core.leader_epoch();
        table.read(epoch, safe_end(shared, &core, patience)?)?;
        Ok(Self { core, partition, table: Mutex::new(table), decided: Condvar::new() })
    }

    /// Where the log is, for transactions that write to it.
    pub(super) fn partition(&self) -> PartitionId {
        self.partition
    }

    fn lock(&self, shared: &Shared) -> Result<MutexGuard<'_, Table>> {
        loop {
            let mut table = self.table.lock();
            // First: what is read under another than it is read again.
            let epoch = self.core.leader_epoch();
            if table.epoch == Some(epoch) {
                return Ok(table);
            }
            match safe_end(shared, &self.core, Duration::ZERO) {
                Ok(end) => {
                    table.read(epoch, end)?;
                    self.decided.notify_all();
                }
                Err(Error::TimedOut { .. }) => {
                    // Whoever tells of another leader does not wait for it.
                    drop(table);
                    let patience = shared.patience(shared.options.append_timeout);
                    safe_end(shared, &self.core, patience)?;
                }
                Err(error) => return Err(error),
            }
        }
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
        let _postponed = postpone();
        let mut table = self.lock(shared)?;
        let placed = table.append(shared, author, records)?;
        table.check_leader(&self.core);
        table.rewrite_if_due(shared);
        Ok(shared.ticket_of(&self.core, placed, Acks::All))
    }

    /// Appends records in as many batches as they take, as a transaction of `author` that ends here: all of them count, or
    /// none. The caller waits.
    ///
    /// # Errors
    /// As for an append. [`Error::TimedOut`] if the leader changed meanwhile: which of them count, the log says.
    pub(super) fn append_together(
        &self,
        shared: &Arc<Shared>,
        author: &Author,
        records: &[GroupRecord],
    ) -> Result<Ticket> {
        let _postponed = postpone();
        // Nobody else's marker comes in between.
        let mut table = self.lock(shared)?;
        let epoch = self.core.leader_epoch();
        let mut author = *author;
        let appended = batches(records).try_for_each(|batch| {
            table.append(shared, Some(&author), batch.to_vec())?;
            author.producer.sequence += batch.len() as u64;
            Ok(())
        });
        // Another leader may lack the last of them.
        let is_whole = appended.is_ok() && self.core.leader_epoch() == epoch;
        let outcome = if is_whole { Outcome::Committed } else { Outcome::Aborted };
        let ProducerSequence { id, epoch: of, .. } = author.producer;
        let ended = table.end_own(shared, &Marker { producer: id, epoch: of, outcome });
        if let Err(error) = &ended {
            shared.look_at_transactions_of(&self.core);
            if error.written() == Written::No {
                // No id knows it: the marker that it gets one day is an abort's.
                table.offsets.end_transaction(id, Outcome::Aborted);
            }
        }
        // What ends with an abort never counts.
        appended.map_err(Error::of_others)?;
        let placed = ended?;
        if !is_whole || self.core.leader_epoch() != epoch {
            table.epoch = None;
            let what = "committing offsets under one leader";
            let unknown = if is_whole { Error::in_doubt } else { Error::late };
            return Err(unknown(what, Duration::ZERO));
        }
        table.rewrite_if_due(shared);
        Ok(shared.ticket_of(&self.core, placed, Acks::All))
    }

    /// Appends tombstones, in as many batches as they take. The caller waits for all: another leader may lack the first of
    /// them and have the last. After a failure some may be there, and may be appended again.
    ///
    /// # Errors
    /// As for an append.
    pub(super) fn take_back(
        &self,
        shared: &Arc<Shared>,
        tombstones: &[GroupRecord],
    ) -> Result<Vec<Ticket>> {
        let taken = batches(tombstones).map(|batch| self.append(shared, None, batch.to_vec()));
        let taken = taken.collect();
        // What was pending may be gone.
        self.look_again();
        taken
    }

    /// Appends the end of a transaction, which decides about the offsets that it has sent.
    ///
    /// # Errors
    /// As for an append.
    pub(super) fn append_marker(&self, shared: &Shared, marker: &Marker) -> Result<Placed> {
        let _postponed = postpone();
        let mut table = self.lock(shared)?;
        let placed = table.end(shared, marker)?;
        table.check_leader(&self.core);
        drop(table);
        self.look_again();
        Ok(placed)
    }

    /// What the group has committed. Waits while a transaction is about to change it (GRP-21), and until a commit that is in
    /// the log is acknowledged: what another leader could lack is told to nobody.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when that takes longer than `wait`.
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
                let Some(last) = self.last_unacknowledged(&found) else {
                    return Ok(found.into_iter().map(|held| held.map(|(_, held)| held)).collect());
                };
                let reign = self.core.leader_epoch();
                drop(table);
                let left = deadline.map_or(wait, |at| at.saturating_duration_since(Instant::now()));
                self.wait_for(shared, last, reign, left)?;
                table = self.lock(shared)?;
                continue;
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
                return Err(Error::late(what, wait));
            }
            drop(table);
            table = self.lock(shared)?;
        }
    }

    /// As [`Offsets::committed`]; instead of waiting for a transaction, has `waker` woken when something was decided; instead of
    /// waiting for an acknowledgement, tells whether each is acknowledged.
    pub(super) fn committed_now(
        &self,
        shared: &Shared,
        group: &str,
        partitions: &[PartitionId],
        waker: &Waker,
    ) -> Result<Option<Vec<Option<Held>>>> {
        let mut table = self.lock(shared)?;
        let Some(found) = table.stable(group, partitions) else {
            if !table.wakers.iter().any(|known| known.will_wake(waker)) {
                table.wakers.push(waker.clone());
            }
            return Ok(None);
        };
        let safe = self.core.high_watermark();
        let held = |(at, committed)| Held { committed: shown(committed), acknowledged: at < safe };
        Ok(Some(found.into_iter().map(|found| found.map(held)).collect()))
    }

    /// Which of the records that were found is the last that is not acknowledged.
    fn last_unacknowledged(&self, found: &[Option<(Offset, CommittedOffset)>]) -> Option<Offset> {
        let safe = self.core.high_watermark();
        found.iter().flatten().map(|(at, _)| *at).filter(|at| *at >= safe).max()
    }

    /// Waits until the record at `last` is acknowledged, or is not in the log of another leader.
    fn wait_for(
        &self,
        shared: &Shared,
        last: Offset,
        reign: LeaderEpoch,
        wait: Duration,
    ) -> Result<()> {
        shared.check_open()?;
        let wait = shared.patience(wait);
        let acknowledged = Wait::new(last..last.next(), Acks::All, reign);
        match self.core.wait_settled(&acknowledged, wait, &|| shared.settle_one(&self.core)) {
            Err(Error::NoLeader { .. }) if self.core.leader_epoch() != reign => Ok(()),
            outcome => outcome.map_err(Error::of_others),
        }
    }

    /// Something was decided, or another leader may lack what was pending, and get no marker for it: who waits looks again.
    pub(super) fn look_again(&self) {
        let wakers = std::mem::take(&mut self.table.lock().wakers);
        self.decided.notify_all();
        wake_all(wakers);
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
    /// Appends records as one batch, and applies them.
    fn append(
        &mut self,
        shared: &Shared,
        author: Option<&Author>,
        records: Vec<GroupRecord>,
    ) -> Result<Placed> {
        let encoded: Vec<_> = records.iter().map(|record| (record.key(), record.value())).collect();
        let encoded: Vec<_> = encoded
            .iter()
            .map(|(key, value)| match value {
                Some(value) => Record::new(value).key(key),
                None => Record::tombstone(key),
            })
            .collect();
        let placed = self.log.append(shared, author, &encoded);
        let placed = placed.inspect_err(|error| self.on_failure(error))?;
        let (Placed::Done(appended) | Placed::Waits(Waiting { appended, .. })) = &placed;
        let transaction =
            author.filter(|author| author.transactional).map(|author| author.producer.id);
        for (at, record) in (appended.offsets.start.0..).map(Offset).zip(records) {
            self.offsets.apply(RecordPlace { offset: at, transaction }, record);
        }
        Ok(placed)
    }

    /// Appends the end of a transaction, and applies it.
    fn end(&mut self, shared: &Shared, marker: &Marker) -> Result<Placed> {
        let append = |core: &Core| core.append_marker(marker, Acks::All);
        let placed = shared.placed_by_any(self.log.core(), append);
        let placed = placed.inspect_err(|error| self.on_failure(error))?;
        self.offsets.end_transaction(marker.producer, marker.outcome);
        Ok(placed)
    }

    /// As [`Table::end`], of a transaction of the table's own.
    fn end_own(&mut self, shared: &Shared, marker: &Marker) -> Result<Placed> {
        let placed = self.end(shared, marker)?;
        let (Placed::Done(appended) | Placed::Waits(Waiting { appended, .. })) = &placed;
        self.own_end = appended.offsets.start;
        Ok(placed)
    }

    /// What is committed, and up to where the log has to be safe for it; `None` while any of it is about to change.
    fn stable(
        &self,
        group: &str,
        partitions: &[PartitionId],
    ) -> Option<Vec<Option<(Offset, CommittedOffset)>>> {
        let found = partitions.iter().map(|partition| {
            let held = self.offsets.committed_stable(group, *partition).ok()?;
            Some(held.map(|(at, held)| (at.max(self.own_end), held.clone())))
        });
        found.collect()
    }

    fn read(&mut self, epoch: LeaderEpoch, end: Offset) -> Result<()> {
        (self.epoch, self.own_end) = (None, Offset::ZERO);
        let mut offsets = OffsetTable::default();
        self.log.replay(end, |entry| {
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
        // A table that is to be read anew may have what the log has lost.
        let Some(epoch) = self.epoch else { return };
        if !self.log.rewrite_is_due() || self.rewritten.is_some() {
            return;
        }
        let live = self.offsets.live().filter_map(|(at, record)| {
            Some(Live { at, key: record.key(), value: record.value()? })
        });
        match self.log.rewrite(epoch, live) {
            Ok(rewritten) => self.rewritten = Some(rewritten),
            Err(error) => {
                self.on_failure(&error);
                report(shared, "rewriting the offsets of groups", &error);
            }
        }
    }
}

/// Records in pieces that are a batch each.
pub(super) fn batches(records: &[GroupRecord]) -> impl Iterator<Item = &[GroupRecord]> {
    in_pieces(records, |record| match record {
        GroupRecord::Offset { group, committed, .. } => {
            group.len() + committed.as_ref().map_or(0, |committed| committed.metadata.len())
        }
        GroupRecord::Group { group, .. } => group.len(),
    })
}

/// Entries in pieces of about [`BATCH_BYTES`]; `texts` tells what an entry has of texts.
pub(super) fn in_pieces<T>(
    entries: &[T],
    texts: impl Fn(&T) -> usize,
) -> impl Iterator<Item = &[T]> {
    let mut bytes = 0;
    entries.chunk_by(move |_, next| {
        bytes += RECORD_BYTES + texts(next);
        let goes_on = bytes < BATCH_BYTES;
        bytes = if goes_on { bytes } else { 0 };
        goes_on
    })
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Wake;

    use super::*;
    use crate::config::TopicConfig;
    use crate::storage::simulated::{Hang, SimDisk};
    use crate::store::Store;
    use crate::store::groups::{ConsumerGroupMetadata, taken_back};
    use crate::types::{Flush, Isolation, ProducerId, Timestamp};

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// What was pending was gone, and with it the marker that was to wake them: a consumer waited for ever.
    #[test]
    fn who_waits_for_a_pending_offset_that_another_leader_lacks_looks_again() {
        let disks: Vec<_> = (0..3).map(SimDisk::new).collect();
        let builder =
            disks.iter().fold(Store::builder(), |all, disk| all.simulated_disk(disk.clone()));
        let store = builder.open().unwrap();
        store.create_topic("t", TopicConfig::new().replication_factor(3)).unwrap();
        let (group, name) = (ConsumerGroupMetadata::of_group("g"), TopicPartition::new("t", 0));
        let offset = (name, Offset(0).into());
        store.commit_without_members(&group, &[offset], Duration::from_secs(1)).unwrap();
        let _held = store.producer().transactional_id("id").build().unwrap();
        store.run_background();
        let groups = store.shared().groups().unwrap();
        let topic = store.shared().topic("t").unwrap().id;
        let place = RecordPlace { offset: Offset(99), transaction: Some(ProducerId(99)) };
        let id = PartitionId { topic, partition: 0 };
        let pending = taken_back("g", id);
        groups.offsets.table.lock().offsets.apply(place, pending);
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let ask = || store.committed_offsets_now("g", &[id], &waker).unwrap();
        assert_eq!(ask(), None);
        store.stop_disk(groups.offsets.core.leader().unwrap()).unwrap();
        store.run_background();
        assert!(woken.0.load(Ordering::Relaxed));
        let held = Held { committed: Offset(0).into(), acknowledged: true };
        assert_eq!(ask(), Some(vec![Some(held)]));
    }

    /// What was pending was gone with its group, and they waited for the transaction all the same.
    #[test]
    fn who_waits_for_a_pending_offset_that_is_taken_back_looks_again() {
        let store = Store::in_memory(1).unwrap();
        store.create_topic("t", TopicConfig::new()).unwrap();
        let groups = store.shared().groups().unwrap();
        let topic = store.shared().topic("t").unwrap().id;
        let id = PartitionId { topic, partition: 0 };
        let place = RecordPlace { offset: Offset(0), transaction: Some(ProducerId(99)) };
        let end = groups.offsets.table.lock().log.core().log_end();
        assert_eq!(end, Offset(0));
        let ask = |waker: &Waker| store.committed_offsets_now("g", &[id], waker).unwrap();
        // Something comes before it, so that the tombstone is behind it.
        let (group, name) = (ConsumerGroupMetadata::of_group("h"), TopicPartition::new("t", 0));
        let offset = (name, Offset(0).into());
        store.commit_without_members(&group, &[offset], Duration::from_secs(1)).unwrap();
        groups.offsets.table.lock().offsets.apply(place, taken_back("g", id));
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        assert_eq!(ask(&waker), None);
        store.delete_group("g").unwrap();
        assert!(woken.0.load(Ordering::Relaxed));
        assert_eq!(ask(&waker), Some(vec![None]));
    }

    /// It held the table meanwhile: a close, and who tells of another leader, waited as long as an append may take.
    #[test]
    fn who_waits_to_read_the_table_anew_holds_up_nobody() {
        let disks: Vec<_> = (0..3).map(SimDisk::new).collect();
        let builder =
            disks.iter().fold(Store::builder(), |all, disk| all.simulated_disk(disk.clone()));
        let store = builder.threads().open().unwrap();
        store.create_topic("t", TopicConfig::new()).unwrap();
        let (group, name) = (ConsumerGroupMetadata::of_group("g"), TopicPartition::new("t", 0));
        let offset = (name.clone(), Offset(0).into());
        let long = Duration::from_secs(20);
        store.commit_without_members(&group, std::slice::from_ref(&offset), long).unwrap();
        let groups = store.shared().groups().unwrap();
        let leader = groups.offsets.core.leader().unwrap();
        let followers = || disks.iter().enumerate().filter(|(at, _)| *at != usize::from(leader.0));
        followers().for_each(|(_, disk)| disk.hang(Hang::Everything));
        // It is in the leader's log, and nowhere else; and the table is to be read anew.
        let _ticket = store.begin_commit_without_members(&group, &[offset]).unwrap();
        groups.offsets.table.lock().epoch = None;
        let is_held = std::thread::scope(|scope| {
            let asks = scope.spawn(|| store.committed_offsets("g", &[name], long));
            let begun = Instant::now();
            let mut is_held = false;
            while !is_held && begun.elapsed() < Duration::from_millis(100) {
                let table = groups.offsets.table.try_lock_for(Duration::from_secs(5));
                is_held = table.is_none_or(|table| table.epoch.is_some());
            }
            followers().for_each(|(_, disk)| disk.answer());
            assert_eq!(asks.join().unwrap().unwrap(), [Some(Offset(0).into())]);
            is_held
        });
        assert!(!is_held, "who asked held the table while a disk did not answer");
    }

    /// Who held what a close wants, and waited for a log, was waited for until his time was over.
    #[test]
    fn a_close_ends_the_logs_before_it_wants_the_table() {
        let store = Store::in_memory(1).unwrap();
        store.create_topic("t", TopicConfig::new()).unwrap();
        let groups = store.shared().groups().unwrap();
        let Offsets { core, table, .. } = &groups.offsets;
        let end = core.log_end();
        std::thread::scope(|scope| {
            let (begins, begun) = std::sync::mpsc::channel();
            let holds = scope.spawn(move || {
                let _table = table.lock();
                begins.send(()).unwrap();
                core.wait_for(end, Isolation::ReadUncommitted, Duration::from_secs(10))
            });
            begun.recv().unwrap();
            store.close(Duration::from_secs(20)).unwrap();
            let told = holds.join().unwrap();
            assert!(matches!(told, Err(Error::Closed)), "{told:?}");
        });
    }

    /// It was written again with the rest, and counted, though whoever had committed it had been told that it did not.
    #[test]
    fn what_another_leader_lacks_is_not_written_again() {
        let store = Store::in_memory(1).unwrap();
        store.create_topic("t", TopicConfig::new()).unwrap();
        let (group, name) = (ConsumerGroupMetadata::of_group("g"), TopicPartition::new("t", 0));
        let commit = |offset: Offset| {
            let offset = (name.clone(), offset.into());
            store.commit_without_members(&group, &[offset], Duration::from_secs(1)).unwrap();
        };
        commit(Offset(0));
        let groups = store.shared().groups().unwrap();
        let partition = PartitionId { topic: store.shared().topic("t").unwrap().id, partition: 0 };
        {
            let mut table = groups.offsets.table.lock();
            let other = taken_back(&"g".repeat(30_000), partition);
            while !table.log.rewrite_is_due() {
                table.append(store.shared(), None, vec![other.clone()]).unwrap();
            }
            // Of a leader that has failed, as it was learnt amid an append.
            let (_, held) = table.stable("g", &[partition]).unwrap().remove(0).unwrap();
            let committed = Some(CommittedOffset { offset: Offset(9), ..held });
            let lost = GroupRecord::Offset { group: "g".into(), partition, committed };
            let place = RecordPlace { offset: groups.offsets.core.log_end(), transaction: None };
            table.offsets.apply(place, lost);
            table.epoch = None;
            table.rewrite_if_due(store.shared());
        }
        groups.offsets.finish_rewrite(store.shared());
        let found = store.committed_offsets("g", &[name], Duration::from_secs(1)).unwrap();
        assert_eq!(found, [Some(Offset(0).into())]);
    }

    /// Its first batch was enough: a consumer that began behind it had nothing to commit, and a power loss took it back.
    #[test]
    fn what_was_committed_in_several_batches_is_acknowledged_when_their_end_is() {
        let builder = Store::builder().flush(Flush::OnAck).simulated_disk(SimDisk::new(1));
        let store = builder.open().unwrap();
        store.create_topic("t", TopicConfig::new()).unwrap();
        let shared = store.shared();
        let groups = shared.groups().unwrap();
        let Offsets { core, table, .. } = &groups.offsets;
        let partition = PartitionId { topic: shared.topic("t").unwrap().id, partition: 0 };
        let committed = CommittedOffset {
            offset: Offset(0),
            leader_epoch: None,
            committed_at: Timestamp(0),
            metadata: String::new(),
        };
        let (group, committed) = ("g".to_owned(), Some(committed));
        let record = GroupRecord::Offset { group, partition, committed };
        let author = shared.own_author().unwrap();
        let wait = |placed| {
            let ticket = shared.ticket_of(core, placed, Acks::All);
            ticket.wait(Duration::from_secs(1)).unwrap();
        };
        let sent = table.lock().append(shared, Some(&author), vec![record]).unwrap();
        wait(sent);
        let ProducerSequence { id: producer, epoch, .. } = author.producer;
        let marker = Marker { producer, epoch, outcome: Outcome::Committed };
        let ended = table.lock().end_own(shared, &marker).unwrap();
        let is_acknowledged = || {
            let held = store.committed_offsets_now("g", &[partition], Waker::noop()).unwrap();
            held.unwrap()[0].as_ref().unwrap().acknowledged
        };
        assert!(!is_acknowledged());
        wait(ended);
        assert!(is_acknowledged());
    }

    /// The last was waited for: another leader could lack those before it, and the group's offsets came back.
    #[test]
    fn every_batch_of_a_deletion_is_waited_for() {
        let store = Store::in_memory(1).unwrap();
        store.create_topic("t", TopicConfig::new().partitions(70)).unwrap();
        let groups = store.shared().groups().unwrap();
        let topic = store.shared().topic("t").unwrap().id;
        let name = "g".repeat(30_000);
        let gone = |partition| taken_back(&name, PartitionId { topic, partition });
        let tombstones: Vec<_> = (0..70).map(gone).collect();
        let tickets = groups.offsets.take_back(store.shared(), &tombstones).unwrap();
        let records = tickets.iter().map(|ticket| {
            let offsets = &ticket.appended().offsets;
            offsets.end.0 - offsets.start.0
        });
        assert!(tickets.len() > 1);
        assert_eq!(records.sum::<u64>(), 70);
    }
}
