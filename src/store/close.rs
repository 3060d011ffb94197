//! Closing a store: flush, vouch, write down, let go.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::partition::{Core, wake_all};
use crate::protocol::metadata::{MetadataRecord, MetadataState};
use crate::types::DiskId;

use parking_lot::{Condvar, Mutex, RwLockReadGuard};

use super::session::{LogEnd, Session};
use super::{Shared, Topic};

thread_local! {
    static IS_OWN: Cell<bool> = const { Cell::new(false) };
    static OPERATES: Cell<bool> = const { Cell::new(false) };
}

/// As long as it lives, this thread is one that a close may wait for: one of a store's own, or one that closes, or amid an
/// operator's call. What it calls, wakers and callbacks of the application, does not wait for a close.
pub(super) struct IsOwn {
    before: bool,
}

impl IsOwn {
    pub(super) fn mark() -> Self {
        Self { before: IS_OWN.replace(true) }
    }
}

impl Drop for IsOwn {
    fn drop(&mut self) {
        let _ = IS_OWN.try_with(|is_own| is_own.set(self.before));
    }
}

/// As long as it lives, a close does not let go of the directories: somebody is at work in them, besides the store's own
/// threads and whoever holds a partition.
pub(super) struct Operating<'a> {
    before: bool,
    _own: IsOwn,
    _held: RwLockReadGuard<'a, ()>,
}

impl Drop for Operating<'_> {
    fn drop(&mut self) {
        let _ = OPERATES.try_with(|operates| operates.set(self.before));
    }
}

/// How the store was closed, for those who find that somebody else is about it.
#[derive(Debug, Default)]
pub(super) struct Closing {
    outcome: Mutex<Option<Result<()>>>,
    bell: Condvar,
}

impl Closing {
    fn done(&self, outcome: &Result<()>) {
        self.outcome.lock().get_or_insert_with(|| outcome.clone());
        self.bell.notify_all();
    }

    fn wait(&self, timeout: Duration) -> Result<()> {
        if IS_OWN.get() {
            return Ok(());
        }
        let mut outcome = self.outcome.lock();
        self.bell.wait_while_for(&mut outcome, |outcome| outcome.is_none(), timeout);
        outcome.clone().unwrap_or_else(|| Err(Error::late("closing the store", timeout)))
    }
}

