//! Sandboxes that have nothing to do: their memory, their exits, and what they cost while they idle.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::containers::husk;
use crate::series::Part;
use crate::{Plan, proc};

/// What one more sandbox may take of the host, in MiB, before no more are started.
const ROOM: f64 = 192.0;

pub(crate) fn run(plan: &Plan, part: &mut Part) -> Result<()> {
    if !["memory", "exits", "idle"].iter().any(|name| plan.wants(name)) {
        return Ok(());
    }
    let names: Vec<String> = (1..=50).map(|number| format!("bench{number}")).collect();
    let mut running = Vec::new();
    let outcome = measure(plan, part, &names, &mut running);
    for name in running {
        // A sandbox that cannot be removed ends with the emulated host.
        let _ = husk(plan, &["rm", "--force", name]).output();
    }
    outcome
}

fn measure<'n>(plan: &Plan, part: &mut Part, names: &'n [String], running: &mut Vec<&'n str>) -> Result<()> {
    let free = proc::meminfo("MemAvailable")?;
    let counts: &[usize] = if plan.quick { &[1] } else { &[1, 10, 50] };
    for &count in counts {
        if count > 1 && !plan.wants("memory") {
            continue;
        }
        while running.len() < count {
            if proc::meminfo("MemAvailable")? < ROOM {
                part.notes.push(format!(
                    "memory: the host has room for {} sandboxes only",
                    running.len()
                ));
                break;
            }
            let name = &names[running.len()];
            start(plan, name)?;
            running.push(name);
        }
        let number = running.len();
        if number == 1 {
            if plan.wants("exits") {
                kvm_statistics(part)?;
            }
            if plan.wants("idle") {
                idle(plan, part)?;
            }
        }
        if plan.wants("memory") {
            monitors(part, number)?;
            let taken = (free - proc::meminfo("MemAvailable")?) / number as f64;
            part.add(
                &format!("memory, {number} sandboxes: the host's available memory, each"),
                "MiB",
                taken,
            );
            if number == 1 {
                guest(plan, part, running[0])?;
            }
        }
    }
    Ok(())
}

fn start(plan: &Plan, name: &str) -> Result<()> {
    let rootfs = plan.rootfs.to_string_lossy();
    let words = [
        "run", "--detach", "--memory", "128M", "--name", name, "--rootfs", &*rootfs, "--", "sleep", "100000",
    ];
    let output = husk(plan, &words).output()?;
    ensure!(
        output.status.success(),
        "husk run: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The memory of all running husk-vmm.
fn monitors(part: &mut Part, number: usize) -> Result<()> {
    let pids = proc::named("husk-vmm")?;
    ensure!(pids.len() == number, "{} husk-vmm run, not {number}", pids.len());
    for pid in pids {
        let (mut private, mut pss) = (0.0, 0.0);
        for (kind, usage) in proc::mappings(pid)? {
            if kind == "guest" {
                part.add(&format!("memory, {number} sandboxes: guest memory"), "MiB", usage.pss);
                continue;
            }
            (private, pss) = (private + usage.private, pss + usage.pss);
            if number == 1 {
                part.add(
                    &format!("memory, 1 sandboxes: husk-vmm private, {kind}"),
                    "MiB",
                    usage.private,
                );
            }
        }
        part.add(&format!("memory, {number} sandboxes: husk-vmm private"), "MiB", private);
        part.add(&format!("memory, {number} sandboxes: husk-vmm PSS"), "MiB", pss);
    }
    Ok(())
}

/// What the guest's kernel says of its memory.
fn guest(plan: &Plan, part: &mut Part, name: &str) -> Result<()> {
    let output = husk(plan, &["exec", name, "--", "cat", "/proc/meminfo"]).output()?;
    ensure!(
        output.status.success(),
        "husk exec: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout);
    let field = |name: &str| proc::kib_of(&text, name).with_context(|| format!("no {name} in the guest"));
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
        "Cached",
        "Shmem",
        "Slab",
        "SUnreclaim",
        "KernelStack",
        "PageTables",
        "Percpu",
    ] {
        part.add(&format!("guest memory: {kind}"), "MiB", field(kind)?);
    }
    Ok(())
}

/// KVM's own counts of the one machine, from its creation to the container's first process and the end of `husk run -d`.
fn kvm_statistics(part: &mut Part) -> Result<()> {
    const DEBUG: &str = "/sys/kernel/debug";
    if !Path::new(DEBUG).join("kvm").exists() {
        nix::mount::mount(
            Some("debugfs"),
            DEBUG,
            Some("debugfs"),
            nix::mount::MsFlags::empty(),
            None::<&str>,
        )
        .context("mounting debugfs")?;
    }
    let pid = proc::named("husk-vmm")?.first().copied().context("no husk-vmm runs")?;
    let mut machines = fs::read_dir(Path::new(DEBUG).join("kvm"))?.filter_map(|entry| Some(entry.ok()?.path()));
    let of_pid = |path: &std::path::PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(&format!("{pid}-")))
    };
    let machine = machines.find(of_pid).context("KVM has no statistics of the machine")?;
    for file in fs::read_dir(machine)?.filter_map(Result::ok) {
        let Ok(text) = fs::read_to_string(file.path()) else {
            continue;
        };
        let name = file.file_name().to_string_lossy().into_owned();
        let told = ["exits", "injections", "emulation", "halt", "switch"]
            .iter()
            .any(|word| name.contains(word));
        if let (Ok(value @ 1..), true) = (text.trim().parse::<u64>(), told) {
            part.add(
                &format!("exits: KVM's {name}, to the first process"),
                "count",
                value as f64,
            );
        }
    }
    Ok(())
}

/// Context switches and CPU time of a husk-vmm whose guest has nothing to do.
fn idle(plan: &Plan, part: &mut Part) -> Result<()> {
    let seconds = if plan.quick { 5 } else { 60 };
    let pid = proc::named("husk-vmm")?.first().copied().context("no husk-vmm runs")?;
    // What the start has left to do.
    std::thread::sleep(Duration::from_secs(2));
    let (before, cpu) = (proc::switches(pid)?, proc::thread_ns(pid, "")?);
    std::thread::sleep(Duration::from_secs(seconds));
    let (after, spent) = (proc::switches(pid)?, proc::thread_ns(pid, "")? - cpu);
    part.add(
        &format!("idle: CPU time of husk-vmm in {seconds} s"),
        "ms",
        spent as f64 / 1e6,
    );
    for (thread, count) in after {
        let count = count - before.get(&thread).copied().unwrap_or(0);
        part.add(
            &format!("idle: context switches in {seconds} s, {thread}"),
            "count",
            count as f64,
        );
    }
    Ok(())
}
