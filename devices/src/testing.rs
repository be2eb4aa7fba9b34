//! A driver for tests: lays out queues in guest memory and drives a device through its transport's registers, as a
//! guest does. It keeps to the rules of notification suppression, so that a wake-up that a device loses is a test that
//! fails after [`PATIENCE`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use event_manager::RemoteEndpoint;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::event::{EventLoop, LoopHandle, Worker};
use crate::virtio::mmio::Transport;
use crate::virtio::{Device, Memory, feature, status};

/// How long a test waits for what must happen: as long as the storage of a busy host may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The regions of a test's guest memory: two that adjoin, and one far away.
pub(crate) const REGIONS: [(GuestAddress, usize); 3] = [
    (GuestAddress(0), 8 << 20),
    (GuestAddress(8 << 20), 8 << 20),
    (GuestAddress(1 << 32), 8 << 20),
];

const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;
const DESC_INDIRECT: u16 = 4;

pub(crate) fn memory() -> Memory {
    Memory::from_ranges(&REGIONS).unwrap()
}

/// One buffer of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Buffer {
    /// Address and length of what the device reads.
    Read(u64, u32),
    /// Address and length of what the device writes.
    Write(u64, u32),
}

/// A queue as its driver sees it.
#[derive(Clone, Debug)]
pub(crate) struct Ring {
    pub(crate) size: u16,
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
    event_idx: bool,
    free: Vec<u16>,
    /// The descriptors of the chains that the device has.
    chains: HashMap<u16, Vec<u16>>,
    next_available: u16,
    /// `next_available` at the last notification.
    notified: u16,
    next_used: u16,
}

impl Ring {
    /// How many descriptors the driver has left.
    pub(crate) fn free_descriptors(&self) -> usize {
        self.free.len()
    }
}

/// A device behind its transport, and its driver.
pub(crate) struct Machine {
    pub(crate) memory: Memory,
    pub(crate) transport: Transport,
    pub(crate) rings: Vec<Ring>,
    line: EventFd,
    next_page: u64,
}

impl Machine {
    /// A device after reset.
    pub(crate) fn new(device: impl Device + 'static) -> Self {
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let memory = memory();
        let transport = Transport::new(Box::new(device), memory.clone(), line.try_clone().unwrap()).unwrap();
        Self {
            memory,
            transport,
            rings: Vec::new(),
            line,
            next_page: 0x10_0000,
        }
    }

    /// A device that works, with all of the features that it offers.
    pub(crate) fn started(device: impl Device + 'static) -> Self {
        let mut machine = Self::new(device);
        let offered = machine.offered();
        machine.start(offered);
        machine
    }

    pub(crate) fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    pub(crate) fn status(&self) -> u32 {
        self.read(0x70)
    }

    pub(crate) fn offered(&mut self) -> u64 {
        self.write(0x14, 1);
        let high = u64::from(self.read(0x10));
        self.write(0x14, 0);
        high << 32 | u64::from(self.read(0x10))
    }

    /// Resets the device and negotiates `features`; returns whether the device took them.
    #[allow(clippy::cast_possible_truncation)]
    pub(crate) fn negotiate(&mut self, features: u64) -> bool {
        self.write(0x70, 0);
        assert_eq!(self.status(), 0);
        self.write(0x70, status::ACKNOWLEDGE);
        self.write(0x70, status::ACKNOWLEDGE | status::DRIVER);
        for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(0x24, select);
            self.write(0x20, half);
        }
        self.write(0x70, status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        self.status() & status::FEATURES_OK != 0
    }

    /// The whole way from reset to a device that works, with all queues of the greatest size.
    pub(crate) fn start(&mut self, features: u64) {
        assert!(self.negotiate(features), "the device refuses its own features");
        self.rings.clear();
        for index in 0.. {
            self.write(0x30, index);
            let size = u16::try_from(self.read(0x34)).unwrap();
            if size == 0 {
                break;
            }
            let ring = self.lay_out(size, features & feature::EVENT_IDX != 0);
            self.enable(index, &ring);
            assert_eq!(self.read(0x44), 1);
            self.rings.push(ring);
        }
        self.drive();
        assert_eq!(self.status() & status::NEEDS_RESET, 0);
    }

