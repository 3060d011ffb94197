//! Where in a segment an offset or a time is to be looked for.
//!
//! One entry for every few KiB of batches. An entry points at the start of a batch and knows the
//! largest timestamp of everything before it, so a look-up finds the last place from which a short
//! walk must meet the answer. The index saves time and proves nothing: a wrong entry is noticed by
//! the batch that it points to.
//!
//! Beside the entries: what read-committed readers must not see, by the markers in the segment.
//!
//! Invariants: offsets and positions strictly increase; `time_before` never decreases; aborted ranges are in the order
//! of their markers.

use crate::protocol::producer_state::transactions::AbortedRange;
use crate::types::{Offset, Timestamp};

/// One place in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexEntry {
    /// Base offset of the batch, relative to the segment's.
    pub(crate) relative_offset: u32,
    /// Byte where the batch starts.
    pub(crate) position: u32,
    /// The largest timestamp of all batches before this one; `MIN` if there are none.
    pub(crate) time_before: Timestamp,
}

/// The entries of one segment, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SparseIndex {
    pub(crate) entries: Vec<IndexEntry>,
    /// Transactions whose abort marker is in the segment.
    pub(crate) aborted: Vec<AbortedRange>,
    /// When the segment was sealed, everything below was decided: no marker of a later segment is about it. A lower
    /// bound; 0 where it is not known.
    pub(crate) decided: Offset,
    /// From where on damage has kept it from being known what the markers say. No side file tells of that.
    pub(crate) unknown_from: Option<Offset>,
}

impl SparseIndex {
    pub(crate) fn with_capacity(entries: usize) -> Self {
        Self { entries: Vec::with_capacity(entries), ..Self::default() }
    }

    pub(crate) fn push(&mut self, entry: IndexEntry) {
        self.entries.push(entry);
    }

    /// The last indexed place at or before `offset`.
    pub(crate) fn before_offset(&self, base: Offset, offset: Offset) -> Option<IndexEntry> {
        let relative = offset.since(base);
        let count =
            self.entries.partition_point(|entry| u64::from(entry.relative_offset) <= relative);
        self.entries[..count].last().copied()
    }

    /// The last indexed place before which every timestamp is smaller than `timestamp`.
    pub(crate) fn before_time(&self, timestamp: Timestamp) -> Option<IndexEntry> {
        let count = self.entries.partition_point(|entry| entry.time_before < timestamp);
        self.entries[..count].last().copied()
    }
}
