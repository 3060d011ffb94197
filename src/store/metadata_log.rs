//! The metadata log on its disk: two copies of one file of frames.
//!
//! A change is written and synced in both copies, one after the other, before it counts. So a frame at
//! the end of a copy that does not decode is either torn (then the other copy does not have it, or has
//! it whole) or damaged (then the other copy has it whole): the longer sound copy is always the truth,
//! and a single flipped byte costs nothing. With several disks, each keeps such a log, and the newest by
//! (term, index) wins.
//!
//! Space is allocated ahead, with a reserve that only deletions may use: on a full disk, a topic can
//! always be deleted and records can always be let go.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{DecodeError, Error, Result};
use crate::protocol::metadata::{
    FrameEnd, FrameReader, MetadataRecord, MetadataState, encode_frame, find_valid_frame_after,
};
use crate::storage::{Disk, File, OpenMode, parent, read_small, replace_file, write_all_at};
use crate::types::{DiskId, StoreId};

use super::layout::METADATA;

/// Allocated ahead of the last frame, in steps of that size.
const STEP_BYTES: u64 = 64 << 10;
/// What only deletions may use.
const RESERVE_BYTES: u64 = 16 << 10;
/// A log this much longer than its contents is written anew.
const COMPACT_BYTES: u64 = 1 << 20;
/// A metadata log is never longer than this.
const BYTES_MAX: usize = 1 << 30;

/// The frames of one copy, as far as they are sound.
#[derive(Debug, Default)]
struct Copy {
    state: MetadataState,
    position: u64,
    last: (u64, u64),
    end: Option<Bad>,
}

#[derive(Debug)]
struct Bad {
    position: u64,
    source: DecodeError,
    /// Sound frames follow: this is no torn tail.
    followed: bool,
}

/// The metadata log, open.
#[derive(Debug)]
pub(super) struct MetadataLog {
    disk: Arc<dyn Disk>,
    files: Vec<Arc<dyn File>>,
    state: MetadataState,
    position: u64,
    allocated: u64,
    /// The reign of this opening; rises with its first change.
    term: u64,
    last: (u64, u64),
    compacted: u64,
    poisoned: bool,
}

impl MetadataLog {
    /// Begins the log of a new store.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`]; the directory is then no store yet.
    pub(super) fn create(
        disk: &Arc<dyn Disk>,
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
        for name in METADATA {
            replace_file(&**disk, name, &bytes)
                .map_err(|error| Error::io(disk.root().join(name), "write", error))?;
        }
        let position = bytes.len() as u64;
        let mut log = Self::over(disk, state, position, (1, index))?;
        log.term = 1;
        Ok(log)
    }

