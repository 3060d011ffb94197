//! Whether this is still the process that opened the store.
//!
//! A forked child shares files and locks with its parent but not its threads and locks' owners:
//! appending from both would write two records to one place. On Linux a page that the kernel
//! empties in the child tells them apart for the price of one load.

use std::io;

/// Made when a store is opened; asked before each append.
#[derive(Debug)]
pub(crate) struct ForkGuard {
    #[cfg(target_os = "linux")]
    page: memmap2::MmapMut,
    #[cfg(not(target_os = "linux"))]
    pid: u32,
}

impl ForkGuard {
    /// Remembers this process.
    pub(crate) fn new() -> io::Result<Self> {
        #[cfg(target_os = "linux")]
        {
            let mut page = memmap2::MmapMut::map_anon(4096)?;
            page[0] = 1;
            // SAFETY: the range is the whole anonymous private mapping made above.
            let advised = unsafe {
                libc::madvise(page.as_mut_ptr().cast(), page.len(), libc::MADV_WIPEONFORK)
            };
            if advised != 0 && !cfg!(miri) {
                return Err(io::Error::last_os_error());
            }
            Ok(Self { page })
        }
        #[cfg(not(target_os = "linux"))]
        Ok(Self { pid: std::process::id() })
    }

    /// Whether the process that made this is the one that asks.
    #[inline]
    pub(crate) fn is_owner(&self) -> bool {
        #[cfg(target_os = "linux")]
        {
            self.page[0] == 1
        }
        #[cfg(not(target_os = "linux"))]
        {
            self.pid == std::process::id()
        }
    }
}
