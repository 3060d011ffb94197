//! Kill -9 of a pipeline of three workers, again and again: at the end its output is what should be made of its input,
//! each record once.

use std::path::Path;
use std::time::{Duration, Instant};

use oncelog::{Acks, ErrorClass, Flush, Isolation, Record, StartAt, Store, TopicConfig};

use crate::killed;
use crate::random::{Random, setting};

const NAME: &str = "inv_11_a_pipeline_of_three_workers_is_killed_and_does_everything_once";
const PARTITIONS: u32 = 3;
const WORKERS: usize = 3;
const SECONDS: Duration = Duration::from_secs(30);

fn records() -> u64 {
    let asked = std::env::var("ONCELOG_PIPELINE_RECORDS").ok();
    asked.and_then(|count| count.parse().ok()).unwrap_or(12_000)
}

/// Works until there is nothing left, or until it is killed.
fn child() {
    let (directory, _) = killed::task();
    let store = Store::open(directory).unwrap();
    println!("ready");
    std::thread::scope(|scope| {
        for number in 0..WORKERS {
            let store = &store;
            scope.spawn(move || work(store, number));
        }
    });
    println!("done");
}

fn work(store: &Store, number: usize) {
    let mut consumer = store
        .consumer()
        .group("squares")
        .start(StartAt::Earliest)
        .isolation(Isolation::ReadCommitted)
        .max_poll_records(50)
        .build()
        .unwrap();
    consumer.subscribe(&["t"]).unwrap();
    let mut producer =
        store.producer().transactional_id(&format!("squares-{number}")).build().unwrap();
    loop {
        let records = consumer.poll(Duration::from_millis(20)).unwrap();
        if records.is_empty() {
            let lag: u64 = store
                .group("squares")
                .unwrap()
                .offsets
                .iter()
                .map(|at| at.lag.unwrap_or(u64::MAX / 8))
                .sum();
            let known = store.group("squares").unwrap().offsets.len();
            if lag == 0 && known == PARTITIONS as usize {
                return;
            }
            continue;
        }
        let mut transaction = producer.begin().unwrap();
        for record in &records {
            let value: u64 = std::str::from_utf8(record.value().unwrap()).unwrap().parse().unwrap();
            let square = (value * value).to_string();
            transaction.append("squares", record.partition(), &[Record::new(&square)]).unwrap();
        }
        let sent = transaction
            .send_offsets(&consumer.position_map(), &consumer.group_metadata())
            .and_then(|()| transaction.commit(SECONDS));
        if let Err(error) = sent {
            // A rebalance came in between: what was read is read again, by whoever has it now.
            assert_ne!(error.class(), ErrorClass::Fatal, "{error}");
            consumer.unsubscribe();
            consumer.subscribe(&["t"]).unwrap();
        }
    }
}

fn read(store: &Store, topic: &str, partition: u32) -> Vec<u64> {
    let builder = store.consumer().isolation(Isolation::ReadCommitted).start(StartAt::Earliest);
    let mut consumer = builder.build().unwrap();
    consumer.assign(&[(topic, partition)]).unwrap();
    let mut values = Vec::new();
    loop {
        let records = consumer.poll(Duration::ZERO).unwrap();
        if records.is_empty() {
            return values;
        }
        values.extend(records.iter().map(|record| {
            std::str::from_utf8(record.value().unwrap()).unwrap().parse::<u64>().unwrap()
        }));
    }
}

/// Whether what there is so far is a beginning of what there should be. Returns how much.
fn check(directory: &Path) -> usize {
    let store = Store::open(directory).unwrap();
    let mut total = 0;
    for partition in 0..PARTITIONS {
        let input = read(&store, "t", partition);
        let output = read(&store, "squares", partition);
        let expected: Vec<_> = input.iter().map(|value| value * value).collect();
        assert_eq!(output, expected[..output.len()], "partition {partition}");
        total += output.len();
    }
    store.close(SECONDS).unwrap();
    total
}

#[test]
fn inv_11_a_pipeline_of_three_workers_is_killed_and_does_everything_once() {
    if killed::is_child() {
        return child();
    }
    let seed = setting("ONCELOG_SEED", 7);
    let mut random = Random(seed);
    eprintln!("replay with: ONCELOG_SEED={seed} cargo test --test kill pipeline");
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path().join("data");
    let store = Store::open(&directory).unwrap();
    for topic in ["t", "squares"] {
        let config = TopicConfig::new().partitions(PARTITIONS).segment_bytes(256 << 10);
        store.create_topic(topic, config.flush(Flush::OnAck)).unwrap();
    }
    let each = records() / u64::from(PARTITIONS);
    for partition in 0..PARTITIONS {
        let log = store.partition("t", partition).unwrap();
        for first in (0..each).step_by(100) {
            let texts: Vec<_> =
                (first..each.min(first + 100)).map(|value| value.to_string()).collect();
            let batch: Vec<_> = texts.iter().map(Record::new).collect();
            log.append(&batch, Acks::All).unwrap();
        }
    }
    store.close(SECONDS).unwrap();
    drop(store);
    let (mut kills, started) = (0, Instant::now());
    loop {
        let mut child =
            killed::start(&mut killed::command(module_path!(), NAME, &directory, kills));
        // As long as children do not get anywhere, the next one lives longer.
        let life = Duration::from_micros(random.below(1 << 16) + kills * 500);
        let born = Instant::now();
        let ended = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if born.elapsed() >= life {
                break None;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        if let Some(status) = ended {
            assert!(status.success(), "a child failed: {status}");
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        if kills % 10 == 0 {
            check(&directory);
        }
        assert!(started.elapsed() < SECONDS * 10, "no end after {kills} kills");
    }
    let total = check(&directory);
    eprintln!("{total} records, {kills} kills, {:.1?}", started.elapsed());
    assert_eq!(total as u64, each * u64::from(PARTITIONS), "everything is done");
    assert!(kills > 0, "the test is about something");
}
