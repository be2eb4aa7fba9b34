//! The shim's sandbox and its containers: what containerd's calls come to.
//!
//! The machine is started with the shim itself, before containerd has asked for anything, and boots while the first
//! container's root file system is looked up. All containers of a pod come to it. When the last one is deleted, the
//! machine goes; when containerd says so, the shim.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use containerd_shim_protos::events::task as events;
use containerd_shim_protos::types::mount::Mount;
use husk_sandbox::agent::ExecRequest;
use husk_sandbox::artefacts;
use husk_sandbox::bundle::{self, Bundle, users};
use husk_sandbox::guest::{Guest, ProcessId};
use husk_sandbox::host_cgroup;
use husk_sandbox::image::{Cache, DEFAULT_LIMIT, Image, ImageError};
use husk_sandbox::relay::Relay;
use husk_sandbox::rundir::RunDir;
use husk_sandbox::sandbox::{MAX_DISKS, Options, Sandbox, Stands};
use husk_sandbox::timeline::Timeline;

use crate::bootstrap;
use crate::config::Config;
use crate::container::Container;
use crate::error::{ShimError, chain};
use crate::events::Publisher;
use crate::exits;
use crate::process::{Exit, Process, Stage, lock};
use crate::rootfs::RootFs;
use crate::stdio::{Stdio, Whose};

/// How long a container that has not been started may take to go when it is deleted.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// How long events are waited for at the end.
const DRAIN: Duration = Duration::from_secs(2);

/// What tells a pod's sandbox from that of a single container: others come to it.
const SHARED: [(&str, Option<&str>); 3] = [
    ("io.kubernetes.cri.container-type", Some("sandbox")),
    ("io.kubernetes.cri-o.ContainerType", Some("sandbox")),
    ("io.containerd.runc.v2.group", None),
];

/// A new container.
#[derive(Debug)]
pub(crate) struct Creation {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: Vec<Mount>,
    pub(crate) stdio: Stdio,
}

/// The shim's sandbox.
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) events: Publisher,
    options: bootstrap::Options,
    /// Where the sandbox will be.
    place: Mutex<Option<RunDir>>,
    machine: Mutex<Option<Result<Arc<Sandbox>, String>>>,
    /// Whether the guest has come up; locked while somebody waits for it.
    is_ready: Mutex<bool>,
    /// None where one is being created.
    containers: Mutex<HashMap<String, Option<Arc<Container>>>>,
    is_over: Mutex<bool>,
    over: Condvar,
}

impl Pod {
    pub(crate) fn new(namespace: String, events: Publisher, options: bootstrap::Options, place: RunDir) -> Self {
        Self {
            namespace,
            events,
            options,
            place: Mutex::new(Some(place)),
            machine: Mutex::default(),
            is_ready: Mutex::default(),
            containers: Mutex::default(),
            is_over: Mutex::default(),
            over: Condvar::new(),
        }
    }

    /// Starts the machine for a bundle, if nobody has; it boots meanwhile.
    pub(crate) fn boot(&self, bundle: &Bundle) -> Result<Arc<Sandbox>, ShimError> {
        let mut machine = lock(&self.machine);
        if let Some(started) = &*machine {
            return started.clone().map_err(ShimError::Boot);
        }
        let place = lock(&self.place).take().ok_or(ShimError::NoSandbox)?;
        let started = self.spawn(bundle, place).map(Arc::new);
        *machine = Some(match &started {
            Ok(sandbox) => Ok(Arc::clone(sandbox)),
            Err(error) => Err(chain(error)),
        });
        started
    }

    fn spawn(&self, bundle: &Bundle, place: RunDir) -> Result<Sandbox, ShimError> {
        let config = Config::load(&self.options)?;
        let kvm = Path::new("/dev/kvm");
        let kvm = File::options()
            .read(true)
            .write(true)
            .open(kvm)
            .map_err(|source| ShimError::File {
                what: "KVM (husk doctor tells more):",
                path: kvm.into(),
                source,
            })?;
        let size = bundle.machine.at_least(config.machine());
        let cgroup = host_cgroup::directory(&bundle.request.cgroup_path);
        if let Some(cgroup) = &cgroup {
            host_cgroup::make(cgroup)?;
        }
        let options = Options {
            kvm: Arc::new(kvm),
            cpus: size.cpus,
            memory_mib: size.memory_mib,
            disks: if is_shared(bundle) { MAX_DISKS } else { 1 },
            console: false,
            kernel: config.kernel.clone(),
            patience: config.patience(),
            cgroup,
            network: bundle.network.as_ref().map(|network| network.path.clone()),
            stands: Stands::Machine,
            confinement: bundle.confinement.clone(),
        };
        let sandbox = Sandbox::spawn(place, &options, Arc::new(Timeline::default()))?;
        let score = format!("/proc/{}/oom_score_adj", sandbox.pid());
        // containerd's own score, which the shim has, would save a guest of any size from the host's killer.
        if let Err(error) = fs::write(score, "0") {
            tracing::debug!(%error, "the machine keeps the score that it has");
        }
        Ok(sandbox)
    }

