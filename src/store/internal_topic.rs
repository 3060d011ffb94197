//! An internal topic: a table that the store keeps for itself, as a replicated log.
//!
//! One partition, on up to three disks. The last record of a key is what holds; whoever uses the table has all of it
//! in memory. So no cleaner is needed: when the log has outgrown the table, the table is written again at its
//! end, and what lies before goes (the order is kept by the caller's lock). A crash in between leaves both, which read
//! as the same table.
//!
//! Applications may read it; they cannot make, change, delete or append to topics whose names begin with `__`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{INTERNAL_PREFIX, Retention, TopicConfig};
use crate::error::{Error, Result};
use crate::log::Records;
use crate::partition::{Author, Core, Placed, ReadOptions, Wait, Waiting};
use crate::protocol::metadata::MetadataRecord;
use crate::record::Record;
use crate::types::{Acks, Offset};

use super::{Shared, Topic};

/// A log is not rewritten below this size: it is read in a moment.
const REWRITE_BYTES_MIN: u64 = 4 << 20;
/// The log may be this many times the table.
const REWRITE_FACTOR: u64 = 4;
/// About how many bytes of the table go into one batch.
const REWRITE_BATCH_BYTES: usize = 64 << 10;

type Key = Vec<u8>;
type Value = Vec<u8>;

/// The log of a table, and the table as bytes.
#[derive(Debug)]
pub(super) struct InternalTopic {
    topic: Arc<Topic>,
    core: Arc<Core>,
    table: HashMap<Key, Value>,
    table_bytes: u64,
    /// Bytes appended since the log's start.
    log_bytes: u64,
}

/// Records on their way, to be waited for without the table's lock.
#[derive(Debug)]
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
        Ok(Some(InternalTopic { topic, core, table: HashMap::new(), table_bytes: 0, log_bytes: 0 }))
    }

    /// As [`Shared::internal_topic`]; makes it if need be.
    ///
    /// # Errors
    /// Those of making a topic.
    pub(super) fn make_internal_topic(&self, name: &str) -> Result<InternalTopic> {
        if let Some(topic) = self.internal_topic(name)? {
            return Ok(topic);
        }
        let disks = u16::try_from(self.online_disks().len()).unwrap_or(u16::MAX);
        let config = TopicConfig::new()
            .partitions(1)
            .replication_factor(disks.min(3))
            .min_insync_replicas(if disks >= 3 { 2 } else { 1 })
            .retention(Retention::forever())
            .segment_bytes(64 << 20);
        match self.create_topic(name, config) {
            Ok(()) | Err(Error::TopicExists { .. }) => {}
            Err(error) => return Err(error),
        }
        self.internal_topic(name).map(|made| made.expect("it was made just now"))
    }
}

impl InternalTopic {
    /// Reads the log from its start to its end, in order. What is read is safe: on every replica that counts.
    ///
    /// # Errors
    /// [`Error::Corrupt`]: a table with a hole is none. [`Error::TimedOut`], [`Error::NoLeader`] when too few
    /// replicas are there to be sure of it.
    pub(super) fn replay(
        &mut self,
        shared: &Shared,
        mut take: impl FnMut(&[u8], Option<&[u8]>) -> Result<()>,
    ) -> Result<()> {
        let end = self.core.log_end();
        if end > self.core.log_start() {
            let last = Offset(end.0 - 1);
            let wait = Wait::new(last..end, Acks::All, self.core.leader_epoch());
            let core = &self.core;
            core.wait_settled(&wait, core.append_timeout(), &|| shared.settle_one(core))?;
        }
        let mut offset = self.core.log_start();
        while offset < end {
            let records = self.core.read(offset, &ReadOptions::new())?;
            if records.next_offset() == offset {
                return Err(Error::NoLeader { partition: self.core.partition().clone() });
            }
            offset = records.next_offset();
            self.take(&records, &mut take)?;
        }
        Ok(())
    }

