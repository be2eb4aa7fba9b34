//! The fork of a process: what is made for it before, and where it begins.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use husk_protocol::agent::{CreateRequest, Failure, IdMapping, Process as ProcessSpec, Seccomp, TimeOffset};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::Pid;

use crate::agent::Agent;
use crate::child::packet::PREPARED;
use crate::child::{self, Plan, Task};
use crate::container::{Phase, Process};
use crate::namespaces::{CLONE_NEWTIME, outside};
use crate::pending::Pending;
use crate::poller::Source;
use crate::prepare::prepare;
use crate::refusal::Refusal;
use crate::sys::{self, Forked};

/// What a process is made from, beside what it is to be.
pub(crate) struct Birth<'a> {
    pub spec: &'a ProcessSpec,
    pub task: Task<'a>,
    /// The request for the container whose first process it is.
    pub created: Option<&'a CreateRequest>,
    pub seccomp: Option<&'a Seccomp>,
    pub personality: Option<u32>,
    /// The user namespace's ids, where there is one.
    pub ids: Option<&'a Vec<IdMapping>>,
    /// Namespaces of other containers, by a pidfd of theirs; but the pid namespace.
    pub joins: Vec<(CloneFlags, OwnedFd)>,
    /// The pid namespace to be in; the agent's own if there is none.
    pub pid_namespace: Option<OwnedFd>,
    /// The first of these that takes processes is the one to be in.
    pub cgroups: &'a [OwnedFd],
    /// Namespaces to be made.
    pub own: CloneFlags,
}

impl Agent {
    /// Makes the process. All that can fail here happens before there is one.
    pub(crate) fn fork(&mut self, pending: &Pending, birth: Birth<'_>) -> Result<Process, Refusal> {
        let spec = birth.spec;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(Refusal::system("making a channel to the process"))?;
        let number = self.poller.number();
        let channel = self
            .poller
            .watch(ours, Source::Channel(number), EpollFlags::EPOLLIN)
            .map_err(Refusal::system("watching the channel to the process"))?;
        let owner = match birth.ids {
            Some(ids) => Some(
                outside(ids, spec.user.uid)
                    .ok_or_else(|| Refusal::invalid("process.user.uid", "is not in the container's user namespace"))?,
            ),
            None => None,
        };
        let mut streams = self.connect_streams(spec, &pending.tokens, owner)?;
        let plan = Plan {
            process: spec,
            seccomp: birth.seccomp,
            in_user_namespace: birth.ids.is_some(),
            personality: birth.personality,
            task: birth.task,
            joins: birth.joins.iter().map(|(kind, pidfd)| (*kind, pidfd.as_fd())).collect(),
            streams: streams.child.take(),
            channel: theirs,
        };
        let pid_namespace = birth.pid_namespace.as_ref().unwrap_or(&self.pid_namespace);
        let offsets = birth.created.map_or(&[][..], |request| &request.time_offsets);
        let forked = in_time_namespace(birth.own, offsets, || {
            fork_into_one_of(birth.cgroups, pid_namespace.as_fd(), birth.own, &plan)
        });
        drop(plan);
        let (pid, pidfd) = match forked {
            Ok(forked) => forked,
            Err(source) => {
                streams.flows.into_iter().for_each(|flow| self.end_flow(flow));
                return Err(source);
            }
        };
        let phase = match prepare(pid, spec, birth.created)
            .and_then(|()| nix::unistd::write(&channel, &[PREPARED]).map_err(Refusal::system("making the process")))
        {
            Ok(_) => Phase::Building(pending.reply),
            Err(refusal) => {
                // The answer waits for its end.
                let _ = sys::kill(pid, libc::SIGKILL);
                let failure = Failure {
                    message: refusal.to_string(),
                    ..Failure::default()
                };
                Phase::Unbuilt(pending.reply, failure)
            }
        };
        self.channels.insert(number, pending.name.clone());
        self.pids.insert(pid.as_raw(), pending.name.clone());
        Ok(Process {
            pid,
            pidfd,
            phase,
            channel: Some(channel),
            has_terminal: spec.stdio.terminal,
            terminal: None,
            terminal_connection: streams.terminal,
            stdin: streams.stdin,
            waits: Vec::new(),
            owner: pending.owner(),
            is_deserted: false,
        })
    }
}

/// Forks with a new time namespace for the child, if it is to have one.
fn in_time_namespace<T>(
    own: CloneFlags,
    offsets: &[TimeOffset],
    fork: impl FnOnce() -> nix::Result<T>,
) -> Result<T, Refusal> {
    let failed = || Refusal::system("making the process");
    if !own.contains(CLONE_NEWTIME) {
        return fork().map_err(failed());
    }
    let mine = fs::File::open("/proc/self/ns/time").map_err(Refusal::file("opening the time namespace"))?;
    // The agent's children are in it, and nobody can change its clocks from the first of them on.
    unshare(CLONE_NEWTIME).map_err(Refusal::system("making a time namespace"))?;
    let text: String = offsets
        .iter()
        .map(|offset| format!("{} {} {}\n", offset.clock, offset.seconds, offset.nanoseconds))
        .collect();
    let set = match text.as_str() {
        "" => Ok(()),
        text => fs::write("/proc/self/timens_offsets", text).map_err(Refusal::file("setting time_offsets")),
    };
    let forked = set.and_then(|()| fork().map_err(failed()));
    // The agent has been in it before; a child has nothing to do with this.
    setns(mine, CLONE_NEWTIME).map_err(Refusal::system("leaving the time namespace"))?;
    forked
}

/// Forks into the first of the cgroups that takes processes.
fn fork_into_one_of(
    cgroups: &[OwnedFd],
    pid_namespace: BorrowedFd<'_>,
    own: CloneFlags,
    plan: &Plan<'_>,
) -> nix::Result<(Pid, OwnedFd)> {
    // Only children are put there, so each fork says where anew.
    setns(pid_namespace, CloneFlags::CLONE_NEWPID)?;
    // The cgroup namespace comes later: it begins where the process is by then.
    let own = own - CloneFlags::CLONE_NEWCGROUP - CLONE_NEWTIME;
    let mut result = Err(Errno::ENOENT);
    for cgroup in cgroups {
        result = sys::fork_into(cgroup.as_fd(), own.bits());
        if !matches!(result, Err(Errno::EBUSY)) {
            break;
        }
    }
    match result? {
        Forked::Child => child::run(plan),
        Forked::Parent { child, pidfd } => Ok((child, pidfd)),
    }
}
