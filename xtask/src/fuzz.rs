//! Fuzzing: builds the targets of `fuzz/` and runs each for a while, from its corpus on.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::{cache, process, setup, step, workspace};

const VERSION: &str = "0.13.1";
/// The guests' memory is mapped and does not count; nothing else may need as much.
const MEMORY_MIB: u32 = 1024;
/// The most that may be allocated at once: some times the longest message.
const ALLOCATION_MIB: u32 = 128;
/// The longest that one input may take, in seconds: on a busy machine some times what it takes.
const SLOW: u32 = 60;
/// The longest input, in bytes.
const LONGEST: u32 = 4096;

/// What is fuzzed.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// Targets; all if empty.
    pub(crate) targets: Vec<String>,
    /// How long each runs.
    pub(crate) seconds: u32,
}

/// Runs the targets one after the other; the first crash ends it, and is told with what reproduces it.
pub(crate) fn run(options: &Options) -> Result<i32> {
    setup::ensure(setup::BUILD)?;
    let folder = workspace::checkout()?.join("fuzz");
    let all = targets(&folder)?;
    for target in &options.targets {
        ensure!(
            all.contains(target),
            "there is no target {target:?}; there are {}",
            all.join(", ")
        );
    }
    let chosen = if options.targets.is_empty() {
        &all
    } else {
        &options.targets
    };
    let tool = tool()?;
    step("building the fuzz targets");
    let one = match chosen.as_slice() {
        [target] => Some(target),
        _ => None,
    };
    process::run(cargo_fuzz(&tool, &folder, "build").args(one))?;
    for target in chosen {
        fuzz(&tool, &folder, target, options.seconds)?;
    }
    Ok(0)
}

/// Runs one target. What it finds to be new goes into a folder of the build output, not into the checkout.
fn fuzz(tool: &Path, folder: &Path, target: &str, seconds: u32) -> Result<()> {
    step(&format!("fuzzing {target} for {seconds} seconds"));
    let artifacts = folder.join("artifacts").join(target);
    let found = folder.join("target/corpus").join(target);
    for directory in [&artifacts, &found] {
        fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    }
    let before = inputs(&artifacts)?;
    let mut command = cargo_fuzz(tool, folder, "run");
    command
        .arg(target)
        .args([&found, &folder.join("corpus").join(target)])
        .arg("--")
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={LONGEST}"))
        .arg(format!("-timeout={SLOW}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg(format!("-malloc_limit_mb={ALLOCATION_MIB}"))
        .arg("-print_final_stats=1")
        .arg("-verbosity=0");
    let status = command.status().context("starting cargo fuzz")?;
    if status.success() {
        return Ok(());
    }
    let mut crashes = inputs(&artifacts)?;
    crashes.retain(|path| !before.contains(path));
    match crashes.first() {
        Some(input) => bail!(
            "{target} fails with the input {0}\nto reproduce it: cargo xtask fuzz {target} --input {0}",
            input.display()
        ),
        None => bail!("{target} failed: {status}"),
    }
}

/// Runs one target with one input and says whether it fails.
pub(crate) fn reproduce(target: &str, input: &Path) -> Result<i32> {
    let folder = workspace::checkout()?.join("fuzz");
    let input = input
        .canonicalize()
        .with_context(|| format!("the input {}", input.display()))?;
    let status = cargo_fuzz(&tool()?, &folder, "run")
        .arg(target)
        .arg(input)
        .status()
        .context("starting cargo fuzz")?;
    Ok(i32::from(!status.success()))
}

/// The names of the targets.
fn targets(folder: &Path) -> Result<Vec<String>> {
    let mut names: Vec<_> = inputs(&folder.join("fuzz_targets"))?
        .iter()
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

fn inputs(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    entries
        .map(|entry| {
            Ok(entry
                .with_context(|| format!("reading {}", directory.display()))?
                .path())
        })
        .collect()
}

/// A command of cargo-fuzz.
///
/// Without a sanitizer: the memory that a guest could make husk run over is mapped, where AddressSanitizer sees nothing,
/// and instrumentation for it would make the build longer. The compiler is the pinned one, which takes the instrumentation's options only
/// when it is told to.
fn cargo_fuzz(tool: &Path, folder: &Path, verb: &str) -> Command {
    let mut command = Command::new(tool);
    let target_dir: OsString = folder.join("target").into();
    command
        .args(["fuzz", verb, "--fuzz-dir"])
        .arg(folder)
        .args(["--sanitizer", "none", "--target-dir"])
        .arg(target_dir)
        .env("RUSTC_BOOTSTRAP", "1")
        .current_dir(folder);
    command
}

/// Installs cargo-fuzz, once.
fn tool() -> Result<PathBuf> {
    let _lock = cache::lock("cargo-fuzz")?;
    let root = cache::directory()?.join(format!("cargo-fuzz-{VERSION}"));
    let program = root.join("bin/cargo-fuzz");
    if !program.is_file() {
        step(&format!("installing cargo-fuzz {VERSION} (about a minute, once)"));
        let mut install = workspace::cargo();
        install
            .args([
                "install",
                "--quiet",
                "--locked",
                &format!("cargo-fuzz@{VERSION}"),
                "--root",
            ])
            .arg(&root);
        process::run(&mut install)?;
    }
    Ok(program)
}
