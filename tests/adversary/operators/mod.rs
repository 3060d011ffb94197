//! Operators at work while everybody else is: disks stop, start, are replaced and added, partitions move, shrink and
//! multiply, topics change, go and come, the store is verified, repaired and backed up, in random order and from several
//! threads, until the process or the power goes. The judge knows only what was acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::thread;
use std::time::Duration;

use oncelog::simulation::{Clock, Fault, SimDisk};
use oncelog::{
    Acks, Consumer, DiskId, DiskState, Error, Isolation, Offset, Partition, Producer, Record,
    StartAt, Store, Timestamp, TopicConfig, TopicUpdate, TransactionalProducer, VerifyOptions,
};

use ledger::{COPY, FLEETING, Ledger, Place, SOURCE, Sent, Told, places, read_all, text_of};

mod ledger;
use crate::random::{Random, setting, tell};

const SECOND: Duration = Duration::from_secs(1);
/// Topics whose records stay, and how many replicas they begin with.
const TOPICS: [(&str, u16); 3] = [("kept", 3), ("loose", 2), ("trim", 3)];
const INTERNAL: [&str; 2] = ["__consumer_offsets", "__transaction_state"];
struct World {
    disks: RwLock<Vec<SimDisk>>,
    /// Directories that are to become disks, or were to when the process died; with the disk whose place they take.
    spares: Mutex<Vec<(Option<usize>, SimDisk)>>,
    seeds: AtomicU64,
    clock: Clock,
    threads: bool,
    numbers: AtomicU64,
    ledger: Mutex<Ledger>,
    /// Held alone by whoever takes a replica for good.
    danger: RwLock<()>,
    faulty: AtomicBool,
    done: AtomicBool,
    trace: bool,
}

fn id_of(at: usize) -> DiskId {
    DiskId(u16::try_from(at).unwrap())
}

impl World {
    fn new(seed: u64, threads: bool) -> Self {
        let disks: Vec<_> = (0..4).map(|at| SimDisk::new(seed * 100 + at)).collect();
        disks[1..].iter().for_each(|disk| disk.share_process(&disks[0]));
        Self {
            disks: RwLock::new(disks),
            spares: Mutex::default(),
            seeds: AtomicU64::new(seed * 100 + 4),
            clock: if threads { Clock::system() } else { Clock::manual(Timestamp(1_000_000)) },
            threads,
            numbers: AtomicU64::new(0),
            ledger: Mutex::default(),
            danger: RwLock::default(),
            faulty: AtomicBool::new(false),
            done: AtomicBool::new(false),
            trace: std::env::var_os("ONCELOG_TRACE").is_some(),
        }
    }

