//! Histories of many threads: producers of every kind, transactions, readers and an operator at once, the store closed, killed or
//! without power in the middle. Each thread writes down what it was told; at the end, a judge that knows nothing else compares.
#![cfg(feature = "simulation")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may fail loudly")]

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use oncelog::simulation::{Hang, SimDisk};
use oncelog::{
    Acks, Compression, DiskId, Error, ErrorClass, Flush, Isolation, Offset, ProducerEpoch,
    ProducerId, ProducerSequence, ReadOptions, Record, Store, TopicConfig, TopicUpdate,
    TransactionId, TransactionOutcome, Written,
};

use random::{Random, setting};

#[path = "common/random.rs"]
mod random;

const LONG: Duration = Duration::from_secs(30);
const PARTITIONS: u32 = 3;

/// What a thread was told of a record.
#[derive(Clone, Debug)]
#[allow(dead_code, reason = "an error is there to be printed")]
enum Told {
    At(u32, u64),
    /// `Written::No`
    No(String),
    /// `Written::Yes`
    Yes(String),
    Unknown(String),
    /// The process died before.
    Nothing,
}

#[derive(Clone, Debug)]
struct Attempt {
    /// Whose, and which of his.
    who: u64,
    nth: u64,
    told: Told,
    /// It may be there twice: nobody counts.
    unnumbered: bool,
    transaction: Option<u64>,
}

#[derive(Clone, Debug)]
#[allow(dead_code, reason = "an error is there to be printed")]
enum End {
    Open,
    Committed,
    /// By an error.
    Said(String),
    Aborted(String),
    Unknown(String),
}

#[derive(Clone, Debug)]
struct Whole {
    id: Option<TransactionId>,
    end: End,
}

#[derive(Default)]
struct Ledger {
    attempts: Mutex<Vec<Attempt>>,
    wholes: Mutex<BTreeMap<u64, Whole>>,
    faults: Mutex<Vec<String>>,
    next_whole: AtomicU64,
    next_who: AtomicU64,
    dead: AtomicBool,
    over: AtomicBool,
    died: AtomicBool,
    /// Offsets at which committed readers saw values.
    seen: Mutex<HashMap<(u32, u64), Vec<u8>>>,
    seen_committed: Mutex<HashMap<(u32, u64), Vec<u8>>>,
    named: Mutex<BTreeMap<(String, u32), u64>>,
    /// What snapshots showed: how many records of whom.
    cuts: Mutex<Vec<BTreeMap<u64, usize>>>,
}

fn text(error: &Error) -> String {
    format!("{error:?}")
}

fn told_error(error: &Error) -> Told {
    match error.written() {
        Written::No => Told::No(text(error)),
        Written::Yes => Told::Yes(text(error)),
        Written::Unknown => Told::Unknown(text(error)),
    }
}

fn value(who: u64, nth: u64) -> Vec<u8> {
    let mut value = format!("{who}.{nth}.").into_bytes();
    let pad = (who * 31 + nth * 17) % 97;
    value.extend((0..pad).map(|at| u8::try_from(b'a' as u64 + at % 26).unwrap()));
    if nth % 211 == 5 {
        value.extend(std::iter::repeat_n(b'z', 9000));
    }
    value
}

struct Shape {
    key: Option<Vec<u8>>,
    headers: Vec<(String, Vec<u8>)>,
}

fn shape(who: u64, nth: u64) -> Shape {
    let key = match (who + nth) % 3 {
        0 => None,
        1 => Some(Vec::new()),
        _ => Some(format!("k{nth}").into_bytes()),
    };
    let headers = match nth % 4 {
        0 => vec![],
        1 => vec![(String::new(), vec![])],
        2 => vec![("h".into(), b"x".to_vec()), ("h".into(), vec![])],
        _ => vec![("h".into(), vec![0; 300])],
    };
    Shape { key, headers }
}

fn record<'a>(value: &'a [u8], shape: &'a Shape) -> Record<'a> {
    let mut record = Record::new(value);
    if let Some(key) = &shape.key {
        record = record.key(key);
    }
    for (name, value) in &shape.headers {
        record = record.header(name, value);
    }
    record
}

