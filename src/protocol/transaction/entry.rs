//! One transactional id: its holder, its transaction, and the record that is on its way.
//!
//! ```text
//!          join                  decision durable                all markers appended
//!   Idle --------> Ongoing --------------------------> Settling --------------------> Idle
//!    ^                                                                                 |
//!    +---- a reign or its end is recorded: opens, expiry ------------------------------+
//! ```
//!
//! A marker that is appended and not as safe as its data yet may be lost with a leader, or by a crash. The partition then
//! reports the transaction as open, and the lineage tells how it ended. So it lags behind the lineage by a bounded
//! number of epochs: further on, the id is busy until the marker is safe.
//!
//! A step that needs a record sets `persisting` and changes nothing else until the record is durable; one that
//! fails leaves all as it was (COORD-34). The holder is fenced at once, by taking its `session` away.
//!
//! Invariants:
//! 1. A decision never changes: the phase moves to `Settling` once for each epoch, and the lineage with it.
//! 2. In `Settling`, the transaction is the last of the lineage; in `Ongoing` it is the running one.
//! 3. Only one record is on its way, and none while markers are.
//! 4. The holder's session began within the lineage, below the last epoch.
//! 5. How a transaction with a lagging marker ended is known.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::protocol::group::assignment::PartitionId;
use crate::types::{Outcome, ProducerEpoch, ProducerId, Timestamp};

use super::lineage::{Lineage, TransactionTag, Verdict};
use super::messages::{Answer, Context, Effect, Open, Refusal, RequestId, WAITERS_MAX};
use super::records::{IdState, PARTITIONS_MAX, PREVIOUS_MAX, TransactionRecord};

/// After a record or a marker could not be written.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(100);
/// A busy id's next decision says as well that the one before is settled; only a quiet id notes it.
pub(super) const NOTE_AFTER: Duration = Duration::from_secs(1);
/// Epochs that a lineage may move on past a marker that is not safe, of the 64 that it remembers.
pub(super) const LAG_MAX: u32 = 32;

#[derive(Clone, Debug)]
enum Phase {
    /// No transaction; all earlier ones are settled.
    Idle,
    Ongoing {
        /// The first join (COORD-62).
        since: Timestamp,
        partitions: BTreeSet<PartitionId>,
        /// An end was asked for. If its record failed, the transaction is in doubt and takes in no more.
        ending: bool,
    },
    /// Decided; to these logs the marker is not appended yet.
    Settling { pending: BTreeSet<PartitionId>, waiters: Vec<RequestId> },
}

/// What the record on its way says.
#[derive(Clone, Debug)]
enum Change {
    Reign { open: Open, lineage: Lineage, previous: Vec<Lineage> },
    Decision { outcome: Outcome, waiters: Vec<RequestId> },
    Expiry,
}

/// All that is known of one id.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    lineage: Lineage,
    /// Those before it, from the oldest on.
    previous: Vec<Lineage>,
    /// Producer ids that have been forgotten, until the coordinator takes them.
    pub(super) forgotten: Vec<ProducerId>,
    /// The lineage began since the store was opened: where its markers lag is known.
    is_own: bool,
    timeout: Duration,
    updated_at: Timestamp,
    /// The first reign is durable.
    recorded: bool,
    /// The first epoch of whoever holds the id.
    session: Option<ProducerEpoch>,
    phase: Phase,
    persisting: Option<Change>,
    /// Waits until what the older holder left is settled.
    opening: Option<Open>,
    /// Older transactions that partitions had open, each with its outcome, until they have the marker. Their
    /// partitions take nothing new before, and nobody is let in.
    strays: BTreeMap<(TransactionTag, PartitionId), Outcome>,
    strays_retry_at: Option<Timestamp>,
    /// Markers of commits that are appended, and could still be lost.
    lagging: BTreeSet<(TransactionTag, PartitionId)>,
    /// The highest epoch above the lineage's that a partition has reported.
    seen: ProducerEpoch,
    /// When to note that all is settled.
    note_at: Option<Timestamp>,
    /// Not before; after a failure.
    retry_at: Option<Timestamp>,
    /// When the coordinator looks at it next; kept here for its sake.
    pub(super) timer: Option<Timestamp>,
}

