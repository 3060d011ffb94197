//! Consumers whose logs change under them: other leaders, deleted records, transactions of all outcomes, and futures that are
//! dropped, woken and moved. What a reader may see comes once, in order, and as soon as it is there.
//! `ONCELOG_SEED`, `ONCELOG_STORIES`.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use oncelog::simulation::{Clock, Fault, SimDisk};
use oncelog::{
    Acks, Compression, Consumer, ConsumerBuilder, DiskId, Error, Flush, Isolation, Offset, Record,
    Records, StartAt, Store, Timestamp, TopicConfig, TopicPartition, Transaction, assignor,
};

use crate::consumed::{append, log, simulated};
use crate::random::{Random, setting, tell};

const NOW: Duration = Duration::ZERO;
/// No test waits that long; one that does has found a hang.
const LONG: Duration = Duration::from_secs(20);

fn values(records: &Records) -> Vec<String> {
    let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
    records.iter().map(|record| text(record.value())).collect()
}

struct Count(AtomicU32);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A topic of two replicas that may elect anybody; who leads has what the other lacks. Returns both.
fn lonely_leader(store: &Store) -> (DiskId, DiskId) {
    let config = TopicConfig::new()
        .replication_factor(2)
        .min_insync_replicas(1)
        .flush(Flush::Os)
        .unclean_leader_election(true);
    store.create_topic("t", config).unwrap();
    append(store, 0, &["a", "b"]);
    let partition = log(store, 0);
    let leader = partition.leader().unwrap();
    let other = *partition.replicas().iter().find(|disk| **disk != leader).unwrap();
    store.stop_disk(other).unwrap();
    append(store, 0, &["lost", "too"]);
    (leader, other)
}

/// The leader's disk fails, and the other replica leads with what it has.
fn elect(store: &Store, clock: &Clock, disks: &[SimDisk], leader: DiskId, other: DiskId) {
    disks[usize::from(leader.0)].fail_from(1, Fault::Eio);
    let _ = log(store, 0).append(&[Record::new(&[0; 1 << 20])], Acks::All);
    store.run_background();
    store.start_disk(other).unwrap();
    for _ in 0..20 {
        clock.advance(Duration::from_secs(1));
        store.run_background();
    }
    assert_eq!(log(store, 0).leader(), Some(other));
}

/// It waited for the end of the log that was lost: what the next leader had instead came when that had as much.
#[test]
fn cons_03_who_waits_at_the_end_of_a_log_that_is_cut_is_told() {
    for isolation in [Isolation::ReadUncommitted, Isolation::ReadCommitted] {
        // Of the metadata, a majority stays.
        let disks: Vec<_> = (0..5).map(SimDisk::new).collect();
        let clock = Clock::manual(Timestamp(1_000_000));
        let store = simulated(&disks, &clock);
        let (leader, other) = lonely_leader(&store);
        let builder = store.consumer().start(StartAt::Earliest).isolation(isolation);
        let mut consumer = builder.build().unwrap();
        consumer.assign(&[("t", 0)]).unwrap();
        assert_eq!(values(&consumer.poll(NOW).unwrap()), ["a", "b", "lost", "too"]);
        let woken = Arc::new(Count(AtomicU32::new(0)));
        let waker = Waker::from(Arc::clone(&woken));
        assert!(pin!(consumer.recv()).poll(&mut Context::from_waker(&waker)).is_pending());
        elect(&store, &clock, &disks, leader, other);
        assert_eq!(log(&store, 0).log_end_offset(), Offset(2));
        append(&store, 0, &["c"]);
        assert!(woken.0.load(Ordering::SeqCst) > 0);
        let told = consumer.poll(NOW);
        let Err(Error::Diverged { diverged_at, .. }) = told else { panic!("{told:?}") };
        assert_eq!(diverged_at, Offset(2));
        consumer.seek("t", 0, diverged_at).unwrap();
        assert_eq!(values(&consumer.poll(NOW).unwrap()), ["c"]);
    }
}

