//! What an operator asks for, where it fails in the middle, meets another's request, or wakes an application that asks for
//! more.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::Duration;

use oncelog::simulation::{Clock, Fault, SimDisk};
use oncelog::{
    Acks, Consumer, DiskId, DiskState, Error, Flush, Offset, Partition, ProducerEpoch, ProducerId,
    ProducerSequence, ReadOptions, Record, Store, Timestamp, TopicConfig, TopicUpdate,
};

/// More than anything here takes.
const LONG: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);

fn clock() -> Clock {
    Clock::manual(Timestamp(1_000_000))
}

fn disks(count: u64) -> Vec<SimDisk> {
    let disks: Vec<_> = (0..count).map(|at| SimDisk::new(at + 1)).collect();
    for disk in &disks[1..] {
        disk.share_process(&disks[0]);
    }
    disks
}

fn open(disks: &[SimDisk]) -> Result<Store, Error> {
    let builder = Store::builder().clock(clock()).append_timeout(Duration::from_millis(20));
    disks.iter().fold(builder, |builder, disk| builder.simulated_disk(disk.clone())).open()
}

/// Fails if it does not end.
fn in_time<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    let (told, ended) = channel();
    thread::spawn(move || told.send(call()));
    ended.recv_timeout(LONG).expect("it does not end, or panicked")
}

fn append(partition: &Partition, values: std::ops::Range<u64>) {
    for at in values {
        let appended = partition.append(&[Record::new(&at.to_le_bytes())], Acks::All).unwrap();
        assert_eq!(appended.offsets.start, Offset(at));
    }
}

fn check(partition: &Partition, end: u64) {
    assert_eq!(partition.high_watermark(), Offset(end));
    let mut next = partition.log_start_offset();
    while next.0 < end {
        let records = partition.read(next, ReadOptions::new()).unwrap();
        for record in &records {
            assert_eq!(record.value().unwrap(), record.offset().0.to_le_bytes());
        }
        next = records.next_offset();
    }
}

// Settings.

fn takes_batches_of(store: &Store, bytes: u32) -> bool {
    let config = store.topic("t").unwrap().config;
    config.clone().max_batch_bytes(bytes) == config
}

/// The later of two changes could be carried into a partition before the earlier one was.
#[test]
fn partitions_go_by_what_was_decided_last_however_changes_meet() {
    let store = Store::in_memory(1).unwrap();
    store.create_topic("t", TopicConfig::new().partitions(32)).unwrap();
    let partitions: Vec<_> = (0..32).map(|at| store.partition("t", at).unwrap()).collect();
    let record = vec![7; 4000];
    for _ in 0..1000 {
        thread::scope(|scope| {
            for bytes in [2000, 8000, 2000, 8000, 2000, 8000] {
                let store = &store;
                let update = TopicUpdate::new().max_batch_bytes(bytes);
                scope.spawn(move || store.alter_topic("t", update).unwrap());
            }
        });
        let takes = takes_batches_of(&store, 8000);
        for partition in &partitions {
            let taken = partition.append(&[Record::new(&record)], Acks::None);
            assert_eq!(taken.is_ok(), takes, "{:?}", partition.name());
        }
    }
}

