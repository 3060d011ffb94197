//! What is under a view changes in ways that it does not see: reigns that come and go between two of its looks, pages that rot.

use super::*;

/// Two disks that die together, and a topic on both.
fn pair() -> ([SimDisk; 2], Store) {
    let disks = [SimDisk::new(1), SimDisk::new(2)];
    disks[1].share_process(&disks[0]);
    let store = all(&disks).open().unwrap();
    let config = TopicConfig::new().replication_factor(2).min_insync_replicas(2);
    store.create_topic("t", config.flush(Flush::Os)).unwrap();
    (disks, store)
}

fn value_at(partition: &Partition, offset: u64) -> Result<Vec<u8>> {
    let records = partition.read(Offset(offset), ReadOptions::new())?;
    Ok(records.iter().next().unwrap().value().unwrap().to_vec())
}

/// What a view found behind what was acknowledged was cut, and others' records took its place before it looked again. A simulated
/// disk takes the files that the view had open from it when the owner dies, as a real one does not.
#[test]
fn what_was_seen_behind_the_watermark_and_cut_is_not_shown() {
    for more in [false, true] {
        let (disks, store) = pair();
        let partition = store.partition("t", 0).unwrap();
        let replicas = partition.replicas();
        partition.append(&[Record::new("first")], Acks::All).unwrap();
        store.stop_disk(replicas[1]).unwrap();
        for _ in 0..3 {
            partition.append(&[Record::new("lost")], Acks::Leader).unwrap();
        }
        let kept = all(&disks).read_only().open().unwrap().partition("t", 0).unwrap();
        assert_eq!((kept.high_watermark(), kept.log_end_offset()), (Offset(1), Offset(4)));
        assert_eq!(value_at(&kept, 0).unwrap(), b"first");
        assert!(kept.read(Offset(1), ReadOptions::new()).unwrap().is_empty());
        disks[0].kill();
        drop((partition, store));
        disks.iter().for_each(SimDisk::process_restart);

        let next = disks[usize::from(replicas[1].0)].clone();
        let store = all(&[next]).allow_missing(replicas[0]).open().unwrap();
        let partition = store.partition("t", 0).unwrap();
        partition.append(&[Record::new("other")], Acks::Leader).unwrap();
        drop((partition, store));
        let store = all(&disks).open().unwrap();
        let partition = store.partition("t", 0).unwrap();
        store.run_background();
        assert_eq!(partition.in_sync_replicas().len(), 2);
        for _ in 0..if more { 4 } else { 1 } {
            partition.append(&[Record::new("other")], Acks::All).unwrap();
        }
        store.stop_disk(replicas[1]).unwrap();
        assert_eq!(partition.leader(), Some(replicas[0]));

        for offset in 1..partition.high_watermark().0 {
            assert_eq!(value_at(&kept, offset).unwrap(), b"other", "{offset}, {more}");
        }
        assert_eq!(kept.high_watermark(), partition.high_watermark());
    }
}

/// One wrong bit in the page had a view believe the files, or lose the log's beginning for ever.
#[test]
fn a_wrong_bit_in_a_page_shows_no_more_than_is_acknowledged_and_less_for_a_moment_at_most() {
    let disks = [SimDisk::new(1), SimDisk::new(2), SimDisk::new(3)];
    let store = all(&disks).open().unwrap();
    let config = TopicConfig::new().replication_factor(3).min_insync_replicas(3).flush(Flush::Os);
    store.create_topic("t", config).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let replicas = partition.replicas();
    for _ in 0..5 {
        partition.append(&[Record::new("x")], Acks::All).unwrap();
    }
    partition.delete_records(Offset(2)).unwrap();
    store.stop_disk(replicas[2]).unwrap();
    // Two have it, and three have to.
    partition.append(&[Record::new("x")], Acks::Leader).unwrap();
    assert_eq!((partition.high_watermark(), partition.log_end_offset()), (Offset(5), Offset(6)));
    let disk = &disks[usize::from(replicas[0].0)];
    let name = disk.files().into_iter().find(|name| name.ends_with("-t/0/marks")).unwrap();
    let page = disk.read_file(&name);
    let reader = all(&disks).read_only().open().unwrap();
    let kept = reader.partition("t", 0).unwrap();
    assert_eq!((kept.log_start_offset(), kept.high_watermark()), (Offset(2), Offset(5)));
    // Of each byte some, and each place in a byte.
    for bit in (0..112 * 8).step_by(3) {
        let mut wrong = page.clone();
        wrong[bit / 8] ^= 1 << (bit % 8);
        disk.write_file(&name, &wrong);
        let fresh = reader.partition("t", 0);
        for view in fresh.iter().chain([&kept]) {
            let (start, end) = (view.log_start_offset(), view.high_watermark());
            assert!(start <= Offset(2) && end <= Offset(5), "bit {bit}: {start}..{end}");
            assert!(view.last_stable_offset() <= Offset(5), "bit {bit}");
            assert_eq!(view.read(Offset(2), ReadOptions::new()).unwrap().is_empty(), end.0 == 2);
        }
        // As the owner writes it next.
        let mut words = wrong.clone();
        words[8..64].copy_from_slice(&page[8..64]);
        disk.write_file(&name, &words);
        for view in [&kept, &reader.partition("t", 0).unwrap()] {
            let (start, end) = (view.log_start_offset(), view.high_watermark());
            assert_eq!((start, end), (Offset(2), Offset(5)), "bit {bit}");
            assert_eq!(view.last_stable_offset(), Offset(5), "bit {bit}");
            assert_eq!(value_at(view, 2).unwrap(), b"x", "bit {bit}");
        }
    }
}

