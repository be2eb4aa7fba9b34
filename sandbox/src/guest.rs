//! The agent's client: containers and their processes in a running guest.

mod streams;

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use husk_protocol::AGENT_PORT;
use husk_protocol::agent::{
    self, CloseStdinRequest, CreateRequest, CreateResponse, DeleteRequest, DeleteResponse, Empty, EventsRequest,
    EventsResponse, ExecRequest, ExecResponse, Failure, KillRequest, PauseRequest, ProcessInfo, ProcessesRequest,
    ProcessesResponse, ResizeRequest, ResumeRequest, StartRequest, StartResponse, StateRequest, StateResponse,
    StatsRequest, StatsResponse, UpdateRequest, WaitRequest, WaitResponse, WindowSize, failure,
};
use protobuf::Message;
use thiserror::Error;
use ttrpc::Code;

use crate::bundle::BundleError;
use crate::bundle::resources::Update;
use crate::machine::{Link, LinkError};
pub use crate::rpc::Breach;
use crate::rpc::{Rpc, RpcError, readable};
pub use streams::{Streams, Wanted};

/// The agent's service (`protocol/proto/agent.proto`).
const SERVICE: &str = "husk.agent.v1.Agent";
/// How long a call for events is waited for, which the agent answers after a minute at the latest.
const EVENTS_LIMIT: Duration = Duration::from_secs(120);
/// How long a call for events is not answered without any: an agent that did would keep the host busy.
const EVENTS_LEAST: Duration = Duration::from_secs(1);

/// The agent of a running guest.
#[derive(Debug)]
pub struct Guest {
    link: Link,
    agent: Rpc,
}

/// A process in the guest: one of a container's, the first one if `exec` is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessId {
    /// The container's name.
    pub container: String,
    /// The further process's name.
    pub exec: String,
}

/// Why the guest did not do what it was asked.
///
/// Where the rules of the life cycle forbid it (OCI runtime specification, runtime.md, "Operations"), the reason is
/// [`Absent`](Self::Absent), [`Exists`](Self::Exists) or [`State`](Self::State), and nothing has changed.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum GuestError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("{0}")]
    CommandNotFound(String),
    #[error("{0}")]
    CommandNotExecutable(String),
    #[error("{0}")]
    Process(String),
    #[error("{0}")]
    Absent(String),
    #[error("{0}")]
    Exists(String),
    #[error("{0}")]
    State(String),
    #[error("{0}")]
    Invalid(String),
    #[error("the guest refuses: {message}")]
    Refused { code: Code, message: String },
    #[error(transparent)]
    Update(#[from] BundleError),
    #[error("the guest has not answered within {} seconds", .0.as_secs())]
    Timeout(Duration),
    #[error("the guest's agent has closed its connection")]
    Lost,
    #[error("the guest's agent does not keep to the protocol: {0}")]
    Breach(Breach),
    #[error("no random token can be made for a stream")]
    Token(#[source] io::Error),
}

impl GuestError {
    fn from_call(error: RpcError, limit: Duration) -> Self {
        match error {
            RpcError::Status { code, message } => match code {
                Code::NOT_FOUND => Self::Absent(message),
                Code::ALREADY_EXISTS => Self::Exists(message),
                Code::FAILED_PRECONDITION => Self::State(message),
                Code::INVALID_ARGUMENT => Self::Invalid(message),
                code => Self::Refused { code, message },
            },
            RpcError::Timeout => Self::Timeout(limit),
            RpcError::Closed => Self::Lost,
            RpcError::Breach(breach) => Self::Breach(breach),
        }
    }

    /// Whether the machine's end may be the reason.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost | Self::Link(LinkError::Ended | LinkError::Refused(_)))
    }
}

/// The longest that hooks of the guest may take.
pub(crate) fn time_of(hooks: Option<&agent::Hooks>) -> Duration {
    let hooks = hooks.into_iter().flat_map(|hooks| &hooks.hooks);
    hooks.map(|hook| Duration::from_secs(hook.timeout_s.into())).sum()
}

/// What a person chose wrongly, if anything.
fn check(failure: Option<&Failure>) -> Result<(), GuestError> {
    let Some(failure) = failure else { return Ok(()) };
    let message = readable(&failure.message);
    Err(match failure.kind.enum_value_or_default() {
        failure::Kind::COMMAND_NOT_FOUND => GuestError::CommandNotFound(message),
        failure::Kind::COMMAND_NOT_EXECUTABLE => GuestError::CommandNotExecutable(message),
        failure::Kind::OTHER => GuestError::Process(message),
    })
}

