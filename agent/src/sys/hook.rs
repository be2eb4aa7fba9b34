//! Processes that a container's process makes for its hooks.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::unistd::Pid;

/// Has the command's process do something before it executes.
pub(crate) fn before_execution(command: &mut Command, work: impl FnMut() -> nix::Result<()> + Send + Sync + 'static) {
    let mut work = work;
    // SAFETY: the process that forks has one thread, so that no lock is held by one that the child lacks.
    unsafe { command.pre_exec(move || Ok(work()?)) };
}

/// A descriptor that becomes readable when a child ends.
pub(crate) fn open_process(pid: Pid) -> nix::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = RawFd::try_from(Errno::result(result)?).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
