//! Transactions by script: one behaviour a test, each with the numbers of the behaviours that it shows.

use std::sync::Arc;
use std::time::Duration;

use crate::error::DecodeError;
use crate::protocol::group::assignment::PartitionId;
use crate::types::Outcome::{self, Aborted, Committed};
use crate::types::{ProducerEpoch, ProducerId, Timestamp, TopicId};

use super::coordinator::{Coordinator, Replay};
use super::entry::LAG_MAX;
use super::lineage::{Lineage, TransactionTag, Verdict};
use super::messages::{Answer, Effect, Event, Open, Refusal, RequestId, Settings, WAITERS_MAX};
use super::records::{IdState, PARTITIONS_MAX, TransactionRecord};

mod lost;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);
const PEAR: PartitionId = PartitionId { topic: TopicId(1), partition: 0 };
const PLUM: PartitionId = PartitionId { topic: TopicId(2), partition: 5 };

fn tag(producer: u64, epoch: u32) -> TransactionTag {
    TransactionTag { producer: ProducerId(producer), epoch: ProducerEpoch(epoch) }
}

/// A coordinator, its topic, and the time. Records are written when the script says so.
struct World {
    coordinator: Coordinator,
    settings: Settings,
    now: Timestamp,
    topic: Vec<TransactionRecord>,
    on_its_way: Vec<TransactionRecord>,
    requests: u64,
    producers: u64,
}

impl World {
    fn new() -> Self {
        Self::with(Settings::default())
    }

    fn with(settings: Settings) -> Self {
        let (coordinator, effects) = Replay::default().open(settings, Timestamp(0)).unwrap();
        assert_eq!(effects, []);
        Self {
            coordinator,
            settings,
            now: Timestamp(0),
            topic: Vec::new(),
            on_its_way: Vec::new(),
            requests: 0,
            producers: 0,
        }
    }

    fn step(&mut self, event: Event) -> Vec<Effect> {
        let effects = self.coordinator.step(self.now, event);
        self.carry_out(effects)
    }

    /// Takes records out of the effects.
    fn carry_out(&mut self, effects: Vec<Effect>) -> Vec<Effect> {
        let mut others = Vec::new();
        for effect in effects {
            match effect {
                Effect::Persist { record } => self.on_its_way.push(record),
                Effect::Note { record } => self.topic.push(record),
                other => others.push(other),
            }
        }
        others
    }

    fn persisted(&mut self) -> Vec<Effect> {
        let record = self.on_its_way.remove(0);
        let id = record.id.clone();
        self.topic.push(record);
        self.step(Event::Persisted { id })
    }

    fn persist_failed(&mut self) -> Vec<Effect> {
        let id = self.on_its_way.remove(0).id;
        self.step(Event::PersistFailed { id })
    }

    fn request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    fn open_with(&mut self, change: impl FnOnce(&mut Open)) -> Vec<Effect> {
        self.producers += 1;
        let (request, fresh) = (self.request(), ProducerId(self.producers));
        let mut open = Open { request, id: "a".into(), timeout: MINUTE, fresh, renews: None };
        change(&mut open);
        self.step(Event::Open(open))
    }

    /// Holds the id "a", which nothing is in the way of.
    fn opened(&mut self) -> TransactionTag {
        assert_eq!(self.open_with(|_| {}), []);
        let Answer::Opened { tag } = answer(&self.persisted()) else { panic!("it is not opened") };
        tag
    }

    fn join(&mut self, tag: TransactionTag, partition: PartitionId) -> Result<(), Refusal> {
        self.coordinator.join(|| self.now, tag, partition)
    }

    fn end(&mut self, tag: TransactionTag, outcome: Outcome) -> Vec<Effect> {
        let request = self.request();
        self.step(Event::End { request, tag, outcome })
    }

    fn marked(&mut self, tag: TransactionTag, partition: PartitionId) -> Vec<Effect> {
        self.step(Event::MarkerWritten { tag, partition })
    }

    /// One transaction from its first batch to its answer.
    fn run(&mut self, tag: TransactionTag, outcome: Outcome) -> Option<TransactionTag> {
        self.join(tag, PEAR).unwrap();
        assert_eq!(self.end(tag, outcome), []);
        assert_eq!(self.persisted(), [markers(tag, outcome, &[PEAR])]);
        let Answer::Ended { outcome: ended, next } = answer(&self.marked(tag, PEAR)) else {
            panic!("it has not ended")
        };
        assert_eq!(ended, outcome);
        next
    }

    fn pass(&mut self, time: Duration) -> Vec<Effect> {
        self.now = self.now.plus(time);
        self.step(Event::Tick)
    }

    /// A crash, and what the next start does first.
    fn restarted(&mut self) -> Vec<Effect> {
        self.on_its_way.clear();
        let mut replay = Replay::default();
        for record in &self.topic {
            replay.apply(record.clone());
        }
        let (coordinator, effects) = replay.open(self.settings, self.now).unwrap();
        self.coordinator = coordinator;
        self.carry_out(effects)
    }

    /// A restart, after which all markers are written that are due.
    fn settled(&mut self) {
        for effect in self.restarted() {
            let Effect::WriteMarkers { tag, partitions, .. } = effect else { continue };
            for partition in partitions {
                let _ = self.marked(tag, partition);
            }
        }
    }

    fn verdict(&self, tag: TransactionTag) -> Verdict {
        self.coordinator.verdict(tag)
    }
}

