//! The containers of a sandbox: what its owner does with them.

use std::time::Duration;

use husk_protocol::agent::{self, CreateRequest, WaitResponse};

use super::{RootDisk, Sandbox, SandboxError, lock};
use crate::bundle::{Bundle, Join};
use crate::guest::{self, ProcessId, Streams, Wanted};
use crate::hooks::{self, Hooks, Subject};
use crate::image::Layer;
use crate::rundir::{Container, ContainerProcess};

/// A container's hooks, and what they are told.
#[derive(Clone)]
pub(super) struct Attended {
    pub(super) hooks: Hooks,
    pub(super) subject: Subject,
    /// The slot of its root file system.
    disk: String,
    /// The longest that its hooks in the guest may take at its start.
    start: Duration,
}

fn to_guest(layer: &Layer) -> agent::Layer {
    agent::Layer {
        offset: layer.range.start,
        length: layer.range.end - layer.range.start,
        type_: layer.kind.name().into(),
        ..Default::default()
    }
}

impl Sandbox {
    /// Creates a container up to the point before its first process executes; gives the streams of that. A pause
    /// ([`Bundle::become_pause`]) needs no `disk`.
    ///
    /// # Errors
    /// What is wrong with the container; the machine has ended.
    pub fn create(&self, name: &str, bundle: Bundle, disk: RootDisk, wanted: Wanted) -> Result<Streams, SandboxError> {
        let serial = disk.serial.clone();
        let made = self.make(name, bundle, disk, wanted);
        if made.is_err() {
            if let Some(gone) = self.take_attended(name, &serial) {
                gone.hooks.run_poststop(&gone.subject);
            }
            // Others may need its place. With the machine it has gone anyway.
            if let Err(error) = self.free_disk(serial) {
                tracing::debug!(%error, "the disk of a container that was not made is not free");
            }
        }
        made
    }

    fn make(&self, name: &str, bundle: Bundle, disk: RootDisk, wanted: Wanted) -> Result<Streams, SandboxError> {
        let Bundle {
            root,
            dir,
            annotations,
            hooks,
            mut request,
            joins,
            confinement,
            network,
            // The machine is there.
            machine: _,
        } = bundle;
        if let Some(network) = network.filter(|network| self.network.as_deref() != Some(&*network.path)) {
            return Err(SandboxError::Namespace {
                index: network.index,
                path: network.path.to_string_lossy().into_owned(),
            });
        }
        if confinement != self.confinement {
            return Err(SandboxError::Confinement);
        }
        self.join(&mut request, &joins)?;
        let subject = Subject {
            id: name.into(),
            pid: self.pid(),
            bundle: dir.clone().unwrap_or_else(|| root.clone()),
            annotations,
        };
        for (hooks, status) in [
            (&mut request.create_hooks, "creating"),
            (&mut request.start_hooks, "created"),
        ] {
            if let Some(hooks) = hooks.as_mut() {
                (hooks.before_pid, hooks.after_pid) = hooks::state_around_pid(&subject, status);
            }
        }
        let in_guest = request.root.mut_or_insert_default();
        in_guest.disk.clone_from(&disk.serial);
        in_guest.layers = disk.layers.iter().map(to_guest).collect();
        lock(&self.attended).push(Attended {
            hooks: hooks.clone(),
            subject: subject.clone(),
            disk: disk.serial,
            start: guest::time_of(request.start_hooks.as_ref()),
        });
        let guest = self.guest()?;
        request.container = name.into();
        let process = request.process.mut_or_insert_default();
        let stdio = process.stdio.mut_or_insert_default();
        let streams = guest.streams(stdio, wanted).map_err(|error| self.explain(error))?;
        self.timeline.reach("streams connected");
        hooks.run_create(&subject)?;
        guest.create(&request).map_err(|error| self.explain(error))?;
        self.timeline.reach("container created");
        let mut state = lock(&self.state);
        state.containers.push(Container {
            name: name.into(),
            root,
            bundle: dir,
            annotations: subject.annotations,
            hooks,
            start_hooks_s: guest::time_of(request.start_hooks.as_ref()).as_secs(),
            process: ContainerProcess::from(&*request.process),
        });
        self.dir.write_state(&state)?;
        Ok(streams)
    }

