//! Which transactions keep a read-committed reader waiting.
//!
//! A transaction holds the last stable offset at its first offset while it is open. An aborted one does so until the high
//! watermark has passed its marker, which could still be lost with the leader (TXLOG-01 to TXLOG-03). A committed one
//! does not: its decision was durable before the marker was written, and a marker that is lost is written again.
//!
//! Invariant: no two transactions begin at one offset or end at one offset.

use std::collections::{BTreeMap, VecDeque};

use crate::types::{Offset, Outcome, ProducerEpoch, ProducerId, Timestamp};

/// A transaction that has records in the partition and no marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpenTransaction {
    pub(crate) producer: ProducerId,
    pub(crate) epoch: ProducerEpoch,
    pub(crate) first: Offset,
    /// When its last batch was appended: a transaction is late by this (TXLOG-22).
    pub(crate) appended_at: Timestamp,
}

/// A transaction that had records in the partition and now has its marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EndedTransaction {
    pub(crate) producer: ProducerId,
    /// That of the marker.
    pub(crate) epoch: ProducerEpoch,
    pub(crate) outcome: Outcome,
    pub(crate) first: Offset,
    /// Offset of the marker.
    pub(crate) last: Offset,
}

/// Between these offsets, both included, the producer's transactional records are not for read-committed readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AbortedRange {
    pub(crate) producer: ProducerId,
    pub(crate) first: Offset,
    /// Offset of the marker: the range still counts for a log that starts before it (TXLOG-25).
    pub(crate) last: Offset,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Transactions {
    /// By first offset. One that begins does so behind all others, and few are open at a time: a row costs no memory of its
    /// own for each.
    open: VecDeque<(Offset, ProducerId)>,
    /// Markers of aborts that the high watermark may not have passed, by first offset; and the other way round.
    unsettled: BTreeMap<Offset, Offset>,
    by_marker: BTreeMap<Offset, Offset>,
}

impl Transactions {
    pub(super) fn begin(&mut self, first: Offset, producer: ProducerId) {
        let is_last = self.open.back().is_none_or(|(last, _)| *last < first);
        assert!(is_last, "an offset is in one batch, and the log grows at its end");
        self.open.push_back((first, producer));
    }

    pub(super) fn end(&mut self, first: Offset, marker: Offset, outcome: Outcome) {
        let at = self.open.binary_search_by_key(&first, |(first, _)| *first);
        self.open.remove(at.expect("only an open transaction ends"));
        if outcome == Outcome::Aborted {
            self.add_unsettled(first, marker);
        }
    }

    pub(super) fn add_unsettled(&mut self, first: Offset, marker: Offset) {
        self.unsettled.insert(first, marker);
        self.by_marker.insert(marker, first);
    }

    #[inline]
    pub(super) fn is_quiet(&self) -> bool {
        self.open.is_empty() && self.unsettled.is_empty()
    }

    /// Forgets what a high watermark that does not fall any more has passed.
    pub(super) fn settle(&mut self, high_watermark: Offset) {
        while let Some(earliest) = self.by_marker.first_entry() {
            if *earliest.key() >= high_watermark {
                break;
            }
            self.unsettled.remove(&earliest.remove());
        }
    }

    /// Below this, everything is decided and cannot be taken back.
    pub(super) fn last_stable(&self, high_watermark: Offset) -> Offset {
        let open = self.open.front().map(|(first, _)| *first);
        // Settled ones are met only if the watermark rose since the last call of `settle`.
        let unsettled = self.unsettled.iter().find(|(_, marker)| **marker >= high_watermark);
        let unsettled = unsettled.map(|(first, _)| *first);
        open.into_iter().chain(unsettled).fold(high_watermark, Offset::min)
    }

    /// By first offset.
    pub(super) fn open(&self) -> impl Iterator<Item = (Offset, ProducerId)> {
        self.open.iter().copied()
    }

    pub(super) fn open_len(&self) -> usize {
        self.open.len()
    }

    /// First offset and marker, by first offset.
    pub(super) fn unsettled(&self) -> impl ExactSizeIterator<Item = (Offset, Offset)> {
        self.unsettled.iter().map(|(first, marker)| (*first, *marker))
    }

    pub(super) fn newest_open(&self) -> Option<Offset> {
        self.open.back().map(|(first, _)| *first)
    }

    /// Whether it comes behind those that are there, by first offset, and ends where none does.
    pub(super) fn can_add_unsettled(&self, first: Offset, marker: Offset) -> bool {
        let comes_behind = self.unsettled.last_key_value().is_none_or(|(last, _)| *last < first);
        comes_behind && !self.by_marker.contains_key(&marker)
    }
}
