//! A container of the shim's sandbox.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::error::ShimError;
use crate::process::{Process, lock};
use crate::rootfs::RootFs;

/// The least time between two events of memory that was short.
const OOM_PAUSE: Duration = Duration::from_secs(1);

/// A container that containerd knows.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    /// The directory on the host that its root file system was made from.
    pub(crate) root: PathBuf,
    pub(crate) is_paused: AtomicBool,
    pub(crate) init: Arc<Process>,
    execs: Mutex<HashMap<String, Arc<Process>>>,
    /// When containerd was last told that its memory was short.
    oom_told: Mutex<Option<Instant>>,
    /// Unmounted when it goes.
    _rootfs: RootFs,
}

impl Container {
    pub(crate) fn new(id: String, bundle: PathBuf, root: PathBuf, init: Process, rootfs: RootFs) -> Self {
        Self {
            id,
            bundle,
            root,
            is_paused: AtomicBool::new(false),
            init: Arc::new(init),
            execs: Mutex::default(),
            oom_told: Mutex::default(),
            _rootfs: rootfs,
        }
    }

    /// The first process, or a further one.
    pub(crate) fn process(&self, exec: &str) -> Result<Arc<Process>, ShimError> {
        if exec.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        lock(&self.execs).get(exec).cloned().ok_or_else(|| self.lacks(exec))
    }

    /// Why a process that is asked for is not there.
    pub(crate) fn lacks(&self, exec: &str) -> ShimError {
        match exec {
            "" => ShimError::NoContainer(self.id.clone()),
            exec => ShimError::NoProcess {
                container: self.id.clone(),
                exec: exec.into(),
            },
        }
    }

    /// Whether containerd is to be told that its memory was short: a guest can say so as often as it likes.
    pub(crate) fn may_tell_oom(&self) -> bool {
        let mut told = lock(&self.oom_told);
        let may = told.is_none_or(|told| told.elapsed() >= OOM_PAUSE);
        if may {
            *told = Some(Instant::now());
        }
        may
    }

    /// Adds a further process.
    pub(crate) fn add(&self, process: Process) -> Result<(), ShimError> {
        let mut execs = lock(&self.execs);
        if execs.contains_key(&process.id.exec) {
            return Err(ShimError::Exists(format!(
                "process {} of container {}",
                process.id.exec, self.id
            )));
        }
        execs.insert(process.id.exec.clone(), Arc::new(process));
        Ok(())
    }

    /// Forgets a further process.
    pub(crate) fn forget(&self, exec: &str) {
        lock(&self.execs).remove(exec);
    }

    /// All further processes.
    pub(crate) fn execs(&self) -> Vec<Arc<Process>> {
        lock(&self.execs).values().cloned().collect()
    }
}
