//! Locks between builds: the operating system's, so that nobody waits for the dead.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

use crate::Progress;

/// Takes the lock file at `path`, saying so when it has to wait. The wait lasts at most
/// as long as the holder lives.
///
/// # Errors
/// The file cannot be made or locked.
pub(crate) fn exclusive(path: &Path, progress: Progress<'_>) -> io::Result<File> {
    let file = File::create(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            progress(&format!("another build is at work; waiting for {}", path.display()));
            file.lock()?;
        }
        Err(TryLockError::Error(error)) => return Err(error),
    }
    Ok(file)
}
