//! An internal topic: a table that the store keeps for itself, as a replicated log.
//!
//! One partition, on up to three disks. The last record of a key is what holds; whoever uses the table has all of it
//! in memory. So no cleaner is needed: when the log has outgrown the table, the table is written again at its
//! end, and what lies before goes (the order is kept by the caller's lock). A crash in between leaves both, which read
//! as the same table: a record that was written again says in a header where it was first, so that one of a
//! transaction, written before and decided after, is still known to be newer. What an open transaction has written stays.
//!
//! Applications may read it; they cannot make, change, delete or append to topics whose names begin with `__`.

use std::sync::Arc;
use std::time::Duration;

use crate::config::{INTERNAL_PREFIX, Retention, TopicConfig, TopicUpdate, is_internal};
use crate::error::{Error, Result};
use crate::partition::{Author, Core, Placed, Wait, Waiting};
use crate::protocol::metadata::MetadataRecord;
use crate::record::{MARKER_COMMIT, Record};
use crate::segment::batches::Batches;
use crate::types::{Acks, Flush, LeaderEpoch, Offset, Outcome, ProducerId};

use super::{Shared, Topic};

/// A log is not rewritten below this size: it is read in a moment.
const REWRITE_BYTES_MIN: u64 = 4 << 20;
/// The log may be this many times the table.
const REWRITE_FACTOR: u64 = 4;
/// About how many bytes of the table go into one batch.
const REWRITE_BATCH_BYTES: usize = 64 << 10;
/// What an entry takes in the log besides its key and value, about.
const ENTRY_BYTES: u64 = 100;
const READ_BYTES: usize = 1 << 20;
/// The header of a record that was written again: the offset that it had first, u64.
const FIRST_AT: &str = "at";

/// The log of a table.
#[derive(Debug)]
pub(super) struct InternalTopic {
    topic: Arc<Topic>,
    core: Arc<Core>,
    /// Bytes appended since the log's start, about.
    log_bytes: u64,
    /// Bytes of the table when it was last written again, about.
    table_bytes: u64,
}

/// What the log says, in its order.
#[derive(Debug)]
pub(super) enum Entry<'a> {
    Record {
        /// Its offset, or the one that it had before it was written again.
        at: Offset,
        /// Whose transaction it belongs to.
        transaction: Option<ProducerId>,
        key: &'a [u8],
        value: Option<&'a [u8]>,
    },
    /// A producer's transaction ended.
    Marker { producer: ProducerId, outcome: Outcome },
}

/// A record of the table, as it is written again.
#[derive(Debug)]
pub(super) struct Live {
    /// Where it is, or was first.
    pub(super) at: Offset,
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
}

/// Records on their way, to be waited for without the table's lock.
#[derive(Clone, Debug)]
pub(super) struct Begun {
    core: Arc<Core>,
    waiting: Option<Waiting>,
}

/// A table that was written again, and where what lies before it ends.
#[derive(Debug)]
pub(super) struct Rewritten {
    topic: Arc<Topic>,
    begun: Begun,
    start: Offset,
}

impl Shared {
    /// The internal topic of that name, empty of knowledge yet; `None` if it was never made.
    ///
    /// # Errors
    /// What opening its log runs into.
    pub(super) fn internal_topic(&self, name: &str) -> Result<Option<InternalTopic>> {
        debug_assert!(name.starts_with(INTERNAL_PREFIX), "an internal topic is known by its name");
        let Some(topic) = self.topics.read().get(name).map(Arc::clone) else { return Ok(None) };
        let slot = topic.slots.read().first().map(Arc::clone);
        let slot = slot.expect("a topic has a partition");
        let core = self.open_core(&topic, &slot)?;
        Ok(Some(InternalTopic { topic, core, log_bytes: 0, table_bytes: 0 }))
    }

    /// Those that have been made.
    fn internal_topics(&self) -> Vec<Arc<Topic>> {
        let topics = self.topics.read();
        topics.values().filter(|topic| is_internal(&topic.name)).cloned().collect()
    }

