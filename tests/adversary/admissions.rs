//! Directories that become disks while others fail, hang or die, partitions that move there, and metadata that are written
//! anew beside it: held against every opening that may follow.
//!
//! `ONCELOG_ONE_IN=1` for every call at which a disk can fail.

use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use oncelog::simulation::{Clock, Fault, Hang, SimDisk};
use oncelog::{
    Acks, DiskId, DiskState, Error, Isolation, Offset, Partition, Record, Store, Timestamp,
    TopicConfig, TopicUpdate,
};

use crate::random::setting;
use crate::small_store::{disks, read_all};

const LONG: Duration = Duration::from_secs(60);
const RECORDS: u64 = 4;

fn one_in(otherwise: u64) -> usize {
    usize::try_from(setting("ONCELOG_ONE_IN", otherwise)).unwrap().max(1)
}

fn open(disks: &[&SimDisk]) -> Result<Store, Error> {
    let clock = Clock::manual(Timestamp(1_000_000));
    let builder = Store::builder().clock(clock).append_timeout(Duration::from_millis(20));
    disks.iter().fold(builder, |all, disk| all.simulated_disk((*disk).clone())).open()
}

fn fork(disks: &[SimDisk]) -> Vec<SimDisk> {
    let forked: Vec<_> = disks.iter().map(SimDisk::fork).collect();
    forked[1..].iter().for_each(|disk| disk.share_process(&forked[0]));
    forked
}

fn append(partition: &Partition, value: u64) -> bool {
    partition.append(&[Record::new(&value.to_le_bytes())], Acks::All).is_ok()
}

fn has_all(partition: &Partition, kept: &[u64]) -> bool {
    let read = read_all(partition, Isolation::ReadUncommitted);
    kept.iter().all(|value| read.iter().any(|(_, found)| *found == value.to_le_bytes()))
}

fn knows(store: &Store, disk: DiskId) -> bool {
    store.disks().iter().any(|known| known.id == disk)
}

fn stop(disks: &[SimDisk], store: Store, power: bool) {
    disks[0].kill();
    drop(store);
    disks.iter().for_each(SimDisk::heal);
    disks.iter().for_each(if power { SimDisk::power_loss } else { SimDisk::process_restart });
}

/// All lists of some of `count` disks.
fn subsets(count: usize) -> Vec<Vec<usize>> {
    (1..1_usize << count)
        .map(|bits| (0..count).filter(|at| bits >> at & 1 == 1).collect())
        .collect()
}

