//! Views that are kept, and fresh ones, after every step of random stories: appends, transactions, deletions, other leaders,
//! moves, repairs, modes that change, closes, deaths at any call, power losses.
//!
//! Whatever a view shows was not refused, and stays at its place; no end goes backwards; nothing that was acknowledged is left
//! out, and nothing that was aborted is in; a fresh one ends where its owner does. `ONCELOG_SEED`, `ONCELOG_STORIES`,
//! `ONCELOG_TRACE`

use std::collections::BTreeMap;
use std::time::Duration;

use oncelog::simulation::{Clock, SimDisk};
use oncelog::{
    Acks, Compression, DiskId, Error, Flush, Isolation, Offset, Partition, ReadOptions, Record,
    StorageMode, Store, StoreBuilder, Timestamp, TopicConfig, VerifyOptions, Written,
};

use crate::random::{Random, setting, tell};

const SECOND: Duration = Duration::from_secs(1);
const BOTH: [Isolation; 2] = [Isolation::ReadUncommitted, Isolation::ReadCommitted];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Nobody was told what became of it.
    Unknown,
    /// It is there if it was not lost with a leader that nobody had followed.
    Led,
    /// Its transaction goes on.
    Open,
    Kept,
    Aborted,
    Refused,
}

/// What is known of a partition, of one topic of all that have borne its name.
#[derive(Debug, Default)]
struct Model {
    /// By its offset, what was acknowledged.
    kept: BTreeMap<u64, u64>,
    shown: BTreeMap<u64, u64>,
    ends: [u64; 2],
}

/// A view that is kept, and whose partition it is.
struct Held {
    partition: Partition,
    place: Place,
    age: u64,
    /// Where it has ended: it may hear of another leader a moment later than others.
    ends: [u64; 2],
}

