//! Two pipelines one behind the other, and readers behind both, while their members go, hang and are fenced, assignors and
//! instance ids differ, the topic grows, others come and go, disks are stopped and started, and the store is closed, killed
//! or loses its power. What goes in comes out once; who commits behind what he does misses nothing. The seed says what is
//! done; how threads meet, it does not.
//! `ONCELOG_SEED`, `ONCELOG_STORIES`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use oncelog::simulation::{Hang, SimDisk};
use oncelog::{
    Acks, Consumer, ConsumerBuilder, DiskId, Error, Flush, Isolation, Record, StartAt, Store,
    TopicConfig,
};

use crate::random::{Random, setting, tell};
use crate::small_store::read_all;

/// No story takes that long; one that does has found a hang.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_secs(5);
const INTERVAL: Duration = Duration::from_millis(60);
const STRATEGIES: [&str; 4] = ["range", "roundrobin", "sticky", "cooperative-sticky"];
/// How long a life of the store is, in steps of those who disturb it.
const ROUNDS: u64 = 60;
const LIVES: u64 = 3;

/// What was done with records by those who commit behind it, by group.
type Done = Mutex<BTreeMap<&'static str, BTreeSet<u64>>>;

/// What all threads share while the store lives.
struct Life<'a> {
    store: Store,
    disks: &'a [SimDisk],
    seed: u64,
    number: u64,
    over: AtomicBool,
    done: &'a Done,
    /// Commits that were not waited for, and how many of them were told of.
    begun: AtomicU64,
    told: Arc<AtomicU64>,
}

/// Ends the workers, also when the judge panics.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn number(value: Option<&[u8]>) -> u64 {
    std::str::from_utf8(value.unwrap()).unwrap().parse().unwrap()
}

