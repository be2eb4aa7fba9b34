//! This side of the channel: the caller's streams and signals, until the command's exit code arrives.
//!
//! One thread a blocking file (the channel, stdin, stdout, stderr, the signals) turns what happens into an [`Event`];
//! [`Session::run`] alone decides.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use xtask_init::channel::{CHUNK, Decoder, Frame, Start, Stream, WINDOW};

use crate::host::machine::Machine;
use crate::host::terminal;

/// Passed on to the command; a second SIGINT, SIGTERM or SIGQUIT ends the machine.
const FORWARDED: &[Signal] = &[
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGQUIT,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// How the session ended.
pub(crate) enum End {
    /// The command's exit code.
    Exit(i32),
    /// The machine did not come so far, or broke: why.
    Failed(String),
    /// The time given was over.
    TimedOut,
    /// The caller ended it with this signal.
    Interrupted(Signal),
}

enum Event {
    Frame(Frame),
    ChannelClosed(String),
    Signal(Signal),
    /// The caller reads this output no more.
    OutputClosed(Stream),
    /// One output's thread has written all, or has given up.
    OutputDone,
}

/// Bytes of stdin that may be sent.
#[derive(Default)]
struct InputWindow {
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

/// The writing half of the channel, for several threads.
#[derive(Clone)]
struct Outgoing(Arc<Mutex<UnixStream>>);

/// A running session.
pub(crate) struct Session {
    events: Receiver<Event>,
    outgoing: Outgoing,
    input: Arc<InputWindow>,
    outputs: [Option<Sender<Vec<u8>>>; 2],
    terminal: bool,
    /// Outputs that still have a thread to write them.
    writing: usize,
    started: bool,
    interrupted: bool,
}

/// Blocks the signals that a session deals with. Before any thread or child is started.
pub(crate) fn block_signals() -> Result<()> {
    signals().thread_block().context("blocking signals")
}

fn signals() -> SigSet {
    let mut set = SigSet::empty();
    FORWARDED
        .iter()
        .chain(&[Signal::SIGWINCH, Signal::SIGCHLD])
        .for_each(|signal| set.add(*signal));
    set
}

impl Session {
    /// Starts the threads and sends the first frame.
    pub(crate) fn start(channel_socket: UnixStream, start: Start) -> Result<Self> {
        let (events, receiver) = channel();
        let reading = channel_socket.try_clone().context("duplicating the channel's socket")?;
        let outgoing = Outgoing(Arc::new(Mutex::new(channel_socket)));
        let terminal = start.terminal.is_some();
        let sender = events.clone();
        thread::spawn(move || read_frames(reading, &sender));
        let sender = events.clone();
        thread::spawn(move || {
            while let Ok(signal) = signals().wait() {
                if sender.send(Event::Signal(signal)).is_err() {
                    return;
                }
            }
        });
        let input = Arc::new(InputWindow {
            state: Mutex::new((WINDOW, false)),
            changed: Condvar::new(),
        });
        let outputs = [
            spawn_output(Stream::Stdout, std::io::stdout(), outgoing.clone(), events.clone()),
            spawn_output(Stream::Stderr, std::io::stderr(), outgoing.clone(), events),
        ];
        outgoing.send(&Frame::Start(start));
        Ok(Self {
            events: receiver,
            outgoing,
            input,
            outputs: outputs.map(Some),
            terminal,
            writing: 2,
            started: false,
            interrupted: false,
        })
    }

    /// Runs until the command has ended and its output is written, or until something breaks.
    pub(crate) fn run(mut self, machine: &mut Machine, boot_limit: Duration, limit: Option<Duration>) -> End {
        let now = Instant::now();
        let end = limit.map(|limit| now + limit);
        let boot_end = now + boot_limit;
        loop {
            let deadline = if self.started {
                end
            } else {
                Some(end.map_or(boot_end, |end| end.min(boot_end)))
            };
            let event = match self.next_event(deadline) {
                Some(event) => event,
                None if end.is_some_and(|end| Instant::now() >= end) => return End::TimedOut,
                None => return End::Failed(format!("it was not up after {} s", boot_limit.as_secs())),
            };
            match event {
                Event::Frame(Frame::Exit(code)) => return self.finish(code, end),
                Event::Frame(Frame::Failed(reason)) => return End::Failed(reason),
                Event::Frame(frame) => self.obey(frame),
                Event::ChannelClosed(reason) => {
                    return End::Failed(machine.ended().unwrap_or(reason));
                }
                Event::Signal(Signal::SIGCHLD) => {
                    if let Some(ended) = machine.ended() {
                        return End::Failed(ended);
                    }
                }
                Event::Signal(signal) => {
                    if let Some(end) = self.signalled(signal) {
                        return end;
                    }
                }
                Event::OutputClosed(stream) => self.outgoing.send(&Frame::Close(stream)),
                Event::OutputDone => self.writing -= 1,
            }
        }
    }

    fn next_event(&self, deadline: Option<Instant>) -> Option<Event> {
        let Some(deadline) = deadline else {
            return self.events.recv().ok();
        };
        self.events
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            .ok()
    }

    fn obey(&mut self, frame: Frame) {
        match frame {
            Frame::Started => {
                self.started = true;
                let (input, outgoing) = (self.input.clone(), self.outgoing.clone());
                thread::spawn(move || send_input(&input, &outgoing));
            }
            Frame::Data(stream, bytes) => {
                let output = &self.outputs[usize::from(stream == Stream::Stderr)];
                if let Some(output) = output {
                    // The thread of a closed output has ended; what still arrives for it is lost as it should be.
                    let _ = output.send(bytes);
                }
            }
            Frame::Credit(_, bytes) => self.input.change(|(window, _)| *window += bytes as usize),
            Frame::Close(_) => self.input.change(|(_, closed)| *closed = true),
            // Booted is for the console's reader; the others go the other way.
            _ => {}
        }
    }

    fn signalled(&mut self, signal: Signal) -> Option<End> {
        let ends = matches!(signal, Signal::SIGINT | Signal::SIGTERM | Signal::SIGQUIT);
        if signal == Signal::SIGWINCH {
            if self.terminal {
                self.outgoing
                    .send(&Frame::Resize(terminal::window_size(std::io::stdin())));
            }
        } else if !self.started || signal == Signal::SIGHUP || (ends && self.interrupted) {
            return Some(End::Interrupted(signal));
        } else {
            self.interrupted |= ends;
            self.outgoing.send(&Frame::Signal(signal as i32));
        }
        None
    }

    /// The command has ended: what it wrote last is written before its exit code is given.
    fn finish(mut self, code: i32, end: Option<Instant>) -> End {
        self.outputs = [None, None];
        while self.writing > 0 {
            match self.next_event(end) {
                Some(Event::OutputDone) => self.writing -= 1,
                Some(Event::Signal(signal)) if FORWARDED.contains(&signal) => return End::Interrupted(signal),
                Some(_) => {}
                None => return End::TimedOut,
            }
        }
        End::Exit(code)
    }
}

impl Outgoing {
    /// Sends a frame. When the machine has gone, the reading half reports it.
    fn send(&self, frame: &Frame) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        let mut socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if socket.write_all(&bytes).is_err() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl InputWindow {
    fn change(&self, change: impl FnOnce(&mut (usize, bool))) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
    }

    /// Waits until something may be sent, and gives how much. None: the command has closed its stdin.
    fn wait(&self) -> Option<usize> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = |state: &mut (usize, bool)| state.0 == 0 && !state.1;
        let state = self
            .changed
            .wait_while(state, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        (!state.1).then_some(state.0)
    }
}

fn read_frames(mut socket: UnixStream, events: &Sender<Event>) {
    let mut decoder = Decoder::default();
    let mut piece = vec![0; 256 * 1024];
    let reason = loop {
        let count = match socket.read(&mut piece) {
            Ok(0) => break "its channel was closed: the kernel has stopped".to_owned(),
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => break format!("its channel broke: {error}"),
        };
        decoder.push(&piece[..count]);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    if events.send(Event::Frame(frame)).is_err() {
                        return;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    let _ = events.send(Event::ChannelClosed(format!("its channel carried a {error}")));
                    return;
                }
            }
        }
    };
    // The session may have ended.
    let _ = events.send(Event::ChannelClosed(reason));
}

