//! A container's mounts.
//!
//! Each is made by itself ([`detached`]) and then put over its place, which is looked up once: between the two nobody
//! can make a path mean something else.

mod copy;
mod detached;
mod files;
mod overlay;
mod owners;
mod protect;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use husk_protocol::agent::{CreateRequest, Mount};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{SFlag, fstat, fstatat};

use super::paths::{Root, by_descriptor};
use super::root::Surroundings;
use super::{ChildError, at, step};
use detached::{Choice, Detached, Fault};
pub(super) use protect::{make_read_only, mask, protect};

/// The mounts of a request, on their way into its root.
pub(super) struct Mounts<'a> {
    root: &'a Root,
    surroundings: &'a Surroundings<'a>,
    /// A directory in memory outside the root, for what is mounted from there.
    memory: &'a Root,
    /// The directory to show where the container asks for cgroups without having a cgroup namespace.
    own_cgroup: Option<&'a Path>,
    /// What becomes read-only when everything has its place in it.
    late: Vec<(Detached, String)>,
}

impl<'a> Mounts<'a> {
    pub(super) fn new(
        root: &'a Root,
        surroundings: &'a Surroundings<'a>,
        memory: &'a Root,
        own_cgroup: Option<&'a Path>,
    ) -> Self {
        Self {
            root,
            surroundings,
            memory,
            own_cgroup,
            late: Vec::new(),
        }
    }

    /// Does all mounts of the request, in their order.
    pub(super) fn apply(&mut self, request: &CreateRequest) -> Result<(), ChildError> {
        for (index, wanted) in request.mounts.iter().enumerate() {
            self.apply_one(index, wanted).map_err(|fault| failed(wanted, fault))?;
        }
        Ok(())
    }

    /// Makes read-only what had to be written until now.
    pub(super) fn finish(self) -> Result<(), ChildError> {
        for (mount, path) in self.late {
            mount
                .change(libc::MOUNT_ATTR_RDONLY, 0, false)
                .map_err(at("making read-only:", &path))?;
        }
        Ok(())
    }

    fn apply_one(&mut self, index: usize, wanted: &Mount) -> Result<(), Fault> {
        let flags = flags_of(wanted);
        if flags.contains(MsFlags::MS_REMOUNT) {
            return self.remount(wanted, flags);
        }
        let is_bind = is_bind(wanted, flags);
        if !is_bind && wanted.type_.is_empty() {
            return self.propagate(wanted);
        }
        let is_late = is_late(wanted, flags, is_bind);
        let (mount, target) = if is_bind {
            self.bind(index, wanted, flags)?
        } else {
            let writable = if is_late { flags - MsFlags::MS_RDONLY } else { flags };
            self.file_system(wanted, writable)?
        };
        if !wanted.uid_mappings.is_empty() || !wanted.gid_mappings.is_empty() {
            let namespace = owners::namespace(&wanted.uid_mappings, &wanted.gid_mappings);
            let namespace = namespace.map_err(|error| crate::sys::errno(&error))?;
            mount
                .map_owners(&namespace, wanted.recursive_mapping)
                .map_err(|source| Fault {
                    source,
                    detail: ": its owners cannot be mapped on this file system".to_owned(),
                })?;
        }
        if wanted.recursive_set | wanted.recursive_clear != 0 {
            mount.change(wanted.recursive_set, wanted.recursive_clear, true)?;
        }
        mount.attach(&target)?;
        for propagation in &wanted.propagation {
            mount.propagate(MsFlags::from_bits_truncate(*propagation))?;
        }
        if is_late {
            self.late.push((mount, wanted.destination.clone()));
        }
        Ok(())
    }

    /// A bind mount: of something in the root, of files that the host has sent, of memory that containers share, or of
    /// the container's own cgroup.
    fn bind(&self, index: usize, wanted: &Mount, flags: MsFlags) -> Result<(Detached, OwnedFd), Fault> {
        let source = self.source(index, wanted)?;
        let target = if is_directory(&source) {
            self.root.directory(&wanted.destination)?
        } else {
            self.root.file(&wanted.destination)?
        };
        let mount = Detached::tree(&source, flags.contains(MsFlags::MS_REC))?;
        let rest = flags - (MsFlags::MS_BIND | MsFlags::MS_REC);
        if !rest.is_empty() || wanted.cleared != 0 {
            mount.replace(rest)?;
        }
        Ok((mount, target))
    }

