//! Histories of many threads: producers of every kind, transactions, readers and an operator at once, the store closed, killed or
//! without power in the middle. Each thread writes down what it was told; at the end, a judge that knows nothing else compares.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use oncelog::simulation::SimDisk;
use oncelog::{Flush, Isolation, Store, TopicConfig};

use crate::random::{Random, setting};
use actors::Actor;
use ledger::Ledger;

mod actors;
mod judge;
mod ledger;

const LONG: Duration = Duration::from_secs(30);
const APPEND: Duration = Duration::from_secs(3);
const PARTITIONS: u32 = 3;

struct World {
    seed: u64,
    disks: Vec<SimDisk>,
    ledger: Arc<Ledger>,
    flush: Flush,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let count = if random.one_in(3) { 1 } else { 3 };
        let flush = [Flush::OnAck, Flush::OnAck, Flush::Os][random.index(3)];
        let disks: Vec<_> = (0..count).map(|at| SimDisk::new(seed * 10 + at)).collect();
        for disk in &disks[1..] {
            disk.share_process(&disks[0]);
        }
        Self { seed, disks, ledger: Arc::default(), flush }
    }

    fn open(&self) -> Store {
        let builder = Store::builder()
            .replica_lag_max(Duration::from_millis(900))
            .append_timeout(APPEND)
            .flush(self.flush);
        let all = self.disks.iter().fold(builder, |all, disk| all.simulated_disk(disk.clone()));
        let store = all.threads().open().unwrap();
        if store.topic("t").is_err() {
            let replicas = u16::try_from(self.disks.len()).unwrap();
            let config = TopicConfig::new()
                .partitions(PARTITIONS)
                .replication_factor(replicas)
                .min_insync_replicas(replicas.min(2))
                .segment_bytes(64 << 10);
            store.create_topic("t", config).unwrap();
        }
        store
    }

    fn round(&self, random: &mut Random, span: Duration) {
        let store = self.open();
        // A partition that is opened while its disk hangs waits for the disk.
        for number in 0..PARTITIONS {
            store.partition("t", number).unwrap();
        }
        store.snapshot(&[("t", 0)]).unwrap();
        self.ledger.dead.store(false, Ordering::SeqCst);
        self.ledger.over.store(false, Ordering::SeqCst);
        let until = Instant::now() + span;
        let mut threads = Vec::new();
        let ends_by = random.below(4);
        let mut start = |name: &str, run: Box<dyn FnOnce(Actor) + Send>| {
            let actor = Actor {
                store: store.clone(),
                ledger: Arc::clone(&self.ledger),
                random: Random(random.below(u64::MAX)),
                // Those who are to meet the end go on behind it.
                until: until + if ends_by == 0 { Duration::ZERO } else { LONG },
            };
            let thread = thread::Builder::new().name(name.into());
            threads.push(thread.spawn(move || run(actor)).unwrap());
        };
        start("appends", Box::new(Actor::appends));
        start("numbers", Box::new(|actor| actor.numbers(false)));
        start("numbers-strict", Box::new(|actor| actor.numbers(true)));
        start("sends", Box::new(|actor| actor.sends(true)));
        start("sends2", Box::new(|actor| actor.sends(true)));
        start("sends-plain", Box::new(|actor| actor.sends(false)));
        start("named-1", Box::new(|actor| actor.named("n")));
        start("named-2", Box::new(|actor| actor.named("n")));
        start("transacts-1", Box::new(|actor| actor.transacts("a")));
        start("transacts-2", Box::new(|actor| actor.transacts("a")));
        start("transacts-3", Box::new(|actor| actor.transacts("b")));
        start("atomics", Box::new(Actor::atomics));
        start("reads", Box::new(|actor| actor.reads(Isolation::ReadUncommitted)));
        start("reads-c", Box::new(|actor| actor.reads(Isolation::ReadCommitted)));
        start("snapshots", Box::new(Actor::snapshots));
        let disks = self.disks.clone();
        start("operates", Box::new(move |actor| actor.operates(&disks)));
        thread::sleep(span);
        match ends_by {
            0 => {}
            1 => {
                self.disks.iter().for_each(SimDisk::answer);
                let _ = store.close(LONG);
                // Handles answer, and nobody hangs.
                thread::sleep(Duration::from_millis(10));
                self.ledger.over.store(true, Ordering::SeqCst);
            }
            _ => {
                self.ledger.dead.store(true, Ordering::SeqCst);
                self.ledger.died.store(true, Ordering::SeqCst);
                self.disks[0].kill();
                self.disks.iter().for_each(SimDisk::answer);
                // An append that is awaited has no time-out of its own.
                let _ = store.close(LONG);
            }
        }
        let stop = Instant::now();
        for thread in threads {
            let name = thread.thread().name().unwrap_or_default().to_string();
            while !thread.is_finished() {
                assert!(
                    stop.elapsed() < LONG,
                    "seed {}: {name} hangs at the end by {ends_by}",
                    self.seed
                );
                thread::sleep(Duration::from_millis(1));
            }
            if let Err(panic) = thread.join() {
                self.ledger.faults.lock().unwrap().push(format!("{name} panicked: {panic:?}"));
            }
        }
        let _ = store.close(LONG);
        drop(store);
        for disk in &self.disks {
            disk.heal();
        }
        match ends_by {
            2 if self.flush == Flush::OnAck => self.disks.iter().for_each(SimDisk::power_loss),
            2 | 3 => self.disks.iter().for_each(SimDisk::process_restart),
            _ => {}
        }
    }
}

fn tell(seed: u64, rounds: u64, span: Duration) {
    let world = World::new(seed);
    let mut random = Random(seed.wrapping_mul(77) + 5);
    for round in 0..rounds {
        world.round(&mut random, span);
        let store = world.open();
        let faults = world.judge(&store);
        store.close(LONG).unwrap();
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for fault in &faults {
            let kind: String = fault.chars().take(20).collect();
            let count = kinds.entry(kind).or_default();
            *count += 1;
            if *count < 8 {
                eprintln!("  {fault}");
            }
        }
        if !faults.is_empty() {
            eprintln!("{kinds:?}");
        }
        let counts = world.ledger.attempts.lock().unwrap().len();
        let wholes = world.ledger.wholes.lock().unwrap().len();
        assert!(
            faults.is_empty(),
            "seed {seed}, round {round}, {} disks, {:?}: {} faults of {counts} records, {wholes} transactions",
            world.disks.len(),
            world.flush,
            faults.len()
        );
        if setting("HISTORY_TRACE", 0) > 0 {
            eprintln!("seed {seed} round {round}: {counts} records, {wholes} transactions");
        }
    }
}

#[test]
fn histories_of_many_threads_hold_what_each_of_them_was_told() {
    let first = setting("HISTORY_SEED", 1);
    for seed in first..first + setting("HISTORIES", 3) {
        tell(seed, setting("HISTORY_ROUNDS", 2), Duration::from_millis(setting("HISTORY_MS", 400)));
    }
}
