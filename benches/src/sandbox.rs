//! A sandbox with a container that sleeps.

use anyhow::{Context, Result};

use crate::start::{MEMORY, husk};
use crate::{Plan, bounded, proc};

/// A sandbox that runs until it is stopped.
pub(crate) struct Sandbox {
    name: String,
    /// Its husk-vmm.
    pub(crate) machine: u32,
}

impl Sandbox {
    /// Gives it when its container's process is started.
    pub(crate) fn start(plan: &Plan, name: &str) -> Result<Self> {
        let before = proc::named("husk-vmm")?;
        let rootfs = plan.rootfs.to_string_lossy();
        let words = [
            "run", "--detach", "--memory", MEMORY, "--name", name, "--rootfs", &*rootfs, "--", "sleep", "100000",
        ];
        bounded::output(&mut husk(plan, &words))?;
        let mut machines = proc::named("husk-vmm")?.into_iter();
        let machine = machines.find(|pid| !before.contains(pid));
        Ok(Self {
            name: name.to_owned(),
            machine: machine.context("no husk-vmm has come")?,
        })
    }

    /// What a command says that runs in its container.
    pub(crate) fn says(&self, plan: &Plan, command: &[&str]) -> Result<String> {
        let words = [&["exec", &self.name, "--"], command].concat();
        Ok(bounded::output(&mut husk(plan, &words))?.stdout)
    }

    /// Removes it, and waits until the machine and its memory are gone.
    pub(crate) fn stop(self, plan: &Plan) -> Result<()> {
        // One that has ended already has no handle.
        let handle = bounded::handle(self.machine).ok();
        bounded::output(&mut husk(plan, &["rm", "--force", &self.name]))?;
        bounded::ends(handle.as_slice())?;
        Ok(())
    }
}
