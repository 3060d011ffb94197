//! The transactions of a store: the shell around [`Coordinator`], its internal topic, and the partitions.
//!
//! What the coordinator asks for is begun under its lock, so that records reach the topic in its order, and waited
//! for without it, by whichever thread told it something: the application's own, or the one that looks after
//! time-outs. `markers.rs` writes what a decision says into the partitions.
//!
//! Nothing here runs before a store has had its first transaction. From then on, an open settles what a crash has
//! left (`settle.rs`).
//!
//! The internal topics are flushed at least as strictly as any partition that takes part: they are made stricter when the
//! first such partition does, and before a topic becomes stricter. Else a power loss could leave a durable marker in one partition and no decision for the next.
//!
//! Lock order: `Transactions::flush`; `Transactions::cut`, `Transactions::state`, then the partition of the topic. While markers are written,
//! `cut` is held shared; who holds it alone sees no transaction by halves.

mod markers;
mod settle;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockWriteGuard};

use crate::error::{Error, Result};
use crate::partition::{Attention, Core, EventKind, postpone};
use crate::protocol::group::assignment::PartitionId;
use crate::protocol::transaction::coordinator::{Coordinator, Replay};
use crate::protocol::transaction::lineage::{TransactionTag, Verdict};
use crate::protocol::transaction::messages::{
    Answer, Effect, Event, Open, Refusal, RequestId, Settings,
};
use crate::protocol::transaction::records::TransactionRecord;
use crate::storage::Steady;
use crate::types::{Flush, LeaderEpoch, Mix, Offset, Outcome, Timestamp, TopicId};

use super::background::try_apart;
use super::groups::GROUP_TOPIC;
use super::internal_topic::{Begun, Entry, InternalTopic, Live, Rewritten, safe_end};
use super::{Partition, Shared, Topic};
use markers::Reports;
pub(super) use settle::Settler;

/// The internal topic (Kafka's name for its own).
pub(super) const TRANSACTION_TOPIC: &str = "__transaction_state";

/// After an id was found busy.
const BUSY_PAUSE: Duration = Duration::from_millis(1);

/// How long something is tried again.
#[derive(Debug)]
pub(super) struct Patience {
    wait: Duration,
    /// From when something was to be tried again; else the clock is not asked.
    since: Option<Instant>,
    /// Without threads, nobody but the caller settles anything: a few times are as good as many.
    tries: Option<u32>,
}

impl Patience {
    pub(super) fn new(shared: &Shared, wait: Duration) -> Self {
        let tries = (!shared.options.background).then_some(3);
        Self { wait, since: None, tries }
    }

    /// Whether to try once more.
    pub(super) fn lasts(&mut self) -> bool {
        if let Some(tries) = &mut self.tries {
            let more = *tries > 0;
            *tries = tries.saturating_sub(1);
            return more;
        }
        self.since.get_or_insert_with(Instant::now).elapsed() < self.wait
    }
}

/// All transactions of a store that has had one.
#[derive(Debug)]
pub(crate) struct Transactions {
    cut: RwLock<()>,
    state: Mutex<State>,
    answered: Condvar,
    requests: AtomicU64,
    /// How strictly the internal topics are flushed.
    flush: Mutex<Flush>,
    /// The same, to be looked at before each transaction's first batch in a partition.
    exposure: AtomicU64,
    /// Partitions that had a marker lately: finding one by its topic takes six locks.
    cores: Mutex<HashMap<PartitionId, Weak<Core>, Mix>>,
    /// The time that the coordinator goes by: a wall clock that is set neither ends a transaction nor holds it up (S23).
    clock: Steady,
    /// Ids of the store's own, held and not in use.
    spares: Mutex<Spares>,
    reports: Arc<Reports>,
    /// Partitions whose leader has changed, or that came into use: what they have open is to be looked at.
    changed: Arc<Attention>,
    /// Partitions that could not be looked at yet.
    unseen: Mutex<BTreeSet<PartitionId>>,
}

/// And, where it has failed, what the record ran into that it waited for: others fail at the same time.
type Answered = (Answer, Option<Error>);

