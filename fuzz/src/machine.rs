//! A device behind its registers, and a driver that follows a script: it starts the device as it should be started,
//! and it does everything that it should not.

use arbitrary::{Result, Unstructured};
use husk_devices::virtio::mmio::Transport;
use husk_devices::virtio::{Device, Memory, feature, status};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Two regions with a gap behind them.
const REGIONS: [(GuestAddress, usize); 2] = [(GuestAddress(0), 0x1_0000), (GuestAddress(1 << 32), 0x1_0000)];
/// Each queue's rings have a page.
const PAGE: u64 = 0x1000;
const AVAILABLE: u64 = 0x800;
const USED: u64 = 0xa00;
/// The largest queue that fits.
const MAX_SIZE: u16 = 32;
/// Behind the rings.
const BUFFERS: u64 = 0x8000;
/// The most steps of a script.
const MAX_STEPS: usize = 200;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// The device with its driver.
pub struct Machine {
    pub memory: Memory,
    pub transport: Transport,
    make: Box<dyn Fn() -> Box<dyn Device>>,
    line: EventFd,
    rings: Vec<Ring>,
}

/// A queue as its driver sees it.
#[derive(Clone, Copy)]
struct Ring {
    base: u64,
    size: u16,
    /// The available ring's index.
    available: u16,
    /// The used ring's index up to which it was looked at.
    used: u16,
}

/// A descriptor's buffer.
#[derive(Clone, Copy)]
pub struct Buffer {
    pub address: u64,
    pub length: u32,
    pub writable: bool,
}

impl Machine {
    /// A device after reset. `make` makes it, and another one like it to restore a saved state into.
    pub fn new(make: impl Fn() -> Box<dyn Device> + 'static) -> Self {
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let memory = Memory::from_ranges(&REGIONS).unwrap();
        let transport = Transport::new(make(), memory.clone(), line.try_clone().unwrap()).unwrap();
        Self {
            memory,
            transport,
            make: Box::new(make),
            line,
            rings: Vec::new(),
        }
    }

