//! The page for readers in other processes: made under no lock, since a disk may hang (S22).

use std::sync::Arc;

use crate::log::Marks;
use crate::types::DiskId;

use super::core::{Core, State};
use super::events::EventKind;

impl State {
    pub(super) fn lacks_page(&self) -> bool {
        let in_use = self.fenced.is_none() && self.ended.is_none() && !self.stopped;
        self.page.is_none() && !self.making_page && in_use
    }
}

impl Core {
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
        match made {
            // The log may have changed hands meanwhile.
            Ok(page) if !Arc::ptr_eq(&reader, state.log.reader()) => page.disown(),
            Ok(page) if state.fenced.is_some() => page.disown(),
            Ok(page) => {
                state.page = Some(page);
                state.making_page = false;
                self.room_made(&mut state, disk);
                self.publish(state);
                return;
            }
            Err(error) => {
                let reason = format!("the page for readers in other processes: {error}");
                self.report(EventKind::BackgroundFailed {
                    partition: Some(self.partition.clone()),
                    reason,
                });
            }
        }
        if Arc::ptr_eq(&reader, state.log.reader()) {
            state.making_page = false;
        }
        self.room_made(&mut state, disk);
    }
}
