//! The page for readers in other processes: made under no lock, since a disk may hang (S22).

use std::io;
use std::sync::Arc;

use crate::error::Error;
use crate::log::{Log, Marks};
use crate::protocol::replication::Progress;
use crate::segment::Place;
use crate::storage::File;
use crate::types::{DiskId, Offset, Timestamp};

use super::Proposal;
use super::core::{Core, State, Stopped};
use super::events::EventKind;

/// The page of one that is to lead.
#[derive(Debug)]
pub(crate) struct NextPage {
    pub(crate) disk: DiskId,
    place: Place,
    progress: Progress,
    last_stable: Offset,
    now: Timestamp,
}

/// The page of one that led, whose file system has not agreed lately to be stored to.
#[derive(Debug)]
pub(super) struct LeftPage {
    pub(super) disk: DiskId,
    page: Arc<Marks>,
    /// Of the log, if it is known.
    file: Option<Arc<dyn File>>,
}

impl NextPage {
    /// Makes it. It says how far may be read, and vouches for nothing that is in the files.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn make(&self) -> io::Result<()> {
        let Self { place, progress, last_stable, now, .. } = self;
        Marks::create(place, progress, *last_stable, Offset::ZERO, *now).map(drop)
    }
}

impl State {
    pub(super) fn lacks_page(&self) -> bool {
        let in_use = self.fenced.is_none() && self.ended.is_none() && self.stopped != Stopped::All;
        self.page.is_none() && !self.making_page && in_use
    }
}

impl Core {
    /// Shows how far may be read, and returns how far of that is decided.
    pub(super) fn show_page(&self, state: &mut State) -> Offset {
        let last_stable = state.log.last_stable(state.progress.high_watermark());
        if let Some(page) = &state.page {
            if page.takes_stores(self.clock.now()) {
                page.show(&state.progress, last_stable, state.log.written_end());
            } else {
                self.show_page_later(state);
            }
        }
        last_stable
    }

    /// Has it shown once its file system has agreed anew: it may hang. Where it is the only disk, the caller waits for it.
    #[cold]
    pub(super) fn show_page_later(&self, state: &mut State) {
        if self.hands_over(state) && state.leading.ask_for_attention(self) {
            state.page_is_late = true;
            return;
        }
        let Some(page) = &state.page else { return };
        if self.waits_for_page(page, state.log.active_file()) {
            let last_stable = state.log.last_stable(state.progress.high_watermark());
            page.show(&state.progress, last_stable, state.log.written_end());
        }
    }

    /// Whether the page may be stored to, which its file system is asked for if need be; the caller is held where that hangs.
    fn waits_for_page(&self, page: &Marks, file: Option<&Arc<dyn File>>) -> bool {
        let now = self.clock.now();
        let takes = page.takes_stores(now) || page.ask(file.map(|file| &**file)).is_ok();
        if takes {
            page.grant().given(now);
        }
        takes
    }

    /// Takes back what the page says behind `flushed`. It stays as it was where its file system may hang.
    pub(super) fn distrust_page(&self, state: &State, page: &Marks, flushed: Offset) {
        let file = state.log.active_file();
        let takes = page.takes_stores(self.clock.now())
            || (!self.hands_over(state) && self.waits_for_page(page, file));
        if takes {
            page.distrust(flushed);
        }
    }

    /// Takes back the page of one that leads no more: at once, or when its file system has agreed. Until then views believe it,
    /// or the metadata, at which they look where nothing comes.
    pub(super) fn disown(
        &self,
        state: &mut State,
        disk: DiskId,
        page: Arc<Marks>,
        file: Option<Arc<dyn File>>,
    ) {
        let waits = || !self.background && self.waits_for_page(&page, file.as_ref());
        if page.takes_stores(self.clock.now()) || waits() {
            page.disown();
            return;
        }
        state.left_pages.push(LeftPage { disk, page, file });
        let replica = state.followers.iter().find(|replica| replica.disk == disk);
        if let Some(replica) = replica {
            replica.ask_for_attention(self);
        }
    }

