//! A mount that is nowhere yet. It gets all its properties before it can be seen, and what is done to it later is done
//! to it and not to what a path leads to by then.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::mount::MsFlags;

use crate::sys::mounts as sys;

/// What the kernel says about a mount that fails is a few lines long.
const MAX_DETAIL: usize = 512;

/// A mount that failed.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) source: Errno,
    /// What the file system says about it.
    pub(super) detail: String,
}

impl From<Errno> for Fault {
    fn from(source: Errno) -> Self {
        Self {
            source,
            detail: String::new(),
        }
    }
}

/// An option of a file system and its value.
pub(super) type Choice = (String, Option<String>);

/// Reads options that are joined with commas, as mount(2) takes them. A part that begins with a digit belongs to the
/// one before it: lists of memory nodes (tmpfs(5), mpol) have commas too.
pub(super) fn choices(data: &str) -> Vec<Choice> {
    let mut choices: Vec<Choice> = Vec::new();
    for part in data.split(',').filter(|part| !part.is_empty()) {
        if part.starts_with(|first: char| first.is_ascii_digit())
            && let Some((_, Some(value))) = choices.last_mut()
        {
            value.push(',');
            value.push_str(part);
            continue;
        }
        let (key, value) = match part.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (part, None),
        };
        choices.push((key.to_owned(), value));
    }
    choices
}

/// A mount in the hands of the process that makes it.
#[derive(Debug)]
pub(super) struct Detached(OwnedFd);

impl AsFd for Detached {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Detached> for OwnedFd {
    fn from(mount: Detached) -> Self {
        mount.0
    }
}

impl Detached {
    /// A new file system; `flags` are those of mount(2).
    pub(super) fn file_system(kind: &str, source: &str, flags: MsFlags, choices: &[Choice]) -> Result<Self, Fault> {
        let string = |text: &str| CString::new(text).map_err(|_| Errno::EINVAL);
        let context = sys::open_file_system(&string(kind)?)?;
        let explain = |source| Fault {
            source,
            detail: explanation(&context),
        };
        sys::set_option(context.as_fd(), c"source", Some(&string(source)?)).map_err(explain)?;
        for (flag, name) in [
            (MsFlags::MS_RDONLY, c"ro"),
            (MsFlags::MS_SYNCHRONOUS, c"sync"),
            (MsFlags::MS_DIRSYNC, c"dirsync"),
            (MsFlags::MS_LAZYTIME, c"lazytime"),
            (MsFlags::MS_MANDLOCK, c"mand"),
        ] {
            if flags.contains(flag) {
                sys::set_option(context.as_fd(), name, None).map_err(explain)?;
            }
        }
        for (key, value) in choices {
            let value = value.as_deref().map(string).transpose()?;
            sys::set_option(context.as_fd(), &string(key)?, value.as_deref()).map_err(explain)?;
        }
        let mount = sys::make_mount(context.as_fd(), attributes(flags)).map_err(explain)?;
        Ok(Self(mount))
    }

    /// What a bind mount of a file or directory shows, with the mounts below it or without.
    pub(super) fn tree(source: impl AsFd, recursive: bool) -> nix::Result<Self> {
        sys::clone_tree(source.as_fd(), recursive).map(Self)
    }

    /// Sets and clears attributes (MOUNT_ATTR_*).
    pub(super) fn change(&self, set: u64, clear: u64, recursive: bool) -> nix::Result<()> {
        change(self, set, clear, recursive)
    }

    /// Gives a bind mount these flags of mount(2) and no others, as a second mount(2) with MS_REMOUNT would: how access
    /// times are treated stays unless one of the flags says it.
    pub(super) fn replace(&self, flags: MsFlags) -> nix::Result<()> {
        let times = MsFlags::MS_NOATIME | MsFlags::MS_NODIRATIME | MsFlags::MS_RELATIME | MsFlags::MS_STRICTATIME;
        let mut clear = libc::MOUNT_ATTR_RDONLY
            | libc::MOUNT_ATTR_NOSUID
            | libc::MOUNT_ATTR_NODEV
            | libc::MOUNT_ATTR_NOEXEC
            | libc::MOUNT_ATTR_NOSYMFOLLOW;
        if flags.intersects(times) {
            clear |= libc::MOUNT_ATTR__ATIME | libc::MOUNT_ATTR_NODIRATIME;
        }
        self.change(attributes(flags), clear, false)
    }

    /// Sets the propagation (MS_SHARED and its like, each perhaps with MS_REC).
    pub(super) fn propagate(&self, kind: MsFlags) -> nix::Result<()> {
        propagate(self, kind)
    }

    /// Shows other owners, as the mappings of a user namespace say.
    pub(super) fn map_owners(&self, namespace: &OwnedFd, recursive: bool) -> nix::Result<()> {
        let number = std::os::fd::AsRawFd::as_raw_fd(namespace);
        let attributes = libc::mount_attr {
            attr_set: libc::MOUNT_ATTR_IDMAP,
            userns_fd: u64::from(number.cast_unsigned()),
            ..none()
        };
        sys::set_attributes(self.as_fd(), &attributes, recursive)
    }