fn markers(tag: TransactionTag, outcome: Outcome, partitions: &[PartitionId]) -> Effect {
    Effect::WriteMarkers { tag, outcome, partitions: partitions.to_vec() }
}

fn answers(effects: &[Effect]) -> Vec<(u64, Answer)> {
    let answer = |effect: &Effect| match effect {
        Effect::Reply { request, answer } => (request.0, *answer),
        other => panic!("no answer: {other:?}"),
    };
    effects.iter().map(answer).collect()
}

fn answer(effects: &[Effect]) -> Answer {
    let [(_, answer)] = answers(effects)[..] else { panic!("not one answer: {effects:?}") };
    answer
}

fn refusal(effects: &[Effect]) -> Refusal {
    let Answer::Refused(refusal) = answer(effects) else { panic!("not refused: {effects:?}") };
    refusal
}

fn ended(outcome: Outcome, next: Option<TransactionTag>) -> Answer {
    Answer::Ended { outcome, next }
}

#[test]
fn an_id_is_busy_while_a_marker_that_could_be_lost_lies_too_far_back() {
    let mut world = World::new();
    let (mut next, mut lagging) = (world.opened(), Vec::new());
    while lagging.len() <= LAG_MAX as usize {
        world.join(next, PEAR).unwrap();
        assert_eq!(world.end(next, Committed), []);
        assert_eq!(world.persisted(), [markers(next, Committed, &[PEAR])]);
        let appended = world.step(Event::MarkerAppended { tag: next, partition: PEAR });
        lagging.push(next);
        let Answer::Ended { outcome: Committed, next: Some(tag) } = answer(&appended) else {
            panic!("it has not ended: {appended:?}")
        };
        next = tag;
    }
    world.join(next, PEAR).unwrap();
    assert_eq!(refusal(&world.end(next, Committed)), Refusal::Busy);
    assert_eq!(refusal(&world.open_with(|_| {})), Refusal::Busy);
    assert_eq!(world.pass(2 * MINUTE), [], "nor is it aborted");
    assert!(world.on_its_way.is_empty());
    // The oldest one is lost: what the partition reports is known, and it is written again.
    let lost = world.step(Event::Found { tag: lagging[0], partition: PEAR });
    assert_eq!(lost, [markers(lagging[0], Committed, &[PEAR])]);
    assert_eq!(world.marked(lagging[0], PEAR), []);
    assert_eq!(world.end(next, Committed), []);
    assert_eq!(world.persisted(), [markers(next, Committed, &[PEAR])]);
}

#[test]
fn coord_02_03_a_new_id_is_durable_before_it_is_answered() {
    let mut world = World::new();
    for timeout in [Duration::ZERO, Duration::from_micros(999), 16 * MINUTE] {
        let bad = Refusal::BadTimeout { max: 15 * MINUTE };
        assert_eq!(refusal(&world.open_with(|open| open.timeout = timeout)), bad);
    }
    for id in [String::new(), "x".repeat(40_000)] {
        assert_eq!(refusal(&world.open_with(|open| open.id = id.into())), Refusal::BadId);
    }
    assert_eq!(world.open_with(|open| open.fresh = ProducerId(9)), []);
    assert_eq!(world.on_its_way.len(), 1, "a record and no answer");
    assert_eq!(answer(&world.persisted()), Answer::Opened { tag: tag(9, 0) });
    let taken = world.open_with(|open| (open.id, open.fresh) = ("b".into(), ProducerId(9)));
    assert_eq!(refusal(&taken), Refusal::ProducerIdInUse);
}

#[test]
fn coord_04_inv_10_a_new_holder_fences_the_older_one_at_once() {
    let mut world = World::new();
    let old = world.opened();
    assert_eq!(world.open_with(|_| {}), []);
    // The new one is not durable yet, and the old one is out.
    let fenced = Refusal::Fenced { current: old };
    assert_eq!(world.join(old, PEAR), Err(fenced));
    assert_eq!(refusal(&world.end(old, Committed)), fenced);
    let Answer::Opened { tag: new } = answer(&world.persisted()) else { panic!() };
    assert_eq!(new, tag(1, 1));
    let fenced = Refusal::Fenced { current: new };
    assert_eq!(world.join(old, PEAR), Err(fenced));
    assert_eq!(world.step(Event::Close { tag: old }), [], "it closes nobody else's");
    assert_eq!(world.join(new, PEAR), Ok(()));
    // COORD-30: an epoch that nobody has is no better.
    assert_eq!(refusal(&world.end(tag(1, 2), Committed)), fenced);
}

#[test]
fn coord_05_06_an_open_waits_until_what_the_older_holder_left_is_aborted() {
    let mut world = World::new();
    let old = world.opened();
    world.join(old, PEAR).unwrap();
    assert_eq!(world.open_with(|_| {}), []);
    assert_eq!(world.persisted(), [markers(old, Aborted, &[PEAR])]);
    assert_eq!(world.on_its_way, [], "nobody is let in before the marker");
    assert_eq!(world.marked(old, PEAR), []);
    let Answer::Opened { tag: new } = answer(&world.persisted()) else { panic!() };
    assert!(new.epoch > old.epoch);
    assert_eq!(world.verdict(old), Verdict::Aborted);
}

