//! A container that `husk create` has made, as conmon and containerd's shims see it.

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::Value;

use crate::{Bundle, Host, Husk, Outcome, Process, Running};

/// No container of a test lives longer than this.
const LIMIT: Duration = Duration::from_secs(300);

/// A created container; deleted by force when it is dropped.
pub struct Container<'h> {
    host: &'h Host,
    id: String,
    running: Running<'h>,
    pid: i32,
}

impl<'h> Container<'h> {
    /// `husk create --bundle BUNDLE --pid-file FILE ID`.
    ///
    /// # Panics
    /// It fails.
    #[track_caller]
    pub fn create(host: &'h Host, bundle: &Bundle, id: &str) -> Self {
        Self::create_with(host.husk().open_input(), host, bundle, id)
    }

    /// The same with a command that has been begun.
    ///
    /// # Panics
    /// It fails.
    #[track_caller]
    pub fn create_with(husk: Husk<'h>, host: &'h Host, bundle: &Bundle, id: &str) -> Self {
        let pid_file = host.scratch().join(format!("{id}.pid"));
        let husk = husk.option("--pid-file").option(&pid_file).bundle(bundle).option(id);
        let mut running = husk.start_command(["create"]);
        running.succeeds();
        Self {
            host,
            id: id.to_owned(),
            running,
            pid: read_pid(&pid_file),
        }
    }

    /// The `husk create`, whose streams are the container's.
    pub fn streams(&mut self) -> &mut Running<'h> {
        &mut self.running
    }

    /// The process that stands for the container's.
    ///
    /// # Panics
    /// It has ended and somebody has noticed.
    #[track_caller]
    pub fn process(&self) -> Process {
        Process::find(self.pid).expect("the process of the pid file")
    }

    /// `husk VERB ID`, to its end.
    #[track_caller]
    pub fn husk(&self, verb: &str) -> Outcome {
        self.host.husk().command([verb, &self.id])
    }

    /// What `husk state` says.
    ///
    /// # Panics
    /// It fails, or says no JSON.
    #[track_caller]
    pub fn state(&self) -> Value {
        let told = self.husk("state");
        told.exits(0).is_quiet();
        serde_json::from_str(told.stdout()).expect("JSON")
    }

    /// The status of `husk state` is this.
    ///
    /// # Panics
    /// It is another.
    #[track_caller]
    pub fn is(&self, status: &str) -> &Self {
        assert_eq!(self.state()["status"], status);
        self
    }

    /// Sends a signal to the process that stands for the container's.
    ///
    /// # Panics
    /// There is none.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid), signal).expect("signal the monitor");
    }

    /// Waits for that process, which this program has adopted, as conmon does; gives its exit code.
    #[track_caller]
    pub fn wait(&self) -> i32 {
        wait_for(self.pid)
    }

    /// `husk delete ID`.
    #[track_caller]
    pub fn delete(self) {
        self.husk("delete").exits(0).is_quiet();
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let _ = self.host.husk().command(["delete", "--force", &self.id]);
    }
}

/// The number in a pid file.
///
/// # Panics
/// There is none.
#[track_caller]
pub fn read_pid(path: &PathBuf) -> i32 {
    let text = fs::read_to_string(path).expect("the pid file");
    text.parse().expect("a number in the pid file")
}

/// Waits for an adopted process; gives its exit code, or minus the number of the signal that has ended it.
///
/// # Panics
/// It does not end in time, or is none of this program's.
#[track_caller]
pub fn wait_for(pid: i32) -> i32 {
    if let Some(handle) = Process::find(pid).and_then(|process| process.handle()) {
        let timeout = PollTimeout::try_from(LIMIT).unwrap_or(PollTimeout::MAX);
        let ended = poll(&mut [PollFd::new(handle.as_fd(), PollFlags::POLLIN)], timeout);
        assert_eq!(ended, Ok(1), "process {pid} does not end");
    }
    match waitpid(Pid::from_raw(pid), None).expect("an adopted process") {
        WaitStatus::Exited(_, code) => code,
        WaitStatus::Signaled(_, signal, _) => -(signal as i32),
        other => panic!("{other:?}"),
    }
}
