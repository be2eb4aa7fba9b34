//! Mounts that are in no namespace for a while.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

const EMPTY: &CStr = c"";

/// A copy of a directory's mount, and of what is mounted below it, that is mounted nowhere yet (open_tree(2)).
pub(crate) fn detach_copy(directory: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let empty = libc::c_uint::try_from(libc::AT_EMPTY_PATH | libc::AT_RECURSIVE).map_err(|_| Errno::EINVAL)?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | empty;
    // SAFETY: the path is a C string.
    let result = unsafe { libc::syscall(libc::SYS_open_tree, directory.as_raw_fd(), EMPTY.as_ptr(), flags) };
    let fd = RawFd::try_from(Errno::result(result)?).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Mounts such a copy over a directory (move_mount(2)). The descriptor is the mount's root as before.
pub(crate) fn place(tree: BorrowedFd<'_>, directory: BorrowedFd<'_>) -> nix::Result<()> {
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: both paths are C strings.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            EMPTY.as_ptr(),
            directory.as_raw_fd(),
            EMPTY.as_ptr(),
            flags,
        )
    };
    Errno::result(result).map(drop)
}
