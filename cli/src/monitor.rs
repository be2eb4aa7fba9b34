//! The monitor: the process that stays when a command has returned, and stands where the container's process would.
//!
//! It is a fork of the command, in a session of its own, adopted by whoever adopts the orphans of the command's caller:
//! conmon and containerd's shims see to it that this is they. So they can wait for it, its exit code is the container's,
//! and signals for it are passed on. The command waits until the monitor says that it has begun, or why it has not.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;

use anyhow::{Context, Result, ensure};
use husk_sandbox::guest::{Guest, ProcessId};
use husk_sandbox::keeper;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{ForkResult, fork, pipe2, setsid};
use serde::{Deserialize, Serialize};
use signal_hook::iterator::Signals;
use thiserror::Error;

use crate::signals::FORWARDED;
use crate::{failure, log, pty};

/// The longest word of a monitor that is read, in bytes.
const MAX_WORD: u64 = 1 << 20;

/// What the monitor was given by its caller: the container's streams.
pub(crate) struct Stdio {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// What the monitor says to the command.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    Begun,
    Failed(Failed),
}

/// A failure of the monitor's, as the command hears of it.
#[derive(Debug, Error, Serialize, Deserialize)]
#[error("{message}")]
pub(crate) struct Failed {
    message: String,
    /// The exit code that tells of it.
    pub(crate) code: u8,
}

/// The monitor's way to say how its beginning went.
pub(crate) struct Report(Option<File>);

impl Report {
    /// What was asked for is done: the command returns.
    pub(crate) fn begun(&mut self) -> Result<()> {
        self.say(&Word::Begun).context("the command has gone")
    }

    fn failed(&mut self, error: &anyhow::Error) -> io::Result<()> {
        self.say(&Word::Failed(Failed {
            message: format!("{error:#}"),
            code: failure::exit_code(error),
        }))
    }

    fn say(&mut self, word: &Word) -> io::Result<()> {
        match self.0.take() {
            Some(mut pipe) => pipe.write_all(&serde_json::to_vec(word)?),
            None => Ok(()),
        }
    }
}

/// Starts a monitor, whose life is `work` and whose exit code is what that gives; returns when it has begun.
///
/// # Errors
/// Why it has not.
#[allow(unsafe_code)]
pub(crate) fn start(work: impl FnOnce(Stdio, &mut Report) -> Result<u8>) -> Result<()> {
    ensure!(keeper::is_single_threaded()?, "the process has other threads already");
    let (read, write) = pipe2(OFlag::O_CLOEXEC).context("a pipe cannot be made")?;
    // SAFETY: there is one thread, so that the child may use everything that this process may.
    match unsafe { fork() }.context("the monitor cannot be started")? {
        ForkResult::Parent { .. } => {
            drop(write);
            listen(read)
        }
        ForkResult::Child => {
            drop(read);
            live(write, work)
        }
    }
}

/// Waits for the monitor's word.
fn listen(pipe: OwnedFd) -> Result<()> {
    let mut text = Vec::new();
    let read = File::from(pipe).take(MAX_WORD).read_to_end(&mut text);
    read.context("the monitor cannot be heard")?;
    match serde_json::from_slice(&text).context("the monitor has died before it could say why")? {
        Word::Begun => Ok(()),
        Word::Failed(failed) => Err(failed.into()),
    }
}

/// The monitor's life.
fn live(pipe: OwnedFd, work: impl FnOnce(Stdio, &mut Report) -> Result<u8>) -> ! {
    let mut report = Report(Some(File::from(pipe)));
    let result = settle().and_then(|stdio| work(stdio, &mut report));
    let code = match result {
        Ok(code) => code,
        Err(error) => {
            // It reaches the command if that still listens, and the owner's log otherwise.
            if report.0.is_none() || report.failed(&error).is_err() {
                tracing::error!("{error:#}");
            }
            failure::exit_code(&error)
        }
    };
    std::process::exit(code.into())
}

/// Lets go of everything that the command has: its session, its streams, descriptors that it was started with.
fn settle() -> Result<Stdio> {
    setsid().context("a session cannot be made")?;
    log::leave_file();
    // Copies close on exec; what stands in their places is nobody's.
    let copy = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().context("no descriptor is left");
    let stdio = Stdio {
        stdin: copy(io::stdin().as_fd())?,
        stdout: copy(io::stdout().as_fd())?,
        stderr: copy(io::stderr().as_fd())?,
    };
    close_inherited()?;
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).context("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    nix::sys::prctl::set_name(c"husk-monitor")?;
    Ok(stdio)
}

