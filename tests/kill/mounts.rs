//! File systems of their own, in files, which fail on demand: as root, and where the system can make them.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A file system; unmounted when this goes.
pub(crate) struct Mounted {
    home: tempfile::TempDir,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Ext4,
    Xfs,
    Btrfs,
}

impl Mounted {
    /// `None`, and a line that says why, if it cannot be had.
    pub(crate) fn new(kind: Kind) -> Option<Self> {
        Self::in_directory(kind, &std::env::temp_dir(), 1)
    }

    /// One whose device is a file of another, and hangs while that is frozen.
    pub(crate) fn on_device(kind: Kind) -> Option<(Self, Self)> {
        let device = Self::in_directory(Kind::Ext4, &std::env::temp_dir(), 8)?;
        let mounted = Self::in_directory(kind, &device.path(), 1)?;
        if matches!(kind, Kind::Ext4) {
            // Its journal is to be written soon.
            run(Command::new("mount").args(["-o", "remount,commit=1"]).arg(mounted.path()))
                .unwrap();
        }
        Some((mounted, device))
    }

    fn in_directory(kind: Kind, directory: &Path, times: u64) -> Option<Self> {
        let mounted = Self { home: tempfile::tempdir_in(directory).unwrap() };
        // They take no less; blocks that nobody writes take no room.
        let bytes = times
            * match kind {
                Kind::Ext4 => 64 << 20,
                Kind::Xfs => 320 << 20,
                Kind::Btrfs => 128 << 20,
            };
        File::create(mounted.image()).unwrap().set_len(bytes).unwrap();
        std::fs::create_dir(mounted.path()).unwrap();
        let make: &[&str] = match kind {
            Kind::Ext4 => &["mkfs.ext4", "-q", "-F"],
            Kind::Xfs => &["mkfs.xfs", "-q"],
            Kind::Btrfs => &["mkfs.btrfs", "-q"],
        };
        let made = run(Command::new(make[0]).args(&make[1..]).arg(mounted.image()));
        if let Err(words) = made.and_then(|()| mounted.mount()) {
            eprintln!("no {kind:?} to test with: {words}");
            return None;
        }
        Some(mounted)
    }

    fn image(&self) -> PathBuf {
        self.home.path().join("image")
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.home.path().join("mounted")
    }

    fn mount(&self) -> Result<(), String> {
        run(Command::new("mount").args(["-o", "loop"]).arg(self.image()).arg(self.path()))
    }

    /// It fails: what it has not written is never written, and it answers nothing any more. To its device, the power is cut.
    #[allow(unsafe_code, reason = "std cannot ask a file system to fail")]
    pub(crate) fn fail(&self) {
        /// `EXT4_IOC_SHUTDOWN`, `XFS_IOC_GOINGDOWN`
        const SHUT_DOWN: libc::c_ulong = 0x8004_587d;
        /// Not even its journal.
        const NO_LOG_FLUSH: u32 = 2;
        let directory = File::open(self.path()).unwrap();
        // SAFETY: the call reads the number that it is given, and keeps nothing.
        let outcome = unsafe { libc::ioctl(directory.as_raw_fd(), SHUT_DOWN as _, &NO_LOG_FLUSH) };
        assert_eq!(outcome, 0, "{}", std::io::Error::last_os_error());
    }

    /// All pages are written back.
    pub(crate) fn write_back(&self) {
        // One that is full may have no room for that; what it can do is done.
        let _ = run(Command::new("sync").arg("-f").arg(self.path()));
    }

    /// It writes back what it has, and holds whoever writes to it from then on, but for a minute at the most: a process that
    /// is held cannot even be killed.
    pub(crate) fn freeze(&self) {
        let thaw = "sleep 60; fsfreeze --unfreeze \"$0\"";
        let mut command = Command::new("sh");
        command.args(["-c", thaw]).arg(self.path()).stdin(Stdio::null());
        let mut thawing = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::spawn(move || thawing.wait());
        run(Command::new("fsfreeze").arg("--freeze").arg(self.path())).unwrap();
    }

    pub(crate) fn thaw(&self) {
        run(Command::new("fsfreeze").arg("--unfreeze").arg(self.path())).unwrap();
    }

    /// It is mounted again, as after the power came back. Nobody has anything open in it.
    pub(crate) fn mount_anew(&self) {
        let begun = Instant::now();
        while let Err(words) = run(Command::new("umount").arg(self.path())) {
            assert!(begun.elapsed() < Duration::from_secs(20), "{words}");
            std::thread::yield_now();
        }
        self.mount().unwrap();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // One that stays frozen cannot even be unmounted.
        let _ = run(Command::new("fsfreeze").arg("--unfreeze").arg(self.path()));
        let _ = run(Command::new("umount").arg("-l").arg(self.path()));
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| error.to_string())?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(words) }
}
