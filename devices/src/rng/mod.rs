//! The entropy device (section 5.4): gives the guest the host's randomness.

#[cfg(test)]
mod tests;

use std::io;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber, SubscriberId};
use serde::{Deserialize, Serialize};
use tracing::{error, warn};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes};
use vmm_sys_util::eventfd::EventFd;

use crate::event::LoopHandle;
use crate::system_calls::SystemCall;
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::{
    ActivateError, Activation, Device, DeviceState, Interrupt, Memory, StateError, feature, kind, wants_interrupt,
};

/// What the device does in the event loop.
pub const SYSTEM_CALLS: &[SystemCall] = &[SystemCall::any(libc::SYS_getrandom)];

/// The queue's size: a driver rarely has more than one request under way.
const QUEUE_SIZE: u16 = 16;
/// The most bytes that one request is given (section 5.4.6.1 allows fewer than asked for): what the kernel gives
/// without a chance of being interrupted.
const MAX_BYTES: usize = 256;
/// Requests answered before others in the event loop have their turn.
const BATCH: usize = 16;

/// The state of the entropy device: it has none but the transport's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RngState {
    /// The version of the program that saved.
    pub version: u32,
}

const STATE_VERSION: u32 = 1;

/// The entropy device.
pub struct Rng {
    events: LoopHandle,
    worker: Option<SubscriberId>,
}

impl Rng {
    /// An entropy device whose worker will live in the given event loop.
    #[must_use]
    pub fn new(events: LoopHandle) -> Self {
        Self { events, worker: None }
    }
}

impl Device for Rng {
    fn kind(&self) -> u32 {
        kind::ENTROPY
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        feature::INDIRECT_DESC | feature::EVENT_IDX
    }

    fn read_config(&self, _: u64, _: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            queues,
            kicks,
            interrupt,
            ..
        } = activation;
        let queue = queues.into_iter().next().filter(QueueT::ready);
        let (Some(queue), Some(kick)) = (queue, kicks.into_iter().next()) else {
            return Err(ActivateError::QueueMissing(0));
        };
        self.worker = Some(self.events.add(RngWorker {
            memory,
            queue,
            kick,
            interrupt,
            chain: Chain::new(),
            broken: false,
        })?);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<Queue> {
        let Some(id) = self.worker.take() else {
            return Vec::new();
        };
        match self.events.take_back::<RngWorker>(id) {
            Ok(worker) => vec![worker.queue],
            Err(error) => {
                error!(%error, "the entropy device's worker cannot be stopped");
                Vec::new()
            }
        }
    }

    fn save(&mut self) -> DeviceState {
        DeviceState::Rng(RngState { version: STATE_VERSION })
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), StateError> {
        let DeviceState::Rng(state) = state else {
            return Err(StateError::Configuration("device type"));
        };
        if state.version != STATE_VERSION {
            return Err(StateError::Version {
                found: state.version,
                supported: STATE_VERSION,
            });
        }
        Ok(())
    }
}

/// What lives in the event loop while the device is active.
struct RngWorker {
    memory: Memory,
    queue: Queue,
    kick: EventFd,
    interrupt: Interrupt,
    chain: Chain,
    /// The ring makes no sense; nothing is done until the reset.
    broken: bool,
}

impl RngWorker {
    /// Answers what is available; false if there may be more.
    fn answer(&mut self) -> Result<bool, ChainError> {
        for _ in 0..BATCH {
            if self.chain.take(&mut self.queue, &self.memory)? {
                let length = self.fill();
                self.queue
                    .add_used(&self.memory, self.chain.head(), length)
                    .map_err(ChainError::Ring)?;
            } else if !self.queue.enable_notification(&self.memory).map_err(ChainError::Ring)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Fills the front of the request's buffers; returns with how many bytes.
    fn fill(&self) -> u32 {
        let mut random = [0; MAX_BYTES];
        if let Err(error) = get_random(&mut random) {
            error!(%error, "the host gives no randomness");
            return 0;
        }
        let mut rest = random.as_slice();
        for buffer in self.chain.writable() {
            let length = usize::try_from(buffer.len()).map_or(rest.len(), |length| length.min(rest.len()));
            let (part, behind) = rest.split_at(length);
            if let Err(error) = self.memory.write_slice(part, buffer.addr()) {
                warn!(%error, address = buffer.addr().raw_value(), "an entropy request's buffer is not in memory");
                break;
            }
            rest = behind;
        }
        u32::try_from(MAX_BYTES - rest.len()).unwrap_or(0)
    }

    fn work(&mut self) {
        if self.broken {
            return;
        }
        let before = self.queue.next_used();
        let end = self.answer();
        let mut wanted = Ok(false);
        if self.queue.next_used() != before {
            wanted = wants_interrupt(&mut self.queue, &self.memory).map_err(ChainError::Ring);
        }
        if matches!(wanted, Ok(true)) {
            self.interrupt.signal_queue();
        }
        match end.and_then(|end| wanted.map(|_| end)) {
            Ok(true) => {}
            Ok(false) => {
                // Comes back when the others had their turn.
                if let Err(error) = self.kick.write(1) {
                    error!(%error, "the entropy device cannot wake itself");
                }
            }
            Err(error) => {
                warn!(%error, "the entropy device's queue makes no sense");
                self.broken = true;
                self.interrupt.needs_reset();
            }
        }
    }
}

impl MutEventSubscriber for RngWorker {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        // The counter's value does not matter; an error says that it is zero already.
        let _ = self.kick.read();
        self.work();
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.kick, EventSet::IN)) {
            error!(%error, "the entropy device cannot wait for its driver");
            self.broken = true;
            self.interrupt.needs_reset();
            return;
        }
        self.work();
    }
}

/// Fills the buffer, of at most 256 bytes, from the kernel.
fn get_random(buffer: &mut [u8; MAX_BYTES]) -> io::Result<()> {
    // SAFETY: the buffer is writable for its whole length.
    #[allow(unsafe_code)]
    let count = unsafe { libc::getrandom(buffer.as_mut_ptr().cast(), MAX_BYTES, 0) };
    // getrandom(2): requests of up to 256 bytes are not interrupted and always answered in full.
    if usize::try_from(count).is_ok_and(|count| count == MAX_BYTES) {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
