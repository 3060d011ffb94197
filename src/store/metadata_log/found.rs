//! What the disks of a store say of its metadata, before anything is changed: which copy is the newest, and what the others
//! have of it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{DecodeError, Error, ErrorClass, Result};
use crate::protocol::metadata::{
    FrameEnd, FrameReader, MetadataState, find_valid_frame_after, peek_store,
};
use crate::storage::{Disk, read_small, replace_file};
use crate::store::layout::{METADATA, TERM};
use crate::types::{DiskId, Offset, StoreId, TopicId};

use super::{BYTES_MAX, MetadataLog, seed, term};

/// More openings than can have been of which nobody here knows.
const TERMS_SKIPPED: u64 = 1 << 32;

/// The frames of one copy, as far as they are sound.
#[derive(Debug, Default)]
pub(super) struct Copy {
    pub(super) state: MetadataState,
    pub(super) position: u64,
    pub(super) last: (u64, u64),
    pub(super) end: Option<Bad>,
}

#[derive(Debug)]
pub(super) struct Bad {
    position: u64,
    source: DecodeError,
    /// Sound frames follow: this is no torn tail.
    followed: bool,
}

/// What the disks of a store say, before anything is changed.
#[derive(Debug)]
pub(in crate::store) struct Found {
    state: MetadataState,
    /// The sound bytes of the newest copy.
    bytes: Vec<u8>,
    pub(super) last: (u64, u64),
    /// The last term that may have begun.
    term: u64,
    disks: Vec<FoundDisk>,
}

/// One disk's copies, held against the newest.
#[derive(Clone, Debug, Default)]
struct FoundDisk {
    /// The last record it has.
    last: (u64, u64),
    present: bool,
    /// Why not all of it can be read.
    unreadable: Option<Error>,
    /// Why the disk cannot take part.
    failed: Option<Error>,
    /// Copies that are not what they should be, by their place in [`METADATA`].
    stale: Vec<usize>,
    /// Those of them that are sound, and merely older.
    behind: Vec<usize>,
    /// What it decided, if it has what the newest lacks.
    strayed: Option<MetadataState>,
}

