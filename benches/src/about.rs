//! The machine on which something is measured, for whoever compares.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::Result;

use crate::Plan;

/// Properties of this machine and of what is measured on it.
pub(crate) fn machine(plan: &Plan) -> Result<BTreeMap<String, String>> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let flags = field("flags").unwrap_or_default();
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    let kvm = match (std::env::var_os("HUSK_EMULATED_HOST"), has("vmx") || has("svm")) {
        (Some(_), _) => "hardware virtualization, itself emulated by QEMU",
        (None, true) => "hardware virtualization",
        (None, false) => "in software: a guest's kernel mode is interpreted",
    };
    let cpus = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let mut about = BTreeMap::from([
        ("processor".to_owned(), field("model name").unwrap_or_default()),
        ("processors".to_owned(), cpus.to_string()),
        ("KVM".to_owned(), kvm.to_owned()),
        (
            "kernel".to_owned(),
            fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        ),
        (
            "load before".to_owned(),
            fs::read_to_string("/proc/loadavg")?.trim().to_owned(),
        ),
        (
            "memory".to_owned(),
            format!("{:.0} MiB", crate::proc::meminfo("MemTotal")?),
        ),
    ]);
    let husk = plan.bin.join("husk").into_os_string();
    for (name, program) in [("husk", husk), ("runc", "runc".into()), ("crun", "crun".into())] {
        // A runtime that is not there is no reason not to measure the others.
        let version = match Command::new(program).arg("--version").output() {
            Ok(output) => String::from_utf8_lossy(&output.stdout)
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned(),
            Err(_) => "not found".to_owned(),
        };
        about.insert(name.to_owned(), version);
    }
    about.insert(
        "guest kernel".to_owned(),
        guest_kernel(plan).unwrap_or_else(|| "unknown".to_owned()),
    );
    Ok(about)
}

/// The version in the kernel's own banner.
fn guest_kernel(plan: &Plan) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    let image = fs::read(plan.bin.join("guest/vmlinux")).ok()?;
    let mut places = image
        .windows(BANNER.len())
        .enumerate()
        .filter(|(_, window)| *window == BANNER);
    places.find_map(|(at, _)| {
        let rest = image.get(at + BANNER.len()..)?;
        let word = rest
            .iter()
            .take_while(|byte| byte.is_ascii_graphic())
            .copied()
            .collect();
        String::from_utf8(word)
            .ok()
            .filter(|word| word.starts_with(|first: char| first.is_ascii_digit()))
    })
}
