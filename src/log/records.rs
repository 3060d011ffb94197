//! What a read returns: whole batches, owned, and the records in them, borrowed.

use std::sync::Arc;

use crate::record::{BatchHeader, BatchRecords, RecordView};
use crate::segment::{Fetched, batches};
use crate::types::{Offset, TopicPartition};

/// The batches of one partition within a [`Records`].
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) partition: TopicPartition,
    /// Records before this offset share a batch with what was asked for and are passed over.
    pub(crate) from: Offset,
    pub(crate) next: Offset,
    /// Records from this offset on are for another time.
    until: Offset,
    fetched: Option<Held>,
}

/// What was fetched, and whether a later read hands out the rest of it.
#[derive(Debug)]
enum Held {
    Own(Fetched),
    Shared(Arc<Fetched>),
}

impl Part {
    pub(crate) fn new(
        partition: TopicPartition,
        from: Offset,
        next: Offset,
        fetched: Option<Fetched>,
    ) -> Self {
        Self { partition, from, next, until: Offset::MAX, fetched: fetched.map(Held::Own) }
    }

    /// The first `count` records of what was fetched, from `from` on.
    pub(crate) fn of_shared(
        partition: TopicPartition,
        from: Offset,
        fetched: &Arc<Fetched>,
        count: u64,
    ) -> Self {
        let mut left = count;
        for (header, _) in batches::Batches::new(fetched).filter(|(header, _)| is_data(header)) {
            let begin = header.base_offset.max(from);
            let here = header.end_offset().0.saturating_sub(begin.0);
            if here > left {
                let until = begin.plus(left);
                let fetched = Some(Held::Shared(Arc::clone(fetched)));
                return Self { partition, from, next: until, until, fetched };
            }
            left -= here;
        }
        let next = fetched.next;
        let fetched = Some(Held::Shared(Arc::clone(fetched)));
        Self { partition, from, next, until: Offset::MAX, fetched }
    }

    fn fetched(&self) -> Option<&Fetched> {
        match self.fetched.as_ref()? {
            Held::Own(fetched) => Some(fetched),
            Held::Shared(fetched) => Some(fetched),
        }
    }

    /// What was fetched, to hand it out in pieces.
    pub(crate) fn into_shared(self) -> Option<Arc<Fetched>> {
        match self.fetched? {
            Held::Own(fetched) => Some(Arc::new(fetched)),
            Held::Shared(fetched) => Some(fetched),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.fetched.is_none()
    }

    /// Encoded bytes that are held in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.fetched().map_or(0, |fetched| fetched.bytes.len())
    }

    /// How many records there are for the reader who asked.
    pub(crate) fn count(&self) -> u64 {
        let Some(fetched) = self.fetched() else { return 0 };
        let data = batches::Batches::new(fetched).filter(|(header, _)| is_data(header));
        let count = data.map(|(header, _)| {
            let end = header.end_offset().min(self.until);
            end.0.saturating_sub(header.base_offset.max(self.from).0)
        });
        count.sum()
    }
}

/// Control batches carry decisions, not data.
fn is_data(header: &BatchHeader) -> bool {
    !header.control
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

    pub(crate) fn of_parts(parts: Vec<Part>) -> Self {
        Self { parts: parts.into() }
    }

    /// The records: partition by partition, and in each in offset order.
    #[must_use]
    pub fn iter(&self) -> Iter<'_> {
        Iter { parts: self.parts.iter(), part: None, records: BatchRecords::empty() }
    }

    /// Where the next read of the partition, the last one if there are several, goes on. For an empty result, where this one began, or behind offsets
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
        self.parts.iter().map(Part::bytes).sum()
    }

    /// The partitions that were read, those without a record among them.
    pub fn partitions(&self) -> impl Iterator<Item = &TopicPartition> {
        self.parts.iter().map(|part| &part.partition)
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
    part: &'a Part,
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
                let batches = part.fetched().map(batches::Batches::new);
                self.part = batches.map(|batches| PartIter { part, batches });
                continue;
            };
            if !is_data(&header) {
                continue;
            }
            let Some(PartIter { part, .. }) = &self.part else { return false };
            if header.base_offset >= part.until {
                self.part = None;
                continue;
            }
            self.records = records.in_partition(&part.partition);
            if header.base_offset < part.from {
                self.records.skip_to(part.from);
            }
            if header.end_offset() > part.until {
                self.records.stop_at(part.until);
            }
            return true;
        }
    }
}
