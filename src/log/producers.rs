//! The memory of a log's producers: kept with each append, written down now and then, found again at an open.
//!
//! A snapshot, `<end>.producers`, vouches for everything below `end`; an open takes the newest one that belongs to
//! this log and walks over the headers behind it. Two are kept, so that a damaged one costs a longer walk and no
//! knowledge. Records are not deleted before a snapshot remembers who wrote them.
//!
//! A log without producers has no snapshots, and its appends pay one comparison.

use std::io;
use std::ops::Range;

use crate::error::Error;
use crate::protocol::producer_state::batch::{BatchFacts, Proposal};
use crate::protocol::producer_state::snapshot::snapshot_bytes_max;
use crate::protocol::producer_state::states::{PRODUCERS_MAX, ProducerStates, ProducerView};
use crate::protocol::producer_state::transactions::OpenTransaction;
use crate::protocol::producer_state::verdict::{Refusal, Verdict};
use crate::protocol::replication::EpochHistory;
use crate::record::BatchHeader;
use crate::segment::Place;
use crate::storage::{read_small, replace_file};
use crate::types::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, ProducerSequence, Timestamp};

use super::LogReader;
use super::reader::is_damage;

const SUFFIX: &str = ".producers";
/// Snapshots that are kept.
const KEPT: usize = 2;
/// Bytes appended by producers after which a new snapshot is due, if it is a small one: an open walks over the headers
/// behind the last.
const DUE_BYTES: u64 = 64 << 20;
/// A large one is due after so many times its own bytes: of 100,000 producers, once in some 100 MB.
const DUE_FACTOR: u64 = 16;
/// Ages are looked at so many times within the age: that is a walk over all of them.
const LOOKS_PER_AGE: u32 = 64;
const SNAPSHOT_BYTES_MAX: usize = snapshot_bytes_max(PRODUCERS_MAX, 1 << 20);

/// What a log knows of its producers.
#[derive(Debug)]
pub(super) struct Producers {
    states: ProducerStates,
    /// End of the newest snapshot on the disk.
    written_end: Offset,
    /// Ends of the snapshots that are on the disk, ascending.
    on_disk: Vec<Offset>,
    /// Those of snapshots that tell of a past which is not this log's. They are to go: once the log begins behind such an
    /// end, nothing shows any more that it never was like that.
    foreign: Vec<Offset>,
    /// Bytes of batches since then.
    unwritten_bytes: u64,
    /// Those of the newest snapshot.
    snapshot_bytes: u64,
    /// When ages were last looked at.
    expired_at: Timestamp,
    /// Where the log ended then, or when it was opened, and when that was.
    looked_at: (Offset, Timestamp),
    /// Records are deleted or damaged, and who wrote them is not known here: see [`Producers::adopt`].
    lacks_past: bool,
}

/// What an opening finds of a log's producers.
#[derive(Debug)]
pub(super) struct Recalled {
    pub(super) producers: Producers,
    /// Below it, nothing is known of who wrote.
    pub(super) unknown: Option<Offset>,
    /// Who wrote these is not known either: they cannot be read.
    pub(super) damaged: Vec<Range<Offset>>,
    /// To be written down before the files of what is deleted go.
    pub(super) before: Option<ProducerSnapshot>,
}

/// A snapshot on its way to the disk.
#[derive(Debug)]
pub(crate) struct ProducerSnapshot {
    place: Place,
    end: Offset,
    bytes: Vec<u8>,
}

impl ProducerSnapshot {
    /// Writes it and makes it durable. Takes no lock.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub(crate) fn write(&self) -> Result<(), Error> {
        let name = snapshot_name(self.end);
        replace_file(&*self.place.disk, &self.place.path(&name), &self.bytes)
            .map_err(|error| self.place.io_error(&name, "write", error))
    }
}

