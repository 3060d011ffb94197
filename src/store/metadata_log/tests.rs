//! Changes that too few disks take, or late, and what the next opening finds.

use super::*;
use crate::config::TopicConfig;
use crate::storage::MemoryDisk;
use crate::storage::simulated::{Fault, Hang, SimDisk};
use crate::store::layout;
use crate::types::TopicId;

const STORE: StoreId = StoreId(1);

fn disks(count: u16) -> Vec<(DiskId, Arc<dyn Disk>)> {
    (0..count).map(|at| (DiskId(at), Arc::new(MemoryDisk::new()) as Arc<dyn Disk>)).collect()
}

fn added(disk: DiskId, incarnation: u64) -> MetadataRecord {
    let uuid = u128::from(disk.0) + 1000 * u128::from(incarnation);
    MetadataRecord::DiskAdded { disk, uuid, incarnation }
}

fn create(disks: &[(DiskId, Arc<dyn Disk>)]) -> MetadataLog {
    let mut first = vec![MetadataRecord::StoreCreated { store: STORE, format: layout::VERSION }];
    first.extend(disks.iter().map(|(disk, _)| added(*disk, 1)));
    MetadataLog::create(disks, STORE, &first).unwrap()
}

/// Its changes are later ones, however many the disk has that was away: those were not known any more.
#[test]
fn what_a_later_opening_decided_outlasts_what_only_a_disk_that_was_away_has() {
    let disks = disks(2);
    let mut log = create(&disks);
    log.remove_disk(DiskId(1));
    (0..3).for_each(|_| log.commit(&MetadataRecord::Opened { clean: false }).unwrap());
    drop(log);
    let later = Arc::clone(&disks[1].1);
    let found = Found::read(&[Arc::clone(&later)], Some(STORE)).unwrap().unwrap();
    let (mut log, _) = found.open(&[(0, DiskId(1), later)], false).unwrap();
    log.commit(&added(DiskId(2), 1)).unwrap();
    drop(log);
    let both = [Arc::clone(&disks[0].1), Arc::clone(&disks[1].1)];
    let found = Found::read(&both, Some(STORE)).unwrap().unwrap();
    assert_eq!(found.state().disks().count(), 3);
}

fn topic(at: u64) -> MetadataRecord {
    MetadataRecord::TopicCreated {
        id: TopicId(at),
        name: format!("t{at}"),
        replicas: vec![vec![DiskId(0)]],
        config: TopicConfig::new(),
    }
}

/// The topics that the next opening finds on these disks.
fn found(disks: &[Arc<dyn Disk>]) -> Vec<u64> {
    let found = Found::read(disks, Some(STORE)).unwrap().unwrap();
    found.state().topics().map(|topic| topic.id.0).collect()
}

/// Nothing was taken any more until the store was opened anew, also once the disks were well again.
#[test]
fn what_too_few_disks_have_taken_is_not_made_once_something_else_is() {
    for failed in [&[1, 2], &[0, 1], &[0, 2]] {
        let sims: Vec<_> = (0..3).map(SimDisk::new).collect();
        let disks: Vec<_> = sims.iter().map(|sim| Arc::new(sim.clone()) as Arc<dyn Disk>).collect();
        let mut log = create(&(0..).map(DiskId).zip(disks.clone()).collect::<Vec<_>>());
        log.commit(&topic(1)).unwrap();
        failed.iter().for_each(|at| sims[*at].fail_from(1, Fault::Eio));
        assert_eq!(log.commit(&topic(2)).unwrap_err().written(), Written::Unknown);
        assert_eq!(log.commit(&topic(2)).unwrap_err().written(), Written::No);
        assert_eq!((log.doubts_ended(), log.is_in_doubt()), (0, true));
        failed.iter().for_each(|at| sims[*at].heal());
        log.commit(&topic(3)).unwrap();
        assert_eq!((log.doubts_ended(), log.is_in_doubt()), (1, false));
        log.commit(&topic(4)).unwrap();
        drop(log);
        for out in 0..3 {
            let others: Vec<_> =
                (0..3).filter(|at| *at != out).map(|at| Arc::clone(&disks[at])).collect();
            assert_eq!(found(&others), [1, 3, 4], "without disk {out}");
        }
    }
}

