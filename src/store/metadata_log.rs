//! The metadata log on its disks: on each, two copies of one file of frames.
//!
//! A change is written and synced in both copies, one after the other, before it counts. So a frame at
//! the end of a copy that does not decode is either torn (then the other copy does not have it, or has
//! it whole) or damaged (then the other copy has it whole): the longer sound copy is always the truth,
//! and a single flipped byte costs nothing.
//!
//! All disks hold the same bytes. A change counts once a majority of three or more configured disks has
//! it, or one of fewer; a disk that fails to take one is left out until it is brought in again, which
//! writes the log to it anew. At open the newest by (term, index) wins: each opening begins a new term. Before the first
//! change of it, enough disks have it in their `term` file: of two openings that know nothing of each other's changes, for
//! too few have taken those, the later one knows the term of the other, and begins a later one.
//!
//! Where too few have taken a change, it may be made or not (it is *in doubt*). So may every later one that was written
//! behind it: before the next, the log is written anew without it, with indexes behind all that was tried, which outlasts it
//! wherever it is. The term stays: a log that too few have taken must not outlast what the next opening decides without those.
//!
//! Space is allocated ahead, with a reserve that only deletions may use: on a full disk, a topic can
//! always be deleted and records can always be let go.

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::error::{Error, ErrorClass, Result, Written};
use crate::protocol::metadata::{MetadataRecord, MetadataState, encode_frame};
use crate::storage::{Disk, File, OpenMode, parent, read_small, replace_file, write_all_at};
use crate::types::{DiskId, StoreId};

use super::background::apart;
use super::layout::{METADATA, TERM};
use super::session::bit_of;

mod found;
mod term;

pub(super) use found::Found;
use found::decode;

/// Allocated ahead of the last frame, in steps of that size.
const STEP_BYTES: u64 = 64 << 10;
/// What only deletions may use.
const RESERVE_BYTES: u64 = 16 << 10;
/// A log this much longer than its contents is written anew.
const COMPACT_BYTES: u64 = 1 << 20;
/// A metadata log is never longer than this: what is behind it is not read.
const BYTES_MAX: usize = 1 << 30;
/// How long disks that could not take a change are left alone before they are asked to take the log without it.
const DOUBT_PAUSE: Duration = Duration::from_secs(1);
/// How often a disk that comes in is written to beside the changes, before those have to wait for it.
const BRING_IN_TRIES: usize = 8;

/// The metadata log, open.
#[derive(Debug)]
pub(super) struct MetadataLog {
    members: Vec<Member>,
    /// The one that a change is to let in: it has no say in that.
    newcomer: Option<DiskId>,
    /// Disks that failed to take a change, and why, for the store to act on.
    failed: Vec<(DiskId, Error)>,
    /// What is still on its way to files by their names, where it was not waited for any longer.
    late: Vec<(Arc<dyn Disk>, Weak<()>)>,
    state: MetadataState,
    position: u64,
    /// The reign of this opening; rises with its first change.
    term: u64,
    /// Enough disks know that it may have begun.
    term_is_known: bool,
    last: (u64, u64),
    /// The last record that was tried, whether it counts or not.
    tried: (u64, u64),
    bytes_max: u64,
    compacted: u64,
    /// What was written last may be there at the next opening, or not.
    in_doubt: bool,
    /// How many doubts have ended. What was in doubt then is not made, and never will be.
    doubts_ended: u64,
    /// The disk of which it is in doubt which directory it is.
    replaced: Option<DiskId>,
    /// When the doubt began, or was last tried to be ended; `None`: that need not wait.
    doubted: Option<Instant>,
    /// The store is closed, and its directories may be another's.
    closed: bool,
    /// How long a disk may take for a change before it is done without; `None`: as long as it likes.
    patience: Option<Duration>,
}

/// A disk that takes every change.
#[derive(Clone, Debug)]
struct Member {
    id: DiskId,
    disk: Arc<dyn Disk>,
    files: Vec<Arc<dyn File>>,
    allocated: u64,
    /// It could not take the log when that was written anew, and has the old one.
    is_behind: bool,
}