#[test]
fn of_several_opens_the_last_one_holds_and_the_others_are_told() {
    let mut world = World::new();
    let old = world.opened();
    world.join(old, PEAR).unwrap();
    assert_eq!(world.open_with(|_| {}), []);
    let fenced = Answer::Refused(Refusal::Fenced { current: old });
    assert_eq!(answers(&world.open_with(|_| {})), [(2, fenced)]);
    assert_eq!(world.persisted(), [markers(old, Aborted, &[PEAR])]);
    assert_eq!(world.marked(old, PEAR), []);
    // Its record is on its way when one more comes.
    assert_eq!(world.open_with(|_| {}), []);
    let fenced = Answer::Refused(Refusal::Fenced { current: tag(1, 2) });
    assert_eq!(answers(&world.persisted()), [(3, fenced)]);
    assert_eq!(answers(&world.persisted()), [(4, Answer::Opened { tag: tag(1, 3) })]);
}

#[test]
fn coord_07_an_open_that_fails_takes_no_epoch_with_it() {
    let mut world = World::new();
    assert_eq!(world.open_with(|_| {}), []);
    assert_eq!(answer(&world.persist_failed()), Answer::Failed);
    assert_eq!(world.opened(), tag(2, 0), "the first producer id may be in the topic");
    for _ in 0..3 {
        assert_eq!(world.open_with(|_| {}), []);
        assert_eq!(answer(&world.persist_failed()), Answer::Failed);
    }
    assert_eq!(world.join(tag(2, 0), PEAR), Err(Refusal::Fenced { current: tag(2, 0) }));
    assert_eq!(world.opened(), tag(2, 1));
}

#[test]
fn coord_07_a_fence_that_fails_is_told_and_done_later() {
    let mut world = World::new();
    let old = world.opened();
    world.join(old, PEAR).unwrap();
    assert_eq!(world.open_with(|_| {}), []);
    assert_eq!(answer(&world.persist_failed()), Answer::Failed);
    assert_eq!(world.coordinator.next_deadline(), Some(Timestamp(100)));
    assert_eq!(world.pass(Duration::from_millis(99)), []);
    assert_eq!(world.on_its_way, []);
    assert_eq!(world.pass(Duration::from_millis(1)), []);
    assert_eq!(world.persisted(), [markers(old, Aborted, &[PEAR])]);
}

#[test]
fn coord_08_53_an_id_whose_epochs_are_used_up_gets_a_new_producer_id() {
    let mut world = World::with(Settings { epoch_end: ProducerEpoch(2), ..Settings::default() });
    let first = world.opened();
    let second = world.run(first, Committed).unwrap();
    assert_eq!(second, tag(1, 1));
    assert_eq!(world.run(second, Aborted), None, "epoch 2 is never handed out");
    let spent = tag(1, 2);
    assert_eq!(world.join(spent, PEAR), Err(Refusal::UnknownProducer));
    assert_eq!(world.open_with(|open| open.renews = Some(second)), []);
    assert_eq!(answer(&world.persisted()), Answer::Opened { tag: tag(2, 0) });
    assert_eq!(
        (world.verdict(first), world.verdict(second)),
        (Verdict::Committed, Verdict::Aborted)
    );
    // And the same after a restart, and after one more rotation.
    assert_eq!(world.restarted(), []);
    assert_eq!(
        (world.verdict(first), world.verdict(second)),
        (Verdict::Committed, Verdict::Aborted)
    );
    assert_eq!(world.opened(), tag(2, 1));
    assert_eq!(world.opened(), tag(4, 0));
    assert_eq!(
        (world.verdict(first), world.verdict(tag(2, 0))),
        (Verdict::Committed, Verdict::Aborted)
    );
}

#[test]
fn while_a_partition_is_unseen_no_commit_is_forgotten_and_no_id_expires() {
    let mut world = World::new();
    let first = world.opened();
    let _ = world.run(first, Committed);
    world.settings.some_unseen = true;
    assert_eq!(world.restarted(), [markers(first, Committed, &[PEAR])]);
    let _ = world.marked(first, PEAR);
    let mut next = world.opened();
    assert_eq!(next, tag(2, 0), "what is known of the first stays apart");
    for _ in 0..100 {
        next = world.run(next, Committed).unwrap();
    }
    // It may have lost its marker in the partition that nobody has seen.
    assert_eq!(
        world.step(Event::Found { tag: first, partition: PLUM }),
        [markers(first, Committed, &[PLUM])]
    );
    let _ = world.marked(first, PLUM);
    assert_eq!(world.opened().producer, next.producer, "one is kept");
    let held = tag(2, next.epoch.0 + 1);
    assert_eq!(world.step(Event::Close { tag: held }), []);
    assert_eq!(world.pass(30 * DAY), []);
    assert_eq!((world.on_its_way.len(), world.verdict(first)), (0, Verdict::Committed));
    world.coordinator.set_some_unseen(false);
    assert_eq!(world.pass(Duration::ZERO), []);
    assert_eq!(world.persisted(), []);
    assert_eq!(world.verdict(first), Verdict::Unknown);
}

