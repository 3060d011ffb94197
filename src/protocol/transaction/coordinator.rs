//! The coordinator: all transactional ids, their timers, and what partitions report.
//!
//! Events go in, effects come out; the time is an argument, from a clock that does not jump. It is made by
//! [`Replay`] from the records of the internal topic, so nothing can be asked before they are all read.
//!
//! What the shell promises:
//! 1. Effects are begun in order. Records of one id reach the topic in the order in which they were given, and
//!    one that was reported as failed never gets there after a later one.
//! 2. The topic is flushed at least as strictly as any partition with transactions (default: `OnAck`).
//! 3. A partition refuses data of an epoch that has its marker there, of an older epoch than it knows, and of
//!    a new epoch while an older transaction is open (`producer_state`). So a write that was on its way
//!    when its transaction ended comes to nothing.
//! 4. A batch is appended after [`Coordinator::join`] said yes, each time, and before its transaction's end is asked
//!    for, unless it is given up.
//!
//! Offsets of a group are records of a partition of the offsets topic, which joins like any other (COORD-24);
//! the group's generation is checked by the shell before.
//!
//! Leaves to others: threads, the topic, writing markers, and waking callers.
//!
//! Invariants:
//! 1. A tag is decided once, and handed out to one session only.
//! 2. A producer id belongs to one transactional id.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::error::DecodeError;
use crate::protocol::group::assignment::PartitionId;
use crate::types::{Outcome, ProducerId, Timestamp};

use super::entry::{Entry, RETRY_AFTER, reply};
use super::lineage::{Lineage, TransactionTag, Verdict};
use super::messages::{Answer, Context, Effect, Event, Open, Refusal, RequestId, Settings};
use super::records::{IdState, PREVIOUS_MAX, TransactionRecord, transactional_id_fits};

/// The records of the internal topic, as they are read.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    ids: BTreeMap<Arc<str>, IdState>,
}

impl Replay {
    /// Takes the next record; the last one of an id holds.
    pub(crate) fn apply(&mut self, record: TransactionRecord) {
        match record.state {
            Some(state) => self.ids.insert(record.id, state),
            None => self.ids.remove(&record.id),
        };
    }

    /// Records that were acknowledged may have been lost: epochs that none tells of may have been used, and no transaction is to
    /// have one of them again. Each id goes on under another producer. Returns the records that say so, to be written before
    /// all others.
    ///
    /// # Errors
    /// Those of `fresh`, which gives producer ids that nobody has had.
    pub(crate) fn renew<E>(
        &mut self,
        mut fresh: impl FnMut() -> Result<ProducerId, E>,
    ) -> Result<Vec<TransactionRecord>, E> {
        let mut records = Vec::with_capacity(self.ids.len());
        for (id, state) in &mut self.ids {
            // Nobody has held it for as many losses.
            if state.previous.len() >= PREVIOUS_MAX {
                continue;
            }
            state.previous.push(state.lineage);
            state.lineage = Lineage::new(fresh()?);
            // Partitions that lack the marker report that.
            state.unsettled = None;
            records.push(TransactionRecord { id: id.clone(), state: Some(state.clone()) });
        }
        Ok(records)
    }

    /// All records are read. What was decided is completed by the effects, by writing all its markers again;
    /// what was not is aborted as partitions report it ([`Event::Found`]).
    ///
    /// # Errors
    /// The records contradict each other; some of them were never written here.
    pub(crate) fn open(
        self,
        settings: Settings,
        now: Timestamp,
    ) -> Result<(Coordinator, Vec<Effect>), DecodeError> {
        let mut coordinator = Coordinator {
            settings,
            now,
            entries: BTreeMap::new(),
            by_producer: BTreeMap::new(),
            timers: BTreeSet::new(),
            orphans: BTreeSet::new(),
            orphans_retry_at: None,
        };
        let mut effects = Vec::new();
        for (id, state) in self.ids {
            let context = Context { id: &id, now, settings: &settings };
            let entry = Entry::replayed(state, context, &mut effects);
            for producer in entry.producers() {
                if coordinator.by_producer.insert(producer, id.clone()).is_some() {
                    return Err(DecodeError::Field("producer"));
                }
            }
            coordinator.entries.insert(id.clone(), entry);
            coordinator.schedule(&id);
        }
        Ok((coordinator, effects))
    }
}

