//! Following: how batches get from the leader's log to the others.
//!
//! A follower that stands where the leader stands, and whose log takes the batch without a call to its
//! disk, is appended to by the caller, under the partition's lock. Any other is brought up by its disk's
//! worker, which reads the leader's log, checks every checksum on the way, and appends the batches as
//! they are: first without the partition's lock, the last stretch, and what is still in the leader's
//! memory, with it, but for what takes a call to the disk. Offsets are the only order, so the two ways never meet.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;

use crate::error::{Error, ErrorClass};
use crate::log::{FlushPlan, Log};
use crate::record::BatchHeader;
use crate::types::{DiskId, Flush, LeaderEpoch, Offset, Timestamp};

use super::core::{Core, Fenced, State};
use super::events::EventKind;
use super::replica::Replica;

/// How much of the leader's log is copied at a time.
const COPY_BYTES: usize = 1 << 20;
/// A follower that is no further behind is brought up under the partition's lock.
const NEAR_BYTES: usize = 64 << 10;
/// How often the last stretch is left for a call to a disk before the worker looks at something else.
const CLOSE_TRIES: usize = 16;

/// How far a round of following came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Followed {
    /// It holds all that the leader holds.
    CaughtUp,
    /// There is more to copy.
    More,
    /// Nothing can be done now; somebody will ask again.
    Waits,
    /// The replica is out of service, leads, or is none.
    Idle,
}

/// How far the last stretch was copied.
#[derive(Debug)]
pub(super) enum Rest {
    /// The follower is level with the leader.
    Whole,
    /// It has to wait for a flush of its own, or for another call.
    Waits,
    /// These batches are next, and take a call to its disk.
    Calls(Vec<u8>),
    /// What is next takes a call to the leader's disk.
    Reads,
}

impl Core {
    /// Appends a batch to the followers that take it without waiting; the others are left to their workers.
    pub(super) fn append_inline(
        &self,
        state: &mut State,
        batch: &[u8],
        header: &BatchHeader,
        now: Timestamp,
        seen: Timestamp,
    ) {
        let State { progress, followers, .. } = state;
        for replica in followers.iter() {
            let appended = replica.state.try_lock().is_some_and(|mut follower| {
                let Some(log) = follower.log.as_mut() else { return false };
                if !log.takes_inline(batch.len(), header, seen) {
                    return false;
                }
                let appended = log.append_sealed(batch, header, now);
                // Memory takes it, or says nothing was written.
                let done = appended.is_ok();
                if done && log.wants_attention(seen) {
                    replica.ask_for_attention(self);
                }
                done
            });
            if appended {
                progress.on_appended_inline(replica.disk, header.end_offset());
            } else {
                replica.ask_for_attention(self);
            }
        }
    }

    /// One round of bringing the replica on `disk` up to the leader. One that another thread is at waits: the leader's
    /// disk may hold that one.
    pub(super) fn follow(&self, replica: &Arc<Replica>, now: Timestamp) -> Followed {
        if replica.is_followed.swap(true, Ordering::AcqRel) {
            return Followed::Waits;
        }
        let followed = self.follow_alone(replica, now);
        replica.is_followed.store(false, Ordering::Release);
        followed
    }

    fn follow_alone(&self, replica: &Arc<Replica>, now: Timestamp) -> Followed {
        let (reader, written, start, epoch) = {
            let state = self.state.lock();
            if !self.may_follow(&state, replica) {
                return Followed::Idle;
            }
            let reader = Arc::clone(state.log.reader());
            (reader, state.log.written_end(), state.progress.log_start(), state.epoch)
        };
        let mut follower = replica.state.lock();
        if follower.log.is_some() && !replica.takes_from(epoch, &follower) {
            // The reign that begins asks for it.
            return Followed::Waits;
        }
        let Some(log) = follower.log.as_mut() else { return Followed::Idle };
        if let Err(error) = self.begin_with_leader(log, start) {
            drop(follower);
            return self.follower_failed(replica, &error);
        }
        if log.lacks_past() {
            drop(follower);
            return self.tell_past(replica);
        }
        let end = log.end();
        // The leader's disk is waited for under no lock.
        drop(follower);
        if end < written {
            let fetched = match reader.read(end, written, COPY_BYTES) {
                Ok(fetched) => fetched,
                Err(error) => return self.follow_past(replica, &error, now),
            };
            let bytes = fetched.as_ref().map_or(&[][..], |fetched| &fetched.bytes);
            match self.append_apart(replica, epoch, bytes, now) {
                Followed::CaughtUp if bytes.len() >= NEAR_BYTES => return Followed::More,
                Followed::CaughtUp => {}
                stopped => return stopped,
            }
        }
        self.follow_closely(replica, now)
    }

