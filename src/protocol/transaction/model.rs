//! Every interleaving of a small world: ids with handles and zombies, two partitions, a topic for decisions,
//! failures of single writes, crashes between any two of them.
//!
//! The world carries out effects one by one, as separate actions: a record reaches the topic, or does not, or
//! does and is reported as lost; a marker likewise. A crash keeps any prefix of the records on their way,
//! and the markers on their way or none of them. Handles call, zombies call, late batches arrive.
//!
//! What must hold is checked against the logs and against what callers were told:
//! - INV-06, INV-07: a transaction has one outcome in all partitions, the one that was told, for ever;
//! - INV-10: a fenced handle gets nothing done;
//! - INV-15: from each state, and after one more crash, all comes to rest: nothing open, nobody waiting;
//! - no tag is handed out twice, and none that a partition has seen.
//!
//! INV-05, INV-08 and INV-09 are about sequences and indexes, of which the coordinator knows nothing.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::protocol::group::assignment::PartitionId;
use crate::types::{Outcome, ProducerEpoch, ProducerId, Timestamp, TopicId};

use super::coordinator::{Coordinator, Replay};
use super::lineage::{TransactionTag, Verdict};
use super::messages::{Answer, Effect, Event, Open, Refusal, RequestId, Settings};
use super::records::{IdState, TransactionRecord};

const PARTITIONS: usize = 2;
const STATES_MAX: usize = 1_500_000;
const OUTCOMES: [Outcome; 2] = [Outcome::Committed, Outcome::Aborted];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Open(usize),
    /// Joins the partition and appends a batch at once.
    Write(usize, usize),
    /// Joins the partition; the batch is slow.
    Join(usize, usize),
    /// The slow batch arrives, whatever has happened to the transaction.
    WriteLate(TransactionTag, usize),
    End(usize, Outcome),
    Close(usize),
    /// The handle before goes on as if nothing had happened.
    ZombieEnds(usize),
    ZombieWrites(usize),
    /// Long enough for every time-out.
    TimePasses,
    /// The next record on its way reaches the topic.
    RecordWritten,
    /// It is reported as failed, and is in the topic or not.
    RecordFails {
        written: bool,
    },
    MarkerWritten(usize),
    /// The marker of a commit is in the partition's log, and could still be lost.
    MarkerAppended(usize),
    MarkerFails {
        written: bool,
    },
    /// What the partition's log has becomes safe.
    Secured(usize),
    /// Another leader takes over, that has nothing of what was not safe.
    Lost(usize),
    /// Of the records on their way, so many reach the topic; the markers do or do not; what was not safe in the
    /// partitions stays or is lost.
    Crash {
        records: usize,
        markers: bool,
        keeps: bool,
    },
    /// The second partition, which was missing at the start, is there.
    ComesBack,
}

/// What a small world may do, and how often.
#[derive(Clone, Copy)]
struct Rules {
    ids: usize,
    opens: usize,
    /// Ends asked for, by all handles.
    ends: usize,
    /// Records or markers that fail.
    failures: usize,
    crashes: usize,
    jumps: usize,
    epoch_end: u32,
    /// After a crash the second partition is missing for a while.
    offline: bool,
    /// Batches are slow: any may arrive at any time.
    late: bool,
    /// Markers of commits are appended first and safe later.
    lagging: bool,
}

/// What a log has that is not safe: how to take it back.
#[derive(Clone, Copy, Debug)]
struct Unsafe {
    tag: TransactionTag,
    before: Option<Seen>,
    is_marker: bool,
}

#[derive(Clone, Debug)]
struct Handle {
    tag: TransactionTag,
    ending: bool,
    /// The last answer gave no next tag: its epochs are used up.
    spent: bool,
}

/// What a partition knows of a producer, by the rules of `producer_state`.
#[derive(Clone, Copy, Debug)]
struct Seen {
    epoch: ProducerEpoch,
    open: bool,
    ended: bool,
}

#[derive(Clone, Copy, Debug)]
enum Call {
    Open { slot: usize },
    End { slot: usize, tag: TransactionTag },
}

