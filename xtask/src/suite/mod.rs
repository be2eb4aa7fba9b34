//! Other projects' test suites for container runtimes, run with runc and with husk where /dev/kvm is real.

mod attempt;
mod results;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use self::attempt::Attempt;
use self::results::{Comparison, Outcome, Results};
use crate::{build, peers, place, setup, step, trees, workspace};

/// The suites, each a script in [`DIRECTORY`] that runs it, and a list of what husk does otherwise than runc, and why.
const SUITES: [&str; 2] = ["client", "cri"];
const DIRECTORY: &str = "tests/suites";

pub(crate) const HELP: &str = "\
Run another project's test suite for container runtimes, with runc and with husk, and print a table of how their results
differ. Fails when a test passes with runc alone, and tests/suites/SUITE.differences does not say why; or when it says so
of one that passes.

Without hardware virtualization it runs in the emulated host, where client takes about 12 minutes and cri half an hour.

Usage: cargo xtask suite SUITE [FILTER]...

Suites:
  client  Of containerd's client, of the version that tests/peers/suites pins
  cri     Of containerd's part for Kubernetes, of the same version

Four tests, which take an hour or download other versions, run only when they are named. What the tests say goes to the
directory suites in the build output.

Options:
  -h, --help  This text

Examples:
  cargo xtask suite client
  cargo xtask suite client TestContainerExec TestTask";

/// Tests that run when they are named, and not with all others.
const LEFT_OUT: [&str; 4] = [
    // Downloads older containerds.
    "TestUpgrade",
    // A hundred pods of a runtime of the suite's own.
    "TestReload100Pods",
    // Eighty containers of runc's shim that run out of memory, whatever is compared with it.
    "TestOOMEventMonitor",
    // A hundred times 7 MB through a terminal, in silence: an hour where the processor is emulated.
    "TestContainerExecLargeOutputWithTTY",
];

const RUNC: &str = "io.containerd.runc.v2";
const HUSK: &str = "io.containerd.husk.v2";

/// For a suite with both runtimes.
const LIMIT: Duration = Duration::from_secs(90 * 60);

/// What the caller asked for.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) suite: String,
    /// Tests whose names hold one of these; all if there is none.
    pub(crate) filter: Vec<String>,
}

/// Builds what is needed and runs the suite; gives the exit code.
pub(crate) fn run(options: &Options) -> Result<i32> {
    let suite = &options.suite;
    ensure!(
        SUITES.contains(&suite.as_str()),
        "there is no suite {suite:?}; there are {}",
        SUITES.join(", ")
    );
    workspace::ensure_space()?;
    setup::ensure(setup::SUITE)?;
    let programs = build::run()?;
    let containerd = peers::build(peers::NEWEST)?;
    let suites = peers::build(peers::SUITES)?;
    let command = [
        std::env::current_exe()
            .context("finding this program")?
            .into_os_string(),
        "each-suite".into(),
        suite.into(),
        programs.into(),
        containerd.into(),
        suites.into(),
        trees::busybox()?.into(),
    ];
    let command = command.into_iter().chain(options.filter.iter().map(OsString::from));
    step(&format!("the suite {suite}"));
    place::run(command.collect(), Vec::new(), LIMIT)
}

/// Where it runs: the suite with both runtimes, and how they differ. The words are the suite's name, the directories that
/// its script takes, and a filter.
pub(crate) fn compare(words: &[OsString]) -> Result<i32> {
    let [suite, husk, containerd, suites, root, filter @ ..] = words else {
        anyhow::bail!("each-suite: words are missing");
    };
    let directory = workspace::checkout()?.join(DIRECTORY);
    let suite = suite.to_str().context("a suite's name")?;
    let attempt = Attempt {
        script: directory.join(format!("{suite}.sh")),
        directories: [husk, containerd, suites, root].map(PathBuf::from),
        logs: workspace::target_directory()?.join("suites").join(suite),
    };
    if attempt.logs.exists() {
        // Those of an earlier time.
        fs::remove_dir_all(&attempt.logs).with_context(|| format!("removing {}", attempt.logs.display()))?;
    }
    fs::create_dir_all(&attempt.logs).with_context(|| format!("creating {}", attempt.logs.display()))?;
    let filter: Vec<_> = filter.iter().map(|word| word.to_string_lossy()).collect();
    let mut tests = attempt.list()?;
    tests.retain(|test| match filter.as_slice() {
        [] => !LEFT_OUT.contains(&test.as_str()),
        words => words.iter().any(|word| test.contains(&**word)),
    });
    ensure!(!tests.is_empty(), "the suite has no such test");
    println!(
        "{} tests; what they say goes to {}",
        tests.len(),
        attempt.logs.display()
    );
    let with_runc = attempt.all(RUNC, &tests)?;
    let mut with_husk = attempt.all(HUSK, &tests)?;
    let list = directory.join(format!("{suite}.differences"));
    let list = fs::read_to_string(&list).with_context(|| format!("reading {}", list.display()))?;
    let explanations = results::explanations(&list);
    let mut comparison = results::compare(&with_runc, &with_husk, &explanations);
    if !comparison.unexplained.is_empty() {
        // The emulated host is a machine under load with a clock of its own.
        let again: BTreeSet<_> = comparison.unexplained.iter().map(|name| results::whole(name)).collect();
        println!("once more: {}", again.iter().copied().collect::<Vec<_>>().join(" "));
        let again = again.into_iter().map(str::to_owned).collect();
        with_husk.extend(attempt.all(HUSK, &again)?);
        comparison = results::compare(&with_runc, &with_husk, &explanations);
    }
    Ok(tell(&comparison, &with_runc, &with_husk))
}

fn tell(comparison: &Comparison, with_runc: &Results, with_husk: &Results) -> i32 {
    println!("\n{}", comparison.table);
    for (runtime, results) in [("runc", with_runc), ("husk", with_husk)] {
        let count = |wanted| results.values().filter(|outcome| **outcome == wanted).count();
        println!(
            "{runtime}: {} passed, {} failed, {} skipped",
            count(Outcome::Passed),
            count(Outcome::Failed),
            count(Outcome::Skipped)
        );
    }
    for name in &comparison.outdated {
        println!("passes, though its failure is explained: {name}");
    }
    for name in &comparison.unexplained {
        println!("passes with runc alone: {name}");
    }
    i32::from(!comparison.unexplained.is_empty() || !comparison.outdated.is_empty())
}
