//! Every fault of RELIABILITY.md that files and disks can have (S1 to S14, S16, S19, S24) against one, two and three
//! replicas, each on a disk of its own: what is kept, what is told, who leads, whether it heals.
//!
//! A scenario takes the number of replicas; [`cells`] makes a test of each number. All but one of the replicas must
//! be in sync (of one: one), and everything is flushed before it is acknowledged, unless a scenario says otherwise.

use std::ops::Range;
use std::time::Duration;

use oncelog::simulation::{Clock, Fault, SimDisk, SyncFault};
use oncelog::{
    Acks, DiskId, DiskState, Error, ErrorClass, EventKind, Flush, Offset, Partition, ReadOptions,
    Record, Store, StoreBuilder, Timestamp, TopicConfig, TopicUpdate, VerifyOptions, Written,
};

const NOW: Timestamp = Timestamp(1_000_000);
const SECOND: Duration = Duration::from_secs(1);
/// Bytes in front of a file's first batch, and where a batch keeps its length.
const DATA_START: usize = 64;
const LENGTH_AT: usize = 4;

/// One test a cell, named `s01_torn_tail::with_two_replicas`.
macro_rules! cells {
    ($($scenario:ident: $($cell:ident $replicas:literal),+;)+) => {$(
        mod $scenario {
            $(#[test]
            fn $cell() {
                super::$scenario($replicas);
            })+
        }
    )+};
}

cells! {
    s01_torn_tail_on_one_disk: with_one_replica 1, with_two_replicas 2, with_three_replicas 3;
    s01_torn_tails_on_all_disks: with_two_replicas 2, with_three_replicas 3;
    s02_damage_on_one_disk: with_one_replica 1, with_two_replicas 2, with_three_replicas 3;
    s02_damage_on_all_disks: with_two_replicas 2, with_three_replicas 3;
    s02_damage_on_all_disks_and_more_on_one: with_two_replicas 2, with_three_replicas 3;
    s03_rot_met_by_a_reader: with_one_replica 1, with_two_replicas 2, with_three_replicas 3;
    s03_bad_sector_met_by_a_reader: with_one_replica 1, with_two_replicas 2, with_three_replicas 3;
    s03_rot_around_the_log_start: with_two_replicas 2, with_three_replicas 3;
    s04_bad_sector_met_by_a_copy: with_three_replicas 3;
    s04_rot_is_never_copied: with_one_replica 1, with_two_replicas 2, with_three_replicas 3;
    s04_a_gap_that_one_who_is_away_could_fill: with_three_replicas 3;
    s04_what_cannot_be_read_now_is_not_given_up: with_two_replicas 2, with_three_replicas 3;
    s04_a_repair_outlasts_a_power_loss: with_two_replicas 2, with_three_replicas 3;
    s05_misdirected_write: with_one_replica 1, with_two_replicas 2, with_three_replicas 3;
    s06_side_files: with_one_replica 1, with_two_replicas 2, with_three_replicas 3;
    s07_metadata_on_one_disk: with_two_replicas 2, with_three_replicas 3;
    s07_bad_sectors_of_the_stores_own_files: with_one_replica 1, with_two_replicas 2, with_three_replicas 3;
    s07_metadata_on_all_disks: with_one_replica 1, with_two_replicas 2, with_three_replicas 3;
    s08_failed_fsync: with_one_replica 1, with_two_replicas 2, with_three_replicas 3;
    s09_short_and_interrupted_calls: with_one_replica 1, with_two_replicas 2, with_three_replicas 3;
    s09_failed_write: with_one_replica 1, with_two_replicas 2, with_three_replicas 3;
    s10_one_full_disk: with_two_replicas 2, with_three_replicas 3;
    s10_all_disks_full: with_one_replica 1, with_two_replicas 2, with_three_replicas 3;
    s10_a_disk_returns_while_another_is_full: with_two_replicas 2, with_three_replicas 3;
    s10_elections_while_a_disk_is_full: with_three_replicas 3;
    s11_no_handles: with_one_replica 1, with_two_replicas 2, with_three_replicas 3;
    s12_unreadable_at_open: with_one_replica 1, with_two_replicas 2, with_three_replicas 3;
    s12_dies_during_open: with_one_replica 1, with_two_replicas 2, with_three_replicas 3;
    s12_empty_at_open: with_two_replicas 2, with_three_replicas 3;
    s13_a_replacement_dies_while_it_is_copied_to: with_two_replicas 2, with_three_replicas 3;
    s13_dies_while_running: with_one_replica 1, with_two_replicas 2, with_three_replicas 3;
    s14_swapped: with_two_replicas 2, with_three_replicas 3;
    s14_the_same_disk_twice: with_one_replica 1, with_two_replicas 2, with_three_replicas 3;
    s14_restored_from_a_backup: with_two_replicas 2, with_three_replicas 3;
    s14_the_only_replica_restored: on_two_disks 2, on_three_disks 3;
    s16_missing_segment: with_one_replica 1, with_two_replicas 2, with_three_replicas 3;
    s24_pages_written_back: with_one_replica 1, with_two_replicas 2, with_three_replicas 3;
    s19_crash_in_recovery: with_one_replica 1, with_two_replicas 2, with_three_replicas 3;
}

/// Of one length, so that batches fit each other's places.
fn value(at: u64) -> Vec<u8> {
    format!("{at:04} {}", "x".repeat(40)).into_bytes()
}

fn append(partition: &Partition, values: Range<u64>) {
    for at in values {
        let appended = partition.append(&[Record::new(&value(at))], Acks::All).unwrap();
        assert_eq!(appended.offsets, Offset(at)..Offset(at + 1));
    }
}

/// Appends the values from `first` on until one is refused. Returns which, and why.
fn append_until_refused(partition: &Partition, first: u64) -> (u64, Error) {
    (first..first + 1000)
        .find_map(|at| Some((at, partition.append(&[Record::new(&value(at))], Acks::All).err()?)))
        .expect("an append is refused")
}

/// The offsets that can be read, each with its own value, and those that are damaged.
fn contents(partition: &Partition) -> (Vec<u64>, Vec<u64>) {
    let (mut found, mut damaged) = (Vec::new(), Vec::new());
    let mut offset = partition.log_start_offset();
    while offset < partition.high_watermark() {
        offset = match partition.read(offset, ReadOptions::new()) {
            Ok(records) => {
                for record in &records {
                    assert_eq!(record.value().unwrap(), value(record.offset().0));
                    found.push(record.offset().0);
                }
                records.next_offset()
            }
            Err(Error::Corrupt { offsets, .. }) => {
                assert!(offsets.contains(&offset));
                damaged.extend(offset.0..offsets.end.0);
                offsets.end
            }
            Err(error) => panic!("{error}"),
        };
    }
    (found, damaged)
}

fn assert_kept(partition: &Partition, end: u64) {
    assert_eq!(contents(partition), ((0..end).collect(), vec![]));
}

fn assert_all_but(partition: &Partition, damaged: &[u64], end: u64) {
    let found = (0..end).filter(|at| !damaged.contains(at)).collect();
    assert_eq!(contents(partition), (found, damaged.to_vec()));
}

