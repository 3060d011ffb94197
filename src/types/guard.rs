//! Calls to an application's code.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// What an application's code answers. `None`: it panicked, which the panic hook has reported (RELIABILITY A9).
pub(crate) fn guard<R>(call: impl FnOnce() -> R) -> Option<R> {
    let payload = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(answer) => return Some(answer),
        Err(payload) => payload,
    };
    // That is the application's as well, and what it panics with when it is dropped.
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(again);
    }
    None
}