impl Found {
    /// Reads the log's copies on all `disks`. `None`: there is none.
    ///
    /// # Errors
    /// [`Error::CorruptMetadata`] if the newest is not sound to its end; nothing was changed then.
    pub(in crate::store) fn read(
        disks: &[Arc<dyn Disk>],
        expected: Option<StoreId>,
    ) -> Result<Option<Self>> {
        let mut copies = Vec::new();
        let mut found = vec![FoundDisk { stale: vec![0, 1], ..FoundDisk::default() }; disks.len()];
        for (at, disk) in disks.iter().enumerate() {
            for (name_at, name) in METADATA.iter().enumerate() {
                match read_small(&**disk, name, BYTES_MAX) {
                    Ok(bytes) => copies.push((at, name_at, decode(&bytes, expected), bytes)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => {
                        let error = Error::io(disk.root().join(name), "read", error);
                        if error.class() == ErrorClass::Retriable {
                            return Err(error);
                        }
                        // Bad sectors are damage: another copy may be sound.
                        found[at].unreadable = Some(error);
                    }
                }
            }
        }
        // What several decode, the longest decides; frames behind a break count only if no copy is whole
        // up to there.
        let best = copies
            .iter()
            .enumerate()
            .max_by_key(|(at, (_, _, copy, _))| (copy.last, std::cmp::Reverse(*at)))
            .map(|(at, _)| at);
        let known = best.is_some_and(|best| copies[best].2.last > (0, 0));
        let unreadable = found.iter().find_map(|found| found.unreadable.as_ref());
        if let Some(error) = unreadable.filter(|_| !known) {
            return Err(error.clone());
        }
        let Some(best) = best else {
            return Ok(None);
        };
        let (disk, name_at, chosen, bytes) = &copies[best];
        if chosen.last == (0, 0) {
            let empty = copies.iter().all(|(_, _, copy, bytes)| {
                copy.end.is_none() && bytes.iter().all(|byte| *byte == 0)
            });
            return if empty { Ok(None) } else { Err(corrupt(&disks[*disk], *name_at, chosen)) };
        }
        // What a crash has left of a change of several sectors looks alike, and none of it is in the disk's other copy.
        let never_made = |(at, _, copy, _): &(usize, usize, Copy, Vec<u8>)| {
            at == disk && copy.end.is_none() && copy.last > (0, 0)
        };
        if chosen.end.as_ref().is_some_and(|bad| bad.followed) && !copies.iter().any(never_made) {
            return Err(corrupt(&disks[*disk], *name_at, chosen));
        }
        let store = chosen.state.store();
        let (mut begun, mut is_damaged) = (chosen.last.0, false);
        for disk in disks {
            let known =
                store.map_or(Ok(term::Known::default()), |store| term::read(&**disk, store));
            let known = known.map_err(|error| Error::io(disk.root().join(TERM), "read", error))?;
            begun = begun.max(known.term);
            is_damaged |= known.is_damaged;
        }
        if is_damaged {
            // Of those that are here, it alone may have known what another began that is away.
            begun += TERMS_SKIPPED;
        }
        let sound = &bytes[..usize::try_from(chosen.position).expect("within the bytes")];
        for (at, name_at, copy, bytes) in &copies {
            let found = &mut found[*at];
            found.present = true;
            let is_newest = copy.last >= found.last;
            found.last = found.last.max(copy.last);
            if copy.end.is_none() && bytes.get(..sound.len()) == Some(sound) {
                found.stale.retain(|stale| stale != name_at);
            }
            if copy.end.is_none() && copy.last > (0, 0) && copy.last < chosen.last {
                found.behind.push(*name_at);
            }
            let own = &bytes[..usize::try_from(copy.position).expect("within the bytes")];
            // Of more than two, a majority has decided; what one has beyond that was never relied upon.
            let of_two = [&copy.state, &chosen.state].iter().any(|all| all.disks().count() == 2);
            if of_two && !sound.starts_with(own) && (is_newest || found.strayed.is_none()) {
                found.strayed = Some(copy.state.clone());
            }
        }
        Ok(Some(Self {
            state: chosen.state.clone(),
            bytes: sound.to_vec(),
            last: chosen.last,
            term: begun,
            disks: found,
        }))
    }

    pub(in crate::store) fn state(&self) -> &MetadataState {
        &self.state
    }

    /// Whether the disk at place `at` lacks a record that it is known to have had: an older copy of its directory
    /// was put in its place. One that cannot be read says nothing.
    pub(in crate::store) fn lacks(&self, at: usize, known: (u64, u64)) -> bool {
        let found = &self.disks[at];
        found.last < known && found.unreadable.is_none()
    }

    /// Whether the disk at place `at`, one of two, decided what the newest does not know: each may have gone on without
    /// the other. A log that was written anew meanwhile seems to have strayed as well.
    pub(in crate::store) fn strayed(&self, at: usize) -> bool {
        self.disks[at].strayed.is_some()
    }

    /// Before which offsets the disk at place `at` has deleted records of which the newest does not know.
    pub(in crate::store) fn deleted_alone(&self, at: usize) -> Vec<((TopicId, u32), Offset)> {
        let mut starts = Vec::new();
        for own in self.disks[at].strayed.iter().flat_map(MetadataState::topics) {
            let known = self.state.topic_by_name(&own.name).filter(|known| known.id == own.id);
            let known = known.map_or(&[][..], |known| &known.partitions);
            for (number, (alone, known)) in (0..).zip(own.partitions.iter().zip(known)) {
                if alone.log_start > known.log_start {
                    starts.push(((own.id, number), alone.log_start));
                }
            }
        }
        starts
    }

    /// The disk at place `at` failed: it takes no part.
    pub(in crate::store) fn leave_out(&mut self, at: usize, error: Error) {
        self.disks[at].failed = Some(error);
    }

    /// Whether the disk at place `at` has a copy, however old.
    pub(in crate::store) fn is_on(&self, at: usize) -> bool {
        self.disks[at].present
    }

    /// Refuses a log that ends before a record that is known to have been durable. What is left of that record is
    /// evidence: to be asked before anything is written.
    ///
    /// # Errors
    /// [`Error::CorruptMetadata`].
    pub(in crate::store) fn check_proven(&self, proven: (u64, u64), path: PathBuf) -> Result<()> {
        if self.last >= proven {
            return Ok(());
        }
        let (position, source) = (self.bytes.len() as u64, DecodeError::Missing);
        Err(Error::CorruptMetadata { path, position, source })
    }

    /// Opens the log on the disks that take part, by their places. Copies that are behind or damaged are
    /// written anew; returns those that were damaged, or lost. A disk that fails meanwhile takes no part
    /// ([`MetadataLog::take_failed`]), if enough are left.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`].
    pub(in crate::store) fn open(
        mut self,
        disks: &[(usize, DiskId, Arc<dyn Disk>)],
        read_only: bool,
    ) -> Result<(MetadataLog, Vec<PathBuf>)> {
        let mut repaired = Vec::new();
        let mut log = MetadataLog::over(self.state.clone(), self.bytes.len() as u64, self.last);
        for (at, id, disk) in disks {
            let opened = match self.disks[*at].failed.take() {
                Some(error) => Err(error),
                None if read_only => Ok(Vec::new()),
                None => self.mend(*at, &**disk),
            };
            match opened.and_then(|mended| log.join(*id, disk, read_only).map(|()| mended)) {
                Ok(mended) => repaired.extend(mended),
                Err(error) if error.class() == ErrorClass::Retriable => return Err(error),
                Err(error) => log.failed.push((*id, error)),
            }
        }
        if log.members.len() < log.quorum()
            && let Some((_, error)) = log.failed.pop()
        {
            return Err(error);
        }
        log.term = self.term + 1;
        // Where a majority decides; else any disk does.
        log.term_is_known = log.quorum() == 1;
        Ok((log, repaired))
    }

    /// Brings the copies of one disk up to date. Returns those that were damaged, or lost.
    fn mend(&self, at: usize, disk: &dyn Disk) -> Result<Vec<PathBuf>> {
        let mut repaired = Vec::new();
        let found = &self.disks[at];
        for name_at in &found.stale {
            let path = disk.root().join(METADATA[*name_at]);
            replace_file(disk, METADATA[*name_at], &self.bytes)
                .map_err(|error| Error::io(&path, "repair", error))?;
            // A whole copy that is merely behind is brought up to date without a word.
            if !found.behind.contains(name_at) {
                repaired.push(path);
            }
        }
        Ok(repaired)
    }
}

/// Reads a copy's frames.
pub(super) fn decode(bytes: &[u8], expected: Option<StoreId>) -> Copy {
    let mut copy = Copy::default();
    // The first frame names the store; its own checksum is seeded with the id that it carries.
    let Some(store) = expected.or_else(|| peek_store(bytes)) else {
        if bytes.iter().any(|byte| *byte != 0) {
            let source = DecodeError::Checksum("first metadata record");
            copy.end = Some(Bad { position: 0, source, followed: false });
        }
        return copy;
    };
    let mut reader = FrameReader::new(bytes, seed(store));
    loop {
        match reader.next_frame() {
            Ok(frame) => {
                let applied = copy.state.apply(&frame.record);
                if applied.is_err() || (frame.term, frame.index) <= copy.last {
                    let source = DecodeError::Misplaced("metadata record");
                    copy.end = Some(Bad { position: copy.position, source, followed: true });
                    return copy;
                }
                copy.position = frame.end as u64;
                copy.last = (frame.term, frame.index);
            }
            Err(FrameEnd::Clean) => return copy,
            Err(FrameEnd::Invalid { position, source }) => {
                let followed = find_valid_frame_after(bytes, position, seed(store)).is_some();
                copy.end = Some(Bad { position: position as u64, source, followed });
                return copy;
            }
        }
    }
}

fn corrupt(disk: &Arc<dyn Disk>, at: usize, copy: &Copy) -> Error {
    let (position, source) = match &copy.end {
        Some(bad) => (bad.position, bad.source.clone()),
        None => (copy.position, DecodeError::Missing),
    };
    Error::CorruptMetadata { path: disk.root().join(METADATA[at]), position, source }
}
