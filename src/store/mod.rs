//! The store: its directory, its topics, its background work.
//!
//! [`Store`] is a handle; the last one to go closes the store. The metadata log (`metadata`) says
//! which topics there are and where their logs start; the session file (`session`) how the store
//! was left; a partition's log is opened when it is first used after a clean stop, and at once
//! after a crash, so that the recovery is reported.
//!
//! A crash while a store is made or changed leaves it as it was before or after: a directory becomes a
//! store with the rename of its identity file, a topic exists once its record is durable in the
//! metadata log, and a deleted topic's files are removed again at the next open until a second record
//! says that they are gone.
//!
//! Lock order: a slot (while its logs are opened), `Shared::metadata`, the disks, the topic registry, then a
//! partition's own.

mod appender;
mod background;
mod backup;
mod builder;
mod callbacks;
mod chores;
mod close;
mod disks;
mod groups;
mod internal_topic;
mod layout;
mod metadata_log;
mod open;
mod operations;
mod partition;
mod producer_ids;
mod recover;
mod reigns;
mod scrub;
mod session;
mod snapshot;
mod topics;
mod transactions;
mod verify;
mod view;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};

use crate::config::TopicConfig;
use crate::error::{Error, Result};
use crate::partition::{Attention, Core, EventLog, Events};
use crate::storage::{BufferPool, Clock, ForkGuard, TemporaryDirectory};
use crate::types::{DiskId, StoreId, TopicId, TopicPartition};

pub(crate) use appender::{Appender, Offered};
pub use backup::BackupReport;
pub use builder::StoreBuilder;
pub(crate) use chores::{Chore, Chores, does_chores};
pub(crate) use groups::{Change, Groups, Held, JoinGroup, Membership};
pub use groups::{
    CommittedOffset, ConsumerGroupMetadata, GroupDescription, GroupMember, GroupOffset, GroupPhase,
    ResetTo,
};
pub use operations::{DiskDescription, DiskState};
pub use partition::Partition;
pub(crate) use producer_ids::Holder;
pub use snapshot::Snapshot;
pub use topics::TopicDescription;
pub use verify::{Damage, VerifyOptions, VerifyProgress, VerifyReport};

use builder::Options;
use disks::StoreDisk;
use metadata_log::MetadataLog;
use producer_ids::{Names, ProducerIds};
pub(crate) use transactions::{Transactions, busy};

/// How long a store that is dropped without `close` takes at most to flush.
const DROP_TIMEOUT: Duration = Duration::from_secs(30);

/// A partition that is held for longer is being opened.
const OPENS_AFTER: Duration = Duration::from_millis(100);

/// An open store. Cheap to clone; the last handle to go, of the store or of one of its partitions,
/// closes it.
#[derive(Clone, Debug)]
pub struct Store {
    handle: Arc<Handle>,
}

/// Closes the store when it goes.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    /// Removed after the store is closed.
    _temporary: Option<TemporaryDirectory>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        // Nobody is left to be told; what failed is found and reported by the next open. One that was closed has had its time.
        if !self.shared.closed.load(Ordering::Acquire) {
            let _ = self.shared.close(DROP_TIMEOUT);
        }
    }
}

/// What all handles, and the background, share.
#[derive(Debug)]
pub(crate) struct Shared {
    id: StoreId,
    /// The first of its directories, for messages.
    home: PathBuf,
    disks: RwLock<BTreeMap<DiskId, Arc<StoreDisk>>>,
    options: Options,
    clock: Clock,
    fork: Arc<ForkGuard>,
    buffers: BufferPool,
    events: Arc<EventLog>,
    /// Partitions whose leader or in-sync set is to change.
    control: Arc<Attention>,
    watch: Mutex<background::Watch>,
    wall: Mutex<background::WallClock>,
    metadata: Mutex<MetadataLog>,
    /// When the views of a read-only store last had them read anew; held meanwhile.
    asked: Mutex<Instant>,
    topics: RwLock<HashMap<Arc<str>, Arc<Topic>>>,
    /// Taken before the metadata.
    producer_ids: Mutex<ProducerIds>,
    /// Unset: there has been none yet.
    transactions: OnceLock<Arc<Transactions>>,
    /// Held by whoever begins them.
    beginning: Mutex<()>,
    /// Once they could not be settled.
    settler: OnceLock<Arc<transactions::Settler>>,
    /// Unset: nobody has asked for one yet.
    groups: OnceLock<Arc<Groups>>,
    /// Held by whoever reads them, if need be while transactions begin.
    beginning_groups: Mutex<()>,
    /// Held by whoever changes the settings of an internal topic.
    altering_internal: Mutex<()>,
    /// Taken before the producer ids.
    producer_names: Mutex<Names>,
    chores: Arc<Chores>,
    closed: AtomicBool,
    closing: close::Closing,
    /// Of those that may wait for nothing but the store's end.
    told_of_close: Mutex<Vec<Waker>>,
    workers: Mutex<Option<background::Workers>>,
    /// Held while a directory becomes a disk.
    admitting: Mutex<()>,
    /// Disks that an operator stops, and that are still in service.
    stopping: Mutex<Vec<DiskId>>,
    /// Held by calls that change files by themselves, and for a moment by a close.
    operating: RwLock<()>,
}

/// A topic as the running store knows it.
#[derive(Debug)]
struct Topic {
    id: TopicId,
    name: Arc<str>,
    config: RwLock<Arc<TopicConfig>>,
    slots: RwLock<Vec<Arc<Slot>>>,
    /// It was deleted; another may have its name.
    is_gone: AtomicBool,
    /// It may be deleted for the next opening.
    is_in_doubt: AtomicBool,
}

