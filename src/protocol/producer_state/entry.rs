//! What is remembered of one producer, and the rules by which its next batch is judged.
//!
//! Invariants:
//! 1. The remembered batches rise in sequence and in offset, and `next` is the end of the last one;
//!    without one, `next` is 0.
//! 2. Every sequence in `known_from..next` was appended under the present numbering.
//! 3. An open transaction is one of `epoch`.

use crate::types::{Offset, ProducerEpoch, ProducerId, ProducerSequence, Timestamp};

use super::batch::{BatchFacts, Content, Numbering, Proposal};
use super::verdict::{Refusal, TransactionFault, Verdict};

/// How many batches of a producer are recognised when they come again, with their offsets: as many as Kafka's
/// producers have in flight.
pub(crate) const BATCHES_MAX: usize = 5;

/// A batch that is in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Remembered {
    pub(super) sequence: u64,
    pub(super) base_offset: Offset,
    pub(super) appended_at: Timestamp,
    /// Records but one, as in the header.
    pub(super) last_delta: u32,
}

impl Remembered {
    #[inline]
    pub(super) fn end_sequence(&self) -> u64 {
        self.sequence.saturating_add(u64::from(self.last_delta) + 1)
    }

    pub(super) fn end_offset(&self) -> Offset {
        self.base_offset.plus(u64::from(self.last_delta) + 1)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) id: ProducerId,
    pub(super) epoch: ProducerEpoch,
    /// A marker has ended the transaction of `epoch`, or a newer epoch than any that had data here.
    pub(super) ended: bool,
    /// First offset of the transaction that is open.
    pub(super) open: Option<Offset>,
    pub(super) known_from: u64,
    pub(super) next: u64,
    pub(super) appended_at: Timestamp,
    batches: [Remembered; BATCHES_MAX],
    batches_len: u8,
}

impl Entry {
    /// A producer of which nothing is known but that it begins, at `sequence`.
    pub(super) fn new(id: ProducerId, epoch: ProducerEpoch, sequence: u64) -> Self {
        Self {
            id,
            epoch,
            ended: false,
            open: None,
            known_from: sequence,
            next: sequence,
            appended_at: Timestamp::MIN,
            batches: [Remembered::default(); BATCHES_MAX],
            batches_len: 0,
        }
    }

    /// The batches that are remembered, oldest first.
    pub(super) fn batches(&self) -> &[Remembered] {
        &self.batches[..self.batches_len.into()]
    }

    /// Whether a batch that is part of no transaction is simply the next one.
    #[inline]
    pub(super) fn goes_on(&self, given: ProducerSequence) -> bool {
        self.id == given.id
            && self.epoch == given.epoch
            && self.next == given.sequence
            && self.open.is_none()
    }

    /// Epochs are looked at first: who was fenced has to hear that and nothing else (TXLOG-20).
    pub(super) fn judge(&self, proposal: &Proposal) -> Verdict {
        let given = proposal.producer;
        if given.epoch < self.epoch {
            return Verdict::Refused(Refusal::ProducerFenced { current: self.epoch });
        }
        if self.open.is_some() {
            if !proposal.transactional {
                return invalid(TransactionFault::OutsideTransaction);
            }
            if given.epoch > self.epoch {
                return invalid(TransactionFault::EarlierStillOpen);
            }
        }
        if given.epoch > self.epoch && proposal.numbering == Numbering::Restarts {
            return if given.sequence == 0 { Verdict::Append } else { out_of_order(0, proposal) };
        }
        // Not even as a duplicate: where a power loss took the coordinator's memory, the epoch may be in use again.
        if proposal.transactional && self.ended && given.epoch == self.epoch {
            return invalid(TransactionFault::Ended);
        }
        self.judge_sequence(proposal)
    }

    fn judge_sequence(&self, proposal: &Proposal) -> Verdict {
        let given = proposal.producer.sequence;
        if given == self.next {
            return Verdict::Append;
        }
        let Some(end) = given.checked_add(proposal.count.into()) else {
            return out_of_order(self.next, proposal);
        };
        let found =
            self.batches().iter().find(|one| one.sequence == given && one.end_sequence() == end);
        if let Some(found) = found {
            return Verdict::Duplicate {
                offsets: found.base_offset..found.end_offset(),
                timestamp: found.appended_at,
            };
        }
        let is_forgotten = self.batches().first().is_some_and(|oldest| end <= oldest.sequence);
        if is_forgotten && given >= self.known_from {
            return Verdict::Refused(Refusal::DuplicateSequence { given });
        }
        out_of_order(self.next, proposal)
    }