    /// Puts it over a file or directory.
    pub(super) fn attach(&self, target: &impl AsFd) -> nix::Result<()> {
        sys::attach(self.as_fd(), target.as_fd())
    }
}

/// Sets and clears attributes of the mount of which a descriptor is the root.
pub(super) fn change(mount: &impl AsFd, set: u64, clear: u64, recursive: bool) -> nix::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        // Whoever sets how access times are treated has to clear it as well.
        attr_clr: clear & !(set & !libc::MOUNT_ATTR__ATIME),
        ..none()
    };
    sys::set_attributes(mount.as_fd(), &attributes, recursive)
}

/// Sets the propagation of the mount of which a descriptor is the root.
pub(super) fn propagate(mount: &impl AsFd, kind: MsFlags) -> nix::Result<()> {
    let attributes = libc::mount_attr {
        propagation: (kind - MsFlags::MS_REC).bits(),
        ..none()
    };
    sys::set_attributes(mount.as_fd(), &attributes, kind.contains(MsFlags::MS_REC))
}

fn none() -> libc::mount_attr {
    libc::mount_attr {
        attr_set: 0,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    }
}

/// Flags of mount(2) as attributes of a mount.
pub(super) fn attributes(flags: MsFlags) -> u64 {
    let mut attributes = 0;
    for (flag, attribute) in [
        (MsFlags::MS_RDONLY, libc::MOUNT_ATTR_RDONLY),
        (MsFlags::MS_NOSUID, libc::MOUNT_ATTR_NOSUID),
        (MsFlags::MS_NODEV, libc::MOUNT_ATTR_NODEV),
        (MsFlags::MS_NOEXEC, libc::MOUNT_ATTR_NOEXEC),
        (MsFlags::MS_NODIRATIME, libc::MOUNT_ATTR_NODIRATIME),
        (NOSYMFOLLOW, libc::MOUNT_ATTR_NOSYMFOLLOW),
    ] {
        if flags.contains(flag) {
            attributes |= attribute;
        }
    }
    // They exclude each other; mount(2) decides in this order, and takes "relatime" where none is given.
    if flags.contains(MsFlags::MS_STRICTATIME) {
        attributes |= libc::MOUNT_ATTR_STRICTATIME;
    } else if flags.contains(MsFlags::MS_NOATIME) {
        attributes |= libc::MOUNT_ATTR_NOATIME;
    }
    attributes
}

/// MS_NOSYMFOLLOW of linux/mount.h.
pub(super) const NOSYMFOLLOW: MsFlags = MsFlags::from_bits_retain(0x100);

/// The lines that the kernel has to say about a configuration: "e tmpfs: Bad value for 'size'".
fn explanation(context: &OwnedFd) -> String {
    let mut text = String::new();
    let mut line = [0; 256];
    while let Ok(count @ 1..) = nix::unistd::read(context, &mut line) {
        let said = String::from_utf8_lossy(&line[..count]).into_owned();
        let said = said
            .trim()
            .trim_start_matches(|kind: char| "ewi".contains(kind))
            .trim_start();
        if text.len() + said.len() > MAX_DETAIL {
            break;
        }
        text.push_str(": ");
        text.push_str(said);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_cut_as_the_kernel_cuts_them() {
        let pair = |key: &str, value: Option<&str>| (key.to_owned(), value.map(str::to_owned));
        assert_eq!(
            choices("mode=755,size=65536k,,newinstance,empty="),
            [
                pair("mode", Some("755")),
                pair("size", Some("65536k")),
                pair("newinstance", None),
                pair("empty", Some(""))
            ]
        );
        assert_eq!(
            choices("mpol=bind:0-1,3,size=1m"),
            [pair("mpol", Some("bind:0-1,3")), pair("size", Some("1m"))]
        );
        assert_eq!(choices("3,x"), [pair("3", None), pair("x", None)]);
        assert!(choices("").is_empty());
    }

    #[test]
    fn flags_become_attributes() {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_RELATIME | NOSYMFOLLOW;
        assert_eq!(
            attributes(flags),
            libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOSYMFOLLOW
        );
        let both = MsFlags::MS_NOATIME | MsFlags::MS_STRICTATIME;
        assert_eq!(attributes(both), libc::MOUNT_ATTR_STRICTATIME);
    }

    #[test]
    fn the_kernels_own_words_are_passed_on() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let fault = Detached::file_system("tmpfs", "tmpfs", MsFlags::empty(), &choices("size=many")).unwrap_err();
        assert_eq!(fault.source, Errno::EINVAL);
        assert!(fault.detail.contains("size"), "{fault:?}");
    }
}