impl Topic {
    /// For a change of its metadata, which are locked: that keeps it from being deleted.
    ///
    /// # Errors
    /// [`Error::UnknownTopicOrPartition`]: it was, since it was looked up.
    fn check_here(&self) -> Result<()> {
        if self.is_gone.load(Ordering::Acquire) {
            let partition = TopicPartition::new(Arc::clone(&self.name), 0);
            return Err(Error::UnknownTopicOrPartition { partition });
        }
        Ok(())
    }
}

/// Counts a topic's partitions, which may become more.
#[derive(Clone, Debug)]
pub(crate) struct PartitionCounter(Arc<Topic>);

impl PartitionCounter {
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.0.slots.read().len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.0.name
    }

    /// Whether the topic was deleted.
    #[inline]
    pub(crate) fn is_gone(&self) -> bool {
        self.0.is_gone.load(Ordering::Acquire)
    }
}

/// The place of a partition, whose log is opened when it is first used.
#[derive(Debug)]
struct Slot {
    partition: TopicPartition,
    core: Mutex<Option<Arc<Core>>>,
    /// Held while its replicas move: what one move removes at its end, another may have brought there.
    moving: Mutex<()>,
    /// After an unclean stop its logs could not be recovered: until that is done, none of them is clean.
    is_unrecovered: AtomicBool,
}

impl Store {
    /// What has happened to the store, from the oldest event that is kept.
    #[must_use]
    pub fn events(&self) -> Events {
        self.handle.shared.events.subscribe()
    }

    /// The directory that the store is in; of several, that of its first disk.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.handle.shared.home
    }

    /// Flushes everything, writes down how far each log reaches, and lets go of the directory. Every
    /// handle is closed with it. A second call waits until the first is done, and is told the same, unless it is made in a
    /// callback.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when the disk does not answer in time; whatever a flush ran into. The store
    /// is closed all the same, and the next open recovers it.
    pub fn close(&self, timeout: Duration) -> Result<()> {
        self.handle.shared.close(timeout)
    }

    /// Does all background work that is due, on this thread. For stores that have no thread of their
    /// own, which are those on simulated disks.
    #[cfg(any(test, feature = "simulation"))]
    pub fn run_background(&self) {
        self.handle.shared.run_background();
    }

    /// Where the layers above have work done, by a thread that is started now at the latest.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(crate) fn chores(&self) -> Result<Arc<Chores>> {
        let shared = self.shared();
        if let Some(workers) = &mut *shared.workers.lock() {
            workers.start_chores(&shared.chores)?;
        }
        Ok(Arc::clone(&shared.chores))
    }

    /// # Errors
    /// [`Error::Closed`].
    #[inline]
    pub(crate) fn check_open(&self) -> Result<()> {
        self.shared().check_open()
    }

    /// Has it woken when the store is closed, until it is [forgotten](Store::forget_waker).
    pub(crate) fn wake_on_close(&self, waker: &Waker) {
        self.shared().told_of_close.lock().push(waker.clone());
    }

    pub(crate) fn forget_waker(&self, waker: &Waker) {
        self.shared().told_of_close.lock().retain(|known| !known.will_wake(waker));
    }

    /// Before something is tried again.
    pub(crate) fn pause(&self, span: Duration) {
        let nothing = Mutex::new(());
        Condvar::new().wait_for(&mut nothing.lock(), span);
    }

    /// Whether threads do the background work.
    pub(crate) fn has_background(&self) -> bool {
        self.shared().options.background
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.shared().clock
    }

    /// How many partitions a topic has by now.
    pub(crate) fn partition_counter(&self, topic: &str) -> Result<PartitionCounter> {
        self.shared().check_writable()?;
        self.shared().topic(topic).map(PartitionCounter)
    }

    fn keep(&mut self, directory: TemporaryDirectory) {
        if let Some(handle) = Arc::get_mut(&mut self.handle) {
            handle._temporary = Some(directory);
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }
}

impl Shared {
    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) || !self.fork.is_owner() {
            return Err(Error::Closed);
        }
        Ok(())
    }

    fn check_writable(&self) -> Result<()> {
        self.check_open()?;
        if self.options.read_only { Err(Error::ReadOnly) } else { Ok(()) }
    }

    fn disk(&self, id: DiskId) -> Option<Arc<StoreDisk>> {
        self.disks.read().get(&id).cloned()
    }

    fn online_disk(&self, id: DiskId) -> Option<Arc<StoreDisk>> {
        self.disk(id).filter(|disk| disk.is_online())
    }

    /// The disks in service, by their ids.
    fn online_disks(&self) -> Vec<Arc<StoreDisk>> {
        self.disks.read().values().filter(|disk| disk.is_online()).cloned().collect()
    }

    /// The topic of a partition that is in use, if it was not deleted; never another that has its name.
    fn topic_of(&self, core: &Core) -> Option<Arc<Topic>> {
        let topics = self.topics.read();
        let named = topics.get(core.partition().topic());
        named.filter(|topic| topic.id == core.topic_id()).cloned()
    }

    /// The partitions that are in use, in no order.
    fn cores(&self) -> Vec<(Arc<Topic>, Arc<Core>)> {
        let topics: Vec<_> = self.topics.read().values().cloned().collect();
        let mut cores = Vec::new();
        for topic in topics {
            // Whoever opens a partition holds its slot and waits for the metadata, and whoever changes those may be about to
            // add slots.
            let slots = topic.slots.read().clone();
            for slot in slots {
                // One that cannot be had is being opened, which a disk may hold up: it is nobody's yet.
                let held = slot.core.try_lock_for(OPENS_AFTER);
                if let Some(core) = held.as_deref().and_then(Option::as_ref) {
                    cores.push((Arc::clone(&topic), Arc::clone(core)));
                }
            }
        }
        cores
    }
}