    /// Lets a follower's log begin where the leader's does, if it was busy, away or shorter when that start was raised. Who
    /// wrote what goes now stays known here as well.
    fn begin_with_leader(&self, log: &mut Log, start: Offset) -> Result<(), Error> {
        if log.end() < start {
            log.restart(start)?;
        }
        if let Some(snapshot) = log.producer_snapshot_before(start) {
            let written = snapshot.write();
            let noted = log.on_producer_snapshot(&snapshot, written.is_ok());
            written.and(noted)?;
        }
        let place = log.place().clone();
        if let Err(error) = self.remove_segments(&place, &log.raise_log_start(start)) {
            self.background_failed("removing a segment", &error);
        }
        if log.lacks_past() { log.make_directory() } else { Ok(()) }
    }

    /// Tells a follower that begins where the leader's log begins now who wrote before. It is written down before it is
    /// relied upon: the follower may lead next.
    fn tell_past(&self, replica: &Arc<Replica>) -> Followed {
        let adopted = {
            let state = self.state.lock();
            let Some(mut follower) = replica.brief() else { return Followed::Waits };
            match follower.log.as_mut() {
                Some(log) if log.end() <= state.log.end() => {
                    log.adopt_producers(&state.log);
                    log.producer_snapshot(true)
                }
                _ => return Followed::Idle,
            }
        };
        let cleared = {
            let mut follower = replica.state.lock();
            follower.log.as_mut().map_or(Ok(()), Log::remove_foreign_snapshots)
        };
        if let Err(error) = cleared {
            return self.follower_failed(replica, &error);
        }
        if let Some(snapshot) = adopted {
            let written = snapshot.write();
            if let Some(log) = replica.state.lock().log.as_mut() {
                // What is left over is removed with the next one.
                let _ = log.on_producer_snapshot(&snapshot, written.is_ok());
                if written.is_err() {
                    log.ask_for_past();
                }
            }
            if let Err(error) = written {
                return self.follower_failed(replica, &error);
            }
        }
        Followed::More
    }

    /// The last stretch: with the partition's lock, so that the leader stands still meanwhile. What takes a call to a
    /// disk, which may hang, is done between, without it; a leader that is as fast as that is not caught up with.
    fn follow_closely(&self, replica: &Arc<Replica>, now: Timestamp) -> Followed {
        for _ in 0..CLOSE_TRIES {
            let mut state = self.state.lock();
            if !self.may_follow(&state, replica) {
                return Followed::Idle;
            }
            let epoch = state.epoch;
            let copied = self.copy_rest(&mut state, replica, now);
            let Ok(Rest::Calls(bytes)) = copied else {
                return self.followed_closely(state, replica, copied, now);
            };
            drop(state);
            match self.append_apart(replica, epoch, &bytes, now) {
                Followed::CaughtUp => {}
                stopped => return stopped,
            }
        }
        Followed::More
    }

    /// Puts batches behind the follower's last one, with no lock but its own.
    fn append_apart(
        &self,
        replica: &Arc<Replica>,
        epoch: LeaderEpoch,
        bytes: &[u8],
        now: Timestamp,
    ) -> Followed {
        let mut follower = replica.state.lock();
        if follower.log.is_some() && !replica.takes_from(epoch, &follower) {
            // The reign that begins asks for it.
            return Followed::Waits;
        }
        let Some(log) = follower.log.as_mut() else { return Followed::Idle };
        let appended = log.append_batches(bytes, now);
        drop(follower);
        self.note_follower(replica);
        match appended {
            Ok(true) => Followed::CaughtUp,
            Ok(false) => Followed::Waits,
            Err(error) => self.follower_failed(replica, &error),
        }
    }

