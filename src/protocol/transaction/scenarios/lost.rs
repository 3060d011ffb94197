//! Markers that are lost or asked for in vain, and what has to be known until they are there.

use super::super::records::PREVIOUS_MAX;
use super::*;

/// It went on until nobody knew any more that the transaction was committed: the next opening aborted it.
#[test]
fn an_id_is_busy_while_a_marker_that_was_lost_lies_too_far_back() {
    let mut world = World::new();
    let first = world.opened();
    world.join(first, PLUM).unwrap();
    assert_eq!(world.end(first, Committed), []);
    let _ = world.persisted();
    let _ = world.step(Event::MarkerAppended { tag: first, partition: PLUM });
    assert_eq!(world.step(Event::MarkerFailed { tag: first, partition: PLUM }), []);
    let mut next = tag(1, 1);
    for _ in 0..LAG_MAX {
        next = world.run(next, Committed).unwrap();
    }
    world.join(next, PEAR).unwrap();
    assert_eq!(refusal(&world.end(next, Committed)), Refusal::Busy);
    assert_eq!(refusal(&world.open_with(|_| {})), Refusal::Busy);
    assert_eq!(world.marked(first, PLUM), []);
    assert_eq!(world.end(next, Committed), []);
    assert_eq!(world.persisted(), [markers(next, Committed, &[PEAR])]);
}

#[test]
fn an_aborted_one_whose_marker_is_asked_for_in_vain_keeps_no_id_busy() {
    let mut world = World::new();
    let first = world.opened();
    let mut next = world.run(first, Aborted).unwrap();
    let found = Event::Found { tag: first, partition: PLUM };
    assert_eq!(world.step(found), [markers(first, Aborted, &[PLUM])]);
    for _ in 0..100 {
        next = world.run(next, Committed).unwrap();
    }
}

#[test]
fn an_id_whose_marker_is_asked_for_in_vain_is_not_forgotten() {
    let mut world = World::new();
    let first = world.opened();
    let next = world.run(first, Committed).unwrap();
    assert_eq!(world.step(Event::Close { tag: next }), []);
    let marker = [markers(first, Committed, &[PLUM])];
    assert_eq!(world.step(Event::Found { tag: first, partition: PLUM }), marker);
    for _ in 0..3 {
        assert_eq!(world.step(Event::MarkerFailed { tag: first, partition: PLUM }), []);
        assert_eq!((&world.pass(30 * DAY)[..], world.on_its_way.len()), (&marker[..], 0));
    }
    assert_eq!(world.marked(first, PLUM), []);
    assert_eq!((world.pass(30 * DAY), world.on_its_way.len()), (vec![], 1), "it expires");
}

/// One that is appended may be lost again, and what the partition reports then would be taken for aborted.
#[test]
fn a_marker_of_which_nobody_would_know_any_more_is_asked_for_until_it_is_safe() {
    let mut world = World::new();
    let first = world.opened();
    let mut next = first;
    for _ in 0..u64::BITS {
        next = world.run(next, Committed).unwrap();
    }
    world.join(next, PEAR).unwrap();
    assert_eq!(world.end(next, Committed), []);
    let marker = [markers(first, Committed, &[PLUM])];
    assert_eq!(world.step(Event::Found { tag: first, partition: PLUM }), marker);
    assert_eq!(world.persisted(), [markers(next, Committed, &[PEAR])]);
    let Answer::Ended { next: Some(next), .. } = answer(&world.marked(next, PEAR)) else {
        panic!("it has not ended")
    };
    assert_eq!(world.verdict(first), Verdict::Forgotten);
    for _ in 0..2 {
        assert_eq!(world.step(Event::MarkerAppended { tag: first, partition: PLUM }), []);
        assert_eq!(world.join(next, PLUM), Err(Refusal::Busy));
        assert_eq!(world.step(Event::MarkerFailed { tag: first, partition: PLUM }), []);
        assert_eq!(world.pass(MINUTE), marker);
    }
    assert_eq!(world.marked(first, PLUM), []);
    assert_eq!(world.join(next, PLUM), Ok(()));
}

#[test]
fn an_id_of_more_producers_than_a_record_has_room_for_is_busy_until_all_partitions_are_seen() {
    let mut world = World::new();
    world.settings.some_unseen = true;
    let opens = (0..2 * PREVIOUS_MAX).find(|_| {
        world.settled();
        let effects = world.open_with(|_| {});
        if world.on_its_way.is_empty() {
            assert_eq!(refusal(&effects), Refusal::Busy);
            return true;
        }
        let Answer::Opened { tag } = answer(&world.persisted()) else { panic!("not opened") };
        let _ = world.run(tag, Committed);
        let record = world.topic.last().unwrap();
        let (key, value) = (record.key(), record.value());
        assert_eq!(TransactionRecord::decode(&key, value.as_deref()).as_ref(), Ok(record));
        false
    });
    assert_eq!(opens, Some(PREVIOUS_MAX + 1));
    world.coordinator.set_some_unseen(false);
    let _ = world.opened();
}

/// Only the producer before was kept: who asked after two openings without a disk was told that there was no such transaction.
#[test]
fn an_id_remembers_its_last_transactions_under_whatever_producers_they_were() {
    let mut world = World::new();
    world.settings.some_unseen = true;
    let mut ended = Vec::new();
    for outcome in [Committed, Aborted, Committed, Committed] {
        let tag = world.opened();
        let _ = world.run(tag, outcome);
        ended.push((tag, Verdict::from(outcome)));
        world.settled();
    }
    world.coordinator.set_some_unseen(false);
    world.settings.some_unseen = false;
    let mut next = world.opened();
    for (tag, verdict) in &ended {
        assert_eq!(world.verdict(*tag), *verdict, "{tag:?}");
    }
    for _ in 0..u64::BITS {
        next = world.run(next, Committed).unwrap();
    }
    let _ = world.opened();
    assert_eq!(world.verdict(ended[0].0), Verdict::Unknown, "that is long ago");
}
