//! How a process comes to be: Create, Exec and Start.
//!
//! A request first waits for what it names: its stdio connections and its disk may arrive after it. Then the agent
//! forks the process, which builds its surroundings by itself and reports over a channel ([`child::packet`]); the
//! answer goes out when it has. The agent never waits for it.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use husk_protocol::agent::namespace::Kind;
use husk_protocol::agent::{CreateRequest, CreateResponse, ExecRequest, Process as ProcessSpec};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::Pid;

use crate::agent::Agent;
use crate::calls::{Answer, state};
use crate::cgroup::Cgroup;
use crate::check::{check_create, check_exec, tokens};
use crate::child::{self, Plan, Task};
use crate::container::{Container, Name, Phase, Process, Reply};
use crate::pause::Freeze;
use crate::poller::{Source, Watch};
use crate::refusal::Refusal;
use crate::stdio::{PATIENCE, Token};
use crate::sys::{self, Forked};

const MAX_CONTAINERS: usize = 1024;
const MAX_PROCESSES: usize = 4096;

/// A request that waits for its connections and its disk.
#[derive(Debug)]
pub(crate) struct Pending {
    pub deadline: Instant,
    name: Name,
    reply: Reply,
    tokens: [Option<Token>; 3],
    work: Work,
}

#[derive(Debug)]
enum Work {
    Create(Box<CreateRequest>),
    Exec(Box<ExecRequest>),
}

/// What a request waits for.
enum Missing {
    Disk(String),
    Stream,
}

/// Namespaces as a request wants them: new ones, and those of other containers.
struct Namespaces {
    own: CloneFlags,
    joined: Vec<(CloneFlags, String)>,
}

impl Pending {
    /// The connection with which the process ends, if it is bound to one.
    pub(crate) fn owner(&self) -> Option<u64> {
        match &self.work {
            Work::Exec(request) if request.bound => Some(self.reply.connection),
            _ => None,
        }
    }
}

impl Agent {
    pub(crate) fn create(&mut self, reply: Reply, request: CreateRequest) -> Answer {
        check_create(&request)?;
        let id = &request.container;
        if self.containers.contains_key(id) || self.pending.iter().any(|pending| pending.name.container == *id) {
            return Err(Refusal::ContainerExists(id.clone()));
        }
        if self.containers.len() >= MAX_CONTAINERS {
            return Err(Refusal::Full {
                what: "containers",
                limit: MAX_CONTAINERS,
            });
        }
        namespaces(&request)?;
        let name = Name::new(id, "");
        let tokens = tokens(&request.process)?;
        self.await_needs(name, reply, tokens, Work::Create(Box::new(request)))
    }

    pub(crate) fn exec(&mut self, reply: Reply, request: ExecRequest) -> Answer {
        check_exec(&request)?;
        let name = Name::new(&request.container, &request.exec);
        let container = self.container(&name.container)?;
        if !container.takes_processes() {
            return Err(container.refuse(&name.container, "created or running"));
        }
        if container.processes.contains_key(&name.exec) || self.pending.iter().any(|pending| pending.name == name) {
            return Err(Refusal::ProcessExists {
                container: name.container,
                exec: name.exec,
            });
        }
        let tokens = tokens(&request.process)?;
        self.await_needs(name, reply, tokens, Work::Exec(Box::new(request)))
    }

    /// A container's cgroup must not hold another one's: its limits, its freezer and its end would be that one's too.
    fn check_cgroup_path(&self, path: &str) -> Result<(), Refusal> {
        let path = self.cgroups.join(path);
        let meets = |other: &Path| other.starts_with(&path) || path.starts_with(other);
        if path != self.cgroups && self.containers.values().any(|container| meets(container.cgroup.path())) {
            return Err(Refusal::invalid(
                "cgroup_path",
                "lies within another container's, or around it",
            ));
        }
        Ok(())
    }

