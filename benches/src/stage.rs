//! Everything that is measured, in memory: where it lies on disk must not be in the figures, and the emulated host's clock
//! jumps while a program waits for the file system that it shares with this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::{Plan, bounded};

/// The file that is read through a disk.
pub(crate) const DATA: &str = "data";
/// The measuring program in a root file system.
pub(crate) const SELF: &str = "husk-bench";
/// Of the file that is read through a disk, in MiB.
const DATA_MIB: usize = 32;

/// Copies the programs and the root file system that a plan names, and gives a plan that names the copies. They go with
/// the directory.
pub(crate) fn copied(plan: &Plan) -> Result<(TempDir, Plan)> {
    let directory = tempfile::tempdir()?;
    let (bin, rootfs) = (directory.path().join("bin"), directory.path().join("rootfs"));
    fs::create_dir(&bin)?;
    for name in ["husk", "husk-vmm", "guest"] {
        copy(&plan.bin.join(name), &bin)?;
    }
    for name in OTHERS {
        if let Some(path) = find(name) {
            copy(&path, &bin)?;
        }
    }
    copy(&plan.rootfs, &rootfs)?;
    let staged = Plan {
        bin,
        rootfs,
        ..plan.clone()
    };
    Ok((directory, staged))
}

/// A copy of the root file system with a file [`DATA`] of [`DATA_MIB`], and with this program as [`SELF`].
pub(crate) fn with_data(plan: &Plan) -> Result<(TempDir, PathBuf)> {
    let directory = tempfile::tempdir()?;
    let tree = directory.path().join("rootfs");
    copy(&plan.rootfs, &tree)?;
    fs::write(tree.join(DATA), vec![0x5a; DATA_MIB << 20])?;
    fs::copy(std::env::current_exe()?, tree.join(SELF)).context("copying the measuring program")?;
    Ok((directory, tree))
}

/// The runtimes that husk is compared with.
pub(crate) const OTHERS: [&str; 2] = ["runc", "crun"];

/// Looks in PATH, and where the programs for root are, which a user's PATH lacks.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    directories
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    bounded::output(Command::new("cp").arg("-a").arg(from).arg(to))
        .with_context(|| format!("copying {}", from.display()))?;
    Ok(())
}