    /// The last step: the driver is ready.
    pub(crate) fn drive(&mut self) {
        let status = self.status();
        self.write(0x70, status | status::DRIVER_OK);
    }

    /// A ring of `size` in fresh memory.
    pub(crate) fn lay_out(&mut self, size: u16, event_idx: bool) -> Ring {
        let entries = u64::from(size);
        Ring {
            size,
            descriptors: self.allocate(entries * 16),
            available: self.allocate(entries * 2 + 6),
            used: self.allocate(entries * 8 + 6),
            event_idx,
            free: (0..size).rev().collect(),
            chains: HashMap::new(),
            next_available: 0,
            notified: 0,
            next_used: 0,
        }
    }

    /// Writes the queue registers and enables the queue.
    #[allow(clippy::cast_possible_truncation)]
    pub(crate) fn enable(&mut self, index: u32, ring: &Ring) {
        self.write(0x30, index);
        self.write(0x38, u32::from(ring.size));
        for (offset, address) in [(0x80, ring.descriptors), (0x90, ring.available), (0xa0, ring.used)] {
            self.write(offset, address as u32);
            self.write(offset + 4, (address >> 32) as u32);
        }
        self.write(0x44, 1);
    }

    /// Zeroed guest memory at the start of a page.
    pub(crate) fn allocate(&mut self, length: u64) -> u64 {
        let address = self.next_page;
        let length = length.next_multiple_of(0x1000);
        self.next_page += length;
        assert!(self.next_page <= 16 << 20, "the test uses up its guest memory");
        let zeros = vec![0; usize::try_from(length).unwrap()];
        self.memory.write_slice(&zeros, GuestAddress(address)).unwrap();
        address
    }

    /// Guest memory that holds `data`.
    pub(crate) fn allocate_with(&mut self, data: &[u8]) -> u64 {
        let address = self.allocate(data.len() as u64);
        self.memory.write_slice(data, GuestAddress(address)).unwrap();
        address
    }

