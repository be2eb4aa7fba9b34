//! An end that is told once, to everybody who waits for it.

use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select_biased};

use crate::process::{Exit, lock};

/// How something ends, once it has.
#[derive(Debug)]
pub(crate) struct Ended {
    exit: OnceLock<Exit>,
    /// Dropped at the end, which everybody hears who has the other side.
    teller: Mutex<Option<Sender<()>>>,
    told: Receiver<()>,
}

impl Default for Ended {
    fn default() -> Self {
        let (teller, told) = bounded(0);
        Self {
            exit: OnceLock::new(),
            teller: Mutex::new(Some(teller)),
            told,
        }
    }
}

impl Ended {
    /// Notes how it ends, without a word to those who wait. What is noted first counts.
    pub(crate) fn note(&self, exit: Exit) {
        let _ = self.exit.set(exit);
    }

    /// Notes it and says so.
    pub(crate) fn tell(&self, exit: Exit) {
        self.note(exit);
        lock(&self.teller).take();
    }

    pub(crate) fn get(&self) -> Option<Exit> {
        self.exit.get().copied()
    }

    /// Waits however long it takes, unless the caller goes: containerd calls on connections that end with it.
    pub(crate) fn wait(&self, caller: &Receiver<()>) -> Option<Exit> {
        select_biased! {
            recv(self.told) -> _ => self.get(),
            recv(caller) -> _ => None,
        }
    }

    /// Waits for a limited time.
    pub(crate) fn wait_for(&self, limit: Duration) -> Option<Exit> {
        match self.told.recv_timeout(limit) {
            Err(RecvTimeoutError::Timeout) => None,
            _ => self.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn everybody_hears_of_the_first_end() {
        let ended = Arc::new(Ended::default());
        let (caller, is_there) = bounded(0);
        let wait = || {
            let (ended, is_there) = (Arc::clone(&ended), is_there.clone());
            thread::spawn(move || ended.wait(&is_there))
        };
        let waiting = [wait(), wait()];
        assert_eq!(ended.wait_for(Duration::from_millis(10)), None);
        let first = Exit::killed();
        ended.tell(first);
        ended.tell(Exit::none());
        for waiting in waiting {
            assert_eq!(waiting.join().unwrap(), Some(first));
        }
        assert_eq!((ended.get(), ended.wait(&is_there)), (Some(first), Some(first)));
        assert_eq!(ended.wait_for(Duration::from_secs(60)), Some(first));
        drop(caller);
    }

    #[test]
    fn nobody_waits_for_a_caller_that_has_gone() {
        let (caller, is_there) = bounded(0);
        let waiting = thread::spawn(move || Ended::default().wait(&is_there));
        drop(caller);
        assert_eq!(waiting.join().unwrap(), None);
    }
}
