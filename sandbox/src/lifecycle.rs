//! A container in the hands of another process than its sandbox's owner: its status and what may be done with it then
//! (OCI runtime specification, "Runtime and Lifecycle").
//!
//! ```text
//! creating ─▶ created ─▶ running ◀─▶ paused
//!                │          │
//!                └──────────┴──────▶ stopped ─▶ gone
//! ```
//!
//! What it is to do it asks the agent for; that a process has ended it hears from the owner, whose end is the
//! container's.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use husk_protocol::agent::{ContainerStatus, ProcessInfo, StatsResponse};
use husk_vmm_config::Request;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use thiserror::Error;
use ttrpc::Code;

use crate::bundle::resources::Update;
use crate::guest::{Guest, GuestError, ProcessId};
use crate::hooks::{HookError, Subject};
use crate::host_cgroup::{self, HostCgroupError};
use crate::machine::{Link, LinkError, open_process};
use crate::rundir::{self, Found, RunDirError, RunRoot};

/// How long a guest may take to pass on a SIGKILL before its machine is stopped instead.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// Where a container is on its way; the names are the specification's, and runc's for what it adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Its sandbox boots.
    Creating,
    /// Its first process waits to be started.
    Created,
    /// Its first process executes.
    Running,
    /// Its processes are frozen.
    Paused,
    /// Its first process has ended.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// A container that was found by its name.
#[derive(Debug)]
pub struct Container {
    found: Found,
    patience: Duration,
}

