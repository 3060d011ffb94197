//! A lane over a partition that fails on demand: random stories, and each rule by a small one.
//!
//! The partition keeps Kafka's rules with the real state machine of `protocol::producer_state`. It refuses, loses the
//! answer after it took a batch, acknowledges late, and changes hands, which cuts what was not acknowledged.

use std::io::ErrorKind;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::Duration;

use parking_lot::Mutex;
use proptest::prelude::*;

use crate::config::ProducerSettings;
use crate::error::{Error, Result, Written};
use crate::partition::{Appended, Author};
use crate::protocol::producer_state::batch::{BatchFacts, Content, Numbering, Proposal};
use crate::protocol::producer_state::states::ProducerStates;
use crate::protocol::producer_state::verdict::Verdict;
use crate::record::Record;
use crate::storage::Clock;
use crate::store::{Chore, Chores};
use crate::types::{
    Acks, LeaderEpoch, Offset, ProducerEpoch, ProducerId, Timestamp, TopicPartition,
};

use super::delivery::{Receipt, RecordMetadata};
use super::lane::{Common, Lane, Taken, Until};
use super::memory::Memory;
use super::numbers::{Identity, Numbers};
use super::target::{Offered, Pending, Target};

mod behind;
mod told;

const BYTES_MAX: u64 = 400;

/// What happens to the next offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Acknowledged,
    /// Taken, and acknowledged later.
    Waits,
    /// Not taken.
    NoLeader,
    NotEnough,
    /// Taken or not, with an answer that does not say.
    Unknown {
        taken: bool,
    },
    /// Not taken, and never will be.
    Fatal,
    /// Not taken: the limit fell.
    TooLarge,
    /// Taken by a leader that goes before the answer is heard, while somebody drives the lane.
    Overtaken,
    /// Acknowledged, when somebody has sent another record.
    Amid,
}

/// The other side.
#[derive(Debug)]
struct Log {
    states: ProducerStates,
    /// Value and author's epoch of each record.
    records: Vec<String>,
    batches: Vec<(BatchFacts, u32)>,
    acknowledged: u64,
    reign: u32,
    /// Ends of the reigns that are over.
    cuts: Vec<u64>,
    fates: Vec<Fate>,
    watchers: Vec<Waker>,
    /// How the waits of this reign fail.
    failing: Option<Error>,
    offers: u64,
    lane: Weak<Lane<Fake>>,
}

#[derive(Clone, Debug)]
struct Fake(Arc<Mutex<Log>>);

#[derive(Debug)]
struct Ack {
    log: Arc<Mutex<Log>>,
    appended: Appended,
    reign: u32,
}

fn name() -> TopicPartition {
    TopicPartition::new("t", 0)
}

impl Log {
    fn new() -> Self {
        Self {
            states: ProducerStates::new(Offset(0), 8),
            records: Vec::new(),
            batches: Vec::new(),
            acknowledged: 0,
            reign: 0,
            cuts: Vec::new(),
            fates: Vec::new(),
            watchers: Vec::new(),
            failing: None,
            offers: 0,
            lane: Weak::new(),
        }
    }

    fn end(&self) -> u64 {
        self.records.len() as u64
    }

