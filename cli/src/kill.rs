//! `husk kill`: a signal for a container.

use anyhow::Result;
use husk_sandbox::lifecycle::Container;
use husk_sandbox::rundir::RunRoot;

use crate::args::{Global, KillArgs};

pub(crate) fn kill(global: &Global, args: &KillArgs) -> Result<u8> {
    let root = RunRoot::open(&global.root())?;
    let container = Container::find(&root, &args.name, global.patience())?;
    container.kill(args.option.unwrap_or(args.signal).unsigned_abs(), args.all)?;
    Ok(0)
}
