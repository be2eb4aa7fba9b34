//! All connections of the device: which packet belongs to which, whose turn it is, and how connections begin and end.

use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::time::Instant;

use event_manager::{EventOps, EventSet, Events};
use tracing::{debug, error, warn};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::buffers::{Receiver, RingError, Segments};
use super::connection::{Connection, Route, Turn, Verdict, Wait};
use super::deadlines::Deadlines;
use super::greeting::{self, Greeting};
use super::packet::{Header, TYPE_STREAM, op};
use super::{HOST_CID, LISTENER, Limits, TIMER, Token};

/// The first token that stands for a connection; those below are the worker's own.
const FIRST_TOKEN: Token = 16;
/// The last: `u32::MAX` means "any port".
const LAST_HOST_PORT: u32 = u32::MAX - 1;

/// The receive window of a connection, in bytes, while there are few.
const WINDOW: u32 = 256 << 10;
/// The number of connections up to which there are few.
const FEW: usize = 64;
/// The receive window of connections beyond: it bounds the memory of all windows at 46 MiB for 1,024 connections.
const SMALL_WINDOW: u32 = 32 << 10;

/// How many resets for packets without a connection may wait for buffers before no more packets are taken.
const MAX_RESETS: usize = 128;

/// The connections, and the sockets from which they come.
pub(super) struct Muxer {
    guest_cid: u64,
    limits: Limits,
    listener: UnixListener,
    /// For each port of the host that the guest may connect to, whom the connections are passed to.
    ports: HashMap<u32, UnixDatagram>,
    /// Clients that have not said which port they want.
    greetings: HashMap<Token, UnixStream>,
    connections: HashMap<Token, Connection>,
    routes: HashMap<Route, Token>,
    /// Connections with something to send to the guest, in the order of their turns.
    ready: VecDeque<Token>,
    /// Resets that no connection stands behind any more.
    resets: VecDeque<Header>,
    pub(super) deadlines: Deadlines,
    next_token: Token,
    next_host_port: u32,
    /// Clients are accepted.
    open: bool,
    /// Clients wait because there was no descriptor for them.
    stalled: bool,
    /// Since when nothing can happen.
    detached: Option<Instant>,
}

impl Muxer {
    /// The first port of the host's end when a client of the host connects. Those below are left to services.
    pub(super) const FIRST_HOST_PORT: u32 = 1 << 30;

    /// A muxer without connections. The sockets of `ports`, and the listener, are non-blocking.
    pub(super) fn new(
        guest_cid: u64,
        limits: Limits,
        listener: UnixListener,
        ports: HashMap<u32, UnixDatagram>,
        deadlines: Deadlines,
    ) -> Self {
        Self {
            guest_cid,
            limits,
            listener,
            ports,
            greetings: HashMap::new(),
            connections: HashMap::new(),
            routes: HashMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            deadlines,
            next_token: FIRST_TOKEN,
            next_host_port: Self::FIRST_HOST_PORT,
            open: false,
            stalled: false,
            detached: None,
        }
    }

    /// The port that the next client of the host is given.
    pub(super) fn next_host_port(&self) -> u32 {
        self.next_host_port
    }

    /// Goes on with the ports of a former life, so that none is used again for which the guest may still have a
    /// socket. Returns whether the port is possible.
    pub(super) fn set_next_host_port(&mut self, port: u32) -> bool {
        let possible = (Self::FIRST_HOST_PORT..=LAST_HOST_PORT).contains(&port);
        if possible {
            self.next_host_port = port;
        }
        possible
    }

    /// Closes everything but the listener and the ports; the driver has forgotten all connections. Nothing may be
    /// registered.
    pub(super) fn reset(&mut self) {
        for token in self.greetings.keys().chain(self.connections.keys()) {
            self.deadlines.clear(*token);
        }
        self.greetings.clear();
        self.connections.clear();
        self.routes.clear();
        self.ready.clear();
        self.resets.clear();
    }

