//! Run directories: what a sandbox leaves for other processes to find.
//!
//! Each sandbox has a directory of its name below the run root:
//!
//! | file | |
//! |---|---|
//! | `lock` | locked by the owner as long as it lives: tells a running sandbox from one that has ended |
//! | `state.json` | [`State`]: what the sandbox is and which containers it has |
//! | `vsock.sock` | connections into the guest: the agent's calls, the streams of processes |
//! | `control.sock` | the machine monitor's control socket |
//! | `console.sock` | the guest's console, if it has one |
//! | `vmm.log` | what the machine monitor says |
//! | `owner.log` | what an owner without a terminal says |
//! | `output.log`, `output.log.1` | what a detached container has written, the older part in the second file |
//!
//! A directory whose lock is free belongs to a dead owner. Where its state says that it is kept, it stays until somebody
//! removes it by name: its container has stopped and may still be asked about. Any other is removed by whoever comes
//! across it. Making, judging and removing directories happens under a lock on the run root itself, and under another name, so that none is seen
//! half made. What is not of this form, whatever else is in the run root, is left alone.

mod dir;
mod root;
mod state;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use thiserror::Error;

pub use dir::{Found, RunDir};
pub use root::RunRoot;
pub use state::{Container, ContainerProcess, Exit, State};

/// The longest name of a sandbox in bytes, as long as a container's name in the guest may be.
pub const MAX_NAME: usize = 128;
/// How much of a name that cannot be one stands in an error, in characters.
const SHOWN_NAME: usize = 40;

/// Connections into the guest.
pub const VSOCK: &str = "vsock.sock";
/// The machine monitor's control socket.
pub const CONTROL: &str = "control.sock";
/// The guest's console.
pub const CONSOLE: &str = "console.sock";
/// What the machine monitor says.
pub const LOG: &str = "vmm.log";
/// What an owner without a terminal says.
pub const OWNER_LOG: &str = "owner.log";
/// What a detached container has written.
pub const OUTPUT: &str = "output.log";
/// What it had written before that.
pub const OLD_OUTPUT: &str = "output.log.1";
const LOCK: &str = "lock";
const STATE: &str = "state.json";
const NEW_STATE: &str = "state.json.new";
/// All files of a run directory, the lock last: as long as it is there, it says whose the directory is.
const FILES: [&str; 10] = [
    VSOCK, CONTROL, CONSOLE, LOG, OWNER_LOG, OUTPUT, OLD_OUTPUT, STATE, NEW_STATE, LOCK,
];
/// What the name of a directory begins with that is being made or removed.
const PASSING: &str = ".husk-";

/// Why a run directory cannot be used.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum RunDirError {
    #[error(
        "{0:?} cannot name a container: 1 to {MAX_NAME} letters, digits, '_', '.' and '-', the first one a letter or digit"
    )]
    Name(String),
    #[error("a container named {0} exists already; choose another name, or remove it with husk rm")]
    InUse(String),
    // Callers of OCI runtimes look for "does not exist" and "container not running".
    #[error("container {0} does not exist; husk list shows those that do")]
    NotFound(String),
    #[error("container not running: {0} has stopped")]
    Stopped(String),
    #[error("container {0} is still running; end it with husk kill, or use --force")]
    Running(String),
    #[error("the run directory {} belongs to another user or is open to others; remove it or choose another --root", .0.display())]
    Unsafe(PathBuf),
    #[error("{} cannot be used as run directory; choose another --root", path.display())]
    Root {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the run directory {} cannot be used", path.display())]
    Dir {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the state of {name} cannot be read")]
    State {
        name: String,
        #[source]
        source: serde_json::Error,
    },
}

/// Where run directories are by default: `/run/husk` for root, `$XDG_RUNTIME_DIR/husk` or `/tmp/husk-UID` for others.
#[must_use]
pub fn default_root() -> PathBuf {
    let user = geteuid();
    match std::env::var_os("XDG_RUNTIME_DIR") {
        _ if user.is_root() => "/run/husk".into(),
        Some(runtime) if Path::new(&runtime).is_absolute() => Path::new(&runtime).join("husk"),
        _ => format!("/tmp/husk-{user}").into(),
    }
}

/// Whether a sandbox can have this name.
///
/// # Errors
/// [`RunDirError::Name`].
pub fn check_name(name: &str) -> Result<(), RunDirError> {
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if first && rest && name.len() <= MAX_NAME {
        Ok(())
    } else {
        let mut shown: String = name.chars().take(SHOWN_NAME).collect();
        if shown.len() < name.len() {
            shown.push_str("...");
        }
        Err(RunDirError::Name(shown))
    }
}

/// A path by which a file in an open directory can be reached, short enough for a socket's address whatever the
/// directory's own path is (`sun_path` holds 108 bytes).
#[must_use]
pub fn short_path(dir: &impl AsFd, file: &str) -> PathBuf {
    format!("/proc/self/fd/{}/{file}", dir.as_fd().as_raw_fd()).into()
}