/// One partition that cannot be led keeps nobody from committing how far it was read, nor the others.
#[test]
fn what_was_read_of_a_partition_that_nobody_leads_is_committed_with_the_rest() {
    let disks: Vec<_> = (0..3).map(SimDisk::new).collect();
    let clock = Clock::manual(Timestamp(1_000_000));
    let store = simulated(&disks, &clock);
    store.create_topic("t", TopicConfig::new().partitions(3)).unwrap();
    for partition in 0..3 {
        append(&store, partition, &["a", "b"]);
    }
    let mut consumer = store.consumer().group("g").start(StartAt::Earliest).build().unwrap();
    consumer.subscribe(&["t"]).unwrap();
    let mut read = 0;
    while read < 6 {
        read += consumer.poll(NOW).unwrap().count();
    }
    let gone = log(&store, 1).leader().unwrap();
    store.stop_disk(gone).unwrap();
    store.run_background();
    consumer.commit().unwrap();
    let other = store.consumer().group("g").build().unwrap();
    let committed = other.committed(&[("t", 0), ("t", 1), ("t", 2)]).unwrap();
    assert!(committed.len() == 3 && committed.values().all(|held| held.offset == Offset(2)));
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Open(usize),
    Committed,
    Aborted,
}

struct Told {
    consumer: Consumer,
    isolation: Isolation,
    /// Where it is to go on.
    position: u64,
}

