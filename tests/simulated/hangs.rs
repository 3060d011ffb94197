//! Disks that hang and are slow, at random (S22): stories of a store with threads. What is done, and when, comes from
//! the seed; how the threads meet does not, so a story that failed may have to be told again.
//!
//! Never more than one disk hangs, so that everything acknowledged is on another. The judge knows only what the store
//! acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use oncelog::simulation::{Hang, SimDisk};
use oncelog::{
    Acks, DiskId, DiskState, Error, Flush, Partition, Record, Store, TopicConfig, VerifyOptions,
    Written,
};

use crate::attempts::Attempts;
use crate::hanging_disk::{Hanging, LONG};
use crate::random::{Random, setting, tell};

/// Much longer than a healthy machine that is busy elsewhere takes for a call.
const ATTEMPTS: Attempts = Attempts { spread: 611 };
const LAG: Duration = Duration::from_millis(900);
const TIMEOUT: Duration = Duration::from_secs(8);
const PARTITIONS: u32 = 3;
const STORIES_AT_ONCE: u64 = 8;
const FILE_HEADER_BYTES: usize = 64;

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < LONG, "{what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// What is known of one partition.
#[derive(Default)]
struct Known {
    /// Acknowledged: offset to attempt.
    kept: BTreeMap<u64, u64>,
    /// Attempts that may be in the log, and where nobody has said.
    unknown: BTreeSet<u64>,
}

struct World {
    disks: Vec<SimDisk>,
    hung: Option<Hanging>,
    flush: Flush,
    min_insync: u16,
    attempts: u64,
    known: Vec<Known>,
    trace: bool,
}

impl World {
    fn new(seed: u64, random: &mut Random) -> Self {
        let disks: Vec<_> =
            (0..2 + random.below(2)).map(|at| SimDisk::new(seed * 10 + at)).collect();
        for disk in &disks[1..] {
            disk.share_process(&disks[0]);
        }
        let flush = [Flush::OnAck, Flush::OnAck, Flush::Os, Flush::Interval(LAG)][random.index(4)];
        // Two of two are not left when one hangs.
        let min_insync = if disks.len() == 3 { 1 + random.below(2) } else { 1 };
        Self {
            disks,
            hung: None,
            flush,
            min_insync: u16::try_from(min_insync).unwrap(),
            attempts: 0,
            known: (0..PARTITIONS).map(|_| Known::default()).collect(),
            trace: std::env::var_os("ONCELOG_TRACE").is_some(),
        }
    }

    fn note(&self, what: &str) {
        if self.trace {
            eprintln!("{what}");
        }
    }

    fn open(&self) -> Store {
        let builder = Store::builder().replica_lag_max(LAG).append_timeout(TIMEOUT);
        let all = self.disks.iter().fold(builder, |all, disk| all.simulated_disk(disk.clone()));
        all.threads().open().unwrap()
    }

    fn all(store: &Store) -> Vec<Partition> {
        (0..PARTITIONS).map(|number| store.partition("t", number).unwrap()).collect()
    }

    fn values(&mut self, count: u64) -> Vec<(u64, Vec<u8>)> {
        let first = self.attempts;
        self.attempts += count;
        (first..first + count).map(|attempt| (attempt, ATTEMPTS.value(attempt))).collect()
    }

    fn note_outcome(
        &mut self,
        partition: &Partition,
        values: &[(u64, Vec<u8>)],
        outcome: Result<u64, Error>,
    ) {
        let number = partition.name().partition() as usize;
        self.note(&format!("append to {number}: {outcome:?}, led by {:?}", partition.leader()));
        let known = &mut self.known[number];
        match outcome {
            Ok(first) => {
                let placed = values.iter().zip(first..).map(|((attempt, _), at)| (at, *attempt));
                known.kept.extend(placed);
            }
            Err(error) if error.written() == Written::No => {}
            Err(_) => known.unknown.extend(values.iter().map(|(attempt, _)| *attempt)),
        }
    }

    fn append(&mut self, partition: &Partition, random: &mut Random) {
        let values = self.values(1 + random.below(4));
        let records: Vec<_> = values.iter().map(|(_, value)| Record::new(value)).collect();
        let acks = if random.below(5) == 0 { Acks::Leader } else { Acks::All };
        let started = Instant::now();
        let outcome = partition.append(&records, acks).map(|appended| appended.offsets.start.0);
        assert!(started.elapsed() < TIMEOUT * 2, "every wait ends: {:?}", started.elapsed());
        self.note_outcome(partition, &values, outcome);
    }