fn parse(value: &[u8]) -> Option<(u64, u64)> {
    let text = std::str::from_utf8(value).ok()?;
    let mut parts = text.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

impl Ledger {
    fn note(&self, who: u64, nth: u64, told: Told, unnumbered: bool, transaction: Option<u64>) {
        let told = if self.dead.load(Ordering::SeqCst) { Told::Nothing } else { told };
        self.attempts.lock().unwrap().push(Attempt { who, nth, told, unnumbered, transaction });
    }

    fn fault(&self, what: String) {
        if !self.dead.load(Ordering::SeqCst) {
            self.faults.lock().unwrap().push(what);
        }
    }

    fn who(&self) -> u64 {
        self.next_who.fetch_add(1, Ordering::Relaxed)
    }

    fn timed<T>(&self, what: &str, limit: Duration, call: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let outcome = call();
        let took = started.elapsed();
        if took > limit + Duration::from_secs(3) {
            self.faults.lock().unwrap().push(format!("{what} took {took:?} of {limit:?}"));
        }
        outcome
    }
}

struct World {
    seed: u64,
    disks: Vec<SimDisk>,
    ledger: Arc<Ledger>,
    flush: Flush,
}

const APPEND: Duration = Duration::from_secs(3);

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let count = if random.one_in(3) { 1 } else { 3 };
        let flush = [Flush::OnAck, Flush::OnAck, Flush::Os][random.index(3)];
        let disks: Vec<_> = (0..count).map(|at| SimDisk::new(seed * 10 + at)).collect();
        for disk in &disks[1..] {
            disk.share_process(&disks[0]);
        }
        Self { seed, disks, ledger: Arc::default(), flush }
    }

    fn open(&self) -> Store {
        let builder = Store::builder()
            .replica_lag_max(Duration::from_millis(900))
            .append_timeout(APPEND)
            .flush(self.flush);
        let all = self.disks.iter().fold(builder, |all, disk| all.simulated_disk(disk.clone()));
        let store = all.threads().open().unwrap();
        if store.topic("t").is_err() {
            let replicas = u16::try_from(self.disks.len()).unwrap();
            let config = TopicConfig::new()
                .partitions(PARTITIONS)
                .replication_factor(replicas)
                .min_insync_replicas(replicas.min(2))
                .segment_bytes(64 << 10);
            store.create_topic("t", config).unwrap();
        }
        store
    }
}

// Threads.

struct Actor {
    store: Store,
    ledger: Arc<Ledger>,
    random: Random,
    until: Instant,
}

impl Actor {
    fn goes_on(&self) -> bool {
        Instant::now() < self.until
            && !self.ledger.dead.load(Ordering::SeqCst)
            && !self.ledger.over.load(Ordering::SeqCst)
    }

    fn partition(&mut self) -> u32 {
        u32::try_from(self.random.below(u64::from(PARTITIONS))).unwrap()
    }

    fn short(&mut self) -> Duration {
        Duration::from_micros([0, 10, 300, 2000, 50_000][self.random.index(5)])
    }

    fn appends(mut self) {
        let who = self.ledger.who();
        let mut nth = 0;
        while self.goes_on() {
            let number = self.partition();
            let Ok(partition) = self.store.partition("t", number) else { continue };
            let count = 1 + self.random.below(3);
            let values: Vec<_> = (nth..nth + count).map(|nth| value(who, nth)).collect();
            let shapes: Vec<_> = (nth..nth + count).map(|nth| shape(who, nth)).collect();
            let records: Vec<_> =
                values.iter().zip(&shapes).map(|(value, shape)| record(value, shape)).collect();
            let ledger = Arc::clone(&self.ledger);
            let outcome = match self.random.below(4) {
                0 => {
                    let wait = self.short();
                    partition.append_nowait(&records, Acks::All).and_then(|ticket| {
                        let at = ticket.offsets();
                        let first = ledger.timed("ticket", wait, || ticket.wait(wait));
                        if let Ok(appended) = &first
                            && appended.offsets != at
                        {
                            ledger.fault(format!("a ticket's offsets {at:?} became {appended:?}"));
                        }
                        first
                    })
                }
                1 => partition.append_nowait(&records, Acks::All).and_then(pollster::block_on),
                _ => ledger.timed("append", APPEND, || partition.append(&records, Acks::All)),
            };
            for at in 0..count {
                let told = match &outcome {
                    Ok(appended) => Told::At(number, appended.offsets.start.0 + at),
                    Err(error) => told_error(error),
                };
                self.ledger.note(who, nth + at, told, false, None);
            }
            nth += count;
            if matches!(outcome, Err(Error::Closed)) {
                break;
            }
        }
    }

