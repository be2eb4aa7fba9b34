//! Images of overlays, whose layers say what is in them without a walk.
//!
//! A layer of a snapshot does not change once others lie on it: who makes snapshots promises that. So a layer is told by
//! its directory alone, and of a tree of any size only the upper directory, which is empty for a new container, is read.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use husk_image::directory::Role;
use sha2::{Digest, Sha256};

use super::tree::{Key, Tree, TreeError};
use super::{Cache, Image, ImageError};

/// Goes into every key: another way to make images gives another key.
const FORMAT: &[u8] = b"husk-overlay-1";

/// Directories that lie one over the other.
#[derive(Clone, Copy, Debug)]
pub struct Layers<'l> {
    /// The read-only ones, the uppermost first; nobody changes them.
    pub lower: &'l [&'l Path],
    /// What lies over them.
    pub upper: Option<&'l Path>,
}

impl Cache {
    /// The image of the overlay that these layers make and that is mounted at `root`, made now or before.
    ///
    /// # Errors
    /// What is wrong with a layer, the cache or the conversion.
    pub fn overlay(&self, root: &Path, layers: Layers<'_>) -> Result<Image, ImageError> {
        let tree = layers.tree()?;
        self.made_or_found(root, Role::Root, &tree, || Ok(layers.tree()?.key == tree.key))
    }
}

impl Layers<'_> {
    fn tree(self) -> Result<Tree, TreeError> {
        let mut hash = Sha256::new();
        hash.update(FORMAT);
        for layer in self.lower {
            add(&mut hash, layer).map_err(|source| TreeError::Read {
                path: (*layer).to_owned(),
                source,
            })?;
        }
        let upper = self.upper.map(Tree::read).transpose();
        let newest = match upper {
            Ok(None) | Err(TreeError::Empty(_)) => (0, 0),
            Ok(Some(upper)) => {
                hash.update(upper.key.0);
                upper.newest
            }
            Err(error) => return Err(error),
        };
        Ok(Tree {
            key: Key(hash.finalize().into()),
            newest,
        })
    }
}

fn add(hash: &mut Sha256, layer: &Path) -> std::io::Result<()> {
    let meta = fs::metadata(layer)?;
    let path = fs::canonicalize(layer)?;
    let path = path.as_os_str().as_bytes();
    hash.update(path.len().to_le_bytes());
    hash.update(path);
    // A directory that takes a removed one's place has another birth; not every file system tells it.
    let born = meta.created().unwrap_or(SystemTime::UNIX_EPOCH);
    let born = born.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    for number in [
        meta.dev(),
        meta.ino(),
        born.as_secs(),
        u64::from(born.subsec_nanos()),
        meta.ctime().cast_unsigned(),
        meta.ctime_nsec().cast_unsigned(),
        meta.mtime().cast_unsigned(),
        meta.mtime_nsec().cast_unsigned(),
    ] {
        hash.update(number.to_le_bytes());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::image::DEFAULT_LIMIT;

    /// Two layers and an empty upper directory.
    fn directories(parent: &Path) -> [PathBuf; 3] {
        ["upper", "middle", "bottom"].map(|name| {
            let path = parent.join(name);
            fs::create_dir(&path).unwrap();
            path
        })
    }

    fn key(lower: &[&Path], upper: Option<&Path>) -> Key {
        Layers { lower, upper }.tree().unwrap().key
    }

    #[test]
    fn layers_are_told_by_their_directories_and_the_upper_one_by_what_is_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let [upper, middle, bottom] = directories(directory.path());
        fs::create_dir(middle.join("deep")).unwrap();
        let before = key(&[&middle, &bottom], Some(&upper));
        assert_eq!(
            key(&[&middle, &bottom], None),
            before,
            "an empty upper directory is none"
        );
        assert_ne!(key(&[&bottom, &middle], None), before);
        assert_ne!(key(&[&middle], None), before);
        fs::write(upper.join("file"), "x").unwrap();
        let with_file = key(&[&middle, &bottom], Some(&upper));
        assert_ne!(with_file, before);
        fs::remove_dir_all(&middle).unwrap();
        fs::create_dir(&middle).unwrap();
        assert_ne!(key(&[&middle, &bottom], None), before, "another directory in its place");
    }

    #[test]
    fn an_overlay_is_converted_once() {
        let directory = tempfile::tempdir().unwrap();
        let [upper, middle, bottom] = directories(directory.path());
        // What the mounted overlay would show.
        let root = directory.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("file"), "text").unwrap();
        let cache = Cache::open(&directory.path().join("cache"), DEFAULT_LIMIT).unwrap();
        let lower = [middle.as_path(), bottom.as_path()];
        let layers = Layers {
            lower: &lower,
            upper: Some(&upper),
        };
        assert!(cache.overlay(&root, layers).unwrap().converted);
        assert!(!cache.overlay(&root, layers).unwrap().converted);
        fs::remove_dir(&bottom).unwrap();
        let error = cache.overlay(&root, layers).unwrap_err().to_string();
        assert!(error.contains("bottom"), "{error}");
    }
}
