//! Topics: made, listed, changed, deleted.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::config::{
    TopicConfig, TopicUpdate, check_not_internal, collides, is_internal, validate_topic_name,
};
use crate::error::{Error, Result, Written};
use crate::partition::{EventKind, postpone};
use crate::protocol::metadata::{MetadataRecord, MetadataState, fit_one_topic};
use crate::protocol::replication::Load;
use crate::types::{DiskId, TopicId, TopicPartition};

use super::{Shared, Slot, Store, Topic, layout};

/// A topic, as it is now.
#[derive(Clone, Debug, PartialEq)]
pub struct TopicDescription {
    /// Its name.
    pub name: String,
    /// Tells it from an earlier topic of the same name.
    pub id: TopicId,
    /// How many partitions it has.
    pub partitions: u32,
    /// Its settings.
    pub config: TopicConfig,
}

impl Store {
    /// Makes a topic. It is there, durably, when this returns; its partitions take room on the disk
    /// once something is appended.
    ///
    /// # Errors
    /// [`Error::TopicExists`]; [`Error::InvalidTopic`] for a name that Kafka would refuse, or that
    /// differs from another only by case or by `.` for `_`; [`Error::InvalidConfig`];
    /// [`Error::MissingDisk`] while too few disks are in service; [`Error::NoSpace`]. Nothing is left behind then.
    pub fn create_topic(&self, name: &str, config: TopicConfig) -> Result<()> {
        let shared = self.shared();
        shared.check_writable()?;
        validate_topic_name(name)?;
        check_not_internal(name)?;
        shared.create_topic(name, config.or_defaults(&shared.options.topic_defaults))?;
        shared.topics_changed();
        Ok(())
    }

    /// The topic of that name.
    ///
    /// # Errors
    /// [`Error::UnknownTopicOrPartition`].
    pub fn topic(&self, name: &str) -> Result<TopicDescription> {
        self.shared().check_open()?;
        self.shared().topic(name).map(|topic| describe(&topic))
    }

    /// All topics that applications have made, by name.
    #[must_use]
    pub fn topics(&self) -> Vec<TopicDescription> {
        let mut descriptions = self.all_topics();
        descriptions.retain(|topic| !is_internal(&topic.name));
        descriptions
    }

    /// As [`Store::topics`], the store's own as well.
    pub(super) fn all_topics(&self) -> Vec<TopicDescription> {
        if self.shared().options.read_only {
            // A topic that cannot be read anew is one that was known before.
            let _ = self.shared().refresh();
        }
        let topics = self.shared().topics.read();
        let mut descriptions: Vec<_> = topics.values().map(|topic| describe(topic)).collect();
        descriptions.sort_by(|one, other| one.name.cmp(&other.name));
        descriptions
    }

    /// Changes a topic's settings. Appends go on; a new segment size counts from the next segment on.
    ///
    /// # Errors
    /// [`Error::UnknownTopicOrPartition`], [`Error::InvalidConfig`]; nothing is changed then.
    #[expect(clippy::needless_pass_by_value, reason = "an update is made where it is used")]
    pub fn alter_topic(&self, name: &str, update: TopicUpdate) -> Result<()> {
        let shared = self.shared();
        let _operating = shared.operate()?;
        check_not_internal(name)?;
        let topic = shared.topic(name)?;
        let flush = {
            let config = topic.config.read();
            let flush = update.apply(&config).flush;
            (flush.exposure() < config.flush.exposure()).then_some(flush)
        };
        // Before it: what is decided about its records from then on.
        if let (Some(flush), Some(transactions)) = (flush, shared.known_transactions()) {
            transactions.tighten(shared, flush)?;
        }
        shared.alter(&topic, &update)
    }

    /// Raises the number of a topic's partitions to `total`. Keys may from then on go elsewhere.
    ///
    /// # Errors
    /// [`Error::UnknownTopicOrPartition`]; [`Error::InvalidConfig`] if `total` is not more than there
    /// are; [`Error::MissingDisk`] while too few disks are in service.
    pub fn add_partitions(&self, name: &str, total: u32) -> Result<()> {
        let shared = self.shared();
        shared.check_writable()?;
        check_not_internal(name)?;
        let topic = shared.topic(name)?;
        let mut metadata = shared.metadata.lock();
        topic.check_here()?;
        let config = TopicConfig::clone(&topic.config.read()).partitions(total);
        let present = u32::try_from(topic.slots.read().len()).unwrap_or(u32::MAX);
        if total <= present {
            return Err(Error::InvalidConfig {
                key: "num.partitions".into(),
                value: total.to_string(),
                reason: format!("the topic has {present} partitions, which cannot become fewer"),
            });
        }
        check_config(metadata.state(), topic.id, &config, false)?;
        let replicas = shared.spread(metadata.state(), total - present, &config)?;
        metadata.commit(&MetadataRecord::PartitionsAdded { id: topic.id, replicas })?;
        *topic.config.write() = Arc::new(config);
        shared.load_topics(metadata.state());
        drop(metadata);
        shared.topics_changed();
        Ok(())
    }

