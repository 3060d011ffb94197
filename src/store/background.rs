//! The store's background work, and the threads that do it.
//!
//! Each disk has a worker, so that a slow disk slows its own replicas only. Where there are several, each
//! also has a thread that flushes its followers, so that all disks flush at the same time, and one that finds out whether it answers
//! (its *pulse*); one more thread, *control*, makes changes of leaders durable; with one disk its worker does that. All they do are steps of `partition::Core` and [`Shared`], so a test can do them one by one.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::sync::{Arc, Weak};
use std::thread::{JoinHandle, ThreadId};
use std::time::Duration;

use parking_lot::Mutex;

use crate::config::Retention;
use crate::error::{Error, Result};
use crate::partition::{Attention, Core, EventKind, hangs, leave_calls_to};
use crate::protocol::metadata::MetadataRecord;
use crate::storage::{Clock, Pulse};
use crate::types::{Offset, Timestamp};

use super::callbacks::Callbacks;
use super::chores::Chores;
use super::close::IsOwn;
use super::disks::StoreDisk;
use super::layout;
use super::transactions::Transactions;
use super::{Shared, Topic};

/// An appender that fills what lies between two visits sooner than this outruns the worker; it readies its pages itself.
const PACED: Duration = Duration::from_millis(1);

/// Leaderships that go back to their preferred replicas in one round of control: each refuses appends for a moment.
const HAND_BACKS_MAX: usize = 64;

/// A producer that has not appended to a partition for this long is forgotten there (PROD-20; Kafka's
/// `producer.id.expiration.ms`).
const PRODUCER_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// The wall clock was set if it and the time that passed have parted by so much.
const STEP_MIN: Duration = Duration::from_secs(60 * 60);

/// The running threads.
#[derive(Debug)]
pub(super) struct Workers {
    /// Those that wait for what the others do, or for somebody who does.
    upper: Rank,
    /// Those that look after a disk's replicas. They wait for flushes, and for elections.
    disks: Rank,
    /// Those that flush, and the one that settles who leads.
    lower: Rank,
    /// Once a thread does them.
    chores: Option<Arc<Chores>>,
    callbacks: Arc<Callbacks>,
    shared: Weak<Shared>,
}

/// Threads that end together at a close, and what they take their work from.
#[derive(Debug, Default)]
struct Rank {
    threads: Vec<JoinHandle<()>>,
    queues: Vec<Arc<Attention>>,
    pulses: Vec<Arc<Pulse>>,
}

impl Rank {
    fn spawn(
        &mut self,
        name: String,
        queue: &Arc<Attention>,
        callbacks: &Arc<Callbacks>,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<()> {
        let callbacks = Arc::clone(callbacks);
        let work = move || {
            leave_calls_to(callbacks);
            work();
        };
        self.threads.push(start_thread(name, work)?);
        self.queues.push(Arc::clone(queue));
        Ok(())
    }

    fn serves(&self, queue: &Arc<Attention>) -> bool {
        self.queues.iter().any(|served| Arc::ptr_eq(served, queue))
    }

    /// Lets the threads end and waits for them, but for `own`, which cannot be waited for.
    fn end(self, own: ThreadId) {
        self.queues.iter().for_each(|queue| queue.stop());
        self.pulses.iter().for_each(|pulse| pulse.end());
        for thread in self.threads.into_iter().filter(|thread| thread.thread().id() != own) {
            let _ = thread.join();
        }
    }
}

/// What a worker remembers between its rounds.
#[derive(Debug, Default)]
struct Agenda {
    /// When each partition that wants to be seen again is due.
    again: HashMap<*const Core, (Weak<Core>, Duration)>,
    seen: HashMap<*const Core, Duration>,
    next_retention: Duration,
}

// The pointers in an agenda are names, never followed.

/// The time that passed under somebody's eyes.
#[derive(Debug, Default)]
pub(super) struct Watch {
    looked_at: Duration,
    time: Duration,
}

impl Watch {
    /// The time at a look `elapsed` into the clock's; since the last look no more than `step` counts.
    fn look(&mut self, elapsed: Duration, step: Duration) -> Duration {
        let passed = elapsed.saturating_sub(self.looked_at);
        self.looked_at = self.looked_at.max(elapsed);
        self.time = self.time.saturating_add(passed.min(step));
        self.time
    }
}

/// Whether the wall clock tells of age. Where it was set, what was appended before seems older or younger than it is; and
/// nobody knows whether it was while the store was closed, as by a machine whose clock forgets.
#[derive(Debug)]
pub(super) struct WallClock {
    /// What it showed when the store was opened, or it was last set, and when that was.
    showed: Timestamp,
    at: Duration,
}

impl WallClock {
    pub(super) fn new(clock: &Clock) -> Self {
        Self { showed: clock.now(), at: clock.elapsed() }
    }

