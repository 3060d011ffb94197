//! The scrub: all that is sealed is read now and then, so that damage is found while another replica can repair it.
//!
//! A disk's own worker does it, a piece at a time, and no faster than the store's `scrub_bytes_per_second`. A pass
//! takes up the partitions one after another, from a place that is drawn, so that a process which never lives long
//! gets round as well. The next pass begins a day after the last one did.
//!
//! Invariants:
//! 1. Between two pieces passes at least the time that the first one is worth.
//! 2. A pass looks at each partition that was there when it began, and once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Result;
use crate::partition::EventKind;
use crate::types::{Offset, Timestamp};

use super::Shared;
use super::disks::StoreDisk;

/// A disk that just came into service has better things to do.
const FIRST_AFTER: Duration = Duration::from_secs(60);
/// From the beginning of one pass to that of the next.
const PASS_EVERY: Duration = Duration::from_secs(24 * 60 * 60);
/// Partitions that a step passes by at most because there is nothing to read in them.
const EMPTY_MAX: usize = 64;
const PIECE_BYTES_MAX: u64 = 1 << 20;

/// How far the scrub of a disk is.
#[derive(Debug, Default)]
pub(super) struct Scrub {
    /// When there is something to do, by the store's clock; `None`: the disk has just come into service.
    due: Option<Duration>,
    pass: Option<Pass>,
}

#[derive(Debug)]
struct Pass {
    began: Duration,
    /// Topics and partitions that are left, the one that is being read first.
    left: VecDeque<(Arc<str>, u32)>,
    /// Where to go on in that one.
    next: Offset,
    bytes: u64,
    damages: u64,
}

impl Shared {
    /// How long until the scrub of the disk has something to do.
    pub(super) fn scrub_due(&self, disk: &StoreDisk) -> Duration {
        match self.options.scrub_rate {
            0 => Duration::MAX,
            _ => {
                let elapsed = self.clock.elapsed();
                let due = *disk.scrub.lock().due.get_or_insert(elapsed + FIRST_AFTER);
                due.saturating_sub(elapsed)
            }
        }
    }

    /// Reads the next piece, if it is due.
    pub(super) fn scrub(&self, disk: &StoreDisk, now: Timestamp) {
        if !self.scrub_due(disk).is_zero() {
            return;
        }
        let elapsed = self.clock.elapsed();
        let mut scrub = disk.scrub.lock();
        let mut pass = scrub.pass.take().unwrap_or_else(|| self.begin_pass(disk, elapsed));
        let read = self.scrub_piece(disk, &mut pass, now).unwrap_or_else(|error| {
            // The disk cannot be mended now; what else is on it is looked at in the next pass.
            let reason = format!("scrubbing: {error}");
            pass.left.clear();
            self.events.push(now, EventKind::BackgroundFailed { partition: None, reason });
            0
        });
        if pass.left.is_empty() {
            let Pass { began, bytes, damages, .. } = pass;
            scrub.due = Some((began + PASS_EVERY).max(elapsed + FIRST_AFTER));
            self.events.push(now, EventKind::Scrubbed { disk: disk.id, bytes, damages });
            return;
        }
        pass.bytes += read;
        scrub.pass = Some(pass);
        let rate = self.options.scrub_rate;
        let worth = Duration::from_nanos(read.saturating_mul(1_000_000_000) / rate);
        scrub.due = Some(elapsed + worth);
    }

    fn begin_pass(&self, disk: &StoreDisk, began: Duration) -> Pass {
        let mut left: Vec<_> = self
            .topics
            .read()
            .values()
            .flat_map(|topic| {
                let count = u32::try_from(topic.slots.read().len()).unwrap_or(u32::MAX);
                (0..count).map(|number| (Arc::clone(&topic.name), number))
            })
            .collect();
        left.sort_unstable();
        if !left.is_empty() {
            let drawn = disk.disk.entropy() % left.len() as u128;
            left.rotate_left(usize::try_from(drawn).unwrap_or_default());
        }
        Pass { began, left: left.into(), next: Offset::ZERO, bytes: 0, damages: 0 }
    }

    /// Reads until there was something to read. Returns the bytes of it.
    fn scrub_piece(&self, disk: &StoreDisk, pass: &mut Pass, now: Timestamp) -> Result<u64> {
        // A quarter of a second's worth, so that a slow rate is a smooth one.
        let piece = usize::try_from((self.options.scrub_rate / 4).clamp(1, PIECE_BYTES_MAX))
            .expect("a piece fits the memory");
        for _ in 0..EMPTY_MAX {
            let Some((name, number)) = pass.left.front().cloned() else { break };
            let topic = self.topics.read().get(&name).map(Arc::clone);
            let slot = topic
                .as_ref()
                .and_then(|topic| topic.slots.read().get(number as usize).map(Arc::clone));
            let step = match (topic, slot) {
                // A topic that is gone meanwhile, or cannot be used, is not looked at.
                (Some(topic), Some(slot)) => match self.open_core(&topic, &slot) {
                    Ok(core) => core.scrub(disk.id, pass.next, piece, now)?,
                    Err(_) => None,
                },
                _ => None,
            };
            let Some(step) = step else {
                pass.left.pop_front();
                pass.next = Offset::ZERO;
                continue;
            };
            pass.next = step.next;
            pass.damages += u64::from(step.damaged);
            if step.bytes > 0 {
                return Ok(step.bytes);
            }
        }
        Ok(0)
    }
}
