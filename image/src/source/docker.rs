//! What `docker save` and `podman save` write: `manifest.json` names configurations and layers by their files.

use oci_spec::image::Digest;
use serde::Deserialize;

use super::config::Parsed;
use super::{Image, Layer, PLATFORM, Source, SourceError};

/// Where it begins.
pub(super) const MANIFEST: &str = "manifest.json";

/// An image (Docker's "image specification v1.2", "Combined Image JSON + Filesystem Changeset Format").
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl Item {
    fn tags(&self) -> &[String] {
        self.repo_tags.as_deref().unwrap_or_default()
    }

    /// A tag is meant with its repository or without.
    fn has(&self, tag: &str) -> bool {
        let short = |name: &str| name.rsplit_once(':').is_some_and(|(_, last)| last == tag);
        self.tags().iter().any(|name| name == tag || short(name))
    }
}

impl Source {
    pub(super) fn docker_image(&self, tag: Option<&str>) -> Result<Image, SourceError> {
        let text = self.json(MANIFEST)?;
        let items: Vec<Item> =
            serde_json::from_slice(&text).map_err(|error| SourceError::Json(MANIFEST.into(), error))?;
        let names: Vec<String> = items.iter().flat_map(|item| item.tags().to_vec()).collect();
        let wanted: Vec<&Item> = items
            .iter()
            .filter(|item| tag.is_none_or(|tag| item.has(tag)))
            .collect();
        let path = || self.path.clone();
        if wanted.is_empty() {
            return Err(SourceError::NoTag {
                path: path(),
                tag: tag.unwrap_or("latest").into(),
                names,
            });
        }
        let mut platforms = Vec::new();
        let mut found: Vec<(&Item, Parsed)> = Vec::new();
        for item in wanted {
            let parsed = self.docker_config(item)?;
            if parsed.platform != PLATFORM {
                platforms.push(parsed.platform);
            } else if found.iter().all(|(other, _)| other.config != item.config) {
                found.push((item, parsed));
            }
        }
        if found.len() > 1 {
            return Err(SourceError::Several { path: path(), names });
        }
        let Some((item, parsed)) = found.pop() else {
            return Err(SourceError::Platform {
                path: path(),
                platforms,
            });
        };
        let files = item.layers.clone().unwrap_or_default();
        let (layers, diff_ids) = (files.len(), parsed.diff_ids.len());
        if layers != diff_ids {
            return Err(SourceError::Count { layers, diff_ids });
        }
        let layer = |(file, diff_id)| Layer {
            diff_id,
            file,
            blob: None,
        };
        Ok(Image {
            config: parsed.config,
            layers: files.into_iter().zip(parsed.diff_ids).map(layer).collect(),
        })
    }

    fn docker_config(&self, item: &Item) -> Result<Parsed, SourceError> {
        let text = self.json(&item.config)?;
        // The file is called by its digest.
        let name = item.config.rsplit('/').next().unwrap_or_default();
        let name = name.strip_suffix(".json").unwrap_or(name);
        if let Ok(digest) = format!("sha256:{name}").parse::<Digest>() {
            Self::check(&text, &digest)?;
        }
        Parsed::new(&text, &item.config)
    }
}