    /// Numbers its records itself, and offers each until it knows.
    fn numbers(mut self, strict: bool) {
        let who = self.ledger.who();
        let number = self.partition();
        let id = ProducerId(1000 + who);
        let mut nth = 0;
        'all: while self.goes_on() {
            let Ok(partition) = self.store.partition("t", number) else { break };
            let count = 1 + self.random.below(3);
            let values: Vec<_> = (nth..nth + count).map(|nth| value(who, nth)).collect();
            let records: Vec<_> = values.iter().map(Record::new).collect();
            let author = ProducerSequence { id, epoch: ProducerEpoch(0), sequence: nth };
            let mut last = None;
            let mut was_written = false;
            for _ in 0..200 {
                let outcome = match strict {
                    true => partition.append_idempotent_strict(author, &records, Acks::All),
                    false => partition.append_idempotent(author, &records, Acks::All),
                };
                let again = self.random.one_in(8);
                match outcome {
                    Ok(appended) => {
                        last = Some(Told::At(number, appended.offsets.start.0));
                        if again {
                            let second = partition.append_idempotent(author, &records, Acks::All);
                            match second {
                                Ok(second) if second.offsets == appended.offsets => {
                                    if !second.duplicate {
                                        self.ledger.fault(format!("not a duplicate: {second:?}"));
                                    }
                                }
                                Err(Error::Closed) => {}
                                Err(error) if error.class() == ErrorClass::Retriable => {}
                                other => self.ledger.fault(format!(
                                    "{who}.{nth} offered again: {other:?}, was {appended:?}"
                                )),
                            }
                        }
                        break;
                    }
                    Err(error) if error.class() == ErrorClass::Retriable => {
                        was_written |= error.written() != Written::No;
                        last = Some(told_error(&error));
                        thread::sleep(Duration::from_millis(3));
                    }
                    Err(error) => {
                        let mut told = told_error(&error);
                        if was_written && matches!(told, Told::No(_)) {
                            // Said of this call alone.
                            told = Told::Unknown(text(&error));
                        }
                        for at in 0..count {
                            self.ledger.note(who, nth + at, told.clone(), false, None);
                        }
                        break 'all;
                    }
                }
                if !self.goes_on() {
                    break;
                }
            }
            let is_known = matches!(last, Some(Told::At(..)));
            for at in 0..count {
                let told = match &last {
                    Some(Told::At(number, first)) => Told::At(*number, first + at),
                    Some(Told::No(text)) if was_written => Told::Unknown(text.clone()),
                    Some(other) => other.clone(),
                    None => Told::Nothing,
                };
                self.ledger.note(who, nth + at, told, false, None);
            }
            nth += count;
            if !is_known {
                break;
            }
        }
    }

    fn sends(mut self, idempotent: bool) {
        let mut builder = self
            .store
            .producer()
            .idempotent(idempotent)
            .delivery_timeout(Duration::from_millis([50, 300, 3000][self.random.index(3)]))
            .max_block(Duration::from_millis(200))
            .buffer_bytes([20_000, 200_000, 32 << 20][self.random.index(3)])
            .batch_bytes([1, 300, 4096, 1 << 20][self.random.index(4)])
            .compression(Compression::None);
        if self.random.one_in(3) {
            builder = builder.linger(Duration::from_millis(3));
        }
        if self.random.one_in(4) {
            builder = builder.retries(1);
        }
        let Ok(producer) = builder.build() else { return };
        let who = self.ledger.who();
        let mut nth = 0;
        let mut kept = Vec::new();
        let outcomes = Arc::new(Mutex::new(Vec::new()));
        while self.goes_on() {
            let number = self.partition();
            let (value, shape) = (value(who, nth), shape(who, nth));
            let mut record = Record::to("t").value(&value).partition(number);
            if let Some(key) = &shape.key {
                record = record.key(key);
            }
            for (name, value) in &shape.headers {
                record = record.header(name, value);
            }
            let ledger = Arc::clone(&self.ledger);
            let how = self.random.below(8);
            let sent = match how {
                0 => producer.try_send(record).map(Some),
                1 => {
                    let outcomes = Arc::clone(&outcomes);
                    let panics = self.random.one_in(10);
                    producer
                        .send_with(record, move |outcome| {
                            outcomes.lock().unwrap().push((nth, outcome));
                            if panics {
                                std::panic::resume_unwind(Box::new("a callback"));
                            }
                        })
                        .map(|()| None)
                }
                _ => ledger
                    .timed("send", Duration::from_millis(200) + APPEND, || producer.send(record))
                    .map(Some),
            };
            match sent {
                Ok(Some(delivery)) => kept.push((nth, delivery)),
                Ok(None) => {}
                Err(error) => {
                    let closed = matches!(error, Error::Closed);
                    self.ledger.note(who, nth, told_error(&error), !idempotent, None);
                    if closed {
                        break;
                    }
                }
            }
            nth += 1;
            match self.random.below(12) {
                0 => {
                    for (nth, delivery) in kept.drain(..) {
                        let wait = LONG;
                        let outcome = self
                            .ledger
                            .timed("delivery", Duration::from_secs(8), || delivery.wait(wait));
                        self.outcome(who, nth, outcome, !idempotent);
                    }
                }
                1 if !kept.is_empty() => {
                    let (nth, mut delivery) = kept.swap_remove(self.random.index(kept.len()));
                    // Polled once, then waited for with little time, then dropped.
                    let waker = std::task::Waker::noop();
                    let mut context = std::task::Context::from_waker(waker);
                    let polled = std::pin::Pin::new(&mut delivery).poll(&mut context);
                    let outcome = match polled {
                        std::task::Poll::Ready(outcome) => outcome,
                        std::task::Poll::Pending => {
                            let wait = self.short();
                            self.ledger.timed("delivery", wait, || delivery.wait(wait))
                        }
                    };
                    self.outcome(who, nth, outcome, !idempotent);
                }
                2 => {
                    let wait = self.short();
                    let _ = self.ledger.timed("flush", wait, || producer.flush(wait));
                }
                3 if !kept.is_empty() => {
                    let (nth, delivery) = kept.swap_remove(self.random.index(kept.len()));
                    drop(delivery);
                    self.ledger.note(who, nth, Told::Nothing, !idempotent, None);
                }
                _ => {}
            }
        }
        if self.random.one_in(2) {
            drop(producer);
        } else {
            let wait = self.short();
            let _ = self.ledger.timed("close", wait, || producer.close(wait));
        }
        for (nth, delivery) in kept {
            let outcome =
                self.ledger.timed("delivery", Duration::from_secs(8), || delivery.wait(LONG));
            self.outcome(who, nth, outcome, !idempotent);
        }
        let outcomes = std::mem::take(&mut *outcomes.lock().unwrap());
        for (nth, outcome) in outcomes {
            self.outcome(who, nth, outcome, !idempotent);
        }
    }

    fn outcome(
        &self,
        who: u64,
        nth: u64,
        outcome: Result<oncelog::RecordMetadata, Error>,
        unnumbered: bool,
    ) {
        let told = match outcome {
            Ok(at) => Told::At(at.partition, at.offset.0),
            Err(error) => told_error(&error),
        };
        self.ledger.note(who, nth, told, unnumbered, None);
    }

    fn named(mut self, name: &str) {
        while self.goes_on() {
            let Ok(producer) = self
                .store
                .producer()
                .name(name)
                .delivery_timeout(Duration::from_millis([100, 3000][self.random.index(2)]))
                .build()
            else {
                thread::sleep(Duration::from_millis(2));
                continue;
            };
            for _ in 0..5 {
                let number = self.partition();
                let known =
                    *self.ledger.named.lock().unwrap().get(&(name.into(), number)).unwrap_or(&0);
                let next = match producer.next_sequence("t", number) {
                    Ok(next) => next,
                    Err(Error::TimedOut { .. }) => {
                        let _ = producer.flush(APPEND);
                        continue;
                    }
                    Err(_) => break,
                };
                if next < known {
                    self.ledger
                        .fault(format!("{name}/{number}: goes on at {next}, {known} are known"));
                }
                let mut deliveries = Vec::new();
                for at in next..next + 1 + self.random.below(20) {
                    let value = format!("{name}/{number}/{at}");
                    match producer.send(Record::to("t").partition(number).value(&value)) {
                        Ok(delivery) => deliveries.push((at, delivery)),
                        Err(_) => break,
                    }
                }
                for (at, delivery) in deliveries {
                    if delivery.wait(APPEND).is_ok() && !self.ledger.dead.load(Ordering::SeqCst) {
                        let mut named = self.ledger.named.lock().unwrap();
                        let known = named.entry((name.into(), number)).or_insert(0);
                        *known = (*known).max(at + 1);
                    }
                }
            }
        }
    }

    fn transacts(mut self, id: &str) {
        while self.goes_on() {
            let built = self
                .store
                .producer()
                .transactional_id(id)
                .max_block(Duration::from_secs(2))
                .delivery_timeout(Duration::from_millis(500))
                .transaction_timeout(Duration::from_millis([200, 5000][self.random.index(2)]))
                .batch_bytes([100, 65536][self.random.index(2)])
                .build();
            let Ok(mut producer) = built else {
                thread::sleep(Duration::from_millis(2));
                continue;
            };
            for _ in 0..1 + self.random.below(40) {
                if !self.goes_on() || !self.transaction(&mut producer) {
                    break;
                }
            }
        }
    }

    /// False: the id is another's by now.
    fn transaction(&mut self, producer: &mut oncelog::TransactionalProducer) -> bool {
        let ledger = Arc::clone(&self.ledger);
        let begun = ledger.timed("begin", Duration::from_secs(3), || producer.begin());
        let Ok(mut transaction) = begun else { return false };
        let whole = self.ledger.next_whole.fetch_add(1, Ordering::Relaxed);
        let id = transaction.id();
        self.ledger.wholes.lock().unwrap().insert(whole, Whole { id: Some(id), end: End::Open });
        let who = self.ledger.who();
        let mut failed = false;
        let mut placed = Vec::new();
        for nth in 0..2 + self.random.below(6) {
            let number = self.partition();
            let value = value(who, nth);
            let sent = if self.random.one_in(2) {
                transaction.send(Record::to("t").partition(number).value(&value))
            } else {
                transaction.append("t", number, &[Record::new(&value)]).map(|at| {
                    placed.push((number, at.start.0, value.clone()));
                })
            };
            self.ledger.note(who, nth, Told::Nothing, false, Some(whole));
            if sent.is_err() {
                failed = true;
                // What was refused with nothing written is not part of it: the simplest is to abort.
                break;
            }
            if self.random.one_in(300) {
                thread::sleep(Duration::from_millis(250));
            }
        }
        let mut goes_on = true;
        let end = match self.random.below(10) {
            0 => {
                drop(transaction);
                End::Aborted("dropped".into())
            }
            1 => {
                let outcome = transaction.abort(Duration::from_secs(2));
                End::Aborted(format!("{outcome:?}"))
            }
            _ if failed => {
                drop(transaction);
                End::Aborted("failed".into())
            }
            _ => {
                let wait = if self.random.one_in(6) { self.short() } else { APPEND };
                match self.ledger.timed("commit", wait, || transaction.commit(wait)) {
                    Ok(()) => {
                        for (number, offset, value) in &placed {
                            self.check_seen(*number, *offset, value);
                        }
                        End::Committed
                    }
                    Err(
                        error @ (Error::TransactionAborted { .. } | Error::ProducerFenced { .. }),
                    ) => {
                        goes_on = !matches!(error, Error::ProducerFenced { .. });
                        End::Aborted(text(&error))
                    }
                    Err(error) if error.written() == Written::No => End::Aborted(text(&error)),
                    Err(error) if error.written() == Written::Yes => End::Said(text(&error)),
                    Err(error) => End::Unknown(text(&error)),
                }
            }
        };
        let end =
            if self.ledger.dead.load(Ordering::SeqCst) { End::Unknown("died".into()) } else { end };
        self.ledger.wholes.lock().unwrap().get_mut(&whole).unwrap().end = end;
        goes_on
    }

    /// Committed, and the commit has returned.
    fn check_seen(&self, number: u32, offset: u64, value: &[u8]) {
        let Ok(partition) = self.store.partition("t", number) else { return };
        let stable = partition.last_stable_offset();
        if stable.0 <= offset {
            return; // behind another's transaction
        }
        let options = ReadOptions::new().isolation(Isolation::ReadCommitted).max_bytes(1);
        match partition.read(Offset(offset), options) {
            Ok(records) => {
                let found = records.iter().find(|one| one.offset().0 == offset);
                if found.is_none_or(|one| one.value() != Some(value)) {
                    let what = format!("committed, not seen: {number}@{offset}, LSO {stable}");
                    self.ledger.fault(what);
                }
            }
            Err(Error::Closed) => {}
            Err(error) => self.ledger.fault(format!("committed and not read: {error:?}")),
        }
    }

    fn atomics(mut self) {
        while self.goes_on() {
            let whole = self.ledger.next_whole.fetch_add(1, Ordering::Relaxed);
            let who = self.ledger.who();
            let count = 2 + self.random.below(2);
            let values: Vec<_> = (0..count).map(|nth| value(who, nth)).collect();
            let records: Vec<_> = values.iter().map(|value| [Record::new(value)]).collect();
            let numbers: Vec<_> = (0..count).map(|_| self.partition()).collect();
            let batches: Vec<_> =
                numbers.iter().zip(&records).map(|(at, record)| ("t", *at, &record[..])).collect();
            let wait = if self.random.one_in(6) { self.short() } else { APPEND };
            let outcome = self.store.append_atomic(&batches, wait);
            let end = match &outcome {
                Ok(appended) => {
                    for ((number, value), at) in numbers.iter().zip(&values).zip(appended) {
                        self.check_seen(*number, at.offsets.start.0, value);
                    }
                    End::Committed
                }
                Err(error) if error.written() == Written::No => End::Aborted(text(error)),
                Err(error) => End::Unknown(text(error)),
            };
            for nth in 0..count {
                self.ledger.note(who, nth, Told::Nothing, false, Some(whole));
            }
            let end = if self.ledger.dead.load(Ordering::SeqCst) {
                End::Unknown("died".into())
            } else {
                end
            };
            self.ledger.wholes.lock().unwrap().insert(whole, Whole { id: None, end });
            if matches!(outcome, Err(Error::Closed)) {
                break;
            }
        }
    }

    /// Reads on and on, and notes what it sees where.
    fn reads(mut self, isolation: Isolation) {
        let committed = isolation == Isolation::ReadCommitted;
        let mut next = vec![0; PARTITIONS as usize];
        while self.goes_on() {
            let number = self.partition();
            let Ok(partition) = self.store.partition("t", number) else { break };
            let from = next[number as usize];
            let options = ReadOptions::new().isolation(isolation);
            match partition.read(Offset(from), options) {
                Ok(records) => {
                    let seen =
                        if committed { &self.ledger.seen_committed } else { &self.ledger.seen };
                    if !self.ledger.dead.load(Ordering::SeqCst) {
                        let mut seen = seen.lock().unwrap();
                        let mut last = from;
                        for one in &records {
                            let at = one.offset().0;
                            if at < last {
                                self.ledger.fault(format!("offsets go back: {at} behind {last}"));
                            }
                            last = at + 1;
                            let value = one.value().unwrap().to_vec();
                            if let Some(before) = seen.insert((number, at), value.clone())
                                && before != value
                            {
                                self.ledger.fault(format!("{number}@{at} changed"));
                            }
                        }
                    }
                    let to = records.next_offset().0;
                    if to < from {
                        self.ledger.fault(format!("a read from {from} goes on at {to}"));
                    }
                    if to == from {
                        thread::sleep(Duration::from_micros(200));
                    }
                    next[number as usize] = to;
                    if self.random.one_in(400) {
                        next[number as usize] = 0;
                    }
                }
                Err(Error::Closed) => break,
                Err(Error::NoLeader { .. } | Error::DiskOffline { .. }) => {
                    thread::sleep(Duration::from_millis(1));
                }
                Err(error) => {
                    self.ledger.fault(format!("read {number}@{from}: {error:?}"));
                    break;
                }
            }
        }
    }

    /// What a snapshot shows of a transaction, it shows in all partitions.
    fn snapshots(mut self) {
        let names: Vec<_> = (0..PARTITIONS).map(|number| ("t", number)).collect();
        while self.goes_on() {
            match self.store.snapshot(&names) {
                Ok(snapshot) => {
                    let mut found = BTreeMap::new();
                    for number in 0..PARTITIONS {
                        let end = snapshot.end("t", number).unwrap();
                        let mut next = Offset(0);
                        while next < end {
                            let options = ReadOptions::new();
                            let Ok(records) = snapshot.read("t", number, next, options) else {
                                return;
                            };
                            for (who, _) in records.iter().filter_map(|one| parse(one.value()?)) {
                                *found.entry(who).or_insert(0) += 1;
                            }
                            next = records.next_offset().max(Offset(next.0 + 1));
                        }
                    }
                    self.ledger.cuts.lock().unwrap().push(found);
                }
                Err(Error::Closed) => break,
                Err(_) => {}
            }
            thread::sleep(Duration::from_millis(self.random.below(60)));
        }
    }

    /// An operator who leaves nothing as it is.
    fn operates(mut self, disks: &[SimDisk]) {
        let mut stopped = None;
        let mut hung: Option<usize> = None;
        while self.goes_on() {
            let update = TopicUpdate::new();
            match self.random.below(12) {
                0 => {
                    let codec = [Compression::None, Compression::Lz4, Compression::Zstd]
                        [self.random.index(3)];
                    let _ = self.store.alter_topic("t", update.compression(codec));
                }
                1 => {
                    let bytes = [5000, 1 << 20][self.random.index(2)];
                    let _ = self.store.alter_topic("t", update.max_batch_bytes(bytes));
                }
                2 => {
                    let bytes = [16 << 10, 64 << 10][self.random.index(2)];
                    let _ = self.store.alter_topic("t", update.segment_bytes(bytes));
                }
                3 if disks.len() == 3 => {
                    let count = 1 + u16::try_from(self.random.below(3)).unwrap();
                    let _ = self.store.alter_topic("t", update.min_insync_replicas(count));
                    thread::sleep(Duration::from_millis(5));
                    let update = TopicUpdate::new().min_insync_replicas(2);
                    let _ = self.store.alter_topic("t", update);
                }
                4 | 5 if disks.len() == 3 => match stopped.take() {
                    Some(disk) => {
                        let _ = self.store.start_disk(disk);
                    }
                    None if hung.is_none() => {
                        let disk = DiskId(u16::try_from(self.random.below(3)).unwrap());
                        if self.store.stop_disk(disk).is_ok() {
                            stopped = Some(disk);
                        }
                    }
                    None => {}
                },
                6 if disks.len() == 3 && stopped.is_none() => match hung.take() {
                    Some(disk) => disks[disk].answer(),
                    None => {
                        let disk = self.random.index(3);
                        disks[disk].hang([Hang::Syncs, Hang::Everything][self.random.index(2)]);
                        hung = Some(disk);
                    }
                },
                7 if disks.len() == 3 && stopped.is_none() && hung.is_none() => {
                    let disk = self.random.index(3);
                    disks[disk]
                        .fail_call(1 + self.random.below(20), oncelog::simulation::Fault::Eio);
                    thread::sleep(Duration::from_millis(30));
                    disks[disk].heal();
                    let disk = DiskId(u16::try_from(disk).unwrap());
                    let started = Instant::now();
                    while started.elapsed() < Duration::from_secs(2)
                        && self.goes_on()
                        && self.store.start_disk(disk).is_err()
                    {
                        thread::sleep(Duration::from_millis(5));
                    }
                }
                _ => {}
            }
            let pause = self.random.below(25);
            thread::sleep(Duration::from_millis(pause));
        }
        if let Some(disk) = hung {
            disks[disk].answer();
        }
    }
}

