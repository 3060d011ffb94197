//! The steps of a partition's background work. Threads are the store's; here is what one step does.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::config::Retention;
use crate::error::Error;
use crate::log::{Log, ProducerSnapshot, Sealed, SettleError, settle};
use crate::protocol::retention::{SegmentAge, segments_to_delete};
use crate::types::{DiskId, Flush, Offset, Timestamp};

use super::Core;
use super::core::State;
use super::events::EventKind;
use super::flush::{SOON, Until, Wait, Waited};
use super::follow::Followed;
use super::replica::Replica;

/// How far the worker keeps pages ready ahead of the appender.
const AHEAD_BYTES: u64 = 4 << 20;
/// A sealed segment of an `Os` topic is flushed once the system has most likely done so by itself.
const HARDEN_AFTER: Duration = Duration::from_secs(30);
/// What could not be done now may be possible then.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What a step leaves for later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tended {
    /// When to come back, if something is due at a time.
    pub(crate) again_in: Option<Duration>,
}

/// What a close leaves of a log: its end, and whether there are producers to remember.
pub(crate) type Left = (Offset, bool);

/// Before a follower's flush is looked for again: nobody is told of it.
const FLUSH_PAUSE: Duration = Duration::from_millis(1);

/// Rounds of following before the worker looks at something else.
const ROUNDS_MAX: u32 = 64;

impl Core {
    /// Does what is due for the replica on `disk`: follows, flushes, readies pages, writes side files.
    /// `ahead`: whether to work ahead of the appender, which only helps one that leaves the worker time to.
    pub(crate) fn tend(&self, disk: DiskId, now: Timestamp, ahead: bool) -> Tended {
        self.tended.lock().push(disk);
        let tended = self.tend_alone(disk, now, ahead);
        let mut all = self.tended.lock();
        let at = all.iter().position(|other| *other == disk);
        at.map(|at| all.swap_remove(at));
        tended
    }

    fn tend_alone(&self, disk: DiskId, now: Timestamp, ahead: bool) -> Tended {
        let mut tended = Tended::default();
        let (leads, replica) = {
            let Some(state) = self.brief() else {
                return Tended { again_in: Some(RETRY_AFTER) };
            };
            let follower = state.followers.iter().find(|replica| replica.disk == disk);
            let leader = Some(&state.leading).filter(|replica| replica.disk == disk);
            // What is back of a leader that failed comes before what failed. First, so that what comes from now on is
            // looked at again; and only here, for it is not known whose turn it is while a call holds the partition.
            if let Some(replica) = follower.or(leader) {
                replica.attention_taken();
            }
            (state.leads_on(disk), follower.cloned())
        };
        self.repair_damage(disk, now);
        self.take_pages_back(disk);
        if let Some(replica) = &replica {
            tended = self.tend_follower(replica, now);
        }
        if ahead || !leads {
            self.work_ahead(disk, now);
        }
        if leads {
            // Where it takes no stores, neither does the log: the appender reports that.
            let _ = self.grant_page();
            tended = self.tend_flush(now);
        }
        let flush = self.state.lock().flush;
        let harden = self.settle_sealed(disk, now, flush);
        tended.again_in = [tended.again_in, harden].into_iter().flatten().min();
        self.checkpoint(disk, flush, false);
        let due = |log: &mut Log| log.producer_snapshot(false);
        if let Err(error) = self.remember_producers(disk, due, ProducerSnapshot::write) {
            self.background_failed("writing down the producers", &error);
        }
        tended
    }

    /// Writes down what the log on `disk` knows of its producers, if `due` says so.
    fn remember_producers(
        &self,
        disk: DiskId,
        due: impl FnOnce(&mut Log) -> Option<ProducerSnapshot>,
        write: impl FnOnce(&ProducerSnapshot) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Some(snapshot) = self.with_log(disk, due).flatten() else { return Ok(()) };
        let written = write(&snapshot);
        let noted = self.with_log(disk, |log| log.on_producer_snapshot(&snapshot, written.is_ok()));
        written.and(noted.unwrap_or(Ok(())))
    }

