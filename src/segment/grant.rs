//! How long a file system's word is trusted that it takes stores to a mapped file.
//!
//! The first store to a page that was written back asks the file system again. One that has failed meanwhile answers with
//! `SIGBUS` (XFS does), and one that hangs holds whoever stores. So a grant is trusted for [`GRANT_HOLDS`], and then
//! asked for anew by somebody whom it may hold. What is left is a page that is written back, and a file system
//! that fails, within that time; and one that hangs before its [`Pulse`] tells.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::storage::{File, Mapping, Pulse};
use crate::types::Timestamp;

/// How long a grant is trusted, in milliseconds.
const GRANT_HOLDS: u64 = 200;
/// Who stores may have looked at the clock that long before the grant, in milliseconds; or the clock was set back.
const WAITED_MAX: u64 = 60_000;

/// When a file system last agreed.
#[derive(Debug)]
pub(crate) struct Grant {
    at: AtomicI64,
    /// For ever where no store can fail.
    holds: u64,
    /// And as long as its disk answers.
    pulse: Option<Arc<Pulse>>,
}

impl Grant {
    /// Of stores through `map`, if there is one.
    pub(crate) fn new(map: Option<&Mapping>, now: Timestamp) -> Self {
        let can_fail = map.is_some_and(Mapping::can_fail);
        let pulse = map.and_then(Mapping::pulse).cloned();
        let holds = if can_fail { GRANT_HOLDS } else { u64::MAX };
        Self { at: AtomicI64::new(now.0), holds, pulse }
    }

    /// Asks for stores to `range`. Where the file system hangs, this waits and holds nothing that others need.
    ///
    /// # Errors
    /// It takes none.
    pub(crate) fn ask(file: &dyn File, map: &Mapping, range: Range<u64>) -> io::Result<()> {
        // Else `populate` would wait, with the lock that everybody needs who maps, unmaps or starts a thread.
        if map.can_fail() && !range.is_empty() {
            file.touch();
        }
        map.populate(range)
    }

    /// It agreed.
    pub(crate) fn given(&self, now: Timestamp) {
        self.at.store(now.0, Ordering::Release);
        self.pulse.iter().for_each(|pulse| pulse.answered(now));
    }

    #[inline]
    pub(crate) fn is_fresh(&self, now: Timestamp) -> bool {
        self.is_younger(now, self.holds)
            && self.pulse.as_ref().is_none_or(|pulse| pulse.answers(now))
    }

    /// Whether it is to be renewed soon.
    #[inline]
    pub(crate) fn is_aging(&self, now: Timestamp) -> bool {
        !self.is_younger(now, self.holds / 2)
    }

    /// Whether nobody need ask.
    pub(crate) fn is_for_ever(&self) -> bool {
        self.holds == u64::MAX
    }

    #[inline]
    fn is_younger(&self, now: Timestamp, age: u64) -> bool {
        let since = now.0.wrapping_sub(self.at.load(Ordering::Acquire));
        since.wrapping_add_unsigned(WAITED_MAX).cast_unsigned() <= age.saturating_add(WAITED_MAX)
    }
}