    fn note(&self, what: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{}", what());
        }
    }

    fn disk(&self, at: usize) -> SimDisk {
        self.disks.read().unwrap()[at].clone()
    }

    fn is_dead(&self) -> bool {
        self.disk(0).is_dead()
    }

    /// How long anything is waited for.
    fn wait(&self) -> Duration {
        if self.threads { SECOND } else { Duration::from_millis(5) }
    }

    fn open(&self) -> Store {
        let mut builder = Store::builder().clock(self.clock.clone());
        builder = builder.append_timeout(if self.threads { SECOND / 2 } else { SECOND / 50 });
        let spares = self.spares.lock().unwrap();
        let spares = spares.iter().map(|(_, disk)| disk);
        let disks = self.disks.read().unwrap();
        for disk in disks.iter().chain(spares.filter(|disk| is_disk(disk))) {
            builder = builder.simulated_disk(disk.clone());
        }
        let builder = if self.threads { builder.threads() } else { builder };
        builder.open().unwrap()
    }

    /// Sees through what a crash came between.
    fn settle_spares(&self, store: &Store) {
        for (instead, directory) in std::mem::take(&mut *self.spares.lock().unwrap()) {
            let mut disks = self.disks.write().unwrap();
            match instead {
                None if store.disks().len() > disks.len() => disks.push(directory),
                None => {
                    // Not a disk yet: it can be given again.
                    assert_eq!(
                        store.add_simulated_disk(directory.clone()).unwrap(),
                        id_of(disks.len())
                    );
                    disks.push(directory);
                }
                Some(at) if store.disks()[at].state == DiskState::Missing => {
                    drop(disks);
                    let fresh = self.fresh();
                    store.replace_simulated_disk(id_of(at), fresh.clone()).unwrap();
                    self.disks.write().unwrap()[at] = fresh;
                }
                Some(at) => {
                    // Whichever of the two the store writes to.
                    let before = directory.calls();
                    store.alter_topic("trim", TopicUpdate::new().segment_age(SECOND)).unwrap();
                    if directory.calls() > before {
                        disks[at] = directory;
                    }
                }
            }
        }
    }

    fn fresh(&self) -> SimDisk {
        let fresh = SimDisk::new(self.seeds.fetch_add(1, Ordering::Relaxed));
        fresh.share_process(&self.disk(0));
        fresh
    }

    fn value(&self, who: &str) -> String {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let value = format!("{who}{number}-{}", "x".repeat(usize::try_from(number % 83).unwrap()));
        self.ledger.lock().unwrap().known.insert(value.clone());
        value
    }

    /// Whether an answer was heard by anybody.
    fn heard(&self, what: impl FnOnce(&mut Ledger)) {
        let mut ledger = self.ledger.lock().unwrap();
        if !self.is_dead() {
            what(&mut ledger);
        }
    }

    fn keep(&self, place: &Place, at: u64, value: &str) {
        self.note(|| format!("kept: {place:?} {at} {value}"));
        self.heard(|ledger| ledger.keep(place, at, value));
    }

    /// Nobody has anything against anybody but for what the operators do.
    fn check_error(&self, who: &str, error: &Error) {
        let odd = matches!(
            error,
            Error::OutOfOrderSequence { .. }
                | Error::DuplicateSequence { .. }
                | Error::UnknownProducer { .. }
                | Error::Corrupt { .. }
                | Error::ProducerFenced { .. }
                | Error::OffsetOutOfRange { .. }
        );
        // What a transaction has sent is not acknowledged before its commit: another leader may lack it.
        let may_lack = who == "transaction"
            && matches!(error, Error::OutOfOrderSequence { .. } | Error::UnknownProducer { .. });
        self.note(|| format!("{who}: {error:?}"));
        assert!(!odd || may_lack || self.is_dead(), "{who}: {error:?}");
    }

    fn some_place(&self, store: &Store, random: &mut Random) -> Place {
        let mut all = places(store);
        if random.one_in(6) {
            return (FLEETING.into(), 0);
        }
        all.swap_remove(random.index(all.len()))
    }
}

fn is_disk(directory: &SimDisk) -> bool {
    directory.files().iter().any(|file| file == "store.id")
}

/// Those who use the store, each with what it holds.
#[derive(Default)]
struct Users {
    plain: Option<Producer>,
    named: Option<Producer>,
    reader: Option<Consumer>,
    transactional: BTreeMap<u64, TransactionalProducer>,
    pipe: Option<Consumer>,
}

impl Users {
    fn append(world: &World, store: &Store, random: &mut Random) {
        let place = world.some_place(store, random);
        let Ok(partition) = store.partition(&place.0, place.1) else { return };
        let values: Vec<_> = (0..=random.below(3)).map(|_| world.value("a")).collect();
        let records: Vec<_> = values.iter().map(Record::new).collect();
        match partition.append(&records, Acks::All) {
            Ok(appended) => {
                for (at, value) in (appended.offsets.start.0..).zip(&values) {
                    world.keep(&place, at, value);
                }
            }
            Err(error) => world.check_error("append", &error),
        }
    }

    fn produce(&mut self, world: &World, store: &Store, random: &mut Random) {
        let known = self.plain.take().map_or_else(
            || store.producer().batch_bytes(400).delivery_timeout(world.wait()).build(),
            Ok,
        );
        let Ok(producer) = known else { return };
        let mut deliveries = Vec::new();
        for _ in 0..=random.below(5) {
            let (topic, partition) = world.some_place(store, random);
            let value = world.value("p");
            let record = Record::to(&topic).partition(partition).value(&value);
            match producer.try_send(record) {
                Ok(delivery) => deliveries.push((delivery, value)),
                Err(error) => world.check_error("send", &error),
            }
        }
        for (delivery, value) in deliveries {
            match delivery.wait(world.wait()) {
                Ok(told) => {
                    let place = (told.topic.to_string(), told.partition);
                    world.keep(&place, told.offset.0, &value);
                }
                Err(error) => world.check_error("delivery", &error),
            }
        }
        if !random.one_in(8) {
            self.plain = Some(producer);
        }
    }