/// Disk `count` of a store of so many, with a topic that has a replica on each.
fn begun(count: usize) -> Vec<SimDisk> {
    let all = disks(count as u64 + 1);
    let store = open(&all[..count].iter().collect::<Vec<_>>()).unwrap();
    let replicas = u16::try_from(count).unwrap();
    store.create_topic("t", TopicConfig::new().replication_factor(replicas)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    assert!((0..RECORDS).all(|value| append(&partition, value)));
    drop(partition);
    stop(&all, store, false);
    all
}

/// The newcomer itself was counted: an opening without it, of as many as the store had before, knew nothing of it, nor of
/// what had been decided since.
#[test]
fn a_disk_counts_once_a_majority_of_those_before_it_have_taken_it_in() {
    let step = one_in(2);
    let mut added = 0;
    for count in 1..=3 {
        let begun = begun(count);
        for failing in subsets(count) {
            for call in (1..).step_by(step) {
                let all = fork(&begun);
                let store = open(&all[..count].iter().collect::<Vec<_>>()).unwrap();
                failing.iter().for_each(|at| all[*at].fail_from(call, Fault::Eio));
                let before: Vec<_> = all.iter().map(SimDisk::calls).collect();
                let told = store.add_simulated_disk(all[count].clone());
                let met = failing.iter().any(|at| all[*at].calls() >= before[*at] + call);
                let what = format!("{failing:?} of {count} from call {call}: {told:?}");
                // What goes on without them is not to be forgotten either.
                let made = store.create_topic("u", TopicConfig::new()).is_ok()
                    && append(&store.partition("u", 0).unwrap(), 77);
                stop(&all, store, false);
                for which in subsets(count) {
                    let forks = fork(&all);
                    let given: Vec<_> = which.iter().map(|at| &forks[*at]).collect();
                    match open(&given) {
                        Ok(store) => {
                            let id = DiskId(u16::try_from(count).unwrap());
                            let what = format!("{what}, opened with {which:?}");
                            assert!(told.is_err() || knows(&store, id), "{what}");
                            assert!(!made || store.topic("u").is_ok(), "{what}");
                        }
                        Err(Error::MissingDisk { .. }) => {}
                        Err(error) => panic!("{what}, opened with {which:?}: {error}"),
                    }
                }
                let store = open(&all.iter().collect::<Vec<_>>()).expect(&what);
                store.run_background();
                let kept: Vec<_> = (0..RECORDS).collect();
                assert!(has_all(&store.partition("t", 0).unwrap(), &kept), "{what}");
                added += u64::from(told.is_ok() && met);
                if !met {
                    break;
                }
            }
        }
    }
    assert!(added > 0, "some failed and were done without");
}

/// As for one that is added: what a majority decided may not be known only to those that are away, and the newcomer.
#[test]
fn a_directory_in_the_place_of_a_disk_counts_once_a_majority_without_it_has_taken_it_in() {
    let begun = begun(3);
    for failing in [vec![0], vec![1], vec![0, 1]] {
        for call in (1..).step_by(one_in(2)) {
            let all = fork(&begun);
            let store = open(&[&all[0], &all[1], &all[2]]).unwrap();
            failing.iter().for_each(|at| all[*at].fail_from(call, Fault::Eio));
            let before: Vec<_> = all.iter().map(SimDisk::calls).collect();
            let told = store.replace_simulated_disk(DiskId(2), all[3].clone());
            let met = failing.iter().any(|at| all[*at].calls() >= before[*at] + call);
            let what = format!("{failing:?} from call {call}: {told:?}");
            let mut kept: Vec<_> = (0..RECORDS).collect();
            let partition = store.partition("t", 0).unwrap();
            for value in RECORDS..RECORDS + 3 {
                if append(&partition, value) {
                    kept.push(value);
                }
                store.run_background();
            }
            drop(partition);
            stop(&all, store, call % 2 == 0);
            // The newcomer may not be among them, nor be one of them.
            for which in [vec![0, 1, 3], vec![0, 1], vec![0, 3], vec![1, 3], vec![0, 1, 2]] {
                let forks = fork(&all);
                let given: Vec<_> = which.iter().map(|at| &forks[*at]).collect();
                let store = match open(&given) {
                    Ok(store) => store,
                    Err(Error::MissingDisk { .. }) if which.len() == 2 => continue,
                    Err(error) => panic!("{what}, opened with {which:?}: {error}"),
                };
                store.run_background();
                let partition = match store.partition("t", 0) {
                    Ok(partition) => partition,
                    // Those that have what was acknowledged are away.
                    Err(Error::NoLeader { .. }) => continue,
                    Err(error) => panic!("{what}, opened with {which:?}: {error}"),
                };
                assert!(
                    partition.leader().is_none() || has_all(&partition, &kept),
                    "{what}, opened with {which:?}: {kept:?} is not all there"
                );
            }
            if !met {
                break;
            }
        }
    }
}

/// Appends while a partition moves to a disk that has just come, until a disk dies with the process: whatever was acknowledged
/// is there on every majority, or on all of them.
#[test]
fn a_crash_at_any_call_of_a_move_to_a_new_disk_loses_nothing_whichever_disks_are_there_next() {
    let begun = begun(3);
    let mut turn = 0;
    for dies in 0..4 {
        for call in (1..).step_by(one_in(151)) {
            turn += 1;
            let all = fork(&begun);
            let store = open(&[&all[0], &all[1], &all[2]]).unwrap();
            let partition = store.partition("t", 0).unwrap();
            let mut kept: Vec<_> = (0..RECORDS).collect();
            all[dies].crash_at(call);
            let mut append = |value| {
                if append(&partition, value) {
                    kept.push(value);
                }
            };
            let added = store.add_simulated_disk(all[3].clone());
            append(10);
            let moved = store.reassign("t", 0, &[DiskId(3), DiskId(1)]);
            append(11);
            let back = store.reassign("t", 0, &[DiskId(0), DiskId(3), DiskId(2)]);
            append(12);
            let died = all[dies].is_dead();
            let what = format!("disk {dies} at call {call}: {added:?}, {moved:?}, {back:?}");
            drop(partition);
            stop(&all, store, turn % 2 == 0);
            for which in [vec![0, 1, 2, 3], vec![0, 1, 2], vec![0, 1, 3], vec![1, 2, 3]] {
                let forks = fork(&all);
                let given: Vec<_> = which.iter().map(|at| &forks[*at]).collect();
                let what = format!("{what}, opened with {which:?}");
                let store = open(&given).expect(&what);
                store.run_background();
                let mut partition = store.partition("t", 0).unwrap();
                let all_there = partition.replicas().iter().all(|id| which.contains(&id.0.into()));
                if all_there {
                    assert!(partition.leader().is_some(), "{what}");
                }
                if partition.leader().is_some() {
                    assert!(has_all(&partition, &kept), "{what}: {kept:?} is not all there");
                }
                // Whatever is there takes more, and an operator brings all in order.
                for id in (0..4).map(DiskId).filter(|id| which.contains(&id.0.into())) {
                    if knows(&store, id) {
                        continue;
                    }
                    store.add_simulated_disk(forks[usize::from(id.0)].clone()).expect(&what);
                }
                if which.len() == 4 {
                    store.reassign("t", 0, &[DiskId(3)]).expect(&what);
                    partition = store.partition("t", 0).unwrap();
                    assert!(has_all(&partition, &kept), "{what}: {kept:?}, moved to the new disk");
                }
            }
            if !died {
                break;
            }
        }
    }
}

/// Directories that are not empty, or not there: each is refused, and left as it was.
#[test]
fn what_is_no_empty_directory_is_no_new_disk_and_stays_as_it_is() {
    let begun = begun(3);
    let other = {
        let other = SimDisk::new(90);
        let store = open(&[&other]).unwrap();
        store.create_topic("theirs", TopicConfig::new()).unwrap();
        assert!(append(&store.partition("theirs", 0).unwrap(), 1));
        drop(store);
        other
    };
    let all = fork(&begun);
    let store = open(&[&all[0], &all[1], &all[2]]).unwrap();
    let files = |disk: &SimDisk| -> Vec<_> {
        disk.files().into_iter().map(|file| (disk.read_file(&file), file)).collect()
    };
    let replaced = SimDisk::new(91);
    store.replace_simulated_disk(DiskId(2), replaced.clone()).unwrap();
    // Another store's; one of its own, in service; one that was replaced; one that was stopped.
    store.stop_disk(DiskId(1)).unwrap();
    for directory in [&other, &all[0], &all[2], &all[1], &replaced] {
        let before = files(directory);
        let added = store.add_simulated_disk(directory.clone());
        let placed = store.replace_simulated_disk(DiskId(1), directory.clone());
        for told in [added.map(drop), placed] {
            let refused =
                matches!(told, Err(Error::UnsupportedFormat { .. } | Error::Locked { .. }));
            assert!(refused, "{told:?}");
        }
        assert_eq!(files(directory).len(), before.len());
        assert!(files(directory).iter().zip(&before).all(|(now, then)| now == then));
    }
    store.start_disk(DiskId(1)).unwrap();
    for unknown in [3, 63, 64, u16::MAX] {
        let unknown = DiskId(unknown);
        for told in [
            store.stop_disk(unknown),
            store.start_disk(unknown),
            store.replace_simulated_disk(unknown, SimDisk::new(92)),
            store.reassign("t", 0, &[unknown]),
        ] {
            let named = matches!(told, Err(Error::MissingDisk { disk, .. }) if disk == unknown);
            assert!(named, "{told:?}");
        }
    }
    assert!(store.disks().iter().all(|disk| disk.state == DiskState::Online));
    assert!(has_all(&store.partition("t", 0).unwrap(), &[0, 1, 2, 3]));
    let theirs = open(&[&other]).unwrap();
    assert!(has_all(&theirs.partition("theirs", 0).unwrap(), &[1]));
}

// Metadata that are written anew, on a disk that hangs.

/// A call on its way, for [`outcome_in_time`].
fn begin<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (told, ended) = channel();
    thread::spawn(move || told.send(call()));
    ended
}

