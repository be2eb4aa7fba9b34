//! How a process comes to be: Create, Exec and Start.
//!
//! A request first waits for what it names: its stdio connections and its disk may arrive after it. Then the agent
//! forks the process, which builds its surroundings by itself and reports over a channel ([`child::packet`]); the
//! answer goes out when it has. The agent never waits for it.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use husk_protocol::agent::{
    CreateRequest, CreateResponse, ExecRequest, Failure, IdMapping, Process as ProcessSpec, Seccomp, TimeOffset,
};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::epoll::EpollFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::Pid;

use crate::agent::Agent;
use crate::calls::{Answer, state};
use crate::cgroup::Cgroup;
use crate::check::{check_create, check_exec, tokens};
use crate::child::packet::PREPARED;
use crate::child::{self, Plan, Task};
use crate::container::{Common, Container, Name, Phase, Process, Reply};
use crate::namespaces::{CLONE_NEWTIME, Namespaces, namespaces, outside};
use crate::pause::Freeze;
use crate::poller::{Source, Watch};
use crate::prepare::prepare;
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

/// What a process is made from, beside what it is to be.
struct Birth<'a> {
    spec: &'a ProcessSpec,
    task: Task<'a>,
    /// The request for the container whose first process it is.
    created: Option<&'a CreateRequest>,
    seccomp: Option<&'a Seccomp>,
    personality: Option<u32>,
    /// The user namespace's ids, where there is one.
    ids: Option<&'a Vec<IdMapping>>,
    /// Namespaces of other containers, by a pidfd of theirs; but the pid namespace.
    joins: Vec<(CloneFlags, OwnedFd)>,
    /// The pid namespace to be in; the agent's own if there is none.
    pid_namespace: Option<OwnedFd>,
    /// The first of these that takes processes is the one to be in.
    cgroups: &'a [OwnedFd],
    /// Namespaces to be made.
    own: CloneFlags,
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
        let shared = match self.shared.take(request) {
            Ok(shared) => shared,
            Err(refusal) => {
                cgroup.remove();
                self.images.give_back(serial);
                return Err(refusal);
            }
        };
        let number = self.poller.number();
        let made = self.watch_memory(&cgroup, number).and_then(|memory| {
            let process = self.fork_first(pending, request, &namespaces, &cgroup, &shared)?;
            Ok((memory, process))
        });
        match made {
            Ok((memory, process)) => {
                let container = Container {
                    number,
                    cgroup,
                    disk: serial.to_owned(),
                    shared: shared.into_keys().collect(),
                    common: Common {
                        seccomp: request.seccomp.as_ref().cloned(),
                        personality: request.personality,
                        uid_mappings: request.uid_mappings.clone(),
                    },
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
                self.shared.give_back(shared.keys());
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
        shared: &BTreeMap<String, PathBuf>,
    ) -> Result<Process, Refusal> {
        let (image, stage) = (self.images.path(&request.root.disk), self.stage.clone());
        let in_user_namespace = namespaces.own.contains(CloneFlags::CLONE_NEWUSER);
        let tree = match in_user_namespace {
            true => Some(child::detached(&image, &stage).map_err(Refusal::Root)?),
            false => None,
        };
        let task = Task::Create {
            request,
            image: &image,
            cgroup: cgroup.path(),
            stage: &stage,
            shared,
            own: namespaces.own,
            tree,
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
        let birth = Birth {
            spec: &request.process,
            task,
            created: Some(request),
            seccomp: request.seccomp.as_ref(),
            personality: request.personality,
            ids: in_user_namespace.then_some(&request.uid_mappings),
            joins,
            pid_namespace,
            cgroups: &cgroups,
            own: namespaces.own,
        };
        self.fork(pending, birth)
    }

    fn begin_exec(&mut self, pending: &Pending, request: &ExecRequest) -> Result<(), Refusal> {
        let id = &request.container;
        let first = self.joinable(id)?;
        let own_cgroup = self.container(id)?.cgroup.directory()?;
        // A container that manages its cgroup itself has moved its processes below: none may be added beside those.
        let pid = self.process(&Name::new(id, ""))?.pid;
        let cgroups: Vec<_> = [Some(own_cgroup), self.cgroup_of(pid)].into_iter().flatten().collect();
        let mut all = CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWCGROUP
            | CLONE_NEWTIME;
        let common = self.container(id)?.common.clone();
        if !common.uid_mappings.is_empty() {
            all |= CloneFlags::CLONE_NEWUSER;
        }
        let pid_namespace = first.try_clone().map_err(Refusal::file("copying a descriptor"))?;
        let joins = vec![(all, first)];
        let birth = Birth {
            spec: &request.process,
            task: Task::Exec,
            created: None,
            seccomp: common.seccomp.as_ref(),
            personality: common.personality,
            ids: (!common.uid_mappings.is_empty()).then_some(&common.uid_mappings),
            joins,
            pid_namespace: Some(pid_namespace),
            cgroups: &cgroups,
            own: CloneFlags::empty(),
        };
        let process = self.fork(pending, birth)?;
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
    fn fork(&mut self, pending: &Pending, birth: Birth<'_>) -> Result<Process, Refusal> {
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