    /// Whether it has been watched for `age`, and was not set.
    fn tells_age(&mut self, now: Timestamp, elapsed: Duration, age: Duration) -> bool {
        let passed = elapsed.saturating_sub(self.at);
        let due = self.showed.plus(passed);
        if now.since(due).max(due.since(now)) > STEP_MIN {
            *self = Self { showed: now, at: elapsed };
            return false;
        }
        passed >= age
    }
}

/// Starts the threads of every disk in service.
pub(super) fn start(shared: &Arc<Shared>) -> Result<Workers> {
    let mut workers = Workers {
        upper: Rank::default(),
        disks: Rank::default(),
        lower: Rank::default(),
        chores: None,
        callbacks: Arc::default(),
        shared: Arc::downgrade(shared),
    };
    for disk in shared.online_disks() {
        if let Err(error) = start_disk(shared, &mut workers, &disk) {
            // Those that run hold the directories.
            let _ = workers.finish(Duration::MAX, || ());
            return Err(error);
        }
    }
    Ok(workers)
}

/// Starts the threads of one disk, and those that a second disk makes necessary.
pub(super) fn start_disk(
    shared: &Shared,
    workers: &mut Workers,
    disk: &Arc<StoreDisk>,
) -> Result<()> {
    start_worker(workers, disk)?;
    if !shared.has_control() {
        return Ok(());
    }
    for disk in shared.online_disks() {
        if workers.lower.serves(&disk.flushes) {
            continue;
        }
        watch_pulse(shared, workers, &disk)?;
        let flushed = Arc::clone(&disk);
        let (name, callbacks) = (format!("oncelog-flush-{}", disk.id.0), &workers.callbacks);
        workers.lower.spawn(name, &disk.flushes, callbacks, move || {
            while let Some(cores) = flushed.flushes.wait(Duration::MAX) {
                let _at_work = flushed.at_work.read();
                cores.iter().for_each(|core| core.flush_on(flushed.id));
            }
        })?;
    }
    if workers.lower.serves(&shared.control) {
        return Ok(());
    }
    let (own, queue) = (workers.shared.clone(), Arc::clone(&shared.control));
    let (name, callbacks) = ("oncelog-control".into(), &workers.callbacks);
    workers.lower.spawn(name, &shared.control, callbacks, move || {
        let mut next = Duration::ZERO;
        loop {
            let Some(shared) = own.upgrade() else { return };
            let due = next.saturating_sub(shared.clock.elapsed());
            drop(shared);
            let Some(cores) = queue.wait(due) else { return };
            let Some(shared) = own.upgrade() else { return };
            shared.control_round(&cores, &mut next);
        }
    })
}

/// Starts the thread that finds out whether a disk answers. With one disk it would be of no use, nor where appends are written and
/// not stored; a clock that is moved by hand says nothing of how long that takes.
fn watch_pulse(shared: &Shared, workers: &mut Workers, disk: &StoreDisk) -> Result<()> {
    let stores = shared.clock.is_system() && disk.disk.stores_in_place();
    let pulse = disk.disk.pulse().filter(|_| stores);
    let Some(pulse) = pulse.filter(|pulse| pulse.begin(disk.disk.root())) else { return Ok(()) };
    let (watched, clock) = (Arc::clone(pulse), shared.clock.clone());
    let name = format!("oncelog-pulse-{}", disk.id.0);
    let thread =
        start_thread(name, move || watched.watch(&clock)).inspect_err(|_| pulse.give_up())?;
    workers.lower.threads.push(thread);
    workers.lower.pulses.push(Arc::clone(pulse));
    Ok(())
}

/// Starts the thread that looks after a disk's replicas, in the place of the last one.
fn start_worker(workers: &mut Workers, disk: &Arc<StoreDisk>) -> Result<()> {
    let (own, worked) = (workers.shared.clone(), Arc::clone(disk));
    let name = format!("oncelog-disk-{}", disk.id.0);
    workers.disks.spawn(name, &disk.attention, &workers.callbacks, move || {
        // Only now that it runs: where no thread is to be had, the last one stays.
        let number = worked.worker.fetch_add(1, Ordering::AcqRel) + 1;
        if number > 1
            && let Some(shared) = own.upgrade()
        {
            // The last one knew what was due when, and leaves what it has not come to.
            for (_, core) in shared.cores() {
                core.ask_for_attention_on(worked.id, &worked.attention);
            }
        }
        let mut agenda = Agenda::default();
        while worked.worker.load(Ordering::Acquire) == number {
            let Some(shared) = own.upgrade() else { return };
            let due = shared.next_due(&agenda).min(shared.scrub_due(&worked));
            drop(shared);
            let Some(cores) = worked.attention.wait(due) else { return };
            if worked.worker.load(Ordering::Acquire) != number {
                // Its place was taken as it went to wait: this was for its successor.
                for core in &cores {
                    core.ask_for_attention_on(worked.id, &worked.attention);
                }
                worked.attention.ring();
                return;
            }
            let Some(shared) = own.upgrade() else { return };
            let _at_work = worked.at_work.read();
            *worked.busy_since.lock() = Some(shared.clock.elapsed());
            shared.round(&worked, number, &mut agenda, cores);
            if worked.worker.load(Ordering::Acquire) == number {
                *worked.busy_since.lock() = None;
            }
        }
    })
}

impl Shared {
    /// A worker reads other disks than its own, and one of those may hang: another worker takes its place, lest its own
    /// disk's replicas of other partitions lag.
    fn relieve_workers(&self) {
        let patience = self.options.lag_max / 3;
        let elapsed = self.clock.elapsed();
        for disk in self.online_disks() {
            let mut busy = disk.busy_since.lock();
            if !busy.is_some_and(|since| elapsed.saturating_sub(since) > patience) {
                continue;
            }
            *busy = None;
            drop(busy);
            if let Some(workers) = &mut *self.workers.lock() {
                // Without a thread, it waits for the one that is busy.
                let _ = start_worker(workers, &disk);
            }
        }
    }

