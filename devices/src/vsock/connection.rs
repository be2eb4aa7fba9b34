//! One connection: a stream between a guest's socket and a unix socket of the host.
//!
//! ```text
//!  host connects: REQUEST ──▶ Requested ──RESPONSE from the guest──▶┐
//!                                                                   ├─▶ Open ──both directions done──▶ Closing
//!  guest connects: ─────────▶ Accepted ──RESPONSE to the guest─────▶┘     │                              │
//!                                                                         └──the guest's connection ended┴─▶ Draining
//! ```
//! Each direction of an open connection ends by itself. *To the guest* it ends with the end of the unix socket's stream
//! or when the guest receives no more; *from the guest* when the guest sends no more and all that it sent has been
//! passed on, or when the host's peer reads no more. What the guest sent before its end is passed on even after the
//! guest's socket is gone: that is what a connection in `Draining` is left for.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use event_manager::EventSet;
use tracing::debug;

use super::buffers::{PacketBuffer, Receiver, RingError, Segments};
use super::credit::Credit;
use super::packet::{Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, op};
use super::{HOST_CID, socket};

/// The most data that one connection is given a turn for, in bytes, before the next has its own.
const MAX_TURN: u32 = 64 << 10;
/// The most packets of one turn.
const MAX_BURST: usize = 16;

/// The ports of a connection. With the two context ids, which are always the same, they name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Route {
    pub(super) host_port: u32,
    pub(super) guest_port: u32,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The host's client asked for it; the guest has not answered.
    Requested,
    /// The guest asked for it and was accepted, but has not been told.
    Accepted,
    Open,
    /// Both directions are done and the guest was told; it confirms with a reset.
    Closing,
    /// The guest's end is gone; only what the guest sent before is still passed on.
    Draining,
}

/// What is to become of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It stays.
    Keep,
    /// The guest has ended it, and need not be told.
    Ended,
    /// It is over, or the guest broke the rules: the guest is sent a reset.
    Reset,
}

/// What came of a turn to send to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Something was sent, or found to be at its end.
    Done,
    /// The guest offers no buffer.
    NoBuffer,
}

/// What the guest has to do within a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// Answer a request.
    Answer,
    /// Confirm the end with a reset.
    Reset,
}

/// What a connection would send to the guest next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Control { op: u16, flags: u32 },
    Data,
}

/// The state of one connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) route: Route,
    pub(super) socket: UnixStream,
    phase: Phase,
    credit: Credit,
    /// From the guest, not yet taken by the unix socket; never more than the window.
    backlog: VecDeque<u8>,
    /// The unix socket may have something to read; known better when it was tried.
    readable: bool,
    /// The unix socket takes no more until it says so. It is so whenever there is a backlog.
    blocked: bool,
    /// The request was sent to the guest.
    requested: bool,
    /// The directions that the guest has ended, as flags of its shutdowns.
    guest_ended: u32,
    /// The directions that the host has ended, as flags of a shutdown to the guest.
    host_ended: u32,
    /// Of these, the ones that the guest was told.
    told_ended: u32,
    /// An answer to the guest's question for credit is owed.
    credit_asked: bool,
    /// The guest was asked for credit and has given none since.
    credit_wanted: bool,
    /// How many packets the next read is prepared for.
    burst: usize,
    /// For the muxer: waits for its turn to send to the guest.
    pub(super) queued: bool,
    /// For the muxer: is registered to learn when the unix socket takes more.
    pub(super) watches_output: bool,
    /// For the muxer: what it has a deadline for.
    pub(super) timed: Option<Wait>,
}

impl Connection {
    fn new(route: Route, socket: UnixStream, phase: Phase, window: u32) -> Self {
        Self {
            route,
            socket,
            phase,
            credit: Credit::new(window),
            backlog: VecDeque::new(),
            readable: true,
            blocked: false,
            requested: false,
            guest_ended: 0,
            host_ended: 0,
            told_ended: 0,
            credit_asked: false,
            credit_wanted: false,
            burst: 1,
            queued: false,
            watches_output: false,
            timed: None,
        }
    }

    /// A connection that a client of the host asks for.
    pub(super) fn request(route: Route, socket: UnixStream, window: u32) -> Self {
        Self::new(route, socket, Phase::Requested, window)
    }

    /// A connection that the guest asked for with this packet.
    pub(super) fn accept(route: Route, socket: UnixStream, window: u32, header: &Header) -> Self {
        let mut connection = Self::new(route, socket, Phase::Accepted, window);
        // Nothing was sent yet, so no count can contradict; an invented one shows in the next packet.
        let _ = connection.credit.update(header.buf_alloc, 0);
        connection
    }

