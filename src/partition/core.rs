//! The partition itself: what it is made of, look up, end.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

use crate::config::TopicConfig;
use crate::error::{Error, Written};
use crate::log::{Log, LogReader, LogSettings, Marks};
use crate::protocol::producer_state::states::ProducerView;
use crate::protocol::producer_state::transactions::OpenTransaction;
use crate::protocol::replication::{EpochHistory, Progress};
use crate::storage::{Clock, ForkGuard};
use crate::types::{
    DiskId, Flush, LeaderEpoch, Offset, ProducerId, Timestamp, TopicId, TopicPartition,
};

use super::append::plain_bytes_max;
use super::cut::Kept;
use super::events::EventKind;
use super::flush::{Durable, Group, Sleeper};
use super::hang::BRIEF;
use super::page::LeftPage;
use super::read::Watch;
use super::replica::Replica;
use super::room::Errand;
use super::ticket::{Waiter, complete};
use super::{Attention, EventLog};

/// What the topic says about a partition, as an append needs it.
#[derive(Clone, Debug)]
pub(crate) struct CoreSettings {
    pub(crate) topic: Arc<TopicConfig>,
    pub(crate) log: LogSettings,
}

/// What a partition is made of.
#[derive(Debug)]
pub(crate) struct CoreParts {
    pub(crate) topic: TopicId,
    pub(crate) partition: TopicPartition,
    pub(crate) reign: Reign,
    /// The leader's.
    pub(crate) log: Log,
    /// The leader's and the others', each with its log but the leader's.
    pub(crate) leading: Arc<Replica>,
    pub(crate) followers: Vec<Arc<Replica>>,
    pub(crate) settings: CoreSettings,
    pub(crate) clock: Clock,
    pub(crate) fork: Arc<ForkGuard>,
    pub(crate) events: Arc<EventLog>,
    /// Where the partition asks for changes of its reign to be made durable.
    pub(crate) control: Arc<Attention>,
    /// Whether threads do the background work; otherwise, who waits does it.
    pub(crate) background: bool,
    /// Whether a page is kept for readers in other processes.
    pub(crate) show_marks: bool,
    /// How long an append waits for its acknowledgement.
    pub(crate) append_timeout: Duration,
}

/// Who leads, who is in sync, and since when, as the metadata say.
#[derive(Clone, Debug)]
pub(crate) struct Reign {
    pub(crate) epoch: LeaderEpoch,
    pub(crate) history: EpochHistory,
    pub(crate) isr: Vec<DiskId>,
    pub(crate) eligible: Vec<DiskId>,
    /// Replicas that lack what they once held.
    pub(crate) stale: Vec<DiskId>,
    /// All replicas, the preferred leader first.
    pub(crate) preference: Vec<DiskId>,
    pub(crate) high_watermark: Offset,
}

/// One partition, shared by everyone who uses it.
#[derive(Debug)]
pub(crate) struct Core {
    /// Another topic may have the name by now.
    topic: TopicId,
    pub(super) partition: TopicPartition,
    /// The leader's.
    pub(super) reader: RwLock<Arc<LogReader>>,
    pub(super) settings: RwLock<CoreSettings>,
    /// `max_batch_bytes` of a topic whose batches need nothing else from the settings; else 0. Saves
    /// the append a lock.
    pub(super) plain_bytes_max: AtomicU32,
    /// The topic's flush level, in nanoseconds of exposure.
    exposure: AtomicU64,
    pub(super) clock: Clock,
    pub(super) fork: Arc<ForkGuard>,
    pub(super) events: Arc<EventLog>,
    control: Arc<Attention>,
    pub(super) background: bool,
    pub(super) show_marks: bool,
    append_timeout: Duration,
    this: Weak<Core>,

