//! What was processed is not delivered again, and what was not is: positions, commits and transactions in odd orders.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use oncelog::simulation::{Clock, Fault, Hang, SimDisk};
use oncelog::{
    Acks, CommittedOffset, Consumer, ConsumerBuilder, Error, Flush, Isolation, Offset, ReadOptions,
    RebalanceKind, Record, Records, ResetTo, StartAt, Store, Timestamp, TopicConfig,
    TopicPartition, TopicUpdate,
};

use crate::random::Random;
use crate::small_store;

/// No test waits that long; one that does has found a hang.
const LONG: Duration = Duration::from_secs(20);
const NOW: Duration = Duration::ZERO;

fn store(partitions: u32) -> Store {
    let store = Store::in_memory(1).unwrap();
    store.create_topic("t", TopicConfig::new().partitions(partitions)).unwrap();
    store
}

fn at(partition: u32) -> TopicPartition {
    TopicPartition::new("t", partition)
}

fn append(store: &Store, partition: u32, count: usize) {
    let partition = store.partition("t", partition).unwrap();
    for _ in 0..count {
        partition.append(&[Record::new("record")], Acks::All).unwrap();
    }
}

fn grouped(store: &Store) -> ConsumerBuilder {
    store.consumer().group("g").start(StartAt::Earliest)
}

fn member(store: &Store) -> Consumer {
    let mut consumer = grouped(store).build().unwrap();
    consumer.subscribe(&["t"]).unwrap();
    consumer
}

/// What the group has committed for the first partition, seen from outside.
fn committed(store: &Store) -> Option<Offset> {
    let outside = grouped(store).build().unwrap();
    outside.committed(&[("t", 0)]).unwrap().get(&at(0)).map(|held| held.offset)
}

// What was committed last is what is committed, whichever way it was.

#[test]
fn a_commit_after_a_seek_back_holds_though_an_asynchronous_one_went_further() {
    let store = store(1);
    append(&store, 0, 10);
    let mut consumer = member(&store);
    assert_eq!(consumer.poll(NOW).unwrap().count(), 10);
    consumer.seek("t", 0, Offset(5)).unwrap();
    consumer.commit().unwrap();
    assert_eq!(consumer.poll(NOW).unwrap().count(), 5);
    consumer.commit_async(|_| ()).unwrap();
    consumer.seek("t", 0, Offset(5)).unwrap();
    consumer.commit().unwrap();
    assert_eq!(committed(&store), Some(Offset(5)));
}

#[test]
fn a_commit_of_the_position_holds_though_other_offsets_were_committed_asynchronously() {
    let store = store(1);
    append(&store, 0, 10);
    let mut consumer = member(&store);
    assert_eq!(consumer.poll(NOW).unwrap().count(), 10);
    consumer.commit().unwrap();
    let further = BTreeMap::from([(at(0), CommittedOffset::from(Offset(3)))]);
    consumer.commit_offsets_async(&further, |_| ()).unwrap();
    consumer.commit().unwrap();
    assert_eq!(committed(&store), Some(Offset(10)));
    consumer.commit_offsets_async(&further, |_| ()).unwrap();
    consumer.commit_async(|_| ()).unwrap();
    assert_eq!(committed(&store), Some(Offset(10)));
}

#[test]
fn a_commit_of_the_position_holds_though_a_transaction_has_committed_another() {
    let store = store(1);
    append(&store, 0, 10);
    let mut consumer = member(&store);
    assert_eq!(consumer.poll(NOW).unwrap().count(), 10);
    consumer.seek("t", 0, Offset(5)).unwrap();
    consumer.commit().unwrap();
    let mut producer = store.producer().transactional_id("id").build().unwrap();
    let mut transaction = producer.begin().unwrap();
    let offset = CommittedOffset::from(Offset(10));
    transaction.send_offsets([(&at(0), &offset)], &consumer.group_metadata()).unwrap();
    transaction.commit(LONG).unwrap();
    assert_eq!(committed(&store), Some(Offset(10)));
    consumer.commit().unwrap();
    assert_eq!(committed(&store), Some(Offset(5)));
}

#[test]
fn a_commit_in_a_callback_for_a_partition_that_stays_does_not_hide_the_next_one() {
    let store = store(2);
    append(&store, 0, 10);
    let mut consumer = member(&store);
    consumer.poll(NOW).unwrap();
    consumer.commit().unwrap();
    consumer.on_rebalance(|told| {
        let back = BTreeMap::from([(at(0), CommittedOffset::from(Offset(3)))]);
        told.commit_offsets(&back).unwrap();
    });
    store.add_partitions("t", 3).unwrap();
    consumer.poll(NOW).unwrap();
    assert_eq!(committed(&store), Some(Offset(3)));
    consumer.commit().unwrap();
    assert_eq!(committed(&store), Some(Offset(10)));
}

