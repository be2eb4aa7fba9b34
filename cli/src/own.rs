//! Owning a sandbox in a monitor: from an empty run directory to the exit code of its container.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use husk_sandbox::agent::namespace::Kind;
use husk_sandbox::bundle::Bundle;
use husk_sandbox::guest::{ProcessId, Wanted};
use husk_sandbox::host_cgroup;
use husk_sandbox::image::{Cache, Image, ImageError};
use husk_sandbox::keeper::Keeper;
use husk_sandbox::relay::{Ends, Relay, Sink};
use husk_sandbox::rundir::{Exit, OWNER_LOG, RunDir, RunRoot, short_path};
use husk_sandbox::sandbox::{Options, Sandbox};
use husk_sandbox::timeline::Timeline;

use crate::monitor::{self, Report, Stdio};
use crate::output::Log;
use crate::pty;

/// The exit code of a container whose machine has ended under it: as if it had been killed.
pub(crate) const KILLED: u8 = 137;

/// What is said where streams cannot be passed on.
pub(crate) const NO_RELAY: &str = "the streams cannot be passed on";

/// What a monitor is to own.
pub(crate) struct Charge {
    /// The directory of run directories.
    pub(crate) root: PathBuf,
    pub(crate) name: String,
    pub(crate) bundle: Bundle,
    pub(crate) disk: Disk,
    pub(crate) options: Options,
    pub(crate) streams: StreamChoice,
    pub(crate) pid_file: Option<PathBuf>,
    /// Whether its process is started too.
    pub(crate) start: bool,
    /// Whether its run directory stays when it has ended.
    pub(crate) keep: bool,
}

/// Where the root file system's disk comes from.
pub(crate) enum Disk {
    /// It is there.
    Image(Image),
    /// It is made from the bundle's root directory, or found in the cache.
    Directory(Cache),
}

impl Disk {
    /// The disk; `root` is the bundle's root directory.
    pub(crate) fn find(self, root: &Path) -> Result<Image, ImageError> {
        match self {
            Self::Image(image) => Ok(image),
            Self::Directory(cache) => cache.image(root),
        }
    }
}

/// Where a container's streams go.
pub(crate) enum StreamChoice {
    /// To those of the command that made it.
    Caller,
    /// Through a terminal to the socket at this path.
    Console(PathBuf),
    /// Into the log of the run directory.
    Log,
}

/// Owns a sandbox until its container has ended; gives the container's exit code.
pub(crate) fn own(charge: Charge, stdio: Stdio, report: &mut Report) -> Result<u8> {
    let root = RunRoot::open(&charge.root)?;
    // Before the first thread, and before there is anything to clean up.
    let cgroup = charge.options.cgroup.as_deref();
    let _keeper = Keeper::start(root.path(), &charge.name, cgroup)?;
    let dir = root.create(&charge.name)?;
    if let Some(cgroup) = cgroup {
        host_cgroup::enter(cgroup)?;
    }
    monitor::log_to(&short_path(dir.dir(), OWNER_LOG))?;
    check_terminal(charge.bundle.request.process.stdio.terminal, &charge.streams)?;
    match has_new_network(&charge.bundle) {
        true => monitor::in_network_namespace(|stands| live(charge, dir, stdio, report, stands))?,
        false => live(charge, dir, stdio, report, || ()),
    }
}

/// Whether the container has a network namespace that is nobody else's.
fn has_new_network(bundle: &Bundle) -> bool {
    let network = Kind::NETWORK.into();
    let mut namespaces = bundle.request.namespaces.iter();
    namespaces.any(|namespace| namespace.kind == network && namespace.container.is_empty())
}

