//! What happens to a store while it is copied, at each call that the copy makes: retention, deletions, other leaders, disks
//! that fail, changes of topics, transactions. The copy opens, has all that was acknowledged before and not deleted, of a
//! transaction all or nothing, and knows its producers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use oncelog::simulation::{Clock, Fault, SimDisk};
use oncelog::{
    Acks, DiskId, Error, Flush, Isolation, Offset, Partition, ProducerEpoch, ProducerId,
    ProducerSequence, ReadOptions, Record, Retention, StartAt, Store, Timestamp, TopicConfig,
    TopicUpdate, VerifyOptions,
};

use crate::random::setting;

const SECOND: Duration = Duration::from_secs(1);
/// Who numbers his own batches.
const DEVICE: ProducerId = ProducerId(77);

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meanwhile {
    DeleteRecords,
    Retention,
    StopLeader,
    FailLeader,
    DeleteTopic,
    AlterTopic,
    Transactions,
    Move,
    Grow,
    Close,
}

const ALL: [Meanwhile; 10] = [
    Meanwhile::DeleteRecords,
    Meanwhile::Retention,
    Meanwhile::StopLeader,
    Meanwhile::FailLeader,
    Meanwhile::DeleteTopic,
    Meanwhile::AlterTopic,
    Meanwhile::Transactions,
    Meanwhile::Move,
    Meanwhile::Grow,
    Meanwhile::Close,
];

fn open(disks: &[SimDisk], clock: &Clock) -> Store {
    let builder = Store::builder().clock(clock.clone()).scrub_bytes_per_second(0);
    let builder = disks.iter().fold(builder, |all, disk| all.simulated_disk(disk.clone()));
    builder.append_timeout(SECOND * 5).open().unwrap()
}

/// Numbers from where the name stands on.
fn send_named(store: &Store, count: u64) {
    let producer = store.producer().name("n").build().unwrap();
    let first = producer.next_sequence("in", 0).unwrap();
    for next in first..first + count {
        let value = format!("{next} {}", "x".repeat(250));
        let sent = producer.send(Record::to("in").partition(0).value(&value)).unwrap();
        sent.wait(SECOND * 30).unwrap();
    }
}

fn send_device(partition: &Partition, number: u64) -> Result<oncelog::Appended, Error> {
    let producer = ProducerSequence { id: DEVICE, epoch: ProducerEpoch(0), sequence: number };
    let value = format!("{number} {}", "y".repeat(250));
    partition.append_idempotent(producer, &[Record::new(&value)], Acks::All)
}

fn send_devices(store: &Store, numbers: std::ops::Range<u64>) {
    let partition = store.partition("device", 0).unwrap();
    for number in numbers {
        send_device(&partition, number).unwrap();
    }
}

/// Takes numbers from `in` to both halves of `out`, a few a transaction; every third is tried and given up first.
fn pipe(store: &Store) {
    let mut consumer = store.consumer().group("pipe").start(StartAt::Earliest).build().unwrap();
    consumer.subscribe(&["in"]).unwrap();
    let mut producer = store.producer().transactional_id("pipe").build().unwrap();
    let mut round = 0;
    loop {
        let records = consumer.poll(Duration::ZERO).unwrap();
        if records.is_empty() {
            return;
        }
        round += 1;
        for gives_up in [round % 3 == 0, false] {
            let mut transaction = producer.begin().unwrap();
            for record in &records {
                let half = u32::try_from(record.offset().0 % 2).unwrap();
                transaction.append("out", half, &[Record::new(record.value().unwrap())]).unwrap();
            }
            if gives_up {
                transaction.abort(SECOND).unwrap();
                continue;
            }
            transaction
                .send_offsets(&consumer.position_map(), &consumer.group_metadata())
                .and_then(|()| transaction.commit(SECOND * 30))
                .unwrap();
            break;
        }
    }
}

