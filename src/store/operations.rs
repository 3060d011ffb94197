//! What an operator does to the disks of a running store.
//!
//! Appends go on meanwhile. A leader on a disk that stops hands over first; whatever cannot be handed over
//! waits until its disk is back. A new or returning disk first gets the metadata, then its replicas are
//! opened, cut to what their leaders have, and brought up by the disk's worker.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use crate::error::{Error, Result};
use crate::partition::{Core, EventKind, postpone};
use crate::protocol::metadata::{MetadataRecord, PartitionState};
use crate::storage::{Disk, RealDisk};
use crate::types::{DiskId, TopicPartition};

use super::builder::DISKS_MAX;
use super::disks::{self, Given, StoreDisk};
use super::layout::{self, DirectoryIdentity, IdentityFile};
use super::metadata_log::{Found, MetadataLog};
use super::open::stale_replicas;
use super::recover::replica;
use super::session::Session;
use super::{Shared, Slot, Store, Topic, background};

/// How a disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskState {
    /// In service.
    Online,
    /// Out of service.
    Offline {
        /// What took it out.
        cause: String,
    },
    /// Its directory was not given, or is not the one that it should be.
    Missing,
}

/// A disk of the store, as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskDescription {
    /// Its number.
    pub id: DiskId,
    /// Its directory, if it is there.
    pub path: Option<PathBuf>,
    /// How it is.
    pub state: DiskState,
    /// Bytes that are free on it, if it says; one that hangs does not.
    pub free_bytes: Option<u64>,
    /// Replicas that are on it.
    pub replicas: usize,
    /// How many of them lead.
    pub leaders: usize,
}

/// How long a disk that is stopped is waited for, once nothing is asked of it any more; it may hang.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// How long a move is waited for, of the world's time, where the store's own clock stands still.
const STILL_PATIENCE: Duration = Duration::from_secs(5);

/// How long a disk is waited for that is asked how it is.
const ASK_PATIENCE: Duration = Duration::from_millis(250);

impl Store {
    /// The disks of the store, by number.
    #[must_use]
    pub fn disks(&self) -> Vec<DiskDescription> {
        let shared = self.shared();
        let known: Vec<_> = shared.disks.read().values().cloned().collect();
        // Under no lock: a disk may hang.
        let free = shared.on_each(&known, ASK_PATIENCE, |disk| disk.disk.free_bytes().ok());
        let free: BTreeMap<_, _> =
            known.iter().map(|disk| disk.id).zip(free.into_iter().map(Option::flatten)).collect();
        let metadata = shared.metadata.lock();
        let state = metadata.state();
        let partitions: Vec<_> = state.topics().flat_map(|topic| &topic.partitions).collect();
        state
            .disks()
            .map(|id| {
                let disk = shared.disk(id);
                let offline = disk.as_ref().and_then(|disk| disk.offline.lock().clone());
                DiskDescription {
                    id,
                    path: disk.as_ref().map(|disk| disk.disk.root().to_owned()),
                    state: match (&disk, offline) {
                        (None, _) => DiskState::Missing,
                        (Some(_), Some(cause)) => DiskState::Offline { cause },
                        (Some(_), None) => DiskState::Online,
                    },
                    free_bytes: free.get(&id).copied().flatten(),
                    replicas: partitions.iter().filter(|p| p.replicas.contains(&id)).count(),
                    leaders: partitions.iter().filter(|p| p.leader == Some(id)).count(),
                }
            })
            .collect()
    }

    /// Takes a disk out of service. Its leaders hand over to other replicas first; partitions that have
    /// no other wait for the disk's return.
    ///
    /// # Errors
    /// [`Error::MissingDisk`] if there is no such disk in service, or none would be left. While half of the disks or more
    /// are out of service, nothing about topics and leaders can be written down.
    pub fn stop_disk(&self, disk: DiskId) -> Result<()> {
        let shared = self.shared();
        let _operating = shared.operate()?;
        let disk = shared.in_service(disk)?;
        shared.stop(&disk, "stopped by its operator")
    }

