//! Where a process's streams go: FIFOs, a file, a logging program, or nowhere.

use std::fs::{self, OpenOptions};
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio as Standard};
use std::time::Duration;

use husk_sandbox::guest::Wanted;
use husk_sandbox::machine::open_process;
use husk_sandbox::relay::{Ends, Sink};
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::delete::has_ended;
use crate::error::ShimError;
use crate::serve::STACK_VARIABLE;

/// How long a logging program may take to say that it is ready.
const READY: Duration = Duration::from_secs(10);
/// How long it may take to end when there is no more output.
const END: Duration = Duration::from_secs(10);

/// What containerd says of a process's streams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stdio {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// Whose output it is, which a logging program is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Whose<'w> {
    pub(crate) namespace: &'w str,
    pub(crate) container: &'w str,
}

/// A program that takes a process's output. To drop it is to wait until it has ended.
#[derive(Debug)]
pub(crate) struct Logger(Child);

/// Where output goes that has a URI.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    File(PathBuf),
    Program { path: PathBuf, args: Vec<String> },
}

impl Stdio {
    /// Which streams the process has.
    pub(crate) fn wanted(&self) -> Wanted {
        let has_uri = is_uri(&self.stdout);
        Wanted {
            stdin: !self.stdin.is_empty(),
            stdout: !self.stdout.is_empty(),
            stderr: !self.terminal && (!self.stderr.is_empty() || has_uri),
        }
    }

    /// Opens our ends. The program behind them comes first, so that it is the last to be dropped: it ends with them.
    pub(crate) fn open(&self, whose: Whose<'_>) -> Result<(Option<Logger>, Ends), ShimError> {
        let mut ends = Ends::default();
        if !self.stdin.is_empty() {
            ends.stdin = Some(fifo(Path::new(&self.stdin))?);
        }
        if is_uri(&self.stdout) {
            let logger = match Target::parse(&self.stdout)? {
                Target::File(path) => {
                    let file = log_file(&path)?;
                    ends.stderr = Some(Sink::Descriptor(file.try_clone().map_err(ShimError::Streams)?));
                    ends.stdout = Some(Sink::Descriptor(file));
                    None
                }
                Target::Program { path, args } => {
                    let (logger, [stdout, stderr]) = Logger::start(&path, &args, whose)?;
                    ends.stdout = Some(Sink::Descriptor(stdout));
                    ends.stderr = Some(Sink::Descriptor(stderr));
                    Some(logger)
                }
            };
            return Ok((logger, ends));
        }
        if !self.stdout.is_empty() {
            ends.stdout = Some(Sink::Descriptor(fifo(Path::new(&self.stdout))?));
        }
        if !self.stderr.is_empty() && !self.terminal {
            ends.stderr = Some(Sink::Descriptor(fifo(Path::new(&self.stderr))?));
        }
        Ok((None, ends))
    }
}

fn is_uri(text: &str) -> bool {
    text.contains("://")
}

/// Opens a FIFO at both ends: so nobody need be at the other one, now or later, and nothing waits for it. What is no FIFO
/// is appended to.
fn fifo(path: &Path) -> Result<OwnedFd, ShimError> {
    let failed = |source| ShimError::File {
        what: "the FIFO",
        path: path.into(),
        source,
    };
    let is_fifo = fs::metadata(path).map_err(failed)?.file_type().is_fifo();
    let file = OpenOptions::new()
        .read(true)
        .write(is_fifo)
        .append(!is_fifo)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    Ok(file.into())
}

fn log_file(path: &Path) -> Result<OwnedFd, ShimError> {
    if fs::metadata(path).is_ok_and(|meta| meta.file_type().is_fifo()) {
        return fifo(path);
    }
    let open = || {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        OpenOptions::new().create(true).append(true).mode(0o644).open(path)
    };
    open().map(OwnedFd::from).map_err(|source| ShimError::File {
        what: "the log",
        path: path.into(),
        source,
    })
}