impl Life<'_> {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn builder(&self, group: &'static str, worker: u64, random: &mut Random) -> ConsumerBuilder {
        let strategy = STRATEGIES[((self.seed + group.len() as u64) % 4) as usize];
        let mut builder = self.store.consumer().group(group).start(StartAt::Earliest);
        builder = builder.property("partition.assignment.strategy", strategy);
        if self.seed.is_multiple_of(2) {
            // Now and then somebody takes another's place.
            let id = worker + u64::from(random.one_in(6));
            builder = builder.instance_id(&format!("{id}"));
        }
        let builder = builder.isolation(Isolation::ReadCommitted).max_poll_interval(INTERVAL);
        builder.max_poll_records(1 + random.below(20)).api_timeout(Duration::from_secs(2))
    }

    /// Reads `from`, and what comes and goes beside it.
    fn member(
        &self,
        builder: ConsumerBuilder,
        from: &'static str,
        random: &mut Random,
    ) -> Result<Consumer, Error> {
        let mut consumer = builder.build()?;
        if random.one_in(2) {
            consumer.subscribe(&[from, "passing"])?;
        } else {
            consumer.subscribe_matching(move |topic| topic == from || topic == "passing")?;
        }
        if random.one_in(3) {
            consumer.on_rebalance(|change| {
                // It may be too late.
                let _ = change.commit();
            });
        }
        Ok(consumer)
    }

    /// Moves records from one topic to another, until something fails or it has enough.
    fn copy(
        &self,
        group: &'static str,
        from: &'static str,
        to: &'static str,
        worker: u64,
        random: &mut Random,
    ) -> Result<(), Error> {
        let store = &self.store;
        let builder = self.builder(group, worker, random);
        let mut consumer = builder.build()?;
        if random.one_in(2) {
            consumer.subscribe(&[from, "passing"])?;
        } else {
            consumer.subscribe_matching(move |topic| topic == from || topic == "passing")?;
        }
        let id = format!("{group}-{}", worker + u64::from(random.one_in(5)));
        let builder = store.producer().transactional_id(&id).delivery_timeout(INTERVAL * 30);
        let mut producer = builder.max_block(SHORT).build()?;
        while !self.is_over() && !random.one_in(25) {
            let records = consumer.poll(Duration::from_millis(5))?;
            if records.is_empty() {
                continue;
            }
            let mut transaction = producer.begin()?;
            let (positions, who) = (consumer.position_map(), consumer.group_metadata());
            let act = random.below(20);
            if act == 0 {
                thread::sleep(INTERVAL * 2); // it is a zombie by now
            }
            let first = act.is_multiple_of(2);
            if first {
                transaction.send_offsets(&positions, &who)?;
            }
            for record in records.iter().filter(|record| record.topic() == from) {
                let value = record.value().unwrap();
                let number = number(Some(value));
                let place = u32::try_from(number % 2).unwrap();
                transaction.send(Record::to(to).partition(place).value(value))?;
            }
            if act == 1 {
                thread::sleep(INTERVAL * 2);
            }
            if !first {
                transaction.send_offsets(&positions, &who)?;
            }
            match act {
                // Its successors wait for the decision.
                2 | 3 => thread::sleep(INTERVAL * 2),
                4 => return transaction.abort(SHORT),
                5 => return Ok(()),
                6 | 7 => {
                    drop(consumer);
                    thread::sleep(Duration::from_millis(random.below(20)));
                    return transaction.commit(SHORT);
                }
                8 => {
                    // What is given to it meanwhile is not committed here.
                    let again = consumer.group_metadata();
                    transaction.send_offsets(&positions, &again)?;
                }
                9 => {
                    consumer.unsubscribe();
                    return transaction.commit(SHORT);
                }
                _ => {}
            }
            transaction.commit(SHORT)?;
        }
        Ok(())
    }

    /// Does something with each record, and commits behind it, in one way or another.
    fn process(
        &self,
        group: &'static str,
        from: &'static str,
        worker: u64,
        random: &mut Random,
    ) -> Result<(), Error> {
        let way = random.below(4);
        let mut builder = self.builder(group, worker, random);
        if way == 0 {
            builder = builder.auto_commit(Duration::from_millis(random.below(20)));
        }
        let mut consumer = self.member(builder, from, random)?;
        let outcome = self.process_in(way, group, from, &mut consumer, random);
        if random.one_in(2) {
            let _ = consumer.close(Duration::from_secs(1));
        }
        outcome
    }

    fn process_in(
        &self,
        way: u64,
        group: &'static str,
        from: &'static str,
        consumer: &mut Consumer,
        random: &mut Random,
    ) -> Result<(), Error> {
        while !self.is_over() && !random.one_in(20) {
            let records = consumer.poll(Duration::from_millis(5))?;
            if random.one_in(20) {
                thread::sleep(INTERVAL * 2);
            }
            let found = records.iter().filter(|record| record.topic() == from);
            let found: Vec<_> = found.map(|record| number(record.value())).collect();
            if self.disks[0].is_dead() {
                return Ok(()); // there is nobody who could do anything
            }
            self.done.lock().unwrap().entry(group).or_default().extend(found);
            match way {
                1 => consumer.commit()?,
                2 => {
                    let told = Arc::clone(&self.told);
                    consumer.commit_async(move |_| {
                        told.fetch_add(1, Ordering::Relaxed);
                    })?;
                    self.begun.fetch_add(1, Ordering::Relaxed);
                }
                3 if random.one_in(3) => consumer.commit_offsets(&consumer.position_map())?,
                _ => {}
            }
            if random.one_in(30) {
                consumer.unsubscribe();
                consumer.subscribe(&[from])?;
            }
        }
        Ok(())
    }

    /// Stops and starts disks, one at a time, and has topics come, grow and go.
    fn disturb(&self, random: &mut Random) {
        let mut stopped = None;
        for round in 0..ROUNDS {
            if self.is_over() {
                break;
            }
            match random.below(8) {
                0 | 1 => match stopped.take() {
                    None => {
                        let disk = DiskId(u16::try_from(random.below(3)).unwrap());
                        stopped = self.store.stop_disk(disk).is_ok().then_some(disk);
                    }
                    Some(disk) => {
                        if self.store.start_disk(disk).is_err() {
                            stopped = Some(disk);
                        }
                    }
                },
                2 => {
                    let config = TopicConfig::new().replication_factor(2);
                    if self.store.create_topic("passing", config).is_ok()
                        && let Ok(log) = self.store.partition("passing", 0)
                    {
                        for _ in 0..random.below(30) {
                            let _ = log.append(&[Record::new("0")], Acks::All);
                        }
                    }
                }
                3 => drop(self.store.delete_topic("passing")),
                4 if round % 3 == 0 => {
                    let partitions = self.store.topic("in").map_or(9, |topic| topic.partitions);
                    if partitions < 6 {
                        let _ = self.store.add_partitions("in", partitions + 1);
                    }
                }
                5 if random.one_in(2) => {
                    let disk = &self.disks[random.index(3)];
                    disk.hang(Hang::Everything);
                    thread::sleep(Duration::from_millis(random.below(100)));
                    disk.answer();
                }
                _ => {}
            }
            thread::sleep(Duration::from_millis(random.below(30)));
        }
        if let Some(disk) = stopped {
            let started = self.store.start_disk(disk);
            assert!(started.is_ok() || self.number + 1 < LIVES, "{started:?}");
        }
    }

    /// Appends numbers. Which are there, the log says.
    fn feed(&self, random: &mut Random) {
        for number in 0..ROUNDS * 4 {
            let number = self.number * 1_000_000 + number;
            let partitions = self.store.topic("in").unwrap().partitions;
            let at = u32::try_from(random.below(partitions.into())).unwrap();
            let Ok(log) = self.store.partition("in", at) else { continue };
            let _ = log.append(&[Record::new(&number.to_string())], Acks::All);
            if random.one_in(4) {
                thread::sleep(Duration::from_millis(random.below(20)));
            }
        }
    }

    /// All that committed readers see, by partition.
    fn read_all(&self, topic: &str) -> Vec<Vec<u64>> {
        let partitions = self.store.topic(topic).unwrap().partitions;
        let read = |partition| {
            let log = self.store.partition(topic, partition).unwrap();
            let records = read_all(&log, Isolation::ReadCommitted);
            records.into_iter().map(|(_, value)| number(Some(&value))).collect()
        };
        (0..partitions).map(read).collect()
    }

    fn counts(&self, topic: &str) -> BTreeMap<u64, u64> {
        let mut counts = BTreeMap::new();
        for number in self.read_all(topic).into_iter().flatten() {
            *counts.entry(number).or_default() += 1;
        }
        counts
    }

    /// Whether all is through.
    fn is_done(&self, total: usize) -> bool {
        let done = self.done.lock().unwrap();
        let all = ["direct", "behind"]
            .iter()
            .all(|group| done.get(group).is_some_and(|done| done.len() >= total));
        drop(done);
        all && self.read_all("out").iter().map(Vec::len).sum::<usize>() >= total
    }
}

