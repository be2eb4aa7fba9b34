//! A split virtqueue (virtio 1.2, section 2.7), driven by polling.

use core::sync::atomic::{Ordering, fence};

use husk_test_guest::layout;

use super::Failure;
use super::memory::{read16, read32, write16, write32, write64};
use super::wait;

/// The descriptor goes on with another.
pub(super) const NEXT: u16 = 1;
/// The device writes to the buffer.
pub(super) const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub(super) const INDIRECT: u16 = 4;

/// Where the available ring lies in the queue's room.
pub(super) const AVAILABLE: u64 = 0x4000;
/// Where the used ring lies in the queue's room.
pub(super) const USED: u64 = 0x8000;
/// The available ring's flag: no interrupts.
const NO_INTERRUPT: u16 = 1;
/// The used ring's flag: no notifications.
const NO_NOTIFY: u16 = 1;

/// The driver's side of a queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queue {
    room: u64,
    pub(super) size: u16,
    available: u16,
    used: u16,
    /// The used ring's number as it was seen last.
    seen: u16,
}

impl Queue {
    /// An empty queue of this size, a power of two up to 1,024, in the room of a device's queue.
    pub(super) fn new(device: u64, index: u64, size: u16) -> Self {
        let room = layout::rings(device, index);
        for word in (0..layout::QUEUE_ROOM).step_by(8) {
            write64(room + word, 0);
        }
        let queue = Self {
            room,
            size,
            available: 0,
            used: 0,
            seen: 0,
        };
        write16(queue.available_ring(), NO_INTERRUPT);
        queue
    }

    pub(super) fn descriptors(&self) -> u64 {
        self.room
    }

    pub(super) fn available_ring(&self) -> u64 {
        self.room + AVAILABLE
    }

    pub(super) fn used_ring(&self) -> u64 {
        self.room + USED
    }

    /// Writes a descriptor.
    pub(super) fn describe(&self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        write_descriptor(self.room + 16 * u64::from(index), address, length, flags, next);
    }

    /// Makes a chain available.
    pub(super) fn publish(&mut self, head: u16) {
        self.enter(head);
        self.announce();
    }

    /// Puts a chain into the ring, for the device to see with the next announcement.
    pub(super) fn enter(&mut self, head: u16) {
        let entry = self.available % self.size;
        write16(self.available_ring() + 4 + 2 * u64::from(entry), head);
        self.available = self.available.wrapping_add(1);
    }

    /// Makes all chains that were entered available.
    pub(super) fn announce(&self) {
        // The device sees the chains before their number.
        fence(Ordering::Release);
        write16(self.available_ring() + 2, self.available);
    }

    /// Whether the device wants to be notified.
    pub(super) fn wants_notification(&self) -> bool {
        // What was made available is seen before the device's wish is read: it looks once more after it has told that.
        fence(Ordering::SeqCst);
        read16(self.used_ring()) & NO_NOTIFY == 0
    }

    /// The next chain that the device is done with: its head, and how many bytes were written.
    pub(super) fn take(&mut self) -> Option<(u16, u32)> {
        if self.seen == self.used {
            self.seen = read16(self.used_ring() + 2);
            // The entries were written before their number.
            fence(Ordering::Acquire);
        }
        if self.seen == self.used {
            return None;
        }
        let entry = self.used_ring() + 4 + 8 * u64::from(self.used % self.size);
        self.used = self.used.wrapping_add(1);
        // The device wrote it from a head of 16 bits.
        Some((read16(entry), read32(entry + 4)))
    }

    /// Waits for the next such chain.
    pub(super) fn wait(&mut self) -> Result<(u16, u32), Failure> {
        wait(|| self.take())
    }
}

/// Writes a descriptor anywhere.
pub(super) fn write_descriptor(place: u64, address: u64, length: u32, flags: u16, next: u16) {
    write64(place, address);
    write32(place + 8, length);
    write16(place + 12, flags);
    write16(place + 14, next);
}
