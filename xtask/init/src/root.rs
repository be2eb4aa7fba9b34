//! The emulated host's file systems.
//!
//! The machine's root comes read-only over virtiofs. An overlay with a layer in memory makes it writable; the shares
//! (checkout, build output) lie on top of that and go through to the machine.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use xtask_init::channel::{Share, Start};

use crate::modules::Modules;

const LOWER: &str = "/lower";
const UPPER: &str = "/upper";
const ROOT: &str = "/root";

const NO_DEVICES: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
const DATA_ONLY: MsFlags = NO_DEVICES.union(MsFlags::MS_NOEXEC);

/// A file system of the host: where, type, flags, options.
type Entry = (&'static str, &'static str, MsFlags, &'static str);

/// Below the new root, in this order. Memory is given out as it is used, so the shares of it may overlap.
const FILE_SYSTEMS: &[Entry] = &[
    ("proc", "proc", DATA_ONLY, ""),
    ("sys", "sysfs", DATA_ONLY, ""),
    ("sys/kernel/security", "securityfs", DATA_ONLY, ""),
    ("sys/kernel/debug", "debugfs", DATA_ONLY, ""),
    ("sys/kernel/tracing", "tracefs", DATA_ONLY, ""),
    ("sys/fs/bpf", "bpf", DATA_ONLY, "mode=700"),
    ("sys/fs/cgroup", "cgroup2", DATA_ONLY, "nsdelegate,memory_recursiveprot"),
    ("dev", "devtmpfs", MsFlags::MS_NOSUID, "mode=755"),
    (
        "dev/pts",
        "devpts",
        MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        "gid=5,mode=620,ptmxmode=666",
    ),
    ("dev/shm", "tmpfs", NO_DEVICES, "mode=1777,size=50%"),
    ("dev/mqueue", "mqueue", DATA_ONLY, ""),
    ("run", "tmpfs", NO_DEVICES, "mode=755,size=50%"),
    ("tmp", "tmpfs", NO_DEVICES, "mode=1777,size=75%"),
];

/// What the first process itself needs.
pub(crate) fn mount_early() -> Result<()> {
    mount_at(Path::new("/proc"), "proc", "proc", DATA_ONLY, "")?;
    mount_at(
        Path::new("/dev"),
        "devtmpfs",
        "devtmpfs",
        MsFlags::MS_NOSUID,
        "mode=755",
    )
}

/// Mounts the machine's root file system, in which the modules are.
pub(crate) fn mount_lower(start: &Start) -> Result<Modules> {
    mount_at(Path::new(LOWER), "root", "virtiofs", MsFlags::MS_RDONLY, "")?;
    Modules::read(&below(LOWER, &start.modules))
}

/// Builds the new root, with overlay loaded, and moves into it.
pub(crate) fn assemble(start: &Start) -> Result<()> {
    mount_at(
        Path::new(UPPER),
        "tmpfs",
        "tmpfs",
        MsFlags::empty(),
        "mode=755,size=75%",
    )?;
    for directory in ["/upper/files", "/upper/work"] {
        fs::create_dir(directory).with_context(|| format!("creating {directory}"))?;
    }
    let layers = "lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work";
    mount_at(Path::new(ROOT), "root", "overlay", MsFlags::empty(), layers)?;
    for (directory, kind, flags, options) in FILE_SYSTEMS {
        mount_at(&Path::new(ROOT).join(directory), kind, kind, *flags, options)?;
    }
    for share in &start.shares {
        mount_share(share)?;
    }
    switch_root()?;
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, link).with_context(|| format!("creating {link}"))?;
    }
    create_directory(Path::new("/run/lock"), 0o1777)?;
    show_modules(&path(&start.modules))
}

fn mount_share(share: &Share) -> Result<()> {
    let target = below(ROOT, &share.path);
    match &share.tag {
        Some(tag) => mount_at(&target, tag, "virtiofs", MsFlags::empty(), ""),
        None => {
            fs::create_dir_all(&target).with_context(|| format!("creating {}", target.display()))?;
            let source = below(LOWER, &share.path);
            mount(
                Some(&source),
                &target,
                None::<&str>,
                MsFlags::MS_BIND | MsFlags::MS_REC,
                None::<&str>,
            )
            .with_context(|| format!("binding {} to {}", source.display(), target.display()))
        }
    }
}

fn switch_root() -> Result<()> {
    std::env::set_current_dir(ROOT).with_context(|| format!("chdir to {ROOT}"))?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).context("moving the new root to /")?;
    nix::unistd::chroot(".").context("chroot to the new root")?;
    std::env::set_current_dir("/").context("chdir to /")?;
    // As systemd does it: container tools rely on mounts that propagate.
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_SHARED | MsFlags::MS_REC,
        None::<&str>,
    )
    .context("making the mounts shared")
}

/// Shows the kernel's modules where modprobe looks for them.
fn show_modules(modules: &Path) -> Result<()> {
    let version = modules.file_name().context("the modules' directory has no name")?;
    let target = Path::new("/lib/modules").join(version);
    fs::create_dir_all(&target).with_context(|| format!("creating {}", target.display()))?;
    mount(Some(modules), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("binding {} to {}", modules.display(), target.display()))
}

/// Lets every user open what hosts with KVM usually give to a group.
pub(crate) fn open_devices_to_all() -> Result<()> {
    for device in [
        "/dev/kvm",
        "/dev/fuse",
        "/dev/net/tun",
        "/dev/vhost-net",
        "/dev/vhost-vsock",
    ] {
        fs::set_permissions(device, Permissions::from_mode(0o666)).with_context(|| format!("chmod of {device}"))?;
    }
    Ok(())
}

/// Gives every controller to the children of the root cgroup, as systemd does.
pub(crate) fn delegate_cgroup_controllers() -> Result<()> {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").context("reading cgroup.controllers")?;
    for controller in controllers.split_whitespace() {
        fs::write("/sys/fs/cgroup/cgroup.subtree_control", format!("+{controller}"))
            .with_context(|| format!("enabling the cgroup controller {controller}"))?;
    }
    Ok(())
}

/// The path that these bytes are.
pub(crate) fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

/// An absolute path as seen from outside the directory it counts from.
fn below(root: &str, absolute: &[u8]) -> PathBuf {
    let absolute = path(absolute);
    Path::new(root).join(absolute.strip_prefix("/").unwrap_or(&absolute))
}

fn create_directory(path: &Path, mode: u32) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
    fs::set_permissions(path, Permissions::from_mode(mode)).with_context(|| format!("chmod of {}", path.display()))
}

fn mount_at(target: &Path, source: &str, kind: &str, flags: MsFlags, options: &str) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("creating {}", target.display()))?;
    mount(Some(source), target, Some(kind), flags, Some(options))
        .with_context(|| format!("mounting {kind} {source} at {}", target.display()))
}
