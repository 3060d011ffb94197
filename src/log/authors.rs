//! A log and its producers: what is asked of them, what is written down, and what happens to that knowledge where the
//! log is cut, damaged, or led by another. ARCHITECTURE.md, *Memory and damage*.

use std::time::Duration;

use crate::error::Error;
use crate::protocol::producer_state::batch::Proposal;
use crate::protocol::producer_state::states::{ProducerStates, ProducerView};
use crate::protocol::producer_state::transactions::OpenTransaction;
use crate::protocol::producer_state::verdict::Verdict;
use crate::protocol::replication::EpochHistory;
use crate::record::{self, Draft, Marker};
use crate::types::{Offset, ProducerId, ProducerSequence, Timestamp};

use super::Log;
use super::producers::{self, ProducerSnapshot, Producers};

impl Log {
    /// Whether a batch of no transaction is the next one of whoever appended last: there is nothing against it.
    #[inline]
    pub(crate) fn goes_on(&self, given: ProducerSequence, count: u32) -> bool {
        self.producers.goes_on(given, count)
    }

    /// What becomes of a batch that a producer offers.
    pub(crate) fn check(&self, proposal: &Proposal) -> Verdict {
        self.producers.check(proposal)
    }

    /// Encodes the end of a producer's transaction into `draft`.
    ///
    /// # Errors
    /// [`Error::ProducerFenced`] if a later transaction of the producer's is here (TXLOG-07);
    /// [`Error::InvalidTransactionState`] while an earlier one is open.
    pub(crate) fn encode_marker(
        &self,
        marker: &Marker,
        now: Timestamp,
        draft: &mut Draft,
    ) -> Result<(), Error> {
        let Marker { producer: id, epoch, .. } = *marker;
        let partition = &self.place.identity.partition;
        let first = self.producers.check_marker(id, epoch).map_err(|refusal| {
            let given = ProducerSequence { id, epoch, sequence: 0 };
            refusal.into_error(partition.clone(), given, None)
        })?;
        record::encode_marker(marker, first.unwrap_or(self.end), now, partition, draft);
        Ok(())
    }

    /// What is known of a producer.
    pub(crate) fn producer(&self, id: ProducerId) -> Option<ProducerView> {
        self.producers.producer(id)
    }

    /// Transactions that have records here and no marker.
    pub(crate) fn open_transactions(&self) -> Vec<OpenTransaction> {
        self.producers.open_transactions()
    }

    /// Where read-committed readers stop. It does not fall while the watermark does not.
    #[inline(always)]
    pub(crate) fn last_stable(&mut self, high_watermark: Offset) -> Offset {
        self.producers.last_stable(high_watermark, self.reader.log_start())
    }

    /// What is to be written down of the producers: if enough was appended, or, when asked to, if anything was.
    pub(crate) fn producer_snapshot(&mut self, force: bool) -> Option<ProducerSnapshot> {
        self.producers.snapshot(&self.place, force)
    }

    /// What is to be written down of the producers before records below `start` go.
    pub(crate) fn producer_snapshot_before(&mut self, start: Offset) -> Option<ProducerSnapshot> {
        self.producers.snapshot_before(&self.place, start)
    }

