//! What runs on any KVM: the machine monitor's start and end, its memory, its disk and its vsock.

use std::fs::File;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use husk_test_guest::report::Outcome;

use crate::bounded::LIMIT;
use crate::monitor::{Monitor, Setup, Shared};
use crate::series::Part;
use crate::{Plan, proc, qemu};

/// Of the disk that is read, in bytes.
const DISK: usize = 16 << 20;
/// Of a request, in bytes.
const BLOCK: usize = 4096;

/// From execve to the first entry into the guest, and from the owner's hang-up to the end of the process.
pub(crate) fn start(plan: &Plan, part: &mut Part) -> Result<()> {
    for round in 0..=plan.times(20) {
        for kind in ["bare", "linux"] {
            let setup = match kind {
                "bare" => Setup::bare(plan, "+idle")?,
                _ => Setup {
                    kernel: File::open(plan.bin.join("guest/vmlinux")).context("the guest's kernel")?,
                    command_line: "quiet".to_owned(),
                    initramfs: Some(initramfs(plan)?),
                    disks: Vec::new(),
                },
            };
            let mut monitor = Monitor::start(plan, setup)?;
            let executed = monitor.executed_ns()?;
            if kind == "bare" {
                Shared::of(&monitor)?;
            } else {
                // By now the guest runs, or the phase is missing in the report and the value with it.
                std::thread::sleep(Duration::from_millis(250));
            }
            let hung_up = Instant::now();
            let (report, teardown) = monitor.end(false)?;
            let whole = hung_up.elapsed();
            // The first round warms the caches, unless it is the only one that counts.
            if round == 0 {
                continue;
            }
            let mut last = executed;
            for phase in &report.phases {
                let name = format!("start.{kind}: {}", phase.name);
                part.add(&name, "ms", millis(phase.at_ns.saturating_sub(last)));
                last = phase.at_ns;
                if phase.name == "guest entered" {
                    let name = format!("start.{kind}: execve to first guest entry");
                    part.add(&name, "ms", millis(phase.at_ns.saturating_sub(executed)));
                }
            }
            part.add(
                &format!("end.{kind}: hang-up to report (the caller's path)"),
                "ms",
                (whole - teardown).as_secs_f64() * 1e3,
            );
            part.add(
                &format!("end.{kind}: report to process's end (off that path)"),
                "ms",
                teardown.as_secs_f64() * 1e3,
            );
        }
        part.keep()?;
    }
    Ok(())
}

/// The archive of the guest that husk boots.
pub(crate) fn initramfs(plan: &Plan) -> Result<File> {
    let directory = plan.bin.join("guest");
    let mut names = std::fs::read_dir(&directory)?.filter_map(|entry| Some(entry.ok()?.path()));
    let path = names.find(|path| path.to_string_lossy().contains("initramfs"));
    File::open(path.context("no initramfs in guest/")?).context("the guest's initramfs")
}

/// Memory of the process that is not the guest's.
pub(crate) fn memory(plan: &Plan, part: &mut Part) -> Result<()> {
    for _ in 0..plan.times(5) {
        let monitor = Monitor::start(plan, Setup::bare(plan, "+idle")?)?;
        Shared::of(&monitor)?;
        let kinds = proc::mappings(monitor.pid())?;
        let (mut private, mut pss) = (0.0, 0.0);
        for (kind, usage) in &kinds {
            if kind != "guest" {
                (private, pss) = (private + usage.private, pss + usage.pss);
                part.add(&format!("memory.bare: private, {kind}"), "MiB", usage.private);
            }
        }
        part.add("memory.bare: private without guest", "MiB", private);
        part.add("memory.bare: PSS without guest", "MiB", pss);
        monitor.end(false)?;
        part.keep()?;
    }
    Ok(())
}

