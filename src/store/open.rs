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
use std::time::Instant;

use parking_lot::{Mutex, RwLock};

use crate::config::TopicConfig;
use crate::error::{Error, ErrorClass, Result};
use crate::log::LogSettings;
use crate::partition::{Attention, CoreSettings, EventKind, EventLog};
use crate::protocol::metadata::{MetadataRecord, MetadataState};
use crate::segment::{Identity, Place, WriteHow};
use crate::storage::{BufferPool, Clock, Disk, ForkGuard};
use crate::types::{DiskId, Flush, StorageMode, StoreId, TopicPartition};

use super::builder::Options;
use super::chores::Chores;
use super::disks::{self, Given, LeftOut, StoreDisk};
use super::layout::{self, DirectoryIdentity, IdentityFile};
use super::metadata_log::{Found, MetadataLog};
use super::session::{self, Session};
use super::transactions::TRANSACTION_TOPIC;
use super::{Handle, Shared, Store, Topic, background};

/// Opens or makes the store on `disks`. `unreadable`: further directories, of which nothing can be told.
pub(super) fn open(
    disks: Vec<Arc<dyn Disk>>,
    mut unreadable: Vec<LeftOut>,
    options: Options,
    clock: Clock,
) -> Result<Store> {
    let alone = disks.len() + unreadable.len() == 1;
    for (at, disk) in disks.iter().enumerate() {
        disks::check_apart(
            "log.dirs",
            disk.root(),
            disks[at + 1..].iter().map(|other| other.root()),
        )?;
    }
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
        asked: Mutex::new(Instant::now()),
        topics: RwLock::new(HashMap::new()),
        producer_ids: Mutex::new(0..0),
        transactions: OnceLock::new(),
        beginning: Mutex::new(()),
        settler: OnceLock::new(),
        groups: OnceLock::new(),
        beginning_groups: Mutex::new(()),
        altering_internal: Mutex::new(()),
        producer_names: Mutex::default(),
        closed: AtomicBool::new(false),
        closing: super::close::Closing::default(),
        told_of_close: Mutex::default(),
        workers: Mutex::new(None),
        admitting: Mutex::default(),
        stopping: Mutex::default(),
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
            *session = Session { stale: true, cache: session.cache, ..Session::default() };
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
    let transactions = metadata.state().topic_by_name(TRANSACTION_TOPIC);
    let keeps_ids = transactions.is_none_or(|topic| topic.config.flush == Flush::OnAck);
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
        let disk = StoreDisk::new(*id, disk, session.clone(), given[*at].lock.take());
        if keeps_ids {
            // What is flushed at once lacks nothing, but what an earlier loss took.
            disk.session.lock().lacks = session.lacks;
        }
        members.push(disk);
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
        let session = Session { clean: true, cache: disk.cache_id(), ..Session::default() };
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
                            continue;
                        }
                        // It is asked again when it is used.
                        Err(Error::NoLeader { .. } | Error::MissingDisk { .. }) => {}
                        // One disk's only copy is no reason to do without the others.
                        Err(error) if self.disks.read().len() > 1 => {
                            let reason = format!("recovering: {error}");
                            let partition = Some(slot.partition.clone());
                            let kind = EventKind::BackgroundFailed { partition, reason };
                            self.events.push(self.clock.now(), kind);
                        }
                        Err(error) => return Err(error),
                    }
                    slot.is_unrecovered.store(true, Ordering::Release);
                    whole = false;
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
