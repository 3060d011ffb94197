//! Opening a log: what is there, what of it is sound, and where it goes on.
//!
//! After a clean stop nothing is scanned. After a crash, only what no side file vouches for is. What
//! the walk finds goes to [`judge`], which alone decides between a torn tail and damage. A cut goes
//! in this order, so that a crash between any two steps leaves a log that recovers to the same state:
//! the bytes are copied aside and synced, later segments are moved aside from the last one on, the
//! file is cut and synced. Records whose flush nobody can prove are written again and synced before
//! they are served: a page that a failed flush left marked clean would otherwise be lost later.

use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{DecodeError, Error};
use crate::protocol::recovery::{Finding, Verdict, judge};
use crate::segment::{
    ActiveSegment, DATA_START, FILE_HEADER_BYTES, FileHeader, HeaderFault, Place, Scan, ScanEnd,
    Scanner, Segment, SideHead, SparseIndex, log_name, parse_log_name, parse_side_name, side_name,
};
use crate::storage::{Disk, EntryKind, File, OpenMode, read_full_at, write_all_at};
use crate::types::{LeaderEpoch, Offset, Timestamp};

use super::producers::{Producers, parse_snapshot_name, remove_for_good, remove_snapshots};
use super::{Log, LogReader, LogSettings, Sealed, marks, quarantine, remove_segment_files};

const COPY_BYTES: usize = 1 << 20;

/// What is known of a log before its files are looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Evidence {
    /// Everything below was appended, and is durable or in the page cache of this boot.
    pub(crate) proven_end: Offset,
    /// The last stop flushed and recorded everything.
    pub(crate) clean: bool,
    /// The machine has run on since.
    pub(crate) same_boot: bool,
    /// Records below were deleted.
    pub(crate) log_start: Offset,
    /// Records are acknowledged only once they are flushed, or a flush has failed: write again and
    /// flush what is not proven.
    pub(crate) rewrite: bool,
    pub(crate) epoch: LeaderEpoch,
    /// The first reign whose batches were sealed on this disk, for the durable end that a batch carries is
    /// that of its leader's disk. `None`: this replica followed.
    pub(crate) sealed_since: Option<LeaderEpoch>,
    pub(crate) now: Timestamp,
    /// False: look only; nothing on the disk is changed and nothing can be appended.
    pub(crate) repair: bool,
    /// Whether there may be producers to remember; a clean stop knows if there are none.
    pub(crate) producers: bool,
    /// Readers of this process may have the files mapped, from when the log was open before: none is shortened in place, for
    /// who loads what lies behind the end of a mapped file is ended by a signal.
    pub(crate) mapped: bool,
}

/// Something that opening found and its owner wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// A torn tail was cut at `from`; nothing in it was acknowledged beyond the flush level's promise.
    Cut { from: Offset, bytes: u64, kept: Option<PathBuf>, reason: String },
    /// These offsets were durable and cannot be read; the bytes are kept.
    Damaged { from: Offset, to: Offset, path: PathBuf, reason: String },
    /// A file that is not part of the log; left alone, or moved to the quarantine if it has a segment's name.
    Foreign { path: PathBuf },
    /// Who wrote below is not known any more: what told of it is damaged, and the records are deleted.
    ProducersForgotten { below: Offset },
}

/// A log that can be used, and what opening it found.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) log: Log,
    pub(crate) losses: Vec<Loss>,
    pub(crate) scanned_bytes: u64,
}

impl Log {
    /// Opens the log in `place`; an absent directory is an empty log.
    ///
    /// # Errors
    /// [`Error::UnsupportedFormat`] for a newer version, before anything is changed; [`Error::Io`].
    pub(crate) fn open(
        place: Place,
        settings: LogSettings,
        evidence: Evidence,
    ) -> Result<Recovered, Error> {
        Opening {
            place,
            settings,
            evidence,
            losses: Vec::new(),
            segments: Vec::new(),
            sealed: Vec::new(),
            active: None,
            end: Offset::ZERO,
            scanned_bytes: 0,
            snapshots: Vec::new(),
        }
        .run()
    }
}

struct Opening {
    place: Place,
    settings: LogSettings,
    evidence: Evidence,
    losses: Vec<Loss>,
    segments: Vec<Arc<Segment>>,
    sealed: Vec<Sealed>,
    active: Option<ActiveSegment>,
    end: Offset,
    scanned_bytes: u64,
    /// Ends of the snapshots of producers.
    snapshots: Vec<Offset>,
}