#[derive(Clone, Debug, Default)]
struct Truth {
    /// Has joined, and its batch is under way.
    slow: BTreeSet<usize>,
    data: BTreeSet<usize>,
    /// By partition, what the marker says.
    markers: BTreeMap<usize, Outcome>,
    told: Option<Outcome>,
    commit_asked: bool,
    /// Of its data, before it was asked to end.
    lost: bool,
}

#[derive(Clone, Debug, Default)]
struct Spent {
    opens: usize,
    ends: usize,
    failures: usize,
    crashes: usize,
    jumps: usize,
}

#[derive(Clone)]
struct World {
    rules: &'static Rules,
    coordinator: Coordinator,
    now: Timestamp,
    topic: BTreeMap<Arc<str>, IdState>,
    records: VecDeque<(TransactionRecord, bool)>,
    markers: BTreeSet<(TransactionTag, usize, bool)>,
    logs: [BTreeMap<ProducerId, Seen>; PARTITIONS],
    /// From the first marker that is not safe on.
    tails: [Vec<Unsafe>; PARTITIONS],
    offline: bool,
    truth: BTreeMap<TransactionTag, Truth>,
    handles: Vec<Option<Handle>>,
    zombies: Vec<Option<TransactionTag>>,
    calls: BTreeMap<RequestId, Call>,
    handed: BTreeSet<TransactionTag>,
    next_request: u64,
    next_producer: u64,
    spent: Spent,
}

fn id(slot: usize) -> Arc<str> {
    if slot == 0 { "a".into() } else { "b".into() }
}

fn partition(index: usize) -> PartitionId {
    PartitionId { topic: TopicId(1), partition: u32::try_from(index).unwrap() }
}

fn index(partition: PartitionId) -> usize {
    usize::try_from(partition.partition).unwrap()
}

fn settings(rules: &Rules) -> Settings {
    Settings { epoch_end: ProducerEpoch(rules.epoch_end), expiration: None, ..Settings::default() }
}

impl World {
    fn new(rules: &'static Rules) -> Self {
        let (coordinator, effects) = Replay::default().open(settings(rules), Timestamp(0)).unwrap();
        assert_eq!(effects, []);
        Self {
            rules,
            coordinator,
            now: Timestamp(0),
            topic: BTreeMap::new(),
            records: VecDeque::new(),
            markers: BTreeSet::new(),
            logs: [const { BTreeMap::new() }; PARTITIONS],
            tails: [const { Vec::new() }; PARTITIONS],
            offline: false,
            truth: BTreeMap::new(),
            handles: vec![None; rules.ids],
            zombies: vec![None; rules.ids],
            calls: BTreeMap::new(),
            handed: BTreeSet::new(),
            next_request: 0,
            next_producer: 0,
            spent: Spent::default(),
        }
    }

