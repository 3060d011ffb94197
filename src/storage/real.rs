//! The operating system's files.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

#[cfg(not(target_os = "linux"))]
use super::write_all_at;
use super::{Disk, DiskLock, Entry, EntryKind, File, Mapping, OpenMode, Pulse};

/// A directory of the file system.
#[derive(Debug)]
pub(crate) struct RealDisk {
    root: PathBuf,
    boot: u128,
    mount: u64,
    in_place: bool,
    pulse: Arc<Pulse>,
    /// Which directory was locked, by device and inode: another may take its place.
    locked: Mutex<Option<(u64, u64)>>,
}

impl RealDisk {
    /// The directory `root`, which is made with its parents if `create` is set.
    pub(crate) fn open(root: impl Into<PathBuf>, create: bool) -> io::Result<Self> {
        let root = root.into();
        if create {
            create_directories(&root)?;
        }
        let root = fs::canonicalize(root)?;
        if !fs::metadata(&root)?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let (mount, in_place) = (mount_id(&root), stores_in_place(&root));
        let (pulse, locked) = (Arc::new(Pulse::new()), Mutex::default());
        Ok(Self { root, boot: boot_id(), mount, in_place, pulse, locked })
    }

    fn full(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// As [`RealDisk::full`], unless another directory has taken the place of the one that was locked: where a disk was
    /// unmounted, its mount point is there; where it was moved away, maybe another store's, whose files have the same names.
    fn own(&self, path: &str) -> io::Result<PathBuf> {
        let locked = *self.locked.lock();
        if let (Some(locked), Ok(found)) = (locked, number_of(&self.root))
            && found != locked
        {
            let reason = "another directory is in the place of the disk's";
            return Err(io::Error::new(io::ErrorKind::NotConnected, reason));
        }
        Ok(self.full(path))
    }
}

impl Disk for RealDisk {
    fn root(&self) -> &Path {
        &self.root
    }

    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(mode != OpenMode::Read).create_new(mode == OpenMode::Create);
        let file = open_regular(options, &self.own(path)?)?;
        Ok(Arc::new(RealFile { file, growing: Mutex::new(()), pulse: Arc::clone(&self.pulse) }))
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        fs::create_dir(self.own(path)?)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.own(from)?, self.full(to))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.own(path)?)
    }

    fn remove_dir(&self, path: &str) -> io::Result<()> {
        fs::remove_dir(self.own(path)?)
    }

    fn list(&self, path: &str) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(self.own(path)?)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let metadata = match entry.metadata() {
                // Gone between the two calls.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            let kind = if metadata.is_file() {
                EntryKind::File
            } else if metadata.is_dir() {
                EntryKind::Directory
            } else {
                EntryKind::Other
            };
            let len = if kind == EntryKind::File { metadata.len() } else { 0 };
            entries.push(Entry { name, kind, len });
        }
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(entries)
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        sync_directory(&self.own(path)?)
    }

    fn lock(&self, path: &str, note: &str) -> io::Result<Box<dyn DiskLock>> {
        // Who finds no such file makes another, and has that: somebody may remove it while it is held. Not every file system
        // locks directories.
        let directory = fs::File::open(&self.root).ok();
        let directory = match directory.as_ref().map(fs::File::try_lock) {
            Some(Err(fs::TryLockError::WouldBlock)) => return Err(io::ErrorKind::WouldBlock.into()),
            Some(Ok(())) => directory,
            Some(Err(fs::TryLockError::Error(_))) | None => None,
        };
        // It lets go of the directory if the file cannot be had.
        let mut lock =
            RealLock { files: directory.into_iter().collect(), owner: std::process::id() };
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = open_regular(options, &self.full(path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(io::ErrorKind::WouldBlock.into()),
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
        // The note is for people; the lock is the system's. A full disk has no room for notes. And whoever closes a file that
        // was cut short and written may wait for its disk (ext4, XFS).
        let is_longer = file.metadata().is_ok_and(|known| known.len() > note.len() as u64);
        if !is_longer || file.set_len(0).is_ok() {
            let _ = file.write_all(note.as_bytes());
        }
        *self.locked.lock() = number_of(&self.root).ok();
        lock.files.push(file);
        Ok(Box::new(lock))
    }

    fn exchanged(&self) -> io::Result<Option<Arc<dyn Disk>>> {
        let locked = *self.locked.lock();
        let found = number_of(&self.root)?;
        if locked.is_none_or(|locked| locked == found) && mount_id(&self.root) == self.mount {
            return Ok(None);
        }
        Ok(Some(Arc::new(Self::open(&self.root, false)?)))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        free_bytes(&self.root)
    }

    fn stores_in_place(&self) -> bool {
        self.in_place
    }

    fn boot_id(&self) -> u128 {
        self.boot
    }

    fn cache_id(&self) -> u128 {
        if self.boot == 0 { 0 } else { self.boot ^ u128::from(self.mount) }
    }

    fn pulse(&self) -> Option<&Arc<Pulse>> {
        Some(&self.pulse)
    }

    fn entropy(&self) -> u128 {
        entropy()
    }
}

/// What tells a directory from another in its place.
#[cfg(unix)]
fn number_of(directory: &Path) -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(directory).map(|found| (found.dev(), found.ino()))
}

