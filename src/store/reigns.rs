//! Making changes of leaders and in-sync sets durable, and telling the partitions.
//!
//! All partitions that ask are settled together: their changes are one write of the metadata. Whoever
//! waits for a change settles it himself, so that a failure costs an append no hand-off; the control
//! thread does it for those for whom nobody waits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::error::Error;
use crate::partition::{Core, EventKind, Proposal, postpone};
use crate::protocol::metadata::MetadataRecord;
use crate::types::{TopicId, TopicPartition};

use super::Shared;
use super::background::apart;
use super::disks::StoreDisk;
use super::session::bit_of;

/// How long an election waits for what its candidates are still to get.
const DRAIN_PATIENCE: Duration = Duration::from_millis(500);

/// The records of a proposal.
pub(super) fn records_of(
    id: TopicId,
    partition: &TopicPartition,
    proposal: &Proposal,
) -> Vec<MetadataRecord> {
    let number = partition.partition();
    let mut records: Vec<_> = proposal
        .suspects
        .iter()
        .map(|(disk, durable)| MetadataRecord::ReplicaSuspect {
            id,
            partition: number,
            disk: *disk,
            durable: *durable,
        })
        .collect();
    records.push(MetadataRecord::LeaderChanged {
        id,
        partition: number,
        leader: proposal.leader,
        epoch: proposal.epoch,
        isr: proposal.isr.clone(),
        eligible: proposal.eligible.clone(),
        start: proposal.start,
        high_watermark: proposal.high_watermark,
    });
    records
}

impl Shared {
    /// Settles whatever partitions have asked for.
    pub(super) fn settle_reigns(&self) {
        let queued = self.control.take();
        for core in &queued {
            core.control_taken();
        }
        self.settle(&queued);
    }

    /// Settles one partition, for whoever waits for it.
    pub(super) fn settle_one(&self, core: &Arc<Core>) {
        self.settle(std::slice::from_ref(core));
        self.settle_reigns();
    }

    fn settle(&self, cores: &[Arc<Core>]) {
        if cores.is_empty() {
            return;
        }
        self.drain(cores);
        let _postponed = postpone();
        let mut metadata = self.metadata.lock();
        let (now, doubts_ended) = (self.clock.now(), metadata.doubts_ended());
        let (mut records, mut proposals, mut noted) = (Vec::new(), Vec::new(), Vec::new());
        for core in cores {
            let topic = self.topic_of(core);
            let (Some(topic), Some(proposal)) = (topic, core.proposal(doubts_ended)) else {
                continue;
            };
            let number = core.partition().partition();
            let known = metadata.state().partition(topic.id, number);
            if let Some(known) = known
                && known.replicas.len() == 1
                && proposal.start.is_none()
            {
                // One replica: what is to be remembered is that its tail is not to be believed.
                let new = |record: &MetadataRecord| {
                    matches!(record, MetadataRecord::ReplicaSuspect { disk, .. }
                        if !known.suspects.contains_key(disk))
                };
                records.extend(
                    records_of(topic.id, core.partition(), &proposal).into_iter().filter(new),
                );
                noted.push((Arc::clone(core), proposal));
                continue;
            }
            records.extend(records_of(topic.id, core.partition(), &proposal));
            proposals.push((Arc::clone(core), proposal));
        }
        self.make_pages(&proposals);
        match metadata.commit_all(&records) {
            Ok(()) => {
                for (core, proposal) in proposals {
                    core.install(proposal, now);
                    core.show_reign();
                    self.look_at_transactions_of(&core);
                }
            }
            Err(error) => {
                for (core, proposal) in proposals.into_iter().chain(noted) {
                    core.refuse(&proposal, &error, metadata.doubts_ended());
                }
            }
        }
        drop(metadata);
        self.lose_failed_disks();
    }

    /// Makes the pages of those that are to lead: where the metadata name one that has none, readers in other processes believe
    /// what they find in its files.
    fn make_pages(&self, proposals: &[(Arc<Core>, Proposal)]) {
        let mut pages = BTreeMap::<_, Vec<_>>::new();
        for page in proposals.iter().filter_map(|(core, proposal)| core.next_page(proposal)) {
            pages.entry(page.disk).or_default().push(page);
        }
        let disks: Vec<_> = pages.keys().filter_map(|disk| self.online_disk(*disk)).collect();
        // They are a service to others: who cannot make them leads all the same.
        self.on_each(&disks, DRAIN_PATIENCE, move |disk| {
            pages.get(&disk.id).into_iter().flatten().for_each(|page| _ = page.make());
        });
    }

    /// Has leaders that others are to follow copied to those, before anything is decided. What takes calls to disks, which
    /// may hang, is waited for a moment.
    fn drain(&self, cores: &[Arc<Core>]) {
        let now = self.clock.now();
        let mut left = BTreeMap::<_, Vec<_>>::new();
        for core in cores {
            for disk in core.undrained(now) {
                left.entry(disk).or_default().push(Arc::clone(core));
            }
        }
        let threads = self.workers.lock().is_some();
        let (sender, drained) = channel();
        for (disk, cores) in left {
            let all = move || cores.iter().for_each(|core| core.drain(disk, now));
            if !threads {
                all();
                continue;
            }
            let done = sender.clone();
            apart(move || {
                all();
                drop(done);
            });
        }
        drop(sender);
        // An end of the channel is an end of the copying.
        let _: Result<(), _> = drained.recv_timeout(DRAIN_PATIENCE);
    }

    /// Disks that failed to take a change of the metadata, whoever made it, take no part in anything any more.
    pub(super) fn lose_failed_disks(&self) {
        let failed = self.metadata.lock().take_failed();
        for (id, error) in failed {
            if let Some(disk) = self.disk(id) {
                self.lose_disk(&disk, &error);
            }
        }
    }

    /// A disk failed: its replicas are out of service, and others lead.
    pub(super) fn lose_disk(&self, disk: &Arc<StoreDisk>, cause: &Error) {
        if !disk.is_online() {
            return;
        }
        // Whoever asks the disk for something from here on waits until the partition does without it.
        disk.attention.abandon();
        self.note_offline(disk, &cause.to_string());
        self.take_no_changes(disk);
        for (_, core) in self.cores() {
            if core.has_replica_on(disk.id) {
                core.fence_replica(disk.id, cause);
            }
        }
        self.settle_reigns();
    }

    /// The disk takes no further change of the metadata. What it had of them until here, an older copy of it lacks that is put
    /// in its place.
    pub(super) fn take_no_changes(&self, disk: &StoreDisk) {
        let mut metadata = self.metadata.lock();
        let (last, disks) = metadata.witnessed();
        if disks & bit_of(disk.id) != 0 {
            let mut session = disk.session.lock();
            (session.metadata, session.disks) = (last, disks);
        }
        metadata.remove_disk(disk.id);
    }

    /// Has the partitions do without disks that were taken out of service while they could not be told.
    pub(super) fn fence_left_behind(&self) {
        self.cores().iter().for_each(|(_, core)| core.fence_left_behind());
    }

    /// The disk is out of service from here on: its threads end, and its directory is let go of.
    pub(super) fn note_offline(&self, disk: &StoreDisk, cause: &str) {
        *disk.offline.lock() = Some(cause.to_owned());
        disk.attention.stop();
        disk.flushes.stop();
        disk.lock.lock().take();
        let kind = EventKind::DiskOffline { disk: disk.id, cause: cause.to_owned() };
        self.events.push(self.clock.now(), kind);
    }
}

#[cfg(test)]
mod tests;