    fn append(&mut self, author: &Author, records: &[Record<'_>]) -> Result<Appended> {
        let count = u32::try_from(records.len()).unwrap();
        let base = Offset(self.end());
        let offsets = base..base.plus(count.into());
        if author.producer.id.0 != 0 {
            let Author { producer, transactional, strict, numbering, .. } = *author;
            let proposal = Proposal { producer, count, transactional, strict, numbering };
            match self.states.check(&proposal) {
                Verdict::Append => {}
                Verdict::Duplicate { offsets, timestamp } => {
                    return Ok(Appended { offsets, timestamp, duplicate: true });
                }
                Verdict::Refused(refusal) => {
                    return Err(refusal.into_error(name(), producer, None));
                }
            }
        }
        let facts = BatchFacts {
            producer: author.producer,
            content: Content::Plain,
            base_offset: base,
            last_offset_delta: count - 1,
            leader_epoch: LeaderEpoch(self.reign),
        };
        drop(self.states.on_appended(&facts, Timestamp(0)));
        self.batches.push((facts, count));
        let text = |record: &Record<'_>| String::from_utf8(record.value.unwrap().into()).unwrap();
        self.records.extend(records.iter().map(text));
        Ok(Appended { offsets, timestamp: Timestamp(0), duplicate: false })
    }

    /// Another replica leads, which has what was acknowledged and `kept` more.
    fn change_hands(&mut self, kept: u64) {
        let end = (self.acknowledged + kept).min(self.end());
        let end = self
            .batches
            .iter()
            .map(|(facts, _)| facts.end_offset().0)
            .filter(|batch_end| *batch_end <= end)
            .max()
            .unwrap_or(0);
        self.records.truncate(usize::try_from(end).unwrap());
        self.batches.retain(|(facts, _)| facts.end_offset().0 <= end);
        self.states = ProducerStates::new(Offset(0), 8);
        for (facts, _) in &self.batches {
            drop(self.states.on_appended(facts, Timestamp(0)));
        }
        self.cuts.push(end);
        self.reign += 1;
        self.ring();
    }

    fn acknowledge(&mut self) {
        self.acknowledged = self.end();
        self.ring();
    }

    fn ring(&mut self) {
        self.watchers.drain(..).for_each(Waker::wake);
    }

    fn outcome(&self, ack: &Ack) -> Option<Result<Appended>> {
        let end = ack.appended.offsets.end.0;
        let cut = self.cuts[ack.reign as usize..].iter().any(|cut| *cut < end);
        if cut {
            return Some(Err(Error::NoLeader { partition: name() }));
        }
        if self.acknowledged >= end {
            return Some(Ok(ack.appended.clone()));
        }
        self.failing.clone().map(Err)
    }
}

fn not_enough_after(offsets: Range<Offset>) -> Error {
    let (in_sync, required) = (1, 2);
    Error::NotEnoughReplicasAfterAppend { partition: name(), offsets, in_sync, required }
}

/// Of a disk that took too long.
fn unknown() -> Error {
    let (path, source) = (PathBuf::new(), Arc::new(ErrorKind::TimedOut.into()));
    Error::Io { path, action: "write", written: Written::Unknown, source }
}

impl Target for Fake {
    type Pending = Ack;

    fn offer(&self, author: &Author, records: &[Record<'_>], _acks: Acks) -> Result<Offered<Ack>> {
        let mut log = self.0.lock();
        log.offers += 1;
        if let Some(index) = records.iter().position(|one| one.value == Some(b"bad")) {
            let reason = "it is bad".to_owned();
            return Err(Error::InvalidRecord { partition: name(), index, reason });
        }
        let fate = log.fates.pop().unwrap_or(Fate::Waits);
        if fate == Fate::Amid {
            let lane = log.lane.upgrade().expect("it is being used");
            drop(log);
            drop(lane.send(&Record::new("later"), None, 0));
            log = self.0.lock();
        }
        match fate {
            Fate::NoLeader => return Err(Error::NoLeader { partition: name() }),
            Fate::NotEnough => return Err(not_enough_after(Offset(0)..Offset(1))),
            Fate::Unknown { taken: false } => return Err(unknown()),
            Fate::Fatal => {
                return Err(Error::UnknownTopicOrPartition { partition: name() });
            }
            Fate::TooLarge => {
                let (partition, bytes, bytes_max) = (name(), 2, 1);
                return Err(Error::RecordTooLarge { partition, bytes, bytes_max });
            }
            Fate::Acknowledged
            | Fate::Amid
            | Fate::Waits
            | Fate::Unknown { taken: true }
            | Fate::Overtaken => {}
        }
        let appended = log.append(author, records)?;
        if let Fate::Unknown { .. } = fate {
            return Err(unknown());
        }
        if matches!(fate, Fate::Acknowledged | Fate::Amid) {
            log.acknowledge();
        }
        if log.acknowledged >= appended.offsets.end.0 {
            return Ok(Offered::Done(appended));
        }
        let reign = log.reign;
        if fate == Fate::Overtaken {
            log.change_hands(0);
            let lane = log.lane.upgrade();
            drop(log);
            lane.expect("it is being used").run();
        }
        Ok(Offered::Waits(Ack { log: Arc::clone(&self.0), appended, reign }))
    }

    fn max_batch_bytes(&self) -> Result<u64> {
        Ok(1 << 20)
    }

    fn stamps_records(&self) -> bool {
        false
    }

    fn next_sequence(&self) -> Result<u64> {
        let log = self.0.lock();
        Ok(log.states.producer(ID).map_or(0, |producer| producer.next_sequence))
    }

    /// Time stands still: what has not come does not come.
    fn settled_sequence(&self, _acks: Acks) -> Result<u64> {
        self.next_sequence()
    }
}

impl Pending for Ack {
    /// Time stands still: what has not come does not come.
    fn wait(&self, _timeout: Duration) -> Option<Result<Appended>> {
        self.outcome_now()
    }