#[derive(Debug)]
struct State {
    coordinator: Coordinator,
    topic: InternalTopic,
    /// What the topic holds, as bytes.
    table: HashMap<Vec<u8>, Vec<u8>>,
    /// Under which leader that is so.
    epoch: LeaderEpoch,
    /// A handful: each is taken by whoever waits for it.
    answers: Vec<(RequestId, Answered)>,
    /// Calls that nobody waits for any more.
    abandoned: BTreeSet<RequestId>,
    /// When the thread that looks after time-outs comes back by itself.
    wakes_at: Timestamp,
    /// Where markers of committed transactions could not be written, and others of them may be. What an aborted one has
    /// written is seen nowhere, with its markers and without.
    halves: BTreeSet<(TransactionTag, PartitionId)>,
}

#[derive(Debug, Default)]
struct Spares {
    held: Vec<(Arc<str>, TransactionTag)>,
    /// How many there are.
    named: u64,
}

/// What is begun, and to be finished without the lock.
enum Job {
    Persist { id: Arc<str>, begun: Result<Begun> },
    Markers { tag: TransactionTag, outcome: Outcome, partitions: Vec<PartitionId> },
    Rewrite(Rewritten),
    Close(TransactionTag),
}

impl Job {
    /// Whether it is a record that needs no waiting for.
    fn is_done(&self) -> bool {
        matches!(self, Self::Persist { begun: Ok(begun), .. } if !begun.waits())
    }
}

impl Shared {
    /// The store's transactions; begins them with the first.
    ///
    /// # Errors
    /// What making or reading the internal topic runs into.
    pub(crate) fn transactions(self: &Arc<Self>) -> Result<Arc<Transactions>> {
        self.check_writable()?;
        if let Some(transactions) = self.transactions.get() {
            return Ok(Arc::clone(transactions));
        }
        // Whom the first markers wake may run a transaction, which comes here as well.
        let _postponed = postpone();
        let _beginning = self.beginning.lock();
        if let Some(transactions) = self.transactions.get() {
            return Ok(Arc::clone(transactions));
        }
        let topic = self.make_internal_topic(TRANSACTION_TOPIC)?;
        let (begun, jobs) = Transactions::load(self, topic)?;
        begun.finish(self, jobs);
        begun.find_open(self);
        self.start_transactions(&begun)?;
        // Nobody opens an id before all that was left open is known.
        let transactions = Arc::clone(self.transactions.get_or_init(|| begun));
        // Those of another leader since they were looked at: nobody was there to be told of it.
        let topics: Vec<_> = self.topics.read().values().cloned().collect();
        for topic in topics {
            let slots = topic.slots.read().clone();
            for slot in slots {
                if let Some(core) = &*slot.core.lock() {
                    transactions.changed.push(Arc::downgrade(core));
                }
            }
        }
        Ok(transactions)
    }

    /// The transactions, if they have begun.
    pub(super) fn known_transactions(&self) -> Option<Arc<Transactions>> {
        self.transactions.get().cloned()
    }

    /// A partition came into use or under another leader.
    pub(super) fn look_at_transactions_of(&self, core: &Arc<Core>) {
        if let Some(transactions) = self.known_transactions() {
            transactions.changed.push(Arc::downgrade(core));
        }
    }

    fn topic_by_id(&self, id: TopicId) -> Option<Arc<Topic>> {
        self.topics.read().values().find(|topic| topic.id == id).cloned()
    }

    /// `None`: the partition is gone.
    pub(super) fn core_of(&self, partition: PartitionId) -> Result<Option<Arc<Core>>> {
        let Some(topic) = self.topic_by_id(partition.topic) else { return Ok(None) };
        let slot = topic.slots.read().get(partition.partition as usize).map(Arc::clone);
        slot.map(|slot| self.open_core(&topic, &slot)).transpose()
    }
}