impl Producers {
    /// Those of a log that goes on at `end` and has none.
    pub(super) fn none(end: Offset) -> Self {
        Self {
            states: ProducerStates::new(end, PRODUCERS_MAX),
            written_end: end,
            on_disk: Vec::new(),
            foreign: Vec::new(),
            unwritten_bytes: 0,
            snapshot_bytes: 0,
            expired_at: Timestamp::MIN,
            looked_at: (end, Timestamp::MIN),
            lacks_past: false,
        }
    }

    /// Finds them again: from the newest snapshot among `snapshots` that belongs to the log, and the batches behind
    /// it, also those that are deleted and still there.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn recover(
        place: &Place,
        reader: &LogReader,
        mut snapshots: Vec<Offset>,
        end: Offset,
        now: Timestamp,
    ) -> Result<Recalled, Error> {
        snapshots.sort_unstable();
        let start = reader.log_start();
        let were_some = !snapshots.is_empty();
        // What a power loss, or a cut, left of the log is less than these tell of.
        let mut foreign: Vec<_> = snapshots.extract_if(.., |at| *at > end).collect();
        let mut found = None;
        for at in snapshots.iter().rev() {
            let Some(states) = read_snapshot(place, *at) else { continue };
            if belongs(&states, reader, end)? {
                found = Some(states);
                break;
            }
            foreign.push(*at);
        }
        snapshots.retain(|at| !foreign.contains(at));
        let reaches = found.as_ref().is_some_and(|states: &ProducerStates| states.end() >= start);
        let told = if reaches { None } else { Self::of_deleted(found.as_ref(), reader, now)? };
        let unknown = !reaches && told.is_none() && were_some && start > Offset::ZERO;
        let mut producers = Self::none(start);
        let mut before = None;
        if let Some(told) = told {
            producers = told;
            before = (!producers.is_empty()).then(|| producers.take_snapshot(place));
        } else if let Some(states) = found {
            producers.written_end = states.end();
            producers.states = states;
            producers.lacks_past = !reaches && start > Offset::ZERO;
        } else {
            producers.lacks_past = start > Offset::ZERO;
        }
        (producers.on_disk, producers.foreign) = (snapshots, foreign);
        let from = producers.states.end();
        let damaged = reader.producer_headers(from, end, |header| producers.take(header, now))?;
        producers.looked_at = (end, now);
        Ok(Recalled { producers, unknown: unknown.then_some(start), damaged, before })
    }

    /// Those of what lies before the log's start, from where `known` ends: a crash came before its files were removed, and
    /// perhaps before it was written down who wrote it. `None`: some of it is gone.
    fn of_deleted(
        known: Option<&ProducerStates>,
        reader: &LogReader,
        now: Timestamp,
    ) -> Result<Option<Self>, Error> {
        let start = reader.log_start();
        let mut producers = Self::none(Offset::ZERO);
        if let Some(states) = known {
            producers.states = states.clone();
        }
        let (from, mut whole) = (producers.states.end(), true);
        reader.headers_between(from, start, |header| {
            whole &= header.base_offset == producers.states.end();
            producers.take(header, now);
        })?;
        Ok((whole && producers.states.end() >= start).then_some(producers))
    }

    /// Takes in a batch, whoever's it is.
    fn take(&mut self, header: &BatchHeader, now: Timestamp) {
        if header.producer_id == ProducerId(0) {
            self.pass(header);
        } else {
            self.on_appended(header, now);
        }
    }

    /// Takes in a batch of nobody that the log now has.
    #[inline]
    pub(super) fn pass(&mut self, header: &BatchHeader) {
        self.states.pass(header.end_offset(), header.leader_epoch);
    }

    /// Takes in a batch that the log now has.
    #[inline(always)]
    pub(super) fn on_appended(&mut self, header: &BatchHeader, now: Timestamp) {
        self.unwritten_bytes += u64::from(header.length);
        // Who had to be forgotten to make room, and what ended, the log does not ask.
        let _ = self.states.on_appended(&BatchFacts::from(header), now);
    }

    /// Whether a batch of no transaction is the next one of whoever appended last.
    #[inline]
    pub(super) fn goes_on(&self, given: ProducerSequence, count: u32) -> bool {
        self.states.goes_on(given, count)
    }

    pub(super) fn check(&self, proposal: &Proposal) -> Verdict {
        self.states.check(proposal)
    }

    /// Where the open transaction of a producer begins, if a marker of `epoch` may be written (TXLOG-07).
    ///
    /// # Errors
    /// Why it may not.
    pub(super) fn check_marker(
        &self,
        id: ProducerId,
        epoch: ProducerEpoch,
    ) -> Result<Option<Offset>, Refusal> {
        self.states.check_marker(id, epoch)?;
        Ok(self.states.producer(id).and_then(|producer| producer.open_since))
    }

    pub(super) fn producer(&self, id: ProducerId) -> Option<ProducerView> {
        self.states.producer(id)
    }

    pub(super) fn open_transactions(&self) -> Vec<OpenTransaction> {
        self.states.open_transactions().collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.states.len() == 0
    }

    /// Below it, everything is decided and cannot be taken back.
    #[inline(always)]
    pub(super) fn last_stable(&mut self, high_watermark: Offset, log_start: Offset) -> Offset {
        if self.states.is_quiet() {
            return high_watermark;
        }
        self.states.settle(high_watermark);
        self.states.last_stable(high_watermark).max(log_start).min(high_watermark)
    }

    /// Below it, no marker to come changes anything.
    pub(super) fn decided(&self, end: Offset) -> Offset {
        // What was told by the leader is of all that it had: what was open at `end` may have ended since.
        if self.lacks_past || self.states.end() > end {
            return Offset::ZERO;
        }
        let open = self.states.open_transactions().next();
        open.map_or(end, |open| open.first)
    }

    /// The log was cut at `end`. False: what is known is of a longer log.
    #[must_use]
    pub(super) fn truncate_to(&mut self, end: Offset, epoch: LeaderEpoch) -> bool {
        self.states.truncate_to(end, epoch)
    }

    /// Forgets everything. Returns the snapshots that are on the disk.
    pub(super) fn forget(&mut self) -> Vec<Offset> {
        let mut on_disk = std::mem::take(&mut self.on_disk);
        on_disk.append(&mut self.foreign);
        on_disk
    }

    /// The log ends at `end`: snapshots that tell of more are not its own.
    pub(super) fn give_up_behind(&mut self, end: Offset) {
        let at = self.on_disk.partition_point(|at| *at <= end);
        self.foreign.extend(self.on_disk.drain(at..));
        if self.written_end > end {
            self.written_end = self.on_disk.last().copied().unwrap_or_default();
            self.on_unwritten();
        }
    }

    /// Snapshots that are to be removed, for they are not of this log.
    pub(super) fn take_foreign(&mut self) -> Vec<Offset> {
        std::mem::take(&mut self.foreign)
    }

    /// Whether more was told than the log, which ends at `end`, has.
    pub(super) fn tells_beyond(&self, end: Offset) -> bool {
        self.states.end() > end
    }

    /// Found in the log itself, which lacks some of what was `told`: the rest of that holds as well.
    pub(super) fn keep_of(&mut self, told: &ProducerStates) {
        self.states.keep_of(told);
        self.on_unwritten();
    }

    /// Counted in a copy of a log: with what that one knew, it knows as much.
    pub(super) fn keep_of_source(&mut self, told: &ProducerStates) {
        self.keep_of(told);
        self.lacks_past = false;
    }

    /// What is known of them by now.
    pub(super) fn states(&self) -> &ProducerStates {
        &self.states
    }

    /// Forgets producers that have not appended for `age`, but for those whose numbering is their position (PROD-20,
    /// PROD-21).
    pub(super) fn expire(&mut self, now: Timestamp, age: std::time::Duration) {
        let is_early = self.expired_at <= now && now.since(self.expired_at) < age / LOOKS_PER_AGE;
        if is_early {
            return;
        }
        // Between two looks, a clock may have been set and set back.
        let (end, since) = std::mem::replace(&mut self.looked_at, (self.states.end(), now));
        self.states.appended_since(end, since);
        self.expired_at = now;
        self.states.expire(now, age, |id| id.0 & ProducerId::NAMED == ProducerId::NAMED);
    }

    /// What is to be written down now: if enough was appended since, or, when asked to, if anything was.
    pub(super) fn snapshot(&mut self, place: &Place, force: bool) -> Option<ProducerSnapshot> {
        let is_new = self.unwritten_bytes > 0 && !self.lacks_past;
        let due_bytes = DUE_BYTES.max(DUE_FACTOR * self.snapshot_bytes);
        let due = is_new && (force || self.unwritten_bytes >= due_bytes);
        due.then(|| self.take_snapshot(place))
    }

    /// What is to be written down before records below `start` go.
    pub(super) fn snapshot_before(
        &mut self,
        place: &Place,
        start: Offset,
    ) -> Option<ProducerSnapshot> {
        let due = !self.is_empty() && !self.lacks_past && self.written_end < start;
        due.then(|| self.take_snapshot(place))
    }

    fn take_snapshot(&mut self, place: &Place) -> ProducerSnapshot {
        let bytes = self.states.snapshot(place.identity.seed);
        self.unwritten_bytes = 0;
        self.snapshot_bytes = bytes.len() as u64;
        ProducerSnapshot { place: place.clone(), end: self.states.end(), bytes }
    }

    /// A snapshot could not be written: the next one has to be.
    pub(super) fn on_unwritten(&mut self) {
        self.unwritten_bytes = self.unwritten_bytes.max(1);
    }

    /// A snapshot is on the disk: returns those that it replaces.
    pub(super) fn on_written(&mut self, snapshot: &ProducerSnapshot) -> Vec<Offset> {
        self.written_end = self.written_end.max(snapshot.end);
        self.on_disk.retain(|end| *end != snapshot.end);
        let at = self.on_disk.partition_point(|end| *end < snapshot.end);
        self.on_disk.insert(at, snapshot.end);
        let old = self.on_disk.len().saturating_sub(KEPT);
        let mut gone = self.take_foreign();
        gone.retain(|end| *end != snapshot.end);
        gone.extend(self.on_disk.drain(..old));
        gone
    }

    /// The log gave up everything and goes on at `start`.
    pub(super) fn restart(&mut self, start: Offset) -> Vec<Offset> {
        let on_disk = self.forget();
        *self = Self::none(start);
        self.lacks_past = start > Offset::ZERO;
        on_disk
    }

    pub(super) fn lacks_past(&self) -> bool {
        self.lacks_past
    }

    /// Whether all that was written below `end` is known already.
    pub(super) fn counts_in(&self, end: Offset) -> bool {
        !self.lacks_past && self.states.end() >= end
    }

    /// Whether the last batch is one of the leader's, whose reigns these were.
    pub(super) fn last_is_of(&self, history: &EpochHistory) -> bool {
        let end = history.end_of(self.states.leader_epoch());
        end.is_none_or(|end| self.states.end() <= end)
    }

    /// Some of the log cannot be read, and who wrote that is not known here; other replicas may know.
    pub(super) fn on_damaged(&mut self, damaged: &[Range<Offset>]) {
        self.lacks_past |= !damaged.is_empty();
    }

    /// What was told is known until the log is closed, and no longer.
    pub(super) fn on_untold(&mut self) {
        self.lacks_past = true;
    }

    /// Takes over what a replica knows whose log is not longer, and counts on from there to `end`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn learn(
        &mut self,
        other: &Self,
        reader: &LogReader,
        end: Offset,
        now: Timestamp,
    ) -> Result<(), Error> {
        self.states = other.states.clone();
        self.lacks_past = false;
        self.on_unwritten();
        let from = self.states.end();
        let damaged = reader.producer_headers(from, end, |header| self.take(header, now))?;
        self.on_damaged(&damaged);
        Ok(())
    }

    /// The log leads: nobody knows better.
    pub(super) fn on_leading(&mut self) {
        self.lacks_past = false;
    }

    /// Another log is the leader's: what was told of batches behind `end` may never come.
    pub(super) fn on_other_leader(&mut self, end: Offset) {
        self.lacks_past |= self.states.end() > end;
    }

    /// Takes over what the leader knows; the log itself ends at `end`, and passes over the batches that are counted in
    /// already.
    pub(super) fn adopt(&mut self, leader: &Self, end: Offset) {
        // What an earlier leader told of batches that never came.
        self.give_up_behind(end);
        self.states = leader.states.clone();
        self.lacks_past = false;
        self.unwritten_bytes = u64::from(!leader.is_empty());
    }
}

