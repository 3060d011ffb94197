//! How far a partition's log reaches, and how far it may be read.
//!
//! Takes what the log and its flusher report; yields the high watermark. With one replica the
//! watermark is that replica's acknowledged end: its flushed end when an acknowledgement waits for
//! the flush, else its written end (DESIGN.md section 11).
//!
//! Invariants (INV-01, INV-04):
//! 1. `log_start <= last_stable <= high_watermark <= log_end`, and `flushed <= log_end`.
//! 2. The high watermark only rises.

use crate::types::{Flush, Offset};

/// The five offsets of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Watermarks {
    log_start: Offset,
    high_watermark: Offset,
    log_end: Offset,
    flushed: Offset,
}

impl Watermarks {
    /// A log as recovery left it: all of it may be read.
    pub(crate) fn recovered(log_start: Offset, log_end: Offset, flushed: Offset) -> Self {
        let log_start = log_start.min(log_end);
        let marks =
            Self { log_start, high_watermark: log_end, log_end, flushed: flushed.min(log_end) };
        marks.check();
        marks
    }

    pub(crate) fn log_start(&self) -> Offset {
        self.log_start
    }

    pub(crate) fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    /// Everything below is decided; without transactions, that is the high watermark.
    pub(crate) fn last_stable(&self) -> Offset {
        self.high_watermark
    }

    pub(crate) fn log_end(&self) -> Offset {
        self.log_end
    }

    pub(crate) fn flushed(&self) -> Offset {
        self.flushed
    }

    /// The log grew to `end`.
    #[inline]
    pub(crate) fn on_appended(&mut self, end: Offset, flush: Flush) {
        assert!(end >= self.log_end, "a log does not shrink by an append");
        self.log_end = end;
        self.advance(flush);
    }

    /// Everything below `end` is on stable storage.
    pub(crate) fn on_flushed(&mut self, end: Offset, flush: Flush) {
        assert!(end <= self.log_end, "nothing is flushed that was not written");
        self.flushed = self.flushed.max(end);
        self.advance(flush);
    }

    /// Records below `start` are gone.
    pub(crate) fn on_log_start(&mut self, start: Offset) {
        self.log_start = self.log_start.max(start.min(self.high_watermark));
        self.check();
    }

    #[inline]
    fn advance(&mut self, flush: Flush) {
        let acknowledged = if flush == Flush::OnAck { self.flushed } else { self.log_end };
        self.high_watermark = self.high_watermark.max(acknowledged);
        self.check();
    }

    #[inline]
    fn check(&self) {
        assert!(self.log_start <= self.high_watermark, "the log starts behind its watermark");
        assert!(self.high_watermark <= self.log_end, "the watermark is behind the end of the log");
        assert!(self.flushed <= self.log_end, "more is flushed than was written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_on_ack_the_watermark_moves_over_flushed_records_only() {
        let mut marks = Watermarks::recovered(Offset(0), Offset(3), Offset(3));
        marks.on_appended(Offset(9), Flush::OnAck);
        assert_eq!(marks.high_watermark(), Offset(3));
        marks.on_flushed(Offset(7), Flush::OnAck);
        assert_eq!(marks.high_watermark(), Offset(7));
    }

    #[test]
    fn without_it_the_watermark_is_the_end_of_the_log() {
        for flush in [Flush::Os, Flush::Interval(std::time::Duration::from_secs(1))] {
            let mut marks = Watermarks::recovered(Offset(0), Offset(0), Offset(0));
            marks.on_appended(Offset(9), flush);
            assert_eq!(marks.high_watermark(), Offset(9));
        }
    }

    #[test]
    fn the_watermark_never_falls_when_the_flush_level_gets_stricter() {
        let mut marks = Watermarks::recovered(Offset(0), Offset(0), Offset(0));
        marks.on_appended(Offset(5), Flush::Os);
        marks.on_appended(Offset(6), Flush::OnAck);
        assert_eq!(marks.high_watermark(), Offset(5), "INV-04");
    }
}
