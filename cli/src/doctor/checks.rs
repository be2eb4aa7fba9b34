//! The checks.

use std::fs;
use std::path::Path;

use husk_sandbox::artefacts;
use husk_sandbox::image::{Cache, DEFAULT_LIMIT};
use husk_sandbox::rundir::RunRoot;

use super::{Finding, confinement, kvm};
use crate::args::{DoctorArgs, Global};

/// close_range(2) and `STATX_ATTR_MOUNT_ROOT` are the newest things that husk needs.
const OLDEST_KERNEL: (u32, u32) = (5, 9);

pub(super) fn all(global: &Global, args: &DoctorArgs) -> Vec<Finding> {
    let cache = args.image_cache.clone().unwrap_or_else(artefacts::default_image_cache);
    let mut findings = vec![
        kernel(),
        processor(),
        device(),
        vmm(),
        guest(),
        run_root(&global.root()),
        image_cache(&cache),
    ];
    findings.extend(confinement::confinement());
    findings
}

fn kernel() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    match version(release) {
        Some(version) if version < OLDEST_KERNEL => Finding::bad(
            "kernel",
            format!("Linux {release}"),
            format!("husk needs Linux {}.{} or newer", OLDEST_KERNEL.0, OLDEST_KERNEL.1),
        ),
        Some(_) => Finding::good("kernel", format!("Linux {release}")),
        None => Finding::warning("kernel", format!("version {release:?} is unknown"), "is /proc mounted?"),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn processor() -> Finding {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = text.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let has = |name| flags.split_whitespace().any(|flag| flag == name);
    if has("vmx") {
        Finding::good("processor", "Intel VT-x")
    } else if has("svm") {
        Finding::good("processor", "AMD-V")
    } else {
        Finding::warning(
            "processor",
            "no hardware virtualization (neither vmx nor svm in /proc/cpuinfo)",
            "switch it on in the firmware's setup, or nested virtualization in a virtual machine; without it a guest \
             runs very slowly or not at all",
        )
    }
}

fn device() -> Finding {
    match kvm::check() {
        Ok(_) => Finding::good("/dev/kvm", "usable"),
        Err(error) => Finding::bad("/dev/kvm", error.to_string(), error.remedy()),
    }
}

fn vmm() -> Finding {
    match artefacts::vmm() {
        Ok(program) => Finding::good("husk-vmm", program.display().to_string()),
        Err(error) => Finding::bad(
            "husk-vmm",
            error.to_string(),
            "install husk completely, or set HUSK_VMM",
        ),
    }
}

fn guest() -> Finding {
    match artefacts::guest() {
        Ok(guest) => Finding::good("guest", guest.kernel.display().to_string()),
        Err(error) => Finding::bad(
            "guest",
            error.to_string(),
            "build it with cargo xtask demo, or set HUSK_GUEST_DIR",
        ),
    }
}

fn run_root(path: &Path) -> Finding {
    match RunRoot::open(path) {
        Ok(root) => Finding::good("run directory", root.path().display().to_string()),
        Err(error) => Finding::bad(
            "run directory",
            error.to_string(),
            "choose another one with --root or HUSK_ROOT",
        ),
    }
}

fn image_cache(path: &Path) -> Finding {
    let usable = Cache::open(path, DEFAULT_LIMIT)
        .map_err(|error| error.to_string())
        .and_then(|_| {
            let free = nix::unistd::access(path, nix::unistd::AccessFlags::W_OK);
            free.map_err(|errno| format!("{}: {}", path.display(), errno.desc()))
        });
    match usable {
        Ok(()) => Finding::good("image cache", path.display().to_string()),
        Err(detail) => Finding::bad("image cache", detail, "choose another one with HUSK_IMAGE_CACHE"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert!(version("5.10.0").unwrap() > OLDEST_KERNEL && version("5.8.18").unwrap() < OLDEST_KERNEL);
        assert_eq!(version("linux"), None);
    }
}
