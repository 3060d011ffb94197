//! What is on its way to one partition: gathered, offered, waited for. Decides, and does nothing itself.
//!
//! Records gather in batches in the *queue*. A batch whose turn it is moves into the *window*, gets its sequence
//! and is offered to the log; it leaves the window when its outcome is final. Time is an argument.
//!
//! Invariants:
//! 1. Records end in the order in which they were sent, each once.
//! 2. Batches are offered in order; one that has to be offered again is offered before any later one.
//! 3. At most [`WINDOW_MAX`] batches are in the log without an outcome: as many as the log recognises when they
//!    come again.
//! 4. A batch that the log may have is offered again under the sequence it had, or not at all. One that it certainly
//!    does not have may get another.
//! 5. No sequence is left out: a batch that fails and is not in the log gives its numbers to the next; if that is not
//!    known, the numbering restarts under a new epoch once the older batches have ended (CLI-07, CLI-12, KIP-360).

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::config::ProducerSettings;
use crate::error::{Error, ErrorClass, Result, Written};
use crate::partition::{Appended, Author};
use crate::record::{Record, RecordSize};
use crate::types::{Acks, Offset, TopicPartition};

use super::batch::{Batch, Call, Cell, Content, Counts, Outcome, Placed, memory_of};
use super::delivery::Callback;
use super::numbers::Numbers;
use super::target::{Offered, Pending};

/// What gathers of a burst before it is offered. Twice as much is no faster, and is told of later.
pub(super) const BURST_BYTES: u64 = 4 << 10;
/// How long the last records of a burst are left to their sender.
const BURST_SPAN: Duration = Duration::from_micros(250);

/// Batches in the log without an outcome.
pub(super) const WINDOW_MAX: usize = crate::protocol::producer_state::BATCHES_MAX;

/// A batch whose turn it is.
#[derive(Debug)]
struct Slot<P> {
    batch: Batch,
    place: Place<P>,
    sequence: u64,
    /// The log may have it.
    written: bool,
    /// The log has stamped its records, or would have, when it took it.
    stamped: bool,
    /// Where it was, when it last was in the log.
    offsets: Option<Range<Offset>>,
    /// By what it is not known whether the log has it.
    doubt: Option<Error>,
    tries: u32,
    /// Its acknowledgement is watched.
    watched: bool,
}

#[derive(Debug)]
enum Place<P> {
    /// To be offered.
    Out,
    /// Somebody offers it.
    Offered,
    /// In the log; `None` while somebody waits for it.
    Waits(Option<P>),
    Acknowledged(Appended),
    Failed(Error),
}

impl<P> Slot<P> {
    fn new(batch: Batch, sequence: u64) -> Self {
        Self {
            batch,
            place: Place::Out,
            sequence,
            written: false,
            stamped: false,
            offsets: None,
            doubt: None,
            tries: 0,
            watched: false,
        }
    }

    fn is_out(&self) -> bool {
        matches!(self.place, Place::Out)
    }

    fn is_final(&self) -> bool {
        matches!(self.place, Place::Acknowledged(_) | Place::Failed(_))
    }

    /// Takes note of what an error says about whether it is in the log.
    fn hear(&mut self, error: &Error) {
        if error.written() != Written::No {
            self.written = true;
            self.doubt = Some(error.clone());
        }
    }

    /// Fails it with `error`; one that the log may have, with what says so: its sender is never told that nothing was
    /// written when something may have been.
    fn fail(&mut self, error: &Error, name: &TopicPartition, settings: &ProducerSettings) {
        let says_no = error.written() == Written::No;
        let is_gone = matches!(error, Error::UnknownTopicOrPartition { .. });
        let told = if self.written && says_no && !is_gone {
            let known = self.offsets.is_some().then(|| self.late(name, settings));
            self.doubt.take().or(known)
        } else {
            None
        };
        self.place = Place::Failed(told.unwrap_or_else(|| error.clone()));
    }

