//! Device nodes and the links that programs expect in /dev.

use husk_protocol::agent::Device;
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstatat, makedev, mknodat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};

use super::paths::{Root, by_descriptor};
use super::{ChildError, at};

/// The devices that every container has (OCI runtime spec, "Default Devices"), all open to everybody.
const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// The links that every container has ("Dev symbolic links"), and /dev/ptmx.
const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// Makes what every container has.
pub(super) fn make_default(
    root: &Root,
    make: impl Fn(&Root, &Device) -> Result<(), ChildError>,
) -> Result<(), ChildError> {
    for (path, major, minor) in DEFAULT {
        let mode = SFlag::S_IFCHR.bits() | 0o666;
        make(
            root,
            &Device {
                path: path.to_owned(),
                mode,
                major,
                minor,
                ..Device::default()
            },
        )?;
    }
    for (path, target) in LINKS {
        let action = "making the link";
        let (directory, name) = root.parent(path).map_err(at(action, path))?;
        if name == "ptmx" {
            // The container's terminals are its own: a node of the image would lead to another's.
            let _ = unlinkat(&directory, name, UnlinkatFlags::NoRemoveDir);
        }
        match symlinkat(target, &directory, name) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(source) => return Err(at(action, path)(source)),
        }
    }
    Ok(())
}

/// Makes a device node; the same one may be there already.
pub(super) fn make(root: &Root, device: &Device) -> Result<(), ChildError> {
    let path = device.path.as_str();
    let kind = SFlag::from_bits_truncate(device.mode & SFlag::S_IFMT.bits());
    let mode = Mode::from_bits_truncate(device.mode & 0o7777);
    let number = makedev(device.major.into(), device.minor.into());
    let (directory, name) = root.parent(path).map_err(at("making the device", path))?;
    match mknodat(&directory, name, kind, mode, number) {
        Ok(()) => {}
        Err(Errno::EEXIST) => {
            let there = fstatat(&directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(at("examining", path))?;
            let same = there.st_mode & SFlag::S_IFMT.bits() == kind.bits()
                && (kind == SFlag::S_IFIFO || there.st_rdev == number);
            if !same {
                return Err(at("making the device", path)(Errno::EEXIST));
            }
        }
        Err(source) => return Err(at("making the device", path)(source)),
    }
    let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    fchownat(&directory, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
        .map_err(at("setting the owner of", path))?;
    // It is no link, as has just been seen or made.
    fchmodat(&directory, name, mode, FchmodatFlags::FollowSymlink).map_err(at("setting the mode of", path))
}

/// Lets a path show the guest's own node of the same path, with its owner and mode.
pub(super) fn bind(root: &Root, device: &Device) -> Result<(), ChildError> {
    let path = device.path.as_str();
    let target = root.file(path).map_err(at("making", path))?;
    mount(
        Some(path),
        by_descriptor(&target).as_str(),
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .map_err(at("binding the guest's device", path))
}
