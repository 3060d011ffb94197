//! Three replicas: what they cost beside one, and beside three bare copies of the same bytes.

mod common;

use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::bare::{BareDurable, Frame};
use common::ours::{self, Shape};
use common::work::Work;
use common::{Bench, Goal, Line, Outcome, Unit, noise, rate, timed};
use oncelog::{Acks, DiskId, Flush, Partition, Record, Store};

const REPLICAS: u16 = 3;
impl Work {
    fn new(bench: &Bench, value_bytes: usize, batch: usize) -> Self {
        Self {
            value_bytes,
            batch,
            segment_bytes: bench.amount(128 << 20, 1 << 20),
            segments_kept: 3,
            bytes_total: bench.amount(1 << 30, 6 << 20),
        }
    }

    fn ours(&self, bench: &Bench, replicas: u16) -> Outcome<f64> {
        let shape =
            Shape { retention: self.retention(), replicas, ..Shape::plain(self.segment_bytes) };
        let store = ours::create(&bench.fresh("ours")?, &shape)?;
        let partition = store.partition(ours::TOPIC, 0)?;
        let value = noise(self.value_bytes);
        let figure = timed(self.records(), || {
            let records = vec![Record::new(&value); self.batch];
            for _ in 0..self.appends() {
                black_box(partition.append(black_box(&records), Acks::All)?);
            }
            Ok(())
        })?;
        check(&partition, self.records(), replicas)?;
        drop((partition, store));
        bench.fresh("ours")?;
        Ok(figure)
    }

    /// Three copies, checksums once.
    fn bare(&self, bench: &Bench) -> Outcome<f64> {
        let mut logs = Vec::new();
        for number in 0..REPLICAS {
            let directory = bench.fresh(&format!("bare-{number}"))?;
            logs.push(self.bare_log(&directory)?);
        }
        let mut frame = self.frame();
        let figure = timed(self.records(), || {
            let (leader, followers) = logs.split_first_mut().ok_or("no replica")?;
            for _ in 0..self.appends() {
                leader.append(&mut frame)?;
                followers.iter_mut().try_for_each(|log| log.copy(&frame))?;
            }
            Ok(())
        })?;
        drop(logs);
        for number in 0..REPLICAS {
            bench.fresh(&format!("bare-{number}"))?;
        }
        Ok(figure)
    }
}

/// All that was appended is on every replica.
fn check(partition: &Partition, records: u64, replicas: u16) -> Outcome<()> {
    let (end, in_sync) = (partition.high_watermark().0, partition.in_sync_replicas());
    if end != records || in_sync.len() != usize::from(replicas) {
        return Err(format!("{records} were appended, {end} acknowledged on {in_sync:?}").into());
    }
    ours::read_last(partition)
}

fn main() -> Outcome<()> {
    let mut bench = Bench::new("replicas")?;
    let line = Line {
        name: "append one 100 B record, 3 replicas, All, Os",
        durability: "process death",
        unit: Unit::Records,
        goal: Goal::RatioAndMin(0.33, 4e6),
        limit: "one replica",
    };
    let single = Work::new(&bench, 100, 1);
    bench.compare(&line, |bench| single.ours(bench, 1), |bench| single.ours(bench, REPLICAS))?;

    // What the machine gives: the goal above is out of reach where this limit is below it.
    let machine = Line {
        name: "append one 100 B record, 3 replicas, beside bare copies",
        goal: Goal::None,
        limit: "three copies, CRCs once",
        ..line
    };
    bench.compare(&machine, |bench| single.bare(bench), |bench| single.ours(bench, REPLICAS))?;

    let batches = Work::new(&bench, 1024, 100);
    let line = Line {
        name: "append batches of 100 x 1 KiB, 3 replicas, All, Os",
        goal: Goal::RatioMin(0.6),
        limit: "three copies, CRCs once",
        ..line
    };
    bench.compare(&line, |bench| batches.bare(bench), |bench| batches.ours(bench, REPLICAS))?;

    let line = Line {
        name: "append 100 B, 3 replicas, All, OnAck, 1 thread",
        durability: "power loss",
        goal: Goal::RatioMin(0.77),
        limit: "three parallel write + fdatasync",
        ..line
    };
    bench.compare(&line, bare_durable, |bench| durable(bench, 1))?;
    let line = Line {
        name: "append 100 B, 3 replicas, All, OnAck, 16 threads",
        goal: Goal::RatioMin(8.0),
        limit: "1 thread",
        ..line
    };
    bench.compare(&line, |bench| durable(bench, 1), |bench| durable(bench, 16))?;

    let line = Line {
        name: "next append after a leader's disk is stopped, 1,000 partitions",
        durability: "power loss",
        unit: Unit::Time,
        goal: Goal::Max(0.05),
        limit: "-",
    };
    bench.measure(&line, fail_over)?;

    let line = Line {
        name: "catch-up of an empty replica",
        durability: "process death",
        unit: Unit::Bytes,
        goal: Goal::RatioMin(0.7),
        limit: "files read and written, 1 MiB at a time",
    };
    if bench.wants(line.name) {
        let directory = bench.fresh("ours")?;
        let store = filled(&bench, &directory)?;
        // The same bytes, in the turns of one run.
        bench.compare(
            &line,
            |bench| bare_copy(&directory.join("0"), &bench.fresh("bare")?),
            |_| catch_up(&store, &directory),
        )?;
        drop(store);
        bench.fresh("ours")?;
        bench.fresh("bare")?;
    }
    #[cfg(feature = "simulation")]
    hanging_follower(&mut bench)?;
    bench.finish();
    Ok(())
}

