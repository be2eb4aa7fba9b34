//! The creation of a container: its root file system, its machine if it is the first one, its streams.

use std::collections::hash_map::Entry;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use containerd_shim_protos::events::task as events;
use containerd_shim_protos::types::mount::Mount;
use husk_sandbox::artefacts;
use husk_sandbox::bundle::Bundle;
use husk_sandbox::guest::ProcessId;
use husk_sandbox::image::{Cache, DEFAULT_LIMIT, Image, ImageError};
use husk_sandbox::relay::Relay;
use husk_sandbox::sandbox::{RootDisk, Sandbox};

use super::Pod;
use crate::config::Config;
use crate::container::Container;
use crate::error::ShimError;
use crate::exits;
use crate::place;
use crate::process::{Process, Stage, lock};
use crate::rootfs::RootFs;
use crate::stdio::{Stdio, Whose};

/// The program of the image that Kubernetes has for sandboxes.
const PAUSE: &str = "/pause";

/// A new container.
#[derive(Debug)]
pub(crate) struct Creation {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: Vec<Mount>,
    pub(crate) stdio: Stdio,
    /// When the caller has given up.
    pub(crate) deadline: Option<Instant>,
}

impl Pod {
    /// Creates a container; gives the process that stands for it.
    pub(crate) fn create(self: &Arc<Self>, creation: Creation) -> Result<u32, ShimError> {
        let id = creation.id.clone();
        match lock(&self.containers).entry(id.clone()) {
            Entry::Occupied(_) => return Err(ShimError::Exists(format!("container {id}"))),
            Entry::Vacant(place) => drop(place.insert(None)),
        }
        let (event, deadline) = (creation.event(), creation.deadline);
        let made = self.make(creation).and_then(|container| {
            if deadline.is_none_or(|deadline| Instant::now() < deadline) {
                return Ok(container);
            }
            // containerd has forgotten it: it would stay in the machine with nobody to delete it.
            self.take_back(&container.id);
            Err(ShimError::TooLate)
        });
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
                drop(containers);
                self.end_if_asked();
                Err(error)
            }
        }
    }

    fn make(self: &Arc<Self>, creation: Creation) -> Result<Container, ShimError> {
        // What a pod's sandbox executes is known without its image.
        let is_pause = place::is_sandbox(&place::annotations(&creation.bundle))
            && Bundle::load(&creation.bundle).is_ok_and(|bundle| is_pause(&bundle));
        let mounts = if is_pause { &[][..] } else { &creation.rootfs };
        let rootfs = RootFs::mount(&creation.bundle.join("rootfs"), mounts)?;
        let mut bundle = Bundle::load(&creation.bundle)?;
        if bundle.wants_host_network() {
            return Err(ShimError::HostNetwork);
        }
        if is_pause {
            bundle.become_pause();
        }
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
        let whose = Whose {
            namespace: &self.namespace,
            container: &creation.id,
        };
        // Before there is a disk that somebody would have to take out again.
        let (logger, ends) = creation.stdio.open(whose)?;
        let disk = match is_pause {
            true => self.ready(&sandbox).map(|()| RootDisk::default())?,
            false => self.disk(&sandbox, rootfs.image(cache, &root))?,
        };
        let streams = sandbox.create(&creation.id, bundle, disk, creation.stdio.wanted())?;
        let relay = Relay::start(streams, creation.stdio.terminal, ends).map_err(|error| {
            self.take_back(&creation.id);
            ShimError::Streams(error)
        })?;
        let id = ProcessId {
            container: creation.id.clone(),
            exec: String::new(),
        };
        let init = Process::new(id, creation.stdio, Stage::Created);
        init.carry(relay, logger);
        Ok(Container::new(creation.id, creation.bundle, root, init, rootfs))
    }

    /// Deletes what nobody will start.
    fn take_back(&self, container: &str) {
        if let Err(error) = self.sandbox().and_then(|sandbox| Ok(sandbox.delete(container)?)) {
            tracing::debug!(%error, "the guest does not forget the container");
        }
    }

    /// Puts an image into a disk slot; the first time waits for the guest as well.
    fn disk(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        find: impl FnOnce() -> Result<Image, ImageError> + Send + 'static,
    ) -> Result<RootDisk, ShimError> {
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
}

/// Whether a bundle's process does nothing but hold the namespaces of a pod.
fn is_pause(bundle: &Bundle) -> bool {
    place::is_sandbox(&bundle.annotations) && bundle.request.process.args == [PAUSE]
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
