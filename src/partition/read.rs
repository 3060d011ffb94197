//! Reading a partition: what a reader may see, and waiting until there is more.

use std::collections::HashMap;
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::log::{LogReader, Part};
use crate::record::BatchHeader;
use crate::segment::Fetched;
use crate::types::{Isolation, LeaderEpoch, Offset, ProducerId, Timestamp};

use super::ReadOptions;
use super::core::{Core, State};
use super::ticket::Done;

/// A reader who is to be woken.
#[derive(Debug)]
pub(super) struct Watch {
    offset: Offset,
    isolation: Isolation,
    /// Under whose leadership it looked.
    epoch: LeaderEpoch,
    waker: Waker,
}

/// What became of a wish to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watched {
    /// There is something to look at now.
    Now,
    /// The waker will be woken.
    Registered,
    /// Another process appends, and cannot wake us.
    Unwatchable,
}

impl Core {
    /// Has `waker` woken, once, when the record at `offset` can be read, or never will be, or the log has another leader than
    /// now, who may have less. A second wish with the same waker takes the place of the first.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::UnknownTopicOrPartition`]: nothing will come any more.
    pub(crate) fn watch(
        &self,
        offset: Offset,
        isolation: Isolation,
        waker: &Waker,
    ) -> Result<Watched, Error> {
        let mut state = self.state.lock();
        if visible_end(&mut state, isolation) > offset {
            return Ok(Watched::Now);
        }
        if let Some(ended) = state.ended {
            return Err(self.ended_error(ended));
        }
        let watch = Watch { offset, isolation, epoch: self.leader_epoch(), waker: waker.clone() };
        match state.watches.iter_mut().find(|known| known.waker.will_wake(waker)) {
            Some(known) => *known = watch,
            None => state.watches.push(watch),
        }
        Ok(Watched::Registered)
    }

    /// Takes back what was asked for with this waker.
    pub(crate) fn unwatch(&self, waker: &Waker) {
        self.state.lock().watches.retain(|known| !known.waker.will_wake(waker));
    }

    /// Those who have something to look at.
    #[cold]
    pub(super) fn seen_watches(&self, state: &mut State, done: &mut Vec<Done>) {
        let (ended, epoch) = (state.ended.is_some(), self.leader_epoch());
        for watch in std::mem::take(&mut state.watches) {
            let is_past = ended || watch.epoch != epoch;
            if is_past || visible_end(state, watch.isolation) > watch.offset {
                done.push(Done::Wake(watch.waker));
            } else {
                state.watches.push(watch);
            }
        }
    }

    /// Where the log departs from what was read of it up to `position` under a leader of `epoch`, if it does
    /// (KIP-320).
    pub(crate) fn divergence(&self, position: Offset, epoch: LeaderEpoch) -> Option<Offset> {
        let ended = self.state.lock().history.end_of(epoch);
        if let Some(end) = ended {
            return (end < position).then_some(end);
        }
        // Of a single replica there is no history but its batches: epochs only rise along them.
        let (mut agreed, end) = (self.log_start(), self.log_end());
        if position <= agreed {
            return None;
        }
        let is_later = |at: Offset| self.epoch_at(at).is_some_and(|found| found > epoch);
        if position <= end && !is_later(Offset(position.0 - 1)) {
            return None;
        }
        let mut parted = position.min(end);
        while agreed < parted {
            let middle = Offset(u64::midpoint(agreed.0, parted.0));
            if is_later(middle) {
                parted = middle;
            } else {
                agreed = middle.next();
            }
        }
        Some(parted)
    }

    /// Under which leader the record at `offset` was appended, if it can be read.
    fn epoch_at(&self, offset: Offset) -> Option<LeaderEpoch> {
        let fetched = self.reader().read(offset, self.high_watermark(), 1).ok().flatten()?;
        BatchHeader::trusted(&fetched.bytes).map(|header| header.leader_epoch)
    }

    /// Reads whole batches from `offset` on. Does not block.
    pub(crate) fn read(&self, offset: Offset, options: &ReadOptions) -> Result<Part, Error> {
        let upper = match options.isolation {
            Isolation::ReadUncommitted => self.high_watermark(),
            Isolation::ReadCommitted => self.last_stable_offset(),
        };
        self.check_range(offset)?;
        let ReadOptions { max_bytes, isolation } = *options;
        let (fetched, next) = match self.reader().read_records(offset, upper, max_bytes, isolation)
        {
            Err(error) => {
                // Retention may have passed by between the check and the read.
                self.check_range(offset)?;
                self.check_usable()?;
                self.report_damage(offset, &error);
                let elsewhere = self.elsewhere(|reader| {
                    let read = reader.read_records(offset, upper, max_bytes, isolation).ok();
                    read.filter(|(_, next)| *next > offset)
                });
                elsewhere.ok_or(error)?
            }
            Ok(read) => read,
        };
        Ok(Part::new(self.partition.clone(), offset, next, fetched))
    }