impl Entry {
    /// An id that nobody has held, for the open that follows.
    pub(super) fn new(fresh: ProducerId, now: Timestamp) -> Self {
        Self {
            lineage: Lineage::new(fresh),
            previous: Vec::new(),
            forgotten: Vec::new(),
            is_own: true,
            timeout: Duration::ZERO,
            updated_at: now,
            recorded: false,
            session: None,
            phase: Phase::Idle,
            persisting: None,
            opening: None,
            strays: BTreeMap::new(),
            strays_retry_at: None,
            lagging: BTreeSet::new(),
            seen: ProducerEpoch(0),
            note_at: None,
            retry_at: None,
            timer: None,
        }
    }

    /// What a record says, after a restart: nobody holds it, and a decision is to be carried out (COORD-42).
    pub(super) fn replayed(
        state: IdState,
        context: Context<'_>,
        effects: &mut Vec<Effect>,
    ) -> Self {
        let mut entry = Self {
            lineage: state.lineage,
            previous: state.previous,
            is_own: false,
            timeout: state.timeout,
            updated_at: context.settings.as_of_start(state.updated_at, context.now),
            recorded: true,
            ..Self::new(state.lineage.producer(), context.now)
        };
        if let Some(partitions) = state.unsettled {
            let pending = partitions.into_iter().collect();
            entry.phase = Phase::Settling { pending, waiters: Vec::new() };
            entry.write_markers(effects);
        }
        entry
    }

    /// The producer id that transactions have now.
    pub(super) fn producer(&self) -> ProducerId {
        self.lineage.producer()
    }

    /// All producer ids whose transactions are known here.
    pub(super) fn producers(&self) -> impl Iterator<Item = ProducerId> {
        self.previous.iter().chain([&self.lineage]).map(Lineage::producer)
    }

    /// Nothing of it is durable, and nobody is waiting for it to be.
    pub(super) fn is_void(&self) -> bool {
        !self.recorded && self.persisting.is_none() && self.opening.is_none()
    }

    pub(super) fn is_ongoing(&self) -> bool {
        matches!(self.phase, Phase::Ongoing { .. })
    }

    pub(super) fn verdict(&self, tag: TransactionTag) -> Verdict {
        if tag.producer == self.lineage.producer() {
            return match tag.epoch.cmp(&self.lineage.end()) {
                std::cmp::Ordering::Less => self.lineage.verdict(tag.epoch),
                std::cmp::Ordering::Equal if self.is_undecided() => Verdict::Open,
                std::cmp::Ordering::Equal => Verdict::Aborted,
                std::cmp::Ordering::Greater => Verdict::Unknown,
            };
        }
        match self.previous.iter().find(|previous| previous.producer() == tag.producer) {
            Some(previous) if tag.epoch < previous.end() => previous.verdict(tag.epoch),
            Some(previous) if tag.epoch == previous.end() => Verdict::Aborted,
            // The topic has lost what told of it.
            Some(_) | None => Verdict::Unknown,
        }
    }

    /// Whether its transaction is decided, and the marker is yet to be appended in the partition.
    pub(super) fn awaits_marker(&self, tag: TransactionTag, partition: PartitionId) -> bool {
        let is_last = self.lineage.last().is_some_and(|(last, _)| last == tag);
        is_last && self.awaits(partition)
    }

    /// Whether its marker is yet to be appended in the partition, or has to be once more.
    pub(super) fn lacks_marker(&self, tag: TransactionTag, partition: PartitionId) -> bool {
        self.awaits_marker(tag, partition) || self.strays.contains_key(&(tag, partition))
    }

    fn awaits(&self, partition: PartitionId) -> bool {
        matches!(&self.phase, Phase::Settling { pending, .. } if pending.contains(&partition))
    }

    /// Whether the running epoch may still be committed by anyone.
    fn is_undecided(&self) -> bool {
        self.session.is_some() || matches!(self.phase, Phase::Ongoing { .. })
    }

