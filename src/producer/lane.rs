//! One partition, as a producer writes to it: which thread does what the window decides.
//!
//! A sender that finds nothing under way appends its record itself. Otherwise the record gathers, and the thread
//! that ends what is under way goes on with it. The records of a *burst* gather as well: they come so fast, and so far
//! ahead of whoever looks at their outcomes, that a batch of them is what everybody is better off with. It is appended
//! by the sender who fills it, by the first who looks, or, 250 us after its first record, by the thread for chores (which
//! therefore sends none itself).
//! At most one thread *drives* a lane: it waits for the
//! acknowledgement of the first batch (and flushes, if nobody else does), tells those that it ended, and appends what
//! has gathered. Threads that wait for deliveries drive in turn; the others sleep, each on its own bed. Where nobody
//! waits but somebody counts on progress (a callback, a future, records that gathered), the acknowledgement is
//! watched, and the store's thread for chores drives.
//!
//! Callbacks run under no lock, one after the other and in order; on the thread that happens to end the records:
//! a sender's, a waiter's, or the one for chores. Never on a disk's worker, and never on a thread that drives or offers
//! at that moment, for they may wait for the lane: nor is anybody else told there of what it appends or flushes.
//!
//! Lock order: a lane, then the partition's. Nothing of a partition is waited for under a lane's lock.
//!
//! Invariant: while somebody sleeps, somebody drives or offers, or nothing can be done before a time that the
//! sleeper knows.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::config::ProducerSettings;
use crate::error::{Error, ErrorClass, Result, Written};
use crate::partition::{Bed, News, Postponed, postpone};
use crate::record::{Record, RecordSize};
use crate::storage::Clock;
use crate::store::{Chore, Chores, does_chores};
use crate::types::{Offset, Timestamp, TopicPartition, guard};

use super::batch::{Counts, Placed, memory_of};
use super::delivery::{Callback, RecordMetadata, Shared};
use super::memory::Memory;
use super::numbers::Numbers;
use super::target::{Offered, Pending, Target};
use super::window::{BURST_BYTES, Ended, Sent, Window};

/// Batches that a thread appends for others before it lets go.
const ROUNDS_MAX: usize = 16;
/// How long a thread that begins to drive waits for as many as last time.
const GATHER: Duration = Duration::from_micros(30);
/// Where so many are woken, whoever goes on is woken before them, for the next flush to begin meanwhile: 1.05 to 1.08 times
/// as many records a second with 16 and 64 threads. Fewer are woken first, and are company.
const CROWD: usize = 8;
/// How long records that gather are left to their senders, which may be about to wait for them.
const SOON: Duration = Duration::from_millis(1);
/// So many records in so short a time, none of whose outcomes anybody has looked at, are a burst.
const BURST: u32 = 16;
const BURST_WITHIN: Duration = Duration::from_micros(16);
/// Room in the buffer that is taken for a batch of a burst at once.
const BURST_ROOM: u64 = 2 * BURST_BYTES;

/// What all lanes of a producer share.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) settings: ProducerSettings,
    pub(super) memory: Memory,
    pub(super) clock: Clock,
    pub(super) chores: Arc<Chores>,
    /// Records of a burst may gather: somebody does the chores.
    pub(super) bursts: bool,
    pub(super) panics: AtomicU64,
}

/// How a record was taken.
pub(super) enum Taken<T: Target> {
    Done {
        offset: Offset,
        timestamp: Timestamp,
        number: u64,
    },
    Pending(Arc<Shared<T>>, Sent),
    /// There is no room for it; the callback comes back.
    NoRoom(Option<Callback>),
}

/// What a wait is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// The records have ended.
    Ended,
    /// Their callbacks, too, have returned.
    Called,
}

pub(super) struct Lane<T: Target> {
    this: Weak<Self>,
    name: TopicPartition,
    target: T,
    common: Arc<Common>,
    state: Mutex<State<T>>,
    /// Records that gather, for a thread that waits for company.
    queued: AtomicU32,
    /// A batch has to be offered again.
    stuck: AtomicBool,
    /// One past the number of the record whose outcome was looked at last.
    looked: AtomicU64,
    /// The lane is among the store's chores.
    is_chore: AtomicBool,
}

