//! Copies a process's streams: ours to the guest, the guest's to ours.
//!
//! Each direction has a thread, which sleeps until there is something to copy. They end with their streams; when the
//! process has exited ([`Relay::exited`]), a stream that somebody else still holds is given up after a while.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{MsgFlags, send};

use crate::guest::Streams;

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
#[derive(Debug, Default)]
pub struct Ends {
    /// What the process reads, if it is passed on.
    pub stdin: Option<OwnedFd>,
    /// What takes its output, and with a terminal all of it; unset where there is no such stream.
    pub stdout: Option<Sink>,
    /// What takes its errors.
    pub stderr: Option<Sink>,
}

/// Where a process's output goes.
pub enum Sink {
    /// To a descriptor, which may be a non-blocking one.
    Descriptor(OwnedFd),
    /// To whatever takes bytes; an error ends the stream.
    Writer(Box<dyn Write + Send>),
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Descriptor(to) => f.debug_tuple("Descriptor").field(to).finish(),
            Self::Writer(_) => f.write_str("Writer"),
        }
    }
}

impl Ends {
    /// This process's own streams.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn standard(forward_stdin: bool) -> io::Result<Self> {
        let copy = |fd: BorrowedFd<'_>| fd.try_clone_to_owned();
        Ok(Self {
            stdin: match forward_stdin {
                true => Some(copy(io::stdin().as_fd())?),
                false => None,
            },
            stdout: Some(Sink::Descriptor(copy(io::stdout().as_fd())?)),
            stderr: Some(Sink::Descriptor(copy(io::stderr().as_fd())?)),
        })
    }
}

impl Sink {
    /// Writes everything, unless it is given up meanwhile.
    fn write_all(&mut self, bytes: &[u8], given_up: &EventFd) -> io::Result<()> {
        match self {
            Self::Descriptor(to) => Ok(write_unless(to.as_fd(), bytes, Some(given_up), write)?),
            Self::Writer(writer) => writer.write_all(bytes),
        }
    }
}

/// The copying threads.
#[derive(Debug)]
pub struct Relay {
    outputs: Arc<Outputs>,
    exited: Arc<EventFd>,
    no_more_input: Arc<EventFd>,
    /// Raised when nobody waits for the output any more.
    given_up: Arc<EventFd>,
}

/// How many outputs are still copied.
#[derive(Debug, Default)]
struct Outputs {
    open: Mutex<usize>,
    ended: Condvar,
}

/// Ends an output when it is dropped, also where its thread panics.
struct Output(Arc<Outputs>);

impl Drop for Output {
    fn drop(&mut self) {
        *self.0.open.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.ended.notify_all();
    }
}

impl Relay {
    /// Begins to copy between a process's streams and ours.
    ///
    /// # Errors
    /// No descriptor is left, or a thread cannot be started.
    pub fn start(streams: Streams, terminal: bool, ends: Ends) -> io::Result<Self> {
        let event = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map(Arc::new);
        let relay = Self {
            outputs: Arc::default(),
            exited: event()?,
            no_more_input: event()?,
            given_up: event()?,
        };
        let Streams { stdin, stdout, stderr } = streams;
        if terminal {
            let stream = stdin.ok_or_else(|| io::Error::other("the terminal has no stream"))?;
            if let Some(to) = ends.stdout {
                relay.output(stream.try_clone()?, to)?;
            }
            if let Some(from) = ends.stdin {
                relay.input(from, stream)?;
            }
            return Ok(relay);
        }
        for (stream, to) in [(stdout, ends.stdout), (stderr, ends.stderr)] {
            if let Some((stream, to)) = stream.zip(to) {
                relay.output(stream, to)?;
            }
        }
        if let Some((stream, from)) = stdin.zip(ends.stdin) {
            relay.input(from, stream)?;
        }
        Ok(relay)
    }

    fn output(&self, from: UnixStream, mut to: Sink) -> io::Result<()> {
        let (exited, given_up) = (Arc::clone(&self.exited), Arc::clone(&self.given_up));
        *self.lock_open() += 1;
        let output = Output(Arc::clone(&self.outputs));
        let copy = move || {
            copy_output(from, &mut to, &exited, &given_up);
            // Our end is closed before the output counts as ended.
            drop(to);
            drop(output);
        };
        thread::Builder::new().name("output".into()).spawn(copy).map(drop)
    }

    fn input(&self, from: OwnedFd, to: UnixStream) -> io::Result<()> {
        let (over, exited) = (Arc::clone(&self.no_more_input), Arc::clone(&self.exited));
        let copy = move || copy_input(File::from(from), &to, &over, &exited);
        thread::Builder::new().name("input".into()).spawn(copy).map(drop)
    }

    /// Nothing more comes for the process: what has come is passed on, and then its stdin ends, though others may hold
    /// our end open.
    pub fn close_stdin(&self) {
        // An event that cannot be raised has been raised before.
        let _ = self.no_more_input.write(1);
    }

    /// The process has exited: its outputs end when all that it wrote is copied.
    pub fn exited(&self) {
        let _ = self.exited.write(1);
    }

