//! The run root: making, judging, finding and removing run directories.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, openat, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use super::{FILES, Found, LOCK, PASSING, RunDir, RunDirError, STATE, State, check_name, short_path};

const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_CLOEXEC)
    .union(OFlag::O_NOFOLLOW);

/// The directory that holds all run directories of a user.
#[derive(Debug)]
pub struct RunRoot {
    pub(super) path: PathBuf,
    pub(super) dir: OwnedFd,
}

/// A directory that was found to be a sandbox's.
struct Judged {
    dir: OwnedFd,
    /// Whether its owner lives.
    alive: bool,
}

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
        Ok(RunDir::new(self, name.into(), dir, lock))
    }

    /// Makes a directory with its lock and gives it its name. Under the guard.
    pub(super) fn make(&self, name: &str) -> nix::Result<(OwnedFd, Flock<File>)> {
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

    /// A sandbox that runs, or whose directory is kept.
    ///
    /// # Errors
    /// There is none of this name, or its state cannot be read.
    pub fn find(&self, name: &str) -> Result<Found, RunDirError> {
        check_name(name)?;
        let guard = self.guard()?;
        let Some(judged) = self.judge(name)? else {
            return Err(RunDirError::NotFound(name.into()));
        };
        drop(guard);
        let state = read_state(&judged.dir).map_err(|error| match error {
            // It has not come so far yet, or it has just ended.
            StateError::Read(source) if source.kind() == io::ErrorKind::NotFound => RunDirError::NotFound(name.into()),
            StateError::Read(source) => self.dir_failed(name, source),
            StateError::Json(source) => RunDirError::State {
                name: name.into(),
                source,
            },
        })?;
        Ok(Found::new(state, judged.alive, judged.dir))
    }

    /// All sandboxes that run or whose directories are kept, by name; what other dead ones left is removed.
    ///
    /// # Errors
    /// A directory that cannot be read.
    pub fn list(&self) -> Result<Vec<Found>, RunDirError> {
        let guard = self.guard()?;
        let mut names = self.judge_all()?;
        drop(guard);
        names.sort();
        let mut all = Vec::new();
        for name in names {
            match self.find(&name) {
                Ok(found) => all.push(found),
                Err(RunDirError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// Removes the directory of a sandbox that has ended.
    ///
    /// # Errors
    /// There is none, it is still running, or its directory cannot be removed.
    pub fn forget(&self, name: &str) -> Result<(), RunDirError> {
        check_name(name)?;
        let _guard = self.guard()?;
        match self.judge(name)? {
            None => Err(RunDirError::NotFound(name.into())),
            Some(judged) if judged.alive => Err(RunDirError::Running(name.into())),
            Some(judged) => self
                .remove(name, &judged.dir)
                .map_err(|errno| self.dir_failed(name, errno.into())),
        }
    }

    /// Removes what a sandbox left whose owner is dead, unless it is kept.
    ///
    /// # Errors
    /// A directory that cannot be removed.
    pub fn prune(&self, name: &str) -> Result<(), RunDirError> {
        let _guard = self.guard()?;
        self.judge(name).map(drop)
    }

    /// Keeps every other process from making, judging and removing directories.
    pub(super) fn guard(&self) -> Result<Flock<OwnedFd>, RunDirError> {
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

    pub(super) fn dir_failed(&self, name: &str, source: io::Error) -> RunDirError {
        RunDirError::Dir {
            path: self.path.join(name),
            source,
        }
    }

    /// Judges all directories and gives the names of those that live or are kept. Under the guard.
    fn judge_all(&self) -> Result<Vec<String>, RunDirError> {
        let mut found = Vec::new();
        for name in names(&self.dir, ".").map_err(|errno| self.failed(errno))? {
            if name.starts_with(PASSING) {
                // Under the guard nobody else makes or removes one: who did has died.
                self.discard(&name)
                    .map_err(|errno| self.dir_failed(&name, errno.into()))?;
            } else if check_name(&name).is_ok() && self.judge(&name)?.is_some() {
                found.push(name);
            }
        }
        Ok(found)
    }

    /// The directory if its owner lives or it is kept; any other whose owner is dead is removed. Under the guard.
    fn judge(&self, name: &str) -> Result<Option<Judged>, RunDirError> {
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
            Err((_, Errno::EWOULDBLOCK)) => Ok(Some(Judged { dir, alive: true })),
            Err((_, errno)) => Err(failed(errno)),
            Ok(_lock) if read_state(&dir).is_ok_and(|state| state.kept) => Ok(Some(Judged { dir, alive: false })),
            Ok(_lock) => self.remove(name, &dir).map(|()| None).map_err(failed),
        }
    }

    /// Takes a directory's name away and removes it. Under the guard.
    pub(super) fn remove(&self, name: &str, dir: &OwnedFd) -> nix::Result<()> {
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

enum StateError {
    Read(io::Error),
    Json(serde_json::Error),
}

fn read_state(dir: &OwnedFd) -> Result<State, StateError> {
    let text = fs::read(short_path(dir, STATE)).map_err(StateError::Read)?;
    serde_json::from_slice(&text).map_err(StateError::Json)
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
