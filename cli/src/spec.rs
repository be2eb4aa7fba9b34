//! `husk spec`: a `config.json` to begin with.

use std::fs::File;
use std::io::{ErrorKind, Write};

use anyhow::{Context, Result};
use husk_sandbox::bundle::Standard;

use crate::args::SpecArgs;

pub(crate) fn spec(args: &SpecArgs) -> Result<u8> {
    let path = args.bundle.join("config.json");
    let choice = Standard {
        args: vec!["sh".into()],
        terminal: true,
        hostname: "husk".into(),
    };
    let text = serde_json::to_string_pretty(&choice.config())?;
    let mut file = File::create_new(&path).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => anyhow::anyhow!("{} exists already; remove it first", path.display()),
        _ => anyhow::Error::from(error).context(format!("{} cannot be made", path.display())),
    })?;
    writeln!(file, "{text}").with_context(|| format!("{} cannot be written", path.display()))?;
    Ok(0)
}
