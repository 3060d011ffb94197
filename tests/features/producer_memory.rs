//! What a partition remembers of its producers, where its log lacks what was told of it: a batch that is gone is taken when
//! it is sent again, and one that is there is not.

use std::time::Duration;

use oncelog::simulation::{Clock, Fault, SimDisk};
use oncelog::{
    Acks, DiskId, Flush, Offset, Partition, ProducerEpoch, ProducerId, ProducerSequence,
    ReadOptions, Record, Store, Timestamp, TopicConfig,
};

fn open(disks: &[SimDisk]) -> Store {
    let clock = Clock::manual(Timestamp(1_000_000));
    let builder = Store::builder().clock(clock).append_timeout(Duration::from_millis(20));
    disks.iter().fold(builder, |builder, disk| builder.simulated_disk(disk.clone())).open().unwrap()
}

fn small(flush: Flush) -> TopicConfig {
    TopicConfig::new().segment_bytes(4096).index_interval_bytes(256).flush(flush)
}

fn numbered(id: u64, sequence: u64) -> ProducerSequence {
    ProducerSequence { id: ProducerId(id), epoch: ProducerEpoch(0), sequence }
}

fn fill(partition: &Partition, end: u64) {
    while partition.log_end_offset() < Offset(end) {
        partition.append(&[Record::new(&[1; 200])], Acks::All).unwrap();
    }
}

/// Offsets at which that value can be read.
fn places_of(partition: &Partition, value: &str) -> Vec<Offset> {
    let mut places = Vec::new();
    let mut next = partition.log_start_offset();
    while next < partition.high_watermark() {
        let records = partition.read(next, ReadOptions::new()).unwrap();
        let found = records.iter().filter(|record| record.value() == Some(value.as_bytes()));
        places.extend(found.map(|record| record.offset()));
        next = records.next_offset();
    }
    places
}

/// A replica that begins where its leader's log begins is told who wrote what. It led, by an unclean election, before it had
/// copied that: what it never had was then answered as a duplicate when it was sent again, and the batches that its
/// producers sent next were not remembered.
#[test]
fn an_unclean_leader_takes_again_what_it_was_told_of_and_never_had() {
    for flush in [Flush::OnAck, Flush::Os] {
        let disks = [SimDisk::new(1), SimDisk::new(2)];
        let store = open(&disks);
        let config = small(flush).replication_factor(2).unclean_leader_election(true);
        store.create_topic("t", config).unwrap();
        let partition = store.partition("t", 0).unwrap();
        let leader = partition.leader().unwrap();
        let other = DiskId(1 - leader.0);
        store.stop_disk(other).unwrap();
        let append = |id, sequence, value| {
            let records = [Record::new(value)];
            partition.append_idempotent(numbered(id, sequence), &records, Acks::All).unwrap()
        };
        let deleted = append(7, 0, "deleted");
        fill(&partition, 60);
        append(8, 0, "lost");
        append(7, 1, "lost as well");
        // Sealed segments are read from the disk from now on.
        store.run_background();
        assert_eq!(partition.delete_records(Offset(50)).unwrap(), Offset(50));
        store.start_disk(other).unwrap();
        // What it is told is in memory; what it copies is not.
        disks[usize::from(leader.0)].fail_from(1, Fault::Eio);
        store.run_background();
        let _ = store.stop_disk(leader);
        disks[usize::from(leader.0)].heal();
        store.run_background();
        assert_eq!(partition.leader(), Some(other));
        assert_eq!(partition.log_end_offset(), Offset(50), "it had copied something");

        let again = append(7, 0, "deleted");
        assert_eq!((again.duplicate, again.offsets), (true, deleted.offsets));
        for (id, sequence, value) in [(8, 0, "lost"), (7, 1, "lost as well"), (8, 1, "next")] {
            let placed = append(id, sequence, value);
            assert!(!placed.duplicate, "{value}");
            let again = append(id, sequence, value);
            assert_eq!((again.duplicate, &again.offsets), (true, &placed.offsets), "{value}");
            assert_eq!(places_of(&partition, value), [placed.offsets.start]);
        }
    }
}

