//! The machine's processes, as /proc shows them.

use std::fmt;
use std::fs;
use std::os::fd::{FromRawFd, OwnedFd};

/// One process, told apart from a later one of the same number by its start time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    started: u64,
    /// The parent's number when it was looked at.
    parent: i32,
    /// The file name that it executes, cut to 15 bytes.
    pub name: String,
    state: char,
}

impl Process {
    /// The process of this number, if there is one.
    pub fn find(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name is in parentheses and may hold parentheses and spaces itself.
        let name = stat.get(stat.find('(')? + 1..stat.rfind(')')?)?.to_owned();
        let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
        Some(Self {
            pid,
            name,
            state: fields.next()?.chars().next()?,
            parent: fields.next()?.parse().ok()?,
            started: fields.nth(17)?.parse().ok()?,
        })
    }

    /// All processes.
    pub fn all() -> Vec<Self> {
        let entries = fs::read_dir("/proc").expect("list /proc").flatten();
        entries
            .filter_map(|entry| Self::find(entry.file_name().to_str()?.parse().ok()?))
            .collect()
    }

    /// The processes below `pid`, at any depth.
    pub fn descendants(pid: i32) -> Vec<Self> {
        let all = Self::all();
        let parent_of = |pid: i32| {
            all.iter()
                .find(|process| process.pid == pid)
                .map(|process| process.parent)
        };
        let below = |process: &&Self| {
            std::iter::successors(Some(process.parent), |pid| parent_of(*pid))
                .take(64)
                .any(|parent| parent == pid)
        };
        all.iter().filter(below).cloned().collect()
    }

    /// Whether this is the same process as `other`, whatever it executes now.
    pub fn is(&self, other: &Self) -> bool {
        (self.pid, self.started) == (other.pid, other.started)
    }

    /// Whether it has ended and only waits for its parent to notice.
    pub fn is_zombie(&self) -> bool {
        self.state == 'Z'
    }

    /// User and system time so far, in clock ticks (`sysconf(_SC_CLK_TCK)` a second).
    ///
    /// # Panics
    /// The process is gone.
    pub fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).expect("the process lives");
        let fields: Vec<&str> = stat[stat.rfind(')').expect("a name") + 1..]
            .split_whitespace()
            .collect();
        fields[11..13]
            .iter()
            .map(|ticks| ticks.parse::<u64>().expect("ticks"))
            .sum()
    }

    /// The number of its open descriptors.
    ///
    /// # Panics
    /// The process is gone.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid))
            .expect("the process lives")
            .count()
    }

    /// A descriptor that becomes readable when the process ends; `None` when it has ended.
    pub fn handle(&self) -> Option<OwnedFd> {
        // SAFETY: pidfd_open takes a number and flags, and touches no memory of this process.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid, 0) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        // SAFETY: the kernel has just made the descriptor, and nobody else knows its number.
        Some(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Sends SIGKILL; nothing happens if it has ended.
    pub fn kill(&self) {
        if Self::find(self.pid).is_some_and(|now| now.is(self)) {
            // That it ends in this moment is as good.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        write!(
            f,
            "{} ({}, state {}) {}",
            self.pid,
            self.name,
            self.state,
            line.trim_end()
        )
    }
}