/// All transactional ids of a store.
#[derive(Clone, Debug)]
pub(crate) struct Coordinator {
    settings: Settings,
    now: Timestamp,
    entries: BTreeMap<Arc<str>, Entry>,
    by_producer: BTreeMap<ProducerId, Arc<str>>,
    /// When to look at an id; not later than it is due, maybe earlier.
    timers: BTreeSet<(Timestamp, Arc<str>)>,
    /// Transactions of which no id knows, in partitions that could not take their markers.
    orphans: BTreeSet<(TransactionTag, PartitionId)>,
    orphans_retry_at: Option<Timestamp>,
}

impl Coordinator {
    /// The same coordinator and the same event always give the same effects. A time before an earlier one
    /// counts as that one (COORD-46).
    pub(crate) fn step(&mut self, now: Timestamp, event: Event) -> Vec<Effect> {
        self.now = self.now.max(now);
        let mut effects = Vec::new();
        match event {
            Event::Open(open) => self.on_open(open, &mut effects),
            Event::End { request, tag, outcome } => {
                self.on_end(request, tag, outcome, &mut effects);
            }
            Event::Close { tag } => self.with_producer(tag.producer, |entry, context| {
                entry.on_close(context, tag, &mut effects);
            }),
            Event::Persisted { id } => self.on_persisted(&id, &mut effects),
            Event::PersistFailed { id } => self.on_persist_failed(&id, &mut effects),
            Event::MarkerAppended { tag, partition } => {
                self.with_producer(tag.producer, |entry, context| {
                    entry.on_marker(context, tag, partition, false, &mut effects);
                });
            }
            Event::MarkerWritten { tag, partition } => {
                self.orphans.remove(&(tag, partition));
                self.with_producer(tag.producer, |entry, context| {
                    entry.on_marker(context, tag, partition, true, &mut effects);
                });
            }
            Event::MarkerFailed { tag, partition }
                if !self.by_producer.contains_key(&tag.producer) =>
            {
                self.orphans.insert((tag, partition));
                self.orphans_retry_at.get_or_insert(self.now.plus(RETRY_AFTER));
            }
            Event::MarkerFailed { tag, partition } => {
                self.with_producer(tag.producer, |entry, context| {
                    entry.on_marker_failed(context, tag, partition);
                });
            }
            Event::Found { tag, partition } => self.on_found(tag, partition, &mut effects),
            Event::Tick => self.on_tick(&mut effects),
        }
        effects
    }

    /// Adds a partition to the transaction of the tag, which begins with the first one (COORD-22). Nothing is
    /// written; a partition that has joined may join again (COORD-21). Only a transaction that begins is asked the time.
    ///
    /// # Errors
    /// Why it has not joined; nothing may be appended then.
    pub(crate) fn join(
        &mut self,
        now: impl FnOnce() -> Timestamp,
        tag: TransactionTag,
        partition: PartitionId,
    ) -> Result<(), Refusal> {
        let id = self.by_producer.get(&tag.producer).ok_or(Refusal::UnknownProducer)?;
        let entry = self.entries.get_mut(id).expect("a producer's id is there");
        let was_ongoing = entry.is_ongoing();
        if !was_ongoing {
            self.now = self.now.max(now());
        }
        let context = Context { id, now: self.now, settings: &self.settings };
        entry.join(context, tag, partition)?;
        debug_assert!(entry.is_sound(), "{entry:?}");
        // Only the first partition begins anything that has a time.
        if !was_ongoing {
            let id = id.clone();
            self.schedule(&id);
        }
        Ok(())
    }

    /// How the transaction ended, for one who has lost the answer. A decision counts once it is durable, markers
    /// or not.
    pub(crate) fn verdict(&self, tag: TransactionTag) -> Verdict {
        let id = self.by_producer.get(&tag.producer);
        id.map_or(Verdict::Unknown, |id| self.entries[id].verdict(tag))
    }

