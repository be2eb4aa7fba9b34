//! What a command answers on stdout.

use std::io::Write;

use anyhow::{Context, Result};
use serde::Serialize;

/// Prints a text.
pub(crate) fn text(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.context("stdout cannot be written to")
}

/// Prints a value as JSON, in as many lines as a person wants to read.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    text(&format!("{}\n", serde_json::to_string_pretty(value)?))
}
