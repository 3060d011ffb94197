//! A partition as a producer uses it. Does not keep its store open: a thread that happens to hold it for a moment
//! longer than the application must not be the one that closes the store.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::partition::{Appended, Author, Core, Placed, Ticket, Wait};
use crate::protocol::producer_state::states::ProducerView;
use crate::record::Record;
use crate::types::{Acks, Offset, ProducerId, TimestampType};

use super::Shared;

/// How long a close may have to wait for who waits.
const LOOKS_AFTER: Duration = Duration::from_millis(250);

/// What became of a batch that was offered.
#[derive(Debug)]
pub(crate) enum Offered {
    /// It is acknowledged.
    Done(Appended),
    /// It is in the leader's log.
    Waits(Ticket),
}

impl From<Ticket> for Offered {
    fn from(ticket: Ticket) -> Self {
        if ticket.is_waiting() {
            Self::Waits(ticket)
        } else {
            Self::Done(ticket.appended().clone())
        }
    }
}

/// Takes a producer's batches.
#[derive(Debug)]
pub(crate) struct Appender {
    pub(super) core: Arc<Core>,
    pub(super) shared: Arc<Shared>,
}

impl Appender {
    /// Appends a batch whose author is likely to wait for it at once, or, with id 0, one of nobody.
    ///
    /// # Errors
    /// As for `Partition::append_nowait`.
    #[inline(always)]
    pub(crate) fn offer(
        &self,
        author: &Author,
        records: &[Record<'_>],
        acks: Acks,
    ) -> Result<Offered> {
        self.shared.offer(&self.core, author, records, acks)
    }

    /// Whether the log stamps the records.
    pub(crate) fn stamps_records(&self) -> bool {
        self.core.settings().topic.timestamp_type == TimestampType::AppendTime
    }

    /// The largest batch that the topic takes.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub(crate) fn max_batch_bytes(&self) -> Result<u64> {
        self.shared.check_open()?;
        Ok(self.core.settings().topic.max_batch_bytes.into())
    }

    /// What the partition knows of a producer.
    pub(crate) fn producer(&self, id: ProducerId) -> Option<ProducerView> {
        self.core.producer(id)
    }

    /// As [`Appender::producer`], once all that is known of it is acknowledged: until then, another leader may lack it.
    ///
    /// # Errors
    /// [`Error::TimedOut`]; others as for an append.
    pub(crate) fn settled_producer(
        &self,
        id: ProducerId,
        acks: Acks,
    ) -> Result<Option<ProducerView>> {
        let timeout = self.shared.patience(self.shared.options.append_timeout);
        loop {
            let reign = self.core.leader_epoch();
            let known = self.core.producer(id);
            let Some(end) = known.and_then(|producer| producer.end) else { return Ok(known) };
            let wait = Wait::new(Offset(end.0 - 1)..end, acks, reign);
            match self.core.wait_settled(&wait, timeout, &|| self.shared.settle_one(&self.core)) {
                Ok(()) => return Ok(known),
                // Its last records are not in the log of the next leader.
                Err(Error::NoLeader { .. }) if self.core.leader_epoch() != reign => {}
                Err(Error::TimedOut { .. }) => {
                    let what = format!("{}: acknowledging what was sent", self.core.partition());
                    return Err(Error::late(what, timeout));
                }
                Err(error) => return Err(error.of_others()),
            }
        }
    }
}

impl Shared {
    /// How long an acknowledgement of what is in a log is waited for: without threads, nobody is at work meanwhile.
    pub(super) fn patience(&self, timeout: Duration) -> Duration {
        if self.options.background { timeout } else { timeout.min(Duration::from_millis(1)) }
    }

