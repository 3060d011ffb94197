//! How far a partition's log reaches, on every replica, and how far it may be read.
//!
//! Takes what the logs and their flushers report; yields the high watermark: the smallest *acknowledged
//! end* of the in-sync replicas, which is a replica's flushed end when an acknowledgement waits for the
//! flush, else its written end (DESIGN.md section 11). It stands still while fewer replicas are in sync
//! than `min.insync.replicas` asks for (KIP-966).
//!
//! Who is in sync is decided in the metadata. Until a change is durable there, both sets count: one
//! that joins already holds the watermark back, one that leaves still does (KIP-497, REPL-09).
//!
//! ```text
//!          may join              the metadata say so
//!   Out ------------> Joining ------------------------> In
//!    ^                   | fails                         | fails, or lags
//!    |                   v      the metadata say so      v
//!    |<-------------- Doubtful -----------------------> Leaving
//!    |    the metadata do not say so                     |
//!    +---------------------------------------------------+
//!                   the metadata say so
//! ```
//!
//! Invariants (INV-01, INV-04):
//! 1. `log_start <= high_watermark <= log_end`, and `flushed <= log_end`.
//! 2. The high watermark only rises while one leader reigns.
//! 3. It is at most the acknowledged end of every replica that is in sync, or may be by what is being written down.
//! 4. One that joins has on stable storage what the leader has there, or may have: it may be all that a power loss leaves, and the topic may
//!    have promised more than it does now.

use std::time::Duration;

use crate::types::{DiskId, Flush, Offset};

/// What a follower is to the partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Membership {
    Out,
    /// Counted already, and not yet durably so.
    Joining,
    /// It failed while it joined, which may be durable by now: it holds the watermark back, and is not in sync.
    Doubtful,
    In,
    /// Still counted, until that is durable.
    Leaving,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Follower {
    disk: DiskId,
    end: Offset,
    flushed: Offset,
    membership: Membership,
    /// False: its replica is out of service, and cannot join.
    online: bool,
    /// When it last held all that the leader held; `None`: not since the reign began. Times are those of [`Progress::tick`].
    caught_up_at: Option<Duration>,
}

/// A follower at the beginning of a reign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FollowerStart {
    pub(crate) disk: DiskId,
    pub(crate) end: Offset,
    pub(crate) flushed: Offset,
    pub(crate) in_sync: bool,
    pub(crate) online: bool,
}

/// The offsets of a partition, seen from its leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    log_start: Offset,
    high_watermark: Offset,
    log_end: Offset,
    flushed: Offset,
    /// Where the leader's reign begins.
    epoch_start: Offset,
    /// Somebody leads. Until then the watermark stands still: what the last leader had alone, the next may lack.
    led: bool,
    min_insync: u16,
    followers: Vec<Follower>,
    /// Where the leader stood at the last tick, and when that was.
    seen: (Offset, Offset, Option<Duration>),
}

impl Progress {
    /// A log as recovery left it, with nobody who follows: all of it may be read.
    pub(crate) fn recovered(log_start: Offset, log_end: Offset, flushed: Offset) -> Self {
        let log_start = log_start.min(log_end);
        let progress = Self {
            log_start,
            high_watermark: log_end,
            log_end,
            flushed: flushed.min(log_end),
            epoch_start: log_start,
            led: true,
            min_insync: 1,
            followers: Vec::new(),
            seen: (log_end, flushed.min(log_end), None),
        };
        progress.check();
        progress
    }

    /// A reign begins: what is known to have been readable stays so, the rest is for the replicas to say.
    /// Without a leader, replicas are counted all the same, for the election.
    pub(crate) fn begin_reign(
        &mut self,
        led: bool,
        epoch_start: Offset,
        high_watermark: Offset,
        min_insync: u16,
        followers: &[FollowerStart],
        flush: Flush,
    ) {
        self.led = led;
        self.epoch_start = epoch_start;
        self.min_insync = min_insync;
        self.high_watermark = high_watermark.min(self.log_end).max(self.log_start);
        self.seen = (self.log_end, self.flushed, None);
        self.followers.clear();
        self.followers.extend(followers.iter().map(|start| Follower {
            disk: start.disk,
            end: start.end,
            flushed: start.flushed,
            membership: match (start.in_sync, start.online) {
                (true, true) => Membership::In,
                // It failed while the election was written down.
                (true, false) => Membership::Leaving,
                (false, _) => Membership::Out,
            },
            online: start.online,
            caught_up_at: None,
        }));
        self.advance(flush);
    }