    pub(crate) fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.memory.read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }

    pub(crate) fn write_descriptor(&self, table: u64, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&address.to_le_bytes());
        raw[8..12].copy_from_slice(&length.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&next.to_le_bytes());
        self.memory
            .write_slice(&raw, GuestAddress(table + u64::from(index) * 16))
            .unwrap();
    }

    /// Makes a request available without a notification; returns its head, by which it comes back.
    pub(crate) fn submit(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let ring = &mut self.rings[queue];
        let indices: Vec<u16> = buffers
            .iter()
            .map(|_| ring.free.pop().expect("the queue is full"))
            .collect();
        let table = ring.descriptors;
        self.write_chain(table, &indices, buffers);
        self.rings[queue].chains.insert(indices[0], indices.clone());
        self.make_available(queue, indices[0]);
        indices[0]
    }

    /// As [`Machine::submit`], through an indirect table.
    pub(crate) fn submit_indirect(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let table = self.allocate(buffers.len() as u64 * 16);
        self.submit_through(table, queue, buffers)
    }

    /// As [`Machine::submit_indirect`], with the table at a given place.
    pub(crate) fn submit_through(&mut self, table: u64, queue: usize, buffers: &[Buffer]) -> u16 {
        let length = u16::try_from(buffers.len()).unwrap();
        self.write_chain(table, &(0..length).collect::<Vec<_>>(), buffers);
        let ring = &mut self.rings[queue];
        let head = ring.free.pop().expect("the queue is full");
        ring.chains.insert(head, vec![head]);
        let descriptors = ring.descriptors;
        self.write_descriptor(descriptors, head, table, u32::from(length) * 16, DESC_INDIRECT, 0);
        self.make_available(queue, head);
        head
    }

    fn write_chain(&self, table: u64, indices: &[u16], buffers: &[Buffer]) {
        for (position, buffer) in buffers.iter().enumerate() {
            let (address, length, direction) = match *buffer {
                Buffer::Read(address, length) => (address, length, 0),
                Buffer::Write(address, length) => (address, length, DESC_WRITE),
            };
            let (next, more) = indices.get(position + 1).map_or((0, 0), |next| (*next, DESC_NEXT));
            self.write_descriptor(table, indices[position], address, length, direction | more, next);
        }
    }

    /// Puts a head into the available ring, whatever it is.
    pub(crate) fn make_available(&mut self, queue: usize, head: u16) {
        let ring = &mut self.rings[queue];
        let entry = ring.available + 4 + u64::from(ring.next_available % ring.size) * 2;
        self.memory.write_obj(head, GuestAddress(entry)).unwrap();
        ring.next_available = ring.next_available.wrapping_add(1);
        self.memory
            .store(ring.next_available, GuestAddress(ring.available + 2), Ordering::Release)
            .unwrap();
    }

    /// Moves the available ring's index ahead without writing entries.
    pub(crate) fn claim_available(&mut self, queue: usize, count: u16) {
        let ring = &mut self.rings[queue];
        ring.next_available = ring.next_available.wrapping_add(count);
        self.memory
            .store(ring.next_available, GuestAddress(ring.available + 2), Ordering::Release)
            .unwrap();
    }

    /// Notifies the device if it wants to be.
    pub(crate) fn notify(&mut self, queue: usize) {
        fence(Ordering::SeqCst);
        let ring = &mut self.rings[queue];
        let (old, new) = (ring.notified, ring.next_available);
        ring.notified = new;
        let wanted = if ring.event_idx {
            let event = ring.used + 4 + u64::from(ring.size) * 8;
            let event: u16 = self.memory.load(GuestAddress(event), Ordering::Relaxed).unwrap();
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            let flags: u16 = self.memory.load(GuestAddress(ring.used), Ordering::Relaxed).unwrap();
            flags & 1 == 0
        };
        if wanted {
            self.write(0x50, u32::try_from(queue).unwrap());
        }
    }

    /// The next used buffer, if there is one: its head and the length that the device reports.
    pub(crate) fn take_used(&mut self, queue: usize) -> Option<(u16, u32)> {
        let ring = &mut self.rings[queue];
        let index: u16 = self
            .memory
            .load(GuestAddress(ring.used + 2), Ordering::Acquire)
            .unwrap();
        if index == ring.next_used {
            return None;
        }
        let entry = ring.used + 4 + u64::from(ring.next_used % ring.size) * 8;
        ring.next_used = ring.next_used.wrapping_add(1);
        let head: u32 = self.memory.read_obj(GuestAddress(entry)).unwrap();
        let length: u32 = self.memory.read_obj(GuestAddress(entry + 4)).unwrap();
        let head = u16::try_from(head).unwrap();
        let chain = ring
            .chains
            .remove(&head)
            .expect("a head came back that the device did not have");
        ring.free.extend(chain);
        Some((head, length))
    }

    /// Asks for an interrupt when `ahead` buffers more than have been taken are used, and one more is.
    pub(crate) fn ask_for_interrupt(&mut self, queue: usize, ahead: u16) {
        let ring = &self.rings[queue];
        let event = ring.available + 4 + u64::from(ring.size) * 2;
        let wanted = ring.next_used.wrapping_add(ahead);
        self.memory
            .store(wanted, GuestAddress(event), Ordering::Relaxed)
            .unwrap();
        fence(Ordering::SeqCst);
    }

    /// Sets the flag by which a driver without `EVENT_IDX` asks for no interrupts, or takes it back.
    pub(crate) fn ask_for_quiet(&mut self, queue: usize, wish: bool) {
        let flags = GuestAddress(self.rings[queue].available);
        self.memory.store(u16::from(wish), flags, Ordering::Relaxed).unwrap();
        fence(Ordering::SeqCst);
    }

    /// Waits for the next used buffer as a driver does: asks for an interrupt, looks again, sleeps until the line is
    /// raised.
    pub(crate) fn wait_used(&mut self, queue: usize) -> (u16, u32) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(used) = self.take_used(queue) {
                return used;
            }
            self.ask_for_interrupt(queue, 0);
            if let Some(used) = self.take_used(queue) {
                return used;
            }
            assert!(
                self.wait_line(deadline),
                "no interrupt for queue {queue}; status {:#x}",
                self.status()
            );
        }
    }

    /// Sleeps as a driver does that waits for used buffers in any of these queues: asks for interrupts, looks again,
    /// and sleeps until the line is raised. False if nothing happened before `limit`.
    pub(crate) fn wait_any(&mut self, queues: &[usize], limit: Duration) -> bool {
        for queue in queues {
            self.ask_for_interrupt(*queue, 0);
        }
        let used = queues.iter().any(|queue| {
            let ring = &self.rings[*queue];
            let index: u16 = self
                .memory
                .load(GuestAddress(ring.used + 2), Ordering::Acquire)
                .unwrap();
            index != ring.next_used
        });
        used || self.wait_line(Instant::now() + limit)
    }

    /// Waits for an interrupt and acknowledges it; returns its reasons, or none after `limit`.
    pub(crate) fn wait_interrupt(&mut self, limit: Duration) -> u32 {
        let deadline = Instant::now() + limit;
        loop {
            let reasons = self.read(0x60);
            if reasons != 0 {
                self.write(0x64, reasons);
                return reasons;
            }
            if !self.wait_line(deadline) {
                return 0;
            }
        }
    }

    /// Waits until the device needs a reset.
    pub(crate) fn wait_needs_reset(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.status() & status::NEEDS_RESET == 0 {
            assert!(self.wait_line(deadline), "the device does not ask for a reset");
        }
    }

    /// Sleeps until the line is raised; false at the deadline.
    fn wait_line(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        wait_readable(&self.line, left) && {
            let _ = self.line.read();
            true
        }
    }

    /// Saves the machine through JSON and goes on with `device` in its place; the memory stays.
    pub(crate) fn moved_to(mut self, device: impl Device + 'static) -> Self {
        let state = self.transport.save().unwrap();
        let text = serde_json::to_string(&state).unwrap();
        let state = serde_json::from_str(&text).unwrap();
        self.line = EventFd::new(EFD_NONBLOCK).unwrap();
        let line = self.line.try_clone().unwrap();
        self.transport = Transport::restore(state, Box::new(device), self.memory.clone(), line).unwrap();
        self.transport.resume();
        self
    }
}

