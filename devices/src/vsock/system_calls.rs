//! What the device asks of the host's kernel in the event loop.

use crate::system_calls::{Condition, NONBLOCKING, SystemCall};

/// What the device does in the event loop.
pub const SYSTEM_CALLS: &[SystemCall] = &[
    // Clients come...
    SystemCall::any(libc::SYS_accept4),
    NONBLOCKING,
    // ...and the host is told of connections that the guest makes.
    SystemCall::with(libc::SYS_socketpair, &[Condition::is(0, libc::AF_UNIX.cast_unsigned())]),
    SystemCall::any(libc::SYS_sendmsg),
    SystemCall::any(libc::SYS_recvmsg),
    SystemCall::any(libc::SYS_recvfrom),
    SystemCall::any(libc::SYS_sendto),
    SystemCall::any(libc::SYS_shutdown),
    SystemCall::any(libc::SYS_timerfd_settime),
];
