//! `delete`: takes down what is left of a container, whatever has become of its shim.
//!
//! containerd runs it after every container, and when a shim has died. Then the machine goes by itself, and the run
//! directory with it; here it is seen to that this has happened.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use containerd_shim_protos::api::DeleteResponse;
use husk_sandbox::host_cgroup;
use husk_sandbox::machine::{kill_process, open_process};
use husk_sandbox::rundir::{RunDirError, RunRoot, State};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use protobuf::Message;

use crate::args::Flags;
use crate::{place, rootfs, start};

/// How long a shim or a machine may take to end by itself. containerd kills this program after five seconds.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long what was killed may take.
const AFTER_KILL: Duration = Duration::from_millis(500);
/// More mounts than lie over each other at a root file system.
const MOST_MOUNTS: usize = 32;
/// What is said of a container that has ended with its shim.
const KILLED: u32 = 137;

/// Takes down a container, and with a group's first one its sandbox.
pub(crate) fn delete(flags: &Flags) -> Result<()> {
    let bundle = std::path::absolute(&flags.bundle).context("the bundle cannot be found")?;
    let mut pid = 0;
    if place::group(&bundle, &flags.id) == flags.id {
        let root = place::root(&flags.namespace)?;
        pid = end_sandbox(&root, &flags.id)?;
        if let Some(socket) = start::read_address(&bundle) {
            // The shim removes it itself unless it was killed.
            let _ = fs::remove_file(socket);
        }
    }
    unmount(&bundle.join("rootfs"));
    let response = DeleteResponse {
        pid,
        exit_status: KILLED,
        exited_at: Some(SystemTime::now().into()).into(),
        ..Default::default()
    };
    let bytes = response.write_to_bytes().context("the answer cannot be written")?;
    io::stdout().write_all(&bytes).context("stdout")
}

fn unmount(path: &Path) {
    let _ = (0..MOST_MOUNTS).take_while(|_| rootfs::unmount(path)).count();
}

/// Ends a sandbox and removes what it leaves; gives the process that stood for it.
fn end_sandbox(root: &RunRoot, name: &str) -> Result<u32> {
    let found = match root.find(name) {
        Ok(found) => found,
        // It is gone already, or has never come so far.
        Err(RunDirError::NotFound(_)) => return Ok(root.prune(name).map(|()| 0)?),
        Err(error) => return Err(error.into()),
    };
    let State {
        pid, vmm_pid, cgroup, ..
    } = found.state.clone();
    end_process(pid, || is_owner(root, name, pid));
    end_process(vmm_pid, || is_machine(vmm_pid));
    for container in &found.state.containers {
        // Of all containers of a pod: containerd may ask for the sandbox alone.
        unmount(&container.root);
    }
    root.prune(name)?;
    if let Some(cgroup) = cgroup {
        host_cgroup::remove(&cgroup, AFTER_KILL)?;
    }
    Ok(vmm_pid)
}

/// Waits for a process's end for a while and then brings it about, if it is still the one that is meant.
fn end_process(pid: u32, is_it: impl Fn() -> bool) {
    let Ok(process) = open_process(pid) else { return };
    if !is_it() || has_ended(process.as_fd(), PATIENCE) {
        return;
    }
    if let Err(errno) = kill_process(process.as_fd()) {
        eprintln!("containerd-shim-husk-v2: process {pid} cannot be ended: {errno}");
    }
    has_ended(process.as_fd(), AFTER_KILL);
}

/// Whether a process, by a descriptor of it, ends within a while.
pub(crate) fn has_ended(process: BorrowedFd<'_>, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(process, PollFlags::POLLIN)], timeout) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(_) if left.is_zero() => return false,
            Err(_) => {}
        }
    }
}

/// Whether a process is the owner of a sandbox, who holds its lock.
fn is_owner(root: &RunRoot, name: &str, pid: u32) -> bool {
    root.find(name).is_ok_and(|found| found.alive && found.state.pid == pid)
}

/// Whether a process is a machine monitor.
fn is_machine(pid: u32) -> bool {
    let name = fs::read_to_string(PathBuf::from(format!("/proc/{pid}/comm"))).unwrap_or_default();
    name.trim_end() == "husk-vmm"
}