/// Topic, which of those with its name, and number.
type Place = (&'static str, u64, u32);

struct World {
    disks: Vec<SimDisk>,
    clock: Clock,
    flush: Flush,
    mode: StorageMode,
    store: Option<Store>,
    reader: Option<Store>,
    held: Vec<Held>,
    models: BTreeMap<Place, Model>,
    fates: Vec<Fate>,
    /// How many topics have had the name, and how many partitions the last one has.
    topics: BTreeMap<&'static str, (u64, u32)>,
    /// May be other than there: a change of it failed.
    in_doubt: bool,
    /// A call of the owner's is to kill it: no view may make that call.
    is_armed: bool,
    /// No page counts until the next opening: of several replicas a view takes for acknowledged what the leader's files have.
    has_no_page: bool,
    step: u64,
    trace: bool,
}

impl World {
    fn new(seed: u64, random: &mut Random) -> Self {
        let count = [1, 2, 3][random.index(3)];
        let disks: Vec<_> = (0..count).map(|at| SimDisk::new(seed * 10 + at)).collect();
        disks[1..].iter().for_each(|disk| disk.share_process(&disks[0]));
        let mut world = Self {
            disks,
            clock: Clock::manual(Timestamp(1_000_000)),
            flush: [Flush::OnAck, Flush::Os][random.index(2)],
            mode: [StorageMode::Auto, StorageMode::Auto, StorageMode::Write][random.index(3)],
            store: None,
            reader: None,
            held: Vec::new(),
            models: BTreeMap::new(),
            fates: Vec::new(),
            topics: BTreeMap::new(),
            in_doubt: false,
            is_armed: false,
            has_no_page: false,
            step: 0,
            trace: std::env::var_os("ONCELOG_TRACE").is_some(),
        };
        world.open();
        for name in ["a", "b"] {
            world.create(name).unwrap();
        }
        world
    }

    fn note(&self, what: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{}: {}", self.step, what());
        }
    }

    fn builder(&self) -> StoreBuilder {
        let builder = Store::builder()
            .clock(self.clock.clone())
            .storage_mode(self.mode)
            .append_timeout(Duration::from_millis(20));
        self.disks.iter().fold(builder, |all, disk| all.simulated_disk(disk.clone()))
    }

    fn open(&mut self) {
        self.store = Some(self.builder().open().unwrap());
        self.has_no_page = false;
        self.note(|| format!("open {:?}", self.mode));
    }

    fn create(&mut self, name: &'static str) -> Result<(), Error> {
        let replicas = u16::try_from(self.disks.len().min(3)).unwrap();
        let config = TopicConfig::new()
            .replication_factor(replicas)
            .min_insync_replicas(replicas.min(2))
            .flush(self.flush)
            .segment_bytes(16 << 10);
        self.store.as_ref().unwrap().create_topic(name, config)?;
        let (age, count) = self.topics.entry(name).or_default();
        (*age, *count) = (*age + 1, 1);
        Ok(())
    }

    fn place(&self, name: &'static str, number: u32) -> Place {
        (name, self.topics[name].0, number)
    }

    fn any(&self, random: &mut Random) -> (&'static str, u32) {
        let name = ["a", "b"][random.index(2)];
        (name, u32::try_from(random.below(self.topics[name].1.into())).unwrap())
    }

    fn values(&mut self, random: &mut Random, fate: Fate) -> Vec<(u64, String)> {
        let count = 1 + random.below(3);
        let values = (0..count).map(|_| {
            self.fates.push(fate);
            let id = self.fates.len() as u64 - 1;
            let len = if random.one_in(100) { 1_200_000 } else { random.index(900) };
            (id, format!("{id} {}", "x".repeat(len)))
        });
        values.collect()
    }

    /// What the call answered, as long as its process lives.
    fn lives(&self) -> bool {
        !self.disks[0].is_dead()
    }

    fn append(&mut self, random: &mut Random) -> Result<(), Error> {
        let (name, number) = self.any(random);
        // Without a page a view takes all that it finds for acknowledged.
        let leads = random.one_in(4) && self.mode != StorageMode::Write;
        let acks = if leads { Acks::Leader } else { Acks::All };
        let values = self.values(random, Fate::Unknown);
        let partition = self.store.as_ref().unwrap().partition(name, number)?;
        let records: Vec<_> = values.iter().map(|(_, value)| Record::new(value)).collect();
        let told = partition.append(&records, acks);
        self.note(|| format!("append {name}/{number} {acks:?} {told:?} of {:?}", values[0].0));
        let fate = match &told {
            _ if !self.lives() => Fate::Unknown,
            Ok(_) if acks == Acks::All => Fate::Kept,
            Ok(_) => Fate::Led,
            Err(error) if error.written() == Written::No => Fate::Refused,
            Err(_) => Fate::Unknown,
        };
        let place = self.place(name, number);
        for (at, (id, _)) in values.iter().enumerate() {
            self.fates[usize::try_from(*id).unwrap()] = fate;
            if fate == Fate::Kept {
                let offset = told.as_ref().unwrap().offsets.start.0 + at as u64;
                self.models.entry(place).or_default().kept.insert(offset, *id);
            }
        }
        told.map(drop)
    }

    fn transact(&mut self, random: &mut Random) -> Result<(), Error> {
        let store = self.store.clone().unwrap();
        let codec = [Compression::None, Compression::Lz4][random.index(2)];
        let id = ["x", "y"][random.index(2)];
        let mut producer = store.producer().transactional_id(id).compression(codec).build()?;
        let mut transaction = producer.begin()?;
        let (mut all, mut placed) = (Vec::new(), Vec::new());
        let mut outcome = Ok(());
        for _ in 0..1 + random.below(12) {
            let (name, number) = self.any(random);
            let values = self.values(random, Fate::Open);
            all.extend(values.iter().map(|(id, _)| *id));
            let records: Vec<_> = values.iter().map(|(_, value)| Record::new(value)).collect();
            match transaction.append(name, number, &records) {
                Ok(appended) => {
                    let first = appended.start.0;
                    let offsets = values.iter().zip(first..).map(|((id, _), at)| (at, *id));
                    placed.extend(offsets.map(|(at, id)| (self.place(name, number), at, id)));
                }
                Err(error) => outcome = Err(error),
            }
            if random.one_in(4) && self.lives() {
                self.look(random);
            }
            if random.one_in(3) && self.lives() {
                let _ = self.append(random);
            }
        }
        let aborts = outcome.is_err() || random.one_in(2);
        let ended = if aborts { transaction.abort(SECOND) } else { transaction.commit(SECOND) };
        self.note(|| format!("transaction of {all:?}, aborts: {aborts}, {ended:?}"));
        let fate = match (&ended, aborts) {
            _ if !self.lives() => {
                if aborts {
                    Fate::Aborted
                } else {
                    Fate::Unknown
                }
            }
            (_, true) => Fate::Aborted,
            (Ok(()), false) => Fate::Kept,
            (Err(_), false) => Fate::Unknown,
        };
        for id in all {
            self.fates[usize::try_from(id).unwrap()] = fate;
        }
        if fate == Fate::Kept {
            for (place, offset, id) in placed {
                self.models.entry(place).or_default().kept.insert(offset, id);
            }
        }
        outcome.and(ended)
    }

    fn act(&mut self, random: &mut Random) -> Result<(), Error> {
        let store = self.store.clone().unwrap();
        let disk = DiskId(u16::try_from(random.index(self.disks.len())).unwrap());
        match random.below(22) {
            0..=6 => self.append(random),
            7..=9 => self.transact(random),
            10 | 11 => {
                let (name, number) = self.any(random);
                let partition = store.partition(name, number)?;
                let end = partition.high_watermark().0;
                let start = partition.log_start_offset().0;
                let until =
                    if random.one_in(3) { end } else { start + random.below(end + 1 - start) };
                let told = partition.delete_records(Offset(until));
                self.note(|| format!("delete {name}/{number} below {until}: {told:?}"));
                told.map(drop)
            }
            12 | 13 if self.disks.len() > 1 => {
                self.forget_believed();
                let told = store.stop_disk(disk);
                self.note(|| format!("stop {disk:?}: {told:?}"));
                store.run_background();
                told
            }
            12..=15 if self.disks.len() > 1 => {
                self.forget_believed();
                let told = store.start_disk(disk);
                self.note(|| format!("start {disk:?}: {told:?}"));
                store.run_background();
                told
            }
            16 => {
                let name = ["a", "b"][random.index(2)];
                let before = std::mem::replace(&mut self.in_doubt, true);
                let told = store.delete_topic(name).and_then(|()| self.create(name));
                self.note(|| format!("topic {name} anew: {told:?}"));
                self.in_doubt = before || told.is_err();
                told
            }
            17 => {
                let name = ["a", "b"][random.index(2)];
                let total = self.topics[name].1 + 1;
                if total > 3 {
                    return Ok(());
                }
                let before = std::mem::replace(&mut self.in_doubt, true);
                store.add_partitions(name, total)?;
                self.topics.get_mut(name).unwrap().1 = total;
                self.note(|| format!("{name} has {total} partitions"));
                self.in_doubt = before;
                Ok(())
            }
            18 if self.disks.len() > 2 => {
                let (name, number) = self.any(random);
                let mut disks: Vec<_> = (0..3).map(DiskId).collect();
                disks.rotate_left(random.index(3));
                disks.truncate(2 + random.index(2));
                self.forget_believed();
                let told = store.reassign(name, number, &disks);
                self.note(|| format!("{name}/{number} to {disks:?}: {told:?}"));
                store.run_background();
                told
            }
            19 if self.disks.len() > 1 => {
                self.damage(random);
                Ok(())
            }
            _ => {
                self.clock.advance(SECOND);
                store.run_background();
                Ok(())
            }
        }
    }

    /// A byte of some record in a sealed segment is another; who reads it has it repaired.
    fn damage(&mut self, random: &mut Random) {
        let disk = &self.disks[random.index(self.disks.len())];
        let mut logs = disk.files();
        logs.retain(|name| {
            name.ends_with(".log") && (name.contains("-a/0/") || name.contains("-b/0/"))
        });
        let Some(at) = logs.len().checked_sub(2) else { return };
        if logs[at].rsplit_once('/').unwrap().0 != logs[at + 1].rsplit_once('/').unwrap().0 {
            return;
        }
        let mut bytes = disk.read_file(&logs[at]);
        let position = 200 + random.index(2000);
        if bytes.len() <= position {
            return;
        }
        bytes[position] ^= 1;
        disk.write_file(&logs[at], &bytes);
        let store = self.store.as_ref().unwrap();
        let report = store.verify(VerifyOptions::new().repair(true)).unwrap();
        // A disk that is not in service is not looked at.
        let repaired =
            !report.damages.is_empty() && report.damages.iter().all(|damage| damage.repaired);
        self.note(|| format!("damage {} at {position}: {report:?}", logs[at]));
        if !repaired {
            bytes[position] ^= 1;
            disk.write_file(&logs[at], &bytes);
        }
    }

    /// The process stops in some way, and another begins.
    fn restart(&mut self, random: &mut Random) {
        let how = random.below(4);
        self.note(|| format!("restart {how}"));
        let store = self.store.take();
        match how {
            0 => {
                let store = store.unwrap();
                let told = store.close(SECOND);
                self.note(|| format!("close: {told:?}"));
            }
            1 => drop(store),
            _ => {
                self.disks[0].kill();
                drop(store);
                self.disks.iter().for_each(SimDisk::heal);
                if how == 3 && self.flush == Flush::OnAck {
                    // Nobody looks on.
                    self.held.clear();
                    self.reader = None;
                    self.has_no_page = self.disks.len() > 1;
                    self.disks.iter().for_each(SimDisk::power_loss);
                } else {
                    self.disks.iter().for_each(SimDisk::process_restart);
                }
            }
        }
        if self.disks.iter().any(SimDisk::is_dead) {
            self.disks.iter().for_each(SimDisk::heal);
            self.disks.iter().for_each(SimDisk::process_restart);
        }
        self.after_stop(random);
    }

    /// Views have believed the leader's files, and the others may lack what had not come to theirs.
    fn forget_ends(&mut self) {
        self.models.values_mut().for_each(|model| model.ends = [0; 2]);
    }

    /// So it is where another may lead, if there are no pages.
    fn forget_believed(&mut self) {
        if self.mode == StorageMode::Write && self.disks.len() > 1 {
            self.forget_ends();
        }
    }

    fn after_stop(&mut self, random: &mut Random) {
        if random.one_in(2) {
            self.look(random);
        }
        let was_believed = self.mode == StorageMode::Write && self.disks.len() > 1;
        self.forget_believed();
        if random.one_in(3) {
            self.mode = [StorageMode::Auto, StorageMode::Write][random.index(2)];
        }
        if random.one_in(4) {
            // It dies amid the opening, too.
            self.disks[random.index(self.disks.len())].crash_at(1 + random.below(200));
            let opened = self.builder().open();
            let died = !self.lives();
            self.disks[0].kill();
            drop(opened);
            self.disks.iter().for_each(SimDisk::heal);
            self.disks.iter().for_each(SimDisk::process_restart);
            self.note(|| format!("died amid the opening: {died}"));
            self.look(random);
        }
        if was_believed {
            self.forget_ends();
        }
        self.open();
        if self.in_doubt {
            self.learn_topics();
        }
    }

    /// They may be others: what is known of them counts no more.
    fn learn_topics(&mut self) {
        self.in_doubt = false;
        self.held.clear();
        let described = self.store.as_ref().unwrap().topics();
        for name in ["a", "b"] {
            match described.iter().find(|topic| topic.name == name) {
                Some(topic) => {
                    let age = self.topics[name].0 + 1;
                    self.topics.insert(name, (age, topic.partitions));
                }
                None => self.create(name).unwrap(),
            }
        }
    }

    /// Everybody looks.
    fn look(&mut self, random: &mut Random) {
        if self.in_doubt || self.is_armed || self.has_no_page {
            return;
        }
        if self.reader.is_none() || random.one_in(6) {
            let add = |all: StoreBuilder, disk: &SimDisk| all.simulated_disk(disk.clone());
            let reader = self.disks.iter().fold(Store::builder(), add).open_read_only();
            self.reader = Some(reader.unwrap());
        }
        let reader = self.reader.clone().unwrap();
        for at in 0..self.held.len() {
            let (partition, place) = (self.held[at].partition.clone(), self.held[at].place);
            let is_gone = self.topics[place.0].0 != place.1;
            let mut ends = self.held[at].ends;
            let told = self.see(&partition, place, &mut ends);
            self.held[at].ends = ends;
            match told {
                Err(Error::NoLeader { .. }) => {}
                Err(Error::UnknownTopicOrPartition { .. }) if is_gone => {}
                told => told.unwrap_or_else(|error| {
                    panic!("kept since {}, {place:?}: {error:?}", self.held[at].age)
                }),
            }
        }
        self.held.retain(|held| self.topics[held.place.0].0 == held.place.1);
        let names: Vec<_> = self.topics.iter().map(|(name, (_, count))| (*name, *count)).collect();
        for (name, number) in
            names.iter().flat_map(|(name, count)| (0..*count).map(|at| (*name, at)))
        {
            let place = self.place(name, number);
            let owner = self.store.as_ref().and_then(|store| store.partition(name, number).ok());
            let leads = owner.as_ref().is_some_and(|owner| owner.leader().is_some());
            let before = owner.as_ref().map(|it| (it.high_watermark(), it.last_stable_offset()));
            let partition = match reader.partition(name, number) {
                Err(Error::NoLeader { .. }) if !leads => continue,
                viewed => viewed.unwrap_or_else(|error| panic!("fresh, {place:?}: {error:?}")),
            };
            let mut shown = self.models.entry(place).or_default().ends;
            let told = self.see(&partition, place, &mut shown);
            self.models.entry(place).or_default().ends = shown;
            match told {
                Err(Error::NoLeader { .. }) if !leads => continue,
                told => told.unwrap_or_else(|error| panic!("fresh, {place:?}: {error:?}")),
            }
            if let Some((high, stable)) = before.filter(|_| leads) {
                let ends = (partition.high_watermark(), partition.last_stable_offset());
                if self.mode == StorageMode::Write {
                    // Without a page the markers tell what is decided, which follow the decision.
                    assert!(ends.0 >= high, "{place:?}: {ends:?}, {high:?}");
                } else {
                    assert_eq!(ends, (high, stable), "{place:?}");
                }
            }
            if self.held.len() < 5 && random.one_in(4) {
                self.held.push(Held { partition, place, age: self.step, ends: shown });
            }
        }
        if self.held.len() == 5 && random.one_in(3) {
            self.held.swap_remove(random.index(5));
        }
        if random.one_in(20) {
            let report = reader.verify(VerifyOptions::new()).unwrap();
            assert_eq!(report.damages, [], "a view verifies");
        }
    }

    /// One view, at both isolations, from the log's start on.
    fn see(
        &mut self,
        partition: &Partition,
        place: Place,
        ends: &mut [u64; 2],
    ) -> Result<(), Error> {
        let model = self.models.entry(place).or_default();
        for (which, isolation) in BOTH.into_iter().enumerate() {
            let mut start = partition.log_start_offset().0;
            // Of one that learns nothing any more these are of then.
            let end = match isolation {
                Isolation::ReadUncommitted => partition.high_watermark().0,
                Isolation::ReadCommitted => partition.last_stable_offset().0,
            };
            let (mut next, mut seen) = (start, BTreeMap::new());
            let options = ReadOptions::new().isolation(isolation).max_bytes(3000);
            while next < end {
                let records = match partition.read(Offset(next), options) {
                    Err(Error::OffsetOutOfRange { start: now, .. }) if now.0 > next => {
                        (start, next) = (now.0, now.0);
                        seen.clear();
                        continue;
                    }
                    read => read?,
                };
                for record in &records {
                    let value = std::str::from_utf8(record.value().unwrap()).unwrap();
                    let id: u64 = value.split(' ').next().unwrap().parse().unwrap();
                    assert!(record.offset().0 >= next, "{place:?}: {next} comes again");
                    seen.insert(record.offset().0, id);
                }
                assert!(records.next_offset().0 > next, "{place:?}, {isolation:?}: none at {next}");
                next = records.next_offset().0;
            }
            let what = format!("{place:?}, {isolation:?}, {start}..{end}");
            for (offset, id) in &seen {
                let fate = self.fates[usize::try_from(*id).unwrap()];
                assert!(fate != Fate::Refused, "{what}: {id} at {offset} was refused");
                let hidden = which == 1 && matches!(fate, Fate::Aborted | Fate::Open);
                assert!(!hidden, "{what}: {id} at {offset} is {fate:?}");
                let before = model.shown.insert(*offset, *id);
                assert!(
                    before.is_none_or(|before| before == *id),
                    "{what}: {offset} was {before:?}, is {id}"
                );
                let known = model.kept.get(offset);
                assert!(
                    known.is_none_or(|known| known == id),
                    "{what}: {offset} is {known:?}, not {id}"
                );
            }
            for (offset, id) in model.kept.range(start..end.max(start)) {
                assert!(seen.contains_key(offset), "{what}: {id} at {offset} is left out");
            }
            // Asked anew, one that has found another leader answers.
            let _ = partition.read(Offset(end), options)?;
            // Who leads next may have to write a commit's marker anew.
            if which == 0 {
                assert!(end >= ends[which], "{what}: it had been {}", ends[which]);
            }
            ends[which] = ends[which].max(end);
        }
        Ok(())
    }
}

fn story(seed: u64, steps: u64) {
    let mut random = Random(seed);
    let mut world = World::new(seed, &mut random);
    for step in 0..steps {
        world.step = step;
        world.is_armed = random.one_in(12);
        if world.is_armed {
            let disk = random.index(world.disks.len());
            world.disks[disk].crash_at(1 + random.below(40));
        }
        let _ = world.act(&mut random);
        world.is_armed = false;
        if !world.lives() {
            world.note(|| "died".into());
            world.store = None;
            world.disks.iter().for_each(SimDisk::heal);
            world.disks.iter().for_each(SimDisk::process_restart);
            world.after_stop(&mut random);
        } else {
            world.disks.iter().for_each(SimDisk::heal);
            if random.one_in(15) {
                world.restart(&mut random);
            }
        }
        world.look(&mut random);
    }
}

#[test]
fn views_keep_their_word_whatever_their_owner_does() {
    let (first, stories) = (setting("ONCELOG_SEED", 1), setting("ONCELOG_STORIES", 8));
    let steps = setting("ONCELOG_STEPS", 120);
    for seed in first..first + stories {
        tell(seed, "a story of views", || story(seed, steps));
    }
}