impl Target {
    fn parse(uri: &str) -> Result<Self, ShimError> {
        let refused = || ShimError::Output(uri.into());
        let (scheme, rest) = uri.split_once("://").ok_or_else(refused)?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = decoded(path).filter(|path| path.starts_with('/')).ok_or_else(refused)?;
        match scheme {
            "file" => Ok(Self::File(path.into())),
            "binary" | "binary-v2" => {
                let mut args = Vec::new();
                for pair in query.split('&').filter(|pair| !pair.is_empty()) {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    args.push(decoded(key).ok_or_else(refused)?);
                    if !value.is_empty() {
                        args.push(decoded(&value.replace('+', " ")).ok_or_else(refused)?);
                    }
                }
                let path = path.into();
                Ok(Self::Program { path, args })
            }
            _ => Err(refused()),
        }
    }
}

/// Text with `%XX` in it (RFC 3986, section 2.1).
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        bytes.push(u8::try_from(digit()? << 4 | digit()?).ok()?);
    }
    String::from_utf8(bytes).ok()
}

impl Logger {
    /// Starts a logging program, with a pipe for each output at its descriptors 3 and 4, and waits until it says by
    /// descriptor 5 that it is ready. Gives the pipes' other ends.
    #[allow(unsafe_code)]
    fn start(path: &Path, args: &[String], whose: Whose<'_>) -> Result<(Self, [OwnedFd; 2]), ShimError> {
        let failed = |source| ShimError::File {
            what: "the logging program",
            path: path.into(),
            source,
        };
        let (stdout, our_stdout) = io::pipe().map_err(failed)?;
        let (stderr, our_stderr) = io::pipe().map_err(failed)?;
        let (our_ready, ready) = io::pipe().map_err(failed)?;
        let given = [stdout.as_raw_fd(), stderr.as_raw_fd(), ready.as_raw_fd()];
        let mut command = Command::new(path);
        command
            .args(args)
            .env_remove(STACK_VARIABLE)
            .env("CONTAINER_ID", whose.container)
            .env("CONTAINER_NAMESPACE", whose.namespace)
            .process_group(0)
            .stdin(Standard::null())
            .stdout(Standard::null())
            .stderr(Standard::null());
        // SAFETY: between fork and exec there are system calls alone, and nothing that allocates or locks.
        unsafe { command.pre_exec(move || place(given)) };
        let child = command.spawn().map_err(failed)?;
        let logger = Self(child);
        // Dropped before the program, which would wait for their end.
        let (our_stdout, our_stderr) = (our_stdout, our_stderr);
        drop((stdout, stderr, ready));
        wait_until_ready(&our_ready).map_err(failed)?;
        for pipe in [&our_stdout, &our_stderr] {
            fcntl(pipe, FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).map_err(|errno| failed(errno.into()))?;
        }
        Ok((logger, [our_stdout.into(), our_stderr.into()]))
    }
}

impl Drop for Logger {
    /// There is no more output: the program ends by itself, or is ended after a while.
    fn drop(&mut self) {
        // It is nobody's but this process's child, so that the number is its own until it is waited for.
        let process = open_process(self.0.id());
        if !process.is_ok_and(|process| has_ended(process.as_fd(), END)) {
            // It may end just now.
            let _ = self.0.kill();
        }
        let _ = self.0.wait();
    }
}

/// Puts descriptors in the places 3, 4 and 5, in the process that is about to be executed.
fn place(given: [RawFd; 3]) -> io::Result<()> {
    /// Above all places.
    const FREE: RawFd = 10;
    let mut copies = [0; 3];
    for (copy, fd) in copies.iter_mut().zip(given) {
        // SAFETY: the parent keeps the descriptors open until this process has been started.
        #[allow(unsafe_code)]
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        *copy = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(FREE))?;
    }
    for (place, copy) in (3..).zip(copies) {
        // SAFETY: the call takes numbers; what stands in the place is closed at the exec anyway.
        #[allow(unsafe_code)]
        nix::errno::Errno::result(unsafe { libc::dup2(copy, place) })?;
    }
    Ok(())
}