/// Without a page nothing told the one who waited: he did so to the end.
#[test]
fn who_waits_for_what_never_comes_is_told_at_once() {
    let long = Duration::from_secs(3600);
    for mode in [StorageMode::Auto, StorageMode::Write] {
        for has_records in [false, true] {
            let disk = SimDisk::new(1);
            let store = Store::builder().storage_mode(mode).simulated_disk(disk.clone());
            let store = store.open().unwrap();
            store.create_topic("t", TopicConfig::new()).unwrap();
            let partition = store.partition("t", 0).unwrap();
            if has_records {
                partition.append(&[Record::new("x")], Acks::All).unwrap();
            }
            let reader = all(std::slice::from_ref(&disk)).read_only().open().unwrap();
            let kept = reader.partition("t", 0).unwrap();
            let next = partition.high_watermark();
            let clock = Instant::now();
            drop(partition);
            store.delete_topic("t").unwrap();
            let told = kept.wait_for(next, long);
            assert!(matches!(told, Err(Error::UnknownTopicOrPartition { .. })), "{told:?}");
            store.create_topic("t", TopicConfig::new()).unwrap();
            store.partition("t", 0).unwrap().append(&[Record::new("y")], Acks::All).unwrap();
            let told = kept.wait_for_committed(next, long);
            assert!(matches!(told, Err(Error::UnknownTopicOrPartition { .. })), "{told:?}");
            let other = reader.partition("t", 0).unwrap();
            assert_eq!(value_at(&other, 0).unwrap(), b"y");
            reader.close(Duration::ZERO).unwrap();
            let told = other.wait_for(Offset(1), long);
            assert!(matches!(told, Err(Error::Closed)), "{told:?}");
            assert!(clock.elapsed() < long);
        }
    }
}

/// Each look copied the index of the whole segment, and without a page read all that was allocated ahead.
#[test]
fn a_look_costs_the_same_however_long_the_segment_is() {
    for mode in [StorageMode::Auto, StorageMode::Write] {
        let disk = SimDisk::new(1);
        let store = Store::builder().storage_mode(mode).simulated_disk(disk.clone());
        let store = store.open().unwrap();
        let config = TopicConfig::new().segment_bytes(64 << 20).max_batch_bytes(2 << 20);
        store.create_topic("t", config).unwrap();
        let partition = store.partition("t", 0).unwrap();
        let append = || partition.append(&[Record::new(&[7; 500_000])], Acks::All).unwrap();
        append();
        let reader = all(std::slice::from_ref(&disk)).read_only().open().unwrap();
        let kept = reader.partition("t", 0).unwrap();
        let look = || {
            append();
            let before = disk.calls();
            assert_eq!(kept.high_watermark(), partition.high_watermark());
            disk.calls() - before
        };
        let first = look();
        for _ in 0..20 {
            append();
        }
        look();
        let last = look();
        assert!(last <= first + 2, "{mode:?}: {first} calls, and {last}");
    }
}

/// It held on to the view of the disk that had led, also where it was assigned the partition again.
#[test]
fn a_consumer_goes_on_with_the_next_leader() {
    let disks = [SimDisk::new(1), SimDisk::new(2), SimDisk::new(3)];
    let store = all(&disks).open().unwrap();
    store.create_topic("t", TopicConfig::new().replication_factor(3)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let reader = all(&disks).read_only().open().unwrap();
    let mut consumer = reader.consumer().start(StartAt::Earliest).build().unwrap();
    consumer.assign(&[("t", 0)]).unwrap();
    let mut seen = Vec::new();
    for round in 0..4_u64 {
        let [first, second] = [0, 1].map(|at| (round * 2 + at).to_string());
        partition.append(&[Record::new(&first), Record::new(&second)], Acks::All).unwrap();
        let records = consumer.poll(Duration::from_secs(60)).unwrap();
        seen.extend(records.iter().map(|record| record.value().unwrap().to_vec()));
        let leader = partition.leader().unwrap();
        store.stop_disk(leader).unwrap();
        store.start_disk(leader).unwrap();
        store.run_background();
    }
    let all: Vec<_> = (0..8).map(|at| at.to_string().into_bytes()).collect();
    assert_eq!(seen, all);
}
