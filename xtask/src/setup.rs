//! Installing what a task needs and the machine has not: by apt, all at once, and only then.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::unistd::geteuid;

use crate::{cache, process, step};

/// Something that a task needs: a file that shows whether it is there, and the package that brings it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Need {
    /// A program's name, or a file's absolute path.
    file: &'static str,
    package: &'static str,
}

impl Need {
    const fn new(file: &'static str, package: &'static str) -> Self {
        Self { file, package }
    }

    fn is_met(self) -> bool {
        if self.file.starts_with('/') {
            Path::new(self.file).exists()
        } else {
            find_program(self.file).is_some()
        }
    }
}

/// For the emulated host's kernel and modules.
pub(crate) const EMULATED_HOST: &[Need] = &[
    Need::new("depmod", "kmod"),
    Need::new("xz", "xz-utils"),
    Need::new("zstd", "zstd"),
];

/// For compiling virtiofsd.
pub(crate) const VIRTIOFSD: &[Need] = &[
    Need::new("cc", "gcc"),
    Need::new("/usr/include/cap-ng.h", "libcap-ng-dev"),
    Need::new("/usr/include/seccomp.h", "libseccomp-dev"),
];

/// For compiling husk and the guest's kernel.
pub(crate) const BUILD: &[Need] = &[
    Need::new("cc", "gcc"),
    Need::new("/usr/include/stdlib.h", "libc6-dev"),
    Need::new("make", "make"),
    Need::new("ld", "binutils"),
    Need::new("bc", "bc"),
    Need::new("flex", "flex"),
    Need::new("bison", "bison"),
    Need::new("patch", "patch"),
    Need::new("xz", "xz-utils"),
    Need::new("/usr/include/gelf.h", "libelf-dev"),
];

/// For running husk on a root file system of busybox.
pub(crate) const DEMO: &[Need] = &[Need::new("busybox", "busybox-static")];

/// For unit tests: what the project's own code is compared with.
pub(crate) const UNIT: &[Need] = &[Need::new("zstd", "zstd"), Need::new("fsck.erofs", "erofs-utils")];

/// For the end-to-end tests, besides.
pub(crate) const TEST: &[Need] = &[
    Need::new("mmdebstrap", "mmdebstrap"),
    Need::new("zstd", "zstd"),
    // Callers of OCI runtimes, and the runtime that they know.
    Need::new("podman", "podman"),
    Need::new("conmon", "conmon"),
    Need::new("containerd", "containerd"),
    Need::new("runc", "runc"),
    // What docker's `--init` puts into a container.
    Need::new("/usr/bin/tini-static", "tini"),
    // For containerd's snapshotters of file systems on devices.
    Need::new("dmsetup", "dmsetup"),
    Need::new("mkfs.ext4", "e2fsprogs"),
];

/// For compiling runc.
pub(crate) const RUNC: &[Need] = &[
    Need::new("cc", "gcc"),
    Need::new("/usr/include/stdlib.h", "libc6-dev"),
    Need::new("/usr/include/seccomp.h", "libseccomp-dev"),
    Need::new("pkg-config", "pkg-config"),
];

/// For other projects' suites.
pub(crate) const SUITE: &[Need] = &[
    Need::new("runc", "runc"),
    Need::new("ip", "iproute2"),
    Need::new("ps", "procps"),
    Need::new("lsof", "lsof"),
    Need::new("/usr/lib/cni/bridge", "containernetworking-plugins"),
];

/// For downloading Go.
pub(crate) const GO: &[Need] = &[
    Need::new("curl", "curl"),
    Need::new("/etc/ssl/certs/ca-certificates.crt", "ca-certificates"),
    Need::new("unzip", "unzip"),
];

/// For measurements, besides: the runtimes that husk is compared with.
pub(crate) const BENCH: &[Need] = &[
    Need::new("busybox", "busybox-static"),
    Need::new("runc", "runc"),
    Need::new("crun", "crun"),
];

/// Installs those of the needs that are not met.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    if needs.iter().all(|need| need.is_met()) {
        return Ok(());
    }
    let _lock = cache::lock("setup")?;
    ensure_locked(needs)
}

/// The same, for a caller that holds the lock on `setup`.
pub(crate) fn ensure_locked(needs: &[Need]) -> Result<()> {
    let missing: Vec<_> = needs
        .iter()
        .filter(|need| !need.is_met())
        .map(|need| need.package)
        .collect();
    if missing.is_empty() { Ok(()) } else { install(&missing) }
}

/// Adds a target to the Rust toolchain in use.
pub(crate) fn ensure_rust_target(target: &str) -> Result<()> {
    let root = process::output(Command::new("rustc").args(["--print", "sysroot"]))?;
    if Path::new(root.trim()).join("lib/rustlib").join(target).exists() {
        return Ok(());
    }
    step(&format!("rustup target add {target}"));
    process::run(Command::new("rustup").args(["target", "add", target]))
        .with_context(|| format!("the Rust toolchain lacks the target {target}; install it"))
}