    /// Starts the thread that looks after the time-outs of transactions, where there are threads.
    pub(super) fn start_transactions(&self, transactions: &Arc<Transactions>) -> Result<()> {
        let mut workers = self.workers.lock();
        let Some(workers) = &mut *workers else { return Ok(()) };
        let (own, watched) = (workers.shared.clone(), Arc::clone(transactions));
        let (name, callbacks) = ("oncelog-transactions".into(), &workers.callbacks);
        workers.upper.spawn(name, transactions.queue(), callbacks, move || {
            let mut due = Duration::ZERO;
            while let Some(changed) = watched.queue().wait(due) {
                let Some(shared) = own.upgrade() else { return };
                due = watched.turn(&shared, &changed);
            }
        })
    }
}

/// Does something on a thread of its own, which may never return. Where none is to be had, the caller does it: a disk is not
/// taken for one that hangs because the process has too many threads.
pub(super) fn apart(work: impl FnOnce() + Send + 'static) {
    if let Some(work) = try_apart(work) {
        work();
    }
}

/// As [`apart`]; without a thread, the work comes back.
pub(super) fn try_apart<W: FnOnce() + Send + 'static>(work: W) -> Option<W> {
    let work = Arc::new(Mutex::new(Some(work)));
    let taken = Arc::clone(&work);
    let take = move || {
        let work = taken.lock().take();
        work.into_iter().for_each(|work| work());
    };
    match std::thread::Builder::new().name("oncelog-apart".into()).spawn(take) {
        Ok(_) => None,
        Err(_) => work.lock().take(),
    }
}