    /// Has the internal topics flushed at least as strictly as `flush`, from now on.
    ///
    /// # Errors
    /// What making that durable runs into, and what they held before.
    pub(super) fn tighten_internal_topics(&self, flush: Flush) -> Result<()> {
        for topic in self.internal_topics() {
            let written = {
                let metadata = self.metadata.lock();
                metadata.state().topic_by_name(&topic.name).map(|known| known.config.flush)
            };
            if written.is_some_and(|written| flush.exposure() < written.exposure()) {
                self.alter_internal(&topic, &TopicUpdate::new().flush(flush))?;
            }
        }
        Ok(())
    }

    /// Changes the settings of an internal topic.
    ///
    /// What the metadata say of its flush level, the next opening believes of all that was acknowledged in it. So it goes by a
    /// stricter one, and what it has is on stable storage, before they say so. It goes on by that where they cannot say so: they
    /// may have.
    fn alter_internal(&self, topic: &Topic, update: &TopicUpdate) -> Result<()> {
        let _altering = self.altering_internal.lock();
        let flush = {
            let _metadata = self.metadata.lock();
            let mut config = topic.config.write();
            // No less strict than what the metadata may say since a change that failed.
            let flush = update.apply(&config).flush.stricter(config.flush);
            *config = Arc::new(TopicUpdate::new().flush(flush).apply(&config));
            flush
        };
        self.pass_settings(topic);
        if flush == Flush::OnAck {
            let slots = topic.slots.read().clone();
            for slot in slots {
                let core = slot.core.lock().clone();
                core.map_or(Ok(()), |core| core.make_durable())?;
            }
        }
        self.alter(topic, update)
    }

    /// Has all of them flushed like the strictest.
    fn match_internal_topics(&self) -> Result<()> {
        let levels = self.internal_topics().into_iter().map(|topic| topic.config.read().flush);
        levels.reduce(Flush::stricter).map_or(Ok(()), |flush| self.tighten_internal_topics(flush))
    }

    /// One that was made when internal topics went by the store's defaults may be too narrow for what its table writes.
    fn widen(&self, topic: &Topic) -> Result<()> {
        let bytes = TopicConfig::new().max_batch_bytes;
        if topic.config.read().max_batch_bytes < bytes {
            self.alter_internal(topic, &TopicUpdate::new().max_batch_bytes(bytes))?;
        }
        Ok(())
    }

    /// As [`Shared::internal_topic`]; makes it if need be. Its settings are its own, but for the flush level: the store's
    /// defaults are for what applications write.
    ///
    /// # Errors
    /// Those of making a topic.
    pub(super) fn make_internal_topic(&self, name: &str) -> Result<InternalTopic> {
        // Who wants it has written nothing yet.
        self.make_or_widen(name).map_err(Error::of_others)
    }

    fn make_or_widen(&self, name: &str) -> Result<InternalTopic> {
        if let Some(topic) = self.internal_topic(name)? {
            self.widen(topic.topic())?;
            return Ok(topic);
        }
        // A decision is as safe as what it decides about, and as what else is decided with it.
        let others = self.internal_topics();
        let flush = others
            .iter()
            .map(|topic| topic.config.read().flush)
            .fold(self.options.topic_defaults.flush, Flush::stricter);
        let disks = u16::try_from(self.online_disks().len()).unwrap_or(u16::MAX);
        let config = TopicConfig::new()
            .partitions(1)
            .replication_factor(disks.min(3))
            .min_insync_replicas(if disks >= 3 { 2 } else { 1 })
            .flush(flush)
            .retention(Retention::forever())
            .segment_bytes(64 << 20);
        match self.create_topic(name, config) {
            Ok(()) | Err(Error::TopicExists { .. }) => {}
            Err(error) => return Err(error),
        }
        // Who made the others stricter meanwhile did not know this one.
        self.match_internal_topics()?;
        self.internal_topic(name).map(|made| made.expect("it was made just now"))
    }
}

