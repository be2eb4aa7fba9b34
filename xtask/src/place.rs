//! Where husk can run: on this machine where it has virtualization, else in the emulated host.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::{host, step};

/// Memory of the emulated host: enough for eight sandboxes and for what they write.
const MEMORY: u64 = 8 << 30;

/// Runs a command where /dev/kvm is real, and gives its exit code.
pub(crate) fn run(command: Vec<OsString>, environment: Vec<(&'static str, OsString)>, limit: Duration) -> Result<i32> {
    if has_virtualization() {
        step("this machine has hardware virtualization: running on it");
        let (program, arguments) = command.split_first().context("an empty command")?;
        let status = Command::new(program).args(arguments).envs(environment).status();
        let status = status.with_context(|| format!("starting {}", program.display()))?;
        return Ok(status.code().unwrap_or(host::OWN_FAILURE));
    }
    step("this machine has no hardware virtualization: running in the emulated host");
    let options = host::Options {
        memory: MEMORY,
        timeout: Some(limit),
        command,
        environment,
        ..host::Options::default()
    };
    host::run(&options)
}

/// Whether the processor says so and /dev/kvm can be opened. A /dev/kvm without the processor's extensions is KVM in
/// software, which is no place for a Linux guest.
fn has_virtualization() -> bool {
    let told = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = told.lines().find(|line| line.starts_with("flags"));
    let extensions = flags.is_some_and(|line| line.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"));
    extensions && OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
}