    fn actions(&self) -> Vec<Action> {
        let (rules, spent) = (self.rules, &self.spent);
        let mut actions = Vec::new();
        for slot in 0..rules.ids {
            if spent.opens < rules.opens {
                actions.push(Action::Open(slot));
            }
            if let Some(handle) = &self.handles[slot] {
                for at in 0..PARTITIONS {
                    let truth = &self.truth[&handle.tag];
                    let written = truth.data.contains(&at) || truth.slow.contains(&at);
                    if !handle.ending && !handle.spent && !written && !self.is_missing(at) {
                        let write = if rules.late { Action::Join } else { Action::Write };
                        actions.push(write(slot, at));
                    }
                }
                if spent.ends < rules.ends && !handle.spent {
                    let lost = self.truth[&handle.tag].lost;
                    let outcomes = OUTCOMES.into_iter().skip(usize::from(lost));
                    actions.extend(outcomes.map(|outcome| Action::End(slot, outcome)));
                }
                actions.push(Action::Close(slot));
            }
            if self.zombies[slot].is_some() {
                actions.extend([Action::ZombieEnds(slot), Action::ZombieWrites(slot)]);
            }
        }
        for (tag, truth) in &self.truth {
            actions.extend(truth.slow.iter().map(|at| Action::WriteLate(*tag, *at)));
        }
        if spent.jumps < rules.jumps {
            actions.push(Action::TimePasses);
        }
        if !self.records.is_empty() {
            actions.push(Action::RecordWritten);
        }
        let may_fail = spent.failures < rules.failures;
        if may_fail && self.records.front().is_some_and(|(_, awaited)| *awaited) {
            actions.extend([true, false].map(|written| Action::RecordFails { written }));
        }
        for (at, (_, place, committed)) in self.markers.iter().enumerate() {
            if !self.is_missing(*place) {
                actions.push(Action::MarkerWritten(at));
                if rules.lagging && *committed {
                    actions.push(Action::MarkerAppended(at));
                }
            }
        }
        for at in (0..PARTITIONS).filter(|at| !self.tails[*at].is_empty()) {
            actions.push(Action::Secured(at));
            if may_fail {
                actions.push(Action::Lost(at));
            }
        }
        if may_fail && self.markers.first().is_some_and(|(_, at, _)| !self.is_missing(*at)) {
            actions.extend([true, false].map(|written| Action::MarkerFails { written }));
        }
        if spent.crashes < rules.crashes {
            let tails = self.tails.iter().any(|tail| !tail.is_empty());
            for records in 0..=self.records.len() {
                for keeps in [false, true].into_iter().take(1 + usize::from(tails)) {
                    actions.push(Action::Crash { records, markers: false, keeps });
                    if !self.markers.is_empty() {
                        actions.push(Action::Crash { records, markers: true, keeps });
                    }
                }
            }
        }
        if self.offline {
            actions.push(Action::ComesBack);
        }
        actions
    }

    fn is_missing(&self, at: usize) -> bool {
        self.offline && at == 1
    }

