//! Root file systems to run containers in, made once and kept in the cache.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{cache, process, setup, step};

/// Changes when what is made here changes: an older tree in the cache is then not used.
const VERSION: u32 = 1;

/// Busybox with a link for each of its programs.
pub(crate) fn busybox() -> Result<PathBuf> {
    setup::ensure(setup::DEMO)?;
    let program = setup::find_program("busybox").context("busybox is still missing")?;
    ensure("busybox", |root| {
        for directory in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
            fs::create_dir(root.join(directory)).with_context(|| format!("creating /{directory}"))?;
        }
        fs::copy(&program, root.join("bin/busybox")).with_context(|| format!("copying {}", program.display()))?;
        for applet in process::output(Command::new(&program).arg("--list"))?
            .lines()
            .filter(|name| *name != "busybox")
        {
            symlink("busybox", root.join("bin").join(applet)).with_context(|| format!("linking /bin/{applet}"))?;
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").context("writing /etc/passwd")?;
        fs::write(root.join("etc/group"), "root:x:0:\n").context("writing /etc/group")
    })
}

/// Debian with python3: Debian 12's packages, whatever this machine has.
pub(crate) fn debian() -> Result<PathBuf> {
    setup::ensure(setup::TEST)?;
    ensure("debian", |root| {
        step("making a Debian root file system with python3 (a minute or two, once)");
        let mut make = Command::new("mmdebstrap");
        make.args([
            "--quiet",
            "--mode=root",
            "--variant=minbase",
            "--include=python3",
            "bookworm",
        ])
        .arg(root);
        process::run(make.stdout(std::io::stderr()))
    })
}

fn ensure(name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let directory = cache::directory()?.join("trees").join(format!("{name}-{VERSION}"));
    let _lock = cache::lock(&format!("tree-{name}"))?;
    if !directory.exists() {
        cache::build_directory(&directory, fill)?;
        // The root directory of a container is everybody's to enter.
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).context("setting the root's mode")?;
    }
    Ok(directory)
}