/// Fails if the call does not end.
fn outcome_in_time<T>(what: &str, call: &Receiver<T>) -> T {
    call.recv_timeout(LONG / 4).unwrap_or_else(|error| panic!("{what}: {error}"))
}

/// As both.
fn in_time<T: Send + 'static>(what: &str, call: impl FnOnce() -> T + Send + 'static) -> T {
    outcome_in_time(what, &begin(call))
}

/// A call that is held no longer than its test goes on.
struct Held(SimDisk);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.answer();
    }
}

/// Three disks, and metadata that the next topic makes so long that they are written anew.
fn nearly_long() -> (Vec<SimDisk>, Store, TopicConfig) {
    let all = disks(3);
    let builder = Store::builder().replica_lag_max(Duration::from_millis(900));
    let builder = all.iter().fold(builder, |all, disk| all.simulated_disk(disk.clone()));
    let store = builder.append_timeout(LONG).threads().open().unwrap();
    let large = TopicConfig::new().partitions(40_000).replication_factor(3);
    store.create_topic("t", TopicConfig::new().replication_factor(3)).unwrap();
    for name in ["a", "b"] {
        store.create_topic(name, large.clone()).unwrap();
        store.delete_topic(name).unwrap();
    }
    (all, store, large)
}

/// A disk was asked whether they fit under the lock that every change takes.
#[test]
fn s22_a_disk_that_hangs_while_metadata_are_written_anew_holds_up_no_change() {
    for call in (9..).step_by(one_in(6)) {
        let (all, store, large) = nearly_long();
        let _held = Held(all[2].clone());
        all[2].hold_call(call);
        let what = format!("call {call}");
        let made = {
            let store = store.clone();
            in_time(&what, move || store.create_topic("c", large))
        };
        made.expect(&what);
        let holds = all[2].holds_call();
        let update = TopicUpdate::new().max_batch_bytes(7777);
        {
            let store = store.clone();
            in_time(&what, move || store.alter_topic("t", update)).expect(&what);
        }
        assert!(append(&store.partition("t", 0).unwrap(), 1), "{what}");
        all[2].answer();
        stop(&all, store, false);
        let store = open(&[&all[0], &all[1]]).expect(&what);
        assert!(store.topic("c").is_ok() && has_all(&store.partition("t", 0).unwrap(), &[1]));
        if !holds {
            break;
        }
    }
}

