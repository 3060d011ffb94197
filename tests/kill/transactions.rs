//! Kill -9 amid transactions over three partitions on three disks, again and again. A fresh process judges: what was
//! committed is there, once, in all partitions; nothing is torn, and nothing hangs.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use oncelog::{Flush, Isolation, Offset, ReadOptions, Record, Store, TopicConfig};

use crate::killed;
use crate::random::{Random, setting};

const PARTITIONS: u32 = 3;
const WORKERS: u64 = 2;
const SECONDS: Duration = Duration::from_secs(30);
const TEST: &str = "kills_leave_whole_transactions_and_none_that_hangs";

fn open(directory: &Path) -> Store {
    let disks = (0..3).map(|disk| directory.join(disk.to_string()));
    disks.fold(Store::builder(), |builder, disk| builder.disk(disk)).open().unwrap()
}

/// Runs transactions until it is killed: of each number, one record in each partition. Some are aborted.
fn child() {
    let (directory, round) = killed::task();
    let directory = &*directory;
    let store = open(directory);
    println!("ready");
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (store, journal) = (&store, directory.join(format!("journal-{worker}")));
            scope.spawn(move || {
                let mut journal =
                    std::fs::OpenOptions::new().append(true).create(true).open(journal).unwrap();
                let mut producer =
                    store.producer().transactional_id(&format!("worker-{worker}")).build().unwrap();
                for number in 0_u64.. {
                    let value = format!("{worker}-{round}-{number}");
                    let mut transaction = producer.begin().unwrap();
                    for partition in 0..PARTITIONS {
                        transaction
                            .send(Record::to("t").partition(partition).value(&value))
                            .unwrap();
                    }
                    if number % 5 == 4 {
                        transaction.abort(SECONDS).unwrap();
                        journal.write_all(format!("\naborted {value} .").as_bytes()).unwrap();
                    } else {
                        transaction.commit(SECONDS).unwrap();
                        journal.write_all(format!("\ncommitted {value} .").as_bytes()).unwrap();
                    }
                }
            });
        }
    });
}

/// What the children have written down, by whether it was committed.
fn told(directory: &Path) -> BTreeMap<String, bool> {
    let mut told = BTreeMap::new();
    for worker in 0..WORKERS {
        let journal = directory.join(format!("journal-{worker}"));
        let text = std::fs::read_to_string(journal).unwrap_or_default();
        for line in text.lines().filter_map(|line| line.strip_suffix(" .")) {
            let (outcome, value) = line.split_once(' ').unwrap();
            told.insert(value.to_owned(), outcome == "committed");
        }
    }
    told
}

fn check(directory: &Path) -> usize {
    let store = open(directory);
    let read = |number: u32| {
        let partition = store.partition("t", number).unwrap();
        assert_eq!(partition.last_stable_offset(), partition.high_watermark(), "one hangs");
        let (mut next, mut values) = (Offset(0), Vec::new());
        while next < partition.high_watermark() {
            let options = ReadOptions::new().isolation(Isolation::ReadCommitted);
            let records = partition.read(next, options).unwrap();
            values.extend(
                records.iter().map(|r| String::from_utf8(r.value().unwrap().to_vec()).unwrap()),
            );
            assert!(records.next_offset() > next);
            next = records.next_offset();
        }
        values.sort_unstable();
        values
    };
    let first = read(0);
    assert!(first.windows(2).all(|pair| pair[0] != pair[1]), "doubled");
    for number in 1..PARTITIONS {
        assert_eq!(read(number), first, "torn");
    }
    for (value, committed) in told(directory) {
        assert_eq!(first.binary_search(&value).is_ok(), committed, "{value}");
    }
    store.close(SECONDS).unwrap();
    first.len()
}

#[test]
fn kills_leave_whole_transactions_and_none_that_hangs() {
    if killed::is_child() {
        return child();
    }
    let seed = setting("ONCELOG_SEED", 11);
    eprintln!("replay with: ONCELOG_SEED={seed} cargo test --test kill transactions");
    killed::at_both_levels(seed, kill_loop);
}

fn kill_loop(flush: Flush, seed: u64) {
    let mut random = Random(seed);
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path();
    let store = open(directory);
    let config = TopicConfig::new()
        .partitions(PARTITIONS)
        .replication_factor(3)
        .min_insync_replicas(2)
        .flush(flush)
        .segment_bytes(64 << 10);
    store.create_topic("t", config).unwrap();
    drop(store);
    for round in 1..=30 {
        let child = killed::start(&mut killed::command(module_path!(), TEST, directory, round));
        killed::kill_after(child, Duration::from_micros(random.below(1 << 16)));
        if round % 10 == 0 {
            check(directory);
        }
    }
    let total = check(directory);
    assert!(total > 0, "the test is about something");
}