impl Guest {
    /// Connects to the agent.
    ///
    /// # Errors
    /// The machine has ended or the agent does not listen.
    pub fn connect(link: Link) -> Result<Self, GuestError> {
        let stream = link.connect(AGENT_PORT)?;
        let agent = Rpc::new(SERVICE, stream, link.patience()).map_err(|source| LinkError::Socket {
            socket: "vsock",
            source,
        })?;
        Ok(Self { link, agent })
    }

    /// The way to the machine.
    #[must_use]
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Builds a container up to the point before its first process executes; gives that process's id.
    ///
    /// # Errors
    /// The container cannot be made, or the guest does not answer.
    pub fn create(&self, request: &CreateRequest) -> Result<u32, GuestError> {
        // The hooks' time comes on top.
        let limit = self.link.patience() + time_of(request.create_hooks.as_ref());
        let response: CreateResponse = self.call_within("Create", request, limit)?;
        check(response.failure.as_ref())?;
        Ok(response.pid)
    }

    /// Adds a process to a container, up to the point before it executes; gives its id.
    ///
    /// # Errors
    /// The process cannot be made, or the guest does not answer.
    pub fn exec(&self, request: &ExecRequest) -> Result<u32, GuestError> {
        let response: ExecResponse = self.call("Exec", request)?;
        check(response.failure.as_ref())?;
        Ok(response.pid)
    }

    /// Lets a process execute; gives the guest's time of it in nanoseconds.
    ///
    /// # Errors
    /// The command cannot be executed, or the guest does not answer.
    pub fn start(&self, process: &ProcessId) -> Result<u64, GuestError> {
        self.start_with_hooks(process, Duration::ZERO)
    }

    /// The same, where hooks of the guest may take this time before.
    ///
    /// # Errors
    /// The command cannot be executed, or the guest does not answer.
    pub fn start_with_hooks(&self, process: &ProcessId, hooks: Duration) -> Result<u64, GuestError> {
        let request = StartRequest {
            container: process.container.clone(),
            exec: process.exec.clone(),
            ..Default::default()
        };
        let limit = self.link.patience() + hooks;
        let response: StartResponse = self.call_within("Start", &request, limit)?;
        check(response.failure.as_ref())?;
        Ok(response.started_ns)
    }

    /// Waits until a process has exited, however long that takes.
    ///
    /// # Errors
    /// The machine has ended, or there is no such process.
    pub fn wait(&self, process: &ProcessId) -> Result<WaitResponse, GuestError> {
        let request = WaitRequest {
            container: process.container.clone(),
            exec: process.exec.clone(),
            ..Default::default()
        };
        self.agent
            .call("Wait", &request, None)
            .map_err(|error| GuestError::from_call(error, Duration::MAX))
    }

    /// Sends a signal to a process, or to all of the container's.
    ///
    /// # Errors
    /// There is no such process, or the guest does not answer.
    pub fn kill(&self, process: &ProcessId, signal: u32, all: bool) -> Result<(), GuestError> {
        let request = KillRequest {
            container: process.container.clone(),
            exec: process.exec.clone(),
            signal,
            all,
            ..Default::default()
        };
        self.call::<Empty>("Kill", &request).map(drop)
    }

    /// Sets a terminal's size.
    ///
    /// # Errors
    /// There is no such process, or the guest does not answer.
    pub fn resize(&self, process: &ProcessId, window: WindowSize) -> Result<(), GuestError> {
        let request = ResizeRequest {
            container: process.container.clone(),
            exec: process.exec.clone(),
            window: Some(window).into(),
            ..Default::default()
        };
        self.call::<Empty>("Resize", &request).map(drop)
    }

    /// Closes a process's stdin once what was sent has been delivered.
    ///
    /// # Errors
    /// There is no such process, or the guest does not answer.
    pub fn close_stdin(&self, process: &ProcessId) -> Result<(), GuestError> {
        let request = CloseStdinRequest {
            container: process.container.clone(),
            exec: process.exec.clone(),
            ..Default::default()
        };
        self.call::<Empty>("CloseStdin", &request).map(drop)
    }