/// Each time the log was written anew without what is in doubt, that was as of one more term. The next opening need not
/// know the disk that took it, and began an earlier one: once the disk was there again, what it had decided was gone.
#[test]
fn what_a_later_opening_decided_outlasts_the_end_of_a_doubt_that_too_few_have_taken() {
    for tries in 0..4 {
        let sims: Vec<_> = (0..3).map(SimDisk::new).collect();
        let disks: Vec<_> = sims.iter().map(|sim| Arc::new(sim.clone()) as Arc<dyn Disk>).collect();
        let mut log = create(&(0..).map(DiskId).zip(disks.clone()).collect::<Vec<_>>());
        log.commit(&topic(1)).unwrap();
        sims[1..].iter().for_each(|sim| sim.fail_from(1, Fault::Eio));
        (0..=tries).for_each(|_| _ = log.commit(&topic(2)).unwrap_err());
        sims[1..].iter().for_each(SimDisk::heal);
        drop(log);
        let found = Found::read(&disks[1..], Some(STORE)).unwrap().unwrap();
        let place = |at: usize, id| (at, DiskId(id), Arc::clone(&disks[at + 1]));
        let (mut log, _) = found.open(&[place(0, 1), place(1, 2)], false).unwrap();
        log.commit(&topic(3)).unwrap();
        drop(log);
        assert!(self::found(&disks).contains(&3), "after {tries} tries to end the doubt");
    }
}

fn opened(sims: &[SimDisk], places: &[u16]) -> MetadataLog {
    let disk = |at: &u16| Arc::new(sims[usize::from(*at)].clone()) as Arc<dyn Disk>;
    let disks: Vec<_> = places.iter().map(disk).collect();
    let found = Found::read(&disks, Some(STORE)).unwrap().unwrap();
    let places = places.iter().zip(disks).enumerate();
    let places: Vec<_> = places.map(|(at, (id, disk))| (at, DiskId(*id), disk)).collect();
    found.open(&places, false).unwrap().0
}

/// Both were of the same term, and the longer one held.
#[test]
fn what_an_opening_decided_outlasts_what_the_one_before_it_began_on_too_few_disks() {
    let mut began = 0;
    for call in 1..30 {
        let sims: Vec<_> = (0..3).map(SimDisk::new).collect();
        let disks: Vec<_> = sims.iter().map(|sim| Arc::new(sim.clone()) as Arc<dyn Disk>).collect();
        let mut log = create(&(0..).map(DiskId).zip(disks.clone()).collect::<Vec<_>>());
        log.commit(&topic(1)).unwrap();
        drop(log);
        let mut log = opened(&sims, &[0, 1, 2]);
        sims[1..].iter().for_each(|sim| sim.fail_from(call, Fault::Eio));
        let outcome = log.commit_all(&[topic(2), topic(3)]);
        began += usize::from(outcome.is_err_and(|error| error.written() == Written::Unknown));
        sims[1..].iter().for_each(SimDisk::heal);
        drop(log);
        let mut log = opened(&sims, &[1, 2]);
        log.commit(&topic(4)).unwrap();
        drop(log);
        assert!(found(&disks).contains(&4), "call {call}");
    }
    assert!(began > 0);
}

/// It alone of those that were there knew that the one that was away had begun to change something.
#[test]
fn what_an_opening_decided_outlasts_what_began_before_it_where_a_disk_no_longer_knows_of_that() {
    let mut began = 0;
    for call in 1..30 {
        for is_flipped in [false, true] {
            let sims: Vec<_> = (0..3).map(SimDisk::new).collect();
            let disks: Vec<_> =
                sims.iter().map(|sim| Arc::new(sim.clone()) as Arc<dyn Disk>).collect();
            drop(create(&(0..).map(DiskId).zip(disks.clone()).collect::<Vec<_>>()));
            opened(&sims, &[0, 1, 2]).commit(&topic(1)).unwrap();
            let mut log = opened(&sims, &[0, 1]);
            sims[1].fail_from(call, Fault::Eio);
            let outcome = log.commit_all(&[topic(2), topic(3)]);
            began += usize::from(outcome.is_err_and(|error| error.written() == Written::Unknown));
            sims[1].heal();
            drop(log);
            for place in 0..2 {
                if is_flipped {
                    let mut bytes = sims[1].read_file(TERM);
                    bytes[place * 4096 + 9] ^= 0xff;
                    sims[1].write_file(TERM, &bytes);
                } else {
                    sims[1].break_sector(TERM, place as u64 * 8);
                }
            }
            let mut log = opened(&sims, &[1, 2]);
            log.commit(&topic(4)).unwrap();
            log.commit(&topic(5)).unwrap();
            drop(log);
            let found = found(&disks);
            assert!(found.contains(&4) && found.contains(&5), "call {call}: {found:?}");
            assert!(!term::read(&sims[1], STORE).unwrap().is_damaged);
        }
    }
    assert!(began > 0);
}

