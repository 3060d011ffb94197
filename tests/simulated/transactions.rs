//! Random stories of transactions over simulated disks: several ids, takeovers, drops, time-outs, plain appends beside
//! them, disks that fail, crashes and power losses at any call, one disk or three. The judge knows what was sent in which
//! transaction and how its end was answered (INV-05 to INV-10, INV-15).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use oncelog::simulation::{Clock, Fault, SimDisk};
use oncelog::{
    Acks, DiskId, Error, Flush, Isolation, Offset, ReadOptions, Record, Store, Timestamp,
    TopicConfig, TransactionId, TransactionOutcome, TransactionalProducer, Written,
};

use crate::random::{Random, setting};

const SECOND: Duration = Duration::from_secs(1);
const PARTITIONS: u32 = 3;
const IDS: u64 = 3;

/// How a transaction's end was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Committed,
    Aborted,
    /// Not at all, or with an error that leaves it open.
    Nothing,
}

#[derive(Debug)]
struct Sent {
    id: Option<TransactionId>,
    /// By partition.
    values: BTreeMap<u32, Vec<String>>,
    told: Told,
    /// Its markers are where they belong.
    is_shown: bool,
}

struct World {
    seed: u64,
    disks: Vec<SimDisk>,
    clock: Clock,
    random: Random,
    flush: Flush,
    sent: Vec<Sent>,
    /// Records outside of transactions that were acknowledged.
    plain: Vec<(u32, String)>,
    /// What lies below an offset up to which records were deleted, or may have been.
    deleted: BTreeSet<String>,
    numbered: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let count = if random.one_in(3) { 3 } else { 1 };
        let flush = if random.one_in(3) { Flush::Os } else { Flush::OnAck };
        let disks: Vec<_> = (0..count).map(|at| SimDisk::new(seed * 8 + at)).collect();
        disks.iter().skip(1).for_each(|disk| disk.share_process(&disks[0]));
        let clock = Clock::manual(Timestamp(1_000_000));
        let (sent, plain) = (Vec::new(), Vec::new());
        let deleted = BTreeSet::new();
        Self { seed, disks, clock, random, flush, sent, plain, deleted, numbered: 0 }
    }

    fn open(&self) -> Result<Store, Error> {
        // Nobody else is at work while a call waits.
        let builder = Store::builder().append_timeout(Duration::from_millis(5));
        let builder = builder.clock(self.clock.clone()).flush(self.flush);
        let disks = self.disks.iter().fold(builder, |all, disk| all.simulated_disk(disk.clone()));
        let store = disks.open()?;
        if store.topic("t").is_err() {
            let replicas = u16::try_from(self.disks.len()).unwrap();
            let config = TopicConfig::new()
                .partitions(PARTITIONS)
                .replication_factor(replicas)
                .min_insync_replicas(replicas.min(2))
                .segment_bytes(4096);
            store.create_topic("t", config)?;
        }
        Ok(store)
    }

    fn value(&mut self) -> String {
        self.numbered += 1;
        format!("v{}", self.numbered)
    }

    /// What happens between one opening and the next.
    fn live(&mut self, crashes: bool) {
        if crashes {
            let at = 1 + self.random.below(400);
            self.disks[0].crash_at(at);
        }
        let Ok(store) = self.open() else { return };
        let mut held: HashMap<u64, TransactionalProducer> = HashMap::new();
        // One that was taken over, and does not know it.
        let mut zombies: Vec<TransactionalProducer> = Vec::new();
        for _ in 0..12 + self.random.below(20) {
            if self.disks.iter().any(SimDisk::is_dead) {
                break;
            }
            match self.random.below(17) {
                14 => self.delete(&store),
                15 if self.disks.len() == 3 => {
                    let disk = DiskId(u16::try_from(self.random.below(3)).unwrap());
                    let _ = match self.random.one_in(3) {
                        true => store.stop_disk(disk),
                        false => store.start_disk(disk),
                    };
                }
                0 => self.clock.advance(SECOND * u32::try_from(self.random.below(90)).unwrap()),
                1..=3 => store.run_background(),
                4 => {
                    let (partition, value) = (self.partition(), self.value());
                    let Ok(log) = store.partition("t", partition) else { continue };
                    let acknowledged = log.append(&[Record::new(&value)], Acks::All).is_ok();
                    // What a dead process was told, nobody has heard.
                    if acknowledged && !self.disks.iter().any(SimDisk::is_dead) {
                        self.plain.push((partition, value));
                    }
                }
                5 if self.disks.len() == 3 && self.random.one_in(2) => {
                    let disk = usize::try_from(self.random.below(3)).unwrap();
                    self.disks[disk].fail_call(1 + self.random.below(30), Fault::Eio);
                }
                6 => {
                    let id = self.random.below(IDS);
                    if let Ok(made) = self.hold(&store, id)
                        && let Some(old) = held.insert(id, made)
                    {
                        zombies.push(old);
                    }
                }
                7 if !zombies.is_empty() => {
                    let mut zombie = zombies.swap_remove(0);
                    self.run(&store, &mut zombie);
                }
                8 => self.judge_snapshot(&store),
                _ => {
                    let id = self.random.below(IDS);
                    let known = held.remove(&id).map_or_else(|| self.hold(&store, id), Ok);
                    let Ok(mut producer) = known else { continue };
                    self.run(&store, &mut producer);
                    held.insert(id, producer);
                }
            }
        }
        if self.random.one_in(3) {
            drop((held, zombies));
            let _ = store.close(SECOND);
        }
    }

    /// Deletes records: also those of transactions that go on, or that were aborted and go on behind.
    fn delete(&mut self, store: &Store) {
        let Ok(partition) = store.partition("t", self.partition()) else { return };
        let (start, end) = (partition.log_start_offset(), partition.high_watermark());
        let before = Offset(start.0 + self.random.below(end.0 - start.0 + 1));
        let mut offset = start;
        while offset < before {
            let Ok(records) = partition.read(offset, ReadOptions::new()) else { return };
            let gone = records.iter().take_while(|record| record.offset() < before);
            self.deleted.extend(gone.map(|record| text_of(record.value())));
            if records.next_offset() == offset {
                return;
            }
            offset = records.next_offset();
        }
        let _ = partition.delete_records(before);
    }

    fn hold(&self, store: &Store, id: u64) -> Result<TransactionalProducer, Error> {
        let builder = store.producer().transactional_id(&format!("id-{id}"));
        builder.batch_bytes(200).transaction_timeout(SECOND * 60).build()
    }

    fn partition(&mut self) -> u32 {
        u32::try_from(self.random.below(PARTITIONS.into())).unwrap()
    }

    /// One transaction, from its begin to some end.
    fn run(&mut self, store: &Store, producer: &mut TransactionalProducer) {
        let Ok(mut transaction) = producer.begin() else { return };
        let (id, values) = (Some(transaction.id()), BTreeMap::new());
        let mut sent = Sent { id, values, told: Told::Nothing, is_shown: false };
        let mut has_appended = false;
        for _ in 0..1 + self.random.below(6) {
            let (partition, value) = (self.partition(), self.value());
            let sends = self.random.one_in(2);
            let done = if sends {
                transaction.send(Record::to("t").partition(partition).value(&value))
            } else {
                transaction.append("t", partition, &[Record::new(&value)]).map(drop)
            };
            has_appended |= !sends && done.is_ok();
            if done.is_ok() {
                sent.values.entry(partition).or_default().push(value);
            } else if self.random.one_in(2) {
                break;
            }
            if self.random.one_in(12) {
                self.clock.advance(SECOND * 61);
            }
        }
        sent.told = match self.random.below(6) {
            0 => {
                drop(transaction);
                Told::Aborted
            }
            1 => {
                // Now or later.
                let _ = transaction.abort(SECOND * 5);
                Told::Aborted
            }
            _ => {
                let answer = transaction.commit(SECOND * 5);
                sent.is_shown = answer.is_ok();
                match answer.map_err(|error| error.written()) {
                    Ok(()) | Err(Written::Yes) => Told::Committed,
                    Err(Written::No) => Told::Aborted,
                    Err(Written::Unknown) => Told::Nothing,
                }
            }
        };
        if !has_appended && sent.told != Told::Committed {
            sent.id = None; // the next one has it
        }
        // What a dead process was told, nobody has heard.
        if self.disks.iter().any(SimDisk::is_dead) {
            (sent.told, sent.id) = (Told::Nothing, None);
        } else if sent.is_shown {
            for (partition, values) in &sent.values {
                self.judge_shown(store, *partition, values);
            }
        }
        self.sent.push(sent);
    }

    /// What was committed just now is seen, unless it lies behind what another transaction has left.
    fn judge_shown(&self, store: &Store, partition: u32, values: &[String]) {
        let read = |isolation| Self::read(store, partition, isolation);
        // A disk that fails now may keep the reader from it.
        let Ok(all) = read(Isolation::ReadUncommitted) else { return };
        let Ok(seen) = read(Isolation::ReadCommitted) else { return };
        let others = self.sent.iter().filter(|other| !other.is_shown);
        let left = others.flat_map(|other| other.values.get(&partition)).flatten();
        let left: BTreeSet<_> = left.collect();
        for value in values.iter().filter(|value| !self.deleted.contains(*value)) {
            let before = all.iter().take_while(|other| *other != value);
            let shown = seen.contains(value) || before.into_iter().any(|one| left.contains(one));
            assert!(shown, "seed {}: {value} is committed and not seen: {all:?}", self.seed);
        }
    }

    /// Each transaction is in a snapshot with all partitions or with none.
    fn judge_snapshot(&self, store: &Store) {
        let names: Vec<_> = (0..PARTITIONS).map(|number| ("t", number)).collect();
        let Ok(snapshot) = store.snapshot(&names) else { return };
        let mut seen = Vec::new();
        for number in 0..PARTITIONS {
            let start = store.partition("t", number).map(|one| one.log_start_offset());
            let (mut offset, mut values) = (start.unwrap_or_default(), BTreeSet::new());
            while offset < snapshot.end("t", number).unwrap() {
                let read = snapshot.read("t", number, offset, ReadOptions::new());
                let Ok(records) = read else { return };
                values.extend(records.iter().map(|one| text_of(one.value())));
                offset = records.next_offset();
            }
            seen.push(values);
        }
        for sent in &self.sent {
            let kept = |value: &&String| !self.deleted.contains(*value);
            let mut shown = sent.values.iter().flat_map(|(at, values)| {
                values.iter().filter(kept).map(|value| seen[*at as usize].contains(value))
            });
            let first = shown.next();
            assert!(shown.all(|one| Some(one) == first), "seed {}: torn: {sent:?}", self.seed);
        }
    }

    fn put_everywhere(&mut self, store: &Store) -> Result<String, Error> {
        let mut producer = self.hold(store, 0)?;
        let value = self.value();
        let mut transaction = producer.begin()?;
        for number in 0..PARTITIONS {
            transaction.append("t", number, &[Record::new(&value)])?;
        }
        transaction.commit(SECOND * 5)?;
        Ok(value)
    }

    fn end(&mut self, power_loss: bool) {
        for disk in &self.disks {
            disk.heal();
            if power_loss {
                disk.power_loss();
            } else {
                disk.process_restart();
            }
            // They are made again with the same answers.
            if self.random.one_in(4) {
                let files = disk.files();
                let sides = files.iter().filter(|name| name.ends_with(".side"));
                sides.for_each(|name| disk.remove_file(name));
            }
        }
    }

    /// Reads everything, as a reader of that isolation does.
    fn contents(store: &Store, isolation: Isolation, note: &str) -> Vec<Vec<String>> {
        let read = |number| Self::read(store, number, isolation);
        (0..PARTITIONS)
            .map(|at| read(at).unwrap_or_else(|error| panic!("{note}: {error:?}")))
            .collect()
    }

    fn read(store: &Store, number: u32, isolation: Isolation) -> Result<Vec<String>, Error> {
        let partition = store.partition("t", number)?;
        let (mut offset, mut values) = (partition.log_start_offset(), Vec::new());
        loop {
            let options = ReadOptions::new().isolation(isolation).max_bytes(700);
            let records = partition.read(offset, options)?;
            values.extend(records.iter().map(|record| text_of(record.value())));
            if records.next_offset() == offset {
                return Ok(values);
            }
            offset = records.next_offset();
        }
    }

    fn judge(&mut self, power_loss: bool, note: &str) {
        let store = self.open().unwrap_or_else(|error| panic!("{note}: {error}"));
        for _ in 0..80 {
            self.clock.advance(SECOND);
            store.run_background();
        }
        for number in 0..PARTITIONS {
            let partition = store.partition("t", number);
            let partition = partition.unwrap_or_else(|error| panic!("{note}: {error:?}"));
            let (stable, high) = (partition.last_stable_offset(), partition.high_watermark());
            assert_eq!(stable, high, "{note}: the last stable offset of {number} stands still");
        }
        let committed = Self::contents(&store, Isolation::ReadCommitted, note);
        let seen: Vec<BTreeSet<&String>> =
            committed.iter().map(|all| all.iter().collect()).collect();
        for (all, once) in committed.iter().zip(&seen) {
            assert_eq!(all.len(), once.len(), "{note}: doubled");
        }
        let may_lose = power_loss && self.flush == Flush::Os;
        for sent in &self.sent {
            let kept = |value: &&String| !self.deleted.contains(*value);
            let shown: Vec<bool> = sent
                .values
                .iter()
                .flat_map(|(at, values)| {
                    values.iter().filter(kept).map(|value| seen[*at as usize].contains(value))
                })
                .collect();
            let (all, none) = (shown.iter().all(|seen| *seen), !shown.iter().any(|seen| *seen));
            if may_lose {
                continue; // each partition may have lost a suffix of its own
            }
            assert!(all || none, "{note}: torn: {sent:?}");
            match sent.told {
                Told::Committed => assert!(all, "{note}: committed and not seen: {sent:?}"),
                Told::Aborted => assert!(none, "{note}: aborted and seen: {sent:?}"),
                Told::Nothing => {}
            }
            let outcome = sent.id.map(|id| store.transaction_outcome(id));
            match outcome {
                Some(Ok(TransactionOutcome::Committed)) => assert!(all, "{note}: {sent:?}"),
                Some(Ok(TransactionOutcome::Aborted)) => {
                    assert!(none, "{note}: {sent:?}");
                }
                Some(Ok(TransactionOutcome::Open)) => panic!("{note}: still open: {sent:?}"),
                _ => {}
            }
        }
        for (partition, values) in committed.iter().enumerate() {
            for sent in &self.sent {
                let Some(own) = sent.values.get(&u32::try_from(partition).unwrap()) else {
                    continue;
                };
                let found: Vec<_> = values.iter().filter(|value| own.contains(value)).collect();
                if found.len() == own.len() {
                    assert!(found.into_iter().eq(own.iter()), "{note}: out of order: {sent:?}");
                }
            }
        }
        if !may_lose {
            for (partition, value) in &self.plain {
                let kept = !self.deleted.contains(value);
                assert!(
                    !kept || seen[*partition as usize].contains(value),
                    "{note}: {value} is lost"
                );
            }
        }
        // It still works; where a power loss took decisions, from the second holder on.
        let value = (0..3).find_map(|_| self.put_everywhere(&store).ok());
        let value = value.unwrap_or_else(|| panic!("{note}: nothing can be committed"));
        for all in Self::contents(&store, Isolation::ReadCommitted, note) {
            assert_eq!(all.last(), Some(&value), "{note}");
        }
        store.close(SECOND * 5).unwrap();
    }
}

fn text_of(value: Option<&[u8]>) -> String {
    String::from_utf8(value.unwrap().to_vec()).unwrap()
}

#[test]
fn stories_of_transactions_are_never_torn_doubled_or_stuck() {
    let (first, stories) = (setting("ONCELOG_SEED", 1), setting("ONCELOG_STORIES", 60));
    for seed in first..first + stories {
        let replay = format!(
            "ONCELOG_SEED={seed} ONCELOG_STORIES=1 cargo test --all-features --test simulated transactions"
        );
        let mut world = World::new(seed);
        for chapter in 0..3 {
            let note = format!("chapter {chapter}; replay with: {replay}");
            let crashes = !world.random.one_in(4);
            world.live(crashes);
            let power_loss = world.random.one_in(2);
            world.end(power_loss);
            world.judge(power_loss, &note);
            if power_loss && world.flush == Flush::Os {
                // What is left of them by now may be anything; new ones are judged anew.
                world.sent.clear();
                world.plain.clear();
            }
        }
    }
}