/// A data file in the directory.
#[derive(Clone, Copy)]
struct Found {
    base: Offset,
    len: u64,
    header: Header,
    has_side: bool,
}

/// What is known of the header of a data file of this log.
#[derive(Clone, Copy)]
enum Header {
    /// It need not be read after a clean stop.
    Unread,
    Sound {
        created: Timestamp,
    },
    Lost,
}

impl Opening {
    fn run(mut self) -> Result<Recovered, Error> {
        let mut found = self.list()?;
        // A clean stop is believed, and yet nothing is appended to a file of a newer version.
        if let (true, Some(last)) = (self.evidence.clean, found.last())
            && let Err(newer @ Error::UnsupportedFormat { .. }) = self.header(last.base)
        {
            return Err(newer);
        }
        let log_start = self.evidence.log_start;
        if found.first().is_some_and(|first| first.base > log_start) {
            self.judge_start(&mut found)?;
        }
        for at in 0..found.len() {
            let next = found.get(at + 1).map(|next| next.base);
            if !self.open_segment(found[at], next, &found[at + 1..])? {
                break;
            }
        }
        let (proven, left) = (self.evidence.proven_end, self.end);
        if self.end < proven {
            let from = self.end.max(log_start);
            if from < proven {
                self.damaged(from, proven, self.end, &DecodeError::Missing);
            }
            self.end = proven;
            self.retire_active();
        }
        if left < log_start {
            // What is left lies before the start: it was deleted (RECOV-15). The proof may be younger than it, if a power
            // loss brought its file back.
            self.end = self.end.max(log_start);
            self.active = None;
            self.sealed.clear();
            for segment in std::mem::take(&mut self.segments) {
                self.remove(&segment)?;
            }
        }
        self.finish()
    }

    fn finish(self) -> Result<Recovered, Error> {
        let log_start = self.evidence.log_start.min(self.end);
        let segments = self.segments.clone();
        // Without a file there may be no directory either.
        let directory_unsynced = !self.evidence.clean && !segments.is_empty();
        let reader = Arc::new(LogReader::new(self.place.clone(), segments, log_start));
        let mut losses = self.losses.clone();
        let mut producers = Producers::none(self.end);
        let mut is_written_down = true;
        if self.evidence.producers && self.evidence.repair {
            let snapshots = self.snapshots.clone();
            let now = self.evidence.now;
            let found = Producers::recover(&self.place, &reader, snapshots, self.end, now)?;
            losses.extend(found.unknown.map(|below| Loss::ProducersForgotten { below }));
            producers = found.producers;
            producers.on_damaged(&found.damaged);
            losses.extend(self.passed_over(&found.damaged));
            // Before anything is appended in their place.
            remove_for_good(&self.place, &producers.take_foreign())?;
            if let Some(snapshot) = found.before {
                is_written_down = snapshot.write().is_ok();
                if is_written_down {
                    // One that is left over is removed with the next one.
                    let _ = remove_snapshots(&self.place, &producers.on_written(&snapshot));
                } else {
                    producers.on_unwritten();
                }
            }
        }
        // A crash may have come between the record of a deletion and the removal of the files.
        let gone = reader.raise_log_start(log_start);
        for segment in gone.iter().filter(|_| is_written_down) {
            self.remove(segment)?;
        }
        let Self { place, settings, evidence, mut sealed, active, end, .. } = self;
        sealed.retain(|sealed| !gone.iter().any(|gone| Arc::ptr_eq(gone, &sealed.segment)));
        let flushed_end = if evidence.clean || evidence.rewrite { end } else { Offset::ZERO };
        let checkpointed = active.as_ref().map_or(0, ActiveSegment::position);
        let log = Log {
            reader,
            place,
            settings,
            epoch: evidence.epoch,
            last_epoch: None,
            active,
            end,
            flushed_end,
            is_flushing: false,
            sealed,
            directory_unsynced,
            rolls: false,
            apart: false,
            witness: None,
            attention_at: 0,
            is_aging: false,
            checkpointed: if evidence.clean { checkpointed } else { 0 },
            producers,
        };
        Ok(Recovered { log, losses, scanned_bytes: self.scanned_bytes })
    }