    pub(super) state: Mutex<State>,
    /// Files that are to be removed later.
    pub(super) kept: Mutex<Kept>,
    /// By disk: see [`Core::repairs_of`].
    pub(super) repairs: Mutex<BTreeMap<DiskId, Arc<Mutex<()>>>>,
    /// Disks whose workers are at work on the partition.
    pub(super) tended: Mutex<Vec<DiskId>>,
    pub(super) readable: Condvar,
    /// Told when a call for more space has returned, and when appends need not wait for one any more.
    pub(super) room_made: Condvar,
    pub(super) group: Group,
    /// Copies of the watermarks, for whoever only wants to look.
    pub(super) high_watermark: AtomicU64,
    pub(super) last_stable: AtomicU64,
    pub(super) log_end: AtomicU64,
    epoch: AtomicU32,
    control_queued: AtomicBool,
    /// The last who wanted the lock waited in vain.
    pub(super) hangs: AtomicBool,
}

/// What the lock guards.
#[derive(Debug)]
pub(super) struct State {
    /// The leader's.
    pub(super) log: Log,
    pub(super) progress: Progress,
    pub(super) leading: Arc<Replica>,
    pub(super) followers: Vec<Arc<Replica>>,
    /// Followers in whose place others are, because a call to their disk hangs.
    pub(super) orphans: Vec<Arc<Replica>>,
    /// The disk that leads by what is durable.
    pub(super) leader: Option<DiskId>,
    pub(super) epoch: LeaderEpoch,
    /// The epoch that the log which leads began; behind `epoch` if the one elected for that could not begin.
    pub(super) began: LeaderEpoch,
    pub(super) history: EpochHistory,
    pub(super) isr: Vec<DiskId>,
    pub(super) eligible: Vec<DiskId>,
    pub(super) stale: Vec<DiskId>,
    pub(super) preference: Vec<DiskId>,
    pub(super) replicas: usize,
    pub(super) min_insync: u16,
    /// Disks on which space is being made under no lock, and since when, as the watch first saw it; an earlier leader's too.
    pub(super) making_room: Vec<(DiskId, Option<Duration>)>,
    /// What the leader's disk is to give before appends go on.
    pub(super) errand: Errand,
    /// The leader hands over as soon as somebody can take over; it takes no appends meanwhile.
    pub(super) stepping_down: bool,
    /// Who is to take over, because it is preferred; else whoever can.
    pub(super) hand_to: Option<DiskId>,
    /// Since when the preferred replica could lead and does not.
    pub(super) preferred_since: Option<Timestamp>,
    /// Because its disk is full.
    pub(super) stuck: bool,
    /// Whether the watermark, since this was opened, has shown all that was acknowledged.
    pub(super) knows_acknowledged: bool,
    /// Something of the reign is to be made durable.
    pub(super) unsettled: bool,
    /// What was proposed last may be durable or not: until something else is, both hold. The number of the doubt.
    pub(super) in_doubt: Option<u64>,
    /// Replicas whose flush failed, and up to where each is believed; to be made durable.
    pub(super) suspects: Vec<(DiskId, Offset)>,
    /// Damage that was met and is to be repaired from another replica: on which disk, and where.
    pub(super) damaged: Vec<(DiskId, Offset)>,
    /// Damage that was reported, and has not been repaired since.
    pub(super) reported: Vec<(DiskId, Range<Offset>)>,
    pub(super) page: Option<Arc<Marks>>,
    pub(super) making_page: bool,
    /// It is to be shown once its file system has agreed.
    pub(super) page_is_late: bool,
    /// Pages of those that led before, to be taken back once their file systems agree.
    pub(super) left_pages: Vec<LeftPage>,
    pub(super) flush: Flush,
    /// Why nothing can be appended any more.
    pub(super) fenced: Option<Fenced>,
    pub(super) ended: Option<Ended>,
    /// What is not taken any more.
    pub(super) stopped: Stopped,
    pub(super) readers: u32,
    /// Readers who are to be woken.
    pub(super) watches: Vec<Watch>,
    pub(super) durable: Durable,
    pub(super) tickets: Vec<Waiter>,
    pub(super) next_ticket: u64,
    /// Since when something waits for the flush of an `Interval` topic.
    pub(super) unflushed_since: Option<Timestamp>,
}

/// The replica's disk failed.
#[derive(Clone, Debug)]
pub(super) struct Fenced {
    pub(super) cause: Arc<str>,
    pub(super) at_risk: Range<Offset>,
}

/// What a partition that is still read does not take any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    No,
    /// Its topic may be deleted. Transactions that have records here end all the same.
    Records,
    /// The store is about to close.
    All,
}

