//! Files out of an archive.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fstatat, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};

use crate::root::{Kind, kind, open_below};
use crate::tar::{Member, Reader, Type};
use crate::{ArchiveError, Root, at};

/// How an archive is unpacked.
#[derive(Clone, Copy, Debug)]
pub struct Unpacking<'a> {
    /// The name that all members must have or lie below; empty: any.
    pub name: &'a [u8],
    /// Whether owners are those of the archive; otherwise files belong to whoever unpacks them, and run with nobody
    /// else's rights.
    pub owners: bool,
}

/// Makes what an archive holds below the directory at a path. Nothing outside of that is touched, whatever the archive and
/// the directory hold, and even if the directory changes meanwhile. What is there already is replaced, but for
/// directories, which are kept, and which nothing else replaces. Bytes behind the archive's end are left in `input`.
///
/// # Errors
/// What the archive may not hold; what cannot be made.
pub fn unpack(root: &Root, directory: &Path, how: Unpacking<'_>, input: impl Read) -> Result<(), ArchiveError> {
    let mut unpacking = Work {
        top: root.directory(directory)?,
        shown: directory.to_owned(),
        how,
        directories: Vec::new(),
    };
    let mut reader = Reader::new(input);
    while let Some(member) = reader.next()? {
        unpacking.add(&member, &mut reader)?;
    }
    unpacking.finish()
}

struct Work<'a> {
    top: OwnedFd,
    /// The top's path, for errors.
    shown: PathBuf,
    how: Unpacking<'a>,
    /// Directories get what they should have when everything is in them.
    directories: Vec<(PathBuf, Member)>,
}

