//! A disk of three that hangs, from any call of a transaction on or of the opening that settles one, until it answers or the
//! process or the power goes (S22): every wait ends in its time, what is told later of an outcome is what readers see,
//! readers go on, and nothing is there twice.
//!
//! `ONCELOG_ONE_IN=1` for every call. What is done comes from the number of the call; how threads meet does not.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use oncelog::simulation::{Hang, SimDisk};
use oncelog::{
    Acks, CommittedOffset, Consumer, DiskId, DiskState, Error, Isolation, Offset, ReadOptions,
    Record, StartAt, Store, TopicConfig, TopicPartition, TransactionId, TransactionOutcome,
    TransactionalProducer, Written,
};

use crate::random::setting;

/// Much longer than a healthy machine that is busy elsewhere takes for a call.
const LAG: Duration = Duration::from_millis(600);
const TIMEOUT: Duration = Duration::from_secs(3);
const LONG: Duration = Duration::from_secs(30);
const PARTITIONS: u32 = 2;
const STORIES_AT_ONCE: usize = 16;

/// What becomes of a disk that hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Answers,
    /// It answers only after the process has died.
    Killed,
    LosesPower,
}

/// When it hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Running,
    Opening,
}

#[derive(Clone, Copy, Debug)]
struct Story {
    disk: usize,
    call: u64,
    hang: Hang,
    when: When,
    end: End,
}

/// A transaction that wrote its number into each partition, and committed it as the group's offset.
#[derive(Debug)]
struct Run {
    id: TransactionId,
    number: u64,
    told: Result<(), Error>,
}

struct World {
    disks: Vec<SimDisk>,
    runs: Vec<Run>,
    numbered: u64,
    story: Story,
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < LONG, "{what}");
        thread::park_timeout(Duration::from_millis(1));
    }
}

impl World {
    fn new(story: Story) -> Self {
        let disks: Vec<_> = (1..=3).map(SimDisk::new).collect();
        disks[1..].iter().for_each(|disk| disk.share_process(&disks[0]));
        Self { disks, runs: Vec::new(), numbered: 0, story }
    }

    fn open(&self) -> Result<Store, Error> {
        let builder = Store::builder().replica_lag_max(LAG).append_timeout(TIMEOUT);
        let all = self.disks.iter().fold(builder, |all, disk| all.simulated_disk(disk.clone()));
        all.threads().open()
    }

    /// Does something that is to end in its time.
    fn in_time<T>(&self, what: &str, call: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let outcome = call();
        let took = started.elapsed();
        assert!(took < TIMEOUT + LONG / 2, "{:?}: {what} took {took:?}", self.story);
        outcome
    }

    fn produce(&self, store: &Store) -> Result<TransactionalProducer, Error> {
        let producer = store.producer().transactional_id("id");
        let producer = producer.max_block(TIMEOUT).delivery_timeout(TIMEOUT);
        self.in_time("build", || producer.build())
    }

    fn consumer(store: &Store) -> Consumer {
        let consumer = store.consumer().group("g").start(StartAt::Earliest);
        let mut consumer = consumer.isolation(Isolation::ReadCommitted).build().unwrap();
        consumer.assign(&[("t", 0)]).unwrap();
        consumer
    }