impl Member {
    fn fault(&self, action: &'static str, error: io::Error) -> Error {
        Error::io(self.disk.root().join(METADATA[0]), action, error)
    }

    /// Allocates room for frames up to `end`, and the reserve behind it.
    fn make_room(&mut self, end: u64, may_use_reserve: bool) -> io::Result<()> {
        let wanted = end + RESERVE_BYTES;
        if self.allocated >= wanted {
            return Ok(());
        }
        let target = wanted.next_multiple_of(STEP_BYTES);
        for file in &self.files {
            if let Err(error) = file.allocate(self.allocated, target - self.allocated) {
                if may_use_reserve && self.allocated >= end {
                    return Ok(());
                }
                return Err(error);
            }
        }
        self.allocated = target;
        Ok(())
    }

    /// Whether a log of `len` bytes fits beside the present one.
    fn has_room_for(&self, len: u64) -> io::Result<()> {
        let probe = format!("{}.tmp", METADATA[0]);
        let _ = self.disk.remove(&probe);
        let fits = self.disk.open(&probe, OpenMode::Create).and_then(|file| file.allocate(0, len));
        let _ = self.disk.remove(&probe);
        fits
    }

    fn write(&self, position: u64, frames: &[u8]) -> io::Result<()> {
        for file in &self.files {
            write_all_at(&**file, position, frames)?;
            file.sync_data()?;
        }
        Ok(())
    }
}

impl MetadataLog {
    /// Begins the log of a new store.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`]; the directories are then no store yet.
    pub(super) fn create(
        disks: &[(DiskId, Arc<dyn Disk>)],
        store: StoreId,
        first: &[MetadataRecord],
    ) -> Result<Self> {
        let mut state = MetadataState::default();
        let mut bytes = Vec::new();
        let mut index = 0;
        for record in first {
            index += 1;
            apply(&mut state, record)?;
            encode_frame(1, index, record, seed(store), &mut bytes);
        }
        let mut log = Self::over(state, bytes.len() as u64, (1, index));
        for (id, disk) in disks {
            for name in METADATA {
                replace_file(&**disk, name, &bytes)
                    .map_err(|error| Error::io(disk.root().join(name), "write", error))?;
            }
            term::write(&**disk, store, 1)
                .map_err(|error| Error::io(disk.root().join(TERM), "write", error))?;
            log.join(*id, disk, false)?;
        }
        log.term = 1;
        Ok(log)
    }

    fn over(state: MetadataState, position: u64, last: (u64, u64)) -> Self {
        Self {
            members: Vec::new(),
            newcomer: None,
            failed: Vec::new(),
            late: Vec::new(),
            state,
            position,
            term: last.0,
            term_is_known: true,
            last,
            tried: last,
            bytes_max: BYTES_MAX as u64,
            compacted: position,
            in_doubt: false,
            doubts_ended: 0,
            replaced: None,
            doubted: None,
            closed: false,
            patience: None,
        }
    }

    /// A disk that takes longer than that for a change is done without, as if it had failed, where enough others have it
    /// (S22). All disks are then written to at the same time, by threads that may be left behind.
    pub(super) fn set_patience(&mut self, patience: Duration) {
        self.patience = Some(patience);
    }

