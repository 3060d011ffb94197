//! What an application gives to a producer: a record and where it goes.

use crate::types::Timestamp;

use super::Record;

/// A record with the topic that it goes to, and, if the application chooses it, the partition.
///
/// Borrows everything, as [`Record`] does. Begins without key and value; see [`Record::to`].
///
/// # Examples
/// ```
/// use oncelog::{Record, Timestamp};
/// let pear = Record::to("orders").key("customer-7").value("pear").header("trace", b"7");
/// let placed = Record::to("orders").partition(3).value("plum").timestamp(Timestamp(0));
/// # let _ = (pear, placed);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct ProducerRecord<'a> {
    pub(crate) topic: &'a str,
    pub(crate) partition: Option<u32>,
    pub(crate) record: Record<'a>,
}

impl<'a> Record<'a> {
    /// A record for a producer, which goes to `topic`.
    pub fn to(topic: &'a str) -> ProducerRecord<'a> {
        ProducerRecord { topic, partition: None, record: Self::default() }
    }
}

impl<'a> ProducerRecord<'a> {
    /// The topic's name, for a partitioner.
    #[must_use]
    pub fn topic_name(&self) -> &'a str {
        self.topic
    }

    /// The key, for a partitioner.
    #[must_use]
    pub fn key_bytes(&self) -> Option<&'a [u8]> {
        self.record.key
    }

    /// The value, for a partitioner.
    #[must_use]
    pub fn value_bytes(&self) -> Option<&'a [u8]> {
        self.record.value
    }

    /// Chooses the partition; else the producer's partitioner does.
    pub fn partition(mut self, number: u32) -> Self {
        self.partition = Some(number);
        self
    }

    /// Sets the key.
    pub fn key<K: AsRef<[u8]> + ?Sized>(mut self, key: &'a K) -> Self {
        self.record.key = Some(key.as_ref());
        self
    }

    /// Sets the value. Without one, the record is a tombstone: under compaction, it deletes the key.
    pub fn value<V: AsRef<[u8]> + ?Sized>(mut self, value: &'a V) -> Self {
        self.record.value = Some(value.as_ref());
        self
    }

    /// Adds a header. Names may repeat; the order is kept.
    pub fn header<V: AsRef<[u8]> + ?Sized>(mut self, name: &'a str, value: &'a V) -> Self {
        self.record.headers.push((name, value.as_ref()));
        self
    }

    /// Sets the time of the event. Without it, the time of the append is taken.
    pub fn timestamp(mut self, timestamp: Timestamp) -> Self {
        self.record.timestamp = Some(timestamp);
        self
    }
}