/// Offsets and numbers, as committed readers see them.
fn numbers(partition: &Partition) -> Vec<(u64, u64)> {
    let (mut next, mut found) = (partition.log_start_offset(), Vec::new());
    loop {
        let options = ReadOptions::new().isolation(Isolation::ReadCommitted);
        let records = partition.read(next, options).unwrap();
        for record in &records {
            let text = String::from_utf8_lossy(record.value().unwrap()).into_owned();
            let number = text.split(' ').next().unwrap().parse().unwrap();
            found.push((record.offset().0, number));
        }
        if records.next_offset() == next {
            return found;
        }
        next = records.next_offset();
    }
}

/// What was acknowledged of each, and from where on it was there.
#[derive(Clone, Copy, Debug)]
struct Known {
    sent: u64,
    device: u64,
    piped: u64,
    starts: [u64; 2],
}

fn starts(store: &Store) -> [u64; 2] {
    ["in", "device"].map(|topic| store.partition(topic, 0).unwrap().log_start_offset().0)
}

struct World {
    disks: Vec<SimDisk>,
    clock: Clock,
    known: Known,
}

impl World {
    fn new(count: u64, flush: Flush) -> Self {
        let disks: Vec<_> = (0..count).map(|at| SimDisk::new(at + 1)).collect();
        let clock = Clock::manual(Timestamp(1_000_000));
        let store = open(&disks, &clock);
        let replicas = u16::try_from(count).unwrap();
        let config = || {
            TopicConfig::new()
                .replication_factor(replicas)
                .min_insync_replicas(replicas.min(2))
                .flush(flush)
                .segment_bytes(4096)
        };
        store.create_topic("in", config()).unwrap();
        store.create_topic("device", config()).unwrap();
        store.create_topic("out", config().partitions(2)).unwrap();
        for _ in 0..4 {
            send_named(&store, 10);
            pipe(&store);
        }
        send_devices(&store, 0..40);
        store.run_background();
        for topic in ["in", "device"] {
            store.partition(topic, 0).unwrap().delete_records(Offset(15)).unwrap();
        }
        store.run_background();
        store.close(SECOND * 10).unwrap();
        let known = Known { sent: 40, device: 40, piped: 40, starts: [15; 2] };
        Self { disks, clock, known }
    }

    /// The same store again, opened, with some more in it.
    fn again(&self) -> (Self, Store) {
        let disks: Vec<_> = self.disks.iter().map(SimDisk::fork).collect();
        disks.iter().skip(1).for_each(|disk| disk.share_process(&disks[0]));
        let clock = Clock::manual(Timestamp(2_000_000));
        let store = open(&disks, &clock);
        send_named(&store, 3);
        pipe(&store);
        send_named(&store, 1);
        send_devices(&store, 40..43);
        let known = Known { sent: 44, device: 43, piped: 43, ..self.known };
        assert_eq!(starts(&store), known.starts);
        (Self { disks, clock, known }, store)
    }

    fn leader(&self, store: &Store) -> DiskId {
        store.partition("in", 0).unwrap().leader().unwrap()
    }

