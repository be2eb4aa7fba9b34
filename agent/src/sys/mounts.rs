//! The mount calls that work on descriptors (fsopen(2), open_tree(2), move_mount(2), mount_setattr(2)).

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// Begins the configuration of a file system of a type.
pub(crate) fn open_file_system(kind: &CStr) -> nix::Result<OwnedFd> {
    // SAFETY: the string ends with a zero byte.
    let fd = unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), libc::FSOPEN_CLOEXEC) };
    owned(fd)
}

/// Sets an option: a flag, or one with a value.
pub(crate) fn set_option(context: BorrowedFd<'_>, key: &CStr, value: Option<&CStr>) -> nix::Result<()> {
    let command = match value {
        None => libc::FSCONFIG_SET_FLAG,
        Some(_) => libc::FSCONFIG_SET_STRING,
    };
    let value = value.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: the strings end with a zero byte; a flag takes none as its value.
    let result = unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key.as_ptr(), value, 0) };
    Errno::result(result).map(drop)
}

/// Makes the file system and a mount of it that is nowhere yet; `attributes` are MOUNT_ATTR_*.
pub(crate) fn make_mount(context: BorrowedFd<'_>, attributes: u64) -> nix::Result<OwnedFd> {
    let (context, nothing) = (context.as_raw_fd(), std::ptr::null::<libc::c_char>());
    // SAFETY: this command takes neither key nor value.
    let result = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context,
            libc::FSCONFIG_CMD_CREATE,
            nothing,
            nothing,
            0,
        )
    };
    Errno::result(result)?;
    // SAFETY: the call takes numbers.
    let fd = unsafe { libc::syscall(libc::SYS_fsmount, context, libc::FSMOUNT_CLOEXEC, attributes) };
    owned(fd)
}

/// A copy of the mount tree below a file or directory that is nowhere yet: what a bind mount shows.
pub(crate) fn clone_tree(source: BorrowedFd<'_>, recursive: bool) -> nix::Result<OwnedFd> {
    let recursive = if recursive { AT_RECURSIVE } else { 0 };
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | EMPTY_PATH | recursive;
    // SAFETY: the string ends with a zero byte.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, source.as_raw_fd(), c"".as_ptr(), flags) };
    owned(fd)
}

/// Puts a mount over a file or directory.
pub(crate) fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> nix::Result<()> {
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    let (mount, target, here) = (mount.as_raw_fd(), target.as_raw_fd(), c"".as_ptr());
    // SAFETY: the string ends with a zero byte.
    Errno::result(unsafe { libc::syscall(libc::SYS_move_mount, mount, here, target, here, flags) }).map(drop)
}

/// Changes a mount, or with `recursive` also those below it.
pub(crate) fn set_attributes(mount: BorrowedFd<'_>, attributes: &libc::mount_attr, recursive: bool) -> nix::Result<()> {
    let flags = EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    let (mount, here, size) = (mount.as_raw_fd(), c"".as_ptr(), size_of_val(attributes));
    // SAFETY: the string ends with a zero byte, and pointer and size are those of the attributes.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount,
            here,
            flags,
            std::ptr::from_ref(attributes),
            size,
        )
    };
    Errno::result(result).map(drop)
}

const EMPTY_PATH: libc::c_uint = libc::AT_EMPTY_PATH.cast_unsigned();
/// AT_RECURSIVE of linux/fcntl.h.
const AT_RECURSIVE: libc::c_uint = 0x8000;

fn owned(fd: libc::c_long) -> nix::Result<OwnedFd> {
    let fd = Errno::result(fd)?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
