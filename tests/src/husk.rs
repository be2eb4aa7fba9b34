//! A command of husk's, before it runs.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::running::{Plan, Sink, Source};
use crate::{Bundle, Host, Outcome, Running, Sandbox, Terminal, prepared, trees};

/// No command of a test takes longer than this; a boot takes seconds where the processor is emulated, and the machine
/// may be busy. It decides nothing but how long a hang lasts.
const LIMIT: Duration = Duration::from_secs(300);

/// A husk command with its options, its environment and its streams.
pub struct Husk<'h> {
    host: &'h Host,
    program: PathBuf,
    through: Vec<OsString>,
    options: Vec<OsString>,
    environment: Vec<(String, Option<OsString>)>,
    source: Source,
    sink: Sink,
    limit: Duration,
}

impl<'h> Husk<'h> {
    pub(crate) fn new(host: &'h Host) -> Self {
        let set = |name: &str, value: &OsStr| (name.to_owned(), Some(value.to_owned()));
        let unset = [
            "HUSK_GUEST_DIR",
            "HUSK_VMM",
            "HUSK_LOG",
            "HUSK_CACHE",
            "XDG_CACHE_HOME",
            "XDG_RUNTIME_DIR",
        ];
        let mut environment: Vec<_> = unset.iter().map(|name| ((*name).to_owned(), None)).collect();
        environment.push(set("HUSK_ROOT", host.run_directory().as_os_str()));
        environment.push(set("HUSK_IMAGE_CACHE", host.image_cache().as_os_str()));
        Self {
            host,
            program: prepared::bin().join("husk"),
            through: Vec::new(),
            options: Vec::new(),
            environment,
            source: Source::Nothing,
            sink: None,
            limit: LIMIT,
        }
    }

    /// Another copy of the program.
    pub fn program(mut self, path: impl Into<PathBuf>) -> Self {
        self.program = path.into();
        self
    }

    /// A command that executes husk: its arguments follow this one's.
    pub fn through<S: AsRef<OsStr>>(mut self, command: impl IntoIterator<Item = S>) -> Self {
        self.through
            .extend(command.into_iter().map(|word| word.as_ref().to_owned()));
        self
    }

    /// As the user `nobody`, who may open /dev/kvm through its group if it is not open to all.
    ///
    /// The program is copied to where that user can reach it: a checkout may lie in somebody's home.
    ///
    /// # Panics
    /// The program cannot be copied.
    pub fn as_nobody(mut self) -> Self {
        let place = self.host.scratch().join("bin");
        if !place.exists() {
            trees::copy(&prepared::bin().join("guest"), &place.join("guest"));
            for name in ["husk", "husk-vmm"] {
                trees::copy(&prepared::bin().join(name), &place.join(name));
            }
        }
        let kvm = std::fs::metadata("/dev/kvm").map_or(0, |kvm| kvm.gid());
        self.program = place.join("husk");
        self.through([
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            &format!("--groups={kvm}"),
            "--",
        ])
        .without_variable("HOME")
    }