    /// Forgets producers that have not appended for `age`.
    pub(crate) fn expire_producers(&self, now: Timestamp, age: Duration) {
        if self.brief().is_none() {
            return;
        }
        let disks: Vec<_> = self.readers().into_iter().map(|(disk, _)| disk).collect();
        for disk in disks {
            self.with_log(disk, |log| log.expire_producers(now, age));
        }
    }

    fn tend_flush(&self, now: Timestamp) -> Tended {
        let mut tended = Tended::default();
        // First, so that an append from now on asks again, and is not taken for one that is flushed.
        let soon = self.group.soon.swap(false, Ordering::AcqRel);
        let wanted = self.group.wanted.swap(false, Ordering::AcqRel);
        let (flush, flushed, end) = {
            let state = self.state.lock();
            (state.flush, state.progress.flushed(), state.log.end())
        };
        let unflushed = flushed < end;
        match flush {
            Flush::OnAck if wanted && unflushed => self.flush_or_report(),
            Flush::OnAck if soon && unflushed => {
                let seen = self.group.seen_end.swap(end.0, Ordering::AcqRel);
                if flushed.0 < seen {
                    self.flush_or_report();
                } else {
                    self.group.soon.store(true, Ordering::Release);
                    tended.again_in = Some(SOON);
                }
            }
            Flush::Interval(interval) if unflushed => {
                if self.interval_elapsed(now, interval) {
                    self.flush_or_report();
                } else {
                    tended.again_in = Some(interval);
                }
            }
            _ => {}
        }
        tended
    }

    fn tend_follower(&self, replica: &Arc<Replica>, now: Timestamp) -> Tended {
        for _ in 0..ROUNDS_MAX {
            match self.follow(replica, now) {
                Followed::CaughtUp | Followed::Idle => return Tended::default(),
                Followed::Waits => return Tended { again_in: Some(RETRY_AFTER) },
                Followed::More => {}
            }
        }
        replica.ask_for_attention(self);
        Tended::default()
    }

    /// Follows on all disks as far as it goes, on this thread: before a close, and for stores without
    /// threads.
    pub(crate) fn follow_all(&self, now: Timestamp) {
        let followers = self.state.lock().followers.clone();
        for replica in &followers {
            while self.follow(replica, now) == Followed::More {}
        }
    }

    /// Brings the replicas on `disks` nearer to the leader, and to stable storage. Where there are threads, those of the
    /// disks do it, any of which may hang, and the caller waits for a moment.
    pub(crate) fn bring_up(&self, disks: &[DiskId], now: Timestamp) {
        if !self.background {
            self.follow_all(now);
            self.flush_followers();
        }
        let mut state = self.state.lock();
        for replica in state.followers.iter().filter(|replica| disks.contains(&replica.disk)) {
            replica.ask_for_attention(self);
            replica.ask_for_flush(self);
        }
        self.room_made.wait_for(&mut state, FLUSH_PAUSE);
    }

    /// Whether the replica on `disk` has everything below `end` on stable storage.
    pub(crate) fn has_flushed(&self, disk: DiskId, end: Offset) -> bool {
        self.with_log(disk, |log| log.flushed_end() >= end).unwrap_or(false)
    }

    /// Flushes all followers, on this thread.
    pub(crate) fn flush_followers(&self) {
        let followers = self.state.lock().followers.clone();
        followers.iter().for_each(|replica| self.flush_follower(replica.disk));
    }

    /// Has all that is acknowledged on stable storage of every replica that is in sync, or may be, as it is anyway where the
    /// level was always `OnAck`.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when a disk takes longer than an append may. Those of the leader's flush; a follower whose flush
    /// fails is in sync no more.
    pub(crate) fn make_durable(&self) -> Result<(), Error> {
        let (timeout, begun) = (self.append_timeout(), Instant::now());
        let (wait, followers) = {
            let state = self.state.lock();
            let end = state.progress.high_watermark();
            if state.progress.all_have_flushed(end) {
                return Ok(());
            }
            let wait = Wait { offsets: end..end, until: Until::Flushed, epoch: state.epoch };
            (wait, state.followers.clone())
        };
        followers.iter().for_each(|replica| self.want_follower_flush(replica));
        match self.wait_acknowledged(&wait, timeout)? {
            Waited::Acknowledged => {}
            Waited::Unsettled => return Err(self.no_leader()),
        }
        let end = wait.offsets.end;
        for disk in self.replicas() {
            while self.may_be_in_sync(disk) && !self.has_flushed(disk, end) {
                if begun.elapsed() >= timeout {
                    let what = format!("{}: flushing on {disk}", self.partition());
                    return Err(Error::late(what, timeout));
                }
                if !self.background && self.state.lock().unsettled {
                    return Err(self.no_leader()); // nobody else settles it meanwhile
                }
                // Another may lead by now, and a replica may have been opened anew.
                if self.is_led_by(disk) {
                    self.flush_now()?;
                } else if let Some(replica) = self.replica(disk) {
                    self.want_follower_flush(&replica);
                }
                self.room_made.wait_for(&mut self.state.lock(), FLUSH_PAUSE);
            }
        }
        Ok(())
    }