    fn outcome_now(&self) -> Option<Result<Appended>> {
        self.log.lock().outcome(self)
    }

    fn watch(&mut self, waker: &Waker) -> bool {
        let mut log = self.log.lock();
        if log.outcome(self).is_some() {
            return true;
        }
        log.watchers.push(waker.clone());
        false
    }

    fn hurry(&self) {}

    fn offsets(&self) -> Range<Offset> {
        self.appended.offsets.clone()
    }
}

const ID: ProducerId = ProducerId(ProducerId::GIVEN | 7);
const SECOND: Duration = Duration::from_secs(1);

type Outcomes = Arc<Mutex<Vec<(u64, Result<RecordMetadata>)>>>;

/// A lane, what is behind it, and what was sent.
struct World {
    log: Arc<Mutex<Log>>,
    lane: Arc<Lane<Fake>>,
    common: Arc<Common>,
    clock: Clock,
    receipts: Vec<(u64, Receipt<Fake>)>,
    called: Outcomes,
    sent: u64,
    callbacks: u64,
    /// By `send` itself.
    refused: Vec<u64>,
}

fn settings() -> ProducerSettings {
    ProducerSettings { batch_bytes: BYTES_MAX, ..ProducerSettings::default() }
}

impl World {
    fn new(identity: Identity, settings: ProducerSettings) -> Self {
        let log = Arc::new(Mutex::new(Log::new()));
        let clock = Clock::manual(Timestamp(0));
        let common = Arc::new(Common {
            memory: Memory::new(settings.buffer_bytes),
            chores: Arc::new(Chores::new(clock.clone())),
            clock: clock.clone(),
            bursts: true,
            panics: AtomicU64::new(0),
            settings,
        });
        let numbers = Numbers::new(identity, 0, None);
        let lane = Lane::new(name(), Fake(Arc::clone(&log)), numbers, Arc::clone(&common));
        log.lock().lane = Arc::downgrade(&lane);
        let (receipts, called, refused) = (Vec::new(), Arc::default(), Vec::new());
        Self { log, lane, common, clock, receipts, called, sent: 0, callbacks: 0, refused }
    }

    fn plain() -> Self {
        Self::new(Identity::Plain(ID), settings())
    }

    fn send(&mut self) {
        let value = self.sent.to_string();
        self.send_value(&value).unwrap();
    }

    /// Sends a record, and asks for its outcome in one of three ways.
    fn send_value(&mut self, value: &str) -> Result<()> {
        let number = self.sent;
        self.sent += 1;
        let called = Arc::clone(&self.called);
        let callback = number.is_multiple_of(3).then(|| {
            let call = move |outcome| called.lock().push((number, outcome));
            Box::new(call) as super::delivery::Callback
        });
        let has_callback = callback.is_some();
        match self.lane.send(&Record::new(value), callback, 0)? {
            Taken::Pending(shared, sent) => {
                let receipt = Receipt::new(shared, sent, None);
                if !has_callback && number % 3 == 1 {
                    self.receipts.push((number, receipt));
                }
            }
            Taken::Done { offset, timestamp, .. } => {
                let metadata = RecordMetadata::new(&name(), offset, timestamp);
                if !has_callback {
                    self.called.lock().push((number, Ok(metadata)));
                }
            }
            Taken::NoRoom(_) => panic!("the buffer is large"),
        }
        self.callbacks += u64::from(has_callback);
        Ok(())
    }