    /// Takes a packet that the guest sent on this connection. `payload` holds as many bytes as the header says.
    pub(super) fn receive(&mut self, header: &Header, payload: Segments<'_>) -> Verdict {
        if header.op == op::RST {
            return Verdict::Ended;
        }
        if let Err(error) = self.credit.update(header.buf_alloc, header.fwd_cnt) {
            debug!(?error, route = ?self.route, "the guest's credit makes no sense");
            return Verdict::Reset;
        }
        if self.credit.sendable() > 0 {
            self.credit_wanted = false;
        }
        match (self.phase, header.op) {
            (Phase::Requested, op::RESPONSE) if self.requested => self.established(),
            (Phase::Open | Phase::Closing, op::RW) => self.receive_data(payload),
            (Phase::Open | Phase::Closing, op::SHUTDOWN) => self.receive_shutdown(header.flags),
            (Phase::Open | Phase::Closing, op::CREDIT_UPDATE) => Verdict::Keep,
            (Phase::Open | Phase::Closing, op::CREDIT_REQUEST) => {
                self.credit_asked = true;
                Verdict::Keep
            }
            (phase, op) => {
                debug!(?phase, op, route = ?self.route, "the guest's packet does not belong here");
                Verdict::Reset
            }
        }
    }

    /// The guest accepted: the host's client is told.
    fn established(&mut self) -> Verdict {
        let answer = format!("OK {}\n", self.route.host_port);
        match socket::send_bytes(&self.socket, [answer.as_bytes(), &[]]) {
            Ok(sent) if sent == answer.len() => {
                self.phase = Phase::Open;
                Verdict::Keep
            }
            // A socket that was never written to has room for a line, so its client is gone.
            _ => Verdict::Reset,
        }
    }

    fn receive_data(&mut self, mut payload: Segments<'_>) -> Verdict {
        let Ok(len) = u32::try_from(payload.len()) else {
            return Verdict::Reset;
        };
        if self.guest_ended & SHUTDOWN_SEND != 0 || self.credit.receive(len).is_err() {
            debug!(len, route = ?self.route, "the guest sends more than it may");
            return Verdict::Reset;
        }
        if self.host_ended & SHUTDOWN_RECEIVE == 0 && !self.blocked {
            self.pass_on(&mut payload);
        }
        if self.host_ended & SHUTDOWN_RECEIVE != 0 {
            // Nobody reads it; the guest has been told, or will be.
            self.forward(payload.len());
        } else {
            self.hold(&payload);
        }
        self.finished()
    }

    /// Writes as much of the payload as the unix socket takes, straight from guest memory.
    fn pass_on(&mut self, payload: &mut Segments<'_>) {
        while payload.len() > 0 {
            let sent = socket::send(&self.socket, payload.slices().iter().copied());
            let Some(count) = self.sent(sent) else { return };
            payload.split_front(count);
        }
    }

    /// Keeps what the unix socket did not take.
    fn hold(&mut self, payload: &Segments<'_>) {
        let mut piece = [0; 4096];
        for slice in payload.slices() {
            let mut rest = *slice;
            while !rest.is_empty() {
                let count = rest.copy_to(&mut piece[..]);
                self.backlog.extend(&piece[..count]);
                let Ok(behind) = rest.offset(count) else { break };
                rest = behind;
            }
        }
    }

    /// Judges a write to the unix socket; `None` if no other should follow now.
    fn sent(&mut self, result: io::Result<usize>) -> Option<usize> {
        match result {
            Ok(count) => {
                self.forward(count);
                Some(count)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Some(0),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.blocked = true;
                None
            }
            Err(_) => {
                self.host_receives_no_more();
                None
            }
        }
    }

    /// Notes bytes of the guest as passed on. They fit: they were received as part of the window.
    fn forward(&mut self, count: usize) {
        self.credit.forward(u32::try_from(count).unwrap_or(u32::MAX));
    }

    /// The guest ends one or both directions. Bits that mean nothing are ignored.
    fn receive_shutdown(&mut self, flags: u32) -> Verdict {
        let news = flags & SHUTDOWN_BOTH & !self.guest_ended;
        self.guest_ended |= news;
        if news & SHUTDOWN_RECEIVE != 0 {
            // The host's peer gets EPIPE; what it wrote before and nobody read is lost, as with any socket.
            let _ = self.socket.shutdown(Shutdown::Read);
        }
        if news & SHUTDOWN_SEND != 0 && self.backlog.is_empty() {
            let _ = self.socket.shutdown(Shutdown::Write);
        }
        self.finished()
    }