    /// The named source: goes on where its last life's records end.
    fn replay(&mut self, world: &World, store: &Store, random: &mut Random) {
        let builder = store.producer().name(SOURCE).batch_bytes(200).max_block(world.wait());
        let builder = builder.delivery_timeout(world.wait());
        let producer = match self.named.take().map_or_else(|| builder.build(), Ok) {
            Ok(producer) => producer,
            Err(error) => return world.check_error("name", &error),
        };
        let mut next = match producer.next_sequence("kept", 0) {
            Ok(next) => next,
            Err(error) => return world.check_error("sequence", &error),
        };
        world.heard(|ledger| assert!(next >= ledger.named, "{next} after {}", ledger.named));
        for _ in 0..=random.below(4) {
            let value = format!("{SOURCE}{next}");
            let sent = producer.send(Record::to("kept").partition(0).value(&value));
            match sent.and_then(|delivery| delivery.wait(world.wait())) {
                Ok(told) => {
                    world.keep(&("kept".into(), 0), told.offset.0, &value);
                    world.heard(|ledger| ledger.named = ledger.named.max(next + 1));
                    next += 1;
                }
                Err(error) => return world.check_error("source", &error),
            }
        }
        if !random.one_in(6) {
            self.named = Some(producer);
        }
    }

    fn transact(
        &mut self,
        world: &World,
        store: &Store,
        random: &mut Random,
        id: u64,
        between: &dyn Fn(&mut Random),
    ) {
        let name = format!("id-{id}");
        let builder = store.producer().transactional_id(&name).max_block(world.wait());
        let builder = builder.batch_bytes(200).transaction_timeout(SECOND * 20);
        let known = self.transactional.remove(&id);
        let mut producer = match known.map_or_else(|| builder.build(), Ok) {
            Ok(producer) => producer,
            Err(error) => return world.check_error("id", &error),
        };
        let Ok(mut transaction) = producer.begin() else { return };
        let mut sent = Sent { values: Vec::new(), told: Told::Nothing };
        for _ in 0..1 + random.below(5) {
            let (place, value) = (world.some_place(store, random), world.value("t"));
            let done = if random.one_in(2) {
                let record = Record::to(&place.0).partition(place.1).value(&value);
                transaction.send(record)
            } else {
                transaction.append(&place.0, place.1, &[Record::new(&value)]).map(drop)
            };
            match done {
                Ok(()) => sent.values.push((place, value)),
                Err(error) => world.check_error("transaction", &error),
            }
            between(random);
        }
        let group = format!("pipe-{id}");
        let mut positions = BTreeMap::new();
        if random.one_in(2)
            && let Some(pipe) = &mut self.pipe
            && pipe.poll(Duration::ZERO).is_ok()
        {
            let map = pipe.position_map();
            if let Err(error) = transaction.send_offsets(&map, &pipe.group_metadata()) {
                world.check_error("offsets", &error);
            } else {
                for (at, held) in map {
                    positions.insert((at.topic().to_owned(), at.partition()), held.offset.0);
                }
            }
        } else if self.pipe.is_none() {
            let built = store.consumer().group(&group).start(StartAt::Earliest).build();
            self.pipe = built
                .ok()
                .and_then(|mut pipe| pipe.assign(&[("kept", 0), ("kept", 1)]).ok().map(|()| pipe));
        }
        let end = match random.below(6) {
            0 => {
                drop(transaction);
                Err(None)
            }
            1 => transaction.abort(world.wait()).map(|()| Told::Aborted).map_err(Some),
            _ => transaction.commit(world.wait()).map(|()| Told::Committed).map_err(Some),
        };
        sent.told = match end {
            Ok(told) => told,
            Err(Some(Error::TransactionAborted { .. })) => Told::Aborted,
            Err(Some(error)) => {
                world.check_error("end", &error);
                Told::Nothing
            }
            Err(None) => Told::Nothing,
        };
        let mut told = sent.clone();
        told.told = Told::Nothing;
        let mut ledger = world.ledger.lock().unwrap();
        ledger.sent.push(if world.is_dead() { told } else { sent.clone() });
        if sent.told == Told::Committed && !world.is_dead() {
            for (place, position) in positions {
                ledger.positions.insert((group.clone(), place), position);
            }
        }
        drop(ledger);
        if !random.one_in(5) {
            self.transactional.insert(id, producer);
        }
        if random.one_in(6) {
            self.pipe = None;
        }
    }