impl Transactions {
    fn load(shared: &Arc<Shared>, mut topic: InternalTopic) -> Result<(Arc<Self>, Vec<Job>)> {
        let mut replay = Replay::default();
        let mut table = HashMap::new();
        let patience = shared.patience(shared.options.append_timeout);
        let epoch = topic.core().leader_epoch();
        let end = safe_end(shared, topic.core(), patience)?;
        topic.replay(end, |entry| {
            if let Entry::Record { key, value, .. } = entry {
                let record = TransactionRecord::decode(key, value).map_err(corrupt)?;
                replay.apply(record);
                put(&mut table, key.to_vec(), value.map(<[u8]>::to_vec));
            }
            Ok(())
        })?;
        let disks = shared.online_disks();
        let mut renewed = Vec::new();
        if disks.iter().any(|disk| disk.session.lock().lacks) {
            renewed = replay.renew(|| shared.new_producer_id(false))?;
        }
        let clock = Steady::new(&shared.clock);
        let (coordinator, effects) =
            replay.open(Settings::default(), clock.now()).map_err(corrupt)?;
        let flush = topic.topic().config.read().flush;
        let transactions = Self {
            cut: RwLock::new(()),
            flush: Mutex::new(flush),
            exposure: AtomicU64::new(flush.exposure_nanos()),
            cores: Mutex::default(),
            state: Mutex::new(State {
                coordinator,
                topic,
                table,
                epoch,
                answers: Vec::new(),
                abandoned: BTreeSet::new(),
                wakes_at: Timestamp::MAX,
                halves: BTreeSet::new(),
            }),
            answered: Condvar::new(),
            requests: AtomicU64::new(0),
            clock,
            spares: Mutex::default(),
            reports: Arc::default(),
            changed: Arc::default(),
            unseen: Mutex::default(),
        };
        let mut jobs = Vec::new();
        let mut state = transactions.state.lock();
        let written: Result<Vec<_>> =
            renewed.iter().map(|record| state.write(shared, record)).collect();
        let is_safe = |begun: &Begun| begun.wait(shared, patience).is_ok();
        // What is not written down is renewed again by the next opening.
        if written.is_ok_and(|written| written.last().is_none_or(is_safe)) {
            disks.iter().for_each(|disk| disk.session.lock().lacks = false);
        }
        transactions.begin(shared, &mut state, effects, None, &mut jobs);
        drop(state);
        Ok((Arc::new(transactions), jobs))
    }

    /// Holds a transactional id: fences whoever held it, and settles what they left.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for an id or a time-out that cannot be; [`Error::TimedOut`]; [`Error::Io`] and
    /// others of the internal topic.
    pub(crate) fn open(
        &self,
        shared: &Arc<Shared>,
        id: &Arc<str>,
        timeout: Duration,
        renews: Option<TransactionTag>,
        wait: Duration,
    ) -> Result<TransactionTag> {
        let mut patience = Patience::new(shared, wait);
        loop {
            let fresh = shared.new_producer_id(false)?;
            let (answer, why) = self.call(shared, wait, id, |request| {
                Event::Open(Open { request, id: Arc::clone(id), timeout, fresh, renews })
            })?;
            match answer {
                Answer::Opened { tag } => return Ok(tag),
                Answer::Refused(Refusal::Busy | Refusal::ProducerIdInUse) | Answer::Failed
                    if patience.lasts() =>
                {
                    self.pause(shared)?;
                }
                Answer::Refused(refusal @ Refusal::BadTimeout { .. }) => {
                    let (key, value) = ("transaction.timeout.ms".into(), format!("{timeout:?}"));
                    return Err(Error::InvalidConfig { key, value, reason: refusal.to_string() });
                }
                Answer::Refused(refusal) => return Err(refused(id, refusal, renews)),
                Answer::Failed | Answer::Ended { .. } => return Err(in_doubt(id, wait, why)),
            }
        }
    }

    /// Before the first batch of a transaction in a partition: the decision has to be as safe as what it decides about.
    ///
    /// # Errors
    /// What making that durable runs into.
    #[inline]
    pub(crate) fn match_flush(&self, shared: &Shared, partition: &Partition) -> Result<()> {
        if self.exposure.load(Ordering::Acquire) <= partition.exposure_nanos()? {
            return Ok(());
        }
        self.tighten(shared, partition.flush_level()?)
    }

    /// A partition that takes part, or may, is flushed like that.
    ///
    /// # Errors
    /// As for [`Transactions::match_flush`].
    #[cold]
    pub(super) fn tighten(&self, shared: &Shared, flush: Flush) -> Result<()> {
        // Whom the change tells something may run a transaction, which comes here as well.
        let _postponed = postpone();
        let mut current = self.flush.lock();
        if flush.exposure() < current.exposure() {
            // Whose sake it is for has written nothing yet.
            shared.tighten_internal_topics(flush).map_err(Error::of_others)?;
            *current = flush;
            self.exposure.store(flush.exposure_nanos(), Ordering::Release);
        }
        Ok(())
    }

