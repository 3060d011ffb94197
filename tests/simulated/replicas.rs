//! Replicas on simulated disks: random stories of appends, crashes, power losses, failing, full and stopped
//! disks. The judge knows only what the store acknowledged.

use std::collections::BTreeMap;
use std::time::Duration;

use oncelog::simulation::{Clock, Fault, SimDisk, SyncFault};
use oncelog::{
    Acks, DiskId, Error, Flush, Partition, Record, Store, Timestamp, TopicConfig, VerifyOptions,
    Written,
};

use crate::attempts::Attempts;
use crate::random::{Random, setting, tell};

const ATTEMPTS: Attempts = Attempts { spread: 61 };
const SECOND: Duration = Duration::from_secs(1);

struct World {
    disks: Vec<SimDisk>,
    /// A disk that is in trouble: at most one at a time, and never all of them.
    troubled: Option<usize>,
    clock: Clock,
    flush: Flush,
    min_insync: u16,
    attempts: u64,
    /// Acknowledged by every in-sync replica: offset to attempt.
    kept: BTreeMap<u64, u64>,
    /// What may be found at an offset.
    possible: BTreeMap<u64, Vec<u64>>,
    /// Whether a flush may have failed since the store was made.
    sync_failed: bool,
    trace: bool,
}

impl World {
    fn new(seed: u64, random: &mut Random) -> Self {
        let disks = 1 + random.below(4).min(2);
        let flush = [Flush::OnAck, Flush::OnAck, Flush::Os, Flush::Interval(SECOND)]
            [usize::try_from(random.below(4)).unwrap()];
        let min_insync = 1 + random.below(disks.min(2));
        let disks: Vec<_> = (0..disks).map(|at| SimDisk::new(seed * 10 + at)).collect();
        for disk in &disks[1..] {
            disk.share_process(&disks[0]);
        }
        Self {
            disks,
            troubled: None,
            clock: Clock::manual(Timestamp(1_000_000)),
            flush,
            min_insync: u16::try_from(min_insync).unwrap(),
            attempts: 0,
            kept: BTreeMap::new(),
            possible: BTreeMap::new(),
            sync_failed: false,
            trace: std::env::var_os("ONCELOG_TRACE").is_some(),
        }
    }

    fn note(&self, what: &str) {
        if self.trace {
            eprintln!("{what}");
        }
    }

    fn open(&self) -> Result<Store, Error> {
        let builder =
            Store::builder().clock(self.clock.clone()).append_timeout(Duration::from_millis(20));
        self.disks.iter().fold(builder, |b, disk| b.simulated_disk(disk.clone())).open()
    }

    fn any_dead(&self) -> bool {
        self.disks.iter().any(SimDisk::is_dead)
    }

    fn append(&mut self, partition: &Partition, random: &mut Random) {
        let count = 1 + random.below(4);
        let values: Vec<_> = (0..count).map(|at| ATTEMPTS.value(self.attempts + at)).collect();
        let records: Vec<_> = values.iter().map(Record::new).collect();
        let acks = if random.below(5) == 0 { Acks::Leader } else { Acks::All };
        let before = partition.log_end_offset().0;
        let outcome = partition.append(&records, acks);
        self.note(&format!(
            "append {acks:?} {count} at {before}: {:?} isr {:?} leader {:?} hw {}",
            outcome.as_ref().map(|a| a.offsets.start.0).map_err(ToString::to_string),
            partition.in_sync_replicas(),
            partition.leader(),
            partition.high_watermark(),
        ));
        let placed = match &outcome {
            Ok(appended) => Some(appended.offsets.start.0),
            Err(Error::NotEnoughReplicasAfterAppend { offsets, .. }) => Some(offsets.start.0),
            Err(Error::TimedOut { appended: Some(offsets), .. }) => Some(offsets.start.0),
            Err(error) => (error.written() != Written::No || self.any_dead()).then_some(before),
        };
        for at in 0..count {
            let attempt = self.attempts + at;
            if let Some(first) = placed {
                self.possible.entry(first + at).or_default().push(attempt);
                // A store through a mapping cannot fail: a dead process may believe that it appended.
                if outcome.is_ok() && acks == Acks::All && !self.any_dead() {
                    self.kept.insert(first + at, attempt);
                }
            }
        }
        self.attempts += count;
    }