    fn read(&mut self, world: &World, store: &Store, random: &mut Random) {
        let all = [("kept", 0), ("kept", 1), ("loose", 0), ("loose", 1)];
        let consumer = self.reader.take().map_or_else(
            || {
                let builder = store.consumer().group("readers").start(StartAt::Earliest);
                let builder = builder.isolation(Isolation::ReadCommitted).max_poll_records(5);
                let mut consumer = builder.api_timeout(world.wait()).build()?;
                consumer.assign(&all)?;
                Ok(consumer)
            },
            Ok,
        );
        let mut consumer = match consumer {
            Ok(consumer) => consumer,
            Err(error) => return world.check_error("reader", &error),
        };
        for _ in 0..=random.below(6) {
            let records = match consumer.poll(Duration::ZERO) {
                Ok(records) => records,
                Err(error) => return world.check_error("poll", &error),
            };
            for record in &records {
                let place = (record.topic().to_string(), record.partition());
                let (at, value) = (record.offset().0, text_of(record.value()));
                world.note(|| format!("read: {place:?} {at} {value}"));
                world.heard(|ledger| {
                    ledger.keep(&place, at, &value);
                    let known = ledger.delivered.entry(place.clone()).or_default();
                    let before = known.last().copied();
                    known.insert(at);
                    let new = before.is_none_or(|before| at > before);
                    let position = ledger.positions.get(&("readers".into(), place.clone()));
                    let again = position.is_none_or(|position| at >= *position);
                    assert!(new || again, "{place:?} {at} again, committed {position:?}");
                });
            }
        }
        if random.one_in(2) {
            let map = consumer.position_map();
            match consumer.commit() {
                Ok(()) => world.heard(|ledger| {
                    for (at, held) in map {
                        let place = (at.topic().to_owned(), at.partition());
                        ledger.positions.insert(("readers".into(), place), held.offset.0);
                    }
                }),
                Err(error) => world.check_error("commit", &error),
            }
        }
        if !random.one_in(6) {
            self.reader = Some(consumer);
        }
    }
}

impl World {
    /// One request of an operator's.
    fn operate(&self, store: &Store, random: &mut Random) {
        let what = random.below(16);
        self.note(|| format!("operator: {what}"));
        if what == 0 {
            return self.replace(store, random);
        }
        let safe = self.danger.read().unwrap();
        let count = self.disks.read().unwrap().len();
        let at = random.index(count);
        let outcome = match what {
            1..=3 => store.stop_disk(id_of(at)),
            4..=6 => store.start_disk(id_of(at)),
            7 => store.start_disk(id_of(at)).and_then(|()| store.stop_disk(id_of(at))),
            8 => self.add(store, count),
            9 | 10 => self.reassign(store, random),
            11 => self.alter(store, random),
            12 => self.multiply(store, random),
            13 => self.renew(store, random),
            14 => {
                let repair = random.one_in(2);
                store.verify(VerifyOptions::new().repair(repair)).map(|report| {
                    let fine = report.damages.is_empty() || self.faulty.load(Ordering::Relaxed);
                    assert!(fine || self.is_dead(), "{:?}", report.damages);
                })
            }
            _ if random.one_in(2) => self.trim(store, random),
            _ => self.back_up(store),
        };
        drop(safe);
        self.note(|| format!("operator: {what} {at}: {outcome:?}"));
        if let Err(error) = outcome {
            self.check_error("operator", &error);
        }
    }

    /// Only where all others have everything.
    fn replace(&self, store: &Store, random: &mut Random) {
        let _alone = self.danger.write().unwrap();
        let count = self.disks.read().unwrap().len();
        if !self.spares.lock().unwrap().is_empty() {
            return; // one failed before, and is settled by the next opening
        }
        for at in 0..count {
            // A fault that is still to come would be a second one.
            self.disk(at).heal();
            let _ = store.start_disk(id_of(at));
        }
        if !self.is_whole(store, true) || self.is_dead() {
            return;
        }
        let (at, fresh) = (random.index(count), self.fresh());
        self.spares.lock().unwrap().push((Some(at), fresh.clone()));
        let outcome = store.replace_simulated_disk(id_of(at), fresh.clone());
        self.note(|| format!("operator: replaces {at}: {outcome:?}"));
        if outcome.is_ok() && !self.is_dead() {
            self.spares.lock().unwrap().pop();
            self.disks.write().unwrap()[at] = fresh;
        }
        // Nobody takes another replica before this one is back.
        self.is_whole(store, false);
    }

    fn add(&self, store: &Store, count: usize) -> Result<(), Error> {
        if count >= 6 || !self.spares.lock().unwrap().is_empty() {
            return Ok(());
        }
        let fresh = self.fresh();
        self.spares.lock().unwrap().push((None, fresh.clone()));
        let added = store.add_simulated_disk(fresh.clone());
        if self.is_dead() {
            return added.map(drop);
        }
        let mut spares = self.spares.lock().unwrap();
        let mut disks = self.disks.write().unwrap();
        if let Ok(id) = &added {
            spares.pop();
            assert_eq!(*id, id_of(disks.len()));
            disks.push(fresh);
        } else if !is_disk(&fresh) {
            spares.pop();
        }
        added.map(drop)
    }

