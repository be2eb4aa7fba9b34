//! Where messages go: to stderr for people, or to the file of `--log` in the form that callers of OCI runtimes read.

use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde_json::json;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::args::Global;

/// The file of `--log`.
static FILE: Mutex<Option<File>> = Mutex::new(None);

/// The form of the messages in the file of `--log`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// `time="..." level=error msg="..."`
    #[default]
    Text,
    /// An object with `level`, `msg` and `time` in each line
    Json,
}

/// Begins to write what `-v`, `--debug` and `HUSK_LOG` ask for; warnings if they say nothing.
pub(crate) fn start(global: &Global) -> Result<()> {
    let default = match global.verbose {
        0 if global.debug => LevelFilter::DEBUG,
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let asked: Option<Targets> = match std::env::var("HUSK_LOG") {
        Ok(filter) if default == LevelFilter::WARN => filter.parse().ok(),
        _ => None,
    };
    let filter = asked.unwrap_or_else(|| Targets::new().with_default(default));
    let subscriber = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer();
    match &global.log {
        None => {
            let lines = lines.with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
            subscriber.with(lines).init();
        }
        Some(path) => {
            *lock() = Some(open(path).with_context(|| format!("the log {} cannot be opened", path.display()))?);
            let lines = lines.with_writer(Destination::now).with_ansi(false);
            subscriber.with(lines.event_format(Shape(global.log_format))).init();
        }
    }
    Ok(())
}

/// A FIFO in its place would block.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o644)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}

/// Whether messages go to a file.
pub(crate) fn has_file() -> bool {
    lock().is_some()
}

/// Goes on with stderr: the file is the caller's, and this process lives on without it.
pub(crate) fn leave_file() {
    lock().take();
}

fn lock() -> MutexGuard<'static, Option<File>> {
    // The file is whole whatever happened to the thread that held it.
    FILE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a message goes.
enum Destination {
    File(File),
    Stderr(io::Stderr),
}

impl Destination {
    fn now() -> Self {
        match lock().as_ref().map(File::try_clone) {
            Some(Ok(file)) => Self::File(file),
            _ => Self::Stderr(io::stderr()),
        }
    }
}

impl io::Write for Destination {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.write(bytes),
            Self::Stderr(stderr) => stderr.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => file.flush(),
            Self::Stderr(stderr) => stderr.flush(),
        }
    }
}

/// Writes a message as the callers of runc expect it.
struct Shape(Format);

impl<S, N> FormatEvent<S, N> for Shape
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut text = Text::default();
        event.record(&mut text);
        let message = text.message + &text.fields;
        writeln!(writer, "{}", line(self.0, *event.metadata().level(), &message))
    }
}

fn line(format: Format, level: Level, message: &str) -> String {
    let time = humantime::format_rfc3339_nanos(SystemTime::now());
    let level = match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    };
    match format {
        Format::Json => json!({"level": level, "msg": message, "time": time.to_string()}).to_string(),
        Format::Text => format!("time=\"{time}\" level={level} msg={message:?}"),
    }
}

/// A message and its fields.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_what_callers_parse() {
        let text = line(Format::Json, Level::ERROR, "a \"quoted\"\nmessage");
        assert_eq!(text.lines().count(), 1);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["level"], "error");
        assert_eq!(value["msg"], "a \"quoted\"\nmessage");
        assert!(value["time"].as_str().unwrap().ends_with('Z'));
        let text = line(Format::Text, Level::WARN, "a \"quoted\"\nmessage");
        assert!(text.starts_with("time=\"2") && text.ends_with(r#"level=warning msg="a \"quoted\"\nmessage""#));
    }
}