    pub(crate) fn log_start(&self) -> Offset {
        self.log_start
    }

    pub(crate) fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    pub(crate) fn log_end(&self) -> Offset {
        self.log_end
    }

    /// How far the leader's own log is on stable storage.
    pub(crate) fn flushed(&self) -> Offset {
        self.flushed
    }

    /// How far the leader's own log is acknowledged.
    pub(crate) fn leader_acknowledged(&self, flush: Flush) -> Offset {
        if flush == Flush::OnAck { self.flushed } else { self.log_end }
    }

    /// The smallest in-sync set that acknowledges: never more than there are replicas (REPL-01).
    pub(crate) fn required(&self) -> u16 {
        let replicas = u16::try_from(self.followers.len()).unwrap_or(u16::MAX).saturating_add(1);
        self.min_insync.clamp(1, replicas)
    }

    /// Replicas that are in sync by what is durable, the leader among them.
    pub(crate) fn in_sync(&self) -> u16 {
        let followers = self.followers.iter().filter(|follower| follower.is_committed()).count();
        u16::try_from(followers).unwrap_or(u16::MAX).saturating_add(1)
    }

    /// Of those in sync, the replicas that are in service: what can acknowledge from now on.
    pub(crate) fn live_in_sync(&self) -> u16 {
        let live = |follower: &&Follower| follower.membership == Membership::In && follower.online;
        let followers = self.followers.iter().filter(live).count();
        u16::try_from(followers).unwrap_or(u16::MAX).saturating_add(1)
    }

    /// Whether a follower is in sync by what is durable.
    #[cfg(test)]
    pub(crate) fn is_in_sync(&self, disk: DiskId) -> bool {
        self.follower(disk).is_some_and(Follower::is_committed)
    }

    /// The log grew to `end`. [`Progress::advance`] is for whoever has told all that one append did.
    #[inline]
    pub(crate) fn on_appended(&mut self, end: Offset) {
        assert!(end >= self.log_end, "a log does not shrink by an append");
        self.log_end = end;
    }

    /// So did a follower's, with the same append.
    #[inline]
    pub(crate) fn on_appended_inline(&mut self, disk: DiskId, end: Offset) {
        if let Some(follower) = self.follower_mut(disk) {
            follower.end = follower.end.max(end);
        }
    }

    /// Everything below `end` is on the leader's stable storage.
    pub(crate) fn on_flushed(&mut self, end: Offset, flush: Flush) {
        assert!(end <= self.log_end, "nothing is flushed that was not written");
        self.flushed = self.flushed.max(end);
        self.advance(flush);
    }

    /// A follower's log grew to `end`. An unknown one is nobody's follower any more.
    #[inline]
    pub(crate) fn on_followed(&mut self, disk: DiskId, end: Offset, flush: Flush) {
        if let Some(follower) = self.follower_mut(disk) {
            follower.end = follower.end.max(end);
            self.advance(flush);
        }
    }

    /// Everything below `end` is on a follower's stable storage.
    pub(crate) fn on_follower_flushed(&mut self, disk: DiskId, end: Offset, flush: Flush) {
        if let Some(follower) = self.follower_mut(disk) {
            follower.flushed = follower.flushed.max(end.min(follower.end));
            self.advance(flush);
        }
    }

    /// Records below `start` are gone.
    pub(crate) fn on_log_start(&mut self, start: Offset) {
        self.log_start = self.log_start.max(start.min(self.high_watermark));
        self.check();
    }

    /// A follower's replica is out of service. Returns whether that is to be made durable.
    pub(crate) fn on_failed(&mut self, disk: DiskId, flush: Flush) -> bool {
        let Some(follower) = self.follower_mut(disk) else { return false };
        follower.online = false;
        // What waited in memory for its flush went with it: it counts no more, whatever the topic asks for from here on.
        follower.end = follower.acknowledged(flush);
        follower.leave()
    }

    /// A follower cannot take what the leader has, for now: its disk is full. Returns whether its leaving
    /// is to be made durable.
    pub(crate) fn on_stuck(&mut self, disk: DiskId) -> bool {
        self.follower_mut(disk).is_some_and(Follower::leave)
    }

    /// Whether a follower's replica is in service.
    pub(crate) fn is_online(&self, disk: DiskId) -> bool {
        self.follower(disk).is_some_and(|follower| follower.online)
    }

