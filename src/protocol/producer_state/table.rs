//! Every kind of past, every kind of batch, and what is answered.

use crate::types::Outcome;

use super::batch::{Numbering, Proposal};
use super::model::{Log, plain, sequence};
use super::verdict::{Refusal, TransactionFault, Verdict};

/// What the log had from producer 1 before, under epoch 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Past {
    /// Nothing.
    Unknown,
    /// Sequences 0..10 and 10..20.
    Two,
    /// 0..80 in eight batches, the last five of which are remembered.
    Eight,
    /// 100..160 in six batches: what came before, if anything, is forgotten.
    Joined,
    /// A marker only.
    Marker,
    /// 0..10 in a transaction that is open.
    Open,
    /// 0..10 in a transaction, and its marker.
    Ended,
    /// 0..10 in a transaction that a marker of epoch 6 ended.
    Fenced,
}
use Past::{Eight, Ended, Fenced, Joined, Marker, Open, Two, Unknown};

const ALL: [Past; 8] = [Unknown, Two, Eight, Joined, Marker, Open, Ended, Fenced];

fn log(past: Past) -> Log {
    let mut log = Log::new();
    let _ = log.other(3);
    match past {
        Unknown => {}
        Two | Eight | Joined => {
            let (from, batches) = match past {
                Two => (0, 2),
                Eight => (0, 8),
                _ => (100, 6),
            };
            for batch in 0..batches {
                let _ = log.plain(1, 5, from + batch * 10, 10);
            }
        }
        Marker => {
            let _ = log.marker(1, 5, Outcome::Aborted);
        }
        Open | Ended | Fenced => {
            let _ = log.transactional(1, 5, 0, 10);
            match past {
                Ended => drop(log.marker(1, 5, Outcome::Committed)),
                Fenced => drop(log.marker(1, 6, Outcome::Aborted)),
                _ => {}
            }
        }
    }
    log
}

fn letter(verdict: &Verdict) -> char {
    match verdict {
        Verdict::Append => 'A',
        Verdict::Duplicate { .. } => 'D',
        Verdict::Refused(Refusal::DuplicateSequence { .. }) => 'T',
        Verdict::Refused(Refusal::OutOfOrderSequence { .. }) => 'G',
        Verdict::Refused(Refusal::ProducerFenced { .. }) => 'F',
        Verdict::Refused(Refusal::UnknownProducer) => 'U',
        Verdict::Refused(Refusal::InvalidTransactionState(fault)) => match fault {
            TransactionFault::OutsideTransaction => 'N',
            TransactionFault::EarlierStillOpen => 'W',
            TransactionFault::Ended => 'X',
            TransactionFault::TooManyOpen => 'M',
        },
    }
}

/// One letter each for a plain producer, a strict one, a named one and a transactional one.
fn letters(log: &Log, epoch: u32, first: u64, count: u32) -> String {
    let base = plain(sequence(1, epoch, first), count);
    let modes = [
        base,
        Proposal { strict: true, ..base },
        Proposal { numbering: Numbering::Continues, ..base },
        Proposal { transactional: true, ..base },
    ];
    modes.iter().map(|proposal| letter(&log.check(proposal))).collect()
}