    fn await_needs(&mut self, name: Name, reply: Reply, tokens: [Option<Token>; 3], work: Work) -> Answer {
        if self.pids.len() + self.pending.len() >= MAX_PROCESSES {
            return Err(Refusal::Full {
                what: "processes",
                limit: MAX_PROCESSES,
            });
        }
        self.pending.push(Pending {
            deadline: Instant::now() + PATIENCE,
            name,
            reply,
            tokens,
            work,
        });
        self.advance_pending();
        Ok(None)
    }

    /// Goes on with every request that has all that it needs.
    pub(crate) fn advance_pending(&mut self) {
        for pending in std::mem::take(&mut self.pending) {
            if self.missing(&pending).is_some() {
                self.pending.push(pending);
                continue;
            }
            let begun = match &pending.work {
                Work::Create(request) => self.begin_create(&pending, request),
                Work::Exec(request) => self.begin_exec(&pending, request),
            };
            if let Err(refusal) = begun {
                self.answer::<CreateResponse>(pending.reply, Err(refusal));
            }
        }
    }

    /// Refuses requests whose needs have not been met in time.
    pub(crate) fn expire_pending(&mut self, now: Instant) {
        for pending in std::mem::take(&mut self.pending) {
            match self.missing(&pending) {
                Some(missing) if pending.deadline <= now => {
                    let refusal = match missing {
                        Missing::Disk(serial) => Refusal::NoDisk(serial),
                        Missing::Stream => Refusal::NoStream,
                    };
                    self.answer::<CreateResponse>(pending.reply, Err(refusal));
                }
                _ => self.pending.push(pending),
            }
        }
    }

    fn missing(&mut self, pending: &Pending) -> Option<Missing> {
        if !pending.tokens.iter().flatten().all(|token| self.unclaimed.has(token)) {
            return Some(Missing::Stream);
        }
        let Work::Create(request) = &pending.work else {
            return None;
        };
        let serial = &request.root.disk;
        let there = self.images.has(serial) || self.disks.find(serial).is_some();
        (!there).then(|| Missing::Disk(serial.clone()))
    }

    fn begin_create(&mut self, pending: &Pending, request: &CreateRequest) -> Result<(), Refusal> {
        let namespaces = namespaces(request)?;
        self.check_cgroup_path(&request.cgroup_path)?;
        let serial = request.root.disk.as_str();
        let device = self.disks.find(serial).unwrap_or_default();
        let cgroup = Cgroup::create(
            &self.cgroups,
            &request.container,
            &request.cgroup_path,
            request.resources.get_or_default(),
            self.disks.number(serial).as_deref(),
        )?;
        if let Err(error) = self.images.take(&self.disks, serial, &device) {
            cgroup.remove();
            return Err(error.into());
        }
        let number = self.poller.number();
        let made = self.watch_memory(&cgroup, number).and_then(|memory| {
            let process = self.fork_first(pending, request, &namespaces, &cgroup)?;
            Ok((memory, process))
        });
        match made {
            Ok((memory, process)) => {
                let container = Container {
                    number,
                    cgroup,
                    disk: serial.to_owned(),
                    memory,
                    events: None,
                    freeze: Freeze::Going,
                    oom_kills: 0,
                    processes: [(String::new(), process)].into(),
                };
                self.containers.insert(request.container.clone(), container);
                Ok(())
            }
            Err(refusal) => {
                cgroup.remove();
                self.images.give_back(serial);
                Err(refusal)
            }
        }
    }

    /// Watches for processes killed by the memory limit; a kernel without that controller kills none so.
    fn watch_memory(&self, cgroup: &Cgroup, number: u64) -> Result<Option<Watch>, Refusal> {
        let Ok(file) = cgroup.open("memory.events") else {
            return Ok(None);
        };
        // What is there before the first reading counts as news.
        crate::cgroup::reread(&file);
        let watch = self
            .poller
            .watch(file.into(), Source::Memory(number), EpollFlags::EPOLLPRI);
        watch.map(Some).map_err(Refusal::system("watching memory.events"))
    }

