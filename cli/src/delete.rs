//! `husk delete` and `husk rm`: removes what is left of containers.

use anyhow::Result;
use husk_sandbox::lifecycle::{Container, LifecycleError};
use husk_sandbox::rundir::{RunDirError, RunRoot};

use crate::args::{DeleteArgs, Global, RemoveArgs};
use crate::failure;

pub(crate) fn delete(global: &Global, args: &DeleteArgs) -> Result<u8> {
    let root = RunRoot::open(&global.root())?;
    match remove(global, &root, &args.id, args.force) {
        Err(LifecycleError::RunDir(RunDirError::NotFound(_))) if args.force => Ok(0),
        result => Ok(result.map(|()| 0)?),
    }
}

/// Removes as many as it can and complains about the others.
pub(crate) fn rm(global: &Global, args: &RemoveArgs) -> Result<u8> {
    let root = RunRoot::open(&global.root())?;
    let mut code = 0;
    for name in &args.names {
        if let Err(error) = remove(global, &root, name, args.force) {
            let error = error.into();
            failure::print(&error);
            code = failure::exit_code(&error);
        }
    }
    Ok(code)
}

fn remove(global: &Global, root: &RunRoot, name: &str, force: bool) -> Result<(), LifecycleError> {
    Container::find(root, name, global.patience())?.delete(root, force)
}
