//! Copying a directory's contents into a new file system (`tmpcopyup`).

use std::fs::{self, File};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstat, fstatat, mkdirat, mknodat};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, symlinkat};

use super::super::paths::by_descriptor;
use crate::sys::errno;

/// Directories in directories; each costs two descriptors.
const MAX_DEPTH: usize = 200;

/// Copies everything in `from` to `to`, with owners, modes and times, and with `own` gives `to` the owner of `from`.
///
/// No symbolic link is followed, so that nothing outside is reached.
pub(super) fn copy_up(from: &OwnedFd, to: BorrowedFd<'_>, own: bool) -> nix::Result<()> {
    // What stands for a path only cannot be listed.
    let from = openat(from, ".", directory(), Mode::empty())?;
    let to = openat(to, ".", directory(), Mode::empty())?;
    copy_directory(&from, &to, 0)?;
    if own {
        let (uid, gid) = owner(&fstat(&from)?);
        fchown(&to, uid, gid)?;
    }
    Ok(())
}

fn directory() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

fn copy_directory(from: &OwnedFd, to: &OwnedFd, depth: usize) -> nix::Result<()> {
    if depth > MAX_DEPTH {
        return Err(Errno::ENAMETOOLONG);
    }
    for entry in fs::read_dir(by_descriptor(from)).map_err(|error| errno(&error))? {
        let name = entry.map_err(|error| errno(&error))?.file_name();
        let name = name.as_os_str();
        let status = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let kind = SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits());
        let mode = Mode::from_bits_truncate(status.st_mode & 0o7777);
        match kind {
            SFlag::S_IFDIR => {
                mkdirat(to, name, Mode::S_IRWXU)?;
                let (from, to) = (
                    openat(from, name, directory(), Mode::empty())?,
                    openat(to, name, directory(), Mode::empty())?,
                );
                copy_directory(&from, &to, depth + 1)?;
            }
            SFlag::S_IFREG => {
                let read = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
                let write = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
                let mut source = File::from(openat(from, name, read, Mode::empty())?);
                let mut target = File::from(openat(to, name, write, Mode::S_IRUSR | Mode::S_IWUSR)?);
                io::copy(&mut source, &mut target).map_err(|error| errno(&error))?;
            }
            SFlag::S_IFLNK => symlinkat(readlinkat(from, name)?.as_os_str(), to, name)?,
            _ => mknodat(to, name, kind, mode, status.st_rdev)?,
        }
        let (uid, gid) = owner(&status);
        fchownat(to, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if kind != SFlag::S_IFLNK {
            // It was made here a moment ago and is no link. A change of the owner has taken set-id bits away.
            fchmodat(to, name, mode, FchmodatFlags::FollowSymlink)?;
        }
        let (accessed, modified) = times(&status);
        utimensat(to, name, &accessed, &modified, UtimensatFlags::NoFollowSymlink)?;
    }
    Ok(())
}

fn owner(status: &FileStat) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(status.st_uid)), Some(Gid::from_raw(status.st_gid)))
}

fn times(status: &FileStat) -> (TimeSpec, TimeSpec) {
    (
        TimeSpec::new(status.st_atime, status.st_atime_nsec),
        TimeSpec::new(status.st_mtime, status.st_mtime_nsec),
    )
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_tree_is_copied_without_following_links() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("a/file"), "text").unwrap();
        fs::set_permissions(from.join("a/file"), fs::Permissions::from_mode(0o4750)).unwrap();
        fs::set_permissions(from.join("a/b"), fs::Permissions::from_mode(0o1777)).unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
        nix::unistd::mkfifo(&from.join("fifo"), Mode::S_IRUSR).unwrap();
        let open = |path: &std::path::Path| OwnedFd::from(File::open(path).unwrap());
        copy_up(&open(&from), open(&to).as_fd(), true).unwrap();
        assert_eq!(fs::read_to_string(to.join("a/file")).unwrap(), "text");
        assert_eq!(fs::metadata(to.join("a/file")).unwrap().mode() & 0o7777, 0o4750);
        assert_eq!(fs::metadata(to.join("a/b")).unwrap().mode() & 0o7777, 0o1777);
        assert_eq!(fs::read_link(to.join("link")).unwrap().as_os_str(), "/etc/passwd");
        assert!(to.join("a/b").is_dir() && !to.join("fifo").is_file());
        let times = |path: &std::path::Path| fs::symlink_metadata(path).unwrap().modified().unwrap();
        assert_eq!(times(&from.join("a/file")), times(&to.join("a/file")));
        let again = copy_up(&open(&from), open(&to).as_fd(), true);
        assert_eq!(again.unwrap_err(), Errno::EEXIST);
    }
}
