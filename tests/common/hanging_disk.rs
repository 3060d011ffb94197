//! Disks that hang for as long as a test needs it, and no longer.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use oncelog::simulation::{Hang, SimDisk};

/// More than any wait of a test may take.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// A disk that hangs. It heals when this goes, so that a test that fails ends; and after [`LONG`], so that a wait without
/// an end fails its test.
pub(crate) struct Hanging {
    disk: SimDisk,
    over: Sender<()>,
    watch: Option<JoinHandle<bool>>,
}

impl Hanging {
    pub(crate) fn new(disk: &SimDisk, hang: Hang) -> Self {
        disk.hang(hang);
        let (over, ended) = channel();
        let hanging = disk.clone();
        let watch = std::thread::spawn(move || {
            let overdue = ended.recv_timeout(LONG) == Err(RecvTimeoutError::Timeout);
            if overdue {
                hanging.heal();
            }
            overdue
        });
        Self { disk: disk.clone(), over, watch: Some(watch) }
    }

    /// It answers again, and what it was asked meanwhile.
    pub(crate) fn heal(mut self) {
        assert!(!self.end(), "a wait ended only because the disk answered again");
    }

    fn end(&mut self) -> bool {
        let _ = self.over.send(());
        let overdue = self.watch.take().is_some_and(|watch| watch.join().is_ok_and(|late| late));
        self.disk.heal();
        overdue
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.end();
    }
}
