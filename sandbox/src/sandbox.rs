//! A sandbox: one machine, its run directory and the containers in it ([`containers`]).

mod containers;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, SystemTime};

use containers::Attended;
use husk_protocol::agent::Ready;
use husk_vmm_config::Request;
pub use husk_vmm_config::{MAX_DISKS, MAX_VCPUS, MIN_MEMORY_MIB};
use thiserror::Error;

use crate::artefacts::{self, ArtefactError};
use crate::bundle::OF_THE_SAME_SANDBOX;
use crate::bundle::users::UserError;
use crate::confinement::Confinement;
use crate::guest::{Guest, GuestError};
use crate::hooks::HookError;
use crate::host_cgroup::{self, HostCgroupError};
use crate::image::{Image, ImageError, Layer};
use crate::kernel::{self, KernelError};
use crate::machine::{Link, LinkError, Machine, MachineError, Parts};
use crate::rundir::{Exit, RunDir, RunDirError, State};
use crate::timeline::Timeline;

/// What a sandbox is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// `/dev/kvm`, opened for reading and writing.
    pub kvm: Arc<File>,
    /// vCPUs.
    pub cpus: u32,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Root file systems that it can hold at a time.
    pub disks: usize,
    /// Whether the guest gets a serial console.
    pub console: bool,
    /// A kernel of the user's own.
    pub kernel: Option<PathBuf>,
    /// How long the guest may take to boot, and to answer a call.
    pub patience: Duration,
    /// The cgroup on the host that the machine is in, if it has one of its own.
    pub cgroup: Option<PathBuf>,
    /// The network namespace on the host that the machine is in; without one it is in an empty one of its own.
    pub network: Option<PathBuf>,
    /// Who stands for the containers on the host.
    pub stands: Stands,
    /// The host's policies that confine the machine, and so all of its containers.
    pub confinement: Confinement,
}

/// A disk with a root file system in the guest; by default none, for who needs none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootDisk {
    /// The slot's serial.
    serial: String,
    layers: Vec<Layer>,
}

/// The process that others take for that of a sandbox's containers: it is in their network namespace as far as the host
/// is concerned, and `/proc/PID/ns/TYPE` of it means theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stands {
    /// The sandbox's owner.
    Owner,
    /// The machine monitor, which lives as long as the machine does.
    Machine,
}

/// A sandbox in the hands of its owner. Dropping it ends the machine and removes the run directory.
pub struct Sandbox {
    dir: RunDir,
    machine: Machine,
    guest: OnceLock<Arc<Guest>>,
    state: Mutex<State>,
    free_disks: Mutex<VecDeque<String>>,
    /// The kernel, if it is one of the user's own.
    kernel: Option<PathBuf>,
    timeline: Arc<Timeline>,
    patience: Duration,
    network: Option<PathBuf>,
    stands: Stands,
    confinement: Confinement,
    /// Of the containers that are not gone.
    attended: Mutex<Vec<Attended>>,
}

