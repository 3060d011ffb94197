//! Groups as their members see them: over a simulated disk, with the time handed in (GRP-*, COORD-47, INV-11, INV-12).

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::config::TopicConfig;
use crate::protocol::group::assignment::Situation;
use crate::protocol::group::assignors::{Range, Sticky};
use crate::record::Record;
use crate::storage::Clock;
use crate::storage::simulated::SimDisk;
use crate::types::{Acks, Flush};

const SECOND: Duration = Duration::from_secs(1);

struct World {
    disks: Vec<SimDisk>,
    clock: Clock,
    store: Store,
}

impl World {
    fn new(disks: u64, partitions: u32) -> Self {
        let clock = Clock::manual(Timestamp(1_000_000));
        let disks: Vec<_> = (0..disks).map(|seed| SimDisk::new(seed + 1)).collect();
        let store = open(&disks, &clock);
        let config = TopicConfig::new().partitions(partitions);
        store
            .create_topic("t", config.replication_factor(u16::try_from(disks.len()).unwrap()))
            .unwrap();
        for partition in 0..partitions {
            let log = store.partition("t", partition).unwrap();
            let records: Vec<_> = (0..100).map(|_| Record::new("x")).collect();
            log.append(&records, Acks::All).unwrap();
        }
        Self { disks, clock, store }
    }

    fn join(&self, group: &str) -> Member {
        self.join_as(group, None, Arc::new(Sticky { cooperative: true })).unwrap()
    }

    fn join_as(
        &self,
        group: &str,
        instance: Option<&str>,
        assignor: Arc<dyn Assignor>,
    ) -> Result<Member> {
        let woken = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&woken);
        let membership = self.store.join_group(JoinGroup {
            group: group.into(),
            instance: instance.map(Into::into),
            subscription: Subscription::Matching(Arc::new(|topic| topic.starts_with('t'))),
            assignor,
            poll_interval_max: 60 * SECOND,
            is_told: Arc::new(|| false),
            wake: Arc::new(move || {
                counted.fetch_add(1, Ordering::Relaxed);
            }),
        })?;
        Ok(Member { membership, woken })
    }

    fn at(&self, partition: u32) -> Option<u64> {
        let asked = [TopicPartition::new("t", partition)];
        let found = self.store.committed_offsets("g", &asked, Duration::ZERO).unwrap();
        found[0].as_ref().map(|held| held.offset.0)
    }

    fn reopen(self, power_loss: bool) -> Self {
        let Self { disks, clock, store } = self;
        for disk in &disks {
            if power_loss {
                disk.power_loss();
            } else {
                disk.process_restart();
            }
        }
        drop(store);
        let store = open(&disks, &clock);
        Self { disks, clock, store }
    }

    fn pass(&self, span: Duration) {
        self.clock.advance(span);
        self.store.run_background();
    }
}

fn open(disks: &[SimDisk], clock: &Clock) -> Store {
    let builder = Store::builder().clock(clock.clone());
    disks.iter().fold(builder, |all, disk| all.simulated_disk(disk.clone())).open().unwrap()
}

struct Member {
    membership: Membership,
    woken: Arc<AtomicU32>,
}

impl Member {
    /// What it is told: `+` given, `-` to be let go of, `!` lost.
    fn news(&self) -> String {
        let mut told = String::new();
        while let Some(change) = self.membership.poll().unwrap() {
            let (sign, partitions) = match &change {
                Change::Assigned(partitions) => ('+', partitions),
                Change::Revoke(partitions) => ('-', partitions),
                Change::Lost(partitions) => ('!', partitions),
            };
            told.push(sign);
            partitions.iter().for_each(|at| told.push_str(&at.partition().to_string()));
        }
        told
    }

    fn commit(&self, partition: u32, offset: u64) -> Result<()> {
        self.membership.commit(&[offset_of(partition, offset)], SECOND)
    }
}

fn group(name: &str) -> ConsumerGroupMetadata {
    ConsumerGroupMetadata::of_group(name)
}

fn offset_of(partition: u32, offset: u64) -> (TopicPartition, CommittedOffset) {
    (TopicPartition::new("t", partition), Offset(offset).into())
}

