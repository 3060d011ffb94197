//! Views beside an owner that acts between any two of their calls to a disk.
//!
//! What they then show was acknowledged, is at its place, and lacks nothing; no damage is told where there is none; and what is
//! asked anew knows all that its owner does. `ONCELOG_ONE_IN=1` for every call.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use oncelog::simulation::{Clock, SimDisk};
use oncelog::{
    Acks, Consumer, DiskId, Error, Flush, Isolation, Offset, Partition, ReadOptions, Record,
    Retention, StartAt, StorageMode, Store, StoreBuilder, Timestamp, TopicConfig, TopicUpdate,
    Transaction, VerifyOptions,
};

use crate::random::setting;

const SECOND: Duration = Duration::from_secs(1);
const BOTH: [Isolation; 2] = [Isolation::ReadUncommitted, Isolation::ReadCommitted];

/// What the owner does meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Appends,
    Rolls,
    Commits,
    Aborts,
    Deletes,
    DeletesAll,
    Retains,
    Lags,
    Stops,
    LeadsAgain,
    Moves,
    MovesBack,
    Replaces,
    Renews,
    Alters,
    Closes,
    Reopens,
}

use Act::*;

const ALL: [Act; 17] = [
    Appends, Rolls, Commits, Aborts, Deletes, DeletesAll, Retains, Lags, Stops, LeadsAgain, Moves,
    MovesBack, Replaces, Renews, Alters, Closes, Reopens,
];

impl Act {
    fn elects(self) -> bool {
        matches!(self, Stops | LeadsAgain | Moves | MovesBack | Replaces | Reopens)
    }

    fn needs_others(self) -> bool {
        matches!(self, Lags | Stops | LeadsAgain | Moves | MovesBack | Replaces)
    }
}

/// Who looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Looks {
    Fresh,
    Kept,
    Times,
    Verifies,
    Polls,
}

#[derive(Clone, Debug, Default)]
struct Truth {
    start: u64,
    /// By isolation.
    ends: [u64; 2],
    shown: [BTreeMap<u64, (Vec<u8>, i64)>; 2],
}

struct World {
    disks: Vec<SimDisk>,
    clock: Clock,
    mode: StorageMode,
    store: Option<Store>,
    reader: Store,
    count: u64,
}

fn builder(disks: &[SimDisk], clock: &Clock, mode: StorageMode) -> StoreBuilder {
    let builder = Store::builder()
        .clock(clock.clone())
        .storage_mode(mode)
        .append_timeout(Duration::from_millis(20));
    disks.iter().fold(builder, |all, disk| all.simulated_disk(disk.clone()))
}

