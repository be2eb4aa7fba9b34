//! Being attached to a process in a guest: signals go to it, its exit code comes back.
//!
//! The work that may block is done in a thread of its own; the main thread hears signals and the work's end, whichever
//! comes first, so that an interrupt ends husk whatever the guest does.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use husk_sandbox::guest::{Guest, ProcessId};
use signal_hook::iterator::Signals;

use crate::signals::FORWARDED;
use crate::terminal;

/// So many interrupts and requests to end are the end of husk, whatever the container does with them.
const REQUESTS: u32 = 3;
/// How long a container has to end when its terminal is gone.
const HANG_UP: Duration = Duration::from_secs(10);

/// What the main thread hears.
enum Event {
    Signal(i32),
    /// The process executes.
    Started(Target),
    Done(Result<u8>),
}

/// A process that signals can be sent to.
pub(crate) struct Target {
    pub(crate) guest: Arc<Guest>,
    pub(crate) process: ProcessId,
    pub(crate) terminal: bool,
}

/// Hears signals from its beginning on.
pub(crate) struct Session {
    sender: Sender<Event>,
    receiver: Receiver<Event>,
}

/// The working thread's way to say how far it is.
pub(crate) struct Progress(Sender<Event>);

impl Progress {
    /// The process executes: from now on signals are for it.
    pub(crate) fn started(&self, target: Target) {
        // Nobody listens any more when a signal has ended everything.
        let _ = self.0.send(Event::Started(target));
    }
}

impl Session {
    /// Begins to hear signals.
    pub(crate) fn begin() -> Result<Self> {
        let (sender, receiver) = mpsc::channel();
        let mut signals = Signals::new(FORWARDED.iter().chain(&[libc::SIGWINCH])).context("signals cannot be heard")?;
        let events = sender.clone();
        thread::Builder::new().name("signals".into()).spawn(move || {
            for signal in signals.forever() {
                if events.send(Event::Signal(signal)).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { sender, receiver })
    }

    /// Does the work in another thread; gives its exit code, or that of the signal which ends it.
    pub(crate) fn drive(self, work: impl FnOnce(&Progress) -> Result<u8> + Send + 'static) -> Result<u8> {
        let progress = Progress(self.sender);
        thread::Builder::new().name("work".into()).spawn(move || {
            let result = work(&progress);
            // Nobody listens any more when a signal has ended everything.
            let _ = progress.0.send(Event::Done(result));
        })?;
        let mut ends = Ends {
            had_terminal: terminal::controls(),
            ..Ends::default()
        };
        let mut forwarder = None;
        loop {
            match ends.next(&self.receiver)? {
                Some(Event::Started(target)) => forwarder = Some(forward(target)?),
                Some(Event::Done(result)) => return result,
                Some(Event::Signal(signal)) => {
                    if let Some(code) = ends.hear(signal, forwarder.is_some()) {
                        return Ok(code);
                    }
                    if let Some(forwarder) = &forwarder {
                        // It ends with its target, whose end is the next event.
                        let _ = forwarder.send(signal);
                    }
                }
                None => return Ok(exit_code(libc::SIGHUP)),
            }
        }
    }
}

/// When signals end husk itself.
#[derive(Default)]
struct Ends {
    /// Whether husk was started from a terminal.
    had_terminal: bool,
    requests: u32,
    deadline: Option<Instant>,
}

impl Ends {
    /// The next event; `None` when the time after a hang-up is over.
    fn next(&self, events: &Receiver<Event>) -> Result<Option<Event>> {
        let Some(deadline) = self.deadline else {
            return Ok(Some(events.recv()?));
        };
        match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(event) => Ok(Some(event)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("the working thread has ended without a result"),
        }
    }

    /// The exit code if this signal is the end. Before the process executes any is.
    fn hear(&mut self, signal: i32, started: bool) -> Option<u8> {
        match signal {
            libc::SIGWINCH => return None,
            _ if !started => return Some(exit_code(signal)),
            libc::SIGINT | libc::SIGTERM => self.requests += 1,
            // Without a terminal it asks daemons to read their configuration anew.
            libc::SIGHUP if self.had_terminal && !terminal::controls() => {
                self.deadline = self.deadline.or(Some(Instant::now() + HANG_UP));
            }
            _ => {}
        }
        (self.requests >= REQUESTS).then(|| exit_code(signal))
    }
}

/// Passes signals on, one after the other.
fn forward(target: Target) -> Result<Sender<i32>> {
    let (sender, receiver) = mpsc::channel();
    let Target {
        guest,
        process,
        terminal,
    } = target;
    let pass_on = move || {
        for signal in receiver {
            let result = match signal {
                libc::SIGWINCH => match terminal::window() {
                    Some(window) if terminal => guest.resize(&process, window),
                    _ => Ok(()),
                },
                signal => guest.kill(&process, signal.unsigned_abs(), false),
            };
            if let Err(error) = result {
                tracing::debug!(%error, signal, "the signal is not passed on");
            }
        }
    };
    thread::Builder::new().name("forwarder".into()).spawn(pass_on)?;
    Ok(sender)
}

/// The exit code for a signal.
fn exit_code(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// The exit code that the guest reports, which is 255 at most.
pub(crate) fn status(status: u32) -> u8 {
    u8::try_from(status).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_the_start_a_signal_is_the_end() {
        let mut ends = Ends::default();
        assert_eq!(ends.hear(libc::SIGWINCH, false), None);
        assert_eq!(ends.hear(libc::SIGTERM, false), Some(143));
    }

    #[test]
    fn after_the_start_the_third_interrupt_is() {
        let mut ends = Ends::default();
        assert_eq!(ends.hear(libc::SIGINT, true), None);
        assert_eq!(ends.hear(libc::SIGUSR1, true), None);
        assert_eq!(ends.hear(libc::SIGINT, true), None);
        assert_eq!(ends.hear(libc::SIGINT, true), Some(130));
    }

    #[test]
    fn a_hang_up_leaves_a_while() {
        let mut ends = Ends::default();
        assert_eq!(ends.hear(libc::SIGHUP, true), None);
        assert!(ends.deadline.is_none(), "there was no terminal to be lost");
        ends.had_terminal = !terminal::controls();
        assert_eq!(ends.hear(libc::SIGHUP, true), None);
        assert_eq!(ends.deadline.is_some(), ends.had_terminal);
        ends.deadline = Some(Instant::now());
        let (_sender, receiver) = mpsc::channel();
        assert!(ends.next(&receiver).unwrap().is_none());
    }
}