    /// Brings a disk back into service, in the directory where it was. One that lost its identity file is known by its
    /// metadata, if all other disks are in service.
    ///
    /// # Errors
    /// [`Error::MissingDisk`] if the store was opened without it; [`Error::UnsupportedFormat`] if the
    /// directory is not the disk's any more; [`Error::Locked`], [`Error::Io`], also while it may have been replaced;
    /// [`Error::TimedOut`] while a call to it still hangs, or no disk answers that has the metadata.
    pub fn start_disk(&self, disk: DiskId) -> Result<()> {
        let shared = self.shared();
        let _operating = shared.operate()?;
        let known = shared.disk(disk).ok_or_else(|| shared.missing(disk))?;
        // One that failed just now is to be started, too.
        shared.lose_failed_disks();
        if known.is_online() {
            return Ok(());
        }
        {
            let mut metadata = shared.metadata.lock();
            metadata.keep_directory(disk)?;
            // What is on its way to the directory before would not be known of the one that is there now.
            metadata.check_not_late(disk, &known.disk)?;
        }
        let path = known.disk.root();
        let exchanged =
            known.disk.exchanged().map_err(|error| Error::io(path, "open directory", error))?;
        shared.start(disk, exchanged.unwrap_or_else(|| Arc::clone(&known.disk)), false)
    }

    /// Puts an empty directory in the place of a disk that is lost. Its replicas are copied anew; the old
    /// directory is not a disk of the store any more. After an error, as for [`Store::add_disk`].
    ///
    /// # Errors
    /// [`Error::MissingDisk`] if the store never had the disk; [`Error::UnsupportedFormat`] if the directory
    /// is not empty; [`Error::InvalidConfig`] if it lies in that of another disk, or that in it; [`Error::Io`],
    /// [`Error::NoSpace`]; [`Error::TimedOut`] while another directory is being made a disk.
    pub fn replace_disk(&self, disk: DiskId, path: impl AsRef<Path>) -> Result<()> {
        let directory = open_directory(path.as_ref())?;
        self.replace_with(disk, directory)
    }

    /// Adds an empty directory as one more disk. New topics use it; those that are there can be moved with
    /// [`Store::reassign`]. After an error the directory can be given again; or the disk is among
    /// [`Store::disks`], not in service, and can be started.
    ///
    /// # Errors
    /// [`Error::UnsupportedFormat`] if the directory is not empty; [`Error::InvalidConfig`] if it lies in that of another disk,
    /// or that in it; [`Error::Io`], [`Error::NoSpace`]; [`Error::TimedOut`] while another directory is being made a disk.
    pub fn add_disk(&self, path: impl AsRef<Path>) -> Result<DiskId> {
        let directory = open_directory(path.as_ref())?;
        self.add(directory)
    }

    /// As [`Store::replace_disk`], with a simulated disk.
    ///
    /// # Errors
    /// As there.
    #[cfg(any(test, feature = "simulation"))]
    pub fn replace_simulated_disk(
        &self,
        disk: DiskId,
        with: crate::storage::simulated::SimDisk,
    ) -> Result<()> {
        self.replace_with(disk, Arc::new(with))
    }

    /// As [`Store::add_disk`], with a simulated disk.
    ///
    /// # Errors
    /// As there.
    #[cfg(any(test, feature = "simulation"))]
    pub fn add_simulated_disk(&self, disk: crate::storage::simulated::SimDisk) -> Result<DiskId> {
        self.add(Arc::new(disk))
    }

    fn replace_with(&self, id: DiskId, directory: Arc<dyn Disk>) -> Result<()> {
        let shared = self.shared();
        let _operating = shared.operate()?;
        let _alone = shared.admit_alone()?;
        let known = shared.metadata.lock().state().disk(id).copied();
        let incarnation = known.ok_or_else(|| shared.missing(id))?.incarnation + 1;
        let given = shared.vacant(directory)?;
        if let Some(old) = shared.disk(id).filter(|disk| disk.is_online()) {
            shared.stop(&old, "replaced by another directory")?;
        }
        shared.admit(id, given, incarnation)
    }