    /// Waits for what the store itself has appended, `wait` by `wait`: a close, which waits for the store's threads, is not
    /// held up by replicas that are away.
    ///
    /// # Errors
    /// Those of `wait`; that it took as long as it did when the store is closed meanwhile.
    pub(super) fn while_open(
        &self,
        timeout: Duration,
        mut wait: impl FnMut(Duration) -> Result<()>,
    ) -> Result<()> {
        let mut left = timeout;
        loop {
            let span = left.min(LOOKS_AFTER);
            match wait(span) {
                Err(Error::TimedOut { what, appended, written, .. }) => {
                    left -= span;
                    if left.is_zero() || self.check_open().is_err() {
                        return Err(Error::TimedOut { what, timeout, appended, written });
                    }
                }
                outcome => return outcome,
            }
        }
    }

    /// Appends a batch whose author is likely to wait for it at once.
    #[inline(always)]
    pub(super) fn offer(
        self: &Arc<Self>,
        core: &Arc<Core>,
        author: &Author,
        records: &[Record<'_>],
        acks: Acks,
    ) -> Result<Offered> {
        match core.append_to_wait(Some(author), records, acks) {
            Ok(Placed::Done(appended)) => Ok(Offered::Done(appended)),
            Ok(waits) => Ok(Offered::Waits(self.ticket_of(core, waits, acks))),
            Err(error) if error.is_of_leader() => {
                let again = self.offer_again(core, author, records, acks);
                again.map_err(|again| error.or_still(again))
            }
            Err(error) => Err(error),
        }
    }

    #[cold]
    #[inline(never)]
    fn offer_again(
        self: &Arc<Self>,
        core: &Arc<Core>,
        author: &Author,
        records: &[Record<'_>],
        acks: Acks,
    ) -> Result<Offered> {
        self.settle_one(core);
        let placed = core.append_to_wait(Some(author), records, acks)?;
        Ok(self.ticket_of(core, placed, acks).into())
    }

    /// Appends; where there is no leader, settles who leads, and tries once more.
    #[inline]
    pub(super) fn placed(
        &self,
        core: &Arc<Core>,
        append: impl Fn(&Core) -> Result<Placed>,
    ) -> Result<Placed> {
        match append(core) {
            Err(error) if error.is_of_leader() => {
                self.settle_one(core);
                append(core).map_err(|again| error.or_still(again))
            }
            placed => placed,
        }
    }

    /// As [`Shared::placed`], through as many leaders as there may be.
    pub(super) fn placed_by_any(
        &self,
        core: &Arc<Core>,
        append: impl Fn(&Core) -> Result<Placed>,
    ) -> Result<Placed> {
        let mut placed = append(core);
        let mut leaders = None;
        while let Err(error) = &placed
            && error.is_of_leader()
        {
            let left: &mut usize = leaders.get_or_insert_with(|| core.replicas().len());
            if *left == 0 {
                break;
            }
            *left -= 1;
            self.settle_one(core);
            placed = append(core).map_err(|again| error.clone().or_still(again));
        }
        placed
    }

    pub(super) fn ticket_of(
        self: &Arc<Self>,
        core: &Arc<Core>,
        placed: Placed,
        acks: Acks,
    ) -> Ticket {
        let (shared, settled) = (Arc::downgrade(self), Arc::clone(core));
        let settler = move || {
            if let Some(shared) = shared.upgrade() {
                shared.settle_one(&settled);
            }
        };
        Ticket::new(Arc::clone(core), placed, acks, settler)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    /// Markers of replicas that were away held a close up for as long as an append may take.
    #[test]
    fn s18_what_the_store_itself_waits_for_is_given_up_at_a_close() {
        let store = Store::in_memory(1).unwrap();
        let long = Duration::from_secs(3600);
        let mut rounds = 0..3;
        let told = store.shared().while_open(long, |span| {
            assert!(span < Duration::from_secs(1));
            if rounds.next().is_none() {
                store.close(long)?;
            }
            Err(Error::in_doubt("a marker", span))
        });
        assert!(
            matches!(told, Err(Error::TimedOut { timeout, .. }) if timeout == long),
            "{told:?}"
        );
    }
}
