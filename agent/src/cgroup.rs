//! A container's cgroup (version 2).

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use husk_protocol::agent::{CgroupSetting, StatsResponse};
use nix::sys::uio::pread;

/// Statistics files are a few KiB; a longer one is cut.
const MAX_FILE: u64 = 1 << 20;

/// Why a cgroup could not be made or used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    #[error("making the cgroup {path}: {source}")]
    Make { path: PathBuf, source: io::Error },
    #[error("writing {value:?} to the cgroup's {file}: {source}")]
    Set {
        file: String,
        value: String,
        source: io::Error,
    },
    #[error("opening {path}: {source}")]
    Open { path: PathBuf, source: io::Error },
}

/// A directory below the cgroup root that holds one container's processes.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the cgroup of container `id` and writes its limits; nothing is left of it when that fails.
    pub(crate) fn create(root: &Path, id: &str, settings: &[CgroupSetting]) -> Result<Self, CgroupError> {
        // A container may be called like one of the root's files, so it needs a prefix that none of them has.
        let path = root.join(format!("container-{id}"));
        fs::create_dir(&path).map_err(|source| CgroupError::Make {
            path: path.clone(),
            source,
        })?;
        let cgroup = Self { path };
        for setting in settings {
            if let Err(source) = fs::write(cgroup.path.join(&setting.file), &setting.value) {
                cgroup.remove();
                return Err(CgroupError::Set {
                    file: setting.file.clone(),
                    value: setting.value.clone(),
                    source,
                });
            }
        }
        Ok(cgroup)
    }

    /// Whether a setting's file name can be one of a cgroup's files.
    pub(crate) fn is_file_name(name: &str) -> bool {
        !name.is_empty() && !name.contains('/') && name != "." && name != ".."
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory, as clone3(2) wants it.
    pub(crate) fn directory(&self) -> Result<OwnedFd, CgroupError> {
        self.open("").map(OwnedFd::from)
    }

    /// Opens one of its files; reading memory.events or cgroup.events again tells epoll that the last change is known.
    pub(crate) fn open(&self, file: &str) -> Result<File, CgroupError> {
        let path = self.path.join(file);
        File::open(&path).map_err(|source| CgroupError::Open { path, source })
    }

    /// Kills all of its processes, and those that they are just making.
    pub(crate) fn kill(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.kill"), "1")
    }

    /// The processes in it and below it, in the agent's pid namespace.
    pub(crate) fn pids(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        walk(&self.path, &mut |directory| {
            let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            // A process of another pid namespace than ours or one below it would be shown as 0.
            pids.extend(
                text.lines()
                    .filter_map(|line| line.parse::<i32>().ok())
                    .filter(|pid| *pid > 0),
            );
        });
        pids
    }

    /// Removes it with what the container has made below it. False while a process is left in it.
    pub(crate) fn remove(&self) -> bool {
        let mut gone = true;
        walk(&self.path, &mut |directory| gone &= fs::remove_dir(directory).is_ok());
        gone
    }

    /// What the container has used.
    pub(crate) fn stats(&self) -> StatsResponse {
        let read = |file: &str| self.read(file);
        let number = |file: &str| read(file).trim().parse().unwrap_or(0);
        let cpu = flat(&read("cpu.stat"));
        let cpu = |key: &str| cpu.get(key).copied().unwrap_or(0);
        let (io_read_bytes, io_written_bytes) = io_bytes(&read("io.stat"));
        StatsResponse {
            cpu_usage_us: cpu("usage_usec"),
            cpu_user_us: cpu("user_usec"),
            cpu_system_us: cpu("system_usec"),
            cpu_periods: cpu("nr_periods"),
            cpu_throttled_periods: cpu("nr_throttled"),
            cpu_throttled_us: cpu("throttled_usec"),
            memory_current: number("memory.current"),
            memory_peak: number("memory.peak"),
            // "max" is no number: no limit.
            memory_limit: number("memory.max"),
            memory: flat(&read("memory.stat")),
            oom_kills: oom_kills(&read("memory.events")),
            pids_current: number("pids.current"),
            pids_limit: number("pids.max"),
            io_read_bytes,
            io_written_bytes,
            ..StatsResponse::default()
        }
    }

    /// A file that a controller which is off has not is empty.
    fn read(&self, file: &str) -> String {
        let mut text = String::new();
        if let Ok(file) = File::open(self.path.join(file)) {
            let _ = file.take(MAX_FILE).read_to_string(&mut text);
        }
        text
    }
}

