//! Where a batch is put together, and used again for the next one.

use std::ops::{Deref, DerefMut};

/// The first room: batches of one small record need no more.
const BYTES_MIN: usize = 512;

/// Bytes written from the front. Unlike a vector that is cleared, it keeps what it held: there is room before a record
/// asks for it, so a record costs one question, and not one for each of its fields.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    len: usize,
}

impl Buffer {
    /// Begins anew.
    #[inline]
    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    /// At least `count` bytes behind what was written, of any content. [`Buffer::advance`] says how many were used.
    #[inline]
    pub(crate) fn room(&mut self, count: usize) -> &mut [u8] {
        if self.bytes.len() - self.len < count {
            self.grow(count);
        }
        &mut self.bytes[self.len..]
    }

    /// Takes in `count` bytes of the room.
    #[inline]
    pub(crate) fn advance(&mut self, count: usize) {
        self.len += count;
        assert!(self.len <= self.bytes.len(), "what is taken in was asked for");
    }

    /// Appends `source`.
    #[inline]
    pub(crate) fn put(&mut self, source: &[u8]) {
        self.room(source.len())[..source.len()].copy_from_slice(source);
        self.len += source.len();
    }

    /// Memory that it keeps.
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    #[cold]
    #[inline(never)]
    fn grow(&mut self, count: usize) {
        let len = (self.len + count).max(2 * self.bytes.len()).max(BYTES_MIN);
        self.bytes.resize(len, 0);
    }
}

impl Deref for Buffer {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl DerefMut for Buffer {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}
