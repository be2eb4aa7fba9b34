//! The end of processes: reaping, Wait, Delete, memory limits, and the end of the guest.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use husk_protocol::agent::event::Kind;
use husk_protocol::agent::{DeleteRequest, DeleteResponse, Event, StartResponse, WaitRequest, WaitResponse};
use nix::sys::epoll::EpollFlags;
use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::Pid;

use crate::agent::Agent;
use crate::calls::{Answer, encode, state};
use crate::cgroup::{is_populated, oom_kills, reread};
use crate::container::{Exit, Name, Phase, Process, Reply};
use crate::poller::Source;
use crate::refusal::Refusal;
use crate::sys;

/// How long processes may take to die of SIGKILL.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long they may take when the guest is switched off.
const LAST_PATIENCE: Duration = Duration::from_secs(2);
/// Calls that wait for one process.
const MAX_WAITS: usize = 1024;

/// A Delete that waits for processes to be gone.
#[derive(Debug)]
pub(crate) struct Deletion {
    pub deadline: Instant,
    name: Name,
    reply: Reply,
}

impl Agent {
    /// Takes leave of every child that has ended: processes of containers, and orphans, whose parent the agent has
    /// become.
    pub(crate) fn reap(&mut self) {
        self.drain_signals();
        while let Some((pid, status)) = sys::reap() {
            if let Some(name) = self.pids.remove(&pid) {
                self.on_exit(&name, status);
            } else {
                self.servers.remove(&pid);
            }
        }
        self.advance_deletions();
    }

    fn on_exit(&mut self, name: &Name, status: u32) {
        // Its last words come before its end.
        let channel = self
            .channels
            .iter()
            .find(|(_, owner)| *owner == name)
            .map(|(number, _)| *number);
        if let Some(number) = channel {
            self.on_channel(number);
            self.channels.remove(&number);
        }
        let exit = Exit {
            status,
            at_ns: sys::wall_clock_ns(),
            monotonic_ns: sys::monotonic_ns(),
        };
        let Some(process) = self.process_mut(name) else { return };
        process.channel = None;
        let pid = process.pid.as_raw().cast_unsigned();
        match std::mem::replace(&mut process.phase, Phase::Exited(exit)) {
            Phase::Building(reply) => {
                let died = if self.count_oom_kills(&name.container) {
                    "the memory limit has killed the process while it was being made"
                } else {
                    "the process died while it was being made"
                };
                self.forget(name);
                return self.refuse(reply, state(name, died));
            }
            Phase::Unbuilt(reply, failure) => {
                self.forget(name);
                return self.answer_created(name, reply, 0, Some(failure));
            }
            Phase::Unstarted(reply, failure) => {
                let failure = Some(failure).into();
                self.answer(
                    reply,
                    &StartResponse {
                        failure,
                        ..StartResponse::default()
                    },
                );
            }
            Phase::Starting(reply) => {
                self.refuse(reply, state(name, "the process died while it was being started"));
            }
            Phase::Created | Phase::Running | Phase::Exited(_) => {}
        }
        self.count_oom_kills(&name.container);
        self.journal.record(Event {
            kind: Kind::EXIT.into(),
            container: name.container.clone(),
            exec: name.exec.clone(),
            pid,
            status,
            exited_at_ns: exit.at_ns,
            ..Event::default()
        });
        self.answer_waits(name, exit);
        self.advance_pauses();
        if name.is_first() {
            self.kill_rest(&name.container);
        } else if self.process_mut(name).is_some_and(|process| process.is_deserted) {
            self.forget(name);
        }
    }

    /// Ends the processes that are bound to a connection.
    pub(crate) fn desert(&mut self, connection: u64) {
        self.pending.retain(|pending| pending.owner() != Some(connection));
        let mut exited = Vec::new();
        for (id, container) in &mut self.containers {
            for (exec, process) in &mut container.processes {
                if process.owner != Some(connection) {
                    continue;
                }
                process.is_deserted = true;
                if process.exit().is_some() {
                    exited.push(Name::new(id, exec));
                } else if let Err(error) = sys::kill(process.pid, libc::SIGKILL) {
                    crate::boot::complain(&format!(
                        "process {exec:?} of container {id:?} cannot be ended: {error}"
                    ));
                }
            }
        }
        exited.iter().for_each(|name| self.forget(name));
    }

