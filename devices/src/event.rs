//! The event loop in which the devices that never block live, and the way into it from other threads.

use std::any::Any;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use event_manager::{EventManager, MutEventSubscriber, RemoteEndpoint, SubscriberId, SubscriberOps};
use thiserror::Error;

use crate::system_calls::SystemCall;

/// What the loop's thread does, without the devices in it.
pub const SYSTEM_CALLS: &[SystemCall] = &[
    SystemCall::any(libc::SYS_epoll_ctl),
    // Which of the two waits is up to the C library.
    #[cfg(target_arch = "x86_64")]
    SystemCall::any(libc::SYS_epoll_wait),
    SystemCall::any(libc::SYS_epoll_pwait),
    // Taking an event.
    SystemCall::any(libc::SYS_read),
];

/// How long the loop may take to answer. It never blocks, so a loop that needs longer is broken.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// What lives in the event loop: the part of a device that owns queues, or a listener.
pub trait Worker: MutEventSubscriber + Any + Send {}

impl<T: MutEventSubscriber + Any + Send> Worker for T {}

/// The event loop; the thread that owns it calls [`EventManager::run`] again and again.
pub type EventLoop = EventManager<Box<dyn Worker>>;

/// Why a worker could not be put into the loop or taken out of it.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum EventError {
    #[error("the event loop has ended")]
    Ended,
    #[error("the event loop did not answer within {} seconds", ANSWER_LIMIT.as_secs())]
    Silent,
    #[error("the event loop does not know the worker")]
    Unknown,
}

/// The loop as other threads see it. Its methods wait for the loop's answer: never call them on the loop's thread.
#[derive(Clone)]
pub struct LoopHandle {
    endpoint: RemoteEndpoint<Box<dyn Worker>>,
}

impl LoopHandle {
    /// The handle of a loop.
    #[must_use]
    pub fn new(events: &EventLoop) -> Self {
        Self {
            endpoint: events.remote_endpoint(),
        }
    }

    /// Moves a worker into the loop; its `init` registers what it waits for.
    ///
    /// # Errors
    /// The loop has ended or does not answer; then the worker is gone.
    pub fn add(&self, worker: impl Worker) -> Result<SubscriberId, EventError> {
        let worker: Box<dyn Worker> = Box::new(worker);
        self.call(
            move |events| events.add_subscriber(worker),
            |events, id| {
                let _ = events.remove_subscriber(id);
            },
        )
    }

    /// Takes a worker out of the loop: when this returns, the loop does not touch it any more.
    ///
    /// # Errors
    /// The loop has ended or does not answer, or holds no worker of this type under `id`.
    pub fn take_back<W: Worker>(&self, id: SubscriberId) -> Result<W, EventError> {
        let worker = self
            .call(move |events| events.remove_subscriber(id), |_, _| {})?
            .map_err(|_| EventError::Unknown)?;
        let worker: Box<dyn Any + Send> = worker;
        worker
            .downcast::<W>()
            .map(|worker| *worker)
            .map_err(|_| EventError::Unknown)
    }

    /// Runs `work` on the loop's thread and waits for its result; `undo` gets a result that came too late.
    fn call<O: Send + 'static>(
        &self,
        work: impl FnOnce(&mut dyn SubscriberOps<Subscriber = Box<dyn Worker>>) -> O + Send + 'static,
        undo: impl FnOnce(&mut dyn SubscriberOps<Subscriber = Box<dyn Worker>>, O) + Send + 'static,
    ) -> Result<O, EventError> {
        // A result that nobody waits for any more comes back from the channel.
        let (sender, receiver) = mpsc::sync_channel(1);
        self.endpoint
            .fire(move |events| {
                let result = work(events);
                if let Err(late) = sender.send(result) {
                    undo(events, late.0);
                }
            })
            .map_err(|_| EventError::Ended)?;
        receiver.recv_timeout(ANSWER_LIMIT).map_err(|error| match error {
            RecvTimeoutError::Timeout => EventError::Silent,
            RecvTimeoutError::Disconnected => EventError::Ended,
        })
    }
}

#[cfg(test)]
mod tests {
    use event_manager::{EventOps, Events};

    use super::*;
    use crate::testing::LoopThread;

    struct Idle(u32);

    impl MutEventSubscriber for Idle {
        fn process(&mut self, _: Events, _: &mut EventOps<'_>) {}
        fn init(&mut self, _: &mut EventOps<'_>) {
            self.0 += 1;
        }
    }

    struct Other;

    impl MutEventSubscriber for Other {
        fn process(&mut self, _: Events, _: &mut EventOps<'_>) {}
        fn init(&mut self, _: &mut EventOps<'_>) {}
    }

    #[test]
    fn gives_a_worker_back_as_it_is() {
        let events = LoopThread::new();
        let id = events.handle().add(Idle(4)).unwrap();
        assert_eq!(events.handle().take_back::<Idle>(id).unwrap().0, 5);
        assert!(matches!(
            events.handle().take_back::<Idle>(id),
            Err(EventError::Unknown)
        ));
    }

    #[test]
    fn does_not_give_a_worker_of_another_type() {
        let events = LoopThread::new();
        let id = events.handle().add(Other).unwrap();
        assert!(matches!(
            events.handle().take_back::<Idle>(id),
            Err(EventError::Unknown)
        ));
    }

    #[test]
    fn reports_a_loop_that_has_ended() {
        let events = LoopThread::new();
        let handle = events.handle();
        drop(events);
        assert!(matches!(handle.add(Other), Err(EventError::Ended)));
    }
}
