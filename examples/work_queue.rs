//! Several workers share a queue of jobs. One of them dies before it has committed, another hangs: what they had taken
//! is given to the others, and done once more rather than never.
//!
//! ```text
//! cargo run --release --example work_queue [-- --dir DIR]
//! ```
//!
//! The jobs are the flights that `quickstart` stores; doing one is to count it. By default the store is a temporary
//! directory.

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::collections::HashMap;
use std::error::Error;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use oncelog::{Consumer, ErrorClass, Record, StartAt, Store, TopicConfig};

const JOBS: &str = "jobs";
const GROUP: &str = "workers";
const WORKERS: usize = 4;
const PARTITIONS: u32 = 8;
/// A worker that takes longer for one batch has lost its partitions.
const PATIENCE: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(30);

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// How often each job was done, by its number.
type Done = Mutex<HashMap<u64, u32>>;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args_os().skip(1);
    let store = match (arguments.next(), arguments.next()) {
        (None, _) => Store::temporary()?,
        (Some(name), Some(value)) if name == "--dir" => Store::open(PathBuf::from(value))?,
        (Some(name), _) => {
            return Err(format!("{}: only --dir DIR is known", name.display()).into());
        }
    };
    if store.topics().iter().any(|topic| topic.name == JOBS) {
        return Err("this directory holds the store of an earlier run".into());
    }
    store.create_topic(JOBS, TopicConfig::new().partitions(PARTITIONS))?;

    let jobs = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/examples/data/flights-2013-01.csv"
    ))?;
    let producer = store.producer().build()?;
    let mut count = 0_u64;
    for (number, line) in (0_u64..).zip(jobs.lines()) {
        let job = format!("{number},{line}");
        producer.send_with(Record::to(JOBS).value(&job), |outcome| {
            if let Err(error) = outcome {
                println!("a job was not queued: {error}");
            }
        })?;
        count += 1;
    }
    producer.flush(LONG)?;
    println!("queue     {count} jobs in {PARTITIONS} partitions");

    let done = Done::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|number| {
                let (store, done) = (&store, &done);
                scope.spawn(move || work(store, number, done))
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| "a worker panicked")?)
    })?;

    let done = done.into_inner().map_err(|_| "a worker panicked")?;
    let again = done.values().filter(|times| **times > 1).count();
    println!("done      {} jobs, {again} of them more than once", done.len());
    if done.len() as u64 != count {
        return Err(format!("{count} jobs were queued").into());
    }
    let group = store.group(GROUP)?;
    let lag: u64 = group.offsets.iter().filter_map(|at| at.lag).sum();
    println!("group     generation {}, {lag} jobs behind", group.generation);
    store.close(LONG)?;
    Ok(())
}

/// Takes jobs, does them, and only then says so. Ends when there is nothing left.
fn work(store: &Store, number: usize, done: &Done) -> Outcome<()> {
    let mut consumer = hired(store, number)?;
    let mut batches = 0;
    loop {
        let jobs = consumer.poll(Duration::from_millis(100))?;
        if jobs.is_empty() {
            if is_done(store)? {
                return Ok(());
            }
            continue;
        }
        for job in &jobs {
            let text = std::str::from_utf8(job.value().unwrap_or_default())?;
            let job = text.split(',').next().ok_or("no number")?.parse::<u64>()?;
            *done.lock().map_err(|_| "a worker panicked")?.entry(job).or_default() += 1;
        }
        batches += 1;
        match (number, batches) {
            (0, 5) => {
                // Dropping the consumer leaves the group at once, as the end of its thread would.
                println!("worker 0  dies with {} jobs done and not committed", jobs.count());
                return Ok(());
            }
            (1, 5) => {
                println!("worker 1  hangs with {} jobs done and not committed", jobs.count());
                std::thread::sleep(PATIENCE * 3);
            }
            _ => {}
        }
        match consumer.commit() {
            Ok(()) => {}
            // The partitions are with others by now, who do these jobs again. The next poll brings new ones.
            Err(error) if matches!(error.class(), ErrorClass::Fenced | ErrorClass::Retriable) => {
                println!("worker {number}  was too late: {error}");
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn hired(store: &Store, number: usize) -> Outcome<Consumer> {
    let mut consumer = store
        .consumer()
        .group(GROUP)
        .start(StartAt::Earliest)
        .max_poll_records(50)
        .max_poll_interval(PATIENCE)
        .build()?;
    consumer.on_rebalance(move |event| {
        let partitions: Vec<_> =
            event.partitions().iter().map(|at| at.partition().to_string()).collect();
        if !partitions.is_empty() {
            println!("worker {number}  {:?}: {}", event.kind(), partitions.join(" "));
        }
    });
    consumer.subscribe(&[JOBS])?;
    Ok(consumer)
}

/// Whether every job was committed.
fn is_done(store: &Store) -> Outcome<bool> {
    let offsets = store.group(GROUP)?.offsets;
    let mut committed = 0;
    for at in &offsets {
        committed += at.committed.offset.0;
    }
    let mut all = 0;
    for number in 0..PARTITIONS {
        all += store.partition(JOBS, number)?.high_watermark().0;
    }
    Ok(committed == all)
}
