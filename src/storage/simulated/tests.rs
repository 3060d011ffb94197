use super::*;
use crate::storage::{replace_file, write_all_at};

fn file(disk: &SimDisk, path: &str, bytes: &[u8]) -> Arc<dyn File> {
    let file = disk.open(path, OpenMode::Create).unwrap();
    write_all_at(&*file, 0, bytes).unwrap();
    file
}

#[test]
fn what_was_synced_survives_every_power_loss() {
    for seed in 0..200 {
        let disk = SimDisk::new(seed);
        let synced = file(&disk, "a", &[7; 3000]);
        synced.sync_data().unwrap();
        disk.sync_dir("").unwrap();
        write_all_at(&*synced, 3000, &[8; 3000]).unwrap();
        disk.power_loss();
        assert_eq!(disk.read_file("a")[..3000], [7; 3000], "seed {seed}");
    }
}

#[test]
fn what_was_not_synced_survives_now_and_then_and_in_part() {
    let outcomes: BTreeSet<Vec<u8>> = (0..200)
        .map(|seed| {
            let disk = SimDisk::new(seed);
            drop(file(&disk, "a", &[7; 1500]));
            disk.sync_dir("").unwrap();
            disk.power_loss();
            disk.read_file("a")
        })
        .collect();
    assert!(
        outcomes.contains(&vec![7; 1500]) && outcomes.contains(&Vec::new()),
        "{}",
        outcomes.len()
    );
    assert!(outcomes.iter().any(|bytes| bytes.contains(&7) && bytes.contains(&0)));
}

#[test]
fn a_name_needs_a_sync_of_its_directory() {
    let survives = |sync: bool| {
        (0..100).filter(move |seed| {
            let disk = SimDisk::new(*seed);
            file(&disk, "a", b"x").sync_data().unwrap();
            if sync {
                disk.sync_dir("").unwrap();
            }
            disk.power_loss();
            disk.files() == ["a"]
        })
    };
    assert_eq!(survives(true).count(), 100);
    let lucky = survives(false).count();
    assert!(lucky > 0 && lucky < 100);
}

#[test]
fn a_replaced_file_is_the_old_one_or_the_new_one_at_every_crash() {
    for power in [false, true] {
        for n in 1.. {
            let disk = SimDisk::new(n);
            replace_file(&disk, "a", b"old").unwrap();
            disk.crash_at(n);
            let outcome = replace_file(&disk, "a", b"new");
            if power {
                disk.power_loss();
            } else {
                disk.process_restart();
            }
            let bytes = disk.read_file("a");
            assert!(bytes == b"old" || bytes == b"new", "S20: crash at {n}: {bytes:?}");
            if outcome.is_ok() {
                assert_eq!(bytes, b"new");
                break;
            }
        }
    }
}

#[test]
fn after_a_crash_old_handles_do_nothing() {
    let disk = SimDisk::new(1);
    let old = file(&disk, "a", b"x");
    let map = old.map(4096, true).unwrap();
    old.allocate(0, 4096).unwrap();
    disk.process_restart();
    assert!(old.write_at(0, b"y").is_err());
    map.put(0, b"y");
    assert_eq!(disk.read_file("a")[0], b'x');
}

#[test]
fn a_failed_sync_is_followed_by_one_that_lies() {
    let mut lost = 0;
    for seed in 0..50 {
        let disk = SimDisk::new(seed);
        let doubtful = file(&disk, "a", &[7; 4096]);
        disk.sync_dir("").unwrap();
        disk.fail_sync(1, SyncFault::CleanedPages);
        assert!(doubtful.sync_data().is_err());
        assert!(doubtful.sync_data().is_ok());
        assert_eq!(disk.read_file("a"), [7; 4096]);
        disk.power_loss();
        lost += usize::from(disk.read_file("a") != [7; 4096]);
    }
    assert!(lost > 25);
}

#[test]
fn a_store_through_a_mapping_is_torn_by_a_crash() {
    let mut torn = 0;
    for seed in 0..50 {
        let disk = SimDisk::new(seed);
        let mapped = file(&disk, "a", &[0; 512]);
        let map = mapped.map(512, true).unwrap();
        disk.crash_at(1);
        map.put(0, &[7; 64]);
        disk.process_restart();
        let bytes = disk.read_file("a");
        torn += usize::from(bytes[..64].contains(&0) && bytes[..64].contains(&7));
    }
    assert!(torn > 40);
}

#[test]
fn a_full_disk_refuses_to_grow_until_a_file_has_neither_name_nor_handle() {
    let disk = SimDisk::new(1);
    let full = file(&disk, "a", &[1; 100]);
    disk.set_free_bytes(Some(50));
    assert_eq!(full.allocate(0, 200).unwrap_err().kind(), io::ErrorKind::StorageFull);
    full.allocate(0, 150).unwrap();
    assert_eq!(disk.free_bytes(), Some(0));
    disk.remove("a").unwrap();
    assert_eq!(disk.free_bytes(), Some(0));
    drop(full);
    drop(file(&disk, "b", &[1; 150]));
    assert_eq!(disk.free_bytes(), Some(0));
}

