//! Memory in which a thread puts its batches together.

use std::cell::Cell;

use crate::record::Draft;

/// Buffers up to this size are kept for the thread's next append.
const DRAFT_BYTES_MAX: usize = 1 << 20;

thread_local! {
    static DRAFT: Cell<Option<Box<Draft>>> = const { Cell::new(None) };
}

/// A draft of this thread's, from one append to the next.
pub(super) struct Scratch(Option<Box<Draft>>);

impl Scratch {
    /// One that is in use, by an append whose callback appends, is not there; a thread that ends has none.
    #[inline(always)]
    pub(super) fn take() -> Self {
        Self(Some(DRAFT.try_with(Cell::take).ok().flatten().unwrap_or_default()))
    }

    #[inline]
    pub(super) fn draft(&mut self) -> &mut Draft {
        self.0.as_mut().expect("it is given back by the drop alone")
    }
}

impl Drop for Scratch {
    #[inline(always)]
    fn drop(&mut self) {
        let draft = self.0.take().filter(|draft| draft.capacity() <= DRAFT_BYTES_MAX);
        let _ = DRAFT.try_with(|kept| kept.set(draft));
    }
}
