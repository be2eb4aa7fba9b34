//! What a disk's thread asks of the host's kernel, and what it takes to put a file into a slot.

use libc::c_int;

use crate::system_calls::{Condition, SystemCall};

/// What a disk's thread does.
pub const WORKER_SYSTEM_CALLS: &[SystemCall] = &[
    WAIT,
    // Taking a notification.
    SystemCall::any(libc::SYS_read),
    SystemCall::any(libc::SYS_preadv),
    // Of what is in memory. Its flags are not looked at: the kernel remembers its answer for a call without conditions,
    // and none of them makes more of it than a read.
    SystemCall::any(libc::SYS_preadv2),
    SystemCall::any(libc::SYS_pwritev),
    // Zeros, where the file system has no call for them.
    SystemCall::any(libc::SYS_pwrite64),
    SystemCall::any(libc::SYS_fdatasync),
    allocate(&PUNCH),
    allocate(&ZERO),
];

/// What whoever calls [`Handle`](super::Handle) does.
pub const HANDLE_SYSTEM_CALLS: &[SystemCall] = &[
    SystemCall::with(libc::SYS_fcntl, &[Condition::is(1, libc::F_GETFL.cast_unsigned())]),
    SystemCall::any(libc::SYS_lseek),
    // What kind of file it is, which depends on the C library; with an empty name the descriptor itself is meant.
    SystemCall::any(libc::SYS_fstat),
    SystemCall::with(
        libc::SYS_newfstatat,
        &[Condition::has(3, libc::AT_EMPTY_PATH.cast_unsigned())],
    ),
    SystemCall::with(
        libc::SYS_statx,
        &[Condition::has(2, libc::AT_EMPTY_PATH.cast_unsigned())],
    ),
];

/// poll(2), which newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const WAIT: SystemCall = SystemCall::any(libc::SYS_poll);
#[cfg(not(target_arch = "x86_64"))]
const WAIT: SystemCall = SystemCall::any(libc::SYS_ppoll);

const PUNCH: [Condition; 1] = mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE);
const ZERO: [Condition; 1] = mode(libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE);

const fn mode(mode: c_int) -> [Condition; 1] {
    [Condition::is(1, mode.cast_unsigned())]
}

const fn allocate(mode: &'static [Condition; 1]) -> SystemCall {
    SystemCall::with(libc::SYS_fallocate, mode)
}