    fn reassign(&self, store: &Store, random: &mut Random) -> Result<(), Error> {
        let mut all: Vec<_> = (0..self.disks.read().unwrap().len()).map(id_of).collect();
        let replicas = 2 + random.index(2);
        for at in (1..all.len()).rev() {
            all.swap(at, random.index(at + 1));
        }
        all.truncate(replicas);
        let (topic, partition) = self.some_place(store, random);
        self.moving(|| store.reassign(&topic, partition, &all))
    }

    /// What copies, while the clock moves now and then.
    fn moving<T>(&self, call: impl FnOnce() -> T) -> T {
        if self.threads {
            return call();
        }
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut patience = 200;
                while !done.load(Ordering::Acquire) {
                    thread::sleep(Duration::from_millis(1));
                    if patience > 0 {
                        patience -= 1;
                    } else {
                        self.clock.advance(Duration::from_millis(5));
                    }
                }
            });
            let outcome = call();
            done.store(true, Ordering::Release);
            outcome
        })
    }

    fn alter(&self, store: &Store, random: &mut Random) -> Result<(), Error> {
        let update = match random.below(4) {
            0 => TopicUpdate::new().segment_bytes(4096 << random.below(3)),
            1 => TopicUpdate::new().min_insync_replicas(1 + u16::from(random.one_in(3))),
            2 => TopicUpdate::new().segment_age(SECOND * (1 + u32::from(random.one_in(2)) * 3600)),
            _ => TopicUpdate::new().max_batch_bytes(2048 << random.below(3)),
        };
        store.alter_topic(TOPICS[random.index(3)].0, update)
    }

    fn multiply(&self, store: &Store, random: &mut Random) -> Result<(), Error> {
        let topic = TOPICS[random.index(2)].0;
        let count = store.topic(topic)?.partitions;
        if count < 4 { store.add_partitions(topic, count + 1) } else { Ok(()) }
    }

    fn renew(&self, store: &Store, random: &mut Random) -> Result<(), Error> {
        match store.delete_topic(FLEETING) {
            Err(error @ Error::UnknownTopicOrPartition { .. }) => drop(error),
            other => other?,
        }
        let replicas = 2 + u16::try_from(random.below(2)).unwrap();
        match store.create_topic(FLEETING, TopicConfig::new().replication_factor(replicas)) {
            Err(Error::TopicExists { .. }) => Ok(()),
            other => other,
        }
    }

    fn trim(&self, store: &Store, random: &mut Random) -> Result<(), Error> {
        let partition = store.partition("trim", 0)?;
        let (start, end) = (partition.log_start_offset().0, partition.high_watermark().0);
        let before = start + random.below(end.saturating_sub(start) + 1);
        let mut ledger = self.ledger.lock().unwrap();
        ledger.deleted_max = ledger.deleted_max.max(before);
        drop(ledger);
        partition.delete_records(Offset(before))?;
        self.heard(|ledger| ledger.deleted = ledger.deleted.max(before));
        Ok(())
    }

    fn back_up(&self, store: &Store) -> Result<(), Error> {
        let before = self.ledger.lock().unwrap().clone();
        let target = SimDisk::new(self.seeds.fetch_add(1, Ordering::Relaxed));
        store.backup_to_simulated_disk(target.clone())?;
        if self.is_dead() {
            return Ok(());
        }
        let after = self.ledger.lock().unwrap().clone();
        let judge = Ledger { known: after.known, deleted_max: after.deleted_max, ..before };
        let builder = Store::builder().clock(self.clock.clone());
        let copy = builder.simulated_disk(target).open().unwrap();
        for _ in 0..4 {
            copy.run_background();
        }
        judge.judge(&copy, COPY);
        judge.judge_atomic(&copy, COPY);
        judge.judge_groups(&copy, COPY);
        let mut damages = copy.verify(VerifyOptions::new()).unwrap().damages;
        damages.retain(|damage| damage.partition.topic() != FLEETING);
        assert_eq!(damages, []);
        Ok(())
    }

    /// Whether all partitions have all their replicas in sync; waits for it.
    fn is_whole(&self, store: &Store, quick: bool) -> bool {
        for _ in 0..if quick { 60 } else { 400 } {
            if self.threads {
                thread::sleep(Duration::from_millis(10));
            } else {
                self.clock.advance(Duration::from_millis(20));
                store.run_background();
            }
            if self.lacking(store).is_empty() {
                return true;
            }
        }
        false
    }

    fn lacking(&self, store: &Store) -> Vec<String> {
        let mut all = places(store);
        all.extend(INTERNAL.map(|name| (name.to_owned(), 0)));
        all.push((FLEETING.into(), 0));
        let lacking = all.into_iter().filter_map(|(topic, number)| {
            let partition = match store.partition(&topic, number) {
                Err(Error::UnknownTopicOrPartition { .. }) => return None,
                Err(error) => return Some(format!("{topic} {number}: {error}")),
                Ok(partition) => partition,
            };
            let (isr, replicas) = (partition.in_sync_replicas(), partition.replicas());
            let ends = (partition.high_watermark(), partition.log_end_offset());
            let whole = isr.len() == replicas.len() && ends.0 >= ends.1;
            (!whole).then(|| format!("{topic} {number}: {isr:?} of {replicas:?}, {ends:?}"))
        });
        lacking.collect()
    }

    fn heal(&self, store: &Store) {
        for at in 0..self.disks.read().unwrap().len() {
            self.disk(at).heal();
            if let Err(error) = store.start_disk(id_of(at)) {
                panic!("disk {at} does not start: {error:?}");
            }
        }
        if !self.is_whole(store, false) {
            store.events().for_each(|event| eprintln!("event: {event}"));
            panic!("not whole: {:?}", self.lacking(store));
        }
        self.clock.advance(SECOND * 30);
        for _ in 0..5 {
            store.run_background();
        }
        assert!(self.is_whole(store, false), "{:?}", self.lacking(store));
    }

    fn judge(&self, store: &Store) {
        self.heal(store);
        let ledger = self.ledger.lock().unwrap().clone();
        let unsettled = || {
            let all = places(store).into_iter().chain([(FLEETING.into(), 0)]);
            let mut all = all.filter_map(|(topic, at)| store.partition(&topic, at).ok());
            all.find(|partition| partition.last_stable_offset() < partition.high_watermark())
        };
        for _ in 0..1000 {
            if unsettled().is_none() {
                break;
            }
            self.is_whole(store, true);
        }
        let open = unsettled().map(|partition| partition.name().clone());
        assert!(open.is_none(), "a transaction in {open:?} does not end");
        ledger.judge(store, "the store");
        ledger.judge_atomic(store, "the store");
        ledger.judge_groups(store, "the store");
        ledger.judge_delivered(store);
        let report = store.verify(VerifyOptions::new()).unwrap();
        assert_eq!(report.damages, []);
        self.judge_replicas(store);
    }

    /// Whoever leads has the same.
    fn judge_replicas(&self, store: &Store) {
        let all: Vec<_> =
            places(store).iter().map(|(topic, at)| store.partition(topic, *at).unwrap()).collect();
        let read = || {
            let both = [Isolation::ReadUncommitted, Isolation::ReadCommitted];
            let read = |partition| both.map(|isolation| read_all(partition, isolation).unwrap());
            all.iter().map(read).collect::<Vec<_>>()
        };
        let first = read();
        for at in 0..self.disks.read().unwrap().len() {
            store.stop_disk(id_of(at)).unwrap();
            for _ in 0..3 {
                store.run_background();
            }
            for ((partition, before), after) in all.iter().zip(&first).zip(read()) {
                let (name, ledger) = (partition.name(), self.ledger.lock().unwrap());
                let [here, there] =
                    [before, &after].map(|read| read[1].iter().collect::<BTreeSet<_>>());
                let told = |value: &str| {
                    ledger
                        .sent
                        .iter()
                        .find(|sent| sent.values.iter().any(|(_, own)| own == value))
                        .map(|sent| sent.told)
                };
                let odd: Vec<_> = here
                    .symmetric_difference(&there)
                    .map(|(at, value)| (at, here.contains(&(*at, value.clone())), told(value)))
                    .collect();
                assert!(*before == after, "{name} without disk {at}: {odd:?}");
            }
            store.start_disk(id_of(at)).unwrap();
            assert!(self.is_whole(store, false), "{:?}", self.lacking(store));
        }
        for partition in &all {
            let name = partition.name();
            let (isolation, first) =
                (Isolation::ReadCommitted, read_all(partition, Isolation::ReadCommitted).unwrap());
            let replicas = partition.replicas();
            let mut turned = replicas.clone();
            turned.rotate_left(1);
            let moved = self.moving(|| store.reassign(name.topic(), name.partition(), &turned));
            moved.unwrap();
            self.clock.advance(SECOND * 30);
            assert!(self.is_whole(store, false), "{:?}", self.lacking(store));
            assert!(first == read_all(partition, isolation).unwrap(), "{name}: {turned:?} leads");
        }
    }

    fn create(&self, store: &Store) {
        for (topic, replicas) in TOPICS {
            if store.topic(topic).is_err() {
                let config = TopicConfig::new()
                    .partitions(if topic == "trim" { 1 } else { 2 })
                    .replication_factor(replicas)
                    .min_insync_replicas(1)
                    .segment_bytes(4096)
                    .index_interval_bytes(256);
                store.create_topic(topic, config).unwrap();
            }
        }
    }

    /// The process dies, or the machine, or nothing of that kind.
    fn end(&self, store: Store, random: &mut Random) {
        store.events().for_each(|event| self.note(|| format!("event: {event}")));
        if !self.is_dead() && random.one_in(3) {
            let closed = store.close(SECOND * 5);
            self.note(|| format!("closed: {closed:?}"));
        } else {
            self.disk(0).kill();
        }
        drop(store);
        let power = random.one_in(2);
        self.note(|| format!("power {power}"));
        let spares = self.spares.lock().unwrap();
        for disk in self.disks.read().unwrap().iter().chain(spares.iter().map(|(_, disk)| disk)) {
            disk.heal();
            if power { disk.power_loss() } else { disk.process_restart() }
        }
    }

    fn begin(&self) -> Store {
        self.faulty.store(false, Ordering::Relaxed);
        self.note(|| "opens".into());
        let store = self.open();
        self.settle_spares(&store);
        self.create(&store);
        self.judge(&store);
        store
    }

    fn tell(&self, random: &mut Random) {
        for _ in 0..4 {
            let store = self.begin();
            if random.one_in(2) {
                self.disk(random.index(4)).crash_at(random.below(1500));
            }
            let mut users = Users::default();
            for _ in 0..60 {
                match random.below(16) {
                    0..=2 => {
                        self.clock.advance(Duration::from_millis(random.below(200)));
                        store.run_background();
                    }
                    3 | 4 => Users::append(self, &store, random),
                    5 | 6 => users.produce(self, &store, random),
                    7 => users.replay(self, &store, random),
                    8 | 9 => users.read(self, &store, random),
                    10 | 11 => {
                        let between = |random: &mut Random| {
                            if random.one_in(5) {
                                self.operate(&store, random);
                            }
                        };
                        let id = random.below(2);
                        users.transact(self, &store, random, id, &between);
                        // One pipe a group: it goes by the id.
                        users.pipe = None;
                    }
                    12 if random.one_in(8) => self.fail(&store, random),
                    _ => self.operate(&store, random),
                }
                if self.is_dead() {
                    break;
                }
            }
            drop(users);
            self.end(store, random);
        }
        let store = self.begin();
        store.close(SECOND * 5).unwrap();
    }

    /// A disk fails by itself.
    fn fail(&self, _: &Store, random: &mut Random) {
        let at = random.index(self.disks.read().unwrap().len());
        let fault = [Fault::Eio, Fault::Enospc, Fault::TooManyFiles][random.index(3)];
        self.note(|| format!("disk {at}: {fault:?}"));
        self.faulty.store(true, Ordering::Relaxed);
        self.disk(at).fail_call(1 + random.below(40), fault);
    }

    fn tell_at_once(&self, random: &mut Random) {
        for _ in 0..3 {
            let store = self.begin();
            self.done.store(false, Ordering::Release);
            let seed = random.below(u64::MAX >> 34);
            thread::scope(|scope| {
                let threads = 8;
                let busy: Vec<_> = (0..threads)
                    .map(|who| {
                        scope.spawn({
                            let store = &store;
                            move || self.work(store, who, seed)
                        })
                    })
                    .collect();
                if self.trace {
                    scope.spawn(|| {
                        let mut events = store.events();
                        while !self.done.load(Ordering::Acquire) && !self.ledger.is_poisoned() {
                            events.by_ref().for_each(|event| eprintln!("event: {event}"));
                            thread::sleep(Duration::from_millis(1));
                        }
                    });
                }
                let span = 200 + random.below(1200);
                thread::sleep(Duration::from_millis(span));
                if random.one_in(2) {
                    self.disk(0).kill();
                }
                self.done.store(true, Ordering::Release);
                for one in busy {
                    if let Err(panic) = one.join() {
                        std::panic::resume_unwind(panic);
                    }
                }
            });
            self.end(store, random);
        }
        let store = self.begin();
        store.close(SECOND * 5).unwrap();
    }

    fn work(&self, store: &Store, who: u64, seed: u64) {
        let mut random = Random(seed * 31 + who);
        let mut users = Users::default();
        while !self.done.load(Ordering::Acquire) && !self.is_dead() {
            match who {
                0 => Users::append(self, store, &mut random),
                1 => users.produce(self, store, &mut random),
                2 => users.replay(self, store, &mut random),
                3 => users.read(self, store, &mut random),
                4 | 5 => users.transact(self, store, &mut random, who, &|_| {}),
                _ => self.operate(store, &mut random),
            }
        }
    }
}

