//! The rate of the time stamp counter, which the emulated host is told instead of measuring it.
//!
//! QEMU hands this machine's counter to the emulated processors. A kernel in there would calibrate it against emulated
//! timers; while other programs take processor time away from QEMU that goes wrong by a few per cent, sometimes by a
//! large factor, and then clocks run wild or timers never fire.

use std::arch::x86_64::_rdtsc;
use std::time::{Duration, Instant};

/// With `-icount shift=0` an instruction is a nanosecond, and the counter counts them.
pub(crate) const ICOUNT_KHZ: u64 = 1_000_000;

/// Long enough for a millionth of precision.
const LEAST: Duration = Duration::from_millis(20);

/// A measurement of the counter's rate that goes on while other things are done.
pub(crate) struct Calibration {
    begin: Sample,
}

/// Time and counter, read together.
#[derive(Clone, Copy)]
struct Sample {
    time: Instant,
    counter: u64,
}

impl Calibration {
    /// Begins to measure.
    pub(crate) fn begin() -> Self {
        Self { begin: Sample::take() }
    }

    /// The rate in kHz.
    pub(crate) fn khz(&self) -> u64 {
        loop {
            let end = Sample::take();
            if let Some(khz) = rate(self.begin, end) {
                return khz;
            }
        }
    }
}

impl Sample {
    /// The best of a few: being interrupted between the two readings would spoil it.
    fn take() -> Self {
        let one = || {
            // SAFETY: every x86_64 processor has the instruction, and Linux lets every process use it.
            let before = unsafe { _rdtsc() };
            let time = Instant::now();
            // SAFETY: as above.
            let after = unsafe { _rdtsc() };
            (
                after.saturating_sub(before),
                Self {
                    time,
                    counter: before.midpoint(after),
                },
            )
        };
        let (first_width, first) = one();
        let rest = (0..20).map(|_| one());
        rest.fold(
            (first_width, first),
            |best, next| if next.0 < best.0 { next } else { best },
        )
        .1
    }
}

fn rate(begin: Sample, end: Sample) -> Option<u64> {
    let elapsed = end.time.duration_since(begin.time);
    let ticks = u128::from(end.counter.saturating_sub(begin.counter));
    (elapsed >= LEAST).then(|| u64::try_from(ticks * 1_000_000 / elapsed.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_ticks_a_millisecond() {
        let begin = Sample {
            time: Instant::now(),
            counter: 1_000,
        };
        let end = |milliseconds, counter| Sample {
            time: begin.time + Duration::from_millis(milliseconds),
            counter,
        };
        assert_eq!(rate(begin, end(50, 1_000 + 50 * 2_445_425)), Some(2_445_425));
        assert_eq!(rate(begin, end(19, 1_000 + 19 * 2_445_425)), None);
    }

    #[test]
    fn two_measurements_agree_to_a_thousandth() {
        let (one, other) = (Calibration::begin().khz(), Calibration::begin().khz());
        assert!(one.abs_diff(other) * 1000 < one, "{one} kHz, {other} kHz");
    }
}
