//! Which sequences a producer's records have in one partition.

use crate::partition::Author;
use crate::protocol::producer_state::batch::Numbering;
use crate::types::{Compression, ProducerEpoch, ProducerId, ProducerSequence};

/// How a producer is known to the logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Identity {
    /// Not at all: a retry may append twice.
    Nobody,
    /// By an id of its own, as long as it lives.
    Plain(ProducerId),
    /// By a name, and from one holder to the next.
    Named(ProducerId, ProducerEpoch),
}

/// The numbers of the records that were not offered yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers {
    identity: Identity,
    epoch: ProducerEpoch,
    pub(super) next: u64,
    compression: Option<Compression>,
}

impl Numbers {
    pub(super) fn new(identity: Identity, next: u64, compression: Option<Compression>) -> Self {
        let epoch = match identity {
            Identity::Named(_, epoch) => epoch,
            _ => ProducerEpoch(0),
        };
        Self { identity, epoch, next, compression }
    }

    /// Whose batch it is, if it begins at `sequence`.
    #[inline]
    pub(super) fn author(&self, sequence: u64) -> Author {
        let (id, numbering) = match self.identity {
            Identity::Nobody => (ProducerId(0), Numbering::Restarts),
            Identity::Plain(id) => (id, Numbering::Restarts),
            Identity::Named(id, _) => (id, Numbering::Continues),
        };
        let sequence = if self.identity == Identity::Nobody { 0 } else { sequence };
        Author {
            producer: ProducerSequence { id, epoch: self.epoch, sequence },
            transactional: false,
            // A log that lost what it had of a name must not take what comes behind it.
            strict: self.is_named(),
            numbering,
            compression: self.compression,
        }
    }

    pub(super) fn id(&self) -> ProducerId {
        self.author(0).producer.id
    }

    /// Whether a gap can be closed by counting anew (KIP-360). A named producer's numbers are positions in its
    /// source, which only the source can put right.
    pub(super) fn restarts(&self) -> bool {
        matches!(self.identity, Identity::Plain(_))
    }

    pub(super) fn is_named(&self) -> bool {
        matches!(self.identity, Identity::Named(..))
    }

    /// Counts from 0 under the next epoch, which fences whatever the old one left under way.
    pub(super) fn restart(&mut self) {
        let next =
            self.epoch.0.checked_add(1).expect("each takes a failure that somebody waited for");
        self.epoch = ProducerEpoch(next);
        self.next = 0;
    }
}