#[test]
fn grp_50_what_moves_is_let_go_of_before_it_is_given() {
    let world = World::new(1, 4);
    let first = world.join("g");
    assert_eq!(first.news(), "+0123");
    let second = world.join("g");
    assert_eq!((first.news().as_str(), second.news().as_str()), ("-23+", "+"));
    assert!(first.woken.load(Ordering::Relaxed) > 1, "a blocked poll would not see it");
    assert_eq!(second.commit(2, 1).unwrap_err().kafka_name(), "REBALANCE_IN_PROGRESS");
    first.commit(2, 50).unwrap();
    first.membership.confirm_revoked();
    assert_eq!(first.commit(2, 51).unwrap_err().kafka_name(), "NO_CURRENT_ASSIGNMENT");
    assert_eq!(second.news(), "+23");
    second.commit(2, 60).unwrap();
    assert_eq!(world.at(2), Some(60));
    drop(second);
    assert_eq!(first.news(), "+23", "GRP-43: dropping it leaves");
    let described = world.store.group("g").unwrap();
    assert_eq!(described.phase, GroupPhase::Stable);
    assert_eq!(described.members.len(), 1);
    assert_eq!(described.members[0].partitions.len(), 4);
    assert_eq!(described.offsets[0].lag, Some(40));
}

#[test]
fn grp_46_without_cooperation_everything_is_put_down_first() {
    let world = World::new(1, 2);
    let first = world.join_as("g", None, Arc::new(Range)).unwrap();
    assert_eq!(first.news(), "+01");
    let second = world.join_as("g", None, Arc::new(Range)).unwrap();
    assert_eq!((first.news().as_str(), second.news().as_str()), ("-01", ""));
    first.membership.confirm_revoked();
    assert_eq!((first.news().as_str(), second.news().as_str()), ("+0", "+1"));
    let other = world.join_as("g", None, Arc::new(Sticky { cooperative: true }));
    assert!(matches!(other, Err(Error::InvalidConfig { .. })));
}

#[test]
fn grp_44_who_stops_polling_loses_what_it_had_and_its_commits_count_no_more() {
    let world = World::new(1, 2);
    let (first, second) = (world.join("g"), world.join("g"));
    assert_eq!(first.news(), "+01-1+");
    first.membership.confirm_revoked();
    assert_eq!(second.news(), "++1");
    world.pass(59 * SECOND);
    assert_eq!(first.news(), "");
    world.pass(2 * SECOND);
    assert_eq!(first.news(), "+1", "it polled in time, the other did not");
    assert_eq!(second.commit(1, 1).unwrap_err().kafka_name(), "UNKNOWN_MEMBER_ID");
    assert_eq!(second.news(), "!1");
    let again = world.join("g");
    assert_eq!(again.news(), "+");
}

#[test]
fn grp_45_a_place_with_an_instance_id_is_taken_over() {
    let world = World::new(1, 2);
    let assignor = || Arc::new(Sticky { cooperative: true });
    let first = world.join_as("g", Some("one"), assignor()).unwrap();
    assert_eq!(first.news(), "+01");
    let second = world.join_as("g", Some("one"), assignor()).unwrap();
    assert_eq!(second.news(), "+01");
    assert!(matches!(first.membership.poll(), Err(Error::UnknownMember { .. })));
    assert_eq!(first.commit(0, 1).unwrap_err().class(), crate::error::ErrorClass::Fenced);
    drop((first, second));
    let third = world.join("g");
    assert_eq!(third.news(), "+1", "the place is kept, with its share");
    world.pass(30 * SECOND);
    assert_eq!(third.news(), "");
    world.pass(31 * SECOND);
    assert_eq!(third.news(), "+0", "for as long as a member may be silent");
}

