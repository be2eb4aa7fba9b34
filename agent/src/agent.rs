//! The event loop, and everything that it looks after.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use nix::sys::epoll::EpollFlags;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use protobuf::Message;

use crate::connection::Connection;
use crate::container::{Container, Name, Reply};
use crate::disk::{Disks, Images};
use crate::exits::Deletion;
use crate::flow::{CHUNK, Flow, Progress};
use crate::journal::Journal;
use crate::pending::Pending;
use crate::poller::{Poller, Source, Watch};
use crate::refusal::Refusal;
use crate::shared::Shared;
use crate::stdio::{Introduction, Newcomer, Unclaimed};
use crate::sys;

/// Clients at a time; each has its buffers.
const MAX_CONNECTIONS: usize = 256;
/// Connections at a time that have not said which stream they are.
const MAX_NEWCOMERS: usize = 1024;

/// What the agent is given to work with.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// Listens for clients of the service.
    pub calls: OwnedFd,
    /// Listens for stdio connections.
    pub streams: OwnedFd,
    /// Whether an accepted connection's peer may talk to the agent.
    pub admit: fn(BorrowedFd<'_>) -> bool,
    /// The root of the cgroup hierarchy.
    pub cgroups: PathBuf,
    /// The agent's own directory.
    pub run: PathBuf,
    /// Where the kernel shows block devices.
    pub block_devices: PathBuf,
}

/// The agent. Its methods stand where their subject is: [`crate::calls`], [`crate::create`], [`crate::exits`].
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) poller: Poller,
    calls: Watch,
    streams: Watch,
    children: Watch,
    devices: Watch,
    admit: fn(BorrowedFd<'_>) -> bool,
    connections: BTreeMap<u64, Connection>,
    newcomers: BTreeMap<u64, Newcomer>,
    pub(crate) unclaimed: Unclaimed,
    flows: BTreeMap<u64, (Flow, Option<Name>)>,
    scratch: Vec<u8>,
    pub(crate) containers: BTreeMap<String, Container>,
    pub(crate) channels: BTreeMap<u64, Name>,
    pub(crate) pids: BTreeMap<i32, Name>,
    /// Processes that serve files, and whose.
    pub(crate) servers: BTreeMap<i32, String>,
    pub(crate) pending: Vec<Pending>,
    pub(crate) deletions: Vec<Deletion>,
    pub(crate) journal: Journal,
    pub(crate) disks: Disks,
    pub(crate) images: Images,
    pub(crate) shared: Shared,
    pub(crate) cgroups: PathBuf,
    /// Over this directory each container's process puts its root together, in a mount namespace of its own.
    pub(crate) stage: PathBuf,
    pub(crate) pid_namespace: OwnedFd,
    /// Somebody has asked for the end.
    pub(crate) is_over: bool,
}

