//! `husk logs`: what a detached container has written, and goes on to write.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, bail};
use husk_sandbox::lifecycle::Container;
use husk_sandbox::rundir::{OLD_OUTPUT, OUTPUT, RunRoot, short_path};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::args::{Global, LogsArgs};
use crate::output::Entry;

/// The longest line of the log that is read whole, in bytes: the monitor writes none that is longer.
const MAX_LINE: usize = 1 << 20;

pub(crate) fn logs(global: &Global, args: &LogsArgs) -> Result<u8> {
    let root = RunRoot::open(&global.root())?;
    let container = Container::find(&root, &args.name, global.patience())?;
    let dir = container.found().dir();
    // Before the first look, so that nothing is missed between it and the wait.
    let changes = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).context("files cannot be watched")?;
    let what = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
    changes
        .add_watch(&short_path(dir, "."), what)
        .context("the log cannot be watched")?;
    let mut printer = Printer::new(args);
    let newer = match File::open(short_path(dir, OUTPUT)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!(
                "{} was not started with --detach: its output went to where it was started",
                args.name
            )
        }
        Err(error) => return Err(error).context("the log cannot be read"),
    };
    if let Ok(older) = File::open(short_path(dir, OLD_OUTPUT)) {
        printer.take(&mut BufReader::new(older))?;
    }
    let mut newer = BufReader::new(newer);
    printer.take(&mut newer)?;
    printer.show_tail()?;
    if args.follow
        && let Some(owner) = container.owner(&root)?
    {
        follow(&container, &mut printer, newer, &changes, &owner)?;
    }
    Ok(0)
}

/// Shows what comes until the container has ended.
fn follow(
    container: &Container,
    printer: &mut Printer,
    mut newer: BufReader<File>,
    changes: &Inotify,
    owner: &OwnedFd,
) -> Result<()> {
    loop {
        let mut watched = [
            PollFd::new(changes.as_fd(), PollFlags::POLLIN),
            PollFd::new(owner.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut watched, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("the log cannot be watched"),
        }
        let is_over = watched[1].any().unwrap_or(true);
        // What has changed is seen in the files themselves.
        let _ = changes.read_events();
        printer.take(&mut newer)?;
        if let Ok(file) = File::open(short_path(container.found().dir(), OUTPUT))
            && !is_same(&file, newer.get_ref())?
        {
            // The file has become the older one: its last lines, then the new one's first.
            printer.take(&mut newer)?;
            newer = BufReader::new(file);
            printer.take(&mut newer)?;
        }
        if is_over {
            return Ok(());
        }
    }
}

fn is_same(one: &File, other: &File) -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let (one, other) = (one.metadata()?, other.metadata()?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

/// Prints entries, or keeps the last ones until they are shown.
struct Printer {
    timestamps: bool,
    /// The end of what was read, if only that is to be shown.
    tail: Option<(usize, VecDeque<Vec<u8>>)>,
    /// A line whose end has not been written yet.
    unfinished: Vec<u8>,
    /// Whether the last entries have left a line open on stdout and on stderr.
    is_open: [bool; 2],
}

impl Printer {
    fn new(args: &LogsArgs) -> Self {
        Self {
            timestamps: args.timestamps,
            tail: args.tail.map(|count| (count, VecDeque::new())),
            unfinished: Vec::new(),
            is_open: [false; 2],
        }
    }

    /// Takes all whole lines that there are.
    fn take(&mut self, log: &mut impl BufRead) -> Result<()> {
        loop {
            let read = io::Read::take(&mut *log, MAX_LINE as u64).read_until(b'\n', &mut self.unfinished);
            if read.context("the log cannot be read")? == 0 {
                return Ok(());
            }
            if !self.unfinished.ends_with(b"\n") && self.unfinished.len() < MAX_LINE {
                continue;
            }
            let line = std::mem::take(&mut self.unfinished);
            match &mut self.tail {
                None => self.print(&line)?,
                Some((count, lines)) => {
                    lines.push_back(line);
                    let full = |line: &Vec<u8>| Entry::parse(line).is_some_and(|entry| entry.is_full);
                    while lines.iter().filter(|line| full(line)).count() > *count {
                        lines.pop_front();
                    }
                }
            }
        }
    }

    /// Prints the lines that were kept; from now on all are printed.
    fn show_tail(&mut self) -> Result<()> {
        for line in self.tail.take().into_iter().flat_map(|(_, lines)| lines) {
            self.print(&line)?;
        }
        Ok(())
    }

    fn print(&mut self, line: &[u8]) -> Result<()> {
        let Some(entry) = Entry::parse(line) else {
            return Ok(());
        };
        let is_open = &mut self.is_open[usize::from(entry.is_stderr)];
        let mut text = Vec::new();
        if self.timestamps && !*is_open {
            text.extend_from_slice(entry.time.as_bytes());
            text.push(b' ');
        }
        text.extend_from_slice(entry.text);
        text.extend(entry.is_full.then_some(b'\n'));
        *is_open = !entry.is_full;
        let written = match entry.is_stderr {
            true => io::stderr().write_all(&text),
            false => io::stdout().write_all(&text).and_then(|()| io::stdout().flush()),
        };
        written.context("the log cannot be shown")
    }
}
