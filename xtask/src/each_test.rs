//! Runs programs of tests, each test in a process of its own: one that hangs or dies costs itself alone.
//!
//! This runs where the tests run, in the emulated host as on hardware; [`every_test`](crate::every_test) starts it there.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

/// For one test. What a test waits for has bounds of its own, at most 300 s, and says more when they pass.
const LIMIT: Duration = Duration::from_secs(400);
/// More failures than these are no bad luck: they are not tried again.
const FEW: usize = 3;

/// A test of a program, by the name that the program lists.
struct Test {
    program: PathBuf,
    name: String,
}

/// Runs the tests of all programs whose names hold a filter's word; gives the exit code.
///
/// The emulated host is a machine under load with a clock of its own, and husk's tests are about the whole of it. A test
/// that fails is therefore tried once more at the end, if few do; both tries are shown, and the second one counts.
pub(crate) fn run(programs: &[OsString], filter: &[OsString]) -> Result<i32> {
    nix::sys::prctl::set_child_subreaper(true).context("becoming the parent of orphans")?;
    let shared = Shared::new()?;
    let mut tests = Vec::new();
    for program in programs {
        tests.extend(list(Path::new(program), filter)?);
    }
    let total = tests.len();
    println!("\nrunning {total} tests");
    let mut failed: Vec<Test> = Vec::new();
    for test in tests {
        if !test.passes(&shared)? {
            failed.push(test);
        }
    }
    let mut unsteady = Vec::new();
    if failed.len() <= FEW {
        for test in std::mem::take(&mut failed) {
            println!("once more:");
            let list = if test.passes(&shared)? {
                &mut unsteady
            } else {
                &mut failed
            };
            list.push(test);
        }
    }
    for (what, tests) in [("unsteady", &unsteady), ("failed", &failed)] {
        tests.iter().for_each(|test| println!("{what}: {}", test.name));
    }
    println!("\n{} passed, {} failed", total - failed.len(), failed.len());
    Ok(i32::from(!failed.is_empty()))
}

fn list(program: &Path, filter: &[OsString]) -> Result<Vec<Test>> {
    let mut command = Command::new(program);
    command
        .args(["--list", "--format=terse", "--include-ignored"])
        .args(filter);
    let text = crate::process::output(&mut command)?;
    let names = text.lines().filter_map(|line| line.strip_suffix(": test"));
    let test = |name: &str| Test {
        program: program.to_owned(),
        name: name.to_owned(),
    };
    Ok(names.map(test).collect())
}

impl Test {
    fn passes(&self, shared: &Shared) -> Result<bool> {
        print!("test {} ... ", self.name);
        std::io::stdout().flush()?;
        let begun = Instant::now();
        let output = shared.path.join("output");
        let file = File::create(&output).with_context(|| format!("creating {}", output.display()))?;
        let status = self.process(shared, file)?;
        end_descendants();
        let seconds = begun.elapsed().as_secs_f32();
        if status.is_some_and(|status| status.success()) {
            println!("ok ({seconds:.1} s)");
            return Ok(true);
        }
        let text = fs::read(&output).with_context(|| format!("reading {}", output.display()))?;
        let how = status.map_or_else(|| "hangs".to_owned(), |status| status.to_string());
        println!("FAILED ({how}, {seconds:.1} s)\n{}", String::from_utf8_lossy(&text));
        Ok(false)
    }

    /// The test to its end; none when it did not come to one in time.
    fn process(&self, shared: &Shared, output: File) -> Result<Option<ExitStatus>> {
        let mut command = Command::new(&self.program);
        command
            .args(["--exact", "--include-ignored", "--test-threads=1", &self.name])
            .env("HUSK_TEST_SHARED", &shared.path)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))?;
        let pid = Pid::from_raw(child.id().cast_signed());
        let (ended, end) = mpsc::channel();
        let waiter = std::thread::spawn(move || ended.send(child.wait()));
        let in_time = end.recv_timeout(LIMIT);
        if in_time.is_err() {
            // Nobody but the waiter has its status, so the number is still its own.
            let _ = kill(pid, Signal::SIGKILL);
            let _ = end.recv();
        }
        let _ = waiter.join();
        in_time.ok().transpose().context("waiting for a test")
    }
}

/// Kills and buries whatever a test has left behind: it has become this process's child, or a child of one.
fn end_descendants() {
    loop {
        let children = children();
        if children.is_empty() {
            return;
        }
        for child in children {
            let _ = kill(child, Signal::SIGKILL);
            let _ = waitpid(child, None);
        }
    }
}

fn children() -> Vec<Pid> {
    let own = std::process::id().to_string();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_own = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name, in parentheses, may hold anything; the state and the parent follow it.
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        rest.split_whitespace().nth(1) == Some(&own)
    };
    pids.filter(is_own).map(Pid::from_raw).collect()
}

/// A directory for what the tests share: root file systems and their images.
struct Shared {
    path: PathBuf,
}

impl Shared {
    fn new() -> Result<Self> {
        // The prefix by which the tests know what is their own.
        let path = Path::new("/tmp").join(format!("husk-e2e-shared-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// The words of the task's command line: programs, `--`, the filter.
pub(crate) fn split(mut words: Vec<OsString>) -> (Vec<OsString>, Vec<OsString>) {
    let end = words.iter().position(|word| word == OsStr::new("--"));
    let filter = words.split_off(end.unwrap_or(words.len()));
    (words, filter.into_iter().skip(1).collect())
}
