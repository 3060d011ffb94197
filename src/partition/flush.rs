//! Group commit: one flush serves every append that waits behind it.
//!
//! Flushes of a partition form *rounds*, one at a time. An append that waits joins the round that
//! will cover its records: the one that gathers now, or the next if the bytes of the running flush are
//! already fixed. Each round sleeps on a bell of its own (two take turns), so a finished flush wakes
//! those it served and nobody else, and one of the next round to lead it.
//!
//! The leader of a round waits for company while that pays: until as many are queued as last
//! time, at most [`GATHER`]. At two threads this doubles the rate (MEASUREMENTS.md, "Group commit").

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, MutexGuard};

use crate::error::{Error, Written};
use crate::log::FlushPlan;
use crate::types::Offset;

use super::core::{Core, State};

/// How long a leader waits for as many as last time.
const GATHER: Duration = Duration::from_micros(30);

/// What waits and wakes; outside the lock.
#[derive(Debug, Default)]
pub(super) struct Group {
    bells: [Condvar; 2],
    /// Appends that wait for a flush, for the leader that looks for company.
    waiting: AtomicU32,
    /// Somebody who does not wait wants the log flushed: a ticket, or `Acks::None`.
    pub(super) wanted: AtomicBool,
}

impl Group {
    pub(super) fn wake_all(&self) {
        for bell in &self.bells {
            bell.notify_all();
        }
    }
}

/// Where the rounds stand; under the partition's lock.
#[derive(Debug, Default)]
pub(super) struct Durable {
    round: usize,
    running: bool,
    /// What the running flush covers, once that is fixed.
    planned: Option<Offset>,
    /// How many the last round served.
    company: u32,
    sleepers: [u32; 2],
}

impl Core {
    /// Waits until `offsets` are on stable storage, flushing them if nobody else does.
    pub(super) fn wait_durable(
        &self,
        offsets: &Range<Offset>,
        timeout: Duration,
    ) -> Result<(), Error> {
        let started = Instant::now();
        self.group.waiting.fetch_add(1, Ordering::AcqRel);
        let mut state = self.state.lock();
        let outcome = loop {
            if state.marks.flushed() >= offsets.end {
                break Ok(());
            }
            if state.fenced.is_some() || state.ended.is_some() {
                break Err(self.closed_error(&state, Written::Unknown));
            }
            if !state.durable.running {
                state = self.lead_round(state);
                continue;
            }
            if started.elapsed() >= timeout {
                break Err(Error::TimedOut {
                    what: format!("{}: flushing offset {}", self.partition, offsets.start),
                    timeout,
                    appended: Some(offsets.clone()),
                });
            }
            let covered = state.durable.planned.is_none_or(|planned| planned >= offsets.end);
            let round = (state.durable.round + usize::from(!covered)) % 2;
            state.durable.sleepers[round] += 1;
            match started.checked_add(timeout) {
                Some(deadline) => {
                    self.group.bells[round].wait_until(&mut state, deadline);
                }
                None => self.group.bells[round].wait(&mut state),
            }
            state.durable.sleepers[round] -= 1;
        };
        self.group.waiting.fetch_sub(1, Ordering::AcqRel);
        // Whoever leaves without having led must not take the next leader's call with it.
        let leaderless = !state.durable.running && state.durable.sleepers != [0, 0];
        drop(state);
        if leaderless {
            for bell in &self.group.bells {
                bell.notify_one();
            }
        }
        outcome
    }

    /// Flushes now, unless a flush is running. For the worker, for `close`, for whoever leads.
    pub(super) fn flush_now(&self) -> Result<(), Error> {
        let mut state = self.state.lock();
        let end = state.marks.log_end();
        if state.durable.running {
            drop(state);
            return self.wait_durable(&(end..end), self.append_timeout());
        }
        if state.fenced.is_none() {
            state = self.lead_round(state);
        }
        if state.fenced.is_some() {
            return Err(self.closed_error(&state, Written::Unknown));
        }
        Ok(())
    }

    fn lead_round<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.durable.running = true;
        state.durable.round = state.durable.round.wrapping_add(1);
        let company = state.durable.company;
        if company > self.group.waiting.load(Ordering::Acquire) {
            drop(state);
            self.gather(company);
            state = self.state.lock();
        }
        let Some(plan) = state.log.flush_plan() else {
            state.durable.running = false;
            let end = state.marks.log_end();
            let flush = state.flush;
            state.marks.on_flushed(end, flush);
            return state;
        };
        state.durable.planned = Some(plan.end);
        state.durable.company = self.group.waiting.load(Ordering::Acquire);
        drop(state);
        let outcome = plan.run();
        let mut state = self.state.lock();
        self.finish_round(&mut state, &plan, outcome);
        let round = state.durable.round;
        self.publish(state);
        self.group.bells[round % 2].notify_all();
        self.group.bells[(round + 1) % 2].notify_one();
        self.state.lock()
    }

    fn finish_round(&self, state: &mut State, plan: &FlushPlan, outcome: Result<(), Error>) {
        state.durable.running = false;
        state.durable.planned = None;
        match outcome {
            // A flush that succeeds after another failed proves nothing (RELIABILITY fact 2).
            Ok(()) if state.fenced.is_none() => {
                state.log.on_flushed(plan);
                let flush = state.flush;
                state.marks.on_flushed(plan.end, flush);
            }
            Ok(()) => {}
            Err(error) => self.fence(state, &error),
        }
    }

    /// Lets others append for a moment, until as many wait as in the last round.
    fn gather(&self, company: u32) {
        let started = Instant::now();
        while self.group.waiting.load(Ordering::Acquire) < company && started.elapsed() < GATHER {
            std::thread::yield_now();
        }
    }
}
