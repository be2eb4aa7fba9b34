//! The end of a container: what its caller waits for, and what goes on after that until nothing is left.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::bounded::{self, LIMIT, Program};
use crate::monitor::now_ns;
use crate::runtimes::{self, command, ratios};
use crate::series::Part;
use crate::start::{MEMORY, STATE, Timings, husk};
use crate::{Plan, bundle, proc, rounds};

/// Of the sandbox or container that ends.
const NAME: &str = "bench-end";
/// The processes of a sandbox, by the names that they give themselves.
const PROCESSES: [&str; 3] = ["husk-vmm", "husk-keeper", "husk-monitor"];
/// Where cgroup v2 is on hosts that have nothing else.
const CGROUPS: &str = "/sys/fs/cgroup";

pub(crate) fn run(plan: &Plan, part: &mut Part) -> Result<()> {
    rounds::run(plan, part, 5, |part| {
        of_run(plan, part)?;
        of_delete(plan, part)
    })
}

/// The end of `husk run`, whose process ends by itself.
fn of_run(plan: &Plan, part: &mut Part) -> Result<()> {
    let before = Processes::now()?;
    let rootfs = plan.rootfs.to_string_lossy();
    let words = [
        "run",
        "-i",
        "--timings=json",
        "--memory",
        MEMORY,
        "--name",
        NAME,
        "--rootfs",
        &*rootfs,
        "--",
        "cat",
    ];
    let (mut own, theirs) = bounded::stream()?;
    let mut said = tempfile::NamedTempFile::new()?;
    let mut command = husk(plan, &words);
    command.stdin(theirs.try_clone()?).stdout(theirs).stderr(said.reopen()?);
    let program = Program::start(&mut command)?;
    drop(command);
    own.write_all(b"up\n")?;
    own.read_exact(&mut [0; 3])
        .context("the container's cat does not answer")?;
    let watched = before.new_ones()?;
    let closed = now_ns();
    own.shutdown(std::net::Shutdown::Write)?;
    program.succeed()?;
    let (returned, since) = (now_ns(), Instant::now());
    let left = Left::after(since, watched, &[Path::new(STATE).join(NAME)])?;
    let mut text = String::new();
    said.read_to_string(&mut text)?;
    let timings = Timings::of(&text)?;
    let reported = timings.at("exit reported").context("the exit has no time")?;
    let millis = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e6;
    part.add(
        "end: husk run, stdin's end to exit reported",
        "ms",
        millis(closed, reported),
    );
    part.add(
        "end: husk run, exit reported to return",
        "ms",
        millis(reported, returned),
    );
    left.add("husk run", part);
    Ok(())
}

/// The end of a container that is killed and deleted while it runs, with each runtime.
fn of_delete(plan: &Plan, part: &mut Part) -> Result<()> {
    let directory = tempfile::tempdir()?;
    bundle::write(
        directory.path(),
        &plan.rootfs,
        &["/bin/sleep", "100000"],
        Some(&format!("/{NAME}")),
    )?;
    let mut times = BTreeMap::new();
    for (name, program) in runtimes::present(plan) {
        let killed = killed(&program, directory.path());
        let (took, left) = match killed {
            Ok(killed) => killed,
            Err(error) => {
                runtimes::clean_up(&program, directory.path(), NAME);
                return Err(error.context(format!("a container of {name}")));
            }
        };
        part.add(&format!("end: {name} delete --force, call to return"), "ms", took);
        left.add(&format!("{name} delete --force"), part);
        times.insert(name, took);
    }
    ratios(part, "end: delete --force", &times);
    Ok(())
}

/// The time of `delete --force` of a running container, in ms, and what was left then.
fn killed(program: &Path, bundle: &Path) -> Result<(f64, Left)> {
    let before = Processes::now()?;
    for words in [["create", NAME], ["start", NAME]] {
        let mut command = command(program, bundle, &words);
        Program::start(command.stdout(Stdio::null()))?.succeed()?;
    }
    let watched = before.new_ones()?;
    let called = Instant::now();
    Program::start(&mut command(program, bundle, &["delete", "--force", NAME]))?.succeed()?;
    let (took, since) = (called.elapsed(), Instant::now());
    let paths = [Path::new(STATE).join(NAME), Path::new(CGROUPS).join(NAME)];
    Ok((took.as_secs_f64() * 1e3, Left::after(since, watched, &paths)?))
}

/// Husk's processes at a time.
struct Processes(BTreeSet<u32>);

impl Processes {
    fn now() -> Result<Self> {
        let mut pids = BTreeSet::new();
        for name in PROCESSES {
            pids.extend(proc::named(name)?);
        }
        Ok(Self(pids))
    }

    /// Those that were not there then.
    fn new_ones(&self) -> Result<Vec<(&'static str, OwnedFd)>> {
        let mut found = Vec::new();
        for name in PROCESSES {
            for pid in proc::named(name)?.into_iter().filter(|pid| !self.0.contains(pid)) {
                found.push((name, bounded::handle(pid)?));
            }
        }
        Ok(found)
    }
}

/// How long after a command's return something was still there.
struct Left(Vec<(String, Duration)>);

impl Left {
    fn after(since: Instant, processes: Vec<(&'static str, OwnedFd)>, paths: &[PathBuf]) -> Result<Self> {
        let mut left = Vec::new();
        // What is gone by now had not to be waited for.
        let mut paths: Vec<_> = paths.to_vec();
        paths.retain(|path| path.exists());
        let mut alive = Vec::new();
        for (name, handle) in processes {
            if !bounded::is_ready(&handle, since)? {
                alive.push((name, handle));
            }
        }
        let (names, handles): (Vec<_>, Vec<_>) = alive.into_iter().unzip();
        let offset = since.elapsed();
        for (name, took) in names.into_iter().zip(bounded::ends(&handles)?) {
            left.push((format!("{name} ended"), offset + took));
        }
        for path in paths {
            while path.exists() {
                ensure!(since.elapsed() < LIMIT, "{} does not go", path.display());
                // Directories of a run and of cgroups tell nobody that they go.
                std::thread::sleep(Duration::from_millis(1));
            }
            let what = if path.starts_with(CGROUPS) {
                "cgroup"
            } else {
                "run directory"
            };
            left.push((format!("{what} gone, at the latest"), since.elapsed()));
        }
        Ok(Self(left))
    }

    /// Adds all that was left; nothing, where nothing was.
    fn add(self, of: &str, part: &mut Part) {
        for (what, took) in self.0 {
            part.add(&format!("end: {of}, return to {what}"), "ms", took.as_secs_f64() * 1e3);
        }
    }
}