    /// Registers all sockets in the event loop; clients are accepted only after [`open`](Self::open).
    pub(super) fn attach(&mut self, ops: &mut EventOps<'_>) {
        if let Some(since) = self.detached.take() {
            self.deadlines.postpone(since.elapsed());
        }
        let timer = Events::with_data(self.deadlines.timer(), TIMER, EventSet::IN | EventSet::EDGE_TRIGGERED);
        register(ops, timer);
        for (token, socket) in &self.greetings {
            register(ops, Events::with_data(socket, *token, input()));
        }
        for (token, connection) in &mut self.connections {
            connection.watches_output = connection.blocked();
            register(ops, interest(*token, connection));
        }
    }

    /// Notes that nothing is registered any more, and that time stands still.
    pub(super) fn detach(&mut self) {
        self.open = false;
        self.detached = Some(Instant::now());
    }

    /// Takes everything out of the event loop and closes all connections.
    pub(super) fn close(&mut self, ops: &mut EventOps<'_>) {
        if self.open {
            unregister(ops, &self.listener);
            self.open = false;
        }
        unregister(ops, self.deadlines.timer());
        for socket in self.greetings.values() {
            unregister(ops, socket);
        }
        for connection in self.connections.values() {
            unregister(ops, &connection.socket);
        }
        self.reset();
    }

    /// Gives the guest time to notice the loss of its connections; the token comes back from [`expire`](Self::expire).
    pub(super) fn await_notice(&mut self, token: Token) {
        self.deadlines.set(token, Instant::now() + self.limits.notice);
    }

    /// Begins to accept clients; they may have been waiting in the listener's queue.
    pub(super) fn open(&mut self, ops: &mut EventOps<'_>) {
        if !self.open {
            self.open = true;
            let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
            register(ops, Events::with_data(&self.listener, LISTENER, edges));
        }
    }

    /// Accepts all clients that wait.
    pub(super) fn accept(&mut self, ops: &mut EventOps<'_>) {
        self.stalled = false;
        loop {
            match self.listener.accept() {
                Ok((socket, _)) => self.welcome(socket, ops),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(error) => {
                    warn!(%error, "a vsock client cannot be accepted before another connection ends");
                    self.stalled = true;
                    return;
                }
            }
        }
    }

    /// Accepts clients again that found no descriptor left, when one may have become free.
    pub(super) fn accept_stalled(&mut self, ops: &mut EventOps<'_>) {
        if self.stalled && self.open {
            self.accept(ops);
        }
    }

    /// A new client of the host.
    fn welcome(&mut self, socket: UnixStream, ops: &mut EventOps<'_>) {
        if self.full() {
            debug!(
                limit = self.limits.connections,
                "a client is refused: too many connections"
            );
            return;
        }
        let token = self.new_token();
        if !register(ops, Events::with_data(&socket, token, input())) {
            return;
        }
        self.deadlines.set(token, Instant::now() + self.limits.greeting);
        self.greetings.insert(token, socket);
        self.greet(token, ops);
    }

    /// Looks whether a client has said which port it wants.
    fn greet(&mut self, token: Token, ops: &mut EventOps<'_>) {
        let Some(socket) = self.greetings.get(&token) else {
            return;
        };
        let read = greeting::read(socket);
        if read == Greeting::Partial {
            return;
        }
        let Some(socket) = self.greetings.remove(&token) else {
            return;
        };
        self.deadlines.clear(token);
        if let Greeting::Port(guest_port) = read {
            let host_port = self.allocate_host_port();
            let route = Route { host_port, guest_port };
            let connection = Connection::request(route, socket, self.window());
            self.insert(token, connection, ops);
        } else {
            debug!("a client is refused: it did not say CONNECT and a port");
            unregister(ops, &socket);
        }
    }

