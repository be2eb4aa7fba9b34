//! Building what is installed: husk, husk-vmm, the shim, and the guest that they boot.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::workspace::{self, TARGET};
use crate::{cache, process, setup, step};

/// Builds everything and gives the directory in which `husk` finds its parts beside it.
pub(crate) fn run() -> Result<PathBuf> {
    setup::ensure(setup::BUILD)?;
    setup::ensure_rust_target(TARGET)?;
    let output = workspace::target_directory()?.join(TARGET);
    let programs = output.join("release");

    step("building husk, husk-vmm and containerd-shim-husk-v2");
    cargo(&[
        "build",
        "--package=husk",
        "--package=husk-vmm",
        "--package=husk-shim",
        "--release",
        "--target",
        TARGET,
    ])?;
    step("building the agent");
    cargo(&[
        "build",
        "--package=husk-agent",
        "--profile=release-small",
        "--target",
        TARGET,
    ])?;
    step(&format!(
        "building the guest's kernel and initramfs; the kernel is cached in {}",
        cache::directory()?.display()
    ));
    process::run(
        workspace::cargo()
            .args(["run", "--quiet", "--package=husk-guest", "--", "build", "--agent"])
            .arg(output.join("release-small/husk-agent"))
            .arg("--out")
            .arg(programs.join("guest")),
    )?;
    step("writing manual pages and shell completions");
    process::run(Command::new(programs.join("husk")).arg("documentation").arg(&programs))?;
    Ok(programs)
}

fn cargo(arguments: &[&str]) -> Result<()> {
    process::run(workspace::cargo().args(arguments))
}
