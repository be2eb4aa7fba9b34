//! The system calls that nix has not: the agent's unsafe code, but for descriptors that come in a message
//! ([`crate::child::packet`]).

#![allow(unsafe_code)]

pub(crate) mod bpf;
mod confine;
mod fork;
mod hook;
pub(crate) mod mounts;
mod partitions;
mod schedule;
mod terminal;

pub(crate) use confine::{Filter, set_personality};
pub(crate) use fork::{Forked, fork, fork_into, fork_sleeping};
pub(crate) use hook::{before_execution, open_process};
pub(crate) use partitions::{add_partition, remove_partitions};
pub(crate) use schedule::{set_affinity, set_io_priority, set_scheduler};
pub(crate) use terminal::{open_terminal_peer, set_terminal_size, take_controlling_terminal, terminal_number};

use std::ffi::c_int;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, accept4, socket};
use nix::unistd::Pid;

/// Takes a connection, which does not block and is closed on exec.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// How long connect(2) of a vsock waits for the other side (`SO_VM_SOCKETS_CONNECT_TIMEOUT`); Linux gives it two seconds.
pub(crate) fn set_connect_timeout(socket: BorrowedFd<'_>, limit: std::time::Duration) -> nix::Result<()> {
    const CONNECT_TIMEOUT: c_int = 6;
    #[allow(clippy::cast_possible_truncation)]
    const SIZE: libc::socklen_t = size_of::<libc::timeval>() as libc::socklen_t;
    let time = libc::timeval {
        tv_sec: libc::time_t::try_from(limit.as_secs()).map_err(|_| Errno::EINVAL)?,
        tv_usec: 0,
    };
    // SAFETY: the option reads a timeval.
    Errno::result(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::AF_VSOCK,
            CONNECT_TIMEOUT,
            (&raw const time).cast(),
            SIZE,
        )
    })
    .map(drop)
}

/// The number of an error that the kernel has told of; others are errors of input and output.
pub(crate) fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// Ends the process at once, running nothing on the way.
pub(crate) fn exit_now(status: c_int) -> ! {
    // SAFETY: _exit may be called at any time.
    unsafe { libc::_exit(status) }
}

/// Closes every descriptor that is not in `keep`.
///
/// Only for a process that will not return to the code which owns them.
pub(crate) fn close_all_but(keep: &[RawFd]) -> nix::Result<()> {
    let mut keep: Vec<u32> = keep.iter().map(|fd| fd.cast_unsigned()).collect();
    keep.sort_unstable();
    let mut first = 0;
    for fd in keep.into_iter().chain([u32::MAX]) {
        if first < fd {
            // SAFETY: the caller owns none of the descriptors any more.
            Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) })?;
        }
        first = fd.saturating_add(1);
    }
    Ok(())
}

/// Marks the descriptors from `first` on to be closed by execve(2).
pub(crate) fn close_on_exec_from(first: RawFd) -> nix::Result<()> {
    // SAFETY: no descriptor is closed here.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(result).map(drop)
}

/// Makes `fd` one of the process's standard streams (`target` 0, 1 or 2).
pub(crate) fn become_stream(fd: BorrowedFd<'_>, target: c_int) -> nix::Result<()> {
    // SAFETY: the standard streams are owned by nobody.
    Errno::result(unsafe { libc::dup2(fd.as_raw_fd(), target) }).map(drop)
}

/// Nanoseconds of CLOCK_MONOTONIC.
pub(crate) fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// Nanoseconds since the epoch.
pub(crate) fn wall_clock_ns() -> u64 {
    clock_ns(libc::CLOCK_REALTIME)
}

/// Nanoseconds since the machine was started.
pub(crate) fn since_boot_ns() -> u64 {
    clock_ns(libc::CLOCK_BOOTTIME)
}

/// The size of a page of memory in bytes.
pub(crate) fn page_size() -> u64 {
    // SAFETY: sysconf reads nothing of ours.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a valid timespec; these clocks exist on every Linux.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Sets the NIS domain name of the process's UTS namespace.
pub(crate) fn set_domainname(name: &str) -> nix::Result<()> {
    // SAFETY: pointer and length are the string's.
    Errno::result(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Kernel messages of this level and above stay off the console.
pub(crate) fn set_console_level(level: c_int) {
    const CONSOLE_LEVEL: c_int = 8;
    // SAFETY: this action takes no buffer.
    unsafe { libc::klogctl(CONSOLE_LEVEL, std::ptr::null_mut(), level) };
}

/// Brings the interface `lo` of the process's network namespace up.
pub(crate) fn bring_loopback_up() -> nix::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: zeroes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    #[allow(
        clippy::cast_possible_truncation,
        reason = "the flag fits; the field is shorter than the constant"
    )]
    let flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: SIOCSIFFLAGS reads an ifreq.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) }).map(drop)
}

/// Gives every signal its default action and blocks none.
pub(crate) fn reset_signals() -> nix::Result<()> {
    // The kernel's sigaction with nothing in it. The C library's function would leave out the signals that it uses
    // itself, but somebody may have made the agent ignore those too.
    let default = [0_u64; 4];
    let old = std::ptr::null_mut::<u64>();
    for signal in 1..=64 {
        // SAFETY: the default action runs no code of ours. It fails for SIGKILL and SIGSTOP, which have it anyway.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), old, 8) };
    }
    nix::sys::signal::SigSet::empty().thread_set_mask()
}

