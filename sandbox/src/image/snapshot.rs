//! File systems that a snapshotter has made, as they are: the guest mounts them itself, and nothing is converted.
//!
//! Each is a file or a block device of the host's, and all of them together are one disk for the guest, which reads it
//! only. What is on them is the guest's business; the host reads no more than the magic number.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use husk_image::directory::Role;
use thiserror::Error;

use super::tree::{Key, Tree, TreeError};
use super::{Cache, Image, ImageError, Layer};

/// Goes into the key of an upper directory's image: another way to make one gives another key.
const FORMAT: &[u8] = b"husk-upper-1";
/// The most file systems on one disk, which is what the agent takes.
const MOST: usize = 128;
/// A disk's files are whole numbers of these bytes.
const SECTOR: u64 = 512;

/// A kind of file system that guests know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// An EROFS image.
    Erofs,
    /// An ext4 file system; ext3 and ext2 are too.
    Ext4,
}

/// A file system that is there already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// A regular file or a block device.
    pub path: PathBuf,
    /// What is on it.
    pub kind: FileSystem,
}

/// Why a snapshot cannot be a guest's disk.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum SnapshotError {
    #[error("the snapshot {} cannot be read", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the snapshot {} has no {} file system on it", path.display(), kind.name())]
    Kind { path: PathBuf, kind: FileSystem },
    #[error("the size of the snapshot {}, {size} bytes, is no multiple of 512", path.display())]
    Uneven { path: PathBuf, size: u64 },
    #[error("the container's image has {0} layers; a guest takes {MOST} at most")]
    Many(usize),
}

impl FileSystem {
    /// Its name for mount(2), as in `/proc/filesystems`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::Ext4 => "ext4",
        }
    }

    /// Whether a file has one: where its magic number is, and what (`erofs_fs.h`, and "Super Block" in the kernel's
    /// documentation of ext4).
    fn is_on(self, file: &File) -> io::Result<bool> {
        let (at, magic): (u64, &[u8]) = match self {
            Self::Erofs => (1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
            Self::Ext4 => (1024 + 56, &[0x53, 0xef]),
        };
        let mut found = [0; 4];
        let found = &mut found[..magic.len()];
        match file.read_exact_at(found, at) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            result => result.map(|()| found == magic),
        }
    }
}

impl Cache {
    /// The disk of an overlay of snapshots, the uppermost first, with what lies in the directory `upper` over them. That
    /// is empty for a new container; otherwise it is converted.
    ///
    /// # Errors
    /// What is wrong with a snapshot or the directory.
    pub fn snapshots(&self, snapshots: &[Snapshot], upper: Option<&Path>) -> Result<Image, ImageError> {
        let upper = match upper.map(|upper| self.upper(upper)).transpose() {
            Err(ImageError::Tree(TreeError::Empty(_))) => None,
            result => result?,
        };
        let count = snapshots.len() + usize::from(upper.is_some());
        if count > MOST {
            return Err(SnapshotError::Many(count).into());
        }
        let mut image = Image {
            parts: Vec::with_capacity(count),
            layers: Vec::with_capacity(count),
            converted: upper.as_ref().is_some_and(|upper| upper.converted),
        };
        for mut file in upper.into_iter().flat_map(|upper| upper.parts) {
            let size = file.seek(SeekFrom::End(0)).map_err(|source| self.failed(source))?;
            image.add(file, FileSystem::Erofs, size);
        }
        for snapshot in snapshots {
            let (file, size) = snapshot.open()?;
            image.add(file, snapshot.kind, size);
        }
        Ok(image)
    }

    /// The image of an overlay's upper directory, made now or before.
    fn upper(&self, upper: &Path) -> Result<Image, ImageError> {
        let read = || -> Result<Tree, TreeError> {
            let tree = Tree::read(upper)?;
            // That of a root file system in the same place would be another one.
            let key = Key::of(&[FORMAT, &tree.key.0]);
            Ok(Tree { key, ..tree })
        };
        let tree = read()?;
        self.made_or_found(upper, Role::Upper, &tree, || Ok(read()?.key == tree.key))
    }
}