    /// Reads whole batches below the high watermark, markers as well. `None`: there is none yet.
    ///
    /// # Errors
    /// As for [`Core::read`].
    pub(crate) fn read_batches(
        &self,
        offset: Offset,
        max_bytes: usize,
    ) -> Result<Option<Fetched>, Error> {
        let upper = self.high_watermark();
        self.check_range(offset)?;
        let error = match self.reader().read(offset, upper, max_bytes) {
            Ok(fetched) => return Ok(fetched),
            Err(error) => error,
        };
        self.check_usable()?;
        self.report_damage(offset, &error);
        let read = |reader: &LogReader| reader.read(offset, upper, max_bytes).ok().flatten();
        self.elsewhere(read).map(Some).ok_or(error)
    }

    /// Reads what is below `end` and was decided when those transactions were open, which began where `open` says.
    ///
    /// # Errors
    /// As for [`Core::read`].
    pub(crate) fn read_cut(
        &self,
        offset: Offset,
        end: Offset,
        open: &HashMap<ProducerId, Offset>,
        options: ReadOptions,
    ) -> Result<Part, Error> {
        self.check_range(offset)?;
        let max_bytes = options.max_bytes;
        let read = |reader: &LogReader| reader.read_decided(offset, end, max_bytes, open);
        let (fetched, next) = match read(&self.reader()) {
            Ok(read) => read,
            Err(error) => {
                self.check_range(offset)?;
                self.check_usable()?;
                self.report_damage(offset, &error);
                let elsewhere = self.elsewhere(|reader| read(reader).ok());
                elsewhere.filter(|(_, next)| *next > offset).ok_or(error)?
            }
        };
        Ok(Part::new(self.partition.clone(), offset, next, fetched))
    }

    /// Asks the other replicas, one by one, for what the leader's has lost.
    #[cold]
    fn elsewhere<T>(&self, ask: impl Fn(&LogReader) -> Option<T>) -> Option<T> {
        self.readers().into_iter().skip(1).find_map(|(_, reader)| ask(&reader))
    }

    fn check_range(&self, offset: Offset) -> Result<(), Error> {
        let (start, end) = (self.log_start(), self.log_end());
        if offset < start || offset > end {
            let partition = self.partition.clone();
            return Err(Error::OffsetOutOfRange { partition, offset, start, end });
        }
        Ok(())
    }

    /// The first record whose timestamp is at least `timestamp`, below the high watermark.
    pub(crate) fn offset_for_time(&self, timestamp: Timestamp) -> Result<Option<Offset>, Error> {
        self.check_usable()?;
        loop {
            let (start, upper) = (self.log_start(), self.high_watermark());
            let find = |reader: &LogReader| {
                let found = reader.find_time(timestamp, start, upper);
                found.map(|hit| hit.map(|(offset, _)| offset))
            };
            let error = match find(&self.reader()) {
                Ok(found) => return Ok(found),
                // Retention has passed by.
                Err(_) if self.log_start() > start => continue,
                Err(error) => error,
            };
            self.check_usable()?;
            if let Error::Corrupt { offsets, .. } = &error {
                self.report_damage(offsets.start, &error);
            }
            // Whoever has not got so far does not know that there is none.
            let knows = |reader: &LogReader, found: &Option<Offset>| {
                let end = reader.segments().last().map_or(Offset::ZERO, |last| last.end());
                found.is_some() || end >= upper
            };
            let elsewhere =
                self.elsewhere(|reader| find(reader).ok().filter(|found| knows(reader, found)));
            return elsewhere.ok_or(error);
        }
    }

    /// Waits until a record at `offset` can be read.
    pub(crate) fn wait_for(
        &self,
        offset: Offset,
        isolation: Isolation,
        timeout: Duration,
    ) -> Result<(), Error> {
        let seen = match isolation {
            Isolation::ReadUncommitted => self.high_watermark(),
            Isolation::ReadCommitted => self.last_stable_offset(),
        };
        if seen > offset {
            return Ok(());
        }
        let what = || format!("{}: waiting for offset {offset}", self.partition);
        self.wait_until(|state| visible_end(state, isolation) > offset, timeout, what)
    }

    /// Waits until the watermark shows all that was acknowledged before. After an opening with too few replicas it may show less.
    ///
    /// # Errors
    /// [`Error::TimedOut`]; what closes the partition.
    pub(crate) fn wait_for_acknowledged(&self, timeout: Duration) -> Result<(), Error> {
        let what = || format!("{}: waiting for replicas that know all records", self.partition);
        self.wait_until(State::notice_acknowledged, timeout, what)
    }

