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
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::config::TopicConfig;
use crate::error::{Error, Result};
use crate::log::{Evidence, Log, LogSettings, Loss, Marks};
use crate::partition::{Attention, Core, CoreParts, CoreSettings, EventKind, EventLog};
use crate::protocol::metadata::MetadataRecord;
use crate::segment::{Identity, Place, WriteHow};
use crate::storage::{BufferPool, Clock, Disk, DiskLock, EntryKind, ForkGuard};
use crate::types::{DiskId, Flush, StorageMode, StoreId, TopicPartition};

use super::builder::Options;
use super::layout::{self, DirectoryIdentity, IdentityFile};
use super::metadata_log::MetadataLog;
use super::session::Session;
use super::{Handle, Shared, Slot, Store, Topic, background};

/// Opens or makes the store on `disk`.
pub(super) fn open(disk: Arc<dyn Disk>, options: Options, clock: Clock) -> Result<Store> {
    let known = DirectoryIdentity::read(&*disk)?;
    if let IdentityFile::Newer(version) = known {
        return Err(Error::UnsupportedFormat {
            path: disk.root().join(layout::IDENTITY),
            reason: format!("a store of version {version}, this is version {}", layout::VERSION),
        });
    }
    if known == IdentityFile::Absent {
        check_vacant(&*disk, options.read_only)?;
    }
    let lock = if options.read_only { None } else { Some(take_lock(&*disk)?) };
    let events = Arc::new(EventLog::default());
    let (metadata, id) = open_metadata(&disk, &known, &options, &events, &clock)?;
    let session = Session::read(&*disk, id)?;
    metadata.check_proven(session.metadata)?;
    let same_boot = session.boot != 0 && session.boot == disk.boot_id();
    let fork = ForkGuard::new().map_err(|error| Error::io(disk.root(), "guard", error))?;
    let shared = Arc::new(Shared {
        id,
        clock,
        fork: Arc::new(fork),
        buffers: BufferPool::default(),
        events,
        attention: Arc::new(Attention::default()),
        metadata: Mutex::new(metadata),
        topics: RwLock::new(HashMap::new()),
        session: Mutex::new(session),
        same_boot,
        closed: AtomicBool::new(false),
        worker: Mutex::new(None),
        lock: Mutex::new(lock),
        disk,
        options,
    });
    shared.load_topics(shared.metadata.lock().state());
    if !shared.options.read_only {
        shared.begin_session()?;
        if shared.options.background {
            *shared.worker.lock() = Some(background::start(&shared)?);
        }
    }
    Ok(Store { handle: Arc::new(Handle { shared, _temporary: None }) })
}

/// A directory without an identity becomes a store only if it is empty, or if all that is in it is
/// what an interrupted first open left.
fn check_vacant(disk: &dyn Disk, read_only: bool) -> Result<()> {
    let entries = disk.list("").map_err(|error| Error::io(disk.root(), "list", error))?;
    let metadata = layout::METADATA;
    let foreign = entries.iter().find(|entry| {
        let stem = entry.name.strip_suffix(".tmp").unwrap_or(&entry.name);
        let leftover = entry.kind == EntryKind::File
            && (stem == layout::LOCK || stem == layout::IDENTITY || stem == layout::SESSION);
        !leftover && !metadata.contains(&stem) && entry.name != "lost+found"
    });
    let has_metadata = entries.iter().any(|entry| metadata.contains(&entry.name.as_str()));
    let reason = match foreign {
        // The identity was lost; the metadata know it.
        _ if has_metadata => return Ok(()),
        Some(entry) => format!("no store, and not empty: it holds {}", entry.name),
        None if read_only => "no store".to_owned(),
        None => return Ok(()),
    };
    Err(Error::UnsupportedFormat { path: disk.root().to_owned(), reason })
}

fn take_lock(disk: &dyn Disk) -> Result<Box<dyn DiskLock>> {
    let path = disk.root().join(layout::LOCK);
    disk.lock(layout::LOCK, &crate::storage::process_id().to_string()).map_err(|error| {
        if error.kind() != io::ErrorKind::WouldBlock {
            return Error::io(path, "lock", error);
        }
        let note = crate::storage::read_small(disk, layout::LOCK, 32).unwrap_or_default();
        let pid = std::str::from_utf8(&note).ok().and_then(|note| note.trim().parse().ok());
        Error::Locked { path: disk.root().to_owned(), pid }
    })
}

