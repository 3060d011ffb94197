//! A partition's offsets on a small mapped page, for readers in other processes.
//!
//! The owner stores them in order, end first and start last, so that a reader who loads them the
//! other way round never sees a watermark behind the end. After the death of the process the page also
//! tells how far the log was written, as long as the machine runs on: it is never flushed, so that it says when it was made.
//!
//! | byte | size | field                  | meaning                              |
//! |-----:|-----:|------------------------|--------------------------------------|
//! |    0 |    8 | `seed`                 | the partition's identity, in 4 bytes |
//! |    8 |    8 | `log_start`            |                                      |
//! |   16 |    8 | `high_watermark`       |                                      |
//! |   24 |    8 | `last_stable`          |                                      |
//! |   32 |    8 | `log_end`              | of what is in the files              |
//! |   40 |    8 | `log_end_check`        | `log_end` with every bit turned      |
//! |   48 |    8 | `high_watermark_check` | so is this: the lower of both holds  |
//! |   56 |    8 | `last_stable_check`    | as is this                           |
//! |   64 |   16 | `boot`                 | the run of the machine               |
//! |   80 |    8 | `log_start_check`      | as above                             |
//! |   88 |    8 | `seed_check`           | as above, but either of both holds   |
//! |   96 |   16 | `boot_check`           | so it is with this                   |

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::protocol::replication::Progress;
use crate::segment::{Grant, Place};
use crate::storage::{File, Mapping, OpenMode, read_full_at, write_all_at};
use crate::types::{Offset, Timestamp};

const NAME: &str = "marks";
const PAGE_BYTES: usize = 4096;
/// What of it is used.
const MARKS_BYTES: usize = 112;

/// The page of one partition.
#[derive(Debug)]
pub(crate) struct Marks {
    map: Mapping,
    /// What the check of the start says.
    start: AtomicU64,
    /// When its file system last agreed to stores.
    grant: Grant,
    /// And a store may find no room at any time.
    asks: bool,
}

/// What a page says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MarksView {
    pub(crate) log_start: Offset,
    pub(crate) high_watermark: Offset,
    pub(crate) last_stable: Offset,
    /// `None` if the page was caught between two stores or is damaged.
    pub(crate) log_end: Option<Offset>,
}