#[test]
fn commits_are_checked_and_survive_every_end_of_the_process() {
    for power_loss in [false, true] {
        let world = World::new(1, 3);
        let member = world.join("g");
        assert_eq!(member.news(), "+012");
        member.commit(0, 7).unwrap();
        member.commit(0, 9).unwrap();
        member.commit(1, 100).unwrap();
        assert!(matches!(member.commit(1, 101), Err(Error::OffsetOutOfRange { .. })), "GRP-05");
        assert!(matches!(member.commit(3, 0), Err(Error::UnknownTopicOrPartition { .. })));
        let long = CommittedOffset { metadata: "x".repeat(4097), ..Offset(0).into() };
        let long = [(TopicPartition::new("t", 0), long)];
        assert!(matches!(
            member.membership.commit(&long, SECOND),
            Err(Error::InvalidConfig { .. })
        ));
        let simple = world.store.commit_without_members(&group("g"), &[offset_of(0, 1)], SECOND);
        assert_eq!(simple.unwrap_err().kafka_name(), "UNKNOWN_MEMBER_ID", "GRP-03");
        world.store.commit_without_members(&group("other"), &[offset_of(0, 1)], SECOND).unwrap();
        let bad = world.store.commit_without_members(&group(""), &[offset_of(0, 1)], SECOND);
        assert!(matches!(bad, Err(Error::InvalidConfig { .. })));
        let generation = member.membership.metadata().generation();
        let world = world.reopen(power_loss);
        assert_eq!([world.at(0), world.at(1), world.at(2)], [Some(9), Some(100), None]);
        assert_eq!(world.store.groups().unwrap(), ["g", "other"]);
        let again = world.join("g");
        assert_eq!(again.news(), "+012");
        assert!(again.membership.metadata().generation() > generation, "generations only rise");
        drop(member);
    }
}

#[test]
fn a_commit_that_is_not_waited_for_is_answered_in_order() {
    let world = World::new(1, 1);
    let member = world.join("g");
    member.news();
    let answered = Arc::new(Mutex::new(Vec::new()));
    for offset in 1..=5 {
        let answered = Arc::clone(&answered);
        let note = move |outcome: Result<()>| answered.lock().push((offset, outcome.is_ok()));
        let ticket = member.membership.begin_commit(&[offset_of(0, offset)]).unwrap().unwrap();
        ticket.on_complete(move |outcome| note(outcome.map(drop)));
    }
    world.store.run_background();
    assert_eq!(*answered.lock(), (1..=5).map(|at| (at, true)).collect::<Vec<_>>());
    assert_eq!(world.at(0), Some(5));
}

#[test]
fn grp_20_offsets_in_a_transaction_count_when_it_is_committed() {
    for commits in [true, false] {
        for reopened in [false, true] {
            let world = World::new(1, 1);
            let member = world.join("g");
            member.news();
            member.commit(0, 3).unwrap();
            let mut producer = world.store.producer().transactional_id("id").build().unwrap();
            let mut transaction = producer.begin().unwrap();
            let sent = [offset_of(0, 8)].into_iter().collect::<HashMap<_, _>>();
            let metadata = member.membership.metadata();
            transaction.append("t", 0, &[Record::new("made of it")]).unwrap();
            transaction.send_offsets(&sent, &metadata).unwrap();
            let asked = [TopicPartition::new("t", 0)];
            let pending = world.store.committed_offsets("g", &asked, Duration::ZERO);
            assert!(matches!(pending, Err(Error::TimedOut { .. })), "GRP-21");
            if commits {
                transaction.commit(SECOND).unwrap();
            } else {
                transaction.abort(SECOND).unwrap();
            }
            let expected = Some(if commits { 8 } else { 3 });
            assert_eq!(world.at(0), expected);
            let world = if reopened { world.reopen(true) } else { world };
            assert_eq!(world.at(0), expected);
            drop((member, producer));
        }
    }
}

#[test]
fn an_open_transaction_with_offsets_is_settled_at_the_next_open() {
    let world = World::new(1, 1);
    let member = world.join("g");
    member.news();
    member.commit(0, 3).unwrap();
    let mut producer = world.store.producer().transactional_id("id").build().unwrap();
    let mut transaction = producer.begin().unwrap();
    let sent = [offset_of(0, 8)].into_iter().collect::<HashMap<_, _>>();
    transaction.send_offsets(&sent, &member.membership.metadata()).unwrap();
    world.disks[0].process_restart();
    drop(transaction);
    drop((producer, member));
    let world = world.reopen(false);
    assert_eq!(world.at(0), Some(3));
}

