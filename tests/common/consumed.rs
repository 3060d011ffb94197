//! A topic `t` on simulated disks, for consumers.

use oncelog::simulation::{Clock, SimDisk};
use oncelog::{Acks, Partition, Record, Store};

pub(crate) fn simulated(disks: &[SimDisk], clock: &Clock) -> Store {
    let builder = Store::builder().clock(clock.clone());
    disks.iter().fold(builder, |all, disk| all.simulated_disk(disk.clone())).open().unwrap()
}

pub(crate) fn log(store: &Store, partition: u32) -> Partition {
    store.partition("t", partition).unwrap()
}

pub(crate) fn append(store: &Store, partition: u32, values: &[&str]) {
    let records: Vec<_> = values.iter().map(|value| Record::new(*value)).collect();
    log(store, partition).append(&records, Acks::All).unwrap();
}