/// The partition is no longer there to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    StoreClosed,
    TopicDeleted,
}

impl Core {
    pub(crate) fn new(parts: CoreParts) -> Arc<Self> {
        let CoreParts { mut log, settings, reign, .. } = parts;
        log.set_epoch(reign.epoch);
        let reader = Arc::clone(log.reader());
        let progress = Progress::recovered(reader.log_start(), log.end(), log.flushed_end());
        let flush = settings.topic.flush;
        let min_insync = settings.topic.min_insync_replicas;
        let now = parts.clock.now();
        let replicated = !parts.followers.is_empty();
        let core = Arc::new_cyclic(|this| Self {
            topic: parts.topic,
            partition: parts.partition,
            reader: RwLock::new(reader),
            plain_bytes_max: AtomicU32::new(plain_bytes_max(&settings.topic)),
            exposure: AtomicU64::new(settings.topic.flush.exposure_nanos()),
            settings: RwLock::new(settings),
            clock: parts.clock,
            fork: parts.fork,
            events: parts.events,
            control: parts.control,
            background: parts.background,
            show_marks: parts.show_marks,
            append_timeout: parts.append_timeout,
            this: this.clone(),
            high_watermark: AtomicU64::new(progress.high_watermark().0),
            last_stable: AtomicU64::new(log.last_stable(progress.high_watermark()).0),
            log_end: AtomicU64::new(progress.log_end().0),
            epoch: AtomicU32::new(reign.epoch.0),
            kept: Mutex::default(),
            repairs: Mutex::default(),
            tended: Mutex::default(),
            state: Mutex::new(State {
                log,
                progress,
                leader: Some(parts.leading.disk),
                leading: parts.leading,
                followers: parts.followers,
                orphans: Vec::new(),
                epoch: reign.epoch,
                began: reign.epoch,
                history: reign.history,
                isr: reign.isr,
                eligible: reign.eligible,
                stale: reign.stale,
                replicas: reign.preference.len(),
                preference: reign.preference,
                min_insync,
                making_room: Vec::new(),
                errand: Errand::default(),
                stepping_down: false,
                hand_to: None,
                preferred_since: None,
                stuck: false,
                knows_acknowledged: !replicated,
                unsettled: false,
                in_doubt: None,
                suspects: Vec::new(),
                damaged: Vec::new(),
                reported: Vec::new(),
                page: None,
                making_page: false,
                page_is_late: false,
                left_pages: Vec::new(),
                flush,
                fenced: None,
                ended: None,
                stopped: Stopped::No,
                readers: 0,
                watches: Vec::new(),
                durable: Durable::default(),
                tickets: Vec::new(),
                next_ticket: 0,
                unflushed_since: None,
            }),
            room_made: Condvar::new(),
            readable: Condvar::new(),
            group: Group::default(),
            control_queued: AtomicBool::new(false),
            hangs: AtomicBool::new(false),
        });
        if replicated {
            let mut state = core.state.lock();
            let start = state.history.reigns().last().map_or(Offset::ZERO, |reign| reign.start);
            core.reign_over(&mut state, start, reign.high_watermark, now);
            // Until here the log's end stood for the watermark.
            state.knows_acknowledged = false;
            for replica in &state.followers {
                if let Some(log) = &mut replica.state.lock().log {
                    // One that fails here is asked again by the election.
                    let _ = log.learn_last_epoch();
                }
                replica.ask_for_attention(&core);
            }
            core.publish(state);
        }
        core
    }

    /// What is known of a producer.
    pub(crate) fn producer(&self, id: ProducerId) -> Option<ProducerView> {
        self.state.lock().log.producer(id)
    }

    /// Transactions that have records here and no marker.
    pub(crate) fn open_transactions(&self) -> Vec<OpenTransaction> {
        self.state.lock().log.open_transactions()
    }

    pub(super) fn no_leader(&self) -> Error {
        Error::NoLeader { partition: self.partition.clone() }
    }