    /// A variable of husk's own environment.
    pub fn variable(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment
            .push((name.to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// A variable that husk does not get.
    pub fn without_variable(mut self, name: &str) -> Self {
        self.environment.push((name.to_owned(), None));
        self
    }

    /// Any option of `husk run`.
    pub fn option(mut self, option: impl AsRef<OsStr>) -> Self {
        self.options.push(option.as_ref().to_owned());
        self
    }

    fn valued(self, option: &str, value: impl AsRef<OsStr>) -> Self {
        self.option(option).option(value)
    }

    /// `--rootfs`.
    pub fn rootfs(self, path: impl AsRef<Path>) -> Self {
        self.valued("--rootfs", path.as_ref())
    }

    /// `--bundle`.
    pub fn bundle(self, bundle: &Bundle) -> Self {
        self.valued("--bundle", bundle.path())
    }

    /// `--name`.
    pub fn name(self, name: &str) -> Self {
        self.valued("--name", name)
    }

    /// `--tty --interactive`, for [`Husk::on_terminal`].
    pub fn tty(self) -> Self {
        self.option("--tty").option("--interactive")
    }

    /// `--interactive`, with these bytes on stdin and then its end.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.source = Source::Stream(Box::new(std::io::Cursor::new(bytes.into())));
        self.option("--interactive")
    }

    /// `--interactive`, with all that `stream` gives on stdin and then its end.
    pub fn input_stream(mut self, stream: impl Read + 'static) -> Self {
        self.source = Source::Stream(Box::new(stream));
        self.option("--interactive")
    }

    /// A stdin on which nothing comes and which does not end until [`Running::send`] or [`Running::end_input`].
    pub fn open_input(mut self) -> Self {
        self.source = Source::Open;
        self
    }

    /// Hands stdout to `sink` as it comes, instead of keeping it.
    pub fn output_to(mut self, sink: impl FnMut(&[u8]) + 'static) -> Self {
        self.sink = Some(Box::new(sink));
        self
    }

    /// `--cpus`.
    pub fn cpus(self, count: &str) -> Self {
        self.valued("--cpus", count)
    }

    /// `--memory`.
    pub fn memory(self, size: &str) -> Self {
        self.valued("--memory", size)
    }

    /// `--env`.
    pub fn env(self, assignment: &str) -> Self {
        self.valued("--env", assignment)
    }

    /// `--user`.
    pub fn user(self, user: &str) -> Self {
        self.valued("--user", user)
    }

    /// `--workdir`.
    pub fn workdir(self, path: &str) -> Self {
        self.valued("--workdir", path)
    }

    /// `--kernel`.
    pub fn kernel(self, path: impl AsRef<Path>) -> Self {
        self.valued("--kernel", path.as_ref())
    }

    /// Another time limit than the usual one, for what moves a lot of data.
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// `husk run OPTIONS -- COMMAND`, to its end.
    #[track_caller]
    pub fn run<S: AsRef<OsStr>>(self, command: impl IntoIterator<Item = S>) -> Outcome {
        self.start(command).finish()
    }

    /// `husk run OPTIONS` with the command that the bundle names, to its end.
    #[track_caller]
    pub fn run_bundle(self) -> Outcome {
        self.start_with("run", None::<[&str; 0]>).finish()
    }

    /// `husk run OPTIONS -- COMMAND`, left running.
    #[track_caller]
    pub fn start<S: AsRef<OsStr>>(self, command: impl IntoIterator<Item = S>) -> Running<'h> {
        self.start_with("run", Some(command))
    }

    /// `husk run OPTIONS` with the command that the bundle names, left running.
    #[track_caller]
    pub fn start_bundle(self) -> Running<'h> {
        self.start_with("run", None::<[&str; 0]>)
    }

