//! Which pages of mapped files may be stored to without asking the file system: as a kernel has it.
//!
//! The first store to a page asks, and so does the first after the page was written back. A file system that has failed
//! refuses, which ends a real process with a signal.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;

const PAGE_BYTES: usize = 4096;

/// Those of all files of one disk, as the file's number and the page's.
#[derive(Clone, Debug, Default)]
pub(super) struct Pages {
    open: BTreeSet<(u64, usize)>,
}

impl Pages {
    /// Asks for the pages of these bytes.
    pub(super) fn ask(
        &mut self,
        file: u64,
        bytes: Range<usize>,
        has_failed: bool,
    ) -> io::Result<()> {
        for page in bytes.start / PAGE_BYTES..bytes.end.div_ceil(PAGE_BYTES) {
            if has_failed && !self.open.contains(&(file, page)) {
                return Err(io::Error::other("the file system has failed"));
            }
            self.open.insert((file, page));
        }
        Ok(())
    }

    /// Whether stores to these bytes ask for nothing.
    pub(super) fn are_open(&self, file: u64, bytes: &Range<usize>) -> bool {
        let mut pages = bytes.start / PAGE_BYTES..bytes.end.div_ceil(PAGE_BYTES);
        pages.all(|page| self.open.contains(&(file, page)))
    }

    /// All pages are written back.
    pub(super) fn close(&mut self) {
        self.open.clear();
    }
}
