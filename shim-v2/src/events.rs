//! containerd's events: each once, in the order in which things happened.
//!
//! They wait in a queue for the one thread that forwards them. While containerd is away, it tries again; nothing is
//! reordered or given up until the shim's end ([`Publisher::drain`]).

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::{Empty, ForwardRequest};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::{events, topics};
use husk_sandbox::rpc::{Rpc, RpcError};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;

/// containerd's service for events.
const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";
/// How long containerd may take for an event.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long is waited between two tries while containerd is away.
const PAUSE: Duration = Duration::from_millis(500);

/// The way to containerd's events.
#[derive(Debug)]
pub(crate) struct Publisher {
    queue: Arc<Queue>,
    namespace: String,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<VecDeque<Envelope>>,
    changed: Condvar,
}

/// An event of containerd's, and its topic.
pub(crate) trait Event: Message {
    const TOPIC: &'static str;
    /// Its type's name, which containerd's own events bear without a prefix.
    const TYPE: &'static str;
}

macro_rules! topics {
    ($($event:ident $topic:ident,)*) => {
        $(impl Event for events::task::$event {
            const TOPIC: &'static str = topics::$topic;
            const TYPE: &'static str = concat!("containerd.events.", stringify!($event));
        })*
    };
}

topics! {
    TaskCreate TASK_CREATE_EVENT_TOPIC,
    TaskStart TASK_START_EVENT_TOPIC,
    TaskOOM TASK_OOM_EVENT_TOPIC,
    TaskExit TASK_EXIT_EVENT_TOPIC,
    TaskDelete TASK_DELETE_EVENT_TOPIC,
    TaskExecAdded TASK_EXEC_ADDED_EVENT_TOPIC,
    TaskExecStarted TASK_EXEC_STARTED_EVENT_TOPIC,
    TaskPaused TASK_PAUSED_EVENT_TOPIC,
    TaskResumed TASK_RESUMED_EVENT_TOPIC,
}

impl Publisher {
    /// Begins to forward events of a namespace to the socket at `address`.
    pub(crate) fn start(address: &str, namespace: &str) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let path = PathBuf::from(address.strip_prefix("unix://").unwrap_or(address));
        let taken = Arc::clone(&queue);
        let thread = thread::Builder::new().name("events".into());
        thread.spawn(move || taken.forward(&path))?;
        Ok(Self {
            queue,
            namespace: namespace.into(),
        })
    }

    /// Puts an event behind those that wait.
    pub(crate) fn publish<E: Event>(&self, event: &E) {
        let event = Any {
            type_url: E::TYPE.into(),
            // A message that this program has made itself can be written.
            value: event.write_to_bytes().unwrap_or_default(),
            ..Default::default()
        };
        let envelope = Envelope {
            timestamp: Some(Timestamp::from(SystemTime::now())).into(),
            namespace: self.namespace.clone(),
            topic: E::TOPIC.into(),
            event: Some(event).into(),
            ..Default::default()
        };
        tracing::debug!(topic = E::TOPIC, "publishing");
        self.queue.lock().push_back(envelope);
        self.queue.changed.notify_all();
    }

    /// Waits until all events are forwarded, for a limited time; says whether they are.
    pub(crate) fn drain(&self, limit: Duration) -> bool {
        let wait = self
            .queue
            .changed
            .wait_timeout_while(self.queue.lock(), limit, |waiting| !waiting.is_empty());
        wait.unwrap_or_else(PoisonError::into_inner).0.is_empty()
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Envelope>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forwards events for ever.
    fn forward(&self, path: &std::path::Path) {
        let mut connection: Option<Rpc> = None;
        loop {
            let mut waiting = self.lock();
            while waiting.is_empty() {
                waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
            let next = waiting.front().cloned();
            drop(waiting);
            let Some(envelope) = next else { continue };
            let request = ForwardRequest {
                envelope: Some(envelope).into(),
                ..Default::default()
            };
            let sent = match &connection {
                Some(rpc) => rpc.call::<Empty>("Forward", &request, Some(PATIENCE)),
                None => match connect(path) {
                    Ok(rpc) => connection
                        .insert(rpc)
                        .call::<Empty>("Forward", &request, Some(PATIENCE)),
                    Err(error) => {
                        tracing::debug!(%error, "containerd takes no events");
                        Err(RpcError::Closed)
                    }
                },
            };
            match sent {
                // What containerd has refused it would refuse again.
                Ok(_) | Err(RpcError::Status { .. }) => {
                    if let Err(error) = sent {
                        tracing::warn!(%error, "containerd refuses an event");
                    }
                    self.lock().pop_front();
                    self.changed.notify_all();
                }
                Err(error) => {
                    // It may have come all the same where the answer alone was lost; containerd takes it twice then.
                    tracing::debug!(%error, "an event is not forwarded yet");
                    if connection.take().is_none() {
                        thread::sleep(PAUSE);
                    }
                }
            }
        }
    }
}

fn connect(path: &std::path::Path) -> std::io::Result<Rpc> {
    Rpc::new(SERVICE, UnixStream::connect(path)?, PATIENCE)
}