/// What is known of producers is written down durably, at the `Os` level perhaps before the records are. After a power loss
/// it was passed over, and left where it was; once others' records had taken the place of what was lost, and had been deleted,
/// it was taken for the truth: a batch that was lost was answered as a duplicate.
#[test]
fn what_a_power_loss_took_is_no_duplicate_later_whatever_was_written_down_of_it() {
    let mut lost = 0;
    for seed in 0..12 {
        for call in 1..60 {
            let disk = SimDisk::new(100 * seed + call);
            let store = open(std::slice::from_ref(&disk));
            store.create_topic("t", small(Flush::Os)).unwrap();
            let partition = store.partition("t", 0).unwrap();
            fill(&partition, 10);
            let once = [Record::new("once")];
            partition.append_idempotent(numbered(7, 0), &once, Acks::All).unwrap();
            disk.crash_at(call);
            let _ = partition.delete_records(Offset(5));
            let died = disk.is_dead();
            disk.kill();
            drop((partition, store));
            disk.heal();
            if !died {
                break;
            }
            disk.power_loss();

            let store = open(std::slice::from_ref(&disk));
            let partition = store.partition("t", 0).unwrap();
            if partition.log_end_offset() > Offset(10) {
                continue;
            }
            lost += 1;
            // They take its place, and go.
            fill(&partition, 60);
            partition.delete_records(Offset(50)).unwrap();
            disk.kill();
            drop((partition, store));
            disk.process_restart();
            let store = open(std::slice::from_ref(&disk));
            let partition = store.partition("t", 0).unwrap();
            let again = partition.append_idempotent(numbered(7, 0), &once, Acks::All).unwrap();
            assert!(!again.duplicate, "seed {seed}, call {call}: acknowledged, and nowhere");
        }
    }
    assert!(lost > 0, "no power loss took anything");
}

/// A replica that catches up writes many batches with one call, which a disk that fills up may take a part of.
#[test]
fn a_disk_that_fills_up_in_the_middle_of_a_copy_costs_nothing() {
    let mut failed = 0;
    for call in 1..60 {
        for passes in [true, false] {
            let disks = [SimDisk::new(call), SimDisk::new(call + 100)];
            let clock = Clock::manual(Timestamp(1_000_000));
            let builder = Store::builder().clock(clock.clone());
            let store = disks.iter().fold(builder, |all, disk| all.simulated_disk(disk.clone()));
            let store = store.open().unwrap();
            let config = TopicConfig::new().replication_factor(2).flush(Flush::Os);
            store.create_topic("t", config.segment_bytes(32 << 10)).unwrap();
            let partition = store.partition("t", 0).unwrap();
            let leader = partition.leader().unwrap();
            let other = DiskId(1 - leader.0);
            store.stop_disk(other).unwrap();
            for sequence in 0..400 {
                let record = [Record::new(&[3; 200])];
                let author = numbered(7, sequence);
                partition.append_idempotent(author, &record, Acks::All).unwrap();
            }
            store.start_disk(other).unwrap();
            let full = &disks[usize::from(other.0)];
            if passes {
                full.fail_call(call, Fault::Enospc);
            } else {
                full.fail_from(call, Fault::Enospc);
            }
            store.run_background();
            full.heal();
            failed += u32::from(partition.in_sync_replicas().len() < 2);
            let _ = store.start_disk(other);
            for _ in 0..20 {
                clock.advance(Duration::from_secs(2));
                store.run_background();
            }
            assert_eq!(partition.in_sync_replicas().len(), 2, "call {call}");
            disks.iter().for_each(SimDisk::kill);
            drop((partition, store));
            disks.iter().for_each(SimDisk::process_restart);
            let builder = Store::builder().simulated_disk(full.clone());
            let store = builder.allow_missing(leader).open().unwrap();
            let partition = store.partition("t", 0).unwrap();
            let value = "\u{3}".repeat(200);
            assert_eq!(places_of(&partition, &value).len(), 400, "call {call}");
            let author = numbered(7, 399);
            let again =
                partition.append_idempotent(author, &[Record::new(&value)], Acks::All).unwrap();
            assert!(again.duplicate, "call {call}");
        }
    }
    assert!(failed > 0, "no copy met the end of the disk");
}