    fn act(&mut self, action: Action) -> Result<(), String> {
        match action {
            Action::Open(slot) => {
                self.spent.opens += 1;
                let renews = self.handles[slot].as_ref().filter(|handle| handle.spent);
                let renews = renews.map(|handle| handle.tag);
                if let Some(handle) = self.handles[slot].take().filter(|_| renews.is_none()) {
                    self.zombies[slot] = Some(handle.tag);
                }
                self.next_producer += 1;
                let request = self.call(Call::Open { slot });
                let open = Open {
                    request,
                    id: id(slot),
                    timeout: Duration::from_secs(60),
                    fresh: ProducerId(self.next_producer),
                    renews,
                };
                self.step(Event::Open(open))?;
            }
            Action::Write(slot, at) => self.write(slot, at)?,
            Action::Join(slot, at) => {
                let tag = self.handles[slot].as_ref().unwrap().tag;
                if self.coordinator.join(|| self.now, tag, partition(at)).is_ok() {
                    self.truth.get_mut(&tag).unwrap().slow.insert(at);
                }
            }
            Action::WriteLate(tag, at) => {
                self.truth.get_mut(&tag).unwrap().slow.remove(&at);
                let running =
                    self.coordinator.clone().join(|| self.now, tag, partition(at)).is_ok();
                let appended = self.append(tag, at)?;
                ensure(appended || !running, || "a partition fences the holder".to_owned())?;
            }
            Action::End(slot, outcome) => {
                self.spent.ends += 1;
                let handle = self.handles[slot].as_mut().unwrap();
                handle.ending = true;
                let tag = handle.tag;
                if outcome == Outcome::Committed {
                    let truth = self.truth.get_mut(&tag).unwrap();
                    truth.commit_asked = true;
                    // A commit waits for its data before.
                    for at in truth.data.clone() {
                        self.secure(at)?;
                    }
                }
                let request = self.call(Call::End { slot, tag });
                self.step(Event::End { request, tag, outcome })?;
            }
            Action::Close(slot) => {
                let tag = self.handles[slot].take().unwrap().tag;
                self.zombies[slot] = Some(tag);
                self.step(Event::Close { tag })?;
            }
            Action::ZombieEnds(slot) => {
                let tag = self.zombies[slot].unwrap();
                for outcome in OUTCOMES {
                    let request = RequestId(0);
                    let effects =
                        self.coordinator.step(self.now, Event::End { request, tag, outcome });
                    let refused = matches!(
                        effects[..],
                        [Effect::Reply {
                            answer: Answer::Refused(
                                Refusal::Fenced { .. } | Refusal::UnknownProducer
                            ),
                            ..
                        }]
                    );
                    ensure(refused, || format!("INV-10: {effects:?}"))?;
                }
                let effects = self.coordinator.step(self.now, Event::Close { tag });
                ensure(effects.is_empty(), || format!("INV-10: {effects:?}"))?;
            }
            Action::ZombieWrites(slot) => {
                let tag = self.zombies[slot].unwrap();
                for at in 0..PARTITIONS {
                    let joined = self.coordinator.join(|| self.now, tag, partition(at));
                    ensure(joined.is_err(), || "INV-10: it writes".to_owned())?;
                }
            }
            Action::TimePasses => {
                self.spent.jumps += 1;
                self.now = self.now.plus(Duration::from_secs(3600));
                self.step(Event::Tick)?;
            }
            Action::RecordWritten => {
                let (record, awaited) = self.records.pop_front().unwrap();
                let id = record.id.clone();
                self.keep(record);
                if awaited {
                    self.step(Event::Persisted { id })?;
                }
            }
            Action::RecordFails { written } => {
                self.spent.failures += 1;
                let (record, _) = self.records.pop_front().unwrap();
                let id = record.id.clone();
                if written {
                    self.keep(record);
                }
                self.step(Event::PersistFailed { id })?;
            }
            Action::MarkerWritten(nth) => {
                let marker = *self.markers.iter().nth(nth).unwrap();
                self.markers.remove(&marker);
                let (tag, at, _) = marker;
                let partition = partition(at);
                if self.mark(marker)? {
                    self.secure(at)?;
                    self.step(Event::MarkerWritten { tag, partition })?;
                } else {
                    self.step(Event::MarkerFailed { tag, partition })?;
                }
            }
            Action::MarkerAppended(nth) => {
                let marker = *self.markers.iter().nth(nth).unwrap();
                self.markers.remove(&marker);
                let (tag, at, _) = marker;
                let before = self.logs[at].get(&tag.producer).copied();
                let is_late = before.is_some_and(|seen| tag.epoch < seen.epoch);
                let partition = partition(at);
                if !self.mark(marker)? {
                    self.step(Event::MarkerFailed { tag, partition })?;
                } else if is_late {
                    self.step(Event::MarkerWritten { tag, partition })?;
                } else {
                    self.tails[at].push(Unsafe { tag, before, is_marker: true });
                    self.step(Event::MarkerAppended { tag, partition })?;
                }
            }
            Action::Secured(at) => self.secure(at)?,
            Action::Lost(at) => {
                self.spent.failures += 1;
                let lost = self.take_back(at);
                self.find(at)?;
                for tag in lost {
                    self.step(Event::MarkerFailed { tag, partition: partition(at) })?;
                }
            }
            Action::MarkerFails { written } => {
                self.spent.failures += 1;
                let marker = self.markers.pop_first().unwrap();
                if written && self.mark(marker)? {
                    self.secure(marker.1)?;
                }
                let (tag, at, _) = marker;
                self.step(Event::MarkerFailed { tag, partition: partition(at) })?;
            }
            Action::Crash { records, markers, keeps } => {
                self.spent.crashes += 1;
                self.crash(records, markers, keeps, self.rules.offline)?;
            }
            Action::ComesBack => {
                self.offline = false;
                self.find(1)?;
            }
        }
        self.check()
    }

    fn call(&mut self, call: Call) -> RequestId {
        self.next_request += 1;
        self.calls.insert(RequestId(self.next_request), call);
        RequestId(self.next_request)
    }

    fn keep(&mut self, record: TransactionRecord) {
        // Through its bytes, as after a restart.
        let (key, value) = (record.key(), record.value());
        let read = TransactionRecord::decode(&key, value.as_deref());
        assert_eq!(read.as_ref(), Ok(&record));
        match record.state {
            Some(state) => self.topic.insert(record.id, state),
            None => self.topic.remove(&record.id),
        };
    }

