//! The active segment: the one that grows.
//!
//! Where nothing is shown before it is flushed, batches are *staged*: they wait in memory for
//! the next flush, which writes all of them with one call. What is published to readers and to the
//! worker is what was written; the stage is the writer's own.
//!
//! A replica that catches up gets batches by the mebibyte: those are written where nothing is ready yet, and no zeroes
//! before them (0.7 to 1.0 of a bare copy of the files, about 0.6 before).

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{Error, Written};
use crate::record::{BatchHeader, LENGTH_AT};
use crate::storage::{File, Mapping, OpenMode, write_all_at};
use crate::types::{Offset, Timestamp};

use super::room::{Room, is_full};
use super::{DATA_START, FileHeader, IndexEntry, Place, Segment, Source, SparseIndex, log_name};

/// What waits in memory for a flush; more than that is written at once.
const STAGE_BYTES_MAX: usize = 256 << 10;
/// Batches that are together smaller are copied into pages that are made ready.
const RUN_BYTES_MIN: usize = 16 << 10;

/// How batches get into the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteHow {
    /// Copied into a mapping whose zeroes are written in chunks of that many bytes.
    Map { chunk_bytes: u32 },
    /// Written by system calls; read from a mapping, or by system calls as well. `staged`: gathered in
    /// memory until a flush writes them at once, for topics that show nothing before it is flushed.
    Write { map_reads: bool, staged: bool },
}

impl WriteHow {
    /// As it can be done there: where a store to a mapping may find no room, by system calls.
    fn on(self, place: &Place) -> Self {
        match self {
            Self::Map { .. } if !place.disk.stores_in_place() => {
                Self::Write { map_reads: false, staged: false }
            }
            how => how,
        }
    }

    pub(crate) fn is_staged(self) -> bool {
        matches!(self, Self::Write { staged: true, .. })
    }
}

/// Batches on their way from memory to the file: one flush's.
#[derive(Debug)]
pub(crate) struct Staged {
    file: Arc<dyn File>,
    position: u64,
    bytes: Arc<Vec<u8>>,
    /// The file holds other bytes that no flush has covered.
    sync_all: bool,
}

impl Staged {
    /// Makes the directory durable that the file is in. A directory cannot be opened without a handle left, which is no
    /// failed flush: then all of the file system is flushed, by the file.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn sync_directory(&self, place: &Place) -> io::Result<()> {
        let synced = place.disk.sync_dir(&place.directory);
        if !matches!(&synced, Err(error) if error.raw_os_error().is_some_and(is_out_of_handles)) {
            return synced;
        }
        match self.file.sync_file_system() {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => synced,
            flushed => flushed,
        }
    }

    /// Writes them and makes the file durable up to their end.
    ///
    /// # Errors
    /// What the system says; what is in the file is then not known.
    pub(crate) fn write(&self) -> io::Result<()> {
        if self.sync_all {
            write_all_at(&*self.file, self.position, &self.bytes)?;
            return self.file.sync_data();
        }
        if self.bytes.is_empty() {
            return Ok(());
        }
        self.file.write_durably_at(self.position, &self.bytes)
    }
}

/// What a flush has on its way.
#[derive(Debug)]
struct InFlight {
    position: u64,
    bytes: Arc<Vec<u8>>,
    /// It is in the file all the same.
    is_written: bool,
}

/// The writer's side of the active segment.
///
/// Invariant: the file holds every batch but those in `stage`, which end at `position`, and those that
/// are `in_flight` with a flush, which end where the stage begins.
#[derive(Debug)]
pub(crate) struct ActiveSegment {
    segment: Arc<Segment>,
    file: Arc<dyn File>,
    map: Option<Arc<Mapping>>,
    room: Arc<Room>,
    end: Offset,
    position: u64,
    capacity: u64,
    created: Timestamp,
    max_timestamp: Timestamp,
    indexed: u64,
    index_interval: u64,
    staging: bool,
    stage: Vec<u8>,
    spare: Vec<u8>,
    /// One past the last offset that is not in the stage.
    unstaged_end: Offset,
    /// What a flush has on its way, in that order before the stage.
    in_flight: Option<InFlight>,
    /// Bytes were written that no flush has covered.
    dirty: bool,
    /// No batch is written by who appends it: one that is larger than the stage waits in an empty one.
    apart: bool,
    /// Capacity and space of a segment that takes nothing while the next one is made.
    shut: Option<(u64, Arc<Room>)>,
}

