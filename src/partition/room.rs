//! What an append needs of the leader's disk before it can be put in place: space, the next segment, or that what waits
//! in memory is in its file.
//!
//! A disk may take long for that, or hang (S22), so it is asked for under no lock, and by one at a time; whoever
//! appends meanwhile waits, for no longer than an append may take. Where another replica could lead, the thread that
//! flushes the leader's disk asks: the caller is free when its time is over, and a leader that hangs is deposed.
//! Where there is no other, the caller asks by itself.

use std::time::Instant;

use parking_lot::MutexGuard;

use crate::error::Error;
use crate::log::{MoreRoom, NextSegment};
use crate::types::DiskId;

use super::core::{Core, State};
use super::flush::{Until, Wait, Waited};

/// What is asked of a disk.
#[derive(Clone, Debug)]
enum Need {
    Room(MoreRoom),
    Segment(NextSegment),
}

/// Where the partition stands with what it asks for.
#[derive(Debug, Default)]
pub(super) struct Errand {
    /// Not begun yet.
    asked: Option<Need>,
    /// Asked for, and not answered.
    is_open: bool,
    /// Rises with each errand; an answer to an earlier leader's is for nobody.
    number: u64,
    /// How the last one that failed did, for those that waited for it.
    refused: Option<(u64, Error)>,
}

impl State {
    /// Appends wait no more for what the log that led was to get.
    pub(super) fn forget_errand(&mut self) {
        self.errand.is_open = false;
        self.errand.number += 1;
        if self.errand.asked.take().is_some() {
            // Nobody has begun it.
            let disk = self.leading.disk;
            self.done_on(disk);
        }
    }

    fn done_on(&mut self, disk: DiskId) {
        if let Some(at) = self.making_room.iter().position(|(making, _)| *making == disk) {
            self.making_room.swap_remove(at);
        }
    }
}

impl Core {
    /// As an append that the leader's disk has not answered yet.
    #[cfg(test)]
    pub(crate) fn asks_for_room(&self) -> DiskId {
        let mut state = self.state.lock();
        let disk = state.leading.disk;
        state.making_room.push((disk, None));
        disk
    }

    /// A call for more space on `disk` has returned.
    pub(super) fn room_made(&self, state: &mut State, disk: DiskId) {
        state.done_on(disk);
        self.room_made.notify_all();
    }

    /// Whether a batch can be put in place without a call to the disk.
    pub(super) fn is_ready(&self, state: &State, records: u32, bytes: usize) -> bool {
        !state.log.waits_for_landing(records, bytes)
            && state.log.is_ready_for(records, bytes, self.clock.now())
    }

