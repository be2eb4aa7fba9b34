//! `-info`: what containerd wants to know of the runtime.

use std::io::{self, Write};

use anyhow::{Context, Result};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use husk_sandbox::bundle::features;
use protobuf::Message;
use protobuf::well_known_types::any::Any;

use crate::snapshots;

/// The runtime's name in containerd.
const NAME: &str = "io.containerd.husk.v2";

/// The type of the features document of the OCI runtime specification, which is JSON.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Says which mounts of a root file system containerd 2.2 and 2.3 are to leave to the shim; later ones are told at the
/// [start](crate::bootstrap).
const ALLOW_MOUNTS: &str = "containerd.io/runtime-allow-mounts";

/// The mounts in the form of that annotation.
fn mounts() -> String {
    let transforms = snapshots::TRANSFORMS.map(|transform| format!("{transform}/*"));
    let types = snapshots::TYPES.map(str::to_owned);
    [&transforms[..], &types].concat().join(",")
}

/// Writes it to stdout, as a message.
pub(crate) fn info() -> Result<()> {
    let features = serde_json::to_vec(&features::document()).context("the features cannot be written")?;
    let info = RuntimeInfo {
        name: NAME.into(),
        version: Some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").into(),
            ..Default::default()
        })
        .into(),
        features: Some(Any {
            type_url: FEATURES.into(),
            value: features,
            ..Default::default()
        })
        .into(),
        annotations: [(ALLOW_MOUNTS.to_owned(), mounts())].into(),
        ..Default::default()
    };
    let bytes = info.write_to_bytes().context("the information cannot be written")?;
    io::stdout().write_all(&bytes).context("stdout")
}
