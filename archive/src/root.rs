//! A directory that no path leads out of.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};

use crate::{ArchiveError, at};

/// As many symbolic links one after the other are followed (`MAXSYMLINKS` of Linux).
const MAX_LINKS: usize = 40;

/// What lies at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A named pipe, a socket or a device.
    Other,
}

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The path without the symbolic links at its end that were followed.
    pub path: PathBuf,
    /// What lies there; nothing if it is not set.
    pub kind: Option<Kind>,
}

/// A directory as the root of all paths: `..` and absolute symbolic links end at it.
#[derive(Debug)]
pub struct Root(OwnedFd);

impl From<OwnedFd> for Root {
    fn from(directory: OwnedFd) -> Self {
        Self(directory)
    }
}

impl Root {
    /// The root at a path.
    ///
    /// # Errors
    /// There is no directory.
    pub fn open(path: &Path) -> Result<Self, ArchiveError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        open(path, flags, Mode::empty()).map(Self).map_err(at("opened", path))
    }

    /// What lies at a path; `follow` says whether a symbolic link at its end is followed, which may then lead to nothing.
    ///
    /// # Errors
    /// The way there is not passable.
    pub fn look(&self, path: &Path, follow: bool) -> Result<Found, ArchiveError> {
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            let fd = match open_in(self.0.as_fd(), &path, OFlag::O_PATH | OFlag::O_NOFOLLOW) {
                Ok(fd) => fd,
                Err(Errno::ENOENT) => return Ok(Found { path, kind: None }),
                Err(source) => return Err(at("found", path)(source)),
            };
            let kind = kind(&fstat(&fd).map_err(at("looked at", &path))?);
            if kind != Kind::Symlink || !follow {
                let kind = Some(kind);
                return Ok(Found { path, kind });
            }
            let target = readlinkat(&fd, "").map_err(at("read", &path))?;
            // An absolute target replaces all before it.
            path = path.parent().unwrap_or(Path::new("/")).join(target);
        }
        Err(at("found", path)(Errno::ELOOP))
    }

    /// Opens the directory at a path, over symbolic links.
    pub(crate) fn directory(&self, path: &Path) -> Result<OwnedFd, ArchiveError> {
        open_in(self.0.as_fd(), path, OFlag::O_PATH | OFlag::O_DIRECTORY).map_err(at("opened", path))
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

pub(crate) fn kind(stat: &FileStat) -> Kind {
    match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFDIR => Kind::Directory,
        SFlag::S_IFREG => Kind::File,
        SFlag::S_IFLNK => Kind::Symlink,
        _ => Kind::Other,
    }
}

/// Opens a path as if the directory were `/`.
pub(crate) fn open_in(directory: BorrowedFd<'_>, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    resolve(directory, path, flags, ResolveFlag::RESOLVE_IN_ROOT)
}

/// Opens a path below the directory that leads over no symbolic link.
pub(crate) fn open_below(directory: BorrowedFd<'_>, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let strict = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    resolve(directory, path, flags, strict)
}

fn resolve(directory: BorrowedFd<'_>, path: &Path, flags: OFlag, how: ResolveFlag) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(how | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    loop {
        match openat2(directory, path, how) {
            // The kernel asks for another try when a rename was going on beside a `..`.
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            result => return result,
        }
    }
}