    /// What is damaged that nothing but the producers asked for, as it was vouched for.
    fn passed_over(&self, damaged: &[Range<Offset>]) -> Vec<Loss> {
        let is_news = |offsets: &&Range<Offset>| {
            !self.losses.iter().any(|loss| {
                matches!(loss, Loss::Damaged { from, to, .. } if (from..to).contains(&&offsets.start))
            })
        };
        let losses = damaged.iter().filter(is_news).map(|offsets| {
            let segment = self.segments.iter().rev().find(|segment| segment.base <= offsets.start);
            let path = self.place.full_path(&log_name(segment.map_or(offsets.start, |s| s.base)));
            let reason = DecodeError::Missing.to_string();
            Loss::Damaged { from: offsets.start, to: offsets.end, path, reason }
        });
        losses.collect()
    }

    fn remove(&self, segment: &Segment) -> Result<(), Error> {
        if !self.evidence.repair {
            return Ok(());
        }
        remove_segment_files(&self.place, segment.base)
    }

    /// The data files, oldest first. Leftovers of this crate are removed, anything else is reported.
    fn list(&mut self) -> Result<Vec<Found>, Error> {
        let entries = match self.place.disk.list(&self.place.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            listed => listed.map_err(|error| self.place.io_error("", "list", error))?,
        };
        let mut named = Vec::new();
        let mut sides = HashSet::new();
        for entry in entries {
            let name = entry.name.as_str();
            let stem = name.strip_suffix(".tmp").unwrap_or(name);
            let is_file = entry.kind == EntryKind::File;
            let (side, snapshot) = (parse_side_name(stem), parse_snapshot_name(stem));
            let ours = parse_log_name(stem).is_some() || side.is_some() || snapshot.is_some();
            if is_file && ours && stem != name {
                if self.evidence.repair {
                    // A file that never got its name holds nothing that was acknowledged.
                    let removed = self.place.disk.remove(&self.place.path(name));
                    removed.map_err(|error| self.place.io_error(name, "remove", error))?;
                }
            } else if let (true, Some(base)) = (is_file, parse_log_name(name)) {
                named.push((base, entry.len));
            } else if let (true, Some(end)) = (is_file, snapshot) {
                self.snapshots.push(end);
            } else if let (true, Some(base)) = (is_file, side) {
                sides.insert(base);
            } else if !(is_file && marks::is_marks(stem)) {
                self.losses.push(Loss::Foreign { path: self.place.full_path(name) });
            }
        }
        let mut found = Vec::new();
        for (base, len) in named {
            let has_side = sides.contains(&base);
            match self.identify(base, len, has_side)? {
                Some(header) => found.push(Found { base, len, header, has_side }),
                None => self.leave_out(base, has_side)?,
            }
        }
        found.sort_by_key(|found| found.base);
        Ok(found)
    }

    /// Reads a data file's header. `None`: the file belongs to another log.
    fn identify(
        &mut self,
        base: Offset,
        len: u64,
        has_side: bool,
    ) -> Result<Option<Header>, Error> {
        // A clean stop is believed of what has a side file; what was put there since has none.
        if self.evidence.clean && has_side {
            return Ok(Some(Header::Unread));
        }
        let read = match self.header(base) {
            Err(Error::Io { action: "read", .. }) if self.evidence.clean => {
                return Ok(Some(Header::Unread));
            }
            read => read?,
        };
        match read {
            Ok(header) if header.belongs_to(&self.place.identity, base) => {
                Ok(Some(Header::Sound { created: header.created }))
            }
            Ok(_) => Ok(None),
            // The header is for people; batches prove themselves. A file too short for one is empty.
            Err(source) => {
                if len > DATA_START {
                    let path = self.place.full_path(&log_name(base));
                    let reason = source.to_string();
                    self.losses.push(Loss::Damaged { from: base, to: base, path, reason });
                }
                Ok(Some(Header::Lost))
            }
        }
    }

    /// Moves another log's file out of the way of the segment that will have its name, or be taken for the one before.
    fn leave_out(&mut self, base: Offset, has_side: bool) -> Result<(), Error> {
        let name = log_name(base);
        let mut path = self.place.full_path(&name);
        if self.evidence.repair {
            if has_side {
                quarantine::move_file(&self.place, &side_name(base))?;
            }
            path = quarantine::move_file(&self.place, &name)?;
        }
        self.losses.push(Loss::Foreign { path });
        Ok(())
    }

