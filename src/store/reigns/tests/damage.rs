//! Followers that meet damage in their leader's log.

use crate::storage::simulated::{Hang, SimDisk};

use super::*;

/// A call to its disk held the third: it was not asked, and what it has was given up on the follower, which came into sync
/// without it.
#[test]
fn s3_what_a_busy_replica_may_have_is_not_passed_over() {
    let disks = [0, 1, 2].map(SimDisk::new);
    let store = open(&disks);
    let config = TopicConfig::new().replication_factor(3).flush(Flush::Os).segment_bytes(4096);
    store.create_topic("t", config).unwrap();
    append(&store).unwrap();
    store.stop_disk(DiskId(1)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    partition.append(&[Record::new("damaged")], Acks::All).unwrap();
    append(&store).unwrap();
    store.close(Duration::from_secs(1)).unwrap();
    drop((partition, store));
    let is_it = |bytes: &[u8]| bytes.windows(7).position(|seven| seven == b"damaged");
    let mut logs = disks[0].files().into_iter().filter(|name| name.ends_with(".log"));
    let found = logs.find_map(|name| is_it(&disks[0].read_file(&name)).map(|at| (name, at)));
    let (name, at) = found.expect("it is in a segment");
    let mut bytes = disks[0].read_file(&name);
    bytes[at] ^= 1;
    disks[0].write_file(&name, &bytes);

    let store = open(&disks);
    let partition = store.partition("t", 0).unwrap();
    let core = store.shared().cores().pop().expect("one partition").1;
    assert_eq!((core.leader(), core.in_sync().len()), (Some(DiskId(0)), 2));
    // It begins a segment, which a follower does when it is looked after.
    let last = partition.append_nowait(&[Record::new(&[7; 8000])], Acks::All).unwrap();
    let now = store.shared().clock.now();
    disks[2].hang(Hang::Everything);
    thread::scope(|scope| {
        scope.spawn(|| core.tend(DiskId(2), now, false));
        while disks[2].held_calls() == 0 {
            thread::yield_now();
        }
        core.tend(DiskId(1), now, false);
        disks[2].heal();
    });
    until(&store, "all are in sync", || core.in_sync().len() == 3);
    last.wait(Duration::from_secs(1)).unwrap();
    assert!(core.is_sound(DiskId(1), &(Offset(0)..Offset(4))));
}

/// Destroys what `disk` has in a segment from one value to another.
fn damage(disk: &SimDisk, from: &str, to: &str) {
    let at = |bytes: &[u8], value: &str| {
        bytes.windows(value.len()).position(|these| these == value.as_bytes())
    };
    let mut logs = disk.files().into_iter().filter(|name| name.ends_with(".log"));
    let found = logs.find_map(|name| at(&disk.read_file(&name), from).map(|at| (name, at)));
    let (name, first) = found.expect("it is in a segment");
    let mut bytes = disk.read_file(&name);
    let last = at(&bytes, to).expect("it is in that segment");
    bytes[first..=last].iter_mut().for_each(|byte| *byte ^= 1);
    disk.write_file(&name, &bytes);
}

const AUTHOR: ProducerSequence =
    ProducerSequence { id: ProducerId(7), epoch: ProducerEpoch(0), sequence: 0 };

/// A store whose disk 1 lacks what came since it was stopped, of which disk 0, that leads, has lost all from one value to
/// another. Disk 1 has been opened, and was not looked after yet.
fn one_behind(disks: &[SimDisk], from: &str, to: &str) -> Store {
    let open_them = || {
        let builder = Store::builder().storage_mode(StorageMode::Write);
        let all = disks.iter().fold(builder, |all, disk| all.simulated_disk(disk.clone()));
        all.open().unwrap()
    };
    let store = open_them();
    let replicas = u16::try_from(disks.len()).unwrap();
    let config = TopicConfig::new().replication_factor(replicas).segment_bytes(16 << 10);
    store.create_topic("t", config.flush(Flush::OnAck)).unwrap();
    append(&store).unwrap();
    store.stop_disk(DiskId(1)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    for (sequence, value) in (0..).zip(["first", "second", "third", "fourth"]) {
        let author = ProducerSequence { sequence, ..AUTHOR };
        partition.append_idempotent(author, &[Record::new(value)], Acks::All).unwrap();
    }
    append(&store).unwrap();
    store.close(Duration::from_secs(1)).unwrap();
    drop((partition, store));
    damage(&disks[0], from, to);
    let store = open_them();
    let partition = store.partition("t", 0).unwrap();
    assert_eq!(partition.log_end_offset(), Offset(6));
    let core = store.shared().cores().pop().expect("one partition").1;
    assert_eq!(core.leader(), Some(DiskId(0)));
    store
}

/// What it has was given up on the follower, which came into sync without it: an error of its disk was taken for its lack.
#[test]
fn s3_what_another_replica_cannot_give_for_the_moment_is_not_passed_over() {
    for fault in [Fault::Eio, Fault::TooManyFiles] {
        for call in 1.. {
            let disks = [0, 1, 2].map(SimDisk::new);
            let store = one_behind(&disks, "second", "second");
            let core = store.shared().cores().pop().expect("one partition").1;
            let before = disks[2].calls();
            disks[2].fail_from(call, fault);
            core.tend(DiskId(1), store.shared().clock.now(), false);
            let is_reached = disks[2].calls() - before >= call;
            disks[2].heal();
            until(&store, "all are in sync", || core.in_sync().len() == 3);
            assert!(core.is_sound(DiskId(1), &(Offset(0)..Offset(6))), "{fault:?} at {call}");
            if !is_reached {
                break;
            }
        }
    }
}

/// The leader has lost more than it in one piece, and all of that was given up.
#[test]
fn s3_what_another_replica_has_behind_its_own_damage_is_not_passed_over() {
    let disks = [0, 1, 2].map(SimDisk::new);
    let store = one_behind(&disks, "first", "third");
    damage(&disks[2], "second", "second");
    let core = store.shared().cores().pop().expect("one partition").1;
    core.tend(DiskId(1), store.shared().clock.now(), false);
    until(&store, "all are in sync", || core.in_sync().len() == 3);
    for offsets in [0..2, 3..6] {
        assert!(core.is_sound(DiskId(1), &(Offset(offsets.start)..Offset(offsets.end))));
    }
}

/// It was asked for what is in its file.
#[test]
fn s3_what_another_replica_has_in_memory_is_not_passed_over() {
    let disks = [0, 1, 2].map(SimDisk::new);
    let builder = Store::builder().storage_mode(StorageMode::Write);
    let store = disks.iter().fold(builder, |all, disk| all.simulated_disk(disk.clone()));
    let store = store.open().unwrap();
    let config = TopicConfig::new().replication_factor(3).flush(Flush::OnAck);
    store.create_topic("t", config).unwrap();
    append(&store).unwrap();
    // Opened anew, a log has nothing at hand for the next batch.
    store.stop_disk(DiskId(1)).unwrap();
    store.start_disk(DiskId(1)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let sent = ["first", "second"]
        .map(|value| partition.append_nowait(&[Record::new(value)], Acks::All).unwrap());
    let core = store.shared().cores().pop().expect("one partition").1;
    disks[2].hang(Hang::Syncs);
    thread::scope(|scope| {
        scope.spawn(|| core.flush_follower(DiskId(2)));
        while disks[2].held_calls() == 0 {
            thread::yield_now();
        }
        // The leader's flush is done before.
        core.checkpoint(DiskId(0), Flush::OnAck, true);
        assert!(core.has_flushed(DiskId(0), Offset(3)));
        damage(&disks[0], "second", "second");
        core.tend(DiskId(1), store.shared().clock.now(), false);
        disks[2].answer();
    });
    until(&store, "all have it", || core.has_flushed(DiskId(1), Offset(3)));
    assert!(core.is_sound(DiskId(1), &(Offset(0)..Offset(3))));
    drop(sent);
}

/// The gap came without its proof, and the next opening took it for a torn tail, with all that had been acknowledged behind it.
#[test]
fn s3_a_follower_whose_disk_fails_for_a_moment_as_it_passes_over_what_is_lost_goes_on_with_that_proven()
 {
    for fault in [Fault::TooManyFiles, Fault::Enospc, Fault::Eio] {
        for call in 1.. {
            let disks = [0, 1].map(SimDisk::new);
            let store = one_behind(&disks, "second", "second");
            let core = store.shared().cores().pop().expect("one partition").1;
            let before = disks[1].calls();
            disks[1].fail_call(call, fault);
            core.tend(DiskId(1), store.shared().clock.now(), false);
            let is_reached = disks[1].calls() - before >= call;
            disks[1].heal();
            until(&store, "both are in sync", || core.in_sync().len() == 2);
            let last = append(&store).unwrap();
            disks.iter().for_each(SimDisk::kill);
            drop((core, store));
            disks[1].power_loss();
            let builder = Store::builder().simulated_disk(disks[1].clone());
            let store = builder.allow_missing(DiskId(0)).open().unwrap();
            let partition = store.partition("t", 0).unwrap();
            assert_eq!(partition.log_end_offset(), last.next(), "{fault:?} at {call}");
            if !is_reached {
                break;
            }
        }
    }
}

/// Once it led, a batch of which it had passed over the first copy was appended again.
#[test]
fn a_follower_learns_who_wrote_what_it_passes_over() {
    let disks = [0, 1].map(SimDisk::new);
    let store = one_behind(&disks, "first", "fourth");
    let core = store.shared().cores().pop().expect("one partition").1;
    core.tend(DiskId(1), store.shared().clock.now(), false);
    until(&store, "both are in sync", || core.in_sync().len() == 2);
    store.stop_disk(DiskId(0)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let author = ProducerSequence { sequence: 3, ..AUTHOR };
    let again = partition.append_idempotent(author, &[Record::new("fourth")], Acks::All).unwrap();
    assert_eq!((again.duplicate, again.offsets.start), (true, Offset(4)));
}

/// It was no news by then, and waited for the next scrub.
#[test]
fn damage_that_was_met_while_nobody_could_repair_it_is_repaired_when_it_is_met_again() {
    let disks = [0, 1].map(SimDisk::new);
    let store = one_behind(&disks, "second", "second");
    let core = store.shared().cores().pop().expect("one partition").1;
    until(&store, "both are in sync", || core.in_sync().len() == 2);
    let partition = store.partition("t", 0).unwrap();
    append(&store).unwrap();
    store.close(Duration::from_secs(1)).unwrap();
    drop((partition, core, store));
    damage(&disks[0], "fourth", "fourth");
    let builder = Store::builder().storage_mode(StorageMode::Write);
    let store = disks.iter().fold(builder, |all, disk| all.simulated_disk(disk.clone()));
    let store = store.open().unwrap();
    let partition = store.partition("t", 0).unwrap();
    let core = store.shared().cores().pop().expect("one partition").1;
    let now = store.shared().clock.now();
    store.stop_disk(DiskId(1)).unwrap();
    assert!(partition.read(Offset(4), ReadOptions::new()).is_err());
    core.tend(DiskId(0), now, false);
    store.start_disk(DiskId(1)).unwrap();
    let _ = partition.read(Offset(4), ReadOptions::new());
    core.tend(DiskId(0), now, false);
    assert!(core.is_sound(DiskId(0), &(Offset(4)..Offset(5))));
}