/// Waits until `event` is signalled, without reading it.
pub(crate) fn wait_readable(event: &impl std::os::fd::AsRawFd, limit: Duration) -> bool {
    let mut poll = [libc::pollfd {
        fd: event.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    }];
    let limit = i32::try_from(limit.as_millis()).unwrap();
    // SAFETY: the array is one initialized pollfd that lives through the call.
    #[allow(unsafe_code)]
    let count = unsafe { libc::poll(poll.as_mut_ptr(), 1, limit) };
    count == 1
}

/// A thread that runs an event loop until it is dropped.
pub(crate) struct LoopThread {
    handle: LoopHandle,
    endpoint: RemoteEndpoint<Box<dyn Worker>>,
    ended: Arc<AtomicBool>,
    /// How often the loop woke up.
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl LoopThread {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = mpsc::channel();
        let ended = Arc::new(AtomicBool::new(false));
        let end = ended.clone();
        let rounds = Arc::new(AtomicU64::new(0));
        let count = rounds.clone();
        let thread = std::thread::spawn(move || {
            let mut events = EventLoop::new().unwrap();
            sender
                .send((LoopHandle::new(&events), events.remote_endpoint()))
                .unwrap();
            while !end.load(Ordering::SeqCst) {
                events.run().unwrap();
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        let (handle, endpoint) = receiver.recv().unwrap();
        Self {
            handle,
            endpoint,
            ended,
            rounds,
            thread: Some(thread),
        }
    }

    pub(crate) fn handle(&self) -> LoopHandle {
        self.handle.clone()
    }

    /// Returns when the loop has dealt with all events that happened before.
    pub(crate) fn settle(&self) {
        // The round that is under way may have looked for events before; the next one has not.
        let end = self.rounds() + 2;
        while self.rounds() < end {
            let called: Result<(), event_manager::Error> = self.endpoint.call_blocking(|_| Ok(()));
            called.unwrap();
        }
    }

    /// How often the loop has woken up.
    pub(crate) fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::SeqCst)
    }
}

impl Drop for LoopThread {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        self.endpoint.kick().unwrap();
        if let Some(thread) = self.thread.take() {
            let joined = thread.join();
            assert!(std::thread::panicking() || joined.is_ok(), "the event loop panicked");
        }
    }
}