    /// What made an older one fail, as it is told of this one: whether that is in the log, and where, says nothing of it.
    fn told_of_older(&self, error: &Error) -> Error {
        let mut told = error.clone();
        match (&mut told, &self.offsets) {
            (Error::NotEnoughReplicasAfterAppend { offsets, .. }, Some(own)) => {
                offsets.clone_from(own);
                told
            }
            (Error::NotEnoughReplicasAfterAppend { .. } | Error::TimedOut { .. }, _) => {
                told.of_others()
            }
            _ => told,
        }
    }

    fn late(&self, name: &TopicPartition, settings: &ProducerSettings) -> Error {
        let appended = self.offsets.clone().filter(|_| self.written);
        let what = format!("{name}: delivering {} records", self.batch.count);
        match appended {
            Some(offsets) => Error::unacknowledged(what, settings.delivery_timeout, offsets),
            None => Error::late(what, settings.delivery_timeout),
        }
    }
}

/// A batch to be offered now.
#[derive(Debug)]
pub(super) struct Offer {
    first: u64,
    pub(super) content: Content,
    pub(super) author: Author,
}

/// A callback whose record has ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) call: Call,
    pub(super) cell: Arc<Cell>,
    /// The record's number.
    pub(super) number: u64,
}

/// A record's place among those that were sent, and in its batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) index: u32,
    pub(super) number: u64,
    /// It belongs to a burst: it is brought about whether anybody asks for it or not.
    pub(super) in_burst: bool,
}

#[derive(Debug)]
pub(super) struct Window<P> {
    name: TopicPartition,
    slots: VecDeque<Slot<P>>,
    queue: VecDeque<Batch>,
    queued_records: u32,
    numbers: Numbers,
    /// The numbering restarts once no older batch may be in the log without an outcome.
    restart: bool,
    /// A named producer's record with this sequence failed: nothing that follows may be written.
    broken: Option<u64>,
    closed: Option<Error>,
    retry_at: Option<Duration>,
    /// Records below this number wait for no company.
    hastened: u64,
    /// A burst is under way: records gather although nothing is.
    burst: bool,
    /// Somebody offers a batch.
    offering: bool,
    /// It is a single record that is not in the window: nothing behind it may end before it.
    single: bool,
    sent: u64,
    ended: u64,
    pub(super) counts: Counts,
    /// Not collected yet: callbacks to call, memory to give back.
    calls: Vec<Ended>,
    freed: u64,
    /// Memory for the next batch.
    spare: Content,
}

impl<P: Pending> Window<P> {
    pub(super) fn new(name: TopicPartition, numbers: Numbers) -> Self {
        Self {
            name,
            slots: VecDeque::new(),
            queue: VecDeque::new(),
            queued_records: 0,
            numbers,
            restart: false,
            broken: None,
            closed: None,
            retry_at: None,
            hastened: 0,
            burst: false,
            offering: false,
            single: false,
            sent: 0,
            ended: 0,
            counts: Counts::default(),
            calls: Vec::new(),
            freed: 0,
            spare: Content::default(),
        }
    }

    /// Nothing is on its way, and nobody offers.
    #[inline]
    pub(super) fn is_idle(&self) -> bool {
        self.slots.is_empty() && self.queue.is_empty() && !self.offering
    }

    /// One batch is in the log without an outcome, and that is all.
    pub(super) fn is_single(&self) -> bool {
        self.slots.len() == 1 && self.queue.is_empty()
    }

    pub(super) fn is_offering(&self) -> bool {
        self.offering
    }