    /// Copies what a leader that is to be followed by another has in memory to the others. Returns the disks for which
    /// that was not all: their rest takes calls, and is for [`Core::drain`].
    pub(crate) fn undrained(&self, now: Timestamp) -> Vec<DiskId> {
        let Some(mut state) = self.brief() else { return Vec::new() };
        let ends = state.fenced.is_some() || state.stepping_down;
        if !ends || state.leader.is_none() || state.ended.is_some() {
            return Vec::new();
        }
        let mut followers = state.followers.clone();
        followers.retain(|replica| state.progress.is_online(replica.disk));
        let start = state.progress.log_start();
        followers.retain(|replica| {
            let begins_apart = |log: &Log| log.reader().log_start() < start || log.lacks_past();
            if replica.brief().is_some_and(|held| held.log.as_ref().is_some_and(begins_apart)) {
                return true;
            }
            let copied = self.copy_rest(&mut state, replica, now);
            // What hangs or fails already is asked for nothing.
            matches!(copied, Ok(Rest::Calls(_) | Rest::Reads))
                || matches!(copied, Ok(Rest::Waits) if !replica.hangs.load(Ordering::Relaxed))
        });
        followers.iter().map(|replica| replica.disk).collect()
    }

    /// Copies all that a leader that is to be followed by another still has to the replica on `disk`, under no lock but
    /// that one's. An error of the leader's disk is no news.
    pub(crate) fn drain(&self, disk: DiskId, now: Timestamp) {
        let Some(replica) = self.replica(disk) else { return };
        let (reader, written, unwritten, start, epoch) = {
            let state = self.state.lock();
            if !Self::is_current(&state, &replica) {
                return;
            }
            let unwritten = state.log.unwritten().map(<[u8]>::to_vec);
            let reader = Arc::clone(state.log.reader());
            let start = state.progress.log_start();
            (reader, state.log.written_end(), unwritten, start, state.epoch)
        };
        {
            // What was deleted stays so, whoever leads next.
            let mut follower = replica.state.lock();
            let current = replica.takes_from(epoch, &follower);
            let Some(log) = follower.log.as_mut().filter(|_| current) else { return };
            if self.begin_with_leader(log, start).is_err() {
                return;
            }
            let lacks_past = log.lacks_past();
            drop(follower);
            if lacks_past && self.tell_past(&replica) != Followed::More {
                return;
            }
        }
        loop {
            let end = replica.state.lock().log.as_ref().map(Log::end);
            let Some(end) = end.filter(|end| *end < written) else { break };
            let Ok(Some(fetched)) = reader.read(end, written, COPY_BYTES) else { return };
            if self.append_drained(&replica, epoch, &fetched.bytes, now) != Followed::CaughtUp {
                return;
            }
        }
        for bytes in unwritten {
            if self.append_drained(&replica, epoch, &bytes, now) != Followed::CaughtUp {
                return;
            }
        }
    }

    /// As [`Core::append_apart`]; a follower that has to wait for a flush of its own flushes at once.
    fn append_drained(
        &self,
        replica: &Arc<Replica>,
        epoch: LeaderEpoch,
        bytes: &[u8],
        now: Timestamp,
    ) -> Followed {
        match self.append_apart(replica, epoch, bytes, now) {
            Followed::Waits => {
                self.flush_follower(replica.disk);
                self.append_apart(replica, epoch, bytes, now)
            }
            followed => followed,
        }
    }

    fn followed_closely(
        &self,
        state: MutexGuard<'_, State>,
        replica: &Arc<Replica>,
        copied: Result<Rest, Error>,
        now: Timestamp,
    ) -> Followed {
        match copied {
            Ok(rest) => {
                let durable = state.flush == Flush::OnAck;
                self.publish(state);
                if durable {
                    self.want_follower_flush(replica);
                }
                match rest {
                    Rest::Whole => Followed::CaughtUp,
                    Rest::Waits => Followed::Waits,
                    Rest::Calls(_) | Rest::Reads => Followed::More,
                }
            }
            Err(error @ Error::Corrupt { .. }) => {
                drop(state);
                self.follow_past(replica, &error, now)
            }
            Err(error) => {
                drop(state);
                self.follower_failed(replica, &error)
            }
        }
    }

