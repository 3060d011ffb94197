//! Which reign of which leader wrote which offsets.
//!
//! A row of (epoch, start offset), rising in both. Kept in the metadata and extended at every election,
//! also of a leader that never appends (KAFKA-7415).
//!
//! Two replicas whose logs hold a batch of the same epoch at the same offset agree on everything before
//! it: one leader wrote that epoch, onto a log that the follower had agreed to before. So the last
//! batch of a log tells where it departs: behind the end that its epoch has in the history.

use std::ops::Range;

use crate::types::{LeaderEpoch, Offset};

/// Where one reign begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reign {
    pub(crate) epoch: LeaderEpoch,
    pub(crate) start: Offset,
}

/// The reigns of a partition, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct EpochHistory {
    reigns: Vec<Reign>,
}

impl EpochHistory {
    /// A leader of `epoch` begins at `start`. An older one that began there or later wrote nothing that
    /// counts, and is forgotten: its end is this start either way.
    pub(crate) fn begin(&mut self, epoch: LeaderEpoch, start: Offset) {
        if self.reigns.last().is_some_and(|last| last.epoch >= epoch) {
            return; // the first assignment wins (EPOCH-02)
        }
        self.reigns.retain(|reign| reign.start < start);
        self.reigns.push(Reign { epoch, start });
    }

    /// The reigns, oldest first.
    pub(crate) fn reigns(&self) -> &[Reign] {
        &self.reigns
    }

    /// Where offsets of `epoch` end: at the start of the next reign. `None`: it is the last.
    pub(crate) fn end_of(&self, epoch: LeaderEpoch) -> Option<Offset> {
        let next = self.reigns.partition_point(|reign| reign.epoch <= epoch);
        self.reigns.get(next).map(|reign| reign.start)
    }

    /// Records below `log_start` are gone: so are the reigns that ended there.
    pub(crate) fn drop_below(&mut self, log_start: Offset) {
        let behind = self.reigns.partition_point(|reign| reign.start <= log_start);
        self.reigns.drain(..behind.saturating_sub(1));
    }

