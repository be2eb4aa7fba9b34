//! The keeper: a tiny process that cleans up after an owner that is killed.
//!
//! It is forked before the sandbox exists, shares nothing with its parent but the read end of a pipe, and sleeps until
//! the parent is gone, however that happens. Then it prunes the run directory, which does nothing if the parent did so
//! itself or if another sandbox has taken the name. The machine monitor needs no keeper: it watches its lifeline.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{ForkResult, fork, pipe2, setsid};
use thiserror::Error;

use crate::host_cgroup;
use crate::rundir::RunRoot;

/// How long the machine may take to leave its cgroup.
const PATIENCE: Duration = Duration::from_secs(10);

/// As long as it lives the run directory is left alone.
#[derive(Debug)]
pub struct Keeper {
    pipe: OwnedFd,
}

/// Why there is no keeper.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum KeeperError {
    #[error("the process has other threads already, so that it cannot be forked")]
    Threads,
    #[error("the process that cleans up cannot be started")]
    Start(#[source] io::Error),
}

impl Keeper {
    /// Starts the keeper of the run directory `name` below `root`.
    ///
    /// # Errors
    /// The process has other threads, or cannot be forked.
    #[allow(unsafe_code)]
    pub fn start(root: &Path, name: &str) -> Result<Self, KeeperError> {
        if !is_single_threaded().map_err(KeeperError::Start)? {
            return Err(KeeperError::Threads);
        }
        let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| KeeperError::Start(errno.into()))?;
        // SAFETY: there is one thread, so that the child may use everything that this process may.
        match unsafe { fork() } {
            Ok(ForkResult::Parent { .. }) => Ok(Self { pipe: write }),
            Ok(ForkResult::Child) => {
                drop(write);
                keep(read, root, name)
            }
            Err(errno) => Err(KeeperError::Start(errno.into())),
        }
    }

    /// Gives it a cgroup on the host to remove as well, which nobody needs without the run directory; the last one counts.
    ///
    /// # Errors
    /// It has died.
    pub fn take_cgroup(&self, cgroup: &Path) -> Result<(), KeeperError> {
        let mut word = cgroup.as_os_str().as_bytes().to_vec();
        word.push(0);
        // It fits into the pipe, which takes it whole or not at all.
        let written = nix::unistd::write(&self.pipe, &word);
        written.map(drop).map_err(|errno| KeeperError::Start(errno.into()))
    }
}

/// Whether this process has no other threads, so that a fork of it may go on as it is.
///
/// # Errors
/// /proc cannot be read.
pub fn is_single_threaded() -> io::Result<bool> {
    Ok(fs::read_dir("/proc/self/task")?.count() == 1)
}

/// The child's life.
#[allow(unsafe_code)]
fn keep(pipe: OwnedFd, root: &Path, name: &str) -> ! {
    let code = match detach(&pipe).and_then(|()| wait_for_hang_up(&pipe)) {
        Ok(cgroup) => i32::from(!clean_up(root, name, cgroup.as_deref())),
        // Nobody is left who could be told; the next husk command prunes.
        Err(_) => 1,
    };
    // SAFETY: `_exit` takes any number and does not return; the parent's exit handlers must not run twice.
    unsafe { libc::_exit(code) }
}

/// Removes what is left; says whether all of it is gone that should be.
fn clean_up(root: &Path, name: &str, cgroup: Option<&Path>) -> bool {
    let Ok(root) = RunRoot::open(root) else {
        return false;
    };
    let pruned = root.prune(name).is_ok();
    // A sandbox that is kept has its cgroup until it is removed.
    let is_kept = root.find(name).is_ok();
    let removed = match cgroup {
        Some(cgroup) if !is_kept => host_cgroup::remove(cgroup, PATIENCE).is_ok(),
        _ => true,
    };
    pruned && removed
}

/// Lets go of everything that the parent has: its terminal, its standard streams, its working directory.
fn detach(pipe: &OwnedFd) -> nix::Result<()> {
    setsid()?;
    nix::unistd::chdir("/")?;
    let null = nix::fcntl::open(
        "/dev/null",
        OFlag::O_RDWR | OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    close_all_but(pipe.as_raw_fd())?;
    for number in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM] {
        ignore(number)?;
    }
    nix::sys::prctl::set_name(c"husk-keeper")
}

#[allow(unsafe_code)]
fn ignore(number: Signal) -> nix::Result<()> {
    // SAFETY: ignoring a signal installs no function.
    unsafe { signal(number, SigHandler::SigIgn) }.map(drop)
}

fn close_all_but(kept: RawFd) -> nix::Result<()> {
    let kept = kept.cast_unsigned();
    if kept > 3 {
        close_range(3, kept - 1)?;
    }
    close_range(kept + 1, u32::MAX)
}

#[allow(unsafe_code)]
fn close_range(first: u32, last: u32) -> nix::Result<()> {
    // SAFETY: the call takes numbers alone; nothing in this process uses the descriptors that it closes any more.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// Waits for the owner's end; gives the cgroup that it has left.
fn wait_for_hang_up(pipe: &OwnedFd) -> nix::Result<Option<PathBuf>> {
    let mut words = Vec::new();
    let mut chunk = [0; 512];
    loop {
        match nix::unistd::read(pipe, &mut chunk) {
            Ok(0) => {
                let mut paths = words.split(|byte| *byte == 0).rev().filter(|path| !path.is_empty());
                return Ok(paths.next().map(|path| OsStr::from_bytes(path).into()));
            }
            Ok(count) => words.extend_from_slice(&chunk[..count]),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
