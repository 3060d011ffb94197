//! A log in memory for the tests, and random lives of producers that are held against it.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::types::{LeaderEpoch, Offset, Outcome, ProducerEpoch, ProducerId, Timestamp};

use super::batch::{BatchFacts, Content, Numbering, Proposal};
use super::entry::BATCHES_MAX;
use super::states::{Applied, PRODUCERS_MAX, ProducerStates};
use super::verdict::{Refusal, TransactionFault, Verdict};
use crate::types::ProducerSequence;

pub(super) const SEED: u32 = 0x0102_0304;

pub(super) fn sequence(id: u64, epoch: u32, sequence: u64) -> ProducerSequence {
    ProducerSequence { id: ProducerId(id), epoch: ProducerEpoch(epoch), sequence }
}

pub(super) fn plain(producer: ProducerSequence, count: u32) -> Proposal {
    let numbering = Numbering::Restarts;
    Proposal { producer, count, transactional: false, strict: false, numbering }
}

pub(super) fn transactional(producer: ProducerSequence, count: u32) -> Proposal {
    Proposal { transactional: true, ..plain(producer, count) }
}

/// Batches, when they were appended, and the state that has seen them.
pub(super) struct Log {
    pub(super) states: ProducerStates,
    pub(super) batches: Vec<(BatchFacts, Timestamp)>,
    pub(super) now: Timestamp,
}

impl Log {
    pub(super) fn new() -> Self {
        Self::with_producers_max(PRODUCERS_MAX)
    }

    pub(super) fn with_producers_max(producers_max: usize) -> Self {
        let states = ProducerStates::new(Offset::ZERO, producers_max);
        Self { states, batches: Vec::new(), now: Timestamp(1000) }
    }

    pub(super) fn end(&self) -> Offset {
        self.batches.last().map_or(Offset::ZERO, |(batch, _)| batch.end_offset())
    }

    pub(super) fn append(
        &mut self,
        content: Content,
        producer: ProducerSequence,
        count: u32,
    ) -> Applied {
        let batch = BatchFacts {
            producer,
            content,
            base_offset: self.end(),
            last_offset_delta: count - 1,
            leader_epoch: LeaderEpoch(3),
        };
        self.now = Timestamp(self.now.0 + 1);
        self.batches.push((batch, self.now));
        self.states.on_appended(&batch, self.now)
    }

    pub(super) fn plain(&mut self, id: u64, epoch: u32, first: u64, count: u32) -> Applied {
        self.append(Content::Plain, sequence(id, epoch, first), count)
    }

    pub(super) fn transactional(&mut self, id: u64, epoch: u32, first: u64, count: u32) -> Applied {
        self.append(Content::Transactional, sequence(id, epoch, first), count)
    }

    pub(super) fn marker(&mut self, id: u64, epoch: u32, outcome: Outcome) -> Applied {
        self.append(Content::Marker(outcome), sequence(id, epoch, 0), 1)
    }

    /// Records of nobody.
    pub(super) fn other(&mut self, count: u32) -> Applied {
        self.append(Content::Plain, sequence(0, 0, 0), count)
    }

    pub(super) fn check(&self, proposal: &Proposal) -> Verdict {
        self.states.check(proposal)
    }

    /// Goes on from `states` with the batches that it has not seen.
    pub(super) fn replayed(&self, mut states: ProducerStates) -> ProducerStates {
        for (batch, at) in &self.batches {
            let _ = states.on_appended(batch, *at);
        }
        states
    }

    pub(super) fn restored(&self, bytes: &[u8]) -> ProducerStates {
        ProducerStates::restore(bytes, SEED, self.states.producers_max).unwrap()
    }

    fn empty(&self) -> ProducerStates {
        ProducerStates::new(Offset::ZERO, self.states.producers_max)
    }
}

