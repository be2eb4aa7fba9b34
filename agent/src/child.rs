//! The first steps of a container's process, from the fork to execve(2).
//!
//! [`run`] is what a forked child does: it leaves the agent behind ([`isolate`]), builds or joins its surroundings,
//! becomes the user that it is to be, finds its command, reports, waits to be started, and executes. It reads nothing
//! of the container with the agent's own eyes before it is inside.

mod command;
mod credentials;
mod devices;
mod hooks;
mod mounts;
pub(crate) mod packet;
mod paths;
mod pause;
mod root;
mod terminal;

pub(crate) use credentials::become_root;
pub(crate) use root::detached;
pub(crate) use terminal::resize;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use husk_protocol::agent::failure::Kind;
use husk_protocol::agent::{CreateRequest, Process, Seccomp};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Pid, Uid, chdir, fchown, getcwd, setsid};

use crate::sys;
use packet::Packet;

/// What a child is to become.
pub(crate) struct Plan<'a> {
    pub process: &'a Process,
    /// The container's, which all of its processes have.
    pub seccomp: Option<&'a Seccomp>,
    pub task: Task<'a>,
    /// Namespaces of other containers, by a pidfd of theirs.
    pub joins: Vec<(CloneFlags, BorrowedFd<'a>)>,
    /// Stdin, stdout and stderr; none with a terminal, which the child makes itself.
    pub streams: Option<[OwnedFd; 3]>,
    /// The way to the agent.
    pub channel: OwnedFd,
    /// Whether the process is in a user namespace, its own or the container's.
    pub in_user_namespace: bool,
    /// What personality(2) is to be called with.
    pub personality: Option<u32>,
}

/// What a child finds and what it has to make.
pub(crate) enum Task<'a> {
    /// It is a container's first process; clone3(2) has made its namespaces, except the cgroup one.
    Create {
        request: &'a CreateRequest,
        /// Where the layers of the root's image are mounted, the uppermost first.
        image: &'a [PathBuf],
        /// The container's cgroup directory.
        cgroup: &'a Path,
        /// A directory over which the root can be put together.
        stage: &'a Path,
        /// Where the agent keeps what containers share, by its name.
        shared: &'a BTreeMap<String, PathBuf>,
        /// The namespaces that are the container's own.
        own: CloneFlags,
        /// The root, mounted nowhere, where the process has not the privilege to make it.
        tree: Option<OwnedFd>,
    },
    /// It joins a running container.
    Exec,
}

