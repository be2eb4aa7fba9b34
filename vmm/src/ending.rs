//! Why a machine ends: told by whoever notices first, heard by the thread that controls the machine.

use std::error::Error;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use husk_vmm_config::End;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// The one end of a machine.
#[derive(Debug)]
pub struct Ending {
    end: Mutex<Option<End>>,
    over: AtomicBool,
    event: EventFd,
}

impl Ending {
    /// A machine that has not ended.
    ///
    /// # Errors
    /// No event descriptor is left.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self {
            end: Mutex::new(None),
            over: AtomicBool::new(false),
            event,
        })
    }

    /// Ends the machine. Only the first end counts: what follows is its consequence.
    pub fn end(&self, end: End) {
        tracing::debug!("{end}");
        let mut first = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(end);
        self.over.store(true, Ordering::SeqCst);
        // The counter cannot overflow by single steps, so the event is signalled whatever this says.
        let _ = self.event.write(1);
    }

    /// Ends the machine by an error.
    pub fn fail(&self, error: &dyn Error) {
        self.end(End::Failed { reason: chain(error) });
    }

    /// Whether the machine has ended.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// The end, if there is one.
    pub fn get(&self) -> Option<End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl AsFd for Ending {
    /// A descriptor that is readable when the machine has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        text.push_str(": ");
        text.push_str(&cause_text);
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_end_counts() {
        let ending = Ending::new().unwrap();
        assert!(!ending.is_over());
        ending.end(End::Panic);
        ending.end(End::Reboot);
        assert!(ending.is_over());
        assert_eq!(ending.get(), Some(End::Panic));
    }

    #[test]
    fn an_error_is_told_with_its_causes() {
        let error = crate::memory::MemoryError::Advise(io::Error::other("no luck"));
        assert!(chain(&error).ends_with("out of core dumps: no luck"));
    }
}