#[test]
fn a_write_to_a_disk_that_is_nearly_full_is_short_and_the_next_one_fails() {
    let disk = SimDisk::new(1);
    let full = file(&disk, "a", &[1; 100]);
    disk.set_free_bytes(Some(50));
    assert_eq!(full.write_at(90, &[2; 100]).unwrap(), 60);
    assert_eq!(full.write_at(150, &[2; 40]).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(full.write_at(0, &[3; 150]).unwrap(), 150, "what is there can be written over");
    full.set_len(10).unwrap();
    assert_eq!(disk.free_bytes(), Some(140));
}

#[test]
fn a_sync_covers_what_was_issued_before_it_and_only_that_file() {
    let mut lost = [0, 0];
    for seed in 0..100 {
        let disk = SimDisk::new(seed);
        let (synced, other) = (file(&disk, "a", &[0; 2048]), file(&disk, "b", &[7; 512]));
        let map = synced.map(2048, true).unwrap();
        disk.sync_dir("").unwrap();
        map.put(0, &[7; 1024]);
        synced.sync_data().unwrap();
        map.put(1024, &[8; 1024]);
        disk.power_loss();
        let bytes = disk.read_file("a");
        assert_eq!(bytes[..1024], [7; 1024], "seed {seed}");
        lost[0] += usize::from(bytes[1024..] != [8; 1024]);
        lost[1] += usize::from(disk.read_file("b") != [7; 512]);
        drop(other);
    }
    assert!(lost.iter().all(|count| (20..100).contains(count)), "{lost:?}");
}

#[test]
fn unsynced_sectors_reach_the_disk_in_any_order_and_in_any_version() {
    let (mut overtaken, mut between, mut alone) = (false, false, false);
    for seed in 0..2000 {
        let disk = SimDisk::new(seed);
        let written = file(&disk, "a", &[0; 1536]);
        disk.sync_dir("").unwrap();
        written.sync_data().unwrap();
        for version in 1..10 {
            write_all_at(&*written, 0, &[version; 512]).unwrap();
        }
        write_all_at(&*written, 512, &[1; 1024]).unwrap();
        disk.power_loss();
        let bytes = disk.read_file("a");
        let sectors: Vec<u8> = bytes.chunks(512).map(|sector| sector[0]).collect();
        for sector in bytes.chunks(512) {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "a torn sector, seed {seed}");
        }
        overtaken |= sectors == [0, 1, 1];
        between |= (1..9).contains(&sectors[0]);
        alone |= sectors == [0, 1, 0];
    }
    assert!(overtaken && between && alone, "{overtaken} {between} {alone}");
}

#[test]
fn a_write_that_was_not_synced_may_leave_what_a_removed_file_held() {
    let (mut zeroes, mut stale) = (0, 0);
    for seed in 0..2000 {
        let disk = SimDisk::new(seed);
        file(&disk, "b", &[9; 512]).sync_data().unwrap();
        let grown = file(&disk, "a", &[7; 512]);
        grown.sync_data().unwrap();
        disk.remove("b").unwrap();
        disk.sync_dir("").unwrap();
        grown.allocate(512, 4096).unwrap();
        write_all_at(&*grown, 512, &[1; 1024]).unwrap();
        disk.power_loss();
        let bytes = disk.read_file("a");
        assert_eq!(bytes[..512], [7; 512], "seed {seed}");
        let (written, unwritten) = bytes[512..].split_at(1024.min(bytes.len() - 512));
        assert!(unwritten.iter().all(|byte| *byte == 0), "allocated room is zero, seed {seed}");
        zeroes += usize::from(written.contains(&0));
        stale += usize::from(written.contains(&9));
    }
    assert!(zeroes > 500 && stale > 10, "{zeroes} {stale}");
}

#[test]
fn names_are_lost_with_the_directory_that_holds_them_and_never_overtake_each_other() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..500 {
        let disk = SimDisk::new(seed);
        disk.create_dir("d").unwrap();
        file(&disk, "d/a", b"1").sync_data().unwrap();
        disk.sync_dir("d").unwrap();
        disk.rename("d/a", "d/b").unwrap();
        disk.rename("d/b", "d/c").unwrap();
        disk.power_loss();
        let files = disk.files();
        assert!(files.len() <= 1, "one file under two names: {files:?}, seed {seed}");
        outcomes.insert(files);
    }
    let expected = [vec![], vec!["d/a"], vec!["d/b"], vec!["d/c"]];
    let expected = expected.map(|paths| paths.into_iter().map(str::to_owned).collect());
    assert_eq!(outcomes, BTreeSet::from(expected));
}