// The judge.

fn all_of(store: &Store, isolation: Isolation) -> BTreeMap<(u32, u64), Vec<u8>> {
    let mut found = BTreeMap::new();
    for number in 0..PARTITIONS {
        let partition = store.partition("t", number).unwrap();
        let started = Instant::now();
        while partition.last_stable_offset() < partition.log_end_offset() {
            assert!(started.elapsed() < LONG, "the LSO stands still");
            thread::sleep(Duration::from_millis(5));
        }
        let mut next = Offset(0);
        while next < partition.high_watermark() {
            let records = partition.read(next, ReadOptions::new().isolation(isolation)).unwrap();
            for one in &records {
                let value = one.value().unwrap();
                found.insert((number, one.offset().0), value.to_vec());
                if let Some((who, nth)) = parse(value) {
                    check_shape(who, nth, &one);
                }
            }
            if records.next_offset() == next {
                thread::sleep(Duration::from_millis(1));
            }
            assert!(started.elapsed() < LONG * 2, "a read that does not go on");
            next = records.next_offset();
        }
    }
    found
}

fn check_shape(who: u64, nth: u64, one: &oncelog::RecordView<'_>) {
    assert_eq!(one.value().unwrap(), value(who, nth), "bytes of {who}.{nth}");
    if one.headers().count() > 0 {
        let shape = shape(who, nth);
        assert_eq!(one.key(), shape.key.as_deref());
        let headers: Vec<_> =
            one.headers().map(|(name, value)| (name.to_string(), value.to_vec())).collect();
        assert_eq!(headers, shape.headers);
    }
}

