//! The socket device (virtio 1.2, section 5.10): `vsock-echo` and `vsock-stream`.

use husk_test_guest::checksum;
use husk_test_guest::layout::BUFFERS;
use husk_test_guest::order::{Order, pattern};
use husk_test_guest::report::{Outcome, Reason};

use super::machine::ticks;
use super::memory::{read8, read16, read32, words, write8, write16, write32, write64};
use super::queue::{Queue, WRITE};
use super::virtio::{CONFIG, Device, Machine, SOCKET};
use super::{Failure, page, wait};

pub(super) const HEADER: u64 = 44;
pub(super) const HOST: u64 = 2;
pub(super) const STREAM: u16 = 1;

/// Operations.
pub(super) const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RESET: u16 = 3;
const SHUTDOWN: u16 = 4;
const DATA: u16 = 5;
const CREDIT_UPDATE: u16 = 6;
const CREDIT_REQUEST: u16 = 7;
/// Flag of a shutdown: nothing more will be sent.
const SENDS_NO_MORE: u32 = 2;

/// Buffers of each direction.
const SLOTS: u16 = 64;
/// The distance of two buffers: a header and up to 4,096 bytes.
const SLOT: u64 = 0x2000;
const MOST: u64 = 4096;
pub(super) const RECEIVE: u64 = BUFFERS;
pub(super) const TRANSMIT: u64 = BUFFERS + SLOT * SLOTS as u64;
/// Where an echo is put together.
const ECHO: u64 = BUFFERS + 0x80_0000;
/// What the other side may have under way.
const WINDOW: u32 = 128 << 10;
/// The guest's own port.
const PORT: u32 = 4096;

/// A packet's header without its context ids.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Header {
    pub(super) source: u32,
    pub(super) destination: u32,
    pub(super) length: u32,
    pub(super) kind: u16,
    pub(super) operation: u16,
    pub(super) flags: u32,
    pub(super) window: u32,
    pub(super) forwarded: u32,
}

impl Header {
    fn read(address: u64) -> Self {
        Self {
            source: read32(address + 16),
            destination: read32(address + 20),
            length: read32(address + 24),
            kind: read16(address + 28),
            operation: read16(address + 30),
            flags: read32(address + 32),
            window: read32(address + 36),
            forwarded: read32(address + 40),
        }
    }

    /// Writes it with these context ids.
    pub(super) fn write(&self, address: u64, from: u64, to: u64) {
        write64(address, from);
        write64(address + 8, to);
        write32(address + 16, self.source);
        write32(address + 20, self.destination);
        write32(address + 24, self.length);
        write16(address + 28, self.kind);
        write16(address + 30, self.operation);
        write32(address + 32, self.flags);
        write32(address + 36, self.window);
        write32(address + 40, self.forwarded);
    }
}

/// The device at work.
pub(super) struct Driver {
    pub(super) device: Device,
    receive: Queue,
    pub(super) transmit: Queue,
    pub(super) cid: u64,
    free: u64,
}

impl Driver {
    pub(super) fn start(machine: &Machine) -> Result<Self, Failure> {
        let device = machine.of_kind(SOCKET, 0)?;
        device.negotiate(1)?;
        let mut receive = device.queue(0, SLOTS)?;
        let transmit = device.queue(1, SLOTS)?;
        device.queue(2, 16)?;
        device.start()?;
        for (slot, address) in (0..receive.size).zip((RECEIVE..).step_by(0x2000)) {
            receive.describe(slot, address, 44 + 4096, WRITE, 0);
            receive.publish(slot);
        }
        device.kick(0);
        let cid = device.read(CONFIG).into();
        Ok(Self {
            device,
            receive,
            transmit,
            cid,
            free: u64::MAX,
        })
    }

    /// A free buffer for sending, by its index.
    pub(super) fn slot(&mut self) -> Result<u16, Failure> {
        wait(|| self.try_slot())
    }

    /// The same, hearing what the host says meanwhile: it may not listen before it was heard. `None` if the device asks
    /// for a reset; then it does not listen any more.
    pub(super) fn slot_hearing(&mut self) -> Result<Option<u16>, Failure> {
        wait(|| {
            if let Some(slot) = self.try_slot() {
                return Some(Some(slot));
            }
            self.receive(|_, _| ());
            self.device.needs_reset().then_some(None)
        })
    }

    fn try_slot(&mut self) -> Option<u16> {
        while let Some((slot, _)) = self.transmit.take() {
            self.free |= 1 << (slot % SLOTS);
        }
        let slot = u16::try_from(self.free.trailing_zeros())
            .ok()
            .filter(|slot| *slot < SLOTS)?;
        self.free &= !(1 << slot);
        Some(slot)
    }

    /// Where the slot's packet lies.
    pub(super) fn place(slot: u16) -> u64 {
        TRANSMIT + SLOT * u64::from(slot)
    }

    /// Sends the packet that was written to a slot.
    pub(super) fn send(&mut self, slot: u16, length: u32) {
        self.transmit.describe(slot, Self::place(slot), length, 0, 0);
        self.transmit.publish(slot);
        if self.transmit.wants_notification() {
            self.device.kick(1);
        }
    }

    /// The next packet from the host, handed to `what` together with the address of its data.
    pub(super) fn receive<T>(&mut self, what: impl FnOnce(Header, u64) -> T) -> Option<T> {
        let (slot, _) = self.receive.take()?;
        let address = RECEIVE + SLOT * u64::from(slot % SLOTS);
        let result = what(Header::read(address), address + HEADER);
        self.receive.publish(slot);
        if self.receive.wants_notification() {
            self.device.kick(0);
        }
        Some(result)
    }
}

