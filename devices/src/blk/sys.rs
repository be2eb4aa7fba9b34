//! The system calls of the block device that the standard library does not have, and nothing else.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use libc::{c_int, iovec, off_t};

/// The most vectors that one call takes (`IOV_MAX` of Linux).
pub(super) const MAX_VECTORS: usize = 1024;

/// Which way data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the file into memory.
    FromFile,
    /// From the file into memory as far as the file's pages are in memory (`RWF_NOWAIT` of preadv2(2)).
    FromCache,
    /// From memory into the file.
    ToFile,
}

/// One `preadv2` or `pwritev` of up to [`MAX_VECTORS`] vectors at `offset`; returns the number of bytes moved. What is
/// not in memory is [`io::ErrorKind::WouldBlock`] for [`Direction::FromCache`].
///
/// # Safety
/// Each vector describes mapped memory, writable if data comes from the file, that no Rust reference refers to.
pub(super) unsafe fn transfer(file: &File, direction: Direction, vectors: &[iovec], offset: u64) -> io::Result<usize> {
    let offset = off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let count = c_int::try_from(vectors.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let (fd, vectors) = (file.as_raw_fd(), vectors.as_ptr());
    let moved = match direction {
        // SAFETY: the caller vouches for the vectors; array and length come from one slice.
        Direction::FromFile => unsafe { libc::preadv(fd, vectors, count, offset) },
        // SAFETY: as above; the call has the offset in two halves, of which a 64-bit kernel takes the first as the whole.
        Direction::FromCache => unsafe {
            let moved = libc::syscall(libc::SYS_preadv2, fd, vectors, count, offset, 0, libc::RWF_NOWAIT);
            isize::try_from(moved).unwrap_or(-1)
        },
        // SAFETY: as above.
        Direction::ToFile => unsafe { libc::pwritev(fd, vectors, count, offset) },
    };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

/// Changes the allocation of a part of the file.
pub(super) fn allocate(file: &File, mode: c_int, offset: u64, length: u64) -> io::Result<()> {
    let offset = off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let length = off_t::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
    loop {
        // SAFETY: the call takes numbers only.
        if unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, length) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// The flags that the descriptor was opened with.
pub(super) fn open_flags(file: &File) -> io::Result<c_int> {
    // SAFETY: the call takes numbers only.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(flags)
    }
}

/// How many processors this process may run on: not what a quota leaves of them, which is read from files.
pub(super) fn processors() -> usize {
    // SAFETY: a set of processors is a bit array, for which all zeros is a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a set of the given size, which outlives the call.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) } != 0 {
        // More processors than the set can tell of.
        return usize::MAX;
    }
    // SAFETY: the call only looks at the set.
    let count = unsafe { libc::CPU_COUNT(&set) };
    usize::try_from(count).unwrap_or(1)
}

/// Waits until the descriptor is readable.
pub(super) fn wait_readable(event: &impl AsRawFd) -> io::Result<()> {
    let mut poll = libc::pollfd {
        fd: event.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    loop {
        // SAFETY: the pointer is to one initialized pollfd, which outlives the call.
        if unsafe { libc::poll(&raw mut poll, 1, -1) } >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