/// Holds what a poll returned against what was written: all that may be seen from the position on, and nothing else.
fn judge(told: &mut Told, written: &BTreeMap<u64, (Vec<u8>, Fate)>, start: u64) {
    let records = match told.consumer.poll(NOW) {
        Ok(records) => records,
        Err(Error::OffsetOutOfRange { .. }) => {
            assert!(told.position < start, "{} of a log from {start} on", told.position);
            told.consumer.seek_to_begin("t", 0).unwrap();
            told.position = start;
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let next = told.consumer.position("t", 0).unwrap().0;
    assert!(next >= told.position);
    let seen = |fate: Fate| match told.isolation {
        Isolation::ReadUncommitted => true,
        Isolation::ReadCommitted => fate == Fate::Committed,
    };
    let expected: Vec<_> = written
        .range(told.position..next)
        .filter(|(_, (_, fate))| seen(*fate))
        .map(|(offset, (value, _))| (*offset, value.as_slice()))
        .collect();
    let found: Vec<_> =
        records.iter().map(|record| (record.offset().0, record.value().unwrap())).collect();
    assert!(found == expected, "from {} to {next}", told.position);
    if told.isolation == Isolation::ReadCommitted {
        let passed = written.range(told.position..next);
        let open = passed.filter(|(_, (_, fate))| matches!(fate, Fate::Open(_))).count();
        assert_eq!(open, 0, "it passed what is not decided");
    }
    told.position = next;
}

fn mixed_story(seed: u64) {
    const STEPS: u64 = 150;
    let mut random = Random(seed);
    let store = Store::in_memory(1).unwrap();
    let config = TopicConfig::new().segment_bytes(64 << 10).compression(Compression::None);
    store.create_topic("t", config).unwrap();
    let partition = log(&store, 0);
    let mut written: BTreeMap<u64, (Vec<u8>, Fate)> = BTreeMap::new();
    let mut open: Vec<(usize, Transaction<'static>)> = Vec::new();
    let mut begun = 0;
    let mut readers: Vec<Told> = (0..6)
        .map(|at| {
            let isolation =
                if at % 3 == 0 { Isolation::ReadUncommitted } else { Isolation::ReadCommitted };
            let bits = 1 + random.below(18);
            let bytes = 1 + random.index(1 << bits);
            let mut builder = store.consumer().isolation(isolation).max_bytes(bytes);
            if random.one_in(2) {
                builder = builder.max_poll_records(1 + random.below(7));
            }
            let mut consumer = builder.build().unwrap();
            consumer.assign(&[("t", 0)]).unwrap();
            consumer.seek("t", 0, Offset(0)).unwrap();
            Told { consumer, isolation, position: 0 }
        })
        .collect();
    for _ in 0..STEPS {
        match random.below(10) {
            0..3 => {
                let some = some_values(&mut random);
                let records: Vec<_> =
                    some.iter().map(|value| Record::new(value.as_slice())).collect();
                let at = partition.append(&records, Acks::All).unwrap().offsets;
                let offsets = at.start.0..at.end.0;
                written.extend(offsets.zip(some.into_iter().map(|v| (v, Fate::Committed))));
            }
            3 if open.len() < 4 => {
                begun += 1;
                let builder = store.producer().transactional_id(&format!("id {begun}"));
                let builder = match random.below(3) {
                    0 => builder.compression(Compression::Lz4),
                    1 => builder.compression(Compression::Zstd),
                    _ => builder,
                };
                let producer = Box::leak(Box::new(builder.build().unwrap()));
                open.push((begun, producer.begin().unwrap()));
            }
            3..6 if !open.is_empty() => {
                let at = random.index(open.len());
                let some = some_values(&mut random);
                let records: Vec<_> =
                    some.iter().map(|value| Record::new(value.as_slice())).collect();
                let (number, transaction) = &mut open[at];
                let at = transaction.append("t", 0, &records).unwrap();
                let fate = Fate::Open(*number);
                written.extend((at.start.0..at.end.0).zip(some.into_iter().map(|v| (v, fate))));
            }
            6 if !open.is_empty() => {
                let (number, transaction) = open.swap_remove(random.index(open.len()));
                let fate = if random.one_in(2) {
                    transaction.commit(LONG).unwrap();
                    Fate::Committed
                } else {
                    transaction.abort(LONG).unwrap();
                    Fate::Aborted
                };
                let own = written.values_mut().filter(|(_, of)| *of == Fate::Open(number));
                own.for_each(|(_, of)| *of = fate);
            }
            7 if random.one_in(8) => {
                let (start, end) = (partition.log_start_offset().0, partition.high_watermark().0);
                let before = start + random.below((end - start) / 3 + 1);
                partition.delete_records(Offset(before)).unwrap();
            }
            8 => {
                let told = &mut readers[random.index(6)];
                if random.one_in(4) {
                    let (start, end) =
                        (partition.log_start_offset().0, partition.high_watermark().0);
                    told.position = start + random.below(end - start + 1);
                    told.consumer.seek("t", 0, Offset(told.position)).unwrap();
                } else {
                    told.consumer.pause(&[("t", 0)]).unwrap();
                    assert_eq!(told.consumer.poll(NOW).unwrap().count(), 0);
                    told.consumer.resume(&[("t", 0)]).unwrap();
                }
            }
            _ => {
                let start = partition.log_start_offset().0;
                judge(&mut readers[random.index(6)], &written, start);
            }
        }
    }
    for (_, transaction) in open.drain(..) {
        transaction.abort(LONG).unwrap();
    }
    written.values_mut().for_each(|(_, fate)| {
        if matches!(fate, Fate::Open(_)) {
            *fate = Fate::Aborted;
        }
    });
    // Markers of commits are flushed with what comes next, or soon.
    let (start, end) = (partition.log_start_offset().0, partition.log_end_offset().0);
    while partition.last_stable_offset().0 < end {
        thread::yield_now();
    }
    for told in &mut readers {
        let mut polls = 0;
        // The end of a transaction that was dropped may come now.
        while told.position < end || told.consumer.lag().unwrap()[&TopicPartition::new("t", 0)] > 0
        {
            judge(told, &written, start);
            polls += 1;
            assert!(polls < 2 * STEPS * 40, "it does not get on: {} of {end}", told.position);
        }
    }
}

fn some_values(random: &mut Random) -> Vec<Vec<u8>> {
    let large = random.one_in(10);
    (0..1 + random.below(12))
        .map(|_| {
            let letter = b"abcdefgh"[random.index(8)];
            vec![letter; random.index(if large { 8000 } else { 300 })]
        })
        .collect()
}

#[test]
fn what_a_reader_may_see_comes_once_and_in_order_whatever_bounds_it_has() {
    let first = setting("ONCELOG_SEED", 1);
    for seed in first..first + setting("ONCELOG_STORIES", 25) {
        tell(seed, &format!("story {seed}"), || mixed_story(seed));
    }
}

/// A task's waker, made anew for each poll.
struct Unpark(Thread, AtomicBool);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.1.store(true, Ordering::SeqCst);
        self.0.unpark();
    }
}

/// Awaits the next records, through futures that are given up now and then.
fn next(consumer: &mut Consumer, random: &mut Random) -> Records {
    let begun = Instant::now();
    loop {
        let mut future = pin!(consumer.recv());
        loop {
            let woken = Arc::new(Unpark(thread::current(), AtomicBool::new(false)));
            let waker = Waker::from(Arc::clone(&woken));
            if let Poll::Ready(records) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return records.unwrap();
            }
            if random.one_in(8) {
                break; // and another future is made
            }
            while !woken.1.load(Ordering::SeqCst) {
                thread::park_timeout(Duration::from_secs(1));
                assert!(begun.elapsed() < LONG, "nobody wakes it");
            }
        }
    }
}

