//! Stores that are closed amid everything else that is asked of them, and opened again at once in the same process: what
//! is still under way touches nothing of the next owner's, nothing that was acknowledged is lost, and nobody waits for ever.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use oncelog::simulation::{Hang, SimDisk};
use oncelog::{
    Acks, DiskId, Error, Flush, Isolation, ReadOptions, Record, StartAt, Store, TopicConfig,
    TopicUpdate, VerifyOptions, Written,
};

use crate::hanging_disk::{Hanging, LONG};
use crate::random::{Random, setting};

fn threaded(disks: &[SimDisk]) -> Result<Store, Error> {
    let builder = Store::builder().append_timeout(LONG);
    disks
        .iter()
        .cloned()
        .fold(builder, |builder, disk| builder.simulated_disk(disk))
        .threads()
        .open()
}

/// Opens as soon as nobody holds the directories any more.
fn open_at_last(disks: &[SimDisk]) -> Store {
    let started = Instant::now();
    loop {
        match threaded(disks) {
            Err(Error::Locked { .. }) if started.elapsed() < LONG => thread::yield_now(),
            opened => return opened.unwrap(),
        }
    }
}

fn all(store: &Store, topic: &str, partition: u32) -> Vec<String> {
    let partition = store.partition(topic, partition).unwrap();
    let (mut next, mut found) = (partition.log_start_offset(), Vec::new());
    while next < partition.high_watermark() {
        let records = partition.read(next, ReadOptions::new()).unwrap();
        found.extend(
            records.iter().map(|one| String::from_utf8(one.value().unwrap().to_vec()).unwrap()),
        );
        next = records.next_offset();
    }
    found
}

/// Changes of the metadata that had been let in before a close were written behind it, into what was another's by then.
#[test]
fn s18_changes_that_meet_a_close_are_not_written_into_the_next_owners_metadata() {
    for disks in [1, 3] {
        let disks: Vec<_> = (0..disks).map(SimDisk::new).collect();
        let made = Mutex::new(BTreeMap::new());
        let mut store = open_at_last(&disks);
        for round in 0..40 {
            let config = TopicConfig::new().replication_factor(u16::try_from(disks.len()).unwrap());
            let mine = format!("mine-{round}");
            store.create_topic(&mine, config.clone()).unwrap();
            let partition = store.partition(&mine, 0).unwrap();
            partition.append(&[Record::new(&mine)], Acks::All).unwrap();
            made.lock().unwrap().insert(mine.clone(), 1);
            thread::scope(|scope| {
                for thread in 0..6 {
                    let (store, made, config, mine) = (store.clone(), &made, &config, &mine);
                    scope.spawn(move || {
                        for at in 0.. {
                            let name = format!("topic-{round}-{thread}-{at}");
                            let outcome = match thread {
                                0 => store.add_partitions(mine, at + 2),
                                1 => store.alter_topic(
                                    mine,
                                    TopicUpdate::new().max_batch_bytes(1 << (12 + at % 8)),
                                ),
                                2 => store.producer().name(name.as_str()).build().map(drop),
                                _ => store.create_topic(&name, config.clone()),
                            };
                            match outcome {
                                Ok(()) if thread > 2 => drop(made.lock().unwrap().insert(name, 0)),
                                Ok(()) => {}
                                Err(Error::Closed) => return,
                                Err(error) => panic!("{error:?}"),
                            }
                        }
                    });
                }
                thread::sleep(Duration::from_millis(3));
                let next = scope.spawn(|| open_at_last(&disks));
                store.close(LONG).unwrap();
                store = next.join().unwrap();
            });
            for (name, records) in &*made.lock().unwrap() {
                assert!(store.topic(name).is_ok(), "{} disks: {name} is lost", disks.len());
                if *records > 0 {
                    assert_eq!(all(&store, name, 0), [name.as_str()]);
                }
            }
        }
    }
}

