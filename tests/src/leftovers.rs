//! What husk could leave behind on a machine: taken before a test and compared after it.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use crate::Process;

/// What husk may still be tearing down when its caller has gone on: the end of processes only, and no longer than this.
const GRACE: Duration = Duration::from_secs(10);

/// Directories in which nothing may appear.
const DIRECTORIES: [&str; 5] = ["/tmp", "/var/tmp", "/dev/shm", "/run", "/run/husk"];

/// Names at the start of what the tests put there themselves.
pub(crate) const OWN_PREFIX: &str = "husk-e2e-";

/// Everything of the machine that husk touches.
#[derive(Debug)]
pub struct Snapshot {
    directories: Vec<PathBuf>,
    processes: Vec<Process>,
    others: BTreeSet<Thing>,
}

/// Something that may be left behind, and is no process: its kind and its name.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Thing(&'static str, String);

impl Snapshot {
    /// Kinds of things, besides processes.
    const KINDS: [&str; 7] = [
        "mount",
        "socket",
        "cgroup",
        "file",
        "network link",
        "network namespace",
        "loop device",
    ];

    /// Looks at the machine, and at everything below `directories`, which are the caller's own.
    pub fn take(directories: &[&Path]) -> Self {
        reap_orphans();
        let mut others = BTreeSet::new();
        others.extend(mounts().into_iter().map(|mount| Thing("mount", mount)));
        others.extend(sockets().into_iter().map(|socket| Thing("socket", socket)));
        tree(Path::new("/sys/fs/cgroup"), &mut |path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_systemd = [".service", ".scope", ".slice", ".mount"]
                .iter()
                .any(|end| name.ends_with(end));
            if path.is_dir() && !is_systemd {
                others.insert(Thing("cgroup", path.display().to_string()));
            }
        });
        for directory in DIRECTORIES {
            let names = foreign_names(Path::new(directory));
            others.extend(names.map(|name| Thing("file", format!("{directory}/{name}"))));
            // Where mount(8), which the tests use themselves, keeps notes.
            others.remove(&Thing("file", "/run/mount".to_owned()));
        }
        for directory in directories {
            tree(directory, &mut |path| {
                others.insert(Thing("file", path.display().to_string()));
            });
        }
        let links = names(Path::new("/sys/class/net"));
        others.extend(links.into_iter().map(|name| Thing("network link", name)));
        others.extend(network_namespaces().map(|name| Thing("network namespace", name)));
        for name in names(Path::new("/sys/block")) {
            if let Ok(file) = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")) {
                others.insert(Thing("loop device", format!("{name} of {}", file.trim_end())));
            }
        }
        Self {
            directories: directories.iter().map(|path| (*path).to_owned()).collect(),
            processes: processes(),
            others,
        }
    }

    /// How many there are of each kind of thing.
    pub fn counts(&self) -> Vec<(&'static str, usize)> {
        let count = |kind: &'static str| {
            let of_kind = self.others.iter().filter(|thing| thing.0 == kind);
            (kind, of_kind.count())
        };
        let others = Self::KINDS.into_iter().map(count);
        std::iter::once(("process", self.processes.len()))
            .chain(others)
            .collect()
    }

    /// What is there now and was not then: one line a thing, empty when there is nothing.
    ///
    /// Waits for husk's processes to end, since the last of a sandbox may end after its caller was answered. What
    /// remains after them remains for ever, so nothing else is waited for.
    pub fn leftovers(&self) -> String {
        self.wait_for_processes();
        let directories: Vec<&Path> = self.directories.iter().map(PathBuf::as_path).collect();
        let now = Self::take(&directories);
        let mut text = String::new();
        for process in self.new_processes() {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "process {process}");
        }
        for Thing(kind, name) in now.others.difference(&self.others) {
            let _ = writeln!(text, "{kind} {name}");
        }
        text
    }

    /// husk's processes that were not there then.
    pub(crate) fn new_processes(&self) -> Vec<Process> {
        let known = |now: &Process| self.processes.iter().any(|then| then.is(now));
        processes().into_iter().filter(|now| !known(now)).collect()
    }

    /// Waits for their end, as long as a teardown may take, and buries those that this program has adopted.
    pub(crate) fn wait_for_processes(&self) {
        let deadline = Instant::now() + GRACE;
        loop {
            reap_orphans();
            let new = self.new_processes();
            let mut living = new.iter().filter(|process| !process.is_zombie());
            let Some(handle) = living.find_map(Process::handle) else {
                return;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            if poll(&mut [PollFd::new(handle.as_fd(), PollFlags::POLLIN)], timeout) == Ok(0) {
                return;
            }
        }
    }
}

