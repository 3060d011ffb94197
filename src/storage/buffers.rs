//! Buffers for reads, kept for the next read: fresh memory costs more in page faults than the read.

use std::fmt;
use std::io;
use std::ops::Deref;
use std::sync::Arc;

use parking_lot::Mutex;

use super::File;

/// Buffers kept at most, and the largest that is worth keeping.
const BUFFERS_MAX: usize = 16;
const BUFFER_BYTES_MAX: usize = 4 << 20;

/// Hands out buffers and takes them back. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct BufferPool {
    free: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl BufferPool {
    /// Reads up to `len` bytes at `position`; the result is shorter at the end of the file.
    pub(crate) fn read(
        &self,
        file: &dyn File,
        position: u64,
        len: usize,
    ) -> io::Result<PooledBuffer> {
        let mut bytes = self.take(len);
        let count = super::read_full_at(file, position, &mut bytes[..len]);
        let buffer = PooledBuffer { len: *count.as_ref().unwrap_or(&0), bytes, pool: self.clone() };
        count.map(|_| buffer)
    }

    /// Reads up to `len` bytes at `position`, as far as they can be read.
    pub(crate) fn read_on(&self, file: &dyn File, position: u64, len: usize) -> PooledBuffer {
        let mut bytes = self.take(len);
        let len = super::read_on_at(file, position, &mut bytes[..len]);
        PooledBuffer { len, bytes, pool: self.clone() }
    }

    fn take(&self, len: usize) -> Vec<u8> {
        let mut bytes = self.free.lock().pop().unwrap_or_default();
        if bytes.len() < len {
            bytes.resize(len, 0);
        }
        bytes
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("BufferPool").field("free", &self.free.lock().len()).finish()
    }
}

/// Bytes that were read; their memory goes back to the pool when this is dropped.
pub(crate) struct PooledBuffer {
    bytes: Vec<u8>,
    len: usize,
    pool: BufferPool,
}

impl Deref for PooledBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl fmt::Debug for PooledBuffer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("PooledBuffer").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        if bytes.len() <= BUFFER_BYTES_MAX {
            let mut free = self.pool.free.lock();
            if free.len() < BUFFERS_MAX {
                free.push(bytes);
            }
        }
    }
}