#[test]
fn no_wake_up_is_lost_by_futures_that_are_dropped_and_wakers_that_change() {
    const RECORDS: u64 = 600;
    for flush in [Flush::Os, Flush::OnAck] {
        let store = Store::in_memory(1).unwrap();
        store.create_topic("t", TopicConfig::new().partitions(3).flush(flush)).unwrap();
        let mut readers: Vec<_> = [Isolation::ReadUncommitted, Isolation::ReadCommitted]
            .into_iter()
            .map(|isolation| {
                let builder = store.consumer().start(StartAt::Earliest).isolation(isolation);
                let mut consumer = builder.max_poll_records(50).build().unwrap();
                consumer.assign(&[("t", 0), ("t", 1), ("t", 2)]).unwrap();
                consumer
            })
            .collect();
        thread::scope(|scope| {
            for partition in 0..3 {
                let store = &store;
                scope.spawn(move || {
                    let mut producer =
                        store.producer().transactional_id(&format!("{partition}")).build().unwrap();
                    for number in 0..RECORDS {
                        let value = number.to_le_bytes();
                        if number % 3 == 0 {
                            let mut transaction = producer.begin().unwrap();
                            transaction.append("t", partition, &[Record::new(&value)]).unwrap();
                            transaction.commit(LONG).unwrap();
                        } else {
                            log(store, partition)
                                .append(&[Record::new(&value)], Acks::All)
                                .unwrap();
                        }
                    }
                });
            }
            for (seed, consumer) in readers.iter_mut().enumerate() {
                scope.spawn(move || {
                    let mut random = Random(seed as u64);
                    let mut come = [0; 3];
                    while come != [RECORDS; 3] {
                        for record in &next(consumer, &mut random) {
                            let number = record.value().unwrap().first_chunk().unwrap();
                            let come = &mut come[record.partition() as usize];
                            assert_eq!(u64::from_le_bytes(*number), *come);
                            *come += 1;
                        }
                    }
                });
            }
        });
    }
}

// What was handed out and done is committed by itself when it is time, though nothing comes any more.

fn member(store: &Store, every: Duration) -> Consumer {
    let builder = store.consumer().group("g").start(StartAt::Earliest).auto_commit(every);
    let mut consumer = builder.build().unwrap();
    consumer.subscribe(&["t"]).unwrap();
    consumer
}

fn committed(store: &Store, topic: &str) -> Option<Offset> {
    let outside = store.consumer().group("g").build().unwrap();
    let found = outside.committed(&[(topic, 0)]).unwrap();
    found.get(&TopicPartition::new(topic, 0)).map(|held| held.offset)
}

