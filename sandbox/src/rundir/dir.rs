//! A run directory: in its owner's hands, or seen by another process.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::Flock;

use super::{NEW_STATE, RunDirError, RunRoot, STATE, State, short_path};

/// A sandbox's run directory, in the hands of its owner.
#[derive(Debug)]
pub struct RunDir {
    root: RunRoot,
    name: String,
    dir: OwnedFd,
    lock: Flock<File>,
    /// Whether it stays when it is dropped.
    kept: AtomicBool,
}

/// A sandbox's run directory, seen by another process.
#[derive(Debug)]
pub struct Found {
    /// What its owner says of it.
    pub state: State,
    /// Whether its owner lives.
    pub alive: bool,
    dir: OwnedFd,
}

impl RunDir {
    pub(super) fn new(root: RunRoot, name: String, dir: OwnedFd, lock: Flock<File>) -> Self {
        Self {
            root,
            name,
            dir,
            lock,
            kept: AtomicBool::new(false),
        }
    }

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

    /// Replaces the state that other processes read; it also says whether the directory is kept.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write_state(&self, state: &State) -> Result<(), RunDirError> {
        let failed = |source| self.root.dir_failed(&self.name, source);
        let text = serde_json::to_vec_pretty(state).map_err(|error| failed(error.into()))?;
        fs::write(short_path(&self.dir, NEW_STATE), text).map_err(failed)?;
        fs::rename(short_path(&self.dir, NEW_STATE), short_path(&self.dir, STATE)).map_err(failed)?;
        self.kept.store(state.kept, Ordering::Relaxed);
        Ok(())
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
        if self.kept.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = self.remove() {
            tracing::warn!(%error, "the run directory is not removed");
        }
    }
}

impl Found {
    pub(super) fn new(state: State, alive: bool, dir: OwnedFd) -> Self {
        Self { state, alive, dir }
    }

    /// The sandbox, if it runs.
    ///
    /// # Errors
    /// It has ended.
    pub fn running(self) -> Result<Self, RunDirError> {
        if self.alive {
            Ok(self)
        } else {
            Err(RunDirError::Stopped(self.state.name))
        }
    }

    /// The open directory.
    #[must_use]
    pub fn dir(&self) -> &OwnedFd {
        &self.dir
    }
}
