//! Who leads and who is in sync: what the partition proposes, and what it does once that is durable.
//!
//! The store asks for a proposal ([`Core::proposal`]), writes it into the metadata, and tells the
//! partition ([`Core::install`]). In between, nothing that depends on it is acknowledged: who leaves the
//! in-sync set still holds the watermark, and a partition without a leader takes no appends.
//!
//! ```text
//! Leading --- a flush or an append fails -----------> Leaderless --- elected, durable ---> Leading
//!    |                                                    |
//!    +--- asked to step down (disk stops, is full) -------+   nobody can lead: stays
//! ```
//!
//! A leader that steps down is copied from first, so that no record is lost by it; the tail of one that
//! failed is copied as far as memory still gives it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::error::{Error, Written};
use crate::log::{Log, Marks};
use crate::protocol::replication::{
    Candidate, FollowerStart, Progress, elect, eligible_after, goes_on_without_eligible,
};
use crate::types::{DiskId, Flush, LeaderEpoch, Offset, Timestamp};

use super::core::{Core, Fenced, State};
use super::events::EventKind;
use super::hang::BRIEF;
use super::replica::Replica;

/// How long a replica that failed is left alone.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long the preferred replica is in sync before it leads again: a disk that comes and goes moves no leaders.
const PREFER_AFTER: Duration = Duration::from_secs(5);

/// A change of leader or of the in-sync set, to be made durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Proposal {
    pub(crate) leader: Option<DiskId>,
    pub(crate) epoch: LeaderEpoch,
    pub(crate) isr: Vec<DiskId>,
    pub(crate) eligible: Vec<DiskId>,
    /// Where a new reign begins.
    pub(crate) start: Option<Offset>,
    pub(crate) high_watermark: Offset,
    /// Replicas that are not to be believed behind an offset.
    pub(crate) suspects: Vec<(DiskId, Offset)>,
    /// Records that nobody has any more, by an unclean election.
    pub(crate) lost: Option<std::ops::Range<Offset>>,
}

/// Whether a failed flush leaves the replica on `disk` without something that was acknowledged.
fn lacks(suspects: &[(DiskId, Offset)], disk: DiskId, acknowledged: Offset) -> bool {
    suspects.iter().any(|(suspect, durable)| *suspect == disk && *durable < acknowledged)
}

impl State {
    /// What was proposed is not durable, and will not be.
    fn give_up_proposed(&mut self) {
        self.progress.on_isr_refused();
        if self.fenced.is_none() && self.leader.is_some() && self.epoch == self.began {
            self.progress.on_leading_on(self.flush);
        }
        for replica in &self.followers {
            replica.is_elected.store(false, Ordering::Release);
        }
    }

    /// What was in doubt before so many doubts had ended is not durable, and will not be.
    fn leave_doubts(&mut self, ended: u64) {
        if self.in_doubt.is_some_and(|doubt| doubt < ended) {
            self.in_doubt = None;
            self.give_up_proposed();
        }
    }

    /// Up to where records may be acknowledged. The watermark need not know yet how far that was in earlier reigns: at most up to
    /// where this one begins.
    fn acknowledged_max(&self) -> Offset {
        self.progress.high_watermark().max(self.progress.epoch_start())
    }

    /// Whether the watermark shows all that was acknowledged. It stays so: what is acknowledged from then on lies below it.
    pub(super) fn notice_acknowledged(&mut self) -> bool {
        self.knows_acknowledged |= self.progress.knows_acknowledged();
        self.knows_acknowledged
    }

    fn is_in_sync(&self, disk: DiskId) -> bool {
        self.leader == Some(disk) || self.isr.contains(&disk)
    }

    /// As the metadata do by themselves.
    pub(super) fn forget_eligible(&mut self) {
        let required = usize::from(self.progress.required());
        if goes_on_without_eligible(self.leader.is_some(), self.isr.len(), required) {
            self.eligible.clear();
        }
    }
}

