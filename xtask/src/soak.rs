//! The soak test: many sandboxes where /dev/kvm is real, and what is left of them.

use std::time::Duration;

use anyhow::Result;

use crate::{build, peers, place, process, step, trees, workspace};

/// For what is not a sandbox: boot, the conversion of the tree, the end.
const LIMIT: Duration = Duration::from_secs(600);
/// For each sandbox: some times what it takes where the processor is emulated and the machine is busy.
const LIMIT_EACH: Duration = Duration::from_secs(20);

/// How many sandboxes there are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// One after the other.
    pub(crate) count: u32,
    /// At once, 0 to 100: each has an exit code of its own.
    pub(crate) at_once: u32,
    /// Whether containerd runs them.
    pub(crate) containerd: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            count: 500,
            at_once: 20,
            containerd: false,
        }
    }
}

/// Builds what is needed and runs it; gives the exit code.
pub(crate) fn run(options: &Options) -> Result<i32> {
    let programs = build::run()?;
    step("building the soak test");
    process::run(workspace::cargo().args(["build", "--quiet", "--package=husk-tests"]))?;
    let mut environment = vec![
        ("HUSK_TEST_BIN", programs.into_os_string()),
        ("HUSK_TEST_BUSYBOX", trees::busybox()?.into_os_string()),
    ];
    if options.containerd {
        environment.push(("HUSK_TEST_CONTAINERD", peers::build(peers::NEWEST)?.into_os_string()));
    }
    let command = vec![
        workspace::target_directory()?.join("debug/husk-soak").into(),
        options.count.to_string().into(),
        options.at_once.to_string().into(),
        if options.containerd { "containerd" } else { "shell" }.into(),
    ];
    let sandboxes = options.count.saturating_add(options.at_once);
    place::run(command, environment, LIMIT + LIMIT_EACH * sandboxes)
}
