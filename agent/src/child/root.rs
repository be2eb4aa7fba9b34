//! A container's root: put together in the process's own mount namespace, then entered for good.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use husk_protocol::agent::CreateRequest;
use husk_protocol::agent::namespace::Kind;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, stat, umask};
use nix::unistd::{Gid, Uid, chdir, chown, mkdir, pivot_root};

use super::mounts::{Mounts, make_read_only, mask, protect};
use super::paths::{Root, by_descriptor};
use super::terminal::{self, Terminal};
use super::{ChildError, at, credentials, devices, mounts, step};
use crate::sys::{errno, mounts as mount_calls};

/// What a root is made from.
pub(super) struct Surroundings<'a> {
    pub(super) request: &'a CreateRequest,
    pub(super) image: &'a [PathBuf],
    pub(super) cgroup: &'a Path,
    pub(super) stage: &'a Path,
    pub(super) shared: &'a BTreeMap<String, PathBuf>,
    /// The root, mounted nowhere: in a user namespace the process cannot make it, and begins as its own root there.
    pub(super) tree: Option<BorrowedFd<'a>>,
}

/// Builds the root and makes it the process's; gives the terminal if the process is to have one.
pub(super) fn build(surroundings: &Surroundings<'_>) -> Result<Option<Terminal>, ChildError> {
    let request = surroundings.request;
    umask(Mode::empty());
    let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(step("making the mounts private"))?;
    let (root, memory) = match surroundings.tree {
        Some(tree) => place(tree, surroundings.stage)?,
        None => {
            let path = overlay(surroundings.image, surroundings.stage)?;
            let memory = Root::open(surroundings.stage).map_err(step("opening the root's memory"))?;
            (Root::open(&path).map_err(step("opening the root"))?, memory)
        }
    };

    let has_cgroup_namespace = request
        .namespaces
        .iter()
        .any(|namespace| namespace.kind == Kind::CGROUP.into());
    let own_cgroup = (!has_cgroup_namespace).then_some(surroundings.cgroup);
    let mut mounts = Mounts::new(&root, surroundings, &memory, own_cgroup);
    mounts.apply(request)?;
    let terminal = populate_dev(&root, request, surroundings.tree.is_some())?;
    for sysctl in &request.sysctls {
        set_sysctl(&sysctl.path, &sysctl.value)?;
    }
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
    let propagation = MsFlags::from_bits_truncate(request.root_propagation);
    if !propagation.is_empty() {
        mount(None::<&str>, "/", None::<&str>, propagation, None::<&str>)
            .map_err(step("setting the root's propagation"))?;
    }
    Ok(terminal)
}

/// The root that the agent has made, for a process in a user namespace: it puts it where it may. Gives also a directory
/// in memory beside it.
fn place(tree: BorrowedFd<'_>, stage: &Path) -> Result<(Root, Root), ChildError> {
    // While the process is nobody in its namespace it still owns what the agent owns, and finds its directories.
    let stage = Root::open(stage).map_err(step("opening the place of the root"))?;
    credentials::become_root()?;
    let memory = mounts::memory(stage.as_fd())?;
    let place = memory.directory("root").map_err(step("making a place for the root"))?;
    mount_calls::attach(tree, place.as_fd()).map_err(step("placing the root"))?;
    let tree = tree.try_clone_to_owned().map_err(|error| ChildError::Step {
        step: "copying the root's descriptor",
        source: errno(&error),
    })?;
    Ok((Root::from(tree), memory))
}

/// Makes a container's root from outside, mounted nowhere: the agent does it for a process that cannot.
pub(crate) fn detached(image: &[PathBuf], stage: &Path) -> Result<OwnedFd, ChildError> {
    let result = overlay(image, stage).and_then(|path| {
        let root = Root::open(&path).map_err(step("opening the root"))?;
        let tree = mount_calls::clone_tree(root.as_fd(), true).map_err(step("detaching the root"));
        // What is mounted lives on in its copy.
        let _ = umount2(&path, MntFlags::MNT_DETACH);
        tree
    });
    let _ = umount2(stage, MntFlags::MNT_DETACH);
    result
}

/// Writes a file of the agent's /proc/sys, which shows a process the values of its own namespaces.
fn set_sysctl(path: &str, value: &str) -> Result<(), ChildError> {
    let failed = |source| ChildError::Sysctl {
        path: path.to_owned(),
        source,
    };
    let system = Root::open(Path::new("/proc/sys")).map_err(failed)?;
    let file = system.open_with(path, OFlag::O_WRONLY).map_err(failed)?;
    let written = nix::unistd::write(&file, value.as_bytes()).map_err(failed)?;
    if written < value.len() {
        return Err(failed(Errno::EIO));
    }
    Ok(())
}

/// The image with guest memory over it. A read-only root has that too until it is complete: what it mounts may need
/// places that the image lacks.
fn overlay(image: &[PathBuf], stage: &Path) -> Result<PathBuf, ChildError> {
    mount(Some("tmpfs"), stage, Some("tmpfs"), MsFlags::empty(), Some("mode=0700"))
        .map_err(step("mounting memory for the root's upper layer"))?;
    let [upper, work, merged] = ["upper", "work", "root"].map(|name| stage.join(name));
    for directory in [&upper, &work, &merged] {
        mkdir(directory, Mode::from_bits_truncate(0o755)).map_err(step("making the root's layers"))?;
    }
    // The root directory itself has the upper layer's owner and mode.
    let status = image.first().map_or(Err(Errno::ENOENT), stat);
    let status = status.map_err(step("examining the image"))?;
    chown(
        &upper,
        Some(Uid::from_raw(status.st_uid)),
        Some(Gid::from_raw(status.st_gid)),
    )
    .map_err(step("giving the root its owner"))?;
    let mode = Mode::from_bits_truncate(status.st_mode & 0o7777);
    fchmodat(nix::fcntl::AT_FDCWD, &upper, mode, FchmodatFlags::FollowSymlink)
        .map_err(step("giving the root its mode"))?;
    // The paths are the agent's own and short: those of 128 layers are within the page that mount(2) takes.
    let lower: Vec<_> = image.iter().map(|layer| layer.display().to_string()).collect();
    let data = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
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
fn populate_dev(root: &Root, request: &CreateRequest, in_user_namespace: bool) -> Result<Option<Terminal>, ChildError> {
    let is_bound = request.mounts.iter().any(|wanted| {
        wanted.destination.trim_end_matches('/') == "/dev" && wanted.flags & MsFlags::MS_BIND.bits() != 0
    });
    // Nobody in a user namespace makes nodes that work: those of the guest are bound instead.
    let make = if in_user_namespace {
        devices::bind
    } else {
        devices::make
    };
    if !is_bound {
        devices::make_default(root, make)?;
    }
    for device in &request.devices {
        make(root, device)?;
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