    /// Whether a follower in service lacks what the leader has.
    pub(crate) fn is_behind(&self, disk: DiskId) -> bool {
        self.follower(disk).is_some_and(|follower| follower.online && follower.end < self.log_end)
    }

    /// Whether a follower is in sync by what is durable, or may be by what is being written down.
    pub(crate) fn counts(&self, disk: DiskId) -> bool {
        self.follower(disk).is_some_and(|follower| follower.membership != Membership::Out)
    }

    /// Whether a follower in service is to flush what its leader has flushed: one that may join, and with an interval any that
    /// was behind when the leader flushed.
    pub(crate) fn owes_flush(&self, disk: DiskId, flush: Flush) -> bool {
        self.follower(disk).is_some_and(|follower| {
            let asked = match (flush, follower.membership) {
                (Flush::Interval(_), _) => true,
                (_, Membership::Out) => follower.end >= self.high_watermark,
                _ => false,
            };
            asked && follower.online && follower.flushed < self.held_durably().min(follower.end)
        })
    }

    /// What the leader may have on stable storage: of what it held as its reign began, an opening need not know.
    fn held_durably(&self) -> Offset {
        self.flushed.max(self.epoch_start).min(self.log_end)
    }

    /// Whether all that may be in sync have it on stable storage up to `end`.
    pub(crate) fn all_have_flushed(&self, end: Offset) -> bool {
        let lacks =
            |follower: &Follower| follower.membership != Membership::Out && follower.flushed < end;
        self.flushed >= end && !self.followers.iter().any(lacks)
    }

    /// Whether the watermark has come to where the reign begins: what earlier ones have acknowledged lies below it. Until then it
    /// need not be known how far that was (KIP-207).
    pub(crate) fn knows_acknowledged(&self) -> bool {
        self.high_watermark >= self.epoch_start
    }

    /// Where the leader's reign begins.
    pub(crate) fn epoch_start(&self) -> Offset {
        self.epoch_start
    }

    /// A follower's replica is back, with a log that ends at `end` and agrees with the leader's.
    pub(crate) fn on_returned(&mut self, disk: DiskId, end: Offset, flushed: Offset) {
        let log_end = self.log_end;
        if let Some(follower) = self.follower_mut(disk) {
            assert!(end <= log_end, "a follower that agrees is no longer than its leader");
            follower.online = true;
            follower.end = end;
            follower.flushed = flushed.min(end);
        }
    }

    /// Lets followers that lag for longer than `lag_max` leave, and those that caught up join. Returns whether there is a
    /// change to be made durable (REPL-12, REPL-13, REPL-14). `now` is a time that never jumps; those in sync when the reign
    /// began have from the first tick on (REPL-16).
    pub(crate) fn tick(&mut self, now: Duration, lag_max: Duration, flush: Flush) -> bool {
        let (seen, seen_flushed, seen_at) = self.seen;
        let (log_end, flushed) = (self.log_end, self.flushed);
        let (high_watermark, epoch_start) = (self.high_watermark, self.epoch_start);
        let durable = self.held_durably();
        let mut changed = false;
        for follower in &mut self.followers {
            // A disk that takes everything and flushes nothing lags as well, where flushes count.
            let level = |end: Offset, flushed: Offset| {
                follower.end >= end && (flush != Flush::OnAck || follower.flushed >= flushed)
            };
            if level(log_end, flushed) {
                follower.caught_up_at = Some(now);
            } else if level(seen, seen_flushed) {
                follower.caught_up_at = follower.caught_up_at.max(seen_at);
            }
            if follower.membership == Membership::In {
                follower.caught_up_at.get_or_insert(now);
            }
            let lags = follower.caught_up_at.is_none_or(|at| now.saturating_sub(at) > lag_max);
            let acknowledged = follower.acknowledged(flush);
            match follower.membership {
                Membership::In if lags => {
                    changed |= follower.leave();
                }
                Membership::Out
                    if follower.online
                        && acknowledged >= high_watermark
                        && follower.end >= epoch_start
                        && follower.flushed >= durable.min(high_watermark)
                        && !lags =>
                {
                    follower.membership = Membership::Joining;
                    changed = true;
                }
                Membership::Joining | Membership::Doubtful | Membership::Leaving => changed = true,
                Membership::In | Membership::Out => {}
            }
        }
        self.seen = (log_end, flushed, Some(now));
        changed
    }