impl Marks {
    /// Makes the page, or opens it, and lets it say `marks`.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn create(
        place: &Place,
        marks: &Progress,
        last_stable: Offset,
        written: Offset,
        now: Timestamp,
    ) -> io::Result<Self> {
        let path = place.path(NAME);
        let file = match place.disk.open(&path, OpenMode::Write) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                place.disk.open(&path, OpenMode::Create)?
            }
            opened => opened?,
        };
        let is_short = file.len()? < PAGE_BYTES as u64;
        // Also of one that is there: a copy of it may have holes, and a store into one fails where the disk is full.
        file.allocate(0, PAGE_BYTES as u64)?;
        if is_short {
            // One that is looked at meanwhile stays to be seen.
            write_all_at(&*file, 0, &[0; PAGE_BYTES])?;
        }
        let map = file.map(PAGE_BYTES, true)?;
        Grant::ask(&*file, &map, 0..PAGE_BYTES as u64)?;
        let page = Self {
            start: AtomicU64::new(u64::MAX),
            grant: Grant::new(Some(&map), now),
            asks: !place.disk.stores_in_place(),
            map,
        };
        page.grant.given(now);
        page.show(marks, last_stable, written);
        for (at, word) in [64, 72].into_iter().zip(boot_words(place)) {
            page.map.publish_u64(at, word);
            page.map.publish_u64(at + 32, !word);
        }
        let seed = u64::from(place.identity.seed);
        page.map.publish_u64(0, seed);
        page.map.publish_u64(88, !seed);
        Ok(page)
    }

    /// Removes a page that an earlier run of the machine left: in this run it would be believed.
    ///
    /// # Errors
    /// What the system says, but for a page that is not there.
    pub(crate) fn forget(place: &Place) -> io::Result<()> {
        match place.disk.remove(&place.path(NAME)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Has a page that is there tell of nothing behind `end`, before the log is cut to that.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn lower(place: &Place, end: Offset) -> io::Result<()> {
        let shown = Self::peek(place).and_then(|marks| marks.log_end);
        if shown.is_none_or(|shown| shown <= end) {
            return Ok(());
        }
        let file = place.disk.open(&place.path(NAME), OpenMode::Write)?;
        let words = [end.0, !end.0].map(u64::to_le_bytes);
        write_all_at(&*file, 32, &words.concat())
    }

    /// Whether its file system has agreed to stores lately. What hangs may not answer the next, and what fails with a signal.
    #[inline]
    pub(crate) fn is_granted(&self, now: Timestamp) -> bool {
        self.grant.is_fresh(now) && (!self.asks || self.agrees())
    }

    /// As [`Marks::is_granted`], of one that is asked once more, where a system call is no matter.
    pub(crate) fn takes_stores(&self, now: Timestamp) -> bool {
        self.grant.is_fresh(now) && self.agrees()
    }

    fn agrees(&self) -> bool {
        self.map.populate(0..PAGE_BYTES as u64).is_ok()
    }

    /// Asks its file system for stores, through a file of the same one if there is any. Where that hangs, this waits.
    ///
    /// # Errors
    /// It takes none.
    pub(crate) fn ask(&self, file: Option<&dyn File>) -> io::Result<()> {
        let bytes = 0..PAGE_BYTES as u64;
        file.map_or_else(
            || self.map.populate(bytes.clone()),
            |file| Grant::ask(file, &self.map, bytes.clone()),
        )
    }

    /// When it last agreed to those stores.
    pub(crate) fn grant(&self) -> &Grant {
        &self.grant
    }

    /// Stores the offsets. Everything below `written` is in the files, and not only in this process. It
    /// [takes stores](Self::takes_stores).
    #[inline(always)]
    pub(crate) fn show(&self, marks: &Progress, last_stable: Offset, written: Offset) {
        self.map.publish_u64(32, written.0);
        self.map.publish_u64(40, !written.0);
        self.map.publish_u64(16, marks.high_watermark().0);
        self.map.publish_u64(48, !marks.high_watermark().0);
        self.map.publish_u64(24, last_stable.0);
        self.map.publish_u64(56, !last_stable.0);
        self.map.publish_u64(8, marks.log_start().0);
        // It seldom rises, and this lies in another line of the cache.
        if self.start.load(Ordering::Relaxed) != marks.log_start().0 {
            self.start.store(marks.log_start().0, Ordering::Relaxed);
            self.map.publish_u64(80, !marks.log_start().0);
        }
    }

    /// Takes back what the page says of offsets behind `flushed`: a flush failed, and the cache may
    /// have lost them. It [takes stores](Self::takes_stores).
    pub(crate) fn distrust(&self, flushed: Offset) {
        self.map.publish_u64(40, !flushed.0);
        self.map.publish_u64(32, flushed.0);
    }

    /// Lets the page speak of no partition, as if it were removed, without a call to the disk. It
    /// [takes stores](Self::takes_stores).
    pub(crate) fn disown(&self) {
        self.map.publish_u64(0, 0);
        self.map.publish_u64(88, 0);
    }

    /// As [`Marks::look`], for whom a page that cannot be read is none.
    pub(crate) fn peek(place: &Place) -> Option<MarksView> {
        Self::look(place).ok().flatten()
    }

    /// What the page on the disk says; `None` if there is none for this partition, of this run of the machine.
    ///
    /// # Errors
    /// What the system says of one that is there; one that is cut short. What it said is not known then.
    pub(crate) fn look(place: &Place) -> io::Result<Option<MarksView>> {
        let file = match place.disk.open(&place.path(NAME), OpenMode::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut page = [0; MARKS_BYTES];
        match read_full_at(&*file, 0, &mut page)? {
            0 => return Ok(None), // it is being made
            MARKS_BYTES => {}
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "it is cut short")),
        }
        let word = |at: usize| {
            u64::from_le_bytes(*page[at..].first_chunk().expect("a field within the page"))
        };
        let boot = boot_words(place);
        let is_of_boot = [word(64), word(72)] == boot || [!word(96), !word(104)] == boot;
        let is_own = [word(0), !word(88)].contains(&place.identity.seed.into());
        if !is_own || !is_of_boot {
            return Ok(None);
        }
        Ok(Some(MarksView {
            log_start: Offset(word(8).min(!word(80))),
            high_watermark: Offset(word(16).min(!word(48))),
            last_stable: Offset(word(24).min(!word(56))),
            log_end: (word(32) == !word(40) && word(32) <= Offset::MAX.0)
                .then_some(Offset(word(32))),
        }))
    }
}

/// The run of the machine, the lower half first.
fn boot_words(place: &Place) -> [u64; 2] {
    let bytes = place.disk.boot_id().to_le_bytes();
    [0, 8].map(|at| u64::from_le_bytes(*bytes[at..].first_chunk().expect("it has two halves")))
}

/// Whether a file of a partition's directory is the page.
pub(crate) fn is_marks(name: &str) -> bool {
    name == NAME
}
