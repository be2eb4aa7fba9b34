//! How a process comes to be: Create, Exec and Start.
//!
//! A request first waits for what it names: its stdio connections and its disk may arrive after it. Then the agent
//! forks the process, which builds its surroundings by itself and reports over a channel ([`child::packet`]); the
//! answer goes out when it has. The agent never waits for it.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use husk_protocol::agent::{CreateRequest, CreateResponse, ExecRequest, Process as ProcessSpec, Seccomp};
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
use crate::namespaces::{Namespaces, namespaces};
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

/// What a process is made from, beside what it is to be.
struct Birth<'a> {
    spec: &'a ProcessSpec,
    task: Task<'a>,
    seccomp: Option<&'a Seccomp>,
    /// Namespaces of other containers, by a pidfd of theirs; but the pid namespace.
    joins: Vec<(CloneFlags, OwnedFd)>,
    /// The pid namespace to be in; the agent's own if there is none.
    pid_namespace: Option<OwnedFd>,
    /// The first of these that takes processes is the one to be in.
    cgroups: &'a [OwnedFd],
    /// Namespaces to be made.
    own: CloneFlags,
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
        if container.processes.contains_key(&name.exec) || self.pending.iter().any(|pending| pending.name == name) {
            return Err(Refusal::ProcessExists {
                container: name.container,
                exec: name.exec,
            });
        }
        let tokens = tokens(&request.process)?;
        self.await_needs(name, reply, tokens, Work::Exec(Box::new(request)))
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
        let serial = request.root.disk.as_str();
        let cgroup = Cgroup::create(&self.cgroups, &request.container, &request.cgroup)?;
        let device = self.disks.find(serial).unwrap_or_default();
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
                    seccomp: request.seccomp.as_ref().cloned(),
                    memory,
                    emptiness: None,
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
        let birth = Birth {
            spec: &request.process,
            task,
            seccomp: request.seccomp.as_ref(),
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
        let all = CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWCGROUP;
        let pid_namespace = first.try_clone().map_err(Refusal::file("copying a descriptor"))?;
        let joins = vec![(all, first)];
        let seccomp = self.container(id)?.seccomp.clone();
        let birth = Birth {
            spec: &request.process,
            task: Task::Exec,
            seccomp: seccomp.as_ref(),
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
        let mut streams = self.connect_streams(spec, &pending.tokens)?;
        let plan = Plan {
            process: spec,
            seccomp: birth.seccomp,
            task: birth.task,
            joins: birth.joins.iter().map(|(kind, pidfd)| (*kind, pidfd.as_fd())).collect(),
            streams: streams.child.take(),
            channel: theirs,
        };
        let pid_namespace = birth.pid_namespace.as_ref().unwrap_or(&self.pid_namespace);
        let forked = fork_into_one_of(birth.cgroups, pid_namespace.as_fd(), birth.own, &plan);
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
