//! When which phase of a boot was reached.

use std::sync::{Mutex, PoisonError};

use husk_vmm_config::Phase;
use nix::time::{ClockId, clock_gettime};

/// The phases of a boot, in the order in which they were reached.
#[derive(Debug, Default)]
pub struct Timeline {
    phases: Mutex<Vec<Phase>>,
}

impl Timeline {
    /// An empty timeline.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes that `name` is reached now.
    pub fn reach(&self, name: &str) {
        self.note(name, now());
    }

    /// Notes that `name` was reached at a time that [`now`] gave.
    pub fn note(&self, name: &str, at_ns: u64) {
        let mut phases = self.phases.lock().unwrap_or_else(PoisonError::into_inner);
        phases.push(Phase {
            name: name.to_owned(),
            at_ns,
        });
    }

    /// All phases so far.
    pub fn phases(&self) -> Vec<Phase> {
        self.phases.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The time in nanoseconds of `CLOCK_MONOTONIC`.
#[must_use]
pub fn now() -> u64 {
    // The clock exists on every Linux and counts from boot: it neither fails nor is negative.
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(std::time::Duration::ZERO, std::time::Duration::from);
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
