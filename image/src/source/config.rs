//! An image's configuration: what a container of it is to be like.

use std::collections::BTreeMap;

use oci_spec::image::{Digest, ImageConfiguration};

use super::SourceError;
use crate::layer;

/// The part of the configuration that containers are made of. Empty texts and lists say nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The beginning of the command line.
    pub entrypoint: Vec<String>,
    /// What follows it, unless something else is asked for.
    pub cmd: Vec<String>,
    /// `NAME=VALUE` each.
    pub env: Vec<String>,
    /// `USER[:GROUP]`, each a name or a number.
    pub user: String,
    /// Where the process begins.
    pub working_dir: String,
    /// The signal that asks the container to end, by name or number.
    pub stop_signal: String,
    /// Directories whose contents are not the image's: absolute paths, in order, none twice.
    pub volumes: Vec<String>,
    /// Whatever is said of the image.
    pub labels: BTreeMap<String, String>,
}

/// A configuration as the source has it.
pub(super) struct Parsed {
    pub(super) config: Config,
    pub(super) diff_ids: Vec<Digest>,
    /// `OS/ARCHITECTURE`.
    pub(super) platform: String,
}

impl Parsed {
    pub(super) fn new(text: &[u8], name: &str) -> Result<Self, SourceError> {
        let parsed: ImageConfiguration =
            serde_json::from_slice(text).map_err(|error| SourceError::Json(name.into(), error))?;
        let platform = format!("{}/{}", parsed.os(), parsed.architecture());
        let diff_ids = parsed.rootfs().diff_ids().iter();
        let diff_ids = diff_ids.map(|text| text.parse().map_err(|_| SourceError::DiffId(text.clone())));
        let diff_ids = diff_ids.collect::<Result<_, _>>()?;
        let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let config = parsed.config().as_ref().map(|config| Config {
            entrypoint: list(config.entrypoint()),
            cmd: list(config.cmd()),
            env: list(config.env()),
            user: text(config.user()),
            working_dir: text(config.working_dir()),
            stop_signal: text(config.stop_signal()),
            volumes: Vec::new(),
            labels: config
                .labels()
                .iter()
                .flatten()
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
        });
        let mut config = config.unwrap_or_default();
        let named = parsed.config().as_ref().and_then(|config| config.volumes().as_deref());
        for volume in named.unwrap_or_default() {
            let clean = layer::clean(volume.as_bytes()).filter(|path| !path.is_empty() && volume.starts_with('/'));
            let clean = clean.and_then(|path| String::from_utf8(path).ok());
            let clean = clean.ok_or_else(|| SourceError::Volume(volume.clone()))?;
            config.volumes.push(format!("/{clean}"));
        }
        config.volumes.sort();
        config.volumes.dedup();
        Ok(Self {
            config,
            diff_ids,
            platform,
        })
    }
}
