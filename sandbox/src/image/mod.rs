//! Root directories and OCI images as EROFS images.
//!
//! A guest mounts its root file system from a disk. [`Cache::image`] makes the disk's image from a directory with
//! [`directory`] and keeps it by a [key](tree) that a walk over the tree gives without reading a file's contents: a
//! second start from an unchanged tree converts nothing, and several starts at once convert once. Images are not
//! compressed, so that the host's page cache holds each page once for all guests; owners, modes, times, extended
//! attributes and hard links are kept as they are.
//!
//! The cache is a directory of files `KEY.erofs`, and `lock`, of which each conversion locks one byte. An image gets
//! its name when it is complete. A tree that changes while it is converted, or has changed in the clock tick before,
//! gives an image that is used once and not kept. When the cache grows beyond its limit the images that have not been
//! used for longest go; one that a machine uses stays readable for it.

mod contents;
mod oci;
mod overlay;
mod snapshot;
#[cfg(test)]
mod tests;
mod tree;
mod unfinished;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub use husk_image::Limits;
use husk_image::directory::{self, DirectoryError, Role};
use husk_image::erofs::ErofsError;
use husk_image::layer::LayerFileError;
pub use husk_image::source::{Config, Reference, Source, SourceError};
use husk_image::tree::TreeError as MergeError;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use thiserror::Error;

pub use contents::{Cached, Pruned, What, sizes};
pub use oci::{Prepared, Record, Step};
pub use overlay::Layers;
pub use snapshot::{FileSystem, Snapshot, SnapshotError};
pub use tree::TreeError;
use tree::{Key, Tree};
use unfinished::Unfinished;

/// How much the cache may hold by default, in bytes.
pub const DEFAULT_LIMIT: u64 = 16 << 30;

/// The images that were made before.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: PathBuf,
    limit: u64,
}

/// A root file system's image, which is not removed from the cache while one of its files is open.
#[derive(Debug)]
pub struct Image {
    /// The files that are the disk, one behind the other, open for reading.
    pub parts: Vec<File>,
    /// The file systems on it, the uppermost first; without any the whole disk is one of EROFS.
    pub layers: Vec<Layer>,
    /// Whether it had to be made.
    pub converted: bool,
}

/// A file system on a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Of which kind it is.
    pub kind: FileSystem,
    /// Where it begins and ends, in bytes: multiples of 512.
    pub range: Range<u64>,
}