    fn take(
        &mut self,
        records: &Records,
        take: &mut impl FnMut(&[u8], Option<&[u8]>) -> Result<()>,
    ) -> Result<()> {
        self.log_bytes += records.bytes() as u64;
        for record in records {
            let key = record.key().unwrap_or_default();
            take(key, record.value())?;
            self.put(key.to_vec(), record.value().map(<[u8]>::to_vec));
        }
        Ok(())
    }

    fn put(&mut self, key: Key, value: Option<Value>) {
        let bytes = |key: &Key, value: &Value| (key.len() + value.len()) as u64;
        if let Some((key, old)) = self.table.remove_entry(&key) {
            self.table_bytes -= bytes(&key, &old);
        }
        if let Some(value) = value {
            self.table_bytes += bytes(&key, &value);
            self.table.insert(key, value);
        }
    }

    /// Appends a record, and has the table hold it; `None` takes the key out. The caller keeps others away, so that
    /// the order of the log is that of the calls.
    ///
    /// # Errors
    /// As for an append: nothing was written.
    pub(super) fn begin(
        &mut self,
        shared: &Shared,
        key: Key,
        value: Option<Value>,
    ) -> Result<Begun> {
        let record = match &value {
            Some(value) => Record::new(value).key(&key),
            None => Record::tombstone(&key),
        };
        let begun = self.append(shared, None, &[record])?;
        self.log_bytes += (key.len() + value.as_ref().map_or(0, Vec::len) + 100) as u64;
        self.put(key, value);
        Ok(begun)
    }

    fn append(
        &self,
        shared: &Shared,
        author: Option<&Author>,
        records: &[Record<'_>],
    ) -> Result<Begun> {
        let core = &self.core;
        let mut placed = core.append_only(author, records, Acks::All);
        for _ in 0..core.replicas().len() {
            if !matches!(placed, Err(Error::NoLeader { .. })) {
                break;
            }
            shared.settle_one(core);
            placed = core.append_only(author, records, Acks::All);
        }
        let waiting = match placed? {
            Placed::Done(_) => None,
            Placed::Waits(waiting) => Some(waiting),
        };
        Ok(Begun { core: Arc::clone(core), waiting })
    }

    /// Writes the table again at the end of the log, if the log has outgrown it. The caller keeps others away.
    ///
    /// # Errors
    /// As for an append; what was written does no harm.
    pub(super) fn rewrite_if_due(&mut self, shared: &Shared) -> Result<Option<Rewritten>> {
        if self.log_bytes < REWRITE_BYTES_MIN.max(REWRITE_FACTOR * self.table_bytes) {
            return Ok(None);
        }
        let start = self.core.log_end();
        let (mut records, mut bytes) = (Vec::new(), 0);
        let mut last = None;
        let mut left = self.table.len();
        for (key, value) in &self.table {
            records.push(Record::new(value).key(key));
            bytes += key.len() + value.len();
            left -= 1;
            if bytes >= REWRITE_BATCH_BYTES || left == 0 {
                last = Some(self.append(shared, None, &records)?);
                (records, bytes) = (Vec::new(), 0);
            }
        }
        self.log_bytes = self.table_bytes + 100 * self.table.len() as u64;
        // An empty table needs no record to say so.
        let begun = last.unwrap_or(Begun { core: Arc::clone(&self.core), waiting: None });
        Ok(Some(Rewritten { topic: Arc::clone(&self.topic), begun, start }))
    }
}

impl Begun {
    /// Waits until the records are as safe as the topic's flush level gives.
    ///
    /// # Errors
    /// As for an append: they may be in the log.
    pub(super) fn wait(&self, shared: &Shared, timeout: Duration) -> Result<()> {
        let Some(Waiting { appended, epoch }) = &self.waiting else { return Ok(()) };
        let wait = Wait::new(appended.offsets.clone(), Acks::All, *epoch);
        self.core.wait_settled(&wait, timeout, &|| shared.settle_one(&self.core))
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
        let start = self.start.min(core.last_stable_offset());
        if start > core.log_start() {
            shared.metadata.lock().commit(&MetadataRecord::LogStartRaised {
                id: self.topic.id,
                partition: core.partition().partition(),
                offset: start,
            })?;
            core.raise_log_start(start)?;
        }
        Ok(())
    }
}
