//! The steps of a partition's background work. Threads are the store's; here is what one step does.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::error::Error;
use crate::log::{Sealed, SettleError, settle};
use crate::protocol::retention::{SegmentAge, segments_to_delete};
use crate::types::{Flush, Offset, Timestamp};

use super::Core;
use super::events::EventKind;

/// How far the worker keeps pages ready ahead of the appender.
const AHEAD_BYTES: u64 = 4 << 20;
/// A sealed segment of an `Os` topic is flushed once the system has most likely done so by itself.
const HARDEN_AFTER: Duration = Duration::from_secs(30);

/// What a step leaves for later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tended {
    /// When to come back, if something is due at a time.
    pub(crate) again_in: Option<Duration>,
}

impl Core {
    /// Does what is due: flushes, readies pages, writes side files. `ahead`: whether to work ahead of
    /// the appender, which only helps one that leaves the worker time to.
    pub(crate) fn tend(&self, now: Timestamp, ahead: bool) -> Tended {
        let mut tended = Tended::default();
        if ahead {
            self.work_ahead();
        }
        let (flush, unflushed) = {
            let state = self.state.lock();
            (state.flush, state.marks.flushed() < state.marks.log_end())
        };
        let wanted = self.group.wanted.swap(false, Ordering::AcqRel);
        match flush {
            Flush::OnAck if wanted && unflushed => self.flush_or_report(),
            Flush::Interval(interval) if unflushed => {
                if self.interval_elapsed(now, interval) {
                    self.flush_or_report();
                } else {
                    tended.again_in = Some(interval);
                }
            }
            _ => {}
        }
        let harden = self.settle_sealed(now, flush);
        tended.again_in = [tended.again_in, harden].into_iter().flatten().min();
        self.checkpoint(flush, false);
        tended
    }

    /// Seals the active segment when the topic's `segment_age` has passed.
    pub(crate) fn roll_if_old(&self, now: Timestamp) {
        let mut state = self.state.lock();
        if self.check_open(&state).is_err() {
            return;
        }
        let rolled = state.log.roll_if_old(now);
        drop(state);
        match rolled {
            Ok(true) => self.ask_for_attention(),
            Ok(false) => {}
            Err(error) => self.background_failed("rolling the segment", &error),
        }
    }

    /// The log start that the topic's retention asks for, if it is a new one.
    pub(crate) fn retention_start(&self, now: Timestamp) -> Option<Offset> {
        let settings = self.settings();
        let policy = &settings.topic.retention;
        if policy.is_forever() {
            return None;
        }
        let segments = self.reader.segments();
        let ages: Vec<_> = segments
            .iter()
            .map(|segment| SegmentAge {
                bytes: segment.position(),
                base: segment.base,
                end: segment.end(),
                last_append: segment.last_append_or_load().unwrap_or(now),
            })
            .collect();
        let count = segments_to_delete(&ages, policy, now, self.high_watermark(), self.log_start());
        if count == 0 {
            return None;
        }
        if count == segments.len() {
            let mut state = self.state.lock();
            if self.check_open(&state).is_err() || state.log.roll_now(now).is_err() {
                return None;
            }
        }
        Some(ages[count - 1].end).filter(|start| *start > self.log_start())
    }

    /// Records below `start` are gone, durably so: lets go of their segments and removes the files.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be removed.
    pub(crate) fn raise_log_start(&self, start: Offset) -> Result<(), Error> {
        let mut state = self.state.lock();
        state.marks.on_log_start(start);
        let gone = state.log.raise_log_start(start);
        let place = state.log.place().clone();
        self.publish(state);
        for segment in gone {
            crate::log::remove_segment_files(&place, segment.base)?;
        }
        Ok(())
    }

