//! Opening a store: whose directory it is, what its metadata say, how it was left.
//!
//! Nothing is written before the directory is known to be ours, of a version we know, and locked.
//! Then, in this order: a damaged copy of the metadata or of the identity is written anew from the
//! other; the session file says "unclean"; after a crash, a record in the metadata log begins a new
//! reign (every leader epoch rises, so that no offset is given twice under one epoch), and every log
//! is opened and recovered; the removal of deleted topics is completed. A crash between any two of
//! them is met by the same steps.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

use crate::config::TopicConfig;
use crate::error::{Error, ErrorClass, Result};
use crate::log::{Evidence, Log, LogSettings, Loss, Marks, Recovered, Repair};
use crate::partition::{
    Attention, Core, CoreParts, CoreSettings, EventKind, EventLog, Proposal, Reign, Replica,
};
use crate::protocol::metadata::{MetadataRecord, MetadataState, PartitionState};
use crate::protocol::replication::{Candidate, elect, eligible_after};
use crate::segment::{Identity, Place, WriteHow};
use crate::storage::{BufferPool, Clock, Disk, ForkGuard};
use crate::types::{
    DiskId, Flush, LeaderEpoch, Offset, StorageMode, StoreId, TopicId, TopicPartition,
};

use super::builder::Options;
use super::chores::Chores;
use super::disks::{self, Given, LastStop, LeftOut, StoreDisk};
use super::layout::{self, DirectoryIdentity, IdentityFile};
use super::metadata_log::{Found, MetadataLog};
use super::session::{self, LogEnd, Session};
use super::{Handle, Shared, Slot, Store, Topic, background};

/// Opens or makes the store on `disks`. `unreadable`: further directories, of which nothing can be told.
pub(super) fn open(
    disks: Vec<Arc<dyn Disk>>,
    mut unreadable: Vec<LeftOut>,
    options: Options,
    clock: Clock,
) -> Result<Store> {
    let alone = disks.len() + unreadable.len() == 1;
    let mut given = Vec::new();
    for disk in disks {
        let path = disk.root().to_owned();
        match disks::look(disk, options.read_only, alone) {
            Ok(looked) => given.push(looked),
            // A dead disk among others is missing; alone, it is the answer.
            Err(error @ Error::Io { .. }) if !alone => {
                unreadable.push(LeftOut { path, reason: error.to_string() });
            }
            Err(error) => return Err(error),
        }
    }
    let events = Arc::new(EventLog::default());
    let opened = open_metadata(&mut given, unreadable, &options, &events, &clock)?;
    let (metadata, id, members) = (opened.metadata, opened.store, opened.members);
    let first = members.first().expect("a store has a disk");
    let fork = ForkGuard::new().map_err(|error| Error::io(first.disk.root(), "guard", error))?;
    let shared = Arc::new(Shared {
        id,
        home: first.disk.root().to_owned(),
        disks: RwLock::new(members.iter().map(|disk| (disk.id, Arc::clone(disk))).collect()),
        chores: Arc::new(Chores::new(clock.clone())),
        wall: Mutex::new(background::WallClock::new(&clock)),
        clock,
        fork: Arc::new(fork),
        buffers: BufferPool::default(),
        events,
        control: Arc::new(Attention::default()),
        watch: Mutex::default(),
        metadata: Mutex::new(metadata),
        topics: RwLock::new(HashMap::new()),
        producer_ids: Mutex::new(0..0),
        transactions: OnceLock::new(),
        beginning: Mutex::new(()),
        settler: OnceLock::new(),
        groups: OnceLock::new(),
        beginning_groups: Mutex::new(()),
        producer_names: Mutex::default(),
        closed: AtomicBool::new(false),
        closing: super::close::Closing::default(),
        told_of_close: Mutex::default(),
        workers: Mutex::new(None),
        admitting: Mutex::default(),
        operating: RwLock::default(),
        options,
    });
    shared.load_topics(shared.metadata.lock().state());
    if !shared.options.read_only {
        shared.lose_failed_disks();
        shared.begin_session()?;
        if shared.options.background {
            shared.metadata.lock().set_patience(shared.options.patience());
            *shared.workers.lock() = Some(background::start(&shared)?);
        }
        shared.settle_transactions();
    }
    Ok(Store { handle: Arc::new(Handle { shared, _temporary: None }) })
}

struct Opened {
    metadata: MetadataLog,
    store: StoreId,
    members: Vec<Arc<StoreDisk>>,
}