    fn burst(&mut self, count: u8) {
        self.log.lock().fates.extend([Fate::Acknowledged; BURST_OFFERS]);
        (0..count).for_each(|_| drop(self.send_value(&self.sent.to_string())));
    }

    fn fates(&self, mut fates: Vec<Fate>) {
        fates.reverse();
        self.log.lock().fates = fates;
    }

    /// Lets everything happen that can, for as long as a delivery lives.
    fn run(&self) {
        for _ in 0..40 {
            self.common.chores.run_due();
            self.log.lock().acknowledge();
            Arc::clone(&self.lane).run();
            self.clock.advance(SECOND);
        }
    }

    fn ended(&self) -> Vec<(u64, Result<RecordMetadata>)> {
        let mut all = self.called.lock().clone();
        for (number, receipt) in &self.receipts {
            all.push((*number, receipt.outcome().expect("it has ended")));
        }
        all.sort_by_key(|(number, _)| *number);
        all
    }

    /// Of which records their senders were told that nothing was written. What a topic had that is gone is nowhere.
    fn told_unwritten(&self) -> Vec<u64> {
        let is_no = |error: &Error| {
            let gone = matches!(error, Error::UnknownTopicOrPartition { .. });
            error.written() == Written::No && !gone
        };
        let ended = self.ended().into_iter();
        let failed = ended.filter(|(_, outcome)| outcome.as_ref().is_err_and(is_no));
        failed.map(|(number, _)| number).chain(self.refused.iter().copied()).collect()
    }

    /// Numbers of the records by outcome: delivered with their offsets, failed.
    fn outcomes(&self) -> (Vec<(u64, u64)>, Vec<u64>) {
        let all = self.ended();
        let (done, failed): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(_, outcome)| outcome.is_ok());
        let done = done.into_iter().map(|(number, placed)| (number, placed.unwrap().offset.0));
        (done.collect(), failed.into_iter().map(|(number, _)| number).collect())
    }

    fn records(&self) -> Vec<u64> {
        let log = self.log.lock();
        log.records.iter().map(|value| value.parse().unwrap()).collect()
    }