/// Closes descriptors beyond stderr that husk was started with: they would stay open as long as the container lives.
/// They are those that do not close on exec, as all do that husk has opened itself.
#[allow(unsafe_code)]
fn close_inherited() -> Result<()> {
    let failed = "inherited descriptors cannot be found";
    let mut inherited = Vec::new();
    for entry in fs::read_dir("/proc/self/fd").context(failed)? {
        let Some(fd) = entry
            .context(failed)?
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<RawFd>().ok())
        else {
            continue;
        };
        // SAFETY: the request takes and gives numbers; a descriptor that is not open is an error.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        if fd > libc::STDERR_FILENO && flags & libc::FD_CLOEXEC == 0 {
            inherited.push(fd);
        }
    }
    for fd in inherited {
        // SAFETY: it was open when husk was started, and nothing in husk knows of it.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    Ok(())
}

/// Writes this process's own messages to a file of the run directory, as there is no terminal for them.
pub(crate) fn log_to(path: &Path) -> Result<()> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_APPEND | OFlag::O_CLOEXEC;
    let file = open(path, flags, Mode::S_IRUSR | Mode::S_IWUSR).context("the owner's log cannot be made")?;
    nix::unistd::dup2_stderr(&file).context("the owner's log cannot be used")
}

/// Writes this process's id for the caller to find, whole or not at all.
pub(crate) fn write_pid_file(path: &Path) -> Result<()> {
    let failed = || format!("the pid file {} cannot be written", path.display());
    let name = path.file_name().with_context(failed)?;
    let mut passing = std::ffi::OsString::from(".");
    passing.push(name);
    let passing = path.with_file_name(passing);
    fs::write(&passing, std::process::id().to_string()).with_context(failed)?;
    fs::rename(&passing, path).with_context(failed)
}

/// Passes signals on to a process from now on, and the size of its terminal.
pub(crate) fn forward(guest: Arc<Guest>, process: ProcessId, terminal: Option<OwnedFd>) -> Result<()> {
    let mut signals = Signals::new(FORWARDED.iter().chain(&[libc::SIGWINCH])).context("signals cannot be heard")?;
    let pass_on = move || {
        for signal in signals.forever() {
            let result = match (signal, &terminal) {
                (libc::SIGWINCH, Some(terminal)) => match pty::window(terminal) {
                    Some(window) => guest.resize(&process, window),
                    None => Ok(()),
                },
                (libc::SIGWINCH, None) => Ok(()),
                (signal, _) => guest.kill(&process, signal.unsigned_abs(), false),
            };
            if let Err(error) = result {
                tracing::debug!(%error, signal, "the signal is not passed on");
            }
        }
    };
    thread::Builder::new().name("forwarder".into()).spawn(pass_on)?;
    Ok(())
}

/// Does `work` in a thread of its own while this process, which is its main thread to others, goes into a new and empty
/// network namespace: who brings the container's process a network by its pid, as docker's hook does, changes that and not
/// the host's. `work`, and with it every hook, stays in the host's; what it is given waits until the process has moved.
///
/// Without the right to make one the process stays where it is: nobody could bring it a network either.
///
/// # Errors
/// A thread cannot be started.
pub(crate) fn in_network_namespace<T: Send>(work: impl FnOnce(Box<dyn FnOnce() + Send>) -> T + Send) -> Result<T> {
    let (moved, stands) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let wait = Box::new(move || {
            // A sender that is gone has moved too.
            let _ = stands.recv();
        });
        let worker = thread::Builder::new().name("owner".into());
        let worker = worker.spawn_scoped(scope, move || work(wait))?;
        if let Err(errno) = unshare(CloneFlags::CLONE_NEWNET) {
            tracing::debug!(%errno, "the monitor has no network namespace of its own");
        }
        drop(moved);
        worker.join().map_err(|panic| std::panic::resume_unwind(panic))
    })
}

/// Whether a stream can be read by a process in another session: a terminal cannot.
pub(crate) fn is_readable(stdin: &OwnedFd) -> bool {
    let mode = fcntl(stdin, FcntlArg::F_GETFL).map(OFlag::from_bits_truncate);
    let readable = mode.is_ok_and(|mode| mode & OFlag::O_ACCMODE != OFlag::O_WRONLY);
    readable && !nix::unistd::isatty(stdin).unwrap_or(false)
}
