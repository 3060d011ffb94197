//! A partition at one moment, for a copy of it: what is deleted meanwhile stays to be read until the cut goes.
//!
//! A crash leaves files that were kept so; they lie before the log's start, and the next opening removes them.

use std::sync::Arc;

use crate::error::Error;
use crate::log::{LogReader, remove_segment_files};
use crate::protocol::producer_state::states::ProducerStates;
use crate::segment::{Place, Segment};
use crate::types::Offset;

use super::Core;

/// Files of segments that are in no list any more.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// How many cuts there are.
    cuts: usize,
    files: Vec<(Place, Offset)>,
}

/// A partition as it was.
#[derive(Debug)]
pub(crate) struct CoreCut {
    pub(crate) start: Offset,
    /// How far it could be read.
    pub(crate) end: Offset,
    /// What was known of its producers, also behind the end. `None`: there were none.
    pub(crate) producers: Option<ProducerStates>,
    /// The replicas' logs with the segments that they had.
    pub(crate) logs: Vec<LogReader>,
    core: Arc<Core>,
}

impl CoreCut {
    pub(crate) fn core(&self) -> &Core {
        &self.core
    }
}

impl Drop for CoreCut {
    fn drop(&mut self) {
        let mut kept = self.core.kept.lock();
        kept.cuts -= 1;
        if kept.cuts > 0 {
            return;
        }
        let files = std::mem::take(&mut kept.files);
        drop(kept);
        // Of one that has ended, the directory may be another's by now, and is cleared by whoever opens or deletes it.
        if self.core.state.lock().ended.is_some() {
            return;
        }
        for (place, base) in files {
            if let Err(error) = remove_segment_files(&place, base) {
                self.core.background_failed("removing a segment", &error);
            }
        }
    }
}

impl Core {
    /// How it is now.
    pub(crate) fn cut(self: &Arc<Self>) -> CoreCut {
        // First, so that what goes from now on stays.
        self.kept.lock().cuts += 1;
        let state = self.state.lock();
        CoreCut {
            start: self.log_start(),
            end: self.high_watermark(),
            producers: state.log.known_producers(),
            logs: self.readers_in(&state).iter().map(|(_, reader)| reader.as_now()).collect(),
            core: Arc::clone(self),
        }
    }

    /// Removes the files of segments that are in no list any more, or leaves that to the last cut that may read them.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be removed.
    pub(super) fn remove_segments(
        &self,
        place: &Place,
        segments: &[Arc<Segment>],
    ) -> Result<(), Error> {
        // An empty one has the name of the next, which takes its file's place.
        let mut gone = segments.iter().filter(|one| one.end() > one.base).map(|one| one.base);
        let mut kept = self.kept.lock();
        if kept.cuts > 0 {
            kept.files.extend(gone.map(|base| (place.clone(), base)));
            return Ok(());
        }
        drop(kept);
        gone.try_for_each(|base| remove_segment_files(place, base))
    }
}
