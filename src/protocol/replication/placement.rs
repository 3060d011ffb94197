//! Which disks a new partition goes to.
//!
//! Leaders are spread first, then the other replicas: each goes to the disk that has the fewest so far, the
//! one of the smaller number among equals.

use std::collections::BTreeMap;

use crate::protocol::metadata::MetadataState;
use crate::types::DiskId;

/// How many replicas each disk has, and how many of them are to lead.
#[derive(Clone, Debug, Default)]
pub(crate) struct Load {
    leaders: BTreeMap<DiskId, usize>,
    replicas: BTreeMap<DiskId, usize>,
}

impl Load {
    /// As it is now.
    pub(crate) fn of(state: &MetadataState) -> Self {
        let mut load = Self::default();
        for partition in state.topics().flat_map(|topic| &topic.partitions) {
            load.add(&partition.replicas);
        }
        load
    }

    fn add(&mut self, replicas: &[DiskId]) {
        for disk in replicas {
            *self.replicas.entry(*disk).or_default() += 1;
        }
        if let Some(leader) = replicas.first() {
            *self.leaders.entry(*leader).or_default() += 1;
        }
    }

    /// The disks of one more partition, of those that are `online`, the leader's first.
    pub(crate) fn place(&mut self, online: &[DiskId], replicas: u16) -> Vec<DiskId> {
        let count =
            |map: &BTreeMap<DiskId, usize>, disk: &DiskId| map.get(disk).copied().unwrap_or(0);
        let mut chosen = Vec::new();
        let leader = online
            .iter()
            .min_by_key(|disk| (count(&self.leaders, disk), count(&self.replicas, disk), **disk));
        chosen.extend(leader.copied());
        let free = online.iter().filter(|disk| Some(*disk) != leader);
        let mut free: Vec<_> = free.map(|disk| (count(&self.replicas, disk), *disk)).collect();
        free.sort_unstable();
        chosen.extend(free.into_iter().map(|(_, disk)| disk));
        chosen.truncate(replicas.max(1).into());
        self.add(&chosen);
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaders_and_followers_are_spread_evenly_on_any_number_of_disks() {
        for disks in 1..6_u16 {
            let online: Vec<_> = (0..disks).map(DiskId).collect();
            for replicas in 1..=disks {
                let mut load = Load::default();
                for _ in 0..60 {
                    let chosen = load.place(&online, replicas);
                    assert_eq!(chosen.len(), usize::from(replicas));
                    assert!(chosen.iter().all(|d| chosen.iter().filter(|o| *o == d).count() == 1));
                }
                for map in [&load.leaders, &load.replicas] {
                    let (least, most) = (map.values().min().unwrap(), map.values().max().unwrap());
                    assert!(most - least <= 1, "{disks} disks, {replicas} replicas: {map:?}");
                }
            }
        }
    }
}
