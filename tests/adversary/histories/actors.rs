//! The threads: each does one thing again and again, and writes down what it is told.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use oncelog::simulation::{Hang, SimDisk};
use oncelog::{
    Acks, Compression, DiskId, Error, ErrorClass, Isolation, Offset, ProducerEpoch, ProducerId,
    ProducerSequence, ReadOptions, Record, Store, TopicUpdate, Written,
};

use super::ledger::{End, Ledger, Told, Whole, parse, record, shape, text, told_error, value};
use super::{APPEND, LONG, PARTITIONS};
use crate::random::Random;

pub(crate) struct Actor {
    pub(crate) store: Store,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) random: Random,
    pub(crate) until: Instant,
}

impl Actor {
    pub(crate) fn goes_on(&self) -> bool {
        Instant::now() < self.until
            && !self.ledger.dead.load(Ordering::SeqCst)
            && !self.ledger.over.load(Ordering::SeqCst)
    }

    pub(crate) fn partition(&mut self) -> u32 {
        u32::try_from(self.random.below(u64::from(PARTITIONS))).unwrap()
    }

    pub(crate) fn short(&mut self) -> Duration {
        Duration::from_micros([0, 10, 300, 2000, 50_000][self.random.index(5)])
    }

    pub(crate) fn appends(mut self) {
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
    pub(crate) fn numbers(mut self, strict: bool) {
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

    pub(crate) fn sends(mut self, idempotent: bool) {
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

    pub(crate) fn outcome(
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

    pub(crate) fn named(mut self, name: &str) {
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

    pub(crate) fn transacts(mut self, id: &str) {
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
    pub(crate) fn transaction(&mut self, producer: &mut oncelog::TransactionalProducer) -> bool {
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
    pub(crate) fn check_seen(&self, number: u32, offset: u64, value: &[u8]) {
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

    pub(crate) fn atomics(mut self) {
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
    pub(crate) fn reads(mut self, isolation: Isolation) {
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
    pub(crate) fn snapshots(mut self) {
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
    pub(crate) fn operates(mut self, disks: &[SimDisk]) {
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