    /// As [`Core::check_open`], for appends: a partition whose leader is to change is `NoLeader`.
    #[inline]
    pub(super) fn check_leads(&self, state: &State) -> Result<(), Error> {
        let taken = state.stopped == Stopped::No && !state.stepping_down;
        if state.ended.is_none() && state.fenced.is_none() && taken {
            return Ok(());
        }
        let other = state.replicas > 1 || state.leader.is_none();
        if state.ended.is_none() && state.stopped == Stopped::No && other {
            return Err(self.no_leader());
        }
        Err(self.closed_error(state, Written::No))
    }

    /// As [`Core::check_leads`], for the end of a transaction.
    pub(super) fn check_takes_markers(&self, state: &State) -> Result<(), Error> {
        let alone = state.stopped == Stopped::Records;
        if alone && state.ended.is_none() && state.fenced.is_none() && !state.stepping_down {
            return Ok(());
        }
        self.check_leads(state)
    }

    pub(crate) fn partition(&self) -> &TopicPartition {
        &self.partition
    }

    /// Its topic, by the id that no other topic has.
    pub(crate) fn topic_id(&self) -> TopicId {
        self.topic
    }

    /// The disk whose replica leads; `None` if none does.
    pub(crate) fn leader(&self) -> Option<DiskId> {
        let state = self.state.lock();
        state.leader.filter(|_| state.fenced.is_none())
    }

    pub(crate) fn leader_epoch(&self) -> LeaderEpoch {
        LeaderEpoch(self.epoch.load(Ordering::Acquire))
    }

    pub(super) fn show_epoch(&self, epoch: LeaderEpoch) {
        self.epoch.store(epoch.0, Ordering::Release);
    }

    /// All replicas, the preferred leader first.
    pub(crate) fn replicas(&self) -> Vec<DiskId> {
        self.state.lock().preference.clone()
    }

    /// The replicas in sync, by what is durable.
    pub(crate) fn in_sync(&self) -> Vec<DiskId> {
        let state = self.state.lock();
        if state.fenced.is_some() && state.followers.is_empty() {
            return Vec::new();
        }
        let mut disks = state.isr.clone();
        disks.sort_unstable();
        disks
    }

    /// The leader's log, as readers share it.
    pub(crate) fn reader(&self) -> Arc<LogReader> {
        Arc::clone(&self.reader.read())
    }

    /// Every replica's log that is in service, the leader's first.
    pub(crate) fn readers(&self) -> Vec<(DiskId, Arc<LogReader>)> {
        self.readers_in(&self.state.lock())
    }

    pub(super) fn readers_in(&self, state: &State) -> Vec<(DiskId, Arc<LogReader>)> {
        let mut readers = vec![(state.leading.disk, Arc::clone(state.log.reader()))];
        for replica in &state.followers {
            if let Some(held) = replica.brief()
                && let Some(log) = &held.log
            {
                readers.push((replica.disk, Arc::clone(log.reader())));
            }
        }
        readers
    }

    pub(super) fn replica(&self, disk: DiskId) -> Option<Arc<Replica>> {
        let state = self.state.lock();
        // What is back of a leader that failed comes before what failed.
        let mut all = state.followers.iter().chain(std::iter::once(&state.leading));
        all.find(|replica| replica.disk == disk).cloned()
    }

    /// Whether it is still to be written down that the tail on `disk` is not to be believed. Who holds the metadata misses
    /// none that is on its way there.
    pub(crate) fn has_unwritten_suspect(&self, disk: DiskId) -> bool {
        self.state.lock().suspects.iter().any(|(suspect, _)| *suspect == disk)
    }

    pub(super) fn weak(&self) -> Weak<Self> {
        self.this.clone()
    }

    pub(crate) fn log_start(&self) -> Offset {
        self.reader.read().log_start()
    }

    #[inline]
    pub(crate) fn high_watermark(&self) -> Offset {
        Offset(self.high_watermark.load(Ordering::Acquire))
    }

    #[inline]
    pub(crate) fn last_stable_offset(&self) -> Offset {
        Offset(self.last_stable.load(Ordering::Acquire))
    }

    #[inline]
    pub(crate) fn log_end(&self) -> Offset {
        Offset(self.log_end.load(Ordering::Acquire))
    }

    pub(crate) fn append_timeout(&self) -> Duration {
        self.append_timeout
    }

    /// How long what was appended may be out of stable storage, in nanoseconds.
    #[inline]
    pub(crate) fn exposure_nanos(&self) -> u64 {
        self.exposure.load(Ordering::Acquire)
    }

