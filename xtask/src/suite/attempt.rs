//! Runs of a suite's program.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::RUNC;
use super::results::{self, Outcome, Results};
use crate::process;

/// A program that has said nothing for so long hangs: nearly all tests say what they do.
const SILENCE: Duration = Duration::from_secs(300);

/// How a suite is run.
pub(super) struct Attempt {
    pub(super) script: PathBuf,
    /// What the script takes.
    pub(super) directories: [PathBuf; 4],
    /// Where the programs' output goes.
    pub(super) logs: PathBuf,
}

impl Attempt {
    /// The names of all tests.
    pub(super) fn list(&self) -> Result<BTreeSet<String>> {
        let mut list = Command::new(&self.script);
        // With whatever there must be before the program says anything; what need not be is left out.
        list.args(&self.directories)
            .args([RUNC, "-test.list=^Test", "-test.short"]);
        let told = process::output(&mut list)?;
        let names = told.lines().filter(|line| line.starts_with("Test"));
        Ok(names.map(str::to_owned).collect())
    }

    /// Runs tests with a runtime. A test in which the program dies or hangs has failed; the others are run again.
    pub(super) fn all(&self, runtime: &str, tests: &BTreeSet<String>) -> Result<Results> {
        let mut results = Results::new();
        let mut left = tests.clone();
        loop {
            let begun = Instant::now();
            let log = self.next_log(runtime);
            let under_way = self.run(runtime, &left, &log, &mut results)?;
            for test in under_way {
                results.insert(test, Outcome::Failed);
            }
            let before = left.len();
            left.retain(|test| !results.contains_key(test));
            println!(
                "{runtime}: {} of {} tests have ended, in {:.0} s",
                tests.len() - left.len(),
                tests.len(),
                begun.elapsed().as_secs_f32()
            );
            if left.is_empty() {
                break;
            }
            if left.len() == before {
                println!("{runtime}: none of the others begins; {} tells more", log.display());
                results.extend(left.into_iter().map(|test| (test, Outcome::Failed)));
                break;
            }
        }
        Ok(results)
    }

    /// A file for the output of another run.
    fn next_log(&self, runtime: &str) -> PathBuf {
        let mut number = 1;
        loop {
            let log = self.logs.join(format!("{runtime}-{number}.log"));
            if !log.exists() {
                return log;
            }
            number += 1;
        }
    }

    /// Runs tests until the program ends; gives those that were under way then.
    fn run(
        &self,
        runtime: &str,
        tests: &BTreeSet<String>,
        log: &std::path::Path,
        results: &mut Results,
    ) -> Result<Vec<String>> {
        let names: Vec<_> = tests.iter().map(String::as_str).collect();
        let mut command = Command::new(&self.script);
        command
            .args(&self.directories)
            .args([OsStr::new(runtime), OsStr::new("-test.v=test2json")])
            // One after the other, but for what a test does by itself: there is one processor to wait for.
            .args(["-test.parallel=1", "-test.timeout=0", "-test.run"])
            .arg(format!("^({})$", names.join("|")))
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let failed = || format!("running {}", self.script.display());
        let mut file = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        command.stderr(file.try_clone()?);
        let mut child = command.spawn().with_context(failed)?;
        let lines = lines(&mut child);
        loop {
            match lines.recv_timeout(SILENCE) {
                Ok(line) => file
                    .write_all(&line)
                    .with_context(|| format!("writing {}", log.display()))?,
                Err(RecvTimeoutError::Timeout) => {
                    println!("{runtime}: nothing has happened for {} s", SILENCE.as_secs());
                    // With the process everything ends that it has started.
                    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL).with_context(failed)?;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        child.wait().with_context(failed)?;
        let output = fs::read(log).with_context(|| format!("reading {}", log.display()))?;
        Ok(results::read(&String::from_utf8_lossy(&output), results))
    }
}

/// The lines of a process's stdout, as they come.
fn lines(child: &mut Child) -> Receiver<Vec<u8>> {
    let (line_read, lines) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        let mut stdout = BufReader::new(stdout);
        std::thread::spawn(move || {
            loop {
                let mut line = Vec::new();
                // Without a reader, or without a process, no more is wanted.
                if stdout.read_until(b'\n', &mut line).unwrap_or(0) == 0 || line_read.send(line).is_err() {
                    return;
                }
            }
        });
    }
    lines
}