/// From an empty run directory on. `stands` returns when this process is what it is to be for others.
fn live(charge: Charge, dir: RunDir, stdio: Stdio, report: &mut Report, stands: impl FnOnce()) -> Result<u8> {
    let log = dir.dir().try_clone().context("no descriptor is left")?;
    let terminal = charge.bundle.request.process.stdio.terminal;
    let mut owned = Owned::make(&charge, dir)?;
    let (ends, console) = match &charge.streams {
        StreamChoice::Caller => (caller_ends(stdio)?, None),
        StreamChoice::Console(path) => {
            drop(stdio);
            let window = charge.bundle.request.process.stdio.window.as_ref();
            let console = pty::hand_over(path, window)?;
            (terminal_ends(&console)?, Some(console))
        }
        StreamChoice::Log => {
            drop(stdio);
            let [stdout, stderr] = Log::begin(log)?.map(|recorder| Some(Sink::Writer(Box::new(recorder))));
            let stdin = None;
            (Ends { stdin, stdout, stderr }, None)
        }
    };
    // Hooks look at it.
    stands();
    let relay = owned.create(charge.bundle, charge.disk, ends, terminal)?;
    let guest = owned.sandbox.guest()?;
    monitor::forward(guest, owned.process.clone(), console)?;
    if charge.start {
        owned.sandbox.start(&owned.process)?;
    }
    if charge.keep {
        owned.sandbox.keep()?;
    }
    let told = charge.pid_file.as_deref().map_or(Ok(()), monitor::write_pid_file);
    if let Err(error) = told.and_then(|()| report.begun()) {
        owned.sandbox.remove()?;
        return Err(error);
    }
    // Where the caller was is not this process's business any more.
    nix::unistd::chdir("/").context("the working directory cannot be left")?;
    owned.wait(relay)
}

/// A sandbox with its one container.
struct Owned {
    sandbox: Arc<Sandbox>,
    process: ProcessId,
}

impl Owned {
    fn make(charge: &Charge, dir: RunDir) -> Result<Self> {
        let sandbox = Sandbox::spawn(dir, &charge.options, Arc::new(Timeline::default()))?;
        Ok(Self {
            sandbox: Arc::new(sandbox),
            process: ProcessId {
                container: charge.name.clone(),
                exec: String::new(),
            },
        })
    }

    fn create(&mut self, bundle: Bundle, disk: Disk, ends: Ends, terminal: bool) -> Result<Relay> {
        let root = bundle.root.clone();
        let (_, disk) = self.sandbox.prepare(move || disk.find(&root))?;
        let stdin = ends.stdin.is_some();
        let wanted = Wanted::outputs_and(stdin);
        let streams = self.sandbox.create(&self.process.container, bundle, disk, wanted)?;
        Relay::start(streams, terminal, ends).context(NO_RELAY)
    }

    /// Waits for the container's end and ends the sandbox.
    fn wait(self, relay: Relay) -> Result<u8> {
        let exit = match self.sandbox.wait(&self.process) {
            Ok(exit) => {
                relay.finish();
                Exit {
                    status: u8::try_from(exit.status).unwrap_or(u8::MAX),
                    at_ns: exit.exited_at_ns,
                    oom_killed: exit.oom_killed,
                }
            }
            Err(error) => {
                tracing::error!("{:#}", anyhow::Error::from(error));
                let age = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
                Exit {
                    status: KILLED,
                    at_ns: u64::try_from(age.as_nanos()).unwrap_or(u64::MAX),
                    oom_killed: false,
                }
            }
        };
        self.sandbox.end(exit)?;
        Ok(exit.status)
    }
}

/// With a terminal somebody must get its master side.
fn check_terminal(terminal: bool, streams: &StreamChoice) -> Result<()> {
    match streams {
        StreamChoice::Caller if terminal => {
            bail!("process.terminal is set: name a --console-socket that takes the terminal")
        }
        StreamChoice::Console(_) if !terminal => bail!("--console-socket is named, but process.terminal is not set"),
        _ => Ok(()),
    }
}

/// The streams of the command that made the container.
pub(crate) fn caller_ends(stdio: Stdio) -> Result<Ends> {
    let stdin = match monitor::is_readable(&stdio.stdin) {
        true => stdio.stdin,
        // The process reads its end at once.
        false => File::open("/dev/null").context("/dev/null cannot be opened")?.into(),
    };
    Ok(Ends {
        stdin: Some(stdin),
        stdout: Some(Sink::Descriptor(stdio.stdout)),
        stderr: Some(Sink::Descriptor(stdio.stderr)),
    })
}

/// A terminal in the places of all three.
pub(crate) fn terminal_ends(terminal: &OwnedFd) -> Result<Ends> {
    let copy = || terminal.try_clone().context("no descriptor is left");
    Ok(Ends {
        stdin: Some(copy()?),
        stdout: Some(Sink::Descriptor(copy()?)),
        stderr: Some(Sink::Descriptor(copy()?)),
    })
}
