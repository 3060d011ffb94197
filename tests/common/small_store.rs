//! Small stores on simulated disks of one process, and all that can be read in them.

use std::time::Duration;

use oncelog::simulation::{Clock, SimDisk};
use oncelog::{Error, Isolation, Partition, ReadOptions, Store};

/// Disks of which none lives on when another's process ends.
pub(crate) fn together(disks: Vec<SimDisk>) -> Vec<SimDisk> {
    disks[1..].iter().for_each(|disk| disk.share_process(&disks[0]));
    disks
}

pub(crate) fn disks(count: u64) -> Vec<SimDisk> {
    together((0..count).map(SimDisk::new).collect())
}

/// Opens a store in which nobody waits long.
pub(crate) fn open(disks: &[SimDisk], clock: &Clock) -> Result<Store, Error> {
    let builder = Store::builder().clock(clock.clone()).append_timeout(Duration::from_millis(20));
    disks.iter().fold(builder, |b, disk| b.simulated_disk(disk.clone())).open()
}

/// Lets `span` go by in steps, after each of which the store does what is due.
pub(crate) fn pass(store: &Store, clock: &Clock, span: Duration) {
    const STEP: Duration = Duration::from_millis(50);
    let mut left = span;
    while !left.is_zero() {
        clock.advance(STEP);
        store.run_background();
        left = left.saturating_sub(STEP);
    }
}

/// Every record, as offset and value.
pub(crate) fn read_all(partition: &Partition, isolation: Isolation) -> Vec<(u64, Vec<u8>)> {
    let (mut found, mut offset) = (Vec::new(), partition.log_start_offset());
    loop {
        let records = partition.read(offset, ReadOptions::new().isolation(isolation)).unwrap();
        found.extend(records.iter().map(|r| (r.offset().0, r.value().unwrap().to_vec())));
        if records.next_offset() == offset {
            return found;
        }
        offset = records.next_offset();
    }
}
