//! Numbers for producers: each is given once in the life of a store.

use std::ops::Range;

use crate::error::Result;
use crate::protocol::metadata::MetadataRecord;
use crate::types::ProducerId;

use super::Shared;

/// How many are made durable at a time: what a crash leaves of them is never given.
const BLOCK: u64 = 1000;

/// Those that were made durable and have not been given.
pub(super) type ProducerIds = Range<u64>;

impl Shared {
    /// A number that nobody had before. `named`: its holder is known by a name, and never forgotten by age.
    ///
    /// # Errors
    /// What making the next block durable runs into.
    pub(super) fn new_producer_id(&self, named: bool) -> Result<ProducerId> {
        let mut ids = self.producer_ids.lock();
        if ids.is_empty() {
            let mut metadata = self.metadata.lock();
            let first = metadata.state().next_producer_id();
            metadata.commit(&MetadataRecord::ProducerIdBlock { next: first + BLOCK })?;
            *ids = first..first + BLOCK;
        }
        let number = ids.next().expect("a block was made just now");
        let mark = if named { ProducerId::NAMED } else { ProducerId::GIVEN };
        Ok(ProducerId(mark | number))
    }
}
