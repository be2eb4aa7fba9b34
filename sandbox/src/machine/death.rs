//! A machine's last word.

use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use husk_vmm_config::{End, Report};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};

use super::remaining;

/// How long a machine that should have ended is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest report that is read, in bytes.
const MAX_REPORT: u64 = 1 << 20;
/// How much of the log's end goes into an error, in bytes.
const LOG_TAIL: u64 = 1024;

/// Why a machine has ended.
#[derive(Clone, Debug)]
pub enum Death {
    /// It said why.
    Reported(Box<Report>),
    /// Its process ended without a word.
    Silent {
        /// What was run.
        program: PathBuf,
        /// How the process ended, for a person.
        how: String,
        /// The end of what it had logged.
        log: String,
    },
    /// It has not ended, though the agent is gone.
    StillAlive,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reported(report) => {
                write!(f, "{}", report.end)?;
                match report.end {
                    End::Panic | End::TripleFault | End::Reboot | End::Shutdown => {
                        f.write_str("; run with --console to see its messages")
                    }
                    _ => Ok(()),
                }
            }
            Self::Silent { program, how, log } => {
                write!(f, "{} has died: {how}", program.display())?;
                if log.is_empty() {
                    Ok(())
                } else {
                    write!(f, "; it said: {log}")
                }
            }
            Self::StillAlive => f.write_str("the guest's agent has closed its connection"),
        }
    }
}

/// Reads the report, which the end of the process completes if nothing else does.
pub(super) fn read(program: &Path, report: &OwnedFd, child: &Child, log: &File) -> Death {
    let deadline = Instant::now() + PATIENCE;
    let Some(text) = read_report(report, deadline) else {
        return Death::StillAlive;
    };
    match serde_json::from_slice(&text) {
        Ok(report) => Death::Reported(Box::new(report)),
        Err(_) => Death::Silent {
            program: program.into(),
            how: how_it_ended(child, deadline),
            log: tail(log),
        },
    }
}

/// What the machine wrote until it closed the pipe.
fn read_report(report: &OwnedFd, deadline: Instant) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    loop {
        if !wait_readable(report, deadline) {
            return None;
        }
        let mut chunk = [0; 4096];
        match nix::unistd::read(report, &mut chunk) {
            Ok(0) => return Some(text),
            Ok(count) if text.len() as u64 <= MAX_REPORT => text.extend_from_slice(&chunk[..count]),
            Err(Errno::EINTR) => {}
            Ok(_) | Err(_) => return Some(Vec::new()),
        }
        // One whole value is all there will be; its writer takes some time more to end.
        if serde_json::from_slice::<Report>(&text).is_ok() {
            return Some(text);
        }
    }
}

/// Waits until a descriptor can be read or is of no use; says whether that was in time.
pub(super) fn wait_readable(descriptor: &impl AsFd, deadline: Instant) -> bool {
    loop {
        let mut watched = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
        match poll(&mut watched, remaining(deadline)) {
            Ok(0) => return false,
            Err(Errno::EINTR) => {}
            Ok(_) | Err(_) => return true,
        }
    }
}

/// How the process ended, without taking its exit status from whoever waits for it.
fn how_it_ended(child: &Child, deadline: Instant) -> String {
    let Ok(process) = open_process(child.id()) else {
        return "nobody knows how".into();
    };
    if !wait_readable(&process, deadline) {
        return "it has closed its report and does not end".into();
    }
    match exit_status(child.id()) {
        Some(status) => status.to_string(),
        None => "nobody knows how".into(),
    }
}

/// A descriptor of a process that becomes readable when it ends (pidfd_open(2)).
#[allow(unsafe_code)]
pub fn open_process(pid: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes numbers alone.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Kills a process by a descriptor of it, and so no other one that has got its number meanwhile (pidfd_send_signal(2)).
///
/// # Errors
/// As kill(2).
#[allow(unsafe_code)]
pub fn kill_process(process: BorrowedFd<'_>) -> Result<(), Errno> {
    let information: *const libc::siginfo_t = std::ptr::null();
    let number = process.as_raw_fd();
    // SAFETY: the descriptor is open for the call, which takes numbers and, as a null pointer says, no information.
    let killed = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, number, libc::SIGKILL, information, 0) };
    Errno::result(killed).map(drop)
}

fn exit_status(pid: u32) -> Option<std::process::ExitStatus> {
    use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).ok()?);
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
    match waitid(Id::Pid(pid), flags).ok()? {
        WaitStatus::Exited(_, code) => Some(std::process::ExitStatus::from_raw(code << 8)),
        WaitStatus::Signaled(_, signal, _) => Some(std::process::ExitStatus::from_raw(signal as i32)),
        _ => None,
    }
}

/// The last lines of the log.
fn tail(log: &File) -> String {
    let length = log.metadata().map_or(0, |meta| meta.len());
    let mut text = vec![0; usize::try_from(LOG_TAIL.min(length)).unwrap_or(0)];
    let start = length - text.len() as u64;
    if log.read_exact_at(&mut text, start).is_err() {
        return String::new();
    }
    String::from_utf8_lossy(&text).trim().replace('\n', "; ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Write;
    use std::process::Command;

    use husk_vmm_config::ExitCounts;

    use super::*;

    fn silent(script: &str) -> (Child, OwnedFd, File) {
        let (report, end) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let child = Command::new("sh").args(["-c", script]).stdout(end).spawn().unwrap();
        (child, report, tempfile::tempfile().unwrap())
    }

    #[test]
    fn a_report_is_understood_before_its_writer_ends() {
        let report = Report {
            end: End::Panic,
            exits: ExitCounts(BTreeMap::new()),
            phases: Vec::new(),
        };
        let text = serde_json::to_string(&report).unwrap();
        let (mut child, pipe, log) = silent(&format!("printf '%s' '{text}'; exec sleep 100"));
        let death = read(Path::new("/some/husk-vmm"), &pipe, &child, &log);
        child.kill().unwrap();
        child.wait().unwrap();
        let text = death.to_string();
        assert!(text.contains("panicked") && text.contains("--console"), "{text}");
    }

    #[test]
    fn a_death_without_a_word_is_told_with_the_logs_end() {
        for (script, how) in [("exit 7", "7"), ("kill -9 $$", "9")] {
            let (mut child, pipe, mut log) = silent(script);
            write!(log, "{}\nlast words\n", "x".repeat(5000)).unwrap();
            let text = read(Path::new("/some/husk-vmm"), &pipe, &child, &log).to_string();
            assert!(
                text.contains(how) && text.contains("last words") && text.contains("/some/husk-vmm"),
                "{text}"
            );
            assert!(text.len() < 1200);
            child.wait().unwrap();
        }
    }
}
