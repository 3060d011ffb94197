//! What an application gives to a partition.

use crate::types::Timestamp;

/// One record to append: key and value, each present or absent, headers, and a timestamp.
///
/// Borrows everything; building one without headers allocates nothing.
///
/// # Examples
/// ```
/// use oncelog::{Record, Timestamp};
/// let pear = Record::new("pear").key("fruit").header("trace", b"7").timestamp(Timestamp(0));
/// let gone = Record::tombstone("fruit"); // a key without a value
/// # let _ = (pear, gone);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Record<'a> {
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) headers: Vec<(&'a str, &'a [u8])>,
    pub(crate) timestamp: Option<Timestamp>,
}

impl<'a> Record<'a> {
    /// A record with a value and no key. An empty value differs from an absent one.
    pub fn new<V: AsRef<[u8]> + ?Sized>(value: &'a V) -> Self {
        Self { value: Some(value.as_ref()), ..Self::default() }
    }

    /// A record with a key and no value: under compaction, it deletes the key.
    pub fn tombstone<K: AsRef<[u8]> + ?Sized>(key: &'a K) -> Self {
        Self { key: Some(key.as_ref()), ..Self::default() }
    }

    /// Sets the key.
    pub fn key<K: AsRef<[u8]> + ?Sized>(mut self, key: &'a K) -> Self {
        self.key = Some(key.as_ref());
        self
    }

    /// Adds a header. Names may repeat; the order is kept.
    pub fn header<V: AsRef<[u8]> + ?Sized>(mut self, name: &'a str, value: &'a V) -> Self {
        self.headers.push((name, value.as_ref()));
        self
    }

    /// Sets the time of the event. Without it, the time of the append is taken.
    pub fn timestamp(mut self, timestamp: Timestamp) -> Self {
        self.timestamp = Some(timestamp);
        self
    }
}