/// Why there is no image.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum ImageError {
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("the image's layers do not make a root file system")]
    Merge(#[from] MergeError),
    #[error("the image cannot be converted")]
    Erofs(#[from] ErofsError),
    #[error("a layer in the cache cannot be used")]
    LayerFile(#[from] LayerFileError),
    #[error("the image's layers do not belong together")]
    Layers,
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("no space left for an image in the cache {}; make room or name another directory with HUSK_IMAGE_CACHE", .0.display())]
    Full(PathBuf),
    #[error("the image cache {} cannot be used; name another directory with HUSK_IMAGE_CACHE", dir.display())]
    Cache {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Cache {
    /// The cache in `dir`, which is made where it is missing.
    ///
    /// # Errors
    /// A directory that cannot be made.
    pub fn open(dir: &Path, limit: u64) -> Result<Self, ImageError> {
        let cache = Self {
            dir: dir.to_owned(),
            limit,
        };
        oci::make_directory(dir).map_err(|source| cache.failed(source))?;
        Ok(cache)
    }

    /// The image of the directory `root`, made now or before.
    ///
    /// # Errors
    /// What is wrong with the directory, the cache or the conversion.
    pub fn image(&self, root: &Path) -> Result<Image, ImageError> {
        let tree = Tree::read(root)?;
        self.made_or_found(root, Role::Root, &tree, || Ok(Tree::read(root)?.key == tree.key))
    }

    /// The image with a tree's key. `is_same` says, when the tree at `root` has been converted, whether it still has that
    /// key.
    fn made_or_found(
        &self,
        root: &Path,
        role: Role,
        tree: &Tree,
        is_same: impl FnOnce() -> Result<bool, TreeError>,
    ) -> Result<Image, ImageError> {
        if let Some(file) = self.lookup(&tree.key) {
            return Ok(Image::new(file, false));
        }
        let lock = self.lock(&self.dir, &tree.key).map_err(|source| self.failed(source))?;
        // Another one may have made it meanwhile.
        if let Some(file) = self.lookup(&tree.key) {
            return Ok(Image::new(file, false));
        }
        tracing::info!(root = %root.display(), "converting the root file system to an EROFS image");
        let file = self.convert(root, role, tree, is_same)?;
        drop(lock);
        Ok(Image::new(file, true))
    }

    fn failed(&self, source: io::Error) -> ImageError {
        ImageError::Cache {
            dir: self.dir.clone(),
            source,
        }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.dir.join(format!("{key}.erofs"))
    }

    /// Tells that the disk is full from what else can be wrong.
    fn explain(&self, error: ImageError) -> ImageError {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(error) = cause {
            let said = error.downcast_ref::<io::Error>().map(io::Error::kind);
            if said == Some(io::ErrorKind::StorageFull) {
                return ImageError::Full(self.dir.clone());
            }
            cause = error.source();
        }
        error
    }

    /// An image that is there and whole.
    fn lookup(&self, key: &Key) -> Option<File> {
        self.open_whole(&self.path(key), is_whole)
    }

    /// A file of the cache that is there and whole. One that a power failure has cut short is made anew.
    fn open_whole(&self, path: &Path, is_whole: impl Fn(&File) -> bool) -> Option<File> {
        let file = in_use(contents::open(path).ok()??);
        // Whoever has removed it had it locked until then.
        if file.metadata().ok()?.nlink() == 0 {
            return None;
        }
        if !is_whole(&file) {
            tracing::warn!(image = %path.display(), "the image is damaged and is made anew");
            // If it cannot be removed, linking the new one says why.
            let _ = fs::remove_file(path);
            return None;
        }
        // Its time of modification says when it was last used.
        contents::touch(&file);
        Some(file)
    }

    /// Waits until no other process makes the same thing; `directory` has the locks of its kind of things.
    fn lock(&self, directory: &Path, key: &Key) -> io::Result<File> {
        let file = lock_file(directory)?;
        fcntl(&file, FcntlArg::F_OFD_SETLKW(&range(key)))?;
        Ok(file)
    }

    /// The same without waiting: none if another process makes it.
    fn try_lock(&self, directory: &Path, key: &Key) -> io::Result<Option<File>> {
        let file = lock_file(directory)?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&range(key))) {
            Ok(_) => Ok(Some(file)),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    fn convert(
        &self,
        root: &Path,
        role: Role,
        tree: &Tree,
        is_same: impl FnOnce() -> Result<bool, TreeError>,
    ) -> Result<File, ImageError> {
        let started = tree::coarse_now().map_err(|source| self.failed(source))?;
        let unfinished = Unfinished::create(&self.dir).map_err(|source| self.failed(source))?;
        directory::convert(root, role, tree.key.uuid(), unfinished.file(), &Limits::DEFAULT)
            .map_err(|error| self.explain(error.into()))?;
        let file = in_use(unfinished.reopen().map_err(|source| self.failed(source))?);
        // A later change would not show in a time that a change in the conversion's first tick also has.
        let settled = tree.newest < started && is_same()?;
        if settled {
            unfinished
                .keep(&self.path(&tree.key))
                .map_err(|source| self.failed(source))?;
            self.evict();
        } else {
            tracing::info!(root = %root.display(), "the root file system has just changed; its image is not kept");
        }
        Ok(file)
    }
}

impl Image {
    fn new(file: File, converted: bool) -> Self {
        Self {
            parts: vec![file],
            layers: Vec::new(),
            converted,
        }
    }
}

/// Locks a file for as long as this descriptor or a copy of it, in whatever process, is open.
fn in_use(file: File) -> File {
    // On a file system without locks nothing can be pruned, which is said there.
    let _ = file.lock_shared();
    file
}

fn lock_file(directory: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(directory.join("lock"))
}

/// The byte that stands for a key.
// The constants are small, whatever their type.
#[allow(clippy::cast_possible_truncation)]
fn range(key: &Key) -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: key.offset(),
        l_len: 1,
        l_pid: 0,
    }
}

/// Whether a file is an EROFS image of the size that its superblock gives.
fn is_whole(file: &File) -> bool {
    let length = file.metadata().map_or(0, |meta| meta.len());
    stated_size(file).is_some_and(|size| size <= length)
}

/// The size in bytes that an EROFS superblock gives (`struct erofs_super_block`); none if there is no such thing.
fn stated_size(file: &File) -> Option<u64> {
    const SUPERBLOCK: u64 = 1024;
    const MAGIC: u32 = 0xe0f5_e1e2;
    let mut block = [0; 40];
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    file.read_exact_at(&mut block, SUPERBLOCK).ok()?;
    let word = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let (magic, block_bits, blocks) = (word(0), block[12], word(36));
    (magic == MAGIC && (9..=16).contains(&block_bits)).then(|| u64::from(blocks) << block_bits)
}