fn send_input(window: &InputWindow, outgoing: &Outgoing) {
    let mut piece = vec![0; CHUNK];
    while let Some(allowed) = window.wait() {
        let limit = allowed.min(piece.len());
        match nix::unistd::read(std::io::stdin(), &mut piece[..limit]) {
            Err(Errno::EAGAIN) => wait_for(std::io::stdin(), PollFlags::POLLIN),
            Err(Errno::EINTR) => {}
            Ok(0) | Err(_) => break,
            Ok(count) => {
                window.change(|(window, _)| *window -= count);
                outgoing.send(&Frame::Data(Stream::Stdin, piece[..count].to_vec()));
            }
        }
    }
    outgoing.send(&Frame::EndOfInput);
}

/// Starts a thread that writes one output and gives credit for what is written.
fn spawn_output(
    stream: Stream,
    file: impl AsFd + Send + 'static,
    outgoing: Outgoing,
    events: Sender<Event>,
) -> Sender<Vec<u8>> {
    let (sender, pieces) = channel::<Vec<u8>>();
    thread::spawn(move || {
        for piece in pieces {
            if write_all(&file, &piece).is_err() {
                let _ = events.send(Event::OutputClosed(stream));
                break;
            }
            outgoing.send(&Frame::Credit(stream, u32::try_from(piece.len()).unwrap_or(u32::MAX)));
        }
        // The session may have ended.
        let _ = events.send(Event::OutputDone);
    });
    sender
}

fn write_all(file: impl AsFd, mut bytes: &[u8]) -> nix::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(&file, bytes) {
            Ok(count) => bytes = &bytes[count..],
            // Whoever gave us the file may have made it non-blocking.
            Err(Errno::EAGAIN) => wait_for(&file, PollFlags::POLLOUT),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn wait_for(file: impl AsFd, event: PollFlags) {
    // The read or write that follows meets whatever is wrong with the file.
    let _ = poll(&mut [PollFd::new(file.as_fd(), event)], PollTimeout::NONE);
}
