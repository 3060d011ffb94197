//! Producers on a simulated disk: crashes and errors at every call. The judge knows what was sent, and which
//! deliveries ended well.

use std::collections::BTreeSet;
use std::time::Duration;

use oncelog::simulation::{Clock, Fault, SimDisk, SyncFault};
use oncelog::{
    Delivery, DiskId, Error, Flush, Offset, Producer, ReadOptions, Record, Store, Timestamp,
    TopicConfig, Written,
};

use crate::random::{Random, setting};

const SECOND: Duration = Duration::from_secs(1);
const TURNS: u64 = 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Named,
}

/// What an observer outside knows. Records are numbered in the order of sending.
#[derive(Debug, Default)]
struct Judge {
    sent: u64,
    delivered: BTreeSet<u64>,
    topic: bool,
}

fn open(disk: &SimDisk, clock: &Clock) -> Result<Store, Error> {
    Store::builder().simulated_disk(disk.clone()).clock(clock.clone()).open()
}

fn producer(store: &Store, kind: Kind) -> Result<Producer, Error> {
    let builder = store.producer().batch_bytes(300).delivery_timeout(SECOND * 20);
    match kind {
        Kind::Plain => builder.build(),
        Kind::Named => builder.name("source").build(),
    }
}

fn contents(store: &Store) -> Vec<u64> {
    let Ok(partition) = store.partition("t", 0) else { return Vec::new() };
    let (mut next, mut values) = (Offset(0), Vec::new());
    while next < partition.high_watermark() {
        let records = partition.read(next, ReadOptions::new()).expect("a sound log");
        for record in &records {
            let text = std::str::from_utf8(record.value().unwrap()).unwrap();
            values.push(text.parse().unwrap());
        }
        next = records.next_offset();
    }
    values
}

impl Judge {
    /// Sends from two producers' lives, with some of everything in between.
    fn tell(&mut self, disk: &SimDisk, kind: Kind, flush: Flush, seed: u64) {
        let mut random = Random(seed);
        let clock = Clock::manual(Timestamp(1_000_000));
        for _ in 0..2 {
            let Ok(store) = open(disk, &clock) else { return };
            if !self.topic {
                match store.create_topic("t", TopicConfig::new().flush(flush).segment_bytes(4096)) {
                    Ok(()) if !disk.is_dead() => self.topic = true,
                    _ => return,
                }
            }
            let Ok(producer) = producer(&store, kind) else { return };
            let mut deliveries = Vec::new();
            if !self.seek(&producer, kind) {
                return;
            }
            for _ in 0..TURNS / 2 {
                match random.below(8) {
                    0 => store.run_background(),
                    1 => clock.advance(Duration::from_millis(random.below(30))),
                    2 => drop(producer.flush(Duration::ZERO)),
                    3 => {
                        if let Some((_, delivery)) = deliveries.last() {
                            let delivery: &Delivery = delivery;
                            drop(delivery.wait(Duration::ZERO));
                        }
                    }
                    _ => {
                        for _ in 0..random.below(6) {
                            let value = self.sent.to_string();
                            match producer.send(Record::to("t").value(&value)) {
                                Ok(delivery) => deliveries.push((self.sent, delivery)),
                                Err(_) if kind == Kind::Named => break,
                                Err(_) => {}
                            }
                            self.sent += 1;
                        }
                    }
                }
                self.note(disk, &deliveries);
                if disk.is_dead() {
                    return;
                }
            }
            drop(producer);
            self.note(disk, &deliveries);
            let _ = store.close(SECOND);
            let ended = deliveries.iter().all(|(_, delivery)| delivery.outcome().is_some());
            assert!(ended || disk.is_dead(), "a delivery without an end");
        }
    }

    /// A named source goes back to where the log is.
    fn seek(&mut self, producer: &Producer, kind: Kind) -> bool {
        if kind == Kind::Plain {
            return true;
        }
        let Ok(next) = producer.next_sequence("t", 0) else { return false };
        assert!(next <= self.sent, "{next} were never sent");
        self.sent = next;
        true
    }

    /// A process that is dead may believe anything.
    fn note(&mut self, disk: &SimDisk, deliveries: &[(u64, Delivery)]) {
        if disk.is_dead() {
            return;
        }
        for (number, delivery) in deliveries {
            if let Some(Ok(_)) = delivery.outcome() {
                self.delivered.insert(*number);
            }
        }
    }

    fn judge(&self, disk: &SimDisk, kind: Kind, lossy: bool) {
        if !self.topic {
            return;
        }
        let store = open(disk, &Clock::manual(Timestamp(2_000_000))).unwrap();
        let found = contents(&store);
        assert!(found.is_sorted_by(|one, next| one < next), "twice or out of order: {found:?}");
        if !lossy {
            let here: BTreeSet<_> = found.iter().copied().collect();
            let lost: Vec<_> = self.delivered.difference(&here).collect();
            assert!(lost.is_empty(), "delivered and lost: {lost:?} of {found:?}");
        }
        let producer = producer(&store, kind).unwrap();
        if kind == Kind::Named {
            let whole: Vec<_> = (0..found.len() as u64).collect();
            assert_eq!(found, whole, "a gap in the source");
            assert_eq!(producer.next_sequence("t", 0).unwrap(), found.len() as u64);
        }
        let delivery = producer.send(Record::to("t").value("1000000")).unwrap();
        let placed = delivery.wait(SECOND).unwrap();
        assert_eq!(placed.offset.0, found.len() as u64);
    }
}

