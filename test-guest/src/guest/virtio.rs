//! The virtio-mmio transport, version 2 (virtio 1.2, section 4.2), seen from the driver.

use husk_test_guest::layout::{DEVICES, VIRTIO, VIRTIO_WINDOW};
use husk_test_guest::report::Reason;

use super::Failure;
use super::memory::{read32, write32};
use super::queue::Queue;

pub(super) const DEVICE_FEATURES: u64 = 0x10;
pub(super) const DEVICE_FEATURES_SELECT: u64 = 0x14;
pub(super) const DRIVER_FEATURES: u64 = 0x20;
pub(super) const DRIVER_FEATURES_SELECT: u64 = 0x24;
pub(super) const QUEUE_SELECT: u64 = 0x30;
pub(super) const QUEUE_SIZE_MAX: u64 = 0x34;
pub(super) const QUEUE_SIZE: u64 = 0x38;
pub(super) const QUEUE_READY: u64 = 0x44;
pub(super) const QUEUE_NOTIFY: u64 = 0x50;
pub(super) const STATUS: u64 = 0x70;
/// Low halves; the high halves lie four bytes behind.
pub(super) const QUEUE_DESCRIPTORS: u64 = 0x80;
pub(super) const QUEUE_AVAILABLE: u64 = 0x90;
pub(super) const QUEUE_USED: u64 = 0xa0;
pub(super) const CONFIG: u64 = 0x100;

pub(super) const ACKNOWLEDGE: u32 = 1;
pub(super) const DRIVER: u32 = 2;
pub(super) const DRIVER_OK: u32 = 4;
pub(super) const FEATURES_OK: u32 = 8;
pub(super) const NEEDS_RESET: u32 = 64;

/// `VIRTIO_F_VERSION_1`.
pub(super) const VERSION_1: u64 = 1 << 32;
/// `VIRTIO_F_INDIRECT_DESC`.
pub(super) const INDIRECT_DESC: u64 = 1 << 28;

/// Device types.
pub(super) const BLOCK: u32 = 2;
pub(super) const ENTROPY: u32 = 4;
pub(super) const SOCKET: u32 = 19;

const MAGIC: u32 = 0x7472_6976;

/// The devices that the machine has.
#[derive(Debug)]
pub(super) struct Machine {
    base: u64,
    /// The end of memory below 4 GiB.
    pub(super) memory_end: u64,
}

impl Machine {
    pub(super) fn new(memory_end: u64) -> Self {
        Self {
            base: VIRTIO,
            memory_end,
        }
    }

    /// Says where the registers are.
    pub(super) fn find(&mut self, base: u64) {
        self.base = base;
    }

    /// The virtio device with this index, of any type.
    pub(super) fn device(&self, index: u64) -> Result<Device, Failure> {
        let device = Device {
            base: self.base + VIRTIO_WINDOW * (index % DEVICES),
            index,
        };
        let there = index < DEVICES && read32(device.base) == MAGIC && device.kind() != 0;
        there.then_some(device).ok_or(Failure::new(Reason::NoDevice, index))
    }

    /// The device with this index among those of a type.
    pub(super) fn of_kind(&self, kind: u32, index: u64) -> Result<Device, Failure> {
        let all = (0..DEVICES).filter_map(|place| self.device(place).ok());
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let found = all.filter(|device| device.kind() == kind).nth(index);
        found.ok_or(Failure::new(Reason::NoDevice, kind.into()))
    }
}

/// One device's registers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Device {
    pub(super) base: u64,
    /// Which room its rings have.
    pub(super) index: u64,
}

impl Device {
    pub(super) fn read(&self, register: u64) -> u32 {
        read32(self.base + register)
    }

    pub(super) fn write(&self, register: u64, value: u32) {
        write32(self.base + register, value);
    }

    /// Both halves of an address.
    pub(super) fn write_wide(&self, register: u64, value: u64) {
        let [low, high] = halves(value);
        self.write(register, low);
        self.write(register + 4, high);
    }

    pub(super) fn kind(&self) -> u32 {
        self.read(8)
    }

    pub(super) fn needs_reset(&self) -> bool {
        self.read(STATUS) & NEEDS_RESET != 0
    }

    /// Notifies the device of a queue.
    pub(super) fn kick(&self, queue: u32) {
        self.write(QUEUE_NOTIFY, queue);
    }

    /// Resets the device and negotiates those of the features that it offers, up to `FEATURES_OK`.
    pub(super) fn negotiate(&self, wanted: u64) -> Result<(), Failure> {
        self.write(STATUS, 0);
        self.write(STATUS, ACKNOWLEDGE);
        self.write(STATUS, ACKNOWLEDGE | DRIVER);
        for (select, wanted) in (0..).zip(halves(wanted | VERSION_1)) {
            self.write(DEVICE_FEATURES_SELECT, select);
            self.write(DRIVER_FEATURES_SELECT, select);
            self.write(DRIVER_FEATURES, self.read(DEVICE_FEATURES) & wanted);
        }
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        self.expect(FEATURES_OK)
    }

    /// Enables a queue of at most this size, and at most the device's own.
    pub(super) fn queue(&self, index: u32, size: u16) -> Result<Queue, Failure> {
        self.write(QUEUE_SELECT, index);
        let size = self.read(QUEUE_SIZE_MAX).min(size.into());
        let size = u16::try_from(size).unwrap_or(0);
        if size == 0 {
            return Err(Failure::new(Reason::Negotiation, index.into()));
        }
        let queue = Queue::new(self.index, index.into(), size);
        self.write(QUEUE_SIZE, size.into());
        self.write_wide(QUEUE_DESCRIPTORS, queue.descriptors());
        self.write_wide(QUEUE_AVAILABLE, queue.available_ring());
        self.write_wide(QUEUE_USED, queue.used_ring());
        self.write(QUEUE_READY, 1);
        Ok(queue)
    }

    /// Lets the device work.
    pub(super) fn start(&self) -> Result<(), Failure> {
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        self.expect(DRIVER_OK)
    }

    fn expect(&self, bit: u32) -> Result<(), Failure> {
        let status = self.read(STATUS);
        let good = status & bit != 0 && status & NEEDS_RESET == 0;
        good.then_some(())
            .ok_or(Failure::new(Reason::Negotiation, status.into()))
    }
}

/// The low and the high half.
pub(super) fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}
