//! A command of husk's while it runs.

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::outcome::shorten;
use crate::{Host, Outcome, Process, diagnosis};

/// What a command finds on its stdin.
pub(crate) enum Source {
    /// Its end.
    Nothing,
    /// These bytes, then its end.
    Stream(Box<dyn Read>),
    /// What the test sends, when it sends it.
    Open,
}

/// Who gets a command's output instead of [`Outcome`].
pub(crate) type Sink = Option<Box<dyn FnMut(&[u8])>>;

/// The streams of a command, the test's ends of them.
pub(crate) struct Plan {
    pub(crate) source: Source,
    pub(crate) input: Option<File>,
    pub(crate) stdout: File,
    pub(crate) stderr: Option<File>,
    pub(crate) sink: Sink,
    pub(crate) limit: Duration,
}

/// A command that runs; killed when it is dropped.
pub struct Running<'h> {
    host: &'h Host,
    label: String,
    child: Child,
    exit: OwnedFd,
    status: Option<ExitStatus>,
    source: Source,
    input: Option<File>,
    unsent: Vec<u8>,
    stdout: Output,
    stderr: Output,
    started: Instant,
    deadline: Instant,
}

/// One of a command's output streams, as far as it has come.
struct Output {
    stream: Option<File>,
    bytes: Vec<u8>,
    sink: Sink,
}