fn cases() -> impl Iterator<Item = (Kind, Flush)> {
    [Kind::Plain, Kind::Named]
        .into_iter()
        .flat_map(|kind| [(kind, Flush::OnAck), (kind, Flush::Os), (kind, Flush::Interval(SECOND))])
}

#[test]
fn a_crash_at_every_call_doubles_and_loses_nothing_that_was_delivered() {
    for (kind, flush) in cases() {
        for power in [false, true] {
            for n in 1.. {
                let disk = SimDisk::new(n);
                let mut judge = Judge::default();
                disk.crash_at(n);
                judge.tell(&disk, kind, flush, 7 + n);
                let survived = !disk.is_dead();
                if power {
                    disk.power_loss();
                } else {
                    disk.process_restart();
                }
                disk.heal();
                judge.judge(&disk, kind, power && flush != Flush::OnAck);
                if survived {
                    assert!(judge.delivered.len() > 20, "the story is about something");
                    break;
                }
            }
        }
    }
}

#[test]
fn s8_s9_s10_an_error_at_every_call_doubles_and_loses_nothing_either() {
    for (kind, flush) in cases() {
        for fault in [Fault::Eio, Fault::Enospc, Fault::ShortIo] {
            for sticky in [false, true] {
                for n in 1.. {
                    let disk = SimDisk::new(n);
                    let mut judge = Judge::default();
                    if sticky {
                        disk.fail_from(n, fault);
                    } else {
                        disk.fail_call(n, fault);
                    }
                    judge.tell(&disk, kind, flush, 11);
                    let over = disk.calls() < n;
                    disk.heal();
                    disk.process_restart();
                    judge.judge(&disk, kind, false);
                    if over {
                        break;
                    }
                }
            }
        }
    }
}

#[test]
fn s8_a_failed_flush_is_told_to_every_delivery_behind_it() {
    for kind in [Kind::Plain, Kind::Named] {
        for fault in [SyncFault::CleanedPages, SyncFault::Reverted] {
            for n in 1..50 {
                let disk = SimDisk::new(n);
                let mut judge = Judge::default();
                disk.fail_sync(n, fault);
                judge.tell(&disk, kind, Flush::OnAck, 17);
                disk.heal();
                disk.process_restart();
                disk.power_loss();
                judge.judge(&disk, kind, false);
            }
        }
    }
}

/// Three disks, which fail, go and come back while records are sent.
struct Replicated {
    note: String,
    disks: Vec<SimDisk>,
    clock: Clock,
    random: Random,
    config: TopicConfig,
    kind: Kind,
    sent: u64,
    delivered: BTreeSet<u64>,
    /// Their senders were told that nothing was written.
    unwritten: BTreeSet<u64>,
}

