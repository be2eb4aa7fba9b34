//! The sandbox's machine: a `husk-vmm` process with everything that it needs as open descriptors.
//!
//! [`Machine::spawn`] returns as soon as the process runs; it boots while the owner does other things.
//! [`Machine::ready`] waits for the agent. The machine ends when the guest ends, when it is asked to ([`Link`]), or
//! when its lifeline hangs up, which the owner's death does too; its last word is the `Report`, which
//! [`Machine::end`] turns into one sentence.

mod death;
mod link;
mod process;

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Child;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use husk_protocol::agent::Ready;
use husk_protocol::{GUEST_CID, MAX_READY, READY_PORT};
use husk_vmm_config::{Config, Console, Descriptor, Disk, HostPort, Kernel, Topology, Vsock};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, bind, listen, recvmsg, socket,
    socketpair,
};
use nix::unistd::pipe2;
use protobuf::Message;
use thiserror::Error;

pub use death::Death;
pub use death::{kill_process, open_process};
pub use link::{Link, LinkError};

use crate::confinement::{Confinement, ConfinementError};
use crate::rundir::{self, RunDir, short_path};

/// What a machine is made of.
#[derive(Debug)]
pub struct Parts {
    /// The `husk-vmm` program.
    pub program: PathBuf,
    /// `/dev/kvm`, opened for reading and writing.
    pub kvm: OwnedFd,
    /// The kernel image.
    pub kernel: File,
    /// Initramfs archives, one behind the other.
    pub initramfs: Vec<File>,
    /// The kernel's command line.
    pub command_line: String,
    /// The number of vCPUs.
    pub cpus: u32,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Serials of the read-only disk slots, which begin empty.
    pub disks: Vec<String>,
    /// Whether the guest gets a serial console.
    pub console: bool,
    /// The host's policies under which the program is executed.
    pub confinement: Confinement,
    /// `cgroup.procs` of the cgroup that it is to be in.
    pub cgroup: Option<File>,
    /// The network namespace that it is to be in.
    pub network: Option<File>,
}

/// A running machine monitor. Dropping it ends the machine.
#[derive(Debug)]
pub struct Machine {
    program: PathBuf,
    child: Mutex<Child>,
    pid: u32,
    /// Hangs up on the machine when it is dropped.
    lifeline: Mutex<Option<OwnedFd>>,
    report: OwnedFd,
    acceptor: OwnedFd,
    log: File,
    death: OnceLock<Death>,
}