/// Reads an events file from its beginning.
pub(crate) fn reread(file: &impl AsFd) -> String {
    let mut bytes = [0; 512];
    let count = pread(file, &mut bytes, 0).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..count]).into_owned()
}

/// How many processes the memory limit has killed (memory.events).
pub(crate) fn oom_kills(events: &str) -> u64 {
    flat(events).get("oom_kill").copied().unwrap_or(0)
}

/// Whether a process is in the cgroup or below it (cgroup.events).
pub(crate) fn is_populated(events: &str) -> bool {
    flat(events).get("populated") == Some(&1)
}

/// "key number" lines.
fn flat(text: &str) -> HashMap<String, u64> {
    text.lines()
        .filter_map(|line| {
            let (key, value) = line.split_once(' ')?;
            Some((key.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

/// Bytes read and written over all devices: "8:0 rbytes=1 wbytes=2 ..." lines.
fn io_bytes(text: &str) -> (u64, u64) {
    let sum = |key: &str| {
        text.split_ascii_whitespace()
            .filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok())
            .fold(0, u64::saturating_add)
    };
    (sum("rbytes="), sum("wbytes="))
}

/// Visits a directory's subdirectories and then itself. A container decides how deep they lie, but cgroup v2 has a
/// limit of its own (cgroup.max.depth) and a path may not be longer than PATH_MAX.
fn walk(directory: &Path, visit: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), visit);
        }
    }
    visit(directory);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_read_from_their_files() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("container-a");
        fs::create_dir(&path).unwrap();
        for (file, text) in [
            (
                "cpu.stat",
                "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 4\nnr_throttled 3\nthrottled_usec 2\n",
            ),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.stat", "anon 5\nfile 6\n"),
            (
                "memory.events",
                "low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 0\n",
            ),
            ("pids.current", "7\n"),
            ("pids.max", "8\n"),
            (
                "io.stat",
                "254:0 rbytes=100 wbytes=1 rios=5\n254:16 rbytes=11 wbytes=2 dbytes=0\n",
            ),
        ] {
            fs::write(path.join(file), text).unwrap();
        }
        let stats = Cgroup { path }.stats();
        assert_eq!(
            (stats.cpu_usage_us, stats.cpu_user_us, stats.cpu_system_us),
            (30, 20, 10)
        );
        assert_eq!(
            (stats.cpu_periods, stats.cpu_throttled_periods, stats.cpu_throttled_us),
            (4, 3, 2)
        );
        assert_eq!(
            (stats.memory_current, stats.memory_limit, stats.memory_peak),
            (4096, 0, 0)
        );
        assert_eq!(stats.memory, [("anon".to_owned(), 5), ("file".to_owned(), 6)].into());
        assert_eq!((stats.oom_kills, stats.pids_current, stats.pids_limit), (1, 7, 8));
        assert_eq!((stats.io_read_bytes, stats.io_written_bytes), (111, 3));
    }

    #[test]
    fn events_are_understood() {
        assert!(is_populated("populated 1\nfrozen 0\n"));
        assert!(!is_populated("populated 0\nfrozen 0\n"));
        assert!(!is_populated(""));
        assert_eq!(oom_kills("oom 1\noom_kill 12\n"), 12);
        assert_eq!(oom_kills("rubbish\n\n oom_kill\n"), 0);
    }

    #[test]
    fn a_setting_that_fails_leaves_no_cgroup() {
        let root = tempfile::tempdir().unwrap();
        let setting = CgroupSetting {
            file: "no/such".to_owned(),
            value: "1".to_owned(),
            ..CgroupSetting::default()
        };
        let error = Cgroup::create(root.path(), "a", &[setting]).unwrap_err();
        assert!(error.to_string().contains("no/such"), "{error}");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_the_container_made_below_is_removed_too() {
        let root = tempfile::tempdir().unwrap();
        let cgroup = Cgroup::create(root.path(), "a", &[]).unwrap();
        fs::create_dir_all(cgroup.path().join("b/c")).unwrap();
        assert!(cgroup.remove());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn setting_names_stay_in_the_directory() {
        assert!(Cgroup::is_file_name("memory.max"));
        for name in ["", ".", "..", "../x", "a/b"] {
            assert!(!Cgroup::is_file_name(name));
        }
    }
}
