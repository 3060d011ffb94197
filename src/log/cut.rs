//! Where a log parts from its leader's, and how it is cut there.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::error::Error;
use crate::protocol::replication::EpochHistory;
use crate::record::BatchHeader;
use crate::segment::{Segment, log_name, parse_log_name, side_name};
use crate::storage::OpenMode;
use crate::types::{LeaderEpoch, Offset, Timestamp};

use super::marks::Marks;
use super::reader::LogReader;
use super::{Log, Sealed, producers, remove_segment_files};

/// How much of two logs is compared at a time.
const COMPARE_BYTES: usize = 1 << 20;

impl Log {
    /// Cuts what a leader whose log ends at `leader_end` does not have. Returns the new end.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`].
    pub(crate) fn agree(
        &mut self,
        history: &EpochHistory,
        leader_end: Offset,
        now: Timestamp,
    ) -> Result<Offset, Error> {
        self.agree_by(history, leader_end, now, Self::truncate_copy)
    }

    /// Cuts what was appended after the next reign had begun, from a log that may be the next leader's. Returns the new end.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if damage holds the place, [`Error::Io`], [`Error::NoSpace`].
    pub(crate) fn agree_alone(
        &mut self,
        history: &EpochHistory,
        now: Timestamp,
    ) -> Result<Offset, Error> {
        self.agree_by(history, self.end, now, Self::truncate)
    }

    fn agree_by(
        &mut self,
        history: &EpochHistory,
        leader_end: Offset,
        now: Timestamp,
        cut: fn(&mut Self, Offset, Timestamp) -> Result<Offset, Error>,
    ) -> Result<Offset, Error> {
        let start = self.reader.log_start();
        let agreed =
            history.agreed_end(leader_end, self.end, |end| self.batch_before(start, end))?;
        if agreed < start {
            // Cut first, so that what a crash leaves of it lies before the start, where nothing is missing.
            self.truncate_copy(start, now)?;
            self.restart(agreed)?;
        } else {
            cut(self, agreed, now)?;
        }
        Ok(self.end)
    }

    /// Cuts what differs from the leader's log, which ends at `leader_end`: where epochs do not tell. Damage says nothing.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`].
    pub(crate) fn agree_with(
        &mut self,
        leader: &LogReader,
        leader_end: Offset,
        now: Timestamp,
    ) -> Result<(), Error> {
        let mut at = self.reader.log_start().max(leader.log_start());
        let end = self.end.min(leader_end);
        while at < end {
            let own = self.reader.read(at, self.end, COMPARE_BYTES);
            let read = own.and_then(|own| Ok((own, leader.read(at, leader_end, COMPARE_BYTES)?)));
            let same = match read {
                Ok((Some(own), Some(others))) => common_end(&own.bytes, &others.bytes),
                Ok(_) => None,
                Err(Error::Corrupt { offsets, .. }) => Some(offsets.end.max(at.next())),
                Err(error) => return Err(error),
            };
            let Some(same) = same else { break };
            at = same;
        }
        if at < end { self.truncate_copy(at, now).map(|_| ()) } else { Ok(()) }
    }