fn tell_story(seed: u64, threads: bool) {
    eprintln!("seed {seed}");
    let mut random = Random(seed);
    let world = World::new(seed, threads);
    tell(seed, &format!("threads: {threads}"), || {
        if threads { world.tell_at_once(&mut random) } else { world.tell(&mut random) }
    });
}

/// Batches of two records each, whose numbers are their offsets.
fn append_pairs(partition: &Partition, pairs: std::ops::Range<u64>) {
    for at in pairs {
        let values = [(at * 2).to_string(), (at * 2 + 1).to_string()];
        let appended = partition.append(&values.each_ref().map(Record::new), Acks::All).unwrap();
        assert_eq!(appended.offsets.start.0, at * 2);
    }
}

#[test]
fn a_replica_that_ends_before_a_log_start_inside_a_batch_follows_after_the_next_opening() {
    for power in [false, true] {
        let world = World::new(1, false);
        let store = world.open();
        let config = TopicConfig::new().replication_factor(3).segment_bytes(4096);
        store.create_topic("t", config).unwrap();
        let partition = store.partition("t", 0).unwrap();
        append_pairs(&partition, 0..5);
        let away = *partition.replicas().last().unwrap();
        store.stop_disk(away).unwrap();
        append_pairs(&partition, 5..9);
        assert_eq!(partition.delete_records(Offset(13)).unwrap(), Offset(13));
        world.disk(0).kill();
        drop((partition, store));
        for disk in world.disks.read().unwrap().iter() {
            if power { disk.power_loss() } else { disk.process_restart() }
        }
        let store = world.open();
        assert!(world.is_whole(&store, false), "{:?}", world.lacking(&store));
        let partition = store.partition("t", 0).unwrap();
        append_pairs(&partition, 9..11);
        let others = partition.replicas().into_iter().filter(|disk| *disk != away);
        others.for_each(|disk| store.stop_disk(disk).unwrap());
        assert_eq!(partition.leader(), Some(away));
        let found = read_all(&partition, Isolation::ReadUncommitted).unwrap();
        let expected: Vec<_> = (13..22).map(|at| (at, at.to_string())).collect();
        assert_eq!(found, expected, "power {power}");
    }
}

