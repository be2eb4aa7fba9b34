//! The same job with husk and with the runtimes that share the host's kernel.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::Result;

use crate::series::Part;
use crate::start::at_home;
use crate::{Plan, bounded, bundle, rounds, stage};

/// Of the container.
const NAME: &str = "bench";

/// A runtime's name and program.
pub(crate) type Runtime = (&'static str, PathBuf);

/// Husk, and which of the others this machine has.
pub(crate) fn present(plan: &Plan) -> Vec<Runtime> {
    let others = stage::OTHERS.iter().map(|name| (*name, plan.bin.join(name)));
    let mut all = vec![("husk", plan.bin.join("husk"))];
    all.extend(others.filter(|(_, program)| program.exists()));
    all
}

/// A command of a runtime in a bundle's directory.
pub(crate) fn command(program: &Path, bundle: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null()).current_dir(bundle);
    at_home(&mut command);
    command
}

/// Adds how a value of husk's relates to that of each other runtime.
pub(crate) fn ratios(part: &mut Part, what: &str, values: &BTreeMap<&str, f64>) {
    for other in stage::OTHERS {
        if let (Some(husk), Some(value)) = (values.get("husk"), values.get(other)) {
            part.add(&format!("{what}: husk's over {other}'s"), "times", husk / value);
        }
    }
}

/// create, start and delete of /bin/true on the same tree, by each runtime that is there.
pub(crate) fn run(plan: &Plan, part: &mut Part) -> Result<()> {
    let directory = tempfile::tempdir()?;
    bundle::write(directory.path(), &plan.rootfs, &["/bin/true"], None)?;
    rounds::run(plan, part, 5, |part| {
        let (mut starts, mut lives) = (BTreeMap::new(), BTreeMap::new());
        for (name, program) in present(plan) {
            let (start, life) = match life(&program, directory.path()) {
                Ok(times) => times,
                Err(error) => {
                    clean_up(&program, directory.path(), NAME);
                    return Err(error.context(format!("a container of {name}")));
                }
            };
            starts.insert(name, start);
            lives.insert(name, life);
        }
        for (what, values) in [("create, start", &starts), ("create, start, wait, delete", &lives)] {
            for (name, took) in values {
                part.add(&format!("runtimes: {name}'s {what}"), "ms", *took);
            }
            ratios(part, &format!("runtimes: {what}"), values);
        }
        Ok(())
    })
}

/// Removes what a failure may have left.
pub(crate) fn clean_up(program: &Path, bundle: &Path, name: &str) {
    // There may be nothing.
    let _ = bounded::output(&mut command(program, bundle, &["delete", "--force", name]));
}

/// The time of a container's life in ms, up to the return of `start` and in all. Its process ends when the stream that
/// is its stdout does.
fn life(program: &Path, bundle: &Path) -> Result<(f64, f64)> {
    let (mut read, write) = bounded::stream()?;
    let started = Instant::now();
    let mut create = command(program, bundle, &["create", NAME]);
    let created = bounded::Program::start(create.stdout(write))?;
    // Ends this side's hold on the stream.
    drop(create);
    created.succeed()?;
    bounded::Program::start(&mut command(program, bundle, &["start", NAME]))?.succeed()?;
    let start = started.elapsed();
    read.read_to_end(&mut Vec::new())?;
    bounded::Program::start(&mut command(program, bundle, &["delete", "--force", NAME]))?.succeed()?;
    Ok((start.as_secs_f64() * 1e3, started.elapsed().as_secs_f64() * 1e3))
}