#[cfg(not(unix))]
fn number_of(directory: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(directory).map(|_| (0, 0))
}

/// A lock on a directory and a file in it, which every forked child of its process holds as well.
#[derive(Debug)]
struct RealLock {
    files: Vec<fs::File>,
    owner: u32,
}

impl Drop for RealLock {
    fn drop(&mut self) {
        // Closing the file is not enough while a child lives that inherited it; and what a child lets
        // go of is still its parent's.
        if self.owner == std::process::id() {
            self.files.iter().for_each(|file| drop(file.unlock()));
        }
    }
}

/// Opens a regular file and nothing else: a link or a pipe under a name of ours is neither followed
/// nor waited for.
fn open_regular(mut options: fs::OpenOptions, path: &Path) -> io::Result<fs::File> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC);
    }
    let file = options.open(path).map_err(|error| match error.raw_os_error() {
        #[cfg(unix)]
        Some(libc::ELOOP | libc::ENXIO) => io::ErrorKind::InvalidInput.into(),
        _ if error.kind() == io::ErrorKind::IsADirectory => io::ErrorKind::InvalidInput.into(),
        _ => error,
    })?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(file)
}

/// Makes a directory, and those above it that are missing. Each is durable before the next is made, so that of what a crash
/// leaves only the last can be in doubt; whoever finds that one missing its successor, or empty, makes it durable.
fn create_directories(path: &Path) -> io::Result<()> {
    let named = || path.ancestors().take_while(|ancestor| !ancestor.as_os_str().is_empty());
    let missing: Vec<&Path> = named().take_while(|ancestor| !ancestor.exists()).collect();
    if missing.is_empty() && fs::read_dir(path)?.next().is_some() {
        return Ok(());
    }
    if let Some(last) = named().nth(missing.len()) {
        use io::ErrorKind::{InvalidInput, PermissionDenied, ReadOnlyFilesystem, Unsupported};
        match sync_directory_of(last).map_err(|error| error.kind()) {
            // Where it cannot be done, nobody has made the last one just now.
            Err(PermissionDenied | ReadOnlyFilesystem | InvalidInput | Unsupported) | Ok(()) => {}
            Err(kind) => return Err(kind.into()),
        }
    }
    for made in missing.into_iter().rev() {
        match fs::create_dir(made) {
            // Somebody else was quicker, or it is `..`.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && made.is_dir() => {}
            outcome => outcome?,
        }
        sync_directory_of(made)?;
    }
    Ok(())
}

/// Has the name of a directory on stable storage.
fn sync_directory_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(above) if !above.as_os_str().is_empty() => sync_directory(above),
        Some(_) => sync_directory(Path::new(".")),
        None => Ok(()),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    if cfg!(windows) {
        // Directories cannot be opened there, and their changes are journalled in order.
        return Ok(());
    }
    let mut options = fs::OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(libc::O_DIRECTORY | libc::O_CLOEXEC);
    }
    options.open(path)?.sync_all()
}

#[derive(Debug)]
struct RealFile {
    file: fs::File,
    /// Held while it is made longer where the file system reserves no blocks: one that found it short, and hung, would cut it
    /// later.
    growing: Mutex<()>,
    /// Its disk's.
    pulse: Arc<Pulse>,
}