    /// Adds a partition to the transaction: before each batch, for the transaction may be over.
    ///
    /// # Errors
    /// [`Error::TransactionAborted`], [`Error::ProducerFenced`], [`Error::InvalidTransactionState`].
    pub(crate) fn join(&self, id: &str, tag: TransactionTag, partition: PartitionId) -> Result<()> {
        let mut state = self.state.lock();
        let joined = state.coordinator.join(|| self.clock.now(), tag, partition);
        self.wake_in_time(&mut state);
        joined.map_err(|refusal| refused(id, refusal, Some(tag)))
    }

    /// Ends the transaction, and returns when readers can see how. What it says is how it *did* end.
    ///
    /// # Errors
    /// [`Error::TimedOut`]: [`Transactions::verdict`] knows how it ended. Others as for [`Transactions::join`].
    pub(crate) fn end(
        &self,
        shared: &Arc<Shared>,
        id: &str,
        tag: TransactionTag,
        outcome: Outcome,
        wait: Duration,
    ) -> Result<(Outcome, Option<TransactionTag>)> {
        let mut patience = Patience::new(shared, wait);
        loop {
            let ask = |request| Event::End { request, tag, outcome };
            let (answer, why) = self.call(shared, wait, id, ask)?;
            return match answer {
                Answer::Ended { outcome, next } => Ok((outcome, next)),
                Answer::Refused(Refusal::Busy) if patience.lasts() => {
                    self.pause(shared)?;
                    continue;
                }
                Answer::Refused(refusal) => Err(refused(id, refusal, Some(tag))),
                Answer::Failed | Answer::Opened { .. } => Err(in_doubt(id, wait, why)),
            };
        }
    }

    /// An id of the store's own that is held and not in use, or the name of one more.
    pub(crate) fn take_spare(&self) -> Result<(Arc<str>, TransactionTag), Arc<str>> {
        let mut spares = self.spares.lock();
        spares.held.pop().ok_or_else(|| {
            spares.named += 1;
            format!("__atomic-{}", spares.named).into()
        })
    }

    pub(crate) fn keep_spare(&self, spare: (Arc<str>, TransactionTag)) {
        self.spares.lock().held.push(spare);
    }

    /// Lets go of an id; what its holder left open is aborted.
    pub(crate) fn close(&self, shared: &Arc<Shared>, tag: TransactionTag) {
        self.run(shared, Event::Close { tag });
    }

    /// How a transaction ended.
    pub(crate) fn verdict(&self, tag: TransactionTag) -> Verdict {
        self.state.lock().coordinator.verdict(tag)
    }

