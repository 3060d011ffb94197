//! One segment: a file of batches, and what makes finding them quick.
//!
//! A segment is named after its first offset and ends where the next one begins. One of them, the
//! active one, grows ([`ActiveSegment`]); the others are sealed, and a side file beside each holds
//! its index ([`SideFile`]). The data file alone is the truth: a side file can be lost and is
//! rebuilt with the same answers.
//!
//! Threads: any number of readers beside one writer. A reader never looks behind
//! [`Segment::position`], which the writer raises after the bytes are in place.
//!
//! Leaves to others: which segments a log has, when to roll, what to flush, what to do about damage.

pub(crate) mod batches;
mod file_header;
mod grant;
mod index;
mod reader;
mod room;
mod scan;
mod side_file;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use parking_lot::RwLock;

use crate::error::{DecodeError, Error};
use crate::protocol::producer_state::transactions::AbortedRange;
use crate::storage::{
    BufferPool, Disk, File, Mapping, OpenMode, replace_file, replace_file_unsynced,
};
use crate::types::{LeaderEpoch, Offset, StoreId, Timestamp, TopicId, TopicPartition};

pub(crate) use file_header::{DATA_START, FILE_HEADER_BYTES, FileHeader, HeaderFault};
pub(crate) use grant::Grant;
pub(crate) use index::{IndexEntry, SparseIndex};
pub(crate) use reader::Fetched;
pub(crate) use room::Room;
pub(crate) use scan::{Scan, ScanEnd, Scanner, aborted_by};
#[cfg(any(test, feature = "simulation"))]
pub(crate) use side_file::put_checksums as put_side_checksums;
pub(crate) use side_file::{SideFile, SideHead};
pub(crate) use writer::{ActiveSegment, Staged, WriteHow};

/// Whose log a file belongs to; every checksum of a batch header starts from `seed`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) partition: TopicPartition,
    pub(crate) store: StoreId,
    pub(crate) topic: TopicId,
    pub(crate) seed: u32,
}

impl Identity {
    pub(crate) fn new(store: StoreId, topic: TopicId, partition: TopicPartition) -> Self {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&store.0.to_le_bytes());
        hasher.update(&topic.0.to_le_bytes());
        hasher.update(&partition.partition().to_le_bytes());
        Self { partition, store, topic, seed: hasher.finalize() }
    }
}

/// The name of the data file whose first offset is `base`.
pub(crate) fn log_name(base: Offset) -> String {
    format!("{:020}.log", base.0)
}

/// The name of the side file beside it.
pub(crate) fn side_name(base: Offset) -> String {
    format!("{:020}.side", base.0)
}

/// The first offset that a data file's name tells; `None` if it is no data file's name.
pub(crate) fn parse_log_name(name: &str) -> Option<Offset> {
    parse_name(name, ".log")
}

/// The first offset that a side file's name tells; `None` if it is no side file's name.
pub(crate) fn parse_side_name(name: &str) -> Option<Offset> {
    parse_name(name, ".side")
}

/// The offset in a name of twenty digits and `suffix`.
pub(crate) fn parse_name(name: &str, suffix: &str) -> Option<Offset> {
    let digits = name.strip_suffix(suffix)?;
    let all_digits = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let base = all_digits.then(|| digits.parse().ok())??;
    (base <= Offset::MAX.0).then_some(Offset(base))
}

/// Where a partition's files are, and what opening them takes.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) identity: Arc<Identity>,
    pub(crate) disk: Arc<dyn Disk>,
    /// The partition's directory on the disk.
    pub(crate) directory: Arc<str>,
    pub(crate) buffers: BufferPool,
    /// Whether sealed segments are read through a mapping.
    pub(crate) map_sealed: bool,
}

impl Place {
    /// The path of a file of the partition, relative to the disk.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.directory)
    }

    /// The path as a person would type it.
    pub(crate) fn full_path(&self, name: &str) -> PathBuf {
        self.disk.root().join(self.directory.as_ref()).join(name)
    }

    /// Names the file and the action that the system refused.
    pub(crate) fn io_error(
        &self,
        name: &str,
        action: &'static str,
        source: std::io::Error,
    ) -> Error {
        Error::io(self.full_path(name), action, source)
    }
}

