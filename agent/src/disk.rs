//! Disks, found by the serial that the host has given them, and the images on them.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use husk_protocol::agent::{Layer, Root};
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
    #[error("mounting disk {serial:?} ({device}) as {kind}: {source}")]
    Mount {
        serial: String,
        device: String,
        kind: String,
        source: nix::Error,
    },
    #[error("making layer {index} of disk {serial:?} a device: {source}")]
    Partition {
        serial: String,
        index: usize,
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

    /// A device node for a disk that was found, or a partition of it; `name` is its place in sysfs.
    fn node(&self, serial: &str, name: &str) -> Result<PathBuf, DiskError> {
        let path = Path::new("/dev").join(name.rsplit('/').next().unwrap_or(name));
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
    mounted: HashMap<String, Image>,
}

/// An image that is mounted.
#[derive(Debug, Default)]
struct Image {
    users: usize,
    /// Where its layers are mounted, the uppermost first.
    layers: Vec<PathBuf>,
    /// The node of the device whose partitions the layers are.
    partitioned: Option<PathBuf>,
}

impl Images {
    /// Images are mounted below `directory`.
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            mounted: HashMap::new(),
        }
    }

    /// Where the layers of a disk's image are mounted, the uppermost first.
    pub(crate) fn layers(&self, serial: &str) -> Vec<PathBuf> {
        self.mounted
            .get(serial)
            .map(|image| image.layers.clone())
            .unwrap_or_default()
    }

    /// Whether it is mounted already, or need not be: without a disk the image is an empty directory.
    pub(crate) fn has(&self, serial: &str) -> bool {
        serial.is_empty() || self.mounted.contains_key(serial)
    }

    /// Mounts the image of a disk for one more user; `device` is the disk's name.
    pub(crate) fn take(&mut self, disks: &Disks, root: &Root, device: &str) -> Result<(), DiskError> {
        if let Some(image) = self.mounted.get_mut(&root.disk) {
            image.users += 1;
            return Ok(());
        }
        let mut image = Image {
            users: 1,
            ..Image::default()
        };
        // No disk is called so.
        let name = if root.disk.is_empty() { ".empty" } else { &root.disk };
        let made = self.mount(disks, root, device, &self.directory.join(name), &mut image);
        if let Err(error) = made {
            image.unmount();
            return Err(error);
        }
        self.mounted.insert(root.disk.clone(), image);
        Ok(())
    }

    fn mount(&self, disks: &Disks, root: &Root, device: &str, path: &Path, image: &mut Image) -> Result<(), DiskError> {
        let serial = &root.disk;
        let make = |path: &Path| {
            fs::create_dir_all(path).map_err(|source| DiskError::Make {
                path: path.to_owned(),
                source,
            })
        };
        if serial.is_empty() || root.layers.len() <= 1 {
            make(path)?;
            image.layers.push(path.to_owned());
            if serial.is_empty() {
                return Ok(());
            }
            let kind = root.layers.first().map_or("erofs", |layer| &layer.type_);
            return mount_disk(disks, serial, device, kind, path);
        }
        let node = disks.node(serial, device)?;
        let whole = File::open(&node).map_err(|source| DiskError::Make {
            path: node.clone(),
            source,
        })?;
        // Whatever was on the disk before.
        sys::remove_partitions(whole.as_fd());
        image.partitioned = Some(node);
        for (index, layer) in root.layers.iter().enumerate() {
            let name = partition(&whole, device, index, layer).map_err(|source| DiskError::Partition {
                serial: serial.clone(),
                index,
                source,
            })?;
            let path = path.join(index.to_string());
            make(&path)?;
            image.layers.push(path.clone());
            mount_disk(disks, serial, &name, &layer.type_, &path)?;
        }
        Ok(())
    }

    /// One user less; after the last one the disk is free to be detached.
    pub(crate) fn give_back(&mut self, serial: &str) {
        let Some(image) = self.mounted.get_mut(serial) else {
            return;
        };
        image.users -= 1;
        if image.users == 0
            && let Some(image) = self.mounted.remove(serial)
        {
            image.unmount();
        }
    }

    /// Counts a directory as the mounted image of a disk.
    #[cfg(test)]
    pub(crate) fn pretend(&mut self, serial: &str) {
        let image = Image {
            users: 1,
            layers: vec![self.directory.join(serial)],
            partitioned: None,
        };
        self.mounted.insert(serial.to_owned(), image);
    }
}

impl Image {
    fn unmount(self) {
        for path in &self.layers {
            // A process that is just being made may still have a copy of it, for a moment.
            let _ = umount2(path, MntFlags::MNT_DETACH);
            let _ = fs::remove_dir(path);
        }
        if let Some(device) = self.partitioned.and_then(|node| File::open(node).ok()) {
            sys::remove_partitions(device.as_fd());
        }
    }
}

/// Makes a layer of a disk a device of its own, and gives its place in sysfs.
fn partition(whole: &File, device: &str, index: usize, layer: &Layer) -> nix::Result<String> {
    // There are at most 128 layers.
    let number = i32::try_from(index + 1).map_err(|_| nix::Error::EINVAL)?;
    sys::add_partition(whole.as_fd(), number, layer.offset, layer.length)?;
    Ok(format!("{device}/{device}{number}"))
}

/// Mounts what is on a device; `device` is its place in sysfs.
fn mount_disk(disks: &Disks, serial: &str, device: &str, kind: &str, path: &Path) -> Result<(), DiskError> {
    let node = disks.node(serial, device)?;
    let mounted = mount(Some(&node), path, Some(kind), MsFlags::MS_RDONLY, None::<&str>);
    mounted.map_err(|source| DiskError::Mount {
        serial: serial.to_owned(),
        device: device.to_owned(),
        kind: kind.to_owned(),
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