impl File for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    #[cfg(target_os = "linux")]
    fn sync_file_system(&self) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        // SAFETY: the call takes a descriptor alone, which `file` keeps open.
        match unsafe { libc::syncfs(self.file.as_raw_fd()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    #[cfg(unix)]
    fn read_at(&self, position: u64, target: &mut [u8]) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(&self.file, target, position)
    }

    #[cfg(unix)]
    fn write_at(&self, position: u64, source: &[u8]) -> io::Result<usize> {
        std::os::unix::fs::FileExt::write_at(&self.file, source, position)
    }

    #[cfg(windows)]
    fn read_at(&self, position: u64, target: &mut [u8]) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_read(&self.file, target, position)
    }

    #[cfg(windows)]
    fn write_at(&self, position: u64, source: &[u8]) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_write(&self.file, source, position)
    }

    fn allocate(&self, position: u64, len: u64) -> io::Result<()> {
        let end = position.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
        if len == 0 {
            return Ok(());
        }
        if allocate_blocks(&self.file, position, len)? {
            return Ok(());
        }
        let _growing = self.growing.lock();
        if self.len()? < end { self.file.set_len(end) } else { Ok(()) }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    #[cfg(target_os = "linux")]
    fn write_durably_at(&self, position: u64, source: &[u8]) -> io::Result<()> {
        write_durably(&self.file, position, source)
    }

    #[cfg(not(target_os = "linux"))]
    fn write_durably_at(&self, position: u64, source: &[u8]) -> io::Result<()> {
        write_all_at(self, position, source)?;
        self.file.sync_data()
    }

    fn touch(&self) {
        touch(&self.file);
    }

    fn map(&self, len: usize, writable: bool) -> io::Result<Mapping> {
        let mut options = memmap2::MmapOptions::new();
        options.len(len);
        let map = if writable {
            options.map_raw(&self.file)?
        } else {
            options.map_raw_read_only(&self.file)?
        };
        Ok(Mapping::system(map, Arc::clone(&self.pulse)))
    }
}

/// As [`File::touch`], of a directory as well.
pub(super) fn touch(file: &fs::File) {
    #[cfg(unix)]
    {
        use std::os::fd::AsRawFd;
        // SAFETY: the call takes a descriptor, which `file` keeps open, and no times, which is now.
        let _ = unsafe { libc::futimens(file.as_raw_fd(), std::ptr::null()) };
    }
    #[cfg(not(unix))]
    let _ = file;
}

/// One call where a write and an `fdatasync` are two. A file system that does not know the flag gets
/// the two.
#[cfg(target_os = "linux")]
fn write_durably(file: &fs::File, mut position: u64, mut source: &[u8]) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;
    while !source.is_empty() {
        let part =
            libc::iovec { iov_base: source.as_ptr().cast_mut().cast(), iov_len: source.len() };
        let offset = libc::off_t::try_from(position)
            .map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        // SAFETY: one part that describes `source`, which the call only reads; the descriptor is kept
        // open by `file`.
        let count = unsafe {
            libc::pwritev2(file.as_raw_fd(), &raw const part, 1, offset, libc::RWF_DSYNC)
        };
        match usize::try_from(count) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                position += count as u64;
                source = &source[count..];
            }
            Err(_) => {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EOPNOTSUPP | libc::ENOSYS) => {
                        file.write_all_at(source, position)?;
                        return file.sync_data();
                    }
                    _ => return Err(error),
                }
            }
        }
    }
    Ok(())
}

/// Reserves blocks. False: this file system cannot.
#[cfg(target_os = "linux")]
fn allocate_blocks(file: &fs::File, position: u64, len: u64) -> io::Result<bool> {
    use std::os::fd::AsRawFd;
    let offset = |value: u64| {
        libc::off_t::try_from(value).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))
    };
    let (position, len) = (offset(position)?, offset(len)?);
    loop {
        // SAFETY: a plain system call on a descriptor that `file` keeps open.
        if unsafe { libc::fallocate(file.as_raw_fd(), 0, position, len) } == 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EOPNOTSUPP | libc::ENOSYS) => return Ok(false),
            _ => return Err(error),
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn allocate_blocks(_: &fs::File, _: u64, _: u64) -> io::Result<bool> {
    Ok(false)
}