impl Replicated {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let disks: Vec<_> = (0..3).map(|at| SimDisk::new(seed * 8 + at)).collect();
        disks[1..].iter().for_each(|disk| disk.share_process(&disks[0]));
        let (replicas, min_insync) = (2 + random.below(2), 1 + random.below(2));
        let count = |number| u16::try_from(number).unwrap();
        let config = TopicConfig::new().replication_factor(count(replicas)).segment_bytes(4096);
        let kind = if random.one_in(2) { Kind::Plain } else { Kind::Named };
        Self {
            note: format!(
                "{kind:?}, {replicas} replicas, {min_insync} in sync; replay with: \
                 ONCELOG_SEED={seed} ONCELOG_STORIES=1 \
                 cargo test --all-features --test simulated producers whichever"
            ),
            disks,
            clock: Clock::manual(Timestamp(1_000_000)),
            random,
            config: config.min_insync_replicas(count(min_insync)),
            kind,
            sent: 0,
            delivered: BTreeSet::new(),
            unwritten: BTreeSet::new(),
        }
    }

    fn open(&self) -> Result<Store, Error> {
        let builder = Store::builder().clock(self.clock.clone());
        let builder = builder.append_timeout(Duration::from_millis(5));
        let all = self.disks.iter().fold(builder, |all, disk| all.simulated_disk(disk.clone()));
        let store = all.flush(Flush::OnAck).open()?;
        if store.topic("t").is_err() {
            store.create_topic("t", self.config.clone())?;
        }
        Ok(store)
    }

    fn is_dead(&self) -> bool {
        self.disks[0].is_dead()
    }

    fn pass(&self, store: &Store, count: u64) {
        for _ in 0..count {
            self.clock.advance(Duration::from_millis(50));
            store.run_background();
        }
    }

    fn trouble(&mut self, store: &Store) {
        let leader = store.partition("t", 0).ok().and_then(|one| one.leader());
        let at = match leader {
            Some(leader) if !self.random.one_in(3) => usize::from(leader.0),
            _ => self.random.index(3),
        };
        let (disk, soon) = (&self.disks[at], 1 + self.random.below(5));
        match self.random.below(4) {
            0 => drop(store.stop_disk(DiskId(u16::try_from(at).unwrap()))),
            1 => disk.fail_from(soon, Fault::Eio),
            2 => disk.fail_call(soon, Fault::Eio),
            _ => disk.set_free_bytes(Some(soon * 500)),
        }
    }

    fn mend(&self, store: &Store) {
        for (at, disk) in self.disks.iter().enumerate() {
            disk.heal();
            disk.set_free_bytes(None);
            let _ = store.start_disk(DiskId(u16::try_from(at).unwrap()));
        }
    }

    /// Sends from one producer's life.
    fn live(&mut self) {
        let Ok(store) = self.open() else { return };
        let Ok(producer) = producer(&store, self.kind) else { return };
        let mut deliveries = Vec::new();
        let mut knows = self.kind == Kind::Plain;
        for _ in 0..60 {
            match self.random.below(12) {
                0 => self.trouble(&store),
                1 => self.mend(&store),
                2 => self.pass(&store, 10),
                3 => drop(producer.flush(Duration::ZERO)),
                4 => store.run_background(),
                5 if self.random.one_in(6) => {
                    let (disk, calls) = (self.random.index(3), 1 + self.random.below(20));
                    self.disks[disk].crash_at(calls);
                }
                _ => {
                    if !knows && let Ok(next) = producer.next_sequence("t", 0) {
                        let is_first = !self.is_dead() && next < self.delivered.len() as u64;
                        assert!(!is_first, "{next} is not acknowledged; {}", self.note);
                        (self.sent, knows) = (next, true);
                    }
                    for _ in 0..self.random.below(6) {
                        if !knows {
                            break;
                        }
                        let value = self.sent.to_string();
                        match producer.send(Record::to("t").value(&value)) {
                            Ok(delivery) => deliveries.push((self.sent, delivery)),
                            Err(_) if self.kind == Kind::Named => {
                                knows = false;
                                break;
                            }
                            Err(error) if error.written() == Written::No => {
                                self.unwritten.insert(self.sent);
                            }
                            Err(_) => {}
                        }
                        self.sent += 1;
                    }
                }
            }
            if self.is_dead() {
                return;
            }
            self.note(&deliveries);
        }
        drop(producer);
        if self.random.one_in(2) {
            let _ = store.close(SECOND);
        }
        self.note(&deliveries);
    }

    /// A process that is dead may believe anything.
    fn note(&mut self, deliveries: &[(u64, Delivery)]) {
        if self.is_dead() {
            return;
        }
        for (number, delivery) in deliveries {
            match delivery.outcome() {
                Some(Ok(_)) => drop(self.delivered.insert(*number)),
                Some(Err(error)) if error.written() == Written::No => {
                    self.unwritten.insert(*number);
                }
                _ => {}
            }
        }
    }

    fn judge(&mut self) {
        let power_loss = self.random.one_in(2);
        for disk in &self.disks {
            disk.heal();
            disk.set_free_bytes(None);
            if power_loss {
                disk.power_loss();
            } else {
                disk.process_restart();
            }
        }
        let note = &self.note;
        let store = self.open().unwrap_or_else(|error| panic!("{note}: {error:?}"));
        self.pass(&store, 200);
        let found = contents(&store);
        assert!(found.is_sorted_by(|one, next| one < next), "{note}: {found:?}");
        let here: BTreeSet<_> = found.iter().copied().collect();
        let lost: Vec<_> = self.delivered.difference(&here).collect();
        assert!(lost.is_empty(), "{note}: delivered and lost: {lost:?} of {found:?}");
        match self.kind {
            Kind::Plain => {
                let told: Vec<_> = self.unwritten.intersection(&here).collect();
                assert!(told.is_empty(), "{note}: not written, and there: {told:?}");
            }
            Kind::Named => {
                assert!(
                    found.iter().copied().eq(0..found.len() as u64),
                    "{note}: a gap: {found:?}"
                );
            }
        }
        store.close(SECOND).unwrap();
        self.disks.iter().for_each(SimDisk::process_restart);
    }
}

#[test]
fn producers_lose_and_double_nothing_whichever_disk_fails() {
    let (first, stories) = (setting("ONCELOG_SEED", 1), setting("ONCELOG_STORIES", 60));
    let mut delivered = 0;
    for seed in first..first + stories {
        let mut story = Replicated::new(seed);
        for _ in 0..3 {
            story.live();
            story.judge();
        }
        delivered += story.delivered.len();
    }
    assert!(stories < 20 || delivered > 2000, "the stories are about something: {delivered}");
}