    /// What the partition's log has is safe, and its markers are reported so.
    fn secure(&mut self, at: usize) -> Result<(), String> {
        for Unsafe { tag, is_marker, .. } in std::mem::take(&mut self.tails[at]) {
            if is_marker {
                self.step(Event::MarkerWritten { tag, partition: partition(at) })?;
            }
        }
        Ok(())
    }

    /// Takes back what is not safe, and returns whose markers that were.
    fn take_back(&mut self, at: usize) -> Vec<TransactionTag> {
        let mut lost = Vec::new();
        for Unsafe { tag, before, is_marker } in
            std::mem::take(&mut self.tails[at]).into_iter().rev()
        {
            match before {
                Some(seen) => self.logs[at].insert(tag.producer, seen),
                None => self.logs[at].remove(&tag.producer),
            };
            let truth = self.truth.get_mut(&tag).unwrap();
            if is_marker {
                truth.markers.remove(&at);
                lost.push(tag);
            } else {
                truth.data.remove(&at);
                truth.lost = true;
            }
        }
        lost
    }

    fn crash(
        &mut self,
        records: usize,
        markers: bool,
        keeps: bool,
        offline: bool,
    ) -> Result<(), String> {
        self.truth.values_mut().for_each(|truth| truth.slow.clear());
        for at in 0..PARTITIONS {
            if keeps {
                self.tails[at].clear();
            } else {
                self.take_back(at);
            }
        }
        for (record, _) in self.records.split_off(0).into_iter().take(records) {
            self.keep(record);
        }
        for marker in std::mem::take(&mut self.markers) {
            if markers && !self.is_missing(marker.1) {
                self.mark(marker)?;
            }
        }
        self.handles.fill(None);
        self.zombies.fill(None);
        self.calls.clear();
        let mut replay = Replay::default();
        for (id, state) in self.topic.clone() {
            replay.apply(TransactionRecord { id, state: Some(state) });
        }
        let (coordinator, effects) = replay.open(settings(self.rules), self.now).unwrap();
        self.coordinator = coordinator;
        self.deliver(effects)?;
        self.offline = offline;
        self.find(0)?;
        if offline { Ok(()) } else { self.find(1) }
    }

    /// The partition reports what is open in it.
    fn find(&mut self, at: usize) -> Result<(), String> {
        for (producer, seen) in self.logs[at].clone() {
            if seen.open {
                let tag = TransactionTag { producer, epoch: seen.epoch };
                self.step(Event::Found { tag, partition: partition(at) })?;
            }
        }
        Ok(())
    }

    fn write(&mut self, slot: usize, at: usize) -> Result<(), String> {
        let tag = self.handles[slot].as_ref().unwrap().tag;
        match self.coordinator.join(|| self.now, tag, partition(at)) {
            Ok(()) => {
                let appended = self.append(tag, at)?;
                ensure(appended, || "a partition fences the holder".to_owned())
            }
            // What was found in the partition has no marker there yet.
            Err(Refusal::Busy)
                if self.rules.lagging
                    || self.logs[at].get(&tag.producer).is_some_and(|seen| seen.open) =>
            {
                Ok(())
            }
            // It has timed out, and the decision may be on its way.
            Err(Refusal::Over(Verdict::Aborted) | Refusal::Ending) => Ok(()),
            Err(refusal) => Err(format!("the holder is refused: {refusal}")),
        }
    }

    fn append(&mut self, tag: TransactionTag, at: usize) -> Result<bool, String> {
        let seen = self.logs[at].get(&tag.producer).copied();
        if seen
            .is_some_and(|seen| tag.epoch < seen.epoch || (tag.epoch == seen.epoch && seen.ended))
        {
            return Ok(false);
        }
        let older_open = seen.is_some_and(|seen| seen.open && seen.epoch < tag.epoch);
        ensure(!older_open, || format!("{tag:?} meets an open transaction"))?;
        let new = Seen { epoch: tag.epoch, open: true, ended: false };
        self.logs[at].insert(tag.producer, new);
        if !self.tails[at].is_empty() {
            self.tails[at].push(Unsafe { tag, before: seen, is_marker: false });
        }
        self.truth.get_mut(&tag).unwrap().data.insert(at);
        Ok(true)
    }

