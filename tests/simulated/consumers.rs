//! Groups and pipelines on simulated disks: members come, go, hang and crash, and the judge knows what was appended and
//! which commits were acknowledged (CONS-05, GRP-44, GRP-48, INV-11, INV-12).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use oncelog::simulation::{Clock, Fault, SimDisk};
use oncelog::{
    Acks, Consumer, Error, Flush, Isolation, Offset, ReadOptions, Rebalance, RebalanceKind, Record,
    Records, StartAt, Store, Timestamp, TopicConfig, TransactionalProducer,
};

use crate::random::Random;

const SECOND: Duration = Duration::from_secs(1);
/// For what nobody does in the background: it is done in the call, or not at all.
const WAIT: Duration = Duration::from_millis(2);
/// A member that has not polled for longer is put out.
const PATIENCE: Duration = Duration::from_millis(500);

fn open(disks: &[SimDisk], clock: &Clock) -> Result<Store, Error> {
    let builder = Store::builder().clock(clock.clone());
    disks.iter().fold(builder, |all, disk| all.simulated_disk(disk.clone())).open()
}

fn number(value: Option<&[u8]>) -> u64 {
    std::str::from_utf8(value.unwrap()).unwrap().parse().unwrap()
}

type News = Arc<Mutex<Vec<(RebalanceKind, Vec<u32>)>>>;

/// A consumer, and what it has been told.
struct Member {
    id: u64,
    consumer: Consumer,
    news: News,
    /// Where its next record of a partition is; `None`: it has just been given it.
    next: BTreeMap<u32, Option<u64>>,
    /// What its last commit that was acknowledged said.
    acknowledged: BTreeMap<u32, u64>,
}

/// What an observer outside knows of each partition.
#[derive(Debug, Default)]
struct Judge {
    ends: BTreeMap<u32, u64>,
    owners: BTreeMap<u32, u64>,
    /// What the last acknowledged commit said, and what later ones of unknown fate did.
    committed: BTreeMap<u32, BTreeSet<u64>>,
    delivered: u64,
    lost_places: u64,
}

impl Judge {
    fn committed(&self, partition: u32) -> BTreeSet<u64> {
        self.committed.get(&partition).cloned().unwrap_or_else(|| BTreeSet::from([0]))
    }

    fn poll(&mut self, member: &mut Member) {
        let polled = member.consumer.poll(Duration::ZERO);
        for (kind, partitions) in std::mem::take(&mut *member.news.lock().unwrap()) {
            for partition in partitions {
                if kind == RebalanceKind::Assigned {
                    self.owners.insert(partition, member.id);
                    assert!(member.next.insert(partition, None).is_none(), "given twice");
                    continue;
                }
                assert!(member.next.remove(&partition).is_some(), "{kind:?} what it had not");
                if kind == RebalanceKind::Revoked {
                    assert_eq!(self.owners.remove(&partition), Some(member.id), "INV-12");
                } else {
                    self.lost_places += 1;
                    self.owners.retain(|at, owner| *at != partition || *owner != member.id);
                }
            }
        }
        let records = polled.unwrap();
        for record in &records {
            let (partition, offset) = (record.partition(), record.offset().0);
            assert_eq!(self.owners.get(&partition), Some(&member.id), "INV-12: {partition}");
            assert_eq!(number(record.value()), offset);
            match member.next[&partition] {
                Some(next) => assert_eq!(offset, next, "CONS-05: neither a gap nor twice"),
                None => {
                    let committed = self.committed(partition);
                    assert!(committed.contains(&offset), "INV-11: {offset}, not in {committed:?}");
                }
            }
            member.next.insert(partition, Some(offset + 1));
            self.delivered += 1;
        }
    }

