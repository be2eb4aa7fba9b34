//! What the device, its workers and the machine's owner share of a disk slot.

use std::convert::Infallible;
use std::fs::File;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;

use super::backend::{AttachError, Backend};
use crate::virtio::Interrupt;

/// How long a detached disk may take to finish the requests under way.
const RELEASE_LIMIT: Duration = Duration::from_secs(10);

/// Why a slot cannot be emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum DetachError {
    #[error("the slot holds no disk")]
    Empty,
    #[error("the slot is empty, but its disk is still open: requests under way do not end")]
    Busy,
}

/// A slot: what it is for good, and what it holds now.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) id: String,
    pub(super) read_only: bool,
    contents: Mutex<Contents>,
}

#[derive(Debug, Default)]
struct Contents {
    disk: Option<Disk>,
    /// Counts changes of the capacity.
    generation: u32,
    /// Reaches the driver while the device is active.
    interrupt: Option<Interrupt>,
    /// The driver has looked at the capacity.
    seen: bool,
    /// The capacity that the driver has seen changed while it could not be told.
    untold: bool,
}

#[derive(Debug)]
struct Disk {
    backend: Arc<Backend>,
    /// Disconnected when nobody uses the backend any more.
    closed: Receiver<Infallible>,
}

impl Slot {
    pub(super) fn new(id: String, read_only: bool) -> Self {
        Self {
            id,
            read_only,
            contents: Mutex::default(),
        }
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        // Nothing panics with the lock held; if it did, each field is still whole.
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk for the time of one request.
    pub(super) fn backend(&self) -> Option<Arc<Backend>> {
        self.contents().disk.as_ref().map(|disk| disk.backend.clone())
    }

    /// The number of sectors for the driver to see: none in an empty slot.
    pub(super) fn show(&self) -> u64 {
        let mut contents = self.contents();
        contents.seen = true;
        contents.sectors()
    }

    pub(super) fn generation(&self) -> u32 {
        self.contents().generation
    }

    /// Sectors and generation as they belong together.
    pub(super) fn capacity(&self) -> (u64, u32) {
        let contents = self.contents();
        (contents.sectors(), contents.generation)
    }

    /// Goes on from a saved capacity; the driver will be told if it is another now.
    pub(super) fn restore(&self, sectors: u64, generation: u32) {
        let mut contents = self.contents();
        contents.generation = generation;
        contents.seen = true;
        contents.untold = false;
        if contents.sectors() != sectors {
            contents.changed();
        }
    }

    /// From now on the driver can be told.
    pub(super) fn connect(&self, interrupt: Interrupt) {
        let mut contents = self.contents();
        if contents.untold {
            contents.untold = false;
            interrupt.signal_config();
        }
        contents.interrupt = Some(interrupt);
    }

    /// From now on the driver cannot be told.
    pub(super) fn disconnect(&self) {
        self.contents().interrupt = None;
    }
}

impl Contents {
    fn sectors(&self) -> u64 {
        self.disk.as_ref().map_or(0, |disk| disk.backend.sectors())
    }

    fn changed(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        match &self.interrupt {
            Some(interrupt) => interrupt.signal_config(),
            None => self.untold = self.seen,
        }
    }
}

/// The slot as the machine's owner sees it, from any thread and in every state of the device.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) slot: Arc<Slot>,
}

impl Handle {
    /// Puts a disk into the slot; the driver is told of the new capacity. The size is looked at once, now.
    ///
    /// # Errors
    /// The slot is not empty, or the file cannot be its disk.
    pub fn attach(&self, file: File) -> Result<(), AttachError> {
        self.attach_parts(vec![file])
    }

    /// Puts a disk into the slot that consists of the files, one behind the other. If they are several, the slot is a
    /// read-only one.
    ///
    /// # Errors
    /// The slot is not empty, or the files cannot be its disk.
    pub fn attach_parts(&self, files: Vec<File>) -> Result<(), AttachError> {
        let mut contents = self.slot.contents();
        if contents.disk.is_some() {
            return Err(AttachError::Occupied);
        }
        let (backend, closed) = Backend::open(files, self.slot.read_only)?;
        contents.disk = Some(Disk {
            backend: Arc::new(backend),
            closed,
        });
        contents.changed();
        Ok(())
    }

    /// Empties the slot; the driver is told of the capacity zero, and its requests fail from now on. When this
    /// returns without an error, the file is closed.
    ///
    /// # Errors
    /// The slot is empty, or requests under way do not end in time; the file is then closed when they do.
    pub fn detach(&self) -> Result<(), DetachError> {
        self.detach_within(RELEASE_LIMIT)
    }

    pub(super) fn detach_within(&self, limit: Duration) -> Result<(), DetachError> {
        let closed = {
            let mut contents = self.slot.contents();
            let disk = contents.disk.take().ok_or(DetachError::Empty)?;
            contents.changed();
            disk.closed
        };
        match closed.recv_timeout(limit) {
            Err(RecvTimeoutError::Timeout) => Err(DetachError::Busy),
            Err(RecvTimeoutError::Disconnected) => Ok(()),
            Ok(never) => match never {},
        }
    }
}
