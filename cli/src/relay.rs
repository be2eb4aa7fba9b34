//! Copies a process's streams: ours to the guest, the guest's to ours.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use husk_sandbox::guest::Streams;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::output::Recorder;

const CHUNK: usize = 64 << 10;
/// How long a stream may stay silent and open when its process has exited: a process that it has left behind may hold
/// it for as long as it likes.
const SILENCE: Duration = Duration::from_secs(2);
/// How long a stream is waited for in all when its process has exited. With [`MOST_LEFT`] this bounds one that is never
/// silent and never ends, as only a stray process or a hostile guest has one.
const OVERTIME: Duration = Duration::from_secs(30);
/// More than can be under way when a process has exited, in bytes: what the guest's pipe and all buffers up to here hold.
const MOST_LEFT: usize = 16 << 20;

/// Our ends of a process's streams.
#[derive(Debug)]
pub(crate) struct Ends {
    /// What the process reads, if it is passed on.
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Sink,
    pub(crate) stderr: Sink,
}

/// Where a process's output goes.
#[derive(Debug)]
pub(crate) enum Sink {
    Descriptor(OwnedFd),
    Log(Recorder),
}

impl Ends {
    /// husk's own streams.
    pub(crate) fn standard(forward_stdin: bool) -> Result<Self> {
        let copy = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().context("no descriptor is left");
        Ok(Self {
            stdin: match forward_stdin {
                true => Some(copy(io::stdin().as_fd())?),
                false => None,
            },
            stdout: Sink::Descriptor(copy(io::stdout().as_fd())?),
            stderr: Sink::Descriptor(copy(io::stderr().as_fd())?),
        })
    }
}

impl Sink {
    fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Descriptor(to) => Ok(write_all(to.as_fd(), bytes)?),
            Self::Log(recorder) => {
                recorder.write(bytes);
                Ok(())
            }
        }
    }
}

/// The copying threads.
#[derive(Debug)]
pub(crate) struct Relay {
    outputs: Vec<JoinHandle<()>>,
    exited: Arc<EventFd>,
}

impl Relay {
    /// Begins to copy between a process's streams and ours.
    pub(crate) fn start(streams: Streams, terminal: bool, ends: Ends) -> Result<Self> {
        let exited = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).context("an event cannot be made")?;
        let mut relay = Self {
            outputs: Vec::new(),
            exited: Arc::new(exited),
        };
        let Streams { stdin, stdout, stderr } = streams;
        if terminal {
            let stream = stdin.context("the terminal has no stream")?;
            relay.output(stream.try_clone()?, ends.stdout)?;
            if let Some(from) = ends.stdin {
                input(from, stream)?;
            }
            return Ok(relay);
        }
        if let Some(stream) = stdout {
            relay.output(stream, ends.stdout)?;
        }
        if let Some(stream) = stderr {
            relay.output(stream, ends.stderr)?;
        }
        if let Some((stream, from)) = stdin.zip(ends.stdin) {
            input(from, stream)?;
        }
        Ok(relay)
    }

    fn output(&mut self, from: UnixStream, to: Sink) -> Result<()> {
        let exited = Arc::clone(&self.exited);
        let thread = thread::Builder::new().name("output".into());
        self.outputs
            .push(thread.spawn(move || copy_output(from, &to, &exited))?);
        Ok(())
    }

    /// The process has exited: waits until all that it wrote is copied.
    pub(crate) fn finish(self) {
        // An event that cannot be raised would only mean that streams are waited for which a stray process holds.
        let _ = self.exited.write(1);
        for output in self.outputs {
            // A thread that has panicked has said so.
            let _ = output.join();
        }
    }
}

fn input(from: OwnedFd, to: UnixStream) -> Result<()> {
    let from = File::from(from);
    // Never waited for: it may be blocked for as long as nobody types.
    thread::Builder::new()
        .name("input".into())
        .spawn(move || copy_input(from, &to))?;
    Ok(())
}

fn copy_input(mut from: File, to: &UnixStream) {
    let mut chunk = vec![0; CHUNK];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => {
                if write_all(to.as_fd(), &chunk[..count]).is_err() {
                    // The process reads no more.
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if wait(from.as_fd(), PollFlags::POLLIN).is_err() {
                    break;
                }
            }
            // A terminal that is gone reads as an error.
            Err(_) => break,
        }
    }
    // The other end may be gone already.
    let _ = to.shutdown(Shutdown::Write);
}