impl World {
    fn new(count: u64, mode: StorageMode) -> Self {
        let disks: Vec<_> = (1..=count).map(SimDisk::new).collect();
        let clock = Clock::manual(Timestamp(1_000_000));
        let store = builder(&disks, &clock, mode).open().unwrap();
        let replicas = u16::try_from(count.min(3)).unwrap();
        let config = TopicConfig::new()
            .replication_factor(replicas)
            .min_insync_replicas(replicas.min(2))
            .flush(Flush::Os)
            .segment_bytes(4096)
            .retention(Retention::forever());
        store.create_topic("t", config).unwrap();
        let reader = builder(&disks, &clock, mode).open_read_only().unwrap();
        let mut world = Self { disks, clock, mode, store: Some(store), reader, count: 0 };
        for round in 0..4 {
            world.append(8);
            world.transact(round % 2 == 0);
        }
        world.append(3);
        world.store().run_background();
        world
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn owner(&self) -> Partition {
        self.store().partition("t", 0).unwrap()
    }

    fn value(&mut self) -> Vec<u8> {
        self.count += 1;
        self.clock.advance(Duration::from_millis(10));
        format!("{} {}", self.count, "x".repeat(90)).into_bytes()
    }

    fn append(&mut self, count: u64) {
        let owner = self.owner();
        for _ in 0..count {
            let value = self.value();
            owner.append(&[Record::new(&value)], Acks::All).unwrap();
        }
    }

    fn transact(&mut self, commits: bool) {
        let store = self.store().clone();
        let mut producer = store.producer().transactional_id("x").build().unwrap();
        let transaction = producer.begin().unwrap();
        self.go_on(transaction, commits);
    }

    fn go_on(&mut self, mut transaction: Transaction<'_>, commits: bool) {
        for _ in 0..2 {
            let value = self.value();
            transaction.append("t", 0, &[Record::new(&value)]).unwrap();
            self.append(1);
        }
        if commits {
            transaction.commit(SECOND).unwrap();
        } else {
            transaction.abort(SECOND).unwrap();
        }
    }

    /// What the owner shows.
    fn truth(&self) -> Truth {
        let owner = self.owner();
        let start = owner.log_start_offset().0;
        let ends = [owner.high_watermark().0, owner.last_stable_offset().0];
        let shown = BOTH.map(|isolation| read(&owner, isolation).unwrap().1);
        Truth { start, ends, shown }
    }

    fn act(&mut self, act: Act, transaction: Option<Transaction<'_>>) {
        let owner = self.owner();
        let leader = owner.leader().unwrap();
        let others: Vec<_> = owner.replicas().into_iter().filter(|disk| *disk != leader).collect();
        let store = self.store().clone();
        let middle = Offset(owner.high_watermark().0 / 2);
        match act {
            Appends => self.append(2),
            Rolls => self.append(40),
            Commits | Aborts => self.go_on(transaction.unwrap(), act == Commits),
            Deletes => drop(owner.delete_records(middle).unwrap()),
            DeletesAll => drop(owner.delete_records(owner.high_watermark()).unwrap()),
            Retains => {
                let retention = Retention::bytes(6000);
                store.alter_topic("t", TopicUpdate::new().retention(retention)).unwrap();
                for _ in 0..3 {
                    self.clock.advance(SECOND * 400);
                    store.run_background();
                }
                assert!(owner.log_start_offset() > Offset(0));
            }
            Lags => {
                others.iter().for_each(|disk| store.stop_disk(*disk).unwrap());
                for _ in 0..3 {
                    let value = self.value();
                    let _ = owner.append(&[Record::new(&value)], Acks::Leader);
                }
            }
            Stops => {
                store.stop_disk(leader).unwrap();
                store.run_background();
                self.append(2);
            }
            LeadsAgain => {
                store.stop_disk(leader).unwrap();
                self.append(2);
                store.start_disk(leader).unwrap();
                store.run_background();
                for disk in owner.replicas() {
                    if disk != leader {
                        let _ = store.stop_disk(disk);
                    }
                }
                store.run_background();
                for disk in owner.replicas() {
                    let _ = store.start_disk(disk);
                }
                store.run_background();
                self.append(2);
            }
            Moves => {
                store.reassign("t", 0, &others).unwrap();
                store.run_background();
                self.append(2);
            }
            MovesBack => {
                store.reassign("t", 0, &others).unwrap();
                store.run_background();
                self.append(2);
                store.reassign("t", 0, &[leader, others[0]]).unwrap();
                store.run_background();
                store.reassign("t", 0, &[leader, others[0], others[1]]).unwrap();
                self.append(2);
            }
            Replaces => {
                store.replace_simulated_disk(leader, SimDisk::new(77)).unwrap();
                for _ in 0..5 {
                    self.clock.advance(SECOND * 400);
                    store.run_background();
                }
                self.append(2);
                store.reassign("t", 0, &[leader, others[0]]).unwrap();
                store.run_background();
                self.append(2);
            }
            Renews => {
                let config = TopicConfig::new()
                    .replication_factor(u16::try_from(self.disks.len()).unwrap())
                    .min_insync_replicas(1)
                    .flush(Flush::Os);
                store.delete_topic("t").unwrap();
                store.create_topic("t", config).unwrap();
                self.append(5);
            }
            Alters => {
                store.alter_topic("t", TopicUpdate::new().flush(Flush::OnAck)).unwrap();
                self.append(2);
            }
            Closes => store.close(SECOND).unwrap(),
            Reopens => {
                store.close(SECOND).unwrap();
                drop((owner, store));
                self.store = None;
                self.store = Some(builder(&self.disks, &self.clock, self.mode).open().unwrap());
                self.append(2);
            }
        }
    }
}

type Seen = (u64, BTreeMap<u64, (Vec<u8>, i64)>, u64);

/// All that one shows from its start on, that start, and where it ends.
fn read(partition: &Partition, isolation: Isolation) -> Result<Seen, Error> {
    let mut start = partition.log_start_offset().0;
    let (mut next, mut seen) = (start, BTreeMap::new());
    let options = ReadOptions::new().isolation(isolation).max_bytes(600);
    loop {
        let records = match partition.read(Offset(next), options) {
            Err(Error::OffsetOutOfRange { start: now, .. }) if now.0 > next => {
                (start, next) = (now.0, now.0);
                continue;
            }
            read => read?,
        };
        for record in &records {
            let value = (record.value().unwrap().to_vec(), record.timestamp().0);
            assert!(seen.insert(record.offset().0, value).is_none());
        }
        if records.next_offset().0 == next {
            return Ok((start, seen, next));
        }
        next = records.next_offset().0;
    }
}

/// What is seen was in the log, and lacks nothing that is in it from `start` to `end`.
fn judge(
    seen: &BTreeMap<u64, (Vec<u8>, i64)>,
    range: std::ops::Range<u64>,
    which: usize,
    truths: &[&Truth],
    told: &str,
) {
    for (offset, value) in seen {
        assert!(
            truths.iter().any(|truth| truth.shown[which].get(offset) == Some(value)),
            "{told}: {offset} is {:?}",
            String::from_utf8_lossy(&value.0[..5])
        );
    }
    let (first, last) = (truths[0], truths[truths.len() - 1]);
    for offset in first.shown[which].keys().filter(|at| range.contains(at)) {
        let is_there = last.shown[which].contains_key(offset);
        assert!(!is_there || seen.contains_key(offset), "{told}: {offset} is left out");
    }
}

fn time_is_right(found: Option<Offset>, time: i64, truths: &[&Truth]) -> bool {
    let mut all = BTreeMap::new();
    truths.iter().for_each(|truth| all.extend(truth.shown[0].clone()));
    truths.iter().any(|truth| {
        let hit = all.range(truth.start..).find(|(_, (_, at))| *at >= time);
        hit.map(|(offset, _)| *offset) == found.map(|found| found.0)
    })
}

fn poll(consumer: &mut Consumer, got: &mut Vec<(u64, Vec<u8>)>) -> Result<bool, Error> {
    let records = consumer.poll(Duration::ZERO)?;
    got.extend(records.iter().map(|it| (it.offset().0, it.value().unwrap().to_vec())));
    Ok(!records.is_empty())
}

/// Whether such a call came.
fn between(count: u64, mode: StorageMode, act: Act, looks: Looks, disk: usize, at: u64) -> bool {
    let told = format!("{count} disks, {mode:?}, {act:?}, {looks:?}, call {at} of {disk}");
    let mut world = World::new(count, mode);
    let (reader, store) = (world.reader.clone(), world.store().clone());
    let kept = reader.partition("t", 0).unwrap();
    let isolation = BOTH[usize::try_from(at % 2).unwrap()];
    let mut consumer = reader
        .consumer()
        .isolation(isolation)
        .start(StartAt::Earliest)
        .max_poll_records(5)
        .build()
        .unwrap();
    consumer.assign(&[("t", 0)]).unwrap();
    let mut got = Vec::new();
    poll(&mut consumer, &mut got).unwrap();
    let mut producer = store.producer().transactional_id("y").build().unwrap();
    let transaction = matches!(act, Commits | Aborts).then(|| {
        let mut transaction = producer.begin().unwrap();
        let value = world.value();
        transaction.append("t", 0, &[Record::new(&value)]).unwrap();
        transaction
    });
    world.append(2);
    let before = world.truth();
    drop(store);

    let disk = world.disks[disk].clone();
    disk.hold_call(at);
    let done = AtomicBool::new(false);
    let is_allowed = |error: &Error| match error {
        Error::NoLeader { .. } => act.elects(),
        Error::UnknownTopicOrPartition { .. } => act == Renews,
        _ => false,
    };
    let mut seen: Vec<(usize, Seen)> = Vec::new();
    let (mut times, mut wrong) = (Vec::new(), Vec::new());
    let (came, failed) = std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let told: Result<(), Error> = (|| {
                match looks {
                    Looks::Fresh | Looks::Kept => {
                        for (which, isolation) in BOTH.into_iter().enumerate() {
                            if looks == Looks::Kept {
                                seen.push((which, read(&kept, isolation)?));
                            } else {
                                let fresh = reader.partition("t", 0)?;
                                seen.push((which, read(&fresh, isolation)?));
                            }
                        }
                    }
                    Looks::Times => {
                        let last = before.shown[0].values().next_back().unwrap().1;
                        for time in (1_000_000..=last).step_by(90) {
                            let fresh = reader.partition("t", 0)?;
                            times.push((time, fresh.offset_for_time(Timestamp(time))?));
                            times.push((time, kept.offset_for_time(Timestamp(time))?));
                        }
                    }
                    Looks::Verifies => {
                        let report = reader.verify(VerifyOptions::new())?;
                        wrong.extend(report.damages.iter().map(|it| format!("{it:?}")));
                        let unread = report.unread.iter().filter(|_| !act.elects());
                        wrong.extend(unread.map(|it| format!("{it:?}")));
                    }
                    Looks::Polls => while poll(&mut consumer, &mut got)? {},
                }
                Ok(())
            })();
            done.store(true, Ordering::Release);
            told.err()
        });
        while !disk.holds_call() && !done.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        let came = !done.load(Ordering::Acquire);
        let mut acted = Ok(());
        if came {
            let acting = AssertUnwindSafe(|| world.act(act, transaction));
            acted = catch_unwind(acting);
        }
        disk.answer();
        let looked = looking.join();
        assert!(acted.is_ok(), "{told}: the owner");
        (came, looked.expect(&told))
    });
    if !came {
        assert!(failed.is_none(), "{told}: {failed:?}");
        return false;
    }
    if let Some(error) = failed {
        assert!(is_allowed(&error), "{told}: {error:?}");
    }
    assert!(wrong.is_empty(), "{told}: {wrong:?}");
    let after = if act == Closes { before.clone() } else { world.truth() };
    let truths = [&before, &after];
    let of_kept = if act == Renews { &truths[..1] } else { &truths[..] };
    for (which, (start, seen, end)) in &seen {
        let truths = if looks == Looks::Kept { of_kept } else { &truths[..] };
        judge(seen, *start..*end, *which, truths, &told);
        let least = before.ends[*which];
        assert!(
            act == Renews || *which == 1 || *end >= least,
            "{told}: ends at {end}, not {least}"
        );
    }
    for (time, found) in times {
        let is_right = time_is_right(found, time, &truths);
        assert!(act == Renews || is_right, "{told}: at {time} is {found:?}");
    }

    // Without a page it may take a moment to hear of others.
    let is_late = mode == StorageMode::Write && act.elects();
    let knows_all = !is_late && act != Replaces;
    let told = format!("{told}, afterwards");
    for (which, isolation) in BOTH.into_iter().enumerate() {
        let fresh = reader.partition("t", 0).and_then(|fresh| read(&fresh, isolation));
        let kept = read(&kept, isolation);
        for (name, saw, truths) in
            [("fresh", fresh, &truths[1..]), ("kept", kept, &of_kept[of_kept.len() - 1..])]
        {
            let told = format!("{told}, {name}");
            match saw {
                Ok((start, seen, end)) => {
                    judge(&seen, start..end, which, truths, &told);
                    let (own, owners) = (start..end, truths[0].start..truths[0].ends[which]);
                    let is_known = knows_all && !(act == Renews && name == "kept");
                    if is_known && mode != StorageMode::Write {
                        assert_eq!(own, owners, "{told}");
                    } else if is_known && which == 0 {
                        // Without a page the leader's files are believed.
                        assert!(
                            own.start == owners.start && own.end >= owners.end,
                            "{told}: {own:?}"
                        );
                    }
                }
                Err(Error::NoLeader { .. }) if name == "fresh" && act == Replaces => {}
                Err(error) => {
                    assert!(name == "kept" && is_allowed(&error), "{told}: {error:?}");
                }
            }
        }
    }
    if looks == Looks::Polls && !matches!(act, Renews | Replaces) {
        let which = usize::from(isolation == Isolation::ReadCommitted);
        let is_late = is_late || (mode == StorageMode::Write && which == 1);
        for _ in 0..if is_late { 3 } else { 30 } {
            match poll(&mut consumer, &mut got) {
                Ok(_) => {}
                Err(error) => assert!(is_allowed(&error), "{told}: {error:?}"),
            }
        }
        assert!(got.is_sorted_by(|one, other| one.0 < other.0), "{told}: twice");
        let offsets: Vec<_> = got.iter().map(|it| it.0).collect();
        for (offset, value) in &got {
            let is_known = |truth: &&Truth| {
                truth.shown[which].get(offset).is_some_and(|known| known.0 == *value)
            };
            assert!(truths.iter().any(is_known), "{told}: {offset}");
        }
        for offset in before.shown[which].keys().chain(after.shown[which].keys()) {
            let is_gone = *offset < after.start;
            assert!(
                is_late || is_gone || offsets.contains(offset),
                "{told}: {offset} is not polled"
            );
        }
    }
    true
}

