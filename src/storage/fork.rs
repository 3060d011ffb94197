//! Whether this is still the process that opened the store.
//!
//! A forked child shares files and locks with its parent but not its threads and locks' owners:
//! appending from both would write two records to one place. On Linux a page that the kernel
//! empties in the child tells them apart for the price of one load; elsewhere, and where the kernel
//! cannot do that, the process is asked for its number.

use std::io;

/// Made when a store is opened; asked before each append.
#[derive(Debug)]
pub(crate) struct ForkGuard {
    /// Holds a 1 in this process and zeroes in its children.
    #[cfg(all(target_os = "linux", not(miri)))]
    page: Option<memmap2::MmapMut>,
    pid: u32,
}

impl ForkGuard {
    /// Remembers this process.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            #[cfg(all(target_os = "linux", not(miri)))]
            page: page_emptied_by_fork()?,
            pid: std::process::id(),
        })
    }

    /// Whether the process that made this is the one that asks.
    #[inline]
    pub(crate) fn is_owner(&self) -> bool {
        #[cfg(all(target_os = "linux", not(miri)))]
        if let Some(page) = &self.page {
            return page[0] == 1;
        }
        self.pid == std::process::id()
    }
}

/// `None`: this kernel does not empty pages in children.
#[cfg(all(target_os = "linux", not(miri)))]
fn page_emptied_by_fork() -> io::Result<Option<memmap2::MmapMut>> {
    let mut page = memmap2::MmapMut::map_anon(4096)?;
    page[0] = 1;
    // SAFETY: the range is the whole anonymous private mapping made above, and no reference to its
    // bytes lives across a fork.
    let advised =
        unsafe { libc::madvise(page.as_mut_ptr().cast(), page.len(), libc::MADV_WIPEONFORK) };
    Ok((advised == 0).then_some(page))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_that_opened_owns_and_its_forked_child_does_not() {
        let guard = ForkGuard::new().unwrap();
        assert!(guard.is_owner());
        #[cfg(all(unix, not(miri)))]
        {
            // SAFETY: the child only loads a byte or asks for its number, and leaves without
            // running anything of its parent's.
            let child = unsafe { libc::fork() };
            assert!(child >= 0, "no fork: {}", io::Error::last_os_error());
            if child == 0 {
                // SAFETY: ends the child at once.
                unsafe { libc::_exit(i32::from(guard.is_owner())) };
            }
            let mut status = -1;
            // SAFETY: waits for the child made above and fills in its status.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert!(libc::WIFEXITED(status));
            assert_eq!(libc::WEXITSTATUS(status), 0, "the child believes that it owns the store");
        }
    }
}
