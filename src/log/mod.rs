//! One replica's log: a row of segments, the last of which grows.
//!
//! [`Log`] is the writer's side and belongs to whoever holds the partition's lock. [`LogReader`] is
//! shared: it finds the segment and reads it, while the log grows, rolls and loses its oldest
//! segments. What a segment's end should be is told by the next one's name, so a lost or replaced
//! file is noticed as a hole and reported with its offsets.
//!
//! Leaves to others: who is acknowledged when (`partition`), when background work is due (`store`).
//!
//! Invariants:
//! 1. Segments ascend without overlap, `segments[i].end() <= segments[i + 1].base`.
//! 2. At most the last segment is active. It may be absent: the next append makes it.
//! 3. `flushed_end <= end`; every byte of a batch below `flushed_end` is on stable storage.

mod authors;
mod cut;
mod marks;
mod producers;
mod quarantine;
mod reader;
mod records;
mod recovery;
mod repair;
mod roll;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::record::{self, Batch, BatchHeader, Draft, MARKER_ABORT};
use crate::segment::{
    ActiveSegment, Place, Room, Segment, Staged, WriteHow, aborted_by, log_name, side_name,
};
use crate::storage::File;
use crate::types::{LeaderEpoch, Offset, ProducerId, Timestamp};

pub(crate) use marks::{Marks, MarksView};
use producers::Producers;
pub(crate) use producers::{ProducerSnapshot, decided_end};
pub(crate) use reader::LogReader;
pub(crate) use records::Part;
pub use records::{Iter, Records};
pub(crate) use recovery::{Evidence, Loss, Recovered};
pub(crate) use repair::Repair;
pub(crate) use roll::{MoreRoom, NextSegment};

/// How far a background pass works ahead of the appender.
const AHEAD_BYTES: u64 = 4 << 20;

/// What the topic and the store say about a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogSettings {
    pub(crate) segment_bytes: u64,
    pub(crate) segment_age: Duration,
    pub(crate) index_interval: u32,
    pub(crate) how: WriteHow,
    /// Bytes of the active segment after which a side file vouches for it anew.
    pub(crate) checkpoint_bytes: u64,
}

/// A sealed segment whose side file is still to be written.
#[derive(Clone, Debug)]
pub(crate) struct Sealed {
    pub(crate) segment: Arc<Segment>,
    pub(crate) file: Arc<dyn File>,
    pub(crate) at: Timestamp,
    /// Its side file vouches for it in this run of the machine; a flush is still to come.
    pub(crate) settled: bool,
}

/// What one flush has to do so that everything below `end` is on stable storage.
#[derive(Debug)]
pub(crate) struct FlushPlan {
    files: Vec<Arc<dyn File>>,
    active: Option<Staged>,
    sync_directory: bool,
    place: Place,
    /// The log that it is of: while the flush is on its way, the log may change hands.
    log: Arc<LogReader>,
    /// What was on stable storage before.
    pub(crate) durable: Offset,
    pub(crate) end: Offset,
}

impl FlushPlan {
    /// Whether it is a flush of `log`.
    pub(crate) fn is_of(&self, log: &Log) -> bool {
        Arc::ptr_eq(&self.log, &log.reader)
    }

    /// Does it. Takes no lock: appends go on meanwhile.
    ///
    /// # Errors
    /// [`Error::Io`]; what reached the disk is then unknown and must not be asked for again
    /// (RELIABILITY fact 2).
    pub(crate) fn run(&self) -> Result<(), Error> {
        let fault = |error: io::Error| Error::Io {
            path: self.place.full_path(""),
            action: "flush",
            written: crate::error::Written::Unknown,
            source: Arc::new(error),
        };
        for file in &self.files {
            file.sync_data().map_err(fault)?;
        }
        if let Some(staged) = &self.active {
            staged.write().map_err(fault)?;
        }
        if self.sync_directory {
            let plain = || self.place.disk.sync_dir(&self.place.directory);
            let active = self.active.as_ref();
            active.map_or_else(plain, |a| a.sync_directory(&self.place)).map_err(fault)?;
        }
        Ok(())
    }
}