/// Opens the metadata log, or begins it in a new directory, and settles who we are.
fn open_metadata(
    disk: &Arc<dyn Disk>,
    known: &IdentityFile,
    options: &Options,
    events: &EventLog,
    clock: &Clock,
) -> Result<(MetadataLog, StoreId)> {
    let expected = match known {
        IdentityFile::Intact(identity) => Some(identity.store),
        _ => None,
    };
    if let Some((metadata, repaired)) = MetadataLog::open(disk, expected, options.read_only)? {
        for path in repaired {
            events.push(clock.now(), EventKind::Repaired { path });
        }
        let (store, uuid, incarnation) = metadata.identity(DiskId(0))?;
        let identity = DirectoryIdentity { store, disk: DiskId(0), uuid, incarnation };
        match known {
            IdentityFile::Intact(found) if *found == identity => {}
            IdentityFile::Intact(_) => {
                return Err(Error::UnsupportedFormat {
                    path: disk.root().join(layout::IDENTITY),
                    reason: "the directory's identity is not the one in its metadata".into(),
                });
            }
            _ if options.read_only => {}
            _ => {
                identity.write(&**disk)?;
                let path = disk.root().join(layout::IDENTITY);
                events.push(clock.now(), EventKind::Repaired { path });
            }
        }
        return Ok((metadata, store));
    }
    if let (IdentityFile::Intact(_) | IdentityFile::Damaged(_), _) | (_, true) =
        (known, options.read_only)
    {
        return Err(Error::CorruptMetadata {
            path: disk.root().join(layout::METADATA[0]),
            position: 0,
            source: crate::error::DecodeError::Missing,
        });
    }
    let store = StoreId(disk.entropy());
    let uuid = disk.entropy();
    let identity = DirectoryIdentity { store, disk: DiskId(0), uuid, incarnation: 1 };
    let first = [
        MetadataRecord::StoreCreated { store, format: layout::VERSION },
        MetadataRecord::DiskAdded { disk: DiskId(0), uuid, incarnation: 1 },
    ];
    let metadata = MetadataLog::create(disk, store, &first)?;
    let session = Session { clean: true, boot: disk.boot_id(), ..Session::default() };
    session.write(&**disk, store)?;
    identity.write(&**disk)?;
    Ok((metadata, store))
}

impl Shared {
    /// Makes the store's stop unclean until it is closed, and recovers what the last one left.
    fn begin_session(&self) -> Result<()> {
        let clean = {
            let mut session = self.session.lock();
            let clean = session.clean;
            if clean {
                self.write_unclean(&mut session)?;
            }
            clean
        };
        let mut metadata = self.metadata.lock();
        if !clean {
            metadata.commit(&MetadataRecord::Opened { clean })?;
        }
        let deleted: Vec<_> =
            metadata.state().deleted_topics().map(|(id, name)| (id, name.to_owned())).collect();
        for (id, name) in deleted {
            self.remove_topic_files(&mut metadata, id, &name)?;
        }
        drop(metadata);
        let scanned = AtomicU64::new(0);
        if !clean {
            self.recover_all(&scanned)?;
            // Only now does all that lies in the files belong to this run of the machine: until here, a
            // hole may be what the power loss before it left.
            self.write_unclean(&mut self.session.lock())?;
        }
        layout::set_reserve_aside(&*self.disk);
        let scanned_bytes = scanned.load(Ordering::Relaxed);
        self.events.push(self.clock.now(), EventKind::Opened { clean, scanned_bytes });
        Ok(())
    }

    /// Says in the session file that the store is in use. In memory, the session stays what the last
    /// stop left: `recover` goes by it.
    fn write_unclean(&self, session: &mut Session) -> Result<()> {
        let boot = self.disk.boot_id();
        let unclean = Session { clean: false, boot, ..session.clone() };
        layout::with_reserve(&*self.disk, || unclean.write(&*self.disk, self.id))?;
        *session = Session { clean: session.clean, ..unclean };
        Ok(())
    }

