//! Followers that meet damage in their leader's log.

use crate::storage::simulated::{Hang, SimDisk};

use super::*;

/// A call to its disk held the third: it was not asked, and what it has was given up on the follower, which came into sync
/// without it.
#[test]
fn s3_what_a_busy_replica_may_have_is_not_passed_over() {
    let disks = [0, 1, 2].map(SimDisk::new);
    let store = open(&disks);
    let config = TopicConfig::new().replication_factor(3).flush(Flush::Os).segment_bytes(4096);
    store.create_topic("t", config).unwrap();
    append(&store).unwrap();
    store.stop_disk(DiskId(1)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    partition.append(&[Record::new("damaged")], Acks::All).unwrap();
    append(&store).unwrap();
    store.close(Duration::from_secs(1)).unwrap();
    drop((partition, store));
    let is_it = |bytes: &[u8]| bytes.windows(7).position(|seven| seven == b"damaged");
    let mut logs = disks[0].files().into_iter().filter(|name| name.ends_with(".log"));
    let found = logs.find_map(|name| is_it(&disks[0].read_file(&name)).map(|at| (name, at)));
    let (name, at) = found.expect("it is in a segment");
    let mut bytes = disks[0].read_file(&name);
    bytes[at] ^= 1;
    disks[0].write_file(&name, &bytes);

    let store = open(&disks);
    let partition = store.partition("t", 0).unwrap();
    let core = store.shared().cores().pop().expect("one partition").1;
    assert_eq!((core.leader(), core.in_sync().len()), (Some(DiskId(0)), 2));
    // It begins a segment, which a follower does when it is looked after.
    let last = partition.append_nowait(&[Record::new(&[7; 8000])], Acks::All).unwrap();
    let now = store.shared().clock.now();
    disks[2].hang(Hang::Everything);
    thread::scope(|scope| {
        scope.spawn(|| core.tend(DiskId(2), now, false));
        while disks[2].held_calls() == 0 {
            thread::yield_now();
        }
        core.tend(DiskId(1), now, false);
        disks[2].heal();
    });
    until(&store, "all are in sync", || core.in_sync().len() == 3);
    last.wait(Duration::from_secs(1)).unwrap();
    assert!(core.is_sound(DiskId(1), &(Offset(0)..Offset(4))));
}
