//! All producers of one replica's log: judges what is offered, takes in what was appended.
//!
//! Invariants:
//! 1. The state is that of the batches below `end`, whoever wrote them; only [`ProducerStates::expire`] depends on time.
//! 2. A producer with an open transaction is never forgotten (PROD-20).
//! 3. There are at most `producers_max` producers. To let a new one in, the one that has not appended for longest
//!    is forgotten; the leader lets at most half of them have a transaction open, so there is one to forget.
//!
//! Memory: at most 266 bytes a producer (34 MiB at the limit), with its place in the map, and about 100 bytes for each
//! transaction that is open, or that was aborted by a marker that the high watermark has not passed.

use std::time::Duration;

use crate::types::{LeaderEpoch, Offset, Outcome, ProducerEpoch, ProducerId, Timestamp};

use super::batch::{BatchFacts, Content, Proposal};
use super::entry::{self, Entry, Remembered};
use super::recency::Producers;
use super::transactions::{EndedTransaction, OpenTransaction, Transactions};
use super::verdict::{Refusal, TransactionFault, Verdict};
use crate::types::ProducerSequence;

/// How many producers a partition remembers.
pub(crate) const PRODUCERS_MAX: usize = 1 << 17;

/// What a batch that was taken in has brought about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub(crate) struct Applied {
    pub(crate) ended: Option<EndedTransaction>,
    /// Producers that had to be forgotten to make room: duplicates of theirs are not recognised any more.
    pub(crate) evicted: Vec<ProducerId>,
}

/// What is known of a producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProducerView {
    pub(crate) epoch: ProducerEpoch,
    /// Where a producer whose numbering continues goes on.
    pub(crate) next_sequence: u64,
    /// End of its last batch, if one is remembered.
    pub(crate) end: Option<Offset>,
    pub(crate) open_since: Option<Offset>,
    pub(crate) appended_at: Timestamp,
}

#[derive(Clone, Debug)]
pub(crate) struct ProducerStates {
    pub(super) producers: Producers,
    pub(super) transactions: Transactions,
    pub(super) producers_max: usize,
    pub(super) end: Offset,
    pub(super) leader_epoch: LeaderEpoch,
    /// End of the last batch that changed anything but `end` and `leader_epoch`.
    pub(super) changed_end: Offset,
}

impl ProducerStates {
    /// The state of an empty log that starts at `start`. `producers_max` is at least 2.
    pub(crate) fn new(start: Offset, producers_max: usize) -> Self {
        assert!(producers_max >= 2, "one with a transaction and one without");
        Self {
            producers: Producers::new(),
            transactions: Transactions::default(),
            producers_max,
            end: start,
            leader_epoch: LeaderEpoch::default(),
            changed_end: start,
        }
    }

    /// End of the log's part that the state stands for.
    pub(crate) fn end(&self) -> Offset {
        self.end
    }

    /// Epoch of the last batch of that part. Together with `end` it names the part among all logs of the partition.
    pub(crate) fn leader_epoch(&self) -> LeaderEpoch {
        self.leader_epoch
    }

    /// How many producers are known.
    pub(crate) fn len(&self) -> usize {
        self.producers.len()
    }

    pub(crate) fn producer(&self, id: ProducerId) -> Option<ProducerView> {
        self.producers.get(id).map(|entry| ProducerView {
            epoch: entry.epoch,
            next_sequence: entry.next,
            end: entry.batches().last().map(Remembered::end_offset),
            open_since: entry.open,
            appended_at: entry.appended_at,
        })
    }

    /// Transactions without a marker, by first offset.
    pub(crate) fn open_transactions(&self) -> impl Iterator<Item = OpenTransaction> {
        self.transactions.open().map(|(first, producer)| {
            let entry = self.open_entry(producer);
            OpenTransaction { producer, epoch: entry.epoch, first, appended_at: entry.appended_at }
        })
    }

    pub(super) fn open_entry(&self, producer: ProducerId) -> &Entry {
        self.producers.get(producer).expect("a producer with an open transaction is known")
    }

    /// Whether a batch of no transaction is the next one of whoever appended last, as nearly all are: then
    /// [`ProducerStates::check`] has nothing against it.
    #[inline]
    pub(crate) fn goes_on(&self, given: ProducerSequence, count: u32) -> bool {
        self.producers.newest().is_some_and(|newest| newest.goes_on(given))
            && given.sequence.checked_add(count.into()).is_some()
    }