impl Core {
    /// What should be made durable now; `None`: nothing. `doubts_ended` says what is in doubt no more.
    pub(crate) fn proposal(&self, doubts_ended: u64) -> Option<Proposal> {
        // What is put off stays unsettled, and the next tick asks again.
        let mut state = self.brief()?;
        state.unsettled = false;
        state.leave_doubts(doubts_ended);
        let alone = state.followers.is_empty() && state.replicas == 1;
        if state.ended.is_some() || (alone && state.suspects.is_empty()) {
            return None;
        }
        let suspects = std::mem::take(&mut state.suspects);
        // One that may lack what was acknowledged must not lead for want of another.
        let acknowledged = state.acknowledged_max();
        state.eligible.retain(|disk| !lacks(&suspects, *disk, acknowledged));
        // One that begins a segment hands over when that is done.
        let steps_down = state.stepping_down && !state.log.is_rolling();
        let leaderless = state.fenced.is_some() || steps_down;
        if leaderless {
            match self.propose_leader(&mut state, &suspects) {
                Ok(None) => {}
                Ok(proposed) => return proposed,
                Err(awaited) => {
                    state.suspects.extend(suspects);
                    state.unsettled = awaited.is_none();
                    drop(state);
                    awaited.iter().for_each(|unflushed| self.want_follower_flush(unflushed));
                    return None;
                }
            }
        }
        // One that steps down leads on where nobody can take over.
        if state.fenced.is_none()
            && let Some(followers) = state.progress.proposal()
        {
            let mut isr = vec![state.leading.disk];
            isr.extend(followers);
            let required = usize::from(state.progress.required());
            let mut eligible = eligible_after(&state.isr, &state.eligible, &isr, required);
            eligible.retain(|disk| !lacks(&suspects, *disk, acknowledged));
            return Some(Proposal {
                leader: Some(state.leading.disk),
                epoch: state.epoch,
                isr,
                eligible,
                start: None,
                high_watermark: state.progress.high_watermark(),
                suspects,
                lost: None,
            });
        }
        if suspects.is_empty() {
            return None;
        }
        Some(Proposal {
            leader: state.leader,
            epoch: state.epoch,
            isr: state.isr.clone(),
            eligible: state.eligible.clone(),
            start: None,
            high_watermark: state.progress.high_watermark(),
            suspects,
            lost: None,
        })
    }