    fn commit(&mut self, member: &mut Member) {
        let positions: Vec<_> = member.consumer.position_map().into_iter().collect();
        let outcome = member.consumer.commit();
        for (partition, position) in positions {
            let (partition, offset) = (partition.partition(), position.offset.0);
            let owns = self.owners.get(&partition) == Some(&member.id);
            match &outcome {
                Ok(()) if owns => {
                    member.acknowledged.insert(partition, offset);
                    self.committed.insert(partition, BTreeSet::from([offset]));
                }
                // One that is put out has nothing new to say, or is refused.
                Ok(()) => {
                    let is_new = member.next.get(&partition).is_some_and(Option::is_some)
                        && member.acknowledged.get(&partition) != Some(&offset);
                    assert!(!is_new, "GRP-44: {partition}, {offset}");
                }
                Err(_) if owns => {
                    let mut known = self.committed(partition);
                    known.insert(offset);
                    self.committed.insert(partition, known);
                }
                Err(_) => {}
            }
        }
    }
}

fn join(store: &Store, id: u64, random: &mut Random) -> Member {
    let builder = store.consumer().group("g").start(StartAt::Earliest).max_poll_interval(PATIENCE);
    let mut consumer = builder.max_poll_records(1 + random.below(6)).build().unwrap();
    let news = News::default();
    let told = Arc::clone(&news);
    consumer.on_rebalance(move |event: &Rebalance<'_>| {
        let partitions = event.partitions().iter().map(|at| at.partition()).collect();
        told.lock().unwrap().push((event.kind(), partitions));
    });
    consumer.subscribe(&["t"]).unwrap();
    let (next, acknowledged) = Default::default();
    Member { id, consumer, news, next, acknowledged }
}

/// One story: several lives of a store, between which it is killed.
fn group_story(seed: u64, disks: u64, flush: Flush) -> Judge {
    let mut random = Random(seed);
    let clock = Clock::manual(Timestamp(1_000_000));
    let disks: Vec<_> = (0..disks).map(|at| SimDisk::new(seed * 8 + at)).collect();
    let mut judge = Judge::default();
    let mut ids = 0;
    for life in 0..4 {
        let store = open(&disks, &clock).unwrap();
        if life == 0 {
            let replicas = u16::try_from(disks.len()).unwrap();
            let config = TopicConfig::new().partitions(2).flush(flush).replication_factor(replicas);
            store.create_topic("t", config).unwrap();
        }
        judge.owners.clear();
        let mut members: Vec<Member> = Vec::new();
        for _ in 0..60 {
            match random.below(12) {
                0 => store.run_background(),
                1 => clock.advance(Duration::from_millis(random.below(400))),
                2 | 3 => {
                    let count = store.topic("t").unwrap().partitions;
                    let partition = u32::try_from(random.below(count.into())).unwrap();
                    let log = store.partition("t", partition).unwrap();
                    for _ in 0..=random.below(5) {
                        let end = judge.ends.entry(partition).or_default();
                        let text = end.to_string();
                        log.append(&[Record::new(&text)], Acks::All).unwrap();
                        *end += 1;
                    }
                }
                4 if members.len() < 4 => {
                    ids += 1;
                    members.push(join(&store, ids, &mut random));
                }
                5 if random.below(3) == 0 && !members.is_empty() => {
                    let gone = members.remove(random.index(members.len()));
                    judge.owners.retain(|_, owner| *owner != gone.id);
                }
                6 if random.below(10) == 0 => {
                    let count = store.topic("t").unwrap().partitions;
                    if count < 5 {
                        store.add_partitions("t", count + 1).unwrap();
                    }
                }
                7 | 8 if !members.is_empty() => {
                    let at = random.index(members.len());
                    judge.commit(&mut members[at]);
                }
                _ if !members.is_empty() => {
                    let at = random.index(members.len());
                    judge.poll(&mut members[at]);
                }
                _ => {}
            }
        }
        let power = flush == Flush::OnAck && random.below(2) == 0;
        for disk in &disks {
            if power { disk.power_loss() } else { disk.process_restart() }
        }
        drop((members, store));
    }
    // Whoever comes last gets everything from what was committed on, and nothing else.
    let store = open(&disks, &clock).unwrap();
    judge.owners.clear();
    let mut last = join(&store, ids + 1, &mut random);
    for _ in 0..1000 {
        judge.poll(&mut last);
    }
    for (partition, end) in &judge.ends {
        let next = last.next[partition].or_else(|| judge.committed(*partition).last().copied());
        assert_eq!(next, Some(*end), "partition {partition}: something is not delivered");
    }
    judge
}