    /// Deletes a topic and its records. Handles to its partitions fail from then on; records that were
    /// read stay readable by whoever holds them. Files that cannot be removed now go at the next opening.
    ///
    /// # Errors
    /// [`Error::UnknownTopicOrPartition`], [`Error::MissingDisk`], [`Error::NoSpace`]: it is there. After [`Error::Io`],
    /// [`Error::written`] says whether the next opening may find it deleted: then it takes no more records until that,
    /// and can be deleted again.
    pub fn delete_topic(&self, name: &str) -> Result<()> {
        let shared = self.shared();
        let _operating = shared.operate()?;
        check_not_internal(name)?;
        let topic = shared.topic(name)?;
        let _postponed = postpone();
        let mut metadata = shared.metadata.lock();
        topic.check_here()?;
        if let Err(error) = metadata.commit(&MetadataRecord::TopicDeleted { id: topic.id }) {
            drop(metadata);
            if error.written() != Written::No {
                topic.stop_appends();
            }
            return Err(error);
        }
        // In one step: whoever does not find the name any more knows that this one is gone.
        let mut topics = shared.topics.write();
        topics.remove(&topic.name);
        topic.is_gone.store(true, Ordering::Release);
        drop(topics);
        // Whoever opens a partition holds its slot and asks the metadata.
        drop(metadata);
        // One that does not know of it keeps what it has.
        shared.lose_failed_disks();
        let slots = topic.slots.read().clone();
        for slot in slots {
            if let Some(core) = slot.core.lock().take() {
                core.delete();
            }
        }
        for disk in shared.online_disks() {
            disk.session.lock().ends.retain(|(id, _), _| *id != topic.id);
        }
        let metadata = shared.metadata.lock();
        if shared.check_open().is_err() {
            // Closed meanwhile: the directory may be another's, and the next open removes the files.
            return Ok(());
        }
        // Else they went with a disk that came into service just now.
        let is_left = metadata.state().deleted_topics().any(|(id, _)| id == topic.id);
        drop(metadata);
        if is_left && let Err(error) = shared.remove_topic_files(topic.id, &topic.name) {
            let reason = format!("removing the files of topic {}: {error}", topic.name);
            let kind = EventKind::BackgroundFailed { partition: None, reason };
            shared.events.push(shared.clock.now(), kind);
        }
        shared.topics_changed();
        shared.forget_offsets_of(topic.id);
        Ok(())
    }
}

impl Topic {
    /// Takes no more records: its deletion may be found by the next opening.
    fn stop_appends(&self) {
        self.is_in_doubt.store(true, Ordering::Release);
        let slots = self.slots.read().clone();
        for slot in slots {
            if let Some(core) = &*slot.core.lock() {
                core.refuse_appends();
            }
        }
    }
}

impl Shared {
    /// Makes a topic, whoever's it is.
    ///
    /// # Errors
    /// As for [`Store::create_topic`].
    pub(super) fn create_topic(&self, name: &str, config: TopicConfig) -> Result<()> {
        let mut metadata = self.metadata.lock();
        if metadata.state().topic_by_name(name).is_some() {
            return Err(Error::TopicExists { topic: name.to_owned() });
        }
        if let Some(other) = metadata.state().topics().find(|topic| collides(&topic.name, name)) {
            let reason = format!("too much like that of topic {}", other.name);
            return Err(Error::InvalidTopic { topic: name.to_owned(), reason });
        }
        config.validate(metadata.state().disks().count())?;
        let id = metadata.state().next_topic_id();
        let replicas = self.spread(metadata.state(), config.partitions, &config)?;
        metadata.commit(&MetadataRecord::TopicCreated {
            id,
            name: name.to_owned(),
            replicas,
            config,
        })?;
        self.load_topics(metadata.state());
        Ok(())
    }