/// Where the batches of a data file begin, and where the last one ends.
fn batches(bytes: &[u8]) -> Vec<usize> {
    let mut at = DATA_START;
    let mut found = vec![at];
    while let Some(length) = bytes.get(at + LENGTH_AT..at + LENGTH_AT + 4) {
        let length = u32::from_le_bytes(*length.first_chunk().unwrap());
        if length == 0 {
            break;
        }
        at += usize::try_from(length).unwrap();
        found.push(at);
    }
    found
}

fn told(store: &Store, what: impl Fn(&EventKind) -> bool) -> usize {
    store.events().filter(|event| what(&event.kind)).count()
}

fn cuts(store: &Store) -> usize {
    told(store, |event| matches!(event, EventKind::TailCut { .. }))
}

fn damages(store: &Store) -> usize {
    told(store, |event| matches!(event, EventKind::Damaged { .. }))
}

fn repairs(store: &Store) -> usize {
    told(store, |event| matches!(event, EventKind::Repaired { .. }))
}

fn fencings(store: &Store, disk: DiskId) -> usize {
    told(store, |event| matches!(event, EventKind::ReplicaFenced { disk: of, .. } if *of == disk))
}

/// As many disks as replicas, driven by the test.
struct World {
    disks: Vec<SimDisk>,
    clock: Clock,
}

impl World {
    fn new(replicas: u16) -> Self {
        let disks: Vec<_> = (0..replicas).map(|at| SimDisk::new(u64::from(at) + 1)).collect();
        for disk in &disks[1..] {
            disk.share_process(&disks[0]);
        }
        Self { disks, clock: Clock::manual(NOW) }
    }

