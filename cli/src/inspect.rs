//! `husk inspect`: everything that is known of containers.

use anyhow::Result;
use husk_sandbox::lifecycle::{Container, Status};
use husk_sandbox::rundir::{RunRoot, State};
use serde::Serialize;

use crate::answer;
use crate::args::{Global, InspectArgs};

/// A container's state with its status.
#[derive(Serialize)]
pub(crate) struct Inspected<'f> {
    status: Status,
    #[serde(flatten)]
    state: &'f State,
}

impl<'f> Inspected<'f> {
    pub(crate) fn of(container: &'f Container) -> Result<Self> {
        Ok(Self {
            status: container.status()?,
            state: &container.found().state,
        })
    }
}

pub(crate) fn inspect(global: &Global, args: &InspectArgs) -> Result<u8> {
    let root = RunRoot::open(&global.root())?;
    let found: Result<Vec<_>, _> = args
        .names
        .iter()
        .map(|name| Container::find(&root, name, global.patience()))
        .collect();
    let found = found?;
    let all: Result<Vec<_>> = found.iter().map(Inspected::of).collect();
    answer::json(&all?)?;
    Ok(0)
}