    /// Whether the tag is its holder's current or next one. Another one is refused, with the reason.
    fn check_current(&self, tag: TransactionTag) -> Result<(), Refusal> {
        self.check_holder(tag)?;
        if tag.epoch < self.lineage.end() {
            return Err(Refusal::Over(self.lineage.verdict(tag.epoch)));
        }
        match self.phase {
            // The holder's transaction has timed out, and it cannot know this tag yet.
            Phase::Settling { .. } => Err(Refusal::Busy),
            Phase::Idle | Phase::Ongoing { .. } => Ok(()),
        }
    }

    /// Whether the tag belongs to the session that holds the id (INV-10).
    fn check_holder(&self, tag: TransactionTag) -> Result<(), Refusal> {
        let fenced = Refusal::Fenced { current: self.lineage.tag() };
        let since = self.session.ok_or(fenced)?;
        let range = since..=self.lineage.end();
        let holds = tag.producer == self.lineage.producer() && range.contains(&tag.epoch);
        if holds { Ok(()) } else { Err(fenced) }
    }

    pub(super) fn join(
        &mut self,
        context: Context<'_>,
        tag: TransactionTag,
        partition: PartitionId,
    ) -> Result<(), Refusal> {
        self.check_current(tag)?;
        if self.strays.keys().any(|(_, place)| *place == partition) {
            return Err(Refusal::Busy);
        }
        match &mut self.phase {
            Phase::Ongoing { ending: true, .. } => Err(Refusal::Ending),
            Phase::Ongoing { partitions, .. } => {
                if partitions.len() >= PARTITIONS_MAX && !partitions.contains(&partition) {
                    return Err(Refusal::TooManyPartitions);
                }
                partitions.insert(partition);
                Ok(())
            }
            // A tag that its holder was not given: its epochs are used up.
            Phase::Idle if tag.epoch >= context.settings.epoch_end => Err(Refusal::UnknownProducer),
            Phase::Idle => {
                self.begin(context.now, partition);
                Ok(())
            }
            Phase::Settling { .. } => {
                unreachable!("a current tag is not of a settling transaction")
            }
        }
    }

    fn begin(&mut self, now: Timestamp, partition: PartitionId) {
        let partitions = BTreeSet::from([partition]);
        self.phase = Phase::Ongoing { since: now, partitions, ending: false };
    }

    /// Fences the holder, or waits for its turn behind what it left.
    pub(super) fn on_open(&mut self, context: Context<'_>, open: Open, effects: &mut Vec<Effect>) {
        if let Some(Err(refusal)) = open.renews.map(|tag| self.check_holder(tag)) {
            effects.push(reply(open.request, Answer::Refused(refusal)));
            return;
        }
        if !self.may_move_on(LAG_MAX) {
            effects.push(reply(open.request, Answer::Refused(Refusal::Busy)));
            return;
        }
        self.session = None;
        if let Some(older) = self.opening.replace(open) {
            effects.push(self.fenced(older.request));
        }
        self.go_on(context, effects);
    }

