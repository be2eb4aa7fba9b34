//! Which of the host's disks holds a container's root.
//!
//! Limits of block I/O name the host's devices by their numbers. In the guest there is one disk that such a number can
//! mean: the one with the container's root, where the host's disk is the one that the root directory lies on. What the
//! container writes stays in memory, and no other disk of the host is visible.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

/// File systems may lie on each other, but not for ever.
const MAX_DEPTH: usize = 8;

type Number = (u64, u64);

/// The numbers under which the host knows the disk with the root directory; looked up when first asked for.
#[derive(Debug)]
pub(super) struct RootDisk<'a> {
    root: &'a Path,
    numbers: std::cell::OnceCell<Vec<Number>>,
}

impl<'a> RootDisk<'a> {
    pub(super) fn of(root: &'a Path) -> Self {
        Self {
            root,
            numbers: std::cell::OnceCell::new(),
        }
    }

    /// Whether a device is that disk or the partition of it with the root.
    pub(super) fn is(&self, major: u64, minor: u64) -> bool {
        let numbers = self.numbers.get_or_init(|| {
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
            let mut found = Vec::new();
            of_path(self.root, &mounts, 0, &mut found);
            found
        });
        numbers.contains(&(major, minor))
    }
}

/// Adds the devices that a path's file system lies on.
fn of_path(path: &Path, mounts: &str, depth: usize, found: &mut Vec<Number>) {
    let Ok(metadata) = fs::metadata(path) else { return };
    let number = (major(metadata.dev()), minor(metadata.dev()));
    if number.0 != 0 {
        return of_device(number, depth, found);
    }
    if depth >= MAX_DEPTH {
        return;
    }
    match below(mounts, number) {
        Some(Below::Directory(directory)) => of_path(&directory, mounts, depth + 1, found),
        Some(Below::Device(device)) => {
            if let Ok(metadata) = fs::metadata(device) {
                of_device((major(metadata.rdev()), minor(metadata.rdev())), depth, found);
            }
        }
        None => {}
    }
}

/// Adds a device, the disk of which it is a partition, and those that it is put together from.
fn of_device(number: Number, depth: usize, found: &mut Vec<Number>) {
    if depth >= MAX_DEPTH || found.contains(&number) {
        return;
    }
    found.push(number);
    let Ok(directory) = fs::canonicalize(format!("/sys/dev/block/{}:{}", number.0, number.1)) else {
        return;
    };
    let mut related = Vec::new();
    if directory.join("partition").exists() {
        related.extend(directory.parent().map(Path::to_owned));
    }
    let slaves = fs::read_dir(directory.join("slaves")).into_iter().flatten().flatten();
    related.extend(slaves.map(|entry| entry.path()));
    for device in related {
        if let Some(number) = fs::read_to_string(device.join("dev")).ok().as_deref().and_then(parse) {
            of_device(number, depth + 1, found);
        }
    }
}

/// "8:0"
fn parse(number: &str) -> Option<Number> {
    let (major, minor) = number.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// What a file system without a device of its own lies on.
#[derive(Debug, PartialEq, Eq)]
enum Below {
    /// An overlay's upper directory, or else its first lower one.
    Directory(PathBuf),
    /// The device that it was mounted from (btrfs).
    Device(PathBuf),
}

/// Looks a file system up in mountinfo (proc_pid_mountinfo(5)).
fn below(mounts: &str, number: Number) -> Option<Below> {
    let number = format!("{}:{}", number.0, number.1);
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some(&number))?;
    let mut after = line.split_once(" - ")?.1.split(' ');
    let (kind, source, options) = (after.next()?, after.next()?, after.next()?);
    if kind == "overlay" {
        let option = |name: &str| options.split(',').find_map(|option| option.strip_prefix(name));
        let directory = option("upperdir=").or_else(|| option("lowerdir=")?.split(':').next())?;
        return Some(Below::Directory(unescape(directory).into()));
    }
    source
        .starts_with("/dev/")
        .then(|| Below::Device(unescape(source).into()))
}

/// Blanks are written as octal numbers.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_without_a_device_is_followed() {
        let mounts = "\
            22 1 254:0 / / rw - ext4 /dev/vda rw\n\
            30 22 0:40 / /merged rw,relatime shared:3 - overlay overlay rw,lowerdir=/l1:/l2,upperdir=/up\\040per,workdir=/w\n\
            31 22 0:41 / /ro rw - overlay overlay ro,lowerdir=/l1:/l2\n\
            32 22 0:42 /sub /btrfs rw - btrfs /dev/sdb2 rw,subvol=/sub\n\
            33 22 0:43 / /tmp rw - tmpfs tmpfs rw\n";
        let directory = |path: &str| Some(Below::Directory(path.into()));
        assert_eq!(below(mounts, (0, 40)), directory("/up per"));
        assert_eq!(below(mounts, (0, 41)), directory("/l1"));
        assert_eq!(below(mounts, (0, 42)), Some(Below::Device("/dev/sdb2".into())));
        assert_eq!(below(mounts, (0, 43)), None);
        assert_eq!(below(mounts, (0, 99)), None);
        assert_eq!(below("rubbish\n\n - \n1 2 0:1 x - overlay", (0, 1)), None);
    }

    #[test]
    fn a_directory_lies_on_its_own_disk_and_no_other() {
        let path = Path::new("/");
        let number = fs::metadata(path).unwrap().dev();
        if major(number) == 0 {
            return;
        }
        let disk = RootDisk::of(path);
        assert!(disk.is(major(number), minor(number)));
        assert!(!disk.is(4095, 7));
        assert!(!RootDisk::of(Path::new("/no/such")).is(major(number), minor(number)));
    }
}
