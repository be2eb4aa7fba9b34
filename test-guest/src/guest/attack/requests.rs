//! Requests that a driver could make, as the ground on which other attacks stand.

use husk_test_guest::layout::BUFFERS;

use super::super::memory::{write32, write64};
use super::super::queue::{NEXT, Queue, WRITE};
use super::super::virtio::{BLOCK, SOCKET};
use super::super::vsock::{Header, STREAM};
use super::Attack;

/// Descriptors that a request may have.
pub(super) const PARTS: u16 = 4;
/// The room of one request's buffers.
const ROOM: u64 = 0x2_0000;

impl Attack<'_> {
    /// Writes a request of the device's kind at the first descriptors of a slot, and gives its head.
    pub(super) fn request(&mut self, index: usize, queue: &Queue, slot: u16) -> u16 {
        let head = PARTS * slot % queue.size;
        let place = BUFFERS + ROOM * u64::from(slot % 64);
        match (self.kind, index) {
            (BLOCK, _) => self.block_request(queue, head, place),
            (SOCKET, 1) => self.packet(queue, head, place),
            _ => queue.describe(head, place, 44 + 4096, WRITE, 0),
        }
        head
    }

    fn block_request(&mut self, queue: &Queue, head: u16, place: u64) {
        let kind = self.random.one_of(&[0, 0, 0, 1, 4, 8, 11, 13, 99], 0);
        write32(place, kind);
        write64(place + 8, self.random.below(4096));
        let length = self.random.one_of(&[16, 512, 4096, 0x1_0000], 512);
        let direction = if matches!(kind, 0 | 8) { WRITE } else { 0 };
        queue.describe(head, place, 16, NEXT, head + 1);
        queue.describe(head + 1, place + 0x1000, length, NEXT | direction, head + 2);
        queue.describe(head + 2, place + 0x800, 1, WRITE, 0);
    }

    fn packet(&mut self, queue: &Queue, head: u16, place: u64) {
        let header = Header {
            source: 2000 + self.random.next_u32() % 16,
            destination: self.random.one_of(&[1024, 1024, 1025], 1024),
            length: 0,
            kind: STREAM,
            operation: 1 + self.random.next_u16() % 7,
            flags: self.random.next_u32() % 4,
            window: 0x1_0000,
            forwarded: 0,
        };
        header.write(place, 3, 2);
        queue.describe(head, place, 44, 0, 0);
    }
}
