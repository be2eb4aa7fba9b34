//! When what happened on the way of a start.

use std::sync::Mutex;

use husk_vmm_config::Phase;
use nix::time::{ClockId, clock_gettime};

/// Points on the host's `CLOCK_MONOTONIC`, in the order in which they were reached.
#[derive(Debug, Default)]
pub struct Timeline {
    phases: Mutex<Vec<Phase>>,
}

/// The host's `CLOCK_MONOTONIC` in nanoseconds.
#[must_use]
pub fn now() -> u64 {
    // The clock cannot fail on Linux and does not go below zero.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        let (seconds, nanoseconds) = (time.tv_sec().cast_unsigned(), time.tv_nsec().cast_unsigned());
        seconds * 1_000_000_000 + nanoseconds
    })
}

impl Timeline {
    /// Notes that a point is reached now.
    pub fn reach(&self, name: &str) {
        self.note(name, now());
    }

    /// Notes that a point was reached at a time.
    pub fn note(&self, name: &str, at_ns: u64) {
        tracing::debug!(at_ns, "{name}");
        let phase = Phase {
            name: name.to_owned(),
            at_ns,
        };
        self.lock().push(phase);
    }

    /// All points, by time.
    #[must_use]
    pub fn phases(&self) -> Vec<Phase> {
        let mut phases = self.lock().clone();
        phases.sort_by_key(|phase| phase.at_ns);
        phases
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Phase>> {
        // A list of points is whole whatever happened to the thread that held it.
        self.phases.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