    /// `Err`: not now; that one is to lead, and to be flushed first, or one is busy.
    fn propose_leader(
        &self,
        state: &mut State,
        suspects: &[(DiskId, Offset)],
    ) -> Result<Option<Proposal>, Option<Arc<Replica>>> {
        let followers = state.followers.clone();
        let (isr, eligible) = (state.isr.clone(), state.eligible.clone());
        let mut candidates = Vec::new();
        for replica in &followers {
            if !state.progress.is_online(replica.disk) {
                continue;
            }
            let Some(follower) = replica.brief() else { continue };
            // One that ends before the log's start cannot lead: its offsets would be below it.
            let log = follower.log.as_ref();
            let Some(log) = log.filter(|log| log.end() >= state.progress.log_start()) else {
                continue;
            };
            let last_epoch = log.last_epoch().ok().flatten().unwrap_or_default();
            candidates.push(Candidate {
                disk: replica.disk,
                in_sync: isr.contains(&replica.disk),
                eligible: eligible.contains(&replica.disk),
                suspect: suspects.iter().any(|(disk, _)| *disk == replica.disk),
                sound: !log.lacks_past()
                    && !state.damaged.iter().any(|(disk, _)| *disk == replica.disk),
                last_epoch,
                end: log.end(),
            });
        }
        candidates.sort_by_key(|candidate| {
            state.preference.iter().position(|disk| *disk == candidate.disk)
        });
        // All replicas have failed, and all are there again: no more can be hoped for.
        let no_better = state.stale.is_empty()
            && isr.is_empty()
            && eligible.is_empty()
            && candidates.len() == state.replicas;
        let allowed = self.settings().topic.unclean_leader_election || no_better;
        let unclean = allowed && state.fenced.is_some();
        let handed = state.hand_to.filter(|_| state.fenced.is_none());
        // One that steps down gives nothing up: who has not all of it does not take over.
        let whole = |end| state.fenced.is_some() || end == state.log.end();
        let elected = elect(&candidates, unclean)
            .filter(|elected| handed.is_none_or(|preferred| preferred == elected.disk))
            .filter(|elected| whole(elected.end));
        let required = usize::from(state.progress.required());
        let high_watermark = state.progress.high_watermark();
        let acknowledged = state.acknowledged_max();
        let without = |mut eligible: Vec<DiskId>| {
            eligible.retain(|disk| !lacks(suspects, *disk, acknowledged));
            eligible
        };
        let Some(elected) = elected else {
            if state.fenced.is_none() {
                // Nobody can take over: it stays.
                if state.epoch > state.began {
                    // The metadata name one that never led, so it begins anew.
                    let mut new_isr = vec![state.leading.disk];
                    new_isr.extend(candidates.iter().filter(|c| c.in_sync).map(|c| c.disk));
                    return Ok(Some(Proposal {
                        leader: Some(state.leading.disk),
                        epoch: LeaderEpoch(state.epoch.0.saturating_add(1)),
                        eligible: without(eligible_after(&isr, &eligible, &new_isr, required)),
                        isr: new_isr,
                        start: Some(state.log.end()),
                        high_watermark,
                        suspects: suspects.to_vec(),
                        lost: None,
                    }));
                }
                state.stepping_down = false;
                state.hand_to = None;
                return Ok(None);
            }
            if state.leader.is_none() {
                return Ok(None);
            }
            return Ok(Some(Proposal {
                leader: None,
                epoch: state.epoch,
                isr: Vec::new(),
                eligible: without(eligible_after(&isr, &eligible, &[], required)),
                start: None,
                high_watermark,
                suspects: suspects.to_vec(),
                lost: None,
            }));
        };
        // What was acknowledged stays as safe as it was: power may go before one that was not in sync is flushed.
        let flushed_end =
            |replica: &Arc<Replica>| replica.brief()?.log.as_ref().map(Log::flushed_end);
        let counts = elected.end.min(high_watermark);
        if !elected.clean
            && state.flush == Flush::OnAck
            && let Some(replica) = followers.iter().find(|replica| replica.disk == elected.disk)
            && flushed_end(replica).is_some_and(|flushed| flushed < counts)
        {
            return Err(Some(Arc::clone(replica)));
        }
        let Some(start) = self.hold_end(&followers, elected.disk, elected.end) else {
            return Err(None);
        };
        // One who is not in sync need not have what would count if the topic asks for less meanwhile.
        state.progress.on_leaderless();
        let mut new_isr = vec![elected.disk];
        if elected.clean {
            let stays = |c: &&Candidate| c.in_sync && c.disk != elected.disk;
            new_isr.extend(candidates.iter().filter(stays).map(|c| c.disk));
            // One that steps down holds everything; whether it stays in sync is seen like anybody's.
            if state.fenced.is_none() && !state.stuck {
                new_isr.push(state.leading.disk);
            }
        }
        let lost = (!elected.clean && start < high_watermark).then_some(start..high_watermark);
        Ok(Some(Proposal {
            leader: Some(elected.disk),
            epoch: LeaderEpoch(state.epoch.0.saturating_add(1)),
            eligible: without(eligible_after(&isr, &eligible, &new_isr, required)),
            isr: new_isr,
            start: Some(start),
            high_watermark: high_watermark.min(start),
            suspects: suspects.to_vec(),
            lost,
        }))
    }

