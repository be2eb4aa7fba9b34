//! How a process comes to be: Create and Exec.
//!
//! A request first waits for what it names ([`crate::pending`]). Then the agent forks the process ([`crate::birth`]), which
//! builds its surroundings by itself and reports over a channel ([`child::packet`]); the answer goes out when it has. The
//! agent never waits for it.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use husk_protocol::agent::{CreateRequest, ExecRequest};
use nix::sched::CloneFlags;
use nix::sys::epoll::EpollFlags;
use nix::unistd::Pid;

use crate::agent::Agent;
use crate::birth::Birth;
use crate::calls::{Answer, state};
use crate::cgroup::Cgroup;
use crate::check::{check_create, check_exec, tokens};
use crate::child::{self, Task};
use crate::container::{Common, Container, Name, Process, Reply};
use crate::namespaces::{CLONE_NEWTIME, Namespaces, namespaces};
use crate::pause::Freeze;
use crate::pending::{Pending, Work};
use crate::poller::{Source, Watch};
use crate::refusal::Refusal;

const MAX_CONTAINERS: usize = 1024;

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

    pub(crate) fn begin_create(&mut self, pending: &Pending, request: &CreateRequest) -> Result<(), Refusal> {
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
        if let Err(error) = self.images.take(&self.disks, &request.root, &device) {
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
        let (image, stage) = (self.images.layers(&request.root.disk), self.stage.clone());
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

    pub(crate) fn begin_exec(&mut self, pending: &Pending, request: &ExecRequest) -> Result<(), Refusal> {
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
    pub(crate) fn joinable(&mut self, id: &str) -> Result<OwnedFd, Refusal> {
        let name = Name::new(id, "");
        let process = self.process(&name)?;
        if !process.is_joinable() {
            return Err(state(&name, "the container is not running"));
        }
        process.pidfd.try_clone().map_err(Refusal::file("copying a descriptor"))
    }
}
