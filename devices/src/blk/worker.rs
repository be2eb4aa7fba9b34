//! The thread that answers one queue's requests: a disk can block, so it must not live in the event loop.
//!
//! It is there from the device's beginning to its end, whatever the driver does: whoever has given up the right to make
//! threads can still start and stop the device.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender, TryRecvError};
use std::thread;
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
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) memory: Memory,
    pub(super) slot: Arc<Slot>,
    pub(super) interrupt: Interrupt,
    pub(super) features: u64,
    /// Set to make the workers stop as soon as they look.
    pub(super) stopping: Arc<AtomicBool>,
}

/// A queue's thread as its device sees it. It ends when this goes and the last worker has stopped.
pub(super) struct Thread {
    jobs: Sender<Job>,
}

impl Thread {
    /// Starts a thread called `name`. It calls `entered` before anything else, and serves nothing if that fails.
    pub(super) fn start(name: String, entered: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<Self> {
        let (jobs, receiver) = mpsc::channel::<Job>();
        thread::Builder::new().name(name).stack_size(STACK).spawn(move || {
            if let Err(error) = entered() {
                error!(%error, "a disk's worker cannot be used");
                return;
            }
            for job in receiver {
                job.serve();
            }
        })?;
        Ok(Self { jobs })
    }
}

/// What a thread does in one life of the device.
struct Job {
    shared: Shared,
    queue: Queue,
    kick: EventFd,
    /// Where the queue goes afterwards.
    end: SyncSender<Queue>,
}

impl Job {
    fn serve(self) {
        let Shared {
            memory,
            slot,
            interrupt,
            features,
            stopping,
        } = self.shared;
        let service = Service::new(memory.clone(), slot, features, stopping.clone());
        let mut work = Work {
            memory,
            queue: self.queue,
            kick: self.kick,
            interrupt,
            stopping,
            service,
        };
        work.run();
        // Everything but the queue is let go of first. Nobody waits any more if the worker took too long.
        let _ = self.end.send(work.into_queue());
    }
}

/// A running worker as its device sees it.
pub(super) struct Worker {
    /// Wakes the worker.
    kick: EventFd,
    /// The worker's last word.
    queue: Receiver<Queue>,
}

impl Worker {
    /// Lets a thread serve a queue.
    pub(super) fn start(thread: &Thread, shared: &Shared, queue: Queue, kick: EventFd) -> io::Result<Self> {
        let wake = kick.try_clone()?;
        let (end, receiver) = mpsc::sync_channel(1);
        let job = Job {
            shared: shared.clone(),
            queue,
            kick,
            end,
        };
        let gone = |_| io::Error::other("the disk's thread has ended");
        thread.jobs.send(job).map_err(gone)?;
        Ok(Self {
            kick: wake,
            queue: receiver,
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
        self.queue.recv_timeout(left).map_err(|_| self)
    }

    /// Whether the thread is done with the queue.
    pub(super) fn is_finished(&self) -> bool {
        !matches!(self.queue.try_recv(), Err(TryRecvError::Empty))
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
    fn into_queue(self) -> Queue {
        self.queue
    }

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
