//! Pause and Resume: the freezer of a container's cgroup.

use std::time::{Duration, Instant};

use husk_protocol::agent::{ContainerStatus, Empty, PauseRequest, ResumeRequest};

use crate::agent::Agent;
use crate::calls::{Answer, encode};
use crate::cgroup::{is_frozen, reread};
use crate::container::{Container, Reply};
use crate::refusal::Refusal;

/// How long processes may take to stop: one in a call that cannot be interrupted stops after it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether a container's processes go on.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) enum Freeze {
    #[default]
    Going,
    /// They were told to stop; who has asked, and until when they may take.
    Stopping(Reply, Instant),
    Stopped,
}

impl Freeze {
    /// When its time is up.
    pub(crate) fn deadline(self) -> Option<Instant> {
        match self {
            Self::Stopping(_, deadline) => Some(deadline),
            Self::Going | Self::Stopped => None,
        }
    }
}

impl Agent {
    /// Stops a container's processes; answered when the kernel says that they have stopped.
    pub(crate) fn pause(&mut self, reply: Reply, request: &PauseRequest) -> Answer {
        let id = request.container.as_str();
        let container = self.container(id)?;
        if !container.takes_processes() {
            return Err(container.refuse(id, "created or running"));
        }
        self.watch_events(id)?;
        if let Some(container) = self.containers.get_mut(id) {
            container
                .cgroup
                .freeze(true)
                .map_err(Refusal::file("freezing the cgroup"))?;
            container.freeze = Freeze::Stopping(reply, Instant::now() + PATIENCE);
        }
        self.advance_pauses();
        Ok(None)
    }

    /// Lets a container's processes go on.
    pub(crate) fn resume(&mut self, request: &ResumeRequest) -> Answer {
        let id = request.container.as_str();
        let container = self.container(id)?;
        if container.status() != ContainerStatus::CONTAINER_PAUSED {
            return Err(container.refuse(id, "paused"));
        }
        container
            .cgroup
            .freeze(false)
            .map_err(Refusal::file("thawing the cgroup"))?;
        if let Some(container) = self.containers.get_mut(id) {
            container.freeze = Freeze::Going;
        }
        encode(&Empty::default())
    }

    /// Answers each Pause whose processes have stopped or ended.
    pub(crate) fn advance_pauses(&mut self) {
        let mut answers = Vec::new();
        for (id, container) in &mut self.containers {
            let Freeze::Stopping(reply, _) = container.freeze else {
                continue;
            };
            if container.status() == ContainerStatus::CONTAINER_STOPPED {
                container.freeze = Freeze::Going;
                answers.push((reply, Err(container.refuse(id, "created or running"))));
            } else if container
                .events
                .as_ref()
                .is_some_and(|events| is_frozen(&reread(events)))
            {
                container.freeze = Freeze::Stopped;
                answers.push((reply, Ok(())));
            }
        }
        for (reply, answer) in answers {
            match answer {
                Ok(()) => self.answer(reply, &Empty::default()),
                Err(refusal) => self.refuse(reply, refusal),
            }
        }
    }

    /// Lets the processes go on that have not all stopped in time.
    pub(crate) fn expire_pauses(&mut self, now: Instant) {
        let is_late = |container: &Container| container.freeze.deadline().is_some_and(|deadline| deadline <= now);
        let mut late = Vec::new();
        for (id, container) in self.containers.iter_mut().filter(|(_, container)| is_late(container)) {
            if let Freeze::Stopping(reply, _) = std::mem::take(&mut container.freeze) {
                // The kernel takes it whatever the processes do.
                let _ = container.cgroup.freeze(false);
                late.push((reply, id.clone()));
            }
        }
        for (reply, id) in late {
            self.refuse(reply, Refusal::NotStopping(id));
        }
    }
}
