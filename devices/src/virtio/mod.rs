//! Virtio: what a device is to its transport, and the transport.
//!
//! Numbers in comments refer to the sections of the Virtual I/O Device specification, version 1.2.

pub mod chain;
mod device;
mod interrupt;
mod memory;
pub mod mmio;
#[cfg(test)]
mod queues;
mod state;
mod used;

pub use device::{ActivateError, Activation, Device, StateError};
pub use interrupt::Interrupt;
pub use memory::Memory;
pub use state::{DeviceState, QueueRegisters, TransportState};
pub use used::wants_interrupt;

/// Device ids (section 5).
pub mod kind {
    /// Block device.
    pub const BLOCK: u32 = 2;
    /// Entropy device.
    pub const ENTROPY: u32 = 4;
    /// Socket device.
    pub const SOCKET: u32 = 19;
}

/// Feature bits that do not belong to a device type (section 6).
pub mod feature {
    /// Descriptors may refer to tables of descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// `used_event` and `avail_event` say when the other side wants to be notified.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// The device follows version 1 of the specification; offered and demanded by the transport.
    pub const VERSION_1: u64 = 1 << 32;
}

/// Bits of the device status field (section 2.1).
pub mod status {
    /// The guest has noticed the device.
    pub const ACKNOWLEDGE: u32 = 1;
    /// The guest knows how to drive the device.
    pub const DRIVER: u32 = 2;
    /// The driver is set up; the device lives.
    pub const DRIVER_OK: u32 = 4;
    /// Feature negotiation is complete.
    pub const FEATURES_OK: u32 = 8;
    /// The device met an error from which only a reset recovers.
    pub const NEEDS_RESET: u32 = 64;
    /// The driver has given up on the device.
    pub const FAILED: u32 = 128;
}
