//! The table of descriptors: nothing in it that the configuration does not name, and room for what comes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// Descriptors that the table is made for. When a process with several threads outgrows it, the kernel waits until no
/// other processor can still be reading the old one: milliseconds on a large host. A machine has some fifty, and one for
/// each connection to its guest.
const RESERVED: i32 = 256;

/// Closes all but `kept` and the standard streams.
pub(super) fn close_all_but(kept: &[RawFd]) -> io::Result<()> {
    let mut kept: Vec<u32> = kept
        .iter()
        .filter_map(|fd| u32::try_from(*fd).ok())
        .filter(|fd| *fd > 2)
        .collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept {
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX)
}

#[allow(unsafe_code)]
fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: the call takes numbers alone; who asks for it knows that nothing in this process uses these descriptors.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
    Ok(())
}

/// Makes the table large while there is one thread. That it cannot is no loss but of time.
pub(super) fn reserve() {
    let stream = io::stdin();
    if let Ok(far) = duplicate(&stream, RESERVED - 1) {
        drop(far);
    }
}

#[allow(unsafe_code)]
fn duplicate(fd: &impl AsFd, least: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers alone.
    let copy = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_DUPFD_CLOEXEC, least) };
    let copy = Errno::result(copy)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}
