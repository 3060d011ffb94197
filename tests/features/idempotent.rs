//! Idempotent appends through the public API: what is recognised, and that restarts, elections, truncations and
//! rebuilt replicas do not make the memory weaker (PROD-*, DESIGN 7).

use std::time::Duration;

use oncelog::simulation::{Clock, SimDisk};
use oncelog::{
    Acks, Appended, Error, EventKind, Flush, Offset, Partition, ProducerEpoch, ProducerId,
    ProducerSequence, ReadOptions, Record, Store, Timestamp, TopicConfig, TopicUpdate,
};

fn at(id: u64, epoch: u32, sequence: u64) -> ProducerSequence {
    ProducerSequence { id: ProducerId(id), epoch: ProducerEpoch(epoch), sequence }
}

fn append(partition: &Partition, id: u64, sequence: u64, count: u64) -> Result<Appended, Error> {
    let values: Vec<_> = (sequence..sequence + count).map(|n| format!("{id}/{n}")).collect();
    let records: Vec<_> = values.iter().map(Record::new).collect();
    partition.append_idempotent(at(id, 0, sequence), &records, Acks::All)
}

fn open(disks: &[SimDisk], clock: &Clock) -> Store {
    let mut builder = Store::builder().clock(clock.clone());
    for disk in disks {
        builder = builder.simulated_disk(disk.clone());
    }
    builder.open().unwrap()
}

fn values(partition: &Partition) -> Vec<String> {
    let mut offset = partition.log_start_offset();
    let mut values = Vec::new();
    loop {
        let records = partition.read(offset, ReadOptions::new()).unwrap();
        if records.next_offset() == offset {
            return values;
        }
        offset = records.next_offset();
        let texts = records.iter().map(|r| String::from_utf8(r.value().unwrap().to_vec()).unwrap());
        values.extend(texts);
    }
}