fn arbitrary_batch() -> impl Strategy<Value = (Content, u64, u32, u64, u32, i64)> {
    let content = prop_oneof![
        4 => Just(Content::Plain),
        4 => Just(Content::Transactional),
        2 => Just(Content::Marker(Outcome::Committed)),
        2 => Just(Content::Marker(Outcome::Aborted)),
        1 => Just(Content::OtherControl),
    ];
    let first = prop_oneof![8 => 0..12_u64, 1 => Just(u64::MAX - 1)];
    (content, 0..7_u64, 0..3_u32, first, 1..4_u32, 0..50_i64)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is in the log, sensible or not, and with too little room.
    #[test]
    fn inv_09_a_snapshot_and_the_rest_of_the_log_make_the_state_that_the_whole_log_makes(
        batches in prop::collection::vec(arbitrary_batch(), 1..60),
        producers_max in 2..6_usize,
    ) {
        let mut log = Log::with_producers_max(producers_max);
        let mut snapshots = vec![log.states.snapshot(SEED)];
        for (content, id, epoch, first, count, wait) in batches {
            log.now = Timestamp(log.now.0 + wait);
            let open_before: Vec<_> = log.states.open_transactions().collect();
            let applied = log.append(content, sequence(id, epoch, first), count);
            for evicted in applied.evicted {
                prop_assert!(open_before.iter().all(|open| open.producer != evicted), "PROD-20");
            }
            let open_len = log.states.open_transactions().count();
            prop_assert!(log.states.len() <= producers_max.max(open_len + 1));
            snapshots.push(log.states.snapshot(SEED));
        }
        let expected = snapshots.last().unwrap();
        prop_assert_eq!(&log.replayed(log.empty()).snapshot(SEED), expected);
        for snapshot in &snapshots {
            let restored = log.restored(snapshot);
            prop_assert_eq!(&restored.snapshot(SEED), snapshot);
            prop_assert_eq!(&log.replayed(restored).snapshot(SEED), expected);
        }
    }

    /// The end of the log was lost, and its beginning was deleted: what was told of all of it is taken for what is left.
    #[test]
    fn what_was_told_of_a_longer_log_makes_nothing_a_duplicate_that_is_lost_nor_anything_new_that_is_there(
        batches in prop::collection::vec((1..4_u64, 1..4_u32, 0..12_u8), 1..50),
        start in 0..50_usize,
        kept in 0..50_usize,
    ) {
        let mut log = Log::new();
        let mut numbers = BTreeMap::<u64, (u32, u64)>::new();
        for (id, count, bump) in batches {
            let (epoch, next) = numbers.entry(id).or_default();
            match bump {
                0 => (*epoch, *next) = (*epoch + 1, 0),
                1 => *epoch += 1,
                _ => {}
            }
            let (epoch, first) = (*epoch, *next);
            *next += u64::from(count);
            let _ = log.plain(id, epoch, first, count);
        }
        let kept = kept.min(log.batches.len());
        let start = start.min(kept);
        let base = |at: usize| log.batches.get(at).map_or(log.end(), |(batch, _)| batch.base_offset);
        let replay = |from: usize| {
            let mut states = ProducerStates::new(base(from), PRODUCERS_MAX);
            for (batch, at) in &log.batches[from..kept] {
                let _ = states.on_appended(batch, *at);
            }
            states
        };
        let (truth, mut states) = (replay(0), replay(start));
        states.keep_of(&log.states);
        for (at, (batch, _)) in log.batches.iter().enumerate() {
            let proposal = plain(batch.producer, batch.last_offset_delta + 1);
            let (expected, verdict) = (truth.check(&proposal), states.check(&proposal));
            let is_duplicate = |verdict: &Verdict| matches!(verdict, Verdict::Duplicate { .. });
            if is_duplicate(&verdict) {
                prop_assert_eq!(&verdict, &expected, "batch {} of {}..{}", at, start, kept);
            }
            // Of whom more was lost than is remembered, what was deleted before is known to nobody.
            let of_it = |(other, _): &&(BatchFacts, _)| other.producer.id == batch.producer.id;
            let lost: Vec<_> = log.batches[kept..].iter().filter(of_it).collect();
            let is_told = lost.len() < BATCHES_MAX
                && lost.iter().all(|(lost, _)| lost.producer.sequence > 0);
            if is_duplicate(&expected) && (at >= start || is_told) {
                prop_assert_ne!(verdict, Verdict::Append, "batch {} of {}..{}", at, start, kept);
            }
        }
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// What a look at the whole log says of a producer.
#[derive(Default)]
struct Truth {
    epoch: u32,
    /// Whether the last thing is a marker.
    ended: bool,
    /// Batches of `epoch`: sequence, count, first offset.
    batches: Vec<(u64, u32, Offset)>,
}

impl Truth {
    fn of(log: &Log, id: u64) -> Self {
        let mut truth = Self::default();
        for (batch, _) in log.batches.iter().filter(|(batch, _)| batch.producer.id.0 == id) {
            if batch.producer.epoch.0 != truth.epoch {
                truth = Self { epoch: batch.producer.epoch.0, ..Self::default() };
            }
            truth.ended = matches!(batch.content, Content::Marker(_));
            if !truth.ended {
                let count = batch.last_offset_delta + 1;
                truth.batches.push((batch.producer.sequence, count, batch.base_offset));
            }
        }
        truth
    }

    fn next(&self) -> u64 {
        self.batches.last().map_or(0, |(first, count, _)| first + u64::from(*count))
    }
}

fn last_stable(log: &Log, high_watermark: Offset) -> Offset {
    let mut open = BTreeMap::new();
    let mut stable = high_watermark;
    for (batch, _) in &log.batches {
        match batch.content {
            Content::Transactional => {
                open.entry(batch.producer.id).or_insert(batch.base_offset);
            }
            Content::Marker(outcome) => {
                let first = open.remove(&batch.producer.id);
                let may_be_lost =
                    outcome == Outcome::Aborted && batch.base_offset >= high_watermark;
                if let Some(first) = first.filter(|_| may_be_lost) {
                    stable = stable.min(first);
                }
            }
            Content::Plain | Content::OtherControl => {}
        }
    }
    open.into_values().fold(stable, Offset::min)
}

/// Producers that retry, skip and come late, over truncations and restarts from a snapshot: every answer is what a look
/// at the whole log would give. Odd ids are plain, even ones transactional.
#[test]
fn inv_05_the_answers_are_those_of_the_whole_log_over_truncations_and_restarts() {
    let mut answers = [0_u32; 7];
    for seed in 0..300 {
        let mut random = Random(seed);
        let mut log = Log::new();
        let mut high_watermark = Offset::ZERO;
        let mut snapshots: Vec<(Offset, Vec<u8>)> = Vec::new();
        for _ in 0..200 {
            let id = 1 + random.below(5);
            match random.below(10) {
                0 => {
                    let below = log.end().since(high_watermark);
                    high_watermark = high_watermark.plus(random.below(below + 1));
                    log.states.settle(high_watermark);
                }
                1 => snapshots.push((log.end(), log.states.snapshot(SEED))),
                2 if random.below(4) == 0 => {
                    cut(&mut log, high_watermark, &mut snapshots, &mut random);
                }
                3 if !snapshots.is_empty() => {
                    let at = usize::try_from(random.below(snapshots.len() as u64)).unwrap();
                    let mut restarted = log.replayed(log.restored(&snapshots[at].1));
                    restarted.settle(high_watermark);
                    assert_eq!(restarted.snapshot(SEED), log.states.snapshot(SEED), "seed {seed}");
                    log.states = restarted;
                }
                _ => answers[offer(&mut log, id, &mut random)] += 1,
            }
            let expected = last_stable(&log, high_watermark);
            assert_eq!(log.states.last_stable(high_watermark), expected, "seed {seed}");
        }
    }
    assert!(answers.iter().all(|count| *count > 100), "every answer was given: {answers:?}");
}

fn cut(
    log: &mut Log,
    high_watermark: Offset,
    snapshots: &mut Vec<(Offset, Vec<u8>)>,
    random: &mut Random,
) {
    let kept = log.batches.iter().filter(|(batch, _)| batch.base_offset < high_watermark).count();
    let len = kept + usize::try_from(random.below((log.batches.len() - kept) as u64 + 1)).unwrap();
    log.batches.truncate(len);
    let end = log.end();
    snapshots.retain(|(at, _)| *at <= end);
    if !log.states.truncate_to(end, LeaderEpoch(3)) {
        let from = snapshots.last().map(|(_, bytes)| log.restored(bytes));
        log.states = log.replayed(from.unwrap_or_else(|| log.empty()));
    }
    log.states.settle(high_watermark);
    let mut whole = log.replayed(log.empty());
    whole.settle(high_watermark);
    // The epoch of an empty log is not asked for.
    if end > Offset::ZERO {
        assert_eq!(log.states.snapshot(SEED), whole.snapshot(SEED));
    }
}

/// One batch or marker of the producer. Returns which answer it had to get.
fn offer(log: &mut Log, id: u64, random: &mut Random) -> usize {
    let is_transactional = id.is_multiple_of(2);
    let truth = Truth::of(log, id);
    let count = u32::try_from(1 + random.below(4)).unwrap();
    let propose = |producer, count| {
        if is_transactional { transactional(producer, count) } else { plain(producer, count) }
    };
    if !truth.batches.is_empty() {
        let newest_first = random.below(truth.batches.len().min(8) as u64);
        let age = usize::try_from(newest_first).unwrap();
        let (first, old_count, offset) = truth.batches[truth.batches.len() - 1 - age];
        let again = sequence(id, truth.epoch, first);
        match random.below(6) {
            0 => {
                let verdict = log.check(&propose(again, old_count));
                if is_transactional && truth.ended {
                    let ended = Refusal::InvalidTransactionState(TransactionFault::Ended);
                    assert_eq!(verdict, Verdict::Refused(ended));
                    return 0;
                }
                if age >= BATCHES_MAX {
                    let given = first;
                    assert_eq!(verdict, Verdict::Refused(Refusal::DuplicateSequence { given }));
                    return 0;
                }
                let Verdict::Duplicate { offsets, .. } = verdict else { panic!("{verdict:?}") };
                assert_eq!(offsets, offset..offset.plus(old_count.into()), "PROD-04");
                return 1;
            }
            1 => {
                let longer = log.check(&propose(again, old_count + 1));
                assert!(matches!(longer, Verdict::Refused(_)), "PROD-06: {longer:?}");
                return 2;
            }
            2 => {
                let given = truth.next() + 1 + random.below(3);
                let verdict = log.check(&propose(sequence(id, truth.epoch, given), count));
                if !truth.ended {
                    let expected = truth.next();
                    let refusal = Refusal::OutOfOrderSequence { expected, given };
                    assert_eq!(verdict, Verdict::Refused(refusal), "PROD-02");
                }
                return 3;
            }
            3 if truth.epoch > 0 => {
                let current = ProducerEpoch(truth.epoch);
                let stale = sequence(id, truth.epoch - 1, first);
                let fenced = Verdict::Refused(Refusal::ProducerFenced { current });
                assert_eq!(log.check(&propose(stale, old_count)), fenced, "PROD-12");
                return 4;
            }
            4 if is_transactional && !truth.ended => {
                let outcome =
                    if random.below(2) == 0 { Outcome::Aborted } else { Outcome::Committed };
                let ended = log.marker(id, truth.epoch, outcome).ended.unwrap();
                assert_eq!(ended.first, truth.batches[0].2);
                return 5;
            }
            _ => {}
        }
    }
    let restarts = truth.ended || !is_transactional && random.below(40) == 0;
    let (epoch, first) = if restarts { (truth.epoch + 1, 0) } else { (truth.epoch, truth.next()) };
    let next = sequence(id, epoch, first);
    assert_eq!(log.check(&propose(next, count)), Verdict::Append, "PROD-01");
    let content = if is_transactional { Content::Transactional } else { Content::Plain };
    let _ = log.append(content, next, count);
    6
}
