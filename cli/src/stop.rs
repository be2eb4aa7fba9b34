//! `husk stop`: asks containers to end, and ends those that do not.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use husk_sandbox::lifecycle::{Container, LifecycleError, Status};
use husk_sandbox::rundir::RunRoot;

use crate::args::{Global, StopArgs};
use crate::signals::{self, STOP_SIGNAL};
use crate::{answer, failure};

/// Asks all of them first, so that they end at the same time; stops as many as it can and complains about the others.
pub(crate) fn stop(global: &Global, args: &StopArgs) -> Result<u8> {
    let root = RunRoot::open(&global.root())?;
    let asked: Vec<_> = args.names.iter().map(|name| ask(global, &root, name)).collect();
    let begin = Instant::now();
    let mut code = 0;
    for (name, asked) in args.names.iter().zip(asked) {
        let limit = u64::try_from(args.time).ok().map(Duration::from_secs);
        let left = limit.map(|limit| limit.saturating_sub(begin.elapsed()));
        match asked.and_then(|container| end(global, &root, &container, left)) {
            Ok(()) => answer::text(&format!("{name}\n"))?,
            Err(error) => {
                failure::print(&error);
                code = failure::exit_code(&error);
            }
        }
    }
    Ok(code)
}

/// Sends a container the signal that asks it to end. One that has ended already is not asked.
fn ask(global: &Global, root: &RunRoot, name: &str) -> Result<Container> {
    let container = Container::find(root, name, global.patience())?;
    if container.status()? == Status::Stopped {
        return Ok(container);
    }
    let signal = signal(&container)?;
    match container.kill(signal.unsigned_abs(), false) {
        Err(error) if !error.means_stopped() => Err(error.into()),
        _ => Ok(container),
    }
}

/// The signal that its image or its bundle names.
fn signal(container: &Container) -> Result<i32> {
    match container.definition()?.annotations.get(STOP_SIGNAL) {
        Some(text) if !text.is_empty() => signals::parse(text).map_err(anyhow::Error::msg).with_context(|| {
            format!(
                "container {}: the annotation {STOP_SIGNAL} is {text:?}",
                container.name()
            )
        }),
        _ => Ok(libc::SIGTERM),
    }
}

/// Waits until it has ended, and ends it when the time is over.
fn end(global: &Global, root: &RunRoot, container: &Container, limit: Option<Duration>) -> Result<()> {
    if !container.found().alive {
        return Ok(());
    }
    match container.wait(root, limit) {
        Err(LifecycleError::Alive { .. }) => {}
        result => return Ok(result?),
    }
    match container.kill(libc::SIGKILL.unsigned_abs(), false) {
        Err(error) if !error.means_stopped() => return Err(error.into()),
        _ => {}
    }
    Ok(container.wait(root, Some(global.patience()))?)
}