/// The whole commit was refused, by what came under the name since.
#[test]
fn a_commit_in_a_callback_leaves_out_what_was_deleted_since_it_began() {
    let store = Arc::new(store(1));
    append(&store, 0, 10);
    store.create_topic("u", TopicConfig::new()).unwrap();
    store.partition("u", 0).unwrap().append(&[Record::new("passing")], Acks::All).unwrap();
    let mut consumer = grouped(&store).build().unwrap();
    consumer.subscribe(&["t", "u"]).unwrap();
    let mut read = 0;
    while read < 11 {
        read += consumer.poll(NOW).unwrap().count();
    }
    let (weak, (told, hears)) = (Arc::downgrade(&store), channel());
    consumer.on_rebalance(move |change| {
        let store = weak.upgrade().unwrap();
        store.delete_topic("u").unwrap();
        store.create_topic("u", TopicConfig::new()).unwrap();
        assert_eq!(change.position_map().len(), 2);
        told.send(change.commit()).unwrap();
    });
    consumer.unsubscribe();
    hears.recv().unwrap().unwrap();
    assert_eq!(committed(&store), Some(Offset(10)));
    let outside = grouped(&store).build().unwrap();
    assert_eq!(outside.committed(&[("u", 0)]).unwrap(), BTreeMap::new());
}

#[test]
fn a_consumer_that_commits_by_itself_takes_no_explicit_commit_back_when_it_is_dropped() {
    for explicit in 0..4 {
        let store = store(1);
        append(&store, 0, 10);
        let mut consumer = grouped(&store).auto_commit(LONG).build().unwrap();
        consumer.subscribe(&["t"]).unwrap();
        assert_eq!(consumer.poll(NOW).unwrap().count(), 10);
        let part = BTreeMap::from([(at(0), CommittedOffset::from(Offset(7)))]);
        let expected = match explicit {
            0 => consumer.commit().map(|()| 10),
            1 => consumer.commit_async(|_| ()).map(|()| 10),
            2 => consumer.commit_offsets(&part).map(|()| 7),
            _ => consumer.commit_offsets_async(&part, |_| ()).map(|()| 7),
        };
        drop(consumer);
        assert_eq!(committed(&store), Some(Offset(expected.unwrap())), "way {explicit}");
    }
}

/// The end was taken behind the search: what was appended in between was passed over.
#[test]
fn a_seek_to_a_time_passes_over_nothing_that_is_appended_meanwhile() {
    let store = store(1);
    let partition = store.partition("t", 0).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for time in 0.. {
                let record = Record::new("record").timestamp(Timestamp(time));
                partition.append(&[record], Acks::Leader).unwrap();
                if done.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let mut consumer = store.consumer().build().unwrap();
        consumer.assign(&[("t", 0)]).unwrap();
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            let wanted = partition.log_end_offset().0 + 1;
            consumer.seek_to_time("t", 0, Timestamp(i64::try_from(wanted).unwrap())).unwrap();
            let records = consumer.poll(LONG).unwrap();
            let first = records.iter().next().unwrap().offset().0;
            assert!(first <= wanted, "{wanted} is passed over: {first}");
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// Whoever holds it up may be gone, or think for too long.
#[test]
fn a_committed_reader_goes_on_when_a_transaction_that_nobody_ends_is_over() {
    let store = store(1);
    let builder = store.producer().transactional_id("id");
    let mut producer = builder.transaction_timeout(Duration::from_millis(200)).build().unwrap();
    let mut transaction = producer.begin().unwrap();
    transaction.append("t", 0, &[Record::new("open")]).unwrap();
    append(&store, 0, 1);
    let builder = grouped(&store).isolation(Isolation::ReadCommitted);
    let mut consumer = builder.build().unwrap();
    consumer.subscribe(&["t"]).unwrap();
    let records = consumer.poll(LONG).unwrap();
    let values: Vec<_> = records.iter().map(|record| record.value().unwrap()).collect();
    assert_eq!(values, [b"record"]);
    let late = transaction.commit(LONG);
    assert!(matches!(late, Err(Error::TransactionAborted { .. })), "{late:?}");
    let mut transaction = producer.begin().unwrap();
    transaction.append("t", 0, &[Record::new("next")]).unwrap();
    transaction.commit(LONG).unwrap();
    assert_eq!(consumer.poll(LONG).unwrap().count(), 1);
}

/// Topics come and go, with what was read of them.
#[test]
fn a_pattern_reads_what_stays_while_topics_come_and_go() {
    let store = store(1);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..300 {
                let name = format!("t-{}", round % 3);
                let _ = store.delete_topic(&name);
                store.create_topic(&name, TopicConfig::new().partitions(2)).unwrap();
                for number in 0..2 {
                    let partition = store.partition(&name, number).unwrap();
                    partition.append(&[Record::new("passing")], Acks::All).unwrap();
                }
                append(&store, 0, 1);
            }
            done.store(true, Ordering::Release);
        });
        // What could not be committed before a partition changed hands comes again.
        let mut stays = BTreeSet::new();
        let mut consumers = [(); 2].map(|()| {
            let mut consumer = grouped(&store).build().unwrap();
            consumer.subscribe_matching(|topic| topic.starts_with('t')).unwrap();
            consumer
        });
        let started = Instant::now();
        while !(done.load(Ordering::Acquire) && stays.len() == 300) {
            assert!(started.elapsed() < LONG * 2, "{}", stays.len());
            for consumer in &mut consumers {
                let records = consumer.poll(NOW).unwrap();
                let own = records.iter().filter(|record| record.topic() == "t");
                stays.extend(own.map(|record| record.offset().0));
                let committed = consumer.commit();
                let passes = matches!(
                    committed,
                    Ok(()) | Err(Error::RebalanceInProgress { .. } | Error::NotAssigned { .. })
                );
                assert!(passes, "{committed:?}");
            }
        }
    });
}