    /// What a data file says of itself, or why it does not.
    fn header(&self, base: Offset) -> Result<Result<FileHeader, DecodeError>, Error> {
        let name = log_name(base);
        let mut bytes = [0; FILE_HEADER_BYTES];
        let file = self.open_file(base, OpenMode::Read)?;
        let count = read_full_at(&*file, 0, &mut bytes)
            .map_err(|error| self.place.io_error(&name, "read", error))?;
        match FileHeader::decode(&bytes[..count]) {
            Ok(header) => Ok(Ok(header)),
            Err(HeaderFault::Damaged(source)) => Ok(Err(source)),
            Err(HeaderFault::Version(version)) => Err(Error::UnsupportedFormat {
                path: self.place.full_path(&name),
                reason: format!("data files of version {version}, this is version 1"),
            }),
        }
    }

    /// Opens one segment. False: the log ends in it, whatever files follow.
    fn open_segment(
        &mut self,
        found: Found,
        next: Option<Offset>,
        later: &[Found],
    ) -> Result<bool, Error> {
        // What a later step drops, for it lies below the log start, is not looked at.
        let deleted = next.is_some_and(|next| next <= self.evidence.log_start);
        if let (Some(next), true) = (next, self.evidence.clean || deleted) {
            self.push_sealed(found, next, found.len);
            return Ok(true);
        }
        let head =
            Segment::read_side_head(&self.place, found.base).filter(|head| self.vouches(head));
        if let (Some(next), Some(head)) = (next, head)
            && head.end == next
            && found.len >= head.position
        {
            self.push_sealed(found, next, head.position);
            self.say_producers(head.producers);
            if self.evidence.repair && !head.durable {
                self.flush_later(found.base)?;
            }
            return Ok(true);
        }
        let file = self.open_file(found.base, OpenMode::Read)?;
        let place = self.place.clone();
        let since = self.evidence.sealed_since;
        let mut scanner = Scanner::new(&place, found.base).sealed_since(since);
        let mut proven = self.evidence.proven_end;
        let mut told = None;
        let mut producers = false;
        if let Some(head) = head {
            proven = proven.max(head.end);
            told = Some((head.end, head.last_append));
            let side = Segment::read_side_file(&self.place, found.base);
            if let Some(side) = side.filter(|side| side.head == head && found.len >= head.position)
            {
                let index = SparseIndex::clone(&side.index);
                scanner = scanner.resume(head.position, head.end, head.max_timestamp, index);
                producers = head.producers;
            }
        }
        let mut scan = scanner.walk(&*file, found.len, next)?;
        scan.producers |= producers;
        self.scanned_bytes += scan.position;
        if let Some(next) = next
            && scan.end == next
        {
            return self.adopt_scanned(found, next, &scan).map(|()| true);
        }
        let proven = next.map_or(proven, |next| proven.min(next));
        let finding = self.look_behind(&mut scanner, &*file, &scan, proven, later)?;
        match judge(&finding) {
            Verdict::Whole => {
                self.go_on(found, &scan, told)?;
                self.set_aside(later)?;
                Ok(false)
            }
            Verdict::Torn => {
                self.cut(found, &scan, finding.end, later)?;
                self.go_on(found, &scan, told)?;
                Ok(false)
            }
            Verdict::Damaged { resume } => {
                let end = next.unwrap_or(resume);
                self.report_holes(&*file, found, scan, end)?;
                self.push_sealed(found, end, found.len.max(DATA_START));
                Ok(true)
            }
        }
    }

    /// Reports each hole from where `scan` stopped to `end`; what lies between holes can be read.
    fn report_holes(
        &mut self,
        file: &dyn File,
        found: Found,
        mut scan: Scan,
        end: Offset,
    ) -> Result<(), Error> {
        let place = self.place.clone();
        while scan.end < end {
            let beyond =
                Scanner::new(&place, found.base).look_beyond(file, scan.position, scan.end)?;
            let next = beyond.first.filter(|(_, base)| *base < end);
            let reason = match scan.stop {
                ScanEnd::Clean => DecodeError::Missing,
                ScanEnd::Bad(source) => source,
            };
            self.damaged(scan.end, next.map_or(end, |(_, base)| base), found.base, &reason);
            let Some((position, base)) = next else { break };
            scan = Scanner::new(&place, found.base)
                .resume(position, base, scan.max_timestamp, scan.index)
                .walk(file, found.len, Some(end))?;
            self.scanned_bytes += scan.position.saturating_sub(position);
        }
        Ok(())
    }

