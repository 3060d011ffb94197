//! Which segments a retention policy lets go.

use crate::config::Retention;
use crate::types::{Offset, Timestamp};

/// What retention needs to know of a segment; the last one is active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentAge {
    pub(crate) bytes: u64,
    /// One past its last offset.
    pub(crate) end: Offset,
    /// By the machine's clock.
    pub(crate) last_append: Timestamp,
}

/// How many segments from the oldest on may go (RET-01, 04, 05, 06, 09). A segment goes only below the
/// high watermark; the active one only if it holds something and all of it is below.
pub(crate) fn segments_to_delete(
    segments: &[SegmentAge],
    policy: &Retention,
    now: Timestamp,
    high_watermark: Offset,
    log_start: Offset,
) -> usize {
    let mut left: u64 = segments.iter().map(|segment| segment.bytes).sum();
    let mut start = Offset::ZERO;
    let mut count = 0;
    for (at, segment) in segments.iter().enumerate() {
        let empty_active = at + 1 == segments.len() && segment.end == start;
        let too_old = policy.age.is_some_and(|age| now.since(segment.last_append) > age);
        let too_many = policy.bytes.is_some_and(|bytes| left.saturating_sub(segment.bytes) >= bytes);
        let below_start = segment.end <= log_start;
        if empty_active || segment.end > high_watermark || !(too_old || too_many || below_start) {
            break;
        }
        left -= segment.bytes;
        start = segment.end;
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
            SegmentAge { bytes: *bytes, end: Offset(end), last_append: Timestamp(*at) }
        };
        spans.iter().map(build).collect()
    }

    #[test]
    fn ret_01_segments_strictly_older_than_the_limit_go_up_to_the_first_that_is_not() {
        let segments = segments(&[(1, 0), (1, 50), (1, 10), (1, 99)]);
        let policy = Retention::age(Duration::from_millis(50));
        let gone = |now| segments_to_delete(&segments, &policy, Timestamp(now), Offset(40), Offset(0));
        assert_eq!(gone(50), 0);
        assert_eq!(gone(51), 1);
        assert_eq!(gone(101), 3);
        assert_eq!(gone(1000), 4, "RET-09");
    }

    #[test]
    fn ret_02_an_append_time_in_the_future_keeps_its_own_segment_only_as_long_as_the_clock_says() {
        let segments = segments(&[(1, 0), (1, i64::MAX)]);
        let policy = Retention::age(Duration::from_millis(5));
        assert_eq!(segments_to_delete(&segments, &policy, Timestamp(100), Offset(20), Offset(0)), 1);
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
            segments_to_delete(&segments, &Retention::forever(), Timestamp(0), Offset(30), Offset(start))
        };
        assert_eq!([gone(9), gone(10), gone(19), gone(20)], [0, 1, 1, 2]);
    }

    #[test]
    fn ret_06_nothing_at_or_above_the_high_watermark_goes() {
        let segments = segments(&[(1, 0), (1, 0), (1, 0)]);
        for (high, gone) in [(0, 0), (9, 0), (10, 1), (29, 2), (30, 3)] {
            let policy = Retention::bytes(0);
            let count = segments_to_delete(&segments, &policy, Timestamp(0), Offset(high), Offset(0));
            assert_eq!(count, gone, "RET-06: watermark {high}");
        }
    }

    proptest! {
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