    /// One transaction, which commits or is aborted.
    fn transact(
        &mut self,
        producer: &mut TransactionalProducer,
        consumer: &Consumer,
        commits: bool,
    ) -> Result<(), Error> {
        let number = self.numbered;
        self.numbered += 1;
        let mut transaction = self.in_time("begin", || producer.begin())?;
        let id = transaction.id();
        let mut failed = None;
        for partition in 0..PARTITIONS {
            let sent = self.in_time("append", || {
                transaction.append("t", partition, &[Record::new(&number.to_le_bytes())])
            });
            failed = failed.or(sent.err());
        }
        let offset = (TopicPartition::new("t", 0), CommittedOffset::from(Offset(number)));
        let sent = self.in_time("send_offsets", || {
            transaction.send_offsets([(&offset.0, &offset.1)], &consumer.group_metadata())
        });
        failed = failed.or(sent.err());
        let told = match failed {
            None if commits => self.in_time("commit", || transaction.commit(TIMEOUT)),
            _ => {
                let _ = self.in_time("abort", || transaction.abort(TIMEOUT));
                let reason = "it was not to be committed".to_owned();
                Err(Error::TransactionAborted { id: "id".into(), reason })
            }
        };
        let outcome = told.clone();
        // One of which nothing was written leaves its id to the next.
        self.runs.retain(|run| run.id != id);
        self.runs.push(Run { id, number, told });
        outcome
    }

    /// All disks answer: everything goes on, and what is told agrees with what is read.
    fn judge(&mut self, store: &Store) {
        let story = self.story;
        self.disks.iter().for_each(SimDisk::heal);
        let consumer = Self::consumer(store);
        let started = Instant::now();
        loop {
            for (disk, at) in store.disks().iter().zip(0..) {
                if let DiskState::Offline { .. } = disk.state {
                    let _ = store.start_disk(DiskId(at));
                }
            }
            let produced = self.produce(store);
            let outcome =
                produced.and_then(|mut producer| self.transact(&mut producer, &consumer, true));
            let Err(error) = outcome else { break };
            assert!(started.elapsed() < LONG, "{story:?}: {error:?}, {:?}", store.disks());
        }
        let partitions: Vec<_> =
            (0..PARTITIONS).map(|number| store.partition("t", number).unwrap()).collect();
        for partition in &partitions {
            partition.append(&[Record::new(&u64::MAX.to_le_bytes())], Acks::All).unwrap();
            wait_until("readers go on", || {
                partition.last_stable_offset() == partition.high_watermark()
            });
        }
        let seen: Vec<_> = partitions
            .iter()
            .map(|partition| {
                let committed = ReadOptions::new().isolation(Isolation::ReadCommitted);
                let mut counts = BTreeMap::<u64, usize>::new();
                let mut next = Offset(0);
                while next < partition.last_stable_offset() {
                    let records = partition.read(next, committed).unwrap();
                    for record in &records {
                        let number = record.value().and_then(<[u8]>::first_chunk).unwrap();
                        *counts.entry(u64::from_le_bytes(*number)).or_default() += 1;
                    }
                    next = records.next_offset();
                }
                counts.remove(&u64::MAX);
                counts
            })
            .collect();
        let mut last = 0;
        for run in &self.runs {
            let outcome = store.transaction_outcome(run.id).unwrap();
            let what = format!("{story:?}: {run:?} {outcome:?} {seen:?}");
            let committed = outcome == TransactionOutcome::Committed;
            assert!(committed || outcome == TransactionOutcome::Aborted, "{what}");
            for counts in &seen {
                assert_eq!(counts.get(&run.number).copied(), committed.then_some(1), "{what}");
            }
            match &run.told {
                Ok(()) => assert!(committed, "{what}"),
                Err(error) => match error.written() {
                    Written::No => assert!(!committed, "{what}"),
                    Written::Yes => assert!(committed, "{what}"),
                    Written::Unknown => {}
                },
            }
            last = if committed { run.number } else { last };
        }
        let known: Vec<_> = self.runs.iter().map(|run| run.number).collect();
        assert!(seen.iter().flat_map(BTreeMap::keys).all(|number| known.contains(number)));
        let found = consumer.committed(&[("t", 0)]).unwrap();
        let found = found.values().map(|committed| committed.offset).next();
        assert_eq!(found, Some(Offset(last)), "{story:?}: {:?}", self.runs);
    }

    fn hang(&self) {
        self.disks[self.story.disk].hang_after(self.story.call, self.story.hang);
    }