    fn fork_first(
        &mut self,
        pending: &Pending,
        request: &CreateRequest,
        namespaces: &Namespaces,
        cgroup: &Cgroup,
    ) -> Result<Process, Refusal> {
        let (image, stage) = (self.images.path(&request.root.disk), self.stage.clone());
        let task = Task::Create {
            request,
            image: &image,
            cgroup: cgroup.path(),
            stage: &stage,
            own: namespaces.own,
        };
        let mut joins = Vec::new();
        let mut pid_namespace = None;
        for (kind, id) in &namespaces.joined {
            let pidfd = self.joinable(id)?;
            if *kind == CloneFlags::CLONE_NEWPID {
                pid_namespace = Some(pidfd);
            } else {
                joins.push((*kind, pidfd));
            }
        }
        let directory = cgroup.directory()?;
        let cgroups = [directory];
        self.fork(
            pending,
            &request.process,
            task,
            joins,
            pid_namespace,
            &cgroups,
            namespaces.own,
        )
    }

    fn begin_exec(&mut self, pending: &Pending, request: &ExecRequest) -> Result<(), Refusal> {
        let id = &request.container;
        let first = self.joinable(id)?;
        let own_cgroup = self.container(id)?.cgroup.directory()?;
        // A container that manages its cgroup itself has moved its processes below: none may be added beside those.
        let pid = self.process(&Name::new(id, ""))?.pid;
        let cgroups: Vec<_> = [Some(own_cgroup), self.cgroup_of(pid)].into_iter().flatten().collect();
        let all = CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWCGROUP;
        let pid_namespace = first.try_clone().map_err(Refusal::file("copying a descriptor"))?;
        let joins = vec![(all, first)];
        let none = CloneFlags::empty();
        let task = Task::Exec;
        let process = self.fork(
            pending,
            &request.process,
            task,
            joins,
            Some(pid_namespace),
            &cgroups,
            none,
        )?;
        if let Some(container) = self.containers.get_mut(id) {
            container.processes.insert(request.exec.clone(), process);
        }
        Ok(())
    }

