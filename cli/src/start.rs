//! `husk start`: lets the process of a created container execute.

use anyhow::Result;

use crate::args::{Global, IdArgs};

pub(crate) fn start(global: &Global, args: &IdArgs) -> Result<u8> {
    global.container(&args.id)?.start()?;
    Ok(0)
}