impl Work<'_> {
    fn add(&mut self, member: &Member, contents: &mut Reader<impl Read>) -> Result<(), ArchiveError> {
        let path = self.inside(&member.path)?;
        let Some(name) = path.file_name() else {
            return match member.kind {
                Type::Directory => Ok(()),
                _ => Err(ArchiveError::Outside(OsStr::from_bytes(&member.path).to_owned())),
            };
        };
        let shown = self.shown.join(&path);
        let parent = self.parent(&path)?;
        let parent = parent.as_fd();
        if self.make_room(parent, name, &shown, member.kind)? {
            self.directories.push((path, member.clone()));
            return Ok(());
        }
        match member.kind {
            Type::Directory => {
                mkdirat(parent, name, Mode::S_IRWXU).map_err(at("made", &shown))?;
                self.directories.push((path, member.clone()));
                Ok(())
            }
            Type::File => self.file(parent, name, &shown, member, contents),
            Type::Symlink => {
                symlinkat(OsStr::from_bytes(&member.link), parent, name).map_err(at("made", &shown))?;
                self.own(parent, name, &shown, member)?;
                set_time(parent, name, &shown, member)
            }
            Type::Link => self.link(parent, name, &shown, member),
            Type::Fifo => {
                let mode = Mode::from_bits_truncate(u32::from(member.mode) & 0o777);
                mknodat(parent, name, SFlag::S_IFIFO, mode, 0).map_err(at("made", &shown))?;
                self.own(parent, name, &shown, member)?;
                set_time(parent, name, &shown, member)
            }
            Type::CharDevice | Type::BlockDevice => Err(ArchiveError::Device(shown)),
        }
    }

    /// The path of a member below the destination.
    fn inside(&self, path: &[u8]) -> Result<PathBuf, ArchiveError> {
        let outside = || ArchiveError::Outside(OsString::from_vec(path.to_vec()));
        let mut inside = PathBuf::new();
        for component in Path::new(OsStr::from_bytes(path)).components() {
            match component {
                Component::Normal(name) => inside.push(name),
                Component::CurDir | Component::RootDir => {}
                Component::ParentDir | Component::Prefix(_) => return Err(outside()),
            }
        }
        let name = OsStr::from_bytes(self.how.name);
        if !name.is_empty() && inside.iter().next() != Some(name) {
            return Err(outside());
        }
        Ok(inside)
    }

    /// The directory in which a member lies; what is missing of it is made.
    fn parent(&self, path: &Path) -> Result<OwnedFd, ArchiveError> {
        let mut at_now = self.open(Path::new(""))?;
        let mut way = PathBuf::new();
        for name in path.parent().into_iter().flat_map(Path::iter) {
            way.push(name);
            match mkdirat(&at_now, name, Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(source) => return Err(at("made", self.shown.join(&way))(source)),
            }
            at_now = self.open(&way)?;
        }
        Ok(at_now)
    }

    /// Opens a directory of the destination.
    fn open(&self, path: &Path) -> Result<OwnedFd, ArchiveError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        open_below(self.top.as_fd(), path, flags).map_err(|error| match error {
            Errno::ENOTDIR | Errno::ELOOP => ArchiveError::NotADirectory(self.shown.join(path)),
            source => at("opened", self.shown.join(path))(source),
        })
    }

    /// Removes what a member replaces; says whether it is a directory that stays.
    fn make_room(
        &self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        shown: &Path,
        wanted: Type,
    ) -> Result<bool, ArchiveError> {
        let there = match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => kind(&stat) == Kind::Directory,
            Err(Errno::ENOENT) => return Ok(false),
            Err(source) => return Err(at("looked at", shown)(source)),
        };
        match (there, wanted == Type::Directory) {
            (true, true) => Ok(true),
            (true, false) => Err(ArchiveError::Directory(shown.to_owned())),
            (false, true) => Err(ArchiveError::NotADirectory(shown.to_owned())),
            (false, false) => {
                unlinkat(parent, name, UnlinkatFlags::NoRemoveDir).map_err(at("replaced", shown))?;
                Ok(false)
            }
        }
    }

    fn file(
        &self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        shown: &Path,
        member: &Member,
        contents: &mut Reader<impl Read>,
    ) -> Result<(), ArchiveError> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = openat(parent, name, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(at("made", shown))?;
        let mut file = File::from(made);
        write(&mut file, member, contents).map_err(|source| ArchiveError::Contents {
            path: shown.to_owned(),
            source,
        })?;
        self.attributes(&file, shown, member)
    }

    /// Links a member to another one of the archive.
    fn link(&self, parent: BorrowedFd<'_>, name: &OsStr, shown: &Path, member: &Member) -> Result<(), ArchiveError> {
        let target = self.inside(&member.link)?;
        let outside = || ArchiveError::Outside(OsStr::from_bytes(&member.link).to_owned());
        let last = target.file_name().ok_or_else(outside)?;
        let directory = self.open(target.parent().unwrap_or(Path::new("")))?;
        linkat(&directory, last, parent, name, LinkatFlags::empty()).map_err(at("linked", shown))
    }

    fn own(&self, parent: BorrowedFd<'_>, name: &OsStr, shown: &Path, member: &Member) -> Result<(), ArchiveError> {
        if !self.how.owners {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(member.uid), Gid::from_raw(member.gid));
        fchownat(parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(at("given its owner", shown))
    }

    /// Gives an open file or directory its owner, permissions and time.
    fn attributes(&self, file: &File, shown: &Path, member: &Member) -> Result<(), ArchiveError> {
        if self.how.owners {
            let (uid, gid) = (Uid::from_raw(member.uid), Gid::from_raw(member.gid));
            nix::unistd::fchown(file, Some(uid), Some(gid)).map_err(at("given its owner", shown))?;
        }
        // With another owner the set-id bits would give away the rights of whoever unpacks.
        let bits = if self.how.owners { 0o7777 } else { 0o1777 };
        let failed = |source| ArchiveError::Contents {
            path: shown.to_owned(),
            source,
        };
        file.set_permissions(Permissions::from_mode(u32::from(member.mode) & bits))
            .map_err(failed)?;
        let time = time(member);
        nix::sys::stat::futimens(file, &time, &time).map_err(at("given its time", shown))
    }

    /// Gives directories what they should have, the innermost first.
    fn finish(&self) -> Result<(), ArchiveError> {
        for (path, member) in self.directories.iter().rev() {
            let shown = self.shown.join(path);
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
            let opened = open_below(self.top.as_fd(), path, flags).map_err(at("opened", &shown))?;
            self.attributes(&File::from(opened), &shown, member)?;
        }
        Ok(())
    }
}

/// Writes a file's contents; of a sparse one the parts that are there.
fn write(file: &mut File, member: &Member, contents: &mut Reader<impl Read>) -> io::Result<()> {
    let Some(segments) = &member.sparse else {
        return io::copy(contents, file).map(drop);
    };
    for segment in segments {
        file.seek(SeekFrom::Start(segment.offset))?;
        let copied = io::copy(&mut contents.by_ref().take(segment.length), file)?;
        if copied < segment.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    file.flush()?;
    file.set_len(member.size)
}

fn time(member: &Member) -> TimeSpec {
    TimeSpec::new(member.mtime, i64::from(member.mtime_ns))
}

fn set_time(parent: BorrowedFd<'_>, name: &OsStr, shown: &Path, member: &Member) -> Result<(), ArchiveError> {
    let time = time(member);
    utimensat(parent, name, &time, &time, UtimensatFlags::NoFollowSymlink).map_err(at("given its time", shown))
}
