//! Callbacks of tickets that use the store and wait for it, whichever of its threads learns what they are told.

use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use oncelog::{Acks, DiskState, Error, Flush, Partition, Record, Store, TopicConfig};

/// No test waits that long; one that does has found a hang.
const LONG: Duration = Duration::from_secs(20);

/// What callbacks do, one behind the other.
fn in_callbacks(disks: u16, flush: Flush, what: fn(&Partition) -> Result<(), Error>) {
    let store = Store::in_memory(disks.into()).unwrap();
    store.create_topic("t", TopicConfig::new().replication_factor(disks).flush(flush)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    for round in 0..20 {
        let (told, heard) = channel();
        let again = partition.clone();
        let ticket = partition.append_nowait(&[Record::new("a")], Acks::All).unwrap();
        ticket.on_complete(move |_| {
            let _ = told.send(what(&again));
        });
        let outcome = heard.recv_timeout(LONG);
        assert!(matches!(outcome, Ok(Ok(()))), "{disks} {flush:?} {round}: {outcome:?}");
    }
    assert!(store.disks().iter().all(|disk| disk.state == DiskState::Online));
    store.close(LONG).unwrap();
}

const LEVELS: [Flush; 3] = [Flush::OnAck, Flush::Os, Flush::Interval(Duration::from_millis(1))];

/// It was called by the thread that flushes the leader's disk, and waited for that thread's next flush.
#[test]
fn a_tickets_callback_may_append_and_wait() {
    for (disks, flush) in [1, 3].into_iter().flat_map(|disks| LEVELS.map(|flush| (disks, flush))) {
        in_callbacks(disks, flush, |partition| {
            partition.append(&[Record::new("b")], Acks::All).map(drop)
        });
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// With one disk, whose worker flushes for futures, it waited for ever.
#[test]
fn a_tickets_callback_may_block_on_another_ticket() {
    for (disks, flush) in [1, 3].into_iter().flat_map(|disks| LEVELS.map(|flush| (disks, flush))) {
        in_callbacks(disks, flush, |partition| {
            let mut ticket = pin!(partition.append_nowait(&[Record::new("b")], Acks::All)?);
            let waker = Waker::from(Arc::new(Unpark(thread::current())));
            let started = Instant::now();
            while started.elapsed() < LONG {
                if let Poll::Ready(outcome) = ticket.as_mut().poll(&mut Context::from_waker(&waker))
                {
                    return outcome.map(drop);
                }
                thread::park_timeout(LONG);
            }
            panic!("it waits for the thread that it is on")
        });
    }
}

#[test]
fn whoever_closes_makes_the_callbacks_that_are_left() {
    let store = Store::in_memory(3).unwrap();
    store.create_topic("t", TopicConfig::new().replication_factor(3)).unwrap();
    let partition = store.partition("t", 0).unwrap();
    let (told, heard) = channel();
    let (go, wait) = channel::<()>();
    let mut wait = Some(wait);
    for at in 0..100 {
        let (told, wait) = (told.clone(), wait.take());
        let ticket = partition.append_nowait(&[Record::new("a")], Acks::All).unwrap();
        ticket.on_complete(move |outcome| {
            wait.into_iter().for_each(|wait| _ = wait.recv_timeout(LONG));
            told.send((at, outcome.is_ok())).unwrap();
        });
    }
    drop(told);
    partition.append(&[Record::new("b")], Acks::All).unwrap();
    store.close(LONG).unwrap();
    let mut all: Vec<_> = heard.try_iter().collect();
    drop(go);
    all.extend(heard.iter());
    all.sort_unstable();
    assert_eq!(all, (0..100).map(|at| (at, true)).collect::<Vec<_>>());
}