    /// A snapshot is on the disk, or could not be written. Removes those that it replaces.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn on_producer_snapshot(
        &mut self,
        snapshot: &ProducerSnapshot,
        written: bool,
    ) -> Result<(), Error> {
        if !written {
            self.producers.on_unwritten();
            return Ok(());
        }
        let old = self.producers.on_written(snapshot);
        producers::remove_snapshots(&self.place, &old)
    }

    /// Whether it has to be told who wrote before: it went on where the leader's log begins, or is damaged.
    pub(crate) fn lacks_past(&self) -> bool {
        self.producers.lacks_past()
    }

    /// What it was told is not durable: it is to be told again before anybody relies on it.
    pub(crate) fn ask_for_past(&mut self) {
        self.producers.on_untold();
    }

    /// Takes over what the leader's log, which is not shorter, knows of the producers.
    pub(crate) fn adopt_producers(&mut self, leader: &Self) {
        assert!(leader.end >= self.end, "what is counted in is passed over later");
        self.producers.adopt(&leader.producers, self.end);
    }

    /// Whether the last batch that is counted in, which may be deleted, is one of the leader's, as far as the epochs tell.
    pub(crate) fn last_is_of(&self, history: &EpochHistory) -> bool {
        self.producers.last_is_of(history)
    }

    /// Takes over what another replica knows of the producers, if it is not longer and knows all of them.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn learn_producers(&mut self, other: &Self, now: Timestamp) -> Result<(), Error> {
        if other.lacks_past() || other.producers.tells_beyond(self.end) {
            return Ok(());
        }
        self.producers.learn(&other.producers, &self.reader, self.end, now)
    }

    /// Whether there is anything to remember of producers: an open after a clean stop looks for it.
    pub(crate) fn has_producers(&self) -> bool {
        !self.producers.is_empty()
    }

    /// All that it knows of them, for a copy of the log. `None`: there are none.
    pub(crate) fn known_producers(&self) -> Option<ProducerStates> {
        self.has_producers().then(|| self.producers.states().clone())
    }

    /// It is a copy, and what it was copied from knew `told` when it was as long, or longer.
    pub(crate) fn keep_producers(&mut self, told: &ProducerStates) {
        self.producers.keep_of_source(told);
    }

    /// Forgets producers that have not appended for `age`.
    pub(crate) fn expire_producers(&mut self, now: Timestamp, age: Duration) {
        self.producers.expire(now, age);
    }

    /// Finds the producers again after the log was cut.
    pub(super) fn recall_producers(&mut self, now: Timestamp) -> Result<(), Error> {
        self.last_epoch = self.last_epoch()?;
        let epoch = self.last_epoch.unwrap_or_default();
        self.producers.give_up_behind(self.end);
        if !self.producers.truncate_to(self.end, epoch) {
            self.find_producers(now)?;
        }
        let Some(snapshot) = self.producer_snapshot_before(self.reader.log_start()) else {
            return self.remove_foreign_snapshots();
        };
        // No other tells any more who wrote what was deleted.
        snapshot.write()?;
        self.on_producer_snapshot(&snapshot, true)?;
        let synced = self.place.disk.sync_dir(&self.place.directory);
        synced.map_err(|error| self.place.io_error("", "sync", error))
    }

    /// Removes what tells of producers in a past that is not this log's.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn remove_foreign_snapshots(&mut self) -> Result<(), Error> {
        producers::remove_for_good(&self.place, &self.producers.take_foreign())
    }

    /// Finds the producers again after what an opening found damaged was repaired: it had not seen who wrote that.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn count_repaired(&mut self, now: Timestamp) -> Result<(), Error> {
        self.find_producers(now).map(drop)
    }

    /// Finds the producers again in the log itself. Returns what was known of them.
    fn find_producers(&mut self, now: Timestamp) -> Result<Producers, Error> {
        let snapshots = self.producers.forget();
        let found = Producers::recover(&self.place, &self.reader, snapshots, self.end, now)?;
        let told = std::mem::replace(&mut self.producers, found.producers);
        self.producers.on_damaged(&found.damaged);
        Ok(told)
    }

    /// Makes sure that it knows of no producer more than the log has, before it leads. A replica that was told who wrote
    /// before it, and has not copied all of that, leads only by an unclean election: what was lost is taken when it is sent
    /// again, and is no duplicate.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn forget_what_it_lacks(&mut self, now: Timestamp) -> Result<(), Error> {
        if !self.producers.tells_beyond(self.end) {
            return Ok(());
        }
        let told = self.find_producers(now)?;
        self.producers.keep_of(told.states());
        self.remove_foreign_snapshots()
    }

    /// Another log is the leader's from now on, which knows better what this one was told of and has not copied yet.
    pub(crate) fn follow_another(&mut self) {
        self.producers.on_other_leader(self.end);
    }
}
