//! Disks that come, go, fill up and lose power while partitions move, shrink and change their settings: the steps of an
//! operator, a crash between any two of them, and whatever meets them.
#![cfg(feature = "simulation")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may fail loudly")]

use std::time::Duration;

use oncelog::simulation::{Clock, SimDisk};
use oncelog::{
    Acks, DiskId, Error, Offset, Partition, ProducerEpoch, ProducerId, ProducerSequence,
    ReadOptions, Record, Store, Timestamp, TopicConfig,
};

const SECOND: Duration = Duration::from_secs(1);

fn clock() -> Clock {
    Clock::manual(Timestamp(1_000_000))
}

fn disks(count: u64) -> Vec<SimDisk> {
    let disks: Vec<_> = (0..count).map(SimDisk::new).collect();
    for disk in &disks[1..] {
        disk.share_process(&disks[0]);
    }
    disks
}

fn open(disks: &[SimDisk], clock: &Clock) -> Result<Store, Error> {
    let builder = Store::builder().clock(clock.clone()).append_timeout(Duration::from_millis(20));
    disks.iter().fold(builder, |b, disk| b.simulated_disk(disk.clone())).open()
}

fn small(replicas: u16) -> TopicConfig {
    TopicConfig::new().replication_factor(replicas).segment_bytes(4096).index_interval_bytes(256)
}

fn numbered(sequence: u64) -> ProducerSequence {
    ProducerSequence { id: ProducerId(7), epoch: ProducerEpoch(0), sequence }
}

fn append(partition: &Partition, count: u64) {
    for at in 0..count {
        partition.append(&[Record::new([at.to_le_bytes(); 25].as_flattened())], Acks::All).unwrap();
    }
}

fn read_all(partition: &Partition) -> Vec<(u64, Vec<u8>)> {
    let (mut found, mut offset) = (Vec::new(), partition.log_start_offset());
    loop {
        let records = partition.read(offset, ReadOptions::new()).unwrap();
        for record in &records {
            found.push((record.offset().0, record.value().unwrap().to_vec()));
        }
        if records.next_offset() == offset {
            return found;
        }
        offset = records.next_offset();
    }
}

fn quiet(store: &Store, clock: &Clock) {
    for _ in 0..30 {
        clock.advance(Duration::from_millis(20));
        store.run_background();
    }
}

/// The log's start was durable before what told of the producers was, so that a crash between the two took the files
/// and with them the memory of who wrote them.
#[test]
fn a_crash_within_the_deletion_of_records_forgets_no_producer() {
    for replicas in 1..=2 {
        for call in 1..1000 {
            let (disks, clock) = (disks(replicas), clock());
            let store = open(&disks, &clock).unwrap();
            store.create_topic("t", small(u16::try_from(replicas).unwrap())).unwrap();
            let partition = store.partition("t", 0).unwrap();
            let first = [Record::new("once")];
            let placed = partition.append_idempotent(numbered(0), &first, Acks::All).unwrap();
            append(&partition, 60);
            disks[0].crash_at(call);
            let deleted = partition.delete_records(Offset(50));
            let died = disks[0].is_dead();
            drop((partition, store));
            disks.iter().for_each(|disk| disk.heal());
            disks.iter().for_each(SimDisk::process_restart);
            let store = open(&disks, &clock).unwrap();
            let partition = store.partition("t", 0).unwrap();
            let again = partition.append_idempotent(numbered(0), &first, Acks::All).unwrap();
            assert!(again.duplicate, "appended twice; {replicas} replicas, crash at call {call}");
            assert_eq!(again.offsets, placed.offsets);
            assert_eq!(partition.log_end_offset(), Offset(61));
            if !died {
                assert_eq!(deleted.unwrap(), Offset(50));
                break;
            }
        }
    }
}

#[test]
fn records_are_deleted_on_a_full_disk_although_producers_are_to_be_remembered() {
    for replicas in 1..=2 {
        for full in 0..replicas {
            let (disks, clock) = (disks(replicas), clock());
            let store = open(&disks, &clock).unwrap();
            store.create_topic("t", small(u16::try_from(replicas).unwrap())).unwrap();
            let partition = store.partition("t", 0).unwrap();
            let first = [Record::new("once")];
            partition.append_idempotent(numbered(0), &first, Acks::All).unwrap();
            append(&partition, 60);
            disks[usize::try_from(full).unwrap()].set_free_bytes(Some(0));
            let deleted = partition.delete_records(Offset(50));
            assert_eq!(deleted.unwrap(), Offset(50), "{replicas} replicas, disk {full} is full");
            drop((partition, store));
            disks.iter().for_each(SimDisk::process_restart);
            let store = open(&disks, &clock).unwrap();
            let partition = store.partition("t", 0).unwrap();
            let again = partition.append_idempotent(numbered(0), &first, Acks::All).unwrap();
            assert!(again.duplicate);
        }
    }
}

/// What a clean stop had said of a replica that was moved away since was believed of the new one.
#[test]
fn a_replica_that_comes_back_to_a_disk_begins_empty() {
    for restart in 0..3 {
        let (disks, clock) = (disks(3), clock());
        let store = open(&disks, &clock).unwrap();
        store.create_topic("t", small(2)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        assert_eq!(partition.replicas(), [DiskId(0), DiskId(1)]);
        append(&partition, 60);
        drop(partition);
        store.close(SECOND).unwrap();
        disks.iter().for_each(SimDisk::process_restart);
        let mut store = open(&disks, &clock).unwrap();
        store.reassign("t", 0, &[DiskId(0), DiskId(2)]).unwrap();
        match restart {
            0 => {
                store.stop_disk(DiskId(1)).unwrap();
                store.start_disk(DiskId(1)).unwrap();
            }
            1 => {
                drop(store);
                disks.iter().for_each(SimDisk::process_restart);
                store = open(&disks, &clock).unwrap();
            }
            _ => {
                drop(store);
                disks.iter().for_each(SimDisk::power_loss);
                store = open(&disks, &clock).unwrap();
            }
        }
        store.reassign("t", 0, &[DiskId(1)]).unwrap();
        quiet(&store, &clock);
        let partition = store.partition("t", 0).unwrap();
        assert_eq!(partition.replicas(), [DiskId(1)]);
        let found = read_all(&partition);
        let offsets: Vec<_> = found.iter().map(|(offset, _)| *offset).collect();
        assert_eq!(offsets, (0..60).collect::<Vec<_>>(), "way {restart}");
    }
}
