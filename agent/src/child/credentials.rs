//! Who a process is and what it may do.

use std::os::fd::OwnedFd;

use husk_protocol::agent::Process;
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use super::{ChildError, step};
use crate::sys;

/// Becomes the user, with its groups and capabilities.
pub(super) fn assume(process: &Process) -> Result<(), ChildError> {
    let sets = process.capabilities.get_or_default();
    let known = sys::keep_bounding(sets.bounding).map_err(step("limiting the capabilities"))?;
    sys::keep_capabilities(true).map_err(step("keeping capabilities"))?;

    let user = process.user.get_or_default();
    let groups: Vec<Gid> = user.additional_gids.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    setgroups(&groups).map_err(step("setting the additional groups"))?;
    setresgid(gid, gid, gid).map_err(step("setting the group"))?;
    setresuid(uid, uid, uid).map_err(step("setting the user"))?;

    sys::keep_capabilities(false).map_err(step("keeping capabilities no longer"))?;
    sys::set_capabilities(sets.effective & known, sets.permitted & known, sets.inheritable & known)
        .map_err(step("setting the capabilities"))?;
    sys::clear_ambient().map_err(step("emptying the ambient capabilities"))?;
    // The kernel lets a capability be ambient only while it is permitted and inheritable. A bundle that asks for more
    // gets what is possible, as with runc: old versions of `runc spec` wrote such bundles.
    let ambient = sets.ambient & sets.permitted & sets.inheritable & known;
    for capability in (0..sys::MAX_CAPABILITIES).filter(|number| ambient >> number & 1 == 1) {
        sys::raise_ambient(capability).map_err(|source| ChildError::Capability(capability, source))?;
    }
    Ok(())
}

/// Becomes root of the user namespace in which the process is: until then it is nobody there, whose files nobody could
/// own. It has all capabilities in the namespace, and keeps them.
pub(crate) fn become_root() -> Result<(), ChildError> {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setgroups(&[]).map_err(step("setting no additional groups"))?;
    setresgid(gid, gid, gid).map_err(step("becoming the namespace's root group"))?;
    setresuid(uid, uid, uid).map_err(step("becoming the namespace's root"))
}

/// Whether a stream is a pipe that the agent has made for this process.
pub(super) fn is_pipe(stream: &OwnedFd) -> bool {
    fstat(stream).is_ok_and(|status| status.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFIFO.bits())
}
