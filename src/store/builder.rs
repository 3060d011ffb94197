//! How a store is opened.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Properties, TopicConfig};
use crate::error::{Error, ErrorClass, Result};
use crate::storage::{Clock, Disk, MemoryDisk, RealDisk, temporary_directory};
use crate::types::{DiskId, Flush, StorageMode};

use super::Store;
use super::disks::LeftOut;
use super::open::open;

/// More directories than that are no store.
pub(super) const DISKS_MAX: usize = 64;

/// How long one disk may hold up a change of the metadata.
const PATIENCE_MAX: Duration = Duration::from_secs(10);
/// A disk that is sound may need as long for one: however little its replicas may lag, it is not done without for that.
const PATIENCE_MIN: Duration = Duration::from_millis(250);

/// Settings of a store that are not a topic's.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) mode: StorageMode,
    pub(super) topic_defaults: TopicConfig,
    pub(super) checkpoint_bytes: u64,
    pub(super) append_timeout: Duration,
    pub(super) retention_check: Duration,
    /// Background work runs on a thread; otherwise whoever opened the store drives it.
    pub(super) background: bool,
    pub(super) read_only: bool,
    /// Disks that the store may be opened without.
    pub(super) allow_missing: Vec<DiskId>,
    /// How long a follower may lag before it leaves the in-sync set.
    pub(super) lag_max: Duration,
    /// Whether preferred replicas lead again when they can.
    pub(super) rebalance: bool,
    /// Bytes a second that the scrub of a disk reads; 0: none.
    pub(super) scrub_rate: u64,
    /// How long what groups without members have committed is kept; `None`: for ever.
    pub(super) offsets_retention: Option<Duration>,
}

impl Options {
    /// How long a disk is waited for before the others go on without it (S22). Less than the lag that is allowed: nobody
    /// is to be late for the wait.
    pub(super) fn patience(&self) -> Duration {
        (self.lag_max / 3).clamp(PATIENCE_MIN, PATIENCE_MAX)
    }
}

/// Describes a store before it is opened. Made by [`Store::builder`].
///
/// # Examples
/// ```
/// use oncelog::{Flush, Store};
/// let directory = tempfile::tempdir()?;
/// let store = Store::builder().disk(directory.path()).flush(Flush::Os).open()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "a builder does nothing until it is opened"]
pub struct StoreBuilder {
    disks: Vec<Place>,
    options: Options,
    properties: Properties,
    fault: Option<Error>,
    clock: Clock,
}

#[derive(Debug)]
enum Place {
    Directory(PathBuf),
    Ready(Arc<dyn Disk>),
}

impl StoreBuilder {
    pub(super) fn new() -> Self {
        Self {
            disks: Vec::new(),
            options: Options {
                mode: StorageMode::Auto,
                topic_defaults: TopicConfig::new(),
                checkpoint_bytes: 64 << 20,
                append_timeout: Duration::from_secs(30),
                retention_check: Duration::from_secs(10),
                background: true,
                read_only: false,
                allow_missing: Vec::new(),
                lag_max: Duration::from_secs(30),
                rebalance: true,
                scrub_rate: 4 << 20,
                offsets_retention: None,
            },
            properties: Properties::new(),
            fault: None,
            clock: Clock::system(),
        }
    }

    /// Adds a directory; it is made if it is not there.
    pub fn disk(mut self, path: impl AsRef<Path>) -> Self {
        self.disks.push(Place::Directory(path.as_ref().to_owned()));
        self
    }

    /// The flush level of topics that do not choose one. Default: [`Flush::OnAck`].
    pub fn flush(mut self, flush: Flush) -> Self {
        self.options.topic_defaults = self.options.topic_defaults.flush(flush);
        self
    }

    /// How bytes reach the files. Default: [`StorageMode::Auto`].
    pub fn storage_mode(mut self, mode: StorageMode) -> Self {
        self.options.mode = mode;
        self
    }

    /// Opens the store although this disk is missing and could hold newer decisions. Without it, a store
    /// opens with a majority of three or more disks, and with both of two. Of two that have each been opened without the other,
    /// one gives way when they meet, with what was acknowledged on it alone.
    pub fn allow_missing(mut self, disk: DiskId) -> Self {
        self.options.allow_missing.push(disk);
        self
    }

    /// How long a replica may lag behind its leader before it leaves the in-sync set
    /// (`replica.lag.time.max.ms`). Default: 30 seconds.
    pub fn replica_lag_max(mut self, lag: Duration) -> Self {
        self.options.lag_max = lag.max(Duration::from_millis(1));
        self
    }