/// Who vouches that a log reached as far as it did.
pub(crate) trait Witness: std::fmt::Debug + Send + Sync {
    /// The log is about to be cut to `end`: from now on, also after a crash, no more than that is missed.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`].
    fn lower(&self, end: Offset) -> Result<(), Error>;
}

/// The writer's side of one replica's log.
#[derive(Debug)]
pub(crate) struct Log {
    reader: Arc<LogReader>,
    place: Place,
    settings: LogSettings,
    epoch: LeaderEpoch,
    /// That of the last batch, if it is known without a call to the disk.
    last_epoch: Option<LeaderEpoch>,
    active: Option<ActiveSegment>,
    end: Offset,
    flushed_end: Offset,
    /// A flush is on its way, or failed.
    is_flushing: bool,
    /// Sealed segments that are not on stable storage, or have no final side file.
    sealed: Vec<Sealed>,
    directory_unsynced: bool,
    /// The position of the active segment at which the worker should look at this log.
    attention_at: u64,
    /// As of its last append.
    is_aging: bool,
    checkpointed: u64,
    producers: Producers,
    /// The next segment is being made (`roll.rs`).
    rolls: bool,
    /// Calls to the disk are made apart from appends: another replica may take over from a disk that hangs.
    apart: bool,
    witness: Option<Arc<dyn Witness>>,
}

impl Log {
    /// The shared side.
    pub(crate) fn reader(&self) -> &Arc<LogReader> {
        &self.reader
    }

    /// One past the last offset.
    #[inline]
    pub(crate) fn end(&self) -> Offset {
        self.end
    }

    /// Everything below is in the files; what lies behind waits in memory for a flush.
    #[inline]
    pub(crate) fn written_end(&self) -> Offset {
        self.active.as_ref().map_or(self.end, |active| active.segment().end())
    }

    /// The file that is appended to.
    pub(crate) fn active_file(&self) -> Option<&Arc<dyn File>> {
        self.active.as_ref().map(ActiveSegment::file)
    }

    /// Everything below is on stable storage.
    pub(crate) fn flushed_end(&self) -> Offset {
        self.flushed_end
    }

    /// Takes over a changed topic.
    ///
    /// # Errors
    /// [`Error::Io`] when what waited in memory cannot be written: the caller fences the replica.
    pub(crate) fn set_settings(&mut self, settings: LogSettings) -> Result<(), Error> {
        self.settings = settings;
        if let Some(active) = &mut self.active {
            // What may go on waiting does: the caller has a lock that no call to a disk is to hold, for it may hang.
            if !settings.how.is_staged() {
                active.write_all_out()?;
            }
            active.set_how(settings.how);
        }
        Ok(())
    }

    /// Somebody vouches for the log, who is to be told before it is cut.
    pub(crate) fn set_witness(&mut self, witness: Arc<dyn Witness>) {
        self.witness = Some(witness);
    }

    /// From now on calls to the disk are made apart from appends, or need not be.
    pub(crate) fn set_apart(&mut self, apart: bool) {
        self.apart = apart;
        if let Some(active) = &mut self.active {
            active.set_apart(apart);
        }
    }

    /// Whether an append of that many bytes has to wait for a flush: it begins a new segment, and one is sealed only
    /// once all of it is in its file; or as much waits in memory as may.
    #[inline]
    pub(crate) fn waits_for_landing(&self, records: u32, bytes: usize) -> bool {
        self.active.as_ref().is_some_and(|active| {
            !active.has_landed()
                && (!active.has_room_for(bytes, self.end.plus(records.into()))
                    || active.stage_is_full_for(bytes))
        })
    }

    /// Whether a batch of that many bytes can be put in place at once: it belongs into the active segment, and there is
    /// space for it.
    #[inline]
    pub(crate) fn is_ready_for(&self, records: u32, bytes: usize, now: Timestamp) -> bool {
        let end = self.end.plus(records.into());
        self.active.as_ref().is_some_and(|active| {
            active.has_room_for(bytes, end) && active.has_space_for(bytes, now)
        })
    }

