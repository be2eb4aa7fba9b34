//! `husk exec`: a further process in a running sandbox.

use std::sync::Arc;

use anyhow::{Context, Result};
use husk_sandbox::agent::{ExecRequest, Process};
use husk_sandbox::bundle::users;
use husk_sandbox::guest::{Guest, GuestError, ProcessId};
use husk_sandbox::machine::Link;
use husk_sandbox::rundir::{Found, RunRoot};

use crate::args::{ExecArgs, Global};
use crate::attach::{self, Progress, Session, Target};
use crate::overrides;
use crate::relay::Relay;
use crate::run::random_name;
use crate::terminal::{Raw, on_stdin};

pub(crate) fn exec(global: &Global, args: &ExecArgs) -> Result<u8> {
    let found = RunRoot::open(&global.root())?.find(&args.name)?;
    let container = found
        .state
        .containers
        .first()
        .with_context(|| format!("{} has no container yet", args.name))?;
    let mut process = Process::from(&container.process);
    process.args.clone_from(&args.command);
    overrides::apply(&args.process, &container.root, &mut process)?;
    users::add_home(&container.root, &mut process)?;
    let work = Work {
        process,
        id: ProcessId {
            container: container.name.clone(),
            exec: format!("exec-{}", random_name()?),
        },
        link: link(global, &found)?,
        sandbox: args.name.clone(),
        interactive: args.process.interactive,
    };
    Session::begin()?.drive(move |progress| work.run(progress))
}

/// The way to a sandbox of another husk process.
pub(crate) fn link(global: &Global, found: &Found) -> Result<Link> {
    let dir = found.dir().try_clone().context("no descriptor is left")?;
    Ok(Link::new(dir, global.patience()))
}

/// Names the sandbox where its end is the reason of an error.
pub(crate) fn explain(sandbox: &str) -> impl Fn(GuestError) -> anyhow::Error {
    move |error| {
        if error.is_lost() {
            anyhow::anyhow!("the sandbox {sandbox} has ended")
        } else {
            error.into()
        }
    }
}

struct Work {
    process: Process,
    id: ProcessId,
    link: Link,
    sandbox: String,
    interactive: bool,
}

impl Work {
    fn run(self, progress: &Progress) -> Result<u8> {
        let ended = explain(&self.sandbox);
        let guest = Arc::new(Guest::connect(self.link).map_err(&ended)?);
        let mut process = self.process;
        let stdio = process.stdio.mut_or_insert_default();
        let terminal = stdio.terminal;
        let streams = guest.streams(stdio, self.interactive).map_err(&ended)?;
        let request = ExecRequest {
            container: self.id.container.clone(),
            exec: self.id.exec.clone(),
            process: Some(process).into(),
            ..Default::default()
        };
        guest.exec(&request).map_err(&ended)?;
        let raw = match terminal && self.interactive && on_stdin() {
            true => Some(Raw::new().context("the terminal cannot be made raw")?),
            false => None,
        };
        let relay = Relay::start(streams, terminal, self.interactive)?;
        guest.start(&self.id).map_err(&ended)?;
        progress.started(Target {
            guest: Arc::clone(&guest),
            process: self.id.clone(),
            terminal,
        });
        let exit = guest.wait(&self.id).map_err(&ended)?;
        relay.finish();
        drop(raw);
        if let Err(error) = guest.delete(&self.id) {
            tracing::debug!(%error, "the exited process is not forgotten");
        }
        Ok(attach::status(exit.status))
    }
}