    /// Keeps all markers away: between transactions, and never amid one.
    ///
    /// # Errors
    /// [`Error::TimedOut`] while a transaction cannot be settled.
    pub(super) fn hold(
        &self,
        shared: &Arc<Shared>,
        wait: Duration,
    ) -> Result<RwLockWriteGuard<'_, ()>> {
        let late = |what| Error::late(format!("waiting for {what}"), wait);
        let mut patience = Patience::new(shared, wait);
        loop {
            let cut = self.cut.try_write_for(wait).ok_or_else(|| late("transactions to settle"))?;
            if self.state.lock().halves.is_empty() {
                return Ok(cut);
            }
            drop(cut);
            if !patience.lasts() {
                return Err(late("a transaction whose partitions are not all there"));
            }
            self.pause(shared)?;
        }
    }

    /// Looks at partitions that have changed, and does what is due by time. Returns when to come back.
    pub(super) fn turn(&self, shared: &Arc<Shared>, changed: &[Arc<Core>]) -> Duration {
        self.take_reports(shared);
        for core in changed {
            if let Some(topic) = shared.topic_of(core) {
                self.find_open_in(shared, topic.id, core);
            }
            if core.partition().topic() == GROUP_TOPIC
                && let Some(groups) = shared.groups.get()
            {
                groups.on_other_leader();
            }
        }
        self.find_unseen(shared);
        let due = self.state.lock().coordinator.next_deadline();
        if due.is_some_and(|due| due <= self.clock.now()) {
            self.run(shared, Event::Tick);
        }
        let mut state = self.state.lock();
        state.wakes_at = state.coordinator.next_deadline().unwrap_or(Timestamp::MAX);
        if state.wakes_at == Timestamp::MAX {
            return Duration::MAX;
        }
        state.wakes_at.since(self.clock.now()).max(Duration::from_millis(1))
    }

    /// As [`Transactions::turn`], for stores without threads.
    pub(super) fn tick(&self, shared: &Arc<Shared>) {
        let changed = self.changed.take();
        self.turn(shared, &changed);
    }

    /// Where partitions that have changed are queued.
    pub(super) fn queue(&self) -> &Arc<Attention> {
        &self.changed
    }

    /// Puts down what is known to be settled, so that the next open is quick.
    pub(super) fn note_all(&self, shared: &Arc<Shared>) {
        let jobs = {
            let _postponed = postpone();
            let mut state = self.state.lock();
            let effects = state.coordinator.notes();
            let mut jobs = Vec::new();
            self.begin(shared, &mut state, effects, None, &mut jobs);
            jobs
        };
        self.finish(shared, jobs);
    }

    /// Before something is tried again.
    ///
    /// # Errors
    /// [`Error::Closed`]: it would be of no use.
    pub(super) fn pause(&self, shared: &Arc<Shared>) -> Result<()> {
        shared.check_open()?;
        if shared.options.background {
            let mut state = self.state.lock();
            self.answered.wait_for(&mut state, BUSY_PAUSE);
        } else {
            self.tick(shared);
        }
        Ok(())
    }

    /// The store is closed: no answer comes any more.
    pub(super) fn wake_waiting(&self) {
        let _state = self.state.lock();
        self.answered.notify_all();
    }

    /// Asks something and waits for the answer.
    fn call(
        &self,
        shared: &Arc<Shared>,
        wait: Duration,
        id: &str,
        event: impl FnOnce(RequestId) -> Event,
    ) -> Result<Answered> {
        let request = RequestId(self.requests.fetch_add(1, Ordering::Relaxed));
        let jobs = self.step(shared, event(request));
        let left = self.finish_within(shared, jobs, wait);
        let mut state = self.state.lock();
        // The thread that asks mostly does itself what the answer needs: then the clock is not asked.
        let mut deadline = None;
        loop {
            if let Some(answer) = state.take_answer(request) {
                return Ok(answer);
            }
            let late = if shared.chores.have_ended() {
                true
            } else if shared.options.background {
                let deadline = *deadline.get_or_insert_with(|| Instant::now().checked_add(left));
                deadline.is_some_and(|at| self.answered.wait_until(&mut state, at).timed_out())
            } else {
                // Nobody else does what is due: this thread does, or nothing comes of it.
                let due = state.coordinator.next_deadline();
                MutexGuard::unlocked(&mut state, || self.tick(shared));
                due == state.coordinator.next_deadline()
            };
            if late && !state.answers.iter().any(|(of, _)| *of == request) {
                state.abandoned.insert(request);
                return Err(Error::in_doubt(format!("transaction {id}"), wait));
            }
        }
    }

    /// Tells the coordinator, and does what follows, and what follows from that.
    fn run(&self, shared: &Arc<Shared>, event: Event) {
        let jobs = self.step(shared, event);
        self.finish(shared, jobs);
    }

    fn step(&self, shared: &Arc<Shared>, event: Event) -> Vec<Job> {
        let reports = self.reports.take();
        self.steps(shared, reports.into_iter().chain([event]), None, |_| ())
    }

    /// `why`: what the record ran into that they say has failed.
    fn steps(
        &self,
        shared: &Arc<Shared>,
        events: impl IntoIterator<Item = Event>,
        why: Option<&Error>,
        last: impl FnOnce(&mut State),
    ) -> Vec<Job> {
        let _postponed = postpone();
        let mut state = self.state.lock();
        let mut jobs = Vec::new();
        let now = self.clock.now();
        for event in events {
            let effects = state.coordinator.step(now, event);
            self.begin(shared, &mut state, effects, why, &mut jobs);
            // A record that is safe as soon as it is written is waited for by nobody.
            while let Some(Job::Persist { id, .. }) = jobs.pop_if(|job| job.is_done()) {
                let effects = state.coordinator.step(now, Event::Persisted { id });
                self.begin(shared, &mut state, effects, None, &mut jobs);
            }
        }
        last(&mut state);
        jobs
    }

    /// Begins the effects, in order.
    fn begin(
        &self,
        shared: &Arc<Shared>,
        state: &mut State,
        effects: Vec<Effect>,
        why: Option<&Error>,
        jobs: &mut Vec<Job>,
    ) {
        for effect in effects {
            match effect {
                Effect::Persist { record } => {
                    // Before it, for it is not safe yet.
                    let rewritten = state.rewrite_if_due(shared);
                    let begun = state.write(shared, &record);
                    jobs.push(Job::Persist { id: record.id, begun });
                    match rewritten {
                        Ok(rewritten) => jobs.extend(rewritten.map(Job::Rewrite)),
                        Err(error) => report(shared, "rewriting the transactions", &error),
                    }
                }
                Effect::Note { record } => {
                    // Nothing depends on it.
                    let _ = state.write(shared, &record);
                }
                Effect::WriteMarkers { tag, outcome, partitions } => {
                    jobs.push(Job::Markers { tag, outcome, partitions });
                }
                Effect::Reply { request, answer } => {
                    if state.abandoned.remove(&request) {
                        // An id that was opened for nobody is let go of.
                        if let Answer::Opened { tag } = answer {
                            jobs.push(Job::Close(tag));
                        }
                    } else {
                        state.answers.push((request, (answer, why.cloned())));
                        self.answered.notify_all();
                    }
                }
                Effect::Unexplained { tag, partition } => {
                    let name = shared.topic_by_id(partition.topic).map(|topic| {
                        crate::types::TopicPartition::new(
                            Arc::clone(&topic.name),
                            partition.partition,
                        )
                    });
                    let reason = format!(
                        "a transaction of producer {} in epoch {}, of which nothing is known, was aborted",
                        tag.producer, tag.epoch
                    );
                    shared.events.push(
                        shared.clock.now(),
                        EventKind::BackgroundFailed { partition: name, reason },
                    );
                }
            }
        }
        self.wake_in_time(state);
    }

    /// Whoever looks after time-outs may sleep for longer than until the next one.
    fn wake_in_time(&self, state: &mut State) {
        if state.coordinator.next_deadline().is_some_and(|due| due < state.wakes_at) {
            state.wakes_at = Timestamp::MIN;
            self.changed.ring();
        }
    }

    fn finish(&self, shared: &Arc<Shared>, jobs: Vec<Job>) {
        let _ = self.finish_within(shared, jobs, Duration::MAX);
    }

    /// Returns how much of `wait` is left: nothing, if a record took longer and was left to a thread of its own.
    fn finish_within(&self, shared: &Arc<Shared>, jobs: Vec<Job>, mut wait: Duration) -> Duration {
        let mut jobs = VecDeque::from(jobs);
        while let Some(job) = jobs.pop_front() {
            match job {
                Job::Persist { id, begun } => {
                    let timeout = shared.options.append_timeout;
                    let waits = begun.as_ref().is_ok_and(Begun::waits).then(Instant::now);
                    let written = match &begun {
                        Ok(begun) => begun.wait(shared, timeout.min(wait)),
                        Err(error) => Err(error.clone()),
                    };
                    if let (Ok(begun), Err(Error::TimedOut { .. })) = (&begun, &written)
                        && wait < timeout
                        && leave(shared, &id, begun)
                    {
                        wait = Duration::ZERO;
                        continue;
                    }
                    if let Some(since) = waits {
                        wait = wait.saturating_sub(since.elapsed());
                    }
                    jobs.extend(match written {
                        Ok(()) => self.step(shared, Event::Persisted { id }),
                        Err(error) => {
                            let reports = self.reports.take().into_iter();
                            let events = reports.chain([Event::PersistFailed { id }]);
                            self.steps(shared, events, Some(&error), |_| ())
                        }
                    });
                }
                Job::Markers { tag, outcome, partitions } => {
                    jobs.extend(self.write_markers(shared, tag, outcome, partitions));
                }
                Job::Rewrite(rewritten) => {
                    if let Err(error) = rewritten.finish(shared, shared.options.append_timeout) {
                        report(shared, "rewriting the transactions", &error);
                    }
                }
                Job::Close(tag) => jobs.extend(self.step(shared, Event::Close { tag })),
            }
        }
        wait
    }
}

