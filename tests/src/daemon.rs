//! The process of a daemon that tests talk to.

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
/// A daemon that answers; killed when it is dropped. It logs a lot while nobody waits for it, so a thread reads that.
pub(crate) struct Daemon {
    name: &'static str,
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Daemon {
    /// Starts it and waits until it logs a line with `ready`, which is the last before it answers.
    ///
    /// # Panics
    /// It does not.
    pub(crate) fn start(name: &'static str, mut command: Command, ready: &'static str) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("start {name}: {error}"));
        let stderr = child.stderr.take().expect("a pipe");
        let log: Arc<Mutex<String>> = Arc::default();
        let (answers, is_ready) = mpsc::channel();
        let daemon = Self {
            name,
            child,
            log: Arc::clone(&log),
        };
        std::thread::spawn(move || read(stderr, ready, &log, &answers));
        // The sender is gone when it has ended.
        if is_ready.recv_timeout(LIMIT).is_err() {
            panic!("{name} does not answer: {daemon}");
        }
        daemon
    }

    /// Sends it a signal and waits for its end.
    pub(crate) fn end(&mut self, signal: Signal) {
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

fn read(stderr: ChildStderr, ready: &str, log: &Mutex<String>, answers: &Sender<()>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        let is_ready = line.contains(ready);
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        log.push_str(&line);
        log.push('\n');
        if is_ready {
            // Whoever has waited long enough waits no more.
            let _ = answers.send(());
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
        write!(f, "--- {}'s log\n{}", self.name, shorten(log.as_bytes()))
    }
}
