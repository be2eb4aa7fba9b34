//! `husk kill`: a signal for a sandbox's container.

use std::time::Duration;

use anyhow::{Context, Result};
use husk_sandbox::guest::{Guest, ProcessId};
use husk_sandbox::machine::Link;
use husk_sandbox::rundir::{Found, RunRoot};
use husk_sandbox::vmm::Request;

use crate::args::{Global, KillArgs};
use crate::exec::{explain, link};

/// How long a guest may take to pass on a SIGKILL before its machine is stopped instead.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) fn kill(global: &Global, args: &KillArgs) -> Result<u8> {
    let found = RunRoot::open(&global.root())?.find(&args.name)?;
    if args.signal != libc::SIGKILL {
        send(&args.name, &found, link(global, &found)?, args.signal)?;
        return Ok(0);
    }
    let dir = found.dir().try_clone().context("no descriptor is left")?;
    let quick = Link::new(dir, PATIENCE.min(global.patience()));
    if let Err(error) = send(&args.name, &found, quick, args.signal) {
        tracing::info!("the machine is stopped, as its guest does not do it: {error:#}");
        link(global, &found)?.request(&Request::Stop, &[])?;
    }
    Ok(0)
}

fn send(name: &str, found: &Found, link: Link, signal: i32) -> Result<()> {
    let container = found
        .state
        .containers
        .first()
        .with_context(|| format!("{name} has no container yet"))?;
    let process = ProcessId {
        container: container.name.clone(),
        exec: String::new(),
    };
    let guest = Guest::connect(link).map_err(explain(name))?;
    guest
        .kill(&process, signal.unsigned_abs(), false)
        .map_err(explain(name))
}
