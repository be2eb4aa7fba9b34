//! The guest's side of the device: a driver with sockets that keep to the rules and check that the device does.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::super::device::{Limits, Vsock};
use super::super::packet::{HEADER_LEN, Header, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, op};
use crate::testing::{Buffer, LoopThread, Machine, PATIENCE};

pub(super) const CID: u64 = 3;
/// The port of the host that the guest may connect to.
pub(super) const SERVICE: u32 = 1024;
/// A port of the guest at which it listens.
pub(super) const AGENT: u32 = 77;

pub(super) const RX: usize = 0;
pub(super) const TX: usize = 1;
pub(super) const EVENT: usize = 2;

/// The receive window that the guest gives each socket.
const WINDOW: u32 = 256 << 10;
/// The most data in a packet to the host, as Linux has it.
const MAX_PACKET: usize = 64 << 10;
/// The room for a packet to the host.
const TRANSMIT_ROOM: u64 = (64 << 10) + 64;
/// The room for an indirect table behind a buffer.
const TABLE: u64 = 512;

/// The host's port and the guest's.
pub(super) type Key = (u32, u32);

/// A socket of the guest.
#[derive(Debug)]
pub(super) struct Socket {
    /// Arrived and not yet taken.
    pub(super) inbox: Vec<u8>,
    pub(super) window: u32,
    arrived: u32,
    taken: u32,
    sent: u32,
    host_window: u32,
    host_taken: u32,
    pub(super) connected: bool,
    /// How often the device asked for credit.
    pub(super) asked: usize,
    /// Flags of the host's shutdowns.
    pub(super) host_ended: u32,
    /// Flags of our own.
    pub(super) ended: u32,
    pub(super) reset: bool,
}

impl Socket {
    fn new() -> Self {
        Self {
            inbox: Vec::new(),
            window: WINDOW,
            arrived: 0,
            taken: 0,
            sent: 0,
            host_window: 0,
            host_taken: 0,
            connected: false,
            asked: 0,
            host_ended: 0,
            ended: 0,
            reset: false,
        }
    }

    fn credit(&self) -> usize {
        (self.host_window - self.sent.wrapping_sub(self.host_taken)) as usize
    }
}

/// A guest with its driver, and the host's ends of the device.
pub(super) struct Guest {
    pub(super) machine: Machine,
    pub(super) events: LoopThread,
    pub(super) sockets: HashMap<Key, Socket>,
    pub(super) listening: HashSet<u32>,
    /// Packets for which there is no socket.
    pub(super) strays: Vec<Header>,
    /// Sizes of new receive buffers.
    pub(super) buffer_size: u32,
    /// Whether used receive buffers are offered again.
    pub(super) refill: bool,
    /// How packets are laid out in descriptors.
    pub(super) layout: Layout,
    receive_buffers: HashMap<u16, (u64, u32)>,
    transmit_buffers: HashMap<u16, u64>,
    free_transmit: Vec<u64>,
    event_buffers: HashMap<u16, u64>,
    /// How many buffers for events the driver offers when it starts.
    pub(super) events_offered: usize,
    /// Whether packets may come that answer no packet of a socket, and sockets may be told lies that we asked for.
    pub(super) accept_foreign: bool,
    /// Packets that arrived.
    pub(super) packets: usize,
    path: PathBuf,
    pub(super) acceptor: OwnedFd,
    _directory: TempDir,
}

/// How packets to the host are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Header and data in one buffer.
    One,
    /// The header cut in the middle, and the data in pages.
    Pieces,
    /// As pieces, through an indirect table.
    Indirect,
}

impl Guest {
    /// A guest whose driver is ready and has offered all its buffers.
    pub(super) fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    pub(super) fn with_limits(limits: Limits) -> Self {
        let mut guest = Self::unstarted(limits);
        guest.start();
        guest
    }

    /// A guest whose driver has not been loaded.
    pub(super) fn unstarted(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        let events = LoopThread::new();
        let (device, acceptor) = device(&path, &events, limits);
        Self {
            machine: Machine::new(device),
            events,
            sockets: HashMap::new(),
            listening: HashSet::from([AGENT]),
            strays: Vec::new(),
            buffer_size: 4096,
            refill: true,
            layout: Layout::One,
            receive_buffers: HashMap::new(),
            transmit_buffers: HashMap::new(),
            free_transmit: Vec::new(),
            event_buffers: HashMap::new(),
            events_offered: 8,
            accept_foreign: false,
            packets: 0,
            path,
            acceptor,
            _directory: directory,
        }
    }

    /// Does something with a device that has no transport.
    pub(super) fn unstarted_device<T>(action: impl FnOnce(&mut Vsock) -> T) -> T {
        let directory = tempfile::tempdir().unwrap();
        let events = LoopThread::new();
        let (mut device, _) = device(&directory.path().join("vsock"), &events, Limits::default());
        action(&mut device)
    }

