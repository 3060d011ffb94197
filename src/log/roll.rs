//! Beginning the next segment: what the log decides, apart from the calls to the disk.
//!
//! A disk may take long for a new file, or hang. So the leader's log is asked what it needs ([`Log::begin_roll`]), the
//! file is made under no lock ([`NextSegment::make`]), and the log takes it ([`Log::end_roll`]). Meanwhile the log *rolls*:
//! the active segment takes nothing, so that the log ends where the new file's name says, and the log is neither cut
//! nor sealed, nor does it change hands. A log that is given up while it rolls leaves an empty segment behind.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::error::Error;
use crate::segment::{ActiveSegment, DATA_START, Place, Room, Segment, log_name};
use crate::types::{Offset, Timestamp};

use super::{Log, LogReader, LogSettings};

/// A segment that is to be made.
#[derive(Clone, Debug)]
pub(crate) struct NextSegment {
    place: Place,
    base: Offset,
    capacity: u64,
    settings: LogSettings,
    /// There is no directory yet, or its name may not be durable.
    is_first: bool,
    log: Arc<LogReader>,
}

/// Space that is to be made in the active segment.
#[derive(Clone, Debug)]
pub(crate) struct MoreRoom {
    room: Option<Arc<Room>>,
    range: Range<u64>,
    segment: Option<Arc<Segment>>,
}

impl MoreRoom {
    /// Makes it. Takes no lock but the space's own.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub(crate) fn make(&self, now: Timestamp) -> Result<(), Error> {
        let (Some(room), Some(segment)) = (&self.room, &self.segment) else { return Ok(()) };
        room.make_ready(self.range.clone(), now)
            .map_err(|error| segment.place.io_error(&log_name(segment.base), "allocate", error))
    }
}

impl NextSegment {
    /// Whether it is the next one of `log`.
    pub(crate) fn is_of(&self, log: &Log) -> bool {
        Arc::ptr_eq(&self.log, &log.reader)
    }

    /// Makes its file. Takes no lock.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`]; nothing is left behind.
    pub(crate) fn make(&self, now: Timestamp) -> Result<ActiveSegment, Error> {
        if self.is_first {
            make_directory(&self.place)?;
        }
        let LogSettings { index_interval, how, .. } = self.settings;
        ActiveSegment::create(&self.place, self.base, self.capacity, index_interval, how, now)
    }
}

impl Log {
    /// Whether a batch of that many bytes begins a new segment.
    pub(crate) fn lacks_segment(&self, records: u32, bytes: usize) -> bool {
        let end = self.end.plus(records.into());
        !self.active.as_ref().is_some_and(|active| active.has_room_for(bytes, end))
    }

    /// The space that a batch of that many bytes needs in the active segment.
    pub(crate) fn lacks_room(&self, bytes: usize) -> MoreRoom {
        let active = self.active.as_ref();
        let position = active.map_or(0, ActiveSegment::position);
        MoreRoom {
            room: active.map(|active| Arc::clone(active.room())),
            range: position..position + bytes as u64,
            segment: active.map(|active| Arc::clone(active.segment())),
        }
    }

    /// Whether the next segment is being made.
    pub(crate) fn is_rolling(&self) -> bool {
        self.rolls
    }

    /// Begins a roll to a segment that takes `bytes`. What waited in memory has been flushed, or written, before: the
    /// next file's name says where this one ends.
    ///
    /// # Errors
    /// [`Error::Io`]: there are no offsets left.
    pub(crate) fn begin_roll(&mut self, records: u32, bytes: usize) -> Result<NextSegment, Error> {
        assert!(!self.rolls, "one roll at a time");
        if self.end.plus(records.into()) >= Offset::MAX {
            return Err(self.place.io_error("", "append", io::ErrorKind::FileTooLarge.into()));
        }
        if let Some(active) = &mut self.active {
            assert!(active.has_landed(), "a segment is sealed when all of it is written");
            active.shut();
        }
        self.rolls = true;
        Ok(NextSegment {
            place: self.place.clone(),
            base: self.end,
            capacity: self.settings.segment_bytes.max(DATA_START + bytes as u64),
            settings: self.settings,
            is_first: self.reader.is_empty(),
            log: Arc::clone(&self.reader),
        })
    }

    /// Goes on in the new segment; the old one is sealed. Without one, nothing has changed.
    pub(crate) fn end_roll(&mut self, made: Option<ActiveSegment>, now: Timestamp) {
        assert!(self.rolls, "a roll was begun");
        self.rolls = false;
        let Some(mut made) = made else {
            if let Some(active) = &mut self.active {
                active.reopen_shut();
            }
            return;
        };
        made.set_how(self.settings.how);
        self.directory_unsynced = true;
        if self.active.as_ref().is_some_and(|active| active.segment().base == self.end) {
            // The new file has the name of an empty one, which was too small.
            self.active = None;
            self.reader.pop();
        }
        self.seal_active(now);
        self.reader.push(Arc::clone(made.segment()));
        self.active = Some(made);
        self.checkpointed = 0;
        self.attention_at = 0;
    }

    /// Begins a new active segment where nobody waits for the log's lock but its own disk's worker. If there is no
    /// room, nothing changes.
    #[cold]
    pub(super) fn roll(&mut self, records: u32, bytes: usize, now: Timestamp) -> Result<(), Error> {
        if let Some(active) = &mut self.active {
            active.write_out()?;
        }
        let made = self.begin_roll(records, bytes)?.make(now);
        let (made, outcome) = match made {
            Ok(made) => (Some(made), Ok(())),
            Err(error) => (None, Err(error)),
        };
        self.end_roll(made, now);
        outcome
    }

    /// Makes the log's directory, where there may be none.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub(crate) fn make_directory(&self) -> Result<(), Error> {
        if self.reader.is_empty() { make_directory(&self.place) } else { Ok(()) }
    }
}

fn make_directory(place: &Place) -> Result<(), Error> {
    // One level at a time, so that each name is made durable in its parent.
    let path: &str = &place.directory;
    for (at, _) in path.match_indices('/').chain([(path.len(), "")]) {
        let directory = &path[..at];
        match place.disk.create_dir(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            // One that is there may be left from before a crash, and its name not durable yet.
            _ => place.disk.sync_dir(crate::storage::parent(directory)),
        }
        .map_err(|error| place.io_error("", "create directory", error))?;
    }
    Ok(())
}
