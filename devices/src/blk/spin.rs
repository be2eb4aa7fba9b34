//! Whether to look for the next request a little longer before sleeping.
//!
//! To sleep and be woken costs the worker, and the guest that must leave its processor to wake it, more than looking
//! into the ring for a few microseconds. A driver that answers each completion with the next request is met awake; one
//! that does not is looked for in vain once, and not again before its requests come close together.

use std::time::{Duration, Instant};

/// The longest look: about what to sleep and to be woken costs, so that it can at most double that.
const LIMIT: Duration = Duration::from_micros(10);

/// What the requests so far say of the next.
pub(super) struct Spin {
    /// Whether guest and worker can run at the same time.
    possible: bool,
    worth: bool,
}

impl Spin {
    /// On a host of so many processors.
    pub(super) fn new(processors: usize) -> Self {
        Self {
            possible: processors > 1,
            worth: false,
        }
    }

    /// Looks, if that is worth it, until something is there or the time is over.
    pub(super) fn look<E>(&mut self, mut there: impl FnMut() -> Result<bool, E>) -> Result<bool, E> {
        if !self.worth {
            return Ok(false);
        }
        let start = Instant::now();
        while start.elapsed() < LIMIT {
            if there()? {
                return Ok(true);
            }
            std::hint::spin_loop();
        }
        self.worth = false;
        Ok(false)
    }

    /// After a sleep of this length.
    pub(super) fn slept(&mut self, length: Duration) {
        // Nearly all of a sleep that was ended at once is what it costs itself.
        self.worth = self.possible && length < 4 * LIMIT;
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
        spin.slept(LIMIT);
        assert_eq!(spin.look(|| Ok::<_, ()>(true)), Ok(true));
        assert!(looks(&mut spin), "after it was worth it");
        assert!(!looks(&mut spin), "after it was not");
        spin.slept(LIMIT * 100);
        assert!(!looks(&mut spin), "after a long sleep");
    }

    #[test]
    fn does_not_look_where_the_guest_cannot_run_meanwhile() {
        let mut spin = Spin::new(1);
        spin.slept(LIMIT);
        assert!(!looks(&mut spin));
    }
}
