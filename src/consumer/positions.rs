//! Where a consumer stands in its partitions, and where it is told to go.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::store::CommittedOffset;
use crate::types::{Offset, Timestamp, TopicPartition};

use super::ready::SlotKey;
use super::slot::{Slot, end_of};
use super::{Consumer, OffsetMap};

impl Consumer {
    fn slot(&self, topic: &str, partition: u32) -> Result<(SlotKey, &Slot)> {
        let name = TopicPartition::new(topic, partition);
        let found = self.by_name.get(&name).and_then(|key| Some((*key, self.slots.get(key)?)));
        found.ok_or(Error::NotAssigned { partition: name })
    }

    fn slot_mut(&mut self, topic: &str, partition: u32) -> Result<(SlotKey, &mut Slot)> {
        let key = self.slot(topic, partition)?.0;
        Ok((key, self.slots.get_mut(&key).expect("it was just found")))
    }

    /// The next offset that a poll returns of the partition. Finds out where to begin, if that is still open.
    ///
    /// # Errors
    /// [`Error::NotAssigned`], [`Error::NoOffset`]; [`Error::TimedOut`] while a transaction is about to change what is
    /// committed, or as for [`Consumer::seek_to_end`].
    pub fn position(&mut self, topic: &str, partition: u32) -> Result<Offset> {
        self.slot(topic, partition)?;
        if !self.starting.is_empty() {
            self.start_slots()?;
        }
        let key = self.slot(topic, partition)?.0;
        let slot = self.slots.get_mut(&key).expect("it was just found");
        if self.starting.contains(&key) {
            let what = format!("{}: the offset that is committed", slot.partition.name());
            return Err(Error::late(what, Duration::ZERO));
        }
        if slot.position().is_none() {
            slot.start(&self.settings)?;
        }
        Ok(slot.position().expect("it has just been started"))
    }

    /// How far polls have come, for all partitions of which that is known and whose topics are there: what
    /// [`Consumer::commit`] commits.
    #[must_use]
    pub fn position_map(&self) -> OffsetMap {
        self.positions_of(|_| true).collect()
    }

    pub(super) fn positions_of(
        &self,
        concerns: impl Fn(&TopicPartition) -> bool,
    ) -> impl Iterator<Item = (TopicPartition, CommittedOffset)> {
        let all = self.slots.values().filter(move |slot| concerns(slot.partition.name()));
        let all = all.filter(|slot| !slot.partition.is_gone());
        all.filter_map(|slot| Some((slot.partition.name().clone(), slot.to_commit()?)))
    }

    /// Goes on at `offset`.
    ///
    /// # Errors
    /// [`Error::NotAssigned`].
    pub fn seek(&mut self, topic: &str, partition: u32, offset: Offset) -> Result<()> {
        let (key, slot) = self.slot_mut(topic, partition)?;
        slot.seek(offset, None);
        self.starting.remove(&key);
        // Where it goes on is what it leaves behind, if it is dropped now.
        self.last_poll.retain(|(other, _)| *other != key);
        Ok(())
    }

    /// Goes on at the first record that there is.
    ///
    /// # Errors
    /// [`Error::NotAssigned`].
    pub fn seek_to_begin(&mut self, topic: &str, partition: u32) -> Result<()> {
        let start = self.slot(topic, partition)?.1.partition.log_start_offset();
        self.seek(topic, partition, start)
    }

    /// Goes on behind the last record that it can read now.
    ///
    /// # Errors
    /// [`Error::NotAssigned`]; [`Error::TimedOut`] while it is not known how far the partition was acknowledged, since the store
    /// was opened with too few of its replicas.
    pub fn seek_to_end(&mut self, topic: &str, partition: u32) -> Result<()> {
        let slot = self.slot(topic, partition)?.1;
        slot.partition.wait_for_acknowledged(self.settings.api_timeout)?;
        let end = slot.end(self.settings.isolation);
        self.seek(topic, partition, end)
    }

    /// Goes on at the first record that is not older than `time`, or behind the last one.
    ///
    /// # Errors
    /// [`Error::NotAssigned`]; [`Error::Corrupt`] if damage is in the way; [`Error::TimedOut`] as for [`Consumer::seek_to_end`].
    pub fn seek_to_time(&mut self, topic: &str, partition: u32, time: Timestamp) -> Result<()> {
        let slot = self.slot(topic, partition)?.1;
        slot.partition.wait_for_acknowledged(self.settings.api_timeout)?;
        let offset = slot.at_time(time, self.settings.isolation)?;
        self.seek(topic, partition, offset)
    }

    /// Returns nothing of these partitions until they are resumed; they stay assigned.
    ///
    /// # Errors
    /// [`Error::NotAssigned`]; none is paused then.
    pub fn pause(&mut self, partitions: &[(&str, u32)]) -> Result<()> {
        self.set_paused(partitions, true)
    }

    /// Takes [`Consumer::pause`] back.
    ///
    /// # Errors
    /// [`Error::NotAssigned`]; none is resumed then.
    pub fn resume(&mut self, partitions: &[(&str, u32)]) -> Result<()> {
        self.set_paused(partitions, false)
    }

    fn set_paused(&mut self, partitions: &[(&str, u32)], paused: bool) -> Result<()> {
        for (topic, number) in partitions {
            self.slot(topic, *number)?;
        }
        for (topic, number) in partitions {
            let slot = self.slot_mut(topic, *number)?.1;
            slot.paused = paused;
            slot.bell.push();
        }
        Ok(())
    }

    /// How many offsets it is behind the end of what it may see, for each partition of which the position is known, and the
    /// end: where the store was opened with too few replicas, it may not be.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub fn lag(&self) -> Result<BTreeMap<TopicPartition, u64>> {
        self.store.check_open()?;
        let isolation = self.settings.isolation;
        let ends = self.slots.values().filter(|slot| slot.partition.knows_acknowledged());
        let known = ends.filter_map(|slot| {
            let behind = slot.end(isolation).0.saturating_sub(slot.position()?.0);
            Some((slot.partition.name().clone(), behind))
        });
        Ok(known.collect())
    }

    /// For each of these partitions the first offset that is not older than the time beside it; those that have none
    /// that the consumer may see are left out. They need not be assigned.
    ///
    /// # Errors
    /// [`Error::UnknownTopicOrPartition`]; [`Error::Corrupt`] if damage is in the way; [`Error::TimedOut`] as for
    /// [`Consumer::seek_to_end`].
    pub fn offsets_for_times(
        &self,
        times: &[(&str, u32, Timestamp)],
    ) -> Result<BTreeMap<TopicPartition, Offset>> {
        let (mut found, started) = (BTreeMap::new(), Instant::now());
        for (topic, number, time) in times {
            let partition = self.store.partition(topic, *number)?;
            let left = self.settings.api_timeout.saturating_sub(started.elapsed());
            partition.wait_for_acknowledged(left)?;
            let end = end_of(&partition, self.settings.isolation);
            if let Some(offset) = partition.offset_for_time(*time)?.filter(|offset| *offset < end) {
                found.insert(partition.name().clone(), offset);
            }
        }
        Ok(found)
    }
}
