//! The block device (section 5.2): a slot for a file or a block device.
//!
//! A slot is made empty and has capacity zero. A disk is put into it and taken out of it by its [`Handle`] at any time;
//! the driver learns of it as a change of the configuration. Data goes between file and guest memory without a copy,
//! on one thread for each queue, which are there from the beginning.

mod backend;
mod config;
mod request;
mod slot;
mod spin;
mod sys;
mod system_calls;
#[cfg(test)]
mod tests;
mod worker;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::error;
use virtio_queue::{Queue, QueueT};

pub use self::backend::AttachError;
use self::slot::Slot;
pub use self::slot::{DetachError, Handle};
pub use self::system_calls::{HANDLE_SYSTEM_CALLS, WORKER_SYSTEM_CALLS};
use self::worker::{Shared, Thread, Worker};
use crate::virtio::{ActivateError, Activation, Device, DeviceState, StateError, kind};

/// The most queues of a slot.
pub const MAX_QUEUES: u16 = 64;
/// How long the storage may take to finish what it was asked last. To flush can take long on a busy host, and a driver
/// whose device is given up loses its disk.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// What a slot is for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The serial that the driver reads: 1 to 20 bytes of printable ASCII.
    pub id: String,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// Request queues, 1 to [`MAX_QUEUES`].
    pub queues: u16,
}

/// Why a slot cannot be made.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum OptionsError {
    #[error("the disk id {0:?} is not 1 to 20 bytes of printable ASCII")]
    Id(String),
    #[error("{0} queues asked for; 1 to {MAX_QUEUES} are possible")]
    Queues(u16),
    #[error("a disk's thread cannot be started")]
    Thread(#[source] io::Error),
}

/// The state of a disk slot. What is on the disk is not part of it, and neither is which disk it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockState {
    /// The version of the program that saved.
    pub version: u32,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// The capacity that the driver saw, in sectors of 512 bytes.
    pub sectors: u64,
    /// The configuration's generation.
    pub generation: u32,
}

const STATE_VERSION: u32 = 1;

/// A disk slot's device.
pub struct Block {
    slot: Arc<Slot>,
    queue_sizes: Vec<u16>,
    processors: usize,
    stopping: Arc<AtomicBool>,
    /// One for each queue.
    threads: Vec<Thread>,
    queues: Vec<Place>,
    /// Workers that did not stop in time; until they end, the device cannot be used.
    stuck: Vec<Worker>,
    stop_limit: Duration,
}

/// Where a queue is while the device is active.
enum Place {
    /// The driver did not enable it.
    Unused(Queue),
    Worker(Worker),
}

impl Block {
    /// An empty slot, and the handle by which a disk gets into it. Its threads, one for each queue, are started now;
    /// each calls `entered` before anything else, and serves nothing if that fails.
    ///
    /// # Errors
    /// An option outside its range, or a thread that cannot be started.
    pub fn new(
        options: Options,
        entered: impl FnOnce() -> io::Result<()> + Clone + Send + 'static,
    ) -> Result<(Self, Handle), OptionsError> {
        let printable = options.id.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if !printable || !(1..=request::ID_LENGTH).contains(&options.id.len()) {
            return Err(OptionsError::Id(options.id));
        }
        if !(1..=MAX_QUEUES).contains(&options.queues) {
            return Err(OptionsError::Queues(options.queues));
        }
        let threads = (0..options.queues)
            .map(|index| Thread::start(format!("{} q{index}", options.id), entered.clone()))
            .collect::<io::Result<_>>()
            .map_err(OptionsError::Thread)?;
        let slot = Arc::new(Slot::new(options.id, options.read_only));
        let handle = Handle { slot: slot.clone() };
        let block = Self {
            slot,
            queue_sizes: vec![config::QUEUE_SIZE; usize::from(options.queues)],
            processors: sys::processors(),
            stopping: Arc::default(),
            threads,
            queues: Vec::new(),
            stuck: Vec::new(),
            stop_limit: STOP_LIMIT,
        };
        Ok((block, handle))
    }

    fn queue_count(&self) -> u16 {
        u16::try_from(self.queue_sizes.len()).unwrap_or(MAX_QUEUES)
    }
}

impl Device for Block {
    fn kind(&self) -> u32 {
        kind::BLOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        config::features(self.slot.read_only, self.queue_count())
    }

    fn config_generation(&self) -> u32 {
        self.slot.generation()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = config::space(self.slot.show(), self.queue_count());
        let Some(found) = usize::try_from(offset).ok().and_then(|offset| space.get(offset..)) else {
            return;
        };
        let length = found.len().min(data.len());
        data[..length].copy_from_slice(&found[..length]);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.stuck.retain(|worker| !worker.is_finished());
        if !self.stuck.is_empty() {
            return Err(ActivateError::Stuck);
        }
        // A flag of its own for each life: a worker of the last must not see it cleared.
        self.stopping = Arc::default();
        let shared = Shared {
            memory: activation.memory,
            slot: self.slot.clone(),
            interrupt: activation.interrupt,
            features: activation.features,
            stopping: self.stopping.clone(),
            processors: self.processors,
        };
        let queues = activation.queues.into_iter().zip(activation.kicks);
        for ((queue, kick), thread) in queues.zip(&self.threads) {
            let place = if queue.ready() {
                match Worker::start(thread, &shared, queue, kick) {
                    Ok(worker) => Place::Worker(worker),
                    Err(error) => {
                        self.deactivate();
                        return Err(ActivateError::Thread(error));
                    }
                }
            } else {
                Place::Unused(queue)
            };
            self.queues.push(place);
        }
        self.slot.connect(shared.interrupt);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<Queue> {
        self.slot.disconnect();
        self.stopping.store(true, Ordering::SeqCst);
        for place in &self.queues {
            if let Place::Worker(worker) = place {
                worker.wake();
            }
        }
        let deadline = Instant::now() + self.stop_limit;
        let mut queues = Vec::with_capacity(self.queues.len());
        for place in self.queues.drain(..) {
            match place {
                Place::Unused(queue) => queues.push(queue),
                Place::Worker(worker) => match worker.finish(deadline) {
                    Ok(queue) => queues.push(queue),
                    Err(worker) => self.stuck.push(worker),
                },
            }
        }
        if !self.stuck.is_empty() {
            error!(
                disk = self.slot.id,
                "a disk's storage does not answer; its worker is left behind"
            );
            return Vec::new();
        }
        queues
    }

    fn save(&mut self) -> DeviceState {
        let (sectors, generation) = self.slot.capacity();
        DeviceState::Block(BlockState {
            version: STATE_VERSION,
            read_only: self.slot.read_only,
            sectors,
            generation,
        })
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), StateError> {
        let DeviceState::Block(state) = state else {
            return Err(StateError::Configuration("device type"));
        };
        if state.version != STATE_VERSION {
            return Err(StateError::Version {
                found: state.version,
                supported: STATE_VERSION,
            });
        }
        if state.read_only != self.slot.read_only {
            return Err(StateError::Configuration("read-only flag"));
        }
        self.slot.restore(state.sectors, state.generation);
        Ok(())
    }
}
