//! What becomes of batches behind one that has failed, or has to be offered again.

use super::*;

/// The leader that took it went before it said so, and the one before it had to be offered again. The next leader lacked an
/// older one as well: each waited for the other until their time was over, and then the lane panicked.
#[test]
fn cli_12_a_batch_that_is_offered_while_its_leader_goes_is_numbered_anew_with_those_before_it() {
    let mut world = World::plain();
    world.fates(vec![Fate::Acknowledged, Fate::Acknowledged, Fate::Waits, Fate::Overtaken]);
    (0..3).for_each(|_| world.send());
    // What it had acknowledged, the leader has not handed on (`Acks::Leader`).
    world.log.lock().acknowledged = 1;
    // The sender of a full batch offers it, whoever waits.
    while world.log.lock().offers < 4 {
        world.send();
    }
    // Until the time of all of them is over.
    (0..4).for_each(|_| world.run());
    let sent = world.sent;
    assert_eq!(world.records(), [0].into_iter().chain(2..sent).collect::<Vec<_>>());
    assert_eq!(world.outcomes().1, [] as [u64; 0]);
}

/// It was told where the older one is.
#[test]
fn a_batch_that_fails_with_an_older_one_is_told_where_it_is_itself() {
    let world = two_under_way(Identity::Plain(ID), Fate::Waits);
    let mut log = world.log.lock();
    log.failing = Some(not_enough_after(Offset(1)..Offset(2)));
    log.fates = vec![Fate::NoLeader; 99];
    drop(log);
    for _ in 0..12 {
        Arc::clone(&world.lane).run();
        world.clock.advance(SECOND);
    }
    for (receipt, at) in [(0, 1), (1, 2)] {
        let told = world.receipts[receipt].1.outcome().unwrap().unwrap_err();
        let Error::TimedOut { appended: Some(offsets), written: Written::Yes, .. } = told else {
            panic!("{told:?}")
        };
        assert_eq!(offsets, Offset(at)..Offset(at + 1));
    }
}

/// Its source has to go back to it: what it sends next is not the next one if the log loses it.
#[test]
fn behind_a_record_of_a_name_that_came_too_late_nothing_is_written_before_the_log_was_asked() {
    let mut world = two_under_way(Identity::Named(ID, ProducerEpoch(1)), Fate::Waits);
    world.clock.advance(SECOND * 5);
    Arc::clone(&world.lane).run();
    let late = world.receipts[0].1.outcome().unwrap().unwrap_err();
    assert!(matches!(late, Error::TimedOut { written: Written::Yes, .. }), "{late:?}");
    let refused = world.send_value("5").unwrap_err();
    assert!(matches!(refused, Error::OutOfOrderSequence { expected: 1, .. }), "{refused:?}");
    world.log.lock().acknowledge();
    Arc::clone(&world.lane).run();
    assert_eq!(world.lane.next_sequence().unwrap(), 3);
}