    /// Whether the active segment has space for that many bytes.
    #[inline]
    pub(crate) fn has_space_for(&self, bytes: usize, now: Timestamp) -> bool {
        self.active.as_ref().is_some_and(|active| active.has_space_for(bytes, now))
    }

    /// Appends one batch: seals it at the end of the log and puts it in place.
    ///
    /// # Errors
    /// [`Error::NoSpace`] and passing errors: nothing was written, appends may go on. Anything else
    /// from the disk: the caller fences the replica.
    #[inline(always)]
    pub(crate) fn append(&mut self, draft: &mut Draft, now: Timestamp) -> Result<(), Error> {
        let base = self.end;
        let records = draft.header().record_count;
        let end = base.plus(records.into());
        if !self.active.as_ref().is_some_and(|active| active.has_room_for(draft.len(), end)) {
            self.roll(records, draft.len(), now)?;
        }
        let place = record::Place {
            seed: self.place.identity.seed,
            base_offset: base,
            leader_epoch: self.epoch,
            durable_end: self.flushed_end,
        };
        draft.seal(&place);
        let active = self.active.as_mut().expect("the roll above made one");
        active.append(draft.bytes(), draft.header(), now)?;
        self.end = end;
        self.last_epoch = Some(self.epoch);
        self.note_producer(draft.bytes(), draft.header(), now);
        Ok(())
    }

    /// Puts a batch that the leader sealed behind the last one, as it is (REPL-18).
    ///
    /// # Errors
    /// As for [`Log::append`].
    #[inline]
    pub(crate) fn append_sealed(
        &mut self,
        bytes: &[u8],
        header: &BatchHeader,
        now: Timestamp,
    ) -> Result<(), Error> {
        assert_eq!(header.base_offset, self.end, "a follower goes on where it ends (LOG-18)");
        let end = header.end_offset();
        if !self.active.as_ref().is_some_and(|active| active.has_room_for(bytes.len(), end)) {
            self.roll(0, bytes.len(), now)?;
        }
        let active = self.active.as_mut().expect("the roll above made one");
        active.append(bytes, header, now)?;
        self.end = end;
        self.last_epoch = Some(header.leader_epoch);
        self.note_producer(bytes, header, now);
        Ok(())
    }

    /// Keeps in mind whose batch it was.
    #[inline(always)]
    fn note_producer(&mut self, bytes: &[u8], header: &BatchHeader, now: Timestamp) {
        if header.producer_id == ProducerId(0) {
            self.producers.pass(header);
            return;
        }
        self.producers.on_appended(header, now);
        let segment = self.active.as_ref().expect("it was appended to just now").segment();
        segment.set_producers(true);
        if header.control
            && header.base_sequence == MARKER_ABORT
            && let Some(range) = Batch::trusted(bytes).and_then(|batch| aborted_by(&batch))
        {
            segment.push_aborted(range);
        }
    }

    /// Whether a batch of the leader's can be appended now, without a call to the disk.
    #[inline]
    pub(crate) fn takes_inline(&self, bytes: usize, header: &BatchHeader, now: Timestamp) -> bool {
        header.base_offset == self.end
            && !self.producers.lacks_past()
            && self.active.as_ref().is_some_and(|active| {
                active.has_room_for(bytes, header.end_offset()) && active.is_ready_for(bytes, now)
            })
    }

    /// Whether a batch of the leader's has to wait for the flush that is on its way.
    pub(crate) fn sealed_waits_for_landing(&self, bytes: usize, header: &BatchHeader) -> bool {
        self.active.as_ref().is_some_and(|active| {
            active.is_in_flight() && !active.has_room_for(bytes, header.end_offset())
        })
    }

    /// The batches that are in memory only, in two rows.
    pub(crate) fn unwritten(&self) -> [&[u8]; 2] {
        self.active.as_ref().map_or([&[], &[]], ActiveSegment::unwritten)
    }

    /// The reign under which batches are sealed from now on.
    pub(crate) fn set_epoch(&mut self, epoch: LeaderEpoch) {
        self.epoch = epoch;
        self.producers.on_leading();
    }