    /// Loads the driver.
    pub(super) fn start(&mut self) {
        let features = self.machine.offered();
        self.start_with(features);
    }

    pub(super) fn start_with(&mut self, features: u64) {
        self.receive_buffers.clear();
        self.transmit_buffers.clear();
        self.sockets.clear();
        self.machine.start(features);
        if self.free_transmit.is_empty() {
            self.free_transmit = (0..40).map(|_| self.machine.allocate(TRANSMIT_ROOM + TABLE)).collect();
        }
        for _ in 0..self.events_offered {
            self.offer_event_buffer();
        }
        if self.refill {
            self.offer(self.machine.rings[RX].size.into());
        }
    }

    /// Offers new receive buffers.
    pub(super) fn offer(&mut self, count: usize) {
        for _ in 0..count {
            let address = self.machine.allocate(u64::from(self.buffer_size) + TABLE);
            self.offer_at(address, self.buffer_size);
        }
        self.machine.notify(RX);
    }

    fn offer_at(&mut self, address: u64, size: u32) {
        // Cut within the header and behind it.
        let parts = [
            Buffer::Write(address, 20),
            Buffer::Write(address + 20, 24),
            Buffer::Write(address + 44, size - 44),
        ];
        let head = match self.layout {
            Layout::One => self.machine.submit(RX, &[Buffer::Write(address, size)]),
            Layout::Pieces => self.machine.submit(RX, &parts),
            Layout::Indirect => self
                .machine
                .submit_through(address + u64::from(size.next_multiple_of(16)), RX, &parts),
        };
        self.receive_buffers.insert(head, (address, size));
    }

    pub(super) fn offer_event_buffer(&mut self) {
        let address = self.machine.allocate(8);
        let head = self.machine.submit(EVENT, &[Buffer::Write(address, 4)]);
        self.event_buffers.insert(head, address);
        self.machine.notify(EVENT);
    }

    /// The event that the device reported, if any.
    pub(super) fn take_event(&mut self) -> Option<u32> {
        let (head, length) = self.machine.take_used(EVENT)?;
        assert_eq!(length, 4);
        let address = self.event_buffers.remove(&head).unwrap();
        Some(self.machine.memory.read_obj(GuestAddress(address)).unwrap())
    }

    /// Lets the device and the guest's sockets work until there is nothing left to do.
    pub(super) fn pump(&mut self) {
        let mut quiet = 0;
        while quiet < 3 {
            self.events.settle();
            quiet = if self.poll() { 0 } else { quiet + 1 };
        }
    }

