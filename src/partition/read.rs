//! Reading a partition: what a reader may see, and waiting until there is more.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::log::{LogReader, Part};
use crate::record::BatchHeader;
use crate::segment::Fetched;
use crate::types::{Isolation, LeaderEpoch, Offset, ProducerId, Timestamp};

use super::ReadOptions;
use super::core::{Core, State};
use super::ticket::Done;

/// A reader who is to be woken.
#[derive(Debug)]
pub(super) struct Watch {
    offset: Offset,
    isolation: Isolation,
    waker: Waker,
}

/// What became of a wish to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watched {
    /// There is something to look at now.
    Now,
    /// The waker will be woken.
    Registered,
    /// Another process appends, and cannot wake us.
    Unwatchable,
}

impl Core {
    /// Has `waker` woken, once, when the record at `offset` can be read, or never will be. A second wish with the
    /// same waker takes the place of the first.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::UnknownTopicOrPartition`]: nothing will come any more.
    pub(crate) fn watch(
        &self,
        offset: Offset,
        isolation: Isolation,
        waker: &Waker,
    ) -> Result<Watched, Error> {
        let mut state = self.state.lock();
        if visible_end(&mut state, isolation) > offset {
            return Ok(Watched::Now);
        }
        if let Some(ended) = state.ended {
            return Err(self.ended_error(ended));
        }
        let watch = Watch { offset, isolation, waker: waker.clone() };
        match state.watches.iter_mut().find(|known| known.waker.will_wake(waker)) {
            Some(known) => *known = watch,
            None => state.watches.push(watch),
        }
        Ok(Watched::Registered)
    }

    /// Takes back what was asked for with this waker.
    pub(crate) fn unwatch(&self, waker: &Waker) {
        self.state.lock().watches.retain(|known| !known.waker.will_wake(waker));
    }

    /// Those whose record can be read.
    #[cold]
    pub(super) fn seen_watches(&self, state: &mut State, done: &mut Vec<Done>) {
        let ended = state.ended.is_some();
        for watch in std::mem::take(&mut state.watches) {
            if ended || visible_end(state, watch.isolation) > watch.offset {
                done.push(Done::Wake(watch.waker));
            } else {
                state.watches.push(watch);
            }
        }
    }

    /// Where the log departs from what was read of it up to `position` under a leader of `epoch`, if it does
    /// (KIP-320).
    pub(crate) fn divergence(&self, position: Offset, epoch: LeaderEpoch) -> Option<Offset> {
        let ended = self.state.lock().history.end_of(epoch);
        if let Some(end) = ended {
            return (end < position).then_some(end);
        }
        // Of a single replica there is no history but its batches: epochs only rise along them.
        let (mut agreed, end) = (self.log_start(), self.log_end());
        if position <= agreed {
            return None;
        }
        let is_later = |at: Offset| self.epoch_at(at).is_some_and(|found| found > epoch);
        if position <= end && !is_later(Offset(position.0 - 1)) {
            return None;
        }
        let mut parted = position.min(end);
        while agreed < parted {
            let middle = Offset(u64::midpoint(agreed.0, parted.0));
            if is_later(middle) {
                parted = middle;
            } else {
                agreed = middle.next();
            }
        }
        Some(parted)
    }

    /// Under which leader the record at `offset` was appended, if it can be read.
    fn epoch_at(&self, offset: Offset) -> Option<LeaderEpoch> {
        let fetched = self.reader().read(offset, self.high_watermark(), 1).ok().flatten()?;
        BatchHeader::trusted(&fetched.bytes).map(|header| header.leader_epoch)
    }

    /// Reads whole batches from `offset` on. Does not block.
    pub(crate) fn read(&self, offset: Offset, options: &ReadOptions) -> Result<Part, Error> {
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
                self.report_damage(offset, &error);
                match self.read_elsewhere(offset, upper, options) {
                    Some(read) => read,
                    None => return Err(error),
                }
            }
            Ok(read) => read,
        };
        Ok(Part::new(self.partition.clone(), offset, next, fetched))
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
        self.report_damage(offset, &error);
        let mut others = self.readers().into_iter().skip(1);
        let read = |reader: Arc<LogReader>| reader.read(offset, upper, max_bytes).ok().flatten();
        others.find_map(|(_, reader)| read(reader)).map(Some).ok_or(error)
    }

    /// Reads what is below `end` and was decided when those transactions were open, which began where `open` says.
    ///
    /// # Errors
    /// As for [`Core::read`].
    pub(crate) fn read_cut(
        &self,
        offset: Offset,
        end: Offset,
        open: &HashMap<ProducerId, Offset>,
        options: ReadOptions,
    ) -> Result<Part, Error> {
        self.check_range(offset)?;
        let max_bytes = options.max_bytes;
        let read = |reader: &LogReader| reader.read_decided(offset, end, max_bytes, open);
        let (fetched, next) = match read(&self.reader()) {
            Ok(read) => read,
            Err(error) => {
                self.check_range(offset)?;
                self.check_usable()?;
                self.report_damage(offset, &error);
                let mut others = self.readers().into_iter().skip(1);
                let elsewhere = others.find_map(|(_, reader)| read(&reader).ok());
                elsewhere.filter(|(_, next)| *next > offset).ok_or(error)?
            }
        };
        Ok(Part::new(self.partition.clone(), offset, next, fetched))
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
        if let Err(error @ Error::Corrupt { offsets, .. }) = &found {
            self.report_damage(offsets.start, error);
        }
        Ok(found?.map(|(offset, _)| offset))
    }

    /// Waits until a record at `offset` can be read.
    pub(crate) fn wait_for(
        &self,
        offset: Offset,
        isolation: Isolation,
        timeout: Duration,
    ) -> Result<(), Error> {
        let seen = match isolation {
            Isolation::ReadUncommitted => self.high_watermark(),
            Isolation::ReadCommitted => self.last_stable_offset(),
        };
        if seen > offset {
            return Ok(());
        }
        let deadline = Instant::now().checked_add(timeout);
        let mut state = self.state.lock();
        state.readers += 1;
        let outcome = loop {
            if visible_end(&mut state, isolation) > offset {
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
            if timed_out && visible_end(&mut state, isolation) <= offset {
                let what = format!("{}: waiting for offset {offset}", self.partition);
                break Err(Error::late(what, timeout));
            }
        };
        state.readers -= 1;
        outcome
    }
}

/// The end of what a reader may see.
fn visible_end(state: &mut State, isolation: Isolation) -> Offset {
    let high_watermark = state.progress.high_watermark();
    match isolation {
        Isolation::ReadUncommitted => high_watermark,
        Isolation::ReadCommitted => state.log.last_stable(high_watermark),
    }
}