    /// Takes whole batches of the leader's, as they are, from where this log ends. False: it has to wait for its own
    /// flush first.
    ///
    /// # Errors
    /// As for [`Log::append`].
    pub(crate) fn append_batches(
        &mut self,
        mut bytes: &[u8],
        now: Timestamp,
    ) -> Result<bool, Error> {
        while let Some(header) = BatchHeader::trusted(bytes) {
            let (batch, rest) = bytes.split_at(header.len());
            let from_here = std::mem::replace(&mut bytes, rest);
            if header.end_offset() <= self.end {
                continue;
            }
            if self.rolls {
                return Ok(false);
            }
            let is_past = self.reader.holds_nothing() || self.end <= self.reader.log_start();
            if is_past && header.base_offset != self.end {
                // The leader's log starts inside a batch (LOG-19), and what is here lies before that start. What was told of
                // its producers stays known.
                if self.producers.counts_in(header.end_offset()) {
                    self.begin_at(header.base_offset)?;
                } else {
                    self.restart(header.base_offset)?;
                }
            }
            if self.sealed_waits_for_landing(batch.len(), &header) {
                return Ok(false);
            }
            match self.next_run(from_here, now) {
                Some(run) => {
                    self.append_run(run, now)?;
                    bytes = &from_here[run.len()..];
                }
                None => self.append_sealed(batch, &header, now)?,
            }
        }
        Ok(true)
    }

