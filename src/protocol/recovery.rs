//! A torn tail or damage? What a log does with bytes that are no batch where one should be.
//!
//! After a crash the last batches may be half written: they were never acknowledged and are cut. The
//! same sight below an offset that is *proven* to have been durable is damage: nothing is cut, the
//! bytes are kept, and the offsets are reported (RELIABILITY S1 and S2). Confusing the two is how
//! logs lose data. Proofs: a side file or a clean stop that vouched for the offset, a later batch
//! whose header says how far the log was flushed when it was written, and, if only the process
//! died, any later batch at all: the page cache survived, so what is missing was not lost by a crash.

use crate::types::Offset;

/// What a walk over the end of a log found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Finding {
    /// One past the last good offset in an unbroken row.
    pub(crate) end: Offset,
    /// Nothing but zeroes follows.
    pub(crate) clean: bool,
    /// The largest end that something vouches for.
    pub(crate) proven_end: Offset,
    /// One past the last offset of the intact batches that follow behind the break; `None`: no such.
    pub(crate) beyond_end: Option<Offset>,
    /// The largest durable end that those batches know of.
    pub(crate) beyond_durable_end: Offset,
    /// The machine has run on since the log was written.
    pub(crate) same_boot: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All is well; go on at the end.
    Whole,
    /// Set the bytes behind the end aside, and go on at the end.
    Torn,
    /// Keep everything, and go on at `resume`; what is between is reported as damaged.
    Damaged { resume: Offset },
}

/// Decides. Nothing else in the crate does.
pub(crate) fn judge(finding: &Finding) -> Verdict {
    let proven = finding.proven_end.max(finding.beyond_durable_end);
    let resume = proven.max(finding.beyond_end.unwrap_or_default());
    if finding.end < proven || (finding.same_boot && finding.beyond_end.is_some()) {
        return Verdict::Damaged { resume };
    }
    if finding.clean { Verdict::Whole } else { Verdict::Torn }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each(mut test: impl FnMut(Finding)) {
        for end in [5, 6] {
            for proven in [0, 5, 6, 8] {
                for beyond in [None, Some(7), Some(9)] {
                    for durable in [0, 5, 6, 8] {
                        for clean in [false, true] {
                            for same_boot in [false, true] {
                                test(Finding {
                                    end: Offset(end),
                                    clean: clean && beyond.is_none(),
                                    proven_end: Offset(proven),
                                    beyond_end: beyond.map(Offset),
                                    beyond_durable_end: Offset(if beyond.is_some() {
                                        durable
                                    } else {
                                        0
                                    }),
                                    same_boot,
                                });
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn nothing_below_a_proven_end_is_ever_cut() {
        each(|finding| {
            let proven = finding.proven_end.max(finding.beyond_durable_end);
            if let Verdict::Torn | Verdict::Whole = judge(&finding) {
                assert!(proven <= finding.end, "S2: {finding:?}");
            }
        });
    }

    #[test]
    fn a_log_resumes_behind_everything_that_is_proven_or_there() {
        each(|finding| {
            if let Verdict::Damaged { resume } = judge(&finding) {
                assert!(resume > finding.end, "S2: {finding:?}");
                assert!(
                    resume >= finding.proven_end.max(finding.beyond_durable_end),
                    "S2: {finding:?}"
                );
                assert!(resume >= finding.beyond_end.unwrap_or_default(), "S2: {finding:?}");
            }
        });
    }

    #[test]
    fn when_only_the_process_died_a_hole_is_damage() {
        each(|finding| {
            if finding.same_boot && finding.beyond_end.is_some() {
                assert!(matches!(judge(&finding), Verdict::Damaged { .. }), "S2: {finding:?}");
            }
        });
    }

    #[test]
    fn an_unproven_tail_is_cut_after_a_power_loss() {
        each(|finding| {
            let proven = finding.proven_end.max(finding.beyond_durable_end);
            if !finding.same_boot && proven <= finding.end && !finding.clean {
                assert_eq!(judge(&finding), Verdict::Torn, "S1: {finding:?}");
            }
        });
    }
}
