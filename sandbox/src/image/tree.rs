//! What tells one state of a directory tree from another.
//!
//! The walk takes each entry's path, type, mode, owner, size, times, inode, device and link target; a change of a
//! file's contents shows in its time of change, which cannot be set. Nothing but directories is opened.
//!
//! A mount point inside the tree is an error: what stands there belongs to another file system (`/proc`, for example)
//! and is hardly meant to go into an image.

use std::ffi::{CStr, CString, OsStr};
use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open, openat, readlinkat};
use nix::sys::stat::Mode;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{AccessFlags, faccessat};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Goes into every key: another way to make images gives another key.
const FORMAT: &[u8] = b"husk-erofs-1";

/// What names a state of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key([u8; 32]);

impl Key {
    /// The byte of the lock file that stands for this key.
    pub(super) fn offset(&self) -> i64 {
        let [a, b, c, d, ..] = self.0;
        i64::from(u32::from_le_bytes([a, b, c, d]))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Seconds and nanoseconds since the epoch.
pub(super) type Time = (i64, u32);

/// The clock that file systems take times from: it stands still within a tick.
pub(super) fn coarse_now() -> io::Result<Time> {
    let now = clock_gettime(ClockId::CLOCK_REALTIME_COARSE)?;
    Ok((now.tv_sec(), u32::try_from(now.tv_nsec()).unwrap_or(0)))
}

/// The state of a directory tree.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) key: Key,
    /// The latest change of any entry.
    pub(super) newest: Time,
}

/// Why a directory cannot be a root file system.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum TreeError {
    #[error("the root file system {} does not exist", .0.display())]
    Missing(PathBuf),
    #[error("the root file system {} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    #[error("the root file system {} is empty", .0.display())]
    Empty(PathBuf),
    #[error("{} is a mount point inside the root file system; unmount it first", .0.display())]
    MountPoint(PathBuf),
    #[error("{} cannot be read", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Tree {
    /// Walks the tree below `root`.
    ///
    /// # Errors
    /// What is missing, empty, unreadable or a mount point.
    pub(super) fn read(root: &Path) -> Result<Self, TreeError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let top = open(root, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::ENOENT => TreeError::Missing(root.into()),
            Errno::ENOTDIR => TreeError::NotADirectory(root.into()),
            errno => read_error(root, errno),
        })?;
        let mut walk = Walk {
            root,
            hash: Sha256::new(),
            newest: (0, 0),
            pending: Vec::new(),
        };
        walk.hash.update(FORMAT);
        let meta = statx(&top, c"").map_err(|errno| read_error(root, errno))?;
        walk.add(Path::new(""), &meta, b"");
        let mut current = PathBuf::new();
        let mut directory = Dir::from_fd(top.try_clone().map_err(|source| TreeError::Read {
            path: root.into(),
            source,
        })?)
        .map_err(|errno| read_error(root, errno))?;
        loop {
            let entries = walk.directory(&current, &mut directory)?;
            if entries == 0 && current.as_os_str().is_empty() {
                return Err(TreeError::Empty(root.into()));
            }
            let Some(next) = walk.pending.pop() else { break };
            let opened = openat(&top, &next, flags | OFlag::O_NOFOLLOW, Mode::empty()).and_then(Dir::from_fd);
            directory = opened.map_err(|errno| read_error(&root.join(&next), errno))?;
            current = next;
        }
        Ok(Self {
            key: Key(walk.hash.finalize().into()),
            newest: walk.newest,
        })
    }
}

/// The first regular file below `root` that may not be read, and why not.
pub(super) fn unreadable(root: &Path) -> Option<TreeError> {
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        // What has vanished, or cannot be listed, is no file that cannot be read.
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => pending.push(entry.path()),
                Ok(kind) if kind.is_file() => {
                    if let Err(errno) = faccessat(AT_FDCWD, &entry.path(), AccessFlags::R_OK, AtFlags::AT_EACCESS) {
                        return Some(read_error(&entry.path(), errno));
                    }
                }
                _ => {}
            }
        }
    }
    None
}