/// Only the lineage before the first restart was kept apart: what the next had lost was forgotten after 64 transactions.
#[test]
fn while_partitions_are_unseen_commits_of_every_run_are_known_and_only_the_last_ones_afterwards() {
    let mut world = World::new();
    let mut firsts = vec![world.opened()];
    let _ = world.run(firsts[0], Committed);
    world.settings.some_unseen = true;
    for _ in 0..3 {
        world.settled();
        let mut next = world.opened();
        for _ in 0..100 {
            next = world.run(next, Committed).unwrap();
        }
        world.settled();
        let held = world.opened();
        assert_ne!(held.producer, next.producer);
        // Nothing was committed under it: it goes on.
        world.settled();
        let first = world.opened();
        assert_eq!(first.producer, held.producer);
        let _ = world.run(first, Committed);
        firsts.push(first);
    }
    for first in &firsts {
        let found = Event::Found { tag: *first, partition: PLUM };
        assert_eq!(world.step(found), [markers(*first, Committed, &[PLUM])]);
        let _ = world.marked(*first, PLUM);
    }
    let last = firsts[3];
    world.settings.some_unseen = false;
    world.coordinator.set_some_unseen(false);
    assert_eq!(world.opened().producer, last.producer);
    for _ in 0..2 {
        assert_eq!(world.verdict(firsts[0]), Verdict::Unknown);
        assert_eq!(world.verdict(last), Verdict::Committed);
        world.settled();
    }
}

/// KAFKA-18660: a producer that rotated its id fenced itself; here it could also fence somebody newer.
#[test]
fn coord_25_who_renews_cannot_fence_a_newer_holder() {
    let mut world = World::with(Settings { epoch_end: ProducerEpoch(1), ..Settings::default() });
    let old = world.opened();
    assert_eq!(world.run(old, Committed), None);
    let new = world.opened();
    let fenced = Refusal::Fenced { current: new };
    assert_eq!(refusal(&world.open_with(|open| open.renews = Some(old))), fenced);
    assert_eq!(world.join(new, PEAR), Ok(()));
    let unknown = world.open_with(|open| (open.id, open.renews) = ("b".into(), Some(old)));
    assert_eq!(refusal(&unknown), Refusal::UnknownProducer);
}

#[test]
fn coord_20_21_22_joining_writes_nothing_and_may_be_repeated() {
    let mut world = World::new();
    assert_eq!(world.join(tag(1, 0), PEAR), Err(Refusal::UnknownProducer));
    let unknown = world.end(tag(1, 0), Aborted);
    assert_eq!(refusal(&unknown), Refusal::UnknownProducer);
    let held = world.opened();
    for _ in 0..2 {
        assert_eq!(world.join(held, PEAR), Ok(()));
    }
    assert_eq!(world.on_its_way, []);
    for partition in 1..u32::try_from(PARTITIONS_MAX).unwrap() {
        world.join(held, PartitionId { partition, ..PEAR }).unwrap();
    }
    assert_eq!(world.join(held, PLUM), Err(Refusal::TooManyPartitions));
    assert_eq!(world.join(held, PEAR), Ok(()));
    assert_eq!(world.end(held, Committed), []);
    let record = &world.on_its_way[0];
    let read = TransactionRecord::decode(&record.key(), record.value().as_deref());
    assert_eq!(read.as_ref(), Ok(record), "the largest transaction can be written");
}

#[test]
fn coord_31_the_decision_is_durable_before_markers_and_markers_before_the_answer() {
    let mut world = World::new();
    let held = world.opened();
    world.join(held, PLUM).unwrap();
    world.join(held, PEAR).unwrap();
    assert_eq!(world.end(held, Committed), []);
    assert_eq!(world.verdict(held), Verdict::Open);
    assert_eq!(world.join(held, PEAR), Err(Refusal::Ending));
    assert_eq!(world.persisted(), [markers(held, Committed, &[PEAR, PLUM])]);
    assert_eq!(world.verdict(held), Verdict::Committed);
    assert_eq!(world.marked(held, PLUM), []);
    // COORD-41, -44: the other one may be gone, which counts the same.
    assert_eq!(answer(&world.marked(held, PEAR)), ended(Committed, Some(tag(1, 1))));
    assert_eq!(world.marked(held, PEAR), [], "a second report changes nothing");
}

#[test]
fn coord_32_33_51_every_end_learns_how_the_transaction_ended() {
    let mut world = World::new();
    let held = world.opened();
    world.join(held, PEAR).unwrap();
    assert_eq!(world.end(held, Committed), []);
    assert_eq!(world.end(held, Aborted), [], "while the record is on its way");
    assert_eq!(world.persisted(), [markers(held, Committed, &[PEAR])]);
    assert_eq!(world.end(held, Committed), [], "while markers are");
    let next = tag(1, 1);
    let told = ended(Committed, Some(next));
    assert_eq!(answers(&world.marked(held, PEAR)), [(2, told), (3, told), (4, told)]);
    assert_eq!(answer(&world.end(held, Aborted)), told, "long after");
    let after = world.run(next, Aborted);
    assert_eq!(answer(&world.end(held, Committed)), ended(Committed, after));
    assert_eq!(answer(&world.end(next, Committed)), ended(Aborted, after));
}

#[test]
fn an_end_waits_with_few_others() {
    let mut world = World::new();
    let held = world.opened();
    world.join(held, PEAR).unwrap();
    for _ in 0..WAITERS_MAX {
        assert_eq!(world.end(held, Committed), []);
    }
    assert_eq!(refusal(&world.end(held, Committed)), Refusal::Busy);
    let _ = world.persisted();
    assert_eq!(refusal(&world.end(held, Committed)), Refusal::Busy);
    assert_eq!(world.marked(held, PEAR).len(), WAITERS_MAX);
}