fn single() -> (SimDisk, Clock, Store, Partition) {
    let (disk, clock) = (SimDisk::new(1), Clock::manual(Timestamp(1000)));
    let store = open(std::slice::from_ref(&disk), &clock);
    store.create_topic("t", TopicConfig::new().segment_bytes(4096)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    (disk, clock, store, partition)
}

#[test]
fn prod_07_a_duplicate_is_answered_with_its_first_offsets_and_time() {
    let (_disk, clock, _store, partition) = single();
    let first = append(&partition, 7, 0, 3).unwrap();
    assert_eq!((first.offsets.clone(), first.duplicate), (Offset(0)..Offset(3), false));
    clock.advance(Duration::from_secs(5));
    let again = append(&partition, 7, 0, 3).unwrap();
    assert_eq!(again, Appended { duplicate: true, ..first });
    assert_eq!(partition.log_end_offset(), Offset(3));
    assert_eq!(append(&partition, 7, 3, 1).unwrap().offsets.start, Offset(3));
}

#[test]
fn prod_07_a_duplicate_is_answered_by_a_topic_that_takes_less_now_and_by_a_full_disk() {
    let (disk, clock, store, partition) = single();
    let large = "x".repeat(1500);
    let stamped = Record::new(&large).timestamp(clock.now());
    let offer = |sequence| {
        partition.append_idempotent(at(7, 0, sequence), std::slice::from_ref(&stamped), Acks::All)
    };
    let first = offer(0).unwrap();
    let is_first = |answer: Appended| answer == Appended { duplicate: true, ..first.clone() };
    disk.set_free_bytes(Some(0));
    while append(&partition, 8, partition.log_end_offset().0, 1).is_ok() {}
    assert!(is_first(offer(0).unwrap()), "on a full disk");
    assert!(matches!(offer(1), Err(Error::NoSpace { .. })));
    disk.set_free_bytes(None);
    store.alter_topic("t", TopicUpdate::new().max_batch_bytes(1024)).unwrap();
    assert!(is_first(offer(0).unwrap()), "larger than is taken now");
    assert!(matches!(offer(1), Err(Error::RecordTooLarge { .. })));
    let ahead = TopicUpdate::new().max_batch_bytes(1 << 20).timestamp_before_max(Duration::ZERO);
    store.alter_topic("t", ahead).unwrap();
    clock.advance(Duration::from_secs(5));
    assert!(is_first(offer(0).unwrap()), "older than is taken now");
    assert!(matches!(offer(1), Err(Error::InvalidRecord { .. })));
}

#[test]
fn prod_02_to_05_gaps_overlaps_and_forgotten_duplicates_are_refused_and_nothing_is_written() {
    let (_disk, _clock, _store, partition) = single();
    for sequence in 0..8 {
        append(&partition, 7, sequence, 1).unwrap();
    }
    let refused = |sequence, count| append(&partition, 7, sequence, count).unwrap_err();
    assert!(matches!(refused(9, 1), Error::OutOfOrderSequence { expected: 8, given: 9, .. }));
    assert!(matches!(refused(7, 2), Error::OutOfOrderSequence { expected: 8, given: 7, .. }));
    assert!(matches!(refused(0, 1), Error::DuplicateSequence { given: 0, .. }));
    assert!(append(&partition, 7, 3, 1).unwrap().duplicate);
    assert_eq!(partition.log_end_offset(), Offset(8));
}

#[test]
fn prod_06_a_newer_epoch_counts_from_0_and_fences_the_older() {
    let (_disk, _clock, _store, partition) = single();
    append(&partition, 7, 0, 2).unwrap();
    let of = |epoch, sequence| {
        partition.append_idempotent(at(7, epoch, sequence), &[Record::new("x")], Acks::All)
    };
    assert!(matches!(of(1, 2), Err(Error::OutOfOrderSequence { expected: 0, .. })));
    of(1, 0).unwrap();
    let current = ProducerEpoch(1);
    assert!(
        matches!(of(0, 2), Err(Error::ProducerFenced { current: found, .. }) if found == current)
    );
}

#[test]
fn prod_11_an_unknown_producer_begins_anywhere_but_in_the_strict_mode_at_0() {
    let (_disk, _clock, _store, partition) = single();
    let strict = |id, sequence| {
        partition.append_idempotent_strict(at(id, 0, sequence), &[Record::new("x")], Acks::All)
    };
    assert!(matches!(strict(1, 5), Err(Error::UnknownProducer { .. })));
    strict(1, 0).unwrap();
    strict(1, 1).unwrap();
    append(&partition, 2, 5, 1).unwrap();
    assert!(matches!(append(&partition, 2, 7, 1), Err(Error::OutOfOrderSequence { .. })));
}

#[test]
fn an_id_that_a_store_gives_to_its_own_producers_is_refused() {
    let (_disk, _clock, _store, partition) = single();
    for id in [0, 1 << 62, 1 << 63, u64::MAX] {
        let refused = partition.append_idempotent(at(id, 0, 0), &[Record::new("x")], Acks::All);
        assert!(matches!(refused, Err(Error::InvalidRecord { .. })), "{id}");
    }
    assert_eq!(partition.log_end_offset(), Offset(0));
}

/// Everything that was recognised before is recognised after, and what was next is next.
fn assert_known(partition: &Partition, producers: u64, end: u64, when: &str) {
    let before = partition.log_end_offset();
    for id in 1..=producers {
        for sequence in end.saturating_sub(5)..end {
            let again = append(partition, id, sequence, 1);
            assert!(again.unwrap().duplicate, "{when}: {id}/{sequence}");
        }
        let gap = append(partition, id, end + 1, 1);
        assert!(matches!(gap, Err(Error::OutOfOrderSequence { .. })), "{when}: {gap:?}");
    }
    assert_eq!(partition.log_end_offset(), before, "{when}");
}

#[test]
fn prod_31_a_restart_forgets_nothing_clean_or_not_with_or_without_snapshots() {
    for how in ["closed", "killed", "killed behind a snapshot", "snapshots lost", "sides lost"] {
        let (disk, clock, store, partition) = single();
        for sequence in 0..40 {
            for id in 1..=3 {
                append(&partition, id, sequence, 1).unwrap();
            }
        }
        if how == "killed" {
            disk.process_restart();
        }
        drop((partition, store));
        match how {
            "killed behind a snapshot" => {
                let store = open(std::slice::from_ref(&disk), &clock);
                let partition = store.partition("t", 0).unwrap();
                let fork = disk.fork();
                append(&partition, 1, 40, 1).unwrap();
                append(&partition, 1, 41, 1).unwrap();
                disk.power_loss();
                drop((partition, store, fork));
                let store = open(std::slice::from_ref(&disk), &clock);
                let partition = store.partition("t", 0).unwrap();
                assert!(append(&partition, 1, 41, 1).unwrap().duplicate);
                assert_eq!(append(&partition, 1, 42, 1).unwrap().offsets.start, Offset(122));
                continue;
            }
            "snapshots lost" | "sides lost" => {
                let suffix = if how == "sides lost" { ".side" } else { ".producers" };
                let names: Vec<_> =
                    disk.files().into_iter().filter(|name| name.ends_with(suffix)).collect();
                assert!(!names.is_empty(), "{how}");
                for name in names {
                    disk.write_file(&name, b"");
                }
            }
            _ => {}
        }
        let store = open(std::slice::from_ref(&disk), &clock);
        let partition = store.partition("t", 0).unwrap();
        assert_known(&partition, 3, 40, how);
        assert_eq!(values(&partition).len(), 120, "{how}");
    }
}

#[test]
fn prod_34_every_flipped_byte_of_a_snapshot_is_noticed_and_costs_no_knowledge() {
    let (disk, clock, store, partition) = single();
    for sequence in 0..10 {
        append(&partition, 1, sequence, 1).unwrap();
    }
    drop((partition, store));
    let name = disk.files().into_iter().find(|name| name.ends_with(".producers")).unwrap();
    let sound = disk.read_file(&name);
    for byte in 0..sound.len() {
        let disk = disk.fork();
        let mut flipped = sound.clone();
        flipped[byte] ^= 0x10;
        disk.write_file(&name, &flipped);
        let store = open(std::slice::from_ref(&disk), &clock);
        let partition = store.partition("t", 0).unwrap();
        assert_known(&partition, 1, 10, &format!("byte {byte}"));
    }
}

#[test]
fn prod_38_deleted_records_do_not_take_the_memory_of_their_producers_along() {
    for how in ["closed", "killed"] {
        let (disk, clock, store, partition) = single();
        for sequence in 0..200 {
            append(&partition, 1, sequence, 1).unwrap();
        }
        partition.delete_records(partition.log_end_offset()).unwrap();
        partition.append(&[Record::new("of nobody")], Acks::All).unwrap();
        if how == "killed" {
            disk.power_loss();
        }
        drop((partition, store));
        let store = open(std::slice::from_ref(&disk), &clock);
        let partition = store.partition("t", 0).unwrap();
        assert_known(&partition, 1, 200, how);
        assert_eq!(values(&partition), ["of nobody"], "{how}");
    }
}

#[test]
fn a_lost_snapshot_of_producers_whose_records_are_deleted_is_reported() {
    let (disk, clock, store, partition) = single();
    for sequence in 0..200 {
        append(&partition, 1, sequence, 1).unwrap();
    }
    partition.delete_records(Offset(200)).unwrap();
    drop((partition, store));
    for name in disk.files().into_iter().filter(|name| name.ends_with(".producers")) {
        disk.write_file(&name, b"not a snapshot");
    }
    let store = open(std::slice::from_ref(&disk), &clock);
    store.partition("t", 0).unwrap();
    let forgotten = store.events().any(|event| {
        matches!(event.kind, EventKind::ProducersForgotten { below, .. } if below == Offset(200))
    });
    assert!(forgotten);
}

#[test]
fn prod_20_a_producer_expires_by_the_age_of_its_last_append() {
    let (_disk, clock, store, partition) = single();
    append(&partition, 1, 0, 1).unwrap();
    clock.advance(Duration::from_secs(23 * 3600));
    store.run_background();
    append(&partition, 2, 0, 1).unwrap();
    assert!(matches!(append(&partition, 1, 7, 1), Err(Error::OutOfOrderSequence { .. })));
    clock.advance(Duration::from_secs(3600));
    store.run_background();
    append(&partition, 1, 7, 1).unwrap();
    assert!(matches!(append(&partition, 2, 7, 1), Err(Error::OutOfOrderSequence { .. })));
}

fn three_disks(flush: Flush) -> (Vec<SimDisk>, Clock, Store, Partition) {
    let disks: Vec<_> = (0..3).map(SimDisk::new).collect();
    let clock = Clock::manual(Timestamp(1000));
    let store = open(&disks, &clock);
    let config = TopicConfig::new()
        .replication_factor(3)
        .min_insync_replicas(2)
        .flush(flush)
        .segment_bytes(4096);
    store.create_topic("t", config).unwrap();
    let partition = store.partition("t", 0).unwrap();
    (disks, clock, store, partition)
}

#[test]
fn prod_15_followers_keep_the_memory_and_an_election_takes_it_over() {
    for flush in [Flush::OnAck, Flush::Os] {
        let (_disks, _clock, store, partition) = three_disks(flush);
        for sequence in 0..30 {
            append(&partition, 1, sequence, 1).unwrap();
        }
        let leader = partition.leader().unwrap();
        store.stop_disk(leader).unwrap();
        assert_known(&partition, 1, 30, "after the election");
        assert_ne!(partition.leader(), Some(leader));
        append(&partition, 1, 30, 1).unwrap();
    }
}

/// A replica that is built anew begins where the leader's log begins, and yet knows who wrote before.
#[test]
fn prod_33_a_rebuilt_replica_that_leads_recognises_what_was_deleted_before_it_was_built() {
    let disks = [SimDisk::new(1), SimDisk::new(2)];
    let clock = Clock::manual(Timestamp(1000));
    let store = open(&disks, &clock);
    let config = TopicConfig::new().replication_factor(2).segment_bytes(4096);
    store.create_topic("t", config).unwrap();
    let partition = store.partition("t", 0).unwrap();
    for sequence in 0..200 {
        append(&partition, 1, sequence, 1).unwrap();
    }
    partition.delete_records(Offset(200)).unwrap();
    append(&partition, 2, 0, 1).unwrap();
    let old = partition.leader().unwrap();
    let next = *partition.replicas().iter().find(|disk| **disk != old).unwrap();
    store.stop_disk(next).unwrap();
    let fresh = SimDisk::new(9);
    store.replace_simulated_disk(next, fresh.clone()).unwrap();
    for _ in 0..20 {
        store.run_background();
    }
    assert_eq!(partition.in_sync_replicas().len(), 2);
    store.stop_disk(old).unwrap();
    assert_eq!(partition.leader(), Some(next));
    assert_known(&partition, 1, 200, "leading");
    fresh.power_loss();
    drop((store, partition));
    let builder = Store::builder().clock(clock).simulated_disk(fresh).allow_missing(old);
    let store = builder.open().unwrap();
    let partition = store.partition("t", 0).unwrap();
    assert_known(&partition, 1, 200, "after a power loss");
    assert!(append(&partition, 2, 0, 1).unwrap().duplicate);
}