// A member that does not poll.

#[test]
fn a_task_that_was_woken_and_does_not_poll_again_loses_its_place_to_others() {
    for news in [false, true] {
        let store = store(2);
        let mut stuck =
            grouped(&store).max_poll_interval(Duration::from_millis(50)).build().unwrap();
        stuck.subscribe(&["t"]).unwrap();
        let mut recv = pin!(stuck.recv());
        assert!(recv.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        if !news {
            append(&store, 0, 1);
            append(&store, 1, 1);
        }
        // Its waker was told; the task has something else to do.
        let mut other = member(&store);
        let started = Instant::now();
        let mut held = 0;
        while held < 2 && started.elapsed() < LONG {
            other.poll(Duration::from_millis(10)).unwrap();
            held = other.assignment().len();
        }
        assert_eq!(held, 2, "news of the group: {news}");
    }
}

#[test]
fn a_task_that_does_not_fetch_what_its_waker_told_it_of_loses_its_place_to_others() {
    let store = store(2);
    let mut other = member(&store);
    let mut stuck = grouped(&store).max_poll_interval(Duration::from_millis(50)).build().unwrap();
    stuck.subscribe(&["t"]).unwrap();
    let started = Instant::now();
    let mut recv = pin!(stuck.recv());
    while other.assignment().len() != 1 && started.elapsed() < LONG {
        other.poll(NOW).unwrap();
        assert!(recv.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    append(&store, 0, 1);
    append(&store, 1, 1);
    let mut found = 0;
    while found < 2 && started.elapsed() < LONG {
        found += other.poll(Duration::from_millis(10)).unwrap().count();
    }
    assert_eq!(found, 2, "what the stuck task was given as well");
}

// Many at once.

const WORKERS: u64 = 3;
const INPUTS: u64 = 4;

fn text(value: Option<&[u8]>) -> String {
    String::from_utf8(value.unwrap().to_vec()).unwrap()
}

fn read_all(store: &Store, partition: u32) -> Vec<String> {
    let log = store.partition("out", partition).unwrap();
    let records = small_store::read_all(&log, Isolation::ReadCommitted);
    records.into_iter().map(|(_, value)| text(Some(&value))).collect()
}

/// Copies what it is given to both partitions of the output, until something fails or it has enough.
fn copy(store: &Store, id: u64, random: &mut Random, over: &AtomicBool) -> Result<(), Error> {
    let builder = grouped(store).max_poll_interval(Duration::from_millis(40)).max_poll_records(7);
    let mut consumer = builder.isolation(Isolation::ReadCommitted).build()?;
    consumer.subscribe(&["t"])?;
    let mut producer = store.producer().transactional_id(&format!("id-{id}")).build()?;
    while !over.load(Ordering::Relaxed) && random.below(12) > 0 {
        let records: Records = consumer.poll(Duration::from_millis(5))?;
        if records.is_empty() {
            continue;
        }
        let mut transaction = producer.begin()?;
        for record in &records {
            let value = text(record.value());
            for partition in 0..2 {
                transaction.send(Record::to("out").partition(partition).value(&value))?;
            }
        }
        let late = random.below(10);
        if late == 0 {
            thread::sleep(Duration::from_millis(60)); // it is a zombie by now
        }
        transaction.send_offsets(&consumer.position_map(), &consumer.group_metadata())?;
        match late {
            1 => thread::sleep(Duration::from_millis(60)), // its successors wait for the decision
            2 => return transaction.abort(LONG),
            3 => return Ok(()),
            _ => {}
        }
        transaction.commit(LONG)?;
    }
    Ok(())
}

/// Ends the workers, also when the judge panics.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn inv_11_workers_that_hang_fence_each_other_and_go_deliver_once_while_the_topic_grows() {
    for seed in 1..=4u64 {
        let store = store(2);
        store.create_topic("out", TopicConfig::new().partitions(2)).unwrap();
        let over = AtomicBool::new(false);
        let started = Instant::now();
        let mut total = 0;
        thread::scope(|scope| {
            let end = End(&over);
            for worker in 0..WORKERS {
                let (store, over) = (&store, &over);
                scope.spawn(move || {
                    let mut random = Random(seed * 1000 + worker + 1);
                    while !over.load(Ordering::Relaxed) {
                        // Some take over each other's id. What fails is begun again.
                        let id = (worker + random.below(4) / 3) % WORKERS;
                        let _ = copy(store, id, &mut random, over);
                    }
                });
            }
            let mut random = Random(seed);
            for round in 0..INPUTS * 20 {
                let partitions = store.topic("t").unwrap().partitions;
                if round == 30 {
                    store.add_partitions("t", partitions + 2).unwrap();
                }
                let at = u32::try_from(random.below(partitions.into())).unwrap();
                let log = store.partition("t", at).unwrap();
                for _ in 0..INPUTS {
                    let value = format!("{at}:{}", log.log_end_offset().0);
                    log.append(&[Record::new(&value)], Acks::All).unwrap();
                    total += 1;
                }
                let snapshot = store.snapshot(&[("out", 0), ("out", 1)]).unwrap();
                let seen = [0, 1].map(|number| {
                    let (mut at, mut count) = (Offset(0), 0);
                    while at < snapshot.end("out", number).unwrap() {
                        let records = snapshot.read("out", number, at, ReadOptions::new()).unwrap();
                        count += records.count();
                        at = records.next_offset();
                    }
                    count
                });
                assert_eq!(seen[0], seen[1], "seed {seed}: a transaction by halves");
                thread::sleep(Duration::from_millis(random.below(8)));
            }
            while read_all(&store, 0).len() < total && started.elapsed() < LONG {
                thread::sleep(Duration::from_millis(5));
            }
            drop(end);
        });
        for partition in 0..2 {
            let mut next = BTreeMap::<String, usize>::new();
            let found = read_all(&store, partition);
            for value in &found {
                let (of, number) = value.split_once(':').unwrap();
                let next = next.entry(of.to_owned()).or_default();
                assert_eq!(number.parse(), Ok(*next), "seed {seed}: once, and in order");
                *next += 1;
            }
            assert_eq!(found.len(), total, "seed {seed}: nothing is lost");
        }
    }
}

// Callbacks and wakers may call the store, whoever calls them.

/// Does something once, on the thread that wakes.
struct Once(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Wake for Once {
    fn wake(self: Arc<Self>) {
        let call = self.0.lock().unwrap().take();
        call.into_iter().for_each(|call| call());
    }
}

/// Ends, or says that `call` hangs.
fn in_time(call: impl FnOnce() + Send + 'static) {
    let (done, ended) = channel();
    thread::spawn(move || {
        call();
        done.send(()).unwrap();
    });
    ended.recv_timeout(LONG).expect("it ends");
}

#[test]
fn a_waker_that_an_append_of_a_named_producer_wakes_may_take_the_name_over() {
    in_time(|| {
        let store = Store::in_memory(1).unwrap();
        store.create_topic("t", TopicConfig::new().flush(Flush::Os)).unwrap();
        let mut consumer = store.consumer().start(StartAt::Earliest).build().unwrap();
        consumer.assign(&[("t", 0)]).unwrap();
        let (told, heard) = channel();
        let other = store.clone();
        let take_over = Box::new(move || {
            told.send(other.producer().name("n").build().is_ok()).unwrap();
        });
        let waker = Waker::from(Arc::new(Once(Mutex::new(Some(take_over)))));
        let mut recv = pin!(consumer.recv());
        assert!(recv.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        let producer = store.producer().name("n").build().unwrap();
        let _sent = producer.send(Record::to("t").value("record")).unwrap();
        assert!(heard.recv().unwrap());
    });
}

#[test]
fn a_waker_that_the_end_of_a_transaction_wakes_may_take_a_snapshot() {
    for commits in [true, false] {
        in_time(move || {
            let store = store(2);
            let mut producer = store.producer().transactional_id("id").build().unwrap();
            let mut transaction = producer.begin().unwrap();
            transaction.append("t", 0, &[Record::new("record")]).unwrap();
            transaction.append("t", 1, &[Record::new("record")]).unwrap();
            let builder = store.consumer().start(StartAt::Earliest);
            let mut consumer = builder.isolation(Isolation::ReadCommitted).build().unwrap();
            consumer.assign(&[("t", 0)]).unwrap();
            let (told, heard) = channel();
            let other = store.clone();
            let look = Box::new(move || {
                told.send(other.snapshot(&[("t", 0), ("t", 1)]).is_ok()).unwrap();
            });
            let waker = Waker::from(Arc::new(Once(Mutex::new(Some(look)))));
            let mut recv = pin!(consumer.recv());
            assert!(recv.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            if commits {
                transaction.commit(LONG).unwrap();
            } else {
                transaction.abort(LONG).unwrap();
                append(&store, 0, 1);
            }
            assert!(heard.recv().unwrap(), "commits: {commits}");
        });
    }
}

#[test]
fn a_waker_that_the_decision_about_an_offset_wakes_may_take_a_snapshot() {
    in_time(|| {
        let store = store(1);
        append(&store, 0, 2);
        let mut producer = store.producer().transactional_id("id").build().unwrap();
        let mut consumer = member(&store);
        assert_eq!(consumer.poll(NOW).unwrap().count(), 2);
        let mut transaction = producer.begin().unwrap();
        let (positions, metadata) = (consumer.position_map(), consumer.group_metadata());
        transaction.send_offsets(&positions, &metadata).unwrap();
        drop(consumer);
        let mut next = member(&store);
        let (told, heard) = channel();
        let other = store.clone();
        let look = Box::new(move || told.send(other.snapshot(&[("t", 0)]).is_ok()).unwrap());
        let waker = Waker::from(Arc::new(Once(Mutex::new(Some(look)))));
        let mut recv = pin!(next.recv());
        assert!(recv.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        transaction.commit(LONG).unwrap();
        assert!(heard.recv().unwrap());
    });
}

// What is committed stays so, whoever else commits, and for as long as it is needed.

#[test]
fn a_commit_by_hand_holds_though_another_has_committed_since() {
    type Change = fn(&Store);
    let changes: [(&str, Change); 3] = [
        ("another reader", |store| {
            let mut other = grouped(store).build().unwrap();
            other.assign(&[("t", 0)]).unwrap();
            let back = BTreeMap::from([(at(0), CommittedOffset::from(Offset(3)))]);
            other.commit_offsets(&back).unwrap();
        }),
        ("an operator", |store| {
            store.reset_offsets("g", "t", ResetTo::Earliest).unwrap();
        }),
        ("who deleted the group", |store| store.delete_group("g").unwrap()),
    ];
    for (who, change) in changes {
        let store = store(1);
        append(&store, 0, 10);
        let mut consumer = grouped(&store).build().unwrap();
        consumer.assign(&[("t", 0)]).unwrap();
        assert_eq!(consumer.poll(NOW).unwrap().count(), 10);
        consumer.commit().unwrap();
        change(&store);
        assert_ne!(committed(&store), Some(Offset(10)), "{who}");
        consumer.commit().unwrap();
        assert_eq!(committed(&store), Some(Offset(10)), "{who}");
        change(&store);
        consumer.commit_async(|outcome| outcome.unwrap()).unwrap();
        assert_eq!(committed(&store), Some(Offset(10)), "{who}");
    }
}

#[test]
fn grp_09_what_a_reader_commits_by_hand_again_and_again_does_not_expire() {
    const DAY: Duration = Duration::from_secs(86_400);
    let clock = Clock::manual(Timestamp(1_000_000));
    let builder = Store::builder().clock(clock.clone()).simulated_disk(SimDisk::new(1));
    let store = builder.offsets_retention(DAY * 7).open().unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    append(&store, 0, 10);
    let mut consumer = grouped(&store).build().unwrap();
    consumer.assign(&[("t", 0)]).unwrap();
    assert_eq!(consumer.poll(NOW).unwrap().count(), 10);
    for _ in 0..10 {
        consumer.poll(NOW).unwrap();
        consumer.commit().unwrap();
        clock.advance(DAY);
        store.run_background();
    }
    assert_eq!(committed(&store), Some(Offset(10)));
}

#[test]
fn grp_09_a_group_whose_members_went_with_the_process_is_idle_from_the_next_opening_on() {
    const DAY: Duration = Duration::from_secs(86_400);
    let (disk, clock) = (SimDisk::new(1), Clock::manual(Timestamp(1_000_000)));
    let open = || {
        let builder = Store::builder().clock(clock.clone()).simulated_disk(disk.clone());
        builder.offsets_retention(DAY * 7).open().unwrap()
    };
    for kill in [true, false] {
        let store = open();
        if kill {
            store.create_topic("t", TopicConfig::new()).unwrap();
            append(&store, 0, 10);
        }
        let builder = grouped(&store).max_poll_interval(DAY * 99);
        let mut consumer = builder.build().unwrap();
        consumer.subscribe(&["t"]).unwrap();
        consumer.poll(NOW).unwrap();
        consumer.commit().unwrap();
        // Nothing is appended: there is nothing to commit.
        clock.advance(DAY * 8);
        store.run_background();
        if kill {
            disk.process_restart();
        } else {
            store.close(LONG).unwrap();
        }
        drop((consumer, store));
        let store = open();
        store.groups().unwrap();
        store.run_background();
        assert_eq!(committed(&store), Some(Offset(10)), "killed: {kill}");
        clock.advance(DAY * 6);
        store.run_background();
        drop(store);
        let store = open();
        store.groups().unwrap();
        store.run_background();
        assert_eq!(committed(&store), Some(Offset(10)), "killed: {kill}");
        clock.advance(DAY * 2);
        if kill {
            continue;
        }
        store.run_background();
        assert_eq!(committed(&store), None, "of a group that nobody comes back to");
    }
}

#[test]
fn a_transaction_appends_to_a_topic_that_was_made_again() {
    let store = store(1);
    let mut producer = store.producer().transactional_id("id").build().unwrap();
    for _ in 0..2 {
        let mut transaction = producer.begin().unwrap();
        transaction.append("t", 0, &[Record::new("record")]).unwrap();
        transaction.commit(LONG).unwrap();
        store.delete_topic("t").unwrap();
        store.create_topic("t", TopicConfig::new()).unwrap();
    }
}

/// It was refused, which ended the transaction.
#[test]
fn offsets_of_a_topic_that_has_gone_are_left_out_of_a_members_transaction() {
    for comes_again in [false, true] {
        let store = store(1);
        append(&store, 0, 10);
        store.create_topic("u", TopicConfig::new()).unwrap();
        let append_to_u = || {
            let log = store.partition("u", 0).unwrap();
            log.append(&[Record::new("passing")], Acks::All).unwrap();
        };
        append_to_u();
        let mut consumer = grouped(&store).build().unwrap();
        consumer.subscribe(&["t", "u"]).unwrap();
        let mut read = 0;
        while read < 11 {
            read += consumer.poll(NOW).unwrap().count();
        }
        let (positions, who) = (consumer.position_map(), consumer.group_metadata());
        assert_eq!(positions.len(), 2);
        store.delete_topic("u").unwrap();
        if comes_again {
            store.create_topic("u", TopicConfig::new()).unwrap();
            append_to_u();
        }
        let mut producer = store.producer().transactional_id("id").build().unwrap();
        let mut transaction = producer.begin().unwrap();
        transaction.send_offsets(&positions, &who).unwrap();
        transaction.commit(LONG).unwrap();
        assert_eq!(committed(&store), Some(Offset(10)));
        if comes_again {
            assert_eq!(grouped(&store).build().unwrap().committed(&[("u", 0)]).unwrap().len(), 0);
            assert_eq!(consumer.poll(NOW).unwrap().count(), 1, "it is read from its begin");
        }
    }
}

/// What could not be opened was opened later, by its name: a partition that the group had not given to it, yet.
#[test]
fn inv_12_a_member_takes_up_no_other_topic_of_the_name_than_it_was_given() {
    let disk = SimDisk::new(1);
    let open = || Store::builder().simulated_disk(disk.clone()).open().unwrap();
    let store = open();
    store.create_topic("t", TopicConfig::new()).unwrap();
    append(&store, 0, 1);
    store.close(LONG).unwrap();
    let store = open();
    let mut consumer = member(&store);
    let told = Arc::new(Mutex::new(Vec::new()));
    let tells = Arc::clone(&told);
    consumer.on_rebalance(move |change| {
        tells.lock().unwrap().push((change.kind(), change.partitions().len()));
    });
    disk.fail_from(1, Fault::TooManyFiles);
    consumer.poll(NOW).unwrap_err();
    disk.heal();
    store.delete_topic("t").unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    append(&store, 0, 10);
    told.lock().unwrap().clear();
    assert_eq!(consumer.poll(NOW).unwrap().count(), 10);
    assert_eq!(consumer.assignment(), [at(0)]);
    let mut told = told.lock().unwrap().clone();
    told.retain(|(kind, count)| *kind == RebalanceKind::Assigned && *count > 0);
    assert_eq!(told.len(), 1, "{told:?}");
}

/// What somebody who is called does.
type Deed = fn(&Store);

const DEEDS: [(&str, Deed); 16] = [
    ("closes the store", |store| drop(store.close(LONG))),
    ("deletes the topic", |store| drop(store.delete_topic("t"))),
    ("deletes another", |store| drop(store.delete_topic("u"))),
    ("makes a topic", |store| drop(store.create_topic("v", TopicConfig::new()))),
    ("adds partitions", |store| drop(store.add_partitions("t", 5))),
    ("deletes the group", |store| drop(store.delete_group("g"))),
    ("resets the group", |store| drop(store.reset_offsets("g", "t", ResetTo::Latest))),
    ("looks at the group", |store| drop((store.groups(), store.group("g")))),
    ("asks what is committed", |store| {
        let other = grouped(store).api_timeout(Duration::from_millis(50)).build().unwrap();
        drop(other.committed(&[("t", 0), ("u", 0)]));
    }),
    ("joins, reads, commits and leaves", |store| {
        let Ok(mut other) = grouped(store).build() else { return };
        let _ = other.subscribe(&["t", "u"]);
        let _ = other.poll(Duration::from_millis(20));
        let _ = other.commit();
        let _ = other.commit_async(|_| ());
        let _ = other.close(LONG);
    }),
    ("reads and commits by hand", |store| {
        let mut other = store.consumer().group("h").start(StartAt::Earliest).build().unwrap();
        let _ = other.assign(&[("t", 0)]);
        let _ = other.poll(NOW);
        let _ = other.commit();
    }),
    ("commits more than a batch", |store| {
        let mut other = store.consumer().group("h").build().unwrap();
        let long = CommittedOffset { metadata: "m".repeat(4096), ..Offset(0).into() };
        let all = (0..400).map(|number| (TopicPartition::new("w", number), long.clone()));
        drop(other.commit_offsets(&all.collect()));
    }),
    ("runs a transaction with offsets", |store| {
        let Ok(mut producer) = store.producer().transactional_id("deed").build() else { return };
        let Ok(mut transaction) = producer.begin() else { return };
        let _ = transaction.append("u", 0, &[Record::new("record")]);
        let who = store.consumer().group("h").build().unwrap().group_metadata();
        let _ = transaction.send_offsets([(&at(0), &Offset(1).into())], &who);
        let _ = transaction.commit(LONG);
    }),
    ("sends and waits", |store| {
        let Ok(producer) = store.producer().build() else { return };
        if let Ok(sent) = producer.send(Record::to("u").value("record")) {
            let _ = sent.wait(LONG);
        }
        let _ = producer.close(LONG);
    }),
    ("takes a snapshot", |store| drop(store.snapshot(&[("t", 0), ("u", 0)]))),
    ("changes the topic", |store| {
        drop(store.alter_topic("u", TopicUpdate::new().flush(Flush::OnAck)));
    }),
];

/// Has somebody called, who does what he is given; once.
type Call = fn(&Store, Box<dyn FnOnce() + Send>);

fn wake_later(consumer: &mut Consumer, deed: Box<dyn FnOnce() + Send>) -> Arc<Once> {
    let once = Arc::new(Once(Mutex::new(Some(deed))));
    let waker = Waker::from(Arc::clone(&once));
    while pin!(consumer.recv()).poll(&mut Context::from_waker(&waker)).is_ready() {}
    once
}

/// A member that has read what there is, and is told of changes once.
fn told_member(store: &Store, deed: Option<Box<dyn FnOnce() + Send>>) -> Consumer {
    let mut consumer = grouped(store).build().unwrap();
    consumer.subscribe(&["t", "u", "later"]).unwrap();
    while consumer.poll(NOW).unwrap().count() > 0 {}
    let mut deed = deed;
    consumer.on_rebalance(move |_| deed.take().into_iter().for_each(|deed| deed()));
    consumer
}

const CALLS: [(&str, Call); 14] = [
    ("told of what it is given", |store, deed| {
        let mut consumer = told_member(store, Some(deed));
        store.add_partitions("t", 3).unwrap();
        let _ = consumer.poll(NOW);
        let _ = consumer.commit();
    }),
    ("told of what it lets go of", |store, deed| {
        let mut consumer = told_member(store, Some(deed));
        consumer.unsubscribe();
        let _ = consumer.subscribe(&["t"]);
        let _ = consumer.poll(NOW);
    }),
    ("told as it is closed", |store, deed| {
        let _ = told_member(store, Some(deed)).close(LONG);
    }),
    ("told of what another gets", |store, deed| {
        let mut consumer = told_member(store, Some(deed));
        let other = member(store);
        let _ = consumer.poll(NOW);
        drop(other);
        let _ = consumer.poll(NOW);
    }),
    ("told of a commit", |store, deed| {
        let mut consumer = told_member(store, None);
        consumer.commit_async(|_| deed()).unwrap();
        let _ = consumer.commit();
    }),
    ("told of a commit as it is dropped", |store, deed| {
        let mut consumer = told_member(store, None);
        let _ = consumer.commit_async(|_| deed());
    }),
    ("woken by an append", |store, deed| {
        let mut consumer = told_member(store, None);
        wake_later(&mut consumer, deed);
        append(store, 0, 1);
        let _ = consumer.poll(NOW);
    }),
    ("woken by a topic that comes", |store, deed| {
        let mut consumer = told_member(store, None);
        wake_later(&mut consumer, deed);
        store.create_topic("later", TopicConfig::new()).unwrap();
        let _ = consumer.poll(NOW);
    }),
    ("woken by a topic that goes", |store, deed| {
        let mut consumer = told_member(store, None);
        wake_later(&mut consumer, deed);
        let _ = store.delete_topic("u");
        let _ = consumer.poll(NOW);
    }),
    ("woken by a topic that grows", |store, deed| {
        let mut consumer = told_member(store, None);
        wake_later(&mut consumer, deed);
        store.add_partitions("t", 4).unwrap();
        let _ = consumer.poll(NOW);
    }),
    ("woken by one who leaves", |store, deed| {
        let mut consumer = told_member(store, None);
        let other = member(store);
        let _ = consumer.poll(NOW);
        wake_later(&mut consumer, deed);
        drop(other);
        let _ = consumer.poll(NOW);
    }),
    ("woken as it loses its place", |store, deed| {
        let mut other =
            grouped(store).max_poll_interval(Duration::from_millis(30)).build().unwrap();
        other.subscribe(&["t", "u"]).unwrap();
        let _ = other.poll(NOW);
        let mut consumer = told_member(store, None);
        let _ = other.poll(NOW);
        let _ = consumer.poll(NOW);
        let once = wake_later(&mut consumer, deed);
        while once.0.lock().unwrap().is_some() {
            thread::yield_now();
        }
        let _ = consumer.poll(NOW);
    }),
    ("woken by a decision about its offset", |store, deed| {
        let first = told_member(store, None);
        let mut producer = store.producer().transactional_id("id").build().unwrap();
        let mut transaction = producer.begin().unwrap();
        transaction.send_offsets(&first.position_map(), &first.group_metadata()).unwrap();
        drop(first);
        let mut consumer = member(store);
        wake_later(&mut consumer, deed);
        let _ = transaction.commit(LONG);
        let _ = consumer.poll(NOW);
    }),
    ("told of a delivery", |store, deed| {
        let producer = store.producer().build().unwrap();
        producer.send_with(Record::to("t").value("record"), |_| deed()).unwrap();
        let _ = producer.flush(LONG);
    }),
];

#[test]
fn whoever_is_called_about_a_group_may_do_anything_with_the_store() {
    for flush in [Flush::Os, Flush::OnAck] {
        for (called, call) in CALLS {
            for (does, deed) in DEEDS {
                let (told, heard) = channel();
                thread::spawn(move || {
                    let builder = Store::builder().flush(flush).simulated_disk(SimDisk::new(1));
                    let store = builder.threads().open().unwrap();
                    for topic in ["t", "u"] {
                        store.create_topic(topic, TopicConfig::new().partitions(2)).unwrap();
                    }
                    store.create_topic("w", TopicConfig::new().partitions(400)).unwrap();
                    append(&store, 0, 3);
                    let (other, done) = (store.clone(), told.clone());
                    let act = Box::new(move || {
                        deed(&other);
                        done.send("its deed").unwrap();
                    });
                    call(&store, act);
                    told.send("the call").unwrap();
                });
                for _ in 0..2 {
                    let ended = heard.recv_timeout(LONG);
                    assert!(ended.is_ok(), "{called}: {does}: {flush:?}: {ended:?}");
                }
            }
        }
    }
}

/// Those behind it were told of by nobody.
#[test]
fn a_consumer_that_goes_while_a_callback_blocks_leaves_no_commit_untold() {
    let disk = SimDisk::new(1);
    let builder = Store::builder().flush(Flush::OnAck).simulated_disk(disk.clone());
    let store = builder.threads().open().unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    append(&store, 0, 10);
    let mut consumer = member(&store);
    while consumer.poll(NOW).unwrap().is_empty() {}
    let ((is_in, came_in), (let_go, held)) = (channel(), channel());
    let block = move |_| {
        is_in.send(()).unwrap();
        held.recv_timeout(LONG).unwrap();
    };
    consumer.commit_async(block).unwrap();
    // Nobody waits for it: the store's thread tells.
    came_in.recv_timeout(LONG).unwrap();
    disk.hang(Hang::Everything);
    let (told, heard) = channel();
    consumer.seek("t", 0, Offset(5)).unwrap();
    consumer.commit_async(move |outcome| told.send(outcome).unwrap()).unwrap();
    let _ = consumer.close(Duration::from_millis(50));
    let_go.send(()).unwrap();
    let outcome = heard.recv_timeout(LONG);
    disk.answer();
    assert!(matches!(outcome, Ok(Err(Error::TimedOut { .. }))), "{outcome:?}");
}