    pub(super) fn on_end(
        &mut self,
        context: Context<'_>,
        request: RequestId,
        tag: TransactionTag,
        outcome: Outcome,
        effects: &mut Vec<Effect>,
    ) {
        if let Err(refusal) = self.check_holder(tag) {
            effects.push(reply(request, Answer::Refused(refusal)));
            return;
        }
        let (verdict, next) = (self.verdict(tag), self.next(context));
        let is_last = self.lineage.last().is_some_and(|(last, _)| last == tag);
        let is_running = tag == self.lineage.tag();
        let wait = match (&mut self.phase, &mut self.persisting) {
            (Phase::Settling { waiters, .. }, _) if is_last => Some(waiters),
            (Phase::Ongoing { .. }, Some(Change::Decision { waiters, .. })) if is_running => {
                Some(waiters)
            }
            _ => None,
        };
        if let Some(waiters) = wait {
            if waiters.len() < WAITERS_MAX {
                waiters.push(request);
            } else {
                effects.push(reply(request, Answer::Refused(Refusal::Busy)));
            }
            return;
        }
        let may_decide = self.may_move_on(LAG_MAX);
        let answer = match (&self.phase, verdict) {
            (_, Verdict::Committed) => Answer::Ended { outcome: Outcome::Committed, next },
            (_, Verdict::Aborted) => Answer::Ended { outcome: Outcome::Aborted, next },
            (Phase::Ongoing { .. }, Verdict::Open) if !may_decide => Answer::Refused(Refusal::Busy),
            (Phase::Ongoing { .. }, Verdict::Open) => {
                self.decide(context, outcome, vec![request], effects);
                return;
            }
            // Nothing was written under the epoch, so it is as good as new (CLI-18).
            (Phase::Idle, Verdict::Open) if next.is_some() => Answer::Ended { outcome, next },
            (Phase::Idle, Verdict::Open) => Answer::Refused(Refusal::UnknownProducer),
            (Phase::Settling { .. }, Verdict::Open) => Answer::Refused(Refusal::Busy),
            (_, Verdict::Forgotten | Verdict::Unknown) => Answer::Refused(Refusal::Over(verdict)),
        };
        effects.push(reply(request, answer));
    }

    pub(super) fn on_close(
        &mut self,
        context: Context<'_>,
        tag: TransactionTag,
        effects: &mut Vec<Effect>,
    ) {
        if self.check_holder(tag).is_ok() {
            self.session = None;
            self.updated_at = context.now;
            self.go_on(context, effects);
        }
    }

    /// Returns whether the id is forgotten, and by whom it is wanted again.
    pub(super) fn on_persisted(
        &mut self,
        context: Context<'_>,
        effects: &mut Vec<Effect>,
    ) -> Option<Option<Open>> {
        let change = self.persisting.take().expect("a report follows its record");
        self.retry_at = None;
        self.updated_at = context.now;
        match change {
            Change::Reign { open, lineage, previous } => {
                self.go_on_as(lineage, previous);
                self.seen = ProducerEpoch(0);
                self.timeout = open.timeout;
                self.recorded = true;
                if self.opening.is_some() {
                    effects.push(self.fenced(open.request));
                } else {
                    self.session = Some(lineage.end());
                    effects.push(reply(open.request, Answer::Opened { tag: lineage.tag() }));
                }
            }
            Change::Decision { outcome, waiters } => {
                let Phase::Ongoing { partitions, .. } = &mut self.phase else {
                    unreachable!("a transaction goes on until its decision is durable")
                };
                let pending = std::mem::take(partitions);
                self.phase = Phase::Settling { pending, waiters };
                self.lineage = self.lineage.after(outcome);
                self.write_markers(effects);
            }
            Change::Expiry => return Some(self.opening.take()),
        }
        self.go_on(context, effects);
        None
    }

    pub(super) fn on_persist_failed(&mut self, context: Context<'_>, effects: &mut Vec<Effect>) {
        let change = self.persisting.take().expect("a report follows its record");
        self.retry_at = Some(context.now.plus(RETRY_AFTER));
        match change {
            Change::Reign { open, .. } => {
                effects.push(reply(open.request, Answer::Failed));
                // Who came later has not failed yet.
                self.go_on(context, effects);
            }
            Change::Decision { waiters, .. } => {
                let opening = self.opening.take().map(|open| open.request);
                let failed = waiters.into_iter().chain(opening);
                effects.extend(failed.map(|request| reply(request, Answer::Failed)));
            }
            // An open that waits for a new beginning takes the id as it is.
            Change::Expiry => self.go_on(context, effects),
        }
    }

