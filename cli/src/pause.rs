//! `husk pause` and `husk resume`: freezes a container's processes and lets them go on.

use anyhow::Result;
use husk_sandbox::lifecycle::Container;
use husk_sandbox::rundir::RunRoot;

use crate::args::{Global, IdArgs};

pub(crate) fn pause(global: &Global, args: &IdArgs) -> Result<u8> {
    let root = RunRoot::open(&global.root())?;
    Container::find(&root, &args.id, global.patience())?.pause()?;
    Ok(0)
}

pub(crate) fn resume(global: &Global, args: &IdArgs) -> Result<u8> {
    let root = RunRoot::open(&global.root())?;
    Container::find(&root, &args.id, global.patience())?.resume()?;
    Ok(0)
}