    /// Each record that was delivered is where it was said to be; none is there twice, and all are in order.
    fn check(&self) {
        let records = self.records();
        assert!(records.is_sorted_by(|a, b| a < b), "twice or out of order: {records:?}");
        let unwritten = self.told_unwritten();
        let told = unwritten.iter().find(|number| records.contains(number));
        assert_eq!(told, None, "its sender was told that nothing was written");
        let (done, _) = self.outcomes();
        for (number, offset) in done {
            assert_eq!(records.get(usize::try_from(offset).unwrap()), Some(&number));
        }
        let calls =
            self.called.lock().iter().filter(|(number, _)| number.is_multiple_of(3)).count();
        assert_eq!(calls as u64, self.callbacks, "a callback is called once");
        assert_eq!(self.common.memory.used(), 0, "the buffer is given back");
        assert!(self.log.lock().watchers.is_empty());
    }
}

/// More than it takes to begin a burst, and few enough that its end may fail.
const BURST_OFFERS: usize = 20;

#[derive(Clone, Copy, Debug)]
enum Act {
    Send(u8),
    /// All but the last few of them are acknowledged at once.
    Burst(u8),
    Ask,
    Fate(Fate),
    Acknowledge,
    ChangeHands(u64),
    Fail(bool),
    Pass(u64),
    Chores,
    Wait,
    Hasten,
}

fn any_act() -> impl Strategy<Value = Act> {
    let fate = prop_oneof![
        3 => Just(Fate::Acknowledged),
        3 => Just(Fate::Waits),
        2 => Just(Fate::NoLeader),
        1 => Just(Fate::NotEnough),
        2 => any::<bool>().prop_map(|taken| Fate::Unknown { taken }),
        1 => Just(Fate::Fatal),
        1 => Just(Fate::TooLarge),
        1 => Just(Fate::Overtaken),
    ];
    prop_oneof![
        8 => (1u8..30).prop_map(Act::Send),
        4 => (17u8..60).prop_map(Act::Burst),
        2 => Just(Act::Ask),
        6 => fate.prop_map(Act::Fate),
        3 => Just(Act::Acknowledge),
        2 => (0u64..20).prop_map(Act::ChangeHands),
        1 => any::<bool>().prop_map(Act::Fail),
        3 => (1u64..3000).prop_map(Act::Pass),
        4 => Just(Act::Chores),
        2 => Just(Act::Wait),
        1 => Just(Act::Hasten),
    ]
}

fn play(world: &mut World, acts: &[Act]) {
    for act in acts {
        match act {
            Act::Send(count) => (0..*count).for_each(|_| {
                let value = world.sent.to_string();
                // A refusal is an answer as well: the record is in no log.
                if world.send_value(&value).is_err() {
                    world.refused.push(world.sent - 1);
                }
            }),
            Act::Burst(count) => world.burst(*count),
            Act::Ask => drop(world.receipts.last().map(|(_, receipt)| receipt.outcome())),
            Act::Fate(fate) => world.log.lock().fates.push(*fate),
            Act::Acknowledge => world.log.lock().acknowledge(),
            Act::ChangeHands(kept) => world.log.lock().change_hands(*kept),
            Act::Fail(fails) => {
                let failing = fails.then(|| not_enough_after(Offset(0)..Offset(1)));
                let mut log = world.log.lock();
                log.failing = failing;
                log.ring();
            }
            Act::Pass(millis) => world.clock.advance(Duration::from_millis(*millis)),
            Act::Chores => world.common.chores.run_due(),
            Act::Wait => {
                if let Some((_, receipt)) = world.receipts.last() {
                    drop(receipt.wait(Duration::ZERO));
                }
            }
            Act::Hasten => drop(world.lane.hasten()),
        }
    }
    let mut log = world.log.lock();
    (log.failing, log.fates) = (None, Vec::new());
    drop(log);
    world.run();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// PROD, CLI-06 to CLI-12: whatever the partition does, nothing is there twice or out of order, and every
    /// record ends once.
    #[test]
    fn whatever_fails_no_record_is_doubled_reordered_or_forgotten(
        acts in proptest::collection::vec(any_act(), 1..60),
        linger in prop_oneof![Just(0u64), Just(50)],
        retries in prop_oneof![Just(u32::MAX), Just(1)],
        timeout in prop_oneof![Just(2u64), Just(30)],
    ) {
        let mut world = World::new(Identity::Plain(ID), ProducerSettings {
            linger: Duration::from_millis(linger),
            retries,
            delivery_timeout: SECOND * u32::try_from(timeout).unwrap(),
            ..settings()
        });
        play(&mut world, &acts);
        world.check();
        // It still works.
        let before = world.records().len();
        let value = world.sent.to_string();
        world.send_value(&value).unwrap();
        world.run();
        prop_assert_eq!(world.records().len(), before + 1);
        world.check();
    }

    /// A name's sequences are positions: what is in the log is the source from its beginning, without a gap.
    #[test]
    fn a_named_producer_writes_its_source_without_a_gap(
        rounds in proptest::collection::vec(proptest::collection::vec(any_act(), 1..20), 1..5),
    ) {
        let named = Identity::Named(ID, ProducerEpoch(1));
        let mut world = World::new(named, ProducerSettings {
            delivery_timeout: SECOND * 3,
            ..settings()
        });
        let mut next = 0;
        for acts in rounds {
            world.receipts.clear();
            for act in acts {
                let (Act::Send(count) | Act::Burst(count)) = act else {
                    play_one(&mut world, act);
                    continue;
                };
                if let Act::Burst(_) = act {
                    world.log.lock().fates.extend([Fate::Acknowledged; BURST_OFFERS]);
                }
                for _ in 0..count {
                    match world.lane.send(&Record::new(&next.to_string()), None, 0) {
                        Ok(Taken::Pending(shared, sent)) => {
                            world.receipts.push((next, Receipt::new(shared, sent, None)));
                        }
                        Ok(_) => {}
                        Err(_) => break,
                    }
                    next += 1;
                }
            }
            play(&mut world, &[]);
            next = world.lane.next_sequence().unwrap();
            prop_assert_eq!(world.records(), (0..next).collect::<Vec<_>>());
            prop_assert!(world.told_unwritten().iter().all(|number| *number >= next));
            prop_assert!(world.outcomes().0.iter().all(|(number, _)| *number < next));
        }
    }
}

fn play_one(world: &mut World, act: Act) {
    match act {
        Act::Fate(fate) => world.log.lock().fates.push(fate),
        Act::Acknowledge => world.log.lock().acknowledge(),
        Act::ChangeHands(kept) => world.log.lock().change_hands(kept),
        Act::Pass(millis) => world.clock.advance(Duration::from_millis(millis)),
        Act::Chores => world.common.chores.run_due(),
        Act::Hasten => drop(world.lane.hasten()),
        Act::Send(_) | Act::Burst(_) | Act::Ask | Act::Fail(_) | Act::Wait => {}
    }
}

#[test]
fn records_gather_while_one_is_under_way_and_go_together() {
    let mut world = World::plain();
    (0..10).for_each(|_| world.send());
    assert_eq!(world.records(), [0], "the others wait for it");
    world.log.lock().acknowledge();
    world.common.chores.run_due();
    assert_eq!(world.records(), (0..10).collect::<Vec<_>>());
    assert_eq!(world.log.lock().offers, 2);
    world.run();
    world.check();
    assert_eq!(world.outcomes().0.len(), 7, "three were dropped");
}

/// A burst: 16 that were appended one by one, and 5 that gathered; 20 are too few to fill a batch.
fn bursting() -> World {
    let mut world = World::plain();
    world.fates(vec![Fate::Acknowledged; 100]);
    (0..16).for_each(|_| world.send());
    assert_eq!(world.log.lock().offers, 16);
    (0..5).for_each(|_| world.send());
    assert_eq!(world.records().len(), 16, "five gather");
    world
}

#[test]
fn the_records_of_a_burst_gather_until_somebody_looks_or_their_time_is_over() {
    let asks: [fn(&mut World); 6] = [
        |world| drop(world.receipts.last().unwrap().1.outcome()),
        |world| drop(world.receipts.last().unwrap().1.wait(Duration::ZERO)),
        |world| drop(world.receipts.pop().unwrap().1.poll(Waker::noop())),
        |world| assert_eq!(world.lane.hasten(), 21),
        |world| assert!(world.lane.wait(20, Duration::ZERO, Until::Ended)),
        |world| {
            world.common.chores.run_due();
            assert_eq!(world.records().len(), 16, "not yet");
            world.clock.advance(Duration::from_millis(1));
            world.common.chores.run_due();
        },
    ];
    for (at, ask) in asks.into_iter().enumerate() {
        let mut world = bursting();
        ask(&mut world);
        assert_eq!((world.records().len(), world.log.lock().offers), (21, 17), "way {at}");
        world.send();
        assert_eq!(world.records().len(), 22, "the burst is over");
        world.run();
        world.check();
    }
}

#[test]
fn a_batch_of_a_burst_that_is_full_is_appended_by_its_sender() {
    let mut world = bursting();
    (0..200).for_each(|_| world.send());
    let (in_log, offers) = (world.records().len(), world.log.lock().offers);
    assert!(in_log > 200 && offers < 40, "{in_log} records with {offers} offers");
    world.run();
    world.check();
    assert_eq!(world.records().len(), 221);
}

#[test]
fn a_sender_that_takes_its_time_or_looks_at_its_deliveries_is_no_burst() {
    let mut paced = World::plain();
    paced.fates(vec![Fate::Acknowledged; 100]);
    for sent in 1..=100 {
        paced.send();
        assert_eq!(paced.records().len(), sent);
        paced.clock.advance(Duration::from_millis(1));
    }
    let mut looking = World::plain();
    looking.fates(vec![Fate::Acknowledged; 100]);
    for sent in 1..=100 {
        looking.send();
        assert_eq!(looking.records().len(), sent);
        looking.lane.look(sent as u64 - 1);
    }
}

#[test]
fn full_batches_do_not_wait_and_at_most_five_are_in_the_log_unanswered() {
    let mut world = World::plain();
    (0..200).for_each(|_| world.send());
    assert_eq!(world.log.lock().offers, 5);
    assert_eq!(world.common.memory.used() > 0, !world.receipts.is_empty());
    world.run();
    world.check();
    assert_eq!(world.records().len(), 200);
}

#[test]
fn cli_09_a_batch_of_unknown_fate_is_asked_for_again_under_its_sequence() {
    for taken in [false, true] {
        let mut world = World::plain();
        world.fates(vec![Fate::Unknown { taken }, Fate::Waits]);
        (0..4).for_each(|_| world.send());
        world.run();
        world.check();
        assert_eq!(world.records(), [0, 1, 2, 3], "taken: {taken}");
        assert_eq!(world.outcomes().1, [] as [u64; 0]);
    }
}

#[test]
fn cli_06_a_batch_ends_when_its_time_is_over_and_says_whether_it_was_written() {
    let mut world = World::plain();
    world.fates(vec![Fate::NoLeader; 200]);
    world.send();
    world.send();
    for _ in 0..13 {
        world.clock.advance(SECOND * 10);
        world.common.chores.run_due();
    }
    let error = world.receipts[0].1.outcome().unwrap().unwrap_err();
    assert!(matches!(error, Error::TimedOut { appended: None, .. }), "{error:?}");
    assert_eq!(error.written(), Written::No);
    world.fates(Vec::new());
    world.send();
    world.run();
    assert_eq!(world.records(), [2], "its number was free");
    world.check();
}

#[test]
fn cli_07_a_failure_that_may_have_been_written_starts_a_new_epoch() {
    for taken in [false, true] {
        let mut world =
            World::new(Identity::Plain(ID), ProducerSettings { retries: 0, ..settings() });
        world.fates(vec![Fate::Unknown { taken }]);
        (0..5).for_each(|_| world.send());
        world.run();
        let mut authors: Vec<_> =
            world.log.lock().batches.iter().map(|(facts, _)| facts.producer).collect();
        authors.retain(|author| author.epoch == ProducerEpoch(1));
        assert_eq!(authors[0].sequence, 0);
        let expected: Vec<u64> = (u64::from(!taken)..5).collect();
        assert_eq!(world.records(), expected);
        assert_eq!(world.outcomes().1, [0]);
    }
}

#[test]
fn cli_12_a_gap_that_the_leader_lost_is_closed_by_a_new_epoch() {
    let mut world = World::plain();
    world.fates(vec![Fate::Acknowledged; 3]);
    (0..3).for_each(|_| world.send());
    // A leader that lost what it had acknowledged (`Acks::Leader`).
    let mut log = world.log.lock();
    log.acknowledged = 1;
    log.change_hands(0);
    drop(log);
    (0..4).for_each(|_| world.send());
    world.run();
    assert_eq!(world.records(), [0, 3, 4, 5, 6]);
}

#[test]
fn cli_11_only_the_record_at_fault_fails() {
    let mut world = World::plain();
    world.send();
    for at in 1..12 {
        let value = if at == 5 { "bad".to_owned() } else { at.to_string() };
        world.send_value(&value).unwrap();
    }
    world.run();
    assert_eq!(world.records(), [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]);
    assert_eq!(world.outcomes().1, [] as [u64; 0], "that of 5 was dropped");
    world.check();
}

#[test]
fn acks_none_is_not_retried_and_counts_what_it_dropped() {
    let mut world =
        World::new(Identity::Plain(ID), ProducerSettings { acks: Acks::None, ..settings() });
    world.fates(vec![Fate::NoLeader, Fate::Acknowledged]);
    world.send();
    world.send();
    world.run();
    assert_eq!(world.lane.counts().dropped, 1);
    assert_eq!(world.records(), [1]);
}

#[test]
fn behind_a_record_of_a_name_that_failed_nothing_is_written_until_the_source_goes_back() {
    let named = Identity::Named(ID, ProducerEpoch(1));
    let mut world = World::new(named, ProducerSettings { retries: 0, ..settings() });
    world.fates(vec![Fate::Acknowledged, Fate::NoLeader]);
    world.send();
    world.send();
    let refused = world.send_value("2").unwrap_err();
    assert!(
        matches!(refused, Error::OutOfOrderSequence { expected: 1, given: 2, .. }),
        "{refused:?}"
    );
    assert_eq!(world.lane.next_sequence().unwrap(), 1);
    world.sent = 1;
    (0..3).for_each(|_| world.send());
    world.run();
    assert_eq!(world.records(), [0, 1, 2, 3]);
}

/// The sender learnt of it, and wrote all the same.
#[test]
fn behind_a_record_of_a_name_whose_failure_its_sender_learns_nothing_is_written_either() {
    let named = Identity::Named(ID, ProducerEpoch(1));
    let mut world = World::new(named, ProducerSettings { retries: 0, ..settings() });
    world.fates(vec![Fate::Acknowledged, Fate::Waits]);
    world.send();
    world.send();
    world.log.lock().failing = Some(not_enough_after(Offset(1)..Offset(2)));
    let refused = world.send_value("2").unwrap_err();
    assert!(matches!(refused, Error::OutOfOrderSequence { .. }), "{refused:?}");
    assert_eq!(world.records(), [0, 1]);
    assert_eq!(world.outcomes().1, [1]);
    assert_eq!(world.common.memory.used(), 0);
}

/// Behind a record that is acknowledged, two in the log, of which the first is older.
fn two_under_way(identity: Identity, fate: Fate) -> World {
    let mut world =
        World::new(identity, ProducerSettings { delivery_timeout: SECOND * 10, ..settings() });
    world.fates(vec![Fate::Acknowledged, Fate::Waits, fate]);
    world.send();
    world.send();
    world.clock.advance(SECOND * 6);
    world.sent = 4;
    world.send();
    // Who is about to wait takes along what gathers.
    assert!(world.receipts[0].1.wait(Duration::ZERO).is_err());
    assert_eq!(world.records(), [0, 1, 4]);
    world
}

#[test]
fn behind_a_record_of_a_name_that_came_too_late_one_that_may_be_written_is_not_called_unwritten() {
    let named = Identity::Named(ID, ProducerEpoch(1));
    let world = two_under_way(named, Fate::Unknown { taken: true });
    for _ in 0..12 {
        world.log.lock().fates = vec![Fate::NoLeader; 9];
        world.clock.advance(SECOND);
        world.common.chores.run_due();
        Arc::clone(&world.lane).run();
    }
    let error = |at: usize| world.receipts[at].1.outcome().unwrap().unwrap_err();
    assert_eq!((error(0).written(), error(1).written()), (Written::Yes, Written::Unknown));
}

#[test]
fn cli_12_a_record_that_was_lost_with_an_older_one_that_has_failed_is_delivered_under_a_new_epoch()
{
    let world = two_under_way(Identity::Plain(ID), Fate::Waits);
    world.clock.advance(SECOND * 5);
    Arc::clone(&world.lane).run();
    assert!(world.receipts[0].1.outcome().unwrap().is_err());
    world.log.lock().change_hands(0);
    world.run();
    assert_eq!(world.records(), [0, 4]);
    assert_eq!(world.outcomes(), (vec![(0, 0), (4, 1)], vec![1]));
}

#[test]
fn a_record_that_no_log_has_any_more_is_not_called_written() {
    let mut world = World::plain();
    world.sent = 1;
    world.send();
    world.log.lock().change_hands(0);
    world.log.lock().fates = vec![Fate::NoLeader; 2000];
    for _ in 0..130 {
        Arc::clone(&world.lane).run();
        world.clock.advance(SECOND);
    }
    let error = world.receipts[0].1.outcome().unwrap().unwrap_err();
    assert_eq!(error.written(), Written::No, "{error:?}");
}

/// What gathered last named its lane, which kept it for as long as nothing else gathered, or for good.
#[test]
fn a_lane_whose_records_have_ended_is_kept_by_nobody() {
    for mut world in [World::plain(), bursting()] {
        (0..10).for_each(|_| world.send());
        world.run();
        let lane = Arc::downgrade(&world.lane);
        drop(world);
        assert!(lane.upgrade().is_none());
    }
}

#[test]
fn a_name_counts_on_and_is_not_taken_for_new() {
    let author = Numbers::new(Identity::Named(ID, ProducerEpoch(1)), 0, None).author(4);
    assert!(author.strict && author.numbering == Numbering::Continues);
}