impl Shared {
    /// For a call that changes files by itself.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::ReadOnly`].
    pub(super) fn operate(&self) -> Result<Operating<'_>> {
        // A forked child finds the lock as it was.
        self.check_writable()?;
        // Calls are made within calls, by callbacks.
        let held = self.operating.read_recursive();
        self.check_writable()?;
        Ok(Operating { before: OPERATES.replace(true), _own: IsOwn::mark(), _held: held })
    }

    /// Closes the store once; others wait until it is. The work is done on a thread of its own where there may be a disk that
    /// hangs, so that the caller gets its answer in time.
    pub(super) fn close(self: &Arc<Self>, timeout: Duration) -> Result<()> {
        if !self.fork.is_owner() {
            return Ok(());
        }
        if self.closed.swap(true, Ordering::AcqRel) {
            return self.closing.wait(timeout);
        }
        let _closes = IsOwn::mark();
        let outcome = self.close_first(timeout);
        if !matches!(outcome, Err(Error::TimedOut { .. })) {
            self.closing.done(&outcome);
        }
        outcome
    }

    fn close_first(self: &Arc<Self>, timeout: Duration) -> Result<()> {
        let waiting = std::mem::take(&mut *self.told_of_close.lock());
        wake_all(waiting);
        if self.options.read_only {
            return Ok(());
        }
        let workers = self.workers.lock().take();
        // A callback amid an operator's call does not wait for that call.
        let operates = OPERATES.get();
        match workers {
            None => self.close_all(operates),
            Some(workers) => {
                let shared = Arc::clone(self);
                workers.finish(timeout, move || {
                    let outcome = shared.close_all(operates);
                    shared.closing.done(&outcome);
                    outcome
                })?
            }
        }
    }

    /// Ends appends, flushes every log, and writes the session files of the disks on which all of that went
    /// well.
    fn close_all(self: &Arc<Self>, operates: bool) -> Result<()> {
        self.chores.close();
        // The thread that would tell them has ended, and who waits for such a disk may hold what is needed next.
        self.fence_left_behind();
        if let Some(transactions) = self.known_transactions() {
            transactions.note_all(self);
        }
        let mut outcome = Ok(());
        let disks = self.online_disks();
        // Of those that are called clean; whose replicas are not all settled goes out.
        let mut sessions: BTreeMap<_, _> =
            disks.iter().map(|disk| (disk.id, disk.session.lock().clone())).collect();
        let cores = self.cores();
        for (topic, core) in &cores {
            core.stop_appends();
            // Nobody else tells it any more that it is to do without a disk.
            core.fence_left_behind();
            let key = (topic.id, core.partition().partition());
            let settled = core.settle_for_close(self.clock.now());
            // A replica that was taken out of service, perhaps just now, may have more than anybody knows.
            let is_settled = |disk: &DiskId| settled.iter().any(|(settled, _)| settled == disk);
            for disk in core.replicas().iter().filter(|disk| !is_settled(disk)) {
                sessions.remove(disk);
            }
            for (disk, settled) in settled {
                match settled {
                    Ok((end, producers)) => {
                        let end = LogEnd { end, producers, ..LogEnd::default() };
                        sessions.entry(disk).and_modify(|left| _ = left.ends.insert(key, end));
                    }
                    Err(error) => {
                        sessions.remove(&disk);
                        outcome = outcome.and(Err(error));
                    }
                }
            }
            // A flush that failed just now must be known to the next open.
            let reign = core.leader_epoch();
            self.settle_one(core);
            if core.leader_epoch() != reign {
                // The next leader may have less than the others were left with.
                core.replicas().iter().for_each(|disk| _ = sessions.remove(disk));
            }
            core.close();
        }
        self.unrecovered_on().iter().for_each(|disk| _ = sessions.remove(disk));
        // Not before: who holds what this takes may wait for a log.
        if let Some(groups) = self.groups.get() {
            groups.wake_waiting();
        }
        let mut metadata = self.metadata.lock();
        if outcome.is_ok() {
            let last_words = last_words(&cores, metadata.state());
            outcome = metadata.commit_all(&last_words);
        }
        if metadata.is_in_doubt() {
            outcome = outcome.and(Err(Error::Closed));
        }
        let online = disks.iter().filter(|disk| disk.is_online());
        for disk in online.filter(|_| !metadata.is_in_doubt()) {
            if let Some(session) = sessions.remove(&disk.id) {
                let (cache, (metadata, disks)) = (disk.disk.cache_id(), metadata.witnessed());
                let session = Session { clean: true, cache, metadata, disks, ..session };
                outcome = outcome.and(session.write(&*disk.disk, self.id));
            }
        }
        metadata.close();
        drop(metadata);
        self.await_others(operates);
        for disk in self.disks.read().values() {
            disk.lock.lock().take();
        }
        // Who waits for what will not come is told so.
        self.chores.end();
        if let Some(transactions) = self.known_transactions() {
            transactions.wake_waiting();
        }
        outcome
    }

    /// The disks that hold what the opening could not recover, and nobody has since: the next opening is to try again.
    fn unrecovered_on(&self) -> Vec<DiskId> {
        let topics: Vec<_> = self.topics.read().values().cloned().collect();
        let mut left = Vec::new();
        for topic in topics {
            let slots = topic.slots.read().clone();
            left.extend((0..).zip(slots).filter_map(|(number, slot)| {
                let is_open = || slot.core.try_lock().is_some_and(|core| core.is_some());
                let is_left = slot.is_unrecovered.load(Ordering::Acquire) && !is_open();
                is_left.then_some((topic.id, number))
            }));
        }
        let metadata = self.metadata.lock();
        let known = left.iter().filter_map(|(id, number)| metadata.state().partition(*id, *number));
        known.flat_map(|known| known.replicas.clone()).collect()
    }

    /// Waits for those that are at work in the directories. They have not long to go: nothing is let in any more, and
    /// nothing is written down.
    fn await_others(&self, operates: bool) {
        let topics: Vec<_> = self.topics.read().values().cloned().collect();
        for slot in topics.iter().flat_map(|topic| topic.slots.read().clone()) {
            // Somebody opens it, and closes it as well.
            drop(slot.core.lock());
        }
        if !operates {
            drop(self.operating.write());
        }
    }
}

