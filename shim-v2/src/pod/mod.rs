//! The shim's sandbox and its containers: what containerd's calls come to.
//!
//! The machine is started with the shim itself, before containerd has asked for anything, and boots while the first
//! container's root file system is looked up. All containers of a pod come to it. When the last one is deleted, the
//! machine goes; when containerd says so, the shim.

mod create;
mod lifecycle;

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

pub(crate) use create::Creation;
use husk_sandbox::bundle::Bundle;
use husk_sandbox::guest::{Guest, ProcessId, Wanted};
use husk_sandbox::host_cgroup;
use husk_sandbox::keeper::Keeper;
use husk_sandbox::rundir::RunDir;
use husk_sandbox::sandbox::{MAX_DISKS, Options, RootDisk, Sandbox, Stands};
use husk_sandbox::timeline::Timeline;

use crate::bootstrap;
use crate::config::Config;
use crate::container::Container;
use crate::ended::Ended;
use crate::error::{ShimError, chain};
use crate::events::Publisher;
use crate::exits;
use crate::place;
use crate::process::{Exit, Process, lock};

/// How long events are waited for at the end.
const DRAIN: Duration = Duration::from_secs(2);

/// How long the answer to a call may be on its way.
const ANSWER: Duration = Duration::from_secs(2);

/// How long the machine may take to leave its cgroup.
const PATIENCE: Duration = Duration::from_secs(2);

/// The shim's sandbox.
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) events: Publisher,
    options: bootstrap::Options,
    /// Where the sandbox will be.
    place: Mutex<Option<RunDir>>,
    keeper: Keeper,
    /// The sandbox's cgroup on the host.
    cgroup: Mutex<Option<PathBuf>>,
    machine: Mutex<Option<Result<Arc<Sandbox>, String>>>,
    /// Whether the guest has come up; locked while somebody waits for it.
    is_ready: Mutex<bool>,
    /// None where one is being created.
    containers: Mutex<HashMap<String, Option<Arc<Container>>>>,
    /// How the sandbox has ended.
    pub(crate) ended: Ended,
    /// Whether other containers may come to the first one's machine.
    is_shared: AtomicBool,
    /// What holds the namespaces of a sandbox that containerd has apart from its containers, and ends itself: the guest's name
    /// for it.
    pause: OnceLock<String>,
    /// Whether containerd has asked the shim to end while it was in use. It does not ask again.
    ends_unused: AtomicBool,
    is_over: Mutex<bool>,
    over: Condvar,
}

