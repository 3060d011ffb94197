//! What groups forget: offsets of topics that are gone, and what nobody has needed for long.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::protocol::group::offsets::{OffsetTable, Usage};
use crate::protocol::group::records::GroupRecord;
use crate::store::Shared;
use crate::types::TopicId;

use super::offsets::report;
use super::{Groups, PlacedOffset, taken_back};

impl Groups {
    /// Forgets what was committed for topics that went while nobody used groups.
    pub(super) fn forget_gone_topics(&self, shared: &Arc<Shared>) {
        let known = self.offsets.look(shared, OffsetTable::topics);
        // Asked afterwards: one that comes meanwhile is there.
        let there: BTreeSet<_> = shared.topics.read().values().map(|topic| topic.id).collect();
        for topic in known.unwrap_or_default().difference(&there) {
            self.forget_topic(shared, *topic);
        }
    }

    /// Forgets what was committed for topics that have gone since they were looked up, and may have been forgotten before.
    pub(super) fn forget_gone(&self, shared: &Arc<Shared>, offsets: &[PlacedOffset]) {
        let gone: BTreeSet<_> = {
            let topics = shared.topics.read();
            let is_gone = |(id, name, _): &&PlacedOffset| {
                topics.get(name.topic()).is_none_or(|topic| topic.id != id.topic)
            };
            offsets.iter().filter(is_gone).map(|(id, ..)| id.topic).collect()
        };
        gone.into_iter().for_each(|topic| self.forget_topic(shared, topic));
    }

    /// Forgets what was committed for a topic that is gone (GRP-10).
    pub(super) fn forget_topic(&self, shared: &Arc<Shared>, topic: TopicId) {
        let taken_back = self.offsets.look(shared, |table| {
            let partitions = table.partitions_of_topic(topic).into_iter();
            partitions.map(|(group, at)| taken_back(group, at)).collect::<Vec<_>>()
        });
        let outcome =
            taken_back.and_then(|records| self.offsets.take_back(shared, &records).map(drop));
        if let Err(error) = outcome {
            report(shared, "forgetting the offsets of a topic", &error);
        }
    }

    /// Forgets offsets that nobody has needed for `retention`, and with the last of them the group (GRP-09).
    pub(super) fn expire(&self, shared: &Arc<Shared>, retention: Duration) {
        let now = shared.clock.now();
        let groups = self
            .offsets
            .look(shared, |table| table.groups().map(Arc::from).collect::<Vec<Arc<str>>>());
        for name in groups.unwrap_or_default() {
            let outcome = self.in_group(shared, &name, |cell, state| {
                let group = &state.group;
                let known = self.offsets.look(shared, |table| table.state(&name).cloned())?;
                if group.is_empty() && known.as_ref().is_some_and(|one| one.empty_since.is_none()) {
                    // Its members went with the process: it is idle from now on.
                    cell.note(shared, state);
                    return Ok(());
                }
                let since = known.as_ref().and_then(|known| known.empty_since);
                let (expired, is_left) = self.offsets.look(shared, |table| {
                    let is_subscribed = |topic| group.is_subscribed(topic);
                    let usage = match since {
                        _ if group.is_rebalancing() => Usage::Rebalancing,
                        _ if !group.is_empty() => Usage::Stable { is_subscribed: &is_subscribed },
                        Some(since) => Usage::Empty { since },
                        None => Usage::Simple,
                    };
                    let expired = table.expired(&name, &usage, retention, now);
                    let is_left = table.partitions_of(&name).len() == expired.len()
                        && !table.has_open_transactions(&name);
                    (expired, is_left)
                })?;
                let mut records: Vec<_> =
                    expired.into_iter().map(|at| taken_back(&name, at)).collect();
                let is_idle =
                    since.is_none_or(|since| since <= now && now.since(since) >= retention);
                let goes = is_left && is_idle && group.is_empty();
                if goes && known.is_some() {
                    records.push(GroupRecord::Group { group: name.to_string(), state: None });
                }
                self.offsets.take_back(shared, &records)?;
                state.is_gone = goes;
                Ok(())
            });
            self.forget_if_gone(&name);
            if let Err(error) = outcome {
                report(shared, "expiring offsets", &error);
            }
        }
    }

    /// Whoever comes takes a new cell.
    pub(super) fn forget_if_gone(&self, name: &str) {
        let mut cells = self.cells.lock();
        if cells.get(name).is_some_and(|cell| cell.state.lock().is_gone) {
            cells.remove(name);
        }
    }
}