/// Why a sandbox cannot be made, or cannot do what it was asked.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum SandboxError {
    #[error("{0} vCPUs asked for; 1 to {MAX_VCPUS} are possible")]
    Cpus(u32),
    #[error("{0} MiB of memory asked for; at least {MIN_MEMORY_MIB} are needed")]
    Memory(u32),
    #[error("{0} disks asked for; 1 to {MAX_DISKS} are possible")]
    Disks(usize),
    #[error("the sandbox holds as many root file systems as it can")]
    NoFreeDisk,
    #[error("{what} {} cannot be read", path.display())]
    Open {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the kernel {} does not bring up a guest", path.display())]
    OwnKernel {
        path: PathBuf,
        #[source]
        source: MachineError,
    },
    #[error("no descriptor is left")]
    Descriptor(#[source] io::Error),
    #[error("a thread cannot be started")]
    Thread(#[source] io::Error),
    #[error(
        "config.json: process.apparmorProfile, process.selinuxLabel and linux.mountLabel must be those of the sandbox"
    )]
    Confinement,
    #[error("config.json: linux.namespaces[{index}].path is {path:?}; {OF_THE_SAME_SANDBOX}")]
    Namespace { index: usize, path: String },
    #[error("the preparation has ended without a result")]
    Unprepared,
    #[error(transparent)]
    Artefact(#[from] ArtefactError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error(transparent)]
    User(#[from] UserError),
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error(transparent)]
    HostCgroup(#[from] HostCgroupError),
}

/// What [`Sandbox::prepare`] waits for.
enum Step {
    Ready(Result<Ready, SandboxError>),
    Disk(Result<RootDisk, SandboxError>),
}

impl Sandbox {
    /// Starts the machine of a new sandbox; it boots while the caller goes on.
    ///
    /// # Errors
    /// Options out of their range, something missing, or a machine that cannot be started.
    pub fn spawn(dir: RunDir, options: &Options, timeline: Arc<Timeline>) -> Result<Self, SandboxError> {
        check(options)?;
        let program = artefacts::vmm()?;
        let guest = artefacts::guest()?;
        let boot = kernel::boot(&guest, options.kernel.as_deref(), options.console)?;
        let disks: VecDeque<String> = (0..options.disks).map(|index| format!("husk-{index}")).collect();
        let kvm = options.kvm.try_clone().map_err(SandboxError::Descriptor)?;
        let parts = Parts {
            program,
            kvm: kvm.into(),
            kernel: boot.kernel,
            initramfs: boot.initramfs,
            command_line: boot.command_line,
            cpus: options.cpus,
            memory_mib: options.memory_mib,
            disks: disks.iter().cloned().collect(),
            console: options.console,
            confinement: options.confinement.clone(),
            cgroup: options.cgroup.as_deref().map(host_cgroup::open).transpose()?,
            network: options.network.as_deref().map(open_network).transpose()?,
        };
        let machine = Machine::spawn(&dir, parts)?;
        timeline.reach("husk-vmm started");
        let state = State {
            name: dir.name().into(),
            pid: std::process::id(),
            vmm_pid: machine.pid(),
            created: SystemTime::UNIX_EPOCH.elapsed().map_or(0, |age| age.as_secs()),
            cpus: options.cpus,
            memory_mib: options.memory_mib,
            console: options.console,
            containers: Vec::new(),
            cgroup: options.cgroup.clone(),
            confinement: options.confinement.clone(),
            kept: false,
            exit: None,
        };
        dir.write_state(&state)?;
        Ok(Self {
            dir,
            machine,
            guest: OnceLock::new(),
            state: Mutex::new(state),
            free_disks: Mutex::new(disks),
            kernel: options.kernel.clone(),
            timeline,
            patience: options.patience,
            network: options.network.clone(),
            stands: options.stands,
            confinement: options.confinement.clone(),
            attended: Mutex::new(Vec::new()),
        })
    }

    /// Waits until the guest is ready and the image that `find` makes or finds is in one of its disk slots; both go on
    /// at the same time, and what fails first ends the wait. Gives the disk's serial.
    ///
    /// # Errors
    /// What has failed.
    pub fn prepare(
        self: &Arc<Self>,
        find: impl FnOnce() -> Result<Image, ImageError> + Send + 'static,
    ) -> Result<(Ready, RootDisk), SandboxError> {
        let (sender, receiver) = mpsc::channel();
        let (this, answer) = (Arc::clone(self), sender.clone());
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            let thread = thread::Builder::new().name(name.into());
            thread.spawn(work).map(drop).map_err(SandboxError::Thread)
        };
        // Nobody listens any more if the other step has failed.
        spawn("ready", Box::new(move || drop(answer.send(Step::Ready(this.ready())))))?;
        let this = Arc::clone(self);
        spawn(
            "image",
            Box::new(move || drop(sender.send(Step::Disk(this.add_disk(find))))),
        )?;
        let (mut ready, mut disk) = (None, None);
        while let Ok(step) = receiver.recv() {
            match step {
                Step::Ready(result) => ready = Some(result?),
                Step::Disk(result) => disk = Some(result?),
            }
        }
        ready.zip(disk).ok_or(SandboxError::Unprepared)
    }

    /// The process that stands for the containers on the host.
    #[must_use]
    pub fn pid(&self) -> u32 {
        match self.stands {
            Stands::Owner => std::process::id(),
            Stands::Machine => self.machine.pid(),
        }
    }

    /// The host's policies that confine the machine, and so all of its containers.
    #[must_use]
    pub fn confinement(&self) -> &Confinement {
        &self.confinement
    }

    /// Ends the machine without waiting for it; its containers stay to be asked about.
    pub fn hang_up(&self) {
        self.machine.hang_up();
    }

    /// The same, and waits for the machine's end for a limited time; says whether it has come.
    pub fn end_machine_within(&self, limit: Duration) -> bool {
        self.machine.end_within(limit)
    }

    /// When what was reached.
    #[must_use]
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// Waits until the guest is ready, and connects to its agent.
    ///
    /// # Errors
    /// Why it is not.
    pub fn ready(&self) -> Result<Ready, SandboxError> {
        let ready = self.machine.ready(self.patience);
        let ready = ready.map_err(|error| self.machine_failed(error))?;
        self.timeline.reach("agent ready");
        let guest = Guest::connect(self.link()?).map_err(|error| self.explain(error))?;
        self.timeline.reach("agent connected");
        // A second call would have waited in vain for a second ready message.
        let _ = self.guest.set(Arc::new(guest));
        Ok(ready)
    }

    /// The way to the sandbox's machine.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn link(&self) -> Result<Link, SandboxError> {
        let dir = self.dir.dir().try_clone().map_err(|source| SandboxError::Open {
            what: "the run directory of",
            path: self.dir.name().into(),
            source,
        })?;
        Ok(Link::new(dir, self.patience))
    }

    /// Makes or finds an image and puts it into a free disk slot.
    ///
    /// # Errors
    /// What is wrong with the image; no slot is free; the machine has ended.
    pub fn add_disk(&self, find: impl FnOnce() -> Result<Image, ImageError>) -> Result<RootDisk, SandboxError> {
        let image = find()?;
        self.timeline.reach(if image.converted {
            "image converted"
        } else {
            "image found"
        });
        let serial = lock(&self.free_disks).pop_front().ok_or(SandboxError::NoFreeDisk)?;
        let attached = self.link()?.attach(&serial, &image.parts);
        if let Err(error) = attached {
            if matches!(error, LinkError::Request(_)) {
                // It is as empty as before.
                lock(&self.free_disks).push_front(serial);
            }
            return Err(self.explain(error.into()));
        }
        self.timeline.reach("disk attached");
        Ok(RootDisk {
            serial,
            layers: image.layers,
        })
    }

    /// Empties a disk slot for the next root file system, if there is one.
    fn free_disk(&self, disk: String) -> Result<(), SandboxError> {
        if disk.is_empty() {
            return Ok(());
        }
        let request = Request::Detach { disk: disk.clone() };
        let detached = self.link()?.request(&request, &[]);
        detached.map_err(|error| self.explain(error.into()))?;
        lock(&self.free_disks).push_back(disk);
        Ok(())
    }

    /// The agent, once the guest is ready.
    ///
    /// # Errors
    /// It is not ready yet.
    pub fn guest(&self) -> Result<Arc<Guest>, SandboxError> {
        self.guest.get().cloned().ok_or(SandboxError::Unprepared)
    }

    /// Replaces an error that the machine's end explains by that end.
    pub fn explain(&self, error: GuestError) -> SandboxError {
        if error.is_lost() {
            self.machine_failed(self.machine.ended())
        } else {
            error.into()
        }
    }

    /// Names the user's own kernel where a guest does not come up with it.
    fn machine_failed(&self, source: MachineError) -> SandboxError {
        match &self.kernel {
            Some(path) if self.guest.get().is_none() => SandboxError::OwnKernel {
                path: path.clone(),
                source,
            },
            _ => source.into(),
        }
    }

    /// Keeps the run directory from now on when the sandbox ends: whoever wants to know more of it removes it.
    ///
    /// # Errors
    /// The state cannot be written.
    pub fn keep(&self) -> Result<(), SandboxError> {
        let mut state = lock(&self.state);
        state.kept = true;
        Ok(self.dir.write_state(&state)?)
    }

    /// Ends the machine without waiting for it. The run directory is removed, or says how the container has ended if it
    /// is kept.
    ///
    /// # Errors
    /// The run directory cannot be removed or written to.
    pub fn end(&self, exit: Exit) -> Result<(), SandboxError> {
        {
            let mut state = lock(&self.state);
            if state.kept {
                state.exit = Some(exit);
                self.dir.write_state(&state)?;
                self.machine.hang_up();
                return Ok(());
            }
        }
        self.remove()
    }

    /// Ends the machine without waiting for it and removes the run directory: the name is free at once. Then the
    /// containers are gone, which their hooks are told.
    ///
    /// # Errors
    /// The run directory cannot be removed.
    pub fn remove(&self) -> Result<(), SandboxError> {
        self.machine.hang_up();
        let removed = self.dir.remove();
        let gone = std::mem::take(&mut *lock(&self.attended));
        for attended in gone {
            attended.hooks.run_poststop(&attended.subject);
        }
        Ok(removed?)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.machine.hang_up();
        // A directory that is kept stays; any other goes with its owner.
        if lock(&self.state).kept {
            return;
        }
        if let Err(error) = self.remove() {
            tracing::warn!(%error, "the sandbox is not removed");
        }
    }
}

fn open_network(path: &Path) -> Result<File, SandboxError> {
    File::open(path).map_err(|source| SandboxError::Open {
        what: "the network namespace",
        path: path.into(),
        source,
    })
}

fn check(options: &Options) -> Result<(), SandboxError> {
    if !(1..=MAX_VCPUS).contains(&options.cpus) {
        return Err(SandboxError::Cpus(options.cpus));
    }
    if options.memory_mib < MIN_MEMORY_MIB {
        return Err(SandboxError::Memory(options.memory_mib));
    }
    if !(1..=MAX_DISKS).contains(&options.disks) {
        return Err(SandboxError::Disks(options.disks));
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these locks guard is whole whatever happened to the thread that held them.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
