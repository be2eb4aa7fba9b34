//! A root directory as an EROFS image of one file.
//!
//! ```text
//! ┌────────────┬──────────────────┬─────────────────┬───────────────────┐
//! │ superblock │ contents of files│ inodes          │ long directories  │
//! └────────────┴──────────────────┴─────────────────┴───────────────────┘
//! ```
//!
//! The directory is walked by descriptors: what somebody puts in another's place meanwhile is not followed. Owners,
//! modes, times, hard links, devices, holes and extended attributes are kept as far as they may be read; nothing needs
//! privileges.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, SeekFrom, Stat};
use rustix::io::Errno;
use thiserror::Error;

use crate::entry::{Entry, Kind, Meta, Xattr};
use crate::erofs::{self, ErofsError};
use crate::layer::{LayerError, LayerWriter, is_kept};
use crate::limits::Limits;
use crate::tar::{Segment, TarError};
use crate::tree::{Tree, TreeError};

/// Why a directory cannot be converted.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum DirectoryError {
    #[error("{} cannot be read", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("{} has become shorter while it was read", .0.display())]
    Changed(PathBuf),
    #[error("{} cannot be converted", .0.display())]
    Entry(PathBuf, #[source] LayerError),
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error(transparent)]
    Erofs(#[from] ErofsError),
}

/// What a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A whole root file system.
    Root,
    /// The upper layer of an overlay (overlayfs.rst in the kernel's documentation): its image is to lie over the same lower
    /// layers, so the extended attributes by which it hides or moves theirs are kept. Whiteouts are devices.
    Upper,
}

/// Writes the image of the directory `root` into an empty file. `uuid` tells images from each other.
///
/// # Errors
/// What cannot be read, by its path; the file cannot be written.
pub fn convert(root: &Path, role: Role, uuid: [u8; 16], file: &File, limits: &Limits) -> Result<(), DirectoryError> {
    let opened = rustix::fs::open(root, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let top = opened.map_err(|errno| read_error(root, errno))?;
    let mut walk = Walk {
        root,
        role,
        writer: LayerWriter::behind_superblock(file, limits)
            .map_err(|error| DirectoryError::Entry(root.into(), error))?,
        linked: HashMap::new(),
        pending: Vec::new(),
        buffer: vec![0; 64 << 10],
    };
    walk.directory(
        Path::new(""),
        top.try_clone()
            .map_err(|error| DirectoryError::Read(root.into(), error))?,
    )?;
    while let Some(path) = walk.pending.pop() {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let opened = rustix::fs::openat2(&top, &path, flags, Mode::empty(), resolve);
        walk.directory(&path, opened.map_err(|errno| read_error(&root.join(&path), errno))?)?;
    }
    let (entries, blocks) = walk.writer.into_parts();
    let mut tree = Tree::new(limits);
    tree.apply(entries)?;
    Ok(erofs::write_behind(&tree, uuid, blocks)?)
}

fn read_error(path: &Path, errno: Errno) -> DirectoryError {
    DirectoryError::Read(path.into(), errno.into())
}

struct Walk<'a> {
    root: &'a Path,
    role: Role,
    writer: LayerWriter<'a>,
    /// The first path of each inode that has several, by device and inode.
    linked: HashMap<(u64, u64), Vec<u8>>,
    /// Directories that are still to be read, relative to the root.
    pending: Vec<PathBuf>,
    /// As long as the longest list of names and the longest value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
    buffer: Vec<u8>,
}