    /// Everything that bears on whether the walk ended at a torn tail or at damage.
    fn look_behind(
        &mut self,
        scanner: &mut Scanner<'_>,
        file: &dyn File,
        scan: &Scan,
        proven_end: Offset,
        later: &[Found],
    ) -> Result<Finding, Error> {
        let mut finding = Finding {
            // What was deleted cannot be missed.
            end: scan.end.max(self.evidence.log_start),
            clean: scan.stop == ScanEnd::Clean && later.is_empty(),
            proven_end,
            same_boot: self.evidence.same_boot,
            ..Finding::default()
        };
        if scan.stop != ScanEnd::Clean {
            let beyond = scanner.look_beyond(file, scan.position, scan.end)?;
            finding.beyond_end = beyond.first.map(|_| beyond.end);
            finding.beyond_durable_end = beyond.durable_end;
        }
        self.look_at_later(&mut finding, later)?;
        Ok(finding)
    }

    /// The first segments are missing: lost with their names in a power loss, or damage?
    fn judge_start(&mut self, found: &mut Vec<Found>) -> Result<(), Error> {
        let mut finding = Finding {
            end: self.evidence.log_start,
            clean: false,
            proven_end: self.evidence.proven_end,
            same_boot: self.evidence.same_boot,
            ..Finding::default()
        };
        self.look_at_later(&mut finding, found)?;
        let from = finding.end;
        if let Verdict::Damaged { .. } = judge(&finding) {
            self.damaged(from, found[0].base, from, &DecodeError::Missing);
            return Ok(());
        }
        self.set_aside(found)?;
        let bytes = found.iter().map(|found| found.len).sum();
        let reason = DecodeError::Missing.to_string();
        self.losses.push(Loss::Cut { from, bytes, kept: None, reason });
        found.clear();
        Ok(())
    }

    /// What the segments behind a break say of it.
    fn look_at_later(&mut self, finding: &mut Finding, later: &[Found]) -> Result<(), Error> {
        for found in later {
            let head =
                Segment::read_side_head(&self.place, found.base).filter(|head| self.vouches(head));
            if let Some(head) = head {
                finding.proven_end = finding.proven_end.max(head.base);
            }
            let file = self.open_file(found.base, OpenMode::Read)?;
            let since = self.evidence.sealed_since;
            let mut scanner = Scanner::new(&self.place, found.base).sealed_since(since);
            let scan = scanner.walk(&*file, found.len, None)?;
            self.scanned_bytes += scan.position;
            if scan.end > found.base {
                finding.beyond_end = finding.beyond_end.max(Some(scan.end));
            }
            finding.beyond_durable_end = finding.beyond_durable_end.max(scan.durable_end);
        }
        Ok(())
    }

    /// Whether a side file's word counts: its data was flushed, or is still in this boot's page cache.
    fn vouches(&self, head: &SideHead) -> bool {
        let here = self.evidence.same_boot && head.boot == self.place.disk.boot_id();
        head.durable || (here && !self.evidence.rewrite)
    }

    /// A sealed segment that was walked: it gets a new side file later.
    fn adopt_scanned(&mut self, found: Found, end: Offset, scan: &Scan) -> Result<(), Error> {
        if self.evidence.repair && self.evidence.mapped {
            self.secure(found.base, scan)?;
            let base = found.base;
            self.push_sealed(found, end, scan.position);
            self.say_producers(scan.producers);
            self.segments.last().expect("it was pushed").assume_last_append(self.evidence.now);
            self.flush_later(base)?;
        } else if self.evidence.repair {
            self.secure(found.base, scan)?;
            let segment = self.reopen(found, scan, end)?;
            segment.segment().set_producers(scan.producers);
            let file = Arc::clone(segment.file());
            let segment = Arc::clone(segment.segment());
            segment.assume_last_append(self.evidence.now);
            let at = self.evidence.now;
            self.sealed.push(Sealed { segment: Arc::clone(&segment), file, at, settled: false });
            self.segments.push(segment);
            self.end = end;
        } else {
            self.push_sealed(found, end, scan.position);
        }
        Ok(())
    }