    /// `safe`: it cannot be lost any more.
    pub(super) fn on_marker(
        &mut self,
        context: Context<'_>,
        tag: TransactionTag,
        partition: PartitionId,
        safe: bool,
        effects: &mut Vec<Effect>,
    ) {
        let next = self.next(context);
        if safe {
            self.lagging.remove(&(tag, partition));
        }
        // One of which nobody would know how it ended stays until it is safe.
        let may_lag = remembers(&self.lineage, &self.previous, tag);
        if (safe || may_lag) && self.strays.remove(&(tag, partition)).is_some() {
            if !safe {
                self.lagging.insert((tag, partition));
            }
            if self.strays.is_empty() {
                self.strays_retry_at = None;
                self.go_on(context, effects);
            }
            // The marker of the last transaction may have been refused for want of this one.
            if self.retry_at.is_some() && self.awaits(partition) {
                self.retry_at = None;
                self.write_markers(effects);
            }
        }
        let Some((_, outcome)) = self.lineage.last().filter(|(last, _)| *last == tag) else {
            return;
        };
        let Phase::Settling { pending, waiters } = &mut self.phase else { return };
        if pending.remove(&partition) && !safe {
            self.lagging.insert((tag, partition));
        }
        if !pending.is_empty() {
            return;
        }
        let answer = Answer::Ended { outcome, next };
        effects.extend(waiters.drain(..).map(|request| reply(request, answer)));
        self.phase = Phase::Idle;
        self.retry_at = None;
        self.updated_at = context.now;
        self.note_at = Some(context.now.plus(NOTE_AFTER));
        self.go_on(context, effects);
    }

    pub(super) fn on_marker_failed(
        &mut self,
        context: Context<'_>,
        tag: TransactionTag,
        partition: PartitionId,
    ) {
        let retry_at = context.now.plus(RETRY_AFTER);
        if self.lagging.remove(&(tag, partition)) {
            // It may be gone from the partition, which takes nothing new before it is there again.
            self.strays.insert((tag, partition), Outcome::Committed);
        }
        if self.strays.contains_key(&(tag, partition)) {
            self.strays_retry_at.get_or_insert(retry_at);
            return;
        }
        let is_last = self.lineage.last().is_some_and(|(last, _)| last == tag);
        if is_last && matches!(self.phase, Phase::Settling { .. }) {
            self.retry_at.get_or_insert(retry_at);
        }
    }

    /// Sees to it that the transaction gets its marker in the partition (COORD-65).
    pub(super) fn on_found(
        &mut self,
        context: Context<'_>,
        tag: TransactionTag,
        partition: PartitionId,
        effects: &mut Vec<Effect>,
    ) {
        let verdict = self.verdict(tag);
        let is_last = self.lineage.last().is_some_and(|(last, _)| last == tag);
        match &mut self.phase {
            Phase::Settling { pending, .. } if is_last => {
                if pending.insert(partition) {
                    self.write_markers(effects);
                }
                return;
            }
            Phase::Ongoing { partitions, .. } if verdict == Verdict::Open => {
                if partitions.len() < PARTITIONS_MAX {
                    partitions.insert(partition);
                }
                return;
            }
            // The holder is here and has not joined anything; whose it is decides.
            _ if verdict == Verdict::Open => {
                self.begin(context.now, partition);
                return;
            }
            _ => {}
        }
        // The topic has lost a record: no later reign may meet what was written under the lost one.
        if verdict == Verdict::Unknown && tag.producer == self.lineage.producer() {
            self.seen = self.seen.max(tag.epoch);
        }
        if verdict == Verdict::Forgotten {
            effects.push(Effect::Unexplained { tag, partition });
        }
        let committed = verdict == Verdict::Committed;
        let outcome = if committed { Outcome::Committed } else { Outcome::Aborted };
        self.strays.insert((tag, partition), outcome);
        effects.push(Effect::WriteMarkers { tag, outcome, partitions: vec![partition] });
    }

    /// Nobody holds the id and nothing is on its way.
    fn is_free(&self) -> bool {
        let waited_for = self.session.is_some() || self.opening.is_some();
        let settled = self.strays.is_empty() && self.lagging.is_empty();
        !waited_for && self.persisting.is_none() && settled
    }