#[test]
fn a_view_keeps_its_word_whatever_happens_between_two_of_its_calls() {
    eprintln!("all of it: ONCELOG_ONE_IN=1 cargo test --all-features --test adversary between");
    let one_in = setting("ONCELOG_ONE_IN", 97);
    let mut failed = Vec::new();
    let mut nth = 0;
    let mut runs = 0;
    for (count, mode) in [
        (1, StorageMode::Auto),
        (3, StorageMode::Auto),
        (1, StorageMode::Write),
        (3, StorageMode::Write),
        (3, StorageMode::Mmap),
    ] {
        for act in ALL.into_iter().filter(|act| count == 3 || !act.needs_others()) {
            if act == Lags && mode == StorageMode::Write {
                continue; // it believes the leader's files
            }
            for looks in [Looks::Fresh, Looks::Kept, Looks::Times, Looks::Verifies, Looks::Polls] {
                for disk in 0..usize::try_from(count).unwrap() {
                    nth += 1;
                    // Of the other disks it asks little.
                    let is_plain = count == 3 && mode != StorageMode::Mmap;
                    let rarely = if disk > 0 { 11 } else { 1 + u64::from(!is_plain) * 2 };
                    if one_in > 1 && nth % rarely > 0 {
                        continue;
                    }
                    // What is looked for goes with the files amid this.
                    let goes = matches!(act, Moves | Renews)
                        && matches!(looks, Looks::Times | Looks::Verifies);
                    let one_in = if goes { one_in.div_ceil(5) } else { one_in };
                    for at in (1 + nth % one_in..).step_by(usize::try_from(one_in).unwrap()) {
                        runs += 1;
                        let run = || between(count, mode, act, looks, disk, at);
                        match catch_unwind(run) {
                            Ok(true) => {}
                            Ok(false) => break,
                            Err(error) => {
                                let text = error.downcast_ref::<String>().cloned();
                                failed.push(text.unwrap_or_else(|| format!("{act:?} {at}")));
                                break;
                            }
                        }
                    }
                }
            }
        }
    }
    eprintln!("{runs} runs");
    assert!(failed.is_empty(), "{} failed: {failed:#?}", failed.len());
}

