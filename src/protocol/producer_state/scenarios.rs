//! What happens to producers and transactions, one behaviour a test.

use std::time::Duration;

use crate::error::{DecodeError, Error, ErrorClass, Written};
use crate::record::BatchHeader;
use crate::types::{
    Compression, LeaderEpoch, Offset, Outcome, ProducerEpoch, ProducerId, Timestamp, TopicPartition,
};

use super::batch::{BatchFacts, Content, Numbering, Proposal};
use super::model::{Log, SEED, plain, sequence, transactional};
use super::snapshot::snapshot_bytes_max;
use super::states::{PRODUCERS_MAX, ProducerStates};
use super::transactions::AbortedRange;
use super::verdict::{Refusal, TransactionFault, Verdict};
use crate::record::{MARKER_ABORT, MARKER_COMMIT};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn expire(log: &mut Log, now: Timestamp) -> Vec<u64> {
    log.states.expire(now, DAY, |_| false).into_iter().map(|id| id.0).collect()
}

fn refused(log: &Log, proposal: &Proposal) -> Refusal {
    match log.check(proposal) {
        Verdict::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

#[test]
fn prod_03_a_duplicate_gets_the_offsets_and_the_time_of_the_first_append() {
    let mut log = Log::new();
    let _ = log.other(7);
    let _ = log.plain(1, 0, 0, 3);
    let first_append = log.now;
    let _ = log.other(2);
    let _ = log.plain(1, 0, 3, 4);
    let offsets = Offset(7)..Offset(10);
    let expected = Verdict::Duplicate { offsets, timestamp: first_append };
    assert_eq!(log.check(&plain(sequence(1, 0, 0), 3)), expected);
}

#[test]
fn prod_08_at_the_end_of_all_sequences_nothing_wraps() {
    let mut log = Log::new();
    let _ = log.plain(1, 0, u64::MAX - 10, 5);
    let last = plain(sequence(1, 0, u64::MAX - 5), 5);
    assert_eq!(log.check(&last), Verdict::Append);
    let beyond = plain(sequence(1, 0, u64::MAX - 5), 6);
    assert!(matches!(refused(&log, &beyond), Refusal::OutOfOrderSequence { .. }));
    let again = plain(sequence(1, 0, 0), 1);
    assert!(matches!(refused(&log, &again), Refusal::OutOfOrderSequence { .. }));
}

#[test]
fn prod_13_a_producer_that_is_not_known_may_begin_anywhere_unless_it_asked_to_be_told() {
    let log = Log::new();
    let anywhere = plain(sequence(1, 4, 900), 1);
    assert_eq!(log.check(&anywhere), Verdict::Append);
    let strict = Proposal { strict: true, ..anywhere };
    assert_eq!(refused(&log, &strict), Refusal::UnknownProducer);
}

#[test]
fn prod_15_a_follower_takes_what_the_leader_wrote() {
    let mut log = Log::new();
    let _ = log.plain(1, 5, 0, 10);
    let _ = log.plain(1, 5, 50, 10);
    assert_eq!(log.states.producer(ProducerId(1)).unwrap().next_sequence, 60);
    let before_the_gap = plain(sequence(1, 5, 0), 10);
    assert!(matches!(log.check(&before_the_gap), Verdict::Duplicate { .. }));
    let in_the_gap = plain(sequence(1, 5, 20), 10);
    assert!(matches!(refused(&log, &in_the_gap), Refusal::OutOfOrderSequence { .. }));
    // The leader had forgotten it: it starts again, and what it numbered before is another numbering.
    let _ = log.plain(1, 5, 0, 4);
    assert!(matches!(refused(&log, &before_the_gap), Refusal::OutOfOrderSequence { .. }));
    assert_eq!(log.check(&plain(sequence(1, 5, 4), 1)), Verdict::Append);
    let _ = log.plain(1, 3, 7, 1);
    assert_eq!(log.states.producer(ProducerId(1)).unwrap().epoch, ProducerEpoch(3));
}

#[test]
fn prod_18_a_check_changes_nothing() {
    let mut log = Log::new();
    let _ = log.transactional(1, 0, 0, 3);
    let _ = log.plain(2, 0, 0, 3);
    let before = log.states.snapshot(SEED);
    for id in 1..4 {
        for first in 0..5 {
            for epoch in 0..3 {
                let _ = log.check(&plain(sequence(id, epoch, first), 3));
                let _ = log.check(&transactional(sequence(id, epoch, first), 3));
            }
        }
    }
    assert_eq!(log.states.snapshot(SEED), before);
}

#[test]
fn prod_19_a_producer_is_forgotten_when_its_last_append_is_old() {
    let mut log = Log::new();
    let _ = log.plain(1, 5, 0, 10);
    let _ = log.plain(2, 5, 0, 10);
    let first = Timestamp(log.now.0 - 1);
    let of_age = first.plus(DAY);
    assert!(expire(&mut log, Timestamp(of_age.0 - 1)).is_empty());
    assert_eq!(expire(&mut log, of_age), [1]);
    assert_eq!(log.check(&plain(sequence(1, 0, 77), 1)), Verdict::Append);
    assert!(matches!(log.check(&plain(sequence(2, 5, 0), 10)), Verdict::Duplicate { .. }));
    assert_eq!(log.states.len(), 1);
}

#[test]
fn a_clock_that_went_back_expires_nobody() {
    let mut log = Log::new();
    let _ = log.plain(1, 5, 0, 10);
    assert!(log.states.expire(Timestamp(0), Duration::ZERO, |_| false).is_empty());
}

#[test]
fn prod_20_with_a_transaction_open_a_producer_is_never_forgotten() {
    let mut log = Log::new();
    let _ = log.transactional(1, 5, 0, 10);
    assert!(expire(&mut log, Timestamp::MAX).is_empty());
    let late = log.now.plus(DAY * 5);
    log.now = late;
    let _ = log.marker(1, 5, Outcome::Committed);
    assert!(
        expire(&mut log, late.plus(DAY / 2)).is_empty(),
        "the marker counts as its last append"
    );
    assert_eq!(expire(&mut log, late.plus(DAY * 2)), [1]);
}

#[test]
fn a_named_producer_is_kept_for_as_long_as_its_name() {
    let mut log = Log::new();
    let _ = log.plain(1, 5, 0, 10);
    let _ = log.plain(2, 5, 0, 10);
    let expired = log.states.expire(Timestamp::MAX, DAY, |id| id == ProducerId(1));
    assert_eq!(expired, [ProducerId(2)]);
    assert_eq!(log.states.producer(ProducerId(1)).unwrap().next_sequence, 10);
}

#[test]
fn a_named_producer_counts_on_under_its_new_epoch_and_the_old_holder_is_fenced() {
    let mut log = Log::new();
    let _ = log.plain(1, 5, 0, 10);
    let next = sequence(1, 6, 10);
    let proposal = Proposal { numbering: Numbering::Continues, ..plain(next, 5) };
    assert_eq!(log.check(&proposal), Verdict::Append);
    let _ = log.append(Content::Plain, next, 5);
    let replayed = Proposal { producer: sequence(1, 6, 0), count: 10, ..proposal };
    assert!(matches!(log.check(&replayed), Verdict::Duplicate { .. }), "from before the restart");
    let current = ProducerEpoch(6);
    let old = plain(sequence(1, 5, 15), 1);
    assert_eq!(refused(&log, &old), Refusal::ProducerFenced { current });
}

/// KAFKA-9144: the entry that a fencing marker left was taken for an old one, and the zombie wrote on.
#[test]
fn prod_22_a_fencing_marker_keeps_the_zombie_out_until_its_own_age_is_reached() {
    let mut log = Log::new();
    let _ = log.transactional(1, 5, 0, 10);
    log.now = log.now.plus(DAY * 3);
    let _ = log.marker(1, 6, Outcome::Aborted);
    let soon = log.now.plus(DAY / 2);
    assert!(expire(&mut log, soon).is_empty());
    let current = ProducerEpoch(6);
    let zombie = transactional(sequence(1, 5, 10), 1);
    assert_eq!(refused(&log, &zombie), Refusal::ProducerFenced { current });
}

#[test]
fn prod_31_after_a_restart_the_five_last_batches_are_still_recognised() {
    let mut log = Log::new();
    for batch in 0..7 {
        let _ = log.plain(1, 0, batch * 10, 10);
    }
    let restored = log.restored(&log.states.snapshot(SEED));
    for batch in 0..7 {
        let again = plain(sequence(1, 0, batch * 10), 10);
        assert_eq!(restored.check(&again), log.check(&again));
        assert_eq!(matches!(restored.check(&again), Verdict::Duplicate { .. }), batch >= 2);
    }
}

fn busy_log() -> Log {
    let mut log = Log::new();
    for batch in 0..7 {
        let _ = log.plain(1, 2, batch * 3, 3);
    }
    let _ = log.transactional(2, 1, 0, 2);
    let _ = log.transactional(3, 9, 0, 2);
    let _ = log.marker(3, 9, Outcome::Aborted);
    let _ = log.transactional(4, 0, 0, 1);
    let _ = log.marker(4, 1, Outcome::Committed);
    let _ = log.transactional(5, 0, 0, 1);
    let _ = log.other(4);
    log
}

#[test]
fn prod_33_a_snapshot_with_any_byte_flipped_or_cut_at_any_length_is_refused() {
    let bytes = busy_log().states.snapshot(SEED);
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            assert!(ProducerStates::restore(&flipped, SEED, 10).is_err(), "byte {at}");
        }
        assert!(ProducerStates::restore(&bytes[..at], SEED, 10).is_err(), "length {at}");
    }
    let elsewhere = ProducerStates::restore(&bytes, SEED + 1, 10).unwrap_err();
    assert_eq!(elsewhere, DecodeError::Misplaced("producer snapshot"));
}