    /// Sees to it that the elected log ends where it did when it was looked at, until the election is settled: what is copied
    /// to it later would be of the reign before, in the one that begins there.
    fn hold_end(&self, followers: &[Arc<Replica>], elected: DiskId, end: Offset) -> Option<Offset> {
        let replica = followers.iter().find(|replica| replica.disk == elected)?;
        let follower = replica.brief()?;
        let end = follower.log.as_ref().map(Log::end).filter(|now| *now >= end)?;
        replica.is_elected.store(true, Ordering::Release);
        Some(end)
    }

    /// The proposal is durable: it holds from here on.
    pub(crate) fn install(&self, proposal: Proposal, now: Timestamp) {
        let mut state = self.state.lock();
        if state.ended.is_some() {
            return;
        }
        let before = (state.leader, state.isr.clone());
        state.in_doubt = None;
        state.isr.clone_from(&proposal.isr);
        state.eligible.clone_from(&proposal.eligible);
        state.forget_eligible();
        state.stale.retain(|disk| !proposal.isr.contains(disk));
        match (proposal.leader, proposal.start) {
            (Some(leader), Some(start)) => {
                self.begin_reign(&mut state, leader, start, &proposal, now);
            }
            (Some(leader), None) if leader == state.leading.disk && state.fenced.is_none() => {
                let flush = state.flush;
                let followers: Vec<_> =
                    proposal.isr.iter().copied().filter(|disk| *disk != leader).collect();
                state.progress.on_isr(&followers, flush);
            }
            (None, _) => {
                state.leader = None;
                state.progress.on_leaderless();
            }
            _ => {}
        }
        if state.progress.proposal().is_some() {
            self.ask_for_settling(&mut state);
        }
        let (leader, isr, epoch) = (state.leader, state.isr.clone(), state.epoch);
        if before.0 != leader {
            self.report(EventKind::LeaderChanged {
                partition: self.partition.clone(),
                leader,
                epoch,
                lost: proposal.lost,
            });
        }
        if before.1 != isr {
            self.report(EventKind::InSyncChanged {
                partition: self.partition.clone(),
                in_sync: isr,
            });
        }
        // Whoever waits looks anew at what it waits for.
        self.wake_sleepers(&mut state);
        self.publish(state);
    }

    fn begin_reign(
        &self,
        state: &mut State,
        leader: DiskId,
        start: Offset,
        proposal: &Proposal,
        now: Timestamp,
    ) {
        // The metadata name it already: this epoch is used up, whoever leads.
        state.epoch = proposal.epoch;
        state.history.begin(proposal.epoch, start);
        if leader == state.leading.disk && state.fenced.is_none() {
            state.log.set_epoch(proposal.epoch);
            self.reign_began(state, start, proposal, now);
            return;
        }
        let replica = state.followers.iter().find(|replica| replica.disk == leader).cloned();
        let taken = replica.and_then(|replica| {
            let mut log = replica.brief()?.log.take()?;
            replica.is_elected.store(false, Ordering::Release);
            // One that cannot read its own log does not lead: it is opened anew.
            log.forget_what_it_lacks(now).ok()?;
            Some((replica, log))
        });
        let Some((replica, mut log)) = taken else {
            // It failed since it was elected: the next election finds another.
            self.ask_for_settling(state);
            return;
        };
        log.set_epoch(proposal.epoch);
        // It was busy when the start was raised. Files that this leaves are removed by the next opening.
        log.raise_log_start(state.progress.log_start());
        // Before another disk leads: what was asked for is counted by disk.
        state.forget_errand();
        state.making_page = false;
        state.left_pages.retain(|left| left.disk != leader);
        self.room_made.notify_all();
        let old = std::mem::replace(&mut state.log, log);
        let old_replica = std::mem::replace(&mut state.leading, replica);
        let (old_place, old_place_disk) = (old.place().clone(), old_replica.disk);
        let old_file = old.active_file().cloned();
        let failed = state.fenced.take();
        let page = state.page.take();
        let has_failed = failed.is_some();
        {
            let mut held = old_replica.state.lock();
            match failed {
                Some(fenced) => held.fenced = Some(fenced),
                None => held.log = Some(old),
            }
        }
        state.followers.retain(|replica| replica.disk != leader);
        // Where it failed, what came back from its disk may have taken its place already.
        let is_known = state.followers.iter().any(|replica| replica.disk == old_place_disk);
        if old_place_disk != leader && !is_known {
            state.followers.push(old_replica);
        }
        // A page that says how far a leader wrote must not be believed of a follower.
        match page {
            Some(page) => self.disown(state, old_place_disk, page, old_file),
            // One whose disk may hang is asked for nothing; its file goes when it returns.
            None if has_failed && !is_known => {}
            None => drop(Marks::forget(&old_place)),
        }
        if std::mem::take(&mut state.durable.led) {
            state.durable.round += 1;
            state.durable.handed = false;
            state.durable.awaits_flush = false;
        }
        state.leader = Some(leader);
        state.stuck = false;
        self.reign_began(state, start, proposal, now);
        for replica in &state.followers {
            replica.ask_for_attention(self);
        }
        // Whoever appended the tail that was taken over waits for it no more, and it is to be read all the same.
        if state.flush == Flush::OnAck && state.log.flushed_end() < state.log.end() {
            self.group.wanted.store(true, Ordering::Release);
            state.leading.ask_for_attention(self);
        }
    }