/// How the bytes of a segment are reached.
#[derive(Clone, Debug)]
enum Source {
    /// Not opened yet, or closed again.
    Closed,
    /// By reading the file.
    File(Arc<dyn File>),
    /// In memory, as far as they are written.
    Mapped(Arc<Mapping>),
}

/// One segment, as readers share it.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) base: Offset,
    pub(crate) place: Place,
    /// One past the last offset.
    end: AtomicU64,
    /// One past the last byte of the last batch.
    position: AtomicU64,
    max_timestamp: AtomicI64,
    last_append: AtomicI64,
    sealed: AtomicBool,
    /// Whether any batch may have a producer.
    producers: AtomicBool,
    source: RwLock<Source>,
    index: RwLock<Option<Arc<SparseIndex>>>,
    /// The index of the active segment grows in place; a sealed one's is shared above.
    growing: RwLock<SparseIndex>,
}

impl Segment {
    /// A segment whose side file vouches for it, or whose extent the log knows from elsewhere.
    pub(crate) fn sealed(place: Place, base: Offset, end: Offset, position: u64) -> Self {
        let segment = Self::new(place, base);
        segment.end.store(end.0, Ordering::Release);
        segment.position.store(position, Ordering::Release);
        segment.sealed.store(true, Ordering::Release);
        segment.producers.store(true, Ordering::Release);
        segment
    }

    /// One of which nothing is known yet, and that others append to: to be walked over.
    pub(crate) fn growing(place: Place, base: Offset) -> Self {
        Self::new(place, base)
    }

    /// The same segment as the file has it that now bears its name: this one may hold another open, which was removed
    /// or replaced.
    pub(crate) fn by_name(&self) -> Self {
        Self::sealed(self.place.clone(), self.base, self.end(), self.position())
    }

    fn new(place: Place, base: Offset) -> Self {
        Self {
            base,
            place,
            end: AtomicU64::new(base.0),
            position: AtomicU64::new(DATA_START),
            max_timestamp: AtomicI64::new(i64::MIN),
            last_append: AtomicI64::new(i64::MIN),
            sealed: AtomicBool::new(false),
            producers: AtomicBool::new(false),
            source: RwLock::new(Source::Closed),
            index: RwLock::new(None),
            growing: RwLock::new(SparseIndex::default()),
        }
    }

    /// One past the last offset.
    pub(crate) fn end(&self) -> Offset {
        Offset(self.end.load(Ordering::Acquire))
    }

    /// One past the last byte of the last batch; everything before it is in place.
    pub(crate) fn position(&self) -> u64 {
        self.position.load(Ordering::Acquire)
    }

