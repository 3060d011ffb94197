//! A consumer as a future, and as a stream of futures.
//!
//! Does what a poll does, and leaves the task's waker with the bell instead of waiting.

use std::pin::Pin;
use std::task::{Context, Poll};

use crate::error::{Error, Result};
use crate::log::Records;

use super::Consumer;

/// The records that a consumer gets next. Made by [`Consumer::recv`].
#[derive(Debug)]
#[must_use = "a future does nothing until it is awaited"]
pub struct Recv<'a> {
    pub(super) consumer: &'a mut Consumer,
    pub(super) has_begun: bool,
}

impl Future for Recv<'_> {
    type Output = Result<Records>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let begins = !std::mem::replace(&mut self.has_begun, true);
        self.consumer.poll_records(context, begins)
    }
}

impl Drop for Recv<'_> {
    fn drop(&mut self) {
        self.consumer.show_waiting(false);
    }
}

impl Consumer {
    fn poll_records(&mut self, context: &Context<'_>, begins: bool) -> Poll<Result<Records>> {
        if begins {
            self.begin_poll();
        } else {
            self.commit_if_due();
        }
        loop {
            match self.poll_once() {
                Err(error) => return Poll::Ready(Err(error)),
                Ok(Some(records)) => return Poll::Ready(Ok(records)),
                Ok(None) => {}
            }
            if !self.unwatched.is_empty() {
                return Poll::Ready(Err(Error::ReadOnly));
            }
            self.end_wait_to_commit();
            if self.ready.wait_as(context.waker()) {
                self.show_waiting(true);
                return Poll::Pending;
            }
        }
    }
}

/// Batches of records, one after the other, without an end.
#[cfg(feature = "stream")]
impl futures_core::Stream for Consumer {
    type Item = Result<Records>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_records(context, true).map(Some)
    }
}
