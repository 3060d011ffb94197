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
    /// Reads up to `len` bytes at `position`; the result is shorter at the end of the file, or before what cannot be read.
    pub(crate) fn read(
        &self,
        file: &dyn File,
        position: u64,
        len: usize,
    ) -> (PooledBuffer, io::Result<()>) {
        let mut bytes = self.free.lock().pop().unwrap_or_default();
        if bytes.len() < len {
            bytes.resize(len, 0);
        }
        let (len, outcome) = super::read_on_at(file, position, &mut bytes[..len]);
        (PooledBuffer { len, bytes, pool: self.clone() }, outcome)
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
