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
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::request::{Answer, Request, Service};
use super::slot::Slot;
use super::spin::Spin;
use super::sys;
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::{Interrupt, Memory, wants_interrupt};

/// A worker's stack in bytes: it calls nothing deep and keeps its buffers elsewhere.
const STACK: usize = 128 << 10;
/// How many requests are taken, and their answers held to be given back together, and with how many bytes of data: what
/// takes a few microseconds.
const BATCH: usize = 16;
const BATCH_BYTES: u64 = 64 << 10;

/// What all workers of a device are given.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) memory: Memory,
    pub(super) slot: Arc<Slot>,
    pub(super) interrupt: Interrupt,
    pub(super) features: u64,
    /// Set to make the workers stop as soon as they look.
    pub(super) stopping: Arc<AtomicBool>,
    /// How many processors the host has for this process.
    pub(super) processors: usize,
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
            processors,
        } = self.shared;
        let service = Service::new(memory.clone(), slot, features, stopping.clone());
        let mut work = Work {
            memory,
            queue: self.queue,
            kick: self.kick,
            interrupt,
            stopping,
            service,
            answered: Vec::with_capacity(BATCH),
            chains: Default::default(),
            requests: Vec::with_capacity(BATCH),
            spin: Spin::new(processors),
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
    /// Requests that are done and not given back yet: their heads, and how many bytes were written for each.
    answered: Vec<(u16, u32)>,
    /// What is taken at once, and what it asks; both kept to be used again.
    chains: [Chain; BATCH],
    requests: Vec<Request>,
    spin: Spin,
}

impl Work {
    fn into_queue(self) -> Queue {
        self.queue
    }

    fn run(&mut self) {
        if let Err(error) = self.answer_and_wait() {
            warn!(%error, "a disk's queue makes no sense");
            self.interrupt.needs_reset();
        }
    }

    /// Answers requests until the worker shall stop.
    fn answer_and_wait(&mut self) -> Result<(), ChainError> {
        loop {
            self.drain()?;
            if self.stopping.load(Ordering::SeqCst) {
                return Ok(());
            }
            let asleep = Instant::now();
            if let Err(error) = sys::wait_readable(&self.kick) {
                error!(%error, "a disk's worker cannot wait");
                self.interrupt.needs_reset();
                return Ok(());
            }
            // The counter's value does not matter; an error says that it is zero already.
            let _ = self.kick.read();
            self.spin.slept(asleep.elapsed());
        }
    }

    /// Answers all that is available, with notifications off meanwhile.
    fn drain(&mut self) -> Result<(), ChainError> {
        loop {
            self.queue
                .disable_notification(&self.memory)
                .map_err(ChainError::Ring)?;
            while self.answer_batch()? {}
            let more = || {
                let end = self.queue.avail_idx(&self.memory, Ordering::Acquire);
                let end = end.map_err(ChainError::Ring)?.0;
                Ok(end != self.queue.next_avail() || self.stopping.load(Ordering::SeqCst))
            };
            if self.spin.look(more)? && !self.stopping.load(Ordering::SeqCst) {
                continue;
            }
            // Looks at the ring again after it asked to be notified, so that nothing falls between.
            let more = self.queue.enable_notification(&self.memory).map_err(ChainError::Ring)?;
            if !more || self.stopping.load(Ordering::SeqCst) {
                return Ok(());
            }
        }
    }

    /// Takes some requests, answers them and gives them back; false if there was none, or the worker shall stop.
    fn answer_batch(&mut self) -> Result<bool, ChainError> {
        let mut taken = 0;
        let mut end = Ok(());
        while taken < BATCH && !self.stopping.load(Ordering::SeqCst) {
            match self.chains[taken].take(&mut self.queue, &self.memory) {
                Ok(true) => taken += 1,
                Ok(false) => break,
                // What came before it is in order.
                Err(error) => {
                    end = Err(error);
                    break;
                }
            }
        }
        self.requests.clear();
        let looked = self.chains[..taken].iter().map(|chain| self.service.look(chain));
        self.requests.extend(looked);
        let done = self.answer(taken)?;
        // Those that were not done come again when the device goes on.
        let undone = u16::try_from(taken - done).unwrap_or(0);
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(undone));
        self.give_back()?;
        end.map(|()| taken > 0 && undone == 0)
    }

    /// Answers the requests that were taken, in their order; returns how many were when the worker was to stop.
    fn answer(&mut self, taken: usize) -> Result<usize, ChainError> {
        let mut index = 0;
        while index < taken {
            let run = index..index + Request::run(&self.requests[index..], BATCH_BYTES);
            let together = run.len() > 1
                && self.service.read_together(
                    &self.chains[run.clone()],
                    &self.requests[run.clone()],
                    &mut self.answered,
                );
            if !together {
                for index in run.clone() {
                    if !self.answer_one(index)? {
                        return Ok(index);
                    }
                }
            }
            index = run.end;
            let bytes: u64 = self.answered.iter().map(|(_, written)| u64::from(*written)).sum();
            if bytes > BATCH_BYTES {
                self.give_back()?;
            }
        }
        Ok(taken)
    }

    /// Answers a request, or returns false as the worker shall stop. What is done before it is given back before it is
    /// waited for.
    fn answer_one(&mut self, index: usize) -> Result<bool, ChainError> {
        let (chain, request) = (&self.chains[index], &self.requests[index]);
        let mut answer = Answer::Slow;
        if !self.answered.is_empty() {
            answer = self.service.serve(chain, request, true);
        }
        if answer == Answer::Slow {
            self.give_back()?;
            answer = self.service.serve(&self.chains[index], &self.requests[index], false);
        }
        let Answer::Given(written) = answer else {
            return Ok(false);
        };
        self.answered.push((self.chains[index].head(), written));
        Ok(true)
    }

    /// Puts what is done into the used ring, all at once: driver and device then seldom fight for the ring's memory.
    fn give_back(&mut self) -> Result<(), ChainError> {
        if self.answered.is_empty() {
            return Ok(());
        }
        for (head, written) in self.answered.drain(..) {
            self.queue
                .add_used(&self.memory, head, written)
                .map_err(ChainError::Ring)?;
        }
        if wants_interrupt(&mut self.queue, &self.memory).map_err(ChainError::Ring)? {
            self.interrupt.signal_queue();
        }
        Ok(())
    }
}