    /// What time brings: a time-out, another try, a note, the end of an id that nobody has used for long.
    pub(super) fn on_due(&mut self, context: Context<'_>, effects: &mut Vec<Effect>) {
        if self.strays_retry_at.is_some_and(|at| at <= context.now) {
            self.strays_retry_at = None;
            for ((tag, partition), outcome) in &self.strays {
                let (tag, outcome, partitions) = (*tag, *outcome, vec![*partition]);
                effects.push(Effect::WriteMarkers { tag, outcome, partitions });
            }
        }
        if self.phase_deadline(context).is_none_or(|deadline| deadline > context.now) {
            return;
        }
        self.retry_at = None;
        match &self.phase {
            Phase::Ongoing { .. } if !self.may_move_on(LAG_MAX) => {
                self.retry_at = Some(context.now.plus(RETRY_AFTER));
            }
            Phase::Ongoing { .. } => {
                self.decide(context, Outcome::Aborted, Vec::new(), effects);
            }
            Phase::Settling { .. } => self.write_markers(effects),
            Phase::Idle if self.note_at.is_some_and(|at| at <= context.now) => {
                self.note(context, effects);
            }
            Phase::Idle => {
                self.persisting = Some(Change::Expiry);
                let record = TransactionRecord { id: context.id.clone(), state: None };
                effects.push(Effect::Persist { record });
            }
        }
    }

    /// When [`Entry::on_due`] has something to do, if nothing else happens before.
    pub(super) fn deadline(&self, context: Context<'_>) -> Option<Timestamp> {
        let deadlines = [self.phase_deadline(context), self.strays_retry_at];
        deadlines.into_iter().flatten().min()
    }

    /// Whether the coordinator's timer would come too late for the deadline.
    pub(super) fn needs_timer(&self, context: Context<'_>) -> bool {
        let deadline = self.deadline(context);
        deadline.is_some_and(|deadline| self.timer.is_none_or(|timer| timer > deadline))
    }

    fn phase_deadline(&self, context: Context<'_>) -> Option<Timestamp> {
        // A record on its way is waited for (COORD-61).
        if self.persisting.is_some() {
            return None;
        }
        let not_before = self.retry_at.unwrap_or(Timestamp::MIN);
        match &self.phase {
            Phase::Ongoing { since, .. } if self.session.is_some() => {
                Some(since.plus(self.timeout).max(not_before))
            }
            Phase::Ongoing { .. } => Some(not_before),
            Phase::Settling { .. } => self.retry_at,
            Phase::Idle if self.note_at.is_some() => self.note_at,
            Phase::Idle if self.is_free() && self.recorded && !context.settings.some_unseen => {
                let expires = self.updated_at.plus(context.settings.expiration?);
                Some(expires.max(not_before))
            }
            Phase::Idle => None,
        }
    }

    /// Puts down that all is settled, so that the next start has nothing to do here.
    pub(super) fn note(&mut self, context: Context<'_>, effects: &mut Vec<Effect>) {
        let quiet = matches!(self.phase, Phase::Idle) && self.persisting.is_none();
        if quiet && self.note_at.take().is_some() {
            let record = self.record(context, self.lineage, self.previous.clone(), None);
            effects.push(Effect::Note { record });
        }
    }

    /// Takes the next step for those who wait: settles what nobody holds, then lets the next holder in.
    fn go_on(&mut self, context: Context<'_>, effects: &mut Vec<Effect>) {
        if self.persisting.is_some() {
            return;
        }
        match &self.phase {
            Phase::Ongoing { .. } if self.session.is_none() => {
                self.decide(context, Outcome::Aborted, Vec::new(), effects);
            }
            Phase::Ongoing { .. } | Phase::Settling { .. } => {}
            Phase::Idle if !self.strays.is_empty() => {}
            Phase::Idle => {
                if let Some(open) = self.opening.take() {
                    self.reign(context, open, effects);
                }
            }
        }
    }

