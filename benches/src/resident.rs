//! Memory of sandboxes that have nothing to do: of one, and of many of the same image.

use anyhow::{Context, Result, ensure};

use crate::idle::SETTLE;
use crate::sandbox::Sandbox;
use crate::series::Part;
use crate::{Plan, proc};

/// What one more sandbox may take of the host, in MiB, before no more are started.
const ROOM: f64 = 192.0;

pub(crate) fn run(plan: &Plan, part: &mut Part) -> Result<()> {
    let mut running = Vec::new();
    let outcome = measure(plan, part, &mut running);
    for sandbox in running {
        // One that cannot be removed ends with the emulated host.
        let _ = sandbox.stop(plan);
    }
    outcome
}

fn measure(plan: &Plan, part: &mut Part, running: &mut Vec<Sandbox>) -> Result<()> {
    // What went before has left memory that the host takes back in its own time.
    std::thread::sleep(SETTLE);
    let (mut free, mut before) = (proc::meminfo("MemAvailable")?, 0);
    let counts: &[usize] = if plan.quick { &[1] } else { &[1, 10, 50] };
    for &count in counts {
        while running.len() < count && proc::meminfo("MemAvailable")? >= ROOM {
            let name = format!("bench-memory-{}", running.len() + 1);
            running.push(Sandbox::start(plan, &name)?);
        }
        let number = running.len();
        ensure!(number > before, "the host has memory for {number} sandboxes only");
        monitors(part, running)?;
        let left = proc::meminfo("MemAvailable")?;
        let name = format!("memory of {number}: the host's available memory, each since {before}");
        part.add(&name, "MiB", (free - left) / (number - before) as f64);
        (free, before) = (left, number);
        if let [only] = running.as_slice() {
            guest(plan, part, only)?;
        }
        part.keep()?;
        if number < count {
            let note = format!("memory: the host has room for {number} sandboxes, not for {count}");
            part.notes.push(note);
            break;
        }
    }
    Ok(())
}

/// The memory of the processes of these sandboxes.
fn monitors(part: &mut Part, running: &[Sandbox]) -> Result<()> {
    let number = running.len();
    for sandbox in running {
        let (mut private, mut pss, mut guest) = (0.0, 0.0, 0.0);
        for (kind, usage) in proc::mappings(sandbox.machine)? {
            if kind == "guest" {
                guest = usage.pss;
                continue;
            }
            (private, pss) = (private + usage.private, pss + usage.pss);
            if number == 1 {
                let name = format!("memory of 1: husk-vmm private, {kind}");
                part.add(&name, "MiB", usage.private);
            }
        }
        part.add(&format!("memory of {number}: husk-vmm private"), "MiB", private);
        part.add(&format!("memory of {number}: husk-vmm PSS"), "MiB", pss);
        part.add(&format!("memory of {number}: guest memory PSS"), "MiB", guest);
    }
    for (name, process) in [("its monitor", "husk-monitor"), ("its keeper", "husk-keeper")] {
        for pid in proc::named(process)? {
            let pss = proc::mappings(pid)?.values().map(|usage| usage.pss).sum();
            part.add(&format!("memory of {number}: {name} ({process}) PSS"), "MiB", pss);
        }
    }
    Ok(())
}

/// What the guest's kernel says of its memory.
fn guest(plan: &Plan, part: &mut Part, sandbox: &Sandbox) -> Result<()> {
    let said = sandbox.says(plan, &["cat", "/proc/meminfo"])?;
    let field = |name: &str| proc::kib_of(&said, name).with_context(|| format!("no {name} in the guest"));
    let total = field("MemTotal")?;
    part.add(
        "guest memory: in use when idle (total - available)",
        "MiB",
        total - field("MemAvailable")?,
    );
    part.add(
        "guest memory: of 128 MiB not given to the page allocator",
        "MiB",
        128.0 - total,
    );
    for kind in [
        "MemTotal",
        "MemFree",
        "AnonPages",
        "Mapped",
        "Cached",
        "Shmem",
        "Slab",
        "SUnreclaim",
        "KernelStack",
        "PageTables",
        "Percpu",
        "VmallocUsed",
    ] {
        part.add(&format!("guest memory: {kind}"), "MiB", field(kind)?);
    }
    Ok(())
}
