//! The limits: what the machine does for the same bytes with nothing around them.
//!
//! A frame is what the crate writes for one append: a header of 80 bytes and the payload, with a CRC
//! of each. Here it is made, copied and checked in the fewest instructions that are honest.

#![allow(unsafe_code, reason = "bare mappings and system calls are the limit to measure against")]

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use memmap2::{Mmap, MmapMut, MmapOptions};

use super::{noise, touch};

/// Bytes of a batch's header.
pub(crate) const HEADER_BYTES: usize = 80;
/// How far ahead of the tail zeroes are written.
const ZEROES_BYTES: usize = 1 << 20;
/// What a write of the group commit starts at a multiple of.
pub(crate) const DURABLE_SPACE: u64 = 64 << 20;

/// The bytes of one append.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    header: [u8; HEADER_BYTES],
    payload: Vec<u8>,
    records: usize,
    value_bytes: usize,
}

impl Frame {
    /// As the crate encodes `records` values of `value_bytes` each, without key and headers: a length,
    /// a time and an offset delta, no key, a length, the value, no headers; padded to 4 bytes.
    pub(crate) fn new(records: usize, value_bytes: usize) -> Self {
        let payload = (records * record_bytes(value_bytes)).next_multiple_of(4);
        Self { header: [7; HEADER_BYTES], payload: noise(payload), records, value_bytes }
    }

    /// Bytes in the file.
    pub(crate) fn len(&self) -> usize {
        HEADER_BYTES + self.payload.len()
    }

    /// Makes it the frame at `offset`: both CRCs are computed anew.
    #[inline]
    fn seal(&mut self, offset: u64) {
        let payload = black_box(self.payload.as_slice());
        self.header[16..24].copy_from_slice(&offset.to_le_bytes());
        self.header[44..48].copy_from_slice(&crc(payload).to_le_bytes());
        let header = crc(&self.header[4..]);
        self.header[..4].copy_from_slice(&header.to_le_bytes());
    }

    #[inline]
    fn put(&self, target: &mut [u8]) {
        let (header, payload) = target.split_at_mut(HEADER_BYTES);
        header.copy_from_slice(&self.header);
        payload.copy_from_slice(&self.payload);
    }

