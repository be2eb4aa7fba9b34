//! Root directories as EROFS images.
//!
//! A guest mounts its root file system from a disk. [`Cache::image`] makes the disk's image from a directory with
//! `mkfs.erofs` and keeps it by a [key](tree) that a walk over the tree gives without reading a file's contents: a
//! second start from an unchanged tree converts nothing, and several starts at once convert once. Images are not
//! compressed, so that the host's page cache holds each page once for all guests; owners, modes, times, extended
//! attributes and hard links are kept as they are.
//!
//! The cache is a directory of files `KEY.erofs`, and `lock`, of which each conversion locks one byte. An image gets
//! its name when it is complete. A tree that changes while it is converted, or has changed in the clock tick before,
//! gives an image that is used once and not kept. When the cache grows beyond its limit the images that have not been
//! used for longest go; one that a machine uses stays readable for it.

mod mkfs;
#[cfg(test)]
mod tests;
mod tree;
mod unfinished;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::{FcntlArg, fcntl};
use thiserror::Error;

pub use mkfs::{MkfsError, program as mkfs_program};
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

/// A root file system's image.
#[derive(Debug)]
pub struct Image {
    /// The image, open for reading.
    pub file: File,
    /// Whether it had to be made.
    pub converted: bool,
}

/// Why there is no image.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum ImageError {
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error(transparent)]
    Mkfs(#[from] MkfsError),
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
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|source| cache.failed(source))?;
        Ok(cache)
    }

    /// The image of the directory `root`, made now or before.
    ///
    /// # Errors
    /// What is wrong with the directory, the cache or the conversion.
    pub fn image(&self, root: &Path) -> Result<Image, ImageError> {
        let tree = Tree::read(root)?;
        if let Some(file) = self.lookup(&tree.key) {
            return Ok(Image { file, converted: false });
        }
        let lock = self.lock(&tree.key).map_err(|source| self.failed(source))?;
        // Another one may have made it meanwhile.
        if let Some(file) = self.lookup(&tree.key) {
            return Ok(Image { file, converted: false });
        }
        tracing::info!(root = %root.display(), "converting the root file system to an EROFS image");
        let file = self.convert(root, &tree)?;
        drop(lock);
        Ok(Image { file, converted: true })
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

    /// An image that is there and whole. One that a power failure has cut short is made anew.
    fn lookup(&self, key: &Key) -> Option<File> {
        let path = self.path(key);
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)
            .ok()?;
        if !is_whole(&file) {
            tracing::warn!(image = %path.display(), "the image is damaged and is made anew");
            // If it cannot be removed, linking the new one says why.
            let _ = fs::remove_file(&path);
            return None;
        }
        // Its time of modification says when it was last used; without it the image is only forgotten too early.
        let _ = file.set_modified(SystemTime::now());
        Some(file)
    }

    /// Waits until no other process converts the same tree.
    fn lock(&self, key: &Key) -> io::Result<File> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(self.dir.join("lock"))?;
        // The constants are small, whatever their type.
        #[allow(clippy::cast_possible_truncation)]
        let range = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: key.offset(),
            l_len: 1,
            l_pid: 0,
        };
        fcntl(&file, FcntlArg::F_OFD_SETLKW(&range))?;
        Ok(file)
    }

    fn convert(&self, root: &Path, tree: &Tree) -> Result<File, ImageError> {
        let started = tree::coarse_now().map_err(|source| self.failed(source))?;
        let unfinished = Unfinished::create(&self.dir).map_err(|source| self.failed(source))?;
        mkfs::run(root, &unfinished, &self.dir).map_err(|error| match error {
            // mkfs.erofs does not say which file it was that it may not read.
            MkfsError::Failed { .. } => tree::unreadable(root).map_or(error.into(), ImageError::from),
            error => error.into(),
        })?;
        let file = unfinished.reopen().map_err(|source| self.failed(source))?;
        // A later change would not show in a time that a change in the conversion's first tick also has.
        let settled = tree.newest < started && Tree::read(root)?.key == tree.key;
        if settled {
            unfinished
                .keep(&self.path(&tree.key))
                .map_err(|source| self.failed(source))?;
            self.evict(&self.path(&tree.key));
        } else {
            tracing::info!(root = %root.display(), "the root file system has just changed; its image is not kept");
        }
        Ok(file)
    }

    /// Forgets the images that were not used for longest, until the rest is within the limit.
    fn evict(&self, newest: &Path) {
        let mut images: Vec<_> = fs::read_dir(&self.dir)
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok())
            .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "erofs"))
            .filter_map(|entry| Some((entry.metadata().ok()?, entry.path())))
            .map(|(meta, path)| ((meta.mtime(), meta.mtime_nsec()), meta.blocks() * 512, path))
            .collect();
        images.sort();
        let mut total: u64 = images.iter().map(|(_, size, _)| size).sum();
        for (_, size, path) in images {
            if total <= self.limit {
                break;
            }
            if path != newest && fs::remove_file(&path).is_ok() {
                tracing::info!(image = %path.display(), "removed from the cache, which is beyond its limit");
                total -= size;
            }
        }
    }
}

/// Whether a file is an EROFS image of the size that its superblock gives (`struct erofs_super_block`).
fn is_whole(file: &File) -> bool {
    const SUPERBLOCK: u64 = 1024;
    const MAGIC: u32 = 0xe0f5_e1e2;
    let mut block = [0; 40];
    let Ok(meta) = file.metadata() else { return false };
    if !meta.is_file() || file.read_exact_at(&mut block, SUPERBLOCK).is_err() {
        return false;
    }
    let word = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let (magic, block_bits, blocks) = (word(0), block[12], word(36));
    magic == MAGIC && (9..=16).contains(&block_bits) && meta.len() >= u64::from(blocks) << block_bits
}