    fn wait_until(
        &self,
        mut is_there: impl FnMut(&mut State) -> bool,
        timeout: Duration,
        what: impl FnOnce() -> String,
    ) -> Result<(), Error> {
        let deadline = Instant::now().checked_add(timeout);
        let mut state = self.state.lock();
        state.readers += 1;
        let outcome = loop {
            if is_there(&mut state) {
                break Ok(());
            }
            if let Some(ended) = state.ended {
                break Err(self.ended_error(ended));
            }
            let timed_out = match deadline {
                Some(deadline) => self.readable.wait_until(&mut state, deadline).timed_out(),
                None => {
                    self.readable.wait(&mut state);
                    false
                }
            };
            if timed_out && !is_there(&mut state) {
                break Err(Error::late(what(), timeout));
            }
        };
        state.readers -= 1;
        outcome
    }
}

/// The end of what a reader may see.
fn visible_end(state: &mut State, isolation: Isolation) -> Offset {
    let high_watermark = state.progress.high_watermark();
    match isolation {
        Isolation::ReadUncommitted => high_watermark,
        Isolation::ReadCommitted => state.log.last_stable(high_watermark),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::TopicConfig;
    use crate::error::Error;
    use crate::record::Record;
    use crate::storage::Clock;
    use crate::storage::simulated::SimDisk;
    use crate::store::Store;
    use crate::types::{Acks, Flush, Offset, Timestamp};

    const NOW: Timestamp = Timestamp(1_000_000);
    const RECORDS: u64 = 100;

    fn open(disks: &[SimDisk], clock: &Clock) -> Store {
        let builder = Store::builder().clock(clock.clone());
        disks.iter().fold(builder, |all, disk| all.simulated_disk(disk.clone())).open().unwrap()
    }

    /// Several segments, a record a millisecond.
    fn filled(count: u16) -> (Vec<SimDisk>, Clock) {
        let disks: Vec<_> = (0..count).map(|at| SimDisk::new(at.into())).collect();
        let clock = Clock::manual(NOW);
        let store = open(&disks, &clock);
        let config = TopicConfig::new().replication_factor(count).flush(Flush::Os);
        store.create_topic("t", config.segment_bytes(64 << 10)).unwrap();
        let partition = store.partition("t", 0).unwrap();
        for _ in 0..RECORDS {
            partition.append(&[Record::new(&[7; 2000])], Acks::All).unwrap();
            clock.advance(std::time::Duration::from_millis(1));
        }
        (disks, clock)
    }

    fn segments(disk: &SimDisk) -> Vec<String> {
        let is_segment = |name: &String| name.contains("-t/0/") && name.ends_with(".log");
        disk.files().into_iter().filter(is_segment).collect()
    }

    /// Only the leader's replica was asked.
    #[test]
    fn s3_a_time_that_is_damaged_on_one_disk_is_found_on_another() {
        let (disks, clock) = filled(2);
        let leader = {
            let store = open(&disks, &clock);
            let leader = store.partition("t", 0).unwrap().leader().unwrap();
            store.close(std::time::Duration::ZERO).unwrap();
            &disks[usize::from(leader.0)]
        };
        let name = segments(leader).swap_remove(1);
        let mut bytes = leader.read_file(&name);
        bytes[10_000] ^= 4;
        leader.write_file(&name, &bytes);
        let store = open(&disks, &clock);
        let partition = store.partition("t", 0).unwrap();
        for at in 0..RECORDS {
            let time = Timestamp(NOW.0 + i64::try_from(at).unwrap());
            assert_eq!(partition.offset_for_time(time).unwrap(), Some(Offset(at)));
        }
        let time = Timestamp(NOW.0 + i64::try_from(RECORDS).unwrap());
        assert_eq!(partition.offset_for_time(time).unwrap(), None);
    }

    #[test]
    fn s16_a_time_within_offsets_that_are_missing_is_told_to_be() {
        let (disks, clock) = filled(1);
        let names = segments(&disks[0]);
        let bases: Vec<u64> = names
            .iter()
            .map(|name| name.rsplit('/').next().unwrap().trim_end_matches(".log").parse().unwrap())
            .collect();
        assert!(bases.len() > 3, "{bases:?}");
        disks[0].remove_file(&names[1]);
        let store = open(&disks, &clock);
        let partition = store.partition("t", 0).unwrap();
        let find =
            |at: u64| partition.offset_for_time(Timestamp(NOW.0 + i64::try_from(at).unwrap()));
        assert_eq!(find(bases[1] - 1).unwrap(), Some(Offset(bases[1] - 1)));
        let told = find(bases[1] + 1);
        assert!(
            matches!(&told, Err(Error::Corrupt { offsets, .. })
            if *offsets == (Offset(bases[1])..Offset(bases[2]))),
            "{told:?}"
        );
    }
}
