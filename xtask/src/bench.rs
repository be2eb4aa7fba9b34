//! Measurements: natively what can run on any KVM, where /dev/kvm is real what needs a Linux guest, and once more with
//! a clock that counts instructions.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::workspace::{self, BARE_TARGET, TARGET};
use crate::{build, host, place, process, setup, step, trees};

/// For each boot of the emulated host. A full run takes about half of it on a quiet machine.
const LIMIT: Duration = Duration::from_secs(45 * 60);

/// What the caller asked for.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// Where the report goes.
    pub(crate) out: Option<PathBuf>,
    /// Each measurement once, and nothing with `--icount`.
    pub(crate) quick: bool,
    /// Only what runs on this machine itself.
    pub(crate) native: bool,
    /// Measurements whose names hold one of these.
    pub(crate) names: Vec<OsString>,
}

/// Measures and reports; gives the exit code.
pub(crate) fn run(options: &Options) -> Result<i32> {
    if !options.native {
        setup::ensure(setup::BENCH)?;
    }
    let programs = build::run()?;
    setup::ensure_rust_target(BARE_TARGET)?;
    step("building the test guest and the measuring program");
    let mut guest = workspace::cargo();
    guest.args([
        "build",
        "--quiet",
        "--release",
        "--package=husk-test-guest",
        "--target",
        BARE_TARGET,
    ]);
    process::run(&mut guest)?;
    // Static, for it runs in containers too.
    process::run(workspace::cargo().args(["build", "--quiet", "--package=husk-bench", "--target", TARGET]))?;
    let target = workspace::target_directory()?;
    let out = options.out.clone().unwrap_or_else(|| target.join("bench"));
    let bench = target.join(TARGET).join("debug/husk-bench");
    let parts = target.join("bench-parts");
    std::fs::create_dir_all(&parts).with_context(|| format!("creating {}", parts.display()))?;
    let command = |mode: &str, file: &Path| -> Result<Vec<OsString>> {
        let mut words: Vec<OsString> = vec![
            bench.clone().into(),
            mode.into(),
            "--bin".into(),
            programs.clone().into(),
        ];
        words.extend([
            "--test-guest".into(),
            target.join(BARE_TARGET).join("release/husk-test-guest").into(),
        ]);
        words.extend([
            "--rootfs".into(),
            trees::busybox()?.into(),
            "--json".into(),
            file.into(),
        ]);
        words.extend(options.quick.then(|| "--quick".into()));
        words.extend(options.names.iter().cloned());
        Ok(words)
    };
    let (mut made, mut failed) = (Vec::new(), Vec::new());
    for mode in ["native", "hosted", "icount"] {
        let is_left_out = match mode {
            "native" => false,
            "hosted" => options.native,
            _ => options.native || options.quick || !counts_instructions(&options.names),
        };
        if is_left_out {
            continue;
        }
        let file = parts.join(format!("{mode}.json"));
        // What an earlier run has measured is not of this one.
        if file.exists() {
            std::fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
        }
        let words = command(mode, &file)?;
        step(&format!("measuring: {mode}"));
        let measured = match mode {
            "native" => process::run(Command::new(&words[0]).args(&words[1..])).map(|()| 0),
            "hosted" => place::run(words, Vec::new(), LIMIT),
            _ => host::run(&host::Options {
                icount: true,
                timeout: Some(LIMIT),
                command: words,
                ..host::Options::default()
            }),
        };
        // What was measured before a failure, or before the time was over, is worth as much as without it.
        match measured {
            Ok(0) => {}
            Ok(code) => failed.push(format!("{mode} ended with {code}")),
            Err(error) => failed.push(format!("{mode}: {error:#}")),
        }
        if file.exists() {
            made.push(file);
        }
    }
    process::run(Command::new(&bench).args(["report", "--out"]).arg(&out).args(&made))?;
    ensure!(failed.is_empty(), "not all could be measured: {}", failed.join("; "));
    Ok(0)
}

/// Whether names ask for what is measured with a clock that counts instructions: the start alone, for it is slow.
fn counts_instructions(names: &[OsString]) -> bool {
    let is_start = |name: &OsString| name.to_str().is_some_and(|name| "start".contains(name));
    names.is_empty() || names.iter().any(is_start)
}