    /// What the leader answers to a batch. Nothing changes: that is for [`ProducerStates::on_appended`], once the log
    /// has the batch (PROD-18). The producer's id is not 0, and `count` neither.
    pub(crate) fn check(&self, proposal: &Proposal) -> Verdict {
        let given = proposal.producer;
        assert!(given.id != ProducerId(0), "a batch of nobody is not offered here");
        assert!(proposal.count > 0, "an empty batch is not offered here");
        let entry = self.producers.get(given.id);
        let verdict = match entry {
            Some(entry) => entry.judge(proposal),
            None => entry::judge_unknown(proposal),
        };
        if verdict != Verdict::Append {
            return verdict;
        }
        if given.sequence.checked_add(proposal.count.into()).is_none() {
            return entry::out_of_order(entry.map_or(0, |entry| entry.next), proposal);
        }
        let begins = proposal.transactional && entry.is_none_or(|entry| entry.open.is_none());
        if begins && self.transactions.open_len() >= self.producers_max / 2 {
            return entry::invalid(TransactionFault::TooManyOpen);
        }
        verdict
    }

    /// Whether a marker of this epoch may be written: a late one must not be (TXLOG-07), and none while an earlier
    /// transaction is open, which would end with it. One that is written again, because it was not known to be there
    /// after a crash, does no harm (COORD-43).
    ///
    /// # Errors
    /// [`Refusal::ProducerFenced`], [`TransactionFault::EarlierStillOpen`].
    pub(crate) fn check_marker(&self, id: ProducerId, epoch: ProducerEpoch) -> Result<(), Refusal> {
        match self.producers.get(id) {
            Some(entry) if epoch < entry.epoch => {
                Err(Refusal::ProducerFenced { current: entry.epoch })
            }
            Some(entry) if epoch > entry.epoch && entry.open.is_some() => {
                Err(Refusal::InvalidTransactionState(TransactionFault::EarlierStillOpen))
            }
            _ => Ok(()),
        }
    }

    /// As [`ProducerStates::on_appended`] for a batch of nobody.
    #[inline]
    pub(crate) fn pass(&mut self, end: Offset, leader_epoch: LeaderEpoch) {
        if end > self.end {
            self.end = end;
            self.leader_epoch = leader_epoch;
        }
    }

    /// Whether no transaction can hold back the last stable offset.
    #[inline]
    pub(crate) fn is_quiet(&self) -> bool {
        self.transactions.is_quiet()
    }

    /// Takes in a batch that the log now has: every one, in order, also of nobody. One that the state stands for already
    /// is passed over, so a walk may begin before its end. `appended_at` is the time of the append as far as it is known;
    /// a recovery gives the latest that it can have been.
    #[inline(always)]
    pub(crate) fn on_appended(&mut self, batch: &BatchFacts, appended_at: Timestamp) -> Applied {
        if batch.content == Content::Plain
            && batch.base_offset >= self.end
            && let Some(newest) = self.producers.newest_mut()
            && newest.goes_on(batch.producer)
        {
            newest.on_next(batch, appended_at);
            self.end = batch.end_offset();
            self.leader_epoch = batch.leader_epoch;
            self.changed_end = self.end;
            return Applied::default();
        }
        self.on_any_appended(batch, appended_at)
    }

    #[inline(never)]
    fn on_any_appended(&mut self, batch: &BatchFacts, appended_at: Timestamp) -> Applied {
        let mut applied = Applied::default();
        if batch.base_offset < self.end {
            return applied;
        }
        self.end = batch.end_offset();
        self.leader_epoch = batch.leader_epoch;
        if batch.producer.id == ProducerId(0) {
            return applied;
        }
        match batch.content {
            Content::OtherControl => return applied,
            Content::Plain | Content::Transactional => {
                self.on_data(batch, appended_at, &mut applied.evicted);
            }
            Content::Marker(outcome) => {
                applied.ended = self.on_marker(batch, outcome, appended_at, &mut applied.evicted);
            }
        }
        // Transactions that have ended may leave more than fit, if the leader's limit was a larger one.
        while self.producers.len() > self.producers_max && self.producers.idle().nth(1).is_some() {
            applied.evicted.extend(self.producers.remove_oldest());
        }
        self.changed_end = self.end;
        applied
    }

    fn on_data(
        &mut self,
        batch: &BatchFacts,
        appended_at: Timestamp,
        evicted: &mut Vec<ProducerId>,
    ) {
        let begun = self.touch(batch.producer, evicted, |entry| {
            let was_open = entry.open.is_some();
            entry.on_data(batch, appended_at);
            entry.open.filter(|_| !was_open)
        });
        if let Some(first) = begun {
            self.transactions.begin(first, batch.producer.id);
        }
    }