    /// As many of the leader's batches as go into the segment together, if writing them at once pays.
    fn next_run<'a>(&self, bytes: &'a [u8], now: Timestamp) -> Option<&'a [u8]> {
        let active = self.active.as_ref().filter(|active| active.writes_run(bytes.len(), now))?;
        let (mut end, mut len) = (self.end, 0);
        while let Some(header) = BatchHeader::trusted(&bytes[len..]) {
            let fits = active.has_room_for(len + header.len(), header.end_offset());
            if header.base_offset != end || !fits {
                break;
            }
            end = header.end_offset();
            len += header.len();
        }
        active.writes_run(len, now).then(|| &bytes[..len])
    }

    fn append_run(&mut self, mut bytes: &[u8], now: Timestamp) -> Result<(), Error> {
        let active = self.active.as_mut().expect("a run goes into a segment");
        active.append_run(bytes, now)?;
        while let Some(header) = BatchHeader::trusted(bytes) {
            let (batch, rest) = bytes.split_at(header.len());
            self.end = header.end_offset();
            self.last_epoch = Some(header.leader_epoch);
            self.note_producer(batch, &header, now);
            bytes = rest;
        }
        Ok(())
    }

    /// Goes on at `to`: what is between has no replica any more. That it was there stays proven, so that no
    /// recovery takes the gap for a torn tail. False: it has to wait for the flush that is on its way.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`].
    pub(crate) fn pass_over(&mut self, to: Offset, now: Timestamp) -> Result<bool, Error> {
        assert!(to > self.end, "a log goes on behind its end");
        if self.is_flushing {
            return Ok(false);
        }
        self.seal(now)?;
        // The proof vouches for what is before the gap as well.
        if let Some(plan) = self.flush_plan() {
            plan.run()?;
            self.on_flushed(plan);
        }
        let before = std::mem::replace(&mut self.end, to);
        if let Err(error) = self.roll(0, 0, now) {
            self.end = before;
            return Err(error);
        }
        self.sync_new()?;
        let active = self.active.as_ref().expect("the roll made one").segment();
        let place = &self.place;
        active.write_side_file(active.head(place.disk.boot_id(), true))?;
        Ok(true)
    }

    /// Makes the new segment durable, and then its name: a name without a header would be damage.
    fn sync_new(&self) -> Result<(), Error> {
        let file = self.active.as_ref().map(ActiveSegment::file);
        file.map_or(Ok(()), |file| file.sync_data())
            .and_then(|()| self.place.disk.sync_dir(&self.place.directory))
            .map_err(|error| self.place.io_error("", "sync", error))
    }

    /// Whether the worker should look at this log: pages, or a checkpoint, are due. Says so once.
    #[inline]
    pub(crate) fn wants_attention(&mut self, now: Timestamp) -> bool {
        let Some(active) = &self.active else { return false };
        let (position, was_aging) = (active.position(), self.is_aging);
        self.is_aging = active.room().is_aging(now);
        if position < self.attention_at && (was_aging || !self.is_aging) {
            return false;
        }
        self.attention_at = position + AHEAD_BYTES / 2;
        true
    }

    /// Ends the active segment, if there is one with records.
    fn seal_active(&mut self, now: Timestamp) {
        let Some(active) = self.active.take() else {
            return;
        };
        let segment = Arc::clone(active.segment());
        segment.set_decided(self.producers.decided(self.end));
        let file = Arc::clone(active.file());
        self.sealed.push(Sealed { segment, file, at: now, settled: false });
    }

    /// Seals the active segment if it is older than the topic's `segment_age` (SEG-01, by the clock), or was begun for
    /// another flush level: until it ends, each flush would write whole folios of it, or each append be a call.
    ///
    /// # Errors
    /// [`Error::Io`] when what waited in memory cannot be written.
    pub(crate) fn roll_if_due(&mut self, now: Timestamp) -> Result<bool, Error> {
        let LogSettings { segment_age, how, .. } = self.settings;
        let due = self.active.as_ref().is_some_and(|active| {
            !active.segment().is_empty()
                && !self.rolls
                && active.has_landed()
                && (now.since(active.created()) >= segment_age || !active.suits(how))
        });
        if due {
            self.seal(now)?;
        }
        Ok(due)
    }

    /// Seals the active segment now, so that retention can take it (RET-09).
    ///
    /// # Errors
    /// As for an append.
    pub(crate) fn roll_now(&mut self, now: Timestamp) -> Result<(), Error> {
        match &self.active {
            Some(active) if !active.segment().is_empty() && active.has_landed() && !self.rolls => {
                self.seal(now)
            }
            _ => Ok(()),
        }
    }

    /// Ends the active segment without a new one, for which there may be no room: the next append makes it.
    fn seal(&mut self, now: Timestamp) -> Result<(), Error> {
        if let Some(active) = &mut self.active {
            active.write_out()?;
        }
        self.seal_active(now);
        Ok(())
    }

    /// What has to be flushed; `None` if everything is, or a flush is on its way: a second one would find nothing left of
    /// what that is still to write, and say that all is flushed.
    pub(crate) fn flush_plan(&mut self) -> Option<FlushPlan> {
        let all_is_flushed = self.flushed_end >= self.end && !self.directory_unsynced;
        if all_is_flushed || self.is_flushing {
            return None;
        }
        self.is_flushing = true;
        let files: Vec<_> = self
            .sealed
            .iter()
            .filter(|sealed| sealed.segment.end() > self.flushed_end)
            .map(|sealed| Arc::clone(&sealed.file))
            .collect();
        Some(FlushPlan {
            files,
            active: self.active.as_mut().map(ActiveSegment::take_staged),
            sync_directory: self.directory_unsynced,
            place: self.place.clone(),
            log: Arc::clone(&self.reader),
            durable: self.flushed_end,
            end: self.end,
        })
    }

    /// Whether a flush is on its way that is not known to have ended.
    pub(crate) fn is_flushing(&self) -> bool {
        self.is_flushing
    }

    /// Takes note of a flush that succeeded.
    pub(crate) fn on_flushed(&mut self, plan: FlushPlan) {
        self.is_flushing = false;
        if let (Some(active), Some(staged)) = (&mut self.active, plan.active) {
            active.landed(staged);
        }
        self.flushed_end = self.flushed_end.max(plan.end);
        // A roll during the flush made a name that the flush may not have covered.
        let rolled = self.active.as_ref().is_some_and(|active| active.segment().base >= plan.end);
        if plan.sync_directory && !rolled {
            self.directory_unsynced = false;
        }
    }

    /// The stages of the active segment's space, and where its batches end.
    pub(crate) fn room(&self) -> Option<(Arc<Room>, u64)> {
        self.active.as_ref().map(|active| (Arc::clone(active.room()), active.position()))
    }

    /// Sealed segments that wait for their side file.
    pub(crate) fn sealed(&self) -> &[Sealed] {
        &self.sealed
    }

    /// Takes note that a side file vouches for `segment`; `durable`: for good.
    pub(crate) fn on_settled(&mut self, segment: &Arc<Segment>, durable: bool) {
        if durable {
            self.sealed.retain(|sealed| !Arc::ptr_eq(&sealed.segment, segment));
        } else if let Some(sealed) =
            self.sealed.iter_mut().find(|sealed| Arc::ptr_eq(&sealed.segment, segment))
        {
            sealed.settled = true;
        }
    }

    /// The active segment, if its side file should vouch for it anew; `force` for any new batch.
    pub(crate) fn checkpoint_due(&self, force: bool) -> Option<Arc<Segment>> {
        let active = self.active.as_ref()?;
        let grown =
            active.position().saturating_sub(self.checkpointed.max(crate::segment::DATA_START));
        let due = grown >= self.settings.checkpoint_bytes || (force && grown > 0);
        due.then(|| Arc::clone(active.segment()))
    }

    /// Takes note that a side file vouches for `position` bytes of the segment that begins at `base`.
    pub(crate) fn on_checkpointed(&mut self, base: Offset, position: u64) {
        if self.active.as_ref().is_some_and(|active| active.segment().base == base) {
            self.checkpointed = self.checkpointed.max(position);
        }
    }

    /// Raises the log's start to `start` and returns the segments that hold nothing any more.
    pub(crate) fn raise_log_start(&mut self, start: Offset) -> Vec<Arc<Segment>> {
        let gone = self.reader.raise_log_start(start.min(self.end));
        self.sealed
            .retain(|sealed| !gone.iter().any(|segment| Arc::ptr_eq(segment, &sealed.segment)));
        gone
    }

    /// Seals what is active and gives up the space allocated ahead. For a clean stop.
    pub(crate) fn finish(&mut self, now: Timestamp) {
        self.seal_active(now);
    }

    /// Closes all files: they are about to be removed. What readers hold stays readable.
    pub(crate) fn let_go(&mut self) {
        self.active = None;
        self.sealed.clear();
        self.reader.clear();
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }
}

