//! A pipeline over three simulated disks that reads one topic and writes two, with its offsets, in transactions: between any
//! two of its steps, and at any call, disks that lead one of its topics or an internal one fail, or the process or the power
//! goes. The judge knows the input: at every moment each output is what was made of a prefix of it, once and in order, a
//! snapshot has as much of one output as of the other, and at the end both have all of it, and the group has read it
//! (INV-05 to INV-11, INV-15).

use std::time::Duration;

use oncelog::simulation::{Clock, Fault, SimDisk, SyncFault};
use oncelog::{
    Acks, Consumer, DiskId, Error, Flush, Isolation, Offset, ReadOptions, Record, StartAt, Store,
    Timestamp, TopicConfig, TransactionalProducer,
};

use crate::random::{Random, setting};

const SECOND: Duration = Duration::from_secs(1);
/// For what nobody does in the background: it is done in the call, or not at all.
const WAIT: Duration = Duration::from_millis(5);
const PARTITIONS: u32 = 2;
const OUTPUTS: [&str; 2] = ["left", "right"];

struct Worker {
    consumer: Consumer,
    producer: TransactionalProducer,
}

impl Worker {
    fn new(store: &Store) -> Result<Self, Error> {
        let consumer = store.consumer().group("pipeline").start(StartAt::Earliest);
        let consumer = consumer.isolation(Isolation::ReadCommitted).max_poll_records(3);
        let mut consumer = consumer.api_timeout(WAIT).build()?;
        // First: whoever held the id before is settled, and with it the offsets that are read from.
        let producer = store.producer().transactional_id("pipeline").max_block(WAIT);
        let producer = producer.delivery_timeout(WAIT).build()?;
        consumer.subscribe(&["in"])?;
        Ok(Self { consumer, producer })
    }

    /// One transaction; `between` is called between any two steps. Returns how many records it took.
    fn step(&mut self, mut between: impl FnMut()) -> Result<usize, Error> {
        let records = self.consumer.poll(Duration::ZERO)?;
        if records.is_empty() {
            return Ok(0);
        }
        between();
        let mut transaction = self.producer.begin()?;
        between();
        for record in &records {
            let value = Record::new(record.value().unwrap());
            transaction.append("left", record.partition(), &[value])?;
            between();
        }
        for record in &records {
            let value = Record::to("right").partition(record.partition());
            transaction.send(value.value(record.value().unwrap()))?;
            between();
        }
        let (positions, who) = (self.consumer.position_map(), self.consumer.group_metadata());
        transaction.send_offsets(&positions, &who)?;
        between();
        transaction.commit(WAIT)?;
        Ok(records.count())
    }

    /// Goes back to what is committed, once it is known how the last transaction ended.
    fn go_back(&mut self) -> Result<(), Error> {
        drop(self.producer.begin()?);
        for number in 0..PARTITIONS {
            match self.consumer.committed(&[("in", number)])?.into_values().next() {
                Some(committed) => self.consumer.seek("in", number, committed.offset)?,
                None => self.consumer.seek_to_begin("in", number)?,
            }
        }
        Ok(())
    }
}

