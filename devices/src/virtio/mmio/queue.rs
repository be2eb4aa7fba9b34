//! From a queue's registers to the queue that a device works on.

use virtio_queue::{Queue, QueueState, QueueT};

use super::super::{Memory, QueueRegisters, feature};

/// The registers of a queue after reset. The size starts at its greatest, for drivers that keep it.
pub(super) fn after_reset(max: u16) -> QueueRegisters {
    QueueRegisters {
        size: u32::from(max),
        ..QueueRegisters::default()
    }
}

/// The queue that the registers describe, as if it were enabled; `None` if that is no possible queue: a size that is
/// not a power of two or greater than `max`, an address that is not aligned (section 2.7), or a part outside of guest
/// memory.
pub(super) fn build(registers: &QueueRegisters, max: u16, features: u64, memory: &Memory) -> Option<Queue> {
    let state = QueueState {
        max_size: max,
        next_avail: registers.next_available,
        next_used: registers.next_used,
        event_idx_enabled: features & feature::EVENT_IDX != 0,
        size: u16::try_from(registers.size).ok()?,
        ready: true,
        desc_table: registers.descriptors,
        avail_ring: registers.available,
        used_ring: registers.used,
    };
    // An available ring at address zero counts as absent in the queue implementation.
    if registers.available == 0 {
        return None;
    }
    Queue::try_from(state).ok().filter(|queue| queue.is_valid(memory))
}