/// How long a side of a turn runs.
fn span(bench: &Bench) -> Duration {
    bench.amount(Duration::from_millis(1500), Duration::from_millis(30))
}

/// Appends a second by `threads` threads, each on three disks before it goes on.
fn durable(bench: &Bench, threads: usize) -> Outcome<f64> {
    let shape = Shape { flush: Flush::OnAck, replicas: REPLICAS, ..Shape::plain(256 << 20) };
    let store = ours::create(&bench.fresh("ours")?, &shape)?;
    let partition = store.partition(ours::TOPIC, 0)?;
    let value = noise(100);
    let (count, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let started = Instant::now();
    thread::scope(|scope| {
        let append = || -> Outcome<()> {
            while !stop.load(Ordering::Relaxed) {
                partition.append(&[Record::new(&value)], Acks::All)?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(append)).collect();
        thread::sleep(span(bench));
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread died")?)
    })?;
    let count = count.into_inner();
    let figure = rate(count, started.elapsed());
    check(&partition, count, REPLICAS)?;
    drop((partition, store));
    bench.fresh("ours")?;
    Ok(figure)
}

/// Rounds a second of a write and an `fdatasync` on each of three files, by a thread each.
fn bare_durable(bench: &Bench) -> Outcome<f64> {
    let mut logs = Vec::new();
    for number in 0..REPLICAS {
        let directory = bench.fresh(&format!("bare-{number}"))?;
        logs.push(BareDurable::create(&directory, Frame::new(1, 100))?);
    }
    let (round, stop) = (Barrier::new(logs.len()), AtomicBool::new(false));
    let failed = Mutex::new(None);
    let span = span(bench);
    let started = Instant::now();
    let rounds = AtomicU64::new(0);
    thread::scope(|scope| {
        for mut log in logs {
            let (round, stop, failed, rounds) = (&round, &stop, &failed, &rounds);
            scope.spawn(move || {
                loop {
                    // All see the same answer: it is given between two meetings.
                    if round.wait().is_leader() {
                        rounds.fetch_add(1, Ordering::Relaxed);
                        stop.store(started.elapsed() >= span, Ordering::Release);
                    }
                    round.wait();
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                    if let Err(error) = log.append() {
                        *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
                            Some(error);
                    }
                }
            });
        }
    });
    let figure = rate(rounds.into_inner(), started.elapsed());
    if let Some(error) = failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        return Err(error.into());
    }
    for number in 0..REPLICAS {
        bench.fresh(&format!("bare-{number}"))?;
    }
    Ok(figure)
}

/// From the moment that a disk is told to stop to the next append that is acknowledged in a partition it
/// led.
fn fail_over(bench: &Bench) -> Outcome<f64> {
    let partitions = bench.amount(1000, 30);
    let shape =
        Shape { partitions, flush: Flush::OnAck, replicas: REPLICAS, ..Shape::plain(1 << 20) };
    let store = ours::create(&bench.fresh("ours")?, &shape)?;
    for number in 0..partitions {
        store.partition(ours::TOPIC, number)?.append(&[Record::new("a")], Acks::All)?;
    }
    let led = led_by(&store, partitions, DiskId(0))?;
    let stopped = thread::scope(|scope| -> Outcome<f64> {
        let started = Instant::now();
        let stop = scope.spawn(|| store.stop_disk(DiskId(0)));
        while led.leader() == Some(DiskId(0)) {
            std::hint::spin_loop();
        }
        while let Err(error) = led.append(&[Record::new("b")], Acks::All) {
            if started.elapsed() > Duration::from_secs(30) {
                return Err(error.into());
            }
        }
        let elapsed = started.elapsed().as_secs_f64();
        stop.join().map_err(|_| "the thread died")??;
        Ok(elapsed)
    })?;
    drop((led, store));
    bench.fresh("ours")?;
    Ok(stopped)
}

/// A store of two disks with a partition to copy.
fn filled(bench: &Bench, directory: &Path) -> Outcome<Store> {
    let shape = Shape { replicas: 2, ..Shape::plain(bench.amount(128 << 20, 1 << 20)) };
    let store = ours::create(directory, &shape)?;
    let partition = store.partition(ours::TOPIC, 0)?;
    let bytes: u64 = bench.amount(1 << 30, 4 << 20);
    let frame = Frame::new(100, 1024);
    ours::fill(&partition, &noise(1024), 100, bytes / frame.len() as u64)?;
    Ok(store)
}

/// Bytes a second, from the moment that an empty directory takes the place of the second disk until it is in sync.
fn catch_up(store: &Store, directory: &Path) -> Outcome<f64> {
    let partition = store.partition(ours::TOPIC, 0)?;
    let disk = DiskId(1);
    store.stop_disk(disk)?;
    let empty = directory.join("1");
    std::fs::remove_dir_all(&empty)?;
    let started = Instant::now();
    store.replace_disk(disk, &empty)?;
    while !partition.in_sync_replicas().contains(&disk) {
        thread::sleep(Duration::from_millis(1));
        if started.elapsed() > Duration::from_secs(60) {
            return Err("the replica does not catch up".into());
        }
    }
    let elapsed = started.elapsed().as_secs_f64();
    Ok(log_files(&empty)?.iter().map(|(_, bytes)| *bytes as f64).sum::<f64>() / elapsed)
}

/// Bytes a second of copying the data files below `from`.
fn bare_copy(from: &Path, to: &Path) -> Outcome<f64> {
    let files = log_files(from)?;
    let mut buffer = vec![0; 1 << 20];
    let started = Instant::now();
    let mut total = 0;
    for (number, (path, _)) in files.iter().enumerate() {
        let mut source = File::open(path)?;
        let mut target = File::create(to.join(number.to_string()))?;
        loop {
            let count = source.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            target.write_all(&buffer[..count])?;
            total += count;
        }
    }
    Ok(total as f64 / started.elapsed().as_secs_f64())
}

/// The data files below `directory`, with their lengths.
fn log_files(directory: &Path) -> Outcome<Vec<(PathBuf, u64)>> {
    let mut files = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let (path, metadata) = (entry.path(), entry.metadata()?);
            if metadata.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|extension| extension == "log") {
                files.push((path, metadata.len()));
            }
        }
    }
    Ok(files)
}