/// It was called while the partition was held, and waited for it for ever.
#[test]
fn a_callback_of_what_a_change_of_settings_acknowledges_may_call_the_store() {
    let disks = disks(1);
    let store = open(&disks).unwrap();
    store.create_topic("t", TopicConfig::new().flush(Flush::OnAck)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let (told, heard) = channel();
    let asked = store.clone();
    partition.append_nowait(&[Record::new("v")], Acks::All).unwrap().on_complete(move |outcome| {
        let partition = asked.partition("t", 0).map(|partition| partition.log_end_offset());
        let altered = asked.alter_topic("t", TopicUpdate::new().max_batch_bytes(5000));
        told.send((outcome.is_ok(), partition, altered)).unwrap();
    });
    let changed = store.clone();
    in_time(move || changed.alter_topic("t", TopicUpdate::new().flush(Flush::Os))).unwrap();
    let (acknowledged, end, altered) = heard.try_recv().expect("nothing is waited for any more");
    assert!(acknowledged);
    assert_eq!(end.unwrap(), Offset(1));
    altered.unwrap();
    assert!(takes_batches_of(&store, 5000));
}

struct LetGo(Mutex<Option<Consumer>>);

impl Wake for LetGo {
    fn wake(self: Arc<Self>) {
        drop(self.0.lock().unwrap().take());
    }
}

/// It was woken while the list of those to be woken was held, from which the other consumer takes itself.
#[test]
fn a_task_that_is_woken_by_a_close_may_let_go_of_a_consumer() {
    let store = Store::in_memory(1).unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    let consumer = || {
        let mut consumer = store.consumer().build().unwrap();
        consumer.assign(&[("t", 0)]).unwrap();
        consumer
    };
    let (mut waiting, other) = (consumer(), consumer());
    waiting.seek("t", 0, Offset(0)).unwrap();
    let waker = Waker::from(Arc::new(LetGo(Mutex::new(Some(other)))));
    {
        let mut recv = pin!(waiting.recv());
        assert!(recv.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        let closed = store.clone();
        in_time(move || closed.close(LONG)).unwrap();
    }
    drop(waiting);
}

// Disks that come.

fn knows(store: &Store, disk: DiskId) -> bool {
    store.disks().iter().any(|known| known.id == disk)
}

fn all_are_online(store: &Store) -> bool {
    store.disks().iter().all(|disk| disk.state == DiskState::Online)
}

/// The disk was in the metadata before anything was on it: with one disk, the store could not be opened any more; and
/// the directory was refused from then on, for it was not empty.
#[test]
fn a_disk_that_fails_while_it_is_added_can_be_added_again_and_holds_up_nothing() {
    for old in 1..=3 {
        for fault in [Fault::Eio, Fault::Enospc] {
            for passes in [true, false] {
                for call in 1..200 {
                    let all = disks(old + 1);
                    let (present, newcomer) = all.split_at(usize::try_from(old).unwrap());
                    let (newcomer, id) = (&newcomer[0], DiskId(u16::try_from(old).unwrap()));
                    let what = format!("{fault:?} at call {call} of the disk after {old}");
                    let store = open(present).unwrap();
                    let topic = || TopicConfig::new().replication_factor(id.0);
                    store.create_topic("t", topic()).unwrap();
                    let partition = store.partition("t", 0).unwrap();
                    append(&partition, 0..3);
                    let before = newcomer.calls();
                    if passes {
                        newcomer.fail_call(call, fault);
                    } else {
                        newcomer.fail_from(call, fault);
                    }
                    let outcome = store.add_simulated_disk(newcomer.clone());
                    let used = newcomer.calls() - before;
                    if used < call {
                        // What would fail comes later, and is another story.
                        newcomer.heal();
                        outcome.as_ref().expect(&what);
                    }
                    store.create_topic("u", topic()).expect(&what);
                    append(&partition, 3..5);
                    newcomer.heal();
                    if outcome.is_err() && !knows(&store, id) {
                        let forks: Vec<_> = present.iter().map(SimDisk::fork).collect();
                        let other = open(&forks).expect(&what);
                        check(&other.partition("t", 0).unwrap(), 5);
                    }
                    let added = match outcome {
                        Ok(added) => added,
                        Err(_) if knows(&store, id) => {
                            store.start_disk(id).expect(&what);
                            id
                        }
                        Err(_) => store.add_simulated_disk(newcomer.clone()).expect(&what),
                    };
                    assert_eq!(added, id, "{what}");
                    assert!(all_are_online(&store), "{what}");
                    store.reassign("t", 0, &[id]).expect(&what);
                    append(&partition, 5..8);
                    drop((partition, store));
                    all.iter().for_each(SimDisk::process_restart);
                    let store = open(&all).expect(&what);
                    assert!(all_are_online(&store), "{what}");
                    let partition = store.partition("t", 0).unwrap();
                    check(&partition, 8);
                    assert_eq!(partition.replicas(), [id]);
                    if used < call {
                        break;
                    }
                }
            }
        }
    }
}

#[test]
fn a_crash_while_a_disk_is_added_leaves_a_store_that_opens_and_takes_the_directory_again() {
    for old in 1..=3 {
        for power_loss in [false, true] {
            for call in 1..200 {
                let all = disks(old + 1);
                let (present, newcomer) = all.split_at(usize::try_from(old).unwrap());
                let (newcomer, id) = (&newcomer[0], DiskId(u16::try_from(old).unwrap()));
                let what = format!("a crash at call {call} of the disk after {old}, {power_loss}");
                let store = open(present).unwrap();
                store.create_topic("t", TopicConfig::new().replication_factor(id.0)).unwrap();
                let partition = store.partition("t", 0).unwrap();
                append(&partition, 0..3);
                newcomer.crash_at(call);
                let outcome = store.add_simulated_disk(newcomer.clone());
                let died = newcomer.is_dead();
                drop((partition, store));
                for disk in &all {
                    disk.heal();
                    if power_loss { disk.power_loss() } else { disk.process_restart() }
                }
                let store = open(&all).expect(&what);
                if !died {
                    outcome.unwrap();
                    break;
                }
                check(&store.partition("t", 0).unwrap(), 3);
                if !knows(&store, id) {
                    assert!(outcome.is_err(), "{what}");
                    let forks: Vec<_> = present.iter().map(SimDisk::fork).collect();
                    check(&open(&forks).expect(&what).partition("t", 0).unwrap(), 3);
                    assert_eq!(store.add_simulated_disk(newcomer.clone()).expect(&what), id);
                }
                drop(store);
                all.iter().for_each(SimDisk::process_restart);
                let store = open(&all).expect(&what);
                assert!(all_are_online(&store), "{what}");
                store.reassign("t", 0, &[id]).expect(&what);
                check(&store.partition("t", 0).unwrap(), 3);
            }
        }
    }
}

/// As for a disk that is added: the old directory counts until the new one has all that it needs.
#[test]
fn a_directory_that_fails_in_the_place_of_a_disk_can_be_put_there_again() {
    for fault in [Fault::Eio, Fault::Enospc] {
        for call in 1..200 {
            let all = disks(4);
            let (present, newcomer) = (&all[..3], &all[3]);
            let what = format!("{fault:?} at call {call}");
            let store = open(present).unwrap();
            store.create_topic("t", TopicConfig::new().replication_factor(3)).unwrap();
            let partition = store.partition("t", 0).unwrap();
            append(&partition, 0..3);
            let before = newcomer.calls();
            newcomer.fail_from(call, fault);
            let outcome = store.replace_simulated_disk(DiskId(2), newcomer.clone());
            let used = newcomer.calls() - before;
            if used < call {
                newcomer.heal();
                outcome.as_ref().expect(&what);
            }
            append(&partition, 3..5);
            newcomer.heal();
            if outcome.is_err() && store.start_disk(DiskId(2)).is_err() {
                store.replace_simulated_disk(DiskId(2), newcomer.clone()).expect(&what);
            }
            assert!(all_are_online(&store), "{what}");
            for _ in 0..5 {
                store.run_background();
            }
            append(&partition, 5..8);
            assert_eq!(partition.in_sync_replicas().len(), 3, "{what}");
            if used < call {
                break;
            }
        }
    }
}

/// Both were given the same number, and the metadata refused the second.
#[test]
fn disks_that_are_added_at_once_are_different_ones() {
    for round in 0..30 {
        let store = Store::in_memory(1).unwrap();
        let added = thread::scope(|scope| {
            let calls: Vec<_> = (0..4)
                .map(|at| {
                    let store = &store;
                    scope
                        .spawn(move || store.add_simulated_disk(SimDisk::new(100 + round * 4 + at)))
                })
                .collect();
            calls.into_iter().map(|call| call.join().unwrap()).collect::<Vec<_>>()
        });
        let mut added: Vec<_> = added.into_iter().map(Result::unwrap).collect();
        added.sort_unstable();
        assert_eq!(added, [1, 2, 3, 4].map(DiskId));
    }
}

/// What the first move removed at its end could be the replica that the second had brought there.
#[test]
fn moves_of_a_partition_that_meet_lose_no_replica() {
    for round in 0..20 {
        let disks = disks(2);
        let store = Store::builder().append_timeout(SECOND);
        let store = disks.iter().fold(store, |builder, disk| builder.simulated_disk(disk.clone()));
        let store = store.open().unwrap();
        store.create_topic("t", TopicConfig::new()).unwrap();
        let partition = store.partition("t", 0).unwrap();
        append(&partition, 0..50);
        thread::scope(|scope| {
            for disk in [0, 1].map(DiskId) {
                let store = &store;
                scope.spawn(move || (0..20).for_each(|_| drop(store.reassign("t", 0, &[disk]))));
            }
        });
        append(&partition, 50..60);
        let replicas = partition.replicas();
        drop((partition, store));
        disks.iter().for_each(SimDisk::process_restart);
        let store = open(&disks).unwrap();
        let partition = store.partition("t", 0).expect("its files are there");
        check(&partition, 60);
        assert_eq!(partition.replicas(), replicas, "round {round}");
        for disk in replicas {
            let named = |path: &String| path.starts_with("topics/");
            assert!(disks[usize::from(disk.0)].files().iter().any(named), "{disk}");
        }
    }
}

/// A move that failed between its record in the metadata and the partition left replicas that only the metadata knew, and
/// that no later move took back.
#[test]
fn a_move_that_fails_anywhere_can_be_taken_back() {
    for call in (1..80).step_by(3) {
        let disks = disks(3);
        // By a clock that goes on, a move that is stuck ends soon.
        let builder = Store::builder().append_timeout(Duration::from_millis(100));
        let builder =
            disks.iter().fold(builder, |builder, disk| builder.simulated_disk(disk.clone()));
        let store = builder.open().unwrap();
        store.create_topic("t", TopicConfig::new().replication_factor(2)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        append(&partition, 0..3);
        let before = partition.replicas();
        let other = (0..3).map(DiskId).find(|disk| !before.contains(disk)).unwrap();
        let newcomer = &disks[usize::from(other.0)];
        newcomer.fail_call(call, Fault::Enospc);
        let outcome = store.reassign("t", 0, &[before[0], other]);
        newcomer.heal();
        let _ = store.start_disk(other);
        store.run_background();
        if outcome.is_ok() && newcomer.calls() < call {
            break;
        }
        store.reassign("t", 0, &before).unwrap();
        append(&partition, 3..5);
        drop((partition, store));
        disks.iter().for_each(SimDisk::process_restart);
        let store = open(&disks).unwrap();
        let partition = store.partition("t", 0).unwrap();
        assert_eq!(partition.replicas(), before, "call {call}: {outcome:?}");
        check(&partition, 5);
    }
}

/// It went on with what it had left, and acknowledged that.
#[test]
fn a_partition_is_not_moved_to_fewer_disks_than_its_topic_requires() {
    let disks = disks(3);
    let store = open(&disks).unwrap();
    let config = TopicConfig::new().replication_factor(3).min_insync_replicas(2);
    store.create_topic("t", config).unwrap();
    let partition = store.partition("t", 0).unwrap();
    append(&partition, 0..3);
    let (before, calls) = (partition.replicas(), disks.iter().map(SimDisk::calls).sum::<u64>());
    let outcome = store.reassign("t", 0, &[DiskId(1)]);
    let Err(Error::InvalidConfig { key, value, reason }) = outcome else { panic!("{outcome:?}") };
    assert_eq!((key.as_str(), value.as_str()), ("replicas", "1"));
    assert_eq!(reason, "min.insync.replicas is 2, and these are 1");
    assert_eq!(partition.replicas(), before);
    assert_eq!(disks.iter().map(SimDisk::calls).sum::<u64>(), calls, "nothing was done");
    store.reassign("t", 0, &[DiskId(1), DiskId(2)]).unwrap();
    append(&partition, 3..5);
    store.stop_disk(DiskId(2)).unwrap();
    let refused = partition.append(&[Record::new("x")], Acks::All);
    assert!(matches!(refused, Err(Error::NotEnoughReplicas { in_sync: 1, required: 2, .. })));
    // Nor does it come to require more than it has.
    let three = store.alter_topic("t", TopicUpdate::new().min_insync_replicas(3));
    assert!(matches!(three, Err(Error::InvalidConfig { .. })), "{three:?}");
    store.alter_topic("t", TopicUpdate::new().min_insync_replicas(1)).unwrap();
    store.reassign("t", 0, &[DiskId(1)]).unwrap();
    append(&partition, 5..6);
}

// What is waited for.

/// Does something when it goes, as a task may that holds a handle of the store's.
struct AtLast<F: Fn()>(F);

impl<F: Fn() + Send + Sync> Wake for AtLast<F> {
    fn wake(self: Arc<Self>) {}
}

impl<F: Fn()> Drop for AtLast<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn poll_as<F: Future + Unpin>(future: &mut F, at_last: impl Fn() + Send + Sync + 'static) -> bool {
    let waker = Waker::from(Arc::new(AtLast(at_last)));
    Pin::new(future).poll(&mut Context::from_waker(&waker)).is_pending()
}

/// A waker was dropped under the lock that it then waited for, when another took its place.
#[test]
fn a_waker_that_another_replaces_may_call_the_store_when_it_goes() {
    let disks = disks(1);
    let store = open(&disks).unwrap();
    store.create_topic("t", TopicConfig::new().flush(Flush::OnAck)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let mut ticket = partition.append_nowait(&[Record::new("v")], Acks::All).unwrap();
    let asked = partition.clone();
    in_time(move || {
        for _ in 0..3 {
            let asked = asked.clone();
            let append = move || drop(asked.append_nowait(&[Record::new("last")], Acks::None));
            assert!(poll_as(&mut ticket, append));
        }
    });
    let producer = store.producer().build().unwrap();
    in_time(move || {
        let record = || Record::to("t").partition(0).value("v");
        let mut delivery = producer.send(record()).unwrap();
        for _ in 0..3 {
            let sender = producer.clone();
            assert!(poll_as(&mut delivery, move || drop(sender.send(record()))));
        }
        drop(delivery);
    });
    let mut consumer = store.consumer().build().unwrap();
    consumer.assign(&[("t", 0)]).unwrap();
    consumer.seek("t", 0, partition.high_watermark()).unwrap();
    in_time(move || {
        let interrupt = consumer.waker();
        let mut recv = consumer.recv();
        for _ in 0..2 {
            let interrupt = interrupt.clone();
            assert!(poll_as(&mut recv, move || interrupt.wake()));
        }
    });
}

/// The copy was waited for by a clock that stood still.
#[test]
fn a_move_to_a_disk_that_is_full_ends_also_where_no_time_passes() {
    let disks = disks(2);
    let store = open(&disks).unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    let partition = store.partition("t", 0).unwrap();
    append(&partition, 0..3);
    let leader = partition.leader().unwrap();
    let other = DiskId(1 - leader.0);
    disks[usize::from(other.0)].set_free_bytes(Some(0));
    let moved = store.clone();
    let outcome = in_time(move || moved.reassign("t", 0, &[other]));
    assert!(matches!(outcome, Err(Error::TimedOut { .. } | Error::NoSpace { .. })), "{outcome:?}");
    disks[usize::from(other.0)].set_free_bytes(None);
    store.reassign("t", 0, &[other]).unwrap();
    append(&partition, 3..5);
    check(&partition, 5);
}

// What is remembered.

fn numbered(sequence: u64) -> ProducerSequence {
    ProducerSequence { id: ProducerId(7), epoch: ProducerEpoch(0), sequence }
}

/// A replica that is busy while records are deleted learns of it later. After a crash before that it was opened with the
/// new start, and what lay before it was removed unread: whoever wrote it was forgotten, and a batch that was sent again
/// was appended twice.
#[test]
fn a_replica_that_was_busy_while_records_were_deleted_knows_their_producers_after_a_crash() {
    for (written_down, crash) in [(false, false), (true, false), (false, true)] {
        let disks = disks(2);
        let store = open(&disks).unwrap();
        let config =
            TopicConfig::new().replication_factor(2).segment_bytes(4096).index_interval_bytes(256);
        store.create_topic("t", config).unwrap();
        let partition = store.partition("t", 0).unwrap();
        let preferred = partition.leader().unwrap();
        let busy = &disks[usize::from(preferred.0)];
        store.stop_disk(preferred).unwrap();
        store.start_disk(preferred).unwrap();
        let first = [Record::new("once")];
        let placed = partition.append_idempotent(numbered(0), &first, Acks::All).unwrap();
        let fill = vec![1; 200];
        for _ in 0..60 {
            partition.append(&[Record::new(&fill)], Acks::All).unwrap();
        }
        store.run_background();
        assert_eq!(partition.in_sync_replicas().len(), 2);
        assert_ne!(partition.leader(), Some(preferred));
        let before = busy.fork();
        assert_eq!(partition.delete_records(Offset(50)).unwrap(), Offset(50));
        busy.kill();
        drop((partition, store));
        disks.iter().for_each(SimDisk::process_restart);
        // As if it had neither written down who wrote, nor removed anything.
        for path in busy.files().into_iter().filter(|path| path.ends_with(".producers")) {
            if !written_down {
                busy.remove_file(&path);
            }
        }
        for path in before.files().into_iter().filter(|path| path.starts_with("topics/")) {
            busy.write_file(&path, &before.read_file(&path));
        }
        let mut call = 1;
        loop {
            if crash {
                busy.crash_at(call);
            }
            let store = open(&disks);
            let opened = store.is_ok_and(|store| store.partition("t", 0).is_ok());
            let died = busy.is_dead();
            disks.iter().for_each(SimDisk::heal);
            disks.iter().for_each(SimDisk::process_restart);
            if opened && !died {
                break;
            }
            call += 7;
        }
        let store = open(&disks).unwrap();
        let partition = store.partition("t", 0).unwrap();
        assert_eq!(partition.log_start_offset(), Offset(50));
        for disk in [preferred, DiskId(1 - preferred.0)] {
            let again = partition.append_idempotent(numbered(0), &first, Acks::All).unwrap();
            assert!(again.duplicate, "appended twice, led by {:?}", partition.leader());
            assert_eq!(again.offsets, placed.offsets);
            store.run_background();
            let _ = store.stop_disk(disk);
            let _ = store.start_disk(disk);
            store.run_background();
        }
        assert_eq!(partition.log_end_offset(), Offset(61));
    }
}

/// It was said of the settings that they do not fit, which they do as soon as the disk is back.
#[test]
fn a_topic_that_lacks_a_disk_is_told_which() {
    let all = disks(3);
    let store = open(&all).unwrap();
    let config = |replicas| TopicConfig::new().replication_factor(replicas);
    store.create_topic("t", config(3)).unwrap();
    store.stop_disk(DiskId(1)).unwrap();
    for refused in [store.create_topic("u", config(3)), store.add_partitions("t", 2)] {
        let is_named = matches!(refused, Err(Error::MissingDisk { disk: DiskId(1), .. }));
        assert!(is_named, "{refused:?}");
    }
    let too_many = store.create_topic("u", config(4));
    assert!(matches!(too_many, Err(Error::InvalidConfig { .. })), "{too_many:?}");
    store.start_disk(DiskId(1)).unwrap();
    store.create_topic("u", config(3)).unwrap();
    store.add_partitions("t", 2).unwrap();
}

/// What lies in a disk's directory is that disk's to remove: the other one's files were.
#[test]
fn a_directory_within_that_of_another_disk_is_none() {
    let all = tempfile::tempdir().unwrap();
    let at = |name: &str| all.path().join(name);
    let refused = |outcome: Result<(), Error>| {
        let key = "log.dirs";
        assert!(
            matches!(&outcome, Err(Error::InvalidConfig { key: at, .. }) if at == key),
            "{outcome:?}"
        );
    };
    let store = Store::builder().disk(at("a")).disk(at("b")).open().unwrap();
    for inner in ["a/c", "b/topics/c"] {
        std::fs::create_dir_all(at(inner)).unwrap();
        refused(store.add_disk(at(inner)).map(drop));
        refused(store.replace_disk(DiskId(0), at(inner)));
    }
    refused(store.add_disk(all.path()).map(drop));
    store.add_disk(at("ab")).unwrap();
    store.close(Duration::from_secs(10)).unwrap();
    let outer = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(outer.path().join("inner")).unwrap();
    let builder = Store::builder().disk(outer.path()).disk(outer.path().join("inner"));
    refused(builder.open().map(drop));
}
