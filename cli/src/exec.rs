//! `husk exec`: a further process in a running sandbox.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use husk_sandbox::agent::{ExecRequest, Process};
use husk_sandbox::bundle;
use husk_sandbox::confinement::Confinement;
use husk_sandbox::guest::{Guest, GuestError, ProcessId, Streams, Wanted};
use husk_sandbox::lifecycle::Status;
use husk_sandbox::machine::Link;
use husk_sandbox::relay::{Ends, Relay};
use husk_sandbox::rundir::{self, RunDirError};

use crate::args::{ExecArgs, Global};
use crate::attach::{self, Progress, Session, Target};
use crate::create::check_descriptors;
use crate::monitor::{self, Report, Stdio};
use crate::run::random_name;
use crate::terminal::{Raw, on_stdin};
use crate::{overrides, own, pty};

pub(crate) fn exec(global: &Global, args: &ExecArgs) -> Result<u8> {
    check_descriptors(&args.pid)?;
    let container = global.container(&args.name)?;
    match container.status()? {
        Status::Stopped => return Err(RunDirError::Stopped(args.name.clone()).into()),
        Status::Paused if !args.ignore_paused => bail!("container {} is paused; resume it first", args.name),
        _ => {}
    }
    let work = Work {
        process: process(args, container.definition()?, &container.found().state.confinement)?,
        id: ProcessId {
            container: container.definition()?.name.clone(),
            exec: format!("exec-{}", random_name()?),
        },
        link: container.link()?,
        sandbox: args.name.clone(),
    };
    if args.detach {
        let console = args.pid.console_socket.clone();
        check_terminal(work.process.stdio.terminal, console.is_some())?;
        let pid_file = args.pid.pid_file.clone();
        monitor::start(|stdio, report| work.monitor(stdio, report, console.as_deref(), pid_file.as_deref()))?;
        return Ok(0);
    }
    ensure!(
        args.pid.console_socket.is_none(),
        "--console-socket is for a process that is left running: use --detach"
    );
    if let Some(path) = &args.pid.pid_file {
        monitor::write_pid_file(path)?;
    }
    let interactive = args.process.interactive;
    Session::begin()?.drive(move |progress| work.run(progress, interactive))
}

/// What the process is to be: the container's own first one with what is asked for, or all that a file says.
fn process(args: &ExecArgs, container: &rundir::Container, confinement: &Confinement) -> Result<Process> {
    let mut process = match &args.spec {
        None => {
            let mut process = Process::from(&container.process);
            process.args.clone_from(&args.command);
            process
        }
        Some(path) => {
            let text = fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
            let failed = || format!("{} is no process", path.display());
            let (process, wanted) = bundle::process(&text).with_context(failed)?;
            confinement.check_process(&wanted).with_context(failed)?;
            process
        }
    };
    overrides::apply(&args.process, &container.root, &mut process)?;
    let user = process.user.mut_or_insert_default();
    user.additional_gids.extend(&args.additional_gids);
    process.no_new_privileges |= args.no_new_privs;
    if !args.capabilities.is_empty() {
        let added = bundle::capability_set(&args.capabilities)?;
        let sets = process.capabilities.mut_or_insert_default();
        for set in [
            &mut sets.bounding,
            &mut sets.effective,
            &mut sets.inheritable,
            &mut sets.permitted,
            &mut sets.ambient,
        ] {
            *set |= added;
        }
    }
    Ok(process)
}

/// With a terminal somebody must get its master side.
fn check_terminal(terminal: bool, console: bool) -> Result<()> {
    match (terminal, console) {
        (true, false) => bail!("a detached process with a terminal needs a --console-socket that takes it"),
        (false, true) => bail!("--console-socket is named, but the process has no terminal"),
        _ => Ok(()),
    }
}

/// Names the sandbox where its end is the reason of an error.
fn explain(sandbox: &str) -> impl Fn(GuestError) -> anyhow::Error {
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
}

/// A process that has been made and not started.
struct Made {
    guest: Arc<Guest>,
    streams: Streams,
    terminal: bool,
    id: ProcessId,
    sandbox: String,
}

impl Work {
    /// Makes the process; a `bound` one does not outlive this connection to the guest.
    fn make(self, stdin: bool, bound: bool) -> Result<Made> {
        let sandbox = self.sandbox;
        let ended = explain(&sandbox);
        let guest = Arc::new(Guest::connect(self.link).map_err(&ended)?);
        let mut process = self.process;
        let stdio = process.stdio.mut_or_insert_default();
        let terminal = stdio.terminal;
        let streams = guest.streams(stdio, Wanted::outputs_and(stdin)).map_err(&ended)?;
        let request = ExecRequest {
            container: self.id.container.clone(),
            exec: self.id.exec.clone(),
            process: Some(process).into(),
            bound,
            ..Default::default()
        };
        guest.exec(&request).map_err(&ended)?;
        drop(ended);
        Ok(Made {
            guest,
            streams,
            terminal,
            id: self.id,
            sandbox,
        })
    }

    fn run(self, progress: &Progress, interactive: bool) -> Result<u8> {
        let made = self.make(interactive, false)?;
        let (guest, terminal) = (made.guest, made.terminal);
        let ended = explain(&made.sandbox);
        let raw = match terminal && interactive && on_stdin() {
            true => Some(Raw::new().context("the terminal cannot be made raw")?),
            false => None,
        };
        let relay = Relay::start(made.streams, terminal, Ends::standard(interactive)?).context(own::NO_RELAY)?;
        guest.start(&made.id).map_err(&ended)?;
        progress.started(Target {
            guest: Arc::clone(&guest),
            process: made.id.clone(),
            terminal,
        });
        let exit = guest.wait(&made.id).map_err(&ended)?;
        relay.finish();
        drop(raw);
        forget(&guest, &made.id);
        Ok(attach::status(exit.status))
    }

    /// The life of a monitor that stands for the process.
    fn monitor(self, stdio: Stdio, report: &mut Report, console: Option<&Path>, pid_file: Option<&Path>) -> Result<u8> {
        let (ends, terminal) = match console {
            None => (own::caller_ends(stdio)?, None),
            Some(path) => {
                drop(stdio);
                let terminal = pty::hand_over(path, self.process.stdio.window.as_ref())?;
                (own::terminal_ends(&terminal)?, Some(terminal))
            }
        };
        let made = self.make(true, true)?;
        let (guest, id) = (made.guest, made.id);
        let ended = explain(&made.sandbox);
        let relay = Relay::start(made.streams, made.terminal, ends).context(own::NO_RELAY)?;
        monitor::forward(Arc::clone(&guest), id.clone(), terminal)?;
        guest.start(&id).map_err(&ended)?;
        pid_file.map_or(Ok(()), monitor::write_pid_file)?;
        report.begun()?;
        nix::unistd::chdir("/").context("the working directory cannot be left")?;
        let Ok(exit) = guest.wait(&id) else {
            // The sandbox has ended, and everything in it was killed.
            return Ok(own::KILLED);
        };
        relay.finish();
        forget(&guest, &id);
        Ok(attach::status(exit.status))
    }
}

fn forget(guest: &Guest, process: &ProcessId) {
    if let Err(error) = guest.delete(process) {
        tracing::debug!(%error, "the exited process is not forgotten");
    }
}