    /// The last segment: appends go on in it. `told`: up to where a side file vouches for it, and when the last batch before
    /// that was appended.
    fn go_on(
        &mut self,
        found: Found,
        scan: &Scan,
        told: Option<(Offset, Timestamp)>,
    ) -> Result<(), Error> {
        self.end = scan.end;
        if !self.evidence.repair {
            self.push_sealed(found, scan.end, scan.position);
            return Ok(());
        }
        self.mend_header(found)?;
        self.secure(found.base, scan)?;
        if found.has_side && told.is_none() {
            // It tells of batches that may not be there, and of others by and by.
            let name = side_name(found.base);
            let removed = self.place.disk.remove(&self.place.path(&name));
            removed.map_err(|error| self.place.io_error(&name, "remove", error))?;
        }
        let active = self.reopen(found, scan, scan.end)?;
        active.segment().set_producers(scan.producers);
        // Of what was appended since, nobody knows the time: it must not go too early.
        let whole = told.filter(|(end, _)| *end >= scan.end);
        active.segment().assume_last_append(whole.map_or(self.evidence.now, |(_, at)| at));
        self.segments.push(Arc::clone(active.segment()));
        self.active = Some(active);
        Ok(())
    }

    fn reopen(&self, found: Found, scan: &Scan, end: Offset) -> Result<ActiveSegment, Error> {
        let created = match found.header {
            Header::Sound { created } => created,
            Header::Unread | Header::Lost => self.evidence.now,
        };
        ActiveSegment::reopen(
            &self.place,
            found.base,
            end,
            scan.position,
            self.settings.segment_bytes,
            self.settings.index_interval,
            self.settings.how,
            created,
            scan.max_timestamp,
            scan.index.clone(),
        )
    }

    /// Writes the file header again where a crash took it, or where it is damaged.
    fn mend_header(&self, found: Found) -> Result<(), Error> {
        if !matches!(found.header, Header::Lost) {
            return Ok(());
        }
        let header = FileHeader::new(&self.place.identity, found.base, self.evidence.now);
        let file = self.open_file(found.base, OpenMode::Write)?;
        write_all_at(&*file, 0, &header.encode())
            .map_err(|error| self.place.io_error(&log_name(found.base), "write", error))
    }

    /// Writes again and flushes what nothing proves to be on stable storage.
    fn secure(&self, base: Offset, scan: &Scan) -> Result<(), Error> {
        if self.evidence.clean || !self.evidence.rewrite {
            return Ok(());
        }
        let name = log_name(base);
        let fault = |error| self.place.io_error(&name, "flush", error);
        let file = self.open_file(base, OpenMode::Write)?;
        let mut position = scan.unproven_position;
        let mut bytes = vec![0; COPY_BYTES];
        while position < scan.position {
            let want =
                usize::try_from(scan.position - position).unwrap_or(usize::MAX).min(COPY_BYTES);
            let count = read_full_at(&*file, position, &mut bytes[..want]).map_err(fault)?;
            if count == 0 {
                return Err(fault(io::ErrorKind::UnexpectedEof.into()));
            }
            write_all_at(&*file, position, &bytes[..count]).map_err(fault)?;
            position += count as u64;
        }
        file.sync_data().map_err(fault)?;
        self.place.disk.sync_dir(&self.place.directory).map_err(fault)
    }

    /// Cuts a torn tail: copies it aside, moves later segments aside, and shortens the file.
    fn cut(
        &mut self,
        found: Found,
        scan: &Scan,
        end: Offset,
        later: &[Found],
    ) -> Result<(), Error> {
        let reason = match &scan.stop {
            ScanEnd::Bad(source) => source.to_string(),
            ScanEnd::Clean => DecodeError::Missing.to_string(),
        };
        let bytes = found.len.saturating_sub(scan.position);
        if !self.evidence.repair {
            self.losses.push(Loss::Cut { from: end, bytes, kept: None, reason });
            return Ok(());
        }
        let name = log_name(found.base);
        let fault = |error| self.place.io_error(&name, "cut", error);
        let file = self.open_file(found.base, OpenMode::Write)?;
        let kept = self.keep_aside(&*file, found.base, scan.position);
        self.set_aside(later)?;
        if self.evidence.mapped {
            self.shorten_apart(&*file, &name, scan.position).map_err(fault)?;
        } else {
            file.set_len(scan.position).map_err(fault)?;
            file.sync_data().map_err(fault)?;
        }
        let kept = kept.ok().flatten();
        self.losses.push(Loss::Cut { from: end, bytes, kept, reason });
        Ok(())
    }

