//! The virtio-mmio transport, version 2 (section 4.2).
//!
//! A driver's mistakes have no effect: a write in the wrong state, to a read-only register or of a wrong width is
//! ignored, a wrong read gives zeros. Two mistakes the driver is told of: features that were not offered (`FEATURES_OK`
//! does not stay set) and a queue that does not lie in guest memory (`DEVICE_NEEDS_RESET`).

#[cfg(test)]
mod hostile;
mod life;
mod queue;
mod registers;
#[cfg(test)]
mod tests;

use std::io;

use thiserror::Error;
use tracing::{debug, warn};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use self::life::PauseError;
use self::registers::*;
use super::{Device, Interrupt, Memory, QueueRegisters, StateError, feature, status};
use crate::bus::BusDevice;
use crate::system_calls::{Condition, SystemCall};

/// The length in bytes of a transport's register window.
pub const WINDOW: u64 = 0x1000;
/// The offset of the register that the driver notifies by writing the queue's index; the place of the ioeventfds.
pub const NOTIFY_OFFSET: u64 = QUEUE_NOTIFY;

/// What an access to the registers does, and a pause and its end: a reset takes notifications of the life before, and an
/// activated device gets events of its own.
pub const SYSTEM_CALLS: &[SystemCall] = &[
    SystemCall::any(libc::SYS_read),
    SystemCall::with(
        libc::SYS_fcntl,
        &[Condition::is(1, libc::F_DUPFD_CLOEXEC.cast_unsigned())],
    ),
    // A C library makes sure of the flag itself, for kernels that forgot it.
    SystemCall::with(libc::SYS_fcntl, &[Condition::is(1, libc::F_SETFD.cast_unsigned())]),
];

