//! A workload of appends to logs of which the oldest segments go.

use std::path::Path;

use oncelog::Retention;

use super::Outcome;
use super::bare::{BareLog, Frame};

/// So many bytes, in batches of equal records.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    pub(crate) value_bytes: usize,
    pub(crate) batch: usize,
    pub(crate) segment_bytes: u64,
    /// Files of a log, the growing one included, before the oldest goes.
    pub(crate) segments_kept: u64,
    /// What goes into each log.
    pub(crate) bytes_total: u64,
}

impl Work {
    /// What a batch takes.
    pub(crate) fn frame(&self) -> Frame {
        Frame::new(self.batch, self.value_bytes)
    }

    pub(crate) fn appends(&self) -> u64 {
        self.bytes_total / self.frame().len() as u64
    }

    pub(crate) fn records(&self) -> u64 {
        self.appends() * self.batch as u64
    }

    /// Of a topic.
    pub(crate) fn retention(&self) -> Retention {
        Retention::bytes(self.segment_bytes * (self.segments_kept - 1))
    }

    pub(crate) fn bare_log(&self, directory: &Path) -> Outcome<BareLog> {
        let segment_bytes = usize::try_from(self.segment_bytes)?;
        BareLog::create(directory, segment_bytes, usize::try_from(self.segments_kept)?)
            .map_err(Into::into)
    }
}