impl World {
    fn judge(&self, store: &Store) -> Vec<String> {
        let plain = all_of(store, Isolation::ReadUncommitted);
        let committed = all_of(store, Isolation::ReadCommitted);
        let mut faults = std::mem::take(&mut *self.ledger.faults.lock().unwrap());
        let places = |found: &BTreeMap<(u32, u64), Vec<u8>>| {
            let mut places: BTreeMap<(u64, u64), Vec<(u32, u64)>> = BTreeMap::new();
            for (at, value) in found {
                if let Some(name) = parse(value) {
                    places.entry(name).or_default().push(*at);
                }
            }
            places
        };
        let (in_log, in_committed) = (places(&plain), places(&committed));
        let attempts = self.ledger.attempts.lock().unwrap().clone();
        let wholes = self.ledger.wholes.lock().unwrap().clone();
        let cuts = std::mem::take(&mut *self.ledger.cuts.lock().unwrap());
        let empty = Vec::new();
        let mut of_wholes: BTreeMap<u64, (usize, usize)> = BTreeMap::new();
        let mut who_sent = BTreeMap::new();
        let mut order: BTreeMap<(u64, u32), BTreeMap<u64, u64>> = BTreeMap::new();
        for one in &attempts {
            let name = (one.who, one.nth);
            let at = in_log.get(&name).unwrap_or(&empty);
            let seen = in_committed.get(&name).unwrap_or(&empty);
            if at.len() > 1 && !one.unnumbered {
                faults.push(format!("twice: {one:?} at {at:?}"));
            }
            for place in at {
                order.entry((one.who, place.0)).or_default().entry(one.nth).or_insert(place.1);
            }
            if let Some(whole) = one.transaction {
                let entry = of_wholes.entry(whole).or_default();
                entry.0 += 1;
                who_sent.insert(whole, one.who);
                entry.1 += usize::from(!seen.is_empty());
                continue;
            }
            if at.len() != seen.len() {
                faults.push(format!("{one:?}: {at:?} uncommitted, {seen:?} committed"));
            }
            match &one.told {
                Told::At(number, offset) if !at.contains(&(*number, *offset)) => {
                    faults.push(format!("lost: {one:?}, it is at {at:?}"));
                }
                Told::No(_) if !at.is_empty() => {
                    faults.push(format!("said not to be written: {one:?} at {at:?}"));
                }
                // What was not acknowledged may go with a leader, or the power.
                Told::Yes(_)
                    if at.is_empty()
                        && self.disks.len() == 1
                        && !self.ledger.died.load(Ordering::SeqCst) =>
                {
                    faults.push(format!("said to be written: {one:?}"));
                }
                _ => {}
            }
        }
        for ((who, number), places) in order {
            let offsets: Vec<_> = places.values().collect();
            if !offsets.is_sorted() {
                faults.push(format!("order of {who} in {number}: {places:?}"));
            }
        }
        for (number, (count, seen)) in of_wholes {
            let whole = &wholes[&number];
            let told = match whole.end {
                End::Committed | End::Said(_) => Some(true),
                End::Aborted(_) => Some(false),
                _ => None,
            };
            if seen != 0 && seen != count {
                faults.push(format!("torn: {whole:?}: {seen} of {count}"));
            } else if told.is_some_and(|told| told != (seen > 0)) {
                faults.push(format!("{whole:?}, and {seen} of {count} are seen"));
            }
            for cut in &cuts {
                let shown = cut.get(&who_sent[&number]).copied().unwrap_or(0);
                if shown != 0 && (shown != count || seen == 0) {
                    faults.push(format!("a snapshot shows {shown} of {count} of {whole:?}"));
                }
            }
            if let Some(id) = whole.id {
                match store.transaction_outcome(id) {
                    Ok(TransactionOutcome::Aborted) if seen > 0 => {
                        faults.push(format!("{whole:?} is called aborted, and seen"));
                    }
                    Ok(TransactionOutcome::Open) => {
                        faults.push(format!("{whole:?} is called open"));
                    }
                    _ => {}
                }
            }
        }
        for (what, seen, kept) in [
            ("read", &self.ledger.seen, &plain),
            ("read committed", &self.ledger.seen_committed, &committed),
        ] {
            for (at, value) in &*seen.lock().unwrap() {
                if kept.get(at) != Some(value) {
                    let text = String::from_utf8_lossy(&value[..value.len().min(20)]).to_string();
                    faults.push(format!("{what} and gone: {at:?} {text}"));
                }
            }
        }
        self.judge_named(&plain, &mut faults);
        faults
    }

