//! Who leads a partition whose leader is gone.
//!
//! Only a replica that holds everything that was acknowledged may lead: one that was in sync, or, when
//! none of those is there, one that left while the in-sync set was already too small for the high
//! watermark to move, so that nothing was acknowledged without it ([eligible], KIP-966). All logs
//! are visible here, unlike in a cluster: the longest by (last epoch, end) leads, so that records
//! that only the old leader held are kept if its disk is there.
//!
//! [eligible]: eligible_after

use crate::types::{DiskId, LeaderEpoch, Offset};

/// A replica that could be asked to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) disk: DiskId,
    pub(crate) in_sync: bool,
    pub(crate) eligible: bool,
    /// A flush failed in it, or its disk is not the one it was: its tail is not to be believed.
    pub(crate) suspect: bool,
    /// None of its offsets is known to be damaged.
    pub(crate) sound: bool,
    pub(crate) last_epoch: LeaderEpoch,
    pub(crate) end: Offset,
}

/// The outcome of an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Elected {
    pub(crate) disk: DiskId,
    pub(crate) end: Offset,
    /// It holds everything that was acknowledged.
    pub(crate) clean: bool,
}

/// Chooses among `candidates`, who are there and in the order of preference (REPL-22, REPL-25). `unclean`
/// allows a replica that may lack acknowledged records, when there is no other (REPL-23).
pub(crate) fn elect(candidates: &[Candidate], unclean: bool) -> Option<Elected> {
    let best = |may_lead: &dyn Fn(&Candidate) -> bool| {
        let length = |candidate: &Candidate| (candidate.last_epoch, candidate.end, candidate.sound);
        // Of several that are as good, `max_by_key` gives the last: the preferred one comes first.
        candidates.iter().rev().filter(|candidate| may_lead(candidate)).max_by_key(|c| length(c))
    };
    let clean = best(&|candidate| candidate.in_sync && !candidate.suspect)
        .or_else(|| best(&|candidate| candidate.eligible && !candidate.suspect));
    let outcome =
        |candidate: &Candidate, clean| Elected { disk: candidate.disk, end: candidate.end, clean };
    if let Some(candidate) = clean {
        return Some(outcome(candidate, true));
    }
    let any = best(&|candidate| !candidate.suspect).or_else(|| best(&|_| true));
    any.filter(|_| unclean).map(|candidate| outcome(candidate, false))
}

/// Who may lead besides the in-sync replicas, after the in-sync set became `isr`: while it is smaller
/// than `required`, those who were in sync or eligible before (REPL-24); else nobody.
pub(crate) fn eligible_after(
    old_isr: &[DiskId],
    old_eligible: &[DiskId],
    isr: &[DiskId],
    required: usize,
) -> Vec<DiskId> {
    if isr.len() >= required {
        return Vec::new();
    }
    let mut eligible: Vec<_> = old_isr.iter().chain(old_eligible).copied().collect();
    eligible.retain(|disk| !isr.contains(disk));
    eligible.sort_unstable();
    eligible.dedup();
    eligible
}

/// Whether records are acknowledged that those who may lead besides the in-sync replicas need not have.
pub(crate) fn goes_on_without_eligible(is_led: bool, in_sync: usize, required: usize) -> bool {
    is_led && in_sync >= required
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All worlds of up to three replicas with two epochs and two ends.
    fn worlds(mut check: impl FnMut(&[Candidate])) {
        let kinds: Vec<(bool, bool, bool, bool)> = (0..16)
            .map(|bits| (bits & 1 > 0, bits & 2 > 0, bits & 4 > 0, bits & 8 > 0))
            .filter(|(in_sync, eligible, ..)| !(*in_sync && *eligible))
            .collect();
        let mut all = Vec::new();
        for (in_sync, eligible, suspect, sound) in kinds {
            for (epoch, end) in [(0, 5), (0, 7), (1, 5), (1, 6)] {
                all.push(Candidate {
                    disk: DiskId(0),
                    in_sync,
                    eligible,
                    suspect,
                    sound,
                    last_epoch: LeaderEpoch(epoch),
                    end: Offset(end),
                });
            }
        }
        check(&[]);
        for one in &all {
            check(&[*one]);
            for two in &all {
                let two = Candidate { disk: DiskId(1), ..*two };
                check(&[*one, two]);
                for three in &all {
                    check(&[*one, two, Candidate { disk: DiskId(2), ..*three }]);
                }
            }
        }
    }

    #[test]
    fn repl_22_25_nobody_leads_cleanly_who_may_lack_an_acknowledged_record() {
        worlds(|candidates| {
            let elected = elect(candidates, false);
            let able = |c: &&Candidate| !c.suspect && (c.in_sync || c.eligible);
            assert_eq!(elected.is_some(), candidates.iter().any(|c| able(&c)), "{candidates:?}");
            let Some(elected) = elected else { return };
            let leader = candidates.iter().find(|c| c.disk == elected.disk).unwrap();
            assert!(elected.clean && able(&leader), "{candidates:?}");
            assert_eq!(elected.end, leader.end);
            if leader.eligible {
                assert!(!candidates.iter().any(|c| c.in_sync && !c.suspect), "{candidates:?}");
            }
        });
    }

    #[test]
    fn the_longest_log_of_the_newest_epoch_leads_and_the_preferred_of_equals() {
        worlds(|candidates| {
            let Some(elected) = elect(candidates, false) else { return };
            let leader = *candidates.iter().find(|c| c.disk == elected.disk).unwrap();
            let peers: Vec<_> = candidates
                .iter()
                .filter(|c| !c.suspect && c.in_sync == leader.in_sync && (c.in_sync || c.eligible))
                .collect();
            for peer in &peers {
                let key = |c: &Candidate| (c.last_epoch, c.end, c.sound);
                assert!(key(peer) <= key(&leader), "{candidates:?}");
                assert!(key(peer) < key(&leader) || peer.disk >= leader.disk, "{candidates:?}");
            }
        });
    }

    #[test]
    fn repl_23_an_unclean_election_happens_only_when_it_was_asked_for_and_no_other_can() {
        worlds(|candidates| {
            let clean = elect(candidates, false);
            let any = elect(candidates, true);
            match clean {
                Some(_) => assert_eq!(any, clean, "{candidates:?}"),
                None => assert_eq!(any.map(|e| e.clean), (!candidates.is_empty()).then_some(false)),
            }
            if let Some(elected) = any {
                let leader = candidates.iter().find(|c| c.disk == elected.disk).unwrap();
                assert!(!leader.suspect || candidates.iter().all(|c| c.suspect), "{candidates:?}");
            }
        });
    }

    #[test]
    fn repl_24_who_left_a_set_that_was_too_small_already_stays_eligible() {
        let disks = |ids: &[u16]| ids.iter().map(|id| DiskId(*id)).collect::<Vec<_>>();
        // Three replicas, two required. 2 leaves: the watermark goes on without it.
        assert_eq!(eligible_after(&disks(&[0, 1, 2]), &[], &disks(&[0, 1]), 2), disks(&[]));
        // 1 leaves: the watermark stands still, so 1 holds all that is acknowledged.
        assert_eq!(eligible_after(&disks(&[0, 1]), &[], &disks(&[0]), 2), disks(&[1]));
        // The last leaves, too: nobody is in sync, and either may lead.
        assert_eq!(eligible_after(&disks(&[0]), &disks(&[1]), &[], 2), disks(&[0, 1]));
        // One is back and in sync with another: the set is large enough again.
        assert_eq!(eligible_after(&disks(&[0]), &disks(&[1]), &disks(&[0, 2]), 2), disks(&[]));
    }
}