/// Opens the metadata log, or begins it in new directories, and settles which directory is which disk.
fn open_metadata(
    given: &mut Vec<Given>,
    mut unreadable: Vec<LeftOut>,
    options: &Options,
    events: &EventLog,
    clock: &Clock,
) -> Result<Opened> {
    let expected = disks::store_of(given)?;
    let all: Vec<_> = given.iter().map(|given| Arc::clone(&given.disk)).collect();
    let Some(mut found) = Found::read(&all, expected)? else {
        let known = given.iter().find(|given| {
            matches!(given.identity, IdentityFile::Intact(_) | IdentityFile::Damaged(_))
        });
        let missing = known.or(given.first().filter(|_| options.read_only));
        return match (missing, unreadable.pop()) {
            (Some(given), _) => Err(Error::CorruptMetadata {
                path: given.disk.root().join(layout::METADATA[0]),
                position: 0,
                source: crate::error::DecodeError::Missing,
            }),
            // Of the one that cannot be read nobody knows whether it holds the store.
            (None, Some(LeftOut { path, reason })) => {
                Err(Error::UnsupportedFormat { path, reason })
            }
            (None, None) => create(std::mem::take(given)),
        };
    };
    let mut roll = disks::call_the_roll(given, &found)?;
    roll.left_out.append(&mut unreadable);
    let present = disks::check_present(given, &roll, found.state(), &options.allow_missing);
    if present.is_err() && !options.read_only && is_half_made(given, &found) {
        return create(std::mem::take(given));
    }
    present?;
    let places: Vec<_> =
        roll.members.iter().map(|(at, id)| (*at, *id, Arc::clone(&all[*at]))).collect();
    let store = found.state().store().expect("a log begins with its store");
    let read = places.iter().map(|(_, _, disk)| Session::read(&**disk, store));
    let mut sessions = read.collect::<Result<Vec<_>>>()?;
    let proofs: Vec<_> = sessions.iter().map(|session| (session.metadata, session.disks)).collect();
    let proven = proofs.iter().map(|(last, _)| *last).max().unwrap_or_default();
    let path = places.first().map(|(_, _, disk)| disk.root().join(layout::METADATA[0]));
    found.check_proven(proven, path.unwrap_or_default())?;
    let mut stale = Vec::new();
    for ((at, id), session) in roll.members.iter().zip(&mut sessions) {
        // It had what it lacks now: an older copy of it was put in its place.
        let older = proofs
            .iter()
            .any(|(last, disks)| disks & session::bit_of(*id) != 0 && found.lacks(*at, *last));
        if older {
            *session = Session { stale: true, boot: session.boot, ..Session::default() };
        }
        let strays = found.strayed(*at);
        session.strayed |= strays;
        for (log, start) in found.deleted_alone(*at) {
            session.ends.entry(log).or_default().start = start;
        }
        if (older || strays)
            && !options.read_only
            // Before its metadata are brought up to date, after which nobody could tell.
            && let Err(error) = session.write(&*all[*at], store)
        {
            found.leave_out(*at, error);
        }
        stale.push(session.stale);
    }
    let (metadata, repaired) = found.open(&places, options.read_only)?;
    for path in repaired {
        events.push(clock.now(), EventKind::Repaired { path });
    }
    for LeftOut { path, reason } in roll.left_out {
        events.push(clock.now(), EventKind::DirectoryLeftOut { path, reason });
    }
    for disk in metadata.state().disks() {
        if !roll.members.iter().any(|(_, id)| *id == disk) {
            let cause = "it is in none of the directories that were given".to_owned();
            events.push(clock.now(), EventKind::DiskOffline { disk, cause });
        }
    }
    let mut members = Vec::new();
    for ((at, id), session) in roll.members.iter().zip(&sessions) {
        let disk = Arc::clone(&all[*at]);
        if roll.nameless.contains(at) && !options.read_only {
            let known = metadata.state().disk(*id).expect("a member is known");
            let (uuid, incarnation) = (known.uuid, known.incarnation);
            DirectoryIdentity { store, disk: *id, uuid, incarnation }.write(&*disk)?;
            let path = disk.root().join(layout::IDENTITY);
            events.push(clock.now(), EventKind::Repaired { path });
        }
        members.push(StoreDisk::new(*id, disk, session.clone(), given[*at].lock.take()));
    }
    for (disk, stale) in members.iter().zip(stale) {
        disk.stale.store(stale, Ordering::Release);
    }
    Ok(Opened { metadata, store, members })
}

/// Whether a crash came while the store was made: the metadata are somewhere, no directory has its identity yet, and
/// nothing can have been stored.
fn is_half_made(given: &[Given], found: &Found) -> bool {
    let nameless = given.iter().all(|given| given.identity == IdentityFile::Absent);
    let vacant = || {
        given.iter().all(|given| {
            let listed = given.disk.list(layout::TOPICS);
            listed.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        })
    };
    nameless && found.state().topics().next().is_none() && vacant()
}