    /// How many records have been sent, and how many of them have ended.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    pub(super) fn ended(&self) -> u64 {
        self.ended
    }

    pub(super) fn queued_records(&self) -> u32 {
        self.queued_records
    }

    /// Whether there are batches whose turn it is.
    pub(super) fn has_window(&self) -> bool {
        !self.slots.is_empty()
    }

    /// Whether a batch has to be offered again.
    pub(super) fn is_stuck(&self) -> bool {
        self.retry_at.is_some()
    }

    /// Whether more is on its way than one flush after the other can carry, or something has to be done again.
    pub(super) fn is_pressed(&self) -> bool {
        self.slots.len() > 1 || self.queue.len() > 1 || self.slots.iter().any(Slot::is_out)
    }

    /// Whether records gather.
    pub(super) fn has_queue(&self) -> bool {
        !self.queue.is_empty()
    }

    /// How many records have not ended.
    pub(super) fn under_way(&self) -> u64 {
        self.sent - self.ended
    }

    pub(super) fn has_news(&self) -> bool {
        self.freed > 0 || !self.calls.is_empty()
    }

    pub(super) fn has_calls(&self) -> bool {
        !self.calls.is_empty()
    }

    /// Takes what is to be called, and how much memory came free.
    pub(super) fn take_news(&mut self) -> (Vec<Ended>, u64) {
        (std::mem::take(&mut self.calls), std::mem::take(&mut self.freed))
    }

    /// Whether anything may be sent.
    ///
    /// # Errors
    /// Why not.
    #[inline]
    pub(super) fn check_open(&self) -> Result<()> {
        if self.closed.is_none() && self.broken.is_none() {
            return Ok(());
        }
        Err(self.refusal())
    }

    #[cold]
    fn refusal(&self) -> Error {
        match (&self.closed, self.broken) {
            (Some(error), _) => error.clone(),
            (None, Some(expected)) => self.gap(expected, self.numbers.next),
            (None, None) => Error::Closed,
        }
    }

    fn gap(&self, expected: u64, given: u64) -> Error {
        let (partition, id) = (self.name.clone(), self.numbers.id());
        Error::OutOfOrderSequence { partition, id, expected, given }
    }

    /// Begins to offer a record while nothing is on its way.
    #[inline]
    pub(super) fn begin_single(&mut self) -> Author {
        (self.offering, self.single) = (true, true);
        self.sent += 1;
        self.numbers.author(self.numbers.next)
    }

    /// It is acknowledged.
    #[inline]
    pub(super) fn single_done(&mut self) {
        (self.offering, self.single) = (false, false);
        self.ended += 1;
        self.numbers.next += 1;
        self.counts.records += 1;
        self.counts.batches += 1;
        if !self.slots.is_empty() {
            self.settle();
        }
    }

    /// It was refused, and its sender is told so at once.
    pub(super) fn single_refused(&mut self, error: &Error, settings: &ProducerSettings) {
        (self.offering, self.single) = (false, false);
        self.ended += 1;
        if matches!(error, Error::ProducerFenced { .. }) {
            self.close(error, settings);
        }
        self.settle();
    }

    /// Its outcome is still to come.
    pub(super) fn single_waits(
        &mut self,
        record: &Record<'_>,
        size: RecordSize,
        callback: Option<Callback>,
        outcome: Result<(Offered<P>, bool)>,
        now: Duration,
        settings: &ProducerSettings,
    ) -> (Sent, Arc<Cell>) {
        self.single = false;
        let number = self.ended;
        let mut batch = Batch::new(number, now, settings.batch_bytes, self.take_spare());
        batch.push(record, size, callback, false);
        let (sent, cell) = (Sent { index: 0, number, in_burst: false }, Arc::clone(&batch.cell));
        let content = std::mem::take(&mut batch.content);
        let slot = Slot::new(batch, self.numbers.next);
        self.numbers.next += 1;
        let offer = Offer { first: number, content, author: self.numbers.author(slot.sequence) };
        // Whatever gathered meanwhile is in the queue.
        self.slots.push_front(slot);
        self.on_offered(offer, outcome, now, settings);
        (sent, cell)
    }

    /// Whether a record finds its place in the batch that gathers.
    #[inline]
    pub(super) fn has_place_for(&self, size: RecordSize) -> bool {
        self.queue.back().is_some_and(|last| last.fits(size))
    }

    /// Begins the batch that the next record is the first of, with so much room of the buffer.
    pub(super) fn begin_batch(&mut self, bytes_max: u64, now: Duration, room: u64) -> Arc<Cell> {
        let content = self.take_spare();
        let mut batch = Batch::new(self.sent, now, bytes_max, content);
        (batch.memory, batch.room) = (room, room);
        let cell = Arc::clone(&batch.cell);
        self.queue.push_back(batch);
        cell
    }

    /// Whether the last batch of those that gather has brought the room for a record.
    #[inline]
    pub(super) fn has_room_for(&self, size: RecordSize) -> bool {
        self.queue.back().is_some_and(|last| last.room >= memory_of(size))
    }

    fn take_spare(&mut self) -> Content {
        std::mem::take(&mut self.spare)
    }

    /// Adds a record to those that gather, in whose last batch it has its place. `has_room`: and its room there.
    #[inline]
    pub(super) fn push(
        &mut self,
        record: &Record<'_>,
        size: RecordSize,
        callback: Option<Callback>,
        has_room: bool,
    ) -> Sent {
        let number = self.sent;
        self.sent += 1;
        let batch = self.queue.back_mut().expect("the caller looked, or began one");
        let index = batch.push(record, size, callback, has_room);
        self.queued_records += 1;
        Sent { index, number, in_burst: self.burst }
    }

    /// One record followed the other, and nobody looks at their outcomes: from here on they gather, until one batch
    /// of them is ended by something else than its size.
    pub(super) fn begin_burst(&mut self) {
        self.burst = true;
    }

    /// Somebody looks: what has gathered waits for no more.
    pub(super) fn end_burst(&mut self) {
        self.burst = false;
    }

    pub(super) fn is_burst(&self) -> bool {
        self.burst
    }

    /// Nothing is under way but a burst, of which nothing is due.
    pub(super) fn is_left_to_sender(&self, settings: &ProducerSettings) -> bool {
        self.burst && self.slots.is_empty() && !self.offering && !self.is_full(settings)
    }

    /// What has been sent by now waits for no company.
    pub(super) fn hasten(&mut self) {
        self.hastened = self.sent;
    }

    pub(super) fn is_hastened(&self) -> bool {
        self.hastened == self.sent
    }

    /// The next batch to offer, if one is due. `eager`: somebody is about to flush, and takes along what he can.
    pub(super) fn next_offer(
        &mut self,
        now: Duration,
        settings: &ProducerSettings,
        eager: bool,
    ) -> Option<Offer> {
        if self.offering {
            return None;
        }
        self.expire(now, settings);
        self.restart_if_settled();
        if !self.offer_is_due(now, settings, eager) {
            return None;
        }
        self.retry_at = None;
        let at = match self.slots.iter().position(Slot::is_out) {
            Some(at) => at,
            None => {
                self.burst &= self.is_full(settings);
                self.take_from_queue();
                self.slots.len() - 1
            }
        };
        let slot = &mut self.slots[at];
        slot.place = Place::Offered;
        self.offering = true;
        Some(Offer {
            first: slot.batch.first,
            content: std::mem::take(&mut slot.batch.content),
            author: self.numbers.author(slot.sequence),
        })
    }

    /// Whether a batch could be offered now.
    pub(super) fn offer_is_due(
        &self,
        now: Duration,
        settings: &ProducerSettings,
        eager: bool,
    ) -> bool {
        if self.offering {
            return false;
        }
        let waiting = self.slots.iter().filter(|slot| matches!(slot.place, Place::Waits(_)));
        if waiting.count() >= WINDOW_MAX {
            return false;
        }
        if let Some(slot) = self.slots.iter().find(|slot| slot.is_out()) {
            // Before a restart, what was numbered before it has to end.
            return (slot.written || !self.restart) && self.retry_at.is_none_or(|at| at <= now);
        }
        if self.restart {
            return false;
        }
        let Some(batch) = self.queue.front() else { return false };
        if self.is_full(settings) {
            return self.slots.len() < WINDOW_MAX;
        }
        let is_next = self.slots.is_empty() || (eager && self.slots.len() < WINDOW_MAX);
        is_next && (batch.first < self.hastened || now >= self.ripe_at(batch, settings))
    }

    /// Whether the first batch of those that gather waits for no more company.
    fn is_full(&self, settings: &ProducerSettings) -> bool {
        let bytes = if self.burst { BURST_BYTES } else { u64::MAX }.min(settings.batch_bytes);
        self.queue.len() > 1 || self.queue.front().is_some_and(|batch| batch.bytes >= bytes)
    }

    /// When a batch that does not fill up is offered.
    fn ripe_at(&self, batch: &Batch, settings: &ProducerSettings) -> Duration {
        batch.born.saturating_add(if self.burst { BURST_SPAN } else { settings.linger })
    }

    fn take_from_queue(&mut self) {
        let batch = self.queue.pop_front().expect("the caller looked");
        self.queued_records -= batch.count;
        let sequence = self.numbers.next;
        self.numbers.next += u64::from(batch.count);
        self.slots.push_back(Slot::new(batch, sequence));
    }

    /// Takes note of how an offer ended; if well, with whether the log stamps records.
    pub(super) fn on_offered(
        &mut self,
        offer: Offer,
        outcome: Result<(Offered<P>, bool)>,
        now: Duration,
        settings: &ProducerSettings,
    ) {
        self.offering = false;
        let at = self.slot_of(offer.first).expect("a batch that is offered stays in the window");
        let slot = &mut self.slots[at];
        slot.batch.content = offer.content;
        if let Ok((_, stamped)) = &outcome
            && !slot.written
        {
            slot.stamped = *stamped;
        }
        match outcome.map(|(offered, _)| offered) {
            Ok(Offered::Done(appended)) => slot.place = Place::Acknowledged(appended),
            Ok(Offered::Waits(pending)) => {
                slot.written = true;
                slot.offsets = Some(pending.offsets());
                slot.watched = false;
                slot.place = Place::Waits(Some(pending));
            }
            Err(error) => {
                slot.place = Place::Out;
                self.refused(at, &error, now, settings);
            }
        }
        self.settle();
    }

    fn slot_of(&self, first: u64) -> Option<usize> {
        self.slots.iter().position(|slot| slot.batch.first == first)
    }

    fn refused(&mut self, at: usize, error: &Error, now: Duration, settings: &ProducerSettings) {
        // Behind one that may be in no log any more, a gap says nothing.
        let is_first = self.slots.iter().take(at).all(Slot::is_final);
        let restarts = self.numbers.restarts() && is_first;
        let slot = &mut self.slots[at];
        slot.hear(error);
        match error {
            _ if self.closed.is_some() => self.fail_from(at, error, settings),
            Error::ProducerFenced { .. } => self.close(error, settings),
            // Nothing from there on is in the log, so that all of it can be numbered anew.
            Error::OutOfOrderSequence { expected, given, .. }
                if restarts && *expected <= *given && slot.tries < settings.retries =>
            {
                slot.tries += 1;
                if slot.tries > 1 {
                    self.retry_at = Some(now.saturating_add(backoff(slot.tries, settings)));
                }
                for slot in self.slots.iter_mut().skip(at) {
                    (slot.written, slot.offsets, slot.doubt) = (false, None, None);
                    // Somebody was about to offer it when the leader went that took it.
                    if matches!(slot.place, Place::Waits(Some(_))) {
                        slot.place = Place::Out;
                    }
                }
                self.counts.retries += 1;
                self.restart = true;
                self.restart_if_settled();
            }
            Error::OutOfOrderSequence { .. }
                if !is_first && !self.numbers.is_named() && slot.tries < settings.retries =>
            {
                self.try_again(at, now, settings);
            }
            // One of its records is at fault, or the topic's limit fell (CLI-11).
            Error::InvalidRecord { .. } | Error::RecordTooLarge { .. }
                if slot.batch.count > 1 && !slot.written =>
            {
                self.split(at);
            }
            _ if is_retriable(error, settings) && slot.tries < settings.retries => {
                self.try_again(at, now, settings);
            }
            _ => self.fail_from(at, error, settings),
        }
    }

    fn try_again(&mut self, at: usize, now: Duration, settings: &ProducerSettings) {
        let slot = &mut self.slots[at];
        slot.tries += 1;
        self.retry_at = Some(now.saturating_add(backoff(slot.tries, settings)));
        self.counts.retries += 1;
    }

    fn split(&mut self, at: usize) {
        let slot = self.slots.remove(at).expect("the caller's place");
        let sequence = slot.sequence;
        let [lower, upper] = slot.batch.split();
        let upper_sequence = sequence + u64::from(lower.count);
        self.slots.insert(at, Slot::new(upper, upper_sequence));
        self.slots.insert(at, Slot::new(lower, sequence));
    }

    /// The batch at `at` fails for good, with what else cannot be told from it.
    fn fail_from(&mut self, at: usize, error: &Error, settings: &ProducerSettings) {
        let (sequence, written) = (self.slots[at].sequence, self.slots[at].written);
        let mut failed = 0;
        for slot in self.slots.iter_mut().skip(at) {
            let concerned = failed == 0 || slot.written;
            let free = matches!(slot.place, Place::Out | Place::Waits(Some(_)));
            if concerned && free {
                let older = (failed > 0).then(|| slot.told_of_older(error));
                slot.fail(older.as_ref().unwrap_or(error), &self.name, settings);
                failed += u64::from(slot.batch.count);
            }
            if !written {
                break;
            }
        }
        if settings.acks == Acks::None {
            self.counts.dropped += failed;
        }
        if self.numbers.is_named() {
            self.break_at(sequence);
        } else if !written {
            self.number_from(at + 1, sequence);
        } else if self.numbers.restarts() {
            self.restart = true;
        }
    }

    /// Gives new numbers to batches that the log does not have.
    fn number_from(&mut self, at: usize, sequence: u64) {
        let mut next = sequence;
        for slot in self.slots.iter_mut().skip(at).filter(|slot| !slot.is_final()) {
            assert!(!slot.written && slot.is_out(), "its number is in the log already");
            slot.sequence = next;
            next += u64::from(slot.batch.count);
        }
        self.numbers.next = next;
    }

    fn restart_if_settled(&mut self) {
        let older = |slot: &Slot<P>| {
            !slot.is_final() && (slot.written || matches!(slot.place, Place::Waits(_)))
        };
        if !self.restart || self.offering || self.slots.iter().any(older) {
            return;
        }
        self.restart = false;
        self.numbers.restart();
        self.number_from(0, 0);
    }

    /// Fails everything behind a named producer's record that failed: its source has to go back to it.
    fn break_at(&mut self, expected: u64) {
        self.broken.get_or_insert(expected);
        self.queue_to_window();
        for at in 0..self.slots.len() {
            if self.slots[at].is_out() && !self.slots[at].written {
                let error = self.gap(expected, self.slots[at].sequence);
                self.slots[at].place = Place::Failed(error);
            }
        }
    }

    fn queue_to_window(&mut self) {
        while !self.queue.is_empty() {
            self.take_from_queue();
        }
    }

    /// Nothing is offered any more; what is in the log may still be acknowledged.
    pub(super) fn close(&mut self, error: &Error, settings: &ProducerSettings) {
        self.closed.get_or_insert_with(|| error.clone());
        self.queue_to_window();
        for slot in self.slots.iter_mut().filter(|slot| slot.is_out()) {
            slot.fail(error, &self.name, settings);
        }
        self.settle();
    }

    /// Ends everything but what somebody is at this moment busy with.
    pub(super) fn abandon(&mut self, error: &Error, settings: &ProducerSettings) {
        self.close(error, settings);
        for slot in &mut self.slots {
            if let Place::Waits(Some(pending)) = &slot.place {
                match pending.outcome_now() {
                    Some(Ok(appended)) => slot.place = Place::Acknowledged(appended),
                    _ => slot.fail(error, &self.name, settings),
                }
            }
        }
        self.settle();
    }

    /// Takes the acknowledgement that the first batch waits for, to wait for it without a lock.
    pub(super) fn take_front(&mut self) -> Option<(u64, P)> {
        let slot = self.slots.front_mut()?;
        let Place::Waits(pending) = &mut slot.place else { return None };
        Some((slot.batch.first, pending.take()?))
    }

    /// Takes note of how a wait ended. `None`: it did not come.
    pub(super) fn on_waited(
        &mut self,
        first: u64,
        pending: P,
        outcome: Option<Result<Appended>>,
        now: Duration,
        settings: &ProducerSettings,
    ) {
        let at = self.slot_of(first).expect("a batch that is waited for stays in the window");
        let slot = &mut self.slots[at];
        match outcome {
            None => slot.place = Place::Waits(Some(pending)),
            Some(Ok(appended)) => slot.place = Place::Acknowledged(appended),
            Some(Err(error)) => {
                slot.hear(&error);
                if matches!(error, Error::NoLeader { .. }) {
                    // No log that counts has it any more.
                    (slot.offsets, slot.doubt) = (None, None);
                }
                let again = is_retriable(&error, settings)
                    && slot.tries < settings.retries
                    && self.closed.is_none();
                slot.place = Place::Out;
                if again {
                    // Later ones are no better off, and have to come after it.
                    for slot in &mut self.slots {
                        if matches!(slot.place, Place::Waits(Some(_))) {
                            slot.place = Place::Out;
                        }
                    }
                    self.try_again(at, now, settings);
                } else {
                    self.fail_from(at, &error, settings);
                }
            }
        }
        self.expire(now, settings);
    }

    /// How the first batch's acknowledgement ended, if it has. Has it watched if not, and brought about.
    pub(super) fn watch_front(&mut self, waker: &std::task::Waker) -> bool {
        let Some(slot) = self.slots.front_mut() else { return false };
        let Place::Waits(Some(pending)) = &mut slot.place else { return false };
        if slot.watched {
            return false;
        }
        slot.watched = true;
        pending.hurry();
        pending.watch(waker)
    }

    /// Whether the first batch waits for an acknowledgement that nobody waits for.
    pub(super) fn front_waits(&self) -> bool {
        self.slots.front().is_some_and(|slot| matches!(slot.place, Place::Waits(Some(_))))
    }

    /// Ends the batches whose acknowledgement has come unseen.
    pub(super) fn catch_up(&mut self, now: Duration, settings: &ProducerSettings) {
        while let Some((first, pending)) = self.take_front() {
            let outcome = pending.outcome_now();
            let came = outcome.is_some();
            self.on_waited(first, pending, outcome, now, settings);
            if !came {
                break;
            }
        }
    }

    /// When the first batch has had its time.
    pub(super) fn expires_at(&self, settings: &ProducerSettings) -> Option<Duration> {
        let first = self.slots.front().map(|slot| &slot.batch).or(self.queue.front());
        first.map(|batch| batch.born.saturating_add(settings.delivery_timeout))
    }

    /// When something is due that nobody has to bring about.
    pub(super) fn next_due(&self, settings: &ProducerSettings) -> Option<Duration> {
        let retry = self.retry_at.filter(|_| self.slots.iter().any(Slot::is_out));
        let linger = self
            .queue
            .front()
            .filter(|_| self.slots.is_empty())
            .map(|batch| self.ripe_at(batch, settings));
        [retry, linger, self.expires_at(settings)].into_iter().flatten().min()
    }

    /// Fails what has had its time (CLI-06), in order.
    fn expire(&mut self, now: Duration, settings: &ProducerSettings) {
        let is_over = |batch: &Batch| now >= batch.born.saturating_add(settings.delivery_timeout);
        for at in 0..self.slots.len() {
            let slot = &self.slots[at];
            if slot.is_final() || !is_over(&slot.batch) {
                continue;
            }
            match &slot.place {
                Place::Waits(Some(pending)) => match pending.outcome_now() {
                    Some(Ok(appended)) => self.slots[at].place = Place::Acknowledged(appended),
                    // It was in the log, and may not stay there: a name's source has to ask.
                    _ => {
                        let sequence = slot.sequence;
                        let late = self.slots[at].late(&self.name, settings);
                        self.slots[at].place = Place::Failed(late);
                        if self.numbers.is_named() {
                            self.break_at(sequence);
                        }
                    }
                },
                Place::Out => {
                    let error = self.slots[at].late(&self.name, settings);
                    self.fail_from(at, &error, settings);
                }
                _ => {}
            }
        }
        self.settle();
        while self.slots.is_empty() && self.queue.front().is_some_and(is_over) {
            self.take_from_queue();
            let error = self.slots[0].late(&self.name, settings);
            self.fail_from(0, &error, settings);
            self.settle();
        }
    }

    /// Lets go of the batches at the front that have ended.
    fn settle(&mut self) {
        while !self.single && self.slots.front().is_some_and(Slot::is_final) {
            let mut slot = self.slots.pop_front().expect("it was looked at");
            let (count, first, cell) =
                (slot.batch.count, slot.batch.first, Arc::clone(&slot.batch.cell));
            let outcome = match slot.place {
                Place::Acknowledged(appended) => {
                    self.counts.records += u64::from(count);
                    self.counts.batches += 1;
                    let (offset, appended_at) = (appended.offsets.start, appended.timestamp);
                    Outcome::Placed(Placed { offset, appended_at, stamped: slot.stamped })
                }
                Place::Failed(error) => Outcome::Failed(error),
                _ => unreachable!("only final ones are let go"),
            };
            self.ended = slot.batch.end();
            self.freed += slot.batch.memory;
            self.spare = std::mem::take(&mut slot.batch.content);
            self.spare.clear();
            let calls = slot.batch.end_with(outcome).into_iter();
            self.calls.extend(calls.map(|call| Ended {
                number: first + u64::from(call.index),
                cell: Arc::clone(&cell),
                call,
            }));
        }
        if !self.slots.iter().any(Slot::is_out) {
            self.retry_at = None;
        }
    }

    /// The sequence of the next record that is sent, if nothing is broken.
    pub(super) fn next_sequence(&self) -> Option<u64> {
        let queued = u64::from(self.queued_records);
        self.broken.is_none().then_some(self.numbers.next + queued)
    }

    /// Goes on at the sequence that the log asks for.
    pub(super) fn mend(&mut self, next: u64) {
        assert!(self.slots.is_empty() && self.queue.is_empty(), "nothing is under way");
        self.broken = None;
        self.numbers.next = next;
    }
}

fn is_retriable(error: &Error, settings: &ProducerSettings) -> bool {
    settings.acks != Acks::None && error.class() == ErrorClass::Retriable
}

fn backoff(tries: u32, settings: &ProducerSettings) -> Duration {
    let doubled = 1_u32.checked_shl(tries.saturating_sub(1)).unwrap_or(u32::MAX);
    settings.retry_backoff.saturating_mul(doubled).min(settings.retry_backoff_max)
}
