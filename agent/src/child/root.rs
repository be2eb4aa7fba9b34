//! A container's root: put together in the process's own mount namespace, then entered for good.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use husk_protocol::agent::CreateRequest;
use husk_protocol::agent::namespace::Kind;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, stat, umask};
use nix::unistd::{Gid, Uid, chdir, chown, mkdir, pivot_root};

use super::mounts::{Mounts, make_read_only, mask, protect};
use super::paths::{Root, by_descriptor};
use super::terminal::{self, Terminal};
use super::{ChildError, at, devices, step};

/// What a root is made from.
pub(super) struct Surroundings<'a> {
    pub(super) request: &'a CreateRequest,
    pub(super) image: &'a Path,
    pub(super) cgroup: &'a Path,
    pub(super) stage: &'a Path,
    pub(super) shared: &'a BTreeMap<String, PathBuf>,
}

/// Builds the root and makes it the process's; gives the terminal if the process is to have one.
pub(super) fn build(surroundings: &Surroundings<'_>) -> Result<Option<Terminal>, ChildError> {
    let request = surroundings.request;
    umask(Mode::empty());
    let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(step("making the mounts private"))?;
    let path = overlay(surroundings)?;
    let root = Root::open(&path).map_err(step("opening the root"))?;

    let has_cgroup_namespace = request
        .namespaces
        .iter()
        .any(|namespace| namespace.kind == Kind::CGROUP.into());
    let own_cgroup = (!has_cgroup_namespace).then_some(surroundings.cgroup);
    let memory = Root::open(surroundings.stage).map_err(step("opening the root's memory"))?;
    let mut mounts = Mounts::new(&root, surroundings, &memory, own_cgroup);
    mounts.apply(request)?;
    let terminal = populate_dev(&root, request)?;
    root.directory(&request.process.cwd)
        .map_err(at("making the working directory", &request.process.cwd))?;
    for path in &request.readonly_paths {
        protect(&root, path)?;
    }
    for path in BTreeSet::from_iter(&request.masked_paths) {
        mask(&root, path)?;
    }
    mounts.finish()?;
    if request.root.read_only {
        let target = root.find("/").map_err(step("finding the root"))?;
        make_read_only(&target).map_err(step("making the root read-only"))?;
    }
    enter(&root)?;
    Ok(terminal)
}

/// The image with guest memory over it. A read-only root has that too until it is complete: what it mounts may need
/// places that the image lacks.
fn overlay(surroundings: &Surroundings<'_>) -> Result<std::path::PathBuf, ChildError> {
    let stage = surroundings.stage;
    mount(Some("tmpfs"), stage, Some("tmpfs"), MsFlags::empty(), Some("mode=0700"))
        .map_err(step("mounting memory for the root's upper layer"))?;
    let [upper, work, merged] = ["upper", "work", "root"].map(|name| stage.join(name));
    for directory in [&upper, &work, &merged] {
        mkdir(directory, Mode::from_bits_truncate(0o755)).map_err(step("making the root's layers"))?;
    }
    // The root directory itself has the upper layer's owner and mode.
    let image = stat(surroundings.image).map_err(step("examining the image"))?;
    chown(
        &upper,
        Some(Uid::from_raw(image.st_uid)),
        Some(Gid::from_raw(image.st_gid)),
    )
    .map_err(step("giving the root its owner"))?;
    let mode = Mode::from_bits_truncate(image.st_mode & 0o7777);
    fchmodat(nix::fcntl::AT_FDCWD, &upper, mode, FchmodatFlags::FollowSymlink)
        .map_err(step("giving the root its mode"))?;
    let data = format!(
        "lowerdir={},upperdir={},workdir={}",
        surroundings.image.display(),
        upper.display(),
        work.display()
    );
    mount(
        Some("overlay"),
        &merged,
        Some("overlay"),
        MsFlags::empty(),
        Some(data.as_str()),
    )
    .map_err(step("mounting the root's overlay"))?;
    Ok(merged)
}

/// Fills /dev, unless it is a bind mount of one that is complete.
fn populate_dev(root: &Root, request: &CreateRequest) -> Result<Option<Terminal>, ChildError> {
    let is_bound = request.mounts.iter().any(|wanted| {
        wanted.destination.trim_end_matches('/') == "/dev" && wanted.flags & MsFlags::MS_BIND.bits() != 0
    });
    if !is_bound {
        devices::make_default(root)?;
    }
    for device in &request.devices {
        devices::make(root, device)?;
    }
    if !request.process.stdio.terminal {
        return Ok(None);
    }
    let terminal = terminal::open_below(root)?;
    let path = terminal.path()?;
    let peer = root.find(&path).map_err(at("finding", &path))?;
    let console = root.file("/dev/console").map_err(at("making", "/dev/console"))?;
    let bind = MsFlags::MS_BIND;
    mount(
        Some(by_descriptor(&peer).as_str()),
        by_descriptor(&console).as_str(),
        None::<&str>,
        bind,
        None::<&str>,
    )
    .map_err(at("mounting the terminal on", "/dev/console"))?;
    Ok(Some(terminal))
}

/// Makes the root the process's `/` and lets go of the agent's.
fn enter(root: &Root) -> Result<(), ChildError> {
    nix::unistd::fchdir(root.as_fd()).map_err(step("entering the root"))?;
    // Both names are the new root: the old one ends up over it and is taken off again.
    pivot_root(".", ".").map_err(step("changing the root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(step("detaching the old root"))?;
    chdir("/").map_err(step("entering the root"))
}
