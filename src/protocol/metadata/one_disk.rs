//! A store's metadata as a copy of it on one disk has them.

use std::collections::BTreeMap;

use crate::types::{DiskId, LeaderEpoch, Offset, TopicId};

use super::super::replication::EpochHistory;
use super::{DiskState, MetadataState};

/// What a copy has of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copied {
    pub(crate) start: Offset,
    pub(crate) end: Offset,
}

impl MetadataState {
    /// The same topics, producers and numbers, with each partition's only replica on `disk` and as long as `logs` says.
    /// Where there were several replicas, a new reign begins behind what was copied.
    ///
    /// # Panics
    /// If `logs` lacks a partition.
    pub(crate) fn on_one_disk(
        &self,
        disk: DiskId,
        identity: DiskState,
        logs: &BTreeMap<(TopicId, u32), Copied>,
    ) -> Self {
        let mut copy = self.clone();
        copy.disks = BTreeMap::from([(disk, identity)]);
        // Their files were not copied.
        copy.deleted.clear();
        for topic in copy.topics.values_mut() {
            topic.config.replication_factor = 1;
            topic.config.min_insync_replicas = 1;
            for (number, partition) in (0..).zip(&mut topic.partitions) {
                let copied = logs[&(topic.id, number)];
                let known = std::mem::take(&mut partition.history);
                let mut history = EpochHistory::default();
                for reign in known.reigns().iter().filter(|reign| reign.start < copied.end) {
                    history.begin(reign.epoch, reign.start);
                }
                if !known.reigns().is_empty() {
                    let next = partition.leader_epoch.0.saturating_add(1);
                    partition.leader_epoch = LeaderEpoch(next);
                    history.begin(partition.leader_epoch, copied.end);
                }
                history.drop_below(copied.start);
                partition.history = history;
                partition.replicas = vec![disk];
                (partition.leader, partition.led_by) = (Some(disk), Some(disk));
                partition.isr = vec![disk];
                partition.eligible.clear();
                partition.suspects.clear();
                partition.stale.clear();
                partition.high_watermark = copied.end;
                partition.log_start = copied.start;
            }
        }
        copy
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TopicConfig;
    use crate::protocol::metadata::MetadataRecord;
    use crate::types::StoreId;

    #[test]
    fn a_copy_on_one_disk_can_be_written_down_and_goes_on_in_a_new_reign() {
        let mut state = MetadataState::default();
        let mut apply = |record: MetadataRecord| state.apply(&record).unwrap();
        apply(MetadataRecord::StoreCreated { store: StoreId(7), format: 1 });
        for disk in 0..3 {
            apply(MetadataRecord::DiskAdded { disk: DiskId(disk), uuid: 5, incarnation: 1 });
        }
        let config = TopicConfig::new().partitions(2).replication_factor(3).min_insync_replicas(2);
        let replicas = vec![vec![DiskId(1), DiskId(0), DiskId(2)]; 2];
        let id = TopicId(1);
        apply(MetadataRecord::TopicCreated { id, name: "t".into(), config, replicas });
        for (epoch, start, leader) in [(1, 10, 0), (2, 40, 1)] {
            apply(MetadataRecord::LeaderChanged {
                id,
                partition: 1,
                leader: Some(DiskId(leader)),
                epoch: LeaderEpoch(epoch),
                isr: vec![DiskId(leader)],
                eligible: vec![DiskId(2)],
                start: Some(Offset(start)),
                high_watermark: Offset(start),
            });
        }
        let gone = TopicId(2);
        let alone = vec![vec![DiskId(0)]];
        apply(MetadataRecord::TopicCreated {
            id: gone,
            name: "gone".into(),
            config: TopicConfig::new(),
            replicas: alone,
        });
        apply(MetadataRecord::TopicDeleted { id: gone });
        let logs = BTreeMap::from([
            ((id, 0), Copied { start: Offset(0), end: Offset(9) }),
            ((id, 1), Copied { start: Offset(5), end: Offset(30) }),
        ]);
        let identity = DiskState { uuid: 99, incarnation: 1 };
        let copy = state.on_one_disk(DiskId(0), identity, &logs);
        let mut again = MetadataState::default();
        for record in copy.snapshot() {
            again.apply(&record).unwrap();
        }
        assert_eq!(again, copy);
        assert_eq!(again.disks().collect::<Vec<_>>(), [DiskId(0)]);
        assert_eq!(again.deleted_topics().count(), 0);
        assert_eq!(again.next_topic_id(), TopicId(3), "numbers are not given out twice");
        let partition = again.partition(id, 1).unwrap();
        assert_eq!(partition.leader_epoch, LeaderEpoch(3));
        let last = partition.history.reigns().last().unwrap();
        assert_eq!((last.epoch, last.start), (LeaderEpoch(3), Offset(30)));
        assert_eq!((partition.log_start, partition.high_watermark), (Offset(5), Offset(30)));
    }
}
