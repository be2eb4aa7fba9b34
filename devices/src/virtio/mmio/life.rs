//! When the device works: start, stop, pause, and the way through a saved state.

use std::io;

use thiserror::Error;
use tracing::warn;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::super::{ActivateError, Activation, Device, Memory, StateError, TransportState, status};
use super::{Transport, TransportError, queue};

/// Why a device could not be paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the device's worker did not stop: its storage does not answer or the event loop has ended")]
pub struct PauseError;

impl Transport {
    /// A transport in a saved state, paused; [`Transport::resume`] lets it go on. `device` was just built with the
    /// configuration of the one that was saved.
    ///
    /// # Errors
    /// As [`Transport::new`], and a state that does not fit the device or has impossible values.
    pub fn restore(
        state: TransportState,
        device: Box<dyn Device>,
        memory: Memory,
        line: EventFd,
    ) -> Result<Self, TransportError> {
        let mut transport = Self::new(device, memory, line)?;
        transport.load(state)?;
        Ok(transport)
    }

    /// Stops the device between two requests; the driver does not notice. Pausing twice changes nothing.
    ///
    /// # Errors
    /// The device's worker cannot be stopped. The device then needs a reset.
    pub fn pause(&mut self) -> Result<(), PauseError> {
        self.paused = true;
        self.stop()
    }

    /// Lets a paused device go on.
    pub fn resume(&mut self) {
        if !self.paused {
            return;
        }
        self.paused = false;
        // Across a save both a notification and an interrupt can be lost; one too many of either is harmless.
        self.run();
        if self.active {
            self.kick();
            self.interrupt.signal_queue();
        } else if self.interrupt.pending() != 0 {
            self.interrupt.raise(0);
        }
    }

    /// The state as plain data; pauses the device first if it is not.
    ///
    /// # Errors
    /// As [`Transport::pause`].
    pub fn save(&mut self) -> Result<TransportState, PauseError> {
        self.pause()?;
        Ok(TransportState {
            version: TransportState::VERSION,
            kind: self.device.kind(),
            status: self.interrupt.status(),
            interrupt_status: self.interrupt.pending(),
            driver_features: self.driver_features,
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            queue_select: self.queue_select,
            queues: self.queues.clone(),
            device: self.device.save(),
        })
    }

    /// Takes over a saved state.
    fn load(&mut self, state: TransportState) -> Result<(), StateError> {
        if state.version != TransportState::VERSION {
            return Err(StateError::Version {
                found: state.version,
                supported: TransportState::VERSION,
            });
        }
        if state.kind != self.device.kind() {
            return Err(StateError::Kind {
                found: state.kind,
                expected: self.device.kind(),
            });
        }
        if state.queues.len() != self.queues.len() {
            return Err(StateError::Configuration("number of queues"));
        }
        if state.status & (status::FEATURES_OK | status::DRIVER_OK) == status::DRIVER_OK {
            return Err(StateError::Range("status"));
        }
        if state.status & status::FEATURES_OK != 0 && !self.acceptable(state.driver_features) {
            return Err(StateError::Configuration("features"));
        }
        let sizes = self.device.queue_sizes();
        for (registers, max) in state.queues.iter().zip(sizes) {
            if registers.ready && queue::build(registers, *max, state.driver_features, &self.memory).is_none() {
                return Err(StateError::Range("queue"));
            }
        }
        self.device.restore(state.device)?;
        self.interrupt.set(state.status, state.interrupt_status);
        self.driver_features = state.driver_features;
        self.device_features_select = state.device_features_select;
        self.driver_features_select = state.driver_features_select;
        self.queue_select = state.queue_select;
        self.queues = state.queues;
        self.paused = true;
        Ok(())
    }

    /// Hands the queues to the device, if the driver is ready and nothing stands against it.
    pub(super) fn run(&mut self) {
        let status = self.interrupt.status();
        let barred = status & (status::NEEDS_RESET | status::FAILED) != 0;
        if self.active || self.paused || barred || status & status::DRIVER_OK == 0 {
            return;
        }
        let started = self
            .activation()
            .and_then(|activation| self.device.activate(activation));
        match started {
            Ok(()) => self.active = true,
            Err(error) => {
                warn!(kind = self.device.kind(), %error, "a device could not start");
                self.interrupt.needs_reset();
            }
        }
    }

    fn activation(&self) -> Result<Activation, ActivateError> {
        let mut queues = Vec::with_capacity(self.queues.len());
        for (index, (registers, max)) in self.queues.iter().zip(self.device.queue_sizes()).enumerate() {
            let queue = if registers.ready {
                queue::build(registers, *max, self.driver_features, &self.memory)
            } else {
                Queue::new(*max).ok()
            };
            queues.push(queue.ok_or(ActivateError::QueueMissing(index))?);
        }
        let kicks = self.kicks.iter().map(EventFd::try_clone).collect::<io::Result<_>>();
        Ok(Activation {
            memory: self.memory.clone(),
            queues,
            kicks: kicks.map_err(ActivateError::Event)?,
            interrupt: self.interrupt.clone(),
            features: self.driver_features,
        })
    }

    /// Takes the queues back from the device and keeps their positions.
    pub(super) fn stop(&mut self) -> Result<(), PauseError> {
        if !self.active {
            return Ok(());
        }
        self.active = false;
        let queues = self.device.deactivate();
        if queues.len() != self.queues.len() {
            self.interrupt.needs_reset();
            return Err(PauseError);
        }
        for (registers, queue) in self.queues.iter_mut().zip(&queues) {
            registers.next_available = queue.next_avail();
            registers.next_used = queue.next_used();
        }
        Ok(())
    }
}
