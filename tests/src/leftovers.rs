//! What husk could leave behind on a machine: taken before a test and compared after it.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
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
pub(crate) struct Snapshot {
    processes: Vec<Process>,
    others: BTreeSet<String>,
}

impl Snapshot {
    /// Looks at the machine, and at everything in `run` (a test's own run directory).
    pub(crate) fn take(run: &Path) -> Self {
        reap_orphans();
        let mut others = BTreeSet::new();
        others.extend(mounts().into_iter().map(|mount| format!("mount {mount}")));
        others.extend(sockets().into_iter().map(|socket| format!("socket {socket}")));
        tree(Path::new("/sys/fs/cgroup"), &mut |path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_systemd = [".service", ".scope", ".slice", ".mount"]
                .iter()
                .any(|end| name.ends_with(end));
            if path.is_dir() && !is_systemd {
                others.insert(format!("cgroup {}", path.display()));
            }
        });
        for directory in DIRECTORIES {
            others.extend(foreign_names(Path::new(directory)).map(|name| format!("file {directory}/{name}")));
            // Where mount(8), which the tests use themselves, keeps notes.
            others.remove("file /run/mount");
        }
        tree(run, &mut |path| {
            others.insert(format!("file {}", path.display()));
        });
        others.extend(
            names(Path::new("/sys/class/net"))
                .into_iter()
                .map(|name| format!("network link {name}")),
        );
        for name in names(Path::new("/sys/block")) {
            if let Ok(file) = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")) {
                others.insert(format!("loop device {name} of {}", file.trim_end()));
            }
        }
        Self {
            processes: processes(),
            others,
        }
    }

    /// What is there now and was not then: one line a thing, empty when there is nothing.
    ///
    /// Waits for husk's processes to end, since the last of a sandbox may end after its caller was answered. What
    /// remains after them remains for ever, so nothing else is waited for.
    pub(crate) fn leftovers(&self, run: &Path) -> String {
        self.wait_for_processes();
        let now = Self::take(run);
        let mut text = String::new();
        for process in self.new_processes() {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "process {process}");
        }
        for thing in now.others.difference(&self.others) {
            let _ = writeln!(text, "{thing}");
        }
        text
    }

    /// husk's processes that were not there then.
    pub(crate) fn new_processes(&self) -> Vec<Process> {
        let known = |now: &Process| self.processes.iter().any(|then| then.is(now));
        processes().into_iter().filter(|now| !known(now)).collect()
    }

    /// Waits for their end, as long as a teardown may take.
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

/// Unix sockets with an address, by the address.
fn sockets() -> Vec<String> {
    let text = fs::read_to_string("/proc/net/unix").expect("/proc/net/unix");
    let address = |line: &str| line.split_whitespace().nth(7).map(str::to_owned);
    text.lines()
        .skip(1)
        .filter_map(address)
        .filter(|address| address.contains("husk"))
        .collect()
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