    /// A disk that answers late: appends gather, and are acknowledged when it does.
    fn be_slow(&mut self, all: &[Partition], random: &mut Random) {
        let disk = random.index(self.disks.len());
        self.note(&format!("disk {disk} is slow"));
        let hanging = Hanging::new(&self.disks[disk], Hang::Syncs);
        let mut tickets = Vec::new();
        for _ in 0..1 + random.below(6) {
            let partition = &all[random.index(all.len())];
            let values = self.values(1 + random.below(3));
            let records: Vec<_> = values.iter().map(|(_, value)| Record::new(value)).collect();
            match partition.append_nowait(&records, Acks::All) {
                Ok(ticket) => tickets.push((partition, values, ticket)),
                Err(error) => self.note_outcome(partition, &values, Err(error)),
            }
        }
        hanging.heal();
        for (partition, values, ticket) in tickets {
            let outcome = ticket.wait(TIMEOUT).map(|appended| appended.offsets.start.0);
            self.note_outcome(partition, &values, outcome);
        }
    }

    /// Whether a disk may be in trouble: there is none, and every replica has everything.
    fn is_well(&self, all: &[Partition]) -> bool {
        let disks = self.disks.len();
        self.hung.is_none() && all.iter().all(|all| all.in_sync_replicas().len() == disks)
    }

    fn hang(&mut self, random: &mut Random) {
        let disk = random.index(self.disks.len());
        let hang = if random.below(3) == 0 { Hang::Syncs } else { Hang::Everything };
        self.note(&format!("disk {disk} hangs: {hang:?}"));
        self.hung = Some(Hanging::new(&self.disks[disk], hang));
    }

    /// The faults have ended: all replicas are in sync within a bounded time.
    fn heal(&mut self, store: &Store, all: &[Partition]) {
        self.note("heal");
        self.hung = None;
        self.disks.iter().for_each(SimDisk::heal);
        let disks = self.disks.len();
        let started = Instant::now();
        wait_until("all replicas are in sync again", || {
            if self.trace && started.elapsed() > LONG / 2 {
                store.events().for_each(|event| eprintln!("event: {event}"));
                let ends =
                    all.iter().map(|p| (p.leader(), p.in_sync_replicas(), p.log_end_offset()));
                eprintln!("{:?} {:?}", ends.collect::<Vec<_>>(), store.disks());
            }
            for (disk, at) in store.disks().iter().zip(0..) {
                if let DiskState::Offline { .. } = disk.state {
                    let _ = store.start_disk(DiskId(at));
                }
            }
            all.iter().all(|partition| partition.in_sync_replicas().len() == disks)
        });
        let next: Vec<_> = all
            .iter()
            .map(|partition| {
                let values = self.values(1);
                let appended = partition.append(&[Record::new(&values[0].1)], Acks::All);
                (values, appended.map(|appended| appended.offsets.start.0).unwrap())
            })
            .collect();
        for (partition, (values, first)) in all.iter().zip(next) {
            self.note_outcome(partition, &values, Ok(first));
            assert_eq!(partition.high_watermark(), partition.log_end_offset());
        }
    }

    /// Reads everything and compares. `lossy`: a suffix may be gone.
    fn judge(&mut self, all: &[Partition], lossy: bool) {
        for (partition, known) in all.iter().zip(&mut self.known) {
            let (found, offset) = ATTEMPTS.read(partition);
            assert_eq!(offset, partition.high_watermark(), "INV-01");
            if lossy {
                known.kept.split_off(&offset.0);
            }
            for (at, attempt) in &known.kept {
                assert_eq!(found.get(at), Some(attempt), "INV-02: {at} is lost, end {offset}");
            }
            for (at, attempt) in &found {
                let expected = known.kept.get(at) == Some(attempt);
                assert!(
                    expected || known.unknown.contains(attempt),
                    "{attempt} at {at} is invented"
                );
            }
            let attempts: BTreeSet<_> = found.values().collect();
            assert_eq!(attempts.len(), found.len(), "nothing is there twice");
            known.kept = found;
        }
    }

    /// The store is closed: all replicas of a partition are the same, byte by byte.
    fn compare(&self) {
        let logs: Vec<_> = self.disks.iter().map(logs_of).collect();
        for (disk, logs_there) in logs.iter().enumerate().skip(1) {
            assert_eq!(logs[0].keys().collect::<Vec<_>>(), logs_there.keys().collect::<Vec<_>>());
            for (name, bytes) in logs_there {
                assert!(logs[0][name] == *bytes, "{name} on disk {disk} differs");
            }
        }
    }