    fn on_marker(
        &mut self,
        batch: &BatchFacts,
        outcome: Outcome,
        appended_at: Timestamp,
        evicted: &mut Vec<ProducerId>,
    ) -> Option<EndedTransaction> {
        // What stands in its field says how the transaction ended.
        let given = ProducerSequence { sequence: 0, ..batch.producer };
        if self.producers.get(given.id).is_some_and(|entry| given.epoch < entry.epoch) {
            return None;
        }
        let first =
            self.touch(given, evicted, |entry| entry.on_marker(given.epoch, appended_at))?;
        let last = batch.base_offset;
        self.transactions.end(first, last, outcome);
        Some(EndedTransaction { producer: given.id, epoch: given.epoch, outcome, first, last })
    }

    /// Changes the entry of a producer, which is made if it is not there.
    fn touch<R>(
        &mut self,
        given: ProducerSequence,
        evicted: &mut Vec<ProducerId>,
        change: impl Fn(&mut Entry) -> R,
    ) -> R {
        if let Some(outcome) = self.producers.touch(given.id, &change) {
            return outcome;
        }
        while self.producers.len() >= self.producers_max {
            let Some(oldest) = self.producers.remove_oldest() else { break };
            evicted.push(oldest);
        }
        self.producers.insert(Entry::new(given.id, given.epoch, given.sequence));
        self.producers.touch(given.id, change).expect("it is there now")
    }

    /// The last stable offset: a read-committed reader stops there. It may lie before the log start, if the log start
    /// was moved into a transaction (TXLOG-23).
    pub(crate) fn last_stable(&self, high_watermark: Offset) -> Offset {
        self.transactions.last_stable(high_watermark)
    }

    /// Forgets what can hold back the last stable offset no more. To be called as the watermark rises; one that was
    /// given here does not fall again, other than by truncation.
    pub(crate) fn settle(&mut self, high_watermark: Offset) {
        self.transactions.settle(high_watermark);
    }

    /// The log was cut: it ends at `end`, and its last batch is of `leader_epoch`. `false`: the state stands for what is
    /// gone as well, and has to be made anew from a snapshot at or before `end` and the batches behind that (PROD-43).
    #[must_use]
    pub(crate) fn truncate_to(&mut self, end: Offset, leader_epoch: LeaderEpoch) -> bool {
        if end < self.changed_end {
            return false;
        }
        if end < self.end {
            self.end = end;
            self.leader_epoch = leader_epoch;
        }
        true
    }

    /// The state of a log that lacks some of what `told` stands for, which is older knowledge of a longer one: whatever
    /// that knows of batches below the log's end holds here as well. Transactions are those of the log alone.
    pub(crate) fn keep_of(&mut self, told: &Self) {
        let mut producers = Producers::new();
        for (_, producer) in self.transactions.open() {
            producers.insert(self.open_entry(producer).clone());
        }
        for entry in told.producers.idle().filter_map(|entry| entry.cut_to(self.end)) {
            if producers.get(entry.id).is_none() {
                producers.insert(entry);
            }
        }
        for entry in self.producers.idle() {
            if producers.get(entry.id).is_none() {
                producers.insert(entry.clone());
            }
        }
        self.producers = producers;
        self.changed_end = self.end;
    }

    /// Whoever appended behind `end` did so at `since` or later, whatever the clock showed then.
    pub(crate) fn appended_since(&mut self, end: Offset, since: Timestamp) {
        for entry in self.producers.all_mut() {
            if entry.batches().last().is_some_and(|last| last.end_offset() > end) {
                entry.appended_at = entry.appended_at.max(since);
            }
        }
    }

    /// Forgets producers whose last append is `age` or longer ago, and returns them in the order of their last appends.
    /// Who has a transaction open stays, and whomever `keep` names: a named producer's sequence is its position.
    pub(crate) fn expire(
        &mut self,
        now: Timestamp,
        age: Duration,
        keep: impl Fn(ProducerId) -> bool,
    ) -> Vec<ProducerId> {
        let is_over = |entry: &Entry| {
            now >= entry.appended_at && now.since(entry.appended_at) >= age && !keep(entry.id)
        };
        let expired: Vec<_> =
            self.producers.idle().filter(|entry| is_over(entry)).map(|entry| entry.id).collect();
        if expired.is_empty() {
            return expired;
        }
        // Built anew, so that the memory is given back too.
        let mut kept = Producers::new();
        for entry in self.producers.idle().filter(|entry| !is_over(entry)) {
            kept.insert(entry.clone());
        }
        for (_, producer) in self.transactions.open() {
            kept.insert(self.open_entry(producer).clone());
        }
        self.producers = kept;
        expired
    }
}
