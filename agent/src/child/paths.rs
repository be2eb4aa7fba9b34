//! Paths inside a container's root, resolved as if the root were `/` already.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::Result;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{Mode, mkdirat};

/// A directory that no path leads out of.
#[derive(Debug)]
pub(super) struct Root(OwnedFd);

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Root {
    fn from(directory: OwnedFd) -> Self {
        Self(directory)
    }
}

impl Root {
    pub(super) fn open(path: &Path) -> Result<Self> {
        open(
            path,
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .map(Self)
    }

    /// What a path leads to, over symbolic links, without opening it.
    pub(super) fn find(&self, path: &str) -> Result<OwnedFd> {
        self.open_with(path, OFlag::O_PATH)
    }

    /// Opens what a path leads to.
    pub(super) fn open_with(&self, path: &str, flags: OFlag) -> Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let path = if path.is_empty() { "." } else { path };
        loop {
            match openat2(&self.0, path, how) {
                // The kernel asks for another try when a rename was going on beside a `..`.
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                result => return result,
            }
        }
    }

    /// The directory at a path; what is missing of it is made.
    pub(super) fn directory(&self, path: &str) -> Result<OwnedFd> {
        match self.open_with(path, OFlag::O_PATH | OFlag::O_DIRECTORY) {
            Err(Errno::ENOENT) => {}
            result => return result,
        }
        let mut at = self.find(".")?;
        let mut way = String::new();
        for name in names(path) {
            way.push('/');
            way.push_str(name);
            at = match self.open_with(&way, OFlag::O_PATH | OFlag::O_DIRECTORY) {
                Err(Errno::ENOENT) => {
                    mkdirat(&at, name, Mode::from_bits_truncate(0o755))?;
                    self.open_with(&way, OFlag::O_PATH | OFlag::O_DIRECTORY)?
                }
                result => result?,
            };
        }
        Ok(at)
    }

    /// The file at a path; when it is missing an empty one is made.
    pub(super) fn file(&self, path: &str) -> Result<OwnedFd> {
        match self.find(path) {
            Err(Errno::ENOENT) => {}
            result => return result,
        }
        let (parent, name) = self.parent(path)?;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        openat(&parent, name, flags, Mode::from_bits_truncate(0o644))?;
        self.find(path)
    }

    /// The directory in which a path's last name lies, made where it is missing, and that name.
    pub(super) fn parent<'a>(&self, path: &'a str) -> Result<(OwnedFd, &'a str)> {
        let path = path.trim_end_matches('/');
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        if matches!(name, "" | "." | "..") {
            return Err(Errno::EINVAL);
        }
        Ok((self.directory(parent)?, name))
    }
}

/// A path by which mount(2) reaches what a descriptor stands for.
pub(super) fn by_descriptor(fd: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// A path's names, without those that say nothing.
fn names(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|name| !matches!(*name, "" | "."))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;

    fn place(fd: &OwnedFd) -> PathBuf {
        fs::read_link(by_descriptor(fd)).unwrap()
    }

    fn root() -> (tempfile::TempDir, PathBuf, Root) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root");
        fs::create_dir(&path).unwrap();
        let root = Root::open(&path).unwrap();
        (directory, path, root)
    }

    #[test]
    fn what_is_missing_is_made() {
        let (_directory, path, root) = root();
        assert_eq!(place(&root.directory("/a/b//c/./d/").unwrap()), path.join("a/b/c/d"));
        assert_eq!(place(&root.directory("/").unwrap()), path);
        assert_eq!(place(&root.file("/a/x/file").unwrap()), path.join("a/x/file"));
        assert!(path.join("a/x/file").is_file());
        assert_eq!(place(&root.file("a/x/file").unwrap()), path.join("a/x/file"));
    }

    #[test]
    fn no_path_leads_out() {
        let (directory, path, root) = root();
        symlink("/", path.join("absolute")).unwrap();
        symlink("../../../..", path.join("relative")).unwrap();
        symlink(directory.path(), path.join("outside")).unwrap();
        assert_eq!(place(&root.directory("/../../x").unwrap()), path.join("x"));
        assert_eq!(place(&root.directory("/absolute/y").unwrap()), path.join("y"));
        assert_eq!(place(&root.directory("/relative/z").unwrap()), path.join("z"));
        // The link's target does not exist inside, and a link is not replaced.
        assert_eq!(root.directory("/outside").unwrap_err(), Errno::EEXIST);
        assert!(root.file("/outside/file").is_err());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn magic_links_are_refused() {
        let root = Root::open(Path::new("/")).unwrap();
        assert_eq!(root.find("/proc/self/exe").unwrap_err(), Errno::ELOOP);
    }

    #[test]
    fn a_path_without_a_last_name_has_no_parent() {
        let (_directory, _path, root) = root();
        for path in ["", "/", "/..", "a/."] {
            assert_eq!(root.parent(path).unwrap_err(), Errno::EINVAL, "{path:?}");
        }
        assert_eq!(root.parent("/a/b/").unwrap().1, "b");
    }

    #[test]
    fn a_file_in_the_way_is_an_error() {
        let (_directory, path, root) = root();
        fs::write(path.join("f"), "").unwrap();
        assert_eq!(root.directory("/f").unwrap_err(), Errno::ENOTDIR);
        assert_eq!(root.directory("/f/g").unwrap_err(), Errno::ENOTDIR);
    }
}