impl State {
    fn take_answer(&mut self, request: RequestId) -> Option<Answered> {
        let at = self.answers.iter().position(|(of, _)| *of == request)?;
        Some(self.answers.swap_remove(at).1)
    }

    fn write(&mut self, shared: &Arc<Shared>, record: &TransactionRecord) -> Result<Begun> {
        let (key, value) = (record.key(), record.value());
        let begun = self.topic.begin(shared, &key, value.as_deref())?;
        put(&mut self.table, key, value);
        Ok(begun)
    }

    /// Writes the table again, if the log has outgrown it.
    fn rewrite_if_due(&mut self, shared: &Arc<Shared>) -> Result<Option<Rewritten>> {
        if !self.topic.rewrite_is_due() {
            return Ok(None);
        }
        let epoch = self.topic.core().leader_epoch();
        if self.epoch != epoch && !self.read(shared, epoch)? {
            return Ok(None);
        }
        // Nothing here is written in transactions, so that where a record was first makes no difference.
        let live = self.table.iter().map(|(key, value)| Live {
            at: Offset::ZERO,
            key: key.clone(),
            value: value.clone(),
        });
        self.topic.rewrite(epoch, live).map(Some)
    }

    /// Reads the table anew: what it has of a leader before may be lost, and is not to come back. False: not all of the log
    /// is safe by now.
    fn read(&mut self, shared: &Arc<Shared>, epoch: LeaderEpoch) -> Result<bool> {
        let end = match safe_end(shared, self.topic.core(), Duration::ZERO) {
            Err(Error::TimedOut { .. }) => return Ok(false),
            end => end?,
        };
        let mut table = HashMap::new();
        self.topic.replay(end, |entry| {
            if let Entry::Record { key, value, .. } = entry {
                put(&mut table, key.to_vec(), value.map(<[u8]>::to_vec));
            }
            Ok(())
        })?;
        (self.table, self.epoch) = (table, epoch);
        Ok(true)
    }
}