    /// How far a log that ends at `end` agrees with a leader's that ends at `leader_end`; the log is cut
    /// there. One that is to lead is held against its own end first: it may have led before, and gone on
    /// after the next reign began. `epoch_before` gives the epoch and the offsets of the last batch before an offset: what lies
    /// between, nobody can read.
    ///
    /// Cutting can uncover a batch of a still older reign that went on too long: the search goes back
    /// until the last batch left is one that the history knows (KIP-279).
    ///
    /// # Errors
    /// Those of `epoch_before`.
    pub(crate) fn agreed_end<E>(
        &self,
        leader_end: Offset,
        mut end: Offset,
        mut epoch_before: impl FnMut(Offset) -> Result<Option<(LeaderEpoch, Range<Offset>)>, E>,
    ) -> Result<Offset, E> {
        while let Some((epoch, batch)) = epoch_before(end)? {
            let bound = self.end_of(epoch).unwrap_or(leader_end).min(leader_end);
            if end <= bound {
                break;
            }
            // A batch is cut as a whole.
            end = if batch.start < bound && bound < batch.end { batch.start } else { bound };
        }
        Ok(end.min(leader_end))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn history(reigns: &[(u32, u64)]) -> EpochHistory {
        let mut history = EpochHistory::default();
        for (epoch, start) in reigns {
            history.begin(LeaderEpoch(*epoch), Offset(*start));
        }
        history
    }

    /// A log of one-record batches, by their epochs.
    fn agreed(history: &EpochHistory, leader_end: u64, log: &[u32]) -> u64 {
        let before = |end: Offset| {
            let at = usize::try_from(end.0).unwrap().checked_sub(1);
            let offsets = |at| Offset(at as u64)..Offset(at as u64 + 1);
            Ok::<_, Infallible>(at.map(|at| (LeaderEpoch(log[at]), offsets(at))))
        };
        let end = Offset(log.len() as u64);
        let Ok(agreed) = history.agreed_end(Offset(leader_end), end, before);
        agreed.0
    }

    /// The batch before offsets that were missing, behind where the next reign began, was cut with them: it was acknowledged.
    #[test]
    fn inv_02_a_batch_goes_only_if_the_next_reign_began_within_it() {
        let before = |end: Offset| {
            let batches = [0..3, 3..5, 7..10].map(|batch| Offset(batch.start)..Offset(batch.end));
            let last = batches.into_iter().rfind(|batch| batch.start < end);
            Ok::<_, Infallible>(last.map(|batch| (LeaderEpoch(0), batch)))
        };
        for (next, agreed) in [(3, 3), (5, 5), (6, 6), (7, 7), (8, 7), (9, 7), (10, 10)] {
            let history = history(&[(0, 0), (1, next)]);
            let Ok(found) = history.agreed_end(Offset(20), Offset(10), before);
            assert_eq!(found, Offset(agreed), "the next reign began at {next}");
        }
        let Ok(found) = history(&[(0, 0), (1, 5)]).agreed_end(Offset(20), Offset(7), before);
        assert_eq!(found, Offset(5), "what ends with a hole");
    }

    #[test]
    fn epoch_02_the_first_start_of_an_epoch_wins() {
        let mut history = history(&[(0, 0), (3, 10)]);
        history.begin(LeaderEpoch(3), Offset(20));
        history.begin(LeaderEpoch(2), Offset(30));
        assert_eq!(history.end_of(LeaderEpoch(0)), Some(Offset(10)));
        assert_eq!(history.end_of(LeaderEpoch(3)), None);
    }

    #[test]
    fn kafka_7415_a_leader_that_appended_nothing_still_ends_the_reign_before_it() {
        let history = history(&[(0, 0), (1, 5), (2, 5)]);
        assert_eq!(history.end_of(LeaderEpoch(0)), Some(Offset(5)));
        assert_eq!(history.end_of(LeaderEpoch(1)), Some(Offset(5)));
    }

    #[test]
    fn kip_101_a_returning_leader_loses_what_nobody_followed() {
        // It wrote five records in epoch 0; its successor began at 3.
        let history = history(&[(0, 0), (1, 3)]);
        assert_eq!(agreed(&history, 8, &[0, 0, 0, 0, 0]), 3);
        // A follower with less agrees as far as it goes.
        assert_eq!(agreed(&history, 8, &[0, 0]), 2);
        assert_eq!(agreed(&history, 8, &[0, 0, 0, 1]), 4);
    }

    #[test]
    fn kip_279_a_fast_double_fail_over_is_searched_back_through_the_epochs() {
        // Epoch 1 began at 2 and 2 began at 4 on the elected line; this log led in epoch 1 on its own.
        let history = history(&[(0, 0), (2, 2), (3, 6)]);
        assert_eq!(agreed(&history, 9, &[0, 0, 1, 1, 1]), 2);
        assert_eq!(agreed(&history, 9, &[0, 0, 2, 2, 2, 2, 2]), 6);
    }

    #[test]
    fn a_log_never_reaches_behind_its_leader() {
        assert_eq!(agreed(&history(&[(0, 0)]), 2, &[0, 0, 0]), 2, "REPL-19");
    }

    #[test]
    fn reigns_below_the_log_start_are_forgotten_and_the_one_that_holds_it_is_kept() {
        let mut history = history(&[(0, 0), (1, 5), (2, 9)]);
        history.drop_below(Offset(7));
        assert_eq!(history.reigns()[0], Reign { epoch: LeaderEpoch(1), start: Offset(5) });
        history.drop_below(Offset(100));
        assert_eq!(history.reigns().len(), 1);
    }

    /// Random reigns: leaders append, followers copy a prefix, any replica leads next.
    #[test]
    fn inv_03_what_the_history_keeps_is_equal_in_both_logs() {
        let mut random = Random(11);
        for _ in 0..20_000 {
            let mut logs = vec![Vec::<u32>::new(); 3];
            let mut history = EpochHistory::default();
            let mut leader = 0;
            for epoch in 0..6 {
                // Before it leads, a log loses what a reign that was cut short wrote behind its end.
                let own = logs[leader].len() as u64;
                let end = agreed(&history, own, &logs[leader]);
                logs[leader].truncate(usize::try_from(end).unwrap());
                history.begin(LeaderEpoch(epoch), Offset(logs[leader].len() as u64));
                for _ in 0..random.below(4) {
                    logs[leader].push(epoch);
                }
                let line = logs[leader].clone();
                for (at, log) in logs.iter_mut().enumerate() {
                    if at == leader || random.below(2) == 0 {
                        continue;
                    }
                    let end = agreed(&history, line.len() as u64, log);
                    let end = usize::try_from(end).unwrap();
                    assert_eq!(log[..end], line[..end], "INV-03");
                    let common =
                        log.iter().zip(&line).take_while(|(one, other)| one == other).count();
                    assert_eq!(end, common, "no more is cut than has to be");
                    log.truncate(end);
                    let upto = end + random.below((line.len() - end) as u64 + 1);
                    log.extend_from_slice(&line[end..upto]);
                }
                leader = random.below(3);
            }
        }
    }

    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: u64) -> usize {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            usize::try_from((self.0 >> 33) % bound).unwrap()
        }
    }
}