/// Openings of whichever disks of three are there, each of which fails or dies somewhere.
#[test]
fn what_was_made_holds_whichever_majority_the_next_openings_have() {
    for seed in 0..600_u64 {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut below = |bound: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 11) % bound
        };
        let sims: Vec<_> = (0..3).map(|at| SimDisk::new(3 * seed + at)).collect();
        let disks: Vec<_> = sims.iter().map(|sim| Arc::new(sim.clone()) as Arc<dyn Disk>).collect();
        drop(create(&(0..).map(DiskId).zip(disks.clone()).collect::<Vec<_>>()));
        let (mut made, mut refused, mut next) = (Vec::new(), Vec::new(), 1);
        for _ in 0..6 {
            let out = below(4);
            let places: Vec<_> = (0..3).filter(|at| u64::from(*at) != out).collect();
            let there = |at: &u16| Arc::clone(&disks[usize::from(*at)]);
            let found = found(&places.iter().map(there).collect::<Vec<_>>());
            assert!(made.iter().all(|id| found.contains(id)), "seed {seed}: {made:?}, {found:?}");
            assert!(!refused.iter().any(|id| found.contains(id)), "seed {seed}: {found:?}");
            let mut log = opened(&sims, &places);
            for _ in 0..below(4) {
                for sim in &sims {
                    match below(4) {
                        0 => sim.fail_from(1 + below(24), Fault::Eio),
                        1 => sim.heal(),
                        2 => sim.fail_call(1 + below(24), Fault::Eio),
                        _ => {}
                    }
                }
                let ids: Vec<_> = (next..=next + below(3)).collect();
                next += ids.len() as u64;
                match log.commit_all(&ids.iter().map(|id| topic(*id)).collect::<Vec<_>>()) {
                    Ok(()) => made.extend(ids),
                    Err(error) if error.written() == Written::No => refused.extend(ids),
                    Err(_) => {}
                }
            }
            drop(log);
            sims.iter().for_each(SimDisk::heal);
            if below(2) == 0 {
                sims.iter().for_each(SimDisk::power_loss);
            }
        }
    }
}

#[test]
fn a_crash_while_a_doubt_ends_takes_nothing_that_was_made() {
    for call in 1..1000_usize {
        let sims: Vec<_> = (0..3).map(SimDisk::new).collect();
        sims[1..].iter().for_each(|sim| sim.share_process(&sims[0]));
        let disks: Vec<_> = sims.iter().map(|sim| Arc::new(sim.clone()) as Arc<dyn Disk>).collect();
        let mut log = create(&(0..).map(DiskId).zip(disks.clone()).collect::<Vec<_>>());
        log.commit(&topic(1)).unwrap();
        sims[1..].iter().for_each(|sim| sim.fail_from(3, Fault::Eio));
        log.commit(&topic(2)).unwrap_err();
        sims[1..].iter().for_each(SimDisk::heal);
        sims[call % 3].crash_at(call.div_ceil(3) as u64);
        let made = log.commit(&topic(3)).is_ok();
        drop(log);
        let crashed = sims.iter().any(SimDisk::is_dead);
        sims.iter().for_each(SimDisk::power_loss);
        for out in 0..3 {
            let others: Vec<_> =
                (0..3).filter(|at| *at != out).map(|at| Arc::clone(&disks[at])).collect();
            let found = found(&others);
            assert_eq!(
                (found[0], found.contains(&3) || !made),
                (1, true),
                "call {call}: {found:?}"
            );
            assert!(!made || !found.contains(&2), "call {call}: {found:?}");
        }
        if !crashed && call > 3 {
            return;
        }
    }
}