    /// Takes a batch with records that the log now has. Nothing is refused: the leader has judged it, and a follower
    /// takes what the leader wrote (PROD-15).
    pub(super) fn on_data(&mut self, batch: &BatchFacts, appended_at: Timestamp) {
        let given = batch.producer;
        // From 0 under a newer epoch it counts anew: `next` is 0 only if nothing is remembered.
        let goes_on = given.sequence == self.next && given.epoch >= self.epoch;
        // The writer had forgotten this producer. What is remembered stays true, if it counts on.
        let jumps = given.epoch == self.epoch && given.sequence > self.next;
        if !goes_on {
            self.known_from = given.sequence;
            if !jumps {
                self.batches_len = 0;
            }
        }
        if given.epoch != self.epoch {
            self.epoch = given.epoch;
            self.ended = false;
        }
        if batch.content == Content::Transactional && self.open.is_none() {
            self.open = Some(batch.base_offset);
            self.ended = false;
        }
        self.on_next(batch, appended_at);
    }

    /// As [`Entry::on_data`] for a batch with which it [goes on](Entry::goes_on).
    #[inline(always)]
    pub(super) fn on_next(&mut self, batch: &BatchFacts, appended_at: Timestamp) {
        self.remember(Remembered {
            sequence: batch.producer.sequence,
            base_offset: batch.base_offset,
            appended_at,
            last_delta: batch.last_offset_delta,
        });
        self.appended_at = appended_at;
    }

    /// Takes a marker that the log now has. Returns where the transaction that it ended began, if one was open.
    pub(super) fn on_marker(
        &mut self,
        epoch: ProducerEpoch,
        appended_at: Timestamp,
    ) -> Option<Offset> {
        assert!(epoch >= self.epoch, "a late marker is passed over before");
        if epoch > self.epoch {
            self.epoch = epoch;
            self.batches_len = 0;
            self.known_from = 0;
            self.next = 0;
        }
        self.ended = true;
        self.appended_at = appended_at;
        self.open.take()
    }

    /// What is known of it in a log that ends at `end`; `None`: nothing, or what was in a transaction.
    pub(super) fn cut_to(&self, end: Offset) -> Option<Self> {
        if self.open.is_some() || self.ended {
            return None;
        }
        let mut kept = Self { batches_len: 0, ..self.clone() };
        for batch in self.batches().iter().filter(|batch| batch.end_offset() <= end) {
            kept.remember(*batch);
        }
        let last = kept.batches().last()?.sequence;
        kept.known_from = kept.known_from.min(last);
        Some(kept)
    }

    /// Adds the newest batch, in place of the oldest one if there is no room.
    #[inline(always)]
    pub(super) fn remember(&mut self, batch: Remembered) {
        let mut len = usize::from(self.batches_len);
        if len == BATCHES_MAX {
            self.batches.copy_within(1.., 0);
            len -= 1;
        }
        self.batches[len] = batch;
        self.batches_len = u8::try_from(len + 1).expect("a handful");
        self.next = batch.end_sequence();
    }
}

/// For a producer that the partition does not know. A transaction counts from 0 under an epoch of its own, so one that
/// does not has lost its first batch, or is over and forgotten.
pub(super) fn judge_unknown(proposal: &Proposal) -> Verdict {
    let given = proposal.producer.sequence;
    if given != 0 && (proposal.strict || proposal.transactional) {
        return Verdict::Refused(Refusal::UnknownProducer);
    }
    Verdict::Append
}

pub(super) fn out_of_order(expected: u64, proposal: &Proposal) -> Verdict {
    let given = proposal.producer.sequence;
    Verdict::Refused(Refusal::OutOfOrderSequence { expected, given })
}

pub(super) fn invalid(fault: TransactionFault) -> Verdict {
    Verdict::Refused(Refusal::InvalidTransactionState(fault))
}