    /// The in-sync followers as they should be; `None` if that is what is durable already.
    pub(crate) fn proposal(&self) -> Option<Vec<DiskId>> {
        let pending =
            |follower: &Follower| !matches!(follower.membership, Membership::In | Membership::Out);
        self.followers.iter().any(pending).then(|| {
            let counted = |follower: &&Follower| {
                matches!(follower.membership, Membership::Joining | Membership::In)
            };
            self.followers.iter().filter(counted).map(|follower| follower.disk).collect()
        })
    }

    /// The followers in `isr`, as [`Progress::proposal`] gave them, are durably those in sync. What has
    /// changed since waits for the next proposal (REPL-15).
    pub(crate) fn on_isr(&mut self, isr: &[DiskId], flush: Flush) {
        for follower in &mut self.followers {
            let named = isr.contains(&follower.disk);
            follower.membership = match (follower.membership, named) {
                (Membership::Joining, true) => Membership::In,
                (Membership::Doubtful | Membership::Out, true) => Membership::Leaving,
                (Membership::Doubtful | Membership::Leaving, false) => Membership::Out,
                (kept, _) => kept,
            };
        }
        self.advance(flush);
    }

    /// The change is not durable, and will not be: nobody joins; who leaves still counts.
    pub(crate) fn on_isr_refused(&mut self) {
        for follower in &mut self.followers {
            if matches!(follower.membership, Membership::Joining | Membership::Doubtful) {
                follower.membership = Membership::Out;
            }
        }
    }

    /// The leader failed, or hands over, and nobody has taken over yet.
    pub(crate) fn on_leaderless(&mut self) {
        self.led = false;
    }

    /// Nobody takes over: the leader stays.
    pub(crate) fn on_leading_on(&mut self, flush: Flush) {
        self.led = true;
        self.advance(flush);
    }

    /// The topic's `min.insync.replicas` was changed.
    pub(crate) fn set_min_insync(&mut self, min_insync: u16, flush: Flush) {
        self.min_insync = min_insync;
        self.advance(flush);
    }

    /// Raises the high watermark as far as the in-sync replicas acknowledge.
    #[inline]
    pub(crate) fn advance(&mut self, flush: Flush) {
        if !self.led {
            return;
        }
        let mut acknowledged = self.leader_acknowledged(flush);
        if !self.followers.is_empty() {
            let mut in_sync = 1;
            for follower in &self.followers {
                in_sync += u16::from(follower.is_committed());
                if follower.membership != Membership::Out {
                    acknowledged = acknowledged.min(follower.acknowledged(flush));
                }
            }
            if in_sync < self.required() {
                return;
            }
        }
        self.high_watermark = self.high_watermark.max(acknowledged);
        self.check();
    }

    fn follower(&self, disk: DiskId) -> Option<&Follower> {
        self.followers.iter().find(|follower| follower.disk == disk)
    }

    fn follower_mut(&mut self, disk: DiskId) -> Option<&mut Follower> {
        self.followers.iter_mut().find(|follower| follower.disk == disk)
    }

    #[inline]
    fn check(&self) {
        assert!(self.log_start <= self.high_watermark, "the log starts behind its watermark");
        assert!(self.high_watermark <= self.log_end, "the watermark is behind the end of the log");
        assert!(self.flushed <= self.log_end, "more is flushed than was written");
    }
}

impl Follower {
    fn acknowledged(&self, flush: Flush) -> Offset {
        if flush == Flush::OnAck { self.flushed } else { self.end }
    }

    fn is_committed(&self) -> bool {
        matches!(self.membership, Membership::In | Membership::Leaving)
    }

    fn leave(&mut self) -> bool {
        let (next, changed) = match self.membership {
            Membership::In | Membership::Leaving => (Membership::Leaving, true),
            Membership::Joining | Membership::Doubtful => (Membership::Doubtful, true),
            Membership::Out => (Membership::Out, false),
        };
        self.membership = next;
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1);
    const LAG: Duration = Duration::from_secs(30);

    fn in_sync(disk: u16) -> FollowerStart {
        FollowerStart {
            disk: DiskId(disk),
            end: Offset(0),
            flushed: Offset(0),
            in_sync: true,
            online: true,
        }
    }

    fn three(min_insync: u16, flush: Flush) -> Progress {
        let mut progress = Progress::recovered(Offset(0), Offset(0), Offset(0));
        let followers = [in_sync(1), in_sync(2)];
        progress.begin_reign(true, Offset(0), Offset(0), min_insync, &followers, flush);
        progress
    }