    /// Takes a packet of the guest; `payload` is all that followed its header.
    pub(super) fn receive(&mut self, header: &Header, mut payload: Segments<'_>, ops: &mut EventOps<'_>) {
        let len = header.len as usize;
        let sound = match header.op {
            op::RW => payload.len() >= len,
            _ => len == 0,
        };
        let route = Route {
            host_port: header.dst_port,
            guest_port: header.src_port,
        };
        let ours = header.kind == TYPE_STREAM && header.src_cid == self.guest_cid && header.dst_cid == HOST_CID;
        let known = self.routes.get(&route).copied().filter(|_| ours);
        if let Some(token) = known {
            let data = payload.split_front(len);
            let verdict = match self.connections.get_mut(&token) {
                Some(connection) if sound => connection.receive(header, data),
                _ => Verdict::Reset,
            };
            self.conclude(token, verdict, ops);
            return;
        }
        let request = ours && sound && header.op == op::REQUEST;
        let connected = request && self.connect(route, header, ops);
        // A reset is never answered, or two sides that know nothing of each other would never end.
        if !connected && header.op != op::RST {
            debug!(?header, "the guest's packet is refused");
            self.resets.push_back(header.reset_reply());
        }
    }

    /// The guest asks for a connection to a port of the host. Returns whether it gets it.
    fn connect(&mut self, route: Route, header: &Header, ops: &mut EventOps<'_>) -> bool {
        let Some(owner) = self.ports.get(&route.host_port) else {
            return false;
        };
        if self.full() {
            return false;
        }
        let (ours, theirs) = match UnixStream::pair() {
            Ok(pair) => pair,
            Err(error) => {
                warn!(%error, "a connection of the guest is refused");
                return false;
            }
        };
        if let Err(error) = owner.send_with_fd(&[0_u8][..], theirs.as_raw_fd()) {
            warn!(%error, port = route.host_port, "the port's owner does not take a connection of the guest");
            return false;
        }
        let token = self.new_token();
        let connection = Connection::accept(route, ours, self.window(), header);
        if !register(ops, interest(token, &connection)) {
            return false;
        }
        self.insert(token, connection, ops);
        true
    }

    /// Takes notice of what a connection's or client's socket reports.
    pub(super) fn socket_event(&mut self, token: Token, events: EventSet, ops: &mut EventOps<'_>) {
        // What turns out to be a connection here takes notice, too: an edge does not come again.
        self.greet(token, ops);
        if let Some(connection) = self.connections.get_mut(&token) {
            let verdict = connection.socket_event(events);
            self.conclude(token, verdict, ops);
        }
    }

    /// Ends what has waited too long; called when the timer fired. Returns the tokens that are not the muxer's.
    pub(super) fn expire(&mut self, ops: &mut EventOps<'_>) -> Vec<Token> {
        let mut others = Vec::new();
        for token in self.deadlines.expired(Instant::now()) {
            if let Some(socket) = self.greetings.remove(&token) {
                debug!("a client is refused: it did not say which port it wants");
                unregister(ops, &socket);
            } else if self.connections.contains_key(&token) {
                debug!(token, "the guest did not answer in time");
                self.conclude(token, Verdict::Reset, ops);
            } else {
                others.push(token);
            }
        }
        others
    }

    /// Whether no packets of the guest should be taken before it takes some.
    pub(super) fn congested(&self) -> bool {
        self.resets.len() >= MAX_RESETS
    }

