//! Reads the events that `quickstart` has stored, adds up delays by carrier, and writes each step's results together
//! with how far it has read, in one transaction: whenever it is killed, every event counts once.
//!
//! ```text
//! cargo run --release --example quickstart
//! cargo run --release --example exactly_once [-- --dir DIR] [--crash-every MILLISECONDS]
//! ```
//!
//! Three workers share the partitions as members of one group. With `--crash-every`, the work is done by a child that
//! is killed at random places, after that many milliseconds at most, and started again until all is read. At the end
//! the results are added up and held against the events themselves. Run it again, and there is nothing left to do.

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use oncelog::{ErrorClass, Isolation, Record, Records, StartAt, Store, TopicConfig};

const EVENTS: &str = "events";
const DELAYS: &str = "delays";
const GROUP: &str = "add-up-delays";
const WORKERS: usize = 3;
const EVENTS_A_STEP: u64 = 40;
/// How the parent tells its child that it is one.
const CHILD: &str = "--work";
const LONG: Duration = Duration::from_secs(30);

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Flights, and minutes of delay at departure.
type Totals = BTreeMap<String, (i64, i64)>;

struct Arguments {
    directory: PathBuf,
    crash_every: Option<Duration>,
    works: bool,
}

fn arguments() -> Outcome<Arguments> {
    let directory = "oncelog-data".into();
    let mut parsed = Arguments { directory, crash_every: None, works: false };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{name} needs a value"));
        match name.as_str() {
            "--dir" => parsed.directory = value()?.into(),
            "--crash-every" => {
                parsed.crash_every = Some(Duration::from_millis(value()?.parse::<u64>()?.max(1)));
            }
            CHILD => parsed.works = true,
            _ => return Err(format!("{name}: only --dir and --crash-every are known").into()),
        }
    }
    Ok(parsed)
}

fn main() -> Outcome<()> {
    let arguments = arguments()?;
    let directory = &arguments.directory;
    if arguments.works {
        return work(directory);
    }
    let known = Store::open_read_only(directory).and_then(|store| store.topic(EVENTS));
    if let Err(error) = known {
        let reason =
            format!("{}: no events here; run quickstart first ({error})", directory.display());
        return Err(reason.into());
    }
    match arguments.crash_every {
        Some(span) => crash_until_done(directory, span)?,
        None => work(directory)?,
    }
    check(directory)
}

/// Has a child work, kills it, and starts the next, until one ends by itself.
fn crash_until_done(directory: &Path, span: Duration) -> Outcome<()> {
    // Nanoseconds of the clock are random enough for moments to be killed at.
    let moment = |since: Instant| u64::from(since.elapsed().subsec_nanos());
    let (started, mut kills) = (Instant::now(), 0);
    loop {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--dir")
            .arg(directory)
            .arg(CHILD)
            .spawn()?;
        let life = span.mul_f64(f64::from(u32::try_from(moment(started) % 1000)?) / 1000.0);
        let born = Instant::now();
        // As long as children are killed before they get anywhere, the next one lives longer.
        let life = life + Duration::from_millis(kills);
        let ended = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if born.elapsed() >= life {
                break None;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        match ended {
            Some(status) if status.success() => {
                println!("crashes   {kills} children were killed, the last one ended by itself");
                return Ok(());
            }
            Some(status) => return Err(format!("a child failed: {status}").into()),
            None => {
                child.kill()?;
                child.wait()?;
                kills += 1;
            }
        }
    }
}

/// Works until nothing is left to be read.
fn work(directory: &Path) -> Outcome<()> {
    let store = Store::open(directory)?;
    if store.topics().iter().all(|topic| topic.name != DELAYS) {
        store.create_topic(DELAYS, TopicConfig::new())?;
    }
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|number| {
                let store = &store;
                scope.spawn(move || add_up(store, number))
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| "a worker panicked")?)
    })?;
    store.close(LONG)?;
    Ok(())
}