impl Agent {
    pub(crate) fn new(surroundings: Surroundings) -> nix::Result<Self> {
        sys::ignore_broken_pipes();
        // A child in a namespace that others are in is a copy of the agent until it executes.
        sys::forbid_tracing()?;
        let poller = Poller::new()?;
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block()?;
        let children = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let children = children
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| sys::errno(&error))?;
        let stage = surroundings.run.join("stage");
        std::fs::create_dir_all(&stage).map_err(|error| sys::errno(&error))?;
        let pid_namespace = std::fs::File::open("/proc/self/ns/pid").map_err(|error| sys::errno(&error))?;
        let input = EpollFlags::EPOLLIN;
        Ok(Self {
            calls: poller.watch(surroundings.calls, Source::Calls, input)?,
            streams: poller.watch(surroundings.streams, Source::Streams, input)?,
            children: poller.watch(children, Source::Children, input)?,
            devices: poller.watch(Disks::changes()?, Source::Devices, input)?,
            poller,
            admit: surroundings.admit,
            connections: BTreeMap::new(),
            newcomers: BTreeMap::new(),
            unclaimed: Unclaimed::default(),
            flows: BTreeMap::new(),
            scratch: vec![0; CHUNK],
            containers: BTreeMap::new(),
            channels: BTreeMap::new(),
            pids: BTreeMap::new(),
            servers: BTreeMap::new(),
            pending: Vec::new(),
            deletions: Vec::new(),
            journal: Journal::default(),
            disks: Disks::new(surroundings.block_devices),
            images: Images::new(surroundings.run.join("images")),
            shared: Shared::new(surroundings.run.join("shared")),
            cgroups: surroundings.cgroups,
            stage,
            pid_namespace: pid_namespace.into(),
            is_over: false,
        })
    }

    /// Serves until the guest is to be switched off, and switches it off.
    pub(crate) fn run(mut self) -> nix::Result<Infallible> {
        while !self.is_over {
            for (source, events) in self.poller.wait(self.deadline())? {
                self.dispatch(source, events);
            }
            self.on_time(Instant::now());
        }
        self.power_off()
    }

    fn dispatch(&mut self, source: Source, events: EpollFlags) {
        match source {
            Source::Calls => self.accept_client(),
            Source::Streams => self.accept_stream(),
            Source::Children => self.reap(),
            Source::Devices => {
                Disks::drain(&self.devices);
                self.advance_pending();
            }
            Source::Connection(number) => self.on_connection(number, events),
            Source::Newcomer(number) => self.on_newcomer(number),
            Source::FlowFrom(number) => self.on_flow(number, Flow::advance),
            Source::FlowTo(number) => self.on_flow(number, |flow, scratch| flow.on_to(events, scratch)),
            Source::Channel(number) => self.on_channel(number),
            Source::Memory(number) => self.on_memory(number),
            Source::Cgroup(number) => self.on_cgroup(number),
        }
    }

    /// When something's time is up next.
    fn deadline(&self) -> Option<Instant> {
        [
            self.newcomers.values().map(Newcomer::deadline).min(),
            self.unclaimed.deadline(),
            self.pending.iter().map(|pending| pending.deadline).min(),
            self.deletions.iter().map(|deletion| deletion.deadline).min(),
            self.journal.deadline(),
            self.containers
                .values()
                .filter_map(|container| container.freeze.deadline())
                .min(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn on_time(&mut self, now: Instant) {
        self.newcomers.retain(|_, newcomer| newcomer.deadline() > now);
        self.unclaimed.expire(now);
        self.expire_pending(now);
        self.expire_deletions(now);
        self.expire_pauses(now);
        for (reply, answer) in self.journal.answers(now) {
            self.answer(reply, &answer);
        }
    }

    /// The signals' only message is that they have come.
    pub(crate) fn drain_signals(&self) {
        let mut signals = [0; 1024];
        while nix::unistd::read(&self.children, &mut signals).is_ok_and(|count| count == signals.len()) {}
    }

    fn accept_client(&mut self) {
        let Some(socket) = accept(&self.calls, self.admit) else {
            return;
        };
        if self.connections.len() >= MAX_CONNECTIONS {
            return;
        }
        let number = self.poller.number();
        if let Ok(watch) = self
            .poller
            .watch(socket, Source::Connection(number), EpollFlags::EPOLLIN)
        {
            self.connections.insert(number, Connection::new(watch));
        }
    }

    fn accept_stream(&mut self) {
        let Some(socket) = accept(&self.streams, self.admit) else {
            return;
        };
        if self.newcomers.len() >= MAX_NEWCOMERS {
            return;
        }
        let number = self.poller.number();
        if let Ok(watch) = self.poller.watch(socket, Source::Newcomer(number), EpollFlags::EPOLLIN) {
            self.newcomers.insert(number, Newcomer::new(watch, Instant::now()));
            // Most have their token with them.
            self.on_newcomer(number);
        }
    }

    fn on_newcomer(&mut self, number: u64) {
        let Some(newcomer) = self.newcomers.get_mut(&number) else {
            return;
        };
        let introduction = newcomer.listen();
        if matches!(introduction, Introduction::Unfinished) {
            return;
        }
        let newcomer = self.newcomers.remove(&number);
        if let (Introduction::Done(token), Some(newcomer)) = (introduction, newcomer)
            && let Ok(socket) = newcomer.into_socket()
        {
            self.unclaimed.keep(token, socket, Instant::now());
            self.advance_pending();
        }
    }

    fn on_connection(&mut self, number: u64, events: EpollFlags) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        if events.contains(EpollFlags::EPOLLOUT) && connection.send().is_err() {
            return self.hang_up(number);
        }
        let calls = match connection.receive() {
            Ok(calls) => calls,
            Err(_) => return self.hang_up(number),
        };
        for call in calls {
            let reply = Reply {
                connection: number,
                stream: call.stream,
            };
            match self.call(reply, &call.request) {
                Ok(Some(answer)) => self.send(reply, Ok(answer)),
                // It is answered when what it waits for has happened.
                Ok(None) => {}
                Err(refusal) => self.refuse(reply, refusal),
            }
        }
    }

    /// Answers a call, if the client is still there.
    pub(crate) fn answer(&mut self, reply: Reply, answer: &impl Message) {
        self.send(reply, answer.write_to_bytes().map_err(Refusal::Unencodable));
    }

    /// Answers a call with a refusal, if the client is still there.
    pub(crate) fn refuse(&mut self, reply: Reply, refusal: Refusal) {
        self.send(reply, Err(refusal));
    }

    fn send(&mut self, reply: Reply, answer: Result<Vec<u8>, Refusal>) {
        let Some(connection) = self.connections.get_mut(&reply.connection) else {
            return;
        };
        if connection.answer(reply.stream, answer).is_err() {
            self.hang_up(reply.connection);
        }
    }

    /// Forgets a client and the calls for whose answers it was waiting.
    fn hang_up(&mut self, number: u64) {
        self.connections.remove(&number);
        self.journal.forget(number);
        for process in self
            .containers
            .values_mut()
            .flat_map(|container| container.processes.values_mut())
        {
            process.waits.retain(|reply| reply.connection != number);
        }
        self.desert(number);
    }

    /// Lets bytes pass from one descriptor to the other; both are non-blocking. `hangs_up` is the process whose
    /// terminal is lost with the flow.
    pub(crate) fn begin_flow(&mut self, from: OwnedFd, to: OwnedFd, hangs_up: Option<Name>) -> nix::Result<u64> {
        let number = self.poller.number();
        let from = self.poller.watch(from, Source::FlowFrom(number), Flow::FROM)?;
        let to = self.poller.watch(to, Source::FlowTo(number), Flow::TO)?;
        self.flows.insert(number, (Flow::new(from, to), hangs_up));
        Ok(number)
    }

    /// Ends a flow when what has arrived has passed.
    pub(crate) fn close_flow(&mut self, number: u64) {
        self.on_flow(number, Flow::close);
    }

    /// Ends a flow at once.
    pub(crate) fn end_flow(&mut self, number: u64) {
        let Some((_, Some(name))) = self.flows.remove(&number) else {
            return;
        };
        if let Some(process) = self.process_mut(&name) {
            process.terminal = None;
            if let Some(stdin) = process.stdin.take() {
                self.flows.remove(&stdin);
            }
        }
    }

    fn on_flow(&mut self, number: u64, step: impl FnOnce(&mut Flow, &mut [u8]) -> Progress) {
        let Some((flow, _)) = self.flows.get_mut(&number) else {
            return;
        };
        if step(flow, &mut self.scratch) == Progress::Ended {
            self.end_flow(number);
        }
    }
}

/// Takes one connection; the next one is reported by the next wait.
fn accept(listener: &Watch, admit: fn(BorrowedFd<'_>) -> bool) -> Option<OwnedFd> {
    let socket = sys::accept(listener.as_fd()).ok()?;
    admit(socket.as_fd()).then_some(socket)
}
