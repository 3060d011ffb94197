//! A clock that goes on by itself, a few times as fast as time does: what takes a minute is soon over, and a disk that is slow
//! is not yet one that hangs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use oncelog::simulation::Clock;

/// Has a clock go on, until this goes.
pub(crate) struct Ticking(Arc<AtomicBool>);

impl Ticking {
    pub(crate) fn new(clock: &Clock) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (clock, ends) = (clock.clone(), Arc::clone(&over));
        thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                clock.advance(Duration::from_millis(1));
                thread::sleep(Duration::from_micros(200));
            }
        });
        Self(over)
    }
}

impl Drop for Ticking {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