/// KAFKA-17754: an end that was held up ended the transaction after its own.
#[test]
fn a_late_end_marker_or_write_touches_no_later_transaction() {
    let mut world = World::new();
    let first = world.opened();
    let second = world.run(first, Aborted).unwrap();
    world.join(second, PEAR).unwrap();
    assert_eq!(answer(&world.end(first, Committed)), ended(Aborted, Some(second)));
    assert_eq!(world.marked(first, PEAR), []);
    assert_eq!(world.join(first, PEAR), Err(Refusal::Over(Verdict::Aborted)));
    assert_eq!(world.join(first, PLUM), Err(Refusal::Over(Verdict::Aborted)));
    assert_eq!(world.verdict(second), Verdict::Open);
    assert_eq!(world.end(second, Committed), []);
    assert_eq!(world.persisted(), [markers(second, Committed, &[PEAR])]);
    assert_eq!(world.marked(first, PEAR), [], "not the marker that is waited for");
    assert_eq!(answer(&world.marked(second, PEAR)), ended(Committed, Some(tag(1, 2))));
}

#[test]
fn coord_34_an_end_whose_record_failed_leaves_the_transaction_in_doubt_until_it_is_tried_again() {
    for retry in [Committed, Aborted] {
        let mut world = World::new();
        let held = world.opened();
        world.join(held, PEAR).unwrap();
        assert_eq!(world.end(held, Committed), []);
        assert_eq!(answer(&world.persist_failed()), Answer::Failed);
        assert_eq!(world.verdict(held), Verdict::Open);
        assert_eq!(world.join(held, PLUM), Err(Refusal::Ending), "its record may be in the topic");
        assert_eq!(world.end(held, retry), []);
        assert_eq!(world.persisted(), [markers(held, retry, &[PEAR])]);
        assert_eq!(answer(&world.marked(held, PEAR)), ended(retry, Some(tag(1, 1))));
    }
}

#[test]
fn coord_34_a_transaction_in_doubt_that_nobody_ends_is_aborted_by_its_time_out() {
    let mut world = World::new();
    let held = world.opened();
    world.join(held, PEAR).unwrap();
    assert_eq!(world.end(held, Committed), []);
    assert_eq!(answer(&world.persist_failed()), Answer::Failed);
    assert_eq!(world.pass(MINUTE), []);
    assert_eq!(world.persisted(), [markers(held, Aborted, &[PEAR])]);
}

#[test]
fn coord_35_42_43_what_was_decided_is_completed_after_any_number_of_crashes() {
    let mut world = World::new();
    let held = world.opened();
    world.join(held, PEAR).unwrap();
    world.join(held, PLUM).unwrap();
    assert_eq!(world.end(held, Committed), []);
    let all = [markers(held, Committed, &[PEAR, PLUM])];
    assert_eq!(world.persisted(), all);
    for _ in 0..3 {
        assert_eq!(world.marked(held, PEAR), []);
        assert_eq!(world.restarted(), all, "all of them again");
        assert_eq!(world.verdict(held), Verdict::Committed);
    }
    assert_eq!(world.open_with(|_| {}), []);
    assert_eq!(world.on_its_way, [], "the next holder waits");
    assert_eq!(world.marked(held, PEAR), []);
    assert_eq!(world.marked(held, PLUM), []);
    assert_eq!(answer(&world.persisted()), Answer::Opened { tag: tag(1, 2) });
    assert_eq!(world.restarted(), [], "the reign's record says that all is settled");
}

#[test]
fn a_quiet_id_is_noted_as_settled_and_a_busy_one_is_not() {
    let mut world = World::new();
    let mut held = world.opened();
    for _ in 0..3 {
        held = world.run(held, Committed).unwrap();
    }
    assert_eq!(world.topic.len(), 4, "a reign and three decisions");
    assert_eq!(world.pass(Duration::from_millis(999)), []);
    assert_eq!(world.topic.len(), 4);
    assert_eq!(world.pass(Duration::from_millis(1)), []);
    assert_eq!(world.topic.len(), 5);
    assert_eq!(world.restarted(), []);
    // At a clean stop nothing is waited for.
    let held = world.opened();
    let _ = world.run(held, Aborted);
    let notes = world.coordinator.notes();
    assert_eq!(world.carry_out(notes), []);
    assert_eq!(world.coordinator.notes(), []);
    assert_eq!(world.restarted(), []);
}

#[test]
fn coord_40_a_marker_that_failed_is_written_again_a_little_later() {
    let mut world = World::new();
    let held = world.opened();
    world.join(held, PEAR).unwrap();
    world.join(held, PLUM).unwrap();
    assert_eq!(world.end(held, Aborted), []);
    let _ = world.persisted();
    assert_eq!(world.step(Event::MarkerFailed { tag: held, partition: PLUM }), []);
    assert_eq!(world.marked(held, PEAR), []);
    assert_eq!(world.pass(Duration::from_millis(99)), []);
    assert_eq!(world.pass(Duration::from_millis(1)), [markers(held, Aborted, &[PLUM])]);
    assert_eq!(world.pass(MINUTE), [], "once");
}

