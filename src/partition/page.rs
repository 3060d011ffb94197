//! The page for readers in other processes: made under no lock, since a disk may hang (S22).

use std::io;
use std::sync::Arc;

use crate::error::Error;
use crate::log::{Log, Marks};
use crate::protocol::replication::Progress;
use crate::segment::Place;
use crate::types::{DiskId, Offset};

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
}

impl NextPage {
    /// Makes it. It says how far may be read, and vouches for nothing that is in the files.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn make(&self) -> io::Result<()> {
        Marks::create(&self.place, &self.progress, self.last_stable, Offset::ZERO).map(drop)
    }
}

impl State {
    /// Shows how far may be read, and returns how far of that is decided.
    pub(super) fn show_page(&mut self) -> Offset {
        let last_stable = self.log.last_stable(self.progress.high_watermark());
        if let Some(page) = &self.page
            && page.takes_stores().is_ok()
        {
            page.show(&self.progress, last_stable, self.log.written_end());
        }
        last_stable
    }

    pub(super) fn lacks_page(&self) -> bool {
        let in_use = self.fenced.is_none() && self.ended.is_none() && self.stopped != Stopped::All;
        self.page.is_none() && !self.making_page && in_use
    }
}

impl Core {
    /// Has the file system agree to stores to the page, as it did to those to the log.
    ///
    /// # Errors
    /// [`Error::Io`]: it takes none.
    pub(super) fn grant_page(&self) -> Result<(), Error> {
        let state = self.state.lock();
        let Some(map) = state.page.as_ref().map(Marks::mapping) else { return Ok(()) };
        let place = state.log.place().clone();
        drop(state);
        map.populate(0..map.len() as u64).map_err(|error| place.io_error("marks", "store", error))
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
        Some(NextPage { disk, place, progress, last_stable })
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
        let made = Marks::create(&place, &progress, last_stable, written);
        let mut state = self.state.lock();
        let is_other = !Arc::ptr_eq(&reader, state.log.reader());
        match made {
            // The log has changed hands meanwhile. If it is back in these, the file is that of a newer page.
            Ok(_) if is_other && state.leading.disk == disk => _ = state.show_page(),
            Ok(page) if is_other => page.disown(),
            // The metadata name its disk until they name another.
            Ok(page) if state.fenced.is_some() => page.distrust(state.progress.flushed()),
            Ok(page) => {
                state.page = Some(page);
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
