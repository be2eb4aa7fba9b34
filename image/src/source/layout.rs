//! OCI layouts (OCI image specification, "Image Layout", "Image Index", "Image Manifest") and docker's manifests of the
//! same form.

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType};
use serde::de::DeserializeOwned;

use super::config::Parsed;
use super::{Image, Layer, PLATFORM, Source, SourceError};

/// Where it begins.
pub(super) const INDEX: &str = "index.json";
/// What says that it is a layout.
const LAYOUT: &str = "oci-layout";
/// Indexes in indexes: the layout's own, one for several platforms, and one more.
const MAX_DEPTH: usize = 3;
/// The most manifests of all indexes together.
const MAX_MANIFESTS: usize = 10_000;

const NAME: &str = "org.opencontainers.image.ref.name";
/// containerd's and docker's full name.
const FULL_NAME: &str = "io.containerd.image.name";

const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYERS: [&str; 3] = [
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];
const DOCKER_FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";

/// What a descriptor leads to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Index,
    Manifest,
    Other,
}

fn kind(media_type: &MediaType) -> Kind {
    match media_type {
        MediaType::ImageIndex => Kind::Index,
        MediaType::ImageManifest => Kind::Manifest,
        MediaType::Other(name) if name == DOCKER_LIST => Kind::Index,
        MediaType::Other(name) if name == DOCKER_MANIFEST => Kind::Manifest,
        _ => Kind::Other,
    }
}

/// A manifest that an index leads to.
struct Candidate {
    descriptor: Descriptor,
    /// The name that the layout's own index gives it.
    name: Option<String>,
    /// `OS/ARCHITECTURE` and the variant, from the index or else from the configuration.
    platform: String,
    variant: String,
    /// What is known already where the index says nothing of the platform.
    image: Option<(ImageManifest, Parsed)>,
}

fn annotation<'a>(descriptor: &'a Descriptor, name: &str) -> Option<&'a str> {
    descriptor.annotations().as_ref()?.get(name).map(String::as_str)
}

/// How a person would call it.
fn name(descriptor: &Descriptor) -> Option<String> {
    let name = annotation(descriptor, NAME).or_else(|| annotation(descriptor, FULL_NAME))?;
    Some(name.to_owned())
}

/// A tag is meant with its repository or without, or it is a digest.
fn has(descriptor: &Descriptor, tag: &str) -> bool {
    let is = |name: &str| name == tag || name.rsplit_once(':').is_some_and(|(_, last)| last == tag);
    let names = [NAME, FULL_NAME]
        .into_iter()
        .filter_map(|key| annotation(descriptor, key));
    names.into_iter().any(is) || descriptor.digest().as_ref() == tag
}

impl Source {
    pub(super) fn layout_image(&self, tag: Option<&str>) -> Result<Image, SourceError> {
        self.check_version()?;
        let index: ImageIndex = parse(&self.json(INDEX)?, INDEX)?;
        let names = || index.manifests().iter().filter_map(name).collect();
        let wanted = index
            .manifests()
            .iter()
            .filter(|descriptor| tag.is_none_or(|tag| has(descriptor, tag)));
        let wanted: Vec<_> = wanted
            .map(|descriptor| (descriptor.clone(), name(descriptor), 1))
            .collect();
        if let (true, Some(tag)) = (wanted.is_empty(), tag) {
            return Err(SourceError::NoTag {
                path: self.path.clone(),
                tag: tag.into(),
                names: names(),
            });
        }
        let candidates = self.candidates(wanted)?;
        let chosen = self.choose(candidates)?;
        self.load(chosen)
    }

