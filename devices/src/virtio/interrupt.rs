//! How a device reaches its driver.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tracing::error;
use vmm_sys_util::eventfd::EventFd;

use super::status;

/// Bits of the interrupt status (section 4.2.2).
const USED_BUFFER: u32 = 1;
const CONFIG_CHANGE: u32 = 2;

/// The words that transport and worker share, and the interrupt line. A clone is the same interrupt.
///
/// One lasts from reset to reset: a worker that outlives a reset, because its storage hangs, holds one that nobody
/// looks at any more.
#[derive(Clone, Debug)]
pub struct Interrupt {
    shared: Arc<Shared>,
    /// Raises the line when written to (an irqfd).
    line: Arc<EventFd>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Why the line was raised, until the driver acknowledges it.
    pending: AtomicU32,
    /// The device status field: the transport writes it, the worker adds `NEEDS_RESET`.
    status: AtomicU32,
}

impl Interrupt {
    /// An interrupt that raises `line`.
    #[must_use]
    pub fn new(line: EventFd) -> Self {
        Self {
            shared: Arc::default(),
            line: Arc::new(line),
        }
    }

    /// The interrupt after a reset: the same line, but words of its own.
    pub(crate) fn after_reset(&self) -> Self {
        Self {
            shared: Arc::default(),
            line: self.line.clone(),
        }
    }

    /// Tells the driver that buffers were used.
    pub fn signal_queue(&self) {
        self.raise(USED_BUFFER);
    }

    /// Tells the driver that the configuration space changed.
    pub fn signal_config(&self) {
        self.raise(CONFIG_CHANGE);
    }

    /// Puts the device into `DEVICE_NEEDS_RESET`, and tells a driver that is at work (section 2.1.2).
    pub fn needs_reset(&self) {
        let before = self.shared.status.fetch_or(status::NEEDS_RESET, Ordering::SeqCst);
        if before & status::DRIVER_OK != 0 && before & status::NEEDS_RESET == 0 {
            self.signal_config();
        }
    }

    /// Raises the line for reasons in the form of the interrupt status register.
    ///
    /// The line is raised even when the reason is still pending: the driver may already have looked at its rings and
    /// be about to acknowledge, and would then miss what is new.
    pub(crate) fn raise(&self, reasons: u32) {
        self.shared.pending.fetch_or(reasons, Ordering::SeqCst);
        if let Err(error) = self.line.write(1) {
            error!(%error, "an interrupt line cannot be raised");
        }
    }

    /// The interrupt status register.
    pub(crate) fn pending(&self) -> u32 {
        self.shared.pending.load(Ordering::SeqCst)
    }

    /// Clears reasons that the driver has handled.
    pub(crate) fn acknowledge(&self, reasons: u32) {
        self.shared.pending.fetch_and(!reasons, Ordering::SeqCst);
    }

    /// The device status field.
    pub(crate) fn status(&self) -> u32 {
        self.shared.status.load(Ordering::SeqCst)
    }

    /// Adds bits to the device status field.
    pub(crate) fn add_status(&self, bits: u32) {
        self.shared.status.fetch_or(bits, Ordering::SeqCst);
    }

    /// Goes to a saved state.
    pub(crate) fn set(&self, status: u32, pending: u32) {
        self.shared.status.store(status, Ordering::SeqCst);
        self.shared.pending.store(pending, Ordering::SeqCst);
    }
}