/// Removes the data file and the side file of a segment.
///
/// # Errors
/// [`Error::Io`]; a file that is gone already is none.
pub(crate) fn remove_segment_files(place: &Place, base: Offset) -> Result<(), Error> {
    for name in [side_name(base), log_name(base)] {
        match place.disk.remove(&place.path(&name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(place.io_error(&name, "remove", error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Writes the side file of a sealed segment: for good after a flush (`durable`), or for this run of
/// the machine. Gives up the space behind the last batch.
///
/// # Errors
/// [`Error::NoSpace`], [`Error::Io`]; a failed flush is told apart by [`SettleError::Flush`].
pub(crate) fn settle(sealed: &Sealed, durable: bool) -> Result<(), SettleError> {
    let segment = &sealed.segment;
    let place = &segment.place;
    let name = log_name(segment.base);
    if !sealed.settled {
        sealed
            .file
            .set_len(segment.position())
            .map_err(|error| SettleError::Other(place.io_error(&name, "trim", error)))?;
    }
    if durable {
        sealed
            .file
            .sync_data()
            .map_err(|error| SettleError::Flush(place.io_error(&name, "flush", error)))?;
    }
    // A segment that was settled before this opening has its index in its side file.
    if sealed.settled {
        let index = segment.load_index().map_err(SettleError::Other)?;
        if index.unknown_from.is_some() {
            return Ok(()); // a side file would speak for what could not be looked at
        }
    }
    let head = segment.head(place.disk.boot_id(), durable);
    segment.write_side_file(head).map_err(SettleError::Other)?;
    if !sealed.settled {
        segment.settle(Arc::clone(&sealed.file));
    }
    Ok(())
}

/// Why a segment could not be settled.
#[derive(Debug)]
pub(crate) enum SettleError {
    /// The flush failed: the replica must be fenced.
    Flush(Error),
    /// Anything else: the next attempt may do better.
    Other(Error),
}

impl SettleError {
    /// What went wrong.
    pub(crate) fn into_error(self) -> Error {
        let (Self::Flush(error) | Self::Other(error)) = self;
        error
    }
}

#[cfg(test)]
mod tests;
