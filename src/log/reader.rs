//! The shared side of a log: which segment holds an offset, and what is in it.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use crate::error::{DecodeError, Error, ErrorClass};
use crate::record::BatchHeader;
use crate::segment::batches::Batches;
use crate::segment::{Fetched, Place, Segment, log_name};
use crate::storage::Disk;
use crate::types::{Isolation, Offset, ProducerId, Timestamp};

type SegmentList = Arc<Vec<Arc<Segment>>>;

/// Finds and reads segments while the log changes.
#[derive(Debug)]
pub(crate) struct LogReader {
    place: Place,
    segments: RwLock<SegmentList>,
    log_start: AtomicU64,
}

/// How far a walk that passes over damage has come, and what it passed over.
struct Walked {
    next: Offset,
    damaged: Vec<Range<Offset>>,
}

impl Walked {
    /// What comes next begins at `start`.
    fn on(&mut self, start: Offset, end: Offset) {
        if start > self.next {
            self.damaged.push(self.next..start);
        }
        self.next = self.next.max(end);
    }
}

/// A file that is gone, and sectors that cannot be read, are damage like any other.
pub(super) fn is_damage(error: &Error) -> bool {
    match error {
        Error::Corrupt { .. } => true,
        Error::Io { .. } => error.class() == ErrorClass::Fatal,
        _ => false,
    }
}

impl LogReader {
    pub(crate) fn new(place: Place, segments: Vec<Arc<Segment>>, log_start: Offset) -> Self {
        let segments = RwLock::new(Arc::new(segments));
        Self { place, segments, log_start: AtomicU64::new(log_start.0) }
    }

    /// One that keeps the segments which there are now.
    pub(crate) fn as_now(&self) -> Self {
        Self::new(self.place.clone(), self.segments().to_vec(), self.log_start())
    }

    /// The segments as they are now, oldest first.
    pub(crate) fn segments(&self) -> SegmentList {
        Arc::clone(&self.segments.read())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.segments.read().is_empty()
    }

    /// Whether there is no record; there may be a file for the next ones.
    pub(crate) fn holds_nothing(&self) -> bool {
        self.segments.read().iter().all(|segment| segment.end() == segment.base)
    }

    pub(crate) fn log_start(&self) -> Offset {
        Offset(self.log_start.load(Ordering::Acquire))
    }

    pub(crate) fn disk(&self) -> &dyn Disk {
        &*self.place.disk
    }

    /// The file in which an offset is, or would be.
    pub(crate) fn path_of(&self, offset: Offset) -> PathBuf {
        let (segment, _) = self.find(offset);
        self.place.full_path(&log_name(segment.map_or(offset, |segment| segment.base)))
    }

    pub(super) fn push(&self, segment: Arc<Segment>) {
        let mut segments = self.segments.write();
        assert!(
            segments.last().is_none_or(|last| last.end() <= segment.base),
            "segments do not overlap"
        );
        Arc::make_mut(&mut segments).push(segment);
    }

    pub(super) fn clear(&self) {
        Arc::make_mut(&mut self.segments.write()).clear();
    }

    pub(super) fn pop(&self) {
        Arc::make_mut(&mut self.segments.write()).pop();
    }

    /// Puts `new` in the place of the segment that begins where it does, or between its neighbours.
    pub(super) fn put(&self, new: Arc<Segment>) {
        let mut segments = self.segments.write();
        let segments = Arc::make_mut(&mut segments);
        match segments.iter().position(|segment| segment.base >= new.base) {
            Some(at) if segments[at].base == new.base => segments[at] = new,
            at => segments.insert(at.unwrap_or(segments.len()), new),
        }
    }

    pub(super) fn replace_last(&self, segment: Arc<Segment>) {
        let mut segments = self.segments.write();
        let segments = Arc::make_mut(&mut segments);
        segments.pop();
        segments.push(segment);
    }

    /// Raises the start, then drops the sealed segments before it and returns them: a reader between
    /// the two sees [`Error::OffsetOutOfRange`], never a hole (RET-07).
    pub(super) fn raise_log_start(&self, start: Offset) -> Vec<Arc<Segment>> {
        self.log_start.fetch_max(start.0, Ordering::AcqRel);
        let mut segments = self.segments.write();
        let followed = segments.windows(2).take_while(|pair| pair[1].base <= start).count();
        let all = followed + 1 == segments.len()
            && segments.last().is_some_and(|last| last.is_sealed() && last.end() <= start);
        let count = if all { segments.len() } else { followed };
        Arc::make_mut(&mut segments).drain(..count).collect()
    }