    /// Opens the log of a store. `None`: there is none. Also returns the copies that were written anew.
    ///
    /// # Errors
    /// [`Error::CorruptMetadata`] if neither copy is sound to its end; nothing was changed then.
    pub(super) fn open(
        disk: &Arc<dyn Disk>,
        expected: Option<StoreId>,
        read_only: bool,
    ) -> Result<Option<(Self, Vec<PathBuf>)>> {
        let mut copies = Vec::new();
        for name in METADATA {
            copies.push(match read_small(&**disk, name, BYTES_MAX) {
                Ok(bytes) => Some((decode(&bytes, expected), bytes)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(Error::io(disk.root().join(name), "read", error)),
            });
        }
        // What both decode, the longer one decides; frames behind a break count only if no copy is
        // whole up to there.
        let best = copies
            .iter()
            .enumerate()
            .filter_map(|(at, copy)| Some((at, &copy.as_ref()?.0)))
            .max_by_key(|(at, copy)| (copy.last, std::cmp::Reverse(*at)))
            .map(|(at, _)| at);
        let Some(best) = best else {
            return Ok(None);
        };
        let other = copies[1 - best].as_ref().map_or((0, 0), |(copy, _)| copy.last);
        let (chosen, bytes) = copies[best].take().expect("the best copy is there");
        if chosen.last == (0, 0) {
            return if bytes.iter().all(|byte| *byte == 0) && chosen.end.is_none() {
                Ok(None)
            } else {
                Err(corrupt(disk, best, &chosen))
            };
        }
        let followed = chosen.end.as_ref().is_some_and(|bad| bad.followed);
        if followed {
            return Err(corrupt(disk, best, &chosen));
        }
        let sound = &bytes[..usize::try_from(chosen.position).expect("within the bytes")];
        let mut repaired = Vec::new();
        if !read_only {
            for (at, name) in METADATA.into_iter().enumerate() {
                let whole = if at == best { chosen.end.is_none() } else { other == chosen.last };
                let same = at == best
                    || copies[at].as_ref().is_some_and(|(copy, bytes)| {
                        copy.end.is_none() && bytes.get(..sound.len()) == Some(sound)
                    });
                if !(whole && same) {
                    let path = disk.root().join(name);
                    replace_file(&**disk, name, sound)
                        .map_err(|error| Error::io(&path, "repair", error))?;
                    repaired.push(path);
                }
            }
        }
        let mut log = if read_only {
            Self::reading(disk, chosen.state, chosen.position, chosen.last)
        } else {
            Self::over(disk, chosen.state, chosen.position, chosen.last)?
        };
        log.term = chosen.last.0 + 1;
        Ok(Some((log, repaired)))
    }

    fn reading(
        disk: &Arc<dyn Disk>,
        state: MetadataState,
        position: u64,
        last: (u64, u64),
    ) -> Self {
        Self {
            disk: Arc::clone(disk),
            files: Vec::new(),
            state,
            position,
            allocated: 0,
            term: 0,
            last,
            compacted: position,
            poisoned: false,
        }
    }

    fn over(
        disk: &Arc<dyn Disk>,
        state: MetadataState,
        position: u64,
        last: (u64, u64),
    ) -> Result<Self> {
        let mut log = Self::reading(disk, state, position, last);
        for name in METADATA {
            let file = disk
                .open(name, OpenMode::Write)
                .map_err(|error| Error::io(disk.root().join(name), "open", error))?;
            log.files.push(file);
        }
        log.allocated = position;
        Ok(log)
    }

    /// What has been decided.
    pub(super) fn state(&self) -> &MetadataState {
        &self.state
    }

    /// The last durable record.
    pub(super) fn position(&self) -> (u64, u64) {
        self.last
    }

    /// Whether a write failed: nothing can be changed any more.
    pub(super) fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// The store's id and the disk's, as the log knows them.
    ///
    /// # Errors
    /// [`Error::CorruptMetadata`] if the log does not say.
    pub(super) fn identity(&self, disk: DiskId) -> Result<(StoreId, u128, u64)> {
        let known = self.state.store().zip(self.state.disk(disk));
        let missing = || Error::CorruptMetadata {
            path: self.disk.root().join(METADATA[0]),
            position: 0,
            source: DecodeError::Missing,
        };
        known.map(|(store, disk)| (store, disk.uuid, disk.incarnation)).ok_or_else(missing)
    }

    /// Refuses a log that ends before a record that is known to have been durable.
    ///
    /// # Errors
    /// [`Error::CorruptMetadata`].
    pub(super) fn check_proven(&self, proven: (u64, u64)) -> Result<()> {
        if self.last >= proven {
            return Ok(());
        }
        Err(Error::CorruptMetadata {
            path: self.disk.root().join(METADATA[0]),
            position: self.position,
            source: DecodeError::Missing,
        })
    }

    /// Reads on from what the owner has written since. For readers.
    ///
    /// # Errors
    /// As for [`MetadataLog::open`].
    pub(super) fn reload(&mut self) -> Result<()> {
        let store = self.state.store();
        if let Some((log, _)) = Self::open(&self.disk, store, true)?
            && log.last >= self.last
        {
            *self = log;
        }
        Ok(())
    }

    /// Makes a change: durable in both copies when this returns.
    ///
    /// # Errors
    /// [`Error::NoSpace`]: nothing was changed. After [`Error::Io`], whether the change will be there at
    /// the next open is not known, and no further one is accepted until then.
    pub(super) fn commit(&mut self, record: &MetadataRecord) -> Result<()> {
        if self.poisoned {
            return Err(Error::Io {
                path: self.disk.root().join(METADATA[0]),
                action: "write after a failed write",
                written: crate::error::Written::No,
                source: Arc::new(io::ErrorKind::Other.into()),
            });
        }
        let store = self.state.store().or(match record {
            MetadataRecord::StoreCreated { store, .. } => Some(*store),
            _ => None,
        });
        let Some(store) = store else {
            return Err(corrupt_state("the log names no store"));
        };
        let next = (self.term.max(self.last.0), self.last.1 + 1);
        let mut frame = Vec::new();
        encode_frame(next.0, next.1, record, seed(store), &mut frame);
        self.make_room(frame.len() as u64, frees_space(record))?;
        let mut state = self.state.clone();
        apply(&mut state, record)?;
        for (file, name) in self.files.iter().zip(METADATA) {
            let written =
                write_all_at(&**file, self.position, &frame).and_then(|()| file.sync_data());
            if let Err(error) = written {
                self.poisoned = true;
                return Err(Error::Io {
                    path: self.disk.root().join(name),
                    action: "write",
                    written: crate::error::Written::Unknown,
                    source: Arc::new(error),
                });
            }
        }
        self.state = state;
        self.position += frame.len() as u64;
        self.last = next;
        if self.position > COMPACT_BYTES && self.position > 4 * self.compacted {
            self.compact(store);
        }
        Ok(())
    }

    /// Allocates room for a frame of `bytes`, and the reserve behind it.
    fn make_room(&mut self, bytes: u64, may_use_reserve: bool) -> Result<()> {
        let end = self.position + bytes;
        let wanted = end + RESERVE_BYTES;
        if self.allocated >= wanted {
            return Ok(());
        }
        let target = wanted.next_multiple_of(STEP_BYTES);
        for (file, name) in self.files.iter().zip(METADATA) {
            let from = self.allocated.min(target);
            let allocated = file.allocate(from, target - from);
            if let Err(error) = allocated {
                if may_use_reserve && self.allocated >= end {
                    return Ok(());
                }
                return Err(Error::io(self.disk.root().join(name), "allocate", error));
            }
        }
        self.allocated = target;
        Ok(())
    }

    /// Writes the log anew, without what no longer matters. A failure leaves the old log, which is good.
    fn compact(&mut self, store: StoreId) {
        let mut bytes = Vec::new();
        let (term, mut index) = self.last;
        let records = self.state.snapshot();
        for record in &records {
            index += 1;
            encode_frame(term, index, record, seed(store), &mut bytes);
        }
        self.compacted = bytes.len() as u64;
        if bytes.len() as u64 >= self.position {
            return;
        }
        for name in METADATA {
            if replace_file(&*self.disk, name, &bytes).is_err() {
                // One copy may be new and one old: both are sound, and the new one is the longer by
                // index. The handles may point at either, so nothing more is written to them.
                self.poisoned = true;
                return;
            }
        }
        let _ = self.disk.sync_dir(parent(METADATA[0]));
        match Self::over(
            &self.disk,
            std::mem::take(&mut self.state),
            bytes.len() as u64,
            (term, index),
        ) {
            Ok(log) => *self = Self { term: self.term, compacted: self.compacted, ..log },
            Err(_) => self.poisoned = true,
        }
    }
}

/// Whether a change lets files be removed: it may use the reserve of a full disk.
fn frees_space(record: &MetadataRecord) -> bool {
    matches!(
        record,
        MetadataRecord::TopicDeleted { .. }
            | MetadataRecord::TopicRemoved { .. }
            | MetadataRecord::LogStartRaised { .. }
            | MetadataRecord::ReplicaSuspect { .. }
            | MetadataRecord::Opened { .. }
    )
}

fn decode(bytes: &[u8], expected: Option<StoreId>) -> Copy {
    let mut copy = Copy::default();
    // The first frame names the store; its own checksum is seeded with the id that it carries.
    let Some(store) = expected.or_else(|| crate::protocol::metadata::peek_store(bytes)) else {
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
