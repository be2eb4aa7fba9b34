//! `-info`: what containerd wants to know of the runtime.

use std::io::{self, Write};

use anyhow::{Context, Result};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::Message;

/// The runtime's name in containerd.
const NAME: &str = "io.containerd.husk.v2";

/// Writes it to stdout, as a message.
pub(crate) fn info() -> Result<()> {
    let info = RuntimeInfo {
        name: NAME.into(),
        version: Some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").into(),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    let bytes = info.write_to_bytes().context("the information cannot be written")?;
    io::stdout().write_all(&bytes).context("stdout")
}