/// What a disk was asked for while it hung was done once it had come back: the metadata of before took the place of those that
/// it had been brought, and what was decided with it from then on was nowhere else.
#[test]
fn s22_what_a_disk_is_late_with_does_not_replace_what_it_was_brought_since() {
    let mut came_back = 0;
    for call in (11..22).step_by(one_in(3)) {
        let (all, store, large) = nearly_long();
        let _held = Held(all[2].clone());
        all[2].hold_call(call);
        let what = format!("call {call}");
        store.create_topic("c", large).expect(&what);
        let holds = all[2].holds_call();
        let online = |store: &Store| store.disks()[2].state == DiskState::Online;
        let early = !online(&store) && store.start_disk(DiskId(2)).is_ok();
        all[2].answer();
        // Whatever it is late with is done.
        let (mut calls, mut since) = (all[2].calls(), Instant::now());
        while since.elapsed() < Duration::from_millis(50) {
            thread::yield_now();
            if all[2].calls() != calls || all[2].held_calls() > 0 {
                (calls, since) = (all[2].calls(), Instant::now());
            }
        }
        if !online(&store) {
            store.start_disk(DiskId(2)).expect(&what);
        }
        store.stop_disk(DiskId(1)).expect(&what);
        store.create_topic("z", TopicConfig::new()).expect(&what);
        stop(&all, store, false);
        let what = format!("{what}, held: {holds}, started while it hung: {early}");
        let store = open(&[&all[1], &all[2]]).expect(&what);
        assert!(store.topic("z").is_ok(), "{what}: what two of three had taken");
        came_back += u64::from(holds);
    }
    assert!(came_back > 0);
}

/// However little replicas may lag: sound disks were done without, or all changes refused, where a change took longer than a
/// third of that.
#[test]
fn a8_disks_are_not_done_without_for_what_a_sound_one_needs() {
    let all = disks(3);
    let builder = Store::builder().replica_lag_max(Duration::ZERO).append_timeout(LONG);
    let builder = all.iter().fold(builder, |all, disk| all.simulated_disk(disk.clone()));
    let store = builder.threads().open().unwrap();
    for number in 0..300 {
        let name = format!("t-{number}");
        store.create_topic(&name, TopicConfig::new().replication_factor(3)).unwrap();
    }
    assert!(store.disks().iter().all(|disk| disk.state == DiskState::Online));
}

