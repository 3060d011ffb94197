//! The disks of a store: which directory is which, and which of them are there.
//!
//! A directory knows which disk of which store it is (`store.id`), and the metadata know which directory
//! that is to be: its uuid, and an incarnation that rises when the directory is replaced. Whatever does
//! not fit is left out, never written to, and never leads: an empty directory (a mount point whose disk
//! is away), a copy, a directory that was replaced. One that fits but is older than what another disk
//! proves it should hold was restored from a backup: it follows and does not lead ([`StoreDisk::stale`]).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use crate::error::{Error, Result};
use crate::log::Witness;
use crate::partition::{Attention, Core};
use crate::protocol::metadata::MetadataState;
use crate::storage::{Disk, DiskLock, Entry, EntryKind};
use crate::types::{DiskId, Offset, StoreId, TopicId};

use super::Topic;
use super::layout::{self, DirectoryIdentity, IdentityFile};
use super::metadata_log::Found;
use super::scrub::Scrub;
use super::session::{LogEnd, Session};

/// A directory that was given, and what it says of itself.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) identity: IdentityFile,
    pub(super) lock: Option<Box<dyn DiskLock>>,
}

/// A disk that is open.
#[derive(Debug)]
pub(super) struct StoreDisk {
    pub(super) id: DiskId,
    pub(super) disk: Arc<dyn Disk>,
    /// Its worker's queue, and that of the thread that flushes its followers.
    pub(super) attention: Arc<Attention>,
    pub(super) flushes: Arc<Attention>,
    /// How it was left.
    pub(super) session: Mutex<Session>,
    /// What its last session left in the page cache is still there.
    pub(super) same_boot: bool,
    /// It lacks what it once held.
    pub(super) stale: AtomicBool,
    /// Why it is out of service.
    pub(super) offline: Mutex<Option<String>>,
    pub(super) lock: Mutex<Option<Box<dyn DiskLock>>>,
    pub(super) scrub: Mutex<Scrub>,
    /// Partitions whose replica here its worker is to open anew.
    pub(super) rebuilds: Mutex<Vec<(Arc<Topic>, Arc<Core>)>>,
    /// How long the store had run when its worker began what it is at; `None` while it has nothing to do.
    pub(super) busy_since: Mutex<Option<Duration>>,
    /// Rises when another worker takes the place of one that is held by a disk.
    pub(super) worker: AtomicU64,
    /// Its session file says that the store is in use.
    is_in_use: AtomicBool,
    /// Held by its threads while they are at work on it.
    pub(super) at_work: RwLock<()>,
}

impl StoreDisk {
    pub(super) fn new(
        id: DiskId,
        disk: Arc<dyn Disk>,
        mut session: Session,
        lock: Option<Box<dyn DiskLock>>,
    ) -> Arc<Self> {
        let same_boot = session.cache != 0 && session.cache == disk.cache_id();
        session.lacks |= !same_boot && !session.clean;
        Arc::new(Self {
            id,
            same_boot,
            disk,
            attention: Arc::default(),
            flushes: Arc::default(),
            session: Mutex::new(session),
            stale: AtomicBool::new(false),
            offline: Mutex::new(None),
            lock: Mutex::new(lock),
            scrub: Mutex::default(),
            rebuilds: Mutex::default(),
            busy_since: Mutex::default(),
            worker: AtomicU64::new(0),
            is_in_use: AtomicBool::new(false),
            at_work: RwLock::default(),
        })
    }

    pub(super) fn is_online(&self) -> bool {
        self.offline.lock().is_none()
    }

    pub(super) fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Acquire)
    }

    /// Whether its logs are still to be compared with the other disk's.
    pub(super) fn has_strayed(&self) -> bool {
        self.session.lock().strayed
    }

    /// Before which offset it has deleted the log while it went on without the other disk, if that is still to be settled.
    pub(super) fn deleted_alone(&self, log: (TopicId, u32)) -> Offset {
        self.session.lock().ends.get(&log).map_or(Offset::ZERO, |known| known.start)
    }

    /// Says in the session file that the store is in use. In memory, the session stays what the last stop
    /// left: recovery goes by it.
    pub(super) fn write_unclean(
        &self,
        store: StoreId,
        (metadata, disks): ((u64, u64), u64),
    ) -> Result<()> {
        let mut session = self.session.lock();
        let cache = self.disk.cache_id();
        let unclean = Session { clean: false, cache, metadata, disks, ..session.clone() };
        layout::with_reserve(&*self.disk, || unclean.write(&*self.disk, store))?;
        *session = Session { clean: session.clean, ..unclean };
        self.is_in_use.store(true, Ordering::Release);
        Ok(())
    }
}