impl ActiveSegment {
    /// Makes a new, empty segment. Its name is not durable until the directory is synced.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`]; nothing is left behind.
    pub(crate) fn create(
        place: &Place,
        base: Offset,
        capacity: u64,
        index_interval: u32,
        how: WriteHow,
        now: Timestamp,
    ) -> Result<Self, Error> {
        let name = log_name(base);
        let temporary = format!("{name}.tmp");
        let path = place.path(&name);
        let temporary_path = place.path(&temporary);
        let fault = |error| place.io_error(&name, "create", error);
        match place.disk.remove(&temporary_path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fault(error)),
            _ => {}
        }
        let made = (|| {
            let file = place.disk.open(&temporary_path, OpenMode::Create)?;
            write_all_at(&*file, 0, &FileHeader::new(&place.identity, base, now).encode())?;
            let made = Self::over(
                place,
                file,
                base,
                base,
                DATA_START,
                capacity,
                index_interval,
                how,
                now,
            )?;
            let first = DATA_START..DATA_START + 1;
            if base == Offset::ZERO {
                made.room.write_zeroes(first.end)?; // most partitions are idle: page tables cost memory
            } else {
                made.room.make_ready(first, now)?;
            }
            place.disk.rename(&temporary_path, &path)?;
            Ok(made)
        })();
        made.map_err(|error| {
            // Best effort: the next attempt removes a leftover as well.
            let _ = place.disk.remove(&temporary_path);
            fault(error)
        })
    }

    /// Takes over a segment whose last batch ends at `position`; everything behind is zero or cut.
    ///
    /// # Errors
    /// [`Error::Io`].
    #[expect(clippy::too_many_arguments, reason = "what recovery found, once, by name")]
    pub(crate) fn reopen(
        place: &Place,
        base: Offset,
        end: Offset,
        position: u64,
        capacity: u64,
        index_interval: u32,
        how: WriteHow,
        created: Timestamp,
        max_timestamp: Timestamp,
        index: SparseIndex,
    ) -> Result<Self, Error> {
        let name = log_name(base);
        let made = (|| {
            let file = place.disk.open(&place.path(&name), OpenMode::Write)?;
            Self::over(place, file, base, end, position, capacity, index_interval, how, created)
        })();
        let mut made = made.map_err(|error| place.io_error(&name, "open", error))?;
        made.max_timestamp = max_timestamp;
        made.indexed = index.entries.last().map_or(DATA_START, |entry| entry.position.into());
        made.segment.max_timestamp.store(max_timestamp.0, Ordering::Release);
        let mut growing = made.segment.growing.write();
        growing.entries.extend(index.entries);
        growing.aborted = index.aborted;
        drop(growing);
        Ok(made)
    }

    #[expect(clippy::too_many_arguments, reason = "the one constructor behind two doors")]
    fn over(
        place: &Place,
        file: Arc<dyn File>,
        base: Offset,
        end: Offset,
        position: u64,
        capacity: u64,
        index_interval: u32,
        how: WriteHow,
        created: Timestamp,
    ) -> io::Result<Self> {
        let capacity = capacity.max(position);
        let len = usize::try_from(capacity).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let how = how.on(place);
        let (chunk, map, map_reads) = match how {
            WriteHow::Map { chunk_bytes } => {
                (chunk_bytes, Some(Arc::new(file.map(len, true)?)), None)
            }
            WriteHow::Write { map_reads: true, .. } => {
                (64 << 10, None, Some(Arc::new(file.map(len, false)?)))
            }
            WriteHow::Write { map_reads: false, .. } => (64 << 10, None, None),
        };
        let segment = Segment::new(place.clone(), base);
        segment.end.store(end.0, Ordering::Release);
        segment.position.store(position, Ordering::Release);
        let capacity_entries = capacity / u64::from(index_interval.max(1)) + 1;
        *segment.growing.write() = SparseIndex::with_capacity(
            usize::try_from(capacity_entries.min(1 << 20)).expect("bounded just now"),
        );
        *segment.source.write() = match map.clone().or(map_reads) {
            Some(map) => Source::Mapped(map),
            None => Source::File(Arc::clone(&file)),
        };
        let limits = (position, capacity, chunk.into());
        let room = Room::new(Arc::clone(&file), map.clone(), limits, created);
        Ok(Self {
            segment: Arc::new(segment),
            file,
            map,
            room: Arc::new(room),
            end,
            position,
            capacity,
            created,
            max_timestamp: Timestamp::MIN,
            indexed: DATA_START,
            index_interval: index_interval.into(),
            staging: how.is_staged(),
            stage: Vec::new(),
            spare: Vec::new(),
            unstaged_end: end,
            in_flight: None,
            dirty: true,
            apart: false,
            shut: None,
        })
    }

    /// Whether a batch of that many bytes and offsets belongs into this segment and not the next.
    #[inline]
    pub(crate) fn has_room_for(&self, bytes: usize, end: Offset) -> bool {
        self.position + bytes as u64 <= self.capacity
            && end.since(self.segment.base) <= u64::from(u32::MAX)
            // Held there, it may be less than the batch has.
            && end < Offset::MAX
    }

    /// Puts a sealed batch behind the last one. `bytes` begin with `header`.
    ///
    /// # Errors
    /// [`Error::NoSpace`] and [`Error::Io`]; with a mapping nothing was written then. After a failed
    /// plain write, what is in the file is not known: the caller fences the replica.
    #[inline(always)]
    pub(crate) fn append(
        &mut self,
        bytes: &[u8],
        header: &BatchHeader,
        now: Timestamp,
    ) -> Result<(), Error> {
        let start = self.position;
        let end = start + bytes.len() as u64;
        if !self.room.is_ready(end, now) {
            self.room.make_ready(start..end, now).map_err(|error| self.fault("allocate", error))?;
        }
        self.index_if_due();
        match &self.map {
            Some(map) => {
                let at = usize::try_from(start).expect("a mapped position fits an address");
                map.put(at, &bytes[..LENGTH_AT]);
                map.put(at + LENGTH_AT + 4, &bytes[LENGTH_AT + 4..]);
                // The length goes last: whoever sees it sees the batch.
                map.publish_u32(at + LENGTH_AT, header.length);
                map.prefetch(at + bytes.len());
            }
            None if self.stage_takes(bytes.len()) => {
                self.stage.extend_from_slice(bytes);
            }
            None => {
                self.write_out()?;
                self.write(start, bytes)?;
                self.dirty = true;
            }
        }
        self.advance(end, header, now);
        Ok(())
    }

    /// Writes a batch. One whose end is missing may be whole all the same: what lies there is zero.
    fn write(&self, position: u64, bytes: &[u8]) -> Result<(), Error> {
        let mut left = bytes;
        while !left.is_empty() {
            let at = position + (bytes.len() - left.len()) as u64;
            let source = match self.file.write_at(at, left) {
                Ok(0) => io::ErrorKind::WriteZero.into(),
                Ok(count) => {
                    left = &left[count..];
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if is_full(&error) && left.len() == bytes.len() => {
                    return Err(self.fault("write", error));
                }
                Err(error) => error,
            };
            let path = self.segment.place.full_path(&log_name(self.segment.base));
            let (action, written, source) = ("write", Written::Unknown, Arc::new(source));
            return Err(Error::Io { path, action, written, source });
        }
        Ok(())
    }

    /// Whether that many bytes of sealed batches are better written than copied: their pages are not ready.
    pub(crate) fn writes_run(&self, bytes: usize, now: Timestamp) -> bool {
        self.map.is_some() && bytes >= RUN_BYTES_MIN && !self.has_space_for(bytes, now)
    }

    /// Puts sealed batches behind the last one, all with one call.
    ///
    /// # Errors
    /// [`Error::NoSpace`]: nothing was written. [`Error::Io`]: what is in the file behind the last batch is not known.
    pub(crate) fn append_run(&mut self, mut bytes: &[u8], now: Timestamp) -> Result<(), Error> {
        self.room.write(self.position, bytes).map_err(|error| self.fault("write", error))?;
        while let Some(header) = BatchHeader::trusted(bytes) {
            self.index_if_due();
            self.advance(self.position + header.len() as u64, &header, now);
            bytes = &bytes[header.len()..];
        }
        Ok(())
    }

    /// A batch that ends at `position` is in the file or in the stage.
    #[inline(always)]
    fn advance(&mut self, position: u64, header: &BatchHeader, now: Timestamp) {
        self.position = position;
        self.end = header.end_offset();
        if header.max_timestamp > self.max_timestamp {
            self.max_timestamp = header.max_timestamp;
            self.segment.max_timestamp.store(header.max_timestamp.0, Ordering::Relaxed);
        }
        self.segment.last_append.store(now.0, Ordering::Relaxed);
        if self.stage.is_empty() {
            self.unstaged_end = self.end;
            self.publish();
        }
    }

    /// Shows to readers what is in the file without a gap.
    #[inline]
    fn publish(&self) {
        if self.in_flight.as_ref().is_none_or(|flight| flight.is_written) {
            self.segment.end.store(self.unstaged_end.0, Ordering::Relaxed);
            let position = self.position - self.stage.len() as u64;
            self.segment.position.store(position, Ordering::Release);
        }
    }

    /// Writes what is staged, without a flush.
    ///
    /// # Errors
    /// [`Error::Io`]: what is in the file is not known, the caller fences the replica.
    pub(crate) fn write_out(&mut self) -> Result<(), Error> {
        if self.stage.is_empty() {
            return Ok(());
        }
        let position = self.position - self.stage.len() as u64;
        write_all_at(&*self.file, position, &self.stage)
            .map_err(|error| self.fault("write", error))?;
        self.stage.clear();
        self.dirty = true;
        self.unstaged_end = self.end;
        self.publish();
        Ok(())
    }

    /// Writes everything that is in memory only, without a flush. What a flush has on its way as well: it may be the same
    /// bytes to the same place once more, but acknowledged by being in the file is only what is.
    ///
    /// # Errors
    /// As for [`ActiveSegment::write_out`].
    pub(crate) fn write_all_out(&mut self) -> Result<(), Error> {
        if let Some(flight) = &mut self.in_flight {
            let written = write_all_at(&*self.file, flight.position, &flight.bytes);
            flight.is_written = written.is_ok();
            written.map_err(|error| self.fault("write", error))?;
            self.dirty = true;
        }
        self.write_out()?;
        self.publish();
        Ok(())
    }

    /// Whether batches wait in memory from here on. To stop that, [`ActiveSegment::write_all_out`] first.
    pub(crate) fn set_how(&mut self, how: WriteHow) {
        self.staging = self.map.is_none() && how.is_staged();
    }

    /// Whether the segment was begun for batches that are put in place like this.
    pub(crate) fn suits(&self, how: WriteHow) -> bool {
        self.map.is_some() == matches!(how.on(&self.segment.place), WriteHow::Map { .. })
    }

    /// What a flush has to write and to make durable. One at a time, until [`ActiveSegment::landed`].
    pub(crate) fn take_staged(&mut self) -> Staged {
        let spare = std::mem::take(&mut self.spare);
        let bytes = Arc::new(std::mem::replace(&mut self.stage, spare));
        let position = self.position - bytes.len() as u64;
        self.in_flight = (!bytes.is_empty()).then(|| InFlight {
            position,
            bytes: Arc::clone(&bytes),
            is_written: false,
        });
        self.unstaged_end = self.end;
        Staged {
            file: Arc::clone(&self.file),
            position,
            bytes,
            sync_all: std::mem::replace(&mut self.dirty, self.map.is_some()),
        }
    }

    /// Takes note that the flush succeeded.
    pub(crate) fn landed(&mut self, staged: Staged) {
        self.in_flight = None;
        self.spare = Arc::try_unwrap(staged.bytes).unwrap_or_default();
        self.spare.clear();
        self.spare.shrink_to(STAGE_BYTES_MAX);
        self.publish();
    }

    /// Takes nothing from here on, so that the log ends where the next segment begins.
    pub(crate) fn shut(&mut self) {
        let none = Room::none(Arc::clone(&self.file));
        let room = std::mem::replace(&mut self.room, Arc::new(none));
        self.shut = Some((std::mem::replace(&mut self.capacity, self.position), room));
    }

    /// There is no next segment: smaller batches may still fit.
    pub(crate) fn reopen_shut(&mut self) {
        if let Some((capacity, room)) = self.shut.take() {
            (self.capacity, self.room) = (capacity, room);
        }
    }

    /// Whether calls to the disk are made apart from appends.
    pub(crate) fn set_apart(&mut self, apart: bool) {
        self.apart = apart;
    }

    #[inline]
    fn stage_takes(&self, bytes: usize) -> bool {
        let fits = self.stage.len() + bytes <= STAGE_BYTES_MAX;
        self.staging && (fits || self.apart && self.stage.is_empty())
    }

    /// Whether a batch has to wait until what is in memory was flushed.
    #[inline]
    pub(crate) fn stage_is_full_for(&self, bytes: usize) -> bool {
        self.apart && !self.stage.is_empty() && self.stage.len() + bytes > STAGE_BYTES_MAX
    }

    /// Whether everything is in the file.
    #[inline]
    pub(crate) fn has_landed(&self) -> bool {
        self.stage.is_empty() && self.in_flight.is_none()
    }

    /// Whether a flush is on its way: until it landed, the segment must not be sealed.
    pub(crate) fn is_in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Whether there is space for that many bytes.
    #[inline]
    pub(crate) fn has_space_for(&self, bytes: usize, now: Timestamp) -> bool {
        self.room.is_ready(self.position + bytes as u64, now)
    }

    /// Whether that many bytes can be appended without a call to the disk.
    #[inline]
    pub(crate) fn is_ready_for(&self, bytes: usize, now: Timestamp) -> bool {
        (self.map.is_some() || self.stage_takes(bytes)) && self.has_space_for(bytes, now)
    }

    /// The batches that are in no file yet, in two rows.
    pub(crate) fn unwritten(&self) -> [&[u8]; 2] {
        let flight = self.in_flight.as_ref().filter(|flight| !flight.is_written);
        [flight.map_or(&[], |flight| flight.bytes.as_slice()), &self.stage]
    }

    #[inline(always)]
    fn index_if_due(&mut self) {
        if self.position - self.indexed >= self.index_interval {
            self.push_index_entry();
        }
    }

    #[cold]
    fn push_index_entry(&mut self) {
        self.indexed = self.position;
        let relative = u32::try_from(self.end.since(self.segment.base));
        let position = u32::try_from(self.position);
        if let (Ok(relative_offset), Ok(position)) = (relative, position) {
            let time_before = self.max_timestamp;
            self.segment.growing.write().push(IndexEntry {
                relative_offset,
                position,
                time_before,
            });
        }
    }

    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    pub(crate) fn file(&self) -> &Arc<dyn File> {
        &self.file
    }

    pub(crate) fn room(&self) -> &Arc<Room> {
        &self.room
    }

    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// When the segment was begun.
    pub(crate) fn created(&self) -> Timestamp {
        self.created
    }

    fn fault(&self, action: &'static str, error: io::Error) -> Error {
        self.segment.place.io_error(&log_name(self.segment.base), action, error)
    }
}

/// `ENFILE`, `EMFILE`.
fn is_out_of_handles(code: i32) -> bool {
    matches!(code, 23 | 24)
}