    fn run(&mut self, store: &Store) {
        let consumer = Self::consumer(store);
        for commits in [true, false, true, true] {
            let Ok(mut producer) = self.produce(store) else { continue };
            for _ in 0..2 {
                let _ = self.transact(&mut producer, &consumer, commits);
            }
        }
    }

    /// The process dies, also where it hangs.
    fn die(&self) {
        self.disks[0].kill();
        self.disks.iter().for_each(SimDisk::answer);
    }

    fn begin_again(&self) {
        self.disks.iter().for_each(SimDisk::heal);
        for disk in &self.disks {
            match self.story.end {
                End::LosesPower => disk.power_loss(),
                End::Answers | End::Killed => disk.process_restart(),
            }
        }
    }

    fn tell(&mut self) {
        let store = self.open().unwrap();
        let config = TopicConfig::new()
            .partitions(PARTITIONS)
            .replication_factor(3)
            .min_insync_replicas(2)
            .segment_bytes(4096);
        store.create_topic("t", config).unwrap();
        let consumer = Self::consumer(&store);
        // Offsets may not lie behind the end.
        let partition = store.partition("t", 0).unwrap();
        let filler: Vec<_> = (0..64).map(|_| Record::new(&[0xff; 8])).collect();
        partition.append(&filler, Acks::All).unwrap();
        let mut producer = self.produce(&store).unwrap();
        self.transact(&mut producer, &consumer, true).unwrap();
        if self.story.when == When::Running {
            drop((consumer, producer));
            self.hang();
            self.run(&store);
        } else {
            // Left open, and settled by the next opening.
            let mut transaction = producer.begin().unwrap();
            for number in 0..PARTITIONS {
                transaction.append("t", number, &[Record::new(&[0x77; 8])]).unwrap();
            }
            partition.wait_for(Offset(66), LONG).unwrap();
            self.die();
            drop(transaction);
            drop((consumer, producer, partition, store));
            self.begin_again();
            self.hang();
            let disks = self.disks.clone();
            let dies = self.story.end != End::Answers;
            // An opening that hangs goes on when the disk answers, or ends with the process.
            let ends = thread::spawn(move || {
                thread::sleep(LAG * 2);
                if dies {
                    disks[0].kill();
                }
                disks.iter().for_each(SimDisk::answer);
            });
            let opened = self.open();
            ends.join().unwrap();
            return self.end(opened.ok());
        }
        drop(partition);
        self.end(Some(store));
    }

    fn end(&mut self, store: Option<Store>) {
        if let (End::Answers, Some(store)) = (self.story.end, &store) {
            self.judge(store);
            self.in_time("close", || store.close(LONG)).unwrap();
        }
        self.die();
        drop(store);
        self.begin_again();
        let store = self.open().unwrap();
        self.judge(&store);
        store.close(LONG).unwrap();
    }
}

#[test]
fn s22_a_disk_that_hangs_at_any_call_of_transactions_changes_no_outcome() {
    let mut stories = Vec::new();
    let mut turn = 0;
    for (when, calls) in [(When::Running, 0..130), (When::Opening, 0..90)] {
        for call in calls {
            for disk in 0..3 {
                let hang = [Hang::Everything, Hang::Syncs, Hang::Everything][turn % 3];
                let end = [End::Answers, End::Killed, End::LosesPower, End::Answers][turn / 3 % 4];
                turn += 1;
                stories.push(Story { disk, call, hang, when, end });
            }
        }
    }
    let one_in = usize::try_from(setting("ONCELOG_ONE_IN", 20)).unwrap();
    let stories: Vec<_> = stories.into_iter().step_by(one_in).collect();
    // They wait most of the time.
    thread::scope(|scope| {
        for lane in 0..STORIES_AT_ONCE {
            let stories = stories.iter().skip(lane).step_by(STORIES_AT_ONCE);
            scope.spawn(move || stories.for_each(|story| World::new(*story).tell()));
        }
    });
}