/// Looks in PATH, and where the programs for root are, which the PATH of other users lacks.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<_> = std::env::split_paths(&path).collect();
    directories.extend(["/usr/sbin".into(), "/sbin".into()]);
    directories
        .into_iter()
        .map(|directory| directory.join(name))
        .find(|program| program.is_file())
}

/// Whether apt knows a version of the package that it could install.
pub(crate) fn apt_offers(package: &str) -> Result<bool> {
    Ok(candidate(package)?.is_some())
}

/// The names of the packages that apt knows and that match a pattern. Its lists are fetched first where there are none.
pub(crate) fn package_names(pattern: &str) -> Result<Vec<String>> {
    let search = || {
        let told = process::output(Command::new("apt-cache").args(["search", "--names-only", pattern]))?;
        let names = told.lines().filter_map(|line| line.split_whitespace().next());
        Ok(names.map(str::to_owned).collect())
    };
    let found: Result<Vec<_>> = search();
    if found.as_ref().is_ok_and(|names| !names.is_empty()) {
        return found;
    }
    apt_update(&[pattern])?;
    search()
}

/// Installs packages, with the lists of packages brought up to date first.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    apt_update(packages)?;
    apt_install(packages, &[])
}

/// Installs QEMU, from Debian's backports where the release itself has an older one than `least`.
pub(crate) fn install_qemu(least: (u32, u32)) -> Result<()> {
    const PACKAGE: &str = "qemu-system-x86";
    apt_update(&[PACKAGE])?;
    if candidate(PACKAGE)?
        .and_then(|version| upstream_version(&version))
        .is_some_and(|version| version >= least)
    {
        return apt_install(&[PACKAGE], &[]);
    }
    let suite = format!("{}-backports", debian_codename()?);
    let list = format!("/etc/apt/sources.list.d/husk-{suite}.sources");
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    step(&format!("this release's QEMU is too old: adding {suite} in {list}"));
    let source = format!(
        "Types: deb\nURIs: http://deb.debian.org/debian\nSuites: {suite}\nComponents: main\nSigned-By: {keyring}\n"
    );
    fs::write(&list, source).with_context(|| format!("writing {list}"))?;
    apt_update(&[PACKAGE])?;
    apt_install(&[PACKAGE], &["--target-release", &suite])
}

fn apt_update(packages: &[&str]) -> Result<()> {
    if find_program("apt-get").is_none() {
        bail!(
            "missing: {}; there is no apt here, so install the equivalent by hand",
            packages.join(" ")
        );
    }
    if !geteuid().is_root() {
        let packages = packages.join(" ");
        bail!("missing: {packages}; run `apt-get install {packages}` as root, or this command as root");
    }
    step("apt-get update");
    process::run(&mut apt_get(&["update"]))
}

fn apt_install(packages: &[&str], options: &[&str]) -> Result<()> {
    step(&format!("apt-get install {}", packages.join(" ")));
    process::run(
        apt_get(&["install", "--yes", "--no-install-recommends"])
            .args(options)
            .args(packages),
    )
}

/// Quiet on success; what it says goes to stderr, for stdout belongs to the command.
fn apt_get(arguments: &[&str]) -> Command {
    let mut apt = Command::new("apt-get");
    apt.arg("-qq")
        .args(["-o", "Dpkg::Use-Pty=0", "-o", "DPkg::Lock::Timeout=300"])
        .args(arguments);
    apt.env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(std::process::Stdio::null())
        .stdout(std::io::stderr());
    apt
}

/// The version that apt would install.
fn candidate(package: &str) -> Result<Option<String>> {
    if find_program("apt-cache").is_none() {
        return Ok(None);
    }
    let told = process::output(Command::new("apt-cache").env("LC_ALL", "C").args(["policy", package]))?;
    let candidate = told.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    Ok(candidate.filter(|version| *version != "(none)").map(str::to_owned))
}

/// Major and minor number in a Debian version like `1:7.2+dfsg-7+deb12u15`.
fn upstream_version(version: &str) -> Option<(u32, u32)> {
    let upstream = version.split_once(':').map_or(version, |(_, upstream)| upstream);
    let mut numbers = upstream.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn debian_codename() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
    let named = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(named
        .context("no VERSION_CODENAME in /etc/os-release")?
        .trim_matches('"')
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upstream_version_is_read_out_of_debians() {
        assert_eq!(upstream_version("1:7.2+dfsg-7+deb12u15"), Some((7, 2)));
        assert_eq!(upstream_version("1:10.0.2+ds-2~bpo12+1"), Some((10, 0)));
        assert_eq!(upstream_version("garbage"), None);
    }
}