    fn add(&self, directory: Arc<dyn Disk>) -> Result<DiskId> {
        let shared = self.shared();
        let _operating = shared.operate()?;
        let _alone = shared.admit_alone()?;
        let given = shared.vacant(directory)?;
        let last = shared.metadata.lock().state().disks().last();
        let id = DiskId(last.map_or(0, |last| last.0.saturating_add(1)));
        if usize::from(id.0) >= DISKS_MAX {
            return Err(Error::InvalidConfig {
                key: "log.dirs".into(),
                value: id.0.to_string(),
                reason: format!("a store is on 1 to {DISKS_MAX} disks"),
            });
        }
        shared.admit(id, given, 1)?;
        Ok(id)
    }

    /// Moves the replicas of a partition to `disks`, the preferred leader first. Returns when the new
    /// replicas are in sync and the old ones are gone.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if the list is empty, names a disk twice, or has fewer disks than the topic requires in sync
    /// (`min.insync.replicas`); [`Error::MissingDisk`] if one is not in service; [`Error::TimedOut`] when the copy takes longer
    /// than the store's append timeout: the partition then has both the old replicas and the new ones; or when another move
    /// of it takes as long.
    pub fn reassign(&self, topic: &str, partition: u32, disks: &[DiskId]) -> Result<()> {
        let shared = self.shared();
        let _operating = shared.operate()?;
        if disks.is_empty() {
            return Err(unfit(disks, "a partition needs a replica"));
        }
        if disks.iter().enumerate().any(|(at, disk)| disks[..at].contains(disk)) {
            return Err(unfit(disks, "a disk is named twice"));
        }
        for disk in disks {
            shared.in_service(*disk)?;
        }
        let topic = shared.topic(topic)?;
        let slot = topic.slots.read().get(partition as usize).cloned().ok_or_else(|| {
            let partition = TopicPartition::new(Arc::clone(&topic.name), partition);
            Error::UnknownTopicOrPartition { partition }
        })?;
        topic.check_enough(disks)?;
        let timeout = shared.options.append_timeout;
        let _alone = slot.moving.try_lock_for(timeout).ok_or_else(|| {
            let what = format!("{}: another move of its replicas", slot.partition);
            Error::late(what, timeout)
        })?;
        shared.move_replicas(&topic, &slot, disks)
    }
}

/// The replicas of a partition cannot be on these disks.
fn unfit(disks: &[DiskId], reason: impl Into<String>) -> Error {
    let value = disks.iter().map(|disk| disk.0.to_string()).collect::<Vec<_>>().join(",");
    Error::InvalidConfig { key: "replicas".into(), value, reason: reason.into() }
}

impl Topic {
    /// With fewer replicas than that, a partition would acknowledge what is on fewer disks than its topic says (REPL-01).
    fn check_enough(&self, disks: &[DiskId]) -> Result<()> {
        let required = self.config.read().min_insync_replicas;
        if disks.len() >= usize::from(required) {
            return Ok(());
        }
        let given = disks.len();
        let reason = format!("min.insync.replicas is {required}, and these are {given}");
        Err(unfit(disks, reason))
    }
}

pub(super) fn open_directory(path: &Path) -> Result<Arc<dyn Disk>> {
    let disk =
        RealDisk::open(path, true).map_err(|error| Error::io(path, "open directory", error))?;
    Ok(Arc::new(disk))
}

/// An empty directory, locked.
pub(super) fn vacant(directory: Arc<dyn Disk>) -> Result<Given> {
    let path = directory.root().to_owned();
    let given = disks::look(directory, false, false)?;
    if given.identity != IdentityFile::Absent || !disks::is_blank(&*given.disk) {
        let reason = "not empty: it holds a store, or a disk of one".into();
        return Err(Error::UnsupportedFormat { path, reason });
    }
    Ok(given)
}

