//! A producer's buffer and its callbacks, through thousands of failures: all of the buffer comes free again, and each
//! callback is called once, in the order of sending.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use oncelog::simulation::{Clock, Fault, Hang, SimDisk};
use oncelog::{
    Delivery, DiskId, Error, Flush, Producer, Record, Store, Timestamp, TopicConfig, TopicUpdate,
    Written,
};

use crate::random::{Random, setting, tell};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

/// What callbacks have noted.
#[derive(Default)]
struct Heard {
    /// By topic's id and partition.
    order: Vec<((u64, u32), u64)>,
    called: u64,
    sent: u64,
}

struct World {
    store: Store,
    disks: [SimDisk; 2],
    clock: Clock,
    producer: Producer,
    heard: Arc<Mutex<Heard>>,
    kept: Vec<Delivery>,
    numbered: u64,
}

fn config() -> TopicConfig {
    TopicConfig::new().partitions(2).replication_factor(2).min_insync_replicas(2)
}

/// Each callback sends the next.
fn chain(producer: &Producer, heard: &Arc<Mutex<Heard>>, left: u64) {
    if left == 0 {
        return;
    }
    let (again, noted) = (producer.clone(), Arc::clone(heard));
    let record = Record::to("t").partition(0).value(&[7; 100]);
    let sent = producer.send_with(record, move |_| {
        noted.lock().unwrap().called += 1;
        chain(&again, &noted, left - 1);
    });
    heard.lock().unwrap().sent += u64::from(sent.is_ok());
}

impl World {
    fn new(seed: u64, threads: bool) -> Self {
        let disks = [SimDisk::new(seed), SimDisk::new(seed + 1)];
        disks[1].share_process(&disks[0]);
        let clock = Clock::manual(Timestamp(1_000_000));
        let builder = Store::builder().append_timeout(MS * 3).replica_lag_max(SECOND);
        let builder = disks.iter().fold(builder, |b, disk| b.simulated_disk(disk.clone()));
        let builder = if threads { builder.threads() } else { builder.clock(clock.clone()) };
        let store = builder.open().unwrap();
        store.create_topic("t", config()).unwrap();
        let builder = store.producer().buffer_bytes(20_000).max_block(MS * 2).batch_bytes(4000);
        let builder = builder.delivery_timeout(MS * 5).linger(Duration::from_millis(seed % 3));
        let producer = builder.build().unwrap();
        let (heard, kept) = (Arc::default(), Vec::new());
        Self { store, disks, clock, producer, heard, kept, numbered: 0 }
    }

    fn step(&mut self, random: &mut Random) {
        let Self { store, disks, clock, producer, heard, kept, .. } = self;
        let alter = |update| drop(store.alter_topic("t", update));
        match random.below(60) {
            0 => disks[random.index(2)].set_free_bytes(Some(random.below(3000))),
            1 => disks.iter().for_each(|disk| disk.set_free_bytes(None)),
            2 => drop(store.stop_disk(DiskId(u16::from(random.one_in(2))))),
            3..=5 => self.heal(),
            6 => disks[random.index(2)].fail_call(1 + random.below(20), Fault::Eio),
            7 => alter(TopicUpdate::new().max_batch_bytes(1024 << random.below(4))),
            8 => {
                let required = 1 + u16::from(random.one_in(2));
                alter(TopicUpdate::new().min_insync_replicas(required));
            }
            9 => {
                let flush = if random.one_in(2) { Flush::Os } else { Flush::OnAck };
                alter(TopicUpdate::new().flush(flush));
            }
            10 if random.one_in(4) => drop(store.delete_topic("t")),
            10..=13 => drop(store.create_topic("t", config())),
            14..=16 => {
                store.run_background();
                clock.advance(MS * u32::try_from(random.below(4)).unwrap());
            }
            17 => drop(producer.flush(Duration::ZERO)),
            18 => kept.truncate(random.index(kept.len() + 1)),
            19 => kept.iter().for_each(|one| drop(one.wait(Duration::ZERO))),
            20 => chain(producer, heard, 1 + random.below(5)),
            _ => self.send(random),
        }
    }

