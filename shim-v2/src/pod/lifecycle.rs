//! From a created container to its deletion: starts, further processes, exits.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use containerd_shim_protos::events::task as events;
use husk_sandbox::agent::{self, ExecRequest};
use husk_sandbox::bundle;
use husk_sandbox::guest::ProcessId;
use husk_sandbox::relay::Relay;

use super::Pod;
use crate::container::Container;
use crate::error::ShimError;
use crate::process::{Exit, Process, Stage, lock};
use crate::stdio::{Stdio, Whose};

/// How long a container that has not been started may take to go when it is deleted.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// How long the end of a container waits for its last output to be taken.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(2);
/// How long a guest may take to end what is killed.
const OBEDIENCE: Duration = Duration::from_secs(60);
/// How long it waits for its machine's end.
const END_PATIENCE: Duration = Duration::from_secs(10);

impl Pod {
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
        if let Some(exit) = ended {
            // It stays one whose end is known: the end of its machine, which may come now, is not its own.
            drop(stage);
            self.conclude(&container, &process, exit);
        } else if matches!(*stage, Stage::Starting(_)) {
            *stage = Stage::Running;
        }
        Ok(pid)
    }

    /// Makes a further process and lets it execute.
    fn execute(
        &self,
        container: &Container,
        process: &Process,
        mut definition: agent::Process,
    ) -> Result<(), ShimError> {
        let guest = self.guest()?;
        let whose = Whose {
            namespace: &self.namespace,
            container: &container.id,
        };
        let (logger, ends) = process.stdio.open(whose)?;
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

    /// A process has ended. With the only container of a sandbox its machine ends too, before anybody is told: nothing is
    /// left then of the process that stands for it.
    fn conclude(&self, container: &Container, process: &Process, exit: Exit) {
        let is_alone = !self.is_shared.load(Ordering::Acquire) && !self.is_apart();
        if is_alone && process.id.exec.is_empty() {
            self.end_machine(container);
        }
        let stage = process.stage();
        if !matches!(*stage, Stage::Exited(_)) {
            self.exit(process, stage, exit);
        }
    }

    /// Ends the machine of a container whose first process has ended, unless it has output that nobody takes: then the
    /// machine stays until the container is deleted.
    fn end_machine(&self, container: &Container) {
        let Ok(sandbox) = self.sandbox() else { return };
        let execs = container.execs();
        let (ended, living): (Vec<_>, Vec<_>) = execs
            .iter()
            .partition(|process| matches!(*process.stage(), Stage::Exited(_)));
        let deadline = Instant::now() + OUTPUT_PATIENCE;
        let mut all = std::iter::once(&container.init).chain(ended);
        if !all.all(|process| process.is_drained_by(deadline)) {
            tracing::info!(
                container = container.id,
                "the machine stays, with output that nobody takes"
            );
            return;
        }
        if !sandbox.end_machine_within(END_PATIENCE) {
            tracing::warn!(container = container.id, "the machine takes long to end");
        }
        // They would not have outlived the container, in whatever namespace they are.
        living.into_iter().for_each(|process| self.lose(process));
    }

    /// A process has ended: tells containerd and whoever waits.
    fn exit(&self, process: &Process, stage: MutexGuard<'_, Stage>, exit: Exit) {
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
        let found = self.container(&id.container);
        let Ok((container, process)) =
            found.and_then(|container| Ok((Arc::clone(&container), container.process(&id.exec)?)))
        else {
            tracing::debug!(
                container = id.container,
                exec = id.exec,
                "the end of an unknown process"
            );
            if self.pause.get() == Some(&id.container) && id.exec.is_empty() {
                // The namespaces of the pod have gone with it.
                self.end_sandbox(exit);
            }
            return;
        };
        let mut stage = process.stage();
        match &mut *stage {
            // Its start is to be told first.
            Stage::Starting(ended) => *ended = Some(exit),
            Stage::Created | Stage::Running => {
                drop(stage);
                self.conclude(&container, &process, exit);
            }
            Stage::Added(_) | Stage::Exited(_) => {}
        }
    }

    /// A process has gone down with its machine.
    fn lose(&self, process: &Process) {
        let mut stage = process.stage();
        match &*stage {
            // Of one that has ended already its start tells.
            Stage::Added(_) | Stage::Exited(_) | Stage::Starting(Some(_)) => {}
            // Its start tells, or fails.
            Stage::Starting(None) => *stage = Stage::Starting(Some(Exit::killed())),
            Stage::Created | Stage::Running => self.exit(process, stage, Exit::killed()),
        }
    }

    /// A further process goes with its container.
    fn abandon(&self, process: &Process) {
        self.lose(process);
        let stage = process.stage();
        if matches!(*stage, Stage::Added(_)) {
            // Whoever waits for it waits in vain.
            process.exit(stage, Exit::none());
        }
    }

    /// A container's first process is being killed: a guest that does not let it end loses its machine.
    pub(crate) fn insist_on_end(self: &Arc<Self>, process: Arc<Process>) {
        if process.is_killed.swap(true, Ordering::AcqRel) {
            return;
        }
        let pod = Arc::clone(self);
        let insist = move || {
            if process.ended.wait_for(OBEDIENCE).is_some() {
                return;
            }
            let container = &process.id.container;
            tracing::warn!(container, "the guest does not end what is killed: its machine is ended");
            if let Ok(sandbox) = pod.sandbox() {
                sandbox.hang_up();
            }
        };
        // Without a thread it is still killed, by a guest that obeys.
        let _ = thread::Builder::new().name("insist".into()).spawn(insist);
    }

    /// The machine has ended, and everything in it.
    pub(crate) fn machine_ended(&self) {
        for container in self.containers() {
            // The first one last: containerd hears of its end after that of all others.
            container.execs().iter().for_each(|process| self.lose(process));
            self.lose(&container.init);
        }
        self.ended.tell(Exit::killed());
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
    pub(crate) fn delete(self: &Arc<Self>, container: &str, exec: &str) -> Result<Exit, ShimError> {
        let container = self.container(container)?;
        let process = container.process(exec)?;
        let mut is_deleted = lock(&process.is_deleted);
        if *is_deleted {
            return Err(container.lacks(exec));
        }
        if !exec.is_empty() {
            let stage = process.stage();
            let (exit, has_run) = match &*stage {
                Stage::Exited(exit) => (*exit, true),
                Stage::Added(_) => (Exit::none(), false),
                _ => return Err(ShimError::DeleteRunning),
            };
            *is_deleted = true;
            if has_run {
                drop(stage);
            } else {
                // Whoever waits for it waits in vain.
                process.exit(stage, exit);
            }
            process.finish();
            if has_run && let Err(error) = self.guest().and_then(|guest| Ok(guest.delete(&process.id)?)) {
                tracing::debug!(%error, "the guest does not forget the process");
            }
            container.forget(exec);
            return Ok(exit);
        }
        let exit = self.end(&process)?;
        *is_deleted = true;
        process.finish();
        if let Err(error) = self.sandbox().and_then(|sandbox| Ok(sandbox.delete(&container.id)?)) {
            // With its machine everything in it is gone; and what a guest keeps, it keeps at its own cost.
            tracing::debug!(%error, "the guest does not forget the container");
        }
        // Nothing of the container is left for those that are not deleted yet.
        container.execs().iter().for_each(|process| self.abandon(process));
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
        if is_last && !self.is_apart() {
            self.remove_sandbox();
        }
        self.end_if_asked();
        Ok(exit)
    }

    /// How a first process has ended, which one that was never started does now.
    fn end(self: &Arc<Self>, process: &Arc<Process>) -> Result<Exit, ShimError> {
        match &*process.stage() {
            Stage::Exited(exit) => return Ok(*exit),
            Stage::Created => {}
            _ => return Err(ShimError::DeleteRunning),
        }
        let kill = libc::SIGKILL.cast_unsigned();
        if let Err(error) = self.guest().and_then(|guest| Ok(guest.kill(&process.id, kill, true)?)) {
            // It has gone before it was known here.
            tracing::debug!(%error, "the container is not killed");
            let (stage, exit) = (process.stage(), Exit::killed());
            if let Stage::Exited(exit) = &*stage {
                return Ok(*exit);
            }
            self.exit(process, stage, exit);
            return Ok(exit);
        }
        if let Some(exit) = process.ended.wait_for(KILL_PATIENCE) {
            return Ok(exit);
        }
        self.insist_on_end(Arc::clone(process));
        Err(ShimError::DeleteRunning)
    }
}
