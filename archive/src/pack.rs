//! Files into an archive.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::fcntl::{OFlag, readlinkat};
use nix::sys::stat::{FileStat, SFlag, fstat, major, minor};

use crate::root::open_in;
use crate::tar::{Member, Type, Writer};
use crate::{ArchiveError, Root, at};

/// Writes what lies at a path, with everything below it, as an archive in which it is called `name`. A symbolic link at the
/// path's end is followed if `follow` is set, all others are written as they are. Sockets are left out.
///
/// # Errors
/// What cannot be read; the archive cannot be written.
pub fn pack(root: &Root, path: &Path, follow: bool, name: &[u8], out: impl Write) -> Result<(), ArchiveError> {
    let mut packing = Packing {
        out: Writer::new(out),
        links: HashMap::new(),
    };
    let flag = match follow {
        true => OFlag::empty(),
        false => OFlag::O_NOFOLLOW,
    };
    packing.add(root.as_fd(), path, flag, path, name)?;
    packing.out.finish().map_err(ArchiveError::Write)
}

struct Packing<W> {
    out: Writer<W>,
    /// The names of files that have more than one, by device and inode.
    links: HashMap<(u64, u64), Vec<u8>>,
}

impl<W: Write> Packing<W> {
    /// Adds what lies at `path` of a directory; `shown` is what it is called in an error.
    fn add(
        &mut self,
        directory: BorrowedFd<'_>,
        path: &Path,
        follow: OFlag,
        shown: &Path,
        name: &[u8],
    ) -> Result<(), ArchiveError> {
        let found = open_in(directory, path, OFlag::O_PATH | follow).map_err(at("opened", shown))?;
        let stat = fstat(&found).map_err(at("looked at", shown))?;
        let Some(kind) = kind(&stat) else { return Ok(()) };
        let mut member = member(&stat, kind, name);
        match kind {
            Type::Directory => return self.add_directory(directory, path, follow, shown, member),
            Type::Symlink => {
                member.link = readlinkat(&found, "").map_err(at("read", shown))?.into_vec();
            }
            _ => {}
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                member.kind = Type::Link;
                member.size = 0;
                member.link.clone_from(first);
                return self.out.member(&member).map_err(ArchiveError::Write);
            }
            self.links.insert((stat.st_dev, stat.st_ino), name.to_vec());
        }
        if kind == Type::File {
            // What was looked at may have been replaced since: a pipe must not block, and only a file is read.
            let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | follow;
            let file = open_in(directory, path, flags).map_err(at("opened", shown))?;
            return self.add_file(file, shown, name);
        }
        self.out.member(&member).map_err(ArchiveError::Write)
    }

    fn add_directory(
        &mut self,
        directory: BorrowedFd<'_>,
        path: &Path,
        follow: OFlag,
        shown: &Path,
        mut member: Member,
    ) -> Result<(), ArchiveError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | follow;
        let opened = open_in(directory, path, flags).map_err(at("opened", shown))?;
        let mut names = Vec::new();
        let copy = opened.try_clone().map_err(|source| ArchiveError::Contents {
            path: shown.to_owned(),
            source,
        })?;
        for entry in Dir::from_fd(copy).map_err(at("read", shown))?.iter() {
            let entry = entry.map_err(at("read", shown))?;
            match entry.file_name().to_bytes() {
                b"." | b".." => {}
                name => names.push(name.to_vec()),
            }
        }
        names.sort_unstable();
        let name = member.path.clone();
        member.path.push(b'/');
        self.out.member(&member).map_err(ArchiveError::Write)?;
        for child in names {
            let path = PathBuf::from(OsStr::from_bytes(&child));
            let name = [&name[..], b"/", &child].concat();
            self.add(opened.as_fd(), &path, OFlag::O_NOFOLLOW, &shown.join(&path), &name)?;
        }
        Ok(())
    }

    fn add_file(&mut self, file: OwnedFd, shown: &Path, name: &[u8]) -> Result<(), ArchiveError> {
        let stat = fstat(&file).map_err(at("looked at", shown))?;
        let Some(Type::File) = kind(&stat) else {
            return Err(at("read", shown)(nix::errno::Errno::ESTALE));
        };
        let member = member(&stat, Type::File, name);
        self.out.member(&member).map_err(ArchiveError::Write)?;
        let mut file = File::from(file);
        let mut chunk = vec![0; 64 << 10];
        let mut left = member.size;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
            let count = match file.read(&mut chunk[..most]) {
                // It has become shorter; its length is said already.
                Ok(0) => {
                    chunk.fill(0);
                    most
                }
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => {
                    return Err(ArchiveError::Contents {
                        path: shown.to_owned(),
                        source,
                    });
                }
            };
            self.out.contents(&chunk[..count]).map_err(ArchiveError::Write)?;
            left -= count as u64;
        }
        self.out.end_contents().map_err(ArchiveError::Write)
    }
}

/// What an archive can hold of it.
fn kind(stat: &FileStat) -> Option<Type> {
    Some(match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFREG => Type::File,
        SFlag::S_IFDIR => Type::Directory,
        SFlag::S_IFLNK => Type::Symlink,
        SFlag::S_IFIFO => Type::Fifo,
        SFlag::S_IFCHR => Type::CharDevice,
        SFlag::S_IFBLK => Type::BlockDevice,
        _ => return None,
    })
}

fn member(stat: &FileStat, kind: Type, name: &[u8]) -> Member {
    let number = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    Member {
        path: name.to_vec(),
        link: Vec::new(),
        kind,
        mode: u16::try_from(stat.st_mode & 0o7777).unwrap_or_default(),
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: stat.st_mtime,
        mtime_ns: 0,
        major: number(major(stat.st_rdev)),
        minor: number(minor(stat.st_rdev)),
        size: match kind {
            Type::File => u64::try_from(stat.st_size).unwrap_or_default(),
            _ => 0,
        },
        xattrs: Vec::new(),
        sparse: None,
    }
}