    /// A store with a topic of `end` records, in use.
    fn with_records(replicas: u16, flush: Flush, end: u64) -> (Self, Store, Partition) {
        let world = Self::new(replicas);
        let store = world.open();
        store.create_topic("t", world.topic().flush(flush)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        append(&partition, 0..end);
        (world, store, partition)
    }

    /// The same, closed.
    fn closed_with(replicas: u16, end: u64) -> Self {
        let (world, store, _) = Self::with_records(replicas, Flush::OnAck, end);
        store.close(SECOND).unwrap();
        world
    }

    fn topic(&self) -> TopicConfig {
        let replicas = self.replicas();
        TopicConfig::new()
            .replication_factor(replicas)
            .min_insync_replicas((replicas - 1).max(1))
            .segment_bytes(4096)
            .index_interval_bytes(256)
    }

    fn replicas(&self) -> u16 {
        u16::try_from(self.disks.len()).unwrap()
    }

    fn ids(&self) -> impl Iterator<Item = DiskId> + use<> {
        (0..self.replicas()).map(DiskId)
    }

    fn disk(&self, id: DiskId) -> &SimDisk {
        &self.disks[usize::from(id.0)]
    }

    fn builder(&self) -> StoreBuilder {
        let builder = Store::builder().clock(self.clock.clone()).append_timeout(SECOND / 50);
        self.disks.iter().fold(builder, |builder, disk| builder.simulated_disk(disk.clone()))
    }

    fn open(&self) -> Store {
        self.builder().open().unwrap()
    }

    fn reopen(&self) -> (Store, Partition) {
        let store = self.open();
        let partition = store.partition("t", 0).unwrap();
        (store, partition)
    }

    /// Puts an empty disk in the place of one of a running store.
    fn replace(&mut self, store: &Store, id: DiskId) {
        let fresh = SimDisk::new(9);
        fresh.share_process(&self.disks[0]);
        self.disks[usize::from(id.0)] = fresh.clone();
        store.replace_simulated_disk(id, fresh).unwrap();
    }

    fn lose_power(&self) {
        self.disks.iter().for_each(SimDisk::power_loss);
    }

    fn restart(&self) {
        self.disks.iter().for_each(SimDisk::process_restart);
    }

    fn pass(&self, store: &Store, span: Duration) {
        for _ in 0..span.as_millis() / 50 {
            self.clock.advance(Duration::from_millis(50));
            store.run_background();
        }
    }

    /// What each scenario ends with: all replicas are in sync, sound, and hold the same `end` records; appends go on.
    fn assert_heals(&self, store: &Store, partition: &Partition, end: u64) {
        self.pass(store, SECOND * 3);
        assert_eq!(partition.in_sync_replicas().len(), self.disks.len());
        assert_kept(partition, end);
        append(partition, end..end + 3);
        self.pass(store, SECOND);
        let report = store.verify(VerifyOptions::new()).unwrap();
        assert_eq!(
            (report.damages.len(), report.records),
            (0, (end + 3) * self.disks.len() as u64)
        );
    }

    /// The data files of a disk.
    fn logs(&self, id: DiskId) -> Vec<String> {
        let mut names = self.disk(id).files();
        names.retain(|name| name.starts_with("topics") && name.ends_with(".log"));
        names
    }

    /// Changes the bytes of a data file, given also where its batches begin.
    fn change(&self, id: DiskId, place: usize, how: impl FnOnce(&mut Vec<u8>, &[usize])) {
        let name = &self.logs(id)[place];
        let mut bytes = self.disk(id).read_file(name);
        let starts = batches(&bytes);
        how(&mut bytes, &starts);
        self.disk(id).write_file(name, &bytes);
    }

    /// Flips a bit in the middle of a batch of the first data file: its base offset is `at`.
    fn rot(&self, id: DiskId, at: usize) {
        self.change(id, 0, |bytes, starts| bytes[usize::midpoint(starts[at], starts[at + 1])] ^= 4);
    }

    /// After a power loss, puts back what the cache held, cut in the middle of the batch `torn(disk)`.
    fn tear(&self, torn: impl Fn(DiskId) -> Option<usize>) {
        let live: Vec<_> =
            self.ids().map(|id| self.disk(id).read_file(&self.logs(id)[0])).collect();
        let names: Vec<_> = self.ids().map(|id| self.logs(id).swap_remove(0)).collect();
        self.lose_power();
        for ((id, mut bytes), name) in self.ids().zip(live).zip(names) {
            if let Some(at) = torn(id) {
                let starts = batches(&bytes);
                bytes[usize::midpoint(starts[at], starts[at + 1])..].fill(0);
            }
            self.disk(id).write_file(&name, &bytes);
        }
    }
}

fn s01_torn_tail_on_one_disk(replicas: u16) {
    let victims = DiskId(0)..DiskId(replicas);
    for victim in (victims.start.0..victims.end.0).map(DiskId) {
        let (world, store, partition) = World::with_records(replicas, Flush::Os, 10);
        let epoch = partition.leader_epoch();
        world.tear(|id| (id == victim).then_some(7));
        drop((store, partition));
        let (store, partition) = world.reopen();
        let kept = told(&store, |event| {
            matches!(event, EventKind::TailCut { from: Offset(7), kept: Some(_), .. })
        });
        assert_eq!(kept, 1, "told, and the bytes are kept");
        assert_eq!(damages(&store), 0);
        assert!(partition.leader_epoch() > epoch, "offsets are given again under a new epoch only");
        let end = if replicas == 1 { 7 } else { 10 };
        if replicas > 1 {
            assert_ne!(partition.leader(), Some(victim), "the longest log leads");
        }
        world.assert_heals(&store, &partition, end);
    }
}

fn s01_torn_tails_on_all_disks(replicas: u16) {
    let (world, store, partition) = World::with_records(replicas, Flush::Os, 10);
    world.tear(|id| Some(4 + usize::from(id.0)));
    drop((store, partition));
    let (store, partition) = world.reopen();
    assert_eq!(partition.leader(), Some(DiskId(replicas - 1)), "the longest log leads");
    assert_eq!((cuts(&store), damages(&store)), (usize::from(replicas), 0));
    world.assert_heals(&store, &partition, 3 + u64::from(replicas));
}

fn s02_damage_on_one_disk(replicas: u16) {
    for (victim, power) in (0..replicas).flat_map(|at| [(DiskId(at), true), (DiskId(at), false)]) {
        let (world, store, partition) = World::with_records(replicas, Flush::OnAck, 10);
        let leader = partition.leader();
        if power {
            world.lose_power();
        } else {
            world.restart();
        }
        drop((store, partition));
        world.rot(victim, 5);
        let before = world.disk(victim).read_file(&world.logs(victim)[0]);
        let led = leader == Some(victim);
        let (store, partition) = world.reopen();
        // Batches say how far their leader had flushed: of a follower that lost power, they prove nothing.
        let cut = usize::from(power && !led);
        assert_eq!((cuts(&store), damages(&store)), (cut, 1 - cut), "{victim}, power {power}");
        if replicas == 1 {
            assert_all_but(&partition, &[5], 10);
            let after = world.disk(victim).read_file(&world.logs(victim)[0]);
            let damaged_until = batches(&before)[6];
            assert_eq!(after[..damaged_until], before[..damaged_until], "left as it is");
            append(&partition, 10..12);
            assert_all_but(&partition, &[5], 12);
        } else {
            assert_eq!(repairs(&store), 1 - cut);
            let kept = |name: &String| world.disk(victim).read_file(name).len() >= 100;
            let aside = world.disk(victim).files().into_iter().filter(|f| f.contains("quarantine"));
            assert!(aside.filter(kept).count() > 0, "the damaged bytes are kept");
            world.assert_heals(&store, &partition, 10);
        }
    }
}

fn s02_damage_on_all_disks(replicas: u16) {
    // Each in another place: all is there somewhere.
    let world = World::closed_with(replicas, 200);
    world.ids().for_each(|id| world.rot(id, 3 + usize::from(id.0)));
    let (store, partition) = world.reopen();
    assert_kept(&partition, 200);
    store.verify(VerifyOptions::new().repair(true)).unwrap();
    world.assert_heals(&store, &partition, 200);
    // In the same place: that record is lost, and only that.
    for power in [false, true] {
        let (world, store, partition) = World::with_records(replicas, Flush::OnAck, 10);
        if power {
            world.lose_power();
        } else {
            world.restart();
        }
        drop((store, partition));
        world.ids().for_each(|id| world.rot(id, 5));
        let (store, partition) = world.reopen();
        let followers = if power { usize::from(replicas) - 1 } else { 0 };
        let told = (cuts(&store), damages(&store));
        assert_eq!(told, (followers, usize::from(replicas) - followers), "power {power}");
        world.pass(&store, SECOND * 3);
        assert_all_but(&partition, &[5], 10);
        assert_eq!(partition.in_sync_replicas().len(), usize::from(replicas));
        append(&partition, 10..15);
        assert_all_but(&partition, &[5], 15);
    }
}

/// What is lost on all disks keeps nothing else of its segment from being repaired.
fn s02_damage_on_all_disks_and_more_on_one(replicas: u16) {
    for victim in (0..replicas).map(DiskId) {
        let world = World::closed_with(replicas, 200);
        for (place, victim) in [(5, None), (6, Some(victim)), (9, Some(victim)), (12, None)] {
            let disks = world.ids().filter(|id| victim.is_none_or(|victim| victim == *id));
            disks.for_each(|id| world.rot(id, place));
        }
        let (store, partition) = world.reopen();
        contents(&partition);
        world.pass(&store, SECOND * 3);
        assert_all_but(&partition, &[5, 12], 200);
        let report = store.verify(VerifyOptions::new().repair(true)).unwrap();
        for damage in &report.damages {
            let lost = [5, 12].contains(&damage.offsets.start.0);
            assert_eq!(damage.repaired, !lost, "{victim}: {damage:?}");
        }
        let again = store.verify(VerifyOptions::new().repair(true)).unwrap();
        let left = again.damages.iter().filter(|damage| !damage.repaired);
        let left: Vec<_> = left.map(|damage| damage.offsets.start.0).collect();
        assert_eq!(left, [5, 12].repeat(usize::from(replicas)), "{victim}");
        let kept: Vec<_> = world.ids().map(|id| kept_aside(&world, id)).collect();
        store.verify(VerifyOptions::new().repair(true)).unwrap();
        let now: Vec<_> = world.ids().map(|id| kept_aside(&world, id)).collect();
        assert_eq!(now, kept, "what cannot be repaired is not written again");
        // Also where nothing but the files tells of the gaps.
        store.close(SECOND).unwrap();
        drop((store, partition));
        for id in world.ids() {
            let names = world.disk(id).files();
            names
                .iter()
                .filter(|name| name.ends_with(".side"))
                .for_each(|name| world.disk(id).remove_file(name));
            world.disk(id).remove_file("session");
        }
        let (store, partition) = world.reopen();
        assert_all_but(&partition, &[5, 12], 200);
        // Those that lack what could be read follow first.
        world.pass(&store, SECOND);
        append(&partition, 200..203);
        assert_all_but(&partition, &[5, 12], 203);
    }
}

/// Files in the quarantine of a disk.
fn kept_aside(world: &World, id: DiskId) -> usize {
    world.disk(id).files().iter().filter(|name| name.contains(".damaged")).count()
}

fn s03_rot_met_by_a_reader(replicas: u16) {
    for victim in (0..replicas).map(DiskId) {
        let world = World::closed_with(replicas, 200);
        world.rot(victim, 5);
        let (store, partition) = world.reopen();
        let leads = partition.leader() == Some(victim);
        if replicas == 1 {
            assert_all_but(&partition, &[5], 200);
            assert_all_but(&partition, &[5], 200);
            continue;
        }
        assert_kept(&partition, 200);
        world.pass(&store, SECOND);
        assert_eq!(repairs(&store), usize::from(leads), "repaired where it was met");
        store.verify(VerifyOptions::new().repair(true)).unwrap();
        assert_eq!(repairs(&store), 1);
        world.assert_heals(&store, &partition, 200);
    }
}

fn s03_bad_sector_met_by_a_reader(replicas: u16) {
    for victim in (0..replicas).map(DiskId) {
        let world = World::closed_with(replicas, 200);
        let name = world.logs(victim).swap_remove(0);
        let starts = batches(&world.disk(victim).read_file(&name));
        let broken = starts.iter().position(|start| *start > 3 * 512).unwrap() as u64;
        world.disk(victim).break_sector(&name, 3);
        let (store, partition) = world.reopen();
        let leads = partition.leader() == Some(victim);
        if replicas == 1 {
            let error = partition.read(Offset(broken), ReadOptions::new()).unwrap_err();
            assert!(matches!(error, Error::Io { .. }), "{error:?}");
            for at in [broken - 5, 100].map(Offset) {
                assert!(partition.read(at, ReadOptions::new()).is_ok());
            }
            let report = store.verify(VerifyOptions::new()).unwrap();
            assert_eq!(report.damages.len(), 1);
            continue;
        }
        assert_kept(&partition, 200);
        world.pass(&store, SECOND);
        assert_eq!((damages(&store), repairs(&store)), (usize::from(leads), usize::from(leads)));
        let report = store.verify(VerifyOptions::new().repair(true)).unwrap();
        assert_eq!(
            report.damages.iter().filter(|damage| damage.repaired).count(),
            usize::from(!leads)
        );
        world.assert_heals(&store, &partition, 200);
    }
}

/// A segment whose first records are deleted, which no other replica has any more.
fn s03_rot_around_the_log_start(replicas: u16) {
    for victim in (0..replicas).map(DiskId) {
        for rotten in [5, 15] {
            let (mut world, store, partition) = World::with_records(replicas, Flush::OnAck, 200);
            partition.delete_records(Offset(10)).unwrap();
            world.pass(&store, SECOND);
            for id in world.ids().filter(|id| *id != victim) {
                world.replace(&store, id);
                world.pass(&store, SECOND * 3);
            }
            store.close(SECOND).unwrap();
            drop((store, partition));
            world.rot(victim, rotten);
            let (store, partition) = world.reopen();
            let report = store.verify(VerifyOptions::new().repair(true)).unwrap();
            assert_eq!(report.damages.len(), 1, "{victim}, {rotten}");
            assert!(report.damages[0].repaired, "{victim}, {rotten}");
            assert_eq!(contents(&partition), ((10..200).collect(), vec![]));
            assert_eq!(store.verify(VerifyOptions::new()).unwrap().damages, []);
            store.close(SECOND).unwrap();
            drop((store, partition));
            let (_store, partition) = world.reopen();
            assert_eq!(contents(&partition), ((10..200).collect(), vec![]));
        }
    }
}

fn s04_bad_sector_met_by_a_copy(replicas: u16) {
    let mut world = World::closed_with(replicas, 200);
    let (store, partition) = world.reopen();
    let leader = partition.leader().unwrap();
    let follower = world.ids().find(|id| *id != leader).unwrap();
    world.disk(leader).break_sector(&world.logs(leader)[0], 3);
    world.replace(&store, follower);
    world.assert_heals(&store, &partition, 200);
    assert_eq!((damages(&store), repairs(&store)), (1, 1));
}

fn s04_rot_is_never_copied(replicas: u16) {
    let mut world = World::closed_with(replicas, 200);
    if replicas == 1 {
        world.rot(DiskId(0), 5);
        let (store, partition) = world.reopen();
        let target = SimDisk::new(9);
        let report = store.backup_to_simulated_disk(target.clone()).unwrap();
        assert_eq!(report.damages.len(), 1, "told");
        let copy = World { disks: vec![target], clock: world.clock.clone() };
        assert_all_but(&copy.reopen().1, &[5], 200);
        assert_all_but(&partition, &[5], 200);
        return;
    }
    // Met by whoever fills a new disk: the leader's log is rotten.
    let (store, partition) = world.reopen();
    let leader = partition.leader().unwrap();
    let follower = world.ids().find(|id| *id != leader).unwrap();
    world.rot(leader, 5);
    world.replace(&store, follower);
    world.pass(&store, SECOND * 3);
    assert_eq!(partition.in_sync_replicas().len(), usize::from(replicas));
    assert!(damages(&store) > 0);
    if replicas == 3 {
        world.assert_heals(&store, &partition, 200);
    } else {
        assert_all_but(&partition, &[5], 200);
        append(&partition, 200..210);
        world.pass(&store, SECOND);
        store.stop_disk(leader).unwrap();
        assert_all_but(&partition, &[5], 210);
    }
}

/// Offsets are passed over only where nobody can have them: it would be in sync, and lead without them.
fn s04_a_gap_that_one_who_is_away_could_fill(replicas: u16) {
    let mut world = World::closed_with(replicas, 200);
    let (store, partition) = world.reopen();
    let leader = partition.leader().unwrap();
    let others: Vec<_> = world.ids().filter(|id| *id != leader).collect();
    world.rot(leader, 5);
    world.replace(&store, others[0]);
    store.stop_disk(others[1]).unwrap();
    world.pass(&store, SECOND * 3);
    assert!(damages(&store) > 0, "it was met");
    assert_eq!(partition.in_sync_replicas(), [leader]);
    store.start_disk(others[1]).unwrap();
    world.assert_heals(&store, &partition, 200);
}

/// Nobody has the records at this moment: one cannot read them, and the others' are rotten.
fn s04_what_cannot_be_read_now_is_not_given_up(replicas: u16) {
    for holder in (0..replicas).map(DiskId) {
        let world = World::closed_with(replicas, 200);
        let name = world.logs(holder).swap_remove(0);
        let starts = batches(&world.disk(holder).read_file(&name));
        let broken = starts.iter().position(|start| *start > 3 * 512).unwrap();
        for id in world.ids().filter(|id| *id != holder) {
            world.rot(id, broken);
        }
        world.disk(holder).break_sector(&name, 3);
        let (store, partition) = world.reopen();
        store.verify(VerifyOptions::new().repair(true)).unwrap();
        partition.read(Offset(broken as u64), ReadOptions::new()).unwrap_err();
        world.pass(&store, SECOND);
        world.disk(holder).heal();
        store.verify(VerifyOptions::new().repair(true)).unwrap();
        world.pass(&store, SECOND);
        assert_kept(&partition, 200);
    }
}

/// The new segment, and then its name: S20.
fn s04_a_repair_outlasts_a_power_loss(replicas: u16) {
    for (victim, place) in (0..replicas).map(DiskId).flat_map(|id| [(id, 5), (id, 9), (id, 12)]) {
        let world = World::closed_with(replicas, 200);
        let (store, partition) = world.reopen();
        world.rot(victim, place);
        let report = store.verify(VerifyOptions::new().repair(true)).unwrap();
        assert!(report.damages.iter().all(|damage| damage.repaired), "{report:?}");
        assert_eq!(report.damages.len(), 1);
        world.disks.iter().for_each(SimDisk::kill);
        drop((store, partition));
        world.lose_power();
        let (store, partition) = world.reopen();
        assert_kept(&partition, 200);
        let report = store.verify(VerifyOptions::new()).unwrap();
        assert!(report.damages.is_empty(), "{victim}, record {place}: {report:?}");
        assert_eq!((damages(&store), repairs(&store)), (0, 0), "{victim}, record {place}");
    }
}

fn s05_misdirected_write(replicas: u16) {
    for victim in (0..replicas).map(DiskId) {
        let world = World::closed_with(replicas, 200);
        // A batch that was written to another's place, and one that never reached its own.
        world.change(victim, 0, |bytes, starts| {
            bytes.copy_within(starts[3]..starts[4], starts[5]);
            bytes[starts[8]..starts[9]].fill(0);
        });
        let (store, partition) = world.reopen();
        if replicas == 1 {
            assert_all_but(&partition, &[5, 8], 200);
            let report = store.verify(VerifyOptions::new()).unwrap();
            assert_eq!(report.damages.len(), 2);
            continue;
        }
        assert_kept(&partition, 200);
        store.verify(VerifyOptions::new().repair(true)).unwrap();
        world.assert_heals(&store, &partition, 200);
    }
}

fn s06_side_files(replicas: u16) {
    for (change, clean) in (0..4).flat_map(|change| [(change, true), (change, false)]) {
        let world = World::closed_with(replicas, 200);
        for disk in &world.disks {
            let beside = disk.files().into_iter().filter(|name| {
                name.starts_with("topics") && !name.ends_with(".log") && !name.ends_with('/')
            });
            for name in beside {
                let mut bytes = disk.read_file(&name);
                match change {
                    0 => disk.remove_file(&name),
                    1 => bytes.iter_mut().for_each(|byte| *byte ^= 1),
                    2 => bytes.extend_from_within(..),
                    _ => bytes.truncate(bytes.len() / 2),
                }
                if change > 0 {
                    disk.write_file(&name, &bytes);
                }
            }
            if !clean {
                disk.remove_file("session");
            }
        }
        let (store, partition) = world.reopen();
        assert_eq!((cuts(&store), damages(&store)), (0, 0), "change {change}, clean {clean}");
        world.assert_heals(&store, &partition, 200);
    }
}

/// Damages both copies of the metadata on a disk.
fn spoil_metadata(disk: &SimDisk, how: u8) {
    let copies: Vec<_> = disk.files().into_iter().filter(|name| name.starts_with("meta")).collect();
    assert_eq!(copies.len(), 2, "{copies:?}");
    for name in copies {
        let mut bytes = disk.read_file(&name);
        match how {
            0 => bytes.fill(0xff),
            1 => bytes.clear(),
            _ => bytes.iter_mut().skip(100).step_by(50).for_each(|byte| *byte ^= 1),
        }
        disk.write_file(&name, &bytes);
    }
}

fn s07_metadata_on_one_disk(replicas: u16) {
    for (victim, how) in (0..replicas).flat_map(|at| (0..3).map(move |how| (DiskId(at), how))) {
        let world = World::closed_with(replicas, 20);
        spoil_metadata(world.disk(victim), how);
        let (store, partition) = world.reopen();
        assert!(repairs(&store) > 0, "{victim}, kind {how}: written anew from the others");
        world.assert_heals(&store, &partition, 20);
        store.close(SECOND).unwrap();
        let store = world.open();
        assert_eq!(repairs(&store), 0, "for good");
    }
}

fn s07_bad_sectors_of_the_stores_own_files(replicas: u16) {
    for victim in (0..replicas).map(DiskId) {
        for name in ["metadata.0", "metadata.1", "session"] {
            let world = World::closed_with(replicas, 20);
            assert!(world.disk(victim).files().iter().any(|file| file == name), "{name}");
            world.disk(victim).break_sector(name, 0);
            let opened = world.builder().open();
            let store = opened.unwrap_or_else(|error| panic!("{victim}, {name}: {error}"));
            let partition = store.partition("t", 0).unwrap();
            world.assert_heals(&store, &partition, 20);
        }
    }
}

fn s07_metadata_on_all_disks(replicas: u16) {
    for how in 0..3 {
        let world = World::closed_with(replicas, 20);
        world.disks.iter().for_each(|disk| spoil_metadata(disk, how));
        let all = || {
            let of = |disk: &SimDisk| {
                let names = disk.files().into_iter().filter(|name| name != "lock");
                names.map(|name| (disk.read_file(&name), name)).collect::<Vec<_>>()
            };
            world.disks.iter().map(of).collect::<Vec<_>>()
        };
        let before = all();
        for _ in 0..2 {
            let error = world.builder().open().unwrap_err();
            assert!(matches!(error, Error::CorruptMetadata { .. }), "kind {how}: {error:?}");
            assert!(all() == before, "kind {how}: something was written");
        }
    }
}

fn s08_failed_fsync(replicas: u16) {
    let faults = [SyncFault::CleanedPages, SyncFault::Reverted];
    for (victim, fault) in (0..replicas).flat_map(|at| faults.map(|fault| (DiskId(at), fault))) {
        let (world, store, partition) = World::with_records(replicas, Flush::OnAck, 10);
        let led = partition.leader() == Some(victim);
        world.disk(victim).fail_sync(1, fault);
        let outcome = partition.append(&[Record::new(&value(10))], Acks::All);
        assert_eq!(fencings(&store, victim), 1);
        if replicas == 1 {
            let error = outcome.unwrap_err();
            let Error::DiskOffline { at_risk, .. } = &error else { panic!("{error:?}") };
            assert_eq!((at_risk, error.written()), (&(Offset(10)..Offset(11)), Written::Unknown));
            let error = partition.append(&[Record::new("late")], Acks::All).unwrap_err();
            assert_eq!(error.written(), Written::No, "read-only");
            assert_kept(&partition, 10);
        } else {
            outcome.unwrap();
            assert!(!partition.in_sync_replicas().contains(&victim), "it counts no more");
            assert_ne!(partition.leader(), Some(victim), "led {led}");
            append(&partition, 11..20);
            // Without a restart: the replica is rebuilt from the others.
            world.assert_heals(&store, &partition, 20);
        }
        world.lose_power();
        drop((store, partition));
        let (_store, partition) = world.reopen();
        let (found, damaged) = contents(&partition);
        let acknowledged = if replicas == 1 { 10 } else { 23 };
        assert!(found.len() >= acknowledged && damaged.is_empty(), "{found:?}");
    }
}

fn s09_short_and_interrupted_calls(replicas: u16) {
    let faults = [Fault::ShortIo, Fault::Interrupted];
    for (fault, flush) in faults.into_iter().flat_map(|f| [(f, Flush::OnAck), (f, Flush::Os)]) {
        let (world, store, partition) = World::with_records(replicas, flush, 10);
        world.disks.iter().for_each(|disk| disk.fail_from(1, fault));
        append(&partition, 10..100);
        store.close(SECOND).unwrap();
        drop((store, partition));
        let (store, partition) = world.reopen();
        assert_eq!(partition.in_sync_replicas().len(), usize::from(replicas));
        world.assert_heals(&store, &partition, 100);
    }
}

fn s09_failed_write(replicas: u16) {
    for victim in (0..replicas).map(DiskId) {
        for n in 1..12 {
            let (world, store, partition) = World::with_records(replicas, Flush::OnAck, 10);
            // The n-th call from here, once: whatever it is, nothing acknowledged depends on it.
            world.disk(victim).fail_call(n, Fault::Eio);
            let mut end = 10;
            let refused = (10..60).find_map(|at| {
                let error = partition.append(&[Record::new(&value(at))], Acks::All).err();
                end = if error.is_none() { at + 1 } else { end };
                error
            });
            if replicas > 1 {
                assert!(refused.is_none(), "{victim}, call {n}: {refused:?}");
                world.assert_heals(&store, &partition, 60);
                continue;
            }
            if let Some(error) = refused {
                assert_eq!(error.class(), ErrorClass::Fatal, "call {n}: {error:?}");
                assert_kept(&partition, end);
            }
            world.lose_power();
            drop((store, partition));
            world.disk(victim).heal();
            let (_store, partition) = world.reopen();
            assert!(contents(&partition).0.len() as u64 >= end, "call {n}");
        }
    }
}

fn s10_one_full_disk(replicas: u16) {
    for (victim, flush) in
        (0..replicas).flat_map(|at| [Flush::OnAck, Flush::Os].map(|flush| (DiskId(at), flush)))
    {
        let (world, store, partition) = World::with_records(replicas, flush, 10);
        world.disk(victim).set_free_bytes(Some(0));
        append(&partition, 10..300);
        assert_kept(&partition, 300);
        assert!(!partition.in_sync_replicas().contains(&victim), "{victim} {flush:?}");
        assert_ne!(partition.leader(), Some(victim));
        world.disk(victim).set_free_bytes(None);
        world.pass(&store, SECOND * 10);
        world.assert_heals(&store, &partition, 300);
    }
}

fn s10_all_disks_full(replicas: u16) {
    for flush in [Flush::OnAck, Flush::Os] {
        let (world, store, partition) = World::with_records(replicas, flush, 200);
        world.disks.iter().for_each(|disk| disk.set_free_bytes(Some(0)));
        let (end, error) = append_until_refused(&partition, 200);
        // Of three, the two that are short of room first leave the third alone.
        let fits = matches!(error, Error::NoSpace { .. })
            || replicas == 3 && matches!(error, Error::NotEnoughReplicas { .. });
        assert!(fits, "{flush:?}: {error:?}");
        assert_eq!(error.written(), Written::No);
        assert_kept(&partition, end);
        // What is deleted makes room, and appends work again by themselves.
        assert_eq!(partition.delete_records(Offset(150)).unwrap(), Offset(150));
        world.disks.iter().for_each(|disk| assert!(disk.free_bytes() > Some(4096)));
        world.pass(&store, SECOND * 5);
        append(&partition, end..end + 10);
        assert_eq!(contents(&partition), ((150..end + 10).collect(), vec![]));
        world.disks.iter().for_each(|disk| disk.set_free_bytes(None));
        world.pass(&store, SECOND * 10);
        assert_eq!(partition.in_sync_replicas().len(), usize::from(replicas));
    }
}

/// The metadata were written anew for the disk that came back, on the full disk as well: that failed, and no leader
/// could change any more.
fn s10_a_disk_returns_while_another_is_full(replicas: u16) {
    let (world, store, partition) = World::with_records(replicas, Flush::OnAck, 10);
    let [returns, full] = [DiskId(replicas - 1), DiskId(replicas - 2)];
    store.stop_disk(returns).unwrap();
    append(&partition, 10..20);
    world.disk(full).set_free_bytes(Some(0));
    store.start_disk(returns).unwrap();
    world.pass(&store, SECOND * 3);
    assert!(partition.in_sync_replicas().contains(&returns));
    assert!(store.disks().iter().all(|disk| disk.state == DiskState::Online));
    append(&partition, 20..300);
    world.disk(full).set_free_bytes(None);
    world.pass(&store, SECOND * 10);
    world.assert_heals(&store, &partition, 300);
}

/// A full disk refuses what can wait; leaders of others change all the same, if need be without it.
fn s10_elections_while_a_disk_is_full(replicas: u16) {
    let (world, store, partition) = World::with_records(replicas, Flush::OnAck, 10);
    store.create_topic("more", world.topic().partitions(20)).unwrap();
    let others: Vec<_> = (0..20).map(|number| store.partition("more", number).unwrap()).collect();
    world.disk(DiskId(2)).set_free_bytes(Some(0));
    others.iter().for_each(|other| append(other, 0..1));
    for at in 10..60 {
        store.stop_disk(DiskId(1)).unwrap();
        store.start_disk(DiskId(1)).unwrap();
        world.pass(&store, SECOND / 5);
        append(&partition, at..at + 1);
    }
    others.iter().for_each(|other| append(other, 1..2));
    world.disk(DiskId(2)).set_free_bytes(None);
    store.start_disk(DiskId(2)).unwrap();
    world.pass(&store, SECOND * 3);
    assert_eq!(partition.in_sync_replicas().len(), 3);
    assert_kept(&partition, 60);
}

fn s11_no_handles(replicas: u16) {
    let (world, store, partition) = World::with_records(replicas, Flush::OnAck, 10);
    world.disks.iter().for_each(|disk| disk.fail_from(1, Fault::TooManyFiles));
    let (end, error) = append_until_refused(&partition, 10);
    assert_eq!((error.class(), error.written()), (ErrorClass::Retriable, Written::No), "{error:?}");
    assert_kept(&partition, end);
    world.disks.iter().for_each(SimDisk::heal);
    world.assert_heals(&store, &partition, end);
}

fn s12_unreadable_at_open(replicas: u16) {
    for victim in (0..replicas).map(DiskId) {
        let world = World::closed_with(replicas, 20);
        world.disk(victim).fail_from(1, Fault::Eio);
        match replicas {
            1 => {
                assert!(matches!(world.builder().open(), Err(Error::Io { .. })));
                world.disk(victim).heal();
            }
            2 => {
                let error = world.builder().open().unwrap_err();
                assert!(matches!(error, Error::MissingDisk { disk, .. } if disk == victim));
                let store = world.builder().allow_missing(victim).open().unwrap();
                assert_kept(&store.partition("t", 0).unwrap(), 20);
                world.disk(victim).heal();
            }
            _ => {
                let (store, partition) = world.reopen();
                assert_eq!(store.disks()[usize::from(victim.0)].state, DiskState::Missing);
                assert_ne!(partition.leader(), Some(victim));
                append(&partition, 20..30);
                world.disk(victim).heal();
                drop((store, partition));
                world.restart();
                let (store, partition) = world.reopen();
                world.assert_heals(&store, &partition, 30);
                continue;
            }
        }
        world.restart();
        let (store, partition) = world.reopen();
        world.assert_heals(&store, &partition, 20);
    }
}

fn s12_dies_during_open(replicas: u16) {
    for (victim, clean) in (0..replicas).flat_map(|at| [(DiskId(at), true), (DiskId(at), false)]) {
        for n in 1.. {
            let (world, store, partition) = World::with_records(replicas, Flush::OnAck, 20);
            if clean {
                store.close(SECOND).unwrap();
            }
            drop((store, partition));
            world.restart();
            let calls = world.disk(victim).calls();
            world.disk(victim).fail_from(n, Fault::Eio);
            let opened = world.builder().open();
            let over = world.disk(victim).calls() - calls < n;
            match &opened {
                Ok(store) if replicas > 1 => {
                    let partition = store.partition("t", 0).unwrap();
                    append(&partition, 20..25);
                    assert_kept(&partition, 25);
                }
                Ok(_) => {}
                Err(error) => {
                    let fits = match replicas {
                        1 => matches!(error, Error::Io { .. } | Error::DiskOffline { .. }),
                        2 => matches!(error, Error::MissingDisk { .. }),
                        _ => false,
                    };
                    assert!(fits, "{victim}, clean {clean}, call {n}: {error:?}");
                }
            }
            let end = if replicas > 1 && opened.is_ok() { 25 } else { 20 };
            drop(opened);
            world.disk(victim).heal();
            world.restart();
            let (store, partition) = world.reopen();
            world.assert_heals(&store, &partition, end);
            if over {
                break;
            }
        }
    }
}

fn s12_empty_at_open(replicas: u16) {
    for victim in (0..replicas).map(DiskId) {
        let mut world = World::closed_with(replicas, 20);
        let empty = SimDisk::new(9);
        empty.share_process(&world.disks[0]);
        world.disks[usize::from(victim.0)] = empty.clone();
        if replicas == 2 {
            let error = world.builder().open().unwrap_err();
            assert!(
                matches!(error, Error::MissingDisk { disk, .. } if disk == victim),
                "{error:?}"
            );
        }
        let store = world.builder().allow_missing(victim).open().unwrap();
        let partition = store.partition("t", 0).unwrap();
        assert_eq!(store.disks()[usize::from(victim.0)].state, DiskState::Missing);
        assert!(!empty.files().iter().any(|name| name == "store.id"), "not made a disk silently");
        assert_kept(&partition, 20);
        // Made one when that is said.
        store.replace_simulated_disk(victim, empty).unwrap();
        world.assert_heals(&store, &partition, 20);
    }
}

/// Appends are refused once the only disk fails, and what was acknowledged is there at the next opening.
fn the_only_one_fails(world: &World, store: Store, partition: Partition, first: u64) {
    let (end, error) = append_until_refused(&partition, first);
    assert_eq!(error.class(), ErrorClass::Fatal, "{error:?}");
    drop((store, partition));
    world.disks[0].heal();
    world.restart();
    let (_store, partition) = world.reopen();
    assert!(contents(&partition).0.len() as u64 >= end);
}

/// The pages of mapped files are written back while the partition is idle, or while it is not, and then the disk fails: a store
/// that asks it would be a signal, which the simulated disk shows as a panic.
fn s24_pages_written_back(replicas: u16) {
    for (victim, flush, idle) in (0..replicas).flat_map(|at| {
        [(Flush::OnAck, 1), (Flush::Os, 1), (Flush::Os, 60), (Flush::Interval(SECOND), 1)]
            .map(|(flush, idle)| (DiskId(at), flush, idle))
    }) {
        let world = World::new(replicas);
        world.disks.iter().for_each(SimDisk::watch_pages);
        let store = world.open();
        let topic = world.topic().segment_bytes(1 << 20).flush(flush);
        store.create_topic("t", topic).unwrap();
        let partition = store.partition("t", 0).unwrap();
        append(&partition, 0..10);
        for at in 10..60 {
            world.clock.advance(SECOND / 20);
            append(&partition, at..at + 1);
            world.disks.iter().for_each(SimDisk::write_back);
            // As long as the disks are well, nobody is refused for want of a page.
            assert_eq!(partition.in_sync_replicas().len(), usize::from(replicas), "{flush:?}");
            store.run_background();
        }
        world.disks.iter().for_each(SimDisk::write_back);
        world.clock.advance(SECOND * idle);
        world.disk(victim).fail_from(1, Fault::Eio);
        if replicas == 1 {
            the_only_one_fails(&world, store, partition, 60);
            continue;
        }
        append(&partition, 60..100);
        assert_kept(&partition, 100);
        assert_ne!(partition.leader(), Some(victim), "{flush:?}");
        world.disk(victim).heal();
        store.start_disk(victim).unwrap();
        world.pass(&store, SECOND * 3);
        assert_eq!(partition.in_sync_replicas().len(), usize::from(replicas));
        assert_kept(&partition, 100);
    }
}

fn s13_dies_while_running(replicas: u16) {
    for (victim, flush) in
        (0..replicas).flat_map(|at| [Flush::OnAck, Flush::Os].map(|flush| (DiskId(at), flush)))
    {
        let (world, store, partition) = World::with_records(replicas, flush, 10);
        let (leader, epoch) = (partition.leader(), partition.leader_epoch());
        world.disk(victim).fail_from(1, Fault::Eio);
        if replicas == 1 {
            the_only_one_fails(&world, store, partition, 10);
            continue;
        }
        append(&partition, 10..300);
        assert_kept(&partition, 300);
        assert_eq!(partition.in_sync_replicas().len(), usize::from(replicas) - 1);
        assert_ne!(partition.leader(), Some(victim));
        assert_eq!(partition.leader_epoch() > epoch, leader == Some(victim), "its own epoch");
        // Below the minimum nothing is acknowledged, and nothing written.
        let all = TopicUpdate::new().min_insync_replicas(replicas);
        store.alter_topic("t", all).unwrap();
        let error = partition.append(&[Record::new("x")], Acks::All).unwrap_err();
        assert!(matches!(error, Error::NotEnoughReplicas { .. }), "{error:?}");
        assert_eq!((error.written(), partition.log_end_offset()), (Written::No, Offset(300)));
        world.disk(victim).heal();
        store
            .start_disk(victim)
            .or_else(|_| {
                store.stop_disk(victim)?;
                store.start_disk(victim)
            })
            .unwrap();
        world.assert_heals(&store, &partition, 300);
    }
}

/// LOG-19: what is copied begins inside a batch, because the records before were deleted.
fn s13_a_replacement_dies_while_it_is_copied_to(replicas: u16) {
    let victim = DiskId(replicas - 1);
    for (n, power) in (1..).flat_map(|n| [(n, false), (n, true)]) {
        let mut world = World::new(replicas);
        let store = world.open();
        store.create_topic("t", world.topic().flush(Flush::OnAck)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        let records: Vec<_> = (0..10).map(value).collect();
        let records: Vec<_> = records.iter().map(Record::new).collect();
        partition.append(&records, Acks::All).unwrap();
        append(&partition, 10..12);
        partition.delete_records(Offset(5)).unwrap();
        store.stop_disk(victim).unwrap();
        world.replace(&store, victim);
        world.disk(victim).crash_at(n);
        world.pass(&store, SECOND);
        let over = !world.disk(victim).is_dead();
        drop((store, partition));
        if power {
            world.lose_power();
        }
        world.restart();
        let (store, partition) = world.reopen();
        world.pass(&store, SECOND * 3);
        assert_eq!(partition.in_sync_replicas().len(), usize::from(replicas), "call {n}");
        for id in world.ids().filter(|id| *id != victim) {
            store.stop_disk(id).unwrap();
        }
        assert_eq!(contents(&partition), ((5..12).collect(), vec![]), "call {n}, power {power}");
        if over {
            return;
        }
    }
}

fn s14_swapped(replicas: u16) {
    let mut world = World::closed_with(replicas, 20);
    let first = world.disks.remove(0);
    world.disks.push(first);
    let (store, partition) = world.reopen();
    world.assert_heals(&store, &partition, 20);
}

fn s14_the_same_disk_twice(replicas: u16) {
    let world = World::closed_with(replicas, 20);
    for disk in &world.disks {
        let error = world.builder().simulated_disk(disk.fork()).open().unwrap_err();
        assert!(matches!(error, Error::UnsupportedFormat { .. }), "a copy: {error:?}");
        let error = world.builder().simulated_disk(disk.clone()).open().unwrap_err();
        let refused = matches!(error, Error::Locked { .. } | Error::UnsupportedFormat { .. });
        assert!(refused, "itself: {error:?}");
    }
    world.restart();
    let (store, partition) = world.reopen();
    world.assert_heals(&store, &partition, 20);
}

fn s14_restored_from_a_backup(replicas: u16) {
    for (victim, clean) in (0..replicas).flat_map(|at| [(DiskId(at), true), (DiskId(at), false)]) {
        let mut world = World::closed_with(replicas, 20);
        let old = world.disk(victim).fork();
        old.share_process(&world.disks[0]);
        let (store, partition) = world.reopen();
        append(&partition, 20..50);
        if clean {
            store.close(SECOND).unwrap();
        }
        drop((store, partition));
        world.lose_power();
        world.disks[usize::from(victim.0)] = old;
        let (store, partition) = world.reopen();
        assert_ne!(partition.leader(), Some(victim), "clean {clean}: an old copy does not lead");
        world.assert_heals(&store, &partition, 50);
    }
}

/// A disk of several holds the only replica, and an older copy takes the disk's place: whatever happens meanwhile,
/// what it lacks is not taken for what there is.
fn s14_the_only_replica_restored(disks: u16) {
    for clean in [true, false] {
        let mut world = World::new(disks);
        let store = world.open();
        let topic = TopicConfig::new().replication_factor(1).partitions(disks.into());
        store.create_topic("t", topic).unwrap();
        let victim = DiskId(disks - 1);
        let numbers = 0..u32::from(disks);
        let all = |store: &Store| -> Vec<_> {
            numbers.clone().map(|number| store.partition("t", number)).collect()
        };
        let held: Vec<_> = all(&store).into_iter().map(Result::unwrap).collect();
        held.iter().for_each(|partition| append(partition, 0..20));
        let lost = held.iter().position(|held| held.leader() == Some(victim)).unwrap();
        store.close(SECOND).unwrap();
        let old = world.disk(victim).fork();
        old.share_process(&world.disks[0]);
        let store = world.open();
        all(&store).iter().flatten().for_each(|partition| append(partition, 20..50));
        if clean {
            store.close(SECOND).unwrap();
        }
        drop((store, held));
        world.lose_power();
        world.disks[usize::from(victim.0)] = old;
        let check = |store: &Store| {
            for (at, partition) in all(store).into_iter().enumerate() {
                match partition {
                    Ok(partition) if at != lost => assert_kept(&partition, 50),
                    Err(Error::NoLeader { .. }) if at == lost => {}
                    other => panic!("partition {at}, clean {clean}: {other:?}"),
                }
            }
        };
        // Wherever the first opening is interrupted, and for as long as nobody says otherwise.
        for call in 1.. {
            let disks: Vec<_> = world.disks.iter().map(SimDisk::fork).collect();
            disks[1..].iter().for_each(|disk| disk.share_process(&disks[0]));
            let world = World { disks, clock: world.clock.clone() };
            world.disk(victim).crash_at(call);
            let store = world.builder().open();
            let _ = store.as_ref().map(&all);
            let through = !world.disk(victim).is_dead();
            drop(store);
            world.lose_power();
            for _ in 0..2 {
                let store = world.open();
                check(&store);
                store.close(SECOND).unwrap();
            }
            if through {
                break;
            }
        }
        let store = world.open();
        check(&store);
        let unclean = TopicUpdate::new().unclean_leader_election(true);
        store.alter_topic("t", unclean).unwrap();
        let (store, partition) = {
            store.close(SECOND).unwrap();
            let store = world.open();
            let partition = store.partition("t", u32::try_from(lost).unwrap()).unwrap();
            (store, partition)
        };
        assert_kept(&partition, 20);
        append(&partition, 20..30);
        store.close(SECOND).unwrap();
        let store = world.open();
        assert_kept(&store.partition("t", u32::try_from(lost).unwrap()).unwrap(), 30);
    }
}

fn s16_missing_segment(replicas: u16) {
    for (victim, clean) in (0..replicas).flat_map(|at| [(DiskId(at), true), (DiskId(at), false)]) {
        let names = World::closed_with(replicas, 200).logs(victim);
        let all = names.len();
        for place in 0..=all {
            let world = World::closed_with(replicas, 200);
            // In the end, all of them.
            if replicas == 1 && !clean && place + 1 >= all {
                continue; // nothing is left that knew of the last one
            }
            let gone = if place == all { 0..all } else { place..place + 1 };
            names[gone].iter().for_each(|name| world.disk(victim).remove_file(name));
            if !clean {
                world.disks.iter().for_each(|disk| disk.remove_file("session"));
            }
            let (store, partition) = world.reopen();
            if replicas == 1 {
                let (found, damaged) = contents(&partition);
                assert_eq!(found.len() + damaged.len(), 200, "told, segment {place}");
                assert!(!damaged.is_empty());
                continue;
            }
            assert_kept(&partition, 200);
            let report = store.verify(VerifyOptions::new().repair(true)).unwrap();
            assert!(report.damages.iter().all(|damage| damage.repaired), "{victim}, {place}");
            world.assert_heals(&store, &partition, 200);
        }
    }
}

fn s19_crash_in_recovery(replicas: u16) {
    let (world, store, partition) = World::with_records(replicas, Flush::OnAck, 100);
    world.lose_power();
    drop((store, partition));
    let forked = |disks: &[SimDisk]| {
        let disks: Vec<_> = disks.iter().map(SimDisk::fork).collect();
        disks[1..].iter().for_each(|disk| disk.share_process(&disks[0]));
        World { disks, clock: world.clock.clone() }
    };
    for (victim, power) in (0..replicas).flat_map(|at| [(DiskId(at), true), (DiskId(at), false)]) {
        for n in 1.. {
            let world = forked(&world.disks);
            let calls = world.disk(victim).calls();
            // The second crash comes in what the first one left.
            for after in [n, n / 2 + 1] {
                world.disk(victim).crash_at(after);
                drop(world.builder().open());
                world.disk(victim).heal();
                if power {
                    world.lose_power();
                } else {
                    world.restart();
                }
            }
            let over = world.disk(victim).calls() - calls < n;
            let (store, partition) = world.reopen();
            assert_kept(&partition, 100);
            if n % 16 == 1 || over {
                assert_eq!((cuts(&store), damages(&store)), (0, 0), "{victim}, call {n}");
                world.assert_heals(&store, &partition, 100);
            }
            if over {
                break;
            }
        }
    }
}
