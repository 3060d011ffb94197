//! Where a thread sleeps until another one has news for it: by its own token, so that whoever wakes many hands no lock
//! along with it.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// What a sleeper is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// What it waits for is done.
    Served,
    /// It is to go on with the work that serves the others.
    Lead,
    /// It is to look for itself.
    Look,
}

/// One thread's bed; used again for its next sleep.
#[derive(Debug)]
pub(crate) struct Bed {
    thread: Thread,
    told: AtomicU8,
}

thread_local! {
    static BED: RefCell<Arc<Bed>> = RefCell::new(Bed::made());
}

/// Told nothing yet.
const NOTHING: u8 = 0;

impl Bed {
    fn made() -> Arc<Self> {
        Arc::new(Self { thread: std::thread::current(), told: AtomicU8::new(NOTHING) })
    }

    /// The calling thread's. Another one, if somebody still holds the last one to tell its news.
    pub(crate) fn of_this_thread() -> Arc<Self> {
        let used = BED.try_with(|bed| {
            let mut bed = bed.borrow_mut();
            if let Some(bed) = Arc::get_mut(&mut bed) {
                *bed.told.get_mut() = NOTHING;
            } else {
                *bed = Self::made();
            }
            Arc::clone(&bed)
        });
        // A thread that ends has none left to use again.
        used.unwrap_or_else(|_| Self::made())
    }

    /// Tells the sleeper, and wakes it.
    pub(crate) fn tell(&self, news: News) {
        self.leave_word(news);
        self.wake();
    }

    /// Tells the sleeper, who is woken later. Under the lock of those that sleep: one whose time ends now finds it there, or
    /// finds itself on the list.
    pub(crate) fn leave_word(&self, news: News) {
        self.told.store(news as u8 + 1, Ordering::Release);
    }

    pub(crate) fn wake(&self) {
        self.thread.unpark();
    }

    pub(crate) fn news(&self) -> Option<News> {
        let news = [None, Some(News::Served), Some(News::Lead), Some(News::Look)];
        news[usize::from(self.told.load(Ordering::Acquire))]
    }

    /// Sleeps until there is news, or `timeout` has passed since `started`.
    pub(crate) fn sleep(&self, started: Instant, timeout: Duration) -> Option<News> {
        loop {
            let news = self.news();
            let left = timeout.saturating_sub(started.elapsed());
            if news.is_some() || left.is_zero() {
                return news;
            }
            std::thread::park_timeout(left);
        }
    }
}