    /// The log in `state` is the leader's of the proposed epoch.
    fn reign_began(&self, state: &mut State, start: Offset, proposal: &Proposal, now: Timestamp) {
        state.began = proposal.epoch;
        state.stepping_down = false;
        state.hand_to = None;
        for replica in &state.followers {
            replica.is_elected.store(false, Ordering::Release);
        }
        self.reign_over(state, start, proposal.high_watermark, now);
    }

    /// Counts replicas anew, for the leader whose log is in `state`.
    pub(super) fn reign_over(
        &self,
        state: &mut State,
        start: Offset,
        high_watermark: Offset,
        now: Timestamp,
    ) {
        state.notice_acknowledged();
        let reader = Arc::clone(state.log.reader());
        state.log.set_apart(self.hands_over(state));
        let leader_end = state.log.end();
        let mut starts = Vec::new();
        for replica in state.followers.clone() {
            // A log is not cut while a flush of it is on its way, or has ended and could not be noted.
            let hangs = state.durable.is_flushing(replica.disk);
            let held = replica.brief().filter(|held| {
                held.log.as_ref().is_none_or(|log| {
                    log.end() <= leader_end || !(hangs || held.flushing || log.is_flushing())
                })
            });
            let Some(mut follower) = held else {
                self.orphan(state, &replica, "its disk hangs");
                starts.push(FollowerStart {
                    disk: replica.disk,
                    end: Offset::ZERO,
                    flushed: Offset::ZERO,
                    in_sync: state.isr.contains(&replica.disk),
                    online: false,
                });
                continue;
            };
            follower.epoch = state.epoch;
            // Candidates were copied to before: whoever is longer has what nobody counts any more.
            let agreed = match follower.log.as_mut() {
                Some(log) if log.end() > leader_end => {
                    log.agree(&state.history, leader_end, now).map(|_| ())
                }
                _ => Ok(()),
            };
            if agreed.is_err() {
                follower.log = None;
            }
            if let Some(log) = &mut follower.log {
                log.follow_another();
            }
            let log = follower.log.as_ref();
            starts.push(FollowerStart {
                disk: replica.disk,
                end: log.map_or(Offset::ZERO, Log::end),
                flushed: log.map_or(Offset::ZERO, Log::flushed_end),
                in_sync: state.isr.contains(&replica.disk),
                online: log.is_some(),
            });
        }
        let min_insync = state.min_insync;
        let mut progress =
            Progress::recovered(reader.log_start(), state.log.end(), state.log.flushed_end());
        progress.begin_reign(
            state.leader.is_some() && state.fenced.is_none(),
            start,
            high_watermark,
            min_insync,
            &starts,
            state.flush,
        );
        state.progress = progress;
        *self.reader.write() = reader;
        self.show_epoch(state.epoch);
    }

