//! The developer's cache: what is downloaded or built once and used by every checkout.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};

use crate::step;

/// `$HUSK_CACHE`, else `$XDG_CACHE_HOME/husk`, else `~/.cache/husk`. Created when missing.
pub(crate) fn directory() -> Result<PathBuf> {
    let from = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let path = from("HUSK_CACHE")
        .or_else(|| Some(from("XDG_CACHE_HOME")?.join("husk")))
        .or_else(|| Some(from("HOME")?.join(".cache/husk")))
        .context("no place for the cache: set HUSK_CACHE or HOME")?;
    fs::create_dir_all(&path).with_context(|| format!("creating the cache {}", path.display()))?;
    path.canonicalize()
        .with_context(|| format!("resolving {}", path.display()))
}

/// A lock on one part of the cache, free again when dropped or when the process ends.
pub(crate) struct Lock(#[expect(dead_code, reason = "held, never read")] Flock<File>);

/// Waits until no other process makes the same thing.
pub(crate) fn lock(name: &str) -> Result<Lock> {
    let path = directory()?.join(format!("{name}.lock"));
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => return Ok(Lock(lock)),
        Err((file, _)) => file,
    };
    step(&format!("another process works on {name}; waiting for it"));
    let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error);
    Ok(Lock(lock.with_context(|| format!("locking {}", path.display()))?))
}

/// Makes a directory of the cache's whole or not at all: `fill` works on a temporary one that takes the name at the end.
pub(crate) fn build_directory(target: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = target.parent().context("a directory of the cache has a parent")?;
    fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    let mut partial = target.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    // The caller holds the lock, so this is what a killed process left.
    remove_tree(&partial)?;
    fs::create_dir(&partial).with_context(|| format!("creating {}", partial.display()))?;
    if let Err(error) = fill(&partial) {
        remove_tree(&partial)?;
        return Err(error);
    }
    // One that is not whole, or the caller would not make it again.
    remove_tree(target)?;
    fs::rename(&partial, target).with_context(|| format!("renaming {} to {}", partial.display(), target.display()))
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}