impl<'h> Running<'h> {
    /// Starts `command`, whose ends of the streams are set already.
    #[track_caller]
    pub(crate) fn start(host: &'h Host, mut command: Command, plan: Plan) -> Self {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let label = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let started = Instant::now();
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("`{label}` cannot be started: {error}"));
        // The child's ends must not stay open here, or the end of its streams would not be seen.
        drop(command);
        let process = Process::find(child.id().cast_signed()).expect("a child that nobody has waited for");
        Self {
            host,
            label,
            child,
            exit: process.handle().expect("a child that nobody has waited for"),
            status: None,
            source: plan.source,
            input: plan.input.inspect(set_non_blocking),
            unsent: Vec::new(),
            stdout: Output::of(Some(plan.stdout), plan.sink),
            stderr: Output::of(plan.stderr, None),
            started,
            deadline: started + plan.limit,
        }
    }

    /// The machine it runs on.
    pub(crate) fn host(&self) -> &'h Host {
        self.host
    }

    /// husk itself.
    pub fn process(&self) -> Process {
        Process::find(self.child.id().cast_signed()).expect("a child that nobody has waited for")
    }

    /// The virtual machine's process.
    ///
    /// # Panics
    /// There is none.
    #[track_caller]
    pub fn vmm(&self) -> Process {
        let below = Process::descendants(self.process().pid);
        below
            .into_iter()
            .find(|process| process.name == "husk-vmm")
            .expect("a process husk-vmm below husk")
    }

    /// Waits until a process of this name runs below husk.
    ///
    /// Linux tells nobody of a process that executes something, so this one wait looks again and again.
    #[track_caller]
    pub fn await_child(&mut self, name: &str) -> &mut Self {
        let deadline = self.deadline;
        while !Process::descendants(self.process().pid)
            .iter()
            .any(|process| process.name == name)
        {
            if Instant::now() > deadline || self.status.is_some() {
                panic!("no process {name} appears below {self}");
            }
            self.let_pass(Duration::from_millis(20));
        }
        self
    }

    /// Lets this time pass while bytes flow.
    pub fn let_pass(&mut self, time: Duration) -> &mut Self {
        let end = Instant::now() + time;
        while !self.has_ended() && self.step(end.saturating_duration_since(Instant::now())) {}
        self
    }

    /// Waits until stdout holds `text`.
    #[track_caller]
    pub fn await_output(&mut self, text: &str) -> &mut Self {
        self.await_until(text, |running| contains(&running.stdout.bytes, text))
    }

    /// Waits until stdout holds more than now.
    ///
    /// # Panics
    /// It ends before.
    #[track_caller]
    pub(crate) fn await_more_output(&mut self) -> &mut Self {
        let now = self.stdout.bytes.len();
        self.await_until("more", |running| running.stdout.bytes.len() > now)
    }

    /// Waits until stderr holds `text`.
    #[track_caller]
    pub fn await_complaint(&mut self, text: &str) -> &mut Self {
        self.await_until(text, |running| contains(&running.stderr.bytes, text))
    }

    /// Waits until the command has ended; what it started may still hold its streams.
    #[track_caller]
    pub fn await_exit(&mut self) -> &mut Self {
        self.pump(&|running| running.status.is_some());
        self
    }

    /// Waits until the command itself has ended, as it should; what it left running may still hold its streams.
    ///
    /// # Panics
    /// It has failed.
    #[track_caller]
    pub fn succeeds(&mut self) -> &mut Self {
        self.await_exit();
        assert!(self.status.is_some_and(|status| status.success()), "a failure: {self}");
        self
    }

    #[track_caller]
    fn await_until(&mut self, text: &str, done: impl Fn(&Self) -> bool) -> &mut Self {
        self.pump(&done);
        if !done(self) {
            panic!("ended before it said {text:?}: {self}");
        }
        self
    }

    /// Forgets what came on stdout, so that the next [`Running::await_output`] sees only what comes from now on.
    pub fn forget_output(&mut self) -> &mut Self {
        self.stdout.bytes.clear();
        self
    }

    /// Puts bytes on stdin.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        assert!(self.input.is_some(), "the stdin of `{}` is open", self.label);
        self.unsent.extend_from_slice(bytes.as_ref());
        self.pump(&|running| running.unsent.is_empty() || running.input.is_none());
        self
    }

    /// Ends stdin.
    pub fn end_input(&mut self) -> &mut Self {
        self.input = None;
        self
    }

    /// Nobody reads stdout any more.
    pub fn close_output(&mut self) -> &mut Self {
        self.stdout.stream = None;
        self
    }

    /// Sends husk a signal.
    #[track_caller]
    pub fn signal(&mut self, signal: Signal) -> &mut Self {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("signal a child");
        self
    }

    /// Whether husk itself has ended, as far as was noticed: until then a signal reaches it.
    pub fn is_over(&self) -> bool {
        self.status.is_some()
    }

    /// What has come on stdout by now.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.stdout.bytes).into_owned()
    }

    /// Waits for the end of the command and of its streams.
    #[track_caller]
    pub fn finish(mut self) -> Outcome {
        self.pump(&|running| running.has_ended());
        Outcome {
            command: std::mem::take(&mut self.label),
            status: self.status.expect("ended"),
            stdout: std::mem::take(&mut self.stdout.bytes),
            stderr: std::mem::take(&mut self.stderr.bytes),
            elapsed: self.started.elapsed(),
        }
    }

    /// Moves bytes until `done`, or until nothing can come any more.
    #[track_caller]
    fn pump(&mut self, done: &dyn Fn(&Self) -> bool) {
        while !done(self) && !self.has_ended() {
            if !self.step(self.deadline.saturating_duration_since(Instant::now())) {
                panic!("hangs: {self}{}", diagnosis::describe(&self.host.run_directory()));
            }
        }
    }

    /// Moves the bytes that can be moved now, or as soon as any can be within `left`; false when that time is over.
    fn step(&mut self, left: Duration) -> bool {
        self.refill();
        let happened = self.wait(left);
        self.stdout.read();
        self.stderr.read();
        self.write();
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("wait for a child");
        }
        happened
    }

    fn has_ended(&self) -> bool {
        self.status.is_some() && self.stdout.stream.is_none() && self.stderr.stream.is_none()
    }

    /// Whether anything happened before the time was over.
    fn wait(&self, left: Duration) -> bool {
        let readable = PollFlags::POLLIN;
        let outputs = [&self.stdout.stream, &self.stderr.stream];
        let mut watched: Vec<_> = outputs
            .into_iter()
            .flatten()
            .map(|stream| PollFd::new(stream.as_fd(), readable))
            .collect();
        if let Some(input) = self.input.as_ref().filter(|_| !self.unsent.is_empty()) {
            watched.push(PollFd::new(input.as_fd(), PollFlags::POLLOUT));
        }
        if self.status.is_none() {
            watched.push(PollFd::new(self.exit.as_fd(), readable));
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        poll(&mut watched, timeout).is_ok_and(|count| count > 0)
    }

    /// Takes the next piece of a stream, or ends stdin behind its last.
    fn refill(&mut self) {
        let Source::Stream(stream) = &mut self.source else {
            return;
        };
        if self.input.is_none() || !self.unsent.is_empty() {
            return;
        }
        self.unsent.resize(64 << 10, 0);
        let count = stream.read(&mut self.unsent).expect("read the test's input");
        self.unsent.truncate(count);
        if count == 0 {
            self.input = None;
        }
    }

    fn write(&mut self) {
        let Some(input) = self.input.as_mut().filter(|_| !self.unsent.is_empty()) else {
            return;
        };
        match input.write(&self.unsent) {
            Ok(count) => drop(self.unsent.drain(..count)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // The command reads no more, which is its right.
            Err(_) => self.input = None,
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if self.status.is_none() {
            // Both fail only when it has ended in this moment.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl fmt::Display for Running<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self
            .status
            .map_or_else(|| "running".to_owned(), |status| status.to_string());
        writeln!(
            f,
            "`{}` ({state}, {:.1} s)",
            self.label,
            self.started.elapsed().as_secs_f32()
        )?;
        writeln!(f, "--- stdout\n{}", shorten(&self.stdout.bytes))?;
        writeln!(f, "--- stderr\n{}", shorten(&self.stderr.bytes))
    }
}

impl Output {
    fn of(stream: Option<File>, sink: Sink) -> Self {
        Self {
            stream: stream.inspect(set_non_blocking),
            bytes: Vec::new(),
            sink,
        }
    }

    /// Takes what has come.
    fn read(&mut self) {
        let mut piece = [0; 64 << 10];
        while let Some(stream) = &mut self.stream {
            match stream.read(&mut piece) {
                Ok(0) => self.stream = None,
                Ok(count) => match &mut self.sink {
                    Some(sink) => sink(&piece[..count]),
                    None => self.bytes.extend_from_slice(&piece[..count]),
                },
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A terminal ends with EIO when its last user has closed it.
                Err(_) => self.stream = None,
            }
        }
    }
}

fn set_non_blocking(file: &File) {
    fcntl(file, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("set O_NONBLOCK");
}

fn contains(bytes: &[u8], text: &str) -> bool {
    text.is_empty() || bytes.windows(text.len()).any(|window| window == text.as_bytes())
}
