//! A container's cgroup (version 2).

mod devices;
mod stats;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use husk_protocol::agent::{CgroupSetting, Resources};
use nix::sys::uio::pread;

/// Statistics files are a few KiB; a longer one is cut.
const MAX_FILE: u64 = 1 << 20;

/// Why a cgroup could not be made or used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    #[error("making the cgroup {path}: {source}")]
    Make { path: PathBuf, source: io::Error },
    #[error("enabling controllers below the cgroup {path}, which must be no container's: {source}")]
    Controllers { path: PathBuf, source: io::Error },
    #[error("writing {value:?} to the cgroup's {file}: {source}{hint}")]
    Set {
        file: String,
        value: String,
        source: io::Error,
        hint: String,
    },
    #[error("memory.max: {limit} bytes are less than the {used} bytes in use")]
    InUse { limit: u64, used: u64 },
    #[error("{0}: the number of the disk with the container's root is not known")]
    NoDisk(String),
    #[error("setting the rules for devices: {0}")]
    Devices(nix::Error),
    #[error("opening {path}: {source}")]
    Open { path: PathBuf, source: io::Error },
}

/// A directory below the cgroup root that holds one container's processes.
#[derive(Debug)]
pub(crate) struct Cgroup {
    root: PathBuf,
    path: PathBuf,
    /// The program that decides about devices.
    devices: Option<OwnedFd>,
}

impl Cgroup {
    /// Makes the cgroup of container `id`, at `path` below `root` if that is not empty, and writes its limits; nothing
    /// is left of it when that fails. `disk` is the number of the disk with the container's root.
    pub(crate) fn create(
        root: &Path,
        id: &str,
        path: &str,
        resources: &Resources,
        disk: Option<&str>,
    ) -> Result<Self, CgroupError> {
        let path = if path.is_empty() {
            // A container may be called like one of the root's files, so it needs a prefix that none of them has.
            root.join(format!("container-{id}"))
        } else {
            root.join(path)
        };
        let mut cgroup = Self {
            root: root.to_owned(),
            path,
            devices: None,
        };
        if let Err(error) = cgroup.make().and_then(|()| cgroup.write_limits(resources, disk)) {
            // What was there before stays: it holds another container or is one.
            if !matches!(&error, CgroupError::Make { .. }) {
                cgroup.remove();
            }
            cgroup.remove_ancestors();
            return Err(error);
        }
        Ok(cgroup)
    }