    /// Whether an offset may become the log start (REPL-29).
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`] above the high watermark, and whatever closes the partition.
    pub(crate) fn check_delete(&self, before: Offset) -> Result<(), Error> {
        let state = self.state.lock();
        self.check_open(&state)?;
        let end = state.marks.high_watermark();
        if before > end {
            let (partition, start) = (self.partition.clone(), state.marks.log_start());
            return Err(Error::OffsetOutOfRange { partition, offset: before, start, end });
        }
        Ok(())
    }

    /// Flushes everything and writes the side files, so that the next open scans nothing. Returns the
    /// end of the log that is thereby proven.
    ///
    /// # Errors
    /// [`Error::DiskOffline`] when the disk failed, now or before; [`Error::NoSpace`].
    pub(crate) fn settle_for_close(&self, now: Timestamp) -> Result<Offset, Error> {
        self.flush_now()?;
        {
            let mut state = self.state.lock();
            self.wait_for_quiet(&mut state)?;
            state.log.finish(now);
        }
        let sealed = self.state.lock().log.sealed().to_vec();
        for sealed in sealed {
            self.settle_one(&sealed, true)?;
        }
        Ok(self.state.lock().marks.log_end())
    }

    fn wait_for_quiet(&self, state: &mut super::core::State) -> Result<(), Error> {
        if state.fenced.is_some() {
            return Err(self.closed_error(state, crate::error::Written::Unknown));
        }
        Ok(())
    }

    fn work_ahead(&self) {
        loop {
            let room = {
                let state = self.state.lock();
                if state.fenced.is_some() || state.ended.is_some() {
                    None
                } else {
                    state.log.room()
                }
            };
            let Some((room, position)) = room else { return };
            // A full disk is the appender's to report; here it only means that nothing is ready.
            if !matches!(room.work_ahead(position, AHEAD_BYTES.min(position / 2)), Ok(true)) {
                return;
            }
        }
    }

    fn interval_elapsed(&self, now: Timestamp, interval: Duration) -> bool {
        let mut state = self.state.lock();
        let due = state.unflushed_since.get_or_insert(now).plus(interval) <= now;
        if due {
            state.unflushed_since = None;
        }
        due
    }

    fn flush_or_report(&self) {
        // A failure has fenced the partition, which is an event of its own.
        let _ = self.flush_now();
    }

    fn settle_sealed(&self, now: Timestamp, flush: Flush) -> Option<Duration> {
        let sealed = self.state.lock().log.sealed().to_vec();
        let mut again = None;
        for sealed in sealed {
            let age = now.since(sealed.at);
            let durable = flush != Flush::Os || age >= HARDEN_AFTER;
            if sealed.settled && !durable {
                again = Some(HARDEN_AFTER.saturating_sub(age));
                continue;
            }
            if self.settle_one(&sealed, durable).is_err() {
                // Later segments must not be vouched for before earlier ones.
                return Some(Duration::from_secs(1));
            }
            if !durable {
                again = Some(HARDEN_AFTER);
            }
        }
        again
    }

    fn settle_one(&self, sealed: &Sealed, durable: bool) -> Result<(), Error> {
        match settle(sealed, durable) {
            Ok(()) => {
                self.state.lock().log.on_settled(&sealed.segment, durable);
                Ok(())
            }
            Err(SettleError::Flush(error)) => {
                let mut state = self.state.lock();
                self.fence(&mut state, &error);
                self.publish(state);
                Err(error)
            }
            Err(SettleError::Other(error)) => {
                // A segment that retention took meanwhile has no file to settle.
                let gone =
                    !self.reader.segments().iter().any(|kept| Arc::ptr_eq(kept, &sealed.segment));
                if !gone {
                    self.background_failed("writing a side file", &error);
                }
                Err(error)
            }
        }
    }

    /// Lets a side file vouch for the active segment as far as it is flushed or, at the `Os` level,
    /// written.
    pub(crate) fn checkpoint(&self, flush: Flush, force: bool) {
        let due = {
            let state = self.state.lock();
            let open = state.fenced.is_none() && state.ended.is_none();
            open.then(|| state.log.checkpoint_due(force)).flatten()
        };
        let Some(segment) = due else { return };
        let durable = flush == Flush::OnAck;
        let head = {
            // Under the lock, so that end and position belong to one another.
            let _state = self.state.lock();
            segment.head(segment.place.disk.boot_id(), durable)
        };
        if durable && self.flush_now().is_err() {
            return;
        }
        if durable && self.state.lock().marks.flushed() < head.end {
            return;
        }
        match segment.write_side_file(head) {
            Ok(()) => self.state.lock().log.on_checkpointed(segment.base, head.position),
            Err(error) => self.background_failed("writing a checkpoint", &error),
        }
    }

    pub(crate) fn background_failed(&self, what: &str, error: &Error) {
        let reason = format!("{what}: {error}");
        self.report(EventKind::BackgroundFailed {
            partition: Some(self.partition.clone()),
            reason,
        });
    }
}