#[test]
fn coord_46_a_clock_that_goes_back_stops_nothing() {
    let mut world = World::new();
    world.now = Timestamp(1_000_000);
    let held = world.opened();
    world.now = Timestamp(0);
    let next = world.run(held, Committed).unwrap();
    world.join(next, PEAR).unwrap();
    world.now = Timestamp(1_000_000);
    assert_eq!(world.pass(MINUTE), []);
    assert_eq!(world.on_its_way.len(), 1, "it times out by the later clock");
    // A record from the future does not keep an id for longer.
    let mut world = World::new();
    world.now = Timestamp(0).plus(100 * DAY);
    world.opened();
    world.now = Timestamp(0);
    assert_eq!(world.restarted(), []);
    assert_eq!(world.pass(7 * DAY), []);
    assert_eq!(world.on_its_way.len(), 1);
    assert_eq!(world.on_its_way[0].state, None);
}

/// Of a machine whose clock forgets the time when it is off: what it did before seems older than it is.
#[test]
fn s23_coord_63_a_clock_that_was_put_right_before_a_start_lets_no_outcome_be_forgotten_at_once() {
    let mut world = World::new();
    let held = world.opened();
    world.run(held, Committed).unwrap();
    world.settled();
    assert_eq!(world.pass(MINUTE), [], "it is noted that all is settled");
    world.now = Timestamp(0).plus(20_000 * DAY);
    assert_eq!(world.restarted(), []);
    assert_eq!(world.pass(DAY - Duration::from_millis(1)), []);
    assert_eq!((world.on_its_way.len(), world.verdict(held)), (0, Verdict::Committed));
    assert_eq!(world.pass(Duration::from_millis(1)), []);
    assert_eq!(world.on_its_way.len(), 1, "nor is it kept for ever");
}

#[test]
fn coord_52_cli_18_an_empty_transaction_ends_without_a_record() {
    let mut world = World::new();
    let held = world.opened();
    for outcome in [Committed, Aborted] {
        assert_eq!(answer(&world.end(held, outcome)), ended(outcome, Some(held)));
    }
    assert_eq!(world.on_its_way, []);
}

#[test]
fn coord_60_62_a_time_out_counts_from_the_first_join_and_leaves_the_holder_its_id() {
    let mut world = World::new();
    let held = world.opened();
    assert_eq!(world.pass(10 * MINUTE), [], "COORD-62: nothing has begun");
    world.join(held, PEAR).unwrap();
    assert_eq!(world.coordinator.next_deadline(), Some(world.now.plus(MINUTE)));
    assert_eq!(world.pass(MINUTE - Duration::from_millis(1)), []);
    world.join(held, PLUM).unwrap();
    assert_eq!(world.on_its_way, []);
    assert_eq!(world.pass(Duration::from_millis(1)), []);
    assert_eq!(world.join(held, PEAR), Err(Refusal::Ending));
    assert_eq!(world.persisted(), [markers(held, Aborted, &[PEAR, PLUM])]);
    let over = Err(Refusal::Over(Verdict::Aborted));
    assert_eq!(world.join(held, PEAR), over);
    assert_eq!(world.end(held, Committed), []);
    assert_eq!(world.marked(held, PEAR), []);
    let told = ended(Aborted, Some(tag(1, 1)));
    assert_eq!(answer(&world.marked(held, PLUM)), told);
    assert_eq!(world.join(held, PEAR), over);
    assert_eq!(world.run(tag(1, 1), Committed), Some(tag(1, 2)));
}

#[test]
fn coord_61_a_decision_under_way_is_not_timed_out() {
    let mut world = World::new();
    let held = world.opened();
    world.join(held, PEAR).unwrap();
    assert_eq!(world.end(held, Committed), []);
    assert_eq!(world.pass(DAY), []);
    assert_eq!(world.on_its_way.len(), 1);
    assert_eq!(world.persisted(), [markers(held, Committed, &[PEAR])]);
    assert_eq!(world.pass(30 * DAY), [], "nor are markers");
    assert_eq!(answer(&world.marked(held, PEAR)), ended(Committed, Some(tag(1, 1))));
}

#[test]
fn coord_63_64_an_id_that_nobody_holds_or_uses_for_long_is_forgotten() {
    let mut world = World::new();
    let held = world.opened();
    let next = world.run(held, Committed).unwrap();
    assert_eq!(world.pass(30 * DAY), []);
    assert_eq!(world.on_its_way, [], "it is held");
    assert_eq!(world.step(Event::Close { tag: next }), []);
    let left = world.now;
    assert_eq!(world.coordinator.next_deadline().map(|at| at <= left.plus(7 * DAY)), Some(true));
    assert_eq!(world.pass(7 * DAY - Duration::from_millis(1)), []);
    assert_eq!(world.on_its_way, []);
    assert_eq!(world.pass(Duration::from_millis(1)), []);
    assert_eq!(world.persist_failed(), []);
    assert_eq!(world.verdict(held), Verdict::Committed, "it is there until the tombstone is");
    assert_eq!(world.pass(MINUTE), []);
    assert_eq!(world.on_its_way.len(), 1, "it is tried again");
    // Who comes just now gets a new beginning.
    assert_eq!(world.open_with(|_| {}), []);
    assert_eq!(world.persisted(), []);
    assert_eq!(answer(&world.persisted()), Answer::Opened { tag: tag(2, 0) });
    assert_eq!(world.verdict(held), Verdict::Unknown);
    assert_eq!(refusal(&world.end(held, Committed)), Refusal::UnknownProducer);
    assert_eq!(world.restarted(), []);
    assert_eq!(world.opened(), tag(2, 1));
}

