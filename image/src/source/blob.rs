//! Reading blobs, and nothing of them that is not checked.

use std::fs::File;
use std::io::{self, Read};

use super::files::Contents;
use super::{Layer, Source, SourceError};
use crate::decompress::Decompressed;
use crate::digest::{Digest, Hashing};
use crate::layer::{self, LayerError};
use crate::tar::TarError;

/// Is told how many bytes of a layer's file were read, and of how many.
pub type Progress<'a> = dyn FnMut(u64, u64) + 'a;

impl Source {
    /// A file that is JSON, by its path.
    pub(super) fn json(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        let file = self.files.file(name)?.ok_or_else(|| SourceError::NoBlob(name.into()))?;
        self.read_json(file, name)
    }

    pub(super) fn read_json(&self, file: Contents, name: &str) -> Result<Vec<u8>, SourceError> {
        let limit = self.limits.json_bytes;
        let mut text = Vec::new();
        file.take(limit + 1)
            .read_to_end(&mut text)
            .map_err(|source| SourceError::Read(name.into(), source))?;
        if text.len() as u64 > limit {
            return Err(SourceError::LongJson {
                name: name.into(),
                limit,
            });
        }
        Ok(text)
    }

    /// Compares a blob with its digest.
    pub(super) fn check(text: &[u8], digest: &Digest) -> Result<(), SourceError> {
        let unknown = || SourceError::Algorithm(digest.to_string());
        let hashing = Hashing::new(text, Some(digest), u64::MAX).ok_or_else(unknown)?;
        let (_, found) = hashing
            .finish()
            .map_err(|source| SourceError::Read(digest.as_ref().into(), source))?;
        compare(digest, found)
    }

    /// Converts a layer into a layer file, which must be empty.
    ///
    /// # Errors
    /// What is wrong with the layer; what is in the file then is nothing.
    pub fn convert(&self, layer: &Layer, file: &File, progress: &mut Progress<'_>) -> Result<(), SourceError> {
        let name = layer.name();
        let contents = self
            .files
            .file(&layer.file)?
            .ok_or_else(|| SourceError::NoBlob(name.into()))?;
        let length = contents.len();
        if let Some((digest, stated)) = &layer.blob
            && *stated != length
        {
            return Err(SourceError::Size {
                digest: digest.to_string(),
                stated: *stated,
                found: length,
            });
        }
        let digest = layer.blob.as_ref().map(|(digest, _)| digest);
        let unknown = |digest: &Digest| SourceError::Algorithm(digest.to_string());
        let counting = Counting {
            contents,
            done: 0,
            length,
            progress,
        };
        let mut raw = Hashing::new(counting, digest, u64::MAX)
            .ok_or_else(|| digest.map_or_else(|| SourceError::NoBlob(name.into()), unknown))?;
        let result = self.uncompress(layer, &mut raw, file);
        // A damaged blob explains whatever else may be wrong.
        let (_, found) = raw.finish().map_err(|source| SourceError::Read(name.into(), source))?;
        if let Some(digest) = digest {
            compare(digest, found)?;
        }
        result
    }

    fn uncompress(&self, layer: &Layer, raw: &mut impl Read, file: &File) -> Result<(), SourceError> {
        let name = || layer.name().to_owned();
        let broken = |source: io::Error| SourceError::Layer {
            layer: name(),
            source: LayerError::Tar(TarError::from(source)),
        };
        let limit = self.limits.layer_bytes;
        let plain = Decompressed::new(raw).map_err(broken)?;
        let mut plain = Hashing::new(plain, Some(&layer.diff_id), limit)
            .ok_or_else(|| SourceError::Algorithm(layer.diff_id.to_string()))?;
        let converted = layer::convert(&mut plain, file, &self.limits);
        if plain.is_exceeded() {
            return Err(SourceError::LongLayer { layer: name(), limit });
        }
        converted.map_err(|source| SourceError::Layer { layer: name(), source })?;
        let (_, found) = plain.finish().map_err(broken)?;
        match found {
            Some(found) if found != layer.diff_id.digest() => Err(SourceError::WrongLayer {
                layer: name(),
                found: format!("{}:{found}", layer.diff_id.algorithm()),
            }),
            _ => Ok(()),
        }
    }
}

fn compare(digest: &Digest, found: Option<String>) -> Result<(), SourceError> {
    match found {
        Some(found) if found != digest.digest() => Err(SourceError::Digest {
            digest: digest.to_string(),
            found: format!("{}:{found}", digest.algorithm()),
        }),
        _ => Ok(()),
    }
}

/// Tells how far it is.
struct Counting<'a, 'b> {
    contents: Contents,
    done: u64,
    length: u64,
    progress: &'a mut Progress<'b>,
}

impl Read for Counting<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.contents.read(buffer)?;
        self.done += count as u64;
        (self.progress)(self.done, self.length);
        Ok(count)
    }
}
