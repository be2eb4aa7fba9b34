//! The clients of the serial port.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use tracing::{debug, error, warn};
use vmm_sys_util::eventfd::EventFd;

use super::SharedUart;
use super::log::Log;

/// The most clients at once; more are turned away.
pub(super) const MAX_CLIENTS: usize = 16;
/// How much is read from a client, or written to one, before others have their turn, in bytes.
const PIECE: usize = 4 << 10;
/// The most pieces that one client is written before others have their turn: a client that reads as fast as the guest
/// speaks would otherwise keep the loop until the others' text is gone.
const TURNS: usize = 4;

/// Serves the clients of a listening socket: each is sent what the port last said and then follows it, and what it
/// writes is typed into the port. Lives in the event loop.
///
/// Nobody waits for a client: one that reads too slowly misses text. The port's input is taken from clients only as
/// fast as the guest reads it.
pub struct Console {
    listener: UnixListener,
    uart: SharedUart,
    log: Log,
    /// Signalled when the guest has read all of the port's input.
    input_read: EventFd,
    clients: Vec<Client>,
    /// What was typed and does not fit into the port yet; not longer than one [`PIECE`].
    typed: VecDeque<u8>,
}

struct Client {
    stream: UnixStream,
    /// The position in the log up to which the client was sent.
    position: u64,
    /// The client may still type.
    types: bool,
    /// The client was not sent all there is: its socket is full, or it had its turns.
    behind: bool,
    /// What the loop waits for.
    watched: EventSet,
}

/// Whether a client is still there.
#[derive(PartialEq, Eq)]
enum Presence {
    There,
    Gone,
}

impl Console {
    pub(super) fn new(listener: UnixListener, uart: SharedUart, log: Log, input_read: EventFd) -> Self {
        Self {
            listener,
            uart,
            log,
            input_read,
            clients: Vec::new(),
            typed: VecDeque::new(),
        }
    }

    /// Takes a new client; another may already wait for the next turn.
    fn accept(&mut self, ops: &mut EventOps<'_>) {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if would_block(&error) || error.kind() == ErrorKind::ConnectionAborted => return,
            Err(error) => {
                // The client would stay in the queue, and the loop would come here again and again.
                error!(%error, "a console client cannot be accepted; there will be no new ones");
                let _ = ops.remove(Events::empty(&self.listener));
                return;
            }
        };
        if self.clients.len() == MAX_CLIENTS {
            debug!("a console client too many is turned away");
            return;
        }
        let client = Client {
            stream,
            position: 0,
            types: true,
            behind: false,
            watched: EventSet::IN,
        };
        let watched = client
            .stream
            .set_nonblocking(true)
            .map_err(|error| error.to_string())
            .and_then(|()| {
                ops.add(Events::new(&client.stream, client.watched))
                    .map_err(|error| error.to_string())
            });
        if let Err(error) = watched {
            warn!(error, "a console client cannot be served");
            return;
        }
        self.clients.push(client);
        self.log.follow(true);
        self.serve(self.clients.len() - 1, EventSet::empty(), ops);
    }

    /// Does what can be done for one client, and lets go of it when it is gone.
    fn serve(&mut self, index: usize, events: EventSet, ops: &mut EventOps<'_>) {
        let client = &mut self.clients[index];
        let mut presence = Presence::There;
        if events.contains(EventSet::IN) && client.types && self.typed.is_empty() {
            presence = client.take_input(&mut self.typed);
            self.type_in();
        } else if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            presence = Presence::Gone;
        }
        let client = &mut self.clients[index];
        if events.contains(EventSet::OUT) {
            client.behind = false;
        }
        if presence == Presence::There {
            presence = client.give_output(&self.log);
        }
        if presence == Presence::Gone || client.watch(!self.typed.is_empty(), ops).is_err() {
            let client = self.clients.swap_remove(index);
            if let Err(error) = ops.remove(Events::empty(&client.stream)) {
                error!(%error, "a console client cannot be taken out of the event loop");
            }
            self.log.follow(!self.clients.is_empty());
        }
    }

    /// Serves all clients; from the last to the first, as one that is gone is replaced by the last.
    fn serve_all(&mut self, ops: &mut EventOps<'_>) {
        for index in (0..self.clients.len()).rev() {
            self.serve(index, EventSet::empty(), ops);
        }
    }

    /// Types as much as the port takes.
    fn type_in(&mut self) {
        while !self.typed.is_empty() {
            let mut uart = self.uart.lock();
            let room = uart.fifo_capacity();
            if room == 0 {
                // `input_read` tells when there is room.
                return;
            }
            let piece: Vec<u8> = self.typed.iter().copied().take(room).collect();
            match uart.enqueue_raw_bytes(&piece) {
                // A port in loop-back mode is cut off from its line: what arrives is lost.
                Ok(0) => self.typed.clear(),
                Ok(count) => drop(self.typed.drain(..count)),
                Err(error) => {
                    error!(%error, "the serial port does not take input");
                    self.typed.clear();
                }
            }
        }
    }

    fn index(&self, fd: RawFd) -> Option<usize> {
        self.clients.iter().position(|client| client.stream.as_raw_fd() == fd)
    }
}