    fn check_version(&self) -> Result<(), SourceError> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Header {
            image_layout_version: String,
        }
        let header: Header = parse(&self.json(LAYOUT)?, LAYOUT)?;
        match header.image_layout_version.starts_with("1.") {
            true => Ok(()),
            false => Err(SourceError::Version(header.image_layout_version)),
        }
    }

    /// All manifests that the descriptors lead to.
    fn candidates(&self, mut pending: Vec<(Descriptor, Option<String>, usize)>) -> Result<Vec<Candidate>, SourceError> {
        let mut candidates = Vec::new();
        let mut seen = 0;
        while let Some((descriptor, name, depth)) = pending.pop() {
            seen += 1;
            if seen > MAX_MANIFESTS || depth > MAX_DEPTH {
                return Err(SourceError::Nested(self.path.clone()));
            }
            match kind(descriptor.media_type()) {
                Kind::Index => {
                    // An index that is for another platform need not be there.
                    let other = |platform: String| platform != PLATFORM;
                    if descriptor
                        .platform()
                        .as_ref()
                        .is_some_and(|platform| other(text(platform)))
                    {
                        continue;
                    }
                    let index: ImageIndex = parse(&self.blob_json(&descriptor)?, descriptor.digest().as_ref())?;
                    let inner = index.manifests().iter();
                    pending.extend(inner.map(|inner| (inner.clone(), name.clone(), depth + 1)));
                }
                Kind::Manifest => candidates.push(self.candidate(descriptor, name)?),
                // Signatures, attestations and other things that are no images.
                Kind::Other => {}
            }
        }
        Ok(candidates)
    }

    fn candidate(&self, descriptor: Descriptor, name: Option<String>) -> Result<Candidate, SourceError> {
        let mut candidate = Candidate {
            name,
            platform: String::new(),
            variant: String::new(),
            image: None,
            descriptor,
        };
        if let Some(platform) = candidate.descriptor.platform() {
            candidate.platform = text(platform);
            candidate.variant = platform.variant().clone().unwrap_or_default();
        } else {
            let image = self.manifest(&candidate.descriptor)?;
            candidate.platform.clone_from(&image.1.platform);
            candidate.image = Some(image);
        }
        Ok(candidate)
    }

    /// The one for this platform; of several variants of it the one that asks least of the processor.
    fn choose(&self, candidates: Vec<Candidate>) -> Result<Candidate, SourceError> {
        let mut platforms: Vec<String> = candidates.iter().map(|one| one.platform.clone()).collect();
        let mut fitting: Vec<_> = candidates.into_iter().filter(|one| one.platform == PLATFORM).collect();
        fitting.sort_by(|a, b| {
            (&a.name, &a.variant, a.descriptor.digest().as_ref()).cmp(&(
                &b.name,
                &b.variant,
                b.descriptor.digest().as_ref(),
            ))
        });
        fitting.dedup_by(|a, b| a.descriptor.digest() == b.descriptor.digest());
        let Some(least) = fitting.first() else {
            platforms.sort();
            platforms.dedup();
            return Err(SourceError::Platform {
                path: self.path.clone(),
                platforms,
            });
        };
        let is_other = |one: &&Candidate| one.name != least.name || one.variant == least.variant;
        if fitting.iter().filter(is_other).count() > 1 {
            let name = |one: &Candidate| one.name.clone().unwrap_or_else(|| one.descriptor.digest().to_string());
            let mut names: Vec<String> = fitting.iter().map(name).collect();
            names.dedup();
            return Err(SourceError::Several {
                path: self.path.clone(),
                names,
            });
        }
        Ok(fitting.swap_remove(0))
    }

    fn load(&self, chosen: Candidate) -> Result<Image, SourceError> {
        let (manifest, parsed) = match chosen.image {
            Some(image) => image,
            None => self.manifest(&chosen.descriptor)?,
        };
        if parsed.platform != PLATFORM {
            return Err(SourceError::Platform {
                path: self.path.clone(),
                platforms: vec![parsed.platform],
            });
        }
        let (layers, diff_ids) = (manifest.layers().len(), parsed.diff_ids.len());
        if layers != diff_ids {
            return Err(SourceError::Count { layers, diff_ids });
        }
        let layers = manifest
            .layers()
            .iter()
            .zip(parsed.diff_ids)
            .map(|(descriptor, diff_id)| {
                check_layer(descriptor)?;
                Ok(Layer {
                    diff_id,
                    file: file(descriptor),
                    blob: Some((descriptor.digest().clone(), descriptor.size())),
                })
            });
        Ok(Image {
            config: parsed.config,
            layers: layers.collect::<Result<_, SourceError>>()?,
        })
    }

    /// A manifest with its configuration.
    fn manifest(&self, descriptor: &Descriptor) -> Result<(ImageManifest, Parsed), SourceError> {
        let manifest: ImageManifest = parse(&self.blob_json(descriptor)?, descriptor.digest().as_ref())?;
        let config = manifest.config();
        match config.media_type() {
            MediaType::ImageConfig => {}
            MediaType::Other(name) if name == DOCKER_CONFIG => {}
            _ => return Err(unknown(config)),
        }
        let parsed = Parsed::new(&self.blob_json(config)?, config.digest().as_ref())?;
        Ok((manifest, parsed))
    }

    /// A blob that is JSON, checked.
    fn blob_json(&self, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError> {
        let digest = descriptor.digest();
        let file = self.files.file(&file(descriptor))?;
        let file = file.ok_or_else(|| SourceError::NoBlob(digest.to_string()))?;
        if file.len() != descriptor.size() {
            return Err(SourceError::Size {
                digest: digest.to_string(),
                stated: descriptor.size(),
                found: file.len(),
            });
        }
        let text = self.read_json(file, digest.as_ref())?;
        Self::check(&text, digest)?;
        Ok(text)
    }
}

/// A blob's path; digests hold nothing that would lead elsewhere.
fn file(descriptor: &Descriptor) -> String {
    let digest = descriptor.digest();
    format!("blobs/{}/{}", digest.algorithm(), digest.digest())
}

fn text(platform: &oci_spec::image::Platform) -> String {
    format!("{}/{}", platform.os(), platform.architecture())
}

fn check_layer(descriptor: &Descriptor) -> Result<(), SourceError> {
    match descriptor.media_type() {
        MediaType::ImageLayer | MediaType::ImageLayerGzip | MediaType::ImageLayerZstd => Ok(()),
        MediaType::ImageLayerNonDistributable
        | MediaType::ImageLayerNonDistributableGzip
        | MediaType::ImageLayerNonDistributableZstd => Err(foreign(descriptor)),
        MediaType::Other(name) if DOCKER_LAYERS.contains(&name.as_str()) => Ok(()),
        MediaType::Other(name) if name.starts_with(DOCKER_FOREIGN) => Err(foreign(descriptor)),
        _ => Err(unknown(descriptor)),
    }
}

fn foreign(descriptor: &Descriptor) -> SourceError {
    SourceError::Foreign {
        digest: descriptor.digest().to_string(),
        media_type: descriptor.media_type().to_string(),
    }
}

fn unknown(descriptor: &Descriptor) -> SourceError {
    SourceError::MediaType {
        digest: descriptor.digest().to_string(),
        media_type: descriptor.media_type().to_string(),
    }
}

fn parse<T: DeserializeOwned>(text: &[u8], name: &str) -> Result<T, SourceError> {
    serde_json::from_slice(text).map_err(|error| SourceError::Json(name.into(), error))
}