    fn happens(&self, store: &Store, what: Meanwhile) {
        let go_on = || {
            send_named(store, 2);
            pipe(store);
            send_devices(store, 43..60);
            store.run_background();
        };
        let delete = || {
            for topic in ["in", "device"] {
                let partition = store.partition(topic, 0).unwrap();
                partition.delete_records(partition.high_watermark()).unwrap();
            }
            store.run_background();
        };
        match what {
            Meanwhile::DeleteRecords => {
                go_on();
                delete();
                send_devices(store, 60..80);
                delete();
            }
            Meanwhile::Retention => {
                go_on();
                for topic in ["in", "device"] {
                    let update = TopicUpdate::new().retention(Retention::bytes(4096));
                    store.alter_topic(topic, update).unwrap();
                }
                self.clock.advance(SECOND * 3600);
                store.run_background();
                send_devices(store, 60..80);
                store.run_background();
            }
            Meanwhile::StopLeader => {
                let _ = store.stop_disk(self.leader(store));
                go_on();
                delete();
            }
            Meanwhile::FailLeader if self.disks.len() > 1 => {
                self.disks[usize::from(self.leader(store).0)].fail_from(1, Fault::Eio);
                for _ in 0..3 {
                    store.run_background();
                    let _ = send_device(&store.partition("device", 0).unwrap(), 43);
                }
            }
            Meanwhile::DeleteTopic => {
                store.delete_topic("device").unwrap();
                let config = TopicConfig::new().partitions(2);
                store.create_topic("device", config).unwrap();
                send_device(&store.partition("device", 0).unwrap(), 0).unwrap();
            }
            Meanwhile::AlterTopic => {
                for topic in ["in", "device", "out"] {
                    let update = TopicUpdate::new().flush(Flush::Os).segment_bytes(8192);
                    store.alter_topic(topic, update).unwrap();
                }
                go_on();
            }
            Meanwhile::Transactions => {
                go_on();
                let mut producer = store.producer().transactional_id("other").build().unwrap();
                let mut transaction = producer.begin().unwrap();
                for half in 0..2 {
                    transaction.append("out", half, &[Record::new("1000")]).unwrap();
                }
                store.run_background();
                drop(transaction);
                send_named(store, 1);
            }
            Meanwhile::Move if self.disks.len() > 1 => {
                let fourth = store.add_simulated_disk(SimDisk::new(77)).unwrap();
                let leader = self.leader(store);
                let stays = (0..3).map(DiskId).find(|id| *id != leader).unwrap();
                store.reassign("in", 0, &[fourth, stays]).unwrap();
                store.replace_simulated_disk(leader, SimDisk::new(78)).unwrap();
                go_on();
                delete();
            }
            Meanwhile::Grow => {
                store.create_topic("new", TopicConfig::new().partitions(2)).unwrap();
                store.add_partitions("out", 4).unwrap();
                store.partition("new", 0).unwrap().append(&[Record::new("1")], Acks::All).unwrap();
                go_on();
            }
            Meanwhile::Close => store.clone().close(SECOND * 5).unwrap(),
            Meanwhile::FailLeader | Meanwhile::Move => {}
        }
    }

    /// What the copy has of it, and how it goes on there.
    fn judge(&self, target: &SimDisk, known: Known, what: &str) {
        let clock = Clock::manual(Timestamp(3_000_000));
        let mut known = known;
        for again in 0..2 {
            let what = format!("{what}, {again}");
            if again == 0 {
                target.power_loss();
            }
            let copy = open(std::slice::from_ref(target), &clock);
            assert_eq!(copy.verify(VerifyOptions::new()).unwrap().damages, [], "{what}");
            let sent = numbers(&copy.partition("in", 0).unwrap());
            assert!(sent.iter().all(|(offset, number)| offset == number), "{what}: {sent:?}");
            let first = copy.partition("in", 0).unwrap().log_start_offset().0;
            let end = first + sent.len() as u64;
            assert!(sent.iter().map(|(offset, _)| *offset).eq(first..end), "{what}: {sent:?}");
            assert!(first <= known.starts[0] && end >= known.sent, "{what}: {first}..{end}");
            let named = copy.producer().name("n").build().unwrap();
            assert_eq!(named.next_sequence("in", 0).unwrap(), end, "{what}");
            drop(named);
            if copy.topic("device").is_ok_and(|topic| topic.partitions == 1) {
                let partition = copy.partition("device", 0).unwrap();
                let (first, end) = (partition.log_start_offset().0, partition.high_watermark().0);
                let found = numbers(&partition);
                assert!(found.iter().all(|(offset, number)| offset == number), "{what}: {found:?}");
                assert_eq!(found.len() as u64, end - first, "{what}");
                assert!(first <= known.starts[1] && end >= known.device, "{what}: {first}..{end}");
                for repeated in end - 3..end {
                    let told = send_device(&partition, repeated).unwrap();
                    assert!(told.duplicate && told.offsets.start.0 == repeated, "{what}: {told:?}");
                }
                assert_eq!(send_device(&partition, end).unwrap().offsets.start.0, end, "{what}");
            }
            let mut out: Vec<_> =
                (0..2).flat_map(|half| numbers(&copy.partition("out", half).unwrap())).collect();
            out.sort_unstable_by_key(|(_, number)| *number);
            let piped = out.len() as u64;
            assert!(out.iter().map(|(_, number)| *number).eq(0..piped), "{what}: {out:?}");
            assert!(piped >= known.piped && piped <= end, "{what}: {piped} of {end}");
            let consumer = copy.consumer().group("pipe").build().unwrap();
            let committed = consumer.committed(&[("in", 0)]).unwrap();
            assert_eq!(committed.values().next().unwrap().offset.0, piped, "{what}");
            drop(consumer);
            send_named(&copy, 2);
            pipe(&copy);
            (known.sent, known.piped) = (end + 2, end + 2);
            known.device += 1;
            copy.close(SECOND * 10).unwrap();
        }
    }
}

