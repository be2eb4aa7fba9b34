//! The log of a detached container's output.
//!
//! Each line is `TIME STREAM TAG TEXT`, as Kubernetes' container runtimes write it: the time in RFC 3339, `stdout` or
//! `stderr`, `F` for a line's end and `P` for a part of one. The log is two files of a bounded size: when the newer one
//! is full, it takes the older one's place.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::{Context, Result};
use husk_sandbox::rundir::{OLD_OUTPUT, OUTPUT, short_path};

/// The size of one file in bytes.
const MAX_FILE: u64 = 8 << 20;

/// A log that is being written.
#[derive(Debug)]
pub(crate) struct Log {
    dir: OwnedFd,
    file: File,
    length: u64,
    limit: u64,
}

/// One stream's way into the log.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    log: Arc<Mutex<Log>>,
    stream: &'static str,
}

/// A line of the log, or a part of one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry<'l> {
    pub(crate) time: &'l str,
    pub(crate) is_stderr: bool,
    /// Whether it ends a line.
    pub(crate) is_full: bool,
    pub(crate) text: &'l [u8],
}

impl Log {
    /// Begins a log in a run directory; gives the recorders of stdout and stderr.
    pub(crate) fn begin(dir: OwnedFd) -> Result<[Recorder; 2]> {
        let log = Self::with_limit(dir, MAX_FILE).context("the log cannot be made")?;
        let log = Arc::new(Mutex::new(log));
        Ok(["stdout", "stderr"].map(|stream| Recorder {
            log: Arc::clone(&log),
            stream,
        }))
    }

    fn with_limit(dir: OwnedFd, limit: u64) -> io::Result<Self> {
        Ok(Self {
            file: open(&dir)?,
            dir,
            length: 0,
            limit,
        })
    }

    fn write(&mut self, stream: &str, bytes: &[u8]) -> io::Result<()> {
        let time = humantime::format_rfc3339_nanos(SystemTime::now()).to_string();
        let mut text = Vec::with_capacity(bytes.len() + 64);
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (tag, line) = match line.strip_suffix(b"\n") {
                Some(line) => ("F", line),
                None => ("P", line),
            };
            write!(text, "{time} {stream} {tag} ")?;
            text.extend_from_slice(line);
            text.push(b'\n');
        }
        self.file.write_all(&text)?;
        self.length += text.len() as u64;
        if self.length >= self.limit {
            fs::rename(short_path(&self.dir, OUTPUT), short_path(&self.dir, OLD_OUTPUT))?;
            self.file = open(&self.dir)?;
            self.length = 0;
        }
        Ok(())
    }
}

fn open(dir: &OwnedFd) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(short_path(dir, OUTPUT))
}

/// A log that cannot be written does not stop the container.
impl Write for Recorder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = log.write(self.stream, bytes) {
            tracing::warn!(%error, "a part of the container's output is lost");
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'l> Entry<'l> {
    /// Reads a line of the log; what husk has not written is none.
    pub(crate) fn parse(line: &'l [u8]) -> Option<Self> {
        let mut fields = line.strip_suffix(b"\n")?.splitn(4, |byte| *byte == b' ');
        let mut field = || fields.next();
        let (time, stream, tag, text) = (field()?, field()?, field()?, field()?);
        Some(Self {
            time: std::str::from_utf8(time).ok()?,
            is_stderr: match stream {
                b"stdout" => false,
                b"stderr" => true,
                _ => return None,
            },
            is_full: tag == b"F",
            text,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn log(limit: u64) -> (tempfile::TempDir, Log) {
        let dir = tempfile::tempdir().unwrap();
        let open = File::open(dir.path()).unwrap().into();
        (dir, Log::with_limit(open, limit).unwrap())
    }

    fn read(dir: &tempfile::TempDir, file: &str) -> Vec<u8> {
        let text = fs::read(dir.path().join(file)).unwrap_or_default();
        let mut said = Vec::new();
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            let entry = Entry::parse(line).unwrap();
            said.extend_from_slice(entry.text);
            said.extend(entry.is_full.then_some(b'\n'));
        }
        said
    }

    #[test]
    fn a_full_file_takes_the_older_ones_place() {
        let (dir, mut log) = log(100);
        for number in 0..9 {
            log.write("stdout", format!("{number} {}\n", "x".repeat(40)).as_bytes())
                .unwrap();
        }
        assert!(read(&dir, OUTPUT).starts_with(b"8 ") && read(&dir, OLD_OUTPUT).starts_with(b"6 "));
    }

    #[test]
    fn rubbish_is_no_entry() {
        for line in [
            &b""[..],
            b"\n",
            b"time stdout F text",
            b"time other F text\n",
            b"\xff stdout F x\n",
        ] {
            assert_eq!(Entry::parse(line), None);
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 0..10)) {
            let (dir, mut log) = log(u64::MAX);
            for piece in &pieces {
                log.write("stderr", piece).unwrap();
            }
            prop_assert_eq!(read(&dir, OUTPUT), pieces.concat());
        }
    }
}
