//! The store's background work, and the one thread that does it.
//!
//! One disk, one worker. It sleeps until a partition asks for attention or something is due at a
//! time. All it does are steps of `partition::Core` and [`Shared`], so a test can do them one by one.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::partition::{Core, EventKind};
use crate::protocol::metadata::MetadataRecord;
use crate::types::{DiskId, Timestamp};

use super::{Shared, Topic};

/// An appender that comes back sooner than this outruns the worker; it readies its pages itself.
const PACED: Duration = Duration::from_millis(20);

/// The running thread.
#[derive(Debug)]
pub(super) struct Worker {
    thread: JoinHandle<()>,
    done: Receiver<()>,
    shared: Weak<Shared>,
}

/// What the worker remembers between its rounds.
#[derive(Debug, Default)]
struct Agenda {
    /// When each partition that wants to be seen again is due.
    again: HashMap<*const Core, (Weak<Core>, Duration)>,
    seen: HashMap<*const Core, Duration>,
    next_retention: Duration,
}

// The pointers in an agenda are names, never followed.

/// Starts the worker.
pub(super) fn start(shared: &Arc<Shared>) -> Result<Worker> {
    let (sender, done) = channel();
    let own = Arc::clone(shared);
    let thread = std::thread::Builder::new()
        .name("oncelog-disk-0".into())
        .spawn(move || {
            let mut agenda = Agenda::default();
            while own.work(&mut agenda) {}
            drop(own);
            // Nobody listens any more when the store was dropped in a hurry.
            let _ = sender.send(());
        })
        .map_err(|error| Error::io(shared.disk.root(), "start a thread", error))?;
    Ok(Worker { thread, done, shared: Arc::downgrade(shared) })
}

impl Worker {
    /// Ends the thread and does `last` when it has ended, both within `timeout`.
    ///
    /// # Errors
    /// [`Error::TimedOut`]: the disk hangs. What is under way goes on by itself.
    pub(super) fn finish<T: Send + 'static>(
        self,
        timeout: Duration,
        last: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        if let Some(shared) = self.shared.upgrade() {
            shared.attention.stop();
        }
        let (sender, finished) = channel();
        let Self { thread, done, .. } = self;
        let finisher = std::thread::Builder::new().name("oncelog-close".into()).spawn(move || {
            // An end of the channel is an end of the thread as well.
            let _ = done.recv();
            let _ = thread.join();
            let _ = sender.send(last());
        });
        let late = || Error::TimedOut { what: "closing the store".into(), timeout, appended: None };
        if let Err(error) = finisher {
            return Err(Error::io("", "start a thread", error));
        }
        finished.recv_timeout(timeout).map_err(|_| late())
    }
}

impl Shared {
    /// One round: waits for work, does it. False: the store closes.
    fn work(&self, agenda: &mut Agenda) -> bool {
        let now = self.clock.elapsed();
        let due = agenda.again.values().map(|(_, due)| *due).min();
        let wake = due.unwrap_or(Duration::MAX).min(agenda.next_retention);
        let Some(cores) = self.attention.wait(wake.saturating_sub(now)) else {
            return false;
        };
        self.round(agenda, cores);
        true
    }

    fn round(&self, agenda: &mut Agenda, mut cores: Vec<Arc<Core>>) {
        let elapsed = self.clock.elapsed();
        let now = self.clock.now();
        cores.iter().for_each(|core| core.attention_taken());
        agenda.again.retain(|_, (core, due)| {
            if *due > elapsed {
                return true;
            }
            cores.extend(core.upgrade());
            false
        });
        for core in &cores {
            let name = Arc::as_ptr(core);
            let last = agenda.seen.insert(name, elapsed);
            let paced = last.is_none_or(|last| elapsed.saturating_sub(last) >= PACED);
            let tended = core.tend(now, paced);
            if let Some(span) = tended.again_in {
                agenda.again.insert(name, (Arc::downgrade(core), elapsed + span));
            }
            if core.is_fenced() {
                self.note_suspect(core);
            } else {
                self.apply_retention(core, now);
            }
        }
        if elapsed >= agenda.next_retention {
            agenda.next_retention = elapsed + self.options.retention_check;
            agenda.seen.retain(|_, last| elapsed.saturating_sub(*last) < PACED * 100);
            for (_, core) in self.cores() {
                core.roll_if_old(now);
                self.apply_retention(&core, now);
            }
        }
    }

    /// Everything that is due, for stores without a thread.
    #[cfg(any(test, feature = "simulation"))]
    pub(super) fn run_background(&self) {
        let mut agenda = Agenda::default();
        let queued = self.attention.wait(Duration::ZERO).unwrap_or_default();
        let mut cores: Vec<_> = self.cores().into_iter().map(|(_, core)| core).collect();
        cores.retain(|core| !queued.iter().any(|other| Arc::ptr_eq(core, other)));
        cores.extend(queued);
        self.round(&mut agenda, cores);
    }

    /// Removes the segments that the topic's retention lets go: first durably from the metadata, then
    /// the files, so that a missing first segment is always told from a deleted one.
    fn apply_retention(&self, core: &Arc<Core>, now: Timestamp) {
        let Some(start) = core.retention_start(now) else {
            return;
        };
        let Some(topic) = self.topics.read().get(core.partition().topic()).map(Arc::clone) else {
            return;
        };
        let removed =
            self.commit_log_start(&topic, core, start).and_then(|()| core.raise_log_start(start));
        match removed {
            Ok(()) => self.events.push(
                now,
                EventKind::RetentionApplied {
                    partition: core.partition().clone(),
                    log_start: start,
                },
            ),
            Err(error) => core.background_failed("applying retention", &error),
        }
    }

    fn commit_log_start(
        &self,
        topic: &Topic,
        core: &Core,
        start: crate::types::Offset,
    ) -> Result<()> {
        self.metadata.lock().commit(&MetadataRecord::LogStartRaised {
            id: topic.id,
            partition: core.partition().partition(),
            offset: start,
        })
    }

    /// Writes down that a flush failed, so that the next open trusts nothing that was not flushed.
    fn note_suspect(&self, core: &Core) {
        let Some(topic) = self.topics.read().get(core.partition().topic()).map(Arc::clone) else {
            return;
        };
        let partition = core.partition().partition();
        let mut metadata = self.metadata.lock();
        let known = metadata
            .state()
            .partition(topic.id, partition)
            .is_none_or(|described| described.suspects.contains_key(&DiskId(0)));
        if known || metadata.is_poisoned() {
            return;
        }
        let durable = core.flushed_end();
        let noted = metadata.commit(&MetadataRecord::ReplicaSuspect {
            id: topic.id,
            partition,
            disk: DiskId(0),
            durable,
        });
        drop(metadata);
        if let Err(error) = noted {
            core.background_failed("noting a failed flush", &error);
        }
    }
}
