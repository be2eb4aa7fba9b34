//! Every test: the units on this machine, the end-to-end tests where /dev/kvm is real, in one boot.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::host::Kernel;
use crate::workspace;
use crate::{build, place, process, setup, step, trees};

/// For all end-to-end tests together.
const LIMIT: Duration = Duration::from_secs(45 * 60);

/// Which tests are run.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Only {
    #[default]
    All,
    Unit,
    EndToEnd,
}

/// Runs the tests whose names hold the filter; gives the exit code.
pub(crate) fn run(only: Only, filter: &[OsString]) -> Result<i32> {
    setup::ensure(setup::BUILD)?;
    if only != Only::EndToEnd {
        setup::ensure(setup::UNIT)?;
        step("unit tests");
        let mut tests = workspace::cargo();
        tests
            .args(["test", "--workspace", "--exclude=husk-tests", "--"])
            .args(filter);
        process::run(&mut tests)?;
    }
    if only != Only::Unit { end_to_end(filter) } else { Ok(0) }
}

fn end_to_end(filter: &[OsString]) -> Result<i32> {
    let programs = build::run()?;
    let program = build_tests()?;
    let kernel = Kernel::ensure()?;
    let environment = vec![
        ("HUSK_TEST_BIN", programs.into_os_string()),
        ("HUSK_TEST_BUSYBOX", trees::busybox()?.into_os_string()),
        ("HUSK_TEST_DEBIAN", trees::debian()?.into_os_string()),
        ("HUSK_TEST_DEBIAN_KERNEL", kernel.compressed_image().into_os_string()),
    ];
    step("end-to-end tests");
    let mut command = vec![program.into_os_string(), "--test-threads=1".into()];
    command.extend(filter.iter().cloned());
    place::run(command, environment, LIMIT)
}

/// Builds the program with the end-to-end tests and gives its path.
fn build_tests() -> Result<PathBuf> {
    step("building the end-to-end tests");
    let told = process::output(workspace::cargo().args([
        "test",
        "--quiet",
        "--package=husk-tests",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]))?;
    let messages = told.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let programs: Vec<_> = messages
        .filter_map(|message| Some(PathBuf::from(message["executable"].as_str()?)))
        .collect();
    ensure!(
        programs.len() == 1,
        "cargo built {} programs of end-to-end tests instead of one",
        programs.len()
    );
    programs.into_iter().next().context("no program")
}