/// A partition that was being opened while its store was closed was not closed with it, and took records.
#[test]
fn s18_partitions_that_are_opened_amid_a_close_take_nothing_behind_it() {
    const PARTITIONS: u32 = 64;
    for flush in [Flush::OnAck, Flush::Os] {
        let disks = [SimDisk::new(1)];
        let mut store = open_at_last(&disks);
        store.create_topic("t", TopicConfig::new().partitions(PARTITIONS).flush(flush)).unwrap();
        let acknowledged = Mutex::new(Vec::new());
        for round in 0..40 {
            let over = AtomicBool::new(false);
            thread::scope(|scope| {
                for thread in 0..4 {
                    let (store, over, acknowledged) = (store.clone(), &over, &acknowledged);
                    scope.spawn(move || {
                        let mut opened = Vec::new();
                        for at in 0..PARTITIONS {
                            match store.partition("t", (at * 7 + thread) % PARTITIONS) {
                                Ok(partition) => opened.push(partition),
                                Err(Error::Closed) => break,
                                Err(error) => panic!("{error:?}"),
                            }
                        }
                        while !over.load(Ordering::Acquire) {
                            thread::yield_now();
                        }
                        for partition in opened {
                            let value = format!("{round}-{thread}-{}", partition.name());
                            match partition.append(&[Record::new(&value)], Acks::All) {
                                Ok(_) => acknowledged
                                    .lock()
                                    .unwrap()
                                    .push((partition.name().partition(), value)),
                                Err(Error::Closed) => {}
                                Err(error) => panic!("{error:?}"),
                            }
                        }
                    });
                }
                thread::sleep(Duration::from_micros(300 + 50 * (round % 10)));
                let next = scope.spawn(|| open_at_last(&disks));
                store.close(LONG).unwrap();
                store = next.join().unwrap();
                over.store(true, Ordering::Release);
            });
            for (at, value) in &*acknowledged.lock().unwrap() {
                let found = all(&store, "t", *at);
                assert!(found.contains(value), "{flush:?}: {value} is lost: {found:?}");
            }
        }
    }
}

/// One whose opening took longer than a tenth of a second was overlooked by the close: it took records, and acknowledged
/// them, in a directory that was another's.
#[test]
fn s18_a_partition_whose_opening_outlasts_the_close_takes_nothing() {
    let disks = [SimDisk::new(1), SimDisk::new(2)];
    let store = open_at_last(&disks);
    store.create_topic("t", TopicConfig::new().partitions(2)).unwrap();
    let on = |store: &Store, number| store.partition("t", number).unwrap().replicas();
    let number = (0..2).find(|number| on(&store, *number) == [DiskId(1)]).unwrap();
    store.partition("t", number).unwrap().append(&[Record::new("first")], Acks::All).unwrap();
    store.close(LONG).unwrap();
    let store = open_at_last(&disks);
    let hanging = Hanging::new(&disks[1], Hang::Everything);
    thread::scope(|scope| {
        let opening = scope.spawn(|| store.partition("t", number));
        while disks[1].held_calls() == 0 {
            thread::yield_now();
        }
        let closing = scope.spawn(|| store.close(LONG));
        thread::sleep(Duration::from_millis(400));
        hanging.heal();
        let opened = opening.join().unwrap();
        closing.join().unwrap().unwrap();
        let next = open_at_last(&disks);
        let late = opened.and_then(|one| one.append(&[Record::new("late")], Acks::All));
        assert!(matches!(late, Err(Error::Closed)), "{late:?}");
        next.partition("t", number).unwrap().append(&[Record::new("next")], Acks::All).unwrap();
        assert_eq!(all(&next, "t", number), ["first", "next"]);
    });
}

/// A call that was under way while the store was closed went on in directories that were another's.
#[test]
fn s18_an_operators_call_keeps_the_directories_until_it_ends() {
    let disks: Vec<_> = (0..2).map(SimDisk::new).collect();
    let store = threaded(&disks).unwrap();
    let config = TopicConfig::new().replication_factor(2).flush(Flush::OnAck);
    store.create_topic("t", config).unwrap();
    let partition = store.partition("t", 0).unwrap();
    partition.append(&[Record::new("first")], Acks::All).unwrap();
    let leader = partition.leader().unwrap();
    let follower = DiskId(1 - leader.0);
    store.stop_disk(follower).unwrap();
    let hanging = Hanging::new(&disks[usize::from(follower.0)], Hang::Everything);
    thread::scope(|scope| {
        // It has the directory's lock, and the store does not know of it yet.
        let starting = scope.spawn(|| store.start_disk(follower));
        while disks[usize::from(follower.0)].held_calls() == 0 {
            thread::yield_now();
        }
        let closing = scope.spawn(|| store.close(LONG));
        while !is_over(&store) {
            thread::yield_now();
        }
        thread::sleep(Duration::from_millis(400));
        assert!(threaded(&disks[..1]).is_err());
        hanging.heal();
        // There are no threads to be had for it any more.
        let started = starting.join().unwrap();
        assert!(matches!(started, Err(Error::Closed)), "{started:?}");
        closing.join().unwrap().unwrap();
    });
    // The handle is kept.
    let next = open_at_last(&disks);
    assert_eq!(all(&next, "t", 0), ["first"]);
    drop(store);
}

/// What one of those who write was told of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    There,
    /// By that error.
    NotThere(String),
    Nothing,
}

/// Values by whoever wrote them together: of one transaction, or one by one.
type Ledger = Mutex<Vec<(Vec<String>, Told)>>;