/// The files of segments of the only topic, in order.
fn segments_of(disk: &SimDisk) -> Vec<String> {
    let is_segment = |path: &String| path.ends_with(".log") && path.contains("-t/0/");
    disk.files().into_iter().filter(is_segment).collect()
}

/// S3. After a kill, an opening walks over the headers of what no snapshot of the producers vouches for, and believes the
/// side file of a sealed segment that its batches are sound: damage there was passed over. Whoever had written it last was
/// not known to a replica that led then, though the other one knew, and its batch was taken a second time.
#[test]
fn a_batch_is_recognised_though_the_replica_that_leads_has_it_damaged() {
    let mut damaged = 0;
    // One that led, one that leads as the other one is shorter and has no room to be repaired, and one that will lead.
    for (leads_damaged, is_full) in [(true, false), (true, true), (false, false)] {
        for position in [0, 8, 20, 40, 70, 200, 1000] {
            let disks = [SimDisk::new(1), SimDisk::new(2)];
            let store = open(&disks);
            store.create_topic("t", small(Flush::Os).replication_factor(2)).unwrap();
            let partition = store.partition("t", 0).unwrap();
            let leader = partition.leader().unwrap();
            let once = [Record::new("once")];
            let mut placed = Vec::new();
            for id in 1..8 {
                placed
                    .push(partition.append_idempotent(numbered(id, 0), &once, Acks::All).unwrap());
                fill(&partition, 12 * id);
            }
            store.run_background();
            disks.iter().for_each(SimDisk::kill);
            drop((partition, store));
            let other = DiskId(1 - leader.0);
            if is_full {
                disks[usize::from(leader.0)].process_restart();
                disks[usize::from(other.0)].power_loss();
            } else {
                disks.iter().for_each(SimDisk::process_restart);
            }
            let harmed = &disks[usize::from(if leads_damaged { leader.0 } else { other.0 })];
            let segments = segments_of(harmed);
            assert!(segments.len() > 4, "{segments:?}");
            for path in &segments[..segments.len() / 2] {
                let mut bytes = harmed.read_file(path);
                let at = 64 + position; // behind the header of the file
                if bytes.len() > at {
                    bytes[at] ^= 1;
                    harmed.write_file(path, &bytes);
                    damaged += 1;
                }
            }
            harmed.set_free_bytes(is_full.then_some(0));
            let store = open(&disks);
            let partition = store.partition("t", 0).unwrap();
            assert!(!is_full || partition.leader() == Some(leader), "the other one is as long");
            for _ in 0..3 {
                store.run_background();
            }
            if !leads_damaged {
                store.stop_disk(leader).unwrap();
                store.run_background();
                assert_eq!(partition.leader(), Some(other));
            }
            for (id, first) in (1..).zip(&placed) {
                let again = partition.append_idempotent(numbered(id, 0), &once, Acks::All).unwrap();
                let told = (again.duplicate, &again.offsets);
                let case = (leads_damaged, is_full, position, id);
                assert_eq!(told, (true, &first.offsets), "{case:?}");
            }
        }
    }
    assert!(damaged > 20, "{damaged}");
}