    /// Puts a copy of the first `len` bytes in the place of a file that others may have mapped.
    fn shorten_apart(&self, file: &dyn File, name: &str, len: u64) -> io::Result<()> {
        let Place { disk, directory, .. } = &self.place;
        let temporary = self.place.path(&format!("{name}.tmp"));
        copy_bytes(&**disk, file, 0..len, &temporary)?;
        disk.rename(&temporary, &self.place.path(name))?;
        disk.sync_dir(directory)
    }

    /// Keeps the bytes behind `position`, without the zeroes at their end.
    fn keep_aside(
        &self,
        file: &dyn File,
        base: Offset,
        position: u64,
    ) -> io::Result<Option<PathBuf>> {
        let mut scanner = Scanner::new(&self.place, base);
        let beyond = scanner.look_beyond(file, position, base).map_err(io::Error::other)?;
        if beyond.bytes_end <= position {
            return Ok(None);
        }
        let name = format!("{:020}-{position}.bytes", base.0);
        quarantine::keep_bytes(&self.place, file, position..beyond.bytes_end, &name).map(Some)
    }

    /// Moves segments that the log has lost its way to out of it, the last one first.
    fn set_aside(&self, later: &[Found]) -> Result<(), Error> {
        if !self.evidence.repair {
            return Ok(());
        }
        for found in later.iter().rev() {
            quarantine::move_file(&self.place, &log_name(found.base))?;
            remove_segment_files(&self.place, found.base)?;
        }
        Ok(())
    }

    /// The last segment is sound in this run of the machine, and still has to be flushed: until then no
    /// flush of the log is complete.
    fn flush_later(&mut self, base: Offset) -> Result<(), Error> {
        let file = self.open_file(base, OpenMode::Write)?;
        let segment = Arc::clone(self.segments.last().expect("it was pushed just now"));
        self.sealed.push(Sealed { segment, file, at: self.evidence.now, settled: true });
        Ok(())
    }

    fn push_sealed(&mut self, found: Found, end: Offset, position: u64) {
        let segment = Segment::sealed(self.place.clone(), found.base, end, position);
        self.segments.push(Arc::new(segment));
        self.end = end;
    }

    /// Says of the segment that was pushed last whether any of its batches has a producer.
    fn say_producers(&self, any: bool) {
        self.segments.last().expect("it was pushed just now").set_producers(any);
    }

    /// Nothing more is appended to the last segment; it is sealed as it is.
    fn retire_active(&mut self) {
        if let Some(active) = self.active.take() {
            let segment = Arc::clone(active.segment());
            let file = Arc::clone(active.file());
            let at = self.evidence.now;
            self.sealed.push(Sealed { segment, file, at, settled: false });
        }
    }

    fn damaged(&mut self, from: Offset, to: Offset, base: Offset, reason: &DecodeError) {
        let path = self.place.full_path(&log_name(base));
        self.losses.push(Loss::Damaged { from, to, path, reason: reason.to_string() });
    }

    fn open_file(&self, base: Offset, mode: OpenMode) -> Result<Arc<dyn File>, Error> {
        let name = log_name(base);
        self.place
            .disk
            .open(&self.place.path(&name), mode)
            .map_err(|error| self.place.io_error(&name, "open", error))
    }
}

/// Copies a part of a file, as far as it goes, into a new one, and flushes that.
fn copy_bytes(disk: &dyn Disk, file: &dyn File, part: Range<u64>, to: &str) -> io::Result<()> {
    match disk.remove(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let copy = disk.open(to, OpenMode::Create)?;
    let mut at = part.start;
    let mut bytes = vec![0; COPY_BYTES];
    while at < part.end {
        let want = usize::try_from(part.end - at).unwrap_or(usize::MAX).min(COPY_BYTES);
        let count = read_full_at(file, at, &mut bytes[..want])?;
        if count == 0 {
            break;
        }
        write_all_at(&*copy, at - part.start, &bytes[..count])?;
        at += count as u64;
    }
    copy.sync_data()
}