/// A forged snapshot with the right checksum: refused, or a state that writes the same bytes and can be used.
#[test]
fn prod_33_whatever_a_snapshot_says_it_is_refused_or_understood() {
    let bytes = busy_log().states.snapshot(SEED);
    let content = bytes.len() - 4;
    let mut understood = 0;
    for at in 0..content {
        for value in [0, 1, 2, 3, 5, 6, 0x7f, 0x80, 0xff, bytes[at].wrapping_add(1)] {
            let mut forged = bytes.clone();
            forged[at] = value;
            let crc = crc32fast::hash(&forged[..content]);
            forged[content..].copy_from_slice(&crc.to_le_bytes());
            let Ok(mut states) = ProducerStates::restore(&forged, SEED, 4) else { continue };
            understood += 1;
            assert_eq!(states.snapshot(SEED), forged, "byte {at}");
            for id in 1..8 {
                for (content, epoch) in [
                    (Content::Transactional, 1),
                    (Content::Plain, 9),
                    (Content::Marker(Outcome::Aborted), u32::MAX),
                ] {
                    if states.end() > Offset(1 << 60) {
                        continue;
                    }
                    let _ = states.check(&plain(sequence(id, epoch, 3), 2));
                    let batch = BatchFacts {
                        producer: sequence(id, epoch, 3),
                        content,
                        base_offset: states.end(),
                        last_offset_delta: 1,
                        leader_epoch: LeaderEpoch(1),
                    };
                    let _ = states.on_appended(&batch, Timestamp(5));
                    assert!(states.last_stable(states.end()) <= states.end());
                }
            }
        }
    }
    assert!(understood > 300, "only {understood} got through to be tried");
}