    /// Does something with every member. The answers are in the order of the members. While nothing can be decided without one
    /// that is late, it is waited for, as the only disk of a store is.
    fn on_all(
        &mut self,
        work: impl Fn(&mut Member) -> io::Result<()> + Send + Sync + 'static,
    ) -> Vec<io::Result<()>> {
        let Some(patience) = self.patience.filter(|_| self.members.len() > 1) else {
            return self.members.iter_mut().map(work).collect();
        };
        let work = Arc::new(work);
        let (sender, answers) = channel();
        for (at, member) in self.members.iter().enumerate() {
            let (work, sender, mut member) = (Arc::clone(&work), sender.clone(), member.clone());
            apart(move || {
                let outcome = work(&mut member);
                let _ = sender.send((at, outcome, member));
            });
        }
        drop(sender);
        let mut outcomes: Vec<_> = self.members.iter().map(|_| None).collect();
        let started = Instant::now();
        loop {
            let left = patience.saturating_sub(started.elapsed());
            let answer = if left.is_zero() && self.decides_later(&outcomes) {
                answers.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                answers.recv_timeout(left)
            };
            let (at, outcome, member) = match answer {
                Ok(answer) => answer,
                Err(RecvTimeoutError::Timeout) if self.decides_later(&outcomes) => continue,
                Err(_) => break,
            };
            (outcomes[at], self.members[at]) = (Some(outcome), member);
        }
        let late = || Err(io::ErrorKind::TimedOut.into());
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(late)).collect()
    }

    /// Whether too few have done what they were asked for, and others may yet.
    fn decides_later(&self, outcomes: &[Option<io::Result<()>>]) -> bool {
        let count = |is_one: fn(&Option<io::Result<()>>) -> bool| {
            let deciding =
                self.members.iter().zip(outcomes).filter(|(member, outcome)| {
                    Some(member.id) != self.newcomer && is_one(outcome)
                });
            deciding.count()
        };
        let (done, late) =
            (count(|outcome| matches!(outcome, Some(Ok(())))), count(Option::is_none));
        (done + 1..=done + late).contains(&self.quorum())
    }

    /// As [`MetadataLog::on_all`], for what is done to files by their names: who is late with that would do it to those that
    /// have the names by then, and is not brought in before.
    fn on_all_names(
        &mut self,
        work: impl Fn(&mut Member) -> io::Result<()> + Send + Sync + 'static,
    ) -> Vec<io::Result<()>> {
        let held = Arc::new(());
        let on_its_way = Arc::downgrade(&held);
        let outcomes = self.on_all(move |member| {
            let _held = &held;
            work(member)
        });
        let late = self.members.iter().zip(&outcomes).filter(|(_, outcome)| is_late(outcome));
        let disks = late.map(|(member, _)| Arc::clone(&member.disk));
        self.late.extend(disks.map(|disk| (disk, Weak::clone(&on_its_way))));
        outcomes
    }

    /// Whether something is still on its way to files of the disk by their names.
    fn is_late_with(&mut self, disk: &Arc<dyn Disk>) -> bool {
        self.late.retain(|(_, on_its_way)| on_its_way.strong_count() > 0);
        self.late.iter().any(|(late, _)| Arc::ptr_eq(late, disk))
    }

    /// Refuses a disk to which something is still on its way.
    ///
    /// # Errors
    /// [`Error::TimedOut`].
    pub(super) fn check_not_late(&mut self, id: DiskId, disk: &Arc<dyn Disk>) -> Result<()> {
        if !self.is_late_with(disk) {
            return Ok(());
        }
        let what = format!("{id}: writing its metadata anew, which still hangs");
        Err(Error::late(what, Duration::ZERO))
    }

    fn is_late_somewhere(&mut self) -> bool {
        let disks: Vec<_> = self.members.iter().map(|member| Arc::clone(&member.disk)).collect();
        disks.iter().any(|disk| self.is_late_with(disk))
    }

    /// A disk whose copies are up to date takes every change from now on.
    fn join(&mut self, id: DiskId, disk: &Arc<dyn Disk>, read_only: bool) -> Result<()> {
        let mut files = Vec::new();
        for name in METADATA.iter().filter(|_| !read_only) {
            let file = disk
                .open(name, OpenMode::Write)
                .map_err(|error| Error::io(disk.root().join(name), "open", error))?;
            files.push(file);
        }
        let allocated = self.position;
        self.members.push(Member {
            id,
            disk: Arc::clone(disk),
            files,
            allocated,
            is_behind: false,
        });
        Ok(())
    }

    /// Brings a disk in: writes the log to it, and to it from now on.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`]; it takes no part then.
    pub(super) fn bring_in(log: &Mutex<Self>, id: DiskId, disk: &Arc<dyn Disk>) -> Result<()> {
        let (mut log, member) = Self::copy_to(log, id, disk)?;
        log.members.push(member);
        Ok(())
    }

    /// Makes `record`, which says that the directory is the disk `id` from now on, with that disk taking part: it counts
    /// from the moment in which it has the log, and not before.
    ///
    /// # Errors
    /// As for [`MetadataLog::bring_in`] and [`MetadataLog::commit_all`].
    pub(super) fn admit<'a>(
        log: &'a Mutex<Self>,
        id: DiskId,
        disk: &Arc<dyn Disk>,
        record: &MetadataRecord,
    ) -> Result<MutexGuard<'a, Self>> {
        let (mut log, member) = Self::copy_to(log, id, disk)?;
        // Those that are there decide; it is none of them yet.
        log.check_quorum()?;
        log.members.push(member);
        log.newcomer = Some(id);
        let outcome = log.commit(record);
        log.newcomer = None;
        if let Err(error) = outcome {
            log.remove_disk(id);
            if error.written() != Written::No {
                log.replaced = Some(id);
            }
            return Err(error);
        }
        Ok(log)
    }

    /// Sees to it that a disk's directory stays that: where its replacement is in doubt, that is given up. What was acknowledged
    /// there, the next opening would leave out with it.
    ///
    /// # Errors
    /// As for [`MetadataLog::commit_all`]; it is in doubt still.
    pub(super) fn keep_directory(&mut self, id: DiskId) -> Result<()> {
        match self.state.store() {
            Some(store) if self.replaced == Some(id) => self.end_doubt(store),
            _ => Ok(()),
        }
    }

    /// Writes the log to a disk. The disk may be slow, or hang, so that this is done under no lock, and again if there was
    /// a change meanwhile. Returns with the lock held under which it has everything.
    fn copy_to<'a>(
        log: &'a Mutex<Self>,
        id: DiskId,
        disk: &Arc<dyn Disk>,
    ) -> Result<(MutexGuard<'a, Self>, Member)> {
        {
            let mut log = log.lock();
            log.remove_disk(id);
            log.check_not_late(id, disk)?;
        }
        for _ in 0..BRING_IN_TRIES {
            let (sources, patience, store, term, len, last) = {
                let log = log.lock();
                let Some(store) = log.state.store() else { break };
                let disks = log.members.iter().map(|member| Arc::clone(&member.disk));
                (disks.collect::<Vec<_>>(), log.patience, store, log.term, log.position, log.last)
            };
            let Some(bytes) = read_back(&sources, patience, store, len, last)? else { break };
            let files = write_copies(disk, store, term, &bytes)?;
            let log = log.lock();
            if (log.position, log.last) == (len, last) {
                let member =
                    Member { id, disk: Arc::clone(disk), files, allocated: len, is_behind: false };
                return Ok((log, member));
            }
        }
        let mut log = log.lock();
        let member = log.copy_now(id, disk)?;
        Ok((log, member))
    }

    /// As [`MetadataLog::copy_to`], where changes do not cease.
    fn copy_now(&mut self, id: DiskId, disk: &Arc<dyn Disk>) -> Result<Member> {
        let Some(store) = self.state.store() else {
            return Err(corrupt_state("the log names no store"));
        };
        // Frames are the same on every disk. Only where no copy can be read they are written anew everywhere, for
        // which another disk may lack the room.
        let sources: Vec<_> = self.members.iter().map(|member| Arc::clone(&member.disk)).collect();
        let bytes = read_back(&sources, self.patience, store, self.position, self.last)?
            .unwrap_or_else(|| self.rewrite(store));
        let files = write_copies(disk, store, self.term, &bytes)?;
        let allocated = self.position;
        Ok(Member { id, disk: Arc::clone(disk), files, allocated, is_behind: false })
    }

    /// Whether a disk takes every change.
    pub(super) fn takes_part(&self, id: DiskId) -> bool {
        self.members.iter().any(|member| member.id == id)
    }

    /// A disk takes no further change.
    pub(super) fn remove_disk(&mut self, id: DiskId) {
        self.members.retain(|member| member.id != id);
    }

    /// Disks that failed to take a change since the last call.
    pub(super) fn take_failed(&mut self) -> Vec<(DiskId, Error)> {
        std::mem::take(&mut self.failed)
    }

    /// What has been decided.
    pub(super) fn state(&self) -> &MetadataState {
        &self.state
    }

    /// The last durable record, and which disks have it.
    pub(super) fn witnessed(&self) -> ((u64, u64), u64) {
        let have = self.members.iter().filter(|member| !member.is_behind);
        let bits = have.map(|member| bit_of(member.id));
        (self.last, bits.fold(0, |all, bit| all | bit))
    }

    /// Whether it is not known what the next opening will find.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.in_doubt
    }

    /// How many doubts have ended: the number of one that has not.
    pub(super) fn doubts_ended(&self) -> u64 {
        self.doubts_ended
    }

    /// No change is taken any more: who was let in before the store was closed may be late.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    fn path(&self) -> PathBuf {
        self.members
            .first()
            .map_or_else(PathBuf::new, |member| member.disk.root().join(METADATA[0]))
    }

    /// Where a reader finds what the owner has written since, with [`Found::read`] and under no lock: a disk may hang (S22).
    pub(super) fn disks(&self) -> Vec<Arc<dyn Disk>> {
        self.members.iter().map(|member| Arc::clone(&member.disk)).collect()
    }

    /// Goes on from what was found on [`MetadataLog::disks`], if that is not older. For readers: no disk is asked.
    ///
    /// # Errors
    /// As for [`Found::open`].
    pub(super) fn adopt(&mut self, found: Option<Found>) -> Result<()> {
        if let Some(found) = found
            && found.last >= self.last
        {
            let members: Vec<_> = self
                .members
                .iter()
                .enumerate()
                .map(|(at, member)| (at, member.id, Arc::clone(&member.disk)))
                .collect();
            *self = found.open(&members, true)?.0;
        }
        Ok(())
    }

    /// Makes a change: durable when this returns, in both copies on every disk that takes part.
    ///
    /// # Errors
    /// As for [`MetadataLog::commit_all`].
    pub(super) fn commit(&mut self, record: &MetadataRecord) -> Result<()> {
        self.commit_all(std::slice::from_ref(record))
    }

    /// Makes changes with one write and one flush a copy. A disk that fails is left out, as long as enough
    /// are left (DESIGN.md section 11): a majority of three or more, else one.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::MissingDisk`]: nothing was changed. After an [`Error::Io`] that says so, whether the
    /// change will be there at the next open is not known, unless a later one is made: then it is not.
    pub(super) fn commit_all(&mut self, records: &[MetadataRecord]) -> Result<()> {
        if self.closed {
            return Err(Error::Closed);
        }
        if records.is_empty() {
            return Ok(());
        }
        let Some(store) = self.state.store() else {
            return Err(corrupt_state("the log names no store"));
        };
        if self.in_doubt {
            self.end_doubt(store)?;
        }
        let term = self.term.max(self.last.0);
        let (mut state, mut frames, mut index) = (self.state.clone(), Vec::new(), self.last.1);
        for record in records {
            index += 1;
            apply(&mut state, record)?;
            encode_frame(term, index, record, seed(store), &mut frames);
        }
        self.check_quorum()?;
        let end = self.position + frames.len() as u64;
        let (frees, cannot_wait) =
            (records.iter().all(frees_space), records.iter().any(cannot_wait));
        let kept_free = if frees || cannot_wait { 0 } else { self.bytes_max / 16 };
        if end > self.bytes_max - kept_free {
            if self.gains_room(store) && self.compact(store) {
                return self.commit_all(records);
            }
            let source = Arc::new(io::ErrorKind::FileTooLarge.into());
            return Err(Error::NoSpace { path: self.path(), source });
        }
        self.make_room(end, frees, cannot_wait)?;
        self.begin_term(store)?;
        self.tried = (term, index);
        self.write_to_all(&frames)?;
        self.state = state;
        self.position = end;
        self.last = (term, index);
        let long = self.position > COMPACT_BYTES && self.position > 4 * self.compacted;
        if long {
            self.compact(store);
        }
        Ok(())
    }

    /// Writes the log anew, if there is room for that everywhere. A disk that does not say so in time is done without.
    fn compact(&mut self, store: StoreId) -> bool {
        if self.is_late_somewhere() {
            return false;
        }
        let len = self.position;
        let asked = self.on_all_names(move |member| member.has_room_for(len));
        let fits = asked.iter().all(|answer| answer.is_ok() || is_late(answer));
        let mut late = Vec::new();
        for ((at, member), answer) in self.members.iter().enumerate().zip(asked) {
            if is_late(&answer)
                && let Err(error) = answer
            {
                late.push((at, member.fault("compact", error)));
            }
        }
        let goes = self.leave_out(late).is_ok() && fits;
        if goes {
            let _ = self.rewrite(store);
        }
        goes
    }

    /// Whether the log would be much shorter if it were written anew.
    fn gains_room(&self, store: StoreId) -> bool {
        let len = self.snapshot(store).0.len() as u64;
        len + self.bytes_max / 16 <= self.position
    }

    /// The log without what no longer matters, and the index of its last record.
    fn snapshot(&self, store: StoreId) -> (Vec<u8>, u64) {
        let mut bytes = Vec::new();
        let (term, mut index) = self.last;
        for record in &self.state.snapshot() {
            index += 1;
            encode_frame(term, index, record, seed(store), &mut bytes);
        }
        (bytes, index)
    }

    /// How many disks have to take a change.
    fn quorum(&self) -> usize {
        match self.state.disks().count() {
            0..3 => 1,
            configured => configured / 2 + 1,
        }
    }

    fn check_quorum(&self) -> Result<()> {
        if self.members.len() >= self.quorum() {
            return Ok(());
        }
        let present = |disk: &DiskId| self.members.iter().any(|member| member.id == *disk);
        let absent = self.state.disks().find(|disk| !present(disk));
        Err(Error::MissingDisk { disk: absent.unwrap_or_default(), path: self.path() })
    }

    /// A full disk refuses the change, and is no reason to do without that disk; unless the others could not go on
    /// without the change.
    fn make_room(&mut self, end: u64, may_use_reserve: bool, cannot_wait: bool) -> Result<()> {
        let mut failed = Vec::new();
        let roomy = |member: &Member| member.allocated >= end + RESERVE_BYTES;
        if self.members.iter().all(roomy) {
            return Ok(());
        }
        let made = self.on_all(move |member| member.make_room(end, may_use_reserve));
        for ((at, member), made) in self.members.iter().enumerate().zip(made) {
            match made {
                Ok(()) => {}
                Err(error) => {
                    let error = member.fault("allocate", error);
                    if matches!(error, Error::NoSpace { .. }) && !cannot_wait {
                        return Err(error);
                    }
                    failed.push((at, error));
                }
            }
        }
        self.leave_out(failed)
    }

    /// Before the first change of this opening. A disk that cannot say so for now takes the change all the same.
    ///
    /// # Errors
    /// As for [`MetadataLog::commit_all`]: nothing was changed.
    fn begin_term(&mut self, store: StoreId) -> Result<()> {
        if self.term_is_known {
            return Ok(());
        }
        let term = self.term;
        let said = self.on_all_names(move |member| term::write(&*member.disk, store, term));
        let (mut failed, mut refused, mut known) = (Vec::new(), None, 0);
        for ((at, member), said) in self.members.iter().enumerate().zip(said) {
            let late = is_late(&said);
            match said.map_err(|error| Error::io(member.disk.root().join(TERM), "write", error)) {
                Ok(()) => known += usize::from(Some(member.id) != self.newcomer),
                Err(error) if !late && error.class() == ErrorClass::Retriable => {
                    refused = Some(error);
                }
                Err(error) => failed.push((at, error)),
            }
        }
        self.leave_out(failed)?;
        if let Some(error) = refused.filter(|_| known < self.quorum()) {
            return Err(error);
        }
        self.term_is_known = true;
        Ok(())
    }

    fn write_to_all(&mut self, frames: &[u8]) -> Result<()> {
        let mut failed = Vec::new();
        let (position, frames) = (self.position, frames.to_vec());
        let written = self.on_all(move |member| member.write(position, &frames));
        let late: Vec<_> = written.iter().map(is_late).collect();
        for ((at, member), written) in self.members.iter().enumerate().zip(written) {
            if let Err(error) = written {
                failed.push((
                    at,
                    Error::Io {
                        path: member.disk.root().join(METADATA[0]),
                        action: "write",
                        written: Written::Unknown,
                        source: Arc::new(error),
                    },
                ));
            }
        }
        let outcome = self.leave_out(failed);
        if outcome.is_err() {
            self.doubt(&late);
        }
        outcome
    }

    /// Too few have the last change. What is late may come at any time, into files that are another disk's or nobody's by
    /// then: those are done without.
    fn doubt(&mut self, late: &[bool]) {
        self.in_doubt = true;
        self.doubted = self.patience.map(|_| Instant::now());
        for at in (0..self.members.len()).rev().filter(|at| late[*at]) {
            let member = self.members.remove(at);
            let error = member.fault("write", io::ErrorKind::TimedOut.into());
            self.failed.push((member.id, error));
        }
    }

    /// Whether enough disks answer by the files that they have open.
    fn answers(&mut self) -> bool {
        let answers =
            self.on_all(|member| member.files.iter().try_for_each(|file| file.sync_data()));
        let deciding = self.members.iter().zip(answers);
        let present =
            deciding.filter(|(member, answer)| Some(member.id) != self.newcomer && answer.is_ok());
        let is_enough = present.count() >= self.quorum();
        if !is_enough {
            self.doubted = self.patience.map(|_| Instant::now());
        }
        is_enough
    }

    /// Writes the log anew without what is in doubt.
    ///
    /// # Errors
    /// [`Error::MissingDisk`], [`Error::Io`]: nothing was changed, and the doubt has not ended.
    fn end_doubt(&mut self, store: StoreId) -> Result<()> {
        self.check_quorum()?;
        let is_early = self.doubted.is_some_and(|since| since.elapsed() < DOUBT_PAUSE);
        // What few have of it may be all that is known: it stays while too few are there to outlast it.
        if !is_early && !self.is_late_somewhere() && self.answers() {
            self.last = self.last.max(self.tried);
            self.in_doubt = false;
            self.rewrite(store);
        }
        if self.in_doubt {
            return Err(Error::Io {
                path: self.path(),
                action: "write after a failed write",
                written: Written::No,
                source: Arc::new(io::ErrorKind::Other.into()),
            });
        }
        self.doubts_ended += 1;
        self.replaced = None;
        Ok(())
    }

    /// Goes on without the members at these places, if enough are left, of those that may decide.
    fn leave_out(&mut self, mut failed: Vec<(usize, Error)>) -> Result<()> {
        let decides = |at: usize| {
            Some(self.members[at].id) != self.newcomer
                && failed.iter().all(|(failed, _)| *failed != at)
        };
        if (0..self.members.len()).filter(|at| decides(*at)).count() < self.quorum()
            && let Some((_, error)) = failed.pop()
        {
            return Err(error);
        }
        for (at, error) in failed.into_iter().rev() {
            let member = self.members.remove(at);
            self.failed.push((member.id, error));
        }
        Ok(())
    }

    /// Writes the log anew, without what no longer matters, and returns its bytes. A member that cannot
    /// take it keeps the old log, which is sound, and is left out.
    fn rewrite(&mut self, store: StoreId) -> Vec<u8> {
        let (bytes, index) = self.snapshot(store);
        let (mut failed, written) = (Vec::new(), bytes.clone());
        let rewritten = self.on_all_names(move |member| {
            let mut files = Vec::new();
            for name in METADATA {
                replace_file(&*member.disk, name, &written)?;
                files.push(member.disk.open(name, OpenMode::Write)?);
            }
            member.disk.sync_dir(parent(METADATA[0]))?;
            (member.files, member.allocated) = (files, written.len() as u64);
            member.is_behind = false;
            Ok(())
        });
        let late: Vec<_> = rewritten.iter().map(is_late).collect();
        for ((at, member), rewritten) in self.members.iter().enumerate().zip(rewritten) {
            if let Err(error) = rewritten {
                failed.push((at, member.fault("compact", error)));
            }
        }
        failed.iter().for_each(|(at, _)| self.members[*at].is_behind = true);
        if self.leave_out(failed).is_err() {
            self.doubt(&late);
        }
        self.position = bytes.len() as u64;
        self.compacted = self.position;
        self.last.1 = index;
        bytes
    }
}

