//! `husk wait`: until containers have ended.

use anyhow::{Context, Result};
use husk_sandbox::lifecycle::{Container, LifecycleError};
use husk_sandbox::rundir::{RunDirError, RunRoot};

use crate::args::{Global, WaitArgs};
use crate::{answer, attach};

pub(crate) fn wait(global: &Global, args: &WaitArgs) -> Result<u8> {
    let root = RunRoot::open(&global.root())?;
    for name in &args.names {
        let status = exit_code(global, &root, name)?;
        answer::text(&format!("{status}\n"))?;
    }
    Ok(0)
}

fn exit_code(global: &Global, root: &RunRoot, name: &str) -> Result<u8> {
    let container = Container::find(root, name, global.patience())?;
    // A sandbox that leaves nothing can only be asked while it is there.
    let answer = match container.found().alive && !container.found().state.kept {
        true => container.guest()?.wait(&container.process()?).ok(),
        false => None,
    };
    container.wait(root, None)?;
    if let Some(exit) = answer {
        return Ok(attach::status(exit.status));
    }
    let exit = match Container::find(root, name, global.patience()) {
        Ok(container) => container.found().state.exit,
        Err(LifecycleError::RunDir(RunDirError::NotFound(_))) => None,
        Err(error) => return Err(error.into()),
    };
    Ok(exit
        .with_context(|| format!("{name} has ended and nobody has heard how"))?
        .status)
}