    /// Does something with the log on `disk`, if it is in service.
    pub(super) fn with_log<T>(&self, disk: DiskId, then: impl FnOnce(&mut Log) -> T) -> Option<T> {
        let mut state = self.state.lock();
        if state.leads_on(disk) {
            return state.fenced.is_none().then(|| then(&mut state.log));
        }
        let replica = state.followers.iter().find(|replica| replica.disk == disk).cloned()?;
        drop(state);
        let mut follower = replica.brief()?;
        follower.log.as_mut().map(then)
    }

    /// Seals active segments that are too old, or begun for another flush level.
    pub(crate) fn roll_if_due(&self, now: Timestamp) {
        let Some(mut state) = self.brief() else { return };
        if self.check_open(&state).is_err() {
            return;
        }
        let rolled = state.log.roll_if_due(now);
        // Followers roll on their own: where segments end is no part of the log.
        for replica in &state.followers {
            if let Some(mut held) = replica.brief()
                && let Some(log) = &mut held.log
                && !matches!(log.roll_if_due(now), Ok(false))
            {
                replica.ask_for_attention(self);
            }
        }
        drop(state);
        match rolled {
            Ok(true) => self.ask_for_attention(),
            Ok(false) => {}
            Err(error) => self.background_failed("rolling the segment", &error),
        }
    }

