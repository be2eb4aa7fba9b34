//! What is in a slot: a file or block device, or several of them one behind the other.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use libc::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE, iovec};
use thiserror::Error;

use super::sys::{self, Direction};

/// Bytes in a sector, the unit of everything in the protocol, whatever the disk's block size.
pub(super) const SECTOR: u64 = 512;
/// The most bytes that one system call is asked to move, so that a worker notices soon that it shall stop.
pub(super) const STEP: usize = 4 << 20;
/// What is written where zeros cannot be had otherwise.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Why a file cannot be put into a slot.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum AttachError {
    #[error("the slot already holds a disk; detach it first")]
    Occupied,
    #[error("the disk is neither a regular file nor a block device")]
    Kind,
    #[error("the disk is shorter than one sector of 512 bytes")]
    Short,
    #[error("the slot is writable, but the disk was opened for reading only")]
    ReadOnly,
    #[error("the disk was opened for appending, so it cannot be written anywhere else")]
    Append,
    #[error("the disk's size cannot be found out")]
    Size(#[source] io::Error),
    #[error("the disk has no parts")]
    NoParts,
    #[error("a disk of several parts can only be read, but the slot is writable")]
    WritableParts,
    #[error("part {0} of the disk ends within a sector of 512 bytes")]
    Uneven(usize),
    #[error("the disk's parts are too long together")]
    Long,
}

/// Why an operation on the backend has no result.
#[derive(Debug, Error)]
pub(super) enum BackendError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the disk is shorter than it was")]
    Truncated,
    #[error("the worker shall stop")]
    Stopped,
    /// For [`Direction::FromCache`] only.
    #[error("the data is not in memory")]
    NotCached,
}

/// A file of the disk.
#[derive(Debug)]
struct Part {
    file: File,
    /// Where it begins and ends on the disk, in bytes.
    range: Range<u64>,
}

/// An open disk: its parts cover it without gaps, in order.
#[derive(Debug)]
pub(super) struct Backend {
    parts: Vec<Part>,
    sectors: u64,
    /// Whether the file systems can say that data is not in memory.
    tells_cached: AtomicBool,
    /// Dropped with the last user of the backend, which the other end notices.
    _open: mpsc::Sender<Infallible>,
}

impl Backend {
    /// Checks a disk and finds out its size. The receiver is disconnected when the files are closed.
    pub(super) fn open(files: Vec<File>, read_only: bool) -> Result<(Self, mpsc::Receiver<Infallible>), AttachError> {
        if files.is_empty() {
            return Err(AttachError::NoParts);
        }
        if files.len() > 1 && !read_only {
            return Err(AttachError::WritableParts);
        }
        let last = files.len() - 1;
        let mut parts = Vec::with_capacity(files.len());
        let mut start = 0_u64;
        for (index, mut file) in files.into_iter().enumerate() {
            let size = size(&mut file, read_only)?;
            if index < last && size % SECTOR != 0 {
                return Err(AttachError::Uneven(index));
            }
            let end = start.checked_add(size).ok_or(AttachError::Long)?;
            let range = start..end;
            start = end;
            parts.push(Part { file, range });
        }
        let sectors = start / SECTOR;
        if sectors == 0 {
            return Err(AttachError::Short);
        }
        let (sender, receiver) = mpsc::channel();
        let backend = Self {
            parts,
            sectors,
            tells_cached: AtomicBool::new(true),
            _open: sender,
        };
        Ok((backend, receiver))
    }

    /// The disk's size.
    pub(super) fn sectors(&self) -> u64 {
        self.sectors
    }

    /// The byte offset of a range, if the range lies on the disk.
    pub(super) fn locate(&self, sector: u64, bytes: u64) -> Option<u64> {
        let end = sector.checked_add(bytes.div_ceil(SECTOR))?;
        (end <= self.sectors).then(|| sector * SECTOR)
    }