    /// Forgets an exited process; with a container's first process takes the container down.
    ///
    /// # Errors
    /// It still runs, there is none, or the guest does not answer.
    pub fn delete(&self, process: &ProcessId) -> Result<DeleteResponse, GuestError> {
        let request = DeleteRequest {
            container: process.container.clone(),
            exec: process.exec.clone(),
            ..Default::default()
        };
        self.call("Delete", &request)
    }

    /// A container's processes and their states.
    ///
    /// # Errors
    /// There is no such container, or the guest does not answer.
    pub fn state(&self, container: &str) -> Result<StateResponse, GuestError> {
        let request = StateRequest {
            container: container.into(),
            ..Default::default()
        };
        self.call("State", &request)
    }

    /// What a container uses.
    ///
    /// # Errors
    /// There is no such container, or the guest does not answer.
    pub fn stats(&self, container: &str) -> Result<StatsResponse, GuestError> {
        let request = StatsRequest {
            container: container.into(),
            ..Default::default()
        };
        self.call("Stats", &request)
    }

    /// Stops all processes of a container that is created or running.
    ///
    /// # Errors
    /// The container's state does not allow it, its processes do not stop, or the guest does not answer.
    pub fn pause(&self, container: &str) -> Result<(), GuestError> {
        let request = PauseRequest {
            container: container.into(),
            ..Default::default()
        };
        self.call::<Empty>("Pause", &request).map(drop)
    }

    /// Lets a paused container's processes go on.
    ///
    /// # Errors
    /// It is not paused, or the guest does not answer.
    pub fn resume(&self, container: &str) -> Result<(), GuestError> {
        let request = ResumeRequest {
            container: container.into(),
            ..Default::default()
        };
        self.call::<Empty>("Resume", &request).map(drop)
    }

    /// Changes the limits of a container that has not stopped; `root` is the directory that its root file system was
    /// made from.
    ///
    /// # Errors
    /// A limit is not possible or lies below what is in use; the container has stopped, or the guest does not answer.
    pub fn update(&self, container: &str, update: &Update, root: &Path) -> Result<(), GuestError> {
        let current = self.stats(container)?;
        let request = UpdateRequest {
            container: container.into(),
            resources: Some(update.message(&current, root)?).into(),
            ..Default::default()
        };
        self.call::<Empty>("Update", &request).map(drop)
    }

    /// A container's processes with what ps(1) shows of them, by their ids.
    ///
    /// # Errors
    /// There is no such container, or the guest does not answer.
    pub fn processes(&self, container: &str) -> Result<Vec<ProcessInfo>, GuestError> {
        let request = ProcessesRequest {
            container: container.into(),
            ..Default::default()
        };
        let response: ProcessesResponse = self.call("Processes", &request)?;
        Ok(response.processes)
    }

    /// Waits for events after a sequence number; gives none if there are none for a minute.
    ///
    /// # Errors
    /// The machine has ended, or the agent tells of events before that number, or at once of none.
    pub fn events(&self, after: u64) -> Result<EventsResponse, GuestError> {
        let request = EventsRequest {
            after,
            ..Default::default()
        };
        let asked = Instant::now();
        let called = self.agent.call("Events", &request, Some(EVENTS_LIMIT));
        let checked = called.and_then(|response: EventsResponse| {
            let old = response.events.iter().any(|event| event.sequence <= after);
            let hasty = response.events.is_empty() && asked.elapsed() < EVENTS_LEAST;
            match old || hasty {
                true => Err(self.agent.breach(Breach::Events)),
                false => Ok(response),
            }
        });
        checked.map_err(|error| GuestError::from_call(error, EVENTS_LIMIT))
    }

    /// Ends every process and switches the guest off.
    ///
    /// # Errors
    /// The guest does not answer.
    pub fn shutdown(&self) -> Result<(), GuestError> {
        self.call::<Empty>("Shutdown", &Empty::new()).map(drop)
    }

    fn call<R: Message>(&self, method: &str, request: &impl Message) -> Result<R, GuestError> {
        self.call_within(method, request, self.link.patience())
    }

    fn call_within<R: Message>(&self, method: &str, request: &impl Message, limit: Duration) -> Result<R, GuestError> {
        self.agent
            .call(method, request, Some(limit))
            .map_err(|error| GuestError::from_call(error, limit))
    }
}
