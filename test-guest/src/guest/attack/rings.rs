//! What lies in memory: descriptors, rings and tables; while the device works, too.

use husk_test_guest::layout::BUFFERS;

use super::super::machine::ticks;
use super::super::memory::write16;
use super::super::queue::{INDIRECT, NEXT, Queue, WRITE, write_descriptor};
use super::super::virtio::{QUEUE_READY, QUEUE_SELECT, STATUS};
use super::super::{Failure, page, second};
use super::requests::PARTS;
use super::{Attack, address, length};

/// Where indirect tables lie: behind the buffers of the requests.
const TABLES: u64 = BUFFERS + 0x80_0000;
/// The longest delay before a reset, in ticks.
const DELAY: u64 = 1_000_000;
/// The longest table: 65,535 descriptors.
const LONGEST: u32 = 0xffff;

impl Attack<'_> {
    /// Chains without sense, among others that have some.
    pub(super) fn chains(&mut self) -> Result<(), Failure> {
        for _ in 0..self.count {
            let features = self.features();
            let queues = self.start(features)?;
            for _ in 0..8 {
                let index = usize::try_from(self.random.below(self.queue_count().into())).unwrap_or(0);
                let Some(mut queue) = queues[index] else { continue };
                self.chain(index, &mut queue);
                self.device.kick(u32::try_from(index).unwrap_or(0));
                if self.settle(&queue) {
                    break;
                }
            }
        }
        Ok(())
    }

    /// One chain that is made available, one way or another.
    fn chain(&mut self, index: usize, queue: &mut Queue) {
        let head = self.random.next_u16() % queue.size;
        match self.random.below(10) {
            0 => self.loop_of(queue, 1),
            1 => self.loop_of(queue, queue.size),
            2 => self.long_table(queue),
            3 => self.table_in_table(queue),
            4 => self.nonsense(queue),
            5 => {
                // A head that is no descriptor.
                self.nonsense(queue);
                queue.publish(queue.size.wrapping_add(self.random.next_u16()));
                return;
            }
            6 => {
                // An index far ahead.
                self.nonsense(queue);
                write16(queue.available_ring() + 2, self.random.next_u16());
                return;
            }
            7 => {
                // The device is asked to write to its own rings.
                let target = self.random.one_of(
                    &[
                        queue.descriptors(),
                        queue.available_ring(),
                        queue.used_ring(),
                        queue.used_ring() + 3,
                    ],
                    queue.used_ring(),
                );
                self.request(index, queue, 0);
                queue.describe(1, target, 512, NEXT | WRITE, 2);
                queue.describe(head, target, 256, WRITE, 0);
            }
            _ => {
                let head = self.request(index, queue, head / PARTS);
                let part = head.wrapping_add(self.random.next_u16() % PARTS);
                let place = address(&mut self.random, self.machine.memory_end);
                let (length, flags) = (length(&mut self.random), self.random.next_u16() & 7);
                queue.describe(part % queue.size, place, length, flags, part + 1);
                queue.publish(head);
                return;
            }
        }
        queue.publish(head);
    }

    /// A chain of this many descriptors that goes back to its start.
    fn loop_of(&mut self, queue: &Queue, count: u16) {
        let direction = self.random.one_of(&[0, WRITE], 0);
        for descriptor in 0..queue.size {
            let next = if count == 1 {
                descriptor
            } else {
                (descriptor + 1) % count
            };
            queue.describe(descriptor, BUFFERS, 16, NEXT | direction, next);
        }
    }

    /// An indirect table of the greatest length.
    fn long_table(&mut self, queue: &Queue) {
        for index in 0..LONGEST {
            let place = TABLES + 16 * u64::from(index);
            let next = u16::try_from(index + 1).unwrap_or(0);
            write_descriptor(place, BUFFERS + u64::from(index), 1, NEXT | WRITE, next);
        }
        for descriptor in 0..queue.size {
            queue.describe(descriptor, TABLES, 16 * LONGEST, INDIRECT, 0);
        }
    }

    /// An indirect table whose descriptors are indirect, among them itself; or of a length that is no table's.
    fn table_in_table(&mut self, queue: &Queue) {
        let bytes = self.random.one_of(&[16, 64, 15, 17, 0, 16 * 0x1_0000, u32::MAX], 64);
        let flags = self
            .random
            .one_of(&[INDIRECT, INDIRECT | NEXT, INDIRECT | WRITE, NEXT], INDIRECT);
        for index in 0..4 {
            write_descriptor(TABLES + 16 * index, TABLES, 64, flags, self.random.next_u16() % 5);
        }
        for descriptor in 0..queue.size {
            let flags = self
                .random
                .one_of(&[INDIRECT, INDIRECT | NEXT, INDIRECT | WRITE], INDIRECT);
            queue.describe(descriptor, TABLES, bytes, flags, descriptor);
        }
    }

    /// Every descriptor at random, near to sense.
    fn nonsense(&mut self, queue: &Queue) {
        for descriptor in 0..queue.size {
            let place = address(&mut self.random, self.machine.memory_end);
            let flags = self.random.next_u16() & if self.random.once_in(8) { 0xffff } else { 7 };
            let next = self.random.next_u16() % (queue.size + 2);
            queue.describe(descriptor, place, length(&mut self.random), flags, next);
        }
    }

    /// Requests under way, and then the device or one of its queues is taken away.
    pub(super) fn reset(&mut self) -> Result<(), Failure> {
        for _ in 0..self.count {
            let features = self.features();
            let mut queues = self.start(features)?;
            for (index, queue) in queues.iter_mut().enumerate() {
                let Some(queue) = queue else { continue };
                for slot in 0..queue.size / PARTS {
                    let head = self.request(index, queue, slot);
                    queue.publish(head);
                }
                self.device.kick(u32::try_from(index).unwrap_or(0));
            }
            let (start, delay) = (ticks(), self.random.below(DELAY));
            while ticks() - start < delay {
                core::hint::spin_loop();
            }
            match self.random.below(4) {
                0 => {
                    self.device
                        .write(QUEUE_SELECT, self.random.next_u32() % self.queue_count());
                    self.device.write(QUEUE_READY, 0);
                }
                1 => self.device.write(STATUS, 0x8f),
                _ => self.device.write(STATUS, 0),
            }
            self.outcome.operations += 1;
            self.outcome.needs_reset += u64::from(self.device.needs_reset());
            page::pulse();
        }
        Ok(())
    }

    /// Requests whose rings a second processor changes meanwhile.
    pub(super) fn race(&mut self) -> Result<(), Failure> {
        second::start()?;
        let mut fresh = self.count;
        while fresh > 0 {
            let features = self.features();
            let queues = self.start(features)?;
            // Of a socket's queues mostly the one that is read without more ado.
            let most = u64::from(self.queue_count());
            let index = if self.random.once_in(4) {
                self.random.below(most)
            } else {
                most / 2
            };
            let index = usize::try_from(index).unwrap_or(0);
            let Some(mut queue) = queues[index] else { break };
            second::disturb(queue.descriptors(), self.machine.memory_end);
            for _ in 0..16 {
                for slot in 0..8 {
                    let head = self.request(index, &queue, slot);
                    queue.publish(head);
                }
                self.device.kick(u32::try_from(index).unwrap_or(0));
                fresh = fresh.saturating_sub(1);
                if self.settle(&queue) {
                    break;
                }
            }
            self.outcome.checksum = second::stop();
        }
        Ok(())
    }
}