    fn reign(&mut self, context: Context<'_>, open: Open, effects: &mut Vec<Effect>) {
        let (lineage, previous) = self.next_reign(context, open.fresh);
        let all_known = self.lagging.iter().all(|(tag, _)| remembers(&lineage, &previous, *tag));
        if !all_known || previous.len() > PREVIOUS_MAX {
            effects.push(reply(open.request, Answer::Refused(Refusal::Busy)));
            return;
        }
        let mut record = self.record(context, lineage, previous.clone(), None);
        if let Some(state) = &mut record.state {
            state.timeout = open.timeout;
        }
        self.note_at = None;
        self.persisting = Some(Change::Reign { open, lineage, previous });
        effects.push(Effect::Persist { record });
    }

    /// An epoch that the holder before could not know, so that it is told from the new one (COORD-04).
    fn next_reign(&self, context: Context<'_>, fresh: ProducerId) -> (Lineage, Vec<Lineage>) {
        if !self.recorded {
            return (self.lineage, Vec::new());
        }
        let mut previous = self.previous.clone();
        // A lineage goes on only as long as all can be forgotten that lies far back. One before does not go on.
        let some_unseen = context.settings.some_unseen;
        let is_wanted = some_unseen && !self.is_own && self.lineage.committed_bits() != 0;
        let next = self.lineage.end().max(self.seen).0.checked_add(1).map(ProducerEpoch);
        let next = next.filter(|next| !is_wanted && *next < context.settings.epoch_end);
        if next.is_none() {
            previous.push(self.lineage);
        }
        let lineage = next.map_or(Lineage::new(fresh), |next| self.lineage.raised_to(next));
        if !some_unseen {
            // Every partition has told what it had open, so that nobody asks for more than the id's last transactions.
            let mut newer = lineage.end().0;
            let is_kept = |one: &&Lineage| {
                let is_kept = newer < u64::BITS;
                newer = newer.saturating_add(one.end().0.max(1));
                is_kept
            };
            let kept = previous.iter().rev().take_while(is_kept).count();
            // The one before may have what lags.
            previous.drain(..previous.len().saturating_sub(kept.max(1)));
        }
        (lineage, previous)
    }

    /// Takes what a reign's record says, and forgets whom it leaves out.
    fn go_on_as(&mut self, lineage: Lineage, previous: Vec<Lineage>) {
        let before: Vec<_> = self.producers().collect();
        self.is_own |= lineage.producer() != self.lineage.producer();
        (self.lineage, self.previous) = (lineage, previous);
        let producers: Vec<_> = self.producers().collect();
        self.forgotten.extend(before.into_iter().filter(|before| !producers.contains(before)));
        // Reports on a producer that is forgotten by now reach nobody.
        self.strays.retain(|(tag, _), _| producers.contains(&tag.producer));
        self.lagging.retain(|(tag, _)| remembers(&self.lineage, &self.previous, *tag));
    }

    /// Sends the decision on its way: once it is durable, the transaction has ended so for ever (COORD-35).
    fn decide(
        &mut self,
        context: Context<'_>,
        outcome: Outcome,
        waiters: Vec<RequestId>,
        effects: &mut Vec<Effect>,
    ) {
        assert!(self.persisting.is_none(), "one record at a time");
        let Phase::Ongoing { partitions, ending, .. } = &mut self.phase else {
            unreachable!("only a transaction that has begun is decided")
        };
        *ending = true;
        let unsettled = Some(partitions.iter().copied().collect());
        let lineage = self.lineage.after(outcome);
        let record = self.record(context, lineage, self.previous.clone(), unsettled);
        self.note_at = None;
        self.persisting = Some(Change::Decision { outcome, waiters });
        effects.push(Effect::Persist { record });
    }

    fn record(
        &self,
        context: Context<'_>,
        lineage: Lineage,
        previous: Vec<Lineage>,
        unsettled: Option<Vec<PartitionId>>,
    ) -> TransactionRecord {
        let (timeout, updated_at) = (self.timeout, context.now);
        let state = IdState { lineage, previous, timeout, updated_at, unsettled };
        TransactionRecord { id: context.id.clone(), state: Some(state) }
    }

