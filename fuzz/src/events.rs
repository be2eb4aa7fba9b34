//! The event loop: one thread for all runs, as its start would take longer than most of them.

use std::sync::{LazyLock, mpsc};
use std::thread;

use event_manager::RemoteEndpoint;
use husk_devices::event::{EventLoop, LoopHandle, Worker};

struct Shared {
    handle: LoopHandle,
    endpoint: RemoteEndpoint<Box<dyn Worker>>,
}

static SHARED: LazyLock<Shared> = LazyLock::new(|| {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut events = EventLoop::new().unwrap();
        let shared = Shared {
            handle: LoopHandle::new(&events),
            endpoint: events.remote_endpoint(),
        };
        sender.send(shared).unwrap();
        loop {
            events.run().unwrap();
        }
    });
    receiver.recv().unwrap()
});

/// The loop's handle.
pub fn handle() -> LoopHandle {
    SHARED.handle.clone()
}

/// Returns when the loop has dealt with what had happened before.
pub fn settle() {
    // The round that is under way may have looked for events before; the next one has not.
    for _ in 0..2 {
        let called: Result<(), event_manager::Error> = SHARED.endpoint.call_blocking(|_| Ok(()));
        called.unwrap();
    }
}