    /// Whether the decided transaction's marker is yet to be appended in the partition.
    pub(crate) fn awaits_marker(&self, tag: TransactionTag, partition: PartitionId) -> bool {
        let id = self.by_producer.get(&tag.producer);
        id.is_some_and(|id| self.entries[id].awaits_marker(tag, partition))
    }

    /// Whether the decided transaction's marker is yet to be appended in the partition, or has to be once more.
    pub(crate) fn lacks_marker(&self, tag: TransactionTag, partition: PartitionId) -> bool {
        let id = self.by_producer.get(&tag.producer);
        id.is_some_and(|id| self.entries[id].lacks_marker(tag, partition))
    }

    /// When [`Event::Tick`] is due next, if nothing else happens; maybe earlier than needed.
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        let timer = self.timers.first().map(|(at, _)| *at);
        [timer, self.orphans_retry_at].into_iter().flatten().min()
    }

    /// The store is about to close: what is known to be settled is put down now, so that the next start is quick.
    pub(crate) fn notes(&mut self) -> Vec<Effect> {
        let mut effects = Vec::new();
        for (id, entry) in &mut self.entries {
            let context = Context { id, now: self.now, settings: &self.settings };
            entry.note(context, &mut effects);
        }
        effects
    }

    /// Whether there are partitions that have not told yet what they had open when the store was opened. How that ended
    /// stays known until they have.
    pub(crate) fn set_some_unseen(&mut self, some: bool) {
        self.settings.some_unseen = some;
        for id in self.entries.keys().cloned().collect::<Vec<_>>() {
            self.schedule(&id);
        }
    }

    fn on_open(&mut self, open: Open, effects: &mut Vec<Effect>) {
        if let Err(refusal) = self.check_open(&open) {
            effects.push(reply(open.request, Answer::Refused(refusal)));
            return;
        }
        let id = open.id.clone();
        if !self.entries.contains_key(&id) {
            self.by_producer.insert(open.fresh, id.clone());
            self.entries.insert(id.clone(), Entry::new(open.fresh, self.now));
        }
        self.with(&id, |entry, context| entry.on_open(context, open, effects));
    }

    fn check_open(&self, open: &Open) -> Result<(), Refusal> {
        let Settings { timeout_max: max, ids_max, .. } = self.settings;
        if !transactional_id_fits(&open.id) {
            return Err(Refusal::BadId);
        }
        // What is kept counts milliseconds (COORD-02).
        if open.timeout < Duration::from_millis(1) || open.timeout > max {
            return Err(Refusal::BadTimeout { max });
        }
        if open.fresh.0 == 0 || self.by_producer.contains_key(&open.fresh) {
            return Err(Refusal::ProducerIdInUse);
        }
        match self.entries.contains_key(&open.id) {
            true => Ok(()),
            false if open.renews.is_some() => Err(Refusal::UnknownProducer),
            false if self.entries.len() >= ids_max => Err(Refusal::Full { ids_max }),
            false => Ok(()),
        }
    }

    fn on_end(
        &mut self,
        request: RequestId,
        tag: TransactionTag,
        outcome: Outcome,
        effects: &mut Vec<Effect>,
    ) {
        if !self.by_producer.contains_key(&tag.producer) {
            effects.push(reply(request, Answer::Refused(Refusal::UnknownProducer)));
            return;
        }
        self.with_producer(tag.producer, |entry, context| {
            entry.on_end(context, request, tag, outcome, effects);
        });
    }

    fn on_persisted(&mut self, id: &Arc<str>, effects: &mut Vec<Effect>) {
        let mut forgotten = None;
        self.with(id, |entry, context| forgotten = entry.on_persisted(context, effects));
        if let Some(wanted) = forgotten {
            self.forget(id);
            if let Some(open) = wanted {
                self.on_open(open, effects);
            }
        }
    }

    fn on_persist_failed(&mut self, id: &Arc<str>, effects: &mut Vec<Effect>) {
        self.with(id, |entry, context| entry.on_persist_failed(context, effects));
        if self.entries[id].is_void() {
            self.forget(id);
        }
    }

    fn on_found(&mut self, tag: TransactionTag, partition: PartitionId, effects: &mut Vec<Effect>) {
        if self.by_producer.contains_key(&tag.producer) {
            self.with_producer(tag.producer, |entry, context| {
                entry.on_found(context, tag, partition, effects);
            });
            return;
        }
        // Whose it was is forgotten; had it been committed, the marker would be there.
        let partitions = vec![partition];
        effects.push(Effect::WriteMarkers { tag, outcome: Outcome::Aborted, partitions });
    }

    fn on_tick(&mut self, effects: &mut Vec<Effect>) {
        if self.orphans_retry_at.is_some_and(|at| at <= self.now) {
            self.orphans_retry_at = None;
            for (tag, partition) in std::mem::take(&mut self.orphans) {
                self.on_found(tag, partition, effects);
            }
        }
        let mut due = Vec::new();
        while let Some((at, id)) = self.timers.pop_first() {
            if at > self.now {
                self.timers.insert((at, id));
                break;
            }
            due.push(id);
        }
        for id in due {
            self.with(&id, |entry, context| {
                entry.timer = None;
                entry.on_due(context, effects);
            });
        }
    }

    /// Lets an id change, and follows: its producers, its timer.
    fn with(&mut self, id: &Arc<str>, change: impl FnOnce(&mut Entry, Context<'_>)) {
        let entry = self.entries.get_mut(id).expect("whoever names an id has looked it up");
        let before = entry.producer();
        change(entry, Context { id, now: self.now, settings: &self.settings });
        debug_assert!(entry.is_sound(), "{entry:?}");
        self.follow(id, before);
    }

    fn follow(&mut self, id: &Arc<str>, before: ProducerId) {
        let entry = self.entries.get_mut(id).expect("an id that has changed is there");
        for forgotten in entry.forgotten.drain(..) {
            self.by_producer.remove(&forgotten);
        }
        let after = entry.producer();
        if before != after {
            let other = self.by_producer.insert(after, id.clone());
            assert!(other.is_none(), "a producer id is offered to one id at a time");
        }
        self.schedule(id);
    }

    fn with_producer(
        &mut self,
        producer: ProducerId,
        change: impl FnOnce(&mut Entry, Context<'_>),
    ) {
        let Some(id) = self.by_producer.get(&producer) else { return };
        let entry = self.entries.get_mut(id).expect("a producer's id is there");
        let before = entry.producer();
        let context = Context { id, now: self.now, settings: &self.settings };
        change(entry, context);
        debug_assert!(entry.is_sound(), "{entry:?}");
        // Nothing to follow, as nearly always.
        let is_followed = entry.producer() == before && entry.forgotten.is_empty();
        if !is_followed || entry.needs_timer(context) {
            let id = id.clone();
            self.follow(&id, before);
        }
    }

    /// A timer that is early enough stays: a busy id has one, not one a transaction.
    fn schedule(&mut self, id: &Arc<str>) {
        let entry = self.entries.get_mut(id).expect("an id that has changed is there");
        let context = Context { id, now: self.now, settings: &self.settings };
        if !entry.needs_timer(context) {
            return;
        }
        let Some(deadline) = entry.deadline(context) else { return };
        if let Some(timer) = entry.timer.replace(deadline) {
            self.timers.remove(&(timer, id.clone()));
        }
        self.timers.insert((deadline, id.clone()));
    }

    fn forget(&mut self, id: &Arc<str>) {
        let entry = self.entries.remove(id).expect("an id is forgotten once");
        for producer in entry.producers() {
            self.by_producer.remove(&producer);
        }
        if let Some(timer) = entry.timer {
            self.timers.remove(&(timer, id.clone()));
        }
    }

    /// All but times, for a search over states.
    #[cfg(test)]
    pub(super) fn shape(&self) -> String {
        let entries = self.entries.iter().map(|(id, entry)| format!("{id}:{}", entry.shape()));
        entries.chain([format!("{:?}", self.orphans)]).collect()
    }
}