fn read_error(path: &Path, errno: Errno) -> TreeError {
    TreeError::Read {
        path: path.into(),
        source: errno.into(),
    }
}

struct Walk<'a> {
    root: &'a Path,
    hash: Sha256,
    newest: Time,
    /// Directories that are still to be read, relative to the root.
    pending: Vec<PathBuf>,
}

impl Walk<'_> {
    /// Adds a directory's entries, in the order of their names; says how many there are.
    fn directory(&mut self, path: &Path, directory: &mut Dir) -> Result<usize, TreeError> {
        let failed = |errno| read_error(&self.root.join(path), errno);
        let mut names: Vec<CString> = Vec::new();
        for entry in directory.iter() {
            let name = entry.map_err(failed)?.file_name().to_owned();
            if name.as_c_str() != c"." && name.as_c_str() != c".." {
                names.push(name);
            }
        }
        names.sort();
        for name in &names {
            self.entry(path, directory, name)?;
        }
        Ok(names.len())
    }

    fn entry(&mut self, parent: &Path, directory: &Dir, name: &CStr) -> Result<(), TreeError> {
        let path = parent.join(OsStr::from_bytes(name.to_bytes()));
        let failed = |errno| read_error(&self.root.join(&path), errno);
        let meta = statx(directory, name).map_err(failed)?;
        if meta.stx_attributes & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0 {
            return Err(TreeError::MountPoint(self.root.join(path)));
        }
        let kind = u32::from(meta.stx_mode) & libc::S_IFMT;
        let target = if kind == libc::S_IFLNK {
            readlinkat(directory, name).map_err(failed)?.into_vec()
        } else {
            Vec::new()
        };
        self.add(&path, &meta, &target);
        if kind == libc::S_IFDIR {
            self.pending.push(path);
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, meta: &libc::statx, target: &[u8]) {
        for text in [path.as_os_str().as_bytes(), target] {
            self.hash.update(text.len().to_le_bytes());
            self.hash.update(text);
        }
        let numbers = [
            u64::from(meta.stx_mode),
            u64::from(meta.stx_uid) << 32 | u64::from(meta.stx_gid),
            meta.stx_ino,
            meta.stx_size,
            u64::from(meta.stx_dev_major) << 32 | u64::from(meta.stx_dev_minor),
            u64::from(meta.stx_rdev_major) << 32 | u64::from(meta.stx_rdev_minor),
            u64::from(meta.stx_nlink),
            meta.stx_mtime.tv_sec.cast_unsigned(),
            u64::from(meta.stx_mtime.tv_nsec),
            meta.stx_ctime.tv_sec.cast_unsigned(),
            u64::from(meta.stx_ctime.tv_nsec),
        ];
        for number in numbers {
            self.hash.update(number.to_le_bytes());
        }
        self.newest = self.newest.max((meta.stx_ctime.tv_sec, meta.stx_ctime.tv_nsec));
    }
}

/// statx(2) of an entry, or with an empty name of the directory itself; symlinks are not followed.
#[allow(unsafe_code)]
fn statx(directory: &impl AsRawFd, name: &CStr) -> Result<libc::statx, Errno> {
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH | libc::AT_NO_AUTOMOUNT;
    let mut meta = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the descriptor is open and the name ends in a zero byte, as their types say; the kernel writes no more
    // than the structure to which the last pointer leads.
    let result = unsafe {
        libc::statx(
            directory.as_raw_fd(),
            name.as_ptr(),
            flags,
            libc::STATX_BASIC_STATS,
            meta.as_mut_ptr(),
        )
    };
    Errno::result(result)?;
    // SAFETY: the structure consists of integers, for which the zeroes that it was made of are valid.
    Ok(unsafe { meta.assume_init() })
}