#[test]
fn a_removed_file_may_be_back_after_a_power_loss_unless_its_directory_was_synced() {
    let mut back = 0;
    for seed in 0..100 {
        let disk = SimDisk::new(seed);
        for path in ["a", "b"] {
            file(&disk, path, path.as_bytes()).sync_data().unwrap();
        }
        disk.sync_dir("").unwrap();
        disk.remove("a").unwrap();
        disk.sync_dir("").unwrap();
        disk.remove("b").unwrap();
        disk.power_loss();
        assert!(disk.read_file("a").is_empty());
        back += usize::from(disk.read_file("b") == b"b");
    }
    assert!((20..80).contains(&back), "{back}");
}

#[test]
fn a_killed_process_leaves_what_it_wrote_and_a_part_of_what_it_was_writing() {
    let mut parts = BTreeSet::new();
    for seed in 0..100 {
        let disk = SimDisk::new(seed);
        let written = file(&disk, "a", &[1; 100]);
        disk.crash_at(1);
        assert!(written.write_at(100, &[2; 100]).is_err());
        assert!(disk.is_dead());
        assert!(written.sync_data().is_err() && disk.list("").is_err());
        disk.process_restart();
        let bytes = disk.read_file("a");
        assert_eq!(bytes[..100], [1; 100]);
        assert!(bytes[100..].iter().all(|byte| *byte == 2));
        parts.insert(bytes.len());
    }
    assert!(parts.len() > 20);
}

#[test]
fn an_aligned_word_is_never_torn_by_a_crash() {
    for seed in 0..100 {
        let disk = SimDisk::new(seed);
        let mapped = file(&disk, "a", &[0; 64]);
        let map = mapped.map(64, true).unwrap();
        disk.crash_at(1);
        map.publish_u32(8, u32::MAX);
        disk.process_restart();
        let bytes = disk.read_file("a");
        assert!(bytes[8..12] == [0; 4] || bytes[8..12] == [255; 4], "seed {seed}");
    }
}

#[test]
fn a_restart_frees_locks_and_keeps_the_boot_and_a_power_loss_changes_it() {
    let disk = SimDisk::new(1);
    let lock = disk.lock("lock", "me").unwrap();
    assert_eq!(disk.lock("lock", "you").unwrap_err().kind(), io::ErrorKind::WouldBlock);
    let boot = disk.boot_id();
    disk.process_restart();
    let second = disk.lock("lock", "you").unwrap();
    drop(lock);
    assert!(disk.lock("lock", "a third").is_err(), "a dead process frees nothing");
    assert_eq!(disk.boot_id(), boot);
    drop(second);
    disk.power_loss();
    assert_ne!(disk.boot_id(), boot);
}

#[test]
fn a_fault_waits_for_a_call_that_can_meet_it_and_comes_once() {
    let disk = SimDisk::new(1);
    let met = file(&disk, "a", &[1; 100]);
    let map = met.map(100, true).unwrap();
    let mut bytes = [0; 100];
    disk.fail_call(1, Fault::Enospc);
    map.put(0, b"x");
    assert_eq!(met.read_at(0, &mut bytes).unwrap(), 100);
    disk.list("").unwrap();
    assert_eq!(met.write_at(0, b"y").unwrap_err().kind(), io::ErrorKind::StorageFull);
    met.write_at(0, b"y").unwrap();
    disk.fail_call(2, Fault::Eio);
    met.len().unwrap();
    assert_eq!(met.len().unwrap_err().raw_os_error(), Some(libc::EIO));
    met.len().unwrap();
    disk.fail_call(1, Fault::ShortIo);
    assert_eq!(met.read_at(0, &mut bytes).unwrap(), 50);
    disk.fail_call(1, Fault::Interrupted);
    assert_eq!(met.write_at(0, b"z").unwrap_err().kind(), io::ErrorKind::Interrupted);
    met.write_at(0, b"z").unwrap();
}

#[test]
fn short_calls_and_signals_without_end_are_ridden_over_and_errors_without_end_are_not() {
    let disk = SimDisk::new(1);
    let met = file(&disk, "a", b"");
    let mut bytes = [0; 1000];
    for fault in [Fault::ShortIo, Fault::Interrupted] {
        disk.fail_from(1, fault);
        write_all_at(&*met, 0, &[5; 1000]).unwrap();
        assert_eq!(crate::storage::read_full_at(&*met, 0, &mut bytes).unwrap(), 1000);
        assert_eq!(bytes, [5; 1000]);
    }
    disk.fail_from(3, Fault::Eio);
    let outcomes: Vec<bool> = (0..5).map(|_| met.len().is_ok()).collect();
    assert_eq!(outcomes, [true, true, false, false, false]);
    disk.heal();
    met.len().unwrap();
}