/// Reads of 4 KiB from a file in the page cache, by the guest through virtio-blk and by this program.
pub(crate) fn blk(plan: &Plan, part: &mut Part) -> Result<()> {
    let mut disk = tempfile::NamedTempFile::new()?;
    disk.write_all(&vec![0x5a; DISK])?;
    let file = disk.as_file();
    let qemu = qemu::found();
    if !qemu {
        part.notes
            .push("blk: there is no qemu-system-x86_64 to compare with".to_owned());
    }
    let ticks_per_second = tick_rate();
    let count = if plan.quick { 20_000 } else { 200_000 };
    for _ in 0..plan.times(9) {
        let own = own_loop(file, count)?;
        part.add("blk: host's own preadv loop", "requests/s", own);
        for depth in [1, 32] {
            let orders = format!("+wait +blk-read qd={depth} size={BLOCK} count={count} check=0 +idle");
            let mut setup = Setup::bare(plan, &orders)?;
            setup.disks.push(Some(file.try_clone()?));
            let monitor = Monitor::start(plan, setup)?;
            let shared = Shared::of(&monitor)?;
            let before = proc::thread_ns(monitor.pid(), "disk0 q0")?;
            shared.go()?;
            let outcome = shared.done()?.results[1];
            let spent = proc::thread_ns(monitor.pid(), "disk0 q0")?.saturating_sub(before);
            monitor.end(false)?;
            let rate = rate(&outcome, ticks_per_second);
            part.add(&format!("blk QD{depth}: guest"), "requests/s", rate);
            part.add(
                &format!("blk QD{depth}: guest against host's loop"),
                "%",
                100.0 * rate / own,
            );
            part.add(
                &format!("blk QD{depth}: the worker's CPU per request"),
                "us",
                micros(spent) / count as f64,
            );
            if qemu {
                let orders = format!("+blk-read qd={depth} size={BLOCK} count={count} check=0");
                let outcome = qemu::disk(plan, disk.path(), &orders)?;
                let other = self::rate(&outcome, ticks_per_second);
                part.add(&format!("blk QD{depth}: the same guest in QEMU"), "requests/s", other);
                part.add(&format!("blk QD{depth}: husk-vmm over QEMU"), "times", rate / other);
            }
        }
        part.keep()?;
    }
    Ok(())
}

/// Requests a second of a loop that reads one block after the other with preadv.
fn own_loop(file: &File, count: usize) -> Result<f64> {
    let mut buffer = vec![0; BLOCK];
    let start = Instant::now();
    for request in 0..count {
        let offset = request * BLOCK % DISK;
        let mut parts = [std::io::IoSliceMut::new(&mut buffer)];
        nix::sys::uio::preadv(file, &mut parts, i64::try_from(offset)?)?;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

pub(crate) fn vsock(plan: &Plan, part: &mut Part) -> Result<()> {
    let ticks_per_second = tick_rate();
    let (echoes, packets) = if plan.quick { (100, 1_000) } else { (5_000, 50_000) };
    for _ in 0..plan.times(9) {
        let orders = format!("+wait +vsock-echo size=64 count={echoes} +vsock-stream size=4096 count={packets} +idle");
        let monitor = Monitor::start(plan, Setup::bare(plan, &orders)?)?;
        let shared = Shared::of(&monitor)?;
        shared.go()?;
        let mut buffer = vec![0; 256 << 10];
        let mut stream = monitor.accept()?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        // The guest ends with a reset, which may come as an error.
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            stream.write_all(&buffer[..length])?;
        }
        let mut stream = monitor.accept()?;
        stream.set_read_timeout(Some(LIMIT))?;
        while let Ok(1..) = stream.read(&mut buffer) {}
        // The guest waits for the host's end of it.
        drop(stream);
        let results = shared.done()?.results;
        monitor.end(false)?;
        part.add(
            "vsock: round trips of 64 bytes",
            "per s",
            rate(&results[1], ticks_per_second),
        );
        let seconds = results[2].ticks as f64 / ticks_per_second;
        part.add(
            "vsock: guest to host in packets of 4 KiB",
            "MiB/s",
            results[2].bytes as f64 / seconds / 1_048_576.0,
        );
        part.keep()?;
    }
    Ok(())
}

fn rate(outcome: &Outcome, ticks_per_second: f64) -> f64 {
    outcome.operations as f64 / (outcome.ticks as f64 / ticks_per_second)
}

/// Ticks of the time stamp counter a second: the guest tells its times in them.
fn tick_rate() -> f64 {
    let (start, first) = (Instant::now(), ticks());
    std::thread::sleep(Duration::from_millis(200));
    (ticks() - first) as f64 / start.elapsed().as_secs_f64()
}

fn ticks() -> u64 {
    // SAFETY: every x86_64 processor has the instruction, and Linux leaves it to programs.
    unsafe { core::arch::x86_64::_rdtsc() }
}

fn millis(ns: u64) -> f64 {
    ns as f64 / 1e6
}

fn micros(ns: u64) -> f64 {
    ns as f64 / 1e3
}