    /// Takes back what page was left on `disk`.
    pub(super) fn take_pages_back(&self, disk: DiskId) {
        let Some(state) = self.brief() else { return };
        let Some(left) = state.left_pages.iter().find(|left| left.disk == disk) else { return };
        let (page, file) = (Arc::clone(&left.page), left.file.clone());
        drop(state);
        if page.ask(file.as_deref()).is_err() {
            return; // nothing on that disk changes any more, and what is mounted anew is not believed
        }
        let mut state = self.state.lock();
        // Unless it leads again, with the same file as its page.
        let at = state.left_pages.iter().position(|left| Arc::ptr_eq(&left.page, &page));
        if let Some(at) = at {
            state.left_pages.swap_remove(at).page.disown();
        }
    }

    /// Has the file system agree to stores to the page, as it did to those to the log.
    ///
    /// # Errors
    /// [`Error::Io`]: it takes none.
    pub(super) fn grant_page(&self) -> Result<(), Error> {
        let now = self.clock.now();
        let state = self.state.lock();
        let is_due = |page: &&Arc<Marks>| state.page_is_late || page.grant().is_aging(now);
        let Some(page) = state.page.as_ref().filter(is_due) else { return Ok(()) };
        let (page, file) = (Arc::clone(page), state.log.active_file().cloned());
        let place = state.log.place().clone();
        drop(state);
        page.ask(file.as_deref()).map_err(|error| place.io_error("marks", "store", error))?;
        page.grant().given(now);
        let mut state = self.state.lock();
        if state.page.as_ref().is_some_and(|shown| Arc::ptr_eq(shown, &page)) {
            state.page_is_late = false;
            self.show_page(&mut state);
        }
        Ok(())
    }

    /// The page to be made before the metadata name another leader.
    pub(crate) fn next_page(&self, proposal: &Proposal) -> Option<NextPage> {
        let disk = proposal.start.and(proposal.leader)?;
        let mut state = self.brief()?;
        if !self.show_marks || (disk == state.leading.disk && state.fenced.is_none()) {
            return None;
        }
        let replica = state.followers.iter().find(|replica| replica.disk == disk)?;
        let place = replica.brief()?.log.as_ref().map(Log::place).cloned()?;
        let progress = state.progress.clone();
        let last_stable = state.log.last_stable(progress.high_watermark());
        let now = self.clock.now();
        Some(NextPage { disk, place, progress, last_stable, now })
    }

    /// Has the page made of one that leads since now, by the thread that flushes its disk if there is one.
    pub(crate) fn show_reign(&self) {
        let state = self.state.lock();
        let disk = state.leading.disk;
        let is_asked =
            !state.lacks_page() || (self.background && state.leading.ask_for_flush(self));
        drop(state);
        if !is_asked {
            self.make_page(disk);
        }
    }

    /// Makes the page of the leader on `disk`. It is a service to other processes: an append does not fail for want of it.
    #[cold]
    pub(crate) fn make_page(&self, disk: DiskId) {
        let mut state = self.state.lock();
        if !self.show_marks || !state.lacks_page() || state.leading.disk != disk {
            return;
        }
        state.making_page = true;
        state.making_room.push((disk, None));
        let reader = Arc::clone(state.log.reader());
        let (place, progress) = (state.log.place().clone(), state.progress.clone());
        let last_stable = state.log.last_stable(progress.high_watermark());
        let written = state.log.written_end();
        drop(state);
        let now = self.clock.now();
        let made = Marks::create(&place, &progress, last_stable, written, now);
        let mut state = self.state.lock();
        let is_other = !Arc::ptr_eq(&reader, state.log.reader());
        match made {
            // The log has changed hands meanwhile. If it is back in these, the file is that of a newer page.
            Ok(_) if is_other && state.leading.disk == disk => _ = self.show_page(&mut state),
            Ok(page) if is_other => self.disown(&mut state, disk, Arc::new(page), None),
            // The metadata name its disk until they name another.
            Ok(page) if state.fenced.is_some() => {
                self.distrust_page(&state, &page, state.progress.flushed());
            }
            Ok(page) => {
                state.page = Some(Arc::new(page));
                state.making_page = false;
                self.room_made(&mut state, disk);
                self.publish(state);
                return;
            }
            // A replica has no directory before its first record, which makes the page.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound && reader.segments().is_empty() => {}
            Err(error) => {
                let reason = format!("the page for readers in other processes: {error}");
                self.report(EventKind::BackgroundFailed {
                    partition: Some(self.partition.clone()),
                    reason,
                });
            }
        }
        if !is_other {
            state.making_page = false;
        }
        self.room_made(&mut state, disk);
    }
}