impl Walk<'_> {
    /// Adds a directory and what is in it, but for what its directories hold.
    fn directory(&mut self, path: &Path, directory: OwnedFd) -> Result<(), DirectoryError> {
        let failed = |errno| read_error(&self.root.join(path), errno);
        let stat = rustix::fs::fstat(&directory).map_err(failed)?;
        let meta = self.meta(path, &stat, &directory)?;
        let mut names: Vec<CString> = Vec::new();
        for entry in Dir::read_from(&directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_owned();
            if name.as_c_str() != c"." && name.as_c_str() != c".." {
                names.push(name);
            }
        }
        names.sort();
        self.add(path, Kind::Directory, meta)?;
        for name in &names {
            self.entry(&path.join(OsStr::from_bytes(name.to_bytes())), &directory, name)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, directory: &OwnedFd, name: &CStr) -> Result<(), DirectoryError> {
        let failed = |errno| read_error(&self.root.join(path), errno);
        let seen = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        let kind = FileType::from_raw_mode(seen.st_mode);
        if kind == FileType::Directory {
            self.pending.push(path.to_owned());
            return Ok(());
        }
        // Only what is a regular file is opened for reading; a FIFO that comes in its place must not block.
        let access = match kind {
            FileType::RegularFile => OFlags::RDONLY | OFlags::NONBLOCK,
            _ => OFlags::PATH,
        };
        let opened = rustix::fs::openat(
            directory,
            name,
            access | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let file = opened.map_err(failed)?;
        let stat = rustix::fs::fstat(&file).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) != kind {
            return Err(DirectoryError::Changed(self.root.join(path)));
        }
        if stat.st_nlink > 1 {
            let bytes = path.as_os_str().as_bytes().to_vec();
            if let Some(first) = self.linked.get(&(stat.st_dev, stat.st_ino)) {
                let kind = Kind::Link(first.clone());
                return self.add(path, kind, Meta::default());
            }
            self.linked.insert((stat.st_dev, stat.st_ino), bytes);
        }
        let meta = self.meta(path, &stat, &file)?;
        let kind = match kind {
            FileType::RegularFile => self.file(path, &stat, file.into())?,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&file, c"", Vec::new()).map_err(failed)?;
                Kind::Symlink(target.into_bytes())
            }
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            device => Kind::Device {
                block: device == FileType::BlockDevice,
                major: rustix::fs::major(stat.st_rdev),
                minor: rustix::fs::minor(stat.st_rdev),
            },
        };
        self.add(path, kind, meta)
    }

    fn file(&mut self, path: &Path, stat: &Stat, file: File) -> Result<Kind, DirectoryError> {
        let size = stat.st_size.unsigned_abs();
        let has_holes = stat.st_blocks.unsigned_abs().saturating_mul(512) < size;
        let segments = match has_holes {
            true => segments(&file, size).map_err(|errno| read_error(&self.root.join(path), errno))?,
            false => None,
        };
        let written = match &segments {
            Some(segments) => {
                let mut parts = Parts {
                    file: &file,
                    segments,
                    done: 0,
                };
                self.writer.file(size, Some(segments), &mut parts)
            }
            None => self.writer.file(size, None, &mut &file),
        };
        written.map(Kind::File).map_err(|error| match error {
            LayerError::Tar(TarError::Truncated) => DirectoryError::Changed(self.root.join(path)),
            LayerError::Tar(TarError::Read(source)) => DirectoryError::Read(self.root.join(path), source),
            error => DirectoryError::Entry(self.root.join(path), error),
        })
    }

    fn meta(&mut self, path: &Path, stat: &Stat, file: impl AsFd) -> Result<Meta, DirectoryError> {
        let xattrs = xattrs(file, self.role, &mut self.buffer);
        let xattrs = xattrs.map_err(|errno| read_error(&self.root.join(path), errno))?;
        Ok(Meta {
            mode: u16::try_from(stat.st_mode & 0o7777).unwrap_or(0),
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: stat.st_mtime,
            mtime_ns: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            xattrs,
        })
    }

    fn add(&mut self, path: &Path, kind: Kind, meta: Meta) -> Result<(), DirectoryError> {
        let entry = Entry {
            path: path.as_os_str().as_bytes().to_vec(),
            kind,
            meta,
        };
        let added = self.writer.add(entry);
        added.map_err(|error| DirectoryError::Entry(self.root.join(path), error))
    }
}

impl Role {
    fn keeps(self, xattr: &[u8]) -> bool {
        let of_upper: [&[u8]; 2] = [b"trusted.overlay.opaque", b"trusted.overlay.redirect"];
        self == Self::Upper && of_upper.contains(&xattr)
    }
}

/// Extended attributes, through the descriptor's name: a descriptor that cannot be read from has no other way.
fn xattrs(file: impl AsFd, role: Role, buffer: &mut [u8]) -> Result<Vec<Xattr>, Errno> {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    let list = match rustix::fs::listxattr(&path, &mut *buffer) {
        Ok(length) => buffer[..length].to_vec(),
        // The file system, or this kind of file in it, has none.
        Err(Errno::OPNOTSUPP | Errno::ACCESS | Errno::PERM) => return Ok(Vec::new()),
        Err(errno) => return Err(errno),
    };
    let mut xattrs = Vec::new();
    for name in list
        .split(|byte| *byte == 0)
        .filter(|name| is_kept(name) || role.keeps(name))
    {
        match rustix::fs::getxattr(&path, name, &mut *buffer) {
            Ok(length) => xattrs.push((name.to_vec(), buffer[..length].to_vec())),
            // Gone meanwhile, or of a file system that lists what it does not give.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    xattrs.sort();
    Ok(xattrs)
}

/// The parts of a file that are not holes; none if the file system does not tell.
fn segments(file: &File, size: u64) -> Result<Option<Vec<Segment>>, Errno> {
    let mut segments = Vec::new();
    let mut position = 0;
    while position < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(position)) {
            Ok(start) => start,
            // A hole up to the end.
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let end = match rustix::fs::seek(file, SeekFrom::Hole(start)) {
            Ok(end) => end.min(size),
            Err(errno) => return Err(errno),
        };
        if end <= start {
            break;
        }
        segments.push(Segment {
            offset: start,
            length: end - start,
        });
        position = end;
    }
    Ok(Some(segments))
}

/// The segments of a file one behind the other.
struct Parts<'a> {
    file: &'a File,
    segments: &'a [Segment],
    /// Bytes of the first segment that were read.
    done: u64,
}

impl Read for Parts<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(segment) = self.segments.first() else {
            return Ok(0);
        };
        let left = segment.length - self.done;
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let position = segment.offset + self.done;
        let count = std::os::unix::fs::FileExt::read_at(self.file, &mut buffer[..most], position)?;
        self.done += count as u64;
        if self.done == segment.length {
            self.segments = &self.segments[1..];
            self.done = 0;
        }
        Ok(count)
    }
}