    #[test]
    fn with_on_ack_the_watermark_moves_over_flushed_records_only() {
        let mut progress = Progress::recovered(Offset(0), Offset(3), Offset(3));
        progress.on_appended(Offset(9));
        progress.advance(Flush::OnAck);
        assert_eq!(progress.high_watermark(), Offset(3));
        progress.on_flushed(Offset(7), Flush::OnAck);
        assert_eq!(progress.high_watermark(), Offset(7));
    }

    #[test]
    fn without_it_the_watermark_is_the_end_of_the_log() {
        for flush in [Flush::Os, Flush::Interval(Duration::from_secs(1))] {
            let mut progress = Progress::recovered(Offset(0), Offset(0), Offset(0));
            progress.on_appended(Offset(9));
            progress.advance(flush);
            assert_eq!(progress.high_watermark(), Offset(9));
        }
    }

    #[test]
    fn the_watermark_never_falls_when_the_flush_level_gets_stricter() {
        let mut progress = Progress::recovered(Offset(0), Offset(0), Offset(0));
        progress.on_appended(Offset(5));
        progress.advance(Flush::Os);
        progress.on_appended(Offset(6));
        progress.advance(Flush::OnAck);
        assert_eq!(progress.high_watermark(), Offset(5), "INV-04");
    }

    #[test]
    fn repl_07_the_watermark_is_the_smallest_acknowledged_end_of_the_in_sync() {
        let mut progress = three(2, Flush::OnAck);
        progress.on_appended(Offset(9));
        progress.advance(Flush::OnAck);
        progress.on_flushed(Offset(9), Flush::OnAck);
        progress.on_followed(DiskId(1), Offset(9), Flush::OnAck);
        progress.on_followed(DiskId(2), Offset(7), Flush::OnAck);
        assert_eq!(progress.high_watermark(), Offset(0), "written is not flushed");
        progress.on_follower_flushed(DiskId(1), Offset(9), Flush::OnAck);
        progress.on_follower_flushed(DiskId(2), Offset(5), Flush::OnAck);
        assert_eq!(progress.high_watermark(), Offset(5));
    }

    #[test]
    fn repl_09_one_that_leaves_counts_until_that_is_durable() {
        let mut progress = three(1, Flush::Os);
        progress.on_appended(Offset(9));
        progress.advance(Flush::Os);
        progress.on_followed(DiskId(1), Offset(9), Flush::Os);
        assert!(progress.on_failed(DiskId(2), Flush::Os));
        assert_eq!(progress.high_watermark(), Offset(0));
        let proposal = progress.proposal().unwrap();
        assert_eq!(proposal, [DiskId(1)]);
        progress.on_isr(&proposal, Flush::Os);
        assert_eq!(progress.high_watermark(), Offset(9));
        assert_eq!(progress.proposal(), None);
    }

    /// It held up every append for as long as a replica may lag.
    #[test]
    fn repl_09_one_that_fails_between_election_and_reign_leaves_at_once() {
        let mut progress = Progress::recovered(Offset(0), Offset(9), Offset(9));
        let gone = FollowerStart { online: false, ..in_sync(2) };
        let followers = [in_sync(1), gone];
        progress.begin_reign(true, Offset(0), Offset(0), 2, &followers, Flush::Os);
        progress.on_followed(DiskId(1), Offset(9), Flush::Os);
        assert_eq!(progress.high_watermark(), Offset(0), "it counts until that is durable");
        let proposal = progress.proposal().unwrap();
        assert_eq!(proposal, [DiskId(1)]);
        progress.on_isr(&proposal, Flush::Os);
        assert_eq!(progress.high_watermark(), Offset(9));
    }

    #[test]
    fn repl_33_under_min_insync_the_watermark_stands_and_jumps_when_one_is_back() {
        let mut progress = three(2, Flush::Os);
        for disk in [1, 2] {
            progress.on_failed(DiskId(disk), Flush::Os);
        }
        progress.on_isr(&[], Flush::Os);
        progress.on_appended(Offset(9));
        progress.advance(Flush::Os);
        assert_eq!((progress.high_watermark(), progress.in_sync()), (Offset(0), 1), "REPL-08");
        progress.on_returned(DiskId(2), Offset(0), Offset(0));
        progress.on_followed(DiskId(2), Offset(9), Flush::Os);
        assert!(progress.tick(NOW, LAG, Flush::Os));
        assert_eq!(progress.high_watermark(), Offset(0), "REPL-08: not before it is durable");
        progress.on_isr(&progress.proposal().unwrap(), Flush::Os);
        assert_eq!(progress.high_watermark(), Offset(9));
    }

