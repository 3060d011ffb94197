//! Which segments a retention policy lets go.
//!
//! Takes what is known of a partition's segments and the time; yields how many of the oldest may go.
//!
//! Leaves to others: rolling the active segment when it is among them, raising the log start before
//! anything is removed (RET-07), removing files.

use crate::config::Retention;
use crate::types::{Offset, Timestamp};

/// What retention needs to know of a segment; the last one is active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentAge {
    pub(crate) bytes: u64,
    pub(crate) base: Offset,
    /// One past its last offset; its base if it is empty.
    pub(crate) end: Offset,
    /// By the machine's clock.
    pub(crate) last_append: Timestamp,
}

/// How many segments from the oldest on may go (RET-01, 04, 05, 06, 09): those that are too old, too
/// many, or below the log start, up to the first that is neither. A segment goes only if all of it is
/// below the high watermark, the active one only if it holds something.
///
/// An append time that lies in the future is one that a wrong clock gave (RET-02). The segment was
/// begun before the next one was, so the next time that can be true stands in for it: the segment goes
/// no earlier than that one may, and does not hold up those behind it.
pub(crate) fn segments_to_delete(
    segments: &[SegmentAge],
    policy: &Retention,
    now: Timestamp,
    high_watermark: Offset,
    log_start: Offset,
) -> usize {
    let mut left: u64 = segments.iter().map(|segment| segment.bytes).sum();
    let mut count = 0;
    for segment in segments {
        let mut times = segments[count..].iter().map(|segment| segment.last_append);
        let appended = times.find(|time| *time <= now).unwrap_or(now);
        let empty_active = count + 1 == segments.len() && segment.base == segment.end;
        let too_old = policy.age.is_some_and(|age| now.since(appended) > age);
        let too_many =
            policy.bytes.is_some_and(|bytes| left.saturating_sub(segment.bytes) >= bytes);
        let below_start = segment.end <= log_start;
        if empty_active || segment.end > high_watermark || !(too_old || too_many || below_start) {
            break;
        }
        left -= segment.bytes;
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn segments(spans: &[(u64, i64)]) -> Vec<SegmentAge> {
        let mut end = 0;
        let build = |(bytes, at): &(u64, i64)| {
            end += 10;
            SegmentAge {
                bytes: *bytes,
                base: Offset(end - 10),
                end: Offset(end),
                last_append: Timestamp(*at),
            }
        };
        spans.iter().map(build).collect()
    }

    #[test]
    fn ret_01_segments_strictly_older_than_the_limit_go_up_to_the_first_that_is_not() {
        let segments = segments(&[(1, 0), (1, 50), (1, 10), (1, 99)]);
        let policy = Retention::age(Duration::from_millis(50));
        let gone =
            |now| segments_to_delete(&segments, &policy, Timestamp(now), Offset(40), Offset(0));
        assert_eq!(gone(50), 0);
        assert_eq!(gone(51), 1);
        assert_eq!(gone(101), 3);
        assert_eq!(gone(1000), 4, "RET-09");
    }

    #[test]
    fn ret_02_a_segment_stamped_by_a_wrong_clock_goes_when_the_next_one_would() {
        let segments = segments(&[(1, i64::MAX), (1, i64::MAX), (1, 100), (1, 120)]);
        let policy = Retention::age(Duration::from_millis(5));
        for (now, gone) in [(50, 0), (105, 0), (106, 3), (125, 3), (126, 4)] {
            let count =
                segments_to_delete(&segments, &policy, Timestamp(now), Offset(40), Offset(0));
            assert_eq!(count, gone, "at {now}");
        }
    }

    #[test]
    fn ret_02_no_segment_is_taken_for_old_while_the_clock_lags_behind() {
        let segments = segments(&[(1, 1000), (1, 2000), (1, 0)]);
        let policy = Retention::age(Duration::from_millis(5));
        for now in [-1, 0, 5] {
            let count =
                segments_to_delete(&segments, &policy, Timestamp(now), Offset(30), Offset(0));
            assert_eq!(count, 0, "at {now}");
        }
    }

    #[test]
    fn ret_04_what_is_left_never_gets_smaller_than_the_limit() {
        let segments = segments(&[(10, 0), (10, 0), (10, 0)]);
        for (limit, gone) in [(0, 3), (9, 2), (10, 2), (11, 1), (20, 1), (21, 0), (99, 0)] {
            let policy = Retention::bytes(limit);
            let count = segments_to_delete(&segments, &policy, Timestamp(0), Offset(30), Offset(0));
            assert_eq!(count, gone, "RET-04: limit {limit}");
        }
    }

    #[test]
    fn ret_05_segments_below_the_log_start_go_whatever_the_policy() {
        let segments = segments(&[(1, 0), (1, 0), (1, 0)]);
        let gone = |start| {
            segments_to_delete(
                &segments,
                &Retention::forever(),
                Timestamp(0),
                Offset(30),
                Offset(start),
            )
        };
        assert_eq!([gone(9), gone(10), gone(19), gone(20)], [0, 1, 1, 2]);
    }

    #[test]
    fn ret_06_nothing_at_or_above_the_high_watermark_goes() {
        let segments = segments(&[(1, 0), (1, 0), (1, 0)]);
        for (high, gone) in [(0, 0), (9, 0), (10, 1), (29, 2), (30, 3)] {
            let policy = Retention::bytes(0);
            let count =
                segments_to_delete(&segments, &policy, Timestamp(0), Offset(high), Offset(0));
            assert_eq!(count, gone, "RET-06: watermark {high}");
        }
    }

    #[test]
    fn ret_09_an_empty_active_segment_stays_whatever_the_policy() {
        let empty = SegmentAge {
            bytes: 4096,
            base: Offset(50),
            end: Offset(50),
            last_append: Timestamp(0),
        };
        let policy = Retention::bytes(0).and_age(Duration::ZERO);
        let gone = |segments: &[SegmentAge]| {
            segments_to_delete(segments, &policy, Timestamp(9), Offset(50), Offset(50))
        };
        assert_eq!(gone(&[empty]), 0);
        let before = SegmentAge { base: Offset(40), ..empty };
        assert_eq!(gone(&[before, empty]), 1);
        assert_eq!(gone(&[before]), 1, "it holds something");
        assert_eq!(gone(&[]), 0);
    }

    proptest! {
        #[test]
        fn ret_01_04_05_06_whatever_goes_has_a_reason_and_what_stays_first_has_none(
            spans in proptest::collection::vec((0u64..50, 0i64..100), 1..8),
            limit in 0u64..100, age in 0u64..100, high in 0u64..90, start in 0u64..90
        ) {
            let segments = segments(&spans);
            let policy = Retention::bytes(limit).and_age(Duration::from_millis(age));
            let gone =
                segments_to_delete(&segments, &policy, Timestamp(100), Offset(high), Offset(start));
            for (at, segment) in segments.iter().enumerate().take(gone + 1) {
                let rest: u64 = segments[at + 1..].iter().map(|segment| segment.bytes).sum();
                let old = 100 - spans[at].1 > i64::try_from(age).unwrap();
                let below = segment.end.0 <= start;
                let may_go = segment.end.0 <= high && (rest >= limit || old || below);
                prop_assert_eq!(may_go, at < gone, "segment {}", at);
            }
        }

        #[test]
        fn ret_10_a_second_run_finds_nothing(
            spans in proptest::collection::vec((0u64..50, 0i64..100), 1..8),
            limit in 0u64..100, age in 0u64..100, high in 0u64..90
        ) {
            let segments = segments(&spans);
            let policy = Retention::bytes(limit).and_age(Duration::from_millis(age));
            let run = |segments: &[SegmentAge]| {
                segments_to_delete(segments, &policy, Timestamp(100), Offset(high), Offset(0))
            };
            let gone = run(&segments);
            prop_assert_eq!(run(&segments[gone..]), 0);
        }
    }
}
