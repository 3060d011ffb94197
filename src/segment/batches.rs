//! The batches that a read returned, with their records.

use crate::record::{Batch, BatchHeader, BatchRecords};
use crate::types::{Compression, Offset};

use super::Fetched;

/// Walks over batches that were checked when they were read, but for those that are hidden.
#[derive(Debug)]
pub(crate) struct Batches<'a> {
    rest: &'a [u8],
    unpacked: std::slice::Iter<'a, Vec<u8>>,
    hidden: &'a [Offset],
}

impl<'a> Batches<'a> {
    pub(crate) fn new(fetched: &'a Fetched) -> Self {
        Self { rest: &fetched.bytes, unpacked: fetched.unpacked.iter(), hidden: &fetched.hidden }
    }
}

impl<'a> Iterator for Batches<'a> {
    type Item = (BatchHeader, BatchRecords<'a>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let batch = Batch::trusted(self.rest)?;
            self.rest = &self.rest[batch.header.len()..];
            let records = if batch.header.compression == Compression::None {
                batch.validated_records()
            } else {
                BatchRecords::new(&batch.header, self.unpacked.next()?)
            };
            match self.hidden.split_first() {
                Some((hidden, rest)) if *hidden == batch.header.base_offset => self.hidden = rest,
                _ => return Some((batch.header, records)),
            }
        }
    }
}