/// Why there is no machine, or why it has ended.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum MachineError {
    #[error("{what} cannot be made")]
    Resource {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{} cannot be started", program.display())]
    Spawn {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} cannot be started under {field}", program.display())]
    Confined {
        program: PathBuf,
        field: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Confinement(#[from] ConfinementError),
    #[error("{0}")]
    Ended(Death),
    #[error("the guest's agent was not ready after {} seconds; `husk run --console` shows how far one comes; HUSK_TIMEOUT, or timeout in /etc/husk/config.toml, gives it more time", .0.as_secs())]
    NotReady(Duration),
    #[error("the guest's ready message cannot be understood; do husk and its guest kernel belong together?")]
    BadReady,
    #[error("the machine cannot be waited for")]
    Wait(#[source] io::Error),
}

fn resource(what: &'static str) -> impl FnOnce(Errno) -> MachineError {
    move |errno| MachineError::Resource {
        what,
        source: errno.into(),
    }
}

impl Machine {
    /// Starts the machine monitor, with its sockets in the run directory.
    ///
    /// # Errors
    /// A socket or file that cannot be made, or a program that cannot be run.
    pub fn spawn(dir: &RunDir, parts: Parts) -> Result<Self, MachineError> {
        let (lifeline_end, lifeline) = pipe2(OFlag::O_CLOEXEC).map_err(resource("the lifeline"))?;
        let (report, report_end) = pipe2(OFlag::O_CLOEXEC).map_err(resource("the report's pipe"))?;
        let (acceptor, acceptor_end) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(resource("the acceptor"))?;
        let mut given = Given::default();
        let config = Config {
            kvm: given.give(parts.kvm),
            vcpus: Topology {
                count: parts.cpus,
                threads_per_core: 1,
            },
            memory_mib: parts.memory_mib,
            kernel: Kernel {
                image: given.give(parts.kernel),
                initramfs: parts.initramfs.into_iter().map(|archive| given.give(archive)).collect(),
                command_line: parts.command_line,
            },
            disks: parts.disks.into_iter().map(empty_slot).collect(),
            vsock: Vsock {
                cid: GUEST_CID,
                listener: given.give(stream_listener(dir, rundir::VSOCK)?),
                ports: vec![HostPort {
                    port: READY_PORT,
                    acceptor: given.give(acceptor_end),
                }],
            },
            console: match parts.console {
                true => Some(Console {
                    listener: given.give(stream_listener(dir, rundir::CONSOLE)?),
                }),
                false => None,
            },
            control: given.give(control_listener(dir)?),
            report: given.give(report_end),
            lifeline: given.give(lifeline_end),
            keep_network: parts.network.is_some(),
        };
        let log = open_log(dir)?;
        let labels = parts.confinement.labels()?;
        let place = process::Place {
            cgroup: parts.cgroup,
            network: parts.network,
            labels,
        };
        let child = process::spawn(&parts.program, &config, &given.0, &log, place)?;
        Ok(Self {
            program: parts.program,
            pid: child.id(),
            child: Mutex::new(child),
            lifeline: Mutex::new(Some(lifeline)),
            report,
            acceptor,
            log,
            death: OnceLock::new(),
        })
    }

    /// The process's id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until the agent says that it is ready, the machine ends, or `limit` has passed.
    ///
    /// # Errors
    /// Why the guest is not ready.
    pub fn ready(&self, limit: Duration) -> Result<Ready, MachineError> {
        let deadline = Instant::now() + limit;
        let stream = loop {
            let mut watched = [
                PollFd::new(self.acceptor.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.report.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut watched, remaining(deadline)) {
                Ok(0) => return Err(MachineError::NotReady(limit)),
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(MachineError::Wait(errno.into())),
            }
            let [connection, report] = watched;
            if connection
                .revents()
                .is_some_and(|events| events.contains(PollFlags::POLLIN))
            {
                match self.accept() {
                    Ok(Some(stream)) => break stream,
                    Ok(None) => {}
                    Err(errno) => return Err(MachineError::Wait(errno.into())),
                }
            }
            if report.any().unwrap_or(true) {
                return Err(self.ended());
            }
        };
        self.read_ready(stream, deadline, limit)
    }

    /// The stream that the guest has opened to the ready port.
    #[allow(unsafe_code)]
    fn accept(&self) -> nix::Result<Option<UnixStream>> {
        let mut space = nix::cmsg_space!(RawFd);
        let mut byte = [0];
        let mut buffers = [io::IoSliceMut::new(&mut byte)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(self.acceptor.as_raw_fd(), &mut buffers, Some(&mut space), flags)?;
        let mut stream = None;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(descriptors) = control {
                for fd in descriptors {
                    // SAFETY: the kernel has just made this descriptor for us.
                    stream = Some(unsafe { UnixStream::from_raw_fd(fd) });
                }
            }
        }
        Ok(stream)
    }

    fn read_ready(&self, mut stream: UnixStream, deadline: Instant, limit: Duration) -> Result<Ready, MachineError> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => MachineError::NotReady(limit),
            // The machine's end, if it is that, is the better explanation.
            io::ErrorKind::UnexpectedEof => self.death_or(MachineError::BadReady),
            _ => MachineError::Wait(error),
        };
        let left = deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left)).map_err(failed)?;
        let mut length = [0; 4];
        stream.read_exact(&mut length).map_err(failed)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_READY {
            return Err(MachineError::BadReady);
        }
        let mut message = vec![0; length];
        stream.read_exact(&mut message).map_err(failed)?;
        Ready::parse_from_bytes(&message).map_err(|_| MachineError::BadReady)
    }

    /// Why the machine has ended; waits a few seconds for a machine that is about to.
    #[must_use]
    pub fn end(&self) -> &Death {
        self.death
            .get_or_init(|| death::read(&self.program, &self.report, &self.lock_child(), &self.log))
    }

    /// The machine's end as an error.
    #[must_use]
    pub fn ended(&self) -> MachineError {
        MachineError::Ended(self.end().clone())
    }

    /// The machine's end as an error if it has come; `other` if it has not.
    fn death_or(&self, other: MachineError) -> MachineError {
        match self.end() {
            Death::StillAlive => other,
            death => MachineError::Ended(death.clone()),
        }
    }

    /// Hangs up on the machine, which then ends by itself; does not wait for that.
    pub fn hang_up(&self) {
        self.lifeline.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Hangs up on the machine and waits for its process's end, for a limited time; says whether that has come. The
    /// process's id is free then.
    pub fn end_within(&self, limit: Duration) -> bool {
        self.hang_up();
        let deadline = Instant::now() + limit;
        if let Ok(process) = open_process(self.pid)
            && !death::wait_readable(&process, deadline)
        {
            return false;
        }
        // How it has ended is to be known before nobody can be asked any more.
        let _ = self.end();
        matches!(self.lock_child().try_wait(), Ok(Some(_)))
    }

    fn lock_child(&self) -> MutexGuard<'_, Child> {
        // Waiting for a process leaves nothing half done.
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.hang_up();
        // Takes a process that has ended already; one that has not is taken when this process ends.
        let _ = self.lock_child().try_wait();
    }
}

/// Descriptors that the machine monitor inherits, under the numbers that they have here.
#[derive(Debug, Default)]
struct Given(Vec<OwnedFd>);

impl Given {
    fn give(&mut self, descriptor: impl Into<OwnedFd>) -> Descriptor {
        let descriptor = descriptor.into();
        let number = Descriptor(descriptor.as_raw_fd());
        self.0.push(descriptor);
        number
    }
}

fn empty_slot(id: String) -> Disk {
    Disk {
        id,
        read_only: true,
        queues: 1,
        file: None,
    }
}

fn stream_listener(dir: &RunDir, name: &str) -> Result<UnixListener, MachineError> {
    UnixListener::bind(short_path(dir.dir(), name)).map_err(|source| MachineError::Resource {
        what: "a socket in the run directory",
        source,
    })
}

fn control_listener(dir: &RunDir) -> Result<OwnedFd, MachineError> {
    let make = || {
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        let address = UnixAddr::new(&short_path(dir.dir(), rundir::CONTROL))?;
        bind(listener.as_raw_fd(), &address)?;
        listen(&listener, Backlog::new(16)?)?;
        Ok(listener)
    };
    make().map_err(resource("the control socket"))
}

fn open_log(dir: &RunDir) -> Result<File, MachineError> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .read(true)
        .mode(0o600)
        .open(short_path(dir.dir(), rundir::LOG))
        .map_err(|source| MachineError::Resource {
            what: "the machine monitor's log",
            source,
        })
}

/// What is left until a deadline, as poll(2) takes it: rounded up, so that it does not spin at the end.
pub(crate) fn remaining(deadline: Instant) -> PollTimeout {
    let left = deadline.saturating_duration_since(Instant::now());
    PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
}