/// Whether a disk has not answered in time.
fn is_late(outcome: &io::Result<()>) -> bool {
    outcome.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut)
}

/// The log up to `len`, from a disk that has it sound, of those that answer within `patience`.
///
/// # Errors
/// [`Error::TimedOut`]: it may be on one that has not answered.
fn read_back(
    disks: &[Arc<dyn Disk>],
    patience: Option<Duration>,
    store: StoreId,
    len: u64,
    last: (u64, u64),
) -> Result<Option<Vec<u8>>> {
    let Ok(len) = usize::try_from(len) else { return Ok(None) };
    let read = move |disk: &dyn Disk| {
        METADATA.iter().find_map(|name| {
            let mut bytes = read_small(disk, name, BYTES_MAX).ok()?;
            bytes.truncate(len);
            let copy = decode(&bytes, Some(store));
            (copy.end.is_none() && copy.last == last).then_some(bytes)
        })
    };
    let mut late = None;
    for disk in disks {
        let found = match patience {
            None => Ok(read(&**disk)),
            Some(patience) => {
                let (sender, answer) = channel();
                let disk = Arc::clone(disk);
                apart(move || _ = sender.send(read(&*disk)));
                answer.recv_timeout(patience).map_err(|_| patience)
            }
        };
        match found {
            Ok(Some(bytes)) => return Ok(Some(bytes)),
            Ok(None) => {}
            Err(patience) => late = Some(patience),
        }
    }
    late.map_or(Ok(None), |patience| Err(Error::late("reading the metadata back", patience)))
}