/// Why something cannot be done with a container.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum LifecycleError {
    #[error("container {name} is {status}; it cannot be {action}")]
    Status {
        name: String,
        status: Status,
        action: &'static str,
    },
    #[error("container {name} has not ended within {} seconds", limit.as_secs())]
    Alive { name: String, limit: Duration },
    #[error("the owner of container {name} cannot be waited for")]
    Wait {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("no descriptor is left")]
    Descriptor(#[source] io::Error),
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error(transparent)]
    HostCgroup(#[from] HostCgroupError),
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Guest(#[from] GuestError),
}

impl Container {
    /// Finds a container; no answer of its guest is waited for longer than `patience`.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn find(root: &RunRoot, name: &str, patience: Duration) -> Result<Self, LifecycleError> {
        Ok(Self::new(root.find(name)?, patience))
    }

    /// A container that was found already.
    #[must_use]
    pub fn new(found: Found, patience: Duration) -> Self {
        Self { found, patience }
    }

    /// What its owner says of it.
    #[must_use]
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.found.state.name
    }

    /// Its definition, once it is created.
    ///
    /// # Errors
    /// It is still being created.
    pub fn definition(&self) -> Result<&rundir::Container, LifecycleError> {
        let first = self.found.state.containers.first();
        first.ok_or_else(|| self.refuse(Status::Creating, "used yet"))
    }

    /// Its first process.
    ///
    /// # Errors
    /// It is still being created.
    pub fn process(&self) -> Result<ProcessId, LifecycleError> {
        Ok(ProcessId {
            container: self.definition()?.name.clone(),
            exec: String::new(),
        })
    }

    /// Where it is on its way now.
    ///
    /// # Errors
    /// Its guest does not answer.
    pub fn status(&self) -> Result<Status, LifecycleError> {
        if !self.found.alive {
            return Ok(Status::Stopped);
        }
        let Some(container) = self.found.state.containers.first() else {
            return Ok(Status::Creating);
        };
        let state = self.guest().and_then(|guest| Ok(guest.state(&container.name)?));
        let state = match state {
            Ok(state) => state,
            Err(error) if error.means_stopped() => return Ok(Status::Stopped),
            Err(error) => return Err(error),
        };
        Ok(match state.status.enum_value_or_default() {
            ContainerStatus::CONTAINER_CREATING => Status::Creating,
            ContainerStatus::CONTAINER_CREATED => Status::Created,
            ContainerStatus::CONTAINER_RUNNING => Status::Running,
            ContainerStatus::CONTAINER_PAUSED => Status::Paused,
            ContainerStatus::CONTAINER_STOPPED | ContainerStatus::CONTAINER_UNKNOWN => Status::Stopped,
        })
    }

    /// The way to its machine.
    ///
    /// # Errors
    /// The sandbox has ended.
    pub fn link(&self) -> Result<Link, LifecycleError> {
        self.link_within(self.patience)
    }

    fn link_within(&self, patience: Duration) -> Result<Link, LifecycleError> {
        if !self.found.alive {
            return Err(RunDirError::Stopped(self.name().into()).into());
        }
        let dir = self.found.dir().try_clone().map_err(LifecycleError::Descriptor)?;
        Ok(Link::new(dir, patience))
    }

    /// The agent of its guest.
    ///
    /// # Errors
    /// The sandbox has ended or does not answer.
    pub fn guest(&self) -> Result<Guest, LifecycleError> {
        Ok(Guest::connect(self.link()?)?)
    }

    /// Lets its first process execute.
    ///
    /// # Errors
    /// It is not in the status "created"; the command cannot be executed.
    pub fn start(&self) -> Result<(), LifecycleError> {
        let process = self.process()?;
        match self.status()? {
            Status::Created => {}
            status => return Err(self.refuse(status, "started")),
        }
        let definition = self.definition()?;
        let hooks = Duration::from_secs(definition.start_hooks_s);
        self.guest()?.start_with_hooks(&process, hooks)?;
        if let Err(error) = definition.hooks.run_poststart(&self.subject(definition)) {
            self.end()?;
            return Err(error.into());
        }
        Ok(())
    }

    /// What hooks are told of it.
    fn subject(&self, definition: &rundir::Container) -> Subject {
        Subject {
            id: self.name().into(),
            pid: self.found.state.pid,
            bundle: definition.bundle.clone().unwrap_or_else(|| definition.root.clone()),
            annotations: definition.annotations.clone(),
        }
    }

    /// Freezes its processes.
    ///
    /// # Errors
    /// It is neither created nor running.
    pub fn pause(&self) -> Result<(), LifecycleError> {
        match self.status()? {
            Status::Created | Status::Running => Ok(self.guest()?.pause(&self.definition()?.name)?),
            status => Err(self.refuse(status, "paused")),
        }
    }

    /// Lets its frozen processes go on.
    ///
    /// # Errors
    /// It is not paused.
    pub fn resume(&self) -> Result<(), LifecycleError> {
        match self.status()? {
            Status::Paused => Ok(self.guest()?.resume(&self.definition()?.name)?),
            status => Err(self.refuse(status, "resumed")),
        }
    }

    /// Changes its limits.
    ///
    /// # Errors
    /// A limit is not possible; it has ended.
    pub fn update(&self, update: &Update) -> Result<(), LifecycleError> {
        match self.status()? {
            status @ (Status::Creating | Status::Stopped) => Err(self.refuse(status, "updated")),
            _ => {
                let definition = self.definition()?;
                Ok(self.guest()?.update(&definition.name, update, &definition.root)?)
            }
        }
    }

    /// Its processes.
    ///
    /// # Errors
    /// It has ended.
    pub fn processes(&self) -> Result<Vec<ProcessInfo>, LifecycleError> {
        self.while_it_lives()?;
        Ok(self.guest()?.processes(&self.definition()?.name)?)
    }

    /// What it uses.
    ///
    /// # Errors
    /// It has ended.
    pub fn stats(&self) -> Result<StatsResponse, LifecycleError> {
        self.while_it_lives()?;
        Ok(self.guest()?.stats(&self.definition()?.name)?)
    }

    fn while_it_lives(&self) -> Result<(), LifecycleError> {
        match self.status()? {
            Status::Stopped => Err(RunDirError::Stopped(self.name().into()).into()),
            _ => Ok(()),
        }
    }

    /// Sends a signal to its first process, or to all of them. A guest that does not pass on a SIGKILL is stopped.
    ///
    /// # Errors
    /// It has ended, or its guest does not answer.
    pub fn kill(&self, signal: u32, all: bool) -> Result<(), LifecycleError> {
        let kill = libc::SIGKILL.cast_unsigned();
        let patience = match signal {
            signal if signal == kill => KILL_PATIENCE.min(self.patience),
            _ => self.patience,
        };
        let sent = self.process().and_then(|process| {
            let guest = Guest::connect(self.link_within(patience)?)?;
            Ok(guest.kill(&process, signal, all)?)
        });
        match sent {
            Err(error) if error.means_stopped() => Err(RunDirError::Stopped(self.name().into()).into()),
            Err(error) if signal == kill && self.found.alive => {
                tracing::info!(%error, "the machine is stopped, as its guest does not do it");
                self.stop_machine()
            }
            result => result,
        }
    }

    /// Ends the machine, whatever its guest does.
    fn stop_machine(&self) -> Result<(), LifecycleError> {
        match self.link()?.request(&Request::Stop, &[]) {
            Ok(_) | Err(LinkError::Ended) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// A descriptor that becomes readable when its sandbox's owner ends, which is not before the container's last output
    /// has been passed on; none if the owner has ended.
    ///
    /// # Errors
    /// There is no such descriptor on this host.
    pub fn owner(&self, root: &RunRoot) -> Result<Option<OwnedFd>, LifecycleError> {
        let owner = match open_process(self.found.state.pid) {
            Ok(owner) => owner,
            Err(Errno::ESRCH) => return Ok(None),
            Err(errno) => return Err(self.unheard(errno)),
        };
        // Only now it is certain that the descriptor is the owner's and not another's who has got its number since.
        match root.find(self.name()) {
            Ok(found) if found.alive && found.state.pid == self.found.state.pid => Ok(Some(owner)),
            Ok(_) | Err(RunDirError::NotFound(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn unheard(&self, errno: Errno) -> LifecycleError {
        LifecycleError::Wait {
            name: self.name().into(),
            source: errno.into(),
        }
    }

    /// Waits until its sandbox's owner has ended.
    ///
    /// # Errors
    /// It has not ended within `limit`.
    pub fn wait(&self, root: &RunRoot, limit: Option<Duration>) -> Result<(), LifecycleError> {
        let Some(owner) = self.owner(root)? else {
            return Ok(());
        };
        let timeout = limit.map_or(PollTimeout::NONE, |limit| {
            PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX)
        });
        loop {
            match poll(&mut [PollFd::new(owner.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) => {
                    return Err(LifecycleError::Alive {
                        name: self.name().into(),
                        limit: limit.unwrap_or_default(),
                    });
                }
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(self.unheard(errno)),
            }
        }
    }

    /// Removes what is left of it. One whose first process has not been started is ended before, and with `force` any;
    /// the machine is stopped where the guest says that it has done so and has not.
    ///
    /// # Errors
    /// It runs and `force` is not set, or it does not end.
    pub fn delete(self, root: &RunRoot, force: bool) -> Result<(), LifecycleError> {
        let ended = match self.status() {
            // The guest is not believed where the container must go.
            Ok(Status::Stopped) => force,
            Ok(Status::Created) => self.end().map(|()| true)?,
            Ok(_) | Err(_) if force => self.end().map(|()| true)?,
            Ok(_) => return Err(RunDirError::Running(self.name().into()).into()),
            Err(error) => return Err(error),
        };
        if self.found.alive {
            // Its status may be ahead of its owner, who still passes on the last output.
            match self.wait(root, Some(self.patience)) {
                Err(LifecycleError::Alive { .. }) if ended => {
                    tracing::info!("the machine is stopped, as its guest has not ended the container");
                    self.stop_machine()?;
                    self.wait(root, Some(self.patience))?;
                }
                result => result?,
            }
        }
        if let Some(cgroup) = &self.found.state.cgroup {
            host_cgroup::remove(cgroup, self.patience)?;
        }
        match root.forget(self.name()) {
            // The owner has removed it itself.
            Err(RunDirError::NotFound(_)) => return Ok(()),
            result => result?,
        }
        for definition in &self.found.state.containers {
            definition.hooks.run_poststop(&self.subject(definition));
        }
        Ok(())
    }

    /// Ends every process of it. That there is none left is no error.
    fn end(&self) -> Result<(), LifecycleError> {
        match self.kill(libc::SIGKILL.cast_unsigned(), false) {
            Err(error) if error.means_stopped() => Ok(()),
            result => result,
        }
    }

    fn refuse(&self, status: Status, action: &'static str) -> LifecycleError {
        LifecycleError::Status {
            name: self.name().into(),
            status,
            action,
        }
    }
}

impl LifecycleError {
    /// Whether the error says that the container has ended.
    #[must_use]
    pub fn means_stopped(&self) -> bool {
        match self {
            Self::RunDir(RunDirError::Stopped(_) | RunDirError::NotFound(_)) | Self::Link(LinkError::Ended) => true,
            Self::Guest(GuestError::Refused { code, .. }) => {
                matches!(code, Code::NOT_FOUND | Code::FAILED_PRECONDITION)
            }
            Self::Guest(error) => error.is_lost(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;
