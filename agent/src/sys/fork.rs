//! A copy of the agent that goes its own way.

use nix::unistd::{ForkResult, Pid};

/// Makes a process that is a copy of this one; gives its id, and in it none.
pub(crate) fn fork() -> nix::Result<Option<Pid>> {
    // SAFETY: the agent has one thread, so that no lock is held by a thread that the child lacks.
    Ok(match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Some(child),
        ForkResult::Child => None,
    })
}