    /// The proposal could not be made durable; or it is not known whether it was, and the next opening may find it, unless
    /// that doubt, which is the `doubt`-th, ends before.
    pub(crate) fn refuse(&self, proposal: &Proposal, error: &Error, doubt: u64) {
        let mut state = self.state.lock();
        state.suspects.extend(proposal.suspects.iter().copied());
        if error.written() != Written::No {
            state.in_doubt = Some(doubt);
        } else if state.in_doubt.is_none() {
            state.give_up_proposed();
        }
        // Whoever waits for a flush of a log that nobody leads waits in vain.
        self.wake_sleepers(&mut state);
        drop(state);
        self.background_failed("writing down a change of replicas", error);
    }

    /// As many doubts have ended of what may have been made durable or not.
    pub(crate) fn leave_doubts(&self, ended: u64) {
        self.state.lock().leave_doubts(ended);
    }

    /// Lets laggards leave the in-sync set and those that caught up join it. `now` is the watch's.
    pub(crate) fn tick(&self, now: Duration, lag_max: Duration) {
        let Some(mut state) = self.brief() else { return };
        if state.ended.is_some() {
            return;
        }
        if state.left_behind().is_some() {
            drop(state);
            self.fence_left_behind();
            return;
        }
        if state.followers.is_empty() {
            if !state.suspects.is_empty() {
                // Of the only replica, and refused once.
                self.ask_for_settling(&mut state);
            }
            return;
        }
        // Also what was refused: a leader that steps down takes no appends until it is settled.
        let due = state.unsettled
            || state.stepping_down
            || state.in_doubt.is_some()
            || !state.suspects.is_empty();
        if due || state.fenced.is_some() {
            self.ask_for_settling(&mut state);
            return;
        }
        self.ask_for_repairs(&state);
        let flush = state.flush;
        if state.progress.tick(now, lag_max, flush) {
            self.ask_for_settling(&mut state);
        }
        let State { progress, followers, .. } = &*state;
        let those = |which: &dyn Fn(DiskId) -> bool| -> Vec<_> {
            followers.iter().filter(|replica| which(replica.disk)).cloned().collect()
        };
        let behind = those(&|disk| progress.is_behind(disk));
        let owing = those(&|disk| progress.owes_flush(disk, flush));
        self.publish(state);
        for replica in behind {
            replica.ask_for_attention(self);
        }
        owing.iter().for_each(|replica| self.want_follower_flush(replica));
    }

    /// Hands over to the preferred replica, if that has been in sync for a while. True: it was asked for.
    pub(crate) fn prefer_leader(&self, now: Timestamp) -> bool {
        let Some(mut state) = self.brief() else { return false };
        let Some(preferred) = state.preference.first().copied() else { return false };
        let able = state.leader.is_some_and(|leader| leader != preferred)
            && state.ended.is_none()
            && state.fenced.is_none()
            && !state.stepping_down
            && state.isr.contains(&preferred)
            && state.progress.is_online(preferred);
        if !able {
            state.preferred_since = None;
            return false;
        }
        if now.since(*state.preferred_since.get_or_insert(now)) < PREFER_AFTER {
            return false;
        }
        state.preferred_since = None;
        state.stepping_down = true;
        state.hand_to = Some(preferred);
        self.ask_for_settling(&mut state);
        true
    }

    /// The replica on `disk` is taken out of service: its disk stops. A leader hands over first.
    pub(crate) fn step_down(&self, disk: DiskId) {
        let mut state = self.state.lock();
        if state.leading.disk == disk && state.log.is_rolling() {
            self.room_made.wait_for(&mut state, BRIEF);
        }
        if state.leading.disk == disk && state.leader == Some(disk) && state.fenced.is_none() {
            state.stepping_down = true;
            state.hand_to = None;
            self.ask_for_settling(&mut state);
        }
    }