impl Shared {
    /// One directory becomes a disk at a time: which number is free, and which incarnation is next, is looked up before.
    ///
    /// # Errors
    /// [`Error::TimedOut`]: another, which may hang, is still about it.
    fn admit_alone(&self) -> Result<MutexGuard<'_, ()>> {
        let timeout = self.options.append_timeout;
        self.admitting.try_lock_for(timeout).ok_or_else(|| {
            let what = "another directory that becomes a disk";
            Error::late(what, timeout)
        })
    }

    /// Refuses a directory that lies in that of a disk, or the other way round.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`].
    pub(super) fn check_apart(&self, key: &str, directory: &dyn Disk) -> Result<()> {
        let known: Vec<_> = self.disks.read().values().map(|disk| Arc::clone(&disk.disk)).collect();
        disks::check_apart(key, directory.root(), known.iter().map(|disk| disk.root()))
    }

    /// An empty directory, locked; or what [`Shared::admit`] left of one before it became a disk.
    fn vacant(&self, directory: Arc<dyn Disk>) -> Result<Given> {
        self.check_apart("log.dirs", &*directory)?;
        let state = self.metadata.lock().state().clone();
        let is_left = |identity: &DirectoryIdentity| {
            let known = state.disk(identity.disk);
            let own = known.is_some_and(|known| {
                (known.uuid, known.incarnation) == (identity.uuid, identity.incarnation)
            });
            identity.store == self.id && !own
        };
        match DirectoryIdentity::read(&*directory)? {
            IdentityFile::Intact(identity)
                if is_left(&identity) && disks::holds_no_logs(&*directory)? =>
            {
                disks::look(directory, false, false)
            }
            _ => vacant(directory),
        }
    }

    pub(super) fn missing(&self, disk: DiskId) -> Error {
        Error::MissingDisk { disk, path: self.home.clone() }
    }

    fn in_service(&self, disk: DiskId) -> Result<Arc<StoreDisk>> {
        self.online_disk(disk).ok_or_else(|| self.missing(disk))
    }

    /// Hands over what leads on the disk, closes its logs, and lets go of the directory.
    fn stop(&self, disk: &Arc<StoreDisk>, cause: &str) -> Result<()> {
        {
            // Of two that are stopped at once, each would leave the other.
            let mut stopping = self.stopping.lock();
            let stays = |other: &StoreDisk| other.id != disk.id && !stopping.contains(&other.id);
            if !self.online_disks().iter().any(|other| stays(other)) {
                return Err(self.missing(disk.id));
            }
            stopping.push(disk.id);
        }
        let cores: Vec<_> = self
            .cores()
            .into_iter()
            .map(|(_, core)| core)
            .filter(|core| core.replicas().contains(&disk.id))
            .collect();
        for core in &cores {
            core.step_down(disk.id);
        }
        self.settle_reigns();
        self.note_offline(disk, cause);
        self.stopping.lock().retain(|stopping| *stopping != disk.id);
        self.take_no_changes(disk);
        let stopped = Error::Io {
            path: disk.disk.root().to_owned(),
            action: "stop",
            written: crate::error::Written::No,
            source: Arc::new(std::io::ErrorKind::NotConnected.into()),
        };
        for core in &cores {
            if !core.stop_replica(disk.id, cause) {
                core.stop_leader(disk.id, &stopped);
            }
        }
        disk.attention.abandon();
        // Those that were opened meanwhile.
        self.fence_left_behind();
        self.settle_reigns();
        // Whoever unmounts or clears the directory next is not to meet what was under way.
        drop(disk.at_work.try_write_for(STOP_PATIENCE));
        Ok(())
    }

    /// Takes a directory that is the disk's into service.
    fn start(&self, id: DiskId, directory: Arc<dyn Disk>, fresh: bool) -> Result<()> {
        let given = disks::look(directory, false, false)?;
        let known = self.metadata.lock().state().disk(id).copied();
        let identity = match given.identity {
            IdentityFile::Absent | IdentityFile::Damaged(_) if !fresh => {
                self.name_again(id, &given.disk)?
            }
            identity => identity,
        };
        let fits = match (&identity, known) {
            (IdentityFile::Intact(identity), Some(known)) => {
                identity.store == self.id
                    && identity.disk == id
                    && (identity.uuid, identity.incarnation) == (known.uuid, known.incarnation)
            }
            _ => false,
        };
        if !fits {
            return Err(Error::UnsupportedFormat {
                path: given.disk.root().to_owned(),
                reason: format!("the directory is not {id} of this store"),
            });
        }
        let mut session = if fresh {
            Session { clean: true, cache: given.disk.cache_id(), ..Session::default() }
        } else {
            Session { clean: false, ..Session::read(&*given.disk, self.id)? }
        };
        let older = !fresh && self.is_older(id, &given.disk);
        if older {
            session = Session { stale: true, cache: session.cache, ..Session::default() };
            session.write(&*given.disk, self.id)?;
        }
        let stale = session.stale;
        if stale {
            self.declare_stale(id)?;
        }
        let disk = StoreDisk::new(id, given.disk, session, given.lock);
        disk.stale.store(stale, Ordering::Release);
        if let Err(error) = self.serve(&disk) {
            self.metadata.lock().remove_disk(id);
            if self.disk(id).is_some_and(|known| Arc::ptr_eq(&known, &disk)) {
                self.lose_disk(&disk, &error);
            }
            return Err(error);
        }
        let path = disk.disk.root().to_owned();
        self.events.push(self.clock.now(), EventKind::DiskOnline { disk: id, path });
        self.settle_reigns();
        self.remove_deleted()
    }

    /// Gives a directory its identity again that lost it: it has metadata of this store, and no other disk is away that
    /// it could be.
    fn name_again(&self, id: DiskId, directory: &Arc<dyn Disk>) -> Result<IdentityFile> {
        let found = Found::read(std::slice::from_ref(directory), Some(self.id))?;
        let others: Vec<_> =
            self.metadata.lock().state().disks().filter(|other| *other != id).collect();
        let all_there =
            others.iter().all(|other| self.disk(*other).is_some_and(|disk| disk.is_online()));
        let known = self.metadata.lock().state().disk(id).copied();
        let is_ours = found.is_some_and(|found| found.is_on(0));
        let Some(known) = known.filter(|_| is_ours && all_there) else {
            return Err(Error::UnsupportedFormat {
                path: directory.root().join(layout::IDENTITY),
                reason: format!("lost or damaged, and the directory may not be {id}"),
            });
        };
        let (uuid, incarnation) = (known.uuid, known.incarnation);
        let identity = DirectoryIdentity { disk: id, store: self.id, uuid, incarnation };
        identity.write(&**directory)?;
        let path = directory.root().join(layout::IDENTITY);
        self.events.push(self.clock.now(), EventKind::Repaired { path });
        Ok(IdentityFile::Intact(identity))
    }

    /// Takes a disk into service. Where that fails, its part is the caller's to undo.
    fn serve(&self, disk: &Arc<StoreDisk>) -> Result<()> {
        if !self.metadata.lock().takes_part(disk.id) {
            MetadataLog::bring_in(&self.metadata, disk.id, &disk.disk)?;
        }
        let position = self.metadata.lock().witnessed();
        disk.write_unclean(self.id, position)?;
        self.disks.write().insert(disk.id, Arc::clone(disk));
        {
            let mut workers = self.workers.lock();
            // A close takes the threads: nobody would do what the disk's replicas ask for.
            self.check_open()?;
            if let Some(workers) = &mut *workers {
                background::start_disk(self, workers, disk)?;
            }
        }
        self.open_replicas(disk);
        disk.session.lock().stale = false;
        disk.write_unclean(self.id, position)
    }

    /// Whether the directory lacks metadata that the disk had when it was taken into service last: an older
    /// copy of it was put in its place.
    fn is_older(&self, id: DiskId, directory: &Arc<dyn Disk>) -> bool {
        let witnessed = self.disk(id).map(|disk| disk.session.lock().metadata);
        let found = Found::read(std::slice::from_ref(directory), Some(self.id));
        // What cannot be read is damaged, which says nothing of the logs.
        let Ok(Some(found)) = found else { return false };
        witnessed.is_some_and(|witnessed| found.lacks(0, witnessed))
    }

    /// Makes it known that the disk's replicas lack what they held.
    fn declare_stale(&self, id: DiskId) -> Result<()> {
        let _postponed = postpone();
        let mut metadata = self.metadata.lock();
        let records = stale_replicas(metadata.state(), id);
        metadata.commit_all(&records)?;
        let opening = self.distrust(id);
        drop(metadata);
        distrust_opened(id, opening);
        Ok(())
    }

    /// Lets partitions forget that replicas on the disk might lead; before the metadata, which say so, are
    /// free for the next change. Returns those that somebody is opening, who may wait for the metadata: it is their turn
    /// when these are free.
    fn distrust(&self, id: DiskId) -> Vec<Arc<Slot>> {
        let topics: Vec<_> = self.topics.read().values().cloned().collect();
        let mut opening = Vec::new();
        for slot in topics.iter().flat_map(|topic| topic.slots.read().clone()) {
            match slot.core.try_lock().as_deref() {
                Some(Some(core)) => core.distrust(id),
                Some(None) => {}
                None => opening.push(Arc::clone(&slot)),
            }
        }
        opening
    }

    /// Opens the logs on a disk that came into service, for the partitions that are in use. One that cannot
    /// be opened stays out of service.
    fn open_replicas(&self, disk: &Arc<StoreDisk>) {
        let topics: Vec<_> = self.topics.read().values().cloned().collect();
        for topic in topics {
            let slots = topic.slots.read().clone();
            for slot in slots {
                let Some(core) = slot.core.lock().clone() else { continue };
                if core.replicas().contains(&disk.id)
                    && let Err(error) = self.open_one(&topic, &slot, &core, disk)
                {
                    core.background_failed("opening a replica", &error);
                }
            }
        }
    }

    /// Has the workers of their disks try the replicas anew that failed although those are in service.
    pub(super) fn rebuild_failed(&self) {
        let now = self.clock.now();
        for (topic, core) in self.cores() {
            for id in core.failed_replicas(now) {
                let Some(disk) = self.online_disk(id) else { continue };
                let mut rebuilds = disk.rebuilds.lock();
                if !rebuilds.iter().any(|(_, asked)| Arc::ptr_eq(asked, &core)) {
                    rebuilds.push((Arc::clone(&topic), Arc::clone(&core)));
                }
                drop(rebuilds);
                disk.attention.ring();
            }
        }
    }

    /// Opens the replicas on a disk anew that are to be.
    pub(super) fn rebuild_on(&self, disk: &Arc<StoreDisk>) {
        let rebuilds = std::mem::take(&mut *disk.rebuilds.lock());
        for (topic, core) in rebuilds {
            let slot = topic.slots.read().get(core.partition().partition() as usize).cloned();
            if let Some(slot) = slot
                && disk.is_online()
                && let Err(error) = self.open_one(&topic, &slot, &core, disk)
            {
                core.background_failed("opening a replica anew", &error);
            }
        }
    }

    fn open_one(
        &self,
        topic: &Topic,
        slot: &Slot,
        core: &Arc<Core>,
        disk: &Arc<StoreDisk>,
    ) -> Result<()> {
        // Whom the replica's return wakes may want what is held here.
        let _postponed = postpone();
        // One at a time: two would write to the same files.
        let alone = core.repairs_of(disk.id);
        let held = alone.try_lock_for(ASK_PATIENCE);
        core.fence_left_behind();
        if held.is_some() && core.is_served_by(disk.id) {
            return Ok(());
        }
        if held.is_none() || !core.is_free(disk.id) {
            let what = format!("{}: a call to {} still hangs", slot.partition, disk.id);
            let timeout = Duration::ZERO;
            return Err(Error::late(what, timeout));
        }
        let Some(described) = self.described_for(topic, core, disk.id)? else { return Ok(()) };
        let config = Arc::clone(&*topic.config.read());
        let opened = self.open_replica(topic, &slot.partition, disk, &described, &config, false);
        let strayed = described.replicas.len() > 1 && self.has_strayed();
        let returned = opened.and_then(|(opened, damaged)| {
            core.return_replica(&replica(disk, Some(opened.log)), strayed, self.clock.now())?;
            Ok(damaged)
        });
        self.clear_if_gone(topic, disk);
        for offset in returned? {
            core.repair_later(disk.id, offset);
        }
        Ok(())
    }

    /// What the metadata say of a partition whose replica on `disk` is to be opened: also that its tail is not to be
    /// believed. Said later, that would be of what was appended since, and the next opening would cut it.
    fn described_for(
        &self,
        topic: &Topic,
        core: &Arc<Core>,
        disk: DiskId,
    ) -> Result<Option<PartitionState>> {
        let number = core.partition().partition();
        let look = || {
            let metadata = self.metadata.lock();
            let described = metadata.state().partition(topic.id, number).cloned();
            (described, core.has_unwritten_suspect(disk))
        };
        let (described, unwritten) = look();
        if !unwritten {
            return Ok(described);
        }
        self.settle_one(core);
        let (described, unwritten) = look();
        if unwritten {
            let what = format!("{}: writing down that {disk} failed", core.partition());
            return Err(Error::late(what, Duration::ZERO));
        }
        Ok(described)
    }

    /// Makes an empty directory a disk of the store. It counts only when it has all that it needs; until then it is a
    /// directory that nobody knows.
    fn admit(&self, id: DiskId, given: Given, incarnation: u64) -> Result<()> {
        let uuid = given.disk.entropy();
        let directory = Arc::clone(&given.disk);
        // First: with metadata and no name, it could be taken for another disk that is away.
        DirectoryIdentity { store: self.id, disk: id, uuid, incarnation }.write(&*directory)?;
        let session = Session { clean: true, cache: directory.cache_id(), ..Session::default() };
        session.write(&*directory, self.id)?;
        layout::set_reserve_aside(&*directory);
        let disk = StoreDisk::new(id, Arc::clone(&directory), session, None);
        *disk.offline.lock() = Some("it was never in service".into());
        {
            let record = MetadataRecord::DiskAdded { disk: id, uuid, incarnation };
            let _postponed = postpone();
            let metadata = MetadataLog::admit(&self.metadata, id, &directory, &record)?;
            // From here on it can be started, also if that fails now.
            self.disks.write().insert(id, disk);
            let opening = self.distrust(id);
            drop(metadata);
            distrust_opened(id, opening);
        }
        // If it is the new one that failed to take the record, it is to take it once more.
        self.lose_failed_disks();
        drop(given);
        let started = self.start(id, directory, true);
        if started.is_err() {
            self.metadata.lock().remove_disk(id);
        }
        started
    }

    fn move_replicas(&self, topic: &Topic, slot: &Arc<Slot>, disks: &[DiskId]) -> Result<()> {
        let core = self.open_core(topic, slot)?;
        let old = core.replicas();
        // First the union: nothing goes before the new replicas hold all of it.
        let mut union: Vec<_> = disks.to_vec();
        union.extend(old.iter().filter(|disk| !disks.contains(disk)));
        self.change_replicas(topic, slot, &core, &union)?;
        let (started, begun) = (self.clock.elapsed(), Instant::now());
        // Also at the levels that leave flushing for later: what the old ones have on stable storage goes with them.
        let end = core.log_end();
        let is_taken_over = |disk: &DiskId| {
            core.is_in_sync(*disk) && (old.contains(disk) || core.has_flushed(*disk, end))
        };
        loop {
            if disks.iter().all(is_taken_over) {
                // Who takes over may be busy, or another one that goes.
                for disk in old.iter().filter(|disk| !disks.contains(disk)) {
                    core.step_down(*disk);
                }
                self.settle_reigns();
                // Until it is written down, one that goes may lead again.
                if core.leader().is_some_and(|leader| disks.contains(&leader))
                    && self.change_replicas(topic, slot, &core, disks)?
                {
                    break;
                }
            }
            let (elapsed, timeout) =
                (self.clock.elapsed().saturating_sub(started), self.options.append_timeout);
            if elapsed >= timeout || begun.elapsed() >= timeout.max(STILL_PATIENCE) {
                let what = format!("{}: copying to its new disks", slot.partition);
                return Err(Error::late(what, elapsed));
            }
            self.check_open()?;
            core.bring_up(disks, self.clock.now());
            core.tick(self.watch(), self.options.lag_max);
            self.settle_reigns();
        }
        // One that does not know of it keeps what it has.
        self.lose_failed_disks();
        for gone in old.iter().filter(|disk| !disks.contains(disk)) {
            if let Some(disk) = self.online_disk(*gone)
                && let Err(error) = self.clear_replica(topic, slot, &disk)
            {
                // In nobody's way: it is removed before a replica comes there again.
                core.background_failed("removing a replica that has moved", &error);
            }
        }
        Ok(())
    }

    /// Removes what is on a disk of a partition that has no replica there, and what its session says of it: files that a
    /// crash, or an absence of the disk, has left would be taken for the next replica's, and their lack for damage.
    fn clear_replica(&self, topic: &Topic, slot: &Slot, disk: &Arc<StoreDisk>) -> Result<()> {
        let place = self.place(topic, &slot.partition, &disk.disk);
        let log = (topic.id, slot.partition.partition());
        // First: files that are gone before would be missed.
        self.last_stop(disk, log).forget()?;
        super::topics::remove_tree(&*disk.disk, &place.directory)
            .map_err(|error| place.io_error("", "remove", error))
    }

    /// False: one that is to go leads, and nothing was changed.
    pub(super) fn change_replicas(
        &self,
        topic: &Topic,
        slot: &Slot,
        core: &Arc<Core>,
        replicas: &[DiskId],
    ) -> Result<bool> {
        let (id, partition) = (topic.id, slot.partition.partition());
        let present = core.replicas();
        // A move that failed may have left more in the metadata.
        let known = self.metadata.lock().state().partition(id, partition).cloned();
        if present == replicas && known.is_none_or(|known| known.replicas == replicas) {
            return Ok(true);
        }
        let missing: Vec<_> = replicas.iter().filter(|disk| !present.contains(disk)).collect();
        for disk in &missing {
            let disk = self.in_service(**disk)?;
            self.clear_replica(topic, slot, &disk)?;
        }
        let _postponed = postpone();
        let mut metadata = self.metadata.lock();
        topic.check_here()?;
        // The topic may require more since the move began.
        topic.check_enough(replicas)?;
        let known = metadata.state().partition(id, partition);
        // Also one that only led last: what it has may be nowhere else.
        if known.and_then(|known| known.led_by).is_some_and(|leader| !replicas.contains(&leader)) {
            return Ok(false);
        }
        let record = MetadataRecord::ReplicasChanged { id, partition, replicas: replicas.to_vec() };
        metadata.commit(&record)?;
        core.leave_doubts(metadata.doubts_ended());
        if missing.is_empty() {
            // In one step with the metadata: an election in between would name replicas that those know no more, and be
            // refused with all that is settled together with it.
            core.set_replicas(replicas, Vec::new(), self.clock.now());
            return Ok(true);
        }
        let described = metadata.state().partition(id, partition).cloned();
        drop(metadata);
        let Some(described) = described else { return Ok(true) };
        let config = Arc::clone(&*topic.config.read());
        let mut added = Vec::new();
        for disk in missing {
            let disk = self.in_service(*disk)?;
            let opened =
                self.open_replica(topic, &slot.partition, &disk, &described, &config, false);
            self.clear_if_gone(topic, &disk);
            added.push(replica(&disk, Some(opened?.0.log)));
        }
        // Not while a change of replicas is written down: they are counted anew.
        let _metadata = self.metadata.lock();
        core.set_replicas(replicas, added, self.clock.now());
        Ok(true)
    }

    /// Whoever was amid opening a replica when its topic was deleted may have made files that nobody knows of any more.
    fn clear_if_gone(&self, topic: &Topic, disk: &StoreDisk) {
        if topic.is_gone.load(Ordering::Acquire) && !self.closed.load(Ordering::Acquire) {
            let directory = layout::topic_directory(topic.id, &topic.name);
            // What cannot be removed stays, and is in nobody's way: no other topic has this id.
            let _ = super::topics::remove_tree(&*disk.disk, &directory);
        }
    }
}

/// The rest of what a change of the metadata makes partitions forget.
fn distrust_opened(id: DiskId, opening: Vec<Arc<Slot>>) {
    for slot in opening {
        if let Some(core) = &*slot.core.lock() {
            core.distrust(id);
        }
    }
}