    /// Whether nothing will be appended any more.
    pub(crate) fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.end() == self.base
    }

    /// Whether any batch has a producer; also `true` where it is not known.
    pub(crate) fn may_have_producers(&self) -> bool {
        self.producers.load(Ordering::Acquire)
    }

    /// As [`Segment::may_have_producers`], looked up in the side file if need be.
    pub(crate) fn knows_producers(&self) -> bool {
        if self.may_have_producers() && self.is_sealed() {
            let head = Self::read_side_head(&self.place, self.base);
            if let Some(head) = head.filter(|head| head.end == self.end()) {
                self.set_producers(head.producers);
            }
        }
        self.may_have_producers()
    }

    /// Whether it is read from memory, without a call to the disk.
    pub(crate) fn is_mapped(&self) -> bool {
        matches!(&*self.source.read(), Source::Mapped(_))
    }

    /// Says whether any batch has a producer.
    pub(crate) fn set_producers(&self, any: bool) {
        self.producers.store(any, Ordering::Release);
    }

    /// A transaction was aborted by the marker that was appended last.
    pub(crate) fn push_aborted(&self, range: AbortedRange) {
        self.growing.write().aborted.push(range);
    }

    /// Below `offset` everything was decided when the segment was sealed.
    pub(crate) fn set_decided(&self, offset: Offset) {
        self.growing.write().decided = offset;
    }

    /// The largest timestamp of its records, as far as they were read; `None` if it is not known.
    fn known_max_timestamp(&self) -> Option<Timestamp> {
        match self.max_timestamp.load(Ordering::Acquire) {
            i64::MIN => None,
            millis => Some(Timestamp(millis)),
        }
    }

    /// When the last batch was appended by this machine's clock, if it is known.
    pub(crate) fn last_append(&self) -> Option<Timestamp> {
        match self.last_append.load(Ordering::Acquire) {
            i64::MIN => None,
            millis => Some(Timestamp(millis)),
        }
    }

    /// As [`Segment::last_append`], looked up in the side file if need be, and with it where the last batch ends: a file that was
    /// cut is longer.
    pub(crate) fn last_append_or_load(&self) -> Option<Timestamp> {
        self.last_append().or_else(|| {
            let head = Self::read_side_head(&self.place, self.base)?;
            // One of its beginning does not tell of the rest.
            if head.end < self.end() {
                return None;
            }
            if head.end == self.end() {
                self.position.fetch_min(head.position, Ordering::AcqRel);
            }
            self.assume_last_append(head.last_append);
            self.last_append()
        })
    }

    /// Takes what a side file that vouches for all of it says.
    pub(crate) fn adopt(&self, side: &SideFile) {
        self.max_timestamp.store(side.head.max_timestamp.0, Ordering::Release);
        self.last_append.store(side.head.last_append.0, Ordering::Release);
        self.position.store(side.head.position, Ordering::Release);
        self.set_producers(side.head.producers);
        *self.index.write() = Some(Arc::clone(&side.index));
    }

    /// Notes that the last append was no later than `now`, when nothing better is known.
    pub(crate) fn assume_last_append(&self, now: Timestamp) {
        let unknown = i64::MIN;
        let _ =
            self.last_append.compare_exchange(unknown, now.0, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Walks on where the last walk over what others append to ended, in the file that has its name by now. What is damaged
    /// below `until` is passed over. Returns under which leader the last batch was appended that is new.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn walk_on(&self, until: Option<Offset>) -> Result<Option<LeaderEpoch>, Error> {
        let name = log_name(self.base);
        let fault = |error| self.place.io_error(&name, "open", error);
        let file = self.place.disk.open(&self.place.path(&name), OpenMode::Read).map_err(fault)?;
        if self.is_empty() {
            let len = file.len().map_err(fault)?;
            let side = Self::read_side_file(&self.place, self.base).filter(|side| {
                let head = &side.head;
                (head.durable || head.boot == self.place.disk.boot_id())
                    && head.position <= len
                    && until.is_none_or(|until| head.end <= until)
            });
            if let Some(side) = side {
                self.max_timestamp.store(side.head.max_timestamp.0, Ordering::Release);
                self.set_producers(side.head.producers);
                *self.growing.write() = SparseIndex::clone(&side.index);
                self.position.store(side.head.position, Ordering::Release);
                self.end.store(side.head.end.0, Ordering::Release);
            }
        }
        let last = self.growing.read().entries.last().copied();
        let known = SparseIndex { entries: Vec::from_iter(last), ..SparseIndex::default() };
        let max_timestamp = Timestamp(self.max_timestamp.load(Ordering::Acquire));
        let mut scanner = Scanner::new(&self.place, self.base).follows().resume(
            self.position(),
            self.end(),
            max_timestamp,
            known,
        );
        let mut scan = scanner.walk(&*file, u64::MAX, until)?;
        while let Some(until) = until.filter(|until| scan.end < *until) {
            let beyond = scanner.look_beyond(&*file, scan.position, scan.end)?;
            let Some((position, base)) = beyond.first.filter(|(_, base)| *base < until) else {
                break;
            };
            scanner = scanner.resume(position, base, scan.max_timestamp, scan.index);
            let further = scanner.walk(&*file, u64::MAX, Some(until))?;
            let producers = scan.producers || further.producers;
            scan = Scan { producers, epoch: further.epoch.or(scan.epoch), ..further };
        }
        let mut growing = self.growing.write();
        growing.entries.extend(scan.index.entries.into_iter().skip(last.iter().len()));
        growing.aborted.extend(scan.index.aborted);
        drop(growing);
        if scan.producers {
            self.set_producers(true);
        }
        // Another may have taken the file's place since it was opened.
        *self.source.write() =
            if self.place.map_sealed { Source::Closed } else { Source::File(file) };
        self.max_timestamp.store(scan.max_timestamp.0, Ordering::Release);
        self.position.store(scan.position, Ordering::Release);
        self.end.store(scan.end.0, Ordering::Release);
        Ok(scan.epoch)
    }

    /// What a side file can say of the segment up to now. The caller keeps appends away.
    pub(crate) fn head(&self, boot: u128, durable: bool) -> SideHead {
        SideHead {
            seed: self.place.identity.seed,
            base: self.base,
            end: self.end(),
            position: self.position(),
            max_timestamp: Timestamp(self.max_timestamp.load(Ordering::Acquire)),
            last_append: Timestamp(self.last_append.load(Ordering::Acquire)),
            boot,
            durable,
            producers: self.may_have_producers(),
        }
    }

    /// Writes the side file for `head`, with the index as far as it goes.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`]; the old side file is whole then.
    pub(crate) fn write_side_file(&self, head: SideHead) -> Result<(), Error> {
        let index = {
            // In the order in which whoever settles it takes them.
            let growing = self.growing.read();
            match &*self.index.read() {
                Some(index) => Arc::clone(index),
                None => {
                    let mut index = growing.clone();
                    index.entries.retain(|entry| u64::from(entry.position) < head.position);
                    index.aborted.retain(|range| range.last < head.end);
                    index.decided = index.decided.min(head.end);
                    Arc::new(index)
                }
            }
        };
        let name = side_name(self.base);
        let bytes = SideFile { head, index }.encode();
        // A side file that is not durable counts in this run of the machine only: a sync would buy
        // nothing, and on a journalling file system make every file's data wait for the disk.
        let replace = if head.durable { replace_file } else { replace_file_unsynced };
        replace(&*self.place.disk, &self.place.path(&name), &bytes)
            .map_err(|error| self.place.io_error(&name, "write", error))
    }

    /// The head of the side file, if it is there, intact, and about this segment.
    pub(crate) fn read_side_head(place: &Place, base: Offset) -> Option<SideHead> {
        let path = place.path(&side_name(base));
        let bytes = crate::storage::read_small(&*place.disk, &path, side_file::HEAD_BYTES).ok()?;
        let head = SideHead::decode(&bytes).ok()?;
        (head.seed == place.identity.seed && head.base == base).then_some(head)
    }

    /// The side file, if it is there, intact, and about this segment.
    pub(crate) fn read_side_file(place: &Place, base: Offset) -> Option<SideFile> {
        let path = place.path(&side_name(base));
        let bytes =
            crate::storage::read_small(&*place.disk, &path, side_file::SIDE_BYTES_MAX).ok()?;
        let side = SideFile::decode(&bytes).ok()?;
        (side.head.seed == place.identity.seed && side.head.base == base).then_some(side)
    }

    /// Stops growing: from here on the segment is read from its file, and its mapping goes with
    /// the last reader that holds it. Two threads may come to it: the second finds nothing left to take.
    pub(crate) fn settle(&self, file: Arc<dyn File>) {
        let mut growing = self.growing.write();
        self.index.write().get_or_insert_with(|| Arc::new(std::mem::take(&mut *growing)));
        // Under the lock: whoever finds the index empty there finds this as well.
        self.sealed.store(true, Ordering::Release);
        drop(growing);
        if !self.place.map_sealed {
            *self.source.write() = Source::File(file);
        }
    }

    /// Opens the data file. A missing one is damage: the log says that it was there.
    fn open_file(&self, mode: OpenMode) -> Result<Arc<dyn File>, Error> {
        let name = log_name(self.base);
        self.place.disk.open(&self.place.path(&name), mode).map_err(|error| {
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::InvalidInput
            ) {
                return self.corrupt(self.base..self.end(), 0, DecodeError::Missing);
            }
            self.place.io_error(&name, "open", error)
        })
    }

    fn corrupt(
        &self,
        offsets: std::ops::Range<Offset>,
        position: u64,
        source: DecodeError,
    ) -> Error {
        Error::Corrupt {
            partition: self.place.identity.partition.clone(),
            offsets,
            path: self.place.full_path(&log_name(self.base)),
            position,
            source,
        }
    }
}