    /// The leader's log cannot be read where the follower ends. Damage is not copied: another replica may
    /// have what is lost. What none has, with all of them here, is passed over, or the partition would
    /// stand still for good; those offsets then answer as damaged on every replica.
    fn follow_past(&self, replica: &Arc<Replica>, error: &Error, now: Timestamp) -> Followed {
        if error.class() != ErrorClass::Fatal {
            self.background_failed("reading the leader's log", error);
            return Followed::Waits;
        }
        let state = self.state.lock();
        if !self.may_follow(&state, replica) {
            return Followed::Idle;
        }
        let (written, leader_end, epoch) = (state.log.written_end(), state.log.end(), state.epoch);
        let others: Vec<_> = state
            .followers
            .iter()
            .filter(|other| other.disk != replica.disk)
            .filter_map(|other| {
                let held = other.brief()?;
                let log = held.log.as_ref()?;
                Some((Arc::clone(log.reader()), log.written_end(), log.end()))
            })
            .collect();
        // One that is busy may have it. Those who are asked are all but the leader and this one.
        let all_asked = others.len() + 2 == state.replicas && state.suspects.is_empty();
        drop(state);
        let mut follower = replica.state.lock();
        if follower.log.is_some() && !replica.takes_from(epoch, &follower) {
            // The reign that begins asks for it.
            return Followed::Waits;
        }
        let Some(log) = follower.log.as_mut() else { return Followed::Idle };
        let from = log.end();
        // What the medium may still give another time is not passed over.
        let mut lost = lost_behind(from, error).filter(|_| all_asked);
        let mut found = None;
        for (reader, in_file, end) in others {
            match reader.read(from, written.min(in_file), COPY_BYTES) {
                Ok(Some(fetched)) => {
                    found = Some(fetched);
                    break;
                }
                Ok(None) if end <= from => {}
                // It may have some of what is lost, behind its own damage.
                Err(error) => lost = lost.min(lost_behind(from, &error)),
                // It has it in memory.
                Ok(None) => lost = None,
            }
        }
        let passes = lost.filter(|_| found.is_none());
        let outcome = match found {
            Some(fetched) => log.append_batches(&fetched.bytes, now),
            None => passes.map_or(Ok(false), |lost| log.pass_over(lost.min(leader_end), now)),
        };
        // A flush that failed in it is not tried again, and a gap that nothing proves is no place to go on.
        let is_halfway = passes.is_some() && (log.is_flushing() || log.end() > from);
        drop(follower);
        if let Err(error) = &outcome
            && is_halfway
        {
            self.fence_follower(replica, error);
        }
        if passes.is_some() && matches!(outcome, Ok(true)) {
            // The leader may know who wrote what is lost.
            let state = self.state.lock();
            if let Some(mut follower) = replica.brief()
                && follower.epoch == state.epoch
                && let Some(log) = follower.log.as_mut()
            {
                log.adopt_producers(&state.log);
            }
        }
        self.note_follower(replica);
        self.report_damage(from, error);
        match outcome {
            Ok(true) => Followed::More,
            Ok(false) => Followed::Waits,
            Err(_) if is_halfway => Followed::Idle,
            Err(error) => self.follower_failed(replica, &error),
        }
    }