#[test]
fn coord_47_who_has_lost_a_partition_sends_no_offsets_for_it() {
    let world = World::new(1, 2);
    let zombie = world.join("g");
    zombie.news();
    let known = zombie.membership.metadata();
    let second = world.join("g");
    zombie.news();
    zombie.membership.confirm_revoked();
    assert_eq!(second.news(), "++1");
    let mut producer = world.store.producer().transactional_id("id").build().unwrap();
    let mut transaction = producer.begin().unwrap();
    let sent = [offset_of(1, 8)].into_iter().collect::<HashMap<_, _>>();
    transaction.append("t", 1, &[Record::new("made of it")]).unwrap();
    let refused = transaction.send_offsets(&sent, &known).unwrap_err();
    assert_eq!(refused.class(), crate::error::ErrorClass::Fenced, "{refused}");
    let ended = transaction.commit(SECOND);
    assert!(matches!(ended, Err(Error::TransactionAborted { .. })), "{ended:?}");
    assert_eq!(world.at(1), None);
}

#[test]
fn the_log_of_offsets_is_written_again_and_reads_the_same_with_transactions_across() {
    let world = World::new(1, 4);
    let member = world.join("g");
    member.news();
    let mut producer = world.store.producer().transactional_id("id").build().unwrap();
    let mut transaction = producer.begin().unwrap();
    let sent = [offset_of(3, 77)].into_iter().collect::<HashMap<_, _>>();
    member.commit(3, 1).unwrap();
    transaction.send_offsets(&sent, &member.membership.metadata()).unwrap();
    let internal = world.store.partition(GROUP_TOPIC, 0).unwrap();
    let write_again = || {
        let (start, end) = (internal.log_start_offset(), internal.log_end_offset());
        let metadata = "x".repeat(4000);
        for at in 0..2000_u64 {
            let held = CommittedOffset { metadata: metadata.clone(), ..Offset(at % 100).into() };
            let commit = [(TopicPartition::new("t", u32::try_from(at % 3).unwrap()), held)];
            member.membership.commit(&commit, SECOND).unwrap();
        }
        world.store.run_background();
        assert!(internal.log_end_offset() > end);
        internal.log_start_offset() > start
    };
    write_again();
    assert!(internal.log_start_offset() <= Offset(2), "what is pending stays");
    transaction.commit(SECOND).unwrap();
    assert!(write_again(), "what is decided goes");
    let all = |world: &World| [world.at(0), world.at(1), world.at(2), world.at(3)];
    let before = all(&world);
    assert_eq!(before[3], Some(77), "it was written before the table, and decided after");
    drop((producer, internal));
    let world = world.reopen(true);
    assert_eq!(all(&world), before);
    drop(member);
}

#[test]
fn under_another_leader_the_table_is_what_its_log_says() {
    let world = World::new(3, 1);
    let member = world.join("g");
    member.news();
    for round in 0..9 {
        member.commit(0, round).unwrap();
        let leader = world.store.partition(GROUP_TOPIC, 0).unwrap().leader().unwrap();
        world.store.stop_disk(leader).unwrap();
        member.commit(0, 50 + round).unwrap();
        assert_eq!(world.at(0), Some(50 + round));
        world.store.start_disk(leader).unwrap();
        (0..6).for_each(|_| world.pass(SECOND));
    }
    let world = world.reopen(true);
    assert_eq!(world.at(0), Some(58));
    drop(member);
}

#[test]
fn an_acknowledged_commit_survives_a_crash_at_any_call() {
    let play = |world: &World, crash: Option<u64>| {
        if let Some(at) = crash {
            world.disks[0].crash_at(at);
        }
        let join = JoinGroup {
            group: "g".into(),
            instance: None,
            subscription: Subscription::Names(["t".into()].into()),
            assignor: Arc::new(Range),
            poll_interval_max: SECOND,
            wake: Arc::new(|| ()),
            is_told: Arc::new(|| false),
        };
        let mut acknowledged = 0;
        let Ok(membership) = world.store.join_group(join) else { return acknowledged };
        while let Ok(Some(_)) = membership.poll() {}
        for offset in 1..=6 {
            if membership.commit(&[offset_of(0, offset)], SECOND).is_ok() {
                acknowledged = offset;
            }
        }
        acknowledged
    };
    let world = World::new(1, 1);
    let before = world.disks[0].calls();
    assert_eq!(play(&world, None), 6);
    let after = world.disks[0].calls();
    for at in 1..=after - before {
        for power_loss in [false, true] {
            let world = World::new(1, 1);
            let acknowledged = play(&world, Some(at));
            let world = world.reopen(power_loss);
            let found = world.at(0).unwrap_or_default();
            assert!(found >= acknowledged, "call {at}: {found}, acknowledged {acknowledged}");
            assert_eq!(play(&world, None), 6, "call {at}");
            assert_eq!(world.at(0), Some(6));
        }
    }
}