    pub(crate) fn settings(&self) -> CoreSettings {
        self.settings.read().clone()
    }

    /// Takes over a changed topic.
    pub(crate) fn set_settings(&self, settings: CoreSettings) {
        let mut state = self.state.lock();
        if let Err(error) = state.log.set_settings(settings.log) {
            self.fence(&mut state, &error);
        }
        let (mut failed, mut busy) = (Vec::new(), Vec::new());
        for replica in &state.followers {
            match replica.brief() {
                Some(mut held) => {
                    let outcome = held.log.as_mut().map(|log| log.set_settings(settings.log));
                    if let Some(Err(error)) = outcome {
                        failed.push((Arc::clone(replica), error));
                    }
                }
                None => busy.push(Arc::clone(replica)),
            }
        }
        for replica in busy {
            // It would go on by the old settings, under which what is acknowledged may be in memory only.
            self.orphan(&mut state, &replica, "its disk hangs");
            self.ask_for_settling(&mut state);
        }
        state.flush = settings.topic.flush;
        state.min_insync = settings.topic.min_insync_replicas;
        let (min_insync, flush) = (state.min_insync, state.flush);
        state.progress.set_min_insync(min_insync, flush);
        state.forget_eligible();
        self.plain_bytes_max.store(plain_bytes_max(&settings.topic), Ordering::Relaxed);
        self.exposure.store(flush.exposure_nanos(), Ordering::Release);
        *self.settings.write() = settings;
        if state.fenced.is_some() {
            // Who may not lead before may do so now.
            self.ask_for_settling(&mut state);
        }
        self.publish(state);
        for (replica, error) in failed {
            self.fence_follower(&replica, &error);
        }
    }

    /// Nothing is appended any more, and every wait ends.
    pub(super) fn end(&self, ended: Ended) {
        let mut state = self.state.lock();
        state.ended.get_or_insert(ended);
        self.room_made.notify_all();
        if ended == Ended::TopicDeleted {
            // Handles may be kept for long; the room of the files must not be.
            state.page = None;
            state.log.let_go();
            for replica in &state.followers {
                if let Some(mut held) = replica.brief()
                    && let Some(mut log) = held.log.take()
                {
                    log.let_go();
                }
            }
        }
        self.wake_all(state);
    }

    /// Nothing is appended any more; waits go on until [`Core::close`].
    pub(crate) fn stop_appends(&self) {
        let mut state = self.state.lock();
        state.stopped = Stopped::All;
        // Late zeroes would lie over what is appended after the next opening. One that was given up is no concern: its
        // disk is not left as if all were well.
        while state.making_room.iter().any(|(disk, _)| state.has_log_on(*disk)) {
            if state.left_behind().is_some() {
                // Its threads have ended: nobody makes what was asked of them.
                drop(state);
                self.fence_left_behind();
                state = self.state.lock();
                continue;
            }
            self.room_made.wait_for(&mut state, BRIEF);
        }
    }

    /// Its topic may be found deleted: what is appended from here on would be acknowledged, and gone.
    pub(crate) fn refuse_appends(&self) {
        let mut state = self.state.lock();
        if state.stopped == Stopped::No {
            state.stopped = Stopped::Records;
        }
    }

    /// The store closes.
    pub(crate) fn close(&self) {
        self.end(Ended::StoreClosed);
    }

    /// The topic is gone.
    pub(crate) fn delete(&self) {
        self.end(Ended::TopicDeleted);
    }

    #[inline]
    pub(super) fn check_open(&self, state: &State) -> Result<(), Error> {
        if state.ended.is_none() && state.fenced.is_none() && state.stopped == Stopped::No {
            return Ok(());
        }
        Err(self.closed_error(state, Written::No))
    }

    pub(super) fn check_usable(&self) -> Result<(), Error> {
        match self.state.lock().ended {
            Some(Ended::TopicDeleted) => Err(self.ended_error(Ended::TopicDeleted)),
            _ => Ok(()),
        }
    }