    /// `husk run --name NAME OPTIONS` with a process that waits: a sandbox to execute things in.
    #[track_caller]
    pub fn sandbox(self, name: &str) -> Sandbox<'h> {
        Sandbox::start(self, name)
    }

    /// `husk run OPTIONS -- COMMAND` on a terminal of 50 rows and 132 columns.
    #[track_caller]
    pub fn on_terminal<S: AsRef<OsStr>>(self, command: impl IntoIterator<Item = S>) -> Terminal<'h> {
        let (host, limit) = (self.host, self.limit);
        Terminal::start(host, self.build("run", Some(command)), limit)
    }

    /// `husk run OPTIONS` with the command that the bundle names, on such a terminal.
    #[track_caller]
    pub fn bundle_on_terminal(self) -> Terminal<'h> {
        let (host, limit) = (self.host, self.limit);
        Terminal::start(host, self.build("run", None::<[&str; 0]>), limit)
    }

    /// `husk exec OPTIONS NAME -- COMMAND`, left running.
    #[track_caller]
    pub fn start_exec<S: AsRef<OsStr>>(self, name: &str, command: impl IntoIterator<Item = S>) -> Running<'h> {
        self.option(name).start_with("exec", Some(command))
    }

    /// `husk exec OPTIONS NAME -- COMMAND`, to its end.
    #[track_caller]
    pub fn exec<S: AsRef<OsStr>>(self, name: &str, command: impl IntoIterator<Item = S>) -> Outcome {
        self.start_exec(name, command).finish()
    }

    /// `husk exec OPTIONS NAME -- COMMAND` on a terminal of 50 rows and 132 columns.
    #[track_caller]
    pub fn exec_on_terminal<S: AsRef<OsStr>>(self, name: &str, command: impl IntoIterator<Item = S>) -> Terminal<'h> {
        let husk = self.option(name);
        let (host, limit) = (husk.host, husk.limit);
        Terminal::start(host, husk.build("exec", Some(command)), limit)
    }

    /// Any other command of husk's, to its end.
    #[track_caller]
    pub fn command<S: AsRef<OsStr>>(self, words: impl IntoIterator<Item = S>) -> Outcome {
        self.start_command(words).finish()
    }

    /// Any other command of husk's on a terminal of 50 rows and 132 columns.
    #[track_caller]
    pub fn command_on_terminal<S: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = S>) -> Terminal<'h> {
        let verb = self.take_words(words);
        let (host, limit) = (self.host, self.limit);
        Terminal::start(host, self.build(verb, None::<[&str; 0]>), limit)
    }

    /// Any other command of husk's, left running.
    #[track_caller]
    pub fn start_command<S: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = S>) -> Running<'h> {
        let verb = self.take_words(words);
        self.start_with(&verb, None::<[&str; 0]>)
    }

    /// Any other command of husk's, for whoever starts it in another way.
    pub(crate) fn into_command<S: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = S>) -> Command {
        let verb = self.take_words(words);
        self.build(verb, None::<[&str; 0]>)
    }

    /// The first of the words; the others become options.
    fn take_words<S: AsRef<OsStr>>(&mut self, words: impl IntoIterator<Item = S>) -> OsString {
        let mut words = words.into_iter().map(|word| word.as_ref().to_owned());
        let verb = words.next().expect("a command");
        self.options.extend(words);
        verb
    }

    fn start_with<S: AsRef<OsStr>>(
        mut self,
        verb: impl AsRef<OsStr>,
        command: Option<impl IntoIterator<Item = S>>,
    ) -> Running<'h> {
        let source = std::mem::replace(&mut self.source, Source::Nothing);
        let (host, sink, limit) = (self.host, self.sink.take(), self.limit);
        let mut command = self.build(verb, command);
        let (input, stdin) = match source {
            Source::Nothing => (None, Stdio::null()),
            _ => pipe(),
        };
        let (stdout, child_stdout) = output();
        let (stderr, child_stderr) = output();
        command.stdin(stdin).stdout(child_stdout).stderr(child_stderr);
        Running::start(
            host,
            command,
            Plan {
                source,
                input,
                stdout,
                stderr: Some(stderr),
                sink,
                limit,
            },
        )
    }

    fn build<S: AsRef<OsStr>>(self, verb: impl AsRef<OsStr>, command: Option<impl IntoIterator<Item = S>>) -> Command {
        let mut words = self.through;
        words.push(self.program.into());
        words.push(verb.as_ref().to_owned());
        words.extend(self.options);
        if let Some(command) = command {
            words.push("--".into());
            words.extend(command.into_iter().map(|word| word.as_ref().to_owned()));
        }
        let mut built = Command::new(&words[0]);
        built.args(&words[1..]);
        for (name, value) in self.environment {
            match value {
                Some(value) => built.env(name, value),
                None => built.env_remove(name),
            };
        }
        built
    }
}

/// A pipe into the command.
fn pipe() -> (Option<File>, Stdio) {
    let (read, write) = std::io::pipe().expect("make a pipe");
    (Some(OwnedFd::from(write).into()), read.into())
}

/// A pipe out of the command.
fn output() -> (File, Stdio) {
    let (read, write) = std::io::pipe().expect("make a pipe");
    (OwnedFd::from(read).into(), write.into())
}