    fn judge_named(&self, plain: &BTreeMap<(u32, u64), Vec<u8>>, faults: &mut Vec<String>) {
        let mut next: BTreeMap<(String, u32), u64> = BTreeMap::new();
        for ((number, offset), value) in plain {
            let text = String::from_utf8_lossy(value);
            let parts: Vec<_> = text.split('/').collect();
            if let [name, of, nth] = parts[..] {
                let nth: u64 = nth.parse().unwrap();
                let expected = next.entry((name.into(), *number)).or_insert(0);
                if *expected != nth || of != number.to_string() {
                    faults.push(format!("{name}: {nth} for {expected} at {number}@{offset}"));
                }
                *expected = nth + 1;
            }
        }
        for ((name, number), known) in &*self.ledger.named.lock().unwrap() {
            let have = next.get(&(name.clone(), *number)).copied().unwrap_or(0);
            if have < *known {
                faults.push(format!("{name} in {number}: {have} of {known}"));
            }
        }
    }

    fn round(&self, random: &mut Random, span: Duration) {
        let store = self.open();
        // A partition that is opened while its disk hangs waits for the disk.
        for number in 0..PARTITIONS {
            store.partition("t", number).unwrap();
        }
        store.snapshot(&[("t", 0)]).unwrap();
        self.ledger.dead.store(false, Ordering::SeqCst);
        self.ledger.over.store(false, Ordering::SeqCst);
        let until = Instant::now() + span;
        let mut threads = Vec::new();
        let ends_by = random.below(4);
        let mut start = |name: &str, run: Box<dyn FnOnce(Actor) + Send>| {
            let actor = Actor {
                store: store.clone(),
                ledger: Arc::clone(&self.ledger),
                random: Random(random.below(u64::MAX)),
                // Those who are to meet the end go on behind it.
                until: until + if ends_by == 0 { Duration::ZERO } else { LONG },
            };
            let thread = thread::Builder::new().name(name.into());
            threads.push(thread.spawn(move || run(actor)).unwrap());
        };
        start("appends", Box::new(Actor::appends));
        start("numbers", Box::new(|actor| actor.numbers(false)));
        start("numbers-strict", Box::new(|actor| actor.numbers(true)));
        start("sends", Box::new(|actor| actor.sends(true)));
        start("sends2", Box::new(|actor| actor.sends(true)));
        start("sends-plain", Box::new(|actor| actor.sends(false)));
        start("named-1", Box::new(|actor| actor.named("n")));
        start("named-2", Box::new(|actor| actor.named("n")));
        start("transacts-1", Box::new(|actor| actor.transacts("a")));
        start("transacts-2", Box::new(|actor| actor.transacts("a")));
        start("transacts-3", Box::new(|actor| actor.transacts("b")));
        start("atomics", Box::new(Actor::atomics));
        start("reads", Box::new(|actor| actor.reads(Isolation::ReadUncommitted)));
        start("reads-c", Box::new(|actor| actor.reads(Isolation::ReadCommitted)));
        start("snapshots", Box::new(Actor::snapshots));
        let disks = self.disks.clone();
        start("operates", Box::new(move |actor| actor.operates(&disks)));
        thread::sleep(span);
        match ends_by {
            0 => {}
            1 => {
                self.disks.iter().for_each(SimDisk::answer);
                let _ = store.close(LONG);
                // Handles answer, and nobody hangs.
                thread::sleep(Duration::from_millis(10));
                self.ledger.over.store(true, Ordering::SeqCst);
            }
            _ => {
                self.ledger.dead.store(true, Ordering::SeqCst);
                self.ledger.died.store(true, Ordering::SeqCst);
                self.disks[0].kill();
                self.disks.iter().for_each(SimDisk::answer);
                // An append that is awaited has no time-out of its own.
                let _ = store.close(LONG);
            }
        }
        let stop = Instant::now();
        for thread in threads {
            let name = thread.thread().name().unwrap_or_default().to_string();
            while !thread.is_finished() {
                assert!(
                    stop.elapsed() < LONG,
                    "seed {}: {name} hangs at the end by {ends_by}",
                    self.seed
                );
                thread::sleep(Duration::from_millis(1));
            }
            if ends_by == 1 && stop.elapsed() > Duration::from_millis(1500) {
                self.ledger
                    .faults
                    .lock()
                    .unwrap()
                    .push(format!("slow end: {name} {:?} behind close", stop.elapsed()));
            }
            if let Err(panic) = thread.join() {
                self.ledger.faults.lock().unwrap().push(format!("{name} panicked: {panic:?}"));
            }
        }
        let _ = store.close(LONG);
        drop(store);
        for disk in &self.disks {
            disk.heal();
        }
        match ends_by {
            2 if self.flush == Flush::OnAck => self.disks.iter().for_each(SimDisk::power_loss),
            2 | 3 => self.disks.iter().for_each(SimDisk::process_restart),
            _ => {}
        }
    }
}