    /// Changes a topic's settings, whoever's it is.
    ///
    /// # Errors
    /// As for [`Store::alter_topic`].
    pub(super) fn alter(&self, topic: &Topic, update: &TopicUpdate) -> Result<()> {
        let mut metadata = self.metadata.lock();
        topic.check_here()?;
        let before = Arc::clone(&*topic.config.read());
        let config = update.apply(&before);
        let requires_more = config.min_insync_replicas > before.min_insync_replicas;
        check_config(metadata.state(), topic.id, &config, requires_more)?;
        metadata.commit(&MetadataRecord::TopicAltered { id: topic.id, config: config.clone() })?;
        *topic.config.write() = Arc::new(config);
        drop(metadata);
        self.pass_settings(topic);
        Ok(())
    }

    /// Has the partitions of a topic that are in use go by its settings.
    pub(super) fn pass_settings(&self, topic: &Topic) {
        // Whom the change acknowledges something to may want the partition.
        let _postponed = postpone();
        let slots = topic.slots.read().clone();
        for slot in slots {
            if let Some(core) = &*slot.core.lock() {
                // Those of a later change, if there was one meanwhile: it may have been here.
                let config = Arc::clone(&*topic.config.read());
                core.set_settings(self.core_settings(&config));
                core.roll_if_due(self.clock.now());
            }
        }
    }

    pub(super) fn topic(&self, name: &str) -> Result<Arc<Topic>> {
        if let Some(topic) = self.topics.read().get(name) {
            return Ok(Arc::clone(topic));
        }
        if self.options.read_only {
            self.refresh()?;
        }
        let unknown = || Error::UnknownTopicOrPartition { partition: TopicPartition::new(name, 0) };
        self.topics.read().get(name).map(Arc::clone).ok_or_else(unknown)
    }

    /// Brings the registry to what the metadata say, keeping what is in use.
    pub(super) fn load_topics(&self, state: &MetadataState) {
        let mut topics = self.topics.write();
        let mut known: HashMap<TopicId, Arc<Topic>> =
            topics.drain().map(|(_, topic)| (topic.id, topic)).collect();
        for described in state.topics() {
            let topic = known.remove(&described.id).unwrap_or_else(|| {
                Arc::new(Topic {
                    id: described.id,
                    name: described.name.as_str().into(),
                    config: RwLock::new(Arc::new(described.config.clone())),
                    slots: RwLock::new(Vec::new()),
                    is_gone: AtomicBool::new(false),
                    is_in_doubt: AtomicBool::new(false),
                })
            });
            let mut slots = topic.slots.write();
            let present = u32::try_from(slots.len()).unwrap_or(u32::MAX);
            let total = u32::try_from(described.partitions.len()).unwrap_or(u32::MAX);
            slots.extend((present..total).map(|number| {
                let partition = TopicPartition::new(Arc::clone(&topic.name), number);
                Arc::new(Slot {
                    partition,
                    core: Mutex::default(),
                    moving: Mutex::default(),
                    is_unrecovered: AtomicBool::new(false),
                })
            }));
            drop(slots);
            topics.insert(Arc::clone(&topic.name), topic);
        }
        known.values().for_each(|topic| topic.is_gone.store(true, Ordering::Release));
    }

    /// Removes the files of a topic that the metadata list as deleted, and says so in them. Under no lock: a disk may hang.
    pub(super) fn remove_topic_files(&self, id: TopicId, name: &str) -> Result<()> {
        let directory = layout::topic_directory(id, name);
        let disks = self.online_disks();
        let removed = self.on_each(&disks, self.options.patience(), move |disk| {
            remove_tree(&*disk.disk, &directory)
                .map_err(|error| Error::io(disk.disk.root().join(&directory), "remove", error))
        });
        let mut late = false;
        for removed in removed {
            match removed {
                Some(removed) => removed?,
                None => late = true,
            }
        }
        let mut metadata = self.metadata.lock();
        if self.closed.load(Ordering::Acquire) {
            return Ok(()); // what the directory says is another's to write by now
        }
        // A disk that is away, or does not answer, still has its files: they go when it is back, or at the next open.
        if late || metadata.state().disks().any(|disk| self.online_disk(disk).is_none()) {
            return Ok(());
        }
        if metadata.state().deleted_topics().any(|(deleted, _)| deleted == id) {
            metadata.commit(&MetadataRecord::TopicRemoved { id })?;
        }
        Ok(())
    }

    /// Removes the files of all topics that are deleted and still have some.
    pub(super) fn remove_deleted(&self) -> Result<()> {
        let deleted: Vec<_> = {
            let metadata = self.metadata.lock();
            metadata.state().deleted_topics().map(|(id, name)| (id, name.to_owned())).collect()
        };
        deleted.into_iter().try_for_each(|(id, name)| self.remove_topic_files(id, &name))
    }