    /// The log start that `policy` asks for, if it is a new one.
    pub(crate) fn retention_start(&self, now: Timestamp, policy: &Retention) -> Option<Offset> {
        if policy.is_forever() {
            return None;
        }
        let segments = self.reader().segments();
        let ages: Vec<_> = segments
            .iter()
            .map(|segment| {
                let last_append = segment.last_append_or_load().unwrap_or_else(|| {
                    segment.assume_last_append(now);
                    now
                });
                let (base, end) = (segment.base, segment.end());
                SegmentAge { bytes: segment.position(), base, end, last_append }
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

    /// Who wrote what is deleted stays known: writes it down, before the new start is durable. From then on a
    /// crash takes the records. `write` does it for one disk.
    ///
    /// # Errors
    /// Those of `write`, and of a flush.
    pub(crate) fn remember_before(
        &self,
        start: Offset,
        write: impl Fn(DiskId, &ProducerSnapshot) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for (disk, _) in self.readers() {
            let mut written = false;
            let due = |log: &mut Log| log.producer_snapshot_before(start);
            self.remember_producers(disk, due, |snapshot| {
                written = true;
                write(disk, snapshot)
            })?;
            // What tells of more than the log has after a power loss is not believed.
            if written && self.is_led_by(disk) {
                self.flush_now()?;
            } else if written {
                self.flush_follower(disk);
            }
        }
        Ok(())
    }

    /// Records below `start` are gone, durably so: lets go of their segments and removes the files.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be removed.
    pub(crate) fn raise_log_start(&self, start: Offset) -> Result<(), Error> {
        let mut state = self.state.lock();
        state.progress.on_log_start(start);
        state.history.drop_below(start);
        let mut gone = vec![(state.log.place().clone(), state.log.raise_log_start(start))];
        for replica in &state.followers {
            // One that is busy learns it when it follows.
            if let Some(mut held) = replica.brief()
                && let Some(log) = &mut held.log
            {
                gone.push((log.place().clone(), log.raise_log_start(start)));
            }
        }
        self.publish(state);
        gone.iter().try_for_each(|(place, segments)| self.remove_segments(place, segments))
    }

    /// Whether an offset may become the log start (REPL-29).
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`] above the high watermark, and whatever closes the partition.
    pub(crate) fn check_delete(&self, before: Offset) -> Result<(), Error> {
        let state = self.state.lock();
        self.check_open(&state)?;
        let end = state.progress.high_watermark();
        if before > end {
            let (partition, start) = (self.partition.clone(), state.progress.log_start());
            return Err(Error::OffsetOutOfRange { partition, offset: before, start, end });
        }
        Ok(())
    }

    /// Flushes everything and writes the side files, so that the next open scans nothing. Returns the
    /// end of the log that is thereby proven.
    ///
    /// # Errors
    /// [`Error::DiskOffline`] when the disk failed, now or before; [`Error::NoSpace`].
    pub(crate) fn settle_for_close(&self, now: Timestamp) -> Vec<(DiskId, Result<Left, Error>)> {
        self.follow_all(now);
        let (leading, followers) = {
            let state = self.state.lock();
            (state.leading.disk, state.followers.clone())
        };
        let mut outcomes = Vec::new();
        for replica in &followers {
            if replica.brief().is_some_and(|held| held.log.is_some()) {
                self.flush_follower(replica.disk);
                outcomes.push((replica.disk, self.finish_replica(replica.disk, now)));
            }
        }
        let led = self.flush_now().and_then(|()| self.finish_replica(leading, now));
        outcomes.push((leading, led));
        outcomes
    }

    /// Seals the log on `disk`, all of which is flushed, and writes what side files it lacks.
    fn finish_replica(&self, disk: DiskId, now: Timestamp) -> Result<Left, Error> {
        let unflushed = || Error::Io {
            path: std::path::PathBuf::new(),
            action: "flush before the close",
            written: crate::error::Written::Unknown,
            source: Arc::new(std::io::ErrorKind::Other.into()),
        };
        let finished = self.with_log(disk, |log| {
            let whole = log.flushed_end() >= log.end();
            whole.then(|| {
                log.finish(now);
                (log.sealed().to_vec(), (log.end(), log.has_producers()))
            })
        });
        let Some((sealed, left)) = finished.flatten() else {
            return Err(unflushed());
        };
        for sealed in sealed {
            self.settle_one(disk, &sealed, true)?;
        }
        let due = |log: &mut Log| log.producer_snapshot(true);
        self.remember_producers(disk, due, ProducerSnapshot::write)?;
        Ok(left)
    }

    fn work_ahead(&self, disk: DiskId, now: Timestamp) {
        loop {
            let room = self.with_log(disk, |log| log.room()).flatten();
            let Some((room, position)) = room else { return };
            let ahead = AHEAD_BYTES.min(position / 2);
            if !room.wants_work(position, ahead, now) {
                return;
            }
            self.state.lock().making_room.push((disk, None));
            let made = room.work_ahead(position, ahead, now);
            self.room_made(&mut self.state.lock(), disk);
            // A full disk is the appender's to report; here it only means that nothing is ready.
            if !matches!(made, Ok(true)) {
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

    fn settle_sealed(&self, disk: DiskId, now: Timestamp, flush: Flush) -> Option<Duration> {
        let sealed = self.with_log(disk, |log| log.sealed().to_vec())?;
        let mut again = None;
        for sealed in sealed {
            let age = now.since(sealed.at);
            let durable = flush != Flush::Os || age >= HARDEN_AFTER;
            if sealed.settled && !durable {
                again = Some(HARDEN_AFTER.saturating_sub(age));
                continue;
            }
            if self.settle_one(disk, &sealed, durable).is_err() {
                // Later segments must not be vouched for before earlier ones.
                return Some(RETRY_AFTER);
            }
            if !durable {
                again = Some(HARDEN_AFTER);
            }
        }
        again
    }

    fn settle_one(&self, disk: DiskId, sealed: &Sealed, durable: bool) -> Result<(), Error> {
        match settle(sealed, durable) {
            Ok(()) => {
                self.with_log(disk, |log| log.on_settled(&sealed.segment, durable));
                Ok(())
            }
            Err(SettleError::Flush(error)) => {
                // Whoever has the lock is waited for: the next flush would say that all is well.
                let mut state = self.state.lock();
                let at_risk = at_risk_on(&state, disk);
                let at_risk = at_risk.unwrap_or(Offset::ZERO..sealed.segment.end());
                self.distrust_tail(&mut state, disk, at_risk, &error);
                self.publish(state);
                Err(error)
            }
            Err(SettleError::Other(error)) => {
                // A segment that retention took meanwhile has no file to settle.
                let kept = self.with_log(disk, |log| {
                    let segments = log.reader().segments();
                    segments.iter().any(|kept| Arc::ptr_eq(kept, &sealed.segment))
                });
                if kept == Some(true) {
                    self.background_failed("writing a side file", &error);
                }
                Err(error)
            }
        }
    }

    /// Takes the replica on `disk` out of service, whether it leads or follows.
    pub(crate) fn fence_replica(&self, disk: DiskId, cause: &Error) {
        // One whose leader hangs under the lock stays as it is until that call returns.
        let Some(mut state) = self.brief() else { return };
        if state.leads_on(disk) {
            self.fence(&mut state, cause);
            self.publish(state);
            return;
        }
        let replica = state.followers.iter().find(|replica| replica.disk == disk).cloned();
        drop(state);
        if let Some(replica) = replica {
            self.fence_follower(&replica, cause);
        }
    }

    /// Lets a side file vouch for the active segment as far as it is flushed or, at the `Os` level,
    /// written.
    pub(crate) fn checkpoint(&self, disk: DiskId, flush: Flush, force: bool) {
        let durable = flush == Flush::OnAck;
        // Under the log's lock, so that end and position belong to one another.
        let due = self.with_log(disk, |log| {
            let segment = log.checkpoint_due(force)?;
            let head = segment.head(segment.place.disk.boot_id(), durable);
            Some((segment, head))
        });
        let Some((segment, head)) = due.flatten() else { return };
        if durable {
            let leads = self.state.lock().leads_on(disk);
            if leads {
                let _ = self.flush_now();
            } else {
                self.flush_follower(disk);
            }
            let flushed = self.with_log(disk, |log| log.flushed_end() >= head.end);
            if flushed != Some(true) {
                return;
            }
        }
        match segment.write_side_file(head) {
            Ok(()) => {
                self.with_log(disk, |log| log.on_checkpointed(segment.base, head.position));
            }
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

/// What of the log on `disk` no flush has proven, as far as that is known; also of one that is out of service.
fn at_risk_on(state: &State, disk: DiskId) -> Option<Range<Offset>> {
    let unproven = |log: &Log| log.flushed_end()..log.end();
    if state.leads_on(disk) {
        return Some(unproven(&state.log));
    }
    let replica = state.followers.iter().find(|replica| replica.disk == disk)?;
    let held = replica.brief()?;
    let fenced = || held.fenced.as_ref().map(|fenced| fenced.at_risk.clone());
    held.log.as_ref().map(unproven).or_else(fenced)
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Instant;

    use super::*;
    use crate::config::TopicConfig;
    use crate::storage::simulated::SimDisk;
    use crate::store::Store;

    const LONG: Duration = Duration::from_secs(20);

    /// The worker looked at the log, and then took back that a flush was wanted: by an append that came in between. Nobody
    /// flushed that, and who was to be told of it heard nothing.
    #[test]
    fn that_a_flush_is_wanted_is_taken_back_before_the_log_is_looked_at() {
        let store = Store::builder().simulated_disk(SimDisk::new(0)).open().unwrap();
        store.create_topic("t", TopicConfig::new().flush(Flush::OnAck)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        let core = partition.core().unwrap();
        core.group.wanted.store(true, Ordering::SeqCst);
        let held = core.state.lock();
        thread::scope(|scope| {
            scope.spawn(|| core.tend_flush(Timestamp(0)));
            let started = Instant::now();
            while core.group.wanted.load(Ordering::SeqCst) && started.elapsed() < LONG {
                thread::yield_now();
            }
            let is_wanted = core.group.wanted.load(Ordering::SeqCst);
            drop(held);
            assert!(!is_wanted, "it looks first");
        });
    }
}
