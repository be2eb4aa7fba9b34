//! What lives in the event loop: the queues, and the connections between them and the host's sockets.

use std::sync::atomic::Ordering;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use tracing::{debug, error, warn};
use virtio_queue::{Queue, QueueT};
use vm_memory::Bytes;
use vmm_sys_util::eventfd::EventFd;

use super::buffers::{Receiver, RingError, next_packet};
use super::muxer::Muxer;
use super::{EVENT, LISTENER, RX, TIMER, TX};
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::{Interrupt, Memory, wants_interrupt};

/// How many packets are taken from the guest, and how many turns are given towards it, before the loop's other devices
/// have theirs.
const BUDGET: usize = 256;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`: all connections are gone (section 5.10.6.7).
const EVENT_TRANSPORT_RESET: [u8; 4] = 0_u32.to_le_bytes();

/// How far a guest that was restored without its connections has been told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TransportReset {
    /// There is nothing to tell.
    None,
    /// It has to be told.
    Due,
    /// It was told, when its event queue had been filled up to this index. It offers the next buffer after it has dealt
    /// with the event.
    Told { filled: u16 },
}

/// The active device.
pub(super) struct Worker {
    memory: Memory,
    receive: Queue,
    transmit: Queue,
    event: Queue,
    kicks: [EventFd; 3],
    interrupt: Interrupt,
    muxer: Box<Muxer>,
    transport_reset: TransportReset,
    receive_chain: Chain,
    transmit_chain: Chain,
    /// The guest may have sent packets that were not taken yet.
    transmitting: bool,
    /// A queue makes no sense: nothing is done until the driver resets the device.
    failed: bool,
}

impl Worker {
    /// A worker for queues in the order of [`RX`], [`TX`], [`EVENT`], all enabled.
    pub(super) fn new(
        memory: Memory,
        [receive, transmit, event]: [Queue; 3],
        kicks: [EventFd; 3],
        interrupt: Interrupt,
        muxer: Box<Muxer>,
        transport_reset: TransportReset,
    ) -> Self {
        Self {
            memory,
            receive,
            transmit,
            event,
            kicks,
            interrupt,
            muxer,
            transport_reset,
            receive_chain: Chain::new(),
            transmit_chain: Chain::new(),
            transmitting: true,
            failed: false,
        }
    }

    /// Takes the worker apart after it left the loop: its queues, its connections and what the guest is to be told.
    pub(super) fn into_parts(mut self) -> (Vec<Queue>, Box<Muxer>, TransportReset) {
        self.muxer.deadlines.clear(EVENT);
        self.muxer.detach();
        let reset = match self.transport_reset {
            TransportReset::None => TransportReset::None,
            // Told or not: the guest has not shown that it noticed.
            TransportReset::Due | TransportReset::Told { .. } => TransportReset::Due,
        };
        (vec![self.receive, self.transmit, self.event], self.muxer, reset)
    }

    /// Does what can be done, and fails if the driver left no sense in a queue.
    fn work(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = self.try_work(ops) {
            self.fail(&error, ops);
        }
    }

    fn try_work(&mut self, ops: &mut EventOps<'_>) -> Result<(), RingError> {
        let mut signal = self.tell_reset(ops)?;
        let mut budget = BUDGET;
        let mut sent = false;
        loop {
            signal |= self.transmit(&mut budget, ops)?;
            let was_congested = self.muxer.congested();
            let mut receiver = Receiver::new(&mut self.receive, &self.memory, &mut self.receive_chain);
            let more = self.muxer.send(&mut receiver, BUDGET, ops)?;
            sent |= receiver.used;
            if more {
                again(&self.kicks[RX as usize]);
                break;
            }
            if !was_congested || self.muxer.congested() || budget == 0 {
                break;
            }
        }
        if self.transmitting && !self.muxer.congested() {
            again(&self.kicks[TX as usize]);
        }
        if sent {
            signal |= notify(&mut self.receive, &self.memory)?;
        }
        if signal {
            self.interrupt.signal_queue();
        }
        self.muxer.accept_stalled(ops);
        Ok(())
    }

    /// Takes packets of the guest while it has some, `budget` lasts, and answers do not pile up. Returns whether the
    /// guest is to be interrupted.
    fn transmit(&mut self, budget: &mut usize, ops: &mut EventOps<'_>) -> Result<bool, RingError> {
        let mut used = false;
        while self.transmitting && *budget > 0 && !self.muxer.congested() {
            match next_packet(&mut self.transmit_chain, &mut self.transmit, &self.memory)? {
                Some((header, payload)) => {
                    *budget -= 1;
                    self.muxer.receive(&header, payload, ops);
                    self.transmit
                        .add_used(&self.memory, self.transmit_chain.head(), 0)
                        .map_err(RingError::Used)?;
                    used = true;
                }
                None => {
                    let more = self.transmit.enable_notification(&self.memory);
                    self.transmitting = more.map_err(ChainError::Ring)?;
                }
            }
        }
        if used {
            notify(&mut self.transmit, &self.memory)
        } else {
            Ok(false)
        }
    }

    /// Brings the news that all connections are gone to the guest, and finds out when it has noticed: until then it
    /// might take a new connection for one of the old. Returns whether the guest is to be interrupted.
    fn tell_reset(&mut self, ops: &mut EventOps<'_>) -> Result<bool, RingError> {
        match self.transport_reset {
            TransportReset::None => Ok(false),
            TransportReset::Due => {
                let mut chain = Chain::new();
                if !chain.take(&mut self.event, &self.memory)? {
                    let more = self.event.enable_notification(&self.memory);
                    if more.map_err(ChainError::Ring)? {
                        again(&self.kicks[EVENT as usize]);
                    }
                    return Ok(false);
                }
                self.write_event(&chain)?;
                let filled = self.watch_event_queue()?;
                self.transport_reset = TransportReset::Told { filled };
                notify(&mut self.event, &self.memory)
            }
            TransportReset::Told { filled } => {
                if self.event_queue_filled()? != filled {
                    self.transport_reset = TransportReset::None;
                    self.muxer.deadlines.clear(EVENT);
                    self.muxer.open(ops);
                }
                Ok(false)
            }
        }
    }

    fn write_event(&mut self, chain: &Chain) -> Result<(), RingError> {
        let buffer = chain.writable().first();
        let len = buffer.map_or(0, |buffer| buffer.len());
        let Some(buffer) = buffer.filter(|_| len >= 4) else {
            return Err(RingError::Short(len as usize));
        };
        self.memory
            .write_slice(&EVENT_TRANSPORT_RESET, buffer.addr())
            .map_err(|source| RingError::Address {
                address: buffer.addr().0,
                len,
                source,
            })?;
        self.event
            .add_used(&self.memory, chain.head(), 4)
            .map_err(RingError::Used)
    }

    /// Asks to be notified of the next buffer that the driver adds behind all that are there; returns their end.
    fn watch_event_queue(&mut self) -> Result<u16, RingError> {
        let position = self.event.next_avail();
        let filled = self.event_queue_filled()?;
        // A notification is asked for at the device's own position, which is behind the driver's.
        self.event.set_next_avail(filled);
        let more = self.event.enable_notification(&self.memory);
        self.event.set_next_avail(position);
        if more.map_err(ChainError::Ring)? {
            again(&self.kicks[EVENT as usize]);
        }
        Ok(filled)
    }

    fn event_queue_filled(&self) -> Result<u16, RingError> {
        let filled = self.event.avail_idx(&self.memory, Ordering::Acquire);
        Ok(filled.map_err(ChainError::Ring)?.0)
    }

    /// Ends all work: the driver has to reset the device.
    fn fail(&mut self, error: &RingError, ops: &mut EventOps<'_>) {
        warn!(
            error = error as &dyn std::error::Error,
            "the guest's vsock driver left a queue without sense"
        );
        self.failed = true;
        self.muxer.close(ops);
        for kick in &self.kicks {
            let _ = ops.remove(Events::empty(kick));
        }
        self.interrupt.needs_reset();
    }
}

impl MutEventSubscriber for Worker {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for (kick, token) in self.kicks.iter().zip([RX, TX, EVENT]) {
            if let Err(error) = ops.add(Events::with_data(kick, token, EventSet::IN)) {
                error!(%error, "a queue's notifications cannot be registered");
            }
        }
        self.muxer.attach(ops);
        if self.transport_reset == TransportReset::None {
            self.muxer.open(ops);
        } else {
            self.muxer.await_notice(EVENT);
        }
        self.work(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if self.failed {
            return;
        }
        match events.data() {
            token @ (RX | TX | EVENT) => {
                // An error says that nothing was signalled, and then looking costs little.
                let _ = self.kicks[token as usize].read();
                self.transmitting |= token == TX;
            }
            LISTENER => self.muxer.accept(ops),
            TIMER => self.expire(ops),
            token => self.muxer.socket_event(token, events.event_set(), ops),
        }
        self.work(ops);
    }
}

impl Worker {
    fn expire(&mut self, ops: &mut EventOps<'_>) {
        if self.muxer.expire(ops).contains(&EVENT) {
            debug!("the guest does not show that it noticed the loss of its connections");
            self.muxer.open(ops);
        }
    }
}

/// Makes the loop come back to a queue after it served the others.
fn again(kick: &EventFd) {
    // Only a counter at its end can refuse, and then the event is signalled anyway.
    let _ = kick.write(1);
}

/// Whether the driver wants an interrupt for what was used.
fn notify(queue: &mut Queue, memory: &Memory) -> Result<bool, RingError> {
    wants_interrupt(queue, memory).map_err(RingError::Used)
}
