//! What a read returns: whole batches, owned, and the records in them, borrowed.

use std::sync::Arc;

use crate::record::{BatchRecords, RecordView};
use crate::segment::{Fetched, batches};
use crate::types::{Offset, TopicPartition};

/// The batches of one partition within a [`Records`].
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) partition: TopicPartition,
    /// Records before this offset share a batch with what was asked for and are passed over.
    pub(crate) from: Offset,
    pub(crate) next: Offset,
    pub(crate) fetched: Option<Fetched>,
}

/// Records that were read: owned, cheap to clone, free to move to other threads.
///
/// Holds the memory that they lie in, which is the log itself where that is possible. Every checksum
/// was verified by the read.
///
/// # Examples
/// ```
/// use oncelog::{Acks, Offset, ReadOptions, Record, Store, TopicConfig};
/// let store = Store::in_memory(1)?;
/// store.create_topic("fruit", TopicConfig::new())?;
/// let partition = store.partition("fruit", 0)?;
/// partition.append(&[Record::new("pear"), Record::new("plum")], Acks::All)?;
/// let records = partition.read(Offset(1), ReadOptions::new())?;
/// let values: Vec<_> = records.iter().map(|record| record.value()).collect();
/// assert_eq!(values, [Some(&b"plum"[..])]);
/// assert_eq!(records.next_offset(), Offset(2));
/// # Ok::<(), oncelog::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Records {
    parts: Arc<[Part]>,
}

impl Records {
    pub(crate) fn of(part: Part) -> Self {
        Self { parts: Arc::new([part]) }
    }

    /// The records in offset order.
    #[must_use]
    pub fn iter(&self) -> Iter<'_> {
        Iter { parts: self.parts.iter(), part: None, records: BatchRecords::empty() }
    }

    /// Where the next read of the partition goes on. For an empty result, where this one began, or behind offsets
    /// that hold nothing for this reader, as the ends of transactions.
    #[must_use]
    pub fn next_offset(&self) -> Offset {
        self.parts.last().map_or(Offset::ZERO, |part| part.next)
    }

    /// Whether there is no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// How many records there are; walks over them.
    #[must_use]
    pub fn count(&self) -> usize {
        self.iter().count()
    }

    /// Encoded bytes that are held in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.parts
            .iter()
            .filter_map(|part| part.fetched.as_ref())
            .map(|fetched| fetched.bytes.len())
            .sum()
    }

    /// The partition that was read.
    #[must_use]
    pub fn partition(&self) -> Option<&TopicPartition> {
        self.parts.first().map(|part| &part.partition)
    }
}

impl<'a> IntoIterator for &'a Records {
    type Item = RecordView<'a>;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

/// The records of a [`Records`], borrowed from it.
#[derive(Debug)]
pub struct Iter<'a> {
    parts: std::slice::Iter<'a, Part>,
    part: Option<PartIter<'a>>,
    records: BatchRecords<'a>,
}

#[derive(Debug)]
struct PartIter<'a> {
    from: Offset,
    batches: batches::Batches<'a>,
}

impl<'a> Iterator for Iter<'a> {
    type Item = RecordView<'a>;

    #[inline]
    fn next(&mut self) -> Option<RecordView<'a>> {
        loop {
            let record = self.records.next();
            if record.is_some() || !self.next_batch() {
                return record;
            }
        }
    }
}

impl<'a> Iter<'a> {
    /// Goes on to the next batch that holds data, and there to the first record that was asked for.
    #[inline]
    fn next_batch(&mut self) -> bool {
        loop {
            let Some((header, records)) = self.part.as_mut().and_then(|part| part.batches.next())
            else {
                let Some(part) = self.parts.next() else {
                    return false;
                };
                self.part = part.fetched.as_ref().map(|fetched| PartIter {
                    from: part.from,
                    batches: batches::Batches::new(fetched),
                });
                continue;
            };
            // Control batches carry decisions, not data.
            if header.control {
                continue;
            }
            let from = self.part.as_ref().map_or(Offset::ZERO, |part| part.from);
            self.records = records;
            if header.base_offset < from {
                self.records.skip_to(from);
            }
            return true;
        }
    }
}
