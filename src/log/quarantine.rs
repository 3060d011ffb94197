//! Where what a log gives up is kept: a torn tail, damaged bytes, files that are not its own. Nothing there is written over.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use crate::error::Error;
use crate::segment::Place;
use crate::storage::{File, OpenMode, read_on_at, write_all_at};

/// Below the disk's root.
const QUARANTINE: &str = "quarantine";
const COPY_BYTES: usize = 1 << 20;

/// Moves a file of the log's directory there. Returns where it is now.
///
/// # Errors
/// [`Error::Io`], [`Error::NoSpace`]; the file is in one of the two places.
pub(super) fn move_file(place: &Place, name: &str) -> Result<PathBuf, Error> {
    let moved = free_path(place, name).and_then(|path| {
        place.disk.rename(&place.path(name), &path)?;
        place.disk.sync_dir(QUARANTINE)?;
        place.disk.sync_dir(&place.directory)?;
        Ok(place.disk.root().join(path))
    });
    moved.map_err(|error| place.io_error(name, "set aside", error))
}

/// Copies a part of a file there, as far as it can be read: the rest is lost already. `name`: what it is of that log.
///
/// # Errors
/// What the system says of the copy.
pub(super) fn keep_bytes(
    place: &Place,
    file: &dyn File,
    part: Range<u64>,
    name: &str,
) -> io::Result<PathBuf> {
    let path = free_path(place, name)?;
    let temporary = format!("{path}.tmp");
    let _ = place.disk.remove(&temporary);
    let copy = place.disk.open(&temporary, OpenMode::Create)?;
    let mut bytes = vec![0; COPY_BYTES];
    let mut at = part.start;
    while at < part.end {
        let want = usize::try_from(part.end - at).unwrap_or(usize::MAX).min(COPY_BYTES);
        let (count, read) = read_on_at(file, at, &mut bytes[..want]);
        write_all_at(&*copy, at - part.start, &bytes[..count])?;
        at += count as u64;
        if count < want || read.is_err() {
            break;
        }
    }
    copy.sync_data()?;
    place.disk.rename(&temporary, &path)?;
    place.disk.sync_dir(QUARANTINE)?;
    Ok(place.disk.root().join(path))
}

/// A name there that nothing has.
fn free_path(place: &Place, name: &str) -> io::Result<String> {
    match place.disk.create_dir(QUARANTINE) {
        Ok(()) => place.disk.sync_dir("")?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let name = format!("{}-{name}", place.directory.replace('/', "-"));
    let taken: Vec<_> = place.disk.list(QUARANTINE)?.into_iter().map(|entry| entry.name).collect();
    let numbered = (2..).map(|number: u64| format!("{name}.{number}"));
    let mut names = std::iter::once(name.clone()).chain(numbered);
    let free = names.find(|name| !taken.contains(name)).expect("files are finite");
    Ok(format!("{QUARANTINE}/{free}"))
}