    fn source(&self, index: usize, wanted: &Mount) -> Result<OwnedFd, Fault> {
        let open = |path: &Path| {
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty())
        };
        if wanted.is_copy {
            return Ok(open(&files::write(self.memory, index, &wanted.files)?)?);
        }
        if !wanted.shared.is_empty() {
            let path = self.surroundings.shared.get(&wanted.shared).ok_or(Errno::ENOENT)?;
            return Ok(open(path)?);
        }
        self.root.find(&wanted.source).map_err(|source| Fault {
            source,
            detail: format!(": {:?} in the container", wanted.source),
        })
    }

    fn file_system(&self, wanted: &Mount, flags: MsFlags) -> Result<(Detached, OwnedFd), Fault> {
        let kind = if wanted.type_ == "cgroup" {
            "cgroup2"
        } else {
            wanted.type_.as_str()
        };
        if matches!(kind, "proc" | "sysfs") {
            self.refuse_link(&wanted.destination)?;
        }
        let there = self.root.find(&wanted.destination).ok();
        let target = self.root.directory(&wanted.destination)?;
        if let (Some(directory), "cgroup2") = (self.own_cgroup, kind) {
            let mount = Detached::tree(Root::open(directory)?, false)?;
            mount.replace(flags)?;
            return Ok((mount, target));
        }
        let source = if wanted.source.is_empty() {
            kind
        } else {
            wanted.source.as_str()
        };
        let mut choices = detached::choices(&wanted.data);
        // Kept open until the file system has been made.
        let mut layers = Vec::new();
        match kind {
            "tmpfs" => {
                if let Some(directory) = &there {
                    choices.insert(0, mode_of(directory)?);
                }
            }
            "overlay" => choices = overlay::choices(self.root, choices, &mut layers)?,
            _ => {}
        }
        let mount = Detached::file_system(kind, source, flags, &choices)?;
        if wanted.copy_up {
            let is_owned = choices.iter().any(|(key, _)| key == "uid" || key == "gid");
            copy::copy_up(&target, mount.as_fd(), !is_owned)?;
        }
        Ok((mount, target))
    }

    /// The kernel's own files are not to be mounted where a link of the image leads.
    fn refuse_link(&self, destination: &str) -> nix::Result<()> {
        let (parent, name) = self.root.parent(destination)?;
        match fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(status) if status.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFDIR.bits() => Err(Errno::ENOTDIR),
            Ok(_) | Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Changes what is mounted already.
    fn remount(&self, wanted: &Mount, flags: MsFlags) -> Result<(), Fault> {
        let target = self.root.find(&wanted.destination)?;
        // The descriptor is of the mount itself, so that its path leads there.
        mount(
            None::<&str>,
            by_descriptor(&target).as_str(),
            None::<&str>,
            flags,
            Some(wanted.data.as_str()),
        )?;
        self.propagate(wanted)
    }

    fn propagate(&self, wanted: &Mount) -> Result<(), Fault> {
        let target = self.root.find(&wanted.destination)?;
        for propagation in &wanted.propagation {
            detached::propagate(&target, MsFlags::from_bits_truncate(*propagation))?;
        }
        Ok(())
    }
}

/// Mounts a new file system in memory over a directory; gives its root.
pub(super) fn memory(over: BorrowedFd<'_>) -> Result<Root, ChildError> {
    let choices = detached::choices("mode=0700");
    let make = || -> Result<Root, Fault> {
        let mount = Detached::file_system("tmpfs", "tmpfs", MsFlags::empty(), &choices)?;
        mount.attach(&over)?;
        Ok(Root::from(OwnedFd::from(mount)))
    };
    make().map_err(|fault| step("mounting memory beside the root")(fault.source))
}

/// What is mounted in a tmpfs or in /dev needs its places there.
fn is_late(wanted: &Mount, flags: MsFlags, is_bind: bool) -> bool {
    let is_dev = wanted.destination.trim_end_matches('/') == "/dev";
    flags.contains(MsFlags::MS_RDONLY) && !is_bind && (is_dev || wanted.type_ == "tmpfs")
}

fn is_bind(wanted: &Mount, flags: MsFlags) -> bool {
    flags.contains(MsFlags::MS_BIND) || wanted.is_copy || !wanted.shared.is_empty()
}

/// A tmpfs has the mode of the directory that it covers, unless it is told another one.
fn mode_of(directory: &OwnedFd) -> nix::Result<Choice> {
    let mode = fstat(directory)?.st_mode & 0o7777;
    Ok(("mode".to_owned(), Some(format!("{mode:04o}"))))
}

fn flags_of(wanted: &Mount) -> MsFlags {
    let propagation = MsFlags::MS_SHARED | MsFlags::MS_PRIVATE | MsFlags::MS_SLAVE | MsFlags::MS_UNBINDABLE;
    // The C library's constants lack one.
    let known = MsFlags::from_bits_truncate(wanted.flags) - propagation;
    known | MsFlags::from_bits_retain(wanted.flags & detached::NOSYMFOLLOW.bits())
}

fn failed(wanted: &Mount, fault: Fault) -> ChildError {
    let kind = [&wanted.type_, &wanted.source, &wanted.shared]
        .into_iter()
        .find(|name| !name.is_empty());
    ChildError::Mount {
        kind: kind.map_or_else(|| "a file".to_owned(), Clone::clone),
        path: wanted.destination.clone(),
        source: fault.source,
        detail: fault.detail,
    }
}

fn is_directory(fd: &OwnedFd) -> bool {
    fstat(fd).is_ok_and(|status| status.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits())
}