    /// Whether one more epoch may end while markers of commits lag, or are lost, that are `lag` epochs behind.
    fn may_move_on(&self, lag: u32) -> bool {
        // Those of the producer before are not moved away from.
        let of_now =
            |(tag, _): &&(TransactionTag, PartitionId)| tag.producer == self.lineage.producer();
        let lost = self.strays.iter().filter(|(_, outcome)| **outcome == Outcome::Committed);
        let oldest = [self.lagging.iter().find(of_now), lost.map(|(of, _)| of).find(of_now)];
        oldest.iter().flatten().all(|(tag, _)| self.lineage.end().0 - tag.epoch.0 <= lag)
    }

    fn write_markers(&self, effects: &mut Vec<Effect>) {
        let Phase::Settling { pending, .. } = &self.phase else {
            unreachable!("markers follow a decision")
        };
        let (tag, outcome) = self.lineage.last().expect("a decision ends an epoch");
        let partitions = pending.iter().copied().collect();
        effects.push(Effect::WriteMarkers { tag, outcome, partitions });
    }

    /// The holder's next tag.
    fn next(&self, context: Context<'_>) -> Option<TransactionTag> {
        let usable = self.lineage.end() < context.settings.epoch_end;
        (self.session.is_some() && usable).then_some(self.lineage.tag())
    }

    fn fenced(&self, request: RequestId) -> Effect {
        let refusal = Refusal::Fenced { current: self.lineage.tag() };
        reply(request, Answer::Refused(refusal))
    }

    pub(super) fn is_sound(&self) -> bool {
        let phase = match &self.phase {
            Phase::Idle => true,
            Phase::Ongoing { partitions, .. } => !partitions.is_empty(),
            Phase::Settling { pending, .. } => {
                !pending.is_empty() && self.lineage.last().is_some() && self.persisting.is_none()
            }
        };
        let persisting = match &self.persisting {
            None => true,
            Some(Change::Decision { .. }) => matches!(self.phase, Phase::Ongoing { .. }),
            Some(Change::Reign { .. }) => {
                matches!(self.phase, Phase::Idle) && self.session.is_none()
            }
            Some(Change::Expiry) => matches!(self.phase, Phase::Idle) && self.session.is_none(),
        };
        let session = self.session.is_none_or(|since| {
            since <= self.lineage.end() && self.recorded && self.opening.is_none()
        });
        // Who waits, waits for something.
        let opening = self.opening.is_none()
            || self.persisting.is_some()
            || matches!(self.phase, Phase::Settling { .. })
            || !self.strays.is_empty();
        let known = |tag| remembers(&self.lineage, &self.previous, tag);
        let lagging = self.lagging.iter().all(|(tag, _)| known(*tag));
        phase && persisting && session && opening && lagging
    }

    /// All but times, for a search over states.
    #[cfg(test)]
    pub(super) fn shape(&self) -> String {
        let phase = match &self.phase {
            Phase::Ongoing { partitions, ending, .. } => format!("{partitions:?}{ending}"),
            other => format!("{other:?}"),
        };
        let change = match &self.persisting {
            Some(Change::Reign { open, lineage, .. }) => format!("{:?}{lineage:?}", open.request),
            other => format!("{other:?}"),
        };
        format!(
            "{:?}{:?}{}{}{:?}{phase}{change}{:?}{:?}{:?}{}{}{}",
            self.lineage,
            self.previous,
            self.is_own,
            self.recorded,
            self.session,
            self.opening.as_ref().map(|open| open.request),
            self.strays,
            self.lagging,
            self.strays_retry_at.is_some(),
            self.note_at.is_some(),
            self.retry_at.is_some(),
        )
    }
}

/// Whether it is known that the transaction was committed.
fn remembers(lineage: &Lineage, previous: &[Lineage], tag: TransactionTag) -> bool {
    let known = previous.iter().chain([lineage]);
    let own = known.filter(|known| known.producer() == tag.producer && tag.epoch < known.end());
    own.map(|known| known.verdict(tag.epoch)).any(|verdict| verdict == Verdict::Committed)
}

pub(super) fn reply(request: RequestId, answer: Answer) -> Effect {
    Effect::Reply { request, answer }
}
