//! Hooks that run inside the container.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use husk_protocol::agent::{Hook, Hooks};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Pid, getpid};

use super::ChildError;
use crate::sys::{self, errno};

/// How a hook has failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HookFault {
    #[error("cannot be run in the container: {0}")]
    Run(Errno),
    #[error("has failed: {0}")]
    Failed(std::process::ExitStatus),
    #[error("was killed after {0} seconds")]
    Timeout(u32),
}

/// Runs hooks one after the other; the first that fails is the last. `env` is for those that name none. `bounding` are
/// the capabilities that they may have at most; without it they have the process's.
pub(super) fn run(hooks: &Hooks, env: &[String], bounding: Option<u64>) -> Result<(), ChildError> {
    let state = format!("{}{}{}", hooks.before_pid, getpid(), hooks.after_pid);
    for hook in &hooks.hooks {
        run_one(hook, &state, env, bounding).map_err(|fault| ChildError::Hook {
            field: hook.field.clone(),
            path: hook.path.clone(),
            fault,
        })?;
    }
    Ok(())
}

fn run_one(hook: &Hook, state: &str, env: &[String], bounding: Option<u64>) -> Result<(), HookFault> {
    let failed = |error: std::io::Error| HookFault::Run(errno(&error));
    let mut input = memfd_create(c"hook-state", MFdFlags::MFD_CLOEXEC)
        .map(File::from)
        .map_err(HookFault::Run)?;
    input.write_all(state.as_bytes()).map_err(failed)?;
    input.rewind().map_err(failed)?;
    let mut command = Command::new(&hook.path);
    if let [name, rest @ ..] = hook.args.as_slice() {
        command.arg0(name).args(rest);
    }
    let env = if hook.env.is_empty() { env } else { &hook.env };
    command
        .env_clear()
        .envs(env.iter().filter_map(|variable| variable.split_once('=')))
        .process_group(0)
        .stdin(input)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if let Some(bounding) = bounding {
        sys::before_execution(&mut command, move || sys::keep_bounding(bounding).map(drop));
    }
    let mut child = command.spawn().map_err(failed)?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let in_time = ends_in_time(pid, Duration::from_secs(hook.timeout_s.into())).map_err(HookFault::Run);
    if !matches!(in_time, Ok(true)) {
        // The group is its own.
        let _ = sys::kill(Pid::from_raw(-pid.as_raw()), libc::SIGKILL);
    }
    let status = child.wait().map_err(failed)?;
    match in_time? {
        false => Err(HookFault::Timeout(hook.timeout_s)),
        true if status.success() => Ok(()),
        true => Err(HookFault::Failed(status)),
    }
}

fn ends_in_time(pid: Pid, limit: Duration) -> nix::Result<bool> {
    let process = sys::open_process(pid)?;
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(source) => return Err(source),
        }
    }
}
