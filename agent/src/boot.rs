//! From the kernel's initial root to a system that can hold containers.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use nix::kmod::ModuleInitFlags;
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, rlim_t, setrlimit};
use nix::unistd::{chdir, chroot};

use crate::{cgroup, sys};

/// Where cgroup v2 is mounted.
pub(crate) const CGROUPS: &str = "/sys/fs/cgroup";
/// The agent's own files: mounts of images and the place where a container's root is put together.
pub(crate) const RUN: &str = "/run/husk";
/// Where the kernel shows block devices.
pub(crate) const BLOCK_DEVICES: &str = "/sys/block";
/// The most open files that a process of the guest may ask for; the agent itself takes all.
pub(crate) const MAX_FILES: u64 = 1 << 20;

const MODULES: &str = "/modules";
const PROACTIVE_COMPACTION: &str = "/proc/sys/vm/compaction_proactiveness";

/// Why the guest could not be prepared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error("making the directory {path}: {source}")]
    Directory { path: &'static str, source: std::io::Error },
    #[error("mounting {kind} on {path}: {source}")]
    Mount {
        kind: &'static str,
        path: &'static str,
        source: nix::Error,
    },
    #[error("moving the root out of the initial one: {0}")]
    Root(nix::Error),
    #[error("opening /dev/null: {0}")]
    Null(std::io::Error),
    #[error("reading {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("writing {path}: {source}")]
    Write { path: &'static str, source: std::io::Error },
    #[error("loading the kernel module {module}: {source}")]
    Module { module: String, source: nix::Error },
    #[error("enabling the cgroup controllers ({wanted}): {source}")]
    Controllers { wanted: String, source: std::io::Error },
    #[error("raising the limit of open files: {0}")]
    Limit(nix::Error),
    #[error("bringing the loopback interface up: {0}")]
    Loopback(nix::Error),
}

/// Puts the root onto a mount of its own.
///
/// The kernel's initial root is a mount without a parent, which pivot_root(2) refuses to replace. A bind mount of it
/// moved over it has one.
pub(crate) fn leave_initial_root() -> Result<(), BootError> {
    make_directory("/root")?;
    mount(Some("/"), "/root", None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(BootError::Root)?;
    chdir("/root").map_err(BootError::Root)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(BootError::Root)?;
    chroot(".").map_err(BootError::Root)?;
    chdir("/").map_err(BootError::Root)
}

/// Mounts the kernel's own file systems.
pub(crate) fn mount_system() -> Result<(), BootError> {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    let device = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount_one("devtmpfs", "/dev", device, "mode=0755")?;
    mount_one("devpts", "/dev/pts", device, "mode=0620,ptmxmode=0666")?;
    mount_one("tmpfs", "/dev/shm", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777")?;
    mount_one("proc", "/proc", plain, "")?;
    mount_one("sysfs", "/sys", plain, "")?;
    // As on any host with systemd: limits of a cgroup namespace's root are not for those in it to change, and what protects
    // a cgroup's memory protects those below it.
    mount_one("cgroup2", CGROUPS, plain, "nsdelegate,memory_recursiveprot")?;
    mount_one("tmpfs", "/run", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=0755")?;
    make_directory(RUN)
}

/// Gives the agent standard streams: the kernel opens none when it has no console.
pub(crate) fn open_standard_streams() -> Result<(), BootError> {
    loop {
        let null = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map_err(BootError::Null)?;
        if std::os::fd::AsRawFd::as_raw_fd(&null) > 2 {
            return Ok(());
        }
        // It fills a gap among the first three: it stays open for as long as the agent runs.
        std::mem::forget(null);
    }
}

/// Loads the modules that a second initial archive has brought, in its order: a distribution's kernel needs some for
/// its devices, husk's own needs none.
pub(crate) fn load_modules() -> Result<(), BootError> {
    let order = Path::new(MODULES).join("order");
    let names = match std::fs::read_to_string(&order) {
        Ok(names) => names,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(BootError::Read { path: order, source }),
    };
    for name in names.lines().filter(|name| !name.is_empty()) {
        load_module(name)?;
    }
    Ok(())
}

fn load_module(name: &str) -> Result<(), BootError> {
    let path = Path::new(MODULES).join(name);
    let file = File::open(&path).map_err(|source| BootError::Read {
        path: path.clone(),
        source,
    })?;
    // MODULE_INIT_COMPRESSED_FILE of linux/module.h, since Linux 5.17.
    const COMPRESSED: libc::c_uint = 4;
    let compressed = path.extension().is_some_and(|extension| extension != "ko");
    let flags = if compressed {
        ModuleInitFlags::from_bits_retain(COMPRESSED)
    } else {
        ModuleInitFlags::empty()
    };
    match nix::kmod::finit_module(&file, &CString::default(), flags) {
        // A driver may find that the machine lacks what it drives, such as an instruction.
        Ok(()) | Err(nix::Error::EEXIST | nix::Error::ENODEV) => Ok(()),
        Err(source) => Err(BootError::Module {
            module: name.to_owned(),
            source,
        }),
    }
}

/// Lets containers have every cgroup controller that the kernel has.
pub(crate) fn prepare_cgroups() -> Result<(), BootError> {
    let path = Path::new(CGROUPS).join("cgroup.controllers");
    let controllers = std::fs::read_to_string(&path).map_err(|source| BootError::Read { path, source })?;
    // One write for all: each makes the kernel go through every process.
    let wanted = cgroup::all_of(&controllers);
    std::fs::write(Path::new(CGROUPS).join("cgroup.subtree_control"), &wanted)
        .map_err(|source| BootError::Controllers { wanted, source })
}

/// Each stream of each process costs the agent a few descriptors. And what would bound a user's processes by the size of
/// the machine has no use in it: engines lift it too, and bound containers by their cgroups.
pub(crate) fn raise_limits() -> Result<(), BootError> {
    setrlimit(Resource::RLIMIT_NOFILE, MAX_FILES, MAX_FILES).map_err(BootError::Limit)?;
    setrlimit(Resource::RLIMIT_NPROC, rlim_t::MAX, rlim_t::MAX).map_err(BootError::Limit)
}

/// Lets memory be defragmented when somebody needs a large block of it, and not ahead of time: that is a thread which
/// looks at all of it twice a second, and so wakes a machine that has nothing to do.
pub(crate) fn stop_proactive_compaction() -> Result<(), BootError> {
    let path = Path::new(PROACTIVE_COMPACTION);
    match std::fs::write(path, "0") {
        // A kernel of the user's own may not do it at all.
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(BootError::Write {
            path: PROACTIVE_COMPACTION,
            source: error,
        }),
        _ => Ok(()),
    }
}

/// Leaves the console to errors: each line costs milliseconds on a serial line, and there may be none.
pub(crate) fn quieten_kernel() {
    sys::set_console_level(4);
}

/// Writes a line to the kernel's log, as an error: the one place that is there from the beginning to the end.
pub(crate) fn complain(what: &str) {
    if let Ok(mut log) = OpenOptions::new().write(true).open("/dev/kmsg") {
        // Nobody is left to hear that this has failed too.
        let _ = log.write_all(format!("<3>husk-agent: {what}\n").as_bytes());
    }
}

fn mount_one(kind: &'static str, path: &'static str, flags: MsFlags, data: &str) -> Result<(), BootError> {
    if !Path::new(path).is_dir() {
        make_directory(path)?;
    }
    match mount(Some(kind), path, Some(kind), flags, Some(data)) {
        // The kernel has mounted devtmpfs by itself (CONFIG_DEVTMPFS_MOUNT).
        Ok(()) | Err(nix::Error::EBUSY) => Ok(()),
        Err(source) => Err(BootError::Mount { kind, path, source }),
    }
}

fn make_directory(path: &'static str) -> Result<(), BootError> {
    std::fs::create_dir_all(path).map_err(|source| BootError::Directory { path, source })
}