    #[test]
    fn repl_13_an_idle_follower_never_lags_and_a_stuck_one_leaves() {
        let mut progress = three(1, Flush::Os);
        let later = NOW + LAG * 10;
        assert!(!progress.tick(later, LAG, Flush::Os));
        progress.on_appended(Offset(5));
        progress.advance(Flush::Os);
        progress.on_followed(DiskId(1), Offset(5), Flush::Os);
        assert!(!progress.tick(later + LAG, LAG, Flush::Os));
        assert!(progress.tick(later + LAG * 2, LAG, Flush::Os));
        assert_eq!(progress.proposal(), Some(vec![DiskId(1)]));
    }

    #[test]
    fn repl_16_one_in_sync_as_the_reign_begins_has_from_the_first_tick_on() {
        let mut progress = three(1, Flush::Os);
        progress.on_appended(Offset(5));
        progress.on_followed(DiskId(1), Offset(5), Flush::Os);
        let first = LAG * 100;
        assert!(!progress.tick(first, LAG, Flush::Os));
        assert!(!progress.tick(first + LAG, LAG, Flush::Os));
        assert!(progress.tick(first + LAG * 2, LAG, Flush::Os));
        assert_eq!(progress.proposal(), Some(vec![DiskId(1)]));
    }

    #[test]
    fn repl_12_a_follower_that_is_always_a_little_behind_is_in_sync() {
        let mut progress = three(1, Flush::Os);
        let mut now = NOW;
        for end in 1..100 {
            progress.on_appended(Offset(end * 10));
            progress.advance(Flush::Os);
            for disk in [1, 2] {
                progress.on_followed(DiskId(disk), Offset(end * 10 - 5), Flush::Os);
            }
            now += LAG / 2;
            assert!(!progress.tick(now, LAG, Flush::Os), "at {end}");
        }
    }

    #[test]
    fn repl_14_one_that_lacks_the_start_of_the_reign_does_not_join() {
        let mut progress = Progress::recovered(Offset(0), Offset(8), Offset(8));
        let out = FollowerStart { in_sync: false, end: Offset(5), ..in_sync(1) };
        progress.begin_reign(true, Offset(8), Offset(5), 1, &[out], Flush::Os);
        assert!(!progress.tick(NOW, LAG, Flush::Os));
        progress.on_followed(DiskId(1), Offset(8), Flush::Os);
        progress.on_follower_flushed(DiskId(1), Offset(8), Flush::Os);
        assert!(progress.tick(NOW, LAG, Flush::Os));
    }

    /// The watermark was below the start, and may have been higher than anybody knows.
    #[test]
    fn repl_14_one_that_had_the_start_of_the_reign_and_lost_it_does_not_join() {
        let mut progress = Progress::recovered(Offset(0), Offset(8), Offset(8));
        let out = FollowerStart { in_sync: false, end: Offset(5), ..in_sync(1) };
        progress.begin_reign(true, Offset(8), Offset(5), 2, &[out], Flush::Os);
        progress.on_followed(DiskId(1), Offset(8), Flush::Os);
        progress.on_follower_flushed(DiskId(1), Offset(8), Flush::Os);
        assert!(progress.tick(NOW, LAG, Flush::Os));
        progress.on_failed(DiskId(1), Flush::Os);
        progress.on_isr_refused();
        progress.on_returned(DiskId(1), Offset(6), Offset(6));
        assert!(!progress.tick(NOW, LAG, Flush::Os));
        assert_eq!((progress.high_watermark(), progress.proposal()), (Offset(5), None));
        progress.on_followed(DiskId(1), Offset(8), Flush::Os);
        progress.on_follower_flushed(DiskId(1), Offset(8), Flush::Os);
        assert!(progress.tick(NOW, LAG, Flush::Os));
    }