/// Waits until all that is in the log is on every replica that counts. Returns its end.
///
/// # Errors
/// [`Error::TimedOut`], [`Error::NoLeader`] when too few replicas are there to be sure of it.
pub(super) fn safe_end(shared: &Shared, core: &Arc<Core>, patience: Duration) -> Result<Offset> {
    let end = core.log_end();
    if end > core.log_start() {
        let last = Offset(end.0 - 1);
        let wait = Wait::new(last..end, Acks::All, core.leader_epoch());
        let settled = core.wait_settled(&wait, patience, &|| shared.settle_one(core));
        settled.map_err(Error::of_others)?;
    }
    Ok(end)
}

impl InternalTopic {
    /// Reads the log from its start to `end`, in order: as far as it is safe.
    ///
    /// # Errors
    /// [`Error::Corrupt`]: a table with a hole is none. [`Error::NoLeader`].
    pub(super) fn replay(
        &mut self,
        end: Offset,
        mut take: impl FnMut(Entry<'_>) -> Result<()>,
    ) -> Result<()> {
        self.log_bytes = 0;
        let mut offset = self.core.log_start();
        while offset < end {
            let Some(fetched) = self.core.read_batches(offset, READ_BYTES)? else {
                return Err(Error::NoLeader { partition: self.core.partition().clone() });
            };
            self.log_bytes += fetched.bytes.len() as u64;
            for (header, mut records) in Batches::new(&fetched) {
                if header.control {
                    let committed = header.base_sequence == MARKER_COMMIT;
                    let outcome = if committed { Outcome::Committed } else { Outcome::Aborted };
                    take(Entry::Marker { producer: header.producer_id, outcome })?;
                    continue;
                }
                if header.base_offset < offset {
                    records.skip_to(offset);
                }
                for record in records {
                    let first = record.header(FIRST_AT).and_then(|at| at.first_chunk());
                    let at = first.map_or(record.offset(), |at| Offset(u64::from_le_bytes(*at)));
                    take(Entry::Record {
                        at: at.min(record.offset()),
                        transaction: header.transactional.then_some(header.producer_id),
                        key: record.key().unwrap_or_default(),
                        value: record.value(),
                    })?;
                }
            }
            offset = fetched.next;
        }
        Ok(())
    }

    /// Where the log is.
    pub(super) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    pub(super) fn topic(&self) -> &Arc<Topic> {
        &self.topic
    }

    /// Appends a record that is waited for at once; no value takes the key out. The caller keeps others away, so that the
    /// order of the log is that of the calls.
    ///
    /// # Errors
    /// As for an append: nothing was written.
    pub(super) fn begin(
        &mut self,
        shared: &Shared,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Result<Begun> {
        let record = match value {
            Some(value) => Record::new(value).key(key),
            None => Record::tombstone(key),
        };
        let records = [record];
        self.grow(&records);
        let append = |core: &Core| core.append_to_wait(None, &records, Acks::All);
        shared.placed_by_any(&self.core, append).map(|placed| self.begun(placed))
    }

    /// Appends records as one batch; the caller keeps others away, and waits.
    ///
    /// # Errors
    /// As for an append.
    pub(super) fn append(
        &mut self,
        shared: &Shared,
        author: Option<&Author>,
        records: &[Record<'_>],
    ) -> Result<Placed> {
        self.grow(records);
        shared.placed_by_any(&self.core, |core| core.append_only(author, records, Acks::All))
    }

    fn grow(&mut self, records: &[Record<'_>]) {
        let size = |field: Option<&[u8]>| field.map_or(0, <[u8]>::len) as u64;
        let bytes = records.iter().map(|record| size(record.key) + size(record.value));
        self.log_bytes += bytes.sum::<u64>() + ENTRY_BYTES;
    }

    fn begun(&self, placed: Placed) -> Begun {
        let waiting = match placed {
            Placed::Done(_) => None,
            Placed::Waits(waiting) => Some(waiting),
        };
        Begun { core: Arc::clone(&self.core), waiting }
    }

    /// Whether the log has outgrown the table.
    pub(super) fn rewrite_is_due(&self) -> bool {
        self.log_bytes >= REWRITE_BYTES_MIN.max(REWRITE_FACTOR * self.table_bytes)
    }

    /// Writes the table again at the end of the log, whose leader of `epoch` has all that is in it: another may lack some of
    /// that, and is not to get it back. The caller keeps others away until it has handed over all.
    ///
    /// # Errors
    /// As for an append; what was written does no harm.
    pub(super) fn rewrite(
        &mut self,
        epoch: LeaderEpoch,
        table: impl Iterator<Item = Live>,
    ) -> Result<Rewritten> {
        // What a transaction that is open now has written is not in the table.
        let start = self.core.log_end().min(self.core.last_stable_offset());
        let (mut batch, mut bytes, mut total) = (Vec::new(), 0, 0);
        let mut last = None;
        let mut table = table.peekable();
        while let Some(live) = table.next() {
            bytes += live.key.len() + live.value.len();
            batch.push(live);
            if bytes >= REWRITE_BATCH_BYTES || table.peek().is_none() {
                let places: Vec<_> = batch.iter().map(|live| live.at.0.to_le_bytes()).collect();
                let records: Vec<_> = batch
                    .iter()
                    .zip(&places)
                    .map(|(live, at)| Record::new(&live.value).key(&live.key).header(FIRST_AT, at))
                    .collect();
                self.grow(&records);
                last = Some(self.core.append_under(epoch, &records, Acks::All)?);
                total += bytes as u64 + ENTRY_BYTES;
                (batch, bytes) = (Vec::new(), 0);
            }
        }
        // Another leader may lack what the one before took: what lies before has to stay.
        if self.core.leader_epoch() != epoch {
            return Err(Error::late("writing a table again under one leader", Duration::ZERO));
        }
        (self.log_bytes, self.table_bytes) = (total, total);
        // An empty table needs no record to say so.
        let begun = match last {
            Some(placed) => self.begun(placed),
            None => Begun { core: Arc::clone(&self.core), waiting: None },
        };
        Ok(Rewritten { topic: Arc::clone(&self.topic), begun, start })
    }
}

impl Begun {
    /// Whether there is anything to wait for.
    pub(super) fn waits(&self) -> bool {
        self.waiting.is_some()
    }

    /// Waits until the records are as safe as the topic's flush level gives.
    ///
    /// # Errors
    /// As for an append: they may be in the log.
    pub(super) fn wait(&self, shared: &Shared, timeout: Duration) -> Result<()> {
        let Some(Waiting { appended, epoch }) = &self.waiting else { return Ok(()) };
        let wait = Wait::new(appended.offsets.clone(), Acks::All, *epoch);
        shared.while_open(timeout, |span| {
            self.core.wait_settled(&wait, span, &|| shared.settle_one(&self.core))
        })
    }
}

impl Rewritten {
    /// Waits until the new table is safe, then lets go of what lies before it.
    ///
    /// # Errors
    /// As for an append and for deleting records; nothing is lost then.
    pub(super) fn finish(&self, shared: &Shared, timeout: Duration) -> Result<()> {
        self.begun.wait(shared, timeout)?;
        let core = &self.begun.core;
        if self.start > core.log_start() {
            // What goes was on stable storage, mostly: a power loss must find it there, in one place or the other.
            core.make_durable()?;
            shared.remember_before(core, self.start)?;
            shared.metadata.lock().commit(&MetadataRecord::LogStartRaised {
                id: self.topic.id,
                partition: core.partition().partition(),
                offset: self.start,
            })?;
            core.raise_log_start(self.start)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::thread;

    use super::*;
    use crate::storage::simulated::{Fault, Hang, SimDisk};
    use crate::store::{Store, StoreBuilder};
    use crate::types::DiskId;

    /// What it holds by now, whoever leads.
    fn keys_of(shared: &Shared, topic: &mut InternalTopic) -> BTreeSet<Vec<u8>> {
        let mut found = BTreeSet::new();
        let end = safe_end(shared, topic.core(), Duration::from_secs(10)).unwrap();
        let read = topic.replay(end, |entry| {
            if let Entry::Record { key, .. } = entry {
                found.insert(key.to_vec());
            }
            Ok(())
        });
        read.unwrap();
        found
    }

    /// The next leader lacked a part of what was written again, and got the rest of it: what lay before went all the same.
    #[test]
    fn a_table_that_is_written_again_under_two_leaders_replaces_nothing() {
        let disks: Vec<_> = (1..=3).map(SimDisk::new).collect();
        let all = |builder: StoreBuilder, disk: &SimDisk| builder.simulated_disk(disk.clone());
        let builder = disks.iter().fold(Store::builder().flush(Flush::OnAck), all);
        let store = builder.threads().open().unwrap();
        let shared = store.shared();
        // It has two replicas: the third disk is for the metadata alone.
        store.stop_disk(DiskId(2)).unwrap();
        let mut topic = shared.make_internal_topic("__table").unwrap();
        store.start_disk(DiskId(2)).unwrap();
        let keys: BTreeSet<_> = (0..60_u8).map(|key| vec![key]).collect();
        let value = vec![7; 60 << 10];
        for key in &keys {
            let begun = topic.begin(shared, key, Some(&value)).unwrap();
            begun.wait(shared, Duration::from_secs(10)).unwrap();
        }
        let leader = usize::from(topic.core().leader().unwrap().0);
        let follower = disks[1 - leader].clone();
        follower.hang(Hang::Everything);
        let live = keys.iter().map(|key| {
            if key[0] == 55 {
                // By now the follower has no space at hand, and lags.
                disks[leader].fail_from(1, Fault::Eio);
                let follower = follower.clone();
                thread::spawn(move || {
                    thread::sleep(Duration::from_millis(1500));
                    follower.answer();
                });
            }
            Live { at: Offset::ZERO, key: key.clone(), value: value.clone() }
        });
        let rewritten = topic.rewrite(topic.core().leader_epoch(), live);
        if let Ok(rewritten) = rewritten {
            rewritten.finish(shared, Duration::from_secs(10)).unwrap();
        }
        while topic.core().leader().is_none_or(|disk| usize::from(disk.0) == leader) {
            thread::yield_now();
        }
        let found = keys_of(shared, &mut topic);
        assert_eq!(found, keys);
    }

    /// The metadata may say since then that all of it is flushed at once, and the next opening would believe it.
    #[test]
    fn a_topic_that_may_be_flushed_at_once_for_the_metadata_is_so_until_they_say_otherwise() {
        let disk = SimDisk::new(1);
        let builder = Store::builder().flush(Flush::Os).simulated_disk(disk.clone());
        let store = builder.open().unwrap();
        let shared = store.shared();
        let table = shared.make_internal_topic("__table").unwrap();
        let level = || table.topic().config.read().flush;
        assert_eq!(level(), Flush::Os);
        disk.fail_from(1, Fault::Eio);
        shared.tighten_internal_topics(Flush::OnAck).unwrap_err();
        assert_eq!(level(), Flush::OnAck);
        shared.tighten_internal_topics(Flush::Interval(Duration::from_secs(1))).unwrap_err();
        assert_eq!(level(), Flush::OnAck);
    }

    /// The next leader lacked what its table had besides, and got it with the rest of what was written again.
    #[test]
    fn what_another_leader_lacks_is_not_written_to_it_amid_the_rest() {
        let disks: Vec<_> = (1..=3).map(SimDisk::new).collect();
        let all = |builder: StoreBuilder, disk: &SimDisk| builder.simulated_disk(disk.clone());
        let store = disks.iter().fold(Store::builder(), all).open().unwrap();
        let shared = store.shared();
        let mut topic = shared.make_internal_topic("__table").unwrap();
        let value = vec![7; 60 << 10];
        let begun = topic.begin(shared, b"0", Some(&value)).unwrap();
        begun.wait(shared, Duration::from_secs(10)).unwrap();
        let leader = topic.core().leader().unwrap();
        let lost = [b'1', b'2', b'3'];
        let live = b"0".iter().chain(&lost).map(|key| {
            if *key == lost[2] {
                store.stop_disk(leader).unwrap();
            }
            Live { at: Offset::ZERO, key: vec![*key], value: value.clone() }
        });
        assert!(topic.rewrite(topic.core().leader_epoch(), live).is_err());
        assert_ne!(topic.core().leader(), Some(leader));
        let found = keys_of(shared, &mut topic);
        assert!(!found.contains(&[lost[2]][..]), "{found:?}");
    }
}
