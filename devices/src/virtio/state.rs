//! Saved states: plain data with a version.

use serde::{Deserialize, Serialize};

use crate::blk::BlockState;
use crate::rng::RngState;
use crate::vsock::VsockState;

/// The state of a transport and of the device behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransportState {
    /// [`TransportState::VERSION`] of the program that saved.
    pub version: u32,
    /// The device's type.
    pub kind: u32,
    /// The device status field.
    pub status: u32,
    /// The interrupt status register.
    pub interrupt_status: u32,
    /// What the driver wrote as its features.
    pub driver_features: u64,
    /// Which half of the device's features the driver reads.
    pub device_features_select: u32,
    /// Which half of its own features the driver writes.
    pub driver_features_select: u32,
    /// Which queue the queue registers stand for.
    pub queue_select: u32,
    /// The registers and positions of each queue.
    pub queues: Vec<QueueRegisters>,
    /// What the device adds.
    pub device: DeviceState,
}

impl TransportState {
    /// The version that this program writes and reads.
    pub const VERSION: u32 = 1;
}

/// A queue as the driver set it up, and how far the device has come in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueRegisters {
    /// The number of descriptors, as the driver wrote it.
    pub size: u32,
    /// Whether the driver enabled the queue.
    pub ready: bool,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring.
    pub available: u64,
    /// Guest address of the used ring.
    pub used: u64,
    /// The next entry of the available ring that the device reads.
    pub next_available: u16,
    /// The next entry of the used ring that the device writes.
    pub next_used: u16,
}

/// What each device type saves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceState {
    /// A disk slot.
    Block(BlockState),
    /// The entropy device.
    Rng(RngState),
    /// The socket device.
    Vsock(VsockState),
}