struct World {
    note: String,
    disks: Vec<SimDisk>,
    clock: Clock,
    random: Random,
    flush: Flush,
    replicas: u16,
    min_insync: u16,
    troubled: Vec<usize>,
    numbered: u64,
    trace: bool,
    done: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let replicas = 2 + u16::try_from(random.below(2)).unwrap();
        let min_insync = 1 + u16::try_from(random.below(2)).unwrap();
        let flush = if random.one_in(3) { Flush::Os } else { Flush::OnAck };
        let disks: Vec<_> = (0..3).map(|at| SimDisk::new(seed * 8 + at)).collect();
        disks.iter().skip(1).for_each(|disk| disk.share_process(&disks[0]));
        let note = format!(
            "{replicas} replicas, {min_insync} in sync, {flush:?}; replay with: \
             ONCELOG_SEED={seed} ONCELOG_STORIES=1 ONCELOG_TRACE=1 \
             cargo test --all-features --test simulated pipelines"
        );
        let clock = Clock::manual(Timestamp(1_000_000));
        let trace = setting("ONCELOG_TRACE", 0) == 1;
        let (troubled, numbered, done) = (Vec::new(), 0, 0);
        Self {
            note,
            disks,
            clock,
            random,
            flush,
            replicas,
            min_insync,
            troubled,
            numbered,
            trace,
            done,
        }
    }

    fn tell(&self, what: &str) {
        if self.trace {
            eprintln!("{what}");
        }
    }

    fn open(&self) -> Result<Store, Error> {
        let builder = Store::builder().append_timeout(WAIT).clock(self.clock.clone());
        let builder = self
            .disks
            .iter()
            .fold(builder.flush(self.flush), |all, disk| all.simulated_disk(disk.clone()));
        let store = builder.open()?;
        for topic in ["in", "left", "right"] {
            if store.topic(topic).is_err() {
                let config = TopicConfig::new().partitions(PARTITIONS).segment_bytes(4096);
                let config = config.replication_factor(self.replicas);
                store.create_topic(topic, config.min_insync_replicas(self.min_insync))?;
            }
        }
        Ok(store)
    }

    fn is_dead(&self) -> bool {
        self.disks[0].is_dead()
    }

    /// Which disk leads one of the partitions.
    fn leader(&mut self, store: &Store) -> Option<usize> {
        let topics = ["__transaction_state", "__consumer_offsets", "in", "left", "right"];
        let topic = topics[self.random.index(topics.len())];
        let number = if topic.starts_with("__") { 0 } else { self.random.below(2) };
        let partition = store.partition(topic, u32::try_from(number).unwrap()).ok()?;
        Some(partition.leader()?.0.into())
    }

    fn trouble(&mut self, store: &Store, crashes: bool) {
        if self.is_dead() {
            return;
        }
        let kind = self.random.below(60);
        match kind {
            0..=2 => store.run_background(),
            3 => {
                let passed = Duration::from_millis(self.random.below(40));
                self.clock.advance(passed);
                store.run_background();
            }
            4 | 5 | 14 | 15 => self.mend(store),
            6..=9 => {
                let Some(at) = self.leader(store) else { return };
                if self.troubled.len() >= 2 && !self.troubled.contains(&at) {
                    return;
                }
                let disk = &self.disks[at];
                let soon = 1 + self.random.below(6);
                let kind = self.random.below(6);
                match kind {
                    0 | 1 => drop(store.stop_disk(DiskId(u16::try_from(at).unwrap()))),
                    2 => disk.fail_from(soon, Fault::Eio),
                    3 => disk.fail_call(soon, Fault::Eio),
                    4 => disk.set_free_bytes(Some(soon * 1000)),
                    _ if self.troubled.is_empty() => disk.fail_sync(1, SyncFault::CleanedPages),
                    _ => return,
                }
                self.tell(&format!("disk {at} is in trouble: {kind}, {soon}"));
                if !self.troubled.contains(&at) {
                    self.troubled.push(at);
                }
            }
            10 if crashes => {
                let at = 1 + self.random.below(30);
                self.tell(&format!("a crash in {at} calls"));
                let disk = self.random.index(3);
                self.disks[disk].crash_at(at);
            }
            11 if crashes => {
                self.tell("the process dies");
                self.disks[0].kill();
            }
            12 | 13 => self.judge(store),
            _ => {}
        }
    }

    fn mend(&mut self, store: &Store) {
        for at in std::mem::take(&mut self.troubled) {
            self.disks[at].heal();
            self.disks[at].set_free_bytes(None);
            let id = DiskId(u16::try_from(at).unwrap());
            let _ = store.stop_disk(id);
            let outcome = store.start_disk(id);
            self.tell(&format!("disk {at} is well: {outcome:?}"));
        }
    }

    /// What an operator does about workers that cannot work, some day.
    fn recover(&mut self, store: &Store) {
        if self.random.one_in(2) {
            self.mend(store);
        }
        for _ in 0..self.random.below(40) {
            self.clock.advance(Duration::from_millis(50));
            store.run_background();
        }
    }

    fn feed(&mut self, store: &Store) {
        let number = u32::try_from(self.random.below(PARTITIONS.into())).unwrap();
        let Ok(input) = store.partition("in", number) else { return };
        for _ in 0..self.random.below(5) {
            self.numbered += 1;
            let _ = input.append(&[Record::new(&self.numbered.to_string())], Acks::All);
        }
    }

    /// What happens between one opening and the next.
    fn live(&mut self) {
        let Ok(store) = self.open() else { return };
        let mut worker: Option<Worker> = None;
        // It was taken over, and does not know.
        let mut zombie: Option<Worker> = None;
        for _ in 0..40 {
            self.feed(&store);
            self.trouble(&store, true);
            if self.is_dead() {
                break;
            }
            // Not before: it would go on behind what it took and did not commit.
            let is_taken_over = worker.is_some();
            if let Some(mut old) = zombie.take_if(|_| is_taken_over && self.random.one_in(3)) {
                let outcome = old.step(|| self.trouble(&store, false));
                self.tell(&format!("a zombie: {outcome:?}"));
            }
            let known = worker.take().map_or_else(|| Worker::new(&store), Ok);
            let mut current = match known {
                Ok(current) => current,
                Err(error) => {
                    self.tell(&format!("no worker: {error}"));
                    self.recover(&store);
                    continue;
                }
            };
            let outcome = current.step(|| self.trouble(&store, true));
            self.tell(&format!("step: {outcome:?}"));
            match outcome {
                Ok(count) => {
                    if !self.is_dead() {
                        self.done += count;
                    }
                    worker = Some(current);
                }
                Err(_) if self.random.one_in(2) => {
                    let outcome = current.go_back();
                    self.tell(&format!("back: {outcome:?}"));
                    worker = outcome.is_ok().then_some(current);
                }
                Err(_) if self.random.one_in(2) => zombie = Some(current),
                Err(_) => {}
            }
            self.judge(&store);
        }
        if self.random.one_in(3) && !self.is_dead() {
            drop((worker, zombie));
            self.tell("a close");
            let _ = store.close(SECOND);
        }
    }

    fn end(&mut self) {
        let power_loss = self.flush == Flush::OnAck && self.random.one_in(2);
        self.tell(if power_loss { "a power loss" } else { "a restart" });
        // Some of them only come back with the next opening.
        self.troubled.clear();
        for disk in &self.disks {
            disk.heal();
            disk.set_free_bytes(None);
            if power_loss {
                disk.power_loss();
            } else {
                disk.process_restart();
            }
        }
    }

    /// `None`: it cannot be read now.
    fn read(store: &Store, topic: &str, number: u32, isolation: Isolation) -> Option<Vec<String>> {
        let partition = store.partition(topic, number).ok()?;
        let (mut next, mut values) = (Offset(0), Vec::new());
        loop {
            let records = partition.read(next, ReadOptions::new().isolation(isolation)).ok()?;
            values.extend(records.iter().map(|record| text_of(record.value())));
            if records.next_offset() == next {
                return Some(values);
            }
            next = records.next_offset();
        }
    }

    fn judge(&self, store: &Store) {
        if self.is_dead() {
            return;
        }
        for number in 0..PARTITIONS {
            let output =
                OUTPUTS.map(|topic| Self::read(store, topic, number, Isolation::ReadCommitted));
            let Some(input) = Self::read(store, "in", number, Isolation::ReadUncommitted) else {
                continue;
            };
            for output in output.into_iter().flatten() {
                let note = &self.note;
                assert!(input.starts_with(&output), "{number}: {output:?} of {input:?}; {note}");
            }
        }
        self.judge_snapshot(store);
    }

    fn judge_snapshot(&self, store: &Store) {
        let names: Vec<_> =
            OUTPUTS.iter().flat_map(|topic| (0..PARTITIONS).map(|at| (*topic, at))).collect();
        let Ok(snapshot) = store.snapshot(&names) else { return };
        let read = |topic, number| {
            let (mut next, mut values) = (Offset(0), Vec::new());
            while next < snapshot.end(topic, number).unwrap() {
                let records = snapshot.read(topic, number, next, ReadOptions::new()).ok()?;
                values.extend(records.iter().map(|record| text_of(record.value())));
                next = records.next_offset();
            }
            Some(values)
        };
        for number in 0..PARTITIONS {
            let [left, right] = OUTPUTS.map(|topic| read(topic, number));
            if let (Some(left), Some(right)) = (left, right) {
                assert_eq!(left, right, "{number}: a torn snapshot; {}", self.note);
            }
        }
    }

    /// All disks are well: a fresh worker does the rest.
    fn finish(&mut self) {
        let note = self.note.clone();
        let store = self.open().unwrap_or_else(|error| panic!("{note}: {error:?}"));
        for _ in 0..80 {
            self.clock.advance(SECOND);
            store.run_background();
        }
        self.judge(&store);
        let mut worker = Worker::new(&store).unwrap_or_else(|error| panic!("{note}: {error:?}"));
        let mut idle = 0;
        while idle < 3 {
            match worker.step(|| ()) {
                Ok(0) => idle += 1,
                Ok(_) => {}
                Err(error) => panic!("{note}: {error:?}"),
            }
            self.clock.advance(SECOND);
            store.run_background();
        }
        for number in 0..PARTITIONS {
            let read = |topic, isolation| Self::read(&store, topic, number, isolation).unwrap();
            let input = read("in", Isolation::ReadUncommitted);
            for topic in OUTPUTS {
                let output = read(topic, Isolation::ReadCommitted);
                assert_eq!(output, input, "{topic} {number}; {note}");
            }
            let committed = worker.consumer.committed(&[("in", number)]).unwrap();
            let offset = committed.into_values().next().map_or(0, |held| held.offset.0);
            assert_eq!(offset, input.len() as u64, "{number}; {note}");
        }
        drop(worker);
        store.close(SECOND * 5).unwrap();
    }
}

fn text_of(value: Option<&[u8]>) -> String {
    String::from_utf8(value.unwrap().to_vec()).unwrap()
}

#[test]
fn inv_11_a_pipeline_makes_of_its_input_what_it_should_whichever_disk_fails_between_its_steps() {
    let (first, stories) = (setting("ONCELOG_SEED", 1), setting("ONCELOG_STORIES", 40));
    let mut done = 0;
    for seed in first..first + stories {
        let mut world = World::new(seed);
        for _ in 0..3 {
            world.live();
            world.end();
            world.finish();
            world.end();
        }
        done += world.done;
    }
    assert!(stories < 20 || done > 200, "the stories are about something: {done}");
}
