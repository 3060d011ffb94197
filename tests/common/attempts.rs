//! Values that tell which attempt wrote them, and whether they are whole.

use std::collections::BTreeMap;

use oncelog::{Offset, Partition, ReadOptions};

/// An attempt's number and what follows from it, fewer than `spread` bytes.
pub(crate) struct Attempts {
    pub(crate) spread: u64,
}

impl Attempts {
    pub(crate) fn value(&self, attempt: u64) -> Vec<u8> {
        let mut bytes = attempt.to_le_bytes().to_vec();
        let more = 0..attempt % self.spread;
        bytes.extend(more.map(|at| u8::try_from((attempt * 31 + at * 7) % 251).unwrap()));
        bytes
    }

    pub(crate) fn of(&self, bytes: &[u8]) -> u64 {
        let attempt = u64::from_le_bytes(*bytes.first_chunk().expect("a value of ours"));
        assert_eq!(bytes, self.value(attempt), "bad bytes");
        attempt
    }

    /// All that can be read: each offset's attempt, and where the log goes on.
    pub(crate) fn read(&self, partition: &Partition) -> (BTreeMap<u64, u64>, Offset) {
        let (mut found, mut offset) = (BTreeMap::new(), partition.log_start_offset());
        loop {
            let records = partition.read(offset, ReadOptions::new().max_bytes(3000)).unwrap();
            for record in &records {
                found.insert(record.offset().0, self.of(record.value().unwrap()));
            }
            if records.next_offset() == offset {
                return (found, offset);
            }
            offset = records.next_offset();
        }
    }
}
