//! Waits that have an end: what hangs costs its own measurement and not the run.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// No command and no step of one takes longer, not even where a clock counts instructions.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);

/// A program that was started. It ends with this.
pub(crate) struct Program {
    what: String,
    child: Child,
    handle: OwnedFd,
}

/// What a program that has ended well has said.
pub(crate) struct Said {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Program {
    /// Starts a command.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let what = format!("{command:?}");
        let mut child = command.spawn().with_context(|| format!("starting {what}"))?;
        match handle(child.id()) {
            Ok(handle) => Ok(Self { what, child, handle }),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) -> Result<ExitStatus> {
        let ended = is_ready(self.handle.as_fd(), Instant::now() + LIMIT)?;
        ensure!(ended, "after {} s {} has not ended", LIMIT.as_secs(), self.what);
        Ok(self.child.wait()?)
    }

    /// Waits for its end, which must be a success.
    pub(crate) fn succeed(self) -> Result<()> {
        let what = self.what.clone();
        let status = self.wait()?;
        ensure!(status.success(), "{what}: {status}");
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // One that has ended cannot be killed, which is all right.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command to its end, which must be a success.
pub(crate) fn output(command: &mut Command) -> Result<Said> {
    // Files take everything, and nobody has to read them meanwhile.
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?);
    let program = Program::start(command)?;
    let what = program.what.clone();
    let status = program.wait();
    let said = Said {
        stdout: text(&mut stdout)?,
        stderr: text(&mut stderr)?,
    };
    let status = status.with_context(|| format!("it said: {}", said.stderr.trim()))?;
    ensure!(status.success(), "{what}: {status}: {}", said.stderr.trim());
    Ok(said)
}

fn text(file: &mut File) -> Result<String> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// One end for this program and one for another's standard stream. A read or a write of this end fails after [`LIMIT`].
pub(crate) fn stream() -> Result<(UnixStream, OwnedFd)> {
    let (own, other) = UnixStream::pair()?;
    own.set_read_timeout(Some(LIMIT))?;
    own.set_write_timeout(Some(LIMIT))?;
    Ok((own, other.into()))
}

/// Waits for the ends of processes that may be anybody's children, and gives to each how long it took.
pub(crate) fn ends(handles: &[OwnedFd]) -> Result<Vec<Duration>> {
    let start = Instant::now();
    let mut took = vec![None; handles.len()];
    while took.iter().any(Option::is_none) {
        let waiting: Vec<_> = (0..handles.len()).filter(|index| took[*index].is_none()).collect();
        let mut watched: Vec<_> = waiting
            .iter()
            .map(|index| PollFd::new(handles[*index].as_fd(), PollFlags::POLLIN))
            .collect();
        let some = wait(&mut watched, start + LIMIT)?;
        let now = start.elapsed();
        ensure!(some, "after {} s a process has not ended", LIMIT.as_secs());
        for (index, watched) in waiting.iter().zip(&watched) {
            if watched.any().unwrap_or(true) {
                took[*index] = Some(now);
            }
        }
    }
    Ok(took.into_iter().flatten().collect())
}

/// A descriptor of a process that becomes readable when it ends (pidfd_open(2)).
pub(crate) fn handle(pid: u32) -> Result<OwnedFd> {
    // SAFETY: the call takes numbers alone.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) });
    let fd = RawFd::try_from(fd.with_context(|| format!("the process {pid}"))?)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Waits until a descriptor can be read or has hung up; false when that takes too long.
pub(crate) fn is_ready(descriptor: impl AsFd, deadline: Instant) -> Result<bool> {
    wait(&mut [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)], deadline)
}

fn wait(watched: &mut [PollFd<'_>], deadline: Instant) -> Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, or the last millisecond would be spent turning round here.
        let timeout = match left {
            Duration::ZERO => PollTimeout::ZERO,
            left => PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX),
        };
        match poll(watched, timeout) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reads everything up to the end, in no more than [`LIMIT`].
pub(crate) fn read_to_end(source: &mut File) -> Result<String> {
    let (deadline, mut bytes) = (Instant::now() + LIMIT, Vec::new());
    loop {
        ensure!(
            is_ready(&*source, deadline)?,
            "after {} s nothing was said",
            LIMIT.as_secs()
        );
        let mut chunk = [0; 4096];
        match source.read(&mut chunk)? {
            0 => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
            length => bytes.extend_from_slice(&chunk[..length]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_says_comes_with_its_failure() {
        let said = output(Command::new("sh").args(["-c", "echo yes; echo no >&2"])).unwrap();
        assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("yes\n", "no\n"));
        let error = output(Command::new("sh").args(["-c", "echo why >&2; exit 3"]))
            .err()
            .unwrap();
        let text = format!("{error:#}");
        assert!(text.contains("why") && text.contains('3'), "{text}");
    }

    #[test]
    fn every_end_is_seen() {
        let mut children: Vec<_> = (0..3)
            .map(|_| Command::new("cat").stdin(Stdio::piped()).spawn().unwrap())
            .collect();
        let handles: Vec<_> = children.iter().map(|child| handle(child.id()).unwrap()).collect();
        assert!(!is_ready(&handles[0], Instant::now()).unwrap());
        for child in &mut children {
            drop(child.stdin.take());
        }
        assert_eq!(ends(&handles).unwrap().len(), 3);
        for mut child in children {
            child.wait().unwrap();
        }
    }
}
