//! The device as its transport sees it, and what it is built of.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::time::Duration;

use event_manager::SubscriberId;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::error;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::deadlines::Deadlines;
use super::muxer::Muxer;
use super::socket;
use super::worker::{TransportReset, Worker};
use crate::event::{EventError, LoopHandle};
use crate::virtio::{ActivateError, Activation, Device, DeviceState, StateError, feature, kind};

/// The sizes of the queues: to the guest, from the guest, events.
const QUEUE_SIZES: [u16; 3] = [128, 128, 16];

/// Stream sockets are supported (section 5.10.3).
const FEATURE_STREAM: u64 = 1 << 0;

/// Bounds on what the two sides may keep waiting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections at a time, with clients that did not say yet which port they want.
    pub(super) connections: usize,
    /// How long a client may take to say which port it wants.
    pub(super) greeting: Duration,
    /// How long the guest may take to answer a request.
    pub(super) answer: Duration,
    /// How long the guest may take to confirm the end of a connection.
    pub(super) closing: Duration,
    /// How long a restored guest may take to notice the loss of its connections.
    pub(super) notice: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            greeting: Duration::from_secs(2),
            answer: Duration::from_secs(5),
            // What Linux gives the other side, too.
            closing: Duration::from_secs(8),
            notice: Duration::from_secs(5),
        }
    }
}

/// Why the device cannot be built.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum VsockError {
    #[error("context id {0} cannot be a guest's: 0 to 2 and 4294967295 are reserved")]
    Cid(u32),
    #[error("the vsock listener is not a listening stream socket of the unix family")]
    Listener,
    #[error("the socket for connections to port {0} is not a sequenced-packet socket of the unix family")]
    Acceptor(u32),
    #[error("port {0} is given twice")]
    PortTwice(u32),
    #[error("a socket of the vsock device cannot be used")]
    Socket(#[source] io::Error),
    #[error("the vsock device's timer cannot be made")]
    Timer(#[source] io::Error),
}

/// What a vsock device saves. Connections are not part of it: their sockets belong to the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockState {
    /// [`VsockState::VERSION`] of the program that saved.
    pub version: u32,
    /// The host's port that the next client is given.
    pub next_host_port: u32,
}

impl VsockState {
    /// The version that this program writes and reads.
    pub const VERSION: u32 = 1;
}

/// The socket device of a guest.
pub struct Vsock {
    guest_cid: u32,
    events: LoopHandle,
    place: Place,
    transport_reset: TransportReset,
}

/// Where the connections are.
enum Place {
    /// Here, while the device is not active.
    Here(Box<Muxer>),
    /// With the worker in the event loop.
    Loop(SubscriberId),
    /// Gone with an event loop that ended.
    Lost,
}

impl Vsock {
    /// A device for the guest with this context id.
    ///
    /// `listener` is a listening unix stream socket; clients that connect before the guest's driver is ready wait in
    /// its queue. `ports` are the host's ports that the guest may connect to, each with one end of a pair of unix
    /// sequenced-packet sockets over which connections are passed. All are made non-blocking.
    ///
    /// # Errors
    /// The context id is reserved, a descriptor is not the socket that it should be, or descriptors are used up.
    pub fn new(
        guest_cid: u32,
        listener: OwnedFd,
        ports: Vec<(u32, OwnedFd)>,
        events: LoopHandle,
    ) -> Result<Self, VsockError> {
        Self::with_limits(guest_cid, listener, ports, events, Limits::default())
    }

