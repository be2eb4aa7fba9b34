//! What the driver wants to hear of the buffers that it gets back.

use std::sync::atomic::Ordering;

use virtio_queue::{Error, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::Memory;

/// The available ring's flag by which a driver without `EVENT_IDX` asks for no interrupts (section 2.7.6).
const NO_INTERRUPT: u16 = 1;

/// Whether the driver wants an interrupt for what was put into the used ring since this was asked last: it has passed
/// `used_event`, or without `EVENT_IDX` the driver has not asked to be left alone (section 2.7.7.2).
///
/// # Errors
/// The available ring is not in memory.
pub fn wants_interrupt(queue: &mut Queue, memory: &Memory) -> Result<bool, Error> {
    // It orders what was written to the used ring before what is read now, in both cases.
    let wanted = queue.needs_notification(memory)?;
    if queue.event_idx_enabled() {
        return Ok(wanted);
    }
    let flags: u16 = memory
        .load(GuestAddress(queue.avail_ring()), Ordering::Relaxed)
        .map_err(Error::GuestMemory)?;
    Ok(u16::from_le(flags) & NO_INTERRUPT == 0)
}