#[test]
fn inv_12_members_that_come_go_hang_and_crash_read_each_partition_from_what_was_committed_on() {
    let (mut delivered, mut lost_places) = (0, 0);
    for seed in 0..120 {
        eprintln!("seed {seed}");
        let flush = if seed % 3 == 0 { Flush::Os } else { Flush::OnAck };
        let judge = group_story(seed, if seed % 4 == 0 { 3 } else { 1 }, flush);
        delivered += judge.delivered;
        lost_places += judge.lost_places;
    }
    assert!(delivered > 3000 && lost_places > 10, "{delivered} delivered, {lost_places} lost");
}

/// Reads, squares, and writes, with what it has read in the same transaction.
struct Worker {
    consumer: Consumer,
    producer: TransactionalProducer,
}

impl Worker {
    fn new(store: &Store, number: u64) -> Result<Self, Error> {
        let mut consumer = store
            .consumer()
            .group("squares")
            .start(StartAt::Earliest)
            .isolation(Isolation::ReadCommitted)
            .max_poll_interval(PATIENCE)
            .max_poll_records(3)
            .build()?;
        consumer.subscribe(&["t"])?;
        let id = format!("squares-{number}");
        Ok(Self {
            consumer,
            producer: store.producer().transactional_id(&id).max_block(WAIT).build()?,
        })
    }

    /// `hangs` is called between reading and committing.
    fn step(&mut self, gives_up: bool, hangs: impl FnOnce()) -> Result<usize, Error> {
        let records = self.consumer.poll(Duration::ZERO)?;
        if records.is_empty() {
            return Ok(0);
        }
        let mut transaction = self.producer.begin()?;
        for (partition, values) in squares(&records) {
            let batch: Vec<_> = values.iter().map(Record::new).collect();
            transaction.append("squares", partition, &batch)?;
        }
        hangs();
        let (positions, who) = (self.consumer.position_map(), self.consumer.group_metadata());
        transaction.send_offsets(&positions, &who)?;
        if gives_up {
            return Err(Error::Closed); // the transaction is dropped, and the worker by its owner
        }
        transaction.commit(WAIT)?;
        Ok(records.count())
    }
}

fn squares(records: &Records) -> BTreeMap<u32, Vec<String>> {
    let mut squares = BTreeMap::<u32, Vec<String>>::new();
    for record in records {
        let square = number(record.value()).pow(2).to_string();
        squares.entry(record.partition()).or_default().push(square);
    }
    squares
}

/// Two workers; whatever fails is thrown away and made again.
fn pipeline_story(disks: &[SimDisk], clock: &Clock, seed: u64) -> Result<(), Error> {
    let is_dead = || disks.iter().any(SimDisk::is_dead);
    let mut random = Random(seed);
    for _ in 0..2 {
        let store = open(disks, clock)?;
        for topic in ["t", "squares"] {
            if store.topics().iter().all(|known| known.name != topic) {
                let replicas = u16::try_from(disks.len()).unwrap();
                let config = TopicConfig::new().partitions(2).replication_factor(replicas);
                store.create_topic(topic, config)?;
            }
        }
        let mut workers = [None, None];
        for _ in 0..20 {
            if is_dead() {
                return Ok(());
            }
            match random.below(8) {
                0 => store.run_background(),
                1 => clock.advance(Duration::from_millis(random.below(100))),
                2 | 3 => {
                    let partition = u32::try_from(random.below(2)).unwrap();
                    let log = store.partition("t", partition)?;
                    for _ in 0..=random.below(4) {
                        let text = log.log_end_offset().to_string();
                        log.append(&[Record::new(&text)], Acks::All)?;
                    }
                }
                _ => {
                    let at = random.index(2);
                    let worker = match workers[at].take() {
                        Some(worker) => Ok(worker),
                        None => Worker::new(&store, at as u64),
                    };
                    let Ok(mut worker) = worker else { continue };
                    let (gives_up, hangs) = (random.below(6) == 0, random.below(8) == 0);
                    let outcome = worker.step(gives_up, || {
                        if hangs {
                            clock.advance(PATIENCE * 2);
                            store.run_background();
                        }
                    });
                    if outcome.is_ok() {
                        workers[at] = Some(worker);
                    }
                }
            }
        }
        drop(workers);
        let _ = store.close(SECOND);
    }
    Ok(())
}