/// husk's processes and whatever was started by this program and is not its thread.
fn processes() -> Vec<Process> {
    let own = std::process::id().cast_signed();
    let mut found = Process::descendants(own);
    let names = ["husk", "husk-vmm", "husk-monitor", "husk-keeper"];
    found.extend(
        Process::all()
            .into_iter()
            .filter(|process| names.contains(&process.name.as_str())),
    );
    found.sort();
    found.dedup_by_key(|process| process.pid);
    found
}

/// This program is the parent of what lost its own (`PR_SET_CHILD_SUBREAPER`) and has to bury it as init would.
///
/// Called only while no child of a test's runs, so nobody else's exit status is taken.
fn reap_orphans() {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            break;
        }
    }
}

fn mounts() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").expect("/proc/self/mountinfo");
    let describe = |line: &str| {
        let (place, source) = line.split_once(" - ")?;
        Some(format!("{} ({source})", place.split(' ').nth(4)?))
    };
    text.lines().filter_map(describe).collect()
}

/// Unix sockets with an address of husk's. It binds them in directories that it has open, by the descriptor's number.
fn sockets() -> Vec<String> {
    let text = fs::read_to_string("/proc/net/unix").expect("/proc/net/unix");
    let describe = |line: &str| {
        let mut fields = line.split_whitespace().skip(6);
        let (inode, address) = (fields.next()?, fields.next()?);
        let is_husks = address.contains("husk") || address.starts_with("/proc/self/fd/");
        is_husks.then(|| format!("{address} (inode {inode})"))
    };
    text.lines().skip(1).filter_map(describe).collect()
}

/// Network namespaces that a thread is in, or that a process has open. One that is mounted shows as a mount.
fn network_namespaces() -> impl Iterator<Item = String> {
    let of_process = |pid: String| {
        let threads = names(Path::new(&format!("/proc/{pid}/task"))).into_iter();
        let descriptors = names(Path::new(&format!("/proc/{pid}/fd"))).into_iter();
        let thread = pid.clone();
        threads
            .map(move |tid| format!("/proc/{thread}/task/{tid}/ns/net"))
            .chain(descriptors.map(move |fd| format!("/proc/{pid}/fd/{fd}")))
    };
    let is_process = |name: &String| name.bytes().all(|byte| byte.is_ascii_digit());
    let pids = names(Path::new("/proc")).into_iter().filter(is_process);
    // Whoever has ended since is in none.
    pids.flat_map(of_process)
        .filter_map(|link| fs::read_link(link).ok()?.into_os_string().into_string().ok())
        .filter(|target| target.starts_with("net:["))
}

/// What is in a directory for temporary files, without the tests' own and without run directories that are empty.
fn foreign_names(directory: &Path) -> impl Iterator<Item = String> + '_ {
    let is_empty_run = |name: &str| {
        name.starts_with("husk") && fs::read_dir(directory.join(name)).is_ok_and(|mut entries| entries.next().is_none())
    };
    names(directory)
        .into_iter()
        .filter(move |name| !name.starts_with(OWN_PREFIX) && !is_empty_run(name))
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Calls `each` for everything below `directory`, which need not exist.
pub(crate) fn tree(directory: &Path, each: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        each(&entry.path());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            tree(&entry.path(), each);
        }
    }
}
