//! Damage: reported once, and repaired from another replica.
//!
//! Whoever meets it (a reader, a follower, the scrub) says so with [`Core::report_damage`], which asks for the repair;
//! that is done where changes of replicas are settled, under no lock of the caller's.

use crate::error::Error;
use crate::log::Repair;
use crate::types::{DiskId, Offset, Timestamp};

use super::Core;
use super::events::EventKind;

/// Damages that are remembered, to be reported once.
const REPORTED_MAX: usize = 256;

impl Core {
    pub(super) fn report_damage(&self, error: &Error) {
        if let Error::Corrupt { offsets, path, source, .. } = error {
            let mut state = self.state.lock();
            let disk = state.leading.disk;
            let known = (disk, offsets.clone());
            if state.reported.contains(&known) {
                return;
            }
            if state.reported.len() == REPORTED_MAX {
                state.reported.remove(0);
            }
            state.reported.push(known);
            if state.replicas > 1 {
                state.damaged.push((disk, offsets.start));
                self.ask_for_settling(&mut state);
            }
            drop(state);
            self.report(EventKind::Damaged {
                partition: self.partition.clone(),
                offsets: offsets.clone(),
                path: path.clone(),
                reason: source.to_string(),
            });
        }
    }

    /// Repairs the damage that was met since the last call.
    pub(crate) fn repair_damage(&self, now: Timestamp) {
        let damaged = std::mem::take(&mut self.state.lock().damaged);
        for (disk, offset) in damaged {
            match self.repair(disk, offset, now) {
                Ok(Repair::Done | Repair::Nowhere) => {}
                // Whoever meets it again asks again.
                Ok(Repair::NotNow) => self.forget_damage(disk),
                Err(error) => {
                    self.forget_damage(disk);
                    self.background_failed("repairing a segment", &error);
                }
            }
        }
    }

    /// Writes the segment of the replica on `disk` that holds `offset` anew, taking what is damaged from
    /// the other replicas.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`].
    pub(crate) fn repair(
        &self,
        disk: DiskId,
        offset: Offset,
        now: Timestamp,
    ) -> Result<Repair, Error> {
        let readers = self.readers().into_iter().filter(|(other, _)| *other != disk);
        let sources: Vec<_> = readers.map(|(_, reader)| reader).collect();
        if sources.is_empty() {
            return Ok(Repair::Nowhere);
        }
        let outcome = self.with_log(disk, |log| {
            let path = log.place().full_path("");
            log.repair(offset, &sources, now).map(|repaired| (repaired, path))
        });
        let Some(outcome) = outcome else { return Ok(Repair::Nowhere) };
        let (repaired, path) = outcome?;
        if repaired == Repair::Done {
            self.forget_damage(disk);
            self.report(EventKind::Repaired { path });
        }
        Ok(repaired)
    }

    /// Damage on `disk` that is met from now on is news again.
    fn forget_damage(&self, disk: DiskId) {
        self.state.lock().reported.retain(|(damaged, _)| *damaged != disk);
    }
}