/// Makes a store on empty directories. It is there once their identities are.
fn create(mut given: Vec<Given>) -> Result<Opened> {
    let first = Arc::clone(&given.first().expect("a builder has a disk").disk);
    let store = StoreId(first.entropy());
    let mut records = vec![MetadataRecord::StoreCreated { store, format: layout::VERSION }];
    let mut disks = Vec::new();
    for (number, given) in (0..).zip(&given) {
        let (disk, uuid) = (DiskId(number), given.disk.entropy());
        records.push(MetadataRecord::DiskAdded { disk, uuid, incarnation: 1 });
        disks.push((disk, uuid, Arc::clone(&given.disk)));
    }
    let places: Vec<_> = disks.iter().map(|(id, _, disk)| (*id, Arc::clone(disk))).collect();
    let metadata = MetadataLog::create(&places, store, &records)?;
    let mut members = Vec::new();
    for ((id, _, disk), given) in disks.iter().zip(&mut given) {
        let session = Session { clean: true, boot: disk.boot_id(), ..Session::default() };
        session.write(&**disk, store)?;
        members.push(StoreDisk::new(*id, Arc::clone(disk), session, given.lock.take()));
    }
    for (id, uuid, disk) in &disks {
        DirectoryIdentity { store, disk: *id, uuid: *uuid, incarnation: 1 }.write(&**disk)?;
    }
    Ok(Opened { metadata, store, members })
}

impl Shared {
    /// Makes the store's stop unclean until it is closed, and recovers what the last one left.
    fn begin_session(&self) -> Result<()> {
        let disks = self.online_disks();
        let clean = disks
            .iter()
            .all(|disk| disk.session.lock().clean && !disk.is_stale() && !disk.has_strayed());
        let mut metadata = self.metadata.lock();
        if clean && metadata.state().disks().count() > 1 {
            // A copy of a disk from before is known by lacking this.
            metadata.commit(&MetadataRecord::Opened { clean })?;
        }
        let position = metadata.witnessed();
        drop(metadata);
        for disk in disks.iter().filter(|disk| disk.session.lock().clean) {
            if let Err(error) = disk.write_unclean(self.id, position) {
                self.lose_disk_at_open(disk, error)?;
            }
        }
        if !clean {
            let mut metadata = self.metadata.lock();
            let stale = disks.iter().filter(|disk| disk.is_stale());
            let mut records: Vec<_> =
                stale.flat_map(|disk| stale_replicas(metadata.state(), disk.id)).collect();
            records.push(MetadataRecord::Opened { clean });
            metadata.commit_all(&records)?;
        }
        self.remove_deleted()?;
        let position = self.metadata.lock().witnessed();
        let scanned = AtomicU64::new(0);
        if !clean {
            let compared = self.recover_all(&scanned)?;
            // Only now does all that lies in the files belong to this run of the machine: until here, a
            // hole may be what the power loss before it left.
            for disk in self.online_disks() {
                {
                    let mut session = disk.session.lock();
                    (session.stale, session.strayed) = (false, session.strayed && !compared);
                }
                if let Err(error) = disk.write_unclean(self.id, position) {
                    self.lose_disk_at_open(&disk, error)?;
                }
            }
        }
        self.lose_failed_disks();
        for disk in self.online_disks() {
            layout::set_reserve_aside(&*disk.disk);
        }
        let scanned_bytes = scanned.load(Ordering::Relaxed);
        self.events.push(self.clock.now(), EventKind::Opened { clean, scanned_bytes });
        Ok(())
    }

