//! The end of a container: signals, waiting for it, and removing what is left.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use husk_vmm_config::Request;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Container, LifecycleError, Status};
use crate::guest::Guest;
use crate::host_cgroup;
use crate::machine::{LinkError, open_process};
use crate::rundir::{RunDirError, RunRoot};

/// How long a guest may take to pass on a SIGKILL before its machine is stopped instead.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

impl Container {
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
    pub(super) fn end(&self) -> Result<(), LifecycleError> {
        match self.kill(libc::SIGKILL.cast_unsigned(), false) {
            Err(error) if error.means_stopped() => Ok(()),
            result => result,
        }
    }
}