#[test]
fn a_sync_that_failed_by_reverting_shows_the_old_bytes_at_once() {
    let disk = SimDisk::new(1);
    let reverted = file(&disk, "a", &[1; 1000]);
    reverted.sync_data().unwrap();
    write_all_at(&*reverted, 0, &[2; 1500]).unwrap();
    disk.fail_sync(1, SyncFault::Reverted);
    assert!(reverted.sync_data().is_err());
    let bytes = disk.read_file("a");
    assert!(bytes[..1000] == [1; 1000] && bytes[1000..] == [0; 500]);
}

#[test]
fn a_sector_that_cannot_be_read_fails_reads_of_it_until_it_is_written() {
    let disk = SimDisk::new(1);
    let broken = file(&disk, "a", &[1; 2048]);
    broken.sync_data().unwrap();
    disk.sync_dir("").unwrap();
    disk.break_sector("a", 2);
    let mut bytes = [0; 1024];
    assert_eq!(broken.read_at(0, &mut bytes).unwrap(), 1024);
    assert_eq!(broken.read_at(1024, &mut bytes).unwrap_err().raw_os_error(), Some(libc::EIO));
    disk.power_loss();
    let broken = disk.open("a", OpenMode::Write).unwrap();
    assert!(broken.read_at(1024, &mut bytes).is_err(), "a restart mends nothing");
    broken.write_at(1024, &[2; 512]).unwrap();
    assert_eq!(broken.read_at(1024, &mut bytes).unwrap(), 1024);
}

#[test]
#[should_panic(expected = "SIGBUS")]
fn a_load_behind_the_end_of_a_mapped_file_is_noticed() {
    let disk = SimDisk::new(1);
    let short = file(&disk, "a", &[1; 100]);
    let _ = short.map(4096, false).unwrap().bytes(90..101);
}

#[test]
#[should_panic(expected = "SIGBUS")]
fn a_store_to_room_that_was_cut_is_noticed() {
    let disk = SimDisk::new(1);
    let cut = file(&disk, "a", &[1; 100]);
    let map = cut.map(4096, true).unwrap();
    cut.set_len(50).unwrap();
    map.put(49, b"xy");
}

#[test]
#[should_panic(expected = "SIGBUS")]
fn a_load_of_a_broken_sector_through_a_mapping_is_noticed() {
    let disk = SimDisk::new(1);
    let broken = file(&disk, "a", &[1; 1024]);
    let map = broken.map(1024, false).unwrap();
    disk.break_sector("a", 1);
    let _ = map.bytes(0..513);
}

#[test]
#[should_panic(expected = "SIGSEGV")]
fn a_store_to_a_mapping_that_is_for_reading_is_noticed() {
    let disk = SimDisk::new(1);
    file(&disk, "a", &[1; 100]).map(100, false).unwrap().put(0, b"x");
}

#[test]
fn a_fork_goes_its_own_way_and_knows_what_was_not_synced() {
    for seed in 0..50 {
        let disk = SimDisk::new(seed);
        let held = file(&disk, "a", &[1; 1000]);
        disk.sync_dir("").unwrap();
        let fork = disk.fork();
        write_all_at(&*held, 0, &[2; 1000]).unwrap();
        assert_eq!(fork.read_file("a"), [1; 1000]);
        let same = fork.fork();
        fork.power_loss();
        same.power_loss();
        assert_eq!(fork.read_file("a"), same.read_file("a"), "seed {seed}");
        assert_eq!(disk.read_file("a"), [2; 1000]);
    }
}

#[test]
fn damage_done_by_a_test_is_durable() {
    for seed in 0..50 {
        let disk = SimDisk::new(seed);
        drop(file(&disk, "a", &[1; 1000]));
        drop(file(&disk, "b", &[1; 1000]));
        disk.process_restart();
        disk.write_file("a", &[2; 700]);
        disk.write_file("of/old/c", &[3; 10]);
        disk.remove_file("b");
        disk.power_loss();
        assert_eq!(disk.files(), ["a", "of/old/c"], "seed {seed}");
        assert_eq!(disk.read_file("a"), [2; 700]);
        assert_eq!(disk.read_file("of/old/c"), [3; 10]);
    }
}

#[test]
fn a_removed_file_stays_readable_to_who_holds_it_and_is_forgotten_then() {
    let disk = SimDisk::new(1);
    let held = file(&disk, "a", &[1; 1000]);
    let map = held.map(1000, false).unwrap();
    disk.remove("a").unwrap();
    disk.sync_dir("").unwrap();
    drop(held);
    assert_eq!(map.bytes(990..1000), [1; 10]);
    assert_eq!(disk.world.lock().images.len(), 1);
    drop(map);
    assert!(disk.world.lock().images.is_empty());
}
