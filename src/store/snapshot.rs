//! Several partitions, as they were at one moment between transactions.
//!
//! While the cut is made no marker is written, so that every transaction has ended in all of its partitions or in none; one
//! that a leader has lost since is waited for.
//! What is open then is hidden for good, whatever becomes of it, and what was aborted before is hidden as always. So the end
//! of a partition is its high watermark at that moment, not its last stable offset: a transaction that stays open
//! elsewhere takes nothing away.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::log::Records;
use crate::partition::{Core, ReadOptions};
use crate::protocol::group::assignment::PartitionId;
use crate::protocol::producer_state::transactions::OpenTransaction;
use crate::protocol::transaction::lineage::TransactionTag;
use crate::types::{Offset, ProducerId, TopicPartition};

use super::transactions::{Patience, TRANSACTION_TOPIC};
use super::{Shared, Store, Transactions};

/// How long markers that are being written may keep a snapshot waiting.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Several partitions at one moment. Reads of it see each transaction in all of them or in none, however long ago it was
/// made. It keeps nothing: retention goes on, and what it deletes answers [`Error::OffsetOutOfRange`].
#[derive(Clone, Debug)]
pub struct Snapshot {
    parts: BTreeMap<TopicPartition, Part>,
    /// Keeps it open.
    _store: Store,
}

#[derive(Clone, Debug)]
struct Part {
    core: Arc<Core>,
    end: Offset,
    /// Where transactions began that were open.
    open: Arc<HashMap<ProducerId, Offset>>,
}

impl Store {
    /// Takes a snapshot of these partitions. Appends and transactions go on; their ends wait for a moment.
    ///
    /// # Errors
    /// [`Error::UnknownTopicOrPartition`]; [`Error::TimedOut`] while a transaction has ended in some of its partitions and
    /// cannot in others, or while it is not known how far a partition was acknowledged, since the store was opened with too few
    /// of its replicas; [`Error::ReadOnly`] in a store that another process owns.
    ///
    /// # Examples
    /// ```
    /// use oncelog::{Offset, ReadOptions, Record, Store, TopicConfig};
    /// use std::time::Duration;
    /// let store = Store::in_memory(1)?;
    /// store.create_topic("accounts", TopicConfig::new().partitions(2))?;
    /// let transfer: [(&str, u32, &[Record]); 2] =
    ///     [("accounts", 0, &[Record::new("-5")]), ("accounts", 1, &[Record::new("+5")])];
    /// store.append_atomic(&transfer, Duration::from_secs(10))?;
    ///
    /// let snapshot = store.snapshot(&[("accounts", 0), ("accounts", 1)])?;
    /// store.append_atomic(&transfer, Duration::from_secs(10))?;
    /// for partition in 0..2 {
    ///     let records = snapshot.read("accounts", partition, Offset(0), ReadOptions::new())?;
    ///     assert_eq!(records.count(), 1);
    /// }
    /// # Ok::<(), oncelog::Error>(())
    /// ```
    pub fn snapshot(&self, partitions: &[(&str, u32)]) -> Result<Snapshot> {
        let shared = self.shared();
        shared.check_writable()?;
        let mut cores = BTreeMap::new();
        for (topic, number) in partitions {
            let partition = self.partition(topic, *number)?;
            let core = partition.core().map(Arc::clone).ok_or(Error::ReadOnly)?;
            let id = PartitionId { topic: partition.topic_id(), partition: *number };
            cores.insert(partition.name().clone(), (id, core));
        }
        for (_, core) in cores.values() {
            shared.wait_for_acknowledged(core, SETTLE_TIMEOUT)?;
        }
        let known = shared.topics.read().contains_key(TRANSACTION_TOPIC);
        let parts = if known {
            shared.transactions()?.cut(shared, &cores)?
        } else {
            // There has been no transaction, and none begins meanwhile.
            let _beginning = shared.beginning.lock();
            match shared.known_transactions() {
                None => cut(&cores, |_, _| false).expect("no marker can be lost"),
                Some(transactions) => transactions.cut(shared, &cores)?,
            }
        };
        Ok(Snapshot { parts, _store: self.clone() })
    }
}

impl Shared {
    /// Waits until the partition can be cut with all that was acknowledged.
    pub(super) fn wait_for_acknowledged(&self, core: &Core, timeout: Duration) -> Result<()> {
        // Without threads, nobody is at work meanwhile.
        let timeout = if self.options.background { timeout } else { Duration::ZERO };
        core.wait_for_acknowledged(timeout)
    }
}

impl Transactions {
    fn cut(&self, shared: &Arc<Shared>, cores: &Cores) -> Result<Parts> {
        let mut patience = Patience::new(shared, SETTLE_TIMEOUT);
        loop {
            {
                let _cut = self.hold(shared, SETTLE_TIMEOUT)?;
                let lost = |open: &OpenTransaction, partition| {
                    let tag = TransactionTag { producer: open.producer, epoch: open.epoch };
                    self.lost_marker(tag, partition)
                };
                if let Some(parts) = cut(cores, lost) {
                    return Ok(parts);
                }
            }
            if !patience.lasts() {
                let what = "waiting for a transaction whose partitions are not all there";
                let timeout = SETTLE_TIMEOUT;
                return Err(Error::late(what, timeout));
            }
            self.pause(shared)?;
        }
    }
}

type Cores = BTreeMap<TopicPartition, (PartitionId, Arc<Core>)>;
type Parts = BTreeMap<TopicPartition, Part>;

/// `None`: a partition has `lost` the end of a transaction that others have.
fn cut(cores: &Cores, lost: impl Fn(&OpenTransaction, PartitionId) -> bool) -> Option<Parts> {
    let parts = cores.iter().map(|(name, (partition, core))| {
        // In this order: what begins in between begins behind the end.
        let end = core.high_watermark();
        let open = core.open_transactions();
        if open.iter().any(|open| lost(open, *partition)) {
            return None;
        }
        let open = open.into_iter().map(|open| (open.producer, open.first));
        let part = Part { core: Arc::clone(core), end, open: Arc::new(open.collect()) };
        Some((name.clone(), part))
    });
    parts.collect()
}

impl Snapshot {
    /// The end of the partition at that moment: what is below it and belongs to no transaction, or to a committed one, is
    /// in the snapshot.
    ///
    /// # Errors
    /// [`Error::UnknownTopicOrPartition`] for one that is not in the snapshot.
    pub fn end(&self, topic: &str, partition: u32) -> Result<Offset> {
        self.part(topic, partition).map(|part| part.end)
    }

    /// As [`Partition::read`](crate::Partition::read) of what is in the snapshot; which isolation `options` ask for makes
    /// no difference.
    ///
    /// # Errors
    /// As there; [`Error::UnknownTopicOrPartition`] for a partition that is not in the snapshot.
    pub fn read(
        &self,
        topic: &str,
        partition: u32,
        offset: Offset,
        options: ReadOptions,
    ) -> Result<Records> {
        let Part { core, end, open } = self.part(topic, partition)?;
        core.read_cut(offset, *end, open, options).map(Records::of)
    }

    fn part(&self, topic: &str, partition: u32) -> Result<&Part> {
        let name = TopicPartition::new(topic, partition);
        self.parts.get(&name).ok_or(Error::UnknownTopicOrPartition { partition: name })
    }
}
