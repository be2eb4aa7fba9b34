//! Where this checkout and its build output are.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use nix::sys::statvfs::statvfs;
use serde_json::Value;

use crate::{cache, process};

/// Static programs, which run wherever they are copied.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-musl";

/// The bare machine, for the test guest.
pub(crate) const BARE_TARGET: &str = "x86_64-unknown-none";

/// The checkout's root.
pub(crate) fn checkout() -> Result<PathBuf> {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let root = Path::new(&package)
        .parent()
        .context("xtask lies below the checkout's root")?;
    root.canonicalize()
        .with_context(|| format!("resolving {}", root.display()))
}

/// cargo's output directory, wherever the environment or a configuration file puts it. Created when missing.
pub(crate) fn target_directory() -> Result<PathBuf> {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    if let Some(directory) = DIRECTORY.get() {
        return Ok(directory.clone());
    }
    let told = process::output(cargo().args(["metadata", "--no-deps", "--offline", "--format-version=1"]))?;
    let told: Value = serde_json::from_str(&told).context("what cargo metadata says is not JSON")?;
    let path = told["target_directory"]
        .as_str()
        .context("cargo metadata tells no target_directory")?;
    std::fs::create_dir_all(path).with_context(|| format!("creating {path}"))?;
    let path = Path::new(path)
        .canonicalize()
        .with_context(|| format!("resolving {path}"))?;
    Ok(DIRECTORY.get_or_init(|| path).clone())
}

/// Fails early where everything that a task builds would hardly fit, rather than half an hour later in the middle of it.
pub(crate) fn ensure_space() -> Result<()> {
    // A build from nothing with every test, and the caches of cargo's, Go's and husk's own, took 7.5.
    const NEEDED: u64 = 8 << 30;
    for directory in [target_directory()?, cache::directory()?] {
        let place = statvfs(&directory).with_context(|| format!("asking for the space at {}", directory.display()))?;
        let free = place.blocks_available() * place.fragment_size();
        ensure!(
            free >= NEEDED,
            "{} has {:.1} GiB left on its disk and this needs {}: free some, or set CARGO_TARGET_DIR and HUSK_CACHE to places \
             with more",
            directory.display(),
            free as f64 / f64::from(1 << 30),
            NEEDED >> 30,
        );
    }
    Ok(())
}

/// The cargo that started this program, in the checkout.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    if let Ok(checkout) = checkout() {
        cargo.current_dir(checkout);
    }
    cargo
}