    fn answer_waits(&mut self, name: &Name, exit: Exit) {
        let Some(container) = self.containers.get_mut(&name.container) else {
            return;
        };
        let answer = wait_response(exit, container.oom_kills > 0);
        let Some(process) = container.processes.get_mut(&name.exec) else {
            return;
        };
        for reply in std::mem::take(&mut process.waits) {
            self.answer(reply, &answer);
        }
    }

    /// A container ends with its first process. Its pid namespace sees to that where it has one of its own.
    fn kill_rest(&mut self, id: &str) {
        self.end_servers(id);
        if let Some(container) = self.containers.get(id) {
            // A kernel before 5.14 has no such file; husk's guests are newer.
            let _ = container.cgroup.kill();
        }
    }

    pub(crate) fn wait(&mut self, reply: Reply, request: &WaitRequest) -> Answer {
        let name = Name::new(&request.container, &request.exec);
        let oom_killed = self.container(&name.container)?.oom_kills > 0;
        let process = self.process(&name)?;
        if let Some(exit) = process.exit() {
            return encode(&wait_response(exit, oom_killed));
        }
        if process.waits.len() >= MAX_WAITS {
            return Err(Refusal::Full {
                what: "calls that wait for the process",
                limit: MAX_WAITS,
            });
        }
        process.waits.push(reply);
        Ok(None)
    }

    /// A container's memory.events has changed.
    pub(crate) fn on_memory(&mut self, number: u64) {
        let id = self
            .containers
            .iter()
            .find(|(_, container)| container.number == number)
            .map(|(id, _)| id.clone());
        if let Some(id) = id {
            self.count_oom_kills(&id);
        }
    }

    /// Looks whether the memory limit has killed a process since the last look.
    fn count_oom_kills(&mut self, id: &str) -> bool {
        let Some(container) = self.containers.get_mut(id) else {
            return false;
        };
        let Some(memory) = &container.memory else { return false };
        let now = oom_kills(&reread(memory));
        let has_killed = now > container.oom_kills;
        if has_killed {
            container.oom_kills = now;
            self.journal.record(Event {
                kind: Kind::OOM.into(),
                container: id.to_owned(),
                ..Event::default()
            });
        }
        has_killed
    }

    pub(crate) fn delete(&mut self, reply: Reply, request: &DeleteRequest) -> Answer {
        let name = Name::new(&request.container, &request.exec);
        let process = self.process(&name)?;
        match process.phase {
            Phase::Created => {
                sys::kill(process.pid, libc::SIGKILL).map_err(Refusal::system("killing the process"))?;
            }
            Phase::Exited(_) => {}
            _ => return Err(state(&name, "the process is running")),
        }
        if name.is_first() {
            self.watch_events(&name.container)?;
            self.kill_rest(&name.container);
        }
        self.deletions.push(Deletion {
            deadline: Instant::now() + PATIENCE,
            name,
            reply,
        });
        self.advance_deletions();
        Ok(None)
    }

    /// Watches for the end of a container's processes and for their stop.
    pub(crate) fn watch_events(&mut self, id: &str) -> Result<(), Refusal> {
        let Some(container) = self.containers.get_mut(id) else {
            return Ok(());
        };
        if container.events.is_some() {
            return Ok(());
        }
        let file = container.cgroup.open("cgroup.events")?;
        let source = Source::Cgroup(container.number);
        let watch = self.poller.watch(file.into(), source, EpollFlags::EPOLLPRI);
        container.events = Some(watch.map_err(Refusal::system("watching cgroup.events"))?);
        Ok(())
    }