    /// False: the partition does not take the marker now.
    fn mark(&mut self, marker: (TransactionTag, usize, bool)) -> Result<bool, String> {
        let (tag, at, committed) = marker;
        let outcome = OUTCOMES[usize::from(!committed)];
        let seen = self.logs[at].get(&tag.producer).copied();
        if seen.is_some_and(|seen| tag.epoch < seen.epoch) {
            let had =
                !self.truth[&tag].data.contains(&at) || self.truth[&tag].markers.contains_key(&at);
            ensure(had, || format!("{tag:?} stays without a marker in {at}"))?;
            return Ok(true);
        }
        let older_open = seen.is_some_and(|seen| seen.open && seen.epoch < tag.epoch);
        if older_open && self.rules.lagging {
            return Ok(false);
        }
        ensure(!older_open, || format!("the marker of {tag:?} meets an open transaction"))?;
        let new = Seen { epoch: tag.epoch, open: false, ended: true };
        self.logs[at].insert(tag.producer, new);
        let before = self.truth.get_mut(&tag).unwrap().markers.insert(at, outcome);
        ensure(before.is_none_or(|before| before == outcome), || "INV-07: it flips".to_owned())?;
        Ok(true)
    }

    fn step(&mut self, event: Event) -> Result<(), String> {
        let effects = self.coordinator.step(self.now, event);
        self.deliver(effects)
    }

    fn deliver(&mut self, effects: Vec<Effect>) -> Result<(), String> {
        for effect in effects {
            match effect {
                Effect::Persist { record } => {
                    let twice = self
                        .records
                        .iter()
                        .any(|(other, awaited)| *awaited && other.id == record.id);
                    ensure(!twice, || "two records of one id are awaited".to_owned())?;
                    self.records.push_back((record, true));
                }
                Effect::Note { record } => self.records.push_back((record, false)),
                Effect::WriteMarkers { tag, outcome, partitions } => {
                    ensure(!partitions.is_empty(), || "no markers".to_owned())?;
                    let committed = outcome == Outcome::Committed;
                    let marker = |at| (tag, index(at), committed);
                    self.markers.extend(partitions.into_iter().map(marker));
                }
                Effect::Reply { request, answer } => {
                    let call = self.calls.remove(&request);
                    let call = call.ok_or_else(|| format!("answered twice: {answer:?}"))?;
                    self.answered(call, answer)?;
                }
                Effect::Unexplained { .. } => return Err(format!("{effect:?}")),
            }
        }
        Ok(())
    }

    fn answered(&mut self, call: Call, answer: Answer) -> Result<(), String> {
        match (call, answer) {
            (Call::Open { slot }, Answer::Opened { tag }) => {
                self.hand_out(tag)?;
                ensure(self.handles[slot].is_none(), || "two holders".to_owned())?;
                self.handles[slot] = Some(Handle { tag, ending: false, spent: false });
                Ok(())
            }
            (Call::Open { .. }, Answer::Failed | Answer::Refused(Refusal::Fenced { .. })) => Ok(()),
            (Call::End { slot, tag }, Answer::Ended { outcome, next }) => {
                let truth = self.truth.get_mut(&tag).unwrap();
                let empty = truth.data.is_empty() && truth.markers.is_empty();
                if !empty {
                    let other = truth.told.replace(outcome);
                    let same = other.is_none_or(|other| other == outcome);
                    ensure(same, || format!("{tag:?} was told as {other:?}"))?;
                    let visible =
                        truth.data.iter().all(|at| truth.markers.get(at) == Some(&outcome));
                    ensure(visible, || format!("INV-06: {tag:?} is not visible: {truth:?}"))?;
                }
                let holds = self.handles[slot].as_ref().is_some_and(|handle| handle.tag == tag);
                if !holds {
                    // Asked twice, or fenced meanwhile.
                    return ensure(
                        next.is_none() || self.handles[slot].as_ref().map(|one| one.tag) == next,
                        || "INV-10: a zombie goes on".to_owned(),
                    );
                }
                match next {
                    Some(next) if next != tag => self.hand_out(next)?,
                    Some(_) => {
                        ensure(empty, || "a tag for two transactions".to_owned())?;
                        // As new; whoever asked for it is done.
                        self.truth.insert(tag, Truth::default());
                    }
                    None => {}
                }
                let spent = next.is_none();
                self.handles[slot] =
                    Some(Handle { tag: next.unwrap_or(tag), ending: false, spent });
                Ok(())
            }
            (Call::End { .. }, Answer::Failed | Answer::Refused(Refusal::Busy)) => Ok(()),
            (call, answer) => Err(format!("{call:?}: {answer:?}")),
        }
    }

