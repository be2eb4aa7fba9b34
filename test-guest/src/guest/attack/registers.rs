//! Registers: every width, place, order and value; notifications at full speed.

use super::super::memory::{read8, read16, read32, read64, write8, write16, write64};
use super::super::virtio::{
    QUEUE_DESCRIPTORS, QUEUE_NOTIFY, QUEUE_READY, QUEUE_SELECT, QUEUE_SIZE, QUEUE_SIZE_MAX, QUEUE_USED, STATUS,
};
use super::super::{Failure, page};
use super::{Attack, address};

/// The first register behind the queue's addresses.
const BEHIND_ADDRESSES: u64 = QUEUE_USED + 8;

impl Attack<'_> {
    /// Accesses at random. Now and then the first steps of a driver, so that later states are reached too.
    pub(super) fn registers(&mut self) {
        for step in 0..self.count {
            match self.random.below(40) {
                0 => {
                    let _ = self.device.negotiate(u64::MAX);
                }
                1 => {
                    let _ = self.start(u64::MAX);
                }
                2 => self.device.write(STATUS, self.random.next_u32() & 0xff),
                _ if self.random.once_in(2) => self.read_somewhere(),
                _ => self.write_somewhere(),
            }
            self.outcome.operations += 1;
            if step % 64 == 0 {
                page::pulse();
                self.outcome.needs_reset += u64::from(self.device.needs_reset());
            }
        }
    }

    fn offset(&mut self) -> u64 {
        match self.random.below(8) {
            0 => self.random.below(0x1000 - 8),
            1 => self.random.below(0x200),
            2 => 0x100 + 4 * self.random.below(16),
            _ => 4 * self.random.below(0x40),
        }
    }

    fn read_somewhere(&mut self) {
        let place = self.device.base + self.offset();
        let value = match self.random.below(6) {
            0 => read8(place).into(),
            1 => read16(place).into(),
            2 => read64(place),
            _ => read32(place).into(),
        };
        self.outcome.checksum = self.outcome.checksum.rotate_left(1) ^ value;
    }

    fn write_somewhere(&mut self) {
        let offset = self.offset();
        let mut value = match self.random.below(4) {
            0 => self.random.number(),
            1 => self.random.below(4),
            2 => 1 << self.random.below(32),
            _ => self.random.below(0x1_0000),
        };
        let around = offset.saturating_sub(8)..offset + 8;
        if around.end > QUEUE_DESCRIPTORS && around.start < BEHIND_ADDRESSES {
            value = address(&mut self.random, self.machine.memory_end);
        }
        let place = self.device.base + offset;
        let [low, ..] = value.to_le_bytes();
        match self.random.below(8) {
            0 => write8(place, low),
            1 => write16(place, self.random.next_u16()),
            2 => write64(place, value),
            _ => self.device.write(offset, super::super::virtio::halves(value)[0]),
        }
    }

    /// Queues of impossible places and sizes, and registers of queues at work.
    pub(super) fn queues(&mut self) {
        for _ in 0..self.count {
            let features = self.features();
            // Features that are not offered were left out, so this works, but nothing depends on it.
            let _ = self.device.negotiate(features);
            for index in 0..=self.queue_count() {
                self.impossible_queue(index);
            }
            self.device.write(STATUS, 0xf);
            for index in 0..=self.queue_count() {
                self.device.kick(index);
                self.device.write(QUEUE_SELECT, index);
                if self.random.once_in(2) {
                    self.device.write(QUEUE_READY, self.random.next_u32() & 3);
                }
                if self.random.once_in(3) {
                    let place = address(&mut self.random, self.machine.memory_end);
                    self.device.write_wide(QUEUE_USED, place);
                    self.device.write(QUEUE_SIZE, self.random.next_u32());
                }
                self.device.kick(index);
            }
            self.outcome.operations += 1;
            self.outcome.needs_reset += u64::from(self.device.needs_reset());
            page::pulse();
        }
    }

    fn impossible_queue(&mut self, index: u32) {
        let end = self.machine.memory_end;
        self.device.write(QUEUE_SELECT, index);
        let max = self.device.read(QUEUE_SIZE_MAX);
        let sizes = [
            0,
            1,
            2,
            3,
            7,
            max,
            max,
            max,
            max + 1,
            max.wrapping_sub(1),
            0x8000,
            0x1_0000,
            u32::MAX,
        ];
        let size = self.random.one_of(&sizes, 0);
        self.device.write(QUEUE_SIZE, size);
        let (descriptors, available, used) = match self.random.below(6) {
            // All in one place, or one in the middle of the other.
            0 => {
                let place = address(&mut self.random, end) & !0xf;
                (place, place, place)
            }
            1 => {
                let place = husk_test_guest::layout::rings(self.device.index, index.into());
                (
                    place,
                    place + 16 * self.random.below(64),
                    place + 4 * self.random.below(256),
                )
            }
            // The last possible places, and the first impossible ones.
            2 => {
                let table = 16 * u64::from(size.min(0x8000));
                (
                    end - table.min(end),
                    end - 6 - table / 8,
                    end - 6 - table / 2 + 4 * self.random.below(2),
                )
            }
            _ => (
                address(&mut self.random, end),
                address(&mut self.random, end),
                address(&mut self.random, end),
            ),
        };
        self.device.write_wide(QUEUE_DESCRIPTORS, descriptors);
        self.device.write_wide(super::super::virtio::QUEUE_AVAILABLE, available);
        self.device.write_wide(QUEUE_USED, used);
        self.device.write(QUEUE_READY, 1);
    }

    /// Notifications of queues without requests, and of queues that do not exist.
    pub(super) fn kicks(&mut self) -> Result<(), Failure> {
        let features = self.features();
        self.start(features)?;
        for step in 0..self.count {
            let queue = if step % 64 == 0 {
                self.random.next_u32()
            } else {
                self.random.next_u32() % self.queue_count().max(1)
            };
            self.device.write(QUEUE_NOTIFY, queue);
            self.outcome.operations += 1;
            if step % 64 == 0 {
                page::pulse();
            }
        }
        self.outcome.needs_reset += u64::from(self.device.needs_reset());
        Ok(())
    }
}