    /// Opens all that was used. Returns whether every replica is in service.
    fn recover_all(&self, scanned: &AtomicU64) -> Result<bool> {
        let mut whole = true;
        let topics: Vec<_> = self.topics.read().values().cloned().collect();
        for topic in topics {
            let slots = topic.slots.read().clone();
            let mut used = vec![false; slots.len()];
            for disk in self.online_disks() {
                let directory = layout::topic_directory(topic.id, &topic.name);
                let entries = match disk.disk.list(&directory) {
                    Ok(entries) => entries,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                    Err(error) => {
                        let path = disk.disk.root().join(&directory);
                        let error = Error::io(path, "list", error);
                        self.lose_disk_at_open(&disk, error)?;
                        continue;
                    }
                };
                let named = entries.iter().filter_map(|entry| entry.name.parse().ok());
                let ended = disk.session.lock();
                let ended = ended.ends.keys().filter(|(id, _)| *id == topic.id);
                for number in named.chain(ended.map(|(_, number)| *number)) {
                    if let Some(used) = used.get_mut(number as usize) {
                        *used = true;
                    }
                }
            }
            for (slot, used) in slots.iter().zip(used) {
                if used {
                    let mut core = slot.core.lock();
                    match self.recover(&topic, slot) {
                        Ok((opened, bytes)) => {
                            scanned.fetch_add(bytes, Ordering::Relaxed);
                            whole &= opened.replicas().iter().all(|id| opened.is_served_by(*id));
                            *core = Some(opened);
                        }
                        // It is asked again when it is used.
                        Err(Error::NoLeader { .. }) => whole = false,
                        // One disk's only copy is no reason to do without the others.
                        Err(error) if self.disks.read().len() > 1 => {
                            let reason = format!("recovering: {error}");
                            let partition = Some(slot.partition.clone());
                            let kind = EventKind::BackgroundFailed { partition, reason };
                            self.events.push(self.clock.now(), kind);
                            whole = false;
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok(whole)
    }

    /// Whether replicas are still to be compared batch by batch: one of two disks went on without the other, so that an
    /// epoch may have had two leaders.
    pub(super) fn has_strayed(&self) -> bool {
        self.online_disks().iter().any(|disk| disk.has_strayed())
    }

    /// A disk that fails while the store is opened is done without, if the others are enough; also by partitions that are
    /// open already.
    fn lose_disk_at_open(&self, disk: &Arc<StoreDisk>, error: Error) -> Result<()> {
        let others = self.online_disks().len() > 1;
        if !others || error.class() == ErrorClass::Retriable {
            return Err(error);
        }
        self.lose_disk(disk, &error);
        Ok(())
    }

    /// The partition's core; its logs are opened if it is not in use yet.
    pub(super) fn open_core(&self, topic: &Topic, slot: &Slot) -> Result<Arc<Core>> {
        let mut core = slot.core.lock();
        if let Some(core) = &*core {
            return Ok(Arc::clone(core));
        }
        self.check_open()?;
        let (opened, _) = self.recover(topic, slot)?;
        *core = Some(Arc::clone(&opened));
        self.look_at_transactions_of(&opened);
        // Closed meanwhile: the close waits for the slot, and leaves what it finds here then as it is.
        if let Err(closed) = self.check_open() {
            opened.close();
            return Err(closed);
        }
        Ok(opened)
    }

    /// Opens a partition's logs with everything that is known of them. Returns the bytes scanned.
    fn recover(&self, topic: &Topic, slot: &Slot) -> Result<(Arc<Core>, u64)> {
        let partition = &slot.partition;
        let number = partition.partition();
        let config = Arc::clone(&*topic.config.read());
        let described = self
            .metadata
            .lock()
            .state()
            .partition(topic.id, number)
            .cloned()
            .ok_or_else(|| Error::UnknownTopicOrPartition { partition: partition.clone() })?;
        let alone = described.replicas.len() == 1;
        let (mut found, mut damages) = (Vec::new(), Vec::new());
        let mut scanned_bytes = 0;
        for id in &described.replicas {
            let Some(disk) = self.online_disk(*id) else { continue };
            match self.open_replica(topic, partition, &disk, &described, &config, true) {
                Ok((recovered, damaged)) => {
                    scanned_bytes += recovered.scanned_bytes;
                    damages.extend(damaged.into_iter().map(|offset| (disk.id, offset)));
                    found.push((disk, recovered.log));
                }
                Err(error) if alone => return Err(error),
                Err(error) => self.replica_failed(partition, &disk, &error),
            }
        }
        // One that was lost meanwhile.
        found.retain(|(disk, _)| disk.is_online());
        let mut unrepaired = Vec::new();
        let (reign, leader) = if alone && described.stale.is_empty() {
            let leader = found.first().map(|(disk, _)| disk.id);
            self.settle_start(topic, partition, &described, leader, &mut found, &mut damages)?;
            (reign_of(&described), leader)
        } else {
            let (logs, bad) = (&mut found, &mut damages);
            let chosen = self.choose_leader(topic, partition, &described, &config, logs, bad)?;
            unrepaired = self.repair_all(partition, &mut found, &damages);
            if let Some(leader) = chosen.1 {
                self.tell_leader(partition, leader, &mut found);
            }
            chosen
        };
        let Some(at) = found.iter().position(|(disk, _)| Some(disk.id) == leader) else {
            let absent = described.replicas.first().copied().unwrap_or_default();
            return Err(if alone && self.online_disk(absent).is_none() {
                Error::MissingDisk { disk: absent, path: self.home.clone() }
            } else {
                Error::NoLeader { partition: partition.clone() }
            });
        };
        let (disk, mut log) = found.remove(at);
        log.set_epoch(reign.epoch);
        if self.options.mode == StorageMode::Write {
            // What an earlier session showed, nobody shows any more: it would be believed.
            let place = log.place();
            Marks::forget(place).map_err(|error| place.io_error("marks", "remove", error))?;
        }
        let has_records = log.end() > log.reader().log_start();
        let (leads, has_page) = (disk.id, has_records || Marks::peek(log.place()).is_some());
        let leading = replica(&disk, None);
        let mut followers: Vec<_> =
            found.into_iter().map(|(disk, log)| replica(&disk, Some(log))).collect();
        for id in &described.replicas {
            if *id != leading.disk && !followers.iter().any(|follower| follower.disk == *id) {
                // Its disk is away; when it comes back, the replica is here.
                let disk = self.disk(*id);
                followers.push(disk.map_or_else(
                    || Replica::new(*id, Arc::default(), Arc::default(), None),
                    |disk| replica(&disk, None),
                ));
            }
        }
        let core = Core::new(CoreParts {
            topic: topic.id,
            partition: partition.clone(),
            reign,
            log,
            leading,
            followers,
            settings: self.core_settings(&config),
            clock: self.clock.clone(),
            fork: Arc::clone(&self.fork),
            events: Arc::clone(&self.events),
            control: Arc::clone(&self.control),
            background: self.options.background,
            show_marks: self.options.mode != StorageMode::Write,
            append_timeout: self.options.append_timeout,
        });
        for (disk, offset) in unrepaired {
            core.repair_later(disk, offset);
            core.ask_for_attention_on(disk);
        }
        if has_page {
            // It says how far the log could be read before; an append, which would renew it, may be long in coming.
            core.make_page(leads);
        }
        Ok((core, scanned_bytes))
    }

    /// Opens the log of one replica; `first`: for the first time since its disk came into service, so that
    /// what the disk's last session left holds. Also returns where it is damaged.
    pub(super) fn open_replica(
        &self,
        topic: &Topic,
        partition: &TopicPartition,
        disk: &Arc<StoreDisk>,
        described: &PartitionState,
        config: &Arc<TopicConfig>,
        first: bool,
    ) -> Result<(Recovered, Vec<Offset>)> {
        let place = self.place(topic, partition, &disk.disk);
        let suspect = described.suspects.get(&disk.id).copied();
        let log = (topic.id, partition.partition());
        if !first {
            // It follows.
            self.last_stop(disk, log).settle_start()?;
        }
        let (clean, LogEnd { end: proven, producers, start }) = {
            let session = disk.session.lock();
            let end = session.ends.get(&log).copied().unwrap_or_default();
            // After an unclean stop everything was recovered when the store was opened; a log that is
            // first used later has no files, or had none then.
            (first && session.clean && suspect.is_none() && !disk.is_stale(), end)
        };
        let shown = if disk.same_boot && !disk.is_stale() {
            Marks::peek(&place).and_then(|marks| marks.log_end)
        } else {
            Marks::forget(&place)
                .map_err(|error| place.io_error("marks", "remove", error))
                .map(|()| None)?
        };
        // Where another is trusted to have it, the tail is copied from there; else it is all there is, as of one replica.
        let trusted = |other: &DiskId| *other != disk.id && !described.suspects.contains_key(other);
        let replicated = described.isr.iter().chain(&described.eligible).any(trusted);
        let mut recovered = Log::open(
            place,
            self.core_settings(config).log,
            Evidence {
                // Of a disk that lacks what it once held, no session tells.
                proven_end: proven.max(shown.unwrap_or_default()),
                clean,
                same_boot: disk.same_boot,
                log_start: described.log_start.max(start),
                rewrite: config.flush != Flush::Os || suspect.is_some(),
                epoch: described.leader_epoch,
                // The one that led last sealed the batches of its reign, and copied those before; where there never
                // was another, there is no history.
                sealed_since: (described.led_by == Some(disk.id)).then(|| {
                    let last = described.history.reigns().last();
                    last.map_or(LeaderEpoch(0), |reign| reign.epoch)
                }),
                now: self.clock.now(),
                repair: true,
                producers: producers || !clean,
                mapped: !first,
            },
        )?;
        recovered.log.set_witness(Arc::new(self.last_stop(disk, log)));
        let mut damaged = Vec::new();
        for loss in std::mem::take(&mut recovered.losses) {
            if let Loss::Damaged { from, .. } = &loss {
                damaged.push(*from);
            }
            self.events.push(self.clock.now(), event_of(partition, loss));
        }
        if let Some(durable) = suspect {
            if replicated {
                // Its tail is copied anew, into new files, from a replica that flushed it.
                recovered.log.truncate(durable, self.clock.now())?;
            }
            self.metadata.lock().commit(&MetadataRecord::ReplicaCleared {
                id: topic.id,
                partition: partition.partition(),
                disk: disk.id,
            })?;
        }
        Ok((recovered, damaged))
    }

    /// Who leads a partition with several replicas: the one that did, after a clean stop; else the best of
    /// those that may. Cuts the others' logs to what it has.
    fn choose_leader(
        &self,
        topic: &Topic,
        partition: &TopicPartition,
        described: &PartitionState,
        config: &TopicConfig,
        found: &mut Vec<(Arc<StoreDisk>, Log)>,
        damages: &mut Vec<(DiskId, Offset)>,
    ) -> Result<(Reign, Option<DiskId>)> {
        let now = self.clock.now();
        let mut reign = reign_of(described);
        let mut failed = Vec::new();
        let mut candidates = Vec::new();
        for (disk, log) in found.iter_mut() {
            let own_end = log.end();
            let looked = log.agree(&reign.history, own_end, now).and_then(|_| log.last_epoch());
            let last_epoch = match looked {
                Ok(epoch) => epoch.unwrap_or_default(),
                Err(error) => {
                    failed.push((disk.id, error));
                    continue;
                }
            };
            candidates.push(Candidate {
                disk: disk.id,
                in_sync: described.isr.contains(&disk.id),
                eligible: described.eligible.contains(&disk.id),
                suspect: described.suspects.contains_key(&disk.id) && described.isr.len() > 1,
                sound: !log.lacks_past() && !damages.iter().any(|(damaged, _)| *damaged == disk.id),
                last_epoch,
                end: log.end(),
            });
        }
        self.leave_out(partition, found, failed);
        let strayed = self.has_strayed();
        let clean =
            !strayed && found.iter().all(|(disk, _)| disk.session.lock().clean && !disk.is_stale());
        let best = candidates.iter().filter(|c| c.in_sync).map(|c| (c.last_epoch, c.end)).max();
        let stays = described.leader.filter(|leader| {
            let same = candidates.iter().find(|candidate| candidate.disk == *leader);
            let whole = same.is_some_and(|same| best <= Some((same.last_epoch, same.end)));
            clean
                && whole
                && described.isr.iter().all(|disk| found.iter().any(|(f, _)| f.id == *disk))
        });
        // All replicas have failed, and all are there, as they were: no more can be hoped for.
        let no_better = described.stale.is_empty()
            && described.isr.is_empty()
            && described.eligible.is_empty()
            && found.len() == described.replicas.len();
        let leader = match stays {
            Some(leader) => Some(leader),
            None => {
                let unclean = config.unclean_leader_election || no_better;
                let Some(elected) = elect(&candidates, unclean) else {
                    return Ok((reign, None));
                };
                let high_watermark = described.high_watermark.min(elected.end);
                // Of what could be read, a power loss may have taken some: it is in sync no more, lest it lead without that.
                let short = |c: &&Candidate| c.end < high_watermark;
                let lacks = |disk: DiskId| candidates.iter().filter(short).any(|c| c.disk == disk);
                let without_short =
                    |disks: &[DiskId]| disks.iter().copied().filter(|disk| !lacks(*disk)).collect();
                let (known_isr, known_eligible): (Vec<_>, Vec<_>) =
                    (without_short(&described.isr), without_short(&described.eligible));
                let mut isr = vec![elected.disk];
                if elected.clean {
                    let stays = |c: &&Candidate| !c.suspect && c.disk != elected.disk;
                    let in_sync = candidates.iter().filter(|c| known_isr.contains(&c.disk));
                    isr.extend(in_sync.filter(stays).map(|c| c.disk));
                }
                let required =
                    usize::from(config.min_insync_replicas).clamp(1, described.replicas.len());
                // One that went on alone may have come further than the metadata know.
                let last_epoch = candidates.iter().map(|candidate| candidate.last_epoch).max();
                let last_epoch = described.leader_epoch.max(last_epoch.unwrap_or_default());
                // Those who had what is missing are away: how far it went, the metadata need not know.
                let missing = elected.end < described.high_watermark || !no_better;
                let lost = (!elected.clean && missing)
                    .then_some(elected.end..described.high_watermark.max(elected.end));
                let proposal = Proposal {
                    leader: Some(elected.disk),
                    epoch: LeaderEpoch(last_epoch.0.saturating_add(1)),
                    eligible: eligible_after(&known_isr, &known_eligible, &isr, required),
                    isr,
                    start: Some(elected.end),
                    high_watermark,
                    suspects: Vec::new(),
                    lost: lost.clone(),
                };
                self.metadata
                    .lock()
                    .commit_all(&super::reigns::records_of(topic.id, partition, &proposal))?;
                reign.epoch = proposal.epoch;
                reign.history.begin(proposal.epoch, elected.end);
                reign.isr = proposal.isr;
                reign.eligible = proposal.eligible;
                reign.stale.retain(|disk| !reign.isr.contains(disk));
                reign.high_watermark = high_watermark;
                self.events.push(
                    now,
                    EventKind::LeaderChanged {
                        partition: partition.clone(),
                        leader: Some(elected.disk),
                        epoch: reign.epoch,
                        lost,
                    },
                );
                Some(elected.disk)
            }
        };
        self.settle_start(topic, partition, described, leader, found, damages)?;
        let leader_end = candidates.iter().find(|c| Some(c.disk) == leader).map(|c| c.end);
        let of_leader = found.iter().find(|(disk, _)| Some(disk.id) == leader && strayed);
        let of_leader = of_leader.map(|(_, log)| Arc::clone(log.reader()));
        let mut failed = Vec::new();
        for (disk, log) in found.iter_mut().filter(|(disk, _)| Some(disk.id) != leader) {
            let (own_end, place) = (log.end(), log.place());
            // A page that says how far a leader wrote must not be believed of a follower, which may be cut.
            let forgotten =
                Marks::forget(place).map_err(|error| place.io_error("marks", "remove", error));
            let leader_end = leader_end.unwrap_or_default();
            let compared = forgotten.and_then(|()| {
                of_leader.iter().try_for_each(|leader| log.agree_with(leader, leader_end, now))
            });
            let agrees = |()| log.agree(&reign.history, leader_end, now);
            match compared.and_then(agrees) {
                Ok(end) if strayed && end < own_end => {
                    let (partition, disk) = (partition.clone(), disk.id);
                    let offsets = end..own_end;
                    self.events.push(now, EventKind::GaveWay { partition, disk, offsets });
                }
                Ok(_) => {}
                Err(error) => failed.push((disk.id, error)),
            }
        }
        self.leave_out(partition, found, failed);
        Ok((reign, leader))
    }

    /// Where a disk deleted records while it went on without the other: if it leads, they are deleted; else the leader may
    /// know other records at these offsets, and all that it has is copied from there.
    fn settle_start(
        &self,
        topic: &Topic,
        partition: &TopicPartition,
        described: &PartitionState,
        leader: Option<DiskId>,
        found: &mut Vec<(Arc<StoreDisk>, Log)>,
        damages: &mut Vec<(DiskId, Offset)>,
    ) -> Result<()> {
        let key = (topic.id, partition.partition());
        let starts = found.iter().map(|(disk, _)| (disk.id, disk.deleted_alone(key)));
        let starts: Vec<_> = starts.filter(|(_, start)| *start > described.log_start).collect();
        if starts.is_empty() || leader.is_none() {
            return Ok(());
        }
        let mut described = described.clone();
        if let Some((_, start)) = starts.iter().find(|(disk, _)| Some(*disk) == leader) {
            described.log_start = *start;
            let (id, partition, offset) = (key.0, key.1, *start);
            let raised = MetadataRecord::LogStartRaised { id, partition, offset };
            self.metadata.lock().commit(&raised)?;
        }
        let mut failed = Vec::new();
        let config = Arc::clone(&*topic.config.read());
        for at in (0..found.len()).rev() {
            let disk = Arc::clone(&found[at].0);
            let settled = self.last_stop(&disk, key).settle_start();
            if Some(disk.id) == leader {
                continue; // the metadata say it by now
            }
            // Two would write to the same files.
            drop(found.remove(at));
            damages.retain(|(damaged, _)| *damaged != disk.id);
            described.suspects.remove(&disk.id);
            let opened = settled.and_then(|()| {
                self.open_replica(topic, partition, &disk, &described, &config, true)
            });
            match opened {
                Ok((recovered, damaged)) => {
                    damages.extend(damaged.into_iter().map(|offset| (disk.id, offset)));
                    found.insert(at, (disk, recovered.log));
                }
                Err(error) => failed.push((disk.id, error)),
            }
        }
        self.leave_out(partition, found, failed);
        Ok(())
    }

    pub(super) fn last_stop(&self, disk: &Arc<StoreDisk>, log: (TopicId, u32)) -> LastStop {
        LastStop { disk: Arc::clone(disk), store: self.id, log }
    }

    /// Takes what one replica has lost from the others. What nobody has stays damaged. Returns what is to be tried again.
    fn repair_all(
        &self,
        partition: &TopicPartition,
        found: &mut [(Arc<StoreDisk>, Log)],
        damages: &[(DiskId, Offset)],
    ) -> Vec<(DiskId, Offset)> {
        let now = self.clock.now();
        let failed = |what: &str, error: &Error| {
            let partition = Some(partition.clone());
            let reason = format!("{what}: {error}");
            self.events.push(now, EventKind::BackgroundFailed { partition, reason });
        };
        let (mut repaired, mut left) = (Vec::new(), Vec::new());
        for (id, offset) in damages {
            let readers = found.iter().filter(|(disk, _)| disk.id != *id);
            let sources: Vec<_> = readers.map(|(_, log)| Arc::clone(log.reader())).collect();
            let Some((_, log)) = found.iter_mut().find(|(disk, _)| disk.id == *id) else {
                continue;
            };
            if *offset >= log.end() || *offset < log.reader().log_start() {
                continue;
            }
            match log.repair(*offset, &sources, now) {
                Ok(Repair::Done) => {
                    let path = log.place().full_path("");
                    self.events.push(now, EventKind::Repaired { path });
                    repaired.push(*id);
                }
                Ok(Repair::Sound | Repair::Nowhere) => {}
                Ok(Repair::NotNow) => left.push((*id, *offset)),
                Err(error) => {
                    failed("repairing a segment", &error);
                    left.push((*id, *offset));
                }
            }
        }
        for (_, log) in found.iter_mut().filter(|(disk, _)| repaired.contains(&disk.id)) {
            if let Err(error) = log.count_repaired(now) {
                failed("reading who wrote what was repaired", &error);
            }
        }
        left
    }

    /// A leader that cannot read who wrote some of its log asks a replica that knows: nobody is asked once it leads.
    fn tell_leader(
        &self,
        partition: &TopicPartition,
        leader: DiskId,
        found: &mut [(Arc<StoreDisk>, Log)],
    ) {
        let Some(at) = found.iter().position(|(disk, _)| disk.id == leader) else { return };
        let (before, rest) = found.split_at_mut(at);
        let Some(((_, log), after)) = rest.split_first_mut() else { return };
        let now = self.clock.now();
        for (_, other) in before.iter().chain(&*after) {
            if !log.lacks_past() {
                return;
            }
            if let Err(error) = log.learn_producers(other, now) {
                let reason = format!("asking who wrote what is damaged: {error}");
                let partition = Some(partition.clone());
                self.events.push(now, EventKind::BackgroundFailed { partition, reason });
            }
        }
    }

    /// Goes on without replicas that failed.
    fn leave_out(
        &self,
        partition: &TopicPartition,
        found: &mut Vec<(Arc<StoreDisk>, Log)>,
        failed: Vec<(DiskId, Error)>,
    ) {
        for (id, error) in failed {
            if let Some(disk) = self.disk(id) {
                self.replica_failed(partition, &disk, &error);
            }
            found.retain(|(disk, _)| disk.id != id);
        }
    }

    fn replica_failed(&self, partition: &TopicPartition, disk: &StoreDisk, error: &Error) {
        self.events.push(
            self.clock.now(),
            EventKind::ReplicaFenced {
                partition: partition.clone(),
                disk: disk.id,
                at_risk: Offset::ZERO..Offset::ZERO,
                cause: error.to_string(),
            },
        );
    }

    pub(super) fn place(
        &self,
        topic: &Topic,
        partition: &TopicPartition,
        disk: &Arc<dyn Disk>,
    ) -> Place {
        let directory = layout::partition_directory(topic.id, &topic.name, partition.partition());
        Place {
            identity: Arc::new(Identity::new(self.id, topic.id, partition.clone())),
            disk: Arc::clone(disk),
            directory: directory.into(),
            buffers: self.buffers.clone(),
            map_sealed: self.options.mode == StorageMode::Mmap,
        }
    }

    pub(super) fn core_settings(&self, topic: &Arc<TopicConfig>) -> CoreSettings {
        let staged = topic.flush == Flush::OnAck;
        let map_reads = cfg!(unix) && self.options.mode != StorageMode::Write;
        let how = match topic.flush {
            // A store through a mapping dirties the whole folio, which each flush then writes: gathering
            // what one flush writes costs less than that.
            Flush::Os | Flush::Interval(_) if map_reads => WriteHow::Map { chunk_bytes: 1 << 20 },
            _ => WriteHow::Write { map_reads, staged },
        };
        CoreSettings {
            topic: Arc::clone(topic),
            log: LogSettings {
                segment_bytes: topic.segment_bytes,
                segment_age: topic.segment_age,
                index_interval: topic.index_interval_bytes,
                how,
                checkpoint_bytes: self.options.checkpoint_bytes,
            },
        }
    }
}

/// What is to be known of the replicas on a disk that lacks what it once held.
pub(super) fn stale_replicas(state: &MetadataState, disk: DiskId) -> Vec<MetadataRecord> {
    let mut records = Vec::new();
    for topic in state.topics() {
        for (partition, known) in (0..).zip(&topic.partitions) {
            if known.isr.contains(&disk) || known.eligible.contains(&disk) {
                records.push(MetadataRecord::ReplicaStale { id: topic.id, partition, disk });
            }
        }
    }
    records
}

/// A replica on `disk`.
pub(super) fn replica(disk: &StoreDisk, log: Option<Log>) -> Arc<Replica> {
    Replica::new(disk.id, Arc::clone(&disk.attention), Arc::clone(&disk.flushes), log)
}

fn reign_of(described: &PartitionState) -> Reign {
    Reign {
        epoch: described.leader_epoch,
        history: described.history.clone(),
        isr: described.isr.clone(),
        eligible: described.eligible.clone(),
        stale: described.stale.iter().copied().collect(),
        preference: described.replicas.clone(),
        high_watermark: described.high_watermark,
    }
}

fn event_of(partition: &TopicPartition, loss: Loss) -> EventKind {
    let partition = partition.clone();
    match loss {
        Loss::Cut { from, bytes, kept, reason } => {
            EventKind::TailCut { partition, from, bytes, kept, reason }
        }
        Loss::Damaged { from, to, path, reason } => {
            EventKind::Damaged { partition, offsets: from..to.max(from), path, reason }
        }
        Loss::Foreign { path } => EventKind::ForeignFile { path },
        Loss::ProducersForgotten { below } => EventKind::ProducersForgotten { partition, below },
    }
}