/// How far each partition could be read, which the next open does not know before enough replicas are in sync. Of who leads
/// and who is in sync it says what is written down already: that may have changed until now.
fn last_words(cores: &[(Arc<Topic>, Arc<Core>)], state: &MetadataState) -> Vec<MetadataRecord> {
    let words = cores.iter().filter_map(|(topic, core)| {
        let (id, number) = (topic.id, core.partition().partition());
        let known = state.partition(id, number)?;
        let high_watermark = core.last_watermark(known.leader_epoch)?;
        (high_watermark > known.high_watermark).then(|| MetadataRecord::LeaderChanged {
            id,
            partition: number,
            leader: known.leader,
            epoch: known.leader_epoch,
            isr: known.isr.clone(),
            eligible: known.eligible.clone(),
            start: None,
            high_watermark,
        })
    });
    words.collect()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;
    use crate::config::TopicConfig;
    use crate::record::Record;
    use crate::storage::simulated::{SimDisk, SyncFault};
    use crate::store::{Store, StoreBuilder};
    use crate::types::{Acks, DiskId, Flush, LeaderEpoch, Offset};

    /// They gave a disk that had failed meanwhile its place in the in-sync set back: the next opening could have it lead
    /// without what was acknowledged since.
    #[test]
    fn the_last_words_tell_of_the_watermark_and_of_nothing_else() {
        let builder = Store::builder().simulated_disk(SimDisk::new(0));
        let store = builder.simulated_disk(SimDisk::new(1)).open().unwrap();
        store.create_topic("t", TopicConfig::new().replication_factor(2)).unwrap();
        store.partition("t", 0).unwrap().append(&[Record::new("v")], Acks::All).unwrap();
        let shared = &store.handle.shared;
        let cores = shared.cores();
        let (topic, core) = cores.first().expect("one partition");
        let told = |epoch, isr: &[DiskId], high_watermark| MetadataRecord::LeaderChanged {
            id: topic.id,
            partition: 0,
            leader: Some(DiskId(0)),
            epoch,
            isr: isr.to_vec(),
            eligible: Vec::new(),
            start: None,
            high_watermark,
        };
        let mut metadata = shared.metadata.lock();
        let alone = [DiskId(0)];
        metadata.commit_all(&[told(core.leader_epoch(), &alone, Offset::ZERO)]).unwrap();
        let words = last_words(&cores, metadata.state());
        assert_eq!(words, [told(core.leader_epoch(), &alone, Offset(1))]);
        metadata.commit_all(&words).unwrap();
        assert!(last_words(&cores, metadata.state()).is_empty(), "it is known");
        let later = LeaderEpoch(core.leader_epoch().0 + 1);
        metadata.commit_all(&[told(later, &alone, Offset::ZERO)]).unwrap();
        assert!(last_words(&cores, metadata.state()).is_empty(), "of another reign");
    }

    /// Its disk was called clean, without a word of that log: the next opening looked at nothing of it, took it for flushed,
    /// and knew of no transaction there. What was aborted later was shown as committed.
    #[test]
    fn a_disk_whose_replica_was_taken_out_of_service_amid_the_close_is_not_called_clean() {
        let disks = [0, 1].map(SimDisk::new);
        let all = |builder: StoreBuilder, disk: &SimDisk| builder.simulated_disk(disk.clone());
        let store = disks.iter().fold(Store::builder(), all).open().unwrap();
        store.create_topic("t", TopicConfig::new().replication_factor(2)).unwrap();
        store.partition("t", 0).unwrap().append(&[Record::new("v")], Acks::All).unwrap();
        let (_, core) = store.handle.shared.cores().pop().expect("one partition");
        // As `stop_disk` does, when it comes in between.
        assert!(core.stop_replica(DiskId(1), "it is stopped"));
        store.close(Duration::from_secs(30)).unwrap();
        let id = store.handle.shared.id;
        let is_clean = |disk: &SimDisk| Session::read(disk, id).unwrap().clean;
        assert_eq!([is_clean(&disks[0]), is_clean(&disks[1])], [true, false]);
    }

    /// It was called clean without having been looked at: what a power loss had left of it was taken for flushed.
    #[test]
    fn a_disk_with_a_log_that_could_not_be_recovered_is_not_called_clean() {
        let disks = [0, 1, 2].map(SimDisk::new);
        let on = |disks: &mut dyn Iterator<Item = &SimDisk>| {
            disks.fold(Store::builder(), |all, disk| all.simulated_disk(disk.clone()))
        };
        let store = on(&mut disks.iter()).open().unwrap();
        store.create_topic("t", TopicConfig::new().replication_factor(2)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        let [short, whole] = partition.replicas()[..] else { panic!("two replicas") };
        partition.append(&[Record::new("v")], Acks::All).unwrap();
        store.stop_disk(short).unwrap();
        partition.append(&[Record::new("v")], Acks::All).unwrap();
        disks.iter().for_each(SimDisk::kill);
        drop((partition, store));
        disks.iter().for_each(SimDisk::process_restart);
        let others = disks.iter().filter(|disk| !std::ptr::eq(*disk, &disks[usize::from(whole.0)]));
        let store = on(&mut { others }).allow_missing(whole).open().unwrap();
        assert!(store.partition("t", 0).is_err(), "who has all of it is away");
        store.close(Duration::from_secs(30)).unwrap();
        let session =
            |disk: DiskId| Session::read(&disks[usize::from(disk.0)], store.handle.shared.id);
        assert!(!session(short).unwrap().clean);
        let store = on(&mut disks.iter()).open().unwrap();
        assert_eq!(store.partition("t", 0).unwrap().log_end_offset(), Offset(2));
    }

    /// Their ends were written down before the election, which may cut them.
    #[test]
    fn disks_are_not_called_clean_whose_leader_failed_amid_the_close() {
        let disks = [0, 1, 2].map(SimDisk::new);
        let all = |builder: StoreBuilder, disk: &SimDisk| builder.simulated_disk(disk.clone());
        let store = disks.iter().fold(Store::builder(), all).open().unwrap();
        let config = TopicConfig::new().replication_factor(3).flush(Flush::Os);
        store.create_topic("t", config).unwrap();
        let partition = store.partition("t", 0).unwrap();
        partition.append(&[Record::new("v")], Acks::All).unwrap();
        let led = usize::from(partition.leader().unwrap().0);
        disks[led].fail_sync(1, SyncFault::CleanedPages);
        store.close(Duration::from_secs(30)).unwrap_err();
        let id = store.handle.shared.id;
        for disk in &disks {
            assert!(!Session::read(disk, id).unwrap().clean);
        }
        assert_ne!(partition.leader(), Some(DiskId(u16::try_from(led).unwrap())));
        drop((partition, store));
        disks.iter().for_each(SimDisk::heal);
        let store = disks.iter().fold(Store::builder(), all).open().unwrap();
        assert_eq!(store.partition("t", 0).unwrap().log_end_offset(), Offset(1));
    }

    /// The thread that would have made it had ended with its disk, and a close waited for it for ever.
    #[test]
    fn s18_a_close_does_not_wait_for_space_on_a_disk_that_was_stopped_meanwhile() {
        let builder = Store::builder().simulated_disk(SimDisk::new(0));
        let store = builder.simulated_disk(SimDisk::new(1)).open().unwrap();
        store.create_topic("t", TopicConfig::new().replication_factor(2)).unwrap();
        store.partition("t", 0).unwrap().append(&[Record::new("v")], Acks::All).unwrap();
        let partition = store.partition("t", 0).unwrap();
        let core = Arc::clone(partition.core().unwrap());
        let led = core.asks_for_room();
        let (done, stopped) = channel();
        thread::spawn(move || {
            core.stop_appends();
            let _ = done.send(());
        });
        while partition.append(&[Record::new("v")], Acks::All).is_ok() {}
        store.handle.shared.disk(led).unwrap().attention.abandon();
        stopped.recv_timeout(Duration::from_secs(30)).expect("it is waited for no more");
    }
}