impl Shared {
    /// Does something with several disks at the same time, by threads that may be left behind, for as long as a disk is
    /// waited for. `None`: it has not answered. Where there are no threads, the caller does it.
    pub(super) fn on_each<T: Send + 'static>(
        &self,
        disks: &[Arc<StoreDisk>],
        patience: Duration,
        work: impl Fn(&StoreDisk) -> T + Send + Sync + 'static,
    ) -> Vec<Option<T>> {
        if self.workers.lock().is_none() {
            return disks.iter().map(|disk| Some(work(disk))).collect();
        }
        let work = Arc::new(work);
        let (sender, answers) = channel();
        for (at, disk) in disks.iter().enumerate() {
            let (work, sender, disk) = (Arc::clone(&work), sender.clone(), Arc::clone(disk));
            apart(move || {
                let _ = sender.send((at, work(&disk)));
            });
        }
        drop(sender);
        let mut outcomes: Vec<_> = disks.iter().map(|_| None).collect();
        let until = self.clock.elapsed() + patience;
        while let Ok((at, outcome)) =
            answers.recv_timeout(until.saturating_sub(self.clock.elapsed()))
        {
            outcomes[at] = Some(outcome);
        }
        outcomes
    }
}

fn start_thread(name: String, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        let _own = IsOwn::mark();
        work();
    });
    thread.map_err(|error| Error::io("", "start a thread", error))
}

impl Workers {
    /// Starts the thread that does chores, unless it runs.
    pub(super) fn start_chores(&mut self, chores: &Arc<Chores>) -> Result<()> {
        if self.chores.is_some() {
            return Ok(());
        }
        let (done, callbacks) = (Arc::clone(chores), Arc::clone(&self.callbacks));
        let work = move || {
            leave_calls_to(callbacks);
            done.work();
        };
        self.upper.threads.push(start_thread("oncelog-chores".into(), work)?);
        self.chores = Some(Arc::clone(chores));
        Ok(())
    }

    /// Ends the threads and does `last` when they have ended, all of it within `timeout`.
    ///
    /// # Errors
    /// [`Error::TimedOut`]: a disk hangs. What is under way goes on by itself.
    pub(super) fn finish<T: Send + 'static>(
        self,
        timeout: Duration,
        last: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        if let Some(chores) = &self.chores {
            chores.stop();
        }
        let (sender, finished) = channel();
        // A callback or a waker may close on one of them.
        let own = std::thread::current().id();
        apart(move || {
            self.upper.end(own);
            self.disks.end(own);
            self.lower.end(own);
            let _own = IsOwn::mark();
            let outcome = last();
            self.callbacks.make_all();
            let _ = sender.send(outcome);
        });
        finished.recv_timeout(timeout).map_err(|_| Error::late("closing the store", timeout))
    }
}

impl Shared {
    /// Whether replicas on several disks need looking after.
    fn has_control(&self) -> bool {
        self.disks.read().len() > 1
    }

    fn next_due(&self, agenda: &Agenda) -> Duration {
        let due = agenda.again.values().map(|(_, due)| *due).min();
        let wake = due.unwrap_or(Duration::MAX).min(agenda.next_retention);
        wake.saturating_sub(self.clock.elapsed())
    }