    /// Closes the follower's log on `disk`. False: it leads.
    pub(crate) fn stop_replica(&self, disk: DiskId, cause: &str) -> bool {
        let mut state = self.state.lock();
        if state.leading.disk == disk && state.leader == Some(disk) && state.fenced.is_none() {
            return false;
        }
        let Some(replica) = state.followers.iter().find(|replica| replica.disk == disk).cloned()
        else {
            return true;
        };
        if let Some(mut follower) = replica.brief() {
            follower.log = None;
            let at_risk = Offset::ZERO..Offset::ZERO;
            follower.fenced.get_or_insert(Fenced { cause: cause.into(), at_risk });
        } else {
            self.orphan(&mut state, &replica, cause);
        }
        state.follower_failed(disk);
        self.ask_for_settling(&mut state);
        self.publish(state);
        true
    }

    /// The replica on `disk` lacks what it held: it is no candidate until it was copied to. The disk is out of
    /// service, and the metadata say the same.
    pub(crate) fn distrust(&self, disk: DiskId) {
        let mut state = self.state.lock();
        state.isr.retain(|other| *other != disk);
        state.eligible.retain(|other| *other != disk);
        state.stale.push(disk);
    }

    /// A leader whose disk is stopped, and in whose place nobody can lead.
    pub(crate) fn stop_leader(&self, disk: DiskId, cause: &Error) {
        let mut state = self.state.lock();
        if state.leading.disk == disk && state.fenced.is_none() {
            self.take_out(&mut state, cause);
            self.publish(state);
        }
    }

    /// A replica is back, with the log that was found on its disk. `strayed`: epochs do not tell where that departs.
    ///
    /// # Errors
    /// What cutting it to what the leader has runs into; [`Error::NoLeader`] for one that strayed.
    pub(crate) fn return_replica(
        &self,
        replica: &Arc<Replica>,
        strayed: bool,
        now: Timestamp,
    ) -> Result<(), Error> {
        let mut state = self.state.lock();
        let (leaderless, end, flushed) = loop {
            let (leaderless, epoch) = (state.fenced.is_some(), state.epoch);
            if state.leading.disk == replica.disk && !leaderless {
                return Ok(());
            }
            if strayed && leaderless {
                return Err(self.no_leader());
            }
            let (history, leader) = (state.history.clone(), Arc::clone(state.log.reader()));
            let leader_end = if strayed { state.log.written_end() } else { state.log.end() };
            let is_named = state.leader == Some(replica.disk) || state.epoch > state.began;
            let may_differ =
                !state.isr.contains(&replica.disk) && !state.eligible.contains(&replica.disk);
            drop(state);
            let (end, flushed) = {
                let mut follower = replica.state.lock();
                follower.epoch = epoch;
                let Some(log) = follower.log.as_mut() else { return Ok(()) };
                let (own_end, place) = (log.end(), log.place());
                // Of one that the metadata may name, readers in other processes would believe the files.
                if !is_named {
                    Marks::forget(place)
                        .map_err(|error| place.io_error("marks", "remove", error))?;
                }
                // First against its own end: it may have led, and gone on after the next reign began.
                if leaderless {
                    log.agree_alone(&history, now)?;
                } else {
                    log.agree(&history, own_end, now)?;
                }
                if strayed {
                    log.agree_with(&leader, leader_end, now)?;
                }
                if !leaderless {
                    log.agree(&history, leader_end, now)?;
                    if may_differ {
                        log.forget_what_is_past()?;
                    }
                }
                log.learn_last_epoch()?;
                (log.end(), log.flushed_end())
            };
            state = self.state.lock();
            // A reign that began meanwhile may have less.
            if (state.fenced.is_some(), state.epoch) == (leaderless, epoch) {
                break (leaderless, end, flushed);
            }
        };
        if state.ended.is_some() || !state.preference.contains(&replica.disk) {
            return Ok(()); // its topic was deleted, or it was moved to another disk meanwhile
        }
        self.tell_settings(replica)?;
        state.followers.retain(|known| known.disk != replica.disk);
        state.followers.push(Arc::clone(replica));
        // It may have what the others lack.
        state.reported.clear();
        if leaderless {
            if state.replicas == 1 {
                // Its own log before is no source: what it says beyond the files is what they lack.
                state.leader = None;
            }
            let (start, high_watermark) =
                (state.progress.epoch_start(), state.progress.high_watermark());
            self.reign_over(&mut state, start, high_watermark, now);
            self.ask_for_settling(&mut state);
        } else {
            state.progress.on_returned(replica.disk, end, flushed);
        }
        replica.ask_for_attention(self);
        self.publish(state);
        Ok(())
    }