impl Client {
    /// Reads what was typed, one piece at most.
    fn take_input(&mut self, typed: &mut VecDeque<u8>) -> Presence {
        let mut piece = [0; PIECE];
        match self.stream.read(&mut piece) {
            // It may have closed only its half and still want to read.
            Ok(0) => self.types = false,
            Ok(count) => typed.extend(&piece[..count]),
            Err(error) if would_block(&error) => {}
            Err(error) => {
                debug!(%error, "a console client is gone");
                return Presence::Gone;
            }
        }
        Presence::There
    }

    /// Writes what the client has not been sent yet, as far as its socket and its turns go.
    fn give_output(&mut self, log: &Log) -> Presence {
        let mut piece = [0; PIECE];
        for _ in 0..TURNS {
            if self.behind {
                return Presence::There;
            }
            let (count, position) = log.copy(self.position, &mut piece);
            self.position = position;
            if count == 0 {
                return Presence::There;
            }
            match self.stream.write(&piece[..count]) {
                Ok(count) => self.position += count as u64,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if would_block(&error) => self.behind = true,
                Err(error) => {
                    debug!(%error, "a console client is gone");
                    return Presence::Gone;
                }
            }
        }
        self.behind = true;
        Presence::There
    }

    /// Waits for what the client can do next. A hang-up is always reported.
    fn watch(&mut self, busy: bool, ops: &EventOps<'_>) -> Result<(), event_manager::Error> {
        let mut wanted = EventSet::empty();
        wanted.set(EventSet::IN, self.types && !busy);
        wanted.set(EventSet::OUT, self.behind);
        if wanted != self.watched {
            ops.modify(Events::new(&self.stream, wanted))?;
            self.watched = wanted;
        }
        Ok(())
    }
}

fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

impl MutEventSubscriber for Console {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let fd = events.fd();
        if fd == self.listener.as_raw_fd() {
            self.accept(ops);
        } else if fd == self.log.news().as_raw_fd() {
            self.log.acknowledge();
            self.serve_all(ops);
        } else if fd == self.input_read.as_raw_fd() {
            // The counter's value does not matter; an error says that it is zero already.
            let _ = self.input_read.read();
            self.type_in();
            self.serve_all(ops);
        } else if let Some(index) = self.index(fd) {
            self.serve(index, events.event_set(), ops);
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        for event in [
            Events::new(&self.listener, EventSet::IN),
            Events::new(self.log.news(), EventSet::IN),
            Events::new(&self.input_read, EventSet::IN),
        ] {
            if let Err(error) = ops.add(event) {
                error!(%error, "the console cannot be served");
            }
        }
    }
}
