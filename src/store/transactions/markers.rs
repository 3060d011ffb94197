//! Markers: appended to the partitions' leaders like any batch, and what becomes of them.
//!
//! Those of an abort count once they are as safe as the partition's flush level gives; those of a commit at once, for the
//! decision is safe. When such a one is safe later, or lost, a report waits for whoever speaks to the coordinator next.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::partition::{Core, Placed, Ticket, postpone};
use crate::protocol::group::assignment::PartitionId;
use crate::protocol::transaction::lineage::{TransactionTag, Verdict};
use crate::protocol::transaction::messages::Event;
use crate::record::Marker;
use crate::types::{Acks, Outcome};

use super::{Job, Shared, State, Transactions};

/// Partitions that are found at once.
const CORES_KEPT_MAX: usize = 4096;

/// What became of markers that were appended, for whoever speaks to the coordinator next.
#[derive(Debug, Default)]
pub(super) struct Reports {
    events: Mutex<Vec<Event>>,
    /// There are some.
    any: AtomicBool,
}

impl Transactions {
    /// Appends the markers, all at once, and waits for those of an abort.
    pub(super) fn write_markers(
        &self,
        shared: &Arc<Shared>,
        tag: TransactionTag,
        outcome: Outcome,
        partitions: Vec<PartitionId>,
    ) -> Vec<Job> {
        let marker = Marker { producer: tag.producer, epoch: tag.epoch, outcome };
        // Whom a marker wakes may want a snapshot.
        let _postponed = postpone();
        let cut = self.cut.read();
        let begun: Vec<_> = partitions
            .into_iter()
            .map(|partition| (partition, self.begin_marker(shared, partition, &marker)))
            .collect();
        let (mut reports, mut unsafe_yet) = (Vec::with_capacity(begun.len()), Vec::new());
        let mut halves = Vec::new();
        for (partition, begun) in begun {
            let written = match begun {
                Ok(Some(ticket)) if outcome == Outcome::Committed => {
                    unsafe_yet.push((partition, ticket));
                    reports.push(Event::MarkerAppended { tag, partition });
                    continue;
                }
                Ok(Some(ticket)) => {
                    let timeout = shared.options.append_timeout;
                    shared.while_open(timeout, |span| ticket.wait(span).map(drop))
                }
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            if written.is_err() && outcome == Outcome::Committed {
                halves.push((tag, partition));
            }
            reports.push(match written {
                Ok(()) => Event::MarkerWritten { tag, partition },
                Err(_) => Event::MarkerFailed { tag, partition },
            });
        }
        let jobs = self.steps(shared, reports, None, |state| {
            // Somebody else may have succeeded meanwhile.
            state.halves.extend(halves);
            let State { halves, coordinator, .. } = state;
            halves.retain(|(tag, partition)| coordinator.lacks_marker(*tag, *partition));
            drop(cut);
        });
        for (partition, ticket) in unsafe_yet {
            // The store may not know its transactions yet: they begin with markers.
            let reports = Arc::clone(&self.reports);
            ticket.on_known(move |safe| {
                reports.push(match safe {
                    Ok(_) => Event::MarkerWritten { tag, partition },
                    Err(_) => Event::MarkerFailed { tag, partition },
                });
            });
        }
        jobs
    }

    /// Appends a marker. `None`: there is nothing to wait for, or the partition needs none, for it is gone or has a later
    /// transaction of the producer.
    fn begin_marker(
        &self,
        shared: &Arc<Shared>,
        partition: PartitionId,
        marker: &Marker,
    ) -> Result<Option<Ticket>> {
        let Some(core) = self.core_of(shared, partition)? else { return Ok(None) };
        let placed = match shared.groups_in(core.partition())? {
            Some(groups) => groups.append_marker(shared, marker),
            None => shared.placed_by_any(&core, |core| core.append_marker(marker, Acks::All)),
        };
        match placed {
            Ok(Placed::Done(_)) | Err(Error::UnknownTopicOrPartition { .. }) => Ok(None),
            Ok(placed) => Ok(Some(shared.ticket_of(&core, placed, Acks::All))),
            Err(Error::ProducerFenced { .. }) => Ok(None),
            Err(error) => {
                if let Error::InvalidTransactionState { .. } = &error {
                    // It lost the marker of an earlier one, which goes first.
                    self.changed.push(Arc::downgrade(&core));
                }
                Err(error)
            }
        }
    }

    /// As [`Shared::core_of`]; of a topic that is gone, maybe the one that was, which takes nothing any more.
    fn core_of(&self, shared: &Shared, partition: PartitionId) -> Result<Option<Arc<Core>>> {
        if let Some(core) = self.cores.lock().get(&partition).and_then(Weak::upgrade) {
            return Ok(Some(core));
        }
        let Some(core) = shared.core_of(partition)? else { return Ok(None) };
        let mut cores = self.cores.lock();
        if cores.len() >= CORES_KEPT_MAX {
            cores.clear();
        }
        cores.insert(partition, Arc::downgrade(&core));
        Ok(Some(core))
    }

    /// Whether the partition has lost the marker of a commit, and will have it again. Asked while the cut is held.
    pub(in crate::store) fn lost_marker(
        &self,
        tag: TransactionTag,
        partition: PartitionId,
    ) -> bool {
        let state = self.state.lock();
        let coordinator = &state.coordinator;
        coordinator.verdict(tag) == Verdict::Committed && !coordinator.awaits_marker(tag, partition)
    }

    /// Tells the coordinator what became of markers.
    pub(super) fn take_reports(&self, shared: &Arc<Shared>) {
        let events = self.reports.take();
        if !events.is_empty() {
            let jobs = self.steps(shared, events, None, |_| ());
            self.finish(shared, jobs);
        }
    }
}

impl Reports {
    /// May run under any lock but the coordinator's.
    fn push(&self, event: Event) {
        self.events.lock().push(event);
        self.any.store(true, Ordering::Release);
    }