    fn recover_all(&self, scanned: &AtomicU64) -> Result<()> {
        let topics: Vec<_> = self.topics.read().values().cloned().collect();
        for topic in topics {
            let directory = layout::topic_directory(topic.id, &topic.name);
            let in_use = match self.disk.list(&directory) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                Err(error) => {
                    return Err(Error::io(self.disk.root().join(&directory), "list", error));
                }
            };
            let proven = self.session.lock().ends.clone();
            let slots = topic.slots.read().clone();
            let mut used = vec![false; slots.len()];
            for entry in in_use {
                if let Some(used) = entry.name.parse().ok().and_then(|at: usize| used.get_mut(at)) {
                    *used = true;
                }
            }
            for (slot, used) in slots.iter().zip(used) {
                if used || proven.contains_key(&(topic.id, slot.partition.partition())) {
                    let (core, bytes) = self.recover(&topic, slot)?;
                    scanned.fetch_add(bytes, Ordering::Relaxed);
                    *slot.core.lock() = Some(core);
                }
            }
        }
        Ok(())
    }

    /// The partition's core; its log is opened if it is not in use yet.
    pub(super) fn open_core(&self, topic: &Topic, slot: &Slot) -> Result<Arc<Core>> {
        let mut core = slot.core.lock();
        if let Some(core) = &*core {
            return Ok(Arc::clone(core));
        }
        self.check_open()?;
        let (opened, _) = self.recover(topic, slot)?;
        *core = Some(Arc::clone(&opened));
        Ok(opened)
    }

    /// Opens a partition's log with everything that is known of it. Returns the bytes scanned.
    fn recover(&self, topic: &Topic, slot: &Slot) -> Result<(Arc<Core>, u64)> {
        let number = slot.partition.partition();
        let config = Arc::clone(&*topic.config.read());
        let place = self.place(topic, &slot.partition);
        let (log_start, epoch, suspect) = {
            let metadata = self.metadata.lock();
            let described = metadata.state().partition(topic.id, number).ok_or_else(|| {
                Error::UnknownTopicOrPartition { partition: slot.partition.clone() }
            })?;
            (
                described.log_start,
                described.leader_epoch,
                described.suspects.contains_key(&DiskId(0)),
            )
        };
        let (clean, proven) = {
            let session = self.session.lock();
            let end = session.ends.get(&(topic.id, number)).copied().unwrap_or_default();
            // After an unclean stop everything was recovered when the store was opened; a log that is
            // first used later has no files, or had none then.
            (session.clean && !suspect, end)
        };
        let shown = if self.same_boot {
            Marks::peek(&place).and_then(|marks| marks.log_end)
        } else {
            Marks::forget(&place)
                .map_err(|error| place.io_error("marks", "remove", error))
                .map(|()| None)?
        };
        let settings = self.core_settings(&config);
        let recovered = Log::open(
            place,
            settings.log,
            Evidence {
                proven_end: proven.max(shown.unwrap_or_default()),
                clean,
                same_boot: self.same_boot,
                log_start,
                rewrite: config.flush == Flush::OnAck || suspect,
                epoch,
                now: self.clock.now(),
                repair: true,
            },
        )?;
        for loss in recovered.losses {
            self.events.push(self.clock.now(), event_of(&slot.partition, loss));
        }
        if suspect {
            self.metadata.lock().commit(&MetadataRecord::ReplicaCleared {
                id: topic.id,
                partition: number,
                disk: DiskId(0),
            })?;
        }
        let core = Core::new(CoreParts {
            partition: slot.partition.clone(),
            disk: DiskId(0),
            epoch,
            log: recovered.log,
            settings,
            clock: self.clock.clone(),
            fork: Arc::clone(&self.fork),
            events: Arc::clone(&self.events),
            attention: Arc::clone(&self.attention),
            show_marks: self.options.mode != StorageMode::Write,
            append_timeout: self.options.append_timeout,
        });
        Ok((core, recovered.scanned_bytes))
    }

    pub(super) fn place(&self, topic: &Topic, partition: &TopicPartition) -> Place {
        let directory = layout::partition_directory(topic.id, &topic.name, partition.partition());
        Place {
            identity: Arc::new(Identity::new(self.id, topic.id, partition.clone())),
            disk: Arc::clone(&self.disk),
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
    }
}