/// Waits for a byte, or for the end.
fn wait_until_ready(mut pipe: &PipeReader) -> io::Result<()> {
    let timeout = PollTimeout::try_from(READY).unwrap_or(PollTimeout::MAX);
    let borrowed = pipe.as_fd();
    match poll(&mut [PollFd::new(borrowed, PollFlags::POLLIN)], timeout)? {
        0 => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "it has not said that it is ready",
        )),
        _ => pipe.read(&mut [0]).map(drop),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use nix::sys::stat::Mode;
    use proptest::prelude::*;

    use super::*;

    const WHOSE: Whose<'static> = Whose {
        namespace: "ns",
        container: "box",
    };

    #[test]
    fn uris_name_files_and_programs() {
        assert_eq!(Target::parse("file:///a%20b/c").unwrap(), Target::File("/a b/c".into()));
        let program = Target::Program {
            path: "/bin/logger".into(),
            args: ["k", "v w", "flag"].map(str::to_owned).to_vec(),
        };
        assert_eq!(Target::parse("binary:///bin/logger?k=v+w&flag").unwrap(), program);
        for uri in ["http:///x", "file://x", "file:///%zz", "binary://"] {
            assert!(Target::parse(uri).is_err(), "{uri}");
        }
    }

    #[test]
    fn fifos_need_nobody_at_their_other_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("stdout");
        nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let stdio = Stdio {
            stdout: path.to_str().unwrap().into(),
            ..Stdio::default()
        };
        let (logger, ends) = stdio.open(WHOSE).unwrap();
        assert!(ends.stdin.is_none() && ends.stderr.is_none() && logger.is_none());
        let Some(Sink::Descriptor(stdout)) = ends.stdout else {
            panic!()
        };
        File::from(stdout).write_all(b"x").unwrap();
        let log = Stdio {
            stdout: format!("file://{}", path.display()),
            ..Stdio::default()
        };
        assert!(log.open(WHOSE).is_ok_and(|(_, ends)| ends.stdout.is_some()));
        let none = Stdio {
            stdin: directory.path().join("none").to_str().unwrap().into(),
            ..Stdio::default()
        };
        assert!(none.open(WHOSE).unwrap_err().to_string().contains("none"));
    }

    #[test]
    fn a_file_takes_both_outputs() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/log");
        let stdio = Stdio {
            stdout: format!("file://{}", path.display()),
            ..Stdio::default()
        };
        assert!(stdio.wanted().stderr);
        let (_, ends) = stdio.open(WHOSE).unwrap();
        for sink in [ends.stdout, ends.stderr] {
            let Some(Sink::Descriptor(fd)) = sink else { panic!() };
            File::from(fd).write_all(b"x\n").unwrap();
        }
        assert_eq!(fs::read_to_string(path).unwrap(), "x\nx\n");
    }

    #[test]
    fn a_program_gets_the_outputs_and_says_when_it_is_ready() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("logger");
        let out = directory.path().join("out");
        let text = format!(
            "#!/bin/sh\necho $CONTAINER_NAMESPACE $CONTAINER_ID \"$@\" >{0}\nexec 5>&-\ncat <&3 >>{0}\ncat <&4 >>{0}\n",
            out.display()
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let stdio = Stdio {
            stdout: format!("binary://{}?a=b", script.display()),
            ..Stdio::default()
        };
        let (logger, ends) = stdio.open(WHOSE).unwrap();
        for (sink, text) in [(ends.stdout, "one\n"), (ends.stderr, "two\n")] {
            let Some(Sink::Descriptor(fd)) = sink else { panic!() };
            File::from(fd).write_all(text.as_bytes()).unwrap();
        }
        drop(logger);
        assert_eq!(fs::read_to_string(out).unwrap(), "ns box a b\none\ntwo\n");
    }

    proptest! {
        #[test]
        fn any_uri_is_survived(uri in "[a-z]{1,6}://\\PC{0,30}") {
            let _ = Target::parse(&uri);
        }
    }
}