    fn send(&mut self, random: &mut Random) {
        let len = [30_000, 9000, 1200, 1200, 1200, 1200, 60][random.index(20).min(6)];
        let (value, partition) = (vec![7; len], u32::from(random.one_in(2)));
        let record = Record::to("t").partition(partition).value(&value);
        match random.below(3) {
            0 => self.kept.extend(self.producer.send(record)),
            1 => self.kept.extend(self.producer.try_send(record)),
            _ => {
                self.numbered += 1;
                let id = self.store.topic("t").map_or(0, |topic| topic.id.0);
                let (noted, number) = (Arc::clone(&self.heard), self.numbered);
                let sent = self.producer.send_with(record, move |_| {
                    let mut heard = noted.lock().unwrap();
                    heard.called += 1;
                    heard.order.push(((id, partition), number));
                });
                self.heard.lock().unwrap().sent += u64::from(sent.is_ok());
            }
        }
    }

    fn heal(&self) {
        self.disks.iter().for_each(SimDisk::heal);
        (0..2).for_each(|disk| drop(self.store.start_disk(DiskId(disk))));
    }

    /// A delivery's time is short, and a busy machine slow: what was not written is sent again.
    fn deliver(&self) {
        let begun = Instant::now();
        loop {
            let record = Record::to("t").partition(0).value(&[7; 9000]);
            match self.producer.send(record).and_then(|sent| sent.wait(SECOND * 5)) {
                Err(error) if error.written() == Written::No => {
                    assert!(begun.elapsed() < SECOND * 20, "nothing goes any more: {error}");
                }
                _ => return,
            }
            // Nor does a disk answer in time there, and is done without.
            self.heal();
            self.store.run_background();
            self.clock.advance(MS * 100);
            thread::sleep(MS);
        }
    }

    fn judge(&self) {
        let begun = Instant::now();
        let lacks_calls = || {
            let heard = self.heard.lock().unwrap();
            heard.called < heard.sent
        };
        while lacks_calls() {
            assert!(begun.elapsed() < SECOND * 20, "a callback is never called");
            thread::sleep(MS);
        }
        let heard = self.heard.lock().unwrap();
        assert_eq!(heard.called, heard.sent);
        let mut last = BTreeMap::new();
        for (place, number) in &heard.order {
            let before = last.insert(*place, *number);
            assert!(before < Some(*number), "CLI-21: {place:?}: {number} after {before:?}");
        }
        drop(heard);
        while !self.kept.iter().all(|one| one.outcome().is_some()) {
            assert!(begun.elapsed() < SECOND * 20, "a delivery never ends");
            thread::sleep(MS);
        }
        assert_eq!(self.producer.counters().buffered_bytes, 0);
    }
}

fn story(seed: u64, threads: bool, closes: bool) {
    let random = &mut Random(seed);
    let mut world = World::new(seed, threads);
    for _ in 0..setting("ONCELOG_STEPS", 2000) {
        world.step(random);
    }
    world.disks.iter().for_each(|disk| disk.set_free_bytes(None));
    for _ in 0..50 {
        world.heal();
        world.store.run_background();
        world.clock.advance(MS * 100);
        thread::sleep(if threads { MS * 5 } else { Duration::ZERO });
    }
    if closes {
        let _ = world.store.close(SECOND * 20);
        return world.judge();
    }
    let created = world.store.create_topic("t", config());
    (0..2).for_each(|_| drop(world.producer.flush(SECOND * 5)));
    world.judge();
    let is_there = created.is_ok() || matches!(created, Err(Error::TopicExists { .. }));
    let update = TopicUpdate::new().max_batch_bytes(1 << 20);
    if !is_there || world.store.alter_topic("t", update).is_err() {
        return; // no change of the metadata is taken any more
    }
    (0..4).for_each(|_| world.deliver());
}

#[test]
fn thousands_of_failures_leave_nothing_in_the_buffer_and_no_callback_uncalled() {
    let first = setting("ONCELOG_SEED", 1011);
    for seed in first..first + setting("ONCELOG_STORIES", 6) {
        for (threads, closes) in [(false, false), (false, true), (true, false), (true, true)] {
            let what = format!("seed {seed}, threads: {threads}, closes: {closes}");
            tell(seed, &what, || story(seed, threads, closes));
        }
    }
}

/// No test waits that long; one that does has found a hang.
const LONG: Duration = Duration::from_secs(30);

fn replicated(flush: Flush) -> Store {
    let store = Store::in_memory(3).unwrap();
    store.create_topic("t", TopicConfig::new().replication_factor(3).flush(flush)).unwrap();
    store
}