    pub(super) fn with_limits(
        guest_cid: u32,
        listener: OwnedFd,
        ports: Vec<(u32, OwnedFd)>,
        events: LoopHandle,
        limits: Limits,
    ) -> Result<Self, VsockError> {
        if !(3..u32::MAX).contains(&guest_cid) {
            return Err(VsockError::Cid(guest_cid));
        }
        if !socket::is_unix(&listener, libc::SOCK_STREAM, true).unwrap_or(false) {
            return Err(VsockError::Listener);
        }
        let listener = UnixListener::from(listener);
        listener.set_nonblocking(true).map_err(VsockError::Socket)?;
        let mut acceptors = HashMap::new();
        for (port, acceptor) in ports {
            if !socket::is_unix(&acceptor, libc::SOCK_SEQPACKET, false).unwrap_or(false) {
                return Err(VsockError::Acceptor(port));
            }
            // The standard library has no type for such sockets; to send on one is the same.
            let acceptor = UnixDatagram::from(acceptor);
            acceptor.set_nonblocking(true).map_err(VsockError::Socket)?;
            if acceptors.insert(port, acceptor).is_some() {
                return Err(VsockError::PortTwice(port));
            }
        }
        let deadlines = Deadlines::new().map_err(VsockError::Timer)?;
        let muxer = Muxer::new(u64::from(guest_cid), limits, listener, acceptors, deadlines);
        Ok(Self {
            guest_cid,
            events,
            place: Place::Here(Box::new(muxer)),
            transport_reset: TransportReset::None,
        })
    }
}

impl Device for Vsock {
    fn kind(&self) -> u32 {
        kind::SOCKET
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        FEATURE_STREAM | feature::INDIRECT_DESC | feature::EVENT_IDX
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = u64::from(self.guest_cid).to_le_bytes();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        if let Some(rest) = config.get(start..) {
            let count = rest.len().min(data.len());
            data[..count].copy_from_slice(&rest[..count]);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if let Some(missing) = activation.queues.iter().position(|queue| !queue.ready()) {
            return Err(ActivateError::QueueMissing(missing));
        }
        let queues = <[Queue; 3]>::try_from(activation.queues);
        let queues = queues.map_err(|queues| ActivateError::QueueMissing(queues.len()))?;
        let kicks = <[EventFd; 3]>::try_from(activation.kicks);
        let kicks = kicks.map_err(|kicks| ActivateError::QueueMissing(kicks.len()))?;
        let muxer = match std::mem::replace(&mut self.place, Place::Lost) {
            Place::Here(muxer) => muxer,
            elsewhere => {
                self.place = elsewhere;
                return Err(ActivateError::Loop(EventError::Unknown));
            }
        };
        let (memory, interrupt) = (activation.memory, activation.interrupt);
        let worker = Worker::new(memory, queues, kicks, interrupt, muxer, self.transport_reset);
        self.place = Place::Loop(self.events.add(worker)?);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<Queue> {
        let Place::Loop(id) = self.place else {
            return Vec::new();
        };
        self.place = Place::Lost;
        match self.events.take_back::<Worker>(id) {
            Ok(worker) => {
                let (queues, muxer, transport_reset) = worker.into_parts();
                self.place = Place::Here(muxer);
                self.transport_reset = transport_reset;
                queues
            }
            Err(error) => {
                error!(%error, "the vsock device cannot be stopped");
                Vec::new()
            }
        }
    }

    fn reset(&mut self) {
        // A driver that starts anew knows nothing of the connections before.
        self.transport_reset = TransportReset::None;
        if let Place::Here(muxer) = &mut self.place {
            muxer.reset();
        }
    }

    fn save(&mut self) -> DeviceState {
        let next_host_port = match &self.place {
            Place::Here(muxer) => muxer.next_host_port(),
            Place::Loop(_) | Place::Lost => Muxer::FIRST_HOST_PORT,
        };
        DeviceState::Vsock(VsockState {
            version: VsockState::VERSION,
            next_host_port,
        })
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), StateError> {
        let DeviceState::Vsock(state) = state else {
            return Err(StateError::Configuration("device type"));
        };
        if state.version != VsockState::VERSION {
            return Err(StateError::Version {
                found: state.version,
                supported: VsockState::VERSION,
            });
        }
        if let Place::Here(muxer) = &mut self.place
            && !muxer.set_next_host_port(state.next_host_port)
        {
            return Err(StateError::Range("next port of the host"));
        }
        self.transport_reset = TransportReset::Due;
        Ok(())
    }
}