    /// One round of a disk's worker, unless another takes its place meanwhile.
    fn round(
        &self,
        disk: &Arc<StoreDisk>,
        worker: u64,
        agenda: &mut Agenda,
        mut cores: Vec<Arc<Core>>,
    ) {
        let elapsed = self.clock.elapsed();
        let now = self.clock.now();
        self.rebuild_on(disk);
        agenda.again.retain(|_, (core, due)| {
            if *due > elapsed {
                return true;
            }
            cores.extend(core.upgrade());
            false
        });
        for core in &cores {
            if disk.worker.load(Ordering::Acquire) != worker {
                return;
            }
            let name = Arc::as_ptr(core);
            let last = agenda.seen.insert(name, elapsed);
            let paced = last.is_none_or(|last| elapsed.saturating_sub(last) >= PACED);
            let tended = core.tend(disk.id, now, paced);
            if let Some(span) = tended.again_in {
                agenda.again.insert(name, (Arc::downgrade(core), elapsed.saturating_add(span)));
            }
            if core.is_led_by(disk.id) {
                self.apply_retention(core, now);
            }
        }
        if elapsed >= agenda.next_retention {
            agenda.next_retention = elapsed.saturating_add(self.options.retention_check);
            agenda.seen.retain(|_, last| elapsed.saturating_sub(*last) < PACED * 100);
            self.retain_on(disk, now);
        }
        if !self.has_control() {
            self.settle_reigns();
        }
        self.scrub(disk, now);
    }

    /// One round of the control thread.
    fn control_round(&self, cores: &[Arc<Core>], next: &mut Duration) {
        for core in cores {
            core.control_taken();
            self.settle_one(core);
        }
        let elapsed = self.clock.elapsed();
        if elapsed >= *next {
            // Twice within the lag that is allowed (REPL-13), and often enough for those that wait to join.
            let tick = (self.options.lag_max / 2).min(Duration::from_millis(50));
            *next = elapsed + tick.max(Duration::from_millis(1));
            let watched = self.watch();
            for (_, core) in self.cores() {
                core.tick(watched, self.options.lag_max);
                if let Some(disk) = core.hung_leader(watched, self.options.lag_max)
                    && let Some(disk) = self.online_disk(disk)
                {
                    self.lose_disk(&disk, &hangs());
                }
            }
            self.prefer_leaders(self.clock.now());
            self.settle_reigns();
            self.lose_failed_disks();
            self.rebuild_failed();
            self.relieve_workers();
        }
    }

    /// The time in which replicas were watched. It never jumps: whoever could not be watched, as the process was stopped or
    /// the machine slept, is not judged by that time.
    pub(super) fn watch(&self) -> Duration {
        // Without threads nobody looks in between.
        let step = if self.options.background { self.options.lag_max / 4 } else { Duration::MAX };
        self.watch.lock().look(self.clock.elapsed(), step)
    }

    /// Gives leaderships back to the replicas that are preferred, some at a time.
    fn prefer_leaders(&self, now: Timestamp) {
        if self.options.rebalance {
            let willing = self.cores().into_iter().filter(|(_, core)| core.prefer_leader(now));
            let _ = willing.take(HAND_BACKS_MAX).count();
        }
    }

    /// Retention of what the disk leads.
    fn retain_on(&self, disk: &StoreDisk, now: Timestamp) {
        if self.online_disks().first().is_some_and(|first| first.id == disk.id) {
            self.expire_offsets();
        }
        for (_, core) in self.cores() {
            if core.is_led_by(disk.id) {
                core.roll_if_due(now);
                self.apply_retention(&core, now);
            }
        }
    }

    #[cfg(any(test, feature = "simulation"))]
    fn retain_all(&self, now: Timestamp) {
        self.expire_offsets();
        for (_, core) in self.cores() {
            core.roll_if_due(now);
            self.apply_retention(&core, now);
        }
    }