/// Of two who waited, one got room and left its record to gather, which the other had hastened too early: it waited for an
/// hour's company, or until it was refused.
#[test]
fn cli_05_nothing_waits_for_company_while_somebody_waits_for_room() {
    const HOUR: Duration = Duration::from_secs(3600);
    let store = replicated(Flush::Os);
    // For one record.
    let builder = store.producer().buffer_bytes(200).max_block(LONG);
    let producer = builder.linger(HOUR).delivery_timeout(HOUR).build().unwrap();
    let send = || (0..50).for_each(|_| drop(producer.send(record()).unwrap()));
    thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(send))));
    producer.flush(LONG).unwrap();
    assert_eq!(store.partition("t", 0).unwrap().high_watermark().0, 200);
}

fn record() -> oncelog::ProducerRecord<'static> {
    Record::to("t").partition(0).value(&[7; 100])
}

/// It waited on the thread that would have seen to the acknowledgements of what filled the buffer, and so did all who sent.
#[test]
fn callbacks_that_send_while_the_buffer_is_full_get_room_as_it_comes_free() {
    for bytes in [200, 400] {
        let store = replicated(Flush::OnAck);
        let producer = store.producer().buffer_bytes(bytes).max_block(LONG).build().unwrap();
        let send = || {
            for _ in 0..50 {
                let again = producer.clone();
                let told = move |outcome: Result<_, Error>| {
                    outcome.unwrap();
                    drop(again.send(record()).unwrap());
                };
                producer.send_with(record(), told).unwrap();
            }
        };
        thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(send))));
        producer.flush(LONG).unwrap();
        producer.flush(LONG).unwrap();
        assert_eq!(producer.counters().callback_panics, 0, "none was refused");
        assert_eq!(store.partition("t", 0).unwrap().high_watermark().0, 400);
    }
}

/// They waited on, and what they sent was taken when the close had returned.
#[test]
fn cli_04_whoever_waits_for_room_as_the_producer_is_closed_is_told_so() {
    let disk = SimDisk::new(1);
    let store = Store::builder().simulated_disk(disk.clone()).threads().open().unwrap();
    store.create_topic("t", TopicConfig::new().flush(Flush::OnAck)).unwrap();
    let builder = store.producer().buffer_bytes(200).max_block(LONG);
    let producer = builder.batch_bytes(200).build().unwrap();
    // So that nothing but flushes is asked of the disk from here on.
    producer.send(record()).unwrap().wait(LONG).unwrap();
    disk.hang(Hang::Syncs);
    thread::scope(|scope| {
        let waits = scope.spawn(|| (0..10).find_map(|_| producer.send(record()).err()));
        while producer.counters().buffered_bytes == 0 {
            thread::yield_now();
        }
        // It stands in line by then; if not, it is refused as it comes.
        thread::sleep(MS * 20);
        let begun = Instant::now();
        assert!(matches!(producer.close(MS), Err(Error::TimedOut { .. })));
        let told = waits.join().unwrap();
        disk.answer();
        assert!(matches!(told, Some(Error::Closed)), "{told:?}");
        assert!(begun.elapsed() < LONG / 2, "it waited until its own time was over");
    });
}

/// Whoever waited for the callback was told to see to the next acknowledgement as well, and did nothing for it: he spun, and
/// it was learnt when the callback returned.
#[test]
fn a_flush_that_waits_for_a_callback_keeps_nobody_from_an_acknowledgement() {
    let store = Store::in_memory(1).unwrap();
    store.create_topic("t", TopicConfig::new().flush(Flush::Os)).unwrap();
    let producer = store.producer().build().unwrap();
    let (go_on, held) = std::sync::mpsc::channel::<()>();
    let (began, begins) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        // It is acknowledged at once, so that the callback runs on this thread.
        let blocks = move |_| {
            began.send(()).unwrap();
            let _ = held.recv();
        };
        scope.spawn(|| producer.send_with(record(), blocks).unwrap());
        begins.recv().unwrap();
        store.alter_topic("t", TopicUpdate::new().flush(Flush::OnAck)).unwrap();
        let flushes = scope.spawn(|| producer.flush(LONG * 2));
        // However long it takes to get there: each is awaited while the callback blocks.
        for _ in 0..50 {
            let begun = Instant::now();
            pollster::block_on(producer.send(record()).unwrap()).unwrap();
            assert!(begun.elapsed() < LONG, "it came with the end of the flush");
            thread::sleep(MS);
        }
        drop(go_on);
        flushes.join().unwrap().unwrap();
    });
}
