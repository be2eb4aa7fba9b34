//! Messages for containerd's own log.
//!
//! The bundle has a FIFO that containerd reads and copies to its stderr. While containerd is away nobody reads it: what
//! does not fit then is lost, and nothing waits.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

/// The FIFO's name in the bundle.
const NAME: &str = "log";

/// The FIFO, kept open at both ends so that it outlives its reader.
struct Fifo(File);

/// A writer that loses what is not taken.
struct Lossy<'f>(&'f File);

impl Write for Lossy<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A line that is lost is no reason to do anything else.
        let _ = self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'f> MakeWriter<'f> for Fifo {
    type Writer = Lossy<'f>;

    fn make_writer(&'f self) -> Self::Writer {
        Lossy(&self.0)
    }
}

/// Begins to write messages to the FIFO of the bundle; without one they are written nowhere.
pub(crate) fn start(bundle: &Path, debug: bool) {
    let opened = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(bundle.join(NAME));
    let Ok(fifo) = opened else { return };
    let level = match debug {
        true => LevelFilter::DEBUG,
        false => LevelFilter::INFO,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .log_internal_errors(false)
        .with_writer(Fifo(fifo))
        .init();
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
}
