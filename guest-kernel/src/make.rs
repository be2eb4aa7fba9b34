//! Runs make on the kernel: progress while it works, a log that stays, and the lines
//! that matter when it fails.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use crate::Progress;

/// Why a step of the kernel's build failed.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The log or a pipe fails, or the program does not start.
    #[error("cannot run {program} with its output in {}", log.display())]
    Run {
        /// The program.
        program: String,
        /// The log.
        log: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The program failed.
    #[error("{what} failed ({status}); the end of {}:\n{tail}", log.display())]
    Failed {
        /// The step.
        what: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The log.
        log: PathBuf,
        /// Its last lines.
        tail: String,
    },
}

/// How often a long step says how far it is.
const INTERVAL: Duration = Duration::from_secs(5);
/// Lines of the log that are shown on failure.
const TAIL: usize = 25;

/// One step of the build.
pub(crate) struct Step<'a> {
    /// What it does, for progress and errors.
    pub what: &'static str,
    /// Everything it prints is appended here.
    pub log: &'a Path,
    /// Becomes the standard input of the program, so that the lock that it holds lasts
    /// as long as the program does, even if this process is killed.
    pub lock: &'a File,
    /// Where progress goes.
    pub progress: Progress<'a>,
}

impl Step<'_> {
    /// Runs `command` to its end.
    ///
    /// # Errors
    /// See [`MakeError`].
    pub(crate) fn run(&self, command: &mut Command) -> Result<(), MakeError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let (status, tail) = self.stream(command).map_err(|source| MakeError::Run {
            program,
            log: self.log.to_owned(),
            source,
        })?;
        if status.success() {
            return Ok(());
        }
        let tail = tail
            .iter()
            .map(|line| format!("  {line}"))
            .collect::<Vec<_>>()
            .join("\n");
        Err(MakeError::Failed {
            what: self.what,
            status,
            log: self.log.to_owned(),
            tail,
        })
    }

    fn stream(&self, command: &mut Command) -> io::Result<(ExitStatus, VecDeque<String>)> {
        let mut log = OpenOptions::new().create(true).append(true).open(self.log)?;
        let (reader, writer) = io::pipe()?;
        let mut child = command
            .stdin(self.lock.try_clone()?)
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .spawn()?;
        // The command keeps copies of the pipe's writing end, which must close for the
        // reader to see its end.
        command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        let outcome = self.follow(reader, &mut log);
        if outcome.is_err() {
            // Nobody reads any more (the log's disk is full): do not leave it running.
            let _ = child.kill();
        }
        let status = child.wait()?;
        Ok((status, outcome?))
    }

    fn follow(&self, reader: io::PipeReader, log: &mut File) -> io::Result<VecDeque<String>> {
        let started = Instant::now();
        let (mut said, mut files) = (started, 0_usize);
        let mut tail = VecDeque::with_capacity(TAIL);
        for line in BufReader::new(reader).split(b'\n') {
            let line = line?;
            log.write_all(&line)?;
            log.write_all(b"\n")?;
            let line = String::from_utf8_lossy(&line).into_owned();
            files += usize::from(is_object(&line));
            if tail.len() == TAIL {
                tail.pop_front();
            }
            tail.push_back(line);
            if said.elapsed() >= INTERVAL {
                said = Instant::now();
                let seconds = started.elapsed().as_secs();
                (self.progress)(&format!(
                    "{}: {files} of about {OBJECTS} files, {}:{:02}",
                    self.what,
                    seconds / 60,
                    seconds % 60
                ));
            }
        }
        Ok(tail)
    }
}

/// Files that the present configuration compiles, for progress only.
const OBJECTS: usize = 1525;

/// Whether a line of kbuild's says that something was compiled (`  CC      fs/open.o`).
fn is_object(line: &str) -> bool {
    ["  CC ", "  AS ", "  HOSTCC "].iter().any(|tag| line.starts_with(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str) -> (Result<(), MakeError>, String) {
        let directory = tempfile::tempdir().unwrap();
        let lock = File::create(directory.path().join("lock")).unwrap();
        let log = directory.path().join("log");
        let step = Step {
            what: "step",
            log: &log,
            lock: &lock,
            progress: &|_| {},
        };
        let outcome = step.run(Command::new("sh").args(["-c", script]));
        (outcome, std::fs::read_to_string(&log).unwrap())
    }

    #[test]
    fn both_streams_are_logged() {
        let (outcome, log) = run("echo out; echo err >&2");
        outcome.unwrap();
        assert_eq!(log, "out\nerr\n");
    }

    #[test]
    fn a_failure_shows_the_status_the_log_and_its_last_lines() {
        let (outcome, log) = run("seq 100; echo 'x.c:1: error: no'; exit 2");
        let message = outcome.unwrap_err().to_string();
        assert!(
            message.starts_with("step failed (exit status: 2); the end of /"),
            "{message}"
        );
        assert!(message.ends_with("  100\n  x.c:1: error: no"), "{message}");
        assert_eq!(message.lines().count(), 1 + TAIL);
        assert_eq!(log.lines().count(), 101);
    }

    #[test]
    fn a_program_that_does_not_exist_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let lock = File::create(directory.path().join("lock")).unwrap();
        let log = directory.path().join("log");
        let step = Step {
            what: "step",
            log: &log,
            lock: &lock,
            progress: &|_| {},
        };
        let error = step.run(&mut Command::new("no-such-make")).unwrap_err();
        assert!(error.to_string().contains("cannot run no-such-make"), "{error}");
    }

    #[test]
    fn the_lock_lasts_as_long_as_the_program_even_without_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let lock = File::create(&path).unwrap();
        lock.lock().unwrap();
        // What a killed owner leaves behind: a program with the lock as its input.
        let mut child = Command::new("sleep")
            .arg("60")
            .stdin(lock.try_clone().unwrap())
            .spawn()
            .unwrap();
        drop(lock);
        let other = File::open(&path).unwrap();
        assert!(other.try_lock().is_err());
        child.kill().unwrap();
        child.wait().unwrap();
        // A process that another test has forked at this moment has the lock too, until it executes its program.
        let (free, waited) = std::sync::mpsc::channel();
        std::thread::spawn(move || free.send(other.lock().is_ok()));
        assert_eq!(waited.recv_timeout(std::time::Duration::from_secs(10)), Ok(true));
    }

    #[test]
    fn compiled_files_are_counted_and_others_are_not() {
        assert!(is_object("  CC      fs/open.o"));
        assert!(is_object("  AS      arch/x86/entry/entry_64.o"));
        assert!(!is_object("  AR      fs/built-in.a"));
        assert!(!is_object("fs/open.c:1: warning:   CC "));
    }
}
