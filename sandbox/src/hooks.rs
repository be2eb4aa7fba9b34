//! A bundle's hooks that run on the host (OCI runtime specification, "POSIX-platform Hooks").
//!
//! `prestart` and `createRuntime` run when the sandbox's machine is there and before the container is made in it,
//! `poststart` when its first process has executed, `poststop` when it is gone. Each gets the container's state on
//! stdin and a time after which it is killed. `createContainer` and `startContainer` hooks are the guest's.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, PipeReader, Read, Seek, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use serde_json::json;
use thiserror::Error;

/// How long a hook may take that says nothing of it, in seconds.
pub const DEFAULT_TIMEOUT: u64 = 60;

/// The version of the specification whose state document hooks are given.
const STATE_VERSION: &str = "1.3.0";
/// How much of a failed hook's output is told, in bytes.
const MAX_OUTPUT: usize = 1024;

/// A program to be run at a point of a container's life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Where it stands in `config.json`.
    pub field: String,
    /// An absolute path.
    pub path: PathBuf,
    /// The whole argument vector; empty: the path alone.
    pub args: Vec<String>,
    /// `NAME=VALUE`; the only environment that it has.
    pub env: Vec<String>,
    /// After how many seconds it is killed.
    pub timeout: u64,
}

/// The hooks that run on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hooks {
    /// `prestart` and then `createRuntime`.
    pub create: Vec<Hook>,
    /// `poststart`.
    pub poststart: Vec<Hook>,
    /// `poststop`.
    pub poststop: Vec<Hook>,
}

/// What hooks are told of the container, beside its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The container's name.
    pub id: String,
    /// The process that stands for the container on the host.
    pub pid: u32,
    /// The bundle's directory; a container without a bundle has no hooks.
    pub bundle: PathBuf,
    /// The annotations of `config.json`.
    pub annotations: BTreeMap<String, String>,
}

/// Why a hook has failed.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum HookError {
    #[error("config.json: {field} ({}) cannot be run", path.display())]
    Run {
        field: String,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("config.json: {field} ({}) has failed: {status}{output}", path.display())]
    Failed {
        field: String,
        path: PathBuf,
        status: ExitStatus,
        output: String,
    },
    #[error("config.json: {field} ({}) was killed after {seconds} seconds", path.display())]
    Timeout { field: String, path: PathBuf, seconds: u64 },
}

impl Hooks {
    /// Runs what belongs to the creation of a container.
    ///
    /// # Errors
    /// The first hook that fails; the container is not to be made then.
    pub fn run_create(&self, subject: &Subject) -> Result<(), HookError> {
        run_all(&self.create, subject, "creating")
    }

    /// Runs what follows the start of a container's first process.
    ///
    /// # Errors
    /// The first hook that fails; the container is to be ended then.
    pub fn run_poststart(&self, subject: &Subject) -> Result<(), HookError> {
        run_all(&self.poststart, subject, "running")
    }

    /// Runs what follows the end of a container. A hook that fails keeps no other from running.
    pub fn run_poststop(&self, subject: &Subject) {
        for hook in &self.poststop {
            if let Err(error) = hook.run(subject, "stopped") {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, source, "a poststop hook has failed");
            }
        }
    }
}

fn run_all(hooks: &[Hook], subject: &Subject, status: &str) -> Result<(), HookError> {
    hooks.iter().try_for_each(|hook| hook.run(subject, status))
}