#[test]
fn topics_that_come_grow_and_go_are_assigned_and_forgotten() {
    let world = World::new(1, 1);
    let member = world.join("g");
    assert_eq!(member.news(), "+0");
    member.commit(0, 5).unwrap();
    world.store.add_partitions("t", 3).unwrap();
    assert_eq!(member.news(), "+12");
    world.store.create_topic("t2", TopicConfig::new()).unwrap();
    assert_eq!(member.news(), "+0");
    world.store.create_topic("other", TopicConfig::new()).unwrap();
    assert_eq!(member.news(), "", "it is not what the member asked for");
    world.store.delete_topic("t").unwrap();
    assert_eq!(member.news(), "-012+");
    member.membership.confirm_revoked();
    world.store.create_topic("t", TopicConfig::new()).unwrap();
    assert_eq!(member.news(), "+0");
    assert_eq!(world.at(0), None, "GRP-10, CONS-13");
    assert!(world.store.group("g").unwrap().offsets.is_empty());
}

#[test]
fn grp_09_offsets_are_kept_until_they_are_to_expire() {
    let world = World::new(1, 1);
    world.store.commit_without_members(&group("g"), &[offset_of(0, 5)], SECOND).unwrap();
    world.pass(1_000_000 * SECOND);
    assert_eq!(world.at(0), Some(5), "nobody asked otherwise");
    world.store.commit_without_members(&group("g"), &[offset_of(0, 5)], SECOND).unwrap();
    let shared = world.store.shared();
    let groups = shared.groups().unwrap();
    world.clock.advance(60 * SECOND);
    groups.expire(shared, 61 * SECOND);
    assert_eq!(world.at(0), Some(5));
    let member = world.join("g");
    groups.expire(shared, 60 * SECOND);
    assert_eq!(world.at(0), Some(5), "a member is subscribed");
    drop(member);
    groups.expire(shared, 60 * SECOND);
    assert_eq!(world.at(0), Some(5), "the group is empty since a moment ago");
    world.clock.advance(60 * SECOND);
    groups.expire(shared, 60 * SECOND);
    assert_eq!(world.at(0), None);
}

#[test]
fn groups_are_described_reset_and_deleted() {
    let world = World::new(1, 2);
    let store = &world.store;
    assert!(matches!(store.group("g"), Err(Error::UnknownGroup { .. })));
    assert!(matches!(store.delete_group("g"), Err(Error::UnknownGroup { .. })));
    let member = world.join("g");
    member.news();
    member.commit(0, 40).unwrap();
    assert!(matches!(store.delete_group("g"), Err(Error::GroupNotEmpty { .. })), "GRP-08");
    let reset = store.reset_offsets("g", "t", ResetTo::Earliest);
    assert!(matches!(reset, Err(Error::GroupNotEmpty { .. })));
    drop(member);
    assert_eq!(store.group("g").unwrap().phase, GroupPhase::Empty);
    let by = |to| {
        let reset = store.reset_offsets("g", "t", to);
        reset.map(|all| all.into_iter().map(|(_, offset)| offset.0).collect::<Vec<_>>())
    };
    assert!(matches!(by(ResetTo::Shift(-10)), Err(Error::NoOffset { .. })), "one has none");
    assert_eq!(by(ResetTo::Latest).unwrap(), [100, 100]);
    assert_eq!(by(ResetTo::Shift(-30)).unwrap(), [70, 70]);
    assert_eq!(by(ResetTo::Shift(i64::MIN)).unwrap(), [0, 0]);
    assert_eq!(by(ResetTo::To(Offset(1000))).unwrap(), [100, 100]);
    assert_eq!(by(ResetTo::Earliest).unwrap(), [0, 0]);
    assert_eq!(by(ResetTo::Time(Timestamp(0))).unwrap(), [0, 0]);
    assert_eq!(by(ResetTo::Time(Timestamp(1 << 40))).unwrap(), [100, 100]);
    assert_eq!(world.at(1), Some(100));
    store.delete_group("g").unwrap();
    assert_eq!(world.at(0), None);
    assert_eq!(store.groups().unwrap(), [] as [&str; 0]);
    let world = world.reopen(true);
    assert_eq!(world.store.groups().unwrap(), [] as [&str; 0]);
    assert_eq!(world.join("g").news(), "+01");
}