    /// Copies what the leader has and the follower has not, as far as that takes no call to a disk.
    fn copy_rest(
        &self,
        state: &mut State,
        replica: &Replica,
        now: Timestamp,
    ) -> Result<Rest, Error> {
        let Some(mut follower) = replica.brief() else { return Ok(Rest::Waits) };
        if replica.is_elected.load(Ordering::Acquire) {
            return Ok(Rest::Waits);
        }
        let Some(log) = follower.log.as_mut() else { return Ok(Rest::Waits) };
        let written = state.log.written_end();
        let copied = (|| {
            while log.end() < written {
                let reader = state.log.reader();
                if !reader.is_at_hand(log.end()) {
                    return Ok(Rest::Reads);
                }
                let Some(fetched) = reader.read(log.end(), written, COPY_BYTES)? else { break };
                let rest = append_ready(log, &fetched.bytes, now)?;
                if !rest.is_empty() {
                    return Ok(Rest::Calls(rest.to_vec()));
                }
            }
            for bytes in state.log.unwritten() {
                let rest = append_ready(log, bytes, now)?;
                if !rest.is_empty() {
                    return Ok(Rest::Calls(rest.to_vec()));
                }
            }
            Ok(Rest::Whole)
        })();
        let end = log.end();
        drop(follower);
        let flush = state.flush;
        state.progress.on_followed(replica.disk, end, flush);
        match copied {
            Ok(Rest::Whole) if end != state.log.end() => Ok(Rest::Waits),
            copied => copied,
        }
    }

    fn may_follow(&self, state: &State, replica: &Arc<Replica>) -> bool {
        state.fenced.is_none()
            && state.ended.is_none()
            && state.leading.disk != replica.disk
            && Self::is_current(state, replica)
    }

    /// A follower could not be appended to. A full disk leaves it behind; anything worse fences it.
    fn follower_failed(&self, replica: &Arc<Replica>, error: &Error) -> Followed {
        if error.class() == ErrorClass::Fatal {
            self.fence_follower(replica, error);
            return Followed::Idle;
        }
        let mut state = self.state.lock();
        if state.progress.on_stuck(replica.disk) {
            self.ask_for_settling(&mut state);
        }
        drop(state);
        self.background_failed("following the leader", error);
        Followed::Waits
    }

    /// Takes a follower out of service.
    pub(super) fn fence_follower(&self, replica: &Arc<Replica>, cause: &Error) {
        let mut state = self.state.lock();
        if !Self::is_current(&state, replica) {
            return;
        }
        let words = super::core::words_of(cause);
        let Some(mut follower) = replica.brief() else {
            self.orphan(&mut state, replica, &words);
            self.ask_for_settling(&mut state);
            self.report(EventKind::ReplicaFenced {
                partition: self.partition.clone(),
                disk: replica.disk,
                at_risk: Offset::ZERO..Offset::ZERO,
                cause: words,
            });
            self.publish(state);
            return;
        };
        if follower.fenced.is_some() {
            return;
        }
        let unproven = follower.log.take().map(|log| log.flushed_end()..log.end());
        let at_risk = unproven.clone().unwrap_or_default();
        follower.fenced = Some(Fenced { cause: words.as_str().into(), at_risk: at_risk.clone() });
        drop(follower);
        // Of one that was never opened nothing is flushed: it is believed as far as it was before.
        if let Some(unproven) = unproven {
            state.suspects.push((replica.disk, unproven.start));
        }
        state.follower_failed(replica.disk);
        self.ask_for_settling(&mut state);
        self.report(EventKind::ReplicaFenced {
            partition: self.partition.clone(),
            disk: replica.disk,
            at_risk,
            cause: words,
        });
        self.publish(state);
    }

    /// A flush failed on `disk`, perhaps of a log that leads no more or is out of service: what it did not prove is not
    /// believed of whatever is there, also not of a replica that was opened since (RELIABILITY fact 2).
    pub(super) fn distrust_tail(
        &self,
        state: &mut State,
        disk: DiskId,
        at_risk: Range<Offset>,
        cause: &Error,
    ) {
        if state.ended.is_some() || !state.preference.contains(&disk) {
            return;
        }
        state.suspects.push((disk, at_risk.start));
        self.ask_for_settling(state);
        if state.leads_on(disk) {
            return self.fence(state, cause);
        }
        let words = super::core::words_of(cause);
        let serving = state.followers.iter().find(|replica| replica.disk == disk).cloned();
        if let Some(replica) = serving {
            if let Some(mut follower) = replica.brief() {
                follower.log = None;
                let cause = words.as_str().into();
                follower.fenced = Some(Fenced { cause, at_risk: at_risk.clone() });
            } else {
                self.orphan(state, &replica, &words);
            }
            state.follower_failed(disk);
        }
        self.report(EventKind::ReplicaFenced {
            partition: self.partition.clone(),
            disk,
            at_risk,
            cause: words,
        });
    }

