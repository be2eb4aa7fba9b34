//! What a sandbox costs that has nothing to do.

use std::time::Duration;

use anyhow::Result;

use crate::sandbox::Sandbox;
use crate::series::Part;
use crate::{Plan, exits, proc};

const NAME: &str = "bench-idle";
/// What a start leaves for later, such as the agent's answers and the kernel's flusher, is done by then.
pub(crate) const SETTLE: Duration = Duration::from_secs(10);

/// Context switches, CPU time and exits of a husk-vmm whose guest runs a container that sleeps.
pub(crate) fn run(plan: &Plan, part: &mut Part) -> Result<()> {
    let sandbox = Sandbox::start(plan, NAME)?;
    let outcome = measure(plan, part, sandbox.machine);
    sandbox.stop(plan)?;
    outcome
}

fn measure(plan: &Plan, part: &mut Part, pid: u32) -> Result<()> {
    let seconds = if plan.quick { 5 } else { 60 };
    std::thread::sleep(SETTLE);
    let before = (proc::switches(pid)?, proc::thread_times(pid)?, exits::statistics(pid)?);
    std::thread::sleep(Duration::from_secs(seconds));
    let after = (proc::switches(pid)?, proc::thread_times(pid)?, exits::statistics(pid)?);
    for (thread, count) in &after.0 {
        let count = count - before.0.get(thread).copied().unwrap_or(0);
        let name = format!("idle: context switches in {seconds} s, {thread}");
        part.add(&name, "count", count as f64);
    }
    for (thread, time) in &after.1 {
        let spent = time - before.1.get(thread).copied().unwrap_or(0);
        part.add(
            &format!("idle: CPU time in {seconds} s, {thread}"),
            "ms",
            spent as f64 / 1e6,
        );
    }
    for (name, count) in exits::between(&before.2, &after.2) {
        part.add(&format!("idle: KVM's {name} in {seconds} s"), "count", count as f64);
    }
    Ok(())
}
