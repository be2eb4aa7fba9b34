//! What the agent knows of a container and its processes.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use husk_protocol::agent::process_state::Status;
use husk_protocol::agent::{ContainerStatus, Failure, IdMapping, ProcessState, Seccomp};
use nix::unistd::Pid;

use crate::cgroup::Cgroup;
use crate::pause::Freeze;
use crate::poller::Watch;
use crate::refusal::Refusal;

/// A process's name: its container's, and its own unless it is the container's first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    pub container: String,
    /// Empty for the first process.
    pub exec: String,
}

impl Name {
    pub(crate) fn new(container: &str, exec: &str) -> Self {
        Self {
            container: container.to_owned(),
            exec: exec.to_owned(),
        }
    }

    pub(crate) fn is_first(&self) -> bool {
        self.exec.is_empty()
    }
}

/// A call that is answered later: the connection's number and the stream's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reply {
    pub connection: u64,
    pub stream: u32,
}

/// What all processes of a container have.
#[derive(Debug, Clone)]
pub(crate) struct Common {
    pub seccomp: Option<Seccomp>,
    pub personality: Option<u32>,
    /// Empty without a user namespace of its own.
    pub uid_mappings: Vec<IdMapping>,
}

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    /// What its events are numbered with.
    pub number: u64,
    pub cgroup: Cgroup,
    /// The serial of the disk with its image.
    pub disk: String,
    /// The shared memory that its mounts name.
    pub shared: Vec<String>,
    pub common: Common,
    /// Its memory.events, where the kernel has it.
    pub memory: Option<Watch>,
    /// Its cgroup.events, once somebody waits for its processes to stop or to end.
    pub events: Option<Watch>,
    /// Whether its processes go on.
    pub freeze: Freeze,
    /// How many of its processes its memory limit has killed.
    pub oom_kills: u64,
    pub processes: BTreeMap<String, Process>,
}

impl Container {
    /// Where it is on its way (OCI runtime specification, "State").
    pub(crate) fn status(&self) -> ContainerStatus {
        let phase = self.processes.get("").map(|process| &process.phase);
        match (phase, self.freeze) {
            (None | Some(Phase::Exited(_)), _) => ContainerStatus::CONTAINER_STOPPED,
            (Some(Phase::Building(_) | Phase::Unbuilt(..)), _) => ContainerStatus::CONTAINER_CREATING,
            (_, Freeze::Stopped) => ContainerStatus::CONTAINER_PAUSED,
            (Some(Phase::Created | Phase::Starting(_)), _) => ContainerStatus::CONTAINER_CREATED,
            (Some(Phase::Running | Phase::Unstarted(..)), _) => ContainerStatus::CONTAINER_RUNNING,
        }
    }

    /// Whether it is created or running, and its processes go on.
    pub(crate) fn takes_processes(&self) -> bool {
        let status = self.status();
        let is_there = status == ContainerStatus::CONTAINER_CREATED || status == ContainerStatus::CONTAINER_RUNNING;
        is_there && matches!(self.freeze, Freeze::Going)
    }

    /// Refuses what needs a container that is created and has not stopped.
    pub(crate) fn check_is_there(&self, id: &str) -> Result<(), Refusal> {
        match self.status() {
            ContainerStatus::CONTAINER_CREATING | ContainerStatus::CONTAINER_STOPPED => {
                Err(self.refuse(id, "created, running or paused"))
            }
            _ => Ok(()),
        }
    }

    /// The refusal of what only a container of the `needed` status can do.
    pub(crate) fn refuse(&self, id: &str, needed: &'static str) -> Refusal {
        let status = match (self.status(), self.freeze) {
            (ContainerStatus::CONTAINER_STOPPED | ContainerStatus::CONTAINER_UNKNOWN, _) => "stopped",
            (ContainerStatus::CONTAINER_CREATING, _) => "being created",
            (ContainerStatus::CONTAINER_PAUSED, _) => "paused",
            (_, Freeze::Stopping(..)) => "being paused",
            (ContainerStatus::CONTAINER_CREATED, _) => "created",
            (ContainerStatus::CONTAINER_RUNNING, _) => "running",
        };
        Refusal::Status {
            container: id.to_owned(),
            status,
            needed,
        }
    }
}

/// How a process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// Its code, or 128 and the signal.
    pub status: u32,
    /// Nanoseconds since the epoch.
    pub at_ns: u64,
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub monotonic_ns: u64,
}

/// Where a process is on its way.
///
/// ```text
/// Building ─▶ Created ─▶ Starting ─▶ Running ─▶ Exited
///    │           └──────────│──────────────────▶ ▲
///    └─▶ Unbuilt            └─▶ Unstarted ───────┘
/// ```
#[derive(Debug)]
pub(crate) enum Phase {
    /// It makes its surroundings.
    Building(Reply),
    /// It could not, and is about to exit; nothing will be left of it.
    Unbuilt(Reply, Failure),
    /// It waits to be started.
    Created,
    /// It was told to execute.
    Starting(Reply),
    /// It could not, and is about to exit.
    Unstarted(Reply, Failure),
    /// It has executed.
    Running,
    /// It has been reaped.
    Exited(Exit),
}

/// A process.
#[derive(Debug)]
pub(crate) struct Process {
    pub pid: Pid,
    /// Names the process and its namespaces even when its number has been given to another.
    pub pidfd: OwnedFd,
    pub phase: Phase,
    /// The way to it until it has executed.
    pub channel: Option<Watch>,
    pub has_terminal: bool,
    /// The terminal's master side, once it is there and until it has hung up.
    pub terminal: Option<OwnedFd>,
    /// The connection that the terminal will have.
    pub terminal_connection: Option<OwnedFd>,
    /// The flow into its stdin.
    pub stdin: Option<u64>,
    /// Who waits for its end.
    pub waits: Vec<Reply>,
    /// The connection with which it ends.
    pub owner: Option<u64>,
    /// Whether that has ended: nobody asks about the process any more.
    pub is_deserted: bool,
}

impl Process {
    /// How it has ended, if it has.
    pub(crate) fn exit(&self) -> Option<Exit> {
        match self.phase {
            Phase::Exited(exit) => Some(exit),
            _ => None,
        }
    }

    /// Whether its namespaces are complete and it is alive.
    pub(crate) fn is_joinable(&self) -> bool {
        matches!(
            self.phase,
            Phase::Created | Phase::Starting(_) | Phase::Running | Phase::Unstarted(..)
        )
    }

    /// Its state as the host sees it; none before it is created.
    pub(crate) fn state(&self, exec: &str) -> Option<ProcessState> {
        let status = match self.phase {
            Phase::Building(_) | Phase::Unbuilt(..) => return None,
            Phase::Created | Phase::Starting(_) => Status::CREATED,
            Phase::Running | Phase::Unstarted(..) => Status::RUNNING,
            Phase::Exited(_) => Status::STOPPED,
        };
        Some(ProcessState {
            exec: exec.to_owned(),
            pid: self.pid.as_raw().cast_unsigned(),
            status: status.into(),
            exit_status: self.exit().map_or(0, |exit| exit.status),
            exited_at_ns: self.exit().map_or(0, |exit| exit.at_ns),
            terminal: self.has_terminal,
            ..ProcessState::default()
        })
    }
}