    /// Follows the script to its end; `own` is the step that only this device has.
    pub fn follow(
        &mut self,
        script: &mut Unstructured<'_>,
        settle: impl Fn(&mut Self),
        mut own: impl FnMut(&mut Self, &mut Unstructured<'_>) -> Result<()>,
    ) -> Result<()> {
        for _ in 0..MAX_STEPS {
            if script.is_empty() {
                return Ok(());
            }
            match script.int_in_range(0..=15_u8)? {
                0 => self.write_memory(script)?,
                1 => {
                    let offset = u64::from(script.arbitrary::<u8>()?) & !3;
                    self.write(offset, script.arbitrary()?);
                }
                2 => {
                    let mut data = [0; 8];
                    let width = *script.choose(&[1, 2, 4, 8])?;
                    self.transport.read(script.int_in_range(0..=0x200)?, &mut data[..width]);
                }
                3 => {
                    let data: [u8; 8] = script.arbitrary()?;
                    let width = *script.choose(&[1, 2, 4, 8])?;
                    self.transport.write(script.int_in_range(0..=0x200)?, &data[..width]);
                }
                4 => self.start(script.arbitrary()?, script.int_in_range(0..=5)?),
                5 => self.submit_any(script)?,
                6 => self.kick(script.int_in_range(0..=3)?),
                7 => settle(self),
                8 => self.write(0x70, 0),
                9 => self.move_on(),
                10 => self.claim(script)?,
                _ => own(self, script)?,
            }
        }
        Ok(())
    }

    pub fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    pub fn status(&self) -> u32 {
        self.read(0x70)
    }

    fn offered(&mut self) -> u64 {
        self.write(0x14, 1);
        let high = u64::from(self.read(0x10));
        self.write(0x14, 0);
        high << 32 | u64::from(self.read(0x10))
    }

    /// The whole way from reset to a device that works, with queues of 2^`bits`. `mask` leaves out features.
    pub fn start(&mut self, mask: u64, bits: u16) {
        self.write(0x70, 0);
        let features = self.offered() & (mask | feature::VERSION_1);
        self.write(0x70, status::ACKNOWLEDGE | status::DRIVER);
        for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(0x24, select);
            self.write(0x20, half);
        }
        self.write(0x70, status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        self.rings.clear();
        for index in 0..4_u32 {
            self.write(0x30, index);
            let most = self.read(0x34);
            if most == 0 {
                break;
            }
            let size = (1 << bits).min(MAX_SIZE);
            let base = u64::from(index) * PAGE;
            self.memory
                .write_slice(&[0; PAGE as usize], GuestAddress(base))
                .unwrap();
            self.write(0x38, u32::from(size).min(most));
            for (offset, address) in [(0x80, base), (0x90, base + AVAILABLE), (0xa0, base + USED)] {
                self.write(offset, address as u32);
                self.write(offset + 4, 0);
            }
            self.write(0x44, 1);
            self.rings.push(Ring {
                base,
                size,
                available: 0,
                used: 0,
            });
        }
        let status = self.status();
        self.write(0x70, status | status::DRIVER_OK);
    }

    /// Somewhere for a buffer: the `slot`th of 32 pieces of 1 KiB behind the rings.
    pub fn slot(slot: u8) -> u64 {
        BUFFERS + u64::from(slot % 32) * 0x400
    }

    /// The slot that begins at an address.
    pub fn slot_at(address: u64) -> Option<u8> {
        let offset = address.checked_sub(BUFFERS)?;
        u8::try_from(offset / 0x400)
            .ok()
            .filter(|slot| *slot < 32 && offset % 0x400 == 0)
    }

    fn write_memory(&mut self, script: &mut Unstructured<'_>) -> Result<()> {
        let address: u16 = script.arbitrary()?;
        let length = script.int_in_range(1..=32)?;
        let bytes = script.bytes(length.min(script.len()))?;
        // What runs over the end is left out.
        let _ = self.memory.write(bytes, GuestAddress(address.into()));
        Ok(())
    }

    /// A chain that may be sound and may not.
    fn submit_any(&mut self, script: &mut Unstructured<'_>) -> Result<()> {
        let queue = script.int_in_range(0..=3)?;
        let count = script.int_in_range(1..=5)?;
        let Some(ring) = self.rings.get(queue).copied() else {
            return Ok(());
        };
        let mut index = ring.available % ring.size;
        let head = index;
        for position in 0..count {
            let address = match script.int_in_range(0..=7_u8)? {
                0 => script.arbitrary::<u64>()?,
                1 => 0x1_0000 - script.int_in_range(0..=64)?,
                2 => (1 << 32) + u64::from(script.arbitrary::<u16>()?),
                3 => ring.base,
                _ => Self::slot(script.arbitrary()?),
            };
            let length = match script.int_in_range(0..=3_u8)? {
                0 => script.arbitrary::<u32>()?,
                _ => script.int_in_range(0..=0x800)?,
            };
            let last = position + 1 == count;
            let flags = match script.int_in_range(0..=7_u8)? {
                0 => script.int_in_range(0..=7)?,
                kind => u16::from(!last) * NEXT | u16::from(kind & 1) * WRITE,
            };
            let next = match script.int_in_range(0..=15_u8)? {
                0 => script.arbitrary()?,
                _ => (index + 1) % ring.size,
            };
            self.descriptor(ring.base, index, address, length, flags, next);
            index = (index + 1) % ring.size;
        }
        self.make_available(queue, head);
        Ok(())
    }

    /// A sound chain; false if there is no such queue or the chain is longer than it.
    pub fn submit(&mut self, queue: usize, buffers: &[Buffer]) -> bool {
        let Some(ring) = self.rings.get(queue).copied() else {
            return false;
        };
        if buffers.len() > usize::from(ring.size) {
            return false;
        }
        let head = ring.available % ring.size;
        let mut index = head;
        for (position, buffer) in buffers.iter().enumerate() {
            let next = (index + 1) % ring.size;
            let more = u16::from(position + 1 < buffers.len()) * NEXT;
            let flags = more | u16::from(buffer.writable) * WRITE;
            self.descriptor(ring.base, index, buffer.address, buffer.length, flags, next);
            index = next;
        }
        self.make_available(queue, head);
        true
    }

    fn descriptor(&self, table: u64, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&address.to_le_bytes());
        raw[8..12].copy_from_slice(&length.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&next.to_le_bytes());
        let place = GuestAddress(table + u64::from(index) * 16);
        self.memory.write_slice(&raw, place).unwrap();
    }

