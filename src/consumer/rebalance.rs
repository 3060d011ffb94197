//! What a consumer tells its application when it is given partitions, or has to let go of some.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::store::CommittedOffset;
use crate::types::{Offset, TopicPartition};

use super::Consumer;

/// What happens to the partitions of a [`Rebalance`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RebalanceKind {
    /// They are the consumer's from now on, besides those that it has.
    Assigned,
    /// They will be another's as soon as this call returns. The last moment to commit for them.
    Revoked,
    /// They are another's already: the consumer has not polled for too long. What it commits for them is refused.
    Lost,
}

/// Offsets that the application has committed, and whether that is known to hold.
type Committed = (Vec<(TopicPartition, CommittedOffset)>, bool);

/// A change of what a member of a group reads. Given to the function of
/// [`Consumer::on_rebalance`](crate::Consumer::on_rebalance).
#[derive(Debug)]
pub struct Rebalance<'a> {
    pub(super) kind: RebalanceKind,
    pub(super) partitions: &'a [TopicPartition],
    pub(super) positions: BTreeMap<TopicPartition, CommittedOffset>,
    pub(super) consumer: &'a Consumer,
    /// Where the application wants to go on; carried out when its function has returned.
    pub(super) seeks: RefCell<Vec<(TopicPartition, Offset)>>,
    pub(super) commits: RefCell<Vec<Committed>>,
}

impl Rebalance<'_> {
    /// What happens.
    #[must_use]
    pub fn kind(&self) -> RebalanceKind {
        self.kind
    }

    /// To which partitions; to none, if only others of the group are concerned.
    #[must_use]
    pub fn partitions(&self) -> &[TopicPartition] {
        self.partitions
    }

    /// How far polls have come in them. Empty for those that are assigned.
    #[must_use]
    pub fn position_map(&self) -> &BTreeMap<TopicPartition, CommittedOffset> {
        &self.positions
    }

    /// Commits [`Rebalance::position_map`]. What was read of a topic that is gone is left out.
    ///
    /// # Errors
    /// As for [`Consumer::commit`](crate::Consumer::commit).
    pub fn commit(&self) -> Result<()> {
        loop {
            let there = self.positions.iter().filter(|(at, _)| !self.consumer.is_gone(at));
            let offsets: Vec<_> = there.map(|(at, held)| (at.clone(), held.clone())).collect();
            match self.commit_and_note(&offsets) {
                Err(error) if self.consumer.is_of_gone(&error, &offsets) => {}
                outcome => return outcome,
            }
        }
    }

    /// Commits these offsets.
    ///
    /// # Errors
    /// As for [`Consumer::commit`](crate::Consumer::commit).
    pub fn commit_offsets(
        &self,
        offsets: &BTreeMap<TopicPartition, CommittedOffset>,
    ) -> Result<()> {
        let offsets: Vec<_> = offsets.iter().map(|(at, held)| (at.clone(), held.clone())).collect();
        self.commit_and_note(&offsets)
    }

    fn commit_and_note(&self, offsets: &[(TopicPartition, CommittedOffset)]) -> Result<()> {
        let outcome = self.consumer.commit_slice(offsets);
        self.commits.borrow_mut().push((offsets.to_vec(), outcome.is_ok()));
        outcome
    }

    /// Has the consumer go on at `offset` in a partition that it is assigned: for an application that keeps its
    /// positions elsewhere.
    ///
    /// # Errors
    /// [`Error::NotAssigned`] for another partition, or when partitions are taken away.
    pub fn seek(&self, topic: &str, partition: u32, offset: Offset) -> Result<()> {
        let partition = TopicPartition::new(topic, partition);
        if self.kind != RebalanceKind::Assigned || !self.partitions.contains(&partition) {
            return Err(Error::NotAssigned { partition });
        }
        self.seeks.borrow_mut().push((partition, offset));
        Ok(())
    }
}