/// It was committed with the next poll, which was the one that waited: who was killed then did all of it again.
#[test]
fn cons_06_who_waits_for_more_commits_what_was_done_when_it_is_time() {
    const SECOND: Duration = Duration::from_secs(1);
    let clock = Clock::manual(Timestamp(1_000_000));
    let store = simulated(&[SimDisk::new(1)], &clock);
    store.create_topic("t", TopicConfig::new()).unwrap();
    let mut consumer = member(&store, SECOND);
    append(&store, 0, &["a", "b"]);
    assert_eq!(consumer.poll(NOW).unwrap().count(), 2);
    let woken = Arc::new(Count(AtomicU32::new(0)));
    let waker = Waker::from(Arc::clone(&woken));
    let mut future = pin!(consumer.recv());
    assert!(future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    clock.advance(SECOND / 2);
    store.run_background();
    assert_eq!(
        (woken.0.load(Ordering::SeqCst), committed(&store, "t")),
        (0, None),
        "it is not time"
    );
    clock.advance(SECOND);
    store.run_background();
    assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    assert!(future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    assert_eq!(committed(&store, "t"), Some(Offset(2)));
    clock.advance(10 * SECOND);
    store.run_background();
    assert_eq!(woken.0.load(Ordering::SeqCst), 1, "nothing has come since");
}

#[test]
fn cons_06_a_poll_that_blocks_commits_what_was_done_when_it_is_time() {
    let store = Store::in_memory(1).unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    let mut consumer = member(&store, Duration::from_millis(20));
    append(&store, 0, &["a", "b"]);
    assert_eq!(consumer.poll(LONG).unwrap().count(), 2);
    let waker = consumer.waker();
    thread::scope(|scope| {
        let waits = scope.spawn(move || consumer.poll(LONG).unwrap().count());
        let begun = Instant::now();
        while committed(&store, "t").is_none() && begun.elapsed() < LONG / 4 {
            thread::yield_now();
        }
        let held = committed(&store, "t");
        waker.wake();
        assert_eq!((waits.join().unwrap(), held), (0, Some(Offset(2))));
    });
}

/// Its offsets went, and it was known for ever: each group that was made for a while took room in memory and in the log.
#[test]
fn grp_09_a_group_goes_with_the_last_of_its_offsets() {
    const DAY: Duration = Duration::from_secs(86_400);
    let (disk, clock) = (SimDisk::new(1), Clock::manual(Timestamp(1_000_000)));
    let open = || {
        let builder = Store::builder().clock(clock.clone()).simulated_disk(disk.clone());
        builder.offsets_retention(DAY * 7).open().unwrap()
    };
    let mut store = open();
    store.create_topic("t", TopicConfig::new()).unwrap();
    append(&store, 0, &["a", "b"]);
    let member = |store: &Store, group: &str| {
        let mut consumer = store.consumer().group(group).start(StartAt::Earliest).build().unwrap();
        consumer.subscribe(&["t"]).unwrap();
        consumer
    };
    let read = |store: &Store, group: &str| {
        let mut consumer = member(store, group);
        let count = consumer.poll(NOW).unwrap().count();
        consumer.commit().unwrap();
        count
    };
    assert_eq!((read(&store, "short"), read(&store, "long")), (2, 2));
    drop(member(&store, "pending"));
    clock.advance(DAY * 6);
    store.run_background();
    assert_eq!(store.groups().unwrap(), ["long", "pending", "short"]);
    assert_eq!(read(&store, "long"), 0);
    clock.advance(DAY);
    let mut producer = store.producer().transactional_id("id").build().unwrap();
    let mut transaction = producer.begin().unwrap();
    let who = store.consumer().group("pending").build().unwrap().group_metadata();
    let at = TopicPartition::new("t", 0);
    transaction.send_offsets([(&at, &Offset(1).into())], &who).unwrap();
    store.run_background();
    assert_eq!(store.groups().unwrap(), ["long", "pending"]);
    assert!(matches!(store.group("short"), Err(Error::UnknownGroup { .. })));
    transaction.commit(LONG).unwrap();
    assert_eq!(store.group("pending").unwrap().offsets.len(), 1);
    drop(producer);
    store.close(LONG).unwrap();
    store = open();
    assert_eq!(store.groups().unwrap(), ["long", "pending"]);
    assert_eq!(read(&store, "long"), 0, "it is used");
    assert_eq!(read(&store, "short"), 2, "it is another group by now");
    clock.advance(DAY * 9);
    store.run_background();
    assert_eq!(store.groups().unwrap(), [] as [&str; 0]);
}

/// The commit of all was refused, in silence, for the one whose log had lost what was read.
#[test]
fn cons_06_a_log_that_was_cut_keeps_the_others_from_no_commit() {
    for goes in [false, true] {
        let disks: Vec<_> = (0..5).map(SimDisk::new).collect();
        let clock = Clock::manual(Timestamp(1_000_000));
        let store = simulated(&disks, &clock);
        let (leader, other) = lonely_leader(&store);
        store.create_topic("u", TopicConfig::new().replication_factor(3)).unwrap();
        let u = store.partition("u", 0).unwrap();
        u.append(&[Record::new("x"), Record::new("y")], Acks::All).unwrap();
        let mut consumer = member(&store, Duration::from_secs(1));
        consumer.subscribe(&["t", "u"]).unwrap();
        let mut read = 0;
        while read < 6 {
            read += consumer.poll(NOW).unwrap().count();
        }
        elect(&store, &clock, &disks, leader, other);
        if goes {
            consumer.close(LONG).unwrap();
        } else {
            assert!(matches!(consumer.poll(NOW), Err(Error::Diverged { .. })));
        }
        assert_eq!((committed(&store, "u"), committed(&store, "t")), (Some(Offset(2)), None));
    }
}

/// The watchdog is a chore, and came after the callback: if that waited for what another member would do, for ever.
#[test]
fn grp_44_a_callback_that_blocks_keeps_no_partition_with_a_member_that_hangs() {
    let store = Store::builder().simulated_disk(SimDisk::new(1)).threads().open().unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    append(&store, 0, &["a"]);
    let build = |group: &str| {
        let builder = store.consumer().group(group).start(StartAt::Earliest);
        let mut consumer = builder.max_poll_interval(Duration::from_millis(50)).build().unwrap();
        consumer.subscribe(&["t"]).unwrap();
        consumer
    };
    let (mut hangs, mut takes, mut tells) = (build("g"), build("g"), build("other"));
    while hangs.assignment().is_empty() {
        assert!(hangs.poll(NOW).is_ok());
    }
    while tells.poll(LONG).unwrap().is_empty() {}
    let ((blocks, blocked), (frees, freed)) = (channel(), channel::<()>());
    let told = move |_| {
        blocks.send(()).unwrap();
        let _ = freed.recv();
    };
    let teller = thread::spawn(move || {
        tells.commit_async(told).unwrap();
        tells
    });
    blocked.recv_timeout(LONG).unwrap();
    let (begun, mut read) = (Instant::now(), 0);
    while read == 0 && begun.elapsed() < LONG / 2 {
        read = takes.poll(Duration::from_millis(10)).unwrap().count();
    }
    drop(frees);
    drop(teller.join().unwrap());
    assert_eq!(read, 1);
}

/// How often each record was handed out, by partition and offset.
struct Counts(Vec<Vec<AtomicU32>>);

impl Counts {
    fn new(partitions: usize, records: usize) -> Self {
        let of_one = |_| (0..records).map(|_| AtomicU32::new(0)).collect();
        Self((0..partitions).map(of_one).collect())
    }

    fn all(&self) -> impl Iterator<Item = u32> {
        self.0.iter().flatten().map(|count| count.load(Ordering::Relaxed))
    }

    /// Reads until it is `enough`, by polls and futures, then leaves in order.
    fn read(&self, mut consumer: Consumer, random: &mut Random, enough: impl Fn(u64) -> bool) {
        consumer.subscribe(&["t"]).unwrap();
        for round in 0.. {
            if enough(round) {
                break;
            }
            let records = if random.one_in(3) {
                match pin!(consumer.recv()).poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(records) => records.unwrap(),
                    Poll::Pending => continue,
                }
            } else {
                consumer.poll(Duration::from_millis(random.below(3))).unwrap()
            };
            for record in &records {
                let offset = usize::try_from(record.offset().0).unwrap();
                self.0[record.partition() as usize][offset].fetch_add(1, Ordering::Relaxed);
            }
            match random.below(20) {
                0 => consumer.commit_async(|_| ()).unwrap(),
                1 => consumer.commit().unwrap(),
                _ => {}
            }
        }
        consumer.close(LONG).unwrap();
    }
}

/// Whoever lets go of a partition has committed what it was given of it: the next one begins exactly there.
#[test]
fn grp_52_members_that_come_and_leave_in_order_are_handed_each_record_once() {
    const RECORDS: usize = 300;
    const PARTITIONS: u32 = 5;
    let kinds: [fn(ConsumerBuilder) -> ConsumerBuilder; 4] = [
        |builder| builder,
        |builder| builder.assignor(assignor::Range),
        |builder| builder.assignor(assignor::RoundRobin),
        |builder| builder.assignor(assignor::Sticky { cooperative: false }),
    ];
    for (case, kind) in kinds.into_iter().chain(kinds).enumerate() {
        let keeps_places = case >= kinds.len();
        let disk = SimDisk::new(1);
        let store = Store::builder().simulated_disk(disk).threads().open().unwrap();
        let config = TopicConfig::new().partitions(PARTITIONS).flush(Flush::Os);
        store.create_topic("t", config).unwrap();
        let counts = Counts::new(PARTITIONS as usize, RECORDS);
        let build = |member: u64, random: &mut Random| {
            let builder = store.consumer().group("g").start(StartAt::Earliest);
            let every = Duration::from_millis(random.below(5));
            let builder = kind(builder.auto_commit(every).max_poll_records(7));
            let name = member.to_string();
            let named = if keeps_places { builder.instance_id(&name) } else { builder };
            named.build().unwrap()
        };
        let begun = Instant::now();
        thread::scope(|scope| {
            let (store, counts, build) = (&store, &counts, &build);
            scope.spawn(move || {
                for _ in 0..RECORDS {
                    (0..PARTITIONS).for_each(|partition| append(store, partition, &["x"]));
                }
            });
            for member in 0..3 {
                scope.spawn(move || {
                    let mut random = Random(member);
                    for _ in 0..5 {
                        let rounds = 1 + random.below(20);
                        let consumer = build(member, &mut random);
                        counts.read(consumer, &mut random, |round| round >= rounds);
                    }
                    let is_done = |_| counts.all().all(|count| count > 0);
                    let consumer = build(member, &mut random);
                    counts.read(consumer, &mut random, |round| {
                        is_done(round) || begun.elapsed() > LONG
                    });
                });
            }
        });
        let wrong = counts.all().filter(|count| *count != 1).count();
        assert_eq!(wrong, 0, "case {case}");
    }
}