    /// Moves all of the vectors' bytes, from `offset` on, and uses the vectors up in doing so. `moved` counts bytes.
    ///
    /// # Safety
    /// As [`sys::transfer`].
    #[allow(unsafe_code)]
    pub(super) unsafe fn transfer(
        &self,
        direction: Direction,
        mut vectors: &mut [iovec],
        mut offset: u64,
        stopping: &AtomicBool,
        moved: &mut u64,
    ) -> Result<(), BackendError> {
        if direction == Direction::FromCache && !self.tells_cached.load(Ordering::Relaxed) {
            return Err(BackendError::NotCached);
        }
        while !vectors.is_empty() {
            if stopping.load(Ordering::SeqCst) {
                return Err(BackendError::Stopped);
            }
            let part = self.part(offset)?;
            let left = usize::try_from(part.range.end - offset).unwrap_or(usize::MAX);
            let inside = offset - part.range.start;
            // One that goes beyond the part's end is moved in pieces.
            let first = vectors[0].iov_len;
            vectors[0].iov_len = first.min(left);
            let count = step(vectors, left);
            // SAFETY: these are the caller's vectors, shortened by what was moved.
            let result = unsafe { sys::transfer(&part.file, direction, &vectors[..count], inside) };
            vectors[0].iov_len = first;
            match result {
                Ok(0) => return Err(BackendError::Truncated),
                Ok(bytes) => {
                    offset += bytes as u64;
                    *moved += bytes as u64;
                    vectors = advance(vectors, bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if direction == Direction::FromCache => {
                    if error.kind() == io::ErrorKind::Unsupported {
                        self.tells_cached.store(false, Ordering::Relaxed);
                    }
                    // An error of the storage comes again when it is asked without a condition.
                    return Err(BackendError::NotCached);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The part that holds the byte at `offset`.
    fn part(&self, offset: u64) -> Result<&Part, BackendError> {
        let index = self.parts.partition_point(|part| part.range.end <= offset);
        self.parts.get(index).ok_or(BackendError::Truncated)
    }

    /// The one file of a disk that can be written.
    fn file(&self) -> &File {
        &self.parts[0].file
    }

    /// Makes what was written last through a power failure. A disk of several parts is never written.
    pub(super) fn flush(&self) -> Result<(), BackendError> {
        Ok(self.file().sync_data()?)
    }

    /// Gives the range's storage back.
    pub(super) fn discard(&self, offset: u64, length: u64) -> Result<(), BackendError> {
        let mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
        Ok(sys::allocate(self.file(), mode, offset, length)?)
    }

    /// Makes the range zeros; gives its storage back if it may and can.
    pub(super) fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        unmap: bool,
        stopping: &AtomicBool,
    ) -> Result<(), BackendError> {
        let punch = unmap.then_some(FALLOC_FL_PUNCH_HOLE);
        for mode in punch.into_iter().chain([FALLOC_FL_ZERO_RANGE]) {
            match sys::allocate(self.file(), mode | FALLOC_FL_KEEP_SIZE, offset, length) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
                Err(error) => return Err(error.into()),
            }
        }
        let end = offset + length;
        let mut position = offset;
        while position < end {
            if stopping.load(Ordering::SeqCst) {
                return Err(BackendError::Stopped);
            }
            let rest = usize::try_from(end - position).unwrap_or(usize::MAX);
            let part = &ZEROS[..rest.min(ZEROS.len())];
            self.file().write_all_at(part, position)?;
            position += part.len() as u64;
        }
        Ok(())
    }
}

/// A file's size in bytes, if it can be a disk or a part of one.
fn size(file: &mut File, read_only: bool) -> Result<u64, AttachError> {
    let kind = file.metadata().map_err(AttachError::Size)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(AttachError::Kind);
    }
    if !read_only {
        let flags = sys::open_flags(file).map_err(AttachError::Size)?;
        match flags & (libc::O_RDONLY | libc::O_WRONLY | libc::O_RDWR) {
            libc::O_RDWR => {}
            _ => return Err(AttachError::ReadOnly),
        }
        if flags & libc::O_APPEND != 0 {
            return Err(AttachError::Append);
        }
    }
    // The end of a block device is its size too, where metadata says zero.
    file.seek(SeekFrom::End(0)).map_err(AttachError::Size)
}

/// How many of the vectors one system call is given: at least one, and no more than [`STEP`] bytes, or `left`, if that
/// is less, otherwise.
fn step(vectors: &[iovec], left: usize) -> usize {
    let mut bytes = 0_usize;
    let full = vectors.iter().take(sys::MAX_VECTORS).position(|vector| {
        bytes = bytes.saturating_add(vector.iov_len);
        bytes > STEP.min(left)
    });
    full.unwrap_or(vectors.len().min(sys::MAX_VECTORS)).max(1)
}

/// The vectors without their first `bytes` bytes.
fn advance(vectors: &mut [iovec], mut bytes: usize) -> &mut [iovec] {
    let whole = vectors.iter().take_while(|vector| {
        let fits = vector.iov_len <= bytes;
        if fits {
            bytes -= vector.iov_len;
        }
        fits
    });
    let count = whole.count();
    let rest = &mut vectors[count..];
    if let Some(first) = rest.first_mut() {
        first.iov_base = first.iov_base.wrapping_byte_add(bytes);
        first.iov_len -= bytes;
    }
    rest
}
