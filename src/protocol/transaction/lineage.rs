//! The transactions of one producer id, one after the other: an epoch each, and how the last ones ended.
//!
//! An epoch that is over was committed, or it was not: aborted, or skipped and never used. The answer is kept
//! for the last 64 epochs, a bit each.
//!
//! Invariant: epochs are handed out in rising order; a bit below epoch 0 is never set.

use crate::types::{Outcome, ProducerEpoch, ProducerId};

/// One transaction, told apart from every other one for ever. A holder is known by the tag of its current or
/// next transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TransactionTag {
    pub(crate) producer: ProducerId,
    pub(crate) epoch: ProducerEpoch,
}

/// What is known of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Not decided: it may still end either way.
    Open,
    Committed,
    /// Or never begun; nothing of it is or will be visible.
    Aborted,
    /// Over for so long that how it ended is forgotten.
    Forgotten,
    /// No such transaction is known: its id has expired, or it belongs to another store.
    Unknown,
}

impl From<Outcome> for Verdict {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Committed => Self::Committed,
            Outcome::Aborted => Self::Aborted,
        }
    }
}

/// All transactions of one producer id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lineage {
    producer: ProducerId,
    /// Epochs below this are over.
    end: ProducerEpoch,
    /// Bit n: whether epoch `end - 1 - n` was committed.
    committed: u64,
}

impl Lineage {
    pub(crate) fn new(producer: ProducerId) -> Self {
        Self { producer, end: ProducerEpoch(0), committed: 0 }
    }

    /// What a record says, if it can be: no producer has id 0, and no epoch came before 0.
    pub(crate) fn recorded(
        producer: ProducerId,
        end: ProducerEpoch,
        committed: u64,
    ) -> Option<Self> {
        let sound = producer.0 != 0 && committed.checked_shr(end.0).unwrap_or(0) == 0;
        sound.then_some(Self { producer, end, committed })
    }

    pub(crate) fn producer(&self) -> ProducerId {
        self.producer
    }

    /// The first epoch that is not over.
    pub(crate) fn end(&self) -> ProducerEpoch {
        self.end
    }

    pub(crate) fn committed_bits(&self) -> u64 {
        self.committed
    }

    /// The transaction that runs, or is to be the next.
    pub(crate) fn tag(&self) -> TransactionTag {
        TransactionTag { producer: self.producer, epoch: self.end }
    }

    /// The transaction before.
    pub(crate) fn last(&self) -> Option<(TransactionTag, Outcome)> {
        let epoch = ProducerEpoch(self.end.0.checked_sub(1)?);
        let committed = self.committed & 1 == 1;
        let outcome = if committed { Outcome::Committed } else { Outcome::Aborted };
        Some((TransactionTag { producer: self.producer, epoch }, outcome))
    }

    /// The same, with the running epoch over.
    pub(crate) fn after(&self, outcome: Outcome) -> Self {
        let next = self.raised_to(ProducerEpoch(
            self.end.0.checked_add(1).expect("the last epoch is never handed out"),
        ));
        Self { committed: next.committed | u64::from(outcome == Outcome::Committed), ..next }
    }

    /// The same, with all epochs below `end` over and none of the new ones committed.
    pub(crate) fn raised_to(&self, end: ProducerEpoch) -> Self {
        let skipped = end.0.checked_sub(self.end.0).expect("epochs only rise");
        Self { end, committed: self.committed.checked_shl(skipped).unwrap_or(0), ..*self }
    }

    /// How an epoch that is over ended.
    pub(crate) fn verdict(&self, epoch: ProducerEpoch) -> Verdict {
        assert!(epoch < self.end, "the epoch is not over");
        let back = self.end.0 - 1 - epoch.0;
        match self.committed.checked_shr(back) {
            None => Verdict::Forgotten,
            Some(bits) if bits & 1 == 1 => Verdict::Committed,
            Some(_) => Verdict::Aborted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn how_the_last_64_ended_is_known_and_no_more() {
        let mut lineage = Lineage::new(ProducerId(7));
        let ends = |epoch: u32| {
            if epoch.is_multiple_of(3) { Outcome::Committed } else { Outcome::Aborted }
        };
        for epoch in 0..100 {
            lineage = lineage.after(ends(epoch));
        }
        for epoch in 0..100 {
            let known = epoch >= 100 - u64::BITS;
            let verdict = if known { ends(epoch).into() } else { Verdict::Forgotten };
            assert_eq!(lineage.verdict(ProducerEpoch(epoch)), verdict, "{epoch}");
        }
        let far = lineage.raised_to(ProducerEpoch(u32::MAX));
        assert_eq!(far.verdict(ProducerEpoch(99)), Verdict::Forgotten);
        assert_eq!(far.verdict(ProducerEpoch(u32::MAX - 1)), Verdict::Aborted);
    }

    #[test]
    fn a_record_with_commits_before_the_first_epoch_is_none() {
        let recorded = |producer, end, bits| {
            Lineage::recorded(ProducerId(producer), ProducerEpoch(end), bits).is_some()
        };
        assert!(recorded(1, 0, 0) && recorded(1, 3, 0b111) && recorded(1, 64, u64::MAX));
        assert!(!recorded(0, 3, 0) && !recorded(1, 0, 1) && !recorded(1, 3, 0b1000));
    }

    proptest! {
        #[test]
        fn a_lineage_agrees_with_a_list(steps in prop::collection::vec(0u32..80, 1..40)) {
            let mut lineage = Lineage::new(ProducerId(1));
            let mut list = Vec::new();
            for step in steps {
                match step {
                    0..40 => {
                        lineage = lineage.after(Outcome::Committed);
                        list.push(Verdict::Committed);
                    }
                    _ => {
                        lineage = lineage.raised_to(ProducerEpoch(lineage.end().0 + step - 39));
                        list.extend((39..step).map(|_| Verdict::Aborted));
                    }
                }
            }
            for (epoch, verdict) in (0..).zip(&list) {
                let known = list.len() - epoch as usize <= u64::BITS as usize;
                let expected = if known { *verdict } else { Verdict::Forgotten };
                prop_assert_eq!(lineage.verdict(ProducerEpoch(epoch)), expected);
            }
            let again =
                Lineage::recorded(lineage.producer(), lineage.end(), lineage.committed_bits());
            prop_assert_eq!(again, Some(lineage));
        }
    }
}