/// Of a replica whose segments are all gone, nothing shows that something is missing but the end that is proven. It was
/// taken for one that knows all of its producers, and led later.
#[test]
fn a_batch_is_recognised_though_all_segments_were_lost_where_it_leads_later() {
    for records in [5, 40] {
        let disks = [SimDisk::new(1), SimDisk::new(2)];
        let store = open(&disks);
        store.create_topic("t", small(Flush::Os).replication_factor(2)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        let leader = partition.leader().unwrap();
        let other = DiskId(1 - leader.0);
        let once = [Record::new("once")];
        let placed = partition.append_idempotent(numbered(7, 0), &once, Acks::All).unwrap();
        fill(&partition, records);
        store.run_background();
        disks.iter().for_each(SimDisk::kill);
        drop((partition, store));
        disks.iter().for_each(SimDisk::process_restart);
        let harmed = &disks[usize::from(leader.0)];
        segments_of(harmed).iter().for_each(|path| harmed.remove_file(path));
        // It cannot be repaired at the opening, for want of space.
        harmed.set_free_bytes(Some(0));
        let store = open(&disks);
        let partition = store.partition("t", 0).unwrap();
        assert_eq!(partition.leader(), Some(other), "it is sound");
        harmed.set_free_bytes(None);
        for _ in 0..3 {
            store.run_background();
        }
        store.stop_disk(other).unwrap();
        store.run_background();
        assert_eq!(partition.leader(), Some(leader));
        let again = partition.append_idempotent(numbered(7, 0), &once, Acks::All).unwrap();
        assert_eq!((again.duplicate, again.offsets), (true, placed.offsets), "{records}");
    }
}

/// A replica that is told who wrote what it has damaged, and cannot write that down for want of space, came into sync all
/// the same, and did not know it any more at its next opening.
#[test]
fn what_a_replica_is_told_of_producers_is_durable_before_it_is_in_sync() {
    let disks = [SimDisk::new(1), SimDisk::new(2)];
    let store = open(&disks);
    store.create_topic("t", small(Flush::Os).replication_factor(2)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let leader = partition.leader().unwrap();
    let other = DiskId(1 - leader.0);
    let once = [Record::new("once")];
    let mut placed = Vec::new();
    for id in 1..8 {
        placed.push(partition.append_idempotent(numbered(id, 0), &once, Acks::All).unwrap());
        fill(&partition, 12 * id);
    }
    store.run_background();
    disks.iter().for_each(SimDisk::kill);
    drop((partition, store));
    disks.iter().for_each(SimDisk::process_restart);
    let harmed = &disks[usize::from(other.0)];
    let segments = segments_of(harmed);
    for path in &segments[..segments.len() / 2] {
        let mut bytes = harmed.read_file(path);
        bytes[64 + 8] ^= 1; // in the first batch, behind the header of the file
        harmed.write_file(path, &bytes);
    }
    harmed.set_free_bytes(Some(0));
    let store = open(&disks);
    let partition = store.partition("t", 0).unwrap();
    store.run_background();
    harmed.set_free_bytes(None);
    for _ in 0..3 {
        store.run_background();
    }
    assert_eq!(partition.in_sync_replicas().len(), 2);
    disks.iter().for_each(SimDisk::kill);
    drop((partition, store));
    harmed.process_restart();
    let builder = Store::builder().simulated_disk(harmed.clone()).allow_missing(leader);
    let store = builder.open().unwrap();
    let partition = store.partition("t", 0).unwrap();
    for (id, first) in (1..).zip(&placed) {
        let again = partition.append_idempotent(numbered(id, 0), &once, Acks::All).unwrap();
        assert_eq!((again.duplicate, &again.offsets), (true, &first.offsets), "{id}");
    }
}

/// A sector that cannot be read is damage like any other, also for who looks for producers at an opening.
#[test]
fn a_bad_sector_keeps_no_replica_from_being_opened() {
    for replicas in [1_u16, 2] {
        let disks: Vec<_> = (1..=replicas).map(|seed| SimDisk::new(seed.into())).collect();
        let store = open(&disks);
        let config = small(Flush::Os).replication_factor(replicas);
        store.create_topic("t", config).unwrap();
        let partition = store.partition("t", 0).unwrap();
        let once = [Record::new("once")];
        let mut placed = Vec::new();
        for id in 1..8 {
            placed.push(partition.append_idempotent(numbered(id, 0), &once, Acks::All).unwrap());
            fill(&partition, 12 * id);
        }
        store.run_background();
        disks.iter().for_each(SimDisk::kill);
        drop((partition, store));
        disks.iter().for_each(SimDisk::process_restart);
        let harmed = disks.last().unwrap();
        harmed.break_sector(&segments_of(harmed)[1], 1);
        let store = open(&disks);
        let partition = store.partition("t", 0).unwrap();
        for _ in 0..3 {
            store.run_background();
        }
        assert_eq!(partition.in_sync_replicas().len(), disks.len());
        // Who wrote in that segment, an only replica does not know any more.
        let known = Offset(if replicas > 1 { 0 } else { 40 });
        for (id, first) in (1..).zip(&placed).filter(|(_, first)| first.offsets.start >= known) {
            let again = partition.append_idempotent(numbered(id, 0), &once, Acks::All).unwrap();
            assert_eq!((again.duplicate, &again.offsets), (true, &first.offsets), "{id}");
        }
    }
}