    /// The sandbox, once it is started.
    pub(crate) fn sandbox(&self) -> Result<Arc<Sandbox>, ShimError> {
        match &*lock(&self.machine) {
            Some(started) => started.clone().map_err(ShimError::Boot),
            None => Err(ShimError::NoSandbox),
        }
    }

    pub(crate) fn guest(&self) -> Result<Arc<Guest>, ShimError> {
        Ok(self.sandbox()?.guest()?)
    }

    /// The process that stands for all containers; 0 while there is none.
    pub(crate) fn pid(&self) -> u32 {
        self.sandbox().map_or(0, |sandbox| sandbox.pid())
    }

    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, ShimError> {
        let containers = lock(&self.containers);
        let found = containers.get(id).cloned().flatten();
        found.ok_or_else(|| ShimError::NoContainer(id.into()))
    }

    pub(crate) fn process(&self, container: &str, exec: &str) -> Result<Arc<Process>, ShimError> {
        self.container(container)?.process(exec)
    }

    /// Creates a container; gives the process that stands for it.
    pub(crate) fn create(self: &Arc<Self>, creation: Creation) -> Result<u32, ShimError> {
        let id = creation.id.clone();
        match lock(&self.containers).entry(id.clone()) {
            Entry::Occupied(_) => return Err(ShimError::Exists(format!("container {id}"))),
            Entry::Vacant(place) => drop(place.insert(None)),
        }
        let event = creation.event();
        let made = self.make(creation);
        let mut containers = lock(&self.containers);
        match made {
            Ok(container) => {
                let pid = self.pid();
                self.events.publish(&events::TaskCreate { pid, ..event });
                containers.insert(id, Some(Arc::new(container)));
                Ok(pid)
            }
            Err(error) => {
                containers.remove(&id);
                Err(error)
            }
        }
    }

    fn make(self: &Arc<Self>, creation: Creation) -> Result<Container, ShimError> {
        let rootfs = RootFs::mount(&creation.bundle.join("rootfs"), &creation.rootfs)?;
        let mut bundle = Bundle::load(&creation.bundle)?;
        let sandbox = self.boot(&bundle)?;
        let own = sandbox.confinement();
        if bundle.confinement != *own {
            // A pod's sandbox and its containers have profiles of their own, but one machine.
            tracing::info!(
                container = creation.id,
                "the sandbox's policies of the host confine the container"
            );
            bundle.confinement = own.clone();
        }
        bundle
            .request
            .process
            .mut_or_insert_default()
            .stdio
            .mut_or_insert_default()
            .terminal = creation.stdio.terminal;
        let config = Config::load(&self.options)?;
        let cache = config
            .image_cache
            .or_else(|| std::env::var_os("HUSK_IMAGE_CACHE").map(Into::into));
        let cache = Cache::open(&cache.unwrap_or_else(artefacts::default_image_cache), DEFAULT_LIMIT)?;
        let root = bundle.root.clone();
        let disk = self.disk(&sandbox, rootfs.image(cache, &root))?;
        let whose = Whose {
            namespace: &self.namespace,
            container: &creation.id,
        };
        let (ends, logger) = creation.stdio.open(whose)?;
        let streams = sandbox.create(&creation.id, bundle, disk, creation.stdio.wanted())?;
        let relay = Relay::start(streams, creation.stdio.terminal, ends).map_err(ShimError::Streams)?;
        let id = ProcessId {
            container: creation.id.clone(),
            exec: String::new(),
        };
        let init = Process::new(id, creation.stdio, Stage::Created);
        init.carry(relay, logger);
        Ok(Container::new(creation.id, creation.bundle, root, init, rootfs))
    }

    /// Puts an image into a disk slot; the first time waits for the guest as well.
    fn disk(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        find: impl FnOnce() -> Result<Image, ImageError> + Send + 'static,
    ) -> Result<String, ShimError> {
        let mut is_ready = lock(&self.is_ready);
        if *is_ready {
            drop(is_ready);
            return Ok(sandbox.add_disk(find)?);
        }
        let (_, disk) = sandbox.prepare(find)?;
        exits::watch(Arc::clone(self), sandbox.guest()?)?;
        *is_ready = true;
        Ok(disk)
    }