/// What the session file of a disk says of one log: where it ended at the last clean stop.
#[derive(Debug)]
pub(super) struct LastStop {
    pub(super) disk: Arc<StoreDisk>,
    pub(super) store: StoreId,
    pub(super) log: (TopicId, u32),
}

impl LastStop {
    /// The log is given up: from now on, also after a crash, nothing of it is missed.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`].
    pub(super) fn forget(&self) -> Result<()> {
        self.change(|ends| ends.remove(&self.log).is_some())
    }

    /// Where the log begins is settled: from now on, also after a crash, the metadata say it alone.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`].
    pub(super) fn settle_start(&self) -> Result<()> {
        self.change(|ends| {
            let known = ends.get_mut(&self.log).filter(|known| known.start > Offset::ZERO);
            known.map(|known| known.start = Offset::ZERO).is_some()
        })
    }

    /// Writes down what `change` does, if it does anything. What could not be written is not so here either: whoever tries
    /// again writes it.
    fn change(
        &self,
        change: impl FnOnce(&mut BTreeMap<(TopicId, u32), LogEnd>) -> bool,
    ) -> Result<()> {
        let mut session = self.disk.session.lock();
        let before = session.ends.get(&self.log).copied();
        if !change(&mut session.ends) {
            return Ok(());
        }
        let clean = session.clean && !self.disk.is_in_use.load(Ordering::Acquire);
        let changed = Session { clean, ..session.clone() };
        let written =
            layout::with_reserve(&*self.disk.disk, || changed.write(&*self.disk.disk, self.store));
        if let (Err(_), Some(before)) = (&written, before) {
            session.ends.insert(self.log, before);
        }
        written
    }
}

impl Witness for LastStop {
    fn lower(&self, end: Offset) -> Result<()> {
        self.change(|ends| {
            let known = ends.get_mut(&self.log).filter(|known| known.end > end);
            known.map(|known| known.end = end).is_some()
        })
    }
}

/// A directory that takes no part, and why.
#[derive(Clone, Debug)]
pub(super) struct LeftOut {
    pub(super) path: PathBuf,
    pub(super) reason: String,
}

/// Which of the given directories is which disk.
#[derive(Debug, Default)]
pub(super) struct Roll {
    /// Place among the given, and which disk it is.
    pub(super) members: Vec<(usize, DiskId)>,
    pub(super) left_out: Vec<LeftOut>,
    /// Members whose identity file is to be written anew.
    pub(super) nameless: Vec<usize>,
}

/// Reads who each directory says it is, and takes its lock.
pub(super) fn look(disk: Arc<dyn Disk>, read_only: bool, alone: bool) -> Result<Given> {
    let identity = DirectoryIdentity::read(&*disk)?;
    if let IdentityFile::Newer(version) = identity {
        return Err(Error::UnsupportedFormat {
            path: disk.root().join(layout::IDENTITY),
            reason: format!("a store of version {version}, this is version {}", layout::VERSION),
        });
    }
    if identity == IdentityFile::Absent {
        check_vacant(&*disk, read_only && alone)?;
    }
    let lock = if read_only { None } else { Some(take_lock(&*disk)?) };
    Ok(Given { disk, identity, lock })
}

/// The store that the directories say they are of.
///
/// # Errors
/// [`Error::UnsupportedFormat`] if they are of different ones.
pub(super) fn store_of(given: &[Given]) -> Result<Option<StoreId>> {
    let mut store = None;
    for given in given {
        if let IdentityFile::Intact(identity) = &given.identity {
            if store.is_some_and(|store| store != identity.store) {
                return Err(Error::UnsupportedFormat {
                    path: given.disk.root().join(layout::IDENTITY),
                    reason: "a disk of another store than the directories before it".into(),
                });
            }
            store = Some(identity.store);
        }
    }
    Ok(store)
}

