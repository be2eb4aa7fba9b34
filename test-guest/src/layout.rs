//! Guest-physical addresses. The guest needs 32 MiB of memory.

/// The shared page: [`crate::report::Page`].
pub const SHARED_PAGE: u64 = 0x10_0000;
/// Where a second processor's first instructions are copied to.
pub const TRAMPOLINE: u64 = 0x8000;
/// The guest's own image begins here.
pub const IMAGE: u64 = 0x20_0000;
/// The end of the room for the image.
pub const IMAGE_END: u64 = 0x40_0000;
/// Rings, [`QUEUE_ROOM`] bytes for each queue of each device.
pub const RINGS: u64 = 0x40_0000;
/// The room for one queue: descriptor table, available ring and used ring, 16 KiB each.
pub const QUEUE_ROOM: u64 = 0x1_0000;
/// Queues of a device that have room.
pub const QUEUES: u64 = 8;
/// Devices that have room; the guest looks no further.
pub const DEVICES: u64 = 8;
/// Buffers of requests.
pub const BUFFERS: u64 = 0x80_0000;
/// The end of the buffers.
pub const BUFFERS_END: u64 = 0x180_0000;
/// The first virtio-mmio device's registers, unless the order `virtio` tells another place; the others follow.
pub const VIRTIO: u64 = 0xd000_0000;
/// The distance between the registers of two devices.
pub const VIRTIO_WINDOW: u64 = 0x1000;

/// Where a queue's room begins.
#[must_use]
pub const fn rings(device: u64, queue: u64) -> u64 {
    RINGS + (device % DEVICES * QUEUES + queue % QUEUES) * QUEUE_ROOM
}
