//! What husk-vmm says on stderr: bounded, because a guest can make it say things as often as it likes.

use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// How much is said in a process's life, in bytes.
const LIMIT: usize = 1 << 20;
/// The end of a log that was longer.
const LAST: &str = "the log is full: nothing more is written to it\n";

/// Logs to stderr what `HUSK_LOG` asks for; warnings if it says nothing.
pub(crate) fn start() {
    let asked: Option<Targets> = std::env::var("HUSK_LOG").ok().and_then(|filter| filter.parse().ok());
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(io::stderr().is_terminal())
        .with_writer(Mutex::new(Bounded::new(io::stderr(), LIMIT)));
    tracing_subscriber::registry()
        .with(asked.unwrap_or_else(|| Targets::new().with_default(LevelFilter::WARN)))
        .with(lines)
        .init();
}

/// A writer that takes so much and discards the rest.
struct Bounded<W> {
    to: W,
    /// In bytes; `None` when the end was written.
    left: Option<usize>,
}

impl<W: Write> Bounded<W> {
    const fn new(to: W, limit: usize) -> Self {
        Self { to, left: Some(limit) }
    }
}

impl<W: Write> Write for Bounded<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.left {
            None => return Ok(bytes.len()),
            // The subscriber writes an event at a time: none is cut.
            Some(left) => match left.checked_sub(bytes.len()) {
                Some(left) => {
                    self.left = Some(left);
                    self.to.write_all(bytes)?;
                }
                None => {
                    self.left = None;
                    self.to.write_all(LAST.as_bytes())?;
                }
            },
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_says_so_once_and_no_more() {
        let mut log = Bounded::new(Vec::new(), 10);
        for _ in 0..4 {
            log.write_all(b"event\n").unwrap();
        }
        assert_eq!(String::from_utf8(log.to).unwrap(), format!("event\n{LAST}"));
    }
}
