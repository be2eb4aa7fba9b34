//! A container's mounts, and what is hidden or protected of them.

use std::os::fd::OwnedFd;
use std::path::Path;

use husk_protocol::agent::Mount;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::statvfs::{FsFlags, fstatvfs};

use super::paths::{Root, by_descriptor};
use super::{ChildError, at};

/// Does one mount of the request.
///
/// `own_cgroup` is the directory to show where the container asks for cgroups without having a cgroup namespace.
pub(super) fn apply(root: &Root, wanted: &Mount, own_cgroup: Option<&Path>) -> Result<(), ChildError> {
    let flags = flags_of(wanted);
    if flags.contains(MsFlags::MS_BIND) {
        bind(root, wanted, flags)?;
    } else if flags.contains(MsFlags::MS_REMOUNT) {
        let target = root.find(&wanted.destination).map_err(failed(wanted))?;
        change(&target, flags).map_err(failed(wanted))?;
    } else if !wanted.type_.is_empty() {
        file_system(root, wanted, flags, own_cgroup)?;
    }
    let propagation = MsFlags::from_bits_truncate(wanted.propagation);
    if propagation.is_empty() {
        return Ok(());
    }
    let target = root.find(&wanted.destination).map_err(failed(wanted))?;
    change(&target, propagation).map_err(failed(wanted))
}

fn file_system(root: &Root, wanted: &Mount, flags: MsFlags, own_cgroup: Option<&Path>) -> Result<(), ChildError> {
    let kind = if wanted.type_ == "cgroup" {
        "cgroup2"
    } else {
        wanted.type_.as_str()
    };
    let target = root.directory(&wanted.destination).map_err(failed(wanted))?;
    if let (Some(directory), "cgroup2") = (own_cgroup, kind) {
        bind_to(directory, &target, MsFlags::MS_BIND).map_err(failed(wanted))?;
        let target = root.find(&wanted.destination).map_err(failed(wanted))?;
        return change(&target, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags).map_err(failed(wanted));
    }
    let source = if wanted.source.is_empty() {
        kind
    } else {
        wanted.source.as_str()
    };
    let target = by_descriptor(&target);
    mount(
        Some(source),
        target.as_str(),
        Some(kind),
        flags,
        Some(wanted.data.as_str()),
    )
    .map_err(failed(wanted))
}

/// A bind mount of something in the root; other flags than these two need a second call.
fn bind(root: &Root, wanted: &Mount, flags: MsFlags) -> Result<(), ChildError> {
    let source = root.find(&wanted.source).map_err(at("finding", &wanted.source))?;
    let target = if is_directory(&source) {
        root.directory(&wanted.destination)
    } else {
        root.file(&wanted.destination)
    }
    .map_err(failed(wanted))?;
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    bind_to(Path::new(&by_descriptor(&source)), &target, flags & bind).map_err(failed(wanted))?;
    let rest = flags - bind;
    if rest.is_empty() {
        return Ok(());
    }
    let target = root.find(&wanted.destination).map_err(failed(wanted))?;
    change(&target, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | rest).map_err(failed(wanted))
}

/// Hides a path: a file behind /dev/null, a directory behind an empty one. What is not there needs no hiding.
pub(super) fn mask(root: &Root, path: &str) -> Result<(), ChildError> {
    let Some(target) = find_if_there(root, path)? else {
        return Ok(());
    };
    let result = if is_directory(&target) {
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(
            Some("tmpfs"),
            by_descriptor(&target).as_str(),
            Some("tmpfs"),
            flags,
            Some("size=0k,nr_inodes=2"),
        )
    } else {
        bind_to(Path::new("/dev/null"), &target, MsFlags::MS_BIND)
    };
    result.map_err(at("masking", path))
}

/// Makes a path read-only, with the other flags of the mount on which it lies.
pub(super) fn protect(root: &Root, path: &str) -> Result<(), ChildError> {
    let Some(target) = find_if_there(root, path)? else {
        return Ok(());
    };
    let action = "making read-only:";
    bind_to(
        Path::new(&by_descriptor(&target)),
        &target,
        MsFlags::MS_BIND | MsFlags::MS_REC,
    )
    .map_err(at(action, path))?;
    let target = root.find(path).map_err(at(action, path))?;
    make_read_only(&target).map_err(at(action, path))
}

/// Makes the mount of which the descriptor is the root read-only.
pub(super) fn make_read_only(target: &OwnedFd) -> nix::Result<()> {
    // The kernel keeps how access times are treated unless told otherwise.
    let now = fstatvfs(target)?.flags();
    let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    for (status, flag) in [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
    ] {
        if now.contains(status) {
            flags |= flag;
        }
    }
    change(target, flags)
}

fn find_if_there(root: &Root, path: &str) -> Result<Option<OwnedFd>, ChildError> {
    match root.find(path) {
        Ok(target) => Ok(Some(target)),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(source) => Err(at("finding", path)(source)),
    }
}

fn flags_of(wanted: &Mount) -> MsFlags {
    let propagation = MsFlags::MS_SHARED | MsFlags::MS_PRIVATE | MsFlags::MS_SLAVE | MsFlags::MS_UNBINDABLE;
    MsFlags::from_bits_truncate(wanted.flags) - propagation
}

pub(super) fn bind_to(source: &Path, target: &OwnedFd, flags: MsFlags) -> nix::Result<()> {
    mount(
        Some(source),
        by_descriptor(target).as_str(),
        None::<&str>,
        flags,
        None::<&str>,
    )
}

pub(super) fn change(target: &OwnedFd, flags: MsFlags) -> nix::Result<()> {
    mount(
        None::<&str>,
        by_descriptor(target).as_str(),
        None::<&str>,
        flags,
        None::<&str>,
    )
}

pub(super) fn failed(wanted: &Mount) -> impl FnOnce(Errno) -> ChildError + use<> {
    let kind = if wanted.type_.is_empty() {
        wanted.source.clone()
    } else {
        wanted.type_.clone()
    };
    let path = wanted.destination.clone();
    move |source| ChildError::Mount { kind, path, source }
}

fn is_directory(fd: &OwnedFd) -> bool {
    fstat(fd).is_ok_and(|status| status.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits())
}