    /// Sends the guest what there is, in turns, while there are buffers for it and `budget`.
    /// Returns whether it ended only for the budget.
    pub(super) fn send(
        &mut self,
        receiver: &mut Receiver<'_, '_>,
        budget: usize,
        ops: &mut EventOps<'_>,
    ) -> Result<bool, RingError> {
        for _ in 0..budget {
            let turn = if let Some(reset) = self.resets.front() {
                match receiver.take()? {
                    Some(buffer) => {
                        receiver.give(&buffer, *reset)?;
                        self.resets.pop_front();
                        Turn::Done
                    }
                    None => Turn::NoBuffer,
                }
            } else if let Some(token) = self.ready.front().copied() {
                self.take_turn(token, receiver, ops)?
            } else {
                return Ok(false);
            };
            if turn == Turn::NoBuffer && !receiver.wait()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Lets the connection at the front send, and puts it at the end if it has more.
    fn take_turn(
        &mut self,
        token: Token,
        receiver: &mut Receiver<'_, '_>,
        ops: &mut EventOps<'_>,
    ) -> Result<Turn, RingError> {
        let Some(connection) = self.connections.get_mut(&token) else {
            self.ready.pop_front();
            return Ok(Turn::Done);
        };
        let turn = connection.send(receiver, self.guest_cid)?;
        if turn == Turn::Done {
            self.ready.pop_front();
            connection.queued = false;
            self.settle(token, ops);
        }
        Ok(turn)
    }

    /// Acts on a verdict.
    fn conclude(&mut self, token: Token, verdict: Verdict, ops: &mut EventOps<'_>) {
        if verdict == Verdict::Keep {
            self.settle(token, ops);
            return;
        }
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        let route = connection.route;
        if !connection.draining() {
            self.routes.remove(&route);
            if verdict == Verdict::Reset {
                self.resets.push_back(Header {
                    src_cid: HOST_CID,
                    dst_cid: self.guest_cid,
                    src_port: route.host_port,
                    dst_port: route.guest_port,
                    kind: TYPE_STREAM,
                    op: op::RST,
                    ..Header::default()
                });
            }
        }
        if connection.drain() {
            self.settle(token, ops);
        } else if let Some(connection) = self.connections.remove(&token) {
            unregister(ops, &connection.socket);
            self.deadlines.clear(token);
        }
    }

    /// Brings queue, registration and deadline in line with a connection that may have changed.
    fn settle(&mut self, token: Token, ops: &mut EventOps<'_>) {
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        if connection.has_packet() && !connection.queued {
            connection.queued = true;
            self.ready.push_back(token);
        }
        if connection.blocked() != connection.watches_output {
            connection.watches_output = connection.blocked();
            if let Err(error) = ops.modify(interest(token, connection)) {
                error!(%error, "a socket's registration cannot be changed");
            }
        }
        let wait = connection.waits_for();
        if wait != connection.timed {
            connection.timed = wait;
            let limit = match wait {
                Some(Wait::Answer) => self.limits.answer,
                Some(Wait::Reset) => self.limits.closing,
                None => return self.deadlines.clear(token),
            };
            self.deadlines.set(token, Instant::now() + limit);
        }
    }

    /// Adds a connection whose socket is registered.
    fn insert(&mut self, token: Token, connection: Connection, ops: &mut EventOps<'_>) {
        self.routes.insert(connection.route, token);
        self.connections.insert(token, connection);
        self.settle(token, ops);
    }

    fn full(&self) -> bool {
        self.greetings.len() + self.connections.len() >= self.limits.connections
    }

    fn window(&self) -> u32 {
        if self.connections.len() < FEW {
            WINDOW
        } else {
            SMALL_WINDOW
        }
    }

    fn new_token(&mut self) -> Token {
        loop {
            let token = self.next_token;
            self.next_token = token.checked_add(1).unwrap_or(FIRST_TOKEN);
            if !self.connections.contains_key(&token) && !self.greetings.contains_key(&token) {
                return token;
            }
        }
    }

    /// A port that no connection of the host has and no service.
    fn allocate_host_port(&mut self) -> u32 {
        loop {
            let port = self.next_host_port;
            self.next_host_port = if port == LAST_HOST_PORT {
                Self::FIRST_HOST_PORT
            } else {
                port + 1
            };
            let taken = self.routes.keys().any(|route| route.host_port == port);
            if !taken && !self.ports.contains_key(&port) {
                return port;
            }
        }
    }
}

/// Edges of input and of its end. An edge is reported once, so a connection that cannot go on costs nothing.
fn input() -> EventSet {
    EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED
}

/// What a connection waits for on its socket. Output only when it is held up: each read of the peer would be an edge.
fn interest(token: Token, connection: &Connection) -> Events {
    let output = if connection.blocked() {
        EventSet::OUT
    } else {
        EventSet::empty()
    };
    Events::with_data(&connection.socket, token, input() | output)
}

/// Adds a registration; returns whether it worked.
fn register(ops: &mut EventOps<'_>, events: Events) -> bool {
    ops.add(events)
        .inspect_err(|error| error!(%error, "a descriptor of the vsock device cannot be registered"))
        .is_ok()
}

/// Takes a registration back; must come before the descriptor is closed.
fn unregister(ops: &mut EventOps<'_>, socket: &impl AsRawFd) {
    if let Err(error) = ops.remove(Events::empty(socket)) {
        error!(%error, "a descriptor of the vsock device is not registered");
    }
}
