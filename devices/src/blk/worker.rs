//! The thread that answers one queue's requests: a disk can block, so it must not live in the event loop.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use tracing::{error, warn};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::request::Service;
use super::slot::Slot;
use super::sys;
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::{Interrupt, Memory};

/// A worker's stack in bytes: it calls nothing deep and keeps its buffers elsewhere.
const STACK: usize = 128 << 10;

/// What all workers of a device are given.
pub(super) struct Shared {
    pub(super) memory: Memory,
    pub(super) slot: Arc<Slot>,
    pub(super) interrupt: Interrupt,
    pub(super) features: u64,
    /// Set to make the workers stop as soon as they look.
    pub(super) stopping: Arc<AtomicBool>,
}

/// A running worker as its device sees it.
pub(super) struct Worker {
    /// Wakes the worker.
    kick: EventFd,
    /// The worker's last word.
    queue: Receiver<Queue>,
    thread: JoinHandle<()>,
}

impl Worker {
    /// Starts a thread called `name` for a queue.
    pub(super) fn start(name: String, shared: &Shared, queue: Queue, kick: EventFd) -> io::Result<Self> {
        let wake = kick.try_clone()?;
        let (sender, receiver) = mpsc::sync_channel(1);
        let (memory, slot) = (shared.memory.clone(), shared.slot.clone());
        let (features, stopping) = (shared.features, shared.stopping.clone());
        let interrupt = shared.interrupt.clone();
        let thread = thread::Builder::new().name(name).stack_size(STACK).spawn(move || {
            let service = Service::new(memory.clone(), slot, features, stopping.clone());
            let mut work = Work {
                memory,
                queue,
                kick,
                interrupt,
                stopping,
                service,
            };
            work.run();
            // Nobody waits any more if the worker took too long.
            let _ = sender.send(work.queue);
        })?;
        Ok(Self {
            kick: wake,
            queue: receiver,
            thread,
        })
    }

    /// Wakes the worker, whose `stopping` is set.
    pub(super) fn wake(&self) {
        if let Err(error) = self.kick.write(1) {
            error!(%error, "a disk's worker cannot be woken");
        }
    }

    /// Waits for the worker's end until `deadline`; gives itself back if the worker is still at work then.
    pub(super) fn finish(self, deadline: Instant) -> Result<Queue, Self> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.queue.recv_timeout(left) {
            Ok(queue) => {
                // Ends within the moment in which it drops the rest of what it has.
                let _ = self.thread.join();
                Ok(queue)
            }
            Err(_) => Err(self),
        }
    }

    /// Whether the thread has ended.
    pub(super) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }
}

/// The thread's own.
struct Work {
    memory: Memory,
    queue: Queue,
    kick: EventFd,
    interrupt: Interrupt,
    stopping: Arc<AtomicBool>,
    service: Service,
}

impl Work {
    fn run(&mut self) {
        let mut chain = Chain::new();
        if let Err(error) = self.answer_and_wait(&mut chain) {
            warn!(%error, "a disk's queue makes no sense");
            self.interrupt.needs_reset();
        }
    }

    /// Answers requests until the worker shall stop.
    fn answer_and_wait(&mut self, chain: &mut Chain) -> Result<(), ChainError> {
        loop {
            self.drain(chain)?;
            if self.stopping.load(Ordering::SeqCst) {
                return Ok(());
            }
            if let Err(error) = sys::wait_readable(&self.kick) {
                error!(%error, "a disk's worker cannot wait");
                self.interrupt.needs_reset();
                return Ok(());
            }
            // The counter's value does not matter; an error says that it is zero already.
            let _ = self.kick.read();
        }
    }

    /// Answers all that is available, with notifications off meanwhile.
    fn drain(&mut self, chain: &mut Chain) -> Result<(), ChainError> {
        loop {
            self.queue
                .disable_notification(&self.memory)
                .map_err(ChainError::Ring)?;
            while !self.stopping.load(Ordering::SeqCst) && chain.take(&mut self.queue, &self.memory)? {
                match self.service.serve(chain) {
                    Some(written) => self.complete(chain.head(), written)?,
                    None => self.queue.go_to_previous_position(),
                }
            }
            // Looks at the ring again after it asked to be notified, so that nothing falls between.
            let more = self.queue.enable_notification(&self.memory).map_err(ChainError::Ring)?;
            if !more || self.stopping.load(Ordering::SeqCst) {
                return Ok(());
            }
        }
    }

    /// Gives a request back at once: behind it may be one that the storage takes long for. A driver that is behind
    /// with its interrupts gets no more of them, by `EVENT_IDX`.
    fn complete(&mut self, head: u16, written: u32) -> Result<(), ChainError> {
        self.queue
            .add_used(&self.memory, head, written)
            .map_err(ChainError::Ring)?;
        if self.queue.needs_notification(&self.memory).map_err(ChainError::Ring)? {
            self.interrupt.signal_queue();
        }
        Ok(())
    }
}