/// Lets a write to a pipe or connection without a reader fail instead of killing the agent.
pub(crate) fn ignore_broken_pipes() {
    // SAFETY: ignoring a signal runs no code of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Sends a signal by number: real-time signals have no name in nix.
pub(crate) fn kill(pid: Pid, signal: c_int) -> nix::Result<()> {
    // SAFETY: kill(2) touches no memory.
    Errno::result(unsafe { libc::kill(pid.as_raw(), signal) }).map(drop)
}

/// A child that has ended, and its exit code or 128 and the signal that has ended it. The kernel forgets it.
pub(crate) fn reap() -> Option<(i32, u32)> {
    let mut status: c_int = 0;
    // SAFETY: the pointer is to an int.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    if pid <= 0 {
        return None;
    }
    let code = if libc::WIFSIGNALED(status) {
        128 + libc::WTERMSIG(status)
    } else {
        libc::WEXITSTATUS(status)
    };
    Some((pid, code.cast_unsigned()))
}

/// Whether there is a child, dead or alive.
pub(crate) fn has_children() -> bool {
    let flags = libc::WNOHANG | libc::WEXITED | libc::WNOWAIT;
    // SAFETY: waitid(2) takes a null pointer for a result that nobody wants.
    unsafe { libc::waitid(libc::P_ALL, 0, std::ptr::null_mut(), flags) == 0 }
}

/// Sets a process's resource limit by number.
pub(crate) fn set_limit(pid: Pid, resource: u32, soft: u64, hard: u64) -> nix::Result<()> {
    let limit = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    let old = std::ptr::null_mut::<libc::rlimit64>();
    // SAFETY: the new limit is valid, the old one is not asked for.
    Errno::result(unsafe { libc::syscall(libc::SYS_prlimit64, pid.as_raw(), resource, &raw const limit, old) })
        .map(drop)
}

/// The hard limit of a resource.
pub(crate) fn hard_limit(resource: u32) -> nix::Result<u64> {
    let mut limit = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    let new = std::ptr::null::<libc::rlimit64>();
    // SAFETY: no new limit is set, the old one is written where it fits.
    Errno::result(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, new, &raw mut limit) })?;
    Ok(limit.rlim_max)
}

/// prctl(2) with numbers only.
fn prctl(option: c_int, one: u64, two: u64) -> nix::Result<c_int> {
    let zero: libc::c_ulong = 0;
    // SAFETY: the callers pass options whose arguments are numbers.
    Errno::result(unsafe { libc::prctl(option, one, two, zero, zero) })
}

/// Keeps other processes from tracing this one or reading its memory, until it executes.
pub(crate) fn forbid_tracing() -> nix::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0, 0).map(drop)
}

/// Whether capabilities survive the change of the user.
pub(crate) fn keep_capabilities(keep: bool) -> nix::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, u64::from(keep), 0).map(drop)
}

/// No execve(2) gives new privileges from now on.
pub(crate) fn forbid_new_privileges() -> nix::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop)
}

/// Whether a capability is in the bounding set; `EINVAL` for one that the kernel does not have.
fn bounding_has(capability: u8) -> nix::Result<bool> {
    prctl(libc::PR_CAPBSET_READ, capability.into(), 0).map(|has| has == 1)
}

/// Capabilities are bits of a 64-bit word; a kernel has fewer.
pub(crate) const MAX_CAPABILITIES: u8 = 64;

/// Drops what is not to be had, ever; gives all capabilities that the kernel knows.
pub(crate) fn keep_bounding(bounding: u64) -> nix::Result<u64> {
    let mut known = 0;
    for capability in 0..MAX_CAPABILITIES {
        match bounding_has(capability) {
            Err(Errno::EINVAL) => break,
            Err(source) => return Err(source),
            Ok(has) => {
                known |= 1 << capability;
                if has && bounding >> capability & 1 == 0 {
                    drop_bounding(capability)?;
                }
            }
        }
    }
    Ok(known)
}

/// Takes a capability out of the bounding set.
fn drop_bounding(capability: u8) -> nix::Result<()> {
    prctl(libc::PR_CAPBSET_DROP, capability.into(), 0).map(drop)
}

/// Empties the ambient set.
pub(crate) fn clear_ambient() -> nix::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0).map(drop)
}

/// Puts a capability into the ambient set.
pub(crate) fn raise_ambient(capability: u8) -> nix::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability.into()).map(drop)
}

const PR_CAP_AMBIENT_RAISE: u64 = 2;
const PR_CAP_AMBIENT_CLEAR_ALL: u64 = 4;

/// Sets the process's own capability sets; bit n is capability n.
pub(crate) fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> nix::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: c_int,
    }
    #[repr(C)]
    struct Sets {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    // _LINUX_CAPABILITY_VERSION_3 of linux/capability.h: two words a set.
    let header = Header {
        version: 0x2008_0522,
        pid: 0,
    };
    let word = |set: u64, index: u32| u32::try_from((set >> (32 * index)) & u64::from(u32::MAX)).unwrap_or(0);
    let sets = [0, 1].map(|index| Sets {
        effective: word(effective, index),
        permitted: word(permitted, index),
        inheritable: word(inheritable, index),
    });
    // SAFETY: both pointers are to what version 3 prescribes.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) }).map(drop)
}

/// A socket that receives the kernel's device events.
pub(crate) fn device_events() -> nix::Result<OwnedFd> {
    let flags = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket(2) touches no memory.
    let fd = Errno::result(unsafe { libc::socket(libc::AF_NETLINK, flags, libc::NETLINK_KOBJECT_UEVENT) })?;
    // SAFETY: the descriptor is new and ours.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: zeroes are a valid sockaddr_nl.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    #[allow(clippy::cast_possible_truncation, reason = "AF_NETLINK is 16")]
    let family = libc::AF_NETLINK as libc::sa_family_t;
    address.nl_family = family;
    // The kernel's own messages; group 2 has those of a udev daemon.
    address.nl_groups = 1;
    let length = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or(0);
    // SAFETY: address and length describe a sockaddr_nl.
    Errno::result(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(socket)
}
