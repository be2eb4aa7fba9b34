//! What `state.json` says.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::confinement::Confinement;
use crate::hooks::Hooks;
use husk_protocol::agent;
use serde::{Deserialize, Serialize};

/// A running sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Its name.
    pub name: String,
    /// The process that owns it.
    pub pid: u32,
    /// The process of its machine monitor.
    pub vmm_pid: u32,
    /// When it was made, in seconds since the epoch.
    pub created: u64,
    /// The number of vCPUs.
    pub cpus: u32,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Whether it has a console.
    pub console: bool,
    /// Its containers, in the order in which they were made.
    pub containers: Vec<Container>,
    /// The cgroup on the host that it is in, if it has one of its own.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
    /// The host's policies that confine its machine, and so everything in it.
    #[serde(default)]
    pub confinement: Confinement,
    /// Whether its directory stays when it has ended, until somebody removes it.
    #[serde(default)]
    pub kept: bool,
    /// How its first container's process has ended, once the sandbox has ended.
    #[serde(default)]
    pub exit: Option<Exit>,
}

/// How a container's first process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code, or 128 and the signal's number.
    pub status: u8,
    /// Wall-clock time in nanoseconds since the epoch.
    pub at_ns: u64,
    /// Whether the container's memory limit has killed a process of it.
    pub oom_killed: bool,
}

/// A container of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Its name in the sandbox.
    pub name: String,
    /// The directory on the host that its root file system was made from.
    pub root: PathBuf,
    /// The OCI bundle that it was made from.
    #[serde(default)]
    pub bundle: Option<PathBuf>,
    /// The annotations of its `config.json`.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// The programs of the host that run at points of its life.
    #[serde(default)]
    pub hooks: Hooks,
    /// How long the hooks in the guest may take at its start, in seconds.
    #[serde(default)]
    pub start_hooks_s: u64,
    /// Its first process, on which further ones are modelled.
    pub process: ContainerProcess,
}

/// What a further process of the container inherits from the first one's definition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerProcess {
    /// Command and arguments.
    pub args: Vec<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// Working directory.
    pub cwd: String,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
    /// File mode creation mask.
    pub umask: Option<u32>,
    /// Bounding, effective, inheritable, permitted and ambient capabilities; unset: none.
    pub capabilities: Option<[u64; 5]>,
    /// Resource number, soft and hard limit.
    pub rlimits: Vec<(u32, u64, u64)>,
    /// Whether privileges can be gained.
    pub no_new_privileges: bool,
    /// Adjustment of the OOM killer's score.
    pub oom_score_adj: Option<i32>,
    /// Policy, nice value, priority and flags of sched_setattr(2), then runtime, deadline and period in nanoseconds.
    pub scheduler: Option<(u32, i32, u32, u64, [u64; 3])>,
    /// What ioprio_set(2) takes.
    pub io_priority: Option<u32>,
    /// vCPUs on which a further process begins and those on which it executes.
    pub cpus: [Vec<u32>; 2],
}

impl From<&agent::Process> for ContainerProcess {
    fn from(process: &agent::Process) -> Self {
        Self {
            args: process.args.clone(),
            env: process.env.clone(),
            cwd: process.cwd.clone(),
            uid: process.user.uid,
            gid: process.user.gid,
            additional_gids: process.user.additional_gids.clone(),
            umask: process.user.umask,
            capabilities: process.capabilities.as_ref().map(|sets| {
                [
                    sets.bounding,
                    sets.effective,
                    sets.inheritable,
                    sets.permitted,
                    sets.ambient,
                ]
            }),
            rlimits: process
                .rlimits
                .iter()
                .map(|limit| (limit.resource, limit.soft, limit.hard))
                .collect(),
            no_new_privileges: process.no_new_privileges,
            oom_score_adj: process.oom_score_adj,
            scheduler: process.scheduler.as_ref().map(|of| {
                let times = [of.runtime, of.deadline, of.period];
                (of.policy, of.nice, of.priority, of.flags, times)
            }),
            io_priority: process.io_priority,
            cpus: [process.initial_cpus.clone(), process.final_cpus.clone()],
        }
    }
}

impl From<&ContainerProcess> for agent::Process {
    fn from(process: &ContainerProcess) -> Self {
        let user = agent::User {
            uid: process.uid,
            gid: process.gid,
            additional_gids: process.additional_gids.clone(),
            umask: process.umask,
            ..Default::default()
        };
        let capabilities = process.capabilities.map(|sets| agent::Capabilities {
            bounding: sets[0],
            effective: sets[1],
            inheritable: sets[2],
            permitted: sets[3],
            ambient: sets[4],
            ..Default::default()
        });
        let rlimits = process.rlimits.iter().map(|(resource, soft, hard)| agent::Rlimit {
            resource: *resource,
            soft: *soft,
            hard: *hard,
            ..Default::default()
        });
        let scheduler = process
            .scheduler
            .map(|(policy, nice, priority, flags, times)| agent::Scheduler {
                policy,
                nice,
                priority,
                flags,
                runtime: times[0],
                deadline: times[1],
                period: times[2],
                ..Default::default()
            });
        Self {
            args: process.args.clone(),
            env: process.env.clone(),
            cwd: process.cwd.clone(),
            user: Some(user).into(),
            capabilities: capabilities.into(),
            rlimits: rlimits.collect(),
            no_new_privileges: process.no_new_privileges,
            oom_score_adj: process.oom_score_adj,
            scheduler: scheduler.into(),
            io_priority: process.io_priority,
            initial_cpus: process.cpus[0].clone(),
            final_cpus: process.cpus[1].clone(),
            ..Default::default()
        }
    }
}