    /// Flushes the follower on `disk`, if there is anything to flush.
    pub(crate) fn flush_follower(&self, disk: DiskId) {
        let Some(replica) = self.replica(disk) else { return };
        replica.flush_taken();
        let plan = {
            let mut follower = replica.state.lock();
            // One that has led may be amid its flush of then.
            if follower.flushing || follower.log.as_ref().is_some_and(Log::is_flushing) {
                follower.flush_again = true;
                return;
            }
            let plan = follower.log.as_mut().and_then(Log::flush_plan);
            follower.flushing = plan.is_some();
            plan
        };
        let Some(plan) = plan else {
            self.note_follower(&replica);
            return;
        };
        let outcome = plan.run();
        self.complete_follower_flush(&replica, plan, outcome);
    }

    fn complete_follower_flush(
        &self,
        replica: &Arc<Replica>,
        plan: FlushPlan,
        outcome: Result<(), Error>,
    ) {
        let mut follower = replica.state.lock();
        follower.flushing = false;
        if follower.log.as_ref().is_some_and(|log| plan.is_of(log)) {
            match outcome {
                Ok(()) => {
                    let log = follower.log.as_mut().expect("looked at just now");
                    log.on_flushed(plan);
                    let again = std::mem::take(&mut follower.flush_again);
                    drop(follower);
                    self.note_follower(replica);
                    if again {
                        self.want_follower_flush(replica);
                    }
                    // One that waited for this flush to begin a new segment goes on.
                    if self.state.lock().progress.is_behind(replica.disk) {
                        replica.ask_for_attention(self);
                    }
                }
                Err(error) => {
                    let end = follower.log.as_ref().map_or(plan.end, Log::end);
                    drop(follower);
                    let mut state = self.state.lock();
                    self.distrust_tail(&mut state, replica.disk, plan.durable..end, &error);
                    self.publish(state);
                }
            }
            return;
        }
        drop(follower);
        // The log leads by now, or is out of service.
        let mut state = self.state.lock();
        let again = self.finish_flush(&mut state, replica.disk, plan, outcome);
        self.publish(state);
        again.iter().for_each(|follower| self.want_follower_flush(follower));
    }

    /// Has the follower's log flushed soon: by its disk's thread, or at once where there is none.
    pub(super) fn want_follower_flush(&self, replica: &Replica) {
        if self.background {
            replica.ask_for_flush(self);
        } else {
            self.flush_follower(replica.disk);
        }
    }

    /// Counts how far a follower is. With both locks: between them, a new reign could cut it.
    fn note_follower(&self, replica: &Arc<Replica>) {
        let mut state = self.state.lock();
        if !Self::is_current(&state, replica) {
            return;
        }
        let Some(follower) = replica.brief() else {
            // Its worker notes it when it can be had.
            replica.ask_for_attention(self);
            return;
        };
        let ends = follower.log.as_ref().map(|log| (log.end(), log.flushed_end()));
        drop(follower);
        if let Some((end, flushed)) = ends {
            let flush = state.flush;
            state.progress.on_followed(replica.disk, end, flush);
            state.progress.on_follower_flushed(replica.disk, flushed, flush);
            self.publish(state);
        }
    }
}

/// Up to where a log is known to have lost what is at `from`; `None`: it may give that another time.
fn lost_behind(from: Offset, error: &Error) -> Option<Offset> {
    match error {
        Error::Corrupt { offsets, .. } if offsets.contains(&from) => Some(offsets.end),
        _ => None,
    }
}

/// Puts the leader's batches behind the last one as long as that takes no call to the disk. Returns the rest.
fn append_ready<'a>(log: &mut Log, mut bytes: &'a [u8], now: Timestamp) -> Result<&'a [u8], Error> {
    while let Some(header) = BatchHeader::trusted(bytes) {
        let (batch, rest) = bytes.split_at(header.len());
        if header.end_offset() > log.end() {
            if !log.takes_inline(batch.len(), &header, now) {
                return Ok(bytes);
            }
            log.append_sealed(batch, &header, now)?;
        }
        bytes = rest;
    }
    Ok(&[])
}