    /// Whether the first of a partition's replicas leads again once it has been in sync for some seconds
    /// (`auto.leader.rebalance.enable`), so that the disks go on sharing the work after one was away. Default: true.
    pub fn auto_leader_rebalance(mut self, rebalance: bool) -> Self {
        self.options.rebalance = rebalance;
        self
    }

    /// How many bytes a second of each disk are read in the background, all of which is sealed once a day at most, to
    /// find damage and repair it from other replicas (`log.scrub.bytes.per.second`). 0: none. Default: 4 MiB.
    ///
    /// # Examples
    /// ```
    /// use oncelog::Store;
    /// # let directory = tempfile::tempdir()?;
    /// let store = Store::builder().disk(directory.path()).scrub_bytes_per_second(64 << 20).open()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn scrub_bytes_per_second(mut self, bytes: u64) -> Self {
        self.options.scrub_rate = bytes;
        self
    }

    /// After how many bytes of appends a checkpoint is written, beyond which a recovery has to scan.
    /// Default: 64 MiB; at least 1 MiB.
    pub fn checkpoint_bytes(mut self, bytes: u64) -> Self {
        self.options.checkpoint_bytes = bytes.max(1 << 20);
        self
    }

    /// How long an append waits for its acknowledgement (Kafka's `request.timeout.ms`).
    /// Default: 30 seconds.
    pub fn append_timeout(mut self, timeout: Duration) -> Self {
        self.options.append_timeout = timeout;
        self
    }

    /// How often the topics' retention is looked after. Default: 10 seconds; rolled segments are
    /// looked at at once.
    pub fn retention_check_interval(mut self, interval: Duration) -> Self {
        self.options.retention_check = interval.max(Duration::from_millis(10));
        self
    }

    /// How long the offsets of a group without members are kept (`offsets.retention.minutes`). Default: for ever;
    /// a group that comes back late finds its place.
    pub fn offsets_retention(mut self, span: Duration) -> Self {
        self.options.offsets_retention = Some(span);
        self
    }

    /// Sets a Kafka configuration key, such as `retention.ms`, as the default of new topics. A key that
    /// does not exist is reported by [`StoreBuilder::open`], with the nearest one that does.
    pub fn property(mut self, key: &str, value: &str) -> Self {
        if let Err(error) = self.properties.set(key, value) {
            self.fault = self.fault.or(Some(error));
        }
        self
    }

    /// Keys given to [`StoreBuilder::property`] that only mean something on a network.
    #[must_use]
    pub fn ignored_properties(&self) -> Vec<String> {
        self.properties.ignored().iter().map(ToString::to_string).collect()
    }

    /// A disk of memory, for tests.
    pub(super) fn memory_disk(mut self) -> Self {
        self.disks.push(Place::Ready(Arc::new(MemoryDisk::new())));
        self
    }

    /// A simulated disk, for tests that inject faults. Background work does not run by itself: the
    /// test drives it with [`Store::run_background`].
    #[cfg(any(test, feature = "simulation"))]
    pub fn simulated_disk(mut self, disk: crate::storage::simulated::SimDisk) -> Self {
        self.disks.push(Place::Ready(Arc::new(disk)));
        self.options.background = false;
        self
    }

    /// Background work runs on threads, as on real disks: for simulated ones that hang.
    #[cfg(any(test, feature = "simulation"))]
    pub fn threads(mut self) -> Self {
        self.options.background = true;
        self
    }

    /// The clock that the store goes by, for tests.
    #[cfg(any(test, feature = "simulation"))]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    pub(super) fn read_only(mut self) -> Self {
        self.options.read_only = true;
        self.options.background = false;
        self
    }

    /// Opens a store of several disks to look at it, as [`Store::open_read_only`] does one of a single disk. What is about
    /// writing has no effect.
    ///
    /// # Errors
    /// As there; [`Error::MissingDisk`] as for [`StoreBuilder::open`].
    pub fn open_read_only(self) -> Result<Store> {
        self.read_only().open()
    }

    /// Opens the store; makes it where its directories are empty.
    ///
    /// # Errors
    /// [`Error::Locked`] when another opener has it; [`Error::UnsupportedFormat`] when a newer version
    /// wrote it, or the directory holds something else; [`Error::CorruptMetadata`];
    /// [`Error::InvalidConfig`]; [`Error::Io`] and [`Error::NoSpace`].
    pub fn open(mut self) -> Result<Store> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        let flush = self.options.topic_defaults.flush;
        let defaults = self.properties.topic_defaults();
        let chosen = self.properties.sets_flush();
        self.options.topic_defaults = if chosen { defaults } else { defaults.flush(flush) };
        self.options.rebalance = self.properties.rebalance().unwrap_or(self.options.rebalance);
        self.options.scrub_rate = self.properties.scrub_rate().unwrap_or(self.options.scrub_rate);
        self.options.offsets_retention =
            self.properties.offsets_retention().or(self.options.offsets_retention);
        let (mut absent, mut unreadable) = (Vec::new(), Vec::new());
        if self.disks.is_empty() || self.disks.len() > DISKS_MAX {
            return Err(Error::InvalidConfig {
                key: "log.dirs".into(),
                value: self.disks.len().to_string(),
                reason: format!("a store is on 1 to {DISKS_MAX} disks"),
            });
        }
        let alone = self.disks.len() == 1;
        let mut disks: Vec<Arc<dyn Disk>> = Vec::new();
        for place in self.disks {
            match place {
                Place::Ready(disk) => disks.push(disk),
                Place::Directory(path) => {
                    match RealDisk::open(&path, alone && !self.options.read_only) {
                        Ok(disk) => disks.push(Arc::new(disk)),
                        // Of several, one that is not there may be made, or is missing.
                        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !alone => {
                            absent.push((disks.len() + absent.len(), path));
                        }
                        Err(error) => match Error::io(&path, "open directory", error) {
                            error if alone || error.class() == ErrorClass::Retriable => {
                                return Err(error);
                            }
                            error => unreadable.push((path, error)),
                        },
                    }
                }
            }
        }
        // A new store makes its directories; one that exists does not, for a lost mount point must not
        // be taken for an empty disk.
        let blank = disks.iter().all(|disk| super::disks::is_blank(&**disk));
        if disks.is_empty()
            && let Some((_, error)) = unreadable.pop()
        {
            return Err(error);
        }
        if blank && unreadable.is_empty() {
            if self.options.read_only && !alone {
                let roots = disks.into_iter().map(|disk| disk.root().to_owned());
                let path = roots.chain(absent.into_iter().map(|(_, path)| path)).next();
                let (path, reason) = (path.unwrap_or_default(), "there is no store".into());
                return Err(Error::UnsupportedFormat { path, reason });
            }
            for (at, path) in absent {
                let made = RealDisk::open(&path, true)
                    .map_err(|error| Error::io(path, "open directory", error))?;
                disks.insert(at, Arc::new(made));
            }
        }
        let unreadable = unreadable.into_iter().map(|(path, error)| {
            let reason = error.to_string();
            LeftOut { path, reason }
        });
        open(disks, unreadable.collect(), self.options, self.clock)
    }
}

