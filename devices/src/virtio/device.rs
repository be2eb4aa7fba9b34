//! What a virtio device is to its transport.

use std::io;

use thiserror::Error;
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use super::{DeviceState, Interrupt, Memory};
use crate::event::EventError;

/// Everything that a device needs to work, moved into it when the driver is ready.
pub struct Activation {
    /// The guest's memory.
    pub memory: Memory,
    /// All queues of the device, in order. One that the driver did not set up is not `ready()` and must be left alone;
    /// a ready one lies in guest memory. `EVENT_IDX` is set in them if it was negotiated.
    pub queues: Vec<Queue>,
    /// For each queue the event that the driver's notification signals (non-blocking).
    pub kicks: Vec<EventFd>,
    /// How the device reaches the driver.
    pub interrupt: Interrupt,
    /// The negotiated features.
    pub features: u64,
}

/// A virtio device, independent of its transport.
///
/// ```text
///            activate              deactivate
///   built ─────────────▶ active ─────────────────▶ built
///     │  ▲                  │     (reset: the queues are dropped, and reset is called;
///     └──┘                  │      pause: they come back with the next activate)
///   save, restore           └─ read_config, write_config at any time
/// ```
///
/// The transport calls the methods on vCPU threads and, to pause and save, on the thread that controls the machine;
/// never two at a time.
pub trait Device: Send {
    /// The device's type, one of [`kind`](super::kind).
    fn kind(&self) -> u32;

    /// The largest size of each queue; a power of two up to 32,768.
    fn queue_sizes(&self) -> &[u16];

    /// The offered features, without `VERSION_1`, which the transport adds.
    fn features(&self) -> u64;

    /// Counts changes of the configuration space, so that a driver can tell that it read old and new together
    /// (section 2.5). A device whose configuration never changes need not implement it.
    fn config_generation(&self) -> u32 {
        0
    }

    /// Reads the configuration space. `data` is all zeros; what lies outside the space is left so.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the configuration space. Devices without a writable field ignore it.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Starts to work. Requests may already be waiting in the queues, without a notification to come.
    ///
    /// # Errors
    /// The worker could not be started; the transport then sets `NEEDS_RESET`.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stops to work: when it returns, nobody touches guest memory or queues any more, and each request is either
    /// answered or put back into its queue. Returns the queues of the activation, in order; nothing if the device was
    /// not active or its worker could not be stopped.
    fn deactivate(&mut self) -> Vec<Queue>;

    /// The driver reset the device, or has given up on it: what belonged to its life is forgotten. Called after
    /// [`deactivate`](Self::deactivate), also if the device was never active.
    fn reset(&mut self) {}

    /// The device's own state as plain data; called while the device is not active.
    fn save(&mut self) -> DeviceState;

    /// Takes over a saved state; called on a device that was just built with the same configuration.
    ///
    /// # Errors
    /// The state is of another device type, version or configuration.
    fn restore(&mut self, state: DeviceState) -> Result<(), StateError>;
}

/// Why a device could not start to work.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum ActivateError {
    #[error("the driver did not set up queue {0}, without which the device cannot work")]
    QueueMissing(usize),
    #[error("the event loop did not take the device's worker")]
    Loop(#[from] EventError),
    #[error("the device's event descriptor cannot be made")]
    Event(#[source] io::Error),
    #[error("the device's worker thread cannot be started")]
    Thread(#[source] io::Error),
    #[error("a worker of the previous activation still waits for its storage")]
    Stuck,
}

/// Why a saved state does not fit.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum StateError {
    #[error("the state is of version {found}; this program reads version {supported}")]
    Version { found: u32, supported: u32 },
    #[error("the state belongs to a device of type {found}, not {expected}")]
    Kind { found: u32, expected: u32 },
    #[error("the state's {0} differs from the device's")]
    Configuration(&'static str),
    #[error("the state's {0} is outside its range")]
    Range(&'static str),
}
