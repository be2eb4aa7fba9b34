//! containerd's process.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Process;
use crate::outcome::shorten;

/// For a daemon to answer, and for one to end.
const LIMIT: Duration = Duration::from_secs(120);
/// The last of what it logs when it answers.
const READY: &str = "containerd successfully booted";

/// A daemon that answers; killed when it is dropped. It logs a lot while nobody waits for it, so a thread reads that.
pub(super) struct Daemon {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Daemon {
    /// Starts it and waits until it answers.
    ///
    /// # Panics
    /// It does not.
    pub(super) fn start(mut command: Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("start containerd");
        let stderr = child.stderr.take().expect("a pipe");
        let log: Arc<Mutex<String>> = Arc::default();
        let (ready, is_ready) = mpsc::channel();
        let daemon = Self {
            child,
            log: Arc::clone(&log),
        };
        std::thread::spawn(move || read(stderr, &log, &ready));
        // The sender is gone when it has ended.
        if is_ready.recv_timeout(LIMIT).is_err() {
            panic!("containerd does not answer: {daemon}");
        }
        daemon
    }

    /// Sends it a signal and waits for its end.
    pub(super) fn end(&mut self, signal: Signal) {
        let pid = self.child.id().cast_signed();
        // It may have ended already, here and below.
        let _ = kill(Pid::from_raw(pid), signal);
        if let Some(handle) = Process::find(pid).and_then(|process| process.handle()) {
            let timeout = PollTimeout::try_from(LIMIT).unwrap_or(PollTimeout::MAX);
            let _ = poll(&mut [PollFd::new(handle.as_fd(), PollFlags::POLLIN)], timeout);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(stderr: ChildStderr, log: &Mutex<String>, ready: &Sender<()>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        let is_ready = line.contains(READY);
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        log.push_str(&line);
        log.push('\n');
        if is_ready {
            // Whoever has waited long enough waits no more.
            let _ = ready.send(());
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end(Signal::SIGKILL);
        if std::thread::panicking() {
            eprintln!("{self}");
        }
    }
}

impl fmt::Display for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        write!(f, "--- containerd's log\n{}", shorten(log.as_bytes()))
    }
}