struct State<T: Target> {
    window: Window<T::Pending>,
    /// The last batch of those that gather, as its receipts know it. It names the lane, and so it goes when none gathers
    /// any more.
    gathering: Option<Arc<Shared<T>>>,
    /// Somebody waits for the first acknowledgement, or was told to.
    driven: bool,
    sleepers: Vec<Sleeper>,
    watchers: Vec<Watcher>,
    next_watcher: u64,
    /// Somebody counts on the records below this number and does not wait.
    followed: u64,
    calls: VecDeque<(Callback, Result<RecordMetadata>, u64)>,
    /// Number of the record whose callback runs.
    calling: Option<u64>,
    /// Up to where those that sleep were told, and whether callbacks have returned since.
    told: u64,
    called: bool,
    /// How many records the last round ended or left behind.
    company: u32,
    /// What the log had of the producer when the lane was made is acknowledged.
    begins_safely: bool,
    /// When the lane is next among the chores.
    timer: Option<Duration>,
    /// How many records had ended when those that gather were last left to their senders.
    left_at: Option<u64>,
    /// How many records were appended one by one, since when.
    singles: u32,
    singles_since: Duration,
}

struct Sleeper {
    number: u64,
    until: Until,
    bed: Arc<Bed>,
}

struct Watcher {
    id: u64,
    number: u64,
    waker: Waker,
}

thread_local! {
    static CALLING: Cell<bool> = const { Cell::new(false) };
}

impl<T: Target> State<T> {
    /// Whether somebody counts on progress and does not wait.
    fn is_followed(&self) -> bool {
        self.followed > self.window.ended() || self.window.is_pressed() || !self.watchers.is_empty()
    }

    /// What was sent by now waits for no company, and is seen to.
    fn hasten(&mut self) {
        self.window.hasten();
        self.followed = self.window.sent();
    }

    fn is_quiet(&self) -> bool {
        self.window.is_idle()
            && !self.window.has_news()
            && self.calls.is_empty()
            && self.sleepers.is_empty()
            && self.watchers.is_empty()
    }

    /// Whether there are callbacks to be called, and nobody calls any.
    fn has_calls(&self) -> bool {
        self.calling.is_none() && (!self.calls.is_empty() || self.window.has_calls())
    }

    /// Whether the application is to be called: by callbacks, or wakers of records that have ended.
    fn calls_anybody(&self) -> bool {
        let ended = self.window.ended();
        let wakes = ended > self.told && self.watchers.iter().any(|one| one.number < ended);
        wakes || self.has_calls()
    }

    fn is_served(&self, number: u64, until: Until) -> bool {
        let called = || {
            // What was not collected yet may be of this record.
            !self.window.has_calls()
                && self.calling.is_none_or(|calling| calling > number)
                && self.calls.front().is_none_or(|(_, _, first)| *first > number)
        };
        self.window.ended() > number && (until == Until::Ended || called())
    }
}