fn told<T>(outcome: &Result<T, Error>) -> Told {
    match outcome {
        Ok(_) => Told::There,
        Err(error) if error.written() == Written::No => Told::NotThere(format!("{error:?}")),
        Err(_) => Told::Nothing,
    }
}

fn is_over(store: &Store) -> bool {
    matches!(store.topic("t"), Err(Error::Closed))
}

fn append_all(store: &Store, name: &str, ledger: &Ledger) {
    for at in 0.. {
        if is_over(store) {
            return;
        }
        let Ok(partition) = store.partition("t", at % 3) else { continue };
        let value = format!("{name}-{at}");
        let acks = if at % 3 == 0 { Acks::All } else { Acks::Leader };
        let outcome = told(&partition.append(&[Record::new(&value)], acks));
        // What only the leader has may go with it.
        let is_sure = acks == Acks::All || outcome != Told::There;
        ledger.lock().unwrap().push((vec![value], if is_sure { outcome } else { Told::Nothing }));
    }
}

fn produce(store: &Store, name: &str, ledger: &Ledger) {
    let mut builder = store.producer();
    if name.starts_with("named") {
        builder = builder.name(name);
    }
    let Ok(producer) = builder.build() else { return };
    let mut at = 0;
    while !is_over(store) {
        let mut sent = Vec::new();
        for _ in 0..20 {
            at += 1;
            let value = format!("{name}-{at}");
            match producer.send(Record::to("t").partition(at % 3).value(&value)) {
                Ok(delivery) => sent.push((value, delivery)),
                Err(error) => ledger.lock().unwrap().push((vec![value], told::<()>(&Err(error)))),
            }
        }
        for (value, delivery) in sent {
            let outcome = delivery.wait(LONG);
            ledger.lock().unwrap().push((vec![value], told(&outcome)));
        }
        for number in 0..3 {
            let _ = producer.next_sequence("t", number);
        }
    }
}

fn transact(store: &Store, name: &str, ledger: &Ledger) {
    let Ok(mut producer) = store.producer().transactional_id(name).build() else { return };
    for at in 0.. {
        if is_over(store) {
            return;
        }
        let Ok(mut transaction) = producer.begin() else { continue };
        let values: Vec<_> = (0..6).map(|one| format!("{name}-{at}-{one}")).collect();
        let sent = (0..).zip(&values).try_for_each(|(number, value)| {
            transaction.send(Record::to("t").partition(number % 3).value(value))
        });
        let outcome = if at % 4 == 3 || sent.is_err() {
            drop(transaction);
            Told::NotThere("dropped".into())
        } else {
            told(&transaction.commit(LONG))
        };
        ledger.lock().unwrap().push((values, outcome));
    }
}

fn consume(store: &Store) {
    let Ok(mut consumer) = store.consumer().group("g").start(StartAt::Earliest).build() else {
        return;
    };
    if consumer.subscribe(&["t"]).is_err() {
        return;
    }
    while !is_over(store) {
        let _ = consumer.poll(Duration::from_millis(20));
        let _ = consumer.commit();
    }
}

fn operate(store: &Store, random: &mut Random) {
    while !is_over(store) {
        let update = TopicUpdate::new();
        let disk = DiskId(u16::try_from(random.below(3)).unwrap());
        let outcome = match random.below(18) {
            0..3 => store.stop_disk(disk),
            3..7 => (0..3).try_for_each(|disk| store.start_disk(DiskId(disk))),
            7 => {
                store.reassign("t", 0, &[disk, DiskId((disk.0 + 1) % 3), DiskId((disk.0 + 2) % 3)])
            }
            8 => store.verify(VerifyOptions::new().repair(true)).map(drop),
            9 => store.backup_to_simulated_disk(SimDisk::new(random.below(99))).map(drop),
            10 => store.alter_topic("t", update.flush(Flush::Os)),
            11 => store.alter_topic("t", update.flush(Flush::OnAck)),
            12 => store.alter_topic("t", update.max_batch_bytes(1024 << random.below(8))),
            13 => {
                let required = u16::try_from(1 + random.below(3)).unwrap();
                store.alter_topic("t", update.min_insync_replicas(required))
            }
            14 => store.alter_topic("t", update.segment_bytes((1 << 14) << random.below(6))),
            15 => store.snapshot(&[("t", 0), ("t", 1), ("t", 2)]).map(drop),
            16 => store
                .create_topic("u", TopicConfig::new().replication_factor(3))
                .and_then(|()| store.partition("u", 0)?.append(&[Record::new("u")], Acks::All))
                .and_then(|_| store.delete_topic("u")),
            _ => store.partition("trim", 0).and_then(|trim| {
                trim.append(&[Record::new("trim")], Acks::All)?;
                trim.delete_records(trim.high_watermark()).map(drop)
            }),
        };
        drop(outcome);
    }
}