impl Image {
    fn add(&mut self, file: File, kind: FileSystem, size: u64) {
        let start = self.layers.last().map_or(0, |last| last.range.end);
        self.parts.push(file);
        self.layers.push(Layer {
            kind,
            range: start..start.saturating_add(size),
        });
    }
}

impl Snapshot {
    /// Opens it for reading; gives its size in bytes too.
    fn open(&self) -> Result<(File, u64), SnapshotError> {
        let failed = |source| SnapshotError::Read {
            path: self.path.clone(),
            source,
        };
        // Nobody knows what is there: a FIFO would make it wait.
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&self.path)
            .map_err(failed)?;
        if !self.kind.is_on(&file).map_err(failed)? {
            return Err(SnapshotError::Kind {
                path: self.path.clone(),
                kind: self.kind,
            });
        }
        let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
        match size % SECTOR {
            0 => Ok((file, size)),
            _ => Err(SnapshotError::Uneven {
                path: self.path.clone(),
                size,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::image::DEFAULT_LIMIT;

    fn file(directory: &Path, name: &str, magic: (usize, &[u8]), size: usize) -> PathBuf {
        let mut bytes = vec![0; size];
        bytes[magic.0..magic.0 + magic.1.len()].copy_from_slice(magic.1);
        let path = directory.join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn snapshot(path: &Path, kind: FileSystem) -> Snapshot {
        Snapshot {
            path: path.to_owned(),
            kind,
        }
    }

    #[test]
    fn snapshots_are_parts_of_a_disk_under_what_lies_over_them() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(&directory.path().join("cache"), DEFAULT_LIMIT).unwrap();
        let erofs = file(directory.path(), "erofs", (1024, &[0xe2, 0xe1, 0xf5, 0xe0]), 4096);
        let ext4 = file(directory.path(), "ext4", (1080, &[0x53, 0xef]), 2048);
        let snapshots = [snapshot(&erofs, FileSystem::Erofs), snapshot(&ext4, FileSystem::Ext4)];
        let upper = directory.path().join("upper");
        fs::create_dir(&upper).unwrap();
        let layers = |image: &Image| image.layers.iter().map(|layer| layer.range.clone()).collect::<Vec<_>>();

        let image = cache.snapshots(&snapshots, Some(&upper)).unwrap();
        assert_eq!(layers(&image), [0..4096, 4096..6144]);
        assert_eq!(image.layers[1].kind, FileSystem::Ext4);
        assert_eq!((image.parts.len(), image.converted), (2, false));

        fs::write(upper.join("file"), "x").unwrap();
        let image = cache.snapshots(&snapshots, Some(&upper)).unwrap();
        assert!(image.converted && image.parts.len() == 3);
        let first = image.layers[0].range.end;
        assert_eq!(first, image.parts[0].metadata().unwrap().len());
        assert_eq!(layers(&image)[1..], [first..first + 4096, first + 4096..first + 6144]);
    }

    #[test]
    fn what_is_no_snapshot_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(&directory.path().join("cache"), DEFAULT_LIMIT).unwrap();
        let refused = |path: &Path| {
            let result = cache.snapshots(&[snapshot(path, FileSystem::Erofs)], None);
            result.unwrap_err().to_string()
        };
        let other = file(directory.path(), "other", (0, b"x"), 4096);
        assert!(
            refused(&other).contains("other has no erofs file system"),
            "{}",
            refused(&other)
        );
        let uneven = file(directory.path(), "uneven", (1024, &[0xe2, 0xe1, 0xf5, 0xe0]), 4000);
        assert!(refused(&uneven).contains("uneven, 4000 bytes"), "{}", refused(&uneven));
        assert!(refused(&directory.path().join("none")).contains("none cannot be read"));
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(refused(&fifo).contains("fifo"));
    }
}