impl<T: Target> std::fmt::Debug for Lane<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Lane").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<T: Target> Lane<T> {
    pub(super) fn new(
        name: TopicPartition,
        target: T,
        numbers: Numbers,
        common: Arc<Common>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            target,
            common,
            state: Mutex::new(State {
                window: Window::new(name.clone(), numbers),
                gathering: None,
                driven: false,
                sleepers: Vec::new(),
                watchers: Vec::new(),
                next_watcher: 0,
                followed: 0,
                calls: VecDeque::new(),
                calling: None,
                told: 0,
                called: false,
                company: 0,
                begins_safely: false,
                timer: None,
                left_at: None,
                singles: 0,
                singles_since: Duration::ZERO,
            }),
            name,
            queued: AtomicU32::new(0),
            stuck: AtomicBool::new(false),
            looked: AtomicU64::new(0),
            is_chore: AtomicBool::new(false),
        })
    }

    pub(super) fn name(&self) -> &TopicPartition {
        &self.name
    }

    /// Whether the partition took its last batch.
    pub(super) fn is_available(&self) -> bool {
        !self.stuck.load(Ordering::Relaxed)
    }

    pub(super) fn counts(&self) -> Counts {
        self.state.lock().window.counts
    }

    pub(super) fn metadata(&self, placed: Placed, own: Option<Timestamp>) -> RecordMetadata {
        let own = own.filter(|_| !placed.stamped);
        RecordMetadata::new(&self.name, placed.offset, own.unwrap_or(placed.appended_at))
    }

    /// Takes a record. `room`: how much of the buffer was taken for it before.
    ///
    /// # Errors
    /// What is wrong with the record, or with the lane; the record is then in no log.
    #[inline]
    pub(super) fn send(
        &self,
        record: &Record<'_>,
        callback: Option<Callback>,
        room: u64,
    ) -> Result<Taken<T>> {
        let memory = &self.common.memory;
        let size = RecordSize::of(record);
        let mut state = self.state.lock();
        let is_direct = !state.driven && self.common.settings.linger.is_zero();
        if is_direct && state.window.is_single() {
            let now = self.common.clock.elapsed();
            state.window.catch_up(now, &self.common.settings);
        }
        if is_direct && state.window.is_burst() && does_chores() {
            state = self.end_burst(state);
        }
        // Only now: either may have ended it all.
        if let Err(error) = state.window.check_open() {
            memory.give_back(room);
            self.leave(state);
            return Err(error);
        }
        if is_direct {
            let is_idle = state.window.is_idle() && !state.window.is_burst();
            if is_idle && (room > 0 || memory.has_room(memory_of(size))) {
                return self.send_single(state, record, size, callback, room);
            }
        }
        self.gather(state, record, size, callback, room)
    }

    /// Appends the record at once.
    #[inline]
    fn send_single(
        &self,
        mut state: MutexGuard<'_, State<T>>,
        record: &Record<'_>,
        size: RecordSize,
        callback: Option<Callback>,
        room: u64,
    ) -> Result<Taken<T>> {
        let author = state.window.begin_single();
        drop(state);
        let settings = &self.common.settings;
        let stamped = record.timestamp.is_some() && self.target.stamps_records();
        // Whom the append wakes may wait for this lane.
        let postponed = postpone();
        let outcome = self.target.offer(&author, std::slice::from_ref(record), settings.acks);
        let mut state = self.state.lock();
        match outcome {
            Ok(Offered::Done(appended)) => {
                let number = state.window.ended();
                state.window.single_done();
                let (offset, at) = (appended.offsets.start, appended.timestamp);
                let timestamp = record.timestamp.filter(|_| !stamped).unwrap_or(at);
                if let Some(callback) = callback {
                    // Those that have ended before come first.
                    let freed = self.collect(&mut state);
                    self.common.memory.give_back(freed);
                    let metadata = RecordMetadata::new(&self.name, offset, timestamp);
                    state.calls.push_back((callback, Ok(metadata), number));
                }
                state.singles += 1;
                if state.singles >= BURST {
                    self.look_for_burst(&mut state);
                }
                // Before anybody is called, who may send and need it.
                self.common.memory.give_back(room);
                if !state.is_quiet() {
                    let state = self.offer_due(state, false);
                    self.leave_and_tell(state, Some(postponed));
                } else {
                    drop(state);
                    drop(postponed);
                }
                Ok(Taken::Done { offset, timestamp, number })
            }
            Err(error) if is_told_at_once(&error) => {
                state.window.single_refused(&error, settings);
                self.common.memory.give_back(room);
                let state = self.offer_due(state, false);
                self.leave_and_tell(state, Some(postponed));
                Err(error)
            }
            outcome => {
                if room == 0 {
                    self.common.memory.take_anyway(memory_of(size));
                }
                let now = self.common.clock.elapsed();
                let calls = callback.is_some();
                let outcome = outcome.map(|offered| (offered, stamped));
                let (sent, cell) =
                    state.window.single_waits(record, size, callback, outcome, now, settings);
                if calls {
                    state.followed = state.followed.max(sent.number + 1);
                }
                let state = self.offer_due(state, false);
                self.leave_and_tell(state, Some(postponed));
                Ok(Taken::Pending(Shared::new(self.itself(), cell), sent))
            }
        }
    }

    /// Whether the last records that were appended one by one came so fast, and so far ahead of whoever looks at
    /// their outcomes, that the next ones are better gathered: a batch of many costs little more than one of one.
    #[cold]
    fn look_for_burst(&self, state: &mut State<T>) {
        let now = self.common.clock.elapsed();
        let is_fast = now.saturating_sub(state.singles_since) <= BURST_WITHIN;
        (state.singles, state.singles_since) = (0, now);
        let ahead = state.window.ended().saturating_sub(self.looked.load(Ordering::Relaxed));
        if self.common.bursts && is_fast && ahead >= u64::from(BURST) && !does_chores() {
            state.window.begin_burst();
        }
    }

    /// Somebody looks at the outcome of the record `number`. It is a hint: nothing is lost with it.
    #[inline]
    pub(super) fn look(&self, number: u64) {
        self.looked.store(number + 1, Ordering::Relaxed);
    }

    /// Adds the record to those that gather.
    fn gather<'a>(
        &'a self,
        mut state: MutexGuard<'a, State<T>>,
        record: &Record<'_>,
        size: RecordSize,
        callback: Option<Callback>,
        room: u64,
    ) -> Result<Taken<T>> {
        let Common { memory, settings, clock, .. } = &*self.common;
        let bytes_max = match state.window.has_place_for(size) {
            true => None,
            false => match self.bytes_max_with(size) {
                Ok(bytes_max) => Some(bytes_max),
                Err(error) => {
                    memory.give_back(room);
                    self.leave(state);
                    return Err(error);
                }
            },
        };
        let ahead = bytes_max.is_some() && state.window.is_burst();
        let ahead = if ahead && memory.try_take_ahead(BURST_ROOM) { BURST_ROOM } else { 0 };
        let has_room = match bytes_max {
            Some(_) => ahead >= memory_of(size),
            None => state.window.has_room_for(size),
        };
        let has_room = has_room && room == 0;
        if room == 0 && !has_room && !memory.try_take(memory_of(size)) {
            memory.give_back(ahead);
            return Ok(Taken::NoRoom(callback));
        }
        if let Some(bytes_max) = bytes_max {
            let cell = state.window.begin_batch(bytes_max, clock.elapsed(), ahead);
            state.gathering = Some(Shared::new(self.itself(), cell));
        }
        let shared = state.gathering.clone().expect("a batch that gathers has begun");
        let calls = callback.is_some();
        let sent = state.window.push(record, size, callback, has_room);
        if calls || sent.in_burst {
            state.followed = state.followed.max(sent.number + 1);
        }
        if memory.is_awaited() {
            // Under the lock: who comes into line from here on finds the record.
            state.hasten();
        }
        if sent.index > 0 && !state.driven && state.window.is_left_to_sender(settings) {
            // The first of the batch has set a time for it.
            return Ok(Taken::Pending(shared, sent));
        }
        self.queued.store(state.window.queued_records(), Ordering::Release);
        // Whoever drives appends what has gathered; but a full batch need not wait for that.
        if !state.driven || state.window.has_window() {
            state = self.offer_due(state, false);
        }
        self.leave(state);
        Ok(Taken::Pending(shared, sent))
    }

    /// How large the batch of a record may become.
    fn bytes_max_with(&self, size: RecordSize) -> Result<u64> {
        let (bytes, bytes_max) = (size.batch_bytes(), self.target.max_batch_bytes()?);
        if bytes > bytes_max {
            let partition = self.name.clone();
            return Err(Error::RecordTooLarge { partition, bytes, bytes_max });
        }
        Ok(self.common.settings.batch_bytes.min(bytes_max))
    }

    /// Appends what is due.
    fn offer_due<'a>(
        &'a self,
        mut state: MutexGuard<'a, State<T>>,
        eager: bool,
    ) -> MutexGuard<'a, State<T>> {
        let settings = &self.common.settings;
        for _ in 0..ROUNDS_MAX {
            let now = self.common.clock.elapsed();
            let Some(offer) = state.window.next_offer(now, settings, eager) else { break };
            self.queued.store(state.window.queued_records(), Ordering::Release);
            drop(state);
            let postponed = postpone();
            let records = offer.content.records();
            let have_times = records.iter().any(|record| record.timestamp.is_some());
            let stamped = have_times && self.target.stamps_records();
            let outcome = self.target.offer(&offer.author, &records, settings.acks);
            let outcome = outcome.map(|offered| (offered, stamped));
            drop(records);
            state = self.state.lock();
            state.window.on_offered(offer, outcome, self.common.clock.elapsed(), settings);
            if postponed.has_any() {
                drop(state);
                drop(postponed);
                state = self.state.lock();
            }
        }
        state
    }

    /// Waits for the first acknowledgements, until the record `number` has ended, the time is over, or somebody is to
    /// be called who may wait for this lane. The caller has said that it drives. `postponed`: none for one that only
    /// takes what has come.
    fn drive<'a>(
        &'a self,
        mut state: MutexGuard<'a, State<T>>,
        number: u64,
        postponed: Option<&Postponed>,
        left: impl Fn() -> Duration,
    ) -> MutexGuard<'a, State<T>> {
        let Common { settings, clock, .. } = &*self.common;
        let blocks = postponed.is_some();
        loop {
            // Who has been served is company itself, and wakes the rest of it first.
            if blocks && state.window.ended() <= number {
                state = self.wait_for_company(state);
            }
            state = self.offer_due(state, blocks);
            let calls = state.calls_anybody() || postponed.is_some_and(Postponed::has_any);
            if calls || state.window.ended() > number {
                break;
            }
            let ends_at = state.window.expires_at(settings);
            let Some((first, pending)) = state.window.take_front() else { break };
            // Those that have ended are not to wait for the next.
            self.leave(state);
            let before = clock.elapsed();
            let span = ends_at.map_or(Duration::MAX, |at| at.saturating_sub(before)).min(left());
            let outcome = if blocks { pending.wait(span) } else { pending.outcome_now() };
            state = self.state.lock();
            let came = outcome.is_some();
            let (ended, now) = (state.window.ended(), clock.elapsed());
            state.window.on_waited(first, pending, outcome, now, settings);
            if came {
                state.window.catch_up(now, settings);
                let served = state.window.ended() - ended;
                let company = served + u64::from(state.window.queued_records());
                state.company = u32::try_from(company).unwrap_or(u32::MAX);
            } else if !blocks || left().is_zero() {
                break;
            }
        }
        state.driven = false;
        state
    }

    /// Waits until the record `number` has ended; whether it has by then.
    pub(super) fn wait(&self, number: u64, timeout: Duration, until: Until) -> bool {
        let started = Instant::now();
        let left = || timeout.saturating_sub(started.elapsed());
        // A callback that waits for callbacks would wait for itself (CLI-22).
        let until = if CALLING.get() { Until::Ended } else { until };
        let Common { settings, clock, .. } = &*self.common;
        let mut state = self.state.lock();
        state.window.end_burst();
        let mut told_to_drive = false;
        loop {
            if state.calls_anybody() {
                // Any of them may wait for this lane, so somebody else drives meanwhile.
                state.driven &= !told_to_drive;
                told_to_drive = false;
                self.leave(state);
                state = self.state.lock();
            }
            // Who waits for callbacks alone has nothing to drive for.
            if state.window.ended() <= number && (told_to_drive || !state.driven) {
                state.driven = true;
                told_to_drive = false;
                // The flush that it leads may acknowledge what others have in the log.
                let postponed = postpone();
                state = self.drive(state, number, Some(&postponed), left);
                if postponed.has_any() {
                    self.leave_and_tell(state, Some(postponed));
                    state = self.state.lock();
                }
                if state.calls_anybody() && !state.is_served(number, until) {
                    continue;
                }
            }
            if std::mem::take(&mut told_to_drive) {
                state.driven = false;
            }
            if state.is_served(number, until) || left().is_zero() {
                let served = state.is_served(number, until);
                self.leave(state);
                return served || self.state.lock().is_served(number, until);
            }
            let due = state.window.next_due(settings);
            let nap = due.map_or(Duration::MAX, |at| at.saturating_sub(clock.elapsed()));
            // A clock that stands still does not make anything due.
            let nap = nap.max(Duration::from_millis(1)).min(left());
            let bed = Bed::of_this_thread();
            state.sleepers.push(Sleeper { number, until, bed: Arc::clone(&bed) });
            self.leave(state);
            if bed.sleep(Instant::now(), nap) == Some(News::Served) {
                return true;
            }
            state = self.state.lock();
            match bed.news() {
                Some(News::Served) => return true,
                Some(News::Lead) => told_to_drive = true,
                _ => state.sleepers.retain(|other| !Arc::ptr_eq(&other.bed, &bed)),
            }
        }
    }

    /// Lets others send for a moment, until as many have as in the last round: one flush serves them all.
    fn wait_for_company<'a>(&'a self, state: MutexGuard<'a, State<T>>) -> MutexGuard<'a, State<T>> {
        let offered = state.window.under_way() - u64::from(state.window.queued_records());
        let missing = u64::from(state.company).saturating_sub(offered);
        let is_missing = || u64::from(self.queued.load(Ordering::Acquire)) < missing;
        if !is_missing() {
            return state;
        }
        drop(state);
        let started = Instant::now();
        while is_missing() && started.elapsed() < GATHER {
            std::thread::yield_now();
        }
        self.state.lock()
    }

    /// Lets go of the lock, tells everyone what has ended, and sees to it that somebody goes on.
    fn leave(&self, state: MutexGuard<'_, State<T>>) {
        self.leave_and_tell(state, None);
    }

    /// As [`Lane::leave`]; those who were to be told something meanwhile are told when that is done.
    fn leave_and_tell(&self, state: MutexGuard<'_, State<T>>, postponed: Option<Postponed>) {
        if self.leave_calls(state, postponed) {
            self.call_back();
        }
    }

    /// As [`Lane::leave_and_tell`], but for callbacks; whether there are any to call.
    fn leave_calls(
        &self,
        mut state: MutexGuard<'_, State<T>>,
        postponed: Option<Postponed>,
    ) -> bool {
        let Common { memory, chores, clock, settings, .. } = &*self.common;
        let freed = self.collect(&mut state);
        if !state.window.has_queue() {
            state.gathering = None;
        }
        let ended = state.window.ended();
        let (mut served, mut woken) = (Vec::new(), Vec::new());
        if ended > state.told || state.called {
            (state.told, state.called) = (ended, false);
            let sleepers = std::mem::take(&mut state.sleepers);
            (served, state.sleepers) = sleepers
                .into_iter()
                .partition(|sleeper| state.is_served(sleeper.number, sleeper.until));
            served.iter().for_each(|sleeper: &Sleeper| sleeper.bed.leave_word(News::Served));
            woken = state.watchers.extract_if(.., |one| one.number < ended).collect();
        }
        self.stuck.store(state.window.is_stuck(), Ordering::Relaxed);

        let (mut next, mut soon, mut timer) = (None, false, None);
        if !state.window.is_idle() && !state.driven && !state.window.is_offering() {
            let now = clock.elapsed();
            let offers = state.window.offer_is_due(now, settings, false);
            let driver = state.sleepers.iter().position(|sleeper| sleeper.number >= ended);
            if let Some(at) = driver.filter(|_| offers || state.window.front_waits()) {
                state.driven = true;
                let chosen = state.sleepers.remove(at);
                chosen.bed.leave_word(News::Lead);
                next = Some(chosen);
            } else {
                let mut due = None;
                if offers || state.is_followed() {
                    soon = offers || (state.window.front_waits() && self.watch_front(&mut state));
                    due = state.window.next_due(settings).filter(|_| !soon);
                } else if state.window.has_queue() {
                    // Whoever sent it is likely to wait for it.
                    due = Some(now.saturating_add(SOON));
                    state.left_at = Some(ended);
                }
                timer = due.filter(|due| state.timer.is_none_or(|set| *due < set));
                state.timer = timer.or(state.timer);
            }
        }
        let calls = state.has_calls();
        drop(state);

        memory.give_back(freed);
        if served.len() >= CROWD
            && let Some(next) = next.take()
        {
            next.bed.wake();
        }
        for sleeper in served {
            sleeper.bed.wake();
        }
        if let Some(next) = next {
            next.bed.wake();
        }
        if soon {
            self.be_chore();
        }
        if let Some(at) = timer {
            let chore: Weak<dyn Chore> = self.this.clone();
            chores.push_at(at, chore);
        }
        // Last, those who may wait for this lane.
        drop(postponed);
        if (soon || timer.is_some())
            && chores.have_ended()
            && let Some(lane) = self.this.upgrade()
        {
            // Nobody else does it any more. It calls callbacks, so that nothing is postponed any more.
            lane.run();
        }
        for watcher in woken {
            wake(watcher.waker);
        }
        calls
    }

    /// Collects the callbacks of records that have ended; gives the memory that came free.
    fn collect(&self, state: &mut State<T>) -> u64 {
        let (calls, freed) = state.window.take_news();
        for Ended { call, cell, number } in calls {
            let result = cell.result(call.index).expect("a record that has ended has an outcome");
            let result = result.map(|placed| self.metadata(placed, call.timestamp));
            state.calls.push_back((call.callback, result, number));
        }
        freed
    }

    fn watch_front(&self, state: &mut State<T>) -> bool {
        state.window.watch_front(&Waker::from(Arc::new(Woken(self.this.clone()))))
    }

    fn be_chore(&self) {
        if !self.is_chore.swap(true, Ordering::AcqRel) {
            let chore: Weak<dyn Chore> = self.this.clone();
            self.common.chores.push(chore);
        }
    }

    /// Calls what is to be called, in order, unless somebody does.
    fn call_back(&self) {
        let mut state = self.state.lock();
        if state.calling.is_some() {
            return;
        }
        loop {
            let freed = self.collect(&mut state);
            self.common.memory.give_back(freed);
            let Some((callback, result, number)) = state.calls.pop_front() else {
                (state.calling, state.called) = (None, true);
                // Those that wait for callbacks look again.
                self.leave(state);
                return;
            };
            state.calling = Some(number);
            drop(state);
            let before = CALLING.replace(true);
            if guard(|| callback(result)).is_none() {
                self.common.panics.fetch_add(1, Ordering::Relaxed);
            }
            CALLING.set(before);
            state = self.state.lock();
        }
    }

    /// Has `waker` called when the record has ended. Returns what to give next time.
    pub(super) fn watch(&self, number: u64, known: Option<u64>, waker: &Waker) -> Option<u64> {
        // Made, and the last one dropped, under no lock: both are the application's.
        let waker = waker.clone();
        let mut last = None;
        let mut state = self.end_burst(self.state.lock());
        if state.window.ended() > number {
            self.leave(state);
            return known;
        }
        let known = state.watchers.iter_mut().find(|one| Some(one.id) == known);
        let id = if let Some(watcher) = known {
            last = Some(std::mem::replace(&mut watcher.waker, waker));
            watcher.id
        } else {
            let id = state.next_watcher;
            state.next_watcher += 1;
            state.watchers.push(Watcher { id, number, waker });
            id
        };
        self.leave(state);
        drop(last);
        if self.common.chores.have_ended()
            && let Some(lane) = self.this.upgrade()
        {
            lane.run();
        }
        Some(id)
    }

    /// Somebody asks for the outcome of the record `number`, and does not wait: nobody else need come for it.
    pub(super) fn ask_for(&self, number: u64) {
        let mut state = self.end_burst(self.state.lock());
        state.followed = state.followed.max(number + 1);
        self.leave(state);
    }

    /// Appends what has gathered of a burst, if there is one.
    fn end_burst<'a>(&'a self, mut state: MutexGuard<'a, State<T>>) -> MutexGuard<'a, State<T>> {
        if state.window.is_burst() {
            state.window.end_burst();
            if !state.driven {
                state = self.offer_due(state, false);
            }
        }
        state
    }

    /// A delivery that nobody asks for any more is brought about all the same.
    pub(super) fn unwatched(&self, number: u64, watcher: Option<u64>) {
        let mut state = self.state.lock();
        let at = state.watchers.iter().position(|one| Some(one.id) == watcher);
        let gone = at.map(|at| state.watchers.remove(at));
        state.followed = state.followed.max(number + 1);
        self.leave(state);
        // Under no lock: its waker is the application's.
        drop(gone);
    }

    /// Has all that was sent by now delivered without further delay. Returns the number behind the last record.
    pub(super) fn hasten(&self) -> u64 {
        let mut state = self.state.lock();
        state.window.end_burst();
        state.hasten();
        // Before others send more, which gathers.
        let sent = state.window.sent();
        if !state.driven || state.window.has_window() {
            state = self.offer_due(state, false);
        }
        self.leave(state);
        sent
    }

    /// Has what was sent by now appended without delay, by another thread.
    pub(super) fn press(&self) {
        let mut state = self.state.lock();
        if !state.window.is_hastened() {
            state.hasten();
            drop(state);
            self.be_chore();
        }
    }

    /// Fails what is still under way.
    pub(super) fn abandon(&self, error: &Error) {
        let mut state = self.state.lock();
        state.window.abandon(error, &self.common.settings);
        self.leave(state);
    }

    /// Does what the thread for chores does for the lane; whether there are callbacks to call.
    fn go_on(&self) -> bool {
        let postponed = postpone();
        let mut state = self.state.lock();
        let now = self.common.clock.elapsed();
        if state.timer.is_some_and(|at| at <= now) {
            state.timer = None;
        }
        if state.left_at.take() == Some(state.window.ended()) {
            // Nobody came to wait for what gathered.
            state.followed = state.window.sent();
        }
        if !state.driven {
            state.driven = true;
            state = self.drive(state, u64::MAX, None, || Duration::ZERO);
        }
        if self.common.chores.have_ended() {
            state.window.abandon(&Error::Closed, &self.common.settings);
        }
        self.leave_calls(state, Some(postponed))
    }

    /// As the thread for chores, which the caller is; it comes back for callbacks when it is done with the one that waits.
    pub(super) fn go_on_amid_a_callback(&self) {
        if self.go_on() {
            self.be_chore();
        }
    }

    fn itself(&self) -> Arc<Self> {
        self.this.upgrade().expect("a lane that is used is held")
    }

    /// The sequence of the next record that will be sent. Where the lane goes on, at its beginning and after a record failed,
    /// the log says; nobody is told before that is acknowledged, for whoever is told lets go of what lies before.
    ///
    /// # Errors
    /// What the log answers; [`Error::TimedOut`] as long as older records are under way behind one that failed.
    pub(super) fn next_sequence(&self) -> Result<u64> {
        loop {
            let state = self.state.lock();
            let next = state.window.next_sequence();
            if next.is_none() && !state.window.is_idle() {
                let what = format!("{}: ending the records behind one that failed", self.name);
                return Err(Error::late(what, Duration::ZERO));
            }
            if let Some(next) = next.filter(|_| state.begins_safely) {
                return Ok(next);
            }
            drop(state);
            let next = self.target.settled_sequence(self.common.settings.acks)?;
            let mut state = self.state.lock();
            state.begins_safely = true;
            let is_fresh = state.window.sent() == 0;
            if state.window.is_idle() && (is_fresh || state.window.next_sequence().is_none()) {
                state.window.mend(next);
            }
        }
    }
}

impl<T: Target> Chore for Lane<T> {
    fn close(self: Arc<Self>) {
        let state = self.end_burst(self.state.lock());
        self.leave(state);
    }

    fn run(self: Arc<Self>) {
        self.is_chore.store(false, Ordering::Release);
        if self.go_on() {
            self.call_back();
        }
    }
}

/// Called when an acknowledgement that nobody waits for has come; by whoever learns it, in the middle of
/// something else, so that it only leaves word.
struct Woken<T: Target>(Weak<Lane<T>>);

impl<T: Target> Wake for Woken<T> {
    fn wake(self: Arc<Self>) {
        if let Some(lane) = self.0.upgrade() {
            lane.be_chore();
        }
    }
}

/// A waker is the application's: a panic ends here.
fn wake(waker: Waker) {
    let _ = guard(|| waker.wake());
}

/// Whether a sender is told of a refusal by `send` itself: the same record would be refused again.
fn is_told_at_once(error: &Error) -> bool {
    let hopeless =
        matches!(error.class(), ErrorClass::Invalid | ErrorClass::Fatal | ErrorClass::Fenced);
    hopeless && error.written() == Written::No
}
