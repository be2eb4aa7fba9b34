//! OCI images in the cache.
//!
//! A layer is kept once, by the digest of what it is uncompressed, whatever images it is a part of. An image is kept by
//! the digests of its layers, as what stands before them on its disk. In its directory there are also the files of the
//! root file system in which users are looked up, and its [`Record`]; the disk's file comes last and says that the
//! others are there.
//!
//! ```text
//! layers/DIGEST.layer
//! layers/lock
//! images/KEY/etc/passwd
//! images/KEY/etc/group
//! images/KEY/record.json
//! images/KEY/disk.erofs
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use husk_image::source::{Layer, Source};
use husk_image::tree::Tree;
use husk_image::{Digest, Limits, erofs, layer};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Cache, Image, ImageError, Key, Unfinished, in_use, stated_size};

/// Goes into every key: another way to make disks gives another key.
const FORMAT: &[u8] = b"husk-oci-1";
/// How much of `/etc/passwd` and `/etc/group` is kept, in bytes.
const MAX_USERS: usize = 4 << 20;
/// Where users and groups are looked up.
const USERS: [&str; 2] = ["etc/passwd", "etc/group"];
pub(super) const DISK: &str = "disk.erofs";
pub(super) const RECORD: &str = "record.json";

/// What an image in the cache was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// How it was named when it was made.
    pub name: String,
    /// The digests of its layers when they are uncompressed, the lowest first.
    pub layers: Vec<String>,
}

/// An image whose disk is ready.
#[derive(Debug)]
pub struct Prepared {
    /// The disk.
    pub image: Image,
    /// A directory with the image's `etc/passwd` and `etc/group`.
    pub users: PathBuf,
}

/// How far a conversion is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The layer, from 1 on.
    pub layer: usize,
    /// How many layers the image has.
    pub layers: usize,
    /// Bytes of the layer's file that were read.
    pub done: u64,
    /// And of how many.
    pub total: u64,
}