    /// The cgroup directory in which a process is now.
    fn cgroup_of(&self, pid: Pid) -> Option<OwnedFd> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
        fs::File::open(self.cgroups.join(path)).ok().map(OwnedFd::from)
    }

    /// The pidfd of a container's first process, for joining its namespaces.
    fn joinable(&mut self, id: &str) -> Result<OwnedFd, Refusal> {
        let name = Name::new(id, "");
        let process = self.process(&name)?;
        if !process.is_joinable() {
            return Err(state(&name, "the container is not running"));
        }
        process.pidfd.try_clone().map_err(Refusal::file("copying a descriptor"))
    }

    /// Makes the process. All that can fail here happens before there is one.
    #[allow(
        clippy::too_many_arguments,
        reason = "each is one of the things that make a process what it is"
    )]
    fn fork(
        &mut self,
        pending: &Pending,
        spec: &ProcessSpec,
        task: Task<'_>,
        joins: Vec<(CloneFlags, OwnedFd)>,
        pid_namespace: Option<OwnedFd>,
        cgroups: &[OwnedFd],
        own: CloneFlags,
    ) -> Result<Process, Refusal> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(Refusal::system("making a channel to the process"))?;
        let number = self.poller.number();
        let channel = self
            .poller
            .watch(ours, Source::Channel(number), EpollFlags::EPOLLIN)
            .map_err(Refusal::system("watching the channel to the process"))?;
        let mut streams = self.connect_streams(spec, &pending.tokens)?;
        let plan = Plan {
            process: spec,
            task,
            joins: joins.iter().map(|(kind, pidfd)| (*kind, pidfd.as_fd())).collect(),
            streams: streams.child.take(),
            channel: theirs,
        };
        let pid_namespace = pid_namespace.as_ref().unwrap_or(&self.pid_namespace);
        let forked = fork_into_one_of(cgroups, pid_namespace.as_fd(), own, &plan);
        drop(plan);
        let (pid, pidfd) = match forked {
            Ok(forked) => forked,
            Err(source) => {
                streams.flows.into_iter().for_each(|flow| self.end_flow(flow));
                return Err(Refusal::system("making the process")(source));
            }
        };
        self.channels.insert(number, pending.name.clone());
        self.pids.insert(pid.as_raw(), pending.name.clone());
        Ok(Process {
            pid,
            pidfd,
            phase: Phase::Building(pending.reply),
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
    let own = own - CloneFlags::CLONE_NEWCGROUP;
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

/// The namespaces that a request asks for.
fn namespaces(request: &CreateRequest) -> Result<Namespaces, Refusal> {
    let mut namespaces = Namespaces {
        own: CloneFlags::empty(),
        joined: Vec::new(),
    };
    let mut seen = CloneFlags::empty();
    for (index, namespace) in request.namespaces.iter().enumerate() {
        let field = format!("namespaces[{index}]");
        let kind = match namespace.kind.enum_value_or_default() {
            Kind::UNKNOWN => return Err(Refusal::invalid(field, "is of no known kind")),
            Kind::MOUNT => CloneFlags::CLONE_NEWNS,
            Kind::PID => CloneFlags::CLONE_NEWPID,
            Kind::IPC => CloneFlags::CLONE_NEWIPC,
            Kind::UTS => CloneFlags::CLONE_NEWUTS,
            Kind::NETWORK => CloneFlags::CLONE_NEWNET,
            Kind::CGROUP => CloneFlags::CLONE_NEWCGROUP,
        };
        if seen.contains(kind) {
            return Err(Refusal::invalid(field, "is of a kind that is there before"));
        }
        seen |= kind;
        if namespace.container.is_empty() {
            namespaces.own |= kind;
        } else {
            namespaces.joined.push((kind, namespace.container.clone()));
        }
    }
    if !namespaces.own.contains(CloneFlags::CLONE_NEWNS) {
        return Err(Refusal::invalid(
            "namespaces",
            "have no new mount namespace, without which there is no root",
        ));
    }
    let is_named = !request.hostname.is_empty() || !request.domainname.is_empty();
    if is_named && !seen.contains(CloneFlags::CLONE_NEWUTS) {
        return Err(Refusal::invalid(
            "hostname",
            "is the guest's own without a UTS namespace",
        ));
    }
    Ok(namespaces)
}

#[cfg(test)]
mod tests {
    use husk_protocol::agent::Namespace;

    use super::*;

    fn request(kinds: &[(Kind, &str)]) -> CreateRequest {
        let namespace = |(kind, container): &(Kind, &str)| Namespace {
            kind: (*kind).into(),
            container: (*container).to_owned(),
            ..Namespace::default()
        };
        CreateRequest {
            namespaces: kinds.iter().map(namespace).collect(),
            ..CreateRequest::default()
        }
    }

    #[test]
    fn namespaces_are_new_or_joined() {
        let wanted = request(&[
            (Kind::MOUNT, ""),
            (Kind::PID, ""),
            (Kind::IPC, "pause"),
            (Kind::CGROUP, ""),
        ]);
        let found = namespaces(&wanted).unwrap();
        let own = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWCGROUP;
        assert_eq!(found.own, own);
        assert_eq!(found.joined, [(CloneFlags::CLONE_NEWIPC, "pause".to_owned())]);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (kinds, field) in [
            (&[][..], "namespaces:"),
            (&[(Kind::MOUNT, "other")], "namespaces:"),
            (&[(Kind::MOUNT, ""), (Kind::UNKNOWN, "")], "namespaces[1]:"),
            (
                &[(Kind::MOUNT, ""), (Kind::PID, ""), (Kind::PID, "x")],
                "namespaces[2]:",
            ),
        ] {
            let refusal = namespaces(&request(kinds)).err().unwrap().to_string();
            assert!(refusal.starts_with(field), "{refusal}");
        }
        let named = CreateRequest {
            hostname: "x".to_owned(),
            ..request(&[(Kind::MOUNT, "")])
        };
        assert!(namespaces(&named).err().unwrap().to_string().starts_with("hostname:"));
    }
}