    /// Whole batches from the one that holds `from` on, below `upper`, out of one segment.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if `from` lies in damaged or missing offsets; its end is where to go on.
    pub(crate) fn read(
        &self,
        from: Offset,
        upper: Offset,
        bytes_max: usize,
    ) -> Result<Option<Fetched>, Error> {
        if from >= upper {
            return Ok(None);
        }
        let (segment, following) = self.find(from);
        if let Some(segment) = &segment {
            if from < segment.end() {
                if let Some(fetched) = segment.read(from, upper, bytes_max)? {
                    return Ok(Some(fetched));
                }
                return Ok(None);
            }
            // The segment grew or was rolled between the look-up of the bound and now.
            if following.is_none() {
                return Ok(None);
            }
        }
        let first_missing = segment.map_or(self.log_start(), |segment| segment.end());
        match following {
            Some(base) if from < base => Err(self.missing(first_missing, base)),
            Some(_) => Ok(None),
            None => Err(self.missing(first_missing, upper)),
        }
    }

    /// Where the row goes on behind what cannot be read at `from`; `from`, if it can be read after all.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn goes_on_behind(&self, from: Offset) -> Result<Offset, Error> {
        match self.find(from).0.filter(|segment| from < segment.end()) {
            Some(segment) => segment.goes_on_behind(from),
            None => Ok(from),
        }
    }

    /// Whether what begins at `from` can be read without a call to the disk.
    pub(crate) fn is_at_hand(&self, from: Offset) -> bool {
        self.find(from).0.is_some_and(|segment| segment.is_mapped() && from < segment.end())
    }

    /// As [`LogReader::read`], for a reader of records: goes on until there is one to show or `upper` is reached, and
    /// returns where to go on.
    ///
    /// # Errors
    /// As for [`LogReader::read`].
    pub(crate) fn read_records(
        &self,
        from: Offset,
        upper: Offset,
        bytes_max: usize,
        isolation: Isolation,
    ) -> Result<(Option<Fetched>, Offset), Error> {
        match isolation {
            Isolation::ReadUncommitted => {
                self.read_shown(from, upper, bytes_max, |_| Ok(Vec::new()))
            }
            Isolation::ReadCommitted => self.read_decided(from, upper, bytes_max, &HashMap::new()),
        }
    }

    /// As [`LogReader::read_records`], without what was aborted, and without what belongs to one of these transactions,
    /// which began where `open` says.
    ///
    /// # Errors
    /// As for [`LogReader::read`].
    pub(crate) fn read_decided(
        &self,
        from: Offset,
        upper: Offset,
        bytes_max: usize,
        open: &HashMap<ProducerId, Offset>,
    ) -> Result<(Option<Fetched>, Offset), Error> {
        self.read_shown(from, upper, bytes_max, |fetched| self.hidden(fetched, open))
    }

    fn read_shown(
        &self,
        from: Offset,
        upper: Offset,
        bytes_max: usize,
        hide: impl Fn(&Fetched) -> Result<Vec<Offset>, Error>,
    ) -> Result<(Option<Fetched>, Offset), Error> {
        let mut next = from;
        loop {
            let read = self.read(next, upper, bytes_max);
            let mut fetched = match read {
                Ok(Some(fetched)) => fetched,
                Ok(None) => return Ok((None, next)),
                // What is before the damage is known not to hold records: the next read meets it.
                Err(Error::Corrupt { .. }) if next > from => return Ok((None, next)),
                Err(error) => return Err(error),
            };
            if fetched.transactional {
                fetched.hidden = hide(&fetched)?;
            }
            next = fetched.next;
            if fetched.has_records(from) {
                return Ok((Some(fetched), next));
            }
        }
    }

    /// Where the batches begin of aborted transactions, and of those that are `open`.
    fn hidden(
        &self,
        fetched: &Fetched,
        open: &HashMap<ProducerId, Offset>,
    ) -> Result<Vec<Offset>, Error> {
        let Some(first) = BatchHeader::trusted(&fetched.bytes) else { return Ok(Vec::new()) };
        let offsets = first.base_offset..fetched.next;
        let segments = self.segments();
        let begin = segments.partition_point(|segment| segment.end() <= offsets.start);
        let (mut aborted, mut known) = (Vec::new(), offsets.start);
        for segment in &segments[begin..] {
            if known > offsets.start && segment.base > known {
                // What is missing may hold the marker of an abort.
                return Err(self.missing(known, segment.base));
            }
            known = segment.end();
            let (found, decided) = segment.aborted_in(&offsets)?;
            aborted.extend(found);
            if decided >= offsets.end {
                break;
            }
        }
        if aborted.is_empty() && open.is_empty() {
            return Ok(Vec::new());
        }
        aborted.sort_unstable_by_key(|range| range.first);
        // A producer has one transaction at a time in a partition: the last that began is the one that counts.
        let (mut begun, mut ranges) = (HashMap::new(), aborted.into_iter().peekable());
        let hidden = Batches::new(fetched).filter_map(|(header, _)| {
            let base = header.base_offset;
            while let Some(range) = ranges.next_if(|range| range.first <= base) {
                begun.insert(range.producer, range.last);
            }
            let id = &header.producer_id;
            let is_open = || open.get(id).is_some_and(|first| *first <= base);
            let is_aborted = || begun.get(id).is_some_and(|last| base < *last);
            let is_data = header.transactional && !header.control;
            (is_data && (is_aborted() || is_open())).then_some(base)
        });
        Ok(hidden.collect())
    }

    /// Walks over the headers from `from` to `end`, where segments may have any with a producer. Damage is passed over:
    /// returns what of the log that was, its deleted part left aside.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn producer_headers(
        &self,
        from: Offset,
        end: Offset,
        mut take: impl FnMut(&BatchHeader),
    ) -> Result<Vec<Range<Offset>>, Error> {
        let mut walked = Walked { next: from.max(self.log_start()), damaged: Vec::new() };
        for segment in self.segments().iter().filter(|segment| segment.end() > from) {
            if !segment.knows_producers() {
                walked.on(segment.base, segment.end());
                continue;
            }
            walked.on(segment.base, segment.base);
            let outcome = segment.headers(from.max(segment.base), |header| {
                walked.on(header.base_offset, header.end_offset());
                take(header);
            });
            match outcome {
                Err(error) if !is_damage(&error) => return Err(error),
                _ => {}
            }
            walked.on(segment.end(), segment.end());
        }
        // The last segment may be gone.
        walked.on(end, end);
        Ok(walked.damaged)
    }

    /// Walks over the headers of all batches from `from` on that begin below `until`, deleted ones as well. Damage is
    /// passed over.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn headers_between(
        &self,
        from: Offset,
        until: Offset,
        mut take: impl FnMut(&BatchHeader),
    ) -> Result<(), Error> {
        let mut below = |header: &BatchHeader| {
            if header.base_offset < until {
                take(header);
            }
        };
        for segment in self.segments().iter().filter(|segment| segment.base < until) {
            if segment.end() > from {
                match segment.headers(from.max(segment.base), &mut below) {
                    Err(error) if !is_damage(&error) => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// The first record at or behind `from`, below `upper`, whose timestamp is at least `timestamp`
    /// (READ-12).
    ///
    /// # Errors
    /// [`Error::Corrupt`] if damage lies before the answer.
    pub(crate) fn find_time(
        &self,
        timestamp: Timestamp,
        from: Offset,
        upper: Offset,
    ) -> Result<Option<(Offset, Timestamp)>, Error> {
        let mut next = from;
        for segment in self.segments().iter() {
            if segment.end() > next && segment.base < upper {
                if segment.base > next {
                    return Err(self.missing(next, segment.base));
                }
                let hit = segment.find_time(timestamp, next, upper)?;
                if hit.is_some() {
                    return Ok(hit);
                }
                next = segment.end();
            }
        }
        Ok(None)
    }

    /// The last segment that begins at or before `offset`, and where the next one begins.
    fn find(&self, offset: Offset) -> (Option<Arc<Segment>>, Option<Offset>) {
        let segments = self.segments.read();
        let behind = segments.partition_point(|segment| segment.base <= offset);
        let segment = behind.checked_sub(1).map(|at| Arc::clone(&segments[at]));
        (segment, segments.get(behind).map(|segment| segment.base))
    }

    fn missing(&self, start: Offset, end: Offset) -> Error {
        Error::Corrupt {
            partition: self.place.identity.partition.clone(),
            offsets: start..end,
            path: self.place.full_path(&log_name(start)),
            position: 0,
            source: DecodeError::Missing,
        }
    }
}