/// A change that two of three disks do not answer to waits for them, or was made before they hung: every call ends once they go
/// on, and what is acknowledged until then is there, whichever two the next opening has.
#[test]
fn s22_a_change_while_most_disks_hang_costs_no_record_and_every_call_ends() {
    let all = [1, 4, 9, 20].into_iter().flat_map(|call| {
        let hang = [[0, 1], [1, 2]].into_iter();
        hang.flat_map(move |hanging| (0..5).map(move |change| (call, hanging, change)))
    });
    // Who starts a disk that hangs waits for that.
    let all = all.filter(|(_, hanging, change)| *change != 0 || !hanging.contains(&2));
    for (turn, (call, hanging, change)) in all.enumerate().step_by(one_in(13)) {
        let what = format!("change {change}, {hanging:?} from call {call}");
        let all = disks(3);
        let lag = Duration::from_millis(900);
        let builder = Store::builder().replica_lag_max(lag).append_timeout(lag);
        let builder = all.iter().fold(builder, |all, disk| all.simulated_disk(disk.clone()));
        let store = builder.threads().open().unwrap();
        let config = TopicConfig::new().partitions(3).replication_factor(3);
        store.create_topic("t", config).unwrap();
        let partitions = [0, 1, 2].map(|number| store.partition("t", number).unwrap());
        let mut kept = [0, 1, 2].map(|_| Vec::new());
        let mut send = |value: u64| {
            for (partition, kept) in partitions.iter().zip(&mut kept) {
                if append(partition, value) {
                    kept.push(value);
                }
            }
        };
        (0..RECORDS).for_each(&mut send);
        if change == 0 {
            store.stop_disk(DiskId(2)).unwrap();
            send(10);
        }
        let held = hanging.map(|at| Held(all[at].clone()));
        hanging.iter().for_each(|at| all[*at].hang_after(call, Hang::Everything));
        let call = {
            let store = store.clone();
            begin(move || match change {
                0 => store.start_disk(DiskId(2)),
                1 => store.stop_disk(DiskId(0)),
                2 => store.reassign("t", 0, &[DiskId(2), DiskId(1)]),
                3 => store.partition("t", 0)?.delete_records(Offset(2)).map(drop),
                _ => store.create_topic("u", TopicConfig::new()),
            })
        };
        // While two of three hang, nothing can be decided; what waits for that ends once they go on.
        let told = call.recv_timeout(lag);
        drop(held);
        let told = told.unwrap_or_else(|_| outcome_in_time(&what, &call));
        let what = format!("{what}: {told:?}");
        (20..24).for_each(&mut send);
        drop(partitions);
        stop(&all, store, turn % 3 == 0);
        for which in [vec![0, 1], vec![0, 2], vec![1, 2], vec![0, 1, 2]] {
            let forks = fork(&all);
            let given: Vec<_> = which.iter().map(|at| &forks[*at]).collect();
            let what = format!("{what}, opened with {which:?}");
            let store = open(&given).expect(&what);
            store.run_background();
            for (number, kept) in (0..).zip(&kept) {
                let partition = match store.partition("t", number) {
                    Ok(partition) => partition,
                    Err(Error::NoLeader { .. }) if which.len() == 2 => continue,
                    Err(error) => panic!("{what}: {error}"),
                };
                assert!(partition.leader().is_some() || which.len() == 2, "{what}");
                let start = partition.log_start_offset().0;
                let kept: Vec<_> = kept.iter().copied().filter(|v| *v >= start).collect();
                assert!(
                    partition.leader().is_none() || has_all(&partition, &kept),
                    "{what}: {kept:?} is not all in partition {number}"
                );
            }
        }
    }
}

/// The change that gives its place to another directory may be found by the next opening, which would leave all out that was
/// acknowledged on it since.
#[test]
fn a_disk_whose_replacement_is_in_doubt_is_started_once_that_is_given_up() {
    let disks: Vec<_> = (0..3).map(SimDisk::new).collect();
    let all: Vec<_> = disks.iter().collect();
    let store = open(&all).unwrap();
    let config = TopicConfig::new().partitions(3).replication_factor(1);
    store.create_topic("t", config).unwrap();
    store.close(LONG).unwrap();
    let store = open(&all).unwrap();
    disks[1].fail_from(1, Fault::Eio);
    store.replace_simulated_disk(DiskId(2), SimDisk::new(9)).unwrap_err();
    let _ = store.start_disk(DiskId(2));
    disks[1].heal();
    store.start_disk(DiskId(2)).unwrap();
    let written: Vec<_> =
        (0..3).map(|at| append(&store.partition("t", at).unwrap(), at.into())).collect();
    assert_eq!(written, [true; 3]);
    disks.iter().for_each(SimDisk::kill);
    drop(store);
    disks.iter().for_each(SimDisk::process_restart);
    let store = open(&all).unwrap();
    let found: Vec<_> =
        (0..3).map(|at| store.partition("t", at).unwrap().high_watermark()).collect();
    assert_eq!(found, [Offset(1); 3]);
}