    /// The process has exited: waits until all that it wrote is copied, however long our own ends take for it.
    pub fn finish(&self) {
        self.exited();
        let mut open = self.lock_open();
        while *open > 0 {
            open = self.outputs.ended.wait(open).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The same for a limited time; says whether all is copied.
    pub fn finish_within(&self, limit: Duration) -> bool {
        self.exited();
        let wait = self
            .outputs
            .ended
            .wait_timeout_while(self.lock_open(), limit, |open| *open > 0);
        *wait.unwrap_or_else(PoisonError::into_inner).0 == 0
    }

    fn lock_open(&self) -> std::sync::MutexGuard<'_, usize> {
        self.outputs.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Relay {
    /// Output that is not taken by now stays where it is, and nobody waits for its readers, nor for input.
    fn drop(&mut self) {
        self.exited();
        let _ = self.given_up.write(1);
    }
}

/// Copies until the stream ends, nothing more is to come, or the process has exited.
fn copy_input(mut from: File, to: &UnixStream, over: &EventFd, exited: &EventFd) {
    let mut chunk = vec![0; CHUNK];
    while let Ok(is_over) = wait_for_input(&from, over, exited) {
        match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => {
                // A guest that takes nothing holds this thread no longer than it has the process.
                let send = |to: BorrowedFd<'_>, bytes: &[u8]| send(to.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT);
                if write_unless(to.as_fd(), &chunk[..count], Some(exited), send).is_err() {
                    // The process reads no more.
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if is_over {
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

/// Waits until there is something to read, or nothing more is to come, which the result tells; an error if the process has
/// exited.
fn wait_for_input(from: &File, over: &EventFd, exited: &EventFd) -> nix::Result<bool> {
    let watch = |event| PollFd::new(event, PollFlags::POLLIN);
    loop {
        let mut watched = [watch(from.as_fd()), watch(over.as_fd()), watch(exited.as_fd())];
        match poll(&mut watched, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno),
        }
        let [from, over, exited] = watched.map(|watched| watched.any().unwrap_or(true));
        match (from || over, exited) {
            (_, true) => return Err(Errno::ECHILD),
            (true, false) => return Ok(over),
            (false, false) => {}
        }
    }
}

/// Copies until the stream ends, or after its process's exit is silent or goes on for too long. When our own end cannot
/// be written to, the stream is closed, so that the process learns of it as it would of a closed pipe.
fn copy_output(mut from: UnixStream, to: &mut Sink, exited: &EventFd, given_up: &EventFd) {
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
        if over || to.write_all(&chunk[..count], given_up).is_err() {
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
///
/// # Errors
/// As write(2).
pub fn write_all(to: BorrowedFd<'_>, bytes: &[u8]) -> nix::Result<()> {
    write_unless(to, bytes, None, write)
}

fn write(to: BorrowedFd<'_>, bytes: &[u8]) -> nix::Result<usize> {
    nix::unistd::write(to, bytes)
}

/// Writes everything by calls that may say that they would block; an error if the event comes first.
fn write_unless(
    to: BorrowedFd<'_>,
    mut bytes: &[u8],
    event: Option<&EventFd>,
    write: impl Fn(BorrowedFd<'_>, &[u8]) -> nix::Result<usize>,
) -> nix::Result<()> {
    while !bytes.is_empty() {
        match write(to, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::EAGAIN) => {
                let mut watched = vec![PollFd::new(to, PollFlags::POLLOUT)];
                watched.extend(event.map(|event| PollFd::new(event.as_fd(), PollFlags::POLLIN)));
                match poll(&mut watched, PollTimeout::NONE) {
                    Ok(_) if watched.get(1).is_some_and(|event| event.any().unwrap_or(true)) => {
                        return Err(Errno::ECANCELED);
                    }
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(errno) => return Err(errno),
                }
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output() -> (UnixStream, UnixStream, Arc<EventFd>, thread::JoinHandle<()>) {
        let (guest, from) = UnixStream::pair().unwrap();
        let (to, reader) = UnixStream::pair().unwrap();
        let exited = Arc::new(EventFd::new().unwrap());
        let (event, never) = (Arc::clone(&exited), EventFd::new().unwrap());
        let thread = thread::spawn(move || copy_output(from, &mut Sink::Descriptor(to.into()), &event, &never));
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
    fn a_relay_that_goes_waits_for_no_reader() {
        let pair = || UnixStream::pair().unwrap();
        let ((mut guest_writes, stdout), (guest, stdin)) = (pair(), pair());
        let ((to, _reader), (from, mut writes)) = (pair(), pair());
        to.set_nonblocking(true).unwrap();
        let streams = Streams {
            stdin: Some(stdin),
            stdout: Some(stdout),
            stderr: None,
        };
        let ends = Ends {
            stdin: Some(from.into()),
            stdout: Some(Sink::Descriptor(to.into())),
            stderr: None,
        };
        let relay = Relay::start(streams, false, ends).unwrap();
        let much = || vec![7; 16 << 20];
        let output = thread::spawn(move || guest_writes.write_all(&much()).unwrap_err());
        let input = thread::spawn(move || writes.write_all(&much()).unwrap_err());
        assert!(!relay.finish_within(Duration::from_millis(100)));
        assert!(!output.is_finished(), "the output's reader is waited for");
        drop(relay);
        for ended in [output, input] {
            assert_eq!(ended.join().unwrap().kind(), io::ErrorKind::BrokenPipe);
        }
        drop(guest);
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