/// Answers as it is told to.
struct Odd(fn(&Situation) -> Vec<(PartitionId, MemberId)>);

impl Assignor for Odd {
    fn name(&self) -> &str {
        "odd"
    }

    fn assign(&self, situation: &Situation) -> Vec<(PartitionId, MemberId)> {
        (self.0)(situation)
    }
}

#[test]
fn an_assignor_that_panics_or_errs_is_stood_in_for_and_the_store_says_so() {
    let world = World::new(1, 2);
    let mut events = world.store.events();
    while events.wait(Duration::ZERO).is_some() {}
    for odd in [Odd(|_| panic!("an assignor's own")), Odd(|_| Vec::new())] {
        let member = world.join_as("g", None, Arc::new(odd)).unwrap();
        assert_eq!(member.news(), "+01");
        let told = std::iter::from_fn(|| events.wait(Duration::ZERO));
        assert!(told.into_iter().any(|event| format!("{event:?}").contains("assignor of group g")));
    }
}

#[test]
fn os_flushed_offsets_count_at_once_and_are_there_after_a_clean_close() {
    let clock = Clock::manual(Timestamp(0));
    let disk = SimDisk::new(1);
    let builder = || Store::builder().clock(clock.clone()).simulated_disk(disk.clone());
    let store = builder().flush(Flush::Os).open().unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    store.commit_without_members(&group("g"), &[offset_of(0, 0)], SECOND).unwrap();
    store.close(SECOND).unwrap();
    assert!(matches!(store.groups(), Err(Error::Closed)));
    let store = builder().open().unwrap();
    assert_eq!(store.group("g").unwrap().offsets[0].committed, Offset(0).into());
}

/// Such as a version had made that gave them the settings for topics: they stayed too narrow for what their tables write.
#[test]
fn an_internal_topic_that_was_made_for_small_batches_takes_what_its_table_writes() {
    let world = World::new(1, 1);
    for name in [GROUP_TOPIC, "__transaction_state"] {
        let config = TopicConfig::new().max_batch_bytes(2000);
        world.store.shared().create_topic(name, config).unwrap();
    }
    for round in 0..3 {
        let committed = CommittedOffset { metadata: "x".repeat(4096), ..Offset(round).into() };
        let offset = (TopicPartition::new("t", 0), committed);
        world.store.commit_without_members(&group("g"), &[offset], SECOND).unwrap();
        assert_eq!(world.at(0), Some(round));
        world.store.producer().transactional_id(&"id".repeat(2000)).build().unwrap();
    }
    assert_eq!(world.reopen(true).at(0), Some(2));
}

/// It was found before the topic went, and appended after what was committed for it had been taken back: until the next
/// opening, the group had an offset of nothing.
#[test]
fn grp_10_a_commit_that_the_deletion_of_its_topic_overtakes_leaves_nothing() {
    let store = Store::in_memory(1).unwrap();
    let shared = store.shared();
    let groups = shared.groups().unwrap();
    shared.transactions().unwrap();
    let metadata = "x".repeat(4096);
    let offset = |partition| {
        let committed = CommittedOffset { metadata: metadata.clone(), ..Offset(0).into() };
        (TopicPartition::new("t", partition), committed)
    };
    let offsets: Vec<_> = (0..300).map(offset).collect();
    let mut committed = false;
    while !committed {
        store.create_topic("t", TopicConfig::new().partitions(300)).unwrap();
        let slots = shared.topic("t").unwrap().slots.read().clone();
        committed = std::thread::scope(|scope| {
            // More than a batch takes needs an id, when it has been checked.
            let ids = shared.producer_ids.lock();
            let commits =
                scope.spawn(|| store.commit_without_members(&group("g"), &offsets, 10 * SECOND));
            while slots[299].core.lock().is_none() {
                std::thread::yield_now();
            }
            store.delete_topic("t").unwrap();
            drop(ids);
            commits.join().unwrap().is_ok()
        });
    }
    assert_eq!(groups.offsets.look(shared, |table| table.topics().len()).unwrap(), 0);
}
