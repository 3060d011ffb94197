//! Transactions, as an application runs them.
//!
//! A [`Transaction`] borrows its producer, so a second one cannot be begun beside it; dropping it aborts. Records that
//! are sent gather by partition; batches go to their partitions under the transaction's own producer epoch, numbered
//! from 0. The commit appends what has gathered, and waits until all of it is acknowledged before it asks for the decision.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorClass, Result, Written};
use crate::partition::{Appended, Author, Ticket};
use crate::protocol::group::assignment::PartitionId;
use crate::protocol::producer_state::batch::Numbering;
use crate::protocol::transaction::lineage::{TransactionTag, Verdict};
use crate::record::{ProducerRecord, Record, RecordSize};
use crate::store::{CommittedOffset, ConsumerGroupMetadata, Offered, busy};
use crate::types::{Acks, Compression, Mix, Offset, Outcome, ProducerSequence, TopicPartition};

use super::batch::Content;
use super::transactional::{TransactionId, TransactionalProducer, Used};

/// A transaction that is open. Dropping it aborts it.
#[derive(Debug)]
#[must_use = "a transaction that is dropped is aborted"]
pub struct Transaction<'a> {
    producer: &'a mut TransactionalProducer,
    /// How many records it has in each partition.
    sequences: Sequences,
    /// What was sent and is not appended yet.
    gathered: BTreeMap<TopicPartition, Gathered>,
    tickets: Vec<(PartitionId, Ticket)>,
    /// Why it cannot be committed.
    failed: Option<String>,
    ended: bool,
}

/// A table of so many partitions is kept for the next transaction.
const SEQUENCES_KEPT_MAX: usize = 1024;

/// By partition.
pub(super) type Sequences = HashMap<PartitionId, u64, Mix>;

#[derive(Debug)]
struct Gathered {
    /// Where they were sent: a topic of that name that came later is another one.
    to: Arc<Used>,
    content: Content,
    bytes: u64,
    /// How large it may become.
    bytes_max: u64,
}

impl<'a> Transaction<'a> {
    pub(super) fn new(producer: &'a mut TransactionalProducer) -> Self {
        // Memory that the last transaction used.
        let sequences = std::mem::take(&mut producer.sequences);
        Self {
            producer,
            sequences,
            gathered: BTreeMap::new(),
            tickets: Vec::new(),
            failed: None,
            ended: false,
        }
    }

    /// Which transaction it is: [`Store::transaction_outcome`](crate::Store::transaction_outcome) tells how it ended,
    /// also after a commit whose answer was lost. One of which nothing was appended leaves its id to the next.
    #[must_use]
    pub fn id(&self) -> TransactionId {
        let TransactionTag { producer, epoch } = self.producer.tag;
        TransactionId { producer, epoch }
    }

    /// Sends a record: it is gathered with others of its partition, in the order of sending, and appended at the commit
    /// at the latest.
    ///
    /// # Errors
    /// [`Error::UnknownTopicOrPartition`], [`Error::RecordTooLarge`]: it is not part of the transaction, which goes on.
    /// After any other error, which may be that of records sent before, the transaction can only be aborted.
    pub fn send(&mut self, record: ProducerRecord<'_>) -> Result<()> {
        let sent = self.gather(record);
        if let Err(error) = &sent
            && !matches!(
                error,
                Error::UnknownTopicOrPartition { .. } | Error::RecordTooLarge { .. }
            )
        {
            // Not committed without it by one who looks at the commit alone.
            self.fail(error);
        }
        sent
    }