/// What is behind the limit is not read: it would have been lost without a word.
#[test]
fn the_log_ends_before_its_limit_and_takes_changes_again_once_there_is_less_to_say() {
    let disks = disks(1);
    let mut log = create(&disks);
    log.bytes_max = 64 << 10;
    let name = |at: u32| format!("{}-{at}", "x".repeat(200));
    let create = |at: u32| MetadataRecord::TopicCreated {
        id: TopicId(at.into()),
        name: name(at),
        replicas: vec![vec![DiskId(0)]],
        config: TopicConfig::new(),
    };
    let made = (1..).take_while(|at| log.commit(&create(*at)).is_ok()).count();
    let made = u32::try_from(made).unwrap();
    let told = log.commit(&create(made + 1));
    assert!(made > 100 && matches!(told, Err(Error::NoSpace { .. })), "{made}: {told:?}");
    assert!(log.position <= log.bytes_max);
    for at in 1..=made / 2 {
        log.commit(&MetadataRecord::TopicDeleted { id: TopicId(at.into()) }).unwrap();
        log.commit(&MetadataRecord::TopicRemoved { id: TopicId(at.into()) }).unwrap();
    }
    (1..20).for_each(|at| log.commit(&create(made + at)).unwrap());
    assert!(log.position <= log.bytes_max);
    let (last, topics) = (log.last, log.state.topics().count());
    drop(log);
    let found = Found::read(&[Arc::clone(&disks[0].1)], Some(STORE)).unwrap().unwrap();
    assert_eq!((found.last, found.state().topics().count()), (last, topics));
}

fn simulated() -> (Vec<SimDisk>, MetadataLog) {
    let sims: Vec<_> = (0..3).map(SimDisk::new).collect();
    let disk = |(at, sim): (u16, &SimDisk)| (DiskId(at), Arc::new(sim.clone()) as Arc<dyn Disk>);
    let mut log = create(&(0..).zip(&sims).map(disk).collect::<Vec<_>>());
    // Makes room for those to come.
    log.commit(&topic(1)).unwrap();
    log.set_patience(Duration::ZERO);
    (sims, log)
}

/// As where a cloud's volumes stall together. It was taken for a failed write, after which no leader could change until
/// the store was opened anew.
#[test]
fn s22_a_change_waits_while_most_disks_hang_and_is_made_once_enough_answer() {
    let (sims, mut log) = simulated();
    sims[1..].iter().for_each(|sim| sim.hang(Hang::Syncs));
    std::thread::scope(|scope| {
        let committed = scope.spawn(|| log.commit(&MetadataRecord::Opened { clean: false }));
        while sims[1..].iter().any(|sim| sim.held_calls() == 0) {
            std::thread::yield_now();
        }
        assert!(!committed.is_finished());
        sims[1].answer();
        committed.join().unwrap().unwrap();
    });
    assert_eq!([0, 1, 2].map(|at| log.takes_part(DiskId(at))), [true, true, false]);
    sims[2].answer();
    log.commit(&MetadataRecord::Opened { clean: false }).unwrap();
}

#[test]
fn a_change_waits_for_nobody_where_too_many_disks_have_failed() {
    let (sims, mut log) = simulated();
    sims[0].hang(Hang::Syncs);
    sims[1..].iter().for_each(|sim| sim.fail_from(1, Fault::Eio));
    let told = log.commit(&MetadataRecord::Opened { clean: false });
    assert!(matches!(told, Err(Error::Io { .. })), "{told:?}");
    sims[0].answer();
}

/// It would itself make the majority that lets it in, without a disk that may know better.
#[test]
fn a_directory_does_not_count_before_those_that_are_there_have_let_it_in() {
    let disks = disks(3);
    let mut log = create(&disks);
    log.remove_disk(DiskId(1));
    log.remove_disk(DiskId(2));
    let log = Mutex::new(log);
    let newcomer: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
    let record = added(DiskId(1), 2);
    let admitted = MetadataLog::admit(&log, DiskId(1), &newcomer, &record).map(drop);
    assert!(matches!(admitted, Err(Error::MissingDisk { .. })), "{admitted:?}");
    assert!(!log.lock().takes_part(DiskId(1)));
}