    fn trouble(&mut self, store: &Store, partition: &Partition, random: &mut Random) {
        if self.disks.len() == 1 {
            return;
        }
        store.run_background();
        match self.troubled.take() {
            Some(at) => {
                self.disks[at].heal();
                self.disks[at].set_free_bytes(None);
                let outcome = store.start_disk(DiskId(u16::try_from(at).unwrap()));
                self.note(&format!("disk {at} is well: {outcome:?}"));
                if outcome.is_err() {
                    self.troubled = Some(at);
                }
            }
            // Never trouble for a second replica before the first is well.
            None if partition.in_sync_replicas().len() < self.disks.len() => {}
            None => {
                let at = usize::try_from(random.below(self.disks.len() as u64)).unwrap();
                let disk = &self.disks[at];
                match random.below(4) {
                    0 => disk.fail_from(1 + random.below(5), Fault::Eio),
                    1 => disk.set_free_bytes(Some(random.below(3) * 4096)),
                    2 => {
                        disk.fail_sync(1 + random.below(2), SyncFault::CleanedPages);
                        self.sync_failed = true;
                    }
                    _ => {
                        let id = DiskId(u16::try_from(at).unwrap());
                        let outcome = store.stop_disk(id);
                        self.note(&format!("disk {at} stops: {outcome:?}"));
                    }
                }
                self.note(&format!("disk {at} is in trouble"));
                self.troubled = Some(at);
            }
        }
    }

    /// Reads everything that can be read and compares. `lossy`: a suffix may be gone.
    fn judge(&mut self, partition: &Partition, lossy: bool) {
        let (found, offset) = ATTEMPTS.read(partition);
        assert_eq!(offset, partition.high_watermark(), "INV-01");
        for (at, attempt) in &found {
            let possible = self.possible.get(at);
            assert!(possible.is_some_and(|t| t.contains(attempt)), "invented: {attempt} at {at}");
        }
        if lossy {
            self.kept.split_off(&offset.0);
        }
        for (at, attempt) in &self.kept {
            assert_eq!(found.get(at), Some(attempt), "INV-02: {at} is lost, end {offset}");
        }
        for (at, attempt) in found {
            self.possible.insert(at, vec![attempt]);
        }
    }

    /// When the faults have ended, all replicas are in sync again and hold the same.
    fn heal(&mut self, store: &Store, partition: &Partition) {
        if let Some(at) = self.troubled.take() {
            self.disks[at].heal();
            self.disks[at].set_free_bytes(None);
            store.start_disk(DiskId(u16::try_from(at).unwrap())).unwrap();
        }
        // A replica that failed by itself comes back with its disk.
        for at in 0..self.disks.len() {
            let id = DiskId(u16::try_from(at).unwrap());
            if self.disks.len() > 1 && !partition.in_sync_replicas().contains(&id) {
                let _ = store.stop_disk(id);
                let _ = store.start_disk(id);
            }
        }
        for _ in 0..300 {
            self.clock.advance(Duration::from_millis(20));
            store.run_background();
            if partition.in_sync_replicas().len() == self.disks.len()
                && partition.high_watermark() == partition.log_end_offset()
            {
                break;
            }
        }
        let in_sync = partition.in_sync_replicas();
        if self.trace || in_sync.len() < self.disks.len() {
            for event in store.events() {
                eprintln!("event: {event}");
            }
        }
        assert_eq!(in_sync.len(), self.disks.len(), "all are in sync again: {in_sync:?}");
        assert_eq!(partition.high_watermark(), partition.log_end_offset());
        for _ in 0..3 {
            self.clock.advance(Duration::from_secs(6));
            store.run_background();
        }
        assert_eq!(partition.leader(), partition.replicas().first().copied(), "leaders go back");
        assert_eq!(partition.in_sync_replicas().len(), self.disks.len());
        assert_eq!(partition.high_watermark(), partition.log_end_offset());
        // At the `Os` level nobody waits for a flush, and a process that dies before it could write down that
        // one failed leaves pages which the next process cannot know to be lost: a scrub finds them.
        if self.flush == Flush::Os && self.sync_failed {
            let report = store.verify(VerifyOptions::new().repair(true)).unwrap();
            assert!(report.damages.iter().all(|damage| damage.repaired), "{:?}", report.damages);
        }
        let report = store.verify(VerifyOptions::new()).unwrap();
        assert_eq!(report.damages, []);
        let records = partition.log_end_offset().0 - partition.log_start_offset().0;
        assert!(report.records >= records * self.disks.len() as u64, "every replica has them");
    }

