//! Disks that hang: what is waited for, and how a replica on one is done without (S22).
//!
//! A call that hangs holds what its caller has locked: a follower's own lock, or, where the leader begins a segment,
//! the partition's. So whoever holds the partition's lock waits for a follower's only [`BRIEF`], and whoever works for
//! many partitions waits for one of them no longer either. A follower that cannot be had is *orphaned*: another object
//! takes its place, out of service, and what the hung call still does counts for nothing. Its disk is not opened anew
//! for the partition until that call has returned, so that two never write to one file.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::MutexGuard;

use crate::error::{Error, Written};
use crate::types::{DiskId, Offset};

use super::core::{Core, Fenced, State};
use super::replica::{Replica, ReplicaState};

/// Longer than any work under a lock takes on a disk that answers.
pub(super) const BRIEF: Duration = Duration::from_millis(100);

impl Replica {
    /// Its state, unless a call to its disk hangs.
    pub(super) fn brief(&self) -> Option<MutexGuard<'_, ReplicaState>> {
        let held = if self.hangs.load(Ordering::Relaxed) {
            self.state.try_lock()
        } else {
            self.state.try_lock_for(BRIEF)
        };
        self.hangs.store(held.is_none(), Ordering::Relaxed);
        held
    }
}

impl State {
    /// A follower's replica is out of service.
    pub(super) fn follower_failed(&mut self, disk: DiskId) {
        self.progress.on_failed(disk, self.flush);
    }

    /// Whether the replica on `disk` is in service.
    pub(super) fn has_log_on(&self, disk: DiskId) -> bool {
        let leads = self.leading.disk == disk && self.fenced.is_none();
        leads || self.progress.is_online(disk)
    }

    /// Whether the leader's log is that of the replica on `disk`: of a leader that failed, the replica may be back.
    pub(super) fn leads_on(&self, disk: DiskId) -> bool {
        self.leading.disk == disk && !self.followers.iter().any(|replica| replica.disk == disk)
    }

    /// A replica whose disk was taken out of service while the partition could not be told. That disk may be back: then
    /// the replica is to be opened anew, for those that looked after it have ended.
    pub(super) fn left_behind(&self) -> Option<DiskId> {
        let leads = self.fenced.is_none().then_some(&self.leading);
        let follow = self.followers.iter().filter(|replica| self.progress.is_online(replica.disk));
        let mut all = leads.into_iter().chain(follow);
        all.find(|replica| replica.is_left_behind()).map(|replica| replica.disk)
    }
}

impl Core {
    /// Does without a replica whose disk was taken out of service while the partition could not be told.
    pub(crate) fn fence_left_behind(&self) {
        let Some(disk) = self.brief().and_then(|state| state.left_behind()) else { return };
        let cause = Error::Io {
            path: PathBuf::new(),
            action: "go on with a disk that was taken out of service",
            written: Written::Unknown,
            source: Arc::new(ErrorKind::NotConnected.into()),
        };
        self.fence_replica(disk, &cause);
    }

    /// The partition's state, for whoever has others to look after; `None`: a call to the leader's disk hangs.
    pub(super) fn brief(&self) -> Option<MutexGuard<'_, State>> {
        let held = if self.hangs.load(Ordering::Relaxed) {
            self.state.try_lock()
        } else {
            self.state.try_lock_for(BRIEF)
        };
        self.hangs.store(held.is_none(), Ordering::Relaxed);
        held
    }

    /// The partition's state, for an append.
    #[inline]
    pub(super) fn lock_to_append(&self) -> Result<MutexGuard<'_, State>, Error> {
        let timeout = self.append_timeout();
        self.state.try_lock_for(timeout).ok_or_else(|| {
            Error::late(format!("{}: its leader's disk hangs", self.partition()), timeout)
        })
    }

    /// Does without a follower whose lock cannot be had.
    pub(super) fn orphan(&self, state: &mut State, replica: &Arc<Replica>, cause: &str) {
        let Some(place) = state.followers.iter_mut().find(|known| Arc::ptr_eq(known, replica))
        else {
            return;
        };
        let heir = replica.heir();
        let at_risk = Offset::ZERO..Offset::ZERO;
        heir.state.lock().fenced = Some(Fenced { cause: cause.into(), at_risk });
        *place = heir;
        state.orphans.push(Arc::clone(replica));
        state.follower_failed(replica.disk);
    }

    /// Whether `replica` is one of the partition's, and no orphan.
    pub(super) fn is_current(state: &State, replica: &Arc<Replica>) -> bool {
        state.followers.iter().any(|known| Arc::ptr_eq(known, replica))
    }

    /// Whether no call of an earlier replica on `disk` is under way any more, so that it can be opened anew. The caller holds
    /// [`Core::repairs_of`] that disk.
    pub(crate) fn is_free(&self, disk: DiskId) -> bool {
        if self.tended.lock().contains(&disk) {
            return false;
        }
        let Some(mut state) = self.brief() else { return false };
        state.orphans.retain(|orphan| {
            let Some(mut held) = orphan.state.try_lock() else { return true };
            let flushes = held.flushing;
            if !flushes {
                held.log = None;
            }
            flushes
        });
        // Late zeroes would lie over what was appended to the same file by then.
        let makes_room = state.making_room.iter().any(|(making, _)| *making == disk);
        !state.orphans.iter().any(|orphan| orphan.disk == disk)
            && !state.durable.is_flushing(disk)
            && !makes_room
    }

    /// Whether the replica on `disk` is in service.
    pub(crate) fn is_served_by(&self, disk: DiskId) -> bool {
        self.brief().is_some_and(|state| state.has_log_on(disk))
    }

    /// The leader's disk, if a flush of it, or a call for more space, has been seen on its way for longer than `lag_max`
    /// and somebody else can lead. `now` is the watch's.
    pub(crate) fn hung_leader(&self, now: Duration, lag_max: Duration) -> Option<DiskId> {
        let mut state = self.brief()?;
        let State { leading, making_room, durable, .. } = &mut *state;
        let disk = leading.disk;
        let making = making_room.iter_mut().filter(|(making, _)| *making == disk);
        let flushes = durable.led.then_some(&mut durable.led_since);
        let calls = making.map(|(_, since)| since).chain(flushes);
        let since = calls.map(|since| *since.get_or_insert(now)).min()?;
        let others = state.progress.live_in_sync() > 1 && state.fenced.is_none();
        (others && now.saturating_sub(since) > lag_max).then_some(disk)
    }

    /// Whether a replica of the partition is on `disk`; false as well if that cannot be told now.
    pub(crate) fn has_replica_on(&self, disk: DiskId) -> bool {
        self.brief().is_some_and(|state| state.preference.contains(&disk))
    }

    /// Holds the partition, as a call does that hangs.
    #[cfg(test)]
    pub(crate) fn hold(&self) -> impl Drop + '_ {
        self.state.lock()
    }

    /// Whether `disk` leads, as far as that can be told now.
    pub(crate) fn is_led_by(&self, disk: DiskId) -> bool {
        self.brief().is_some_and(|state| state.leader == Some(disk) && state.fenced.is_none())
    }
}

/// The fault of a disk whose call does not return.
pub(crate) fn hangs() -> Error {
    Error::Io {
        path: PathBuf::new(),
        action: "wait for a call that hangs",
        written: Written::Unknown,
        source: Arc::new(ErrorKind::TimedOut.into()),
    }
}