    fn hand_out(&mut self, tag: TransactionTag) -> Result<(), String> {
        ensure(self.handed.insert(tag), || format!("{tag:?} is handed out again"))?;
        ensure(tag.epoch.0 < self.rules.epoch_end, || format!("{tag:?} is kept back"))?;
        self.truth.insert(tag, Truth::default());
        for (at, log) in self.logs.iter().enumerate() {
            let seen = log.get(&tag.producer);
            // A missing partition is settled when it is there, and one that lost a marker when it has it again.
            let later = self.rules.offline && at == 1 || self.rules.lagging;
            let settled = |seen: &Seen| !seen.open || later;
            let new = seen.is_none_or(|seen| seen.epoch < tag.epoch && settled(seen));
            ensure(new, || format!("{tag:?} was seen before: {seen:?}"))?;
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        for (tag, truth) in &self.truth {
            let outcomes: Vec<Outcome> = truth.markers.values().copied().collect();
            let one = outcomes.windows(2).all(|pair| pair[0] == pair[1]);
            ensure(one, || format!("INV-07: {tag:?} is torn: {truth:?}"))?;
            let verdict = self.coordinator.verdict(*tag);
            if let Some(outcome) = outcomes.first().copied().or(truth.told) {
                let gone = verdict == Verdict::Unknown;
                ensure(verdict == outcome.into() || gone, || {
                    format!("{tag:?}: {verdict:?}, {truth:?}")
                })?;
            }
            let committed = verdict == Verdict::Committed;
            ensure(!committed || truth.commit_asked, || {
                format!("{tag:?} is committed, and nobody asked")
            })?;
        }
        Ok(())
    }

    /// Faults end, callers do nothing more: nothing may be left undone, now or after one more crash. From a
    /// state with anything on its way, the search goes to one with less of it, so only quiet ones are looked at.
    fn check_rest(mut self) -> Result<(), String> {
        if self.offline || !self.records.is_empty() || !self.markers.is_empty() {
            return Ok(());
        }
        self.rest()?;
        self.crash(usize::MAX, false, false, false)?;
        self.rest()?;
        for slot in 0..self.rules.ids {
            self.act(Action::Open(slot))?;
        }
        self.rest()?;
        let open = self.handles.iter().flatten().count();
        ensure(open == self.rules.ids, || "an id is lost".to_owned())
    }

    fn rest(&mut self) -> Result<(), String> {
        let mut quiet = 0;
        for _ in 0..100 {
            let action = if !self.records.is_empty() {
                Action::RecordWritten
            } else if !self.markers.is_empty() {
                Action::MarkerWritten(0)
            } else if let Some(at) = self.tails.iter().position(|tail| !tail.is_empty()) {
                Action::Secured(at)
            } else if quiet < 3 {
                // Time-outs, other tries, and notes in their turn.
                quiet += 1;
                Action::TimePasses
            } else {
                break;
            };
            self.act(action)?;
        }
        ensure(quiet == 3, || "INV-15: it does not come to rest".to_owned())?;
        ensure(self.calls.is_empty(), || format!("INV-15: unanswered: {:?}", self.calls))?;
        let open = self.logs.iter().flat_map(BTreeMap::values).filter(|seen| seen.open).count();
        ensure(open == 0, || "INV-15: a transaction stays open".to_owned())
    }

    fn key(&self) -> String {
        format!(
            "{}{:?}{:?}{:?}{:?}{}{:?}{:?}{:?}{:?}{:?}",
            self.coordinator.shape(),
            self.topic
                .iter()
                .map(|(id, at)| (id, at.lineage, &at.previous, &at.unsettled))
                .collect::<Vec<_>>(),
            self.records
                .iter()
                .map(|(at, awaited)| (
                    &at.id,
                    at.state.as_ref().map(|at| (at.lineage, &at.unsettled)),
                    awaited
                ))
                .collect::<Vec<_>>(),
            self.markers,
            (&self.logs, &self.tails),
            self.offline,
            self.truth,
            self.handles,
            self.zombies,
            self.calls,
            self.spent,
        )
    }
}

fn ensure(holds: bool, fault: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(fault()) }
}