/// One connection to the host.
struct Connection {
    driver: Driver,
    port: u32,
    sent: u32,
    received: u32,
    /// What the host last said of its buffer.
    window: u32,
    forwarded: u32,
    over: bool,
}

impl Connection {
    fn open(machine: &Machine, port: u64) -> Result<Self, Failure> {
        let port = u32::try_from(port).map_err(|_| Failure::new(Reason::Option, port))?;
        let driver = Driver::start(machine)?;
        let mut connection = Self {
            driver,
            port,
            sent: 0,
            received: 0,
            window: 0,
            forwarded: 0,
            over: false,
        };
        connection.control(REQUEST, 0)?;
        let answer = wait(|| connection.driver.receive(|header, _| header))?;
        if answer.operation != RESPONSE {
            return Err(Failure::new(Reason::Refused, answer.operation.into()));
        }
        connection.note(&answer);
        Ok(connection)
    }

    fn note(&mut self, header: &Header) {
        self.window = header.window;
        self.forwarded = header.forwarded;
    }

    fn header(&self, operation: u16, length: u32, flags: u32) -> Header {
        Header {
            source: PORT,
            destination: self.port,
            length,
            kind: STREAM,
            operation,
            flags,
            window: WINDOW,
            forwarded: self.received,
        }
    }

    fn control(&mut self, operation: u16, flags: u32) -> Result<(), Failure> {
        let slot = self.driver.slot()?;
        self.header(operation, 0, flags)
            .write(Driver::place(slot), self.driver.cid, HOST);
        self.driver.send(slot, 44);
        Ok(())
    }

    fn room(&self) -> u32 {
        self.window.saturating_sub(self.sent.wrapping_sub(self.forwarded))
    }

    /// Sends `length` bytes of the pattern, when the host has room for them.
    fn data(&mut self, length: u64, position: u64) -> Result<(), Failure> {
        let length = u32::try_from(length.min(MOST)).unwrap_or(0);
        while self.room() < length {
            wait(|| self.poll(&mut |_, _| {}))?;
            if self.over {
                return Err(Failure::new(Reason::Refused, 0));
            }
        }
        let slot = self.driver.slot()?;
        let place = Driver::place(slot);
        for offset in (0..u64::from(length)).step_by(8) {
            write64(place + HEADER + offset, pattern(0, position + offset));
        }
        self.header(DATA, length, 0).write(place, self.driver.cid, HOST);
        self.driver.send(slot, 44 + length);
        self.sent = self.sent.wrapping_add(length);
        Ok(())
    }

    /// Takes one packet, if there is one; `data` is given what it carries.
    fn poll(&mut self, data: &mut impl FnMut(u64, u64)) -> Option<()> {
        let header = self.driver.receive(|header, address| {
            if header.operation == DATA {
                data(address, header.length.into());
            }
            header
        })?;
        self.note(&header);
        match header.operation {
            DATA => self.received = self.received.wrapping_add(header.length),
            RESET | SHUTDOWN => self.over = true,
            CREDIT_REQUEST => self.control(CREDIT_UPDATE, 0).ok()?,
            _ => {}
        }
        Some(())
    }
}

fn sizes(size: u64) -> Result<u64, Failure> {
    let good = size.is_multiple_of(8) && (8..=MOST).contains(&size);
    good.then_some(size).ok_or(Failure::new(Reason::Option, size))
}

pub(super) fn echo(order: &Order<'_>, machine: &Machine) -> Result<Outcome, Failure> {
    let [port, size, count] = order.options([("port", 1024), ("size", 64), ("count", 100)])?;
    let size = sizes(size)?;
    let mut connection = Connection::open(machine, port)?;
    let mut outcome = Outcome::default();
    let start = ticks();
    for _ in 0..count {
        connection.data(size, outcome.bytes)?;
        // A packet may end in the middle of a word.
        let mut got = 0;
        while got < size {
            wait(|| {
                connection.poll(&mut |address, length| {
                    for index in 0..length.min(size - got) {
                        write8(ECHO + got + index, read8(address + index));
                    }
                    got += length;
                })
            })?;
            if connection.over {
                return Err(Failure::new(Reason::Refused, got));
            }
        }
        let sum = checksum::words(outcome.bytes, words(ECHO, size));
        let sent = (0..size / 8).map(|word| pattern(0, outcome.bytes + 8 * word));
        if sum != checksum::words(outcome.bytes, sent) {
            return Err(Failure::new(Reason::Content, outcome.operations));
        }
        outcome.checksum = outcome.checksum.wrapping_add(sum);
        outcome.bytes += size;
        outcome.operations += 1;
        page::pulse();
    }
    outcome.ticks = ticks() - start;
    connection.control(RESET, 0)?;
    Ok(outcome)
}

pub(super) fn stream(order: &Order<'_>, machine: &Machine) -> Result<Outcome, Failure> {
    let [port, size, count] = order.options([("port", 1024), ("size", 4096), ("count", 1000)])?;
    let size = sizes(size)?;
    let mut connection = Connection::open(machine, port)?;
    let mut outcome = Outcome::default();
    let start = ticks();
    for _ in 0..count {
        connection.data(size, outcome.bytes)?;
        let sent = (0..size / 8).map(|word| pattern(0, outcome.bytes + 8 * word));
        outcome.checksum = outcome.checksum.wrapping_add(checksum::words(outcome.bytes, sent));
        outcome.bytes += size;
        outcome.operations += 1;
        page::pulse();
    }
    // The host confirms that it has everything by ending the connection.
    connection.control(SHUTDOWN, SENDS_NO_MORE)?;
    while !connection.over {
        wait(|| connection.poll(&mut |_, _| {}))?;
    }
    outcome.ticks = ticks() - start;
    Ok(outcome)
}