    /// The topic asked for more before: what was acknowledged as flushed is to outlive a power loss on whichever replica is left.
    #[test]
    fn inv_02_one_joins_once_it_has_flushed_what_its_leader_has() {
        for flush in [Flush::Os, Flush::Interval(LAG)] {
            let mut progress = Progress::recovered(Offset(0), Offset(9), Offset(6));
            let out = FollowerStart { in_sync: false, ..in_sync(1) };
            progress.begin_reign(true, Offset(0), Offset(9), 1, &[out], flush);
            assert!(!progress.owes_flush(DiskId(1), Flush::Os), "it has nothing yet");
            progress.on_followed(DiskId(1), Offset(9), flush);
            progress.on_follower_flushed(DiskId(1), Offset(5), flush);
            assert!(!progress.tick(NOW, LAG, flush), "{flush:?}");
            assert!(progress.owes_flush(DiskId(1), flush), "{flush:?}");
            progress.on_follower_flushed(DiskId(1), Offset(6), flush);
            assert!(!progress.counts(DiskId(1)));
            assert!(progress.tick(NOW, LAG, flush), "{flush:?}");
            assert!(progress.counts(DiskId(1)) && !progress.owes_flush(DiskId(1), flush));
        }
    }

    /// A restart, and nobody knew how much of it had been flushed.
    #[test]
    fn inv_02_one_joins_once_it_has_flushed_what_the_reign_began_with() {
        let mut progress = Progress::recovered(Offset(0), Offset(9), Offset(0));
        let out = FollowerStart { in_sync: false, ..in_sync(1) };
        progress.begin_reign(true, Offset(9), Offset(9), 1, &[out], Flush::Os);
        progress.on_followed(DiskId(1), Offset(9), Flush::Os);
        progress.on_follower_flushed(DiskId(1), Offset(8), Flush::Os);
        assert!(!progress.tick(NOW, LAG, Flush::Os) && progress.owes_flush(DiskId(1), Flush::Os));
        progress.on_follower_flushed(DiskId(1), Offset(9), Flush::Os);
        assert!(progress.tick(NOW, LAG, Flush::Os));
    }

    #[test]
    fn with_an_interval_followers_flush_as_their_leader_does() {
        let mut progress = three(1, Flush::Os);
        progress.on_appended(Offset(9));
        progress.on_flushed(Offset(7), Flush::Os);
        progress.on_followed(DiskId(1), Offset(9), Flush::Os);
        let owes = |progress: &Progress, disk| {
            let levels = [Flush::Interval(LAG), Flush::Os, Flush::OnAck];
            levels.map(|flush| progress.owes_flush(DiskId(disk), flush))
        };
        assert_eq!(owes(&progress, 1), [true, false, false]);
        assert_eq!(owes(&progress, 2), [false; 3], "it has nothing to flush");
        progress.on_failed(DiskId(1), Flush::Os);
        assert_eq!(owes(&progress, 1), [false; 3]);
    }

    /// A leader with a record of its own failed, and its follower came back without it: the record was acknowledged, and lost with
    /// the election.
    #[test]
    fn inv_02_without_a_leader_the_watermark_stands_still() {
        let mut progress = three(1, Flush::OnAck);
        progress.on_appended(Offset(2));
        progress.on_flushed(Offset(2), Flush::OnAck);
        assert_eq!(progress.high_watermark(), Offset(0));
        progress.on_leaderless();
        let back = FollowerStart { in_sync: false, ..in_sync(1) };
        progress.begin_reign(false, Offset(0), Offset(0), 1, &[back], Flush::OnAck);
        assert_eq!(progress.high_watermark(), Offset(0));
        progress.begin_reign(true, Offset(2), Offset(0), 1, &[back], Flush::OnAck);
        assert_eq!(progress.high_watermark(), Offset(2), "one that leads counts");
    }

    /// Others go by the metadata: it could be elected, and lacks what was acknowledged without it.
    #[test]
    fn repl_09_one_that_failed_while_it_joined_counts_until_it_has_left() {
        let mut progress = Progress::recovered(Offset(0), Offset(0), Offset(0));
        let out = FollowerStart { in_sync: false, ..in_sync(1) };
        progress.begin_reign(true, Offset(0), Offset(0), 1, &[out], Flush::Os);
        assert!(progress.tick(NOW, LAG, Flush::Os));
        let joins = progress.proposal().unwrap();
        progress.on_failed(DiskId(1), Flush::Os);
        progress.on_isr(&joins, Flush::Os);
        progress.on_appended(Offset(4));
        progress.advance(Flush::Os);
        assert_eq!(progress.high_watermark(), Offset(0));
        assert_eq!(progress.proposal(), Some(vec![]));
        progress.on_isr(&[], Flush::Os);
        assert_eq!(progress.high_watermark(), Offset(4));
    }

