//! `husk pause` and `husk resume`: freezes a container's processes and lets them go on.

use anyhow::Result;

use crate::args::{Global, IdArgs};

pub(crate) fn pause(global: &Global, args: &IdArgs) -> Result<u8> {
    global.container(&args.id)?.pause()?;
    Ok(0)
}

pub(crate) fn resume(global: &Global, args: &IdArgs) -> Result<u8> {
    global.container(&args.id)?.resume()?;
    Ok(0)
}