impl Cache {
    /// The directory for files that are needed for a moment.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        &self.dir
    }

    /// The disk of an image, made now or before; `name` is for people. The directories `volumes` are in it in any case.
    ///
    /// # Errors
    /// What is wrong with the image, the cache or the conversion.
    pub fn oci(
        &self,
        source: &Source,
        image: &husk_image::source::Image,
        name: &str,
        progress: &mut dyn FnMut(Step),
    ) -> Result<Prepared, ImageError> {
        let key = key(image);
        let directory = self.dir.join("images").join(key.to_string());
        let prepared = |parts, converted| Prepared {
            image: Image {
                parts,
                layers: Vec::new(),
                converted,
            },
            users: directory.clone(),
        };
        if let Some(parts) = self.parts(&directory, &image.layers) {
            return Ok(prepared(parts, false));
        }
        let _lock = self.lock(&self.dir, &key).map_err(|source| self.failed(source))?;
        // Another one may have made it meanwhile.
        if let Some(parts) = self.parts(&directory, &image.layers) {
            return Ok(prepared(parts, false));
        }
        let mut parts = Vec::new();
        for (index, layer) in image.layers.iter().enumerate() {
            let step = |done, total| Step {
                layer: index + 1,
                layers: image.layers.len(),
                done,
                total,
            };
            parts.push(self.layer(source, layer, &mut |done, total| progress(step(done, total)))?);
        }
        let disk = self.merge(image, &parts, &key, &directory, name)?;
        parts.insert(0, disk);
        self.evict();
        Ok(prepared(parts, true))
    }

    /// The files that are an image's disk, if all are there.
    fn parts(&self, directory: &Path, layers: &[Layer]) -> Option<Vec<File>> {
        let disk = directory.join(DISK);
        let mut parts = vec![self.open_whole(&disk, |file| stated_size(file).is_some())?];
        for layer in layers {
            parts.push(self.open_whole(&self.layer_path(&layer.diff_id), layer::is_whole)?);
        }
        let length = |file: &File| file.metadata().map_or(0, |meta| meta.len());
        if stated_size(&parts[0]) == Some(parts.iter().map(length).sum()) {
            return Some(parts);
        }
        tracing::warn!(image = %disk.display(), "the image is damaged and is made anew");
        // If it cannot be removed, linking the new one says why.
        let _ = fs::remove_file(disk);
        None
    }

    fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        let name = format!("{}-{}.layer", diff_id.algorithm(), diff_id.digest());
        self.dir.join("layers").join(name)
    }

    /// A layer's file, made now or before.
    fn layer(&self, source: &Source, layer: &Layer, progress: &mut dyn FnMut(u64, u64)) -> Result<File, ImageError> {
        let failed = |source| self.failed(source);
        let path = self.layer_path(&layer.diff_id);
        if let Some(file) = self.open_whole(&path, layer::is_whole) {
            return Ok(file);
        }
        let directory = self.dir.join("layers");
        make_directory(&directory).map_err(failed)?;
        let key = Key::of(&[FORMAT, layer.diff_id.as_ref().as_bytes()]);
        let _lock = self.lock(&directory, &key).map_err(failed)?;
        if let Some(file) = self.open_whole(&path, layer::is_whole) {
            return Ok(file);
        }
        tracing::info!(layer = layer.name(), "converting a layer");
        let unfinished = Unfinished::create(&directory).map_err(failed)?;
        source
            .convert(layer, unfinished.file(), progress)
            .map_err(|error| self.explain(error.into()))?;
        unfinished.file().sync_data().map_err(failed)?;
        let file = in_use(unfinished.reopen().map_err(failed)?);
        unfinished.keep(&path).map_err(failed)?;
        Ok(file)
    }

    /// Puts the layers together and writes what stands before them on the disk.
    fn merge(
        &self,
        image: &husk_image::source::Image,
        layers: &[File],
        key: &Key,
        directory: &Path,
        name: &str,
    ) -> Result<File, ImageError> {
        let failed = |source| self.failed(source);
        let mut tree = Tree::new(&Limits::DEFAULT);
        let mut lengths = Vec::new();
        for file in layers {
            tree.apply(layer::read_index(file)?)?;
            lengths.push(file.metadata().map_err(failed)?.len());
        }
        for volume in &image.config.volumes {
            tree.make_directory(volume.as_bytes())?;
        }
        make_directory(&directory.join("etc")).map_err(failed)?;
        for path in USERS {
            let text = match tree.file(path.as_bytes())? {
                Some((number, content)) => {
                    let file = layers.get(usize::from(number)).ok_or(ImageError::Layers)?;
                    layer::read(file, content, MAX_USERS).map_err(failed)?
                }
                None => Vec::new(),
            };
            self.write(&directory.join(path), &text).map_err(failed)?;
        }
        let record = Record {
            name: name.into(),
            layers: image.layers.iter().map(|layer| layer.diff_id.to_string()).collect(),
        };
        let record = serde_json::to_vec(&record).map_err(|error| failed(error.into()))?;
        self.write(&directory.join(RECORD), &record).map_err(failed)?;

        let unfinished = Unfinished::create(directory).map_err(failed)?;
        erofs::write(&tree, &lengths, key.uuid(), unfinished.file()).map_err(|error| self.explain(error.into()))?;
        unfinished.file().sync_data().map_err(failed)?;
        let file = in_use(unfinished.reopen().map_err(failed)?);
        unfinished.keep(&directory.join(DISK)).map_err(failed)?;
        Ok(file)
    }

    /// Writes a small file; what was there before goes.
    fn write(&self, path: &Path, text: &[u8]) -> io::Result<()> {
        let unfinished = Unfinished::create(path.parent().unwrap_or(&self.dir))?;
        let mut file = unfinished.file();
        file.write_all(text)?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        unfinished.keep(path)
    }
}

/// What stands for an image: its layers, and the directories that it has in any case.
fn key(image: &husk_image::source::Image) -> Key {
    let mut parts = vec![FORMAT];
    parts.extend(image.layers.iter().map(|layer| layer.diff_id.as_ref().as_bytes()));
    parts.push(b"volumes");
    parts.extend(image.config.volumes.iter().map(String::as_bytes));
    Key::of(&parts)
}

pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

impl Key {
    /// A key of these parts.
    pub(super) fn of(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }

    /// What tells one file system from another.
    pub(super) fn uuid(&self) -> [u8; 16] {
        std::array::from_fn(|index| self.0[index])
    }
}
