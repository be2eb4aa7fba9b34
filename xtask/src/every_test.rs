//! Every test: the units on this machine, the end-to-end tests where /dev/kvm is real, in one boot.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::host::Kernel;
use crate::workspace;
use crate::{build, peers, place, process, setup, step, trees};

/// For all end-to-end tests together.
const LIMIT: Duration = Duration::from_secs(75 * 60);

/// Which tests are run.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Only {
    #[default]
    All,
    Unit,
    EndToEnd,
}

/// What the caller asked for.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) only: Only,
    /// The peer that is the containerd of the end-to-end tests, besides Debian's.
    pub(crate) containerd: String,
    /// Whether runc's shim runs the cases of containerd and docker too, before husk's.
    pub(crate) runc: bool,
    /// Tests whose names hold one of these.
    pub(crate) filter: Vec<OsString>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            only: Only::default(),
            containerd: peers::NEWEST.to_owned(),
            runc: false,
            filter: Vec::new(),
        }
    }
}

/// Runs the tests; gives the exit code.
pub(crate) fn run(options: &Options) -> Result<i32> {
    let (only, filter) = (options.only, &options.filter);
    workspace::ensure_space()?;
    setup::ensure(setup::BUILD)?;
    if only != Only::EndToEnd {
        setup::ensure(setup::UNIT)?;
        setup::ensure_rust_target(workspace::BARE_TARGET)?;
        unit(filter)?;
    }
    if only != Only::Unit { end_to_end(options) } else { Ok(0) }
}

/// Many of them run real machines and processes side by side, as fast as the machine lets them. If one fails, all are run
/// once more; both times are shown, and the second one counts.
fn unit(filter: &[OsString]) -> Result<()> {
    let tests = |options: &[&str]| {
        let mut tests = workspace::cargo();
        tests
            .args(["test", "--workspace", "--exclude=husk-tests"])
            .args(options);
        tests
    };
    step("building the unit tests");
    process::run(&mut tests(&["--no-run", "--quiet"]))?;
    step("unit tests");
    let run = || process::run(tests(&["--no-fail-fast", "--"]).args(filter));
    run().or_else(|_| {
        step("unit tests, once more");
        run()
    })
}

fn end_to_end(options: &Options) -> Result<i32> {
    let programs = build::run()?;
    let containerd = peers::build(&options.containerd)?;
    let cri = peers::build(peers::CRI)?;
    let docker = peers::build(peers::DOCKER)?;
    let runc = match options.runc {
        true => peers::build(peers::RUNC)?.join("runc").into_os_string(),
        false => OsString::new(),
    };
    let tests = build_tests()?;
    let kernel = Kernel::ensure()?;
    let environment = vec![
        ("HUSK_TEST_KERNEL", programs.join("guest/vmlinux").into_os_string()),
        ("HUSK_TEST_BIN", programs.into_os_string()),
        ("HUSK_TEST_BUSYBOX", trees::busybox()?.into_os_string()),
        ("HUSK_TEST_DEBIAN", trees::debian()?.into_os_string()),
        ("HUSK_TEST_CONTAINERD", containerd.into_os_string()),
        ("HUSK_TEST_RUNC", runc),
        ("HUSK_TEST_CRI", cri.join("cri").into_os_string()),
        ("HUSK_TEST_DOCKER", docker.into_os_string()),
        ("HUSK_TEST_DEBIAN_KERNEL", kernel.compressed_image().into_os_string()),
    ];
    step("end-to-end tests");
    let mut command = vec![
        std::env::current_exe().context("finding this program")?.into(),
        "each-test".into(),
    ];
    command.extend(tests.map(PathBuf::into_os_string));
    command.push("--".into());
    command.extend(options.filter.iter().cloned());
    place::run(command, environment, LIMIT)
}

/// Builds the programs with the tests that need a real KVM, and gives their paths: the machine's, and husk's.
fn build_tests() -> Result<[PathBuf; 2]> {
    step("building the end-to-end tests");
    let told = process::output(workspace::cargo().args([
        "test",
        "--quiet",
        "--package=husk-tests",
        "--package=husk-vmm",
        "--test=linux",
        "--test=e2e",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]))?;
    let messages = told.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut programs: Vec<_> = messages
        .filter_map(|message| {
            let name = message["target"]["name"].as_str()?.to_owned();
            Some((name, PathBuf::from(message["executable"].as_str()?)))
        })
        .collect();
    let mut take = |name: &str| {
        let found = programs.iter().position(|(target, _)| target == name);
        let index = found.with_context(|| format!("cargo built no program of the tests {name:?}"))?;
        anyhow::Ok(programs.swap_remove(index).1)
    };
    Ok([take("linux")?, take("e2e")?])
}