impl Pod {
    pub(crate) fn new(
        namespace: String,
        events: Publisher,
        options: bootstrap::Options,
        place: RunDir,
        keeper: Keeper,
    ) -> Self {
        Self {
            namespace,
            events,
            options,
            place: Mutex::new(Some(place)),
            keeper,
            cgroup: Mutex::default(),
            machine: Mutex::default(),
            is_ready: Mutex::default(),
            containers: Mutex::default(),
            ended: Ended::default(),
            is_shared: AtomicBool::new(false),
            pause: OnceLock::new(),
            ends_unused: AtomicBool::new(false),
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
            self.keeper.take_cgroup(cgroup)?;
            *lock(&self.cgroup) = Some(cgroup.clone());
            host_cgroup::make(cgroup)?;
        }
        let is_shared = place::is_shared(&bundle.annotations);
        self.is_shared.store(is_shared, Ordering::Release);
        let options = Options {
            kvm: Arc::new(kvm),
            cpus: size.cpus,
            memory_mib: size.memory_mib,
            disks: if is_shared { MAX_DISKS } else { 1 },
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

    /// Waits for the guest.
    pub(crate) fn ready(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<(), ShimError> {
        let mut is_ready = lock(&self.is_ready);
        if !*is_ready {
            sandbox.ready()?;
            exits::watch(Arc::clone(self), sandbox.guest()?)?;
            *is_ready = true;
        }
        Ok(())
    }

    /// Starts the sandbox of a pod that has no container for it: a pause holds the namespaces of the pod's containers.
    pub(crate) fn start_apart(self: &Arc<Self>, name: &str, bundle: Bundle) -> Result<u32, ShimError> {
        let sandbox = self.boot(&bundle)?;
        self.ready(&sandbox)?;
        let none = Wanted {
            stdin: false,
            stdout: false,
            stderr: false,
        };
        sandbox.create(name, bundle, RootDisk::default(), none)?;
        let pause = ProcessId {
            container: name.into(),
            exec: String::new(),
        };
        sandbox.start(&pause)?;
        // There is one sandbox, which is started once.
        let _ = self.pause.set(name.to_owned());
        Ok(sandbox.pid())
    }

    fn is_apart(&self) -> bool {
        self.pause.get().is_some()
    }

    /// Says how the sandbox has ended, unless it has ended before; nothing of it is left then.
    pub(crate) fn end_sandbox(&self, exit: Exit) {
        // Its machine ends now, and is not the reason.
        self.ended.note(exit);
        self.remove_sandbox();
        self.ended.tell(exit);
    }

    /// All containers.
    pub(crate) fn containers(&self) -> Vec<Arc<Container>> {
        lock(&self.containers).values().flatten().cloned().collect()
    }

    fn remove_sandbox(&self) {
        let Ok(sandbox) = self.sandbox() else { return };
        if let Err(error) = sandbox.remove() {
            tracing::warn!(error = chain(&error), "the sandbox is not removed");
        }
    }

    /// Whether there are containers, or a sandbox that is ended by its own call.
    pub(crate) fn is_in_use(&self) -> bool {
        let is_apart = self.is_apart() && self.ended.get().is_none();
        is_apart || !lock(&self.containers).is_empty()
    }

    /// Tells containerd what it has not heard yet.
    pub(crate) fn drain(&self) {
        if !self.events.drain(DRAIN) {
            tracing::warn!("containerd has not taken all events");
        }
    }

    /// Lets the shim end.
    pub(crate) fn let_end(&self) {
        *lock(&self.is_over) = true;
        self.over.notify_all();
    }

    /// containerd asks the shim to end: says whether it may now. Otherwise it ends when its last container goes: a pod's sandbox
    /// may be gone before its containers are, when its machine has come to harm.
    pub(crate) fn may_end(&self) -> bool {
        self.ends_unused.store(true, Ordering::SeqCst);
        !self.is_in_use()
    }

    /// A container has gone: ends the shim if that was asked for before, when containerd has had the time to hear of it.
    fn end_if_asked(self: &Arc<Self>) {
        if !self.ends_unused.load(Ordering::SeqCst) || self.is_in_use() {
            return;
        }
        let pod = Arc::clone(self);
        let end = move || {
            let is_over = lock(&pod.is_over);
            let wait = pod.over.wait_timeout_while(is_over, ANSWER, |is_over| !*is_over);
            drop(wait);
            if !pod.is_in_use() {
                pod.drain();
                pod.let_end();
            }
        };
        if let Err(error) = thread::Builder::new().name("end".into()).spawn(end) {
            tracing::warn!(%error, "the shim stays until containerd asks again");
        }
    }

    /// Waits until the shim is to end.
    pub(crate) fn wait_for_end(&self) {
        let mut is_over = lock(&self.is_over);
        while !*is_over {
            is_over = self.over.wait(is_over).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes down what is left.
    pub(crate) fn take_down(&self) {
        self.remove_sandbox();
        lock(&self.place).take();
        let Some(cgroup) = lock(&self.cgroup).take() else {
            return;
        };
        // The machine leaves it as it ends; if that takes longer, the keeper sees to it.
        if let Err(error) = host_cgroup::remove(&cgroup, PATIENCE) {
            tracing::warn!(error = chain(&error), "the cgroup is left");
        }
    }
}
