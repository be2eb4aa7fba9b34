//! Copies of the agent that go their own way. It has one thread, so that no lock is held by one that a copy lacks.

use std::ffi::c_int;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::unistd::{ForkResult, Pid};

use super::kill;

/// CLONE_INTO_CGROUP of linux/sched.h, which does not fit the type of libc's constants.
const CLONE_INTO_CGROUP: i64 = 0x2_0000_0000;

/// Both ends of a new process, as seen by each.
#[derive(Debug)]
pub(crate) enum Forked {
    Parent { child: Pid, pidfd: OwnedFd },
    Child,
}

/// Makes a process that is a copy of this one; gives its id, and in it none.
pub(crate) fn fork() -> nix::Result<Option<Pid>> {
    // SAFETY: the agent has one thread.
    Ok(match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Some(child),
        ForkResult::Child => None,
    })
}

/// Makes a process that is a copy of this one, in the cgroup whose directory is given and in new namespaces as
/// `namespaces` (CLONE_NEW*) asks.
///
/// # Errors
///
/// What clone3(2) says.
pub(crate) fn fork_into(cgroup: BorrowedFd<'_>, namespaces: c_int) -> nix::Result<Forked> {
    clone3(namespaces, Some(cgroup))
}

fn clone3(namespaces: c_int, cgroup: Option<BorrowedFd<'_>>) -> nix::Result<Forked> {
    let mut pidfd: RawFd = -1;
    // SAFETY: zeroes are a valid clone_args (every field is a number, and zero means absent).
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    let mut flags = i64::from(namespaces) | i64::from(libc::CLONE_PIDFD);
    if let Some(cgroup) = cgroup {
        flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    args.flags = flags.cast_unsigned();
    args.pidfd = (&raw mut pidfd).addr() as u64;
    args.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    // SAFETY: the arguments are complete and outlive the call; without CLONE_VM the child has a copy of everything,
    // and the agent has one thread.
    let child = Errno::result(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of_val(&args)) })?;
    if child == 0 {
        return Ok(Forked::Child);
    }
    // SAFETY: the kernel has stored a new descriptor there, which nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Forked::Parent {
        child: Pid::from_raw(i32::try_from(child).map_err(|_| Errno::EOVERFLOW)?),
        pidfd,
    })
}

/// A process that does nothing until it is ended, which it is with this value.
#[derive(Debug)]
pub(crate) struct Sleeper {
    process: Pid,
    /// Its id where /proc was mounted.
    shown: i32,
}

impl Sleeper {
    /// Its id in /proc.
    pub(crate) fn pid(&self) -> i32 {
        self.shown
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = kill(self.process, libc::SIGKILL);
        let mut status = 0;
        // SAFETY: the pointer is to an int.
        unsafe { libc::waitpid(self.process.as_raw(), &raw mut status, 0) };
    }
}

/// Makes a process in new namespaces (CLONE_NEW*) that sleeps.
pub(crate) fn fork_sleeping(namespaces: c_int) -> std::io::Result<Sleeper> {
    let (child, pidfd) = match clone3(namespaces, None)? {
        Forked::Parent { child, pidfd } => (child, pidfd),
        Forked::Child => loop {
            // SAFETY: pause(2) touches no memory.
            unsafe { libc::pause() };
        },
    };
    let mut sleeper = Sleeper {
        process: child,
        shown: 0,
    };
    // The id is another one in each pid namespace; the descriptor knows it in that of /proc.
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let pid = text
        .lines()
        .find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    sleeper.shown = pid.filter(|pid| *pid > 0).ok_or(Errno::ESRCH)?;
    Ok(sleeper)
}