    /// Disks for new partitions: leaders and followers each on the disk that has the fewest so far. The settings fit.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if one topic cannot have so many; [`Error::MissingDisk`] while too few disks are in service.
    fn spread(
        &self,
        state: &MetadataState,
        partitions: u32,
        config: &TopicConfig,
    ) -> Result<Vec<Vec<DiskId>>> {
        let online: Vec<_> = self.online_disks().iter().map(|disk| disk.id).collect();
        // A topic may have come to require more than it was made with.
        let replicas = config.replication_factor.max(config.min_insync_replicas);
        if usize::from(replicas) > online.len()
            && let Some(away) = state.disks().find(|disk| !online.contains(disk))
        {
            return Err(self.missing(away));
        }
        // Before they are placed, which takes its time while nothing else can be changed.
        if !fit_one_topic(config.partitions, replicas) {
            return Err(Error::InvalidConfig {
                key: "num.partitions".into(),
                value: config.partitions.to_string(),
                reason: format!("too many for one topic, with {replicas} replicas each"),
            });
        }
        let mut load = Load::of(state);
        Ok((0..partitions).map(|_| load.place(&online, replicas)).collect())
    }
}

/// Whether a topic can have these settings. Where it is to require more replicas in sync, each of its partitions has to have
/// as many, which may have been moved to more or fewer disks than it was made for.
///
/// # Errors
/// [`Error::InvalidConfig`].
fn check_config(
    state: &MetadataState,
    topic: TopicId,
    config: &TopicConfig,
    requires_more: bool,
) -> Result<()> {
    let known = state.topics().find(|known| known.id == topic);
    let partitions = known.into_iter().flat_map(|known| &known.partitions);
    let least = partitions.map(|partition| partition.replicas.len()).min().unwrap_or_default();
    let replicas = if requires_more {
        u16::try_from(least).unwrap_or(u16::MAX)
    } else {
        config.replication_factor.max(config.min_insync_replicas)
    };
    config.clone().replication_factor(replicas).validate(state.disks().count())
}

/// Removes a partition tree, two levels deep as they are; what else is in it stays, and with it the
/// directories above.
pub(super) fn remove_tree(disk: &dyn crate::storage::Disk, directory: &str) -> std::io::Result<()> {
    let absent = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    let entries = match disk.list(directory) {
        Err(error) if absent(&error) => return Ok(()),
        listed => listed?,
    };
    for entry in entries {
        let path = format!("{directory}/{}", entry.name);
        match entry.kind {
            crate::storage::EntryKind::Directory => remove_tree(disk, &path)?,
            crate::storage::EntryKind::File => match disk.remove(&path) {
                // A worker that was amid its work has moved or removed it.
                Err(error) if absent(&error) => {}
                removed => removed?,
            },
            crate::storage::EntryKind::Other => {}
        }
    }
    match disk.remove_dir(directory) {
        Err(error) if absent(&error) || error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
            Ok(())
        }
        removed => removed,
    }
}

fn describe(topic: &Topic) -> TopicDescription {
    TopicDescription {
        name: topic.name.to_string(),
        id: topic.id,
        partitions: u32::try_from(topic.slots.read().len()).unwrap_or(u32::MAX),
        config: TopicConfig::clone(&topic.config.read()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Record;
    use crate::types::Acks;

    /// They were counted as the topic had been made: what a partition got since could not be required.
    #[test]
    fn as_many_replicas_may_be_required_as_each_partition_has() {
        let store = Store::in_memory(3).unwrap();
        store.create_topic("t", TopicConfig::new().partitions(2)).unwrap();
        let require =
            |replicas| store.alter_topic("t", TopicUpdate::new().min_insync_replicas(replicas));
        assert!(matches!(require(2), Err(Error::InvalidConfig { .. })));
        store.reassign("t", 0, &[DiskId(0), DiskId(1)]).unwrap();
        // The other one would acknowledge with less.
        assert!(matches!(require(2), Err(Error::InvalidConfig { .. })));
        store.reassign("t", 1, &[DiskId(1), DiskId(2)]).unwrap();
        require(2).unwrap();
        assert!(matches!(require(3), Err(Error::InvalidConfig { .. })));
        store.add_partitions("t", 3).unwrap();
        let partition = |number| store.partition("t", number).unwrap();
        assert_eq!(partition(2).replicas().len(), 2);
        store.stop_disk(DiskId(1)).unwrap();
        let append = |number| partition(number).append(&[Record::new("x")], Acks::All);
        assert!(matches!(append(0), Err(Error::NotEnoughReplicas { in_sync: 1, required: 2, .. })));
    }
}
