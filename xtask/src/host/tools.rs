//! The programs that the emulated host is made of.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::setup;
use crate::workspace::TARGET;
use crate::{cache, process, step, workspace};

/// From this version on QEMU's translation threads survive a kernel that patches its own code.
const QEMU_LEAST: (u32, u32) = (8, 1);
const VIRTIOFSD_VERSION: &str = "1.14.0";

/// Where the programs are.
pub(crate) struct Tools {
    pub(crate) qemu: PathBuf,
    pub(crate) virtiofsd: PathBuf,
}

/// Finds the programs, or installs them.
pub(crate) fn ensure() -> Result<Tools> {
    setup::ensure(setup::EMULATED_HOST)?;
    Ok(Tools {
        qemu: qemu()?,
        virtiofsd: virtiofsd()?,
    })
}

/// The first process's program, built when it has changed.
pub(crate) fn build_init() -> Result<Vec<u8>> {
    let path = workspace::target_directory()?.join(TARGET).join("release/xtask-init");
    if !path.exists() {
        step("building the emulated host's first process");
    }
    setup::ensure_rust_target(TARGET)?;
    let arguments = [
        "build",
        "--quiet",
        "--package",
        "xtask-init",
        "--release",
        "--target",
        TARGET,
    ];
    process::run(workspace::cargo().args(arguments))?;
    fs::read(&path).with_context(|| format!("reading {}", path.display()))
}

fn qemu() -> Result<PathBuf> {
    let program = setup::find_program("qemu-system-x86_64");
    if let Some(program) = &program
        && qemu_version(program)? >= QEMU_LEAST
    {
        return Ok(program.clone());
    }
    let _lock = cache::lock("setup")?;
    setup::install_qemu(QEMU_LEAST)?;
    let program = setup::find_program("qemu-system-x86_64").context("qemu-system-x86_64 is still missing")?;
    let (major, minor) = qemu_version(&program)?;
    if (major, minor) < QEMU_LEAST {
        let (least_major, least_minor) = QEMU_LEAST;
        bail!(
            "{} is version {major}.{minor}, the emulated host needs {least_major}.{least_minor} or newer",
            program.display()
        );
    }
    Ok(program)
}

fn qemu_version(program: &Path) -> Result<(u32, u32)> {
    let told = process::output(Command::new(program).arg("--version"))?;
    parse_qemu_version(&told).with_context(|| format!("no version in what {} --version says", program.display()))
}

fn parse_qemu_version(told: &str) -> Option<(u32, u32)> {
    let mut numbers = told.split_once("version ")?.1.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn virtiofsd() -> Result<PathBuf> {
    // Not the one in /usr/lib/qemu: that is the older C program with other options.
    let packaged = PathBuf::from("/usr/libexec/virtiofsd");
    let root = cache::directory()?
        .join("tools")
        .join(format!("virtiofsd-{VIRTIOFSD_VERSION}"));
    let built = root.join("bin/virtiofsd");
    let found = || [&packaged, &built].into_iter().find(|path| path.exists()).cloned();
    if let Some(found) = found() {
        return Ok(found);
    }
    let _lock = cache::lock("setup")?;
    if let Some(found) = found() {
        return Ok(found);
    }
    if setup::apt_offers("virtiofsd")? {
        setup::install(&["virtiofsd"])?;
        return Ok(packaged);
    }
    setup::ensure_locked(setup::VIRTIOFSD)?;
    step(&format!(
        "building virtiofsd {VIRTIOFSD_VERSION} into {} (about 2 minutes, once)",
        root.display()
    ));
    let version = [
        "install",
        "virtiofsd",
        "--version",
        VIRTIOFSD_VERSION,
        "--locked",
        "--root",
    ];
    // Built apart from this workspace's output.
    process::run(
        workspace::cargo()
            .args(version)
            .arg(&root)
            .env_remove("CARGO_TARGET_DIR"),
    )?;
    Ok(built)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_versions_of_qemu_are_understood() {
        let told = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2~bpo12+1)\nCopyright (c) 2003-2025";
        assert_eq!(parse_qemu_version(told), Some((10, 0)));
        assert_eq!(parse_qemu_version("QEMU emulator version 7.2.19"), Some((7, 2)));
        assert_eq!(parse_qemu_version("something else"), None);
    }
}
