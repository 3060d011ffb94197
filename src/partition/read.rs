//! Reading a partition: what a reader may see, and waiting until there is more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::log::{LogReader, Part, Records};
use crate::segment::Fetched;
use crate::types::{Isolation, Offset, Timestamp};

use super::ReadOptions;
use super::core::Core;

impl Core {
    /// Reads whole batches from `offset` on. Does not block.
    pub(crate) fn read(&self, offset: Offset, options: &ReadOptions) -> Result<Records, Error> {
        let upper = match options.isolation {
            Isolation::ReadUncommitted => self.high_watermark(),
            Isolation::ReadCommitted => self.last_stable_offset(),
        };
        self.check_range(offset)?;
        let ReadOptions { max_bytes, isolation } = *options;
        let (fetched, next) = match self.reader().read_records(offset, upper, max_bytes, isolation)
        {
            Err(error) => {
                // Retention may have passed by between the check and the read.
                self.check_range(offset)?;
                self.check_usable()?;
                self.report_damage(&error);
                match self.read_elsewhere(offset, upper, options) {
                    Some(read) => read,
                    None => return Err(error),
                }
            }
            Ok(read) => read,
        };
        Ok(Records::of(Part { partition: self.partition.clone(), from: offset, next, fetched }))
    }

    /// Reads whole batches below the high watermark, markers as well. `None`: there is none yet.
    ///
    /// # Errors
    /// As for [`Core::read`].
    pub(crate) fn read_batches(
        &self,
        offset: Offset,
        max_bytes: usize,
    ) -> Result<Option<Fetched>, Error> {
        let upper = self.high_watermark();
        self.check_range(offset)?;
        let error = match self.reader().read(offset, upper, max_bytes) {
            Ok(fetched) => return Ok(fetched),
            Err(error) => error,
        };
        self.check_usable()?;
        self.report_damage(&error);
        let mut others = self.readers().into_iter().skip(1);
        let read = |reader: Arc<LogReader>| reader.read(offset, upper, max_bytes).ok().flatten();
        others.find_map(|(_, reader)| read(reader)).map(Some).ok_or(error)
    }

    /// Reads from another replica what the leader's has lost.
    #[cold]
    fn read_elsewhere(
        &self,
        offset: Offset,
        upper: Offset,
        options: &ReadOptions,
    ) -> Option<(Option<Fetched>, Offset)> {
        let ReadOptions { max_bytes, isolation } = *options;
        self.readers().into_iter().skip(1).find_map(|(_, reader)| {
            let read = reader.read_records(offset, upper, max_bytes, isolation).ok();
            read.filter(|(_, next)| *next > offset)
        })
    }

    fn check_range(&self, offset: Offset) -> Result<(), Error> {
        let (start, end) = (self.log_start(), self.log_end());
        if offset < start || offset > end {
            let partition = self.partition.clone();
            return Err(Error::OffsetOutOfRange { partition, offset, start, end });
        }
        Ok(())
    }

    /// The first record whose timestamp is at least `timestamp`, below the high watermark.
    pub(crate) fn offset_for_time(&self, timestamp: Timestamp) -> Result<Option<Offset>, Error> {
        self.check_usable()?;
        let found = self.reader().find_time(timestamp, self.log_start(), self.high_watermark());
        if let Err(error) = &found {
            self.report_damage(error);
        }
        Ok(found?.map(|(offset, _)| offset))
    }

    /// Waits until a record at `offset` can be read.
    pub(crate) fn wait_for(&self, offset: Offset, timeout: Duration) -> Result<(), Error> {
        if self.high_watermark() > offset {
            return Ok(());
        }
        let deadline = Instant::now().checked_add(timeout);
        let mut state = self.state.lock();
        state.readers += 1;
        let outcome = loop {
            if state.progress.high_watermark() > offset {
                break Ok(());
            }
            if let Some(ended) = state.ended {
                break Err(self.ended_error(ended));
            }
            let timed_out = match deadline {
                Some(deadline) => self.readable.wait_until(&mut state, deadline).timed_out(),
                None => {
                    self.readable.wait(&mut state);
                    false
                }
            };
            if timed_out && state.progress.high_watermark() <= offset {
                let what = format!("{}: waiting for offset {offset}", self.partition);
                break Err(Error::TimedOut { what, timeout, appended: None });
            }
        };
        state.readers -= 1;
        outcome
    }
}
