//! The cgroup on the host that `linux.cgroupsPath` names: what a container costs its host can be read there, and those
//! who started it find its processes.
//!
//! The sandbox's owner is in it and the machine, as its child. The container's limits hold inside the guest; none is set
//! here. The path's cgroups above the last one belong to whoever chose it and stay.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use thiserror::Error;

use crate::machine::remaining;

/// Where the host's hierarchy is.
const HIERARCHY: &str = "/sys/fs/cgroup";
/// The controllers that are passed down the path, as far as they can be.
const CONTROLLERS: [&str; 5] = ["+cpu", "+io", "+memory", "+pids", "+cpuset"];

/// Why a cgroup of the host cannot be used.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum HostCgroupError {
    #[error("the host's cgroup {} cannot be made", path.display())]
    Make {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the host's cgroup {} cannot be entered", path.display())]
    Enter {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the host's cgroup {} cannot be removed", path.display())]
    Remove {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The directory of the cgroup at `path`, which has no `..` in it; none where the host has no cgroup v2 at its usual
/// place, or does not let this user make any.
#[must_use]
pub fn directory(path: &str) -> Option<PathBuf> {
    if path.is_empty() || path.split('/').any(|name| name == "..") {
        return None;
    }
    let is_v2 = statfs(HIERARCHY).is_ok_and(|status| status.filesystem_type() == CGROUP2_SUPER_MAGIC);
    let is_ours = nix::unistd::access(HIERARCHY, nix::unistd::AccessFlags::W_OK).is_ok();
    (is_v2 && is_ours).then(|| Path::new(HIERARCHY).join(path))
}

/// Makes a cgroup and moves this process into it.
///
/// # Errors
/// It cannot be made or entered.
pub fn enter(directory: &Path) -> Result<(), HostCgroupError> {
    make(directory)?;
    fs::write(directory.join("cgroup.procs"), "0").map_err(|source| HostCgroupError::Enter {
        path: directory.into(),
        source,
    })
}

/// Makes a cgroup, and those above it that are missing.
///
/// # Errors
/// It cannot be made.
pub fn make(directory: &Path) -> Result<(), HostCgroupError> {
    let mut way = PathBuf::from(HIERARCHY);
    let below = directory.strip_prefix(HIERARCHY).unwrap_or(directory);
    for name in below {
        for controller in CONTROLLERS {
            // A controller that is not there, or that processes beside the path keep from being passed down, shows
            // nothing there.
            let _ = fs::write(way.join("cgroup.subtree_control"), controller);
        }
        way.push(name);
        match fs::create_dir(&way) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                return Err(HostCgroupError::Make { path: way, source });
            }
            _ => {}
        }
    }
    Ok(())
}

/// The file of a cgroup into which a process writes `0` to enter it.
pub(crate) fn open(directory: &Path) -> Result<File, HostCgroupError> {
    let opened = OpenOptions::new().write(true).open(directory.join("cgroup.procs"));
    opened.map_err(|source| HostCgroupError::Enter {
        path: directory.into(),
        source,
    })
}

/// Removes a cgroup when the last process has left it, for which it waits for a limited time. That there is none is no
/// error.
///
/// # Errors
/// Processes stay in it.
pub fn remove(directory: &Path, limit: Duration) -> Result<(), HostCgroupError> {
    let failed = |source| HostCgroupError::Remove {
        path: directory.into(),
        source,
    };
    let deadline = Instant::now() + limit;
    let mut events = match File::open(directory.join("cgroup.events")) {
        Ok(events) => events,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    loop {
        let mut text = String::new();
        // Reading it is also what makes the next change an event.
        let read = events.rewind().and_then(|()| events.read_to_string(&mut text));
        // A cgroup that somebody else has removed cannot be read any more.
        if read.is_err() || text.lines().any(|line| line == "populated 0") || Instant::now() >= deadline {
            return match fs::remove_dir(directory) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                result => result.map_err(failed),
            };
        }
        // An interrupted wait is followed by another look.
        let _ = poll(
            &mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)],
            remaining(deadline),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_path_below_the_hierarchy_is_one() {
        for path in ["", "..", "a/../../b"] {
            assert_eq!(directory(path), None, "{path:?}");
        }
    }

    #[test]
    fn a_cgroup_that_is_gone_is_removed() {
        let none = Path::new(HIERARCHY).join("husk-test-none");
        remove(&none, Duration::ZERO).unwrap();
    }
}
