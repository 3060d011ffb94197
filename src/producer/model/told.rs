//! Who is told of records that have ended, and when: whoever waits, callbacks, wakers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::task::Waker;
use std::time::Duration;

use parking_lot::Mutex;

use crate::error::Error;
use crate::partition::wake_all;
use crate::record::Record;

use super::*;

#[test]
fn cli_22_a_flush_waits_for_what_was_sent_before_it() {
    let mut world = World::plain();
    world.fates(vec![Fate::Waits]);
    world.send();
    assert!(!world.lane.wait(0, Duration::ZERO, Until::Called));
    world.log.lock().acknowledge();
    assert!(world.lane.wait(0, Duration::ZERO, Until::Called));
    assert_eq!(world.called.lock().len(), 1);
}

/// It was left to whoever asked again, or to nobody.
#[test]
fn who_asks_once_for_an_outcome_has_it_brought_about() {
    let mut world = World::plain();
    world.fates(vec![Fate::Waits]);
    world.sent = 1; // without a callback
    world.send();
    let (_, receipt) = &world.receipts[0];
    assert!(receipt.outcome().is_none());
    world.common.chores.run_due();
    world.log.lock().acknowledge();
    world.common.chores.run_due();
    assert!(receipt.has_ended());
}

/// Between the end of a flush's records and their callbacks, another thread may have begun to call them.
#[test]
fn cli_22_a_flush_waits_for_callbacks_that_another_thread_calls() {
    let world = World::plain();
    world.fates(vec![Fate::Waits]);
    let (begins, begun) = channel();
    let (release, released) = channel::<()>();
    let has_returned = Arc::new(AtomicBool::new(false));
    let returned = Arc::clone(&has_returned);
    let callback = move |_| {
        begins.send(()).unwrap();
        // Until the flush is over, which is too early; or for a while.
        let _ = released.recv_timeout(Duration::from_millis(100));
        returned.store(true, Ordering::Release);
    };
    drop(world.lane.send(&Record::new("0"), Some(Box::new(callback)), 0).unwrap());
    // Called by whoever ends the record, before its callback.
    let (asks, asked) = channel();
    let other = Mutex::new(Some((asks, begun)));
    let waker = Waker::from(Arc::new(Caller(move || {
        if let Some((asks, begun)) = other.lock().take() {
            asks.send(()).unwrap();
            begun.recv().unwrap();
        }
    })));
    world.lane.watch(0, None, &waker);
    world.log.lock().acknowledge();
    std::thread::scope(|scope| {
        scope.spawn(|| asked.into_iter().for_each(|()| world.lane.ask_for(0)));
        assert!(world.lane.wait(0, Duration::from_secs(60), Until::Called));
        assert!(has_returned.load(Ordering::Acquire), "it is not over");
    });
    drop(release);
}

/// Who drove the lane woke it, and nobody could drive for what it waited for.
#[test]
fn a_waker_may_wait_for_the_lane_of_its_record_while_that_is_driven() {
    let mut world = World::plain();
    world.fates(vec![Fate::Waits, Fate::Waits]);
    world.sent = 1; // without callbacks
    world.send();
    world.send();
    let (tells, told) = channel();
    let (lane, log) = (Arc::clone(&world.lane), Arc::clone(&world.log));
    let waker = Waker::from(Arc::new(Caller(move || {
        log.lock().acknowledge();
        tells.send(lane.wait(1, Duration::ZERO, Until::Ended)).unwrap();
    })));
    world.lane.watch(0, None, &waker);
    world.log.lock().acknowledged = 1;
    assert!(world.lane.wait(1, SECOND, Until::Ended));
    assert_eq!(told.recv(), Ok(true));
}

struct Caller<F>(F);

impl<F: Fn() + Send + Sync> std::task::Wake for Caller<F> {
    fn wake(self: Arc<Self>) {
        (self.0)();
    }
}

/// The room of a record that had to wait for it was held while callbacks ran, which may need it.
#[test]
fn cli_05_a_callback_finds_the_room_that_its_record_gave_back() {
    let world = World::plain();
    world.fates(vec![Fate::Acknowledged]);
    let (tells, told) = channel();
    let common = Arc::clone(&world.common);
    let callback = move |_| tells.send(common.memory.used()).unwrap();
    assert!(world.common.memory.try_take(100));
    drop(world.lane.send(&Record::new("0"), Some(Box::new(callback)), 100).unwrap());
    assert_eq!(told.recv(), Ok(0));
}

/// They were called amid an append, under which nobody is told anything: one that waited for another append waited until its
/// time was over.
#[test]
fn callbacks_of_a_lane_whose_store_is_closed_may_wait_for_others() {
    struct Flag(AtomicBool);
    impl std::task::Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Release);
        }
    }
    let world = World::plain();
    world.common.chores.end();
    world.log.lock().failing = Some(Error::Closed);
    let told = Arc::new(AtomicBool::new(false));
    let heard = Arc::clone(&told);
    let callback = Box::new(move |_| {
        let flag = Arc::new(Flag(AtomicBool::new(false)));
        wake_all(vec![Waker::from(Arc::clone(&flag))]);
        heard.store(flag.0.load(Ordering::Acquire), Ordering::Release);
    });
    drop(world.lane.send(&Record::new("x"), Some(callback), 0));
    assert!(told.load(Ordering::Acquire));
}

/// What others sent while a flush appended what had gathered gathered in its turn, and the flush waited for that.
#[test]
fn a_flush_waits_for_no_record_that_is_sent_after_it_began() {
    let linger = SECOND * 100;
    let mut world = World::new(Identity::Plain(ID), ProducerSettings { linger, ..settings() });
    world.send();
    world.fates(vec![Fate::Amid]);
    assert_eq!(world.lane.hasten(), 1);
    assert!(world.lane.wait(0, Duration::ZERO, Until::Called));
    assert_eq!(world.log.lock().records, ["0"], "what came later gathers");
}
