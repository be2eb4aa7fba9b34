//! A disk that is soon full.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount, umount};

use crate::leftovers::{Snapshot, tree};

/// A small file system in memory, unmounted when it is dropped.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
    before: Snapshot,
}

impl SmallDisk {
    /// Mounts one of this size (as tmpfs has it: `300k`) at `path`, which is made if it is not there.
    ///
    /// # Panics
    /// It cannot be mounted.
    pub fn mount(path: &Path, size: &str) -> Self {
        fs::create_dir_all(path).expect("make the mount point");
        let options = format!("size={size},mode=755");
        mount(
            Some("small"),
            path,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .expect("mount a tmpfs");
        let before = Snapshot::take(&[path]);
        Self {
            path: path.to_owned(),
            before,
        }
    }

    /// All files with anything in them.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        tree(&self.path, &mut |path| {
            if path.metadata().is_ok_and(|file| file.is_file() && file.len() > 0) {
                files.push(path.to_owned());
            }
        });
        files
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // husk's keeper may still look at its directory.
        self.before.wait_for_processes();
        let unmounted = umount(&self.path);
        if !std::thread::panicking() {
            unmounted.expect("nobody uses the disk any more");
        }
    }
}