/// A fresh worker does the rest; then the output is what was made of the input, once.
fn judge_pipeline(disks: &[SimDisk], clock: &Clock, what: &str) -> u64 {
    let store = open(disks, clock).unwrap();
    if store.topics().len() < 2 {
        return 0;
    }
    let mut worker = Worker::new(&store, 0).unwrap();
    // Workers that were killed are not there any more, and what they left is settled.
    let (mut idle, mut done) = (0, 0);
    while idle < 3 {
        match worker.step(false, || ()).unwrap() {
            0 => idle += 1,
            count => done += count,
        }
        store.run_background();
    }
    drop(worker);
    let mut total = 0;
    for partition in 0..2 {
        let end = store.partition("t", partition).unwrap().high_watermark().0;
        let output = store.partition("squares", partition).unwrap();
        let options = ReadOptions::new().isolation(Isolation::ReadCommitted);
        let (mut next, mut found) = (Offset(0), Vec::new());
        loop {
            let records = output.read(next, options).unwrap();
            found.extend(records.iter().map(|record| number(record.value())));
            if records.next_offset() == next {
                break;
            }
            next = records.next_offset();
        }
        let input = store.partition("t", partition).unwrap();
        let mut expected = Vec::new();
        let mut at = Offset(0);
        while at.0 < end {
            let records = input.read(at, ReadOptions::new()).unwrap();
            expected.extend(records.iter().map(|record| number(record.value()).pow(2)));
            at = records.next_offset();
        }
        assert_eq!(found, expected, "{what}: partition {partition}, {done} done at the end");
        total += end;
    }
    total
}

#[test]
fn inv_11_a_pipeline_makes_of_its_input_what_it_should_whatever_its_workers_do() {
    let mut total = 0;
    for seed in 0..120 {
        let clock = Clock::manual(Timestamp(1_000_000));
        let disks: Vec<_> =
            (0..if seed % 2 == 0 { 1 } else { 3 }).map(|at| SimDisk::new(seed * 8 + at)).collect();
        pipeline_story(&disks, &clock, seed).unwrap();
        total += judge_pipeline(&disks, &clock, &format!("seed {seed}"));
    }
    assert!(total > 1000, "the stories are about something: {total}");
}

#[test]
fn inv_11_a_pipeline_that_crashes_at_any_call_makes_what_it_should() {
    for power in [false, true] {
        for n in 1.. {
            let clock = Clock::manual(Timestamp(1_000_000));
            let disk = SimDisk::new(n);
            disk.crash_at(n);
            // What fails in a process that is dead is nobody's concern.
            let _ = pipeline_story(std::slice::from_ref(&disk), &clock, 11 + n % 5);
            let survived = !disk.is_dead();
            if power {
                disk.power_loss();
            } else {
                disk.process_restart();
            }
            disk.heal();
            judge_pipeline(std::slice::from_ref(&disk), &clock, &format!("call {n}, {power}"));
            if survived {
                assert!(n > 100, "the story is about something: {n} calls");
                break;
            }
        }
    }
}

#[test]
fn s9_a_pipeline_that_meets_an_error_at_any_call_makes_what_it_should() {
    for fault in [Fault::Eio, Fault::Enospc] {
        for n in (1..).step_by(5) {
            let clock = Clock::manual(Timestamp(1_000_000));
            let disk = SimDisk::new(n);
            disk.fail_call(n, fault);
            let _ = pipeline_story(std::slice::from_ref(&disk), &clock, 17);
            let over = disk.calls() < n;
            disk.heal();
            disk.process_restart();
            judge_pipeline(std::slice::from_ref(&disk), &clock, &format!("call {n}, {fault:?}"));
            if over {
                break;
            }
        }
    }
}