    fn tell(&mut self, random: &mut Random) {
        let config = TopicConfig::new()
            .replication_factor(u16::try_from(self.disks.len()).unwrap())
            .min_insync_replicas(self.min_insync)
            .flush(self.flush)
            .segment_bytes(4096)
            .index_interval_bytes(256);
        let store = self.open().unwrap();
        store.create_topic("t", config).unwrap();
        drop(store);
        for _ in 0..4 {
            let store = self.open().unwrap();
            let partition = store.partition("t", 0).unwrap();
            let crashes = random.below(2) == 0;
            if crashes {
                let at = usize::try_from(random.below(self.disks.len() as u64)).unwrap();
                self.disks[at].crash_at(random.below(200));
            }
            for _ in 0..40 {
                match random.below(20) {
                    0..=2 => {
                        self.clock.advance(Duration::from_millis(random.below(100)));
                        store.run_background();
                    }
                    3 => self.trouble(&store, &partition, random),
                    _ => self.append(&partition, random),
                }
                if self.any_dead() {
                    break;
                }
            }
            if !crashes && random.below(3) == 0 {
                self.heal(&store, &partition);
                self.judge(&partition, false);
                let closed = store.close(SECOND);
                self.note(&format!("closed: {closed:?}"));
            }
            drop((partition, store));
            let power = random.below(2) == 0;
            self.note(&format!("power {power}, dead {}", self.any_dead()));
            for disk in &self.disks {
                disk.heal();
                disk.set_free_bytes(None);
                if power {
                    disk.power_loss();
                } else {
                    disk.process_restart();
                }
            }
            self.troubled = None;
            let store = self.open().unwrap();
            let partition = store.partition("t", 0).unwrap();
            self.heal(&store, &partition);
            let lossy = power && self.flush != Flush::OnAck;
            self.judge(&partition, lossy);
            // What lies behind the watermark no more may come again.
            let end = partition.log_end_offset().0;
            self.possible.retain(|at, _| *at < end);
            if random.below(2) == 0 {
                store.close(SECOND).unwrap();
            }
            drop((partition, store));
            self.disks.iter().for_each(SimDisk::process_restart);
        }
    }
}

fn tell_story(seed: u64) {
    let mut random = Random(seed);
    let mut world = World::new(seed, &mut random);
    let what =
        format!("{} disks, {:?}, min in-sync {}", world.disks.len(), world.flush, world.min_insync);
    tell(seed, &what, || world.tell(&mut random));
}

#[test]
fn random_stories_of_replicas_lose_nothing_beyond_the_table() {
    let (first, count) = (setting("ONCELOG_SEED", 1), setting("ONCELOG_STORIES", 400));
    (first..first + count).for_each(tell_story);
}

/// A hole on a follower that its leader's durable end seemed to vouch for; a flush that failed just before its
/// process died; a tail that nobody asked the next leader to flush.
#[test]
fn stories_that_once_ended_badly() {
    [8097, 6135, 39388].into_iter().for_each(tell_story);
}
