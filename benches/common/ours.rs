//! The crate's side of the comparisons: stores, topics, and filling them.

use std::path::Path;
use std::time::Duration;

use oncelog::{Acks, Flush, Offset, Partition, ReadOptions, Record, Retention, Store, TopicConfig};

use super::{Outcome, touch};

/// The topic of every bench.
pub(crate) const TOPIC: &str = "bench";

/// How long a store may take to close.
const CLOSE: Duration = Duration::from_secs(120);

/// How a bench's topic differs from the default one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) partitions: u32,
    pub(crate) flush: Flush,
    pub(crate) segment_bytes: u64,
    pub(crate) retention: Retention,
    /// As many disks are made below the directory.
    pub(crate) replicas: u16,
}

impl Shape {
    /// One partition, `Os`, nothing deleted.
    pub(crate) fn plain(segment_bytes: u64) -> Self {
        Self {
            partitions: 1,
            flush: Flush::Os,
            segment_bytes,
            retention: Retention::forever(),
            replicas: 1,
        }
    }
}

/// Opens a store in an empty directory and makes the topic.
pub(crate) fn create(directory: &Path, shape: &Shape) -> Outcome<Store> {
    let store = if shape.replicas == 1 {
        Store::open(directory)?
    } else {
        (0..shape.replicas)
            .fold(Store::builder(), |builder, at| builder.disk(directory.join(at.to_string())))
            .open()?
    };
    create_topic(&store, shape)?;
    Ok(store)
}

/// Makes the topic.
pub(crate) fn create_topic(store: &Store, shape: &Shape) -> Outcome<()> {
    let config = TopicConfig::new()
        .partitions(shape.partitions)
        .flush(shape.flush)
        .segment_bytes(shape.segment_bytes)
        .retention(shape.retention)
        .replication_factor(shape.replicas);
    store.create_topic(TOPIC, config)?;
    Ok(())
}

/// Closes a store; what it could not flush is an error.
pub(crate) fn close(store: &Store) -> Outcome<()> {
    store.close(CLOSE)?;
    Ok(())
}

/// Appends `count` batches of `batch` records of `value` each.
pub(crate) fn fill(partition: &Partition, value: &[u8], batch: usize, count: u64) -> Outcome<()> {
    let records = vec![Record::new(value); batch];
    for _ in 0..count {
        partition.append(&records, Acks::Leader)?;
    }
    Ok(())
}

/// Reads everything from the first record to the end and looks at every value. Returns how many
/// records there were.
pub(crate) fn read_all(partition: &Partition, step_bytes: usize) -> Outcome<u64> {
    let end = partition.high_watermark();
    let mut next = partition.log_start_offset();
    let mut count = 0;
    let mut sum = 0;
    while next < end {
        let records = partition.read(next, options(step_bytes))?;
        for record in &records {
            sum ^= touch(record.value().unwrap_or_default());
            count += 1;
        }
        let after = records.next_offset();
        if after <= next {
            return Err(
                format!("a read at {next} gave nothing although the log ends at {end}").into()
            );
        }
        next = after;
    }
    std::hint::black_box(sum);
    Ok(count)
}

/// Looks at the last record.
pub(crate) fn read_last(partition: &Partition) -> Outcome<()> {
    let end = partition.high_watermark();
    let last = Offset(end.0.checked_sub(1).ok_or("the partition is empty")?);
    let records = partition.read(last, options(1))?;
    if records.next_offset() != end {
        return Err(format!("the record at {last} was not there").into());
    }
    Ok(())
}

fn options(bytes: usize) -> ReadOptions {
    ReadOptions::new().max_bytes(bytes)
}