#[test]
fn ids_are_bounded_and_may_be_kept_for_ever() {
    let settings = Settings { ids_max: 1, expiration: None, ..Settings::default() };
    let mut world = World::with(settings);
    let held = world.opened();
    let other = world.open_with(|open| open.id = "b".into());
    assert_eq!(refusal(&other), Refusal::Full { ids_max: 1 });
    assert_eq!(world.step(Event::Close { tag: held }), []);
    assert_eq!(world.coordinator.next_deadline(), None);
    assert_eq!(world.opened(), tag(1, 1));
}

#[test]
fn coord_65_inv_15_what_a_partition_finds_open_after_a_crash_is_aborted_before_anyone_is_let_in() {
    let mut world = World::new();
    let first = world.opened();
    let held = world.run(first, Committed).unwrap();
    world.join(held, PEAR).unwrap();
    world.join(held, PLUM).unwrap();
    let _ = world.restarted();
    assert_eq!(world.marked(first, PEAR), []);
    assert_eq!(world.verdict(held), Verdict::Aborted, "no record, no commit");
    let found = |partition| Event::Found { tag: held, partition };
    assert_eq!(world.step(found(PEAR)), [markers(held, Aborted, &[PEAR])]);
    assert_eq!(world.step(found(PLUM)), [markers(held, Aborted, &[PLUM])]);
    assert_eq!(world.open_with(|_| {}), []);
    assert_eq!(world.marked(held, PEAR), []);
    assert_eq!(world.step(Event::MarkerFailed { tag: held, partition: PLUM }), []);
    assert_eq!(world.on_its_way, []);
    assert_eq!(world.pass(MINUTE), [markers(held, Aborted, &[PLUM])]);
    assert_eq!(world.marked(held, PLUM), []);
    assert_eq!(answer(&world.persisted()), Answer::Opened { tag: tag(1, 2) });
}

#[test]
fn coord_65_a_partition_that_comes_back_is_settled_by_what_was_decided() {
    let mut world = World::new();
    let first = world.opened();
    let second = world.run(first, Committed).unwrap();
    let third = world.run(second, Aborted).unwrap();
    for (tag, outcome) in [(first, Committed), (second, Aborted)] {
        let found = Event::Found { tag, partition: PLUM };
        assert_eq!(world.step(found), [markers(tag, outcome, &[PLUM])], "TXLOG-26");
        assert_eq!(world.join(third, PLUM), Err(Refusal::Busy), "an older one is open there");
        assert_eq!(world.join(third, PEAR), Ok(()));
        assert_eq!(world.marked(tag, PLUM), []);
    }
    assert_eq!(world.join(third, PLUM), Ok(()));
    // The running one is the holder's to end, and one that is ending takes the partition with it.
    let found = Event::Found { tag: third, partition: PLUM };
    assert_eq!(world.step(found.clone()), []);
    assert_eq!(world.end(third, Committed), []);
    let _ = world.persisted();
    assert_eq!(world.marked(third, PLUM), []);
    assert_eq!(world.step(found), [markers(third, Committed, &[PEAR, PLUM])]);
    assert_eq!(world.marked(third, PEAR), []);
    assert_eq!(answer(&world.marked(third, PLUM)), ended(Committed, Some(tag(1, 3))));
}

#[test]
fn coord_65_a_transaction_of_which_nothing_is_known_is_aborted_and_if_it_was_forgotten_that_is_shown()
 {
    let mut world = World::new();
    let found = Event::Found { tag: tag(77, 3), partition: PEAR };
    assert_eq!(world.step(found), [markers(tag(77, 3), Aborted, &[PEAR])]);
    let first = world.opened();
    let mut held = first;
    for _ in 0..65 {
        held = world.run(held, Committed).unwrap();
    }
    assert_eq!(world.verdict(first), Verdict::Forgotten);
    let forgotten = Refusal::Over(Verdict::Forgotten);
    assert_eq!(refusal(&world.end(first, Committed)), forgotten);
    let shown = Effect::Unexplained { tag: first, partition: PLUM };
    let found = Event::Found { tag: first, partition: PLUM };
    assert_eq!(world.step(found), [shown, markers(first, Aborted, &[PLUM])]);
}

/// It was not asked for again: the partition's last stable offset stood still until the next opening.
#[test]
fn the_marker_of_a_transaction_of_which_nothing_is_known_is_asked_for_until_it_is_there() {
    let mut world = World::new();
    let unknown = tag(77, 3);
    let marker = [markers(unknown, Aborted, &[PEAR])];
    assert_eq!(world.step(Event::Found { tag: unknown, partition: PEAR }), marker);
    for _ in 0..3 {
        assert_eq!(world.step(Event::MarkerFailed { tag: unknown, partition: PEAR }), []);
        let due = world.coordinator.next_deadline().unwrap();
        assert_eq!(world.pass(due.since(world.now)), marker);
    }
    assert_eq!(world.marked(unknown, PEAR), []);
    assert_eq!((world.coordinator.next_deadline(), world.pass(DAY)), (None, vec![]));
}

#[test]
fn an_epoch_that_only_a_partition_knows_is_not_given_to_a_later_holder() {
    let mut world = World::new();
    let held = world.opened();
    assert_eq!(world.step(Event::Close { tag: held }), []);
    let lost = tag(1, 40);
    let found = Event::Found { tag: lost, partition: PEAR };
    assert_eq!(world.step(found), [markers(lost, Aborted, &[PEAR])]);
    assert_eq!(world.marked(lost, PEAR), []);
    assert_eq!(world.opened(), tag(1, 41));
}

