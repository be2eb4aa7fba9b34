//! All exits of a machine, by KVM's own statistics: to the agent that is ready, and to a container's first process.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::monitor::{Monitor, Setup};
use crate::sandbox::Sandbox;
use crate::series::Part;
use crate::{Plan, rounds};

const DEBUG: &str = "/sys/kernel/debug";
/// How husk starts the guest's kernel without a console (`sandbox/src/kernel`).
const COMMAND_LINE: &str = "panic=-1 random.trust_cpu=on cryptomgr.notests tsc=nowatchdog quiet 8250.nr_uarts=0";

pub(crate) fn run(plan: &Plan, part: &mut Part) -> Result<()> {
    rounds::run(plan, part, 2, |part| {
        let monitor = Monitor::start(plan, linux(plan)?)?;
        monitor.accept().context("the agent does not say that it is ready")?;
        add(part, &statistics(monitor.pid())?, "to agent ready");
        monitor.end(false)?;

        let sandbox = Sandbox::start(plan, "bench-exits")?;
        let counts = statistics(sandbox.machine);
        sandbox.stop(plan)?;
        add(part, &counts?, "to the first process (the return of husk run --detach)");
        Ok(())
    })
}

/// The machine that husk makes for a container of one vCPU, without the container.
fn linux(plan: &Plan) -> Result<Setup> {
    Ok(Setup {
        kernel: File::open(plan.bin.join("guest/vmlinux")).context("the guest's kernel")?,
        command_line: COMMAND_LINE.to_owned(),
        initramfs: Some(crate::native::initramfs(plan)?),
        disks: vec![None],
    })
}

fn add(part: &mut Part, counts: &BTreeMap<String, u64>, point: &str) {
    for (name, count) in counts {
        part.add(&format!("exits: KVM's {name}, {point}"), "count", *count as f64);
    }
}

/// KVM's own counts of a machine's exits and of what it was given, since it was made. Those that are none are left out.
pub(crate) fn statistics(pid: u32) -> Result<BTreeMap<String, u64>> {
    let machine = directory(pid)?;
    let mut counts = BTreeMap::new();
    for file in fs::read_dir(machine)?.filter_map(Result::ok) {
        let Ok(text) = fs::read_to_string(file.path()) else {
            continue;
        };
        let name = file.file_name().to_string_lossy().into_owned();
        let is_told = !name.ends_with("_ns")
            && ["exits", "injections", "emulation", "wakeup", "pf_taken"]
                .iter()
                .any(|word| name.contains(word));
        if let (Ok(count @ 1..), true) = (text.trim().parse(), is_told) {
            counts.insert(name, count);
        }
    }
    Ok(counts)
}

/// Where KVM shows the statistics of the machine of a process.
fn directory(pid: u32) -> Result<PathBuf> {
    let machines = Path::new(DEBUG).join("kvm");
    if !machines.exists() {
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("debugfs"), DEBUG, Some("debugfs"), flags, None::<&str>).context("mounting debugfs")?;
    }
    let mut machines = fs::read_dir(machines)?.filter_map(|entry| Some(entry.ok()?.path()));
    let of_pid = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(&format!("{pid}-")))
    };
    machines.find(of_pid).context("KVM has no statistics of the machine")
}

/// The counts that came between two readings.
pub(crate) fn between(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let grown = |(name, count): (&String, &u64)| {
        let more = count.saturating_sub(before.get(name).copied().unwrap_or(0));
        (more > 0).then(|| (name.clone(), more))
    };
    after.iter().filter_map(grown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_grow_is_left_out() {
        let counts = |list: &[(&str, u64)]| list.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        let (before, after) = (
            counts(&[("exits", 5), ("halt", 2)]),
            counts(&[("exits", 9), ("halt", 2), ("io", 1)]),
        );
        assert_eq!(between(&before, &after), counts(&[("exits", 4), ("io", 1)]));
    }
}