    /// Makes the directory, and above it those that are missing, with every controller.
    fn make(&self) -> Result<(), CgroupError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| CgroupError::Make { path, source }
        };
        let mut ancestors: Vec<_> = self.ancestors().collect();
        if !ancestors.is_empty() {
            ancestors.reverse();
            let controllers = fs::read_to_string(self.root.join("cgroup.subtree_control")).unwrap_or_default();
            let wanted = all_of(&controllers);
            for path in ancestors {
                match fs::create_dir(path) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    result => result.map_err(failed(path))?,
                }
                fs::write(path.join("cgroup.subtree_control"), &wanted).map_err(|source| CgroupError::Controllers {
                    path: path.to_owned(),
                    source,
                })?;
            }
        }
        fs::create_dir(&self.path).map_err(failed(&self.path))
    }

    /// The directories between this one and the root, from below.
    fn ancestors(&self) -> impl Iterator<Item = &Path> {
        self.path.ancestors().skip(1).take_while(|path| *path != self.root)
    }

    /// Writes limits that are given, in their order.
    pub(crate) fn write_limits(&mut self, resources: &Resources, disk: Option<&str>) -> Result<(), CgroupError> {
        if let Some(rules) = resources.devices.as_ref() {
            let program = devices::attach(self.directory()?.as_fd(), &rules.rules, self.devices.as_ref())
                .map_err(CgroupError::Devices)?;
            self.devices = Some(program);
        }
        for setting in &resources.settings {
            if setting.file == "memory.max" {
                self.make_room(&setting.value, resources.check_before_update)?;
            }
            self.set(setting, disk)?;
        }
        Ok(())
    }

    fn set(&self, setting: &CgroupSetting, disk: Option<&str>) -> Result<(), CgroupError> {
        let value = match (setting.on_root_disk, disk) {
            (false, _) => setting.value.clone(),
            (true, Some(disk)) => format!("{disk} {}", setting.value),
            (true, None) => return Err(CgroupError::NoDisk(setting.file.clone())),
        };
        match fs::write(self.path.join(&setting.file), &value) {
            Err(error) if setting.optional && error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(|source| CgroupError::Set {
                hint: self.hint(&setting.file),
                file: setting.file.clone(),
                value,
                source,
            }),
        }
    }

    /// What would have been possible, where the number of it differs between host and guest.
    fn hint(&self, file: &str) -> String {
        let effective = format!("{file}.effective");
        match (file, fs::read_to_string(self.root.join(effective))) {
            ("cpuset.cpus", Ok(list)) => format!("; the guest has processor {}", list.trim()),
            ("cpuset.mems", Ok(list)) => format!("; the guest has memory node {}", list.trim()),
            _ => String::new(),
        }
    }

    /// Refuses a memory limit below what is in use: the kernel would kill for it. Unless it is to be judged as things
    /// are, what can be reclaimed is reclaimed first.
    fn make_room(&self, limit: &str, as_it_is: bool) -> Result<(), CgroupError> {
        let Ok(limit) = limit.parse::<u64>() else {
            return Ok(());
        };
        let used = || self.read("memory.current").trim().parse::<u64>().unwrap_or(0);
        let before = used();
        if before > limit && !as_it_is {
            // It says EAGAIN when less was reclaimed than asked for, which the next look shows as well.
            let _ = fs::write(self.path.join("memory.reclaim"), (before - limit).to_string());
        }
        match used() {
            used if used > limit => Err(CgroupError::InUse { limit, used }),
            _ => Ok(()),
        }
    }

    /// Whether a setting's file name can be one of a cgroup's files.
    pub(crate) fn is_file_name(name: &str) -> bool {
        !name.is_empty() && !name.contains('/') && name != "." && name != ".."
    }

    /// Whether a path below the root stays there.
    pub(crate) fn is_path(path: &str) -> bool {
        path.is_empty() || path.split('/').all(Self::is_file_name)
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

    /// Stops all of its processes, or lets them go on; cgroup.events says when they have stopped.
    pub(crate) fn freeze(&self, frozen: bool) -> io::Result<()> {
        fs::write(self.path.join("cgroup.freeze"), if frozen { "1" } else { "0" })
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

    /// Removes it with what the container has made below it, and those above it that hold nothing else. False while a
    /// process is left in it.
    pub(crate) fn remove(&self) -> bool {
        let mut gone = true;
        walk(&self.path, &mut |directory| gone &= fs::remove_dir(directory).is_ok());
        if gone {
            self.remove_ancestors();
        }
        gone
    }

    /// The kernel refuses where another container's cgroup lies below.
    fn remove_ancestors(&self) {
        for path in self.ancestors() {
            if fs::remove_dir(path).is_err() {
                return;
            }
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

/// What cgroup.subtree_control takes to have all these controllers, which are named with blanks between them.
pub(crate) fn all_of(controllers: &str) -> String {
    let words: Vec<_> = controllers
        .split_ascii_whitespace()
        .map(|name| format!("+{name}"))
        .collect();
    words.join(" ")
}

/// Reads an events file from its beginning.
pub(crate) fn reread(file: &impl AsFd) -> String {
    let mut bytes = [0; 512];
    let count = pread(file, &mut bytes, 0).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..count]).into_owned()
}

/// How many processes the memory limit has killed (memory.events).
pub(crate) fn oom_kills(events: &str) -> u64 {
    stats::flat(events).get("oom_kill").copied().unwrap_or(0)
}

/// Whether a process is in the cgroup or below it (cgroup.events).
pub(crate) fn is_populated(events: &str) -> bool {
    stats::flat(events).get("populated") == Some(&1)
}

/// Whether all its processes have stopped (cgroup.events).
pub(crate) fn is_frozen(events: &str) -> bool {
    stats::flat(events).get("frozen") == Some(&1)
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

    fn create(root: &Path, path: &str, settings: &[(&str, &str)]) -> Result<Cgroup, CgroupError> {
        let setting = |(file, value): &(&str, &str)| CgroupSetting {
            file: (*file).to_owned(),
            value: (*value).to_owned(),
            ..CgroupSetting::default()
        };
        let resources = Resources {
            settings: settings.iter().map(setting).collect(),
            ..Resources::default()
        };
        Cgroup::create(root, "a", path, &resources, Some("254:0"))
    }

    fn entries(root: &Path) -> usize {
        fs::read_dir(root).unwrap().count()
    }

    #[test]
    fn events_are_understood() {
        assert!(is_populated("populated 1\nfrozen 0\n"));
        assert!(!is_populated("populated 0\nfrozen 0\n"));
        assert!(!is_populated(""));
        assert!(is_frozen("populated 1\nfrozen 1\n") && !is_frozen("populated 1\nfrozen 0\n"));
        assert_eq!(oom_kills("oom 1\noom_kill 12\n"), 12);
        assert_eq!(oom_kills("rubbish\n\n oom_kill\n"), 0);
    }

    #[test]
    fn a_setting_that_fails_leaves_no_cgroup() {
        let root = tempfile::tempdir().unwrap();
        for path in ["", "b"] {
            let error = create(root.path(), path, &[("no/such", "1")]).unwrap_err();
            assert!(error.to_string().contains("no/such"), "{error}");
            assert_eq!(entries(root.path()), 0);
        }
    }

    #[test]
    fn a_cgroup_that_is_there_is_not_taken_and_not_removed() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("b")).unwrap();
        let error = create(root.path(), "b", &[]).unwrap_err();
        assert!(matches!(error, CgroupError::Make { .. }));
        assert_eq!(entries(root.path()), 1);
    }

    #[test]
    fn what_the_container_made_below_is_removed_too() {
        let root = tempfile::tempdir().unwrap();
        let cgroup = create(root.path(), "", &[]).unwrap();
        fs::create_dir_all(cgroup.path().join("b/c")).unwrap();
        assert!(cgroup.remove());
        assert_eq!(entries(root.path()), 0);
    }

    #[test]
    fn a_setting_of_the_root_disk_begins_with_its_number() {
        let root = tempfile::tempdir().unwrap();
        let mut cgroup = create(root.path(), "", &[]).unwrap();
        let setting = CgroupSetting {
            file: "io.max".to_owned(),
            value: "rbps=1".to_owned(),
            on_root_disk: true,
            ..CgroupSetting::default()
        };
        let resources = Resources {
            settings: vec![setting],
            ..Resources::default()
        };
        cgroup.write_limits(&resources, Some("254:16")).unwrap();
        assert_eq!(cgroup.read("io.max"), "254:16 rbps=1");
        assert!(cgroup.write_limits(&resources, None).is_err());
    }

    #[test]
    fn a_limit_below_what_is_in_use_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let mut cgroup = create(root.path(), "", &[("memory.current", "5000\n")]).unwrap();
        let limit = |value: &str| Resources {
            settings: vec![CgroupSetting {
                file: "memory.max".to_owned(),
                value: value.to_owned(),
                ..CgroupSetting::default()
            }],
            ..Resources::default()
        };
        let error = cgroup.write_limits(&limit("4999"), None).unwrap_err().to_string();
        assert!(error.contains("4999") && error.contains("5000"), "{error}");
        assert_eq!(cgroup.read("memory.reclaim"), "1");
        for value in ["5000", "max"] {
            cgroup.write_limits(&limit(value), None).unwrap();
            assert_eq!(cgroup.read("memory.max"), value);
        }
    }

    #[test]
    fn names_and_paths_stay_in_the_directory() {
        assert!(Cgroup::is_file_name("memory.max"));
        for name in ["", ".", "..", "../x", "a/b"] {
            assert!(!Cgroup::is_file_name(name));
        }
        assert!(Cgroup::is_path("") && Cgroup::is_path("a.slice/b:c"));
        for path in ["/a", "a/", "a//b", "a/../b", ".", ".."] {
            assert!(!Cgroup::is_path(path));
        }
    }
}
