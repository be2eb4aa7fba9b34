//! `mkfs.erofs`, as a child that ends with us.

use std::ffi::CString;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};
use thiserror::Error;

use super::Unfinished;

/// How long a conversion may take.
const LIMIT: Duration = Duration::from_secs(30 * 60);
/// How much of what it says is kept, in bytes.
const MAX_MESSAGE: usize = 2048;
/// Where it may be when `PATH` does not tell.
const PLACES: [&str; 4] = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];

/// Why the image cannot be made.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum MkfsError {
    #[error("mkfs.erofs is not installed; on Debian: apt install erofs-utils")]
    Missing,
    #[error("mkfs.erofs cannot be run")]
    Run(#[source] io::Error),
    #[error("no space left for an image in the cache {}; make room or name another directory with HUSK_IMAGE_CACHE", .0.display())]
    Full(PathBuf),
    #[error("mkfs.erofs has failed ({status}): {message}")]
    Failed { status: ExitStatus, message: String },
    #[error("mkfs.erofs has not finished after {} minutes", LIMIT.as_secs() / 60)]
    TooLong,
}

/// Where `mkfs.erofs` is.
#[must_use]
pub fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(PLACES.iter().map(PathBuf::from))
        .map(|dir| dir.join("mkfs.erofs"))
        .find(|candidate| nix::unistd::access(candidate, nix::unistd::AccessFlags::X_OK).is_ok())
}

/// Converts the tree below `root`; `cache` is the directory that holds the unfinished file.
pub(super) fn run(root: &Path, image: &Unfinished, cache: &Path) -> Result<(), MkfsError> {
    let program = program().ok_or(MkfsError::Missing)?;
    let mut child = spawn(&program, root, image).map_err(MkfsError::Run)?;
    let said = match child.stderr.take() {
        Some(stderr) => listen(stderr),
        None => Ok(String::new()),
    };
    let Ok(said) = said else {
        // Nothing more can be done about a process that cannot be killed.
        let _ = child.kill();
        let _ = child.wait();
        return Err(MkfsError::TooLong);
    };
    let status = child.wait().map_err(MkfsError::Run)?;
    if status.success() {
        return Ok(());
    }
    if said.contains("No space left on device") || is_full(cache) {
        return Err(MkfsError::Full(cache.into()));
    }
    Err(MkfsError::Failed {
        status,
        message: if said.is_empty() {
            "it says nothing".into()
        } else {
            said
        },
    })
}

/// Starts it with the unfinished file as its one further descriptor.
#[allow(unsafe_code)]
fn spawn(program: &Path, root: &Path, image: &Unfinished) -> io::Result<Child> {
    let file = image.file().as_raw_fd();
    let parent = Pid::this();
    let mut command = Command::new(program);
    command
        .arg("--quiet")
        // A file system without extended attributes refuses to list them, which would be an error.
        .args((!has_attributes(root)).then_some("-x-1"))
        .arg(format!("/proc/self/fd/{file}"))
        .arg(root)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let prepare = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        if getppid() != parent {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe));
        }
        // SAFETY: the parent waits for this process and keeps the file open meanwhile.
        let file = unsafe { std::os::fd::BorrowedFd::borrow_raw(file) };
        nix::fcntl::fcntl(file, FcntlArg::F_SETFD(FdFlag::empty()))?;
        Ok(())
    };
    // SAFETY: between fork and exec there are three system calls and nothing that allocates or locks.
    unsafe { command.pre_exec(prepare) };
    command.spawn()
}

/// Whether files below `root` can have extended attributes at all.
#[allow(unsafe_code)]
fn has_attributes(root: &Path) -> bool {
    let Ok(path) = CString::new(root.as_os_str().as_bytes()) else {
        return true;
    };
    // SAFETY: the path ends in a zero byte, and a list of no length is not written to.
    let result = unsafe { libc::listxattr(path.as_ptr(), std::ptr::null_mut(), 0) };
    Errno::result(result) != Err(Errno::EOPNOTSUPP)
}

/// What it says until it closes its stderr, the last part of it; an error if it takes too long.
fn listen(mut stderr: ChildStderr) -> Result<String, ()> {
    let deadline = Instant::now() + LIMIT;
    let mut said = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut watched = [PollFd::new(stderr.as_fd(), PollFlags::POLLIN)];
        match poll(&mut watched, timeout) {
            Ok(0) => return Err(()),
            Err(Errno::EINTR) => continue,
            // A poll that fails leaves the read to say what is wrong.
            Ok(_) | Err(_) => {}
        }
        let mut chunk = [0; 512];
        match stderr.read(&mut chunk) {
            Ok(0) | Err(_) => break,
            Ok(count) => said.extend_from_slice(&chunk[..count]),
        }
        let surplus = said.len().saturating_sub(MAX_MESSAGE);
        said.drain(..surplus);
    }
    Ok(String::from_utf8_lossy(&said).trim().replace('\n', "; "))
}

/// Whether the file system has no block left.
fn is_full(dir: &Path) -> bool {
    nix::sys::statvfs::statvfs(dir).is_ok_and(|usage| usage.blocks_available() == 0)
}
