//! Images as files: an OCI layout, an OCI archive (a layout in a tar archive), and what `docker save` writes.
//!
//! [`Source::open`] finds out which it is; [`Source::image`] chooses the image by its tag and this machine's platform.
//! Nothing that the files say is believed: sizes and digests are checked when a blob is read, layers twice, before and
//! after they are uncompressed.

mod blob;
mod config;
mod docker;
mod files;
mod layout;
mod reference;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::digest::Digest;
use crate::layer::LayerError;
use crate::limits::Limits;
use crate::tar::TarError;
pub use blob::Progress;
pub use config::Config;
use files::Files;
pub use reference::Reference;

/// The operating system and the architecture that husk's guests run.
pub const PLATFORM: &str = "linux/amd64";

/// Why there is no image.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum SourceError {
    #[error("the image {} does not exist", .0.display())]
    Missing(PathBuf),
    #[error("{} is neither an OCI layout, nor an OCI archive, nor an archive of docker save", .0.display())]
    Kind(PathBuf),
    #[error("{} cannot be read", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("{} cannot be uncompressed", .0.display())]
    Uncompress(PathBuf, #[source] io::Error),
    #[error("{} is longer than {} bytes when it is uncompressed", .0.display(), .1)]
    LongArchive(PathBuf, u64),
    #[error("{} cannot be read as an archive", .0.display())]
    Archive(PathBuf, #[source] TarError),
    #[error("{} has more than {} members", .0.display(), .1)]
    Members(PathBuf, usize),
    #[error("{0} is not what it should be")]
    Json(String, #[source] serde_json::Error),
    #[error("{name} is longer than {limit} bytes")]
    LongJson { name: String, limit: u64 },
    #[error("the layout's version is {0:?}; husk knows 1.0.0")]
    Version(String),
    #[error("{} has no image {tag:?}; it has {}", path.display(), list(names))]
    NoTag {
        path: PathBuf,
        tag: String,
        names: Vec<String>,
    },
    #[error("{} has several images; name one of {} after a colon", path.display(), list(names))]
    Several { path: PathBuf, names: Vec<String> },
    #[error("{} has no image for {PLATFORM}; it has {}", path.display(), list(platforms))]
    Platform { path: PathBuf, platforms: Vec<String> },
    #[error("{} is an index of indexes of indexes", .0.display())]
    Nested(PathBuf),
    #[error("the blob {0} is missing")]
    NoBlob(String),
    #[error("the blob {digest} is damaged: its digest is {found}")]
    Digest { digest: String, found: String },
    #[error("the blob {digest} is {found} bytes long; its descriptor says {stated}")]
    Size { digest: String, stated: u64, found: u64 },
    #[error("the digest {0} is of an algorithm that husk does not have")]
    Algorithm(String),
    #[error("the blob {digest} is of the type {media_type:?}, which is not a part of an image that can be run")]
    MediaType { digest: String, media_type: String },
    #[error("the layer {digest} ({media_type}) may not be distributed: it is not a part of the image")]
    Foreign { digest: String, media_type: String },
    #[error("the image has {layers} layers, but its configuration tells of {diff_ids}")]
    Count { layers: usize, diff_ids: usize },
    #[error("the image has {found} layers; at most {limit} are possible")]
    Layers { found: usize, limit: usize },
    #[error("the image's configuration has the digest {0:?}, which is none")]
    DiffId(String),
    #[error("the image's volume {0:?} cannot be")]
    Volume(String),
    #[error("the layer {layer} is longer than {limit} bytes when it is uncompressed")]
    LongLayer { layer: String, limit: u64 },
    #[error("the layer {layer} is not the one that the configuration means: uncompressed, its digest is {found}")]
    WrongLayer { layer: String, found: String },
    #[error("the layer {layer} cannot be used")]
    Layer {
        layer: String,
        #[source]
        source: LayerError,
    },
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "none".into()
    } else {
        names.join(", ")
    }
}

/// An image's files.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    files: Files,
    limits: Limits,
}

/// An image of a source.
#[derive(Clone, Debug)]
pub struct Image {
    /// What its containers are to be like.
    pub config: Config,
    /// The lowest one first.
    pub layers: Vec<Layer>,
}

/// A layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// What it is when it is uncompressed.
    pub diff_id: Digest,
    /// Its file in the source.
    file: String,
    /// What its file is.
    blob: Option<(Digest, u64)>,
}

impl Layer {
    /// How it is called in messages: by what the source calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        match &self.blob {
            Some((digest, _)) => digest.as_ref(),
            None => &self.file,
        }
    }
}

impl Source {
    /// Opens a directory or an archive. A compressed archive is uncompressed in the directory `scratch`, into a file
    /// without a name.
    ///
    /// # Errors
    /// It is not there, cannot be read, or is nothing that holds images.
    pub fn open(path: &Path, scratch: &Path, limits: &Limits) -> Result<Self, SourceError> {
        let files = Files::open(path, scratch, limits)?;
        let source = Self {
            path: path.into(),
            files,
            limits: *limits,
        };
        let is_there = |name| source.files.file(name).map(|file| file.is_some());
        if !is_there(layout::INDEX)? && !is_there(docker::MANIFEST)? {
            return Err(SourceError::Kind(path.into()));
        }
        Ok(source)
    }

    /// The image of this tag, or the only one, for this machine's platform.
    ///
    /// # Errors
    /// There is none or more than one; what of it is missing, damaged or unknown.
    pub fn image(&self, tag: Option<&str>) -> Result<Image, SourceError> {
        // Newer versions of docker save write both; the layout says more.
        let image = if self.files.file(layout::INDEX)?.is_some() {
            self.layout_image(tag)?
        } else {
            self.docker_image(tag)?
        };
        let found = image.layers.len();
        if found > self.limits.layers {
            let limit = self.limits.layers;
            return Err(SourceError::Layers { found, limit });
        }
        Ok(image)
    }
}
