//! A sandbox that waits for a test to do something with it.

use std::ffi::OsStr;

use crate::{Husk, Outcome, Process, Running};

/// The first process: it says that it runs, and ends with code 9 when it is told to.
const WAITER: &str = "trap 'exit 9' TERM; echo up; while :; do sleep 1000 & wait; done";

/// A named sandbox that runs in the background, until [`Sandbox::end`] or until it is dropped.
pub struct Sandbox<'h> {
    running: Running<'h>,
    name: String,
}

impl<'h> Sandbox<'h> {
    #[track_caller]
    pub(crate) fn start(husk: Husk<'h>, name: &str) -> Self {
        let mut running = husk.name(name).start(["sh", "-c", WAITER]);
        running.await_output("up\n");
        Self {
            running,
            name: name.to_owned(),
        }
    }

    /// Begins a `husk exec` in it.
    pub fn husk(&self) -> Husk<'h> {
        self.running.host().husk()
    }

    /// `husk exec NAME -- COMMAND`, to its end.
    #[track_caller]
    pub fn exec<S: AsRef<OsStr>>(&self, command: impl IntoIterator<Item = S>) -> Outcome {
        self.husk().exec(&self.name, command)
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The `husk run` that holds it.
    pub fn running(&mut self) -> &mut Running<'h> {
        &mut self.running
    }

    /// The virtual machine's process.
    #[track_caller]
    pub fn vmm(&self) -> Process {
        self.running.vmm()
    }

    /// Waits for the end of the `husk run` that holds it.
    #[track_caller]
    pub fn finish(self) -> Outcome {
        self.running.finish()
    }

    /// `husk kill NAME TERM`: the first process gets SIGTERM and ends as it wants to.
    #[track_caller]
    pub fn end(self) {
        self.husk().command(["kill", &self.name, "TERM"]).exits(0);
        self.running.finish().exits(9);
    }
}
