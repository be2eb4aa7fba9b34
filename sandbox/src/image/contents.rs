//! What is in the cache, and making room in it.
//!
//! Whoever uses a file of the cache holds a shared lock on it (flock(2)), which goes with the open file to the machine
//! monitor and ends with it. So what nobody has locked is used by nobody, whatever else is known.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;

use super::oci::{DISK, RECORD, Record};
use super::{Cache, Key};

/// What one thing in the cache is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// An OCI image.
    Image,
    /// A root directory.
    Directory,
    /// A layer.
    Layer,
}

/// Something in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cached {
    /// What it is.
    pub what: What,
    /// A layer's digest, or a key.
    pub id: String,
    /// How an image was named when it was made.
    pub name: Option<String>,
    /// The digests of an image's layers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<String>,
    /// What it takes itself, in bytes; an image's layers are counted where they are.
    pub bytes: u64,
    /// When it was last used, in seconds since the epoch.
    pub used: i64,
    /// Whether a running sandbox uses it.
    pub in_use: bool,
}

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// Images, root directories and layers.
    pub removed: usize,
    /// Their bytes.
    pub bytes: u64,
    /// What running sandboxes use, which stays.
    pub kept: usize,
}

/// A file of the cache that stands for something.
struct Found {
    what: What,
    path: PathBuf,
    meta: Metadata,
}

impl Found {
    fn bytes(&self) -> u64 {
        self.meta.blocks() * 512
    }

    fn used(&self) -> (i64, i64) {
        (self.meta.mtime(), self.meta.mtime_nsec())
    }

    fn id(&self) -> String {
        let named = match self.what {
            What::Image => self.path.parent().and_then(Path::file_name),
            What::Directory | What::Layer => self.path.file_stem(),
        };
        let name = named.unwrap_or_default().to_string_lossy();
        match self.what {
            What::Layer => name.replacen('-', ":", 1),
            What::Image | What::Directory => name.into_owned(),
        }
    }
}

impl Cache {
    /// Everything in the cache, images first, what was used last before what was not.
    ///
    /// # Errors
    /// The cache cannot be read.
    pub fn contents(&self) -> io::Result<Vec<Cached>> {
        let mut found = self.find()?;
        found.sort_by_key(|one| (one.what as u8, std::cmp::Reverse(one.used())));
        Ok(found.iter().map(cached).collect())
    }

    /// Removes everything that no running sandbox uses.
    ///
    /// # Errors
    /// The cache cannot be read, or something in it cannot be removed.
    pub fn prune(&self) -> io::Result<Pruned> {
        let mut pruned = Pruned::default();
        for one in self.find()? {
            match self.remove(&one)? {
                true => {
                    pruned.removed += 1;
                    pruned.bytes += one.bytes();
                }
                false => pruned.kept += 1,
            }
        }
        Ok(pruned)
    }

    /// Forgets what was not used for longest, until the rest is within the limit. What is used stays.
    pub(super) fn evict(&self) {
        let Ok(mut found) = self.find() else { return };
        found.sort_by_key(Found::used);
        let mut total: u64 = found.iter().map(Found::bytes).sum();
        for one in found {
            if total <= self.limit {
                break;
            }
            if self.remove(&one).unwrap_or(false) {
                tracing::info!(path = %one.path.display(), "removed from the cache, which is beyond its limit");
                total -= one.bytes();
            }
        }
    }

    fn find(&self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        let mut add = |what, path: PathBuf| {
            // What another one has just removed is not there.
            if let Ok(meta) = fs::symlink_metadata(&path)
                && meta.is_file()
            {
                found.push(Found { what, path, meta });
            }
        };
        for path in entries(&self.dir)? {
            if has_extension(&path, "erofs") {
                add(What::Directory, path);
            }
        }
        for path in entries(&self.dir.join("images"))? {
            add(What::Image, path.join(DISK));
        }
        for path in entries(&self.dir.join("layers"))? {
            if has_extension(&path, "layer") {
                add(What::Layer, path);
            }
        }
        Ok(found)
    }

    /// Removes something, unless it is used or is just being made anew; says whether it is gone.
    fn remove(&self, one: &Found) -> io::Result<bool> {
        let Some(file) = open(&one.path)? else {
            return Ok(false);
        };
        // Who opens it now finds that it has no name when the lock is free again.
        if file.try_lock().is_err() {
            return Ok(false);
        }
        if one.what != What::Image {
            gone(fs::remove_file(&one.path))?;
            return Ok(true);
        }
        let Some(directory) = one.path.parent() else {
            return Ok(false);
        };
        // Nobody may put the other files there meanwhile, only to find them gone.
        let key = directory
            .file_name()
            .and_then(|name| Key::parse(&name.to_string_lossy()));
        let Some(_lock) = key.map(|key| self.try_lock(&self.dir, &key)).transpose()?.flatten() else {
            return Ok(false);
        };
        for name in [DISK, RECORD, "etc/passwd", "etc/group"] {
            gone(fs::remove_file(directory.join(name)))?;
        }
        for name in ["etc", ""] {
            // What else may be in it is not husk's.
            let _ = fs::remove_dir(directory.join(name));
        }
        Ok(true)
    }
}

fn cached(one: &Found) -> Cached {
    let record = one.path.parent().filter(|_| one.what == What::Image);
    let record = record.and_then(|directory| fs::read(directory.join(RECORD)).ok());
    let record = record.and_then(|text| serde_json::from_slice::<Record>(&text).ok());
    let (name, layers) = record.map_or((None, Vec::new()), |record| (Some(record.name), record.layers));
    let is_free = |file: File| file.try_lock().is_ok();
    Cached {
        what: one.what,
        id: one.id(),
        name,
        layers,
        bytes: one.bytes(),
        used: one.meta.mtime(),
        in_use: !open(&one.path).ok().flatten().is_some_and(is_free),
    }
}

/// Images with what they take together with their layers, by their ids.
#[must_use]
pub fn sizes(contents: &[Cached]) -> BTreeMap<String, u64> {
    let layers: BTreeMap<&str, u64> = contents
        .iter()
        .filter(|one| one.what == What::Layer)
        .map(|one| (one.id.as_str(), one.bytes))
        .collect();
    let size = |one: &Cached| {
        let layers = one.layers.iter().filter_map(|layer| layers.get(layer.as_str()));
        (one.id.clone(), one.bytes + layers.sum::<u64>())
    };
    contents.iter().map(size).collect()
}

/// The names in a directory; none if it is not there.
fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

/// A file of the cache, if it is there.
pub(super) fn open(path: &Path) -> io::Result<Option<File>> {
    let opened = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    gone(opened.map(Some)).map(Option::flatten)
}

/// What is gone already is no error.
fn gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Notes that a file is used now; without that it is only forgotten too early.
pub(super) fn touch(file: &File) {
    let _ = file.set_modified(SystemTime::now());
}
