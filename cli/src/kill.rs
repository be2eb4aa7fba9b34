//! `husk kill`: a signal for a container.

use anyhow::Result;

use crate::args::{Global, KillArgs};

pub(crate) fn kill(global: &Global, args: &KillArgs) -> Result<u8> {
    let container = global.container(&args.name)?;
    container.kill(args.option.unwrap_or(args.signal).unsigned_abs(), args.all)?;
    Ok(0)
}