/// The state document (OCI runtime specification, "State") around the place of its process id: hooks in the guest know
/// the process by another number.
pub(crate) fn state_around_pid(subject: &Subject, status: &str) -> (String, String) {
    let mut state = json!({
        "ociVersion": STATE_VERSION,
        "id": subject.id,
        "status": status,
        "bundle": subject.bundle,
    });
    if !subject.annotations.is_empty() {
        state["annotations"] = json!(subject.annotations);
    }
    let text = state.to_string();
    // An object with members begins with a brace.
    (r#"{"pid":"#.to_owned(), text.replacen('{', ",", 1))
}

impl Hook {
    fn run(&self, subject: &Subject, status: &str) -> Result<(), HookError> {
        let failed = |source| HookError::Run {
            field: self.field.clone(),
            path: self.path.clone(),
            source,
        };
        let (before, after) = state_around_pid(subject, status);
        let state = format!("{before}{}{after}", subject.pid);
        let (mut child, mut output) = self.spawn(&subject.bundle, &state).map_err(failed)?;
        let deadline = Instant::now() + Duration::from_secs(self.timeout);
        let ended = wait(&child, &mut output, deadline);
        if !matches!(ended, Ok(Ended { in_time: true, .. })) {
            // Its group is its own. What has left the group is none of the hook's any more.
            let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
        }
        let status = child.wait().map_err(failed)?;
        let ended = ended.map_err(|errno| failed(errno.into()))?;
        if !ended.in_time {
            return Err(HookError::Timeout {
                field: self.field.clone(),
                path: self.path.clone(),
                seconds: self.timeout,
            });
        }
        if status.success() {
            return Ok(());
        }
        Err(HookError::Failed {
            field: self.field.clone(),
            path: self.path.clone(),
            status,
            output: told(&ended.output),
        })
    }

    fn spawn(&self, directory: &Path, state: &str) -> io::Result<(Child, PipeReader)> {
        let mut input = File::from(memfd_create(c"husk-hook-state", MFdFlags::MFD_CLOEXEC)?);
        input.write_all(state.as_bytes())?;
        input.rewind()?;
        let (reader, writer) = io::pipe()?;
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let mut command = Command::new(&self.path);
        if let [name, rest @ ..] = self.args.as_slice() {
            command.arg0(name).args(rest);
        }
        let child = command
            .env_clear()
            .envs(self.env.iter().filter_map(|variable| variable.split_once('=')))
            .current_dir(directory)
            .process_group(0)
            .stdin(input)
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .spawn()?;
        Ok((child, reader))
    }
}

/// How a hook's time went.
struct Ended {
    in_time: bool,
    output: Vec<u8>,
}

/// Waits until the process has ended or its time is up. Its output is read meanwhile, so that it is not held up.
fn wait(child: &Child, output: &mut PipeReader, deadline: Instant) -> nix::Result<Ended> {
    let process = open_process(child.id())?;
    let mut told = Vec::new();
    let mut is_open = true;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, so that it does not spin at the end.
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        let mut watched = vec![PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        if is_open {
            watched.push(PollFd::new(output.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut watched, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        let has_ended = watched[0].any().unwrap_or(true);
        if is_open {
            is_open = read(output, &mut told);
        }
        if has_ended || left.is_zero() {
            return Ok(Ended {
                in_time: has_ended,
                output: told,
            });
        }
    }
}

/// Reads what is there and keeps the last of it; gives whether more may come.
fn read(output: &mut PipeReader, told: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match output.read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => {
                told.extend(&buffer[..count]);
                told.drain(..told.len().saturating_sub(MAX_OUTPUT));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

/// A failed hook's last words, on one line and without what a terminal would obey.
fn told(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let words: Vec<_> = text
        .split(|character: char| character.is_whitespace() || character.is_control())
        .collect();
    let line = words
        .into_iter()
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ");
    match line.as_str() {
        "" => String::new(),
        line => format!(": {line}"),
    }
}

/// A descriptor that becomes readable when the process, a child of this one, ends.
#[allow(unsafe_code)]
fn open_process(pid: u32) -> nix::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = RawFd::try_from(Errno::result(result)?).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(directory: &Path) -> Subject {
        Subject {
            id: "web".into(),
            pid: 42,
            bundle: directory.into(),
            annotations: [("org.example".to_owned(), "{\"x\"".to_owned())].into(),
        }
    }

    fn shell(script: &str, timeout: u64) -> Hook {
        Hook {
            field: "hooks.createRuntime[0]".into(),
            path: "/bin/sh".into(),
            args: ["named", "-c", script].map(str::to_owned).into(),
            env: vec!["A=b=c".into()],
            timeout,
        }
    }

    #[test]
    fn a_hook_gets_the_state_its_arguments_and_its_environment_alone() {
        let directory = tempfile::tempdir().unwrap();
        let script = "cat > state; echo $0 > name; /usr/bin/env > env; pwd > place";
        let hooks = Hooks {
            create: vec![shell(script, 10)],
            ..Default::default()
        };
        hooks.run_create(&subject(directory.path())).unwrap();
        let written = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
        let state: serde_json::Value = serde_json::from_str(&written("state")).unwrap();
        let expected = json!({
            "ociVersion": "1.3.0", "id": "web", "status": "creating", "pid": 42, "bundle": directory.path(),
            "annotations": {"org.example": "{\"x\""},
        });
        assert_eq!(state, expected);
        assert_eq!(written("name"), "named\n");
        let own = ["PWD=", "SHLVL=", "_=", "OLDPWD="];
        let env: Vec<_> = written("env")
            .lines()
            .filter(|line| !own.iter().any(|name| line.starts_with(name)))
            .map(str::to_owned)
            .collect();
        assert_eq!(env, ["A=b=c"]);
        assert_eq!(written("place").trim_end(), directory.path().to_str().unwrap());
    }

    #[test]
    fn the_first_hook_that_fails_is_the_last_that_runs() {
        let directory = tempfile::tempdir().unwrap();
        let hooks = Hooks {
            poststart: vec![shell("echo one\u{1b} two >&2; exit 3", 10), shell("touch ran", 10)],
            ..Default::default()
        };
        let error = hooks.run_poststart(&subject(directory.path())).unwrap_err().to_string();
        for word in ["hooks.createRuntime[0]", "/bin/sh", "exit status: 3", ": one two"] {
            assert!(error.contains(word), "{error}");
        }
        assert!(!directory.path().join("ran").exists());
        let mut missing = shell("", 10);
        missing.path = "/no/such/hook".into();
        let error = missing.run(&subject(directory.path()), "running").unwrap_err();
        assert!(matches!(error, HookError::Run { .. }), "{error}");
    }

    #[test]
    fn every_hook_runs_after_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let hooks = Hooks {
            poststop: vec![shell("exit 1", 10), shell("grep -q stopped && touch ran", 10)],
            ..Default::default()
        };
        hooks.run_poststop(&subject(directory.path()));
        assert!(directory.path().join("ran").exists());
    }

    #[test]
    fn a_hook_ends_with_its_time() {
        let directory = tempfile::tempdir().unwrap();
        let begun = Instant::now();
        let error = shell("sleep 1000 & sleep 1000", 1)
            .run(&subject(directory.path()), "creating")
            .unwrap_err();
        assert!(matches!(error, HookError::Timeout { seconds: 1, .. }), "{error}");
        // One that leaves something behind has ended with its own process, and much output does not hold it up.
        shell("sleep 1000 & head -c 300000 /dev/zero", 30)
            .run(&subject(directory.path()), "creating")
            .unwrap();
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
}