    /// A container's cgroup.events has changed.
    pub(crate) fn on_cgroup(&mut self, number: u64) {
        let container = self.containers.values().find(|container| container.number == number);
        if let Some(events) = container.and_then(|container| container.events.as_ref()) {
            // Unread, it would be reported again and again.
            reread(events);
        }
        self.advance_pauses();
        self.advance_deletions();
    }

    /// Goes on with each Delete whose processes are gone.
    pub(crate) fn advance_deletions(&mut self) {
        for deletion in std::mem::take(&mut self.deletions) {
            let name = &deletion.name;
            let process = match self.process(name) {
                Ok(process) => process,
                Err(refusal) => {
                    self.refuse(deletion.reply, refusal);
                    continue;
                }
            };
            let (pid, exit) = (process.pid.as_raw().cast_unsigned(), process.exit());
            let (Some(exit), true) = (exit, self.is_deletable(name)) else {
                self.deletions.push(deletion);
                continue;
            };
            self.forget(name);
            let answer = DeleteResponse {
                pid,
                status: exit.status,
                exited_at_ns: exit.at_ns,
                ..DeleteResponse::default()
            };
            self.answer(deletion.reply, &answer);
        }
    }

    fn is_deletable(&self, name: &Name) -> bool {
        let Some(container) = self.containers.get(&name.container) else {
            return true;
        };
        let is_populated = || {
            container
                .events
                .as_ref()
                .is_some_and(|events| is_populated(&reread(events)))
        };
        !name.is_first() || (container.processes.values().all(|process| process.exit().is_some()) && !is_populated())
    }

    /// Refuses each Delete whose processes have not ended in time.
    pub(crate) fn expire_deletions(&mut self, now: Instant) {
        let late: Vec<_> = self
            .deletions
            .extract_if(.., |deletion| deletion.deadline <= now)
            .collect();
        for deletion in late {
            self.refuse(deletion.reply, Refusal::StillAlive(deletion.name.container));
        }
    }

    /// Lets go of all that belongs to a process that has ended; with a container's first process, of the container.
    fn forget(&mut self, name: &Name) {
        if name.is_first() {
            let Some(container) = self.containers.remove(&name.container) else {
                return;
            };
            container
                .processes
                .into_values()
                .for_each(|process| self.let_go(process));
            if !container.cgroup.remove() {
                crate::boot::complain(&format!("the cgroup of container {:?} is not empty", name.container));
            }
            self.images.give_back(&container.disk);
            self.shared.give_back(&container.shared);
        } else if let Some(container) = self.containers.get_mut(&name.container)
            && let Some(process) = container.processes.remove(&name.exec)
        {
            self.let_go(process);
        }
    }

    /// What a process has written may still be on its way, and a child of it may still write. What it has not read is
    /// read by nobody now.
    fn let_go(&mut self, process: Process) {
        if let Some(stdin) = process.stdin {
            self.end_flow(stdin);
        }
        for reply in process.waits {
            self.refuse(reply, Refusal::Deleted);
        }
    }

    /// Ends every process and switches the guest off.
    pub(crate) fn power_off(self) -> nix::Result<Infallible> {
        let deadline = Instant::now() + LAST_PATIENCE;
        // All but the first process of the pid namespace: the agent itself.
        let mut alive = sys::kill(Pid::from_raw(-1), libc::SIGKILL).is_ok();
        while alive && Instant::now() < deadline {
            while sys::reap().is_some() {}
            alive = sys::has_children();
            if alive {
                self.poller.wait(Some(deadline))?;
                self.drain_signals();
            }
        }
        nix::unistd::sync();
        reboot(RebootMode::RB_POWER_OFF)
    }
}

fn wait_response(exit: Exit, oom_killed: bool) -> WaitResponse {
    WaitResponse {
        status: exit.status,
        exited_at_ns: exit.at_ns,
        exited_ns: exit.monotonic_ns,
        oom_killed,
        ..WaitResponse::default()
    }
}