/// Why a process could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChildError {
    #[error("{step}: {source}")]
    Step { step: &'static str, source: Errno },
    #[error("{action} {path:?} in the container: {source}")]
    Path {
        action: &'static str,
        path: String,
        source: Errno,
    },
    #[error("mounting {kind} on {path:?}: {source}{detail}")]
    Mount {
        kind: String,
        path: String,
        source: Errno,
        /// Begins with a colon unless it is empty.
        detail: String,
    },
    #[error("the working directory {0:?} lies outside the container's root")]
    Outside(String),
    #[error("capability {0}: {1}")]
    Capability(u8, Errno),
    #[error("{field} ({path}) {fault}")]
    Hook {
        field: String,
        path: String,
        fault: hooks::HookFault,
    },
    #[error("sysctl {path:?}: {source}")]
    Sysctl { path: String, source: Errno },
    #[error("{0}")]
    Command(#[from] command::CommandError),
    // In small letters as those of `command`, for the same callers.
    #[error("executing {path:?}: {}", source.desc().to_lowercase())]
    Execute { path: String, source: Errno },
}

impl ChildError {
    /// What decides the exit code.
    fn kind(&self) -> Kind {
        match self {
            Self::Command(error) => error.kind(),
            Self::Execute {
                source: Errno::ENOENT, ..
            } => Kind::COMMAND_NOT_FOUND,
            Self::Execute { .. } => Kind::COMMAND_NOT_EXECUTABLE,
            _ => Kind::OTHER,
        }
    }

    /// With which status the child exits; nobody but the log of exits sees it.
    fn status(&self) -> i32 {
        match self.kind() {
            Kind::COMMAND_NOT_FOUND => 127,
            Kind::COMMAND_NOT_EXECUTABLE => 126,
            Kind::OTHER => 255,
        }
    }
}

fn step(step: &'static str) -> impl FnOnce(Errno) -> ChildError {
    move |source| ChildError::Step { step, source }
}

fn at<'a>(action: &'static str, path: &'a str) -> impl FnOnce(Errno) -> ChildError + 'a {
    move |source| ChildError::Path {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Becomes the process, or tells the agent why not. This is a fork's child: it returns to nothing.
pub(crate) fn run(plan: &Plan<'_>) -> ! {
    let error = match become_process(plan) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let failure = husk_protocol::agent::Failure {
        kind: error.kind().into(),
        message: error.to_string(),
        ..husk_protocol::agent::Failure::default()
    };
    // Without a reader the agent has given the process up.
    let _ = packet::send(plan.channel.as_fd(), &Packet::Failed(failure));
    sys::exit_now(error.status())
}

fn become_process(plan: &Plan<'_>) -> Result<std::convert::Infallible, ChildError> {
    let process = plan.process;
    isolate(plan)?;
    wait_for(plan.channel.as_fd(), packet::PREPARED);
    for (kind, container) in &plan.joins {
        setns(container, *kind).map_err(step("joining a namespace"))?;
    }
    let terminal = match &plan.task {
        Task::Create {
            request,
            image,
            cgroup,
            stage,
            shared,
            own,
            tree,
        } => {
            let surroundings = root::Surroundings {
                request,
                image,
                cgroup,
                stage,
                shared,
                tree: tree.as_ref().map(AsFd::as_fd),
            };
            own_namespaces(request, *own)?;
            let terminal = root::build(&surroundings)?;
            if let Some(hooks) = request.create_hooks.as_ref() {
                hooks::run(hooks, &[], Some(process.capabilities.bounding))?;
            }
            terminal
        }
        Task::Exec => {
            if plan.in_user_namespace {
                credentials::become_root()?;
            }
            match process.stdio.terminal {
                true => Some(terminal::open_inside()?),
                false => None,
            }
        }
    };
    take_streams(plan, terminal)?;
    let environment = command::environment(process)?;
    if let Some(personality) = plan.personality {
        sys::set_personality(personality).map_err(step("setting the personality"))?;
    }
    if matches!(plan.task, Task::Exec) && !process.final_cpus.is_empty() {
        sys::set_affinity(Pid::from_raw(0), &process.final_cpus).map_err(step("choosing CPUs"))?;
    }
    umask(Mode::from_bits_truncate(process.user.umask.unwrap_or(0o022)));
    let mut filter = plan
        .seccomp
        .map(|seccomp| sys::Filter::new(&seccomp.program, seccomp.flags));
    // Without no_new_privs only a privileged process may load a filter: before it drops that privilege. What follows
    // is then what the filter has to allow; with no_new_privs that is execve(2) alone.
    if !process.no_new_privileges {
        load(filter.take())?;
    }
    credentials::assume(process)?;
    enter_working_directory(&process.cwd)?;
    let command = match process.pause {
        true => None,
        false => Some(command::find(process)?),
    };
    if process.no_new_privileges {
        sys::forbid_new_privileges().map_err(step("setting no_new_privs"))?;
    }
    let arguments = command::strings(&process.args);
    // Everything from here on was allocated before: only the start is missing.
    packet::send(plan.channel.as_fd(), &Packet::Created).map_err(step("reporting to the agent"))?;
    wait_for(plan.channel.as_fd(), packet::START);
    if let Task::Create { request, .. } = &plan.task
        && let Some(hooks) = request.start_hooks.as_ref()
    {
        hooks::run(hooks, &process.env, None)?;
    }
    load(filter)?;
    match command {
        Some(command) => execute(&command, &arguments, &environment),
        None => pause::pause(),
    }
}

fn load(filter: Option<sys::Filter>) -> Result<(), ChildError> {
    match filter {
        Some(mut filter) => filter.load().map_err(step("loading the seccomp filter")),
        None => Ok(()),
    }
}

/// Leaves what belongs to the agent: its descriptors, signal settings and session.
fn isolate(plan: &Plan<'_>) -> Result<(), ChildError> {
    let streams = plan.streams.iter().flatten().map(AsRawFd::as_raw_fd);
    let joins = plan.joins.iter().map(|(_, fd)| fd.as_raw_fd());
    let tree = match &plan.task {
        Task::Create { tree, .. } => tree.as_ref().map(AsRawFd::as_raw_fd),
        Task::Exec => None,
    };
    let keep: Vec<_> = [0, 1, 2, plan.channel.as_raw_fd()]
        .into_iter()
        .chain(streams)
        .chain(joins)
        .chain(tree)
        .collect();
    sys::close_all_but(&keep).map_err(step("closing the agent's descriptors"))?;
    sys::reset_signals().map_err(step("resetting signals"))?;
    setsid().map_err(step("making a session"))?;
    Ok(())
}

/// What the container's own namespaces begin with.
fn own_namespaces(request: &CreateRequest, own: CloneFlags) -> Result<(), ChildError> {
    if own.contains(CloneFlags::CLONE_NEWCGROUP) {
        // Its root is the cgroup in which the process is now, which clone3(2) would not yet have known.
        unshare(CloneFlags::CLONE_NEWCGROUP).map_err(step("making a cgroup namespace"))?;
    }
    if own.contains(CloneFlags::CLONE_NEWNET) {
        sys::bring_loopback_up().map_err(step("bringing the loopback interface up"))?;
    }
    if !request.hostname.is_empty() {
        nix::unistd::sethostname(&request.hostname).map_err(step("setting the hostname"))?;
    }
    if !request.domainname.is_empty() {
        sys::set_domainname(&request.domainname).map_err(step("setting the domainname"))?;
    }
    Ok(())
}

/// Puts the streams in place; with a terminal the agent gets its other side.
fn take_streams(plan: &Plan<'_>, terminal: Option<terminal::Terminal>) -> Result<(), ChildError> {
    let user = (
        Uid::from_raw(plan.process.user.uid),
        Gid::from_raw(plan.process.user.gid),
    );
    let place = |fd: BorrowedFd<'_>, target| sys::become_stream(fd, target).map_err(step("placing a stream"));
    if let Some(terminal) = terminal {
        if let Some(window) = plan.process.stdio.window.as_ref() {
            terminal.resize(window).map_err(step("setting the terminal's size"))?;
        }
        fchown(&terminal.peer, Some(user.0), None).map_err(step("giving the terminal to the user"))?;
        for target in 0..3 {
            place(terminal.peer.as_fd(), target)?;
        }
        sys::take_controlling_terminal().map_err(step("taking the terminal"))?;
        packet::send(plan.channel.as_fd(), &Packet::Terminal(terminal.master))
            .map_err(step("handing the terminal over"))?;
    }
    for (target, stream) in (0..).zip(plan.streams.iter().flatten()) {
        place(stream.as_fd(), target)?;
        // The user may want to open /dev/stdout anew. It cannot be given away where it is /dev/null, which needs no
        // gift: everybody may open that.
        // In a user namespace the agent has given it already.
        if !plan.in_user_namespace && credentials::is_pipe(stream) {
            fchown(stream, Some(user.0), None).map_err(step("giving a stream to the user"))?;
        }
    }
    sys::close_on_exec_from(3).map_err(step("marking descriptors"))
}

/// Enters the working directory, which was made where it was missing.
fn enter_working_directory(path: &str) -> Result<(), ChildError> {
    chdir(path).map_err(at("entering the working directory", path))?;
    // A link to one of the agent's descriptors, had one been left open, would lead out of the container.
    match getcwd() {
        Ok(now) if now.is_absolute() => Ok(()),
        _ => Err(ChildError::Outside(path.to_owned())),
    }
}

/// Blocks until the agent says that the process may go on. Without the agent, or when the process is ended before it
/// began, it exits.
fn wait_for(channel: BorrowedFd<'_>, word: u8) {
    let mut byte = [0];
    loop {
        match nix::unistd::read(channel, &mut byte) {
            Ok(1) if byte[0] == word => return,
            Ok(1) => sys::exit_now(128 + i32::from(byte[0])),
            Err(Errno::EINTR) => {}
            _ => sys::exit_now(128 + libc::SIGKILL),
        }
    }
}

fn execute(
    command: &CString,
    arguments: &[CString],
    environment: &[CString],
) -> Result<std::convert::Infallible, ChildError> {
    nix::unistd::execve(command, arguments, environment).map_err(|source| ChildError::Execute {
        path: command.to_string_lossy().into_owned(),
        source,
    })
}
