//! Closing a store: flush, vouch, write down, let go.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::partition::Core;

use super::session::Session;
use super::{Shared, Topic};

impl Shared {
    /// Closes the store once. The work is done on a thread of its own where there may be a disk that
    /// hangs, so that the caller gets its answer in time.
    pub(super) fn close(self: &Arc<Self>, timeout: Duration) -> Result<()> {
        if self.closed.swap(true, Ordering::AcqRel) || !self.fork.is_owner() {
            return Ok(());
        }
        if self.options.read_only {
            return Ok(());
        }
        let worker = self.worker.lock().take();
        match worker {
            None => self.settle(&self.cores()),
            Some(worker) => {
                let shared = Arc::clone(self);
                worker.finish(timeout, move || shared.settle(&shared.cores()))?
            }
        }
    }

    /// Ends appends, flushes every log, and writes the session file if all of it went well.
    fn settle(&self, cores: &[(Arc<Topic>, Arc<Core>)]) -> Result<()> {
        let mut outcome = Ok(());
        let mut session = self.session.lock().clone();
        for (topic, core) in cores {
            core.stop_appends();
            match core.settle_for_close(self.clock.now()) {
                Ok(end) => {
                    session.ends.insert((topic.id, core.partition().partition()), end);
                }
                Err(error) => outcome = outcome.and(Err(error)),
            }
            core.close();
        }
        let metadata = self.metadata.lock();
        if metadata.is_poisoned() {
            outcome = outcome.and(Err(Error::Closed));
        }
        if outcome.is_ok() {
            let boot = self.disk.boot_id();
            let position = metadata.position();
            let session = Session { clean: true, boot, metadata: position, ends: session.ends };
            outcome = session.write(&*self.disk, self.id);
        }
        drop(metadata);
        self.lock.lock().take();
        outcome
    }
}