    /// Takes notice of what the unix socket reports.
    pub(super) fn socket_event(&mut self, events: EventSet) -> Verdict {
        if events.intersects(EventSet::IN | EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR) {
            self.readable = true;
        }
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            match self.phase {
                // The client does not wait any more.
                Phase::Requested => return Verdict::Reset,
                _ => self.host_receives_no_more(),
            }
        }
        if events.contains(EventSet::OUT) {
            self.blocked = false;
            self.flush();
        }
        self.finished()
    }

    /// Passes on what was held back.
    fn flush(&mut self) {
        while !self.backlog.is_empty() {
            let (front, back) = self.backlog.as_slices();
            let sent = socket::send_bytes(&self.socket, [front, back]);
            let Some(count) = self.sent(sent) else { return };
            self.backlog.drain(..count);
        }
        // The memory of a back-pressure that is over is given back.
        self.backlog = VecDeque::new();
        if self.guest_ended & SHUTDOWN_SEND != 0 {
            let _ = self.socket.shutdown(Shutdown::Write);
        }
    }

    /// The host's peer is gone or reads no more.
    fn host_receives_no_more(&mut self) {
        self.host_ended |= SHUTDOWN_RECEIVE;
        self.blocked = false;
        let lost = std::mem::take(&mut self.backlog);
        self.forward(lost.len());
    }

    /// Whether both directions are done, and what follows from it.
    fn finished(&mut self) -> Verdict {
        let to_guest = self.host_ended & SHUTDOWN_SEND != 0 || self.guest_ended & SHUTDOWN_RECEIVE != 0;
        let passed_on = self.guest_ended & SHUTDOWN_SEND != 0 && self.backlog.is_empty();
        let from_guest = self.host_ended & SHUTDOWN_RECEIVE != 0 || passed_on;
        match self.phase {
            Phase::Draining if self.backlog.is_empty() => Verdict::Ended,
            // A reset is how the end that the guest asked for is confirmed.
            Phase::Open | Phase::Closing if self.guest_ended == SHUTDOWN_BOTH && from_guest => Verdict::Reset,
            Phase::Open if to_guest && from_guest => {
                self.host_ended = SHUTDOWN_BOTH;
                Verdict::Keep
            }
            _ => Verdict::Keep,
        }
    }

    /// The guest's end is gone. Returns whether there is something left to pass on, for which the connection stays.
    pub(super) fn drain(&mut self) -> bool {
        self.phase = Phase::Draining;
        self.guest_ended = SHUTDOWN_BOTH;
        !self.backlog.is_empty()
    }

    /// Whether the unix socket has to say when it takes more.
    pub(super) fn blocked(&self) -> bool {
        self.blocked
    }

    /// Whether the guest's end is gone.
    pub(super) fn draining(&self) -> bool {
        self.phase == Phase::Draining
    }

    /// What the connection waits for, but not for ever.
    pub(super) fn waits_for(&self) -> Option<Wait> {
        match self.phase {
            Phase::Requested => Some(Wait::Answer),
            Phase::Closing => Some(Wait::Reset),
            Phase::Accepted | Phase::Open | Phase::Draining => None,
        }
    }

    /// Whether there is something to send to the guest.
    pub(super) fn has_packet(&self) -> bool {
        self.next().is_some()
    }

    fn next(&self) -> Option<Next> {
        let control = |op, flags| Some(Next::Control { op, flags });
        match self.phase {
            Phase::Requested if !self.requested => return control(op::REQUEST, 0),
            Phase::Accepted => return control(op::RESPONSE, 0),
            Phase::Requested | Phase::Draining => return None,
            Phase::Open | Phase::Closing => {}
        }
        if self.host_ended & !self.told_ended != 0 {
            return control(op::SHUTDOWN, self.host_ended);
        }
        let ended = self.host_ended & SHUTDOWN_SEND != 0 || self.guest_ended & SHUTDOWN_RECEIVE != 0;
        if self.readable && !ended {
            if self.credit.sendable() > 0 {
                return Some(Next::Data);
            }
            if !self.credit_wanted {
                return control(op::CREDIT_REQUEST, 0);
            }
        }
        // Behind the end of the guest's stream its credit is of no use to it.
        let news = self.guest_ended & SHUTDOWN_SEND == 0 && self.credit.announcement_due();
        if self.credit_asked || news {
            return control(op::CREDIT_UPDATE, 0);
        }
        None
    }

    /// Sends the guest what is next: one packet of control, or a bounded amount of data.
    pub(super) fn send(&mut self, receiver: &mut Receiver<'_, '_>, guest_cid: u64) -> Result<Turn, RingError> {
        match self.next() {
            None => Ok(Turn::Done),
            Some(Next::Data) => self.send_data(receiver, guest_cid),
            Some(Next::Control { op, flags }) => {
                let Some(buffer) = receiver.take()? else {
                    return Ok(Turn::NoBuffer);
                };
                let header = self.header(guest_cid, op, flags, 0);
                receiver.give(&buffer, header)?;
                self.control_sent(op);
                Ok(Turn::Done)
            }
        }
    }

    fn control_sent(&mut self, op: u16) {
        match op {
            op::REQUEST => self.requested = true,
            op::RESPONSE => self.phase = Phase::Open,
            op::CREDIT_REQUEST => self.credit_wanted = true,
            op::SHUTDOWN => {
                self.told_ended = self.host_ended;
                if self.told_ended == SHUTDOWN_BOTH {
                    self.phase = Phase::Closing;
                }
            }
            _ => {}
        }
    }

    /// Reads from the unix socket straight into buffers of the guest.
    fn send_data(&mut self, receiver: &mut Receiver<'_, '_>, guest_cid: u64) -> Result<Turn, RingError> {
        let limit = self.credit.sendable().min(MAX_TURN) as usize;
        let mut buffers: Vec<PacketBuffer<'_>> = Vec::with_capacity(self.burst);
        let mut room = 0;
        while room < limit && buffers.len() < self.burst {
            let Some(buffer) = receiver.take()? else { break };
            room += buffer.payload.len();
            buffers.push(buffer);
        }
        if buffers.is_empty() {
            return Ok(Turn::NoBuffer);
        }
        let room = room.min(limit);
        let slices = buffers.iter().flat_map(|buffer| buffer.payload.slices());
        let count = match socket::receive(&self.socket, slices.copied(), room) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                return self.give_none(receiver, &buffers);
            }
            // Tried again with the next turn.
            Err(error) if error.kind() == ErrorKind::Interrupted => return self.give_none(receiver, &buffers),
            Err(_) => {
                // The peer closed without having read everything: it is gone altogether.
                self.host_receives_no_more();
                0
            }
        };
        if count == 0 {
            self.host_sends_no_more();
        }
        self.burst = if count == room {
            (self.burst * 2).min(MAX_BURST)
        } else {
            1
        };
        let given = self.give(receiver, &buffers, count, guest_cid)?;
        receiver.put_back(&buffers[given..]);
        Ok(Turn::Done)
    }

    /// Ends a turn in which there was nothing to read.
    fn give_none<'m>(
        &mut self,
        receiver: &mut Receiver<'_, 'm>,
        buffers: &[PacketBuffer<'m>],
    ) -> Result<Turn, RingError> {
        self.burst = 1;
        receiver.put_back(buffers);
        Ok(Turn::Done)
    }

    /// The unix socket's stream is at its end.
    fn host_sends_no_more(&mut self) {
        self.readable = false;
        self.host_ended |= SHUTDOWN_SEND;
        let _ = self.finished();
    }

    /// Gives the guest the first `count` bytes in the buffers, each as a packet; returns how many buffers that took.
    fn give<'m>(
        &mut self,
        receiver: &mut Receiver<'_, 'm>,
        buffers: &[PacketBuffer<'m>],
        count: usize,
        guest_cid: u64,
    ) -> Result<usize, RingError> {
        let mut rest = count;
        for (given, buffer) in buffers.iter().enumerate() {
            if rest == 0 {
                return Ok(given);
            }
            let len = rest.min(buffer.payload.len());
            rest -= len;
            // At most a turn's bytes.
            let len = u32::try_from(len).unwrap_or(u32::MAX);
            self.credit.send(len);
            let header = self.header(guest_cid, op::RW, 0, len);
            receiver.give(buffer, header)?;
        }
        Ok(buffers.len())
    }

    /// A header for a packet to the guest, with the newest counters.
    fn header(&mut self, guest_cid: u64, op: u16, flags: u32, len: u32) -> Header {
        let (buf_alloc, fwd_cnt) = self.credit.announce();
        self.credit_asked = false;
        Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: self.route.host_port,
            dst_port: self.route.guest_port,
            len,
            kind: TYPE_STREAM,
            op,
            flags,
            buf_alloc,
            fwd_cnt,
        }
    }
}