fn committed(store: &Store, number: u32) -> Vec<String> {
    let partition = store.partition("t", number);
    let told = || store.events().collect::<Vec<_>>();
    let partition = partition.unwrap_or_else(|error| panic!("{error}; {:#?}", told()));
    let started = Instant::now();
    let is_settled = || {
        let end = partition.log_end_offset();
        partition.in_sync_replicas().len() == 3 && partition.last_stable_offset() == end
    };
    while !is_settled() {
        assert!(started.elapsed() < LONG, "{}: it is not settled", partition.name());
        thread::sleep(Duration::from_millis(1));
    }
    let (mut next, mut found) = (partition.log_start_offset(), Vec::new());
    let options = ReadOptions::new().isolation(Isolation::ReadCommitted);
    while next < partition.last_stable_offset() {
        let records = partition.read(next, options).unwrap();
        found.extend(
            records.iter().map(|one| String::from_utf8(one.value().unwrap().to_vec()).unwrap()),
        );
        assert!(records.next_offset() > next);
        next = records.next_offset();
    }
    found
}

fn judge(store: &Store, ledger: &Ledger, what: &str) {
    let mut found = BTreeMap::new();
    for value in (0..3).flat_map(|number| committed(store, number)) {
        assert_eq!(found.insert(value.clone(), ()), None, "{what}: {value} is there twice");
    }
    for (values, told) in &*ledger.lock().unwrap() {
        let there = values.iter().filter(|value| found.contains_key(*value)).count();
        let whole = there == 0 || there == values.len();
        assert!(whole, "{what}: {there} of {values:?}, {told:?}");
        assert!(*told != Told::There || there > 0, "{what}: lost: {values:?}");
        let says_no = matches!(told, Told::NotThere(_));
        assert!(!says_no || there == 0, "{what}: there all the same: {values:?}, {told:?}");
    }
}

/// Everything at once, in three threads a close, and at once the next opening: five times over.
#[test]
fn a_store_is_closed_amid_everything_and_opened_again() {
    let seed = setting("ONCELOG_SEED", 7);
    let rounds = setting("ONCELOG_ROUNDS", 6);
    let (done, ended) = channel();
    let story = thread::spawn(move || {
        closed_amid_everything(seed, rounds);
        let _ = done.send(());
    });
    let outcome = ended.recv_timeout(LONG * 8);
    assert_ne!(outcome, Err(RecvTimeoutError::Timeout), "seed {seed}: somebody waits for ever");
    story.join().unwrap();
}

fn closed_amid_everything(seed: u64, rounds: u64) {
    let mut random = Random(seed);
    let disks: Vec<_> = (0..3).map(|disk| SimDisk::new(seed + disk)).collect();
    let mut store = open_at_last(&disks);
    let config = TopicConfig::new().replication_factor(3).min_insync_replicas(2);
    store.create_topic("t", config.clone().partitions(3)).unwrap();
    store.create_topic("trim", config).unwrap();
    let ledger = Mutex::new(Vec::new());
    for round in 0..rounds {
        let span = Duration::from_millis(2 + random.below(60));
        let seeds = [random.below(1 << 30), random.below(1 << 30)];
        thread::scope(|scope| {
            let (ledger, disks) = (&ledger, &disks);
            for writer in ["append", "plain", "named", "id-0", "id-1"] {
                let (store, name) = (store.clone(), format!("{writer}-{round}"));
                scope.spawn(move || match writer {
                    "append" => append_all(&store, &name, ledger),
                    "plain" | "named" => produce(&store, &name, ledger),
                    _ => transact(&store, &name, ledger),
                });
            }
            for seed in seeds {
                let (store, reader) = (store.clone(), store.clone());
                scope.spawn(move || operate(&store, &mut Random(seed)));
                scope.spawn(move || consume(&reader));
            }
            thread::sleep(span);
            let next = scope.spawn(|| open_at_last(disks));
            let closes = [(); 3].map(|()| {
                let store = store.clone();
                scope.spawn(move || store.close(LONG))
            });
            for close in closes {
                let outcome = close.join().unwrap();
                let hung = matches!(outcome, Err(Error::TimedOut { .. }));
                assert!(!hung, "seed {seed}, round {round}: {outcome:?}");
            }
            store = next.join().unwrap();
        });
        let what = format!("seed {seed}, round {round}");
        (0..3).for_each(|disk| store.start_disk(DiskId(disk)).unwrap());
        store.alter_topic("t", TopicUpdate::new().min_insync_replicas(1)).unwrap();
        judge(&store, &ledger, &what);
    }
}