/// Bytes that an unprivileged process can still write below `path`.
#[cfg(unix)]
fn free_bytes(path: &Path) -> io::Result<u64> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let mut found = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends in a zero, and the system fills in the structure that it is given.
    if unsafe { libc::statvfs(path.as_ptr(), found.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above succeeded, so it was filled in.
    let found = unsafe { found.assume_init() };
    #[allow(clippy::unnecessary_cast, reason = "narrower on some systems")]
    Ok((found.f_bavail as u64).saturating_mul(found.f_frsize as u64))
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> io::Result<u64> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The kernel's name for this run of the machine; 0 where it has none.
fn boot_id() -> u128 {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16).unwrap_or(0)
}

/// The kernel's number of the mounting that a directory belongs to, which it gives to no other in the same run; 0 where it
/// knows none (Linux before 6.8, others).
#[cfg(target_os = "linux")]
fn mount_id(directory: &Path) -> u64 {
    use std::os::unix::ffi::OsStrExt;
    /// `STATX_MNT_ID_UNIQUE`
    const UNIQUE: u32 = 0x4000;
    let Ok(path) = std::ffi::CString::new(directory.as_os_str().as_bytes()) else { return 0 };
    let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path ends with a zero, and the call fills in the struct, of which all zeroes are a value.
    let found = unsafe {
        if libc::statx(libc::AT_FDCWD, path.as_ptr(), 0, UNIQUE, found.as_mut_ptr()) != 0 {
            return 0;
        }
        found.assume_init()
    };
    if found.stx_mask & UNIQUE == 0 { 0 } else { found.stx_mnt_id }
}

#[cfg(not(target_os = "linux"))]
fn mount_id(_: &Path) -> u64 {
    0
}

/// Whether a directory's file system is one of those that are known to store in place. What overlays lie on is not told;
/// mostly it is one of these.
#[cfg(target_os = "linux")]
fn stores_in_place(directory: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    const EXT: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    const TMPFS: u64 = 0x0102_1994;
    const RAMFS: u64 = 0x8584_58f6;
    const OVERLAY: u64 = 0x794c_7630;
    let Ok(path) = std::ffi::CString::new(directory.as_os_str().as_bytes()) else { return false };
    let mut found = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the path ends with a zero, and the call fills in the struct, of which all zeroes are a value.
    let found = unsafe {
        if libc::statfs(path.as_ptr(), found.as_mut_ptr()) != 0 {
            return false;
        }
        found.assume_init()
    };
    #[allow(
        clippy::cast_sign_loss,
        clippy::unnecessary_cast,
        reason = "its type depends on the system"
    )]
    let magic = found.f_type as u64;
    [EXT, XFS, TMPFS, RAMFS, OVERLAY].contains(&magic)
}

/// Not known.
#[cfg(not(target_os = "linux"))]
fn stores_in_place(_: &Path) -> bool {
    false
}

/// Random bits of the system.
#[cfg(target_os = "linux")]
pub(super) fn entropy() -> u128 {
    let mut bytes = [0_u8; 16];
    // SAFETY: the call fills in at most the bytes that it is given.
    let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if usize::try_from(count) == Ok(bytes.len()) {
        return u128::from_ne_bytes(bytes);
    }
    // A kernel without the call, or one that forbids it.
    hashed_entropy()
}

/// Random bits of the system, by way of the standard library.
#[cfg(not(target_os = "linux"))]
pub(super) fn entropy() -> u128 {
    hashed_entropy()
}

/// The standard library seeds its hashers from the system's source, once a thread: who asks and when
/// tells a forked child's answers from its parent's.
fn hashed_entropy() -> u128 {
    use std::hash::{BuildHasher, RandomState};
    let asked = (std::process::id(), std::time::SystemTime::now());
    let half = |salt: u64| u128::from(RandomState::new().hash_one((salt, asked)));
    half(1) << 64 | half(2)
}

/// A fresh directory, removed with all that is in it when this is dropped.
#[derive(Debug)]
pub(crate) struct TemporaryDirectory {
    path: PathBuf,
    /// The process that made it. A forked child must not take it away.
    owner: u32,
}

impl TemporaryDirectory {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        if self.owner == std::process::id() {
            // Whatever cannot be removed now is the temporary directory's business.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Makes a directory of its own in the system's temporary one.
pub(crate) fn temporary_directory() -> io::Result<TemporaryDirectory> {
    let path = std::env::temp_dir().join(format!("oncelog-{:032x}", entropy()));
    fs::create_dir(&path)?;
    Ok(TemporaryDirectory { path, owner: std::process::id() })
}

/// This process, as lock files name it.
pub(crate) fn process_id() -> u32 {
    std::process::id()
}