    /// Everything that is due, for stores without threads.
    #[cfg(any(test, feature = "simulation"))]
    pub(super) fn run_background(self: &Arc<Self>) {
        for disk in self.online_disks() {
            let mut agenda = Agenda { next_retention: Duration::MAX, ..Agenda::default() };
            let queued = disk.attention.take();
            let mut cores: Vec<_> = self.cores().into_iter().map(|(_, core)| core).collect();
            cores.retain(|core| !queued.iter().any(|other| Arc::ptr_eq(core, other)));
            cores.extend(queued);
            let number = disk.worker.load(Ordering::Acquire);
            self.round(&disk, number, &mut agenda, cores);
            for core in disk.flushes.take() {
                core.flush_follower(disk.id);
            }
        }
        let (now, watched) = (self.clock.now(), self.watch());
        for (_, core) in self.cores() {
            core.tick(watched, self.options.lag_max);
        }
        self.prefer_leaders(now);
        self.settle_reigns();
        self.lose_failed_disks();
        self.rebuild_failed();
        self.online_disks().iter().for_each(|disk| self.rebuild_on(disk));
        self.retain_all(now);
        if let Some(transactions) = self.known_transactions() {
            transactions.tick(self);
        }
        self.chores.run_due();
    }

    /// Removes the segments that the topic's retention lets go: first durably from the metadata, then
    /// the files, so that a missing first segment is always told from a deleted one.
    fn apply_retention(&self, core: &Arc<Core>, now: Timestamp) {
        self.expire_producers(core);
        let Some(topic) = self.topic_of(core) else {
            return;
        };
        let policy = topic.config.read().retention;
        let Some(start) = core.retention_start(now, &policy) else {
            return;
        };
        match self.retain_from(&topic, core, start, &policy) {
            Ok(true) => self.events.push(
                now,
                EventKind::RetentionApplied {
                    partition: core.partition().clone(),
                    log_start: start,
                },
            ),
            Ok(false) | Err(Error::UnknownTopicOrPartition { .. }) => {}
            Err(error) => core.background_failed("applying retention", &error),
        }
    }

    /// Lets go of what lies before `start`, as `policy` says. False: the topic has another one by now.
    fn retain_from(
        &self,
        topic: &Topic,
        core: &Core,
        start: Offset,
        policy: &Retention,
    ) -> Result<bool> {
        self.remember_before(core, start)?;
        let mut metadata = self.metadata.lock();
        // Deleted since it was looked at.
        topic.check_here()?;
        if topic.config.read().retention != *policy {
            return Ok(false);
        }
        let (id, partition) = (topic.id, core.partition().partition());
        metadata.commit(&MetadataRecord::LogStartRaised { id, partition, offset: start })?;
        drop(metadata);
        core.raise_log_start(start)?;
        Ok(true)
    }

    /// Forgets who has not appended for long; not by a clock that was set: who is alive may be about to send a batch
    /// again (RELIABILITY S23).
    fn expire_producers(&self, core: &Core) {
        let mut wall = self.wall.lock();
        let now = self.clock.now();
        let tells_age = wall.tells_age(now, self.clock.elapsed(), PRODUCER_AGE);
        drop(wall);
        if tells_age {
            core.expire_producers(now, PRODUCER_AGE);
        }
    }

