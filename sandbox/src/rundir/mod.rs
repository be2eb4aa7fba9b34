//! Run directories: what a running sandbox leaves for other processes to find.
//!
//! Each sandbox has a directory of its name below the run root:
//!
//! | file | |
//! |---|---|
//! | `lock` | locked by the owner as long as it lives: tells a sandbox from what a dead one left |
//! | `state.json` | [`State`]: what the sandbox is and which containers it has |
//! | `vsock.sock` | connections into the guest: the agent's calls, the streams of processes |
//! | `control.sock` | the machine monitor's control socket |
//! | `console.sock` | the guest's console, if it has one |
//! | `vmm.log` | what the machine monitor says |
//!
//! A directory whose lock is free belongs to a dead owner and is removed by whoever comes across it. Making, judging
//! and removing directories happens under a lock on the run root itself, and under another name, so that none is seen
//! half made. What is not of this form, whatever else is in the run root, is left alone.

mod state;
#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, openat, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};
use thiserror::Error;

pub use state::{Container, ContainerProcess, State};

/// The longest name of a sandbox in bytes: it is also the guest's host name by default.
pub const MAX_NAME: usize = 64;

/// Connections into the guest.
pub const VSOCK: &str = "vsock.sock";
/// The machine monitor's control socket.
pub const CONTROL: &str = "control.sock";
/// The guest's console.
pub const CONSOLE: &str = "console.sock";
/// What the machine monitor says.
pub const LOG: &str = "vmm.log";
const LOCK: &str = "lock";
const STATE: &str = "state.json";
const NEW_STATE: &str = "state.json.new";
/// All files of a run directory, the lock last: as long as it is there, it says whose the directory is.
const FILES: [&str; 7] = [VSOCK, CONTROL, CONSOLE, LOG, STATE, NEW_STATE, LOCK];
/// What the name of a directory begins with that is being made or removed.
const PASSING: &str = ".husk-";

/// Why a run directory cannot be used.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum RunDirError {
    #[error(
        "{0:?} cannot name a sandbox: 1 to {MAX_NAME} letters, digits, '_', '.' and '-', the first one a letter or digit"
    )]
    Name(String),
    #[error("a sandbox named {0} is running already; choose another --name")]
    InUse(String),
    #[error("there is no running sandbox named {0}; husk list shows those that run")]
    NotFound(String),
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

/// The directory that holds all run directories of a user.
#[derive(Debug)]
pub struct RunRoot {
    path: PathBuf,
    dir: OwnedFd,
}

/// A sandbox's run directory, in the hands of its owner.
#[derive(Debug)]
pub struct RunDir {
    root: RunRoot,
    name: String,
    dir: OwnedFd,
    lock: Flock<File>,
}

/// A sandbox's run directory, seen by another process.
#[derive(Debug)]
pub struct Found {
    /// What its owner says of it.
    pub state: State,
    dir: OwnedFd,
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
        Err(RunDirError::Name(name.into()))
    }
}

/// A path by which a file in an open directory can be reached, short enough for a socket's address whatever the
/// directory's own path is (`sun_path` holds 108 bytes).
#[must_use]
pub fn short_path(dir: &impl AsFd, file: &str) -> PathBuf {
    format!("/proc/self/fd/{}/{file}", dir.as_fd().as_raw_fd()).into()
}

const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_CLOEXEC)
    .union(OFlag::O_NOFOLLOW);