    /// Checks the frame at the front of `bytes` and looks at every value in it, if there is one.
    #[inline]
    fn check(&self, bytes: &[u8]) -> io::Result<u64> {
        let (header, payload) = bytes.split_at(HEADER_BYTES);
        if crc(&header[4..]).to_le_bytes() != header[..4]
            || crc(payload).to_le_bytes() != header[44..48]
        {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let record = record_bytes(self.value_bytes);
        let records = payload.chunks_exact(record).take(self.records);
        Ok(records.fold(0, |sum, record| {
            sum ^ touch(&record[record.len() - 1 - self.value_bytes..record.len() - 1])
        }))
    }

    /// Checks the CRCs only, as a recovery does.
    #[inline]
    fn scan(bytes: &[u8]) -> io::Result<()> {
        let (header, payload) = bytes.split_at(HEADER_BYTES);
        if crc(&header[4..]).to_le_bytes() != header[..4]
            || crc(payload).to_le_bytes() != header[44..48]
        {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(())
    }
}

/// Bytes of one record with a value only.
pub(crate) fn record_bytes(value_bytes: usize) -> usize {
    let body = 3 + varint_bytes(value_bytes + 1) + value_bytes + 1;
    varint_bytes(body) + body
}

fn varint_bytes(value: usize) -> usize {
    (value | 1).ilog2() as usize / 7 + 1
}

#[inline]
fn crc(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// The limit of appends: frames copied into a mapping whose zeroes are written 1 MiB ahead by the same
/// thread, in files that roll and are removed when enough newer ones are there.
#[derive(Debug)]
pub(crate) struct BareLog {
    directory: PathBuf,
    files: VecDeque<PathBuf>,
    keep: usize,
    made: u64,
    segment_bytes: usize,
    zeroes: Vec<u8>,
    file: File,
    map: MmapMut,
    position: usize,
    ready: usize,
    offset: u64,
}

impl BareLog {
    /// Makes the first file. `keep` files are kept, the growing one included.
    pub(crate) fn create(directory: &Path, segment_bytes: usize, keep: usize) -> io::Result<Self> {
        let path = directory.join("0.bare");
        let (file, map) = segment(&path, segment_bytes)?;
        Ok(Self {
            directory: directory.to_owned(),
            files: VecDeque::from([path]),
            keep,
            made: 1,
            segment_bytes,
            zeroes: vec![0; ZEROES_BYTES.min(segment_bytes)],
            file,
            map,
            position: 0,
            ready: 0,
            offset: 0,
        })
    }

    /// Appends one frame.
    #[inline]
    pub(crate) fn append(&mut self, frame: &mut Frame) -> io::Result<()> {
        frame.seal(self.offset);
        self.copy(frame)
    }

    /// Appends one frame that is sealed already, as a follower does.
    #[inline]
    pub(crate) fn copy(&mut self, frame: &Frame) -> io::Result<()> {
        let end = self.position + frame.len();
        if end > self.ready {
            self.make_ready(frame.len())?;
        }
        let target = &mut self.map[self.position..self.position + frame.len()];
        frame.put(target);
        self.position += frame.len();
        self.offset += frame.records as u64;
        Ok(())
    }

    #[cold]
    fn make_ready(&mut self, bytes: usize) -> io::Result<()> {
        if self.position + bytes > self.segment_bytes {
            let path = self.directory.join(format!("{}.bare", self.made));
            (self.file, self.map) = segment(&path, self.segment_bytes)?;
            self.made += 1;
            self.files.push_back(path);
            (self.position, self.ready) = (0, 0);
            while self.files.len() > self.keep {
                if let Some(oldest) = self.files.pop_front() {
                    std::fs::remove_file(oldest)?;
                }
            }
        }
        while self.ready < self.position + bytes {
            let count = self.zeroes.len().min(self.segment_bytes - self.ready);
            self.file.write_all_at(&self.zeroes[..count], self.ready as u64)?;
            self.ready += count;
        }
        Ok(())
    }
}

/// The limit of reads: frames in mapped files, checked and touched one after the other.
#[derive(Debug)]
pub(crate) struct BareScan {
    maps: Vec<Mmap>,
    frame: Frame,
    frames: usize,
}

impl BareScan {
    /// Writes `bytes_total` of frames like `frame`, in files of `segment_bytes`.
    pub(crate) fn create(
        directory: &Path,
        mut frame: Frame,
        bytes_total: usize,
        segment_bytes: usize,
    ) -> io::Result<Self> {
        let frames = segment_bytes / frame.len();
        let files = bytes_total.div_ceil(frames * frame.len());
        let mut bytes = vec![0; frames * frame.len()];
        let mut maps = Vec::with_capacity(files);
        for number in 0..files {
            for (index, target) in bytes.chunks_exact_mut(frame.len()).enumerate() {
                frame.seal((number * frames + index) as u64);
                frame.put(target);
            }
            let path = directory.join(format!("{number}.bare"));
            std::fs::write(&path, &bytes)?;
            let file = File::open(&path)?;
            // SAFETY: the file lies in the bench's own directory, and nobody changes it from here on.
            maps.push(unsafe { Mmap::map(&file) }?);
        }
        Ok(Self { maps, frame, frames })
    }

    /// How many records there are.
    pub(crate) fn records(&self) -> u64 {
        (self.maps.len() * self.frames * self.frame.records) as u64
    }

    /// How many bytes there are.
    pub(crate) fn bytes(&self) -> u64 {
        (self.maps.len() * self.frames * self.frame.len()) as u64
    }

    /// Checks every CRC and looks at every value.
    pub(crate) fn read(&self) -> io::Result<u64> {
        let mut sum = 0;
        for map in &self.maps {
            for frame in map.chunks_exact(self.frame.len()) {
                sum ^= self.frame.check(frame)?;
            }
        }
        Ok(sum)
    }

    /// Checks every CRC.
    pub(crate) fn scan(&self) -> io::Result<()> {
        for map in &self.maps {
            for frame in map.chunks_exact(self.frame.len()) {
                Frame::scan(frame)?;
            }
        }
        Ok(())
    }
}

/// The limit of durable appends by one thread: a write and an `fdatasync`, in space that was written
/// and synced before.
#[derive(Debug)]
pub(crate) struct BareDurable {
    file: File,
    position: u64,
    frame: Frame,
    bytes: Vec<u8>,
}

impl BareDurable {
    /// Makes the space.
    pub(crate) fn create(directory: &Path, frame: Frame) -> io::Result<Self> {
        let file = written_space(&directory.join("durable.bare"))?;
        let bytes = vec![0; frame.len()];
        Ok(Self { file, position: 0, frame, bytes })
    }

    /// Writes one frame and waits until it is on stable storage.
    pub(crate) fn append(&mut self) -> io::Result<()> {
        if self.position + self.bytes.len() as u64 > DURABLE_SPACE {
            self.position = 0;
        }
        self.frame.seal(self.position);
        self.frame.put(&mut self.bytes);
        self.file.write_all_at(&self.bytes, self.position)?;
        self.file.sync_data()?;
        self.position += self.bytes.len() as u64;
        Ok(())
    }
}

/// A file of [`DURABLE_SPACE`] zero bytes, all of them on the disk.
pub(crate) fn written_space(path: &Path) -> io::Result<File> {
    let file = create(path)?;
    allocate(&file, DURABLE_SPACE)?;
    let zeroes = vec![0; 64 << 10];
    let mut position = 0;
    while position < DURABLE_SPACE {
        file.write_all_at(&zeroes, position)?;
        position += zeroes.len() as u64;
    }
    file.sync_all()?;
    Ok(file)
}

/// Writes `bytes` at `position` and waits until they are on stable storage, in one call.
#[cfg(target_os = "linux")]
pub(crate) fn write_durably(file: &File, position: u64, mut bytes: &[u8]) -> io::Result<()> {
    let mut position = i64::try_from(position).map_err(io::Error::other)?;
    while !bytes.is_empty() {
        let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        // SAFETY: one part, which points to `bytes`; the kernel only reads from it.
        let count = unsafe {
            libc::pwritev2(file.as_raw_fd(), &raw const part, 1, position, libc::RWF_DSYNC)
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        bytes = &bytes[count..];
        position += i64::try_from(count).map_err(io::Error::other)?;
    }
    Ok(())
}

/// As above, in two calls.
#[cfg(not(target_os = "linux"))]
pub(crate) fn write_durably(file: &File, position: u64, bytes: &[u8]) -> io::Result<()> {
    file.write_all_at(bytes, position)?;
    file.sync_data()
}

/// Whether a directory is in memory, where nothing is durable and figures mean something else.
#[cfg(target_os = "linux")]
pub(crate) fn in_memory(directory: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let Ok(path) = std::ffi::CString::new(directory.as_os_str().as_bytes()) else {
        return false;
    };
    // SAFETY: all zeroes is a value of this plain struct.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a zero byte and the struct is ours to fill.
    let answer = unsafe { libc::statfs(path.as_ptr(), &raw mut stat) };
    answer == 0 && stat.f_type == libc::TMPFS_MAGIC
}

/// Unknown elsewhere.
#[cfg(not(target_os = "linux"))]
pub(crate) fn in_memory(_directory: &Path) -> bool {
    false
}

fn segment(path: &Path, bytes: usize) -> io::Result<(File, MmapMut)> {
    let file = create(path)?;
    allocate(&file, bytes as u64)?;
    // SAFETY: the file lies in the bench's own directory; nobody else maps, cuts or writes it.
    let map = unsafe { MmapOptions::new().len(bytes).map_mut(&file) }?;
    Ok((file, map))
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).open(path)
}

#[cfg(target_os = "linux")]
fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    let bytes = i64::try_from(bytes).map_err(io::Error::other)?;
    // SAFETY: plain numbers and a descriptor that is open.
    match unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, bytes) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(not(target_os = "linux"))]
fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    file.set_len(bytes)
}
