//! Whether to look for the next request a little longer before sleeping.
//!
//! To sleep and be woken costs the worker, and the guest that must leave its processor to wake it, more than looking
//! into the ring for a few microseconds. A driver that answers each completion with the next request is met awake; one
//! that does not is looked for in vain a few times, and not again before its requests come close together.

use std::time::{Duration, Instant};

/// The longest look: about what to sleep and to be woken costs, so that it can at most double that.
const LIMIT: Duration = Duration::from_micros(10);
/// The longest sleep after which requests are taken to come close together. Nearly all of a sleep that was ended at once
/// is what it costs itself.
const SHORT: Duration = Duration::from_micros(100);
/// How often in a row it may look in vain: guest or worker may just have lost its processor.
const TRIES: u8 = 4;

/// What the requests so far say of the next.
pub(super) struct Spin {
    /// Whether guest and worker can run at the same time.
    possible: bool,
    /// How often it may still look in vain.
    tries: u8,
}

impl Spin {
    /// On a host of so many processors.
    pub(super) fn new(processors: usize) -> Self {
        Self {
            possible: processors > 1,
            tries: 0,
        }
    }

    /// Looks, if that is worth it, until something is there or the time is over.
    pub(super) fn look<E>(&mut self, mut there: impl FnMut() -> Result<bool, E>) -> Result<bool, E> {
        if self.tries == 0 {
            return Ok(false);
        }
        let start = Instant::now();
        while start.elapsed() < LIMIT {
            if there()? {
                self.tries = TRIES;
                return Ok(true);
            }
            std::hint::spin_loop();
        }
        self.tries -= 1;
        Ok(false)
    }

    /// After a sleep of this length.
    pub(super) fn slept(&mut self, length: Duration) {
        if length > SHORT {
            self.tries = 0;
        } else if self.possible {
            self.tries = self.tries.max(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(spin: &mut Spin) -> bool {
        let mut looked = false;
        let found = spin.look(|| {
            looked = true;
            Ok::<_, ()>(false)
        });
        assert_eq!(found, Ok(false));
        looked
    }

    #[test]
    fn looks_only_where_requests_come_close_together() {
        let mut spin = Spin::new(2);
        assert!(!looks(&mut spin), "before it knows anything");
        spin.slept(SHORT);
        assert!(looks(&mut spin), "after a short sleep");
        assert!(!looks(&mut spin), "after it was in vain");
        spin.slept(SHORT);
        assert_eq!(spin.look(|| Ok::<_, ()>(true)), Ok(true));
        for _ in 0..TRIES {
            assert!(looks(&mut spin), "after it was worth it");
        }
        assert!(!looks(&mut spin), "after it was in vain too often");
        spin.slept(SHORT);
        spin.slept(SHORT * 2);
        assert!(!looks(&mut spin), "after a long sleep");
    }

    #[test]
    fn does_not_look_where_the_guest_cannot_run_meanwhile() {
        let mut spin = Spin::new(1);
        spin.slept(SHORT);
        assert!(!looks(&mut spin));
    }
}