impl RunRoot {
    /// Opens the run root at `path`, which is made where it is missing.
    ///
    /// # Errors
    /// A directory that cannot be made, or that others could write to.
    pub fn open(path: &Path) -> Result<Self, RunDirError> {
        let failed = |source| RunDirError::Root {
            path: path.into(),
            source,
        };
        // Whoever cleans up later may have another working directory.
        let path = &std::path::absolute(path).map_err(failed)?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed)?;
        let dir: OwnedFd = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(path)
            .map_err(failed)?
            .into();
        let meta = nix::sys::stat::fstat(&dir).map_err(|errno| failed(errno.into()))?;
        if meta.st_uid != geteuid().as_raw() || meta.st_mode & 0o022 != 0 {
            return Err(RunDirError::Unsafe(path.into()));
        }
        Ok(Self { path: path.into(), dir })
    }

    /// The run root's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the run directory of a new sandbox; what a dead one of the same name left is removed.
    ///
    /// # Errors
    /// A name that is not possible or in use; a directory that cannot be made.
    pub fn create(self, name: &str) -> Result<RunDir, RunDirError> {
        check_name(name)?;
        let guard = self.guard()?;
        self.judge_all()?;
        let (dir, lock) = self.make(name).map_err(|errno| match errno {
            Errno::EEXIST | Errno::ENOTEMPTY => RunDirError::InUse(name.into()),
            errno => self.dir_failed(name, errno.into()),
        })?;
        drop(guard);
        Ok(RunDir {
            name: name.into(),
            dir,
            lock,
            root: self,
        })
    }

    /// Makes a directory with its lock and gives it its name. Under the guard.
    fn make(&self, name: &str) -> nix::Result<(OwnedFd, Flock<File>)> {
        let passing = format!("{PASSING}{name}");
        mkdirat(&self.dir, passing.as_str(), Mode::S_IRWXU)?;
        let made = self.furnish(&passing).and_then(|made| {
            // Takes the place of an empty directory, and of nothing else.
            renameat(&self.dir, passing.as_str(), &self.dir, name)?;
            Ok(made)
        });
        if made.is_err() {
            // The first error says more than one that follows from it.
            let _ = self.discard(&passing);
        }
        made
    }

    fn furnish(&self, name: &str) -> nix::Result<(OwnedFd, Flock<File>)> {
        let dir = openat(&self.dir, name, DIRECTORY, Mode::empty())?;
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_CLOEXEC;
        let file = File::from(openat(&dir, LOCK, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
        Ok((dir, lock))
    }

    /// A running sandbox.
    ///
    /// # Errors
    /// None of this name runs, or its state cannot be read.
    pub fn find(&self, name: &str) -> Result<Found, RunDirError> {
        check_name(name)?;
        let guard = self.guard()?;
        let Some(dir) = self.judge(name)? else {
            return Err(RunDirError::NotFound(name.into()));
        };
        drop(guard);
        let text = fs::read(short_path(&dir, STATE)).map_err(|source| match source.kind() {
            // It has not come so far yet, or it has just ended.
            io::ErrorKind::NotFound => RunDirError::NotFound(name.into()),
            _ => self.dir_failed(name, source),
        })?;
        let state = serde_json::from_slice(&text).map_err(|source| RunDirError::State {
            name: name.into(),
            source,
        })?;
        Ok(Found { state, dir })
    }

    /// All running sandboxes by name; what dead ones left is removed.
    ///
    /// # Errors
    /// A directory that cannot be read.
    pub fn list(&self) -> Result<Vec<State>, RunDirError> {
        let guard = self.guard()?;
        let mut names = self.judge_all()?;
        drop(guard);
        names.sort();
        let mut states = Vec::new();
        for name in names {
            match self.find(&name) {
                Ok(found) => states.push(found.state),
                Err(RunDirError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(states)
    }

    /// Removes what a sandbox left whose owner is dead.
    ///
    /// # Errors
    /// A directory that cannot be removed.
    pub fn prune(&self, name: &str) -> Result<(), RunDirError> {
        let _guard = self.guard()?;
        self.judge(name).map(drop)
    }

    /// Keeps every other process from making, judging and removing directories.
    fn guard(&self) -> Result<Flock<OwnedFd>, RunDirError> {
        // A description of its own, as locks within one process must exclude each other too.
        let own = openat(&self.dir, ".", DIRECTORY, Mode::empty());
        own.and_then(|dir| Flock::lock(dir, FlockArg::LockExclusive).map_err(|(_, errno)| errno))
            .map_err(|errno| self.failed(errno))
    }

    fn failed(&self, errno: Errno) -> RunDirError {
        RunDirError::Root {
            path: self.path.clone(),
            source: errno.into(),
        }
    }

    fn dir_failed(&self, name: &str, source: io::Error) -> RunDirError {
        RunDirError::Dir {
            path: self.path.join(name),
            source,
        }
    }

    /// Judges all directories and gives the names of those that live. Under the guard.
    fn judge_all(&self) -> Result<Vec<String>, RunDirError> {
        let mut alive = Vec::new();
        for name in names(&self.dir, ".").map_err(|errno| self.failed(errno))? {
            if name.starts_with(PASSING) {
                // Under the guard nobody else makes or removes one: who did has died.
                self.discard(&name)
                    .map_err(|errno| self.dir_failed(&name, errno.into()))?;
            } else if check_name(&name).is_ok() && self.judge(&name)?.is_some() {
                alive.push(name);
            }
        }
        Ok(alive)
    }

    /// The directory if its owner lives; if it is one whose owner is dead, it is removed. Under the guard.
    fn judge(&self, name: &str) -> Result<Option<OwnedFd>, RunDirError> {
        let failed = |errno: Errno| self.dir_failed(name, errno.into());
        let dir = match openat(&self.dir, name, DIRECTORY, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EACCES) => return Ok(None),
            Err(errno) => return Err(failed(errno)),
        };
        let lock = match openat(
            &dir,
            LOCK,
            OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW,
            Mode::empty(),
        ) {
            Ok(file) => Flock::lock(File::from(file), FlockArg::LockExclusiveNonblock),
            // None of ours.
            Err(_) => return Ok(None),
        };
        match lock {
            Err((_, Errno::EWOULDBLOCK)) => Ok(Some(dir)),
            Err((_, errno)) => Err(failed(errno)),
            Ok(_lock) => self.remove(name, &dir).map(|()| None).map_err(failed),
        }
    }

    /// Takes a directory's name away and removes it. Under the guard.
    fn remove(&self, name: &str, dir: &OwnedFd) -> nix::Result<()> {
        if !is_ours(dir)? {
            return Ok(());
        }
        let passing = format!("{PASSING}{name}");
        self.discard(&passing)?;
        gone(renameat(&self.dir, name, &self.dir, passing.as_str()))?;
        self.discard(&passing)
    }

    /// Removes a directory that is being made or removed. Under the guard.
    fn discard(&self, name: &str) -> nix::Result<()> {
        let dir = match openat(&self.dir, name, DIRECTORY, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        if !is_ours(&dir)? {
            return Ok(());
        }
        for file in FILES {
            gone(unlinkat(&dir, file, UnlinkatFlags::NoRemoveDir))?;
        }
        gone(unlinkat(&self.dir, name, UnlinkatFlags::RemoveDir))
    }
}

/// The names in a directory; those that are not UTF-8 are none of ours.
fn names(parent: &OwnedFd, path: &str) -> nix::Result<Vec<String>> {
    let mut dir = Dir::from_fd(openat(parent, path, DIRECTORY, Mode::empty())?)?;
    let mut names = Vec::new();
    for entry in dir.iter() {
        match entry?.file_name().to_str() {
            Ok("." | "..") => {}
            Ok(name) => names.push(name.to_owned()),
            Err(_) => names.push(String::new()),
        }
    }
    Ok(names)
}

/// Whether a directory holds nothing but what a run directory holds.
fn is_ours(dir: &OwnedFd) -> nix::Result<bool> {
    Ok(names(dir, ".")?.iter().all(|name| FILES.contains(&name.as_str())))
}

/// What is gone already needs no removal.
fn gone(result: nix::Result<()>) -> nix::Result<()> {
    match result {
        Err(Errno::ENOENT) => Ok(()),
        result => result,
    }
}

impl RunDir {
    /// The sandbox's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The open directory.
    #[must_use]
    pub fn dir(&self) -> &OwnedFd {
        &self.dir
    }

    /// Replaces the state that other processes read.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write_state(&self, state: &State) -> Result<(), RunDirError> {
        let failed = |source| self.root.dir_failed(&self.name, source);
        let text = serde_json::to_vec_pretty(state).map_err(|error| failed(error.into()))?;
        fs::write(short_path(&self.dir, NEW_STATE), text).map_err(failed)?;
        fs::rename(short_path(&self.dir, NEW_STATE), short_path(&self.dir, STATE)).map_err(failed)
    }

    /// Removes the directory; afterwards the name is free. Removing it again changes nothing.
    ///
    /// # Errors
    /// A file that cannot be removed.
    pub fn remove(&self) -> Result<(), RunDirError> {
        let _guard = self.root.guard()?;
        // Removed before, and its name perhaps taken by another sandbox since.
        if self.lock.metadata().is_ok_and(|lock| lock.nlink() == 0) {
            return Ok(());
        }
        let removed = self.root.remove(&self.name, &self.dir);
        removed.map_err(|errno| self.root.dir_failed(&self.name, errno.into()))
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!(%error, "the run directory is not removed");
        }
    }
}

impl Found {
    /// The open directory.
    #[must_use]
    pub fn dir(&self) -> &OwnedFd {
        &self.dir
    }
}