/// Holds the directories against the metadata.
///
/// # Errors
/// [`Error::UnsupportedFormat`] if two directories are the same disk, or none is any.
pub(super) fn call_the_roll(given: &[Given], found: &Found) -> Result<Roll> {
    let state = found.state();
    let mut roll = Roll::default();
    let mut unnamed = Vec::new();
    for (at, given) in given.iter().enumerate() {
        let path = given.disk.root().to_owned();
        match &given.identity {
            IdentityFile::Intact(identity) => match misfit(identity, state) {
                None if roll.members.iter().any(|(_, id)| *id == identity.disk) => {
                    let reason = format!("a copy of {}, which was given as well", identity.disk);
                    return Err(Error::UnsupportedFormat { path, reason });
                }
                None => roll.members.push((at, identity.disk)),
                Some(reason) => roll.left_out.push(LeftOut { path, reason }),
            },
            _ if found.is_on(at) => unnamed.push(at),
            _ => roll.left_out.push(LeftOut { path, reason: "empty, and not a new disk".into() }),
        }
    }
    let absent: Vec<_> =
        state.disks().filter(|disk| !roll.members.iter().any(|(_, id)| id == disk)).collect();
    // A directory that lost its name is known by who is missing, if that is one. In a store that was
    // never used any order does.
    let fresh = state.topics().next().is_none() && state.next_topic_id().0 == 1;
    if !unnamed.is_empty() && (unnamed.len() == 1 && absent.len() == 1 || fresh) {
        for (at, id) in unnamed.into_iter().zip(absent) {
            roll.members.push((at, id));
            roll.nameless.push(at);
        }
    } else {
        roll.left_out.extend(unnamed.into_iter().map(|at| LeftOut {
            path: given[at].disk.root().to_owned(),
            reason: "its identity is lost, and it may be one of several disks".into(),
        }));
    }
    roll.members.sort_by_key(|(_, id)| *id);
    match (roll.members.is_empty(), roll.left_out.first()) {
        (true, Some(LeftOut { path, reason })) => {
            Err(Error::UnsupportedFormat { path: path.clone(), reason: reason.clone() })
        }
        _ => Ok(roll),
    }
}

/// Why a directory is not the disk that it says it is.
fn misfit(identity: &DirectoryIdentity, state: &MetadataState) -> Option<String> {
    let Some(known) = state.disk(identity.disk) else {
        return Some(format!("{} is no disk of the store", identity.disk));
    };
    let same = known.uuid == identity.uuid && known.incarnation == identity.incarnation;
    (!same).then(|| {
        if known.incarnation > identity.incarnation {
            format!("{} was replaced by another directory", identity.disk)
        } else {
            "the directory's identity is not the one in its metadata".to_owned()
        }
    })
}

/// Refuses to open with too few disks (DESIGN.md section 6).
///
/// # Errors
/// [`Error::MissingDisk`].
pub(super) fn check_present(
    given: &[Given],
    roll: &Roll,
    state: &MetadataState,
    allowed: &[DiskId],
) -> Result<()> {
    let configured = state.disks().count();
    let missing: Vec<_> =
        state.disks().filter(|disk| !roll.members.iter().any(|(_, id)| id == disk)).collect();
    let majority = configured >= 3 && roll.members.len() > configured / 2;
    let Some(disk) = missing.iter().find(|disk| !allowed.contains(disk)) else {
        return Ok(());
    };
    if majority {
        return Ok(());
    }
    let path = match roll.left_out.as_slice() {
        [only] => only.path.clone(),
        _ => given.first().map_or_else(PathBuf::new, |given| given.disk.root().to_owned()),
    };
    Err(Error::MissingDisk { disk: *disk, path })
}

/// Refuses directories of which one lies in another: what is in that one's is for it to remove and to move aside. `key`: what
/// they were given as.
///
/// # Errors
/// [`Error::InvalidConfig`].
pub(super) fn check_apart<'a>(
    key: &str,
    directory: &Path,
    others: impl Iterator<Item = &'a Path>,
) -> Result<()> {
    for other in others.filter(|other| *other != directory) {
        if directory.starts_with(other) || other.starts_with(directory) {
            let (one, other) = (directory.display(), other.display());
            return Err(Error::InvalidConfig {
                key: key.into(),
                value: one.to_string(),
                reason: format!("of {one} and {other}, one lies in the other"),
            });
        }
    }
    Ok(())
}

