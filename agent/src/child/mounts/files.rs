//! Files that the host has sent, in memory that lies outside the root and is mounted into it.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use husk_protocol::agent::File;

use super::super::paths::by_descriptor;
use crate::sys::errno;

/// Writes the files of mount number `index` into memory; gives what is to be mounted: the file without a path, or else the
/// directory that holds them.
pub(super) fn write(memory: &impl AsFd, index: usize, files: &[File]) -> nix::Result<PathBuf> {
    let top = Path::new(&by_descriptor(memory)).join(format!("mount-{index}"));
    write_all(&top, files).map_err(|error| errno(&error))?;
    Ok(top)
}

fn write_all(top: &Path, files: &[File]) -> std::io::Result<()> {
    if !files.iter().any(|file| file.path.is_empty()) {
        fs::DirBuilder::new().mode(0o755).create(top)?;
    }
    for file in files {
        // Joining nothing would ask for a directory.
        let path = if file.path.is_empty() {
            top.to_owned()
        } else {
            top.join(&file.path)
        };
        if let Some(directory) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        }
        let mut target = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        target.write_all(&file.contents)?;
        match chown(&path, Some(file.uid), Some(file.gid)) {
            // A container with a user namespace of its own may not know that owner.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            result => result?,
        }
        target.set_permissions(fs::Permissions::from_mode(file.mode & 0o7777))?;
    }
    Ok(())
}