/// Appends a second that only the leader acknowledges, before and while calls to a follower's disk do not return. The
/// disks are simulated, for nothing else hangs on demand: the ratio counts.
#[cfg(feature = "simulation")]
fn hanging_follower(bench: &mut Bench) -> Outcome<()> {
    use oncelog::TopicConfig;
    use oncelog::simulation::{Hang, SimDisk};
    let run = |bench: &Bench, hangs: bool| -> Outcome<f64> {
        let disks: Vec<_> = (0..u64::from(REPLICAS)).map(SimDisk::new).collect();
        let all = disks.iter().fold(Store::builder(), |all, disk| all.simulated_disk(disk.clone()));
        let store = all.threads().open()?;
        let config = TopicConfig::new().replication_factor(REPLICAS).flush(Flush::Os);
        store.create_topic(ours::TOPIC, config)?;
        let partition = store.partition(ours::TOPIC, 0)?;
        partition.append(&[Record::new("a")], Acks::All)?;
        let follower = (0..REPLICAS).find(|at| partition.leader() != Some(DiskId(*at)));
        let follower = &disks[usize::from(follower.ok_or("no follower")?)];
        if hangs {
            follower.hang(Hang::Everything);
        }
        let records = bench.amount(400_000, 500);
        let value = noise(100);
        let figure = timed(records, || {
            for _ in 0..records {
                partition.append(&[Record::new(&value)], Acks::Leader)?;
            }
            Ok(())
        })?;
        follower.heal();
        Ok(figure)
    };
    let line = Line {
        name: "append 100 B, 3 replicas, Leader, Os, a follower's disk hangs",
        durability: "process death",
        unit: Unit::Records,
        goal: Goal::RatioMin(0.9),
        limit: "none hangs (simulated disks)",
    };
    bench.compare(&line, |bench| run(bench, false), |bench| run(bench, true))
}

/// The last partition that `disk` leads: it waits for all before it.
fn led_by(store: &Store, partitions: u32, disk: DiskId) -> Outcome<Partition> {
    for number in (0..partitions).rev() {
        let partition = store.partition(ours::TOPIC, number)?;
        if partition.leader() == Some(disk) {
            return Ok(partition);
        }
    }
    Err(format!("{disk} leads no partition").into())
}