    /// Lets a process execute; gives the process that stands for it on the host.
    pub(crate) fn start(&self, container: &str, exec: &str) -> Result<u32, ShimError> {
        let container = self.container(container)?;
        let process = container.process(exec)?;
        let before = {
            let mut stage = process.stage();
            match &*stage {
                Stage::Added(_) | Stage::Created => std::mem::replace(&mut *stage, Stage::Starting(None)),
                _ => return Err(ShimError::NotCreated(process.id.exec.clone())),
            }
        };
        let started = match before {
            Stage::Added(definition) => self.execute(&container, &process, *definition),
            _ => self
                .sandbox()
                .and_then(|sandbox| Ok(sandbox.start(&process.id).map(drop)?)),
        };
        let mut stage = process.stage();
        let ended = match &*stage {
            Stage::Starting(ended) => *ended,
            // The machine has ended.
            _ => None,
        };
        if let Err(error) = started {
            // Whoever waits for it learns that it will never run; containerd hears it from this call.
            process.exit(stage, ended.unwrap_or_else(Exit::killed));
            return Err(error);
        }
        let pid = self.pid();
        self.tell_started(&process.id, pid);
        match (&*stage, ended) {
            (Stage::Exited(_), _) => {}
            (_, Some(exit)) => self.exit(&process, stage, exit),
            (_, None) => *stage = Stage::Running,
        }
        Ok(pid)
    }

    /// Makes a further process and lets it execute.
    fn execute(
        &self,
        container: &Container,
        process: &Process,
        mut definition: husk_sandbox::agent::Process,
    ) -> Result<(), ShimError> {
        let guest = self.guest()?;
        let whose = Whose {
            namespace: &self.namespace,
            container: &container.id,
        };
        let (ends, logger) = process.stdio.open(whose)?;
        let stdio = definition.stdio.mut_or_insert_default();
        let streams = guest.streams(stdio, process.stdio.wanted())?;
        let request = ExecRequest {
            container: container.id.clone(),
            exec: process.id.exec.clone(),
            process: Some(definition).into(),
            ..Default::default()
        };
        guest.exec(&request)?;
        let relay = Relay::start(streams, process.stdio.terminal, ends).map_err(ShimError::Streams)?;
        process.carry(relay, logger);
        guest.start(&process.id)?;
        Ok(())
    }

    fn tell_started(&self, id: &ProcessId, pid: u32) {
        match id.exec.as_str() {
            "" => self.events.publish(&events::TaskStart {
                container_id: id.container.clone(),
                pid,
                ..Default::default()
            }),
            exec => self.events.publish(&events::TaskExecStarted {
                container_id: id.container.clone(),
                exec_id: exec.into(),
                pid,
                ..Default::default()
            }),
        }
    }

    /// A process has ended: tells containerd and whoever waits.
    fn exit(&self, process: &Process, stage: std::sync::MutexGuard<'_, Stage>, exit: Exit) {
        self.events.publish(&events::TaskExit {
            container_id: process.id.container.clone(),
            // containerd takes the container's name for the first process's.
            id: match process.id.exec.as_str() {
                "" => process.id.container.clone(),
                exec => exec.into(),
            },
            pid: self.pid(),
            exit_status: exit.status,
            exited_at: Some(exit.at.into()).into(),
            ..Default::default()
        });
        process.exit(stage, exit);
    }

    /// The guest says that a process has ended.
    pub(crate) fn process_ended(&self, id: &ProcessId, exit: Exit) {
        let Ok(process) = self.process(&id.container, &id.exec) else {
            tracing::debug!(
                container = id.container,
                exec = id.exec,
                "the end of an unknown process"
            );
            return;
        };
        let mut stage = process.stage();
        match &mut *stage {
            // Its start is to be told first.
            Stage::Starting(ended) => *ended = Some(exit),
            Stage::Created | Stage::Running => self.exit(&process, stage, exit),
            Stage::Added(_) | Stage::Exited(_) => {}
        }
    }

    /// The machine has ended, and everything in it.
    pub(crate) fn machine_ended(&self) {
        let containers: Vec<_> = lock(&self.containers).values().flatten().cloned().collect();
        for container in containers {
            for process in container.living() {
                let stage = process.stage();
                match &*stage {
                    Stage::Added(_) | Stage::Exited(_) => {}
                    // Its start fails.
                    Stage::Starting(_) => process.exit(stage, Exit::killed()),
                    Stage::Created | Stage::Running => self.exit(&process, stage, Exit::killed()),
                }
            }
        }
    }