/// Visits every state that can be reached, breadth first: a fault is shown with a shortest way to it.
fn explore(rules: &'static Rules, states_min: usize) {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
    let hasher = BuildHasherDefault::<DefaultHasher>::default();
    let start = World::new(rules);
    let mut seen = HashSet::from([hasher.hash_one(start.key())]);
    let mut steps: Vec<(usize, Option<Action>)> = vec![(0, None)];
    let mut queue = VecDeque::from([(0, start)]);
    while let Some((at, world)) = queue.pop_front() {
        for action in world.actions() {
            let mut next = world.clone();
            let done = next.act(action);
            if done.is_ok() && !seen.insert(hasher.hash_one(next.key())) {
                continue;
            }
            steps.push((at, Some(action)));
            if let Err(fault) = done.and_then(|()| next.clone().check_rest()) {
                let mut way = Vec::new();
                let mut step = steps.len() - 1;
                while let (before, Some(action)) = steps[step] {
                    way.push(action);
                    step = before;
                }
                way.reverse();
                panic!("{fault}\nafter {way:?}");
            }
            queue.push_back((steps.len() - 1, next));
        }
        assert!(steps.len() < STATES_MAX, "the states have no end");
    }
    assert!(steps.len() > states_min, "only {} states: the world does not move", steps.len());
    println!("{} states", steps.len());
}

const ONE: Rules = Rules {
    ids: 1,
    opens: 2,
    ends: 2,
    failures: 1,
    crashes: 1,
    jumps: 0,
    epoch_end: u32::MAX,
    offline: false,
    late: false,
    lagging: false,
};

#[test]
fn one_id_with_failures_and_a_crash_holds_in_every_interleaving() {
    static RULES: Rules = ONE;
    explore(&RULES, 1000);
}

#[test]
fn two_crashes_hold_in_every_interleaving() {
    static RULES: Rules = Rules { failures: 0, crashes: 2, ..ONE };
    explore(&RULES, 1000);
}

#[test]
fn zombies_and_time_outs_hold_in_every_interleaving() {
    static RULES: Rules = Rules { failures: 0, crashes: 0, jumps: 1, ..ONE };
    explore(&RULES, 1000);
}

#[test]
fn slow_batches_hold_in_every_interleaving() {
    static RULES: Rules = Rules { failures: 0, crashes: 0, ends: 1, late: true, ..ONE };
    explore(&RULES, 1000);
}

#[test]
fn used_up_epochs_hold_in_every_interleaving() {
    static RULES: Rules = Rules { failures: 0, epoch_end: 1, opens: 3, ..ONE };
    explore(&RULES, 1000);
}

#[test]
fn a_partition_that_comes_back_later_holds_in_every_interleaving() {
    static RULES: Rules = Rules { failures: 0, offline: true, ..ONE };
    explore(&RULES, 1000);
}

#[test]
fn markers_that_are_safe_later_or_lost_hold_in_every_interleaving() {
    static RULES: Rules = Rules { opens: 1, lagging: true, ..ONE };
    explore(&RULES, 1000);
}

#[test]
fn lost_markers_under_newer_holders_hold_in_every_interleaving() {
    static RULES: Rules = Rules { ends: 1, crashes: 0, failures: 2, lagging: true, ..ONE };
    explore(&RULES, 1000);
}

#[test]
fn two_ids_hold_in_every_interleaving() {
    static RULES: Rules = Rules { ids: 2, failures: 0, ends: 1, ..ONE };
    explore(&RULES, 1000);
}