fn open(seed: u64, disks: &[SimDisk], flush: Flush) -> Store {
    let builder = Store::builder().flush(flush).append_timeout(SHORT);
    let all = disks.iter().fold(builder, |all, disk| all.simulated_disk(disk.clone()));
    all.threads().open().unwrap_or_else(|error| panic!("seed {seed}: {error}"))
}

fn live(life: &Life<'_>, random: &mut Random, is_last: bool) {
    let seed = life.seed * 1_000_000 + life.number * 1000;
    thread::scope(|scope| {
        let end = End(&life.over);
        for worker in 0..2u64 {
            type Act = fn(&Life<'_>, u64, &mut Random) -> Result<(), Error>;
            let acts: [Act; 4] = [
                |life, worker, random| life.copy("first", "in", "middle", worker, random),
                |life, worker, random| life.copy("second", "middle", "out", worker, random),
                |life, worker, random| life.process("direct", "in", worker, random),
                |life, worker, random| life.process("behind", "out", worker, random),
            ];
            for (salt, act) in (0..).zip(acts) {
                scope.spawn(move || {
                    let mut random = Random(seed + salt * 10 + worker);
                    while !life.is_over() {
                        // What fails is begun again.
                        let _ = act(life, worker, &mut random);
                        thread::yield_now();
                    }
                });
            }
        }
        let disturbs = scope.spawn(move || life.disturb(&mut Random(seed + 77)));
        life.feed(random);
        if is_last {
            disturbs.join().unwrap();
            let total = life.counts("in").len();
            let started = Instant::now();
            while !life.is_done(total) && started.elapsed() < LONG {
                thread::sleep(Duration::from_millis(10));
            }
        } else {
            thread::sleep(Duration::from_millis(random.below(500)));
            if random.one_in(3) {
                let _ = life.store.close(SHORT);
            } else {
                life.disks[0].kill();
            }
        }
        drop(end);
    });
}

fn story(seed: u64) {
    let mut random = Random(seed);
    let disks: Vec<_> = (0..3).map(|at| SimDisk::new(seed * 10 + at)).collect();
    disks[1..].iter().for_each(|disk| disk.share_process(&disks[0]));
    let flush = if random.one_in(2) { Flush::OnAck } else { Flush::Os };
    let done = Mutex::default();
    for number in 0..LIVES {
        let store = open(seed, &disks, flush);
        if number == 0 {
            let config = TopicConfig::new().replication_factor(3).min_insync_replicas(2);
            for topic in ["in", "middle", "out"] {
                store.create_topic(topic, config.clone().partitions(2)).unwrap();
            }
        }
        let over = AtomicBool::new(false);
        let (begun, told) = (AtomicU64::new(0), Arc::default());
        let life = Life { store, disks: &disks, seed, number, over, done: &done, begun, told };
        let is_last = number + 1 == LIVES;
        live(&life, &mut random, is_last);
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        assert_eq!(count(&life.told), count(&life.begun), "each commit is told of once");
        if is_last {
            return judge(&life);
        }
        let loses_power = flush == Flush::OnAck && random.one_in(2);
        for disk in &disks {
            if loses_power { disk.power_loss() } else { disk.process_restart() }
        }
        drop(life);
    }
}

fn judge(life: &Life<'_>) {
    let there = life.counts("in");
    assert!(there.values().all(|count| *count == 1), "each was appended once");
    for topic in ["middle", "out"] {
        let counts = life.counts(topic);
        let twice: Vec<_> = counts.iter().filter(|(_, count)| **count > 1).collect();
        assert!(twice.is_empty(), "{topic}: more than once: {twice:?}");
        let missing: Vec<_> = there.keys().filter(|at| !counts.contains_key(at)).collect();
        assert!(missing.is_empty(), "{topic}: missing: {missing:?} of {}", there.len());
        assert_eq!(counts.len(), there.len(), "{topic}: never appended");
    }
    // What came in order goes out in order.
    assert_eq!(life.read_all("middle"), life.read_all("out"));
    for (group, done) in life.done.lock().unwrap().iter() {
        let missing: Vec<_> = there.keys().filter(|at| !done.contains(at)).collect();
        assert!(missing.is_empty(), "{group}: missing: {missing:?} of {}", there.len());
        let never: Vec<_> = done.iter().filter(|at| !there.contains_key(at)).collect();
        assert!(never.is_empty(), "{group}: done, and not there: {never:?}");
    }
}

#[test]
fn inv_11_two_pipelines_deliver_once_and_readers_miss_nothing_whoever_goes_and_whatever_stops() {
    let first = setting("ONCELOG_SEED", 1);
    for seed in first..first + setting("ONCELOG_STORIES", 3) {
        tell(seed, &format!("seed {seed}"), || story(seed));
    }
}