    /// Begins anew where nothing is left to hold against the leader's log: the last that was here may never have been
    /// acknowledged, and its producer would be known by it. For a replica that may lack or have more than was acknowledged;
    /// the leader tells who wrote before.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn forget_what_is_past(&mut self) -> Result<(), Error> {
        let is_new = self.end == Offset::ZERO;
        if is_new || self.end > self.reader.log_start() { Ok(()) } else { self.restart(self.end) }
    }

    /// Finds out the epoch of the last batch while nobody waits: an election asks for it under the partition's lock.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn learn_last_epoch(&mut self) -> Result<(), Error> {
        self.last_epoch = self.last_epoch()?;
        Ok(())
    }

    /// The epoch of the last batch.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn last_epoch(&self) -> Result<Option<LeaderEpoch>, Error> {
        if self.last_epoch.is_some() {
            return Ok(self.last_epoch);
        }
        let last = self.batch_before(self.reader.log_start(), self.end)?;
        Ok(last.map(|(epoch, _)| epoch))
    }

    /// The epoch and the offsets of the batch before `end`. Damaged ones are passed over: they are the leader's to replace.
    fn batch_before(
        &self,
        start: Offset,
        mut end: Offset,
    ) -> Result<Option<(LeaderEpoch, Range<Offset>)>, Error> {
        while end > start {
            let last = Offset(end.0 - 1);
            match self.reader.read(last, self.end, 1) {
                Ok(fetched) => {
                    let header =
                        fetched.as_ref().and_then(|fetched| BatchHeader::trusted(&fetched.bytes));
                    let offsets = |header: &BatchHeader| header.base_offset..header.end_offset();
                    return Ok(header.map(|header| (header.leader_epoch, offsets(&header))));
                }
                Err(Error::Corrupt { offsets, .. }) => end = offsets.start.min(last),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Cuts the log at `to`, or at the start of the batch that holds it (EPOCH-14). The bytes behind
    /// stay in their file, which readers may have mapped, and the next segment's name says that
    /// they no longer count. Returns the new end.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if damage holds `to`: nothing is cut then. [`Error::Io`], [`Error::NoSpace`]; the log then ends
    /// somewhere between `to` and its old end.
    pub(super) fn truncate(&mut self, to: Offset, now: Timestamp) -> Result<Offset, Error> {
        if to >= self.end {
            return Ok(self.end);
        }
        if let Some(mut active) = self.active.take() {
            assert!(!active.is_in_flight(), "a log is cut while no flush is on its way");
            active.write_out()?;
        }
        let segments = self.reader.segments();
        let mut to = to.max(self.reader.log_start());
        let last = segments.iter().rev().find(|segment| segment.base < to);
        // A batch is cut as a whole.
        self.lower_witness(last.map_or(Ok(to), |last| last.boundary(to).map(|(end, _)| end))?)?;
        for segment in segments.iter().rev() {
            if segment.base >= to {
                self.reader.pop();
                self.sealed.retain(|sealed| !Arc::ptr_eq(&sealed.segment, segment));
                self.remove_files(segment)?;
                self.end = segment.base;
            }
        }
        if let Some(last) = segments.iter().rev().find(|segment| segment.base < to) {
            let (end, position) = last.boundary(to)?;
            to = end;
            let cut = Arc::new(Segment::sealed(self.place.clone(), last.base, end, position));
            cut.assume_last_append(now);
            let name = log_name(last.base);
            let file = self
                .place
                .disk
                .open(&self.place.path(&name), OpenMode::Write)
                .map_err(|error| self.place.io_error(&name, "open", error))?;
            self.sealed.retain(|sealed| !Arc::ptr_eq(&sealed.segment, last));
            // Its batches are flushed like any others; its file is not shortened.
            let segment = Arc::clone(&cut);
            self.sealed.push(Sealed { segment, file, at: now, settled: true });
            self.reader.replace_last(cut);
            let side = self.place.path(&side_name(last.base));
            match self.place.disk.remove(&side) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(self.place.io_error(&side_name(last.base), "remove", error));
                }
                _ => {}
            }
        }
        self.end = to;
        self.last_epoch = None;
        self.flushed_end = self.flushed_end.min(to);
        self.roll(0, 0, now)?;
        self.sync_new()?;
        self.recall_producers(now)?;
        Ok(to)
    }

    /// As [`Log::truncate`], where another has all of it: damage that holds `to` goes with what is behind it, and is copied anew.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`].
    pub(crate) fn truncate_copy(&mut self, to: Offset, now: Timestamp) -> Result<Offset, Error> {
        let start = self.reader.log_start();
        match self.truncate(to, now) {
            Err(Error::Corrupt { offsets, .. }) if offsets.start < start => {
                self.restart(start)?;
                Ok(start)
            }
            Err(Error::Corrupt { offsets, .. }) => self.truncate(offsets.start, now),
            cut => cut,
        }
    }

    /// Gives up everything, and goes on at `start`: the leader has nothing before it (REPL-19).
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn restart(&mut self, start: Offset) -> Result<(), Error> {
        self.begin_at(start)?;
        let snapshots = self.producers.restart(start);
        producers::remove_snapshots(&self.place, &snapshots)?;
        // Who wrote in what comes back by a power loss would be taken to have written here.
        self.sync_removed()
    }

    pub(super) fn begin_at(&mut self, start: Offset) -> Result<(), Error> {
        self.lower_witness(start)?;
        self.let_go();
        // Also those that were made for nothing: the name of one says where the segment before it ends.
        let entries = match self.place.disk.list(&self.place.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            listed => listed.map_err(|error| self.place.io_error("", "list", error))?,
        };
        let mut bases: Vec<_> =
            entries.iter().filter_map(|entry| parse_log_name(&entry.name)).collect();
        bases.sort_unstable();
        // The oldest first: what was cut from a file is there again where the next one's name is gone.
        let last = bases.pop();
        for base in &bases {
            remove_segment_files(&self.place, *base)?;
        }
        if !bases.is_empty() {
            self.sync_removed()?;
        }
        if let Some(last) = last {
            remove_segment_files(&self.place, last)?;
        }
        self.reader.raise_log_start(start);
        (self.end, self.flushed_end) = (start, start);
        self.last_epoch = None;
        Ok(())
    }

    fn sync_removed(&self) -> Result<(), Error> {
        match self.place.disk.sync_dir(&self.place.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.place.io_error("", "sync", error))
            }
            _ => Ok(()),
        }
    }

    fn lower_witness(&self, end: Offset) -> Result<(), Error> {
        let lowered = Marks::lower(&self.place, end);
        lowered.map_err(|error| self.place.io_error("marks", "write", error))?;
        self.witness.as_ref().map_or(Ok(()), |witness| witness.lower(end))
    }

    /// Removes the files of a segment that is in no list any more. Readers keep what they hold.
    ///
    /// # Errors
    /// [`Error::Io`]; a file that is gone already is none.
    fn remove_files(&self, segment: &Segment) -> Result<(), Error> {
        remove_segment_files(&self.place, segment.base)
    }
}

/// Where the batches end that two logs begin with alike; `None`: the first differ.
fn common_end(mut own: &[u8], mut others: &[u8]) -> Option<Offset> {
    let mut end = None;
    while let Some(header) = BatchHeader::trusted(own) {
        let (batch, rest) = own.split_at(header.len());
        let Some(rest_of_others) = others.strip_prefix(batch) else { break };
        (own, others, end) = (rest, rest_of_others, Some(header.end_offset()));
    }
    end
}