/// Copies until the stream ends, or after its process's exit is silent or goes on for too long. When our own end cannot
/// be written to, the stream is closed, so that the process learns of it as it would of a closed pipe.
fn copy_output(mut from: UnixStream, to: &Sink, exited: &EventFd) {
    let mut chunk = vec![0; CHUNK];
    let mut rest: Option<Rest> = None;
    loop {
        let before = Instant::now();
        match readable(&from, rest.is_none().then_some(exited)) {
            Ok(Readable::Stream) => {}
            Ok(Readable::Exited) => {
                rest = Some(Rest::default());
                continue;
            }
            Ok(Readable::Nothing) | Err(_) => return,
        }
        let waited = before.elapsed();
        let count = match from.read(&mut chunk) {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        let over = rest.as_mut().is_some_and(|rest| rest.is_over(waited, count));
        if over || to.write_all(&chunk[..count]).is_err() {
            // The guest hears of it; that it may have gone itself does not matter.
            let _ = from.shutdown(Shutdown::Both);
            return;
        }
    }
}

/// What has come of a stream since its process has exited.
#[derive(Default)]
struct Rest {
    /// How long it was waited for: the time that our own end takes is not the stream's.
    waited: Duration,
    bytes: usize,
}

impl Rest {
    /// Takes note of bytes; says whether they are more than a process can have left.
    fn is_over(&mut self, waited: Duration, bytes: usize) -> bool {
        self.waited += waited;
        self.bytes += bytes;
        self.waited > OVERTIME || self.bytes > MOST_LEFT
    }
}

enum Readable {
    Stream,
    Exited,
    Nothing,
}

/// Waits for the stream, and for the exit as long as it has not been heard of.
fn readable(stream: &UnixStream, exited: Option<&EventFd>) -> nix::Result<Readable> {
    loop {
        let mut watched = vec![PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
        watched.extend(exited.map(|event| PollFd::new(event.as_fd(), PollFlags::POLLIN)));
        let timeout = match exited {
            Some(_) => PollTimeout::NONE,
            None => PollTimeout::try_from(SILENCE).unwrap_or(PollTimeout::MAX),
        };
        match poll(&mut watched, timeout) {
            Ok(0) => return Ok(Readable::Nothing),
            // Before the stream, which may be one that is always ready.
            Ok(_) if watched.get(1).is_some_and(|exited| exited.any().unwrap_or(true)) => return Ok(Readable::Exited),
            Ok(_) => return Ok(Readable::Stream),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Writes everything, also to a descriptor that somebody else has made non-blocking.
pub(crate) fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> nix::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(to, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::EAGAIN) => wait(to, PollFlags::POLLOUT)?,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn wait(descriptor: BorrowedFd<'_>, events: PollFlags) -> nix::Result<()> {
    match poll(&mut [PollFd::new(descriptor, events)], PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Copies a stream to stderr until it ends.
pub(crate) fn to_stderr(mut from: UnixStream) -> Result<JoinHandle<()>> {
    let copy = move || {
        let mut chunk = vec![0; CHUNK];
        while let Ok(count @ 1..) = from.read(&mut chunk) {
            if write_all(io::stderr().as_fd(), &chunk[..count]).is_err() {
                break;
            }
        }
        // What is left in no buffer need not be flushed.
        let _ = io::stderr().flush();
    };
    Ok(thread::Builder::new().name("console".into()).spawn(copy)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output() -> (UnixStream, UnixStream, Arc<EventFd>, JoinHandle<()>) {
        let (guest, from) = UnixStream::pair().unwrap();
        let (to, reader) = UnixStream::pair().unwrap();
        let exited = Arc::new(EventFd::new().unwrap());
        let event = Arc::clone(&exited);
        let thread = thread::spawn(move || copy_output(from, &Sink::Descriptor(to.into()), &event));
        (guest, reader, exited, thread)
    }

    #[test]
    fn what_was_written_before_the_exit_is_copied_after_it() {
        let (mut guest, mut reader, exited, thread) = output();
        let copied = thread::spawn(move || reader.read_to_end(&mut Vec::new()).unwrap());
        exited.write(1).unwrap();
        guest.write_all(&vec![7; 1 << 20]).unwrap();
        drop(guest);
        thread.join().unwrap();
        assert_eq!(copied.join().unwrap(), 1 << 20);
    }

    #[test]
    fn a_stream_that_a_stray_process_holds_is_left_after_the_exit() {
        let (guest, _reader, exited, thread) = output();
        let before = Instant::now();
        exited.write(1).unwrap();
        thread.join().unwrap();
        assert!(before.elapsed() >= SILENCE);
        drop(guest);
    }

    #[test]
    fn a_stream_that_never_ends_is_left_after_the_exit() {
        let (mut guest, mut reader, exited, thread) = output();
        exited.write(1).unwrap();
        let copied = thread::spawn(move || io::copy(&mut reader, &mut io::sink()).unwrap());
        // Ends when the stream is closed from the other side.
        while guest.write_all(&[7; CHUNK]).is_ok() {}
        thread.join().unwrap();
        assert!(copied.join().unwrap() <= MOST_LEFT as u64);
    }

    #[test]
    fn a_stream_that_dribbles_is_left_after_the_exit() {
        let mut rest = Rest::default();
        let turns = (0..100).take_while(|_| !rest.is_over(SILENCE / 2, 1)).count();
        assert_eq!(turns, 30);
    }

    #[test]
    fn a_closed_output_closes_the_stream() {
        let (mut guest, reader, _exited, thread) = output();
        drop(reader);
        guest.write_all(b"x").unwrap();
        thread.join().unwrap();
        assert_eq!(guest.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_non_blocking_output_gets_everything() {
        let (to, mut reader) = UnixStream::pair().unwrap();
        to.set_nonblocking(true).unwrap();
        let writer = thread::spawn(move || write_all(to.as_fd(), &vec![7; 4 << 20]).unwrap());
        let mut text = Vec::new();
        reader.read_to_end(&mut text).unwrap();
        writer.join().unwrap();
        assert_eq!(text.len(), 4 << 20);
    }
}
