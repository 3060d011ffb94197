//! What was left open: by a crash, by partitions that were away, by leaders that changed.
//!
//! Decisions that are in the topic are carried out, and what partitions have open beside them is aborted. A partition that
//! cannot be looked at now is looked at when it can be opened, and led.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::error::Result;
use crate::partition::{Core, EventKind};
use crate::protocol::group::assignment::PartitionId;
use crate::protocol::producer_state::transactions::OpenTransaction;
use crate::protocol::transaction::lineage::TransactionTag;
use crate::protocol::transaction::messages::Event;
use crate::store::chores::Chore;
use crate::store::disks::StoreDisk;
use crate::types::{DiskId, TopicId};

use super::{Shared, TRANSACTION_TOPIC, Transactions, report};

/// After transactions could not be settled.
const SETTLE_AGAIN: Duration = Duration::from_secs(1);

/// Settles what could not be settled before.
#[derive(Debug)]
pub(in crate::store) struct Settler(Weak<Shared>);

impl Chore for Settler {
    fn run(self: Arc<Self>) {
        if let Some(shared) = self.0.upgrade() {
            shared.settle_transactions();
        }
    }
}

impl Shared {
    /// Settles what a crash has left, if the store has had transactions. What cannot be settled now, for want of
    /// replicas, is tried again every now and then, and before the first transaction begins.
    pub(in crate::store) fn settle_transactions(self: &Arc<Self>) {
        if !self.topics.read().contains_key(TRANSACTION_TOPIC) || self.transactions.get().is_some()
        {
            return;
        }
        let Err(error) = self.transactions() else { return };
        if self.closed.load(Ordering::Acquire) {
            return;
        }
        let reason = format!("settling transactions: {error}");
        self.events.push(self.clock.now(), EventKind::BackgroundFailed { partition: None, reason });
        if let Some(workers) = &mut *self.workers.lock()
            && let Err(error) = workers.start_chores(&self.chores)
        {
            report(self, "settling transactions", &error);
        }
        let settler = self.settler.get_or_init(|| Arc::new(Settler(Arc::downgrade(self))));
        let chore: Weak<dyn Chore> = Arc::downgrade(settler) as Weak<dyn Chore>;
        self.chores.push_at(self.clock.elapsed() + SETTLE_AGAIN, chore);
    }
}

impl Transactions {
    /// Reports what partitions have open: all of it is of before this opening.
    pub(super) fn find_open(&self, shared: &Arc<Shared>) {
        let topics: Vec<_> = shared.topics.read().values().cloned().collect();
        let online = shared.online_disks();
        let is_online = |id: &DiskId| online.iter().any(|disk| disk.id == *id);
        let mut unseen = BTreeSet::new();
        for topic in topics {
            let slots = topic.slots.read().clone();
            for slot in slots {
                let partition = slot.partition.partition();
                let key = (topic.id, partition);
                let in_use = slot.core.lock().clone();
                let knows = |disk: &Arc<StoreDisk>| {
                    disk.session.lock().ends.get(&key).is_some_and(|end| end.producers)
                };
                if in_use.is_none() && !online.iter().any(knows) {
                    let metadata = shared.metadata.lock();
                    let replicas = metadata.state().partition(topic.id, partition);
                    // Nothing is to be known of it, unless a disk is away that may know.
                    if replicas.is_none_or(|replicas| replicas.replicas.iter().all(is_online)) {
                        continue;
                    }
                }
                if let Ok(core) = in_use.map_or_else(|| shared.open_core(&topic, &slot), Ok) {
                    self.find_open_in(shared, topic.id, &core);
                    if core.leader().is_some() {
                        continue;
                    }
                }
                // It is looked at when it can be opened, and led.
                unseen.insert(PartitionId { topic: topic.id, partition });
            }
        }
        self.state.lock().coordinator.set_some_unseen(!unseen.is_empty());
        *self.unseen.lock() = unseen;
    }

    /// Looks at partitions that could not be looked at before.
    pub(super) fn find_unseen(&self, shared: &Arc<Shared>) {
        let unseen = self.unseen.lock().clone();
        if unseen.is_empty() {
            return;
        }
        let seen: Vec<_> = unseen.into_iter().filter(|at| self.is_seen(shared, *at)).collect();
        let mut unseen = self.unseen.lock();
        unseen.retain(|at| !seen.contains(at));
        if unseen.is_empty() {
            self.state.lock().coordinator.set_some_unseen(false);
        }
    }

    fn is_seen(&self, shared: &Arc<Shared>, at: PartitionId) -> bool {
        let Some(topic) = shared.topic_by_id(at.topic) else { return true };
        let slot = topic.slots.read().get(at.partition as usize).map(Arc::clone);
        let core = slot.and_then(|slot| slot.core.lock().clone());
        let Some(core) = core.filter(|core| core.leader().is_some()) else { return false };
        self.find_open_in(shared, topic.id, &core);
        true
    }

    pub(super) fn find_open_in(&self, shared: &Arc<Shared>, topic: TopicId, core: &Core) {
        let partition = PartitionId { topic, partition: core.partition().partition() };
        for open in core.open_transactions() {
            let tag = TransactionTag { producer: open.producer, epoch: open.epoch };
            self.run(shared, Event::Found { tag, partition });
        }
    }

    /// Sees to it that the producer's earlier transactions have their markers in the partition. False: they had.
    pub(crate) fn settle_earlier(
        &self,
        shared: &Arc<Shared>,
        tag: TransactionTag,
        partition: PartitionId,
    ) -> Result<bool> {
        let Some(core) = shared.core_of(partition)? else { return Ok(false) };
        let is_earlier =
            |open: &OpenTransaction| open.producer == tag.producer && open.epoch < tag.epoch;
        if !core.open_transactions().iter().any(is_earlier) {
            return Ok(false);
        }
        self.find_open_in(shared, partition.topic, &core);
        Ok(true)
    }

    /// A partition knows a later transaction than the holder's: a power loss took decisions of a store that does not
    /// flush them, and not what was written under them. The next holder begins behind it.
    pub(crate) fn learn(&self, shared: &Arc<Shared>, tag: TransactionTag, partition: PartitionId) {
        self.run(shared, Event::Found { tag, partition });
    }
}
