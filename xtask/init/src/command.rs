//! Starting the command, on three pipes or on a pty.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::pty::{Winsize, openpty};
use nix::unistd::Pid;
use xtask_init::channel::{Frame, Start, Stream, WindowSize};

nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, Winsize);
nix::ioctl_write_int_bad!(set_controlling_terminal, libc::TIOCSCTTY);

/// The command and this side's ends of its streams, non-blocking.
pub(crate) struct Running {
    /// Also its process group.
    pub(crate) pid: Pid,
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    /// None on a pty.
    pub(crate) stderr: Option<OwnedFd>,
}

/// The command could not be started. That is the caller's affair, not the machine's.
#[derive(Debug)]
pub(crate) struct NotStarted {
    command: String,
    source: io::Error,
}

impl NotStarted {
    /// As shells have it: 127 for a command that does not exist, 126 for one that may not be run.
    pub(crate) fn exit_code(&self) -> i32 {
        if self.source.kind() == io::ErrorKind::NotFound {
            127
        } else {
            126
        }
    }

    /// What to print on the caller's stderr.
    pub(crate) fn message(&self) -> Frame {
        Frame::Data(Stream::Stderr, format!("xtask host: {self}\n").into_bytes())
    }
}

impl fmt::Display for NotStarted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot run {}: {}", self.command, self.source)
    }
}

impl std::error::Error for NotStarted {}

/// Starts the command in the caller's directory with the caller's environment.
pub(crate) fn start(start: &Start) -> Result<Running> {
    let directory = Path::new(OsStr::from_bytes(&start.directory));
    std::env::set_current_dir(directory)
        .with_context(|| format!("{} is not visible in the emulated host", directory.display()))?;
    let (program, arguments) = start.command.split_first().context("no command")?;
    let mut command = Command::new(OsStr::from_bytes(program));
    command
        .args(arguments.iter().map(|argument| OsStr::from_bytes(argument)))
        .env_clear();
    for pair in &start.environment {
        // An '=' in the first place belongs to the name.
        if let Some(end) = pair.iter().skip(1).position(|byte| *byte == b'=') {
            command.env(OsStr::from_bytes(&pair[..=end]), OsStr::from_bytes(&pair[end + 2..]));
        }
    }
    match start.terminal {
        Some(size) => on_terminal(command, size),
        None => on_pipes(command),
    }
}

fn on_pipes(mut command: Command) -> Result<Running> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let child = spawn(&mut command)?;
    let pid = pid_of(&child)?;
    Ok(Running {
        pid,
        stdin: child.stdin.map(|end| non_blocking(end.into())).transpose()?,
        stdout: child.stdout.map(|end| non_blocking(end.into())).transpose()?,
        stderr: child.stderr.map(|end| non_blocking(end.into())).transpose()?,
    })
}

fn on_terminal(mut command: Command, size: WindowSize) -> Result<Running> {
    let pty = openpty(Some(&winsize(size)), None).context("opening a pty")?;
    let copy = |fd: &OwnedFd| fd.try_clone().context("duplicating the pty's descriptor");
    command
        .stdin(copy(&pty.slave)?)
        .stdout(copy(&pty.slave)?)
        .stderr(pty.slave);
    let become_session_leader = || {
        nix::unistd::setsid()?;
        // SAFETY: descriptor 0 is the pty's slave side, and the call takes no pointer.
        unsafe { set_controlling_terminal(0, 0) }?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes two system calls and nothing else: no allocation, no lock.
    unsafe { command.pre_exec(become_session_leader) };
    let child = spawn(&mut command)?;
    // The slave side must not stay open here, or the end of the command would not be seen on the master's.
    drop(command);
    let stdin = non_blocking(copy(&pty.master)?)?;
    Ok(Running {
        pid: pid_of(&child)?,
        stdin: Some(stdin),
        stdout: Some(pty.master),
        stderr: None,
    })
}

/// Tells the pty, and through it the command, the terminal's new size.
pub(crate) fn resize(master: &OwnedFd, size: WindowSize) {
    let size = winsize(size);
    // SAFETY: the structure is the one that TIOCSWINSZ reads, it lives until the call returns, and the descriptor is
    // open. That a pipe refuses the call does no harm.
    let _ = unsafe { set_window_size(master.as_raw_fd(), &raw const size) };
}

fn winsize(size: WindowSize) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

fn spawn(command: &mut Command) -> Result<std::process::Child> {
    let spawned = command.spawn();
    let program = command.get_program().to_string_lossy();
    Ok(spawned.map_err(|source| NotStarted {
        command: program.into_owned(),
        source,
    })?)
}

fn pid_of(child: &std::process::Child) -> Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(child.id()).context("process id")?))
}

fn non_blocking(fd: OwnedFd) -> Result<OwnedFd> {
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("O_NONBLOCK on the command's streams")?;
    Ok(fd)
}