    /// Adds a further process to a container; its start makes it.
    pub(crate) fn exec(&self, container: &str, exec: &str, spec: &[u8], stdio: Stdio) -> Result<(), ShimError> {
        let container = self.container(container)?;
        if container.is_paused.load(Ordering::Acquire) {
            return Err(ShimError::ExecIn("paused"));
        }
        match *container.init.stage() {
            Stage::Running => {}
            Stage::Exited(_) => return Err(ShimError::ExecIn("stopped")),
            _ => return Err(ShimError::ExecIn("created")),
        }
        let (mut definition, _) = bundle::process(spec)?;
        users::add_home(&container.root, &mut definition).map_err(husk_sandbox::sandbox::SandboxError::from)?;
        definition.stdio.mut_or_insert_default().terminal = stdio.terminal;
        let id = ProcessId {
            container: container.id.clone(),
            exec: exec.into(),
        };
        container.add(Process::new(id, stdio, Stage::Added(Box::new(definition))))?;
        self.events.publish(&events::TaskExecAdded {
            container_id: container.id.clone(),
            exec_id: exec.into(),
            ..Default::default()
        });
        Ok(())
    }

    /// Forgets a process that has ended; with a container's first one the container. Gives how it has ended.
    pub(crate) fn delete(&self, container: &str, exec: &str) -> Result<Exit, ShimError> {
        let container = self.container(container)?;
        let process = container.process(exec)?;
        if !exec.is_empty() {
            let exit = match &*process.stage() {
                Stage::Exited(exit) => Some(*exit),
                Stage::Added(_) => None,
                _ => return Err(ShimError::DeleteRunning),
            };
            process.finish();
            if let Some(Err(error)) = exit.map(|_| self.guest().and_then(|guest| Ok(guest.delete(&process.id)?))) {
                tracing::debug!(%error, "the guest does not forget the process");
            }
            container.forget(exec);
            return Ok(exit.unwrap_or_else(Exit::killed));
        }
        let exit = self.end(&process)?;
        process.finish();
        if let Err(error) = self.sandbox().and_then(|sandbox| Ok(sandbox.delete(&container.id)?)) {
            // With its machine everything in it is gone.
            tracing::debug!(%error, "the guest does not forget the container");
        }
        let is_last = {
            let mut containers = lock(&self.containers);
            containers.remove(&container.id);
            containers.is_empty()
        };
        self.events.publish(&events::TaskDelete {
            container_id: container.id.clone(),
            pid: self.pid(),
            exit_status: exit.status,
            exited_at: Some(exit.at.into()).into(),
            ..Default::default()
        });
        if is_last {
            self.remove_sandbox();
        }
        Ok(exit)
    }

    /// How a first process has ended, which one that was never started does now.
    fn end(&self, process: &Process) -> Result<Exit, ShimError> {
        match &*process.stage() {
            Stage::Exited(exit) => return Ok(*exit),
            Stage::Created => {}
            _ => return Err(ShimError::DeleteRunning),
        }
        let kill = libc::SIGKILL.cast_unsigned();
        if let Err(error) = self.guest().and_then(|guest| Ok(guest.kill(&process.id, kill, true)?)) {
            // It has gone before it was known here.
            tracing::debug!(%error, "the container is not killed");
            return Ok(Exit::killed());
        }
        process.wait_for(KILL_PATIENCE).ok_or(ShimError::DeleteRunning)
    }

    fn remove_sandbox(&self) {
        let Ok(sandbox) = self.sandbox() else { return };
        if let Err(error) = sandbox.remove() {
            tracing::warn!(error = chain(&error), "the sandbox is not removed");
        }
    }

    /// Whether there are containers.
    pub(crate) fn is_in_use(&self) -> bool {
        !lock(&self.containers).is_empty()
    }

    /// Tells containerd what it has not heard yet, and lets the shim end.
    pub(crate) fn shut_down(&self) {
        if !self.events.drain(DRAIN) {
            tracing::warn!("containerd has not taken all events");
        }
        *lock(&self.is_over) = true;
        self.over.notify_all();
    }

    /// Waits until the shim is to end, and takes down what is left.
    pub(crate) fn wait_for_end(&self) {
        let mut is_over = lock(&self.is_over);
        while !*is_over {
            is_over = self.over.wait(is_over).unwrap_or_else(PoisonError::into_inner);
        }
        self.remove_sandbox();
        lock(&self.place).take();
    }
}

/// Whether containers other than the bundle's may come to its sandbox.
fn is_shared(bundle: &Bundle) -> bool {
    SHARED.iter().any(|(name, expected)| {
        let value = bundle.annotations.get(*name);
        value.is_some_and(|value| expected.is_none_or(|expected| expected == value))
    })
}

impl Creation {
    fn event(&self) -> events::TaskCreate {
        events::TaskCreate {
            container_id: self.id.clone(),
            bundle: self.bundle.to_string_lossy().into_owned(),
            rootfs: self.rootfs.clone(),
            io: Some(events::TaskIO {
                stdin: self.stdio.stdin.clone(),
                stdout: self.stdio.stdout.clone(),
                stderr: self.stdio.stderr.clone(),
                terminal: self.stdio.terminal,
                ..Default::default()
            })
            .into(),
            ..Default::default()
        }
    }
}