/// Below which offset everything is decided in a log that somebody else may be appending to.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn decided_end(place: &Place, reader: &LogReader, end: Offset) -> Result<Offset, Error> {
    let entries = match place.disk.list(&place.directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(end),
        listed => listed.map_err(|error| place.io_error("", "list", error))?,
    };
    let names = entries.iter().filter_map(|entry| parse_snapshot_name(&entry.name));
    let recalled = Producers::recover(place, reader, names.collect(), end, Timestamp::MIN)?;
    if !recalled.producers.lacks_past {
        return Ok(recalled.producers.decided(end));
    }
    // What of a transaction has been deleted, nobody sees: that it is open, its other batches tell.
    let mut left = Producers::none(reader.log_start());
    reader.producer_headers(reader.log_start(), end, |header| left.take(header, Timestamp::MIN))?;
    Ok(left.decided(end))
}

/// Whether a snapshot tells of the log's own past: of two logs that went different ways after an election, the last
/// batches before `end` are of different epochs.
fn belongs(states: &ProducerStates, reader: &LogReader, end: Offset) -> Result<bool, Error> {
    let at = states.end();
    if at <= reader.log_start() {
        return Ok(true); // its last batch was acknowledged and has been deleted since
    }
    match reader.read(Offset(at.0 - 1), end, 1) {
        Ok(fetched) => {
            Ok(fetched.and_then(|fetched| BatchHeader::trusted(&fetched.bytes)).is_some_and(
                |header| header.end_offset() == at && header.leader_epoch == states.leader_epoch(),
            ))
        }
        // What is damaged was there when the snapshot was written.
        Err(error) if is_damage(&error) => Ok(true),
        Err(error) => Err(error),
    }
}