    /// Waits until a batch can be put in place.
    ///
    /// # Errors
    /// As for an append; nothing of it was written.
    #[cold]
    #[inline(never)]
    pub(super) fn make_ready<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        records: u32,
        bytes: usize,
    ) -> Result<MutexGuard<'a, State>, Error> {
        let begun = Instant::now();
        while !self.is_ready(&state, records, bytes) {
            state = if state.errand.is_open {
                self.wait_for_errand(state, begun)?
            } else if state.log.waits_for_landing(records, bytes) {
                self.land(state)?
            } else {
                self.open_errand(state, records, bytes)?
            };
            self.check_leads(&state)?;
        }
        Ok(state)
    }

    /// Waits until what a flush has under way, or is to have, is in its file.
    fn land<'a>(&'a self, state: MutexGuard<'a, State>) -> Result<MutexGuard<'a, State>, Error> {
        let end = state.progress.log_end();
        let wait = Wait { offsets: end..end, until: Until::Flushed, epoch: state.epoch };
        drop(state);
        match self.wait_acknowledged(&wait, self.append_timeout()) {
            Ok(Waited::Acknowledged) => Ok(self.state.lock()),
            Ok(Waited::Unsettled) => Err(self.no_leader()),
            Err(error) => Err(error.of_others()),
        }
    }

    fn wait_for_errand<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        begun: Instant,
    ) -> Result<MutexGuard<'a, State>, Error> {
        let (number, timeout) = (state.errand.number, self.append_timeout());
        let is_open = |state: &State| state.errand.is_open && state.errand.number == number;
        while is_open(&state) && state.ended.is_none() && state.fenced.is_none() {
            let left = timeout.saturating_sub(begun.elapsed());
            if left.is_zero() {
                let what = format!("{}: making space on {}", self.partition(), state.leading.disk);
                return Err(Error::late(what, timeout));
            }
            self.room_made.wait_for(&mut state, left);
        }
        self.check_errand(state, number)
    }

    fn check_errand<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        number: u64,
    ) -> Result<MutexGuard<'a, State>, Error> {
        // The files of a topic that is deleted go while a call is at them.
        if let Some(ended) = state.ended {
            return Err(self.ended_error(ended));
        }
        match &state.errand.refused {
            Some((refused, error)) if *refused == number => {
                let error = error.clone();
                Err(self.append_failed(state, error))
            }
            _ => Ok(state),
        }
    }

    /// Asks for what a batch lacks.
    fn open_errand<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        records: u32,
        bytes: usize,
    ) -> Result<MutexGuard<'a, State>, Error> {
        let need = if state.log.lacks_segment(records, bytes) {
            state.log.begin_roll(records, bytes).map(Need::Segment)
        } else {
            Ok(Need::Room(state.log.lacks_room(bytes)))
        };
        let need = match need {
            Ok(need) => need,
            Err(error) => return Err(self.append_failed(state, error)),
        };
        let disk = state.leading.disk;
        state.making_room.push((disk, None));
        state.errand.number += 1;
        state.errand.is_open = true;
        let number = state.errand.number;
        if self.hands_over(&state) && state.leading.ask_for_flush(self) {
            state.errand.asked = Some(need);
            return Ok(state);
        }
        drop(state);
        self.run_errand(disk, number, &need);
        self.check_errand(self.state.lock(), number)
    }

    /// Does what is asked of the leader's disk, on the thread that flushes it.
    pub(super) fn run_errands(&self, disk: DiskId) {
        let mut state = self.state.lock();
        if state.leading.disk == disk
            && let Some(need) = state.errand.asked.take()
        {
            let number = state.errand.number;
            drop(state);
            self.run_errand(disk, number, &need);
        }
    }

    fn run_errand(&self, disk: DiskId, number: u64, need: &Need) {
        let now = self.clock.now();
        let (made, outcome) = match need {
            Need::Room(more) => (None, more.make(now).and_then(|()| self.grant_page())),
            Need::Segment(next) => match next.make(now) {
                Ok(made) => (Some(made), Ok(())),
                Err(error) => (None, Err(error)),
            },
        };
        if made.is_some() {
            // Before the first record: without a page, readers in other processes believe what they find in the files.
            self.make_page(disk);
        }
        let mut state = self.state.lock();
        // What was made for a log that was given up meanwhile stays behind, empty.
        if let Need::Segment(next) = need
            && next.is_of(&state.log)
        {
            state.log.end_roll(made, now);
        }
        if state.errand.number == number {
            state.errand.is_open = false;
            state.errand.refused = outcome.err().map(|error| (number, error));
        }
        if state.stepping_down {
            // It could not hand over meanwhile.
            self.ask_for_settling(&mut state);
        }
        self.room_made(&mut state, disk);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use crate::config::TopicConfig;
    use crate::store::Store;

    #[test]
    fn a_close_waits_for_space_that_is_made_for_its_zeroes_would_lie_over_what_comes_next() {
        let store = Store::in_memory(1).unwrap();
        store.create_topic("t", TopicConfig::new()).unwrap();
        let partition = store.partition("t", 0).unwrap();
        let core = partition.core().unwrap();
        let disk = core.asks_for_room();
        thread::scope(|scope| {
            let stopping = scope.spawn(|| core.stop_appends());
            thread::sleep(Duration::from_millis(50));
            assert!(!stopping.is_finished());
            core.room_made(&mut core.state.lock(), disk);
        });
    }
}