#[test]
fn a_disk_that_is_started_before_its_failure_could_be_written_down_keeps_what_it_takes_then() {
    for power in [false, true] {
        let world = World::new(1, false);
        let store = world.open();
        let config = TopicConfig::new().replication_factor(2).min_insync_replicas(2);
        store.create_topic("t", config).unwrap();
        let partition = store.partition("t", 0).unwrap();
        append_pairs(&partition, 0..3);
        let replicas = partition.replicas();
        let others: Vec<_> = (0..4).map(id_of).filter(|disk| !replicas.contains(disk)).collect();
        // With the first two, nothing can be written down any more.
        for disk in [others[0], others[1], replicas[0]] {
            store.stop_disk(disk).unwrap();
        }
        for disk in [replicas[0], others[0], others[1]] {
            store.start_disk(disk).unwrap();
        }
        assert!(world.is_whole(&store, false), "{:?}", world.lacking(&store));
        append_pairs(&partition, 3..5);
        store.stop_disk(replicas[1]).unwrap();
        world.disk(0).kill();
        drop((partition, store));
        for disk in world.disks.read().unwrap().iter() {
            if power { disk.power_loss() } else { disk.process_restart() }
        }
        let store = world.open();
        assert!(world.is_whole(&store, false), "{:?}", world.lacking(&store));
        let partition = store.partition("t", 0).unwrap();
        let found = read_all(&partition, Isolation::ReadUncommitted).unwrap();
        let expected: Vec<_> = (0..10).map(|at| (at, at.to_string())).collect();
        assert_eq!(found, expected, "power {power}");
    }
}

#[test]
fn operators_calls_between_everybody_elses_lose_nothing_and_repeat_nothing() {
    let (first, count) = (setting("ONCELOG_SEED", 1), setting("ONCELOG_STORIES", 30));
    (first..first + count).for_each(|seed| tell_story(seed, false));
}

#[test]
fn operators_calls_at_once_with_everybody_elses_lose_nothing_and_repeat_nothing() {
    let (first, count) = (setting("ONCELOG_SEED", 1), setting("ONCELOG_STORIES", 1));
    (first..first + count).for_each(|seed| tell_story(seed, true));
}