    /// Has the logs write down who wrote what lies before `start`; also on a full disk, which is to become emptier.
    pub(super) fn remember_before(&self, core: &Core, start: Offset) -> Result<()> {
        core.remember_before(start, |id, snapshot| match self.disk(id) {
            Some(disk) => layout::with_reserve(&*disk.disk, || snapshot.write()),
            None => snapshot.write(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{TopicConfig, TopicUpdate};
    use crate::record::Record;
    use crate::storage::simulated::SimDisk;
    use crate::store::Store;
    use crate::types::{Acks, Flush};

    /// It was asked for in vain, and then not at all: it was said to be queued.
    #[test]
    fn a_partition_that_a_call_holds_as_another_worker_comes_is_looked_at_later() {
        let builder = Store::builder().clock(Clock::manual(Timestamp(1)));
        let disks = [0, 1].map(SimDisk::new);
        let store = disks.iter().fold(builder, |all, disk| all.simulated_disk(disk.clone()));
        let store = store.open().unwrap();
        let config = TopicConfig::new().replication_factor(2).flush(Flush::OnAck);
        store.create_topic("t", config).unwrap();
        let partition = store.partition("t", 0).unwrap();
        let shared = store.shared();
        let (_, core) = shared.cores().pop().expect("one partition");
        let disk = shared.disk(partition.replicas()[1]).unwrap();
        let ask = || core.ask_for_attention_on(disk.id, &disk.attention);
        let tend = || core.tend(disk.id, shared.clock.now(), true).again_in;
        // By one that is held up, and whose place is taken.
        disk.attention.take();
        ask();
        assert_eq!(disk.attention.take().len(), 1);
        let held = core.hold();
        std::thread::scope(|scope| {
            scope.spawn(ask).join().unwrap();
            assert_eq!(disk.attention.take().len(), 1, "asked for while it is held");
            assert!(scope.spawn(tend).join().unwrap().is_some(), "looked at again");
        });
        drop(held);
        tend();
        partition.append(&[Record::new("v")], Acks::Leader).unwrap();
        core.bring_up(&[disk.id], shared.clock.now());
        assert_eq!(disk.attention.take().len(), 1, "asked for once more");
    }

    /// What was to go was looked up under the topic's earlier retention.
    #[test]
    fn ret_01_what_a_topic_keeps_from_now_on_is_not_let_go_any_more() {
        let store = Store::in_memory(1).unwrap();
        let config = TopicConfig::new().segment_bytes(4096).retention(Retention::bytes(4096));
        store.create_topic("t", config).unwrap();
        let partition = store.partition("t", 0).unwrap();
        let shared = store.shared();
        let (topic, core) = shared.cores().pop().expect("one partition");
        let policy = topic.config.read().retention;
        let start = loop {
            partition.append(&[Record::new(&[7; 1000])], Acks::All).unwrap();
            if let Some(start) = core.retention_start(shared.clock.now(), &policy) {
                break start;
            }
        };
        store.alter_topic("t", TopicUpdate::new().retention(Retention::forever())).unwrap();
        let before = partition.log_start_offset();
        assert!(!shared.retain_from(&topic, &core, start, &policy).unwrap());
        assert_eq!(partition.log_start_offset(), before);
    }

    #[test]
    fn s23_a_wall_clock_that_was_set_tells_of_no_age_until_that_has_passed() {
        let (clock, age) = (Clock::manual(Timestamp(0)), PRODUCER_AGE);
        let mut wall = WallClock::new(&clock);
        let mut tells_age = || wall.tells_age(clock.now(), clock.elapsed(), age);
        assert!(!tells_age(), "it may have been set before the store was opened");
        clock.advance(age * 3);
        assert!(tells_age(), "it went on, and so did time");
        for set in [1_800_000_000_000, i64::MIN, 0, 1_000_000] {
            clock.set_wall(Timestamp(set));
            assert!(!tells_age(), "{set}");
            clock.advance(age / 2);
            assert!(!tells_age(), "{set}");
            clock.advance(age / 2);
            assert!(tells_age(), "{set}");
        }
        clock.set_wall(clock.now().plus(STEP_MIN));
        assert!(tells_age(), "a little is no matter");
    }

    #[test]
    fn s22_s23_a_watch_does_not_count_what_nobody_saw() {
        let (mut watch, step) = (Watch::default(), Duration::from_secs(1));
        let seconds = Duration::from_secs;
        assert_eq!(watch.look(Duration::from_millis(300), step), Duration::from_millis(300));
        assert_eq!(watch.look(seconds(1), step), seconds(1));
        assert_eq!(watch.look(seconds(3600), step), seconds(2), "the process was stopped");
        assert_eq!(watch.look(seconds(10), step), seconds(2), "two that look at once");
        assert_eq!(watch.look(seconds(3601), step), seconds(3));
    }
}