#[test]
fn inv_15_a_dropped_handle_leaves_nothing_open() {
    let mut world = World::new();
    let held = world.opened();
    world.join(held, PEAR).unwrap();
    assert_eq!(world.step(Event::Close { tag: held }), []);
    assert_eq!(world.join(held, PLUM), Err(Refusal::Fenced { current: held }));
    assert_eq!(world.persisted(), [markers(held, Aborted, &[PEAR])]);
    // A decision that was on its way is not changed by it.
    let mut world = World::new();
    let held = world.opened();
    world.join(held, PEAR).unwrap();
    assert_eq!(world.end(held, Committed), []);
    assert_eq!(world.step(Event::Close { tag: held }), []);
    assert_eq!(world.persisted(), [markers(held, Committed, &[PEAR])]);
    assert_eq!(answer(&world.marked(held, PEAR)), ended(Committed, None));
}

#[test]
fn records_that_contradict_each_other_are_refused() {
    let record = |id: &str, producer, previous: Option<u64>| {
        let lineage = |producer| Lineage::new(ProducerId(producer));
        let state = IdState {
            lineage: lineage(producer),
            previous: previous.map(lineage).into_iter().collect(),
            timeout: MINUTE,
            updated_at: Timestamp(0),
            unsettled: None,
        };
        TransactionRecord { id: Arc::from(id), state: Some(state) }
    };
    let opens = |records: [TransactionRecord; 2]| {
        let mut replay = Replay::default();
        records.into_iter().for_each(|record| replay.apply(record));
        replay.open(Settings::default(), Timestamp(0)).map(|_| ())
    };
    let refused = Err(DecodeError::Field("producer"));
    assert_eq!(opens([record("a", 1, None), record("b", 1, None)]), refused);
    assert_eq!(opens([record("a", 1, None), record("b", 2, Some(1))]), refused);
    assert_eq!(opens([record("a", 1, None), record("b", 2, Some(3))]), Ok(()));
    assert_eq!(opens([record("a", 1, None), record("a", 1, None)]), Ok(()), "the later one holds");
}

/// Readers saw it, and the partition lost it: nothing new goes there before it is back, however often that happens.
#[test]
fn a_commits_marker_that_is_lost_behind_its_answer_is_written_again_and_keeps_its_id() {
    let mut world = World::new();
    let first = world.opened();
    world.join(first, PEAR).unwrap();
    assert_eq!(world.end(first, Committed), []);
    let _ = world.persisted();
    for _ in 0..2 {
        let _ = world.step(Event::MarkerAppended { tag: first, partition: PEAR });
        assert_eq!(world.step(Event::MarkerFailed { tag: first, partition: PEAR }), []);
        assert_eq!(world.join(tag(1, 1), PEAR), Err(Refusal::Busy));
        assert_eq!(world.pass(MINUTE), [markers(first, Committed, &[PEAR])]);
    }
    let _ = world.step(Event::MarkerAppended { tag: first, partition: PEAR });
    assert_eq!(world.step(Event::Close { tag: tag(1, 1) }), []);
    assert_eq!((world.pass(30 * DAY), world.on_its_way.len()), (vec![], 0), "it lags");
    assert_eq!(world.marked(first, PEAR), []);
    assert_eq!((world.pass(30 * DAY), world.on_its_way.len()), (vec![], 1), "it expires");
}

#[test]
fn who_leaves_a_producer_whose_marker_lags_leaves_none_of_which_nothing_would_be_known() {
    let epoch_end = ProducerEpoch(u64::BITS);
    let mut world = World::with(Settings { epoch_end, ..Settings::default() });
    let mut first = world.opened();
    for _ in 1..epoch_end.0 {
        first = world.run(first, Committed).unwrap();
    }
    world.join(first, PEAR).unwrap();
    assert_eq!(world.end(first, Committed), []);
    let _ = world.persisted();
    let appended = world.step(Event::MarkerAppended { tag: first, partition: PEAR });
    assert_eq!(answer(&appended), ended(Committed, None));
    let mut second = world.opened();
    for _ in 1..epoch_end.0 {
        second = world.run(second, Committed).unwrap();
    }
    assert_eq!(world.run(second, Committed), None);
    assert_eq!(refusal(&world.open_with(|_| {})), Refusal::Busy);
    assert_eq!(world.verdict(first), Verdict::Committed);
    assert_eq!(world.marked(first, PEAR), []);
    assert_eq!(world.opened(), tag(4, 0));
}

#[test]
fn what_partitions_report_of_the_running_transaction_ends_with_it_and_in_doubt_it_stays_open() {
    let mut world = World::new();
    let held = world.opened();
    for partition in [PEAR, PLUM] {
        assert_eq!(world.step(Event::Found { tag: held, partition }), []);
    }
    assert_eq!(world.end(held, Committed), []);
    assert_eq!(answer(&world.persist_failed()), Answer::Failed);
    let _ = world.open_with(|_| {});
    assert_eq!(world.verdict(held), Verdict::Open, "it may be in the log as committed");
    assert_eq!(world.persisted(), [markers(held, Aborted, &[PEAR, PLUM])]);
}
