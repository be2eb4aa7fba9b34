//! Disks, found by the serial that the host has given them, and the images on them.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::socket::{MsgFlags, recv};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::sys;

/// Why an image could not be mounted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error("making {path}: {source}")]
    Make { path: PathBuf, source: io::Error },
    #[error("the device of disk {serial:?} has no usable number: {number:?}")]
    Number { serial: String, number: String },
    #[error("mounting disk {serial:?} ({device}) as EROFS: {source}")]
    Mount {
        serial: String,
        device: String,
        source: nix::Error,
    },
}

/// The virtual machine's block devices.
#[derive(Debug)]
pub(crate) struct Disks {
    sysfs: PathBuf,
    /// Reading a serial is a request to the device, and devices keep theirs.
    known: HashMap<String, String>,
}

impl Disks {
    /// Disks as they are shown below `sysfs` (`/sys/block`).
    pub(crate) fn new(sysfs: PathBuf) -> Self {
        Self {
            sysfs,
            known: HashMap::new(),
        }
    }

    /// A socket that tells when one has changed. It is to be open before the first look.
    pub(crate) fn changes() -> nix::Result<OwnedFd> {
        sys::device_events()
    }

    /// Takes all messages about changes; what they say is looked up where it is certain.
    pub(crate) fn drain(changes: &impl std::os::fd::AsFd) {
        let mut message = [0; 4096];
        // ENOBUFS says that some were lost, not that none is left.
        while let Ok(_) | Err(nix::Error::EINTR | nix::Error::ENOBUFS) =
            recv(changes.as_fd().as_raw_fd(), &mut message, MsgFlags::MSG_DONTWAIT)
        {}
    }

    /// The name of the device with this serial, if it is there and has a backend.
    pub(crate) fn find(&mut self, serial: &str) -> Option<String> {
        if !self.known.contains_key(serial) {
            self.look();
        }
        let name = self.known.get(serial)?;
        let size: u64 = fs::read_to_string(self.sysfs.join(name).join("size"))
            .ok()?
            .trim()
            .parse()
            .ok()?;
        (size > 0).then(|| name.clone())
    }

    /// The device number of the disk with this serial, as in "254:0".
    pub(crate) fn number(&mut self, serial: &str) -> Option<String> {
        let name = self.find(serial)?;
        let number = fs::read_to_string(self.sysfs.join(name).join("dev")).ok()?;
        Some(number.trim().to_owned())
    }

    fn look(&mut self) {
        for entry in fs::read_dir(&self.sysfs).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if self.known.values().any(|known| *known == name) {
                continue;
            }
            let Ok(serial) = fs::read_to_string(entry.path().join("serial")) else {
                continue;
            };
            if !serial.trim().is_empty() {
                self.known.insert(serial.trim().to_owned(), name);
            }
        }
    }

    /// A device node for the disk, which must have been found.
    fn node(&self, serial: &str, name: &str) -> Result<PathBuf, DiskError> {
        let path = Path::new("/dev").join(name);
        if path.exists() {
            return Ok(path);
        }
        let number = fs::read_to_string(self.sysfs.join(name).join("dev")).unwrap_or_default();
        let bad = || DiskError::Number {
            serial: serial.to_owned(),
            number: number.clone(),
        };
        let (major, minor) = number.trim().split_once(':').ok_or_else(bad)?;
        let device = makedev(major.parse().map_err(|_| bad())?, minor.parse().map_err(|_| bad())?);
        mknod(&path, SFlag::S_IFBLK, Mode::S_IRUSR | Mode::S_IWUSR, device).map_err(|error| DiskError::Make {
            path: path.clone(),
            source: error.into(),
        })?;
        Ok(path)
    }
}

/// Mounted images, each once however many containers use it.
#[derive(Debug)]
pub(crate) struct Images {
    directory: PathBuf,
    mounted: HashMap<String, usize>,
}

impl Images {
    /// Images are mounted below `directory`.
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            mounted: HashMap::new(),
        }
    }

    /// Where the image of a disk is mounted.
    pub(crate) fn path(&self, serial: &str) -> PathBuf {
        // No disk is called so.
        let name = if serial.is_empty() { ".empty" } else { serial };
        self.directory.join(name)
    }

    /// Whether it is mounted already, or need not be: without a disk the image is an empty directory.
    pub(crate) fn has(&self, serial: &str) -> bool {
        serial.is_empty() || self.mounted.contains_key(serial)
    }

    /// Mounts the image of a disk for one more user; `device` is the disk's name.
    pub(crate) fn take(&mut self, disks: &Disks, serial: &str, device: &str) -> Result<(), DiskError> {
        if !self.mounted.contains_key(serial) {
            let path = self.path(serial);
            fs::create_dir_all(&path).map_err(|source| DiskError::Make {
                path: path.clone(),
                source,
            })?;
            if !serial.is_empty() {
                mount_disk(disks, serial, device, &path)?;
            }
        }
        *self.mounted.entry(serial.to_owned()).or_insert(0) += 1;
        Ok(())
    }

    /// One user less; after the last one the disk is free to be detached.
    pub(crate) fn give_back(&mut self, serial: &str) {
        let Some(users) = self.mounted.get_mut(serial) else {
            return;
        };
        *users -= 1;
        if *users == 0 {
            self.mounted.remove(serial);
            let path = self.path(serial);
            // A process that is just being made may still have a copy of it, for a moment.
            let _ = umount2(&path, MntFlags::MNT_DETACH);
            let _ = fs::remove_dir(&path);
        }
    }

    /// Counts a directory as the mounted image of a disk.
    #[cfg(test)]
    pub(crate) fn pretend(&mut self, serial: &str) {
        self.mounted.insert(serial.to_owned(), 1);
    }
}

fn mount_disk(disks: &Disks, serial: &str, device: &str, path: &Path) -> Result<(), DiskError> {
    let node = disks.node(serial, device)?;
    let mounted = mount(Some(&node), path, Some("erofs"), MsFlags::MS_RDONLY, None::<&str>);
    mounted.map_err(|source| DiskError::Mount {
        serial: serial.to_owned(),
        device: device.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(sysfs: &Path, name: &str, serial: &str, size: &str) {
        let path = sysfs.join(name);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("serial"), serial).unwrap();
        fs::write(path.join("size"), size).unwrap();
    }

    #[test]
    fn a_disk_is_found_when_it_has_a_backend() {
        let sysfs = tempfile::tempdir().unwrap();
        device(sysfs.path(), "vda", "husk-0", "2048\n");
        device(sysfs.path(), "vdb", "husk-1", "0\n");
        fs::create_dir(sysfs.path().join("loop0")).unwrap();
        let mut disks = Disks::new(sysfs.path().to_owned());
        assert_eq!(disks.find("husk-0").as_deref(), Some("vda"));
        assert_eq!(disks.find("husk-1"), None);
        device(sysfs.path(), "vdb", "husk-1", "8\n");
        assert_eq!(disks.find("husk-1").as_deref(), Some("vdb"));
        assert_eq!(disks.find("husk-2"), None);
        device(sysfs.path(), "vdc", "husk-2", "8\n");
        assert_eq!(disks.find("husk-2").as_deref(), Some("vdc"));
    }
}
