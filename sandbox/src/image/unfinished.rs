//! A file of the cache that is being written and has no name until it is complete.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::unistd::linkat;

/// An unfinished file; nothing of it is left when it is dropped.
#[derive(Debug)]
pub(super) struct Unfinished {
    file: File,
    /// The temporary name, on file systems that have no nameless files.
    name: Option<PathBuf>,
}

impl Unfinished {
    /// Makes a file in `dir`.
    pub(super) fn create(dir: &Path) -> io::Result<Self> {
        let nameless = OpenOptions::new()
            .read(true)
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_TMPFILE)
            .open(dir);
        match nameless {
            Ok(file) => Ok(Self { file, name: None }),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => Self::named(dir),
            Err(error) => Err(error),
        }
    }

    fn named(dir: &Path) -> io::Result<Self> {
        let (file, name) = tempfile::Builder::new()
            .prefix(".")
            .suffix(".tmp")
            .tempfile_in(dir)?
            .keep()?;
        Ok(Self { file, name: Some(name) })
    }

    /// The open file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// The same file, open for reading alone.
    pub(super) fn reopen(&self) -> io::Result<File> {
        File::open(self.link())
    }

    fn link(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }

    /// Gives the file its name.
    pub(super) fn keep(mut self, path: &Path) -> io::Result<()> {
        if let Some(name) = &self.name {
            fs::rename(name, path)?;
            self.name = None;
            return Ok(());
        }
        let flags = nix::fcntl::AtFlags::AT_SYMLINK_FOLLOW;
        match linkat(AT_FDCWD, &self.link(), AT_FDCWD, path, flags) {
            // A damaged one that could not be removed would stand in the way of each later start.
            Err(Errno::EEXIST) => Err(io::Error::from(io::ErrorKind::AlreadyExists)),
            result => Ok(result?),
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // The cache's owner can do no more about it than this.
            let _ = fs::remove_file(name);
        }
    }
}