fn read_snapshot(place: &Place, end: Offset) -> Option<ProducerStates> {
    let path = place.path(&snapshot_name(end));
    let bytes = read_small(&*place.disk, &path, SNAPSHOT_BYTES_MAX).ok()?;
    let states = ProducerStates::restore(&bytes, place.identity.seed, PRODUCERS_MAX).ok()?;
    (states.end() == end).then_some(states)
}

fn snapshot_name(end: Offset) -> String {
    format!("{:020}{SUFFIX}", end.0)
}

/// The end that a snapshot's name tells; `None` if it is no snapshot's name.
pub(super) fn parse_snapshot_name(name: &str) -> Option<Offset> {
    crate::segment::parse_name(name, SUFFIX)
}

/// Removes snapshots so that no power loss brings them back.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn remove_for_good(place: &Place, ends: &[Offset]) -> Result<(), Error> {
    if ends.is_empty() {
        return Ok(());
    }
    remove_snapshots(place, ends)?;
    let synced = place.disk.sync_dir(&place.directory);
    synced.map_err(|error| place.io_error("", "sync", error))
}

/// Removes snapshots.
///
/// # Errors
/// [`Error::Io`]; one that is gone already is none.
pub(super) fn remove_snapshots(place: &Place, ends: &[Offset]) -> Result<(), Error> {
    for end in ends {
        let name = snapshot_name(*end);
        match place.disk.remove(&place.path(&name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(place.io_error(&name, "remove", error));
            }
            _ => {}
        }
    }
    Ok(())
}
