//! One partition, as a consumer reads it.

use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use crate::config::{ConsumerSettings, StartAt};
use crate::error::{Error, Result};
use crate::log::Part;
use crate::partition::{ReadOptions, Watched};
use crate::segment::Fetched;
use crate::store::{CommittedOffset, Partition};
use crate::types::{Isolation, LeaderEpoch, Offset, Timestamp};

use super::ready::{Ready, SlotBell, SlotKey};

/// How often an empty read that is told to look again looks.
const LOOKS: u32 = 3;

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) partition: Partition,
    pub(super) bell: Arc<SlotBell>,
    waker: Waker,
    /// The next offset to read: what polls have returned ends here. `None`: where to begin is not known yet.
    position: Option<Offset>,
    /// Under which leader the position was reached, or made.
    epoch: Option<LeaderEpoch>,
    /// What was committed last. `None`: nothing, or that is not known.
    pub(super) committed: Option<Offset>,
    /// The same, or what a commit that is not waited for has asked for since.
    pub(super) asked: Option<Offset>,
    pub(super) paused: bool,
    /// Of a batch that was too large for a poll.
    rest: Option<Arc<Fetched>>,
}

/// How much a poll may still take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    pub(super) bytes: usize,
    pub(super) records: u64,
}

/// What there is to take of a partition.
#[derive(Debug)]
pub(super) enum Taken {
    Part(Part),
    /// The bell rings when there is more.
    Nothing,
    /// No bell rings, because another process appends: it has to be looked at again.
    Unwatched,
}

impl Slot {
    pub(super) fn new(partition: Partition, ready: &Arc<Ready>, key: SlotKey) -> Self {
        let bell = Arc::new(SlotBell::new(ready, key));
        let waker = Waker::from(Arc::clone(&bell));
        Self {
            partition,
            bell,
            waker,
            position: None,
            epoch: None,
            committed: None,
            asked: None,
            paused: false,
            rest: None,
        }
    }

    pub(super) fn position(&self) -> Option<Offset> {
        self.position
    }

    /// What to commit: the position, and under which leader it was reached.
    pub(super) fn to_commit(&self) -> Option<CommittedOffset> {
        let offset = self.position?;
        Some(CommittedOffset { offset, leader_epoch: self.epoch, metadata: String::new() })
    }

    /// Whether the log reaches as far as it was read: not if an election has cut it. A commit of more is refused, and with it
    /// all others that are committed by themselves at the same time.
    pub(super) fn is_in_log(&self) -> bool {
        self.position.is_none_or(|position| position <= self.partition.log_end_offset())
    }

    /// Goes on there.
    pub(super) fn seek(&mut self, offset: Offset, epoch: Option<LeaderEpoch>) {
        self.position = Some(offset);
        self.epoch = epoch;
        self.rest = None;
        self.bell.push();
    }

    /// Where the consumer begins, or begins again.
    ///
    /// # Errors
    /// [`Error::NoOffset`] for one that is not to begin anywhere; [`Error::TimedOut`] for one that begins where it is not known
    /// yet; what looking up a time runs into.
    pub(super) fn start(&mut self, settings: &ConsumerSettings) -> Result<()> {
        if matches!(settings.start, StartAt::Latest | StartAt::Time(_)) {
            self.partition.wait_for_acknowledged(Duration::ZERO)?;
        }
        let offset = match settings.start {
            StartAt::Earliest => self.partition.log_start_offset(),
            StartAt::Latest => self.end(settings.isolation),
            StartAt::Time(time) => self.at_time(time, settings.isolation)?,
            StartAt::Error => {
                let group = settings.group.as_deref().unwrap_or_default().to_owned();
                return Err(Error::NoOffset { partition: self.partition.name().clone(), group });
            }
        };
        self.seek(offset, None);
        Ok(())
    }