    fn make_available(&mut self, queue: usize, head: u16) {
        let Some(ring) = self.rings.get_mut(queue) else { return };
        let base = ring.base + AVAILABLE;
        let entry = base + 4 + u64::from(ring.available % ring.size) * 2;
        self.memory.write_obj(head, GuestAddress(entry)).unwrap();
        ring.available = ring.available.wrapping_add(1);
        self.memory.write_obj(ring.available, GuestAddress(base + 2)).unwrap();
    }

    /// Moves the available ring's index anywhere.
    fn claim(&mut self, script: &mut Unstructured<'_>) -> Result<()> {
        let queue = script.int_in_range(0..=3)?;
        if let Some(ring) = self.rings.get_mut(queue) {
            ring.available = ring.available.wrapping_add(script.int_in_range(0..=40)?);
            let place = GuestAddress(ring.base + AVAILABLE + 2);
            self.memory.write_obj(ring.available, place).unwrap();
        }
        Ok(())
    }

    /// Notifies the device, as an ioeventfd does.
    pub fn kick(&mut self, queue: usize) {
        if let Some(kick) = self.transport.kicks().get(queue) {
            kick.write(1).unwrap();
        }
    }

    /// The next used buffer: its head and the length that the device reports.
    pub fn take_used(&mut self, queue: usize) -> Option<(u32, u32)> {
        let ring = self.rings.get_mut(queue)?;
        let base = ring.base + USED;
        let index: u16 = self.memory.read_obj(GuestAddress(base + 2)).unwrap();
        if index == ring.used {
            return None;
        }
        let entry = base + 4 + u64::from(ring.used % ring.size) * 8;
        ring.used = ring.used.wrapping_add(1);
        let head = self.memory.read_obj(GuestAddress(entry)).unwrap();
        Some((head, self.memory.read_obj(GuestAddress(entry + 4)).unwrap()))
    }

    /// Where the first buffer of the chain at `head` is.
    pub fn buffer_of(&self, queue: usize, head: u32) -> Option<u64> {
        let ring = self.rings.get(queue)?;
        let place = GuestAddress(ring.base + u64::from(head) * 16);
        self.memory.read_obj(place).ok()
    }

    /// Saves the device and goes on with another one.
    pub fn move_on(&mut self) {
        let Ok(state) = self.transport.save() else {
            self.transport.resume();
            return;
        };
        self.line = EventFd::new(EFD_NONBLOCK).unwrap();
        let line = self.line.try_clone().unwrap();
        // What it has saved it takes back.
        self.transport = Transport::restore(state, (self.make)(), self.memory.clone(), line).unwrap();
        self.transport.resume();
    }

    /// After whatever has happened a reset makes a working device again: it answers the chain of these buffers.
    pub fn answers(&mut self, queue: usize, buffers: &[Buffer]) {
        self.write(0x70, 0);
        assert_eq!(self.status(), 0, "the reset does not end");
        self.start(0, 4);
        let ok = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
        assert_eq!(self.status(), ok, "the device does not start again");
        assert!(self.submit(queue, buffers));
        self.kick(queue);
        for _ in 0..20_000 {
            if self.take_used(queue).is_some() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_micros(500));
        }
        panic!(
            "the device answers no request after its reset; status {:#x}",
            self.status()
        );
    }
}