#[test]
fn a_snapshot_is_no_longer_than_stated_and_names_its_part_of_the_log() {
    let log = busy_log();
    let bytes = log.states.snapshot(SEED);
    assert!(bytes.len() <= snapshot_bytes_max(5, 2));
    let restored = log.restored(&bytes);
    assert_eq!(restored.end(), log.end());
    assert_eq!(restored.leader_epoch(), LeaderEpoch(3));
}

/// The bytes of version 1, field by field.
#[test]
fn the_snapshot_of_one_producer_is_what_the_table_says() {
    let mut log = Log::new();
    let _ = log.transactional(7, 2, 0, 3);
    let mut expected = b"oncprod\0".to_vec();
    expected.extend([1, 0, 0, 0, 4, 3, 2, 1]);
    expected.extend([3, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    expected.extend([3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    expected.extend([7, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 1]);
    expected.extend([0; 8]);
    expected.extend([3, 0, 0, 0, 0, 0, 0, 0]);
    expected.extend([0xe9, 3, 0, 0, 0, 0, 0, 0]);
    expected.extend([0; 8]);
    expected.extend([0; 16]);
    expected.extend([0xe9, 3, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0]);
    expected.extend(crc32fast::hash(&expected).to_le_bytes());
    assert_eq!(log.states.snapshot(SEED), expected);
}

#[test]
fn prod_36_a_transaction_that_was_open_is_open_after_a_restart() {
    let mut log = Log::new();
    let _ = log.other(5);
    let _ = log.transactional(1, 5, 0, 10);
    log.states = log.restored(&log.states.snapshot(SEED));
    let open: Vec<_> = log.states.open_transactions().collect();
    assert_eq!(open.len(), 1);
    assert_eq!((open[0].producer, open[0].first), (ProducerId(1), Offset(5)));
    assert_eq!(open[0].appended_at, log.now, "TXLOG-22");
    assert_eq!(log.states.last_stable(log.end()), Offset(5));
    let ended = log.marker(1, 5, Outcome::Aborted).ended.unwrap();
    let range = AbortedRange { producer: ProducerId(1), first: Offset(5), last: Offset(15) };
    assert_eq!(
        (ended.producer, ended.first, ended.last),
        (range.producer, range.first, range.last)
    );
    assert_eq!(ended.outcome, Outcome::Aborted);
}

#[test]
fn prod_35_what_was_of_age_while_the_store_was_closed_goes_and_open_transactions_stay() {
    let mut log = Log::new();
    let _ = log.plain(1, 5, 0, 10);
    let _ = log.transactional(2, 5, 0, 10);
    log.states = log.restored(&log.states.snapshot(SEED));
    let later = log.now.plus(DAY * 9);
    assert_eq!(expire(&mut log, later), [1]);
    assert_eq!(log.states.open_transactions().count(), 1);
}

#[test]
fn prod_41_records_that_compaction_took_still_count_as_sequences() {
    let header = header(false, false, 40);
    let mut states = ProducerStates::new(Offset::ZERO, 10);
    let _ = states.on_appended(&BatchFacts::from(&header), Timestamp(1));
    let whole = plain(sequence(8, 6, 40), 10);
    let offsets = Offset(100)..Offset(110);
    assert_eq!(states.check(&whole), Verdict::Duplicate { offsets, timestamp: Timestamp(1) });
    assert_eq!(states.producer(ProducerId(8)).unwrap().next_sequence, 50);
}

/// Ten offsets from 100, of which two records are left.
fn header(control: bool, transactional: bool, base_sequence: u64) -> BatchHeader {
    BatchHeader {
        length: 96,
        padding: 0,
        compression: Compression::None,
        append_time: false,
        transactional,
        control,
        leader_epoch: LeaderEpoch(2),
        base_offset: Offset(100),
        last_offset_delta: 9,
        record_count: 2,
        producer_id: ProducerId(8),
        producer_epoch: ProducerEpoch(6),
        records_crc: 0,
        base_sequence,
        base_timestamp: Timestamp(0),
        max_timestamp: Timestamp(0),
        durable_end: Offset(0),
    }
}

#[test]
fn a_header_alone_says_what_a_batch_is_to_its_producer() {
    for (control, transactional, base_sequence, content) in [
        (false, false, 0, Content::Plain),
        (false, true, 1, Content::Transactional),
        (true, true, MARKER_ABORT, Content::Marker(Outcome::Aborted)),
        (true, true, MARKER_COMMIT, Content::Marker(Outcome::Committed)),
        (true, true, 2, Content::OtherControl),
        (true, false, 0, Content::OtherControl),
    ] {
        let header = header(control, transactional, base_sequence);
        let facts = BatchFacts::from(&header);
        assert_eq!(facts.content, content);
        assert_eq!(facts.producer, sequence(8, 6, base_sequence));
        assert_eq!(facts.end_offset(), header.end_offset());
        assert_eq!(facts.leader_epoch, LeaderEpoch(2));
    }
}

#[test]
fn prod_42_a_control_batch_that_is_no_marker_ends_nothing() {
    let mut log = Log::new();
    let _ = log.transactional(1, 5, 0, 10);
    let applied = log.append(Content::OtherControl, sequence(1, 6, 0), 1);
    assert_eq!(applied.ended, None);
    assert_eq!(log.check(&transactional(sequence(1, 5, 10), 1)), Verdict::Append);
    assert_eq!(log.states.end(), Offset(11));
}

#[test]
fn prod_43_a_cut_that_takes_no_producers_batch_needs_no_snapshot() {
    let mut log = Log::new();
    let _ = log.plain(1, 5, 0, 10);
    let _ = log.other(10);
    assert!(log.states.truncate_to(Offset(30), LeaderEpoch(9)), "behind the end nothing is cut");
    assert_eq!((log.states.end(), log.states.leader_epoch()), (Offset(20), LeaderEpoch(3)));
    assert!(log.states.truncate_to(Offset(10), LeaderEpoch(1)));
    assert_eq!((log.states.end(), log.states.leader_epoch()), (Offset(10), LeaderEpoch(1)));
    assert!(!log.states.truncate_to(Offset(9), LeaderEpoch(1)), "the state knows what is gone");
}

#[test]
fn prod_43_a_walk_may_begin_before_the_end_of_the_snapshot() {
    let log = busy_log();
    let once = log.states.snapshot(SEED);
    assert_eq!(log.replayed(log.restored(&once)).snapshot(SEED), once);
}

#[test]
fn memory_is_bounded_and_the_one_forgotten_is_the_one_that_appended_longest_ago() {
    let mut log = Log::with_producers_max(3);
    for id in [1, 2, 3] {
        assert!(log.plain(id, 0, 0, 1).evicted.is_empty());
    }
    assert!(log.plain(1, 0, 1, 1).evicted.is_empty());
    assert_eq!(log.plain(4, 0, 0, 1).evicted, [ProducerId(2)]);
    assert_eq!(log.marker(5, 0, Outcome::Aborted).evicted, [ProducerId(3)]);
    assert_eq!(log.states.len(), 3);
}

#[test]
fn a_leader_opens_transactions_for_half_of_the_producers_that_it_remembers() {
    let mut log = Log::with_producers_max(4);
    let _ = log.transactional(1, 0, 0, 1);
    let _ = log.transactional(2, 0, 0, 1);
    let third = transactional(sequence(3, 0, 0), 1);
    let fault = TransactionFault::TooManyOpen;
    assert_eq!(refused(&log, &third), Refusal::InvalidTransactionState(fault));
    assert_eq!(log.check(&transactional(sequence(2, 0, 1), 1)), Verdict::Append);
    assert_eq!(log.check(&plain(sequence(3, 0, 0), 1)), Verdict::Append);
    let _ = log.marker(1, 0, Outcome::Committed);
    assert_eq!(log.check(&third), Verdict::Append);
}

#[test]
fn a_partition_remembers_at_least_100_000_producers() {
    let mut log = Log::new();
    let count = PRODUCERS_MAX as u64;
    assert!(count >= 100_000);
    for id in 1..=count {
        assert!(log.plain(id, 0, 0, 1).evicted.is_empty());
    }
    assert!(matches!(log.check(&plain(sequence(1, 0, 0), 1)), Verdict::Duplicate { .. }));
    assert_eq!(log.plain(count + 1, 0, 0, 1).evicted, [ProducerId(1)]);
}

#[test]
fn txlog_02_of_interleaved_transactions_the_oldest_undecided_one_counts() {
    let mut log = Log::new();
    let _ = log.other(99);
    let _ = log.transactional(1, 0, 0, 6);
    let _ = log.transactional(2, 0, 0, 4);
    let ended = log.marker(1, 0, Outcome::Aborted).ended.unwrap();
    assert_eq!((ended.first, ended.last), (Offset(99), Offset(109)));
    assert_eq!(ended.outcome, Outcome::Aborted);
    let _ = log.other(2);
    // TXLOG-03: a watermark between data and marker releases nothing, at the marker neither.
    for high_watermark in [99, 100, 105, 109] {
        assert_eq!(log.states.last_stable(Offset(high_watermark)), Offset(99));
    }
    assert_eq!(log.states.last_stable(Offset(110)), Offset(105));
    let _ = log.marker(2, 0, Outcome::Aborted);
    log.states.settle(Offset(110));
    assert_eq!(log.states.last_stable(Offset(112)), Offset(105));
    assert_eq!(log.states.last_stable(Offset(113)), Offset(113));
    assert_eq!(log.states.last_stable(Offset(50)), Offset(50), "never above the watermark");
}

#[test]
fn a_commit_holds_nothing_back_once_its_marker_is_in_the_log() {
    let mut log = Log::new();
    let _ = log.transactional(1, 0, 0, 6);
    assert_eq!(log.states.last_stable(Offset(6)), Offset(0));
    let _ = log.marker(1, 0, Outcome::Committed);
    assert_eq!(log.states.last_stable(Offset(4)), Offset(4));
    assert_eq!(log.states.last_stable(Offset(6)), Offset(6));
}

#[test]
fn txlog_01_what_was_not_settled_before_a_restart_is_not_settled_after_it() {
    let mut log = Log::new();
    let _ = log.transactional(1, 0, 0, 6);
    let _ = log.marker(1, 0, Outcome::Aborted);
    let restored = log.restored(&log.states.snapshot(SEED));
    assert_eq!(restored.last_stable(Offset(6)), Offset(0));
    assert_eq!(restored.last_stable(Offset(7)), Offset(7));
}

#[test]
fn txlog_06_a_marker_without_data_ends_nothing_and_fences_all_the_same() {
    let mut log = Log::new();
    let applied = log.marker(1, 4, Outcome::Aborted);
    assert_eq!(applied.ended, None);
    assert_eq!(log.states.last_stable(log.end()), log.end());
    let current = ProducerEpoch(4);
    let zombie = transactional(sequence(1, 3, 0), 1);
    assert_eq!(refused(&log, &zombie), Refusal::ProducerFenced { current });
    let late = transactional(sequence(1, 4, 0), 1);
    let fault = TransactionFault::Ended;
    assert_eq!(refused(&log, &late), Refusal::InvalidTransactionState(fault));
}

/// KAFKA-17754, KAFKA-19446: a late marker ended the next transaction.
#[test]
fn txlog_07_a_late_marker_is_not_to_be_written_and_would_touch_nothing() {
    let mut log = Log::new();
    let _ = log.transactional(1, 4, 0, 1);
    let _ = log.marker(1, 4, Outcome::Committed);
    let _ = log.transactional(1, 5, 0, 1);
    let reigning = log.states.check_marker(ProducerId(1), ProducerEpoch(4));
    assert_eq!(reigning, Err(Refusal::ProducerFenced { current: ProducerEpoch(5) }));
    assert_eq!(log.marker(1, 4, Outcome::Aborted).ended, None);
    assert_eq!(log.states.open_transactions().count(), 1);
    assert_eq!(log.states.check_marker(ProducerId(1), ProducerEpoch(5)), Ok(()));
}

#[test]
fn a_marker_waits_while_an_earlier_transaction_lacks_its_own() {
    let mut log = Log::new();
    let _ = log.transactional(1, 4, 0, 1);
    let waits = Refusal::InvalidTransactionState(TransactionFault::EarlierStillOpen);
    assert_eq!(log.states.check_marker(ProducerId(1), ProducerEpoch(5)), Err(waits));
    let _ = log.marker(1, 4, Outcome::Committed);
    assert_eq!(log.states.check_marker(ProducerId(1), ProducerEpoch(5)), Ok(()));
}

/// KAFKA-19999: refusing a marker that is there already hung the coordinator.
#[test]
fn coord_43_a_marker_may_be_written_again() {
    let mut log = Log::new();
    let _ = log.transactional(1, 4, 0, 1);
    assert!(log.marker(1, 4, Outcome::Committed).ended.is_some());
    assert_eq!(log.states.check_marker(ProducerId(1), ProducerEpoch(4)), Ok(()));
    assert_eq!(log.marker(1, 4, Outcome::Committed).ended, None, "there is nothing left to end");
    let late = transactional(sequence(1, 4, 0), 1);
    let ended = Refusal::InvalidTransactionState(TransactionFault::Ended);
    assert_eq!(refused(&log, &late), ended, "nothing is part of it any more, nor a duplicate");
}

#[test]
fn txlog_10_exactly_the_transactions_with_data_end_and_in_their_order() {
    let mut log = Log::new();
    let _ = log.transactional(1, 0, 0, 2);
    let ended: Vec<_> = [
        log.marker(1, 0, Outcome::Committed),
        log.marker(2, 0, Outcome::Aborted),
        log.marker(1, 1, Outcome::Aborted),
        log.transactional(1, 2, 0, 2),
        log.marker(1, 2, Outcome::Aborted),
        log.transactional(1, 3, 0, 2),
    ]
    .into_iter()
    .filter_map(|applied| applied.ended)
    .map(|ended| (ended.first.0, ended.last.0, ended.outcome))
    .collect();
    assert_eq!(ended, [(0, 2, Outcome::Committed), (5, 7, Outcome::Aborted)]);
    assert_eq!(log.states.last_stable(Offset(2)), Offset(2));
    assert_eq!(log.states.last_stable(Offset(7)), Offset(5));
    log.states.settle(log.end());
    assert_eq!(log.states.last_stable(log.end()), Offset(8));
}

/// KAFKA-12671: a write behind the marker opened a transaction that nobody would end.
#[test]
fn inv_15_a_late_write_cannot_open_a_transaction_that_has_ended() {
    let mut log = Log::new();
    let _ = log.transactional(1, 4, 0, 5);
    let _ = log.marker(1, 4, Outcome::Aborted);
    for restart in [false, true] {
        if restart {
            log.states = log.restored(&log.states.snapshot(SEED));
        }
        let late = transactional(sequence(1, 4, 5), 5);
        let fault = TransactionFault::Ended;
        assert_eq!(refused(&log, &late), Refusal::InvalidTransactionState(fault));
    }
    // Forgotten altogether: a transaction begins at 0, so the late batch is known by its number.
    assert_eq!(expire(&mut log, Timestamp::MAX), [1]);
    let late = transactional(sequence(1, 4, 5), 5);
    assert_eq!(refused(&log, &late), Refusal::UnknownProducer);
}

#[test]
fn a_transaction_that_has_ended_is_nothing_to_a_newer_epoch_that_began_outside_of_one() {
    let mut log = Log::new();
    let _ = log.transactional(1, 4, 0, 5);
    let _ = log.marker(1, 4, Outcome::Aborted);
    let _ = log.plain(1, 5, 0, 2);
    assert_eq!(log.check(&transactional(sequence(1, 5, 2), 1)), Verdict::Append);
}

#[test]
fn txlog_26_a_cut_that_takes_the_marker_opens_the_transaction_again() {
    let mut log = Log::new();
    let _ = log.other(3);
    let _ = log.transactional(1, 4, 0, 5);
    let snapshot = log.states.snapshot(SEED);
    let _ = log.marker(1, 4, Outcome::Aborted);
    assert!(!log.states.truncate_to(Offset(8), LeaderEpoch(3)));
    log.batches.pop();
    log.states = log.replayed(log.restored(&snapshot));
    assert_eq!(log.states.last_stable(Offset(8)), Offset(3));
    let ended = log.marker(1, 4, Outcome::Committed).ended.unwrap();
    assert_eq!((ended.first, ended.outcome), (Offset(3), Outcome::Committed));
}

#[test]
fn txlog_27_a_marker_whose_data_was_compacted_away_counts_as_an_empty_transaction() {
    let mut log = Log::new();
    let _ = log.transactional(1, 4, 0, 5);
    let _ = log.marker(1, 4, Outcome::Aborted);
    log.batches.remove(0);
    let rebuilt = log.replayed(ProducerStates::new(Offset::ZERO, 10));
    assert_eq!(rebuilt.open_transactions().count(), 0);
    assert_eq!(rebuilt.last_stable(log.end()), log.end());
    assert_eq!(rebuilt.producer(ProducerId(1)).unwrap().epoch, ProducerEpoch(4));
}

#[test]
fn a_refusal_tells_the_application_what_to_do() {
    let producer = sequence(7, 3, 20);
    let error = |refusal: Refusal, name| {
        refusal.into_error(TopicPartition::new("orders", 2), producer, name)
    };
    let fenced = error(Refusal::ProducerFenced { current: ProducerEpoch(4) }, None);
    assert_eq!(fenced.class(), ErrorClass::Fenced);
    assert_eq!(fenced.to_string(), "producer 7 at epoch 3 was fenced by epoch 4");
    let gap = error(Refusal::OutOfOrderSequence { expected: 10, given: 20 }, None);
    assert!(matches!(gap, Error::OutOfOrderSequence { expected: 10, given: 20, .. }));
    let again = error(Refusal::DuplicateSequence { given: 20 }, None);
    assert!(matches!(again, Error::DuplicateSequence { given: 20, .. }));
    let unknown = error(Refusal::UnknownProducer, None);
    assert!(matches!(unknown, Error::UnknownProducer { id: ProducerId(7), .. }));
    for fault in [
        TransactionFault::OutsideTransaction,
        TransactionFault::EarlierStillOpen,
        TransactionFault::Ended,
        TransactionFault::TooManyOpen,
    ] {
        let error = error(Refusal::InvalidTransactionState(fault), Some("billing-1"));
        assert!(error.to_string().starts_with("transaction billing-1: orders-2: "), "{error}");
        assert_eq!(error.written(), Written::No);
    }
    let nameless = error(Refusal::InvalidTransactionState(TransactionFault::Ended), None);
    assert!(nameless.to_string().starts_with("transaction of producer 7: "));
}