    /// Names the containers whose namespaces a new one is to have. One process stands for them all, and with it the first
    /// of them is meant: a pod's own.
    fn join(&self, request: &mut CreateRequest, joins: &[Join]) -> Result<(), SandboxError> {
        let first = lock(&self.state).containers.first().map(|first| first.name.clone());
        for join in joins {
            let own = first.as_ref().filter(|_| join.pid == self.pid());
            match (own, request.namespaces.get_mut(join.index)) {
                (Some(first), Some(namespace)) => namespace.container.clone_from(first),
                _ => {
                    return Err(SandboxError::Namespace {
                        index: join.index,
                        path: join.path.clone(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Lets a container's first process execute; gives the guest's time of it.
    ///
    /// # Errors
    /// The command cannot be executed; the machine has ended.
    pub fn start(&self, process: &ProcessId) -> Result<u64, SandboxError> {
        let attended = match process.exec.as_str() {
            "" => self.attended(&process.container),
            _ => None,
        };
        let time = attended.as_ref().map_or(Duration::ZERO, |attended| attended.start);
        let started = self.guest()?.start_with_hooks(process, time);
        let started = started.map_err(|error| self.explain(error))?;
        self.timeline.reach("process started");
        if let Some(attended) = attended {
            self.run_poststart(process, &attended)?;
        }
        Ok(started)
    }

    /// Runs the hooks that follow a container's start; the container ends when one fails.
    fn run_poststart(&self, process: &ProcessId, attended: &Attended) -> Result<(), SandboxError> {
        let result = attended.hooks.run_poststart(&attended.subject);
        if result.is_err() {
            // It may have ended by itself.
            if let Err(error) = self.guest()?.kill(process, libc::SIGKILL.cast_unsigned(), false) {
                tracing::debug!(%error, "the container of a failed hook is not killed");
            }
        }
        Ok(result?)
    }

    /// What has attended a container in this disk slot.
    fn take_attended(&self, container: &str, disk: &str) -> Option<Attended> {
        let mut attended = lock(&self.attended);
        let is_it = |attended: &Attended| attended.subject.id == container && attended.disk == disk;
        let at = attended.iter().position(is_it)?;
        Some(attended.remove(at))
    }

    /// What attends a container.
    fn attended(&self, container: &str) -> Option<Attended> {
        let attended = lock(&self.attended);
        attended
            .iter()
            .find(|attended| attended.subject.id == container)
            .cloned()
    }

    /// Waits until a process has exited.
    ///
    /// # Errors
    /// The machine has ended.
    pub fn wait(&self, process: &ProcessId) -> Result<WaitResponse, SandboxError> {
        let exit = self.guest()?.wait(process).map_err(|error| self.explain(error))?;
        self.timeline.reach("exit reported");
        Ok(exit)
    }

    /// Takes a container down whose first process has exited or was never started; its disk slot is free then, and its
    /// hooks are told.
    ///
    /// # Errors
    /// It still runs, or there is none; the machine has ended.
    pub fn delete(&self, container: &str) -> Result<(), SandboxError> {
        let process = ProcessId {
            container: container.into(),
            exec: String::new(),
        };
        self.guest()?.delete(&process).map_err(|error| self.explain(error))?;
        let disk = self.attended(container).map(|attended| attended.disk);
        let gone = disk.and_then(|disk| self.take_attended(container, &disk));
        {
            let mut state = lock(&self.state);
            state.containers.retain(|other| other.name != container);
            self.dir.write_state(&state)?;
        }
        let Some(gone) = gone else { return Ok(()) };
        gone.hooks.run_poststop(&gone.subject);
        self.free_disk(gone.disk)
    }

    /// What a further process of a container is modelled on.
    #[must_use]
    pub fn container(&self, name: &str) -> Option<Container> {
        let state = lock(&self.state);
        state
            .containers
            .iter()
            .find(|container| container.name == name)
            .cloned()
    }
}