impl Store {
    /// Opens the store in a directory, or makes one if the directory is empty or absent. One disk,
    /// [`Flush::OnAck`]: what is acknowledged survives a power loss.
    ///
    /// # Errors
    /// As for [`StoreBuilder::open`].
    ///
    /// # Examples
    /// ```
    /// use oncelog::{Acks, Record, Store, TopicConfig};
    /// # let directory = tempfile::tempdir()?;
    /// # let path = directory.path().join("data");
    /// let store = Store::open(path)?;
    /// store.create_topic("orders", TopicConfig::new().partitions(6))?;
    /// store.partition("orders", 0)?.append(&[Record::new("pear")], Acks::All)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::builder().disk(path).open()
    }

    /// Describes a store: its disks, its defaults.
    pub fn builder() -> StoreBuilder {
        StoreBuilder::new()
    }

    /// A store in memory, gone with its last handle. For tests; everything behaves as on disks, and a
    /// flush succeeds at once.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] unless `disks` is 1 to 64.
    pub fn in_memory(disks: usize) -> Result<Self> {
        (0..disks).fold(Self::builder(), |builder, _| builder.memory_disk()).open()
    }

    /// A store in a fresh directory of the system's temporary one, removed with its last handle.
    ///
    /// # Errors
    /// As for [`StoreBuilder::open`].
    pub fn temporary() -> Result<Self> {
        let directory = temporary_directory()
            .map_err(|error| Error::io(std::env::temp_dir(), "create directory", error))?;
        let mut store = Self::open(directory.path())?;
        store.keep(directory);
        Ok(store)
    }

    /// Opens a store to look at it, beside the process that owns it or without one. Takes no lock
    /// and changes nothing. New records are seen as they become readable. A partition is looked at on the disk that led it
    /// when it was asked for: once another leads, its calls end in [`Error::NoLeader`], and it is to be asked for anew. A consumer
    /// does so by itself.
    ///
    /// # Errors
    /// As for [`StoreBuilder::open`]; [`Error::UnsupportedFormat`] if there is no store.
    pub fn open_read_only(path: impl AsRef<Path>) -> Result<Self> {
        Self::builder().disk(path).read_only().open()
    }
}