    pub(super) fn take(&self) -> Vec<Event> {
        // One that comes in between is the next call's.
        if !self.any.swap(false, Ordering::AcqRel) {
            return Vec::new();
        }
        std::mem::take(&mut *self.events.lock())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::TRANSACTION_TOPIC;
    use super::*;
    use crate::config::TopicConfig;
    use crate::partition::{Author, ReadOptions};
    use crate::protocol::producer_state::batch::Numbering;
    use crate::record::Record;
    use crate::storage::Clock;
    use crate::storage::simulated::SimDisk;
    use crate::store::{Store, StoreBuilder};
    use crate::types::{Flush, Offset, ProducerSequence, Timestamp};

    /// It went to nobody: the marker lagged for ever, and after 32 more transactions its id was busy.
    #[test]
    fn what_becomes_of_a_marker_while_transactions_begin_is_told_to_them() {
        let clock = Clock::manual(Timestamp(1_000_000));
        let builder = Store::builder().flush(Flush::OnAck).clock(clock.clone());
        let store = builder.simulated_disk(SimDisk::new(1)).open().unwrap();
        store.create_topic("t", TopicConfig::new()).unwrap();
        let mut held = store.producer().transactional_id("id").build().unwrap();
        let mut transaction = held.begin().unwrap();
        transaction.append("t", 0, &[Record::new("x")]).unwrap();
        transaction.commit(Duration::from_secs(1)).unwrap();
        // As an opening after a crash does, which knows of nothing to be settled.
        let shared = store.shared();
        let topic = shared.make_internal_topic(TRANSACTION_TOPIC).unwrap();
        let (begun, jobs) = Transactions::load(shared, topic).unwrap();
        begun.finish(shared, jobs);
        assert!(begun.reports.take().is_empty());
        for _ in 0..30 {
            clock.advance(Duration::from_millis(20));
            store.run_background();
        }
        let told = begun.reports.take();
        assert!(matches!(told[..], [Event::MarkerWritten { .. }]), "{told:?}");
    }

    /// The attempt was noted after the one that succeeded: from then on there was no snapshot and no backup.
    #[test]
    fn a_marker_that_one_attempt_writes_is_not_lacked_for_another_that_failed() {
        let disks: Vec<_> = (1..=3).map(SimDisk::new).collect();
        let all = |builder: StoreBuilder, disk: &SimDisk| builder.simulated_disk(disk.clone());
        let store = disks.iter().fold(Store::builder(), all).open().unwrap();
        let config = TopicConfig::new().replication_factor(2).min_insync_replicas(2);
        store.create_topic("t", config).unwrap();
        let mut held = store.producer().transactional_id("id").build().unwrap();
        let mut transaction = held.begin().unwrap();
        let id = transaction.id();
        transaction.append("t", 0, &[Record::new("x")]).unwrap();
        transaction.commit(Duration::from_secs(1)).unwrap();
        store.run_background();
        let shared = store.shared();
        let partition = PartitionId { topic: shared.topic("t").unwrap().id, partition: 0 };
        store.stop_disk(store.partition("t", 0).unwrap().replicas()[1]).unwrap();
        let tag = TransactionTag { producer: id.producer, epoch: id.epoch };
        let transactions = shared.transactions().unwrap();
        let jobs = transactions.write_markers(shared, tag, Outcome::Committed, vec![partition]);
        transactions.finish(shared, jobs);
        store.snapshot(&[("t", 0)]).unwrap();
    }

    /// Else it would show what the transaction has elsewhere, and not what it has there.
    #[test]
    fn a_snapshot_waits_for_the_marker_that_one_of_its_partitions_has_lost() {
        let builder = Store::builder().flush(Flush::Os).simulated_disk(SimDisk::new(1));
        let store = builder.open().unwrap();
        store.create_topic("t", TopicConfig::new().partitions(2)).unwrap();
        let mut held = store.producer().transactional_id("id").build().unwrap();
        let mut transaction = held.begin().unwrap();
        let id = transaction.id();
        transaction.append("t", 0, &[Record::new("x")]).unwrap();
        transaction.commit(Duration::from_secs(1)).unwrap();
        // As in a partition whose leader went with the marker.
        let author = Author {
            producer: ProducerSequence { id: id.producer, epoch: id.epoch, sequence: 0 },
            transactional: true,
            strict: true,
            numbering: Numbering::Restarts,
            compression: None,
        };
        let partition = store.partition("t", 1).unwrap();
        partition.append_as(&author, &[Record::new("y")], Acks::All).unwrap();
        store.shared().look_at_transactions_of(partition.core().unwrap());
        let snapshot = store.snapshot(&[("t", 0), ("t", 1)]).unwrap();
        for number in 0..2 {
            let read = snapshot.read("t", number, Offset(0), ReadOptions::new()).unwrap();
            assert_eq!(read.count(), 1, "partition {number}");
        }
    }
}