/// Three disks, and a topic on two of them that may elect anybody.
fn parted() -> (Vec<SimDisk>, Store, [DiskId; 2]) {
    let disks: Vec<_> = (1..4).map(SimDisk::new).collect();
    let clock = Clock::manual(Timestamp(1_000_000));
    let store = builder(&disks, &clock, StorageMode::Auto).open().unwrap();
    let config = TopicConfig::new().replication_factor(2).min_insync_replicas(1).flush(Flush::Os);
    store.create_topic("t", config.unclean_leader_election(true)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let leader = partition.leader().unwrap();
    let other = *partition.replicas().iter().find(|disk| **disk != leader).unwrap();
    (disks, store, [leader, other])
}

fn put(store: &Store, values: &[&str]) {
    let partition = store.partition("t", 0).unwrap();
    for value in values {
        partition.append(&[Record::new(*value)], Acks::All).unwrap();
    }
}

fn polled(consumer: &mut Consumer) -> Result<Vec<String>, Error> {
    let text = |value: Option<&[u8]>| String::from_utf8(value.unwrap().to_vec()).unwrap();
    Ok(consumer.poll(Duration::ZERO)?.iter().map(|record| text(record.value())).collect())
}

/// Others' records came where a view had read, and it went on behind them without a word.
#[test]
fn cons_03_a_view_learns_that_an_unclean_election_cut_what_it_had_read() {
    for (more, returns) in [(1, false), (4, false), (1, true), (4, true), (9, true)] {
        let told = format!("{more} more, the first leads again: {returns}");
        let (disks, store, [leader, other]) = parted();
        put(&store, &["a", "b"]);
        store.stop_disk(other).unwrap();
        put(&store, &["lost", "too"]);
        let reader = builder(&disks, &Clock::manual(Timestamp(0)), StorageMode::Auto);
        let reader = reader.open_read_only().unwrap();
        let kept = reader.partition("t", 0).unwrap();
        let mut consumer = reader.consumer().start(StartAt::Error).build().unwrap();
        consumer.assign(&[("t", 0)]).unwrap();
        consumer.seek("t", 0, Offset(0)).unwrap();
        assert_eq!(polled(&mut consumer).unwrap(), ["a", "b", "lost", "too"]);
        assert_eq!(kept.high_watermark(), Offset(4));
        store.close(SECOND).unwrap();
        drop(store);
        let clock = Clock::manual(Timestamp(1_000_000));
        let mut others = disks.clone();
        others.remove(usize::from(leader.0));
        let without = builder(&others, &clock, StorageMode::Auto).allow_missing(leader);
        let mut store = without.open().unwrap();
        let mut partition = store.partition("t", 0).unwrap();
        assert_eq!((partition.leader(), partition.high_watermark()), (Some(other), Offset(2)));
        let values: Vec<_> = (0..more).map(|at| "x".repeat(at + 1)).collect();
        let texts: Vec<_> = values.iter().map(String::as_str).collect();
        put(&store, &texts);
        if returns {
            store.close(SECOND).unwrap();
            drop((partition, store));
            store = builder(&disks, &clock, StorageMode::Auto).open().unwrap();
            partition = store.partition("t", 0).unwrap();
            store.run_background();
            store.stop_disk(other).unwrap();
            assert_eq!(partition.leader(), Some(leader), "{told}");
        }
        let patience = std::time::Instant::now();
        let error = loop {
            match polled(&mut consumer) {
                Ok(records) => assert!(records.is_empty(), "{told}: {records:?}"),
                Err(Error::NoLeader { .. }) => {}
                Err(error) => break error,
            }
            assert!(patience.elapsed() < SECOND * 60, "{told}: nothing is told");
        };
        let Error::Diverged { position, diverged_at, .. } = error else {
            panic!("{told}: {error}")
        };
        assert_eq!((position, diverged_at), (Offset(4), Offset(2)), "{told}");
        consumer.seek("t", 0, diverged_at).unwrap();
        assert_eq!(polled(&mut consumer).unwrap(), texts, "{told}");
        if returns {
            assert_eq!(kept.high_watermark(), partition.high_watermark(), "{told}");
            let seen = read(&kept, Isolation::ReadUncommitted).unwrap();
            assert_eq!(seen, read(&partition, Isolation::ReadUncommitted).unwrap(), "{told}");
        }
    }
}

/// It counted as none, and the files were believed: what was not acknowledged was shown.
#[test]
fn a_page_that_is_cut_short_or_no_file_shows_nothing() {
    for cut in [Some(111), Some(1), None] {
        let disks: Vec<_> = (1..4).map(SimDisk::new).collect();
        let clock = Clock::manual(Timestamp(1_000_000));
        let store = builder(&disks, &clock, StorageMode::Auto).open().unwrap();
        let config = TopicConfig::new().replication_factor(3).min_insync_replicas(3);
        store.create_topic("t", config.flush(Flush::Os)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        partition.append(&[Record::new("x")], Acks::All).unwrap();
        store.stop_disk(partition.replicas()[2]).unwrap();
        partition.append(&[Record::new("not acknowledged")], Acks::Leader).unwrap();
        assert_eq!(partition.high_watermark(), Offset(1));
        let disk = &disks[usize::from(partition.leader().unwrap().0)];
        let reader = builder(&disks, &clock, StorageMode::Auto).open_read_only().unwrap();
        let kept = reader.partition("t", 0).unwrap();
        assert_eq!(kept.high_watermark(), Offset(1));
        let name = disk.files().into_iter().find(|name| name.ends_with("-t/0/marks")).unwrap();
        let page = disk.read_file(&name);
        disk.remove_file(&name);
        match cut {
            Some(len) => disk.write_file(&name, &page[..len]),
            None => disk.write_file(&format!("{name}/other"), b"x"),
        }
        let fresh = reader.partition("t", 0);
        assert!(matches!(fresh, Err(Error::Io { .. })), "{cut:?}: {fresh:?}");
        assert_eq!(kept.high_watermark(), Offset(1), "{cut:?}");
        let told = kept.read(Offset(1), ReadOptions::new());
        assert!(matches!(told, Err(Error::Io { .. })), "{cut:?}: {told:?}");
        assert_eq!(kept.read(Offset(0), ReadOptions::new()).unwrap().count(), 1);
        disk.remove_file(&format!("{name}/other"));
    }
}

/// A disk that was replaced still had the page and the files of before, and its number led again.
#[test]
fn a_view_believes_no_disk_that_another_has_replaced() {
    for mode in [StorageMode::Auto, StorageMode::Write] {
        let (disks, store, [leader, other]) = parted();
        let clock = Clock::manual(Timestamp(0));
        put(&store, &["a", "b"]);
        let readers = [0; 2].map(|_| builder(&disks, &clock, mode).open_read_only().unwrap());
        let kept = readers[0].partition("t", 0).unwrap();
        assert_eq!(kept.high_watermark(), Offset(2));
        let newcomer = SimDisk::new(7);
        store.replace_simulated_disk(leader, newcomer.clone()).unwrap();
        put(&store, &["c"]);
        store.run_background();
        let partition = store.partition("t", 0).unwrap();
        store.stop_disk(other).unwrap();
        assert_eq!(partition.leader(), Some(leader));
        put(&store, &["d"]);
        for reader in &readers {
            for _ in 0..3 {
                let fresh = reader.partition("t", 0).map(|fresh| fresh.high_watermark());
                assert!(matches!(fresh, Err(Error::NoLeader { .. })), "{mode:?}: {fresh:?}");
            }
        }
        let told = kept.wait_for(Offset(2), Duration::ZERO);
        assert!(matches!(told, Err(Error::NoLeader { .. })), "{mode:?}: {told:?}");
        store.start_disk(other).unwrap();
        store.run_background();
        store.stop_disk(leader).unwrap();
        assert_eq!(partition.leader(), Some(other));
        for reader in &readers {
            assert_eq!(reader.partition("t", 0).unwrap().high_watermark(), Offset(4), "{mode:?}");
        }
    }
}

/// A view ended before it, without a word, and showed nothing of what followed.
#[test]
fn s3_damage_in_the_last_segment_is_told_and_what_follows_is_shown() {
    for kept_before in [true, false] {
        let disk = SimDisk::new(1);
        let disks = [disk.clone()];
        let clock = Clock::manual(Timestamp(0));
        let store = builder(&disks, &clock, StorageMode::Auto).open().unwrap();
        store.create_topic("t", TopicConfig::new()).unwrap();
        put(&store, &["zero", "one", "two", "three", "four"]);
        let reader = builder(&disks, &clock, StorageMode::Auto).open_read_only().unwrap();
        let early = reader.partition("t", 0).unwrap();
        put(&store, &["five", "six", "seven"]);
        let name = disk.files().into_iter().rfind(|name| name.contains("-t/0/0000")).unwrap();
        let mut bytes = disk.read_file(&name);
        let rotten: &[u8] = if kept_before { b"six" } else { b"three" };
        let at = bytes.windows(rotten.len()).position(|window| window == rotten).unwrap();
        bytes[at] ^= 1;
        disk.write_file(&name, &bytes);
        let view = if kept_before { early } else { reader.partition("t", 0).unwrap() };
        let damaged = if kept_before { 6 } else { 3 };
        assert_eq!(view.high_watermark(), Offset(8));
        for at in 0..8 {
            match view.read(Offset(at), ReadOptions::new().max_bytes(1)) {
                Ok(records) => assert!(at != damaged && !records.is_empty(), "{at}"),
                Err(Error::Corrupt { offsets, .. }) => {
                    assert_eq!(offsets, Offset(damaged)..Offset(damaged + 1));
                    assert_eq!(at, damaged);
                }
                Err(error) => panic!("{at}: {error}"),
            }
        }
        let damages = reader.verify(VerifyOptions::new()).unwrap().damages;
        let damages: Vec<_> = damages.iter().map(|damage| damage.offsets.clone()).collect();
        assert_eq!(damages, [Offset(damaged)..Offset(damaged + 1)]);
    }
}