    #[cold]
    pub(super) fn closed_error(&self, state: &State, written: Written) -> Error {
        match (&state.fenced, state.ended) {
            // Files that go under a flush are no failure of their disk.
            (_, Some(Ended::TopicDeleted)) => self.ended_error(Ended::TopicDeleted),
            (Some(fenced), _) => Error::DiskOffline {
                partition: self.partition.clone(),
                disk: state.leading.disk,
                at_risk: fenced.at_risk.clone(),
                cause: Arc::clone(&fenced.cause),
                written,
            },
            (None, Some(ended)) => self.ended_error(ended),
            (None, None) if state.stopped == Stopped::Records => Error::Io {
                path: state.log.place().full_path(""),
                action: "append to a topic whose deletion is in doubt",
                written,
                source: Arc::new(std::io::ErrorKind::Other.into()),
            },
            (None, None) => Error::Closed,
        }
    }

    pub(super) fn ended_error(&self, ended: Ended) -> Error {
        match ended {
            Ended::StoreClosed => Error::Closed,
            Ended::TopicDeleted => {
                Error::UnknownTopicOrPartition { partition: self.partition.clone() }
            }
        }
    }

    /// Takes the replica out of service. The caller holds the lock in which the fault was learnt.
    pub(super) fn fence(&self, state: &mut State, cause: &Error) {
        if state.fenced.is_none() {
            state.suspects.push((state.leading.disk, state.progress.flushed()));
            self.take_out(state, cause);
        }
    }

    /// As [`Core::fence`], of a replica that nothing has failed in: its tail is believed when it is back.
    pub(super) fn take_out(&self, state: &mut State, cause: &Error) {
        self.room_made.notify_all();
        // Another may lead next, who need not have what would count if the topic asks for less meanwhile.
        state.progress.on_leaderless();
        let words = words_of(cause);
        let at_risk = state.progress.flushed()..state.progress.log_end();
        if let Some(page) = state.page.take() {
            self.distrust_page(state, &page, at_risk.start);
        }
        state.fenced = Some(Fenced { cause: words.as_str().into(), at_risk: at_risk.clone() });
        let disk = state.leading.disk;
        if state.ended != Some(Ended::TopicDeleted) {
            self.report(EventKind::ReplicaFenced {
                partition: self.partition.clone(),
                disk,
                at_risk,
                cause: words,
            });
        }
        self.ask_for_settling(state);
    }

    /// Asks for what is to be made durable; whoever waits for it is told to look.
    pub(super) fn ask_for_settling(&self, state: &mut State) {
        state.unsettled = true;
        self.wake_sleepers(state);
        if !self.control_queued.swap(true, Ordering::AcqRel) {
            self.control.push(self.this.clone());
        }
    }

    /// The control thread has taken the partition from its queue.
    pub(crate) fn control_taken(&self) {
        self.control_queued.swap(false, Ordering::AcqRel);
    }

    /// Shows new watermarks to everyone who looks or waits, and lets go of the lock.
    pub(super) fn publish(&self, mut state: MutexGuard<'_, State>) {
        let last_stable = self.show_page(&mut state);
        let progress = &state.progress;
        self.log_end.store(progress.log_end().0, Ordering::Release);
        self.high_watermark.store(progress.high_watermark().0, Ordering::Release);
        self.last_stable.store(last_stable.0, Ordering::Release);
        self.wake_all(state);
    }

    pub(super) fn wake_all(&self, mut state: MutexGuard<'_, State>) {
        let readers = state.readers > 0;
        let mut done = self.finished_tickets(&mut state);
        if !state.watches.is_empty() {
            self.seen_watches(&mut state, &mut done);
        }
        if state.fenced.is_some() || state.ended.is_some() {
            self.wake_sleepers(&mut state);
        }
        let served = self.take_served(&mut state);
        drop(state);
        if readers {
            self.readable.notify_all();
        }
        served.into_iter().for_each(Sleeper::serve);
        complete(done);
    }

    pub(super) fn report(&self, kind: EventKind) {
        self.events.push(self.clock.now(), kind);
    }
}

/// An error and what caused it, in one line.
pub(crate) fn words_of(cause: &Error) -> String {
    let mut words = cause.to_string();
    let mut source = std::error::Error::source(cause);
    while let Some(inner) = source {
        words = format!("{words}: {inner}");
        source = inner.source();
    }
    words
}
