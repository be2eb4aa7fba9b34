//! A user namespace for nothing but its mappings, which an idmapped mount takes over.

use std::fs::{self, File};
use std::os::fd::OwnedFd;

use husk_protocol::agent::IdMapping;
use nix::sched::CloneFlags;

use crate::sys;

/// Makes the namespace: a process begins it, is given the mappings, and ends.
pub(super) fn namespace(uids: &[IdMapping], gids: &[IdMapping]) -> std::io::Result<OwnedFd> {
    let process = sys::fork_sleeping(CloneFlags::CLONE_NEWUSER.bits())?;
    let directory = format!("/proc/{}", process.pid());
    fs::write(format!("{directory}/uid_map"), lines(uids))?;
    fs::write(format!("{directory}/gid_map"), lines(gids))?;
    File::open(format!("{directory}/ns/user")).map(OwnedFd::from)
}

/// As user_namespaces(7) describes it.
fn lines(mappings: &[IdMapping]) -> String {
    let line = |mapping: &IdMapping| format!("{} {} {}\n", mapping.inside, mapping.outside, mapping.size);
    mappings.iter().map(line).collect()
}