fn tell(seed: u64, rounds: u64, span: Duration) {
    let world = World::new(seed);
    let mut random = Random(seed.wrapping_mul(77) + 5);
    for round in 0..rounds {
        world.round(&mut random, span);
        let store = world.open();
        let faults = world.judge(&store);
        store.close(LONG).unwrap();
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for fault in &faults {
            let kind: String = fault.chars().take(20).collect();
            let count = kinds.entry(kind).or_default();
            *count += 1;
            if *count < 8 {
                eprintln!("  {fault}");
            }
        }
        if !faults.is_empty() {
            eprintln!("{kinds:?}");
        }
        let counts = world.ledger.attempts.lock().unwrap().len();
        let wholes = world.ledger.wholes.lock().unwrap().len();
        assert!(
            faults.is_empty(),
            "seed {seed}, round {round}, {} disks, {:?}: {} faults of {counts} records, {wholes} transactions",
            world.disks.len(),
            world.flush,
            faults.len()
        );
        if setting("HISTORY_TRACE", 0) > 0 {
            eprintln!("seed {seed} round {round}: {counts} records, {wholes} transactions");
        }
    }
}

#[test]
fn histories_of_many_threads_hold_what_each_of_them_was_told() {
    let first = setting("HISTORY_SEED", 1);
    for seed in first..first + setting("HISTORIES", 3) {
        tell(seed, setting("HISTORY_ROUNDS", 2), Duration::from_millis(setting("HISTORY_MS", 400)));
    }
}