    /// What was acknowledged without it was lost where its joining turned out to be durable.
    #[test]
    fn repl_09_one_that_fails_while_it_joins_holds_the_watermark_until_that_is_settled() {
        let mut progress = Progress::recovered(Offset(0), Offset(0), Offset(0));
        let out = FollowerStart { in_sync: false, ..in_sync(1) };
        progress.begin_reign(true, Offset(0), Offset(0), 2, &[out, in_sync(2)], Flush::Os);
        assert!(progress.tick(NOW, LAG, Flush::Os));
        assert!(progress.on_failed(DiskId(1), Flush::Os));
        progress.on_appended(Offset(4));
        progress.on_followed(DiskId(2), Offset(4), Flush::Os);
        assert_eq!((progress.high_watermark(), progress.in_sync()), (Offset(0), 2));
        assert_eq!(progress.proposal(), Some(vec![DiskId(2)]));
        progress.on_isr(&[DiskId(2)], Flush::Os);
        assert_eq!((progress.high_watermark(), progress.proposal()), (Offset(4), None));
    }

    /// Batches that wait for their flush wait in memory, which goes with the replica: a topic that asks for less from here
    /// on had them counted as copied.
    #[test]
    fn inv_04_what_a_follower_that_failed_had_in_memory_only_counts_for_nothing() {
        let mut progress = three(1, Flush::OnAck);
        progress.on_appended(Offset(9));
        progress.on_flushed(Offset(9), Flush::OnAck);
        for (disk, flushed) in [(1, 2), (2, 9)] {
            progress.on_followed(DiskId(disk), Offset(9), Flush::OnAck);
            progress.on_follower_flushed(DiskId(disk), Offset(flushed), Flush::OnAck);
        }
        progress.on_failed(DiskId(1), Flush::OnAck);
        progress.on_isr_refused();
        progress.set_min_insync(1, Flush::Os);
        assert_eq!(progress.high_watermark(), Offset(2), "1 is in sync still, and has no more");
        progress.on_isr(&[DiskId(2)], Flush::Os);
        assert_eq!(progress.high_watermark(), Offset(9));
    }

    #[test]
    fn repl_15_a_change_that_was_refused_is_asked_for_again() {
        let mut progress = three(1, Flush::Os);
        assert!(progress.on_failed(DiskId(1), Flush::Os));
        progress.on_isr_refused();
        assert!(progress.tick(NOW, LAG, Flush::Os));
        assert_eq!(progress.proposal(), Some(vec![DiskId(2)]));
    }

    #[test]
    fn repl_15_what_changes_while_a_change_is_written_waits_for_the_next() {
        let mut progress = three(1, Flush::Os);
        progress.on_failed(DiskId(1), Flush::Os);
        let first = progress.proposal().unwrap();
        progress.on_failed(DiskId(2), Flush::Os);
        progress.on_isr(&first, Flush::Os);
        assert_eq!(progress.proposal(), Some(vec![]), "2 is still to leave");
        assert!(progress.is_in_sync(DiskId(2)) && !progress.is_in_sync(DiskId(1)));
    }

    #[test]
    fn repl_09_one_that_joins_holds_the_watermark_already() {
        let mut progress = Progress::recovered(Offset(0), Offset(0), Offset(0));
        let out = FollowerStart { in_sync: false, ..in_sync(1) };
        progress.begin_reign(true, Offset(0), Offset(0), 1, &[out], Flush::Os);
        assert!(progress.tick(NOW, LAG, Flush::Os));
        progress.on_appended(Offset(4));
        progress.advance(Flush::Os);
        assert_eq!(progress.high_watermark(), Offset(0));
        progress.on_isr_refused();
        progress.on_appended(Offset(5));
        progress.advance(Flush::Os);
        assert_eq!(progress.high_watermark(), Offset(5));
    }

    #[test]
    fn a_lower_min_insync_lets_the_watermark_go_on() {
        let mut progress = three(3, Flush::Os);
        progress.on_failed(DiskId(2), Flush::Os);
        progress.on_isr(&[DiskId(1)], Flush::Os);
        progress.on_appended(Offset(4));
        progress.advance(Flush::Os);
        progress.on_followed(DiskId(1), Offset(4), Flush::Os);
        assert_eq!(progress.high_watermark(), Offset(0));
        progress.set_min_insync(2, Flush::Os);
        assert_eq!(progress.high_watermark(), Offset(4));
    }

    #[test]
    fn repl_01_no_more_are_required_than_there_are() {
        assert_eq!(three(9, Flush::Os).required(), 3);
        assert_eq!(three(0, Flush::Os).required(), 1);
    }
}