    /// The topic may have changed since the replica was opened. Nothing waits in its memory yet; the caller holds the
    /// partition's lock.
    fn tell_settings(&self, replica: &Replica) -> Result<(), Error> {
        let settings = self.settings().log;
        replica.state.lock().log.as_mut().map_or(Ok(()), |log| log.set_settings(settings))
    }

    /// Replicas that failed and may be tried again: they are rebuilt from what their disks still hold.
    pub(crate) fn failed_replicas(&self, now: Timestamp) -> Vec<DiskId> {
        let Some(state) = self.brief() else { return Vec::new() };
        if state.ended.is_some() || state.replicas == 1 || !state.suspects.is_empty() {
            return Vec::new();
        }
        let leading = state.fenced.is_some().then_some(&state.leading);
        let failed = |replica: &&Arc<Replica>| {
            let Some(mut held) = replica.brief() else { return false };
            let due = held.log.is_none() && held.retry_at <= now;
            if due {
                held.retry_at = now.plus(RETRY_AFTER);
            }
            due
        };
        let all = state.followers.iter().chain(leading);
        all.filter(failed).map(|replica| replica.disk).collect()
    }

    /// The replicas are on other disks from now on; new ones begin empty.
    pub(crate) fn set_replicas(
        &self,
        preference: &[DiskId],
        added: Vec<Arc<Replica>>,
        now: Timestamp,
    ) {
        let mut state = self.state.lock();
        // What was proposed meanwhile may hold as well, so nothing is counted without that.
        if state.ended.is_some() || state.in_doubt.is_some() {
            return;
        }
        state.preference = preference.to_vec();
        state.replicas = preference.len();
        state.followers.retain(|replica| preference.contains(&replica.disk));
        for replica in &added {
            if self.tell_settings(replica).is_err() {
                replica.state.lock().log = None;
            }
        }
        state.followers.extend(added);
        state.isr.retain(|disk| preference.contains(disk));
        state.eligible.retain(|disk| preference.contains(disk));
        // The metadata refuse what is said of others.
        state.suspects.retain(|(disk, _)| preference.contains(disk));
        let high_watermark = state.progress.high_watermark();
        let start = state.progress.epoch_start();
        self.reign_over(&mut state, start, high_watermark, now);
        state.forget_eligible();
        for replica in &state.followers {
            replica.ask_for_attention(self);
        }
        self.publish(state);
    }

    /// How far the partition could be read under the reign of `epoch`, if that is the last, and others may lead the next.
    pub(crate) fn last_watermark(&self, epoch: LeaderEpoch) -> Option<Offset> {
        let state = self.state.lock();
        let counts = state.replicas > 1 && state.fenced.is_none() && state.epoch == epoch;
        counts.then(|| state.progress.high_watermark())
    }

    /// Whether the replica on `disk` holds all that is acknowledged.
    pub(crate) fn is_in_sync(&self, disk: DiskId) -> bool {
        self.state.lock().is_in_sync(disk)
    }

    /// As [`Core::is_in_sync`], or it is being written down.
    pub(super) fn may_be_in_sync(&self, disk: DiskId) -> bool {
        let state = self.state.lock();
        state.is_in_sync(disk) || state.progress.counts(disk)
    }
}