    fn tell(&mut self, random: &mut Random) {
        let config = TopicConfig::new()
            .partitions(PARTITIONS)
            .replication_factor(u16::try_from(self.disks.len()).unwrap())
            .min_insync_replicas(self.min_insync)
            .flush(self.flush)
            .segment_bytes(4096)
            .index_interval_bytes(256);
        let store = self.open();
        store.create_topic("t", config).unwrap();
        drop(store);
        for _ in 0..2 {
            let store = self.open();
            let all = Self::all(&store);
            for _ in 0..2 {
                for _ in 0..random.below(30) {
                    match random.below(10) {
                        0 if self.is_well(&all) => self.be_slow(&all, random),
                        1 if self.is_well(&all) => self.hang(random),
                        _ => self.append(&all[random.index(all.len())], random),
                    }
                    if self.hung.is_some() && random.below(12) == 0 {
                        break;
                    }
                }
                if self.is_well(&all) {
                    self.hang(random);
                    self.append(&all[random.index(all.len())], random);
                }
                if self.hung.is_none() || random.below(2) == 0 {
                    self.heal(&store, &all);
                    self.judge(&all, false);
                    let report = store.verify(VerifyOptions::new()).unwrap();
                    assert_eq!(report.damages, []);
                }
            }
            let crashes = self.hung.is_some();
            if crashes {
                // The process dies while a call hangs: what that does when it returns is no more than a dead one does.
                self.note("the process dies");
                self.disks.iter().for_each(SimDisk::kill);
            }
            self.disks.iter().for_each(SimDisk::heal);
            let started = Instant::now();
            let closed = store.close(LONG);
            assert!(started.elapsed() < LONG, "{closed:?}");
            drop((all, store));
            if !crashes {
                assert!(closed.is_ok(), "{closed:?}");
                self.compare();
            }
            let power = crashes && random.below(2) == 0;
            self.note(&format!("closed, crashes {crashes}, power {power}"));
            for disk in &self.disks {
                if power {
                    disk.power_loss();
                } else {
                    disk.process_restart();
                }
            }
            self.hung = None;
            let store = self.open();
            let all = Self::all(&store);
            self.heal(&store, &all);
            self.judge(&all, power && self.flush != Flush::OnAck);
            let report = store.verify(VerifyOptions::new()).unwrap();
            assert_eq!(report.damages, []);
            store.close(LONG).unwrap();
            drop((all, store));
            self.compare();
        }
    }
}

/// The batches of each partition, one behind the other. Where a segment ends, the next one's name says.
fn logs_of(disk: &SimDisk) -> BTreeMap<String, Vec<u8>> {
    let mut segments = BTreeMap::<String, Vec<(u64, Vec<u8>)>>::new();
    for path in disk.files() {
        let Some((directory, name)) = path.rsplit_once('/') else { continue };
        let base = name.strip_suffix(".log").and_then(|base| base.parse().ok());
        if let Some(base) = base.filter(|_| directory.contains("-t/")) {
            segments.entry(directory.to_owned()).or_default().push((base, disk.read_file(&path)));
        }
    }
    assert_eq!(segments.len(), PARTITIONS as usize, "{:?}", disk.files());
    segments
        .into_iter()
        .map(|(directory, segments)| {
            let mut log = Vec::new();
            for (at, (_, bytes)) in segments.iter().enumerate() {
                let next = segments.get(at + 1).map_or(u64::MAX, |(base, _)| *base);
                let mut rest = &bytes[FILE_HEADER_BYTES.min(bytes.len())..];
                while rest.len() > 24 {
                    let len = u32::from_le_bytes(*rest[4..].first_chunk().unwrap()) as usize;
                    let base = u64::from_le_bytes(*rest[16..].first_chunk().unwrap());
                    if len == 0 || base >= next {
                        break;
                    }
                    log.extend_from_slice(&rest[..len]);
                    rest = &rest[len..];
                }
            }
            (directory, log)
        })
        .collect()
}

fn tell_story(seed: u64) {
    let mut random = Random(seed);
    let mut world = World::new(seed, &mut random);
    let what =
        format!("{} disks, {:?}, min in-sync {}", world.disks.len(), world.flush, world.min_insync);
    tell(seed, &what, || world.tell(&mut random));
}

#[test]
fn s22_random_stories_of_disks_that_hang_lose_nothing_and_end() {
    let (first, count) = (setting("ONCELOG_SEED", 1), setting("ONCELOG_STORIES", 32));
    // They wait most of the time.
    std::thread::scope(|scope| {
        for lane in 0..STORIES_AT_ONCE.min(count) {
            scope.spawn(move || {
                (first + lane..first + count)
                    .step_by(usize::try_from(STORIES_AT_ONCE).unwrap())
                    .for_each(tell_story);
            });
        }
    });
}