    /// The first record that is not older than `time`, or the end.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub(super) fn at_time(&self, time: Timestamp, isolation: Isolation) -> Result<Offset> {
        // As it was before: what is appended while the time is looked for is not passed over.
        let end = self.end(isolation);
        Ok(self.partition.offset_for_time(time)?.unwrap_or(end))
    }

    /// The end of what the consumer may see.
    pub(super) fn end(&self, isolation: Isolation) -> Offset {
        end_of(&self.partition, isolation)
    }

    /// The next records.
    ///
    /// # Errors
    /// [`Error::Diverged`]; those of a read.
    pub(super) fn take(&mut self, settings: &ConsumerSettings, budget: Budget) -> Result<Taken> {
        if self.paused {
            return Ok(Taken::Nothing);
        }
        for _ in 0..LOOKS {
            let Some(position) = self.position else {
                if self.start_or_watch(settings)? {
                    continue;
                }
                return Ok(Taken::Nothing);
            };
            let epoch = self.check_epoch(position)?;
            if let Some(rest) = self.rest.take() {
                return Ok(Taken::Part(self.hand_out(position, rest, budget)));
            }
            let options = ReadOptions::new().max_bytes(budget.bytes).isolation(settings.isolation);
            let fetched = self.partition.fetch(position, &options);
            let is_past = || self.partition.leader_epoch() != epoch;
            if is_past() {
                continue; // what was read, or refused, may be of either leader
            }
            let part = match fetched {
                Ok(part) => part,
                Err(Error::OffsetOutOfRange { .. }) if settings.start != StartAt::Error => {
                    self.position = None;
                    continue;
                }
                Err(error @ Error::NoLeader { .. }) => {
                    if self.partition.look_elsewhere()? {
                        continue;
                    }
                    return Err(error);
                }
                Err(error) => return Err(error),
            };
            if part.is_empty() {
                self.position = Some(part.next);
                match self.partition.watch(part.next, settings.isolation, &self.waker)? {
                    Watched::Now => continue,
                    Watched::Registered if is_past() => continue, // nobody wakes it for that
                    Watched::Registered => return Ok(Taken::Nothing),
                    Watched::Unwatchable => return Ok(Taken::Unwatched),
                }
            }
            if budget.records == u64::MAX || part.count() <= budget.records {
                self.position = Some(part.next);
                return Ok(Taken::Part(part));
            }
            let rest = part.into_shared().expect("a part with records was fetched");
            return Ok(Taken::Part(self.hand_out(position, rest, budget)));
        }
        self.bell.push();
        Ok(Taken::Nothing)
    }

    /// As [`Slot::start`]. False: it is not known yet where that is; the bell rings when more can be read, or another leads.
    fn start_or_watch(&mut self, settings: &ConsumerSettings) -> Result<bool> {
        let isolation = Isolation::ReadUncommitted;
        // Before it is looked at: what moves from then on rings.
        let end = self.end(isolation);
        match self.start(settings) {
            Ok(()) => Ok(true),
            Err(Error::TimedOut { .. }) => {
                Ok(self.partition.watch(end, isolation, &self.waker)? == Watched::Now)
            }
            Err(error) => Err(error),
        }
    }

    fn hand_out(&mut self, position: Offset, rest: Arc<Fetched>, budget: Budget) -> Part {
        let name = self.partition.name().clone();
        let part = Part::of_shared(name, position, &rest, budget.records);
        self.position = Some(part.next);
        if part.next < rest.next {
            self.rest = Some(rest);
        }
        part
    }

    /// Whether the log under the present leader has what was read before.
    ///
    /// # Errors
    /// [`Error::Diverged`] names the offset up to which it does (KIP-320, CONS-04).
    fn check_epoch(&mut self, position: Offset) -> Result<LeaderEpoch> {
        let current = self.partition.leader_epoch();
        if self.epoch != Some(current) {
            let parted = self.epoch.and_then(|epoch| self.partition.divergence(position, epoch));
            if let Some(diverged_at) = parted {
                let partition = self.partition.name().clone();
                return Err(Error::Diverged { partition, position, diverged_at });
            }
            self.epoch = Some(current);
            // A piece that was read under another leader is read again.
            self.rest = None;
        }
        Ok(current)
    }
}

/// The end of what a reader of that isolation may see.
pub(super) fn end_of(partition: &Partition, isolation: Isolation) -> Offset {
    match isolation {
        Isolation::ReadUncommitted => partition.high_watermark(),
        Isolation::ReadCommitted => partition.last_stable_offset(),
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.partition.unwatch(&self.waker);
    }
}
