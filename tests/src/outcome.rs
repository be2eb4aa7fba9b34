//! What came out of a command, and what must have.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

/// A command that has ended.
///
/// Each statement panics with the whole outcome when it does not hold, and returns the outcome, so that they chain.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub(crate) command: String,
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) elapsed: Duration,
}

impl Outcome {
    /// husk exited with this code.
    #[track_caller]
    pub fn exits(&self, code: i32) -> &Self {
        assert_eq!(self.status.code(), Some(code), "the exit code of {self}");
        self
    }

    /// husk itself was ended by this signal.
    #[track_caller]
    pub fn dies_of(&self, signal: nix::sys::signal::Signal) -> &Self {
        assert_eq!(self.status.signal(), Some(signal as i32), "the deadly signal of {self}");
        self
    }

    /// The whole of stdout.
    #[track_caller]
    pub fn prints(&self, text: &str) -> &Self {
        self.prints_bytes(text.as_bytes())
    }

    /// The whole of stdout, which need not be text.
    #[track_caller]
    pub fn prints_bytes(&self, bytes: &[u8]) -> &Self {
        assert!(
            self.stdout == bytes,
            "stdout should be {:?} in {self}",
            String::from_utf8_lossy(bytes)
        );
        self
    }

    /// The whole of stderr.
    #[track_caller]
    pub fn complains(&self, text: &str) -> &Self {
        assert!(self.stderr == text.as_bytes(), "stderr should be {text:?} in {self}");
        self
    }

    /// This is a part of stdout.
    #[track_caller]
    pub fn says(&self, text: &str) -> &Self {
        assert!(self.stdout().contains(text), "stdout should hold {text:?} in {self}");
        self
    }

    /// Nothing on stderr.
    #[track_caller]
    pub fn is_quiet(&self) -> &Self {
        self.complains("")
    }

    /// husk could not do it: its own exit code, nothing on stdout, and one error on stderr that names each of `things`.
    ///
    /// One error is one paragraph that begins with `husk: `; a stack of messages or a panic is not one.
    #[track_caller]
    pub fn fails(&self, code: i32, things: &[&str]) -> &Self {
        self.exits(code).prints("").reports(things)
    }

    /// One error on stderr that names each of `things`, whatever else came out.
    #[track_caller]
    pub fn reports(&self, things: &[&str]) -> &Self {
        let text = String::from_utf8_lossy(&self.stderr);
        let errors = text.lines().filter(|line| line.starts_with("husk: ")).count();
        assert_eq!(errors, 1, "the number of errors in {self}");
        assert!(!text.contains("panicked at "), "husk panicked in {self}");
        assert!(text.len() < 2000, "the error is longer than a person reads in {self}");
        self.mentions(things)
    }

    /// Each of `things` stands somewhere on stderr, in either case.
    #[track_caller]
    pub fn mentions(&self, things: &[&str]) -> &Self {
        let text = String::from_utf8_lossy(&self.stderr).to_lowercase();
        for thing in things {
            assert!(
                text.contains(&thing.to_lowercase()),
                "stderr does not name {thing:?} in {self}"
            );
        }
        self
    }

    /// Whether husk exited with 0.
    pub fn succeeded(&self) -> bool {
        self.status.success()
    }

    /// stderr as it is.
    pub fn stderr_bytes(&self) -> &[u8] {
        &self.stderr
    }

    /// stdout as text.
    #[track_caller]
    pub fn stdout(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap_or_else(|_| panic!("stdout is not text in {self}"))
    }

    /// stderr as text.
    #[track_caller]
    pub fn stderr(&self) -> &str {
        std::str::from_utf8(&self.stderr).unwrap_or_else(|_| panic!("stderr is not text in {self}"))
    }

    /// The value of the line `name=value` on stdout: how one command answers many questions.
    #[track_caller]
    pub fn fact(&self, name: &str) -> &str {
        let value = self
            .stdout()
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_else(|| panic!("no line {name}=... in {self}"))
    }

    /// The fact is this value.
    #[track_caller]
    pub fn states(&self, name: &str, value: &str) -> &Self {
        assert_eq!(self.fact(name), value, "the fact {name:?} in {self}");
        self
    }

    /// The fact as a number.
    #[track_caller]
    pub fn number(&self, name: &str) -> u64 {
        let value = self.fact(name);
        value
            .parse()
            .unwrap_or_else(|_| panic!("the fact {name}={value} is not a number in {self}"))
    }

    /// From the start of the command to its end.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "`{}` ({}, {:.1} s)",
            self.command,
            self.status,
            self.elapsed.as_secs_f32()
        )?;
        writeln!(f, "--- stdout\n{}", shorten(&self.stdout))?;
        writeln!(f, "--- stderr\n{}", shorten(&self.stderr))
    }
}

/// Beginning and end of what may be megabytes.
pub(crate) fn shorten(bytes: &[u8]) -> String {
    const SHOWN: usize = 4000;
    if bytes.len() <= 2 * SHOWN {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    let (head, tail) = (&bytes[..SHOWN], &bytes[bytes.len() - SHOWN..]);
    let left_out = bytes.len() - 2 * SHOWN;
    format!(
        "{}\n[{left_out} bytes]\n{}",
        String::from_utf8_lossy(head),
        String::from_utf8_lossy(tail)
    )
}