fn put(table: &mut HashMap<Vec<u8>, Vec<u8>>, key: Vec<u8>, value: Option<Vec<u8>>) {
    match value {
        Some(value) => table.insert(key, value),
        None => table.remove(&key),
    };
}

/// Leaves a record to a thread that waits for it. False: there is none.
fn leave(shared: &Arc<Shared>, id: &Arc<str>, begun: &Begun) -> bool {
    let transactions = shared.known_transactions().filter(|_| shared.options.background);
    let Some(transactions) = transactions else { return false };
    let (shared, job) =
        (Arc::clone(shared), Job::Persist { id: Arc::clone(id), begun: Ok(begun.clone()) });
    try_apart(move || transactions.finish(&shared, vec![job])).is_none()
}

fn report(shared: &Arc<Shared>, what: &str, error: &Error) {
    let reason = format!("{what}: {error}");
    shared.events.push(shared.clock.now(), EventKind::BackgroundFailed { partition: None, reason });
}

/// A record could not be written, or is not known to be.
fn in_doubt(id: &str, timeout: Duration, why: Option<Error>) -> Error {
    why.unwrap_or_else(|| Error::in_doubt(format!("the record of a transaction of {id}"), timeout))
}

/// Something else is under way; trying again helps.
pub(crate) fn busy(id: &str) -> Error {
    Error::late(format!("settling an earlier transaction of {id}"), Duration::ZERO)
}

fn corrupt(source: crate::error::DecodeError) -> Error {
    let partition = crate::types::TopicPartition::new(TRANSACTION_TOPIC, 0);
    let (start, end) = (Offset::ZERO, Offset::MAX);
    Error::Corrupt { partition, offsets: start..end, path: "".into(), position: 0, source }
}

fn refused(id: &str, refusal: Refusal, tag: Option<TransactionTag>) -> Error {
    let reason = refusal.to_string();
    let id = id.to_owned();
    match refusal {
        Refusal::Fenced { current } => Error::ProducerFenced {
            id: current.producer,
            epoch: tag.map_or(current.epoch, |tag| tag.epoch),
            current: current.epoch,
        },
        Refusal::Over(Verdict::Aborted) => Error::TransactionAborted { id, reason },
        Refusal::BadId | Refusal::Full { .. } => {
            Error::InvalidConfig { key: "transactional.id".into(), value: id, reason }
        }
        // Something is settled, or a partition has lost a marker that is being written again.
        Refusal::Busy => busy(&id),
        _ => Error::InvalidTransactionState { id, reason },
    }
}

#[cfg(test)]
mod tests;