fn write_copies(
    disk: &Arc<dyn Disk>,
    store: StoreId,
    term: u64,
    bytes: &[u8],
) -> Result<Vec<Arc<dyn File>>> {
    let fault = |name: &str, error| Error::io(disk.root().join(name), "write", error);
    // There from now on, so that it needs no room when it counts. That of this opening: what was known of earlier ones may
    // be damaged.
    term::write(&**disk, store, term).map_err(|error| fault(TERM, error))?;
    METADATA.iter().try_for_each(|name| {
        replace_file(&**disk, name, bytes).map_err(|error| fault(name, error))
    })?;
    let open = |name: &&str| disk.open(name, OpenMode::Write).map_err(|error| fault(name, error));
    METADATA.iter().map(open).collect()
}

/// Whether a change lets files be removed: it may use the reserve of a full disk.
fn frees_space(record: &MetadataRecord) -> bool {
    matches!(
        record,
        MetadataRecord::TopicDeleted { .. }
            | MetadataRecord::TopicRemoved { .. }
            | MetadataRecord::LogStartRaised { .. }
            | MetadataRecord::ReplicaSuspect { .. }
            | MetadataRecord::ReplicaStale { .. }
            | MetadataRecord::Opened { .. }
    )
}

/// Whether partitions on other disks stand still until the change is made.
fn cannot_wait(record: &MetadataRecord) -> bool {
    matches!(
        record,
        MetadataRecord::LeaderChanged { .. }
            | MetadataRecord::ReplicaSuspect { .. }
            | MetadataRecord::ReplicaCleared { .. }
    )
}

fn apply(state: &mut MetadataState, record: &MetadataRecord) -> Result<()> {
    state.apply(record).map_err(|reason| corrupt_state(&reason))
}

/// A change that does not fit what was decided before: the caller checked something else.
fn corrupt_state(reason: &str) -> Error {
    Error::InvalidConfig { key: "metadata".into(), value: String::new(), reason: reason.to_owned() }
}

fn seed(store: StoreId) -> u32 {
    crc32fast::hash(&store.0.to_le_bytes())
}

#[cfg(test)]
mod tests;
