//! `husk start`: lets the process of a created container execute.

use anyhow::Result;
use husk_sandbox::lifecycle::Container;
use husk_sandbox::rundir::RunRoot;

use crate::args::{Global, IdArgs};

pub(crate) fn start(global: &Global, args: &IdArgs) -> Result<u8> {
    let root = RunRoot::open(&global.root())?;
    Container::find(&root, &args.id, global.patience())?.start()?;
    Ok(0)
}