/// One worker: reads, adds up, and writes sums and positions in one transaction.
fn add_up(store: &Store, number: usize) -> Outcome<()> {
    let mut consumer = store
        .consumer()
        .group(GROUP)
        .isolation(Isolation::ReadCommitted)
        .start(StartAt::Earliest)
        .max_poll_records(EVENTS_A_STEP)
        .build()?;
    consumer.subscribe(&[EVENTS])?;
    // Whoever held the id before is fenced, and what it left open is aborted.
    let mut producer = store.producer().transactional_id(&format!("{GROUP}-{number}")).build()?;
    loop {
        let events = consumer.poll(Duration::from_millis(50))?;
        if events.is_empty() {
            if is_done(store)? {
                return Ok(());
            }
            continue;
        }
        let sums: Vec<_> = totals(&events).into_iter().collect();
        let values: Vec<_> =
            sums.iter().map(|(_, (flights, minutes))| format!("{flights},{minutes}")).collect();
        let records: Vec<_> =
            sums.iter().zip(&values).map(|((key, _), value)| Record::new(value).key(key)).collect();
        let mut transaction = producer.begin()?;
        transaction.append(DELAYS, 0, &records)?;
        let sent = transaction
            .send_offsets(&consumer.position_map(), &consumer.group_metadata())
            .and_then(|()| transaction.commit(LONG));
        match sent {
            Ok(()) => {}
            // Its partitions are another's by now, or it was too slow: nothing of this step counts. The new owner begins
            // where the last step that counts ended, and so does this worker with what it still has.
            Err(error)
                if matches!(
                    error.class(),
                    ErrorClass::Retriable | ErrorClass::Fenced | ErrorClass::AbortTransaction
                ) =>
            {
                consumer.unsubscribe();
                consumer.subscribe(&[EVENTS])?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether all events that there are count already.
fn is_done(store: &Store) -> Outcome<bool> {
    let partitions = store.topic(EVENTS)?.partitions;
    let committed = store.group(GROUP)?.offsets;
    for number in 0..partitions {
        let end = store.partition(EVENTS, number)?.high_watermark();
        let mut all = committed.iter().filter(|at| at.partition.topic() == EVENTS);
        let mine = all.find(|at| at.partition.partition() == number);
        if mine.map_or(0, |at| at.committed.offset.0) < end.0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// By carrier, which is the second field of a line; its seventh is the delay at departure, empty if it did not fly.
fn totals(events: &Records) -> Totals {
    let mut totals = Totals::new();
    for event in events {
        let line = String::from_utf8_lossy(event.value().unwrap_or_default()).into_owned();
        let mut fields = line.split(',');
        let carrier = fields.nth(1).unwrap_or_default().to_owned();
        let delay = fields.nth(4).and_then(|field| field.parse::<i64>().ok()).unwrap_or(0);
        let sum = totals.entry(carrier).or_default();
        *sum = (sum.0 + 1, sum.1 + delay);
    }
    totals
}

/// Holds what was written against the events.
fn check(directory: &Path) -> Outcome<()> {
    let store = Store::open(directory)?;
    let read = |topic: &str| -> Outcome<Vec<Records>> {
        let mut consumer = store
            .consumer()
            .isolation(Isolation::ReadCommitted)
            .start(StartAt::Earliest)
            .build()?;
        let partitions: Vec<_> =
            (0..store.topic(topic)?.partitions).map(|number| (topic, number)).collect();
        consumer.assign(&partitions)?;
        let mut all = Vec::new();
        loop {
            let records = consumer.poll(Duration::ZERO)?;
            if records.is_empty() {
                return Ok(all);
            }
            all.push(records);
        }
    };
    let (mut plain, mut written, mut steps) = (Totals::new(), Totals::new(), 0);
    for events in read(EVENTS)? {
        for (carrier, (flights, minutes)) in totals(&events) {
            let sum = plain.entry(carrier).or_default();
            *sum = (sum.0 + flights, sum.1 + minutes);
        }
    }
    for records in read(DELAYS)? {
        for record in &records {
            let carrier = String::from_utf8(record.key().unwrap_or_default().into())?;
            let value = std::str::from_utf8(record.value().unwrap_or_default())?;
            let (flights, minutes) = value.split_once(',').ok_or("no sum")?;
            let sum = written.entry(carrier).or_default();
            *sum = (sum.0 + flights.parse::<i64>()?, sum.1 + minutes.parse::<i64>()?);
            steps += 1;
        }
    }
    store.close(LONG)?;
    let mut shown: Vec<_> = written.iter().collect();
    shown.sort_by_key(|(_, (flights, _))| -flights);
    for (carrier, (flights, minutes)) in shown.into_iter().take(5) {
        println!("{carrier:9} {flights} flights, {minutes} minutes late");
    }
    let flights: i64 = written.values().map(|(flights, _)| flights).sum();
    if written != plain {
        return Err(format!("{flights} flights added up differ from the events").into());
    }
    println!("equal     {flights} flights in {steps} partial sums: each counts once");
    Ok(())
}
