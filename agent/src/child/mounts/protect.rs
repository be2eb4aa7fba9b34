//! What is hidden in a root or protected from writing.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::MsFlags;
use nix::sys::stat::Mode;

use super::super::paths::Root;
use super::super::{ChildError, at};
use super::detached::{self, Detached, Fault};
use super::is_directory;

/// Hides a path: a file behind /dev/null, a directory behind an empty one. What is not there needs no hiding.
pub(in super::super) fn mask(root: &Root, path: &str) -> Result<(), ChildError> {
    let Some(target) = find_if_there(root, path)? else {
        return Ok(());
    };
    let hide = || -> Result<(), Fault> {
        let mount = if is_directory(&target) {
            // The directory itself is all that fits in.
            let choices = detached::choices("nr_blocks=1,nr_inodes=1");
            Detached::file_system("tmpfs", "tmpfs", MsFlags::MS_RDONLY, &choices)?
        } else {
            let null = open(Path::new("/dev/null"), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
            Detached::tree(null, false)?
        };
        Ok(mount.attach(&target)?)
    };
    hide().map_err(|fault| at("masking", path)(fault.source))
}

/// Makes a path read-only, with the other flags of the mount on which it lies.
pub(in super::super) fn protect(root: &Root, path: &str) -> Result<(), ChildError> {
    let Some(target) = find_if_there(root, path)? else {
        return Ok(());
    };
    let protect = || -> nix::Result<()> {
        let mount = Detached::tree(&target, true)?;
        mount.change(libc::MOUNT_ATTR_RDONLY, 0, false)?;
        mount.attach(&target)
    };
    protect().map_err(at("making read-only:", path))
}

/// Makes the mount of which the descriptor is the root read-only.
pub(in super::super) fn make_read_only(target: &impl AsFd) -> nix::Result<()> {
    detached::change(target, libc::MOUNT_ATTR_RDONLY, 0, false)
}

fn find_if_there(root: &Root, path: &str) -> Result<Option<OwnedFd>, ChildError> {
    match root.find(path) {
        Ok(target) => Ok(Some(target)),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(source) => Err(at("finding", path)(source)),
    }
}