    /// Works until `done`, sleeping as a guest does.
    pub(super) fn run_until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        while !done(self) {
            if !self.poll() {
                assert!(
                    self.machine.wait_any(&[RX, TX], PATIENCE),
                    "neither interrupt nor progress: {:?}",
                    self.sockets
                );
            }
        }
    }

    /// Takes what the device has used; returns whether that was anything.
    pub(super) fn poll(&mut self) -> bool {
        let mut any = self.reclaim();
        while let Some((head, length)) = self.machine.take_used(RX) {
            any = true;
            let (address, size) = self.receive_buffers.remove(&head).unwrap();
            assert!(length <= size);
            let bytes = self.machine.bytes(address, length as usize);
            if self.refill {
                self.offer_at(address, size);
            }
            self.packet(&bytes);
        }
        self.machine.notify(RX);
        any
    }

    /// Takes back the buffers of packets that the device has taken.
    fn reclaim(&mut self) -> bool {
        let mut any = false;
        while let Some((head, length)) = self.machine.take_used(TX) {
            assert_eq!(length, 0, "nothing is written into a packet of the guest");
            self.free_transmit.push(self.transmit_buffers.remove(&head).unwrap());
            any = true;
        }
        any
    }

    fn packet(&mut self, bytes: &[u8]) {
        self.packets += 1;
        let (header, data) = bytes.split_first_chunk::<HEADER_LEN>().expect("a whole header");
        let header = Header::from_bytes(header);
        assert_eq!(header.len as usize, data.len(), "the used length is that of the packet");
        if self.accept_foreign {
            if self.listening.contains(&header.dst_port) && header.op == op::REQUEST {
                // The two sides' counters contradict each other from here on.
                self.send_raw(&Self::header((header.src_port, header.dst_port), op::RESPONSE), &[]);
            }
            self.strays.push(header);
            return;
        }
        assert_eq!(header.dst_cid, CID);
        let key = (header.src_port, header.dst_port);
        if header.op == op::REQUEST && !self.sockets.contains_key(&key) {
            assert_eq!(header.kind, TYPE_STREAM);
            if !self.listening.contains(&header.dst_port) {
                self.send_raw(&Self::header(key, op::RST), &[]);
                return;
            }
            self.sockets.insert(key, Socket::new());
            self.note_credit(key, &header);
            self.socket(key).connected = true;
            self.send(key, op::RESPONSE, 0, &[]);
            return;
        }
        if self.sockets.get(&key).is_none_or(|socket| socket.reset) {
            self.strays.push(header);
            return;
        }
        assert_eq!((header.src_cid, header.kind), (2, TYPE_STREAM));
        if header.op == op::RST {
            self.socket(key).reset = true;
            return;
        }
        self.note_credit(key, &header);
        let socket = self.socket(key);
        match header.op {
            op::RESPONSE => {
                assert!(!socket.connected);
                socket.connected = true;
            }
            op::RW => {
                assert!(socket.connected && socket.host_ended & SHUTDOWN_SEND == 0);
                assert!(!data.is_empty());
                socket.arrived = socket.arrived.wrapping_add(header.len);
                assert!(
                    socket.arrived.wrapping_sub(socket.taken) <= socket.window,
                    "the device sends more than it may"
                );
                socket.inbox.extend_from_slice(data);
            }
            op::SHUTDOWN => {
                assert_ne!(header.flags, 0);
                socket.host_ended |= header.flags;
            }
            op::CREDIT_REQUEST => {
                socket.asked += 1;
                self.send(key, op::CREDIT_UPDATE, 0, &[]);
            }
            op::CREDIT_UPDATE => {}
            other => panic!("the device sends operation {other}"),
        }
    }

    fn note_credit(&mut self, key: Key, header: &Header) {
        let socket = self.socket(key);
        socket.host_window = header.buf_alloc;
        socket.host_taken = header.fwd_cnt;
    }

    pub(super) fn socket(&mut self, key: Key) -> &mut Socket {
        self.sockets.get_mut(&key).expect("a socket of the guest")
    }

    /// A header that is right in everything that does not depend on a socket.
    pub(super) fn header((host_port, guest_port): Key, op: u16) -> Header {
        Header {
            src_cid: CID,
            dst_cid: 2,
            src_port: guest_port,
            dst_port: host_port,
            kind: TYPE_STREAM,
            op,
            ..Header::default()
        }
    }

    /// The header of a packet on a socket.
    pub(super) fn header_of(&mut self, key: Key, op: u16) -> Header {
        let socket = self.socket(key);
        Header {
            buf_alloc: socket.window,
            fwd_cnt: socket.taken,
            ..Self::header(key, op)
        }
    }

    /// Sends a packet on a socket.
    pub(super) fn send(&mut self, key: Key, op: u16, flags: u32, data: &[u8]) {
        let header = Header {
            flags,
            len: u32::try_from(data.len()).unwrap(),
            ..self.header_of(key, op)
        };
        self.send_raw(&header, data);
    }

    /// Sends any packet. Waits for a buffer if there is none.
    pub(super) fn send_raw(&mut self, header: &Header, data: &[u8]) {
        while self.free_transmit.is_empty() || self.machine.rings[TX].free_descriptors() < 20 {
            if !self.reclaim() {
                assert!(self.machine.wait_any(&[TX], PATIENCE), "no packet is taken");
            }
        }
        let address = self.free_transmit.pop().unwrap();
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend_from_slice(data);
        self.machine.memory.write_slice(&bytes, GuestAddress(address)).unwrap();
        let length = u32::try_from(bytes.len()).unwrap();
        let mut parts = vec![Buffer::Read(address, 30), Buffer::Read(address + 30, 14)];
        let mut offset = 44;
        while offset < length {
            let piece = (length - offset).min(4096);
            parts.push(Buffer::Read(address + u64::from(offset), piece));
            offset += piece;
        }
        let head = match self.layout {
            Layout::One => self.machine.submit(TX, &[Buffer::Read(address, length)]),
            Layout::Pieces => self.machine.submit(TX, &parts),
            Layout::Indirect => self.machine.submit_through(address + TRANSMIT_ROOM, TX, &parts),
        };
        self.transmit_buffers.insert(head, address);
        self.machine.notify(TX);
    }

    /// Sends as much of the data as the device has room for; returns how much.
    pub(super) fn send_data(&mut self, key: Key, data: &[u8]) -> usize {
        let count = data.len().min(self.socket(key).credit());
        for piece in data[..count].chunks(MAX_PACKET) {
            let socket = self.socket(key);
            socket.sent = socket.sent.wrapping_add(u32::try_from(piece.len()).unwrap());
            self.send(key, op::RW, 0, piece);
        }
        count
    }

    /// Takes up to `count` bytes that arrived, and tells the device.
    pub(super) fn take_data(&mut self, key: Key, count: usize) -> Vec<u8> {
        let socket = self.socket(key);
        let count = count.min(socket.inbox.len());
        let data: Vec<u8> = socket.inbox.drain(..count).collect();
        socket.taken = socket.taken.wrapping_add(u32::try_from(count).unwrap());
        if count > 0 && !socket.reset {
            self.send(key, op::CREDIT_UPDATE, 0, &[]);
        }
        data
    }

    /// Ends directions of a socket.
    pub(super) fn shutdown(&mut self, key: Key, flags: u32) {
        self.socket(key).ended |= flags;
        self.send(key, op::SHUTDOWN, flags, &[]);
    }

    /// Closes a socket, as Linux does: both directions, then the host confirms with a reset.
    pub(super) fn close(&mut self, key: Key) {
        self.shutdown(key, SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
    }

    /// The guest asks for a connection; the packet is only sent.
    pub(super) fn request(&mut self, key: Key) {
        self.sockets.insert(key, Socket::new());
        self.send(key, op::REQUEST, 0, &[]);
    }

    /// The guest connects to [`SERVICE`]; returns the socket and the host's end.
    pub(super) fn connect(&mut self, guest_port: u32) -> (Key, UnixStream) {
        let key = (SERVICE, guest_port);
        self.request(key);
        self.pump();
        assert!(self.socket(key).connected);
        (key, self.accepted())
    }

    /// The next connection that the device passed to the port's owner.
    pub(super) fn accepted(&self) -> UnixStream {
        let socket = UnixStream::from(self.acceptor.as_fd().try_clone_to_owned().unwrap());
        let mut byte = [1];
        let (count, file) = socket.recv_with_fd(&mut byte[..]).unwrap();
        assert_eq!((count, byte), (1, [0]));
        let stream = UnixStream::from(OwnedFd::from(file.expect("a descriptor")));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A client of the host that has connected, and has said nothing.
    pub(super) fn client(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A client that has asked for the agent's port.
    pub(super) fn asking(&self) -> UnixStream {
        let mut stream = self.client();
        // It may have been refused already.
        let _ = writeln!(stream, "CONNECT {AGENT}");
        stream
    }

    /// A client of the host connects to [`AGENT`]; returns the guest's socket and the client's end.
    pub(super) fn dial(&mut self) -> (Key, UnixStream) {
        let mut stream = self.asking();
        self.pump();
        let port = answer(&mut stream).expect("the guest accepts");
        ((port, AGENT), stream)
    }

    /// Moves the guest to another process: all that is left of the device is its saved state.
    pub(super) fn moved(self) -> Self {
        self.moved_with(Limits::default())
    }

    pub(super) fn moved_with(mut self, limits: Limits) -> Self {
        let path = self.path.with_added_extension("restored");
        let events = LoopThread::new();
        let (device, acceptor) = device(&path, &events, limits);
        self.machine = self.machine.moved_to(device);
        self.events = events;
        self.path = path;
        self.acceptor = acceptor;
        self
    }
}

fn device(path: &std::path::Path, events: &LoopThread, limits: Limits) -> (Vsock, OwnedFd) {
    let listener = UnixListener::bind(path).unwrap();
    let (ours, theirs) = seqpacket_pair();
    let ports = vec![(SERVICE, ours)];
    let device = Vsock::with_limits(3, listener.into(), ports, events.handle(), limits).unwrap();
    (device, theirs)
}

/// Reads `OK <port>\n`; `None` if the connection was closed instead.
pub(super) fn answer(stream: &mut UnixStream) -> Option<u32> {
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).unwrap() == 1 {
        if byte == *b"\n" {
            let line = String::from_utf8(line).unwrap();
            return Some(line.strip_prefix("OK ").unwrap().parse().unwrap());
        }
        line.push(byte[0]);
    }
    assert!(line.is_empty());
    None
}

/// A connected pair of sequenced-packet sockets.
pub(super) fn seqpacket_pair() -> (OwnedFd, OwnedFd) {
    use std::os::fd::FromRawFd;
    let mut pair = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the array has room for the two descriptors.
    #[allow(unsafe_code)]
    let result = unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, pair.as_mut_ptr()) };
    assert_eq!(result, 0);
    // SAFETY: the call succeeded, so the descriptors are new and nobody else's.
    #[allow(unsafe_code)]
    let sockets = pair.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    sockets.into()
}

/// Data in which a lost, doubled or moved byte shows.
pub(super) fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

/// Limits that tests can wait for.
pub(super) fn short_limits() -> Limits {
    Limits {
        greeting: Duration::from_millis(50),
        answer: Duration::from_millis(50),
        closing: Duration::from_millis(50),
        notice: Duration::from_millis(50),
        ..Limits::default()
    }
}