    fn gather(&mut self, record: ProducerRecord<'_>) -> Result<()> {
        let name = self.producer.choose(&record)?;
        let used = match self.producer.used(name.topic(), name.partition()) {
            Ok(used) => used,
            Err(error) => {
                self.producer.forget(name.topic());
                return Err(error);
            }
        };
        let size = RecordSize::of(&record.record);
        let (alone, bytes) = (size.batch_bytes(), size.bytes_max());
        if let Some(gathered) = self.gathered.get_mut(&name) {
            if gathered.to.id == used.id && gathered.bytes + alone <= gathered.bytes_max {
                gathered.content.push(&record.record);
                gathered.bytes += bytes;
                return Ok(());
            }
            self.append_gathered(&name)?;
        }
        // Asked anew for each batch: the topic's limit may change.
        let bytes_max = used.partition.max_batch_bytes()?.min(self.producer.settings.batch_bytes);
        if alone > bytes_max {
            // It is a batch by itself, or is refused.
            return self.append_to(&used, &[record.record]).map(drop);
        }
        let mut content = Content::default();
        content.push(&record.record);
        self.gathered.insert(name, Gathered { to: used, content, bytes, bytes_max });
        Ok(())
    }

    /// Appends `records` as one batch of the transaction, behind what was sent to the partition before. Returns where
    /// they are; only the commit waits for their acknowledgement.
    ///
    /// A batch that is refused for want of replicas is offered again for up to the delivery timeout.
    ///
    /// # Errors
    /// Those of [`Partition::append`](crate::Partition::append) with nothing written: the transaction goes on.
    /// [`Error::TransactionAborted`], [`Error::ProducerFenced`], [`Error::Closed`]: it is over. After any other error it can
    /// only be aborted.
    pub fn append(
        &mut self,
        topic: &str,
        partition: u32,
        records: &[Record<'_>],
    ) -> Result<Range<Offset>> {
        self.append_behind(topic, partition, records).inspect_err(|error| self.note(error))
    }

    fn append_behind(
        &mut self,
        topic: &str,
        partition: u32,
        records: &[Record<'_>],
    ) -> Result<Range<Offset>> {
        if !self.gathered.is_empty() {
            self.append_gathered(&TopicPartition::new(topic, partition))?;
        }
        let used = self.producer.used(topic, partition)?;
        let appended = match self.append_to(&used, records) {
            // It was known from before; another may have its name.
            Err(Error::UnknownTopicOrPartition { .. }) => {
                let used = self.producer.used(topic, partition)?;
                self.append_to(&used, records)
            }
            appended => appended,
        };
        appended.map(|appended| appended.offsets)
    }

    pub(super) fn append_to(&mut self, used: &Used, records: &[Record<'_>]) -> Result<Appended> {
        if !self.sequences.contains_key(&used.id) {
            let producer = &*self.producer;
            producer.transactions.match_flush(producer.store.shared(), &used.partition)?;
        }
        let compression = self.producer.settings.compression;
        let appended = self.write(used.id, compression, records.len(), |author| {
            used.partition.append_as(author, records, Acks::All)
        });
        appended.inspect_err(|error| {
            if matches!(error, Error::UnknownTopicOrPartition { .. }) {
                self.producer.forget(used.partition.name().topic());
            }
        })
    }

    /// Appends what was sent to a partition.
    fn append_gathered(&mut self, name: &TopicPartition) -> Result<()> {
        let Some(gathered) = self.gathered.remove(name) else { return Ok(()) };
        let outcome = self.append_in_pieces(&gathered.to, &gathered.content.records());
        if let Err(error) = &outcome {
            // Its senders were told that it is part of the transaction.
            self.fail(error);
        }
        outcome
    }

    /// Appends records as one batch; as several if the topic's limit fell meanwhile (CLI-11).
    fn append_in_pieces(&mut self, to: &Used, records: &[Record<'_>]) -> Result<()> {
        match self.append_to(to, records) {
            Err(Error::RecordTooLarge { .. }) if records.len() > 1 => {
                let (lower, upper) = records.split_at(records.len() / 2);
                self.append_in_pieces(to, lower)?;
                self.append_in_pieces(to, upper)
            }
            outcome => outcome.map(drop),
        }
    }

    /// Commits offsets with the transaction: they count when it is committed, and never did when it is aborted. With
    /// them, what was read, and what was made of it, are done once, together (KIP-447).
    ///
    /// `group` says who commits ([`Consumer::group_metadata`](crate::Consumer::group_metadata)): a consumer that has
    /// lost a partition since cannot commit for it any more.
    ///
    /// # Errors
    /// Those of a commit of offsets; [`Error::UnknownMember`] and [`Error::IllegalGeneration`] are the end of the
    /// transaction. [`Error::RebalanceInProgress`] is returned at once, with nothing written: the consumer has to poll
    /// first. Those of [`Transaction::append`]. After any error amid more than a batch takes (thousands of partitions, or
    /// hundreds with much metadata), the transaction can only be aborted.
    pub fn send_offsets<'o>(
        &mut self,
        offsets: impl IntoIterator<Item = (&'o TopicPartition, &'o CommittedOffset)>,
        group: &ConsumerGroupMetadata,
    ) -> Result<()> {
        let offsets: Vec<_> =
            offsets.into_iter().map(|(at, offset)| (at.clone(), offset.clone())).collect();
        self.write_offsets(&offsets, group).inspect_err(|error| self.note(error))
    }

    fn write_offsets(
        &mut self,
        offsets: &[(TopicPartition, CommittedOffset)],
        group: &ConsumerGroupMetadata,
    ) -> Result<()> {
        let shared = Arc::clone(self.producer.store.shared());
        let offsets = shared.placed_offsets(group, offsets)?;
        if offsets.is_empty() {
            return Ok(());
        }
        let groups = shared.groups()?;
        let mut is_sent = false;
        for piece in groups.pieces(group, &offsets) {
            let written = self.write(groups.partition(), None, piece.len(), |author| {
                groups.send_offsets(&shared, author, group, piece).map(Offered::from)
            });
            if let Err(error) = written {
                if is_sent {
                    // A part of them is not to be committed without the rest.
                    self.fail(&error);
                }
                return Err(error);
            }
            is_sent = true;
        }
        Ok(())
    }

    /// Appends a batch under the transaction's numbers, again and again while that may help.
    fn write(
        &mut self,
        partition: PartitionId,
        compression: Option<Compression>,
        count: usize,
        append: impl Fn(&Author) -> Result<Offered>,
    ) -> Result<Appended> {
        let (mut tries, mut doubt) = (Tries::default(), None::<Error>);
        loop {
            let error = match self.write_once(partition, compression, count, &append) {
                Ok(appended) => return Ok(appended),
                Err(error) => error,
            };
            // A rebalance passes when the consumer polls, which may be up to this very thread.
            let passes = error.class() == ErrorClass::Retriable
                && !matches!(error, Error::RebalanceInProgress { .. });
            let TransactionalProducer { settings, store, .. } = &*self.producer;
            // Under its numbers, the batch is in the log once however often it is offered.
            let again = passes && tries.may_try_again(settings.delivery_timeout, store);
            let error = match doubt.take() {
                Some(doubt) if !ends_transaction(&error) => doubt.or_still(error),
                _ => error,
            };
            if !again {
                self.note(&error);
                return Err(error);
            }
            doubt = Some(error);
        }
    }

    fn write_once(
        &mut self,
        partition: PartitionId,
        compression: Option<Compression>,
        count: usize,
        append: impl Fn(&Author) -> Result<Offered>,
    ) -> Result<Appended> {
        // Until `end` says otherwise, which it does not if the transaction is forgotten. It is asked also if nothing can
        // be written, for somebody else may have the id.
        self.producer.in_doubt = true;
        let sequence = self.sequences.entry(partition).or_insert(0);
        let producer = &*self.producer;
        let TransactionTag { producer: id, epoch } = producer.tag;
        producer.transactions.join(&producer.id, producer.tag, partition)?;
        let author = Author {
            producer: ProducerSequence { id, epoch, sequence: *sequence },
            transactional: true,
            strict: true,
            numbering: Numbering::Restarts,
            compression,
        };
        match append(&author) {
            Ok(offered) => {
                *sequence += count as u64;
                Ok(match offered {
                    Offered::Done(appended) => appended,
                    Offered::Waits(ticket) => {
                        let appended = ticket.appended().clone();
                        self.tickets.push((partition, ticket));
                        appended
                    }
                })
            }
            Err(error) => {
                let (shared, tag) = (producer.store.shared(), producer.tag);
                if let Error::InvalidTransactionState { .. } = &error
                    && producer.transactions.settle_earlier(shared, tag, partition)?
                {
                    return Err(busy(&producer.id));
                }
                if let Error::ProducerFenced { current, .. } = &error {
                    let seen = TransactionTag { producer: id, epoch: *current };
                    producer.transactions.learn(producer.store.shared(), seen, partition);
                }
                Err(error)
            }
        }
    }

    /// From now on it can only be aborted, if `error` has it so.
    fn note(&mut self, error: &Error) {
        // Another batch would get the numbers of one that may be written, and be taken for it.
        if error.written() != Written::No || ends_transaction(error) {
            self.fail(error);
        }
    }

    fn fail(&mut self, error: &Error) {
        self.failed.get_or_insert_with(|| error.to_string());
    }

    /// Commits: when this returns, every read-committed reader sees all of it; of a partition in which an earlier transaction of
    /// another producer is open, when that has ended, for readers go in the order of the log (the last stable offset).
    ///
    /// The decision is one durable record. Before it, nothing of the transaction will ever be seen; after it, all of it
    /// will, whatever happens to the process.
    ///
    /// # Errors
    /// [`Error::TransactionAborted`]: it was aborted instead, for it had timed out or a record of it is not
    /// acknowledged. [`Error::ProducerFenced`]: so it was. [`Error::TimedOut`] and others: how it ends is not known yet,
    /// unless [`Error::written`] says so; [`Store::transaction_outcome`](crate::Store::transaction_outcome) tells, and the next
    /// [`TransactionalProducer::begin`] settles it.
    pub fn commit(mut self, timeout: Duration) -> Result<()> {
        // Where nothing is waited for before the decision, the clock is not asked.
        let waits = !self.gathered.is_empty() || !self.tickets.is_empty();
        let deadline = waits.then(|| Instant::now().checked_add(timeout)).flatten();
        let left = || deadline.map_or(timeout, |at| at.saturating_duration_since(Instant::now()));
        for name in self.gathered.keys().cloned().collect::<Vec<_>>() {
            if self.failed.is_none() {
                // What fails is noted.
                let _ = self.append_gathered(&name);
            }
        }
        let mut failed = self.failed.take();
        self.hurry();
        for (_, ticket) in self.tickets.drain(..) {
            if failed.is_none() {
                failed = ticket.wait(left()).err().map(|error| error.to_string());
            }
        }
        if let Some(reason) = failed {
            let id = self.producer.id.to_string();
            self.end(Outcome::Aborted, self.producer.settings.max_block)?;
            return Err(Error::TransactionAborted { id, reason });
        }
        match self.end(Outcome::Committed, left())? {
            Outcome::Committed => Ok(()),
            Outcome::Aborted => {
                let id = self.producer.id.to_string();
                Err(Error::TransactionAborted { id, reason: "it timed out".into() })
            }
        }
    }

    /// Has the disks' workers flush all partitions but the first, which the commit flushes by itself.
    fn hurry(&self) {
        if self.tickets.len() < 2 {
            return;
        }
        let mut hurried: HashSet<_> =
            self.tickets.iter().take(1).map(|(first, _)| *first).collect();
        for (partition, ticket) in &self.tickets {
            if hurried.insert(*partition) {
                ticket.hurry();
            }
        }
    }

    /// Aborts: no read-committed reader will ever see any of it.
    ///
    /// # Errors
    /// [`Error::ProducerFenced`] if another holder of the id has done so; [`Error::TimedOut`] and others: it is aborted
    /// later, and not committed in any case.
    pub fn abort(mut self, timeout: Duration) -> Result<()> {
        self.end(Outcome::Aborted, timeout).map(|_| ())
    }

    fn end(&mut self, outcome: Outcome, wait: Duration) -> Result<Outcome> {
        self.ended = true;
        let producer = &mut *self.producer;
        if self.sequences.is_empty() {
            return Ok(outcome); // it never began
        }
        let (store, tag) = (producer.store.shared(), producer.tag);
        let transactions = &producer.transactions;
        let ended = transactions.end(store, &producer.id, tag, outcome, wait);
        let (ended, next) = ended.map_err(|error| {
            let written = match (outcome, transactions.verdict(tag), error.written()) {
                (Outcome::Aborted, ..) | (_, Verdict::Aborted, _) => Written::No,
                (_, Verdict::Committed, _) => Written::Yes,
                // The decision was refused, and is not asked for again.
                (_, Verdict::Open, Written::No) => Written::No,
                (_, Verdict::Open | Verdict::Forgotten | Verdict::Unknown, _) => Written::Unknown,
            };
            without_answer(error, written, wait)
        })?;
        match (ended, next) {
            // Somebody else has the id by now, or its epochs are used up: the next `begin` tells. What is committed is.
            (Outcome::Committed, None) => producer.in_doubt = true,
            (_, next) => producer.take_next(next)?,
        }
        Ok(ended)
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if !self.ended {
            // What cannot be aborted now is aborted by the next `begin`, by a time-out, or at the next open.
            let _ = self.end(Outcome::Aborted, self.producer.settings.max_block);
        }
        if self.sequences.capacity() <= SEQUENCES_KEPT_MAX {
            self.sequences.clear();
            self.producer.sequences = std::mem::take(&mut self.sequences);
        }
    }
}

/// Whether the transaction can only be aborted after `error`, whatever was written.
fn ends_transaction(error: &Error) -> bool {
    matches!(error.class(), ErrorClass::AbortTransaction | ErrorClass::Fenced | ErrorClass::Fatal)
}

/// What is told if there is no answer: as much as is known of how the transaction ends, for what is said of a record of the
/// store's own is not said of the transaction's.
fn without_answer(error: Error, written: Written, timeout: Duration) -> Error {
    let what = match error {
        Error::TimedOut { what, .. } => what,
        Error::NotEnoughReplicasAfterAppend { .. } => error.to_string(),
        Error::Io { path, action, source, .. } => {
            return Error::Io { path, action, written, source };
        }
        Error::DiskOffline { partition, disk, at_risk, cause, .. } => {
            return Error::DiskOffline { partition, disk, at_risk, cause, written };
        }
        error => return error,
    };
    Error::TimedOut { what, timeout, appended: None, written }
}

/// Counts the tries of a batch.
#[derive(Debug, Default)]
struct Tries {
    started: Option<Instant>,
    count: u32,
}

impl Tries {
    /// Waits a little, longer each time. False: the time is over, or nobody else could change anything meanwhile.
    fn may_try_again(&mut self, within: Duration, store: &crate::store::Store) -> bool {
        let started = *self.started.get_or_insert_with(Instant::now);
        if started.elapsed() >= within || !store.has_background() || store.check_open().is_err() {
            return false;
        }
        let pause = Duration::from_millis(1) * (1 << self.count.min(7));
        self.count += 1;
        store.pause(pause);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::super::TransactionOutcome;
    use super::*;
    use crate::config::{TopicConfig, TopicUpdate};
    use crate::partition::ReadOptions;
    use crate::storage::simulated::{Hang, SimDisk};
    use crate::store::{Store, StoreBuilder};
    use crate::types::{DiskId, Flush, Isolation, ProducerId};

    const LONG: Duration = Duration::from_secs(60);

    /// The last try was believed, and the transaction went on: what came next under the same number was taken for the batch
    /// that was there, and the commit showed the one instead of the other.
    #[test]
    fn cli_09_a_batch_that_one_try_may_have_written_ends_its_transaction_though_the_next_were_refused()
     {
        let store = Store::in_memory(1).unwrap();
        store.create_topic("t", TopicConfig::new()).unwrap();
        let builder = store.producer().transactional_id("id");
        let mut held = builder.delivery_timeout(Duration::from_millis(20)).build().unwrap();
        let mut transaction = held.begin().unwrap();
        let used = transaction.producer.used("t", 0).unwrap();
        let tries = Cell::new(0);
        let append = |author: &Author| {
            if tries.replace(tries.get() + 1) > 0 {
                return Err(Error::NoLeader { partition: used.partition.name().clone() });
            }
            used.partition.append_as(author, &[Record::new("first")], Acks::All)?;
            Err(Error::in_doubt("an append", Duration::ZERO))
        };
        let error = transaction.write(used.id, None, 1, append).unwrap_err();
        assert_eq!(error.written(), Written::Unknown, "{error:?}");
        let _ = transaction.append("t", 0, &[Record::new("second")]);
        let ended = transaction.commit(LONG);
        assert!(matches!(ended, Err(Error::TransactionAborted { .. })), "{ended:?}");
        let committed = ReadOptions::new().isolation(Isolation::ReadCommitted);
        assert_eq!(used.partition.read(Offset(0), committed).unwrap().count(), 0);
    }

    #[test]
    fn a_transaction_is_committed_behind_errors_that_leave_it_as_it_was_and_no_others() {
        let store = Store::in_memory(1).unwrap();
        store.create_topic("t", TopicConfig::new()).unwrap();
        let mut held = store.producer().transactional_id("id").build().unwrap();
        let (id, group) = (ProducerId(1), "g".to_owned());
        let partition = || TopicPartition::new("t", 0);
        let errors = [
            (Error::RecordTooLarge { partition: partition(), bytes: 2, bytes_max: 1 }, true),
            (Error::RebalanceInProgress { group: group.clone() }, true),
            (Error::DuplicateSequence { partition: partition(), id, given: 0 }, false),
            (
                Error::OutOfOrderSequence { partition: partition(), id, expected: 0, given: 1 },
                false,
            ),
            (Error::UnknownProducer { partition: partition(), id }, false),
            (Error::UnknownMember { group, reason: "it left".into() }, false),
        ];
        for (error, goes_on) in errors {
            let mut transaction = held.begin().unwrap();
            let used = transaction.producer.used("t", 0).unwrap();
            let told = transaction.write(used.id, None, 1, |_| Err(error.clone()));
            assert!(told.is_err());
            match transaction.commit(LONG) {
                Ok(()) => assert!(goes_on, "{error:?}"),
                Err(Error::TransactionAborted { .. }) => assert!(!goes_on, "{error:?}"),
                Err(other) => panic!("{error:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_commit_whose_decision_is_under_way_when_its_time_is_over_may_have_been_made() {
        let disks: Vec<_> = (0..3).map(SimDisk::new).collect();
        let all = |builder: StoreBuilder, disk: &SimDisk| builder.simulated_disk(disk.clone());
        let store = disks.iter().fold(Store::builder(), all).threads().open().unwrap();
        store.create_topic("t", TopicConfig::new().partitions(3).flush(Flush::Os)).unwrap();
        let mut held = store.producer().transactional_id("id").build().unwrap();
        let leader = |topic: &str, number| store.partition(topic, number).unwrap().leader();
        let decides = leader("__transaction_state", 0);
        let number = (0..3).find(|number| leader("t", *number) == decides).unwrap();
        let mut transaction = held.begin().unwrap();
        let id = transaction.id();
        transaction.append("t", number, &[Record::new("x")]).unwrap();
        let others = || (0..).map(DiskId).zip(&disks).filter(|(id, _)| Some(*id) != decides);
        others().for_each(|(_, disk)| disk.hang(Hang::Everything));
        let error = transaction.commit(Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.written(), Written::Unknown, "{error:?}");
        others().for_each(|(_, disk)| disk.answer());
        drop(held.begin().unwrap());
        assert_eq!(store.transaction_outcome(id).unwrap(), TransactionOutcome::Committed);
    }

    /// It was told of a commit with nothing in it.
    #[test]
    fn cli_14_a_transaction_is_not_committed_without_a_record_that_could_not_be_sent() {
        let store = Store::in_memory(1).unwrap();
        for name in ["t", "v"] {
            store.create_topic(name, TopicConfig::new()).unwrap();
        }
        let mut held = store.producer().transactional_id("id").build().unwrap();
        let mut transaction = held.begin().unwrap();
        let unknown = transaction.send(Record::to("u").value(b"x"));
        assert!(matches!(unknown, Err(Error::UnknownTopicOrPartition { .. })), "{unknown:?}");
        transaction.send(Record::to("t").value(b"x")).unwrap();
        transaction.commit(LONG).unwrap();
        let mut transaction = held.begin().unwrap();
        store.close(LONG).unwrap();
        let sent = transaction.send(Record::to("v").value(b"x"));
        assert!(matches!(sent, Err(Error::Closed)), "{sent:?}");
        let ended = transaction.commit(LONG);
        assert!(matches!(ended, Err(Error::TransactionAborted { .. })), "{ended:?}");
    }

    /// Only an append that had come as far as the log was noted; a commit of nothing is not told of what is closed.
    #[test]
    fn cli_17_what_could_not_be_appended_for_good_is_not_left_out_of_a_commit() {
        let store = Store::in_memory(3).unwrap();
        let twice = TopicConfig::new().replication_factor(2).min_insync_replicas(2);
        store.create_topic("t", twice).unwrap();
        let follower = store.partition("t", 0).unwrap().replicas()[1];
        let builder = store.producer().transactional_id("id").batch_bytes(1024);
        let mut held = builder.delivery_timeout(Duration::from_millis(20)).build().unwrap();

        let mut transaction = held.begin().unwrap();
        store.stop_disk(follower).unwrap();
        let alone = Record::to("t").value(&[b'x'; 2000]);
        let refused = transaction.send(alone);
        assert!(matches!(refused, Err(Error::NotEnoughReplicas { .. })), "{refused:?}");
        store.start_disk(follower).unwrap();
        let ended = transaction.commit(LONG);
        assert!(matches!(ended, Err(Error::TransactionAborted { .. })), "{ended:?}");

        let group = store.consumer().group("g").build().unwrap().group_metadata();
        let offset = (TopicPartition::new("t", 0), CommittedOffset::from(Offset(1)));
        store.close(LONG).unwrap();
        for at in 0..3 {
            held.forget("t");
            let mut transaction = held.begin().unwrap();
            let refused = match at {
                0 => transaction.send(Record::to("t").value("x")),
                1 => transaction.append("t", 0, &[Record::new("x")]).map(drop),
                _ => transaction.send_offsets([(&offset.0, &offset.1)], &group),
            };
            assert!(matches!(refused, Err(Error::Closed)), "{at}: {refused:?}");
            let ended = transaction.commit(LONG);
            assert!(matches!(ended, Err(Error::TransactionAborted { .. })), "{at}: {ended:?}");
        }
    }

    #[test]
    fn cli_11_a_record_that_was_sent_and_does_not_fit_any_more_is_not_left_out_of_a_commit() {
        let store = Store::in_memory(1).unwrap();
        store.create_topic("t", TopicConfig::new()).unwrap();
        let mut held = store.producer().transactional_id("id").build().unwrap();
        let mut transaction = held.begin().unwrap();
        transaction.send(Record::to("t").partition(0).value(&[b'x'; 2000])).unwrap();
        store.alter_topic("t", TopicUpdate::new().max_batch_bytes(1024)).unwrap();
        let ended = transaction.commit(LONG);
        assert!(matches!(ended, Err(Error::TransactionAborted { .. })), "{ended:?}");
    }
}
