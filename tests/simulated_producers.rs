//! Producers on a simulated disk: crashes and errors at every call. The judge knows what was sent, and which
//! deliveries ended well.
#![cfg(feature = "simulation")]
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use std::collections::BTreeSet;
use std::time::Duration;

use oncelog::simulation::{Clock, Fault, SimDisk, SyncFault};
use oncelog::{
    Delivery, Error, Flush, Offset, Producer, ReadOptions, Record, Store, Timestamp, TopicConfig,
};

use random::Random;

#[path = "common/random.rs"]
mod random;

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