/// Why a transport cannot be built.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum TransportError {
    #[error("an event descriptor cannot be made")]
    Event(#[source] io::Error),
    #[error("the device's queue size {0} is not a power of two up to 32,768")]
    QueueSize(u16),
    #[error(transparent)]
    State(#[from] StateError),
}

/// The registers of one virtio device and the device behind them.
pub struct Transport {
    device: Box<dyn Device>,
    memory: Memory,
    interrupt: Interrupt,
    kicks: Vec<EventFd>,
    queues: Vec<QueueRegisters>,
    driver_features: u64,
    device_features_select: u32,
    driver_features_select: u32,
    queue_select: u32,
    /// Whether the device holds the queues.
    active: bool,
    paused: bool,
}

impl Transport {
    /// A transport in its state after reset, whose interrupts write to `line` (an irqfd; non-blocking).
    ///
    /// # Errors
    /// Event descriptors are used up, or the device has an impossible queue size.
    pub fn new(device: Box<dyn Device>, memory: Memory, line: EventFd) -> Result<Self, TransportError> {
        let sizes = device.queue_sizes();
        if let Some(size) = sizes.iter().find(|size| Queue::new(**size).is_err()) {
            return Err(TransportError::QueueSize(*size));
        }
        let kicks = sizes
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK))
            .collect::<io::Result<_>>()
            .map_err(TransportError::Event)?;
        let queues = sizes.iter().map(|size| queue::after_reset(*size)).collect();
        Ok(Self {
            device,
            memory,
            interrupt: Interrupt::new(line),
            kicks,
            queues,
            driver_features: 0,
            device_features_select: 0,
            driver_features_select: 0,
            queue_select: 0,
            active: false,
            paused: false,
        })
    }

    /// For each queue the event that a notification signals: to be joined as an ioeventfd to [`NOTIFY_OFFSET`], four
    /// bytes wide, matching the queue's index.
    #[must_use]
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// Makes the device look at all its queues, as if the driver had notified it of each.
    pub fn kick(&self) {
        for index in 0..self.kicks.len() {
            self.notify(index);
        }
    }

    /// Answers a read of the register window.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset >= CONFIG {
            self.device.read_config(offset - CONFIG, data);
        } else if data.len() == 4 && offset.is_multiple_of(4) {
            // Section 4.2.2.2: control registers are read and written 32 bits wide and aligned.
            data.copy_from_slice(&self.read_register(offset).to_le_bytes());
        } else {
            debug!(offset, width = data.len(), "unaligned read of a control register");
        }
    }

    /// Takes a write to the register window.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if offset >= CONFIG {
            // Section 3.1.1: a driver may look at the configuration early, but must not write it.
            if self.has(status::FEATURES_OK) {
                self.device.write_config(offset - CONFIG, data);
            }
        } else if let Ok(bytes) = <[u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            self.write_register(offset, u32::from_le_bytes(bytes));
        } else {
            debug!(offset, width = data.len(), "unaligned write of a control register");
        }
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            MAGIC_VALUE => MAGIC,
            DEVICE_VERSION => VERSION,
            DEVICE_ID => self.device.kind(),
            VENDOR_ID => VENDOR,
            DEVICE_FEATURES => half(self.offered(), self.device_features_select),
            QUEUE_SIZE_MAX => self
                .selected()
                .and_then(|index| self.device.queue_sizes().get(index))
                .map_or(0, |max| u32::from(*max)),
            QUEUE_READY => self.selected().map_or(0, |index| u32::from(self.queues[index].ready)),
            INTERRUPT_STATUS => self.interrupt.pending(),
            STATUS => self.interrupt.status(),
            // Section 4.2.2.1: a region of shared memory that does not exist has a length of all ones.
            SHARED_LENGTH_LOW..=SHARED_BASE_HIGH => u32::MAX,
            CONFIG_GENERATION => self.device.config_generation(),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            DEVICE_FEATURES_SELECT => self.device_features_select = value,
            DRIVER_FEATURES_SELECT => self.driver_features_select = value,
            DRIVER_FEATURES => self.write_features(value),
            QUEUE_SELECT => self.queue_select = value,
            QUEUE_READY => self.write_ready(value),
            QUEUE_NOTIFY => self.write_notify(value),
            INTERRUPT_ACKNOWLEDGE => self.interrupt.acknowledge(value),
            STATUS => self.write_status(value),
            _ => self.write_queue(offset, value),
        }
    }

    /// The offered features with the transport's own.
    fn offered(&self) -> u64 {
        self.device.features() | feature::VERSION_1
    }

    /// Whether a driver may have these features: all offered, and not those of the time before version 1.
    fn acceptable(&self, features: u64) -> bool {
        features & !self.offered() == 0 && features & feature::VERSION_1 != 0
    }

    fn has(&self, bits: u32) -> bool {
        self.interrupt.status() & bits == bits
    }

    /// The index of the selected queue, if there is such a queue.
    fn selected(&self) -> Option<usize> {
        usize::try_from(self.queue_select)
            .ok()
            .filter(|index| *index < self.queues.len())
    }

    fn write_features(&mut self, value: u32) {
        if !self.has(status::DRIVER) || self.has(status::FEATURES_OK) {
            return;
        }
        let value = u64::from(value);
        match self.driver_features_select {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | value,
            1 => self.driver_features = self.driver_features & 0xffff_ffff | value << 32,
            _ => {}
        }
    }

    /// Registers of the selected queue: writable between negotiation and start, while the queue is not enabled.
    fn write_queue(&mut self, offset: u64, value: u32) {
        let Some(index) = self.selected() else { return };
        let open = self.has(status::FEATURES_OK) && !self.has(status::DRIVER_OK);
        let registers = &mut self.queues[index];
        if !open || registers.ready {
            return;
        }
        match offset {
            QUEUE_SIZE => registers.size = value,
            QUEUE_DESCRIPTORS_LOW => set_low(&mut registers.descriptors, value),
            QUEUE_DESCRIPTORS_HIGH => set_high(&mut registers.descriptors, value),
            QUEUE_AVAILABLE_LOW => set_low(&mut registers.available, value),
            QUEUE_AVAILABLE_HIGH => set_high(&mut registers.available, value),
            QUEUE_USED_LOW => set_low(&mut registers.used, value),
            QUEUE_USED_HIGH => set_high(&mut registers.used, value),
            _ => {}
        }
    }

    fn write_ready(&mut self, value: u32) {
        let Some(index) = self.selected() else { return };
        if !self.has(status::FEATURES_OK) {
            return;
        }
        match value {
            0 if self.queues[index].ready => {
                // Section 4.2.2.2: when the driver reads the zero back, the device has let go of the queue.
                let stopped = self.stop();
                self.queues[index].ready = false;
                self.queues[index].next_available = 0;
                self.queues[index].next_used = 0;
                if stopped.is_ok() {
                    self.run();
                }
            }
            1 if !self.has(status::DRIVER_OK) => {
                let max = self.device.queue_sizes()[index];
                if queue::build(&self.queues[index], max, self.driver_features, &self.memory).is_some() {
                    self.queues[index].ready = true;
                } else {
                    warn!(
                        kind = self.device.kind(),
                        index, "the driver enabled a queue that is not possible"
                    );
                    self.interrupt.needs_reset();
                }
            }
            _ => {}
        }
    }

    /// A notification that did not come as an ioeventfd.
    fn write_notify(&self, value: u32) {
        if let Ok(index) = usize::try_from(value)
            && index < self.kicks.len()
            && self.has(status::DRIVER_OK)
        {
            self.notify(index);
        }
    }

    fn notify(&self, index: usize) {
        if let Err(error) = self.kicks[index].write(1) {
            // Only a counter at its end can refuse: then the event is signalled anyway.
            debug!(%error, index, "a notification was not counted");
        }
    }

    /// The status machine (sections 2.1 and 3.1.1): bits are added in order, and only a write of zero takes them back.
    fn write_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        let before = self.interrupt.status();
        // NEEDS_RESET belongs to the device; the driver may write it back or may not have seen it yet.
        let missing = before & !value & !status::NEEDS_RESET;
        if missing != 0 {
            debug!(before, value, "a status write that takes bits back");
            return;
        }
        if value & status::FAILED != 0 {
            // The driver has given up: it may use the memory of its buffers for other things.
            self.interrupt.add_status(status::FAILED);
            let _ = self.stop();
            self.device.reset();
            return;
        }
        for (bit, needed) in [
            (status::ACKNOWLEDGE, 0),
            (status::DRIVER, status::ACKNOWLEDGE),
            (status::FEATURES_OK, status::DRIVER),
            (status::DRIVER_OK, status::FEATURES_OK),
        ] {
            if value & !before & bit == 0 {
                continue;
            }
            let refused = bit == status::FEATURES_OK && !self.acceptable(self.driver_features);
            if !self.has(needed) || refused {
                debug!(before, value, bit, "a status bit that is not set");
                return;
            }
            self.interrupt.add_status(bit);
        }
        self.run();
    }

    fn reset(&mut self) {
        // A worker that cannot be stopped is one that the device refuses to start again.
        let _ = self.stop();
        self.device.reset();
        let sizes = self.device.queue_sizes();
        self.queues = sizes.iter().map(|size| queue::after_reset(*size)).collect();
        self.driver_features = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.queue_select = 0;
        self.interrupt = self.interrupt.after_reset();
        for kick in &self.kicks {
            // A notification of the life before; an error says that there is none.
            let _ = kick.read();
        }
    }
}

impl BusDevice for Transport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        Transport::read(self, offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        Transport::write(self, offset, data);
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        // A worker left in the event loop would keep the guest's memory.
        let _ = self.stop();
    }
}

/// One half of 64 feature bits, little end first; there are no others.
fn half(features: u64, select: u32) -> u32 {
    let [low, high] = halves(features);
    match select {
        0 => low,
        1 => high,
        _ => 0,
    }
}

fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

fn set_low(address: &mut u64, value: u32) {
    *address = *address & !0xffff_ffff | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = *address & 0xffff_ffff | u64::from(value) << 32;
}
