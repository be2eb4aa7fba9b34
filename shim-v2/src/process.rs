//! A process of a container, as containerd sees it: its stage and its streams.

use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use husk_sandbox::agent;
use husk_sandbox::guest::ProcessId;
use husk_sandbox::relay::Relay;

use crate::ended::Ended;
use crate::stdio::{Logger, Stdio};

/// How long a deleted process's last output is waited for, as runc's shim does.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

/// How a process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    /// The exit code, or 128 and the signal's number.
    pub(crate) status: u32,
    pub(crate) at: SystemTime,
}

impl Exit {
    /// What is told of a process that has never run.
    pub(crate) fn none() -> Self {
        Self {
            status: 0,
            at: SystemTime::now(),
        }
    }

    /// The end of what goes down with its machine.
    pub(crate) fn killed() -> Self {
        Self {
            status: 137,
            at: SystemTime::now(),
        }
    }
}

/// Where a process is on its way.
#[derive(Debug)]
pub(crate) enum Stage {
    /// Named, and not made yet.
    Added(Box<agent::Process>),
    /// Made, and not executed yet.
    Created,
    /// It is being executed; how it has ended, if it has before that is known.
    Starting(Option<Exit>),
    Running,
    Exited(Exit),
}

/// A process of a container.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) id: ProcessId,
    pub(crate) stdio: Stdio,
    stage: Mutex<Stage>,
    /// Told when the stage is [`Stage::Exited`].
    pub(crate) ended: Ended,
    streams: Mutex<Streams>,
    /// Whether it has to end.
    pub(crate) is_killed: AtomicBool,
    /// Whether it has been deleted. Held meanwhile: a second caller waits, and then finds none.
    pub(crate) is_deleted: Mutex<bool>,
}

/// What copies the streams.
#[derive(Debug, Default)]
struct Streams {
    relay: Option<Relay>,
    logger: Option<Logger>,
    /// No more input, asked for before there was any.
    is_closed: bool,
}

impl Process {
    pub(crate) fn new(id: ProcessId, stdio: Stdio, stage: Stage) -> Self {
        Self {
            id,
            stdio,
            stage: Mutex::new(stage),
            ended: Ended::default(),
            streams: Mutex::default(),
            is_killed: AtomicBool::new(false),
            is_deleted: Mutex::new(false),
        }
    }

    pub(crate) fn stage(&self) -> MutexGuard<'_, Stage> {
        lock(&self.stage)
    }

    /// Says that it has ended; `stage` is its own. Its streams stay, for processes that it has left behind, until it is
    /// deleted.
    pub(crate) fn exit(&self, mut stage: MutexGuard<'_, Stage>, exit: Exit) {
        *stage = Stage::Exited(exit);
        drop(stage);
        self.ended.tell(exit);
    }

    /// Takes over what copies its streams.
    pub(crate) fn carry(&self, relay: Relay, logger: Option<Logger>) {
        let mut streams = lock(&self.streams);
        if streams.is_closed {
            relay.close_stdin();
        }
        (streams.relay, streams.logger) = (Some(relay), logger);
    }

    /// Nothing more comes on its stdin.
    pub(crate) fn close_stdin(&self) {
        let mut streams = lock(&self.streams);
        streams.is_closed = true;
        if let Some(relay) = &streams.relay {
            relay.close_stdin();
        }
    }

    /// It has ended: waits until all of its output is passed on, up to a moment; says whether it is.
    pub(crate) fn is_drained_by(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let streams = lock(&self.streams);
        streams.relay.as_ref().is_none_or(|relay| relay.finish_within(left))
    }

    /// Waits for its last output, for a short time, and until a logging program has it, for a longer one.
    pub(crate) fn finish(&self) {
        let (relay, logger) = {
            let mut streams = lock(&self.streams);
            (streams.relay.take(), streams.logger.take())
        };
        let is_whole = relay.is_none_or(|relay| relay.finish_within(LAST_OUTPUT));
        if !is_whole {
            tracing::info!(
                container = self.id.container,
                exec = self.id.exec,
                "output is left that nobody takes"
            );
        }
        drop(logger);
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these locks guard is whole whatever happened to the thread that held them.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