/// A append, D duplicate, T too old to know the offsets, G gap or overlap, F fenced, U unknown producer; and of
/// transactions: N not part of one, W waits for an earlier one, X ended.
const TABLE: &[(Past, u32, u64, u32, &str)] = &[
    // PROD-13; the strict and the transactional have to begin at 0.
    (Unknown, 5, 0, 10, "AAAA"),
    (Unknown, 5, 7, 10, "AUAU"),
    (Unknown, 5, u64::MAX, 1, "GUGU"),
    // PROD-01 to PROD-04, PROD-06.
    (Two, 5, 20, 1, "AAAA"),
    (Two, 5, 21, 1, "GGGG"),
    (Two, 5, 10, 10, "DDDD"),
    (Two, 5, 0, 10, "DDDD"),
    (Two, 5, 0, 20, "GGGG"),
    (Two, 5, 10, 9, "GGGG"),
    (Two, 5, 10, 11, "GGGG"),
    (Two, 5, 12, 8, "GGGG"),
    (Two, 5, 15, 10, "GGGG"),
    (Two, 5, u64::MAX, 1, "GGGG"),
    // PROD-10, PROD-11; a named producer counts on.
    (Two, 6, 0, 10, "AADA"),
    (Two, 6, 10, 10, "GGDG"),
    (Two, 6, 20, 1, "GGAG"),
    (Two, 6, 21, 1, "GGGG"),
    // PROD-05.
    (Eight, 5, 80, 10, "AAAA"),
    (Eight, 5, 30, 10, "DDDD"),
    (Eight, 5, 20, 10, "TTTT"),
    (Eight, 5, 0, 10, "TTTT"),
    (Eight, 5, 3, 4, "TTTT"),
    (Eight, 5, 0, 30, "TTTT"),
    (Eight, 5, 0, 31, "GGGG"),
    (Eight, 5, 25, 10, "GGGG"),
    (Eight, 6, 0, 10, "AATA"),
    (Eight, 6, 20, 10, "GGTG"),
    (Eight, 6, 80, 1, "GGAG"),
    // Nobody can say that what came before was appended.
    (Joined, 5, 160, 1, "AAAA"),
    (Joined, 5, 110, 10, "DDDD"),
    (Joined, 5, 100, 10, "TTTT"),
    (Joined, 5, 90, 10, "GGGG"),
    (Joined, 5, 95, 10, "GGGG"),
    (Joined, 5, 0, 1, "GGGG"),
    // PROD-14; a marker's epoch has no transaction behind it.
    (Marker, 5, 0, 10, "AAAX"),
    (Marker, 5, 1, 1, "GGGX"),
    (Marker, 6, 0, 10, "AAAA"),
    (Marker, 6, 1, 1, "GGGG"),
    // TXLOG-05.
    (Open, 5, 10, 1, "NNNA"),
    (Open, 5, 0, 10, "NNND"),
    (Open, 5, 11, 1, "NNNG"),
    (Open, 6, 0, 10, "NNNW"),
    // TXLOG-08: what is late is refused; what is here is recognised, if it is no transaction's.
    (Ended, 5, 10, 1, "AAAX"),
    (Ended, 5, 0, 10, "DDDX"),
    (Ended, 5, 11, 1, "GGGX"),
    (Ended, 5, 5, 2, "GGGX"),
    (Ended, 6, 0, 10, "AADA"),
    (Ended, 6, 10, 1, "GGAG"),
    (Ended, 6, 3, 1, "GGGG"),
    // TXLOG-07.
    (Fenced, 6, 0, 10, "AAAX"),
    (Fenced, 6, 10, 1, "GGGX"),
    (Fenced, 7, 0, 10, "AAAA"),
    (Fenced, 7, 1, 1, "GGGG"),
    (Fenced, 5, 0, 10, "FFFF"),
    (Fenced, 5, 10, 1, "FFFF"),
];

#[test]
fn prod_01_to_14_every_batch_gets_the_answer_of_the_table() {
    for (past, epoch, first, count, expected) in TABLE {
        let answer = letters(&log(*past), *epoch, *first, *count);
        assert_eq!(answer, *expected, "{past:?}, epoch {epoch}: {first} and {count} records");
    }
    for past in ALL {
        assert!(TABLE.iter().any(|row| row.0 == past), "{past:?} is not in the table");
    }
}

/// PROD-12 for all of them, and what holds between the rows: over every batch in reach, not only the chosen ones.
#[test]
fn over_every_small_batch_a_stale_epoch_is_fenced_and_only_whole_batches_are_duplicates() {
    for past in ALL {
        let log = log(past);
        for first in (0..30).chain(75..85).chain(95..115).chain(155..165) {
            for count in 1..25 {
                let end = first + u64::from(count);
                for epoch in 4..8 {
                    let answers = letters(&log, epoch, first, count);
                    let stale = match past {
                        Unknown => false,
                        Fenced => epoch < 6,
                        _ => epoch < 5,
                    };
                    assert_eq!(answers == "FFFF", stale, "{past:?} {epoch} {first} {count}");
                    assert_eq!(answers.contains('F'), stale, "{past:?} {epoch} {first} {count}");
                    let is_whole = first.is_multiple_of(10) && count == 10;
                    assert!(is_whole || !answers.contains('D'), "{past:?} {epoch} {first} {count}");
                    if answers.contains('T') {
                        let known = match past {
                            Eight => 0..30,
                            Joined => 100..110,
                            _ => 0..0,
                        };
                        assert!(
                            known.start <= first && end <= known.end,
                            "{past:?} {first} {count}"
                        );
                    }
                }
            }
        }
    }
}