/// Copies a store of which a call is held to the target, or to one of its own disks, while something else happens.
/// Returns whether the call came.
fn copy_while(world: &World, held: Option<usize>, at: u64, what: Meanwhile) -> bool {
    let (world, store) = world.again();
    let target = SimDisk::new(at);
    let told = format!("{what:?} at {at} of {held:?}");
    let disk = held.map_or(&target, |disk| &world.disks[disk]).clone();
    let before = world.known;
    disk.hold_call(at);
    let done = AtomicBool::new(false);
    let (outcome, came, is_cut) = std::thread::scope(|scope| {
        let backup = scope.spawn(|| {
            let outcome = store.backup_to_simulated_disk(target.clone());
            done.store(true, Ordering::Release);
            outcome
        });
        while !disk.holds_call() && !done.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        let came = disk.holds_call();
        let is_cut = held.is_none() && target.files().iter().any(|name| name.contains("topics"));
        if came {
            let happens = scope.spawn(|| world.happens(&store, what));
            // Who asks for what the copy holds in that moment waits for it.
            let patience = std::time::Instant::now();
            while !happens.is_finished() && patience.elapsed() < SECOND / 5 {
                std::thread::yield_now();
            }
            disk.answer();
            happens.join().expect(&told);
        }
        disk.answer();
        (backup.join().unwrap(), came, is_cut)
    });
    let mut known = before;
    if !is_cut {
        // Records that went before the cut are not in the copy.
        known.starts = [u64::MAX; 2];
    }
    match outcome {
        Ok(report) => {
            assert_eq!(report.damages, [], "{told}");
            world.judge(&target, known, &told);
        }
        Err(Error::Closed) if came && what == Meanwhile::Close => {}
        Err(error) => panic!("{told}: {error}"),
    }
    came
}

#[test]
fn a_copy_is_whole_whatever_happens_at_any_of_its_calls() {
    let one_in = setting("ONCELOG_ONE_IN", 96);
    eprintln!("all of it: ONCELOG_ONE_IN=1 cargo test --all-features --test simulated backup");
    for (count, flush) in [(1, Flush::OnAck), (3, Flush::OnAck), (3, Flush::Os)] {
        let world = World::new(count, flush);
        let sources = (0..usize::try_from(count).unwrap()).map(Some);
        for held in std::iter::once(None).chain(sources) {
            // Of its own disks it asks little.
            let one_in = if held.is_some() { one_in.div_ceil(8) } else { one_in };
            for (nth, what) in (0..).zip(ALL) {
                for at in (1 + nth % one_in..).step_by(usize::try_from(one_in).unwrap()) {
                    if !copy_while(&world, held, at, what) {
                        break;
                    }
                }
            }
        }
    }
}
