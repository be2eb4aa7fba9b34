//! Carries the command's streams until it has ended and all its output is on the way.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use xtask_init::channel::{CHUNK, Frame, Stream, WINDOW};

use crate::command::{self, Running};
use crate::link::Link;

/// Bytes for the command that it has not read yet.
#[derive(Default)]
struct Input {
    bytes: VecDeque<u8>,
    ended: bool,
}

struct Output {
    stream: Stream,
    end: Option<OwnedFd>,
    /// Bytes that may still be sent.
    window: usize,
}

struct Relay<'a> {
    link: &'a mut Link,
    pid: Pid,
    stdin: Option<OwnedFd>,
    input: Input,
    outputs: [Output; 2],
    exit_code: Option<i32>,
}

/// Runs until the command has ended, and gives its exit code. What it has left behind is killed: the machine ends.
pub(crate) fn run(link: &mut Link, running: Running) -> Result<i32> {
    let mut child_signal = SigSet::empty();
    child_signal.add(Signal::SIGCHLD);
    child_signal.thread_block().context("blocking SIGCHLD")?;
    let children = SignalFd::with_flags(&child_signal, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC);
    let children = children.context("signalfd")?;
    let output = |stream, end| Output {
        stream,
        end,
        window: WINDOW,
    };
    let mut relay = Relay {
        link,
        pid: running.pid,
        stdin: running.stdin,
        input: Input::default(),
        outputs: [
            output(Stream::Stdout, running.stdout),
            output(Stream::Stderr, running.stderr),
        ],
        exit_code: None,
    };
    // The command may have ended before the signal was blocked.
    relay.reap()?;
    loop {
        if let Some(code) = relay.exit_code
            && relay.outputs.iter().all(|output| output.end.is_none())
        {
            return Ok(code);
        }
        relay.turn(&children)?;
    }
}

impl Relay<'_> {
    /// Waits for anything to happen and deals with it.
    fn turn(&mut self, children: &SignalFd) -> Result<()> {
        let mut on_port = PollFlags::POLLIN;
        on_port.set(PollFlags::POLLOUT, self.link.has_backlog());
        let mut set = vec![
            PollFd::new(self.link.as_fd(), on_port),
            PollFd::new(children.as_fd(), PollFlags::POLLIN),
        ];
        if let Some(stdin) = &self.stdin {
            // Without a wish to write the poll still reports that the command has closed its end.
            let wish = if self.input.bytes.is_empty() {
                PollFlags::empty()
            } else {
                PollFlags::POLLOUT
            };
            set.push(PollFd::new(stdin.as_fd(), wish));
        }
        for output in &self.outputs {
            if let Some(end) = output.end.as_ref().filter(|_| output.window > 0) {
                set.push(PollFd::new(end.as_fd(), PollFlags::POLLIN));
            }
        }
        match poll(&mut set, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
        let child_ended = set[1].any() == Some(true);
        let stdin_ready = self.stdin.is_some() && set[2].any() == Some(true);
        let stdin_gone = stdin_ready
            && set[2]
                .revents()
                .is_some_and(|events| events.contains(PollFlags::POLLERR));
        drop(set);
        if child_ended {
            while children.read_signal().context("reading signals")?.is_some() {}
            self.reap()?;
        }
        while let Some(frame) = self.link.receive()? {
            self.obey(frame)?;
        }
        if stdin_gone {
            self.close_stdin();
        } else if stdin_ready {
            self.feed();
        }
        for index in 0..self.outputs.len() {
            self.forward(index);
        }
        self.link.flush()
    }

    fn obey(&mut self, frame: Frame) -> Result<()> {
        match frame {
            Frame::Data(Stream::Stdin, bytes) => {
                self.input.bytes.extend(bytes);
                self.feed();
            }
            Frame::EndOfInput => {
                self.input.ended = true;
                self.feed();
            }
            Frame::Credit(stream, bytes) => {
                for output in self.outputs.iter_mut().filter(|output| output.stream == stream) {
                    output.window += bytes as usize;
                }
            }
            Frame::Close(stream) => {
                for output in self.outputs.iter_mut().filter(|output| output.stream == stream) {
                    output.end = None;
                }
            }
            Frame::Resize(size) => {
                if let Some(terminal) = &self.stdin {
                    command::resize(terminal, size);
                }
            }
            Frame::Signal(number) => {
                if let Ok(signal) = Signal::try_from(number)
                    && self.exit_code.is_none()
                {
                    // A group that has just ended needs no signal.
                    let _ = kill(Pid::from_raw(-self.pid.as_raw()), signal);
                }
            }
            other => bail!("unexpected frame {other:?}"),
        }
        Ok(())
    }

    /// Gives the command as much of its input as it takes now.
    fn feed(&mut self) {
        let Some(stdin) = &self.stdin else { return };
        let mut passed_on = 0;
        let gone = loop {
            let (piece, _) = self.input.bytes.as_slices();
            if piece.is_empty() {
                break false;
            }
            match nix::unistd::write(stdin, piece) {
                Ok(count) => {
                    self.input.bytes.drain(..count);
                    passed_on += count;
                }
                Err(Errno::EAGAIN) => break false,
                Err(Errno::EINTR) => {}
                Err(_) => break true,
            }
        };
        if let Some(passed_on) = u32::try_from(passed_on).ok().filter(|count| *count > 0) {
            self.link.queue(&Frame::Credit(Stream::Stdin, passed_on));
        }
        if gone {
            self.close_stdin();
        } else if self.input.ended && self.input.bytes.is_empty() {
            self.stdin = None;
        }
    }

    /// The command reads no more: whoever writes to it should learn that.
    fn close_stdin(&mut self) {
        self.stdin = None;
        self.input.bytes.clear();
        self.link.queue(&Frame::Close(Stream::Stdin));
    }

    /// Sends what the command has written, as far as the window allows.
    fn forward(&mut self, index: usize) {
        let output = &mut self.outputs[index];
        let Some(end) = &output.end else { return };
        let mut piece = [0; CHUNK];
        let limit = output.window.min(CHUNK);
        if limit == 0 {
            return;
        }
        match nix::unistd::read(end, &mut piece[..limit]) {
            // A pty's master side reports the end of the last process on it as an I/O error.
            Ok(0) | Err(Errno::EIO) => output.end = None,
            Ok(count) => {
                output.window -= count;
                self.link.queue(&Frame::Data(output.stream, piece[..count].to_vec()));
            }
            Err(_) => {}
        }
    }

    /// Collects every process that has ended. When it is the command, all others are killed.
    fn reap(&mut self) -> Result<()> {
        loop {
            let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(error) => return Err(error).context("waitpid"),
            };
            if pid == self.pid {
                self.exit_code = Some(code);
                // They would keep the pipes open. There are none: no error.
                let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
            }
        }
    }
}