/// A directory without an identity becomes a store only if it is empty, or if all that is in it is
/// what an interrupted first open left.
fn check_vacant(disk: &dyn Disk, must_hold: bool) -> Result<()> {
    let entries = disk.list("").map_err(|error| Error::io(disk.root(), "list", error))?;
    let metadata = layout::METADATA;
    let foreign = entries.iter().find(|entry| !is_leftover(entry));
    let has_metadata = entries.iter().any(|entry| metadata.contains(&entry.name.as_str()));
    let reason = match foreign {
        // The identity was lost; the metadata know it.
        _ if has_metadata => return Ok(()),
        Some(entry) => format!("no store, and not empty: it holds {}", entry.name),
        None if must_hold => "no store".to_owned(),
        None => return Ok(()),
    };
    Err(Error::UnsupportedFormat { path: disk.root().to_owned(), reason })
}

/// What an interrupted first open leaves, or a disk that was not added to the end.
fn is_leftover(entry: &Entry) -> bool {
    let stem = entry.name.strip_suffix(".tmp").unwrap_or(&entry.name);
    let names = [layout::LOCK, layout::IDENTITY, layout::SESSION, layout::TERM];
    let of_a_store = names.contains(&stem);
    let is_file = entry.kind == EntryKind::File;
    is_file && of_a_store || layout::METADATA.contains(&stem) || entry.name == "lost+found"
}

/// Whether all that a directory holds is what it was given to become a disk.
pub(super) fn holds_no_logs(disk: &dyn Disk) -> Result<bool> {
    let entries = disk.list("").map_err(|error| Error::io(disk.root(), "list", error))?;
    Ok(entries.iter().all(|entry| is_leftover(entry) || entry.name == layout::RESERVE))
}

fn take_lock(disk: &dyn Disk) -> Result<Box<dyn DiskLock>> {
    let path = disk.root().join(layout::LOCK);
    // Of one length, so that none is cut short.
    let note = format!("{:<10}", crate::storage::process_id());
    disk.lock(layout::LOCK, &note).map_err(|error| {
        if error.kind() != std::io::ErrorKind::WouldBlock {
            return Error::io(path, "lock", error);
        }
        let note = crate::storage::read_small(disk, layout::LOCK, 32).unwrap_or_default();
        let pid = std::str::from_utf8(&note).ok().and_then(|note| note.trim().parse().ok());
        Error::Locked { path: disk.root().to_owned(), pid }
    })
}

/// Whether a directory holds nothing that tells of a store.
pub(super) fn is_blank(disk: &dyn Disk) -> bool {
    DirectoryIdentity::read(disk).is_ok_and(|identity| identity == IdentityFile::Absent)
        && disk.list("").is_ok_and(|entries| {
            !entries.iter().any(|entry| layout::METADATA.contains(&entry.name.as_str()))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::simulated::{Fault, SimDisk};

    type Change = fn(&LastStop) -> Result<()>;

    /// It counted as written: tried again, nothing was, and the next opening went by what the file still said. It missed records
    /// that had been cut or moved away, or deleted again what had been copied since.
    #[test]
    fn what_could_not_be_written_down_of_a_log_is_written_when_it_is_tried_again() {
        let (store, log, end) = (StoreId(1), (TopicId(1), 0), Offset(9));
        let changes: [(Change, Option<LogEnd>); 3] = [
            (LastStop::forget, None),
            (LastStop::settle_start, Some(LogEnd { end, ..LogEnd::default() })),
            (
                |last| last.lower(Offset(7)),
                Some(LogEnd { end: Offset(7), start: Offset(5), ..LogEnd::default() }),
            ),
        ];
        for (change, expected) in changes {
            let disk = SimDisk::new(1);
            let mut session = Session::default();
            session.ends.insert(log, LogEnd { end, start: Offset(5), ..LogEnd::default() });
            session.write(&disk, store).unwrap();
            let place = StoreDisk::new(DiskId(0), Arc::new(disk.clone()), session, None);
            let last = LastStop { disk: place, store, log };
            disk.fail_from(1, Fault::TooManyFiles);
            change(&last).unwrap_err();
            disk.heal();
            change(&last).unwrap();
            let found = Session::read(&disk, store).unwrap();
            assert_eq!(found.ends.get(&log), expected.as_ref());
        }
    }
}
